package eio

import (
	"encoding/base64"
	"encoding/binary"
	"iter"
	"math"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"github.com/embedpush/push/internal/ws"
)

const typeByte = byte(Message - Open) // in front of a binary message of V3

// AppendPacket appends a text packet as a frame. data has to be UTF-8, and
// free of U+001E, which a V4 body cannot hold; JSON is.
func AppendPacket(dst []byte, t PacketType, data string) []byte {
	n := 1 + len(data)
	dst = slices.Grow(dst, ws.HeaderLen(n)+n)
	dst = ws.AppendHeader(dst, ws.Text, n)
	return append(append(dst, byte(t)), data...)
}

// AppendBinary appends a binary message as a frame: the data, in V3 behind a
// byte 4.
func AppendBinary(dst []byte, rev Revision, data []byte) []byte {
	n := len(data)
	if rev == V3 {
		n++
	}
	dst = slices.Grow(dst, ws.HeaderLen(n)+n)
	dst = ws.AppendHeader(dst, ws.Binary, n)
	if rev == V3 {
		dst = append(dst, typeByte)
	}
	return append(dst, data...)
}

// Handshake is what the server says first.
type Handshake struct {
	SID          string // has to stand in JSON as it is, as base64 does
	Upgrade      bool   // a WebSocket is offered
	PingInterval time.Duration
	PingTimeout  time.Duration
	MaxPayload   int // bytes of a POST's body
}

// AppendOpen appends the Open packet as a frame:
//
//	0{"sid":"…","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}
//
// These keys, all of them and no other, are what the protocol's suites want.
func AppendOpen(dst []byte, h *Handshake) []byte {
	var room [192]byte
	b := append(room[:0], byte(Open))
	b = append(b, `{"sid":"`...)
	b = append(b, h.SID...)
	b = append(b, `","upgrades":[`...)
	if h.Upgrade {
		b = append(b, `"websocket"`...)
	}
	b = append(b, `],"pingInterval":`...)
	b = strconv.AppendInt(b, h.PingInterval.Milliseconds(), 10)
	b = append(b, `,"pingTimeout":`...)
	b = strconv.AppendInt(b, h.PingTimeout.Milliseconds(), 10)
	b = append(b, `,"maxPayload":`...)
	b = strconv.AppendInt(b, int64(h.MaxPayload), 10)
	b = append(b, '}')
	return ws.AppendFrame(dst, ws.Text, b)
}

// AppendBody appends what is queued, as the body of an answer to a GET. Each of
// frames is whole WebSocket frames in a row, as this package and ws append
// them: a close frame becomes a Close packet, pings and pongs are left out.
//
// text64: the V3 client said b64=1, so that bytes have to come as base64; V4
// has nothing else. binary: the body is V3's binary form, of type
// application/octet-stream, which it is if there is a binary packet and not
// text64.
//
// Without a packet the body is V3's empty payload, "0:", or a Noop in V4, whose
// clients take an empty body for an error.
func AppendBody(dst []byte, rev Revision, text64 bool, frames ...[]byte) (body []byte, binary bool) {
	octets := rev == V3 && !text64 // if there is a binary packet
	size := 2                      // of the body without packets
	for op, payload := range packets(frames) {
		size += overhead + len(payload)
		switch {
		case op != ws.Binary:
		case octets:
			binary = true
		default:
			size += base64.StdEncoding.EncodedLen(len(payload)) - len(payload)
		}
	}

	dst = slices.Grow(dst, size)
	from := len(dst)
	for op, payload := range packets(frames) {
		switch {
		case binary:
			dst = appendOctets(dst, op, payload)
		case rev == V3:
			dst = appendCounted(dst, op, payload)
		default:
			if len(dst) > from {
				dst = append(dst, separator)
			}
			dst = appendText(dst, op, payload)
		}
	}
	switch {
	case len(dst) > from:
	case rev == V3:
		dst = append(dst, "0:"...)
	default:
		dst = append(dst, byte(Noop))
	}
	return dst, binary
}

// overhead is the most that a packet of a body has around it: ten digits, a
// colon and "b4".
const overhead = 13

// packets are the packets in frames, as payloads of a Text or of a Binary.
func packets(frames [][]byte) iter.Seq2[ws.Opcode, []byte] {
	return func(yield func(ws.Opcode, []byte) bool) {
		for _, rest := range frames {
			for len(rest) > 0 {
				var op ws.Opcode
				var payload []byte
				op, payload, rest = split(rest)
				switch op {
				case ws.Ping, ws.Pong:
					continue
				case ws.Close:
					op, payload = ws.Text, closing
				}
				if !yield(op, payload) {
					return
				}
			}
		}
	}
}

var closing = []byte{byte(Close)} // never changed

// split returns the first frame of b, which the server made: whole, unmasked,
// and not a fragment.
func split(b []byte) (op ws.Opcode, payload, rest []byte) {
	if len(b) >= 2 {
		size, n := uint64(b[1]), 2
		switch {
		case size == 126 && len(b) >= 4:
			size, n = uint64(binary.BigEndian.Uint16(b[2:])), 4
		case size == 127 && len(b) >= 10:
			size, n = binary.BigEndian.Uint64(b[2:]), 10
		case size > 125:
			size = math.MaxUint64
		}
		if size <= uint64(len(b)-n) {
			end := n + int(size)
			return ws.Opcode(b[0] & 0xf), b[n:end], b[end:]
		}
	}
	panic("eio: what is queued is not whole frames of a server")
}

// appendText appends a packet of a V4 body.
func appendText(dst []byte, op ws.Opcode, payload []byte) []byte {
	if op != ws.Binary {
		return append(dst, payload...)
	}
	return base64.StdEncoding.AppendEncode(append(dst, 'b'), payload)
}

// appendCounted appends a packet of a V3 body in text.
func appendCounted(dst []byte, op ws.Opcode, payload []byte) []byte {
	if op != ws.Binary {
		dst = strconv.AppendInt(dst, int64(codeUnits(payload)), 10)
		return append(append(dst, ':'), payload...)
	}
	data := payload[1:]
	dst = strconv.AppendInt(dst, int64(2+base64.StdEncoding.EncodedLen(len(data))), 10)
	return base64.StdEncoding.AppendEncode(append(dst, ':', 'b', byte(Message)), data)
}

// appendOctets appends a packet of a V3 body in bytes.
func appendOctets(dst []byte, op ws.Opcode, payload []byte) []byte {
	kind := byte(0)
	if op == ws.Binary {
		kind = 1
	}
	dst = append(dst, kind)
	from := len(dst)
	dst = strconv.AppendInt(dst, int64(len(payload)), 10)
	for i := range dst[from:] {
		dst[from+i] -= '0'
	}
	return append(append(dst, 0xff), payload...)
}

const (
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// codeUnits is the length of b, which is UTF-8, in UTF-16: one for each byte
// that begins a rune and one more for each that begins a rune of four.
func codeUnits(b []byte) int {
	n := len(b)
	for len(b) >= 8 {
		if w := binary.LittleEndian.Uint64(b); w&highBits != 0 {
			later := w >> 7 &^ (w >> 6) & lowBits                     // 10xxxxxx
			four := w >> 7 & (w >> 6) & (w >> 5) & (w >> 4) & lowBits // 11110xxx
			n += bits.OnesCount64(four) - bits.OnesCount64(later)
		}
		b = b[8:]
	}
	for _, c := range b {
		switch {
		case c&0xc0 == 0x80:
			n--
		case c >= 0xf0:
			n++
		}
	}
	return n
}

package eio

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"unicode/utf8"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// MaxPackets is how many packets the body of one POST may hold.
const MaxPackets = 10_000

const (
	separator = 0x1e // between the packets of a V4 body
	maxDigits = 10   // of a length in a V3 body
)

// What a client can do wrong. They are shared: nobody may change them.
var (
	errEmpty      = &wire.Error{Code: wire.Protocol, Text: "empty packet"}
	errType       = &wire.Error{Code: wire.Protocol, Text: "unknown packet type"}
	errEmptyBody  = &wire.Error{Code: wire.Protocol, Text: "empty body"}
	errBinaryBody = &wire.Error{Code: wire.Unsupported, Text: "binary body in revision 4"}
	errKind       = &wire.Error{Code: wire.Protocol, Text: "packet is neither text nor binary"}
	errLength     = &wire.Error{Code: wire.Protocol, Text: "malformed packet length"}
	errShort      = &wire.Error{Code: wire.Protocol, Text: "packet is shorter than its length says"}
	errSurrogate  = &wire.Error{Code: wire.Protocol, Text: "packet length splits a surrogate pair"}
	errText       = &wire.Error{Code: wire.BadData, Text: "text packet is not UTF-8"}
	errBase64     = &wire.Error{Code: wire.BadData, Text: "binary packet is not base64"}
	errMany       = &wire.Error{Code: wire.Policy, Text: "too many packets in one body"}
	errTooBig     = &wire.Error{Code: wire.TooBig, Text: "packet too big"}
)

// Reader reads what one client sends: frames of a WebSocket, or the bodies of
// POSTs, one after the other. It is made by NewReader, to be used by one
// goroutine at a time, and not to be copied once used.
type Reader struct {
	frames  ws.Reader // its Max is the limit of bodies as well
	packets uint16    // of the present body so far
	source  source
	rev     Revision
}

// source is what Next is given.
type source uint8

const (
	webSocket  source = iota
	textBody          // text/plain
	binaryBody        // application/octet-stream
	ended             // nothing: there was an error
)

// NewReader returns a Reader of WebSocket frames. A packet may have at most
// limit bytes, its type included, as a WebSocket message of this revision, even
// if it comes otherwise: it is the same for bytes that come as base64. -1: no
// limit.
func NewReader(rev Revision, limit int) Reader {
	return Reader{frames: ws.Reader{Max: limit}, rev: rev}
}

// SetLimit changes the limit, for the packets that begin from now on.
func (r *Reader) SetLimit(n int) { r.frames.Max = n }

// Limit is the limit.
func (r *Reader) Limit() int { return r.frames.Max }

// Body says that what Next gets from now on is the body of one POST: what Next
// is given first is all of it, and then what Next has not used yet. binary: its
// Content-Type is application/octet-stream, which only V3 has.
//
// Next has to be called once even if the body is empty, which is an error.
func (r *Reader) Body(binary bool) {
	r.packets, r.source = 0, textBody
	if binary {
		r.source = binaryBody
	}
}

// WebSocket says that what Next gets from now on are frames of a WebSocket:
// the session was upgraded.
func (r *Reader) WebSocket() { r.source = webSocket }

// Partial reports whether the Reader holds the beginning of a WebSocket frame
// or message.
func (r *Reader) Partial() bool { return r.source == webSocket && r.frames.Partial() }

// Next reads the next packet, or the next control frame, from in, and returns
// how many bytes it used. p.Type is 0 without a control frame when there is
// none; then n is len(in). Frames may come in any split, a body may not. Next
// may change in, and p may point into it.
//
// An error is a *wire.Error: the session is to be ended with it. What comes
// after an error or after a close frame is used up and means nothing.
func (r *Reader) Next(in []byte, p *Packet) (n int, err error) {
	*p = Packet{}
	switch {
	case r.source == ended:
		return len(in), nil
	case r.source == webSocket:
		n, err = r.frame(in, p)
	case r.source == binaryBody && r.rev != V3:
		err = errBinaryBody
	case len(in) == 0 && r.packets > 0:
		return 0, nil
	case len(in) == 0:
		err = errEmptyBody
	case r.rev != V3:
		n, err = r.separated(in, p)
	case r.source == binaryBody:
		n, err = r.octets(in, p)
	default:
		n, err = r.counted(in, p)
	}
	if err != nil {
		*p = Packet{}
		r.source = ended
	}
	return n, err
}

// frame reads a WebSocket message.
func (r *Reader) frame(in []byte, p *Packet) (n int, err error) {
	n, err = r.frames.Next(in, &p.Control)
	if err != nil {
		return n, err
	}
	op, payload := p.Control.Op, p.Control.Payload
	switch op {
	case ws.Text:
		p.Control = ws.Message{}
		return n, r.text(payload, p)
	case ws.Binary:
		p.Control = ws.Message{}
		if r.rev != V3 {
			return n, r.message(payload, p)
		}
		return n, r.typed(payload, p)
	}
	return n, nil
}

// separated reads a packet of a V4 body, up to the separator behind it. The
// separator is left for the next call, so that the body cannot end with one.
func (r *Reader) separated(in []byte, p *Packet) (n int, err error) {
	if r.packets > 0 {
		n = 1
	}
	packet := in[n:]
	if end := bytes.IndexByte(packet, separator); end >= 0 {
		packet = packet[:end]
	}
	if err := r.admit(); err != nil {
		return n, err
	}
	n += len(packet)
	if !utf8.Valid(packet) {
		return n, errText
	}
	return n, r.text(packet, p)
}

// counted reads a packet of a V3 body in text: <length>:<packet>, the length
// in UTF-16 code units. A packet of length 0 stands for none ("0:" is the body
// without packets); like npm's parser it skips it wherever it stands.
func (r *Reader) counted(in []byte, p *Packet) (n int, err error) {
	for n < len(in) {
		size, used, err := length(in[n:], '0', ':')
		if err == nil {
			err = r.admit()
		}
		if err != nil {
			return n, err
		}
		n += used
		if size == 0 {
			continue
		}
		end, err := cut(in[n:], size)
		if err != nil {
			return n, err
		}
		return n + end, r.text(in[n:n+end], p)
	}
	return n, nil
}

// octets reads a packet of a V3 body in bytes: 0 for text or 1 for binary, the
// length as decimal digits, one of the bytes 0 to 9 each, 0xff, the packet.
func (r *Reader) octets(in []byte, p *Packet) (n int, err error) {
	kind := in[0]
	if kind > 1 {
		return 0, errKind
	}
	size, used, err := length(in[1:], 0, 0xff)
	if err == nil {
		err = r.admit()
	}
	if err != nil {
		return 0, err
	}
	n = 1 + used
	if size > int64(len(in)-n) {
		return n, errShort
	}
	packet := in[n : n+int(size)]
	n += len(packet)
	switch {
	case kind == 1:
		return n, r.typed(packet, p)
	case !utf8.Valid(packet):
		return n, errText
	case len(packet) > 0 && packet[0] == 'b': // base64 is of the other form
		return n, errType
	default:
		return n, r.text(packet, p)
	}
}

// admit counts a packet of a body.
func (r *Reader) admit() error {
	if r.packets == MaxPackets {
		return errMany
	}
	r.packets++
	return nil
}

// length reads digits, of which the first is zero, up to stop. n is their
// number and 1. A length may be more than an int.
func length(in []byte, zero, stop byte) (size int64, n int, err error) {
	for i, c := range in {
		if c == stop && i > 0 {
			return size, i + 1, nil
		}
		digit := c - zero
		if digit > 9 || i == maxDigits {
			break
		}
		size = 10*size + int64(digit)
	}
	return 0, 0, errLength
}

// cut returns the length in bytes of the text of size UTF-16 code units that b
// begins with.
func cut(b []byte, size int64) (end int, err error) {
	if size > int64(len(b)) { // a code unit is at least a byte of UTF-8
		return 0, errShort
	}
	for size > 0 {
		if size >= 8 && len(b)-end >= 8 && binary.LittleEndian.Uint64(b[end:])&highBits == 0 {
			end += 8
			size -= 8
			continue
		}
		if end == len(b) {
			return 0, errShort
		}
		c, n := utf8.DecodeRune(b[end:])
		if c == utf8.RuneError && n == 1 {
			return 0, errText
		}
		end += n
		size--
		if c > 0xffff {
			size--
		}
	}
	if size < 0 {
		return 0, errSurrogate
	}
	return end, nil
}

// text reads a packet whose first character is its type, or which is a binary
// message as base64 behind a 'b', which V3 calls 'b4'. npm's clients send the
// latter over a WebSocket too, if they are told forceBase64.
func (r *Reader) text(packet []byte, p *Packet) error {
	if len(packet) == 0 {
		return errEmpty
	}
	if packet[0] == 'b' {
		return r.base64(packet[1:], p)
	}
	t := PacketType(packet[0])
	if t < Open || t > Noop {
		return errType
	}
	if !r.fits(len(packet)) {
		return errTooBig
	}
	p.Type, p.Data = t, packet[1:len(packet):len(packet)]
	return nil
}

// base64 reads what stands behind the 'b', and decodes it in its place.
func (r *Reader) base64(packet []byte, p *Packet) error {
	if r.rev == V3 {
		if len(packet) == 0 || PacketType(packet[0]) != Message {
			return errType
		}
		packet = packet[1:]
	}
	n, err := base64.StdEncoding.Decode(packet, packet)
	if err != nil || base64.StdEncoding.EncodedLen(n) != len(packet) { // Decode skips line breaks
		return errBase64
	}
	if r.rev == V3 && !r.fits(n+1) {
		return errTooBig
	}
	return r.message(packet[:n], p)
}

// typed reads a binary packet of V3, whose first byte is its type as a number.
func (r *Reader) typed(packet []byte, p *Packet) error {
	if len(packet) == 0 {
		return errEmpty
	}
	if packet[0] != typeByte {
		return errType
	}
	if !r.fits(len(packet)) {
		return errTooBig
	}
	return r.message(packet[1:], p)
}

func (r *Reader) message(data []byte, p *Packet) error {
	if !r.fits(len(data)) {
		return errTooBig
	}
	p.Type, p.Binary, p.Data = Message, true, data[:len(data):len(data)]
	return nil
}

func (r *Reader) fits(n int) bool { return r.frames.Max < 0 || n <= r.frames.Max }

package eio

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// packet is a Packet that keeps its data. A control frame has an op.
type packet struct {
	t      PacketType
	binary bool
	data   string
	op     ws.Opcode
	code   wire.Code
}

func (p packet) String() string {
	data := p.data
	if len(data) > 40 {
		data = data[:40] + "…"
	}
	switch {
	case p.op != 0:
		return fmt.Sprintf("{op %d %d %q}", p.op, p.code, data)
	case p.binary:
		return fmt.Sprintf("{%c bytes % x}", p.t, data)
	default:
		return fmt.Sprintf("{%c %q}", p.t, data)
	}
}

func text(t PacketType, data string) packet { return packet{t: t, data: data} }
func bin(data string) packet                { return packet{t: Message, binary: true, data: data} }

// read gives r all of in, in the pieces that end at cuts, and returns what
// comes out. Each piece is a copy that is overwritten when it is used up, so
// nothing can live on in it. What a packet points to is overwritten and
// appended to as well, which must not harm the packets behind it.
func read(t testing.TB, r *Reader, in []byte, cuts ...int) (packets []packet, err error) {
	t.Helper()
	from := 0
	for _, to := range append(cuts, len(in)) {
		rest := bytes.Clone(in[from:to])
		for first := true; first || len(rest) > 0; first = false {
			p := Packet{Type: '?', Data: []byte("of before"), Binary: true, Control: ws.Message{Op: ws.Pong}}
			n, err := r.Next(rest, &p)
			if n < 0 || n > len(rest) {
				t.Fatalf("Next used %d of %d bytes", n, len(rest))
			}
			nothing := p.Type == 0 && p.Control.Op == 0 && p.Control.Payload == nil && p.Data == nil && !p.Binary
			if err != nil {
				var we *wire.Error
				if !errors.As(err, &we) || !nothing {
					t.Fatalf("Next returned %v with packet %+v; want a *wire.Error alone", err, p)
				}
				var again Packet
				if n, err := r.Next(rest, &again); n != len(rest) || err != nil || again.Type != 0 || r.Partial() {
					t.Fatalf("Next used %d of %d bytes behind an error, and returned %+v, %v", n, len(rest), again, err)
				}
				return packets, err
			}
			switch {
			case nothing && n != len(rest):
				t.Fatalf("Next wants more after %d of %d bytes", n, len(rest))
			case nothing:
			case n == 0:
				t.Fatalf("Next returned %+v without using a byte", p)
			case p.Control.Op != 0:
				if p.Type != 0 || p.Data != nil || p.Binary {
					t.Fatalf("Next returned a control frame in a packet: %+v", p)
				}
				packets = append(packets, packet{op: p.Control.Op, code: p.Control.Code, data: string(p.Control.Payload)})
			default:
				packets = append(packets, packet{t: p.Type, binary: p.Binary, data: string(p.Data)})
				_ = append(p.Data, "beyond its end"...)
				for i := range p.Data {
					p.Data[i] = 0xEE
				}
			}
			for i := range rest[:n] {
				rest[i] = 0xEE
			}
			rest = rest[n:]
		}
		from = to
	}
	return packets, nil
}

// readBody reads one body with a Reader of its own.
func readBody(t testing.TB, rev Revision, limit int, binary bool, body string) ([]packet, error) {
	t.Helper()
	r := NewReader(rev, limit)
	r.Body(binary)
	packets, err := read(t, &r, []byte(body))
	if r.Partial() {
		t.Fatal("a body leaves something partial")
	}
	return packets, err
}

// client makes a frame as a client does, masked.
func client(first byte, payload string) []byte {
	b := []byte{first, 0x80}
	switch n := len(payload); {
	case n < 126:
		b[1] |= byte(n)
	case n <= 0xffff:
		b[1] |= 126
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b[1] |= 127
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	key := [4]byte{byte(rand.Uint32()), 2, 3, 4}
	b = append(b, key[:]...)
	for i := range len(payload) {
		b = append(b, payload[i]^key[i%4])
	}
	return b
}

const (
	textFrame   = 0x81
	binaryFrame = 0x82
	closeFrame  = 0x88
	pingFrame   = 0x89
	pongFrame   = 0x8a
)

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// asClient reads the body of an answer to a GET as npm's clients do. It is
// written from the protocol's description, not with what it tests.
func asClient(rev Revision, octets bool, body []byte) (packets []packet, err error) {
	fail := func(format string, a ...any) ([]packet, error) {
		return packets, fmt.Errorf("%d packets, then "+format, append([]any{len(packets)}, a...)...)
	}
	switch {
	case rev == V4 && octets:
		return fail("binary in V4")
	case rev == V4:
		for s := range strings.SplitSeq(string(body), "\x1e") {
			if s == "" {
				return fail("an empty packet")
			}
			if s[0] != 'b' {
				packets = append(packets, text(PacketType(s[0]), s[1:]))
				continue
			}
			data, err := base64.StdEncoding.DecodeString(s[1:])
			if err != nil {
				return fail("%v", err)
			}
			packets = append(packets, bin(string(data)))
		}
	case octets:
		for rest := string(body); rest != ""; {
			head, _, ok := strings.Cut(rest, "\xff")
			if !ok {
				return fail("no end of the length")
			}
			digits := strings.Map(func(c rune) rune { return c + '0' }, head[1:])
			n, err := strconv.Atoi(digits)
			behind := rest[len(head)+1:]
			if err != nil || n < 1 || n > len(behind) {
				return fail("length %q of %d", digits, len(behind))
			}
			s := behind[:n]
			rest = behind[n:]
			switch {
			case head[0] == 0:
				packets = append(packets, text(PacketType(s[0]), s[1:]))
			case s[0] == 4:
				packets = append(packets, bin(s[1:]))
			default:
				return fail("binary packet of type %d", s[0])
			}
		}
	default:
		for units := utf16.Encode([]rune(string(body))); len(units) > 0; {
			colon := 0
			for colon < len(units) && units[colon] != ':' {
				colon++
			}
			n, err := strconv.Atoi(string(utf16.Decode(units[:colon])))
			if err != nil || colon+1+n > len(units) {
				return fail("length %v of %d", n, len(units))
			}
			s := string(utf16.Decode(units[colon+1 : colon+1+n]))
			units = units[colon+1+n:]
			switch {
			case s == "":
			case s[0] != 'b':
				packets = append(packets, text(PacketType(s[0]), s[1:]))
			default:
				data, err := base64.StdEncoding.DecodeString(s[2:])
				if err != nil || s[1] != '4' {
					return fail("%q: %v", s, err)
				}
				packets = append(packets, bin(string(data)))
			}
		}
	}
	return packets, nil
}

// queued makes the frames of packets, as the server queues them.
func queued(rev Revision, packets []packet) []byte {
	var b []byte
	for _, p := range packets {
		if p.binary {
			b = AppendBinary(b, rev, []byte(p.data))
		} else {
			b = AppendPacket(b, p.t, p.data)
		}
	}
	return b
}

// Package ws is the server's side of RFC 6455 after the upgrade: a Reader
// turns the bytes of a client into messages, AppendFrame and its sisters make
// the frames of the server. It has no goroutine, no socket and no clock, and
// it knows no extension.
//
// A Reader is two words while its client is silent or sends frames that arrive
// whole; it holds memory only for what has arrived of an unfinished frame or
// message. It bounds bytes, not time: how long a message may stay unfinished
// is for the caller to say, who sees it by Partial.
package ws

import (
	"encoding/binary"
	"math"
	"math/bits"
	"unicode/utf8"

	"github.com/embedpush/push/internal/wire"
)

// Opcode says what a frame or a message is (RFC 6455 section 5.2).
type Opcode byte

const (
	continuation Opcode = 0x0 // a later fragment of a Text or Binary message
	Text         Opcode = 0x1 // UTF-8
	Binary       Opcode = 0x2
	Close        Opcode = 0x8 // empty, or a code of two bytes and a reason in UTF-8
	Ping         Opcode = 0x9 // to be answered with a Pong of the same payload
	Pong         Opcode = 0xA
)

func (op Opcode) control() bool { return op&0x8 != 0 }

const (
	finBit  = 0x80 // of the first byte
	rsvBits = 0x70
	maskBit = 0x80 // of the second byte

	maxControl = 125 // payload of a control frame, section 5.5
	maxHeader  = 14  // two bytes, a length of eight, a masking key of four
	minBuffer  = 512 // what a partial message gets at first, if it may become that long
)

// Message is one whole message, or one control frame.
type Message struct {
	Op      Opcode    // 0: nothing yet, more bytes are needed
	Code    wire.Code // Close: the client's code, wire.NoStatus if it gave none; else 0
	Payload []byte    // Close: the reason; valid until the next call of Next
}

// Control tells what a control frame means to whoever owns the connection, in
// ev; a pong means nothing, its bytes were a sign of life already.
func (m *Message) Control(ev *wire.Event) {
	switch m.Op {
	case Ping:
		ev.Kind = wire.Ping
		ev.Reply = AppendFrame(nil, Pong, m.Payload)
	case Close: // RFC 6455 5.5.1: answered with the code that it had
		ev.Kind, ev.Code, ev.Text = wire.Closed, m.Code, m.Payload
		ev.Reply = AppendClose(nil, m.Code, "")
		if m.Code == wire.NoStatus {
			ev.Code = 0
		}
	}
}

// What a client can do wrong. They are shared: nobody may change them.
var (
	errReserved   = &wire.Error{Code: wire.Protocol, Text: "reserved bits are set"}
	errOpcode     = &wire.Error{Code: wire.Protocol, Text: "unknown opcode"}
	errUnmasked   = &wire.Error{Code: wire.Protocol, Text: "frame is not masked"}
	errControl    = &wire.Error{Code: wire.Protocol, Text: "control frame is fragmented or longer than 125 bytes"}
	errStray      = &wire.Error{Code: wire.Protocol, Text: "continuation of no message"}
	errUnfinished = &wire.Error{Code: wire.Protocol, Text: "new message inside a fragmented one"}
	errLength     = &wire.Error{Code: wire.Protocol, Text: "length is not in its shortest form"}
	errNegative   = &wire.Error{Code: wire.Protocol, Text: "length has its highest bit set"}
	errCloseBody  = &wire.Error{Code: wire.Protocol, Text: "close frame of one byte"}
	errCloseCode  = &wire.Error{Code: wire.Protocol, Text: "close code not allowed on the wire"}
	errReason     = &wire.Error{Code: wire.BadData, Text: "close reason is not UTF-8"}
	errText       = &wire.Error{Code: wire.BadData, Text: "text message is not UTF-8"}
	errTooBig     = &wire.Error{Code: wire.TooBig, Text: "message too big"}
)

// Reader reads what one client sends. It is to be used by one goroutine at a
// time, and not to be copied once used.
type Reader struct {
	// Max is the limit in bytes for the payload of one message, all its
	// fragments together. It is judged by each frame's header and may be
	// changed between calls of Next. 0: only empty messages; -1: none.
	Max int

	part *partial // nil between messages
}

// partial is what a Reader keeps of an unfinished frame or message.
type partial struct {
	op      Opcode // of the message whose fragments are coming; 0 if there is none
	data    []byte // the message so far
	split   uint8  // how many bytes at the end of data are an unfinished rune of a Text
	frame   frame  // the frame whose payload is coming; its size is what is still missing
	control []byte // that payload so far, if it is a control frame
	held    uint8  // how much of a frame's header is in head
	head    [maxHeader]byte
}

// frame is the header of a frame.
type frame struct {
	op   Opcode
	fin  bool
	size int
	key  uint32 // its lowest byte masks the next byte of the payload
}

// ended stands in Reader.part after a Close or an error. It is never changed.
var ended partial

// Partial reports whether the Reader is in the middle of a frame or of a
// fragmented message.
func (r *Reader) Partial() bool { return r.part != nil && r.part != &ended }

// Next reads from in, in any split, until one message or one control frame is
// complete or in is used up, and returns how many bytes it used. m.Op is 0
// when it needs more bytes; then n is len(in). A control frame between the
// fragments of a message comes before that message. Next may unmask within in,
// and m.Payload may point into it.
//
// An error is a *wire.Error: the connection is to be ended with it. What comes
// after an error or after a Close is used up and means nothing (section 5.5.1).
func (r *Reader) Next(in []byte, m *Message) (n int, err error) {
	*m = Message{}
	if r.part == &ended {
		return len(in), nil
	}
	for n < len(in) {
		if r.part == nil || r.part.frame.size == 0 {
			f, used, err := r.header(in[n:])
			if err != nil {
				return n, r.end(err)
			}
			if used == 0 {
				return len(in), nil
			}
			n += used
			if f.size <= len(in)-n && r.standsAlone(f) {
				payload := in[n : n+f.size : n+f.size]
				unmask(payload, f.key)
				return n + f.size, r.deliver(f.op, payload, m)
			}
			r.begin(f)
		}
		used := min(r.part.frame.size, len(in)-n)
		payload, err := r.take(in[n : n+used])
		n += used
		if err != nil {
			return n, r.end(err)
		}
		if f := r.part.frame; f.size == 0 && f.fin {
			return n, r.deliver(f.op, payload, m)
		}
	}
	return n, nil
}

// header reads a frame's header from in. n is 0 when it needs more bytes; then
// it holds what there is.
func (r *Reader) header(in []byte) (f frame, n int, err error) {
	p := r.part
	if p == nil || p.held == 0 {
		f, n, err = r.parse(in)
		if n == 0 && err == nil {
			if p == nil {
				p = new(partial)
				r.part = p
			}
			p.held = uint8(copy(p.head[:], in))
		}
		return f, n, err
	}
	held := int(p.held)
	have := held + copy(p.head[held:], in)
	f, n, err = r.parse(p.head[:have])
	if n == 0 || err != nil {
		p.held = uint8(have)
		return f, 0, err
	}
	p.held = 0
	return f, n - held, nil
}

// parse judges the beginning of a frame, rule by rule as soon as the bytes for
// it are there. n is the header's length, 0 when b is too short.
func (r *Reader) parse(b []byte) (f frame, n int, err error) {
	if len(b) < 2 {
		return f, 0, nil
	}
	f.op, f.fin = Opcode(b[0]&0xF), b[0]&finBit != 0
	size := uint64(b[1] &^ maskBit)
	inMessage := r.part != nil && r.part.op != 0
	switch {
	case b[0]&rsvBits != 0: // 5.2: MUST be 0 unless an extension is negotiated
		return f, 0, errReserved
	case b[1]&maskBit == 0: // 5.1: the server MUST close upon an unmasked frame
		return f, 0, errUnmasked
	case f.op > Binary && f.op < Close || f.op > Pong: // 5.2: unknown opcode, MUST fail
		return f, 0, errOpcode
	case f.op.control() && (!f.fin || size > maxControl): // 5.5: at most 125 bytes, MUST NOT be fragmented
		return f, 0, errControl
	case f.op == continuation && !inMessage: // 5.4: a fragmented message begins with its opcode
		return f, 0, errStray
	case (f.op == Text || f.op == Binary) && inMessage: // 5.4: messages MUST NOT be interleaved
		return f, 0, errUnfinished
	}

	n = 2
	switch size {
	case 126:
		if n += 2; len(b) < n {
			return f, 0, nil
		}
		if size = uint64(binary.BigEndian.Uint16(b[2:])); size < 126 { // 5.2: the minimal number of bytes MUST be used
			return f, 0, errLength
		}
	case 127:
		if n += 8; len(b) < n {
			return f, 0, nil
		}
		if size = binary.BigEndian.Uint64(b[2:]); size > math.MaxInt64 { // 5.2: the most significant bit MUST be 0
			return f, 0, errNegative
		}
		if size <= math.MaxUint16 { // 5.2, as above
			return f, 0, errLength
		}
	}
	if !f.op.control() && !r.fits(size) { // 7.4.1 and 10.4
		return f, 0, errTooBig
	}
	f.size = int(size)
	if n += 4; len(b) < n {
		return f, 0, nil
	}
	f.key = binary.LittleEndian.Uint32(b[n-4:])
	return f, n, nil
}

func (r *Reader) limit() int {
	if r.Max < 0 {
		return math.MaxInt
	}
	return r.Max
}

// fits reports whether the message may have size bytes more.
func (r *Reader) fits(size uint64) bool {
	room := r.limit()
	if r.part != nil {
		room -= len(r.part.data)
	}
	return room >= 0 && size <= uint64(room)
}

// standsAlone reports whether the payload of f, once it is there, can be
// delivered without being joined to anything.
func (r *Reader) standsAlone(f frame) bool {
	return f.op.control() || f.fin && (r.part == nil || len(r.part.data) == 0)
}

func (r *Reader) begin(f frame) {
	if r.part == nil {
		r.part = new(partial)
	}
	r.part.frame = f
	if f.op == Text || f.op == Binary {
		r.part.op = f.op
	}
}

// take keeps the next bytes of the present frame. It returns what has come so
// far: of the control frame, or of the message.
func (r *Reader) take(b []byte) ([]byte, error) {
	p := r.part
	p.frame.key = unmask(b, p.frame.key)
	p.frame.size -= len(b)
	if p.frame.op.control() {
		p.control = appendUpTo(p.control, b, len(p.control)+len(b)+p.frame.size)
		return p.control, nil
	}

	most := r.limit()
	if p.frame.fin {
		most = len(p.data) + len(b) + p.frame.size
	}
	from := len(p.data) - int(p.split)
	p.data = appendUpTo(p.data, b, most)
	if p.op == Text {
		split, ok := splitRune(p.data[from:])
		if !ok { // 8.1: fail upon bytes that are not UTF-8; it need not wait for the end
			return nil, errText
		}
		p.split = uint8(split)
	}
	return p.data, nil
}

// deliver puts a message or a control frame that is complete into m.
func (r *Reader) deliver(op Opcode, payload []byte, m *Message) error {
	p := r.part
	if op.control() {
		if p != nil {
			p.control = nil
			if p.op == 0 {
				r.part = nil
			}
		}
		if op == Close {
			return r.goodbye(payload, m)
		}
		m.Op, m.Payload = op, payload
		return nil
	}

	checked := p != nil && len(p.data) > 0 // but for its end, by take
	if op == continuation {
		op = p.op
	}
	if op == Text && (checked && p.split != 0 || !checked && !utf8.Valid(payload)) { // 8.1, of the whole message (5.6)
		return r.end(errText)
	}
	r.part = nil
	m.Op, m.Payload = op, payload
	return nil
}

// goodbye reads the body of a close frame.
func (r *Reader) goodbye(body []byte, m *Message) error {
	r.part = &ended
	if len(body) == 0 {
		m.Op, m.Code = Close, wire.NoStatus // 7.1.5
		return nil
	}
	if len(body) == 1 { // 5.5.1: a body MUST begin with a code of two bytes
		return errCloseBody
	}
	code, reason := wire.Code(binary.BigEndian.Uint16(body)), body[2:]
	if !allowedOnWire(code) {
		return errCloseCode
	}
	if !utf8.Valid(reason) { // 5.5.1 and 8.1
		return errReason
	}
	m.Op, m.Code, m.Payload = Close, code, reason
	return nil
}

// allowedOnWire reports whether an endpoint may send this close code: the ones
// of section 7.4.1 and of IANA's registry, and those of libraries (3000) and
// applications (4000). 1004 is reserved; 1005, 1006 and 1015 MUST NOT be sent.
func allowedOnWire(c wire.Code) bool {
	return c >= 1000 && c <= 1003 || c >= 1007 && c <= 1014 || c >= 3000 && c <= 4999
}

// end lets go of everything and returns err.
func (r *Reader) end(err error) error {
	r.part = &ended
	return err
}

// appendUpTo is append with a capacity that begins small and at most doubles,
// so that memory follows what has arrived, and that does not exceed most unless
// it has to.
func appendUpTo(dst, b []byte, most int) []byte {
	need := len(dst) + len(b)
	if need <= cap(dst) {
		return append(dst, b...)
	}
	grown := most
	if cap(dst) < most/2 {
		grown = min(most, max(2*cap(dst), minBuffer))
	}
	next := make([]byte, need, max(need, grown))
	copy(next[copy(next, dst):], b)
	return next
}

// splitRune reports whether b is UTF-8, apart from a rune that is unfinished
// at its end and has n bytes so far.
func splitRune(b []byte) (n int, ok bool) {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if end := b[len(b)-i:]; utf8.RuneStart(end[0]) {
			if !utf8.FullRune(end) {
				n = i
			}
			break
		}
	}
	return n, utf8.Valid(b[:len(b)-n])
}

// unmask takes the masking off b (section 5.3), eight bytes at a time, and
// returns the key for the byte that follows.
func unmask(b []byte, key uint32) uint32 {
	wide := uint64(key)<<32 | uint64(key)
	for len(b) >= 32 {
		four := b[:32:32]
		binary.LittleEndian.PutUint64(four[0:], binary.LittleEndian.Uint64(four[0:])^wide)
		binary.LittleEndian.PutUint64(four[8:], binary.LittleEndian.Uint64(four[8:])^wide)
		binary.LittleEndian.PutUint64(four[16:], binary.LittleEndian.Uint64(four[16:])^wide)
		binary.LittleEndian.PutUint64(four[24:], binary.LittleEndian.Uint64(four[24:])^wide)
		b = b[32:]
	}
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= byte(key)
		key = bits.RotateLeft32(key, -8)
	}
	return key
}

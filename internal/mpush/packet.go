// Package mpush speaks mpush's own wire protocol to its clients, on the
// server's side and for a Go client. Section numbers in its comments are those
// of the mpush wire protocol as the Java server 0.8 speaks it:
//
//	1 framing             5 which packet is encrypted with what
//	2 commands            6 life cycle of a connection
//	3 flags               10 gateway
//	4 bodies              11 JSON over WebSocket
//
// It has no goroutine, no socket and no clock. A Reader turns bytes into
// packets; a struct for each body decodes and appends it; Cipher, PrivateKey,
// Inflate and AppendDeflate turn bodies into what is on the wire and back.
package mpush

import (
	"encoding/binary"
	"errors"
)

// HeaderLen is the length of a packet before its body (section 1).
const HeaderLen = 13

// Beat is a heartbeat: this one byte, in place of a packet. No header begins
// with it, since its length would be negative.
const Beat = 0xDF

// Cmd says what a packet is (section 2). Those without a comment are not in
// use.
type Cmd int8

const (
	CmdUnknown             Cmd = -1
	CmdHeartbeat           Cmd = 1 // usually the byte Beat; as a packet it is to be answered with that byte
	CmdHandshake           Cmd = 2 // client to server; the OK has the same command
	CmdLogin               Cmd = 3
	CmdLogout              Cmd = 4
	CmdBind                Cmd = 5 // client to server
	CmdUnbind              Cmd = 6 // client to server
	CmdFastConnect         Cmd = 7 // client to server; the OK has the same command
	CmdPause               Cmd = 8
	CmdResume              Cmd = 9
	CmdError               Cmd = 10 // server to client
	CmdOK                  Cmd = 11 // server to client
	CmdHTTPProxy           Cmd = 12 // client to server; the response has the same command
	CmdKick                Cmd = 13 // server to client, id 0
	CmdGatewayKick         Cmd = 14 // gateway only
	CmdPush                Cmd = 15 // both directions
	CmdGatewayPush         Cmd = 16 // gateway only
	CmdNotification        Cmd = 17
	CmdGatewayNotification Cmd = 18
	CmdChat                Cmd = 19
	CmdGatewayChat         Cmd = 20
	CmdGroup               Cmd = 21
	CmdGatewayGroup        Cmd = 22
	CmdAck                 Cmd = 23 // both directions, no body
	CmdNack                Cmd = 24
)

// Flags are a packet's flags (section 3). Unknown bits mean nothing.
type Flags uint8

const (
	FlagCrypto   Flags = 1 << iota // the body is encrypted, after it was compressed
	FlagCompress                   // the body is compressed, RFC 1950
	FlagBizAck                     // a push whose ack the receiving program sends
	FlagAutoAck                    // a push whose ack the receiving library sends
	FlagJSON                       // the body is JSON: over WebSocket only
)

// Header is what stands before each body (section 1).
type Header struct {
	Len   int32  // bytes 0-3: of the body on the wire, compressed and encrypted
	Cmd   Cmd    // byte 4
	CC    uint16 // bytes 5-6: CheckCode of the body; 0 from every known peer, to be ignored
	Flags Flags  // byte 7
	ID    int32  // bytes 8-11: binds an answer to its request, an ack to its push
	LRC   uint8  // byte 12: CalcLRC of the header; as CC
}

// ParseHeader reads the header at the beginning of b, which has at least
// HeaderLen bytes.
func ParseHeader(b []byte) Header {
	_ = b[HeaderLen-1]
	return Header{
		Len:   int32(binary.BigEndian.Uint32(b)),
		Cmd:   Cmd(b[4]),
		CC:    binary.BigEndian.Uint16(b[5:]),
		Flags: Flags(b[7]),
		ID:    int32(binary.BigEndian.Uint32(b[8:])),
		LRC:   b[12],
	}
}

// AppendHeader appends h as it is on the wire.
func AppendHeader(dst []byte, h Header) []byte {
	return append(dst,
		byte(h.Len>>24), byte(h.Len>>16), byte(h.Len>>8), byte(h.Len),
		byte(h.Cmd),
		byte(h.CC>>8), byte(h.CC),
		byte(h.Flags),
		byte(h.ID>>24), byte(h.ID>>16), byte(h.ID>>8), byte(h.ID),
		h.LRC)
}

// AppendPacket appends a packet whose body is as it shall be on the wire.
func AppendPacket(dst []byte, cmd Cmd, flags Flags, id int32, body []byte) []byte {
	dst = AppendHeader(dst, Header{Len: int32(len(body)), Cmd: cmd, Flags: flags, ID: id})
	return append(dst, body...)
}

// CheckCode is the sum of a body's bytes.
func CheckCode(body []byte) uint16 {
	var sum uint16
	for _, b := range body {
		sum += uint16(b)
	}
	return sum
}

// CalcLRC is the exclusive or of a header's bytes, LRC excepted.
func (h Header) CalcLRC() uint8 {
	x := uint32(h.Len) ^ uint32(h.ID)
	x ^= x >> 16
	return byte(x) ^ byte(x>>8) ^ byte(h.Cmd) ^ byte(h.CC>>8) ^ byte(h.CC) ^ byte(h.Flags)
}

// Packet is one packet or one heartbeat.
type Packet struct {
	Header
	OK   bool   // complete; false: more bytes are needed, or there was an error
	Beat bool   // it is a heartbeat: there is no header and no body
	Body []byte // as it is on the wire; valid until the next call of Next
}

// Errors of Next. The packet's header is read and nothing of its body.
var (
	ErrNegative = errors.New("mpush: length of a body is negative")
	ErrTooBig   = errors.New("mpush: body is too big")
)

// minBuffer is what a body gets at first if it does not come at once and may
// become that long.
const minBuffer = 512

// Reader reads what one peer sends. It is to be used by one goroutine at a
// time, and not to be copied once used.
//
// It is two words between packets. Inside one it holds what has arrived of it,
// in a buffer at most twice as long.
type Reader struct {
	// Max is the limit in bytes for one body as it is on the wire. It is
	// judged when a header is complete and may be changed between calls of
	// Next. 0: only empty bodies; -1: none.
	Max int

	part *partial // nil between packets
}

// partial is what a Reader keeps of an unfinished packet.
type partial struct {
	body []byte // so far
	head [HeaderLen]byte
	held uint8 // bytes in head
}

// broken stands in Reader.part after an error. It is never changed.
var broken partial

// Partial reports whether the Reader is in the middle of a packet.
func (r *Reader) Partial() bool { return r.part != nil && r.part != &broken }

// Next reads from in, in any split, until one packet or one heartbeat is
// complete or in is used up, and returns how many bytes it used. p.OK is false
// when it needs more bytes; then n is len(in). p.Body may point into in.
//
// An error is ErrNegative or ErrTooBig, as soon as the header is there; p has
// the header then, for an answer. What comes after an error is used up and
// means nothing.
func (r *Reader) Next(in []byte, p *Packet) (n int, err error) {
	*p = Packet{}
	if r.part == &broken || len(in) == 0 {
		return len(in), nil
	}

	// The header.
	part := r.part
	switch {
	case part == nil && in[0] == Beat: // section 1: looked for at a frame's border only
		p.OK, p.Beat = true, true
		return 1, nil
	case part == nil && len(in) >= HeaderLen:
		n, p.Header = HeaderLen, ParseHeader(in)
	case part != nil && part.held == HeaderLen: // and has been judged
		p.Header = ParseHeader(part.head[:])
		return r.body(in, 0, p), nil
	default:
		if part == nil {
			part = new(partial)
			r.part = part
		}
		n = copy(part.head[part.held:], in)
		if part.held += uint8(n); part.held < HeaderLen {
			return n, nil
		}
		p.Header = ParseHeader(part.head[:])
	}

	if err := r.judge(p.Len); err != nil {
		r.part = &broken
		return n, err
	}
	if int64(p.Len) <= int64(len(in)-n) { // the body lies in in
		r.part = nil
		end := n + int(p.Len)
		p.OK, p.Body = true, in[n:end:end]
		return end, nil
	}
	if part == nil {
		r.part = &partial{held: HeaderLen, head: [HeaderLen]byte(in)}
	}
	return r.body(in, n, p), nil
}

// judge is what section 1 says a server should do: look at the length before
// anything is kept of the body.
func (r *Reader) judge(length int32) error {
	switch {
	case length < 0: // the Java server takes it for 0
		return ErrNegative
	case r.Max >= 0 && int64(length) > int64(r.Max):
		return ErrTooBig
	}
	return nil
}

// body keeps what in has from byte n on of a body that does not lie in it
// whole, and returns up to where it used in.
func (r *Reader) body(in []byte, n int, p *Packet) int {
	part := r.part
	size := int(p.Len)
	used := min(size-len(part.body), len(in)-n)
	part.body = appendUpTo(part.body, in[n:n+used], size)
	if len(part.body) < size {
		p.Header = Header{}
	} else {
		r.part = nil
		p.OK, p.Body = true, part.body
	}
	return n + used
}

// appendUpTo is append with a capacity that begins small and at most doubles,
// so that memory follows what has arrived, and that does not exceed most, which
// is at least the new length.
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

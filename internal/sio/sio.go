// Package sio is Socket.IO on the server's side, protocols 4 and 5 and the
// msgpack form of 5, as bytes: a Session turns what a client sends into
// events, over a WebSocket or in the bodies of POSTs, and the Append functions
// make what the server sends. It has no goroutine, no socket and no clock. The
// layer below, sessions, heartbeats and transports, is package eio.
//
// A namespace is "" or "/" for the main one, else it begins with a slash. Of
// who has joined which, the package knows only that something must be joined
// first.
package sio

import (
	"sync/atomic"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/pushjson"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// Form is how packets are written.
type Form uint8

const (
	Old    Form = iota // protocol 4, Engine.IO 3
	New                // protocol 5, Engine.IO 4
	Packed             // protocol 5 in msgpack, Engine.IO 4 (socket.io-msgpack-parser)
)

func (f Form) revision() eio.Revision {
	if f == Old {
		return eio.V3
	}
	return eio.V4
}

// Session is one client's state, a wire.Session. Init comes first. It holds
// nothing of its own between two packets, unless attachments of the first are
// still to come.
type Session struct {
	reader  eio.Reader
	pending *unfinished   // a packet whose attachments are coming; nil: none is
	form    atomic.Uint32 // a Form
	rev     eio.Revision
	typ     eio.PacketType // of the packet that the last Feed read
	joined  bool           // a CONNECT came, and the form is settled
	ended   bool           // the client closed the session
}

// Init begins the Session of a client that speaks this revision over a
// WebSocket. A packet, and one with its attachments, may have at most limit
// bytes; -1: no limit.
func (s *Session) Init(rev eio.Revision, limit int) {
	s.reader, s.rev = eio.NewReader(rev, limit), rev
	if rev != eio.V3 {
		s.form.Store(uint32(New))
	}
}

// Body says that what Feed gets from now on is the body of one POST: what Feed
// is given first is all of it, and then what Feed has not used yet. binary: its
// Content-Type is application/octet-stream. Feed has to be called once even if
// the body is empty, which is an error.
func (s *Session) Body(binary bool) { s.reader.Body(binary) }

// WebSocket says that what Feed gets from now on are frames of a WebSocket.
func (s *Session) WebSocket() { s.reader.WebSocket() }

// SetLimit changes the limit, for the packets that begin from now on and for
// the attachments that are still to come.
func (s *Session) SetLimit(n int) { s.reader.SetLimit(n) }

// Revision is the revision of Engine.IO.
func (s *Session) Revision() eio.Revision { return s.rev }

// Form is how packets to this client are written. It may be called by any
// goroutine. In revision 4 it is New until a first CONNECT in msgpack was read,
// and from the first CONNECT on it does not change.
func (s *Session) Form() Form { return Form(s.form.Load()) }

// Type is the Engine.IO type of the packet that the last Feed read, the last if
// it read several; 0: none, or a control frame of the WebSocket.
func (s *Session) Type() eio.PacketType { return s.typ }

// Partial implements wire.Session: a frame has begun, or attachments are still
// to come.
func (s *Session) Partial() bool { return s.pending != nil || s.reader.Partial() }

// Feed implements wire.Session.
func (s *Session) Feed(in []byte, ev *wire.Event) (n int, err error) {
	*ev = wire.Event{}
	s.typ = 0
	if s.ended {
		return len(in), nil
	}
	for {
		var p eio.Packet
		used, err := s.reader.Next(in[n:], &p)
		n += used
		if err == nil {
			s.typ = p.Type
			err = s.packet(&p, ev)
		}
		if err != nil {
			*ev = wire.Event{}
			return n, err
		}
		if ev.Kind != wire.None || n == len(in) {
			return n, nil
		}
	}
}

// maxPing is how long the data of a client's ping may be, which comes back to
// it: as long as in a control frame.
const maxPing = 125

// pong answers a ping without data, which all are. Nobody changes it.
var pong = eio.AppendPacket(nil, eio.Pong, "")

func (s *Session) packet(p *eio.Packet, ev *wire.Event) error {
	if !eio.Allowed(s.rev, p) {
		return errDirection
	}
	switch p.Type {
	case 0:
		if p.Control.Op == ws.Close {
			s.pending = nil
		}
		p.Control.Control(ev)
	case eio.Message:
		return s.message(p, ev)
	case eio.Ping:
		ev.Kind, ev.Reply = wire.Ping, pong
		if len(p.Data) > maxPing {
			return errPing
		}
		if len(p.Data) > 0 {
			ev.Reply = eio.AppendPacket(nil, eio.Pong, string(p.Data))
		}
	case eio.Pong:
		ev.Kind = wire.Pong
	case eio.Close:
		s.ended, s.pending = true, nil
		ev.Kind = wire.Closed
	default:
		ev.Kind = wire.Ignored
	}
	return nil
}

// Answer implements wire.Session: an ACK whose arguments are v; a refusal is
// the one argument {"error":…}.
func (s *Session) Answer(dst []byte, space string, id uint64, v wire.Value, refusal string) []byte {
	if refusal != "" {
		v = wire.Value{JSON: append(pushjson.AppendQuoted([]byte(`{"error":`), refusal), '}')}
	}
	return AppendAck(dst, s.Form(), space, id, v)
}

// LoggedIn implements wire.Session: there is no such packet, a CONNECT is
// answered by AppendConnect.
func (s *Session) LoggedIn(dst []byte, _ uint64, _, _ string, _ bool) []byte { return dst }

// Ping implements wire.Session: revision 4's ping. In revision 3 the client
// sends them, and one from the server would be an error there.
func (s *Session) Ping(dst []byte) []byte {
	if s.rev == eio.V3 {
		return dst
	}
	return eio.AppendPacket(dst, eio.Ping, "")
}

// Close implements wire.Session: the WebSocket's close frame, which
// eio.AppendBody turns into a packet.
func (s *Session) Close(dst []byte, code wire.Code, text string) []byte {
	return ws.AppendClose(dst, code, text)
}

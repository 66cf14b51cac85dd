// Package pushjson speaks push.json and push.msgpack, the two dialects of a
// page or program that uses a WebSocket directly: one envelope, a map with a
// handful of known keys, as JSON in text messages or as msgpack in binary ones.
//
// A Session turns what a client sends into events; AppendPush writes a push
// once for every connection of a dialect. AppendJSON and AppendMsgpack carry a
// value from one dialect to the other, and Scan says whether msgpack may be
// given to a decoder at all.
package pushjson

import (
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// Dialect is how an envelope is written.
type Dialect uint8

const (
	JSON    Dialect = iota // one JSON object in a text message
	Msgpack                // one msgpack map with string keys in a binary message
)

func (d Dialect) opcode() ws.Opcode {
	if d == Msgpack {
		return ws.Binary
	}
	return ws.Text
}

// Session is one connection's state, a wire.Session. It holds nothing of its
// own between two messages.
type Session struct {
	reader  ws.Reader
	dialect Dialect
	turns   bool // a Turn may come: nothing was read yet, and no dialect was named
}

// New returns the Session of a connection that has been upgraded. A message of
// more than maxMessage bytes ends it.
func New(d Dialect, maxMessage int) *Session {
	return &Session{reader: ws.Reader{Max: maxMessage}, dialect: d}
}

// NewUnnamed is New in JSON for a client that named no dialect: if its first
// message has an integer "cmd", it is a Turn.
func NewUnnamed(maxMessage int) *Session {
	s := New(JSON, maxMessage)
	s.turns = true
	return s
}

var errOpcode = &wire.Error{Code: wire.Unsupported, Text: "this dialect has no messages of that kind"}

// Feed implements wire.Session.
func (s *Session) Feed(in []byte, ev *wire.Event) (n int, err error) {
	*ev = wire.Event{}
	for n < len(in) {
		var m ws.Message
		used, err := s.reader.Next(in[n:], &m)
		n += used
		if err != nil {
			return n, err
		}
		switch m.Op {
		case 0:
		case s.dialect.opcode():
			turns := s.turns
			s.turns = false
			if turns && isPacket(m.Payload) {
				ev.Kind, ev.Data.JSON = wire.Turn, m.Payload
				return n, nil
			}
			return n, s.dialect.parse(m.Payload, ev)
		case ws.Text, ws.Binary:
			return n, errOpcode
		default:
			if m.Control(ev); ev.Kind != wire.None {
				return n, nil
			}
		}
	}
	return n, nil
}

// Partial implements wire.Session.
func (s *Session) Partial() bool { return s.reader.Partial() }

// Ping implements wire.Session: a WebSocket ping, which a browser answers
// without its page.
func (s *Session) Ping(dst []byte) []byte { return ws.AppendHeader(dst, ws.Ping, 0) }

// Close implements wire.Session.
func (s *Session) Close(dst []byte, code wire.Code, text string) []byte {
	return ws.AppendClose(dst, code, text)
}

// Answer implements wire.Session: {"ack":5,"data":…}, or {"ack":5,"error":"…"}.
func (s *Session) Answer(dst []byte, _ string, id uint64, v wire.Value, refusal string) []byte {
	w := begin(dst, s.dialect, len(refusal)+sizeOf(v))
	w.open(2)
	w.key("ack")
	w.uint(id)
	if refusal != "" {
		w.key("error")
		w.text(refusal)
	} else {
		w.data(v)
	}
	w.close()
	return w.end()
}

// LoggedIn implements wire.Session: {"login":{"user":…,"conn":…}}.
func (s *Session) LoggedIn(dst []byte, _ uint64, user, conn string, _ bool) []byte {
	w := begin(dst, s.dialect, len(user)+len(conn))
	w.open(1)
	w.key("login")
	w.open(2)
	w.key("user")
	w.text(user)
	w.key("conn")
	w.text(conn)
	w.close()
	w.close()
	return w.end()
}

// AppendPush appends the whole frame of a push: {"event":"hello","data":…},
// with "id":N beside it when id is not 0, which asks for an ack, and with
// "auto":true beside that when the client's library is to give it by itself.
// Bytes are base64 with "encoding":"base64" in JSON and bin in msgpack. It
// allocates only to grow dst. In msgpack, JSON that is not valid becomes nil.
func AppendPush(dst []byte, d Dialect, event string, v wire.Value, id uint32, auto bool) []byte {
	w := begin(dst, d, len(event)+sizeOf(v))
	keys := 2
	if id != 0 {
		keys++
	}
	auto = auto && id != 0
	if auto {
		keys++
	}
	w.open(keys)
	w.key("event")
	w.text(event)
	w.data(v)
	if id != 0 {
		w.key("id")
		w.uint(uint64(id))
	}
	if auto {
		w.key("auto")
		w.yes()
	}
	w.close()
	return w.end()
}

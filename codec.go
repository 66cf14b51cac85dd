package push

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/embedpush/push/internal/mpush"
	"github.com/embedpush/push/internal/pushjson"
	"github.com/embedpush/push/internal/sio"
	"github.com/embedpush/push/internal/wire"
)

// dialect says which bytes a connection takes for a push.
type dialect uint8

const (
	dialectJSON dialect = iota
	dialectMsgpack
	dialectMPush     // packets, which each connection seals for itself
	dialectMPushJSON // the same as JSON in text messages of a WebSocket
	dialectSocketIO4 // Socket.IO protocol 4, of clients 2.x
	dialectSocketIO5 // protocol 5, of clients 3.x and 4.x: only opaque bytes look different
	dialectSocketIOPacked
	dialects
)

// protocols are the names that Conn.Protocol and Login.Protocol tell.
var protocols = [dialects]string{
	dialectJSON: "push.json", dialectMsgpack: "push.msgpack",
	dialectMPush: "mpush", dialectMPushJSON: "mpush.json",
	dialectSocketIO4: "socket.io.4", dialectSocketIO5: "socket.io.5", dialectSocketIOPacked: "socket.io.msgpack",
}

// subprotocols are the WebSocket subprotocols that name a dialect. Over mpush
// the first frame says whether it is packets or JSON.
var subprotocols = protocols[:dialectMPush+1]

// device reports whether it is a dialect of mpush: then pushes that want an
// ack go out a few at a time, and a connection is nowhere without a user.
func (d dialect) device() bool { return d == dialectMPush || d == dialectMPushJSON }

// form is how Socket.IO packets are written for it.
func (d dialect) form() sio.Form {
	return [...]sio.Form{sio.Old, sio.New, sio.Packed}[d-dialectSocketIO4]
}

// dialectOf is the dialect of Socket.IO packets that are written so.
func dialectOf(f sio.Form) dialect {
	switch f {
	case sio.Old:
		return dialectSocketIO4
	case sio.Packed:
		return dialectSocketIOPacked
	}
	return dialectSocketIO5
}

// encoded is one push as the bytes of each dialect, made at most once. While
// its owner alone has it, frame makes what is missing; share makes what the
// connections there are need, and from then on it only changes hands.
type encoded struct {
	e      *Engine
	space  string // the Socket.IO namespace of all its connections; "": "/"
	event  string
	value  wire.Value // until share: the caller's or a scratch's bytes
	ack    uint32     // 0: none wanted
	auto   bool
	shared bool
	frames [dialects][]byte
	cannot [dialects]Status // why there is no frame; 0: none was tried, or there is one
	parts  []*encoded       // of a joined push; then only frames counts besides
}

// frame is the push in a dialect; nobody may change the bytes. Without one
// the Status says why.
func (p *encoded) frame(d dialect) ([]byte, Status) {
	if f := p.frames[d]; f != nil {
		return f, 0
	}
	if status := p.cannot[d]; status != 0 {
		return nil, status
	}
	if p.shared && d.device() && p.e.cfg.MPush.Content != nil {
		return nil, Offline // it came after the push, and no worker waits for a hook
	}
	f, status := p.build(d)
	if !p.shared {
		p.frames[d], p.cannot[d] = f, status
		if f != nil && (d == dialectSocketIO4 || d == dialectSocketIO5) && !p.binary() { // one frame for both
			p.frames[dialectSocketIO4], p.frames[dialectSocketIO5] = f, f
		}
	}
	return f, status
}

// binary reports whether there are opaque bytes in it.
func (p *encoded) binary() bool {
	return sio.Binary(p.value) || slices.ContainsFunc(p.parts, (*encoded).binary)
}

func (p *encoded) build(d dialect) ([]byte, Status) {
	if p.parts != nil {
		var all []byte
		for _, part := range p.parts {
			f, status := part.frame(d)
			if status != 0 {
				return nil, status
			}
			all = append(all, f...)
		}
		return all, 0
	}
	s := scratches.Get().(*scratch)
	defer s.release()
	switch d {
	case dialectMPush, dialectMPushJSON:
		content, status := p.content()
		if status != 0 {
			return nil, status
		}
		if d == dialectMPush {
			return mpush.AppendPush(nil, content, p.ack, p.auto, p.e.mpush.Compress), 0
		}
		if f := mpush.AppendPushText(nil, content, p.ack, p.auto); f != nil {
			return f, 0
		}
		return nil, Unsupported
	case dialectSocketIO4, dialectSocketIO5, dialectSocketIOPacked:
		if !sio.Fits(d.form(), p.value) {
			return nil, Unsupported
		}
		s.frame = sio.AppendEvent(s.frame[:0], d.form(), p.space, p.event, p.value, p.ack)
	case dialectMsgpack:
		s.frame = pushjson.AppendPush(s.frame[:0], pushjson.Msgpack, p.event, p.value, p.ack, p.auto)
	default:
		s.frame = pushjson.AppendPush(s.frame[:0], pushjson.JSON, p.event, p.value, p.ack, p.auto)
	}
	return bytes.Clone(s.frame), 0
}

// content is what an mpush device gets: the Data, which MPush.Content may put
// into an envelope.
func (p *encoded) content() ([]byte, Status) {
	content := p.value.Bytes
	if content == nil {
		content = p.value.JSON
	}
	wrap := p.e.cfg.MPush.Content
	if wrap == nil {
		return content, 0
	}
	m := Message{Event: p.event, Data: json.RawMessage(bytes.Clone(p.value.JSON))}
	if p.value.Bytes != nil {
		m.Data = bytes.Clone(p.value.Bytes)
	}
	switch {
	case p.auto:
		m.Ack = AutoAck
	case p.ack != 0:
		m.Ack = BizAck
	}
	var wrapped []byte
	var err error
	if p.e.hook("MPush.Content", 0, func() { wrapped, err = wrap(m) }) {
		return nil, Unsupported
	}
	switch limit := p.e.cfg.Limits.MaxPush; {
	case err != nil:
		p.e.log.Warn("push: MPush.Content failed", "event", brief(p.event), "err", err)
		return nil, Unsupported
	case len(wrapped) == 0: // which makes the Java client reconnect
		p.e.log.Warn("push: MPush.Content made nothing", "event", brief(p.event))
		return nil, Unsupported
	case limit > 0 && len(wrapped) > limit:
		return nil, TooLarge
	}
	return wrapped, 0
}

// share returns a copy that any goroutine may use, with the frames made for
// the dialects that e's connections speak. (p itself stays on the stack.)
func (p *encoded) share(e *Engine) *encoded {
	q := &encoded{
		e: e, space: p.space, event: p.event, value: p.value.Clone(),
		ack: p.ack, auto: p.auto, frames: p.frames, cannot: p.cannot,
	}
	for d := range dialects {
		if e.stats.dialects[d].Load() > 0 {
			q.frame(d)
		}
	}
	q.shared = true
	return q
}

// join makes one push of several, with the frames that the first of them has.
// It has none in a dialect that cannot have all.
func join(items []*item) *encoded {
	j := &encoded{e: items[0].push.e, parts: make([]*encoded, len(items))}
	for i, it := range items {
		j.parts[i] = it.push
	}
	for d, f := range items[0].push.frames {
		if f != nil || items[0].push.cannot[d] != 0 {
			j.frame(dialect(d))
		}
	}
	j.shared = true
	return j
}

// size is about what one frame of the push needs.
func (p *encoded) size() int { return p.value.Size() + len(p.event) + len(p.space) + 32 }

// scratch is memory for encoding one value and one frame.
type scratch struct {
	value bytes.Buffer
	json  *json.Encoder // writes to value
	frame []byte
}

var scratches = sync.Pool{New: func() any {
	s := new(scratch)
	s.json = json.NewEncoder(&s.value)
	return s
}}

// release gives a scratch back, unless a large push made it large.
func (s *scratch) release() {
	if s.value.Cap() <= 64<<10 && cap(s.frame) <= 64<<10 {
		scratches.Put(s)
	}
}

// encode makes a value of what a program gave: []byte are opaque bytes, Args
// are several values, anything else is JSON. The result lives until s is used
// again.
func (s *scratch) encode(data any) (wire.Value, error) {
	switch v := data.(type) {
	case nil:
		return wire.Value{JSON: jsonNull}, nil
	case []byte:
		if len(v) == 0 {
			return wire.Value{}, errors.New("push: Data is an empty []byte")
		}
		return wire.Value{Bytes: v}, nil
	case Args:
		return s.encodeArgs(v)
	}
	s.value.Reset()
	if err := s.append(data); err != nil {
		return wire.Value{}, err
	}
	return wire.Value{JSON: s.value.Bytes()}, nil
}

// append appends data's JSON to s.value.
func (s *scratch) append(data any) error {
	from := s.value.Len()
	if err := s.json.Encode(data); err != nil {
		return fmt.Errorf("push: encode Data: %w", err)
	}
	s.value.Truncate(s.value.Len() - 1) // the newline
	// encoding/json passes a RawMessage's bytes on; a client would end its
	// connection over text that is not UTF-8.
	if !utf8.Valid(s.value.Bytes()[from:]) {
		return errors.New("push: Data is not UTF-8")
	}
	return nil
}

// encodeArgs makes a value of several: the JSON array of them, in which opaque
// bytes are base64, and each by itself.
func (s *scratch) encodeArgs(args Args) (wire.Value, error) {
	v := wire.Value{Args: make([]wire.Value, len(args))}
	ends := make([]int, len(args))
	s.value.Reset()
	s.value.WriteByte('[')
	for i, arg := range args {
		if i > 0 {
			s.value.WriteByte(',')
		}
		if err := s.append(arg); err != nil {
			return wire.Value{}, err
		}
		v.Args[i].Bytes, _ = arg.([]byte)
		ends[i] = s.value.Len()
	}
	s.value.WriteByte(']')
	v.JSON = s.value.Bytes()
	for i, from := 0, 1; i < len(args); i++ {
		if v.Args[i].Bytes == nil {
			v.Args[i].JSON = v.JSON[from:ends[i]]
		}
		from = ends[i] + 1
	}
	return v, nil
}

var jsonNull = []byte("null")

// reserved are the event names that Socket.IO clients must not see; they are
// refused for every audience, so that no push works for some doors only.
var reserved = map[string]bool{"connect": true, "connect_error": true, "disconnect": true, "disconnecting": true, "newListener": true, "removeListener": true}

// encode fills p with a message. p uses s's memory.
func (e *Engine) encode(p *encoded, m *Message, s *scratch) (err error) {
	p.e, p.event = e, m.Event
	if p.event == "" {
		p.event = "message"
	}
	if err := checkEvent(p.event); err != nil {
		return err
	}
	if m.Ack > BizAck {
		return fmt.Errorf("push: unknown Ack %d", m.Ack)
	}
	if m.Rate < 0 {
		return errors.New("push: Message.Rate cannot be negative")
	}
	if p.value, err = s.encode(m.Data); err != nil {
		return err
	}
	if limit := e.cfg.Limits.MaxPush; limit > 0 && len(p.value.JSON)+len(p.value.Bytes)+len(p.event) > limit {
		e.stats.tooLarge.Add(1)
		return ErrTooLarge
	}
	if m.Ack != NoAck {
		p.ack = e.nextAck()
		p.auto = m.Ack == AutoAck
	}
	return nil
}

// firstAck: our ids are in [2^30, 2^31), so that none is ever a client's own.
const firstAck = 1 << 30

// nextAck is the id of a push that wants an answer.
func (e *Engine) nextAck() uint32 { return firstAck + e.ackSeq.Add(1)%firstAck }

// checkEvent refuses what cannot be an event's name.
func checkEvent(name string) error {
	if reserved[name] {
		return fmt.Errorf("push: event name %q is reserved", name)
	}
	return checkName("event", name)
}

// checkName refuses what cannot be a name of a user, a room, an event: names
// are 1 to 256 bytes of UTF-8 without control characters.
func checkName(what, name string) error {
	return checkText(what, name, 1, 256)
}

func checkText(what, s string, shortest, longest int) error {
	if len(s) < shortest || len(s) > longest {
		return fmt.Errorf("push: %s of %d bytes, want %d to %d", what, len(s), shortest, longest)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("push: %s is not UTF-8", what)
	}
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return fmt.Errorf("push: %s with a control character", what)
		}
	}
	return nil
}

// answer is what a hook returned, as a value for the client.
func answer(reply any) (wire.Value, error) {
	if reply == nil {
		return wire.Value{}, nil
	}
	s := scratches.Get().(*scratch)
	defer s.release()
	v, err := s.encode(reply)
	return v.Clone(), err
}

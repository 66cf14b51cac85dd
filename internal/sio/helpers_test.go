package sio

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// masked returns a frame as a client sends it.
func masked(op ws.Opcode, payload string) []byte {
	key := uint32(0x37fa213d)
	b := ws.AppendHeader(nil, op, len(payload))
	b[1] |= 0x80
	b = binary.BigEndian.AppendUint32(b, key)
	for i := range len(payload) {
		b = append(b, payload[i]^byte(key>>(24-8*(i%4))))
	}
	return b
}

// text is a client's message in text, without Engine.IO's 4.
func text(packet string) []byte { return masked(ws.Text, "4"+packet) }

// attached is a client's binary message.
func attached(rev eio.Revision, data string) []byte {
	if rev == eio.V3 {
		data = "\x04" + data
	}
	return masked(ws.Binary, data)
}

func unhex(t testing.TB, s string) string {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// pack returns what JSON says as msgpack, made by another library.
func pack(t testing.TB, src string) string {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(src))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%s: %v", src, err)
	}
	var buf bytes.Buffer
	enc := msgpack.NewEncoder(&buf)
	enc.UseCompactInts(true)
	enc.SetSortMapKeys(true)
	if err := enc.Encode(typed(v)); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

// typed turns the numbers of v into Go's.
func typed(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = typed(v[k])
		}
	case []any:
		for i := range v {
			v[i] = typed(v[i])
		}
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	}
	return v
}

func newSession(rev eio.Revision, limit int) *Session {
	s := new(Session)
	s.Init(rev, limit)
	return s
}

// client is a client's session in a test.
type client struct {
	t testing.TB
	*Session
}

// open returns a session that has read these packets, of which it wants no error.
func open(t testing.TB, rev eio.Revision, frames ...[]byte) *client {
	t.Helper()
	c := &client{t, newSession(rev, 1<<20)}
	for _, f := range frames {
		c.want(f)
	}
	return c
}

// joined is a session that may send events.
func joined(t testing.TB, f Form) *client {
	t.Helper()
	switch f {
	case Old:
		return open(t, eio.V3)
	case New:
		return open(t, eio.V4, text("0"))
	}
	return open(t, eio.V4, masked(ws.Binary, pack(t, `{"type":0,"nsp":"/"}`)))
}

// feed gives the session all of the frames and returns what Feed told last.
func (c *client) feed(frames ...[]byte) (ev wire.Event, err error) {
	c.t.Helper()
	for i, f := range frames {
		f = bytes.Clone(f)
		for n, used := 0, 0; n < len(f); n += used {
			if used, err = c.Feed(f[n:], &ev); err != nil {
				if ev.Kind != wire.None || ev.Login != nil || ev.Name != nil {
					c.t.Fatalf("an error and an event: %s", show(&ev))
				}
				return ev, err
			}
			if used == 0 || ev.Kind == wire.None && n+used != len(f) {
				c.t.Fatalf("Feed used %d of %d bytes", used, len(f)-n)
			}
			if ev.Kind != wire.None && (i < len(frames)-1 || n+used < len(f)) {
				c.t.Fatalf("told before the end: %s", show(&ev))
			}
		}
	}
	return ev, nil
}

// want is feed without an error.
func (c *client) want(frames ...[]byte) wire.Event {
	c.t.Helper()
	ev, err := c.feed(frames...)
	if err != nil {
		c.t.Fatalf("%.100q: %v", frames, err)
	}
	return ev
}

// wantCode asserts that err ends the connection with this code.
func wantCode(t testing.TB, what any, err error, code wire.Code) {
	t.Helper()
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != code || e.Text == "" {
		t.Errorf("%.200q: error %v, want code %d", what, err, code)
	}
}

func showValue(v wire.Value) string {
	switch {
	case v.Args != nil:
		var all []string
		for _, arg := range v.Args {
			all = append(all, showValue(arg))
		}
		return "(" + strings.Join(all, " ") + ")"
	case v.Bytes != nil:
		return fmt.Sprintf("%q", v.Bytes)
	case v.JSON != nil:
		return string(v.JSON)
	}
	return "-"
}

// show writes down all of an event.
func show(ev *wire.Event) string {
	s := [...]string{wire.Message: "message", wire.Ack: "ack", wire.Login: "login", wire.Logout: "logout", wire.Ping: "ping", wire.Pong: "pong", wire.Closed: "closed", wire.Ignored: "ignored"}[ev.Kind]
	if len(ev.Space) > 0 {
		s += " " + string(ev.Space)
	}
	if ev.Kind == wire.Message {
		s += fmt.Sprintf(" %q", ev.Name)
	}
	if ev.HasID || ev.Kind == wire.Ack {
		s += fmt.Sprintf(" id %d", ev.ID)
	} else if ev.ID != 0 {
		s += " stray id"
	}
	if ev.Kind == wire.Message || ev.Kind == wire.Ack {
		s += " " + showValue(ev.Data)
	}
	if ev.Code != 0 {
		s += fmt.Sprintf(" code %d", ev.Code)
	}
	if ev.Reply != nil {
		s += fmt.Sprintf(" reply %q", ev.Reply)
	}
	if ev.Text != nil {
		s += fmt.Sprintf(" text %q", ev.Text)
	}
	if l := ev.Login; l != nil {
		for _, f := range []struct{ name, val string }{{"user", l.User}, {"token", l.Token}, {"device", l.Device}, {"os", l.OS}, {"version", l.Version}, {"query", l.Query}} {
			if f.val != "" {
				s += " " + f.name + "=" + f.val
			}
		}
		if l.Tags != nil {
			s += fmt.Sprintf(" tags=%q", l.Tags)
		}
		if l.Auth != nil {
			s += " auth=" + string(l.Auth)
		}
	}
	return s
}

// frames takes apart what the server appended: T or B, and the payload.
func frames(t testing.TB, b []byte) (all []string) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 2 || b[0]&0xF0 != 0x80 || b[1]&0x80 != 0 {
			t.Fatalf("not a final unmasked frame: %.20x", b)
		}
		op, n, size := ws.Opcode(b[0]&0xF), 2, uint64(b[1])
		switch size {
		case 126:
			n, size = 4, uint64(binary.BigEndian.Uint16(b[2:]))
		case 127:
			n, size = 10, binary.BigEndian.Uint64(b[2:])
		}
		if n != ws.HeaderLen(int(size)) || uint64(len(b)-n) < size {
			t.Fatalf("header %x before %d bytes", b[:n], len(b)-n)
		}
		all = append(all, map[ws.Opcode]string{ws.Text: "T", ws.Binary: "B"}[op]+string(b[n:n+int(size)]))
		b = b[n+int(size):]
	}
	return all
}

// back turns what the server appended into what a client of the same form
// would have sent: an event or an ack is the same in both directions.
func back(t testing.TB, b []byte) (all [][]byte) {
	t.Helper()
	for _, f := range frames(t, b) {
		op := ws.Text
		if f[0] == 'B' {
			op = ws.Binary
		}
		all = append(all, masked(op, f[1:]))
	}
	return all
}

var forms = []struct {
	name string
	Form
}{{"old", Old}, {"new", New}, {"packed", Packed}}

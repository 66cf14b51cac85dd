package pushjson

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

var dialects = []struct {
	name string
	Dialect
}{{"push.json", JSON}, {"push.msgpack", Msgpack}}

// message returns the same message in a dialect, made by the libraries that
// pages use or their like, not by this package.
func message(t testing.TB, d Dialect, src string) []byte {
	t.Helper()
	if d == JSON {
		return []byte(src)
	}
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
	return buf.Bytes()
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
		if u, err := strconv.ParseUint(v.String(), 10, 64); err == nil {
			return u
		}
		f, _ := v.Float64()
		return f
	}
	return v
}

// masked returns a frame as a client sends it, final and with this key.
func masked(op ws.Opcode, key uint32, payload []byte) []byte {
	b := ws.AppendHeader(nil, op, len(payload))
	b[1] |= 0x80
	b = binary.BigEndian.AppendUint32(b, key)
	for i, c := range payload {
		b = append(b, c^byte(key>>(24-8*(i%4))))
	}
	return b
}

func (d Dialect) frame(payload []byte) []byte { return masked(d.opcode(), 0x37fa213d, payload) }

// unframe takes apart exactly one frame of a server.
func unframe(t testing.TB, b []byte) (op ws.Opcode, payload []byte) {
	t.Helper()
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
	if n != ws.HeaderLen(int(size)) || uint64(len(b)-n) != size {
		t.Fatalf("header %x before %d bytes", b[:n], len(b)-n)
	}
	return op, b[n:]
}

// wantFrame asserts that b is one frame with the envelope want, which is JSON.
func wantFrame(t testing.TB, d Dialect, b []byte, want string) {
	t.Helper()
	op, payload := unframe(t, b)
	if op != d.opcode() {
		t.Errorf("opcode %d, want %d", op, d.opcode())
	}
	if d == JSON {
		if string(payload) != want {
			t.Errorf("got  %s\nwant %s", payload, want)
		}
		return
	}
	var got, exp any
	if err := msgpack.Unmarshal(payload, &got); err != nil {
		t.Fatalf("%x: %v", payload, err)
	}
	if err := msgpack.Unmarshal(message(t, Msgpack, want), &exp); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, exp) {
		t.Errorf("got  %v\nwant %v", got, exp)
	}
}

// feed gives the session one frame and wants it read as one event or error.
func feed(t testing.TB, s *Session, frame []byte) (wire.Event, error) {
	t.Helper()
	var ev wire.Event
	n, err := s.Feed(bytes.Clone(frame), &ev)
	if err == nil && n != len(frame) {
		t.Fatalf("Feed used %d of %d bytes", n, len(frame))
	}
	return ev, err
}

// wantCode asserts that err ends the connection with this code.
func wantCode(t testing.TB, err error, code wire.Code) {
	t.Helper()
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != code {
		t.Errorf("error %v, want code %d", err, code)
	}
}

// show writes down all of an event.
func show(ev *wire.Event) string {
	s := fmt.Sprintf("%d id=%v,%d code=%d name=%q json=%s", ev.Kind, ev.HasID, ev.ID, ev.Code, ev.Name, ev.Data.JSON)
	if ev.Data.Bytes != nil {
		s += fmt.Sprintf(" bytes=%q", ev.Data.Bytes)
	}
	s += fmt.Sprintf(" reply=%x text=%q", ev.Reply, ev.Text)
	if ev.Login != nil {
		s += fmt.Sprintf(" login=%+q", *ev.Login)
	}
	return s
}

// nest returns JSON in which v stands in n arrays.
func nest(n int, v string) string { return strings.Repeat("[", n) + v + strings.Repeat("]", n) }

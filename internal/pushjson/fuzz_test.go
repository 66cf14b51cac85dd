package pushjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

var envelopes = []string{
	`{"event":"chat","data":{"a":[1,-2,1.5,null,true,"é\u00e9\ud83c\udf89"]},"id":5}`,
	`{"event":"b","data":"AP9oaQ==","encoding":"base64"}`,
	`{"\u0065vent":"\u0062","data":1e999,"data":-0.0,"id":9007199254740991}`,
	`{"ack":1073741901}`, `{"ack":5,"data":[[[]]]}`,
	`{"login":{"user":"alice","token":"t","device":"d","os":"o","version":"1","tags":["a","b"]}}`,
	`{"logout":true}`, `{"ping":1}`, `{}`, ` [1] `, `{"ack":18446744073709551615}`, `{"x":[{"y":"\\"}],"ack":0}`,
}

// FuzzScan: what Scan accepts the library decodes into anything without a
// panic and with memory in proportion to it.
func FuzzScan(f *testing.F) {
	for _, b := range bombs {
		f.Add(b[:min(len(b), 100)])
	}
	for _, s := range envelopes {
		f.Add(message(f, Msgpack, s))
	}
	f.Add([]byte("\x93\x91\xdc\x00\x01\xc4\x01a\x81\xcf\x00\x00\x00\x00\x00\x00\x00\x01\xcb\x40\x14\x00\x00\x00\x00\x00\x00\xde\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := Scan(b, maxDepth)
		if err != nil {
			return
		}
		if n < 1 || n > len(b) {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		for i := range min(n, 64) {
			if _, err := Scan(b[:i], maxDepth); err == nil {
				t.Fatalf("accepted the first %d bytes of %d", i, n)
			}
		}
		b = b[:n:n]
		type item struct {
			A, B, C, D, E string
			F             []int
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, into := range []any{
			new(any), new([]any), new(map[string]any), new([]int), new([][]int), new([]byte), new(string), new([]string),
			new(map[string]string), new(map[string][]byte), new([]item), new(map[string]item), new(item), new(int64), new(float64),
		} {
			_ = msgpack.Unmarshal(b, into)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > uint64(1<<20+4096*n) {
			t.Fatalf("%d bytes made the library allocate %d", n, got)
		}

		out, err := AppendJSON(nil, b)
		if err == nil && (!json.Valid(out) || !utf8.Valid(out) || len(out) > 6*n) {
			t.Fatalf("JSON %q of %d bytes", out, n)
		}
	})
}

// reads asserts that a dialect reads the push of an event as that event.
func reads(t *testing.T, d Dialect, ev *wire.Event) wire.Value {
	t.Helper()
	_, payload := unframe(t, AppendPush(nil, d, string(ev.Name), ev.Data, 0, false))
	var back wire.Event
	if err := d.parse(payload, &back); err != nil || back.Kind != wire.Message || !bytes.Equal(back.Name, ev.Name) {
		t.Fatalf("%s came back as %s, %v", show(ev), show(&back), err)
	}
	if !bytes.Equal(back.Data.Bytes, ev.Data.Bytes) || (back.Data.Bytes == nil) != (ev.Data.Bytes == nil) {
		t.Fatalf("%s came back as %s", show(ev), show(&back))
	}
	return back.Data
}

// meaning returns what JSON means, false if no float64 holds one of its numbers.
func meaning(b []byte) (v any, ok bool) {
	if b == nil {
		return nil, true
	}
	err := json.Unmarshal(b, &v)
	return v, err == nil
}

func FuzzEnvelopeJSON(f *testing.F) {
	for _, s := range envelopes {
		f.Add([]byte(s))
	}
	f.Add([]byte(nest(20, "1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ok := jsonValue(b); ok != json.Valid(b) {
			t.Fatalf("%q: valid here %v, in encoding/json %v", b, ok, !ok)
		}
		if !utf8.Valid(b) {
			return // not past the frames
		}
		var want map[string]json.RawMessage
		wantErr := json.Unmarshal(b, &want)
		var ev wire.Event
		if err := JSON.parse(bytes.Clone(b), &ev); err != nil {
			return
		}
		if wantErr != nil {
			t.Fatalf("took %q: %v", b, wantErr)
		}
		var field struct {
			event, user string
			ack, id     uint64
			login       map[string]json.RawMessage
		}
		for key, into := range map[string]any{"event": &field.event, "ack": &field.ack, "id": &field.id, "login": &field.login} {
			if raw, ok := want[key]; ok {
				if err := json.Unmarshal(raw, into); err != nil {
					t.Fatalf("took %q: %v", b, err)
				}
			}
		}
		switch ev.Kind {
		case wire.Message:
			if string(ev.Name) != field.event || ev.ID != field.id {
				t.Fatalf("%q is %s", b, show(&ev))
			}
			if ev.Data.Bytes == nil && !bytes.Equal(ev.Data.JSON, want["data"]) {
				t.Fatalf("%q is %s", b, show(&ev))
			}
			if back := reads(t, JSON, &ev); ev.Data.JSON != nil && !bytes.Equal(back.JSON, ev.Data.JSON) {
				t.Fatalf("%s came back as %s", ev.Data.JSON, back.JSON)
			}
			packed, err := AppendMsgpack(nil, ev.Data.JSON)
			if ev.Data.JSON == nil || err != nil {
				break
			}
			if _, err := Scan(packed, maxDepth-1); err != nil {
				break // deeper than our reader goes
			}
			value, ok := meaning(ev.Data.JSON)
			if back, _ := meaning(reads(t, Msgpack, &ev).JSON); ok && !reflect.DeepEqual(back, value) {
				t.Fatalf("%s came back as %v", ev.Data.JSON, back)
			}
		case wire.Ack:
			if ev.ID != field.ack {
				t.Fatalf("%q is %s", b, show(&ev))
			}
		case wire.Login:
			if raw, ok := field.login["user"]; ok {
				if err := json.Unmarshal(raw, &field.user); err != nil || ev.Login.User != field.user {
					t.Fatalf("%q is %s, %v", b, show(&ev), err)
				}
			}
		}
	})
}

func FuzzEnvelopeMsgpack(f *testing.F) {
	for _, s := range envelopes {
		f.Add(message(f, Msgpack, s))
	}
	f.Add([]byte("\x82\xa5event\xa1b\xa4data\x93\xc4\x02\x00\xff\xca\x3d\xcc\xcc\xcd\x81\x05\xa1<"))
	f.Add([]byte("\x82\xa5event\xa1b\xa4data\xc4\x02\x00\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var ev wire.Event
		if err := Msgpack.parse(bytes.Clone(b), &ev); err != nil || ev.Kind != wire.Message {
			return
		}
		if ev.Data.JSON != nil && !json.Valid(ev.Data.JSON) {
			t.Fatalf("%q is %s", b, show(&ev))
		}
		for _, d := range dialects {
			if back := reads(t, d.Dialect, &ev); ev.Data.JSON != nil && !bytes.Equal(back.JSON, ev.Data.JSON) {
				t.Fatalf("%s: %s came back as %s", d.name, ev.Data.JSON, back.JSON)
			}
		}
	})
}

// run feeds in to a new session in pieces whose sizes cuts says, and writes
// down all that happens.
func run(t *testing.T, d Dialect, in, cuts []byte) string {
	s := New(d, 4096)
	var log strings.Builder
	for len(in) > 0 {
		size := len(in)
		if len(cuts) > 0 {
			size, cuts = min(size, 1+int(cuts[0])%64), append(cuts[1:], cuts[0])
		}
		piece := bytes.Clone(in[:size])
		in = in[size:]
		for len(piece) > 0 {
			var ev wire.Event
			n, err := s.Feed(piece, &ev)
			if n < 0 || n > len(piece) || err == nil && (n == 0 || ev.Kind == wire.None && n != len(piece)) {
				t.Fatalf("Feed used %d of %d bytes, kind %d", n, len(piece), ev.Kind)
			}
			if err != nil {
				fmt.Fprintln(&log, err)
				return log.String()
			}
			if ev.Kind != wire.None {
				fmt.Fprintln(&log, show(&ev))
			}
			clear(piece[:n]) // an event is valid only until now
			piece = piece[n:]
		}
	}
	fmt.Fprintln(&log, s.Partial())
	return log.String()
}

func FuzzSessionSplits(f *testing.F) {
	var all [2][]byte
	for i, d := range dialects {
		for _, s := range envelopes[:9] {
			frame := d.frame(message(f, d.Dialect, s))
			all[i] = append(append(all[i], frame...), masked(ws.Ping, 7, []byte("p"))...)
			f.Add(byte(i), frame, []byte{3})
		}
		first := d.frame(message(f, d.Dialect, envelopes[0]))
		first[0] &^= 0x80 // a fragment
		f.Add(byte(i), append(append(first, masked(ws.Pong, 1, nil)...), masked(0, 5, nil)...), []byte{10, 1})
		f.Add(byte(i), append(all[i], masked(ws.Close, 5, []byte("\x03\xe8bye"))...), []byte{0})
		f.Add(byte(i), all[1-i], []byte{1, 2, 3, 40})
	}
	f.Fuzz(func(t *testing.T, dialect byte, in, cuts []byte) {
		d := Dialect(dialect % 2)
		whole := run(t, d, in, nil)
		for _, cuts := range [][]byte{{0}, bytes.Clone(cuts)} {
			if split := run(t, d, in, cuts); split != whole {
				t.Fatalf("whole:\n%s\nin pieces:\n%s", whole, split)
			}
		}
	})
}

package sio

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/pushjson"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

var packets = []string{
	`0`, `0/custom`, `0/chat?userId=u1,`, `0{"user":"a","tags":["b"]}`, `1`, `1/custom,`, `2["x"]`, `2/chat,13["a",1,{"b":[null]}]`, `35[]`, `3/admin,456[1,"\ud83c\udf89"]`,
	`4{"message":"x"}`, `4abc`, `2{}`, `2abc["x"]`, `50-["x"]`, `51-["x",{"_placeholder":true,"num":0}]`, `62-7[{"a":{"_placeholder":true,"num":1}},{"num":0,"_placeholder":true}]`,
	`52-/chat,5["x",[{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]]`, `51000000000-["x"]`, `2["connect"]`, ` 2 [ "x" ] `, `2["\u0061"]`, `21e5["x"]`, `2[[]]`,
}

// grammar is a packet's text, written down once more.
var grammar = regexp.MustCompile(`(?s)^([0-6])(?:(\d+)-)?(/[^,]*)?(?:,)?(\d*)(.*)$`)

// FuzzPacket: a packet that is accepted means what encoding/json says it does.
func FuzzPacket(f *testing.F) {
	for _, s := range packets {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for _, rev := range revisions {
			c := entered(t, rev)
			var ev wire.Event
			frame := text(in)
			n, err := c.Feed(frame, &ev)
			if err != nil {
				if e := err.(*wire.Error); e.Code == 0 || e.Text == "" || ev.Kind != wire.None {
					t.Fatalf("%#v, %s", err, show(&ev))
				}
				continue
			}
			if n != len(frame) || ev.Kind == wire.None != (c.pending != nil) {
				t.Fatalf("used %d of %d, %s", n, len(frame), show(&ev))
			}
			wantSane(t, &ev)
			m := grammar.FindStringSubmatch(in)
			if m == nil {
				t.Fatalf("took %q as %s", in, show(&ev))
			}
			space, _, _ := strings.Cut(m[3], "?")
			if rev == eio.V4 {
				space = m[3]
			}
			if ev.Kind != wire.None && strings.TrimSuffix(space, "/") != string(ev.Space) && space != string(ev.Space) {
				t.Fatalf("%q is of %q", in, ev.Space)
			}
			if id, err := strconv.ParseUint(m[4], 10, 64); ev.HasID != (err == nil && ev.Kind == wire.Message) && ev.Kind != wire.None || err == nil && ev.ID != id && ev.Kind != wire.None {
				t.Fatalf("%q is %s", in, show(&ev))
			}
			if ev.Kind != wire.Message && ev.Kind != wire.Ack {
				continue
			}
			var want []json.RawMessage
			if err := json.Unmarshal([]byte(m[5]), &want); err != nil {
				t.Fatalf("took %q: %v", in, err)
			}
			if ev.Kind == wire.Message {
				var name string
				if err := json.Unmarshal(want[0], &name); err != nil || name != string(ev.Name) {
					t.Fatalf("%q is %s, %v", in, show(&ev), err)
				}
				want = want[1:]
			}
			got := list(ev.Data)
			if len(got) != len(want) {
				t.Fatalf("%q is %s", in, show(&ev))
			}
			for i := range got {
				if !bytes.Equal(got[i].JSON, want[i]) || got[i].Bytes != nil {
					t.Fatalf("%q is %s", in, show(&ev))
				}
			}
			wantBack(t, &ev)
		}
	})
}

// list is the arguments of v.
func list(v wire.Value) []wire.Value {
	switch {
	case v.Args != nil:
		return v.Args
	case v.JSON != nil || v.Bytes != nil:
		return []wire.Value{v}
	}
	return nil
}

// wantSane asserts what every event promises.
func wantSane(t *testing.T, ev *wire.Event) {
	t.Helper()
	if len(ev.Space) > maxSpace || bytes.IndexByte(ev.Space, ',') >= 0 || len(ev.Space) == 1 || len(ev.Space) > 0 && ev.Space[0] != '/' || !utf8.Valid(ev.Space) {
		t.Fatalf("namespace %q", ev.Space)
	}
	if ev.Kind == wire.Message && (len(ev.Name) == 0 || len(ev.Name) > maxName || !utf8.Valid(ev.Name)) || ev.Kind != wire.Message && ev.Name != nil {
		t.Fatalf("name %q", ev.Name)
	}
	if ev.ID > maxID {
		t.Fatalf("id %d", ev.ID)
	}
	args := list(ev.Data)
	if ev.Data.Args != nil && (len(args) < 2 || len(args) > maxArgs) {
		t.Fatalf("%d arguments as several", len(args))
	}
	for _, arg := range args {
		if arg.Args != nil || (arg.JSON == nil) == (arg.Bytes == nil) || arg.JSON != nil && !json.Valid(arg.JSON) {
			t.Fatalf("argument %q %q of %s", arg.JSON, arg.Bytes, show(ev))
		}
	}
	if l := ev.Login; (l != nil) != (ev.Kind == wire.Login) {
		t.Fatal(show(ev))
	} else if l != nil && l.Auth != nil {
		var auth map[string]json.RawMessage
		if err := json.Unmarshal(l.Auth, &auth); err != nil {
			t.Fatalf("%s: %v", l.Auth, err)
		}
		var device string
		if err := json.Unmarshal(auth["device"], &device); l.Device != "" && (err != nil || device != l.Device) {
			t.Fatalf("%s: device %q", l.Auth, l.Device)
		}
	}
}

// wantBack asserts that an event or ack that is written reads back as it was,
// in every form.
func wantBack(t *testing.T, ev *wire.Event) {
	t.Helper()
	want, ack := show(ev), uint32(0)
	if ev.HasID {
		if ack = uint32(ev.ID); uint64(ack) != ev.ID || ack == 0 {
			return
		}
	}
	for _, form := range forms {
		if form.Form == Old && bytes.IndexByte(ev.Space, '?') >= 0 {
			continue // there it is a query
		}
		var b []byte
		if ev.Kind == wire.Message {
			b = AppendEvent(nil, form.Form, string(ev.Space), string(ev.Name), ev.Data, ack)
		} else {
			b = AppendAck(nil, form.Form, string(ev.Space), ev.ID, ev.Data)
		}
		if form.Form == Packed {
			frames(t, b)
			continue // numbers and strings may be written otherwise
		}
		if Binary(ev.Data) && bytes.Contains(b, []byte(`"_placeholder"`)) && len(list(ev.Data)) > 1 || len(back(t, b)) > 1+maxAttachments {
			continue // JSON of theirs may look like a placeholder of ours
		}
		c := joined(t, form.Form)
		var again wire.Event
		for _, f := range back(t, b) {
			if _, err := c.Feed(f, &again); err != nil {
				t.Fatalf("%s of %q: %v", form.name, b, err)
			}
		}
		if show(&again) != want {
			t.Fatalf("%s: %s came back as %s", form.name, want, show(&again))
		}
	}
}

// FuzzBinaryPacket: placeholders are filled as a walk through what
// encoding/json makes of the text fills them.
func FuzzBinaryPacket(f *testing.F) {
	for _, s := range packets {
		f.Add(s, "a", "")
	}
	f.Add(`53-["x",`+hole2+`,{"a":[`+hole0+`,`+hole1+`]}]`, "\x00\xff", "bc")
	f.Fuzz(func(t *testing.T, in, even, odd string) {
		parts := []string{even, odd}
		for _, rev := range revisions {
			c := entered(t, rev)
			c.SetLimit(1 << 16)
			var ev wire.Event
			if _, err := c.Feed(text(in), &ev); err != nil || c.pending == nil {
				continue
			}
			n := c.pending.packet.attachments
			size := len(in)
			failed := false
			for i := range n {
				if ev.Kind != wire.None {
					t.Fatalf("%q after %d attachments: %s", in, i, show(&ev))
				}
				size += len(parts[i%2])
				frame := attached(rev, parts[i%2])
				_, err := c.Feed(frame, &ev)
				if failed = err != nil; failed {
					break
				}
			}
			if failed {
				if size <= 1<<16 && strings.Count(in, ",") < maxArgs {
					t.Fatalf("%q: refused its attachments", in)
				}
				continue
			}
			wantSane(t, &ev)
			m := grammar.FindStringSubmatch(in)
			dec := json.NewDecoder(strings.NewReader(m[5]))
			dec.UseNumber()
			var want []any
			if err := dec.Decode(&want); err != nil {
				t.Fatalf("took %q: %v", in, err)
			}
			if ev.Kind == wire.Message {
				want = want[1:]
			}
			got := list(ev.Data)
			if len(got) != len(want) {
				t.Fatalf("%q is %s", in, show(&ev))
			}
			if strings.Contains(in, `\u`) {
				continue // a key in escapes is none of a placeholder here
			}
			for i := range got {
				want := filled(want[i], parts)
				if b, ok := want.([]byte); ok {
					if !bytes.Equal(got[i].Bytes, b) || got[i].JSON != nil {
						t.Fatalf("%q is %s", in, show(&ev))
					}
					continue
				}
				dec := json.NewDecoder(bytes.NewReader(got[i].JSON))
				dec.UseNumber()
				var v any
				if err := dec.Decode(&v); err != nil || !reflect.DeepEqual(v, texts(want)) {
					t.Fatalf("%q is %s, %v", in, show(&ev), err)
				}
			}
			wantBack(t, &ev)
		}
	})
}

// filled puts attachments in for placeholders.
func filled(v any, parts []string) any {
	switch v := v.(type) {
	case map[string]any:
		if v["_placeholder"] == true {
			n, _ := strconv.Atoi(v["num"].(json.Number).String())
			return []byte(parts[n%2])
		}
		for k := range v {
			v[k] = filled(v[k], parts)
		}
	case []any:
		for i := range v {
			v[i] = filled(v[i], parts)
		}
	}
	return v
}

// texts makes base64 of bytes.
func texts(v any) any {
	switch v := v.(type) {
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	case map[string]any:
		for k := range v {
			v[k] = texts(v[k])
		}
	case []any:
		for i := range v {
			v[i] = texts(v[i])
		}
	}
	return v
}

// FuzzPacked: what the scan accepts becomes JSON in proportion to it, the same
// that pushjson makes of it if there is no extension.
func FuzzPacked(f *testing.F) {
	for _, test := range golden {
		f.Add([]byte(unhex(f, test.hex)))
	}
	for _, s := range []string{`{"type":2,"nsp":"/chat","id":5,"data":["x",[1,-2,1.5,null,true,"é"],{"a":{}}]}`, `{"type":0,"nsp":"/","data":{"user":"a","tags":["b"]}}`} {
		f.Add([]byte(pack(f, s)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := packedSkip(b, maxDepth)
		if plainly, err := pushjson.Scan(b, maxDepth); err == nil && (!ok || n != plainly) {
			t.Fatalf("%x: %d, %v, without extensions %d", b, n, ok, plainly)
		}
		if ok {
			if n < 1 || n > len(b) {
				t.Fatalf("%d of %d bytes", n, len(b))
			}
			for i := range min(n, 64) {
				if _, ok := packedSkip(b[:i], maxDepth); ok {
					t.Fatalf("accepted the first %d bytes of %d", i, n)
				}
			}
			out, used, err := appendJSON(nil, b[:n])
			if err == nil && (used != n || !json.Valid(out) || !utf8.Valid(out) || len(out) > 6*n+2) {
				t.Fatalf("JSON %q of %x", out, b[:n])
			}
			if want, wantErr := pushjson.AppendJSON(nil, b[:n]); wantErr == nil && (err != nil || !bytes.Equal(out, want)) {
				t.Fatalf("got %q, %v, want %q", out, err, want)
			} else if _, scanErr := pushjson.Scan(b[:n], maxDepth); scanErr == nil && wantErr != nil && err == nil && !bytes.Contains(out, []byte("null")) { // which NaN becomes here
				t.Fatalf("got %q, want %v", out, wantErr)
			}
		}

		c := open(t, eio.V4)
		frame := masked(ws.Binary, string(b))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var ev wire.Event
		_, err := c.Feed(frame, &ev)
		if err != nil {
			c = joined(t, Packed)
			_, err = c.Feed(masked(ws.Binary, string(b)), &ev)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > uint64(1<<20+64*len(b)) {
			t.Fatalf("%d bytes made it allocate %d", len(b), got)
		}
		if err != nil {
			return
		}
		if ev.Kind == wire.None || c.Form() != Packed || c.Partial() {
			t.Fatalf("%x is %s", b, show(&ev))
		}
		wantSane(t, &ev)
		if ev.Kind == wire.Message || ev.Kind == wire.Ack {
			wantBack(t, &ev)
		}
	})
}

// Bits of a fuzzed session's kind.
const (
	fuzzV3    = 1 << iota
	fuzzOpen  // a CONNECT came
	fuzzSmall // a limit of 100 bytes
	fuzzKinds
)

// play feeds in to a new session in pieces whose sizes cuts says, and writes
// down all that happens.
func play(t *testing.T, kind byte, in, cuts []byte) string {
	rev, limit := eio.V4, 4096
	if kind&fuzzV3 != 0 {
		rev = eio.V3
	}
	if kind&fuzzSmall != 0 {
		limit = 100
	}
	s := newSession(rev, limit)
	if kind&fuzzOpen != 0 {
		var ev wire.Event
		if _, err := s.Feed(text(`0`), &ev); err != nil {
			t.Fatal(err)
		}
	}
	var log strings.Builder
	for next := 0; len(in) > 0; next++ {
		size := len(in)
		if len(cuts) > 0 {
			size = min(size, 1+int(cuts[next%len(cuts)])%64)
		}
		piece := bytes.Clone(in[:size])
		in = in[size:]
		for len(piece) > 0 {
			ev := wire.Event{Kind: wire.Turn, ID: 5}
			n, err := s.Feed(piece, &ev)
			if n < 0 || n > len(piece) || err == nil && (n == 0 || ev.Kind == wire.None && n != len(piece)) || err != nil && ev.Kind != wire.None {
				t.Fatalf("used %d of %d, %s, %v", n, len(piece), show(&ev), err)
			}
			if err != nil {
				e := err.(*wire.Error)
				fmt.Fprintf(&log, "%v %x\n", e, s.Close(nil, e.Code, e.Text))
				return log.String()
			}
			if ev.Kind != wire.None {
				fmt.Fprintf(&log, "%s type %d\n", show(&ev), s.Type())
				wantSane(t, &ev)
			}
			if p := s.pending; p != nil {
				held := 0
				for _, part := range p.parts {
					held += cap(part)
				}
				if held > 2*limit || len(p.parts) >= maxAttachments || p.size > limit {
					t.Fatalf("holds %d bytes in %d parts", held, len(p.parts))
				}
			}
			clear(piece[:n]) // an event is valid only until now
			piece = piece[n:]
		}
	}
	fmt.Fprintln(&log, s.Partial(), s.Form(), s.pending != nil)
	return log.String()
}

func FuzzSession(f *testing.F) {
	var all [2][]byte
	for i, rev := range []eio.Revision{eio.V4, eio.V3} {
		for _, s := range packets {
			f.Add(byte(i), append(text(s), attached(rev, "a")...), []byte{3})
		}
		for _, s := range []string{packets[0], packets[7], packets[15]} {
			all[i] = append(append(all[i], text(s)...), masked(ws.Ping, "p")...)
		}
		all[i] = append(append(all[i], attached(rev, "hi")...), masked(ws.Text, "6")...)
		f.Add(byte(i), all[i], []byte{0})
		f.Add(byte(i|fuzzSmall), all[i], []byte{1, 2, 30})
		first := text(packets[6])
		first[0] &^= 0x80 // a fragment
		f.Add(byte(i|fuzzOpen), append(append(first, masked(ws.Pong, "")...), masked(0, "")...), []byte{5, 1})
		f.Add(byte(i), append(all[i], masked(ws.Close, "\x03\xe8bye")...), []byte{7})
		f.Add(byte(i), append(all[i], masked(ws.Text, "1")...), []byte{7})
	}
	var packed []byte
	for _, test := range golden {
		packed = append(packed, masked(ws.Binary, unhex(f, test.hex))...)
	}
	f.Add(byte(0), packed, []byte{60, 1, 9})
	f.Fuzz(func(t *testing.T, kind byte, in, cuts []byte) {
		kind %= fuzzKinds
		whole := play(t, kind, in, nil)
		for _, cuts := range [][]byte{{0}, cuts} {
			if split := play(t, kind, in, cuts); split != whole {
				t.Fatalf("whole:\n%s\nin pieces:\n%s", whole, split)
			}
		}
	})
}

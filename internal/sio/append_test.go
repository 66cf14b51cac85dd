package sio

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/wire"
)

func js(s string) wire.Value   { return wire.Value{JSON: []byte(s)} }
func blob(s string) wire.Value { return wire.Value{Bytes: []byte(s)} }
func args(v ...wire.Value) wire.Value {
	return wire.Value{Args: append([]wire.Value{}, v...), JSON: []byte(`["not to be read"]`)}
}

func TestPacketsAreWrittenAsTheClientsParsersWantThem(t *testing.T) {
	three := args(blob("\x01\x02"), js(`{"y":[1]}`), blob(""))
	for _, test := range []struct {
		what   string
		got    func(f Form) []byte
		old    []string
		new    []string
		packed string // JSON; bytes are strings
	}{
		{"event", func(f Form) []byte { return AppendEvent(nil, f, "", "hello", js(`{"a": 1}`), 0) },
			[]string{`T42["hello",{"a": 1}]`}, nil, `{"type":2,"nsp":"/","data":["hello",{"a":1}]}`},
		{"event in a namespace that wants an ack", func(f Form) []byte { return AppendEvent(nil, f, "/chat", "hello", js(`"x"`), 1<<30+5) },
			[]string{`T42/chat,1073741829["hello","x"]`}, nil, `{"type":2,"nsp":"/chat","id":1073741829,"data":["hello","x"]}`},
		{"event without arguments", func(f Form) []byte { return AppendEvent(nil, f, "/", "e", wire.Value{}, 0) },
			[]string{`T42["e"]`}, nil, `{"type":2,"nsp":"/","data":["e"]}`},
		{"event with no arguments", func(f Form) []byte { return AppendEvent(nil, f, "/", "e", args(), 7) },
			[]string{`T427["e"]`}, nil, `{"type":2,"nsp":"/","id":7,"data":["e"]}`},
		{"event with several arguments", func(f Form) []byte {
			return AppendEvent(nil, f, "", "e", args(js(`1`), js(`[]`), wire.Value{}), 0)
		},
			[]string{`T42["e",1,[],null]`}, nil, `{"type":2,"nsp":"/","data":["e",1,[],null]}`},
		{"event that is bytes", func(f Form) []byte { return AppendEvent(nil, f, "", "b", blob("hi"), 0) },
			[]string{`T451-["b",{"_placeholder":true,"num":0}]`, "B\x04hi"},
			[]string{`T451-["b",{"_placeholder":true,"num":0}]`, "Bhi"}, `{"type":2,"nsp":"/","data":["b","hi"]}`},
		{"event of both", func(f Form) []byte { return AppendEvent(nil, f, "/chat", "b", three, 7) },
			[]string{`T452-/chat,7["b",{"_placeholder":true,"num":0},{"y":[1]},{"_placeholder":true,"num":1}]`, "B\x04\x01\x02", "B\x04"},
			[]string{`T452-/chat,7["b",{"_placeholder":true,"num":0},{"y":[1]},{"_placeholder":true,"num":1}]`, "B\x01\x02", "B"},
			`{"type":2,"nsp":"/chat","id":7,"data":["b","\u0001\u0002",{"y":[1]},""]}`},
		{"ack", func(f Form) []byte { return AppendAck(nil, f, "", 12, js(`{"ok":true}`)) },
			[]string{`T4312[{"ok":true}]`}, nil, `{"type":3,"nsp":"/","id":12,"data":[{"ok":true}]}`},
		{"ack 0 without arguments", func(f Form) []byte { return AppendAck(nil, f, "/admin", 0, wire.Value{}) },
			[]string{`T43/admin,0[]`}, nil, `{"type":3,"nsp":"/admin","id":0,"data":[]}`},
		{"ack that is bytes", func(f Form) []byte { return AppendAck(nil, f, "/", 9_999_999_999, blob("hi")) },
			[]string{`T461-9999999999[{"_placeholder":true,"num":0}]`, "B\x04hi"},
			[]string{`T461-9999999999[{"_placeholder":true,"num":0}]`, "Bhi"}, `{"type":3,"nsp":"/","id":9999999999,"data":["hi"]}`},
		{"connect", func(f Form) []byte { return AppendConnect(nil, f, "", "abc-_") },
			[]string{`T40`}, []string{`T40{"sid":"abc-_"}`}, `{"type":0,"nsp":"/","data":{"sid":"abc-_"}}`},
		{"connect to a namespace", func(f Form) []byte { return AppendConnect(nil, f, "/chat", "abc") },
			[]string{`T40/chat,`}, []string{`T40/chat,{"sid":"abc"}`}, `{"type":0,"nsp":"/chat","data":{"sid":"abc"}}`},
		{"refusal", func(f Form) []byte { return AppendConnectError(nil, f, "/", `no "way"`) },
			[]string{`T44"no \"way\""`}, []string{`T44{"message":"no \"way\""}`}, `{"type":4,"nsp":"/","data":{"message":"no \"way\""}}`},
		{"refusal of a namespace", func(f Form) []byte { return AppendConnectError(nil, f, "/x", "Invalid namespace") },
			[]string{`T44/x,"Invalid namespace"`}, []string{`T44/x,{"message":"Invalid namespace"}`}, `{"type":4,"nsp":"/x","data":{"message":"Invalid namespace"}}`},
		{"disconnect", func(f Form) []byte { return AppendDisconnect(nil, f, "") },
			[]string{`T41`}, nil, `{"type":1,"nsp":"/"}`},
		{"disconnect from a namespace", func(f Form) []byte { return AppendDisconnect(nil, f, "/chat") },
			[]string{`T41/chat,`}, nil, `{"type":1,"nsp":"/chat"}`},
		{"answer", func(f Form) []byte { return sessionOf(f).Answer(nil, "/chat", 5, js(`1`), "") },
			[]string{`T43/chat,5[1]`}, nil, `{"type":3,"nsp":"/chat","id":5,"data":[1]}`},
		{"answer that refuses", func(f Form) []byte { return sessionOf(f).Answer(nil, "", 5, js(`1`), "<no>\n") },
			[]string{`T435[{"error":"\u003cno\u003e\n"}]`}, nil, `{"type":3,"nsp":"/","id":5,"data":[{"error":"<no>\n"}]}`},
	} {
		if test.new == nil {
			test.new = test.old
		}
		if got := frames(t, test.got(Old)); !reflect.DeepEqual(got, test.old) {
			t.Errorf("%s, old:\ngot  %q\nwant %q", test.what, got, test.old)
		}
		if got := frames(t, test.got(New)); !reflect.DeepEqual(got, test.new) {
			t.Errorf("%s, new:\ngot  %q\nwant %q", test.what, got, test.new)
		}
		packed := frames(t, test.got(Packed))
		if len(packed) != 1 || packed[0][0] != 'B' {
			t.Fatalf("%s, packed: %q", test.what, packed)
		}
		var got any
		if err := msgpack.Unmarshal([]byte(packed[0][1:]), &got); err != nil {
			t.Fatalf("%s, packed: %v", test.what, err)
		}
		if got, want := jsonOf(t, got), compact(t, test.packed); got != want {
			t.Errorf("%s, packed:\ngot  %s\nwant %s", test.what, got, want)
		}
	}
}

func sessionOf(f Form) *Session {
	s := newSession(f.revision(), 100)
	s.form.Store(uint32(f))
	return s
}

// jsonOf writes v with sorted keys, bytes as strings.
func jsonOf(t *testing.T, v any) string {
	t.Helper()
	var strings func(v any) any
	strings = func(v any) any {
		switch v := v.(type) {
		case []byte:
			return string(v)
		case []any:
			for i := range v {
				v[i] = strings(v[i])
			}
		case map[string]any:
			for k := range v {
				v[k] = strings(v[k])
			}
		}
		return v
	}
	b, err := json.Marshal(strings(v))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func compact(t *testing.T, s string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	if m := v.(map[string]any); m["id"] != nil {
		m["id"] = uint64(m["id"].(float64))
	}
	return jsonOf(t, v)
}

func TestMsgpackIsWrittenByteByByteAsExpected(t *testing.T) {
	for _, test := range []struct {
		got  []byte
		want string
	}{
		{AppendEvent(nil, Packed, "/chat", "b", args(blob("\x01\x02\xff"), js(`{"x":-1}`)), 300),
			"\x84\xa4type\x02\xa3nsp\xa5/chat\xa2id\xcd\x01\x2c\xa4data\x93\xa1b\xc4\x03\x01\x02\xff\x81\xa1x\xff"},
		{AppendDisconnect(nil, Packed, ""), "\x82\xa4type\x01\xa3nsp\xa1/"},
		{AppendConnect(nil, Packed, "", "abc"), "\x83\xa4type\x00\xa3nsp\xa1/\xa4data\x81\xa3sid\xa3abc"},
		{AppendEvent(nil, Packed, "", "e", js(`{`), 0), "\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x92\xa1e\xc0"},
	} {
		if got := frames(t, test.got); len(got) != 1 || got[0] != "B"+test.want {
			t.Errorf("got  %q\nwant %q", got, test.want)
		}
	}
}

var values = []wire.Value{
	{}, js(`null`), js(`{"a":[1,2.5,"é🎉"]}`), args(), args(js(`1`), js(`"x"`)),
	blob("x"), blob(""), args(js(`1`), blob("")), args(blob("a"), blob("b"), js(`[]`)), args(blob("a")),
}

func TestOldAndNewAreTheSameBytesUnlessAnArgumentIsBytes(t *testing.T) {
	for _, v := range values {
		same := bytes.Equal(AppendEvent(nil, Old, "/x", "e", v, 7), AppendEvent(nil, New, "/x", "e", v, 7)) &&
			bytes.Equal(AppendAck(nil, Old, "/x", 7, v), AppendAck(nil, New, "/x", 7, v))
		if same == Binary(v) {
			t.Errorf("%s: same bytes %v, Binary %v", showValue(v), same, Binary(v))
		}
	}
}

func TestWhatTheServerWritesReadsBackTheSame(t *testing.T) {
	for _, f := range forms {
		for _, v := range values {
			c := joined(t, f.Form)
			ev := c.want(back(t, AppendEvent(nil, f.Form, "/chat", "e", v, 7))...)
			if want := fmt.Sprintf(`message /chat "e" id 7 %s`, showValue(one(v))); show(&ev) != want {
				t.Errorf("%s:\ngot  %s\nwant %s", f.name, show(&ev), want)
			}
			ev = c.want(back(t, AppendAck(nil, f.Form, "/", 7, v))...)
			if want := fmt.Sprintf(`ack id 7 %s`, showValue(one(v))); show(&ev) != want {
				t.Errorf("%s:\ngot  %s\nwant %s", f.name, show(&ev), want)
			}
		}
	}
}

// one is v as it is read: no Args for fewer than two arguments.
func one(v wire.Value) wire.Value {
	switch {
	case v.Args == nil || len(v.Args) > 1:
		return v
	case len(v.Args) == 1:
		return v.Args[0]
	}
	return wire.Value{}
}

func TestHeadersAreRightForAnyLength(t *testing.T) {
	lengths := []int{0, 1, 30, 31, 32, 65500, 70000}
	for n := 50; n < 300; n++ {
		lengths = append(lengths, n)
	}
	for n := 65440; n < 65540; n += 11 {
		lengths = append(lengths, n)
	}
	for _, f := range forms {
		c := joined(t, f.Form)
		for _, n := range lengths {
			x := strings.Repeat("x", n)
			for _, v := range []wire.Value{js(`"` + x + `"`), blob(x), args(blob(x), js(`"`+x+`"`))} {
				prefix := []byte("before")
				b := AppendEvent(prefix, f.Form, "", "e", v, 0)
				if !bytes.HasPrefix(b, prefix) {
					t.Fatalf("%s, %d: lost what was in dst", f.name, n)
				}
				ev := c.want(back(t, b[len(prefix):])...)
				if showValue(ev.Data) != showValue(v) {
					t.Fatalf("%s, %d: read back otherwise", f.name, n)
				}
			}
			if n <= 300 { // escapes make a wrong guess of the length
				var quoted any
				b := AppendConnectError(nil, f.Form, "", strings.Repeat("\x01", n))
				if all := frames(t, b); f.Form == Old && (json.Unmarshal([]byte(all[0][3:]), &quoted) != nil || len(quoted.(string)) != n) {
					t.Fatalf("%d escapes", n)
				}
			}
		}
	}
}

func TestEncodingAllocatesOnlyToGrow(t *testing.T) {
	if raceEnabled {
		t.Skip("slices.Grow allocates twice under the race detector")
	}
	dst := make([]byte, 0, 4096)
	s := sessionOf(New)
	for _, f := range forms {
		for _, v := range values {
			if n := testing.AllocsPerRun(100, func() {
				AppendEvent(dst, f.Form, "/chat", "hello", v, 77)
				AppendAck(dst, f.Form, "/chat", 77, v)
			}); n != 0 {
				t.Errorf("%s %s: %v allocations into a large buffer", f.name, showValue(v), n)
			}
			if n := testing.AllocsPerRun(100, func() { AppendEvent(nil, f.Form, "/chat", "hello", v, 77) }); n != 1 {
				t.Errorf("%s %s: %v allocations into none", f.name, showValue(v), n)
			}
		}
		if n := testing.AllocsPerRun(100, func() {
			AppendConnect(dst, f.Form, "/chat", "sid")
			AppendConnectError(dst, f.Form, "/chat", "no")
			AppendDisconnect(dst, f.Form, "/chat")
			s.Answer(dst, "/chat", 7, values[2], "")
			s.Ping(dst)
		}); n != 0 {
			t.Errorf("%s: %v allocations", f.name, n)
		}
	}
}

func TestHeartbeatsAndClosesAreEngineIOs(t *testing.T) {
	v3, v4 := newSession(eio.V3, 100), newSession(eio.V4, 100)
	if got := v3.Ping([]byte("x")); string(got) != "x" {
		t.Errorf("a ping to revision 3: %q", got)
	}
	if got := frames(t, v4.Ping(nil)); !reflect.DeepEqual(got, []string{"T2"}) {
		t.Errorf("a ping to revision 4: %q", got)
	}
	if got := v4.Close(nil, wire.TooBig, "big"); string(got) != "\x88\x05\x03\xf1big" {
		t.Errorf("close: %q", got)
	}
	if got := v4.LoggedIn([]byte("x"), 1, "u", "c", false); string(got) != "x" {
		t.Errorf("logged in: %q", got)
	}
}

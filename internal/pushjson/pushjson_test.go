package pushjson

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

var _ wire.Session = (*Session)(nil)

func str(n int) string { return `"` + strings.Repeat("x", n) + `"` }

func list1(n int, v string) string {
	return "[" + strings.TrimSuffix(strings.Repeat(v+",", n), ",") + "]"
}

func TestEveryEnvelopeMeansTheSameInBothDialects(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, test := range []struct {
		in   string
		want wire.Event
	}{
		{`{"event":"chat","data":{"a":[1,-2,1.5,null,true,false,"é"]},"id":5}`,
			wire.Event{Kind: wire.Message, HasID: true, ID: 5, Name: []byte("chat"), Data: wire.Value{JSON: []byte(`{"a":[1,-2,1.5,null,true,false,"é"]}`)}}},
		{`{"event":"chat","data":"x"}`, wire.Event{Kind: wire.Message, Name: []byte("chat"), Data: wire.Value{JSON: []byte(`"x"`)}}},
		{`{"event":"chat"}`, wire.Event{Kind: wire.Message, Name: []byte("chat")}},
		{`{"event":"chat","data":null,"id":0}`, wire.Event{Kind: wire.Message, HasID: true, Name: []byte("chat"), Data: wire.Value{JSON: []byte("null")}}},
		{`{"event":"chat","id":9007199254740991}`, wire.Event{Kind: wire.Message, HasID: true, ID: 1<<53 - 1, Name: []byte("chat")}},
		{`{"event":"chat","id":null,"encoding":null,"ack":null}`, wire.Event{Kind: wire.Message, Name: []byte("chat")}},
		{`{"event":"` + long + `"}`, wire.Event{Kind: wire.Message, Name: []byte(long)}},
		{`{"event":"日本 🎉","more":{"event":1}}`, wire.Event{Kind: wire.Message, Name: []byte("日本 🎉")}},
		{`{"event":"b","data":"AP9oaQ==","encoding":"base64"}`, wire.Event{Kind: wire.Message, Name: []byte("b"), Data: wire.Value{Bytes: []byte("\x00\xffhi")}}},
		{`{"event":"b","data":"","encoding":"base64"}`, wire.Event{Kind: wire.Message, Name: []byte("b"), Data: wire.Value{Bytes: []byte{}}}},
		{`{"ack":1073741901}`, wire.Event{Kind: wire.Ack, ID: 1073741901}},
		{`{"ack":0,"data":{"ok":true}}`, wire.Event{Kind: wire.Ack, Data: wire.Value{JSON: []byte(`{"ok":true}`)}}},
		{`{"ack":7,"data":"aGk=","encoding":"base64"}`, wire.Event{Kind: wire.Ack, ID: 7, Data: wire.Value{Bytes: []byte("hi")}}},
		{`{"login":{"user":"alice","token":"t","device":"d","os":"linux","version":"1.2","tags":["a","b"],"room":"x"}}`,
			wire.Event{Kind: wire.Login, Login: &wire.LoginClaim{User: "alice", Token: "t", Device: "d", OS: "linux", Version: "1.2", Tags: []string{"a", "b"}}}},
		{`{"login":{}}`, wire.Event{Kind: wire.Login, Login: &wire.LoginClaim{}}},
		{`{"login":{"user":"a","token":null,"tags":null}}`, wire.Event{Kind: wire.Login, Login: &wire.LoginClaim{User: "a"}}},
		{`{"logout":true}`, wire.Event{Kind: wire.Logout}},
		{`{"logout":false}`, wire.Event{Kind: wire.Ignored}},
		{`{"logout":null,"login":null,"event":null,"ack":null,"ping":null}`, wire.Event{Kind: wire.Ignored}},
		{`{}`, wire.Event{Kind: wire.Ignored}},
		{`{"data":1,"id":2}`, wire.Event{Kind: wire.Ignored}},
		{`{"Event":"chat","ACK":5,"Login":{},"cmd":1,"ack ":1}`, wire.Event{Kind: wire.Ignored}},
		{`{"event":"e","ack":1,"login":{},"logout":true,"ping":1}`, wire.Event{Kind: wire.Message, Name: []byte("e")}},
		{`{"ack":1,"login":{},"logout":true,"ping":1}`, wire.Event{Kind: wire.Ack, ID: 1}},
		{`{"login":{},"logout":true,"ping":1}`, wire.Event{Kind: wire.Login, Login: &wire.LoginClaim{}}},
		{`{"logout":true,"ping":1}`, wire.Event{Kind: wire.Logout}},
	} {
		for _, d := range dialects {
			ev, err := feed(t, New(d.Dialect, 1<<16), d.frame(message(t, d.Dialect, test.in)))
			if err != nil {
				t.Errorf("%s %s: %v", d.name, test.in, err)
			} else if got, want := show(&ev), show(&test.want); got != want {
				t.Errorf("%s %s:\ngot  %s\nwant %s", d.name, test.in, got, want)
			}
		}
	}
}

func TestAMalformedEnvelopeEndsTheConnectionWith1007(t *testing.T) {
	for _, in := range []string{
		`1`, `"event"`, `[]`, `[{"event":"a"}]`, `null`, `true`,
		`{"event":1}`, `{"event":true}`, `{"event":["a"]}`, `{"event":{}}`, `{"event":""}`,
		`{"event":"a\u0000"}`, `{"event":"a\nb"}`, `{"event":"\u007f"}`, `{"event":"\u0085"}`, `{"event":` + str(257) + `}`,
		`{"event":"a","id":"5"}`, `{"event":"a","id":-1}`, `{"event":"a","id":1.5}`, `{"event":"a","id":9007199254740992}`,
		`{"event":"a","id":18446744073709551615}`, `{"event":"a","id":true}`, `{"event":"a","id":[]}`, `{"event":"a","ack":"x"}`,
		`{"ack":-1}`, `{"ack":1e300}`, `{"ack":"1"}`, `{"ack":true}`, `{"ack":9007199254740992}`, `{"ack":0.5}`, `{"ack":{}}`,
		`{"event":"a","data":"?","encoding":"base64"}`, `{"event":"a","data":"aGk","encoding":"base64"}`,
		`{"event":"a","data":1,"encoding":"base64"}`, `{"event":"a","data":null,"encoding":"base64"}`, `{"event":"a","encoding":"base64"}`,
		`{"event":"a","data":"aGk=","encoding":"hex"}`, `{"event":"a","data":"aGk=","encoding":1}`, `{"ack":1,"data":"-","encoding":"base64"}`,
		`{"login":"alice"}`, `{"login":[]}`, `{"login":true}`, `{"login":{"user":1}}`, `{"login":{"user":["a"]}}`, `{"login":{"user":"a\u0001"}}`,
		`{"login":{"user":` + str(257) + `}}`, `{"login":{"device":` + str(257) + `}}`, `{"login":{"os":` + str(257) + `}}`,
		`{"login":{"version":` + str(257) + `}}`, `{"login":{"token":` + str(8193) + `}}`, `{"login":{"token":"a\u001f"}}`,
		`{"login":{"tags":"a"}}`, `{"login":{"tags":{}}}`, `{"login":{"tags":[1]}}`, `{"login":{"tags":["\t"]}}`,
		`{"login":{"tags":` + list1(33, `"a"`) + `}}`, `{"login":{"tags":[` + str(65) + `]}}`,
		`{"logout":1}`, `{"logout":"true"}`, `{"ping":"1"}`, `{"ping":true}`, `{"ping":{}}`,
	} {
		for _, d := range dialects {
			_, err := feed(t, New(d.Dialect, 1<<16), d.frame(message(t, d.Dialect, in)))
			if err == nil {
				t.Errorf("%s took %s", d.name, in)
				continue
			}
			wantCode(t, err, wire.BadData)
		}
	}
}

func TestALoginAtItsLimitsIsTaken(t *testing.T) {
	in := `{"login":{"user":` + str(256) + `,"token":` + str(8192) + `,"tags":` + list1(32, str(64)) + `}}`
	for _, d := range dialects {
		ev, err := feed(t, New(d.Dialect, 1<<16), d.frame(message(t, d.Dialect, in)))
		if err != nil {
			t.Fatal(d.name, err)
		}
		if l := ev.Login; len(l.User) != 256 || len(l.Token) != 8192 || len(l.Tags) != 32 || len(l.Tags[31]) != 64 {
			t.Errorf("%s: login %+v", d.name, l)
		}
	}
}

func TestOnlyWholeValidJSONIsTaken(t *testing.T) {
	for _, in := range []string{
		``, ` `, `{`, `}`, `{"ack":1`, `{"ack":1}}`, `{"ack":1} x`, `{"ack":1}{}`, `{"ack":01}`, `{"ack":1.}`, `{"ack":+1}`, `{"ack":-}`, `{"ack":1e}`,
		`{"ack":1,}`, `{,"ack":1}`, `{"ack" 1}`, `{"ack"}`, `{ack:1}`, `{'ack':1}`, `{"ack":1,"x":tru}`, `{"x":nul}`, `{"x":"\x"}`, `{"x":"\u12g4"}`, `{"x":"\u12`,
		"{\"x\":\"\n\"}", "{\"x\":\"\x1f\"}", `{"x":[1,]}`, `{"x":[1 2]}`, `{"x":[}}`, `{"x":"`, `{"x":"\`, "\ufeff{}", "{}\x00", `{"x":NaN}`,
		`{"x":` + nest(10000, "") + `}`, // encoding/json stops at 10 000 levels
		strings.Repeat("[", 500000), `{"x":` + strings.Repeat(`{"x":`, 20000),
	} {
		if json.Valid([]byte(in)) {
			t.Fatalf("encoding/json takes %.60q", in)
		}
		_, err := feed(t, New(JSON, 1<<20), JSON.frame([]byte(in)))
		if err == nil {
			t.Errorf("took %.60q", in)
			continue
		}
		wantCode(t, err, wire.BadData)
	}
	for _, in := range []string{" \t\r\n{ \"ack\" : 1 , \"x\" : [ ] , \"y\" : { \"z\" : [ 1 , 2 ] } } \n", `{"x":` + nest(9999, "") + `,"ack":1}`} {
		ev, err := feed(t, New(JSON, 1<<20), JSON.frame([]byte(in)))
		if err != nil || ev.Kind != wire.Ack || ev.ID != 1 {
			t.Errorf("%.60q: %s, %v", in, show(&ev), err)
		}
	}
}

func TestKeysAreReadThroughTheirEscapesAndTheLastOfEqualOnesCounts(t *testing.T) {
	for in, want := range map[string]wire.Event{
		`{"\u0061ck":5}`: {Kind: wire.Ack, ID: 5},
		`{"\u0065vent":"a\u00e9\ud83c\udf89\/\"\ud800\udbff!"}`: {Kind: wire.Message, Name: []byte("aé🎉/\"\ufffd\ufffd!")},
		`{"ack":1,"ack":2}`:                                                   {Kind: wire.Ack, ID: 2},
		`{"event":"a","ack":2,"event":null}`:                                  {Kind: wire.Ack, ID: 2},
		`{"event":"a","data":1,"event":"b","data":2}`:                         {Kind: wire.Message, Name: []byte("b"), Data: wire.Value{JSON: []byte("2")}},
		`{"event":"a","data":"\u0061Gk\u003d","encoding":"bas\u0065\u00364"}`: {Kind: wire.Message, Name: []byte("a"), Data: wire.Value{Bytes: []byte("hi")}},
		`{"event":"a","data":{"\u0065":"\n"}}`:                                {Kind: wire.Message, Name: []byte("a"), Data: wire.Value{JSON: []byte(`{"\u0065":"\n"}`)}},
		`{"login":{"us\u0065r":"a","user":"\u0062","tags":["a"],"tags":["\u0063"]}}`: {Kind: wire.Login,
			Login: &wire.LoginClaim{User: "b", Tags: []string{"c"}}},
	} {
		ev, err := feed(t, New(JSON, 1<<16), JSON.frame([]byte(in)))
		if err != nil {
			t.Errorf("%s: %v", in, err)
		} else if got, want := show(&ev), show(&want); got != want {
			t.Errorf("%s:\ngot  %s\nwant %s", in, got, want)
		}
	}
}

func TestMsgpackBytesStayBytes(t *testing.T) {
	b, err := msgpack.Marshal(map[string]any{"event": "b", "data": []byte("\x00\xff")})
	if err != nil {
		t.Fatal(err)
	}
	ev, err := feed(t, New(Msgpack, 1<<16), Msgpack.frame(b))
	if err != nil || string(ev.Data.Bytes) != "\x00\xff" || ev.Data.JSON != nil {
		t.Errorf("%s, %v", show(&ev), err)
	}
	b, _ = msgpack.Marshal(map[string]any{"event": "b", "data": []byte{}})
	ev, err = feed(t, New(Msgpack, 1<<16), Msgpack.frame(b))
	if err != nil || ev.Data.Bytes == nil || len(ev.Data.Bytes) != 0 {
		t.Errorf("%s, %v", show(&ev), err)
	}
}

func TestOnlyWholeSoundMsgpackIsTaken(t *testing.T) {
	ok := []byte("\x81\xa3ack\x05")
	for _, in := range [][]byte{
		{}, ok[:len(ok)-1], append(bytes.Clone(ok), 0), {0x05}, {0x90}, {0xc0}, {0xc1},
		[]byte("\x82\xa3ack\x05\xa1x\xc1"),                        // the code that is never used
		[]byte("\x82\xa3ack\x05\xa1x\xd6\xff\x00\x00\x00\x00"),    // a timestamp
		[]byte("\x82\xa3ack\x05\xa1x\xdd\xff\xff\xff\xff"),        // a bomb under a key that means nothing
		[]byte("\x82\xa5event\xa1a\xa4data\xa1\xff"),              // not UTF-8
		[]byte("\x82\xa5event\xa1a\xa4data\xca\x7f\xc0\x00\x00"),  // NaN
		[]byte("\x82\xa5event\xa1a\xa4data\x81\xc4\x01a\x01"),     // a key of bytes
		[]byte("\x81\xa5event\xa2\xc3\x28"),                       // a name that is not UTF-8
		[]byte("\x81\xa5event\xc4\x01a"),                          // a name of bytes
		[]byte("\x81\xa3ack\xff"),                                 // -1
		[]byte("\x81\xa3ack\xcb\x40\x14\x00\x00\x00\x00\x00\x00"), // 5.0
	} {
		_, err := feed(t, New(Msgpack, 1<<16), Msgpack.frame(in))
		if err == nil {
			t.Errorf("took %q", in)
			continue
		}
		wantCode(t, err, wire.BadData)
	}
	for _, in := range []string{
		"\x82\xa3ack\x01\xa3ack\x05",                                  // the last one counts
		"\x83\xa3ack\x05\x01\x02\xc4\x03ack\x07",                      // keys that are no strings
		"\xde\x00\x01\xd9\x03ack\xd3\x00\x00\x00\x00\x00\x00\x00\x05", // not in the shortest form
	} {
		ev, err := feed(t, New(Msgpack, 1<<16), Msgpack.frame([]byte(in)))
		if err != nil || ev.Kind != wire.Ack || ev.ID != 5 {
			t.Errorf("%q: %s, %v", in, show(&ev), err)
		}
	}
}

func TestAMessageOfTheOtherKindIs1003(t *testing.T) {
	_, err := feed(t, New(JSON, 100), masked(ws.Binary, 1, []byte(`{"ack":1}`)))
	wantCode(t, err, wire.Unsupported)
	_, err = feed(t, New(Msgpack, 100), masked(ws.Text, 1, []byte(`{"ack":1}`)))
	wantCode(t, err, wire.Unsupported)
}

func TestWhatTheFramesBreakKeepsItsCode(t *testing.T) {
	_, err := feed(t, New(JSON, 10), JSON.frame([]byte(`{"ack":1234}`)))
	wantCode(t, err, wire.TooBig)
	_, err = feed(t, New(JSON, 10), []byte{0x81, 0x00})
	wantCode(t, err, wire.Protocol)
	_, err = feed(t, New(JSON, 100), JSON.frame([]byte("{\"x\":\"\xff\"}")))
	wantCode(t, err, wire.BadData)
}

func TestPingsAreAnswered(t *testing.T) {
	for _, d := range dialects {
		s := New(d.Dialect, 100)
		ev, err := feed(t, s, d.frame(message(t, d.Dialect, `{"ping":1}`)))
		if err != nil || ev.Kind != wire.Ping {
			t.Fatalf("%s: %s, %v", d.name, show(&ev), err)
		}
		wantFrame(t, d.Dialect, ev.Reply, `{"pong":1}`)

		ev, err = feed(t, s, masked(ws.Ping, 3, []byte("abc")))
		if err != nil || ev.Kind != wire.Ping {
			t.Fatalf("%s: %s, %v", d.name, show(&ev), err)
		}
		if op, payload := unframe(t, ev.Reply); op != ws.Pong || string(payload) != "abc" {
			t.Errorf("%s: reply %x", d.name, ev.Reply)
		}
		if op, payload := unframe(t, s.Ping(nil)); op != ws.Ping || len(payload) != 0 {
			t.Errorf("%s: Ping is %x", d.name, s.Ping(nil))
		}
	}
}

func TestAPongIsNoEvent(t *testing.T) {
	s := New(JSON, 100)
	pong := masked(ws.Pong, 3, nil)
	if ev, err := feed(t, s, pong); err != nil || ev.Kind != wire.None || s.Partial() {
		t.Errorf("%s, %v", show(&ev), err)
	}
	if ev, err := feed(t, s, append(bytes.Repeat(pong, 3), JSON.frame([]byte(`{"ack":1}`))...)); err != nil || ev.Kind != wire.Ack {
		t.Errorf("%s, %v", show(&ev), err)
	}
}

func TestAGoodbyeIsAnsweredWithItsCode(t *testing.T) {
	for _, d := range dialects {
		ev, err := feed(t, New(d.Dialect, 100), masked(ws.Close, 9, []byte("\x0f\xa1bye")))
		if err != nil || ev.Kind != wire.Closed || ev.Code != 4001 || string(ev.Text) != "bye" {
			t.Errorf("%s: %s, %v", d.name, show(&ev), err)
		}
		if op, payload := unframe(t, ev.Reply); op != ws.Close || string(payload) != "\x0f\xa1" {
			t.Errorf("%s: reply %x", d.name, ev.Reply)
		}
		ev, err = feed(t, New(d.Dialect, 100), masked(ws.Close, 9, nil))
		if err != nil || ev.Kind != wire.Closed || ev.Code != 0 || ev.Text != nil {
			t.Errorf("%s: %s, %v", d.name, show(&ev), err)
		}
		if op, payload := unframe(t, ev.Reply); op != ws.Close || len(payload) != 0 {
			t.Errorf("%s: reply %x", d.name, ev.Reply)
		}
		if op, payload := unframe(t, New(d.Dialect, 1).Close(nil, wire.Kicked, "out")); op != ws.Close || string(payload) != "\x11\x3aout" {
			t.Errorf("%s: Close is %x", d.name, payload)
		}
	}
}

func TestPushesAndAnswersReadAsTheDesignSays(t *testing.T) {
	object, none := wire.Value{JSON: []byte(`{"a":[1,2.5,"x"]}`)}, wire.Value{}
	for _, d := range dialects {
		s := New(d.Dialect, 1)
		dst := []byte("before")
		for _, test := range []struct {
			got  []byte
			want string
		}{
			{AppendPush(dst, d.Dialect, "hello", object, 0, false), `{"event":"hello","data":{"a":[1,2.5,"x"]}}`},
			{AppendPush(dst, d.Dialect, "hello", object, 1073741901, false), `{"event":"hello","data":{"a":[1,2.5,"x"]},"id":1073741901}`},
			{AppendPush(dst, d.Dialect, "hello", object, 1073741901, true), `{"event":"hello","data":{"a":[1,2.5,"x"]},"id":1073741901,"auto":true}`},
			{AppendPush(dst, d.Dialect, "hello", none, 0, true), `{"event":"hello","data":null}`},
			{AppendPush(dst, d.Dialect, "\"é\\<\n\u2028", none, 0, false), `{"event":"\"é\\\u003c\n\u2028","data":null}`},
			{s.Answer(dst, "", 5, object, ""), `{"ack":5,"data":{"a":[1,2.5,"x"]}}`},
			{s.Answer(dst, "", 1<<53-1, none, ""), `{"ack":9007199254740991,"data":null}`},
			{s.Answer(dst, "", 5, object, "not \"now\""), `{"ack":5,"error":"not \"now\""}`},
			{s.LoggedIn(dst, 0, "al\"ice", "17", false), `{"login":{"user":"al\"ice","conn":"17"}}`},
		} {
			if !bytes.HasPrefix(test.got, dst) {
				t.Fatalf("%s: %q does not begin with what was there", d.name, test.got)
			}
			wantFrame(t, d.Dialect, test.got[len(dst):], test.want)
		}
	}
	wantFrame(t, JSON, AppendPush(nil, JSON, "b", wire.Value{Bytes: []byte("\x00\xffhi")}, 7, true), `{"event":"b","data":"AP9oaQ==","encoding":"base64","id":7,"auto":true}`)
	wantFrame(t, JSON, New(JSON, 1).Answer(nil, "", 5, wire.Value{Bytes: []byte{}}, ""), `{"ack":5,"data":"","encoding":"base64"}`)

	_, payload := unframe(t, AppendPush(nil, Msgpack, "b", wire.Value{Bytes: []byte("\x00\xffhi")}, 0, false))
	if want := "\x82\xa5event\xa1b\xa4data\xc4\x04\x00\xffhi"; string(payload) != want {
		t.Errorf("got %q, want %q", payload, want)
	}
}

func TestAPushOfAnySizeHasTheRightHeader(t *testing.T) {
	for _, d := range dialects {
		for _, sizes := range []struct{ from, to, step int }{{0, 140, 1}, {65440, 65560, 5}} {
			for n := sizes.from; n < sizes.to; n += sizes.step {
				for _, v := range []wire.Value{
					{JSON: []byte(str(n))},
					{Bytes: make([]byte, n)},
					{JSON: []byte(`"` + strings.Repeat(`\u0061`, n/6) + `"`)},    // shorter in msgpack
					{JSON: []byte(list1(n/4, "0.5"))},                            // longer
					{JSON: []byte(list1(n/30, `[`+strings.Repeat(" ", 27)+`]`))}, // much shorter
				} {
					b := AppendPush(nil, d.Dialect, "e", v, 0, false)
					_, payload := unframe(t, b)
					var ev wire.Event
					if err := d.parse(bytes.Clone(payload), &ev); err != nil || string(ev.Name) != "e" || !bytes.Equal(ev.Data.Bytes, v.Bytes) {
						t.Fatalf("%s, %d bytes: %s, %v", d.name, n, show(&ev), err)
					}
				}
			}
		}
	}
}

func TestJSONThatIsNotValidBecomesNilInMsgpack(t *testing.T) {
	wantFrame(t, Msgpack, AppendPush(nil, Msgpack, "e", wire.Value{JSON: []byte(`{"a":[1,2`)}, 3, false), `{"event":"e","data":null,"id":3}`)
}

func TestAnyGoroutineMayEncodeWhileAnotherFeeds(t *testing.T) {
	s := New(Msgpack, 1<<16)
	frame := Msgpack.frame(message(t, Msgpack, `{"event":"e","data":[1]}`))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				s.Answer(nil, "", 1, wire.Value{JSON: []byte("[1]")}, "")
				s.LoggedIn(nil, 0, "a", "b", false)
				s.Ping(nil)
				s.Close(nil, wire.Kicked, "x")
			}
		})
	}
	for range 100 {
		if _, err := feed(t, s, frame); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

// steady makes Feed's frame reusable: with the key 0 unmasking changes nothing.
func steady(d Dialect, payload []byte) []byte { return masked(d.opcode(), 0, payload) }

func allocs(t *testing.T, want float64, what string, f func()) {
	t.Helper()
	if got := testing.AllocsPerRun(200, f); got > want {
		t.Errorf("%s: %v allocations, want %v", what, got, want)
	}
}

// grow is what it takes to make a buffer: 1, or 2 under the race detector.
func grow() float64 {
	var sink []byte
	return testing.AllocsPerRun(10, func() { sink = slices.Grow(sink[:0:0], 100) })
}

func TestReadingAllocatesNothingButWhatTheEngineKeeps(t *testing.T) {
	for _, test := range []struct {
		in            string
		json, msgpack float64
	}{
		{`{"ack":1073741901}`, 0, 0},
		{`{"ack":1073741901,"data":null}`, 0, 1},
		{`{"event":"chat","id":5}`, 0, 0},
		{`{"event":"chat","data":{"text":"hello","n":[1,2,3]},"id":5}`, 0, 1}, // the JSON made of msgpack
		{`{"event":"a\u00e9","data":"aGVsbG8=","encoding":"base64"}`, 0, 0},
		{`{"logout":true}`, 0, 0},
		{`{"ping":1}`, grow(), grow()},
		{`{"login":{"user":"alice","token":"t"}}`, 3, 3}, // claim, user, token
	} {
		for _, d := range dialects {
			want := test.json
			if d.Dialect == Msgpack {
				want = test.msgpack
			}
			s, frame := New(d.Dialect, 1<<16), steady(d.Dialect, message(t, d.Dialect, test.in))
			var ev wire.Event
			buf := make([]byte, len(frame))
			allocs(t, want, d.name+" "+test.in, func() {
				copy(buf, frame)
				if _, err := s.Feed(buf, &ev); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestWritingAllocatesNothingInABigEnoughBuffer(t *testing.T) {
	object := wire.Value{JSON: []byte(`{"text":"hello","n":[1,2.5,-3],"deep":{"x":null,"y":"\u00e9"}}`)}
	content := wire.Value{Bytes: make([]byte, 1000)}
	for _, d := range dialects {
		dst, s := make([]byte, 0, 4096), New(d.Dialect, 1)
		allocs(t, 0, d.name+" push", func() { AppendPush(dst, d.Dialect, "hello", object, 1<<30, true) })
		allocs(t, 0, d.name+" push of bytes", func() { AppendPush(dst, d.Dialect, "hello", content, 1<<30, false) })
		allocs(t, 0, d.name+" answer", func() { s.Answer(dst, "", 5, object, "") })
		allocs(t, 0, d.name+" refusal", func() { s.Answer(dst, "", 5, wire.Value{}, "no") })
		allocs(t, 0, d.name+" logged in", func() { s.LoggedIn(dst, 0, "alice", "17", false) })
		allocs(t, 0, d.name+" ping", func() { s.Ping(dst) })
		allocs(t, grow(), d.name+" push from nothing", func() { AppendPush(nil, d.Dialect, "hello", object, 0, false) })
	}
}

func TestAPacketOfMPushHasAnIntegerCmdAtTheTop(t *testing.T) {
	for text, want := range map[string]bool{
		`{"cmd":2,"flags":16,"sessionId":1,"body":{"deviceId":"d"}}`: true,
		`{"cmd":0}`:                         true,
		`{"cmd":-1}`:                        true,
		` {"a":[1,{"b":"}"}],"cmd":2} `:     true,
		`{"CMD":2}`:                         false,
		`{"cmd":2,"flags":"not looked at"}`: true,
		`{"cmd":null}`:                      false,
		`{"cmd":2,"cmd":null}`:              false,
		`{"cmd":"2"}`:                       false,
		`{"cmd":2.0}`:                       false,
		`{"cmd":2147483648}`:                true,
		`{"body":{"cmd":2}}`:                false,
		`{"event":"cmd","data":{"cmd":2}}`:  false,
		`{"a":"\"cmd\":2"}`:                 false,
		`{"cmd":2`:                          false,
		`{"cmd":2}x`:                        false,
		`[{"cmd":2}]`:                       false,
		`null`:                              false,
		`2`:                                 false,
		`"cmd"`:                             false,
		``:                                  false,
		strings.Repeat(`{"cmd":`, 100_000):  false,
	} {
		if got := isPacket([]byte(text)); got != want {
			t.Errorf("%.80s: %v", text, got)
		}
	}
}

func TestOnlyTheFirstMessageOfAnUnnamedDialectTurns(t *testing.T) {
	packet, event := []byte(`{"cmd":2,"event":"x"}`), []byte(`{"event":"x"}`)
	for _, test := range []struct {
		name string
		s    *Session
		in   [][]byte
		want []wire.Kind
	}{
		{"unnamed", NewUnnamed(-1), [][]byte{packet}, []wire.Kind{wire.Turn}},
		{"too late", NewUnnamed(-1), [][]byte{event, packet}, []wire.Kind{wire.Message, wire.Message}},
		{"named", New(JSON, -1), [][]byte{packet}, []wire.Kind{wire.Message}},
	} {
		for i, text := range test.in {
			var ev wire.Event
			if _, err := test.s.Feed(masked(ws.Text, 7, text), &ev); err != nil || ev.Kind != test.want[i] {
				t.Errorf("%s: message %d is of kind %d, %v, want %d", test.name, i, ev.Kind, err, test.want[i])
			}
			if ev.Kind == wire.Turn && string(ev.Data.JSON) != string(text) {
				t.Errorf("%s: the message became %s", test.name, ev.Data.JSON)
			}
		}
	}
}

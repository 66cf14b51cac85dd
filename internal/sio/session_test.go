package sio

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

var _ wire.Session = (*Session)(nil)

var revisions = []eio.Revision{eio.V3, eio.V4}

// entered is a session of a revision that may send text.
func entered(t testing.TB, rev eio.Revision) *client {
	t.Helper()
	if rev == eio.V3 {
		return joined(t, Old)
	}
	return joined(t, New)
}

func TestPacketsInTextAreRead(t *testing.T) {
	long := strings.Repeat("x", 256)
	space := "/" + strings.Repeat("s", 127)
	for _, test := range []struct{ in, want string }{
		{`2["x"]`, `message "x" -`},
		{`2["x",1]`, `message "x" 1`},
		{`2["x",null]`, `message "x" null`},
		{`2["x",{"a":[1,"]\"}"]},"b",-1.5e3,[],{},true]`, `message "x" ({"a":[1,"]\"}"]} "b" -1.5e3 [] {} true)`},
		{"2[\"x\"] \n", `message "x" -`},
		{"2 [ \"x\" ,\t1 , [ 2 ] ]\r\n", `message "x" (1 [ 2 ])`},
		{`2/chat,13["a",1]`, `message /chat "a" id 13 1`},
		{`213["a",1]`, `message "a" id 13 1`},
		{`20["a"]`, `message "a" id 0 -`},
		{`29999999999["a"]`, `message "a" id 9999999999 -`},
		{`20000000007["a"]`, `message "a" id 7 -`},
		{`2/,["a"]`, `message "a" -`},
		{`2` + space + `,["a"]`, `message ` + space + ` "a" -`},
		{`2/日本,["a"]`, `message /日本 "a" -`},
		{`2["` + long + `"]`, `message "` + long + `" -`},
		{`2["\u0061\u00e9\ud83c\udf89"]`, `message "aé🎉" -`},
		{`2["` + strings.Repeat(`\u0061`, 256) + `"]`, `message "` + strings.Repeat("a", 256) + `" -`},
		{`2["error","message"]`, `ignored`}, // limits.md row 106
		{`2["__proto__",{"__proto__":1}]`, `message "__proto__" {"__proto__":1}`},
		{`2["x",{"_placeholder":true,"num":0}]`, `message "x" {"_placeholder":true,"num":0}`},
		{`35[]`, `ack id 5 -`},
		{`35[1]`, `ack id 5 1`},
		{`3/admin,456[1,2]`, `ack /admin id 456 (1 2)`},
		{`50-["x"]`, `message "x" -`},
		{`50-/chat,7["x",1]`, `message /chat "x" id 7 1`},
		{`60-7[]`, `ack id 7 -`},
		{`5000-["x",{"_placeholder":false}]`, `message "x" {"_placeholder":false}`},
		{`0`, `login`},
		{`0/custom`, `login /custom`},
		{`0/custom,`, `login /custom`},
		{`0{}`, `login auth={}`},
		{`0/custom,{"token":"t"}`, `login /custom token=t auth={"token":"t"}`},
		{`1`, `logout`},
		{`1/`, `logout`},
		{`1/custom`, `logout /custom`},
		{`1/custom,`, `logout /custom`},
	} {
		for _, rev := range revisions {
			ev := entered(t, rev).want(text(test.in))
			if got := show(&ev); got != test.want {
				t.Errorf("revision %d, %s:\ngot  %s\nwant %s", rev, test.in, got, test.want)
			}
		}
	}
}

func TestWhatIsMalformedEndsTheSession(t *testing.T) {
	deep := strings.Repeat("[", 500_000)
	for _, test := range []struct {
		code wire.Code
		in   []string
	}{
		{wire.Protocol, []string{ // of no such type, or its head is broken
			``, `abc`, `7`, `9["x"]`, `/`, `-`, ` 2["x"]`, `4`, `4"no"`, `4/x,{"message":"no"}`,
			`5["x"]`, `5-["x"]`, `5`, `51`, `5a-["x"]`, `5-1-["x"]`, `5 1-["x"]`, `51/x,["x"]`, `51.0-["x"]`, `6[]`, `5+1-["x"]`,
			`212345678901["x"]`, `299999999999999999999999999["x"]`, `3[]`, `3/x,[]`, `3`, `3[1]`,
			`012{}`, `07`, `17`, `1/x,7`, `0/x,7{}`,
		}},
		{wire.Policy, []string{
			`511-["x"]`, `51000000000-["x"]`, `5999999999999999999999-["x"]`, `611-5[]`,
			`2/` + strings.Repeat("x", 128) + `,["x"]`, `0/` + strings.Repeat("x", 60_000), `1/` + strings.Repeat("x", 128),
			`2["connect"]`, `2["connect_error",1]`, `2["disconnect"]`, `2["disconnecting"]`, `2["newListener"]`, `2["removeListener"]`,
			`2["\u0063onnect"]`, `50-["connect"]`, `51-["connect",{"_placeholder":true,"num":0}]`,
			`2["x"` + strings.Repeat(",1", 257) + `]`, `35[1` + strings.Repeat(",1", 256) + `]`,
		}},
		{wire.BadData, []string{
			`2`, `213`, `2/x`, `2/x,`, `2/x,5`, `35`, `2{}`, `2{"0":"x"}`, `2"x"`, `2null`, `2true`, `2[]`, `2[ ]`, `35{}`, `35null`, `35"x"`,
			`2abc["x"]`, `2-1["x"]`, `21.5["x"]`, `2["x"`, `2["x",]`, `2["x"]]`, `2["x"] 1`, `2['x']`, `2["x",NaN]`, `2["x",01]`, "2[\"a\x01\"]", `2["x",` + deep, `2` + deep, `0` + strings.Repeat(`{"a":`, 100_000),
			`2[1]`, `2[null,"x"]`, `2[["x"]]`, `2[{}]`, `2[true]`, `2[""]`, `2["` + strings.Repeat("x", 257) + `"]`, `2["a\u0000"]`, `2["a\n"]`, `2["\u007f"]`, `2["` + "\u0085" + `"]`, `2["` + strings.Repeat(`\u0061`, 257) + `"]`,
			`0[]`, `0"x"`, `0null`, `0{`, `0/x,[]`, `1{}`, `1[]`, `1/x,null`, `1 `,
			"2/a\x01,[\"x\"]", "2/a\u0085b,[\"x\"]", "2/\x7f,[\"x\"]",
			`51-["x"`, `51-{}`, `51-[]`, `51-[{"_placeholder":true,"num":0}]`, `51-["x",{"_placeholder":true,"num":1}]`, `51-["x",{"_placeholder":true,"num":-1}]`,
			`51-["x",{"_placeholder":true,"num":1e9}]`, `51-["x",{"_placeholder":true,"num":1000000000}]`, `51-["x",{"_placeholder":true,"num":"0"}]`, `51-["x",{"_placeholder":true}]`,
			`51-["x",{"_placeholder":true,"num":null}]`, `51-["x",{"_placeholder":true,"num":0.5}]`, `51-["x",{"_placeholder":true,"num":0.0}]`, `51-["x",{"_placeholder":true,"num":0,"num":7}]`,
			`51-["x",{"_placeholder":true,"num":[0]}]`, `51-["x",{"_placeholder":true,"num":18446744073709551616}]`, `51-["x",{"_placeholder":true,"a":{"num":0}}]`,
			`51-["x",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]`, `52-["x",{"_placeholder":true,"num":1},[{"_placeholder":true,"num":1}]]`,
			`52-["x",{"_placeholder":true,"num":1,"a":{"_placeholder":true,"num":0}}]`,
			`50-["x",{"_placeholder":true,"num":0}]`, `60-5[{"_placeholder":true,"num":0}]`, `61-5[{"_placeholder":true,"num":1}]`,
		}},
		{wire.TooBig, []string{`0/x,{"a":"` + strings.Repeat("x", 64<<10) + `"}`}},
	} {
		for _, in := range test.in {
			for _, rev := range revisions {
				_, err := entered(t, rev).feed(text(in))
				wantCode(t, in, err, test.code)
			}
		}
	}
}

func TestRevision4BeginsWithConnect(t *testing.T) {
	for _, in := range []string{`2["x"]`, `35[]`, `1`, `50-["x"]`, `51-["x",{"_placeholder":true,"num":0}]`} {
		_, err := open(t, eio.V4).feed(text(in))
		wantCode(t, in, err, wire.Protocol)
		if ev := open(t, eio.V3).want(text(in)); ev.Kind == wire.None != strings.HasPrefix(in, "51") {
			t.Errorf("%s in revision 3: %s", in, show(&ev))
		}
	}
	for _, in := range []string{`{"type":2,"nsp":"/","data":["x"]}`, `{"type":1,"nsp":"/"}`} {
		_, err := open(t, eio.V4).feed(masked(ws.Binary, pack(t, in)))
		wantCode(t, in, err, wire.Protocol)
	}
	c := open(t, eio.V4, text(`0/other,`))
	if ev := c.want(text(`2/x,["x"]`)); show(&ev) != `message /x "x" -` { // whether it joined /x is for the engine to know
		t.Error(show(&ev))
	}
}

func TestTheFirstConnectSettlesTheForm(t *testing.T) {
	connect, event := pack(t, `{"type":0,"nsp":"/"}`), pack(t, `{"type":2,"nsp":"/","data":["x"]}`)
	c := open(t, eio.V4)
	if c.Form() != New {
		t.Errorf("form %d before anything", c.Form())
	}
	_, err := c.feed(masked(ws.Binary, event))
	wantCode(t, event, err, wire.Protocol)
	if c.Form() != New {
		t.Errorf("form %d after what was no CONNECT", c.Form())
	}
	c = open(t, eio.V4, masked(ws.Binary, connect))
	if c.Form() != Packed {
		t.Errorf("form %d after msgpack", c.Form())
	}
	if ev := c.want(masked(ws.Binary, event)); show(&ev) != `message "x" -` {
		t.Error(show(&ev))
	}
	_, err = c.feed(text(`2["x"]`))
	wantCode(t, "text in msgpack", err, wire.Protocol)

	c = open(t, eio.V4, text(`0`))
	if c.Form() != New {
		t.Errorf("form %d after text", c.Form())
	}
	for _, b := range []string{connect, event, "hi"} {
		_, err = open(t, eio.V4, text(`0`)).feed(masked(ws.Binary, b))
		wantCode(t, "binary that nothing announced", err, wire.Protocol)
		_, err = open(t, eio.V3).feed(attached(eio.V3, b))
		wantCode(t, "the same in revision 3", err, wire.Protocol)
	}
	if f := open(t, eio.V3, text(`0/x`)).Form(); f != Old {
		t.Errorf("form %d in revision 3", f)
	}
}

func TestAClaimIsReadFromAuth(t *testing.T) {
	long, token := strings.Repeat("x", 512), strings.Repeat("t", 4096)
	many := strings.TrimSuffix(strings.Repeat(`"a",`, 33), ",")
	for _, test := range []struct{ auth, want string }{
		{`{"user":"u","token":"t","device":"d","os":"o","version":"v","tags":["a","b"]}`, ` user=u token=t device=d os=o version=v tags=["a" "b"]`},
		{`{"userId":"u1"}`, ` user=u1`},
		{`{"userId":"u1","user":"u"}`, ` user=u`},
		{`{"user":5,"userId":"u1"}`, ` user=u1`},
		{`{"us\u0065r":"\u00e9\"","x":{"user":"no"}}`, ` user=é"`},
		{`{"user":null,"token":{"a":1},"device":[],"os":true,"version":1.5,"tags":"a"}`, ``},
		{`{"user":"a\u0000b","token":"a\nb"}`, ``},
		{`{"user":"` + long + `","token":"` + token + `"}`, ` user=` + long + ` token=` + token},
		{`{"user":"` + long + `x","token":"` + token + `x","tags":["` + long + `x"]}`, ``},
		{`{"tags":[]}`, ``}, {`{"tags":["a",1]}`, ``}, {`{"tags":[` + many + `]}`, ``},
		{`{"user":"a","user":"b"}`, ` user=b`},
		{`{"User":"a","USERID":"b"}`, ``},
		{`{"token":"t","` + strings.Repeat("k", 1000) + `":1,"\u0061":2}`, ` token=t`},
		{"{ \"user\" : \"u\" ,\n\"os\":\"o\" }", ` user=u os=o`},
	} {
		ev := open(t, eio.V4).want(text(`0/x, ` + test.auth + ` `))
		if got, want := show(&ev), `login /x`+test.want+` auth=`+test.auth; got != want {
			t.Errorf("got  %.300s\nwant %.300s", got, want)
		}
	}
	frame := text(`0{"user":"alice"}`)
	s := newSession(eio.V4, 100)
	var ev wire.Event
	if _, err := s.Feed(frame, &ev); err != nil {
		t.Fatal(err)
	}
	clear(frame)
	if show(&ev) != `login user=alice auth={"user":"alice"}` {
		t.Errorf("a claim is not its own: %s", show(&ev))
	}
}

func TestAQueryBehindANamespaceIsProtocol4s(t *testing.T) {
	ok := strings.Repeat("q", 8<<10)
	for _, test := range []struct{ in, old, new string }{
		{`0/chat?userId=u1,`, `login /chat query=userId=u1`, `login /chat?userId=u1`},
		{`0/chat?userId=u1`, `login /chat query=userId=u1`, `login /chat?userId=u1`},
		{`0/chat?a=b?c&d=%2C,{"token":"t"}`, `login /chat token=t query=a=b?c&d=%2C auth={"token":"t"}`, `login /chat?a=b?c&d=%2C token=t auth={"token":"t"}`},
		{`0/?a=b,`, `login query=a=b`, `login /?a=b`},
		{`0/chat?,`, `login /chat`, `login /chat?`},
		{`2/chat?userId=u1,["x"]`, `message /chat "x" -`, `message /chat?userId=u1 "x" -`},
		{`0/x?` + ok, `login /x query=` + ok, ``},
	} {
		ev := open(t, eio.V3).want(text(test.in))
		if show(&ev) != test.old {
			t.Errorf("%.100s in revision 3: %.200s", test.in, show(&ev))
		}
		if test.new == "" {
			continue
		}
		if ev = joined(t, New).want(text(test.in)); show(&ev) != test.new {
			t.Errorf("%s in revision 4: %s", test.in, show(&ev))
		}
	}
	_, err := open(t, eio.V3).feed(text(`0/x?q` + ok))
	wantCode(t, "a long query", err, wire.TooBig)
	_, err = open(t, eio.V3).feed(text("0/x?\x02,"))
	wantCode(t, "a query with control characters", err, wire.BadData)
}

const hole0, hole1, hole2 = `{"_placeholder":true,"num":0}`, `{"_placeholder":true,"num":1}`, `{"num" : 2 , "_placeholder" : true, "more":[{}]}`

func TestAttachmentsFillTheirPlaceholders(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, test := range []struct {
		in    string
		parts []string
		want  string
	}{
		{`51-["x",` + hole0 + `]`, []string{"hi"}, `message "x" "hi"`},
		{`51-["x",` + hole0 + `]`, []string{""}, `message "x" ""`},
		{`51-/chat,7["\u0061",` + hole0 + `]`, []string{"hi"}, `message /chat "a" id 7 "hi"`},
		{`61-7[` + hole0 + `]`, []string{"\x00\xff"}, `ack id 7 "\x00\xff"`},
		{`52-["x",` + hole0 + `,` + hole1 + `]`, []string{"a", ""}, `message "x" ("a" "")`},
		{`52-["x",` + hole1 + `,1,` + hole0 + `]`, []string{"a", "b"}, `message "x" ("b" 1 "a")`},
		{`53-["x", ` + hole2 + ` , ` + hole1 + `,` + hole0 + ` ]`, []string{"a", "b", "c"}, `message "x" ("c" "b" "a")`},
		{`51-["x",{"y":[` + hole0 + `]}]`, []string{"hi?"}, `message "x" {"y":["` + b64("hi?") + `"]}`},
		{`51-["x",[` + hole0 + `]]`, []string{""}, `message "x" [""]`},
		{`53-["x",{"a":` + hole2 + `,"b":[1,` + hole0 + `,2]},` + hole1 + `,"z"]`, []string{"a", "b", "c"},
			`message "x" ({"a":"` + b64("c") + `","b":[1,"` + b64("a") + `",2]} "b" "z")`},
		{`51-["x",1]`, []string{"nobody asks for it"}, `message "x" 1`},
		{`51-["x"]`, []string{"nor for this"}, `message "x" -`},
		{`51-["x",{"_placeholder":"true","num":0},` + hole0 + `]`, []string{"a"}, `message "x" ({"_placeholder":"true","num":0} "a")`},
		{`51-["x",["_placeholder",true,"num",5],` + hole0 + `]`, []string{"a"}, `message "x" (["_placeholder",true,"num",5] "a")`},
		{`51-["x",{"a":"_placeholder","b":"num","num":99,"__proto__":{"_placeholder":null}},` + hole0 + `]`, []string{"a"},
			`message "x" ({"a":"_placeholder","b":"num","num":99,"__proto__":{"_placeholder":null}} "a")`},
		{`51-["x",{"_placeholder":false,"_placeholder":true,"num":5,"num":0}]`, []string{"a"}, `message "x" "a"`},
		{`510-["x",{"_placeholder":true,"num":9}]`, strings.Split("0123456789", ""), `message "x" "9"`},
		{`51-["x",` + strings.Repeat("[", 5000) + hole0 + strings.Repeat("]", 5000) + `]`, []string{"hi?"}, `message "x" ` + strings.Repeat("[", 5000) + `"` + b64("hi?") + `"` + strings.Repeat("]", 5000)},
	} {
		for _, rev := range revisions {
			c := entered(t, rev)
			frames := [][]byte{text(test.in)}
			for _, part := range test.parts {
				frames = append(frames, attached(rev, part))
			}
			for _, f := range frames[:len(frames)-1] {
				if ev := c.want(f); ev.Kind != wire.None || !c.Partial() || c.Type() != eio.Message {
					t.Errorf("%.200s: %s before all is there, partial %v", test.in, show(&ev), c.Partial())
				}
			}
			ev := c.want(frames[len(frames)-1])
			if show(&ev) != test.want {
				t.Errorf("%.200s:\ngot  %.300s\nwant %.300s", test.in, show(&ev), test.want)
			}
			if c.Partial() {
				t.Errorf("%.200s: partial", test.in)
			}
			if ev := c.want(text(`2["next"]`)); show(&ev) != `message "next" -` {
				t.Errorf("then %s", show(&ev))
			}
		}
	}
}

func TestAnEmptyAttachmentIsBytes(t *testing.T) {
	begin := attached(eio.V4, "")
	begin[0] &^= 0x80 // a fragment
	for _, parts := range [][][]byte{{attached(eio.V4, "")}, {begin, masked(0, "")}} {
		c := joined(t, New)
		c.want(text(`51-["x",` + hole0 + `]`))
		if ev := c.want(parts...); ev.Data.Bytes == nil || len(ev.Data.Bytes) != 0 {
			t.Errorf("%q: %s", parts, show(&ev))
		}
	}
}

// TestDeepPacketsCostNoMoreThanLongOnes: what looks ahead may not do so at
// every depth.
func TestDeepPacketsCostNoMoreThanLongOnes(t *testing.T) {
	long := `"` + strings.Repeat("x", 800_000) + `"`
	flat := text(`51-["x",[` + hole0 + strings.Repeat(`,[]`, 20_000) + `,` + long + `]]`)
	for _, key := range []string{"num", "_placeholder", "x"} {
		deep := text(`51-["x",[` + hole0 + `,` + strings.Repeat(`{"`+key+`":`, 9_000) + long + strings.Repeat("}", 9_000) + `]]`)
		took := func(frame []byte) time.Duration {
			c := joined(t, New)
			from := time.Now()
			c.want(frame)
			c.want(attached(eio.V4, "a"))
			return time.Since(from)
		}
		if d, f := took(deep), took(flat); d > 20*f+time.Second {
			t.Errorf("%s: %v deep, %v flat", key, d, f)
		}
	}
}

func TestOnlyMessagesMayNotComeBetweenAttachments(t *testing.T) {
	for _, rev := range revisions {
		begin := func() *client {
			return open(t, rev, text(`0`), text(`52-["x",`+hole0+`,`+hole1+`]`), attached(rev, "a"))
		}
		for _, in := range []string{`2["y"]`, `0/x`, `1`, ``, `51-["x",` + hole0 + `]`} {
			_, err := begin().feed(text(in))
			wantCode(t, in, err, wire.Protocol)
		}
		c := begin()
		if ev := c.want(masked(ws.Ping, "p")); ev.Kind != wire.Ping || string(ev.Reply) != "\x8a\x01p" || c.Type() != 0 {
			t.Errorf("a ping of WebSocket: %s, type %d", show(&ev), c.Type())
		}
		if ev := c.want(masked(ws.Pong, "p")); ev.Kind != wire.None || c.Type() != 0 {
			t.Errorf("a pong of WebSocket: %s", show(&ev))
		}
		beat, kind := "3", wire.Pong
		if rev == eio.V3 {
			beat, kind = "2", wire.Ping
		}
		if ev := c.want(masked(ws.Text, beat)); ev.Kind != kind {
			t.Errorf("a heartbeat: %s", show(&ev))
		}
		if ev := c.want(masked(ws.Text, "6")); ev.Kind != wire.Ignored || c.Type() != eio.Noop {
			t.Errorf("a noop: %s", show(&ev))
		}
		if ev := c.want(attached(rev, "b")); show(&ev) != `message "x" ("a" "b")` {
			t.Error(show(&ev))
		}
		_, err := c.feed(attached(rev, "one too many"))
		wantCode(t, "an attachment too many", err, wire.Protocol)
	}
}

func TestAPacketAndItsAttachmentsTogetherAreLimited(t *testing.T) {
	packet := `52-["x",` + hole0 + `,` + hole1 + `]`
	for _, rev := range revisions {
		for over := range 2 {
			c := entered(t, rev)
			c.SetLimit(len(packet) + 100 - over)
			half := strings.Repeat("a", 50)
			c.want(text(packet), attached(rev, half))
			_, err := c.feed(attached(rev, half))
			if over == 0 && err != nil {
				t.Errorf("at the limit: %v", err)
			} else if over == 1 {
				wantCode(t, "over the limit", err, wire.TooBig)
			}
		}
		c := entered(t, rev)
		c.SetLimit(100)
		_, err := c.feed(text(`2["x","` + strings.Repeat("x", 100) + `"]`))
		wantCode(t, "a long text", err, wire.TooBig)
		c = entered(t, rev)
		c.SetLimit(-1)
		big := strings.Repeat("x", 5<<18)
		if ev := c.want(text(packet), attached(rev, big), attached(rev, "b")); len(ev.Data.Args[0].Bytes) != len(big) {
			t.Error("no limit is one")
		}
		c = entered(t, rev)
		c.SetLimit(1000)
		c.want(text(packet), attached(rev, strings.Repeat("a", 50)))
		c.SetLimit(len(packet))
		_, err = c.feed(attached(rev, "b"))
		wantCode(t, "a limit that was lowered", err, wire.TooBig)
	}
}

func TestHeartbeatsGoOneWay(t *testing.T) {
	for _, test := range []struct {
		rev      eio.Revision
		in, want string
		typ      eio.PacketType
	}{
		{eio.V3, "2", "ping reply \"\\x81\\x013\"", eio.Ping},
		{eio.V3, "2hello", "ping reply \"\\x81\\x063hello\"", eio.Ping},
		{eio.V4, "3", "pong", eio.Pong},
		{eio.V4, "3x", "pong", eio.Pong},
		{eio.V4, "6", "ignored", eio.Noop},
		{eio.V3, "6", "ignored", eio.Noop},
	} {
		c := open(t, test.rev)
		ev := c.want(masked(ws.Text, test.in))
		if show(&ev) != test.want || c.Type() != test.typ {
			t.Errorf("%s in revision %d: %s, type %q", test.in, test.rev, show(&ev), c.Type())
		}
	}
	for in, rev := range map[string]eio.Revision{"2": eio.V4, "2probe": eio.V4, "3": eio.V3, "3probe": eio.V3} {
		_, err := open(t, rev).feed(masked(ws.Text, in))
		wantCode(t, in, err, wire.Protocol)
	}
	_, err := open(t, eio.V3).feed(masked(ws.Text, "2"+strings.Repeat("x", 126)))
	wantCode(t, "a ping to be amplified", err, wire.Policy)
	for _, in := range []string{"7", "x", ""} {
		_, err := open(t, eio.V4).feed(masked(ws.Text, in))
		wantCode(t, in, err, wire.Protocol)
	}
}

func TestAClientSaysGoodbyeInEitherLayer(t *testing.T) {
	for _, rev := range revisions {
		for _, test := range []struct {
			frame []byte
			want  string
		}{
			{masked(ws.Text, "1"), "closed"},
			{masked(ws.Close, "\x03\xe9bye"), "closed code 1001 reply \"\\x88\\x02\\x03\\xe9\" text \"bye\""},
			{masked(ws.Close, ""), "closed reply \"\\x88\\x00\""},
		} {
			c := open(t, rev, text(`0`), text(`51-["x",`+hole0+`]`))
			ev := c.want(test.frame)
			if show(&ev) != test.want {
				t.Errorf("got %s, want %s", show(&ev), test.want)
			}
			if ev := c.want(text(`2["after"]`)); ev.Kind != wire.None || c.Partial() {
				t.Errorf("after it: %s, partial %v", show(&ev), c.Partial())
			}
		}
	}
}

func TestPollingBodiesAreReadToo(t *testing.T) {
	for _, test := range []struct {
		rev    eio.Revision
		binary bool
		bodies []string
		want   []string
	}{
		{eio.V4, false, []string{"40\x1e42[\"a\",1]\x1e3\x1e451-[\"b\"," + hole0 + "]\x1ebaGk=\x1e41"}, []string{"login", `message "a" 1`, "pong", `message "b" "hi"`, "logout"}},
		{eio.V4, false, []string{"40", "452-[\"b\"," + hole0 + "," + hole1 + "]\x1ebaGk=", "b", "1"}, []string{"login", `message "b" ("hi" "")`, "closed"}},
		{eio.V3, false, []string{"1:211:42[\"é🎉\",1]", "39:451-[\"b\"," + hole0 + "]6:b4aGk="}, []string{"ping reply \"\\x81\\x013\"", `message "é🎉" 1`, `message "b" "hi"`}},
		{eio.V3, true, []string{"\x00\x03\x09\xff451-[\"b\"," + hole0 + "]\x01\x03\xff\x04hi\x00\x01\xff2"}, []string{`message "b" "hi"`, "ping reply \"\\x81\\x013\""}},
	} {
		c := open(t, test.rev)
		var got []string
		for _, body := range test.bodies {
			c.Body(test.binary)
			in := []byte(body)
			for first := true; first || len(in) > 0; first = false {
				var ev wire.Event
				n, err := c.Feed(in, &ev)
				if err != nil {
					t.Fatalf("%q: %v", body, err)
				}
				if ev.Kind != wire.None {
					got = append(got, show(&ev))
				} else if n != len(in) {
					t.Fatalf("%q: used %d of %d bytes", body, n, len(in))
				}
				in = in[n:]
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
	for _, rev := range revisions {
		c := open(t, rev)
		c.Body(false)
		var ev wire.Event
		_, err := c.Feed(nil, &ev)
		wantCode(t, "an empty body", err, wire.Protocol)
	}
	c := open(t, eio.V4) // attachments that come after the upgrade
	c.Body(false)
	var ev wire.Event
	body := []byte("40")
	if _, err := c.Feed(body, &ev); err != nil {
		t.Fatal(err)
	}
	c.Body(false)
	body = []byte("451-[\"b\"," + hole0 + "]")
	if _, err := c.Feed(body, &ev); err != nil || ev.Kind != wire.None || !c.Partial() {
		t.Fatal(err, show(&ev))
	}
	clear(body)
	c.WebSocket()
	if ev := c.want(attached(eio.V4, "hi")); show(&ev) != `message "b" "hi"` {
		t.Error(show(&ev))
	}
}

// TestMemoryFollowsWhatArrived: neither a number of attachments nor the length
// of a frame makes the session allocate.
func TestMemoryFollowsWhatArrived(t *testing.T) {
	c := joined(t, New)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c.want(text(`510-["x",` + hole0 + `]`))
	huge := ws.AppendHeader(nil, ws.Binary, 1<<20)
	huge[1] |= 0x80
	c.want(append(huge, 1, 2, 3, 4, 'x'))
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 8<<10 {
		t.Errorf("%d bytes for a few", got)
	}
}

func TestASessionIsSmallAndHoldsNothingBetweenPackets(t *testing.T) {
	if got := unsafe.Sizeof(Session{}); got > 40 && unsafe.Sizeof(uintptr(0)) == 8 {
		t.Errorf("%d bytes", got)
	}
	if raceEnabled {
		t.Skip("encoding/json's pool is leaky under the race detector")
	}
	c := joined(t, New)
	frames := bytes.Join([][]byte{text(`212["hello",{"a":1}]`), text(`35[{"ok":true}]`), text(`2["hello"]`), masked(ws.Text, "3")}, nil)
	in := make([]byte, len(frames))
	if n := testing.AllocsPerRun(100, func() {
		copy(in, frames)
		for n := 0; n < len(in); {
			var ev wire.Event
			used, err := c.Feed(in[n:], &ev)
			if err != nil {
				t.Fatal(err)
			}
			n += used
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if c.pending != nil || c.Partial() {
		t.Error("something is held")
	}
}

func TestAnyGoroutineMayEncodeWhileFeedRuns(t *testing.T) {
	c := open(t, eio.V4)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				c.Answer(nil, "", 1, js(`1`), "")
				c.Answer(nil, "", 1, wire.Value{}, "no")
				c.Ping(nil)
				c.Close(nil, wire.Kicked, "bye")
				c.LoggedIn(nil, 1, "", "", false)
				_ = c.Form()
				_ = c.Revision()
			}
		})
	}
	c.want(masked(ws.Binary, pack(t, `{"type":0,"nsp":"/"}`)))
	wg.Wait()
}

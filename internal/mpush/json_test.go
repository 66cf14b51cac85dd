package mpush

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestJSONPacketsAreRead(t *testing.T) {
	for _, c := range []struct {
		text string
		want JSONPacket
	}{
		{`{}`, JSONPacket{}},
		{`{"cmd":2,"flags":16,"sessionId":1,"body":{"deviceId":"d"}}`, JSONPacket{2, 16, true, 1, json.RawMessage(`{"deviceId":"d"}`)}},
		{` { "body" : null , "cmd" : 23 , "sessionId" : -7 } `, JSONPacket{Cmd: 23, ID: -7}},
		{`{"cmd":5,"flags":0}`, JSONPacket{Cmd: 5, HasFlags: true}},
		{`{"cmd":5,"flags":null,"sessionId":null}`, JSONPacket{Cmd: 5}},
		{`{"cmd":2147483647,"sessionId":-2147483648}`, JSONPacket{Cmd: 1<<31 - 1, ID: -1 << 31}},
		{`{"cmd":-1,"bodyLength":3,"other":[{"cmd":5}],"cc":1}`, JSONPacket{Cmd: -1}},
		{`{"cmd":1,"cmd":2}`, JSONPacket{Cmd: 2}},
		{`{"cmd":1,"Cmd":2}`, JSONPacket{Cmd: 2}},
		{`{"\u0063md":2}`, JSONPacket{Cmd: 2}},
		{`{"cmd":15,"body":"any value"}`, JSONPacket{Cmd: 15, Body: json.RawMessage(`"any value"`)}},
		{`{"body":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, JSONPacket{Body: json.RawMessage(strings.Repeat("[", 9000) + strings.Repeat("]", 9000))}},
	} {
		got, err := ParseJSON([]byte(c.text))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%.80s: %+v, %v; want %+v", c.text, got, err, c.want)
		}
	}
}

func TestWhatIsNoJSONPacketIsRefused(t *testing.T) {
	for _, text := range []string{
		``, ` `, `null`, `[]`, `[{"cmd":2}]`, `2`, `"cmd"`, `true`, `{`, `{"cmd":2`, `{"cmd":2}}`, `{"cmd":2}{"cmd":2}`, `{cmd:2}`, `{'cmd':2}`,
		`{"cmd":"2"}`, `{"cmd":2.0}`, `{"cmd":2.5}`, `{"cmd":2e1}`, `{"cmd":[2]}`, `{"cmd":{}}`, `{"cmd":true}`,
		`{"cmd":2147483648}`, `{"cmd":-2147483649}`, `{"cmd":99999999999999999999}`,
		`{"cmd":2,"flags":"16"}`, `{"cmd":2,"flags":4294967296}`, `{"cmd":2,"sessionId":"1"}`, `{"cmd":2,"sessionId":1.5}`,
		`{"body":` + strings.Repeat("[", 11_000) + strings.Repeat("]", 11_000) + `}`,
		strings.Repeat("[", 100_000), strings.Repeat(`{"a":`, 100_000),
	} {
		if got, err := ParseJSON([]byte(text)); err != ErrJSON || !reflect.DeepEqual(got, JSONPacket{}) {
			t.Errorf("%.80s: %+v, %v", text, got, err)
		}
	}
}

func TestBodiesOfClientsAreRead(t *testing.T) {
	for _, c := range []struct {
		body string
		want Handshake
	}{
		{``, Handshake{}},
		{`null`, Handshake{}},
		{`{}`, Handshake{}},
		{`{"deviceId":"d","osName":"web","osVersion":"1","clientVersion":"2.0","extra":1}`, Handshake{DeviceID: "d", OSName: "web", OSVersion: "1", ClientVersion: "2.0"}},
		{`{"deviceId":"d","osName":null}`, Handshake{DeviceID: "d"}},
	} {
		got := Handshake{DeviceID: "stale", IV: []byte("stale")}
		if err := got.DecodeJSON([]byte(c.body)); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v", c.body, got, err)
		}
	}
	for _, c := range []struct {
		body string
		want Bind
	}{
		{``, Bind{}},
		{`{"userId":"u","tags":"a,b","data":"token"}`, Bind{"u", "token", "a,b"}},
		{`{"userId":"u","tags":["a","b"]}`, Bind{"u", "", "a,b"}},
		{`{"userId":"u","tags":[]}`, Bind{"u", "", ""}},
		{`{"userId":"u","tags":null}`, Bind{"u", "", ""}},
		{`{"userId":"u","tags": [ "a" ] }`, Bind{"u", "", "a"}},
	} {
		got := Bind{"stale", "stale", "stale"}
		if err := got.DecodeJSON([]byte(c.body)); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.body, got, err)
		}
	}
	for body, want := range map[string]string{
		``: "", `{}`: "", `{"content":null}`: "", `{"content":"hello 世界 \"q\"\u0000"}`: "hello 世界 \"q\"\x00",
	} {
		if got, err := PushJSON([]byte(body)); err != nil || got != want {
			t.Errorf("%s: %q, %v", body, got, err)
		}
	}
}

func TestBodiesOfAnotherShapeAreRefused(t *testing.T) {
	for _, body := range []string{`[]`, `1`, `"x"`, `true`, `{"deviceId":1,"userId":1,"content":1}`, `{"deviceId":{},"userId":[],"content":{}}`} {
		if err := new(Handshake).DecodeJSON([]byte(body)); err != ErrJSON {
			t.Errorf("handshake %s: %v", body, err)
		}
		if err := new(Bind).DecodeJSON([]byte(body)); err != ErrJSON {
			t.Errorf("bind %s: %v", body, err)
		}
		if _, err := PushJSON([]byte(body)); err != ErrJSON {
			t.Errorf("push %s: %v", body, err)
		}
	}
	for _, tags := range []string{`1`, `{}`, `["a",1]`, `[["a"]]`, `true`} {
		if err := new(Bind).DecodeJSON([]byte(`{"userId":"u","tags":` + tags + `}`)); err != ErrJSON {
			t.Errorf("tags %s: %v", tags, err)
		}
	}
}

func TestFieldsThatAreNothingAreLeftOut(t *testing.T) {
	for want, got := range map[string][]byte{
		`{"bodyLength":0,"cmd":11,"flags":16,"sessionId":-1}`:                                                    (&OK{}).AppendJSON(nil, -1),
		`{"body":{"cmd":5,"code":7},"bodyLength":2,"cmd":11,"flags":16,"sessionId":1}`:                           (&OK{Cmd: CmdBind, Code: 7}).AppendJSON(nil, 1),
		`{"bodyLength":0,"cmd":10,"flags":16,"sessionId":0}`:                                                     (&Error{}).AppendJSON(nil, 0),
		`{"body":{"reason":"r","cmd":-1,"code":-1,"data":"d"},"bodyLength":4,"cmd":10,"flags":16,"sessionId":0}`: (&Error{CmdUnknown, CodeUnknown, "r", "d"}).AppendJSON(nil, 0),
		`{"body":{"reason":"unsupported command","code":101},"bodyLength":2,"cmd":10,"flags":16,"sessionId":0}`:  (&Error{Code: CodeUnsupported, Reason: "unsupported command"}).AppendJSON(nil, 0),
		`x{"body":{"userId":"u"},"bodyLength":1,"cmd":13,"flags":16,"sessionId":0}`:                              (&Kick{UserID: "u"}).AppendJSON([]byte("x")),
		`{"bodyLength":0,"cmd":23,"flags":24,"sessionId":2147483647}`:                                            AppendJSON(nil, CmdAck, FlagAutoAck, 1<<31-1),
	} {
		if string(got) != want {
			t.Errorf("%s, want\n%s", got, want)
		}
	}
}

func TestStringsAreEscapedNoMoreThanTheyMust(t *testing.T) {
	for in, want := range map[string]string{
		"":                     `""`,
		"<a href='x'>&amp;</>": `"<a href='x'>&amp;</>"`,
		`"\/`:                  `"\"\\/"`,
		"\b\t\n\f\r":           `"\b\t\n\f\r"`,
		"\x00\x0b\x1f\x7f":     `"\u0000\u000b\u001f` + "\x7f\"",
		"世界 🌍 \u2028\u0085":    "\"世界 🌍 \u2028\u0085\"",
		"a\xffb\xc3":           `"a` + "\uFFFD" + `b` + "\uFFFD\"",
	} {
		got := string(appendQuoted(nil, in))
		var back string
		if err := json.Unmarshal([]byte(got), &back); got != want || err != nil || back != strings.ToValidUTF8(in, "\uFFFD") {
			t.Errorf("%q: %s, want %s; reads back as %q, %v", in, got, want, back, err)
		}
	}
}

func TestOnlyTextIsPushed(t *testing.T) {
	for _, content := range []string{"\xff", "a\xc3", "\xed\xa0\x80"} {
		if got, ok := AppendPushJSON([]byte("x"), 0, 1, content); ok || string(got) != "x" {
			t.Errorf("%q: %s, %v", content, got, ok)
		}
	}
	if got, ok := AppendPushJSON(nil, FlagBizAck, 1, ""); !ok || string(got) != `{"body":{"content":""},"bodyLength":1,"cmd":15,"flags":20,"sessionId":1}` {
		t.Errorf("%s, %v", got, ok)
	}
	if e := (&Error{Reason: "\xff"}).AppendJSON(nil, 1); !utf8.Valid(e) {
		t.Errorf("%q", e)
	}
}

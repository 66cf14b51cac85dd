package eio

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

func TestReaderIsThreeWords(t *testing.T) {
	if got, want := unsafe.Sizeof(Reader{}), unsafe.Sizeof(ws.Reader{})+8; got > want {
		t.Errorf("a Reader has %d bytes, want at most %d", got, want)
	}
}

// wantBody holds what a body is read as.
type wantBody struct {
	name   string
	rev    Revision
	binary bool
	body   string
	want   []packet
	err    error // behind want
}

func (b wantBody) check(t *testing.T) {
	t.Helper()
	got, err := readBody(t, b.rev, 1000, b.binary, b.body)
	if !slices.Equal(got, b.want) || err != b.err && !errors.Is(err, b.err) {
		t.Errorf("%s: %q\ngot  %v, %v\nwant %v, %v", b.name, b.body, got, err, b.want, b.err)
	}
}

func TestTextPayloadOfV4IsPacketsJoinedByASeparator(t *testing.T) {
	for _, b := range []wantBody{
		{name: "one packet", body: "4hello", want: []packet{text(Message, "hello")}},
		{name: "two", body: "4hello\x1e4€", want: []packet{text(Message, "hello"), text(Message, "€")}},
		{name: "no data", body: "3\x1e4\x1e1", want: []packet{text(Pong, ""), text(Message, ""), text(Close, "")}},
		{name: "every type", body: "0a\x1e1b\x1e2c\x1e3d\x1e4e\x1e5f\x1e6g", want: []packet{text(Open, "a"), text(Close, "b"), text(Ping, "c"), text(Pong, "d"), text(Message, "e"), text(Upgrade, "f"), text(Noop, "g")}},
		{name: "bytes", body: "4a\x1ebAQID\x1e4b", want: []packet{text(Message, "a"), bin("\x01\x02\x03"), text(Message, "b")}},
		{name: "bytes with padding", body: "bAQIDBA==\x1ebAQIDBAU=", want: []packet{bin("\x01\x02\x03\x04"), bin("\x01\x02\x03\x04\x05")}},
		{name: "no bytes", body: "b", want: []packet{bin("")}},
		{name: "a message that begins with b", body: "4b", want: []packet{text(Message, "b")}},
		{name: "the standard alphabet", body: "b+/+/", want: []packet{bin("\xfb\xff\xbf")}},
		{name: "V3's form", body: "2:4a", want: []packet{text(Ping, ":4a")}}, // nothing tells it from a ping

		{name: "empty body", body: "", err: errEmptyBody},
		{name: "only a separator", body: "\x1e", err: errEmpty},
		{name: "separator in front", body: "\x1e4a", err: errEmpty},
		{name: "separator at the end", body: "4a\x1e", want: []packet{text(Message, "a")}, err: errEmpty},
		{name: "two separators", body: "4a\x1e\x1e4b", want: []packet{text(Message, "a")}, err: errEmpty},
		{name: "type 7", body: "7", err: errType},
		{name: "a letter", body: "abc", err: errType},
		{name: "a slash, before 0", body: "/", err: errType},
		{name: "a type as a number", body: "\x04a", err: errType},
		{name: "the URL's alphabet", body: "b-_-_", err: errBase64},
		{name: "no padding", body: "bAQIDBA", err: errBase64},
		{name: "one letter", body: "bA", err: errBase64},
		{name: "a line break in base64", body: "bAQ\r\nID", err: errBase64},
		{name: "a line break behind base64", body: "bAQID\n", err: errBase64},
		{name: "more behind the padding", body: "bAQ==AQID", err: errBase64},
		{name: "V3's base64", body: "b4AQID", err: errBase64},
		{name: "not UTF-8", body: "4a\xff", err: errText},
		{name: "a rune cut by the separator", body: "4\xe2\x82\x1e4\xac", err: errText},
		{name: "a surrogate in UTF-8", body: "4\xed\xa0\xbd", err: errText},
		{name: "octet-stream", binary: true, body: "4a", err: errBinaryBody},
		{name: "empty octet-stream", binary: true, body: "", err: errBinaryBody},
	} {
		b.rev = V4
		b.check(t)
	}
}

func TestTextPayloadOfV3CountsUTF16Units(t *testing.T) {
	for _, b := range []wantBody{
		{name: "one packet", body: "6:4hello", want: []packet{text(Message, "hello")}},
		{name: "two", body: "6:4hello2:4€", want: []packet{text(Message, "hello"), text(Message, "€")}},
		{name: "the protocol's example", body: "6:4hello2:4€10:b4AQIDBA==", want: []packet{text(Message, "hello"), text(Message, "€"), bin("\x01\x02\x03\x04")}},
		{name: "two units", body: "3:4😀2:4a", want: []packet{text(Message, "😀"), text(Message, "a")}},
		{name: "long and mixed", body: "30:4aaaaaaaaé€😀bbbbbbbbccccccc😀1:2", want: []packet{text(Message, "aaaaaaaaé€😀bbbbbbbbccccccc😀"), text(Ping, "")}},
		{name: "a replacement character", body: "2:4\ufffd", want: []packet{text(Message, "\ufffd")}},
		{name: "a colon in it", body: "5:4a:bc1:2", want: []packet{text(Message, "a:bc"), text(Ping, "")}},
		{name: "no bytes", body: "2:b4", want: []packet{bin("")}},
		{name: "leading zeros", body: "0000000002:4a", want: []packet{text(Message, "a")}},
		{name: "the empty payload", body: "0:"},
		{name: "an empty packet between others", body: "0:2:4a0:0:2:4b0:", want: []packet{text(Message, "a"), text(Message, "b")}},
		{name: "the probe", body: "6:2probe", want: []packet{text(Ping, "probe")}},

		{name: "empty body", body: "", err: errEmptyBody},
		{name: "half a surrogate pair", body: "2:4😀", err: errSurrogate},
		{name: "half a surrogate pair, the rest counted", body: "2:4😀1:4", err: errSurrogate},
		{name: "bytes counted", body: "4:4€", err: errShort},
		{name: "a unit too many", body: "3:4a", err: errShort},
		{name: "an eight too many", body: "17:4aaaaaaaaaaaaaaa", err: errShort},
		{name: "only a length", body: "1:", err: errShort},
		{name: "more than 32 bits", body: "4294967298:4a", err: errShort},
		{name: "the most digits", body: "9999999999:4a", err: errShort},
		{name: "a digit more", body: "00000000002:4a", err: errLength},
		{name: "much more than 64 bits", body: strings.Repeat("9", 310) + ":4a", err: errLength},
		{name: "no digit", body: ":4a", err: errLength},
		{name: "a sign", body: "-1:4a", err: errLength},
		{name: "a plus", body: "+2:4a", err: errLength},
		{name: "a space", body: " 2:4a", err: errLength},
		{name: "a fraction", body: "2.0:4a", err: errLength},
		{name: "an exponent", body: "1e0:4", err: errLength},
		{name: "no colon", body: "12", err: errLength},
		{name: "something behind", body: "2:4ab", want: []packet{text(Message, "a")}, err: errLength},
		{name: "V4's form", body: "4a\x1e4b", err: errLength},
		{name: "type 7", body: "1:7", err: errType},
		{name: "base64 of nothing", body: "1:b", err: errType},
		{name: "a binary ping", body: "6:b2AQID", err: errType},
		{name: "V4's base64", body: "5:bAQID", err: errType},
		{name: "bad base64", body: "5:b4AQI", err: errBase64},
		{name: "not ASCII in base64", body: "6:b4AQI€", err: errBase64},
		{name: "not UTF-8", body: "3:4a\xff", err: errText},
		{name: "a rune cut by the length", body: "2:4\xe2\x82\xac", want: []packet{text(Message, "€")}},
		{name: "a rune cut by the body's end", body: "2:4\xe2\x82", err: errText},
		{name: "the binary form as text", body: "\x00\x02\xff4a", err: errLength},
	} {
		b.rev = V3
		b.check(t)
	}
}

func TestBinaryPayloadOfV3CountsBytes(t *testing.T) {
	for _, b := range []wantBody{
		{name: "text", body: "\x00\x06\xff4hello", want: []packet{text(Message, "hello")}},
		{name: "bytes", body: "\x01\x05\xff\x04\x01\x02\x03\x04", want: []packet{bin("\x01\x02\x03\x04")}},
		{name: "the protocol's example", body: "\x00\x06\xff4hello\x00\x04\xff4€\x01\x05\xff\x04\x01\x02\x03\x04", want: []packet{text(Message, "hello"), text(Message, "€"), bin("\x01\x02\x03\x04")}},
		{name: "no bytes", body: "\x01\x01\xff\x04", want: []packet{bin("")}},
		{name: "two digits, a byte missing", body: "\x01\x01\x00\xff\x04\xff\x00\xff\x00\x01\xff\x04\x00", err: errShort},
		{name: "two digits", body: "\x01\x01\x00\xff\x04\xff\x00\xff\x00\x01\xff\x04\x00\x09\x00\x01\xff2", want: []packet{bin("\xff\x00\xff\x00\x01\xff\x04\x00\x09"), text(Ping, "")}},
		{name: "leading zeros", body: "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\xff4a", want: []packet{text(Message, "a")}},

		{name: "empty body", body: "", err: errEmptyBody},
		{name: "neither text nor binary", body: "\x02\x01\xff4", err: errKind},
		{name: "the text form", body: "2:4a", err: errKind},
		{name: "empty text", body: "\x00\x00\xff", err: errEmpty},
		{name: "empty bytes", body: "\x01\x00\xff", err: errEmpty},
		{name: "no digit", body: "\x00\xff4", err: errLength},
		{name: "a digit of ASCII", body: "\x00" + "2\xff4a", err: errLength},
		{name: "a digit of ten", body: "\x00\x0a\xff4a", err: errLength},
		{name: "no end of the length", body: "\x00\x01", err: errLength},
		{name: "no length", body: "\x00", err: errLength},
		{name: "a digit more than ten", body: "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\xff4a", err: errLength},
		{name: "the most digits", body: "\x00\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\xff4a", err: errShort},
		{name: "more than 32 bits", body: "\x00\x04\x02\x09\x04\x09\x06\x07\x02\x09\x08\xff4a", err: errShort},
		{name: "a byte too few", body: "\x00\x03\xff4a", err: errShort},
		{name: "a binary ping", body: "\x01\x02\xff\x02a", err: errType},
		{name: "a type of ASCII in bytes", body: "\x01\x02\xff4a", err: errType},
		{name: "a type as a number in text", body: "\x00\x02\xff\x04a", err: errType},
		{name: "base64", body: "\x00\x06\xffb4AQID", err: errType},
		{name: "not UTF-8", body: "\x00\x03\xff4a\xff", err: errText},
		{name: "code units counted", body: "\x00\x02\xff4€", err: errText},
	} {
		b.rev, b.binary = V3, true
		b.check(t)
	}
}

func TestABodyHoldsAtMostTenThousandPackets(t *testing.T) {
	for _, tt := range []struct {
		name              string
		rev               Revision
		binary            bool
		first, next, last string
		none              bool
	}{
		{"V4", V4, false, "2", "\x1e2", "\x1e2", false},
		{"V3 text", V3, false, "1:2", "1:2", "1:2", false},
		{"V3 binary", V3, true, "\x00\x01\xff2", "\x00\x01\xff2", "\x00\x01\xff2", false},
		{"V3 empty packets", V3, false, "0:", "0:", "0:", true},
	} {
		full := tt.first + strings.Repeat(tt.next, MaxPackets-1)
		want := MaxPackets
		if tt.none {
			want = 0
		}
		if got, err := readBody(t, tt.rev, -1, tt.binary, full); len(got) != want || err != nil {
			t.Errorf("%s: %d packets and %v, want %d", tt.name, len(got), err, want)
		}
		if got, err := readBody(t, tt.rev, -1, tt.binary, full+tt.last); len(got) != want || err != errMany {
			t.Errorf("%s and one more: %d packets and %v, want %d and %v", tt.name, len(got), err, want, errMany)
		}

		// Each body is counted by itself.
		r := NewReader(tt.rev, -1)
		for range 2 {
			r.Body(tt.binary)
			if got, err := read(t, &r, []byte(full)); len(got) != want || err != nil {
				t.Errorf("%s: %d packets and %v, want %d", tt.name, len(got), err, want)
			}
		}
	}
	if errMany.Code != wire.Policy {
		t.Errorf("the code is %d, want %d", errMany.Code, wire.Policy)
	}
}

func TestWebSocketMessagesArePackets(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rev   Revision
		first byte
		in    string
		want  packet
		err   error
	}{
		{"text", 0, textFrame, "4hello", text(Message, "hello"), nil},
		{"text of more than ASCII", 0, textFrame, "4€😀", text(Message, "€😀"), nil},
		{"the probe", 0, textFrame, "2probe", text(Ping, "probe"), nil},
		{"the upgrade", 0, textFrame, "5", text(Upgrade, ""), nil},
		{"an empty text", 0, textFrame, "", packet{}, errEmpty},
		{"type 7", 0, textFrame, "7", packet{}, errType},
		{"a letter", 0, textFrame, "abc", packet{}, errType},
		{"not UTF-8", 0, textFrame, "4\xff", packet{}, &wire.Error{Code: wire.BadData}},
		{"a separator is data", 0, textFrame, "4a\x1e4b", text(Message, "a\x1e4b"), nil},
		{"bytes", V4, binaryFrame, "\x04\x01\xff", bin("\x04\x01\xff"), nil},
		{"no bytes", V4, binaryFrame, "", bin(""), nil},
		{"bytes", V3, binaryFrame, "\x04\x01\xff", bin("\x01\xff"), nil},
		{"no bytes", V3, binaryFrame, "\x04", bin(""), nil},
		{"bytes without a type", V3, binaryFrame, "", packet{}, errEmpty},
		{"bytes of another type", V3, binaryFrame, "\x02a", packet{}, errType},
		{"bytes of a type in ASCII", V3, binaryFrame, "4a", packet{}, errType},
		{"base64, forced", V4, textFrame, "bAQID", bin("\x01\x02\x03"), nil},
		{"base64, forced", V3, textFrame, "b4AQID", bin("\x01\x02\x03"), nil},
		{"bad base64", V4, textFrame, "bAQI", packet{}, errBase64},
		{"bad base64", V3, textFrame, "b4AQI", packet{}, errBase64},
		{"a ping", 0, pingFrame, "x", packet{op: ws.Ping, data: "x"}, nil},
		{"a pong", 0, pongFrame, "4x", packet{op: ws.Pong, data: "4x"}, nil},
		{"a close", 0, closeFrame, "\x03\xe8bye", packet{op: ws.Close, code: wire.Normal, data: "bye"}, nil},
		{"an empty close", 0, closeFrame, "", packet{op: ws.Close, code: wire.NoStatus}, nil},
		{"an unknown opcode", 0, 0x83, "", packet{}, &wire.Error{Code: wire.Protocol}},
	} {
		for _, rev := range []Revision{V3, V4} {
			if tt.rev != 0 && tt.rev != rev {
				continue
			}
			r := NewReader(rev, 100)
			got, err := read(t, &r, client(tt.first, tt.in))
			var want []packet
			if tt.err == nil {
				want = []packet{tt.want}
			}
			if !slices.Equal(got, want) || (err == nil) != (tt.err == nil) || err != nil && err.(*wire.Error).Code != tt.err.(*wire.Error).Code {
				t.Errorf("V%d, %s: got %v, %v; want %v, %v", rev, tt.name, got, err, want, tt.err)
			}
		}
	}
}

func session(rev Revision) (in []byte, want []packet) {
	four := ""
	if rev == V3 {
		four = "\x04"
	}
	big := strings.Repeat("é€😀a", 30)
	return join(
			client(textFrame, "2probe"),
			client(pingFrame, "hey"),
			client(textFrame, "5"),
			client(0x01, "451-[\"a\","), client(pongFrame, ""), client(0x80, "{}]"), // in two fragments, with a control frame between
			client(binaryFrame, four+"\x00\x01\x02"),
			client(0x02, ""), client(0x00, four), client(0x80, big),
			client(textFrame, "4"+big),
			client(closeFrame, "\x03\xe9"),
			client(textFrame, "4never"),
		), []packet{
			text(Ping, "probe"),
			{op: ws.Ping, data: "hey"},
			text(Upgrade, ""),
			{op: ws.Pong},
			text(Message, `51-["a",{}]`),
			bin("\x00\x01\x02"),
			bin(big),
			text(Message, big),
			{op: ws.Close, code: wire.GoingAway},
		}
}

func TestFramesInAnySplitAreTheSamePackets(t *testing.T) {
	for _, rev := range []Revision{V3, V4} {
		in, want := session(rev)
		for i := range in {
			r := NewReader(rev, 1000)
			if got, err := read(t, &r, in, i); !slices.Equal(got, want) || err != nil {
				t.Fatalf("V%d, cut at %d: got %v, %v\nwant %v", rev, i, got, err, want)
			}
		}
		cuts := make([]int, len(in))
		for i := range cuts {
			cuts[i] = i
		}
		r := NewReader(rev, 1000)
		if got, err := read(t, &r, in, cuts...); !slices.Equal(got, want) || err != nil {
			t.Fatalf("V%d, byte by byte: got %v, %v\nwant %v", rev, got, err, want)
		}
	}
}

func TestPartialIsOnlyAnUnfinishedFrame(t *testing.T) {
	r := NewReader(V4, 100)
	in := client(textFrame, "4hello")
	for i := range in {
		if got := r.Partial(); got != (i > 0) {
			t.Errorf("after %d bytes Partial is %v", i, got)
		}
		var p Packet
		if _, err := r.Next(in[i:i+1], &p); err != nil {
			t.Fatal(err)
		}
	}
	if r.Partial() {
		t.Error("Partial after a whole frame")
	}
}

func TestAReaderGoesFromBodiesToFrames(t *testing.T) {
	r := NewReader(V4, 100)
	for _, body := range []string{"40", "4a\x1e4b"} {
		r.Body(false)
		if _, err := read(t, &r, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	r.WebSocket()
	got, err := read(t, &r, client(textFrame, "4c"))
	if want := []packet{text(Message, "c")}; !slices.Equal(got, want) || err != nil {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestABodyThatIsUsedUpHasNoMore(t *testing.T) {
	for _, body := range []string{"2:4a", "0:"} {
		r := NewReader(V3, 100)
		r.Body(false)
		var p Packet
		if n, err := r.Next([]byte(body), &p); n != len(body) || err != nil {
			t.Fatal(n, err)
		}
		if n, err := r.Next(nil, &p); n != 0 || err != nil || p.Type != 0 {
			t.Errorf("%q: Next returned %d, %+v, %v at the end", body, n, p, err)
		}
	}
}

func TestTheLimitIsOfThePacketAsAWebSocketMessage(t *testing.T) {
	const limit = 10
	for _, tt := range []struct {
		name   string
		rev    Revision
		binary bool
		body   string // with packets of ten bytes
		over   string // with packets of eleven
	}{
		{"V4 text", V4, false, "4123456789", "41234567890"},
		{"V4 second packet", V4, false, "4\x1e4123456789", "4\x1e41234567890"},
		{"V4 more than ASCII", V4, false, "4€€€", "4€€€a"},
		{"V4 bytes", V4, false, "bAAAAAAAAAAAAAA==", "bAAAAAAAAAAAAAAA="},
		{"V3 text", V3, false, "10:4123456789", "11:41234567890"},
		{"V3 more than ASCII", V3, false, "4:4€€€", "5:4€€€a"},
		{"V3 base64", V3, false, "14:b4AAAAAAAAAAAA", "18:b4AAAAAAAAAAAAAA=="},
		{"V3 octets of text", V3, true, "\x00\x01\x00\xff4123456789", "\x00\x01\x01\xff41234567890"},
		{"V3 octets", V3, true, "\x01\x01\x00\xff\x04123456789", "\x01\x01\x01\xff\x041234567890"},
	} {
		if _, err := readBody(t, tt.rev, limit, tt.binary, tt.body); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, err := readBody(t, tt.rev, limit, tt.binary, tt.over); err != errTooBig {
			t.Errorf("%s, over: %v, want %v", tt.name, err, errTooBig)
		}
		if _, err := readBody(t, tt.rev, -1, tt.binary, tt.over); err != nil {
			t.Errorf("%s, no limit: %v", tt.name, err)
		}
	}

	for _, rev := range []Revision{V3, V4} {
		r := NewReader(rev, limit)
		if _, err := read(t, &r, client(textFrame, "4123456789")); err != nil {
			t.Error(err)
		}
		if _, err := read(t, &r, client(textFrame, "41234567890")); err == nil || err.(*wire.Error).Code != wire.TooBig {
			t.Errorf("a frame over the limit: %v", err)
		}
		r = NewReader(rev, -1)
		if got, err := read(t, &r, client(textFrame, "4"+strings.Repeat("x", 1<<20))); len(got) != 1 || err != nil {
			t.Errorf("no limit: %d packets, %v", len(got), err)
		}
		r.SetLimit(3)
		if _, err := read(t, &r, client(textFrame, "4123")); err == nil {
			t.Error("SetLimit changed nothing")
		}
	}
	if errTooBig.Code != wire.TooBig {
		t.Errorf("the code is %d", errTooBig.Code)
	}
}

func TestNextAllocatesNothing(t *testing.T) {
	big := strings.Repeat("x", 200)
	for _, tt := range []struct {
		name   string
		rev    Revision
		frames bool
		binary bool
		in     string
		want   int
	}{
		{"a V4 body", V4, false, false, "4" + big + "\x1ebAQID\x1e3", 3},
		{"a V3 body", V3, false, false, "201:4" + big + "6:b4AQID3:4😀", 3},
		{"a V3 body in bytes", V3, false, true, "\x00\x02\x00\x01\xff4" + big + "\x01\x02\xff\x04a", 2},
		{"a frame", V4, true, false, string(client(textFrame, "4"+big)), 1},
		{"a bad body", V4, false, false, "bAQI", 0},
	} {
		r := NewReader(tt.rev, 1000)
		in := make([]byte, len(tt.in))
		if n := testing.AllocsPerRun(100, func() {
			copy(in, tt.in)
			if !tt.frames {
				r.Body(tt.binary)
			}
			got := 0
			for rest := in; len(rest) > 0; {
				var p Packet
				n, err := r.Next(rest, &p)
				if err != nil {
					break
				}
				if p.Type != 0 {
					got++
				}
				rest = rest[n:]
			}
			if got != tt.want {
				t.Fatalf("%s: %d packets, want %d", tt.name, got, tt.want)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations, want none", tt.name, n)
		}
	}
}

func TestLengthsBeyondAnIntAreTooShort(t *testing.T) {
	if _, err := cut([]byte("abc"), math.MaxInt64); err != errShort {
		t.Errorf("got %v, want %v", err, errShort)
	}
}

func TestHeartbeatsGoInOneDirection(t *testing.T) {
	for _, tt := range []struct {
		p      Packet
		v3, v4 bool
	}{
		{Packet{Type: Open}, true, true},
		{Packet{Type: Close}, true, true},
		{Packet{Type: Ping}, true, false},
		{Packet{Type: Ping, Data: []byte("probe")}, true, false},
		{Packet{Type: Pong}, false, true},
		{Packet{Type: Message}, true, true},
		{Packet{Type: Message, Binary: true}, true, true},
		{Packet{Type: Upgrade}, true, true},
		{Packet{Type: Noop}, true, true},
		{Packet{Control: ws.Message{Op: ws.Ping}}, true, true},
		{Packet{}, true, true},
	} {
		if got := Allowed(V3, &tt.p); got != tt.v3 {
			t.Errorf("V3 %+v: %v", tt.p, got)
		}
		if got := Allowed(V4, &tt.p); got != tt.v4 {
			t.Errorf("V4 %+v: %v", tt.p, got)
		}
	}
}

package eio

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/embedpush/push/internal/ws"
)

func wantBytes(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if string(got) != want {
		t.Errorf("%s: got  %q\nwant %q", what, got, want)
	}
}

func TestPacketsAreFrames(t *testing.T) {
	wantBytes(t, "a message", AppendPacket(nil, Message, "hello"), "\x81\x064hello")
	wantBytes(t, "behind another", AppendPacket([]byte("x"), Pong, "probe"), "x\x81\x063probe")
	wantBytes(t, "a ping", AppendPacket(nil, Ping, ""), "\x81\x012")
	wantBytes(t, "125 bytes", AppendPacket(nil, Message, strings.Repeat("x", 124)), "\x81\x7d4"+strings.Repeat("x", 124))
	wantBytes(t, "126 bytes", AppendPacket(nil, Message, strings.Repeat("x", 125)), "\x81\x7e\x00\x7e4"+strings.Repeat("x", 125))
	wantBytes(t, "64 KiB", AppendPacket(nil, Message, strings.Repeat("x", 0xffff)), "\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x004"+strings.Repeat("x", 0xffff))
	wantBytes(t, "V4 bytes", AppendBinary(nil, V4, []byte{0, 1}), "\x82\x02\x00\x01")
	wantBytes(t, "V4 no bytes", AppendBinary(nil, V4, nil), "\x82\x00")
	wantBytes(t, "V3 bytes", AppendBinary([]byte("x"), V3, []byte{0, 1}), "x\x82\x03\x04\x00\x01")
	wantBytes(t, "V3 no bytes", AppendBinary(nil, V3, nil), "\x82\x01\x04")
}

func TestOpenHasTheKeysOfTheProtocolInOrder(t *testing.T) {
	h := Handshake{SID: "lv_VI97HAXpY6yYWAAAC", Upgrade: true, PingInterval: 25 * time.Second, PingTimeout: 20 * time.Second, MaxPayload: 1e6}
	frame := func(s string) string { return string(ws.AppendFrame(nil, ws.Text, []byte(s))) }
	wantBytes(t, "polling", AppendOpen(nil, &h),
		frame(`0{"sid":"lv_VI97HAXpY6yYWAAAC","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}`))
	h = Handshake{SID: strings.Repeat("s", 200), PingInterval: 300 * time.Millisecond, PingTimeout: 200 * time.Millisecond, MaxPayload: 1}
	wantBytes(t, "a WebSocket", AppendOpen([]byte("x"), &h),
		"x"+frame(`0{"sid":"`+h.SID+`","upgrades":[],"pingInterval":300,"pingTimeout":200,"maxPayload":1}`))
}

func TestBodyIsWhatIsQueued(t *testing.T) {
	hello, euro, face := AppendPacket(nil, Message, "hello"), AppendPacket(nil, Message, "€"), AppendPacket(nil, Message, "😀")
	bytes4, bytes3 := AppendBinary(nil, V4, []byte{1, 2, 3, 4}), AppendBinary(nil, V3, []byte{1, 2, 3, 4})
	beat := join(ws.AppendFrame(nil, ws.Ping, nil), ws.AppendFrame(nil, ws.Pong, []byte("4x")))
	bye := ws.AppendClose(nil, 1001, "bye")
	for _, tt := range []struct {
		name   string
		rev    Revision
		base64 bool
		frames [][]byte
		want   string
		binary bool
	}{
		{"one", V4, false, [][]byte{hello}, "4hello", false},
		{"the protocol's example", V4, false, [][]byte{hello, bytes4}, "4hello\x1ebAQIDBA==", false},
		{"several in a row", V4, false, [][]byte{join(hello, euro), nil, join(bytes4, face)}, "4hello\x1e4€\x1ebAQIDBA==\x1e4😀", false},
		{"no bytes", V4, false, [][]byte{AppendBinary(nil, V4, nil)}, "b", false},
		{"b64=1 means nothing", V4, true, [][]byte{bytes4}, "bAQIDBA==", false},
		{"heartbeats of a WebSocket", V4, false, [][]byte{beat, hello, join(beat, euro, beat)}, "4hello\x1e4€", false},
		{"a close frame", V4, false, [][]byte{hello, bye}, "4hello\x1e1", false},
		{"nothing", V4, false, nil, "6", false},
		{"nothing but heartbeats", V4, false, [][]byte{beat}, "6", false},

		{"one", V3, false, [][]byte{hello}, "6:4hello", false},
		{"code units", V3, false, [][]byte{hello, join(euro, face)}, "6:4hello2:4€3:4😀", false},
		{"the protocol's example", V3, true, [][]byte{hello, euro, bytes3}, "6:4hello2:4€10:b4AQIDBA==", false},
		{"no bytes", V3, true, [][]byte{AppendBinary(nil, V3, nil)}, "2:b4", false},
		{"heartbeats of a WebSocket", V3, false, [][]byte{beat, hello, beat}, "6:4hello", false},
		{"a close frame", V3, false, [][]byte{hello, bye}, "6:4hello1:1", false},
		{"nothing", V3, false, nil, "0:", false},
		{"nothing but heartbeats", V3, true, [][]byte{beat}, "0:", false},
		{"the handshake", V3, false, [][]byte{AppendPacket(nil, Open, `{"sid":"x"}`), AppendPacket(nil, Message, "0")}, `12:0{"sid":"x"}2:40`, false},

		{"the protocol's example in bytes", V3, false, [][]byte{hello, euro, bytes3},
			"\x00\x06\xff4hello\x00\x04\xff4€\x01\x05\xff\x04\x01\x02\x03\x04", true},
		{"bytes with all else", V3, false, [][]byte{beat, join(bytes3, beat, face), bye}, "\x01\x05\xff\x04\x01\x02\x03\x04\x00\x05\xff4😀\x00\x01\xff1", true},
		{"a length of three digits", V3, false, [][]byte{AppendBinary(nil, V3, make([]byte, 204))}, "\x01\x02\x00\x05\xff\x04" + strings.Repeat("\x00", 204), true},
	} {
		got, binary := AppendBody([]byte("before"), tt.rev, tt.base64, tt.frames...)
		if want := "before" + tt.want; string(got) != want || binary != tt.binary {
			t.Errorf("V%d, %s: got %q, %v\nwant %q, %v", tt.rev, tt.name, got, binary, want, tt.binary)
		}
	}
}

func TestBodyRefusesWhatIsNotFrames(t *testing.T) {
	for _, in := range []string{"\x81", "\x81\x02a", "\x81\x7e", "\x81\x7e\x00", "\x81\x7f\x00\x00\x00\x00\x00\x00\x00", "\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff", "\x81\x7f\x00\x00\x00\x01\x00\x00\x00\x00", "\x81\x81aaaa4"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q became a body", in)
				}
			}()
			AppendBody(nil, V4, false, []byte(in))
		}()
	}
}

// random makes packets of every kind, size and alphabet.
func random(rng *rand.Rand) []packet {
	alphabet := []rune("ab4:é€😀\ufffd\U0010ffff\u2028")
	all := make([]packet, rng.IntN(6)+1)
	for i := range all {
		n := rng.IntN(40)
		if rng.IntN(20) == 0 {
			n = rng.IntN(70_000)
		}
		if rng.IntN(3) == 0 {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			all[i] = bin(string(b))
			continue
		}
		var s strings.Builder
		for range n {
			if rng.IntN(2) == 0 {
				s.WriteRune(alphabet[rng.IntN(len(alphabet))])
			} else {
				s.WriteString("abcdefg")
			}
		}
		all[i] = text(Open+PacketType(rng.IntN(7)), s.String())
	}
	return all
}

func TestClientReadsWhatTheServerQueued(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		all := random(rng)
		for _, rev := range []Revision{V3, V4} {
			for _, text64 := range []bool{false, true} {
				body, binary := AppendBody(nil, rev, text64, queued(rev, all))
				got, err := asClient(rev, binary, body)
				if !slices.Equal(got, all) || err != nil {
					t.Fatalf("V%d, base64 %v: client reads %v, %v\nwant %v", rev, text64, got, err, all)
				}
				got, err = readBody(t, rev, -1, binary, string(body))
				if !slices.Equal(got, all) || err != nil {
					t.Fatalf("V%d, base64 %v: Reader reads %v, %v\nwant %v", rev, text64, got, err, all)
				}
			}
		}
	}
}

func TestCodeUnitsAreThoseOfJavaScript(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	alphabet := []rune("aaaaaé€😀\u007f\u0080\u07ff\u0800\uffff\U00010000\U0010ffff")
	for range 2000 {
		runes := make([]rune, rng.IntN(40))
		for i := range runes {
			runes[i] = alphabet[rng.IntN(len(alphabet))]
		}
		s := []byte(string(runes))
		want := len(utf16.Encode(runes))
		if got := codeUnits(s); got != want {
			t.Fatalf("%q: %d code units, want %d", s, got, want)
		}
		if got, err := cut(append(s, "behind"...), int64(want)); got != len(s) || err != nil {
			t.Fatalf("%q: cut at %d, %v, want %d", s, got, err, len(s))
		}
	}
}

func TestPacketsAllocateOnlyToGrow(t *testing.T) {
	long := strings.Repeat("é", 500)
	data := []byte(long)
	h := Handshake{SID: "lv_VI97HAXpY6yYWAAAC", Upgrade: true, PingInterval: 25 * time.Second, PingTimeout: 20 * time.Second, MaxPayload: 1e6}
	three := queued(V3, []packet{text(Message, long), bin(long), text(Ping, ""), bin("")})
	four := queued(V4, []packet{text(Message, long), bin(long), text(Ping, ""), bin("")})
	var grown []byte
	one := testing.AllocsPerRun(100, func() { grown = slices.Grow([]byte(nil), 5000) }) // two with the race detector
	for _, tt := range []struct {
		name   string
		append func(dst []byte) []byte
	}{
		{"AppendPacket", func(dst []byte) []byte { return AppendPacket(dst, Message, long) }},
		{"AppendBinary V3", func(dst []byte) []byte { return AppendBinary(dst, V3, data) }},
		{"AppendBinary V4", func(dst []byte) []byte { return AppendBinary(dst, V4, data) }},
		{"AppendOpen", func(dst []byte) []byte { return AppendOpen(dst, &h) }},
		{"AppendBody V4", func(dst []byte) []byte { dst, _ = AppendBody(dst, V4, false, four, four); return dst }},
		{"AppendBody V3", func(dst []byte) []byte { dst, _ = AppendBody(dst, V3, false, three, three); return dst }},
		{"AppendBody V3 base64", func(dst []byte) []byte { dst, _ = AppendBody(dst, V3, true, three, three); return dst }},
	} {
		room := make([]byte, 0, 1<<16)
		if n := testing.AllocsPerRun(100, func() { tt.append(room) }); n != 0 {
			t.Errorf("%s: %v allocations with room, want none", tt.name, n)
		}
		if n := testing.AllocsPerRun(100, func() { grown = tt.append(nil) }); n > one && tt.name != "AppendOpen" {
			t.Errorf("%s: %v allocations without room, want %v", tt.name, n, one)
		}
	}
	_ = grown
}

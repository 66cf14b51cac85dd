package mpush

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
)

// someBodies has every struct of section 4 with every field set.
func someBodies() []aBody {
	key, iv := bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{2}, 16)
	return []aBody{
		&Handshake{"d", "android", "6.0", "2.0", iv, key, 1, math.MaxInt32, math.MinInt64},
		&HandshakeOK{key, 180000, "token", 1795390652828},
		&FastConnect{"token", "d", math.MinInt32, -1},
		&FastConnectOK{180000},
		&Bind{"user", "data", "a,b"},
		&OK{CmdBind, -1, "data"},
		&Error{-128, 127, "reason", "data"},
		&Kick{"d", "user"},
		&ProxyRequest{255, "http://h/", "a:b\n", []byte{0, 255}},
		&ProxyResponse{-1, "OK", "a:b\n", []byte("body")},
		&GatewayPush{"user", 1, 2500, []byte("content"), "task", `["a"]`, "true"},
		&GatewayKick{"user", "d", "conn", -1, "127.0.0.1", 3001},
	}
}

func TestBodiesReadBack(t *testing.T) {
	for _, b := range someBodies() {
		wire := b.Append([]byte("x"))[1:]
		got := newLike(b)
		if err := got.Decode(wire); err != nil || !reflect.DeepEqual(got, b) {
			t.Errorf("%+v, %v; want %+v", got, err, b)
		}
		empty := newLike(b)
		if err := got.Decode(empty.Append(nil)); err != nil || !reflect.DeepEqual(got, empty) {
			t.Errorf("over another's fields: %+v, %v; want %+v", got, err, empty)
		}
	}
}

func TestABodyCutAnywhereIsRefused(t *testing.T) {
	for _, b := range someBodies() {
		whole := b.Append(nil)
		for cut := range whole {
			if err := newLike(b).Decode(whole[:cut]); err != ErrBody {
				t.Errorf("%T cut at %d of %d: %v", b, cut, len(whole), err)
			}
		}
	}
}

func TestBytesBehindTheLastFieldAreIgnored(t *testing.T) {
	for _, b := range someBodies() {
		got := newLike(b)
		if err := got.Decode(append(b.Append(nil), "more\x80"...)); err != nil || !reflect.DeepEqual(got, b) {
			t.Errorf("%+v, %v; want %+v", got, err, b)
		}
	}
}

func TestLengthsOfFieldsAreJudgedBeforeAnythingIsMade(t *testing.T) {
	for _, c := range []struct {
		name, in string
		ok       bool
	}{
		{"0", "\x00\x00", true},
		{"all there", "\x00\x03abc", true},
		{"one too few", "\x00\x04abc", false},
		{"no length", "\x00", false},
		{"-1", "\xff\xff", false},
		{"-1 and bytes", "\xff\xff" + strings.Repeat("x", 70_000), false},
		{"-32768", "\x80\x00" + strings.Repeat("x", 40_000), false},
		{"32766", "\x7f\xfe" + strings.Repeat("x", 32766), true},
		{"32766, one too few", "\x7f\xfe" + strings.Repeat("x", 32765), false},
		{"32767", "\x7f\xff\x00\x00\x00\x00" + strings.Repeat("x", 32767), true},
		{"32767, one too few", "\x7f\xff\x00\x00\x00\x00" + strings.Repeat("x", 32766), false},
		{"32767 without the rest of the length", "\x7f\xff\x00\x00\x00", false},
		{"32767 - 1", "\x7f\xff\xff\xff\xff\xff" + strings.Repeat("x", 40_000), false},
		{"32767 - 32767", "\x7f\xff\xff\xff\x80\x01" + strings.Repeat("x", 40_000), false},
		{"32767 + 2^31-1", "\x7f\xff\x7f\xff\xff\xff" + strings.Repeat("x", 40_000), false},
		{"32767 - 2^31", "\x7f\xff\x80\x00\x00\x00" + strings.Repeat("x", 40_000), false},
	} {
		in := []byte(c.in)
		f := fields{rest: in}
		got := f.bytes()
		if (f.err() == nil) != c.ok || f.err() != nil && !errors.Is(f.err(), ErrBody) || !c.ok && got != nil {
			t.Errorf("%s: %d bytes, %v", c.name, len(got), f.err())
		}
		if len(got) > 0 && (&got[len(got)-1] != &in[len(in)-1] || cap(got) != len(got)) {
			t.Errorf("%s: it is not the end of the body", c.name)
		}
		if c.ok {
			continue
		}
		var b Bind
		if n := testing.AllocsPerRun(10, func() { b.Decode(in) }); n != 0 {
			t.Errorf("%s: refused with %v allocations", c.name, n)
		}
		// In the second field too.
		if err := b.Decode(append([]byte("\x00\x01u"), in...)); err != ErrBody {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestAbsentAndEmptyAreTheSame(t *testing.T) {
	b := (&ProxyResponse{Body: []byte{}}).Append(nil)
	if want := make([]byte, 10); !bytes.Equal(b, want) {
		t.Fatalf("% x", b)
	}
	var r ProxyResponse
	if err := r.Decode(b); err != nil || r.Body != nil {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestStringsAreCopiesAndBytesAreNot(t *testing.T) {
	body := (&ProxyRequest{URI: "http://h/", Body: []byte("body")}).Append(nil)
	var r ProxyRequest
	if err := r.Decode(body); err != nil {
		t.Fatal(err)
	}
	clear(body)
	if r.URI != "http://h/" || string(r.Body) != "\x00\x00\x00\x00" {
		t.Errorf("%q, %q", r.URI, r.Body)
	}
}

// The limits of names are the session's to judge: the codec takes what it is
// given.
func TestNamesMayHoldAnything(t *testing.T) {
	for _, s := range []string{"a,b", "line\nline", "\x1b[31m", "\xff\xfe", "\x00", strings.Repeat("d", 9000)} {
		var got Handshake
		if err := got.Decode((&Handshake{DeviceID: s}).Append(nil)); err != nil || got.DeviceID != s {
			t.Errorf("%q: %q, %v", s, got.DeviceID, err)
		}
	}
}

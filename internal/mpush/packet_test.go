package mpush

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// seenPacket is a Packet that keeps its body.
type seenPacket struct {
	Header
	beat bool
	body string
}

// readPackets gives r all of in, in the pieces that end at cuts, and returns
// what comes out. Each piece is a copy that is overwritten when it is used up,
// so nothing can live on in it.
func readPackets(t testing.TB, r *Reader, in []byte, cuts ...int) (seen []seenPacket, err error) {
	t.Helper()
	from := 0
	for _, to := range append(slices.Clone(cuts), len(in)) {
		piece := bytes.Clone(in[from:to])
		from = to
		for rest := piece; len(rest) > 0; {
			p := Packet{Beat: true, Body: []byte("stale")}
			n, err := r.Next(rest, &p)
			if n < 0 || n > len(rest) {
				t.Fatalf("Next used %d of %d bytes", n, len(rest))
			}
			switch {
			case err != nil:
				if p.OK || p.Beat || p.Body != nil || r.Partial() {
					t.Fatalf("with %v: %+v, Partial %v", err, p, r.Partial())
				}
				return append(seen, seenPacket{Header: p.Header}), err
			case p.OK:
				if p.Beat && (p.Header != Header{} || p.Body != nil) || !p.Beat && int(p.Len) != len(p.Body) {
					t.Fatalf("%+v", p)
				}
				seen = append(seen, seenPacket{p.Header, p.Beat, string(p.Body)})
			case n != len(rest) || p.Beat || p.Body != nil || p.Header != Header{}:
				t.Fatalf("Next wants more after %d of %d bytes, and gives %+v", n, len(rest), p)
			}
			for i := range rest[:n] {
				rest[i] = 0xEE
			}
			rest = rest[n:]
		}
	}
	return seen, nil
}

// afterEach are cuts after each byte.
func afterEach(in []byte) []int {
	cuts := make([]int, len(in))
	for i := range cuts {
		cuts[i] = i
	}
	return cuts
}

func wantPackets(t testing.TB, got []seenPacket, want ...seenPacket) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

// claimed is the header of a push of this length.
func claimed(length int32) []byte {
	return AppendHeader(nil, Header{Len: length, Cmd: CmdPush, Flags: FlagAutoAck, ID: 7})
}

var beatSeen = seenPacket{beat: true}

// glued has heartbeats, packets of several lengths, and 0xDF wherever it is
// none.
func glued() (in []byte, want []seenPacket) {
	add := func(h Header, body string) {
		h.Len = int32(len(body))
		in = append(AppendHeader(in, h), body...)
		want = append(want, seenPacket{h, false, body})
	}
	beats := func(n int) {
		for range n {
			in = append(in, Beat)
			want = append(want, beatSeen)
		}
	}
	beats(2)
	add(Header{Cmd: CmdBind, Flags: FlagCrypto, ID: 1}, "bind")
	add(Header{Cmd: CmdAck, ID: 2}, "")
	beats(1)
	add(Header{Cmd: -0x21, CC: 0xDFDF, Flags: 0xDF, ID: -0x20202021, LRC: 0xDF}, "\xdf")
	add(Header{Cmd: CmdHeartbeat}, "")
	add(Header{Cmd: CmdPush, Flags: 0xFF, ID: math.MinInt32}, strings.Repeat("\xdf", 200))
	beats(3)
	add(Header{Cmd: CmdUnknown, CC: 12345, LRC: 55, ID: math.MaxInt32}, "\xdf\xdf")
	return in, want
}

func TestHeadersReadBack(t *testing.T) {
	h := Header{Len: 0x01020304, Cmd: 5, CC: 0x0607, Flags: 8, ID: 0x090A0B0C, LRC: 13}
	b := AppendHeader([]byte("x"), h)
	if string(b) != "x\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d" {
		t.Fatalf("% x", b)
	}
	random := rand.New(rand.NewPCG(1, 2))
	in := make([]byte, HeaderLen)
	for range 10_000 {
		for i := range in {
			in[i] = byte(random.Uint32())
		}
		if got := AppendHeader(nil, ParseHeader(in)); !bytes.Equal(got, in) {
			t.Fatalf("% x reads and appends as % x", in, got)
		}
		x := byte(0)
		for _, b := range in[:12] {
			x ^= b
		}
		if got := ParseHeader(in).CalcLRC(); got != x {
			t.Fatalf("% x: LRC %d, want %d", in, got, x)
		}
	}
}

func TestAnySplitGivesTheSamePackets(t *testing.T) {
	in, want := glued()
	check := func(cuts ...int) {
		t.Helper()
		r := Reader{Max: 200}
		got, err := readPackets(t, &r, in, cuts...)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("cuts %v: %v\ngot  %+v\nwant %+v", cuts, err, got, want)
		}
		if r.part != nil {
			t.Fatalf("cuts %v: the Reader keeps something", cuts)
		}
	}
	check()
	check(afterEach(in)...)
	for a := range in {
		for b := a; b < len(in); b += 5 {
			check(a, b)
		}
	}
}

// Bodies of many lengths, among them the ones at which buffers grow.
func TestBodiesOfAnyLengthArriveAsSent(t *testing.T) {
	for _, n := range []int{0, 1, 12, 13, 14, minBuffer - 1, minBuffer, minBuffer + 1, 1023, 1024, 1025, 10240, 65536, 100_000} {
		body := make([]byte, n)
		for i := range body {
			body[i] = byte(i * 7)
		}
		in := append(AppendPacket(nil, CmdPush, 0, 9, body), Beat)
		want := seenPacket{Header{Len: int32(n), Cmd: CmdPush, ID: 9}, false, string(body)}
		for _, cuts := range [][]int{nil, {1}, {12}, {13}, {min(14, len(in))}, {len(in) / 2}, {len(in) - 2}, {5, 13 + n/3, 13 + n/2}, afterEach(in)} {
			r := Reader{Max: n}
			got, err := readPackets(t, &r, in, cuts...)
			if err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			wantPackets(t, got, want, beatSeen)
		}
	}
}

func TestLengthsAreJudgedWithTheLastByteOfTheHeader(t *testing.T) {
	for _, c := range []struct {
		name string
		len  int32
		max  int
		err  error
	}{
		{"-1", -1, 64 << 10, ErrNegative},
		{"the lowest", math.MinInt32, 64 << 10, ErrNegative},
		{"the lowest without a limit", math.MinInt32, -1, ErrNegative},
		{"-1 without a limit", -1, -1, ErrNegative},
		{"0", 0, 0, nil},
		{"1 where none is allowed", 1, 0, ErrTooBig},
		{"at the limit", 10240, 10240, nil},
		{"one over", 10241, 10240, ErrTooBig},
		{"16 MiB", 16 << 20, 64 << 10, ErrTooBig},
		{"1 GiB", 1 << 30, 64 << 10, ErrTooBig},
		{"where 13 more overflow", math.MaxInt32 - 12, 64 << 10, ErrTooBig},
		{"the highest", math.MaxInt32, 64 << 10, ErrTooBig},
		{"the highest, one over", math.MaxInt32, math.MaxInt32 - 1, ErrTooBig},
		{"the highest at the limit", math.MaxInt32, math.MaxInt32, nil},
		{"the highest without a limit", math.MaxInt32, -1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := claimed(c.len)
			if in[0] == Beat {
				t.Fatal("it is a heartbeat")
			}
			for cut := range in {
				r := Reader{Max: c.max}
				got, err := readPackets(t, &r, in, cut)
				if err != c.err {
					t.Fatalf("got %v, want %v", err, c.err)
				}
				if c.err != nil {
					wantPackets(t, got, seenPacket{Header: ParseHeader(in)})
				} else if r.Partial() != (c.len > 0) {
					t.Fatalf("Partial is %v", r.Partial())
				}
			}
			r := Reader{Max: c.max}
			if _, err := readPackets(t, &r, in[:HeaderLen-1]); err != nil || !r.Partial() {
				t.Fatalf("a byte early: %v, Partial %v", err, r.Partial())
			}
		})
	}
}

func TestOtherProtocolsAreRefused(t *testing.T) {
	for _, in := range []string{
		"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"POST /x HTTP/1.1\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00", // TLS
		"SSH-2.0-OpenSSH_9.6\r\n",
		"\x10\x1a\x00\x04MQTT\x04\x02\x00\x3c\x00",
	} {
		r := Reader{Max: 64 << 10}
		if _, err := readPackets(t, &r, []byte(in)); err != ErrTooBig {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestAfterAnErrorNothingIsRead(t *testing.T) {
	for _, in := range [][]byte{claimed(-1), claimed(math.MaxInt32)} {
		r := Reader{Max: 100}
		if _, err := readPackets(t, &r, in); err == nil {
			t.Fatal("no error")
		}
		more, _ := glued()
		got, err := readPackets(t, &r, append(more, in...), 3, 50)
		if len(got) != 0 || err != nil || r.Partial() {
			t.Fatalf("got %v, %v", got, err)
		}
		if !reflect.ValueOf(broken).IsZero() {
			t.Fatal("the shared end was written to")
		}
	}
}

func TestTheLimitMayChangeBetweenCalls(t *testing.T) {
	in := AppendPacket(nil, CmdPush, 0, 1, make([]byte, 500))
	r := Reader{Max: 100}
	readPackets(t, &r, in[:12])
	r.Max = 500 // before the header is complete
	readPackets(t, &r, in[12:100])
	r.Max = 10 // has been judged
	got, err := readPackets(t, &r, in[100:])
	if err != nil || len(got) != 1 {
		t.Fatalf("got %v, %v", got, err)
	}
	if _, err := readPackets(t, &r, in); err != ErrTooBig {
		t.Fatalf("got %v", err)
	}
}

func TestPartialIsTrueExactlyInsidePackets(t *testing.T) {
	in, _ := glued()
	whole := map[int]bool{}
	for at := 0; at < len(in); {
		if in[at] == Beat {
			at++
		} else {
			at += HeaderLen + int(ParseHeader(in[at:]).Len)
		}
		whole[at] = true
	}
	r := Reader{Max: 200}
	if r.Partial() {
		t.Fatal("Partial before the first byte")
	}
	for i := range in {
		readPackets(t, &r, in[i:i+1])
		if got, want := r.Partial(), !whole[i+1]; got != want {
			t.Fatalf("after %d bytes: Partial is %v", i+1, got)
		}
	}
}

func TestRandomBytesNeverPanic(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	in := make([]byte, 64<<10)
	for range 50 {
		for i := range in {
			in[i] = byte(random.Uint32())
		}
		whole, split := Reader{Max: 64 << 10}, Reader{Max: 64 << 10}
		want, wantErr := readPackets(t, &whole, in)
		got, err := readPackets(t, &split, in, 1, 7, 13, 1000, 1001, 30_000)
		if err != wantErr || !slices.Equal(got, want) {
			t.Fatalf("split %v, %v; whole %v, %v", got, err, want, wantErr)
		}
	}
}

func TestAHugeClaimTakesNoMemory(t *testing.T) {
	in := claimed(1 << 30)
	var p Packet
	if n := testing.AllocsPerRun(100, func() {
		r := Reader{Max: 64 << 10}
		if _, err := r.Next(in, &p); !errors.Is(err, ErrTooBig) {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a refused claim of 1 GiB allocates %v times", n)
	}

	// Where the limit allows it, only a few bytes of state.
	for _, limit := range []int{-1, 1 << 30} {
		r := Reader{Max: limit}
		if got := bytesAllocated(func() { r.Next(in, &p) }); got > 1<<10 {
			t.Errorf("an accepted claim of 1 GiB allocates %d bytes", got)
		}
		if cap(r.part.body) != 0 {
			t.Errorf("nothing arrived, buffer has %d", cap(r.part.body))
		}
		piece := make([]byte, 100)
		for arrived := len(piece); arrived < 1<<20; arrived += len(piece) {
			r.Next(piece, &p)
			if got := cap(r.part.body); got > max(2*arrived, minBuffer) {
				t.Fatalf("%d bytes arrived, buffer has %d", arrived, got)
			}
		}
	}

	// And not over a claim.
	r := Reader{Max: -1}
	whole := AppendPacket(nil, CmdPush, 0, 1, make([]byte, 900))
	readPackets(t, &r, whole[:len(whole)-1], 600)
	if got := cap(r.part.body); got != 900 {
		t.Errorf("buffer of %d bytes for a body of 900", got)
	}
}

// bytesAllocated is how many bytes f allocates.
func bytesAllocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestWholePacketsAreReadInPlaceWithoutAllocation(t *testing.T) {
	in, want := glued()
	r := Reader{Max: 200}
	var p Packet
	if n := testing.AllocsPerRun(100, func() {
		seen := 0
		for rest := in; len(rest) > 0; seen++ {
			n, err := r.Next(rest, &p)
			if err != nil || !p.OK {
				t.Fatal(err)
			}
			if len(p.Body) > 0 && &p.Body[0] != &rest[n-len(p.Body)] {
				t.Fatal("the body does not lie in the input")
			}
			if cap(p.Body) != len(p.Body) {
				t.Fatal("an append to the body would write into the next packet")
			}
			rest = rest[n:]
		}
		if seen != len(want) {
			t.Fatal(seen)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestHeadersAllocateNothing(t *testing.T) {
	b := claimed(300)
	var h Header
	if n := testing.AllocsPerRun(100, func() { h = ParseHeader(b) }); n != 0 {
		t.Errorf("ParseHeader: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { b = AppendHeader(b[:0], h) }); n != 0 {
		t.Errorf("AppendHeader: %v allocations", n)
	}
}

func TestAnIdleReaderIsTwoWords(t *testing.T) {
	if got := unsafe.Sizeof(Reader{}); got > 2*unsafe.Sizeof(uintptr(0)) {
		t.Errorf("a Reader is %d bytes", got)
	}
	if got := unsafe.Sizeof(partial{}); got > 48 {
		t.Errorf("what a Reader holds inside a packet is %d bytes", got)
	}
}

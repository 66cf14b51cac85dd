package ws

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
	"unsafe"

	"github.com/embedpush/push/internal/wire"
)

// event is a Message that keeps its payload.
type event struct {
	op      Opcode
	code    wire.Code
	payload string
}

func (e event) String() string {
	if len(e.payload) > 40 {
		return fmt.Sprintf("{%d %d %d bytes %q…}", e.op, e.code, len(e.payload), e.payload[:40])
	}
	return fmt.Sprintf("{%d %d %q}", e.op, e.code, e.payload)
}

// feed gives r all of in, in the pieces that end at cuts, and returns what
// comes out. Each piece is a copy that is overwritten when it is used up, so
// nothing can live on in it.
func feed(t testing.TB, r *Reader, in []byte, cuts ...int) (events []event, err error) {
	t.Helper()
	from := 0
	for _, to := range append(cuts, len(in)) {
		piece := bytes.Clone(in[from:to])
		from = to
		for rest := piece; len(rest) > 0; {
			var m Message
			n, err := r.Next(rest, &m)
			if n < 0 || n > len(rest) {
				t.Fatalf("Next used %d of %d bytes", n, len(rest))
			}
			if err != nil {
				var we *wire.Error
				if !errors.As(err, &we) || m.Op != 0 {
					t.Fatalf("Next returned %v with message %v; want a *wire.Error alone", err, m.Op)
				}
				return events, err
			}
			if m.Op != 0 {
				events = append(events, event{m.Op, m.Code, string(m.Payload)})
			} else if n != len(rest) {
				t.Fatalf("Next wants more after %d of %d bytes", n, len(rest))
			}
			for i := range rest[:n] {
				rest[i] = 0xEE
			}
			rest = rest[n:]
		}
	}
	return events, nil
}

// everyByte are cuts after each byte.
func everyByte(in []byte) []int {
	cuts := make([]int, len(in))
	for i := range cuts {
		cuts[i] = i
	}
	return cuts
}

// client makes a frame as a client does, masked with a key of its own.
func client(first byte, payload string) []byte {
	return masked(AppendHeader(nil, 0, len(payload)), first, payload)
}

// masked makes a frame of this first byte and payload with the length of the
// header.
func masked(header []byte, first byte, payload string) []byte {
	key := [4]byte{0x37, 0xfa, 0x21, byte(len(payload)) | 1}
	b := bytes.Clone(header)
	b[0] = first
	b[1] |= maskBit
	b = append(b, key[:]...)
	for i := range len(payload) {
		b = append(b, payload[i]^key[i%4])
	}
	return b
}

// claim makes the header of a masked frame that claims n bytes of payload.
func claim(first byte, n uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte{first, maskBit | 127}, n)
	return append(b, 1, 2, 3, 4)
}

func join(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

// First bytes of a client's frames.
const (
	text, binary_, more, last = 0x81, 0x82, 0x00, 0x80
	textBegin, binaryBegin    = 0x01, 0x02
	closing, ping, pong       = 0x88, 0x89, 0x8A
)

func wantEvents(t testing.TB, got []event, want ...event) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got  %v\nwant %v", got, want)
	}
}

func wantCode(t testing.TB, err error, want wire.Code) {
	t.Helper()
	var we *wire.Error
	if !errors.As(err, &we) || we.Code != want {
		t.Fatalf("got error %v, want code %d", err, want)
	}
}

// TestExamplesOfTheRFC are the client's bytes of RFC 6455 section 5.7.
func TestExamplesOfTheRFC(t *testing.T) {
	r := Reader{Max: 1 << 20}
	got, err := feed(t, &r, []byte("\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"+"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"))
	if err != nil {
		t.Fatal(err)
	}
	wantEvents(t, got, event{Text, 0, "Hello"}, event{Pong, 0, "Hello"})

	for _, c := range []struct {
		op   Opcode
		n    int
		want string
	}{
		{Text, 5, "\x81\x05"},
		{Ping, 5, "\x89\x05"},
		{Binary, 256, "\x82\x7e\x01\x00"},
		{Binary, 65536, "\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"},
	} {
		if got := AppendHeader(nil, c.op, c.n); string(got) != c.want {
			t.Errorf("header of %d bytes: got % x, want % x", c.n, got, c.want)
		}
	}
}

func TestMessagesOfAnyLengthArriveAsSent(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 65, 124, 125, 126, 127, 128, 255, 65534, 65535, 65536, 100_000} {
		payload := make([]byte, n)
		for i := range payload {
			payload[i] = byte(random.Uint32() & 0x7F)
		}
		for _, op := range []Opcode{Text, Binary, Ping, Pong} {
			if op.control() && n > maxControl {
				continue
			}
			in := client(finBit|byte(op), string(payload))
			want := event{op, 0, string(payload)}
			for _, cuts := range [][]int{nil, {1}, {len(in) - 1}, {len(in) / 2}, {min(8, len(in)), min(13, len(in)), min(17, len(in))}, everyByte(in)} {
				r := Reader{Max: n}
				got, err := feed(t, &r, in, cuts...)
				if err != nil {
					t.Fatalf("%d bytes, op %d: %v", n, op, err)
				}
				wantEvents(t, got, want)
			}
		}
	}
}

// session has everything a client may do, and what comes out of it.
func session() (in []byte, want []event) {
	long := strings.Repeat("0123456789", 15)
	return join(
			client(text, "hello"),
			client(ping, ""),
			client(binary_, "\xff\x00\xfe"),
			client(text, ""),
			client(textBegin, "Gr\xc3"),
			client(ping, "between"),
			client(more, ""),
			client(pong, strings.Repeat("p", maxControl)),
			client(more, "\xbc\xc3\x9fe aus \xf0\x9f"),
			client(last, "\x8c\x8d"),
			client(binary_, long),
			client(textBegin, ""),
			client(more, ""),
			client(last, "zwölf"),
			client(binaryBegin, long),
			client(last, ""),
			client(textBegin, ""),
			client(last, ""),
			client(pong, "late"),
			client(closing, "\x03\xe9über"),
			client(text, "nobody reads this"),
			[]byte("nor this"),
		), []event{
			{Text, 0, "hello"},
			{Ping, 0, ""},
			{Binary, 0, "\xff\x00\xfe"},
			{Text, 0, ""},
			{Ping, 0, "between"},
			{Pong, 0, strings.Repeat("p", maxControl)},
			{Text, 0, "Grüße aus 🌍"},
			{Binary, 0, long},
			{Text, 0, "zwölf"},
			{Binary, 0, long},
			{Text, 0, ""},
			{Pong, 0, "late"},
			{Close, 1001, "über"},
		}
}

func TestAnySplitGivesTheSameMessages(t *testing.T) {
	in, want := session()
	check := func(cuts ...int) {
		t.Helper()
		r := Reader{Max: 1000}
		got, err := feed(t, &r, in, cuts...)
		if err != nil {
			t.Fatalf("cuts %v: %v", cuts, err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("cuts %v:\ngot  %v\nwant %v", cuts, got, want)
		}
		if r.Partial() {
			t.Fatalf("cuts %v: Partial after the close", cuts)
		}
	}
	check()
	check(everyByte(in)...)
	for a := range in {
		check(a)
		for b := a; b < len(in); b += 7 {
			check(a, b)
		}
	}
}

func TestControlFramesArriveBeforeTheMessageTheyAreIn(t *testing.T) {
	r := Reader{Max: 100}
	in := join(client(binaryBegin, "one"), client(ping, "now"), client(last, "two"))
	var m Message
	n, err := r.Next(in, &m)
	if err != nil || m.Op != Ping || string(m.Payload) != "now" {
		t.Fatalf("got %d %q %v, want the ping", m.Op, m.Payload, err)
	}
	if !r.Partial() {
		t.Fatal("Partial is false inside a fragmented message")
	}
	k, err := r.Next(in[n:], &m)
	if err != nil || m.Op != Binary || string(m.Payload) != "onetwo" || n+k != len(in) {
		t.Fatalf("got %d %q %v after %d bytes, want the message", m.Op, m.Payload, err, n+k)
	}
}

func TestNothingOfAnEarlierMessageStaysBehind(t *testing.T) {
	stale := Message{Close, wire.Kicked, []byte("stale")}
	for _, in := range [][]byte{nil, {text}, client(text, "half")[:8], client(more, ""), client(text, "\xff"), client(closing, "\x03")} {
		r, m := Reader{Max: 100}, stale
		r.Next(in, &m)
		if m.Op != 0 || m.Code != 0 || m.Payload != nil {
			t.Fatalf("after % x: %v", in, m)
		}
	}
	r, m := Reader{Max: 100}, stale
	r.Next(client(closing, ""), &m)
	if m.Code != wire.NoStatus || len(m.Payload) != 0 {
		t.Fatalf("an empty close is %v", m)
	}
}

func TestPartialIsTrueExactlyInsideFramesAndMessages(t *testing.T) {
	ends := map[int]bool{} // where no message is open
	var in []byte
	for _, f := range []struct {
		frame []byte
		end   bool
	}{
		{client(text, "a"), true}, {client(ping, "b"), true}, {client(textBegin, ""), false}, {client(ping, "c"), false},
		{client(last, "d"), true}, {client(binary_, strings.Repeat("e", 300)), true}, {client(closing, ""), true},
	} {
		in = append(in, f.frame...)
		ends[len(in)] = f.end
	}
	r := Reader{Max: 1000}
	for i := range in {
		if _, err := feed(t, &r, in[i:i+1]); err != nil {
			t.Fatal(err)
		}
		if got, want := r.Partial(), !ends[i+1]; got != want {
			t.Fatalf("after %d bytes: Partial is %v", i+1, got)
		}
	}
}

// broken are inputs whose last byte breaks a rule.
var broken = []struct {
	name string
	in   []byte
	code wire.Code
	err  error
}{
	{"unmasked", []byte{text, 0}, 1002, errUnmasked},
	{"unmasked close", []byte{closing, 0}, 1002, errUnmasked},
	{"RSV1", []byte{0xC1, 0x80}, 1002, errReserved},
	{"RSV2", []byte{0xA1, 0x80}, 1002, errReserved},
	{"RSV3", []byte{0x91, 0x80}, 1002, errReserved},
	{"RSV1 on a control frame", []byte{0xC9, 0x80}, 1002, errReserved},
	{"opcode 3", []byte{0x83, 0x80}, 1002, errOpcode},
	{"opcode 7", []byte{0x87, 0x80}, 1002, errOpcode},
	{"opcode 11", []byte{0x8B, 0x80}, 1002, errOpcode},
	{"opcode 15", []byte{0x8F, 0x80}, 1002, errOpcode},
	{"HTTP", []byte("GE"), 1002, errReserved},
	{"fragmented ping", []byte{0x09, 0x80}, 1002, errControl},
	{"fragmented close", []byte{0x08, 0x80}, 1002, errControl},
	{"ping of 126 bytes", []byte{ping, 0xFE}, 1002, errControl},
	{"close of 64 bits", []byte{closing, 0xFF}, 1002, errControl},
	{"stray continuation", []byte{more, 0x80}, 1002, errStray},
	{"stray last continuation", []byte{last, 0x80}, 1002, errStray},
	{"continuation of a finished message", join(client(textBegin, "a"), client(last, "b"), []byte{last, 0x80}), 1002, errStray},
	{"continuation of an unfragmented message", join(client(text, "a"), []byte{last, 0x80}), 1002, errStray},
	{"text inside a text", join(client(textBegin, "a"), []byte{text, 0x80}), 1002, errUnfinished},
	{"binary inside an empty text", join(client(textBegin, ""), []byte{binaryBegin, 0x80}), 1002, errUnfinished},
	{"text inside a text, after a ping", join(client(textBegin, "a"), client(ping, ""), []byte{text, 0x80}), 1002, errUnfinished},
	{"125 in 16 bits", []byte{text, 0xFE, 0, 125}, 1002, errLength},
	{"0 in 16 bits", []byte{text, 0xFE, 0, 0}, 1002, errLength},
	{"65535 in 64 bits", claim(binary_, 65535)[:10], 1002, errLength},
	{"0 in 64 bits", claim(binary_, 0)[:10], 1002, errLength},
	{"64 bits with the highest set", claim(binary_, 1<<63)[:10], 1002, errNegative},
	{"64 bits, all set", claim(binary_, math.MaxUint64)[:10], 1002, errNegative},
	{"one over the limit", []byte{binary_, 0xFE, 0x03, 0xE9}, 1009, errTooBig},
	{"16 bits over the limit", []byte{binary_, 0xFE, 0xFF, 0xFF}, 1009, errTooBig},
	{"64 bits over the limit", claim(text, 1<<30)[:10], 1009, errTooBig},
	{"63 bits", claim(text, math.MaxInt64)[:10], 1009, errTooBig},
	{"sum over the limit", join(client(binaryBegin, strings.Repeat("a", 999)), client(more, "b"), client(ping, "c"), []byte{last, 0x81}), 1009, errTooBig},
	{"sum overflows", join(client(binaryBegin, "a"), claim(last, math.MaxInt64)[:10]), 1009, errTooBig},
	{"close of one byte", client(closing, "\x03"), 1002, errCloseBody},
	{"close code 0", client(closing, "\x00\x00"), 1002, errCloseCode},
	{"close code 1005", client(closing, "\x03\xedbye"), 1002, errCloseCode},
	{"close reason not UTF-8", client(closing, "\x03\xe8\xff"), 1007, errReason},
	{"close reason ends inside a rune", client(closing, "\x03\xe8\xc3"), 1007, errReason},
	{"close reason with a surrogate", client(closing, "\x03\xe8\xed\xa0\x80"), 1007, errReason},
	{"text ends inside a rune", client(text, "ab\xc3"), 1007, errText},
	{"fragments end inside a rune", join(client(textBegin, "\xf0\x9f"), client(last, "\x8c")), 1007, errText},
	{"an empty fragment ends a text inside a rune", join(client(textBegin, "\xf0\x9f"), client(last, "")), 1007, errText},
}

func TestBrokenFramesAreRefusedAtTheByteThatBreaksTheRule(t *testing.T) {
	for _, c := range broken {
		t.Run(c.name, func(t *testing.T) {
			for cut := range c.in {
				r := Reader{Max: 1000}
				_, err := feed(t, &r, c.in, cut)
				wantCode(t, err, c.code)
				if err != c.err {
					t.Fatalf("got %v, want %v", err, c.err)
				}
				if r.Partial() {
					t.Fatal("Partial after an error")
				}
			}
			r := Reader{Max: 1000}
			if _, err := feed(t, &r, c.in[:len(c.in)-1]); err != nil {
				t.Fatalf("refused a byte early: %v", err)
			}
		})
	}
}

func TestAfterAnErrorOrACloseNothingIsRead(t *testing.T) {
	for _, begin := range [][]byte{client(closing, ""), client(closing, "\x03\xe8"), {text, 0}, client(closing, "\x03"), client(text, "\xff")} {
		r := Reader{Max: 1000}
		feed(t, &r, begin)
		got, err := feed(t, &r, join(client(text, "more"), []byte{0xFF, 0xFF}))
		if len(got) != 0 || err != nil {
			t.Fatalf("got %v, %v after % x", got, err, begin)
		}
		if !reflect.ValueOf(ended).IsZero() {
			t.Fatal("the shared end was written to")
		}
	}
}

func TestOnlyCloseCodesAllowedOnTheWireAreAccepted(t *testing.T) {
	for code := range 1 << 16 {
		allowed := code >= 1000 && code <= 1014 && code != 1004 && code != 1005 && code != 1006 || code >= 3000 && code < 5000
		r := Reader{}
		got, err := feed(t, &r, client(closing, string([]byte{byte(code >> 8), byte(code)})+"bye"))
		if !allowed {
			wantCode(t, err, wire.Protocol)
			continue
		}
		if err != nil {
			t.Fatalf("%d: %v", code, err)
		}
		wantEvents(t, got, event{Close, wire.Code(code), "bye"})
	}
	r := Reader{}
	got, err := feed(t, &r, client(closing, ""))
	if err != nil {
		t.Fatal(err)
	}
	wantEvents(t, got, event{Close, wire.NoStatus, ""})
}

// TestUTF8IsJudgedOverTheWholeMessage has every way to put up to four bytes of
// each class together, in every division into two fragments and two pieces.
func TestUTF8IsJudgedOverTheWholeMessage(t *testing.T) {
	classes := []byte{'a', 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF}
	var try func(s []byte)
	try = func(s []byte) {
		valid := utf8.Valid(s)
		check := func(in []byte, cuts ...int) {
			r := Reader{Max: 100}
			got, err := feed(t, &r, in, cuts...)
			if valid != (err == nil) || valid && !slices.Equal(got, []event{{Text, 0, string(s)}}) || !valid && err != error(errText) {
				t.Fatalf("% x in % x cut at %v: got %v, %v; valid is %v", s, in, cuts, got, err, valid)
			}
		}
		whole := client(text, string(s))
		check(whole)
		for i := range len(s) + 1 {
			check(whole, len(whole)-i)
			fragments := join(client(textBegin, string(s[:i])), client(last, string(s[i:])))
			check(fragments)
			check(fragments, everyByte(fragments)...)
		}
		// What is certainly wrong needs no fifth byte; what is right or only
		// unfinished is worth going on with.
		if len(s) < 4 && (len(s) == 0 || !utf8.FullRune(s)) {
			for _, c := range classes {
				try(append(s[:len(s):len(s)], c))
			}
		}
	}
	try(nil)
	for _, good := range []string{"é", "€", "🌍", "\uFFFD", "\U0010FFFF"} {
		for i := range len(good) {
			try(append([]byte("ab"), good[:i]...))
			try(append([]byte(good[:i]), "ab"...))
		}
		try([]byte(good + good))
	}
}

func TestInvalidTextIsRefusedBeforeItsEnd(t *testing.T) {
	for _, bad := range []string{"\xff", "\xc0", "\xc3a", "\xe0\x9f", "\xed\xa0", "\xf0\x8f", "\xf4\x90", "\xf5", "\x80"} {
		in := client(text, "good "+bad+strings.Repeat("x", 5000))
		upTo := len(in) - 5000
		r := Reader{Max: 10_000}
		if _, err := feed(t, &r, in[:upTo-1]); err != nil {
			t.Fatalf("% x refused a byte early: %v", bad, err)
		}
		_, err := feed(t, &r, in[upTo-1:upTo])
		wantCode(t, err, wire.BadData)
	}
	r := Reader{Max: 10_000}
	_, err := feed(t, &r, client(textBegin, "good \xff"))
	wantCode(t, err, wire.BadData)
}

func TestBinaryMessagesMayHoldAnything(t *testing.T) {
	r := Reader{Max: 100}
	got, err := feed(t, &r, join(client(binaryBegin, "\xff"), client(last, "\xc3")))
	if err != nil {
		t.Fatal(err)
	}
	wantEvents(t, got, event{Binary, 0, "\xff\xc3"})
}

func TestMessagesUpToTheLimitAreAccepted(t *testing.T) {
	full := strings.Repeat("x", 1000)
	for _, in := range [][]byte{
		client(binary_, full),
		join(client(textBegin, full), client(ping, strings.Repeat("p", 125)), client(more, ""), client(last, "")),
		join(client(textBegin, full[:1]), client(pong, "p"), client(last, full[1:])),
	} {
		r := Reader{Max: 1000}
		got, err := feed(t, &r, join(in, in))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(got); n < 2 || got[n-1].payload != full {
			t.Fatalf("got %v", got)
		}
	}
}

func TestTheLimitMayBeMinusOneZeroOrChange(t *testing.T) {
	var zero Reader
	got, err := feed(t, &zero, join(client(text, ""), client(ping, "p")))
	if err != nil {
		t.Fatal(err)
	}
	wantEvents(t, got, event{Text, 0, ""}, event{Ping, 0, "p"})
	_, err = feed(t, &zero, client(text, "a"))
	wantCode(t, err, wire.TooBig)

	r := Reader{Max: -1}
	if _, err := feed(t, &r, client(binaryBegin, strings.Repeat("x", 1<<20))); err != nil {
		t.Fatal(err)
	}
	r.Max = 1000 // less than has come
	_, err = feed(t, &r, client(more, ""))
	wantCode(t, err, wire.TooBig)

	r = Reader{Max: 1}
	feed(t, &r, client(text, "a"))
	r.Max = 2
	if got, err = feed(t, &r, client(text, "ab")); err != nil {
		t.Fatal(err)
	}
	wantEvents(t, got, event{Text, 0, "ab"})

	r = Reader{Max: -1}
	feed(t, &r, client(binaryBegin, "a"))
	_, err = feed(t, &r, claim(last, math.MaxInt64)) // the sum is over any int
	wantCode(t, err, wire.TooBig)
}

func TestAHugeClaimAllocatesNothing(t *testing.T) {
	in := claim(binary_, 1<<30)
	var m Message
	if n := testing.AllocsPerRun(100, func() {
		r := Reader{Max: 64 << 10}
		if _, err := r.Next(in, &m); err != error(errTooBig) {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a refused claim of 1 GiB allocates %v times", n)
	}

	// Where the limit allows it, only a few bytes of state. What the rest of the
	// process allocates meanwhile counts, too, so the least of some tries does.
	var r Reader
	least := uint64(math.MaxUint64)
	for range 5 {
		r = Reader{Max: -1}
		least = min(least, uint64(allocated(func() { r.Next(in, &m) })))
	}
	if least > 1<<10 {
		t.Errorf("an accepted claim of 1 GiB allocates %d bytes", least)
	}
	runtime.KeepAlive(&r)
}

func TestBuffersGrowWithWhatArrivedNotWithTheClaim(t *testing.T) {
	for _, first := range []byte{binary_, binaryBegin} {
		r := Reader{Max: 1 << 30}
		var m Message
		r.Next(claim(first, 1<<30), &m)
		if got := cap(r.part.data); got != 0 {
			t.Fatalf("nothing arrived, buffer has %d", got)
		}
		piece := make([]byte, 100)
		for arrived := len(piece); arrived < 1<<20; arrived += len(piece) {
			r.Next(piece, &m)
			if got := cap(r.part.data); got > max(2*arrived, minBuffer) {
				t.Fatalf("%d bytes arrived, buffer has %d", arrived, got)
			}
		}
	}

	// And not over a claim, nor over the limit.
	r := Reader{Max: 1000}
	in := client(binary_, strings.Repeat("x", 900))
	feed(t, &r, in[:len(in)-1], 600)
	if got := cap(r.part.data); got != 900 {
		t.Errorf("buffer of %d bytes for a message of 900", got)
	}
	r = Reader{Max: 1000}
	feed(t, &r, join(client(binaryBegin, strings.Repeat("x", 600)), client(more, "y")))
	if got := cap(r.part.data); got != 1000 {
		t.Errorf("buffer of %d bytes with a limit of 1000", got)
	}
}

func TestAMillionEmptyFragmentsDoNotGrow(t *testing.T) {
	r := Reader{Max: 64 << 10}
	feed(t, &r, client(textBegin, ""))
	fragment := client(more, "")
	in := bytes.Repeat(fragment, 1000)
	var m Message
	got := allocated(func() {
		for range 1000 {
			if n, err := r.Next(in, &m); err != nil || n != len(in) {
				t.Fatal(n, err)
			}
		}
	})
	if got > 4<<10 {
		t.Errorf("a million empty fragments allocate %d bytes", got)
	}
	if !r.Partial() {
		t.Error("Partial is false: nobody could end this")
	}
}

func TestAMillionTinyFragmentsEndAtTheLimit(t *testing.T) {
	r := Reader{Max: 64 << 10}
	if _, err := feed(t, &r, client(binaryBegin, "")); err != nil {
		t.Fatal(err)
	}
	fragment := client(more, "x")
	in := make([]byte, len(fragment))
	var m Message
	var err error
	sent := 0
	grown := allocated(func() {
		for ; err == nil && sent < 1_000_000; sent++ {
			copy(in, fragment)
			_, err = r.Next(in, &m)
		}
	})
	wantCode(t, err, wire.TooBig)
	if sent != 64<<10+1 {
		t.Errorf("refused at fragment %d", sent)
	}
	if grown > 256<<10 {
		t.Errorf("64 KiB in fragments of one byte allocate %d bytes", grown)
	}
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestWholeFramesAreReadInPlaceWithoutAllocation(t *testing.T) {
	frames := join(client(text, "grüß"), client(ping, "p"), client(binary_, strings.Repeat("x", 70_000)), client(pong, ""), client(text, ""))
	in := make([]byte, len(frames))
	r := Reader{Max: 1 << 20}
	if n := testing.AllocsPerRun(100, func() {
		copy(in, frames)
		var m Message
		for rest := in; len(rest) > 0; {
			n, err := r.Next(rest, &m)
			if err != nil || m.Op == 0 {
				t.Fatal(m.Op, err)
			}
			if len(m.Payload) > 0 && &m.Payload[0] != &rest[n-len(m.Payload)] {
				t.Fatal("the payload does not lie in the input")
			}
			rest = rest[n:]
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestControlFramesInsideAMessageAllocateNothing(t *testing.T) {
	r := Reader{Max: 1000}
	feed(t, &r, client(textBegin, "begin"))
	frame := client(ping, "ping")
	in := make([]byte, len(frame))
	var m Message
	if n := testing.AllocsPerRun(100, func() {
		copy(in, frame)
		if _, err := r.Next(in, &m); err != nil || string(m.Payload) != "ping" {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAnIdleReaderIsTwoWords(t *testing.T) {
	if got := unsafe.Sizeof(Reader{}); got > 2*unsafe.Sizeof(uintptr(0)) {
		t.Errorf("a Reader is %d bytes", got)
	}
	for _, in := range [][]byte{
		client(text, "split"), client(ping, "split"), client(closing, "\x03\xe8"), client(closing, "\x03"), client(text, "\xff"),
		join(client(binaryBegin, "a"), client(ping, "b"), client(last, "c")),
	} {
		r := Reader{Max: 1000}
		feed(t, &r, in, everyByte(in)...)
		if r.part != nil && r.part != &ended {
			t.Errorf("after % x the Reader keeps its buffers", in)
		}
	}
}

func TestHeadersAreAsLongAsHeaderLenSaysAndReadBack(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 65537, 1 << 24, math.MaxInt32} {
		h := AppendHeader([]byte("before"), Binary, n)[len("before"):]
		if len(h) != HeaderLen(n) {
			t.Errorf("%d: header of %d bytes, HeaderLen %d", n, len(h), HeaderLen(n))
		}
		if h[0] != 0x82 || h[1]&maskBit != 0 {
			t.Errorf("%d: header % x", n, h)
		}
		h[1] |= maskBit
		r := Reader{Max: -1}
		f, used, err := r.parse(append(h, 0, 0, 0, 0))
		if err != nil || used != len(h)+4 || f.size != n {
			t.Errorf("%d: read back as %d, %v", n, f.size, err)
		}
	}
	if got := AppendFrame([]byte("x"), Text, []byte("hi")); string(got) != "x\x81\x02hi" {
		t.Errorf("frame %q", got)
	}
}

func TestCloseTextIsCutOnARuneBorder(t *testing.T) {
	a := strings.Repeat("a", 200)
	for _, c := range []struct {
		code       wire.Code
		text, want string
	}{
		{wire.GoingAway, "", "\x88\x02\x03\xe9"},
		{wire.Kicked, "bye", "\x88\x05\x11\x3abye"},
		{wire.Normal, a[:123], "\x88\x7d\x03\xe8" + a[:123]},
		{wire.Normal, a, "\x88\x7d\x03\xe8" + a[:123]},
		{wire.Normal, a[:122] + "é", "\x88\x7c\x03\xe8" + a[:122]},
		{wire.Normal, a[:121] + "é", "\x88\x7d\x03\xe8" + a[:121] + "é"},
		{wire.Normal, a[:120] + "🌍", "\x88\x7a\x03\xe8" + a[:120]},
		{wire.Normal, "a\xffb", "\x88\x07\x03\xe8a\uFFFDb"},
		{wire.Normal, strings.Repeat("\xff", 500), "\x88\x05\x03\xe8\uFFFD"},
		{wire.NoStatus, "lost", "\x88\x00"},
		{0, "lost", "\x88\x00"},
	} {
		if got := AppendClose(nil, c.code, c.text); string(got) != c.want {
			t.Errorf("%d %q:\ngot  %q\nwant %q", c.code, c.text, got, c.want)
		}
	}
}

func TestUnmaskingInPiecesIsUnmaskingTheWhole(t *testing.T) {
	key := [4]byte{0x12, 0x34, 0x56, 0x78}
	in := make([]byte, 200)
	want := make([]byte, len(in))
	for i := range in {
		in[i] = byte(i * 7)
		want[i] = in[i] ^ key[i%4]
	}
	for a := range len(in) {
		for b := a; b < len(in); b += 3 {
			got := bytes.Clone(in)
			k := unmask(got[:a], binary.LittleEndian.Uint32(key[:]))
			k = unmask(got[a:b], k)
			unmask(got[b:], k)
			if !bytes.Equal(got, want) {
				t.Fatalf("cut at %d and %d", a, b)
			}
		}
	}
}

func BenchmarkNext128(b *testing.B) {
	in := client(binary_, strings.Repeat("x", 128))
	r := Reader{Max: 64 << 10}
	var m Message
	b.SetBytes(128)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Next(in, &m); err != nil || m.Op != Binary {
			b.Fatal(err)
		}
	}
}

// BenchmarkNextText128 copies the frame first, since Next unmasks it in place.
func BenchmarkNextText128(b *testing.B) {
	frame := client(text, strings.Repeat("x", 128))
	in := make([]byte, len(frame))
	r := Reader{Max: 64 << 10}
	var m Message
	b.SetBytes(128)
	b.ReportAllocs()
	for b.Loop() {
		copy(in, frame)
		if _, err := r.Next(in, &m); err != nil || m.Op != Text {
			b.Fatal(err)
		}
	}
}

// BenchmarkNextSplit128 is a frame whose payload comes in two pieces.
func BenchmarkNextSplit128(b *testing.B) {
	in := client(binary_, strings.Repeat("x", 128))
	r := Reader{Max: 64 << 10}
	var m Message
	b.SetBytes(128)
	b.ReportAllocs()
	for b.Loop() {
		r.Next(in[:50], &m)
		if _, err := r.Next(in[50:], &m); err != nil || m.Op != Binary {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendFrame(b *testing.B) {
	payload := bytes.Repeat([]byte("x"), 128)
	dst := make([]byte, 0, 256)
	b.SetBytes(128)
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendFrame(dst[:0], Text, payload)
	}
}

func BenchmarkUnmask4096(b *testing.B) {
	in := make([]byte, 4096)
	b.SetBytes(4096)
	for b.Loop() {
		unmask(in, 0x12345678)
	}
}

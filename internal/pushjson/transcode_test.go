package pushjson

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// bombs are the inputs that kill or hurt a process whose decoder is given them.
var bombs = map[string][]byte{
	"array32 with a huge count in a map": []byte("\x81\xa1A\xdd\xff\xff\xff\xff"),
	"array32 of 2^31-1":                  []byte("\xdd\x7f\xff\xff\xff"),
	"array32 of 2^31-1 and something":    []byte("\xdd\x7f\xff\xff\xff\x01\x02\x03"),
	"array16 with a huge count":          []byte("\xdc\xff\xff\x01"),
	"map32 with a huge count":            []byte("\xdf\xff\xff\xff\xff"),
	"map32 of 2^31, twice as many items": []byte("\xdf\x80\x00\x00\x00\x01\x02\x03\x04"),
	"map32 of 2^31-1 in an array":        []byte("\x91\xdf\x7f\xff\xff\xff\xa1a\x01"),
	"map16 with a huge count":            []byte("\xde\xff\xff\xa1a\x01"),
	"bin32 with a huge length":           []byte("\x81\xa1C\xc6\xff\xff\xff\xff"),
	"bin32 of 2^31-1":                    []byte("\xc6\x7f\xff\xff\xff"),
	"array32 of a million structs":       []byte("\x81\xa1D\xdd\x00\x0f\x42\x40"),
	"map32 of strings":                   []byte("\x81\xa1S\xdf\xff\xff\xff\xff\xa1a"),
	"str32 with a huge length":           []byte("\xdb\xff\xff\xff\xff12345"),
	"three million nested arrays":        bytes.Repeat([]byte{0x91}, 3_000_000),
	"a million in a field to be skipped": append(append([]byte("\x81\xa1z"), bytes.Repeat([]byte{0x91}, 1_000_000)...), 0),
	"seventeen nested arrays":            append(bytes.Repeat([]byte{0x91}, 16), 0x90),
	"seventeen nested maps":              append(bytes.Repeat([]byte("\x81\xa1a"), 17), 0),
	"maps nested as keys":                append(bytes.Repeat([]byte{0x81}, 17), bytes.Repeat([]byte{0}, 18)...),
	"counts that fit only one by one":    []byte("\x93\x93\x93\x93\x01\x02"),
	"an extension's body read as a map":  []byte("\xc7\x05\x00\xdf\xff\xff\xff\xff"),
	"the same as a fixext":               []byte("\xd7\x05\xdf\xff\xff\xff\xff\x00\x00\x00"),
	"ext32 with a huge length":           []byte("\xc9\xff\xff\xff\xff\x01"),
}

func TestNoBombPassesTheScan(t *testing.T) {
	for name, bomb := range bombs {
		if n, err := Scan(bomb, maxDepth); err == nil {
			t.Errorf("%s: accepted, %d bytes", name, n)
		}
		allocs(t, 0, name, func() { Scan(bomb, maxDepth) })
	}
}

// The reason why Scan takes no extension: asked for a map, the library skips
// the head of one and reads its body.
func TestTheLibraryReadsAnExtensionsBodyAsAMap(t *testing.T) {
	var m map[string]int
	if err := msgpack.Unmarshal([]byte("\xd4\x00\x81\xa1a\x01"), &m); err != nil || m["a"] != 1 {
		t.Skipf("it no longer does: %v, %v", m, err)
	}
}

func TestTheScanTakesWhatTheLibraryMakes(t *testing.T) {
	for _, v := range []any{
		nil, true, false, 1, -1, -33, 200, 300, -300, 70000, -70000, int64(1) << 40, int64(-1) << 40, uint64(math.MaxUint64), 1.5, float32(2),
		"", "s", strings.Repeat("s", 31), strings.Repeat("s", 32), strings.Repeat("s", 300), strings.Repeat("s", 70000),
		[]byte{}, make([]byte, 300), make([]byte, 70000), []int{}, make([]int, 15), make([]int, 16), make([]int, 70000),
		map[string]int{}, map[string]int{"a": 1}, manyKeys(20), manyKeys(70000), map[int]bool{-5: true, 70000: false},
	} {
		b, err := msgpack.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		for _, more := range []string{"", "\xc1 and more"} {
			if n, err := Scan(append(bytes.Clone(b), more...), maxDepth); err != nil || n != len(b) {
				t.Errorf("%T: %d bytes of %d, %v", v, n, len(b), err)
			}
		}
		for cut := range min(len(b), 200) {
			if _, err := Scan(b[:cut], maxDepth); err == nil {
				t.Errorf("%T: accepted the first %d bytes of %d", v, cut, len(b))
			}
		}
	}
	if _, err := Scan(append(bytes.Repeat([]byte{0x91}, 16), 0), maxDepth); err != nil {
		t.Errorf("sixteen nested arrays: %v", err)
	}
	for depth, want := range []bool{false, false, true, true} {
		if _, err := Scan([]byte{0x91, 0x90}, depth); (err == nil) != want {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
}

func manyKeys(n int) map[string]int {
	m := map[string]int{}
	for i := range n {
		m[strconv.Itoa(i)] = i
	}
	return m
}

func TestTheScanIsLinear(t *testing.T) {
	// Every level claims as much as is left; a scan that looked at the claimed
	// part of each would take time square in the input.
	var b []byte
	for range maxDepth - 1 {
		b = append(b, 0xdd, 0, 0, 0, 1)
	}
	b = append(b, 0xdd, 0, 0x0f, 0x42, 0x40)
	b = append(b, make([]byte, 1_000_000)...)
	start := time.Now()
	if n, err := Scan(b, maxDepth); err != nil || n != len(b) {
		t.Fatal(n, err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("a million values took %v", took)
	}
}

func TestJSONComesBackFromMsgpackAsItWent(t *testing.T) {
	values := []string{
		`null`, `true`, `false`, `0`, `-0`, `1`, `-1`, `127`, `128`, `255`, `256`, `65535`, `65536`, `4294967295`, `4294967296`,
		`-32`, `-33`, `-128`, `-129`, `-32768`, `-32769`, `-2147483648`, `-2147483649`, `9223372036854775807`, `9223372036854775808`,
		`-9223372036854775808`, `18446744073709551615`, `0.1`, `-1.5`, `1e-7`, `1e+21`, `5e-324`, `1.7976931348623157e+308`, `0.000001`,
		`""`, `"a"`, str(31), str(32), str(255), str(256), str(65535), str(65536), `"é\n\"\\\u0000\u2028\u003c日🎉"`,
		`[]`, `{}`, `[[],{}]`, `{"":{"a":[1,{"b":null}]}}`, `{"a":1,"a":2}`,
		list1(15, "1"), list1(16, "1"), list1(65535, "1"), list1(65536, "1"), nest(16, "1"),
		list1(40, list1(40, list1(40, `"x"`))),
	}
	for _, in := range values {
		b, err := AppendMsgpack([]byte("before"), []byte(in))
		if err != nil {
			t.Errorf("%.60s: %v", in, err)
			continue
		}
		b = bytes.TrimPrefix(b, []byte("before"))
		if n, err := Scan(b, maxDepth); err != nil || n != len(b) {
			t.Errorf("%.60s: Scan says %d of %d bytes, %v", in, n, len(b), err)
		}
		back, err := AppendJSON([]byte("before"), b)
		if err != nil || string(back) != "before"+in {
			t.Errorf("%.60s came back as %.60s, %v", in, back, err)
		}
		if in == "-0" || strings.Contains(in, `"a":1,"a":2`) {
			continue // the helper loses the sign, and the second a key
		}
		if want := message(t, Msgpack, in); !bytes.Equal(b, want) && !strings.Contains(in, `{"`) { // a map's order is chance
			t.Errorf("%.60s is %.20x, the library makes %.20x", in, b, want)
		}
	}
}

func TestDeepJSONGoesToMsgpackInLinearTime(t *testing.T) {
	in := `1`
	for range 9000 {
		in = "[" + in + strings.Repeat(",0", 16) + "]"
	}
	b, err := AppendMsgpack(nil, []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := Scan(b, 9000); err != nil || n != len(b) {
		t.Errorf("Scan says %d of %d bytes, %v", n, len(b), err)
	}
	if _, err := AppendMsgpack(nil, []byte(nest(10001, ""))); err == nil {
		t.Error("took JSON that encoding/json does not")
	}
}

func TestNumbersAndStringsThatMsgpackHasNotAreRewritten(t *testing.T) {
	for in, want := range map[string]any{
		`18446744073709551616`:               18446744073709551616.0,
		`-9223372036854775809`:               -9223372036854775809.0,
		`1.0`:                                1.0,
		`1e2`:                                100.0,
		`1e999`:                              "1e999",
		`-1e999`:                             "-1e999",
		`1` + strings.Repeat("0", 400):       "1" + strings.Repeat("0", 400),
		`1e-999`:                             0.0,
		`"\ud83c\udf89\ud800x\udc00"`:        "🎉\ufffdx\ufffd",
		"\"a\xffb\"":                         "a\ufffdb",
		`"` + strings.Repeat(`\n`, 40) + `"`: strings.Repeat("\n", 40),
	} {
		b, err := AppendMsgpack(nil, []byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		var got any
		if err := msgpack.Unmarshal(b, &got); err != nil || got != want {
			t.Errorf("%.40s is %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{``, `{`, `1 2`, `nul`, `[1,]`} {
		if b, err := AppendMsgpack([]byte("x"), []byte(in)); err == nil || string(b) != "x" {
			t.Errorf("%q: %q, %v", in, b, err)
		}
	}
}

func TestMsgpackBecomesTheJSONOfEncodingJSON(t *testing.T) {
	for _, v := range []any{
		float32(0.1), float32(1e-6), float32(9.9e-7), float32(1e21), float32(3.4e38), 1e20, 1e21, 123456789.125, math.SmallestNonzeroFloat64,
		math.Copysign(0, -1), []byte("\x00\xff"), map[string]any{"b": []byte{}}, "<&>\u2029\x01\x7f\b\f", int8(-128), uint16(9), []any{nil, true, "x"},
		map[int]string{-5: "a"}, map[string]any{"k\n": map[string]any{"k": []any{}}},
	} {
		want, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := msgpack.Marshal(v)
		if got, err := AppendJSON(nil, b); err != nil || string(got) != string(want) {
			t.Errorf("%v: got %s, %v, want %s", v, got, err, want)
		}
	}
	for _, in := range []string{
		"\xca\x7f\xc0\x00\x00", "\xca\x7f\x80\x00\x00", "\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", "\xcb\xff\xf0\x00\x00\x00\x00\x00\x00", // NaN and infinities
		"\xa1\xff", "\x81\xa1\xff\x01", // not UTF-8
		"\x81\xc0\x01", "\x81\xc2\x01", "\x81\xc4\x01a\x01", "\x81\x90\x01", "\x81\x80\x01", "\x81\xca\x00\x00\x00\x00\x01", // keys
		"\xd4\x00\x00", "\xd6\xff\x00\x00\x00\x00", "\xc1", "", "\x01\x02", "\x92\x01", // what Scan refuses
	} {
		if b, err := AppendJSON([]byte("x"), []byte(in)); err == nil || string(b) != "x" {
			t.Errorf("%q: %q, %v", in, b, err)
		}
	}
}

func TestStringsAreQuotedAsEncodingJSONDoes(t *testing.T) {
	check := func(s string) {
		t.Helper()
		want, _ := json.Marshal(s)
		if got := AppendQuoted(nil, s); string(got) != string(want) {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
		if got := AppendQuoted(nil, []byte(s)); string(got) != string(want) {
			t.Errorf("%q as bytes: got %s, want %s", s, got, want)
		}
		var back string
		if err := json.Unmarshal(want, &back); err != nil {
			t.Fatal(err)
		}
		if got := unquote(nil, want[1:len(want)-1]); string(got) != back {
			t.Errorf("%s: unquoted %q, want %q", want, got, back)
		}
	}
	for c := range 256 {
		check(string([]byte{byte(c)}))
		check(string([]byte{'a', byte(c), 'b'}))
		check(string(rune(0x2000 + c)))
	}
	const alphabet = "ab\"\\\n<é\xe2\x80\xa8\xf0\x9f\x8e\x89"
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := make([]byte, r.IntN(12))
		for i := range b {
			b[i] = alphabet[r.IntN(len(alphabet))]
		}
		check(string(b))
	}
}

func TestFloatsAreWrittenAsEncodingJSONDoes(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		f, g := math.Float64frombits(r.Uint64()), math.Float32frombits(r.Uint32())
		if !math.IsNaN(f) && !math.IsInf(f, 0) {
			want, _ := json.Marshal(f)
			if got := appendFloat(nil, f, 64); string(got) != string(want) {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		if h := float64(g); !math.IsNaN(h) && !math.IsInf(h, 0) {
			want, _ := json.Marshal(g)
			if got := appendFloat(nil, h, 32); string(got) != string(want) {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
}

// parse decodes base64 into the very bytes it reads.
func TestBase64DecodesInPlace(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for n := range 300 {
		want := make([]byte, n)
		for i := range want {
			want[i] = byte(r.Uint32())
		}
		s := []byte(base64.StdEncoding.EncodeToString(want))
		for range r.IntN(4) { // line ends are allowed anywhere
			at := r.IntN(len(s) + 1)
			s = append(s[:at:at], append([]byte("\r\n"), s[at:]...)...)
		}
		got, err := base64.StdEncoding.Decode(s, s)
		if err != nil || !bytes.Equal(s[:got], want) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestWhatMsgpackHoldsIsAtMostSixTimesAsLongInJSON(t *testing.T) {
	for _, in := range [][]byte{
		bytes.Repeat([]byte{0xc2}, 15), bytes.Repeat([]byte{0xff}, 15), bytes.Repeat([]byte{0xca, 0x60, 0xad, 0x78, 0xec}, 15),
	} {
		b, err := AppendJSON(nil, append([]byte{0x9f}, in...))
		if err != nil || len(b) > 6*(1+len(in)) {
			t.Errorf("%x: %d bytes, %v", in, len(b), err)
		}
	}
	if b, _ := AppendJSON(nil, append([]byte{0xda, 1, 0}, make([]byte, 256)...)); len(b) > 6*259 {
		t.Errorf("a string of NULs: %d bytes", len(b))
	}
}

func TestMsgpackOfTheLibraryAndOursAreTheSameValues(t *testing.T) {
	in := `{"a":[1,-1,300,1.5,"x",null,true,{"b":[]}],"c":{"d":18446744073709551615}}`
	ours, err := AppendMsgpack(nil, []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := msgpack.Unmarshal(ours, &got); err != nil {
		t.Fatal(err)
	}
	if err := msgpack.Unmarshal(message(t, Msgpack, in), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

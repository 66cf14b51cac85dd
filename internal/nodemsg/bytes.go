package nodemsg

import (
	"encoding/binary"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/embedpush/push/internal/pushjson"
)

// maxDepth is how deep a body may be nested. This version needs 4.
const maxDepth = 16

// Codes of msgpack, of which the length or the value follows.
const (
	codeNil     = 0xc0
	codeBin8    = 0xc4
	codeFloat64 = 0xcb
	codeUint8   = 0xcc
	codeStr8    = 0xd9
	codeList16  = 0xdc
)

func appendUint(dst []byte, u uint64) []byte {
	switch {
	case u < 0x80:
		return append(dst, byte(u))
	case u <= math.MaxUint8:
		return append(dst, codeUint8, byte(u))
	case u <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, codeUint8+1), uint16(u))
	case u <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, codeUint8+2), uint32(u))
	}
	return binary.BigEndian.AppendUint64(append(dst, codeUint8+3), u)
}

func appendFloat(dst []byte, f float64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, codeFloat64), math.Float64bits(f))
}

func appendList(dst []byte, n int) []byte {
	switch {
	case n < 16:
		return append(dst, 0x90|byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, codeList16), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, codeList16+1), uint32(n))
}

func appendText[S string | []byte](dst []byte, s S) []byte {
	if len(s) < 32 {
		dst = append(dst, 0xa0|byte(len(s)))
	} else {
		dst = appendSize(dst, codeStr8, len(s))
	}
	return append(dst, s...)
}

func appendBin(dst, b []byte) []byte {
	return append(appendSize(dst, codeBin8, len(b)), b...)
}

// appendSize appends a code that has its size in 1, 2 or 4 bytes; code is the
// first of the three.
func appendSize(dst []byte, code byte, n int) []byte {
	switch {
	case n <= math.MaxUint8:
		return append(dst, code, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, code+1), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, code+2), uint32(n))
}

func appendTexts(dst []byte, list []string) []byte {
	dst = appendList(dst, len(list))
	for _, s := range list {
		dst = appendText(dst, s)
	}
	return dst
}

// appendCleans appends what of a list a peer takes.
func appendCleans(dst []byte, list []string, most, longest int) []byte {
	list = list[:min(len(list), most)]
	dst = appendList(dst, len(list))
	for _, s := range list {
		dst = appendText(dst, clean(s, longest))
	}
	return dst
}

// clean is s as UTF-8 of at most longest bytes.
func clean(s string, longest int) string {
	if len(s) <= longest && utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s[:min(len(s), longest)], "") // without a rune that was cut in two
}

// kind is what a msgpack value is.
type kind uint8

const (
	broken kind = iota // something that no body has
	null
	unsigned
	float
	text
	bin
	list
)

// reader reads a body from the front. What is wrong is remembered, and from
// then on there is nothing to read.
type reader struct {
	b       []byte
	bad     bool
	trusted bool   // it was read before: UTF-8 and JSON are valid
	deep    bool   // some JSON in it is nested very deep
	shared  string // a value, whose strings are to be parts of it
	behind  int    // bytes behind that value
}

// read begins a body that is one value.
func read(body []byte) (r reader, err error) {
	if n, err := pushjson.Scan(body, maxDepth); err != nil || n != len(body) {
		return reader{}, ErrMalformed
	}
	return reader{b: body}, nil
}

// done reports whether all was read and nothing was wrong.
func (r *reader) done() bool { return !r.bad && len(r.b) == 0 }

func (r *reader) fail() { r.b, r.bad = nil, true }

// take cuts the next n bytes off.
func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.fail()
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

// number reads n bytes, 1, 2, 4 or 8, as a number.
func (r *reader) number(n int) uint64 {
	b := r.take(n)
	if b == nil {
		return 0
	}
	switch n {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	}
	return binary.BigEndian.Uint64(b)
}

// head reads a value's kind, and its value, bits, bytes or items.
func (r *reader) head() (kind, uint64) {
	if len(r.b) == 0 {
		r.fail()
		return broken, 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	switch {
	case c < 0x80:
		return unsigned, uint64(c)
	case c >= 0x90 && c < 0xa0:
		return list, uint64(c & 0x0f)
	case c >= 0xa0 && c < 0xc0:
		return text, uint64(c & 0x1f)
	case c == codeNil:
		return null, 0
	case c >= codeBin8 && c < codeBin8+3:
		return bin, r.number(1 << (c - codeBin8))
	case c == codeFloat64:
		return float, r.number(8)
	case c >= codeUint8 && c < codeUint8+4:
		return unsigned, r.number(1 << (c - codeUint8))
	case c >= codeStr8 && c < codeStr8+3:
		return text, r.number(1 << (c - codeStr8))
	case c == codeList16 || c == codeList16+1:
		return list, r.number(2 << (c - codeList16))
	}
	r.fail()
	return broken, 0
}

// isList reports whether a list is next.
func (r *reader) isList() bool {
	return len(r.b) > 0 && (r.b[0]&0xf0 == 0x90 || r.b[0]&^1 == codeList16)
}

// isUint reports whether an unsigned integer is next.
func (r *reader) isUint() bool {
	return len(r.b) > 0 && (r.b[0] < 0x80 || r.b[0]&^3 == codeUint8)
}

// isNull reads a nil, if one is next.
func (r *reader) isNull() bool {
	if len(r.b) == 0 || r.b[0] != codeNil {
		return false
	}
	r.b = r.b[1:]
	return true
}

// null reads a nil.
func (r *reader) null() {
	if !r.isNull() {
		r.fail()
	}
}

// uint reads an unsigned integer of at most limit.
func (r *reader) uint(limit uint64) uint64 {
	k, v := r.head()
	if k != unsigned || v > limit {
		r.fail()
		return 0
	}
	return v
}

func (r *reader) rate() float64 {
	switch k, v := r.head(); {
	case k == unsigned && v == 0:
		return 0
	case k == float:
		if f := math.Float64frombits(v); f >= MinRate && f <= MaxRate {
			return f
		}
	}
	r.fail()
	return 0
}

// list reads the number of items of a list, at most most, and at most as many
// as there are bytes left.
func (r *reader) list(most int) int {
	k, v := r.head()
	if k != list || v > uint64(most) || v > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(v)
}

// fields begins a list of at least n, and returns how many more it has.
func (r *reader) fields(n int) (more int) {
	k, v := r.head()
	if k != list || v < uint64(n) || v > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(v) - n
}

// skip passes n values.
func (r *reader) skip(n int) {
	for range n {
		size, err := pushjson.Scan(r.b, maxDepth)
		if err != nil {
			r.fail()
			return
		}
		r.b = r.b[size:]
	}
}

// item reads a nil, or the bytes of a text or bin.
func (r *reader) item() (k kind, b []byte) {
	k, v := r.head()
	switch {
	case k == null:
		return k, nil
	case k != text && k != bin || v > uint64(len(r.b)):
		r.fail()
		return broken, nil
	}
	return k, r.take(int(v))
}

// text reads a text of at most longest bytes.
func (r *reader) text(longest int) []byte {
	k, b := r.item()
	if k != text || len(b) > longest || !r.trusted && !utf8.Valid(b) {
		r.fail()
		return nil
	}
	return b
}

// name reads a text that may not be empty.
func (r *reader) name() string {
	b := r.text(MaxName)
	if len(b) == 0 {
		r.fail()
	}
	return string(b)
}

// texts reads a list of texts, as parts of one string.
func (r *reader) texts(most, longest int) []string {
	if r.shared == "" {
		r.share()
		defer r.unshare()
	}
	n := r.list(most)
	if n == 0 {
		return nil
	}
	all := make([]string, n)
	for i := range all {
		all[i] = r.string(r.text(longest))
	}
	return all
}

// share makes the strings of the next value, until unshare, parts of one.
func (r *reader) share() {
	n, err := pushjson.Scan(r.b, maxDepth)
	if err != nil {
		r.fail()
		return
	}
	r.shared, r.behind = string(r.b[:n]), len(r.b)-n
}

func (r *reader) unshare() { r.shared = "" }

// string is b, which was read last, as a string.
func (r *reader) string(b []byte) string {
	if r.shared == "" || r.bad {
		return string(b)
	}
	end := len(r.shared) - (len(r.b) - r.behind)
	return r.shared[end-len(b) : end]
}

// uints reads a list of integers.
func (r *reader) uints(most int) []uint64 {
	n := r.list(most)
	if n == 0 {
		return nil
	}
	all := make([]uint64, n)
	for i := range all {
		all[i] = r.uint(math.MaxUint64)
	}
	return all
}

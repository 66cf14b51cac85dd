package pushjson

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"strconv"
	"unicode/utf8"
)

// maxDepth is how deep msgpack from a socket may be nested.
const maxDepth = 16

var (
	errMsgpack = errors.New("pushjson: msgpack is cut off or claims more than there is")
	errDepth   = errors.New("pushjson: msgpack is nested too deep")
	errExt     = errors.New("pushjson: msgpack has an extension type or a code that is none")
	errText    = errors.New("pushjson: msgpack string is not UTF-8")
	errFloat   = errors.New("pushjson: msgpack number has no JSON")
	errKey     = errors.New("pushjson: msgpack map has a key that is neither string nor integer")
)

// Scan says whether the msgpack value that b begins with may be given to a
// decoder, and how long it is. It refuses a length or a count that the bytes
// left cannot hold, more than depth maps and arrays inside each other (use 16
// for what came over a network), and every extension type. It is linear and
// does not allocate.
//
// After it a decoder allocates at most in proportion to len(b), which
// vmihailenco/msgpack v5.4.1 without it does not: eight bytes make it allocate
// 2^32 items. Extensions must go because that library, asked for a map, skips
// an extension's head and takes what Scan would have to pass over as opaque
// for the map's own.
func Scan(b []byte, depth int) (n int, err error) {
	return scan(b, 1, depth)
}

// scan scans count values.
func scan(b []byte, count uint64, depth int) (n int, err error) {
	for ; count > 0; count-- {
		if n < len(b) && (b[n] < 0x80 || b[n] >= 0xe0) { // a small integer, the most frequent of all
			n++
			continue
		}
		k, size, v := readHead(b[n:])
		n += size
		switch left := uint64(len(b) - n); k {
		case broken:
			return 0, errMsgpack
		case extension:
			return 0, errExt
		case text, bin:
			if v > left {
				return 0, errMsgpack
			}
			n += int(v)
		case list, object:
			if k == object {
				v *= 2
			}
			if v > left {
				return 0, errMsgpack
			}
			if depth <= 0 {
				return 0, errDepth
			}
			used, err := scan(b[n:], v, depth-1)
			if err != nil {
				return 0, err
			}
			n += used
		}
	}
	return n, nil
}

// AppendJSON appends one msgpack value as JSON, in the words of encoding/json.
// Bytes become a base64 string and integer keys strings of their digits. What
// Scan refuses at a depth of 16 is an error, and so are a string that is not
// UTF-8, NaN, an infinity, and a key that is neither string nor integer. In an
// error case dst is returned as it was.
func AppendJSON(dst, msgpack []byte) ([]byte, error) {
	if n, err := Scan(msgpack, maxDepth); err != nil {
		return dst, err
	} else if n != len(msgpack) {
		return dst, errMsgpack
	}
	out, _, err := appendJSON(dst, msgpack)
	if err != nil {
		return dst, err
	}
	return out, nil
}

// appendJSON appends the value that b begins with, which Scan has accepted,
// and returns how long it is.
func appendJSON(dst, b []byte) (_ []byte, n int, err error) {
	k, n, v := readHead(b)
	switch k {
	case null:
		return append(dst, "null"...), n, nil
	case no:
		return append(dst, "false"...), n, nil
	case yes:
		return append(dst, "true"...), n, nil
	case unsigned:
		return strconv.AppendUint(dst, v, 10), n, nil
	case signed:
		return strconv.AppendInt(dst, int64(v), 10), n, nil
	case float32bits:
		f := float64(math.Float32frombits(uint32(v)))
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return dst, n, errFloat
		}
		return appendFloat(dst, f, 32), n, nil
	case float64bits:
		f := math.Float64frombits(v)
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return dst, n, errFloat
		}
		return appendFloat(dst, f, 64), n, nil
	case text:
		s := b[n : n+int(v)]
		if !utf8.Valid(s) {
			return dst, n, errText
		}
		return AppendQuoted(dst, s), n + len(s), nil
	case bin:
		s := b[n : n+int(v)]
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, s)
		return append(dst, '"'), n + len(s), nil
	case list:
		dst = append(dst, '[')
		for i := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			var used int
			if dst, used, err = appendJSON(dst, b[n:]); err != nil {
				return dst, n, err
			}
			n += used
		}
		return append(dst, ']'), n, nil
	default: // object
		dst = append(dst, '{')
		for i := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			var used int
			if dst, used, err = appendJSONKey(dst, b[n:]); err != nil {
				return dst, n, err
			}
			n += used
			dst = append(dst, ':')
			if dst, used, err = appendJSON(dst, b[n:]); err != nil {
				return dst, n, err
			}
			n += used
		}
		return append(dst, '}'), n, nil
	}
}

func appendJSONKey(dst, b []byte) (_ []byte, n int, err error) {
	switch k, _, _ := readHead(b); k {
	case text:
		return appendJSON(dst, b)
	case unsigned, signed:
		dst, n, err = appendJSON(append(dst, '"'), b)
		return append(dst, '"'), n, err
	default:
		return dst, 0, errKey
	}
}

// kind is what a value is, in both dialects.
type kind uint8

const (
	broken kind = iota // msgpack: the head is cut off
	null
	no
	yes
	number      // JSON
	unsigned    // msgpack, as the three that follow
	signed      //
	float32bits //
	float64bits //
	text
	bin // msgpack
	list
	object
	extension // msgpack, with the code that is never used
)

// Codes that are written in more than one place.
const (
	codeNil     = 0xc0
	codeFalse   = 0xc2
	codeTrue    = 0xc3
	codeFloat64 = 0xcb // and 8 bytes

	maxHead = 5 // a code and a length of four bytes, the longest that appendHead makes
)

// wide is the code of each kind whose length follows in four bytes.
var wide = [...]byte{text: 0xdb, bin: 0xc6, list: 0xdd, object: 0xdf}

// readHead reads the head of the value that b begins with: its kind, the size
// of the head, and v, which is a number's value or bits, the bytes of a text
// or bin, the items of a list, the pairs of an object. Those follow the head
// and may not be there.
func readHead(b []byte) (k kind, size int, v uint64) {
	if len(b) == 0 {
		return broken, 0, 0
	}
	switch c := b[0]; {
	case c < 0x80:
		return unsigned, 1, uint64(c)
	case c >= 0xe0:
		return signed, 1, uint64(int8(c)) // sign and all
	case c < 0x90:
		return object, 1, uint64(c & 0xF)
	case c < 0xa0:
		return list, 1, uint64(c & 0xF)
	case c < 0xc0:
		return text, 1, uint64(c & 0x1F)
	}
	h := heads[b[0]-0xc0]
	if len(b) < 1+int(h.bytes) {
		return broken, 0, 0
	}
	switch h.bytes {
	case 1:
		v = uint64(b[1])
	case 2:
		v = uint64(binary.BigEndian.Uint16(b[1:]))
	case 4:
		v = uint64(binary.BigEndian.Uint32(b[1:]))
	case 8:
		v = binary.BigEndian.Uint64(b[1:])
	}
	if h.kind == signed {
		shift := 64 - 8*h.bytes
		v = uint64(int64(v<<shift) >> shift)
	}
	return h.kind, 1 + int(h.bytes), v
}

// heads holds what the codes from 0xc0 to 0xdf mean and how many bytes of a
// number or a length follow them.
var heads = [0x20]struct {
	kind  kind
	bytes uint8
}{
	{null, 0}, {extension, 0}, {no, 0}, {yes, 0}, // 0xc1 is never used
	{bin, 1}, {bin, 2}, {bin, 4},
	{extension, 0}, {extension, 0}, {extension, 0},
	{float32bits, 4}, {float64bits, 8},
	{unsigned, 1}, {unsigned, 2}, {unsigned, 4}, {unsigned, 8},
	{signed, 1}, {signed, 2}, {signed, 4}, {signed, 8},
	{extension, 0}, {extension, 0}, {extension, 0}, {extension, 0}, {extension, 0},
	{text, 1}, {text, 2}, {text, 4},
	{list, 2}, {list, 4},
	{object, 2}, {object, 4},
}

// appendHead appends the shortest head of a text or bin of n bytes, a list of
// n items or an object of n pairs.
func appendHead(dst []byte, k kind, n int) []byte {
	switch {
	case k == text && n < 32:
		return append(dst, 0xa0|byte(n))
	case k == list && n < 16:
		return append(dst, 0x90|byte(n))
	case k == object && n < 16:
		return append(dst, 0x80|byte(n))
	case (k == text || k == bin) && n <= math.MaxUint8:
		return append(dst, wide[k]-2, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, wide[k]-1), uint16(n))
	default:
		return binary.BigEndian.AppendUint32(append(dst, wide[k]), uint32(n))
	}
}

// appendUint appends u in the shortest form.
func appendUint(dst []byte, u uint64) []byte {
	switch {
	case u < 0x80:
		return append(dst, byte(u))
	case u <= math.MaxUint8:
		return append(dst, 0xcc, byte(u))
	case u <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, 0xcd), uint16(u))
	case u <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, 0xce), uint32(u))
	default:
		return binary.BigEndian.AppendUint64(append(dst, 0xcf), u)
	}
}

// appendInt appends n, which is negative, in the shortest form.
func appendInt(dst []byte, n int64) []byte {
	switch {
	case n >= -32:
		return append(dst, byte(n))
	case n >= math.MinInt8:
		return append(dst, 0xd0, byte(n))
	case n >= math.MinInt16:
		return binary.BigEndian.AppendUint16(append(dst, 0xd1), uint16(n))
	case n >= math.MinInt32:
		return binary.BigEndian.AppendUint32(append(dst, 0xd2), uint32(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, 0xd3), uint64(n))
	}
}

package pushjson

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxNesting is how deep JSON may be nested: as deep as encoding/json takes
// it, so that what passes here does not fail there.
const maxNesting = 10000

var errJSON = errors.New("pushjson: not one JSON value")

// AppendMsgpack appends one JSON value as msgpack. A number without fraction
// and exponent that fits an int64 or a uint64 becomes an integer, every other
// a float64, and one that no float64 can hold a string of its digits. As in
// encoding/json, what is no text in a string (a lone surrogate, a byte that is
// not UTF-8) becomes U+FFFD. In an error case dst is returned as it was.
func AppendMsgpack(dst, json []byte) ([]byte, error) {
	v, ok := jsonValue(json)
	if !ok {
		return dst, errJSON
	}
	dst, _ = appendMsgpack(dst, v, 0, 0)
	return dst, nil
}

// jsonValue returns the one JSON value that b holds between spaces.
func jsonValue(b []byte) ([]byte, bool) {
	from := skipSpace(b, 0)
	to := skipJSON(b, from, maxNesting)
	if to < 0 || skipSpace(b, to) != len(b) {
		return nil, false
	}
	return b[from:to:to], true
}

// wideDepth is the depth from which on the heads of maps and arrays have a
// fixed size: a narrow one is widened by moving what follows it, which done at
// every depth would take time square in the input.
const wideDepth = 32

// appendMsgpack appends the valid JSON value at b[i] and returns where it ends.
func appendMsgpack(dst, b []byte, i, depth int) ([]byte, int) {
	switch c := b[i]; c {
	case 'n':
		return append(dst, codeNil), i + len("null")
	case 'f':
		return append(dst, codeFalse), i + len("false")
	case 't':
		return append(dst, codeTrue), i + len("true")
	case '"':
		end := skipString(b, i)
		return appendText(dst, b[i+1:end-1]), end
	case '{', '[':
		k, closing := list, byte(']')
		if c == '{' {
			k, closing = object, '}'
		}
		at := len(dst)
		dst = append(dst, 0)
		if depth >= wideDepth {
			dst = append(dst, 0, 0, 0, 0)
		}
		body, n := len(dst), 0
		for i = skipSpace(b, i+1); b[i] != closing; i = skipSpace(b, i) {
			if n > 0 {
				i = skipSpace(b, i+1) // the comma
			}
			if k == object {
				dst, i = appendMsgpack(dst, b, i, depth)
				i = skipSpace(b, skipSpace(b, i)+1) // the colon
			}
			dst, i = appendMsgpack(dst, b, i, depth+1)
			n++
		}
		if depth >= wideDepth {
			dst[at] = wide[k]
			binary.BigEndian.PutUint32(dst[at+1:], uint32(n))
		} else {
			dst = putHead(dst, at, body, k, n)
		}
		return dst, i + 1
	default:
		end := skipNumber(b, i)
		return appendNumber(dst, b[i:end]), end
	}
}

// putHead puts the head of a k of n bytes or items at dst[at], in front of
// what has been written from body on.
func putHead(dst []byte, at, body int, k kind, n int) []byte {
	var buf [maxHead]byte
	head := appendHead(buf[:0], k, n)
	size := len(dst) - body
	if grow := at + len(head) - body; grow > 0 {
		dst = append(dst, buf[:grow]...) // any bytes: what follows overwrites them
	}
	copy(dst[at+len(head):], dst[body:body+size])
	copy(dst[at:], head)
	return dst[:at+len(head)+size]
}

// appendText appends what stands between the quotes of a JSON string.
func appendText(dst, s []byte) []byte {
	if bytes.IndexByte(s, '\\') < 0 && utf8.Valid(s) {
		return append(appendHead(dst, text, len(s)), s...)
	}
	at := len(dst)
	dst = unquote(append(dst, 0), s)
	return putHead(dst, at, at+1, text, len(dst)-at-1)
}

func appendNumber(dst, lit []byte) []byte {
	if !bytes.ContainsAny(lit, ".eE") && string(lit) != "-0" {
		if lit[0] == '-' {
			if n, err := strconv.ParseInt(string(lit), 10, 64); err == nil {
				return appendInt(dst, n)
			}
		} else if u, err := strconv.ParseUint(string(lit), 10, 64); err == nil {
			return appendUint(dst, u)
		}
	}
	f, err := strconv.ParseFloat(string(lit), 64)
	if err != nil {
		return append(appendHead(dst, text, len(lit)), lit...)
	}
	return binary.BigEndian.AppendUint64(append(dst, codeFloat64), math.Float64bits(f))
}

// skipJSON returns where the JSON value that begins at b[i] ends, or -1 if
// there is none that is valid and nested at most depth deep. It agrees with
// encoding/json, so it does not ask whether strings are UTF-8.
func skipJSON(b []byte, i, depth int) int {
	if i >= len(b) {
		return -1
	}
	c := b[i]
	switch c {
	case '"':
		return skipString(b, i)
	case 't':
		return skipLiteral(b, i, "true")
	case 'f':
		return skipLiteral(b, i, "false")
	case 'n':
		return skipLiteral(b, i, "null")
	case '{', '[':
	default:
		return skipNumber(b, i)
	}

	if depth == 0 {
		return -1
	}
	closing := c + 2 // in ASCII for both
	if i = skipSpace(b, i+1); i < len(b) && b[i] == closing {
		return i + 1
	}
	for {
		if c == '{' {
			if i >= len(b) || b[i] != '"' {
				return -1
			}
			if i = skipString(b, i); i < 0 {
				return -1
			}
			if i = skipSpace(b, i); i >= len(b) || b[i] != ':' {
				return -1
			}
			i = skipSpace(b, i+1)
		}
		if i = skipJSON(b, i, depth-1); i < 0 {
			return -1
		}
		i = skipSpace(b, i)
		switch {
		case i >= len(b):
			return -1
		case b[i] == closing:
			return i + 1
		case b[i] != ',':
			return -1
		}
		i = skipSpace(b, i+1)
	}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

func skipLiteral(b []byte, i int, lit string) int {
	if len(b)-i < len(lit) || string(b[i:i+len(lit)]) != lit {
		return -1
	}
	return i + len(lit)
}

// skipString returns where the string ends whose first quote is b[i], or -1.
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c < ' ':
			return -1
		case c == '\\':
			i++
			if i >= len(b) {
				return -1
			}
			switch b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if hex4(b[i+1:]) < 0 {
					return -1
				}
				i += 4
			default:
				return -1
			}
		}
	}
	return -1
}

// skipNumber returns where the number that begins at b[i] ends, or -1.
func skipNumber(b []byte, i int) int {
	if i < len(b) && b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++
	} else if i = skipDigits(b, i); i < 0 {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		if i = skipDigits(b, i+1); i < 0 {
			return -1
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		i = skipDigits(b, i)
	}
	return i
}

// skipDigits skips one digit or more; -1 means that there is none.
func skipDigits(b []byte, i int) int {
	from := i
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	if i == from {
		return -1
	}
	return i
}

// hex4 reads four hexadecimal digits; -1 means that they are not there.
func hex4(b []byte) rune {
	if len(b) < 4 {
		return -1
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// unquote appends what stands between the quotes of a valid JSON string. If s
// is UTF-8, dst may be s[:0]: no escape is shorter than what it stands for.
func unquote(dst, s []byte) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '\\':
			r, n := unescape(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
		case c < utf8.RuneSelf:
			dst = append(dst, c)
			i++
		default:
			r, n := utf8.DecodeRune(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
		}
	}
	return dst
}

// unescape reads the escape that s begins with; n is its length.
func unescape(s []byte) (r rune, n int) {
	switch c := s[1]; c {
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		r = hex4(s[2:])
		if utf16.IsSurrogate(r) {
			if len(s) > 7 && s[6] == '\\' && s[7] == 'u' {
				if whole := utf16.DecodeRune(r, hex4(s[8:])); whole != utf8.RuneError {
					return whole, 12
				}
			}
			r = utf8.RuneError
		}
		return r, 6
	default:
		return rune(c), 2
	}
}

// AppendQuoted appends s as a JSON string, in the words of encoding/json:
// bytes that are not UTF-8 become U+FFFD, and what HTML or JavaScript would
// read as something else is escaped.
func AppendQuoted[S string | []byte](dst []byte, s S) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0 // s[from:i] needs no escape
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			if r == utf8.RuneError && n == 1 {
				dst = append(append(dst, s[from:i]...), `\ufffd`...)
				from = i + n
			} else if r == '\u2028' || r == '\u2029' {
				dst = append(append(dst, s[from:i]...), `\u202`...)
				dst = append(dst, hex[r&0xF])
				from = i + n
			}
			i += n
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
			i++
			continue
		}
		dst = append(append(dst, s[from:i]...), '\\')
		switch c {
		case '"', '\\':
			dst = append(dst, c)
		case '\b':
			dst = append(dst, 'b')
		case '\f':
			dst = append(dst, 'f')
		case '\n':
			dst = append(dst, 'n')
		case '\r':
			dst = append(dst, 'r')
		case '\t':
			dst = append(dst, 't')
		default:
			dst = append(dst, 'u', '0', '0', hex[c>>4], hex[c&0xF])
		}
		i++
		from = i
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

// appendFloat appends f as encoding/json writes floats of that many bits,
// which is how JavaScript does (ECMA-262, Number::toString).
func appendFloat(dst []byte, f float64, bits int) []byte {
	format := byte('f')
	if a := math.Abs(f); a != 0 {
		small, big := a < 1e-6, a >= 1e21
		if bits == 32 {
			small, big = float32(a) < 1e-6, float32(a) >= 1e21
		}
		if small || big {
			format = 'e'
		}
	}
	dst = strconv.AppendFloat(dst, f, format, -1, bits)
	if n := len(dst); format == 'e' && dst[n-4] == 'e' && dst[n-3] == '-' && dst[n-2] == '0' {
		dst[n-2] = dst[n-1] // e-09 is written e-9
		dst = dst[:n-1]
	}
	return dst
}

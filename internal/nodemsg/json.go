package nodemsg

import (
	"encoding/json"
	"unicode/utf8"
)

// validJSON reports whether b is one JSON value in UTF-8, as encoding/json
// takes it. It is that package's Valid at several times its speed, for every
// push passes here. deep: it is nested so deep that json.Valid was asked, and
// might refuse it inside one array more.
func validJSON(b []byte) (ok, deep bool) {
	if !utf8.Valid(b) {
		return false, false
	}
	const deepest = 64
	var objects uint64 // a bit for each value that b[i] is inside of, the innermost lowest: it is an object
	depth := 0
	for i := 0; ; {
		i = skipSpace(b, i)
		if i == len(b) {
			return false, false
		}
		switch c := b[i]; c {
		case '{', '[':
			if depth == deepest {
				return json.Valid(b), true
			}
			depth++
			objects <<= 1
			i = skipSpace(b, i+1)
			if i == len(b) {
				return false, false
			}
			if c == '{' {
				objects |= 1
				if b[i] != '}' {
					if i = skipKey(b, i); i < 0 {
						return false, false
					}
					continue
				}
			} else if b[i] != ']' {
				continue
			}
		case '"':
			i = skipString(b, i)
		case 't':
			i = skipLiteral(b, i, "true")
		case 'f':
			i = skipLiteral(b, i, "false")
		case 'n':
			i = skipLiteral(b, i, "null")
		default:
			i = skipNumber(b, i)
		}
		if i < 0 {
			return false, false
		}
		// A value has ended, or what it is in does.
		for {
			i = skipSpace(b, i)
			if depth == 0 || i == len(b) {
				return depth == 0 && i == len(b), false
			}
			object := objects&1 != 0
			if b[i] == ',' {
				i++
				if object {
					if i = skipKey(b, skipSpace(b, i)); i < 0 {
						return false, false
					}
				}
				break
			}
			if b[i] != '}' && object || b[i] != ']' && !object {
				return false, false
			}
			i++
			depth--
			objects >>= 1
		}
	}
}

// The skips return the index behind what begins at b[i], which may be len(b),
// or -1 if it is not there.

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// skipKey passes an object's key and its colon.
func skipKey(b []byte, i int) int {
	if i == len(b) || b[i] != '"' {
		return -1
	}
	if i = skipString(b, i); i < 0 {
		return -1
	}
	i = skipSpace(b, i)
	if i == len(b) || b[i] != ':' {
		return -1
	}
	return i + 1
}

func skipLiteral(b []byte, i int, lit string) int {
	if len(b)-i < len(lit) || string(b[i:i+len(lit)]) != lit {
		return -1
	}
	return i + len(lit)
}

// skipString passes a string; b[i] is its quote.
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		c := b[i]
		if plain[c] {
			continue
		}
		if c == '"' {
			return i + 1
		}
		if c != '\\' || i+1 == len(b) {
			return -1
		}
		i++
		switch b[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			if len(b)-i < 5 {
				return -1
			}
			for range 4 {
				i++
				if c := b[i] | 0x20; (b[i] < '0' || b[i] > '9') && (c < 'a' || c > 'f') {
					return -1
				}
			}
		default:
			return -1
		}
	}
	return -1
}

// plain are the bytes that stand for themselves in a string.
var plain = func() (is [256]bool) {
	for c := 0x20; c < 256; c++ {
		is[c] = c != '"' && c != '\\'
	}
	return is
}()

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
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		return skipDigits(b, i)
	}
	return i
}

func skipDigits(b []byte, i int) int {
	from := i
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		i++
	}
	if i == from {
		return -1
	}
	return i
}

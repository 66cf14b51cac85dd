package sio

import (
	"bytes"
	"encoding/base64"
	"encoding/json"

	"github.com/embedpush/push/internal/wire"
)

// items walks the items of an array or the pairs of an object in JSON that is
// valid, from behind its bracket on.
type items struct {
	b []byte
	i int
}

// next returns where the next item is, false if there is none.
func (c *items) next() (from, to int, ok bool) {
	i := skipSpace(c.b, c.i)
	if c.b[i] == ',' {
		i = skipSpace(c.b, i+1)
	}
	if c.b[i] == ']' || c.b[i] == '}' {
		return 0, 0, false
	}
	c.i = skipValue(c.b, i)
	return i, c.i, true
}

// pair returns the next pair: its key with the quotes, and its value.
func (c *items) pair() (key, val []byte, ok bool) {
	from, to, ok := c.next()
	if !ok {
		return nil, nil, false
	}
	key = c.b[from:to]
	from = skipSpace(c.b, skipSpace(c.b, c.i)+1) // behind the colon
	c.i = skipValue(c.b, from)
	return key, c.b[from:c.i], true
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipValue returns where the value ends that begins at b[i].
func skipValue(b []byte, i int) int {
	for depth := 0; i < len(b); {
		switch b[i] {
		case '"':
			if i = skipString(b, i); depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // behind a number or a literal
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return i // as above
			}
		}
		i++
	}
	return i
}

// skipString returns where the string ends whose first quote is b[i].
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		}
	}
	return i
}

// unquote returns the text of a JSON string, false if it is longer than limit.
func unquote(s []byte, limit int) (text []byte, ok bool) {
	inner := s[1 : len(s)-1 : len(s)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return inner, len(inner) <= limit
	}
	if len(inner) > 6*limit { // no escape is longer than six times what it stands for
		return nil, false
	}
	var unescaped string
	if err := json.Unmarshal(s, &unescaped); err != nil {
		return nil, false
	}
	return []byte(unescaped), len(unescaped) <= limit
}

// hole is a placeholder: b[from:to] stands for attachment num.
type hole struct{ from, to, num int }

// findHoles finds the placeholders in b, which is valid JSON, of n attachments:
// every object with "_placeholder":true. Each attachment has one at most; more
// would be a way to make many bytes of few. Keys count as they stand: whoever
// escapes a letter of them wants no placeholder.
func findHoles(b []byte, n int) (holes []hole, err error) {
	type container struct {
		from   int
		num    int  // -1: none that can be
		before int  // holes before it
		hole   bool // it is one
	}
	open := make([]container, 0, 32)
	for i := 0; i < len(b); {
		switch b[i] {
		case '{', '[':
			open = append(open, container{from: i, num: -1, before: len(holes)})
		case '}', ']':
			c := open[len(open)-1]
			open = open[:len(open)-1]
			if !c.hole {
				break
			}
			if c.num < 0 || c.num >= n || len(holes) != c.before {
				return nil, errPlaceholder
			}
			for _, h := range holes {
				if h.num == c.num {
					return nil, errPlaceholder
				}
			}
			holes = append(holes, hole{c.from, i + 1, c.num})
		case '"':
			from := i
			i = skipString(b, i)
			at := skipSpace(b, i)
			if at == len(b) || b[at] != ':' {
				continue
			}
			at = skipSpace(b, at+1)
			switch c := &open[len(open)-1]; string(b[from+1 : i-1]) {
			case "_placeholder":
				c.hole = b[at] == 't'
			case "num":
				c.num = -1
				u, used := digits(b[at:])
				switch b[at+used] { // there is a bracket at least
				case ',', '}', ' ', '\n', '\t', '\r':
					if used > 0 && u < maxAttachments {
						c.num = int(u)
					}
				}
			}
			continue
		}
		i++
	}
	return holes, nil
}

// argumentsOf reads the items of the array b from b[at] on, and fills its holes
// with the attachments.
func argumentsOf(b []byte, at int, holes []hole, parts [][]byte) (wire.Value, error) {
	var all collector
	for c := (items{b, at}); ; {
		from, to, ok := c.next()
		if !ok {
			return all.value(), nil
		}
		if !all.add(argument(b, from, to, holes, parts)) {
			return wire.Value{}, errArgs
		}
	}
}

// collector makes a Value of arguments. It allocates from the second on.
type collector struct {
	n     int
	first wire.Value
	args  []wire.Value
}

// add reports whether there was room for one more.
func (c *collector) add(v wire.Value) bool {
	switch c.n {
	case 0:
		c.first = v
	case 1:
		c.args = append(make([]wire.Value, 0, 4), c.first, v)
	case maxArgs:
		return false
	default:
		c.args = append(c.args, v)
	}
	c.n++
	return true
}

func (c *collector) value() wire.Value {
	if c.n < 2 {
		return c.first
	}
	return wire.Value{Args: c.args}
}

// argument is the value b[from:to]: an attachment, or JSON in which there is
// base64 for the attachments that are deeper.
func argument(b []byte, from, to int, holes []hole, parts [][]byte) wire.Value {
	var filled []byte
	at := from
	for _, h := range holes {
		if h.from < from || h.from >= to {
			continue
		}
		if h.from == from {
			return wire.Value{Bytes: parts[h.num]}
		}
		if filled == nil {
			filled = make([]byte, 0, filledSize(from, to, holes, parts))
		}
		filled = append(filled, b[at:h.from]...)
		filled = appendBase64(filled, parts[h.num])
		at = h.to
	}
	if filled == nil {
		return wire.Value{JSON: b[from:to:to]}
	}
	return wire.Value{JSON: append(filled, b[at:to]...)}
}

// filledSize is how long b[from:to] will be.
func filledSize(from, to int, holes []hole, parts [][]byte) int {
	n := to - from
	for _, h := range holes {
		if h.from >= from && h.from < to {
			n += 2 + base64.StdEncoding.EncodedLen(len(parts[h.num])) - (h.to - h.from)
		}
	}
	return n
}

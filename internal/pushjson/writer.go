package pushjson

import (
	"encoding/base64"
	"slices"
	"strconv"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// writer writes one envelope as a whole frame at the end of dst. How long the
// frame's header is depends on what follows it, so room is left for the header
// of a frame as long as the caller guesses, and end puts it there.
type writer struct {
	dialect Dialect
	dst     []byte
	start   int // of the frame in dst
	body    int // where its payload begins in dst
}

// keysSize is about what the keys and numbers of an envelope take.
const keysSize = 64

// begin starts a frame whose strings and value take size bytes, more or less.
func begin(dst []byte, d Dialect, size int) writer {
	size += keysSize
	room := ws.HeaderLen(size)
	start := len(dst)
	dst = slices.Grow(dst, room+size)
	return writer{d, dst[:start+room], start, start + room}
}

// sizeOf is about what a value takes in an envelope.
func sizeOf(v wire.Value) int { return len(v.JSON) + base64.StdEncoding.EncodedLen(len(v.Bytes)) }

// end returns dst with the frame.
func (w *writer) end() []byte {
	n := len(w.dst) - w.body
	if head := ws.HeaderLen(n); head != w.body-w.start { // a wrong guess: the payload moves
		body := w.start + head
		if body > w.body {
			w.dst = slices.Grow(w.dst, body-w.body)
		}
		w.dst = w.dst[:body+n]
		copy(w.dst[body:], w.dst[w.body:w.body+n])
	}
	ws.AppendHeader(w.dst[:w.start], w.dialect.opcode(), n) // over the room, which is exactly its size
	return w.dst
}

// open begins a map of n keys, or as many as follow until close in JSON.
func (w *writer) open(n int) {
	if w.dialect == Msgpack {
		w.dst = append(w.dst, 0x80|byte(n)) // fixmap: no envelope has more than 15
		return
	}
	w.dst = append(w.dst, '{')
}

func (w *writer) close() {
	if w.dialect == JSON {
		w.dst = append(w.dst, '}')
	}
}

// key writes a key that JSON needs not escape.
func (w *writer) key(k string) {
	if w.dialect == Msgpack {
		w.text(k)
		return
	}
	if w.dst[len(w.dst)-1] != '{' {
		w.dst = append(w.dst, ',')
	}
	w.dst = append(w.dst, '"')
	w.dst = append(w.dst, k...)
	w.dst = append(w.dst, '"', ':')
}

func (w *writer) text(s string) {
	if w.dialect == Msgpack {
		w.dst = append(appendHead(w.dst, text, len(s)), s...)
		return
	}
	w.dst = AppendQuoted(w.dst, s)
}

func (w *writer) uint(u uint64) {
	if w.dialect == Msgpack {
		w.dst = appendUint(w.dst, u)
		return
	}
	w.dst = strconv.AppendUint(w.dst, u, 10)
}

func (w *writer) yes() {
	if w.dialect == Msgpack {
		w.dst = append(w.dst, codeTrue)
		return
	}
	w.dst = append(w.dst, "true"...)
}

// data writes the key data with v, and what a reader has to know of it.
func (w *writer) data(v wire.Value) {
	w.key("data")
	switch {
	case w.dialect == Msgpack && v.Bytes != nil:
		w.dst = append(appendHead(w.dst, bin, len(v.Bytes)), v.Bytes...)
	case w.dialect == Msgpack && v.JSON != nil:
		before := len(w.dst)
		dst, err := AppendMsgpack(w.dst, v.JSON)
		if err != nil {
			dst = append(dst[:before], codeNil)
		}
		w.dst = dst
	case w.dialect == Msgpack:
		w.dst = append(w.dst, codeNil)
	case v.Bytes != nil:
		w.dst = append(w.dst, '"')
		w.dst = base64.StdEncoding.AppendEncode(w.dst, v.Bytes)
		w.dst = append(w.dst, '"')
		w.key("encoding")
		w.dst = append(w.dst, `"base64"`...)
	case v.JSON != nil:
		w.dst = append(w.dst, v.JSON...)
	default:
		w.dst = append(w.dst, "null"...)
	}
}

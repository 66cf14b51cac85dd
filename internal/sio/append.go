package sio

import (
	"slices"
	"strconv"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/pushjson"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// AppendEvent appends an event as whole unmasked frames: the text frame and
// right behind it one binary frame for each attachment, or the one binary
// frame of Packed. Nothing else of the connection may come between them. A
// page's answer is asked for with ack, 0: none is wanted.
//
// v is the event's arguments: JSON is one, spliced in as it is, Bytes are one
// attachment, Args are several of either, and the zero Value is none. JSON
// that is not valid becomes nil in Packed. It allocates only to grow dst.
//
// Beside an attachment in Old and New, an object of the JSON that has
// "_placeholder":true is taken for one by the client, and if its num is none,
// for an error: the protocol has no escape for it.
func AppendEvent(dst []byte, f Form, space, event string, v wire.Value, ack uint32) []byte {
	w := begin(dst, f, len(space)+len(event), v)
	w.head(typeEvent, space, v, uint64(ack), ack != 0)
	w.list(1 + arguments(v))
	w.text(event)
	w.values(v)
	return w.end(v)
}

// AppendAck appends the answer to a client's event with this id, whose
// arguments are v as in AppendEvent.
func AppendAck(dst []byte, f Form, space string, id uint64, v wire.Value) []byte {
	w := begin(dst, f, len(space), v)
	w.head(typeAck, space, v, id, true)
	w.list(arguments(v))
	w.values(v)
	return w.end(v)
}

// AppendConnect appends the answer to a CONNECT that was let in: {"sid":…},
// and in Old, whose clients know their id already, no payload.
func AppendConnect(dst []byte, f Form, space, sid string) []byte {
	w := begin(dst, f, len(space)+len(sid), wire.Value{})
	w.head(typeConnect, space, wire.Value{}, 0, false)
	if f != Old {
		w.pair("sid", sid)
	}
	return w.end(wire.Value{})
}

// AppendConnectError appends the refusal of a CONNECT: {"message":text}, and
// in Old the text as a JSON string, since those clients hand the page whatever
// they get.
func AppendConnectError(dst []byte, f Form, space, text string) []byte {
	w := begin(dst, f, len(space)+len(text), wire.Value{})
	w.head(typeError, space, wire.Value{}, 0, false)
	if f != Old {
		w.pair("message", text)
	} else {
		w.text(text)
	}
	return w.end(wire.Value{})
}

// AppendDisconnect appends the end of a namespace. The client does not come
// back by itself.
func AppendDisconnect(dst []byte, f Form, space string) []byte {
	w := begin(dst, f, len(space), wire.Value{})
	w.head(typeDisconnect, space, wire.Value{}, 0, false)
	return w.end(wire.Value{})
}

// Binary reports whether v has opaque bytes as an argument: the only case in
// which Old and New differ in an event or an ack.
func Binary(v wire.Value) bool { return attachments(v) > 0 }

// Fits reports whether clients take v: in Old and New at most 10 arguments may
// be opaque bytes, as in socket.io-parser. More end a client's connection, or
// its program.
func Fits(f Form, v wire.Value) bool { return f == Packed || attachments(v) <= maxAttachments }

// attachments is how many arguments of v are opaque bytes.
func attachments(v wire.Value) (n int) {
	if v.Args == nil && v.Bytes != nil {
		return 1
	}
	for i := range v.Args {
		if v.Args[i].Bytes != nil {
			n++
		}
	}
	return n
}

// arguments is how many arguments v is.
func arguments(v wire.Value) int {
	switch {
	case v.Args != nil:
		return len(v.Args)
	case v.Bytes != nil || v.JSON != nil:
		return 1
	}
	return 0
}

// writer writes one packet as a whole frame at the end of dst. How long the
// frame's header is depends on what follows it, so room is left for the header
// of a frame as long as the caller guesses, and end puts it there.
type writer struct {
	form  Form
	dst   []byte
	start int // of the frame in dst
	body  int // where its payload begins in dst
	num   int // of the next attachment
}

// What is written beside strings and values, about.
const (
	keysSize       = 48 // type, id and keys
	attachmentSize = 48 // a placeholder, and the header of the attachment's frame
)

// begin starts the frame of a packet with v whose strings take size bytes.
func begin(dst []byte, f Form, size int, v wire.Value) writer {
	n, opaque := 0, 0
	size += keysSize + len(v.JSON)
	if v.Args != nil {
		size -= len(v.JSON)
		for i := range v.Args {
			size += 1 + len(v.Args[i].JSON)
			opaque += len(v.Args[i].Bytes)
			n++
		}
	} else if v.Bytes != nil {
		opaque, n = len(v.Bytes), 1
	}
	if f == Packed {
		size += opaque
		opaque, n = 0, 0
	}
	room := ws.HeaderLen(size)
	start := len(dst)
	dst = slices.Grow(dst, room+size+opaque+n*attachmentSize)
	return writer{form: f, dst: dst[:start+room], start: start, body: start + room}
}

// end returns dst with the frame, and behind it those of v's attachments.
func (w *writer) end(v wire.Value) []byte {
	n := len(w.dst) - w.body
	if head := ws.HeaderLen(n); head != w.body-w.start { // a wrong guess: the payload moves
		body := w.start + head
		if body > w.body {
			w.dst = slices.Grow(w.dst, body-w.body)
		}
		w.dst = w.dst[:body+n]
		copy(w.dst[body:], w.dst[w.body:w.body+n])
	}
	op := ws.Text
	if w.form == Packed {
		op = ws.Binary
	}
	ws.AppendHeader(w.dst[:w.start], op, n) // over the room, which is exactly its size
	switch {
	case w.num == 0:
	case v.Args == nil:
		w.attach(v.Bytes)
	default:
		for i := range v.Args {
			if b := v.Args[i].Bytes; b != nil {
				w.attach(b)
			}
		}
	}
	return w.dst
}

func (w *writer) attach(b []byte) { w.dst = eio.AppendBinary(w.dst, w.form.revision(), b) }

// head writes all that stands before a packet's payload.
func (w *writer) head(typ byte, space string, v wire.Value, id uint64, hasID bool) {
	if space == "" {
		space = "/"
	}
	if w.form == Packed {
		w.packedKeys(typ, space, id, hasID)
		return
	}
	n := attachments(v)
	if n > 0 {
		typ += typeBinaryEvent - typeEvent
	}
	w.dst = append(w.dst, messageDigit, '0'+typ)
	if n > 0 {
		w.dst = append(strconv.AppendInt(w.dst, int64(n), 10), '-')
	}
	if space != "/" {
		w.dst = append(append(w.dst, space...), ',')
	}
	if hasID {
		w.dst = strconv.AppendUint(w.dst, id, 10)
	}
}

// list begins the array of n arguments that is the payload.
func (w *writer) list(n int) {
	if w.form == Packed {
		w.dst = appendPackedHead(w.dst, packedList, n)
		return
	}
	w.dst = append(w.dst, '[')
}

// values writes the arguments, and the end of their array.
func (w *writer) values(v wire.Value) {
	switch {
	case v.Args != nil:
		for i := range v.Args {
			w.value(&v.Args[i])
		}
	case v.Bytes != nil || v.JSON != nil:
		w.value(&v)
	}
	if w.form != Packed {
		w.dst = append(w.dst, ']')
	}
}

func (w *writer) value(v *wire.Value) {
	if w.form == Packed {
		w.packedValue(v)
		return
	}
	w.comma()
	switch {
	case v.Bytes != nil:
		w.dst = append(w.dst, `{"_placeholder":true,"num":`...)
		w.dst = strconv.AppendInt(w.dst, int64(w.num), 10)
		w.dst = append(w.dst, '}')
		w.num++
	case v.JSON != nil:
		w.dst = append(w.dst, v.JSON...)
	default:
		w.dst = append(w.dst, "null"...)
	}
}

// comma writes one unless it would be the first in its array.
func (w *writer) comma() {
	if w.dst[len(w.dst)-1] != '[' {
		w.dst = append(w.dst, ',')
	}
}

// pair writes a payload of one key, which needs no escape.
func (w *writer) pair(key, val string) {
	if w.form == Packed {
		w.dst = appendPackedHead(w.dst, packedMap, 1)
		w.text(key)
		w.text(val)
		return
	}
	w.dst = append(w.dst, '{', '"')
	w.dst = append(w.dst, key...)
	w.dst = append(w.dst, '"', ':')
	w.text(val)
	w.dst = append(w.dst, '}')
}

func (w *writer) text(s string) {
	if w.form == Packed {
		w.dst = appendPackedText(w.dst, s)
		return
	}
	w.dst = pushjson.AppendQuoted(w.dst, s)
}

// packedKeys writes a msgpack map up to the payload. Keys without a value are
// left out: the client takes a nil for an error.
func (w *writer) packedKeys(typ byte, space string, id uint64, hasID bool) {
	n := 3
	if typ == typeDisconnect {
		n = 2
	}
	if hasID {
		n++
	}
	w.dst = appendPackedHead(w.dst, packedMap, n)
	w.text("type")
	w.dst = append(w.dst, typ)
	w.text("nsp")
	w.text(space)
	if hasID {
		w.text("id")
		w.dst = appendPackedUint(w.dst, id)
	}
	if typ != typeDisconnect {
		w.text("data")
	}
}

func (w *writer) packedValue(v *wire.Value) {
	switch {
	case v.Bytes != nil:
		w.dst = append(appendPackedHead(w.dst, packedBin, len(v.Bytes)), v.Bytes...)
		return
	case v.JSON != nil:
		dst, err := pushjson.AppendMsgpack(w.dst, v.JSON)
		if err == nil {
			w.dst = dst
			return
		}
	}
	w.dst = append(w.dst, codeNil)
}

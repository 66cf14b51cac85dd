package nodemsg

import (
	"encoding/base64"
	"encoding/json"
	"math"

	"github.com/embedpush/push/internal/wire"
)

// Push is one push for the devices of one node.
//
//	id            uint
//	wait          uint
//	ack           uint, 0 to MaxAck
//	flags         uint, bit 0: quiet; others mean nothing
//	rate          uint 0, or float 64
//	to            Audience
//	message       what AppendMessage writes: an array
//	  event         str
//	  value         nil: none; str: JSON; bin: opaque bytes; array: arguments,
//	                each nil, str or bin
type Push struct {
	ID    uint64
	Wait  uint32  // milliseconds the sender will wait; 0: no limit
	Ack   uint8   // as the engine's
	Quiet bool    // nobody wants rows
	Rate  float64 // devices a second; 0: not paced
	To    Audience

	// Message is what AppendMessage wrote, so that one message for several
	// nodes is encoded once; then Event and Value are not looked at. Only for
	// AppendPush. nil: Event and Value are the message.
	Message []byte

	Event string // at most MaxName bytes
	Value wire.Value
}

const quiet = 1 // bit of a Push's flags

// AppendPush appends the body of p.
func AppendPush(dst []byte, p *Push) []byte {
	dst = appendList(dst, 7)
	dst = appendUint(dst, p.ID)
	dst = appendUint(dst, uint64(p.Wait))
	dst = appendUint(dst, uint64(p.Ack))
	if p.Quiet {
		dst = append(dst, quiet)
	} else {
		dst = append(dst, 0)
	}
	if p.Rate > 0 {
		dst = appendFloat(dst, min(max(p.Rate, MinRate), MaxRate))
	} else {
		dst = append(dst, 0)
	}
	dst = appendAudience(dst, &p.To)
	if p.Message != nil {
		return append(dst, p.Message...)
	}
	return AppendMessage(dst, p.Event, p.Value)
}

// AppendMessage appends what of a push is the same for every node, for
// Push.Message. v's JSON has to be valid. Of arguments v.JSON is not sent, for
// it can be made of them; but more than MaxArgs go as v.JSON, one array.
func AppendMessage(dst []byte, event string, v wire.Value) []byte {
	dst = appendList(dst, 2)
	dst = appendText(dst, event)
	if v.Args == nil || len(v.Args) > MaxArgs {
		return appendValue(dst, v)
	}
	dst = appendList(dst, len(v.Args))
	for _, arg := range v.Args {
		dst = appendValue(dst, arg)
	}
	return dst
}

// appendValue appends a value that is not several.
func appendValue(dst []byte, v wire.Value) []byte {
	switch {
	case v.Bytes != nil:
		return appendBin(dst, v.Bytes)
	case len(v.JSON) > 0:
		return appendText(dst, v.JSON)
	}
	return append(dst, codeNil)
}

// ParsePush parses the body of a Push. The slices of its Value are parts of
// body, but for the JSON of several arguments, which is made.
func ParsePush(body []byte) (p Push, err error) {
	r := reader{b: body}
	more := r.fields(7)
	p.ID = r.uint(math.MaxUint64)
	p.Wait = uint32(r.uint(math.MaxUint32))
	p.Ack = uint8(r.uint(MaxAck))
	p.Quiet = r.uint(math.MaxUint64)&quiet != 0
	p.Rate = r.rate()
	r.audience(&p.To)
	r.message(&p)
	r.skip(more)
	if !r.done() {
		return Push{}, ErrMalformed
	}
	return p, nil
}

// ParseMessage parses what AppendMessage wrote, which is not judged again. Slices
// are parts of b as those of ParsePush are.
func ParseMessage(b []byte) (event string, v wire.Value, err error) {
	r := reader{b: b, trusted: true}
	var p Push
	r.message(&p)
	if !r.done() {
		return "", wire.Value{}, ErrMalformed
	}
	return p.Event, p.Value, nil
}

func (r *reader) message(p *Push) {
	more := r.fields(2)
	p.Event = string(r.text(MaxName))
	if r.isList() {
		p.Value = r.args()
	} else {
		p.Value = r.value()
	}
	r.skip(more)
}

// value reads a value that is not several.
func (r *reader) value() (v wire.Value) {
	switch k, b := r.item(); k {
	case null:
	case bin:
		v.Bytes = b
	case text:
		r.json(b)
		v.JSON = b
	default:
		r.fail()
	}
	return v
}

// args reads several arguments, and makes the JSON array of them.
func (r *reader) args() (v wire.Value) {
	n := r.list(MaxArgs)
	again := *r
	again.trusted = true
	size := len("[]")
	for range n {
		arg := r.value()
		size += len(",") + max(len(arg.JSON), len("null"), len(`""`)+base64.StdEncoding.EncodedLen(len(arg.Bytes)))
	}
	if r.bad {
		return v
	}
	v.Args = make([]wire.Value, n)
	v.JSON = append(make([]byte, 0, size), '[')
	for i := range v.Args {
		arg := again.value()
		if i > 0 {
			v.JSON = append(v.JSON, ',')
		}
		switch {
		case arg.Bytes != nil:
			v.JSON = append(v.JSON, '"')
			v.JSON = base64.StdEncoding.AppendEncode(v.JSON, arg.Bytes)
			v.JSON = append(v.JSON, '"')
		case arg.JSON != nil:
			v.JSON = append(v.JSON, arg.JSON...)
		default:
			v.JSON = append(v.JSON, "null"...)
		}
		v.Args[i] = arg
	}
	v.JSON = append(v.JSON, ']')
	if r.deep && !json.Valid(v.JSON) {
		r.fail()
	}
	return v
}

// json judges a text that has to be JSON.
func (r *reader) json(b []byte) {
	if r.trusted {
		return
	}
	ok, deep := validJSON(b)
	if !ok {
		r.fail()
	}
	r.deep = r.deep || deep
}

// AppendCancel appends the body that ends the wait for a push or a call: an
// array of the id.
func AppendCancel(dst []byte, id uint64) []byte {
	return appendUint(appendList(dst, 1), id)
}

// ParseCancel parses the body of a Cancel.
func ParseCancel(body []byte) (id uint64, err error) {
	r, err := read(body)
	if err != nil {
		return 0, err
	}
	more := r.fields(1)
	id = r.uint(math.MaxUint64)
	r.skip(more)
	if !r.done() {
		return 0, ErrMalformed
	}
	return id, nil
}

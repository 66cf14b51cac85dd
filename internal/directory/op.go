package directory

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// An op is the same bytes in the own history, in frames and, as far as it
// stands, in a set:
//
//	what<<4 | kind    1 byte
//	len(name), name   the length as a uvarint
//	len(class), class only of a bind: 1 byte, 1 to MaxClass
//	stamp, device     only of a bind: 8 bytes each, big endian
//
// A uvarint is always the shortest one, so one op has one form. In a set a
// place stands as its join; a bind, which stands in the own set only, as
// itself. What tells two records apart is all but stamp and device.
const (
	leave = 0
	join  = 1
	bind  = 2

	dead = 0x80 // in a set, bit of the first byte: the record was removed
)

// op is one op read. Its bytes are those it was read from.
type op struct {
	what  byte
	kind  Kind
	key   []byte // what a set finds it by: all behind the first byte, without stamp and device
	place []byte // the key's first part: name with its length
	name  []byte
	class []byte
	stamp Stamp

	device uint64
}

// head is the first byte of a record.
func head(what byte, kind Kind) byte { return what<<4 | byte(kind) }

func appendPlace(dst []byte, what byte, p Place) []byte {
	dst = append(dst, head(what, p.Kind))
	dst = binary.AppendUvarint(dst, uint64(len(p.Name)))
	return append(dst, p.Name...)
}

func appendBind(dst []byte, p Place, class string, s Stamp, device uint64) []byte {
	dst = appendPlace(dst, bind, p)
	dst = append(dst, byte(len(class)))
	dst = append(dst, class...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(s))
	return binary.BigEndian.AppendUint64(dst, device)
}

// bindTail is how long stamp and device are together.
const bindTail = 16

// splitOp reads the first op of b, which is known to be good: it was written
// here or passed readOp. n is its size.
func splitOp(b []byte) (o op, n int) {
	o.what, o.kind = b[0]>>4&7, Kind(b[0]&15)
	size, k := uint64(b[1]), 1
	if size >= 0x80 {
		size, k = binary.Uvarint(b[1:])
	}
	from := 1 + k
	to := from + int(size)
	o.name, o.place = b[from:to:to], b[1:to:to]
	o.key = o.place
	if o.what == bind {
		from, to = to+1, to+1+int(b[to])
		o.class, o.key = b[from:to:to], b[1:to:to]
		o.stamp, o.device = Stamp(binary.BigEndian.Uint64(b[to:])), binary.BigEndian.Uint64(b[to+8:])
		to += bindTail
	}
	return o, to
}

// sum is a place's part of an origin's hash, which is the wrapping sum over
// all: FNV-1a and the finish of MurmurHash3, for every node must come to the
// same. It finds mistakes, not forgeries: links are authenticated.
func sum(kind Kind, place []byte) uint64 {
	h := (14695981039346656037 ^ uint64(kind)) * 1099511628211
	for _, b := range place {
		h = (h ^ uint64(b)) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// reader reads a frame from the front. What is wrong is remembered, and from
// then on there is nothing to read.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.b, r.bad = nil, true
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// uvarint reads one in its shortest form, at most limit.
func (r *reader) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n != max(1, (bits.Len64(v)+6)/7) || v > limit {
		r.take(-1)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// op passes one op, whose stamp must not be beyond the sender's clock.
func (r *reader) op(clock Stamp) {
	first := r.byte()
	name := r.take(int(r.uvarint(MaxName)))
	switch what := first >> 4; {
	case what > bind || !utf8.Valid(name):
		r.take(-1)
	case what == bind:
		n := r.byte()
		if n < 1 || n > MaxClass {
			r.take(-1)
		}
		if !utf8.Valid(r.take(int(n))) || Stamp(r.uint64()) > clock {
			r.take(-1)
		}
		r.uint64()
	}
}

// ops passes the ops that are all the rest, and returns their bytes and number.
func (r *reader) ops(clock Stamp) (all []byte, n uint64) {
	all = r.b
	for len(r.b) > 0 {
		r.op(clock)
		n++
	}
	return all, n
}

// maxSeq bounds numbers in frames, so that sums of two do not overflow.
const maxSeq = 1 << 62

// deltaFrame is a stretch of an origin's history.
//
//	base              uvarint: the seq of the op before the first
//	clock             8 bytes: the sender's, at least every stamp in the frame
//	ops               from 1, to the end
type deltaFrame struct {
	base, n uint64
	clock   Stamp
	ops     []byte
}

func appendDelta(dst []byte, base uint64, clock Stamp) []byte {
	return binary.BigEndian.AppendUint64(binary.AppendUvarint(dst, base), uint64(clock))
}

func readDelta(b []byte) (f deltaFrame, err error) {
	r := reader{b: b}
	f.base = r.uvarint(maxSeq)
	f.clock = Stamp(r.uint64())
	f.ops, f.n = r.ops(f.clock)
	if r.bad || f.n == 0 {
		return deltaFrame{}, ErrMalformed
	}
	return f, nil
}

// snapFrame is a part of a snapshot: ops that, done in order on an empty set,
// each whether it changes anything or not, make the set as it is at seq.
//
//	id                uvarint, from 1: a later snapshot of a run has a greater one
//	part              uvarint: 0, 1, 2 …
//	clock             8 bytes, as in a delta
//	last              1 byte: 1 in the last part, else 0
//	seq               uvarint, only in the last part
//	hash              8 bytes, only in the last part
//	ops               from 0, to the end
type snapFrame struct {
	id, part  uint64
	clock     Stamp
	last      bool
	seq, hash uint64
	ops       []byte
}

func appendSnap(dst []byte, f snapFrame) []byte {
	dst = binary.AppendUvarint(dst, f.id)
	dst = binary.AppendUvarint(dst, f.part)
	dst = binary.BigEndian.AppendUint64(dst, uint64(f.clock))
	if f.last {
		dst = append(dst, 1)
		dst = binary.AppendUvarint(dst, f.seq)
		dst = binary.BigEndian.AppendUint64(dst, f.hash)
	} else {
		dst = append(dst, 0)
	}
	return append(dst, f.ops...)
}

func readSnap(b []byte) (f snapFrame, err error) {
	r := reader{b: b}
	f.id = r.uvarint(maxSeq)
	f.part = r.uvarint(maxSeq)
	f.clock = Stamp(r.uint64())
	switch r.byte() {
	case 0:
	case 1:
		f.last = true
		f.seq = r.uvarint(maxSeq)
		f.hash = r.uint64()
	default:
		r.take(-1)
	}
	f.ops, _ = r.ops(f.clock)
	if r.bad || f.id == 0 {
		return snapFrame{}, ErrMalformed
	}
	return f, nil
}

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/pushjson"
	"github.com/vmihailenco/msgpack/v5"
)

// The first byte of a stream.
const (
	linkByte  = 0xC7
	relayByte = 0xC8
)

// The link's own kinds of frames.
const (
	kindHello   = 1 // dialler: [min, max, id, epoch, to id, to epoch, greeting]
	kindWelcome = 2 // acceptor: [status, proto, min, max, id, epoch, have seq, have hash, greeting]
	kindDelta   = 3 // dialler: directory's
	kindSnap    = 4 // dialler: directory's, one part
	kindNeed    = 5 // acceptor: have seq in 8 bytes; 0: a snapshot
	kindBeat    = 6 // both: seq, hash and clock in 8 bytes each, 2 bytes of length, that much of the owner's
	kindBye     = 7 // both, the last frame: a reason in 1 byte

	// From protocol 2 on. It means nothing: it is there so that it matters
	// which number two nodes have agreed on.
	kindBeat2 = 8 // both: nothing
)

// Why a BYE. A later version may have other reasons.
const (
	byeClosing = 1 // the node ends
	byeDown    = 2 // membership has no such node any more
)

const (
	headSize  = 4 + 1     // of a frame: length and kind
	firstMax  = 4 << 10   // how long HELLO and WELCOME may be
	chunk     = 32 << 10  // of one write, and of a reader's buffer
	largeMin  = 64 << 10  // what the buffer of a larger frame begins with …
	largeKeep = 128 << 10 // … and up to which it is kept
	beatSize  = 3*8 + 2   // without the owner's
	maxDepth  = 2         // of msgpack
	armEvery  = 16        // a deadline is moved when a sixteenth of its time has gone
)

var (
	errFrame   = errors.New("a frame that is none")
	errLong    = errors.New("a frame that is too long")
	errTLS     = errors.New("it speaks TLS, and this node has no secret")
	errHello   = errors.New("a HELLO or WELCOME that cannot be read")
	errNoHello = errors.New("another frame came before HELLO or WELCOME")
	errSilent  = errors.New("nothing came from it any more")
	errStuck   = errors.New("it does not read any more")
)

// Begin begins a frame, to whose end the body is to be appended.
func Begin(dst []byte, kind byte) (out []byte, mark int) {
	return append(dst, 0, 0, 0, 0, kind), len(dst)
}

// End ends the frame that Begin began, with its mark.
func End(dst []byte, mark int) []byte {
	binary.BigEndian.PutUint32(dst[mark:], uint32(len(dst)-mark-4))
	return dst
}

// AppendMessage appends a message as a frame.
func AppendMessage(dst []byte, kind byte, body []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(1+len(body)))
	dst = append(dst, kind)
	return append(dst, body...)
}

// wholeMessages counts the messages that b consists of, up to the first frame
// that is none, and tells how long they are.
func wholeMessages(b []byte) (n, size int) {
	for len(b)-size >= headSize {
		length := binary.BigEndian.Uint32(b[size:])
		if length < 1 || length > MaxFrame || int(length) > len(b)-size-4 || b[size+4] < FirstKind {
			break
		}
		n++
		size += 4 + int(length)
	}
	return n, size
}

// cut is where to end a write of about chunk bytes: behind the first frame with
// which they are more. b is not empty and consists of whole frames; n is how
// many are before the cut.
func cut(b []byte) (size, n int) {
	for size < len(b) && size < chunk {
		size += 4 + int(binary.BigEndian.Uint32(b[size:]))
		n++
	}
	return size, n
}

// hello is how a dialler introduces itself.
type hello struct {
	min, max uint64
	from, to directory.Origin
	greeting []byte
}

// status is how a HELLO was taken. A later version may know others.
type status uint64

const (
	statusOK      status = 0
	statusOther   status = 1 // another run is here, which WELCOME names
	statusProto   status = 2 // no common protocol
	statusSameID  status = 3 // the acceptor has the dialler's id
	statusLater   status = 4 // a later run of the dialler's id is known
	statusMany    status = 5 // too many nodes are known
	statusClosing status = 6 // the acceptor ends
)

// welcome is the answer.
type welcome struct {
	status    status
	proto     uint64 // that of the link
	min, max  uint64 // what the acceptor speaks
	origin    directory.Origin
	seq, hash uint64 // what it has of the dialler's history
	greeting  []byte
}

func appendPacked(dst []byte, kind byte, fields ...any) []byte {
	b, err := msgpack.Marshal(fields)
	if err != nil {
		panic("link: msgpack of numbers, strings and bytes: " + err.Error())
	}
	return AppendMessage(dst, kind, b)
}

func (h hello) append(dst []byte) []byte {
	return appendPacked(dst, kindHello, h.min, h.max, h.from.ID, h.from.Epoch, h.to.ID, h.to.Epoch, h.greeting)
}

func (w welcome) append(dst []byte) []byte {
	return appendPacked(dst, kindWelcome, uint64(w.status), w.proto, w.min, w.max, w.origin.ID, w.origin.Epoch, w.seq, w.hash, w.greeting)
}

// unpack reads the first fields of an array; a later version may append some.
func unpack(body []byte, fields ...any) error {
	if n, err := pushjson.Scan(body, maxDepth); err != nil || n != len(body) {
		return errHello
	}
	d := msgpack.NewDecoder(bytes.NewReader(body))
	n, err := d.DecodeArrayLen()
	if err != nil || n < len(fields) || d.DecodeMulti(fields...) != nil {
		return errHello
	}
	return nil
}

func readHello(body []byte) (h hello, err error) {
	err = unpack(body, &h.min, &h.max, &h.from.ID, &h.from.Epoch, &h.to.ID, &h.to.Epoch, &h.greeting)
	if err == nil && h.min > h.max {
		err = errHello
	}
	return h, err
}

func readWelcome(body []byte) (w welcome, err error) {
	var s uint64
	err = unpack(body, &s, &w.proto, &w.min, &w.max, &w.origin.ID, &w.origin.Epoch, &w.seq, &w.hash, &w.greeting)
	w.status = status(s)
	return w, err
}

// beat is what comes with a beat. own is the owner's part.
type beat struct {
	seq, hash uint64
	clock     directory.Stamp
	own       []byte
}

// readBeat reads one; a later version may append to it.
func readBeat(body []byte) (b beat, ok bool) {
	if len(body) < beatSize {
		return b, false
	}
	b.seq = binary.BigEndian.Uint64(body)
	b.hash = binary.BigEndian.Uint64(body[8:])
	b.clock = directory.Stamp(binary.BigEndian.Uint64(body[16:]))
	n := int(binary.BigEndian.Uint16(body[24:]))
	if n > len(body)-beatSize {
		return b, false
	}
	b.own = body[beatSize : beatSize+n]
	return b, true
}

func readNeed(body []byte) (have uint64, ok bool) {
	if len(body) < 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(body), true
}

// reader reads frames. It belongs to one goroutine.
type reader struct {
	conn  net.Conn
	count *atomic.Uint64 // of bytes

	max     int           // how long a frame may be now
	silence time.Duration // 0: the deadline is another's
	armed   time.Time     // when it was set

	buf        []byte
	begin, end int    // of what is in buf and not read
	large      []byte // a frame that does not fit into buf
	kept       []byte // memory that keep gives away piece by piece
}

func newReader(conn net.Conn, count *atomic.Uint64) *reader {
	return &reader{conn: conn, count: count, max: firstMax, buf: make([]byte, chunk)}
}

// next is the next frame. body is valid until the next call.
func (r *reader) next() (kind byte, body []byte, err error) {
	if cap(r.large) > largeKeep {
		r.large = nil
	}
	r.large = r.large[:0]
	for r.end-r.begin < 4 {
		if err := r.fill(); err != nil {
			return 0, nil, err
		}
	}
	n := binary.BigEndian.Uint32(r.buf[r.begin:])
	switch {
	case n == 0:
		return 0, nil, errFrame
	case int64(n) > int64(r.max):
		if r.max == firstMax && n>>16 == 0x1603 { // a TLS record: handshake, version 3.x
			return 0, nil, errTLS
		}
		return 0, nil, errLong
	}
	size := int(n)
	if 4+size > len(r.buf) {
		if err := r.nextLarge(size); err != nil {
			return 0, nil, err
		}
		return r.large[0], r.large[1:], nil
	}
	for r.end-r.begin < 4+size {
		if err := r.fill(); err != nil {
			return 0, nil, err
		}
	}
	frame := r.buf[r.begin+4 : r.begin+4+size]
	r.begin += 4 + size
	return frame[0], frame[1:], nil
}

// nextLarge reads a frame into a buffer that grows as the bytes come: who
// claims much and sends little costs little.
func (r *reader) nextLarge(size int) error {
	if cap(r.large) == 0 {
		r.large = make([]byte, 0, min(size, largeMin))
	}
	n := min(size, r.end-r.begin-4)
	r.large = append(r.large, r.buf[r.begin+4:r.begin+4+n]...)
	r.begin += 4 + n
	for len(r.large) < size {
		if len(r.large) == cap(r.large) {
			grown := make([]byte, len(r.large), min(size, 2*cap(r.large)))
			copy(grown, r.large)
			r.large = grown
		}
		n, err := r.read(r.large[len(r.large):min(size, cap(r.large))])
		r.large = r.large[:len(r.large)+n]
		if err != nil {
			return err
		}
	}
	return nil
}

// keep makes the body that next returned the caller's. Small ones are parts of
// one allocation.
func (r *reader) keep(body []byte) []byte {
	switch n := len(body); {
	case len(r.large) > 0 && cap(r.large) < 2*len(r.large):
		r.large = nil
		return body
	case n > chunk/4:
		return append(make([]byte, 0, n), body...)
	case n > cap(r.kept)-len(r.kept):
		r.kept = make([]byte, 0, chunk)
	}
	from := len(r.kept)
	r.kept = append(r.kept, body...)
	return r.kept[from:len(r.kept):len(r.kept)]
}

// ready tells whether next would return without a read.
func (r *reader) ready() bool {
	have := r.end - r.begin
	return have >= 4 && uint64(have) >= 4+uint64(binary.BigEndian.Uint32(r.buf[r.begin:]))
}

// fill reads what there is behind what is in buf. There is room: no frame that
// is read through it is longer than buf.
func (r *reader) fill() error {
	if r.begin > 0 {
		r.end = copy(r.buf, r.buf[r.begin:r.end])
		r.begin = 0
	}
	n, err := r.read(r.buf[r.end:])
	r.end += n
	if n > 0 {
		return nil // the error comes again
	}
	return err
}

func (r *reader) read(p []byte) (int, error) {
	if now := time.Now(); r.silence > 0 && now.Sub(r.armed) > r.silence/armEvery {
		_ = r.conn.SetReadDeadline(now.Add(r.silence))
		r.armed = now
	}
	n, err := r.conn.Read(p)
	r.count.Add(uint64(n))
	if r.silence > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		err = errSilent
	}
	return n, err
}

// writer writes. It belongs to one goroutine.
type writer struct {
	conn  net.Conn
	count *atomic.Uint64 // of bytes
	stuck time.Duration  // how long a write may take
	armed time.Time
}

// write writes b in writes of at most chunk bytes.
func (w *writer) write(b []byte) error {
	for len(b) > 0 {
		if now := time.Now(); now.Sub(w.armed) > w.stuck/armEvery {
			_ = w.conn.SetWriteDeadline(now.Add(w.stuck))
			w.armed = now
		}
		n, err := w.conn.Write(b[:min(len(b), chunk)])
		w.count.Add(uint64(n))
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = errStuck
			}
			return err
		}
		b = b[n:]
	}
	return nil
}

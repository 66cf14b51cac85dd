package link

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/embedpush/push/internal/directory"
)

// bytesConn reads what there is in steps of some size.
type bytesConn struct {
	net.Conn
	r    io.Reader
	step int
}

func (c bytesConn) Read(p []byte) (int, error)      { return c.r.Read(p[:min(len(p), c.step)]) }
func (c bytesConn) SetReadDeadline(time.Time) error { return nil }

// FuzzReader reads the same bytes in two ways and wants the same frames, which
// written again make the bytes that were read.
func FuzzReader(f *testing.F) {
	f.Add([]byte{}, 1)
	f.Add(AppendMessage(AppendMessage(nil, 40, []byte("hello")), kindBye, []byte{1}), 3)
	f.Add([]byte{0, 0, 0, 0, 1}, 4)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1}, 5)
	f.Add(AppendMessage(nil, 40, make([]byte, chunk)), 4096)
	f.Add(AppendMessage(AppendMessage(nil, 40, make([]byte, 3*chunk)), 41, []byte("x")), 70_000)
	f.Add(AppendMessage(nil, 40, make([]byte, 100))[:50], 7)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		read := func(step int) (frames []byte, held bool, err error) {
			r := newReader(bytesConn{r: bytes.NewReader(in), step: step}, new(atomic.Uint64))
			r.max = MaxFrame
			for {
				ready := r.ready()
				kind, body, err := r.next()
				if err != nil {
					if cap(r.large) > 2*len(in)+largeMin {
						t.Errorf("%d bytes held for %d that came", cap(r.large), len(in))
					}
					return frames, ready, err
				}
				frames = AppendMessage(frames, kind, body)
				if kept := r.keep(body); !bytes.Equal(kept, body) {
					t.Errorf("kept %q, want %q", kept, body)
				}
			}
		}
		one, _, err1 := read(max(1, step%9000))
		all, _, err2 := read(1 << 30)
		if !bytes.Equal(one, all) || err1 != err2 {
			t.Errorf("in steps %d bytes and %v, at once %d bytes and %v", len(one), err1, len(all), err2)
		}
		if !bytes.HasPrefix(in, all) {
			t.Errorf("frames %x are not what %x begins with", all, in)
		}
		for n, size := wholeMessages(all); size > 0; { // it is what cut cuts
			m, k := cut(all[:size])
			if m == 0 || m > size || k > n {
				t.Fatalf("cut %d bytes, %d frames, of %d, %d", m, k, size, n)
			}
			all, n, size = all[m:], n-k, size-m
		}
	})
}

func FuzzHello(f *testing.F) {
	for _, h := range []hello{
		{},
		{min: 1, max: 2, from: origin("a", 1), to: origin("b", ^uint64(0)), greeting: []byte("hi")},
		{min: 1, max: 1, from: directory.Origin{ID: string(make([]byte, 300))}, greeting: make([]byte, MaxGreeting)},
	} {
		f.Add(h.append(nil)[headSize:])
	}
	f.Add([]byte{0x97, 1, 1, 0xa1, 'a', 1, 0xa1, 'b', 1})             // one field is missing
	f.Add([]byte{0x98, 1, 1, 0xa1, 'a', 1, 0xa1, 'b', 1, 0xc4, 0, 3}) // of a later version
	f.Add([]byte{0xdd, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x97, 1, 1, 0xdb, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, body []byte) {
		h, err := readHello(body)
		if err != nil {
			return
		}
		if len(h.from.ID)+len(h.to.ID)+len(h.greeting) > len(body) || h.min > h.max {
			t.Errorf("%+v out of %d bytes", h, len(body))
		}
		again, err := readHello(h.append(nil)[headSize:])
		if err != nil || again.from != h.from || again.to != h.to || again.min != h.min || again.max != h.max || !bytes.Equal(again.greeting, h.greeting) {
			t.Errorf("read %+v, written and read again %+v, %v", h, again, err)
		}
	})
}

func FuzzWelcome(f *testing.F) {
	for _, w := range []welcome{
		{},
		{proto: 1, min: 1, max: 1, origin: origin("b", 1), seq: 10, hash: ^uint64(0), greeting: []byte("hi")},
		{status: statusOther, min: 1, max: 7, origin: origin("c", 2)},
		{status: 99},
	} {
		f.Add(w.append(nil)[headSize:])
	}
	f.Add([]byte{0xdd, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, body []byte) {
		w, err := readWelcome(body)
		if err != nil {
			return
		}
		if len(w.origin.ID)+len(w.greeting) > len(body) {
			t.Errorf("%+v out of %d bytes", w, len(body))
		}
		again, err := readWelcome(w.append(nil)[headSize:])
		same := again.status == w.status && again.proto == w.proto && again.min == w.min && again.max == w.max &&
			again.origin == w.origin && again.seq == w.seq && again.hash == w.hash && bytes.Equal(again.greeting, w.greeting)
		if err != nil || !same {
			t.Errorf("read %+v, written and read again %+v, %v", w, again, err)
		}
		_ = (&refusal{w: w}).Error()
	})
}

// FuzzFrames gives an acceptor's reader frames of a peer that has the secret.
func FuzzFrames(f *testing.F) {
	self := origin("b", 1)
	d := directory.New(origin("a", 1), nil)
	d.Join(directory.Place{Kind: 1, Name: "alice"})
	delta, mark := Begin(nil, kindDelta)
	delta, _, _ = d.AppendDelta(delta, 0, 1000)
	f.Add(End(delta, mark))
	snap, mark := Begin(nil, kindSnap)
	snap, _, _ = d.Snapshot().Next(snap)
	f.Add(End(snap, mark))
	f.Add((&Mesh{cfg: Config{Directory: d}}).appendBeat(nil, 2))
	f.Add(AppendMessage(nil, kindNeed, make([]byte, 8)))
	f.Add(AppendMessage(nil, kindBye, nil))
	f.Add(AppendMessage(nil, 31, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &Mesh{cfg: Config{Self: self, Directory: directory.New(self, nil), Handler: quiet{}}, self: self}
		from := origin("a", 1)
		if _, err := m.cfg.Directory.Hello(from, true, time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		r := newReader(bytesConn{r: bytes.NewReader(b), step: 100}, new(atomic.Uint64))
		r.max = MaxFrame
		in := &In{m: m, origin: from, r: r, proto: 1, wake: make(chan struct{}, 1), fifo: newFIFO(1<<20, 1000), done: make(chan struct{})}
		if err := in.readAll(); err == nil {
			t.Error("no error at the end")
		}
	})
}

package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/embedpush/push/internal/directory"
)

const needPause = time.Second // the same NEED is not said again before

// In is a link that a peer dialled. Its methods may be called by any goroutine.
type In struct {
	// Owner is whatever the Handler keeps with the link, in Request and Ended,
	// which alone look at it. nil at first.
	Owner any

	// Static.
	m      *Mesh
	origin directory.Origin
	raw    net.Conn
	proto  uint64
	wake   chan struct{} // holds one, never closed: the writer has something to do
	fifo   *fifo
	done   chan struct{} // closed by end
	once   sync.Once
	err    error         // why it ended; static once done is closed
	read   chan struct{} // closed when nothing of it is merged any more
	worked chan struct{} // closed after Handler.Ended
	over   chan struct{} // closed when all its goroutines have ended

	// The reader's.
	r    *reader
	snap uint64 // the snapshot that comes
	todo []message

	// The writer's.
	w   writer
	buf []byte

	mu      sync.Mutex          // guards what follows; a leaf
	sources []Source            // from head on
	head    int                 // before it they had their turn
	queued  map[Source]struct{} // those in sources; nil: no more
	resting bool                // the writer waits for wake
	needed  bool                // a NEED is to be sent …
	need    uint64              // … with this
	asked   uint64              // the last one said this
	askedAt time.Time
	bye     bool // say BYE when all is sent
}

var errReplaced = errors.New("it dialled anew")

// Origin is who dialled.
func (in *In) Origin() directory.Origin { return in.origin }

// Done is closed when the link is over. Requests that came before are still
// handled then, and Handler.Ended comes behind them.
func (in *In) Done() <-chan struct{} { return in.done }

// Ready says that a Source has something to send back. It never blocks, and may
// be called any number of times: a Source stands in the queue once. After the
// end of the link it does nothing. The Source's type must be comparable.
func (in *In) Ready(s Source) {
	in.mu.Lock()
	rested := false
	if in.queued != nil {
		if _, ok := in.queued[s]; !ok {
			in.queued[s] = struct{}{}
			in.sources = append(in.sources, s)
			rested = in.resting
			in.resting = false
		}
	}
	in.mu.Unlock()
	if rested {
		poke(in.wake)
	}
}

// nextLocked takes the source whose turn it is. From now on Ready queues it
// again, so nothing that it gets while it appends is forgotten.
func (in *In) nextLocked() Source {
	if in.head == len(in.sources) {
		return nil
	}
	s := in.sources[in.head]
	in.sources[in.head] = nil
	in.head++
	if in.head == len(in.sources) {
		in.sources, in.head = in.sources[:0], 0
	} else if in.head >= 64 && in.head >= len(in.sources)/2 {
		n := copy(in.sources, in.sources[in.head:])
		clear(in.sources[n:])
		in.sources, in.head = in.sources[:n], 0
	}
	delete(in.queued, s)
	return s
}

// ask has the writer say NEED. What the answer does not bring at once is asked
// for again by each frame that comes meanwhile.
func (in *In) ask(have uint64) {
	now := time.Now()
	in.mu.Lock()
	again := in.asked == have && now.Sub(in.askedAt) < needPause
	rested := false
	if !again {
		in.asked, in.askedAt = have, now
		in.needed, in.need = true, have
		rested = in.resting
		in.resting = false
	}
	in.mu.Unlock()
	if rested {
		poke(in.wake)
	}
}

// goodbye ends the link when what the sources have is sent.
func (in *In) goodbye() {
	in.mu.Lock()
	in.bye = true
	rested := in.resting
	in.resting = false
	in.mu.Unlock()
	if rested {
		poke(in.wake)
	}
}

// end ends the link, for the first reason that is told.
func (in *In) end(err error) {
	in.once.Do(func() {
		in.err = err
		close(in.done)
		in.raw.Close()
		in.mu.Lock()
		in.sources, in.head, in.queued = nil, 0, nil
		in.mu.Unlock()
	})
}

// acceptLink is the life of a link that a peer dials, on a goroutine of its own.
func (m *Mesh) acceptLink(s *stranger) {
	conn, err := secure(s.Conn, m.linkTLS, false)
	r := newReader(conn, &m.n.BytesIn)
	var h hello
	if err == nil {
		h, err = awaitHello(r)
	}
	s.known()
	if err != nil {
		s.Close()
		m.handshakeFailed(s.Conn, "link", err)
		return
	}

	w := m.judge(h)
	in := &In{
		m: m, origin: h.from, raw: s.Conn, proto: w.proto,
		wake: make(chan struct{}, 1),
		fifo: newFIFO(m.cfg.QueueBytes, m.cfg.QueueMessages),
		done: make(chan struct{}), read: make(chan struct{}), worked: make(chan struct{}), over: make(chan struct{}),
		r:      r,
		w:      writer{conn: conn, count: &m.n.BytesOut, stuck: m.cfg.Silence},
		queued: make(map[Source]struct{}),
	}
	var old *In
	if w.status == statusOK {
		m.mu.Lock()
		if m.ending {
			w.status = statusClosing
		} else {
			old = m.ins[h.from]
			m.ins[h.from] = in
		}
		m.mu.Unlock()
	}
	if w.status != statusOK {
		m.refuse(conn, s.Conn, h, w)
		return
	}
	in.serve(old, h, w)
}

// awaitHello reads the first frame.
func awaitHello(r *reader) (h hello, err error) {
	kind, body, err := r.next()
	if err != nil {
		return h, err
	}
	if kind != kindHello {
		return h, errNoHello
	}
	return readHello(body)
}

// judge decides about a HELLO. That this run is another than was meant is said
// first: it is true whatever else is wrong.
func (m *Mesh) judge(h hello) welcome {
	w := welcome{min: m.minProto, max: m.maxProto, origin: m.self, greeting: m.cfg.Greeting}
	w.proto = min(h.max, m.maxProto)
	switch {
	case h.to != m.self:
		w.status = statusOther
	case h.from.ID == m.self.ID:
		w.status = statusSameID
	case w.proto < h.min || w.proto < m.minProto:
		w.status = statusProto
	}
	if w.status != statusOK {
		return w
	}
	later, err := m.cfg.Directory.Hello(h.from, m.cfg.Handler.Member(h.from), time.Now())
	switch {
	case later:
		w.status = statusLater
		m.redialLater(h.from)
	case err != nil: // its id is checked by membership, so there are too many
		w.status = statusMany
	}
	return w
}

// refuse answers a HELLO and says why in the log.
func (m *Mesh) refuse(conn, raw net.Conn, h hello, w welcome) {
	m.n.RefusedHellos.Add(1)
	_, _ = conn.Write(w.append(nil)) // who does not hear it dials again
	raw.Close()

	level, why := slog.LevelWarn, ""
	args := []any{"node", h.from.ID, "run", h.from.Epoch, "addr", raw.RemoteAddr()}
	switch w.status {
	case statusOther:
		level, why = slog.LevelInfo, fmt.Sprintf("it looks for node %q, run %d", h.to.ID, h.to.Epoch)
	case statusSameID:
		level, why = slog.LevelError, "two nodes run under one id, Cluster.Node must be unlike every other's"
	case statusProto:
		why = fmt.Sprintf("no common protocol: it speaks %d to %d, this node %d to %d", h.min, h.max, w.min, w.max)
	case statusLater:
		why = "a later run of it is known: two nodes run under one id, or its clock went back before it started"
	case statusMany:
		why = "too many nodes are known, or its id is none"
	case statusClosing:
		level, why = slog.LevelDebug, "this node shuts down"
	}
	m.log(level, h.from.ID, "link refused", append(args, "why", why)...)
}

// serve says WELCOME, behind the end of the link that this one replaces, and
// reads until it is over.
func (in *In) serve(old *In, h hello, w welcome) {
	m := in.m
	defer close(in.over)
	defer context.AfterFunc(m.cut, func() { in.end(errEnded) })()
	if old != nil {
		old.end(errReplaced)
		<-old.read
	}
	w.seq, w.hash = m.cfg.Directory.Have(in.origin)
	m.cfg.Handler.Greeted(in.origin, h.greeting)
	go in.work(old)

	written := make(chan struct{})
	if _, err := in.w.conn.Write(w.append(nil)); err != nil {
		in.end(err)
		close(written)
	} else {
		_ = in.raw.SetDeadline(time.Time{})
		in.r.max, in.r.silence = MaxFrame, m.cfg.Silence
		m.log(slog.LevelDebug, "", "link in", "node", in.origin.ID, "addr", in.raw.RemoteAddr(), "proto", in.proto)
		go func() {
			defer close(written)
			in.write()
		}()
		in.end(in.readAll())
	}
	close(in.read)
	in.fifo.end()
	m.told(in.err, in.origin, in.raw.RemoteAddr())
	<-written
	<-in.worked
	m.mu.Lock() // not before: the next link of this peer has to wait for the worker
	if m.ins[in.origin] == in {
		delete(m.ins, in.origin)
	}
	m.mu.Unlock()
}

// ended tells whether end was called.
func (in *In) ended() bool {
	select {
	case <-in.done:
		return true
	default:
		return false
	}
}

// readAll reads what the peer sends.
func (in *In) readAll() error {
	for {
		kind, body, err := in.r.next()
		if err == nil && kind >= FirstKind {
			in.todo = append(in.todo, message{kind, in.r.keep(body)})
		} else if err == nil {
			err = in.frame(kind, body)
		}
		if len(in.todo) > 0 && (err != nil || !in.r.ready()) {
			in.m.n.MessagesIn.Add(uint64(len(in.todo)))
			if !in.fifo.put(in.todo, in.done) {
				in.m.n.Dropped.Add(uint64(len(in.todo)))
			}
			clear(in.todo)
			in.todo = in.todo[:0]
		}
		if err != nil {
			return err
		}
	}
}

// frame does what one of the link's own frames says.
func (in *In) frame(kind byte, body []byte) error {
	m, d := in.m, in.m.cfg.Directory
	switch kind {
	case kindDelta:
		m.n.DeltasTaken.Add(1)
		return in.news(d.MergeDelta(in.origin, body, time.Now()))
	case kindSnap:
		if id, _ := binary.Uvarint(body); id != in.snap {
			in.snap = id
			m.n.SnapshotsTaken.Add(1)
		}
		return in.news(d.MergeSnap(in.origin, body, time.Now()))
	case kindBeat:
		b, ok := readBeat(body)
		if !ok {
			return errFrame
		}
		err := in.news(d.MergeBeat(in.origin, b.seq, b.hash, b.clock, time.Now()))
		if err == nil {
			m.cfg.Handler.Beat(in.origin, b.own)
		}
		return err
	case kindBye:
		return errBye
	case kindBeat2:
		if in.proto >= 2 {
			return nil
		}
	}
	m.n.UnknownFrames.Add(1)
	return nil
}

// news does what came of merging.
func (in *In) news(n directory.News, err error) error {
	m := in.m
	if n.Diverged {
		m.n.Diverged.Add(1)
		m.log(slog.LevelError, in.origin.ID, "what is known of a node is wrong, it is fetched anew", "node", in.origin.ID)
	}
	if n.Need {
		in.ask(n.Have)
	}
	if len(n.Lost) > 0 || n.Ahead > 0 {
		m.cfg.Handler.News(in.origin, n)
	}
	return err
}

// write writes until the link ends.
func (in *In) write() {
	beats := time.NewTicker(in.m.cfg.Beats)
	defer beats.Stop()
	due, busy := true, true // a beat at once; something was sent since the last
	for {
		in.mu.Lock()
		s := in.nextLocked()
		needed, need := in.needed, in.need
		in.needed = false
		bye := in.bye && s == nil
		in.resting = s == nil && !needed && !due && !bye
		resting := in.resting
		in.mu.Unlock()

		if resting {
			select {
			case <-in.wake:
			case <-beats.C:
				due = true
			case <-in.done:
				return
			}
			continue
		}
		select {
		case <-beats.C:
			due = true
		case <-in.done:
			return
		default:
		}

		buf := in.buf[:0]
		if due {
			if !busy && cap(buf) > chunk {
				buf = nil
			}
			buf = in.m.appendBeat(buf, in.proto)
			due, busy = false, false
		}
		if needed {
			in.m.n.NeedsSent.Add(1)
			mark := 0
			buf, mark = Begin(buf, kindNeed)
			buf = End(binary.BigEndian.AppendUint64(buf, need), mark)
		}
		for s != nil {
			busy = true
			buf = in.append(buf, s)
			if s = nil; len(buf) < chunk {
				in.mu.Lock()
				s = in.nextLocked()
				in.mu.Unlock()
			}
		}
		if bye {
			buf = AppendMessage(buf, kindBye, []byte{byeClosing})
		}
		if err := in.w.write(buf); err != nil {
			in.end(err)
			return
		}
		in.buf = buf
		if bye {
			t := time.AfterFunc(byeTime, func() { in.end(errEnded) })
			<-in.done // the peer hangs up
			t.Stop()
			return
		}
	}
}

// append appends what a source has, and queues it again if it has more.
func (in *In) append(buf []byte, s Source) []byte {
	before := len(buf)
	buf, more := s.Append(buf, chunk-before)
	n, size := wholeMessages(buf[before:])
	in.m.n.MessagesOut.Add(uint64(n))
	if size < len(buf)-before {
		in.m.n.Dropped.Add(1)
		in.m.log(slog.LevelError, "", "an answer is no frame, or too long", "bytes", len(buf)-before-size)
		buf = buf[:before+size]
	}
	if more && n > 0 {
		in.Ready(s)
	}
	return buf
}

// work hands the requests to the Handler, behind those of the link that this one
// replaces.
func (in *In) work(old *In) {
	defer close(in.worked)
	defer in.m.cfg.Handler.Ended(in)
	if old != nil {
		<-old.worked
	}
	var batch []message
	for {
		if batch = in.fifo.take(batch); batch == nil {
			return
		}
		bytes, done := 0, 0
		for i, msg := range batch {
			if in.m.cut.Err() != nil {
				in.m.n.Dropped.Add(uint64(len(batch) - i))
				break
			}
			batch[i] = message{}
			in.m.cfg.Handler.Request(in, msg.kind, msg.body)
			if bytes, done = bytes+msg.size(), done+1; done == 64 {
				in.fifo.handled(bytes, done)
				bytes, done = 0, 0
			}
		}
		in.fifo.handled(bytes, done)
	}
}

package netio

import (
	"sync"
	"syscall"
	"time"
)

const (
	overhead = 64       // what a queued message costs beside its bytes
	joinSize = 16 << 10 // small messages are joined up to this; a piece for a connection without descriptor
	takeOver = 4        // writes that a caller of Write does for others before it leaves them to a drain
)

// Write sends b, which it keeps and nobody changes any more. It does not
// block. nil: written or queued. ErrSlow: over the limits, nothing of b was
// taken and the connection goes on. ErrClosed: it is shut or closed.
//
// Over TotalBytes it calls Slow of the fullest connections, perhaps c's own.
func (c *Conn) Write(b []byte) error {
	c.mu.Lock()
	if c.shut || c.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	if len(b) == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.writing || c.s != nil && c.s.raw == nil {
		return c.enqueue(b)
	}
	c.writing = true
	var n int
	var err error
	if c.s == nil {
		c.refs++
		c.mu.Unlock()
		n, err = c.put(b)
		c.mu.Lock()
		c.returnLocked()
	} else {
		c.mu.Unlock()
		w := newWriter()
		n, err = w.write(c, b, false)
		w.free()
		c.mu.Lock()
	}
	if n == len(b) && c.queue() == nil {
		c.wroteAllLocked()
		c.mu.Unlock()
		return nil
	}
	return c.wrote(b, n, err)
}

// returnLocked gives up the reference that a system call had. Its caller may
// hold locks that Closed takes.
func (c *Conn) returnLocked() {
	c.refs--
	if c.closed && c.refs == 0 {
		go c.finish()
	}
}

// enqueue puts b into the queue. It is called with mu held and gives it back.
func (c *Conn) enqueue(b []byte) error {
	err := c.roomLocked(b, true)
	if err == nil {
		c.pushLocked(b)
		if !c.writing {
			c.writing = true
			c.drainLocked()
		}
		c.wakeLocked()
	}
	c.mu.Unlock()
	return err
}

// roomLocked reserves the memory that b costs, after a relief if need be, for
// which it lets go of mu. limits: those of the connection count too.
func (c *Conn) roomLocked(b []byte, limits bool) error {
	cost, cfg := len(b)+overhead, &c.shard.d.cfg
	for try := 0; ; try++ {
		q := c.queue()
		switch {
		case c.closed, c.shut && limits, c.cut:
			return ErrClosed
		case limits && q != nil && cfg.QueueBytes > 0 && q.bytes+cost > cfg.QueueBytes,
			limits && q != nil && cfg.QueueMessages > 0 && q.len() >= cfg.QueueMessages:
			return ErrSlow
		case c.shard.d.reserve(cost):
			return nil
		case try > 0:
			return ErrSlow
		}
		c.mu.Unlock()
		c.shard.d.relieve(cost)
		c.mu.Lock()
	}
}

// wrote goes on after the caller's own write when the socket did not take all
// of b, or others came meanwhile. It is called with mu held and gives it back.
func (c *Conn) wrote(b []byte, n int, err error) error {
	if err != nil {
		c.mu.Unlock()
		c.close(err, false)
		return ErrClosed
	}
	over := false
	switch {
	case n == len(b):
	case c.closed:
		err = ErrClosed
	case n > 0:
		// It is on the wire and cannot be refused any more.
		over = !c.shard.d.reserve(len(b) + overhead)
		if over {
			c.shard.d.queued.Add(int64(len(b) + overhead))
		}
		c.pushFrontLocked(b, n)
	default:
		// It was accepted when nothing was queued, so only the total counts.
		if err = c.roomLocked(b, false); err == nil {
			c.pushFrontLocked(b, 0)
		}
	}
	if n == len(b) {
		c.flushLocked()
	} else {
		c.drainLocked() // the socket is full
	}
	c.mu.Unlock()
	if over {
		c.shard.d.relieve(0)
	}
	return err
}

// flushLocked writes what is queued as far as the socket takes it and a few
// writes go, and leaves the rest to a drain. The caller is the writer. It
// lets go of mu for each write.
func (c *Conn) flushLocked() {
	if c.queue() != nil && (c.s == nil || c.s.raw != nil) {
		w := newWriter()
		for range takeOver {
			if c.queue() == nil || !c.stepLocked(w, false) {
				break
			}
		}
		w.free()
	}
	c.drainLocked()
}

// drainLocked leaves the writing to the poller or a goroutine, or ends it if
// nothing is queued. The caller is the writer.
func (c *Conn) drainLocked() {
	switch {
	case c.queue() == nil:
		c.wroteAllLocked()
		return
	case c.s == nil:
		c.watchLocked(toWrite, true)
		return
	}
	c.shard.d.wg.Add(1)
	go c.drain()
}

// wroteAllLocked is called by the writer when nothing is queued any more.
func (c *Conn) wroteAllLocked() {
	c.writing = false
	end := c.ending()
	if end == nil || !end.fin || c.closed {
		return
	}
	end.fin = false
	if c.s == nil {
		c.finLocked()
		return
	}
	c.shard.d.wg.Add(1)
	go func() {
		defer c.shard.d.wg.Done()
		if half, ok := c.s.nc.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
			c.Close()
		}
	}()
}

// drain is the writer until nothing is queued. It waits for the socket.
func (c *Conn) drain() {
	defer c.shard.d.wg.Done()
	w := newWriter()
	c.mu.Lock()
	for c.queue() != nil {
		c.stepLocked(w, true)
	}
	c.wroteAllLocked()
	c.mu.Unlock()
	w.free()
}

// stepLocked does one write from the queue, for which it lets go of mu, and
// reports whether bytes left. wait: until the socket takes some, or there is
// a reason to look at the queue again.
func (c *Conn) stepLocked(w *writer, wait bool) bool {
	b := c.queue().gather(w)
	if c.s != nil && c.s.raw == nil && len(b) > joinSize {
		b = b[:joinSize] // each piece is progress that the sweep can see
	}
	var n int
	var err error
	if c.s == nil {
		c.refs++
		c.mu.Unlock()
		n, err = c.put(b)
	} else {
		c.mu.Unlock()
		n, err = w.write(c, b, wait)
	}
	w.unjoin()
	if err != nil {
		c.close(err, false)
	}
	c.mu.Lock()
	if c.s == nil {
		c.returnLocked()
	}
	q := c.queue()
	if q == nil {
		return false // closed, or cut while nothing was in flight
	}
	q.flying = 0
	if n > 0 {
		q.moved = c.shard.d.stamp()
		c.shard.d.release(q.advance(n))
	}
	c.trimLocked()
	return n > 0
}

// parking is called by a writer that found the socket full and is about to
// wait: nothing but a message partly written is in flight now.
func (c *Conn) parking() {
	c.mu.Lock()
	if q := c.queue(); q != nil {
		q.flying = 0
		c.trimLocked()
	}
	c.mu.Unlock()
}

// trimLocked drops what a cut connection does not send any more, and the
// queue when it is empty.
func (c *Conn) trimLocked() {
	if c.cut {
		c.shard.d.release(c.queue().cut())
	}
	if c.queue().len() == 0 {
		c.freeLocked()
	}
}

// Shut ends the connection in order. Nothing more is accepted; what is queued
// is written, and then last, which Shut keeps; then it waits for the peer to
// end the connection or for the handler to Close it, while Data goes on being
// called (reading that had stopped is resumed). cut: of what is queued only
// the message in flight is finished, the rest is given up at once; in flight
// is what is partly written, and what stands in a write at this moment. When
// wait is over the connection is closed, by a reset if output is still
// queued. A second call has no effect unless it cuts, or ends, earlier; last
// is that of the first.
func (c *Conn) Shut(last []byte, cut bool, wait time.Duration) { c.shutDown(last, cut, false, wait) }

// HangUp is Shut for a peer that would not know by last that this is the end:
// behind last our side of the connection is closed, and the other is read to
// its end.
func (c *Conn) HangUp(last []byte, cut bool, wait time.Duration) { c.shutDown(last, cut, true, wait) }

func (c *Conn) shutDown(last []byte, cut, fin bool, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	at := time.Now().Add(wait)
	first := !c.shut
	if first {
		c.shut = true
		c.moreLocked().end = &ending{at: at, timer: time.AfterFunc(wait, c.Close)}
		c.resumeLocked()
	} else if end := c.more.end; at.Before(end.at) {
		end.at = at
		end.timer.Reset(wait)
	}
	if fin {
		c.more.end.fin = true
	}
	if cut && !c.cut {
		c.cut = true
		if c.queue() != nil {
			c.trimLocked()
		}
	}
	if first && len(last) > 0 {
		c.shard.d.queued.Add(int64(len(last) + overhead))
		c.pushLocked(last)
		c.more.queue.last = true
	}
	if !c.writing && (c.queue() != nil || fin) {
		c.writing = true
		c.flushLocked()
	}
	c.wakeLocked()
}

// Queued is what is queued: its cost as in Config.QueueBytes, with that of what
// was taken and is not written yet, and the number of messages.
func (c *Conn) Queued() (bytes, messages int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pulledLocked(); p != nil {
		bytes = p.taken
	}
	if q := c.queue(); q != nil {
		bytes, messages = bytes+q.bytes, q.len()
	}
	return bytes, messages
}

// queue is what waits to be written to one connection.
type queue struct {
	list   [][]byte // list[head:] are waiting
	head   int
	off    int           // how much of the first is written
	bytes  int           // what all cost
	flying int           // how many stand in a write at the moment
	last   bool          // the last one is Shut's
	moved  time.Duration // when a byte left, or the queue began
}

var queues = sync.Pool{New: func() any { return new(queue) }}

func (c *Conn) queueLocked() *queue {
	if q := c.queue(); q != nil {
		return q
	}
	q := queues.Get().(*queue)
	q.moved = c.shard.d.stamp()
	c.moreLocked().queue = q
	return q
}

func (c *Conn) freeLocked() {
	q := c.queue()
	c.more.queue = nil
	c.restLocked()
	clear(q.list)
	list := q.list[:0]
	if cap(list) > 64 {
		list = nil
	}
	*q = queue{list: list}
	queues.Put(q)
}

func (c *Conn) pushLocked(b []byte) {
	q := c.queueLocked()
	if len(q.list) == cap(q.list) && q.head > len(q.list)/2 {
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	q.list = append(q.list, b)
	q.bytes += len(b) + overhead
}

// pushFrontLocked puts b, of which off bytes are written, before all others.
// It is used only while none of them is partly written.
func (c *Conn) pushFrontLocked(b []byte, off int) {
	q := c.queueLocked()
	q.list = append(q.list, nil)
	copy(q.list[q.head+1:], q.list[q.head:])
	q.list[q.head] = b
	q.off = off
	q.bytes += len(b) + overhead
}

func (q *queue) len() int { return len(q.list) - q.head }

// gather returns what to write next: the rest of the first message, or joined
// in w's buffer as many as fit.
func (q *queue) gather(w *writer) []byte {
	q.flying = 1
	first := q.list[q.head][q.off:]
	if q.len() == 1 || len(first)+len(q.list[q.head+1]) > joinSize {
		return first
	}
	w.join = joins.Get().(*[joinSize]byte)
	b := append(w.join[:0], first...)
	for _, m := range q.list[q.head+1:] {
		if len(b)+len(m) > joinSize {
			break
		}
		b = append(b, m...)
		q.flying++
	}
	return b
}

// advance takes n written bytes off the front and returns what the finished
// messages cost.
func (q *queue) advance(n int) (freed int) {
	for n > 0 {
		m := q.list[q.head]
		if left := len(m) - q.off; n < left {
			q.off += n
			break
		} else {
			n -= left
		}
		freed += len(m) + overhead
		q.list[q.head] = nil
		q.head++
		q.off = 0
	}
	q.bytes -= freed
	return freed
}

// cut drops everything but what is in flight and Shut's last, and returns
// what it cost.
func (q *queue) cut() (freed int) {
	keep := q.flying
	if keep == 0 && q.off > 0 {
		keep = 1
	}
	from, to := q.head+keep, len(q.list)
	if q.last {
		to--
	}
	if from >= to {
		return 0
	}
	for _, m := range q.list[from:to] {
		freed += len(m) + overhead
	}
	list := make([][]byte, 0, keep+1) // the old one may be large
	list = append(append(list, q.list[q.head:from]...), q.list[to:]...)
	q.list, q.head = list, 0
	q.bytes -= freed
	return freed
}

// writer is what one write needs, so that none allocates.
type writer struct {
	c      *Conn
	b      []byte
	n      int
	err    syscall.Errno
	wait   bool
	parked bool
	join   *[joinSize]byte       // nil: nothing is joined
	ready  func(fd uintptr) bool // (*writer).tryRaw, made once
}

var (
	writers = sync.Pool{New: func() any {
		w := new(writer)
		w.ready = w.tryRaw
		return w
	}}
	joins = sync.Pool{New: func() any { return new([joinSize]byte) }}
)

func newWriter() *writer { return writers.Get().(*writer) }

func (w *writer) free() {
	w.c, w.b = nil, nil
	writers.Put(w)
}

func (w *writer) unjoin() {
	if w.join != nil {
		joins.Put(w.join)
		w.join = nil
	}
}

// write writes b to a stream once and returns how much of it left. Without
// wait it does not block, and c has a descriptor.
func (w *writer) write(c *Conn, b []byte, wait bool) (int, error) {
	if c.s.raw == nil {
		return c.s.nc.Write(b)
	}
	w.c, w.b, w.n, w.err, w.wait, w.parked = c, b, 0, 0, wait, false
	err := c.s.raw.Write(w.ready)
	if err == nil && w.err != 0 {
		err = writeError(w.err)
	}
	return w.n, err
}

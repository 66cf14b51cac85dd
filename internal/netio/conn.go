package netio

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Conn is a connection that a Driver drives. Its methods may be called by any
// goroutine at any time. It takes 96 bytes (TestConnIsSmall).
type Conn struct {
	// Static, but the socket only from Attach on; before it mu guards that.
	h     Handler
	shard *shard
	s     *stream // nil: it is polled
	polled
	slot int32    // in shard.slots
	gen  uint32   // tells it from others that had its slot
	ip   [16]byte // of the peer, IPv4 as in RFC 4291, 2.5.5.2; zero: it has none

	seen    uint32     // guarded by mu: when the last byte came, in milliseconds since d.start; they wrap after 49 days
	mu      sync.Mutex // guards everything below; no system call under it but those that take a polled socket over, watch it and shut it down
	refs    int8       // the reader, a Tick or Slow being called, a system call with a polled descriptor: Closed waits for 0
	started bool       // by Start
	stopped bool       // Data took less than it was given; nobody reads
	resumed bool       // Resume came while Data was called
	writing bool       // somebody writes: a caller of Write, the drain, or the poller when the socket has room; or it is pulled. q != nil only with it
	shut    bool       // by Shut
	cut     bool       // by Shut: the queue keeps only what is in flight, and last
	closed  bool       // the socket is closed or about to be
	told    bool       // Slow was called
	apart   bool       // while Data is called: on a goroutine of its own, or to be called again on one
	long    bool       // Apart was asked on such a goroutine
	more    *more      // nil while there is nothing of it
}

// more is what few connections have at a time. The Conn's mu guards it.
type more struct {
	queue *queue  // nil: nothing is queued
	carry *[]byte // what Data did not take; nil: nothing
	end   *ending // nil: neither shut nor closed
}

// moreLocked is where to put some of it.
func (c *Conn) moreLocked() *more {
	if c.more == nil {
		c.more = new(more)
	}
	return c.more
}

// restLocked lets go of it when there is nothing any more.
func (c *Conn) restLocked() {
	if c.more != nil && *c.more == (more{}) {
		c.more = nil
	}
}

// queue is what waits to be written, nil if nothing does.
func (c *Conn) queue() *queue {
	if c.more == nil {
		return nil
	}
	return c.more.queue
}

// ending is what there is of a connection that was shut or closed, nil for others.
func (c *Conn) ending() *ending {
	if c.more == nil {
		return nil
	}
	return c.more.end
}

// takeCarry takes what Data did not.
func (c *Conn) takeCarry() *[]byte {
	if c.more == nil {
		return nil
	}
	carry := c.more.carry
	c.more.carry = nil
	c.restLocked()
	return carry
}

// What a poller is to look for. The values are those of epoll.
const (
	toRead  = 1
	toWrite = 4 // writing is true
)

// stream is what a connection has that is not polled.
type stream struct {
	nc  net.Conn        // *pulled: none yet
	raw syscall.RawConn // nil: nc has no descriptor that we may use
}

func newStream(nc net.Conn) *stream {
	_ = nc.SetDeadline(time.Time{}) // left over from a handshake; if nc is broken, reading says so
	return &stream{nc, rawConn(nc)}
}

// ending is what only a connection near its end needs.
type ending struct {
	at    time.Time   // when Shut's wait is over
	timer *time.Timer // nil: not shut
	cause error       // for Closed
	fin   bool        // by HangUp: to be closed on our side when nothing is queued
	reset bool        // output was queued when it was closed
}

const (
	readSize  = 4 << 10 // the pooled buffer of one read from a descriptor
	plainSize = 1 << 10 // the buffer of a connection without one

	// closeNotify is how long TLS may take to say goodbye to a peer that
	// takes nothing; crypto/tls itself waits 5 s.
	closeNotify = 250 * time.Millisecond
)

// Start begins to read. A second call, or one after Close, does nothing.
func (c *Conn) Start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started || c.closed {
		return
	}
	c.started = true
	c.readLocked(time.Since(c.shard.d.start))
}

// Resume goes on reading after Data took less than it was given. One that
// comes while Data is still being called counts. Until then nobody looks at
// the connection: that the peer ended it is noticed at most by a write.
func (c *Conn) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resumeLocked()
}

func (c *Conn) resumeLocked() {
	switch {
	case c.closed:
	case c.stopped:
		c.stopped = false
		c.readLocked(c.shard.d.stamp())
	default:
		c.resumed = true
	}
}

func (c *Conn) readLocked(now time.Duration) {
	c.seen = millis(now)
	if p := c.pulledLocked(); p != nil {
		p.goOn()
		return
	}
	if c.s == nil && (c.more == nil || c.more.carry == nil) {
		c.watchLocked(toRead, true)
		return
	}
	c.refs++
	go c.read()
}

// Apart is for Data, when what it was given will take it long: the shard's
// other connections would wait. If it returns true, Data returns at once with
// what it has taken so far, and is called with the rest on a goroutine of this
// connection's own. There Apart returns false, and has that goroutine read on
// as long as there is something to read.
func (c *Conn) Apart() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.s != nil:
		return false
	case c.apart:
		c.long = true
		return false
	}
	c.apart = true
	return true
}

// Silence is the time since the last byte came, by at most a Tick too short.
// Time while reading was stopped does not count.
func (c *Conn) Silence(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return 0 // it stopped when bytes came, and Resume counts from there
	}
	return time.Duration(max(0, int32(millis(now.Sub(c.shard.d.start))-c.seen))) * time.Millisecond
}

// Peer is the address that the connection was made with, or that at the other
// end of its socket, also when it has ended, without a zone; zero if there is
// none.
func (c *Conn) Peer() netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ip == [16]byte{} {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom16(c.ip).Unmap(), c.port)
}

func (c *Conn) setPeer(at netip.AddrPort) {
	if at.Addr().IsValid() {
		c.ip, c.port = at.Addr().As16(), at.Port()
	}
}

func addrPort(nc net.Conn) netip.AddrPort {
	if tcp, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		at := tcp.AddrPort()
		return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	return netip.AddrPort{}
}

// Close ends the connection at once: a reset if output is queued, which is
// lost, otherwise a plain close. It does not block, and Closed follows.
func (c *Conn) Close() { c.close(ErrClosed, false) }

// close marks the connection closed, for cause, and severs it. hard: without
// a goodbye of TLS.
func (c *Conn) close(cause error, hard bool) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	more := c.moreLocked()
	if more.end == nil {
		more.end = new(ending)
	}
	end := more.end
	end.cause = cause
	if end.timer != nil {
		end.timer.Stop()
	}
	q := c.queue()
	unsent := q != nil
	if unsent {
		c.shard.d.release(q.bytes)
		c.freeLocked()
	}
	if p := c.pulledLocked(); p != nil {
		c.releaseTakenLocked(p, p.taken)
	}
	more.carry = nil
	end.reset = unsent
	last := c.refs == 0
	p := c.pulledLocked()
	if p != nil {
		p.goOn()
	}
	polled := c.s == nil
	short := polled || c.s.raw != nil || p != nil
	if !short {
		c.shard.d.wg.Add(1)
	}
	c.mu.Unlock()

	switch {
	case polled: // by finish: others may be using the descriptor
	case short:
		c.sever(unsent, hard) // as short as it takes the reader to look up
	default:
		go func() { // closing TLS writes, and a wrapper may do anything
			defer c.shard.d.wg.Done()
			c.sever(unsent, hard)
		}()
	}
	if last {
		go c.finish() // our caller may hold locks that Closed takes
	}
}

// sever closes the socket; everybody who waits for it returns.
func (c *Conn) sever(reset, hard bool) {
	if c.s == nil {
		c.drop(reset)
		return
	}
	nc := c.s.nc
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
		if !reset && !hard {
			timer := time.AfterFunc(closeNotify, func() { nc.Close() })
			t.Close()
			timer.Stop()
			return
		}
	}
	if t, ok := nc.(*net.TCPConn); ok && reset {
		t.SetLinger(0)
	}
	nc.Close()
}

// leave gives up a reference. The last one to leave a closed connection
// finishes it.
func (c *Conn) leave() {
	c.mu.Lock()
	c.refs--
	last := c.closed && c.refs == 0
	c.mu.Unlock()
	if last {
		c.finish()
	}
}

// finish runs once: refs does not rise again on a closed connection.
func (c *Conn) finish() {
	if c.s == nil {
		c.drop(c.more.end.reset)
	}
	c.shard.remove(c)
	c.h.Closed(c.more.end.cause)
	c.shard.d.wg.Done()
}

// sweep looks after c.
func (c *Conn) sweep(now time.Time) {
	c.mu.Lock()
	if !c.started || c.closed {
		c.mu.Unlock()
		return
	}
	c.refs++
	t := c.shard.d.cfg.WriteTimeout
	q := c.queue()
	slow := t > 0 && q != nil && now.Sub(c.shard.d.start)-q.moved >= t && c.pulledLocked() == nil && c.slowLocked()
	c.mu.Unlock()
	if slow {
		c.h.Slow()
	}
	c.h.Tick(now)
	c.leave()
}

// tellSlow calls Slow unless it was called before.
func (c *Conn) tellSlow() {
	c.mu.Lock()
	slow := c.slowLocked()
	if slow {
		c.refs++
	}
	c.mu.Unlock()
	if slow {
		c.h.Slow()
		c.leave()
	}
}

// slowLocked reports whether Slow is to be called now.
func (c *Conn) slowLocked() bool {
	if !c.started || c.closed || c.cut || c.told {
		return false
	}
	c.told = true
	return true
}

// read is the reading goroutine. It ends when Data takes less than it is
// given, and Resume starts another, so a stopped connection costs no stack
// and there is nobody to wake at its end. Of a polled connection it delivers
// what was kept, and leaves the rest to the poller when there is no more, or
// nothing long.
func (c *Conn) read() {
	c.mu.Lock()
	carry := c.takeCarry()
	c.mu.Unlock()
	switch {
	case carry != nil && !c.deliver(*carry, true, true):
	case c.s == nil:
		c.readApart()
	case c.s.raw != nil:
		c.readRaw(freshness{})
	default:
		c.readPlain(make([]byte, plainSize), freshness{})
	}
}

func (c *Conn) readPlain(buf []byte, f freshness) {
	for {
		n, err := c.s.nc.Read(buf)
		if n > 0 && !c.deliver(buf[:n], true, false) {
			return
		}
		if err != nil {
			c.readEnded(err)
			return
		}
		if n < len(buf) && f.spend(c.shard.d) {
			go c.readPlain(buf, f)
			return
		}
	}
}

// freshness decides when a reading goroutine that is about to wait hands over
// to a new one. A stack that Data made larger than the smallest, 2 KiB, never
// shrinks back to that, for a parked reader uses more than a quarter of the
// next size; the new one waits on a small stack again. It costs less than a
// read does, and a busy connection pays it a few times in a sweep.
type freshness struct {
	tick  int64 // of the driver's clock
	spent int
}

const handOvers = 8 // in a Tick

func (f *freshness) spend(d *Driver) bool {
	if tick := d.clock.Load(); tick != f.tick {
		*f = freshness{tick: tick}
	}
	f.spent++
	return f.spent <= handOvers
}

func (c *Conn) readEnded(err error) {
	if err == io.EOF {
		err = nil
	}
	c.close(err, false)
	c.leave()
}

// deliver hands b to the handler and reports whether to read on; if not, the
// reader has left and must not touch c. own: the reader is a goroutine of c's.
// kept: nobody else uses b. The caller holds a reference.
func (c *Conn) deliver(b []byte, own, kept bool) bool {
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			c.leave()
			return false
		}
		c.resumed, c.apart = false, own
		c.seen = millis(c.shard.d.stamp())
		c.mu.Unlock()
		n := c.h.Data(b)
		if n >= len(b) {
			return true
		}
		b = b[n:]
		if !kept {
			b = slices.Clone(b)
			kept = true
		}
		c.mu.Lock()
		apart := c.apart && !own
		if c.closed || c.resumed && !apart {
			c.mu.Unlock()
			continue
		}
		rest := b // b itself would be on the heap from the start
		c.moreLocked().carry = &rest
		if c.s == nil {
			c.watchLocked(toRead, false)
		}
		if apart { // with our reference
			go c.read()
		} else {
			c.stopped = true
			c.refs--
		}
		c.mu.Unlock()
		return false
	}
}

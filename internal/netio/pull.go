package netio

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"
)

// ErrFeeding is what Feed and Attach return while another Feed runs.
var ErrFeeding = errors.New("netio: Feed is running")

var (
	errAttached   = errors.New("netio: the connection has a socket")
	errNotStarted = errors.New("netio: the connection was not started")
)

// DrivePulled makes c, which is zero, a connection that has no socket: what is written to it
// waits in its queue, under the same limits, until Take, and what its peer
// says comes by Feed. There is no WriteTimeout, for who takes decides when;
// the queue may still be the fullest when TotalBytes is reached. Shut leaves
// last to be taken and HangUp is the same; when all of it was taken the
// caller is expected to Close before wait is over. peer is what Peer tells, also
// after Attach; zero: nothing, and then the socket's.
//
// wake is called whenever there may be something new to Take: a message was
// queued, the connection was shut or closed. It may run with a lock of this
// package held, on any goroutine, and overlap itself: it may only poke a
// channel, without waiting. It is not called for what happens after Attach.
//
// After the driver's Close it is as with Drive.
func (d *Driver) DrivePulled(c *Conn, h Handler, wake func(), peer netip.AddrPort) {
	c.init(d, h, peer)
	// The queue counts as being written, so nobody begins to.
	c.s, c.writing = &stream{nc: &pulled{wake: wake}}, true
	d.register(c)
}

// Take takes everything that is queued. It goes on counting, as cost, until
// Taken says that it is written, or the connection is closed or attached; but
// not against QueueBytes. over: the connection is shut or closed and nothing
// more will come. After Attach there is nothing to take, and only a closed
// connection is over.
func (c *Conn) Take() (queued [][]byte, cost int, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pulledLocked()
	if p == nil {
		return nil, 0, c.closed
	}
	if q := c.queue(); q != nil {
		queued, cost = slices.Clone(q.list[q.head:]), q.bytes
		p.taken += cost
		c.freeLocked()
	}
	return queued, cost, c.shut || c.closed
}

// Taken gives back what a Take cost.
func (c *Conn) Taken(cost int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pulledLocked(); p != nil {
		c.releaseTakenLocked(p, cost)
	}
}

func (c *Conn) releaseTakenLocked(p *pulled, cost int) {
	cost = min(cost, p.taken) // at the end all of it was
	p.taken -= cost
	c.shard.d.release(cost)
}

// Feed gives b to the handler's Data, as if it had been read, on the caller's
// goroutine, also while the connection is shut. While Data takes less than
// all, Feed waits for Resume. ErrClosed: the connection was closed before it
// returned, perhaps by Data itself. b is the handler's to change during the call.
//
// Only a connection that is started can be fed, and not after Attach. One
// Feed runs at a time: the caller sees to it, a second one returns ErrFeeding.
func (c *Conn) Feed(b []byte) error {
	c.mu.Lock()
	p := c.pulledLocked()
	var err error
	switch {
	case c.closed:
		err = ErrClosed
	case p == nil:
		err = errAttached
	case !c.started:
		err = errNotStarted
	case p.feeding:
		err = ErrFeeding
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	p.feeding = true
	c.refs++
	c.seen = millis(c.shard.d.stamp()) // b may be empty
	c.mu.Unlock()
	defer c.fed(p) // also when Data panics: net/http recovers, and Closed would wait for ever
	for len(b) > 0 {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return ErrClosed
		}
		c.resumed = false
		c.seen = millis(c.shard.d.stamp())
		c.mu.Unlock()
		n := c.h.Data(b)
		if n >= len(b) {
			return c.fedAll()
		}
		b = b[n:]
		c.mu.Lock()
		if c.closed || c.resumed {
			c.mu.Unlock()
			continue
		}
		c.stopped = true
		resume := make(chan struct{})
		p.resume = resume
		c.mu.Unlock()
		<-resume
	}
	return nil
}

// fedAll is what Feed returns when all is taken.
func (c *Conn) fedAll() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	return nil
}

// fed ends a Feed.
func (c *Conn) fed(p *pulled) {
	c.mu.Lock()
	p.feeding = false
	c.refs--
	last := c.closed && c.refs == 0
	c.mu.Unlock()
	if last {
		go c.finish() // our caller may hold locks that Closed takes
	}
}

// Paused reports whether reading is stopped: Data took less than it was given,
// and Resume did not come yet.
func (c *Conn) Paused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopped && !c.closed
}

// Attach gives a pulled connection its socket: from now on it is like any
// other. What is queued is written to it, before anything written later. rest
// was read from nc already; Attach copies it, and it is given to Data first.
// WriteTimeout and Silence count from now.
//
// ErrClosed: the connection is shut or closed. ErrFeeding: Feed runs, and the
// caller was to wait for its end; a Data that it calls is never overlapped by
// one of the socket's. With any error nothing has changed, and nc stays the
// caller's.
func (c *Conn) Attach(nc net.Conn, rest []byte) error {
	var carry *[]byte
	if len(rest) > 0 {
		rest = slices.Clone(rest)
		carry = &rest
	}
	now := time.Since(c.shard.d.start)
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pulledLocked()
	switch {
	case c.shut, c.closed:
		return ErrClosed
	case p == nil:
		return errAttached
	case p.feeding:
		return ErrFeeding
	}
	// Whoever uses the socket without the lock has held it after this: a
	// reader starts below, or by Start; a writer has found writing false, and
	// until flushLocked we are the writer; close has marked the connection
	// closed, after us or so that we returned above.
	c.releaseTakenLocked(p, p.taken)
	c.connect(nc)
	if carry != nil {
		c.moreLocked().carry = carry
	}
	if c.started {
		c.readLocked(now)
	}
	if q := c.queue(); q != nil {
		q.moved = now
	}
	c.flushLocked()
	return nil
}

// pulled stands in for the socket of a connection until it has one. The
// connection's mu guards resume, feeding and taken.
type pulled struct {
	wake    func()        // static
	resume  chan struct{} // closed when a Feed that waits shall look again; nil: none waits
	feeding bool
	taken   int // what was taken and is not written yet costs
}

// pulledLocked is nil when c has a socket.
func (c *Conn) pulledLocked() *pulled {
	if c.s == nil {
		return nil
	}
	p, _ := c.s.nc.(*pulled)
	return p
}

// wakeLocked tells whoever takes that there may be something new.
func (c *Conn) wakeLocked() {
	if p := c.pulledLocked(); p != nil {
		p.wake()
	}
}

// goOn lets a Feed go on that waits.
func (p *pulled) goOn() {
	if p.resume != nil {
		close(p.resume)
		p.resume = nil
	}
}

// Close is all that is ever called but RemoteAddr.
func (p *pulled) Close() error {
	p.wake()
	return nil
}

func (p *pulled) Read([]byte) (int, error)         { return 0, net.ErrClosed }
func (p *pulled) Write([]byte) (int, error)        { return 0, net.ErrClosed }
func (p *pulled) LocalAddr() net.Addr              { return noAddr{} }
func (p *pulled) RemoteAddr() net.Addr             { return noAddr{} }
func (p *pulled) SetDeadline(time.Time) error      { return nil }
func (p *pulled) SetReadDeadline(time.Time) error  { return nil }
func (p *pulled) SetWriteDeadline(time.Time) error { return nil }

// noAddr is the address of a connection without a socket.
type noAddr struct{}

func (noAddr) Network() string { return "pulled" }
func (noAddr) String() string  { return "pulled" }

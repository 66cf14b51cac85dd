// Package netio drives connections: it reads, keeps a bounded queue, writes
// and sweeps. It knows bytes, not protocols; a Handler does the rest.
//
// An idle connection holds no buffer, no queue and no timer, and whoever calls
// Write writes. What waits for bytes, and for a full socket, depends on the
// connection:
//
//   - A descriptor of its own (exactly *net.TCPConn or *net.UnixConn), on Linux:
//     one of a few pollers (poll_linux.go). There is no goroutine and no
//     net.Conn any more.
//   - A descriptor on another Unix, or when the poller cannot have it: a
//     goroutine without a buffer reads, and another writes while the socket
//     is full.
//   - Every other net.Conn (TLS, net.Pipe, a wrapper): a goroutine with a small
//     buffer reads, and another writes while something is queued.
//
// A pulled connection has no socket, and perhaps gets one later: its queue is
// taken, its bytes are fed.
package netio

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

var (
	ErrSlow   = errors.New("netio: too much is queued for the connection")
	ErrClosed = errors.New("netio: connection is closed")
)

// Config is what New takes; it is copied.
type Config struct {
	// QueueBytes bounds what is queued for one connection. A message costs
	// its bytes and 64 more until the last of its bytes is written; an empty
	// queue takes any one message. So a queue holds at most QueueBytes and
	// one message. 0 or less: no bound.
	QueueBytes int
	// QueueMessages bounds the number of messages queued for one connection,
	// with the same grace for one message. 0 or less: no bound.
	QueueMessages int
	// TotalBytes bounds all queues together. It is exceeded only by messages
	// that are already partly on the wire, and by Shut's last ones, until
	// the fullest queues have been given up for them. 0 or less: no bound.
	TotalBytes int64
	// WriteTimeout is how long a queue may go without any byte leaving it;
	// then the connection is stuck and its handler hears Slow, up to two
	// Ticks later and never earlier. 0 or less: never.
	WriteTimeout time.Duration
	// Tick is the time between two sweeps. 0 or less: a second.
	Tick time.Duration
}

// Handler is told what happens to a connection. No method may block, or take
// long: the shard's other connections wait for it (see Conn.Apart). None may
// rely on the goroutine it runs on. Nothing is called before Start except
// Closed. Data, Tick and Slow may overlap each other (each with itself never);
// Closed overlaps nothing and is the last. All may call any method of any
// Conn, with the exception noted at Slow.
type Handler interface {
	// Data gets what was read, in order. b is valid, and may be modified,
	// only during the call. When it returns n < len(b) reading stops; the
	// rest is kept as Data left it and given again, first, after Resume.
	Data(b []byte) (n int)
	// Tick is called by the sweep, once in each, with the sweep's time.
	Tick(now time.Time)
	// Slow says that the queue is stuck for WriteTimeout, or that it was the
	// fullest when TotalBytes was reached. It is called at most once, with no
	// lock of this package held but the one that makes reliefs wait for each
	// other, by the sweep or by any goroutine that calls
	// Write on any connection: a caller of Write holds no lock that Slow
	// takes. The handler is expected to Shut with cut, or to Close, before it
	// returns. It must not call Write: others wait for the memory.
	Slow()
	// Closed is called exactly once. err is nil when the peer ended the
	// connection, ErrClosed when we did, otherwise what reading or writing
	// failed with.
	Closed(err error)
}

// Driver drives connections. Make one with New.
type Driver struct {
	// Static.
	cfg   Config
	start time.Time
	stop  chan struct{} // closed by Close; ends the sweep
	once  sync.Once     // Close

	// Any goroutine's.
	shards []shard
	next   atomic.Uint32  // shard of the next connection
	queued atomic.Int64   // what all queues cost together
	clock  atomic.Int64   // coarse time since start, set by the sweep
	relief sync.Mutex     // one relief at a time; held while handlers hear Slow
	wg     sync.WaitGroup // the sweep, every connection until its Closed has returned, every drain and every closing
}

// shard is a table of connections, and the poller of those that have one. Its
// lock is a leaf.
type shard struct {
	d *Driver // static

	mu     sync.Mutex // guards everything below
	closed bool
	slots  []*Conn // nil: free
	free   []int32 // which
	gen    uint32  // of the last connection that got a slot
	poll   poller
	_      [64]byte // a cache line between two shards
}

const chunk = 256 // connections copied from a shard at a time

// New makes a driver and starts its sweep; Close ends both.
func New(cfg Config) *Driver {
	if cfg.Tick <= 0 {
		cfg.Tick = time.Second
	}
	d := &Driver{
		cfg:    cfg,
		start:  time.Now(),
		stop:   make(chan struct{}),
		shards: make([]shard, runtime.GOMAXPROCS(0)),
	}
	for i := range d.shards {
		d.shards[i].d = d
	}
	d.wg.Go(d.sweep)
	return d
}

// Drive makes c, which is zero, the connection of nc, which belongs to the
// driver from now on. c can be written at once; nothing is read, and the
// handler hears nothing but Closed, before Start. After the driver's Close,
// Drive closes nc and the handler hears Closed from a goroutine that nobody
// waits for. peer is what Peer tells; zero: the socket's address.
func (d *Driver) Drive(c *Conn, nc net.Conn, h Handler, peer netip.AddrPort) {
	c.init(d, h, peer)
	c.connect(nc)
	d.register(c)
}

func (c *Conn) init(d *Driver, h Handler, peer netip.AddrPort) {
	c.h, c.shard = h, &d.shards[d.next.Add(1)%uint32(len(d.shards))]
	c.setPeer(peer)
}

// connect gives c its socket.
func (c *Conn) connect(nc net.Conn) {
	if c.ip == [16]byte{} {
		c.setPeer(addrPort(nc))
	}
	c.s = nil
	if !c.adopt(nc) {
		c.s = newStream(nc)
	}
}

// register puts c, which nobody else knows yet, into its shard.
func (d *Driver) register(c *Conn) {
	c.seen = millis(time.Since(d.start))
	s := c.shard
	s.mu.Lock()
	closed := s.closed
	if !closed {
		d.wg.Add(1)
		s.gen++
		c.gen = s.gen
		if n := len(s.free); n > 0 {
			c.slot = s.free[n-1]
			s.free = s.free[:n-1]
			s.slots[c.slot] = c
		} else {
			c.slot = int32(len(s.slots))
			s.slots = append(s.slots, c)
		}
	}
	s.mu.Unlock()
	if closed {
		c.closed = true
		c.moreLocked().end = &ending{cause: ErrClosed}
		c.sever(false, true)
		go c.h.Closed(ErrClosed)
	}
}

// Close closes every connection and returns when the last Closed, and every
// goroutine of the driver, is through. It must not be called by a Handler.
func (d *Driver) Close() {
	d.once.Do(func() {
		for i := range d.shards {
			s := &d.shards[i]
			s.mu.Lock()
			s.closed = true
			s.mu.Unlock()
		}
		d.each(func(c *Conn) { c.close(ErrClosed, true) })
		close(d.stop)
	})
	d.wg.Wait()
	for i := range d.shards { // nobody watches anything any more
		d.shards[i].closePoller()
	}
}

// QueuedBytes is what all queues cost together.
func (d *Driver) QueuedBytes() int64 { return d.queued.Load() }

// remove frees c's slot.
func (s *shard) remove(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots[c.slot] = nil
	s.free = append(s.free, c.slot)
	if len(s.free) == len(s.slots) {
		s.slots, s.free = nil, nil
	}
}

// each calls f for every connection, with no lock held. One that comes
// meanwhile may be missed.
func (d *Driver) each(f func(c *Conn)) {
	var some [chunk]*Conn
	for i := range d.shards {
		s := &d.shards[i]
		for from, n := 0, chunk; n == chunk; from += n {
			s.mu.Lock()
			n = copy(some[:], s.slots[min(from, len(s.slots)):])
			s.mu.Unlock()
			for _, c := range some[:n] {
				if c != nil {
					f(c)
				}
			}
		}
	}
}

// sweep is the one goroutine that time passes by.
func (d *Driver) sweep() {
	ticker := time.NewTicker(d.cfg.Tick)
	defer ticker.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-ticker.C:
		}
		now := time.Now()
		d.clock.Store(int64(now.Sub(d.start)))
		d.each(func(c *Conn) { c.sweep(now) })
	}
}

// stamp is a time that is not past, at most a Tick ahead: what is measured
// from it comes out too short rather than too long, and costs no call of
// time.Now.
func (d *Driver) stamp() time.Duration { return time.Duration(d.clock.Load()) + d.cfg.Tick }

func millis(d time.Duration) uint32 { return uint32(d.Milliseconds()) }

// reserve takes n bytes of TotalBytes, or nothing.
func (d *Driver) reserve(n int) bool {
	for {
		now := d.queued.Load()
		if d.cfg.TotalBytes > 0 && now+int64(n) > d.cfg.TotalBytes {
			return false
		}
		if d.queued.CompareAndSwap(now, now+int64(n)) {
			return true
		}
	}
}

func (d *Driver) release(n int) { d.queued.Add(-int64(n)) }

// relieve tells the fullest connections that they are slow, until all queues
// together leave room for need more bytes and take at most 15/16 of
// TotalBytes. It is called with no lock held.
func (d *Driver) relieve(need int) {
	goal := min(d.cfg.TotalBytes-d.cfg.TotalBytes/16, d.cfg.TotalBytes-int64(need))
	if goal < 0 {
		return // it would not fit if everything else were gone
	}
	d.relief.Lock()
	defer d.relief.Unlock()
	if d.queued.Load() <= goal {
		return // whoever held the lock did it
	}
	type load struct {
		c     *Conn
		bytes int
	}
	var loads []load
	d.each(func(c *Conn) {
		if bytes, _ := c.Queued(); bytes > 0 {
			loads = append(loads, load{c, bytes})
		}
	})
	slices.SortFunc(loads, func(a, b load) int { return cmp.Compare(b.bytes, a.bytes) })
	promised := int64(0) // what is still in flight of those given up; it goes with them
	for _, l := range loads {
		if d.queued.Load()-promised <= goal {
			return
		}
		l.c.tellSlow()
		bytes, _ := l.c.Queued()
		promised += int64(bytes)
	}
}

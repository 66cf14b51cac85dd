package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	window  = 64 << 10 // bytes a stream holds unread before Write blocks: the two kernels' buffers
	backlog = 128      // connections that wait for Accept
)

// Listener is a net.Listener of a Host.
type Listener struct {
	host  *Host
	at    netip.AddrPort
	conns chan net.Conn // never closed
	done  chan struct{} // closed by Close
	once  sync.Once
}

// Listen listens on a port of the host; 0 picks one, and Addr tells it.
func (h *Host) Listen(port int) (*Listener, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	at, err := h.takeLocked(port)
	if err != nil {
		return nil, err
	}
	return h.listenLocked(at), nil
}

func (h *Host) listenLocked(at netip.AddrPort) *Listener {
	l := &Listener{host: h, at: at, conns: make(chan net.Conn, backlog), done: make(chan struct{})}
	h.listeners[at.Port()] = l
	h.net.changedLocked()
	return l
}

// Listen is for a test that needs one listener and no faults: it makes a network of its own. addr is an IP address with a port.
func Listen(addr string) (*Listener, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	return New(0).Host(at.Addr().String()).Listen(int(at.Port()))
}

func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Close frees the port. Connections nobody has accepted are closed, the others live on.
func (l *Listener) Close() error {
	l.once.Do(func() {
		n := l.host.net
		n.mu.Lock()
		delete(l.host.listeners, l.at.Port())
		n.changedLocked()
		n.mu.Unlock()
		close(l.done)
	})
	for {
		select {
		case c := <-l.conns:
			c.Close()
		default:
			return nil
		}
	}
}

func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

// Dial connects to the listener from another port of its own host.
func (l *Listener) Dial() (net.Conn, error) {
	return l.host.DialContext(context.Background(), "tcp", l.at.String())
}

// DialContext connects to this listener whatever the address says, from another port of its own host: for http.Transport and
// websocket.Dialer, whose addresses are names.
func (l *Listener) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return l.host.DialContext(ctx, network, l.at.String())
}

// DialFrom connects to the listener from the host with the given address, which is made if there is none.
func (l *Listener) DialFrom(ctx context.Context, ip string) (net.Conn, error) {
	return l.host.net.Host(ip).DialContext(ctx, "tcp", l.at.String())
}

// DialContext connects to an IP address with a port, whatever the network is called. A host that is not there, is cut off or does
// not accept is waited for until ctx ends; a port without a listener is refused.
func (h *Host) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: strAddr(addr), Err: err}
	}
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fail(err)
	}
	if rtt := h.net.delay() + h.net.delay(); rtt > 0 {
		if err := wait(ctx, nil, nil, time.Now().Add(rtt)); err != nil {
			return fail(err)
		}
	}
	for {
		h.net.mu.Lock()
		changed := h.net.changed
		peer := h.net.hosts[to.Addr()]
		open := peer != nil && h.net.fateLocked(h, peer) == passes && h.net.fateLocked(peer, h) == passes
		var l *Listener
		var from netip.AddrPort
		if open {
			l = peer.listeners[to.Port()]
			from = netip.AddrPortFrom(h.ip, h.freePortLocked())
		}
		h.net.mu.Unlock()
		switch {
		case open && l == nil:
			return fail(syscall.ECONNREFUSED)
		case open:
			near, far := connect(h, peer, from, to)
			select {
			case l.conns <- far:
				select {
				case <-l.done: // Close may have emptied the backlog before far got into it
					far.Close()
				default:
				}
				return near, nil
			case <-l.done:
				return fail(syscall.ECONNREFUSED)
			case <-ctx.Done():
				return fail(ctxErr(ctx))
			}
		}
		if err := wait(ctx, changed, nil, time.Time{}); err != nil {
			return fail(err)
		}
	}
}

type strAddr string

func (a strAddr) Network() string { return "tcp" }
func (a strAddr) String() string  { return string(a) }

// wait returns nil when one of the channels is closed or the time has come (zero: never), and an error when ctx ends.
func wait(ctx context.Context, a, b <-chan struct{}, until time.Time) error {
	var timer <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-a:
	case <-b:
	case <-timer:
	case <-ctx.Done():
		return ctxErr(ctx)
	}
	return nil
}

// ctxErr is the error of a dial that took too long: net's dialer tells a timeout, and callers ask for it.
func ctxErr(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return ctx.Err()
}

// conn is one end of a connection: it reads from one stream and writes to the other.
type conn struct {
	in, out       *stream
	local, remote netip.AddrPort
}

func connect(a, b *Host, at, to netip.AddrPort) (near, far *conn) {
	ab := &stream{net: a.net, from: a, to: b, changed: make(chan struct{})}
	ba := &stream{net: a.net, from: b, to: a, changed: make(chan struct{})}
	return &conn{in: ba, out: ab, local: at, remote: to}, &conn{in: ab, out: ba, local: to, remote: at}
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	return n, c.opError("read", err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	return n, c.opError("write", err)
}

func (c *conn) opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// Close ends both directions. As with TCP, what was written still arrives, and an end that closes with bytes unread makes the
// other's reads end with a reset instead of EOF.
func (c *conn) Close() error {
	unread := c.in.closeReader()
	c.out.closeWriter(unread, true)
	return nil
}

// CloseWrite ends the direction out; the other end reads EOF after the last byte.
func (c *conn) CloseWrite() error {
	c.out.closeWriter(false, false)
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.change(func() { c.in.readBy = t })
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.change(func() { c.out.writeBy = t })
	return nil
}

// stream is one direction of a connection.
type stream struct {
	net      *Network
	from, to *Host

	mu              sync.Mutex // guards what follows; Network.mu may be locked under it
	changed         chan struct{}
	chunks          []chunk
	size            int       // bytes in chunks
	last            time.Time // when the newest chunk arrives: no later one overtakes it
	ended           bool      // the writer closed: EOF after the chunks
	reset           bool      // … with bytes unread: ECONNRESET instead of EOF
	closed, cut     bool      // the reader closed; the writer's end closed for writing and reading
	readBy, writeBy time.Time // deadlines
}

type chunk struct {
	at time.Time // when it arrives
	b  []byte
}

func (s *stream) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.changedLocked()
}

func (s *stream) changedLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *stream) closeReader() (unread bool) {
	s.change(func() {
		unread = s.size > 0
		s.closed, s.chunks, s.size = true, nil, 0
	})
	return unread
}

func (s *stream) closeWriter(reset, all bool) {
	s.change(func() {
		s.reset = s.reset || reset && !s.ended
		s.ended, s.cut = true, s.cut || all
	})
}

func (s *stream) read(p []byte) (int, error) {
	for {
		n, until, changed, path, err := s.tryRead(p)
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
		wait(context.Background(), changed, path, until)
	}
}

// tryRead reads what is there, or tells when to look again: at a time, and when a channel is closed.
func (s *stream) tryRead(p []byte) (n int, until time.Time, changed, path <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fate, path := s.net.path(s.from, s.to)
	now := time.Now()
	switch {
	case s.closed:
		return 0, until, nil, nil, net.ErrClosed
	case !s.readBy.IsZero() && !now.Before(s.readBy):
		return 0, until, nil, nil, os.ErrDeadlineExceeded
	}
	until = s.readBy
	if fate == hangs {
		return 0, until, s.changed, path, nil
	}
	for len(s.chunks) > 0 && n < len(p) && !s.chunks[0].at.After(now) {
		c := &s.chunks[0]
		m := copy(p[n:], c.b)
		n, c.b = n+m, c.b[m:]
		if len(c.b) == 0 {
			s.chunks = s.chunks[1:]
		}
	}
	if n > 0 {
		s.size -= n
		s.changedLocked()
		return n, until, nil, nil, nil
	}
	switch {
	case len(s.chunks) > 0:
		if at := s.chunks[0].at; until.IsZero() || at.Before(until) {
			until = at
		}
	case fate == broken || s.reset:
		err = syscall.ECONNRESET
	case s.ended:
		err = io.EOF
	}
	return 0, until, s.changed, path, err
}

func (s *stream) write(p []byte) (n int, err error) {
	for {
		m, changed, path, until, err := s.tryWrite(p[n:])
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
		wait(context.Background(), changed, path, until)
	}
}

func (s *stream) tryWrite(p []byte) (n int, changed, path <-chan struct{}, until time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fate, path := s.net.path(s.from, s.to)
	now := time.Now()
	switch {
	case s.cut:
		err = net.ErrClosed
	case s.ended || s.closed && fate == passes:
		err = syscall.EPIPE
	case !s.writeBy.IsZero() && !now.Before(s.writeBy):
		err = os.ErrDeadlineExceeded
	case fate == broken:
		err = syscall.ECONNRESET
	}
	n = min(len(p), window-s.size)
	if err != nil || n <= 0 {
		return 0, s.changed, path, s.writeBy, err
	}
	if at := now.Add(s.net.delay()); at.After(s.last) {
		s.last = at
	}
	s.chunks = append(s.chunks, chunk{at: s.last, b: append([]byte(nil), p[:n]...)})
	s.size += n
	s.changedLocked()
	return n, s.changed, path, s.writeBy, nil
}

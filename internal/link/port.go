package link

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	handshakeTime = 5 * time.Second // for the first byte, TLS and HELLO together; and for a dial

	maxPending  = 128 // streams that have not proved what they are
	maxSilent   = 32  // … of one address, of which nothing has come
	maxProving  = 8   // … of one address, that are to be links or relays
	maxAccepted = 128 // relays that wait for Accept
)

// pending is the streams that have not proved what they are. An address may
// have only some of them, unless it is loopback, where a whole cluster may run.
type pending struct {
	mu      sync.Mutex // guards what follows and what strangers have; a leaf
	all     map[*stranger]struct{}
	silent  map[netip.Addr]int // of which no byte has come
	proving map[netip.Addr]int // that are to be links or relays
}

// stranger is one of them.
type stranger struct {
	net.Conn
	p       *pending
	from    netip.Addr
	proving bool
}

func newPending() *pending {
	return &pending{all: make(map[*stranger]struct{}), silent: make(map[netip.Addr]int), proving: make(map[netip.Addr]int)}
}

// add counts a stream that has come, or returns nil if there are too many.
func (p *pending) add(conn net.Conn) *stranger {
	s := &stranger{Conn: conn, p: p, from: remoteIP(conn)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all) >= maxPending || !s.from.IsLoopback() && p.silent[s.from] >= maxSilent {
		return nil
	}
	p.all[s] = struct{}{}
	p.silent[s.from]++
	return s
}

// proves counts it among those that are to be links or relays, and tells
// whether there is room.
func (s *stranger) proves() bool {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if !s.from.IsLoopback() && p.proving[s.from] >= maxProving {
		return false
	}
	s.uncountLocked()
	s.proving = true
	p.proving[s.from]++
	return true
}

// known ends the counting: it is known what it is, or it is closed.
func (s *stranger) known() {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.uncountLocked()
	delete(s.p.all, s)
}

func (s *stranger) uncountLocked() {
	of := s.p.silent
	if s.proving {
		of = s.p.proving
	}
	if of[s.from]--; of[s.from] == 0 {
		delete(of, s.from)
	}
}

func (p *pending) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all)
}

// close closes those that are to be links or relays, or the others; their
// goroutines see to the rest.
func (p *pending) close(proving bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.all {
		if s.proving == proving {
			s.Close()
		}
	}
}

func remoteIP(conn net.Conn) netip.Addr {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	at, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	return at.Addr().Unmap()
}

// takeStreams takes what comes in on the transport, until it is shut down.
func (m *Mesh) takeStreams() {
	streams := m.inner.StreamCh()
	for {
		select {
		case conn, ok := <-streams:
			if !ok {
				return
			}
			s := m.pending.add(conn)
			if s == nil {
				m.n.StreamsRefused.Add(1)
				m.log(slog.LevelWarn, remoteIP(conn).String(), "stream refused, there are too many that say nothing", "addr", conn.RemoteAddr())
				conn.Close()
				continue
			}
			m.port.Go(func() { m.classify(s) })
		case <-m.shut:
			return
		}
	}
}

// classify looks at the first byte of a stream and gives it away.
func (m *Mesh) classify(s *stranger) {
	_ = s.SetDeadline(time.Now().Add(handshakeTime))
	first := make([]byte, 1)
	if _, err := io.ReadFull(s.Conn, first); err != nil {
		s.known()
		s.Close()
		if !errors.Is(err, io.EOF) { // somebody looked whether the port is open
			m.n.HandshakesFailed.Add(1)
			m.log(slog.LevelDebug, "", "stream said nothing", "addr", s.RemoteAddr(), "err", err)
		}
		return
	}
	switch first[0] {
	case linkByte, relayByte:
		prove := m.acceptLink
		if first[0] == relayByte {
			prove = m.acceptRelay
		}
		if !s.proves() {
			m.n.StreamsRefused.Add(1)
			m.log(slog.LevelWarn, s.from.String(), "stream refused, there are too many that prove nothing", "addr", s.RemoteAddr())
		} else if m.begin(func() { prove(s) }) {
			return
		}
		s.known()
		s.Close()
	default:
		_ = s.SetDeadline(time.Time{})
		select {
		case m.streams <- &peeked{s.Conn, first}:
		case <-m.shut:
			s.Close()
		}
		s.known()
	}
}

// peeked is a stream of which a byte was read.
type peeked struct {
	net.Conn
	first []byte
}

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// transport is what memberlist gets.
type transport struct{ m *Mesh }

var _ memberlist.NodeAwareTransport = transport{}

func (t transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	return t.m.inner.FinalAdvertiseAddr(ip, port)
}

func (t transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.m.inner.WriteTo(b, addr)
}

func (t transport) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	if inner, ok := t.m.inner.(memberlist.NodeAwareTransport); ok {
		return inner.WriteToAddress(b, addr)
	}
	return t.m.inner.WriteTo(b, addr.Addr)
}

func (t transport) PacketCh() <-chan *memberlist.Packet { return t.m.inner.PacketCh() }

func (t transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.m.inner.DialTimeout(addr, timeout)
}

func (t transport) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if inner, ok := t.m.inner.(memberlist.NodeAwareTransport); ok {
		return inner.DialAddressTimeout(addr, timeout)
	}
	return t.m.inner.DialTimeout(addr.Addr, timeout)
}

func (t transport) StreamCh() <-chan net.Conn { return t.m.streams }

// Shutdown shuts the inner transport down, which may wait until its streams are
// taken, and then what takes them.
func (t transport) Shutdown() error {
	m := t.m
	m.shutting.Do(func() {
		m.shutErr = m.inner.Shutdown()
		close(m.shut)
		m.pending.close(false)
		m.port.Wait()
	})
	return m.shutErr
}

// Abandon ends a Mesh whose transport is to stay as it is: memberlist did not
// begin.
func (m *Mesh) Abandon() {
	m.shutting.Do(func() {
		close(m.shut)
		m.pending.close(false)
		m.port.Wait()
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	m.Close(ctx)
}

// dial dials through the transport and sends the first byte. The transport
// knows no context: a dial that is given up ends by itself, and what it brings
// is closed.
func (m *Mesh) dial(ctx context.Context, addr string, first byte) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		conn, err := transport{m}.DialAddressTimeout(memberlist.Address{Addr: addr}, handshakeTime)
		select {
		case done <- result{conn, err}:
		case <-ctx.Done():
			if err == nil {
				conn.Close()
			}
		}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, r.err
		}
		_ = r.conn.SetDeadline(time.Now().Add(handshakeTime))
		if _, err := r.conn.Write([]byte{first}); err != nil {
			r.conn.Close()
			return nil, err
		}
		return r.conn, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

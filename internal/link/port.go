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
	handshakeTime = 5 * time.Second // for the first bytes, TLS and HELLO together; and for a dial

	maxPending  = 128 // streams that have not proved what they are
	maxSilent   = 32  // … of one network, of which too little has come to tell
	maxProving  = 8   // … of one network, that are to be links or relays
	maxAccepted = 128 // relays that wait for Accept
)

// pending is the streams that have not proved what they are, and those that
// memberlist has, which it reads before it knows whether their sender has the
// secret. A network, an IPv4 address or an IPv6 /64, may have only some of them,
// unless it is loopback, where a whole cluster may run.
type pending struct {
	mu   sync.Mutex // guards what follows and what strangers have; a leaf
	all  [stages]map[*stranger]struct{}
	of   [stages]map[netip.Addr]int
	held int // bytes that memberlist has read of its streams, beyond freeBytes of each
}

// stage is how far a stream has come.
type stage int

const (
	silent    stage = iota // too little has come to tell what it is
	proving                // is to be a link or a relay
	gossiping              // memberlist's
	stages
	known = stages // or closed: not counted
)

// limits of the streams of each stage. When there are too many, the oldest of
// them is closed for a new one, if it is older than patience: a member says what
// it has to say at once, and who keeps streams open for long keeps no member out.
var limits = [stages]struct {
	each     int           // of one network
	patience time.Duration // 0: none is closed, the new one is refused
}{
	silent:    {maxSilent, 100 * time.Millisecond},
	proving:   {each: maxProving},
	gossiping: {maxGossipEach, time.Second},
}

// stranger is one of them.
type stranger struct {
	net.Conn
	p     *pending
	from  netip.Addr // the first one of its network
	local bool       // loopback
	at    stage
	since time.Time // when it came to its stage
	read  int       // bytes that memberlist has read
	held  int       // … of which pending counts so many
	over  bool      // memberlist has closed it
}

func newPending() *pending {
	p := new(pending)
	for i := range stages {
		p.all[i], p.of[i] = make(map[*stranger]struct{}), make(map[netip.Addr]int)
	}
	return p
}

// add counts a stream that has come. ok: there is room; closed: another one had
// to go for it, or nil.
func (p *pending) add(conn net.Conn) (s, closed *stranger, ok bool) {
	ip := remoteIP(conn)
	s = &stranger{Conn: conn, p: p, from: network(ip), local: ip.IsLoopback(), at: known}
	p.mu.Lock()
	closed, ok = s.enterLocked(silent)
	p.mu.Unlock()
	if closed != nil {
		closed.Conn.Close()
	}
	return s, closed, ok
}

// becomes counts it in another stage. ok: there is room, and it was not closed
// meanwhile; closed: another one had to go for it, or nil.
func (s *stranger) becomes(to stage) (closed *stranger, ok bool) {
	s.p.mu.Lock()
	if s.at != known {
		closed, ok = s.enterLocked(to)
	}
	s.p.mu.Unlock()
	if closed != nil {
		closed.Conn.Close()
	}
	return closed, ok
}

func (s *stranger) enterLocked(to stage) (closed *stranger, ok bool) {
	p, now := s.p, time.Now()
	full := false
	switch to {
	case silent:
		full = len(p.all[silent])+len(p.all[proving]) >= maxPending
	case gossiping:
		full = len(p.all[gossiping]) >= maxGossip
	}
	fullHere := !s.local && p.of[to][s.from] >= limits[to].each
	if full || fullHere {
		for o := range p.all[to] {
			if (!fullHere || o.from == s.from) && (closed == nil || o.since.Before(closed.since)) {
				closed = o
			}
		}
		if closed == nil || limits[to].patience == 0 || now.Sub(closed.since) <= limits[to].patience {
			return nil, false
		}
		closed.leaveLocked()
	}
	s.leaveLocked()
	s.at, s.since = to, now
	p.all[to][s] = struct{}{}
	p.of[to][s.from]++
	return closed, true
}

// known ends the counting: it is known what it is, or it is closed. It tells
// whether it was counted still: it was not closed for another one.
func (s *stranger) known() bool {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	return s.leaveLocked()
}

func (s *stranger) leaveLocked() bool {
	if s.at == known {
		return false
	}
	delete(s.p.all[s.at], s)
	of := s.p.of[s.at]
	if of[s.from]--; of[s.from] == 0 {
		delete(of, s.from)
	}
	s.at = known
	return true
}

// count is how many have not proved what they are, and how many memberlist has.
func (p *pending) count() (unproved, gossip int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all[silent]) + len(p.all[proving]), len(p.all[gossiping])
}

// close closes those of a stage; their goroutines see to the rest.
func (p *pending) close(at stage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.all[at] {
		s.Conn.Close()
	}
}

// network is the address itself, or the first one of an IPv6 /64, of which one
// host may have all.
func network(ip netip.Addr) netip.Addr {
	if ip.Is6() {
		if prefix, err := ip.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return ip
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
			s, closed, ok := m.pending.add(conn)
			const why = "there are too many that say nothing"
			if closed != nil {
				m.refused(closed, why)
			}
			if !ok {
				m.refused(s, why)
				conn.Close()
				continue
			}
			m.port.Go(func() { m.classify(s) })
		case <-m.shut:
			return
		}
	}
}

// refused counts and tells of a stream that is closed.
func (m *Mesh) refused(s *stranger, why string) {
	m.n.StreamsRefused.Add(1)
	m.log(slog.LevelWarn, s.from.String(), "stream refused, "+why, "addr", s.RemoteAddr())
}

// full closes a stream over a limit, or that no member sends. That it was closed
// for another one has been told already.
func (m *Mesh) full(s *stranger, why string) {
	if s.known() {
		m.refused(s, why)
	}
	s.Conn.Close()
}

// classify looks at the first byte of a stream and gives it away.
func (m *Mesh) classify(s *stranger) {
	_ = s.SetDeadline(time.Now().Add(handshakeTime))
	first := make([]byte, 1, maxGossipHead)
	if _, err := io.ReadFull(s.Conn, first); err != nil {
		m.saidNothing(s, err)
		return
	}
	switch first[0] {
	case linkByte, relayByte:
		prove := m.acceptLink
		if first[0] == relayByte {
			prove = m.acceptRelay
		}
		if _, ok := s.becomes(proving); !ok {
			m.full(s, "there are too many that prove nothing")
		} else if m.begin(func() { prove(s) }) {
			return
		}
		s.known()
		s.Close()
	default:
		m.giveToGossip(s, first)
	}
}

// saidNothing closes a stream that ended before it said what it is.
func (m *Mesh) saidNothing(s *stranger, err error) {
	counted := s.known()
	s.Close()
	if counted && !errors.Is(err, io.EOF) { // somebody looked whether the port is open
		m.n.HandshakesFailed.Add(1)
		m.log(slog.LevelDebug, "", "stream said nothing", "addr", s.RemoteAddr(), "err", err)
	}
}

// transport is what memberlist gets; gossip.go has what is between.
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

func (t transport) PacketCh() <-chan *memberlist.Packet {
	if t.m.packets != nil {
		return t.m.packets
	}
	return t.m.inner.PacketCh()
}

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
		m.pending.close(silent)
		m.port.Wait()
	})
	return m.shutErr
}

// Abandon ends a Mesh whose transport is to stay as it is: memberlist did not
// begin.
func (m *Mesh) Abandon() {
	m.shutting.Do(func() {
		close(m.shut)
		m.pending.close(silent)
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

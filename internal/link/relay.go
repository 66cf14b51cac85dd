package link

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// relays is the listener of relays.
type relays struct {
	m     *Mesh
	conns chan net.Conn // never closed
	done  chan struct{} // closed by Close
	once  sync.Once
}

func (r *relays) Accept() (net.Conn, error) {
	select {
	case <-r.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: r.Addr(), Err: net.ErrClosed}
	default:
	}
	select {
	case conn := <-r.conns:
		return conn, nil
	case <-r.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: r.Addr(), Err: net.ErrClosed}
	}
}

// Close ends Accept. What nobody has accepted is closed.
func (r *relays) Close() error {
	r.once.Do(func() { close(r.done) })
	for {
		select {
		case conn := <-r.conns:
			conn.Close()
		default:
			return nil
		}
	}
}

func (r *relays) Addr() net.Addr { return relayAddr{} }

// relayAddr is no address: relays come in where memberlist's streams do.
type relayAddr struct{}

func (relayAddr) Network() string { return "tcp" }
func (relayAddr) String() string  { return "relay" }

// relay is a connection whose type hides that there is TLS, and which ends with
// the Mesh.
type relay struct {
	net.Conn
	m   *Mesh
	raw net.Conn
}

// Close closes it, with TLS's goodbye if that goes out at once.
func (r *relay) Close() error {
	r.m.mu.Lock()
	delete(r.m.relaying, r)
	r.m.mu.Unlock()
	_ = r.raw.SetDeadline(time.Now().Add(time.Second))
	return r.Conn.Close()
}

// CloseWrite ends the direction out, if the transport's connections can.
func (r *relay) CloseWrite() error {
	if c, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return fmt.Errorf("link: %T cannot be half closed", r.raw)
}

// newRelay registers a connection, or closes it if the Mesh is closed.
func (m *Mesh) newRelay(conn, raw net.Conn) *relay {
	r := &relay{conn, m, raw}
	m.mu.Lock()
	closed := m.closed
	if !closed {
		m.relaying[r] = struct{}{}
	}
	m.mu.Unlock()
	if closed {
		raw.Close()
		return nil
	}
	_ = raw.SetDeadline(time.Time{})
	return r
}

// acceptRelay proves one that came in, on a goroutine of its own.
func (m *Mesh) acceptRelay(s *stranger) {
	defer s.known()
	conn, err := secure(s.Conn, m.relayTLS, false)
	if err != nil {
		s.Close()
		m.handshakeFailed(s.Conn, "relay", err)
		return
	}
	r := m.newRelay(conn, s.Conn)
	if r == nil {
		return
	}
	select {
	case <-m.relays.done:
		r.Close()
		return
	default:
	}
	select {
	case m.relays.conns <- r:
		m.n.RelaysIn.Add(1)
		select {
		case <-m.relays.done: // Close may have emptied it before
			m.relays.Close()
		default:
		}
	default:
		m.n.StreamsRefused.Add(1)
		m.log(slog.LevelWarn, "", "relay refused, there are too many that nobody accepts", "addr", s.RemoteAddr())
		r.Close()
	}
}

// DialRelay makes a connection that comes out of the Relays of the node at an
// address. ctx bounds the dialling only; the connection ends with the Mesh.
func (m *Mesh) DialRelay(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	defer context.AfterFunc(m.cut, cancel)()
	raw, err := m.dial(ctx, addr, relayByte)
	if err != nil {
		return nil, fmt.Errorf("link: relay to %s: %w", addr, err)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn, err := secure(raw, m.relayTLS, true)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("link: relay to %s: %w", addr, err)
	}
	r := m.newRelay(conn, raw)
	if r == nil {
		return nil, fmt.Errorf("link: relay to %s: %w", addr, net.ErrClosed)
	}
	m.n.RelaysDialed.Add(1)
	return r, nil
}

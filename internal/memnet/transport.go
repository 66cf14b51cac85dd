package memnet

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// packetBuffer is how many packets wait for their reader before further ones are lost, as in a socket's receive buffer.
const packetBuffer = 256

// Transport lets memberlist run over the network, unmodified: memberlist.Config.Transport.
type Transport struct {
	host    *Host
	at      netip.AddrPort
	ln      *Listener
	packets chan *memberlist.Packet // never closed
	done    chan struct{}           // closed by Shutdown
	once    sync.Once
}

var _ memberlist.Transport = (*Transport)(nil)

// Transport takes a port of the host, for packets and streams; 0 picks one, and Addr tells it. It panics if the port is taken.
func (h *Host) Transport(port int) *Transport {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	at, err := h.takeLocked(port)
	if err != nil {
		panic(err)
	}
	t := &Transport{host: h, at: at, packets: make(chan *memberlist.Packet, packetBuffer), done: make(chan struct{})}
	t.ln = h.listenLocked(at)
	h.packets[at.Port()] = t
	return t
}

// Addr is the address in the form memberlist.Join wants.
func (t *Transport) Addr() string { return t.at.String() }

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *Transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	if ip == "" {
		return t.host.ip.AsSlice(), int(t.at.Port()), nil
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil, 0, err
	}
	return addr.Unmap().AsSlice(), port, nil
}

// WriteTo implements memberlist.Transport. A packet that does not arrive is no error.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return now, err
	}
	packet := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(t.at)}
	n := t.host.net
	n.mu.Lock()
	defer n.mu.Unlock()
	peer := n.hosts[to.Addr()]
	if peer == nil || peer.packets[to.Port()] == nil || n.fateLocked(t.host, peer) != passes || n.rnd.Float64() < n.loss {
		n.lost++
		return now, nil
	}
	dest := peer.packets[to.Port()]
	if d := n.delayLocked(); d > 0 {
		time.AfterFunc(d, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			dest.deliverLocked(packet)
		})
	} else {
		dest.deliverLocked(packet)
	}
	return now, nil
}

func (t *Transport) deliverLocked(p *memberlist.Packet) {
	p.Timestamp = time.Now()
	select {
	case <-t.done:
		t.host.net.lost++
	case t.packets <- p:
	default:
		t.host.net.lost++
	}
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout implements memberlist.Transport.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return t.host.DialContext(ctx, "tcp", addr)
}

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return t.ln.conns }

// Shutdown implements memberlist.Transport: the port is free again. Open streams live on until they are closed.
func (t *Transport) Shutdown() error {
	t.once.Do(func() {
		n := t.host.net
		n.mu.Lock()
		delete(t.host.packets, t.at.Port())
		n.mu.Unlock()
		close(t.done)
	})
	return t.ln.Close()
}

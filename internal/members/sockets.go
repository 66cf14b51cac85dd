package members

import (
	"context"
	"log"
	"net"
	"net/netip"
	"time"

	"github.com/embedpush/push/internal/quietlog"
	"github.com/hashicorp/memberlist"
)

// Listen makes a transport of sockets, UDP and TCP on one port, which it tells;
// port 0 is any free one. abandon gives the sockets up again if no Start took
// them over, and does not wait.
func Listen(at netip.AddrPort, to *quietlog.Log) (t memberlist.Transport, port int, abandon func(), err error) {
	tries := 1
	if at.Port() == 0 {
		tries = 10 // the port that is free for TCP may be taken for UDP
	}
	cfg := &memberlist.NetTransportConfig{
		BindAddrs: []string{at.Addr().String()},
		BindPort:  int(at.Port()),
		Logger:    log.New(translate(to), "", 0),
	}
	for range tries {
		var listening *memberlist.NetTransport
		if listening, err = memberlist.NewNetTransport(cfg); err == nil {
			s := &sockets{NetTransport: listening}
			s.ctx, s.stop = context.WithCancel(context.Background())
			// Not waited for: Shutdown waits until a connection that just came
			// in is taken, and nobody takes it.
			return s, listening.GetAutoBindPort(), func() { go s.Shutdown() }, nil
		}
	}
	return nil, 0, nil, err
}

// sockets is memberlist's transport, but its dials, and what they brought, end
// with Shutdown: otherwise they would outlive Leave by seconds.
type sockets struct {
	*memberlist.NetTransport
	ctx  context.Context
	stop context.CancelFunc
}

var _ memberlist.NodeAwareTransport = (*sockets)(nil)

// DialTimeout implements memberlist.Transport.
func (s *sockets) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(s.ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &dialled{Conn: conn, release: context.AfterFunc(s.ctx, func() { conn.Close() })}, nil
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (s *sockets) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return s.DialTimeout(a.Addr, timeout)
}

// Shutdown implements memberlist.Transport.
func (s *sockets) Shutdown() error {
	s.stop()
	return s.NetTransport.Shutdown()
}

type dialled struct {
	net.Conn
	release func() bool
}

func (c *dialled) Close() error {
	c.release()
	return c.Conn.Close()
}

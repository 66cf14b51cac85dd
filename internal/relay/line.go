package relay

import (
	"context"
	"net"
	"net/http"
	"slices"
	"time"
)

// node is the connections to another one. Relay.mu guards it.
type node struct {
	lines   []*line
	dialing *dial // nil: nobody dials
	failed  error // of the last dial, for failedFor; nil: it may be tried
}

// line is one HTTP/2 connection. net/http would pool them, but has each request
// of a crowd dial for itself, and one too many is an authenticated connection
// for nothing.
type line struct {
	cc *http.ClientConn // static

	// Relay.mu guards what follows.
	running int         // requests on it
	uses    int         // there have been
	idle    *time.Timer // closes it; nil: it was never idle
	// The node is being asked to let its GETs go.
	releasing bool
}

// dial is one that goes on.
type dial struct {
	cancel context.CancelFunc // static
	done   chan struct{}      // closed when it has ended
	err    error              // set before
}

// dialled is a context's key, for the connection that newTransport's is to use.
type dialled struct{}

func newTransport(c *Config) *http.Transport {
	var h2 http.Protocols
	h2.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols: &h2,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(dialled{}).(net.Conn), nil
		},
		DisableCompression:     true, // bodies pass as they are
		MaxResponseHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{
			// The window of the connection stays at net/http's, which is larger
			// than those of all streams: bytes for a client that reads slowly never
			// use it up.
			MaxReceiveBufferPerStream: streamRoom,
			SendPingTimeout:           c.Timeout,
			PingTimeout:               c.Timeout,
			WriteByteTimeout:          c.Timeout,
		},
	}
}

// take returns a connection to a node with room for one more request, and dials
// one if need be. It is to be given back to free.
func (r *Relay) take(ctx context.Context, name string) (*line, error) {
	for {
		l, d, err := r.pick(name)
		if l != nil || err != nil {
			return l, err
		}
		select {
		case <-d.done:
			if d.err != nil {
				return nil, d.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// pick returns a connection, or the dial that is to be waited for. That the
// node's settings have not come, or that cancelled requests count until it has
// said that it lives, makes RoundTrip wait.
func (r *Relay) pick(name string) (*line, *dial, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, nil, errClosed
	}
	n := r.nodes[name]
	if n == nil {
		n = new(node)
		r.nodes[name] = n
	}
	n.lines = slices.DeleteFunc(n.lines, func(l *line) bool { return l.cc.Err() != nil })
	for _, l := range n.lines {
		if l.running < maxStreams && l.uses < maxUses {
			l.running++
			l.uses++
			l.rest()
			return l, nil, nil
		}
	}
	if n.failed != nil {
		return nil, nil, n.failed
	}
	if n.dialing == nil {
		ctx, cancel := context.WithTimeout(r.ctx, r.c.Timeout)
		n.dialing = &dial{cancel: cancel, done: make(chan struct{})}
		r.lines.Add()
		go r.dial(ctx, name, n, n.dialing)
	}
	return nil, n.dialing, nil
}

// dial adds a connection to a node.
func (r *Relay) dial(ctx context.Context, name string, n *node, d *dial) {
	defer r.lines.Done()
	defer close(d.done)
	defer d.cancel()
	var cc *http.ClientConn
	nc, err := r.c.Dial(ctx, name)
	if err == nil {
		cc, err = r.transport.NewClientConn(context.WithValue(ctx, dialled{}, nc), "http", "node:80")
		if err != nil {
			nc.Close()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n.dialing = nil
	switch {
	case err == nil && ctx.Err() != nil: // by Close, or since the node was lost
		defer cc.Close()
		d.err = ctx.Err()
	case err == nil:
		n.lines = append(n.lines, &line{cc: cc})
	default:
		// Requests do not come one by one. All that come in the next second know
		// by now.
		d.err, n.failed = err, err
		time.AfterFunc(failedFor, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			n.failed = nil
			r.forget(name, n)
		})
	}
}

// free gives a connection back.
func (r *Relay) free(name string, l *line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.running--
	switch {
	case l.running > 0:
	case l.cc.Err() != nil || l.uses >= maxUses || r.closed:
		r.drop(name, l)
	case l.idle == nil:
		l.idle = time.AfterFunc(idleFor, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			if l.running == 0 {
				r.drop(name, l)
			}
		})
	default:
		l.idle.Reset(idleFor)
	}
}

// drop closes a connection that nobody uses. Relay.mu is held.
func (r *Relay) drop(name string, l *line) {
	l.rest()
	r.lines.Add()
	go func() { // it writes, if it is TLS
		defer r.lines.Done()
		_ = l.cc.Close()
	}()
	if n := r.nodes[name]; n != nil {
		n.lines = slices.DeleteFunc(n.lines, func(o *line) bool { return o == l })
		r.forget(name, n)
	}
}

// forget forgets a node of which nothing is known. Relay.mu is held.
func (r *Relay) forget(name string, n *node) {
	if len(n.lines) == 0 && n.dialing == nil && n.failed == nil && r.nodes[name] == n {
		delete(r.nodes, name)
	}
}

// rest stops the timer of a connection. Relay.mu is held.
func (l *line) rest() {
	if l.idle != nil {
		l.idle.Stop()
	}
}

// Package relay carries the requests of a Socket.IO session from the node that
// they came to, the entry, to the node that holds the session, the holder, and
// the answers back: for nodes behind a load balancer that does not keep a
// client with one of them. It is one hop, never two.
//
// Polls travel over HTTP/2: one connection for each pair of nodes and direction
// carries thousands that are held, each with a window of its own, so a client
// that reads slowly delays nobody. A WebSocket travels over HTTP/1.1 on a
// connection of its own, which it keeps.
//
// The holder decides what a request gets and how long it may take. What the
// entry bounds, it bounds more widely: it is there for a holder that says
// nothing.
//
// An entry that ends leaves the sessions of others alone, in this order: Drain
// when the load balancer is to send nothing more, CutSockets while the node's own
// connections are closed, Release and right behind it Close. Until Close has
// returned the connections between the nodes are needed.
package relay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/polling"
	"github.com/embedpush/push/internal/quietlog"
	"github.com/embedpush/push/internal/tally"
)

// Config is what New takes; it is copied.
type Config struct {
	// Dial connects to where another node's Serve accepts. The connection has
	// to be authenticated both ways, and encrypted unless nobody can listen: who
	// gets through speaks for every client. node is what Forward was given. ctx
	// ends after Timeout, and with Close. It is called by goroutines of this
	// package, and of requests for a WebSocket, and may overlap itself. nil: no
	// node can be reached.
	Dial func(ctx context.Context, node string) (net.Conn, error)
	// Handler answers what other nodes relay to this one, on a goroutine for
	// each request: RemoteAddr is the client's as the entry saw it, IsRelayed is
	// true, and of the header only what the protocol needs has come. The entry
	// has judged the Origin and sends none. nil: nothing is answered well.
	Handler http.Handler
	// Timeout is how long a dial and the answer to an upgrade may take, and how
	// long the other end, be it a node or a client, may take nothing of what is
	// written to it. A node that is silent for as long is asked whether it
	// lives. 0 or less: 10 s.
	Timeout time.Duration
	// Hold is how long a poll may be held, and a POST fed: longer than any
	// heartbeat's interval. 0 or less: 10 min.
	Hold time.Duration
	// MaxBody is how many bytes a POST may have, whatever its session allows.
	// 0: 1 000 000, less: any number, as the holder allows.
	MaxBody int64
	// MaxRequests is how many requests and WebSockets may be relayed to other
	// nodes at once. 0 or less: 16 384.
	MaxRequests int
	// Log is told of nodes that cannot be reached, and of what the server of
	// relayed requests complains about. nil: it is only counted.
	Log *quietlog.Log
}

// Stats are counts since New, but Running.
type Stats struct {
	Running    int64  // requests and WebSockets that are relayed to other nodes now
	Relayed    uint64 // … that have ended with their holder's answer
	Busy       uint64 // … that were refused for MaxRequests
	Unreached  uint64 // … that were refused since their holder cannot be reached
	Broken     uint64 // … whose holder or its connection failed before all of the answer had come
	Late       uint64 // … that were refused since this node ends
	TooLarge   uint64 // POSTs over MaxBody, or whose path and query are over what is relayed
	Slow       uint64 // POSTs whose client did not send them in time
	Left       uint64 // requests whose client went away before there was an answer
	Lost       uint64 // answers that did not reach their client; the holder was told
	Served     uint64 // requests that other nodes relayed to this one
	Malformed  uint64 // … that did not say whose they are
	Releases   uint64 // times that another node asked to let its GETs go
	Hops       uint64 // requests that had come relayed and would have gone on
	Complaints uint64 // lines of the server of relayed requests, panics of Handler among them
}

// Relay is both halves of a node. Make one with New; Close ends it.
type Relay struct {
	// Static.
	c         Config
	server    *http.Server
	transport *http.Transport // makes the connections for polls, and pools none
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc

	mu      sync.Mutex           // guards what follows, and the fields of every node and line
	nodes   map[string]*node     // those with a connection, or a dial that goes on or has just failed
	tunnels map[*tunnel]struct{} // WebSockets that are relayed, and requests for one
	closed  bool

	running  atomic.Int64 // Forwards, and WebSockets that are relayed
	draining atomic.Bool  // since Drain: clients are to go elsewhere
	ending   atomic.Bool  // since the end of Release: nothing more is relayed
	polls    tally.Tally  // Forwards
	sockets  tally.Tally  // WebSockets that are relayed
	lines    tally.Tally  // goroutines that dial, ask or close
	serving  tally.Tally  // requests in Handler
	stats    struct {
		relayed, busy, unreached, broken, late, tooLarge, slow, left, lost, served, malformed, releases, hops, complaints atomic.Uint64
	}
}

const (
	maxStreams = 4096     // requests on one connection
	spare      = 16       // … beside them, of what the nodes have to say to each other
	maxHeader  = 16 << 10 // bytes of a relayed request's header
	maxTarget  = 12 << 10 // … of what the client has a hand in
	streamRoom = 32 << 10 // bytes of an answer that wait at the entry for a slow client
	bodyRoom   = 64 << 10 // bytes of a POST that wait at the holder
	bodiesRoom = 2 << 20  // … of all POSTs of one connection
	maxAnswer  = 64 << 10 // bytes of an answer to an upgrade that is none
	maxUses    = 1 << 29  // requests of one connection; HTTP/2 numbers twice as many
	failedFor  = time.Second
	minRate    = 16 << 10 // bytes a second that a body has to move on average, as package polling has it
)

// New makes a Relay. It starts nothing.
func New(c Config) *Relay {
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Hold <= 0 {
		c.Hold = 10 * time.Minute
	}
	if c.MaxBody == 0 {
		c.MaxBody = 1_000_000
	}
	if c.MaxRequests <= 0 {
		c.MaxRequests = 16384
	}
	if c.Dial == nil {
		c.Dial = func(context.Context, string) (net.Conn, error) { return nil, errNoDial }
	}
	r := &Relay{c: c, nodes: make(map[string]*node), tunnels: make(map[*tunnel]struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.transport = newTransport(&c)
	r.server = r.newServer()
	return r
}

var (
	errNoDial = errors.New("relay: no way to other nodes")
	errClosed = errors.New("relay: closed")
)

// Forward has node answer a request. It is the entry's half: the request's
// origin was judged, the headers for CORS are set, and its sid was found to be
// genuine and of that node. It returns when the request is answered, or when
// its WebSocket is established. A node that cannot be reached, or breaks off
// before it answers, makes a 503: to a client of Socket.IO an error of its
// transport, after which it begins anew.
func (r *Relay) Forward(w http.ResponseWriter, req *http.Request, node string) {
	r.polls.Add() // before ending is looked at: Release misses nobody
	defer r.polls.Done()
	switch {
	case IsRelayed(req.Context()):
		r.stats.hops.Add(1)
		r.refuse(w, req, http.StatusBadRequest, polling.UnknownSID, "Session ID unknown")
		return
	case r.ending.Load():
		r.late(w, req)
		return
	case r.running.Add(1) > int64(r.c.MaxRequests):
		r.running.Add(-1)
		r.stats.busy.Add(1)
		w.Header().Set("Retry-After", "1")
		r.unavailable(w, req, "too many requests are relayed")
		return
	}
	defer r.running.Add(-1)
	if req.ProtoMajor == 1 && websocket.IsWebSocketUpgrade(req) {
		r.socket(w, req, node)
	} else {
		r.poll(w, req, node)
	}
}

// Stats returns the counts.
func (r *Relay) Stats() Stats {
	s := &r.stats
	return Stats{
		Running: r.running.Load(), Relayed: s.relayed.Load(), Busy: s.busy.Load(), Unreached: s.unreached.Load(), Broken: s.broken.Load(), Late: s.late.Load(),
		TooLarge: s.tooLarge.Load(), Slow: s.slow.Load(), Left: s.left.Load(), Lost: s.lost.Load(),
		Served: s.served.Load(), Malformed: s.malformed.Load(), Releases: s.releases.Load(), Hops: s.hops.Load(), Complaints: s.complaints.Load(),
	}
}

// Close cuts everything and waits until it has ended, but no longer than
// Timeout for a Handler that does not return when its request is cancelled. It
// may be called twice. Requests that are relayed to other nodes are answered
// 503, those relayed to this one lose their connection.
func (r *Relay) Close() {
	r.Drain()
	r.ending.Store(true)
	r.mu.Lock()
	r.closed = true
	r.cancel()
	var lines []*line
	for _, n := range r.nodes {
		for _, l := range n.lines {
			l.rest()
			lines = append(lines, l)
		}
	}
	clear(r.nodes)
	r.mu.Unlock()
	for _, l := range lines {
		_ = l.cc.Close()
	}
	_ = r.server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), r.c.Timeout)
	defer cancel()
	for _, t := range []*tally.Tally{&r.polls, &r.sockets, &r.lines, &r.serving} {
		_ = t.Wait(ctx)
	}
}

// refuse answers a request that is not relayed.
func (r *Relay) refuse(w http.ResponseWriter, req *http.Request, status, code int, text string) {
	r.part(w)
	polling.Refuse(w, req, status, code, text)
}

// unavailable answers 503. Its text tells nothing about the cluster.
func (r *Relay) unavailable(w http.ResponseWriter, req *http.Request, text string) {
	r.refuse(w, req, http.StatusServiceUnavailable, polling.BadRequest, text)
}

// late answers a request that came too late.
func (r *Relay) late(w http.ResponseWriter, req *http.Request) {
	r.stats.late.Add(1)
	r.unavailable(w, req, "going away")
}

// unreached answers a request whose holder cannot be reached.
func (r *Relay) unreached(w http.ResponseWriter, req *http.Request, node string, err error) {
	if req.Context().Err() != nil {
		r.stats.left.Add(1)
		return
	}
	r.stats.unreached.Add(1)
	r.complain(node, "a node cannot be reached: its Socket.IO sessions are answered 503 here", err)
	r.unavailable(w, req, "the session's node cannot be reached")
}

func (r *Relay) complain(node, msg string, err error) {
	if r.c.Log != nil && r.ctx.Err() == nil {
		r.c.Log.Post(slog.LevelWarn, node, msg, "node", node, "err", err.Error())
	}
}

// atMinRate is the time that n bytes may take.
func atMinRate(n int) time.Duration { return time.Duration(n) * time.Second / minRate }

// setLength sets the header of an answer with a length that is known.
func setLength(h http.Header, n int64) {
	if n >= 0 {
		h.Set("Content-Length", strconv.FormatInt(n, 10))
	}
}

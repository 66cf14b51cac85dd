package relay

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Drain has clients go elsewhere: from now on each answer, a refusal too, ends
// its connection, so that the client's next request makes a new one, which the
// load balancer sends to another node. Polls are relayed as before. Requests for
// a WebSocket are refused, for it would be cut soon: their clients go on
// polling. It does not block, and may be called twice.
func (r *Relay) Drain() { r.draining.Store(true) }

// part ends the connection after the answer while this node drains. net/http
// says it over HTTP/2, too, and lets come to their end what else goes on there.
func (r *Relay) part(w http.ResponseWriter) {
	if r.draining.Load() {
		w.Header().Set("Connection", "close")
	}
}

const (
	releaseEvery  = 250 * time.Millisecond
	releaseRounds = 8 // in which requests that come meanwhile are relayed
)

// Release drains, and has the GETs that are held let go by their holders: they
// end with what is queued or with a noop, the session lives, and its client
// asks again. Requests that come meanwhile are relayed, and let go in their
// turn, until none runs or 2 s have passed; from then on they are refused, and
// the last are let go. Release returns when all have their answer, those that
// other nodes have relayed to this one too, whose sessions have to be closed
// before; nil says so. Otherwise it returns when ctx ends. What ends the node
// calls it last, right before Close.
func (r *Relay) Release(ctx context.Context) error {
	r.Drain()
	for range releaseRounds {
		if r.releaseRound(ctx) == nil || ctx.Err() != nil {
			break
		}
	}
	r.ending.Store(true)
	for r.releaseRound(ctx) != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return r.serving.Wait(ctx)
}

// releaseRound lets go what is held, and waits a moment until nothing is
// relayed: nil. Who asks again at once, and comes here again, is held until the
// next: four times a second is often enough for a client that knows no other
// node.
func (r *Relay) releaseRound(ctx context.Context) error {
	r.mu.Lock()
	for name, n := range r.nodes {
		for _, l := range n.lines {
			if l.running > 0 && !l.releasing {
				l.releasing = true
				r.lines.Add()
				go r.release(name, l)
			}
		}
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, releaseEvery)
	defer cancel()
	return r.polls.Wait(ctx)
}

// methodRelease is the method of the one request that a node makes for itself:
// the GETs that came over the same connection are to be let go. It names no
// client. What a client asks for is never taken for it, for that always comes
// with the client's address.
const methodRelease = "RELEASE"

// release asks a holder to let go.
func (r *Relay) release(name string, l *line) {
	defer r.lines.Done()
	ctx, cancel := context.WithTimeout(r.ctx, r.c.Timeout)
	defer cancel()
	out := &http.Request{
		Method: methodRelease, URL: &url.URL{Scheme: "http", Host: "node", Path: "/"}, Host: "node",
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"User-Agent": {""}},
	}
	resp, err := l.cc.RoundTrip(out.WithContext(ctx))
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			err = fmt.Errorf("relay: answered %d", resp.StatusCode)
		}
	}
	r.mu.Lock()
	l.releasing = false
	r.mu.Unlock()
	if err != nil {
		r.complain(name, "a node does not let polls go", err)
	}
}

// CutSockets drains, and cuts the WebSockets that are relayed, one by one over a
// time, so that their clients do not all come back at once. It returns when all
// are cut, or with ctx's error when that ends; the rest is Close's.
func (r *Relay) CutSockets(ctx context.Context, over time.Duration) error {
	r.Drain()
	begin := time.Now()
	all := r.tunnelsTo("")
	for i, t := range all {
		if due := over*time.Duration(i)/time.Duration(len(all)) - time.Since(begin); due > 0 {
			select {
			case <-time.After(due):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		t.cut()
	}
	for _, t := range r.tunnelsTo("") { // that began while Drain was called
		t.cut()
	}
	return r.sockets.Wait(ctx)
}

// Lost drops a node that is known to be dead, at once: connections to it are
// closed, dials given up, and what waits for it is answered 503. It does not
// block. The name may be another run's already; then its requests suffer, too.
func (r *Relay) Lost(name string) {
	r.mu.Lock()
	if n := r.nodes[name]; n != nil {
		delete(r.nodes, name)
		if n.dialing != nil {
			n.dialing.cancel()
		}
		for _, l := range n.lines {
			l.uses = maxUses // for free
			r.drop(name, l)
		}
	}
	r.mu.Unlock()
	for _, t := range r.tunnelsTo(name) {
		t.cut()
	}
}

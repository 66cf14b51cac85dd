package polling

import (
	"context"
	"sync"
)

// Group is GETs that can be let go together: those whose request has its
// Context. The zero Group is ready.
type Group struct {
	mu   sync.Mutex
	over chan struct{} // guarded by mu: closed by Release; nil: nobody was held since
}

type grouped struct{} // a context's key

// Context returns a context for requests of the group.
func (g *Group) Context(parent context.Context) context.Context {
	return context.WithValue(parent, grouped{}, g)
}

// Release ends the GETs of the group that are held now: each is answered with
// what is queued, or with a noop as before an upgrade. Nothing else happens to
// their sessions. It does not block, and may be called by any goroutine.
func (g *Group) Release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over != nil {
		close(g.over)
		g.over = nil
	}
}

// released is closed by the next Release of a context's group; nil: there is
// no group.
func released(ctx context.Context) <-chan struct{} {
	g, ok := ctx.Value(grouped{}).(*Group)
	if !ok {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over == nil {
		g.over = make(chan struct{})
	}
	return g.over
}

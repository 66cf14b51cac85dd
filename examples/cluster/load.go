package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push"
)

const (
	loadEvery = 100 * time.Millisecond // ten pushes a second
	within    = 2 * time.Second        // a push's deadline
	patience  = 30 * time.Second       // with a node's answer: it may be stopped meanwhile
	maxOpen   = 256                    // pushes without an answer, over which none is made
)

// pushers is what load needs of a fleet.
type pushers interface {
	up() []string
	stops(id string) int
	push(ctx context.Context, id string, o order) (answer, error)
}

// load pushes to alice from the nodes in turn, and enters everything into the
// ledger.
type load struct {
	nodes  pushers
	ledger *ledger
	quiet  atomic.Bool // see entry
	open   atomic.Int32
}

// run pushes until enough ends, and returns when all pushes are settled, or
// when ctx ends.
func (l *load) run(ctx, enough context.Context) {
	var open sync.WaitGroup
	defer open.Wait()
	ticker := time.NewTicker(loadEvery)
	defer ticker.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-enough.Done():
			return
		case <-ticker.C:
		}
		up := l.nodes.up()
		if len(up) == 0 || l.open.Load() >= maxOpen {
			continue
		}
		id := up[turn%len(up)]
		open.Go(func() { l.push(ctx, id, "alice", note{}, push.AutoAck) })
	}
}

// push pushes one note, and enters it.
func (l *load) push(ctx context.Context, id, user string, n note, ack push.Ack) (answer, error) {
	l.open.Add(1)
	defer l.open.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	n.N, n.From = l.ledger.begin(l.quiet.Load()), id
	stops := l.nodes.stops(id)
	a, err := l.nodes.push(ctx, id, order{User: user, Note: n, Ack: ack, Within: within})
	if err != nil {
		l.ledger.died(n.N)
		return a, err
	}
	// A clock that stood still with its process says nothing.
	late := a.Took > within+lateAfter && l.nodes.stops(id) == stops
	l.ledger.receipt(n.N, a.Receipt, late)
	return a, nil
}

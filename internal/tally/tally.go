// Package tally counts what is going on, so that an ending can wait for it.
// It is a sync.WaitGroup whose Add may race with Wait and whose Wait ends with
// a context.
package tally

import (
	"context"
	"sync"
)

// Tally is a count with a wait for zero. The zero Tally is ready.
type Tally struct {
	mu   sync.Mutex
	n    int           // guarded by mu
	zero chan struct{} // guarded by mu: closed when n falls to 0, nil while nobody waits
}

// Add counts one more.
func (t *Tally) Add() {
	t.mu.Lock()
	t.n++
	t.mu.Unlock()
}

// Done counts one less.
func (t *Tally) Done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n--
	if t.n < 0 {
		panic("tally: Done without Add")
	}
	if t.n == 0 && t.zero != nil {
		close(t.zero)
		t.zero = nil
	}
}

// Len is the count.
func (t *Tally) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// Wait returns nil when the count is zero, or ctx's error if that comes first.
func (t *Tally) Wait(ctx context.Context) error {
	t.mu.Lock()
	if t.n == 0 {
		t.mu.Unlock()
		return nil
	}
	if t.zero == nil {
		t.zero = make(chan struct{})
	}
	zero := t.zero
	t.mu.Unlock()
	select {
	case <-zero:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

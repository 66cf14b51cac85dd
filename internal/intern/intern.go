// Package intern keeps one copy of what many have.
package intern

import (
	"runtime"
	"sync"
	"weak"

	"github.com/embedpush/push/internal/table"
)

// Pool has one pointer for equal values, for as long as somebody has it. The
// zero Pool is ready, and safe for concurrent use. Package unique does the same
// without a pointer to the value.
type Pool[T comparable] struct {
	mu    sync.Mutex
	known table.Table[T, weak.Pointer[T]] // guarded by mu
}

// Of returns the pointer for a value, which nobody may change. clone makes what
// is kept of one that nobody has: a string in it may be a part of something
// larger.
func (p *Pool[T]) Of(value T, clone func(T) T) *T {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.known.Get(value).Value(); old != nil {
		return old
	}
	kept := new(T)
	*kept = clone(value)
	p.known.Set(*kept, weak.Make(kept))
	runtime.AddCleanup(kept, p.forget, *kept)
	return kept
}

// forget is called some time after the last one let go of a value's pointer;
// meanwhile there may be another.
func (p *Pool[T]) forget(value T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known.Get(value).Value() == nil {
		p.known.Remove(value)
	}
}

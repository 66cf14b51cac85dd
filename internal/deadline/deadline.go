// Package deadline ends many waits of about the same length with one timer.
package deadline

import (
	"sync"
	"time"
)

// Queue is a row of waits, ordered by when they end. One that ends before many
// that were added earlier gets a timer of its own. The zero Queue is ready.
type Queue struct {
	mu          sync.Mutex // guards what follows, and what is in the waits; a leaf
	first, last *Wait
	timer       *time.Timer
	due         time.Time // when the timer fires; the zero time: it does not run
}

// Wait is a place in a Queue. The zero Wait is in none.
type Wait struct {
	next, prev *Wait
	at         time.Time
	owner      Owner       // nil: it is in no queue
	own        *time.Timer // nil: the Queue's
}

const near = 32 // waits that may end later than one that is put before them

// Owner is who waits.
type Owner interface {
	// Expire is the end of the wait: at most once, on a goroutine that nobody
	// else waits for, without a lock. It may come a little after Remove.
	Expire()
}

// Add has w, which is in no queue, end at a time.
func (q *Queue) Add(w *Wait, at time.Time, owner Owner) {
	q.mu.Lock()
	defer q.mu.Unlock()
	w.at, w.owner, w.prev = at, owner, q.last
	for steps := 0; w.prev != nil && at.Before(w.prev.at); steps++ {
		if steps == near {
			w.next, w.prev = nil, nil
			w.own = time.AfterFunc(time.Until(at), owner.Expire)
			return
		}
		w.next, w.prev = w.prev, w.prev.prev
	}
	if w.next == nil {
		q.last = w
	} else {
		w.next.prev = w
	}
	if w.prev != nil {
		w.prev.next = w
		return
	}
	q.first = w
	if q.due.IsZero() || at.Before(q.due) {
		q.armLocked()
	}
}

// Remove ends w's wait, if it is in q.
func (q *Queue) Remove(w *Wait) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case w.own != nil:
		w.own.Stop()
		*w = Wait{}
	case w.owner != nil:
		q.removeLocked(w)
	}
}

func (q *Queue) removeLocked(w *Wait) {
	if w.prev == nil {
		q.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		q.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	*w = Wait{}
	if q.first == nil && !q.due.IsZero() { // it would keep alive what the Queue is in
		q.timer.Stop()
		q.due = time.Time{}
	}
}

// armLocked sets the timer to the first wait. It stays so when that is removed
// and there are others: a timer that fires for nothing once in the length of a
// wait is cheaper than one that is moved by each.
func (q *Queue) armLocked() {
	q.due = q.first.at
	if q.timer == nil {
		q.timer = time.AfterFunc(time.Until(q.due), q.expire)
	} else {
		q.timer.Reset(time.Until(q.due))
	}
}

func (q *Queue) expire() {
	var over []Owner
	q.mu.Lock()
	q.due = time.Time{}
	for now := time.Now(); q.first != nil && !q.first.at.After(now); {
		over = append(over, q.first.owner)
		q.removeLocked(q.first)
	}
	if q.first != nil {
		q.armLocked()
	}
	q.mu.Unlock()
	for i, o := range over {
		if i < len(over)-1 {
			go o.Expire()
		} else {
			o.Expire()
		}
	}
}

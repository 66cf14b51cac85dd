// Package accept takes connections from listeners: errors that pass are waited
// for, and several listeners end together.
package accept

import (
	"errors"
	"net"
	"sync"
	"time"
)

// Set is the listeners that are served. The zero Set is ready.
type Set struct {
	mu   sync.Mutex
	all  map[*served]bool // guarded by mu
	over bool             // guarded by mu: there is no more serving
}

// served is a listener, which itself may be of a type that cannot be compared.
type served struct{ net.Listener }

// Close closes every listener, and every one that comes later.
func (s *Set) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for l := range s.all {
		l.Close()
	}
}

func (s *Set) enter(l *served) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*served]bool)
	}
	if !s.over {
		s.all[l] = true
	}
	return !s.over
}

func (s *Set) leave(l *served) (over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, l)
	return s.over
}

// Errors that pass, such as too many open files, are waited for, longer each
// time (net/http does the same).
const (
	shortest = 5 * time.Millisecond
	longest  = time.Second
)

// Serve hands what l accepts to take, one after another, and closes l at its
// end. Before each it asks ready, which may block; an error of that ends it.
// pause is told of an error of l that passes, and for how long it is to wait;
// an error of that ends it too. nil: the Set was closed.
func (s *Set) Serve(l net.Listener, ready func() error, pause func(err error, d time.Duration) error, take func(net.Conn)) error {
	defer l.Close()
	here := &served{l}
	if !s.enter(here) {
		return nil
	}
	err := serve(l, ready, pause, take)
	if s.leave(here) {
		return nil
	}
	return err
}

func serve(l net.Listener, ready func() error, pause func(err error, d time.Duration) error, take func(net.Conn)) error {
	wait := time.Duration(0)
	for {
		if err := ready(); err != nil {
			return err
		}
		nc, err := l.Accept()
		if err == nil {
			wait = 0
			take(nc)
			continue
		}
		var passing interface{ Temporary() bool }
		if !errors.As(err, &passing) || !passing.Temporary() {
			return err
		}
		wait = min(max(2*wait, shortest), longest)
		if err := pause(err, wait); err != nil {
			return err
		}
	}
}

// Package accept takes connections from listeners: errors that pass are waited
// for, and several listeners end together.
package accept

import (
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// Set is the listeners that are served. The zero Set is ready.
type Set struct {
	mu   sync.Mutex
	all  []net.Listener // guarded by mu
	over bool           // guarded by mu: there is no more serving
}

// Close closes every listener, and every one that comes later.
func (s *Set) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for _, l := range s.all {
		l.Close()
	}
}

func (s *Set) enter(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.all = append(s.all, l)
	}
	return !s.over
}

func (s *Set) leave(l net.Listener) (over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.all, l); i >= 0 {
		s.all = slices.Delete(s.all, i, i+1)
	}
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
	if !s.enter(l) {
		return nil
	}
	err := serve(l, ready, pause, take)
	if s.leave(l) {
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

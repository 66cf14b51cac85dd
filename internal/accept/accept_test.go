package accept

import (
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"
)

// script is a listener that answers Accept from a list.
type script struct {
	answers []any // net.Conn or error
	closed  int
}

func (s *script) Accept() (net.Conn, error) {
	if len(s.answers) == 0 {
		return nil, net.ErrClosed
	}
	next := s.answers[0]
	s.answers = s.answers[1:]
	if err, ok := next.(error); ok {
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	return next.(net.Conn), nil
}
func (s *script) Close() error   { s.closed++; return nil }
func (s *script) Addr() net.Addr { return nil }

func ready() error { return nil }

func TestErrorsThatPassAreWaitedForLongerEachTime(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	l := &script{answers: []any{syscall.EMFILE, syscall.EMFILE, syscall.ECONNABORTED, near, syscall.ENFILE, syscall.EMFILE}}
	for range 8 {
		l.answers = append(l.answers, syscall.EMFILE)
	}
	var waits []time.Duration
	taken := 0
	pause := func(err error, d time.Duration) error {
		if err == nil {
			t.Error("paused without an error")
		}
		waits = append(waits, d/time.Millisecond)
		return nil
	}
	err := new(Set).Serve(l, ready, pause, func(nc net.Conn) { taken++; nc.Close() })
	if !errors.Is(err, net.ErrClosed) || taken != 1 || l.closed != 1 {
		t.Errorf("%v after %d connections, closed %d times", err, taken, l.closed)
	}
	if want := []time.Duration{5, 10, 20, 5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000}; !slices.Equal(waits, want) {
		t.Errorf("waited %v ms, want %v", waits, want)
	}
}

func TestWhatDoesNotPassEndsIt(t *testing.T) {
	broken, enough := errors.New("broken"), errors.New("enough")
	for name, f := range map[string]func(l *script) (got, want error){
		"the listener's error": func(l *script) (error, error) {
			l.answers = []any{broken}
			return new(Set).Serve(l, ready, nil, nil), broken
		},
		"ready's": func(l *script) (error, error) {
			return new(Set).Serve(l, func() error { return enough }, nil, nil), enough
		},
		"pause's": func(l *script) (error, error) {
			l.answers = []any{syscall.EMFILE}
			return new(Set).Serve(l, ready, func(error, time.Duration) error { return enough }, nil), enough
		},
	} {
		l := new(script)
		if got, want := f(l); !errors.Is(got, want) || l.closed != 1 {
			t.Errorf("%s: %v, want %v; closed %d times", name, got, want, l.closed)
		}
	}
}

func TestCloseEndsEveryListenerAndTheLaterOnes(t *testing.T) {
	var s Set
	ended := make(chan error)
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		accepting := make(chan struct{})
		go func() {
			ended <- s.Serve(l, func() error { close(accepting); return nil }, nil, nil)
		}()
		<-accepting
	}
	s.Close()
	for range 3 {
		if err := <-ended; err != nil {
			t.Errorf("ended with %v, want nil", err)
		}
	}
	late := new(script)
	if err := s.Serve(late, nil, nil, nil); err != nil || late.closed != 1 {
		t.Errorf("after Close: %v, closed %d times", err, late.closed)
	}
}

package test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// allocations counts what is allocated while f runs, by where that is: of all
// that has a function of a name in its stack, the first of names that fits. What
// TLS and the network in memory need is left out: on sockets many messages share
// a record.
func allocations(t *testing.T, f func(), names ...[]string) []int64 {
	t.Helper()
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	defer func() { runtime.MemProfileRate = rate }()
	count := func() []int64 {
		runtime.GC() // the profile is that of the last but one
		runtime.GC()
		records := make([]runtime.MemProfileRecord, 1000)
		for {
			n, ok := runtime.MemProfile(records, true)
			if ok {
				records = records[:n]
				break
			}
			records = make([]runtime.MemProfileRecord, 2*n)
		}
		counts := make([]int64, len(names))
		for _, r := range records {
			if i := placeOf(r.Stack(), names); i >= 0 {
				counts[i] += r.AllocObjects
			}
		}
		return counts
	}
	before := count()
	f()
	after := count()
	for i := range after {
		after[i] -= before[i]
	}
	return after
}

// placeOf is which of names fits a stack, or -1.
func placeOf(stack []uintptr, names [][]string) int {
	at := -1
	for frames := runtime.CallersFrames(stack); ; {
		frame, more := frames.Next()
		if strings.HasPrefix(frame.Function, "crypto/") || strings.Contains(frame.Function, "/memnet.") {
			return -1
		}
		for i, list := range names {
			for _, name := range list {
				if at < 0 && strings.Contains(frame.Function, name) {
					at = i
				}
			}
		}
		if !more {
			return at
		}
	}
}

// Where a push to another node is at work on its own, and where on the other.
var (
	nearSide = []string{"push.(*Engine).PushTo", "link.(*Peer)", "link.(*out)"}
	farSide  = []string{"link.(*In)", "push.(*Conn).acked", "push.(*shard)"}
)

func TestAPushToAnotherNodeMakesFewObjects(t *testing.T) {
	if raceEnabled {
		t.Skip("pools forget on purpose")
	}
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, nil)
		a, b := w.nodes[0], w.nodes[1]
		users := make([]string, 200)
		for i := range users {
			users[i] = fmt.Sprint("user", i)
			b.connect(users[i])
		}
		w.spreads()
		m := push.Message{Event: "order", Data: 7}
		acked := m
		acked.Ack = push.AutoAck
		each := func(m push.Message) func() {
			return func() {
				for _, user := range users {
					if r, err := a.PushToUser(t.Context(), user, m); err != nil || r.Sent+r.Acked != 1 {
						t.Fatalf("receipt %+v, error %v", r, err)
					}
				}
			}
		}
		together := func() {
			if r, err := a.PushToUsers(t.Context(), users, m); err != nil || r.Sent != len(users) {
				t.Fatalf("sent %d, error %v", r.Sent, err)
			}
		}
		for _, of := range []struct {
			name      string
			push      func()
			near, far float64 // at most, for each delivery; a tenth is what pools lose to the collections of allocations
		}{
			{"one by one", each(m), 5, 4.1},
			{"one by one with an ack", each(acked), 6, 10},
			{"together", together, 2, 3},
		} {
			of.push() // pools and queues grow
			got := allocations(t, func() {
				for range 5 {
					of.push()
				}
			}, nearSide, farSide)
			near, far := float64(got[0])/float64(5*len(users)), float64(got[1])/float64(5*len(users))
			t.Logf("%s: %.2f near, %.2f far", of.name, near, far)
			if near > of.near || far > of.far || got[0] == 0 || got[1] == 0 { // 0: it was not counted
				t.Errorf("%s: want some and at most %v objects on the node that pushes and %v on the other, got %.2f and %.2f", of.name, of.near, of.far, near, far)
			}
		}
	})
}

func TestAnAsynchronousPushWithoutProgressWaitsWithoutAGoroutine(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const pushes = 500
		w := newClusterWorld(t, 2, nil)
		a, b := w.nodes[0], w.nodes[1]
		silent := func(*page, envelope) {}
		for _, n := range w.nodes {
			n.connect("bob").acks.Store(&silent)
		}
		w.spreads()
		before := runtime.NumGoroutine()
		for range pushes {
			if _, err := a.PushToUser(t.Context(), "bob", push.Message{Event: "order", Data: 7, Ack: push.AutoAck, Async: true}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := runtime.NumGoroutine() - before; n > pushes/10 {
			t.Errorf("%d pushes wait with %d goroutines more than before", pushes, n)
		}
		if x, y := a.Stats().Flights, b.Stats().Flights; x != pushes || y != pushes {
			t.Errorf("want %d pushes to wait on both nodes, got %d and %d", pushes, x, y)
		}
		time.Sleep(10 * time.Second) // AckTimeout is 5 s
		synctest.Wait()
		if x, y := a.Stats().Flights, b.Stats().Flights; x+y != 0 {
			t.Errorf("%d and %d pushes still wait", x, y)
		}
		if n := a.Stats().Deliveries[push.Timeout.String()]; n != 2*pushes {
			t.Errorf("want %d timeouts, got %d", 2*pushes, n)
		}
	})
}

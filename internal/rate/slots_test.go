package rate

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestSlotsLetSoManyInAndOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := make(Slots, 2)
		never := make(chan struct{})
		for range 2 {
			if !s.Enter(0, never) {
				t.Fatal("no place in an empty Slots")
			}
		}
		start := time.Now()
		if s.Enter(time.Second, never) || time.Since(start) != time.Second {
			t.Errorf("a third got in, or gave up after %v", time.Since(start))
		}
		time.AfterFunc(time.Second, s.Leave)
		if !s.Enter(time.Minute, never) || time.Since(start) != 2*time.Second {
			t.Errorf("not let in when one left, after %v", time.Since(start))
		}
		ended := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(ended) })
		if s.Enter(time.Minute, ended) || time.Since(start) != 3*time.Second {
			t.Errorf("did not give up at the end, after %v", time.Since(start))
		}
	})
}

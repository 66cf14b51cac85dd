package deadline

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

type ended struct {
	w     Wait
	begin time.Time
	after time.Duration // 0: not yet
}

func (o *ended) Expire() { o.after = time.Since(o.begin) }

func TestEachWaitEndsAtItsTimeUnlessItIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Queue
		want := make(map[*ended]time.Duration) // 0: never
		for range 5 {
			begin := time.Now()
			for range 200 {
				o, d := &ended{begin: begin}, time.Duration(1+rand.IntN(100))*time.Second
				q.Add(&o.w, begin.Add(d), o)
				want[o] = d
				if rand.IntN(4) == 0 {
					q.Remove(&o.w)
					q.Remove(&o.w)
					want[o] = 0
				}
			}
			time.Sleep(30 * time.Second) // some have ended, and the rest meets others
			synctest.Wait()
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		for o, d := range want {
			if o.after != d {
				t.Errorf("want an end after %v, got %v", d, o.after)
			}
		}
		if q.first != nil || q.last != nil || !q.due.IsZero() {
			t.Errorf("something is left: %+v", &q)
		}
	})
}

func TestAWaitCostsNoAllocation(t *testing.T) {
	var q Queue
	o := new(ended)
	at := time.Now().Add(time.Hour)
	q.Add(&o.w, at, o)
	q.Remove(&o.w)
	if n := testing.AllocsPerRun(100, func() {
		q.Add(&o.w, at, o)
		q.Remove(&o.w)
	}); n != 0 {
		t.Errorf("want 0 allocations, got %v", n)
	}
	q.timer.Stop()
}

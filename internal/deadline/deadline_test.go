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
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	synctest.Test(t, func(t *testing.T) {
		var q Queue
		want := make(map[*ended]time.Duration) // 0: never
		for range 5 {
			begin := time.Now()
			for range 200 {
				o, d := &ended{begin: begin}, time.Duration(1+rnd.IntN(100))*time.Second
				q.Add(&o.w, begin.Add(d), o)
				want[o] = d
				if rnd.IntN(4) == 0 {
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

func TestTheTimerRunsNoLongerThanTheWaits(t *testing.T) {
	var q Queue
	var waits [3]ended
	at := time.Now().Add(time.Hour)
	for range 2 { // it is of use again
		for i := range waits {
			q.Add(&waits[i].w, at, &waits[i])
		}
		for i := range waits {
			if q.due.IsZero() {
				t.Errorf("%d waits, and no timer runs", len(waits)-i)
			}
			q.Remove(&waits[i].w)
		}
		if !q.due.IsZero() || q.timer.Stop() {
			t.Error("nothing waits, and the timer runs")
		}
	}
}

// slow is an Owner that does not return until it may.
type slow struct {
	w   Wait
	may chan struct{}
}

func (o *slow) Expire() { <-o.may }

func TestASlowExpireHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Queue
		begin := time.Now()
		at := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Second) }
		may := make(chan struct{})
		defer close(may)
		var waits []*ended
		for n := 1; n <= 2; n++ {
			for range 3 { // each before one, and one behind all
				s, o := &slow{may: may}, &ended{begin: begin}
				q.Add(&s.w, at(n), s)
				q.Add(&o.w, at(n), o)
				waits = append(waits, o)
			}
			s := &slow{may: may}
			q.Add(&s.w, at(n), s)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for i, o := range waits {
			if want := time.Duration(1+i/3) * time.Second; o.after != want {
				t.Errorf("want an end after %v, got %v", want, o.after)
			}
		}
	})
}

func BenchmarkAddAndRemoveTheOnlyWait(b *testing.B) {
	var q Queue
	o := new(ended)
	for b.Loop() {
		q.Add(&o.w, time.Now().Add(5*time.Second), o)
		q.Remove(&o.w)
	}
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
}

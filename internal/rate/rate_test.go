package rate

import (
	"testing"
	"time"
)

func TestABucketGivesItsBurstAndThenItsRate(t *testing.T) {
	l := Limit{PerSecond: 10, Burst: 3}
	var b Bucket
	now := time.Unix(1000, 0)
	for i := range 3 {
		if d := b.Take(l, now); d != 0 {
			t.Fatalf("token %d of the burst: want none to wait, got %v", i, d)
		}
	}
	wait := b.Take(l, now)
	if wait < 99*time.Millisecond || wait > 101*time.Millisecond {
		t.Fatalf("after the burst: want about 100ms, got %v", wait)
	}
	if d := b.Take(l, now.Add(wait)); d != 0 {
		t.Fatalf("after waiting as told: want a token, got a wait of %v", d)
	}
	got := 0
	for ms := range 10_000 {
		if b.Take(l, now.Add(wait+time.Duration(ms)*time.Millisecond)) == 0 {
			got++
		}
	}
	if got < 99 || got > 101 {
		t.Fatalf("in ten seconds at 10/s: want 100 tokens, got %d", got)
	}
}

func TestNoRateIsNoLimit(t *testing.T) {
	var b Bucket
	for range 1000 {
		if d := b.Take(Limit{}, time.Unix(0, 0)); d != 0 {
			t.Fatalf("got a wait of %v", d)
		}
	}
}

func TestAClockThatGoesBackTakesNothingAway(t *testing.T) {
	l := Limit{PerSecond: 1, Burst: 2}
	var b Bucket
	b.Take(l, time.Unix(100, 0))
	if d := b.Take(l, time.Unix(50, 0)); d != 0 {
		t.Fatalf("the second token of the burst is still there, got a wait of %v", d)
	}
}

package directory

import (
	"math"
	"sync/atomic"
	"time"
)

// Stamp is a moment of a hybrid logical clock: the milliseconds since 1970 and,
// in the lowest 16 bits, a count of what happened in that one. It orders what
// happens as those who saw it did, and by the wall clock where nobody saw both.
type Stamp uint64

// MaxAhead is how far another node's clock may be ahead without a word.
const MaxAhead = 60 * time.Second

// tooFar is how far ahead a clock is wrong beyond doubt: a node that took such a
// stamp would pass it on for ever, and at the end of time no login is newer.
const tooFar = 100 * 365 * 24 * time.Hour

// sane tells whether another node's stamp may be taken.
func (s Stamp) sane(now time.Time) bool { return s.Time().Sub(now) <= tooFar }

// maxMilli is the last millisecond a stamp can tell, in the year 10889.
const maxMilli = 1<<48 - 1

func wall(t time.Time) Stamp { return Stamp(min(max(t.UnixMilli(), 0), maxMilli)) << 16 }

// Time is the stamp's millisecond.
func (s Stamp) Time() time.Time { return time.UnixMilli(int64(s >> 16)) }

// clock is a node's. The zero clock is ready.
type clock struct{ last atomic.Uint64 }

// now is the last stamp given or seen.
func (c *clock) now() Stamp { return Stamp(c.last.Load()) }

// tick gives a stamp greater than any given or seen before. At the end of time
// it gives the greatest there is, again and again: then ids decide.
func (c *clock) tick(now time.Time) Stamp {
	for {
		last := c.last.Load()
		next := max(last+1, uint64(wall(now)))
		if last == math.MaxUint64 {
			next = last
		}
		if c.last.CompareAndSwap(last, next) {
			return Stamp(next)
		}
	}
}

// see notes another node's stamp and tells how far that is ahead of the wall
// clock, 0 up to MaxAhead.
func (c *clock) see(s Stamp, now time.Time) (ahead time.Duration) {
	for {
		last := c.last.Load()
		if uint64(s) <= last || c.last.CompareAndSwap(last, uint64(s)) {
			break
		}
	}
	if s.Time().Sub(now) > MaxAhead { // Sub saturates
		return s.Time().Sub(now)
	}
	return 0
}

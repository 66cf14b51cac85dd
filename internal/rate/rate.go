// Package rate bounds how much of something there is: a token bucket without
// a clock, whose owner says what time it is, and Slots for what may run at a
// time.
package rate

import "time"

// Bucket holds up to Burst tokens and gains PerSecond tokens a second. It is
// not safe for concurrent use. A Bucket that was never used is full. It is 8
// bytes, for there are some in every connection.
type Bucket struct {
	used   float32 // tokens that are missing
	millis uint32  // when that was so, in Unix milliseconds; it wraps after 49 days, which costs a bucket some tokens
}

// Limit is the setting that many buckets share.
type Limit struct {
	PerSecond float64 // 0: no limit
	Burst     float64
}

// Take takes one token and returns zero, or how long to wait until one is
// there; then none was taken.
func (b *Bucket) Take(l Limit, now time.Time) time.Duration {
	if l.PerSecond <= 0 {
		return 0
	}
	millis := uint32(now.UnixMilli())
	// Whole milliseconds of an absolute clock: what a call does not count,
	// the next one does. A difference that is negative is a clock set back.
	if passed := int32(millis - b.millis); passed > 0 || b.used == 0 {
		b.used = max(0, b.used-float32(float64(max(passed, 0))/1000*l.PerSecond))
		b.millis = millis
	} else if passed < 0 {
		b.millis = millis
	}
	if float64(b.used)+1 <= l.Burst {
		b.used++
		return 0
	}
	missing := float64(b.used) + 1 - l.Burst
	return max(time.Duration(missing/l.PerSecond*float64(time.Second)), time.Millisecond)
}

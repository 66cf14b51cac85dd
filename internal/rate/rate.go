// Package rate is a token bucket without a clock: its owner says what time it
// is.
package rate

import "time"

// Bucket holds up to Burst tokens and gains PerSecond tokens a second. It is
// not safe for concurrent use. A Bucket that was never used is full.
type Bucket struct {
	tokens float64
	last   time.Time
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
	if b.last.IsZero() {
		b.tokens = l.Burst
	} else if d := now.Sub(b.last); d > 0 {
		b.tokens = min(l.Burst, b.tokens+d.Seconds()*l.PerSecond)
	}
	b.last = now
	if b.tokens >= 1 {
		b.tokens--
		return 0
	}
	return time.Duration((1-b.tokens)/l.PerSecond*float64(time.Second)) + 1
}

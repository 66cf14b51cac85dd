package eio

import (
	"math"
	"sync/atomic"
	"time"
)

// Timing is how often hearts beat. The sessions of a server share it; nobody
// may change it while there are any. More than 6 days count as 6 days.
type Timing struct {
	Interval time.Duration // between two pings
	Timeout  time.Duration // for the answer to one
}

// Beat is the heartbeat of one session: what Start, Heard, Check and Excuse are
// told of the time, in one word, so that they may be called at the same time.
//
// Start comes first. The time is the caller's, of which 32 bits of milliseconds
// are used: what is more than 24 days ago is in the future. A wall clock that
// is set forward makes silence of what was none; a caller who minds gives
// times that are a fixed one plus what time.Since says of it.
type Beat struct {
	state atomic.Uint64 // milliseconds<<1 | asked
}

// asked is set in Beat.state while a V4 client owes a Pong. Then the
// milliseconds are when its ping was due; else, when it was last heard.
const asked = 1

// Start says that the session is open.
func (b *Beat) Start(_ Revision, _ *Timing, now time.Time) {
	b.state.Store(pack(clock(now), 0))
}

// Heard says that a packet came. In V3 any is a sign of life, control frames
// of its WebSocket, whose type is 0, as well; in V4 only a Pong is.
func (b *Beat) Heard(rev Revision, _ *Timing, p PacketType, now time.Time) {
	if rev == V3 || p == Pong {
		b.state.Store(pack(clock(now), 0))
	}
}

// Check says what is to be done: send a Ping now, or end the session. It is to
// be called from time to time, and the answer is as precise as that.
//
// V4: a ping is due Interval after the last Pong or Start, and Check asks for
// it once. Timeout after it was due, no matter when Check asked for it, a
// session without a Pong is dead. But a client that was never asked is not: if
// Check comes only then, it asks, and the Timeout is from that. V3: a session
// is dead if nothing came for Interval and Timeout. A session that is dead
// stays so until something is heard.
func (b *Beat) Check(rev Revision, t *Timing, now time.Time) (ping, dead bool) {
	state := b.state.Load()
	ms := clock(now)
	silence := int64(int32(ms - uint32(state>>1)))
	interval, timeout := millis(t.Interval), millis(t.Timeout)
	switch {
	case rev == V3:
		return false, silence >= interval+timeout
	case state&asked != 0:
		return false, silence >= timeout
	case silence < interval:
		return false, false
	}
	due := uint32(state>>1) + uint32(interval)
	if silence >= interval+timeout {
		due = ms
	}
	// If a Pong or another Check came in between, there's nothing to ask.
	return b.state.CompareAndSwap(state, pack(due, asked)), false
}

// Excuse says that the client could not be heard until now, because we did not
// read. In V3 silence begins anew; in V4 the wait for a Pong does, if one is
// owed.
func (b *Beat) Excuse(rev Revision, _ *Timing, now time.Time) {
	state := b.state.Load()
	if rev == V3 || state&asked != 0 {
		b.state.CompareAndSwap(state, pack(clock(now), state&asked)) // if it fails, something was heard
	}
}

func pack(ms uint32, flag uint64) uint64 { return uint64(ms)<<1 | flag }

func clock(t time.Time) uint32 { return uint32(t.UnixMilli()) }

// millis is d in milliseconds, such that two of them are half of what the
// clock can tell.
func millis(d time.Duration) int64 { return min(d.Milliseconds(), math.MaxInt32/4) }

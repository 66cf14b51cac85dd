package rate

import "time"

// Slots let as many in at a time as the channel is long.
type Slots chan struct{}

// Enter waits for a place, for at most d and until ended is closed, and
// reports whether there was one. Whoever has a place leaves.
func (s Slots) Enter(d time.Duration, ended <-chan struct{}) bool {
	select {
	case s <- struct{}{}:
		return true
	default:
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case s <- struct{}{}:
		return true
	case <-timer.C:
	case <-ended:
	}
	return false
}

// Leave gives a place back.
func (s Slots) Leave() { <-s }

// Package pset is a hash set of pointers to things that hold their own key. A
// member takes one word in a table that is half to three quarters full: for
// many small things that is a third of what a Go map takes, which keeps the key
// again beside the pointer.
package pset

import "math/bits"

// Set finds its members by hash and a comparison, both of which the caller
// makes: those of one Set are always made the same way. The zero Set is empty.
// It is not safe for concurrent use.
type Set[E comparable] struct {
	slots []E // linear probing; the zero E: free
	n     int
}

// Len is the number of members.
func (s *Set[E]) Len() int { return s.n }

// Get returns the member with this hash for which is holds, or the zero E.
func (s *Set[E]) Get(hash uint64, is func(E) bool) E {
	var none E
	if s.n == 0 {
		return none
	}
	for i := s.home(hash); s.slots[i] != none; i = s.after(i) {
		if is(s.slots[i]) {
			return s.slots[i]
		}
	}
	return none
}

// Add adds e, which is not in the set. hash tells the hash of any member.
func (s *Set[E]) Add(e E, hash func(E) uint64) {
	if 4*(s.n+1) > 3*len(s.slots) {
		s.resize(max(4, 2*s.n), hash)
	}
	s.n++
	s.put(e, hash)
}

// Remove removes e, if it is in the set.
func (s *Set[E]) Remove(e E, hash func(E) uint64) {
	var none E
	if s.n == 0 {
		return
	}
	gap := s.home(hash(e))
	for s.slots[gap] != e {
		if s.slots[gap] == none {
			return
		}
		gap = s.after(gap)
	}
	// Whoever stands behind the gap and could not be found any more moves
	// into it, and leaves a gap of his own.
	s.slots[gap] = none
	for i := s.after(gap); s.slots[i] != none; i = s.after(i) {
		home := s.home(hash(s.slots[i]))
		if gap <= i && gap < home && home <= i || gap > i && (gap < home || home <= i) {
			continue
		}
		s.slots[gap], s.slots[i] = s.slots[i], none
		gap = i
	}
	s.n--
	if s.n == 0 {
		s.slots = nil
	} else if len(s.slots) > 64 && 8*s.n < len(s.slots) {
		s.resize(2*s.n, hash)
	}
}

// All yields every member, in no order. The set does not change meanwhile.
func (s *Set[E]) All(yield func(E) bool) {
	var none E
	for _, e := range s.slots {
		if e != none && !yield(e) {
			return
		}
	}
}

func (s *Set[E]) resize(size int, hash func(E) uint64) {
	var none E
	old := s.slots
	s.slots = make([]E, size)
	for _, e := range old {
		if e != none {
			s.put(e, hash)
		}
	}
}

func (s *Set[E]) put(e E, hash func(E) uint64) {
	var none E
	i := s.home(hash(e))
	for s.slots[i] != none {
		i = s.after(i)
	}
	s.slots[i] = e
}

// home is where a hash's search begins: by its high bits, so the low ones may
// have chosen the set.
func (s *Set[E]) home(hash uint64) int {
	high, _ := bits.Mul64(hash, uint64(len(s.slots)))
	return int(high)
}

func (s *Set[E]) after(i int) int {
	if i++; i < len(s.slots) {
		return i
	}
	return 0
}

package directory

import (
	"bytes"
	"math"
)

// set is a set of records (see op.go) that a garbage collector need not look
// into: the records of a shard lie one behind the other in one array, and a
// table of 8 bytes a slot, with linear probing, says where. With names of 12
// bytes a record costs about 31 bytes, where a map of strings takes 50 to 70.
//
// It is cut into shards, by the hash of the name alone, so that no step under a
// lock is long, and so that the same name is in the same shard of all sets.
type set struct {
	n      int // records
	shards [shardCount]shard
}

const shardCount = 256

type shard struct {
	slots []uint64 // 0: empty, else a tag of 32 bits, and behind it 1 + where in records
	arena []byte   // records, of which some are dead
	n     int      // records that are not
	dead  int      // bytes of those that are
}

// A slot's tag is made of the hash and the record's first byte; where a record
// wants to stand follows from the tag alone.
func tag(h uint64, head byte) uint32 { return uint32(h) ^ uint32(head)*0x9e3779b1 }

func (s *shard) home(tag uint32) int { return int(uint64(tag) * uint64(len(s.slots)) >> 32) }

func (s *set) shard(h uint64) *shard { return &s.shards[h>>56] }

// find is where a record is, in slots and in arena. h is the hash of its place.
func (s *shard) find(h uint64, head byte, key []byte) (slot, at int, ok bool) {
	if s.n == 0 {
		return 0, 0, false
	}
	t := tag(h, head)
	for i := s.home(t); s.slots[i] != 0; {
		if uint32(s.slots[i]>>32) == t {
			at := int(uint32(s.slots[i])) - 1
			if rec := s.arena[at:]; rec[0] == head && bytes.HasPrefix(rec[1:], key) {
				return i, at, true
			}
		}
		if i++; i == len(s.slots) {
			i = 0
		}
	}
	return 0, 0, false
}

func (s *set) has(h uint64, head byte, key []byte) bool {
	_, _, ok := s.shard(h).find(h, head, key)
	return ok
}

// add puts a record in, which is head, key and tail, unless it is there.
func (s *set) add(h uint64, head byte, key, tail []byte) bool {
	sh := s.shard(h)
	if _, _, ok := sh.find(h, head, key); ok {
		return false
	}
	size := 1 + len(key) + len(tail)
	if 4*(sh.n+1) > 3*len(sh.slots) || len(sh.arena)+size > cap(sh.arena) && 4*sh.dead > len(sh.arena) {
		sh.rebuild(size)
	}
	if uint64(len(sh.arena)+size) >= math.MaxUint32 {
		panic("directory: a 256th of a node's names is 4 GiB")
	}
	sh.put(tag(h, head), len(sh.arena))
	sh.arena = append(sh.arena, head)
	sh.arena = append(sh.arena, key...)
	sh.arena = append(sh.arena, tail...)
	sh.n++
	s.n++
	return true
}

// put writes a slot; there is an empty one.
func (s *shard) put(tag uint32, at int) {
	i := s.home(tag)
	for s.slots[i] != 0 {
		if i++; i == len(s.slots) {
			i = 0
		}
	}
	s.slots[i] = uint64(tag)<<32 | uint64(at+1)
}

// remove takes a record out, if it is there.
func (s *set) remove(h uint64, head byte, key []byte) bool {
	sh := s.shard(h)
	i, at, ok := sh.find(h, head, key)
	if !ok {
		return false
	}
	_, size := splitOp(sh.arena[at:])
	sh.arena[at] |= dead
	sh.dead += size
	sh.n--
	s.n--

	// Close the gap: a record behind it, up to the next empty slot, moves into
	// it if its home is not between the two.
	for j := i; ; {
		if j++; j == len(sh.slots) {
			j = 0
		}
		if sh.slots[j] == 0 {
			break
		}
		home := sh.home(uint32(sh.slots[j] >> 32))
		if i < j && (home <= i || home > j) || i > j && home <= i && home > j {
			sh.slots[i] = sh.slots[j]
			i = j
		}
	}
	sh.slots[i] = 0

	switch {
	case sh.n == 0:
		*sh = shard{}
	case sh.dead > 256 && 2*sh.dead > len(sh.arena):
		sh.rebuild(0)
	}
	return true
}

// rebuild leaves the dead out and makes room for a half more slots, and extra
// bytes.
func (s *shard) rebuild(extra int) {
	old := *s
	live := len(old.arena) - old.dead
	s.arena = make([]byte, 0, live+live/8+extra)
	s.slots = make([]uint64, max(2*old.n, 4))
	s.dead = 0
	var moved int
	for _, slot := range old.slots {
		if slot == 0 {
			continue
		}
		at := int(uint32(slot)) - 1
		_, size := splitOp(old.arena[at:])
		s.put(uint32(slot>>32), len(s.arena))
		s.arena = append(s.arena, old.arena[at:at+size]...)
		moved++
	}
	if moved != s.n {
		panic("directory: a set lost count")
	}
}

// appendAll appends all records to dst, whose bytes are then ops.
func (s *shard) appendAll(dst []byte) []byte {
	if s.dead == 0 {
		return append(dst, s.arena...)
	}
	for rest := s.arena; len(rest) > 0; {
		_, n := splitOp(rest)
		if rest[0]&dead == 0 {
			dst = append(dst, rest[:n]...)
		}
		rest = rest[n:]
	}
	return dst
}

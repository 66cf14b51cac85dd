package directory

import (
	"encoding/binary"
	"iter"
)

// query is room for what a set compares a place with, so that lookups need not
// allocate it.
type query [2 + MaxName]byte

// ask is how a set is asked for p, if there can be such a place.
func (d *Directory) ask(q *query, p Place) (hash uint64, first byte, n int, ok bool) {
	if p.Kind >= Kinds || len(p.Name) > MaxName {
		return 0, 0, 0, false
	}
	n = binary.PutUvarint(q[:], uint64(len(p.Name)))
	n += copy(q[n:], p.Name)
	return d.hash(p.Name), head(join, p.Kind), n, true
}

// Locate appends the other nodes that hold a place, as far as is known: the
// origins that are up, each once. It allocates nothing but room in dst.
func (d *Directory) Locate(dst []Origin, p Place) []Origin {
	var q query
	h, first, n, ok := d.ask(&q, p)
	if !ok {
		return dst
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, s := range d.live {
		if s.set.has(h, first, q[:n]) {
			dst = append(dst, s.Origin)
		}
	}
	return dst
}

// Held tells whether another node holds a place.
func (d *Directory) Held(p Place) bool {
	var q query
	h, first, n, ok := d.ask(&q, p)
	if !ok {
		return false
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, s := range d.live {
		if s.set.has(h, first, q[:n]) {
			return true
		}
	}
	return false
}

// Names yields the names of all places of some kinds that other nodes hold,
// each once, however many nodes and kinds it has. Who is held somewhere all the
// time is yielded. No lock is held meanwhile.
func (d *Directory) Names(kinds ...Kind) iter.Seq[string] {
	return func(yield func(string) bool) {
		var names []byte // each behind its length
		for i := range shardCount {
			names = d.namesOf(names[:0], i, kinds)
			for rest := names; len(rest) > 0; {
				size := binary.BigEndian.Uint16(rest)
				if !yield(string(rest[2 : 2+size])) {
					return
				}
				rest = rest[2+size:]
			}
		}
	}
}

// namesOf appends those of one shard, where a name is whatever its kind.
func (d *Directory) namesOf(dst []byte, shard int, kinds []Kind) []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var wanted [Kinds]int // 1 + where in kinds
	for i, kind := range kinds {
		if kind < Kinds && wanted[kind] == 0 {
			wanted[kind] = 1 + i
		}
	}
	for i, s := range d.live {
		for rest := s.set.shards[shard].arena; len(rest) > 0; {
			op, n := splitOp(rest)
			if rest[0]&dead == 0 && wanted[op.kind] > 0 && !d.heldBefore(op, kinds, d.live[:i], s.set, kinds[:wanted[op.kind]-1]) {
				dst = binary.BigEndian.AppendUint16(dst, uint16(len(op.name)))
				dst = append(dst, op.name...)
			}
			rest = rest[n:]
		}
	}
	return dst
}

// heldBefore tells whether an earlier origin has a place of that name, of any
// kind, or this one has, of an earlier kind. d.mu is held.
func (d *Directory) heldBefore(op op, kinds []Kind, earlier []*origin, this *set, earlierKinds []Kind) bool {
	if len(earlier) == 0 && len(earlierKinds) == 0 {
		return false
	}
	h := d.hashBytes(op.name)
	for _, kind := range earlierKinds {
		if this.has(h, head(join, kind), op.key) {
			return true
		}
	}
	for _, s := range earlier {
		for _, kind := range kinds {
			if s.set.has(h, head(join, kind), op.key) {
				return true
			}
		}
	}
	return false
}

package directory

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// RingOps is how many ops back a cursor may be; who is farther behind gets
	// a snapshot. With long names it may be fewer, for the ring keeps within
	// ringBytes.
	RingOps   = 65_536
	ringBytes = 16 << 20

	segmentOps   = 1024
	segmentBytes = 64 << 10

	// PartBytes is how large a part of a snapshot is, its first 48 bytes not
	// counted.
	PartBytes = 64 << 10
)

// own is this run's places and binds, and the last of its history.
type own struct {
	ringOps, ringBytes, segmentOps, partBytes int // smaller in tests

	mu        sync.Mutex // guards what follows; a leaf
	set       *set       // places and binds
	seq, hash uint64     // of the last op
	ring      []*segment // at least the last ringOps ops, if they fit
	ops       int        // in ring
	bytes     int        // in ring
	snapshots uint64     // how many were begun
	scratch   []byte
}

// segment is a stretch of the history, in the form in which it is sent.
type segment struct {
	first  uint64   // seq of its first op
	hash   uint64   // before that
	starts []uint32 // where each op begins
	ops    []byte
}

// Join notes that this node holds a place from now on; it did not before, else
// nothing changes. The place's lock is held, so the history has the places'
// changes in their order. A name that no peer takes panics.
func (d *Directory) Join(p Place) {
	p.check()
	h := d.hash(p.Name)
	o := &d.own
	o.mu.Lock()
	defer o.mu.Unlock()
	o.scratch = appendPlace(o.scratch[:0], join, p)
	key := o.scratch[1:]
	if o.set.add(h, o.scratch[0], key, nil) {
		o.log(o.scratch, sum(p.Kind, key))
	}
}

// Leave notes that this node no longer holds a place, under the place's lock.
func (d *Directory) Leave(p Place) {
	p.check()
	h := d.hash(p.Name)
	o := &d.own
	o.mu.Lock()
	defer o.mu.Unlock()
	o.scratch = appendPlace(o.scratch[:0], leave, p)
	key := o.scratch[1:]
	if o.set.remove(h, head(join, p.Kind), key) {
		o.log(o.scratch, -sum(p.Kind, key))
	}
}

// Bind notes that a device of a single-login class has logged in as the user
// of place p, in the stead of one that this node may have had; p's lock is
// held. The stamp tells this login from earlier and later ones, which are the
// owner's to end; it beats every bind this node has heard of. device goes along to those who lose
// by it; it is nothing to this package. A class that no
// peer takes panics: "", for devices of which a user may have many, has none.
func (d *Directory) Bind(p Place, class string, device uint64, now time.Time) Stamp {
	p.check()
	if len(class) < 1 || len(class) > MaxClass || !utf8.ValidString(class) {
		panic(fmt.Sprintf("directory: class %q", class))
	}
	h := d.hash(p.Name)
	o := &d.own
	o.mu.Lock()
	defer o.mu.Unlock()
	s := d.clock.tick(now)
	o.scratch = appendBind(o.scratch[:0], p, class, s, device)
	first, key, tail := o.scratch[0], o.scratch[1:len(o.scratch)-bindTail], o.scratch[len(o.scratch)-bindTail:]
	if !o.set.add(h, first, key, tail) {
		_, at, _ := o.set.shard(h).find(h, first, key)
		copy(o.set.shard(h).arena[at+1+len(key):], tail)
	}
	o.log(o.scratch, 0)
	return s
}

// Unbind notes that the login that Bind gave this stamp has ended; if another
// has taken its place, or it was lost to another node's, nothing changes. Peers
// need not know: there is no op.
func (d *Directory) Unbind(p Place, class string, s Stamp) {
	h := d.hash(p.Name)
	o := &d.own
	o.mu.Lock()
	defer o.mu.Unlock()
	o.scratch = appendBind(o.scratch[:0], p, class, s, 0)
	first, key := o.scratch[0], o.scratch[1:len(o.scratch)-bindTail]
	if mine, ok := o.stamp(h, first, key); ok && mine == s {
		o.set.remove(h, first, key)
	}
}

// stamp is that of a bind in the set. mu is held.
func (o *own) stamp(h uint64, first byte, key []byte) (Stamp, bool) {
	sh := o.set.shard(h)
	_, at, ok := sh.find(h, first, key)
	if !ok {
		return 0, false
	}
	return Stamp(binary.BigEndian.Uint64(sh.arena[at+1+len(key):])), true
}

// Lost is a login of this node that one on another node has replaced. Its bind
// is taken back already: what is left to do is to tell the device, and its
// door knows how.
type Lost struct {
	Place Place
	Class string
	Stamp Stamp // of the login that lost

	By      Origin // who has the one that won
	ByStamp Stamp
	Device  uint64 // what its Bind told
}

// contest compares another node's bind with the own of that user and class,
// and takes that back if it is the lesser one (R7).
func (d *Directory) contest(theirs op, by Origin) (Lost, bool) {
	o := &d.own
	h := d.hashBytes(theirs.name)
	first := head(bind, theirs.kind)
	o.mu.Lock()
	defer o.mu.Unlock()
	mine, ok := o.stamp(h, first, theirs.key)
	if !ok || mine > theirs.stamp || mine == theirs.stamp && d.self.ID > by.ID {
		return Lost{}, false
	}
	o.set.remove(h, first, theirs.key)
	return Lost{Place{theirs.kind, string(theirs.name)}, string(theirs.class), mine, by, theirs.stamp, theirs.device}, true
}

// log appends an op that changes the hash by diff. mu is held.
func (o *own) log(op []byte, diff uint64) {
	var s *segment
	if len(o.ring) > 0 {
		s = o.ring[len(o.ring)-1]
	}
	if s == nil || len(s.starts) >= o.segmentOps || len(s.ops) > 0 && len(s.ops)+len(op) > segmentBytes {
		s = &segment{}
		for len(o.ring) > 0 && (o.ops-len(o.ring[0].starts) >= o.ringOps || o.bytes > o.ringBytes-segmentBytes) {
			s = o.ring[0]
			o.ops -= len(s.starts)
			o.bytes -= len(s.ops)
			o.ring = slices.Delete(o.ring, 0, 1)
		}
		*s = segment{first: o.seq + 1, hash: o.hash, starts: s.starts[:0], ops: s.ops[:0]}
		o.ring = append(o.ring, s)
	}
	s.starts = append(s.starts, uint32(len(s.ops)))
	s.ops = append(s.ops, op...)
	o.ops++
	o.bytes += len(op)
	o.seq++
	o.hash += diff
}

// has tells whether the ops after a seq are all in the ring. mu is held.
func (o *own) has(after uint64) bool {
	return after == o.seq || after < o.seq && after+1 >= o.ring[0].first
}

// segment is which one in the ring has the op after a seq that it has.
func (o *own) segment(after uint64) int {
	return sort.Search(len(o.ring), func(i int) bool { return o.ring[i].first > after+1 }) - 1
}

// read appends the ops after a seq, as many as fit into limit bytes and at
// least one if there is any, and returns the seq of the last. mu is held, and
// has(after) is true.
func (o *own) read(dst []byte, after uint64, limit int) ([]byte, uint64) {
	if after == o.seq {
		return dst, after
	}
	least := 1
	for _, s := range o.ring[o.segment(after):] {
		i := int(after + 1 - s.first)
		k := max(s.fit(i, limit), i+least)
		least = 0
		ops := s.ops[s.start(i):s.start(k)]
		dst = append(dst, ops...)
		limit -= len(ops)
		after += uint64(k - i)
		if k < len(s.starts) {
			break
		}
	}
	return dst, after
}

// start is where op i begins, or, for one more than there are, the last ends.
func (s *segment) start(i int) int {
	if i == len(s.starts) {
		return len(s.ops)
	}
	return int(s.starts[i])
}

// fit is the end of the longest stretch of ops from i that fits into limit
// bytes.
func (s *segment) fit(i, limit int) int {
	from := s.start(i)
	if len(s.ops)-from <= limit {
		return len(s.starts)
	}
	n := sort.Search(len(s.starts)-i, func(n int) bool { return s.start(i+n+1)-from > limit })
	return i + n
}

// Position is where the own history stands, and the clock, for a beat.
func (d *Directory) Position() (seq, hash uint64, clock Stamp) {
	o := &d.own
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seq, o.hash, d.clock.now()
}

// Resume tells whether a peer that has the own history up to seq, with that
// hash, can go on from there: the ops behind are in the ring and the hash is
// right. If not, it needs a snapshot.
func (d *Directory) Resume(seq, hash uint64) bool {
	o := &d.own
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.has(seq) {
		return false
	}
	if seq == o.seq {
		return hash == o.hash
	}
	s := o.ring[o.segment(seq)]
	at := s.hash
	for ops, n := s.ops[:s.start(int(seq+1-s.first))], 0; len(ops) > 0; ops = ops[n:] {
		var op op
		op, n = splitOp(ops)
		switch op.what {
		case join:
			at += sum(op.kind, op.place)
		case leave:
			at -= sum(op.kind, op.place)
		}
	}
	return hash == at
}

// AppendDelta appends a delta of the ops after a cursor, as many as fit into
// limit bytes and at least one, and returns the new cursor. If there are none,
// it appends nothing and returns the old. If ok is false the cursor is not in
// the ring any more: who is there needs a snapshot.
func (d *Directory) AppendDelta(dst []byte, after uint64, limit int) (frame []byte, last uint64, ok bool) {
	o := &d.own
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.has(after) || after == o.seq {
		return dst, after, after == o.seq
	}
	dst = appendDelta(dst, after, d.clock.now())
	dst, last = o.read(dst, after, limit)
	return dst, last, true
}

// Snapshot writes all that this node holds, in parts, while it changes. Its
// methods are for one goroutine.
//
// No moment is frozen: the places are copied a shard at a time, and between the
// shards, and after the last, come the ops that were done meanwhile. Who does
// all that in order has in the end what was there when the last part was
// written: a place with no op since its shard was copied is as it was copied,
// and any other is as its last op left it. Ops written before a shard is copied
// do no harm to it: for a place that joined by one and is not in the copy there
// is a leave to come.
type Snapshot struct {
	d     *Directory
	id    uint64
	part  uint64
	shard int    // next to be copied
	redo  uint64 // up to here ops are in what was written
	done  bool
	ops   []byte // copied and not yet written
}

// Snapshot begins one. Of those a peer is sent, the last one begun counts.
func (d *Directory) Snapshot() *Snapshot {
	s := &Snapshot{d: d}
	d.own.mu.Lock()
	s.beginLocked()
	d.own.mu.Unlock()
	return s
}

func (s *Snapshot) beginLocked() {
	o := &s.d.own
	o.snapshots++
	*s = Snapshot{d: s.d, id: o.snapshots, redo: o.seq, ops: s.ops[:0]}
}

// Next appends the next part. After the last one, done is true, and the peer's
// cursor is seq. If the ring has run over since the part before, because the
// peer takes them too slowly, it begins anew by itself.
func (s *Snapshot) Next(dst []byte) (frame []byte, seq uint64, done bool) {
	if s.done {
		panic("directory: Next after the last part of a snapshot")
	}
	f := snapFrame{id: s.id}
	limit := s.d.own.partBytes
	for !f.last && len(s.ops) < limit {
		s.fill(&f)
	}
	n := len(s.ops)
	if n > limit {
		f.last = false
		n = 0
		for {
			_, size := splitOp(s.ops[n:])
			if n+size > limit { // every op is smaller
				break
			}
			n += size
		}
	}
	f.id, f.part, f.clock, f.ops = s.id, s.part, s.d.clock.now(), s.ops[:n]
	dst = appendSnap(dst, f)
	s.part++
	s.ops = s.ops[:copy(s.ops, s.ops[n:])]
	if s.done = f.last; f.last {
		s.ops = nil
	}
	return dst, f.seq, f.last
}

// fill copies one more shard, and the ops since the last one, or if all are
// copied the ops only; if they are then complete it says in f what they make.
func (s *Snapshot) fill(f *snapFrame) {
	o := &s.d.own
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.has(s.redo) {
		s.beginLocked()
	}
	if s.shard < shardCount {
		s.ops = o.set.shards[s.shard].appendAll(s.ops)
		s.shard++
	}
	s.ops, s.redo = o.read(s.ops, s.redo, o.partBytes)
	if s.shard == shardCount && s.redo == o.seq {
		f.last, f.seq, f.hash = true, o.seq, o.hash
	}
}

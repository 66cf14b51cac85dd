package directory

import "time"

// mergeChunk is how many ops are merged in one hold of the lock that lookups
// want.
const mergeChunk = 64

// News is what came of merging a frame, and what is to be done about it.
type News struct {
	// Need: ops are missing, or what is here is wrong. A NEED with Have is to
	// be sent to the origin, which goes on from there; 0 asks for a snapshot.
	Need bool
	Have uint64

	// Diverged: what is here is not what the origin has at the same seq, which
	// only a bug brings about. The NEED mends it.
	Diverged bool

	// Lost are this node's logins that newer ones elsewhere have replaced. Each
	// is reported once, also beside an error: their devices are to be told.
	Lost []Lost

	// Ahead is how far the origin's clock is ahead of this node's; 0 up to
	// MaxAhead. Order stays right, but who logs in at the same time there wins.
	Ahead time.Duration
}

// partial is a snapshot that is coming in.
type partial struct {
	id, next  uint64 // the next part
	completed bool   // set is nil then: nothing more of it is wanted
	hash      uint64
	set       *set
}

// begin finds the origin of a frame, takes its merging lock and sees its clock,
// unless an error is returned (R1, R2).
func (d *Directory) begin(from Origin, clock Stamp, now time.Time, news *News) (*origin, error) {
	if !clock.sane(now) {
		return nil, ErrMalformed
	}
	if err := d.valid(from); err != nil {
		return nil, err
	}
	d.mu.RLock()
	s := d.origins[from]
	d.mu.RUnlock()
	if s == nil {
		return nil, ErrUnknown
	}
	s.merging.Lock()
	news.Ahead = d.clock.see(clock, now)
	return s, nil
}

// MergeDelta merges a stretch of an origin's history (R3): ops that are here
// already are passed over, the next one and those behind it are done; if there
// is a gap none is, and what is missing is needed.
func (d *Directory) MergeDelta(from Origin, frame []byte, now time.Time) (News, error) {
	var news News
	f, err := readDelta(frame)
	if err != nil {
		return news, err
	}
	s, err := d.begin(from, f.clock, now, &news)
	if err != nil {
		return news, err
	}
	defer s.merging.Unlock()
	switch {
	case f.base > s.seq:
		news.Need, news.Have = true, s.seq
		return news, nil
	case f.base+f.n <= s.seq:
		return news, nil
	}
	ops := f.ops
	for range s.seq - f.base {
		_, n := splitOp(ops)
		ops = ops[n:]
	}
	s.partial.abandon()
	s.moved++
	for len(ops) > 0 {
		n, err := d.mergeOps(s, ops)
		if err != nil {
			return news, err
		}
		d.afterOps(s, ops[:n], &news)
		ops = ops[n:]
	}
	d.arrive(s)
	return news, nil
}

// early tells whether what is merged of s now may be no news. s.merging is held.
func (d *Directory) early(s *origin) bool { return !s.current && d.elder(s) }

// arrive notes whether all is here that s held when it was met. s.merging is
// held.
func (d *Directory) arrive(s *origin) {
	if s.current || !s.aimed || s.seq < s.aim {
		return
	}
	d.mu.Lock()
	s.current = true
	d.mu.Unlock()
}

// mergeOps does the first ops, up to mergeChunk, and returns their size. s.merging is
// held.
func (d *Directory) mergeOps(s *origin, ops []byte) (size int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.forgotten {
		return 0, ErrUnknown
	}
	for range mergeChunk {
		if size == len(ops) {
			break
		}
		op, n := splitOp(ops[size:])
		size += n
		s.hash += d.do(s.set, op)
		s.seq++
	}
	return size, nil
}

// do does an op, which may be done already, to a set of places, and returns by
// how much that changes the hash.
func (d *Directory) do(set *set, op op) uint64 {
	switch op.what {
	case join:
		if set.add(d.hashBytes(op.name), head(join, op.kind), op.key, nil) {
			return sum(op.kind, op.key)
		}
	case leave:
		if set.remove(d.hashBytes(op.name), head(join, op.kind), op.key) {
			return -sum(op.kind, op.key)
		}
	}
	return 0
}

// afterOps does without d.mu what is to be done about ops that were merged.
func (d *Directory) afterOps(s *origin, ops []byte, news *News) {
	for n := 0; len(ops) > 0; ops = ops[n:] {
		var op op
		op, n = splitOp(ops)
		switch {
		case op.what == bind:
			if lost, ok := d.contest(op, s.Origin); ok {
				news.Lost = append(news.Lost, lost)
			}
		case d.changed != nil:
			d.changed(s.Origin, op.kind, op.name, d.early(s))
		}
	}
}

// MergeSnap merges a part of a snapshot (R4). The parts build a set aside,
// which takes the place of what is here when the last one has come, its hash is
// right, and it is not older. The binds in a part count at once: they were
// made, whatever becomes of the snapshot.
func (d *Directory) MergeSnap(from Origin, frame []byte, now time.Time) (News, error) {
	var news News
	f, err := readSnap(frame)
	if err != nil {
		return news, err
	}
	s, err := d.begin(from, f.clock, now, &news)
	if err != nil {
		return news, err
	}
	defer s.merging.Unlock()
	p := s.partial
	switch {
	case p == nil || f.id > p.id:
		p = &partial{id: f.id, set: new(set)}
		s.partial = p
	case f.id < p.id || f.part < p.next || p.completed:
		return news, nil
	}
	if f.part > p.next {
		p.complete()
		news.Need, news.Have = true, s.seq
		return news, nil
	}
	p.next++
	s.moved++
	for ops, n := f.ops, 0; len(ops) > 0; ops = ops[n:] {
		var op op
		op, n = splitOp(ops)
		p.hash += d.do(p.set, op)
		if op.what == bind {
			if lost, ok := d.contest(op, s.Origin); ok {
				news.Lost = append(news.Lost, lost)
			}
		}
	}
	if !f.last {
		return news, nil
	}
	fresh, hash := p.set, p.hash
	p.complete()
	if hash != f.hash {
		news.Need, news.Diverged = true, true
		return news, nil
	}
	// One of the same seq heals what diverged.
	if f.seq < s.seq || f.seq == s.seq && hash == s.hash {
		return news, nil
	}
	d.mu.Lock()
	if s.forgotten {
		d.mu.Unlock()
		return news, ErrUnknown
	}
	old := s.set
	s.set, s.seq, s.hash = fresh, f.seq, hash
	d.mu.Unlock()
	d.tellDifference(s, old, fresh)
	d.tellDifference(s, fresh, old)
	d.arrive(s)
	return news, nil
}

// complete frees what has come of a snapshot; it is remembered so that its
// parts are known when they come again.
func (p *partial) complete() { p.set, p.completed = nil, true }

// abandon is for a snapshot of which the end is not coming: ops came behind it.
func (p *partial) abandon() {
	if p != nil {
		p.complete()
	}
}

// tellDifference tells what is in a and not in b, both s's. Neither is changed
// meanwhile.
func (d *Directory) tellDifference(s *origin, a, b *set) {
	if d.changed == nil {
		return
	}
	var batch []byte
	for i := range a.shards {
		batch = a.shards[i].appendAll(batch[:0])
		for rest := batch; len(rest) > 0; {
			op, n := splitOp(rest)
			rest = rest[n:]
			if !b.has(d.hashBytes(op.name), head(join, op.kind), op.key) {
				d.changed(s.Origin, op.kind, op.name, d.early(s))
			}
		}
	}
}

// MergeBeat merges what an origin says over its link about its own history. On
// a link a beat passes deltas and parts that wait, so that something is missing
// means nothing; if at the next beat there is still something and nothing has
// come between, it is needed.
func (d *Directory) MergeBeat(from Origin, seq, hash uint64, clock Stamp, now time.Time) (News, error) {
	var news News
	s, err := d.begin(from, clock, now, &news)
	if err != nil {
		return news, err
	}
	defer s.merging.Unlock()
	if !s.aimed {
		s.aim, s.aimed = seq, true
	}
	d.arrive(s)
	switch {
	case seq == s.seq && hash != s.hash:
		news.Need, news.Diverged = true, true
	case seq > s.seq && s.beat.behind && s.beat.moved == s.moved:
		news.Need, news.Have = true, s.seq
	}
	s.beat.behind, s.beat.moved = seq > s.seq, s.moved
	return news, nil
}

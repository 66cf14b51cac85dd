package directory

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The simulator runs clusters of Directories on one goroutine, each behind the
// few lines that a cluster needs around it, over a network that loses,
// duplicates and reorders, between nodes that crash, restart, are cut off and
// have their clocks moved, under a membership that is late and sometimes wrong.
// The network is weaker than a link, which keeps order: what holds here holds
// there.
//
// DIRECTORY_SEEDS is how many seeds to run (100), DIRECTORY_SEED one of them.

func TestEveryInvariantHoldsInEveryFault(t *testing.T) {
	from, to := uint64(0), uint64(100)
	if testing.Short() || raceEnabled {
		to = 20
	}
	if s := os.Getenv("DIRECTORY_SEEDS"); s != "" {
		to, _ = strconv.ParseUint(s, 10, 64)
	}
	if s := os.Getenv("DIRECTORY_SEED"); s != "" {
		from, _ = strconv.ParseUint(s, 10, 64)
		to = from + 1
	}
	var all tallies
	for seed := from; seed < to; seed++ {
		w := newWorld(t, seed)
		w.live()
		w.quiet()
		all.add(w.n)
		if t.Failed() {
			t.Fatalf("seed %d; run it alone with DIRECTORY_SEED=%d", seed, seed)
		}
	}
	t.Logf("%+v", all)
	if to-from >= 20 && slices.Contains([]int{all.Lost, all.Snapshots, all.Overruns, all.Crashes, all.Restarts, all.Cuts, all.Replays, all.WrongDowns, all.Back, all.Later, all.Disproved, all.Unknown, all.Needs, all.Jumps}, 0) {
		t.Errorf("some fault never came: %+v", all)
	}
}

type tallies struct {
	Steps, Messages, Ops, Lost, Snapshots, Overruns, Crashes, Restarts, Cuts, Replays, WrongDowns, Back, Later, Disproved, Unknown, Needs, Jumps int
}

func (a *tallies) add(b tallies) {
	a.Steps += b.Steps
	a.Messages += b.Messages
	a.Ops += b.Ops
	a.Lost += b.Lost
	a.Snapshots += b.Snapshots
	a.Overruns += b.Overruns
	a.Crashes += b.Crashes
	a.Restarts += b.Restarts
	a.Cuts += b.Cuts
	a.Replays += b.Replays
	a.WrongDowns += b.WrongDowns
	a.Back += b.Back
	a.Later += b.Later
	a.Disproved += b.Disproved
	a.Unknown += b.Unknown
	a.Needs += b.Needs
	a.Jumps += b.Jumps
}

type login struct {
	place Place
	class string
}

// history is the truth about what a run wrote.
type history struct {
	changes map[Place][]uint64 // seqs at which it joined, left, joined …
	hashes  []uint64           // after seq i
	binds   []bound            // in their order
}

type bound struct {
	seq   uint64
	login login
	stamp Stamp
}

func (h *history) has(p Place, seq uint64) bool {
	n, _ := slices.BinarySearch(h.changes[p], seq+1)
	return n%2 == 1
}

type host struct {
	id   string
	skew time.Duration // of its clock
	run  *run          // nil: down
}

// run is a Directory and what a cluster puts around it.
type run struct {
	Origin
	w      *world
	host   *host
	d      *Directory
	places map[Place]bool
	logins map[login]Stamp
	member map[Origin]bool
	links  map[Origin]*link

	told  map[Place]bool    // what changed made it believe to be held elsewhere
	seqs  map[Origin]uint64 // at the last check
	known map[login]Stamp   // the greatest bind that it has merged
}

type link struct {
	ready  bool
	cursor uint64
	snap   *Snapshot
}

type message struct {
	at    time.Time
	order int
	from  Origin
	to    Origin
	what  string
	frame []byte // delta, snap, digest
	about Origin // welcome: who answers
	seq   uint64 // welcome, need, beat
	hash  uint64 // welcome, beat
	clock Stamp  // beat
}

type world struct {
	t    *testing.T
	rnd  *rand.Rand
	now  time.Time
	n    tallies
	loss float64
	dup  float64
	slow time.Duration // the longest delay

	hosts     []*host
	runs      map[Origin]*history // of every run there ever was
	epochs    []Origin            // the same, in order
	universe  []Place
	cut       map[[2]string]bool
	messages  queue
	order     int
	ringOps   int
	partBytes int
}

type queue []*message

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return cmp.Or(q[i].at.Compare(q[j].at), cmp.Compare(q[i].order, q[j].order)) < 0
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*message)) }
func (q *queue) Pop() any {
	m := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return m
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, rnd: rand.New(rand.NewPCG(seed, 17)), now: time.UnixMilli(1_700_000_000_000),
		runs: make(map[Origin]*history), cut: make(map[[2]string]bool),
	}
	w.loss = []float64{0, 0.1, 0.3}[w.rnd.IntN(3)]
	w.dup = []float64{0, 0.1, 0.3}[w.rnd.IntN(3)]
	w.slow = []time.Duration{time.Millisecond, 50 * time.Millisecond, 2 * time.Second}[w.rnd.IntN(3)]
	w.ringOps = []int{8, 64, RingOps}[w.rnd.IntN(3)]
	w.partBytes = []int{40, 200, PartBytes}[w.rnd.IntN(3)]
	for i := range 20 {
		w.universe = append(w.universe, Place{Kind(i % 3), fmt.Sprint("name", i/3)})
	}
	w.universe = append(w.universe, Place{Kind: 5})
	for i := range 3 + w.rnd.IntN(3) {
		h := &host{id: string(rune('a' + i)), skew: time.Duration(w.rnd.IntN(20_000)-10_000) * time.Millisecond}
		w.hosts = append(w.hosts, h)
		w.start(h)
	}
	return w
}

func (w *world) chance(p float64) bool { return w.rnd.Float64() < p }

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	if !w.t.Failed() { // the first one tells
		w.t.Errorf("after %d steps: "+format, append([]any{w.n.Steps}, args...)...)
	}
}

func (h *host) now() time.Time { return h.run.w.now.Add(h.skew) }

func (w *world) start(h *host) {
	o := Origin{h.id, uint64(w.now.Add(h.skew).UnixMilli())}
	for w.runs[o] != nil {
		o.Epoch++
	}
	r := &run{
		Origin: o, w: w, host: h, places: make(map[Place]bool), logins: make(map[login]Stamp), member: make(map[Origin]bool),
		links: make(map[Origin]*link), told: make(map[Place]bool), seqs: make(map[Origin]uint64), known: make(map[login]Stamp),
	}
	r.d = New(o, func(_ Origin, kind Kind, name []byte, _ bool) {
		p := Place{kind, string(name)}
		r.told[p] = r.d.Held(p)
	})
	r.d.fixed = true
	r.d.own.ringOps, r.d.own.segmentOps, r.d.own.partBytes = w.ringOps, 4, w.partBytes
	h.run = r
	w.runs[o] = &history{changes: make(map[Place][]uint64), hashes: []uint64{0}}
	w.epochs = append(w.epochs, o)
}

func (w *world) alive() (runs []*run) {
	for _, h := range w.hosts {
		if h.run != nil {
			runs = append(runs, h.run)
		}
	}
	return runs
}

// live is the part of the run in which everything happens.
func (w *world) live() {
	for range 600 {
		w.faults()
		for _, r := range w.alive() {
			if w.chance(0.3) {
				r.use()
			}
			if w.chance(0.01) { // more than a ring may have
				for range 20 {
					r.use()
				}
			}
			if w.chance(0.3) {
				r.judge(false)
			}
		}
		w.step()
		if w.t.Failed() {
			return
		}
	}
}

// quiet heals everything and then demands that all know all.
func (w *world) quiet() {
	clear(w.cut)
	w.loss, w.dup = 0, 0
	w.slow = time.Millisecond // which keeps order
	for _, r := range w.alive() {
		r.judge(true)
	}
	for range 400 {
		w.step()
		if w.t.Failed() {
			return
		}
	}
	holder := make(map[login]Origin)
	for _, r := range w.alive() {
		up := 0
		for _, s := range r.d.Origins(nil) {
			if s.Up {
				up++
			}
		}
		if up != len(w.alive())-1 {
			w.fail("I3: %v sees %d live nodes of %d others: %v", r.Origin, up, len(w.alive())-1, r.d.Origins(nil))
		}
		for _, q := range w.alive() {
			if q == r {
				continue
			}
			seq, hash := r.d.Have(q.Origin)
			wantSeq, wantHash, _ := q.d.Position()
			if seq != wantSeq || hash != wantHash {
				w.fail("I3: %v has of %v seq %d hash %x, want %d %x", r.Origin, q.Origin, seq, hash, wantSeq, wantHash)
			}
		}
		for _, p := range w.universe {
			var want []Origin
			for _, q := range w.alive() {
				if q != r && q.places[p] {
					want = append(want, q.Origin)
				}
			}
			if got := sorted(r.d.Locate(nil, p)); !slices.Equal(got, want) {
				w.fail("I3: at %v %v is held by %v, want %v", r.Origin, p, got, want)
			}
		}
		for l := range r.logins {
			if other, ok := holder[l]; ok {
				w.fail("I4: %v is held by %v and by %v", l, other, r.Origin)
			}
			holder[l] = r.Origin
		}
	}
}

func sorted(all []Origin) []Origin {
	slices.SortFunc(all, func(a, b Origin) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Epoch, b.Epoch)) })
	return all
}

func (w *world) faults() {
	h := w.hosts[w.rnd.IntN(len(w.hosts))]
	switch {
	case h.run == nil && w.chance(0.1):
		w.n.Restarts++
		w.start(h)
	case h.run != nil && w.chance(0.006):
		w.n.Crashes++
		h.run = nil
		if w.chance(0.5) {
			if w.chance(0.5) {
				h.skew -= time.Hour
				w.n.Back++
			}
			w.n.Restarts++
			w.start(h)
		}
	case w.chance(0.01): // a clock is moved
		h.skew = time.Duration(w.rnd.IntN(200_000)-100_000) * time.Millisecond
	case w.chance(0.01): // cut in two
		w.n.Cuts++
		clear(w.cut)
		side := w.rnd.Uint32()
		for i, a := range w.hosts {
			for j, b := range w.hosts {
				w.cut[[2]string{a.id, b.id}] = side>>i&1 != side>>j&1
			}
		}
	case w.chance(0.01): // one way
		w.n.Cuts++
		w.cut[[2]string{h.id, w.hosts[w.rnd.IntN(len(w.hosts))].id}] = true
	case w.chance(0.03):
		clear(w.cut)
	case w.chance(0.005): // nothing happens for so long that what is down is forgotten
		w.n.Jumps++
		w.now = w.now.Add(Keep + time.Second)
	case w.chance(0.01) && h.run != nil: // an old "alive" comes again (compatibility.md B2)
		o := w.epochs[w.rnd.IntN(len(w.epochs))]
		if o.ID != h.id && !w.isAlive(o) && !h.run.member[o] {
			w.n.Replays++
			h.run.verdict(o, true)
		}
	case w.chance(0.01) && h.run != nil: // a stall: the verdict is wrong
		o := w.epochs[w.rnd.IntN(len(w.epochs))]
		if w.isAlive(o) && h.run.member[o] {
			w.n.WrongDowns++
			h.run.verdict(o, false)
		}
	}
}

func (w *world) isAlive(o Origin) bool {
	for _, r := range w.alive() {
		if r.Origin == o {
			return true
		}
	}
	return false
}

// judge brings what membership says nearer to the truth; all of it at quiet.
func (r *run) judge(all bool) {
	for _, o := range r.w.epochs {
		if o.ID != r.ID && (all || r.w.chance(0.05)) {
			r.verdict(o, r.w.isAlive(o))
		}
	}
}

func (r *run) verdict(o Origin, up bool) {
	if r.member[o] == up {
		return
	}
	r.member[o] = up
	if !up {
		r.d.Down(o, r.host.now())
		delete(r.links, o)
		return
	}
	before := len(r.d.Origins(nil))
	if err := r.d.Up(o); err != nil {
		r.w.fail("Up: %v", err)
	}
	if after := len(r.d.Origins(nil)); after < before {
		r.w.fail("Up(%v) at %v took another origin away", o, r.Origin)
	}
}

// use changes what a run holds.
func (r *run) use() {
	r.w.n.Ops++
	h := r.w.runs[r.Origin]
	p := r.w.universe[r.w.rnd.IntN(len(r.w.universe))]
	before, _, _ := r.d.Position()
	switch {
	case p.Kind == 0 && r.w.chance(0.5):
		l := login{p, []string{"mobile", "web"}[r.w.rnd.IntN(2)]}
		if old, ok := r.logins[l]; ok && r.w.chance(0.7) {
			r.d.Unbind(l.place, l.class, old)
			delete(r.logins, l)
			break
		}
		s := r.d.Bind(l.place, l.class, 0, r.host.now())
		if s <= r.known[l] {
			r.w.fail("I5: %v bound %v at %d, having seen %d", r.Origin, l, s, r.known[l])
		}
		if old := r.logins[l]; s <= old {
			r.w.fail("I5: %v bound %v at %d, after its own %d", r.Origin, l, s, old)
		} else if old > 0 { // the connection that was replaced ends
			r.d.Unbind(l.place, l.class, old)
		}
		r.logins[l] = s
		h.binds = append(h.binds, bound{before + 1, l, s})
		h.hashes = append(h.hashes, h.hashes[before])
	default:
		there := r.places[p]
		r.places[p] = !there
		if there {
			r.d.Leave(p)
			r.d.Leave(p)
		} else {
			r.d.Join(p)
			r.d.Join(p)
		}
		h.changes[p] = append(h.changes[p], before+1)
		hash := uint64(0)
		for p, there := range r.places {
			if there {
				hash += sum(p.Kind, appendPlace(nil, join, p)[1:])
			}
		}
		h.hashes = append(h.hashes, hash)
	}
	if seq, hash, _ := r.d.Position(); seq != uint64(len(h.hashes)-1) || hash != h.hashes[seq] {
		r.w.fail("%v is at seq %d hash %x, want %d %x", r.Origin, seq, hash, len(h.hashes)-1, h.hashes[len(h.hashes)-1])
	}
}

// step lets some time pass: messages arrive, and links send.
func (w *world) step() {
	w.n.Steps++
	w.now = w.now.Add(time.Duration(1+w.rnd.IntN(30)) * time.Millisecond)
	for len(w.messages) > 0 && !w.messages[0].at.After(w.now) {
		m := heap.Pop(&w.messages).(*message)
		for _, h := range w.hosts {
			if h.id == m.to.ID && h.run != nil {
				w.n.Messages++
				h.run.take(m)
				h.run.check(false)
			}
		}
	}
	for _, r := range w.alive() {
		for _, o := range w.epochs {
			if r.member[o] {
				r.pump(o)
			}
		}
		if w.chance(0.05) {
			r.d.Sweep(r.host.now())
		}
		r.check(w.chance(0.1))
	}
}

func (w *world) send(m message) {
	if w.cut[[2]string{m.from.ID, m.to.ID}] || w.chance(w.loss) {
		return
	}
	for {
		m.at = w.now.Add(time.Duration(w.rnd.Int64N(int64(w.slow))))
		m.order = w.order
		w.order++
		copied := m
		copied.frame = slices.Clone(m.frame)
		heap.Push(&w.messages, &copied)
		if !w.chance(w.dup) {
			return
		}
	}
}

// pump is what the writer of a link does.
func (r *run) pump(to Origin) {
	l := r.links[to]
	if l == nil {
		l = new(link)
		r.links[to] = l
	}
	w := r.w
	if !l.ready {
		if w.chance(0.2) {
			w.send(message{from: r.Origin, to: to, what: "hello"})
		}
		return
	}
	if w.chance(0.1) {
		seq, hash, clock := r.d.Position()
		w.send(message{from: r.Origin, to: to, what: "beat", seq: seq, hash: hash, clock: clock})
	}
	if w.chance(0.05) {
		w.send(message{from: r.Origin, to: to, what: "digest", frame: r.d.AppendDigest(nil)})
	}
	if w.chance(0.5) {
		return // it is busy
	}
	if l.snap == nil {
		frame, last, ok := r.d.AppendDelta(nil, l.cursor, 1+w.rnd.IntN(100))
		if ok {
			if last > l.cursor {
				w.send(message{from: r.Origin, to: to, what: "delta", frame: frame})
			}
			l.cursor = last
			return
		}
		w.n.Overruns++
		l.snap = r.d.Snapshot()
	}
	frame, seq, done := l.snap.Next(nil)
	w.send(message{from: r.Origin, to: to, what: "snap", frame: frame})
	if done {
		w.n.Snapshots++
		l.cursor, l.snap = seq, nil
	}
}

// take is what the reader of a link does.
func (r *run) take(m *message) {
	w, now := r.w, r.host.now()
	if m.what == "hello" {
		reply := message{from: r.Origin, to: m.from, what: "welcome", about: m.to}
		if m.to == r.Origin {
			later, err := r.d.Hello(m.from, r.member[m.from], now)
			if err != nil {
				w.fail("Hello: %v", err)
			}
			if later {
				w.n.Later++
				for o, l := range r.links {
					l.ready = l.ready && o.ID != m.from.ID // dial it
				}
				return
			}
			for _, s := range r.d.Origins(nil) {
				if s.Origin.ID == m.from.ID && s.Origin.Epoch < m.from.Epoch {
					w.fail("%v is known to %v after the HELLO of %v", s.Origin, r.Origin, m.from)
				}
			}
			reply.seq, reply.hash = r.d.Have(m.from)
		}
		w.send(reply)
		return
	}
	if m.to != r.Origin {
		w.send(message{from: r.Origin, to: m.from, what: "reset", about: m.to})
		return
	}
	switch m.what {
	case "reset":
		if l := r.links[m.about]; l != nil {
			l.ready = false
		}
	case "welcome":
		if m.about != m.from {
			w.n.Disproved++
			r.d.Forget(m.about)
			delete(r.links, m.about)
		}
		r.d.Hello(m.from, r.member[m.from], now)
		if l := r.links[m.from]; l != nil && m.about == m.from && !l.ready {
			l.ready = true
			l.cursor, l.snap = m.seq, nil
			if !r.d.Resume(m.seq, m.hash) {
				l.snap = r.d.Snapshot()
			}
		}
	case "need":
		if l := r.links[m.from]; l != nil {
			w.n.Needs++
			l.cursor, l.snap = m.seq, nil
			if m.seq == 0 {
				l.snap = r.d.Snapshot()
			}
		}
	case "delta":
		news, err := r.d.MergeDelta(m.from, m.frame, now)
		r.act(m.from, news, err)
	case "snap":
		news, err := r.d.MergeSnap(m.from, m.frame, now)
		r.act(m.from, news, err)
	case "beat":
		news, err := r.d.MergeBeat(m.from, m.seq, m.hash, m.clock, now)
		r.act(m.from, news, err)
	case "digest":
		stale, err := r.d.MergeDigest(nil, m.frame)
		if err != nil {
			w.fail("MergeDigest: %v", err)
		}
		for _, s := range stale {
			if s.Diverged {
				w.fail("I2: %v is told that %v differs", r.Origin, s.Origin)
			}
			if w.chance(0.1) { // that is rather long now: its link may be broken
				w.send(message{from: r.Origin, to: s.Origin, what: "reset", about: r.Origin})
			}
		}
	}
}

func (r *run) act(from Origin, news News, err error) {
	w := r.w
	if errors.Is(err, ErrUnknown) {
		w.n.Unknown++
		w.send(message{from: r.Origin, to: from, what: "reset", about: r.Origin})
	} else if err != nil {
		w.fail("%v from %v: %v", r.Origin, from, err)
	}
	if news.Diverged {
		w.fail("I2: %v differs from %v at the same seq", r.Origin, from)
	}
	if news.Need {
		w.send(message{from: r.Origin, to: from, what: "need", seq: news.Have})
	}
	for _, lost := range news.Lost {
		w.n.Lost++
		l := login{lost.Place, lost.Class}
		if stamp, ok := r.logins[l]; !ok || stamp != lost.Stamp {
			w.fail("%v lost %v of %d, and holds %d", r.Origin, l, lost.Stamp, stamp)
		}
		delete(r.logins, l)
		if lost.By != from || lost.ByStamp < lost.Stamp || lost.ByStamp == lost.Stamp && from.ID < r.ID ||
			!slices.ContainsFunc(w.runs[from].binds, func(b bound) bool { return b.login == l && b.stamp == lost.ByStamp }) {
			w.fail("%v lost %v of %d to %v's %d, which is none", r.Origin, l, lost.Stamp, from, lost.ByStamp)
		}
	}
}

// check holds what a run knows against the truth.
func (r *run) check(all bool) {
	w := r.w
	states := r.d.Origins(nil)
	now := make(map[Origin]uint64, len(states))
	for _, s := range states {
		truth := w.runs[s.Origin]
		if s.Origin.ID == r.ID {
			w.fail("R2: %v knows %v", r.Origin, s.Origin)
			return
		}
		_, hash := r.d.Have(s.Origin)
		switch before := r.seqs[s.Origin]; {
		case s.Seq < before:
			w.fail("I1: %v has %v at seq %d, after %d", r.Origin, s.Origin, s.Seq, before)
			return
		case s.Seq >= uint64(len(truth.hashes)):
			w.fail("I1: %v has %v at seq %d, which wrote %d", r.Origin, s.Origin, s.Seq, len(truth.hashes)-1)
			return
		case hash != truth.hashes[s.Seq]:
			w.fail("I2: %v has %v at seq %d with hash %x, want %x", r.Origin, s.Origin, s.Seq, hash, truth.hashes[s.Seq])
		case s.Seq > before:
			for _, b := range truth.binds {
				if b.seq > before && b.seq <= s.Seq {
					r.known[b.login] = max(r.known[b.login], b.stamp)
				}
			}
		}
		if s.Up != (r.member[s.Origin]) {
			w.fail("%v sees %v up %v, membership says %v", r.Origin, s.Origin, s.Up, r.member[s.Origin])
		}
		now[s.Origin] = s.Seq
	}
	r.seqs = now
	if !all {
		return
	}
	names := make(map[string]bool)
	for _, p := range w.universe {
		var want []Origin
		for _, s := range states {
			has := w.runs[s.Origin].has(p, s.Seq)
			if has && s.Up {
				want = append(want, s.Origin)
			}
			set := r.d.origins[s.Origin].set
			if key := appendPlace(nil, join, p); set.has(r.d.hash(p.Name), key[0], key[1:]) != has {
				w.fail("I2: %v has %v of %v at %d: %v, want %v", r.Origin, p, s.Origin, s.Seq, !has, has)
			}
		}
		if got := sorted(r.d.Locate(nil, p)); !slices.Equal(got, sorted(want)) || r.d.Held(p) != (len(want) > 0) {
			w.fail("at %v %v is held by %v, want %v", r.Origin, p, got, want)
		}
		if r.told[p] != (len(want) > 0) {
			w.fail("%v was told that %v is held: %v, and it is by %v", r.Origin, p, r.told[p], want)
		}
		if len(want) > 0 && p.Kind < 2 {
			names[p.Name] = true
		}
	}
	got := slices.Sorted(r.d.Names(0, 1))
	if want := slices.Sorted(maps.Keys(names)); !slices.Equal(got, want) {
		w.fail("at %v there are the names %v, want %v", r.Origin, got, strings.Join(want, " "))
	}
}

// Package directory knows who is where in the cluster: which nodes hold which
// places. It is data and rules only. It starts no goroutine, reads no clock,
// opens no socket and logs nothing: its owner brings frames, verdicts of the
// membership and the time, and is told what to do.
//
// # What it holds
//
// A [Place] is a kind and a name: a user, a room, everyone, and the same of a
// Socket.IO namespace; what kinds mean is the owner's business. A node is in a
// place while it has a connection there. An [Origin] is one run of a node: its
// id and the epoch at which it began, so a restarted node is another origin.
//
// Only an origin writes what it holds, as a history of ops numbered 1, 2, 3 …:
// join a place, leave a place, and bind, which says that a device of a class
// that may be logged in once has logged in now. A [Directory] is one node's
// view: its own history (own.go), and of every other origin the result of a
// beginning of that origin's history (merge.go). Two such results are merged by
// taking the longer one, so loss, duplication and reordering cost time and
// nothing else.
//
// A bind is news and no state: a receiver compares it with its own login of
// that user and class when it comes, and does not keep it. That is enough. Who
// binds after the news came has a greater stamp, because the news advanced its
// clock; who bound before is compared; and a snapshot repeats every bind that
// still stands. So a login costs receivers no memory beyond the place, and
// undoing one needs no op.
//
// # What it promises
//
//   - The seq of an origin never falls as long as the origin is known, and never
//     passes what the origin has written. Equal seqs mean equal places, and the
//     hash proves it.
//   - When nodes can reach each other and nothing changes any more, every node
//     knows of every live origin exactly what it holds, as soon as frames, beats
//     and needs have gone back and forth; and of two logins of one user and
//     class, the one with the greater (stamp, id) is left, the other was
//     reported lost exactly once.
//   - A bind that is made knowing another beats it, whatever the clocks say.
//   - An origin disappears from lookups at once when it is Down, at a cost that
//     does not depend on its size.
//   - Whatever bytes come in, nothing panics, a frame is merged whole or not at
//     all, and memory stays within a small multiple of the frames' sizes.
//
// It does not promise that a lookup is up to date, nor any order between
// origins: who moves between two nodes may be at both, or at none, for a moment.
//
// # Who calls what
//
// As owner of its places, under the lock of the place: [Directory.Join],
// [Directory.Leave], [Directory.Bind], [Directory.Unbind]. For each link to a
// peer, by the goroutine that writes it: [Directory.Resume] with what the
// peer's WELCOME says it has, then [Directory.AppendDelta] from a cursor while
// that is ok, else a [Directory.Snapshot] to its end, with no delta between its
// parts, and on from there; a NEED sets the cursor, or with 0 asks for a
// snapshot; [Directory.Position] is for beats, which may pass everything.
// For each link from a peer, by the goroutine that reads it: [Directory.Hello]
// once the link is authenticated, [Directory.Have] for the WELCOME, then
// [Directory.MergeDelta], [Directory.MergeSnap] and [Directory.MergeBeat], and
// it does what the [News] says. By membership: [Directory.Up],
// [Directory.Down], [Directory.AppendDigest], [Directory.MergeDigest], and
// [Directory.Sweep] about once a second. By anybody: [Directory.Locate],
// [Directory.Held], [Directory.Names].
//
// # Locks
//
// Every method of a Directory may be called by any goroutine at any time. There
// are three locks: own.mu over the own history, origin.merging over the merging
// of one origin's frames, and Directory.mu over what all origins hold. Under
// merging the other two are taken, one at a time; they are leaves. own.mu is
// held for one op, or to copy some tens of KiB; mu for 64 ops or a swap, and
// shared for a lookup, or a 256th of all names. A snapshot that comes in is
// built beside what it replaces, under neither, and costs its memory twice.
package directory

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	Kinds    = 16  // a Kind is below
	MaxName  = 512 // bytes of a name: a namespace's 128, a NUL, a user's 256, and some room
	MaxClass = 16  // bytes of a class
	MaxID    = 64  // bytes of a node's id

	// MaxOrigins is how many origins are known at once; further ones are
	// refused.
	MaxOrigins = 16_384

	// Keep is how long an origin that is down is kept, to be there at once
	// when the verdict was wrong.
	Keep = 60 * time.Second
)

// Kind keeps apart what is not to be mixed: users and rooms, say.
type Kind uint8

// Place is where connections are.
type Place struct {
	Kind Kind
	Name string // UTF-8, at most MaxName bytes
}

// Origin is one run of a node.
type Origin struct {
	ID    string // 1 to MaxID bytes of [A-Za-z0-9._-]
	Epoch uint64 // when it began; a later run has another, mostly a greater one
}

// What is wrong with a frame or a verdict.
var (
	// ErrMalformed: the frame is not what this version writes. The link is to
	// be closed.
	ErrMalformed = errors.New("directory: malformed frame")

	// ErrUnknown: neither membership nor a HELLO told of that origin, or it
	// was forgotten since. The link is to be closed; if it is dialled again, its
	// HELLO tells who is there.
	ErrUnknown = errors.New("directory: unknown origin")

	// ErrSelf: it is about this node's id, and only this node tells of itself.
	ErrSelf = errors.New("directory: own node id")

	// ErrFull: there are MaxOrigins already.
	ErrFull = errors.New("directory: too many origins")
)

// Directory is one node's view of the cluster.
type Directory struct {
	self    Origin
	seed    maphash.Seed // of every set, so one hash finds a place in all of them
	fixed   bool         // in tests: hash the same in every run
	changed func(from Origin, kind Kind, name []byte, early bool)
	clock   clock
	own     own

	mu      sync.RWMutex       // guards what follows, and in each origin what it says there
	origins map[Origin]*origin // all but forgotten ones
	live    []*origin          // those that are up
	met     map[Origin]bool    // forgotten by Sweep and current before: if they come again, what they hold is news
}

// origin is what is known of another node's run.
type origin struct {
	Origin

	merging sync.Mutex // held while a frame of it is merged; guards partial and the beat
	partial *partial   // a snapshot of which the end has not come yet; nil: none
	beat    struct {   // for telling "on its way" from "lost"
		behind bool   // at the last beat something was missing
		moved  uint64 // at that beat
	}
	moved uint64 // guarded by merging: counts what came
	aim   uint64 // guarded by merging: where its history stood at its first beat
	aimed bool   // guarded by merging: there was one

	// Guarded by Directory.mu. Who holds merging may read seq, hash and set
	// without it, for nobody else writes them.
	up        bool
	was       bool // up, once
	current   bool // what it held when it was met is here
	forgotten bool
	hidden    time.Time // since when it is not up
	seq, hash uint64    // of the last op merged
	set       *set      // the places
}

// New makes the view of a run that begins; it holds nothing yet.
//
// changed, if not nil, is told each place that another node may have begun or
// ceased to hold: after an op or a snapshot was merged, or an origin came or
// went with all its places. It is called by the goroutine that called the
// method, before that returns; calls overlap and come in no order, so it has to
// look up what is the case now. It may call Locate and Held and no other method.
// name is valid during the call only. early: it may be what a run that is older
// than this one has held since before they met, and so no news. nil: nobody is
// told, and to take an origin away costs nothing.
func New(self Origin, changed func(from Origin, kind Kind, name []byte, early bool)) *Directory {
	if !validID(self.ID) {
		panic(fmt.Sprintf("directory: node id %q", self.ID))
	}
	d := &Directory{self: self, seed: maphash.MakeSeed(), changed: changed, origins: make(map[Origin]*origin), met: make(map[Origin]bool)}
	d.own = own{set: new(set), ringOps: RingOps, ringBytes: ringBytes, segmentOps: segmentOps, partBytes: PartBytes}
	return d
}

// Self is the origin that New was told.
func (d *Directory) Self() Origin { return d.self }

// Up takes the membership's word that a run of a node is alive (rules R1, R6):
// what it holds is visible from now on. Other runs of the same id stay as they
// are, for this word may be an old one that came again; what ends them is a
// Hello of a later run, somebody else's answer in their place (Forget), or Down.
// It is the sign to dial that run.
func (d *Directory) Up(o Origin) error {
	if err := d.valid(o); err != nil {
		return err
	}
	d.mu.Lock()
	s, err := d.knowLocked(o)
	if err != nil || s.up {
		d.mu.Unlock()
		return err
	}
	early := !s.was && d.elder(s)
	s.up, s.was = true, true
	d.live = append(d.live, s)
	set := s.set
	d.mu.Unlock()
	d.tellAll(s, set, early)
	return nil
}

// Down takes the membership's word that a run is dead or has left (R6): it is
// hidden at once, and kept for a while, see Sweep.
func (d *Directory) Down(o Origin, now time.Time) {
	d.mu.Lock()
	s := d.origins[o]
	if s == nil || !s.up {
		d.mu.Unlock()
		return
	}
	d.hideLocked(s)
	s.hidden = now
	set := s.set
	d.mu.Unlock()
	d.tellAll(s, set, false)
}

// Hello notes that a run has identified itself over an authenticated link, as
// the dialler or as the one who answered. Earlier runs of its id, those of a
// smaller epoch, are forgotten (R6), and it is known from now on (R1). member
// says whether membership knows it as alive; if not it is not visible before it
// is Up, so that a run that is buried does not come back by a HELLO that was
// read late.
//
// later: a run of the same id and a greater epoch is up, and nothing was
// changed. This HELLO was read late, or the node's clock went back when it
// restarted, or two nodes have one id. The link is to be refused, and the later
// run dialled: if another answers there, Forget it, and the next HELLO counts.
func (d *Directory) Hello(o Origin, member bool, now time.Time) (later bool, err error) {
	if err := d.valid(o); err != nil {
		return false, err
	}
	var gone []*origin
	d.mu.Lock()
	for _, s := range d.live {
		if s.ID == o.ID && s.Epoch > o.Epoch {
			d.mu.Unlock()
			return true, nil
		}
	}
	s, err := d.knowLocked(o)
	if err == nil {
		if !s.up && s.hidden.IsZero() {
			s.hidden = now
		}
		for other := range d.met {
			if other.ID == o.ID && other.Epoch < o.Epoch {
				delete(d.met, other)
			}
		}
		for other, q := range d.origins {
			if other.ID == o.ID && other.Epoch < o.Epoch && d.forgetLocked(q) {
				gone = append(gone, q)
			}
		}
	}
	d.mu.Unlock()
	if err == nil && member {
		err = d.Up(o)
	}
	for _, q := range gone {
		d.tellAll(q, q.set, false)
	}
	return false, err
}

// Forget frees all about a run: somebody else answered in its place, which
// proves that it is gone, or it is not worth keeping.
func (d *Directory) Forget(o Origin) {
	d.mu.Lock()
	delete(d.met, o)
	s := d.origins[o]
	was := s != nil && d.forgetLocked(s)
	d.mu.Unlock()
	if was {
		d.tellAll(s, s.set, false)
	}
}

// Sweep forgets the origins that have not been up for Keep.
func (d *Directory) Sweep(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for o, s := range d.origins {
		if s.up || now.Sub(s.hidden) < Keep {
			continue
		}
		d.forgetLocked(s)
		if s.current && len(d.met) < MaxOrigins { // it may only have been cut off
			d.met[o] = true
		}
	}
}

// valid tells whether frames and verdicts about o are accepted at all (R2).
func (d *Directory) valid(o Origin) error {
	switch {
	case o.ID == d.self.ID:
		return ErrSelf
	case !validID(o.ID):
		return ErrMalformed
	}
	return nil
}

// knowLocked is the origin o, made if need be.
func (d *Directory) knowLocked(o Origin) (*origin, error) {
	if s := d.origins[o]; s != nil {
		return s, nil
	}
	if len(d.origins) >= MaxOrigins {
		return nil, ErrFull
	}
	met := d.met[o]
	s := &origin{Origin: o, set: new(set), was: met, current: met}
	d.origins[o] = s
	return s, nil
}

func (d *Directory) hideLocked(s *origin) {
	s.up = false
	d.live = slices.DeleteFunc(d.live, func(q *origin) bool { return q == s })
}

// forgetLocked takes s away for good and tells whether it was visible. Its set
// is not changed any more.
func (d *Directory) forgetLocked(s *origin) (was bool) {
	if was = s.up; was {
		d.hideLocked(s)
	}
	s.forgotten = true
	delete(d.origins, s.Origin)
	return was
}

// elder tells whether s began before this run did.
func (d *Directory) elder(s *origin) bool { return s.Epoch < d.self.Epoch }

// tellAll tells changed every place of s's set, which others may change
// meanwhile. Who changes it tells what he changed, so nothing is missed.
func (d *Directory) tellAll(s *origin, of *set, early bool) {
	if d.changed == nil {
		return
	}
	var batch []byte
	for i := range of.shards {
		d.mu.RLock()
		batch = of.shards[i].appendAll(batch[:0])
		d.mu.RUnlock()
		for rest := batch; len(rest) > 0; {
			op, n := splitOp(rest)
			rest = rest[n:]
			d.changed(s.Origin, op.kind, op.name, early)
		}
	}
}

// Status is what is known of an origin.
type Status struct {
	Origin  Origin
	Up      bool
	Current bool // what it held when it was met is here
	Seq     uint64
	Places  int
}

// Origins appends what is known of each origin, this node's excepted.
func (d *Directory) Origins(dst []Status) []Status {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for o, s := range d.origins {
		dst = append(dst, Status{Origin: o, Up: s.up, Current: s.current, Seq: s.seq, Places: s.set.n})
	}
	return dst
}

// Have is how much of an origin's history is here, for the WELCOME that
// answers its HELLO; zeros: nothing.
func (d *Directory) Have(o Origin) (seq, hash uint64) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s := d.origins[o]; s != nil {
		return s.seq, s.hash
	}
	return 0, 0
}

// hash is that of a name in every set. It is seeded, for clients may choose
// names.
func (d *Directory) hash(name string) uint64 {
	if d.fixed {
		return sum(0, []byte(name))
	}
	return maphash.String(d.seed, name)
}

func (d *Directory) hashBytes(name []byte) uint64 {
	if d.fixed {
		return sum(0, name)
	}
	return maphash.Bytes(d.seed, name)
}

func validID(id string) bool {
	if len(id) < 1 || len(id) > MaxID {
		return false
	}
	for i := range len(id) {
		b := id[i]
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '.' || b == '_' || b == '-') {
			return false
		}
	}
	return true
}

// check panics for a place that no peer would take: the engine checks names at
// every door.
func (p Place) check() {
	if p.Kind >= Kinds || len(p.Name) > MaxName || !utf8.ValidString(p.Name) {
		panic(fmt.Sprintf("directory: place of kind %d with a name of %d bytes: %.64q", p.Kind, len(p.Name), p.Name))
	}
}

package push

import (
	"context"
	"hash/maphash"
	"iter"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/embedpush/push/internal/pset"
)

// A place is where connections are: a user, a room, or everyone. All three
// are the same thing, so a push to a user, to a room and to all are the same
// few lines.

// kind keeps the names of users and rooms apart, so that nobody can name
// himself into another's place.
type kind uint16

const (
	kindUser kind = iota
	kindRoom
	kindAll // everyone: its one place has the name "", and is not in the table

	// The same in Socket.IO's namespaces other than "/": before the name stands
	// the namespace's, and a NUL, which is in no name.
	kindSpaceUser
	kindSpaceRoom
	kindSpaceAll

	// Where a user's connections in those namespaces are once more, whichever
	// it is: who is there is online.
	kindElsewhere
	kinds
)

type placeKey struct {
	kind kind
	name string
}

// keyOf is the key of a place in a namespace; "" is "/".
func keyOf(space string, k kind, name string) placeKey {
	if space == "" {
		return placeKey{k, name}
	}
	return placeKey{kindSpaceUser + k, space + "\x00" + name}
}

// in is the kind without regard to the namespace.
func (k kind) in() kind {
	if k >= kindSpaceUser && k < kindElsewhere {
		return k - kindSpaceUser
	}
	return k
}

// local is the place's name without its namespace.
func (k placeKey) local() string {
	if k.kind >= kindSpaceUser && k.kind < kindElsewhere {
		_, name, _ := strings.Cut(k.name, "\x00")
		return name
	}
	return k.name
}

// twin is the other place that makes a user online, the zero key for a place
// that has none.
func (k placeKey) twin() (placeKey, bool) {
	switch k.kind {
	case kindUser:
		return placeKey{kindElsewhere, k.name}, true
	case kindElsewhere:
		return placeKey{kindUser, k.name}, true
	}
	return placeKey{}, false
}

const (
	stripeCount = 256 // locks over the table, and the most shards: Conn.shard is a byte
	fewMembers  = 64  // up to that a place is one slice, and a push to it is written by its caller
	chunk       = 256 // members copied under the lock at a time
)

// places is the table of who is where. Lock order: Conn.mu, then one stripe,
// then presence.mu, or what the cluster writes its own history under.
type places struct {
	seed     maphash.Seed
	shards   int
	presence *presence // nil: nobody wants to know
	cluster  *cluster  // nil: this node is the only one
	rebuilds atomic.Uint32
	everyone atomic.Int64 // connections in the place of that name
	stripes  [stripeCount]stripe
}

type stripe struct {
	mu      sync.Mutex
	places  [kinds]pset.Set[*place] // guarded by mu: those of each kind; an empty place is in none
	conns   pset.Set[*Conn]         // guarded by mu
	users   int                     // guarded by mu: who is online
	members int                     // guarded by mu: of all places, but for those elsewhere and everyone
}

// place is guarded by its stripe. Its kind is in its members and its set.
type place struct {
	name string
	one  *member // its only member, while lists is nil
	*lists
}

// lists are the members of a place that has, or has had, more than one.
type lists struct {
	n     int32
	epoch uint32      // of its last rebuild, which moved every index: no other one of any place has it; 0: there was none
	few   []*member   // up to fewMembers
	many  [][]*member // above: a list for each shard; then few is nil
}

// member is one connection's being in one place.
type member struct {
	conn  *Conn
	place *place
	next  *member // guarded by conn.mu: the connection's list
	index int32   // guarded by the stripe: where it stands in its list
	kind  kind    // of the place
}

func (m *member) key() placeKey { return placeKey{m.kind, m.place.name} }

func newPlaces(shards int, p *presence, c *cluster) *places {
	return &places{seed: maphash.MakeSeed(), shards: shards, presence: p, cluster: c}
}

// A hash chooses a place's stripe by its low bits, its slot there by the high
// ones. It is of the name alone: both places of a user are in the same stripe.
func (p *places) hash(name string) uint64 { return maphash.String(p.seed, name) }

func (p *places) hashOf(pl *place) uint64 { return p.hash(pl.name) }

func (p *places) stripe(hash uint64) *stripe { return &p.stripes[hash%stripeCount] }

// at is a place, or nil. The stripe is locked.
func (s *stripe) at(key placeKey, hash uint64) *place {
	return s.places[key.kind].Get(hash, func(pl *place) bool { return pl.name == key.name })
}

// locked is a place's stripe, locked, and the place, which may be nil.
func (p *places) locked(key placeKey) (*stripe, *place) {
	hash := p.hash(key.name)
	s := p.stripe(hash)
	s.mu.Lock()
	return s, s.at(key, hash)
}

// change notes that a place appeared or went. s is locked, and key not in it.
func (p *places) change(s *stripe, key placeKey, there bool) {
	n := 1
	if !there {
		n = -1
	}
	if p.cluster != nil {
		p.cluster.holds(key, there)
	}
	twin, isUser := key.twin()
	if !isUser || s.at(twin, p.hash(twin.name)) != nil {
		return
	}
	s.users += n
	if p.presence != nil {
		p.presence.change(key.name, p.presence.e.node())
	}
}

// add puts c into a place and returns its membership. admit, if not nil, is
// asked first, under the stripe's lock, and sees who is there. c.mu is held.
func (p *places) add(c *Conn, key placeKey, admit func(*place) error) (*member, error) {
	s, pl := p.locked(key)
	defer s.mu.Unlock()
	if admit != nil {
		if err := admit(pl); err != nil {
			return nil, err
		}
	}
	if pl == nil {
		if key.kind == kindRoom { // its name may be a part of something larger
			key.name = strings.Clone(key.name)
		}
		pl = &place{name: key.name}
		p.change(s, key, true)
		s.places[key.kind].Add(pl, p.hashOf)
	}
	m := &member{conn: c, place: pl, kind: key.kind}
	p.insert(pl, m)
	if key.kind != kindElsewhere {
		s.members++
	}
	return m, nil
}

// ask asks admit about a place, under its stripe's lock.
func (p *places) ask(key placeKey, admit func(*place) error) error {
	s, pl := p.locked(key)
	defer s.mu.Unlock()
	return admit(pl)
}

// remove takes a membership out of its place; an empty place goes with it.
// conn.mu is held.
func (p *places) remove(m *member) {
	key := m.key()
	s := p.stripe(p.hash(key.name))
	s.mu.Lock()
	defer s.mu.Unlock()
	p.take(m)
	if key.kind != kindElsewhere {
		s.members--
	}
	if m.place.size() == 0 {
		s.places[key.kind].Remove(m.place, p.hashOf)
		p.change(s, key, false)
	}
}

// size is the number of members. A place that is not there has none.
func (pl *place) size() int {
	switch {
	case pl == nil:
		return 0
	case pl.lists != nil:
		return int(pl.n)
	case pl.one != nil:
		return 1
	}
	return 0
}

// insert appends m to the list where it belongs.
func (p *places) insert(pl *place, m *member) {
	if pl.lists == nil {
		if pl.one == nil {
			pl.one = m
			return
		}
		pl.lists = &lists{n: 1, few: []*member{pl.one}}
		pl.one = nil
	}
	l := pl.lists
	l.n++
	if l.many == nil && l.n <= fewMembers {
		m.index = int32(len(l.few))
		l.few = append(l.few, m)
		return
	}
	if l.many == nil {
		l.many = make([][]*member, p.shards)
		for _, old := range l.few {
			l.put(old)
		}
		l.few = nil
		l.epoch = p.rebuilds.Add(1)
	}
	l.put(m)
}

func (l *lists) put(m *member) {
	list := &l.many[m.conn.shard]
	m.index = int32(len(*list))
	*list = append(*list, m)
}

// take removes m by moving the last of its list to where it stood.
func (p *places) take(m *member) {
	pl := m.place
	l := pl.lists
	if l == nil {
		pl.one = nil
		return
	}
	l.n--
	list := &l.few
	if l.many != nil {
		list = &l.many[m.conn.shard]
	}
	last := len(*list) - 1
	moved := (*list)[last]
	(*list)[m.index] = moved
	moved.index = m.index
	(*list)[last] = nil
	*list = (*list)[:last]
	switch {
	case l.many != nil && l.n <= fewMembers/2:
		few := make([]*member, 0, l.n)
		for _, list := range l.many {
			for _, m := range list {
				m.index = int32(len(few))
				few = append(few, m)
			}
		}
		l.few, l.many = few, nil
		l.epoch = p.rebuilds.Add(1)
	case l.many == nil && l.n == 1: // and its index is 0, so a walk finds it, and by its mark whether it was there
		pl.one, pl.lists = l.few[0], nil
	case cap(*list) > fewMembers && last < cap(*list)/4:
		*list = append(make([]*member, 0, 2*last), *list...)
	}
}

// each yields every membership, in no order.
func (pl *place) each(yield func(*member) bool) {
	if pl.lists == nil {
		if pl.one != nil {
			yield(pl.one)
		}
		return
	}
	for _, m := range pl.few {
		if !yield(m) {
			return
		}
	}
	for _, list := range pl.many {
		for _, m := range list {
			if !yield(m) {
				return
			}
		}
	}
}

// size is the number of connections in a place.
func (p *places) size(key placeKey) int {
	if key == everyone {
		return int(p.everyone.Load())
	}
	s, pl := p.locked(key)
	defer s.mu.Unlock()
	return pl.size()
}

// collect appends the connections of a place to dst.
func (p *places) collect(dst []*Conn, key placeKey) []*Conn {
	if key == everyone {
		for i := range p.stripes {
			dst = p.stripes[i].addEveryone(dst)
		}
		return dst
	}
	s, pl := p.locked(key)
	defer s.mu.Unlock()
	return pl.collect(dst)
}

// collectFew is collect for a place of at most fewMembers; for a larger one
// it appends nothing. It returns the size.
func (p *places) collectFew(dst []*Conn, key placeKey) ([]*Conn, int) {
	if key == everyone {
		n := p.size(key)
		if n <= fewMembers {
			n = -len(dst)
			dst = p.collect(dst, key)
			n += len(dst)
		}
		return dst, n
	}
	s, pl := p.locked(key)
	defer s.mu.Unlock()
	n := pl.size()
	if n <= fewMembers {
		dst = pl.collect(dst)
	}
	return dst, n
}

func (pl *place) collect(dst []*Conn) []*Conn {
	if pl != nil {
		for m := range pl.each {
			dst = append(dst, m.conn)
		}
	}
	return dst
}

// all yields the places of a kind with their sizes.
func (p *places) all(k kind) iter.Seq2[string, int] {
	type entry struct {
		name string
		n    int
	}
	return func(yield func(string, int) bool) {
		var entries []entry
		for i := range p.stripes {
			s := &p.stripes[i]
			entries = entries[:0]
			s.mu.Lock()
			for pl := range s.places[k].All {
				entries = append(entries, entry{pl.name, pl.size()})
			}
			s.mu.Unlock()
			for _, e := range entries {
				if !yield(e.name, e.n) {
					return
				}
			}
		}
	}
}

// everyone is the place of all, in "/". Almost every connection is there, so it
// has no members: it is the table of connections, and a mark in each.
var everyone = placeKey{kindAll, ""}

// enter puts c into everyone, where it is not. c.mu is held.
func (p *places) enter(c *Conn) { p.mark(c, true); p.everyone.Add(1) }

// exit takes it out. c.mu is held.
func (p *places) exit(c *Conn) { p.mark(c, false); p.everyone.Add(-1) }

func (p *places) mark(c *Conn, there bool) {
	s := p.stripeOf(c.id)
	s.mu.Lock()
	c.everywhere = there
	s.mu.Unlock()
}

// addEveryone appends who of a stripe is in everyone: a whole stripe, which of a
// million connections is 4 000, some 50 µs under the lock.
func (s *stripe) addEveryone(dst []*Conn) []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns.All {
		if c.everywhere {
			dst = append(dst, c)
		}
	}
	return dst
}

// shardOf is whose worker writes to a connection: a stripe's are all of one
// shard.
func (p *places) shardOf(id ConnID) uint8 { return uint8(id % stripeCount % ConnID(p.shards)) }

func (p *places) stripeOf(id ConnID) *stripe { return &p.stripes[id%stripeCount] }

func hashOfConn(c *Conn) uint64 { return c.id.hash() }

// hash spreads ids, which are numbered one after another.
func (id ConnID) hash() uint64 { return uint64(id) * 0x9E3779B97F4A7C15 }

func (p *places) addConn(c *Conn) {
	s := p.stripeOf(c.id)
	s.mu.Lock()
	s.conns.Add(c, hashOfConn)
	s.mu.Unlock()
}

func (p *places) removeConn(c *Conn) {
	s := p.stripeOf(c.id)
	s.mu.Lock()
	s.conns.Remove(c, hashOfConn)
	s.mu.Unlock()
}

// conn is the connection with this id, or nil.
func (p *places) conn(id ConnID) *Conn {
	s := p.stripeOf(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns.Get(id.hash(), func(c *Conn) bool { return c.id == id })
}

// conns yields every connection.
func (p *places) conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		var batch []*Conn
		for i := range p.stripes {
			s := &p.stripes[i]
			batch = batch[:0]
			s.mu.Lock()
			for c := range s.conns.All {
				batch = append(batch, c)
			}
			s.mu.Unlock()
			for _, c := range batch {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// totals counts what is in the table.
func (p *places) totals() (conns, users, rooms, members int) {
	for i := range p.stripes {
		s := &p.stripes[i]
		s.mu.Lock()
		conns += s.conns.Len()
		users += s.users
		rooms += s.places[kindRoom].Len() + s.places[kindSpaceRoom].Len()
		members += s.members
		s.mu.Unlock()
	}
	members += int(p.everyone.Load())
	return
}

// A walk visits the members of a place that belong to one shard, a chunk at a
// time, while others come and go. It runs from the end of the list to its
// beginning: removing a member moves the last one, already visited, into the
// gap, where its mark tells that it was visited; who is new stands behind.
// So everybody who was there all the time is visited exactly once, and who
// leaves and comes back not twice. Of everyone a chunk is a whole stripe, each
// of which is visited once.
type walk struct {
	key   placeKey
	shard int
	mark  uint32 // differs from the mark of the shard's walk before

	next  int    // everything from here on has been visited; of everyone, the stripes before
	epoch uint32 // of the place when next was set
	begun bool
}

// chunk copies the next members to dst; it returns none at the end.
func (p *places) chunk(w *walk, dst []*Conn) []*Conn {
	dst = dst[:0]
	if w.key == everyone {
		for ; w.next < stripeCount && len(dst) == 0; w.next++ {
			if w.next%p.shards == w.shard {
				dst = p.stripes[w.next].addEveryone(dst)
			}
		}
		return dst
	}
	s, pl := p.locked(w.key)
	defer s.mu.Unlock()
	if pl == nil {
		return dst
	}
	var list []*member
	epoch := uint32(0)
	switch {
	case pl.lists == nil:
		one := [1]*member{pl.one}
		list = one[:]
	case pl.many != nil:
		list, epoch = pl.many[w.shard], pl.epoch
	default:
		list, epoch = pl.few, pl.epoch
	}
	if !w.begun || w.epoch != epoch {
		// A rebuild moved everybody: begin anew, the marks know.
		w.next, w.epoch, w.begun = len(list), epoch, true
	}
	w.next = min(w.next, len(list))
	for w.next > 0 && len(dst) < chunk {
		w.next--
		if c := list[w.next].conn; int(c.shard) == w.shard && c.mark != w.mark {
			c.mark = w.mark
			dst = append(dst, c)
		}
	}
	return dst
}

// shard writes what is pushed to many: a queue of items and a goroutine that
// lives while there are some. A connection belongs to one shard for life, so
// one goroutine writes to it what goes through the queue, in order.
type shard struct {
	e     *Engine
	index int

	// pending counts items that were posted and are not yet written to the
	// last connection. While it is not zero, nobody else may write a push to
	// a connection of this shard.
	pending atomic.Int64

	mu    sync.Mutex
	items []*item       // guarded by mu: the queue
	bytes int           // guarded by mu: what they cost
	alive bool          // guarded by mu: work's goroutine is there
	space chan struct{} // guarded by mu: closed when bytes falls; nil while nobody waits

	// Owned by work.
	mark  uint32
	conns []*Conn // a chunk
}

// item is what a shard has to write: one push to a whole place, or to some
// connections.
type item struct {
	push *encoded

	place placeKey // when conns is nil

	conns   []*Conn // of this shard
	indexes []int   // of conns in flight
	flight  *flight // is told what became of it; nil: nobody is
	from    *Conn   // its OnConnect pushes this; nil: none does

	behind func() // only this, when everything before it is written
}

func (it *item) cost() int {
	if it.behind != nil {
		return 0
	}
	return it.push.size() + 128 + 16*len(it.conns)
}

func newShard(e *Engine, index int) *shard { return &shard{e: e, index: index} }

// post puts an item into the queue. While the queue is full it waits, until
// ctx ends; an item larger than the queue goes into an empty one.
func (s *shard) post(ctx context.Context, it *item) error {
	cost, limit := it.cost(), s.e.cfg.Limits.FanoutBytes
	waited := false
	s.mu.Lock()
	for cost > 0 && limit > 0 && s.bytes > 0 && s.bytes+cost > limit {
		if s.space == nil {
			s.space = make(chan struct{})
		}
		space := s.space
		s.mu.Unlock()
		if !waited {
			waited = true
			s.e.stats.limit(limitedFanout)
		}
		select {
		case <-space:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
	}
	s.pending.Add(1)
	s.items = append(s.items, it)
	s.bytes += cost
	begin := !s.alive
	s.alive = true
	s.mu.Unlock()
	if begin {
		go s.work()
	}
	return nil
}

// flush waits until everything that was posted before is written.
func (s *shard) flush(ctx context.Context) error {
	if s.pending.Load() == 0 {
		return nil
	}
	done := make(chan struct{})
	if err := s.post(ctx, &item{behind: func() { close(done) }}); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// maxJoined is how many bytes of adjacent pushes go out in one write.
const maxJoined = 16 << 10

// take removes the next item, with every one behind it that can be joined to
// it, and the bytes they cost.
func (s *shard) take(dst []*item) []*item {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.items) == 0 {
		s.items = nil
		s.alive = false
		return dst[:0]
	}
	first := s.items[0]
	dst = append(dst[:0], first)
	if first.conns == nil && first.behind == nil && first.from == nil {
		size := first.push.size()
		for _, it := range s.items[1:] {
			if it.conns != nil || it.behind != nil || it.from != nil || it.place != first.place || size+it.push.size() > maxJoined {
				break
			}
			size += it.push.size()
			dst = append(dst, it)
		}
	}
	for i, it := range dst {
		s.items[i] = nil
		s.bytes -= it.cost()
	}
	s.items = s.items[len(dst):]
	if s.space != nil {
		close(s.space)
		s.space = nil
	}
	return dst
}

// A burst of pushes is posted within microseconds, and a walk over many
// members takes milliseconds: a worker that begins with one first gives way a
// few times, for what comes behind it to go out in the same writes.
const (
	manyMembers = 1024 // of a place, from which that pays
	giveWay     = 200  // times, some 20 to 40 µs
)

// gather gives way to who is posting, if the first item is for many.
func (s *shard) gather() {
	s.mu.Lock()
	first := s.items[0]
	s.mu.Unlock()
	if first.conns != nil || first.behind != nil || s.e.places.size(first.place) < manyMembers {
		return
	}
	for range giveWay {
		runtime.Gosched()
	}
}

// work writes until the queue is empty.
func (s *shard) work() {
	s.gather()
	var items []*item
	for {
		if items = s.take(items); len(items) == 0 {
			return
		}
		if it := items[0]; it.behind != nil {
			it.behind()
		} else if it.conns != nil {
			s.writeConns(it)
		} else {
			s.writePlace(items)
		}
		s.pending.Add(-int64(len(items)))
		clear(items)
	}
}

// writePlace writes joined pushes to everybody of this shard in a place.
func (s *shard) writePlace(items []*item) {
	push := items[0].push
	if len(items) > 1 {
		push = join(items)
	}
	if s.mark++; s.mark == 0 { // which is who was never walked
		s.mark = 1
	}
	w := walk{key: items[0].place, shard: s.index, mark: s.mark}
	for {
		s.conns = s.e.places.chunk(&w, s.conns)
		if len(s.conns) == 0 {
			break
		}
		var became [statuses]int
		for _, c := range s.conns {
			if len(items) > 1 {
				if _, status := push.frame(c.dialect); status != 0 { // one of them is not for its dialect
					for _, it := range items {
						s.e.stats.delivered(c.push(it.push, false), 1)
					}
					continue
				}
			}
			became[c.push(push, c == items[0].from)]++
		}
		for status, n := range became {
			s.e.stats.delivered(Status(status), n*len(items))
		}
	}
	clear(s.conns[:cap(s.conns)])
}

// writeConns writes one push to some connections.
func (s *shard) writeConns(it *item) {
	for i, c := range it.conns {
		if it.flight == nil {
			s.e.stats.delivered(c.push(it.push, c == it.from), 1)
		} else {
			it.flight.send(it.indexes[i], c, it.push, it.from)
		}
	}
}

// presence tells OnPresence the latest state of each user, on a goroutine
// that lives while there is something to tell.
type presence struct {
	e *Engine

	mu    sync.Mutex
	state map[string]bool    // guarded by mu: the users that were online when that was last looked at
	todo  map[string]sighted // guarded by mu: users that have to be looked at
	order []string           // guarded by mu: todo's users
	alive bool               // guarded by mu: run's goroutine is there
	over  bool               // guarded by mu: the engine has ended, and nothing is told any more
}

// close tells nothing any more.
func (p *presence) close() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
}

// sighted is where a user came or went.
type sighted struct {
	node  string
	quiet bool // it was so before this node was there to tell
}

func newPresence(e *Engine) *presence {
	return &presence{e: e, state: make(map[string]bool), todo: make(map[string]sighted)}
}

// change notes that a user came to a node or left it. It may be called with
// the user's stripe locked.
func (p *presence) change(user, node string) { p.note(user, sighted{node: node}) }

// know notes that a user was on another node before this one was there.
func (p *presence) know(user string) { p.note(user, sighted{quiet: true}) }

func (p *presence) note(user string, s sighted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	if _, waiting := p.todo[user]; !waiting {
		p.order = append(p.order, user)
	} else if s.quiet {
		return
	}
	p.todo[user] = s
	if !p.alive {
		p.alive = true
		p.e.hooks.Add()
		go p.run()
	}
}

func (p *presence) run() {
	finished := false
	defer func() {
		if finished {
			p.e.hooks.Done()
		} else {
			go p.run() // the hook ended this goroutine
		}
	}()
	for {
		p.mu.Lock()
		if len(p.order) == 0 {
			p.alive, p.order = false, nil
			p.mu.Unlock()
			finished = true
			return
		}
		user := p.order[0]
		p.order = p.order[1:]
		s := p.todo[user]
		delete(p.todo, user)
		p.mu.Unlock()
		// Whoever comes or goes from here on is noted anew.
		online := p.e.Online(user)
		p.mu.Lock()
		same := p.state[user] == online
		if online {
			p.state[user] = true
		} else {
			delete(p.state, user)
		}
		p.mu.Unlock()
		if !same && !s.quiet {
			p.e.hook("OnPresence", 0, func() {
				p.e.cfg.OnPresence(Presence{User: user, Online: online, Node: s.node})
			})
		}
	}
}

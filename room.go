package push

import (
	"context"
	"hash/maphash"
	"iter"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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
	kindAll // its one place has the name ""

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
	stripeCount = 64  // locks over the table
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
	stripes  [stripeCount]stripe
}

type stripe struct {
	mu      sync.Mutex
	places  table[placeKey, *place] // guarded by mu; an empty place is not in it
	conns   table[ConnID, *Conn]    // guarded by mu
	counts  [kinds]int              // guarded by mu: places of each kind
	users   int                     // guarded by mu: who is online
	members int                     // guarded by mu: of all places, but for those elsewhere
}

// table is a map that gives memory back: it is built anew when it has shrunk
// to a quarter of what it was, which a Go map does not do by itself.
type table[K comparable, V any] struct {
	m    map[K]V
	peak int
}

func (t *table[K, V]) set(k K, v V) {
	if t.m == nil {
		t.m = make(map[K]V)
	}
	t.m[k] = v
	t.peak = max(t.peak, len(t.m))
}

func (t *table[K, V]) remove(k K) {
	delete(t.m, k)
	if len(t.m) == 0 {
		t.m, t.peak = nil, 0
	} else if t.peak > 64 && len(t.m) < t.peak/4 {
		smaller := make(map[K]V, len(t.m))
		for k, v := range t.m {
			smaller[k] = v
		}
		t.m, t.peak = smaller, len(t.m)
	}
}

// place is guarded by its stripe.
type place struct {
	key   placeKey
	n     int32
	epoch uint32       // counts rebuilds, which move every index
	few   []*member    // up to fewMembers
	many  *[][]*member // above: a list for each shard; then few is nil
}

// member is one connection's being in one place.
type member struct {
	conn  *Conn
	place *place
	next  *member // guarded by conn.mu: the connection's list
	index int32   // guarded by the stripe: where it stands in its list
}

func newPlaces(shards int, p *presence, c *cluster) *places {
	return &places{seed: maphash.MakeSeed(), shards: shards, presence: p, cluster: c}
}

// stripe is where a place is. Both of a user are in the same one.
func (p *places) stripe(key placeKey) *stripe {
	k := key.kind
	if k == kindElsewhere {
		k = kindUser
	}
	return &p.stripes[(maphash.String(p.seed, key.name)+uint64(k))%stripeCount]
}

// change notes that a place appeared or went. s is locked, and key not in it.
func (p *places) change(s *stripe, key placeKey, there bool) {
	n := 1
	if !there {
		n = -1
	}
	s.counts[key.kind] += n
	if p.cluster != nil {
		p.cluster.holds(key, there)
	}
	twin, isUser := key.twin()
	if !isUser || s.places.m[twin] != nil {
		return
	}
	s.users += n
	if p.presence != nil {
		p.presence.change(key.name, p.presence.e.node())
	}
}

func (p *places) stripeOf(id ConnID) *stripe { return &p.stripes[id%stripeCount] }

// add puts c into a place and returns its membership. admit, if not nil, is
// asked first, under the stripe's lock, and sees who is there. c.mu is held.
func (p *places) add(c *Conn, key placeKey, admit func(*place) error) (*member, error) {
	s := p.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	pl := s.places.m[key]
	if admit != nil {
		if err := admit(pl); err != nil {
			return nil, err
		}
	}
	if pl == nil {
		pl = &place{key: key}
		p.change(s, key, true)
		s.places.set(key, pl)
	}
	m := &member{conn: c, place: pl}
	pl.insert(m, p.shards)
	if key.kind != kindElsewhere {
		s.members++
	}
	return m, nil
}

// ask asks admit about a place, under its stripe's lock.
func (p *places) ask(key placeKey, admit func(*place) error) error {
	s := p.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	return admit(s.places.m[key])
}

// remove takes a membership out of its place; an empty place goes with it.
// conn.mu is held.
func (p *places) remove(m *member) {
	key := m.place.key
	s := p.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	m.place.take(m)
	if key.kind != kindElsewhere {
		s.members--
	}
	if m.place.n == 0 {
		s.places.remove(key)
		p.change(s, key, false)
	}
}

// insert appends m to the list where it belongs.
func (pl *place) insert(m *member, shards int) {
	pl.n++
	if pl.many == nil && pl.n <= fewMembers {
		m.index = int32(len(pl.few))
		pl.few = append(pl.few, m)
		return
	}
	if pl.many == nil {
		many := make([][]*member, shards)
		pl.many = &many
		for _, old := range pl.few {
			pl.put(old)
		}
		pl.few = nil
		pl.epoch++
	}
	pl.put(m)
}

func (pl *place) put(m *member) {
	list := &(*pl.many)[m.conn.shard]
	m.index = int32(len(*list))
	*list = append(*list, m)
}

// take removes m by moving the last of its list to where it stood.
func (pl *place) take(m *member) {
	pl.n--
	list := &pl.few
	if pl.many != nil {
		list = &(*pl.many)[m.conn.shard]
	}
	last := len(*list) - 1
	moved := (*list)[last]
	(*list)[m.index] = moved
	moved.index = m.index
	(*list)[last] = nil
	*list = (*list)[:last]
	if pl.many != nil && pl.n <= fewMembers/2 {
		few := make([]*member, 0, pl.n)
		for _, list := range *pl.many {
			for _, m := range list {
				m.index = int32(len(few))
				few = append(few, m)
			}
		}
		pl.few, pl.many = few, nil
		pl.epoch++
	} else if cap(*list) > fewMembers && last < cap(*list)/4 {
		*list = append(make([]*member, 0, 2*last), *list...)
	}
}

// each yields every membership, in no order.
func (pl *place) each(yield func(*member) bool) {
	for _, m := range pl.few {
		if !yield(m) {
			return
		}
	}
	if pl.many == nil {
		return
	}
	for _, list := range *pl.many {
		for _, m := range list {
			if !yield(m) {
				return
			}
		}
	}
}

// size is the number of connections in a place.
func (p *places) size(key placeKey) int {
	s := p.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if pl := s.places.m[key]; pl != nil {
		return int(pl.n)
	}
	return 0
}

// collect appends the connections of a place to dst.
func (p *places) collect(dst []*Conn, key placeKey) []*Conn {
	s := p.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if pl := s.places.m[key]; pl != nil {
		for m := range pl.each {
			dst = append(dst, m.conn)
		}
	}
	return dst
}

// collectFew is collect for a place of at most fewMembers; for a larger one
// it appends nothing. It returns the size.
func (p *places) collectFew(dst []*Conn, key placeKey) ([]*Conn, int) {
	s := p.stripe(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	pl := s.places.m[key]
	if pl == nil {
		return dst, 0
	}
	if pl.n <= fewMembers {
		for m := range pl.each {
			dst = append(dst, m.conn)
		}
	}
	return dst, int(pl.n)
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
			for key, pl := range s.places.m {
				if key.kind == k {
					entries = append(entries, entry{key.name, int(pl.n)})
				}
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

func (p *places) addConn(c *Conn) {
	s := p.stripeOf(c.id)
	s.mu.Lock()
	s.conns.set(c.id, c)
	s.mu.Unlock()
}

func (p *places) removeConn(c *Conn) {
	s := p.stripeOf(c.id)
	s.mu.Lock()
	s.conns.remove(c.id)
	s.mu.Unlock()
}

// conn is the connection with this id, or nil.
func (p *places) conn(id ConnID) *Conn {
	s := p.stripeOf(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns.m[id]
}

// conns yields every connection.
func (p *places) conns() iter.Seq[*Conn] {
	return func(yield func(*Conn) bool) {
		var batch []*Conn
		for i := range p.stripes {
			s := &p.stripes[i]
			batch = batch[:0]
			s.mu.Lock()
			for _, c := range s.conns.m {
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
		conns += len(s.conns.m)
		users += s.users
		rooms += s.counts[kindRoom] + s.counts[kindSpaceRoom]
		members += s.members
		s.mu.Unlock()
	}
	return
}

// A walk visits the members of a place that belong to one shard, a chunk at a
// time, while others come and go. It runs from the end of the list to its
// beginning: removing a member moves the last one, already visited, into the
// gap, where its mark tells that it was visited; who is new stands behind.
// So everybody who was there all the time is visited exactly once, and who
// leaves and comes back not twice.
type walk struct {
	key   placeKey
	shard int
	mark  uint32 // differs from the mark of the shard's walk before

	next  int    // everything from here on has been visited
	epoch uint32 // of the place when next was set
	begun bool
}

// chunk copies the next members to dst, which has room for chunk of them; it
// returns none at the end.
func (p *places) chunk(w *walk, dst []*Conn) []*Conn {
	s := p.stripe(w.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	pl := s.places.m[w.key]
	if pl == nil {
		return dst[:0]
	}
	list := pl.few
	if pl.many != nil {
		list = (*pl.many)[w.shard]
	}
	if !w.begun || w.epoch != pl.epoch {
		// A rebuild moved everybody: begin anew, the marks know.
		w.next, w.epoch, w.begun = len(list), pl.epoch, true
	}
	w.next = min(w.next, len(list))
	dst = dst[:0]
	for w.next > 0 && len(dst) < cap(dst) {
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
	conns [chunk]*Conn
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
		conns := s.e.places.chunk(&w, s.conns[:])
		if len(conns) == 0 {
			break
		}
		var became [statuses]int
		for _, c := range conns {
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
	clear(s.conns[:])
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

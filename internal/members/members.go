// Package members knows which nodes of a cluster there are. memberlist finds
// peers, notices deaths and carries a few bytes about each node; this package
// is what memberlist does not do by itself: it finds back what a partition took
// away, looks for seeds until one is there, hides at once who said goodbye,
// tells two nodes of one id, and passes changes on without a lock held.
//
// A node that restarts is another member: memberlist knows a run as id~epoch,
// the epoch being its start in Unix milliseconds, so it is back at once at
// whatever address.
package members

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/quietlog"
	"github.com/embedpush/push/internal/secret"
	"github.com/hashicorp/memberlist"
)

const (
	// MaxExtra is how many bytes a node may tell of itself.
	MaxExtra = 300

	// JoinTime is how long Ready waits for a first peer.
	JoinTime = 10 * time.Second

	// MaxDigest is how many bytes go along with an exchange of everything.
	MaxDigest = 1 << 20
)

const (
	tickTime      = time.Second      // how often run looks what is due
	rejoinLongest = 30 * time.Second // the longest pause between two attempts: 1, 2, 4 … s
	rememberLost  = 24 * time.Hour   // how long a vanished node is looked for
	conflictAfter = 15 * time.Second // a moved node's old run is noticed dead before this
	lookupTime    = 5 * time.Second  // for one seed's name
	leaveTime     = 600 * time.Millisecond

	maxNodes = 10_000 // members; further ones are ignored
	maxLost  = 1024   // vanished nodes that are looked for; beyond it one is forgotten
	maxJoins = 16     // attempts at once
)

// Member is one run of one node.
type Member struct {
	directory.Origin
	Addr     netip.AddrPort // where it talks to other nodes, by UDP and TCP
	Draining bool           // it shuts down
	Extra    []byte         // what its owner tells of it, at most MaxExtra; nobody changes it. nil: nothing
}

func (m Member) equal(o Member) bool {
	return m.Origin == o.Origin && m.Addr == o.Addr && m.Draining == o.Draining && bytes.Equal(m.Extra, o.Extra)
}

// Seed is an address of other nodes.
type Seed struct {
	Name string     // looked up anew each time. "": it is IP
	IP   netip.Addr // of a seed without a name
	Port uint16
}

// Config is what Start takes. What its slices hold is not changed afterwards.
type Config struct {
	Self    directory.Origin // this run: a valid id, and its start in Unix milliseconds
	Started time.Time        // Ready counts from it. The zero time: now
	Cluster string           // nodes of another cluster are refused: at most 255 bytes, memberlist's label
	Keys    [][]byte         // of 32 bytes; the first encrypts, all decrypt. nil: none, only if Insecure

	// Insecure allows a cluster without Keys, on loopback addresses only.
	// false: Keys are required.
	Insecure bool

	// Transport carries packets and streams: what Listen made, or another.
	// When Start succeeds the List has taken it over, and Leave shuts it down.
	// Required.
	Transport memberlist.Transport

	// Advertise is where peers reach this node, with a port. No address: what
	// the Transport says.
	Advertise netip.AddrPort

	Seeds []Seed        // tried until one answers, and from then on every 30 s. nil: wait for others to come
	Log   *quietlog.Log // its owner runs it. Required
	Extra []byte        // of this node, at most MaxExtra. nil: nothing

	// Joined is told that a run appeared, again maybe after it was Left, or
	// that its address, Draining or Extra changed. Left is told that a run died,
	// as far as anybody knows, or said goodbye; the verdict may be false, and
	// the run be Joined again.
	//
	// Both are called by one goroutine of the List, one call at a time, without
	// a lock held, and may take long; the first may come before Start has
	// returned, none begins once Leave has begun. They must not call Leave,
	// which waits for them. They are not told of this node itself, nor twice of
	// the same. While one takes its time, only the last of what happens to each
	// run waits, at the moment when it happened: a run that joins and leaves
	// meanwhile is not told at all. nil: nobody is told.
	Joined func(m Member)
	Left   func(m Member, goodbye bool)

	// Digest appends what goes along when two nodes tell each other all they
	// know of the members, when they meet and every 30 seconds, both ways; more
	// than MaxDigest is not sent, and logged. Merge is given what came so, never
	// more than MaxDigest, and may keep it. Both are called by goroutines of
	// memberlist's, without a lock held, calls may overlap, and the other node
	// waits: they must not block. None begins once Leave has begun. nil:
	// nothing, nobody.
	Digest func(dst []byte) []byte
	Merge  func(digest []byte)
}

// List is this node's view of the members. Its methods may be called by any
// goroutine.
type List struct {
	// Static after Start.
	cfg      Config
	name     string // id~epoch, memberlist's
	insecure bool   // there are no keys
	log      *quietlog.Log
	ml       *memberlist.Memberlist // never called from a delegate: it holds its lock there

	ctx     context.Context // ends attempts to join, lookups, run, tell and the owner's callbacks
	stop    context.CancelFunc
	work    sync.WaitGroup // run and what it starts, tell
	leaving sync.Once
	cut     context.Context // makes Leave hurry
	cutNow  context.CancelFunc

	met      atomic.Bool // a peer was reached once
	draining atomic.Bool

	news chan struct{} // capacity 1, never closed: something stands in queue

	mu      sync.RWMutex               // guards what follows; nothing but the log is called or locked under it
	peers   map[directory.Origin]*peer // those memberlist has, this node included
	lost    map[string]*lostNode       // by id
	joining map[netip.AddrPort]bool    // attempts under way

	// What the owner is told, see tell.go.
	told    map[directory.Origin]Member        // the runs that it takes to be there
	queue   *list.List                         // of change: what differs from told
	waiting map[directory.Origin]*list.Element // in queue
}

// peer is one run of one node.
type peer struct {
	Member
	gone  bool // it said goodbye; memberlist has not noticed yet
	noUDP int  // probes in succession that only TCP brought there
}

// Start begins to look for peers. It does not wait for them. If it fails the
// Transport stays the caller's, but may have been shut down.
func Start(cfg Config) (*List, error) {
	if cfg.Started.IsZero() {
		cfg.Started = time.Now()
	}
	l := &List{
		cfg:      cfg,
		name:     runName(cfg.Self),
		insecure: len(cfg.Keys) == 0,
		log:      cfg.Log,
		news:     make(chan struct{}, 1),
		peers:    make(map[directory.Origin]*peer),
		lost:     make(map[string]*lostNode),
		joining:  make(map[netip.AddrPort]bool),
		told:     make(map[directory.Origin]Member),
		queue:    list.New(),
		waiting:  make(map[directory.Origin]*list.Element),
	}
	ml := memberlist.DefaultLANConfig()
	if err := l.check(ml); err != nil {
		return nil, err
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.cut, l.cutNow = context.WithCancel(context.Background())

	ml.Name = l.name
	ml.Label = cfg.Cluster
	ml.Transport = cfg.Transport
	ml.EnableCompression = false
	ml.DeadNodeReclaimTime = time.Second
	d := delegate{l}
	ml.Delegate, ml.Events, ml.Alive, ml.Conflict, ml.Ping = d, d, d, d, d
	ml.LogOutput, ml.Logger = nil, log.New(&gossipLog{translate(l.log), l}, "", 0)

	var err error
	if l.ml, err = memberlist.Create(ml); err != nil {
		l.stop()
		l.cutNow()
		return nil, fail("Advertise: %w", err)
	}
	l.work.Go(l.tell)
	l.work.Go(l.run)
	return l, nil
}

// check checks the configuration and takes over keys and address.
func (l *List) check(ml *memberlist.Config) (err error) {
	cfg := &l.cfg
	switch {
	case !ValidID(cfg.Self.ID) || cfg.Self.Epoch > maxEpoch:
		return fmt.Errorf("members: %s is no run of a node", l.name)
	case cfg.Transport == nil:
		return errors.New("members: no Transport")
	case cfg.Log == nil:
		return errors.New("members: no Log")
	case len(cfg.Extra) > MaxExtra:
		return fmt.Errorf("members: an Extra of %d bytes, want at most %d", len(cfg.Extra), MaxExtra)
	case l.insecure && !cfg.Insecure:
		return fail("Secrets is empty: %s", secret.Advice)
	}
	if !l.insecure {
		if ml.Keyring, err = memberlist.NewKeyring(cfg.Keys, cfg.Keys[0]); err != nil {
			return fail("Secrets: %w", err)
		}
	}
	if cfg.Advertise.IsValid() {
		ml.AdvertiseAddr = cfg.Advertise.Addr().String()
		ml.AdvertisePort = int(cfg.Advertise.Port())
	}
	ip, _, err := cfg.Transport.FinalAdvertiseAddr(ml.AdvertiseAddr, ml.AdvertisePort)
	if err != nil {
		return fail("Advertise: %w", err)
	}
	if l.insecure && !ip.IsLoopback() {
		return fail("Insecure is for loopback only, and this node would advertise %s: %s", ip, secret.Advice)
	}
	return nil
}

// fail is for what the program has set, in its words.
func fail(format string, args ...any) error { return fmt.Errorf("push: Cluster."+format, args...) }

// Members tells every run that is there, this one included, sorted by id and
// epoch, from memory. Two runs of an id are there for a moment when a node
// restarts, and always if two nodes have one id.
func (l *List) Members() []Member {
	l.mu.RLock()
	all := make([]Member, 0, len(l.peers))
	for _, p := range l.peers {
		if !p.gone {
			all = append(all, p.Member)
		}
	}
	l.mu.RUnlock()
	slices.SortFunc(all, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Epoch, b.Epoch))
	})
	return all
}

// Alive tells whether a run is there, as far as is known now: before Joined,
// and until before Left. It allocates nothing.
func (l *List) Alive(o directory.Origin) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	p := l.peers[o]
	return p != nil && !p.gone
}

// Ready is nil once a peer was reached or JoinTime is over; without seeds at
// once.
func (l *List) Ready() error {
	if len(l.cfg.Seeds) == 0 || l.met.Load() || time.Since(l.cfg.Started) >= JoinTime {
		return nil
	}
	return errors.New("push: joining the cluster, no peer reached yet")
}

// Drain tells the peers that this node shuts down. It does not wait for them.
func (l *List) Drain() {
	l.draining.Store(true)
	// The news is queued at once and goes out with the next gossip, in a fifth
	// of a second; the timeout, and so the error, is only about waiting until
	// it has gone to all.
	_ = l.ml.UpdateNode(time.Nanosecond)
}

// Leave says goodbye, waits until it has spread or ctx ends, and shuts
// everything down, the Transport too. It waits for the Joined or Left that
// runs. Every call returns when that is done, and each ctx that ends makes it
// hurry.
func (l *List) Leave(ctx context.Context) {
	defer context.AfterFunc(ctx, l.cutNow)()
	l.leaving.Do(l.sayGoodbye)
}

func (l *List) sayGoodbye() {
	l.stop()
	l.work.Wait()
	l.mu.RLock()
	var others []Member
	for o, p := range l.peers {
		if o != l.cfg.Self {
			others = append(others, p.Member)
		}
	}
	l.mu.RUnlock()

	// Three roads, for the sooner and for the surer: a packet straight to each
	// peer, which hides this node at once; memberlist's own news, with the next
	// gossip; and the silence of this node, noticed within seconds.
	bye := packBye(l.cfg.Self)
	for _, p := range others {
		_ = l.ml.SendToAddress(memberlist.Address{Addr: p.Addr.String(), Name: runName(p.Origin)}, bye)
	}
	// memberlist's Leave queues the news at once; the timeout, and so the
	// error, is only about waiting until it has gone to all, which this does
	// itself to be able to stop.
	_ = l.ml.Leave(time.Nanosecond)
	if len(others) > 0 {
		t := time.NewTimer(leaveTime)
		defer t.Stop()
		select {
		case <-t.C:
		case <-l.cut.Done():
		}
	}
	_ = l.ml.Shutdown() // returns nil
	l.cutNow()
	l.mu.Lock()
	for o := range l.peers {
		if o != l.cfg.Self {
			delete(l.peers, o)
		}
	}
	l.mu.Unlock()
}

// ValidID tells whether a node may be called so: 1 to 64 bytes of
// [A-Za-z0-9._-].
func ValidID(s string) bool {
	for _, b := range []byte(s) {
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '.' || b == '_' || b == '-') {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= directory.MaxID
}

// runName is what memberlist calls a run.
func runName(o directory.Origin) string { return o.ID + "~" + strconv.FormatUint(o.Epoch, 36) }

// parseName undoes runName. It takes more than runName makes.
func parseName(name string) (o directory.Origin, err error) {
	id, epoch, _ := strings.Cut(name, "~")
	o.ID = id
	o.Epoch, err = strconv.ParseUint(epoch, 36, 64)
	return o, err
}

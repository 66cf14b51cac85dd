package push

// The cluster: its configuration, the nodes behind [Engine.Nodes], and what
// travels between them. Who is there is internal/members' business, who is where
// internal/directory's, and how bytes get there internal/link's; what they say
// is in internal/nodemsg. No other file knows that there are several nodes.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push/internal/deadline"
	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/link"
	"github.com/embedpush/push/internal/members"
	"github.com/embedpush/push/internal/nodemsg"
	"github.com/embedpush/push/internal/quietlog"
	"github.com/embedpush/push/internal/relay"
	"github.com/embedpush/push/internal/secret"
	"github.com/hashicorp/memberlist"
)

// Cluster joins an engine to others. Nodes with the same Name and a common
// secret find each other through Seeds; after that every node knows every
// other, which [Engine.Nodes] tells, and which users and rooms it has. Push,
// Join, Leave, Kick and Devices reach the connections of every node, and a
// receipt has a row for each device wherever it is.
type Cluster struct {
	// Name keeps clusters apart: nodes of another name are refused. 1 to 64
	// bytes of [A-Za-z0-9._-]. "": "push".
	Name string

	// Node is this node's id, unlike every other's; a restarted node may keep
	// it. Two nodes under one id are logged as errors by all. 1 to 64 bytes of
	// [A-Za-z0-9._-]. "": the host's name, a dash and eight random hex digits.
	Node string

	// Bind is the IP address and the port, UDP and TCP, on which the nodes
	// talk to each other. Without an IP (":7946") every IPv4 interface is
	// meant, without a port 7946, and port 0 is any free one, which
	// Engine.Nodes tells. Not used with a Transport. "": 127.0.0.1:7946, which
	// no other machine reaches.
	Bind string

	// Advertise is the IP address, and the port if it is another than Bind's,
	// at which peers reach this node, where that is not what it listens on
	// (NAT, containers). "": what Bind or the Transport says; the first
	// private address of the machine if Bind is every IPv4 interface.
	Advertise string

	// Seeds are addresses of other nodes, at least one of them alive when this
	// one starts: "10.0.0.5:7946", or a DNS name that stands for many. Port
	// 7946 may be left out, and this node's own address may be among them, so
	// all nodes can have the same list. Names are looked up anew every 30
	// seconds. nil: wait for others to come.
	Seeds []string

	// Secrets encrypt and authenticate all that nodes tell each other; who has
	// one is trusted. Each is at least 32 random bytes (openssl rand -base64
	// 32). The first encrypts, all decrypt: to rotate, add the new one last
	// everywhere, then move it to the front, then remove the old one. New
	// copies what it needs. nil: New refuses, unless Insecure.
	Secrets [][]byte

	// Insecure allows a cluster without Secrets as long as it cannot be
	// reached from another machine: Bind, Advertise and every seed must be
	// loopback addresses (or the name localhost), and so must what a Transport
	// advertises. For trying things out. false: Secrets are required.
	Insecure bool

	// Transport carries packets and streams instead of sockets. A successful
	// New takes it over and the engine's end shuts it down. nil: sockets.
	Transport memberlist.Transport
}

// Node is one node of the cluster as another, or itself, knows it.
type Node struct {
	ID      string    `json:"id"`   // Cluster.Node
	Addr    string    `json:"addr"` // where it talks to other nodes
	State   NodeState `json:"state"`
	Self    bool      `json:"self,omitempty"` // the node that was asked
	Started time.Time `json:"started"`        // by its own clock
}

// NodeState is what a node does. One that is dead or has left is in no list.
type NodeState string

const (
	NodeUp       NodeState = "up"
	NodeDraining NodeState = "draining" // it shuts down: no new connections, pushes still work
)

const gossipPort = 7946 // memberlist's

// cluster is a node's place among the others.
type cluster struct {
	// Static after start.
	e         *Engine
	set       settings
	self      directory.Origin
	started   time.Time
	directory *directory.Directory // who is where; its own part is written under the locks of places
	list      *members.List        // who is there
	mesh      *link.Mesh
	relay     *relay.Relay // of Socket.IO's polls
	log       *quietlog.Log
	transport memberlist.Transport
	abandon   func() // gives up transport, unless list has it
	moving    moving

	ctx  context.Context // ends what the cluster does by itself
	stop context.CancelFunc
	work sync.WaitGroup

	joining sync.Mutex // held while a run is let in or taken out; above mu

	others atomic.Pointer[map[directory.Origin]*node] // the runs that are there, but for this one; replaced under mu, never changed

	mu     sync.RWMutex
	bases  map[uint32]*node  // guarded by mu: by node.base
	tags   map[[8]byte]*node // guarded by mu: by node.tag, of several runs the newest
	proved map[string]uint64 // guarded by mu: of each node the greatest epoch that a link has proved; older runs are over

	linksMu sync.Mutex
	dialled map[directory.Origin]int // guarded by linksMu: how many links there are of whom

	allocs                         atomic.Uint32 // turns of Alloc
	sent, served, found, malformed atomic.Uint64 // as ClusterStats tells them
}

// newCluster checks the configuration and takes the port. Nothing runs yet.
func newCluster(e *Engine, cfg Cluster) (c *cluster, err error) {
	now := time.Now()
	c = &cluster{
		e: e, started: now, log: quietlog.New(e.cfg.Logger, "cluster"), transport: cfg.Transport, abandon: func() {},
		bases: make(map[uint32]*node), tags: make(map[[8]byte]*node), proved: make(map[string]uint64),
		dialled: make(map[directory.Origin]int),
	}
	if c.set, err = cfg.check(); err != nil {
		return nil, err
	}
	c.self = directory.Origin{ID: c.set.node, Epoch: uint64(now.UnixMilli())}
	c.moving = moving{c: c, lanes: make(map[placeKey]*moves)}
	c.others.Store(&map[directory.Origin]*node{})
	c.directory = directory.New(c.self, c.changed)
	if c.transport == nil {
		var port int
		if c.transport, port, c.abandon, err = members.Listen(c.set.bind, c.log); err != nil {
			return nil, fmt.Errorf("push: Cluster.Bind: %w", err)
		}
		if c.set.advertise.IsValid() && c.set.advertise.Port() == 0 {
			c.set.advertise = netip.AddrPortFrom(c.set.advertise.Addr(), uint16(port))
		}
	} else if c.set.advertise.IsValid() && c.set.advertise.Port() == 0 {
		c.set.advertise = netip.AddrPortFrom(c.set.advertise.Addr(), gossipPort)
	}
	return c, nil
}

// start begins to look for peers. It does not wait for them. After an error
// nothing is left.
func (c *cluster) start() (err error) {
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.mesh = link.New(link.Config{
		Self: c.self, Directory: c.directory, Handler: (*links)(c), Log: c.log,
		Keys: c.set.linkKeys, Transport: c.transport,
		Greeting: c.e.mpush.Key.Fingerprint(), Beat: c.beat,
	})
	c.relay = relay.New(relay.Config{
		Dial: c.dialRelay, Handler: c.e.socketIO, Log: c.log,
		Hold: c.e.cfg.SocketIO.PingInterval + c.e.cfg.SocketIO.PingTimeout + time.Minute, MaxBody: int64(cmp.Or(c.e.cfg.SocketIO.MaxPayload, -1)),
	})
	c.list, err = members.Start(members.Config{
		Self: c.self, Started: c.started, Cluster: c.set.name, Keys: c.set.keys, Insecure: len(c.set.keys) == 0,
		Transport: c.mesh.Transport(), Advertise: c.set.advertise, Seeds: c.set.seeds, Log: c.log,
		Extra:  appendExtra(nil, uint32(c.e.idBase>>32), c.e.cfg.MPush.Advertise),
		Joined: c.joined, Left: c.left,
		Digest: c.directory.AppendDigest, Merge: c.mergeDigest,
	})
	if err != nil {
		c.stop()
		c.mesh.Abandon()
		c.relay.Close()
		c.abandon()
		return err
	}
	c.work.Go(func() { c.log.Run(c.ctx) })
	c.work.Go(c.run)
	c.work.Go(func() { _ = c.relay.Serve(c.mesh.Relays()) })
	return nil
}

// run does what is due once a second.
func (c *cluster) run() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case now := <-tick.C:
			c.directory.Sweep(now)
			for _, m := range c.list.Members() {
				c.readmit(m)
			}
			for _, n := range c.all() {
				c.watch(n, now)
			}
		}
	}
}

// watch tells of a node that the others see and that cannot be dialled.
func (c *cluster) watch(n *node, now time.Time) {
	if n.peer.Up() {
		n.down = time.Time{}
		c.linksMu.Lock()
		known := c.dialled[n.peer.Origin()] > 0
		c.linksMu.Unlock()
		if n.unmet++; known {
			n.unmet = 0
		} else if n.unmet%unmetAfter == 0 { // it should have dialled, too
			c.list.Meet(n.member.Load().Addr)
		}
		return
	}
	if n.down.IsZero() {
		n.down = now
	} else if m := n.member.Load(); now.Sub(n.down) >= undialled {
		c.log.Post(slog.LevelError, m.ID, "no link to a node that is there: pushes to its users fail; open its TCP port to this node, or set its Cluster.Advertise", "node", m.ID, "addr", m.Addr, "port", m.Addr.Port())
	}
}

// unmetAfter is how many seconds a node may have to dial back.
const unmetAfter = 2

// undialled is how long a member may have no link before that is an error.
const undialled = time.Minute

// appendExtra appends what a node tells of itself by gossip: the upper half of
// its connections' ids, and where devices reach it.
func appendExtra(dst []byte, base uint32, alloc string) []byte {
	return append(binary.BigEndian.AppendUint32(dst, base), alloc...)
}

// beat appends what goes along with every beat: how many connections there are.
func (c *cluster) beat(dst []byte) []byte {
	return binary.AppendUvarint(dst, uint64(c.e.live.Len()))
}

// tagOf stands for a node in the ids of its Socket.IO sessions.
func tagOf(id string) (tag [8]byte) {
	sum := sha256.Sum256([]byte(id))
	copy(tag[:], sum[:])
	return tag
}

// readmit lets in a run that was taken for over when it joined, and is the only
// one of its node now: a clock went back before it started.
func (c *cluster) readmit(m members.Member) {
	c.joining.Lock()
	defer c.joining.Unlock()
	if m.ID != c.self.ID && c.node(m.Origin) == nil && !c.over(m.Origin) && c.list.Alive(m.Origin) {
		c.joinedLocked(m)
	}
}

// joined is told that a run is there, or told something new of itself.
func (c *cluster) joined(m members.Member) {
	c.joining.Lock()
	defer c.joining.Unlock()
	c.joinedLocked(m)
}

func (c *cluster) joinedLocked(m members.Member) {
	if m.ID == c.self.ID {
		return // two nodes of one id, or an older run of this one: members tells of it
	}
	n := c.node(m.Origin)
	fresh := n == nil
	if fresh {
		if c.over(m.Origin) {
			return // memberlist has not noticed yet
		}
		c.mesh.Up(m.Origin, m.Addr.String())
		peer := c.mesh.Peer(m.Origin)
		if peer == nil {
			return // this node leaves
		}
		n = &node{peer: peer, asked: make(map[uint64]asked), tag: tagOf(m.ID)}
		if len(m.Extra) >= 4 {
			n.base = binary.BigEndian.Uint32(m.Extra)
			n.alloc = string(m.Extra[4:])
		}
		if !validAdvertise(n.alloc) {
			n.alloc = ""
		}
	} else if old := n.member.Load(); old.Addr != m.Addr {
		c.mesh.Up(m.Origin, m.Addr.String())
	}
	n.member.Store(&m)
	if !fresh {
		return
	}
	c.mu.Lock()
	if m.Epoch < c.proved[m.ID] { // since it was dialled
		c.mu.Unlock()
		c.mesh.Down(m.Origin)
		return
	}
	others := maps.Clone(*c.others.Load())
	others[m.Origin] = n
	c.others.Store(&others)
	if n.base != 0 {
		c.bases[n.base] = n
	}
	if old := c.tags[n.tag]; old == nil || old.member.Load().Epoch < m.Epoch {
		c.tags[n.tag] = n
	}
	c.mu.Unlock()
	if err := c.directory.Up(m.Origin); err != nil { // too many
		c.log.Post(slog.LevelWarn, m.ID, "node without a place in the directory", "node", m.ID, "err", err)
	}
}

// over tells whether a later run of a node has proved that this one has ended.
func (c *cluster) over(o directory.Origin) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return o.Epoch < c.proved[o.ID]
}

// prove notes that a run that membership knows has proved by a link that it is
// there: earlier ones of its node are over, whatever membership says.
func (c *cluster) prove(o directory.Origin) {
	var elders []directory.Origin
	c.mu.Lock()
	others := *c.others.Load()
	if others[o] == nil {
		c.mu.Unlock()
		return // it is dialled when it joins
	}
	if c.proved[o.ID] < o.Epoch {
		c.proved[o.ID] = o.Epoch
	}
	for other := range others {
		if other.ID == o.ID && other.Epoch < o.Epoch {
			elders = append(elders, other)
		}
	}
	c.mu.Unlock()
	for _, elder := range elders {
		c.remove(elder)
		c.mesh.Down(elder)
	}
}

// left is told that a run died or said goodbye: its users are gone at once, and
// what it has not answered is lost.
func (c *cluster) left(m members.Member, goodbye bool) {
	c.joining.Lock()
	defer c.joining.Unlock()
	c.directory.Down(m.Origin, time.Now())
	c.remove(m.Origin)
	c.mesh.Down(m.Origin)
	if goodbye {
		c.directory.Forget(m.Origin)
	} else if !slices.ContainsFunc(c.all(), func(n *node) bool { return n.member.Load().Addr == m.Addr }) {
		c.relay.Lost(m.Addr.String())
	}
}

// remove takes a run out of those that are there.
func (c *cluster) remove(o directory.Origin) {
	c.mu.Lock()
	others := maps.Clone(*c.others.Load())
	n := others[o]
	delete(others, o)
	c.others.Store(&others)
	if c.proved[o.ID] == o.Epoch {
		delete(c.proved, o.ID) // the next one may have a clock that is behind
	}
	if n != nil && c.bases[n.base] == n {
		delete(c.bases, n.base)
	}
	if n != nil && c.tags[n.tag] == n {
		delete(c.tags, n.tag)
	}
	c.mu.Unlock()
	if n != nil {
		n.lose(true)
	}
}

// node is a run that is there, or nil. It takes no lock.
func (c *cluster) node(o directory.Origin) *node { return (*c.others.Load())[o] }

// nodeOf is the other node that a connection is on, or nil.
func (c *cluster) nodeOf(id ConnID) *node {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.bases[uint32(id>>32)]
}

// all are the runs that are there, but for this one.
func (c *cluster) all() []*node { return slices.Collect(maps.Values(*c.others.Load())) }

// mergeDigest compares what another node knows with what is known here.
func (c *cluster) mergeDigest(digest []byte) {
	stale, err := c.directory.MergeDigest(nil, digest)
	if err != nil {
		c.malformed.Add(1)
		return
	}
	for _, s := range stale {
		if s.Diverged {
			c.mesh.Need(s.Origin)
		} else {
			c.mesh.Redial(s.Origin) // if there is no link to it, there may be none from it
		}
	}
}

// placeOf is a place as the directory has it.
func placeOf(key placeKey) directory.Place {
	return directory.Place{Kind: directory.Kind(key.kind), Name: key.name}
}

// holds notes that this node begins or ceases to hold a place. The place's
// stripe is locked.
func (c *cluster) holds(key placeKey, there bool) {
	switch {
	case key.kind.in() == kindAll: // every node is told what is for all
		return
	case there:
		c.directory.Join(placeOf(key))
		c.moving.changed(key)
	default:
		c.directory.Leave(placeOf(key))
	}
	c.mesh.Wake()
}

// changed is the directory's word that another node began or ceased to hold a
// place.
func (c *cluster) changed(from directory.Origin, k directory.Kind, name []byte, early bool) {
	switch kind(k) {
	case kindUser, kindSpaceUser:
		if c.moving.n.Load() > 0 {
			c.moving.changed(placeKey{kind(k), string(name)})
		}
	}
	if p := c.e.presence; p != nil && (kind(k) == kindUser || kind(k) == kindElsewhere) {
		if early {
			p.know(string(name))
		} else {
			p.change(string(name), from.ID)
		}
	}
}

// login notes that a device of a class with one login has logged in as the
// user of a place, whose stripe is locked.
func (c *cluster) login(key placeKey, who *identity) (stamp uint64) {
	stamp = uint64(c.directory.Bind(placeOf(key), who.class, deviceTag(who.device), time.Now()))
	c.mesh.Wake()
	return stamp
}

// deviceTag is what other nodes are told of a device: enough to know it again. 0
// is none.
func deviceTag(id string) uint64 {
	if id == "" {
		return 0
	}
	sum := sha256.Sum256([]byte(id))
	return max(1, binary.BigEndian.Uint64(sum[:8]))
}

// logout takes a login back.
func (c *cluster) logout(key placeKey, class string, stamp uint64) {
	c.directory.Unbind(placeOf(key), class, directory.Stamp(stamp))
}

// online tells whether a user is on another node, in whichever namespace.
func (c *cluster) online(user string) bool {
	return c.directory.Held(placeOf(placeKey{kindUser, user})) || c.directory.Held(placeOf(placeKey{kindElsewhere, user}))
}

// users yields the users on other nodes.
func (c *cluster) users() iter.Seq[string] {
	return c.directory.Names(directory.Kind(kindUser), directory.Kind(kindElsewhere))
}

// alloc tells where devices may connect: the nodes that do not drain, the least
// loaded first, and those within a tenth of each other in turns. Nodes that this
// one cannot ask stand last.
func (c *cluster) alloc(own string) string {
	type place struct {
		addr string
		load int64
	}
	var places []place
	if own != "" {
		places = append(places, place{own, int64(c.e.live.Len())})
	}
	for _, n := range c.all() {
		if n.alloc == "" || n.member.Load().Draining {
			continue
		}
		load := n.load.Load()
		if !n.loaded.Load() || !n.peer.Up() {
			load = 1 << 41
		}
		places = append(places, place{n.alloc, load})
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Or(cmp.Compare(a.load, b.load), cmp.Compare(a.addr, b.addr)) })
	turn := int(c.allocs.Add(1))
	var addrs []string
	for from, to := 0, 0; from < len(places); from = to {
		for to = from; to < len(places) && places[to].load*10 <= places[from].load*11; to++ {
		}
		for i := range to - from {
			addrs = append(addrs, places[from+(i+turn)%(to-from)].addr)
		}
	}
	return strings.Join(addrs, ",")
}

// forward has the node that a Socket.IO session is on answer a request. It
// tells whether there is such a node; a request that came from another one goes
// nowhere.
func (c *cluster) forward(w http.ResponseWriter, r *http.Request, tag [8]byte) bool {
	if relay.IsRelayed(r.Context()) {
		return false
	}
	c.mu.RLock()
	n := c.tags[tag]
	c.mu.RUnlock()
	if n == nil {
		return false
	}
	c.relay.Forward(w, r, n.member.Load().Addr.String())
	return true
}

func (c *cluster) dialRelay(ctx context.Context, addr string) (net.Conn, error) {
	return c.mesh.DialRelay(ctx, addr)
}

// links is what the links of a node are told.
type links cluster

// Member implements link.Handler: what is here is dialled and asked.
func (c *links) Member(o directory.Origin) bool { return (*cluster)(c).node(o) != nil }

// Greeted and Linked implement link.Handler.
func (c *links) Greeted(o directory.Origin, greeting []byte) {
	c.linksMu.Lock()
	c.dialled[o]++
	c.linksMu.Unlock()
	(*cluster)(c).compare(o, greeting)
}
func (c *links) Linked(p *link.Peer, greeting []byte) { (*cluster)(c).compare(p.Origin(), greeting) }

// compare takes what a node says of itself over a link: that it is there, and its
// mpush key. Devices that know one key cannot use a node with another.
func (c *cluster) compare(o directory.Origin, theirs []byte) {
	c.prove(o)
	if own := c.e.mpush.Key.Fingerprint(); len(own) > 0 && len(theirs) > 0 && !bytes.Equal(own, theirs) {
		c.log.Post(slog.LevelError, o.ID, "a node has another MPush.PrivateKey: devices that know one of them cannot connect to the other", "node", o.ID)
	}
}

// Broken implements link.Handler: what the node has not answered is lost.
func (c *links) Broken(p *link.Peer) {
	if n := (*cluster)(c).node(p.Origin()); n != nil && n.peer == p {
		n.lose(false)
	}
}

// Gone implements link.Handler: that run has ended, whatever membership says.
func (c *links) Gone(o directory.Origin) { (*cluster)(c).remove(o) }

// Beat implements link.Handler.
func (c *links) Beat(o directory.Origin, body []byte) {
	if load, k := binary.Uvarint(body); k > 0 {
		if n := (*cluster)(c).node(o); n != nil {
			n.load.Store(int64(min(load, 1<<40)))
			n.loaded.Store(true)
		}
	}
}

// News implements link.Handler.
func (c *links) News(o directory.Origin, news directory.News) {
	for _, l := range news.Lost {
		c.e.loginLost(placeKey{kind(l.Place.Kind), l.Place.Name}, l.Class, uint64(l.Stamp), l.Device)
	}
	if news.Ahead > 0 {
		c.log.Post(slog.LevelWarn, o.ID, "a node's clock is ahead: of logins at the same time its own win", "node", o.ID, "ahead", news.Ahead)
	}
}

// Answer implements link.Handler.
func (c *links) Answer(p *link.Peer, kind byte, body []byte) {
	n := (*cluster)(c).node(p.Origin())
	if n == nil || n.peer != p { // the run was taken for dead meanwhile
		return
	}
	var over bool
	var id uint64
	var err error
	switch kind {
	case nodemsg.KindResult:
		var res nodemsg.Result
		if res, err = nodemsg.ParseResult(body); err == nil {
			id = res.ID
			if part, ok := n.find(id).(*part); ok {
				over, err = part.answer(&res)
			}
		}
	case nodemsg.KindReturn:
		var ret nodemsg.Return
		if ret, err = nodemsg.ParseReturn(body); err == nil {
			id = ret.ID
			if call, ok := n.find(id).(*call); ok {
				over = call.answer(&ret)
			}
		}
	}
	if over || err != nil {
		n.forget(id)
	}
	(*cluster)(c).judge(p.Origin(), err)
}

// Request implements link.Handler.
func (c *links) Request(in *link.In, kind byte, body []byte) {
	a := (*cluster)(c).answersOf(in)
	var err error
	switch kind {
	case nodemsg.KindPush:
		err = (*cluster)(c).servePush(a, body)
	case nodemsg.KindCall:
		err = (*cluster)(c).serveCall(a, body)
	case nodemsg.KindCancel:
		var id uint64
		if id, err = nodemsg.ParseCancel(body); err == nil {
			a.cancel(id)
		}
	}
	(*cluster)(c).judge(in.Origin(), err)
}

// judge counts and tells what could not be read. The node is kept: it may be of
// another version.
func (c *cluster) judge(o directory.Origin, err error) {
	if err != nil {
		c.malformed.Add(1)
		c.log.Post(slog.LevelWarn, o.ID, "a node said what cannot be read", "node", o.ID, "err", err)
	}
}

// answersOf is what goes back over a link.
func (c *cluster) answersOf(in *link.In) *answers {
	a, _ := in.Owner.(*answers)
	if a == nil {
		a = &answers{c: c, in: in, flights: make(map[uint64]*served)}
		a.ctx, a.end = context.WithCancel(c.ctx)
		in.Owner = a
		c.work.Go(func() { // whatever waits for the link, its worker too, does not outlive it
			select {
			case <-in.Done():
				a.end()
			case <-a.ctx.Done():
			}
		})
	}
	return a
}

// Ended implements link.Handler.
func (c *links) Ended(in *link.In) {
	c.linksMu.Lock()
	if c.dialled[in.Origin()]--; c.dialled[in.Origin()] <= 0 {
		delete(c.dialled, in.Origin())
	}
	c.linksMu.Unlock()
	if a, _ := in.Owner.(*answers); a != nil {
		a.close()
	}
}

// id is this node's name.
func (c *cluster) id() string { return c.self.ID }

// nodes tells the nodes, sorted by id, from memory. Of several runs of an id
// it tells the newest, and of this node's own id itself.
func (c *cluster) nodes() []Node {
	runs := c.list.Members() // by id, then by epoch
	nodes := make([]Node, 0, len(runs))
	for i, m := range runs {
		if m.ID == c.self.ID {
			if m.Origin != c.self {
				continue
			}
		} else if i+1 < len(runs) && runs[i+1].ID == m.ID {
			continue
		}
		n := Node{ID: m.ID, Addr: m.Addr.String(), State: NodeUp, Self: m.Origin == c.self, Started: time.UnixMilli(int64(m.Epoch)).UTC()}
		if m.Draining {
			n.State = NodeDraining
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// ClusterStats are what a node has to do with the others.
type ClusterStats struct {
	// Now.
	Nodes   int `json:"nodes"`    // others that are there
	LinksUp int `json:"links_up"` // to them, and working
	LinksIn int `json:"links_in"` // from them
	Relayed int `json:"relayed"`  // requests and WebSockets of Socket.IO that this node passes to others
	Pending int `json:"pending"`  // streams that came in and may be a stranger's

	// Since New.
	Sent           uint64 `json:"sent"`            // pushes handed to links, one for each node
	Served         uint64 `json:"served"`          // pushes of other nodes
	Found          uint64 `json:"found"`           // pushes that reached a user where he had moved
	Full           uint64 `json:"full"`            // times that a link had no room
	Dropped        uint64 `json:"dropped"`         // messages that were lost with their link
	Malformed      uint64 `json:"malformed"`       // what another node said and could not be read
	Diverged       uint64 `json:"diverged"`        // times that what was known of a node was wrong: a bug, and mended
	Snapshots      uint64 `json:"snapshots"`       // sent to nodes that were too far behind
	LinksLost      uint64 `json:"links_lost"`      // that were silent or stuck
	DialFailures   uint64 `json:"dial_failures"`   // of links
	StreamsRefused uint64 `json:"streams_refused"` // on the cluster's port: no key, not in time, too many, too large
	PacketsRefused uint64 `json:"packets_refused"` // of a form that no node sends
	RelayFailures  uint64 `json:"relay_failures"`  // requests of Socket.IO whose node could not be reached, or broke off
	RelaysBusy     uint64 `json:"relays_busy"`     // … that were too many
}

// stats counts.
func (c *cluster) stats() *ClusterStats {
	m, r := c.mesh.Stats(), c.relay.Stats()
	return &ClusterStats{
		Nodes: len(c.all()), LinksUp: m.LinksOut, LinksIn: m.LinksIn, Relayed: int(r.Running), Pending: m.Unproved + m.Gossip,
		Sent: c.sent.Load(), Served: c.served.Load(), Found: c.found.Load(), Full: m.Full, Dropped: m.Dropped,
		Malformed: c.malformed.Load(), Diverged: m.Diverged, Snapshots: m.SnapshotsSent, LinksLost: m.LinksSilent + m.LinksStuck,
		DialFailures: m.DialFailures, StreamsRefused: m.StreamsRefused + m.HandshakesFailed + m.RefusedHellos, PacketsRefused: m.PacketsRefused,
		RelayFailures: r.Unreached + r.Broken, RelaysBusy: r.Busy,
	}
}

// ready is nil once a peer was reached, and all that the others held when they
// were met is known here, or the time to join is over; without seeds at once.
func (c *cluster) ready() error {
	if err := c.list.Ready(); err != nil || time.Since(c.started) >= members.JoinTime {
		return err
	}
	current := make(map[directory.Origin]bool)
	for _, s := range c.directory.Origins(nil) {
		current[s.Origin] = s.Current
	}
	for _, m := range c.list.Members() {
		if m.ID != c.self.ID && !current[m.Origin] && !c.over(m.Origin) {
			return fmt.Errorf("push: joining the cluster, who is on node %s is not known yet", m.ID)
		}
	}
	return nil
}

// drain tells the peers, and the clients whose requests are passed on, that this
// node shuts down. It does not wait for them.
func (c *cluster) drain() {
	c.list.Drain()
	c.relay.Drain()
}

// release lets go the clients of other nodes whose requests come through this
// one: their WebSockets are cut, spread over a time, their polls answered.
func (c *cluster) release(ctx context.Context, over time.Duration) error {
	return cmp.Or(c.relay.CutSockets(ctx, over), c.relay.Release(ctx))
}

// cut ends what waits for other nodes.
func (c *cluster) cut() {
	for _, n := range c.all() {
		n.lose(true)
	}
}

// leave says goodbye, waits until it has spread or ctx ends, and shuts
// everything down. Every call returns when that is done, and each ctx that
// ends makes it hurry.
func (c *cluster) leave(ctx context.Context) {
	c.relay.Close()
	var closing sync.WaitGroup
	closing.Go(func() { c.mesh.Close(ctx) }) // while the goodbye spreads
	c.list.Leave(ctx)
	closing.Wait()
	c.moving.close()
	c.stop()
	c.work.Wait()
	c.mu.Lock()
	c.others.Store(&map[directory.Origin]*node{})
	clear(c.bases)
	clear(c.tags)
	c.mu.Unlock()
}

// settings is a Cluster that was checked.
type settings struct {
	name, node      string
	bind, advertise netip.AddrPort // advertise may be no address, and its port 0
	seeds           []members.Seed
	keys            [][]byte // of gossip; the first encrypts, none if Insecure
	linkKeys        [][]byte // of links, as many
}

// elsewhere: a seed may be another machine's.
func elsewhere(s members.Seed) bool { return s.Name != "localhost" && !s.IP.IsLoopback() }

func (cfg *Cluster) check() (s settings, err error) {
	fail := func(format string, args ...any) (settings, error) {
		return settings{}, fmt.Errorf("push: Cluster."+format, args...)
	}
	s.name, s.node = cmp.Or(cfg.Name, "push"), cfg.Node
	if s.node == "" {
		s.node = defaultNode()
	}
	if err := checkNodeName(s.name); err != nil {
		return fail("Name %q: %w", s.name, err)
	}
	if err := checkNodeName(s.node); err != nil {
		return fail("Node %q: %w", s.node, err)
	}

	if s.bind, err = parseBind(cfg.Bind); err != nil {
		return fail("Bind %q: %w", cfg.Bind, err)
	}
	if cfg.Advertise != "" {
		if s.advertise, err = parseAddr(cfg.Advertise, 0); err != nil {
			return fail("Advertise %q: %w", cfg.Advertise, err)
		}
		if s.advertise.Addr().IsUnspecified() {
			return fail("Advertise %q: no peer can reach that", cfg.Advertise)
		}
	} else if cfg.Transport == nil && s.bind.Addr() == netip.IPv6Unspecified() {
		return fail("Bind %q is every interface: set Cluster.Advertise", cfg.Bind)
	}
	outside := "" // a seed on another machine
	for _, text := range cfg.Seeds {
		seed, err := parseSeed(text)
		if err != nil {
			return fail("Seeds: %q: %w", text, err)
		}
		if elsewhere(seed) {
			outside = text
		}
		s.seeds = append(s.seeds, seed)
	}

	for i, one := range cfg.Secrets {
		if err := secret.Check(one); err != nil {
			return fail("Secrets[%d]: %w", i, err)
		}
		key := secret.Derive(one, "gossip", s.name)
		if slices.ContainsFunc(s.keys, func(k []byte) bool { return bytes.Equal(k, key) }) {
			return fail("Secrets[%d] is there twice: %s", i, secret.Advice)
		}
		s.keys = append(s.keys, key)
		s.linkKeys = append(s.linkKeys, secret.Derive(one, "link", s.name))
	}
	local := cfg.Transport == nil && s.bind.Addr().IsLoopback()
	if len(s.keys) == 0 {
		switch { // what it would advertise is checked when that is known
		case !cfg.Insecure:
			return fail("Secrets is empty: %s", secret.Advice)
		case cfg.Transport == nil && !local:
			return fail("Insecure is for loopback only, and Bind is %s: %s", s.bind.Addr(), secret.Advice)
		case outside != "":
			return fail("Insecure is for loopback only, and there is seed %s: %s", outside, secret.Advice)
		}
	}
	if outside != "" && local {
		return fail("Bind %s is reached from this machine only, and seed %s is on another", s.bind.Addr(), outside)
	}
	return s, nil
}

func checkNodeName(s string) error {
	if !members.ValidID(s) {
		return errors.New("want 1 to 64 bytes of [A-Za-z0-9._-]")
	}
	return nil
}

// defaultNode is the host's name, as far as it fits, and a random number.
func defaultNode() string {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	host = strings.Map(func(r rune) rune {
		if members.ValidID(string(r)) {
			return r
		}
		return '-'
	}, host)
	return fmt.Sprintf("%.55s-%08x", host, rand.Uint32())
}

// parseAddr reads an IP address with or without a port.
func parseAddr(s string, port uint16) (netip.AddrPort, error) {
	if ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return netip.AddrPortFrom(ip.Unmap(), port), nil
	}
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		return at, errors.New("want an IP address, or one with a port")
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}

func parseBind(s string) (netip.AddrPort, error) {
	switch {
	case s == "":
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), gossipPort), nil
	case s[0] == ':' && (len(s) == 1 || s[1] != ':'): // not an IPv6 address
		s = "0.0.0.0" + s
	}
	return parseAddr(s, gossipPort)
}

func parseSeed(s string) (members.Seed, error) {
	if at, err := parseAddr(s, gossipPort); err == nil {
		if at.Port() == 0 || at.Addr().IsUnspecified() {
			return members.Seed{}, errors.New("nobody listens there")
		}
		return members.Seed{IP: at.Addr(), Port: at.Port()}, nil
	}
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		host, text = s, strconv.Itoa(gossipPort)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || host == "" || len(host) > 255 || strings.ContainsAny(host, ":/[]% \t\r\n") {
		return members.Seed{}, errors.New("want a host, or one with a port")
	}
	return members.Seed{Name: host, Port: uint16(port)}, nil
}

// What goes between nodes. The directory knows which nodes hold a place; a push
// goes to those over the links, and each answers with a row for each of its
// devices. A node that was asked never asks another one.

// node is another run as this one deals with it.
type node struct {
	member atomic.Pointer[members.Member]
	peer   *link.Peer   // static
	base   uint32       // static: upper half of the ids of its connections; 0: it does not say
	alloc  string       // static: where devices reach it; "": it does not say
	tag    [8]byte      // static: of its Socket.IO sessions
	load   atomic.Int64 // connections that it has, as it last told
	loaded atomic.Bool  // it told

	// Owned by cluster.run.
	unmet int       // for how many seconds it has not dialled this node
	down  time.Time // since when there is no link to it; the zero time: there is one

	last atomic.Uint64 // id of the last that it was asked, or was going to be

	mu    sync.Mutex
	asked map[uint64]asked // guarded by mu: what it has not answered whole
	gone  bool             // guarded by mu: it is asked nothing any more
}

// asked is what waits for a node's answers: a part or a question.
type asked interface {
	lost() // there will be none. It may come more than once
}

// expect notes what is going to be asked. It has to be before that is sent.
func (n *node) expect(a asked, id uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gone {
		return false
	}
	n.asked[id] = a
	return true
}

// most is how many devices a node may tell of: it may have told of fewer
// connections some seconds ago, and each may be in several namespaces.
func (n *node) most() int { return int(max(1<<16, 16*n.load.Load())) }

// lost tells whether it is there no more.
func (n *node) lost() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone
}

func (n *node) forget(id uint64) {
	n.mu.Lock()
	delete(n.asked, id)
	n.mu.Unlock()
}

func (n *node) find(id uint64) asked {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[id]
}

// lose tells everything that waits for the node that it waits in vain.
func (n *node) lose(gone bool) {
	n.mu.Lock()
	n.gone = n.gone || gone
	all := n.asked
	n.asked = make(map[uint64]asked)
	n.mu.Unlock()
	for _, a := range all {
		a.lost()
	}
}

// target is a node that has a part of an audience.
type target struct {
	node  *node
	users []string // of Audience.User and Users: those that it holds
}

// sending is what other nodes have to do with a push. The methods of a nil one
// do nothing.
type sending struct {
	c       *cluster
	a       Audience
	targets []target
	waits   bool   // pushes to its one user wait for him to be found, and it waits behind them
	message []byte // what is the same for all nodes

	// Room for what most have one of.
	only  [1]target
	user  [1]string // of Audience.User
	whole flight
	first part

	// Static after begin.
	ack    Ack
	rate   float64
	until  time.Time // the zero time: there is no limit
	flight *flight   // nil: nobody waits

	full  []int      // places in targets: their links had no room at first
	fails []Delivery // without a flight: nodes that did not get it

	// What connections here got, for those that come here meanwhile.
	frames [dialects][]byte // static after begin
	cannot [dialects]Status // static after begin
	once   sync.Once        // makes late
	late   *encoded         // nil: it was not wanted yet, or MPush.Content ended the goroutine
}

// reach tells which other nodes a push goes to, nil for none.
func (c *cluster) reach(a *Audience, p *encoded) (*sending, error) {
	var few [8]target
	targets := c.targets(few[:0], a)
	if a.filtered() {
		to := audienceOf(a, nil)
		if err := to.Check(); err != nil {
			return nil, fmt.Errorf("push: the audience cannot go to other nodes: %w", err)
		}
	}
	waits := a.User != "" && c.moving.waits(keyOf(a.space(), kindUser, a.User))
	if len(targets) == 0 && !waits {
		return nil, nil
	}
	s := &sending{c: c, a: *a, waits: waits}
	s.targets = append(s.only[:0], targets...)
	if a.User != "" {
		s.user[0] = a.User
		for i := range s.targets {
			s.targets[i].users = s.user[:]
		}
	}
	s.message = nodemsg.AppendMessage(make([]byte, 0, p.size()), p.event, p.value)
	return s, nil
}

// room is where a push's flight goes.
func (s *sending) room() *flight {
	if s == nil {
		return new(flight)
	}
	return &s.whole
}

// nobody is where a user goes who has no device here.
func (s *sending) nobody() []string {
	if s == nil {
		return nil
	}
	return s.user[:0]
}

// encoded is the push for devices that come to this node, made when the first
// of them does. That may call MPush.Content. nil: there is none.
func (s *sending) encoded() *encoded {
	s.once.Do(func() {
		p := encoded{
			e: s.c.e, space: s.a.space(), ack: s.flight.ack, auto: s.ack == AutoAck,
			frames: s.frames, cannot: s.cannot,
		}
		var err error
		if p.event, p.value, err = nodemsg.ParseMessage(s.message); err != nil {
			panic("push: what this node encoded: " + err.Error())
		}
		s.late = p.share(p.e)
	})
	return s.late
}

// targets appends the nodes that hold a part of an audience.
func (c *cluster) targets(targets []target, a *Audience) []target {
	var few [8]directory.Origin
	locate := func(key placeKey) []directory.Origin { return c.directory.Locate(few[:0], placeOf(key)) }
	switch {
	case a.All:
		for _, n := range c.all() {
			targets = append(targets, target{node: n})
		}
	case a.Room != "":
		for _, o := range locate(keyOf(a.space(), kindRoom, a.Room)) {
			if n := c.node(o); n != nil {
				targets = append(targets, target{node: n})
			}
		}
	case a.Conn != 0:
		if n := c.nodeOf(a.Conn); n != nil {
			targets = append(targets, target{node: n})
		}
	case a.User != "":
		for _, o := range locate(keyOf(a.space(), kindUser, a.User)) {
			if n := c.node(o); n != nil {
				targets = append(targets, target{node: n})
			}
		}
	default:
		at := make(map[*node]int)
		seen := make(map[string]bool, len(a.Users))
		for _, user := range a.Users {
			if seen[user] {
				continue
			}
			seen[user] = true
			for _, o := range locate(keyOf(a.space(), kindUser, user)) {
				n := c.node(o)
				if n == nil {
					continue
				}
				i, ok := at[n]
				if !ok {
					i = len(targets)
					at[n] = i
					targets = append(targets, target{node: n})
				}
				targets[i].users = append(targets[i].users, user)
			}
		}
	}
	return targets
}

// audienceOf is an audience for a node that holds these of its users.
func audienceOf(a *Audience, users []string) nodemsg.Audience {
	to := nodemsg.Audience{
		User: a.User, Room: a.Room, Conn: uint64(a.Conn), Namespace: a.Namespace,
		AnyTag: a.AnyTag, AllTags: a.AllTags, NoTag: a.NoTag, OS: a.OS, MinVersion: a.MinVersion, Percent: a.Percent,
	}
	for _, id := range a.Except {
		to.Except = append(to.Except, uint64(id))
	}
	switch {
	case a.User != "":
		to.Kind = nodemsg.User
	case a.Room != "":
		to.Kind = nodemsg.Room
	case a.Conn != 0:
		to.Kind = nodemsg.Conn
	case a.All:
		to.Kind = nodemsg.All
	default:
		to.Kind, to.Users = nodemsg.Users, users
	}
	return to
}

// audienceFrom is the same the other way.
func audienceFrom(to *nodemsg.Audience) Audience {
	a := Audience{
		Namespace: to.Namespace,
		AnyTag:    to.AnyTag, AllTags: to.AllTags, NoTag: to.NoTag, OS: to.OS, MinVersion: to.MinVersion, Percent: to.Percent,
	}
	for _, id := range to.Except {
		a.Except = append(a.Except, ConnID(id))
	}
	switch to.Kind {
	case nodemsg.User:
		a.User = to.User
	case nodemsg.Users:
		a.Users = to.Users
	case nodemsg.Room:
		a.Room = to.Room
	case nodemsg.Conn:
		a.Conn = ConnID(to.Conn)
	case nodemsg.All:
		a.All = true
	}
	return a
}

// divide parts the users without a device here into those that are offline,
// and those that other nodes are asked about.
func (s *sending) divide(users []string) (offline, sought []string) {
	switch {
	case s == nil:
		return users, nil
	case s.a.User != "":
		return nil, users
	}
	held := make(map[string]bool, len(users))
	for _, t := range s.targets {
		for _, user := range t.users {
			held[user] = true
		}
	}
	for _, user := range users {
		if held[user] {
			sought = append(sought, user)
		} else {
			offline = append(offline, user)
		}
	}
	return offline, sought
}

// parts is how many nodes a paced push is divided among.
func (s *sending) parts(here int) int {
	n := len(s.targets)
	if here > 0 {
		n++
	}
	return max(n, 1)
}

// begin offers the push to every node at once; finish waits for those whose
// links had no room. f is the flight that waits for the outcomes, nil: nobody
// does; until is when its caller does no more, the zero time: there is no such.
func (s *sending) begin(f *flight, ack Ack, rate float64, until time.Time) {
	if s == nil {
		return
	}
	s.flight, s.ack, s.rate, s.until = f, ack, rate, until
	now := time.Now()
	if f != nil {
		now = f.begin
	}
	if d := s.c.e.cfg.Limits.AckTimeout; d > 0 && rate == 0 && (until.IsZero() || now.Add(d).Before(until)) {
		s.until = now.Add(d)
	}
	s.c.moving.queue(s)
	p := &s.first
	for i := range s.targets {
		t := &s.targets[i]
		if len(t.users) == 0 && (s.a.User != "" || len(s.a.Users) > 0) {
			continue // others wait for them
		}
		if s.send(t, p, nil) == link.ErrFull {
			s.full = append(s.full, i)
		}
		p = nil
	}
}

// beginQuietly is begin for a push for whose outcomes nobody waits.
func (s *sending) beginQuietly(ctx context.Context) {
	until, _ := ctx.Deadline()
	s.begin(nil, NoAck, 0, until)
}

// finish waits for the links that had no room: until ctx ends, or a second in
// all. Without a flight it tells which nodes did not get the push.
func (s *sending) finish(ctx context.Context) []Delivery {
	if s == nil {
		return nil
	}
	if len(s.full) > 0 {
		until := time.Now().Add(fullTime)
		if !s.until.IsZero() && s.until.Before(until) {
			until = s.until
		}
		ctx, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		for _, i := range s.full {
			s.send(&s.targets[i], nil, ctx)
		}
	}
	return s.fails
}

// send sends one node its part, which is p, or a new one. With ctx it waits for
// room, without it says ErrFull and nothing has happened.
func (s *sending) send(t *target, p *part, ctx context.Context) error {
	n := t.node
	push := nodemsg.Push{Ack: uint8(s.ack), Quiet: s.flight == nil, Rate: s.rate, To: audienceOf(&s.a, t.users), Message: s.message}
	if !s.until.IsZero() {
		// The node is to say Timeout before this one has to say NodeLost.
		left := time.Until(s.until)
		push.Wait = uint32(min(max(1, (left-min(left/20, early)).Milliseconds()), math.MaxUint32))
	}
	if len(t.users) > nodemsg.MaxUsers {
		s.fail(t, TooLarge)
		return nil
	}
	if s.flight != nil {
		if p == nil {
			p = new(part)
		}
		p.s, p.node, p.users, p.id = s, n, t.users, n.last.Add(1)
		switch {
		case !s.flight.add(p): // from here on it may be given up
			return nil
		case !n.expect(p, p.id):
			p.lost()
			return nil
		case p.isOver(): // since it was added
			n.forget(p.id)
			return nil
		}
		push.ID = p.id
	}
	scratch := frames.Get().(*[]byte)
	defer releaseFrame(scratch)
	*scratch = nodemsg.AppendPush(append((*scratch)[:0], nodemsg.KindPush), &push)
	var err error
	if ctx == nil {
		err = n.peer.Offer(*scratch)
	} else {
		err = n.peer.Send(ctx, *scratch)
	}
	switch {
	case err == nil:
		s.c.sent.Add(1)
	case err == link.ErrFull && ctx == nil:
		if s.flight != nil {
			n.forget(p.id)
			if !p.withdraw() { // the link broke meanwhile
				return nil
			}
		}
	case s.flight != nil:
		p.fail(statusOf(err))
	default:
		s.fail(t, statusOf(err))
	}
	return err
}

// statusOf is what a link's refusal means for a push.
func statusOf(err error) Status {
	switch {
	case errors.Is(err, link.ErrDown):
		return NodeLost
	case errors.Is(err, link.ErrTooLarge):
		return TooLarge
	}
	return Overloaded
}

// fail notes that a node does not get the push: a delivery for each user that
// it holds, or one for all.
func (s *sending) fail(t *target, status Status) {
	failed := failed(t.node, t.users, s.a.Conn, status)
	if s.flight != nil {
		s.flight.failed(failed)
	} else {
		s.fails = append(s.fails, failed...)
	}
}

// failed are the deliveries that stand for devices of a node that it has not
// told of.
func failed(n *node, users []string, conn ConnID, status Status) (all []Delivery) {
	if len(users) == 0 {
		return []Delivery{{Node: n.member.Load().ID, Conn: conn, Status: status}}
	}
	for _, user := range users {
		all = append(all, Delivery{Node: n.member.Load().ID, UserID: user, Status: status})
	}
	return all
}

const (
	fullTime  = time.Second            // how long a push waits for links without room
	early     = 10 * time.Millisecond  // how much sooner than here the wait for answers ends on other nodes
	moveGrace = 100 * time.Millisecond // how long a user who has just left a node is looked for
	maxMoving = 10_000                 // pushes that wait for that
	maxLooked = 1000                   // users of a push, beyond which it does not look for those who moved
)

var frames = sync.Pool{New: func() any { return new([]byte) }}

func releaseFrame(b *[]byte) {
	if cap(*b) <= 64<<10 {
		frames.Put(b)
	}
}

// part is what another node does of a flight.
type part struct {
	s     *sending
	node  *node // nil: it is not known yet; see moving
	id    uint64
	users []string
	again bool // the second try

	// Guarded by flight.mu.
	devices []int32  // places of its devices in flight.deliveries, as they were announced
	nobody  int      // of users, those before this one are known to have a device there or not
	told    bool     // all were announced: it is counted in flight.open no more
	settled int      // how many of them have a status
	over    bool     // nothing that comes counts any more
	one     [1]int32 // room for devices
}

// add counts a part in, unless the flight is over.
func (f *flight) add(p *part) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || f.open == 0 {
		return false
	}
	if f.parts == nil {
		f.parts = f.onePart[:0]
	}
	f.parts = append(f.parts, p)
	f.open++
	return true
}

// failed notes deliveries that are settled from the start.
func (f *flight) failed(all []Delivery) {
	f.mu.Lock()
	f.failedLocked(all)
	f.mu.Unlock()
	f.counted(all)
}

func (f *flight) failedLocked(all []Delivery) {
	for i := range all {
		all[i].Latency = time.Since(f.begin)
	}
	f.deliveries = append(f.deliveries, all...)
}

func (f *flight) counted(all []Delivery) {
	for i := range all {
		f.e.stats.delivered(all[i].Status, 1)
	}
}

// withdraw takes a part back that was not sent, unless it is over.
func (p *part) withdraw() bool {
	f := p.s.flight
	f.mu.Lock()
	if p.over {
		f.mu.Unlock()
		return false
	}
	p.over, p.told = true, true
	f.mu.Unlock()
	f.close(1)
	return true
}

// answer takes what the node says, and tells whether that was all.
func (p *part) answer(res *nodemsg.Result) (over bool, err error) {
	f := p.s.flight
	if len(p.users) == 1 {
		res.Rows.User = p.users[0]
	}
	var became [statuses]int
	var moved []string
	closed := 0
	var row nodemsg.Row
	now := time.Since(f.begin)
	f.mu.Lock()
	if p.over {
		f.mu.Unlock()
		return true, nil
	}
	for err == nil && res.Rows.Next(&row) {
		if row.New {
			if p.told || int(row.Index) != len(p.devices) || len(p.devices) >= p.node.most() {
				err = nodemsg.ErrMalformed
				break
			}
			if p.devices == nil {
				p.devices = p.one[:0]
				if n := len(p.users); n > 1 {
					p.devices = make([]int32, 0, n)
					f.deliveries = slices.Grow(f.deliveries, n)
				}
			}
			p.devices = append(p.devices, int32(len(f.deliveries)))
			f.deliveries = append(f.deliveries, Delivery{UserID: row.User, DeviceID: row.Device, Node: p.node.member.Load().ID, Protocol: row.Protocol, Conn: ConnID(row.Conn)})
			f.open++
		}
		if !row.Settled {
			continue
		}
		if int(row.Index) >= len(p.devices) {
			err = nodemsg.ErrMalformed
			break
		}
		d := &f.deliveries[p.devices[row.Index]]
		if d.Status != 0 {
			err = nodemsg.ErrMalformed
			break
		}
		d.Status, d.Latency = Status(row.Status), now
		if d.Status == Acked && len(row.Reply) > 0 {
			if f.e.keepReplyLocked(f, len(row.Reply)) {
				d.Reply = slices.Clone(row.Reply)
			} else {
				f.e.stats.limit(limitedReplies)
			}
		}
		became[row.Status]++
		p.settled++
		closed++
	}
	if err == nil && res.Done && int(res.Total) != len(p.devices) {
		err = nodemsg.ErrMalformed
	}
	for _, i := range res.Nobody { // in their order, each once
		if int(i) < p.nobody || int(i) >= len(p.users) {
			if len(p.users) > 0 { // of a connection it says so, too
				err = nodemsg.ErrMalformed
			}
			break
		}
		p.nobody = int(i) + 1
		moved = append(moved, p.users[i])
	}
	if err == nil && res.Done && !p.told {
		p.told = true
		closed++
		if p.s.a.Conn != 0 && len(p.devices) == 0 {
			all := failed(p.node, nil, p.s.a.Conn, Offline)
			f.failedLocked(all)
			became[Offline]++
		}
	}
	over = p.told && p.settled == len(p.devices)
	p.over = over && err == nil
	for status, n := range became {
		f.e.stats.delivered(Status(status), n)
	}
	if len(moved) > 0 && !p.again {
		f.mu.Unlock()
		for _, user := range moved {
			p.s.c.moving.look(p.s, user)
		}
		f.mu.Lock()
	}
	last, nobody := f.closeLocked(closed)
	f.mu.Unlock()
	f.closed(last, nobody)
	if err != nil {
		p.lost()
	}
	return over, err
}

func (p *part) isOver() bool {
	p.s.flight.mu.Lock()
	defer p.s.flight.mu.Unlock()
	return p.over
}

// lost implements asked.
func (p *part) lost() { p.end(NodeLost, NodeLost) }

// fail is for a part that was not sent.
func (p *part) fail(status Status) {
	p.node.forget(p.id)
	p.end(status, status)
}

// giveUp is the end of the wait.
func (p *part) giveUp() {
	known := Timeout
	if p.s.ack == NoAck {
		known = NodeLost
	}
	if !p.end(known, NodeLost) || p.node == nil {
		return
	}
	p.node.forget(p.id)
	b := nodemsg.AppendCancel([]byte{nodemsg.KindCancel}, p.id)
	_ = p.node.peer.Offer(b) // it only saves the node some memory until its own wait ends
}

// end settles what the node has not: known is for devices that it has told of,
// unknown for what stands for the others. It tells whether the part was not
// over.
func (p *part) end(known, unknown Status) bool {
	f := p.s.flight
	f.mu.Lock()
	if p.over {
		f.mu.Unlock()
		return false
	}
	p.over = true
	var rest []Delivery
	closed := 0
	for _, i := range p.devices {
		if d := &f.deliveries[i]; d.Status == 0 {
			d.Status, d.Latency = known, time.Since(f.begin)
			closed++
		}
	}
	f.e.stats.delivered(known, closed)
	if !p.told {
		p.told = true
		closed++
		if p.node != nil {
			rest = failed(p.node, p.users, p.s.a.Conn, unknown)
			f.failedLocked(rest)
		}
	}
	f.mu.Unlock()
	f.counted(rest)
	f.close(closed)
	return true
}

// moving are the pushes to users who were not any more where they were looked
// for: each is looked for once more, and while one is, later pushes to the same
// user wait behind it, so that they keep their order.
type moving struct {
	c *cluster
	n atomic.Int32 // users in lanes

	mu    sync.Mutex
	lanes map[placeKey]*moves // guarded by mu
	count int                 // guarded by mu: pushes in all lanes
	over  bool                // guarded by mu: nobody is looked for any more
}

// moves is the lane of one user. Its goroutine lives while there is something
// in it.
type moves struct {
	pushes []*move       // guarded by moving.mu
	news   chan struct{} // poked when somebody else may hold the user, or a device of his was told of; never closed
}

// move is one push in a lane.
type move struct {
	part   *part // stands for it in the flight
	user   string
	until  time.Time // the end of its grace
	behind bool      // it was not sent yet: it only waits for its turn
}

// waits tells whether pushes to a user wait for him to be found.
func (m *moving) waits(key placeKey) bool {
	if m.n.Load() == 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lanes[key] != nil
}

// queue takes the users out of a push's targets for whom others already wait,
// and lets it wait behind them.
func (m *moving) queue(s *sending) {
	if m.n.Load() == 0 || s.flight == nil {
		return
	}
	behind := make(map[string]bool)
	queue := func(user string) bool {
		if _, asked := behind[user]; !asked {
			behind[user] = m.waits(keyOf(s.a.space(), kindUser, user)) && m.add(s, user, true)
		}
		return behind[user]
	}
	if s.a.User != "" {
		queue(s.a.User) // also one whom no node has at this moment
	}
	for i := range s.targets {
		t := &s.targets[i]
		if slices.ContainsFunc(t.users, queue) {
			t.users = slices.DeleteFunc(slices.Clone(t.users), queue)
		}
	}
}

// look looks once more for a user of a push. If others have him, or may still say
// so, it does not wait for him to come.
func (m *moving) look(s *sending, user string) {
	if len(s.a.Users) > maxLooked {
		return
	}
	if s.flight.expects(user) {
		m.send(s, user, keyOf(s.a.space(), kindUser, user))
	} else {
		m.add(s, user, false)
	}
}

func (m *moving) add(s *sending, user string, behind bool) bool {
	mv := &move{part: &part{s: s, users: []string{user}, again: true}, user: user, until: time.Now().Add(moveGrace), behind: behind}
	key := keyOf(s.a.space(), kindUser, user)
	m.mu.Lock()
	defer m.mu.Unlock()
	lane := m.lanes[key]
	if m.count >= maxMoving || m.over || behind && lane == nil || !s.flight.add(mv.part) {
		return false
	}
	if lane == nil {
		lane = &moves{news: make(chan struct{}, 1)}
		m.lanes[key] = lane
		m.n.Add(1)
		m.c.work.Go(func() { m.run(key, lane) })
	}
	lane.pushes = append(lane.pushes, mv)
	m.count++
	return true
}

// close begins no further lane.
func (m *moving) close() {
	m.mu.Lock()
	m.over = true
	m.mu.Unlock()
}

// changed says that other connections or nodes may hold a place now. It may be
// called with the place's stripe locked.
func (m *moving) changed(key placeKey) {
	if m.n.Load() == 0 {
		return
	}
	m.mu.Lock()
	lane := m.lanes[key]
	m.mu.Unlock()
	if lane != nil {
		select {
		case lane.news <- struct{}{}:
		default:
		}
	}
}

func (m *moving) run(key placeKey, lane *moves) {
	for {
		m.mu.Lock()
		if len(lane.pushes) == 0 {
			delete(m.lanes, key)
			m.n.Add(-1)
			m.mu.Unlock()
			return
		}
		mv := lane.pushes[0]
		m.mu.Unlock()
		m.find(key, lane, mv)
		mv.part.withdraw()
		m.mu.Lock()
		lane.pushes = lane.pushes[1:]
		m.count--
		m.mu.Unlock()
	}
}

// find sends a push to where its user is now. If that is nowhere it waits a
// little for somebody to come.
func (m *moving) find(key placeKey, lane *moves, mv *move) {
	s := mv.part.s
	grace := time.NewTimer(time.Until(mv.until))
	defer grace.Stop()
	for !m.send(s, mv.user, key) && !s.flight.expects(mv.user) {
		select {
		case <-lane.news:
		case <-grace.C:
			return
		case <-s.flight.done:
			return
		case <-m.c.ctx.Done():
			return
		}
	}
}

// send sends a push to nodes that hold its user and were not asked, and to
// connections of this one that do not have it. It tells whether there were any.
func (m *moving) send(s *sending, user string, key placeKey) (found bool) {
	asked := s.flight.asked(user)
	for _, c := range m.c.e.places.collect(nil, key) {
		if !s.a.matches(c) {
			continue
		}
		found = true
		if s.flight.has(c) {
			continue
		}
		if p := s.encoded(); p != nil {
			s.flight.sendLate(c, user, p)
		}
	}
	for _, o := range m.c.directory.Locate(nil, placeOf(key)) {
		n := m.c.node(o)
		if n == nil || slices.Contains(asked, n) {
			continue
		}
		found = true
		t := target{n, []string{user}}
		switch s.send(&t, &part{again: true}, nil) {
		case nil:
			m.c.found.Add(1)
		case link.ErrFull:
			s.fail(&t, Overloaded)
		}
	}
	return found
}

// expects tells whether the flight has a device of a user, or a node may still
// tell of one.
func (f *flight) expects(user string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.deliveries, func(d Delivery) bool { return d.UserID == user }) ||
		slices.ContainsFunc(f.parts, func(p *part) bool { return p.node != nil && !p.told && slices.Contains(p.users, user) })
}

// asked are the nodes that were asked about a user.
func (f *flight) asked(user string) (nodes []*node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.parts {
		if p.node != nil && slices.Contains(p.users, user) {
			nodes = append(nodes, p.node)
		}
	}
	return nodes
}

// served is a push of another node that waits for devices of this one.
type served struct {
	a  *answers
	id uint64
	f  flight

	changed []int32 // guarded by a.mu: deliveries to look at, unless they are few
	scan    bool    // guarded by a.mu: look at all
	waits   bool    // guarded by a.mu: it stands in a.waiting
	over    bool    // guarded by a.mu: everything was told

	// Owned by the link's writer.
	announced int    // of the deliveries
	done      bool   // it was told that all are
	told      []bool // which of them are settled
	left      int    // how many are not

	one [1]bool // room for told
}

// answers is what goes back over a link that a peer dialled.
type answers struct {
	c   *cluster
	in  *link.In
	ctx context.Context // ends with the link
	end context.CancelFunc

	frame []byte // the link's worker's: what it is to push next

	waits deadline.Queue // of flights: as long as the node says; of paced ones AckTimeout from the last device on

	mu      sync.Mutex
	frames  []byte             // guarded by mu: whole ones, ready to go
	waiting []*served          // guarded by mu: those with something to tell, from head on
	head    int                // guarded by mu
	flights map[uint64]*served // guarded by mu
	over    bool               // guarded by mu: the link is
	room    chan struct{}      // guarded by mu: closed when frames are taken; nil while nobody waits
}

const (
	maxAnswers = 4 << 20 // bytes of frames that wait for a link; beyond it no request is read
	maxServed  = 65_536  // pushes of one peer that wait for devices; beyond it they are Overloaded
	maxRows    = 256     // of one Result
	maxResult  = 1 << 20 // bytes after which a Result ends
	maxReply   = 8 << 20 // bytes of an answer; a larger one does not go to another node
)

// settled implements what a flight tells of a delivery.
func (s *served) settled(i int) { s.a.note(s, int32(i)) }

// ended says that everything is settled.
func (s *served) ended() {
	s.f.flights.Done()
	s.a.waits.Remove(&s.f.deadline)
	s.a.note(s, -1)
}

// note makes the link's writer look at a delivery, or with -1 at all.
func (a *answers) note(s *served, i int32) {
	a.mu.Lock()
	if a.over || s.over {
		a.mu.Unlock()
		return
	}
	if i < 0 || len(s.told) <= fewMembers {
		s.scan = true
	} else {
		s.changed = append(s.changed, i)
	}
	wake := !s.waits
	if wake {
		s.waits = true
		a.waiting = append(a.waiting, s)
	}
	a.mu.Unlock()
	if wake {
		a.in.Ready(a)
	}
}

// push hands a frame to the link's writer. While too many wait, it waits.
func (a *answers) push(frame []byte) {
	a.mu.Lock()
	for len(a.frames) > 0 && len(a.frames)+len(frame) > maxAnswers && !a.over && a.ctx.Err() == nil {
		if a.room == nil {
			a.room = make(chan struct{})
		}
		room := a.room
		a.mu.Unlock()
		select {
		case <-room:
		case <-a.ctx.Done():
		}
		a.mu.Lock()
	}
	if a.over || a.ctx.Err() != nil {
		a.mu.Unlock()
		return
	}
	first := len(a.frames) == 0 // else that one does it
	a.frames = append(a.frames, frame...)
	a.mu.Unlock()
	if first {
		a.in.Ready(a)
	}
}

// Append implements link.Source.
func (a *answers) Append(dst []byte, room int) (out []byte, more bool) {
	from := len(dst)
	a.mu.Lock()
	dst = append(dst, a.frames...)
	if a.frames = a.frames[:0]; cap(a.frames) > 256<<10 {
		a.frames = nil
	}
	if a.room != nil {
		close(a.room)
		a.room = nil
	}
	for a.head < len(a.waiting) && len(dst)-from < room {
		s := a.waiting[a.head]
		changed, scan := s.changed, s.scan
		s.changed, s.scan = nil, false
		a.mu.Unlock()
		var rest, over bool
		dst, rest, over = s.append(dst, changed, scan)
		if over {
			s.f.land()
		}
		a.mu.Lock()
		if a.over {
			a.mu.Unlock()
			return dst, false
		}
		switch {
		case over:
			s.over = true
			if a.flights[s.id] == s {
				delete(a.flights, s.id)
			}
		case rest: // in its turn
			s.scan = true
			a.waiting = append(a.waiting, s)
		case len(s.changed) > 0 || s.scan:
			a.waiting = append(a.waiting, s)
		default:
			s.waits = false
		}
		a.waiting[a.head] = nil
		a.head++
	}
	if a.head >= len(a.waiting)/2 {
		a.waiting, a.head = slices.Delete(a.waiting, 0, a.head), 0
	}
	more = len(a.waiting) > 0 || len(a.frames) > 0
	a.mu.Unlock()
	return dst, more
}

// append appends what is to be told of a push: devices are announced in their
// order, and what became of those that are announced is told. A Result has
// maxRows at most, and ends behind the row with which it has maxResult bytes.
// rest: there is more. over: there is nothing left to tell.
func (s *served) append(dst []byte, changed []int32, scan bool) (out []byte, rest, over bool) {
	f := &s.f
	f.mu.Lock()
	defer f.mu.Unlock()
	from, rows := len(dst), 0
	full := func() bool { return rows >= maxRows || len(dst)-from >= maxResult }
	dst, mark := link.Begin(dst, nodemsg.KindResult)
	dst = nodemsg.AppendResultHead(dst, &nodemsg.Result{ID: s.id})
	settle := func(i int) {
		d := &f.deliveries[i]
		if d.Status == 0 || s.told[i] {
			return
		}
		if full() {
			rest = true
			return
		}
		rows++
		s.told[i] = true
		s.left--
		dst = nodemsg.AppendRow(dst, &nodemsg.Row{Index: uint32(i), Settled: true, Status: uint8(d.Status), Reply: s.a.reply(d)})
	}
	for i := 0; scan && !rest && i < s.announced; i++ {
		settle(i)
	}
	for _, i := range changed {
		if int(i) < s.announced {
			settle(int(i))
		}
	}
	for ; s.announced < len(s.told) && !full(); s.announced++ {
		d := &f.deliveries[s.announced]
		row := announce(d, s.announced)
		row.Reply = s.a.reply(d)
		if row.Settled {
			s.told[s.announced] = true
			s.left--
		}
		rows++
		dst = nodemsg.AppendRow(dst, &row)
	}
	dst = link.End(dst, mark)
	switch {
	case s.announced < len(s.told):
		rest = true
	case !s.done:
		s.done = true
		dst, mark = link.Begin(dst, nodemsg.KindResult)
		dst = link.End(nodemsg.AppendResultHead(dst, &nodemsg.Result{ID: s.id, Done: true, Total: uint32(len(s.told))}), mark)
	}
	return dst, rest, !rest && s.left == 0
}

// reply is what came with an ack, unless it is too much for a frame.
func (a *answers) reply(d *Delivery) []byte {
	if len(d.Reply) > maxReply {
		a.c.e.stats.limit(limitedReplies)
		return nil
	}
	return d.Reply
}

// announce is the row that tells of a device for the first time.
func announce(d *Delivery, i int) nodemsg.Row {
	return nodemsg.Row{
		Index: uint32(i), New: true, User: d.UserID, Device: d.DeviceID, Protocol: d.Protocol, Conn: uint64(d.Conn),
		Settled: d.Status != 0, Status: uint8(d.Status),
	}
}

// servePush does with the devices of this node what another one asks. It runs
// on the worker of that link, so pushes over one link keep their order.
func (c *cluster) servePush(a *answers, body []byte) error {
	in, err := nodemsg.ParsePush(body)
	if err != nil {
		return err
	}
	audience := audienceFrom(&in.To)
	p := encoded{e: c.e, space: audience.space(), event: in.Event, value: in.Value}
	if err := cmp.Or(audience.one(), checkEvent(p.event)); err != nil {
		if !in.Quiet {
			a.result(&nodemsg.Result{ID: in.ID, Done: true})
		}
		return err
	}
	if ack := Ack(in.Ack); ack != NoAck {
		p.ack, p.auto = c.e.nextAck(), ack == AutoAck
	}
	c.served.Add(1)
	if in.Quiet {
		return c.serveQuietly(a, &audience, &p)
	}
	var few [fewMembers]*Conn
	conns, owners, offline := c.e.appendConns(few[:0], nil, &audience)
	if audience.User != "" {
		owners = []string{audience.User}
	}
	if audience.Conn != 0 && len(conns) > 0 {
		p.space = conns[0].Namespace()
	}
	nobody := nobody(&audience, offline)
	switch {
	case len(conns) == 0:
		a.result(&nodemsg.Result{ID: in.ID, Done: true, Nobody: nobody})
	case p.ack == 0 && in.Rate == 0 && len(conns) <= fewMembers && !c.e.anyPending(conns):
		a.begin(&nodemsg.Result{ID: in.ID, Done: true, Total: uint32(len(conns)), Nobody: nobody})
		for i, conn := range conns {
			var d Delivery
			describe(&d, conn, owners, i)
			d.Status = conn.push(&p, false)
			row := announce(&d, i)
			a.frame = nodemsg.AppendRow(a.frame, &row)
		}
		a.pushFrame()
	default:
		c.serveFlight(a, &in, conns, owners, nobody, &p)
	}
	return nil
}

// serveQuietly pushes to a room or to all for a node that wants no rows.
func (c *cluster) serveQuietly(a *answers, audience *Audience, p *encoded) error {
	key, ok := audience.place()
	if !ok {
		return nodemsg.ErrMalformed
	}
	var few [fewMembers]*Conn
	var m Message
	if !audience.filtered() {
		conns, n := c.e.places.collectFew(few[:0], key)
		_, _ = c.e.pushPlace(a.ctx, key, conns, n, &m, p, nil)
		return nil
	}
	conns, _, _ := c.e.appendConns(few[:0], nil, audience)
	_, _ = c.e.pushRoom(a.ctx, conns, &m, p, nil)
	return nil
}

// nobody are the places, among the users asked for, of those that are offline
// here.
func nobody(a *Audience, offline []string) (at []uint32) {
	if len(offline) == 0 {
		return nil
	}
	if a.User != "" {
		return []uint32{0}
	}
	next := 0 // offline has the order of Users
	for i, user := range a.Users {
		if next < len(offline) && user == offline[next] {
			at = append(at, uint32(i))
			next++
		}
	}
	return at
}

// begin begins a Result in a.frame, to which rows may be appended.
func (a *answers) begin(head *nodemsg.Result) {
	a.frame, _ = link.Begin(a.frame[:0], nodemsg.KindResult)
	a.frame = nodemsg.AppendResultHead(a.frame, head)
}

// pushFrame ends and pushes what begins in a.frame.
func (a *answers) pushFrame() {
	a.push(link.End(a.frame, 0))
	if cap(a.frame) > 64<<10 {
		a.frame = nil
	}
}

// result answers a push without rows.
func (a *answers) result(head *nodemsg.Result) {
	a.begin(head)
	a.pushFrame()
}

// serveFlight begins a push that does not settle at once.
func (c *cluster) serveFlight(a *answers, in *nodemsg.Push, conns []*Conn, owners []string, nobody []uint32, p *encoded) {
	for _, conn := range conns {
		p.frame(conn.dialect) // which may call a hook: not when something has begun
	}
	if len(nobody) > 0 { // which are told of before the devices
		a.result(&nodemsg.Result{ID: in.ID, Nobody: nobody})
	}
	s := &served{a: a, id: in.ID, left: len(conns)}
	if s.told = s.one[:]; len(conns) > 1 {
		s.told = make([]bool, len(conns))
	}
	f := &s.f
	f.init(c.e, conns, owners, p.ack)
	f.sink, f.flights = s, c.e.counted()
	wait := time.Duration(in.Wait) * time.Millisecond
	if wait > 0 && in.Rate == 0 {
		a.waits.Add(&f.deadline, f.begin.Add(wait), f)
	}
	a.mu.Lock()
	full := len(a.flights) >= maxServed || a.over || a.flights[s.id] != nil // an id of which there is one already is a fault of the peer's
	if !full {
		a.flights[s.id] = s
	}
	a.mu.Unlock()
	switch {
	case full:
		for i := range conns {
			f.settle(i, Overloaded, nil)
		}
	case in.Rate > 0:
		f.done = make(chan struct{})
		push, rate := p.share(c.e), in.Rate
		go func() {
			ctx, cancel := context.WithCancel(a.ctx)
			defer cancel()
			if wait > 0 {
				ctx, cancel = context.WithTimeout(ctx, wait)
				defer cancel()
			}
			f.pace(ctx, push, nil, rate)
			if d := c.e.cfg.Limits.AckTimeout; d > 0 {
				a.waits.Add(&f.deadline, time.Now().Add(d), f) // from the last device on
			}
			f.depart()
			f.wait(ctx)
		}()
		a.note(s, -1)
		return
	default:
		f.launch(a.ctx, p, nil)
	}
	f.depart()
	a.note(s, -1)
}

// cancel ends the wait of a push that nobody waits for any more.
func (a *answers) cancel(id uint64) {
	a.mu.Lock()
	s := a.flights[id]
	a.mu.Unlock()
	if s != nil {
		s.f.giveUp()
	}
}

// close is the end of the link: nobody waits for the rest.
func (a *answers) close() {
	a.end()
	a.mu.Lock()
	a.over = true
	flights := a.flights
	a.flights, a.waiting, a.head, a.frames = nil, nil, 0, nil
	a.mu.Unlock()
	for _, s := range flights {
		s.f.land()
	}
}

// question is what several nodes are asked besides pushes.
type question struct {
	c     *cluster
	calls []*call
	begin time.Time
	done  chan struct{} // closed when nothing is open

	mu      sync.Mutex
	open    int      // guarded by mu: nodes that have not answered whole
	n       int      // guarded by mu
	errs    []error  // guarded by mu
	devices []Device // guarded by mu
}

// call is one node's part of a question.
type call struct {
	q     *question
	node  *node
	id    uint64
	frame []byte // until it is sent

	over    bool   // guarded by q.mu
	devices int    // guarded by q.mu: that it told of
	seq     uint64 // guarded by q.mu: how far the node's history was when it was done
}

// ask asks the nodes that hold an audience to do something to it; nil if there
// are none.
func (c *cluster) ask(op uint8, a *Audience, text string) (*question, error) {
	to := audienceOf(a, nil)
	if err := to.Check(); err != nil {
		return nil, fmt.Errorf("push: the audience cannot go to other nodes: %w", err)
	}
	targets := c.targets(nil, a)
	if len(targets) == 0 {
		return nil, nil
	}
	q := &question{c: c, begin: time.Now(), done: make(chan struct{}), open: len(targets)}
	wait := uint32(min(c.e.cfg.Limits.AckTimeout.Milliseconds(), math.MaxUint32))
	for _, t := range targets {
		k := &call{q: q, node: t.node}
		q.calls = append(q.calls, k)
		k.id = t.node.last.Add(1)
		if !t.node.expect(k, k.id) {
			k.lost()
			continue
		}
		k.frame = nodemsg.AppendCall([]byte{nodemsg.KindCall}, &nodemsg.Call{ID: k.id, Op: op, Wait: wait, To: audienceOf(a, t.users), Text: text})
		if k.offer() != link.ErrFull {
			k.frame = nil
		}
	}
	return q, nil
}

// offer sends the call, unless the link has no room.
func (k *call) offer() error {
	err := k.node.peer.Offer(k.frame)
	if err != nil && err != link.ErrFull {
		k.fail(err)
	}
	return err
}

// send sends the call, and waits for room.
func (k *call) send(ctx context.Context) {
	if err := k.node.peer.Send(ctx, k.frame); err != nil {
		k.fail(err)
	}
}

func (k *call) fail(err error) {
	k.node.forget(k.id)
	k.end(fmt.Errorf("push: node %s: %w", k.node.member.Load().ID, statusErrors[statusOf(err)]))
}

// wait returns what came of a question: at the latest when ctx or AckTimeout
// ends.
func (q *question) wait(ctx context.Context) (n int, devices []Device, errs []error) {
	if q == nil {
		return 0, nil, nil
	}
	if d := q.c.e.cfg.Limits.AckTimeout; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, q.begin.Add(d))
		defer cancel()
	}
	full, cancel := context.WithTimeout(ctx, fullTime)
	defer cancel()
	for _, k := range q.calls {
		if k.frame != nil {
			k.send(full)
		}
	}
	select {
	case <-q.done:
	case <-ctx.Done():
		for _, k := range q.calls {
			k.node.forget(k.id)
			k.lost()
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n, q.devices, q.errs
}

// answer takes what the node says, and tells whether that was all.
func (k *call) answer(ret *nodemsg.Return) (over bool) {
	q := k.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if k.over {
		return true
	}
	id := k.node.member.Load().ID
	q.n += int(min(ret.N, maxConnsOfNode))
	for _, text := range ret.Errors {
		q.errs = append(q.errs, fmt.Errorf("push: node %s: %s", id, text))
	}
	if k.devices += len(ret.Devices); k.devices > k.node.most() {
		k.endLocked(fmt.Errorf("push: node %s: %w", id, ErrNodeLost))
		return true
	}
	for _, d := range ret.Devices {
		q.devices = append(q.devices, Device{UserID: d.User, DeviceID: d.Device, Node: id, Protocol: d.Protocol, Namespace: d.Namespace, Conn: ConnID(d.Conn), OS: d.OS, Version: d.Version, Tags: d.Tags})
	}
	if ret.Done {
		k.seq = ret.Seq
		k.endLocked(nil)
	}
	return k.over
}

// known waits until this node knows what has changed on others by a question:
// what it pushes next goes there. It is a matter of a flush of their links.
func (q *question) known(ctx context.Context) {
	if q == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, fullTime)
	defer cancel()
	for _, k := range q.calls {
		q.mu.Lock()
		seq := k.seq
		q.mu.Unlock()
		for {
			if have, _ := q.c.directory.Have(k.node.member.Load().Origin); have >= seq || k.node.lost() {
				break
			}
			if sleep(ctx, knownStep, q.c.e.cutting) != nil {
				return
			}
		}
	}
}

const knownStep = 2 * time.Millisecond

const maxConnsOfNode = 1 << 31

// lost implements asked.
func (k *call) lost() {
	k.end(fmt.Errorf("push: node %s: %w", k.node.member.Load().ID, ErrNodeLost))
}

func (k *call) end(err error) {
	k.q.mu.Lock()
	defer k.q.mu.Unlock()
	k.endLocked(err)
}

func (k *call) endLocked(err error) {
	if k.over {
		return
	}
	k.over = true
	if err != nil {
		k.q.errs = append(k.q.errs, err)
	}
	if k.q.open--; k.q.open == 0 {
		close(k.q.done)
	}
}

// serveCall does what another node asks besides pushes, on the worker of that
// link: behind the pushes that came before.
func (c *cluster) serveCall(a *answers, body []byte) error {
	in, err := nodemsg.ParseCall(body)
	if err != nil {
		return err
	}
	audience := audienceFrom(&in.To)
	ret := nodemsg.Return{ID: in.ID}
	if err := audience.one(); err != nil {
		ret.Done, ret.Errors = true, []string{err.Error()}
		a.returns(&ret)
		return err
	}
	ctx := a.ctx
	if in.Wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(in.Wait)*time.Millisecond)
		defer cancel()
	}
	var n int
	switch in.Op {
	case nodemsg.Devices:
		conns, _, _ := c.e.appendConns(nil, nil, &audience)
		for _, conn := range conns {
			d := conn.device()
			ret.Devices = append(ret.Devices, nodemsg.Device{User: d.UserID, Device: d.DeviceID, Protocol: d.Protocol, Namespace: d.Namespace, OS: d.OS, Version: d.Version, Conn: uint64(d.Conn), Tags: d.Tags})
			if len(ret.Devices) == maxRows {
				a.returns(&ret)
				ret.Devices = ret.Devices[:0]
			}
		}
	case nodemsg.Join:
		if err = checkName("room", in.Text); err == nil {
			n, err = c.e.each(ctx, audience, joins(in.Text))
		}
	case nodemsg.Leave:
		n, err = c.e.each(ctx, audience, leaves(in.Text))
	case nodemsg.Kick:
		n, err = c.e.each(ctx, audience, kicks(in.Text))
	}
	ret.Done, ret.N = true, uint64(n)
	ret.Seq, _, _ = c.directory.Position()
	if err != nil {
		ret.Errors = append(ret.Errors, err.Error())
	}
	a.returns(&ret)
	return nil
}

func (a *answers) returns(ret *nodemsg.Return) {
	a.frame, _ = link.Begin(a.frame[:0], nodemsg.KindReturn)
	a.frame = nodemsg.AppendReturn(a.frame, ret)
	a.pushFrame()
}

package push

// Membership, and nothing else yet: which nodes there are. memberlist finds
// peers, notices deaths and carries a few bytes about each node; this file
// checks the configuration, derives the keys, keeps the table behind
// [Engine.Nodes] and finds back what a partition took away. No push travels
// between nodes: each reaches the connections of its own node.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push/internal/pushjson"
	"github.com/hashicorp/memberlist"
	"github.com/vmihailenco/msgpack/v5"
)

// Cluster joins an engine to others. Nodes with the same Name and a common
// secret find each other through Seeds; after that every node knows every
// other, and [Engine.Nodes] tells them. For now the nodes only know each other:
// a push reaches the connections of the node it was made on.
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

const (
	gossipPort = 7946 // memberlist's

	tickTime      = time.Second      // how often run looks what is due
	joinTime      = 10 * time.Second // how long Ready waits for a first peer
	rejoinLongest = 30 * time.Second // the longest pause between two attempts: 1, 2, 4 … s
	rememberLost  = 24 * time.Hour   // how long a vanished node is looked for
	conflictAfter = 15 * time.Second // a moved node's old run is noticed dead before this
	lookupTime    = 5 * time.Second  // for one seed's name
	leaveTime     = 600 * time.Millisecond

	maxNodes = 10_000 // members; further ones are ignored
	maxLost  = 1024   // vanished nodes that are looked for; beyond it one is forgotten
	maxJoins = 16     // attempts at once
	maxNotes = 256    // log lines that wait; beyond it they are counted and dropped
)

// cluster is a node's membership. Two runs of one node id are two members:
// memberlist knows them as id~epoch, the epoch being the start in Unix
// milliseconds, so a node that restarts is back at once at whatever address.
type cluster struct {
	// Static after startCluster.
	node     string
	epoch    uint64
	name     string // id~epoch, memberlist's
	insecure bool
	seeds    []hostPort
	log      *slog.Logger
	ml       *memberlist.Memberlist // never called from a delegate: it holds its lock there

	ctx     context.Context // ends attempts to join, lookups, dials and run
	stop    context.CancelFunc
	work    sync.WaitGroup // run and what it starts
	cut     context.Context
	cutNow  context.CancelFunc // makes leave hurry
	leaving atomic.Bool
	left    chan struct{} // closed when leave is through
	settled chan struct{} // closed by run, without seeds before it: a peer was reached, or none within joinTime
	wake    chan struct{} // capacity 1, never closed: there is something for run

	mu        sync.Mutex // guards what follows; a leaf: nothing is called or locked under it
	draining  bool
	met       bool                    // a peer was reached once
	peers     map[string]peer         // by memberlist's name, this node included
	lost      map[string]*lostNode    // by id
	joining   map[netip.AddrPort]bool // attempts under way
	conflicts map[string]time.Time    // ids that several runs have, since when
	notes     []note
	unnoted   int // dropped
}

// peer is one run of one node.
type peer struct {
	id       string
	epoch    uint64
	addr     netip.AddrPort
	draining bool
	gone     bool // it said goodbye; memberlist has not noticed yet
	disputed bool // told in the log as one of two with this id
}

// lostNode is a node that vanished without goodbye: dead, or on the other side
// of a partition, and memberlist never looks for it again.
type lostNode struct {
	addr  netip.AddrPort
	since time.Time
	next  time.Time
	pause time.Duration
}

type hostPort struct {
	host string
	port uint16
}

// startCluster checks the configuration, listens and begins to look for peers.
// It does not wait for them.
func startCluster(cfg Cluster, logger *slog.Logger) (*cluster, error) {
	set, err := cfg.check()
	if err != nil {
		return nil, err
	}
	c := &cluster{
		node:      set.node,
		epoch:     uint64(time.Now().UnixMilli()),
		insecure:  cfg.Insecure && len(set.keys) == 0,
		seeds:     set.seeds,
		log:       logger,
		left:      make(chan struct{}),
		settled:   make(chan struct{}),
		wake:      make(chan struct{}, 1),
		peers:     make(map[string]peer),
		lost:      make(map[string]*lostNode),
		joining:   make(map[netip.AddrPort]bool),
		conflicts: make(map[string]time.Time),
	}
	c.name = runName(c.node, c.epoch)
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.cut, c.cutNow = context.WithCancel(context.Background())

	ml := memberlist.DefaultLANConfig()
	ml.Name = c.name
	ml.Label = set.name
	ml.EnableCompression = false
	ml.DeadNodeReclaimTime = time.Second
	ml.Delegate, ml.Events, ml.Alive, ml.Conflict = (*delegate)(c), (*delegate)(c), (*delegate)(c), (*delegate)(c)
	ml.LogOutput, ml.Logger = nil, log.New((*logWriter)(c), "", 0)
	if len(set.keys) > 0 {
		if ml.Keyring, err = memberlist.NewKeyring(set.keys, set.keys[0]); err != nil {
			return nil, fmt.Errorf("push: Cluster.Secrets: %w", err)
		}
	}

	inner := cfg.Transport
	abandon := func() {}
	if inner == nil {
		sockets, err := listenGossip(set.bind, ml.Logger)
		if err != nil {
			return nil, fmt.Errorf("push: Cluster.Bind: %w", err)
		}
		// Not waited for: Shutdown waits until a connection that just came in
		// is taken, and nobody takes it.
		abandon = func() { go sockets.Shutdown() }
		inner = sockets
		ml.BindPort = sockets.GetAutoBindPort()
	}
	if set.advertise.IsValid() {
		ml.AdvertiseAddr, ml.AdvertisePort = set.advertise.Addr().String(), int(set.advertise.Port())
		if ml.AdvertisePort == 0 {
			ml.AdvertisePort = ml.BindPort
		}
	}
	ip, _, err := inner.FinalAdvertiseAddr(ml.AdvertiseAddr, ml.AdvertisePort)
	if err != nil {
		abandon()
		return nil, fmt.Errorf("push: Cluster.Advertise: %w", err)
	}
	if c.insecure && !ip.IsLoopback() {
		abandon()
		return nil, fmt.Errorf("push: Cluster.Insecure is for loopback only, and this node would advertise %s: %s", ip, wantSecret)
	}
	ml.Transport = &gossipTransport{Transport: inner, ctx: c.ctx}
	if c.ml, err = memberlist.Create(ml); err != nil {
		abandon()
		return nil, fmt.Errorf("push: Cluster: %w", err)
	}
	if len(c.seeds) == 0 {
		close(c.settled)
	}
	c.work.Go(c.run)
	return c, nil
}

func runName(id string, epoch uint64) string { return id + "~" + strconv.FormatUint(epoch, 36) }

// id is this node's name.
func (c *cluster) id() string { return c.node }

// nodes tells the nodes, sorted by id, from memory. Of several runs of an id
// it tells the newest, and of this node's own id itself.
func (c *cluster) nodes() []Node {
	c.mu.Lock()
	runs := make(map[string]peer, len(c.peers))
	for name, p := range c.peers {
		if p.gone && name != c.name {
			continue
		}
		old, ok := runs[p.id]
		if !ok || name == c.name || p.id != c.node && p.epoch > old.epoch {
			runs[p.id] = p
		}
	}
	c.mu.Unlock()

	nodes := make([]Node, 0, len(runs))
	for _, p := range runs {
		n := Node{ID: p.id, Addr: p.addr.String(), State: NodeUp, Self: p.id == c.node, Started: time.UnixMilli(int64(p.epoch)).UTC()}
		if p.draining {
			n.State = NodeDraining
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	return nodes
}

// ready is nil once a peer was reached or joinTime is over; without seeds at
// once.
func (c *cluster) ready() error {
	select {
	case <-c.settled:
		return nil
	default:
		return errors.New("push: joining the cluster, no peer reached yet")
	}
}

// drain tells the peers that this node shuts down. It does not wait for them.
func (c *cluster) drain() {
	c.mu.Lock()
	told := c.draining
	c.draining = true
	c.mu.Unlock()
	if !told && !c.leaving.Load() {
		// The news is queued at once and goes out with the next gossip, in a
		// fifth of a second; the timeout, and so the error, is only about
		// waiting until it has gone to all.
		_ = c.ml.UpdateNode(time.Nanosecond)
	}
}

// leave says goodbye, waits until it has spread or ctx ends, and shuts
// everything down. Every call returns when that is done, and each ctx that
// ends makes it hurry.
func (c *cluster) leave(ctx context.Context) {
	if ctx.Err() != nil {
		c.cutNow()
	}
	defer context.AfterFunc(ctx, c.cutNow)()
	if c.leaving.Swap(true) {
		<-c.left
		return
	}
	defer close(c.left)
	c.stop()
	c.work.Wait()

	// Three roads, for the sooner and for the surer: a packet straight to each
	// peer, which hides this node at once; memberlist's own news, with the next
	// gossip; and the silence of this node, noticed within seconds.
	bye := packBye(c.node, c.epoch)
	others := 0
	for name, p := range c.snapshot() {
		if name != c.name {
			others++
			_ = c.ml.SendToAddress(memberlist.Address{Addr: p.addr.String(), Name: name}, bye)
		}
	}
	// Leave queues the news at once; the timeout, and so the error, is only
	// about waiting until it has gone to all, which this does itself to be able
	// to stop.
	_ = c.ml.Leave(time.Nanosecond)
	if others > 0 {
		t := time.NewTimer(leaveTime)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.cut.Done():
		}
	}
	_ = c.ml.Shutdown() // returns nil
	c.cutNow()
	c.mu.Lock()
	maps.DeleteFunc(c.peers, func(name string, _ peer) bool { return name != c.name })
	c.mu.Unlock()
}

func (c *cluster) snapshot() map[string]peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.peers)
}

// run looks for peers, notices conflicts, and does all the logging, so that a
// slow or a curious slog.Handler never runs under memberlist's lock.
func (c *cluster) run() {
	settle := time.NewTimer(joinTime)
	defer settle.Stop()
	tick := time.NewTicker(tickTime)
	defer tick.Stop()
	var (
		speaker   complaints
		settled   = len(c.seeds) == 0
		nextSeeds time.Time
		pause     = time.Second
	)
	for {
		now := time.Now()
		if nextSeeds.Sub(now) < tickTime/2 && len(c.seeds) > 0 {
			if c.alone() {
				nextSeeds, pause = now.Add(pause), min(2*pause, rejoinLongest)
			} else {
				nextSeeds, pause = now.Add(rejoinLongest), time.Second
			}
			c.work.Go(c.joinSeeds)
		}
		for _, addr := range c.due(now) {
			c.startJoin(addr, false)
		}
		c.checkConflicts(now)
		speaker.speak(c.log, c.takeNotes())

		over := false
		select {
		case <-c.ctx.Done():
			speaker.speak(c.log, c.takeNotes())
			return
		case <-tick.C:
		case <-c.wake:
		case <-settle.C:
			over = true
		}
		if !settled && (over || c.hasMet()) {
			settled = true
			close(c.settled)
		}
	}
}

// alone: there is no other node now.
func (c *cluster) alone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.peers) <= 1
}

// hasMet: there has been another node.
func (c *cluster) hasMet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.met
}

// due tells which lost nodes are to be tried now.
func (c *cluster) due(now time.Time) (addrs []netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, l := range c.lost {
		switch {
		case now.Sub(l.since) > rememberLost:
			delete(c.lost, id)
		case l.next.Sub(now) < tickTime/2:
			// A little early, so that two halves of a cluster spread out.
			l.pause = min(2*l.pause, rejoinLongest)
			l.next = now.Add(l.pause - rand.N(l.pause/10))
			addrs = append(addrs, l.addr)
		}
	}
	return addrs
}

// joinSeeds tries every address of every seed that is no member.
func (c *cluster) joinSeeds() {
	for _, s := range c.seeds {
		var ips []netip.Addr
		if ip, err := netip.ParseAddr(s.host); err == nil {
			ips = []netip.Addr{ip}
		} else {
			ctx, cancel := context.WithTimeout(c.ctx, lookupTime)
			ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", s.host)
			cancel()
			if err != nil && c.ctx.Err() == nil {
				c.note(note{level: slog.LevelWarn, msg: "cluster: looking up a seed", same: s.host,
					args: []any{"seed", s.host, "err", err}})
			}
		}
		for _, ip := range ips {
			if c.insecure && !ip.Unmap().IsLoopback() {
				continue // what localhost stands for is not ours to know
			}
			c.startJoin(netip.AddrPortFrom(ip.Unmap(), s.port), true)
		}
	}
}

// startJoin begins to join the node at addr, unless it is a member, is being
// tried, or enough others are.
func (c *cluster) startJoin(addr netip.AddrPort, seed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.joining[addr] || len(c.joining) >= maxJoins {
		return
	}
	for _, p := range c.peers {
		if p.addr == addr {
			return
		}
	}
	c.joining[addr] = true
	c.work.Go(func() { c.join(addr, seed) })
}

func (c *cluster) join(addr netip.AddrPort, seed bool) {
	_, err := c.ml.Join([]string{addr.String()})
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.joining, addr)
	if err == nil || c.ctx.Err() != nil {
		return
	}
	// memberlist lists its errors one below the other, each with a star.
	_, text, _ := strings.Cut(err.Error(), "* ")
	text = clip(strings.TrimPrefix(strings.TrimSpace(text), "failed to join "+addr.String()+": "))
	why := hint(text)
	n := note{level: slog.LevelDebug, msg: "cluster: cannot join", same: addr.String(), args: []any{"addr", addr, "err", text}}
	if why != "" {
		n.args = append(n.args, "hint", why)
	}
	if seed && len(c.peers) <= 1 || why != "" {
		n.level = slog.LevelWarn
	}
	c.noteLocked(n)
}

const twoOfOneID = "cluster: two nodes run under one id, Cluster.Node must be unlike every other's"

// checkConflicts tells of two nodes that run under one id at two addresses. A
// node that moved has two runs, too, until the old one is noticed dead.
func (c *cluster) checkConflicts(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, since := range c.conflicts {
		var names []string
		for name, p := range c.peers {
			if p.id == id && !p.gone {
				names = append(names, name)
			}
		}
		if len(names) < 2 {
			delete(c.conflicts, id)
			continue
		}
		if now.Sub(since) < conflictAfter {
			continue
		}
		slices.SortFunc(names, func(a, b string) int { return cmp.Compare(c.peers[a].epoch, c.peers[b].epoch) })
		for i, name := range names[1:] {
			older, newer := c.peers[names[i]], c.peers[name]
			if newer.disputed || older.addr == newer.addr {
				continue
			}
			newer.disputed = true
			c.peers[name] = newer
			c.noteLocked(note{level: slog.LevelError, msg: twoOfOneID, same: name,
				args: []any{"node", id, "self", id == c.node, "older", older.addr, "newer", newer.addr}})
		}
	}
}

// delegate is what memberlist calls. Joins, leaves and updates come with its
// lock held, so these methods only set state; the lock c.mu is a leaf.
type delegate cluster

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(limit int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return packMeta(d.node, d.epoch, d.draining)
}

// NotifyMsg implements memberlist.Delegate. Kinds of messages that this
// version does not know are passed over.
func (d *delegate) NotifyMsg(b []byte) {
	id, epoch, err := unpackBye(b)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	name := runName(id, epoch)
	if p, ok := d.peers[name]; ok && name != d.name && !p.gone {
		p.gone = true
		d.peers[name] = p
		(*cluster)(d).noteLocked(note{level: slog.LevelInfo, msg: "cluster: node left", args: []any{"node", id, "addr", p.addr}})
	}
}

// GetBroadcasts, LocalState and MergeRemoteState implement
// memberlist.Delegate: nothing is spread this way.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte      { return nil }
func (d *delegate) LocalState(join bool) []byte                     { return nil }
func (d *delegate) MergeRemoteState(b []byte, join bool)            {}
func (d *delegate) NotifyJoin(n *memberlist.Node)                   { d.set(n, true) }
func (d *delegate) NotifyUpdate(n *memberlist.Node)                 { d.set(n, false) }
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) { d.sameName(existing, other) }

// NotifyAlive implements memberlist.AliveDelegate: only a node that this one
// understands becomes a member.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	p, err := d.peer(n)
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.peers[n.Name]; err == nil && !known && len(d.peers) >= maxNodes {
		err = fmt.Errorf("there are %d nodes already", maxNodes)
	}
	if err == nil && d.insecure && !p.addr.Addr().IsLoopback() {
		err = errors.New("it is not on loopback, and there is no secret")
	}
	if err != nil {
		(*cluster)(d).noteLocked(note{level: slog.LevelWarn, msg: "cluster: node ignored", same: n.Name,
			args: []any{"name", clip(n.Name), "addr", n.Address(), "err", err}})
	}
	return err
}

// peer reads what a node says about itself.
func (d *delegate) peer(n *memberlist.Node) (peer, error) {
	p, err := unpackMeta(n.Meta)
	if err != nil {
		return p, err
	}
	if checkNodeName(p.id) != nil || p.epoch > maxEpoch || runName(p.id, p.epoch) != n.Name {
		return p, errors.New("its name and its metadata differ")
	}
	ip, ok := netip.AddrFromSlice(n.Addr)
	if !ok || n.Port == 0 {
		return p, errors.New("its address is none")
	}
	p.addr = netip.AddrPortFrom(ip.Unmap(), n.Port)
	return p, nil
}

func (d *delegate) set(n *memberlist.Node, joined bool) {
	p, err := d.peer(n)
	if err != nil {
		return // NotifyAlive let it in: cannot be
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c := (*cluster)(d)
	old := c.peers[n.Name]
	p.gone, p.disputed = old.gone && !joined, old.disputed
	if joined {
		for name, q := range c.peers {
			if q.id == p.id && name != n.Name && q.addr != p.addr {
				c.conflicts[p.id] = time.Now()
			}
		}
		delete(c.lost, p.id)
	}
	c.peers[n.Name] = p
	if n.Name == c.name {
		return
	}
	c.met = true
	switch {
	case joined:
		c.noteLocked(note{level: slog.LevelInfo, msg: "cluster: node up", args: []any{"node", p.id, "addr", p.addr}})
	case p.draining && !old.draining:
		c.noteLocked(note{level: slog.LevelInfo, msg: "cluster: node draining", args: []any{"node", p.id, "addr", p.addr}})
	}
	c.poke()
}

// NotifyLeave implements memberlist.EventDelegate: the node died, or left,
// which look the same here.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := (*cluster)(d)
	p, ok := c.peers[n.Name]
	if !ok || n.Name == c.name {
		return
	}
	delete(c.peers, n.Name)
	if p.gone {
		return // told
	}
	c.noteLocked(note{level: slog.LevelInfo, msg: "cluster: node gone",
		args: []any{"node", p.id, "addr", p.addr, "draining", p.draining}})
	for _, q := range c.peers {
		if q.id == p.id {
			return // it runs anew
		}
	}
	if p.draining {
		return // it meant to go; if it is only cut off, it looks for us
	}
	if len(c.lost) >= maxLost {
		for id := range c.lost { // any
			delete(c.lost, id)
			break
		}
	}
	now := time.Now()
	c.lost[p.id] = &lostNode{addr: p.addr, since: now, next: now.Add(time.Second), pause: time.Second}
}

// sameName tells of two runs that even started in the same millisecond.
func (d *delegate) sameName(existing, other *memberlist.Node) {
	(*cluster)(d).note(note{level: slog.LevelError, msg: twoOfOneID, same: other.Name,
		args: []any{"node", clip(other.Name), "older", existing.Address(), "newer", other.Address()}})
}

// What nodes tell about themselves: memberlist's metadata, at most 512 bytes,
// and the goodbye, both msgpack arrays. A later version may append to them.
const (
	metaProto = 1 // [proto, id, epoch, link address or "", features, state]
	byeKind   = 1 // [kind, id, epoch]

	stateUp       = 0
	stateDraining = 1

	maxEpoch = 253_402_300_799_999 // the end of the year 9999: JSON has no later time
)

func pack(fields ...any) []byte {
	b, err := msgpack.Marshal(fields)
	if err != nil {
		panic("push: msgpack of numbers and strings: " + err.Error())
	}
	return b
}

func packMeta(id string, epoch uint64, draining bool) []byte {
	state := stateUp
	if draining {
		state = stateDraining
	}
	return pack(metaProto, id, epoch, "", 0, state)
}

func packBye(id string, epoch uint64) []byte { return pack(byeKind, id, epoch) }

var errGarbled = errors.New("it cannot be read")

// unpacker reads the elements of an array. An error stays, and makes what is
// read after it zero.
type unpacker struct {
	d   *msgpack.Decoder
	err error
}

// unpack begins to read, with the first element, which says what the other
// n-1 are.
func unpack(b []byte) (u *unpacker, n int, first uint64) {
	if len(b) > memberlist.MetaMaxSize {
		return &unpacker{err: errGarbled}, 0, 0
	}
	if _, err := pushjson.Scan(b, 2); err != nil {
		return &unpacker{err: errGarbled}, 0, 0
	}
	u = &unpacker{d: msgpack.NewDecoder(bytes.NewReader(b))}
	n, u.err = u.d.DecodeArrayLen()
	return u, n, u.uint()
}

func (u *unpacker) uint() (v uint64) {
	if u.err == nil {
		v, u.err = u.d.DecodeUint64()
	}
	return v
}

func (u *unpacker) string() (s string) {
	if u.err == nil {
		s, u.err = u.d.DecodeString()
	}
	return s
}

func unpackMeta(b []byte) (p peer, err error) {
	u, n, proto := unpack(b)
	switch {
	case u.err != nil || n < 1:
		return p, errGarbled
	case proto != metaProto:
		return p, fmt.Errorf("it speaks version %d, this node %d", proto, metaProto)
	case n < 6:
		return p, errGarbled
	}
	p.id, p.epoch = u.string(), u.uint()
	u.string() // link address
	u.uint()   // features
	p.draining = u.uint() == stateDraining
	return p, u.err
}

func unpackBye(b []byte) (id string, epoch uint64, err error) {
	u, n, kind := unpack(b)
	if u.err != nil || n < 3 || kind != byeKind {
		return "", 0, errGarbled
	}
	id, epoch = u.string(), u.uint()
	return id, epoch, u.err
}

// gossipTransport ends memberlist's dials, and what it dialled, with ctx:
// otherwise leaving would wait for an attempt to join that nobody answers.
type gossipTransport struct {
	memberlist.Transport
	ctx context.Context
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *gossipTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if aware, ok := t.Transport.(memberlist.NodeAwareTransport); ok {
		return aware.WriteToAddress(b, a)
	}
	return t.WriteTo(b, a.Addr)
}

// DialTimeout implements memberlist.Transport.
func (t *gossipTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *gossipTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := t.dial(a, timeout)
	if err != nil {
		return nil, err
	}
	return &gossipConn{Conn: conn, release: context.AfterFunc(t.ctx, func() { conn.Close() })}, nil
}

func (t *gossipTransport) dial(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if _, sockets := t.Transport.(*memberlist.NetTransport); sockets {
		d := net.Dialer{Timeout: timeout}
		return d.DialContext(t.ctx, "tcp", a.Addr)
	}
	// Someone else's transport knows no context: what it still brings then is
	// closed.
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		if aware, ok := t.Transport.(memberlist.NodeAwareTransport); ok {
			r.conn, r.err = aware.DialAddressTimeout(a, timeout)
		} else {
			r.conn, r.err = t.Transport.DialTimeout(a.Addr, timeout)
		}
		done <- r
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-t.ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				r.conn.Close()
			}
		}()
		return nil, t.ctx.Err()
	}
}

type gossipConn struct {
	net.Conn
	release func() bool
}

func (c *gossipConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// listenGossip listens, and with port 0 tries a few: the port that is free for
// TCP may be taken for UDP.
func listenGossip(at netip.AddrPort, logger *log.Logger) (t *memberlist.NetTransport, err error) {
	tries := 1
	if at.Port() == 0 {
		tries = 10
	}
	cfg := &memberlist.NetTransportConfig{BindAddrs: []string{at.Addr().String()}, BindPort: int(at.Port()), Logger: logger}
	for range tries {
		if t, err = memberlist.NewNetTransport(cfg); err == nil {
			return t, nil
		}
	}
	return nil, err
}

// settings is a Cluster that was checked.
type settings struct {
	name, node      string
	bind, advertise netip.AddrPort // advertise may be no address, and its port 0
	seeds           []hostPort
	keys            [][]byte // of gossip; the first encrypts
}

const wantSecret = "give every node the same secret of 32 random bytes, from: openssl rand -base64 32"

func (cfg *Cluster) check() (s settings, err error) {
	fail := func(format string, args ...any) (settings, error) {
		return settings{}, fmt.Errorf("push: Cluster."+format, args...)
	}
	s.name, s.node = cmp.Or(cfg.Name, "push"), cfg.Node
	if err := checkNodeName(s.name); err != nil {
		return fail("Name %q: %w", clip(s.name), err)
	}
	if s.node == "" {
		s.node = defaultNode()
	}
	if err := checkNodeName(s.node); err != nil {
		return fail("Node %q: %w", clip(s.node), err)
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
	}
	reachable := cfg.Transport != nil || !s.bind.Addr().IsLoopback()
	if cfg.Transport == nil && s.bind.Addr() == netip.IPv6Unspecified() && cfg.Advertise == "" {
		return fail("Bind %q is every interface: set Cluster.Advertise", cfg.Bind)
	}
	var outside string // a seed on another machine
	for _, seed := range cfg.Seeds {
		hp, err := parseSeed(seed)
		if err != nil {
			return fail("Seeds: %q: %w", seed, err)
		}
		ip, err := netip.ParseAddr(hp.host)
		if err == nil && !ip.Unmap().IsLoopback() || err != nil && hp.host != "localhost" {
			outside = seed
		}
		s.seeds = append(s.seeds, hp)
	}

	for i, secret := range cfg.Secrets {
		if err := checkSecret(secret); err != nil {
			return fail("Secrets[%d]: %w: %s", i, err, wantSecret)
		}
		for _, other := range cfg.Secrets[:i] {
			if bytes.Equal(secret, other) {
				return fail("Secrets[%d] is there twice: %s", i, wantSecret)
			}
		}
		key, err := deriveKey(secret, "gossip", s.name)
		if err != nil {
			return fail("Secrets[%d]: %w", i, err)
		}
		s.keys = append(s.keys, key)
	}
	if len(s.keys) == 0 {
		switch {
		case !cfg.Insecure:
			return fail("Secrets is empty: %s", wantSecret)
		case cfg.Transport == nil && !s.bind.Addr().IsLoopback():
			return fail("Insecure is for loopback only, and Bind is %s: %s", s.bind.Addr(), wantSecret)
		case cfg.Advertise != "" && !s.advertise.Addr().IsLoopback():
			return fail("Insecure is for loopback only, and Advertise is %s: %s", cfg.Advertise, wantSecret)
		case outside != "":
			return fail("Insecure is for loopback only, and there is seed %s: %s", outside, wantSecret)
		}
	}
	if outside != "" && !reachable {
		return fail("Bind %s is reached from this machine only, and seed %s is on another", s.bind.Addr(), outside)
	}
	return s, nil
}

func checkNodeName(s string) error {
	ok := len(s) >= 1 && len(s) <= 64
	for i := range len(s) {
		ok = ok && nameByte(s[i])
	}
	if !ok {
		return errors.New("want 1 to 64 bytes of [A-Za-z0-9._-]")
	}
	return nil
}

func nameByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '.' || b == '_' || b == '-'
}

// defaultNode is the host's name, as far as it fits, and a random number.
func defaultNode() string {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	host = strings.Map(func(r rune) rune {
		if r < 128 && nameByte(byte(r)) {
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

func parseSeed(s string) (hostPort, error) {
	if at, err := parseAddr(s, gossipPort); err == nil {
		if at.Port() == 0 || at.Addr().IsUnspecified() {
			return hostPort{}, errors.New("nobody listens there")
		}
		return hostPort{at.Addr().String(), at.Port()}, nil
	}
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		host, text = s, strconv.Itoa(gossipPort)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || host == "" || len(host) > 255 || strings.ContainsAny(host, ":/[]% \t\r\n") {
		return hostPort{}, errors.New("want a host, or one with a port")
	}
	return hostPort{host, uint16(port)}, nil
}

// checkSecret refuses what did not come from a random source. That cannot be
// known; it can be known of the frequent cases.
func checkSecret(b []byte) error {
	if len(b) < 32 {
		return fmt.Errorf("%d bytes are too short", len(b))
	}
	var seen [256]bool
	different := 0
	for _, x := range b {
		if !seen[x] {
			seen[x] = true
			different++
		}
	}
	if different < 16 {
		return fmt.Errorf("only %d different bytes are not random", different)
	}
	for period := 1; period <= len(b)/2; period++ {
		if bytes.Equal(b[period:], b[:len(b)-period]) {
			return errors.New("it repeats itself")
		}
	}
	return nil
}

// deriveKey makes the 32-byte key for one purpose. Nothing else ever uses a
// secret: who finds one key out knows no other.
func deriveKey(secret []byte, purpose, cluster string) ([]byte, error) {
	return hkdf.Key(sha256.New, secret, nil, "push/v1/"+purpose+"/"+cluster, 32)
}

// note is a log line that waits for run.
type note struct {
	level slog.Level
	msg   string
	same  string // lines with the same msg and this are the same complaint
	args  []any
}

func (c *cluster) note(n note) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noteLocked(n)
}

func (c *cluster) noteLocked(n note) {
	if len(c.notes) >= maxNotes {
		c.unnoted++
	} else {
		c.notes = append(c.notes, n)
	}
	c.poke()
}

func (c *cluster) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *cluster) takeNotes() []note {
	c.mu.Lock()
	defer c.mu.Unlock()
	notes := c.notes
	if c.unnoted > 0 {
		notes = append(notes, note{level: slog.LevelWarn, msg: "cluster: log lines dropped", args: []any{"lines", c.unnoted}})
	}
	c.notes, c.unnoted = nil, 0
	return notes
}

// complaints keeps a flood out of the log: a line like one of the last five
// minutes is only counted, and of one kind ten a second are written.
type complaints struct {
	said  map[string]*complaint
	paces map[string]pace // by msg: few
}

type complaint struct {
	at    time.Time // of the last line
	again int       // kept back since
}

type pace struct {
	second time.Time
	lines  int
}

const (
	sameComplaint = 5 * time.Minute
	maxComplaints = 256
	maxPace       = 10
)

func (k *complaints) speak(log *slog.Logger, notes []note) {
	for _, n := range notes {
		if !log.Enabled(context.Background(), n.level) {
			continue
		}
		if n.level >= slog.LevelWarn {
			again, ok := k.allow(n.msg, n.same, time.Now())
			if !ok {
				continue
			}
			if again > 0 {
				n.args = append(n.args, "again", again)
			}
		}
		log.Log(context.Background(), n.level, n.msg, n.args...)
	}
}

// allow says whether to write the line, and how many like it were not written.
func (k *complaints) allow(msg, same string, now time.Time) (again int, ok bool) {
	if k.said == nil {
		k.said, k.paces = make(map[string]*complaint), make(map[string]pace)
	}
	c := k.said[msg+same]
	if c != nil && now.Sub(c.at) < sameComplaint {
		c.again++
		return 0, false
	}
	p := k.paces[msg]
	if now.Sub(p.second) >= time.Second {
		p = pace{second: now}
	}
	p.lines++
	k.paces[msg] = p
	if p.lines > maxPace {
		return 0, false
	}
	if c == nil {
		if len(k.said) >= maxComplaints {
			clear(k.said)
		}
		c = &complaint{}
		k.said[msg+same] = c
	}
	again, c.again, c.at = c.again, 0, now
	return again, true
}

// logWriter turns memberlist's lines, "[WARN] memberlist: text from=addr",
// into ours. What it calls an error is a stranger's or the network's doing:
// a warning.
type logWriter cluster

func (w *logWriter) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	level := slog.LevelWarn
	if rest, ok := strings.CutPrefix(text, "["); ok {
		var tag string
		tag, text, _ = strings.Cut(rest, "] ")
		if tag == "DEBUG" || tag == "INFO" {
			level = slog.LevelDebug
		}
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	for _, known := range ordinary {
		if strings.HasPrefix(text, known) {
			level = slog.LevelDebug
		}
	}
	n := note{level: level, msg: "cluster: gossip"}
	from := ""
	if i := strings.LastIndex(text, " from="); i >= 0 {
		text, from = text[:i], text[i+len(" from="):]
	}
	n.args = []any{"err", clip(text)}
	n.same = clip(text)
	if from != "" {
		n.args = append(n.args, "from", clip(from))
		host, _, _ := net.SplitHostPort(from) // the port of a stream differs each time
		n.same += host
	}
	if why := hint(text); why != "" {
		n.args = append(n.args, "hint", why)
	}
	(*cluster)(w).note(n)
	return len(line), nil
}

// ordinary are warnings about what this file tells in its own words, or about
// what is no trouble.
var ordinary = []string{
	"ignoring alive message",                        // NotifyAlive
	"Conflicting address",                           // NotifyConflict
	"Got ping for unexpected node",                  // the address had another run, or node, before
	`discarding stream with unacceptable label "":`, // closed without a byte: a port check, a node that left
}

// hint explains an error in terms of the configuration, or is "".
func hint(text string) string {
	for _, h := range hints {
		if strings.Contains(text, h.part) {
			return h.hint
		}
	}
	return ""
}

var hints = []struct{ part, hint string }{
	{"installed keys could decrypt", "the two nodes have no secret in common: see Cluster.Secrets"},
	{"remote state is not encrypted", "the other node has no secret: see Cluster.Secrets"},
	{"encryption is not configured", "the other node has a secret, this one none: see Cluster.Secrets"},
	{"unacceptable label", "the other node belongs to another cluster: see Cluster.Name"},
	{"EOF", "the other node hung up: see whether Cluster.Name and Cluster.Secrets are the same"},
	{"connection reset", "the other node hung up: see whether Cluster.Name and Cluster.Secrets are the same"},
}

// clip shortens what a peer may have written for the log.
func clip(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

package push

// Membership, and nothing else yet: which nodes there are. memberlist finds
// peers, notices deaths and carries a few bytes about each node; this file
// checks the configuration, keeps the table behind [Engine.Nodes] and finds
// back what a partition took away. No push travels between nodes: each reaches
// the connections of its own node.

import (
	"bytes"
	"cmp"
	"context"
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
	"github.com/embedpush/push/internal/quietlog"
	"github.com/embedpush/push/internal/secret"
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
)

// cluster is a node's membership. Two runs of one node id are two members:
// memberlist knows them as id~epoch, the epoch being the start in Unix
// milliseconds, so a node that restarts is back at once at whatever address.
type cluster struct {
	// Static after startCluster.
	node     string
	epoch    uint64
	name     string // id~epoch, memberlist's
	started  time.Time
	insecure bool
	seeds    []seed
	log      *quietlog.Log
	ml       *memberlist.Memberlist // never called from a delegate: it holds its lock there

	ctx     context.Context // ends attempts to join, lookups, dials, run and the log
	stop    context.CancelFunc
	work    sync.WaitGroup // run and what it starts, the log
	leaving sync.Once
	cut     context.Context // makes leave hurry
	cutNow  context.CancelFunc

	met      atomic.Bool // a peer was reached once
	draining atomic.Bool

	mu      sync.Mutex              // guards what follows; nothing but the log is called or locked under it
	peers   map[string]peer         // by memberlist's name, this node included
	lost    map[string]*lostNode    // by id
	joining map[netip.AddrPort]bool // attempts under way
}

// peer is one run of one node.
type peer struct {
	id       string
	epoch    uint64
	addr     netip.AddrPort
	draining bool
	gone     bool // it said goodbye; memberlist has not noticed yet
}

// lostNode is a node that vanished without goodbye: dead, or on the other side
// of a partition, and memberlist never looks for it again.
type lostNode struct {
	addr  netip.AddrPort
	since time.Time
	next  time.Time
	pause time.Duration
}

// startCluster checks the configuration, listens and begins to look for peers.
// It does not wait for them.
func startCluster(cfg Cluster, logger *slog.Logger) (*cluster, error) {
	set, err := cfg.check()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	c := &cluster{
		node:     set.node,
		epoch:    uint64(now.UnixMilli()),
		started:  now,
		insecure: len(set.keys) == 0,
		seeds:    set.seeds,
		log:      quietlog.New(logger, "cluster"),
		peers:    make(map[string]peer),
		lost:     make(map[string]*lostNode),
		joining:  make(map[netip.AddrPort]bool),
	}
	c.name = runName(c.node, c.epoch)
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.cut, c.cutNow = context.WithCancel(context.Background())

	ml := memberlist.DefaultLANConfig()
	ml.Name = c.name
	ml.Label = set.name
	ml.EnableCompression = false
	ml.DeadNodeReclaimTime = time.Second
	d := delegate{c}
	ml.Delegate, ml.Events, ml.Alive, ml.Conflict = d, d, d, d
	ml.LogOutput, ml.Logger = nil, log.New(&quietlog.Writer{
		Log: c.log, Msg: "gossip", Prefix: "memberlist: ", Ordinary: ordinary, Hint: hint,
	}, "", 0)
	if len(set.keys) > 0 {
		if ml.Keyring, err = memberlist.NewKeyring(set.keys, set.keys[0]); err != nil {
			return nil, fmt.Errorf("push: Cluster.Secrets: %w", err)
		}
	}

	ml.Transport = cfg.Transport
	abandon := func() {}
	if ml.Transport == nil {
		listening, err := listenGossip(set.bind, ml.Logger)
		if err != nil {
			return nil, fmt.Errorf("push: Cluster.Bind: %w", err)
		}
		// Not waited for: Shutdown waits until a connection that just came in
		// is taken, and nobody takes it.
		abandon = func() { go listening.Shutdown() }
		ml.Transport = &sockets{listening, c.ctx}
		ml.BindPort = listening.GetAutoBindPort()
	}
	if set.advertise.IsValid() {
		ml.AdvertiseAddr = set.advertise.Addr().String()
		ml.AdvertisePort = cmp.Or(int(set.advertise.Port()), ml.BindPort)
	}
	ip, _, err := ml.Transport.FinalAdvertiseAddr(ml.AdvertiseAddr, ml.AdvertisePort)
	if err != nil {
		abandon()
		return nil, fmt.Errorf("push: Cluster.Advertise: %w", err)
	}
	if c.insecure && !ip.IsLoopback() {
		abandon()
		return nil, fmt.Errorf("push: Cluster.Insecure is for loopback only, and this node would advertise %s: %s", ip, secret.Advice)
	}
	if c.ml, err = memberlist.Create(ml); err != nil {
		abandon()
		return nil, fmt.Errorf("push: Cluster: %w", err)
	}
	c.work.Go(func() { c.log.Run(c.ctx) })
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
	if len(c.seeds) == 0 || c.met.Load() || time.Since(c.started) >= joinTime {
		return nil
	}
	return errors.New("push: joining the cluster, no peer reached yet")
}

// drain tells the peers that this node shuts down. It does not wait for them.
func (c *cluster) drain() {
	c.draining.Store(true)
	// The news is queued at once and goes out with the next gossip, in a fifth
	// of a second; the timeout, and so the error, is only about waiting until
	// it has gone to all.
	_ = c.ml.UpdateNode(time.Nanosecond)
}

// leave says goodbye, waits until it has spread or ctx ends, and shuts
// everything down. Every call returns when that is done, and each ctx that
// ends makes it hurry.
func (c *cluster) leave(ctx context.Context) {
	defer context.AfterFunc(ctx, c.cutNow)()
	c.leaving.Do(c.sayGoodbye)
}

func (c *cluster) sayGoodbye() {
	c.stop()
	c.work.Wait()
	c.mu.Lock()
	others := maps.Clone(c.peers)
	c.mu.Unlock()
	delete(others, c.name)

	// Three roads, for the sooner and for the surer: a packet straight to each
	// peer, which hides this node at once; memberlist's own news, with the next
	// gossip; and the silence of this node, noticed within seconds.
	bye := packBye(c.node, c.epoch)
	for name, p := range others {
		_ = c.ml.SendToAddress(memberlist.Address{Addr: p.addr.String(), Name: name}, bye)
	}
	// Leave queues the news at once; the timeout, and so the error, is only
	// about waiting until it has gone to all, which this does itself to be able
	// to stop.
	_ = c.ml.Leave(time.Nanosecond)
	if len(others) > 0 {
		t := time.NewTimer(leaveTime)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.cut.Done():
		}
	}
	_ = c.ml.Shutdown() // returns nil
	c.mu.Lock()
	maps.DeleteFunc(c.peers, func(name string, _ peer) bool { return name != c.name })
	c.mu.Unlock()
}

// run looks for peers.
func (c *cluster) run() {
	tick := time.NewTicker(tickTime)
	defer tick.Stop()
	var nextSeeds time.Time
	pause := time.Second
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
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// alone: there is no other node now.
func (c *cluster) alone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.peers) <= 1
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
		ips := []netip.Addr{s.ip}
		if s.name != "" {
			var err error
			ctx, cancel := context.WithTimeout(c.ctx, lookupTime)
			ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", s.name)
			cancel()
			if err != nil && c.ctx.Err() == nil {
				c.log.Post(slog.LevelWarn, s.name, "looking up a seed", "seed", s.name, "err", err)
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
	if c.ctx.Err() != nil || c.joining[addr] || len(c.joining) >= maxJoins {
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
	done := make(chan error, 1)
	go func() {
		_, err := c.ml.Join([]string{addr.String()})
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-c.ctx.Done():
		return // our sockets end then, too; another's transport knows no context
	}
	c.mu.Lock()
	delete(c.joining, addr)
	c.mu.Unlock()
	if err == nil || c.ctx.Err() != nil {
		return
	}
	// memberlist lists its errors one below the other, each with a star.
	_, text, _ := strings.Cut(err.Error(), "* ")
	text = strings.TrimPrefix(strings.TrimSpace(text), "failed to join "+addr.String()+": ")
	args := []any{"addr", addr, "err", text}
	level := slog.LevelDebug
	if seed && c.alone() {
		level = slog.LevelWarn
	}
	if why := hint(text); why != "" {
		level = slog.LevelWarn
		args = append(args, "hint", why)
	}
	c.log.Post(level, addr.String(), "cannot join", args...)
}

// twinLocked finds another run of the same node id at another address: the
// node moved and the old run is not noticed dead yet, or they are two.
func (c *cluster) twinLocked(name string) (twin peer, ok bool) {
	p := c.peers[name]
	for other, q := range c.peers {
		if q.id == p.id && other != name && !p.gone && !q.gone && q.addr != p.addr {
			return q, true
		}
	}
	return twin, false
}

const twoOfOneID = "two nodes run under one id, Cluster.Node must be unlike every other's"

// checkTwin tells of a node that has a twin still, conflictAfter it joined.
func (c *cluster) checkTwin(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	older, ok := c.twinLocked(name)
	if !ok {
		return
	}
	newer := c.peers[name]
	if newer.epoch < older.epoch {
		older, newer = newer, older
	}
	c.log.Post(slog.LevelError, runName(newer.id, newer.epoch), twoOfOneID,
		"node", newer.id, "self", newer.id == c.node, "older", older.addr, "newer", newer.addr)
}

// delegate is what memberlist calls. Joins, leaves and updates come with its
// lock held, so these methods only set state and post to the log.
type delegate struct{ *cluster }

// NodeMeta implements memberlist.Delegate.
func (d delegate) NodeMeta(limit int) []byte {
	return packMeta(d.node, d.epoch, d.draining.Load())
}

// NotifyMsg implements memberlist.Delegate. Kinds of messages that this
// version does not know are passed over.
func (d delegate) NotifyMsg(b []byte) {
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
		d.log.Post(slog.LevelInfo, "", "node left", "node", id, "addr", p.addr)
	}
}

// GetBroadcasts, LocalState and MergeRemoteState implement
// memberlist.Delegate: nothing is spread this way.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte { return nil }
func (d delegate) LocalState(join bool) []byte                { return nil }
func (d delegate) MergeRemoteState(b []byte, join bool)       {}
func (d delegate) NotifyJoin(n *memberlist.Node)              { d.set(n, true) }
func (d delegate) NotifyUpdate(n *memberlist.Node)            { d.set(n, false) }

// NotifyAlive implements memberlist.AliveDelegate: only a node that this one
// understands becomes a member.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	p, err := readPeer(n)
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.peers[n.Name]; err == nil && !known && len(d.peers) >= maxNodes {
		err = fmt.Errorf("there are %d nodes already", maxNodes)
	}
	if err == nil && d.insecure && !p.addr.Addr().IsLoopback() {
		err = errors.New("it is not on loopback, and there is no secret")
	}
	if err != nil {
		d.log.Post(slog.LevelWarn, n.Name, "node ignored", "name", n.Name, "addr", n.Address(), "err", err)
	}
	return err
}

// readPeer reads what a node says about itself.
func readPeer(n *memberlist.Node) (peer, error) {
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

func (d delegate) set(n *memberlist.Node, joined bool) {
	p, _ := readPeer(n) // NotifyAlive let it in
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return // who leaves need not know
	}
	old := d.peers[n.Name]
	p.gone = old.gone && !joined
	d.peers[n.Name] = p
	if joined {
		delete(d.lost, p.id)
		if _, ok := d.twinLocked(n.Name); ok {
			name := n.Name
			time.AfterFunc(conflictAfter, func() { d.checkTwin(name) })
		}
	}
	if n.Name == d.name {
		return
	}
	d.met.Store(true)
	switch {
	case joined:
		d.log.Post(slog.LevelInfo, "", "node up", "node", p.id, "addr", p.addr)
	case p.draining && !old.draining:
		d.log.Post(slog.LevelInfo, "", "node draining", "node", p.id, "addr", p.addr)
	}
}

// NotifyLeave implements memberlist.EventDelegate: the node died, or left,
// which look the same here.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, ok := d.peers[n.Name]
	if !ok || n.Name == d.name {
		return
	}
	delete(d.peers, n.Name)
	if p.gone {
		return // told
	}
	d.log.Post(slog.LevelInfo, "", "node gone", "node", p.id, "addr", p.addr, "draining", p.draining)
	if p.draining {
		return // it meant to go; if it is only cut off, it looks for us
	}
	for _, q := range d.peers {
		if q.id == p.id {
			return // it runs anew
		}
	}
	if len(d.lost) >= maxLost {
		for id := range d.lost { // any
			delete(d.lost, id)
			break
		}
	}
	now := time.Now()
	d.lost[p.id] = &lostNode{addr: p.addr, since: now, next: now.Add(time.Second), pause: time.Second}
}

// NotifyConflict implements memberlist.ConflictDelegate: two runs of one id
// even started in the same millisecond.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.log.Post(slog.LevelError, other.Name, twoOfOneID, "node", other.Name, "older", existing.Address(), "newer", other.Address())
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

// unpack begins to read an array of n elements, with the first, which says
// what the others are.
func unpack(b []byte) (d *msgpack.Decoder, n int, first uint64, err error) {
	if len(b) > memberlist.MetaMaxSize {
		return nil, 0, 0, errGarbled
	}
	if _, err := pushjson.Scan(b, 2); err != nil {
		return nil, 0, 0, errGarbled
	}
	d = msgpack.NewDecoder(bytes.NewReader(b))
	if n, err = d.DecodeArrayLen(); err == nil {
		first, err = d.DecodeUint64()
	}
	if err != nil {
		err = errGarbled
	}
	return d, n, first, err
}

func unpackMeta(b []byte) (p peer, err error) {
	d, n, proto, err := unpack(b)
	switch {
	case err != nil:
		return p, err
	case proto != metaProto:
		return p, fmt.Errorf("it speaks version %d, this node %d", proto, metaProto)
	case n < 6:
		return p, errGarbled
	}
	var (
		link            string
		features, state uint64
	)
	err = d.DecodeMulti(&p.id, &p.epoch, &link, &features, &state)
	p.draining = state == stateDraining
	return p, err
}

func unpackBye(b []byte) (id string, epoch uint64, err error) {
	d, n, kind, err := unpack(b)
	if err != nil || n < 3 || kind != byeKind {
		return "", 0, errGarbled
	}
	err = d.DecodeMulti(&id, &epoch)
	return id, epoch, err
}

// sockets is memberlist's transport, but its dials, and what they brought, end
// with ctx: otherwise they would outlive leave by seconds.
type sockets struct {
	*memberlist.NetTransport
	ctx context.Context
}

// DialTimeout implements memberlist.Transport.
func (s *sockets) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(s.ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &gossipConn{Conn: conn, release: context.AfterFunc(s.ctx, func() { conn.Close() })}, nil
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (s *sockets) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return s.DialTimeout(a.Addr, timeout)
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
	seeds           []seed
	keys            [][]byte // of gossip; the first encrypts, none if Insecure
}

// seed is an address of other nodes.
type seed struct {
	name string     // looked up anew each time; "": it is ip
	ip   netip.Addr // none if there is a name
	port uint16
}

// elsewhere: it may be another machine's.
func (s seed) elsewhere() bool { return s.name != "localhost" && !s.ip.IsLoopback() }

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
		if seed.elsewhere() {
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

func parseSeed(s string) (seed, error) {
	if at, err := parseAddr(s, gossipPort); err == nil {
		if at.Port() == 0 || at.Addr().IsUnspecified() {
			return seed{}, errors.New("nobody listens there")
		}
		return seed{ip: at.Addr(), port: at.Port()}, nil
	}
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		host, text = s, strconv.Itoa(gossipPort)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || host == "" || len(host) > 255 || strings.ContainsAny(host, ":/[]% \t\r\n") {
		return seed{}, errors.New("want a host, or one with a port")
	}
	return seed{name: host, port: uint16(port)}, nil
}

// ordinary begins memberlist's warnings about what this file tells in its own
// words, or about what is no trouble.
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

package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/mpush"
)

// clusterWorld is a cluster in memory and virtual time. Node a is on 10.0.0.1,
// b on 10.0.0.2 and so on; what connects to a comes from 10.0.1.1, so a fault
// between nodes is none between a node and its clients.
type clusterWorld struct {
	t     *testing.T
	net   *memnet.Network
	mod   func(*push.Config)
	nodes []*nodeWorld // in the order of their start
	doors int          // turns of onEach
}

// nodeWorld is one node of it: an engine of a cluster (see clusterNode: name,
// host, log, want, wantWithin), and a world with devices (connect, binds), whose
// pages and devices come to this node. Ids of devices are unlike those on other
// nodes: 2000001 is the first one on b.
type nodeWorld struct {
	*clusterNode
	*deviceWorld
	at int // last byte of its addresses
}

// newClusterWorld starts nodes a, b, c … and waits until each is ready and knows
// the others. mod changes the configuration of each; its Cluster.Node is the
// name. It has to run in a bubble (see inBubble); the test's end closes all of
// it.
func newClusterWorld(t *testing.T, count int, mod func(*push.Config)) *clusterWorld {
	t.Helper()
	return newClusterWorldOn(t, memnet.New(1), count, mod)
}

// newClusterWorldOn is newClusterWorld on a network that there is.
func newClusterWorldOn(t *testing.T, nw *memnet.Network, count int, mod func(*push.Config)) *clusterWorld {
	t.Helper()
	w := &clusterWorld{t: t, net: nw, mod: mod}
	t.Cleanup(func() { time.Sleep(3 * time.Minute) }) // see stopCluster
	nw.SetDelay(time.Millisecond, 3*time.Millisecond)
	for i := range count {
		w.starts(string(rune('a'+i)), i+1)
	}
	w.isWhole()
	return w
}

// starts starts one node more, or one again after host.Kill, and does not wait.
func (w *clusterWorld) starts(name string, at int) *nodeWorld {
	w.t.Helper()
	node, cfg := newNode(w.t, w.net, name, at, func(cfg *push.Config) {
		cfg.MPush.AllowPlain = true // for everyDoor
		if w.mod != nil {
			w.mod(cfg)
		}
	})
	n := &nodeWorld{clusterNode: node, at: at}
	n.deviceWorld = doorTCP.worldOn(w.t, cfg, w.net, clusterIP(at), fmt.Sprintf("10.0.1.%d", at))
	n.clusterNode.Engine = n.deviceWorld.Engine
	n.seq.Store(int64(at) * 1_000_000)
	w.nodes = append(slices.DeleteFunc(w.nodes, func(old *nodeWorld) bool { return old.name == name }), n)
	return n
}

// isWhole waits until every node is ready and knows the others.
func (w *clusterWorld) isWhole() {
	w.t.Helper()
	var names []string
	for _, n := range w.nodes {
		names = append(names, n.name)
	}
	slices.Sort(names)
	for _, n := range w.nodes {
		n.wantWithin(time.Minute, names...)
	}
	for _, n := range w.nodes {
		for begin := time.Now(); n.Ready() != nil && time.Since(begin) < time.Minute; {
			time.Sleep(5 * time.Millisecond)
		}
		if err := n.Ready(); err != nil {
			w.t.Errorf("%s is not ready: %v", n.name, err)
		}
	}
	w.spreads()
}

// spreads waits until every node knows who is where, which takes a flush of
// the links (20 ms) and their delay (1 to 3 ms).
func (w *clusterWorld) spreads() {
	time.Sleep(50 * time.Millisecond)
	synctest.Wait()
}

// node is the one of this name.
func (w *clusterWorld) node(name string) *nodeWorld {
	w.t.Helper()
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	w.t.Fatalf("there is no node %s", name)
	return nil
}

// abc are the first three nodes.
func (w *clusterWorld) abc() (a, b, c *nodeWorld) { return w.nodes[0], w.nodes[1], w.nodes[2] }

// cuts stops everything between two nodes, mends undoes it.
func (w *clusterWorld) cuts(a, b *nodeWorld)  { w.net.Cut(clusterIP(a.at), clusterIP(b.at)) }
func (w *clusterWorld) mends(a, b *nodeWorld) { w.net.Mend(clusterIP(a.at), clusterIP(b.at)) }

// visitor is a page or a device, by what both can do.
type visitor struct {
	node *nodeWorld
	page *page   // nil: it is a device
	dev  *device // nil: it is a page

	asked push.Ack // by the last push that wants took
}

// everyDoor are the doors that what a cluster promises is tested over: those of
// pages, and those of mpush behind "mpush". Not TLS: its client locks while it
// shakes hands, and on a network with delays virtual time then stands still.
var everyDoor = slices.Concat(dialectNames, socketIODoors, []string{"mpush tcp", "mpush tcp plain", "mpush ws binary", "mpush ws json"})

// visits lets somebody in as user through a door of everyDoor, and waits until
// it is in its places. More is "key=value" as of connect: os, version, token
// (of believe: its rooms), and tag, which may be there several times.
func (n *nodeWorld) visits(through, user string, more ...string) *visitor {
	n.clusterNode.t.Helper()
	return n.through(through)(user, more...)
}

// through opens a door for visits that may be at once, until the next door of
// pages or of devices is opened.
func (n *nodeWorld) through(way string) func(user string, more ...string) *visitor {
	t := n.clusterNode.t
	t.Helper()
	name, ok := strings.CutPrefix(way, "mpush ")
	if !ok {
		n.dialect = way
		return func(user string, more ...string) *visitor {
			t.Helper()
			return &visitor{node: n, page: n.connect(user, more...)}
		}
	}
	i := slices.IndexFunc(doors, func(d door) bool { return d.name == name })
	if i < 0 {
		t.Fatalf("there is no door %q", way)
	}
	n.door = doors[i]
	return func(user string, more ...string) *visitor {
		t.Helper()
		var of, tags []string
		for _, kv := range more {
			switch k, v, _ := strings.Cut(kv, "="); k {
			case "tag":
				tags = append(tags, v)
			case "token":
				of = append(of, "data="+v)
			default:
				of = append(of, kv)
			}
		}
		if tags != nil {
			of = append(of, "tags="+strings.Join(tags, ","))
		}
		return &visitor{node: n, dev: n.binds(user, of...)}
	}
}

func (v *visitor) String() string {
	return fmt.Sprintf("%s (%s on %s)", v.id(), v.protocol(), v.node.name)
}

// id is its DeviceID, unlike every other's in the cluster.
func (v *visitor) id() string {
	if v.dev != nil {
		return v.dev.is.DeviceID
	}
	return v.page.device
}

// protocol is what Conn.Protocol says.
func (v *visitor) protocol() string {
	switch {
	case v.page != nil:
		return v.page.protocol()
	case v.dev.door.json:
		return "mpush.json"
	}
	return "mpush"
}

// conn is the engine's side of it, nil when there is none.
func (v *visitor) conn() *push.Conn {
	if v.dev != nil {
		return v.dev.conn()
	}
	return v.page.conn()
}

// isMute from now on: it answers no pushes.
func (v *visitor) isMute() {
	if v.dev != nil {
		v.dev.onAck(mute)
	} else {
		v.page.onAck(silent)
	}
}

// replies to pushes from now on with data, which mpush does not carry.
func (v *visitor) replies(data any) {
	if v.page != nil {
		v.page.onAck(func(p *page, m envelope) { p.answers(m, data) })
	}
}

// reply is what a receipt has of that.
func (v *visitor) reply(text string) string {
	if v.dev != nil {
		return ""
	}
	return text
}

// wants a push of this event, which mpush does not carry, and data to come next.
func (v *visitor) wants(event, data string) {
	v.node.clusterNode.t.Helper()
	if v.dev != nil {
		p := v.dev.next()
		if p.cmd != mpush.CmdPush || !sameJSON([]byte(p.content()), data) {
			v.dev.t.Fatalf("%s got %v, want a push of %.80s", v, p, data)
		}
		v.asked = ackOf(p.flags&(mpush.FlagAutoAck|mpush.FlagBizAck) != 0, p.flags&mpush.FlagAutoAck != 0)
		return
	}
	m := v.page.next()
	if m.Event != event || !sameJSON(m.Data, data) {
		v.page.t.Fatalf("%s got %v, want event %q of %.80s", v, brief([]envelope{m}), event, data)
	}
	v.asked = ackOf(m.ID != 0, m.Auto)
}

func ackOf(asked, auto bool) push.Ack {
	switch {
	case !asked:
		return push.NoAck
	case auto:
		return push.AutoAck
	}
	return push.BizAck
}

// wantsNothing wants nothing to have come.
func (v *visitor) wantsNothing() {
	v.node.clusterNode.t.Helper()
	if v.dev != nil {
		v.dev.wantNothing()
	} else {
		v.page.wantNothing()
	}
}

// heard are the data of all pushes that came and were not looked at.
func (v *visitor) heard() (all []string) {
	if v.dev != nil {
		for _, p := range v.dev.taken() {
			if p.cmd == mpush.CmdPush {
				all = append(all, p.content())
			}
		}
		return all
	}
	for _, m := range v.page.taken() {
		if m.Event != "" {
			all = append(all, string(m.Data))
		}
	}
	return all
}

// vanishes without goodbye.
func (v *visitor) vanishes() {
	if v.dev != nil {
		v.dev.vanishes()
	} else {
		v.page.vanishes()
	}
}

// Package test holds scenarios over the public face of the engine: clusters
// with faults, in virtual time.
package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
	"github.com/gorilla/websocket"
	"github.com/hashicorp/memberlist"
	"github.com/vmihailenco/msgpack/v5"
)

// clusterSecret makes the same 32 bytes for the same seed.
func clusterSecret(seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 32)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// clusterNode is one engine on a host of its own.
type clusterNode struct {
	*push.Engine
	t    *testing.T
	name string
	host *memnet.Host
	log  *logBook
}

// startNode starts node name on the last byte of an address in 10.0.0.0/24;
// its seed is node 1. More is in mod.
func startNode(t *testing.T, nw *memnet.Network, name string, at int, mod func(*push.Config)) *clusterNode {
	t.Helper()
	n, cfg := newNode(t, nw, name, at, mod)
	var err error
	if n.Engine, err = push.New(cfg); err != nil {
		t.Fatal(err)
	}
	return n
}

// newNode is startNode without the start.
func newNode(t *testing.T, nw *memnet.Network, name string, at int, mod func(*push.Config)) (*clusterNode, push.Config) {
	n := &clusterNode{t: t, name: name, host: nw.Host(clusterIP(at)), log: &logBook{}}
	cfg := push.Config{
		Logger: slog.New(n.log),
		Cluster: &push.Cluster{
			Node:      name,
			Seeds:     []string{clusterIP(1)},
			Secrets:   [][]byte{clusterSecret(1)},
			Transport: n.host.Transport(7946),
		},
	}
	if mod != nil {
		mod(&cfg)
	}
	return n, cfg
}

func clusterIP(at int) string { return fmt.Sprintf("10.0.0.%d", at) }

// startCluster starts a, b, c … and waits until they know each other.
func startCluster(t *testing.T, nw *memnet.Network, count int) (nodes []*clusterNode) {
	t.Helper()
	nw.SetDelay(time.Millisecond, 3*time.Millisecond)
	var want []string
	for i := range count {
		name := string(rune('a' + i))
		nodes = append(nodes, startNode(t, nw, name, i+1, nil))
		want = append(want, name)
	}
	// At once, as a rule; news that by chance was gossiped to the others only
	// comes with memberlist's next exchange of everything, every 30 seconds.
	for _, n := range nodes {
		n.wantWithin(time.Minute, want...)
	}
	return nodes
}

// stopCluster ends all nodes and lets the last goroutine of memberlist, whose
// timers go on for a while, run out.
func stopCluster(nodes ...*clusterNode) {
	for _, n := range nodes {
		n.Close()
	}
	time.Sleep(3 * time.Minute)
}

// sees lists the nodes it knows, those that drain with a star.
func (n *clusterNode) sees() (names []string) {
	for _, node := range n.Nodes() {
		name := node.ID
		if node.State == push.NodeDraining {
			name += "*"
		}
		if node.Self != (node.ID == n.name) {
			n.t.Errorf("%s: Self is %v for %s", n.name, node.Self, node.ID)
		}
		names = append(names, name)
	}
	return names
}

func (n *clusterNode) want(names ...string) {
	n.t.Helper()
	if got := n.sees(); !slices.Equal(got, names) {
		n.t.Errorf("%s sees %v, want %v", n.name, got, names)
	}
}

// wantWithin waits, in virtual time, until it sees these nodes.
func (n *clusterNode) wantWithin(limit time.Duration, names ...string) {
	n.t.Helper()
	for begin := time.Now(); !slices.Equal(n.sees(), names); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > limit {
			n.t.Errorf("%s sees %v after %v, want %v", n.name, n.sees(), limit, names)
			return
		}
	}
}

// logBook is a slog.Handler that keeps what it is told.
type logBook struct {
	mu    sync.Mutex
	lines []string
	level []slog.Level
	news  chan struct{} // capacity 1; nil: nobody waits for news
}

func (l *logBook) Enabled(context.Context, slog.Level) bool { return true }
func (l *logBook) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logBook) WithGroup(string) slog.Handler            { return l }
func (l *logBook) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines, l.level = append(l.lines, line), append(l.level, r.Level)
	select {
	case l.news <- struct{}{}:
	default:
	}
	return nil
}

// at returns the lines of at least a level that contain part.
func (l *logBook) at(level slog.Level, part string) (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, line := range l.lines {
		if l.level[i] >= level && strings.Contains(line, part) {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestNodesFindEachOtherAndAreQuietWhenHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := startCluster(t, memnet.New(1), 3)
		defer stopCluster(nodes...)
		time.Sleep(time.Second) // for the links
		for i, n := range nodes {
			if err := n.Ready(); err != nil {
				t.Errorf("%s is not ready: %v", n.name, err)
			}
			for j, node := range n.Nodes() {
				if want := clusterIP(j+1) + ":7946"; node.Addr != want || node.Self != (i == j) || time.Since(node.Started) > time.Minute {
					t.Errorf("%s knows %+v, want address %s", n.name, node, want)
				}
			}
		}
		time.Sleep(20 * time.Minute)
		for _, n := range nodes {
			n.want("a", "b", "c")
			// The first node has a seed, itself; the others find it at once.
			if got := n.log.at(slog.LevelWarn, ""); len(got) > 0 {
				t.Errorf("%s warned: %q", n.name, got)
			}
		}
	})
}

func TestReadyWaitsForAPeerOrTheJoinTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		waits := startNode(t, nw, "b", 2, nil) // its seed is not there yet
		free := startNode(t, nw, "z", 9, func(cfg *push.Config) {
			cfg.Cluster.Seeds = nil
			cfg.Cluster.Name = "other"
		})
		if err := free.Ready(); err != nil {
			t.Errorf("a node without seeds is not ready at once: %v", err)
		}
		time.Sleep(time.Second)
		if err := waits.Ready(); err == nil {
			t.Error("ready before its seed was reached and the join time was over")
		}
		seed := startNode(t, nw, "a", 1, nil)
		waits.wantWithin(5*time.Second, "a", "b")
		synctest.Wait()
		if err := waits.Ready(); err != nil {
			t.Errorf("not ready although a peer was reached: %v", err)
		}
		alone := startNode(t, nw, "c", 3, func(cfg *push.Config) { cfg.Cluster.Seeds = []string{"10.0.0.99:1"} })
		time.Sleep(9900 * time.Millisecond)
		if err := alone.Ready(); err == nil {
			t.Error("ready before the join time was over")
		}
		time.Sleep(200 * time.Millisecond)
		if err := alone.Ready(); err != nil {
			t.Errorf("not ready after the join time: %v", err)
		}
		stopCluster(waits, free, seed, alone)
		if err := seed.Ready(); err == nil {
			t.Error("ready after Close")
		}
	})
}

func TestDeadNodeIsGoneWithinEightSeconds(t *testing.T) {
	for seed := range uint64(8) {
		for how, end := range map[string]func(*memnet.Host){"killed": (*memnet.Host).Kill, "unplugged": (*memnet.Host).Unplug} {
			synctest.Test(t, func(t *testing.T) {
				nodes := startCluster(t, memnet.New(seed), 3)
				defer stopCluster(nodes...)
				time.Sleep(time.Duration(seed) * 131 * time.Millisecond)
				end(nodes[2].host)
				begin := time.Now()
				nodes[0].wantWithin(8*time.Second, "a", "b")
				nodes[1].wantWithin(8*time.Second-time.Since(begin), "a", "b")
				if t.Failed() {
					t.Logf("seed %d, %s", seed, how)
				}
			})
		}
	}
}

func TestShutdownHidesTheNodeAtOnce(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			nodes := startCluster(t, memnet.New(seed), 5)
			defer stopCluster(nodes...)
			time.Sleep(time.Duration(seed) * 131 * time.Millisecond)
			begin := time.Now()
			go func() {
				if err := nodes[4].Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				if took := time.Since(begin); took > time.Second {
					t.Errorf("Shutdown took %v", took)
				}
			}()
			time.Sleep(99 * time.Millisecond)
			for _, n := range nodes[:4] {
				n.want("a", "b", "c", "d")
			}
			time.Sleep(2 * time.Minute)
			for _, n := range nodes[:4] {
				n.want("a", "b", "c", "d") // nor does it come back
				if got := n.log.at(slog.LevelInfo, "node gone"); len(got) > 0 {
					t.Errorf("%s took a polite leave for a death: %q", n.name, got)
				}
			}
		})
	}
}

func TestCloseHidesTheNodeAndDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		nodes := startCluster(t, nw, 3)
		lonely := startNode(t, nw, "x", 9, func(cfg *push.Config) { cfg.Cluster.Seeds = []string{"10.0.0.99"} })
		defer stopCluster(append(nodes, lonely)...)
		time.Sleep(500 * time.Millisecond) // it tries to join a host that is silent
		begin := time.Now()
		lonely.Close()
		if took := time.Since(begin); took > 10*time.Millisecond {
			t.Errorf("Close took %v while joining", took)
		}
		nodes[2].Close()
		time.Sleep(50 * time.Millisecond)
		nodes[0].want("a", "b")
		nodes[1].want("a", "b")
	})
}

// The seed takes the connection and says nothing, as long as it is there.
func TestCloseDropsAnAttemptToJoinOverSockets(t *testing.T) {
	seed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer seed.Close()
	e, err := push.New(push.Config{Logger: slog.New(slog.DiscardHandler), Cluster: &push.Cluster{
		Bind: "127.0.0.1:0", Seeds: []string{seed.Addr().String()}, Secrets: [][]byte{clusterSecret(1)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	conn, err := seed.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begin := time.Now()
	e.Close()
	io.Copy(io.Discard, conn) // until the node hangs up
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the attempt to join ended %v after Close began", took)
	}
}

func TestClosedNodeKnowsItselfAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := startCluster(t, memnet.New(1), 3)
		nodes[2].Close()
		nodes[2].want("c*")
		time.Sleep(time.Minute)
		nodes[2].want("c*")
		stopCluster(nodes...)
	})
}

func TestStuckLogHandlersDoNotHoldTheClusterUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		stuck := &stuckLog{until: make(chan struct{})}
		var nodes []*clusterNode
		for i, name := range []string{"a", "b", "c"} {
			nodes = append(nodes, startNode(t, nw, name, i+1, func(cfg *push.Config) { cfg.Logger = slog.New(stuck) }))
		}
		defer stopCluster(nodes...)
		defer close(stuck.until)
		nodes[2].wantWithin(5*time.Second, "a", "b", "c")
		nodes[0].host.Kill()
		nw.Cut(clusterIP(2), clusterIP(3))
		nodes[1].wantWithin(15*time.Second, "b")
		nodes[2].wantWithin(15*time.Second, "c")
		nw.MendAll()
		nodes[1].wantWithin(35*time.Second, "b", "c")
		nodes[2].wantWithin(35*time.Second, "b", "c")
	})
}

// stuckLog is a slog.Handler that hangs.
type stuckLog struct {
	logBook
	until chan struct{}
}

func (s *stuckLog) Handle(ctx context.Context, r slog.Record) error {
	<-s.until
	return s.logBook.Handle(ctx, r)
}

func TestDrainingNodeIsSeenDrainingUntilItLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		nodes := startCluster(t, nw, 2)
		drained := startNode(t, nw, "c", 3, func(cfg *push.Config) { cfg.Drain = time.Minute })
		defer stopCluster(append(nodes, drained)...)
		nodes[0].wantWithin(5*time.Second, "a", "b", "c")

		ln, err := drained.host.Listen(80)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: drained.Engine}
		go server.Serve(ln)
		defer server.Close()
		var pages sync.WaitGroup
		for range 2 { // the second is closed after half of Drain
			dialer := websocket.Dialer{NetDialContext: ln.DialContext}
			page, _, err := dialer.Dial("ws://c/ws", nil)
			if err != nil {
				t.Fatal(err)
			}
			pages.Go(func() {
				defer page.Close()
				for {
					if _, _, err := page.ReadMessage(); err != nil {
						return
					}
				}
			})
		}
		ended := make(chan error)
		go func() { ended <- drained.Shutdown(t.Context()) }()
		for _, n := range nodes {
			n.wantWithin(time.Second, "a", "b", "c*")
		}
		drained.want("a", "b", "c*")
		if err := drained.Ready(); err == nil {
			t.Error("ready while it drains")
		}
		time.Sleep(20 * time.Second)
		for _, n := range nodes {
			n.want("a", "b", "c*")
		}
		if err := <-ended; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		pages.Wait()
		for _, n := range nodes {
			n.want("a", "b")
		}
	})
}

func TestPartitionHealsWithin35Seconds(t *testing.T) {
	cuts := []time.Duration{5 * time.Second, 20 * time.Second, 35 * time.Second, 60 * time.Second, 300 * time.Second, 30 * time.Minute}
	for i := range 6 { // at any moment between two attempts
		cuts = append(cuts, 90*time.Second+time.Duration(i)*5*time.Second)
	}
	for seed, cut := range cuts {
		synctest.Test(t, func(t *testing.T) {
			nw := memnet.New(uint64(seed))
			nodes := startCluster(t, nw, 5)
			defer stopCluster(nodes...)
			nw.Partition([]string{clusterIP(1), clusterIP(2)}, []string{clusterIP(3), clusterIP(4), clusterIP(5)})
			time.Sleep(cut)
			if cut >= time.Minute {
				nodes[0].want("a", "b")
				nodes[2].want("c", "d", "e")
				nodes[4].want("c", "d", "e")
			}
			nw.MendAll()
			begin := time.Now()
			for _, n := range nodes {
				n.wantWithin(35*time.Second-time.Since(begin), "a", "b", "c", "d", "e")
			}
			t.Logf("after %v: whole in %v", cut, time.Since(begin))
			time.Sleep(5 * time.Minute)
			for _, n := range nodes {
				n.want("a", "b", "c", "d", "e")
				if got := n.log.at(slog.LevelError, ""); len(got) > 0 {
					t.Errorf("%s: %q", n.name, got)
				}
			}
		})
	}
}

// Nobody is anybody's seed any more: what is left is that nodes remember whom
// they lost.
func TestLostNodeIsFoundWithoutSeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		nodes := startCluster(t, nw, 3) // all have the seed a
		defer stopCluster(nodes...)
		nodes[0].host.Kill()
		nodes[1].wantWithin(8*time.Second, "b", "c")
		nw.Cut(clusterIP(2), clusterIP(3))
		time.Sleep(10 * time.Minute)
		nodes[1].want("b")
		nodes[2].want("c")
		nw.MendAll()
		nodes[1].wantWithin(35*time.Second, "b", "c")
		nodes[2].wantWithin(35*time.Second, "b", "c")
	})
}

func TestRestartedNodeIsBackAtOnce(t *testing.T) {
	for moved, at := range map[string]int{"same address": 3, "moved": 33} {
		for _, pause := range []time.Duration{2 * time.Millisecond, 3 * time.Second, time.Minute} {
			synctest.Test(t, func(t *testing.T) {
				nw := memnet.New(1)
				nodes := startCluster(t, nw, 3)
				old := nodes[2]
				old.host.Kill()
				time.Sleep(pause)
				started := time.Now()
				again := startNode(t, nw, "c", at, nil)
				nodes[2] = again
				defer stopCluster(append(nodes, old)...)
				time.Sleep(2 * time.Second)
				for range 120 {
					for _, n := range nodes {
						n.want("a", "b", "c")
						for _, node := range n.Nodes() {
							if node.ID == "c" && (node.Started.Before(started) || node.Addr != clusterIP(at)+":7946") {
								t.Errorf("%s, %v: %s knows %+v, want the new run", moved, pause, n.name, node)
							}
						}
					}
					time.Sleep(500 * time.Millisecond)
				}
				for _, n := range nodes {
					if got := n.log.at(slog.LevelError, ""); len(got) > 0 {
						t.Errorf("%s, %v: %s took a restart for a conflict: %q", moved, pause, n.name, got)
					}
				}
			})
		}
	}
}

func TestStrangerNeverBecomesAMember(t *testing.T) {
	for how, mod := range map[string]func(*push.Config){
		"other secret": func(cfg *push.Config) { cfg.Cluster.Secrets = [][]byte{clusterSecret(2)} },
		"other name":   func(cfg *push.Config) { cfg.Cluster.Name = "blue" },
		"both":         func(cfg *push.Config) { cfg.Cluster.Name, cfg.Cluster.Secrets = "blue", [][]byte{clusterSecret(2)} },
	} {
		synctest.Test(t, func(t *testing.T) {
			nw := memnet.New(1)
			nodes := startCluster(t, nw, 2)
			stranger := startNode(t, nw, "x", 9, mod)
			defer stopCluster(append(nodes, stranger)...)
			time.Sleep(11 * time.Second)
			if err := stranger.Ready(); err != nil {
				t.Errorf("%s: not ready after the join time: %v", how, err)
			}
			time.Sleep(20 * time.Minute)
			stranger.want("x")
			nodes[0].want("a", "b")
			nodes[1].want("a", "b")
			for _, n := range []*clusterNode{stranger, nodes[0]} {
				hints := n.log.at(slog.LevelWarn, "hint=")
				if len(hints) == 0 || !strings.Contains(hints[0], "Cluster.") {
					t.Errorf("%s: %s does not say what is wrong: %q", how, n.name, n.log.at(slog.LevelWarn, ""))
				}
				if lines := n.log.at(slog.LevelWarn, ""); len(lines) > 30 {
					t.Errorf("%s: %s wrote %d lines in 20 minutes: %q", how, n.name, len(lines), lines[:10])
				}
			}
			late := startNode(t, nw, "c", 3, nil) // and the others still take members
			defer late.Close()
			nodes[1].wantWithin(5*time.Second, "a", "b", "c")
		})
	}
}

func TestTwoNodesOfOneIDAreReportedByBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		nodes := startCluster(t, nw, 2)
		twin := startNode(t, nw, "b", 9, nil)
		defer stopCluster(append(nodes, twin)...)
		time.Sleep(time.Minute)
		for _, n := range append(nodes, twin) {
			got := n.log.at(slog.LevelError, "two nodes run under one id")
			if len(got) != 1 || !strings.Contains(got[0], clusterIP(2)) || !strings.Contains(got[0], clusterIP(9)) {
				t.Errorf("%s reports %q, want one line with both addresses", n.name, got)
			}
			n.want("a", "b")
		}
	})
}

func TestSecretsRotateWithoutANodeLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		one, two := clusterSecret(1), clusterSecret(2)
		var nodes []*clusterNode
		for i, secrets := range [][][]byte{{one}, {one, two}, {two, one}} {
			nodes = append(nodes, startNode(t, nw, string(rune('a'+i)), i+1, func(cfg *push.Config) { cfg.Cluster.Secrets = secrets }))
		}
		defer func() { stopCluster(nodes...) }()
		// a has the old one only and cannot read c, whose first is the new one.
		nodes[1].wantWithin(5*time.Second, "a", "b")
		nodes[0].host.Kill()
		nodes[0].Close()
		nodes[0] = startNode(t, nw, "a", 1, func(cfg *push.Config) { cfg.Cluster.Secrets = [][]byte{one, two} })
		for _, n := range nodes {
			n.wantWithin(40*time.Second, "a", "b", "c")
		}
	})
}

func TestLossBringsNoFalseAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(3)
		nodes := startCluster(t, nw, 5)
		defer stopCluster(nodes...)
		nw.SetLoss(0.3)
		time.Sleep(10 * time.Minute)
		for _, n := range nodes {
			n.want("a", "b", "c", "d", "e")
			if got := n.log.at(slog.LevelInfo, "node gone"); len(got) > 0 {
				t.Errorf("%s: %q", n.name, got)
			}
		}
	})
}

// stranger is a bare memberlist node in the cluster "push", without secret, on
// 127.0.0.0/8, that says of itself what it likes.
type stranger struct{ meta []byte }

func (s stranger) NodeMeta(int) []byte                  { return s.meta }
func (s stranger) NotifyMsg([]byte)                     {}
func (s stranger) GetBroadcasts(int, int) [][]byte      { return nil }
func (s stranger) LocalState(bool) []byte               { return nil }
func (s stranger) MergeRemoteState(b []byte, join bool) {}

func startStranger(t *testing.T, nw *memnet.Network, name, ip string, meta []byte) *memberlist.Memberlist {
	t.Helper()
	cfg := memberlist.DefaultLANConfig()
	cfg.Name, cfg.Label, cfg.Delegate = name, "push", stranger{meta}
	cfg.Transport, cfg.Logger = nw.Host(ip).Transport(7946), log.New(io.Discard, "", 0)
	m, err := memberlist.Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNodeThatIsNotUnderstoodIsIgnored(t *testing.T) {
	meta := func(fields ...any) []byte {
		b, err := msgpack.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for what, s := range map[string]struct {
		name, ip string
		meta     []byte
		member   bool
	}{
		"a good one":            {"x~1", "127.0.0.9", meta(1, "x", 1, "", 0, 0), true},
		"one with news":         {"x~1", "127.0.0.9", meta(1, "x", 1, "", 0, 0, "new", []int{1, 2}), true},
		"next version":          {"x~1", "127.0.0.9", meta(2, "something", "else"), false},
		"no metadata":           {"x~1", "127.0.0.9", nil, false},
		"cut off":               {"x~1", "127.0.0.9", meta(1, "x", 1, "", 0, 0)[:5], false},
		"out of time":           {"x~zzzzzzzzzzz", "127.0.0.9", meta(1, "x", uint64(131621703842267135), "", 0, 0), false},
		"too short":             {"x~1", "127.0.0.9", meta(1, "x", 1), false},
		"a claim of much":       {"x~1", "127.0.0.9", []byte{0xdd, 0xff, 0xff, 0xff, 0xff, 0x01}, false},
		"a map":                 {"x~1", "127.0.0.9", []byte{0x81, 0x01, 0x02}, false},
		"another's name":        {"y~1", "127.0.0.9", meta(1, "x", 1, "", 0, 0), false},
		"another's epoch":       {"x~1", "127.0.0.9", meta(1, "x", 2, "", 0, 0), false},
		"a bad id":              {"x y~1", "127.0.0.9", meta(1, "x y", 1, "", 0, 0), false},
		"not on loopback":       {"x~1", "10.0.0.9", meta(1, "x", 1, "", 0, 0), false},
		"not from this cluster": {"plain", "127.0.0.9", []byte("web-1"), false},
	} {
		synctest.Test(t, func(t *testing.T) {
			nw := memnet.New(1)
			n := &clusterNode{t: t, name: "a", host: nw.Host("127.0.0.1"), log: &logBook{}}
			var err error
			n.Engine, err = push.New(push.Config{Logger: slog.New(n.log), Cluster: &push.Cluster{
				Node: "a", Insecure: true, Transport: n.host.Transport(7946),
			}})
			if err != nil {
				t.Fatal(err)
			}
			m := startStranger(t, nw, s.name, s.ip, s.meta)
			if _, err := m.Join([]string{"127.0.0.1:7946"}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(4 * time.Minute)
			if s.member {
				n.want("a", "x")
			} else {
				n.want("a")
				if got := n.log.at(slog.LevelWarn, "node ignored"); len(got) != 1 {
					t.Errorf("%s: warned %q, want one line", what, got)
				}
			}
			if t.Failed() {
				t.Logf("%s: %q", what, n.log.at(slog.LevelDebug, ""))
			}
			m.Shutdown()
			stopCluster(n)
		})
	}
}

func TestClusterRefusesABadConfig(t *testing.T) {
	good := func() *push.Cluster {
		return &push.Cluster{Bind: "127.0.0.1:0", Secrets: [][]byte{clusterSecret(1)}}
	}
	const recipe = "openssl rand -base64 32"
	for what, c := range map[string]struct {
		mod  func(*push.Cluster)
		want string // in the error's text
	}{
		"no secret":                {func(c *push.Cluster) { c.Secrets = nil }, recipe},
		"short secret":             {func(c *push.Cluster) { c.Secrets[0] = c.Secrets[0][:31] }, recipe},
		"poor secret":              {func(c *push.Cluster) { c.Secrets[0] = []byte("0123456789abcdeedcba9876543210001122334455667788")[17:] }, recipe},
		"zeros":                    {func(c *push.Cluster) { c.Secrets[0] = make([]byte, 64) }, recipe},
		"repeating secret":         {func(c *push.Cluster) { c.Secrets[0] = []byte("0123456789abcdef0123456789abcdef") }, recipe},
		"repeating, not whole":     {func(c *push.Cluster) { c.Secrets[0] = bytes.Repeat([]byte("0123456789abcdefg"), 3)[:40] }, recipe},
		"the same secret twice":    {func(c *push.Cluster) { c.Secrets = append(c.Secrets, clusterSecret(1)) }, recipe},
		"second secret bad":        {func(c *push.Cluster) { c.Secrets = append(c.Secrets, []byte("x")) }, "Secrets[1]"},
		"long name":                {func(c *push.Cluster) { c.Name = strings.Repeat("x", 65) }, "Name"},
		"name with a slash":        {func(c *push.Cluster) { c.Name = "a/b" }, "Name"},
		"node with a tilde":        {func(c *push.Cluster) { c.Node = "a~b" }, "Node"},
		"node not ASCII":           {func(c *push.Cluster) { c.Node = "knüller" }, "Node"},
		"bind to a name":           {func(c *push.Cluster) { c.Bind = "example.com:1" }, "Bind"},
		"bind to no port":          {func(c *push.Cluster) { c.Bind = "127.0.0.1:99999" }, "Bind"},
		"bind to all IPv6":         {func(c *push.Cluster) { c.Bind = "[::]:0" }, "Advertise"},
		"bind to another's":        {func(c *push.Cluster) { c.Bind = "192.0.2.1:0" }, "Bind"},
		"advertise a name":         {func(c *push.Cluster) { c.Advertise = "example.com" }, "Advertise"},
		"advertise nothing":        {func(c *push.Cluster) { c.Advertise = "0.0.0.0:7" }, "Advertise"},
		"empty seed":               {func(c *push.Cluster) { c.Seeds = []string{""} }, "Seeds"},
		"seed without host":        {func(c *push.Cluster) { c.Seeds = []string{":7946"} }, "Seeds"},
		"seed with port 0":         {func(c *push.Cluster) { c.Seeds = []string{"127.0.0.1:0"} }, "Seeds"},
		"seed that is a URL":       {func(c *push.Cluster) { c.Seeds = []string{"http://127.0.0.1:7946"} }, "Seeds"},
		"seed out of reach":        {func(c *push.Cluster) { c.Seeds = []string{"192.0.2.1"} }, "Bind"},
		"insecure on the network":  {func(c *push.Cluster) { c.Secrets, c.Insecure, c.Bind = nil, true, "0.0.0.0:0" }, recipe},
		"insecure, seed elsewhere": {func(c *push.Cluster) { c.Secrets, c.Insecure, c.Seeds = nil, true, []string{"db.internal"} }, recipe},
		"insecure, advertised":     {func(c *push.Cluster) { c.Secrets, c.Insecure, c.Advertise = nil, true, "192.0.2.1" }, recipe},
		"insecure transport": {func(c *push.Cluster) {
			c.Secrets, c.Insecure, c.Transport = nil, true, memnet.New(1).Host("192.0.2.1").Transport(1)
		}, recipe},
	} {
		cfg := good()
		c.mod(cfg)
		e, err := push.New(push.Config{Cluster: cfg, Logger: slog.New(slog.DiscardHandler)})
		if err == nil {
			e.Close()
			t.Errorf("%s: accepted", what)
		} else if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "push: ") {
			t.Errorf("%s: %v, want a push error with %q", what, err, c.want)
		}
		for _, s := range cfg.Secrets {
			if err != nil && len(s) > 8 && strings.Contains(err.Error(), string(s[:8])) {
				t.Errorf("%s: the error shows the secret", what)
			}
		}
	}
	for what, mod := range map[string]func(*push.Cluster){
		"defaults":                  func(c *push.Cluster) {},
		"a secret in base64":        func(c *push.Cluster) { c.Secrets[0] = []byte("yd0Dy3gk8Nv3qgUu6Z1n1yVJmVtY2YxJ0m2hQ1u8t5E=") },
		"insecure on loopback":      func(c *push.Cluster) { c.Secrets, c.Insecure, c.Seeds = nil, true, []string{"localhost:9", "[::1]:9"} },
		"a seed that never answers": func(c *push.Cluster) { c.Seeds = []string{"127.0.0.1:9"} },
		"advertised port":           func(c *push.Cluster) { c.Advertise = "127.0.0.1:4711" },
		"every interface":           func(c *push.Cluster) { c.Bind, c.Advertise = ":0", "192.0.2.1" },
	} {
		cfg := good()
		mod(cfg)
		e, err := push.New(push.Config{Cluster: cfg, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		nodes := e.Nodes()
		if len(nodes) != 1 || nodes[0].ID == "" || len(nodes[0].ID) > 64 || strings.HasSuffix(nodes[0].Addr, ":0") {
			t.Errorf("%s: Nodes %+v, want this one with an id and an address", what, nodes)
		}
		if what == "advertised port" && nodes[0].Addr != cfg.Advertise {
			t.Errorf("%s: Nodes %+v", what, nodes)
		}
		e.Close()
	}
}

func TestClusterOnRealSockets(t *testing.T) {
	book := &logBook{news: make(chan struct{}, 1)}
	var nodes []*clusterNode
	for i := range 3 {
		n := &clusterNode{t: t, name: string(rune('a' + i)), log: book}
		cfg := &push.Cluster{Node: n.name, Bind: "127.0.0.1:0", Secrets: [][]byte{clusterSecret(1)}}
		if i > 0 {
			first := nodes[0].Nodes()[0].Addr
			cfg.Seeds = []string{first}
			if i == 2 {
				cfg.Seeds[0] = strings.Replace(first, "127.0.0.1", "localhost", 1)
			}
		}
		var err error
		if n.Engine, err = push.New(push.Config{Logger: slog.New(book), Cluster: cfg}); err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		nodes = append(nodes, n)
	}
	// Every change of membership is logged, so nobody has to poll.
	until := func(want ...string) {
		t.Helper()
		late := time.After(30 * time.Second)
		for _, n := range nodes[:len(want)] {
			for !slices.Equal(n.sees(), want) {
				select {
				case <-book.news:
				case <-late:
					t.Fatalf("%s sees %v, want %v; log %q", n.name, n.sees(), want, book.at(slog.LevelDebug, ""))
				}
			}
		}
	}
	until("a", "b", "c")
	if err := nodes[2].Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	until("a", "b")
}

package test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
)

// drains shuts a node down under load. Its devices are told to go, its senders
// go on until they are refused, and its host is free again at the end. It
// returns when Shutdown did, and the trouble that began with it.
func (l *strain) drains(n *nodeWorld, limit time.Duration) (tr *trouble, ended time.Time) {
	l.t.Helper()
	tr = l.begun(with(n.name))
	l.mu.Lock()
	for _, e := range l.ears {
		if e.node == n && e.until.IsZero() {
			e.until = time.Now()
		}
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := n.Shutdown(ctx); err != nil {
		l.errorf("Shutdown of %s: %v", n.name, err)
	}
	ended = time.Now()
	l.mu.Lock()
	if stop := l.stops[n]; stop != nil {
		stop()
	}
	delete(l.stops, n)
	l.dead[n] = true
	l.w.nodes = slices.DeleteFunc(l.w.nodes, func(other *nodeWorld) bool { return other == n })
	l.mu.Unlock()
	n.host.Kill()
	return tr, ended
}

func TestDrainUnderLoadLosesNoAck(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		l := newFaultWorld(t, 4, 4, 20*time.Millisecond)
		c := l.w.node("c")
		slow := l.visits(c, "push.json", "slow")
		slow.page.onAck(func(p *page, m envelope) {
			time.AfterFunc(300*time.Millisecond, func() { p.answers(m, nil) })
		})
		l.mu.Lock()
		l.users = append(l.users, "slow")
		l.mu.Unlock()
		time.Sleep(time.Second)
		var hidden atomic.Int64
		var watch sync.WaitGroup
		others := l.w.named("a", "b", "d")
		watch.Go(func() {
			for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(time.Millisecond) {
				if !slices.ContainsFunc(others, func(n *nodeWorld) bool {
					return n.Online("only-c") || n.Online("slow") || slices.Contains(n.sees(), "c") || slices.Contains(n.sees(), "c*")
				}) {
					hidden.Store(time.Now().UnixNano())
					return
				}
			}
		})
		begin := time.Now()
		_, ended := l.drains(c, 10*time.Second)
		watch.Wait()
		if late := time.Unix(0, hidden.Load()).Sub(ended); late > 100*time.Millisecond {
			t.Errorf("the node was hidden %v after its Shutdown had ended", late)
		} else {
			t.Logf("Shutdown took %v, hidden %v after its end", ended.Sub(begin), late)
		}
		time.Sleep(3 * time.Second)
		if wrong := l.whole(); wrong != "" {
			t.Error(wrong)
		}
		if died := l.died(); len(died) > 0 {
			t.Errorf("a polite leave was taken for a death: %q", died)
		}
		l.check()
		t.Log(l.outcomes())
	})
}

// TestSecretsAreRotatedUnderLoad by restarting one node after the other, three
// times.
func TestSecretsAreRotatedUnderLoad(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		was, next := clusterSecret(1), clusterSecret(2)
		secrets := [][]byte{was}
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			faultConfig(cfg)
			cfg.Cluster.Secrets = secrets
			if cfg.Cluster.Node == "a" {
				cfg.Cluster.Seeds = []string{clusterIP(2), clusterIP(3)}
			}
		})
		l := newStrain(t, w)
		l.begins(3, 50*time.Millisecond)
		for _, secrets = range [][][]byte{{was, next}, {next, was}, {next}} {
			for i, name := range []string{"a", "b", "c"} {
				tr, _ := l.drains(w.node(name), 5*time.Second)
				time.Sleep(20 * time.Millisecond)
				n := l.starts(name, i+1)
				l.within(10*time.Second, "whole", l.whole)
				l.visits(n, "push.json", "only-"+name)
				l.visits(n, loadDoors[i+1], "both-"+name)
				l.beginsOn(n, 3, 50*time.Millisecond)
				w.spreads()
				l.mended(tr)
				time.Sleep(500 * time.Millisecond)
			}
		}
		for _, n := range w.nodes {
			if s := n.Stats().Cluster; s.StreamsRefused > 0 {
				t.Errorf("%s has refused %d streams", n.name, s.StreamsRefused)
			}
		}
		l.check()
		t.Log(l.outcomes())
	})
}

// TestNodeJoinsDuringHeavyChurn: it is not ready before it knows whoever stays,
// and equal soon after the churn.
func TestNodeJoinsDuringHeavyChurn(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		l := newFaultWorld(t, 4, 0, 0)
		const stay, churners = 40, 5
		var stayers []string
		var conns []*push.Conn
		for _, n := range l.w.nodes {
			n.dialect = "push.json"
			for i := range stay {
				user := fmt.Sprintf("stays %s %d", n.name, i)
				n.connect(user)
				stayers = append(stayers, user)
			}
			for range churners {
				conns = append(conns, n.connect("").conn())
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		var churn sync.WaitGroup
		var ops atomic.Int64
		for i, c := range conns {
			churn.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					if err := c.Bind(ctx, fmt.Sprintf("churn %d %d", i, n%1000)); err != nil && ctx.Err() == nil {
						t.Error(err)
						return
					}
					ops.Add(2)
					time.Sleep(time.Millisecond)
				}
			})
		}
		time.Sleep(time.Second)
		begin := time.Now()
		e := l.starts("e", 5)
		for e.Ready() != nil && time.Since(begin) < 20*time.Second {
			time.Sleep(time.Millisecond)
		}
		t.Logf("ready after %v", time.Since(begin))
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("ready only after %v: it sees %v, %+v; %q", took, e.sees(), *e.Stats().Cluster, e.log.at(slog.LevelDebug, ""))
		}
		for _, user := range stayers {
			if !e.Online(user) {
				t.Fatalf("ready, and does not know of %s", user)
			}
		}
		time.Sleep(time.Second)
		stop()
		churn.Wait()
		t.Logf("%d ops; equal %v after the churn", ops.Load(), l.within(2*time.Second, "equal", l.same))
		if wrong := l.whole(); wrong != "" {
			t.Error(wrong)
		}
		l.check()
	})
}

// TestJoinerIsMetByAllThoughPacketsAreLost: who joins tells one node by a
// stream, and the others hear of it by packets, or when it dials them.
func TestJoinerIsMetByAllThoughPacketsAreLost(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		l := newFaultWorld(t, 4, 0, 0)
		l.w.net.SetLoss(1)
		e := l.starts("e", 5)
		l.visits(e, "push.json", "only-e")
		took := l.within(5*time.Second, "whole", l.whole)
		t.Logf("whole after %v", took)
		if err := e.Ready(); err != nil {
			t.Errorf("whole, and not ready: %v", err)
		}
		l.w.net.SetLoss(0)
		l.check()
	})
}

// TestPeerThatTakesNothingHoldsUpNobodyElse: one direction between two nodes
// stands still, so the sender's link fills up.
func TestPeerThatTakesNothingHoldsUpNobodyElse(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		l := newFaultWorld(t, 3, 0, 0)
		a, b, c := l.w.abc()
		l.begins(1, 100*time.Millisecond)
		time.Sleep(time.Second)
		tr := l.begun(func(x, y string) bool { return x+y == "ab" || x+y == "ba" })
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		l.w.net.CutOneWay(clusterIP(a.at), clusterIP(b.at))
		begin := time.Now()
		late := l.visits(a, "push.json", "late")

		// More than fits into the queue.
		big := strings.Repeat("x", 64<<10)
		ctx, stop := context.WithCancel(t.Context())
		var work sync.WaitGroup
		var overloaded, taken atomic.Int64
		for range 8 {
			work.Go(func() {
				for ctx.Err() == nil {
					begin := time.Now()
					var over time.Duration
					done := make(chan push.Receipt, 1)
					_, err := a.PushToUser(context.Background(), "only-b", push.Message{Data: big, Async: true, Progress: func(r push.Receipt) {
						if r.Sent+r.Failed == r.Targets {
							over = time.Since(begin)
							done <- r
						}
					}})
					if took := time.Since(begin); err != nil || took > time.Second {
						t.Errorf("an Async push returned %v after %v", err, took)
					}
					if time.Since(begin) < time.Second { // it was taken, or there is no link
						taken.Add(1)
						sleepFor(ctx, 10*time.Millisecond)
						continue
					}
					r := <-done
					overloaded.Add(1)
					if len(r.Deliveries) != 1 || r.Deliveries[0].Status != push.Overloaded || over != time.Second {
						t.Errorf("after %v: %+v, want it Overloaded after 1 s", over, r)
					}
				}
			})
		}
		time.Sleep(2 * time.Second)
		deadline, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		asked := time.Now()
		r, err := a.PushToUser(deadline, "only-b", push.Message{Data: big})
		if took := time.Since(asked); took != 300*time.Millisecond || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, push.ErrOverloaded) || len(r.Deliveries) != 1 || r.Deliveries[0].Status != push.Overloaded {
			t.Errorf("after %v: %+v, %v, want it Overloaded at its deadline", took, r, err)
		}
		for time.Since(begin) < 8*time.Second {
			for _, pair := range [][2]*nodeWorld{{a, c}, {c, a}, {b, c}, {c, b}} {
				if p := l.probe(pair[0], "only-"+pair[1].name, push.AutoAck, time.Second); p.took > 20*time.Millisecond || p.r.Acked != 1 {
					t.Errorf("%v: %+v, want it Acked soon", p, p.r)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		if b.Online("late") || !c.Online("late") {
			t.Errorf("who came late is known to b: %v, to c: %v", b.Online("late"), c.Online("late"))
		}
		synctest.Wait()
		runtime.GC()
		runtime.ReadMemStats(&after)
		grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		t.Logf("%d pushes were overloaded, %d taken, %d KiB more on the heap", overloaded.Load(), taken.Load(), grown>>10)
		if s := a.Stats().Cluster; s.Full == 0 || overloaded.Load() == 0 {
			t.Errorf("the link was never full: %+v", s)
		}
		if grown > 32<<20 {
			t.Errorf("%d MiB more on the heap", grown>>20)
		}
		time.Sleep(time.Until(begin.Add(12 * time.Second)))
		if p := l.probe(a, "only-b", push.AutoAck, time.Second); !slices.Equal(p.statuses(), []push.Status{push.NodeLost}) || p.took > 0 {
			t.Errorf("%v: %+v, want NodeLost at once: the link is dead", p, p.r)
		}
		if sa, sb := a.Stats().Cluster, b.Stats().Cluster; sa.LinksLost+sb.LinksLost == 0 || sa.Dropped == 0 { // a cannot write, b hears nothing
			t.Errorf("no link was lost, or nothing with it: %+v, %+v", sa, sb)
		}
		stop()
		work.Wait()
		l.w.mends(a, b)
		t.Logf("whole after %v", l.within(6*time.Second, "whole", l.whole))
		l.mended(tr)
		if p := l.probe(b, "late", push.AutoAck, time.Second); p.r.Acked != 1 || late.conn() == nil {
			t.Errorf("%v: %+v, want it Acked", p, p.r)
		}
		l.check()
		t.Log(l.outcomes())
	})
}

// TestTwoHundredJoinsAndLeavesLeaveNothingBehind: every fourth one dies.
func TestTwoHundredJoinsAndLeavesLeaveNothingBehind(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		nw := memnet.New(1)
		nodes := startCluster(t, nw, 2)
		defer stopCluster(nodes...)
		batch := func() (goroutines int, heap int64) {
			for i := range 66 {
				n := startNode(t, nw, fmt.Sprint("guest", i%3), 3+i%3, nil)
				for begin := time.Now(); n.Ready() != nil || len(n.Nodes()) < 3; time.Sleep(5 * time.Millisecond) {
					if time.Since(begin) > 40*time.Second {
						t.Fatalf("join %d: %v, sees %v", i, n.Ready(), n.Nodes())
					}
				}
				if _, err := nodes[0].Push(t.Context(), push.Audience{All: true}, push.Message{Ack: push.AutoAck}); err != nil && !errors.Is(err, push.ErrNodeLost) && !errors.Is(err, push.ErrOffline) {
					t.Error(err)
				}
				if i%4 == 3 {
					n.host.Kill()
				} else if err := n.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				n.Close()
				time.Sleep(200 * time.Millisecond)
				nw.Host(clusterIP(3 + i%3)).Kill()
			}
			time.Sleep(5 * time.Minute) // memberlist's last timers
			synctest.Wait()
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			for _, n := range nodes {
				n.want("a", "b")
				n.log.mu.Lock()
				n.log.lines, n.log.level = nil, nil
				n.log.mu.Unlock()
				if s := n.Stats(); s.Cluster.Nodes != 1 || s.Cluster.LinksUp != 1 || s.Cluster.LinksIn != 1 || s.Flights != 0 || s.Cluster.Pending != 0 {
					t.Errorf("%s: %+v, %+v", n.name, s, *s.Cluster)
				}
			}
			return runtime.NumGoroutine(), int64(m.HeapAlloc)
		}
		g1, h1 := batch()
		g2, h2 := batch()
		g3, h3 := batch()
		t.Logf("goroutines %d, %d, %d; heap %d, %d, %d KiB", g1, g2, g3, h1>>10, h2>>10, h3>>10)
		if g3 > g2 {
			t.Errorf("%d goroutines, after the batch before %d", g3, g2)
		}
		if h3-h2 > 512<<10 {
			t.Errorf("the third batch left %d KiB", (h3-h2)>>10)
		}
	})
}

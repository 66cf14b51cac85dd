//go:build processes

// Clusters of real processes with real sockets, on addresses of the loopback
// network, and what happens to processes: they are killed, stopped, restarted,
// replaced. What a network does is tested in virtual time.
//
//	go test -tags processes -run TestProcess ./test -timeout 15m
//
// A cluster that is cut in halves, and a clock that goes back before a restart,
// are not here: they need rights that a test has not. Virtual time has both.
//
// All the time every node pushes, with acks, and every push is checked: it has
// exactly one outcome for each device, keeps its deadline, comes at most once
// and in order, an Acked one was seen, and where nothing is done to a push's
// node nor to a device, that device is Acked, and nothing else is in the
// receipt. See procWorld.
package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/embedpush/push"
)

// procCluster starts nodes with clients and waits until they are whole.
func procCluster(t *testing.T, ids ...string) *procWorld {
	t.Helper()
	w := newProcWorld(t)
	for _, id := range ids {
		w.start(id, nil)
	}
	w.populate(ids...)
	t.Logf("whole after %v", w.whole(20*time.Second))
	return w
}

// isTo tells whether a push was to this user alone.
func (p *procPush) isTo(user string) bool { return len(p.To) == 1 && p.To[0] == user }

func TestProcessKilledIsHiddenAndTheOthersAreUnaffected(t *testing.T) {
	w := procCluster(t, "a", "b", "c", "d", "e")
	victim := w.nodes["e"]
	var killed time.Time
	var lost, offline int
	var slowest time.Duration
	w.watch = func(by *procNode, p *procPush) {
		begin, end := time.Unix(0, p.Begin), time.Unix(0, p.End)
		if killed.IsZero() || by == victim || !p.isTo("on-e") || end.Before(killed) {
			return
		}
		if begin.Before(killed) {
			begin = killed
		}
		slowest = max(slowest, end.Sub(begin))
		lost += len(p.rowsOf("on-e", ""))
		offline += len(p.Offline)
	}
	w.load(2)
	w.after(2000)
	w.mu.Lock()
	killed = time.Now()
	w.mu.Unlock()
	victim.kill()
	hidden := make(map[string]time.Duration) // by whom, after what time
	w.eventually(time.Minute, "hidden", func() (why string) {
		for _, n := range w.running() {
			if hidden[n.cfg.ID] > 0 {
				continue
			}
			if why = n.sees([]string{"a", "b", "c", "d"}); why != "" {
				continue
			}
			hidden[n.cfg.ID] = time.Since(killed)
			if n.online("on-e") {
				t.Errorf("%s does not see e, but has its user online", n.cfg.ID)
			}
		}
		if len(hidden) < 4 {
			return fmt.Sprint(hidden)
		}
		return ""
	})
	w.settle()
	limit := 12 * time.Second // 8 s where nothing else runs
	for _, n := range w.running() {
		w.mu.Lock()
		if stalled := n.stalled.share(killed, time.Now()); stalled > 500*time.Millisecond {
			t.Logf("%s did not run for %v meanwhile", n.cfg.ID, stalled)
			limit = 25 * time.Second // such a node probes others less often, and its doubts weigh less
		}
		w.mu.Unlock()
	}
	for id, took := range hidden {
		if took > limit {
			t.Errorf("%s hid it after %v", id, took)
		}
	}
	w.after(500)
	w.mu.Lock()
	t.Logf("hidden after %v; pushes to its user: %d lost, %d offline, the slowest took %v", hidden, lost, offline, slowest)
	if lost == 0 || offline == 0 {
		t.Error("want some lost, and then some offline")
	}
	// It is told by its sockets, and not by silence.
	if slowest > 500*time.Millisecond {
		t.Errorf("a push to its user took %v", slowest)
	}
	killed = time.Time{}
	w.mu.Unlock()

	w.move("", "e", "a")
	t.Logf("its clients are elsewhere after %v", w.whole(10*time.Second))
	w.after(500)
	w.rest()
}

func TestProcessStoppedForThreeSecondsStaysAMember(t *testing.T) {
	w := procCluster(t, "a", "b", "c")
	w.load(3)
	w.after(500)
	ids := []string{"a", "b", "c"}
	others := []*procNode{w.nodes["a"], w.nodes["b"]}
	for range 2 {
		w.nodes["c"].halt(3*time.Second, func() {
			watching(2900*time.Millisecond, func() {
				for _, n := range others {
					if why := n.sees(ids); why != "" {
						t.Error(why)
					}
				}
			})
		})
		t.Logf("whole after %v", w.whole(5*time.Second))
		w.after(500)
	}
	for _, n := range w.running() {
		if why := n.sees(ids); why != "" {
			t.Error(why)
		}
		if s := n.stats().Cluster; s.LinksLost != 0 {
			t.Errorf("%s lost %d links for silence", n.cfg.ID, s.LinksLost)
		}
	}
	w.rest()
}

func TestProcessStoppedForLongComesBackWhole(t *testing.T) {
	w := procCluster(t, "a", "b", "c")
	w.load(3)
	w.after(500)
	snapshots := func() (n uint64) {
		for _, node := range w.running() {
			n += node.stats().Cluster.Snapshots
		}
		return n
	}
	for _, d := range []time.Duration{8 * time.Second, 12 * time.Second} {
		left := false
		before := snapshots()
		w.nodes["c"].halt(d, func() {
			watching(d-100*time.Millisecond, func() { left = left || w.nodes["a"].sees([]string{"a", "b"}) == "" })
		})
		took := w.whole(35 * time.Second)
		t.Logf("stopped for %v: left: %v, whole after %v", d, left, took)
		// What it missed is told, and not everything anew.
		if n := snapshots() - before; n != 0 {
			t.Errorf("stopped for %v: %d snapshots", d, n)
		}
		w.after(500)
	}
	w.rest()
}

func TestProcessRestartedAtOnceLeavesNothingStale(t *testing.T) {
	w := procCluster(t, "a", "b", "c")
	w.load(3)
	w.after(500)
	for i, where := range []string{"the same", "another"} {
		stays := fmt.Sprintf("leaver-%d", i)
		w.dial(stays, "page", "c")
		w.whole(10 * time.Second)
		old := w.nodes["c"]
		old.kill()
		w.move(stays, "c", "")
		var at *procPlace
		if where == "the same" {
			at = &old.procPlace
		}
		n := w.start("c", at)
		if at != nil && n.Cluster != old.Cluster {
			t.Fatalf("it came back at %s, want %s", n.Cluster, old.Cluster)
		}
		t.Logf("at %s port: whole after %v", where, w.whole(10*time.Second))
		for _, n := range w.running() {
			if n.online(stays) {
				t.Errorf("%s has a user of the old run online", n.cfg.ID)
			}
			var p procPush
			n.must(&p, procAsk{Op: "push", Users: []string{stays}, Wait: 2 * time.Second})
			if len(p.Rows) > 0 || !slices.Equal(p.Offline, []string{stays}) {
				t.Errorf("%s pushes to a user of the old run: %v, offline %v", n.cfg.ID, p.Rows, p.Offline)
			}
		}
		n.load(3, w.users()...)
		w.after(500)
	}
	w.rest()
}

func TestProcessThatDoesNotReadCostsItsSendersLittle(t *testing.T) {
	w := procCluster(t, "a", "b", "c")
	w.dial("with-b", "page", "b")
	w.whole(10 * time.Second)
	sender, slow := w.nodes["a"], w.nodes["c"]
	var before, during []*procPush // by the sender to another node
	flooding := false
	w.watch = func(by *procNode, p *procPush) {
		if by == sender && (p.isTo("on-b") || p.isTo("with-b")) {
			if flooding {
				during = append(during, p)
			} else {
				before = append(before, p)
			}
		}
	}
	w.load(3)
	sender.load(2, "on-b", "with-b")
	w.after(1500)
	w.mu.Lock()
	flooding = true
	w.mu.Unlock()
	slow.halt(8*time.Second, func() {
		sender.must(nil, procAsk{Op: "flood", Users: []string{"on-c"}, Room: procRoom("c"), Workers: 1024, Rate: 20_000})
	})
	var f procFlood
	sender.must(&f, procAsk{Op: "calm"})
	w.mu.Lock()
	flooding = false
	w.watch = nil
	w.mu.Unlock()
	growth := int64(f.Peak-f.Memory) >> 20
	begin, end := time.Unix(0, f.Longest.From), time.Unix(0, f.Longest.To)
	t.Logf("%d pushes, %v, errors %v, the longest took %v; memory %d MiB and %d more, %d goroutines", f.Begun, f.Statuses, f.Errors, end.Sub(begin), f.Memory>>20, growth, f.Routines)
	if growth >= 64 {
		t.Errorf("the sender grew by %d MiB", growth)
	}
	for status := range f.Statuses {
		if !slices.Contains([]string{"sent", "overloaded", "timeout", "nodelost", "of users offline"}, status) {
			t.Errorf("a push is %s", status)
		}
	}
	for text := range f.Errors { // of a push to the room that got no row in time
		if text != context.DeadlineExceeded.Error() {
			t.Errorf("a push says %s", text)
		}
	}
	w.settle()
	w.mu.Lock()
	if late := end.Sub(begin) - sender.stalled.share(begin, end) - time.Second; late > 2*procSlack {
		t.Errorf("a push with a deadline of 1 s was %v late", late)
	}
	// The median, and the 99th percentile, of what it took while all ran.
	times := func(all []*procPush) (p50, p99 time.Duration) {
		var took []time.Duration
		for _, p := range all {
			begin, end := time.Unix(0, p.Begin), time.Unix(0, p.End)
			took = append(took, p.Took-max(w.stalled.share(begin, end), sender.stalled.share(begin, end), w.nodes["b"].stalled.share(begin, end)))
		}
		slices.Sort(took)
		return took[len(took)/2], took[len(took)*99/100]
	}
	if len(before) < 100 || len(during) < 100 {
		w.mu.Unlock()
		t.Fatalf("%d pushes to another node before, %d meanwhile", len(before), len(during))
	}
	p50, p99 := times(before)
	t.Logf("pushes to another node: %d before, p50 %v, p99 %v", len(before), p50, p99)
	p50, p99 = times(during)
	t.Logf("pushes to another node: %d meanwhile, p50 %v, p99 %v", len(during), p50, p99)
	if p50 > 50*time.Millisecond || p99 > 500*time.Millisecond {
		t.Errorf("pushes to another node: p50 %v, p99 %v", p50, p99)
	}
	w.mu.Unlock()
	t.Logf("whole after %v", w.whole(35*time.Second))
	w.after(500)
	w.rest()
}

func TestProcessesRestartedOneByOneLoseNoAckedPush(t *testing.T) {
	w := newProcWorld(t)
	w.drain = time.Second
	ids := []string{"a", "b", "c"}
	for _, id := range ids {
		w.start(id, nil)
	}
	w.populate(ids...)
	w.whole(20 * time.Second)
	w.load(3)
	w.after(500)
	for _, id := range ids {
		w.renew(id)
		w.after(500)
	}
	w.rest()
	w.mu.Lock()
	defer w.mu.Unlock()
	all := 0
	for _, n := range w.rows {
		all += n
	}
	if acked := w.rows[push.Acked]; acked*100 < all*95 {
		t.Errorf("%d of %d deliveries were acked", acked, all)
	}
}

func TestProcessesKeepTheirPromisesThroughChaos(t *testing.T) {
	ids := []string{"a", "b", "c", "d"}
	w := procCluster(t, ids...)
	w.repeats = true
	w.load(2)
	w.after(500)
	for range 3 {
		at := rand.Perm(len(ids))
		killed, stopped, renewed := ids[at[0]], ids[at[1]], ids[at[2]]
		elsewhere, d := rand.IntN(2) == 0, time.Duration(1000+rand.IntN(3000))*time.Millisecond
		t.Logf("%s is killed and comes back elsewhere: %v; %s is stopped for %v; %s is restarted", killed, elsewhere, stopped, d, renewed)
		old := w.nodes[killed]
		old.kill()
		w.nodes[stopped].halt(d, func() {
			var place *procPlace
			if !elsewhere {
				place = &old.procPlace
			}
			w.start(killed, place)
			w.nodes[renewed].shutdown()
			w.start(renewed, nil)
		})
		t.Logf("whole after %v", w.whole(35*time.Second))
		for _, id := range []string{killed, renewed} {
			w.nodes[id].load(2, w.users()...)
		}
		w.after(500)
	}
	w.rest()
}

// renew restarts a node politely, elsewhere, and waits until all is whole.
func (w *procWorld) renew(id string) *procNode {
	w.t.Helper()
	begin := time.Now()
	w.nodes[id].shutdown()
	down := time.Since(begin)
	n := w.start(id, nil)
	took := w.whole(20 * time.Second)
	w.t.Logf("%s: shut down in %v, whole %v after its start", id, down, took)
	n.load(3, w.users()...)
	return n
}

func TestProcessesChangeTheirSecretsOneByOne(t *testing.T) {
	w := procCluster(t, "a", "b", "c")
	w.load(3)
	older, newer := clusterSecret(1), clusterSecret(2)
	for _, secrets := range [][][]byte{{older, newer}, {newer, older}, {newer}} {
		w.secrets = secrets
		for _, id := range []string{"a", "b", "c"} {
			w.renew(id)
			w.after(100)
		}
	}
	w.rest()

	w.secrets = [][]byte{older}
	late := w.start("d", nil)
	w.eventually(10*time.Second, "refused", func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, line := range late.lines {
			if strings.Contains(line, "secret") {
				return ""
			}
		}
		return "d says nothing of secrets"
	})
	if why := late.sees([]string{"d"}); why != "" {
		t.Error(why)
	}
	late.kill()
}

func TestProcessesOfTwoVersionsTalk(t *testing.T) {
	next := filepath.Join(t.TempDir(), "next.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "processes pushlinknext", "-o", next, ".")
	begin := time.Now()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}
	t.Logf("built in %v", time.Since(begin))

	w := newProcWorld(t)
	w.start("a", nil)
	w.exe = next
	w.start("b", nil)
	w.exe = ""
	w.start("c", nil)
	if a, b := w.nodes["a"].Proto, w.nodes["b"].Proto; b != a+1 {
		t.Fatalf("the two versions speak %d and %d", a, b)
	}
	w.populate("a", "b", "c")
	w.whole(20 * time.Second)
	w.load(3)
	w.after(1000)
	// One after the other becomes the next version, and one of them goes back.
	for _, step := range []struct{ id, exe string }{{"a", next}, {"c", next}, {"b", ""}} {
		w.exe = step.exe
		w.renew(step.id)
		w.after(500)
		w.eventually(5*time.Second, "protocol", func() string {
			for _, n := range w.running() {
				for _, other := range w.running() {
					if why := n.speaks(other); n != other && why != "" {
						return why
					}
				}
			}
			return ""
		})
	}
	w.rest()
}

// speaks tells what is wrong with the protocol of the link to another node: it
// is to be the newest that both know.
func (n *procNode) speaks(other *procNode) string {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	want := fmt.Sprintf("proto=%d", min(n.Proto, other.Proto))
	for _, line := range slices.Backward(n.links) {
		if words := strings.Fields(line); slices.Contains(words, "node="+other.cfg.ID) {
			if !slices.Contains(words, want) {
				return fmt.Sprintf("%s to %s: %s, want %s", n.cfg.ID, other.cfg.ID, line, want)
			}
			return ""
		}
	}
	return fmt.Sprintf("%s has no link to %s", n.cfg.ID, other.cfg.ID)
}

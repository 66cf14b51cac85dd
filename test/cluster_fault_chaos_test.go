package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/embedpush/push"
)

// chaos is a cluster in which something happens all the time.
type chaos struct {
	*strain
	rnd    *rand.Rand
	faults []fault
	tr     *trouble // what may fail since the cluster was whole last; nil: nothing
	bad    map[string]bool
	log    []string
}

// fault ends at some time.
type fault struct {
	until time.Time
	end   func()
}

// TestClusterIsWholeAfterChaos lets nodes die, be cut off, drain and come back,
// users log in, out and move, for a minute in which everybody pushes to
// everybody. PUSH_CHAOS_SEED runs one seed.
func TestClusterIsWholeAfterChaos(t *testing.T) {
	seeds := []uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()}
	if one, err := strconv.ParseUint(os.Getenv("PUSH_CHAOS_SEED"), 10, 64); err == nil {
		seeds = []uint64{one}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T) { runChaos(t, seed, time.Minute) })
		})
	}
}

func runChaos(t *testing.T, seed uint64, lasts time.Duration) {
	const nodes = 5
	w := newClusterWorld(t, nodes, func(cfg *push.Config) {
		faultConfig(cfg)
		cfg.Cluster.Seeds = nil
		for at := range nodes {
			cfg.Cluster.Seeds = append(cfg.Cluster.Seeds, clusterIP(at+1))
		}
	})
	c := &chaos{strain: newStrain(t, w), rnd: rand.New(rand.NewPCG(seed, 1)), bad: map[string]bool{}}
	c.seed, c.moves = seed, true
	for i := range 4 {
		c.users = append(c.users, fmt.Sprint("one ", i), fmt.Sprint("guest ", i))
	}
	c.begins(2, 100*time.Millisecond)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(strings.Join(c.log, "\n"))
		}
	})
	for begin := time.Now(); time.Since(begin) < lasts; {
		c.step()
		time.Sleep(time.Duration(100+c.rnd.IntN(900)) * time.Millisecond)
		c.faults = slices.DeleteFunc(c.faults, func(f fault) bool {
			over := !time.Now().Before(f.until)
			if over {
				f.end()
			}
			return over
		})
		if c.tr != nil && len(c.faults) == 0 && c.whole() == "" {
			c.mended(c.tr)
			c.tr = nil
			c.note("whole")
		}
	}
	for _, f := range c.faults {
		f.end()
	}
	took := c.within(50*time.Second, "whole", c.whole)
	c.note("whole at last")
	if c.tr != nil {
		c.mended(c.tr)
	}
	time.Sleep(2 * time.Second)
	if wrong := c.whole(); wrong != "" {
		t.Error(wrong)
	}
	for _, n := range w.nodes {
		for i := range 4 {
			devices, err := n.Devices(t.Context(), push.Audience{User: fmt.Sprint("one ", i)})
			if err != nil || len(devices) > 1 {
				t.Errorf("%s: user %d is logged in %d times: %+v, %v", n.name, i, len(devices), devices, err)
			}
		}
	}
	for _, e := range c.ears {
		if n := e.replaced(); n > 1 {
			t.Errorf("%v was told %d times that it is replaced", e, n)
		}
	}
	c.check()
	t.Logf("whole after %v; %v", took, c.outcomes())
}

func (c *chaos) note(format string, args ...any) {
	c.log = append(c.log, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// harms says that what goes between these nodes may fail until the cluster is
// whole again; one name: with all others.
func (c *chaos) harms(names ...string) {
	if c.tr == nil {
		bad := map[string]bool{}
		c.bad = bad
		c.tr = c.begun(func(x, y string) bool { return bad[x+y] || bad[y+x] || bad[x] || bad[y] })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bad[strings.Join(names, "")] = true
}

func (c *chaos) anyNode() *nodeWorld { return c.w.nodes[c.rnd.IntN(len(c.w.nodes))] }

func (c *chaos) later(max time.Duration, end func()) {
	c.faults = append(c.faults, fault{time.Now().Add(time.Duration(c.rnd.Int64N(int64(max)))), end})
}

// step does one thing.
func (c *chaos) step() {
	n := c.anyNode()
	switch c.rnd.IntN(14) {
	case 0, 1: // a node dies, or leaves
		if len(c.w.nodes) < 3 {
			return
		}
		c.harms(n.name)
		at := n.at
		switch how := c.rnd.IntN(3); how {
		case 0:
			c.note("kill %s", n.name)
			c.dies(n, n.host.Kill)
		case 1:
			c.note("unplug %s", n.name)
			c.dies(n, n.host.Unplug)
		default:
			c.note("drain %s", n.name)
			c.drains(n, 3*time.Second)
		}
		if n.name > "b" && c.rnd.IntN(4) == 0 { // a and b stay where the seeds are
			at = 10 + at%10 + 10*c.rnd.IntN(3)
		}
		for slices.ContainsFunc(c.w.nodes, func(other *nodeWorld) bool { return other.at == at }) {
			at++
		}
		name := n.name
		c.later(8*time.Second, func() {
			c.note("start %s at %d", name, at)
			n := c.starts(name, at)
			c.visits(n, "push.json", "only-"+name)
			c.visits(n, "mpush tcp plain", "both-"+name)
			c.beginsOn(n, 2, 100*time.Millisecond)
		})
	case 2, 3: // two nodes are cut off each other
		other := c.anyNode()
		if other == n {
			return
		}
		c.harms(n.name, other.name)
		from, to := clusterIP(n.at), clusterIP(other.at)
		if c.rnd.IntN(2) == 0 {
			c.note("cut %s %s", n.name, other.name)
			c.w.net.Cut(from, to)
		} else {
			c.note("cut %s to %s", n.name, other.name)
			c.w.net.CutOneWay(from, to)
		}
		c.later(15*time.Second, func() {
			c.note("mend %s %s", n.name, other.name)
			c.w.net.Mend(from, to)
		})
	case 4: // one stalls
		c.harms(n.name)
		c.note("stall %s", n.name)
		var ips []string
		for _, other := range c.w.nodes {
			if other != n {
				ips = append(ips, clusterIP(other.at))
				c.w.net.Cut(clusterIP(n.at), clusterIP(other.at))
			}
		}
		c.later(12*time.Second, func() {
			c.note("go on %s", n.name)
			for _, ip := range ips {
				c.w.net.Mend(clusterIP(n.at), ip)
			}
		})
	case 5:
		c.w.net.SetLoss(0.3 * c.rnd.Float64())
		c.later(10*time.Second, func() { c.w.net.SetLoss(0) })
	case 6, 7, 8:
		c.logsIn(n, fmt.Sprint("one ", c.rnd.IntN(4)))
	case 9, 10:
		c.visits(n, loadDoors[c.rnd.IntN(5)], fmt.Sprint("guest ", c.rnd.IntN(4)))
	default: // somebody goes, or moves
		var stay []*listener
		for _, e := range c.ears {
			if e.until.IsZero() && !e.loose && strings.HasPrefix(e.user, "guest") && !c.dead[e.node] {
				stay = append(stay, e)
			}
		}
		if len(stay) > 0 {
			e := stay[c.rnd.IntN(len(stay))]
			if c.rnd.IntN(2) == 0 {
				c.visits(n, loadDoors[c.rnd.IntN(5)], e.user)
			}
			c.leaves(e)
		}
	}
}

package test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/embedpush/push"
	"github.com/hashicorp/memberlist"
)

// The benchmarks of the cluster run nodes over sockets on loopback, with TLS
// and everything else as in production. CPU is that of all nodes together, user
// and system, without the clients, which live in a second process as for other
// benchmarks (see bench_linux_test.go); a page in memory has no client and costs
// no system call. What the parts cost by themselves tell BenchmarkRequestAnswer
// and BenchmarkSendReliable of internal/link, and the benchmarks of
// internal/nodemsg, internal/directory and internal/relay.

// BenchmarkClusterPush pushes 256 bytes from one node to users of another, which
// is a process of its own, and waits for each receipt; so many callers at once,
// each with a user of its own. In turn:
//
//	page        to pages on loopback sockets
//	page-ack    … which answer (AutoAck)
//	memory      to pages in memory, with a goroutine for each write
//	memory-ack  … which answer
//	queue       to pages in memory that take nothing meanwhile: no write at all
//	async       … with Async; the callers wait for the Progress that tells all
//	users       … with PushToUsers, four calls at a time to all those users each
//	here        to pages on loopback sockets of the node that pushes
//	reliable    memberlist's SendReliable to the other process, encrypted, which tells nothing
//
// A message is one delivery. Allocations are those of the node that pushes and of
// the far one. To see where the time goes: PUSH_BENCH_KIND=queue leaves the others
// out, and PUSH_BENCH_PROFILE=far.prof profiles the far node beside -cpuprofile.
func BenchmarkClusterPush(b *testing.B) {
	for _, window := range []int{1, 64, 1024} {
		b.Run(fmt.Sprint("window", window), func(b *testing.B) { benchmarkClusterPush(b, window) })
	}
}

func benchmarkClusterPush(b *testing.B, window int) {
	const turns = 5
	p := newPair(b, window)
	pushes := min(50_000, 500*window) // a page's queue has room for 500
	m := push.Message{Event: benchEvent, Data: strings.Repeat("x", 256)}
	acked := m
	acked.Ack = push.AutoAck
	list, err := newBenchList("a", new(atomic.Int64))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { list.Shutdown() })
	to := &memberlist.Node{Name: "b", Addr: memoryAddr.IP, Port: uint16(p.listPort)}
	payload := make([]byte, 256)

	kinds := []clusterKind{
		{name: "page", do: p.pusher("u", 0, m)},
		{name: "page-ack", do: p.pusher("u", 0, acked)},
		{name: "memory", do: p.pusher("m", 0, m)},
		{name: "memory-ack", do: p.pusher("m", 0, acked)},
		{name: "queue", do: p.pusher("m", 0, m), hold: true},
		{name: "async", do: p.asyncPusher("m", m), hold: true},
		{name: "users", do: p.usersPusher("m", window, m), hold: true, callers: 4, n: pushes / window, rows: window},
		{name: "here", do: p.pusher("u", window, m)},
		{name: "reliable", n: 1000, do: func(int) error { return list.SendReliable(to, payload) }},
	}
	if only := os.Getenv("PUSH_BENCH_KIND"); only != "" {
		kinds = slices.DeleteFunc(kinds, func(k clusterKind) bool { return !slices.Contains(strings.Split(only, ","), k.name) })
	}
	for i := range kinds { // the links and pools grow
		k := &kinds[i]
		k.callers, k.n, k.rows = cmp.Or(k.callers, window), cmp.Or(k.n, pushes), cmp.Or(k.rows, 1)
		p.turn(k, 2*k.callers)
	}
	for b.Loop() {
		for range turns {
			for i := range kinds {
				k := &kinds[i]
				k.turns = append(k.turns, p.turn(k, k.n))
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, k := range kinds {
		n := k.n * k.rows
		rate := median(k.turns, func(t *clusterTurn) float64 { return t.rate(n) })
		cpu := median(k.turns, func(t *clusterTurn) float64 { return float64((t.cpu + t.farCPU).Nanoseconds()) / 1000 / float64(n) })
		b.ReportMetric(rate, k.name+"-msg/s")
		b.ReportMetric(cpu, k.name+"-cpu-µs/msg")
		b.Logf("%-10s %7.0f msg/s (%.0f to %.0f)  cpu %6.2f µs, far %.2f  p50 %6.0f µs  p99 %6.0f µs  allocs %.1f + far %.1f", k.name, rate,
			slices.MinFunc(k.turns, bySpeed).rate(n), slices.MaxFunc(k.turns, bySpeed).rate(n), cpu,
			median(k.turns, func(t *clusterTurn) float64 { return float64(t.farCPU.Nanoseconds()) / 1000 / float64(n) }),
			median(k.turns, func(t *clusterTurn) float64 { return float64(t.p50.Nanoseconds()) / 1000 }),
			median(k.turns, func(t *clusterTurn) float64 { return float64(t.p99.Nanoseconds()) / 1000 }),
			median(k.turns, func(t *clusterTurn) float64 { return float64(t.mallocs) / float64(n) }),
			median(k.turns, func(t *clusterTurn) float64 { return float64(t.farMallocs) / float64(n) }))
	}
}

// clusterKind is one of those who are measured in turn.
type clusterKind struct {
	name    string
	do      func(caller int) error
	callers int  // at once
	n       int  // how often in a turn
	rows    int  // deliveries of each
	hold    bool // the far pages in memory take nothing meanwhile
	turns   []clusterTurn
}

// pair is a node in this process, a, and one in a second process, b. Pages of b
// are u0, u1, … on sockets and as many m0, … in its memory; as many more on
// sockets are a's.
type pair struct {
	b        *testing.B
	engine   *push.Engine
	far      *secondProcess
	load     *load // b's pages
	here     *load // a's
	listPort int
}

func newPair(b *testing.B, pages int) *pair {
	b.Helper()
	e, err := newClusterEngine("a", "-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	p := &pair{b: b, engine: e, far: startProcess(b, roleNode), load: startLoad(b), here: startLoad(b)}
	var ports [3]int64
	p.far.ask(ports[:], "start %s", ownAddr(e))
	p.far.ask(nil, "ballast")
	hold64MB()
	b.Cleanup(func() { ballast = nil })
	p.listPort = int(ports[2])
	var conns [1]int64
	p.far.ask(conns[:], "pages %d", pages)
	p.load.dial(int(ports[1]), 0, pages, 10)
	p.here.dial(port(listenOn(b, e)), pages, pages, 10)
	wantLinks(b, e, 1)
	benchUntil(b, "the other node's users are known", func() bool {
		for i := range pages {
			if !e.Online(fmt.Sprint("u", i)) || !e.Online(fmt.Sprint("m", i)) {
				return false
			}
		}
		return true
	})
	return p
}

// pusher makes what a caller does: it pushes to its user, the first of whom is
// the one of this number.
func (p *pair) pusher(prefix string, first int, m push.Message) func(caller int) error {
	var users [1024]string
	for i := range users {
		users[i] = fmt.Sprint(prefix, first+i)
	}
	ctx := context.Background()
	return func(caller int) error {
		r, err := p.engine.PushToUser(ctx, users[caller], m)
		if err == nil && (m.Ack == push.NoAck && r.Sent != 1 || m.Ack != push.NoAck && r.Acked != 1) {
			err = fmt.Errorf("receipt %+v", r)
		}
		return err
	}
}

// asyncPusher is pusher with Async.
func (p *pair) asyncPusher(prefix string, m push.Message) func(caller int) error {
	var users [1024]string
	var over [1024]chan push.Receipt
	var messages [1024]push.Message
	for i := range users {
		done := make(chan push.Receipt, 1)
		users[i], over[i], messages[i] = fmt.Sprint(prefix, i), done, m
		messages[i].Async = true
		messages[i].Progress = func(r push.Receipt) {
			if r.Targets > 0 && r.Sent+r.Acked+r.Failed == r.Targets {
				done <- r
			}
		}
	}
	return func(caller int) error {
		if _, err := p.engine.PushToUser(context.Background(), users[caller], messages[caller]); err != nil {
			return err
		}
		if r := <-over[caller]; r.Sent != 1 {
			return fmt.Errorf("receipt %+v", r)
		}
		return nil
	}
}

// usersPusher is pusher with PushToUsers, to the first so many users.
func (p *pair) usersPusher(prefix string, count int, m push.Message) func(caller int) error {
	users := make([]string, count)
	for i := range users {
		users[i] = fmt.Sprint(prefix, i)
	}
	return func(int) error {
		r, err := p.engine.PushToUsers(context.Background(), users, m)
		if err == nil && r.Sent != count {
			err = fmt.Errorf("sent %d of %d", r.Sent, count)
		}
		return err
	}
}

// clusterTurn is what some pushes took.
type clusterTurn struct {
	wall, cpu, farCPU   time.Duration
	p50, p99            time.Duration
	mallocs, farMallocs uint64
}

func (t clusterTurn) rate(n int) float64 { return float64(n) / t.wall.Seconds() }

func bySpeed(a, b clusterTurn) int { return int(b.wall - a.wall) }

// turn has the callers of a kind do it n times, all of them together.
func (p *pair) turn(k *clusterKind, n int) clusterTurn {
	p.b.Helper()
	took := make([]time.Duration, n)
	errs := make([]error, k.callers)
	var next atomic.Int64
	var work sync.WaitGroup
	if k.hold {
		p.far.ask(nil, "hold")
	}
	before := p.cost()
	begin := time.Now()
	for c := range k.callers {
		work.Go(func() {
			for errs[c] == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				from := time.Now()
				errs[c] = k.do(c)
				took[i] = time.Since(from)
			}
		})
	}
	work.Wait()
	t := clusterTurn{wall: time.Since(begin)}
	if err := errors.Join(errs...); err != nil {
		p.b.Fatalf("%s: %v", k.name, err)
	}
	switch {
	case strings.HasPrefix(k.name, "page"):
		p.load.wait(n) // then node b has written them all
	case k.name == "here":
		p.here.wait(n)
	case k.name == "reliable":
		benchUntil(p.b, "all messages of SendReliable came", func() bool { return p.cost().got-before.got >= int64(n) })
		t.wall = time.Since(begin)
	}
	after := p.cost()
	if k.hold {
		p.far.ask(nil, "release")
	}
	t.cpu, t.farCPU = after.cpu-before.cpu, after.farCPU-before.farCPU
	t.mallocs, t.farMallocs = after.mallocs-before.mallocs, after.farMallocs-before.farMallocs
	slices.Sort(took)
	t.p50, t.p99 = took[n/2], took[n*99/100]
	return t
}

// clusterCost is what both nodes have used of CPU so far and each has made of
// objects, and how many messages of SendReliable have come.
type clusterCost struct {
	cpu, farCPU         time.Duration
	mallocs, farMallocs uint64
	got                 int64
}

func (p *pair) cost() (c clusterCost) {
	var there [3]int64
	p.far.ask(there[:], "cost")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return clusterCost{cpuTime(), time.Duration(there[0]), m.Mallocs, uint64(there[1]), there[2]}
}

// BenchmarkClusterBind tells how long it takes until all other nodes know that
// a user came, and that he left, while connections on all nodes are bound and
// unbound so many times a second in the whole cluster. A few of them are sampled,
// on every node, each millisecond. CPU is that of everything, in percent of one
// processor; timer is how late a sleep of 20 ms, as long as links gather what is
// new, wakes up in the same process: what the machine has to do with it.
func BenchmarkClusterBind(b *testing.B) {
	for _, nodes := range []int{3, 10} {
		for _, rate := range []int{2000, 20_000} {
			b.Run(fmt.Sprintf("%dnodes/%dops", nodes, rate), func(b *testing.B) { benchmarkClusterBind(b, nodes, rate) })
		}
	}
}

func benchmarkClusterBind(b *testing.B, count, rate int) {
	const pages, warm, span = 100, time.Second, 3 * time.Second
	nodes := startBenchNodes(b, count)
	conns := make([][]*push.Conn, count)
	for i, e := range nodes {
		for range pages + 1 {
			if _, err := addMemoryPage(e, ""); err != nil {
				b.Fatal(err)
			}
		}
		conns[i] = slices.Collect(e.Conns())
	}
	var came, left, late []time.Duration
	var cpu, wall time.Duration
	var ops atomic.Int64
	var measured int64
	b.ResetTimer()
	for b.Loop() {
		ctx, cancel := context.WithTimeout(b.Context(), warm+span)
		var work sync.WaitGroup
		var mu sync.Mutex // guards came and left
		work.Go(func() {
			for ctx.Err() == nil {
				begin := time.Now()
				time.Sleep(20 * time.Millisecond)
				late = append(late, time.Since(begin)-20*time.Millisecond)
			}
		})
		from := time.Now().Add(warm)
		for i := range nodes {
			work.Go(func() { bindAndUnbind(ctx, b, conns[i][:pages], i, float64(rate)/float64(count), &ops) })
			work.Go(func() {
				up, down := sampleBinds(ctx, b, conns[i][pages], nodes, i, from, &ops)
				mu.Lock()
				defer mu.Unlock()
				came, left = append(came, up...), append(left, down...)
			})
		}
		time.Sleep(warm)
		before, begin, done := cpuTime(), time.Now(), ops.Load()
		work.Wait()
		cpu, wall = cpu+cpuTime()-before, wall+time.Since(begin)
		measured += ops.Load() - done
		cancel()
	}
	b.ReportMetric(0, "ns/op")
	for _, of := range []struct {
		name string
		took []time.Duration
	}{{"bind", came}, {"unbind", left}, {"timer", late}} {
		slices.Sort(of.took)
		at := func(percent int) float64 { return float64(of.took[len(of.took)*percent/100].Microseconds()) / 1000 }
		b.ReportMetric(at(50), of.name+"-p50-ms")
		b.ReportMetric(at(99), of.name+"-p99-ms")
		b.Logf("%d samples of %s, longest %v", len(of.took), of.name, of.took[len(of.took)-1])
	}
	for i, e := range nodes {
		if s := e.Stats().Cluster; s.Diverged+s.Dropped+s.LinksLost > 0 || s.Snapshots > uint64(count-1) {
			b.Logf("node %d: %+v", i, *s) // the machine, or a fault
		}
	}
	b.ReportMetric(100*cpu.Seconds()/wall.Seconds(), "cpu-%")
	b.ReportMetric(float64(measured)/wall.Seconds(), "ops/s")
}

// bindAndUnbind binds and unbinds connections of a node so many times a second, in steps
// of 5 ms, until ctx ends. Each user is a new one.
func bindAndUnbind(ctx context.Context, b *testing.B, conns []*push.Conn, node int, rate float64, ops *atomic.Int64) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	begin := time.Now()
	for done := 0; ; {
		select {
		case <-ctx.Done():
			for _, c := range conns {
				c.Unbind()
			}
			return
		case <-tick.C:
		}
		first := done
		for due := int(time.Since(begin).Seconds() * rate); done < due; done++ {
			if done%2 == 0 {
				if err := conns[done/2%len(conns)].Bind(context.Background(), fmt.Sprintf("n%d-%09d", node, done)); err != nil {
					b.Error(err)
					return
				}
			} else {
				conns[(done/2+len(conns)/2)%len(conns)].Unbind()
			}
		}
		ops.Add(int64(done - first))
	}
}

// sampleBinds binds a connection and unbinds it until ctx ends, and tells when
// the other nodes knew it, those of samples that began after from.
func sampleBinds(ctx context.Context, b *testing.B, c *push.Conn, nodes []*push.Engine, self int, from time.Time, ops *atomic.Int64) (came, left []time.Duration) {
	all := make([]int, 0, len(nodes))
	for i := range nodes {
		if i != self {
			all = append(all, i)
		}
	}
	seen := func(user string, online bool, begin time.Time) (took []time.Duration) {
		waiting := slices.Clone(all)
		for len(waiting) > 0 {
			time.Sleep(time.Millisecond)
			waiting = slices.DeleteFunc(waiting, func(i int) bool {
				if nodes[i].Online(user) != online {
					return false
				}
				took = append(took, time.Since(begin))
				return true
			})
			if time.Since(begin) > 10*time.Second {
				b.Errorf("node %d: online of %s is not %v after 10 s on nodes %v", self, user, online, waiting)
				return took
			}
		}
		if begin.Before(from) {
			return nil
		}
		return took
	}
	for i := 0; ctx.Err() == nil && !b.Failed(); i++ {
		user := fmt.Sprintf("s%d-%09d", self, i)
		begin := time.Now()
		if err := c.Bind(context.Background(), user); err != nil {
			b.Error(err)
			return
		}
		came = append(came, seen(user, true, begin)...)
		time.Sleep(rand.N(40 * time.Millisecond)) // the links have just been written to
		begin = time.Now()
		c.Unbind()
		left = append(left, seen(user, false, begin)...)
		ops.Add(2)
		time.Sleep(rand.N(40 * time.Millisecond))
	}
	return came, left
}

// BenchmarkClusterJoin lets a node, a process of its own, join a cluster of one
// other node that has many places: rooms with names of 12 bytes, 256 for each of
// its connections, which cost the directory what as many users would. Time is
// from New until the node is ready and knows them; B/entry is what they cost it,
// beyond what it needs when there are none. The million takes
// PUSH_BENCH_LARGE=1.
func BenchmarkClusterJoin(b *testing.B) {
	for _, count := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			if count > 100_000 && os.Getenv("PUSH_BENCH_LARGE") == "" {
				b.Skip("PUSH_BENCH_LARGE is not set")
			}
			benchmarkClusterJoin(b, count)
		})
	}
}

func benchmarkClusterJoin(b *testing.B, count int) {
	const rooms, joins = 256, 3
	e, err := newClusterEngine("a", "-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	join := func(want int) (took time.Duration, memory [3]int64) {
		p := startProcess(b, roleNode)
		defer p.stop()
		var ports [3]int64
		p.ask(ports[:], "start %s", ownAddr(e))
		var known [2]int64
		if p.ask(known[:], "knows %d", want); known[0] != known[1] {
			b.Errorf("a node is ready and knows %d of %d rooms that there are", known[0], known[1])
		}
		p.ask(memory[:], "memory")
		return time.Duration(ports[0]), memory
	}
	_, before := join(0)
	for range (count + rooms - 1) / rooms {
		if _, err := addMemoryPage(e, ""); err != nil {
			b.Fatal(err)
		}
	}
	next := 0
	for c := range e.Conns() {
		for range min(rooms, count-next) {
			if err := c.Join(benchRoom(next)); err != nil {
				b.Fatal(err)
			}
			next++
		}
	}
	runtime.GC()
	var took []time.Duration
	var resident, heap []float64
	for b.Loop() {
		for range joins {
			d, after := join(count)
			took = append(took, d)
			resident = append(resident, float64(after[0]-before[0])/float64(count))
			heap = append(heap, float64(after[1]-before[1])/float64(count))
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(took, func(d *time.Duration) float64 { return float64(d.Microseconds()) / 1000 }), "ms/join")
	b.ReportMetric(median(resident, func(f *float64) float64 { return *f }), "B/entry")
	b.ReportMetric(median(heap, func(f *float64) float64 { return *f }), "heap-B/entry")
	b.Logf("from New to all of it: %v", took)
}

// BenchmarkRelayedPoll pushes to Socket.IO clients that poll, at the node where
// their sessions are and through another node, a process of its own, in turn. A
// cycle is the answer to a waiting GET, a POST, and the next GET; CPU is that of
// both nodes. Latency is from the call until the client has read the message,
// one push at a time.
func BenchmarkRelayedPoll(b *testing.B) {
	const turns, polls, single = 5, 500, 100
	e, err := newClusterEngine("a", "-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	far, ln := startProcess(b, roleNode), listenOn(b, e)
	var ports [3]int64
	far.ask(ports[:], "start %s", ownAddr(e))
	far.ask(nil, "front %d", port(ln))
	wantLinks(b, e, 1)
	p := &pair{b: b, engine: e, far: far}
	kinds := []struct {
		name  string
		port  int
		load  *load
		cpus  []float64 // µs of a cycle
		took  []time.Duration
		first int
	}{{name: "direct", port: port(ln)}, {name: "relayed", port: int(ports[1]), first: polls}}
	for i := range kinds {
		k := &kinds[i]
		k.load = startLoad(b)
		k.load.as = asPolling
		k.load.dial(k.port, k.first, polls, 10)
	}
	benchUntil(b, "all of them poll", func() bool { return e.Stats().Conns == 2*polls })
	ctx := context.Background()
	// poll pushes to one client of a kind: two answers come.
	poll := func(first, i int, data string) {
		r, err := e.PushToUser(ctx, fmt.Sprint("u", first+i), push.Message{Event: benchEvent, Data: data})
		if err != nil || r.Sent != 1 {
			b.Fatalf("receipt %+v, error %v", r, err)
		}
	}
	for b.Loop() {
		for range turns {
			for i := range kinds {
				k := &kinds[i]
				for j := range single {
					poll(k.first, j, stamp('e'))
					k.load.wait(2)
				}
				k.took = append(k.took, k.load.latencies('e')...)
				before := p.cost()
				for j := range polls {
					poll(k.first, j, benchText)
				}
				k.load.wait(2 * polls)
				after := p.cost()
				k.cpus = append(k.cpus, float64((after.cpu+after.farCPU-before.cpu-before.farCPU).Nanoseconds())/1000/polls)
			}
		}
	}
	if relayed := e.Stats().Cluster; relayed.Relayed != 0 {
		b.Errorf("node a relays %d requests, it has all sessions itself", relayed.Relayed)
	}
	b.ReportMetric(0, "ns/op")
	same := func(f *float64) float64 { return *f }
	for _, k := range kinds {
		slices.Sort(k.took)
		if len(k.took) == 0 {
			b.Fatalf("%s: no latencies", k.name)
		}
		b.ReportMetric(median(k.cpus, same), k.name+"-cpu-µs/cycle")
		b.ReportMetric(float64(k.took[len(k.took)/2].Nanoseconds())/1000, k.name+"-p50-µs")
		b.ReportMetric(float64(k.took[len(k.took)*99/100].Nanoseconds())/1000, k.name+"-p99-µs")
	}
	b.ReportMetric(median(kinds[1].cpus, same)/median(kinds[0].cpus, same), "cpu-relayed/direct")
}

// BenchmarkClusterCost tells what having a cluster costs a push that does not
// need it: to a user of this node, whose page is in memory, and to one who is
// nowhere, on a node alone and on one of three, in turn. The page takes nothing
// while pushes are made, so each is only put into its queue.
func BenchmarkClusterCost(b *testing.B) {
	const turns, pushes = 199, 500
	alone, err := push.New(benchClusterConfig())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { alone.Close() })
	nodes := startBenchNodes(b, 3)
	pages := make(map[*push.Engine]*memoryPage)
	for _, e := range []*push.Engine{alone, nodes[0]} {
		if pages[e], err = addMemoryPage(e, "here"); err != nil {
			b.Fatal(err)
		}
	}
	kinds := []struct {
		name   string
		engine *push.Engine
		user   string
		ns     []float64
		allocs []float64
	}{
		{name: "alone", engine: alone, user: "here"}, {name: "cluster", engine: nodes[0], user: "here"},
		{name: "alone-offline", engine: alone, user: "nobody"}, {name: "cluster-offline", engine: nodes[0], user: "nobody"},
	}
	ctx, m := context.Background(), push.Message{Event: benchEvent, Data: benchText}
	for b.Loop() {
		for range turns {
			for i := range kinds {
				k := &kinds[i]
				benchUntil(b, "the page has taken everything", func() bool { return k.engine.Stats().QueuedBytes == 0 })
				pages[k.engine].hold.Lock()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				begin := time.Now()
				for range pushes {
					if _, err := k.engine.PushToUser(ctx, k.user, m); (err != nil) != (k.user == "nobody") {
						b.Fatalf("%s: %v", k.name, err)
					}
				}
				wall := time.Since(begin)
				runtime.ReadMemStats(&after)
				pages[k.engine].hold.Unlock()
				k.ns = append(k.ns, float64(wall.Nanoseconds())/pushes)
				k.allocs = append(k.allocs, float64(after.Mallocs-before.Mallocs)/pushes)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	same := func(f *float64) float64 { return *f }
	for _, k := range kinds {
		b.ReportMetric(median(k.ns, same), k.name+"-ns/push")
		b.ReportMetric(median(k.allocs, same), k.name+"-allocs/push")
	}
	b.ReportMetric(median(kinds[1].ns, same)/median(kinds[0].ns, same), "cluster/alone")
}

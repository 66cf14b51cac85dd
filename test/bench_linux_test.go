package test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/embedpush/push"
	"github.com/gorilla/websocket"
)

// The benchmarks run an engine behind net/http on loopback TCP, against
// clients in a second process. CPU is what the engine's process used, user and
// system, so it holds net/http, the garbage collector and the kernel's work
// for a write, but nothing of the clients. A busy machine moves every figure;
// what is steady are ratios of figures taken in turn, which BenchmarkRatios
// makes. Heartbeats are an hour, so that none falls into a measurement but
// BenchmarkIdleCPU's.

const maxClients = 10_000 // one process has few more descriptors

// BenchmarkIdleConnection tells what an idle connection with a user of its own
// and a room of ten costs, after it has got a push and answered a ping: the
// growth of a process that has nothing but the engine, after garbage
// collection.
func BenchmarkIdleConnection(b *testing.B) {
	for b.Loop() {
		rss, heap, stacks := idleMemory(b, roleEngine, asPage)
		b.ReportMetric(rss, "B/conn")
		b.ReportMetric(heap, "heap-B/conn")
		b.ReportMetric(stacks, "stack-B/conn")
	}
	b.ReportMetric(0, "ns/op")
}

// idleMemory is what each of maxClients costs.
func idleMemory(b *testing.B, role, as string) (rss, heap, stacks float64) {
	b.Helper()
	return memoryOf(b, role, as, maxClients)
}

// memoryOf is what each of so many connections of such clients to a server of
// this role costs, in bytes of RAM, of heap objects and of stacks.
func memoryOf(b *testing.B, role, as string, conns int) (rss, heap, stacks float64) {
	b.Helper()
	server, l := startProcess(b, role), startLoad(b)
	l.as = as
	defer server.stop()
	defer l.stop()
	var port [1]int64
	server.hear(port[:])
	idle := func(conns int) [4]int64 {
		l.dial(int(port[0]), 0, conns, 10)
		server.memory(conns)
		server.tell("push")
		l.wait(conns)
		l.pong()
		return server.memory(conns)
	}
	// The first connections pay for what is there once, and go.
	idle(conns / 10)
	l.hangUp()
	before := server.memory(0)
	after, n := idle(conns), float64(conns)
	return float64(after[1]-before[1]) / n, float64(after[2]-before[2]) / n, float64(after[3]-before[3]) / n
}

// memory asks a server, when it has so many connections, for their number and
// what residentMemory says.
func (p *secondProcess) memory(conns int) (got [4]int64) {
	p.b.Helper()
	for range 1000 {
		if p.ask(got[:], "memory"); got[0] == int64(conns) {
			return got
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.b.Fatalf("%d connections, want %d", got[0], conns)
	return got
}

func BenchmarkBroadcast1000(b *testing.B)  { benchmarkBroadcast(b, 1000, 1) }
func BenchmarkBroadcast10000(b *testing.B) { benchmarkBroadcast(b, maxClients, 1) }

// BenchmarkBurst10 makes ten broadcasts back to back, which the engine may
// join; they are waited for together.
func BenchmarkBurst10(b *testing.B) { benchmarkBroadcast(b, maxClients, 10) }

func benchmarkBroadcast(b *testing.B, conns, burst int) {
	f := newFleet(b, conns)
	var sum pushCost
	for b.Loop() {
		sum.add(f.broadcast(burst))
	}
	sum.report(b)
}

// BenchmarkBareWrite is the yardstick: a loop of write(2) of the very frame
// that a broadcast has, to the descriptors of the same kind of connections,
// without the engine.
func BenchmarkBareWrite1000(b *testing.B)  { benchmarkBareWrite(b, 1000) }
func BenchmarkBareWrite10000(b *testing.B) { benchmarkBareWrite(b, maxClients) }

func benchmarkBareWrite(b *testing.B, conns int) {
	f := newFleet(b, conns)
	var sum pushCost
	for b.Loop() {
		sum.add(f.bareWrite())
	}
	sum.report(b)
}

// BenchmarkRooms pushes to random ones of 10 000 rooms of ten members, a
// thousand times between two waits for the clients, and to one room of 10 000.
func BenchmarkRooms(b *testing.B) {
	const size = 10
	f := newFleet(b, maxClients)
	i := 0
	for c := range f.engine.Conns() { // each in ten rooms, with others in each
		for k := range size {
			if err := c.Join(fmt.Sprint("small", (i+k*(size*k+1))%maxClients), "large"); err != nil {
				b.Fatal(err)
			}
		}
		i++
	}
	ctx, m := context.Background(), push.Message{Event: benchEvent, Data: benchText}
	to := func(room string) int {
		r, err := f.engine.PushToRoom(ctx, room, m)
		if err != nil {
			b.Fatal(err)
		}
		return r.Sent
	}
	bench := func(name string, pushes int, push func() int) {
		b.Run(name, func(b *testing.B) {
			var sum pushCost
			for b.Loop() {
				start, deliveries := f.start(), 0
				for range pushes {
					deliveries += push()
				}
				sum.add(start.end(pushes, deliveries))
			}
			sum.report(b)
		})
	}
	names := make([]string, maxClients)
	for i := range names {
		names[i] = fmt.Sprint("small", i)
	}
	bench("10000of10", 1000, func() int { return to(names[rand.IntN(len(names))]) })
	bench("1of10000", 1, func() int { to("large"); return maxClients })
}

// BenchmarkConnect opens 1 000 connections and closes them; cpu-ns/conn is
// what opening one takes, cpu-ns/close closing one.
func BenchmarkConnect(b *testing.B) {
	const n = 1000
	f := newFleet(b, 0)
	var opened, closed time.Duration
	rounds := 0
	for b.Loop() {
		before := cpuTime()
		f.dial(n)
		between := cpuTime()
		f.hangUp()
		opened, closed = opened+between-before, closed+cpuTime()-between
		rounds++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(opened.Nanoseconds())/float64(n*rounds), "cpu-ns/conn")
	b.ReportMetric(float64(closed.Nanoseconds())/float64(n*rounds), "cpu-ns/close")
}

// BenchmarkPushToUser pushes to one user at a time on an idle server, and tells
// the time from the call until the client has read the message: most of it is
// the kernel's and the client's, as the same from a bare write shows. In turn
// with the engine a hub of gorilla/websocket does the same.
//
// The callers go on working after a push, as one does that has more to push
// or a request to answer, so that a hub's writing goroutine needs another
// processor. For the resting figures they sleep at once, and it gets theirs.
func BenchmarkPushToUser(b *testing.B) {
	d := newDuel(b)
	var working, resting latencies
	for b.Loop() {
		working.add(d.round(workOn))
		resting.add(d.round(takeRest))
	}
	b.ReportMetric(0, "ns/op")
	working.report(b, "")
	resting.report(b, "resting-")
	c := d.flatOut()
	b.ReportMetric(c.perDelivery(), "cpu-ns/push")
	b.ReportMetric(float64(c.mallocs)/float64(c.pushes), "allocs/push")
}

// BenchmarkChurn has half of 5 000 connections go and come again, three times
// after a first one that pays for what is there once. heap/before is the heap
// after the last cycle by that after the one before, goroutines-more how many
// more there are.
func BenchmarkChurn(b *testing.B) {
	const conns, half, cycles = 5000, 2500, 3
	f := newFleet(b, 0)
	f.redial(conns / 10)
	f.hangUp()
	time.Sleep(300 * time.Millisecond) // nobody is told when goroutines have ended
	base := runtime.NumGoroutine()
	var cpu time.Duration
	var heap, goroutines [2]float64 // after the cycle before, and after the last one
	rounds := 0
	for b.Loop() {
		f.redial(conns)
		for cycle := range 1 + cycles {
			before := cpuTime()
			f.load.drop(half)
			f.waitConns(conns - half)
			f.dial(half)
			if cycle > 0 {
				cpu += cpuTime() - before
			}
			_, now, _ := residentMemory()
			heap = [2]float64{heap[1], float64(now)}
			goroutines = [2]float64{goroutines[1], float64(runtime.NumGoroutine())}
		}
		rounds++
		f.hangUp()
		for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > base; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				b.Fatalf("%d goroutines when all are gone, %d before any came", runtime.NumGoroutine(), base)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(half*cycles*rounds), "cpu-ns/conn")
	b.ReportMetric(heap[1]/heap[0], "heap/before")
	b.ReportMetric(goroutines[1]-goroutines[0], "goroutines-more")
}

// BenchmarkTLS has 1 000 connections over TLS 1.3: what an idle one costs, what
// its handshake and upgrade take, and a broadcast's delivery.
func BenchmarkTLS(b *testing.B) {
	const conns, broadcasts = 1000, 20
	f := newFleet(b, 0)
	f.ln, f.load.as = listenOn(b, f.engine, overTLS), asTLS
	f.redial(conns / 10)
	var opened time.Duration
	var sum pushCost
	rounds := 0
	for b.Loop() {
		opened += f.redial(conns)
		f.broadcast(1)
		for range broadcasts {
			sum.add(f.broadcast(1))
		}
		rounds++
	}
	sum.report(b)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(opened.Nanoseconds())/float64(conns*rounds), "cpu-ns/conn")
	rss, heap, stacks := memoryOf(b, roleTLS, asTLS, conns)
	b.ReportMetric(rss, "B/conn")
	b.ReportMetric(heap, "heap-B/conn")
	b.ReportMetric(stacks, "stack-B/conn")
}

// BenchmarkGrowth tells what costs at 10 000 connections are to those at 1 000,
// which are measured in turn: the medians of the ratios. Bare writes grow, too,
// since so many connections do not fit the caches: delivery-in-bare is counted
// in those of the same fleet.
func BenchmarkGrowth(b *testing.B) {
	const few, rounds = 1000, 3
	var all []growth
	for b.Loop() {
		small, large := newFleet(b, 0), newFleet(b, 0)
		small.redial(few)
		large.redial(few)
		for range rounds {
			s, l := small.growth(few), large.growth(maxClients)
			all = append(all, growth{l.memory / s.memory, l.heap / s.heap, l.connect / s.connect, l.delivery / s.delivery, l.inBare / s.inBare})
		}
		small.close()
		large.close()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(all, func(g *growth) float64 { return g.memory }), "memory")
	b.ReportMetric(median(all, func(g *growth) float64 { return g.heap }), "heap")
	b.ReportMetric(median(all, func(g *growth) float64 { return g.connect }), "connect-cpu")
	b.ReportMetric(median(all, func(g *growth) float64 { return g.delivery }), "delivery-cpu")
	b.ReportMetric(median(all, func(g *growth) float64 { return g.inBare }), "delivery-in-bare")
}

// growth is what grows.
type growth struct{ memory, heap, connect, delivery, inBare float64 }

// growth takes the costs of so many connections, which come and go for it.
func (f *fleet) growth(conns int) (g growth) {
	f.b.Helper()
	runtime.GC()
	g.connect = float64(f.redial(conns)) / float64(conns)
	f.broadcast(1)
	var bare, one pushCost
	for range 3 * maxClients / conns {
		bare.add(f.bareWrite())
		one.add(f.broadcast(1))
	}
	f.hangUp()
	g.delivery, g.inBare = one.perDelivery(), one.perDelivery()/bare.perDelivery()
	g.memory, g.heap, _ = memoryOf(f.b, roleEngine, asPage, conns)
	return g
}

// BenchmarkIdleCPU has 10 000 connections with nothing but the heartbeat, which
// the clients answer, in its default of 25 s: CPU in per cent of a core, over
// one heartbeat and until its last ping has come, so that there is one for each.
func BenchmarkIdleCPU(b *testing.B) {
	e, err := newBenchEngine(0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	f := &fleet{b: b, engine: e, ln: listenOn(b, e), load: startLoad(b)}
	var cpu, took time.Duration
	for b.Loop() {
		f.redial(maxClients)
		runtime.GC()
		before, began := cpuTime(), time.Now()
		time.Sleep(25 * time.Second)
		f.load.wait(maxClients)
		cpu, took = cpu+cpuTime()-before, took+time.Since(began)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(100*cpu.Seconds()/took.Seconds(), "cpu-%")
}

// BenchmarkRatios takes each figure that has a mark in turn with its
// yardstick, and reports the medians.
func BenchmarkRatios(b *testing.B) {
	const rounds, weighings = 9, 5
	var single, burst, push, resting, memory, hubMemory []float64
	for b.Loop() {
		f := newFleet(b, maxClients)
		bare := f.bareWrite()
		for range rounds {
			one := f.broadcast(1)
			one.add(f.broadcast(1))
			middle := f.bareWrite()
			ten := f.broadcast(10)
			last := f.bareWrite()
			single = append(single, 2*one.perDelivery()/(bare.perDelivery()+middle.perDelivery()))
			burst = append(burst, 2*ten.perDelivery()/(middle.perDelivery()+last.perDelivery()))
			bare = last
		}
		f.close()
		d := newDuel(b)
		for range rounds {
			w, r := d.round(workOn), d.round(takeRest)
			push = append(push, w.ratio())
			resting = append(resting, r.ratio())
		}
		d.close()
		for range weighings {
			bytes, _, _ := idleMemory(b, roleEngine, asPage)
			hubBytes, _, _ := idleMemory(b, roleHub, asPage)
			memory = append(memory, bytes)
			hubMemory = append(hubMemory, bytes/hubBytes)
		}
	}
	idleMark := 700.0
	if info, ok := debug.ReadBuildInfo(); ok && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool {
		return s.Key == "-tags" && strings.Contains(s.Value, "pushgoroutines")
	}) {
		idleMark = 4500
	}
	b.ReportMetric(0, "ns/op")
	for _, r := range []struct {
		what, unit string
		got        []float64
		mark       float64
	}{
		{"broadcast, CPU of a delivery / of a bare write", "broadcast/bare", single, 1.15},
		{"burst of ten, CPU of a delivery / of a bare write", "burst/bare", burst, 0.12},
		{"push to one user, p50 / gorilla hub's", "push/hub", push, 0.3},
		{"the same, callers resting (no mark)", "resting-push/hub", resting, 0},
		{"idle connection, bytes", "B/conn", memory, idleMark},
		{"the same / gorilla hub's (no mark)", "B/hub", hubMemory, 0},
	} {
		slices.Sort(r.got)
		median, verdict := r.got[len(r.got)/2], ""
		switch {
		case r.mark > 0 && median <= r.mark:
			verdict = fmt.Sprintf(", mark %g: reached", r.mark)
		case r.mark > 0:
			verdict = fmt.Sprintf(", mark %g: MISSED", r.mark)
		}
		b.Logf("%-50s median %.4g, %.4g to %.4g%s", r.what, median, r.got[0], r.got[len(r.got)-1], verdict)
		b.ReportMetric(median, r.unit)
	}
}

const benchEvent = "bench"

// benchText makes a broadcast's envelope 128 bytes, its frame 132.
var benchText = strings.Repeat("x", 128-len(`{"event":"bench","data":""}`))

// broadcastFrame is what a broadcast of benchText looks like on the wire.
var broadcastFrame = append([]byte{0x81, 126, 0, 128}, benchFrame(benchText)[2:]...)

// benchFrame is the frame of a push of a short text.
func benchFrame(text string) []byte {
	b := fmt.Appendf([]byte{0x81, 0}, `{"event":%q,"data":%q}`, benchEvent, text)
	b[1] = byte(len(b) - 2)
	return b
}

// newBenchEngine is an engine that believes whom a client says it is, and which
// room it wants to be in.
func newBenchEngine(heartbeat time.Duration) (*push.Engine, error) {
	return push.New(push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			l.Rooms = []string{l.Query("room")}
			return l.UserID, nil
		},
		Heartbeat: heartbeat,
		Logger:    slog.New(slog.DiscardHandler),
	})
}

// noHeartbeat is long enough for none to fall into a measurement.
const noHeartbeat = time.Hour

// fleet is an engine with its clients.
type fleet struct {
	b      *testing.B
	engine *push.Engine
	ln     net.Listener
	load   *load
}

// newFleet makes an engine with connections in rooms of ten. close ends it;
// so does the benchmark's end.
func newFleet(b *testing.B, conns int) *fleet {
	b.Helper()
	e, err := newBenchEngine(noHeartbeat)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	f := &fleet{b: b, engine: e, ln: listenOn(b, e), load: startLoad(b)}
	if conns > 0 {
		f.dial(conns)
		for range 3 { // pools fill, buffers grow
			f.broadcast(1)
		}
		runtime.GC()
	}
	return f
}

func (f *fleet) close() {
	f.engine.Close()
	f.ln.Close()
	f.load.stop()
}

// broadcast makes broadcasts back to back and waits for them.
func (f *fleet) broadcast(burst int) pushCost {
	f.b.Helper()
	ctx, m := context.Background(), push.Message{Event: benchEvent, Data: benchText}
	start := f.start()
	for range burst {
		if r, err := f.engine.Broadcast(ctx, m); err != nil || r.Targets != f.load.conns {
			f.b.Fatalf("receipt %+v, error %v", r, err)
		}
	}
	c := start.end(burst, burst*f.load.conns)
	if want := int64(c.deliveries * len(broadcastFrame)); c.bytes != want {
		f.b.Fatalf("%d bytes came, want %d: frames differ from those of bareWrite", c.bytes, want)
	}
	return c
}

// bareWrite writes a broadcast's frame to every connection behind the engine's
// back, and waits for it.
func (f *fleet) bareWrite() pushCost {
	f.b.Helper()
	fds := accepted(f.b, f.ln)
	start := f.start()
	for _, fd := range fds {
		f.write(fd, broadcastFrame)
	}
	return start.end(1, len(fds))
}

// write is a bare write of a whole frame.
func (f *fleet) write(fd uintptr, frame []byte) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(frame))), uintptr(len(frame)))
	if int(n) != len(frame) {
		f.b.Fatalf("a bare write: %d bytes, error %v", int(n), errno)
	}
}

// listenOn serves h until the listener or the benchmark ends.
func listenOn(b *testing.B, h http.Handler, over ...func(net.Listener) net.Listener) net.Listener {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	for _, wrap := range over {
		ln = wrap(ln)
	}
	go http.Serve(ln, h)
	b.Cleanup(func() { ln.Close() })
	return ln
}

// port is where a listener listens.
func port(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

// accepted finds the descriptors of this process that were accepted there. The
// engine has its own of each connection, so the listener cannot know them.
func accepted(b *testing.B, ln net.Listener) (fds []uintptr) {
	b.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		b.Fatal(err)
	}
	for _, entry := range entries {
		fd, _ := strconv.Atoi(entry.Name())
		at, err := syscall.Getsockname(fd)
		if in4, ok := at.(*syscall.SockaddrInet4); err != nil || !ok || in4.Port != port(ln) {
			continue
		}
		if _, err := syscall.Getpeername(fd); err == nil {
			fds = append(fds, uintptr(fd))
		}
	}
	return fds
}

func (f *fleet) dial(n int) {
	f.b.Helper()
	f.load.dial(port(f.ln), f.load.conns, n, 10)
	f.waitConns(f.load.conns)
}

// hangUp ends all connections.
func (f *fleet) hangUp() {
	f.b.Helper()
	f.load.hangUp()
	f.waitConns(0)
}

// redial has others in the place of all connections, and tells the CPU that
// opening them took.
func (f *fleet) redial(n int) time.Duration {
	f.b.Helper()
	f.hangUp()
	before := cpuTime()
	f.dial(n)
	return cpuTime() - before
}

func (f *fleet) waitConns(n int) {
	f.b.Helper()
	for end := time.Now().Add(time.Minute); f.engine.Stats().Memberships != 3*n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.b.Fatalf("%d connections, want %d", f.engine.Stats().Conns, n)
		}
	}
}

// pushCost is what deliveries took.
type pushCost struct {
	pushes, deliveries int
	bytes              int64 // of the frames
	wall, cpu          time.Duration
	mallocs            uint64
}

func (c *pushCost) add(other pushCost) {
	c.pushes += other.pushes
	c.deliveries += other.deliveries
	c.bytes += other.bytes
	c.wall += other.wall
	c.cpu += other.cpu
	c.mallocs += other.mallocs
}

func (c *pushCost) perDelivery() float64 { return float64(c.cpu.Nanoseconds()) / float64(c.deliveries) }

func (c *pushCost) report(b *testing.B) {
	b.ReportMetric(float64(c.wall.Nanoseconds())/float64(c.deliveries), "ns/delivery")
	b.ReportMetric(c.perDelivery(), "cpu-ns/delivery")
	b.ReportMetric(float64(c.mallocs)/float64(c.pushes), "allocs/push")
}

// measurement is the beginning of one.
type measurement struct {
	f       *fleet
	at      int64
	cpu     time.Duration
	mallocs uint64
}

func (f *fleet) start() measurement {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return measurement{f, monotonic(), cpuTime(), m.Mallocs}
}

// end waits for the deliveries of so many pushes and tells what they cost.
func (m measurement) end(pushes, deliveries int) pushCost {
	m.f.b.Helper()
	at, bytes := m.f.load.wait(deliveries)
	cpu := cpuTime() - m.cpu
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	return pushCost{pushes: pushes, deliveries: deliveries, bytes: bytes, wall: time.Duration(at - m.at), cpu: cpu, mallocs: now.Mallocs - m.mallocs}
}

// duel is an engine and a hub of the usual kind, each with as many
// connections, that push to one user at a time.
type duel struct {
	*fleet
	fds     []uintptr // the engine's connections
	hub     *hub
	hubLoad *load
}

const duelists = 1000

func newDuel(b *testing.B) *duel {
	b.Helper()
	d := &duel{fleet: newFleet(b, duelists), hub: newHub(), hubLoad: startLoad(b)}
	ln := listenOn(b, d.hub)
	d.fds = accepted(b, d.ln)
	d.hubLoad.dial(port(ln), 0, duelists, 10)
	for d.hub.size() < duelists {
		time.Sleep(time.Millisecond)
	}
	runtime.GC()
	return d
}

func (d *duel) close() {
	d.fleet.close()
	d.hubLoad.stop()
}

// workOn and takeRest are what a caller does after a push, until all is quiet.
func workOn() {
	for end := time.Now().Add(restTime); time.Now().Before(end); {
	}
}

func takeRest() { time.Sleep(restTime) }

const restTime = 250 * time.Microsecond

// round pushes to some users, each time by the engine, the hub and a bare
// write in turn.
func (d *duel) round(after func()) (l latencies) {
	d.b.Helper()
	const pushes = 200
	ctx := context.Background()
	for range pushes {
		i := rand.IntN(duelists)
		user := fmt.Sprintf("u%d", i)
		if _, err := d.engine.PushToUser(ctx, user, push.Message{Event: benchEvent, Data: stamp('e')}); err != nil {
			d.b.Fatal(err)
		}
		after()
		d.hub.push(user, benchEvent, stamp('h'))
		after()
		d.write(d.fds[i], benchFrame(stamp('w')))
		after()
	}
	d.load.wait(2 * pushes)
	d.hubLoad.wait(pushes)
	l[byEngine] = d.load.latencies('e')
	l[byHub] = d.hubLoad.latencies('h')
	l[byWrite] = d.load.latencies('w')
	for _, who := range l {
		if len(who) != pushes {
			d.b.Fatalf("%d latencies, want %d", len(who), pushes)
		}
	}
	return l
}

// latencies of the three who push to one user at a time.
type latencies [3][]time.Duration

const (
	byEngine = iota
	byHub
	byWrite
)

func (l *latencies) add(other latencies) {
	for who := range l {
		l[who] = append(l[who], other[who]...)
	}
}

func (l *latencies) at(who, percent int) float64 {
	slices.Sort(l[who])
	return float64(l[who][len(l[who])*percent/100].Nanoseconds()) / 1000
}

func (l *latencies) ratio() float64 { return l.at(byEngine, 50) / l.at(byHub, 50) }

func (l *latencies) report(b *testing.B, prefix string) {
	b.ReportMetric(l.at(byEngine, 50), prefix+"p50-µs")
	b.ReportMetric(l.at(byEngine, 99), prefix+"p99-µs")
	b.ReportMetric(l.at(byHub, 50), prefix+"hub-p50-µs")
	b.ReportMetric(l.at(byHub, 99), prefix+"hub-p99-µs")
	b.ReportMetric(l.at(byWrite, 50), prefix+"bare-p50-µs")
	b.ReportMetric(l.ratio(), prefix+"p50/hub")
}

// flatOut pushes without a pause.
func (d *duel) flatOut() pushCost {
	d.b.Helper()
	const pushes = 5000
	ctx, m := context.Background(), push.Message{Event: benchEvent, Data: benchText}
	users := make([]string, pushes)
	for i := range users {
		users[i] = fmt.Sprintf("u%d", rand.IntN(duelists))
	}
	start := d.start()
	for _, user := range users {
		if _, err := d.engine.PushToUser(ctx, user, m); err != nil {
			d.b.Fatal(err)
		}
	}
	return start.end(pushes, pushes)
}

// hub is how a Go program usually serves WebSockets: gorilla/websocket, for
// each connection a goroutine that reads and one that writes what comes
// through a channel.
type hub struct {
	upgrader websocket.Upgrader
	mu       sync.RWMutex
	users    map[string]*hubClient // guarded by mu
}

type hubClient struct {
	conn *websocket.Conn
	send chan []byte // closed by read's end
}

func newHub() *hub { return &hub{users: make(map[string]*hubClient)} }

func (h *hub) size() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.users)
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := r.URL.Query().Get("user")
	conn, err := h.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	c := &hubClient{conn, make(chan []byte, 256)}
	h.mu.Lock()
	h.users[user] = c
	h.mu.Unlock()
	go c.write()
	go h.read(user, c)
}

func (h *hub) read(user string, c *hubClient) {
	c.conn.SetReadLimit(64 << 10)
	c.conn.SetPongHandler(func(string) error { return nil })
	for {
		if _, _, err := c.conn.ReadMessage(); err != nil {
			break
		}
	}
	h.mu.Lock()
	delete(h.users, user)
	close(c.send)
	h.mu.Unlock()
	c.conn.Close()
}

func (c *hubClient) write() {
	ticker := time.NewTicker(time.Hour)
	defer ticker.Stop()
	for {
		select {
		case b, open := <-c.send:
			if !open {
				return
			}
			c.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if c.conn.WriteMessage(websocket.TextMessage, b) != nil {
				return
			}
		case <-ticker.C:
			c.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(10*time.Second))
		}
	}
}

// push gives a user's goroutine a message; one that is too slow loses it.
func (h *hub) push(user, event string, data any) {
	b, err := json.Marshal(struct {
		Event string `json:"event"`
		Data  any    `json:"data"`
	}{event, data})
	if err != nil {
		panic(err)
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	if c := h.users[user]; c != nil {
		c.offer(b)
	}
}

// broadcast does so for everybody.
func (h *hub) broadcast(b []byte) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, c := range h.users {
		c.offer(b)
	}
}

func (c *hubClient) offer(b []byte) {
	select {
	case c.send <- b:
	default:
	}
}

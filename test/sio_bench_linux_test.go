package test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/sio"
	"github.com/embedpush/push/internal/wire"
)

// The benchmarks of Socket.IO measure as those of pages do (see
// bench_linux_test.go), and each of them measures plain WebSockets in turn with
// it: what counts are the ratios. "5" is a client 3.x or 4.x, of protocol 5 and
// Engine.IO 4, "4" one of 2.x.

// BenchmarkSocketIOBroadcast makes broadcasts to plain WebSockets and to as
// many Socket.IO clients in turn. The frames are of one size, and those of both
// protocols the same. mixed: half of the clients are of either. control: plain
// ones once more, whose ratio would be 1 on a quiet machine.
func BenchmarkSocketIOBroadcast(b *testing.B) {
	b.Run("1000", func(b *testing.B) {
		benchmarkSocketBroadcast(b, 5, []rival{
			{name: "plain", socketFleet: newSocketFleet(b, asPage, 1000)},
			{name: "socketio", socketFleet: newSocketFleet(b, asSocketIO5, 1000)},
			{name: "control", socketFleet: newSocketFleet(b, asPage, 1000)},
			{name: "mixed", socketFleet: newSocketFleet(b, asMixed, 1000)},
			{name: "namespace", socketFleet: newSocketFleet(b, asSocketIOSpace, 1000)},
		})
	})
	// The server has the connections of both load processes.
	b.Run("10000", func(b *testing.B) {
		n := min(maxClients, (descriptorLimit(b)-500)/2)
		benchmarkSocketBroadcast(b, 1, []rival{
			{name: "plain", socketFleet: newSocketFleet(b, asPage, n)},
			{name: "socketio", socketFleet: newSocketFleet(b, asSocketIO5, n)},
		})
	})
}

func descriptorLimit(b *testing.B) int {
	b.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	return int(limit.Cur)
}

// rival is one of those who are measured in turn.
type rival struct {
	name string
	*socketFleet
	costs  []pushCost
	ratios []float64 // its costs by those of the first rival in the same turn
}

// benchmarkSocketBroadcast takes every rival in turn, the last one first in
// every other turn, with so many broadcasts each, and reports the medians.
func benchmarkSocketBroadcast(b *testing.B, broadcasts int, rivals []rival) {
	const turns = 11
	for b.Loop() {
		for turn := range turns {
			for i := range rivals {
				if turn%2 == 1 {
					i = len(rivals) - 1 - i
				}
				rivals[i].costs = append(rivals[i].costs, rivals[i].broadcasts(broadcasts))
			}
			for i := range rivals {
				r := &rivals[i]
				last := len(r.costs) - 1
				r.ratios = append(r.ratios, r.costs[last].perDelivery()/rivals[0].costs[last].perDelivery())
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(rivals[0].load.conns), "clients")
	for i, r := range rivals {
		b.ReportMetric(median(r.costs, (*pushCost).perDelivery), r.name+"-cpu-ns/delivery")
		b.ReportMetric(median(r.costs, func(c *pushCost) float64 { return float64(c.mallocs) / float64(c.pushes) }), r.name+"-allocs/push")
		if i > 0 {
			b.ReportMetric(median(r.ratios, func(f *float64) float64 { return *f }), r.name+"/"+rivals[0].name)
		}
	}
}

// median is the median of what f makes of all.
func median[T any](all []T, f func(*T) float64) float64 {
	got := make([]float64, len(all))
	for i := range all {
		got[i] = f(&all[i])
	}
	slices.Sort(got)
	return got[len(got)/2]
}

// asMixed is half asSocketIO4 and half asSocketIO5.
const asMixed = "socketio-mixed"

// socketFleet is a fleet of one kind.
type socketFleet struct {
	*fleet
	space, text string
	frame       []byte // what a broadcast of text looks like
}

func newSocketFleet(b *testing.B, as string, conns int) *socketFleet {
	b.Helper()
	e, err := newSocketEngine(true)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	f := &socketFleet{fleet: &fleet{b: b, engine: e, ln: listenOn(b, e), load: startLoad(b)}, text: benchText, frame: broadcastFrame}
	if as == asMixed {
		f.load.as = asSocketIO4
		f.dial(conns / 2)
		as, conns = asSocketIO5, conns-conns/2
	}
	if kind := socketKinds[as]; kind != nil && kind.eio > 0 {
		f.space = kind.space
		f.frame = f.socketFrame(nil)
		f.text = strings.Repeat("x", len(broadcastFrame)-len(f.socketFrame([]byte(`""`))))
		f.frame = f.socketFrame(fmt.Appendf(nil, "%q", f.text))
	}
	f.load.as = as
	f.dial(conns)
	f.broadcasts(3) // pools fill, buffers grow
	runtime.GC()
	return f
}

func (f *socketFleet) socketFrame(json []byte) []byte {
	// A frame of more than 125 bytes has a longer header.
	frame := sio.AppendEvent(nil, sio.New, f.space, benchEvent, wire.Value{JSON: json}, 0)
	if frame[1] < 126 {
		frame = append([]byte{0, 0}, frame...)
	}
	return frame
}

// broadcasts makes n broadcasts, and waits for each.
func (f *socketFleet) broadcasts(n int) (sum pushCost) {
	f.b.Helper()
	ctx, m := context.Background(), push.Message{Event: benchEvent, Data: f.text}
	a := push.Audience{All: true, Namespace: f.space}
	for range n {
		start := f.start()
		if r, err := f.engine.Push(ctx, a, m); err != nil || r.Targets != f.load.conns {
			f.b.Fatalf("receipt %+v, error %v", r, err)
		}
		c := start.end(1, f.load.conns)
		if want := int64(c.deliveries * len(f.frame)); c.bytes != want {
			f.b.Fatalf("%d bytes came, want %d", c.bytes, want)
		}
		sum.add(c)
	}
	return sum
}

// BenchmarkSocketIOMemory is BenchmarkIdleConnection for Socket.IO clients over
// WebSockets, beside plain ones. All send the headers of a browser: with
// SocketIO.Namespace set they are kept. namespace: that, and the client is in one
// instead of "/".
func BenchmarkSocketIOMemory(b *testing.B) {
	for b.Loop() {
		var plain [3]float64
		for i, k := range []struct{ name, role, as string }{
			{"plain", roleSockets, asBrowserPage},
			{"socketio", roleSockets, asSocketIO5},
			{"namespaces", roleSpaces, asSocketIO5},
			{"namespace", roleSpaces, asSocketIOSpace},
		} {
			got := socketMemory(b, k.role, k.as, 5000)
			b.ReportMetric(got[0], k.name+"-B/conn")
			b.ReportMetric(got[1], k.name+"-heap-B/conn")
			b.ReportMetric(got[2], k.name+"-stack-B/conn")
			if i == 0 {
				plain = got
			} else {
				b.ReportMetric(got[0]/plain[0], k.name+"/plain")
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSocketIOPollingMemory is the same for sessions of HTTP polling: with
// a GET that is held, between two GETs on a connection that stays, and between
// two GETs without a connection. Beside them is what net/http alone needs: for
// such a GET that a handler holds, and for such a connection that waits for a
// request, which is also what the second connection costs that a browser has
// for its POSTs.
func BenchmarkSocketIOPollingMemory(b *testing.B) {
	for b.Loop() {
		for _, k := range []struct{ name, role, as string }{
			{"held", rolePollingHeld, asPolling},
			{"http-held", roleHTTPHeld, asHTTP},
			{"between", rolePollingBetween, asPollingBetween},
			{"http-between", roleHTTPBetween, asHTTPBetween},
			{"away", rolePollingBetween, asPollingAway},
		} {
			got := socketMemory(b, k.role, k.as, 1000)
			b.ReportMetric(got[0], k.name+"-B/session")
			b.ReportMetric(got[1], k.name+"-heap-B/session")
			b.ReportMetric(got[2], k.name+"-stack-B/session")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// socketMemory is idleMemory for n clients of one of socketKinds.
func socketMemory(b *testing.B, role, as string, n int) (got [3]float64) {
	b.Helper()
	server, l := startProcess(b, role), startLoad(b)
	defer server.stop()
	defer l.stop()
	var port [1]int64
	server.hear(port[:])
	// The first connections pay for what is there once.
	kind := socketKinds[as]
	l.as = cmp.Or(kind.first, as)
	l.dial(int(port[0]), 0, 100, 10)
	l.ask(nil, "pong")
	l.hangUp()
	before := server.memory(0)
	l.as = as
	l.dial(int(port[0]), 0, n, 10)
	time.Sleep(100 * time.Millisecond) // the last GETs of dial are on their way
	server.tell("push")
	if kind.polls {
		l.wait(2 * n) // each GET's answer, and the answer to a POST with a pong
	} else {
		l.wait(n)
		l.ask(nil, "pong")
	}
	time.Sleep(100 * time.Millisecond)
	after := server.memory(n)
	for i := range got {
		got[i] = float64(after[i+1]-before[i+1]) / float64(n)
	}
	return got
}

// BenchmarkSocketIOPushAck pushes to one client and waits for its ack: to a
// page, and to Socket.IO clients over a WebSocket and over polling, in turn. A
// polling client answers by a POST on the same connection and then polls again.
func BenchmarkSocketIOPushAck(b *testing.B) {
	const turns, pushes = 10, 50
	e, err := newSocketEngine(false)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	f := &fleet{b: b, engine: e, ln: listenOn(b, e), load: startLoad(b)}
	kinds := []struct {
		name, as, user string
		took           []time.Duration
		cpu            time.Duration
	}{{name: "page", as: asPage, user: "u0"}, {name: "socketio", as: asSocketIO5, user: "u1"}, {name: "polling", as: asPolling, user: "u2"}}
	for _, k := range kinds {
		f.load.as = k.as
		f.dial(1)
	}
	ctx, m := context.Background(), push.Message{Event: benchEvent, Data: benchText, Ack: push.AutoAck}
	var ratios []float64
	for b.Loop() {
		for range turns {
			var p50 [3]time.Duration
			for i := range kinds {
				k := &kinds[i]
				from, before := len(k.took), cpuTime()
				for range pushes {
					begin := time.Now()
					if r, err := f.engine.PushToUser(ctx, k.user, m); err != nil || r.Acked != 1 {
						b.Fatalf("receipt %+v, error %v", r, err)
					}
					k.took = append(k.took, time.Since(begin))
				}
				k.cpu += cpuTime() - before
				turn := slices.Sorted(slices.Values(k.took[from:]))
				p50[i] = turn[len(turn)/2]
			}
			ratios = append(ratios, float64(p50[1])/float64(p50[0]))
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, k := range kinds {
		slices.Sort(k.took)
		n := len(k.took)
		b.ReportMetric(float64(k.took[n/2].Nanoseconds())/1000, k.name+"-p50-µs")
		b.ReportMetric(float64(k.took[n*99/100].Nanoseconds())/1000, k.name+"-p99-µs")
		b.ReportMetric(float64(k.cpu.Nanoseconds())/1000/float64(n), k.name+"-cpu-µs/push")
	}
	b.ReportMetric(median(ratios, func(f *float64) float64 { return *f }), "socketio/page")
}

// BenchmarkSocketIOConnect opens connections and closes them, of which only the
// former counts: plain WebSockets, Socket.IO ones with their CONNECT, and
// polling sessions with their handshake, the POST of their CONNECT, the GET for
// the answer and the one after it. All send the headers of a browser.
func BenchmarkSocketIOConnect(b *testing.B) {
	const turns, n = 5, 400
	e, err := newSocketEngine(false)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	f := &fleet{b: b, engine: e, ln: listenOn(b, e), load: startLoad(b)}
	type connectCost struct {
		cpu            time.Duration
		mallocs, bytes uint64
	}
	kinds := []struct {
		name, as string
		costs    []connectCost
	}{{name: "plain", as: asBrowserPage}, {name: "socketio2", as: asSocketIO4}, {name: "socketio", as: asSocketIO5}, {name: "polling", as: asPolling}}
	round := func() {
		for i := range kinds {
			k := &kinds[i]
			f.load.as = k.as
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			cpu := cpuTime()
			f.dial(n)
			cpu = cpuTime() - cpu
			runtime.ReadMemStats(&after)
			k.costs = append(k.costs, connectCost{cpu, after.Mallocs - before.Mallocs, after.TotalAlloc - before.TotalAlloc})
			f.load.hangUp()
			f.waitConns(0)
		}
	}
	round() // the first ones pay for what is there once
	for i := range kinds {
		kinds[i].costs = nil
	}
	for b.Loop() {
		for range turns {
			round()
		}
	}
	b.ReportMetric(0, "ns/op")
	for i := range kinds {
		k := &kinds[i]
		cpu := median(k.costs, func(c *connectCost) float64 { return float64(c.cpu.Nanoseconds()) / n })
		b.ReportMetric(cpu/1000, k.name+"-cpu-µs/conn")
		b.ReportMetric(1e9/cpu, k.name+"-conns/cpu-s")
		b.ReportMetric(median(k.costs, func(c *connectCost) float64 { return float64(c.mallocs) / n }), k.name+"-allocs/conn")
		b.ReportMetric(median(k.costs, func(c *connectCost) float64 { return float64(c.bytes) / n }), k.name+"-B/conn")
		if i == 0 {
			continue
		}
		ratios := make([]float64, len(k.costs))
		for j, c := range k.costs {
			ratios[j] = float64(c.cpu) / float64(kinds[0].costs[j].cpu)
		}
		b.ReportMetric(median(ratios, func(f *float64) float64 { return *f }), k.name+"/plain")
	}
}

// newSocketEngine is newBenchEngine for Socket.IO; spaces: there are
// namespaces, into which everybody is let.
func newSocketEngine(spaces bool) (*push.Engine, error) {
	cfg := push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			l.Rooms = []string{l.Query("room")}
			return l.UserID, nil
		},
		Heartbeat: time.Hour,
		SocketIO:  push.SocketIO{PingInterval: time.Hour},
		Logger:    slog.New(slog.DiscardHandler),
	}
	if spaces {
		cfg.SocketIO.Namespace = func(context.Context, string, *push.Login) error { return nil }
	}
	return push.New(cfg)
}

// What runMemoryServer serves for these benchmarks, and what it counts: the
// connections, the requests that are held, or what is between two requests.
const (
	roleSockets        = "sockets" // an engine
	roleSpaces         = "spaces"  // with namespaces
	rolePollingHeld    = "polling-held"
	rolePollingBetween = "polling-between"
	roleHTTPHeld       = "http-held"    // net/http, and a handler that only holds
	roleHTTPBetween    = "http-between" // the same
)

// socketServer is one of them.
type socketServer struct {
	http      http.Server
	count     func() int
	broadcast func()
}

func newSocketServer(role string) (*socketServer, error) {
	s := new(socketServer)
	var open, active atomic.Int64 // connections, and those of them that have a request
	var states sync.Map           // of net.Conn; it is there before and after
	count := func(nc net.Conn, is http.ConnState) {
		was, known := states.Swap(nc, is)
		if !known {
			open.Add(1)
		}
		if is == http.StateActive {
			active.Add(1)
		}
		if known && was == http.StateActive {
			active.Add(-1)
		}
		if is == http.StateClosed || is == http.StateHijacked {
			open.Add(-1)
			states.Delete(nc)
		}
	}
	switch role {
	case roleSockets, roleSpaces, rolePollingHeld, rolePollingBetween:
		e, err := newSocketEngine(role == roleSpaces)
		if err != nil {
			return nil, err
		}
		s.http.Handler = e
		s.count = func() int { return e.Stats().Conns }
		if role == rolePollingBetween {
			s.count = func() int { return e.Stats().Conns - int(active.Load()) }
		}
		s.broadcast = func() {
			for _, space := range []string{"", socketKinds[asSocketIOSpace].space} { // nobody is in both
				a := push.Audience{All: true, Namespace: space}
				e.Push(context.Background(), a, push.Message{Event: benchEvent, Data: benchText})
			}
		}
	case roleHTTPHeld, roleHTTPBetween:
		h := &holder{pushed: make(chan struct{})}
		s.http.Handler, s.broadcast = h, h.broadcast
		s.count = func() int { return int(open.Load() - active.Load()) }
	default:
		return nil, fmt.Errorf("unknown role %q", role)
	}
	if role == rolePollingHeld || role == roleHTTPHeld {
		s.count = func() int { return int(active.Load()) }
	}
	if role != roleSockets && role != roleSpaces {
		s.http.ConnState = count
	}
	return s, nil
}

// holder answers as polling does to clients of asHTTP, with nothing behind it.
type holder struct {
	mu     sync.Mutex
	pushed chan struct{} // guarded by mu: closed by broadcast
}

func (h *holder) broadcast() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.pushed)
	h.pushed = make(chan struct{})
}

func (h *holder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost:
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "ok")
	case !strings.Contains(r.URL.RawQuery, "sid="):
		io.WriteString(w, `0{"sid":"any"}`)
	default:
		h.mu.Lock()
		pushed := h.pushed
		h.mu.Unlock()
		select {
		case <-pushed:
			io.WriteString(w, "2")
		case <-r.Context().Done():
		}
	}
}

// What load.dial opens for these benchmarks.
const (
	asBrowserPage    = "page-of-a-browser"
	asSocketIO4      = "socketio4"
	asSocketIO5      = "socketio5"
	asSocketIOSpace  = "socketio5-namespace"
	asPolling        = "polling"
	asPollingBetween = "polling-between" // it does not poll any more when it has got a push
	asPollingAway    = "polling-away"    // nor has it a connection then
	asHTTP           = "http"            // it is served by a holder
	asHTTPBetween    = "http-between"
)

var socketKinds = map[string]*socketKind{
	asBrowserPage:    {},
	asSocketIO4:      {eio: 3},
	asSocketIO5:      {eio: 4},
	asSocketIOSpace:  {eio: 4, space: "/chat"},
	asPolling:        {eio: 4, polls: true},
	asPollingBetween: {eio: 4, polls: true, once: true, first: asPolling},
	asPollingAway:    {eio: 4, polls: true, once: true, leaves: true, first: asPolling},
	asHTTP:           {polls: true},
	asHTTPBetween:    {polls: true, once: true, first: asHTTP},
}

// socketKind is how a client that is not asPage speaks. All have the headers of
// a browser.
type socketKind struct {
	eio    int    // 0: push.json, or with polls nothing
	space  string // "": "/"
	polls  bool   // by HTTP
	once   bool   // only until a push came
	leaves bool   // it closes its connection then
	first  string // the kind that socketMemory warms up with, whose sessions end with their connections; "": this one
}

const browserHeaders = "Host: 127.0.0.1\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36\r\n" +
	"Accept: */*\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9,de;q=0.8\r\n" +
	"Cache-Control: no-cache\r\nPragma: no-cache\r\nOrigin: http://127.0.0.1\r\nReferer: http://127.0.0.1/app/orders\r\n" +
	"Cookie: session=5f0c9a6e2d7b4c1f8e3a6d9b0c2f5e81a4d7; consent=yes; theme=dark; _ga=GA1.1.1234567890.1700000000\r\n" +
	"Sec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Site: same-origin\r\n"

// loadSocket is what a client knows of itself as one of socketKinds.
type loadSocket struct {
	*socketKind
	user, room int
	sid        string // polling
	posting    bool   // the next answer is a POST's
	in         []byte // the beginning of an answer
}

// request is the request with which it begins.
func (s *loadSocket) request() []byte {
	if s.polls {
		return s.get()
	}
	path := "/ws?"
	if s.eio > 0 {
		path = fmt.Sprintf("/socket.io/?EIO=%d&transport=websocket&", s.eio)
	}
	return fmt.Appendf(nil, "GET %suser=u%d&room=r%d HTTP/1.1\r\n%sUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n"+
		"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n", path, s.user, s.room, browserHeaders)
}

func (s *loadSocket) target() string {
	target := fmt.Sprintf("/socket.io/?user=u%d&room=r%d&EIO=4&transport=polling&t=Pabcdef", s.user, s.room)
	if s.sid != "" {
		target += "&sid=" + s.sid
	}
	return target
}

func (s *loadSocket) get() []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\n%s\r\n", s.target(), browserHeaders)
}

func (s *loadSocket) post(body string) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\n%sContent-Type: text/plain;charset=UTF-8\r\nContent-Length: %d\r\n\r\n%s",
		s.target(), browserHeaders, len(body), body)
}

// maskedText is a text frame of a client; a mask of zeros changes nothing.
func maskedText(text string) []byte {
	return append([]byte{0x81, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...)
}

// beat is its part of a heartbeat. Polling clients do theirs when a push came.
func (s *loadSocket) beat() []byte {
	switch {
	case s.polls:
		return nil
	case s.eio == 4:
		return maskedText("3")
	case s.eio == 3:
		return maskedText("2")
	}
	return []byte{0x8a, 0x80, 1, 2, 3, 4}
}

// dialSockets is dial for them.
func (c *loadClients) dialSockets(port, first, n, roomSize int, kind *socketKind) error {
	for begin := 0; begin < n; begin += dialBatch {
		size := min(dialBatch, n-begin)
		fds, sockets := make([]int, size), make([]*loadSocket, size)
		each := func(step func(fd int, s *loadSocket) error) error {
			for i, fd := range fds {
				if err := step(fd, sockets[i]); err != nil {
					return fmt.Errorf("a %+v: %w", *kind, err)
				}
			}
			return nil
		}
		for i := range fds {
			fd, err := connect(port)
			if err != nil {
				return err
			}
			user := first + begin + i
			fds[i], sockets[i] = fd, &loadSocket{socketKind: kind, user: user, room: user / roomSize}
		}
		write := func(frame func(s *loadSocket) []byte) func(int, *loadSocket) error {
			return func(fd int, s *loadSocket) error {
				_, err := syscall.Write(fd, frame(s))
				return err
			}
		}
		steps := []func(fd int, s *loadSocket) error{write((*loadSocket).request)}
		switch {
		case kind.polls:
			steps = append(steps, c.opened)
			if kind.eio > 0 {
				steps = append(steps,
					write(func(s *loadSocket) []byte { return s.post("40") }), c.answered("ok"),
					write((*loadSocket).get), c.answered(`40{"sid":`))
			}
			steps = append(steps, write((*loadSocket).get))
		case kind.eio == 4:
			join, want := "40", "40{"
			if kind.space != "" {
				join += kind.space + ","
				want = join + "{"
			}
			steps = append(steps, c.upgraded("0{"), write(func(*loadSocket) []byte { return maskedText(join) }), c.framed(want))
		case kind.eio == 3:
			steps = append(steps, c.upgraded("0{", "40"))
		default:
			steps = append(steps, c.upgraded())
		}
		for _, step := range append(steps, c.addSocket) {
			if err := each(step); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *loadClients) addSocket(fd int, s *loadSocket) error {
	if err := c.add(fd, nil); err != nil {
		return err
	}
	c.conns[fd].socket = s
	return nil
}

// upgraded awaits the answer to an upgrade, and frames with these beginnings.
func (c *loadClients) upgraded(want ...string) func(int, *loadSocket) error {
	return func(fd int, s *loadSocket) error {
		var got []byte
		for {
			n, err := c.await(fd)
			if err != nil {
				return fmt.Errorf("answer %q: %w", got, err)
			}
			got = append(got, c.buf[:n]...)
			head, frames, whole := bytes.Cut(got, []byte("\r\n\r\n"))
			switch {
			case !whole:
			case !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")):
				return fmt.Errorf("answer %q", got)
			default:
				if all, err := beginWith(frames, want); all || err != nil {
					return err
				}
			}
		}
	}
}

// framed awaits a frame with this beginning.
func (c *loadClients) framed(want string) func(int, *loadSocket) error {
	return func(fd int, s *loadSocket) error {
		var got []byte
		for {
			n, err := c.await(fd)
			if err != nil {
				return fmt.Errorf("frames %q: %w", got, err)
			}
			got = append(got, c.buf[:n]...)
			if all, err := beginWith(got, []string{want}); all || err != nil {
				return err
			}
		}
	}
}

// beginWith reports whether b is whole frames with these beginnings, or may
// become it.
func beginWith(b []byte, want []string) (all bool, err error) {
	for _, text := range want {
		n := frameHead(b)
		if n == 0 {
			return false, nil
		}
		size := int(b[1])
		if size == 126 {
			size = int(b[2])<<8 | int(b[3])
		}
		if len(b) < n+size {
			return false, nil
		}
		if !bytes.HasPrefix(b[n:], []byte(text)) {
			return false, fmt.Errorf("a frame %q, want %q", b[n:n+size], text)
		}
		b = b[n+size:]
	}
	if len(b) > 0 {
		return false, fmt.Errorf("more than was awaited: %q", b)
	}
	return true, nil
}

// frameHead is the length of a short frame's header, 0 if b is shorter.
func frameHead(b []byte) int {
	n := 2
	if len(b) >= 2 && b[1] == 126 {
		n = 4
	}
	if len(b) < n {
		return 0
	}
	return n
}

// opened awaits the answer to a handshake.
func (c *loadClients) opened(fd int, s *loadSocket) error {
	body, err := c.awaitBody(fd)
	if err != nil {
		return err
	}
	rest, ok := bytes.CutPrefix(body, []byte(`0{"sid":"`))
	sid, _, whole := bytes.Cut(rest, []byte(`"`))
	if !ok || !whole {
		return fmt.Errorf("handshake answered %q", body)
	}
	s.sid = string(sid)
	return nil
}

// answered awaits an answer that begins so.
func (c *loadClients) answered(want string) func(int, *loadSocket) error {
	return func(fd int, s *loadSocket) error {
		body, err := c.awaitBody(fd)
		if err == nil && !bytes.HasPrefix(body, []byte(want)) {
			err = fmt.Errorf("answer %q, want %q", body, want)
		}
		return err
	}
}

func (c *loadClients) awaitBody(fd int) ([]byte, error) {
	var got []byte
	for {
		n, err := c.await(fd)
		if err != nil {
			return nil, fmt.Errorf("answer %q: %w", got, err)
		}
		got = append(got, c.buf[:n]...)
		if body, n, err := httpAnswer(got); n == len(got) || err != nil {
			return body, err
		}
	}
}

// httpAnswer is the body of the answer that b begins with, and the answer's
// length, 0 if not all is there.
func httpAnswer(b []byte) (body []byte, n int, err error) {
	head, rest, whole := bytes.Cut(b, []byte("\r\n\r\n"))
	if !whole {
		return nil, 0, nil
	}
	const length = "\r\nContent-Length: "
	_, after, ok := bytes.Cut(head, []byte(length))
	digits, _, _ := bytes.Cut(after, []byte("\r\n"))
	size, err := strconv.Atoi(string(digits))
	if !ok || err != nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return nil, 0, fmt.Errorf("answer %q", b)
	}
	if len(rest) < size {
		return nil, 0, nil
	}
	return rest[:size], len(b) - len(rest) + size, nil
}

// feedPolling counts the answers that end in b, and goes on: a GET's answer is
// followed by a POST with the ack that it wants, or with a heartbeat, and that
// by the next GET.
func (c *loadClients) feedPolling(fd int, b []byte) {
	s := c.conns[fd].socket
	s.in = append(s.in, b...)
	for c.conns[fd].open {
		body, n, err := httpAnswer(s.in)
		if err != nil {
			fmt.Println("error", err)
		}
		if n == 0 || err != nil {
			return
		}
		c.frames++
		var next []byte
		switch {
		case !s.posting:
			next = s.post(cmp.Or(socketAck(body), "3"))
		case s.leaves:
			c.close(fd)
		case !s.once:
			next = s.get()
		}
		s.posting = !s.posting
		s.in = append(s.in[:0], s.in[n:]...)
		if len(next) > 0 {
			if _, err := syscall.Write(fd, next); err != nil {
				fmt.Println("error", err)
			}
		}
	}
}

// ackSocket answers a Socket.IO push that wants an ack, if b is one.
func (c *loadClients) ackSocket(fd int, b []byte) {
	s := c.conns[fd].socket
	if s.polls || s.eio == 0 || len(b) < 4 {
		return
	}
	if ack := socketAck(b[frameHead(b):]); ack != "" {
		if _, err := syscall.Write(fd, maskedText(ack)); err != nil {
			fmt.Println("error", err)
		}
	}
}

// socketAck is the answer to an event of "/" that wants one, "" to any other.
func socketAck(packet []byte) string {
	digits, event := bytes.CutPrefix(packet, []byte("42"))
	if !event || len(digits) == 0 || digits[0] < '0' || digits[0] > '9' {
		return ""
	}
	id, _, _ := bytes.Cut(digits, []byte("["))
	return "43" + string(id) + "[]"
}

package test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/embedpush/push"
	"github.com/hashicorp/memberlist"
)

// roleNode is a second process that is a node of a cluster. It does what it is
// told in lines, and answers each with a line of numbers.
const roleNode = "cluster-node"

func init() {
	if os.Getenv("PUSH_LOAD_CLIENT") != roleNode {
		return
	}
	if err := runBenchNode(); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// benchNode is that process.
type benchNode struct {
	engine *push.Engine
	front  atomic.Pointer[httputil.ReverseProxy] // answers Socket.IO's handshakes; nil: the engine does
	got    atomic.Int64                          // messages of SendReliable
	pages  []*memoryPage
	list   *memberlist.Memberlist
}

// runBenchNode does what it is told until its stdin ends. With PUSH_BENCH_PROFILE
// set to the name of a file, that gets a profile of its CPU, and one with .allocs
// behind the name a profile of what it allocates.
func runBenchNode() error {
	if name := os.Getenv("PUSH_BENCH_PROFILE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		allocs, err := os.Create(name + ".allocs")
		if err != nil {
			return err
		}
		defer allocs.Close()
		defer pprof.Lookup("allocs").WriteTo(allocs, 0)
	}
	n := &benchNode{}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := n.command(strings.Fields(lines.Text())); err != nil {
			return err
		}
	}
	if n.engine != nil {
		n.engine.Close()
	}
	return nil
}

func (n *benchNode) command(words []string) (err error) {
	number := func(i int) (v int) { fmt.Sscan(words[i], &v); return v }
	switch words[0] {
	case "start": // seed: begins, and tells how long it took to be ready, and its ports of HTTP and for SendReliable
		return n.start(words[1])
	case "cost": // what this process has used of CPU and made of objects, and the messages of SendReliable
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fmt.Println(cpuTime().Nanoseconds(), m.Mallocs, n.got.Load())
	case "memory":
		fmt.Println(residentMemory())
	case "pages": // n: so many pages in memory, of m0, m1, …
		for i := range number(1) {
			p, err := addMemoryPage(n.engine, fmt.Sprint("m", i))
			if err != nil {
				return err
			}
			n.pages = append(n.pages, p)
		}
		fmt.Println(n.engine.Stats().Conns)
	case "hold": // the pages in memory take nothing
		for _, p := range n.pages {
			p.hold.Lock()
		}
		fmt.Println("ok")
	case "release": // … and take everything
		for _, p := range n.pages {
			p.hold.Unlock()
		}
		for n.engine.Stats().QueuedBytes > 0 {
			time.Sleep(time.Millisecond)
		}
		fmt.Println("ok")
	case "ballast":
		hold64MB()
		fmt.Println("ok")
	case "front": // port: handshakes go there
		to := &url.URL{Scheme: "http", Host: fmt.Sprint("127.0.0.1:", number(1))}
		n.front.Store(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host }})
		fmt.Println("ok")
	case "knows": // n: how many of some of n rooms it knows to be elsewhere
		known, asked := 0, 0
		for i := 0; i < number(1); i += max(1, number(1)/50) {
			devices, err := n.engine.Devices(context.Background(), push.Audience{Room: benchRoom(i)})
			if err != nil {
				return err
			}
			known += len(devices)
			asked++
		}
		fmt.Println(known, asked)
	}
	return err
}

func (n *benchNode) start(seed string) (err error) {
	begin := time.Now()
	if n.engine, err = newClusterEngine("b", seed); err != nil {
		return err
	}
	for n.engine.Ready() != nil {
		time.Sleep(time.Millisecond)
	}
	took := time.Since(begin)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if front := n.front.Load(); front != nil && !strings.Contains(r.URL.RawQuery, "sid=") {
			front.ServeHTTP(w, r)
			return
		}
		n.engine.ServeHTTP(w, r)
	}))
	if n.list, err = newBenchList("b", &n.got); err != nil {
		return err
	}
	fmt.Println(took.Nanoseconds(), ln.Addr().(*net.TCPAddr).Port, n.list.LocalNode().Port)
	return nil
}

// newClusterEngine is newBenchEngine for a node of a cluster on sockets, with
// TLS. seed: another node; "-": it is the first.
func newClusterEngine(name, seed string) (*push.Engine, error) {
	cfg := benchClusterConfig()
	cfg.Cluster = &push.Cluster{Node: name, Bind: "127.0.0.1:0", Secrets: [][]byte{clusterSecret(1)}}
	if seed != "-" {
		cfg.Cluster.Seeds = []string{seed}
	}
	return push.New(cfg)
}

func benchClusterConfig() push.Config {
	return push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			if room := l.Query("room"); room != "" {
				l.Rooms = []string{room}
			}
			return l.UserID, nil
		},
		Heartbeat: time.Hour,
		SocketIO:  push.SocketIO{PingInterval: time.Hour},
		// Clients that share the processors may be slow.
		Limits: push.Limits{MaxConns: -1, MessageRate: -1, QueueBytes: 64 << 20, QueueMessages: -1},
		Logger: slog.New(slog.DiscardHandler),
	}
}

// newBenchList is a memberlist that counts the messages that it gets.
func newBenchList(name string, got *atomic.Int64) (*memberlist.Memberlist, error) {
	cfg := memberlist.DefaultLANConfig()
	cfg.Name, cfg.BindAddr, cfg.BindPort, cfg.SecretKey = name, "127.0.0.1", 0, clusterSecret(2)
	cfg.Delegate, cfg.LogOutput = benchDelegate{got}, io.Discard
	return memberlist.Create(cfg)
}

type benchDelegate struct{ got *atomic.Int64 }

func (d benchDelegate) NodeMeta(int) []byte             { return nil }
func (d benchDelegate) NotifyMsg([]byte)                { d.got.Add(1) }
func (d benchDelegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d benchDelegate) LocalState(bool) []byte          { return nil }
func (d benchDelegate) MergeRemoteState([]byte, bool)   {}

// ballast is what a process has on its heap that should look like a node with
// 10 000 connections: with next to nothing there, the collector runs all the time.
var ballast []byte

func hold64MB() { ballast = make([]byte, 64<<20) }

func benchRoom(i int) string { return fmt.Sprintf("room-%07d", i) }

// startBenchNodes starts so many nodes in this process and waits until each has a
// link to and from every other; the benchmark's end closes them.
func startBenchNodes(b *testing.B, count int) (nodes []*push.Engine) {
	b.Helper()
	b.Cleanup(func() {
		var closing sync.WaitGroup
		for _, e := range nodes {
			closing.Go(func() { e.Close() })
		}
		closing.Wait()
	})
	seed := "-"
	for i := range count {
		e, err := newClusterEngine(fmt.Sprint("n", i), seed)
		if err != nil {
			b.Fatal(err)
		}
		nodes = append(nodes, e)
		seed = ownAddr(nodes[0])
	}
	for _, e := range nodes {
		wantLinks(b, e, count-1)
	}
	return nodes
}

// ownAddr is where a node's peers reach it.
func ownAddr(e *push.Engine) string {
	for _, n := range e.Nodes() {
		if n.Self {
			return n.Addr
		}
	}
	return ""
}

// wantLinks waits until a node is ready and has links to and from so many others.
func wantLinks(b *testing.B, e *push.Engine, others int) {
	b.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s := e.Stats().Cluster
		if s.LinksUp == others && s.LinksIn == others && e.Ready() == nil {
			return
		}
		if time.Now().After(end) {
			b.Fatalf("%d links to others and %d from them, want %d; ready: %v", s.LinksUp, s.LinksIn, others, e.Ready())
		}
	}
}

// benchUntil waits for something.
func benchUntil(b *testing.B, what string, is func() bool) {
	b.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("not within 30 s: %s", what)
		}
	}
}

// memoryPage is the socket of a page without a kernel: what is written to it is
// gone, and a push that wants an ack is answered at once. To the engine it is no
// TCP, so a goroutine writes to it what pushes queue.
type memoryPage struct {
	hold sync.RWMutex // locked: nothing is taken
	acks chan []byte  // to be read; never closed
	done chan struct{}
	end  func() // closes done
	rest []byte // of an ack; the reader's
}

// addMemoryPage connects such a page as a user.
func addMemoryPage(e *push.Engine, user string) (*memoryPage, error) {
	p := &memoryPage{acks: make(chan []byte, 1), done: make(chan struct{})}
	p.end = sync.OnceFunc(func() { close(p.done) })
	r, err := http.NewRequest(http.MethodGet, "/ws?user="+user, nil)
	if err != nil {
		return nil, err
	}
	r.RemoteAddr, r.Host = "127.0.0.1:1", "127.0.0.1"
	for _, h := range [][2]string{{"Connection", "Upgrade"}, {"Upgrade", "websocket"}, {"Sec-Websocket-Version", "13"}, {"Sec-Websocket-Key", "AAECAwQFBgcICQoLDA0ODw=="}} {
		r.Header.Set(h[0], h[1])
	}
	w := &memoryUpgrade{page: p}
	if e.ServeHTTP(w, r); w.status != 0 {
		return nil, fmt.Errorf("a page in memory got status %d", w.status)
	}
	return p, nil
}

// memoryUpgrade is the ResponseWriter of its request.
type memoryUpgrade struct {
	page   *memoryPage
	header http.Header
	status int
}

func (w *memoryUpgrade) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}
func (w *memoryUpgrade) WriteHeader(status int)      { w.status = status }
func (w *memoryUpgrade) Write(b []byte) (int, error) { return len(b), nil }
func (w *memoryUpgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.page, bufio.NewReadWriter(bufio.NewReader(w.page), bufio.NewWriter(w.page)), nil
}

func (p *memoryPage) Write(b []byte) (int, error) {
	p.hold.RLock()
	defer p.hold.RUnlock()
	select {
	case <-p.done:
		return 0, net.ErrClosed
	default:
	}
	if head, automatic := bytes.CutSuffix(b, []byte(`,"auto":true}`)); automatic {
		ack := make([]byte, 0, 32)
		ack = append(append(ack, 0x81, 0x80, 0, 0, 0, 0), `{"ack":`...)
		ack = append(append(ack, head[bytes.LastIndexByte(head, ':')+1:]...), '}')
		ack[1] |= byte(len(ack) - 6)
		p.acks <- ack
	}
	return len(b), nil
}

func (p *memoryPage) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		select {
		case p.rest = <-p.acks:
		case <-p.done:
			return 0, net.ErrClosed
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *memoryPage) Close() error                     { p.end(); return nil }
func (p *memoryPage) LocalAddr() net.Addr              { return memoryAddr }
func (p *memoryPage) RemoteAddr() net.Addr             { return memoryAddr }
func (p *memoryPage) SetDeadline(time.Time) error      { return nil }
func (p *memoryPage) SetReadDeadline(time.Time) error  { return nil }
func (p *memoryPage) SetWriteDeadline(time.Time) error { return nil }

var memoryAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}

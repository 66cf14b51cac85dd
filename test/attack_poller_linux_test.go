package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// Attacks on what connections of one poller share: its goroutine. Whoever is
// read by it has to be as well off as a connection with a goroutine of its
// own, which a wrapped net.Conn has.

// wrappedListener hides the type of what it accepts.
type wrappedListener struct{ net.Listener }

func (l wrappedListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{nc}, nil
}

// also serves the world at another listener, and returns how to dial it.
func (w *world) also(ln net.Listener) func(context.Context, string, string) (net.Conn, error) {
	w.t.Helper()
	server := &http.Server{Handler: w.Engine, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(ln)
	}()
	w.t.Cleanup(func() { server.Close(); <-served })
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, ln.Addr().Network(), ln.Addr().String())
	}
}

func (w *world) loopback() net.Listener {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	return ln
}

// onProcessors runs the rest of the test on n of them; an engine made from now
// on has as many pollers for good.
func onProcessors(t *testing.T, n int) {
	before := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// asker is a page that asks one thing at a time.
type asker struct {
	*rawPage
	n    int
	took []time.Duration
}

func (w *world) asker(dial func(context.Context, string, string) (net.Conn, error), query string) *asker {
	w.t.Helper()
	was := w.dial
	w.dial = dial
	defer func() { w.dial = was }()
	p, err := w.triesToBreakIn(query)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { p.Close() })
	return &asker{rawPage: p}
}

// asks and waits for the answer.
func (a *asker) asks() {
	a.t.Helper()
	a.n++
	begin := time.Now()
	a.SetDeadline(begin.Add(patience))
	a.writes(a.frame())
	op, b, err := readServerFrame(a.in)
	for err == nil && op == 9 { // a ping
		op, b, err = readServerFrame(a.in)
	}
	if want := fmt.Sprintf(`"ack":%d`, a.n); err != nil || !strings.Contains(string(b), want) {
		a.t.Fatalf("got %d %.100q, %v, want %s", op, b, err, want)
	}
	a.took = append(a.took, time.Since(begin))
}

func (a *asker) frame() []byte {
	return maskedFrame(0x81, fmt.Appendf(nil, `{"event":"ask","id":%d}`, a.n))
}

func middle(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// flood is what some attackers do until ctx ends: each begins a connection,
// writes and does not stop, and begins anew when it is thrown out.
type flood struct {
	name      string
	attackers int
	socketIO  bool
	door      door   // of devices; zero: it comes by HTTP
	first     []byte // once on each connection
	chunk     []byte // for ever
	deaf      bool   // reads nothing
	heavy     bool   // much work for few bytes
}

func floods() []flood {
	zero := maskedFrame(0x00, nil)
	big := func(first byte, b []byte) []byte { return maskedFrame(first, b) }
	var pieces []byte // a message of 16 KiB in fragments of a byte
	text := []byte(`{"event":"x","data":[` + strings.Repeat("1,", 8000) + `1]}`)
	for i := range text {
		first := byte(0)
		if i == 0 {
			first = 1
		}
		if i == len(text)-1 {
			first |= 0x80
		}
		pieces = append(pieces, maskedFrame(first, text[i:i+1])...)
	}
	ctrl := append([]byte("\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x92\xa1x\xdb\x00\x0e\x00\x00"), bytes.Repeat([]byte{1}, 0xe0000)...)
	attached := maskedFrame(0x81, []byte(`4510-["x"`+placeholders(10)+`]`))
	for range 10 {
		attached = append(attached, maskedFrame(0x82, make([]byte, 5000))...)
	}
	hello := mpush.Handshake{DeviceID: "mallory", IV: make([]byte, 16), ClientKey: make([]byte, 16), MinHeartbeat: 240000, MaxHeartbeat: 240000}
	return []flood{
		{name: "empty fragments", attackers: 10, first: maskedFrame(0x01, []byte("{")), chunk: bytes.Repeat(zero, 5000)},
		{name: "fragments of a byte", attackers: 10, chunk: pieces},
		{name: "pings", attackers: 10, chunk: bytes.Repeat(maskedFrame(0x89, []byte("x")), 2000)},
		{name: "pongs", attackers: 10, chunk: bytes.Repeat(maskedFrame(0x8A, []byte("x")), 2000)},
		{name: "small messages", attackers: 10, chunk: bytes.Repeat(maskedFrame(0x81, []byte(`{"event":"x"}`)), 1000)},
		{name: "small questions unread", attackers: 10, deaf: true, chunk: bytes.Repeat(maskedFrame(0x81, []byte(`{"event":"x","id":1}`)), 1000)},
		{name: "large answers unread", heavy: true, attackers: 10, deaf: true, chunk: bytes.Repeat(maskedFrame(0x81, []byte(`{"event":"large","id":1}`)), 1000)},
		{name: "numbers", heavy: true, attackers: 10, chunk: big(0x81, []byte(`{"event":"x","data":[`+strings.Repeat("1,", 32000)+`1]}`))},
		{name: "keys", heavy: true, attackers: 10, chunk: big(0x81, []byte(`{"event":"x"`+strings.Repeat(`,"a":1`, 10000)+`}`))},
		{name: "depth", attackers: 10, chunk: big(0x81, []byte(`{"event":"x","data":`+strings.Repeat("[", 30000)))},
		{name: "answers to nothing", attackers: 10, chunk: bytes.Repeat(maskedFrame(0x81, []byte(`{"ack":1073741825,"data":[1,2,3]}`)), 1000)},
		{name: "logins", attackers: 10, chunk: bytes.Repeat(maskedFrame(0x81, []byte(`{"login":{"user":"x","token":"a b c"}}`)), 1000)},
		{name: "garbage", attackers: 10, chunk: bytes.Repeat([]byte{0xFF}, 20000)},
		{name: "socket.io attachments", attackers: 10, socketIO: true, first: maskedFrame(0x81, []byte("40")), chunk: attached},
		{name: "mpush handshakes", attackers: 10, door: doorTCP, chunk: mpush.AppendPacket(nil, mpush.CmdHandshake, mpush.FlagCrypto, 1, bytes.Repeat([]byte{7}, 128))},
		{name: "mpush bombs", heavy: true, attackers: 10, door: doorPlain, first: mpush.AppendPacket(nil, mpush.CmdHandshake, 0, 1, hello.Append(nil)), chunk: mpush.AppendPacket(nil, mpush.CmdPush, mpush.FlagCompress, 2, mpush.AppendDeflate(nil, make([]byte, 250<<10)))},
		{name: "mpush heartbeats", attackers: 10, door: doorPlain, chunk: bytes.Repeat([]byte{mpush.Beat}, 10000)},
		{name: "socket.io msgpack", heavy: true, attackers: 10, socketIO: true, first: maskedFrame(0x82, []byte("\x82\xa4type\x00\xa3nsp\xa1/")), chunk: maskedFrame(0x82, ctrl)},
	}
}

// dial is how the attackers come: past the socket buffers of a world's own,
// which are small.
func (f *flood) dial(w *deviceWorld) func(context.Context, string, string) (net.Conn, error) {
	if f.door != (door{}) {
		return func(ctx context.Context, _, _ string) (net.Conn, error) { return w.dials[0](ctx) }
	}
	return w.also(w.loopback())
}

// start is how many bytes show that it runs.
func (f *flood) start() int64 { return int64(2 * f.attackers * len(f.chunk)) }

func placeholders(n int) (s string) {
	for i := range n {
		s += fmt.Sprintf(`,{"_placeholder":true,"num":%d}`, i)
	}
	return s
}

func (f *flood) runs(ctx context.Context, w *deviceWorld, dial func(context.Context, string, string) (net.Conn, error)) (done *sync.WaitGroup, written *atomic.Int64) {
	done, written = new(sync.WaitGroup), new(atomic.Int64)
	for range f.attackers {
		done.Go(func() {
			for ctx.Err() == nil {
				f.once(ctx, w, dial, written)
			}
		})
	}
	return done, written
}

func (f *flood) once(ctx context.Context, w *deviceWorld, dial func(context.Context, string, string) (net.Conn, error), written *atomic.Int64) {
	nc, err := dial(ctx, "tcp", "")
	if err != nil {
		return
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	if f.door == (door{}) && !f.upgrades(w, nc) {
		return
	}
	if _, err := nc.Write(f.first); err != nil {
		return
	}
	switch {
	case f.socketIO: // the session, and that it is in its namespace
		for range 2 {
			if _, _, err := readServerFrame(nc); err != nil {
				return
			}
		}
	case f.door != (door{}) && f.first != nil:
		if _, err := nc.Read(make([]byte, 1)); err != nil {
			return
		}
	}
	var reader sync.WaitGroup
	defer reader.Wait()
	defer nc.Close()
	if !f.deaf {
		reader.Go(func() { io.Copy(io.Discard, nc) })
	}
	for {
		n, err := nc.Write(f.chunk)
		written.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// upgrades reads the answer's head, and no further.
func (f *flood) upgrades(w *deviceWorld, nc net.Conn) bool {
	request := w.upgradeRequest("user=mallory")
	if f.socketIO {
		request = strings.Replace(strings.Replace(request, "/ws?", "/socket.io/?EIO=4&transport=websocket&", 1), "Sec-WebSocket-Protocol: "+w.dialect+"\r\n", "", 1)
	}
	io.WriteString(nc, request)
	head := make([]byte, 1)
	for end := 0; end < 4; {
		if _, err := nc.Read(head); err != nil {
			return false
		}
		if head[0] == '\r' || head[0] == '\n' {
			end++
		} else {
			end = 0
		}
	}
	return true
}

// TestFloodHurtsAPollersOthersNoMoreThanThoseWithAGoroutine compares how long
// two innocent pages wait for their answers in the same flood.
func TestFloodHurtsAPollersOthersNoMoreThanThoseWithAGoroutine(t *testing.T) {
	for _, processors := range []int{1, 2} {
		for _, f := range floods() {
			if processors == 2 && !f.heavy {
				continue
			}
			t.Run(fmt.Sprintf("%s on %d", f.name, processors), func(t *testing.T) {
				onProcessors(t, 1) // all are one poller's
				w := f.door.socketWorld(t, push.Config{
					Limits: push.Limits{MaxConnsPerUser: -1},
					OnMessage: func(_ context.Context, _ *push.Conn, m *push.Received) (any, error) {
						if m.Event == "large" {
							return strings.Repeat("x", 60<<10), nil
						}
						return 1, nil
					},
				})
				runtime.GOMAXPROCS(processors)
				polled := w.asker(w.dial, "user=witness")
				driven := w.asker(w.also(wrappedListener{w.loopback()}), "user=witness")
				polled.asks()
				driven.asks()
				polled.took, driven.took = nil, nil
				ctx, cancel := context.WithCancel(t.Context())
				done, written := f.runs(ctx, w, f.dial(w))
				settles(t, "the flood runs", func() bool { return written.Load() > f.start() })
				for range 9 {
					polled.asks()
					driven.asks()
				}
				cancel()
				done.Wait()
				p, d := middle(polled.took), middle(driven.took)
				t.Logf("polled %v (%v), driven %v (%v)", p, slices.Max(polled.took), d, slices.Max(driven.took))
				if p > 40*max(d, 10*time.Millisecond) {
					t.Errorf("an answer takes %v beside a poller's other connections, and %v with a goroutine", p, d)
				}
			})
		}
	}
}

// cloggedLog is a handler of log lines that waits until gate is closed, as
// stderr does when it is a pipe that nobody reads.
type cloggedLog struct {
	slog.Handler
	gate, stuck chan struct{}
}

func (l cloggedLog) Enabled(context.Context, slog.Level) bool { return true }
func (l cloggedLog) Handle(context.Context, slog.Record) error {
	select {
	case l.stuck <- struct{}{}:
	default:
	}
	<-l.gate
	return nil
}

func TestStuckLoggerHoldsNoOthersUp(t *testing.T) {
	onProcessors(t, 1)
	gate, stuck := make(chan struct{}), make(chan struct{}, 1)
	w := newSocketWorld(t, push.Config{
		Logger:    slog.New(cloggedLog{slog.DiscardHandler, gate, stuck}),
		OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { return 1, nil },
	})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	witness := w.asker(w.dial, "user=witness")
	witness.asks()
	p := w.breaksIn("user=mallory")
	p.Close()
	<-stuck
	time.AfterFunc(patience/4, open) // so that the test ends
	witness.asks()
	select {
	case <-gate:
		t.Error("the witness was answered when the log line was written, not before")
	default:
	}
}

// TestNobodyWhoLiesThereCostsTime: what a descriptor tells of that nobody
// wants to know may not be told for ever.
func TestNobodyWhoLiesThereCostsTime(t *testing.T) {
	release := make(chan struct{})
	w := newSocketWorld(t, push.Config{
		Limits: push.Limits{InboxMessages: 1, MaxConnsPerUser: -1},
		OnMessage: func(_ context.Context, c *push.Conn, m *push.Received) (any, error) {
			if strings.HasPrefix(c.UserID(), "held") {
				<-release
			}
			return 1, nil
		},
	})
	let := sync.OnceFunc(func() { close(release) })
	t.Cleanup(let)
	witness := w.asker(w.dial, "user=witness")
	witness.asks()

	message := w.message(map[string]any{"event": "x"})
	for _, user := range []string{"held", "free"} { // of held nothing is read any more
		for _, how := range []string{"urgent", "half", "reset", "stays"} {
			for _, full := range []bool{false, true} {
				user := fmt.Sprint(user, " ", how, full)
				p, err := w.triesToBreakIn("user=" + url.QueryEscape(user))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { p.Close() })
				tc := p.Conn.(*net.TCPConn)
				limited := w.Stats().Limited["inbox"]
				p.writes(bytes.Repeat(message, 20))
				if strings.HasPrefix(user, "held") {
					settles(t, "nothing is read", func() bool { return w.Stats().Limited["inbox"] > limited })
				}
				for range 6 {
					if full {
						w.PushToUser(t.Context(), user, push.Message{Event: "y", Data: strings.Repeat("y", 30000)})
					}
				}
				switch how {
				case "urgent":
					raw, err := tc.SyscallConn()
					if err != nil {
						t.Fatal(err)
					}
					raw.Write(func(fd uintptr) bool {
						err = syscall.Sendto(int(fd), []byte("!"), syscall.MSG_OOB, nil)
						return true
					})
					if err != nil {
						t.Fatal(err)
					}
				case "half":
					tc.CloseWrite()
				case "reset":
					tc.SetLinger(0)
					tc.Close()
				}
			}
		}
	}
	if closed := total(w.Stats().Closed); closed == 0 || w.Stats().QueuedBytes == 0 {
		t.Errorf("%d closed and nothing queued: it is not what it wants to be", closed)
	}
	before, begin := burnt(t), time.Now()
	for range 10 {
		time.Sleep(100 * time.Millisecond)
		witness.asks()
	}
	if used, took := burnt(t)-before, time.Since(begin); used > took/5 {
		t.Errorf("%v of CPU in %v, want a fifth at most", used, took)
	}
	let()
	witness.asks()
}

// TestHookThatNeverReturnsOrThrowsHurtsNobodyOfItsPoller: hooks have nothing to
// do with who reads.
func TestHookThatNeverReturnsOrThrowsHurtsNobodyOfItsPoller(t *testing.T) {
	onProcessors(t, 1)
	release := make(chan struct{})
	misbehaves := func(user string) {
		switch user {
		case "blocks":
			<-release
		case "panics":
			panic("a hook panics")
		case "exits":
			runtime.Goexit()
		}
	}
	for _, hook := range []string{"Authenticate", "OnConnect", "OnMessage", "OnDisconnect"} {
		t.Run(hook, func(t *testing.T) {
			release = make(chan struct{})
			w := newSocketWorld(t, push.Config{
				Limits: push.Limits{AuthTimeout: patience},
				Authenticate: func(_ context.Context, l *push.Login) (string, error) {
					if hook == "Authenticate" && l.Conn != nil {
						misbehaves(l.UserID)
					}
					return l.UserID, nil
				},
				OnConnect: func(_ context.Context, c *push.Conn) {
					if hook == "OnConnect" {
						misbehaves(c.UserID())
					}
				},
				OnMessage: func(_ context.Context, c *push.Conn, m *push.Received) (any, error) {
					if hook == "OnMessage" {
						misbehaves(c.UserID())
					}
					return 1, nil
				},
				OnDisconnect: func(c *push.Conn, _ push.Reason) {
					if hook == "OnDisconnect" {
						misbehaves(c.UserID())
					}
				},
			})
			t.Cleanup(func() { close(release) })
			witness := w.asker(w.dial, "user=witness")
			for _, user := range []string{"blocks", "panics", "exits"} {
				for i := range 10 {
					p := w.breaksIn("user=" + user)
					p.writes(bytes.Repeat(w.message(map[string]any{"event": "x", "id": 1}), 100), w.message(map[string]any{"login": map[string]any{"user": user}}))
					if i%2 == 0 {
						p.Close()
					}
					witness.asks()
				}
			}
			newcomer := w.asker(w.dial, "user=newcomer")
			for range 10 {
				witness.asks()
				newcomer.asks()
			}
		})
	}
}

// countingListener counts what it accepted and what of that was closed, as one
// that limits connections does.
type countingListener struct {
	net.Listener
	accepted, closed *atomic.Int64
}

type countedConn struct {
	net.Conn
	once   sync.Once
	closed *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	return &countedConn{Conn: nc, closed: l.closed}, nil
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.closed.Add(1) })
	return c.Conn.Close()
}

// unwrapping is a middleware's ResponseWriter.
type unwrapping struct{ http.ResponseWriter }

func (u unwrapping) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// TestEveryWayInIsServedAndEnds: whoever drives the connection in the end.
func TestEveryWayInIsServedAndEnds(t *testing.T) {
	var accepted, closed atomic.Int64
	unix := func(t *testing.T) net.Listener {
		dir, err := os.MkdirTemp("", "push")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		ln, err := net.Listen("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	for _, way := range []string{"plain", "unix", "wrapped", "counted", "tls", "middleware", "kept alive"} {
		t.Run(way, func(t *testing.T) {
			w := newSocketWorld(t, push.Config{
				OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { return 1, nil },
			})
			plain := w.dial
			dial := plain
			switch way {
			case "unix":
				dial = w.also(unix(t))
			case "wrapped":
				dial = w.also(wrappedListener{w.loopback()})
			case "counted":
				dial = w.also(countingListener{w.loopback(), &accepted, &closed})
			case "tls":
				bare := w.also(tls.NewListener(w.loopback(), serverTLS()))
				dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					nc, err := bare(ctx, network, addr)
					if err != nil {
						return nil, err
					}
					return tls.Client(nc, clientTLS()), nil
				}
			case "middleware":
				engine := w.server.Handler
				w.server.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { engine.ServeHTTP(unwrapping{rw}, r) })
			case "kept alive":
				dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					nc, err := plain(ctx, network, addr)
					if err != nil {
						return nil, err
					}
					in := bufio.NewReader(nc)
					for range 3 {
						io.WriteString(nc, "GET /ws HTTP/1.1\r\nHost: push.test\r\n\r\n")
						resp, err := http.ReadResponse(in, nil)
						if err != nil {
							return nil, err
						}
						io.Copy(io.Discard, resp.Body)
					}
					return nc, nil
				}
			}
			witness := w.asker(w.dial, "user=witness")
			for range 5 {
				a := w.asker(dial, "user=guest")
				a.asks()
				witness.asks()
				if r, err := w.PushToUser(t.Context(), "guest", push.Message{Event: "x"}); err != nil || r.Sent == 0 {
					t.Errorf("a push: %+v, %v", r, err)
				}
				if _, b, err := readServerFrame(a.in); err != nil || !strings.Contains(string(b), `"x"`) {
					t.Errorf("got %q, %v", b, err)
				}
				if _, err := w.Kick(t.Context(), push.Audience{User: "guest"}, "go"); err != nil {
					t.Error(err)
				}
				if op, _, err := readServerFrame(a.in); op != 8 {
					t.Errorf("got %d, %v, want a close frame", op, err)
				}
				a.Close()
			}
			settles(t, "all are gone", func() bool { return w.Stats().Sockets == 1 })
			witness.asks()
			w.Close()
			if way == "counted" {
				settles(t, "all are closed", func() bool { return closed.Load() == accepted.Load() })
			}
		})
	}
}

// descriptors is how many this process has.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestConnectionWithoutASecondDescriptorIsServedAllTheSame: a poller needs one
// more for a moment.
func TestConnectionWithoutASecondDescriptorIsServedAllTheSame(t *testing.T) {
	inAProcess(t, func(t *testing.T) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 256, Max: 256}); err != nil {
			t.Fatal(err)
		}
		w := newSocketWorld(t, push.Config{
			Limits:    push.Limits{MaxConns: -1},
			OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { return 1, nil },
		})
		var pages []*asker
		for round := range 8 {
			for spare := 2; spare < 6; spare++ { // the client's and the server's, and nothing, or some, for the poller
				var padding []*os.File
				for {
					f, err := os.Open(os.DevNull)
					if err != nil {
						break
					}
					padding = append(padding, f)
				}
				for _, f := range padding[len(padding)-spare:] {
					f.Close()
				}
				page := w.asker(w.dial, fmt.Sprint("user=u", spare, ".", round))
				for _, p := range append(pages, page) {
					p.asks()
				}
				for _, f := range padding[:len(padding)-spare] {
					f.Close()
				}
				if pages = append(pages, page); len(pages) > 20 {
					pages[0].Close()
					pages = pages[1:]
				}
			}
		}
		for _, p := range pages {
			p.asks()
			p.Close()
		}
		settles(t, "all are gone", func() bool { return w.Stats().Sockets == 0 })
	})
}

// TestDevicesWithoutDescriptorsWait: they stay in the backlog, are counted, and
// come in when there are some again.
func TestDevicesWithoutDescriptorsWait(t *testing.T) {
	inAProcess(t, func(t *testing.T) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 200, Max: 200}); err != nil {
			t.Fatal(err)
		}
		w := doorTCP.socketWorld(t, push.Config{
			Limits:    push.Limits{MaxConns: -1},
			OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { return 1, nil },
		})
		witness := w.asker(w.dial, "user=witness")
		old := w.binds("old")
		var flood []net.Conn
		for {
			nc, err := w.dials[0](t.Context())
			if err != nil {
				break
			}
			flood = append(flood, nc)
		}
		settles(t, "accept fails", func() bool { return w.Stats().Limited["accept"] > 0 })
		for range 20 {
			witness.asks()
		}
		if r, err := w.PushToUser(t.Context(), "old", push.Message{Data: "still"}); err != nil || r.Sent != 1 {
			t.Errorf("a push: %+v, %v", r, err)
		}
		old.wantPush(`"still"`)
		for _, nc := range flood {
			nc.(*net.TCPConn).SetLinger(0)
			nc.Close()
		}
		w.binds("new")
		settles(t, "the flood is gone", func() bool { return w.Stats().Sockets == 3 })
		witness.asks()
	})
}

// aLife is one connection's, in one of many ways, to a random point of it.
func (w *deviceWorld) aLife(ctx context.Context) {
	page := func(first string, then ...[]byte) {
		nc, err := w.dial(ctx, "tcp", "")
		if err != nil {
			return
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(time.Second))
		io.WriteString(nc, first)
		if len(then) > 0 {
			if n, _ := nc.Read(make([]byte, 4096)); n == 0 {
				return
			}
		}
		for _, b := range then {
			if _, err := nc.Write(b[:rand.IntN(len(b))+1]); err != nil {
				return
			}
		}
		switch rand.IntN(5) {
		case 0:
			nc.(*net.TCPConn).SetLinger(0)
		case 1:
			nc.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, nc)
		case 2:
			nc.SetDeadline(time.Now().Add(time.Duration(rand.IntN(50)) * time.Millisecond))
			io.Copy(io.Discard, nc)
		case 3: // reads nothing
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(rand.IntN(100)) * time.Millisecond):
			}
		}
	}
	user := fmt.Sprint("u", rand.IntN(20))
	upgrade := w.upgradeRequest("user=" + user + "&token=room")
	some := bytes.Repeat(w.message(map[string]any{"event": "x", "id": 1, "data": strings.Repeat("x", 500)}), 20)
	switch rand.IntN(8) {
	case 0:
		page(upgrade[:rand.IntN(len(upgrade))])
	case 1:
		page(upgrade, some)
	case 2:
		page(upgrade, some, maskedFrame(0x88, []byte{3, 232}))
	case 3:
		page(upgrade, w.message(map[string]any{"login": map[string]any{"user": user}}), some)
	case 4:
		io := strings.Replace(strings.Replace(upgrade, "/ws?", "/socket.io/?EIO=4&transport=websocket&", 1), "Sec-WebSocket-Protocol: "+w.dialect+"\r\n", "", 1)
		page(io, maskedFrame(0x81, []byte("40")), maskedFrame(0x81, []byte(`421["x",1]`)))
	case 5:
		page("GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: push.test\r\n\r\n", []byte("GET / HTTP/1.1\r\n"))
	default:
		d, err := w.triesToDial()
		if err != nil {
			return
		}
		all := d.hello()
		if rand.IntN(2) == 0 {
			d.raw(all[:rand.IntN(len(all))+1])
		} else {
			d.raw(all)
			if ends := time.Now().Add(50 * time.Millisecond); rand.IntN(2) == 0 {
				for time.Now().Before(ends) && len(d.taken()) == 0 {
					runtime.Gosched()
				}
				d.asksToBind(user)
			}
		}
		if rand.IntN(2) == 0 {
			d.nc.(*gateConn).Conn.(*net.TCPConn).SetLinger(0)
		}
		d.vanishes()
	}
}

func TestStormOfLivesLeavesNothing(t *testing.T) {
	var first int64
	before, goroutines := descriptors(t), runtime.NumGoroutine()
	for round := range 4 {
		for _, end := range []string{"Shutdown", "Close"} {
			t.Run(end, func(t *testing.T) {
				var connects, disconnects atomic.Int64
				w := doorTCP.socketWorld(t, push.Config{
					Limits: push.Limits{MaxConnsPerUser: -1, QueueBytes: 64 << 10, TotalQueueBytes: 1 << 20, AckTimeout: time.Second},
					Authenticate: func(_ context.Context, l *push.Login) (string, error) {
						l.Rooms = []string{"room"}
						return l.UserID, nil
					},
					OnConnect:    func(context.Context, *push.Conn) { connects.Add(1) },
					OnDisconnect: func(*push.Conn, push.Reason) { disconnects.Add(1) },
					OnMessage:    func(context.Context, *push.Conn, *push.Received) (any, error) { return 1, nil },
				})
				ctx, cancel := context.WithCancel(t.Context())
				var storm sync.WaitGroup
				for range 12 {
					storm.Go(func() {
						for ctx.Err() == nil {
							w.aLife(ctx)
						}
					})
				}
				storm.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						m := push.Message{Event: "y", Data: strings.Repeat("y", rand.IntN(30000)), Ack: push.Ack(rand.IntN(3))}
						ctx, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(50))*time.Millisecond)
						switch i % 4 {
						case 0:
							w.PushToRoom(ctx, "room", m)
						case 1:
							w.Push(ctx, push.Audience{All: true}, m)
						case 2:
							w.Kick(ctx, push.Audience{User: fmt.Sprint("u", rand.IntN(20))}, "x")
						case 3:
							w.PushToUser(ctx, fmt.Sprint("u", rand.IntN(20)), m)
						}
						cancel()
					}
				})
				settles(t, "a storm", func() bool { return w.Stats().Accepted >= 300 })
				if end == "Shutdown" {
					limit, stop := context.WithTimeout(t.Context(), patience)
					if err := w.Shutdown(limit); err != nil {
						t.Error(err)
					}
					stop()
				} else {
					w.Close()
					if err := w.Shutdown(t.Context()); err != nil {
						t.Error(err)
					}
				}
				cancel()
				storm.Wait()
				wantEnded(t, w.Engine)
				if s := w.Stats(); s.Accepted != total(s.Closed) || connects.Load() != disconnects.Load() {
					t.Errorf("%d accepted and %d closed, %d connects and %d disconnects", s.Accepted, total(s.Closed), connects.Load(), disconnects.Load())
				}
			})
		}
		settles(t, "descriptors are closed", func() bool { return descriptors(t) <= before+3 }) // the first engine brings the runtime's own
		settles(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
		switch now := heap(); {
		case round == 0:
			first = now
		case now > first+2<<20:
			t.Errorf("%d bytes of heap after round %d, %d after the first", now, round, first)
		}
	}
}

// TestEndReachesEveryConnectionInEveryState, also twice, and while others
// come.
func TestEndReachesEveryConnectionInEveryState(t *testing.T) {
	const each = 100
	for _, end := range []string{"Shutdown", "Close", "both"} {
		t.Run(end, func(t *testing.T) {
			before := descriptors(t)
			release := make(chan struct{})
			w := doorTCP.socketWorld(t, push.Config{
				Limits: push.Limits{MaxConns: -1, MaxConnsPerUser: -1, MaxPending: -1, InboxMessages: 2, AuthTimeout: time.Minute, LoginTimeout: time.Minute, MessageTimeout: time.Minute},
				Authenticate: func(_ context.Context, l *push.Login) (string, error) {
					switch l.UserID {
					case "undecided":
						<-release
					case "refused":
						return "", push.ErrUnauthorized
					}
					return l.UserID, nil
				},
				OnMessage: func(_ context.Context, c *push.Conn, _ *push.Received) (any, error) {
					if c.UserID() == "held" {
						<-release
					}
					return strings.Repeat("x", 50<<10), nil
				},
			})
			message := w.message(map[string]any{"event": "x", "id": 1})
			upgrade := func(user string) []byte { return []byte(w.upgradeRequest("user=" + user)) }
			hello := mpush.Handshake{DeviceID: "d", IV: make([]byte, 16), ClientKey: make([]byte, 16), MinHeartbeat: 240000, MaxHeartbeat: 240000}
			sealed, err := stockPublicKey().Encrypt(hello.Append(nil))
			if err != nil {
				t.Fatal(err)
			}
			shake := mpush.AppendPacket(nil, mpush.CmdHandshake, mpush.FlagCrypto, 1, sealed)
			states := []struct {
				dial     func(context.Context) (net.Conn, error)
				first    []byte
				answered bool // wait for that
				then     []byte
			}{
				{first: nil},
				{first: upgrade("x")[:40]},
				{first: upgrade("idle"), answered: true},
				{first: upgrade("undecided")},
				{first: []byte(w.upgradeRequest("user=refused", "Origin: http://push.test")), answered: true},
				{first: upgrade("partial"), answered: true, then: message[:9]},
				{first: upgrade("held"), answered: true, then: bytes.Repeat(message, 10)},
				{first: upgrade("deaf"), answered: true, then: bytes.Repeat(message, 4)},
				{first: upgrade("leaves"), answered: true, then: maskedFrame(0x88, []byte{3, 232})},
				{dial: w.dials[0]},
				{dial: w.dials[0], first: shake[:50]},
				{dial: w.dials[0], first: shake},
				{dial: w.dials[0], first: shake, answered: true},
				{dial: w.dials[0], first: shake, answered: true, then: []byte{mpush.Beat, 0, 0}},
			}
			var all []net.Conn
			defer func() {
				for _, nc := range all {
					nc.Close()
				}
			}()
			for range each {
				for _, s := range states {
					if s.dial == nil {
						s.dial = func(ctx context.Context) (net.Conn, error) { return w.dial(ctx, "tcp", "") }
					}
					nc, err := s.dial(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, nc)
					nc.SetDeadline(time.Now().Add(patience))
					nc.Write(s.first)
					if s.answered {
						if _, err := nc.Read(make([]byte, 1)); err != nil {
							t.Fatal(err)
						}
					}
					nc.Write(s.then)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			var ends, coming sync.WaitGroup
			for i := range 4 {
				coming.Go(func() {
					for ctx.Err() == nil {
						if i%2 == 0 {
							if p, err := w.triesToBreakIn("user=late"); err == nil {
								p.Close()
							}
						} else if nc, err := w.dials[0](ctx); err == nil {
							nc.Write(shake)
							nc.Close()
						}
					}
				})
			}
			limit, stop := context.WithTimeout(t.Context(), 3*time.Second)
			defer stop()
			for range 2 {
				if end != "Close" {
					ends.Go(func() { w.Shutdown(limit) })
				}
				if end != "Shutdown" {
					ends.Go(func() { w.Close() })
				}
			}
			ends.Wait()
			cancel()
			coming.Wait()
			close(release)
			if err := w.Shutdown(t.Context()); err != nil { // hooks are over
				t.Error(err)
			}
			settles(t, "all have left", func() bool { return w.Stats().Sockets == 0 })
			wantEnded(t, w.Engine)
			if s := w.Stats(); s.Accepted != total(s.Closed) {
				t.Errorf("%d accepted and %d closed", s.Accepted, total(s.Closed))
			}
			w.server.Close()
			for _, nc := range all {
				nc.Close()
			}
			settles(t, "descriptors are closed", func() bool { return descriptors(t) <= before+5 })
		})
	}
}

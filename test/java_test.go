package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/mpush"
)

// javaNode is an engine that serves devices on a port of its own.
type javaNode struct {
	*push.Engine
	t      testing.TB
	served chan struct{} // closed when Serve has returned
}

const javaAddr = "10.0.0.1:3000"

// javaSecret is a SessionKey that survives restarts.
var javaSecret = []byte("0123456789abcdefghijklmnopqrstuvwxyz")

// serveJava starts an engine with the stock key on l. The test's end, or
// ends, closes it.
func serveJava(t testing.TB, cfg push.Config, l net.Listener) *javaNode {
	t.Helper()
	if cfg.Authenticate == nil {
		cfg.Authenticate = believe
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MPush.PrivateKey == nil {
		cfg.MPush.PrivateKey = []byte(mpush.StockPrivateKey)
	}
	e, err := push.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &javaNode{Engine: e, t: t, served: make(chan struct{})}
	go func() {
		defer close(n.served)
		if err := e.Serve(l); !errors.Is(err, push.ErrClosed) {
			t.Errorf("Serve ended with %v", err)
		}
	}()
	t.Cleanup(n.ends)
	return n
}

// ends closes the engine at once.
func (n *javaNode) ends() {
	n.Close()
	<-n.served
}

// javaNet is a network of a server and the phones' carrier.
type javaNet struct {
	*memnet.Network
	t testing.TB
}

func newJavaNet(t testing.TB) *javaNet { return &javaNet{memnet.New(1), t} }

func (w *javaNet) listen(ip string) net.Listener {
	w.t.Helper()
	l, err := w.Host(ip).Listen(3000)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// dialFrom is how a phone at ip dials.
func (w *javaNet) dialFrom(ip string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		return w.Host(ip).DialContext(ctx, "tcp", addr)
	}
}

// client starts a client of the server at javaAddr, and waits until it is
// bound.
func (w *javaNet) client(cfg javaConfig) *javaClient {
	w.t.Helper()
	if cfg.dial == nil {
		cfg.dial = w.dialFrom(clientIP)
	}
	cfg.addr = javaAddr
	c := newJavaClient(w.t, cfg)
	c.waitBound(w.t)
	return c
}

// javaFleet is many clients, each of a user of its own.
type javaFleet struct {
	t   testing.TB
	all []*javaClient
}

// javaFleetSize is how many clients make a fleet of n.
func javaFleetSize(n int) int {
	if javaRace() {
		return n / 5
	}
	return n
}

// javaRace tells whether the race detector is on.
func javaRace() bool {
	info, ok := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if ok && s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}

// fleet starts n clients one after another within a second. more changes what
// their apps give them.
func (w *javaNet) fleet(n int, more func(i int, cfg *javaConfig)) *javaFleet {
	w.t.Helper()
	f := &javaFleet{t: w.t}
	for i := range n {
		cfg := javaConfig{user: fmt.Sprintf("u%d", i), device: fmt.Sprintf("d%d", i), dial: w.dialFrom(clientIP), addr: javaAddr}
		if more != nil {
			more(i, &cfg)
		}
		f.all = append(f.all, newJavaClient(w.t, cfg))
		time.Sleep(time.Second / time.Duration(n))
	}
	return f
}

// bound counts those that are.
func (f *javaFleet) bound() (n int) {
	for _, c := range f.all {
		if _, ok := c.isBound(); ok {
			n++
		}
	}
	return n
}

// wantBound wants all of them to be bound within a time, and online.
func (f *javaFleet) wantBound(e *push.Engine, within time.Duration) {
	f.t.Helper()
	begin := time.Now()
	for f.bound() < len(f.all) && time.Since(begin) <= within {
		time.Sleep(50 * time.Millisecond)
	}
	if n := f.bound(); n < len(f.all) {
		f.t.Errorf("%d of %d clients are bound after %s, %s", n, len(f.all), within, f)
		return
	}
	f.t.Logf("all %d bound after %s, %s", len(f.all), time.Since(begin), f)
	for _, c := range f.all {
		if !e.Online(c.cfg.user) {
			f.t.Errorf("%s is not online", c.cfg.user)
		}
	}
}

// javaSum is a fleet in numbers.
type javaSum struct {
	n, attempts, reconnects, mostReconnects, handshakes, fastConnects, kicks, early, exceptions, answeredWrong int
	fates                                                                                                      map[javaFate]int
}

func (f *javaFleet) sum() javaSum {
	s := javaSum{fates: make(map[javaFate]int)}
	for _, c := range f.all {
		n, fate := c.counts(), c.is()
		s.n++
		s.attempts += n.attempts
		s.reconnects += n.reconnects()
		s.mostReconnects = max(s.mostReconnects, n.reconnects())
		s.handshakes += n.handshakes
		s.fastConnects += n.fastConnects
		s.kicks += n.kicks
		s.early += n.early
		s.exceptions += n.exceptions
		s.answeredWrong += n.answeredWrong
		if fate != javaAlive {
			s.fates[fate]++
		}
	}
	return s
}

func (f *javaFleet) String() string {
	s := f.sum()
	return fmt.Sprintf("reconnects %.1f a client, at most %d; attempts %.1f, handshakes %d, fast connects %d; fates %v",
		float64(s.reconnects)/float64(s.n), s.mostReconnects, float64(s.attempts)/float64(s.n), s.handshakes, s.fastConnects, s.fates)
}

// wantWell wants nobody to be lost, and nothing to have come that the client
// cannot stand.
func (f *javaFleet) wantWell() {
	f.t.Helper()
	if s := f.sum(); len(s.fates) > 0 || s.kicks > 0 || s.early > 0 || s.exceptions > 0 || s.answeredWrong > 0 {
		f.t.Errorf("%d kicks, %d packets before BIND, %d exceptions, %d wrong answers; %s", s.kicks, s.early, s.exceptions, s.answeredWrong, f)
		for _, c := range f.all {
			if n := c.counts(); c.is() != javaAlive || n.exceptions > 0 {
				f.t.Logf("%s: %q %+v", c.cfg.device, c.is(), n)
				break
			}
		}
	}
}

// javaSlam is a listener that may be told to close what it accepts, as a full
// server does that means well.
type javaSlam struct {
	net.Listener
	on atomic.Bool
}

func (l *javaSlam) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil || !l.on.Load() {
			return nc, err
		}
		nc.Close()
	}
}

// javaBacklog is a listener with a backlog as deep as a kernel's: clients are
// connected, and give up, long before they are accepted.
type javaBacklog struct {
	net.Listener
	conns chan net.Conn
	over  chan struct{} // closed when nothing comes any more
}

func newJavaBacklog(l net.Listener) *javaBacklog {
	b := &javaBacklog{Listener: l, conns: make(chan net.Conn, 4096), over: make(chan struct{})}
	go func() {
		defer close(b.over)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			b.conns <- nc
		}
	}()
	return b
}

func (b *javaBacklog) Accept() (net.Conn, error) {
	select {
	case nc := <-b.conns:
		return nc, nil
	case <-b.over:
		return b.Listener.Accept() // its error
	}
}

func (b *javaBacklog) Close() error {
	err := b.Listener.Close()
	<-b.over
	for len(b.conns) > 0 {
		(<-b.conns).Close()
	}
	return err
}

// javaWantQuiet wants two clients of one user to live: no reconnect, both
// connected, and pushes for the newer one.
func javaWantQuiet(t *testing.T, e *push.Engine, older, newer *javaClient) {
	t.Helper()
	for _, c := range []*javaClient{older, newer} {
		n := c.counts()
		t.Logf("%s: %d reconnects, %d kicks, %d pushes", c.cfg.device, n.reconnects(), n.kicks, n.pushes)
		if n.attempts != 1 || n.exceptions > 0 || c.is() != javaAlive {
			t.Errorf("%s is %q and has %+v, want one connection in peace", c.cfg.device, c.is(), n)
		}
	}
	r, err := e.PushToUser(t.Context(), newer.cfg.user, push.Message{Data: []byte("hello"), Ack: push.AutoAck})
	if err != nil {
		t.Error(err)
	}
	wantStatus(t, r, push.Acked)
	if got := newer.counts().pushes; got != 1 {
		t.Errorf("the newer one has %d pushes, want 1", got)
	}
	if got := older.counts().pushes; got != 0 {
		t.Errorf("the older one has %d pushes, want none", got)
	}
}

func TestJavaTwoDevicesOfOneUserLiveInPeace(t *testing.T) {
	for _, tt := range []struct {
		name    string
		unbinds bool
		close   bool // the counter-example: who is kicked is closed
		quiet   bool
	}{
		{"empty onKickUser", false, false, true},
		{"empty onKickUser, closed", false, true, false},
		{"unbind on kick", true, false, true},
		{"unbind on kick, closed", true, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				e := serveJava(t, push.Config{MPush: push.MPush{CloseKicked: tt.close}}, w.listen(serverIP))
				older := w.client(javaConfig{user: "alice", device: "phone", unbinds: tt.unbinds})
				newer := w.client(javaConfig{user: "alice", device: "tablet", unbinds: tt.unbinds})
				time.Sleep(time.Minute)
				n, m := older.counts(), newer.counts()
				if !tt.quiet {
					if n.reconnects()+m.reconnects() == 0 {
						t.Error("closing who is kicked brings nobody back: the test can show nothing")
					}
					t.Logf("%d and %d reconnects, %d and %d kicks", n.reconnects(), m.reconnects(), n.kicks, m.kicks)
					return
				}
				if n.kicks != 1 || m.kicks != 0 || len(n.errors) > 0 {
					t.Errorf("%d and %d kicks, want 1 and none: %q", n.kicks, m.kicks, n.errors)
				}
				if tt.unbinds && n.unbound != 1 {
					t.Errorf("%d UNBINDs were answered, want 1", n.unbound)
				}
				javaWantQuiet(t, e.Engine, older, newer)
				if got := e.Stats().Detached; got != 1 {
					t.Errorf("%d were detached, want 1", got)
				}
			})
		})
	}
}

func TestJavaSameDeviceTwiceIsNotKicked(t *testing.T) {
	for _, tt := range []struct {
		name   string
		device string // of the second
		cut    bool   // the first is half open: it moved, and its network with it
		kicks  int
	}{
		{"half open", "phone", true, 0},
		{"both there", "phone", false, 0},
		{"another device", "tablet", false, 1}, // the counter-example
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				e := serveJava(t, push.Config{}, w.listen(serverIP))
				older := w.client(javaConfig{user: "alice", device: "phone"})
				if tt.cut {
					w.Cut(serverIP, clientIP)
				}
				newer := w.client(javaConfig{user: "alice", device: tt.device, dial: w.dialFrom("10.0.0.3"), session: javaMoved(older, tt.device)})
				time.Sleep(time.Minute)
				if tt.cut {
					w.MendAll() // what was sent to it arrives
					time.Sleep(time.Second)
				}
				if got := older.counts().kicks + newer.counts().kicks; got != tt.kicks {
					t.Errorf("%d kicks, want %d", got, tt.kicks)
				}
				javaWantQuiet(t, e.Engine, older, newer)
				if got := e.Stats().Detached; got != 1 {
					t.Errorf("%d were detached, want 1", got)
				}
			})
		})
	}
}

// javaMoved is a client's session for the same device elsewhere.
func javaMoved(c *javaClient, device string) *javaSession {
	if device != c.cfg.device {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

func TestJavaClientsOutliveAMinuteWithoutLogins(t *testing.T) {
	down := errors.New("the database is down")
	const minute = time.Minute
	for _, tt := range []struct {
		name   string
		n      int
		refuse func(ctx context.Context) error
		delay  time.Duration // MPush.RefuseDelay
		within time.Duration
		most   int // reconnects of a client in the minute; 0: the counter-example, which they do not survive
	}{
		{"refused", 1000, func(context.Context) error { return push.ErrUnauthorized }, 0, 5 * time.Second, 31},
		{"refused with a text", 200, func(context.Context) error { return push.Refuse("try tomorrow") }, 0, 5 * time.Second, 31},
		{"back end fails", 1000, func(context.Context) error { return down }, 0, 5 * time.Second, 11},
		{"back end hangs", 1000, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 0, 7 * time.Second, 11},
		{"refused at once", 5, func(context.Context) error { return push.ErrUnauthorized }, time.Millisecond, 5 * time.Second, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := javaFleetSize(tt.n)
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				if tt.most > 0 {
					w.SetDelay(5*time.Millisecond, 50*time.Millisecond)
				}
				var refusing atomic.Bool
				refusing.Store(true)
				e := serveJava(t, push.Config{
					MPush: push.MPush{RefuseDelay: tt.delay},
					Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
						if refusing.Load() {
							return "", tt.refuse(ctx)
						}
						return l.UserID, nil
					},
				}, w.listen(serverIP))
				f := w.fleet(n, nil)
				time.Sleep(minute)
				s := f.sum()
				t.Logf("after a minute: %s", f)
				if got := f.bound(); got > 0 {
					t.Errorf("%d are bound", got)
				}
				if tt.most == 0 {
					if s.fates[javaExhausted] != n {
						t.Errorf("quick refusals exhaust %v of %d clients: the test can show nothing", s.fates, n)
					}
					return
				}
				if s.mostReconnects > tt.most || s.mostReconnects < 5 {
					t.Errorf("%d reconnects of a client in a minute, want some, and at most %d", s.mostReconnects, tt.most)
				}
				refusing.Store(false)
				f.wantBound(e.Engine, tt.within)
				f.wantWell()
				if s := f.sum(); s.handshakes != n {
					t.Errorf("%d handshakes, want %d: each once", s.handshakes, n)
				}
			})
		})
	}
}

func TestJavaClientsOutliveAFullServer(t *testing.T) {
	conns := func(n, idle int) push.Limits { return push.Limits{MaxConns: n + idle/2} }
	pending := func(n, idle int) push.Limits { return push.Limits{MaxPending: idle} }
	address := func(n, idle int) push.Limits { return push.Limits{MaxConnsPerAddr: n} }
	for _, tt := range []struct {
		name     string
		n        int
		sessions bool // of an earlier life
		limits   func(n, idle int) push.Limits
		slam     bool // the counter-example: what is too much is closed at once
	}{
		{"MaxConns", 1000, false, conns, false},
		{"MaxConns, sessions", 1000, true, conns, false},
		{"MaxPending", 1000, false, pending, false},
		{"MaxPending, sessions", 1000, true, pending, false},
		{"MaxConnsPerAddr", 200, false, address, false},
		{"closed at once", 20, false, func(n, idle int) push.Limits { return push.Limits{} }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				limits := tt.limits(tt.n, 50)
				door := &javaSlam{Listener: newJavaBacklog(w.listen(serverIP))}
				e := serveJava(t, push.Config{Limits: limits, MPush: push.MPush{SessionKey: javaSecret}}, door)
				var idle []net.Conn
				for range max(limits.MaxConns, limits.MaxPending, limits.MaxConnsPerAddr) {
					nc, err := w.dialFrom(clientIP)(t.Context(), javaAddr)
					if err != nil {
						t.Fatal(err)
					}
					defer nc.Close()
					idle = append(idle, nc)
				}
				time.Sleep(time.Second)
				w.SetDelay(5*time.Millisecond, 50*time.Millisecond)
				door.on.Store(tt.slam)
				f := w.fleet(tt.n, func(i int, cfg *javaConfig) {
					if tt.sessions {
						cfg.session = javaToken(javaSecret, cfg.device)
					}
				})
				time.Sleep(4 * time.Second)
				t.Logf("after 5 s: %s", f)
				if got := f.bound(); got > 0 {
					t.Fatalf("%d are bound at a full server", got)
				}
				if tt.slam {
					if got := f.sum().fates[javaWedged]; got != tt.n {
						t.Errorf("%d of %d are wedged: the test can show nothing", got, tt.n)
					}
					return
				}
				for _, nc := range idle {
					nc.Close()
				}
				f.wantBound(e.Engine, 5*time.Second)
				f.wantWell()
				s := f.sum()
				if tt.sessions && s.handshakes > 0 || !tt.sessions && s.handshakes != tt.n {
					t.Errorf("%d handshakes", s.handshakes)
				}
				if s.mostReconnects > 5 {
					t.Errorf("%d reconnects of a client, want one each 3 s", s.mostReconnects)
				}
			})
		})
	}
}

func TestJavaClientsOutliveARestart(t *testing.T) {
	for _, tt := range []struct {
		name string
		stop func(ctx context.Context, e *push.Engine) error
		key  []byte
		lost bool // the counter-example: the sessions do not outlive the engine
	}{
		{"Close", func(_ context.Context, e *push.Engine) error { return e.Close() }, javaSecret, false},
		{"Shutdown", func(ctx context.Context, e *push.Engine) error { return e.Shutdown(ctx) }, javaSecret, false},
		{"Close, no SessionKey", func(_ context.Context, e *push.Engine) error { return e.Close() }, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := javaFleetSize(1000)
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				w.SetDelay(5*time.Millisecond, 50*time.Millisecond)
				cfg := push.Config{MPush: push.MPush{SessionKey: tt.key}}
				e := serveJava(t, cfg, w.listen(serverIP))
				f := w.fleet(n, nil)
				f.wantBound(e.Engine, time.Second)
				time.Sleep(20 * time.Second)
				fresh := 0
				for i, c := range f.all { // some lost their session file
					if i%100 == 0 {
						c.forgets()
						fresh++
					}
				}
				before := f.sum()
				down := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				if err := tt.stop(ctx, e.Engine); err != nil {
					t.Errorf("the end: %v", err)
				}
				<-e.served
				time.Sleep(5*time.Second - time.Since(down))
				if got := f.bound(); got > 0 {
					t.Errorf("%d are bound to nothing", got)
				}
				e = serveJava(t, cfg, w.listen(serverIP))
				f.wantBound(e.Engine, 5*time.Second)
				f.wantWell()
				shaken := f.sum().handshakes - before.handshakes
				switch {
				case tt.lost && shaken != n:
					t.Errorf("%d handshakes without sessions, want %d: the test can show nothing", shaken, n)
				case !tt.lost && shaken != fresh:
					t.Errorf("%d handshakes, want %d: of those without a session", shaken, fresh)
				}
				if got := f.sum().reconnects - before.reconnects; got != n {
					t.Errorf("%d reconnects, want %d: each once", got, n)
				}
			})
		})
	}
}

// javaBurst pushes n times at once and counts the statuses.
func javaBurst(t *testing.T, e *push.Engine, user string, n int) (acked, overloaded int) {
	t.Helper()
	var mu sync.Mutex
	got := make(map[push.Status]int)
	var all sync.WaitGroup
	data := bytes.Repeat([]byte{'x'}, 200)
	for range n {
		all.Go(func() {
			r, _ := e.PushToUser(t.Context(), user, push.Message{Data: data, Ack: push.AutoAck})
			mu.Lock()
			defer mu.Unlock()
			for _, d := range r.Deliveries {
				got[d.Status]++
			}
		})
	}
	all.Wait()
	t.Logf("%d pushes: %v", n, got)
	sum := 0
	for status, k := range got {
		if sum += k; status != push.Acked && status != push.Overloaded && status != push.Timeout {
			t.Errorf("%d are %v", k, status)
		}
	}
	if sum != n {
		t.Errorf("%d have a status, want %d", sum, n)
	}
	return got[push.Acked], got[push.Overloaded]
}

func TestJavaClientSeesABurstWhole(t *testing.T) {
	const n = 3000
	roomy := push.Limits{AcksWaiting: 4096, QueueBytes: 2 << 20}
	for _, tt := range []struct {
		name   string
		limits push.Limits
		window int
		check  func(t *testing.T, acked, overloaded int, got javaCounts)
	}{
		{"room for all", roomy, 0, func(t *testing.T, acked, overloaded int, got javaCounts) {
			if acked != n || got.pushes != n || got.acks != n || got.lost > 0 || got.mostUnacked > 50 {
				t.Errorf("%d acked of %d, %+v; want all, and at most 50 at a time", acked, n, got)
			}
		}},
		{"default limits", push.Limits{}, 0, func(t *testing.T, acked, overloaded int, got javaCounts) {
			if acked+overloaded != n || acked == 0 || got.pushes != acked || got.lost > 0 || got.mostUnacked > 50 {
				t.Errorf("%d acked and %d overloaded of %d, %+v; want nothing else", acked, overloaded, n, got)
			}
		}},
		{"no window", roomy, -1, func(t *testing.T, acked, overloaded int, got javaCounts) { // the counter-example
			if acked > n/4 || got.lost < n/2 {
				t.Errorf("%d acked, %d lost: the test can show nothing", acked, got.lost)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				e := serveJava(t, push.Config{Limits: tt.limits, MPush: push.MPush{Window: tt.window}}, w.listen(serverIP))
				c := w.client(javaConfig{user: "alice", device: "phone"})
				acked, overloaded := javaBurst(t, e.Engine, "alice", n)
				time.Sleep(time.Minute)
				got := c.counts()
				t.Logf("%d handled, %d acked, %d lost, at most %d unacked", got.pushes, got.acks, got.lost, got.mostUnacked)
				tt.check(t, acked, overloaded, got)
				if got.attempts != 1 || !e.Online("alice") {
					t.Errorf("%d attempts to connect, online %v; want it to stay", got.attempts, e.Online("alice"))
				}
			})
		})
	}
}

func TestJavaClientSeesABurstWholeOverSockets(t *testing.T) {
	const n = 3000
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := serveJava(t, push.Config{
		Limits: push.Limits{AcksWaiting: 4096, QueueBytes: 2 << 20, AckTimeout: 20 * time.Second},
	}, l)
	c := newJavaClient(t, javaConfig{
		user: "alice", device: "phone", addr: l.Addr().String(), service: 50 * time.Microsecond,
		dial: func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	})
	c.waitBound(t)
	begin := time.Now()
	acked, _ := javaBurst(t, e.Engine, "alice", n)
	got := c.counts()
	t.Logf("%d acked after %s, at most %d unacked", acked, time.Since(begin), got.mostUnacked)
	if acked != n || got.pushes != n || got.acks != n || got.lost > 0 || got.mostUnacked > 50 || got.attempts != 1 {
		t.Errorf("%d acked of %d, %+v; want all, and at most 50 at a time", acked, n, got)
	}
}

func TestJavaHeartbeatsMayBeLate(t *testing.T) {
	const heartbeat = 11800 * time.Millisecond // checked every 10 s, a heartbeat is sent every 20 s: 1.7 of them
	serve := func(t *testing.T) (*javaNet, *javaNode) {
		w := newJavaNet(t)
		return w, serveJava(t, push.Config{MPush: push.MPush{MinHeartbeat: heartbeat, MaxHeartbeat: heartbeat}}, w.listen(serverIP))
	}
	t.Run("late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, e := serve(t)
			c := w.client(javaConfig{user: "alice", device: "phone"})
			time.Sleep(10 * time.Minute)
			n := c.counts()
			t.Logf("%d heartbeats, %s apart, %d reconnects", n.beats, n.longestGap, n.reconnects())
			if n.attempts != 1 || n.beats < 20 || n.longestGap < heartbeat*16/10 {
				t.Errorf("%+v, want one connection with heartbeats 1.7 apart", n)
			}
			for range 10 {
				time.Sleep(7 * time.Second)
				r, err := e.PushToUser(t.Context(), "alice", push.Message{Data: []byte("hello"), Ack: push.AutoAck})
				if err != nil {
					t.Fatal(err)
				}
				if d := r.Deliveries[0]; d.Latency > 5*time.Millisecond {
					t.Errorf("acked after %s, want what the client takes, 1 ms", d.Latency)
				}
			}
		})
	})
	t.Run("silent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, e := serve(t)
			c := w.client(javaConfig{user: "alice", device: "phone", health: -1})
			began := time.Now()
			ends := e.Stats().Closed[push.ReasonHeartbeat]
			for e.Stats().Closed[push.ReasonHeartbeat] == ends && time.Since(began) < time.Hour {
				time.Sleep(100 * time.Millisecond)
			}
			after := time.Since(began)
			t.Logf("closed after %s", after)
			if due := 3*heartbeat + time.Second; after < due || after > due+3*time.Second {
				t.Errorf("closed after %s of silence, want %s", after, due)
			}
			c.waitFor(t, "being back", func() bool { return c.count.bound == 2 })
			if n := c.counts(); n.reconnects() != 1 || n.fastConnects != 1 || c.is() != javaAlive {
				t.Errorf("%q %+v, want to be back by its token", c.is(), n)
			}
		})
	})
}

// javaAllocs is the allocator of several nodes: what those that serve tell.
type javaAllocs struct {
	mu  sync.Mutex
	all []http.Handler // guarded by mu
}

func (a *javaAllocs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []byte
	for _, h := range a.all {
		one := httptest.NewRecorder()
		h.ServeHTTP(one, r)
		if one.Code != http.StatusOK {
			continue
		}
		if len(list) > 0 {
			list = append(list, ',')
		}
		list = append(list, one.Body.Bytes()...)
	}
	if len(list) == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Write(list)
}

func TestJavaClientsMoveToTheNodeThatStays(t *testing.T) {
	const addrB = "10.0.0.5:3000"
	for _, tt := range []struct {
		name  string
		drain time.Duration
	}{
		{"spread", 10 * time.Second},
		{"at once", 0}, // the counter-example
	} {
		t.Run(tt.name, func(t *testing.T) {
			const n = 200
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				node := func(ip, addr string) *javaNode {
					return serveJava(t, push.Config{Drain: tt.drain, MPush: push.MPush{SessionKey: javaSecret, Advertise: addr}}, w.listen(ip))
				}
				a, b := node(serverIP, javaAddr), node("10.0.0.5", addrB)
				alloc := &javaAllocs{all: []http.Handler{a.Alloc(), b.Alloc()}}
				f := w.fleet(n, func(i int, cfg *javaConfig) { cfg.alloc = alloc })
				f.wantBound(a.Engine, time.Second)
				time.Sleep(30 * time.Second)
				before := f.sum()

				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- a.Shutdown(ctx) }()
				time.Sleep(time.Millisecond)
				late := newJavaClient(t, javaConfig{user: "late", device: "late", dial: w.dialFrom(clientIP), alloc: alloc})
				if tt.drain > 0 {
					time.Sleep(tt.drain / 2)
					r, err := a.PushToUser(t.Context(), "u0", push.Message{Data: []byte("hello"), Ack: push.AutoAck})
					s, errB := b.PushToUser(t.Context(), "u0", push.Message{Data: []byte("hello"), Ack: push.AutoAck})
					if r.Acked+s.Acked != 1 {
						t.Errorf("u0 has a push from one of the nodes: %v, %v", err, errB)
					}
				}
				if err := <-ended; err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				took := time.Since(began)
				f.wantBound(b.Engine, 5*time.Second)
				f.wantWell()
				late.waitBound(t)
				if got := f.sum().handshakes - before.handshakes; got > 0 {
					t.Errorf("%d handshakes on the other node, want none", got)
				}
				if got := f.sum().reconnects - before.reconnects; got != n {
					t.Errorf("%d reconnects, want %d: each once", got, n)
				}
				// How many came in the fullest second.
				seconds := make(map[int]int)
				most := 0
				for _, c := range f.all {
					at, _ := c.isBound()
					s := int(at.Sub(began) / time.Second)
					seconds[s]++
					most = max(most, seconds[s])
				}
				t.Logf("Shutdown took %s, at most %d of %d came in a second", took, most, n)
				if spread := most <= 2*n/10; spread != (tt.drain > 0) {
					t.Errorf("%d of %d came in one second, with a drain of %s", most, n, tt.drain)
				}
			})
		})
	}
}

// javaNewKey makes a pair of keys, the private one without its primes, as the
// stock key is: that makes it slow.
func javaNewKey(t *testing.T, bits int) (private []byte, public *mpush.PublicKey) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	none := new(big.Int)
	if private, err = asn1.Marshal(struct {
		Version                     int
		N, E, D, P, Q, Dp, Dq, QInv *big.Int
	}{0, key.N, big.NewInt(int64(key.E)), key.D, none, none, none, none, none}); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if public, err = mpush.ParsePublicKey(der); err != nil {
		t.Fatal(err)
	}
	return private, public
}

func TestJavaClientsShakeHandsAllAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		lost bool // the counter-example: with the key of another server
	}{
		{"with its key", false},
		{"with another's key", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, key := 500, (*mpush.PublicKey)(nil)
			if tt.lost {
				n = 20
				_, key = javaNewKey(t, 1024)
			}
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				e := serveJava(t, push.Config{}, w.listen(serverIP))
				f := &javaFleet{t: t}
				for i := range n {
					f.all = append(f.all, newJavaClient(t, javaConfig{
						user: fmt.Sprintf("u%d", i), device: fmt.Sprintf("d%d", i), dial: w.dialFrom(clientIP), addr: javaAddr, key: key,
					}))
				}
				if tt.lost {
					time.Sleep(10 * time.Second)
					if got := f.sum().fates[javaStopped]; got != n {
						t.Errorf("%d of %d are stopped by another key: the test can show nothing", got, n)
					}
					return
				}
				f.wantBound(e.Engine, 3*time.Second)
				f.wantWell()
				if s := f.sum(); s.handshakes != n || s.reconnects > 0 {
					t.Errorf("%s; want one handshake each", f)
				}
				if got := e.Stats().Limited["handshakes"]; got > 0 {
					t.Errorf("%d handshakes were not answered", got)
				}
			})
		})
	}
}

// TestJavaNothingComesBeforeBind connects a fleet while everybody is pushed
// to all the time: what came before the client has its key would be an
// exception.
func TestJavaNothingComesBeforeBind(t *testing.T) {
	const n = 100
	synctest.Test(t, func(t *testing.T) {
		w := newJavaNet(t)
		w.SetDelay(0, 30*time.Millisecond)
		e := serveJava(t, push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				l.Rooms = []string{"all"}
				time.Sleep(20 * time.Millisecond)
				return l.UserID, nil
			},
		}, w.listen(serverIP))
		ctx, cancel := context.WithCancel(t.Context())
		var pushing sync.WaitGroup
		pushing.Go(func() {
			for ctx.Err() == nil {
				m := push.Message{Data: []byte("hello")}
				e.Broadcast(ctx, m)
				e.PushToRoom(ctx, "all", m)
				for i := range n {
					e.PushToUser(ctx, fmt.Sprintf("u%d", i), m)
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
		f := w.fleet(n, nil)
		f.wantBound(e.Engine, time.Second)
		for i := range 3 { // and again, by their tokens or without
			for _, c := range f.all {
				if i == 1 {
					c.forgets()
				}
				c.breaks()
			}
			time.Sleep(time.Second)
			f.wantBound(e.Engine, time.Second)
		}
		cancel()
		pushing.Wait()
		f.wantWell()
		for _, c := range f.all {
			if n := c.counts(); n.pushes < 20 || n.lost > 0 {
				t.Errorf("%s has %d pushes, %d lost: the test can show nothing", c.cfg.device, n.pushes, n.lost)
			}
		}
	})
}

func TestJavaSlowBackEndIsAskedOnce(t *testing.T) {
	for _, tt := range []struct {
		takes        time.Duration
		calls, binds int
	}{
		{4 * time.Second, 1, 1},           // the client asks again after 3 s: that is no second login
		{5200 * time.Millisecond, 10, 10}, // the counter-example: over AuthTimeout nobody ever gets in
	} {
		t.Run(tt.takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				var calls atomic.Int64
				serveJava(t, push.Config{
					Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
						calls.Add(1)
						select {
						case <-time.After(tt.takes):
						case <-ctx.Done():
						}
						return l.UserID, ctx.Err()
					},
				}, w.listen(serverIP))
				c := newJavaClient(t, javaConfig{user: "alice", device: "phone", dial: w.dialFrom(clientIP), addr: javaAddr})
				time.Sleep(59 * time.Second)
				n := c.counts()
				if int(calls.Load()) != tt.calls || n.binds != tt.binds || n.resends != tt.binds || n.bound > 1 || c.is() != javaAlive {
					t.Errorf("asked %d times, %+v; want %d calls for %d binds, each sent twice", calls.Load(), n, tt.calls, tt.binds)
				}
				if _, ok := c.isBound(); ok != (tt.takes < 5*time.Second) {
					t.Errorf("bound: %v", ok)
				}
			})
		})
	}
}

func TestJavaKickedDeviceStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newJavaNet(t)
		e := serveJava(t, push.Config{}, w.listen(serverIP))
		c := w.client(javaConfig{user: "alice", device: "phone"})
		if n, err := e.Kick(t.Context(), push.Audience{User: "alice"}, "no more"); n != 1 || err != nil {
			t.Errorf("Kick: %d, %v", n, err)
		}
		time.Sleep(time.Minute)
		if n := c.counts(); n.kicks != 1 || n.attempts != 1 || c.is() != javaStopped || e.Online("alice") {
			t.Errorf("%q %+v, want it to be told, and to stop", c.is(), n)
		}
		if got := e.Stats().Conns; got != 0 {
			t.Errorf("%d connections are left", got)
		}
	})
}

// TestJavaClientsThatComeDuringShutdownComeBack has clients come all the time
// while a node shuts down, some of them in its last milliseconds.
func TestJavaClientsThatComeDuringShutdownComeBack(t *testing.T) {
	for _, drain := range []time.Duration{0, 5 * time.Second} {
		t.Run(drain.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				w.SetDelay(time.Millisecond, 3*time.Millisecond)
				cfg := push.Config{Drain: drain, MPush: push.MPush{SessionKey: javaSecret}}
				e := serveJava(t, cfg, w.listen(serverIP))
				go func() {
					time.Sleep(500*time.Millisecond + 500*time.Microsecond)
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					defer cancel()
					if err := e.Shutdown(ctx); err != nil {
						t.Errorf("Shutdown: %v", err)
					}
				}()
				f := w.fleet(200, func(_ int, cfg *javaConfig) { cfg.session = javaToken(javaSecret, cfg.device) })
				time.Sleep(10 * time.Second)
				e = serveJava(t, cfg, w.listen(serverIP))
				f.wantBound(e.Engine, 12*time.Second)
				f.wantWell()
			})
		})
	}
}

// TestJavaClientsThatGaveUpCostNothing has more clients shake hands at once
// than can be served before they give up, over sockets in real time. Each
// comes back with another socket; were those they left served first, nobody
// would ever be served in time.
func TestJavaClientsThatGaveUpCostNothing(t *testing.T) {
	const n = 400
	private, public := javaNewKey(t, 2048)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := serveJava(t, push.Config{
		Limits: push.Limits{MaxPending: 40}, // the others wait in the backlog
		MPush:  push.MPush{PrivateKey: private},
	}, l)
	f := &javaFleet{t: t}
	for i := range n {
		f.all = append(f.all, newJavaClient(t, javaConfig{
			user: fmt.Sprintf("u%d", i), device: fmt.Sprintf("d%d", i), addr: l.Addr().String(), key: public, timeout: 400 * time.Millisecond,
			dial: func(ctx context.Context, addr string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", addr)
			},
		}))
	}
	f.wantBound(e.Engine, 15*time.Second)
	f.wantWell()
}

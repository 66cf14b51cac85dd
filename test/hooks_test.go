package test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
)

// blocking has hooks wait, by name, until they are let go.
type blocking struct {
	mu    sync.Mutex
	doors map[string]chan struct{} // guarded by mu
}

func (b *blocking) block(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.doors == nil {
		b.doors = map[string]chan struct{}{}
	}
	b.doors[name] = make(chan struct{})
}

func (b *blocking) free(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ch := b.doors[name]; ch != nil {
		close(ch)
		delete(b.doors, name)
	}
}

func (b *blocking) freeAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ch := range b.doors {
		close(ch)
	}
	b.doors = nil
}

func (b *blocking) wait(name string) {
	b.mu.Lock()
	ch := b.doors[name]
	b.mu.Unlock()
	if ch != nil {
		<-ch
	}
}

// hooked is a config whose hooks write into d and block as b says, by
// "hook user".
func hooked(d *diary, b *blocking) push.Config {
	return push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			if l.Conn != nil {
				b.wait("Authenticate " + l.Conn.UserID())
			} else if l.Namespace != "" {
				b.wait("Authenticate " + l.UserID)
			}
			return believe(ctx, l)
		},
		SocketIO: push.SocketIO{Namespace: func(context.Context, string, *push.Login) error { return nil }},
		OnConnect: func(ctx context.Context, c *push.Conn) {
			d.note("connect %s", c.UserID())
			b.wait("OnConnect " + c.UserID())
		},
		OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
			d.note("message %s %s", c.UserID(), m.Event)
			b.wait("OnMessage " + c.UserID())
			return m.Event, nil
		},
		OnDisconnect: func(c *push.Conn, why push.Reason) {
			d.note("disconnect %s %s", c.UserID(), why)
			b.wait("OnDisconnect " + c.UserID())
		},
	}
}

// TestBlockedHookStallsItsOwnConnectionOnly: acks, pongs, pings and close work
// meanwhile even on the stalled connection.
func TestBlockedHookStallsItsOwnConnectionOnly(t *testing.T) {
	for _, hook := range []string{"OnMessage", "OnConnect", "Authenticate"} {
		t.Run(hook, func(t *testing.T) {
			overPages(t, func(t *testing.T, dialect string) {
				var d diary
				var b blocking
				w := newWorld(t, hooked(&d, &b))
				defer b.freeAll()
				w.dialect = dialect
				b.block(hook + " alice")
				alice, bob := w.connect("alice"), w.connect("bob")
				switch hook {
				case "OnMessage":
					alice.sends("stuck", nil)
				case "Authenticate":
					if alice.io != nil {
						alice.io.joins("/other", "alice")
					} else {
						alice.logsIn("carol")
					}
				}
				alice.asks(1, "later", nil)
				synctest.Wait()

				// An ack goes past the hook, where the push was not held.
				if hook != "OnConnect" {
					r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "ask", Ack: push.BizAck})
					if err != nil || r.Acked != 1 {
						t.Errorf("push while %s is blocked: %+v, %v", hook, r, err)
					}
					alice.wantPush("ask")
				}
				alice.isAlive()
				if alice.io == nil {
					pongs := 0
					alice.ws.SetPongHandler(func(string) error { pongs++; return nil })
					alice.ws.WriteControl(websocket.PingMessage, []byte("x"), time.Now().Add(time.Second))
					synctest.Wait()
					if pongs != 1 {
						t.Errorf("%d pongs, want 1", pongs)
					}
				}
				alice.wantNothing()

				// Others notice nothing.
				bob.asks(2, "quick", nil)
				bob.wantAnswer(2, `"quick"`, "")
				if r, err := w.PushToUser(t.Context(), "bob", push.Message{Event: "hi", Ack: push.AutoAck}); err != nil || r.Acked != 1 {
					t.Errorf("push to bob: %+v, %v", r, err)
				}
				bob.wantPush("hi")

				// Pings go out, and the silence of nobody is counted who answers.
				time.Sleep(90 * time.Second)
				if alice.pinged() < 3 || alice.conn() == nil {
					t.Errorf("%d pings in 90 s, connection %v", alice.pinged(), alice.conn())
				}

				// Close goes past the hook.
				begin := time.Now()
				alice.leaves()
				synctest.Wait()
				if took := time.Since(begin); w.Online("alice") || took > 0 {
					t.Errorf("after goodbye: online %v, it took %v", w.Online("alice"), took)
				}
				if w.Stats().Closed[push.ReasonClient] != 1 {
					t.Errorf("closed %v, want one by the client", w.Stats().Closed)
				}
				for _, line := range d.all() {
					if strings.HasPrefix(line, "disconnect") {
						t.Errorf("%q while a hook of that connection runs", line)
					}
				}
				b.freeAll()
				synctest.Wait()
				if lines := d.all(); lines[len(lines)-1] != "disconnect alice client" && hook != "Authenticate" {
					t.Errorf("hooks ran as %q", lines)
				}
			})
		})
	}
}

// TestKickAndCloseGoPastABlockedHook, whichever hook it is.
func TestKickAndCloseGoPastABlockedHook(t *testing.T) {
	for _, hook := range []string{"OnMessage", "OnConnect", "Authenticate"} {
		t.Run(hook, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				var b blocking
				cfg := hooked(&d, &b)
				cfg.Limits.InboxMessages = 4
				w := newWorld(t, cfg)
				defer b.freeAll()
				b.block(hook + " alice")
				alice := w.connect("alice")
				switch hook {
				case "OnMessage":
					alice.sends("stuck", nil)
				case "Authenticate":
					alice.logsIn("carol")
				}
				for range 10 { // over the inbox's limit: reading stops
					alice.sends("more", nil)
				}
				synctest.Wait()
				begin := time.Now()
				if n, err := w.Kick(t.Context(), push.Audience{User: "alice"}, "out"); n != 1 || err != nil {
					t.Error(n, err)
				}
				alice.wantClosed(4410)
				synctest.Wait()
				if took := time.Since(begin); took > 0 || w.Stats().Closed[push.ReasonKicked] != 1 {
					t.Errorf("after %v closed as %v; the page said goodbye at once, want at once", took, w.Stats().Closed)
				}
				b.freeAll()
				synctest.Wait()
				lines := d.all()
				if lines[len(lines)-1] != "disconnect alice kicked" {
					t.Errorf("hooks ran as %q", lines)
				}
				for _, line := range lines {
					if strings.Contains(line, "more") {
						t.Errorf("%q after the kick", line)
					}
				}
			})
		})
	}
}

func TestBlockedOnDisconnectHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		var b blocking
		w := newWorld(t, hooked(&d, &b))
		defer b.freeAll()
		b.block("OnDisconnect alice")
		w.connect("alice").leaves()
		synctest.Wait()
		if w.Online("alice") {
			t.Error("online while OnDisconnect runs")
		}
		again := w.connect("alice") // the same user comes back
		again.asks(1, "hi", nil)
		again.wantAnswer(1, `"hi"`, "")
		d.want(t, "connect alice", "disconnect alice client", "connect alice", "message alice hi")
	})
}

// TestBlockedLoginOfOneUpgradeHoldsNobodyUp: Authenticate of an upgrade runs
// on the handler's goroutine.
func TestBlockedLoginOfOneUpgradeHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blocked := make(chan struct{})
		w := newWorld(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			if l.UserID == "alice" {
				<-blocked
			}
			return l.UserID, nil
		}})
		refused := make(chan int)
		go func() {
			_, resp, err := w.tryConnect("alice")
			if err == nil || resp == nil {
				t.Errorf("let in after AuthTimeout: %v", err)
			}
			refused <- resp.StatusCode
		}()
		synctest.Wait()
		if n := w.Stats().Pending; n != 1 {
			t.Errorf("%d pending, want 1", n)
		}
		w.connect("bob").wantNothing()
		time.Sleep(6 * time.Second)
		close(blocked)
		if status := <-refused; status != http.StatusServiceUnavailable {
			t.Errorf("an answer after AuthTimeout gives %d, want 503", status)
		}
		if s := w.Stats(); s.Pending != 0 || s.Refused["later"] != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestPanickingHookEndsItsOwnConnectionOnly is about every hook there is.
func TestPanickingHookEndsItsOwnConnectionOnly(t *testing.T) {
	const why = "as the test wants it"
	for _, hook := range []string{"Authenticate", "late Authenticate", "DeviceClass", "OnConnect", "OnMessage", "On", "OnDisconnect", "OnPresence", "CheckOrigin", "RemoteAddr", "Progress", "async Progress"} {
		t.Run(hook, func(t *testing.T) {
			overDialects(t, func(t *testing.T, dialect string) {
				book := &logBook{}
				var d diary
				panics := func(name, user string) {
					if name == hook && user == "mallory" {
						panic(why)
					}
				}
				w := newWorld(t, push.Config{
					Logger: slog.New(book),
					Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
						if l.Conn != nil {
							panics("late Authenticate", l.Conn.UserID())
						} else {
							panics("Authenticate", l.UserID)
						}
						return l.UserID, nil
					},
					DeviceClass: func(l *push.Login) string { panics("DeviceClass", l.UserID); return "" },
					OnConnect:   func(ctx context.Context, c *push.Conn) { panics("OnConnect", c.UserID()) },
					OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
						panics("OnMessage", c.UserID())
						return nil, nil
					},
					OnDisconnect: func(c *push.Conn, why push.Reason) {
						d.note("%s %s", c.UserID(), why)
						panics("OnDisconnect", c.UserID())
					},
					OnPresence:  func(p push.Presence) { panics("OnPresence", p.User) },
					CheckOrigin: func(r *http.Request) bool { panics("CheckOrigin", r.URL.Query().Get("user")); return true },
					RemoteAddr: func(r *http.Request) (a netip.Addr) {
						panics("RemoteAddr", r.URL.Query().Get("user"))
						return a
					},
				})
				push.On(w.Engine, "typed", func(ctx context.Context, c *push.Conn, n int) (any, error) {
					panics("On", c.UserID())
					return n, nil
				})
				w.dialect = dialect
				alice := w.connect("alice")
				status, code := 0, 0 // how mallory is told
				switch hook {
				case "Authenticate", "DeviceClass":
					status = http.StatusInternalServerError
				case "CheckOrigin":
					status = http.StatusForbidden
				case "late Authenticate", "OnConnect", "OnMessage", "On":
					code = 1011
				}
				mallory, resp, err := w.tryConnect("mallory")
				if status != 0 {
					if err == nil || resp.StatusCode != status {
						t.Fatalf("got %v, %v, want %d", resp, err, status)
					}
				} else if err != nil {
					t.Fatal(err)
				} else {
					switch hook {
					case "late Authenticate":
						mallory.logsIn("mallory")
					case "OnMessage":
						mallory.asks(1, "any", nil)
					case "On":
						mallory.asks(1, "typed", 5)
					case "Progress", "async Progress":
						synctest.Wait()
						_, err := w.PushToUser(t.Context(), "mallory", push.Message{Async: hook != "Progress", Progress: func(push.Receipt) { panics(hook, "mallory") }})
						if err != nil {
							t.Error(err)
						}
						mallory.wantPush("message")
					}
					if code != 0 {
						mallory.wantClosed(code)
					} else {
						mallory.sendsRaw(map[string]any{"ping": 1})
						if m := mallory.next(); m.Pong != 1 {
							t.Errorf("got %v, want a pong", m)
						}
						synctest.Wait() // OnPresence has heard of her
						mallory.leaves()
					}
				}
				synctest.Wait()
				alice.asks(1, "typed", 5)
				alice.wantAnswer(1, "5", "")
				if code != 0 {
					d.want(t, "mallory panic")
				} else if status == 0 {
					d.want(t, "mallory client")
				}
				want := 1
				if hook == "OnPresence" { // mallory came, and mallory went
					want = 2
				}
				if s := w.Stats(); s.Panics != uint64(want) || s.Conns != 1 {
					t.Errorf("%d panics counted, %d connections, want %d and 1", s.Panics, s.Conns, want)
				}
				lines := book.at(slog.LevelError, why)
				if len(lines) != want || !strings.Contains(lines[0], "hooks_test.go") {
					t.Errorf("the log has %q, want one error with the stack", lines)
				}
			})
		})
	}
}

func TestHookOverOneSecondIsCountedAndNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book := &logBook{}
		w := newWorld(t, push.Config{Logger: slog.New(book), OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
			time.Sleep(map[string]time.Duration{"long": 1001 * time.Millisecond, "short": 999 * time.Millisecond}[m.Event])
			return nil, nil
		}})
		p := w.connect("")
		p.asks(1, "short", nil)
		p.wantAnswer(1, "null", "")
		if w.Stats().SlowHooks != 0 {
			t.Error("a hook of 999 ms is counted as slow")
		}
		p.asks(2, "long", nil)
		p.wantAnswer(2, "null", "")
		synctest.Wait()
		if n, lines := w.Stats().SlowHooks, book.at(slog.LevelWarn, "OnMessage"); n != 1 || len(lines) != 1 {
			t.Errorf("%d slow hooks counted, log %q", n, lines)
		}
	})
}

// TestFullInboxLosesNothing: reading stops and goes on.
func TestFullInboxLosesNothing(t *testing.T) {
	for _, limit := range []push.Limits{{InboxMessages: 3}, {InboxMessages: -1, MaxMessage: 64 << 10}, {}} {
		t.Run(fmt.Sprint(limit.InboxMessages), func(t *testing.T) {
			overPages(t, func(t *testing.T, dialect string) {
				var d diary
				var b blocking
				cfg := hooked(&d, &b)
				cfg.Limits = limit
				cfg.Limits.MessageRate = -1
				var got []int
				cfg.OnMessage = func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
					b.wait("OnMessage alice")
					var v numberedPad
					if err := m.Decode(&v); err != nil {
						return nil, err
					}
					got = append(got, v.N)
					return v.N, nil
				}
				w := newWorld(t, cfg)
				defer b.freeAll()
				w.dialect = dialect
				b.block("OnMessage alice")
				p := w.connect("alice")
				const messages = 300
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					for n := range messages {
						p.asks(n, "n", numberedPad{n, strings.Repeat("x", 2000)})
					}
				}()
				synctest.Wait()
				select {
				case <-sent:
					t.Error("all was read, though the inbox is full")
				default:
				}
				received := w.Stats().Received
				time.Sleep(5 * time.Minute) // its silence is ours: we stopped it
				if !w.Online("alice") {
					t.Fatal("closed while we did not read from it")
				}
				if now := w.Stats().Received; now != received {
					t.Errorf("%d messages given to hooks while one is blocked, %d before", now, received)
				}
				b.free("OnMessage alice")
				<-sent
				for n := range messages {
					p.wantAnswer(uint64(n), fmt.Sprint(n), "")
				}
				for i, n := range got {
					if i != n {
						t.Fatalf("hooks got %v", got)
					}
				}
			})
		})
	}
}

type numberedPad struct {
	N   int    `json:"n"`
	Pad string `json:"pad"`
}

// TestMessageRatePausesReadingAndLosesNothing: acks and pongs are free.
func TestMessageRatePausesReadingAndLosesNothing(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) { return m.Event, nil },
			Limits:    push.Limits{MessageRate: 10, AcksWaiting: -1},
		})
		w.dialect = dialect
		p := w.connect("alice")
		begin := time.Now()
		for n := range 250 {
			p.asks(n, fmt.Sprint(n), nil)
		}
		for n := range 250 {
			p.wantAnswer(uint64(n), fmt.Sprintf("%q", fmt.Sprint(n)), "")
		}
		// 50 at once, the others ten a second.
		if took := time.Since(begin); took < 19*time.Second || took > 21*time.Second {
			t.Errorf("250 messages at 10 a second, 50 of them at once, took %v, want 20 s", took)
		}
		begin = time.Now()
		for range 500 {
			if r, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck}); err != nil || r.Acked != 1 {
				t.Fatal(r, err)
			}
			p.wantPush("message")
		}
		if took := time.Since(begin); took > 200*time.Millisecond { // one more message was owed
			t.Errorf("500 acks took %v", took)
		}
		p.wantNothing()
	})
}

// TestSnapshotInOnConnectThenLive: a page that connects while others push sees
// the snapshot first, then what came after it without a gap, in order, nothing
// twice.
func TestSnapshotInOnConnectThenLive(t *testing.T) {
	for _, crowd := range []int{0, 70} {
		t.Run(fmt.Sprintf("crowd of %d", crowd), func(t *testing.T) {
			overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
				var last atomic.Int64
				var w *world
				w = start(push.Config{
					OnConnect: func(ctx context.Context, c *push.Conn) {
						if c.UserID() == "" {
							return
						}
						n := last.Load()
						for range 3 { // a snapshot in parts, by both roads
							c.Push(ctx, push.Message{Event: "part", Data: n})
						}
						w.PushToUser(ctx, c.UserID(), push.Message{Event: "snapshot", Data: n})
					},
					Limits: push.Limits{MaxConnsPerUser: -1},
				})
				for i := range crowd {
					w.dialect = anyDoor(i)
					w.connect("", "token=news")
				}
				n := 0
				for i := range 8 {
					w.dialect = anyDoor(i)
					var p *page
					var connects sync.WaitGroup
					connects.Go(func() {
						var err error
						if p, _, err = w.tryConnect(fmt.Sprintf("u%d", i), "token=news"); err != nil {
							t.Error(err)
						}
					})
					for range 40 {
						n++
						last.Store(int64(n)) // first the state, then the news of it
						if _, err := w.PushToRoom(t.Context(), "news", push.Message{Event: "n", Data: n}); err != nil {
							t.Error(err)
						}
						pauseFor(n)
					}
					connects.Wait()
					if p == nil {
						return
					}
					p.wantPush("part", "part", "part")
					snapshot, next := 0, -1
					fmt.Sscan(string(p.wantPush("snapshot").Data), &snapshot)
					n++
					last.Store(int64(n))
					w.PushToRoom(t.Context(), "news", push.Message{Event: "n", Data: n}) // the page is in by now
					for got := 0; got < n; {
						fmt.Sscan(string(p.wantPush("n").Data), &got)
						switch {
						case next < 0 && got > snapshot+1:
							t.Fatalf("%d after a snapshot of %d: a gap", got, snapshot)
						case next >= 0 && got != next:
							t.Fatalf("%d, want %d", got, next)
						}
						next = got + 1
					}
				}
			})
		})
	}
}

// TestHandlerThatPushesToItsOwnUserGetsTheAck, and so does OnConnect.
func TestHandlerThatPushesToItsOwnUserGetsTheAck(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		for _, ack := range []push.Ack{push.AutoAck, push.BizAck} {
			var w *world
			var d diary
			ask := func(ctx context.Context, c *push.Conn, from string) {
				r, err := w.PushToUser(ctx, c.UserID(), push.Message{Event: from, Ack: ack})
				d.note("%s: %d acked, %v", from, r.Acked, err)
				one, err := c.Push(ctx, push.Message{Event: from, Ack: ack})
				d.note("%s: %v, %v", from, one.Status, err)
			}
			ready := make(chan struct{})
			w = start(push.Config{
				OnConnect: func(ctx context.Context, c *push.Conn) { <-ready; ask(ctx, c, "welcome") },
				OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
					ask(ctx, c, "message")
					return "done", nil
				},
			})
			close(ready)
			all := slices.Concat(dialectNames, socketIODoors)
			for _, w.dialect = range all {
				p := w.connect(w.dialect)
				p.wantPush("welcome", "welcome")
				p.asks(7, "go", nil)
				p.wantPush("message", "message")
				p.wantAnswer(7, `"done"`, "")
			}
			want := []string{"welcome: 1 acked, <nil>", "welcome: acked, <nil>", "message: 1 acked, <nil>", "message: acked, <nil>"}
			d.want(t, slices.Repeat(want, len(all))...)
		}
	})
}

// TestHooksMayCallAnything: no lock is held while they run.
func TestHooksMayCallAnything(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		anything := func(w *world, c *push.Conn, how int) {
			ctx := t.Context()
			w.PushToUser(ctx, "alice", push.Message{})
			w.PushToRoom(ctx, "room", push.Message{})
			w.Broadcast(ctx, push.Message{})
			w.PushToUser(ctx, "nobody", push.Message{Ack: push.AutoAck})
			c.Push(ctx, push.Message{})
			w.Join(ctx, push.Audience{All: true}, "room")
			w.Leave(ctx, push.Audience{User: "alice"}, "room")
			w.Devices(ctx, push.Audience{All: true})
			w.Stats()
			w.Online("alice")
			for c := range w.Conns() {
				c.Rooms()
				c.UserID()
				for range w.Users() {
					for range w.Rooms() {
					}
				}
			}
			c.Join("own")
			c.SetTags("tag")
			c.Leave("own")
			c.Context().Err()
			c.Bind(ctx, "bob")
			c.Unbind()
			c.Bind(ctx, "alice")
			switch how {
			case 1:
				c.Close("enough")
			case 2:
				w.Kick(ctx, push.Audience{User: "alice"}, "all of you")
			}
		}
		for how := range 3 {
			ends := make(chan struct{}, 100)
			var w *world
			ready := make(chan struct{})
			anything := func(c *push.Conn, how int) { <-ready; anything(w, c, how) }
			w = start(push.Config{
				OnConnect: func(ctx context.Context, c *push.Conn) { anything(c, 0) },
				OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
					anything(c, how)
					return nil, nil
				},
				OnDisconnect: func(c *push.Conn, why push.Reason) {
					anything(c, how)
					ends <- struct{}{}
				},
				OnPresence:  func(p push.Presence) { <-ready; w.PushToUser(t.Context(), p.User, push.Message{}); w.Online(p.User) },
				DeviceClass: func(l *push.Login) string { w.Online("alice"); w.Stats(); return "" },
			})
			close(ready)
			for i := range 8 {
				w.dialect = anyDoor(i)
				p, _, err := w.tryConnect("alice", "token=room")
				if err != nil {
					t.Fatal(err)
				}
				p.sends("go", nil)
				if how == 0 {
					if p.io == nil {
						p.logsIn("alice")
						p.waitFor("the login", func() bool {
							return slices.ContainsFunc(p.got, func(m envelope) bool { return m.Login != nil })
						})
					}
					p.leaves()
				} else {
					p.end()
				}
			}
			for range 8 {
				<-ends
			}
		}
	})
}

// TestEveryConnectHasOneDisconnectAndItComesLast, however connections end, in
// a storm of logins that replace each other, kicks and goodbyes.
func TestEveryConnectHasOneDisconnectAndItComesLast(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		var mu sync.Mutex
		type life struct {
			connects, disconnects, running int
		}
		lives := map[push.ConnID]*life{}
		of := func(c *push.Conn) *life {
			if lives[c.ID()] == nil {
				lives[c.ID()] = &life{}
			}
			return lives[c.ID()]
		}
		runs := func(c *push.Conn, what string, f func(l *life)) {
			mu.Lock()
			l := of(c)
			if l.running++; l.running > 1 {
				t.Errorf("%s overlaps another hook of its connection", what)
			}
			if l.disconnects > 0 {
				t.Errorf("%s after OnDisconnect", what)
			}
			if what != "OnConnect" && l.connects == 0 {
				t.Errorf("%s before OnConnect", what)
			}
			f(l)
			mu.Unlock()
			pauseFor(int(c.ID()))
			mu.Lock()
			l.running--
			mu.Unlock()
		}
		w := start(push.Config{
			DeviceClass: func(l *push.Login) string { return "only" },
			OnConnect: func(ctx context.Context, c *push.Conn) {
				runs(c, "OnConnect", func(l *life) { l.connects++ })
			},
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				runs(c, "OnMessage", func(l *life) {})
				return nil, nil
			},
			OnDisconnect: func(c *push.Conn, why push.Reason) {
				runs(c, "OnDisconnect", func(l *life) { l.disconnects++ })
			},
		})
		var storm, kicks sync.WaitGroup
		var over atomic.Bool
		for i := range 6 {
			storm.Go(func() {
				for n := range 25 {
					p, _, err := w.tryConnect(fmt.Sprintf("u%d", i%2))
					if err != nil {
						t.Error(err)
						return
					}
					for range n % 4 {
						p.sends("x", nil)
					}
					if n%2 == 0 {
						p.vanishes()
					}
				}
			})
		}
		kicks.Go(func() {
			for !over.Load() {
				w.Kick(t.Context(), push.Audience{All: true}, "")
				pauseFor(5)
			}
		})
		storm.Wait()
		over.Store(true)
		kicks.Wait()
		if err := w.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for id, l := range lives {
			if l.connects != 1 || l.disconnects != 1 {
				t.Errorf("%v: %d OnConnect, %d OnDisconnect", id, l.connects, l.disconnects)
			}
		}
		if s := w.Stats(); s.Conns != 0 || s.Memberships != 0 || s.Users != 0 {
			t.Errorf("left: %+v", s)
		}
	})
}

// TestRefusedForTooManyConnectionsHasNoHooks: OnDisconnect is for who was there
// for OnConnect.
func TestRefusedForTooManyConnectionsHasNoHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		var b blocking
		cfg := hooked(&d, &b)
		cfg.DeviceClass = func(l *push.Login) string { return l.OS }
		cfg.Limits.MaxConnsPerUser = 2
		w := newWorld(t, cfg)
		w.connect("alice", "os=a")
		w.connect("alice", "os=b")
		// Both ways of being refused: a status, and for a page a close code.
		if _, resp, err := w.tryConnect("alice"); err == nil || resp.StatusCode != http.StatusTooManyRequests {
			t.Errorf("the third without a class: %v, %v, want 429", resp, err)
		}
		page, _, err := w.tryConnect("alice", "origin=http://push.test")
		if err != nil {
			t.Fatal(err)
		}
		page.wantClosed(1013)
		if _, resp, err := w.tryConnect("alice", "os=c"); err == nil || resp.StatusCode != http.StatusTooManyRequests {
			t.Errorf("the third of a class of its own: %v, %v, want 429", resp, err)
		}
		synctest.Wait()
		d.want(t, "connect alice", "connect alice")
		w.connect("alice", "os=b") // replaces
		synctest.Wait()
		if got := d.all(); len(got) != 4 || !slices.Contains(got, "disconnect alice replaced") {
			t.Errorf("hooks ran as %q", got)
		}
		if s := w.Stats(); s.Refused["max_conns_per_user"] != 3 || s.Conns != 2 {
			t.Errorf("%d refused, %d connections, want 3 and 2", s.Refused["max_conns_per_user"], s.Conns)
		}
	})
}

// TestMessagesBeforeGoodbyeReachTheirHandlers: what was read is not dropped
// because more was read behind it.
func TestMessagesBeforeGoodbyeReachTheirHandlers(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		var d diary
		var b blocking
		w := newWorld(t, hooked(&d, &b))
		w.dialect = dialect
		b.block("OnMessage alice")
		p := w.connect("alice")
		p.sends("one", nil)
		p.sends("two", nil)
		p.sends("three", nil)
		synctest.Wait()
		p.leaves()
		synctest.Wait()
		b.freeAll()
		synctest.Wait()
		d.want(t, "connect alice", "message alice one", "message alice two", "message alice three", "disconnect alice client")
	})
}

// TestNewestOfAClassStays: exactly one winner in a race of many, and each loser
// is told once.
func TestNewestOfAClassStays(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		for round := range 10 {
			var mu sync.Mutex
			reasons := map[push.Reason]int{}
			w := start(push.Config{
				DeviceClass: func(l *push.Login) string { return "phone" },
				OnDisconnect: func(c *push.Conn, why push.Reason) {
					mu.Lock()
					defer mu.Unlock()
					reasons[why]++
				},
				Limits: push.Limits{MaxConnsPerUser: 1},
			})
			const racers = 10
			var pages [racers]*page
			late := round%2 == 1
			if late {
				for i := range pages {
					w.dialect = dialectNames[i%2]
					pages[i] = w.connect("")
				}
			}
			begin := make(chan struct{})
			var race sync.WaitGroup
			for i := range pages {
				race.Go(func() {
					<-begin
					var err error
					if late {
						pages[i].logsIn("alice")
					} else if pages[i], _, err = w.tryConnect("alice"); err != nil {
						t.Error(err)
					}
				})
			}
			close(begin)
			race.Wait()
			if t.Failed() {
				return
			}
			losers := 0
			for losers < racers-1 { // ends when all but one are closed
				losers = 0
				for _, p := range pages {
					select {
					case <-p.done:
						losers++
					default:
					}
				}
				if losers < racers-1 && !waitForAnEnd(pages[:], losers) {
					r, err := w.PushToUser(t.Context(), "alice", push.Message{})
					t.Fatalf("round %d: %d of %d are closed, want all but one; a push reaches %d, %v", round, losers, racers, r.Targets, err)
				}
			}
			for _, p := range pages {
				select {
				case <-p.done:
					if err := p.end(); !websocket.IsCloseError(err, 4409) {
						t.Errorf("a loser ended with %v, want 4409", err)
					}
				default:
				}
			}
			if r, err := w.PushToUser(t.Context(), "alice", push.Message{}); err != nil || r.Targets != 1 || r.Sent != 1 {
				t.Errorf("a push to alice: %+v, %v, want the winner", r, err)
			}
			w.Close()
			mu.Lock()
			if reasons[push.ReasonReplaced] > racers-1 || reasons[push.ReasonReplaced]+reasons[push.ReasonShutdown] > racers {
				t.Errorf("ended: %v", reasons)
			}
			if late && reasons[push.ReasonReplaced] != racers-1 {
				t.Errorf("ended: %v, want %d replaced", reasons, racers-1)
			}
			mu.Unlock()
		}
	})
}

// TestOfTwoLoginsAtOnceOneStays is the closest race there is: two connections
// become the same user's at the same moment.
func TestOfTwoLoginsAtOnceOneStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{DeviceClass: func(l *push.Login) string { return "phone" }})
		const pairs = 20
		var conns [2 * pairs]*push.Conn
		for i := range conns {
			conns[i] = w.connect("").conn()
		}
		var rooms []string // to be left at each change of user
		for i := range 200 {
			rooms = append(rooms, fmt.Sprint("room ", i))
		}
		for round := range 10 {
			for i := range pairs {
				conns[2*i].Join(rooms...)
				conns[2*i+1].Join(rooms...)
				a, b := conns[2*i], conns[2*i+1]
				user := fmt.Sprintf("u%d of %d", i, round)
				var ready atomic.Int32
				var race sync.WaitGroup
				for _, c := range []*push.Conn{a, b} {
					race.Go(func() {
						for ready.Add(1); ready.Load() < 2; {
						}
						if err := c.Bind(t.Context(), user); err != nil && !errors.Is(err, push.ErrClosed) {
							t.Error(err)
						}
					})
				}
				race.Wait()
				devices, err := w.Devices(t.Context(), push.Audience{User: user})
				if err != nil || len(devices) != 1 {
					t.Fatalf("pair %d of round %d: %d devices of one class stay", i, round, len(devices))
				}
				loser := &conns[2*i]
				if devices[0].Conn == a.ID() {
					loser = &conns[2*i+1]
				}
				*loser = w.connect("").conn()
			}
		}
	})
}

// waitForAnEnd waits until more than n of the pages have ended.
func waitForAnEnd(pages []*page, n int) bool {
	ended := make(chan struct{}, len(pages))
	stop := make(chan struct{})
	defer close(stop)
	for _, p := range pages {
		go func() {
			select {
			case <-p.done:
				ended <- struct{}{}
			case <-stop:
			}
		}()
	}
	timeout := time.NewTimer(3 * time.Second)
	defer timeout.Stop()
	for range n + 1 {
		select {
		case <-ended:
		case <-timeout.C:
			return false
		}
	}
	return true
}

func TestOlderDeviceOfAClassIsReplacedOnce(t *testing.T) {
	overDialects(t, func(t *testing.T, dialect string) {
		var d diary
		var b blocking
		cfg := hooked(&d, &b)
		cfg.DeviceClass = func(l *push.Login) string { return l.OS }
		w := newWorld(t, cfg)
		w.dialect = dialect
		phone, web1, web2 := w.connect("alice", "os=phone"), w.connect("alice"), w.connect("alice")
		again := w.connect("alice", "os=phone")
		phone.wantClosed(4409)
		synctest.Wait()
		if got := d.all(); len(got) != 5 || !slices.Contains(got, "disconnect alice replaced") {
			t.Errorf("hooks ran as %q", got)
		}

		// A later login and Bind replace, too.
		web1.logsIn("alice", "os=phone")
		web1.wantLogin("alice")
		again.wantClosed(4409)
		bob := w.connect("bob", "os=phone")
		if err := bob.conn().Bind(t.Context(), "alice"); err != nil {
			t.Fatal(err)
		}
		web1.wantClosed(4409)
		for _, p := range []*page{bob, web2} {
			p.wantNothing()
		}
		if err := web2.conn().Bind(t.Context(), "alice"); err != nil {
			t.Error(err) // again who it was: nothing happens
		}
		bob.wantNothing()
		web2.wantNothing()
		if s := w.Stats(); s.Closed[push.ReasonReplaced] != 3 || s.Conns != 2 || s.Users != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestDeviceClassOver16BytesFailsTheLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{DeviceClass: func(l *push.Login) string { return strings.Repeat("x", 17) }})
		if _, resp, err := w.tryConnect("alice"); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%v, %v, want 503", resp, err)
		}
		p := w.connect("")
		if err := p.conn().Bind(t.Context(), "alice"); err == nil || w.Online("alice") {
			t.Errorf("Bind: %v", err)
		}
		p.logsIn("alice")
		p.wantClosed(1013)
	})
}

// TestMaxConnsPerUserHoldsInARace of many.
func TestMaxConnsPerUserHoldsInARace(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		w := start(push.Config{Limits: push.Limits{MaxConnsPerUser: 3}})
		const racers = 20
		var in, out atomic.Int64
		var race sync.WaitGroup
		for range racers {
			race.Go(func() {
				p, resp, err := w.tryConnect("alice")
				if err != nil {
					if resp == nil || resp.StatusCode != http.StatusTooManyRequests {
						t.Errorf("%v, %v, want 429", resp, err)
					}
					out.Add(1)
					return
				}
				p.sendsRaw(map[string]any{"ping": 1})
				for ended := false; !ended; {
					p.mu.Lock()
					if p.err != nil {
						if !websocket.IsCloseError(p.err, 1013) {
							t.Errorf("ended with %v, want 1013", p.err)
						}
						out.Add(1)
						ended = true
					} else if len(p.got) > 0 {
						in.Add(1)
						ended = true
					}
					changed := p.changed
					p.mu.Unlock()
					if !ended {
						<-changed
					}
				}
			})
		}
		race.Wait()
		r, err := w.PushToUser(t.Context(), "alice", push.Message{})
		if in.Load() != 3 || out.Load() != racers-3 || r.Targets != 3 || err != nil {
			t.Errorf("%d in, %d out, a push reaches %d (%v), want 3, %d, 3", in.Load(), out.Load(), r.Targets, err, racers-3)
		}
	})
}

// TestPresenceTellsTheLatestState in order of the users' changes; what cancels
// out is not told.
func TestPresenceTellsTheLatestState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		var b blocking
		var running atomic.Int32
		w := newWorld(t, push.Config{OnPresence: func(p push.Presence) {
			if running.Add(1) != 1 {
				t.Error("calls overlap")
			}
			defer running.Add(-1)
			d.note("%s %v", p.User, p.Online)
			b.wait("presence")
		}})
		defer b.freeAll()
		b.block("presence")
		alice := w.connect("alice")
		synctest.Wait() // the hook is at it
		two := w.connect("alice")
		alice.leaves()
		bob := w.connect("bob")
		bob.leaves()
		carol := w.connect("carol")
		two.leaves()
		dave := w.connect("dave")
		dave.leaves()
		dave = w.connect("dave")
		synctest.Wait()
		d.want(t, "alice true")
		b.freeAll()
		synctest.Wait()
		got := d.all()
		slices.Sort(got)
		if !slices.Equal(got, []string{"alice false", "alice true", "carol true", "dave true"}) {
			t.Errorf("told %q", d.all())
		}
		carol.conn().Unbind()
		dave.conn().Bind(t.Context(), "erin")
		synctest.Wait()
		got = d.all()[4:]
		if len(got) != 3 || got[0] != "carol false" || !slices.Contains(got, "dave false") || !slices.Contains(got, "erin true") {
			t.Errorf("told %q", got)
		}
		dave.conn().Bind(t.Context(), "erin")
		dave.logsIn("erin")
		dave.wantLogin("erin")
		if n := len(d.all()); n != 7 {
			t.Errorf("told %q though nothing changed", d.all()[7:])
		}
	})
}

// TestPresenceEndsWithTheTruth after a storm of changes.
func TestPresenceEndsWithTheTruth(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		var mu sync.Mutex
		told := map[string]bool{}
		moved := make(chan struct{}, 1)
		w := start(push.Config{OnPresence: func(p push.Presence) {
			mu.Lock()
			if told[p.User] == p.Online {
				t.Errorf("%s is told to be %v twice", p.User, p.Online)
			}
			told[p.User] = p.Online
			mu.Unlock()
			select {
			case moved <- struct{}{}:
			default:
			}
		}})
		var storm sync.WaitGroup
		for i := range 4 {
			p := w.connect("")
			c := p.conn()
			storm.Go(func() {
				rnd := rand.New(rand.NewPCG(1, uint64(i)))
				for n := range 500 {
					switch rnd.IntN(4) {
					case 0:
						c.Unbind()
					default:
						c.Bind(t.Context(), fmt.Sprintf("u%d", rnd.IntN(5)))
					}
					pauseFor(n)
				}
			})
		}
		storm.Wait()
		timeout := time.NewTimer(patience)
		defer timeout.Stop()
		for {
			same := true
			mu.Lock()
			for i := range 5 {
				user := fmt.Sprintf("u%d", i)
				same = same && told[user] == w.Online(user)
			}
			mu.Unlock()
			if same {
				return
			}
			select {
			case <-moved:
			case <-timeout.C:
				t.Fatalf("told %v, online are %v", told, slices.Collect(w.Users()))
			}
		}
	})
}

func TestExpiredLoginIsClosedWith4401(t *testing.T) {
	overDialects(t, func(t *testing.T, dialect string) {
		var d diary
		w := newWorld(t, push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				if in, err := time.ParseDuration(l.Token); err == nil {
					l.Expires = time.Now().Add(in)
				}
				return l.UserID, nil
			},
			OnDisconnect: func(c *push.Conn, why push.Reason) { d.note("%s %s", c.UserID(), why) },
		})
		w.dialect = dialect
		begin := time.Now()
		alice, bob, carol := w.connect("alice", "token=90s"), w.connect("bob", "token=90s"), w.connect("carol")
		time.Sleep(60 * time.Second)
		bob.logsIn("bob", "token=10m") // a later login renews
		bob.wantLogin("bob")
		carol.logsIn("carol", "token=1m")
		carol.wantLogin("carol")
		time.Sleep(20 * time.Second)
		for _, p := range []*page{alice, bob, carol} {
			p.wantNothing()
		}
		alice.wantClosed(4401)
		if took := time.Since(begin); took < 90*time.Second || took > 91*time.Second {
			t.Errorf("closed after %v, want 90 s and at most one more", took)
		}
		time.Sleep(20 * time.Second)
		carol.wantClosed(4401)
		if took := time.Since(begin); took < 120*time.Second || took > 121*time.Second {
			t.Errorf("closed after %v, want 120 s and at most one more", took)
		}
		bob.wantNothing()
		d.want(t, "alice expired", "carol expired")
		bob.sendsRaw(map[string]any{"logout": true})
		time.Sleep(11 * time.Minute)
		if w.Stats().Conns != 1 {
			t.Errorf("who logged out is closed when the login that is over expires: %v", bob.end())
		}
	})
}

// TestHandlerErrorsReachTheClientOnlyAsRefuse.
func TestHandlerErrorsReachTheClientOnlyAsRefuse(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{})
		w.dialect = dialect
		push.On(w.Engine, "secret", func(ctx context.Context, c *push.Conn, in any) (any, error) {
			return nil, errors.New("password is 1234")
		})
		push.On(w.Engine, "refuse", func(ctx context.Context, c *push.Conn, in any) (any, error) {
			return nil, fmt.Errorf("wrapped: %w", push.Refuse("not you"))
		})
		push.On(w.Engine, "bad reply", func(ctx context.Context, c *push.Conn, in any) (any, error) {
			return func() {}, nil
		})
		push.On(w.Engine, "number", func(ctx context.Context, c *push.Conn, in int) (any, error) { return in + 1, nil })
		p := w.connect("alice")
		p.asks(1, "secret", nil)
		p.wantAnswer(1, "", "internal error")
		p.asks(2, "refuse", nil)
		p.wantAnswer(2, "", "not you")
		p.asks(3, "bad reply", nil)
		p.wantAnswer(3, "", "internal error")
		p.asks(4, "number", "five")
		p.wantAnswer(4, "", "cannot decode the data")
		p.asks(5, "number", 5)
		p.wantAnswer(5, "6", "")
		p.asks(6, "nobody's", 5)
		p.wantAnswer(6, "", "unknown event")
		if s := w.Stats(); s.Undecodable != 1 || s.Unhandled != 1 || s.Received != 6 {
			t.Errorf("%+v", s)
		}
	})
}

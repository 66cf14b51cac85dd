package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

func TestShutdownBeforeAnythingConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := push.New(push.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Ready(); err != nil {
			t.Errorf("Ready is %v before Shutdown", err)
		}
		for range 3 {
			if err := e.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		}
		wantEnded(t, e)
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		e, err = push.New(push.Config{OnPresence: func(push.Presence) {}})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		wantEnded(t, e)
	})
}

// wantEnded wants everything to be refused with ErrClosed.
func wantEnded(t *testing.T, e *push.Engine) {
	t.Helper()
	if err := e.Ready(); !errors.Is(err, push.ErrClosed) {
		t.Errorf("Ready is %v, want ErrClosed", err)
	}
	for _, a := range []push.Audience{{User: "alice"}, {Room: "room"}, {All: true}, {Conn: 1}} {
		if r, err := e.Push(t.Context(), a, push.Message{}); !errors.Is(err, push.ErrClosed) || r.Targets != 0 {
			t.Errorf("Push to %+v is %+v, %v, want ErrClosed", a, r, err)
		}
	}
	if s := e.Stats(); s.Conns+s.Users+s.Rooms+s.Memberships+s.Flights != 0 || s.QueuedBytes != 0 {
		t.Errorf("left: %+v", s)
	}
}

// TestShutdownSaysGoodbye to every page, once, and again changes nothing.
func TestShutdownSaysGoodbye(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		var d diary
		w := start(push.Config{OnDisconnect: func(c *push.Conn, why push.Reason) { d.note("%s", why) }})
		var pages []*page
		for i := range 10 {
			w.dialect = anyDoor(i)
			pages = append(pages, w.connect("alice"))
		}
		var calls sync.WaitGroup
		for range 5 {
			calls.Go(func() {
				if err := w.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		for _, p := range pages {
			p.wantClosed(1001)
		}
		calls.Wait()
		wantEnded(t, w.Engine)
		if lines := d.all(); len(lines) != 10 || strings.Count(strings.Join(lines, " "), "shutdown") != 10 {
			t.Errorf("OnDisconnect ran as %q, want 10 times shutdown, before Shutdown returns", lines)
		}
		if n := w.Stats().Closed[push.ReasonShutdown]; n != 10 {
			t.Errorf("%d closed by the shutdown, want 10", n)
		}
	})
}

// TestShutdownFlushesWhatWasPushed: what a push said to be sent is written
// before the goodbye, also from the workers of large places.
func TestShutdownFlushesWhatWasPushed(t *testing.T) {
	for _, crowd := range []int{10, 100} {
		t.Run(fmt.Sprintf("crowd of %d", crowd), func(t *testing.T) {
			overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
				w := start(push.Config{})
				var pages []*page
				for i := range crowd {
					w.dialect = anyDoor(i)
					pages = append(pages, w.connect(""))
				}
				const pushes = 20
				for n := range pushes {
					if r, err := w.Broadcast(t.Context(), block(n, 1000)); err != nil || r.Sent != crowd {
						t.Fatal(r, err)
					}
				}
				if err := w.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				var short []string
				for _, p := range pages {
					if err := p.end(); !endedWith(err, 1001) {
						t.Errorf("ended with %v, want 1001", err)
					}
					got := numbers(p.taken())
					wantPrefix(t, p, got)
					if len(got) != pushes {
						short = append(short, p.dialect)
					}
				}
				if len(short) > 0 {
					t.Errorf("%d of %d pages did not get all that was sent before Shutdown: %q", len(short), crowd, short)
				}
			})
		})
	}
}

// TestKickComesBehindWhatWasPushed by the same goroutine.
func TestKickComesBehindWhatWasPushed(t *testing.T) {
	for _, crowd := range []int{10, 100} {
		t.Run(fmt.Sprintf("crowd of %d", crowd), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, push.Config{})
				var pages []*page
				for i := range crowd {
					w.dialect = anyDoor(i)
					pages = append(pages, w.connect(""))
				}
				if _, err := w.Broadcast(t.Context(), push.Message{Event: "bye"}); err != nil {
					t.Fatal(err)
				}
				if n, err := w.Kick(t.Context(), push.Audience{All: true}, ""); n != crowd || err != nil {
					t.Fatal(n, err)
				}
				without := 0
				for _, p := range pages {
					if err := p.end(); !endedWith(err, 4410) {
						t.Errorf("ended with %v, want 4410", err)
					}
					if len(p.taken()) != 1 {
						without++
					}
				}
				if without > 0 {
					t.Errorf("%d of %d pages were kicked before they got what was pushed before", without, crowd)
				}
			})
		})
	}
}

// TestShutdownWaitsForAcks in flight, and lets pushes work meanwhile.
func TestShutdownWaitsForAcks(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{})
		w.dialect = dialect
		alice, bob := w.connect("alice"), w.connect("bob")
		alice.onAck(func(p *page, m envelope) {
			time.AfterFunc(3*time.Second, func() { p.answers(m, "late but fine") })
		})
		pushed := make(chan error)
		go func() {
			r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "ask", Ack: push.BizAck})
			wantStatus(t, r, push.Acked)
			pushed <- err
		}()
		async := make(chan push.Receipt, 10)
		if _, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "ask", Ack: push.BizAck, Async: true, Progress: func(r push.Receipt) { async <- r }}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		begin := time.Now()
		ended := make(chan error)
		go func() { ended <- w.Shutdown(t.Context()) }()
		synctest.Wait()
		if err := w.Ready(); err == nil || errors.Is(err, push.ErrClosed) {
			t.Errorf("Ready is %v while it drains", err)
		}
		if r, err := w.PushToUser(t.Context(), "bob", push.Message{Event: "meanwhile"}); err != nil || r.Sent != 1 {
			t.Errorf("a push while it drains: %+v, %v", r, err)
		}
		bob.wantPush("meanwhile")
		alice.wantPush("ask", "ask")
		if err := <-pushed; err != nil {
			t.Error(err)
		}
		if r := <-async; r.Acked != 1 {
			t.Errorf("the async push: %+v", r)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("Shutdown took %v, want the 3 s of the answer", took)
		}
		alice.wantClosed(1001)
		bob.wantClosed(1001)
		wantEnded(t, w.Engine)
	})
}

// TestShutdownIsNotHeldUpByPushesThatBeginMeanwhile: acks in flight are waited
// for, not those of every push a busy program makes later.
func TestShutdownIsNotHeldUpByPushesThatBeginMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		alice := w.connect("alice")
		alice.onAck(func(p *page, m envelope) {
			time.AfterFunc(100*time.Millisecond, func() { p.answers(m, nil) })
		})
		var pushes sync.WaitGroup
		for i := range 3 {
			pushes.Go(func() {
				time.Sleep(time.Duration(i) * 33 * time.Millisecond)
				for {
					if _, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck}); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		err := w.Shutdown(ctx)
		// No push waits for longer than AckTimeout, 5 s.
		if took := time.Since(begin); took > 7*time.Second || err != nil {
			t.Errorf("Shutdown took %v: %v", took, err)
		}
		if err := alice.end(); !endedWith(err, 1001) {
			t.Errorf("ended with %v, want 1001", err)
		}
		pushes.Wait()
	})
}

// TestShutdownCutsEverythingWhenItsTimeIsOver and says so.
func TestShutdownCutsEverythingWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		alice := w.connect("alice")
		alice.pause() // and so it says no goodbye, when the read under way has brought something
		if _, err := w.PushToUser(t.Context(), "alice", push.Message{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		pushed := make(chan error)
		go func() {
			r, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck})
			wantStatus(t, r, push.Gone)
			pushed <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		begin := time.Now()
		err := w.Shutdown(ctx)
		if took := time.Since(begin); took < 500*time.Millisecond || took > 700*time.Millisecond {
			t.Errorf("Shutdown took %v, want its ctx's 500 ms", took)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown is %v, want its ctx's error, since connections were cut", err)
		}
		if err := <-pushed; !errors.Is(err, push.ErrGone) {
			t.Errorf("the push: %v, want ErrGone", err)
		}
		alice.resume()
		alice.end()
		wantEnded(t, w.Engine)
	})
}

// TestShutdownKeepsTimeForGoodbyes: acks that do not come take half of it.
func TestShutdownKeepsTimeForGoodbyes(t *testing.T) {
	for name, m := range map[string]push.Message{"ack": {Ack: push.AutoAck}, "paced": {Rate: 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, push.Config{})
				alice, bob := w.connect("alice"), w.connect("bob")
				alice.onAck(silent)
				bob.onAck(silent)
				pushed := make(chan struct{})
				go func() { defer close(pushed); w.Broadcast(t.Context(), m) }()
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
				defer cancel()
				begin := time.Now()
				if err := w.Shutdown(ctx); err != nil || time.Since(begin) > 2200*time.Millisecond {
					t.Errorf("Shutdown: %v after %v, want nil after at most 2 s", err, time.Since(begin))
				}
				for _, p := range []*page{alice, bob} {
					if err := p.end(); !endedWith(err, 1001) {
						t.Errorf("ended with %v, want 1001", err)
					}
				}
				<-pushed
				wantEnded(t, w.Engine)
			})
		})
	}
}

// TestDrainSpreadsTheCloses, and lets nobody in meanwhile.
func TestDrainSpreadsTheCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const drain, n = 30 * time.Second, 60
		w := newWorld(t, push.Config{Drain: drain})
		var ends sync.WaitGroup
		var mu sync.Mutex
		var at []time.Duration
		var begin time.Time
		for i := range n {
			w.dialect = anyDoor(i)
			p := w.connect("alice")
			ends.Go(func() {
				<-p.done
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(begin))
				if !endedWith(p.end(), 1001) {
					t.Errorf("ended with %v", p.end())
				}
			})
		}
		begin = time.Now()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if err := w.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(drain / 2)
		synctest.Wait()
		mu.Lock()
		if half := len(at); half < n/2-2 || half > n/2+2 {
			t.Errorf("%d of %d closed after half of the time", half, n)
		}
		mu.Unlock()
		if r, err := w.PushToUser(t.Context(), "alice", push.Message{}); err != nil || r.Targets < n/2-2 {
			t.Errorf("a push while it drains: %v, %v", r.Targets, err)
		}
		w.dialect = dialectNames[0]
		_, resp, err := w.tryConnect("late")
		if err == nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("who comes while it drains: %v, %v, want 503 with Retry-After", resp, err)
		}
		<-ended
		ends.Wait()
		for i := 1; i < len(at); i++ {
			if gap := at[i] - at[i-1]; gap > time.Second {
				t.Errorf("%v between two closes, want about half a second", gap)
			}
		}
		if last := at[len(at)-1]; last < drain*9/10 || last > drain+time.Second {
			t.Errorf("the last close came after %v, want about %v", last, drain)
		}
		if n := w.Stats().Refused["draining"]; n != 1 {
			t.Errorf("%d refused", n)
		}
	})
}

// TestPushesWorkUntilTheLastConnectionIsClosed, then ErrClosed.
func TestPushesWorkUntilTheLastConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Drain: 10 * time.Second})
		for range 5 {
			w.connect("alice")
		}
		ended := make(chan struct{})
		go func() { defer close(ended); w.Shutdown(t.Context()) }()
		for {
			synctest.Wait()
			online := w.Online("alice")
			r, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck})
			if online && (err != nil || r.Acked == 0) {
				t.Errorf("%d connections, and a push says %v", w.Stats().Conns, err)
			}
			if !online {
				if !errors.Is(err, push.ErrClosed) {
					t.Errorf("no connection is left, and a push says %v", err)
				}
				break
			}
			time.Sleep(500 * time.Millisecond)
		}
		<-ended
	})
}

// TestHooksThatNeverReturnDoNotHoldShutdown past its deadline, nor Close.
func TestHooksThatNeverReturnDoNotHoldShutdown(t *testing.T) {
	for _, hook := range []string{"Authenticate", "late Authenticate", "OnConnect", "OnMessage", "OnDisconnect", "OnPresence", "Progress"} {
		for _, how := range []string{"Shutdown", "Close"} {
			t.Run(hook+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					never := make(chan struct{})
					stuck := func(name string) {
						if name == hook {
							<-never
						}
					}
					w := newWorld(t, push.Config{
						Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
							if l.Conn != nil {
								stuck("late Authenticate")
							} else if l.UserID == "alice" {
								stuck("Authenticate")
							}
							return l.UserID, nil
						},
						OnConnect: func(ctx context.Context, c *push.Conn) { stuck("OnConnect") },
						OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
							stuck("OnMessage")
							return nil, nil
						},
						OnDisconnect: func(c *push.Conn, why push.Reason) { stuck("OnDisconnect") },
						OnPresence:   func(p push.Presence) { stuck("OnPresence") },
					})
					connecting := make(chan struct{})
					go func() {
						defer close(connecting)
						p, _, err := w.tryConnect("alice")
						if err != nil {
							return
						}
						p.sends("x", nil)
						p.logsIn("bob")
					}()
					synctest.Wait()
					if hook == "Progress" {
						w.Broadcast(t.Context(), push.Message{Ack: push.AutoAck, Async: true, Progress: func(push.Receipt) { stuck("Progress") }})
						synctest.Wait()
					}
					begin := time.Now()
					var err error
					limit := 200 * time.Millisecond
					if how == "Shutdown" {
						ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
						defer cancel()
						err = w.Shutdown(ctx)
						limit += 3 * time.Second
						if !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("Shutdown is %v, want its ctx's error", err)
						}
					} else if err = w.Close(); err != nil {
						t.Errorf("Close is %v", err)
					}
					if took := time.Since(begin); took > limit {
						t.Errorf("%s took %v with a stuck %s", how, took, hook)
					}
					if _, err := w.PushToUser(t.Context(), "alice", push.Message{}); !errors.Is(err, push.ErrClosed) {
						t.Errorf("a push: %v, want ErrClosed", err)
					}
					if s := w.Stats(); s.Conns != 0 || s.Memberships != 0 {
						t.Errorf("left: %+v", s)
					}
					close(never)
					<-connecting
					synctest.Wait()
					if s := w.Stats(); s.Conns != 0 || s.Memberships != 0 || s.Pending != 0 {
						t.Errorf("left after the hook returned: %+v", s)
					}
				})
			})
		}
	}
}

func TestCloseIsImmediate(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		w := start(push.Config{Drain: time.Hour})
		var pages []*page
		for range 10 {
			p := w.connect("alice")
			p.onAck(silent)
			pages = append(pages, p)
		}
		pages[0].pause()
		pushed := make(chan push.Receipt)
		go func() {
			r, _ := w.Broadcast(t.Context(), push.Message{Ack: push.AutoAck})
			pushed <- r
		}()
		pages[1].wantPush("message")
		shut := make(chan error)
		go func() { shut <- w.Shutdown(t.Context()) }()
		begin := time.Now()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("Close took %v", took)
		}
		for _, d := range (<-pushed).Deliveries {
			if d.Status != push.Gone && d.Status != push.Offline {
				t.Errorf("%v, want gone or offline", d.Status)
			}
		}
		<-shut
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("Shutdown took %v beside Close", took)
		}
		pages[0].resume()
		for _, p := range pages {
			p.end()
		}
		wantEnded(t, w.Engine)
	})
}

// TestEndDuringUpgrades: connections are made all the time while the engine
// ends, and nothing stays behind.
func TestEndDuringUpgrades(t *testing.T) {
	for _, how := range []string{"Shutdown", "Close"} {
		t.Run(how, func(t *testing.T) {
			overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
				for round := range 15 {
					var hooks atomic.Int64
					w := start(push.Config{
						OnConnect:    func(ctx context.Context, c *push.Conn) { hooks.Add(1) },
						OnDisconnect: func(c *push.Conn, why push.Reason) { hooks.Add(-1) },
						Limits:       push.Limits{MaxConnsPerUser: -1},
					})
					var storm sync.WaitGroup
					for i := range 6 {
						storm.Go(func() {
							for {
								p, resp, err := w.tryConnect(fmt.Sprintf("u%d", i), "token=room")
								if err != nil {
									if resp != nil && (resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "") {
										t.Errorf("refused with %d", resp.StatusCode)
									}
									return
								}
								if i%2 == 0 {
									err := p.end()
									if how == "Shutdown" && !endedWith(err, 1001) {
										t.Errorf("ended with %v, want 1001", err)
									}
								}
							}
						})
					}
					for i := range 3 * round {
						pauseFor(i)
					}
					if how == "Shutdown" {
						if err := w.Shutdown(t.Context()); err != nil {
							t.Error(err)
						}
					} else {
						w.Close()
					}
					storm.Wait()
					if err := w.Shutdown(t.Context()); err != nil { // hooks are over
						t.Error(err)
					}
					wantEnded(t, w.Engine)
					if n := hooks.Load(); n != 0 {
						t.Errorf("%d more OnConnect than OnDisconnect", n)
					}
				}
			})
		})
	}
}

// TestLoginThatEndsAfterClose finds the engine closed, and leaves nothing.
func TestLoginThatEndsAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 300 {
			gate := make(chan struct{})
			w := newWorld(t, push.Config{
				Authenticate: func(ctx context.Context, l *push.Login) (string, error) { <-gate; return believe(ctx, l) },
				OnDisconnect: func(c *push.Conn, why push.Reason) {},
			})
			var connects sync.WaitGroup
			for range 4 {
				connects.Go(func() {
					if p, _, err := w.tryConnect("alice", "token=room"); err == nil {
						p.end()
					}
				})
			}
			synctest.Wait()
			w.Close()
			close(gate)
			connects.Wait()
			synctest.Wait()
			wantEnded(t, w.Engine)
			if t.Failed() {
				return
			}
		}
	})
}

func TestServeHTTPWhileDrainingAndAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Drain: 10 * time.Second})
		w.connect("alice")
		w.connect("alice")
		ended := make(chan struct{})
		go func() { defer close(ended); w.Shutdown(t.Context()) }()
		for _, when := range []string{"draining", "ended"} {
			time.Sleep(time.Second)
			synctest.Wait()
			for _, more := range []string{"", "origin=http://push.test"} {
				_, resp, err := w.tryConnect("bob", more)
				if err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
					t.Errorf("%s: %v, %v, want 503 with Retry-After", when, resp, err)
				}
			}
			// The page's client is served as long as the program listens.
			tr := &http.Transport{DialContext: w.dial, DisableKeepAlives: true}
			resp, err := (&http.Client{Transport: tr}).Get("http://push.test/push.js")
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || len(b) < 100 || err != nil {
				t.Errorf("%s: push.js is %d, %d bytes, %v", when, resp.StatusCode, len(b), err)
			}
			resp.Body.Close()
			if err := w.Ready(); err == nil || errors.Is(err, push.ErrClosed) != (when == "ended") {
				t.Errorf("%s: Ready is %v", when, err)
			}
			if when == "draining" {
				<-ended
			}
		}
	})
}

// TestSilentClientIsClosedAfterItsHeartbeat and 20 seconds.
func TestSilentClientIsClosedAfterItsHeartbeat(t *testing.T) {
	for _, heartbeat := range []time.Duration{0, 2 * time.Second, time.Minute} {
		t.Run(heartbeat.String(), func(t *testing.T) {
			overDialects(t, func(t *testing.T, dialect string) {
				var d diary
				w := newWorld(t, push.Config{Heartbeat: heartbeat, OnDisconnect: func(c *push.Conn, why push.Reason) { d.note("%s %s", c.UserID(), why) }})
				w.dialect = dialect
				if heartbeat == 0 {
					heartbeat = 25 * time.Second
				}
				alive, mute := w.connect("alive"), w.connect("mute")
				mute.mute.Store(true)
				begin := time.Now()
				done := make(chan struct{})
				go func() { defer close(done); <-mute.done }()
				for w.Online("mute") {
					time.Sleep(100 * time.Millisecond)
					if time.Since(begin) > heartbeat+25*time.Second {
						t.Fatal("a mute page stays")
					}
				}
				took := time.Since(begin)
				if took < heartbeat+20*time.Second || took > heartbeat+22100*time.Millisecond { // two ticks of the sweep, one of ours
					t.Errorf("closed after %v, want %v to two seconds more", took, heartbeat+20*time.Second)
				}
				<-done
				if want := int64(20 * time.Second / heartbeat); mute.pings.Load() < max(1, want) {
					t.Errorf("%d pings went out in %v", mute.pings.Load(), took)
				}
				if err := mute.end(); !endedWith(err, 1001) {
					t.Errorf("ended with %v, want 1001", err)
				}
				time.Sleep(5 * heartbeat)
				alive.wantNothing()
				if n := alive.pings.Load(); n < 5 {
					t.Errorf("%d pings in %v", n, time.Since(begin))
				}
				d.want(t, "mute heartbeat")
			})
		})
	}
}

// TestDeadPeerIsNoticed: the cable is pulled, row 72.
func TestDeadPeerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		p := w.connect("alice")
		w.net.Cut(serverIP, clientIP)
		time.Sleep(47 * time.Second)
		synctest.Wait()
		if s := w.Stats(); s.Users != 0 || s.Closed[push.ReasonHeartbeat] != 0 {
			t.Errorf("after 47 s: %+v", s)
		}
		time.Sleep(time.Second) // nobody takes the goodbye
		synctest.Wait()
		if s := w.Stats(); s.Closed[push.ReasonHeartbeat] != 1 || s.QueuedBytes != 0 {
			t.Errorf("after 48 s: %+v", s)
		}
		w.net.MendAll()
		p.end()
	})
}

// TestMessageThatTakesTooLongIsClosed with 1008, row 66 and 81.
func TestMessageThatTakesTooLongIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		p := w.connect("alice")
		head := []byte{0x81, 0x80 | 100, 0, 0, 0, 0}
		begin := time.Now()
		for i := 0; w.Online("alice"); i++ {
			b := []byte{' '}
			if i < len(head) {
				b = head[i : i+1]
			}
			p.ws.NetConn().Write(b)
			time.Sleep(time.Second)
		}
		if took := time.Since(begin); took < 10*time.Second || took > 13*time.Second {
			t.Errorf("closed after %v, want 10 s and little more", took)
		}
		p.wantClosed(1008)
	})
}

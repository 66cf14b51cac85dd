package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/mpush"
)

func TestALoginAPushAndItsAckPassThroughEveryDoor(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID, cfg.Tags = "alice", []string{"a", "b"}
		cfg.OnReceivePush = func(c *Client, content []byte, id int32) {
			if id != 0 {
				if err := c.Ack(context.Background(), id); err != nil {
					t.Errorf("Ack: %v", err)
				}
			}
		}
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s", "bind true alice")
		if !s.Connected() || s.UserID() != "alice" {
			t.Errorf("Connected %v, UserID %q", s.Connected(), s.UserID())
		}
		for _, push := range []struct {
			text string
			ack  push.Ack
			want push.Status
			told string
		}{
			{"no", push.NoAck, push.Sent, `push "no"`},
			{"auto", push.AutoAck, push.Acked, `push "auto"`},
			{"biz", push.BizAck, push.Acked, `push "biz" to ack`},
			{strings.Repeat("x", 20000), push.AutoAck, push.Acked, fmt.Sprintf("push %.60q", strings.Repeat("x", 20000))},
		} {
			r, err := w.PushToUser(bg(t), "alice", pushMessage(push.text, push.ack))
			if err != nil || len(r.Deliveries) != 1 || r.Deliveries[0].Status != push.want {
				t.Fatalf("push %.20q: %+v, %v", push.text, r, err)
			}
			s.wants(push.told)
		}
		devices, err := w.Devices(bg(t), push.Audience{User: "alice"})
		if err != nil || len(devices) != 1 || devices[0].DeviceID != "d1" || strings.Join(devices[0].Tags, " ") != "a b" {
			t.Errorf("devices %+v, %v", devices, err)
		}
		s.Stop()
		s.wants("disconnected")
		if !errors.Is(s.reason(), ErrStopped) {
			t.Errorf("reason %v, want ErrStopped", s.reason())
		}
	})
}

func pushMessage(text string, ack push.Ack) push.Message {
	return push.Message{Data: []byte(text), Ack: ack}
}

func TestAClientsPushReachesTheProgramAndIsAcknowledged(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := make(chan string, 10)
				w := newWorld(t, push.Config{OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
					var b []byte
					if err := m.Decode(&b); err != nil {
						return nil, err
					}
					got <- string(b)
					if string(b) == "no" {
						return nil, errors.New("refused")
					}
					return nil, nil
				}})
				cfg := w.config(d)
				cfg.UserID = "alice"
				s := starts(t, cfg)
				s.wants("connected", "handshake 3m0s", "bind true alice")
				big := strings.Repeat("0123456789", 3000)
				for i, text := range []string{"a", "b", "c", big} {
					if err := s.Push(bg(t), []byte(text), AckModel(i%3)); err != nil {
						t.Fatalf("Push: %v", err)
					}
					if g := <-got; g != text {
						t.Errorf("got %.20q, want %.20q", g, text)
					}
				}
				ctx, stop := context.WithTimeout(context.Background(), time.Second)
				defer stop()
				err := s.Push(ctx, []byte("no"), AutoAck)
				if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUncertain) {
					t.Errorf("a push that is not acknowledged: %v, want ErrUncertain and DeadlineExceeded", err)
				}
				if err := s.Push(bg(t), []byte("x"), 7); err == nil {
					t.Error("an unknown AckModel is taken")
				}
			})
		})
	}
}

func TestASessionIsResumedByFastConnect(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID = "alice"
		store := &spyStorage{}
		cfg.Storage = store
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s", "bind true alice")
		for range 5 {
			s.Stop()
			s.Start()
			s.wants("disconnected", "connected", "handshake 3m0s", "bind true alice")
		}
		if n := store.saves.Load(); n != 1 {
			t.Errorf("%d handshakes, want 1", n)
		}
		r, err := w.PushToUser(bg(t), "alice", pushMessage("hi", push.AutoAck))
		if err != nil {
			t.Fatalf("push: %+v, %v", r, err)
		}
		s.wants(`push "hi"`)
	})
}

// spyStorage counts what is saved and cleared.
type spyStorage struct {
	MemoryStorage
	saves, clears atomic.Int32
}

func (s *spyStorage) SaveSession(text string) error {
	s.saves.Add(1)
	return s.MemoryStorage.SaveSession(text)
}

func (s *spyStorage) ClearSession() error {
	s.clears.Add(1)
	return s.MemoryStorage.ClearSession()
}

func TestAnUnknownSessionIsDroppedAndAHandshakeFollowsOnTheSameSocket(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID = "alice"
		store := &spyStorage{}
		old := session{token: "0123456789abcdef0123456789abcdef", expires: time.Now().Add(time.Hour)}
		old.cipher, _ = mpush.NewCipher(make([]byte, 16), make([]byte, 16))
		store.MemoryStorage.SaveSession(old.String())
		cfg.Storage = store
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s", "bind true alice")
		if store.clears.Load() != 1 || store.saves.Load() != 1 {
			t.Errorf("%d clears and %d saves, want 1 each", store.clears.Load(), store.saves.Load())
		}
	})
}

// A file with a sound token and wrong keys would fail for ever in the original.
func TestWrongKeysOfASoundTokenCostOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		cfg := w.config(doors[0])
		cfg.UserID = "alice"
		store := new(MemoryStorage)
		cfg.Storage = store
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s", "bind true alice")
		s.Stop()
		text, _ := store.GetSession()
		good, err := parseSession(text)
		if err != nil {
			t.Fatal(err)
		}
		good.cipher, _ = mpush.NewCipher([]byte("wrong key, wrong"), make([]byte, 16))
		store.SaveSession(good.String())
		s.Start()
		s.wants("disconnected", "connected", "handshake 3m0s", "disconnected", "connected", "handshake 3m0s", "bind true alice")
	})
}

func TestWithoutAUserNothingIsBound(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		s := starts(t, w.config(d))
		s.wants("connected", "handshake 3m0s")
		s.wantsNothing(10 * time.Minute) // heartbeats keep it
		if err := s.Unbind(bg(t)); !errors.Is(err, ErrNoUser) {
			t.Errorf("Unbind: %v, want ErrNoUser", err)
		}
		if err := s.Bind(bg(t), "bob", "", "x"); err != nil {
			t.Fatal(err)
		}
		s.wants("bind true bob")
		if err := s.Bind(bg(t), "carol", ""); err != nil { // two OKs come: bob's end is not carol's answer
			t.Fatal(err)
		}
		s.wants("bind true carol")
		if w.Online("bob") || !w.Online("carol") {
			t.Error("bob is online, or carol is not")
		}
		if err := s.Unbind(bg(t)); err != nil {
			t.Fatal(err)
		}
		s.wants("unbind true carol")
		if w.Online("carol") || s.UserID() != "" {
			t.Error("carol is online")
		}
		s.Stop()
		s.Start()
		s.wants("disconnected", "connected", "handshake 3m0s")
		s.wantsNothing(time.Minute)
	})
}

func TestHeartbeatsKeepAConnectionAndTwoMissesEndIt(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID, cfg.Heartbeat = "alice", 20*time.Second
		s := starts(t, cfg)
		s.wants("connected", "handshake 20s", "bind true alice")
		s.wantsNothing(time.Hour)
		w.net.Cut(serverIP, clientIP)
		cut := time.Now()
		s.wants("disconnected")
		if took := time.Since(cut); took < 20*time.Second || took > 65*time.Second || !errors.Is(s.reason(), ErrSilent) {
			t.Errorf("noticed after %v: %v", took, s.reason())
		}
		w.net.MendAll()
		s.wants("connected", "handshake 20s", "bind true alice")
	})
}

func TestARestartedServerIsFoundAndTheUserBoundAgain(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID = "alice"
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s", "bind true alice")
		w.Close()
		s.wants("disconnected")
		w.net.Host(serverIP).Kill()
		s.wantsNothing(2 * time.Hour) // without end
		w.serve(push.Config{})
		began := time.Now()
		s.wants("connected", "handshake 3m0s", "bind true alice")
		if took := time.Since(began); took > time.Minute {
			t.Errorf("back after %v, want a minute at most", took)
		}
	})
}

func TestBackoffGrowsIsRandomAndHasABound(t *testing.T) {
	c, err := New(Config{Addrs: []string{"a:1"}, DeviceID: "d"})
	if err != nil {
		t.Fatal(err)
	}
	for failed, most := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 7: time.Minute, 31: time.Minute, 1 << 30: time.Minute} {
		seen := make(map[time.Duration]bool)
		for range 100 {
			d := c.backoff(failed)
			if d < most/4 || d > most {
				t.Fatalf("backoff(%d) = %v, want %v to %v", failed, d, most/4, most)
			}
			seen[d] = true
		}
		if len(seen) < 90 {
			t.Errorf("backoff(%d) has %d values of 100", failed, len(seen))
		}
	}
}

func TestAServerThatClosesAtOnceIsNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var n atomic.Int32
		go func() {
			for {
				nc, err := f.l.Accept()
				if err != nil {
					return
				}
				n.Add(1)
				nc.Close()
			}
		}()
		starts(t, f.config())
		time.Sleep(time.Hour)
		if n := n.Load(); n < 60 || n > 300 {
			t.Errorf("%d connections in an hour, want one or two a minute", n)
		}
	})
}

func TestServersAreTriedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		cfg := w.config(doors[0])
		cfg.Addrs = []string{serverIP + ":1", serverIP + ":2", doors[0].addr}
		began := time.Now()
		starts(t, cfg).wants("connected", "handshake 3m0s")
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("it took %v, want no waiting between servers", took)
		}
	})
}

func TestTheAllocatorsServersComeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		var text atomic.Value
		text.Store(serverIP + ":1, nonsense," + doors[0].addr)
		var asked atomic.Int32
		l, err := w.net.Host(serverIP).Listen(9999)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			io.WriteString(rw, text.Load().(string))
		})}
		go server.Serve(l)
		defer server.Close()
		cfg := w.config(doors[0])
		cfg.Addrs, cfg.Allocator = nil, "http://"+serverIP+":9999/"
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s")
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		for _, bad := range []string{"", ",", "no address", strings.Repeat("x", maxAlloc+1)} {
			s.Stop()
			s.servers.left = nil
			text.Store(bad)
			s.Start()
			s.wants("disconnected")
			s.wantsNothing(10 * time.Minute)
			text.Store(doors[0].addr)
			s.wants("connected", "handshake 3m0s")
		}
		s.Stop()
		s.servers.left = nil
		s.cfg.Addrs = []string{doors[0].addr}
		server.Close()
		s.Start()
		s.wants("disconnected", "connected", "handshake 3m0s")
	})
}

func TestTheEnginesOwnAllocatorIsUnderstood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{MPush: push.MPush{Advertise: doors[0].addr}})
		l, err := w.net.Host(serverIP).Listen(9999)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: w.Alloc()}
		go server.Serve(l)
		defer server.Close()
		cfg := w.config(doors[0])
		cfg.Addrs, cfg.Allocator = nil, "http://"+serverIP+":9999/alloc"
		starts(t, cfg).wants("connected", "handshake 3m0s")
	})
}

func TestAKickedClientStaysConnectedAndDoesNotBindAgain(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID = "alice"
		a := starts(t, cfg)
		a.wants("connected", "handshake 3m0s", "bind true alice")
		cfg.DeviceID = "d2"
		b := starts(t, cfg)
		b.wants("connected", "handshake 3m0s", "bind true alice")
		a.wants("kick d1 alice")
		a.wantsNothing(10 * time.Minute)
		if a.UserID() != "" || !a.Connected() {
			t.Errorf("UserID %q, Connected %v", a.UserID(), a.Connected())
		}
		a.Stop()
		a.Start()
		a.wants("disconnected", "connected", "handshake 3m0s")
		a.wantsNothing(time.Minute)
		b.wantsNothing(0)
		if err := a.Bind(bg(t), "alice", ""); err != nil {
			t.Fatal(err)
		}
		a.wants("bind true alice")
		b.wants("kick d2 alice")
	})
}

func TestTheEnginesKickLogsOutAndDoesNotStop(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID = "alice"
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s", "bind true alice")
		if _, err := w.Kick(bg(t), push.Audience{User: "alice"}, "out"); err != nil {
			t.Fatal(err)
		}
		s.wants("kick d1 alice", "disconnected", "connected", "handshake 3m0s")
		s.wantsNothing(time.Minute)
	})
}

func TestStopOnKickStops(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID, cfg.StopOnKick = "alice", true
		a := starts(t, cfg)
		a.wants("connected", "handshake 3m0s", "bind true alice")
		cfg.DeviceID = "d2"
		b := starts(t, cfg)
		a.Wait()
		a.wants("kick d1 alice", "disconnected")
		if !errors.Is(a.reason(), ErrKicked) {
			t.Errorf("reason %v, want ErrKicked", a.reason())
		}
		a.wantsNothing(time.Minute)
		if err := a.Push(bg(t), []byte("x"), NoAck); !errors.Is(err, ErrStopped) {
			t.Errorf("Push after the stop: %v, want ErrStopped", err)
		}
		b.wants("connected", "handshake 3m0s", "bind true alice")
	})
}

func TestARefusedUserMayBindWithAFreshToken(t *testing.T) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
					if l.Token != "fresh" {
						return "", push.Refuse("stale token")
					}
					return l.UserID, nil
				}})
				cfg := w.config(d)
				cfg.UserID, cfg.Token = "alice", "stale"
				bound := make(chan error, 1)
				first := true
				cfg.OnBind = func(c *Client, ok bool, user string) {
					if !ok && first {
						first = false
						if c.UserID() != "" {
							t.Error("it still has a user")
						}
						go func() { bound <- c.Bind(context.Background(), user, "fresh") }()
					}
				}
				s := starts(t, cfg)
				s.wants("connected", "handshake 3m0s", "bind false alice")
				// The engine reads nothing more from whom it refused, and closes.
				if err := <-bound; err != nil && !errors.Is(err, ErrUncertain) {
					t.Errorf("Bind: %v", err)
				}
				s.wants("disconnected", "connected", "handshake 3m0s", "bind true alice")

				err := s.Bind(bg(t), "alice", "wrong")
				if e := (*Error)(nil); !errors.As(err, &e) || e.Request != "bind" || e.Code != 0 || e.Reason != "stale token" {
					t.Errorf("Bind: %v, want an *Error", err)
				}
				s.wants("bind false alice", "disconnected", "connected", "handshake 3m0s")
				s.wantsNothing(10 * time.Minute)
			})
		})
	}
}

func TestABindThatTheServerCannotAnswerIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		w := newWorld(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			if down.Load() {
				return "", errors.New("the database is down")
			}
			return l.UserID, nil
		}})
		cfg := w.config(doors[0])
		cfg.UserID = "alice"
		began := time.Now()
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s", "disconnected")
		if took := time.Since(began); took < 6*time.Second || took > 7*time.Second || !errors.Is(s.reason(), ErrSilent) {
			t.Errorf("given up after %v: %v, want 6 s", took, s.reason())
		}
		down.Store(false)
		s.wants("connected", "handshake 3m0s", "bind true alice")
	})
}

func TestNetworkChanged(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID = "alice"
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s", "bind true alice")
		s.NetworkChanged(true)
		s.NetworkChanged(false)
		s.wantsNothing(time.Minute) // a sound connection passes the test

		w.net.Cut(serverIP, clientIP)
		began := time.Now()
		s.NetworkChanged(false)
		s.wants("disconnected")
		if took := time.Since(began); took < 5900*time.Millisecond || took > 6100*time.Millisecond || !errors.Is(s.reason(), ErrSilent) {
			t.Errorf("given up after %v: %v, want 6 s", took, s.reason())
		}
		w.net.MendAll()
		s.wantsNothing(time.Hour) // it does not try
		began = time.Now()
		s.NetworkChanged(true)
		s.wants("connected", "handshake 3m0s", "bind true alice")
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("back after %v, want at once", took)
		}
	})
}

func TestHealthCheckFindsADeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		s := starts(t, f.config())
		if s.HealthCheck() {
			t.Error("HealthCheck is true before there is a session")
		}
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		cn := s.opened()
		if !s.HealthCheck() {
			t.Error("HealthCheck is false on a fresh session")
		}
		cn.mu.Lock()
		cn.beats.Stop() // as on a machine that sleeps
		cn.mu.Unlock()
		time.Sleep(time.Hour)
		if !s.HealthCheck() {
			t.Error("one miss, and HealthCheck is false")
		}
		one := make([]byte, 1)
		if _, err := io.ReadFull(p, one); err != nil || one[0] != mpush.Beat {
			t.Errorf("it sent % x, %v, want a heartbeat", one, err)
		}
		if !s.HealthCheck() {
			t.Error("a second look right after the first counts a second miss")
		}
		cn.mu.Lock()
		cn.beats.Stop()
		cn.mu.Unlock()
		time.Sleep(time.Hour)
		if s.HealthCheck() {
			t.Error("two misses, and HealthCheck is true")
		}
		s.wants("disconnected")
	})
}

func TestABlockedHookSlowsTheConnectionDownAndLosesNothing(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID, cfg.Heartbeat = "alice", 10*time.Second
		gate := make(chan struct{})
		cfg.OnReceivePush = func(*Client, []byte, int32) { <-gate }
		s := starts(t, cfg)
		s.wants("connected", "handshake 10s", "bind true alice")
		const n = 250 // the network holds 64 KiB; what it does not hold waits in the engine, for 10 s
		for i := range n {
			if _, err := w.PushToUser(bg(t), "alice", pushMessage(fmt.Sprint(i, strings.Repeat("-", 200)), push.NoAck)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute) // silence, but not the server's
		if !s.hooks.Full(hookLimit) {
			t.Error("the hooks' queue is not full")
		}
		close(gate)
		for i := range n {
			s.wants(fmt.Sprintf("push %.60q", fmt.Sprint(i, strings.Repeat("-", 200))))
		}
		s.wantsNothing(time.Minute)
	})
}

func TestAHookMayBindAndStop(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.OnHandshakeOk = func(c *Client, _ time.Duration) {
			if err := c.Bind(context.Background(), "alice", ""); err != nil {
				t.Errorf("Bind in a hook: %v", err)
			}
		}
		cfg.OnBind = func(c *Client, ok bool, user string) { c.Stop() }
		s := starts(t, cfg)
		s.Wait()
		s.wants("connected", "handshake 3m0s", "bind true alice", "disconnected")
	})
}

func TestARequestWithoutAConnectionWaitsTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		cfg := w.config(doors[0])
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			return nil, errors.New("no network")
		}
		s := starts(t, cfg)
		for name, request := range map[string]func(context.Context) error{
			"push": func(ctx context.Context) error { return s.Push(ctx, []byte("x"), BizAck) },
			"ack":  func(ctx context.Context) error { return s.Ack(ctx, 7) },
			"bind": func(ctx context.Context) error { return s.Bind(ctx, "alice", "") },
		} {
			began := time.Now()
			err := request(context.Background())
			if took := time.Since(began); !errors.Is(err, ErrTimeout) || errors.Is(err, ErrUncertain) || took != 10*time.Second {
				t.Errorf("%s: %v after %v, want ErrTimeout after 10 s", name, err, took)
			}
			ctx, stop := context.WithTimeout(context.Background(), time.Second)
			if err := request(ctx); err != context.DeadlineExceeded {
				t.Errorf("%s: %v, want the context's error", name, err)
			}
			stop()
		}
		if err := s.Unbind(bg(t)); err != nil {
			t.Errorf("Unbind: %v", err)
		}
		s.wants("unbind true alice")
		if len(s.calls) != 0 {
			t.Errorf("%d calls are left", len(s.calls))
		}
	})
}

func TestAStoppedClientSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		c, err := New(f.config())
		if err != nil {
			t.Fatal(err)
		}
		c.Wait() // there is nothing to wait for
		c.Stop()
		if err := c.Push(bg(t), nil, NoAck); !errors.Is(err, ErrStopped) {
			t.Errorf("Push: %v, want ErrStopped", err)
		}
		if err := c.Bind(bg(t), "bob", ""); err != nil || c.UserID() != "bob" {
			t.Errorf("Bind: %v, user %q", err, c.UserID())
		}
		if err := c.Unbind(bg(t)); err != nil {
			t.Errorf("Unbind: %v", err)
		}
		c.Start()
		c.Start()
		errs := make(chan error, 2)
		go func() { errs <- c.Push(context.Background(), []byte("x"), NoAck) }()
		go func() { errs <- c.Bind(context.Background(), "bob", "") }()
		synctest.Wait()
		c.Stop()
		for range 2 {
			if err := <-errs; !errors.Is(err, ErrStopped) || errors.Is(err, ErrUncertain) {
				t.Errorf("a waiting request: %v, want ErrStopped", err)
			}
		}
		c.Wait()
	})
}

func TestASessionWithoutProtectionIsWarnedOfOnce(t *testing.T) {
	for _, server := range []struct {
		ip   string
		want int
	}{{serverIP, 1}, {"127.0.0.1", 0}} {
		synctest.Test(t, func(t *testing.T) {
			w := &world{t: t, net: memnet.New(1)}
			l, err := w.net.Host(server.ip).Listen(3000)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var log bytes.Buffer
			cfg := w.config(door{addr: server.ip + ":3000"})
			cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			s := starts(t, cfg)
			for range 3 {
				p := (&fake{t: t, l: l}).accepts()
				p.shakes(mpush.HandshakeOK{ServerKey: serverKey})
				s.wants("connected", "handshake 1s")
				p.Close()
				s.wants("disconnected")
			}
			s.Stop()
			s.Wait()
			if n := strings.Count(log.String(), "nothing is encrypted"); n != server.want {
				t.Errorf("%s: %d warnings, want %d: %s", server.ip, n, server.want, log.String())
			}
		})
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	good := Config{Addrs: []string{"a:1", "[::1]:3000", "ws://x/y"}, DeviceID: "d", PublicKey: []byte(mpush.StockPublicKey)}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"Addrs":     func(c *Config) { c.Addrs = nil },
		"a port":    func(c *Config) { c.Addrs = []string{"a"} },
		"scheme":    func(c *Config) { c.Addrs = []string{"http://a"} },
		"Allocator": func(c *Config) { c.Allocator = "ftp://x" },
		"DeviceID":  func(c *Config) { c.DeviceID = "" },
		"OSName":    func(c *Config) { c.OSName = strings.Repeat("x", 257) },
		"Heartbeat": func(c *Config) { c.Heartbeat = time.Millisecond },
		"negative":  func(c *Config) { c.MaxMessage = -1 },
		"PublicKey": func(c *Config) { c.PublicKey = []byte("x") },
		"Tags":      func(c *Config) { c.Tags = []string{"a,b"} },
		"too long": func(c *Config) {
			x := strings.Repeat("x", 256)
			c.OSName, c.OSVersion, c.ClientVersion = x, x, x
			c.DeviceID = x[:128]
		},
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(name, "a ")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

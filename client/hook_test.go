package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// logTo is a logger of this level and worse.
func logTo(log *bytes.Buffer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level}))
}

// The original reconnects after an exception in a listener, too.
func TestAHookThatPanicsEndsItsConnectionAndNothingElse(t *testing.T) {
	for name, end := range map[string]func(){
		"panicked: boom":           func() { panic("boom") },
		"panicked: runtime.Goexit": runtime.Goexit,
	} {
		for _, hook := range []string{"connected", "disconnected", "handshake", "push", "kick", "bind", "unbind"} {
			t.Run(hook+" "+name, func(t *testing.T) {
				withFake(t, func(t *testing.T, f *fake) {
					var log bytes.Buffer
					armed := true
					fall := func(at string) {
						if at == hook && armed {
							armed = false
							end()
						}
					}
					cfg := f.config()
					cfg.Logger = logTo(&log, slog.LevelError)
					cfg.OnConnected = func(*Client) { fall("connected") }
					cfg.OnDisconnected = func(*Client, error) { fall("disconnected") }
					cfg.OnHandshakeOk = func(*Client, time.Duration) { fall("handshake") }
					cfg.OnReceivePush = func(*Client, []byte, int32) { fall("push") }
					cfg.OnKickUser = func(*Client, string, string) { fall("kick") }
					cfg.OnBind = func(*Client, bool, string) { fall("bind") }
					cfg.OnUnbind = func(*Client, bool, string) { fall("unbind") }
					s := starts(t, cfg)
					f.serves(script)
					time.Sleep(time.Minute)
					s.Bind(bg(t), "bob", "") // who is not kicked
					s.Unbind(bg(t))
					time.Sleep(time.Minute)
					s.Stop()
					s.Wait()
					if armed {
						t.Fatal("the hook was not called")
					}
					if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "hook panicked") || !strings.Contains(text, "hook_test.go") {
						t.Errorf("log:\n%s", text)
					}
					ended := false
					for _, reason := range s.reasons {
						ended = ended || strings.Contains(reason.Error(), name)
					}
					// A connection that has ended cannot be ended.
					if want := hook != "disconnected"; ended != want {
						t.Errorf("a connection ended with %q: %v, want %v; reasons: %v", name, ended, want, s.reasons)
					}
				})
			})
		}
	}
}

// script is a server's life with one client, to whom it does one thing after
// another.
func script(p *peer) {
	for {
		got, err := p.next(true)
		if err != nil {
			return
		}
		switch got.Cmd {
		case mpush.CmdHandshake:
			var h mpush.Handshake
			if h.Decode(stockKey().Decrypt(got.Body)) != nil {
				return
			}
			p.key, p.iv = h.ClientKey, h.IV
			p.Write(p.handshakeOK(got.ID, serverKey))
		case mpush.CmdFastConnect:
			p.error(mpush.CmdFastConnect, got.ID, mpush.CodeExpired, "")
		case mpush.CmdBind:
			p.ok(mpush.CmdBind, got.ID)
			p.Write(p.sealed(mpush.CmdPush, mpush.FlagAutoAck, 77, []byte("x")))
		case mpush.CmdAck:
			p.Write(p.sealed(mpush.CmdKick, 0, 0, (&mpush.Kick{DeviceID: "d1", UserID: "alice"}).Append(nil)))
			go func() { // for the hook of the end
				time.Sleep(20 * time.Second)
				p.Close()
			}()
		case mpush.CmdUnbind:
			p.ok(mpush.CmdUnbind, got.ID)
		}
	}
}

func TestAPushWhoseHookPanickedIsNotAcknowledged(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.OnReceivePush = func(_ *Client, content []byte, _ int32) {
			if string(content) == "bad" {
				panic(content)
			}
		}
		s := starts(t, cfg)
		p := f.accepts()
		p.opens()
		p.Write(p.sealed(mpush.CmdPush, mpush.FlagAutoAck, 1, []byte("bad")))
		p.ends()
		p = f.accepts()
		fc := p.gets(mpush.CmdFastConnect)
		p.error(mpush.CmdFastConnect, fc.ID, mpush.CodeExpired, "")
		p.opens()
		p.Write(p.sealed(mpush.CmdPush, mpush.FlagAutoAck, 2, []byte("good")))
		if ack := p.gets(mpush.CmdAck); ack.ID != 2 {
			t.Errorf("push %d was acknowledged, want 2", ack.ID)
		}
		s.wants("connected", "handshake 30s", "bind true alice", `push "bad"`, "disconnected", "connected", "handshake 30s", "bind true alice", `push "good"`)
	})
}

func TestAHookOfTheEndMayStartAnew(t *testing.T) {
	for range 20 {
		withFake(t, func(t *testing.T, f *fake) {
			cfg := f.config()
			cfg.StopOnKick = true
			kicked := false
			cfg.OnDisconnected = func(c *Client, reason error) {
				if errors.Is(reason, ErrKicked) && !kicked {
					kicked = true
					c.Start()
				}
			}
			s := starts(t, cfg)
			p := f.accepts()
			p.opens()
			p.Write(p.sealed(mpush.CmdKick, 0, 0, (&mpush.Kick{DeviceID: "d1", UserID: "alice"}).Append(nil)))
			p.ends()
			p = f.accepts()
			fc := p.gets(mpush.CmdFastConnect)
			p.Write(mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, fc.ID, (&mpush.FastConnectOK{Heartbeat: 30000}).Append(nil)))
			s.wants("connected", "handshake 30s", "bind true alice", "kick d1 alice", "disconnected", "connected", "handshake 30s")
			s.wantsNothing(time.Second)
		})
	}
}

func TestStopsAndStartsAtOnceEndInTheLast(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.UserID = ""
		s := starts(t, cfg)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if i%2 == 0 {
					s.Stop()
				} else {
					s.Start()
				}
			})
		}
		wg.Wait()
		s.Start()
		s.mu.Lock()
		r := s.run
		s.mu.Unlock()
		if r == nil || r.ctx.Err() != nil {
			t.Error("it is not started")
		}
		s.Stop()
	})
}

// every calls each method once.
func every(c *Client) {
	ctx, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer stop()
	c.Connected()
	c.UserID()
	c.Server()
	c.Refusal()
	c.Start()
	c.HealthCheck()
	c.NetworkChanged(false)
	c.NetworkChanged(true)
	c.Push(ctx, []byte("x"), NoAck)
	c.Push(ctx, []byte("x"), AutoAck)
	c.Push(ctx, []byte("x"), BizAck)
	c.Ack(ctx, 7)
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://a.test/", nil)
	if resp, err := c.RoundTrip(req); err == nil {
		resp.Body.Close()
	}
}

func TestEveryMethodMayBeCalledInEveryHook(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID = "alice"
		seen := make(map[string]bool)
		var over atomic.Bool
		call := func(hook string) func(*Client) {
			return func(c *Client) {
				if over.Load() { // the last hooks shall not start it
					return
				}
				every(c)
				if seen[hook] {
					return
				}
				seen[hook] = true // what would call the hook again, once
				ctx, stop := context.WithTimeout(context.Background(), 10*time.Millisecond)
				defer stop()
				c.Unbind(ctx)
				c.Bind(ctx, "alice", "")
				c.Stop()
				c.Start()
			}
		}
		connected, disconnected, opened, pushed, kicked, bound, unbound := call("connected"), call("disconnected"), call("handshake"), call("push"), call("kick"), call("bind"), call("unbind")
		cfg.OnConnected = connected
		cfg.OnDisconnected = func(c *Client, _ error) { disconnected(c) }
		cfg.OnHandshakeOk = func(c *Client, _ time.Duration) { opened(c) }
		cfg.OnReceivePush = func(c *Client, _ []byte, _ int32) { pushed(c) }
		cfg.OnKickUser = func(c *Client, _, _ string) { kicked(c) }
		cfg.OnBind = func(c *Client, _ bool, _ string) { bound(c) }
		cfg.OnUnbind = func(c *Client, _ bool, _ string) { unbound(c) }
		s := starts(t, cfg)
		time.Sleep(time.Minute)
		s.Bind(bg(t), "alice", "")
		w.PushToUser(bg(t), "alice", pushMessage("x", push.BizAck))
		time.Sleep(time.Minute)
		s.Bind(bg(t), "alice", "")
		w.Kick(bg(t), push.Audience{User: "alice"}, "")
		time.Sleep(10 * time.Minute)
		over.Store(true)
		time.Sleep(time.Second) // for one that has begun
		s.Stop()
		s.Wait()
		if len(seen) != 7 {
			t.Errorf("hooks that were called: %v, want all seven", seen)
		}
	})
}

// Whoever calls what, and whatever the network does: everything ends.
func TestEveryMethodMayBeCalledAtAnyTime(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID, cfg.MinBackoff, cfg.MaxBackoff = "alice", time.Millisecond, 100*time.Millisecond
		cfg.OnReceivePush = func(c *Client, _ []byte, id int32) {
			ctx, stop := context.WithTimeout(context.Background(), time.Second)
			defer stop()
			c.Ack(ctx, id)
		}
		var mu sync.Mutex
		var last net.Conn
		dial := cfg.Dial
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := dial(ctx, network, addr)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				last = nc
			}
			return nc, err
		}
		s := starts(t, cfg)
		other := w.config(d)
		other.DeviceID, other.UserID = "d2", "alice"
		var wg sync.WaitGroup
		for i := range 8 {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			wg.Go(func() {
				for range 100 {
					ctx, stop := context.WithTimeout(context.Background(), time.Duration(r.IntN(200))*time.Millisecond)
					switch r.IntN(16) {
					case 0:
						s.Stop()
					case 1, 2, 3:
						s.Start()
					case 4, 5:
						s.Bind(ctx, "alice", "")
					case 6:
						s.Bind(ctx, "bob", "", "a")
					case 7:
						s.Unbind(ctx)
					case 8:
						mu.Lock()
						if last != nil {
							last.Close()
						}
						mu.Unlock()
					case 9:
						w.PushToUser(ctx, "alice", pushMessage("x", push.AutoAck))
					case 10:
						w.PushToUser(ctx, "alice", pushMessage(strings.Repeat("x", 5000), push.BizAck))
					case 11:
						w.Kick(ctx, push.Audience{User: "alice"}, "")
					default:
						every(s.Client)
					}
					stop()
					time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
				}
			})
		}
		wg.Wait()
		s.Stop()
		s.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.calls) != 0 || s.conn != nil || s.run != nil {
			t.Errorf("%d calls, connection %v, run %v are left", len(s.calls), s.conn, s.run)
		}
	})
}

func TestStopIsPromptAtEveryStepOfTheProtocol(t *testing.T) {
	for name, step := range map[string]func(t *testing.T, f *fake, s *subject){
		"not accepted":  func(t *testing.T, f *fake, s *subject) {},
		"no answer":     func(t *testing.T, f *fake, s *subject) { f.accepts().takesHandshake() },
		"half a packet": func(t *testing.T, f *fake, s *subject) { f.accepts().Write([]byte{0, 0, 1}) },
		"fast connect": func(t *testing.T, f *fake, s *subject) {
			p := f.accepts()
			p.opens()
			p.Close()
			f.accepts().gets(mpush.CmdFastConnect)
		},
		"bind": func(t *testing.T, f *fake, s *subject) {
			p := f.accepts()
			p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
			p.gets(mpush.CmdBind)
		},
		"bind repeated": func(t *testing.T, f *fake, s *subject) {
			p := f.accepts()
			p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
			p.gets(mpush.CmdBind)
			p.gets(mpush.CmdBind)
		},
		"open": func(t *testing.T, f *fake, s *subject) { f.accepts().opens() },
		"a write that is not taken": func(t *testing.T, f *fake, s *subject) {
			f.accepts().opens()
			for range 10 {
				go s.Push(context.Background(), noise(60<<10), NoAck)
			}
			synctest.Wait()
		},
		"a hook that blocks": func(t *testing.T, f *fake, s *subject) {
			p := f.accepts()
			p.opens()
			go func() {
				for range 1000 {
					p.Write(p.sealed(mpush.CmdPush, mpush.FlagAutoAck, 1, []byte("wait")))
				}
			}()
			synctest.Wait()
		},
		"between two connections": func(t *testing.T, f *fake, s *subject) {
			for range 6 {
				f.accepts().Close()
			}
			time.Sleep(time.Second)
		},
		"without a network": func(t *testing.T, f *fake, s *subject) {
			f.accepts().Close()
			s.NetworkChanged(false)
			time.Sleep(time.Hour)
		},
	} {
		t.Run(name, func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				gate := make(chan struct{})
				cfg := f.config()
				cfg.OnReceivePush = func(_ *Client, content []byte, _ int32) { <-gate }
				s := starts(t, cfg)
				step(t, f, s)
				synctest.Wait()
				began := time.Now()
				s.Stop()
				if took := time.Since(began); took > 0 {
					t.Errorf("Stop took %v", took)
				}
				close(gate)
				s.Wait()
				if took := time.Since(began); took > 0 || len(s.calls) != 0 {
					t.Errorf("Wait took %v, %d calls are left", took, len(s.calls))
				}
			})
		})
	}
}

func TestARefusalReachesTheHookAndTheLog(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		var log bytes.Buffer
		cfg := f.config()
		cfg.Logger = logTo(&log, slog.LevelWarn)
		var told []string
		cfg.OnBind = func(c *Client, ok bool, user string) {
			told = append(told, fmt.Sprintf("bind %s %v: %v", user, ok, c.Refusal()))
		}
		cfg.OnUnbind = func(c *Client, ok bool, user string) {
			told = append(told, fmt.Sprintf("unbind %s %v: %v", user, ok, c.Refusal()))
		}
		s := starts(t, cfg)
		if s.Refusal() != nil {
			t.Errorf("Refusal at the beginning: %v", s.Refusal())
		}
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		p.error(mpush.CmdBind, p.gets(mpush.CmdBind).ID, 7, "too late\nfor that"+strings.Repeat("!", 1<<16))
		s.wants("connected", "handshake 30s", "bind false alice")
		if e := s.Refusal(); e == nil || e.Code != 7 || e.Request != "bind" || !strings.HasPrefix(e.Reason, "too late") {
			t.Errorf("Refusal: %v", e)
		}
		go s.Bind(context.Background(), "alice", "")
		p.ok(mpush.CmdBind, p.gets(mpush.CmdBind).ID)
		s.wants("bind true alice")
		go s.Unbind(context.Background())
		p.error(mpush.CmdUnbind, p.gets(mpush.CmdUnbind).ID, 0, "no")
		s.wants("unbind false alice")
		s.Stop()
		s.Bind(bg(t), "bob", "")
		s.Unbind(bg(t))
		synctest.Wait()
		s.wants("disconnected", "unbind true bob")
		text := strings.Join(told, "\n")
		for i, want := range []string{`bind alice false: client: the server refused the bind: code 7, "too late\nfor that!`, `bind alice true: <nil>`, `unbind alice false: client: the server refused the unbind: code 0, "no"`, `unbind bob true: <nil>`} {
			if i >= len(told) || !strings.HasPrefix(told[i], want) {
				t.Errorf("hooks were told:\n%.500s\nwant %s", text, want)
			}
		}
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "bind refused") || !strings.Contains(text, "code 7") || len(text) > 1000 {
			t.Errorf("log of %d bytes: %.1000s", len(text), text)
		}
	})
}

func TestAHookFindsTheServerOfItsConnection(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		second, err := f.net.Host("10.0.0.3").Listen(3000)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		cfg := f.config()
		cfg.UserID, cfg.Addrs = "", []string{fakeAddr, "10.0.0.3:3000"}
		var told []string
		gate := make(chan struct{})
		cfg.OnConnected = func(c *Client) {
			<-gate // both connections are over by then
			told = append(told, "+"+c.Server())
		}
		cfg.OnDisconnected = func(c *Client, _ error) { told = append(told, "-"+c.Server()) }
		s := starts(t, cfg)
		if s.Server() != "" {
			t.Errorf("Server at the beginning: %q", s.Server())
		}
		f.accepts().Close()
		(&fake{t: t, l: second}).accepts().Close()
		time.Sleep(100 * time.Millisecond)
		s.Stop()
		close(gate)
		s.Wait()
		if got, want := strings.Join(told, " "), "+10.0.0.1:3000 -10.0.0.1:3000 +10.0.0.3:3000 -10.0.0.3:3000"; got != want {
			t.Errorf("hooks found %q, want %q", got, want)
		}
	})
}

func TestAnOutageIsWarnedOfFromTimeToTime(t *testing.T) {
	for name, server := range map[string]struct {
		addrs  string
		script func(p *peer)
		text   string
	}{
		"nobody there": {"10.0.0.9:1", nil, "i/o timeout"},
		"no address":   {"", nil, "allocator"},
		"refuses":      {fakeAddr, func(p *peer) { p.error(mpush.CmdHandshake, p.takesHandshake().ID, 0, "full") }, `full`},
		"closes":       {fakeAddr, func(p *peer) { p.takesHandshake() }, "EOF"},
		"does not bind": {fakeAddr, func(p *peer) {
			p.shakes(mpush.HandshakeOK{ServerKey: serverKey, Heartbeat: 60000})
			p.ends()
		}, "two binds"},
	} {
		t.Run(name, func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				f.serves(server.script)
				var log bytes.Buffer
				cfg := f.config()
				cfg.Logger, cfg.Addrs = logTo(&log, slog.LevelInfo), []string{server.addrs}
				if server.addrs == "" {
					cfg.Addrs, cfg.Allocator = nil, "http://10.0.0.9:80/secret"
				}
				s := starts(t, cfg)
				time.Sleep(time.Minute)
				s.Stop()
				s.Wait()
				if log.Len() > 0 {
					t.Errorf("within a minute: %s", log.String())
				}
				s.Start()
				time.Sleep(3 * time.Minute)
				s.Stop()
				s.Wait()
				if text := log.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, server.text) || strings.Contains(text, "secret") {
					t.Errorf("within three minutes: %s; want one warning with %q", text, server.text)
				}
				log.Reset()
				s.Start()
				time.Sleep(time.Hour + time.Minute)
				s.Stop()
				s.Wait()
				if n := strings.Count(log.String(), "level=WARN"); n < 5 || n > 7 {
					t.Errorf("within an hour %d warnings, want 6:\n%s", n, log.String())
				}
			})
		})
	}
}

func TestTheEndOfAnOutageIsToldOnce(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		var down atomic.Bool
		down.Store(true)
		var log bytes.Buffer
		cfg := f.config()
		cfg.Logger, cfg.UserID = logTo(&log, slog.LevelInfo), ""
		dial := cfg.Dial
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if down.Load() {
				return nil, errors.New("down")
			}
			return dial(ctx, network, addr)
		}
		s := starts(t, cfg)
		time.Sleep(5 * time.Minute)
		down.Store(false)
		for range 3 { // none of which lasts
			p := f.accepts()
			p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
			synctest.Wait()
			p.Close()
			s.wants("connected", "handshake 30s", "disconnected")
			s.cfg.Storage.ClearSession()
		}
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		s.wants("connected", "handshake 30s")
		time.Sleep(lasted)
		p.Close() // that one did, so a minute begins anew
		down.Store(true)
		time.Sleep(55 * time.Second)
		s.NetworkChanged(false)
		time.Sleep(time.Hour) // which the program knows of
		s.NetworkChanged(true)
		time.Sleep(55 * time.Second)
		s.Stop()
		s.Wait()
		text := log.String()
		if strings.Count(text, "\n") != 2 || strings.Count(text, "level=WARN") != 1 || strings.Count(text, "level=INFO") != 1 || !strings.Contains(text, "open again") {
			t.Errorf("log:\n%s\nwant a warning and its end", text)
		}
	})
}

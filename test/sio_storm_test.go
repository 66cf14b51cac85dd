package test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// TestEveryNamespaceConnectedHasOneDisconnect and it comes last, in a storm of
// clients that join, leave, are kicked and go.
func TestEveryNamespaceConnectedHasOneDisconnect(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		var mu sync.Mutex
		state := map[push.ConnID]int{} // 1: connected, 2: over
		step := func(c *push.Conn, what string, from, to int) {
			mu.Lock()
			defer mu.Unlock()
			if state[c.ID()] != from {
				t.Errorf("%s of %v in state %d", what, c.ID(), state[c.ID()])
			}
			state[c.ID()] = to
		}
		w := start(push.Config{
			OnConnect: func(ctx context.Context, c *push.Conn) { step(c, "OnConnect", 0, 1); pauseFor(int(c.ID())) },
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				step(c, "OnMessage", 1, 1)
				return nil, nil
			},
			OnDisconnect: func(c *push.Conn, why push.Reason) { step(c, "OnDisconnect", 1, 2) },
			SocketIO:     push.SocketIO{Namespace: anySpace},
			Limits:       push.Limits{MaxConnsPerUser: -1, MessageRate: -1},
		})
		doors := slices.Concat(socketIODoors, moreSocketIODoors)
		var storm, kicks sync.WaitGroup
		var over atomic.Bool
		for i := range 6 {
			storm.Go(func() {
				for n := range 15 {
					c, _, _, err := w.triesToOpen(doors[(i+n)%len(doors)], "user=u")
					if err != nil {
						continue // kicked between its two halves
					}
					c.manual = true // what it hears is not looked at
					var packets []ioMessage
					if c.rev == 4 {
						packets = append(packets, c.connectPacket("/", nil))
					}
					packets = append(packets, c.encode(2, "/", -1, "x")...)
					packets = append(packets, c.connectPacket("/chat", nil))
					if n%2 == 0 {
						packets = append(packets, c.disconnectPacket("/"))
					}
					packets = append(packets, c.encode(2, "/chat", 1, "x", []byte("abc"))...)
					c.enqueue(packets...)
					pauseFor(n)
					if n%3 != 0 {
						w.Push(t.Context(), push.Audience{All: true, Namespace: "/chat"}, push.Message{Data: n})
					}
					switch n % 4 {
					case 0:
						c.cuts()
					case 1:
						c.closes()
					case 2:
						c.enqueue(ioMessage{text: "4nonsense"})
					}
				}
			})
		}
		kicks.Go(func() {
			for !over.Load() {
				for _, space := range []string{"/", "/chat"} {
					w.Kick(t.Context(), push.Audience{All: true, Namespace: space}, "")
				}
				pauseFor(6)
			}
		})
		storm.Wait()
		over.Store(true)
		kicks.Wait()
		if err := w.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		wantEnded(t, w.Engine)
		mu.Lock()
		defer mu.Unlock()
		for id, s := range state {
			if s != 2 {
				t.Errorf("no OnDisconnect for %v", id)
			}
		}
		if len(state) < 5 { // of 150 that tried; the others were kicked before
			t.Errorf("only %d connections", len(state))
		}
		if s := w.Stats(); s.Sockets+s.Pending != 0 || s.Panics != 0 {
			t.Errorf("left %+v", s)
		}
	})
}

// TestEndDuringHandshakesOfSocketIO leaves nothing behind.
func TestEndDuringHandshakesOfSocketIO(t *testing.T) {
	for _, how := range []string{"Shutdown", "Close"} {
		t.Run(how, func(t *testing.T) {
			overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
				doors := slices.Concat(socketIODoors, moreSocketIODoors)
				for round := range 12 {
					var hooks atomic.Int64
					w := start(push.Config{
						OnConnect:    func(ctx context.Context, c *push.Conn) { hooks.Add(1) },
						OnDisconnect: func(c *push.Conn, why push.Reason) { hooks.Add(-1) },
						SocketIO:     push.SocketIO{Namespace: anySpace},
						Limits:       push.Limits{MaxConnsPerUser: -1},
					})
					var storm sync.WaitGroup
					for i := range 6 {
						storm.Go(func() {
							for n := 0; ; n++ {
								c, status, _, err := w.triesToOpen(doors[(i+n)%len(doors)], fmt.Sprintf("user=u%d", i), "token=room")
								if err != nil {
									if status == 503 {
										return
									}
									if status != 0 {
										t.Errorf("refused with %d", status)
									}
									if w.Ready() != nil {
										return
									}
									continue
								}
								c.manual = true
								if c.rev == 4 {
									c.enqueue(c.connectPacket("/", nil))
								}
								c.enqueue(c.connectPacket("/chat", nil))
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
					if err := w.Shutdown(t.Context()); err != nil {
						t.Error(err)
					}
					wantEnded(t, w.Engine)
					if s := w.Stats(); s.Sockets+s.Pending != 0 || hooks.Load() != 0 {
						t.Errorf("%d more OnConnect than OnDisconnect, %+v", hooks.Load(), s)
					}
				}
			})
		})
	}
}

// TestPanickingHookEndsItsOwnSocketIOConnectionOnly, with all its namespaces.
func TestPanickingHookEndsItsOwnSocketIOConnectionOnly(t *testing.T) {
	for _, hook := range []string{"OnConnect", "OnMessage", "On", "OnDisconnect", "DeviceClass", "Namespace"} {
		t.Run(hook, func(t *testing.T) {
			overSocketIO(t, func(t *testing.T, door string) {
				var d diary
				panics := func(name, user string) {
					if name == hook && user == "mallory" {
						panic("as the test wants it")
					}
				}
				w := newWorld(t, push.Config{
					DeviceClass: func(l *push.Login) string { panics("DeviceClass", l.UserID); return "" },
					OnConnect:   func(ctx context.Context, c *push.Conn) { panics("OnConnect", c.UserID()) },
					OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
						panics("OnMessage", c.UserID())
						return m.Event, nil
					},
					OnDisconnect: func(c *push.Conn, why push.Reason) {
						d.note("%s %s", c.UserID(), why)
						panics("OnDisconnect", c.UserID())
					},
					SocketIO: push.SocketIO{Namespace: func(ctx context.Context, name string, l *push.Login) error { panics("Namespace", l.UserID); return nil }},
					Logger:   slog.New(&logBook{}),
				})
				push.On(w.Engine, "typed", func(ctx context.Context, c *push.Conn, n int) (any, error) { panics("On", c.UserID()); return n, nil })
				w.dialect = door
				alice, friend := w.connect("alice"), w.connect("friend")
				chat := friend.io.joins("/chat", "mallory")
				chat.answered()
				switch hook {
				case "OnMessage":
					chat.asks(1, "any", nil)
				case "On":
					chat.asks(1, "typed", 5)
				case "OnDisconnect":
					chat.leavesSpace()
				}
				if hook == "OnDisconnect" {
					synctest.Wait()
					friend.wantNothing()
				} else {
					if err := friend.end(); endedWith(err, 4410) || friend.io.webSocket() != nil && !endedWith(err, 1011) {
						t.Errorf("ended with %v", err)
					}
				}
				alice.asks(2, "hi", nil)
				alice.wantAnswer(2, `"hi"`, "")
				time.Sleep(31 * time.Second)
				synctest.Wait()
				if s := w.Stats(); s.Panics != 1 || s.Conns > 2 || hook != "OnDisconnect" && s.Sockets != 1 {
					t.Errorf("%+v", s)
				}
				if hook == "OnMessage" || hook == "On" || hook == "OnConnect" {
					if got := d.all(); len(got) != 2 || !slices.Contains(got, "mallory panic") || !slices.Contains(got, "friend panic") {
						t.Errorf("hooks ran as %q", got)
					}
				}
			})
		})
	}
}

// TestNewestOfAClassStaysOverSocketIO: one winner in a race of many.
func TestNewestOfAClassStaysOverSocketIO(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var mu sync.Mutex
		reasons := map[push.Reason]int{}
		w := newWorld(t, push.Config{
			DeviceClass: func(l *push.Login) string { return "phone" },
			OnDisconnect: func(c *push.Conn, why push.Reason) {
				mu.Lock()
				defer mu.Unlock()
				reasons[why]++
			},
			Limits: push.Limits{MaxConnsPerUser: 1},
		})
		w.dialect = door
		const racers = 10
		var pages [racers]*page
		var race sync.WaitGroup
		for i := range pages {
			race.Go(func() {
				var err error
				if pages[i], _, err = w.tryConnect("alice"); err != nil {
					if end := new(ioEnd); !errors.As(err, &end) || !end.disconnected {
						t.Error(err)
					}
				}
			})
		}
		race.Wait()
		time.Sleep(10 * time.Second)
		losers := 0
		for _, p := range pages {
			select {
			case <-p.done:
				losers++
				if !endedWith(p.end(), 4409) {
					t.Errorf("a loser ended with %v", p.end())
				}
			default:
			}
		}
		r, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck})
		mu.Lock()
		defer mu.Unlock()
		if losers != racers-1 || err != nil || r.Acked != 1 || reasons[push.ReasonReplaced] > racers-1 || len(reasons) > 1 { // who was replaced before OnConnect has no hooks
			t.Errorf("%d losers, %v, a push: %+v, %v", losers, reasons, r, err)
		}
		if s := w.Stats(); s.Conns != 1 || s.Sockets != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestStoppedClientHoldsNobodyUp: a paused client of every door, while others
// get every broadcast.
func TestStoppedClientHoldsNobodyUp(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{})
		w.dialect = door
		slow := w.connect("slow", "token=room")
		synctest.Wait()
		slow.pause()
		var others []*page
		for range 20 {
			others = append(others, w.connect("", "token=room"))
		}
		begin := time.Now()
		for n := range 400 {
			if _, err := w.PushToRoom(t.Context(), "room", block(n, 1000)); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("somebody waited %v", took)
		}
		if w.Online("slow") {
			t.Error("the slow one is still there")
		}
		for _, p := range others {
			got := numbers(p.taken())
			wantPrefix(t, p, got)
			if len(got) != 400 {
				t.Errorf("%s got %d", p.device, len(got))
			}
		}
		slow.resume()
		if err := slow.end(); !endedWith(err, 4408) {
			t.Errorf("ended with %v", err)
		}
		wantPrefix(t, slow, numbers(slow.taken()))
	})
}

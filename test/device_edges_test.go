package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// What happens at the edges of a device's connection: between its BIND and what
// comes right behind it, between one Conn of its and the next, and at its end.

// aPage tells the Conn of a page that may turn to mpush from those of devices.
func aPage(c *push.Conn) bool { return c.Protocol() == "push.json" }

// TestWhatComesRightBehindABindWaitsForOnConnect, also in one write with it.
func TestWhatComesRightBehindABindWaitsForOnConnect(t *testing.T) {
	message := func(d *device) []byte { return d.packet(mpush.CmdPush, mpush.FlagAutoAck, []byte("hi")) }
	unbind := func(d *device) []byte { return d.packet(mpush.CmdUnbind, 0, &mpush.Bind{UserID: "alice"}) }
	bind := func(d *device) []byte { return d.bindPacket("bob") }
	for what, c := range map[string]struct {
		behind []func(*device) []byte
		got    []string // by the device, behind its OK
		hooks  []string // behind OnConnect
		user   string   // in the end
	}{
		"a message": {
			[]func(*device) []byte{message},
			[]string{"push own", "ack"}, []string{"hi of alice", "own is acked"}, "alice",
		},
		"UNBIND":         {[]func(*device) []byte{unbind}, []string{"unbind success"}, nil, ""},
		"another BIND":   {[]func(*device) []byte{bind}, []string{"unbind success", "bind success"}, nil, "bob"},
		"all of them":    {[]func(*device) []byte{message, unbind, bind}, []string{"push own", "ack", "unbind success", "bind success"}, []string{"hi of alice", "own is acked"}, "bob"},
		"BIND before it": {[]func(*device) []byte{bind, message}, []string{"unbind success", "bind success", "push own", "ack"}, []string{"hi of bob", "own is acked"}, "bob"},
	} {
		t.Run(what, func(t *testing.T) {
			overDoors(t, func(t *testing.T, door door) {
				var notes diary
				var w *deviceWorld
				w = door.world(t, push.Config{
					Authenticate: func(_ context.Context, l *push.Login) (string, error) {
						if l.UserID == "alice" {
							time.Sleep(time.Second) // until the rest has come, however it was split
						}
						return l.UserID, nil
					},
					OnConnect: func(_ context.Context, c *push.Conn) {
						if !aPage(c) {
							notes.note("connect %s", c.UserID())
							time.Sleep(time.Second)
							notes.note("connected %s", c.UserID())
						}
					},
					OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
						notes.note("%s of %s", m.Bytes(0), c.UserID())
						r, err := w.PushToUser(ctx, c.UserID(), push.Message{Data: []byte("own"), Ack: push.BizAck})
						if r.Acked != 1 || r.Deliveries[0].Latency != 0 {
							t.Errorf("a push to its own device: %+v, %v", r, err)
						}
						notes.note("own is %s", r.Deliveries[0].Status)
						return nil, err
					},
				})
				d := w.shakesHands()
				all := [][]byte{d.bindPacket("alice")}
				for _, packet := range c.behind {
					all = append(all, packet(d))
				}
				if door.json {
					for _, b := range all {
						d.raw(b)
					}
				} else {
					d.raw(bytes.Join(all, nil))
				}
				var got []string
				for range 1 + len(c.got) {
					switch p := d.next(); p.cmd {
					case mpush.CmdPush:
						got = append(got, "push "+p.content())
					case mpush.CmdAck:
						got = append(got, "ack")
					default:
						got = append(got, p.ok().Data)
					}
				}
				d.wantOpen(5 * time.Second)
				if want := append([]string{"bind success"}, c.got...); !slices.Equal(got, want) {
					t.Errorf("it got %q, want %q", got, want)
				}
				notes.want(t, append([]string{"connect alice", "connected alice"}, c.hooks...)...)
				if user := d.conn().UserID(); user != c.user {
					t.Errorf("in the end it is %q's, want %q's", user, c.user)
				}
			})
		})
	}
}

// meanwhile is a context in which something happens when it is first asked
// whether it has ended.
type meanwhile struct {
	context.Context
	happens func()
}

func (m meanwhile) Err() error {
	m.happens()
	return m.Context.Err()
}

// TestWhoEndsADetachedConnLeavesTheNextOneAlone: a Conn that was replaced is
// over, and its device's connection is another Conn's.
func TestWhoEndsADetachedConnLeavesTheNextOneAlone(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		for how, end := range map[string]func(w *deviceWorld, c *push.Conn, becomes func()){
			"Close": func(w *deviceWorld, c *push.Conn, becomes func()) {
				becomes()
				c.Close("it is over")
			},
			"Kick of the Conn": func(w *deviceWorld, c *push.Conn, becomes func()) {
				becomes()
				if n, err := w.Kick(t.Context(), push.Audience{Conn: c.ID()}, "it is over"); n != 0 || err != nil {
					t.Errorf("%d are kicked, %v; want nobody", n, err)
				}
			},
			"Kick while it is replaced": func(w *deviceWorld, c *push.Conn, becomes func()) {
				ctx := meanwhile{t.Context(), sync.OnceFunc(becomes)}
				if n, err := w.Kick(ctx, push.Audience{User: "alice"}, "it is over"); n != 0 || err != nil {
					t.Errorf("%d are kicked, %v; want nobody", n, err)
				}
			},
		} {
			for _, next := range []string{"alice", "bob", ""} { // whose it is then
				var notes diary
				w := door.world(t, push.Config{OnDisconnect: func(c *push.Conn, why push.Reason) {
					if !aPage(c) {
						notes.note("%s's %s %s", c.UserID(), c.Login().DeviceID, why)
					}
				}})
				d := w.binds("alice", "device=first")
				synctest.Wait() // it was connected: who ends before has no hooks
				first := d.conn()
				var newer *device
				end(w, first, func() {
					newer = w.binds("alice", "device=newer")
					d.wantKick("first", "alice")
					synctest.Wait() // so was this one
					if next != "" {
						d.bind(next)
					}
					synctest.Wait()
				})
				want := []string{"alice's first replaced"}
				if next == "alice" {
					newer.wantKick("newer", "alice")
					want = append(want, "alice's newer replaced")
				}
				d.wantOpen(10 * time.Second)
				newer.wantNothing()
				notes.want(t, want...)
				if c := d.conn(); next == "" && c != nil || next != "" && (c == nil || c == first || c.UserID() != next) {
					t.Errorf("%s, then %q: its Conn is %v", how, next, c)
				}
				if next != "" {
					r, err := w.PushToUser(t.Context(), next, push.Message{Data: next, Ack: push.AutoAck})
					if r.Acked != 1 || r.Targets != 1 {
						t.Errorf("%s, then %q: a push has %+v, %v", how, next, r, err)
					}
					d.wantPush(strconv.Quote(next))
				}
				if s := w.Stats(); s.Closed[push.ReasonKicked] != 0 {
					t.Errorf("%s, then %q: %d closed as kicked", how, next, s.Closed[push.ReasonKicked])
				}
			}
		}
	})
}

// TestOnConnectsOwnPushesKeepTheirOrder, those that want an ack and those that
// do not, also while answers let go what the window held; everybody else's come
// behind.
func TestOnConnectsOwnPushesKeepTheirOrder(t *testing.T) {
	overDoorsAndSockets(t, func(t *testing.T, start func(push.Config) *deviceWorld) {
		const rounds, behind, more = 40, 150, 50
		const n = rounds * (2 + behind + more)
		begun, goOn := make(chan struct{}), make(chan struct{})
		w := start(push.Config{
			MPush:  push.MPush{Window: 1},
			Limits: push.Limits{AcksWaiting: -1, QueueBytes: -1, QueueMessages: -1, AckTimeout: time.Minute},
			OnConnect: func(ctx context.Context, c *push.Conn) {
				if aPage(c) {
					return
				}
				close(begun)
				<-goOn
				next := 0
				pushes := func(n int, m push.Message) {
					for range n {
						m.Data = next
						if _, err := c.Push(ctx, m); err != nil {
							t.Errorf("push %d: %v", next, err)
						}
						next++
					}
				}
				for range rounds {
					var acked [2]chan struct{}
					for i := range acked { // the second waits for the first one's answer
						acked[i] = make(chan struct{})
						pushes(1, push.Message{Ack: push.Ack(1 + i), Async: true, Progress: func(push.Receipt) { close(acked[i]) }})
					}
					pushes(behind, push.Message{})
					<-acked[0]
					pushes(more, push.Message{}) // while those before are being written
					<-acked[1]
				}
			},
		})
		d := w.shakesHands()
		d.bind("alice")
		<-begun
		w.PushToUser(t.Context(), "alice", push.Message{Data: "other"})
		w.Broadcast(t.Context(), push.Message{Data: "other"})
		close(goOn)
		d.waitFor("all pushes", func() bool { return len(d.got) >= n+2 })
		for i, p := range d.taken() {
			want := strconv.Itoa(i)
			if i >= n {
				want = `"other"`
			}
			if p.cmd != mpush.CmdPush || p.content() != want {
				t.Fatalf("at place %d of %d came %v, want %s", i, n+2, p, want)
			}
		}
	})
}

// TestABindIsAnsweredThoughItsConnIsReplacedMeanwhile, and makes a new one.
func TestABindIsAnsweredThoughItsConnIsReplacedMeanwhile(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		for _, next := range []string{"bob", "alice"} {
			var notes diary
			w := door.world(t, push.Config{
				Authenticate: func(_ context.Context, l *push.Login) (string, error) {
					if l.Token == "slow" {
						if l.Conn == nil || l.Conn.UserID() != "alice" {
							t.Errorf("the gate is asked about a later BIND with %v", l.Conn)
						}
						time.Sleep(2 * time.Second)
					}
					return l.UserID, nil
				},
				OnConnect: func(_ context.Context, c *push.Conn) {
					if !aPage(c) {
						notes.note("%s connects as %s", c.Login().DeviceID, c.UserID())
					}
				},
				OnDisconnect: func(c *push.Conn, why push.Reason) {
					if !aPage(c) {
						notes.note("%s, %s, is %s", c.Login().DeviceID, c.UserID(), why)
					}
				},
			})
			d := w.binds("alice", "device=first")
			synctest.Wait()
			old := d.conn()
			begin := time.Now()
			d.asksToBind(next, "data=slow")
			synctest.Wait()
			newer := w.binds("alice", "device=newer")
			d.wantKick("first", "alice")
			p := d.wantOK(mpush.CmdBind, "bind success")
			if after := p.at.Sub(begin); after != 2*time.Second {
				t.Errorf("answered after %v", after)
			}
			d.wantNothing() // it had no user that it could have left
			if c := d.conn(); c == nil || c.ID() == old.ID() || c.UserID() != next {
				t.Fatalf("it is %v, want a new Conn of %s", c, next)
			}
			want := []string{"first connects as alice", "first, alice, is replaced", "newer connects as alice", "first connects as " + next}
			if next == "alice" {
				newer.wantKick("newer", "alice")
				want = slices.Insert(want, 3, "newer, alice, is replaced")
			}
			got := notes.all()
			slices.Sort(got) // hooks of two devices have no order
			if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
				t.Errorf("hooks ran as %q, want %q", got, want)
			}
			r, err := w.PushToUser(t.Context(), next, push.Message{Data: 1, Ack: push.BizAck})
			if r.Acked != 1 || r.Targets != 1 {
				t.Errorf("a push to %s: %+v, %v", next, r, err)
			}
			d.wantPush("1")
			newer.wantNothing()
		}
	})
}

// TestWhoGivesUpWhileItIsHeldHoldsNobodyUp: what waits behind it alone goes out
// at that moment, and not with the next answer.
func TestWhoGivesUpWhileItIsHeldHoldsNobodyUp(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{MPush: push.MPush{Window: 1}, Limits: push.Limits{AckTimeout: 8 * time.Second}})
		d := w.binds("alice", "data=room")
		d.onAck(mute)
		begin := time.Now()
		first := make(chan push.Receipt)
		go func() {
			r, _ := w.PushToUser(context.Background(), "alice", push.Message{Data: "first", Ack: push.AutoAck})
			first <- r
		}()
		d.wantPush(`"first"`)
		held := make(chan push.Receipt)
		for range 2 {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				r, _ := w.PushToUser(ctx, "alice", push.Message{Data: "held", Ack: push.BizAck})
				held <- r
			}()
		}
		synctest.Wait()
		if r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: 1}); r.Sent != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		w.PushToRoom(t.Context(), "room", push.Message{Data: 2})
		w.Broadcast(t.Context(), push.Message{Data: 3})
		d.wantOpen(time.Second - time.Millisecond)
		last := d.wantPush("1", "2", "3")
		if after := last.at.Sub(begin); after != time.Second {
			t.Errorf("what stood behind it came after %v, want a second", after)
		}
		for range 2 {
			wantStatus(t, <-held, push.Overloaded)
		}
		// With nothing held, what wants no answer goes at once.
		w.PushToUser(t.Context(), "alice", push.Message{Data: 4})
		if p := d.wantPush("4"); p.at.Sub(begin) != time.Second {
			t.Errorf("one more came after %v", p.at.Sub(begin))
		}
		r := <-first
		wantStatus(t, r, push.Timeout)
		if s := w.Stats(); s.QueuedBytes != 0 || r.Deliveries[0].Latency != 8*time.Second {
			t.Errorf("%d bytes are left; the first one gave up after %v", s.QueuedBytes, r.Deliveries[0].Latency)
		}
	})
}

// TestLargePushesDoNotOverflowADevice: inside the window as many are on their
// way as the queue takes. Of the others as many wait as are held, and who is
// told to come back later does.
func TestLargePushesDoNotOverflowADevice(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		const n, size = 50, 200 << 10
		w := door.world(t, push.Config{MPush: push.MPush{CompressOver: -1}}) // which takes its time, for nothing
		d := w.binds("alice")
		content := make([]byte, size)
		rand.Read(content)
		if door.json {
			content = []byte(base64.StdEncoding.EncodeToString(content))[:size]
		}
		d.pause()
		var all sync.WaitGroup
		var refused atomic.Int64
		for i := range n {
			all.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond) // each at a moment of its own, also later
				for {
					r, err := w.PushToUser(context.Background(), "alice", push.Message{Data: content, Ack: push.AutoAck})
					if len(r.Deliveries) == 1 && r.Deliveries[0].Status == push.Overloaded {
						refused.Add(1)
						time.Sleep(time.Second)
						continue
					}
					if r.Acked != 1 {
						t.Errorf("push %d: %+v, %v", i, r, err)
					}
					return
				}
			})
		}
		time.Sleep(3 * time.Second)
		d.resume()
		all.Wait()
		synctest.Wait()
		got := d.taken()
		for _, p := range got {
			if p.cmd != mpush.CmdPush || p.content() != string(content) {
				t.Fatalf("got %v", p)
			}
		}
		if len(got) != n {
			t.Errorf("%d came, want %d", len(got), n)
		}
		d.wantOpen(time.Minute)
		if s := w.Stats(); s.QueuedBytes != 0 || total(s.Closed) != 0 || s.Limited["window"] != uint64(refused.Load()) || refused.Load() == 0 {
			t.Errorf("%d bytes are left, closed %v, limited %v, %d pushes were refused", s.QueuedBytes, s.Closed, s.Limited, refused.Load())
		}
	})
}

// TestOfManyLoginsAtOnceEachThatIsReplacedIsToldOnce, and each is counted once.
func TestOfManyLoginsAtOnceEachThatIsReplacedIsToldOnce(t *testing.T) {
	overDoorsAndSockets(t, func(t *testing.T, start func(push.Config) *deviceWorld) {
		const n = 16
		w := start(push.Config{})
		var before uint64
		for range 4 {
			var all []*device
			for range n {
				all = append(all, w.shakesHands())
			}
			var ready, done sync.WaitGroup
			begin := make(chan struct{})
			for _, d := range all {
				login := d.bindPacket("alice")
				ready.Add(1)
				done.Go(func() {
					ready.Done()
					<-begin
					d.raw(login)
				})
			}
			ready.Wait()
			close(begin)
			done.Wait()
			count := func(d *device, cmd mpush.Cmd) (n int) {
				for _, p := range d.got {
					if p.cmd == cmd {
						n++
					}
				}
				return n
			}
			for _, d := range all { // whoever has its OK has told those whom it replaced
				d.waitFor("its OK", func() bool { return count(d, mpush.CmdOK) == 1 })
			}
			var stays []*device
			for _, d := range all {
				if d.conn() != nil {
					stays = append(stays, d)
				}
			}
			if len(stays) != 1 {
				t.Fatalf("%d are in the place, want 1", len(stays))
			}
			for _, d := range all { // with another answer, all that was sent before has come
				d.asksToUnbind("alice")
				d.waitFor("its OK", func() bool { return count(d, mpush.CmdOK) == 2 })
				want := 1
				if d == stays[0] {
					want = 0
				}
				if got := count(d, mpush.CmdKick); got != want {
					t.Errorf("%s (stays: %v) got %d KICKs, want %d", d.is.DeviceID, d == stays[0], got, want)
				}
			}
			detached := w.Stats().Detached
			if detached-before != n-1 {
				t.Errorf("%d are counted as detached, want %d", detached-before, n-1)
			}
			before = detached
			for _, d := range all {
				d.vanishes()
			}
		}
	})
}

// TestAMessageOfADetachedDeviceIsNobodys: it does not reach the handler as the
// old user's, also when the connection ends before its turn comes.
func TestAMessageOfADetachedDeviceIsNobodys(t *testing.T) {
	for _, before := range []string{"a message", "a BIND that fails", "a BIND"} { // that its messages wait for
		for _, ends := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, ends %v", before, ends), func(t *testing.T) {
				overDoors(t, func(t *testing.T, door door) {
					var notes diary
					w := door.world(t, push.Config{
						Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
							switch l.Token {
							case "fails":
								<-ctx.Done()
								time.Sleep(50 * time.Millisecond)
							case "slow":
								time.Sleep(2 * time.Second)
							}
							return l.UserID, nil
						},
						OnMessage: func(_ context.Context, c *push.Conn, m *push.Received) (any, error) {
							notes.note("%s of %s", m.Bytes(0), c.UserID())
							if string(m.Bytes(0)) == "slow" {
								time.Sleep(2 * time.Second)
							}
							return nil, nil
						},
					})
					d := w.binds("alice", "device=first")
					synctest.Wait()
					var want []string
					switch before {
					case "a message":
						d.push("slow", 0)
						want = []string{"slow of alice"} // it came in time
					case "a BIND that fails":
						d.asksToBind("bob", "data=fails")
					default:
						d.asksToBind("bob", "data=slow")
					}
					for range 3 {
						d.push("late", mpush.FlagAutoAck)
					}
					synctest.Wait()
					newer := w.binds("alice", "device=newer")
					d.wantKick("first", "alice")
					received, discarded := uint64(len(want)), uint64(3)
					switch {
					case ends:
						d.vanishes()
					case before == "a BIND": // then they are bob's
						received, discarded = 3, 0
						if p := d.next(); p.cmd != mpush.CmdOK || p.ok().Data != "bind success" {
							t.Errorf("got %v, want its OK", p)
						}
						for range 3 {
							want = append(want, "late of bob")
							if p := d.next(); p.cmd != mpush.CmdAck {
								t.Errorf("got %v, want an ACK", p)
							}
						}
					}
					time.Sleep(10 * time.Second)
					synctest.Wait()
					if !ends {
						d.wantNothing()
					}
					newer.wantNothing()
					notes.want(t, want...)
					if s := w.Stats(); s.Received != received || s.Discarded != discarded {
						t.Errorf("Stats count %d received, %d discarded, want %d and %d", s.Received, s.Discarded, received, discarded)
					}
				})
			})
		}
	}
}

// TestShutdownDoesNotWaitForDevicesThatWereTold to close, at whatever moment it
// comes.
func TestShutdownDoesNotWaitForDevicesThatWereTold(t *testing.T) {
	for what, ending := range map[string]func(t *testing.T, w *deviceWorld, d *device){
		"Kick":  func(t *testing.T, w *deviceWorld, d *device) { w.Kick(t.Context(), push.Audience{User: "alice"}, "") },
		"Close": func(t *testing.T, w *deviceWorld, d *device) { d.conn().Close("") },
		"a refusal": func(t *testing.T, w *deviceWorld, d *device) {
			d.asksToBind("mallory")
			synctest.Wait()
		},
		"a panic": func(t *testing.T, w *deviceWorld, d *device) {
			d.push("panic", 0)
			synctest.Wait()
		},
		"a newer login": func(t *testing.T, w *deviceWorld, d *device) {
			w.binds("alice")
			d.wantKick(d.is.DeviceID, "alice")
		},
	} {
		t.Run(what, func(t *testing.T) {
			overDoors(t, func(t *testing.T, door door) {
				for _, later := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second} { // the refusal is told after two
					w := door.world(t, push.Config{
						Authenticate: func(_ context.Context, l *push.Login) (string, error) {
							if l.UserID == "mallory" {
								return "", push.ErrUnauthorized
							}
							return l.UserID, nil
						},
						OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { panic("hook") },
						MPush:     push.MPush{CloseKicked: true},
					})
					d := w.binds("alice")
					if later > 0 {
						time.Sleep(time.Second) // not as young as in the first round
					}
					ending(t, w, d)
					time.Sleep(later)
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					begin := time.Now()
					if err := w.Shutdown(ctx); err != nil {
						t.Errorf("after %v: Shutdown: %v", later, err)
					}
					if took := time.Since(begin); took > 1200*time.Millisecond {
						t.Errorf("after %v: it took %v", later, took)
					}
					cancel()
					d.tail(time.Millisecond)
					synctest.Wait()
					if s := w.Stats(); s.Sockets != 0 || s.Conns != 0 || total(s.Closed) != s.Accepted {
						t.Errorf("after %v: %d sockets, %d connections, %d of %d closed", later, s.Sockets, s.Conns, total(s.Closed), s.Accepted)
					}
				}
			})
		})
	}
}

// TestWhatEndsADeviceEndsItSlowly: one that is closed at once comes back at
// once.
func TestWhatEndsADeviceEndsItSlowly(t *testing.T) {
	login := func(more ...string) func(*deviceWorld) *device {
		return func(w *deviceWorld) *device {
			d := w.shakesHands()
			d.asksToBind("alice", more...)
			return d
		}
	}
	hook := func(user string) func(*deviceWorld) *device {
		return func(w *deviceWorld) *device {
			d := w.binds(user)
			d.push("hello", mpush.FlagAutoAck)
			return d
		}
	}
	for what, c := range map[string]struct {
		does  func(*deviceWorld) *device
		text  string // of the ERROR, if there is one
		why   push.Reason
		panic bool
	}{
		"OnConnect panics":       {func(w *deviceWorld) *device { return w.binds("in OnConnect") }, "", push.ReasonPanic, true},
		"OnMessage panics":       {hook("in OnMessage"), "", push.ReasonPanic, true},
		"OnConnect ends its end": {func(w *deviceWorld) *device { return w.binds("in OnConnect, Goexit") }, "", push.ReasonPanic, true},
		"OnMessage ends its end": {hook("in OnMessage, Goexit"), "", push.ReasonPanic, true},
		"a long token":           {login("data=" + strings.Repeat("x", 4<<10+1)), "bind failed", push.ReasonRefused, false},
		"a very long token":      {login("data=" + strings.Repeat("x", 40<<10)), "bind failed", push.ReasonRefused, false},
		"too many tags":          {login("tags=" + tagList(33)), "bind failed", push.ReasonRefused, false},
		"far too many tags":      {login("tags=" + tagList(5000)), "bind failed", push.ReasonRefused, false},
		"a long tag":             {login("tags=" + strings.Repeat("x", 65)), "bind failed", push.ReasonRefused, false},
	} {
		t.Run(what, func(t *testing.T) {
			overDoors(t, func(t *testing.T, door door) {
				for delay, want := range map[time.Duration]time.Duration{0: 2 * time.Second, time.Second / 2: time.Second / 2} {
					asked := false
					fails := func(where string, c *push.Conn) {
						switch c.UserID() {
						case "in " + where:
							panic("hook")
						case "in " + where + ", Goexit":
							runtime.Goexit()
						}
					}
					w := door.world(t, push.Config{
						MPush: push.MPush{RefuseDelay: delay},
						Authenticate: func(_ context.Context, l *push.Login) (string, error) {
							asked = asked || l.UserID == "alice"
							return l.UserID, nil
						},
						OnConnect: func(_ context.Context, c *push.Conn) { fails("OnConnect", c) },
						OnMessage: func(_ context.Context, c *push.Conn, _ *push.Received) (any, error) {
							fails("OnMessage", c)
							return nil, nil
						},
					})
					other := w.binds("bob")
					begin := time.Now()
					d := c.does(w)
					d.wantOpen(time.Until(begin.Add(want - time.Millisecond)))
					if c.text != "" {
						if p := d.wantError(mpush.CmdBind, 0, c.text); p.at.Sub(begin) != want {
							t.Errorf("it is told after %v, want %v", p.at.Sub(begin), want)
						}
					}
					d.wantOpen(time.Until(begin.Add(want + 3*time.Second - time.Millisecond)))
					d.wantClosed(time.Millisecond)
					other.wantNothing()
					synctest.Wait()
					s := w.Stats()
					panics, refused := uint64(0), uint64(1)
					if c.panic {
						panics, refused = 1, 0
					}
					if s.Closed[c.why] != 1 || total(s.Closed) != 1 || s.Panics != panics || s.Refused["bad_request"] != refused || total(s.Refused) != refused || s.Conns != 1 {
						t.Errorf("closed %v, refused %v, %d panics, %d connections", s.Closed, s.Refused, s.Panics, s.Conns)
					}
					if asked {
						t.Error("the gate was asked")
					}
				}
			})
		})
	}
}

// TestSocketsAreAllThereAre, connections those that have or had a user.
func TestSocketsAreAllThereAre(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		want := func(what string, sockets, conns int) {
			t.Helper()
			synctest.Wait()
			if s := w.Stats(); s.Sockets != sockets || s.Conns != conns || len(w.conns()) != conns {
				t.Errorf("%s: %d sockets, %d connections (%d), want %d and %d", what, s.Sockets, s.Conns, len(w.conns()), sockets, conns)
			}
		}
		want("nobody", 0, 0)
		fresh := w.dialsIn()
		if door.sniff {
			want("a page", 1, 1)
		} else {
			want("a device that said nothing", 1, 0)
		}
		fresh.handshake()
		want("a device that is not bound", 1, 0)
		old := w.binds("alice")
		want("a bound one, too", 2, 1)
		newer := w.binds("alice")
		old.wantKick(old.is.DeviceID, "alice")
		want("the first is detached", 3, 1)
		newer.unbind("alice")
		want("the other has given its user up", 3, 1)
		page := w.connect("bob")
		want("a page as well", 4, 2)
		old.bind("carol")
		want("the detached one is back", 4, 3)
		fresh.vanishes()
		want("who was never bound leaves", 3, 3)
		again := w.binds("carol")
		old.wantKick(old.is.DeviceID, "carol")
		want("it is detached again", 4, 3)
		old.vanishes()
		want("and leaves", 3, 3)
		newer.vanishes()
		page.vanishes()
		again.vanishes()
		want("all leave", 0, 0)
		if s := w.Stats(); total(s.Closed) != s.Accepted || s.Detached != 2 {
			t.Errorf("%d of %d closed, %d detached", total(s.Closed), s.Accepted, s.Detached)
		}
	})
}

// TestAnEndDoesNotDisturbAHandshake that is being decrypted when more bytes are
// there already: nothing is read before that is done. In real time, for it
// takes one processor to decrypt while another ends the connection; the race
// detector tells.
func TestAnEndDoesNotDisturbAHandshake(t *testing.T) {
	own, err := rsa.GenerateKey(rand.Reader, 2048) // which is slower than the stock key
	if err != nil {
		t.Fatal(err)
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(own)})
	der, err := x509.MarshalPKIXPublicKey(&own.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public, err := mpush.ParsePublicKey(der)
	if err != nil {
		t.Fatal(err)
	}
	const early = 100 * time.Millisecond // LoginTimeout, and as long as Shutdown leaves the young alone
	for _, door := range []door{doorTCP, doors[3]} {
		for _, by := range []string{"LoginTimeout", "Shutdown"} {
			t.Run(door.name+", "+by, func(t *testing.T) {
				for range 2 {
					cfg := push.Config{
						Heartbeat: 50 * time.Millisecond, // then it looks every 10 ms for who is late
						MPush:     push.MPush{PrivateKey: private},
					}
					if by == "LoginTimeout" {
						cfg.Limits.LoginTimeout = early
					}
					w := door.socketWorld(t, cfg)
					var all []*device
					var writes [][]byte
					for range 16 {
						d := w.dialsIn("os="+strings.Repeat("x", 600), "osversion="+strings.Repeat("x", 600), "version="+strings.Repeat("x", 600))
						d.mu.Lock()
						d.first, _ = mpush.NewCipher(d.is.ClientKey, d.is.IV)
						d.mu.Unlock()
						body, err := public.Encrypt(d.is.Append(nil)) // eight blocks, which take their time
						if err != nil {
							t.Fatal(err)
						}
						all = append(all, d)
						writes = append(writes, bytes.Repeat(mpush.AppendPacket(nil, mpush.CmdHandshake, mpush.FlagCrypto, 1, body), 3))
					}
					settles(t, "all are in", func() bool { return w.Stats().Accepted == uint64(len(all)) })
					<-time.After(time.Until(all[len(all)-1].born.Add(early * 9 / 10)))
					for i, d := range all {
						d.raw(writes[i])
					}
					if by == "Shutdown" {
						ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
						if err := w.Shutdown(ctx); err != nil {
							t.Errorf("Shutdown: %v", err)
						}
						cancel()
					}
					for _, d := range all {
						if by == "LoginTimeout" { // some were in time
							d.waitFor("an answer, or the end", func() bool { return len(d.got) > 0 || d.err != nil })
							d.vanishes()
						}
						d.tail(5 * time.Second)
					}
					settles(t, "nobody is left", func() bool {
						s := w.Stats()
						return s.Sockets == 0 && s.Pending == 0 && s.Conns == 0 && total(s.Closed) == s.Accepted
					})
				}
			})
		}
	}
}

// TestAPageThatTurnsCountsAsPending: with as many as may be, it is told to try
// later.
func TestAPageThatTurnsCountsAsPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var notes diary
		sniffed := doors[len(doors)-1]
		w := sniffed.world(t, push.Config{
			Limits: push.Limits{MaxPending: 2},
			OnDisconnect: func(c *push.Conn, why push.Reason) {
				if aPage(c) {
					notes.note("%s", why)
				}
			},
		})
		early, late := w.dialsIn(), w.dialsIn()
		synctest.Wait()
		w.door = doorJSON
		for range 2 {
			w.dialsIn()
		}
		for i, page := range []*device{early, late} {
			page.raw(page.hello())
			page.wantClosed(time.Second)
			page.wantCode(1013)
			synctest.Wait()
			if s := w.Stats(); s.Refused["max_pending"] != uint64(i+1) || s.Closed[push.ReasonRefused] != uint64(i+1) || s.Pending != 2 || s.Conns != 1-i {
				t.Errorf("refused %v, closed %v, %d pending, %d connections", s.Refused, s.Closed, s.Pending, s.Conns)
			}
		}
		notes.want(t, "refused", "refused")

		// When they have logged in, or have not in time, there is room.
		time.Sleep(12 * time.Second)
		w.door = sniffed
		w.binds("alice")
		if s := w.Stats(); s.Pending != 0 || s.Conns != 1 {
			t.Errorf("%d pending, %d connections", s.Pending, s.Conns)
		}
		notes.want(t, "refused", "refused", "replaced")
	})
}

package test

import (
	"context"
	"encoding/json"
	"errors"
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

// block is a push of about n bytes whose number its reader can check.
func block(number, n int) push.Message {
	return push.Message{Event: "n", Data: map[string]any{"n": number, "pad": strings.Repeat("x", n)}}
}

// numbers are those of the blocks among what came; others are -1.
func numbers(got []envelope) (list []int) {
	for _, m := range got {
		v := struct {
			N *int `json:"n"`
		}{}
		if json.Unmarshal(m.Data, &v) != nil || v.N == nil {
			list = append(list, -1)
		} else {
			list = append(list, *v.N)
		}
	}
	return list
}

// wantPrefix wants numbers to be 0, 1, 2 … without a gap.
func wantPrefix(t testing.TB, p *page, list []int) {
	t.Helper()
	for i, n := range list {
		if n != i {
			t.Errorf("%s got %v, want 0, 1, 2 … without a gap", p.device, list)
			return
		}
	}
}

// everyAck runs a test for every proof of arrival.
func everyAck(t *testing.T, f func(t *testing.T, ack push.Ack)) {
	for ack, name := range []string{"no ack", "auto ack", "biz ack"} {
		t.Run(name, func(t *testing.T) { f(t, push.Ack(ack)) })
	}
}

func TestPushOverTheQueueIsSlowForThatDeviceAlone(t *testing.T) {
	everyAck(t, func(t *testing.T, ack push.Ack) {
		overPages(t, func(t *testing.T, dialect string) {
			w := newWorld(t, push.Config{Limits: push.Limits{QueueBytes: 64 << 10}})
			w.dialect = dialect
			slow, fine := w.connect("alice"), w.connect("alice")
			slow.pause()
			begin := time.Now()
			for n := 0; ; n++ {
				if n > 1000 {
					t.Fatal("a page that reads nothing is never too slow")
				}
				m := block(n, 4<<10)
				// What stands in the queue has its status by itself only
				// without an ack: the last push alone asks for one.
				r, err := w.PushToUser(t.Context(), "alice", m)
				if err != nil {
					t.Fatal(err)
				}
				fine.wantPush("n")
				if r.Failed > 0 {
					wantStatus(t, r, push.Sent, push.Slow)
					for _, d := range r.Deliveries {
						if (d.Status == push.Slow) != (d.DeviceID == slow.device) {
							t.Errorf("%v for %s", d.Status, d.DeviceID)
						}
					}
					return
				}
				if ack == push.NoAck {
					continue
				}
				// The same with an ack: a page that reads answers, the other
				// one cannot, so only its being slow ends the wait at once.
				m.Ack, m.Async = ack, true
				told := make(chan push.Receipt, 1000)
				m.Progress = func(r push.Receipt) { told <- r }
				if _, err := w.PushToUser(t.Context(), "alice", m); err != nil {
					t.Fatal(err)
				}
				fine.wantPush("n")
				synctest.Wait()
				if slow.conn() != nil {
					continue
				}
				if d := time.Since(begin); d > 5*time.Second {
					t.Errorf("it took %v", d)
				}
				var last push.Receipt
				for range len(told) {
					last = <-told
				}
				wantStatus(t, last, push.Acked, push.Slow)
				if got := w.Stats().Deliveries["slow"]; got != 1 {
					t.Errorf("Stats count %d slow deliveries, want 1", got)
				}
				return
			}
		})
	})
}

// TestSlowPageGetsTheFrameInFlightThen4408: the client reads on after it was
// given up.
func TestSlowPageGetsTheFrameInFlightThen4408(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		for _, size := range []int{100, 5000, 100_000} {
			w := start(push.Config{Limits: push.Limits{QueueBytes: 256 << 10}})
			p := w.connect("alice")
			p.pause()
			sent := 0
			for {
				r, err := w.PushToUser(t.Context(), "alice", block(sent, size))
				if err != nil {
					if !errors.Is(err, push.ErrSlow) {
						t.Fatal(err)
					}
					wantStatus(t, r, push.Slow)
					break
				}
				sent++
			}
			p.resume()
			err := p.end()
			if closed := new(websocket.CloseError); !errors.As(err, &closed) || closed.Code != 4408 {
				t.Errorf("%d bytes: ended with %v, want 4408", size, err)
			}
			got := numbers(p.taken())
			wantPrefix(t, p, got)
			if len(got) >= sent {
				t.Errorf("%d bytes: got %d of %d, want what was on its way and no more", size, len(got), sent)
			}
			w.PushToUser(t.Context(), "alice", block(0, 1)) // too late
		}
	})
}

func TestSlowPageThatTakesNothingIsResetAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		w := newWorld(t, push.Config{OnDisconnect: func(c *push.Conn, why push.Reason) { d.note("%s", why) }})
		p := w.connect("alice")
		p.pause()
		for n := 0; w.Online("alice"); n++ {
			w.PushToUser(t.Context(), "alice", block(n, 10_000))
			synctest.Wait() // the socket is full before the queue is
		}
		begin := time.Now()
		synctest.Wait()
		d.want(t, "slow") // told at once
		if w.Stats().Closed[push.ReasonSlow] != 0 {
			t.Error("the socket is closed before its second is over")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if s := w.Stats(); s.Closed[push.ReasonSlow] != 1 || s.QueuedBytes != 0 {
			t.Errorf("%v after being slow: %+v", time.Since(begin), s)
		}
		p.resume()
		err := p.end()
		got := numbers(p.taken())
		if endedWith(err, 4408) {
			t.Errorf("ended with %v after %v, want a socket that was cut", err, got)
		}
		wantPrefix(t, p, got)
	})
}

func TestQueueFromWhichNothingLeavesIsGivenUpAfterWriteTimeout(t *testing.T) {
	overWebSockets(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{Limits: push.Limits{WriteTimeout: 4 * time.Second}})
		w.dialect = dialect
		slow, fine := w.connect("alice"), w.connect("bob")
		slow.pause()
		for n := range 8 {
			if r, err := w.PushToUser(t.Context(), "alice", block(n, 20_000)); err != nil {
				t.Fatal(n, r, err)
			}
		}
		begin := time.Now()
		for w.Online("alice") {
			time.Sleep(100 * time.Millisecond)
			if time.Since(begin) > 10*time.Second {
				t.Fatal("still there")
			}
		}
		if took := time.Since(begin); took < 4*time.Second || took > 6*time.Second+100*time.Millisecond {
			t.Errorf("given up after %v, want 4 to 6 s", took)
		}
		fine.wantNothing()
		if got := w.Stats().Closed[push.ReasonSlow]; got != 0 {
			t.Errorf("closed %d before the second is over", got)
		}
		slow.resume()
		if err := slow.end(); !endedWith(err, 4408) {
			t.Errorf("ended with %v, want 4408", err)
		}
		wantPrefix(t, slow, numbers(slow.taken()))
	})
}

// TestPageThatReadsSlowlyButSteadilyStays: it is not the time that a message
// waits that counts.
func TestPageThatReadsSlowlyButSteadilyStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Limits: push.Limits{WriteTimeout: 3 * time.Second}})
		p := w.connect("alice")
		p.pause()
		for n := range 20 {
			if _, err := w.PushToUser(t.Context(), "alice", block(n, 10_000)); err != nil {
				t.Fatal(err)
			}
		}
		for range 12 { // of gorilla's reads: 4 KiB at most
			synctest.Wait()
			p.readsOnce()
			time.Sleep(time.Second)
		}
		if !w.Online("alice") {
			t.Error("closed, though it read every second")
		}
		p.resume()
		p.waitFor("all", func() bool { return len(p.got) == 20 })
		wantPrefix(t, p, numbers(p.taken()))
	})
}

func TestTotalQueueBytesClosesTheFullest(t *testing.T) {
	overWebSockets(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{Limits: push.Limits{QueueBytes: 1 << 20, TotalQueueBytes: 600 << 10}})
		w.dialect = dialect
		// The stream takes 64 KiB of each; the rest is queued.
		fullest, fuller, full, fine := w.connect("fullest"), w.connect("fuller"), w.connect("full"), w.connect("fine")
		for i, p := range []*page{full, fuller, fullest} {
			p.pause()
			for n := range 16 + 6*i {
				if r, err := w.PushToUser(t.Context(), string([]string{"full", "fuller", "fullest"}[i]), block(n, 10_000)); err != nil {
					t.Fatal(r, err)
				}
				synctest.Wait() // for the stream to take what it takes, however busy the machine
			}
		}
		if s := w.Stats(); s.QueuedBytes < 300<<10 || s.QueuedBytes > 600<<10 || s.Conns != 4 {
			t.Fatalf("the test's sizes are off: %+v", s)
		}
		for n := 0; w.Online("fullest"); n++ {
			r, err := w.PushToUser(t.Context(), "full", block(16+n, 10_000))
			if err != nil {
				t.Fatalf("the push that needs the room: %+v, %v", r, err)
			}
			if n > 40 {
				t.Fatal("nobody is closed")
			}
		}
		for _, user := range []string{"fuller", "full", "fine"} {
			if !w.Online(user) {
				t.Errorf("%s is closed, want only the fullest", user)
			}
		}
		fullest.resume()
		if err := fullest.end(); !endedWith(err, 4408) {
			t.Errorf("the fullest ended with %v, want 4408", err)
		}
		wantPrefix(t, fullest, numbers(fullest.taken()))
		for _, p := range []*page{fuller, full} {
			p.resume()
		}
		synctest.Wait()
		wantPrefix(t, fuller, numbers(fuller.taken()))
		wantPrefix(t, full, numbers(full.taken()))
		fine.wantNothing()
		if s := w.Stats(); s.QueuedBytes != 0 || s.Closed[push.ReasonSlow] != 1 {
			t.Errorf("%+v", s)
		}
	})
}

type paddedNumber struct {
	numbered
	Pad string `json:"pad"`
}

// TestWhoLostAFrameNeverGetsALaterOne pushes from several goroutines, in small
// and large places, to pages that stop and go on reading.
func TestWhoLostAFrameNeverGetsALaterOne(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		w := start(push.Config{Limits: push.Limits{QueueBytes: 8 << 10, MaxConnsPerUser: -1}})
		const senders, pushes = 4, 150
		pad := strings.Repeat("x", 700)
		var pages []*page
		for i := range 70 {
			w.dialect = anyWebSocket(i)
			pages = append(pages, w.connect("alice", "token=hall"))
		}
		for _, p := range pages[10:] {
			p.pause()
		}
		var all sync.WaitGroup
		for s := range senders {
			all.Go(func() {
				for n := range pushes {
					m := push.Message{Event: "n", Data: paddedNumber{numbered{s, n}, pad}}
					// A gap is visible where every push is for everybody.
					switch n % 3 {
					case 0:
						w.Broadcast(t.Context(), m)
					case 1:
						w.PushToUser(t.Context(), "alice", m)
					default:
						w.PushToRoom(t.Context(), "hall", m)
					}
					if p := pages[10+(n*senders+s)%60]; n%5 == 0 {
						p.resume()
						if n%10 == 0 {
							p.pause()
						}
					}
				}
			})
		}
		all.Wait()
		for _, p := range pages {
			p.resume()
		}
		w.Shutdown(t.Context())
		slow := 0
		for i, p := range pages {
			err := p.end()
			e := ear{p, map[int][]int{}}
			e.take()
			for s, heard := range e.heard {
				for k, n := range heard {
					if n != k {
						t.Errorf("page %d got %v of sender %d", i, heard, s)
						break
					}
				}
				if endedWith(err, 1001) && len(heard) != pushes {
					t.Errorf("page %d was not closed as slow and got %d of %d", i, len(heard), pushes)
				}
			}
			if endedWith(err, 4408) {
				slow++
			}
		}
		t.Logf("%d of %d pages were slow", slow, len(pages))
	})
}

// TestSlowPageHoldsNobodyUp: 30 MB to a page that reads nothing, while others
// get every broadcast and no push waits.
func TestSlowPageHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		slow := w.connect("slow", "token=room")
		slow.pause()
		var others []*page
		for i := range 100 {
			w.dialect = anyDoor(i)
			others = append(others, w.connect("", "token=room"))
		}
		begin := time.Now()
		var all sync.WaitGroup
		all.Go(func() {
			data := strings.Repeat("x", 1<<20-100)
			for range 30 {
				_, err := w.PushToUser(t.Context(), "slow", push.Message{Data: data})
				if err != nil && !errors.Is(err, push.ErrSlow) && !errors.Is(err, push.ErrOffline) {
					t.Error(err)
				}
				if n := w.Stats().QueuedBytes; n > 3<<20 {
					t.Errorf("%d bytes are queued", n)
				}
			}
		})
		for n := range 50 {
			if _, err := w.PushToRoom(t.Context(), "room", block(n, 10)); err != nil {
				t.Error(err)
			}
		}
		all.Wait()
		synctest.Wait()
		if took := time.Since(begin); took > 0 {
			t.Errorf("pushing took %v of virtual time: somebody waited", took)
		}
		for _, p := range others {
			if got := numbers(p.taken()); len(got) != 50 {
				t.Errorf("%s got %v", p.device, got)
			}
		}
		if got := w.Stats().Deliveries["slow"]; got == 0 {
			t.Error("Stats count no slow delivery")
		}
	})
}

// TestEmptyQueueTakesAnyPushUpToMaxPush: row 136 as compatibility.md A6 has it.
func TestEmptyQueueTakesAnyPushUpToMaxPush(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{Limits: push.Limits{QueueBytes: 1 << 10, MaxPush: 300 << 10}})
		w.dialect = dialect
		p := w.connect("alice")
		data := strings.Repeat("x", 300<<10-len("message")-2)
		if _, err := w.PushToUser(t.Context(), "alice", push.Message{Data: data}); err != nil {
			t.Fatal(err)
		}
		if m := p.wantPush("message"); len(m.Data) != len(data)+2 {
			t.Errorf("got %d bytes", len(m.Data))
		}
		if r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: data + "x"}); !errors.Is(err, push.ErrTooLarge) || r.Targets != 0 {
			t.Errorf("one byte more: %+v, %v, want ErrTooLarge", r, err)
		}
		p.wantNothing()
		if w.Stats().TooLarge != 1 {
			t.Error("not counted")
		}
	})
}

func TestQueueMessagesBoundsSmallPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Limits: push.Limits{QueueMessages: 10, QueueBytes: -1}})
		p := w.connect("alice")
		p.pause()
		var err error
		queued := 0
		w.PushToUser(t.Context(), "alice", block(0, 200_000)) // fills the stream
		synctest.Wait()
		for ; err == nil && queued < 100; queued++ {
			_, err = w.PushToUser(t.Context(), "alice", block(queued+1, 1))
		}
		if !errors.Is(err, push.ErrSlow) || queued != 10 {
			t.Errorf("push %d: %v, want ErrSlow at the tenth behind the one in flight", queued, err)
		}
	})
}

// TestPongsThatNobodyReadsAreBounded: row 83.
func TestPongsThatNobodyReadsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Limits: push.Limits{QueueBytes: 4 << 10}})
		p := w.connect("alice")
		w.net.CutOneWay(serverIP, clientIP)
		payload := []byte(strings.Repeat("x", 125))
		for range 2000 { // ten a second are allowed
			p.ws.WriteControl(websocket.PingMessage, payload, time.Now().Add(time.Second))
			time.Sleep(110 * time.Millisecond)
			if n := w.Stats().QueuedBytes; n > 5<<10 {
				t.Fatalf("%d bytes queued", n)
			}
		}
		if w.Online("alice") {
			t.Error("still there")
		}
		if closed := w.Stats().Closed; closed[push.ReasonSlow] != 1 {
			t.Errorf("closed as %v, want slow", closed)
		}
		w.net.MendAll()
	})
}

// TestCutFramesAreNeverHalf reads raw bytes: what comes before the socket ends
// is whole frames and, if the socket took it, the close frame, whatever was
// queued.
func TestCutFramesAreNeverHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for size := 1000; size < 70_000; size = size*3/2 + 7 {
			w := newWorld(t, push.Config{Limits: push.Limits{QueueBytes: 100 << 10}})
			p := w.connect("alice")
			p.pause()
			for n := 0; w.Online("alice"); n++ {
				w.PushToUser(t.Context(), "alice", block(n, size))
			}
			// It reads within the second, a little at a time.
			for range 8 {
				time.Sleep(100 * time.Millisecond)
				p.readsOnce()
			}
			p.resume()
			if err := p.end(); !endedWith(err, 4408) {
				t.Errorf("%d bytes: ended with %v", size, err)
			}
			wantPrefix(t, p, numbers(p.taken()))
			w.Close()
		}
	})
}

// TestHeldPushesOfASlowOnConnectAreBounded: what waits for OnConnect counts as
// a queue does.
func TestHeldPushesOfASlowOnConnectAreBounded(t *testing.T) {
	everyAck(t, func(t *testing.T, ack push.Ack) {
		synctest.Test(t, func(t *testing.T) {
			blocked := make(chan struct{})
			w := newWorld(t, push.Config{
				OnConnect: func(ctx context.Context, c *push.Conn) { <-blocked },
				Limits:    push.Limits{QueueBytes: 64 << 10},
			})
			defer close(blocked)
			p := w.connect("alice")
			n := 0
			for ; ; n++ {
				m := block(n, 4<<10)
				m.Ack, m.Async = ack, true
				told := make(chan push.Receipt, 10)
				m.Progress = func(r push.Receipt) { told <- r }
				w.PushToUser(t.Context(), "alice", m)
				synctest.Wait()
				if !w.Online("alice") {
					wantStatus(t, <-told, push.Slow)
					break
				}
				if n > 100 {
					t.Fatal("never too slow")
				}
			}
			if n < 14 || n > 17 {
				t.Errorf("held %d of 4 KiB, want about 15", n)
			}
			p.wantClosed(4408)
		})
	})
}

// TestSocketThatEndsIsOffline: a push to a connection that was cut a moment
// ago never panics or blocks.
func TestSocketThatEndsIsOffline(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		w := start(push.Config{Limits: push.Limits{QueueBytes: -1, QueueMessages: -1}}) // or it would be slow as well
		for range 20 {
			p := w.connect("alice")
			var all sync.WaitGroup
			var statuses []push.Status
			all.Go(func() {
				for w.Online("alice") {
					r, err := w.PushToUser(t.Context(), "alice", push.Message{})
					for _, d := range r.Deliveries {
						statuses = append(statuses, d.Status)
					}
					if err != nil && !errors.Is(err, push.ErrOffline) {
						t.Error(err)
					}
				}
			})
			p.vanishes()
			all.Wait()
			slices.Sort(statuses)
			if statuses = slices.Compact(statuses); len(statuses) > 0 && statuses[len(statuses)-1] > push.Offline {
				t.Errorf("statuses %v", statuses)
			}
		}
	})
}

// TestStatsCallSlowOnlyWhoWasSlow, not who was closed for another reason while
// a push was on its way to the shards.
func TestStatsCallSlowOnlyWhoWasSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Limits: push.Limits{QueueBytes: -1, QueueMessages: -1}})
		var conns []*push.Conn
		for range 400 {
			conns = append(conns, w.connect("").conn())
		}
		var all sync.WaitGroup
		var over atomic.Bool
		all.Go(func() {
			for n := 0; !over.Load(); n++ {
				w.Broadcast(t.Context(), block(n, 10))
				pauseFor(5)
			}
		})
		all.Go(func() {
			for _, c := range conns[:300] {
				c.Close("")
				pauseFor(3)
			}
			over.Store(true)
		})
		all.Wait()
		synctest.Wait()
		if s := w.Stats(); s.Closed[push.ReasonSlow] != 0 || s.Deliveries["slow"] != 0 {
			t.Errorf("%d pages closed as slow, %d deliveries counted as slow (%v)", s.Closed[push.ReasonSlow], s.Deliveries["slow"], s.Deliveries)
		}
	})
}

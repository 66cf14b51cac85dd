package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// numbered is what the senders of the order tests push.
type numbered struct {
	Sender int `json:"s"`
	Number int `json:"n"`
}

// ear is what one page heard, by sender.
type ear struct {
	p     *page
	heard map[int][]int
}

// listen takes numbered pushes off a page until done is closed and quiet says
// that nothing more comes.
func (e *ear) take() {
	for _, m := range e.p.taken() {
		var n numbered
		if m.Event == "n" && json.Unmarshal(m.Data, &n) == nil {
			e.heard[n.Sender] = append(e.heard[n.Sender], n.Number)
		}
	}
}

// TestEverySenderIsHeardInOrder lets several goroutines push numbered messages
// of every sort at once, while others come and go, join and leave.
func TestEverySenderIsHeardInOrder(t *testing.T) {
	overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
		const (
			stayers = 80
			senders = 5
			each    = 60
		)
		seed := rand.Uint64()
		defer func() {
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		}()
		w := start(push.Config{Limits: push.Limits{QueueBytes: -1, QueueMessages: -1, AcksWaiting: -1, MaxConnsPerUser: -1, MessageRate: -1}})
		connect := func(i int, more ...string) *page {
			w.dialect = anyDoor(i)
			return w.connect(fmt.Sprintf("u%d", i%20), more...)
		}
		var ears []*ear
		for i := range stayers {
			rooms := "big"
			if i%4 == 0 {
				rooms += " small"
			}
			ears = append(ears, &ear{connect(i, "token="+rooms, "tag="+[]string{"odd", "even"}[i%2]), map[int][]int{}})
		}
		conns := make([]*push.Conn, stayers)
		for i, e := range ears {
			conns[i] = e.p.conn()
		}

		// Who comes and goes sits in the same places, so that members move
		// in the lists and places are rebuilt during walks.
		ctx, stop := context.WithCancel(t.Context())
		var churn sync.WaitGroup
		var movers []*ear
		for i := range 6 {
			movers = append(movers, &ear{connect(i), map[int][]int{}})
		}
		for i, m := range movers {
			c := m.p.conn()
			churn.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					c.Join("small", "big")
					if i%2 == 0 {
						c.Bind(ctx, fmt.Sprintf("u%d", n%20)) // out of every room
					} else {
						c.Leave("big")
						c.Leave("small")
					}
					pauseFor(n)
				}
			})
		}
		w.dialect = dialectNames[0] // who vanishes between two polls is not missed at once
		for i := range 2 {
			churn.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(100+i)))
				for ctx.Err() == nil {
					var guests []*page
					for range 1 + rnd.IntN(20) {
						p, _, err := w.tryConnect("", "token=big small")
						if err != nil {
							t.Error(err)
							return
						}
						guests = append(guests, p)
					}
					for _, p := range guests {
						p.vanishes()
					}
				}
			})
		}

		type sent struct {
			number int
			to     func(i int) bool // is stayer i meant?
		}
		logs := make([][]sent, senders)
		var send sync.WaitGroup
		for s := range senders {
			send.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(s)))
				for n := range each {
					m := push.Message{Event: "n", Data: numbered{s, n}, Async: rnd.IntN(3) == 0, Ack: push.Ack(max(0, rnd.IntN(12)-9))}
					var a push.Audience
					var to func(i int) bool
					switch k := rnd.IntN(stayers); rnd.IntN(8) {
					case 0:
						a.User = fmt.Sprintf("u%d", k%20)
						to = func(i int) bool { return i%20 == k%20 }
					case 1:
						a.Conn = conns[k].ID()
						to = func(i int) bool { return i == k }
					case 2:
						a.Room = "small"
						to = func(i int) bool { return i%4 == 0 }
					case 3:
						a.All = true
						a.Except = []push.ConnID{conns[k].ID()}
						to = func(i int) bool { return i != k }
					case 4:
						a.Room = "big"
						a.AnyTag = []string{"odd"}
						to = func(i int) bool { return i%2 == 0 }
					case 5:
						a.All = true
						to = func(i int) bool { return true }
					default:
						a.Room = "big"
						to = func(i int) bool { return true }
					}
					r, err := w.Push(t.Context(), a, m)
					if err != nil || r.Failed > 0 && m.Ack == push.NoAck && a.Conn != 0 {
						t.Errorf("push %d of sender %d to %+v: %v, %+v", n, s, a, err, r)
					}
					logs[s] = append(logs[s], sent{n, to})
				}
			})
		}
		send.Wait()
		stop()
		churn.Wait()
		// What everybody hears last comes behind all else: one sender's
		// pushes are in order, whatever their audiences.
		if _, err := w.Broadcast(t.Context(), push.Message{Event: "end"}); err != nil {
			t.Fatal(err)
		}
		for i, e := range ears {
			e.p.waitFor("the end", func() bool {
				return slices.ContainsFunc(e.p.got, func(m envelope) bool { return m.Event == "end" })
			})
			e.take()
			for s, log := range logs {
				var want []int
				for _, p := range log {
					if p.to(i) {
						want = append(want, p.number)
					}
				}
				if !slices.Equal(e.heard[s], want) {
					t.Errorf("stayer %d heard of sender %d\n%v, want\n%v", i, s, e.heard[s], want)
				}
			}
		}
		for i, m := range movers {
			m.take()
			for s, heard := range m.heard {
				if !slices.IsSortedFunc(heard, func(a, b int) int {
					if a == b {
						return 1 // twice is out of order, too
					}
					return a - b
				}) {
					t.Errorf("mover %d heard of sender %d %v", i, s, heard)
				}
			}
		}
	})
}

// pauseFor lets others run, in a bubble and outside.
func pauseFor(n int) {
	for range n % 7 {
		ch := make(chan struct{})
		go close(ch)
		<-ch
	}
}

// TestMembersThatStayHearEachBroadcastOnce is about the walk over a place in
// chunks, while members before, behind and around the chunk leave and come
// back. Who comes back may have missed some, and hears none twice.
func TestMembersThatStayHearEachBroadcastOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Limits: push.Limits{QueueBytes: -1, QueueMessages: -1}})
		const members, pushes = 600, 60 // several chunks of 256 a shard
		var all []*push.Conn
		var pages []*page
		for i := range members {
			w.dialect = anyDoor(i)
			p := w.connect("", "token=hall")
			pages = append(pages, p)
		}
		for c := range w.Conns() {
			all = append(all, c)
		}
		stays := func(c *push.Conn) bool { return c.ID()%3 == 0 }
		ctx, stop := context.WithCancel(t.Context())
		var churn sync.WaitGroup
		for k := range 4 {
			churn.Go(func() {
				rnd := rand.New(rand.NewPCG(1, uint64(k)))
				for ctx.Err() == nil {
					if c := all[rnd.IntN(members)]; !stays(c) {
						if rnd.IntN(2) == 0 {
							c.Leave("hall")
						} else {
							c.Join("hall")
						}
					}
					if rnd.IntN(2000) == 0 { // all of them: the place shrinks
						for _, c := range all {
							if !stays(c) {
								c.Leave("hall")
							}
						}
					}
				}
			})
		}
		for n := range pushes {
			r, err := w.PushToRoom(t.Context(), "hall", push.Message{Event: "n", Data: numbered{0, n}})
			if err != nil || r.Targets < members/3 {
				t.Fatal(r, err)
			}
		}
		stop()
		churn.Wait()
		synctest.Wait()
		for _, p := range pages {
			e := ear{p, map[int][]int{}}
			e.take()
			heard := e.heard[0]
			if stays(p.conn()) && len(heard) != pushes {
				t.Errorf("%s stayed and heard %d of %d: %v", p.device, len(heard), pushes, heard)
			}
			for i := range heard {
				if i > 0 && heard[i] <= heard[i-1] {
					t.Errorf("%s heard %d after %d", p.device, heard[i], heard[i-1])
				}
			}
		}
	})
}

// TestUserWhoChangesClassIsPushedToOnce: a login that only changes the class
// moves the connection within its user's place; nobody may see it there twice,
// or not at all.
func TestUserWhoChangesClassIsPushedToOnce(t *testing.T) {
	var class atomic.Int64
	w := newSocketWorld(t, push.Config{
		DeviceClass: func(l *push.Login) string { return fmt.Sprint(class.Add(1)) },
		Limits:      push.Limits{QueueBytes: -1, QueueMessages: -1},
	})
	c := w.connect("alice").conn()
	var over atomic.Bool
	var pushes sync.WaitGroup
	for range 2 {
		pushes.Go(func() {
			for !over.Load() {
				r, err := w.PushToUser(t.Context(), "alice", push.Message{})
				if err != nil || r.Targets != 1 {
					t.Errorf("a push to the one connection of alice: %v, %+v", err, r)
					return
				}
			}
		})
	}
	for range 3000 {
		if err := c.Bind(t.Context(), "alice"); err != nil {
			t.Error(err)
		}
	}
	over.Store(true)
	pushes.Wait()
}

// TestDeliveryNamesTheUserItWasFor: while a connection changes hands, a
// receipt of a push to a user names no other.
func TestDeliveryNamesTheUserItWasFor(t *testing.T) {
	w := newSocketWorld(t, push.Config{Limits: push.Limits{QueueBytes: -1, QueueMessages: -1}})
	p := w.connect("alice")
	c := p.conn()
	var over atomic.Bool
	var pushes sync.WaitGroup
	for _, user := range []string{"alice", "bob"} {
		pushes.Go(func() {
			for !over.Load() {
				r, _ := w.PushToUser(t.Context(), user, push.Message{})
				for _, d := range r.Deliveries {
					if d.UserID != user {
						t.Errorf("a push to %s has a delivery for %q", user, d.UserID)
						return
					}
				}
			}
		})
	}
	for i := range 3000 {
		if err := c.Bind(t.Context(), []string{"alice", "bob"}[i%2]); err != nil {
			t.Error(err)
		}
	}
	over.Store(true)
	pushes.Wait()
}

// TestPushToUsersReachesAConnectionOnce, also one that passes from one of the
// users to the other at that moment.
func TestPushToUsersReachesAConnectionOnce(t *testing.T) {
	w := newSocketWorld(t, push.Config{Limits: push.Limits{QueueBytes: -1, QueueMessages: -1}})
	c := w.connect("alice").conn()
	var over atomic.Bool
	var pushes sync.WaitGroup
	for _, users := range [][]string{{"alice", "bob"}, {"bob", "alice"}} {
		pushes.Go(func() {
			for !over.Load() {
				if r, _ := w.PushToUsers(t.Context(), users, push.Message{}); r.Targets > 1 {
					t.Errorf("one connection, and a push to %q has %+v", users, r)
					return
				}
			}
		})
	}
	for i := range 3000 {
		if err := c.Bind(t.Context(), []string{"alice", "bob"}[i%2]); err != nil {
			t.Error(err)
		}
	}
	over.Store(true)
	pushes.Wait()
}

// TestReceiptsHoldUnderChaos pushes from several goroutines to pages that
// answer, answer late, twice, with ids of their own, or never, that stop
// reading, and that come and go.
func TestReceiptsHoldUnderChaos(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		seed := rand.Uint64()
		defer func() {
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		}()
		const ackTimeout = 2 * time.Second
		w := newWorld(t, push.Config{Limits: push.Limits{AckTimeout: ackTimeout, QueueBytes: 8 << 10, MessageRate: -1, AcksWaiting: 6, MaxConnsPerUser: -1}})
		w.dialect = dialect
		ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
		defer stop()
		var all sync.WaitGroup
		var unpushed atomic.Uint64 // pages that may be closed as slow without a push that was refused
		polls := strings.HasSuffix(dialect, "polling")
		for i := range 12 {
			all.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				for ctx.Err() == nil {
					p, resp, err := w.tryConnect(fmt.Sprintf("u%d", i%4), "token=all")
					if p == nil && !endedWith(err, 4408) && (resp == nil || resp.StatusCode != http.StatusServiceUnavailable) {
						t.Error(err)
						return
					}
					if err != nil { // a page of Socket.IO may be given up while it is connecting, 2.x by a 503
						unpushed.Add(1)
						continue
					}
					whim := rand.New(rand.NewPCG(seed, rnd.Uint64()))
					p.onAck(func(p *page, m envelope) {
						switch k := whim.IntN(6); k {
						case 0: // never
						case 1:
							p.answers(m, k)
							p.answers(m, k)
						case 2:
							time.AfterFunc(ackTimeout+time.Second, func() { p.answers(m, k) })
						case 3:
							p.answers(envelope{ID: m.ID ^ 1<<29}, "foreign") // not one of the last half billion
							p.answers(envelope{ID: 7}, "foreign")
							p.answers(envelope{ID: m.ID + 1<<32}, "foreign")
							p.answers(m, k)
						default:
							p.answers(m, k)
						}
					})
					sleepFor(ctx, time.Duration(rnd.IntN(3000))*time.Millisecond)
					end := rnd.IntN(4)
					if polls && end != 1 && end != 2 { // nobody takes the next ping, for which there may be no room
						unpushed.Add(1)
					}
					switch end {
					case 0:
						p.pause()
						sleepFor(ctx, 5*time.Second)
						p.resume()
						p.vanishes()
					case 1:
						if c := p.conn(); c != nil {
							c.Close("")
						}
						<-p.done
					case 2:
						p.leaves()
					default:
						p.vanishes()
					}
				}
			})
		}

		var mu sync.Mutex
		statuses := map[push.Status]uint64{}
		offline := uint64(0)
		for i := range 12 {
			all.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(100+i)))
				for ctx.Err() == nil {
					m := push.Message{Ack: push.Ack(rnd.IntN(3)), Data: strings.Repeat("x", rnd.IntN(12000))}
					var a push.Audience
					switch rnd.IntN(4) {
					case 0:
						a.User = fmt.Sprintf("u%d", rnd.IntN(5))
					case 1:
						a.Users = []string{"u0", "u1", "u4"}
					case 2:
						a.Room, m.Ack = "all", push.AutoAck
					default:
						a.All, m.Ack = true, push.BizAck
					}
					if rnd.IntN(3) == 0 {
						m.Rate = 1 + rnd.IntN(20)
					}
					wait := ackTimeout
					pctx := context.Context(context.Background())
					if m.Rate == 0 && rnd.IntN(3) == 0 {
						wait = time.Duration(rnd.IntN(2000)) * time.Millisecond
						var cancel context.CancelFunc
						pctx, cancel = context.WithTimeout(pctx, wait)
						defer cancel()
					}
					begin := time.Now()
					var r push.Receipt
					var err error
					if rnd.IntN(3) == 0 {
						m.Async = true
						told := make(chan push.Receipt, 1)
						m.Progress = func(now push.Receipt) {
							if now.Targets == now.Sent+now.Acked+now.Failed {
								told <- now
							}
						}
						_, err = w.Push(context.Background(), a, m)
						r = <-told
						wait = ackTimeout
					} else {
						r, err = w.Push(pctx, a, m)
					}
					took := time.Since(begin)
					checkReceipt(t, r, m, err)
					if m.Rate == 0 && took > wait {
						t.Errorf("a push that may take %v took %v", wait, took)
					}
					for _, d := range r.Deliveries {
						if d.Status == push.Timeout && m.Rate == 0 && d.Latency != wait {
							t.Errorf("timeout after %v, want exactly %v", d.Latency, wait)
						}
					}
					mu.Lock()
					for _, d := range r.Deliveries {
						statuses[d.Status]++
					}
					offline += uint64(len(r.Offline))
					mu.Unlock()
					sleepFor(ctx, time.Duration(rnd.IntN(60))*time.Millisecond)
				}
			})
		}
		all.Wait()
		time.Sleep(ackTimeout + 5*time.Second)
		if polls { // who vanished between two polls is missed only now
			time.Sleep(time.Minute)
		}
		s := w.Stats()
		for status, name := range map[push.Status]string{push.Sent: "sent", push.Acked: "acked", push.Timeout: "timeout", push.Gone: "gone", push.Slow: "slow", push.Overloaded: "overloaded"} {
			if s.Deliveries[name] != statuses[status] {
				t.Errorf("Stats count %d %s, receipts have %d", s.Deliveries[name], name, statuses[status])
			}
		}
		if got, want := s.Deliveries["offline"], statuses[push.Offline]+offline; got != want {
			t.Errorf("Stats count %d offline, receipts have %d", got, want)
		}
		// Stuck is a queue that nobody takes from, as of a page that vanished between two polls.
		if closed, more := s.Closed[push.ReasonSlow], s.Limited["stuck"]+unpushed.Load(); closed > statuses[push.Slow]+more {
			t.Errorf("%d connections closed as slow, %d receipts say slow, %d were or may have been without one", closed, statuses[push.Slow], more)
		}
		if s.Flights != 0 || s.Conns != 0 || s.Memberships != 0 || s.QueuedBytes != 0 {
			t.Errorf("left: %+v", s)
		}
		t.Logf("%v, %d users offline, %d stray acks, closed %v", statuses, offline, s.StrayAcks, s.Closed)
	})
}

// checkReceipt wants one outcome a device, of the kind that the push allows,
// and counts that are those of the deliveries.
func checkReceipt(t *testing.T, r push.Receipt, m push.Message, err error) {
	seen := map[push.ConnID]bool{}
	n := map[push.Status]int{}
	for _, d := range r.Deliveries {
		if seen[d.Conn] {
			t.Errorf("two outcomes for %v: %+v", d.Conn, r)
		}
		seen[d.Conn] = true
		n[d.Status]++
		switch d.Status {
		case push.Sent:
			if m.Ack != push.NoAck {
				t.Errorf("sent, but an ack was asked for: %+v", d)
			}
		case push.Acked, push.Timeout, push.Gone:
			if m.Ack == push.NoAck {
				t.Errorf("%v, but no ack was asked for: %+v", d.Status, d)
			}
		case push.Offline, push.Slow, push.Overloaded:
		default:
			t.Errorf("no outcome: %+v", d)
		}
		if (d.Status == push.Acked) != (d.Reply != nil) || strings.Contains(string(d.Reply), "foreign") {
			t.Errorf("reply %q with %v", d.Reply, d.Status)
		}
	}
	failed := len(r.Deliveries) - n[push.Sent] - n[push.Acked]
	if r.Targets != len(r.Deliveries) || r.Sent != n[push.Sent] || r.Acked != n[push.Acked] || r.Failed != failed {
		t.Errorf("receipt counts %d = %d + %d + %d, its deliveries %v", r.Targets, r.Sent, r.Acked, r.Failed, n)
	}
	if (err == nil) != (r.Sent+r.Acked > 0) && !m.Async {
		t.Errorf("error %v of %+v", err, r)
	}
}

// sleepFor sleeps, or returns when ctx ends. In virtual time only.
func sleepFor(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// TestUnansweredPushTimesOutExactly at AckTimeout or at its ctx's end.
func TestUnansweredPushTimesOutExactly(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{Limits: push.Limits{AckTimeout: 3 * time.Second}})
		w.dialect = dialect
		mute, quick := w.connect("alice"), w.connect("alice")
		mute.onAck(silent)
		for _, ack := range []push.Ack{push.AutoAck, push.BizAck} {
			for _, limit := range []time.Duration{0, time.Second, 10 * time.Second} {
				ctx, cancel, want := t.Context(), func() {}, 3*time.Second
				if limit > 0 {
					ctx, cancel = context.WithTimeout(ctx, limit)
					want = min(want, limit)
				}
				begin := time.Now()
				r, err := w.PushToUser(ctx, "alice", push.Message{Ack: ack})
				if took := time.Since(begin); took != want {
					t.Errorf("with a ctx of %v it took %v, want %v", limit, took, want)
				}
				wantStatus(t, r, push.Acked, push.Timeout)
				for _, d := range r.Deliveries {
					if d.Status == push.Timeout && d.Latency != want || d.Status == push.Acked && d.Latency != 0 {
						t.Errorf("%v after %v", d.Status, d.Latency)
					}
				}
				if err != nil {
					t.Errorf("%v, though one answered", err)
				}
				// Nobody answered: the error says why the wait ended.
				r, err = w.Push(ctx, push.Audience{User: "alice", Except: []push.ConnID{quick.conn().ID()}}, push.Message{Ack: ack})
				if limit == time.Second {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("%v, want the error of a ctx that was over", err)
					}
				} else if !errors.Is(err, push.ErrTimeout) {
					t.Errorf("%v, want ErrTimeout", err)
				}
				cancel()
			}
		}
	})
}

// TestCancelledPushReturnsAtOnce, row 133; the connection lives.
func TestCancelledPushReturnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		p := w.connect("alice")
		p.onAck(silent)
		for _, rate := range []int{0, 1} {
			ctx, cancel := context.WithCancel(t.Context())
			begin := time.Now()
			time.AfterFunc(time.Second, cancel)
			r, err := w.PushToUser(ctx, "alice", push.Message{Ack: push.BizAck, Rate: rate})
			if took := time.Since(begin); took != time.Second || !errors.Is(err, context.Canceled) {
				t.Errorf("returned after %v with %v", took, err)
			}
			wantStatus(t, r, push.Timeout)
			m := p.wantPush("message")
			p.answers(m, "too late")
			r, err = w.PushToUser(ctx, "alice", push.Message{})
			if !errors.Is(err, context.Canceled) || r.Targets != 0 {
				t.Errorf("a push with a ctx that is over: %+v, %v", r, err)
			}
			p.wantNothing()
		}
		if s := w.Stats(); s.StrayAcks != 2 || s.Deliveries["timeout"] != 2 || s.Deliveries["acked"] != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestLateForeignAndSecondAcksChangeNothing, and are counted.
func TestLateForeignAndSecondAcksChangeNothing(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{})
		w.dialect = dialect
		alice, bob := w.connect("alice"), w.connect("bob")
		alice.onAck(silent)
		pushed := make(chan push.Receipt)
		go func() {
			r, _ := w.PushToUser(t.Context(), "alice", push.Message{Event: "ask", Ack: push.BizAck})
			pushed <- r
		}()
		m := alice.wantPush("ask")
		largest := uint64(1<<53 - 1)
		if isSocketIO(dialect) {
			largest = 9_999_999_999
		}
		// bob knows the id, and it is none of his.
		for _, id := range []uint64{m.ID, 0, 1, m.ID + 1<<32, largest} {
			bob.answers(envelope{ID: id}, "bob")
		}
		for _, id := range []uint64{0, 1, m.ID + 1<<32, m.ID ^ 1<<29, largest} {
			alice.answers(envelope{ID: id}, "wrong")
		}
		synctest.Wait()
		select {
		case r := <-pushed:
			t.Fatalf("settled by a foreign ack: %+v", r)
		default:
		}
		alice.answers(m, "right")
		alice.answers(m, "second")
		r := <-pushed
		wantStatus(t, r, push.Acked)
		if !sameJSON(r.Deliveries[0].Reply, `"right"`) {
			t.Errorf("reply %s", r.Deliveries[0].Reply)
		}
		alice.answers(m, "third")
		alice.wantNothing()
		bob.wantNothing()
		if s := w.Stats(); s.StrayAcks != 12 || s.Deliveries["acked"] != 1 {
			t.Errorf("%d stray acks, %v, want 12 and one acked", s.StrayAcks, s.Deliveries)
		}
	})
}

func TestOneTooManyUnansweredPushIsOverloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Limits: push.Limits{AcksWaiting: 3}})
		p := w.connect("alice")
		p.onAck(silent)
		for range 3 {
			if _, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "ask", Ack: push.BizAck, Async: true}); err != nil {
				t.Fatal(err)
			}
		}
		m := p.wantPush("ask", "ask", "ask")
		r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "no", Ack: push.BizAck})
		if wantStatus(t, r, push.Overloaded); !errors.Is(err, push.ErrOverloaded) {
			t.Error(err)
		}
		p.wantNothing()
		if _, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "plain"}); err != nil {
			t.Error(err)
		}
		p.wantPush("plain")
		p.answers(m, nil)
		synctest.Wait()
		if _, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "again", Ack: push.BizAck, Async: true}); err != nil {
			t.Error(err)
		}
		p.wantPush("again")
		time.Sleep(6 * time.Second)
		if s := w.Stats(); s.Deliveries["timeout"] != 3 || s.Deliveries["acked"] != 1 || s.Deliveries["overloaded"] != 1 || s.Flights != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestProgressIsNeverTwoAtOnceAndItsLastHasEveryDevice settled, whether the
// push waits or not.
func TestProgressIsNeverTwoAtOnceAndItsLastHasEveryDevice(t *testing.T) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async %v", async), func(t *testing.T) {
			overPages(t, func(t *testing.T, dialect string) {
				w := newWorld(t, push.Config{})
				w.dialect = dialect
				const members = 90
				for i := range members {
					p := w.connect(fmt.Sprintf("u%d", i%9))
					switch i % 3 {
					case 0:
						p.onAck(func(p *page, m envelope) {
							time.AfterFunc(time.Duration(i)*30*time.Millisecond, func() { p.answers(m, i) })
						})
					case 1:
						p.onAck(func(p *page, m envelope) {
							time.AfterFunc(time.Duration(i)*30*time.Millisecond, func() { p.cuts() })
						})
					default:
						p.onAck(silent)
					}
				}
				var running atomic.Int32
				var mu sync.Mutex
				var told []push.Receipt
				var at []time.Time
				m := push.Message{Ack: push.BizAck, Async: async, Progress: func(r push.Receipt) {
					if running.Add(1) != 1 {
						t.Error("calls overlap")
					}
					mu.Lock()
					told, at = append(told, r), append(at, time.Now())
					mu.Unlock()
					time.Sleep(30 * time.Millisecond)
					running.Add(-1)
				}}
				begin := time.Now()
				r, err := w.Broadcast(t.Context(), m)
				if err != nil || r.Targets != members {
					t.Fatal(r, err)
				}
				if async {
					if took := time.Since(begin); took != 0 || r.Deliveries != nil || r.Acked != 0 {
						t.Errorf("returned after %v with %+v", took, r)
					}
					time.Sleep(6 * time.Second)
				}
				mu.Lock()
				defer mu.Unlock()
				last := told[len(told)-1]
				if last.Acked != members/3 || last.Failed != members/3*2 || last.Targets != members {
					t.Errorf("Progress ended with %d acked, %d failed of %d", last.Acked, last.Failed, last.Targets)
				}
				if !async && !reflect.DeepEqual(last, r) {
					t.Errorf("Progress ended with %+v, the push with %+v", last, r)
				}
				settled := -1
				for i, r := range told {
					n := r.Acked + r.Failed
					if n < settled || r.Targets != members || n == members && i < len(told)-1 {
						t.Errorf("call %d has %d settled after %d", i, n, settled)
					}
					settled = n
				}
				if n := len(told); n < 10 || n > 60 {
					t.Errorf("%d calls in 5 s, want at most ten a second and many", n)
				}
				for i := 2; i < len(at)-1; i++ { // the last one does not wait
					if at[i].Sub(at[i-1]) < 100*time.Millisecond {
						t.Errorf("two calls within %v", at[i].Sub(at[i-1]))
					}
				}
			})
		})
	}
}

// TestRatePacesAPush over its devices, in virtual time.
func TestRatePacesAPush(t *testing.T) {
	for _, async := range []bool{false, true} {
		for _, ack := range []push.Ack{push.NoAck, push.AutoAck} {
			t.Run(fmt.Sprintf("async %v, ack %d", async, ack), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, push.Config{})
					const members, rate = 100, 20
					var mu sync.Mutex
					arrived := map[int]int{} // by second
					var begin time.Time
					for i := range members {
						w.dialect = anyDoor(i)
						p := w.connect("", "token=room")
						go func() {
							for {
								p.mu.Lock()
								n, changed := len(p.got), p.changed
								p.mu.Unlock()
								if n > 0 {
									break
								}
								select {
								case <-changed:
								case <-p.done:
									return
								}
							}
							mu.Lock()
							defer mu.Unlock()
							arrived[int(time.Since(begin)/time.Second)]++
						}()
					}
					begin = time.Now()
					ended := make(chan push.Receipt, 1000)
					r, err := w.PushToRoom(t.Context(), "room", push.Message{Ack: ack, Rate: rate, Async: async, Progress: func(r push.Receipt) { ended <- r }})
					if err != nil || r.Targets != members {
						t.Fatal(r, err)
					}
					if took := time.Since(begin); async && took != 0 || !async && (took < 4900*time.Millisecond || took > 5100*time.Millisecond) {
						t.Errorf("returned after %v", took)
					}
					time.Sleep(6 * time.Second)
					var last push.Receipt
					for range len(ended) {
						last = <-ended
					}
					if last.Sent+last.Acked != members {
						t.Errorf("ended with %+v", last)
					}
					mu.Lock()
					defer mu.Unlock()
					for s := range 5 {
						if n := arrived[s]; n < rate-2 || n > rate+2 {
							t.Errorf("%d devices in second %d, want %d: %v", n, s, rate, arrived)
						}
					}
				})
			})
		}
	}
}

// TestRateEndsWithItsContext: who was not reached is Overloaded, and the error
// is the ctx's, whatever became of the others.
func TestRateEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 {
			w := newWorld(t, push.Config{})
			for range 3 {
				w.connect("alice").onAck(func(p *page, m envelope) { p.cuts() })
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			begin := time.Now()
			r, err := w.PushToUser(ctx, "alice", push.Message{Rate: 1, Ack: push.AutoAck})
			wantStatus(t, r, push.Gone, push.Overloaded, push.Overloaded)
			if took := time.Since(begin); took != 500*time.Millisecond || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("returned after %v with %v, want its ctx's error", took, err)
			}
			cancel()
			w.Close()
		}
	})
}

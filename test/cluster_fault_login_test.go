package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// logsIn lets a device in that is the only one of its user, as of all that come
// by logsIn: a page, or every other time a device of mpush.
func (l *strain) logsIn(n *nodeWorld, user string) *listener {
	l.t.Helper()
	l.mu.Lock()
	l.senders++
	door := []string{"push.json", "mpush tcp plain", "push.msgpack"}[l.senders%3]
	l.mu.Unlock()
	e := l.visits(n, door, user, "os=one")
	e.loose = true
	return e
}

// replaced tells how often a device was told that it is replaced.
func (e *listener) replaced() (times int) {
	if e.dev != nil {
		e.dev.mu.Lock()
		defer e.dev.mu.Unlock()
		for _, p := range e.dev.all {
			if p.cmd == mpush.CmdKick {
				times++
			}
		}
		return times
	}
	e.page.mu.Lock()
	defer e.page.mu.Unlock()
	if endedWith(e.page.err, 4409) {
		times++
	}
	return times
}

// TestPartitionHealsAndTheLastLoginStays: while nodes are parted, users log in
// and out and move on both sides.
func TestPartitionHealsAndTheLastLoginStays(t *testing.T) {
	for _, lasts := range []time.Duration{5 * time.Second, 60 * time.Second, 300 * time.Second} {
		t.Run(lasts.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				l := newFaultWorld(t, 5, 2, max(50*time.Millisecond, lasts/200))
				l.moves = true
				rnd := rand.New(rand.NewPCG(l.seed, 7))
				const users = 8
				there := make([][]*listener, users) // who is logged in, by user, in the order of their logins
				gone := map[*listener]int{}         // who is not, and how often it was to be replaced
				out := make([]time.Time, users)     // the last login of those who logged out while others could not see them
				outSide := make([]bool, users)
				side := func(e *listener) bool { return e.node.name < "c" }
				parted := false
				logsIn := func(i int, n *nodeWorld) {
					e := l.logsIn(n, fmt.Sprint("one ", i))
					there[i] = append(slices.DeleteFunc(there[i], func(old *listener) bool {
						sees := !parted || side(old) == side(e)
						if sees {
							gone[old] = 1
						}
						return sees
					}), e)
				}
				for i := range users {
					logsIn(i, l.w.nodes[rnd.IntN(5)])
				}
				guests := []*listener{l.visits(l.w.nodes[0], "push.json", "guest 0")}
				time.Sleep(time.Second)

				tr := l.begun(across("a", "b"))
				l.w.net.Partition([]string{clusterIP(1), clusterIP(2)}, []string{clusterIP(3), clusterIP(4), clusterIP(5)})
				parted = true
				const steps = 30
				for step := range steps {
					n := l.w.nodes[rnd.IntN(5)]
					switch i := rnd.IntN(users); rnd.IntN(4) {
					case 0: // somebody logs out
						if len(there[i]) > 0 {
							k := rnd.IntN(len(there[i]))
							gone[there[i][k]] = 0
							out[i], outSide[i] = there[i][k].since, side(there[i][k])
							l.leaves(there[i][k])
							there[i] = slices.Delete(there[i], k, k+1)
						}
					case 1: // somebody with many devices moves
						k := rnd.IntN(len(guests))
						l.leaves(guests[k])
						guests[k] = l.visits(n, loadDoors[step%len(loadDoors)], guests[k].user)
						guests = append(guests, l.visits(n, loadDoors[step%3], fmt.Sprint("guest ", step)))
					default:
						logsIn(i, n)
					}
					time.Sleep(lasts/steps - 20*time.Millisecond)
				}
				time.Sleep(100 * time.Millisecond)
				l.w.net.MendAll()
				t.Logf("whole after %v", l.heals(tr, 35*time.Second))
				time.Sleep(time.Second)
				for i := range users {
					var stays *listener
					if n := len(there[i]); n > 0 {
						stays = there[i][n-1]
						for _, e := range there[i][:n-1] {
							gone[e] = 1
						}
					}
					if stays != nil && out[i].After(stays.since) && side(stays) != outSide[i] && stays.replaced() == 1 {
						// Had they seen each other, it would have been replaced, too.
						gone[stays] = 1
						stays = nil
					}
					for _, n := range l.w.nodes {
						devices, err := n.Devices(t.Context(), push.Audience{User: fmt.Sprint("one ", i)})
						if err != nil || (stays == nil) != (len(devices) == 0) || stays != nil && (len(devices) != 1 || devices[0].DeviceID != stays.id()) {
							t.Errorf("%s: user %d has %+v (%v), want %v", n.name, i, devices, err, stays)
						}
					}
					if stays != nil && (stays.conn() == nil || stays.replaced() != 0) {
						t.Errorf("%v is the last login of user %d, and was replaced %d times", stays, i, stays.replaced())
					}
				}
				for e, want := range gone {
					if got := e.replaced(); got != want || e.conn() != nil {
						t.Errorf("%v was told %d times that it is replaced, want %d; it has a connection: %v", e, got, want, e.conn() != nil)
					}
				}
				l.check()
				t.Log(l.outcomes())
			})
		})
	}
}

func TestSimultaneousLoginsLeaveOneWinnerEverywhere(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 5, faultConfig)
		w.net.SetDelay(0, 300*time.Millisecond)
		for round := range 24 {
			user := fmt.Sprint("user ", round)
			count := 2 + round%4
			var all []*listener
			var mu sync.Mutex
			var logins sync.WaitGroup
			for i := range count {
				n := w.nodes[(round+i)%5]
				logins.Go(func() {
					e := &listener{visitor: &visitor{node: n}, user: user}
					if (round+i)%3 == 0 {
						n.door = doorPlain
						d := n.dialsIn("os=one")
						d.handshake()
						d.asksToBind(user)
						e.dev = d
					} else {
						n.dialect = dialectNames[i%2]
						p, _, err := n.tryConnect(user, "os=one")
						if err != nil {
							t.Error(err)
							return
						}
						e.page = p
					}
					mu.Lock()
					defer mu.Unlock()
					all = append(all, e)
				})
			}
			logins.Wait()
			time.Sleep(3 * time.Second)
			synctest.Wait()
			var stays []*listener
			for _, e := range all {
				switch c, told := e.conn(), e.replaced(); {
				case c != nil && told == 0:
					stays = append(stays, e)
				case c != nil || told != 1:
					t.Errorf("round %d: %v was replaced %d times, connected: %v", round, e, told, c != nil)
				}
			}
			if len(stays) != 1 {
				t.Fatalf("round %d: of %d logins at once %d are left: %v", round, count, len(stays), stays)
			}
			for _, n := range w.nodes {
				devices, err := n.Devices(t.Context(), push.Audience{User: user})
				if err != nil || len(devices) != 1 || devices[0].DeviceID != stays[0].id() {
					t.Errorf("round %d: %s has %+v, %v, want %v", round, n.name, devices, err, stays[0])
				}
			}
		}
		w.net.SetDelay(time.Millisecond, 3*time.Millisecond)
	})
}

// TestPushesFollowAUserWhoMoves: a user goes from node to node ten times a
// second, while one goroutine pushes to him a thousand times a second, and
// another one after the other.
func TestPushesFollowAUserWhoMoves(t *testing.T) {
	const (
		overlap = 50 * time.Millisecond // he is on both nodes for so long …
		gap     = 40 * time.Millisecond // … or on none
		known   = 30 * time.Millisecond // a login is, to all
	)
	for name, overlaps := range map[string]bool{"with an overlap": true, "with a gap": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				l := newFaultWorld(t, 4, 0, 0)
				a := l.w.node("a")
				type span struct{ from, to time.Time }
				var gaps []span
				at := l.visits(a, "push.json", "mover")
				at.loose = true
				l.w.spreads()
				before := a.Stats().Cluster.Sent
				ctx, stop := context.WithCancel(t.Context())
				var work sync.WaitGroup
				l.moves = true // of Async ones the order is not promised
				for sender := 1; sender <= 2; sender++ {
					async := sender == 1
					rnd := rand.New(rand.NewPCG(l.seed, uint64(sender)))
					work.Go(func() {
						for number := 1; ctx.Err() == nil; number++ {
							p := &pushed{sender: sender, number: number, to: push.Audience{User: "mover"}, m: push.Message{Event: "n", Data: numbered{sender, number}, Ack: push.Ack(rnd.IntN(3)), Async: async}}
							l.does(a, p, 0)
							if async || p.took == 0 {
								sleepFor(ctx, time.Millisecond)
							}
						}
					})
				}
				doors := []string{"push.json", "mpush tcp plain", "socket.io.5 websocket"}
				for move := range 30 {
					next := l.w.nodes[(slices.Index(l.w.nodes, at.node)+1+move%3)%4]
					begin := time.Now()
					old := at
					if !overlaps {
						l.leaves(old)
						time.Sleep(gap)
					}
					at = l.visits(next, doors[move%3], "mover")
					at.loose = true
					if overlaps {
						time.Sleep(overlap)
						l.leaves(old)
					} else {
						gaps = append(gaps, span{begin, time.Now().Add(known)})
					}
					time.Sleep(time.Until(begin.Add(100 * time.Millisecond)))
				}
				stop()
				work.Wait()
				sent := a.Stats().Cluster.Sent - before
				l.ends()
				pushes := l.pushes
				heardBy := map[key]int{}
				for _, e := range l.ears {
					for k := range l.hears(e) {
						heardBy[k]++
						e.heard[k.sender] = append(e.heard[k.sender], k.number)
					}
				}
				n := map[string]int{}
				for _, p := range pushes {
					ears := heardBy[key{p.sender, p.number}]
					inGap := slices.ContainsFunc(gaps, func(s span) bool {
						return !p.begin.Before(s.from.Add(-10*time.Millisecond)) && !p.begin.After(s.to)
					})
					silent := len(p.r.Offline) == 0 && !slices.ContainsFunc(p.r.Deliveries, func(d push.Delivery) bool {
						return d.Status == push.Gone || d.Status == push.Offline || d.Status == push.Sent && inGap // into a socket that has just been left
					})
					switch {
					case ears > 0:
						n["heard"]++
					case !inGap:
						l.errorf("%v was heard by nobody though he was there: %+v", p, p.r)
					case silent:
						l.errorf("%v was heard by nobody, and says %+v", p, p.r)
					default:
						n["missed"]++
					}
					if len(p.r.Offline) > 0 && !inGap {
						l.errorf("%v says that he is offline", p)
					}
					if !overlaps && len(p.r.Deliveries) > 2 {
						l.errorf("%v was tried more than twice: %+v", p, p.r)
					}
				}
				if !overlaps && sent > 2*uint64(len(pushes)) {
					t.Errorf("%d pushes were sent %d times", len(pushes), sent)
				}
				found := a.Stats().Cluster.Found
				var slowest time.Duration
				for _, p := range pushes {
					slowest = max(slowest, p.took)
				}
				t.Logf("%d pushes, %v, sent %d, found %d, the slowest took %v", len(pushes), n, sent, found, slowest)
				if overlaps && slowest > overlap {
					t.Errorf("a push took %v to a user who was always there", slowest)
				}
				if !overlaps && found == 0 {
					t.Error("none was found where he had moved")
				}
				for _, p := range pushes {
					if p.finals != 1 || p.took > p.limit {
						l.errorf("%v: %d finals", p, p.finals)
					}
				}
			})
		})
	}
}

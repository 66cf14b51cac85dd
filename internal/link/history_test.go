package link

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/memnet"
)

func TestANewPlaceIsKnownAtOnceAndManyAreGathered(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		a.wantLinked(b)
		time.Sleep(time.Second)
		a.join("alice")
		b.wantKnows(3*time.Millisecond, a)
		if at := b.dir.Locate(nil, directory.Place{Kind: 1, Name: "alice"}); len(at) != 1 || at[0] != a.self {
			t.Errorf("alice is at %v", at)
		}
		time.Sleep(time.Second)
		before := a.mesh.Stats().DeltasSent
		for i := range 1000 {
			a.join(fmt.Sprint("user", i))
			time.Sleep(time.Millisecond)
		}
		b.wantKnows(25*time.Millisecond, a)
		if n := a.mesh.Stats().DeltasSent - before; n < 40 || n > 60 {
			t.Errorf("%d deltas in a second, want one each 20 ms", n)
		}
	})
}

func TestWithManyPeersMoreIsGathered(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		for i := range 99 { // that cannot be reached
			a.mesh.Up(origin(fmt.Sprint("x", i), 1), "10.0.0.77:1")
		}
		a.wantLinked(b)
		before := a.mesh.Stats().DeltasSent
		for i := range 1000 {
			a.join(fmt.Sprint("user", i))
			time.Sleep(time.Millisecond)
		}
		b.wantKnows(110*time.Millisecond, a)
		if n := a.mesh.Stats().DeltasSent - before; n < 9 || n > 14 {
			t.Errorf("%d deltas in a second, want one each 100 ms", n)
		}
		for i := range 99 {
			a.mesh.Down(origin(fmt.Sprint("x", i), 1))
		}
	})
}

func TestACutLinkGoesOnFromItsCursor(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		b.up(a)
		a.up(b)
		a.wantLinked(b)
		rnd := rand.New(rand.NewPCG(5, 6))
		n := 0
		for range 40 {
			for range 2000 {
				a.join(fmt.Sprint("a user with a rather long name ", n))
				n++
			}
			time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond)
			a.peer(b).mu.Lock()
			if l := a.peer(b).link; l != nil {
				l.raw.Close() // in the middle of a frame, now and then
			}
			a.peer(b).mu.Unlock()
			synctest.Wait()
			a.mesh.Redial(b.self)
			time.Sleep(15 * time.Millisecond)
		}
		b.wantKnows(10*time.Second, a)
		if s := a.mesh.Stats(); s.SnapshotsSent != 0 || s.NeedsTaken != 0 || len(a.seen().linked) < 40 {
			t.Errorf("links %d, %+v", len(a.seen().linked), s)
		}
	})
}

func TestAPeerBehindTheRingGetsASnapshot(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		for i := range directory.RingOps + 5000 {
			a.dir.Join(directory.Place{Kind: 1, Name: fmt.Sprint("user", i)})
		}
		b.up(a)
		a.up(b)
		a.wantLinked(b)
		b.wantKnows(time.Second, a)
		if s, got := a.mesh.Stats(), b.mesh.Stats(); s.SnapshotsSent != 1 || got.SnapshotsTaken != 1 || s.NeedsTaken != 0 {
			t.Errorf("sent %+v, taken %+v", s, got)
		}
		a.join("one more")
		b.wantKnows(50*time.Millisecond, a)

		nw.Cut("10.0.0.1", "10.0.0.2") // and behind it again while the link hangs
		for i := range directory.RingOps + 5000 {
			a.leave(fmt.Sprint("user", i))
		}
		time.Sleep(time.Minute)
		nw.MendAll()
		b.wantKnows(10*time.Second, a)
		if s := a.mesh.Stats(); s.SnapshotsSent < 2 || s.SnapshotsSent > 3 { // one may have begun on the link that hung
			t.Errorf("%d snapshots", s.SnapshotsSent)
		}
	})
}

func TestMessagesDoNotWaitForASnapshotToEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		nw.SetDelay(20*time.Millisecond, 20*time.Millisecond) // 64 KiB in 20 ms: memnet holds no more
		a, b := pair(t, nw, nil)
		for i := range 4 * directory.RingOps {
			a.dir.Join(directory.Place{Kind: 1, Name: fmt.Sprint("a user with a name of some length ", i)})
		}
		b.up(a)
		a.up(b)
		a.wantLinked(b)
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		a.offer(b, "urgent")
		a.waitFor(150*time.Millisecond, "an answer", func() bool { return len(a.answers) == 1 })
		answered := time.Since(began)
		if b.knows(a) {
			t.Fatal("the snapshot was over already")
		}
		b.wantKnows(time.Minute, a)
		if all := time.Since(began); all < 8*answered {
			t.Errorf("the answer took %v, the snapshot %v", answered, all)
		}
	})
}

func TestHistoryDoesNotWaitForTheMessagesToEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		nw.SetDelay(20*time.Millisecond, 20*time.Millisecond)
		a, b := pair(t, nw, nil)
		b.up(a)
		a.up(b)
		a.wantLinked(b)
		b.mu.Lock()
		b.silent = true
		b.mu.Unlock()
		message := append([]byte{FirstKind}, make([]byte, 10_000)...)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ctx.Err() == nil {
				_ = a.peer(b).Send(ctx, message)
			}
		}()
		time.Sleep(time.Second)
		a.join("alice")
		b.wantKnows(200*time.Millisecond, a)
		stop()
		<-done
	})
}

func TestNeedBringsASnapshotAndHealsWhatDiverged(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		b.up(a)
		a.up(b)
		a.wantLinked(b)
		a.join("alice", "bob")
		b.wantKnows(time.Second, a)
		for range 10 {
			b.mesh.Need(a.self) // said once
			time.Sleep(10 * time.Millisecond)
		}
		b.mesh.Need(origin("nobody", 1))
		if n, taken := a.mesh.Stats().NeedsTaken, b.mesh.Stats().SnapshotsTaken; n != 1 || taken != 1 {
			t.Errorf("%d NEEDs, %d snapshots, want one of each", n, taken)
		}

		// Another writes in a's name: what b has is wrong at the same seq.
		wrong := directory.New(a.self, nil)
		wrong.Join(directory.Place{Kind: 1, Name: "alice"})
		wrong.Join(directory.Place{Kind: 1, Name: "mallory"})
		wrong.Join(directory.Place{Kind: 1, Name: "x"})
		frame, _, _ := wrong.AppendDelta(nil, 0, 1<<20)
		if _, err := b.dir.MergeDelta(a.self, frame, time.Now()); err != nil {
			t.Fatal(err)
		}
		a.dir.Join(directory.Place{Kind: 1, Name: "carol"}) // seq 3 on both sides; nobody is told
		b.waitFor(10*time.Second, "it was noticed by a beat", func() bool { return b.mesh.Stats().Diverged == 1 })
		b.wantKnows(time.Second, a)
		b.wantLog("level=ERROR", "node=a", "fetched anew")
	})
}

func TestALinkThatFindsAnotherHistoryThanItsOwnSendsASnapshot(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		b.up(a)
		wrong := directory.New(a.self, nil)
		wrong.Join(directory.Place{Kind: 1, Name: "mallory"})
		frame, _, _ := wrong.AppendDelta(nil, 0, 1<<20)
		if _, err := b.dir.MergeDelta(a.self, frame, time.Now()); err != nil {
			t.Fatal(err)
		}
		a.join("alice", "bob")
		a.up(b)
		a.wantLinked(b)
		b.wantKnows(time.Second, a)
		time.Sleep(10 * time.Second)
		if s, got := a.mesh.Stats(), b.mesh.Stats(); s.SnapshotsSent != 1 || got.Diverged != 0 {
			t.Errorf("%d snapshots, %d diverged", s.SnapshotsSent, got.Diverged)
		}
	})
}

func TestANeedUnderASnapshotDoesNotBeginItAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		nw.SetDelay(20*time.Millisecond, 20*time.Millisecond)
		a, b := pair(t, nw, nil)
		for i := range 2 * directory.RingOps {
			a.dir.Join(directory.Place{Kind: 1, Name: fmt.Sprint("a user with a name of some length ", i)})
		}
		b.up(a)
		a.up(b)
		a.wantLinked(b)
		time.Sleep(200 * time.Millisecond)
		b.mesh.Need(a.self)
		b.wantKnows(time.Minute, a)
		if s := a.mesh.Stats(); s.SnapshotsSent != 1 || s.NeedsTaken != 1 {
			t.Errorf("%d snapshots, %d NEEDs", s.SnapshotsSent, s.NeedsTaken)
		}
	})
}

func TestABogusNeedBringsASnapshotAndNothingWorse(t *testing.T) {
	for _, have := range []uint64{1 << 63, ^uint64(0), 5} {
		inBubble(t, func(t *testing.T, nw *memnet.Network) {
			a, b := pair(t, nw, nil)
			b.up(a)
			a.up(b)
			a.join("alice", "bob")
			a.wantLinked(b)
			b.wantKnows(time.Second, a)
			b.mesh.mu.Lock()
			in := b.mesh.ins[a.self]
			b.mesh.mu.Unlock()
			in.ask(have)
			a.waitFor(time.Second, "a snapshot", func() bool { return a.mesh.Stats().SnapshotsSent == 1 })
			a.join("carol")
			b.wantKnows(time.Second, a)
		})
	}
}

func TestALostLoginIsReportedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		b.up(a)
		a.wantLinked(b)
		b.wantLinked(a)
		alice := directory.Place{Kind: 1, Name: "alice"}
		b.join("alice")
		b.dir.Bind(alice, "mobile", 0, time.Now())
		b.mesh.Wake()
		time.Sleep(time.Second)
		a.join("alice")
		a.dir.Bind(alice, "mobile", 0, time.Now())
		a.mesh.Wake()
		b.waitFor(time.Second, "the login is lost", func() bool { return len(b.lost) == 1 })
		time.Sleep(time.Minute)
		if len(b.seen().lost) != 1 || len(a.seen().lost) != 0 || b.seen().lost[0].Place != alice || b.seen().lost[0].By != a.self {
			t.Errorf("b lost %+v, a lost %+v", b.seen().lost, a.seen().lost)
		}
	})
}

func TestARunThatMembershipForgotIsCutAndIntroducesItselfAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		b.up(a)
		a.wantLinked(b)
		a.join("alice")
		b.wantKnows(time.Second, a)
		b.dir.Forget(a.self)
		a.join("bob")
		a.waitFor(time.Second, "Broken", func() bool { return len(a.broken) == 1 })
		b.wantKnows(time.Second, a)
	})
}

func TestThreeNodesAgreeAfterCutsAndChurn(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				ips := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}
				var nodes []*node
				for i, ip := range ips {
					nodes = append(nodes, start(t, nw, ip, origin(fmt.Sprint("n", i), 1), nil))
				}
				for _, n := range nodes {
					for _, o := range nodes {
						if n != o {
							n.up(o)
						}
					}
				}
				rnd := rand.New(rand.NewPCG(seed, 7))
				held := make([]map[string]bool, len(nodes))
				for i := range held {
					held[i] = map[string]bool{}
				}
				for range 400 {
					i := rnd.IntN(len(nodes))
					n := nodes[i]
					for range rnd.IntN(400) {
						name := fmt.Sprint("user", rnd.IntN(3000))
						if held[i][name] {
							n.leave(name)
						} else {
							n.join(name)
						}
						held[i][name] = !held[i][name]
					}
					switch x, y := ips[rnd.IntN(3)], ips[rnd.IntN(3)]; rnd.IntN(12) {
					case 0:
						if x != y {
							nw.Cut(x, y)
						}
					case 1:
						if x != y {
							nw.CutOneWay(x, y)
						}
					case 2, 3:
						nw.MendAll()
					case 4:
						n.mesh.mu.Lock()
						for _, in := range n.mesh.ins {
							in.raw.Close()
						}
						n.mesh.mu.Unlock()
					case 5:
						n.mesh.Need(nodes[(i+1)%3].self)
					}
					time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
				}
				nw.MendAll()
				for _, n := range nodes {
					for _, o := range nodes {
						if n == o {
							continue
						}
						n.wantKnows(longPause+20*time.Second, o)
						if n.mesh.Stats().Diverged > 0 {
							t.Errorf("%s: %s diverged", n.self.ID, o.self.ID)
						}
					}
				}
				synctest.Wait()
				for i := range held { // what the directories tell is what was done
					for name, is := range held[i] {
						at := nodes[(i+1)%3].dir.Locate(nil, directory.Place{Kind: 1, Name: name})
						if slices.Contains(at, nodes[i].self) != is {
							t.Fatalf("%s at %s: %v, want %v", name, nodes[i].self.ID, !is, is)
						}
					}
				}
			})
		})
	}
}

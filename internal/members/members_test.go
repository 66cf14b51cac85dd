package members

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/quietlog"
	"github.com/hashicorp/memberlist"
)

func TestTheLifeOfANodeIsToldInOrderAndOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		nw.SetDelay(time.Millisecond, 3*time.Millisecond)
		a := start(t, nw, "a", 1, nil)
		b := start(t, nw, "b", 2, func(cfg *Config) { cfg.Extra = []byte("eight cores") })
		time.Sleep(time.Second)
		a.wantTold("joined b eight cores")
		b.wantTold("joined a")
		a.want("a", "b")
		b.want("a", "b")
		if got := a.Members()[1]; got.Addr.String() != "10.0.0.2:7946" || got.Origin != b.cfg.Self {
			t.Errorf("a lists %+v", got)
		}
		time.Sleep(10 * time.Minute) // twenty exchanges of everything
		a.wantTold()

		b.Drain()
		time.Sleep(time.Second)
		a.wantTold("joined b draining eight cores")
		go b.Leave(t.Context())
		time.Sleep(50 * time.Millisecond) // memberlist's own news is not out yet
		a.wantTold("left b")
		a.want("a")
		if a.Alive(b.cfg.Self) {
			t.Error("who said goodbye is alive")
		}
		time.Sleep(2 * time.Minute)
		a.wantTold()
		b.wantTold()
		stop(a, b)
	})
}

func TestAFalseVerdictIsToldAndTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		a, b := start(t, nw, "a", 1, nil), start(t, nw, "b", 2, nil)
		time.Sleep(time.Second)
		a.wantTold("joined b")
		run := b.cfg.Self
		for _, cut := range []time.Duration{20 * time.Second, 5 * time.Minute} {
			nw.Cut("10.0.0.1", "10.0.0.2")
			time.Sleep(cut)
			a.wantTold("lost b")
			if a.Alive(run) {
				t.Error("a lost run is alive")
			}
			nw.MendAll()
			time.Sleep(35 * time.Second)
			a.wantTold("joined b")
			if !a.Alive(run) {
				t.Error("the same run is not alive again")
			}
		}
		stop(a, b)
	})
}

func TestWhatANodeSaysOfItselfArrivesWheneverItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		a := start(t, nw, "a", 1, nil)
		m := member("x", 1)
		m.Addr = netip.MustParseAddrPort("10.0.0.9:7000")
		s := startStranger(t, nw, m, nil)
		time.Sleep(time.Second)
		a.wantTold("joined x")
		say := func(want ...string) {
			t.Helper()
			s.say(packMeta(m))
			time.Sleep(time.Second)
			a.wantTold(want...)
		}
		m.Extra = []byte("one")
		say("joined x one")
		m.Extra = []byte("two")
		say("joined x two")
		m.Draining = true
		say("joined x draining two")
		say() // news of nothing new
		m.Extra = bytes.Repeat([]byte("x"), MaxExtra)
		say("joined x draining " + string(m.Extra))
		s.say(pack(metaProto, "x", 1, "", 0, 0, []byte("three"), "more"))
		time.Sleep(time.Second)
		a.wantTold("joined x three")
		// Not understood: what was known stays.
		s.say(pack(metaProto, "x", 1, "", 0, 0, make([]byte, MaxExtra+1)))
		time.Sleep(time.Second)
		a.wantTold()
		if got := a.log.with("WARN cluster: node ignored"); len(got) != 1 || !strings.Contains(got[0], "301 bytes") {
			t.Errorf("the log says %q, want one line with 301 bytes", got)
		}
		s.Shutdown()
		stop(a)
	})
}

func TestARestartIsAnotherRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		a, old := start(t, nw, "a", 1, nil), start(t, nw, "b", 2, nil)
		time.Sleep(time.Second)
		a.wantTold("joined b")
		old.host.Kill()
		b := start(t, nw, "b", 2, nil)
		time.Sleep(time.Second)
		a.wantTold("joined b")
		a.want("a", "b", "b")
		if all := a.Members(); all[1].Epoch >= all[2].Epoch {
			t.Errorf("a lists %v, want the older run of b first", all)
		}
		time.Sleep(time.Minute)
		a.wantTold("lost b")
		if a.Alive(old.cfg.Self) || !a.Alive(b.cfg.Self) {
			t.Error("it is not the old run that was lost")
		}
		stop(a, b, old)
	})
}

// One call takes its time; what happens meanwhile is told as it is in the end.
func TestChangesOfARunAreTakenTogetherWhileTheOwnerIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := make(chan struct{})
		n := start(t, memnet.New(1), "a", 1, func(cfg *Config) {
			joined := cfg.Joined
			cfg.Joined = func(m Member) {
				joined(m)
				if m.ID == "slow" {
					<-busy
				}
			}
		})
		d := delegate{n.List}
		changed := func(m Member, draining bool) Member { m.Draining = draining; return m }
		b, c, e := member("b", 2), member("c", 3), member("e", 4)
		d.NotifyJoin(peerNode(b))
		d.NotifyJoin(peerNode(c))
		d.NotifyJoin(peerNode(e))
		n.wantTold("joined b", "joined c", "joined e")
		d.NotifyJoin(peerNode(member("slow", 1)))
		n.wantTold("joined slow")

		d.NotifyUpdate(peerNode(changed(b, true)))
		d.NotifyJoin(peerNode(member("f", 5))) // a moment only
		d.NotifyLeave(peerNode(c))             // a false verdict, taken back
		d.NotifyLeave(peerNode(member("f", 5)))
		d.NotifyMsg(packBye(e.Origin))
		d.NotifyLeave(peerNode(e))
		d.NotifyJoin(peerNode(member("g", 6)))
		d.NotifyJoin(peerNode(c))
		d.NotifyLeave(peerNode(changed(b, true)))
		for epoch := range 5000 { // it starts again and again
			d.NotifyJoin(peerNode(member("h", epoch)))
			d.NotifyLeave(peerNode(member("h", epoch)))
		}
		n.wantTold()
		if got := n.queue.Len(); got != 3 || len(n.waiting) != 3 {
			t.Errorf("%d changes wait, want 3: e, g and b", got)
		}
		close(busy)
		n.wantTold("left e", "joined g", "lost b")
		d.NotifyJoin(peerNode(b))
		n.wantTold("joined b")
		stop(n)
	})
}

func TestAGoodbyeHidesARunUntilItJoinsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, memnet.New(1), "a", 1, nil)
		d := delegate{a.List}
		b := member("b", 1)
		for range 2 {
			d.NotifyMsg(packBye(b.Origin)) // of nobody who is there
			d.NotifyJoin(peerNode(b))
			a.wantTold("joined b")
			a.want("a", "b")
			d.NotifyMsg(packBye(b.Origin))
			a.wantTold("left b")
			d.NotifyMsg(packBye(b.Origin))
			b.Draining = true
			d.NotifyUpdate(peerNode(b)) // it drained before, the news is late
			a.wantTold()
			a.want("a")
			if a.Alive(b.Origin) {
				t.Error("who said goodbye is alive")
			}
			d.NotifyLeave(peerNode(b))
			a.wantTold()
			b.Draining = false
		}
		stop(a)
	})
}

// Whatever happens, what is told happened, in that order, nothing twice, and in
// the end the owner knows what is so.
func TestWhatIsToldIsASelectionOfWhatHappened(t *testing.T) {
	const runs = 5
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			var happened, told []change
			same := func(x, y change) bool {
				return x.there == y.there && x.goodbye == y.goodbye && x.Member.equal(y.Member)
			}
			pauses := make([]time.Duration, 16)
			for i := range pauses {
				pauses[i] = time.Duration(rnd.IntN(20)) * time.Millisecond
			}
			tell := func(c change) {
				told = append(told, c)
				time.Sleep(pauses[len(told)%len(pauses)])
			}
			n := start(t, memnet.New(1), "a", 1, func(cfg *Config) {
				cfg.Joined = func(m Member) { tell(change{Member: m, there: true}) }
				cfg.Left = func(m Member, goodbye bool) { tell(change{Member: m, goodbye: goodbye}) }
			})
			is := make([]change, runs)
			for range 300 {
				i := rnd.IntN(runs)
				c := change{Member: member("b", i)}
				if is[i].there && rnd.IntN(2) == 0 {
					c = change{Member: is[i].Member, goodbye: rnd.IntN(2) == 0}
				} else {
					c.there, c.Extra = true, []byte{byte(rnd.IntN(2))}
				}
				is[i] = c
				happened = append(happened, c)
				n.List.mu.Lock()
				n.noteLocked(c)
				waiting := n.queue.Len()
				n.List.mu.Unlock()
				if waiting > runs {
					t.Fatalf("seed %d: %d changes of %d runs wait", seed, waiting, runs)
				}
				time.Sleep(time.Duration(rnd.IntN(8)) * time.Millisecond)
			}
			time.Sleep(time.Minute)
			synctest.Wait()

			known := make(map[directory.Origin]change)
			at := 0
			for i, c := range told {
				for at < len(happened) && !same(happened[at], c) {
					at++
				}
				if at == len(happened) {
					t.Fatalf("seed %d: call %d, %+v, is not what happened then", seed, i, c)
				}
				at++
				was := known[c.Origin]
				if c.there == was.there && (!c.there || was.Member.equal(c.Member)) {
					t.Errorf("seed %d: call %d, %+v, is no news", seed, i, c)
				}
				known[c.Origin] = c
			}
			for i, c := range is {
				got := known[member("b", i).Origin]
				if got.there != c.there || c.there && !got.Member.equal(c.Member) {
					t.Errorf("seed %d: the owner knows %+v in the end, and it is %+v", seed, got, c)
				}
			}
			if len(told) == 0 || len(told) == len(happened) {
				t.Errorf("seed %d: %d of %d changes were told, want some", seed, len(told), len(happened))
			}
			stop(n)
		})
	}
}

func TestNothingIsToldOnceLeaveHasReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		var mu sync.Mutex
		left := false // guarded by mu
		after := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			if left {
				t.Errorf("%s was called after Leave", what)
			}
		}
		busy := make(chan struct{})
		calls := 0
		a := start(t, nw, "a", 1, func(cfg *Config) {
			cfg.Joined = func(m Member) { calls++; <-busy; after("Joined") }
			cfg.Left = func(Member, bool) { after("Left") }
			cfg.Digest = func(b []byte) []byte { after("Digest"); return append(b, 1) }
			cfg.Merge = func([]byte) { after("Merge") }
		})
		b, c := start(t, nw, "b", 2, nil), start(t, nw, "c", 3, nil)
		time.Sleep(5 * time.Second)
		done := make(chan struct{})
		go func() {
			a.Leave(t.Context())
			mu.Lock()
			left = true
			mu.Unlock()
			close(done)
		}()
		time.Sleep(time.Minute)
		select {
		case <-done:
			t.Error("Leave did not wait for Joined")
		default:
		}
		d := delegate{a.List}
		d.NotifyJoin(peerNode(member("x", 1)))
		close(busy)
		<-done
		if calls != 1 {
			t.Errorf("Joined was called %d times, want once: c and x wait", calls)
		}
		d.NotifyJoin(peerNode(member("y", 1)))
		a.want("a")
		d.NotifyMsg(packBye(b.cfg.Self))
		d.LocalState(false)
		d.MergeRemoteState([]byte("late"), false)
		again := time.Now()
		a.Leave(t.Context())
		if took := time.Since(again); took > 0 {
			t.Errorf("the second Leave took %v", took)
		}
		time.Sleep(time.Minute)
		stop(a, b, c)
	})
}

func TestDigestsTravelBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		var mu sync.Mutex
		got := make(map[string]int) // guarded by mu: by who got it and what
		digests := func(id string) func(*Config) {
			return func(cfg *Config) {
				cfg.Digest = func(dst []byte) []byte { return append(dst, "of "+id...) }
				cfg.Merge = func(b []byte) {
					mu.Lock()
					defer mu.Unlock()
					got[id+" "+string(b)]++
				}
			}
		}
		want := func(least, most int) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			for _, what := range []string{"a of b", "b of a"} {
				if got[what] < least || got[what] > most {
					t.Errorf("%q came %d times, want %d to %d", what, got[what], least, most)
				}
			}
			if len(got) > 2 {
				t.Errorf("what came is %v", got)
			}
		}
		a, b := start(t, nw, "a", 1, digests("a")), start(t, nw, "b", 2, digests("b"))
		mute := start(t, nw, "c", 3, nil) // has neither
		time.Sleep(time.Second)
		want(1, 2) // b may have joined twice
		time.Sleep(5 * time.Minute)
		want(4, 30)
		stop(a, b, mute)
	})
}

func TestALargeDigestIsNeitherSentNorRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		size := MaxDigest
		var came []int
		a := start(t, nw, "a", 1, func(cfg *Config) {
			cfg.Merge = func(b []byte) { came = append(came, len(b)) }
			cfg.Digest = func(dst []byte) []byte { return append(dst, make([]byte, size)...) }
		})
		d := delegate{a.List}
		if got := len(d.LocalState(true)); got != size {
			t.Errorf("%d bytes are sent, want %d", got, size)
		}
		size++
		if got := len(d.LocalState(true)); got != 0 {
			t.Errorf("%d bytes are sent, want none", got)
		}
		m := member("x", 1)
		m.Addr = netip.MustParseAddrPort("10.0.0.9:7946")
		s := startStranger(t, nw, m, make([]byte, MaxDigest+1))
		a.wantTold("joined x")
		if len(came) > 0 {
			t.Errorf("%d bytes were given to Merge, want none", came)
		}
		for _, what := range []string{"not sent", "not read"} {
			if got := a.log.with("WARN cluster: digest too large, " + what); len(got) != 1 {
				t.Errorf("the log says %q, want one line", got)
			}
		}
		s.Shutdown()
		d.MergeRemoteState(make([]byte, MaxDigest), false)
		if !slices.Equal(came, []int{MaxDigest}) {
			t.Errorf("%d bytes were given to Merge, want %d", came, MaxDigest)
		}
		stop(a)
	})
}

func TestAPeerThatUDPDoesNotReachIsAnErrorWithItsPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		a, b := start(t, nw, "a", 1, nil), start(t, nw, "b", 2, nil)
		nw.SetLoss(1) // packets; streams pass
		time.Sleep(4 * time.Minute)
		for who, other := range map[*node]string{a: "10.0.0.2", b: "10.0.0.1"} {
			who.want("a", "b")
			want := fmt.Sprintf("addr=%s:7946 hint=open UDP port 7946", other)
			got := who.log.with("ERROR ")
			if len(got) != 1 || !strings.Contains(got[0], "peer reached by TCP but not by UDP node=") || !strings.HasSuffix(got[0], want) {
				t.Errorf("the log says %q, want one line with %s", got, want)
			}
		}
		stop(a, b)
	})
}

func TestLostPacketsAreNoClosedPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		a, b := start(t, nw, "a", 1, nil), start(t, nw, "b", 2, nil)
		nw.SetLoss(0.1)
		time.Sleep(30 * time.Minute)
		for _, n := range []*node{a, b} {
			n.want("a", "b")
			if got := n.log.with("ERROR "); len(got) > 0 {
				t.Errorf("the log says %q", got)
			}
			if got := n.log.with("UDP probes failed"); len(got) == 0 || len(got) > 7 || !strings.Contains(got[0], "hint=") {
				t.Errorf("the log says %d times that a probe failed, %q, want once in five minutes, with a hint", len(got), got)
			}
		}
		stop(a, b)
	})
}

func TestComingAndGoingLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		a := start(t, nw, "a", 1, nil)
		for i := range 40 {
			b := start(t, nw, "b", 2, nil)
			time.Sleep(500 * time.Millisecond)
			if i%2 == 0 {
				b.Leave(t.Context())
			} else {
				b.host.Kill()
			}
			stop(b)
		}
		joined, gone := 0, 0
		for _, text := range a.take() {
			if text == "joined b" {
				joined++
			} else {
				gone++
			}
		}
		if joined != 40 || gone != 40 {
			t.Errorf("told of %d joins and %d ends, want 40 of each", joined, gone)
		}
		a.List.mu.Lock()
		if len(a.peers) != 1 || len(a.List.told) != 0 || len(a.waiting) != 0 || a.queue.Len() != 0 || len(a.lost) > 1 || len(a.joining) > maxJoins {
			t.Errorf("left behind: %d peers, %d told, %d waiting, %d queued, %d lost, %d joining",
				len(a.peers), len(a.List.told), len(a.waiting), a.queue.Len(), len(a.lost), len(a.joining))
		}
		a.List.mu.Unlock()
		stop(a) // the bubble ends only if every goroutine has
	})
}

// TestAnEarlierRunOfTheNodeIsNoPeerReached: a node that died and starts again
// hears of itself, perhaps before it hears of others.
func TestAnEarlierRunOfTheNodeIsNoPeerReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, memnet.New(1), "a", 5, func(cfg *Config) { cfg.Seeds = []Seed{{IP: netip.MustParseAddr("10.0.0.99"), Port: 7946}} })
		d := delegate{a.List}
		d.NotifyJoin(peerNode(member("a", 4)))
		if a.Ready() == nil {
			t.Error("ready, and nobody but an earlier run of itself was reached")
		}
		d.NotifyJoin(peerNode(member("b", 1)))
		if err := a.Ready(); err != nil {
			t.Errorf("a peer was reached: %v", err)
		}
		stop(a)
	})
}

func TestAClusterHasABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, memnet.New(1), "a", 1, nil)
		d := delegate{a.List}
		a.List.mu.Lock()
		for epoch := range maxNodes - 1 {
			m := member("many", epoch)
			a.peers[m.Origin] = &peer{Member: m}
		}
		a.List.mu.Unlock()
		if err := d.NotifyAlive(peerNode(member("more", 1))); err == nil {
			t.Errorf("a node beyond %d is let in", maxNodes)
		}
		synctest.Wait()
		o := member("many", 77).Origin
		if got := testing.AllocsPerRun(100, func() { a.Alive(o) }); got != 0 || !a.Alive(o) {
			t.Errorf("Alive allocates %v times and returns %v", got, a.Alive(o))
		}
		if err := d.NotifyAlive(peerNode(member("many", 1))); err != nil {
			t.Errorf("a node that is a member is not let in: %v", err)
		}
		a.List.mu.Lock()
		clear(a.peers)
		a.List.mu.Unlock()
		for i := range maxLost + 100 {
			m := member(fmt.Sprint("node-", i), i)
			d.NotifyJoin(peerNode(m))
			d.NotifyLeave(peerNode(m))
		}
		a.List.mu.Lock()
		if len(a.lost) != maxLost {
			t.Errorf("%d lost nodes are remembered, want %d", len(a.lost), maxLost)
		}
		a.List.mu.Unlock()
		stop(a)
	})
}

func TestWhatMemberlistSaysOfStrangersDoesNoHarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, memnet.New(1), "a", 1, nil)
		d := delegate{a.List}
		for _, n := range []*memberlist.Node{
			{},
			{Name: "x"},
			{Name: "x~1", Meta: []byte{0x97}},
			{Name: "x~-1", Meta: packMeta(member("x", 1))},
			{Name: "x~1", Meta: packMeta(member("x", 1))},                                      // no address
			{Name: "x~01", Meta: packMeta(member("x", 1)), Addr: []byte{10, 0, 0, 9}, Port: 1}, // another spelling
		} {
			if err := d.NotifyAlive(n); err == nil {
				t.Errorf("%+v is let in", n)
			}
			d.NotifyJoin(n)
			d.NotifyUpdate(n)
			d.NotifyPingComplete(n, 0, nil)
			d.NotifyLeave(n)
			a.onlyTCP(n.Name)
		}
		d.NotifyMsg(nil)
		d.NotifyMsg(packBye(a.cfg.Self)) // a goodbye in this node's name
		a.wantTold()
		a.want("a")
		stop(a)
	})
}

func TestStartRefusesABadConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := func() Config {
			return Config{
				Self: directory.Origin{ID: "a", Epoch: 1}, Cluster: "push", Keys: [][]byte{key},
				Transport: memnet.New(1).Host("10.0.0.1").Transport(7946), Log: quietlog.New(nil, ""),
			}
		}
		for want, mod := range map[string]func(*Config){
			"no run of a node":          func(cfg *Config) { cfg.Self.ID = "a b" },
			"is no run of a node":       func(cfg *Config) { cfg.Self.Epoch = maxEpoch + 1 },
			"no Transport":              func(cfg *Config) { cfg.Transport = nil },
			"no Log":                    func(cfg *Config) { cfg.Log = nil },
			"an Extra of 301 bytes":     func(cfg *Config) { cfg.Extra = make([]byte, MaxExtra+1) },
			"Cluster.Secrets is empty":  func(cfg *Config) { cfg.Keys = nil },
			"Cluster.Secrets: ":         func(cfg *Config) { cfg.Keys = [][]byte{key[:7]} },
			"would advertise 10.0.0.1:": func(cfg *Config) { cfg.Keys, cfg.Insecure = nil, true },
		} {
			cfg := good()
			mod(&cfg)
			if _, err := Start(cfg); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Start returned %v, want an error with %q", err, want)
			}
		}
		cfg := good()
		cfg.Extra = make([]byte, MaxExtra)
		cfg.Self.ID = strings.Repeat("x", directory.MaxID)
		cfg.Self.Epoch = maxEpoch
		l, err := Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(packMeta(l.Members()[0])); got > memberlist.MetaMaxSize {
			t.Errorf("metadata of %d bytes", got)
		}
		l.Leave(t.Context())
		time.Sleep(3 * time.Minute)
	})
}

func TestSocketsEndWithWhatTheyDialled(t *testing.T) {
	to := quietlog.New(nil, "")
	tr, port, _, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), to)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := Listen(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)), to); err == nil {
		t.Error("two listen on one port")
	}
	conn, err := tr.DialTimeout(fmt.Sprint("127.0.0.1:", port), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	other := <-tr.StreamCh()
	defer other.Close()
	tr.Shutdown()
	other.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(other, make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end of a dialled connection got %v, want its end", err)
	}
	if _, err := tr.DialTimeout(fmt.Sprint("127.0.0.1:", port), 10*time.Second); err != context.Canceled && !strings.Contains(fmt.Sprint(err), "canceled") {
		t.Errorf("a dial after Shutdown returned %v", err)
	}
	tr, _, abandon, err := Listen(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)), to)
	if err != nil {
		t.Fatalf("the port is not free again: %v", err)
	}
	conn, err = tr.DialTimeout(fmt.Sprint("127.0.0.1:", port), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	abandon() // returns, although nobody takes the connection
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection lives on")
	}
	other = <-tr.StreamCh()
	other.Close()
}

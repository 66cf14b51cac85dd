package link

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/memnet"
)

func TestMessagesArriveInOrderAndAreAnswered(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		rnd := rand.New(rand.NewPCG(1, 2))
		var want []string
		for i := range 3000 { // the first ones before there is a link
			size := rnd.IntN(300)
			if i%500 == 0 {
				size = 200_000
			}
			text := fmt.Sprint(i, " ", strings.Repeat("x", size))
			want = append(want, text)
			if err := a.peer(b).Send(t.Context(), append([]byte{FirstKind}, text...)); err != nil {
				t.Fatalf("Send %d: %v", i, err)
			}
		}
		a.waitFor(10*time.Second, "all answers", func() bool { return len(a.answers) == len(want) })
		if !slices.Equal(b.seen().requests, want) {
			t.Error("the requests differ from what was sent, or their order does")
		}
		if slices.Sort(a.seen().answers); !slices.Equal(a.seen().answers, slices.Sorted(slices.Values(want))) {
			t.Error("the answers differ from what was sent")
		}
		if s := a.mesh.Stats(); s.MessagesOut != 3000 || s.MessagesIn != 3000 || s.Dropped != 0 {
			t.Errorf("counted %+v", s)
		}
	})
}

func TestMessagesWaitForTheFirstDialAndAreLostWhenItFails(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		b := origin("b", 1)
		a.mesh.Up(b, "10.0.0.2:7946") // no host there: the dial takes its time
		p := a.mesh.Peer(b)
		if err := p.Offer([]byte("hello")); err != nil {
			t.Fatalf("Offer under the first dial: %v", err)
		}
		synctest.Wait()
		if len(a.seen().broken) > 0 {
			t.Fatal("Broken before the dial failed")
		}
		time.Sleep(handshakeTime + time.Second)
		if len(a.seen().broken) != 1 || a.seen().broken[0] != p {
			t.Fatalf("Broken was called %d times, want once", len(a.seen().broken))
		}
		wantErr(t, "Offer after it failed", p.Offer([]byte("hello")), ErrDown)
		wantErr(t, "Send after it failed", p.Send(t.Context(), []byte("hello")), ErrDown)
		time.Sleep(time.Minute)
		if len(a.seen().broken) != 1 || len(a.seen().linked) != 0 || a.mesh.Stats().Dropped != 1 {
			t.Errorf("Broken %d, Linked %d, %+v", len(a.seen().broken), len(a.seen().linked), a.mesh.Stats())
		}
	})
}

func TestAFirstDialThatFailsWithNothingTakenBreaksNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		nw.Host("10.0.0.2")
		a.mesh.Up(origin("b", 1), "10.0.0.2:7946")
		time.Sleep(time.Minute)
		a.mesh.Down(origin("b", 1))
		synctest.Wait()
		if len(a.seen().broken) > 0 {
			t.Error("Broken was called")
		}
		if s := a.mesh.Stats(); s.DialFailures < 8 || s.DialFailures > 40 {
			t.Errorf("%d dials in a minute, want some, with growing pauses", s.DialFailures)
		}
	})
}

func TestAKilledHostFailsMessagesAtOnceAndIsLinkedAgainWhenItIsBack(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		a.wantLinked(b)
		p := a.peer(b)
		began := time.Now()
		b.host.Kill()
		a.waitFor(20*time.Millisecond, "Broken", func() bool { return len(a.broken) == 1 })
		wantErr(t, "Offer", p.Offer([]byte("hello")), ErrDown)
		if d := time.Since(began); d > 20*time.Millisecond {
			t.Errorf("it took %v", d)
		}
		b.end()
		time.Sleep(20 * time.Second)
		again := start(t, nw, "10.0.0.2", b.self, nil)
		a.waitFor(longPause+time.Second, "Linked", func() bool { return len(a.linked) == 2 })
		a.offer(again, "hello again")
		a.waitFor(time.Second, "an answer", func() bool { return slices.Equal(a.answers, []string{"hello again"}) })
	})
}

func TestRedialDoesNotWaitForTheBackoff(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		b.host.Kill()
		b.end()
		a.up(b)
		time.Sleep(time.Minute) // the pause is at its longest
		start(t, nw, "10.0.0.2", b.self, nil)
		dials := a.mesh.Stats().Dials
		for a.mesh.Stats().Dials == dials { // right behind an attempt
			dials = a.mesh.Stats().Dials
			a.mesh.Redial(b.self)
			a.waitFor(50*time.Millisecond, "a link", func() bool { return len(a.linked) == 1 })
		}
		a.mesh.Redial(b.self) // harmless now
		time.Sleep(time.Second)
		if len(a.seen().broken) > 0 {
			t.Error("Redial broke a link that works")
		}
	})
}

func TestAnotherAddressMeansToDialThere(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.mesh.Up(b.self, "10.0.0.77:1") // nobody; the dial hangs
		time.Sleep(time.Second)
		if err := a.peer(b).Offer(append([]byte{FirstKind}, "kept"...)); err != nil {
			t.Fatal(err)
		}
		a.mesh.Up(b.self, b.addr)
		a.waitFor(50*time.Millisecond, "an answer", func() bool { return slices.Equal(a.answers, []string{"kept"}) })
		a.mesh.Up(b.self, b.addr) // the same: nothing
		a.mesh.Up(b.self, "10.0.0.77:1")
		synctest.Wait()
		if len(a.seen().broken) != 1 || a.peer(b).Up() || a.peer(b).Addr() != "10.0.0.77:1" {
			t.Errorf("Broken %d, up %v, at %s", len(a.seen().broken), a.peer(b).Up(), a.peer(b).Addr())
		}
		a.mesh.Up(b.self, b.addr)
		a.waitFor(50*time.Millisecond, "a link", func() bool { return len(a.linked) == 2 })
	})
}

func TestDownEndsALinkAndUpBeginsANewOne(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		a.wantLinked(b)
		p := a.peer(b)
		a.offer(b, "last words")
		a.mesh.Down(b.self)
		wantErr(t, "Offer", p.Offer([]byte("hello")), ErrDown)
		if a.mesh.Peer(b.self) != nil {
			t.Error("it is still there")
		}
		a.waitFor(time.Second, "Broken", func() bool { return slices.Equal(a.broken, []*Peer{p}) })
		b.waitFor(time.Second, "Ended", func() bool { return len(b.ended) == 1 })
		if !slices.Equal(b.seen().requests, []string{"last words"}) {
			t.Errorf("came: %q", b.seen().requests)
		}
		time.Sleep(time.Minute)
		if len(a.seen().linked) != 1 {
			t.Error("it was dialled after Down")
		}
		a.mesh.Up(b.self, b.addr)
		a.mesh.Down(b.self)
		a.mesh.Up(b.self, b.addr)
		a.wantLinked(b)
		a.offer(b, "hello")
		a.waitFor(time.Second, "an answer", func() bool { return slices.Contains(a.answers, "hello") })
	})
}

func TestBrokenComesExactlyOnceForEachLinked(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		rnd := rand.New(rand.NewPCG(3, 4))
		for range 200 {
			switch rnd.IntN(5) {
			case 0:
				nw.Cut("10.0.0.1", "10.0.0.2")
				time.Sleep(time.Duration(rnd.IntN(15)) * time.Second)
				nw.MendAll()
			case 1:
				a.mesh.Down(b.self)
				a.mesh.Up(b.self, b.addr)
			case 2:
				b.mesh.mu.Lock()
				for _, in := range b.mesh.ins {
					in.raw.Close() // in the middle of whatever
				}
				b.mesh.mu.Unlock()
			default:
				if p := a.mesh.Peer(b.self); p != nil {
					_ = p.Offer(bytes.Repeat([]byte{40}, 1+rnd.IntN(100_000)))
				}
			}
			time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
			synctest.Wait()
			a.mu.Lock()
			linked, broken := map[*Peer]int{}, map[*Peer]int{}
			for _, p := range a.linked {
				linked[p]++
			}
			for _, p := range a.broken {
				broken[p]++
			}
			for p, n := range linked {
				if broken[p] != n && (broken[p] != n-1 || !p.Up() && a.mesh.Peer(b.self) == p) {
					t.Fatalf("Linked %d, Broken %d, up %v", n, broken[p], p.Up())
				}
			}
			a.mu.Unlock()
		}
		if len(a.seen().linked) < 20 {
			t.Errorf("only %d links", len(a.linked))
		}
	})
}

// Three nodes; b does not handle what it gets.
func TestASlowPeerCostsABoundedQueueAndNobodyElse(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		c := start(t, nw, "10.0.0.3", origin("c", 1), nil)
		a.up(b, c)
		a.wantLinked(b)
		a.wantLinked(c)
		b.hold()
		message := append([]byte{FirstKind}, make([]byte, 1000)...)
		taken := 0
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			for a.peer(b).Offer(message) == nil {
				taken++
			}
		}
		// a's queue, b's, and what is on the way and in buffers.
		if bytes := taken * 1005; bytes < 8<<20 || bytes > 9<<20 {
			t.Errorf("%d bytes were taken, want about twice 4 MiB", bytes)
		}
		if a.mesh.Stats().Full == 0 {
			t.Error("Full was not counted")
		}
		a.offer(c, "hello")
		a.waitFor(20*time.Millisecond, "c's answer", func() bool { return slices.Equal(a.answers, []string{"hello"}) })
		began := time.Now()
		wantErr(t, "Send", a.peer(b).Send(t.Context(), message), ErrFull)
		if d := time.Since(began); d != sendTime {
			t.Errorf("Send waited %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		began = time.Now()
		wantErr(t, "Send", a.peer(b).Send(ctx, message), ErrFull)
		if d := time.Since(began); d != 300*time.Millisecond {
			t.Errorf("Send waited %v in spite of its context", d)
		}

		b.release()
		if err := a.peer(b).Send(t.Context(), message); err != nil {
			t.Errorf("Send when b goes on: %v", err)
		}
		a.waitFor(5*time.Second, "all answers", func() bool { return len(a.answers) == taken+2 })
		if len(a.seen().broken) > 0 || a.mesh.Stats().Dropped > 0 {
			t.Error("the link broke")
		}
	})
}

func TestAPeerThatStopsForGoodIsGivenUp(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, func(cfg *Config) { cfg.QueueMessages = 100 })
		a.up(b)
		a.wantLinked(b)
		b.hold()
		message := append([]byte{FirstKind}, make([]byte, 10_000)...)
		began := time.Now()
		for time.Since(began) < 15*time.Second && len(a.seen().broken) == 0 {
			_ = a.peer(b).Offer(message)
			time.Sleep(time.Millisecond)
		}
		if d := time.Since(began); d < 9*time.Second || d > 12*time.Second || a.mesh.Stats().LinksStuck != 1 {
			t.Errorf("given up after %v, stuck %d", d, a.mesh.Stats().LinksStuck)
		}
	})
}

func TestSilenceOfTenSecondsEndsALink(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		b.up(a)
		a.wantLinked(b)
		b.wantLinked(a)
		time.Sleep(5 * time.Minute)
		if len(a.seen().broken)+len(b.seen().broken) > 0 {
			t.Fatal("an idle link broke")
		}
		nw.Cut("10.0.0.1", "10.0.0.2")
		began := time.Now()
		for _, n := range []*node{a, b} {
			n.waitFor(11*time.Second, "Broken and Ended", func() bool { return len(n.broken) == 1 && len(n.ended) == 1 })
			n.wantLog("level=WARN", "link lost", "nothing came")
		}
		if d := time.Since(began); d < 6*time.Second {
			t.Errorf("given up after %v", d)
		}
		time.Sleep(time.Minute)
		nw.MendAll()
		a.waitFor(longPause+time.Second, "Linked", func() bool { return len(a.linked) == 2 })
		if a.mesh.Stats().LinksSilent != 2 {
			t.Errorf("%d silent links", a.mesh.Stats().LinksSilent)
		}
	})
}

func TestBeatsCarryWhatTheOwnersTell(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), func(cfg *Config) { cfg.Beat = func(dst []byte) []byte { return append(dst, "load 1"...) } })
		b := start(t, nw, "10.0.0.2", origin("b", 1), func(cfg *Config) { cfg.Beat = func(dst []byte) []byte { return append(dst, "load 2"...) } })
		c := start(t, nw, "10.0.0.3", origin("c", 1), func(cfg *Config) {
			cfg.Beat = func(dst []byte) []byte { return append(dst, make([]byte, MaxBeat+1)...) }
		})
		a.up(b, c) // one link: what is told goes both ways over it
		a.wantLinked(b)
		a.wantLinked(c)
		time.Sleep(30 * time.Second)
		for n, want := range map[*node]string{a: "b load 2", b: "a load 1"} {
			n.mu.Lock()
			if got := n.beats[want]; got < 10 || got > 12 {
				t.Errorf("%s heard %v, want %q ten times in 30 s", n.self.ID, n.beats, want)
			}
			n.mu.Unlock()
		}
		c.wantLog("level=ERROR", "too much told")
		if len(a.seen().broken) > 0 {
			t.Error("a link broke")
		}
	})
}

func TestAMessageLargerThanTheQueueGoesIntoAnEmptyOne(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, func(cfg *Config) { cfg.QueueBytes = 1000 })
		a.up(b)
		a.wantLinked(b)
		large := append([]byte{FirstKind}, make([]byte, MaxFrame-1)...)
		if err := a.peer(b).Offer(large); err != nil {
			t.Fatalf("MaxFrame bytes into an empty queue: %v", err)
		}
		wantErr(t, "Offer beside it", a.peer(b).Offer(large), ErrFull)
		wantErr(t, "one byte more", a.peer(b).Offer(append(large, 0)), ErrTooLarge)
		a.waitFor(time.Minute, "its answer", func() bool { return len(a.answers) == 1 && len(a.answers[0]) == MaxFrame-1 })
		if err := a.peer(b).Offer(large); err != nil {
			t.Errorf("when it was sent: %v", err)
		}
	})
}

// wantOldThenNew lets n go on, slowly, and wants 100 requests of one link and then 100 of the next.
func (n *node) wantOldThenNew() {
	n.t.Helper()
	n.mu.Lock()
	n.pace = time.Millisecond
	n.mu.Unlock()
	n.release()
	n.waitFor(time.Second, "all requests", func() bool { return len(n.requests) == 200 })
	for i, text := range n.seen().requests {
		want := fmt.Sprint("old ", i)
		if i >= 100 {
			want = fmt.Sprint("new ", i-100)
		}
		if text != want {
			n.t.Fatalf("request %d is %q, want %q", i, text, want)
		}
	}
}

func TestWhatAnEndedLinkBroughtIsHandledBeforeWhatTheNextOneBrings(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		a.wantLinked(b)
		b.hold()
		for i := range 100 {
			a.offer(b, fmt.Sprint("old ", i))
		}
		time.Sleep(100 * time.Millisecond)
		a.peer(b).mu.Lock()
		a.peer(b).link.raw.Close()
		a.peer(b).mu.Unlock()
		a.waitFor(time.Second, "Linked", func() bool { return len(a.linked) == 2 })
		for i := range 100 {
			a.offer(b, fmt.Sprint("new ", i))
		}
		time.Sleep(time.Second)
		if n := b.mesh.Stats().LinksIn; n != 1 {
			t.Errorf("%d links in", n)
		}
		b.wantOldThenNew()
	})
}

func TestASecondLinkReplacesTheFirstAndKeepsTheOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, func(cfg *Config) { cfg.Keys = nil })
		a.up(b)
		a.wantLinked(b)
		b.hold()
		for i := range 100 {
			a.offer(b, fmt.Sprint("old ", i))
		}
		time.Sleep(100 * time.Millisecond)
		conn, _ := dialLink(t, nw, b, a.self) // b has not seen the end of the first one
		for i := range 100 {
			_, _ = conn.Write(AppendMessage(nil, FirstKind, fmt.Append(nil, "new ", i)))
		}
		a.waitFor(time.Second, "the first one's end", func() bool { return len(a.broken) == 1 })
		b.wantOldThenNew()
	})
}

// talker is a Handler that answers each request with many messages.
type talker struct{ *node }

func (h talker) Request(in *In, kind byte, body []byte) {
	s := &talk{name: string(body), left: 200}
	in.Ready(s)
	in.Ready(s)
}

type talk struct {
	name string
	left int
}

func (s *talk) Append(dst []byte, room int) ([]byte, bool) {
	for begin := len(dst); s.left > 0 && len(dst)-begin < room; s.left-- {
		dst = AppendMessage(dst, FirstKind, fmt.Append(nil, s.name, strings.Repeat("x", 1000)))
	}
	return dst, s.left > 0
}

func TestSourcesTakeTurns(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		b := start(t, nw, "10.0.0.2", origin("b", 1), func(cfg *Config) { cfg.Handler = talker{cfg.Handler.(*node)} })
		a.up(b)
		a.wantLinked(b)
		for _, name := range []string{"one", "two", "three"} {
			a.offer(b, name)
		}
		a.waitFor(time.Second, "all answers", func() bool { return len(a.answers) == 600 })
		time.Sleep(time.Second)
		answers := a.seen().answers
		for _, name := range []string{"one", "two", "three"} {
			first := slices.IndexFunc(answers, func(s string) bool { return strings.HasPrefix(s, name) })
			if n := len(slices.DeleteFunc(slices.Clone(answers), func(s string) bool { return !strings.HasPrefix(s, name) })); n != 200 || first > 150 {
				t.Errorf("%d answers of %s, the first is number %d", n, name, first)
			}
		}
	})
}

func TestASourceStandsInTheQueueOnce(t *testing.T) {
	in := &In{queued: make(map[Source]struct{})}
	one, two := &talk{}, &talk{}
	for range 100 {
		in.Ready(one)
		in.Ready(two)
	}
	if in.nextLocked() != one || in.nextLocked() != two || in.nextLocked() != nil {
		t.Error("want one, two, and nothing")
	}
	if in.Ready(one); in.nextLocked() != one {
		t.Error("it is not queued again")
	}
}

func TestABrokenAnswerIsLeftOutAndTheLinkLives(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		a.wantLinked(b)
		time.Sleep(10 * time.Millisecond)
		b.mesh.mu.Lock()
		in := b.mesh.ins[a.self]
		b.mesh.mu.Unlock()
		in.Ready(&reply{kind: kindBye, body: []byte("not the owner's")})
		in.Ready(&reply{kind: FirstKind, body: make([]byte, MaxFrame)})
		in.Ready(&reply{kind: FirstKind, body: []byte("good")})
		a.waitFor(time.Second, "the good one", func() bool { return slices.Equal(a.answers, []string{"good"}) })
		b.wantLog("level=ERROR", "an answer is no frame, or too long")
		if n := b.mesh.Stats().Dropped; n != 2 {
			t.Errorf("%d dropped", n)
		}
	})
}

func TestCloseSendsWhatWasTakenBeforeItSaysGoodbye(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		b.up(a)
		a.wantLinked(b)
		b.wantLinked(a)
		for i := range 1000 {
			a.offer(b, fmt.Sprint(i, strings.Repeat("x", 2000)))
		}
		a.end()
		b.waitFor(time.Second, "all requests", func() bool { return len(b.requests) == 1000 })
		b.waitFor(time.Second, "both links down", func() bool { return len(b.broken) == 1 && len(b.ended) == 1 })
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.mesh.Stats().LinksSilent > 0 || b.logged("level=WARN") {
			t.Error("the goodbye was not heard")
		}
	})
}

func TestCloseEndsWithItsContextWhateverPeersDo(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		b.up(a)
		a.wantLinked(b)
		b.wantLinked(a)
		a.mesh.Up(origin("c", 1), "10.0.0.77:1") // its dial hangs
		nw.Cut("10.0.0.1", "10.0.0.2")
		for range 100 {
			a.offer(b, strings.Repeat("x", 20_000))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer cancel()
		began := time.Now()
		a.mesh.Close(ctx)
		if d := time.Since(began); d != 700*time.Millisecond {
			t.Errorf("it took %v", d)
		}
		if a.mesh.Up(b.self, b.addr); a.mesh.Peer(b.self) != nil {
			t.Error("Up works after Close")
		}
		if _, err := a.mesh.DialRelay(t.Context(), b.addr); err == nil {
			t.Error("DialRelay works after Close")
		}
	})
}

// goroutines counts those of the test: the runtime starts some of its own now
// and then.
func goroutines() (n int, stacks []byte) {
	stacks = make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return bytes.Count(stacks, []byte("synctest bubble")), stacks
}

func TestTwoHundredNodesThatComeAndGoLeaveNoGoroutine(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		time.Sleep(time.Second)
		synctest.Wait()
		before, _ := goroutines()
		for i := range 200 {
			b := start(t, nw, "10.0.0.2", origin("b", uint64(i+1)), nil)
			a.up(b)
			b.up(a)
			a.wantLinked(b)
			b.wantLinked(a)
			a.offer(b, "hello")
			if i%2 == 0 {
				b.host.Kill()
			}
			a.mesh.Down(b.self)
			b.end()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if after, stacks := goroutines(); after > before || before < 3 {
			t.Errorf("%d goroutines, %d before\n%s", after, before, stacks)
		}
		if s := a.mesh.Stats(); s.Peers != 0 || s.LinksIn != 0 || s.LinksOut != 0 || s.Unproved != 0 {
			t.Errorf("left: %+v", s)
		}
	})
}

func TestUnknownFramesAreSkippedAndCounted(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, func(cfg *Config) { cfg.Keys = nil })
		a.up(b)
		a.wantLinked(b)
		conn, r := dialLink(t, nw, b, origin("c", 1))
		_, _ = conn.Write(AppendMessage(AppendMessage(nil, 31, []byte("later")), kindWelcome, nil))
		_, _ = conn.Write(AppendMessage(nil, FirstKind, []byte("hello")))
		for {
			kind, body, err := r.next()
			if err != nil {
				t.Fatal(err)
			}
			if kind == FirstKind && string(body) == "hello" {
				break
			}
		}
		if n := b.mesh.Stats().UnknownFrames; n != 2 {
			t.Errorf("%d unknown frames", n)
		}
	})
}

// dialLink makes a plain link to a node by hand.
func dialLink(t *testing.T, nw *memnet.Network, to *node, self directory.Origin) (net.Conn, *reader) {
	t.Helper()
	conn := dialRaw(t, nw, to, linkByte)
	_, _ = conn.Write(hello{min: 1, max: 1, from: self, to: to.self}.append(nil))
	r := newReader(conn, new(atomic.Uint64))
	kind, body, err := r.next()
	if err != nil || kind != kindWelcome {
		t.Fatalf("frame of kind %d, %v, want WELCOME", kind, err)
	}
	if w, err := readWelcome(body); err != nil || w.status != statusOK {
		t.Fatalf("WELCOME: %+v, %v", w, err)
	}
	r.max = MaxFrame
	return conn, r
}

func TestMalformedFramesEndTheLinkAndNothingElse(t *testing.T) {
	delta, mark := Begin(nil, kindDelta)
	delta = End(append(delta, 0xff, 0xff), mark)
	for name, bad := range map[string][]byte{
		"4 GiB":              {0xff, 0xff, 0xff, 0xff, kindDelta},
		"over MaxFrame":      {1, 0, 0, 1, FirstKind},
		"no kind":            {0, 0, 0, 0},
		"a delta of nothing": delta,
		"a short beat":       AppendMessage(nil, kindBeat, make([]byte, beatSize-1)),
		"a beat that lies":   AppendMessage(nil, kindBeat, append(make([]byte, 24), 1, 0)),
		"the middle":         AppendMessage(nil, FirstKind, make([]byte, 1000))[:500],
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				a, b := pair(t, nw, func(cfg *Config) { cfg.Keys = nil })
				a.up(b)
				a.wantLinked(b)
				conn, r := dialLink(t, nw, b, origin("c", 1))
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, _ = conn.Write(bad)
				if name == "the middle" {
					conn.Close()
				}
				for {
					if _, _, err := r.next(); err != nil {
						break
					}
				}
				runtime.ReadMemStats(&after)
				if n := after.TotalAlloc - before.TotalAlloc; n > 512<<10 {
					t.Errorf("%d bytes were allocated", n)
				}
				b.wantLog("link lost", "node=c")
				a.offer(b, "hello")
				a.waitFor(time.Second, "an answer", func() bool { return len(a.answers) == 1 })
			})
		})
	}
}

func TestOfferAndTheWriterAllocateNothingPerMessage(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	m := &Mesh{cfg: Config{QueueBytes: 4 << 20, QueueMessages: 8192, Beats: time.Hour, Directory: directory.New(origin("a", 1), nil)}}
	m.cut, m.cutNow = context.WithCancel(t.Context())
	p := m.newPeer(origin("b", 1), "")
	p.state = working
	near, far := net.Pipe()
	defer far.Close()
	go io.Copy(io.Discard, far)
	l := &out{p: p, m: m, raw: near, done: make(chan struct{}), w: writer{conn: near, count: &m.n.BytesOut, stuck: time.Hour}}
	done := make(chan struct{})
	go func() { defer close(done); l.write() }()
	message := append([]byte{FirstKind}, make([]byte, 256)...)
	allocs := testing.AllocsPerRun(200, func() {
		for range 1000 {
			for p.Offer(message) != nil {
				runtime.Gosched()
			}
		}
	})
	if allocs > 50 {
		t.Errorf("%v allocations for 1000 messages", allocs)
	}
	l.end(errEnded)
	<-done
}

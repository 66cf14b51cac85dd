package netio

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// poke is what wake pokes.
type poke chan struct{}

func newPoke() poke { return make(poke, 1) }

func (p poke) wake() {
	select {
	case p <- struct{}{}:
	default:
	}
}

// poked reports whether wake was called since it was asked last.
func (p poke) poked() bool {
	select {
	case <-p:
		return true
	default:
		return false
	}
}

// addPulled is a pulled connection of a new driver that is not started.
func addPulled(t testing.TB, cfg Config) (d *Driver, c *Conn, p *probe, woken poke) {
	t.Helper()
	d, p, woken = driver(t, cfg), newProbe(), newPoke()
	return d, d.AddPulled(p, woken.wake), p, woken
}

// openPulled is a started one.
func openPulled(t testing.TB, cfg Config) (d *Driver, c *Conn, p *probe, woken poke) {
	t.Helper()
	d, c, p, woken = addPulled(t, cfg)
	c.Start()
	return d, c, p, woken
}

func wantTake(t testing.TB, c *Conn, wantOver bool, want ...string) {
	t.Helper()
	queued, over := take(c)
	var got []string
	for _, b := range queued {
		got = append(got, string(b))
	}
	if !slices.Equal(got, want) || over != wantOver {
		t.Errorf("taken: got %q, over %v, want %q, %v", got, over, want, wantOver)
	}
}

func wantFeed(t testing.TB, c *Conn, b string, want error) {
	t.Helper()
	if err := c.Feed([]byte(b)); err != want {
		t.Errorf("Feed(%q): got %v, want %v", b, err, want)
	}
}

func wantPaused(t testing.TB, c *Conn) {
	t.Helper()
	until(t, "a pause", c.Paused)
}

func TestPulledQueueHasTheLimitsOfAnyOther(t *testing.T) {
	for _, limit := range []Config{{QueueBytes: 1000}, {QueueMessages: 6}} {
		d, c, _, _ := openPulled(t, limit)
		for range 2 {
			for i := range 6 {
				if err := c.Write(make([]byte, 100)); err != nil {
					t.Fatalf("message %d: %v", i, err)
				}
			}
			if err := c.Write(make([]byte, 100)); err != ErrSlow {
				t.Errorf("the seventh: got %v, want ErrSlow", err)
			}
			if size, count := c.Queued(); size != 6*164 || count != 6 || d.QueuedBytes() != 6*164 {
				t.Errorf("queued: %d bytes, %d messages, %d in all, want 984, 6 and 984", size, count, d.QueuedBytes())
			}
			if queued, over := take(c); len(queued) != 6 || over {
				t.Errorf("taken: got %d messages, over %v, want 6, false", len(queued), over)
			}
		}
	}
}

func TestEmptyPulledQueueTakesAnyMessage(t *testing.T) {
	_, c, _, _ := openPulled(t, Config{QueueBytes: 1000, QueueMessages: 1})
	if err := c.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.Write([]byte("x")); err != ErrSlow {
		t.Errorf("the next: got %v, want ErrSlow", err)
	}
}

func TestTakeGivesBackWhatTheQueueCost(t *testing.T) {
	d, c, _, _ := openPulled(t, Config{})
	wantTake(t, c, false)
	c.Write([]byte("one"))
	c.Write(nil)
	c.Write([]byte("two"))
	if got, want := d.QueuedBytes(), int64(6+2*overhead); got != want {
		t.Errorf("queued: got %d, want %d", got, want)
	}
	wantTake(t, c, false, "one", "two")
	if got := d.QueuedBytes(); got != 0 {
		t.Errorf("queued after Take: %d", got)
	}
	c.mu.Lock()
	if c.queue() != nil {
		t.Error("an idle connection holds a queue")
	}
	c.mu.Unlock()
	wantTake(t, c, false)
}

func TestReliefPicksAFullPulledConnection(t *testing.T) {
	d := driver(t, Config{TotalBytes: 100_000})
	var conns []*Conn
	var probes []*probe
	for i := range 10 {
		p := newProbe()
		c := d.AddPulled(p, newPoke().wake)
		p.slow = func() { c.Shut([]byte("slow"), true, patience) }
		c.Start()
		for range i + 1 { // together 55 messages
			if err := c.Write(make([]byte, 1000-overhead)); err != nil {
				t.Fatal(err)
			}
		}
		conns, probes = append(conns, c), append(probes, p)
	}
	us, peer := net.Pipe()
	t.Cleanup(func() { peer.Close() })
	other := d.Add(us, newProbe())
	other.Start()
	for i := range 45 {
		if err := other.Write(make([]byte, 1000-overhead)); err != nil {
			t.Fatalf("message %d of 100: %v", 55+i, err)
		}
		take(conns[i%9])
		for range i%9 + 1 {
			if err := conns[i%9].Write(make([]byte, 1000-overhead)); err != nil {
				t.Fatal(err)
			}
		}
	}
	other.Close()
	for i := range 45 {
		if err := conns[9].Write(make([]byte, 1000-overhead)); err != nil {
			t.Fatalf("message %d of 100: %v", 55+i, err)
		}
	}
	for i, p := range probes {
		if p.slows.Load() != 0 {
			t.Fatalf("connection %d is slow before the limit", i)
		}
	}
	if err := conns[0].Write(make([]byte, 1000-overhead)); err != nil {
		t.Errorf("after the relief: %v", err)
	}
	for i, p := range probes {
		if want := int32(i / 9); p.slows.Load() != want {
			t.Errorf("connection %d: slow %d times, want %d", i, p.slows.Load(), want)
		}
	}
	wantTake(t, conns[9], true, "slow")
	if got, want := d.QueuedBytes(), int64(46_000); got != want {
		t.Errorf("queued after the relief: got %d, want %d", got, want)
	}
}

func TestWakeComesForWriteShutAndClose(t *testing.T) {
	_, c, p, woken := addPulled(t, Config{QueueMessages: 1})
	want := func(what string, want bool) {
		t.Helper()
		if got := woken.poked(); got != want {
			t.Errorf("woken by %s: got %v, want %v", what, got, want)
		}
	}
	want("AddPulled", false)
	c.Start()
	want("Start", false)
	c.Write([]byte("one"))
	want("a message", true)
	c.Write([]byte("two"))
	want("a message that was refused", false)
	wantTake(t, c, false, "one")
	want("Take", false)
	wantFeed(t, c, "hello", nil)
	want("Feed", false)
	c.Shut(nil, false, patience)
	want("Shut", true)
	wantTake(t, c, true)
	c.Close()
	want("Close", true)
	wantTake(t, c, true)
	p.wantClosed(t, ErrClosed)
}

func TestWhatIsQueuedWhenAPulledConnectionClosesIsLost(t *testing.T) {
	d, c, p, _ := openPulled(t, Config{})
	c.Write([]byte("lost"))
	c.Close()
	p.wantClosed(t, ErrClosed)
	wantTake(t, c, true)
	if got := d.QueuedBytes(); got != 0 {
		t.Errorf("queued after Close: %d", got)
	}
	if err := c.Write([]byte("x")); err != ErrClosed {
		t.Errorf("Write: got %v, want ErrClosed", err)
	}
}

func TestLastIsTakenAndFeedingGoesOn(t *testing.T) {
	for name, shut := range map[string]func(c *Conn, last []byte, cut bool, wait time.Duration){
		"Shut": (*Conn).Shut, "HangUp": (*Conn).HangUp,
	} {
		for _, cut := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				d, c, p, _ := openPulled(t, Config{})
				start := time.Now()
				c.Write([]byte("queued"))
				shut(c, []byte("last"), cut, time.Second)
				if err := c.Write([]byte("late")); err != ErrClosed {
					t.Errorf("Write after %s: got %v, want ErrClosed", name, err)
				}
				wantFeed(t, c, "bye", nil)
				if cut {
					wantTake(t, c, true, "last")
				} else {
					wantTake(t, c, true, "queued", "last")
				}
				wantTake(t, c, true)
				if got := d.QueuedBytes(); got != 0 {
					t.Errorf("queued after Take: %d", got)
				}
				wantFeed(t, c, "bye", nil)
				p.wantClosed(t, ErrClosed)
				if got := time.Since(start); got != time.Second {
					t.Errorf("closed after %v, want 1s", got)
				}
				wantFeed(t, c, "bye", ErrClosed)
			})
		}
	}
}

func TestFeedWaitsForResume(t *testing.T) {
	_, c, p, _ := openPulled(t, Config{})
	var heard []string
	p.data = func(b []byte) int {
		heard = append(heard, string(b))
		if len(heard) == 2 {
			c.Resume() // before the pause
		}
		clear(b[:1]) // allowed
		return 1
	}
	fed := make(chan error)
	go func() { fed <- c.Feed([]byte("abc")) }()
	wantPaused(t, c)
	select {
	case err := <-fed:
		t.Fatalf("Feed did not wait: %v", err)
	default:
	}
	if err := c.Feed([]byte("other")); err != ErrFeeding {
		t.Errorf("a second Feed: got %v, want ErrFeeding", err)
	}
	c.Resume()
	if err := <-fed; err != nil {
		t.Error(err)
	}
	if want := []string{"abc", "bc", "c"}; !slices.Equal(heard, want) {
		t.Errorf("heard: got %q, want %q", heard, want)
	}
	if c.Paused() {
		t.Error("paused at the end")
	}
	c.Resume()
	wantFeed(t, c, "", nil) // no byte, no Data
	wantFeed(t, c, "d", nil)
}

func TestShutLetsAFeedGoOn(t *testing.T) {
	_, c, p, _ := openPulled(t, Config{})
	n := 0
	p.data = func(b []byte) int { n++; return n - 1 }
	fed := make(chan error)
	go func() { fed <- c.Feed([]byte("x")) }()
	wantPaused(t, c)
	c.Shut(nil, false, patience)
	if err := <-fed; err != nil || n != 2 {
		t.Errorf("Feed: got %v after %d Data, want nil after 2", err, n)
	}
}

func TestCloseEndsAFeedThatWaits(t *testing.T) {
	_, c, p, _ := openPulled(t, Config{})
	p.data = func(b []byte) int { return 0 }
	fed := make(chan error)
	go func() { fed <- c.Feed([]byte("x")) }()
	wantPaused(t, c)
	c.Close()
	if err := <-fed; err != ErrClosed {
		t.Errorf("Feed: got %v, want ErrClosed", err)
	}
	p.wantClosed(t, ErrClosed)
	if c.Paused() {
		t.Error("paused after Close")
	}
}

func TestClosedComesAfterTheDataOfAFeed(t *testing.T) {
	for _, all := range []bool{true, false} {
		_, c, p, _ := openPulled(t, Config{})
		p.data = func(b []byte) int {
			c.Close()
			select {
			case <-p.ended:
				t.Error("Closed before Data returned")
			default:
			}
			if all {
				return len(b)
			}
			return 0
		}
		var mu sync.Mutex
		p.closed = func(error) { mu.Lock(); defer mu.Unlock() }
		mu.Lock() // a caller of Feed may hold what Closed takes
		wantFeed(t, c, "x", ErrClosed)
		mu.Unlock()
		p.wantClosed(t, ErrClosed)
	}
}

func TestDataThatPanicsInAFeedLeavesNothingBehind(t *testing.T) {
	d, c, p, _ := openPulled(t, Config{})
	p.data = func(b []byte) int { panic("bug") }
	func() {
		defer func() {
			if got := recover(); got != "bug" {
				t.Errorf("recovered: got %v, want bug", got)
			}
		}()
		c.Feed([]byte("x"))
	}()
	c.Close()
	p.wantClosed(t, ErrClosed)
	d.Close()
}

func TestPulledHearsNothingButClosedBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, c, p, _ := addPulled(t, Config{WriteTimeout: time.Second, Tick: time.Second})
		p.data = func([]byte) int { panic("Data before Start") }
		p.tick = func(time.Time) { panic("Tick before Start") }
		c.Write([]byte("hello"))
		wantFeed(t, c, "x", errNotStarted)
		c.Resume()
		time.Sleep(10 * time.Second)
		for range d.Handlers() {
			t.Error("yielded before Start")
		}
		wantTake(t, c, false, "hello")
		c.Close()
		p.wantClosed(t, ErrClosed)
		c.Start()
	})
}

func TestSweepTicksPulledConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, c, p, _ := addPulled(t, Config{Tick: time.Second})
		ticks := 0
		p.tick = func(time.Time) { ticks++ }
		c.Start()
		c.Start()
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if ticks != 10 {
			t.Errorf("%d ticks, want 10", ticks)
		}
		n := 0
		for h := range d.Handlers() {
			if n++; h != p {
				t.Error("yielded another handler")
			}
		}
		if n != 1 {
			t.Errorf("yielded %d times, want once", n)
		}
	})
}

func TestPulledQueueIsStuckOnlyFromAttachOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c, p, _ := addPulled(t, Config{WriteTimeout: 10 * time.Second, Tick: time.Second})
		var after time.Duration
		start := time.Now()
		p.slow = func() { after = time.Since(start) }
		c.Start()
		c.Write([]byte("hello"))
		time.Sleep(time.Hour)
		synctest.Wait()
		if p.slows.Load() != 0 {
			t.Fatal("Slow while pulled")
		}
		us, peer := net.Pipe()
		defer peer.Close()
		start = time.Now()
		if err := c.Attach(us, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if after < 10*time.Second || after > 12*time.Second {
			t.Errorf("Slow after %v, want 10s to 12s", after)
		}
		wantRead(t, peer, []byte("hello"))
	})
}

func TestSilenceCountsFromTheLastFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c, p, _ := addPulled(t, Config{Tick: time.Second})
		silent := func(want time.Duration) {
			t.Helper()
			got := c.Silence(time.Now())
			if got > want || got < want-time.Second {
				t.Errorf("silence: got %v, want %v or up to a second less", got, want)
			}
		}
		take := true
		p.data = func(b []byte) int {
			if take {
				return len(b)
			}
			return 0
		}
		c.Start()
		time.Sleep(10*time.Second + time.Millisecond)
		silent(10*time.Second + time.Millisecond)
		wantFeed(t, c, "x", nil)
		silent(0)
		c.Write([]byte("what is written does not count"))
		time.Sleep(20 * time.Second)
		_, cost, _ := c.Take()
		c.Taken(cost)
		silent(20 * time.Second)
		wantFeed(t, c, "", nil)
		silent(0)
		take = false
		fed := make(chan error)
		go func() { fed <- c.Feed([]byte("x")) }()
		synctest.Wait()
		time.Sleep(time.Hour)
		silent(0)
		take = true
		c.Resume()
		if err := <-fed; err != nil {
			t.Error(err)
		}
		silent(0)
		time.Sleep(5 * time.Second)
		silent(5 * time.Second)
		us, peer := net.Pipe()
		defer peer.Close()
		if err := c.Attach(us, nil); err != nil {
			t.Fatal(err)
		}
		silent(0)
		time.Sleep(5 * time.Second)
		silent(5 * time.Second)
	})
}

// One half of what several goroutines write is taken or queued when the
// socket comes, the other half is written during Attach and after it.
func TestAttachLosesAndDoublesNothingAmongWriters(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		for round := range 20 {
			d, c, _, _ := openPulled(t, Config{})
			us, peer := pair(t, door)
			const writers, each, size = 4, 300, 100
			var sent atomic.Int32
			half := make(chan struct{})
			for w := range writers {
				go func() {
					for i := range each {
						b := binary.BigEndian.AppendUint32(nil, uint32(w))
						b = binary.BigEndian.AppendUint32(b, uint32(i))
						if err := c.Write(append(b, pattern(size, w+i)...)); err != nil {
							panic(err)
						}
						if sent.Add(1) == writers*each/2 {
							close(half)
						}
					}
				}()
			}
			var next [writers]int
			check := func(b []byte) {
				t.Helper()
				w, i := int(binary.BigEndian.Uint32(b)), int(binary.BigEndian.Uint32(b[4:]))
				if w >= writers || i != next[w] || !bytes.Equal(b[8:], pattern(size, w+i)) {
					t.Fatalf("writer %d: got message %d, want %d", w, i, next[w])
				}
				next[w]++
			}
			n := 0
			for taking := round%2 == 0; taking; {
				queued, _ := take(c)
				for _, b := range queued {
					check(b)
				}
				n += len(queued)
				taking = n < writers*each/4
			}
			<-half
			if err := c.Attach(us, nil); err != nil {
				t.Fatal(err)
			}
			peer.SetReadDeadline(time.Now().Add(patience))
			for ; n < writers*each; n++ {
				var b [8 + size]byte
				if _, err := io.ReadFull(peer, b[:]); err != nil {
					t.Fatal(err)
				}
				check(b[:])
			}
			until(t, "an empty queue", func() bool { return d.QueuedBytes() == 0 })
			if err := c.Write([]byte("end")); err != nil { // nothing but this comes now
				t.Fatal(err)
			}
			wantRead(t, peer, []byte("end"))
			wantTake(t, c, false)
			until(t, "an idle writer", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return !c.writing && c.queue() == nil })
			hang(peer)
			d.Close()
		}
	})
}

func TestAttachFlushesMoreThanTheSocketTakes(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		_, c, _, woken := openPulled(t, Config{})
		var want []byte
		for i := range 300 {
			b := pattern(1+i*i, i)
			want = append(want, b...)
			if err := c.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		us, peer := pair(t, door)
		defer hang(peer)
		woken.poked()
		if err := c.Attach(us, nil); err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("behind it"))
		wantRead(t, peer, append(want, "behind it"...))
		if woken.poked() {
			t.Error("woken after Attach")
		}
		if got, want := c.Peer(), addrPort(us); got != want {
			t.Errorf("address: got %v, want %v", got, want)
		}
	})
}

func TestAttachedConnectionIsLikeAnyOther(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		for _, shut := range []func(c *Conn, last []byte, cut bool, wait time.Duration){(*Conn).Shut, (*Conn).HangUp} {
			_, c, p, _ := openPulled(t, Config{})
			wantFeed(t, c, "before", nil)
			if got := c.Peer(); got.IsValid() {
				t.Errorf("address: got %v, want none", got)
			}
			us, peer := pair(t, door)
			defer hang(peer)
			us.SetDeadline(time.Now()) // left over from a handshake
			heard := make(chan string, 1)
			p.data = func(b []byte) int { heard <- string(b); return len(b) }
			if err := c.Attach(us, nil); err != nil {
				t.Fatal(err)
			}
			peer.Write([]byte("hello"))
			if got := <-heard; got != "hello" {
				t.Errorf("heard %q, want hello", got)
			}
			wantFeed(t, c, "x", errAttached)
			if err := c.Attach(us, nil); err != errAttached {
				t.Errorf("a second Attach: got %v, want errAttached", err)
			}
			shut(c, []byte("last"), false, patience)
			wantRead(t, peer, []byte("last"))
			if door != "pipe" { // which has no half to close, so HangUp has ended it
				wantTake(t, c, false)
			}
			hang(peer)
			<-p.ended
			wantTake(t, c, true)
		}
	})
}

func TestRestIsGivenToDataFirst(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		for _, late := range []bool{false, true} {
			_, c, p, _ := addPulled(t, Config{})
			us, peer := pair(t, door)
			defer hang(peer)
			var mu sync.Mutex
			var got []byte
			p.data = func(b []byte) int { // takes one byte at a time, and is stopped behind each
				mu.Lock()
				defer mu.Unlock()
				got = append(got, b[0])
				b[0] = 0
				return 1
			}
			if !late {
				c.Start()
			}
			rest := []byte("rest")
			go peer.Write([]byte(" and more"))
			if err := c.Attach(us, rest); err != nil {
				t.Fatal(err)
			}
			copy(rest, "....") // Attach has copied it
			if late {
				c.Start()
			}
			until(t, "all", func() bool {
				c.Resume()
				mu.Lock()
				defer mu.Unlock()
				return string(got) == "rest and more"
			})
			mu.Lock()
			if string(rest) != "...." {
				t.Errorf("the caller's rest was changed to %q", rest)
			}
			mu.Unlock()
		}
	})
}

func TestAttachIsRefusedAfterShutAndClose(t *testing.T) {
	for _, end := range []func(c *Conn){
		func(c *Conn) { c.Shut([]byte("last"), false, patience) },
		func(c *Conn) { c.HangUp([]byte("last"), false, patience) },
		func(c *Conn) { c.Close() },
	} {
		_, c, p, _ := openPulled(t, Config{})
		end(c)
		us, peer := net.Pipe()
		if err := c.Attach(us, []byte("rest")); err != ErrClosed {
			t.Errorf("got %v, want ErrClosed", err)
		}
		c.Close()
		p.wantClosed(t, ErrClosed)
		go us.Write([]byte("still the caller's"))
		wantRead(t, peer, []byte("still the caller's"))
		us.Close()
	}
}

func TestAttachIsRefusedWhileFeedRuns(t *testing.T) {
	_, c, p, _ := openPulled(t, Config{})
	us, peer := net.Pipe()
	defer peer.Close()
	attach := func() {
		t.Helper()
		if err := c.Attach(us, nil); err != ErrFeeding {
			t.Errorf("got %v, want ErrFeeding", err)
		}
	}
	p.data = func(b []byte) int { attach(); return 1 }
	fed := make(chan error)
	go func() { fed <- c.Feed([]byte("ab")) }()
	wantPaused(t, c)
	attach()
	c.Resume()
	if err := <-fed; err != nil {
		t.Error(err)
	}
	if err := c.Attach(us, nil); err != nil {
		t.Error(err)
	}
}

func TestAddressMayBeAskedForDuringAttach(t *testing.T) {
	_, c, _, _ := openPulled(t, Config{})
	us, peer := pair(t, "tcp")
	defer hang(peer)
	at := addrPort(us)
	asked := make(chan netip.AddrPort)
	go func() { asked <- c.Peer() }() // for the race detector
	if err := c.Attach(us, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-asked; got.IsValid() && got != at {
		t.Errorf("address: got %v", got)
	}
}

func TestDriverCloseClosesPulledConnections(t *testing.T) {
	d := New(Config{})
	var all []*probe
	var fed []chan error
	for state := range 6 {
		p, woken := newProbe(), newPoke()
		c := d.AddPulled(p, woken.wake)
		all = append(all, p)
		if state != 0 { // 0: not started
			c.Start()
		}
		switch state {
		case 2:
			p.data = func([]byte) int { return 0 }
			f := make(chan error, 1)
			fed = append(fed, f)
			go func() { f <- c.Feed([]byte("stop")) }()
			wantPaused(t, c)
		case 3:
			c.Write(make([]byte, 1000))
		case 4:
			c.Shut([]byte("last"), false, time.Hour)
		case 5:
			us, peer := net.Pipe()
			t.Cleanup(func() { peer.Close() })
			c.Write(make([]byte, 1000))
			if err := c.Attach(us, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.Close()
	for _, p := range all {
		select {
		case err := <-p.ended:
			if err != ErrClosed {
				t.Errorf("Closed: got %v, want ErrClosed", err)
			}
		default:
			t.Fatal("Close returned before Closed")
		}
	}
	for _, f := range fed {
		if err := <-f; err != ErrClosed {
			t.Errorf("Feed: got %v, want ErrClosed", err)
		}
	}
	if got := d.QueuedBytes(); got != 0 {
		t.Errorf("queued after Close: %d", got)
	}

	p, woken := newProbe(), newPoke()
	c := d.AddPulled(p, woken.wake)
	c.Start()
	p.wantClosed(t, ErrClosed)
	if !woken.poked() {
		t.Error("added after Close: not woken")
	}
	wantTake(t, c, true)
	wantFeed(t, c, "x", ErrClosed)
}

// TestAnythingAtOncePulledEndsWithOneClosedAndNothingQueued lets goroutines
// call everything on connections that get a socket, or an end, at any moment.
func TestAnythingAtOncePulledEndsWithOneClosedAndNothingQueued(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		for round := range 30 {
			d := New(Config{QueueBytes: 100_000, TotalBytes: 300_000, WriteTimeout: time.Millisecond, Tick: time.Millisecond})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			var wg sync.WaitGroup
			for i := range 4 {
				us, peer := pair(t, door)
				p, woken := newProbe(), newPoke()
				c := d.AddPulled(p, woken.wake)
				var got atomic.Int64
				p.data = func(b []byte) int {
					if got.Add(1)%3 == 0 {
						return len(b) / 2
					}
					return len(b)
				}
				p.slow = func() { c.Shut([]byte("slow"), true, time.Millisecond) }
				wg.Go(func() { io.Copy(io.Discard, io.LimitReader(peer, int64(round*i)*10_000)) })
				wg.Go(func() {
					for {
						if _, err := peer.Write(make([]byte, 100)); err != nil {
							return
						}
					}
				})
				wg.Go(func() {
					for {
						queued, over := take(c)
						if over && len(queued) == 0 {
							c.Close()
							return
						}
						select {
						case <-woken:
						case <-p.ended:
							p.ended <- ErrClosed
							return
						}
					}
				})
				for w := range 2 { // two at once: ErrFeeding
					wg.Go(func() {
						for n := 0; ; n++ {
							switch err := c.Feed(make([]byte, 100)); err {
							case nil, ErrFeeding, errNotStarted:
							case ErrClosed, errAttached:
								return
							default:
								t.Errorf("Feed: %v", err)
							}
							if w == 0 && n >= round*10 {
								switch err := c.Attach(us, make([]byte, 10)); err {
								case nil, ErrClosed, errAttached:
									return
								case ErrFeeding:
								default:
									t.Errorf("Attach: %v", err)
								}
							}
						}
					})
				}
				for w := range 3 {
					wg.Go(func() {
						r := mrand.New(mrand.NewPCG(uint64(round), uint64(w)))
						for {
							switch op := r.IntN(1000); {
							case op < 600:
								if c.Write(make([]byte, 1<<r.IntN(16))) == ErrClosed {
									return
								}
							case op < 900:
								c.Resume()
							case op < 990:
								c.Queued()
								c.Paused()
								c.Peer()
								c.Silence(time.Now())
							case op < 993:
								c.Shut([]byte("last"), r.IntN(2) == 0, time.Duration(r.IntN(3))*time.Millisecond)
							case op < 995:
								c.HangUp([]byte("last"), r.IntN(2) == 0, time.Duration(r.IntN(3))*time.Millisecond)
							case op < 996:
								c.Close()
							}
						}
					})
				}
				wg.Go(func() {
					c.Start()
					select {
					case err := <-p.ended:
						p.ended <- err
					case <-ctx.Done():
						t.Error("a connection did not end")
						c.Close()
					}
					hang(peer)
					hang(us) // perhaps it was never attached
				})
			}
			wg.Wait()
			cancel()
			d.Close()
			if got := d.QueuedBytes(); got != 0 {
				t.Fatalf("round %d: queued after all closed: %d", round, got)
			}
		}
	})
}

func TestIdlePulledConnectionIsSmall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector needs memory of its own")
	}
	d := driver(t, Config{})
	const n = 10_000
	wake := newPoke().wake
	conns := make([]*Conn, 0, n)
	heap, stack := memory()
	for range n {
		c := d.AddPulled(idle{}, wake)
		c.Start()
		c.Write([]byte("hello")) // has been busy, now idle
		if queued, _ := take(c); len(queued) != 1 {
			t.Fatalf("taken: got %d messages, want 1", len(queued))
		}
		if err := c.Feed([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	heap2, stack2 := memory()
	each := (heap2 - heap) / n
	t.Logf("an idle pulled connection takes %d bytes, and %d of stack", each, (stack2-stack)/n)
	if each > 200 {
		t.Errorf("an idle pulled connection takes %d bytes, want at most 200", each)
	}
	wantFeed(t, conns[0], "", nil)
}

// take takes what is queued, and says that it is written.
func take(c *Conn) (queued [][]byte, over bool) {
	queued, cost, over := c.Take()
	c.Taken(cost)
	return queued, over
}

func TestWhatIsTakenCountsUntilItIsWritten(t *testing.T) {
	for _, end := range []string{"taken", "close", "attach"} {
		t.Run(end, func(t *testing.T) {
			d := New(Config{QueueBytes: 1 << 10, TotalBytes: 1 << 12})
			defer d.Close()
			c := d.AddPulled(&pullHandler{}, func() {})
			c.Start()
			if err := c.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			_, cost, _ := c.Take()
			if bytes, messages := c.Queued(); cost != 1000+overhead || bytes != cost || messages != 0 || d.QueuedBytes() != int64(cost) {
				t.Fatalf("taken for %d: queued %d in %d, of all %d", cost, bytes, messages, d.QueuedBytes())
			}
			if err := c.Write(make([]byte, 1000)); err != nil { // the queue itself is empty
				t.Fatal(err)
			}
			switch end {
			case "taken":
				c.Taken(cost)
				take(c)
			case "close":
				c.Close()
				c.Taken(cost)
			case "attach":
				near, far := net.Pipe()
				defer far.Close()
				if err := c.Attach(near, nil); err != nil {
					t.Fatal(err)
				}
				c.Taken(cost)
				if _, err := io.ReadFull(far, make([]byte, 1000)); err != nil {
					t.Fatal(err)
				}
				for d.QueuedBytes() > 0 { // the writer is about to note it
					runtime.Gosched()
				}
			}
			if n := d.QueuedBytes(); n != 0 {
				t.Errorf("%d bytes are still counted", n)
			}
		})
	}
}

type pullHandler struct{}

func (*pullHandler) Data(b []byte) int { return len(b) }
func (*pullHandler) Tick(time.Time)    {}
func (*pullHandler) Slow()             {}
func (*pullHandler) Closed(error)      {}

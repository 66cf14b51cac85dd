//go:build !pushgoroutines

package netio

import (
	"bytes"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var polledDoors = []string{"tcp", "unix"}

func eachPolledDoor(t *testing.T, f func(t *testing.T, door string)) {
	for _, door := range polledDoors {
		t.Run(door, func(t *testing.T) { f(t, door) })
	}
}

func wantPolled(t testing.TB, c *Conn, want bool) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if got := c.s == nil; got != want {
		t.Fatalf("polled: got %v, want %v", got, want)
	}
}

// sets is the epoll descriptors of d.
func sets(d *Driver) (eps []int) {
	for i := range d.shards {
		s := &d.shards[i]
		s.mu.Lock()
		if s.poll.file != nil {
			eps = append(eps, int(s.poll.ep))
		}
		s.mu.Unlock()
	}
	return eps
}

// watched is how many descriptors the kernel has in the sets of d.
func watched(t testing.TB, d *Driver) (n int) {
	t.Helper()
	for _, ep := range sets(d) {
		info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", ep))
		if err != nil {
			t.Fatal(err)
		}
		n += strings.Count(string(info), "tfd:")
	}
	return n
}

// told is how many events the sets have at this moment. They are
// level-triggered, so asking takes nothing away, and what stays here has the
// poller spin.
func told(d *Driver) (n int) {
	var events [someEvents]syscall.EpollEvent
	for _, ep := range sets(d) {
		n += epollWait(uintptr(ep), events[:])
	}
	return n
}

// untilEvents waits until the kernel has all of want to tell of c's descriptor.
func untilEvents(t testing.TB, c *Conn, want uint32) {
	t.Helper()
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(ep)
	event := syscall.EpollEvent{Events: want}
	if err := syscall.EpollCtl(ep, syscall.EPOLL_CTL_ADD, int(c.fd), &event); err != nil {
		t.Fatal(err)
	}
	until(t, "the kernel to know", func() bool {
		var events [1]syscall.EpollEvent
		return epollWait(uintptr(ep), events[:]) == 1 && events[0].Events&want == want
	})
}

// wantQuiet waits until the poller has nothing to do.
func wantQuiet(t testing.TB, d *Driver) {
	t.Helper()
	until(t, "sets that tell of nothing", func() bool { return told(d) == 0 })
}

func openPollers(t testing.TB, d *Driver) {
	t.Helper()
	for i := range d.shards {
		if !d.shards[i].openPoller() {
			t.Fatal("no poller")
		}
	}
}

func TestPolledConnectionIsOneDescriptorAndNoGoroutine(t *testing.T) {
	eachPolledDoor(t, func(t *testing.T, door string) {
		d := driver(t, Config{})
		const n = 100
		us, peers := pairs(t, door, n)
		openPollers(t, d)
		before := descriptors(t)
		heard := make(chan struct{}, n)
		var conns []*Conn
		for i := range us {
			c := d.Add(us[i], hears(heard))
			wantPolled(t, c, true)
			if flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, uintptr(c.fd), syscall.F_GETFD, 0); flags&syscall.FD_CLOEXEC == 0 {
				t.Fatal("a child process would inherit the descriptor")
			}
			if _, err := us[i].Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Fatalf("the net.Conn it came in: %v, want it closed", err)
			}
			if got, want := c.Peer(), addrPort(us[i]); got != want {
				t.Fatalf("address: got %v, want %v", got, want)
			}
			conns = append(conns, c)
		}
		if got := descriptors(t); got != before {
			t.Errorf("%d descriptors for %d connections more than before, want 0", got-before, n)
		}
		if got := watched(t, d); got != 0 {
			t.Errorf("%d are watched before Start", got)
		}
		for i, c := range conns {
			c.Start()
			peers[i].Write([]byte("hello"))
			<-heard
			c.Write([]byte("world"))
			wantRead(t, peers[i], []byte("world"))
		}
		until(t, "no goroutine of a connection", func() bool { return len(stacks("netio.(*Conn)")) == 0 })
		if got := len(stacks("netio.(*shard).run")); got != len(d.shards) {
			t.Errorf("%d pollers, want %d", got, len(d.shards))
		}
		if got := watched(t, d); got != n {
			t.Errorf("%d are watched, want %d", got, n)
		}
		wantQuiet(t, d)
		for _, peer := range peers {
			peer.Close()
		}
		until(t, "no descriptor of theirs", func() bool { return descriptors(t) == before-2*n })
	})
}

type wrappedUnix struct{ *net.UnixConn }

func TestOnlyWhatIsExactlyASocketIsPolled(t *testing.T) {
	d := driver(t, Config{})
	for _, of := range []struct {
		door string
		wrap func(net.Conn) net.Conn
		want bool
	}{
		{"tcp", nil, true},
		{"unix", nil, true},
		{"tls", nil, false},
		{"pipe", nil, false},
		{"tcp", func(nc net.Conn) net.Conn { return &wrapped{TCPConn: nc.(*net.TCPConn)} }, false},
		{"unix", func(nc net.Conn) net.Conn { return wrappedUnix{nc.(*net.UnixConn)} }, false},
	} {
		for _, attach := range []bool{false, true} {
			us, peer := pair(t, of.door)
			defer hang(peer)
			if of.wrap != nil {
				us = of.wrap(us)
			}
			var c *Conn
			if attach {
				c = d.AddPulled(newProbe(), newPoke().wake)
				wantPolled(t, c, false)
				if err := c.Attach(us, nil); err != nil {
					t.Fatal(err)
				}
			} else {
				c = d.Add(us, newProbe())
			}
			wantPolled(t, c, of.want)
		}
	}
}

// Every byte of a connection is its identity, in both directions, while
// descriptors, and places in the tables, change hands as fast as they can.
func TestReusedDescriptorsCarryNobodyElsesBytes(t *testing.T) {
	d := driver(t, Config{QueueBytes: 1 << 20})
	openPollers(t, d)
	var ids atomic.Uint32
	var wg sync.WaitGroup
	for w := range 8 {
		l := listener(t, polledDoors[w%2])
		wg.Go(func() {
			r := mrand.New(mrand.NewPCG(uint64(w), 3))
			for range 150 {
				us, peer, err := dial(l)
				if err != nil {
					t.Error(err)
					return
				}
				comeAndGo(t, d, us, peer, byte(ids.Add(1)), r.IntN(7), r.IntN(20_000))
			}
		})
	}
	wg.Wait()
	if n := watched(t, d); n != 0 {
		t.Errorf("%d are watched when none is left", n)
	}
	wantQuiet(t, d)
}

// comeAndGo is the life of one connection, which ends in one of seven ways,
// perhaps by Data when that has read as much as left.
func comeAndGo(t *testing.T, d *Driver, us, peer net.Conn, id byte, end, left int) {
	theirs := func(b []byte) int { return len(b) - bytes.Count(b, []byte{id}) }
	p := newProbe()
	var c *Conn
	p.data = func(b []byte) int {
		if n := theirs(b); n != 0 {
			t.Errorf("read %d bytes of others", n)
		}
		c.Write(bytes.Clone(b))
		if left -= len(b); left > 0 {
			return len(b)
		}
		switch end {
		case 0:
			c.Close()
		case 1:
			c.HangUp([]byte{id, id, id}, true, time.Millisecond)
		case 2:
			go c.Close()
			return 0 // stopped, with something kept
		}
		return len(b)
	}
	c = d.Add(us, p)
	c.Start()
	var all sync.WaitGroup
	all.Go(func() {
		for c.Write([]byte{id, id, id}) != ErrClosed { // at the moment of the end, too
			runtime.Gosched()
		}
	})
	all.Go(func() {
		b := bytes.Repeat([]byte{id}, 3000)
		for n := 0; n < 25_000; n += len(b) {
			b = b[:1+n%3000]
			if _, err := peer.Write(b); err != nil {
				return
			}
		}
	})
	all.Go(func() {
		b := make([]byte, 1000)
		for {
			n, err := peer.Read(b)
			if n := theirs(b[:n]); n != 0 {
				t.Errorf("the peer read %d bytes of others", n)
			}
			if err != nil {
				return
			}
		}
	})
	switch end {
	case 3:
		c.Close()
	case 4:
		peer.Close()
	case 5:
		if tcp, ok := peer.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		peer.Close()
	case 6:
		c.Write(bytes.Repeat([]byte{id}, 1<<20))
		c.Shut([]byte{id}, true, time.Millisecond)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Error("Closed was not called")
		c.Close()
	}
	peer.Close()
	all.Wait()
}

// A descriptor in a level-triggered set whose peer has hung up is told of for
// ever, also to who asks for nothing.
func TestHangUpOfAPeerNobodyReadsIsNotToldOf(t *testing.T) {
	const fin, gone, reset = "fin", "close", "reset"
	eachPolledDoor(t, func(t *testing.T, door string) {
		for _, started := range []bool{false, true} {
			for _, end := range []string{fin, gone, reset} {
				for _, full := range []bool{false, true} {
					if end == reset && door == "unix" || full && end != fin {
						continue // a unix socket has no reset; a writer notices the others
					}
					d, c, p, peer := add(t, door, Config{})
					heard := make(chan struct{}, 2)
					taken := 0
					p.data = func(b []byte) int { heard <- struct{}{}; return taken }
					if started {
						c.Start()
						peer.Write([]byte("x"))
						<-heard
						until(t, "a stop", c.Paused)
						taken = 1
					}
					if full {
						clog(t, c, 1<<20)
					}
					know := uint32(syscall.EPOLLRDHUP)
					switch end {
					case fin:
						peer.(interface{ CloseWrite() error }).CloseWrite()
					case reset:
						peer.(*net.TCPConn).SetLinger(0)
						know |= syscall.EPOLLHUP | syscall.EPOLLERR
						fallthrough
					default:
						peer.Close()
					}
					untilEvents(t, c, know)
					wantQuiet(t, d)
					if got, want := watched(t, d), map[bool]int{true: 1}[full]; got != want {
						t.Errorf("%d are watched, want %d", got, want)
					}
					select {
					case err := <-p.ended:
						t.Fatalf("ended with %v, though nobody looked", err)
					default:
					}
					if started {
						c.Resume()
						<-heard // what was kept comes first
					} else {
						c.Start()
					}
					if end == reset {
						p.wantClosed(t, syscall.ECONNRESET)
					} else {
						p.wantClosed(t, nil)
					}
				}
			}
		}
	})
}

func TestRoomForNothingIsNotToldOf(t *testing.T) {
	eachPolledDoor(t, func(t *testing.T, door string) {
		d, c, _, peer := open(t, door, Config{})
		before, message := clog(t, c, 1<<20)
		wantQuiet(t, d) // it is full
		wantRead(t, peer, append(before, message...))
		until(t, "an empty queue", func() bool { return d.QueuedBytes() == 0 })
		wantQuiet(t, d) // there is room, and nothing to write
	})
}

// Between fork and exec a child process has copies of all descriptors: a
// socket that is closed here lives on, and the set would tell of it.
func TestCopiesOfADescriptorConfuseNobody(t *testing.T) {
	eachPolledDoor(t, func(t *testing.T, door string) {
		d := driver(t, Config{})
		l := listener(t, door)
		for round := range 20 {
			us, peer, err := dial(l)
			if err != nil {
				t.Fatal(err)
			}
			p := newProbe()
			stop := round%2 == 0
			p.data = func(b []byte) int {
				if stop {
					return 0
				}
				return len(b)
			}
			c := d.Add(us, p)
			c.Start()
			fork, err := syscall.Dup(int(c.fd))
			if err != nil {
				t.Fatal(err)
			}
			if stop {
				peer.Write([]byte("x"))
				until(t, "a stop", c.Paused)
			}
			c.Close()
			p.wantClosed(t, ErrClosed)
			if n := watched(t, d); n != 0 {
				t.Fatalf("%d are watched when none is left", n)
			}
			if _, err := peer.Write([]byte("for nobody")); err != nil {
				t.Fatal(err)
			}
			us2, peer2, err := dial(l) // gets the number, and the place in the table
			if err != nil {
				t.Fatal(err)
			}
			p2 := newProbe()
			heard := make(chan string, 1)
			p2.data = func(b []byte) int { heard <- string(b); return len(b) }
			c2 := d.Add(us2, p2)
			c2.Start()
			wantQuiet(t, d)
			peer2.Write([]byte("hello"))
			if got := <-heard; got != "hello" {
				t.Fatalf("heard %q", got)
			}
			syscall.Close(fork)
			peer.Close()
			peer2.Close()
			p2.wantClosed(t, nil)
		}
	})
}

func TestChildProcessesConfuseNobody(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Skip(err)
	}
	d := driver(t, Config{QueueBytes: 1 << 20})
	openPollers(t, d)
	over := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		l := listener(t, polledDoors[w])
		wg.Go(func() {
			for i := 0; ; i++ {
				us, peer, err := dial(l)
				if err != nil {
					t.Error(err)
					return
				}
				comeAndGo(t, d, us, peer, byte(2*i+w), i%7, 1000)
				select {
				case <-over:
					return
				default:
				}
			}
		})
	}
	for range 50 {
		if err := exec.Command(program).Run(); err != nil {
			t.Error(err)
		}
	}
	close(over)
	wg.Wait()
	if n := watched(t, d); n != 0 {
		t.Errorf("%d are watched when none is left", n)
	}
	wantQuiet(t, d)
}

// exhaust lets the process have no descriptor more. free gives it some back.
func exhaust(t *testing.T) (free func(n int)) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = min(low.Cur, 512)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	var spare []int
	for {
		fd, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			break
		}
		spare = append(spare, fd)
	}
	free = func(n int) {
		for _, fd := range spare[:n] {
			syscall.Close(fd)
		}
		spare = spare[n:]
	}
	t.Cleanup(func() {
		free(len(spare))
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
	return free
}

func TestWithoutDescriptorsConnectionsAreServedAllTheSame(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one poller
	eachPolledDoor(t, func(t *testing.T, door string) {
		d := driver(t, Config{})
		us, peers := pairs(t, door, 5)
		before := descriptors(t)
		t.Run("exhausted", func(t *testing.T) {
			free := exhaust(t)
			for i, of := range []struct {
				free   int
				polled bool
			}{
				{0, false}, // no descriptor for a set
				{1, false}, // one for the set, none for the connection
				{0, false},
				{1, true}, // for as long as the connection changes hands
				{0, true},
			} {
				free(of.free)
				p := newProbe()
				var c *Conn
				p.data = func(b []byte) int { c.Write(bytes.Clone(b)); return len(b) }
				c = d.Add(us[i], p)
				wantPolled(t, c, of.polled)
				c.Start()
				peers[i].Write([]byte("hello"))
				wantRead(t, peers[i], []byte("hello"))
				defer p.wantClosed(t, nil)
				defer peers[i].Close()
			}
		})
		if got, want := descriptors(t), before-2*len(us)+1; got != want {
			t.Errorf("%d descriptors, want %d", got, want)
		}
	})
}

func TestConnectionThatTheSetRefusesEndsWithAnError(t *testing.T) {
	d, c, p, _ := add(t, "tcp", Config{})
	ep := c.shard.poll.ep
	c.shard.poll.ep = -1 // as if there were too many watches
	c.Start()
	p.wantClosed(t, syscall.EBADF)
	c.shard.poll.ep = ep
	d.Close()
}

// One Data of what sends as fast as it can writes to the other connection,
// so that is ready from then on.
func TestFloodDoesNotKeepOthersFromBeingRead(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one poller
	d := driver(t, Config{})
	us, peers := pairs(t, "unix", 2)
	flood, other := newProbe(), newProbe()
	var calls, pinged, worst, pings int // the poller's
	done := make(chan struct{})
	flood.data = func(b []byte) int {
		if calls++; calls%10 == 0 && pinged == 0 {
			pinged = calls
			peers[1].Write([]byte("x"))
		}
		return len(b)
	}
	other.data = func(b []byte) int {
		worst, pinged = max(worst, calls-pinged), 0
		if pings++; pings == 1000 {
			close(done)
		}
		return len(b)
	}
	d.Add(us[1], other).Start()
	d.Add(us[0], flood).Start()
	go func() {
		for b := make([]byte, 64<<10); ; {
			if _, err := peers[0].Write(b); err != nil {
				return
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the other is not read")
	}
	d.Close()
	if worst > 8 { // two turns of four reads
		t.Errorf("%d reads of the flood before one of the other, want at most 8", worst)
	}
	for _, peer := range peers {
		peer.Close()
	}
}

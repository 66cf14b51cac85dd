package netio

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// descriptors is how many the process has.
func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all) - 1 // the directory's own
}

// A blocking descriptor would keep the poller, or a processor, for as long as
// the peer likes.
func TestSocketThatWasMadeBlockingDoesNotBlock(t *testing.T) {
	us, peer := pair(t, "tcp")
	defer peer.Close()
	file, err := us.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd := file.Fd() // makes it blocking, for all copies of the descriptor
	heard := make(chan struct{}, 1)
	c := driver(t, Config{}).Add(us, hears(heard))
	if flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0); flags&syscall.O_NONBLOCK == 0 {
		t.Fatal("the descriptor blocks")
	}
	c.Start()
	peer.Write(make([]byte, readSize)) // as much as a read takes: there may be more
	<-heard
	clog(t, c, 8<<20) // a write that does not fit
}

// A connection of each state that there is, many times over.
func TestDriverCloseLeavesNoDescriptorAndNoGoroutine(t *testing.T) {
	before := descriptors(t)
	much := make([]byte, 4<<20) // more than a socket takes
	for _, door := range []string{"tcp", "unix"} {
		d := New(Config{})
		const states, each = 9, 150
		us, peers := pairs(t, door, states*each)
		probes := make([]*probe, len(us))
		for i := range us {
			us[i].(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(4 << 10)
			p := newProbe()
			probes[i] = p
			state := i % states
			c := d.Add(us[i], p)
			if state == 0 { // not started
				continue
			}
			if state == 2 || state == 4 {
				p.data = func([]byte) int { return 0 }
			}
			c.Start()
			if state == 2 || state == 4 { // stopped, which 4 is with a full queue
				peers[i].Write([]byte("stop"))
				until(t, "a stop", c.Paused)
			}
			if state >= 3 && state <= 6 {
				c.Write(much)
			}
			switch state {
			case 5:
				c.Shut([]byte("last"), true, time.Hour)
			case 6:
				c.HangUp([]byte("last"), false, time.Hour)
			case 7:
				c.HangUp([]byte("last"), false, time.Hour)
			case 8:
				go peers[i].Close()
				go c.Write([]byte("hello"))
			}
		}
		d.Close()
		for _, p := range probes {
			if len(p.ended) != 1 {
				t.Fatal("Close returned before a Closed")
			}
		}
		if got := d.QueuedBytes(); got != 0 {
			t.Errorf("queued after Close: %d", got)
		}
		for _, peer := range peers {
			peer.Close()
		}
		until(t, "as many descriptors as before", func() bool { return descriptors(t) == before })
		if left := ours(); left != "" {
			t.Errorf("goroutines left:\n%s", left)
		}
	}
}

// What is kept for connections that are gone, the next ones would pay again.
func TestSecondWaveOfConnectionsLeavesNoMoreThanTheFirst(t *testing.T) {
	d := driver(t, Config{})
	much := make([]byte, 8<<20) // more than a socket takes
	wave := func() {
		for _, door := range []string{"tcp", "unix"} {
			us, peers := pairs(t, door, 300)
			for i, peer := range peers {
				p := newProbe()
				var c *Conn
				p.data = func(b []byte) int { c.Write(bytes.Clone(b)); return len(b) - i%2 }
				c = d.Add(us[i], p)
				c.Start()
				peer.Write([]byte("hello"))
				wantRead(t, peer, []byte("hello"))
				if i%2 == 1 {
					until(t, "a stop", c.Paused)
				}
				if i%3 == 0 {
					c.Write(much)
				}
				if i%4 > 1 || i%2 == 1 { // who is stopped does not see the peer's end
					c.Close()
				}
				peer.Close()
				<-p.ended
			}
		}
	}
	type left struct {
		descriptors, goroutines int
		heap                    int64
	}
	measure := func() left {
		heap, _ := memory()
		return left{descriptors(t), len(stacks("netio.(*")), heap}
	}
	wave() // also fills pools, and what package net keeps
	first := measure()
	wave()
	var second left
	until(t, "the goroutines of the second wave to end", func() bool {
		second = measure()
		return second.goroutines <= first.goroutines
	})
	if second.descriptors > first.descriptors {
		t.Errorf("%d descriptors, want %d", second.descriptors, first.descriptors)
	}
	// 600 connections that each leave a Conn behind are more than this.
	if grown := second.heap - first.heap; grown > 48<<10 && !raceEnabled {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

// The socket was full before it was ours.
func TestAttachToAFullSocketLosesNothing(t *testing.T) {
	for _, door := range []string{"tcp", "unix"} {
		t.Run(door, func(t *testing.T) {
			d, c, _, _ := openPulled(t, Config{})
			us, peer := pair(t, door)
			defer peer.Close()
			raw, err := us.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var want []byte
			for full := false; !full; {
				b := pattern(8<<10, len(want))
				if err := raw.Write(func(fd uintptr) bool {
					n, err := syscall.Write(int(fd), b)
					want, full = append(want, b[:max(n, 0)]...), err == syscall.EAGAIN
					return true
				}); err != nil {
					t.Fatal(err)
				}
			}
			write := func(i int) {
				b := pattern(1+i*100, i)
				want = append(want, b...)
				if err := c.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 100 {
				write(i)
			}
			queued := d.QueuedBytes()
			if err := c.Attach(us, nil); err != nil {
				t.Fatal(err)
			}
			if got := d.QueuedBytes(); got != queued {
				t.Errorf("queued: got %d, want all of %d", got, queued)
			}
			for i := range 100 {
				write(i)
			}
			wantRead(t, peer, want)
			until(t, "an empty queue", func() bool { return d.QueuedBytes() == 0 })
		})
	}
}

func TestPanicOfAHandlerEndsTheProcess(t *testing.T) {
	const key = "NETIO_TEST_PANIC"
	if os.Getenv(key) != "" {
		_, c, p, peer := add(t, "tcp", Config{})
		p.data = func([]byte) int { panic("a bug in a handler") }
		c.Start()
		peer.Write([]byte("x"))
		time.Sleep(patience)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), key+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !bytes.Contains(out, []byte("panic: a bug in a handler")) {
		t.Errorf("got %v and %q, want a panic", err, out)
	}
}

// TestDataThatTakesLongGoesApart: the others of its shard are read meanwhile,
// and what comes behind is not overtaken.
func TestDataThatTakesLongGoesApart(t *testing.T) {
	d := driver(t, Config{})
	add := func() (*Conn, *probe, net.Conn) {
		us, peer := pair(t, "tcp")
		t.Cleanup(func() { hang(peer) })
		p := newProbe()
		return d.Add(us, p), p, peer
	}
	a, slow, peerA := add()
	b, quick, peerB := add()
	for b.shard != a.shard {
		b, quick, peerB = add()
	}
	begun, hold, got := make(chan struct{}), make(chan struct{}), make(chan string, 10)
	var all string
	slow.data = func(in []byte) int {
		if a.Apart() {
			return 0
		}
		if all == "" {
			close(begun)
			<-hold
		}
		if a.Apart() {
			t.Error("apart, and told to go apart")
		}
		all += string(in)
		got <- all
		return len(in)
	}
	heard := make(chan string, 1)
	quick.data = func(in []byte) int { heard <- string(in); return len(in) }
	a.Start()
	b.Start()
	peerA.Write([]byte("one"))
	<-begun
	peerA.Write([]byte(" two"))
	peerB.Write([]byte("hello"))
	if got := <-heard; got != "hello" {
		t.Errorf("got %q, want hello", got)
	}
	close(hold)
	for last := ""; last != "one two"; {
		select {
		case last = <-got:
		case <-time.After(patience):
			t.Fatalf("got %q, want one two", last)
		}
	}
	hang(peerA)
	<-slow.ended
}

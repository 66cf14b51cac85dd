package netio

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

func TestWriteToAnIdleConnectionAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	for _, door := range []string{"tcp", "unix"} {
		t.Run(door, func(t *testing.T) {
			_, c, _, peer := open(t, door, Config{QueueBytes: 256 << 10, TotalBytes: 1 << 20})
			go io.Copy(io.Discard, peer)
			b := make([]byte, 128)
			if got := testing.AllocsPerRun(1000, func() {
				if err := c.Write(b); err != nil {
					t.Fatal(err)
				}
			}); got != 0 {
				t.Errorf("a write: %v allocations, want 0", got)
			}
		})
	}
}

func TestReadingAllocatesNothingPerMessage(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	for _, door := range []string{"tcp", "unix", "pipe"} {
		t.Run(door, func(t *testing.T) {
			us, peer := pair(t, door)
			defer hang(peer)
			heard := make(chan struct{}, 1)
			c := driver(t, Config{}).Add(us, hears(heard))
			c.Start()
			b := make([]byte, 128)
			if got := testing.AllocsPerRun(1000, func() {
				peer.Write(b)
				<-heard
			}); got != 0 {
				t.Errorf("a message: %v allocations, want 0", got)
			}
		})
	}
}

func TestQueueAllocatesNothingPerMessageOnceWarm(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	_, c, _, peer := open(t, "tcp", Config{})
	b := make([]byte, 1000)
	clog(t, c, 8<<20)
	for range 5000 {
		c.Write(b)
	}
	if got := testing.AllocsPerRun(1000, func() { c.Write(b) }); got != 0 {
		t.Errorf("a queued message: %v allocations, want 0", got)
	}
	hang(peer)
}

// A stack that a deep Data made larger would stay so for as long as the
// connection is idle.
func TestDeepDataLeavesASmallStack(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector needs stack of its own")
	}
	d := driver(t, Config{})
	const n = 300
	heard := make(chan struct{}, n)
	var peers []net.Conn
	var conns []*Conn
	for range n {
		us, peer := pair(t, "tcp")
		defer peer.Close()
		peers = append(peers, peer)
		conns = append(conns, d.Add(us, deep(heard)))
	}
	_, before := memory()
	for i, c := range conns {
		c.Start()
		peers[i].Write([]byte("hello"))
		<-heard
	}
	var each int64
	until(t, "stacks of less than 3 KB", func() bool {
		_, after := memory()
		each = (after - before) / n
		return each < 3000
	})
	t.Logf("%d bytes of stack a connection", each)
}

// deep is a handler that needs a lot of stack.
type deep chan struct{}

func (h deep) Data(b []byte) int { dig(40); h <- struct{}{}; return len(b) }
func (deep) Tick(time.Time)      {}
func (deep) Slow()               {}
func (deep) Closed(error)        {}

//go:noinline
func dig(n int) byte {
	var b [256]byte
	if n > 0 {
		b[n] = dig(n - 1)
	}
	return b[n]
}

// BenchmarkRead is a message that comes alone: written by the peer, read,
// waited for.
func BenchmarkRead(b *testing.B) {
	for _, door := range doors {
		b.Run(door, func(b *testing.B) {
			us, peer := pair(b, door)
			defer hang(peer)
			heard := make(chan struct{}, 1)
			driver(b, Config{}).Add(us, hears(heard)).Start()
			m := make([]byte, 128)
			b.ReportAllocs()
			for b.Loop() {
				peer.Write(m)
				<-heard
			}
		})
	}
}

// BenchmarkDrain is how fast a long queue of small messages leaves.
func BenchmarkDrain(b *testing.B) {
	for _, door := range doors {
		b.Run(door, func(b *testing.B) {
			d, c, _, peer := open(b, door, Config{})
			go io.Copy(io.Discard, peer)
			m := make([]byte, 130)
			b.SetBytes(130)
			for range b.N {
				c.Write(m)
				for d.QueuedBytes() > 1<<20 {
					runtime.Gosched()
				}
			}
			until(b, "an empty queue", func() bool { return d.QueuedBytes() == 0 })
		})
	}
}

// BenchmarkSweep is what a sweep costs a connection beside its Tick.
func BenchmarkSweep(b *testing.B) {
	const n = 5000
	d := driver(b, Config{Tick: time.Hour, WriteTimeout: time.Second})
	for range n {
		us, peer := net.Pipe()
		defer peer.Close()
		d.Add(us, idle{}).Start()
	}
	b.ReportAllocs()
	for b.Loop() {
		now := time.Now()
		d.each(func(c *Conn) { c.sweep(now) })
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/n, "ns/conn")
}

// BenchmarkIdle reports what one idle connection costs beside its sockets and
// the peer's end.
func BenchmarkIdle(b *testing.B) {
	for _, door := range doors {
		b.Run(door, func(b *testing.B) {
			for b.Loop() {
				const n = 1000
				type ends struct{ us, peer net.Conn }
				all := make([]ends, n)
				for i := range all {
					all[i].us, all[i].peer = pair(b, door)
				}
				d := New(Config{})
				conns := make([]*Conn, n)
				heap, stack := memory()
				for i := range all {
					conns[i] = d.Add(all[i].us, idle{})
				}
				for _, c := range conns {
					c.Start()
				}
				for _, c := range conns { // has been busy, now idle
					c.Write(make([]byte, 10))
				}
				for _, e := range all {
					io.ReadFull(e.peer, make([]byte, 10))
				}
				for range 2 { // the first collection learns how small a new stack may be
					for _, e := range all {
						e.peer.Write(make([]byte, 10))
					}
					memory()
				}
				heap2, stack2 := memory()
				b.ReportMetric(float64(heap2-heap)/n, "heap-B/conn")
				b.ReportMetric(float64(stack2-stack)/n, "stack-B/conn")
				for _, e := range all {
					hang(e.peer)
				}
				d.Close()
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// idle is a handler without a byte.
type idle struct{}

func (idle) Data(b []byte) int { return len(b) }
func (idle) Tick(time.Time)    {}
func (idle) Slow()             {}
func (idle) Closed(error)      {}

// hears says when something was read.
type hears chan struct{}

func (h hears) Data(b []byte) int { h <- struct{}{}; return len(b) }
func (hears) Tick(time.Time)      {}
func (hears) Slow()               {}
func (hears) Closed(error)        {}

func memory() (heap, stack int64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.StackInuse)
}

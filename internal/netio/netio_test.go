package netio

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// patience is how long a test waits for what happens at once.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := ours(); left != "" {
			fmt.Println("goroutines left:\n" + left)
			code = 1
		}
	}
	os.Exit(code)
}

// ours is the stacks of the driver's goroutines, after they had time to end.
func ours() string {
	for limit := time.Now().Add(patience); ; runtime.Gosched() {
		left := stacks("netio.(*Conn)", "netio.(*Driver)", "netio.(*shard)")
		if len(left) == 0 || time.Now().After(limit) {
			return strings.Join(left, "\n\n")
		}
	}
}

// stacks is those of all goroutines that have one of these names in them.
func stacks(names ...string) (of []string) {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for _, g := range strings.Split(string(buf), "\n\n") {
		if slices.ContainsFunc(names, func(name string) bool { return strings.Contains(g, name) }) {
			of = append(of, g)
		}
	}
	return of
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

var doors = []string{"tcp", "unix", "tls", "pipe"}

func eachDoor(t *testing.T, f func(t *testing.T, door string)) {
	for _, door := range doors {
		t.Run(door, func(t *testing.T) { f(t, door) })
	}
}

// pair is a connection through one of the doors: our end and the peer's.
func pair(t testing.TB, door string) (us, peer net.Conn) {
	t.Helper()
	if door == "pipe" {
		return net.Pipe()
	}
	all, peers := pairs(t, door, 1)
	us, peer = all[0], peers[0]
	if door == "tls" {
		s := tls.Server(us, &tls.Config{Certificates: []tls.Certificate{certificate()}})
		c := tls.Client(peer, &tls.Config{InsecureSkipVerify: true})
		shaken := make(chan error, 1)
		go func() { shaken <- c.Handshake() }()
		if err := errors.Join(s.Handshake(), <-shaken); err != nil {
			t.Fatal(err)
		}
		us, peer = s, c
	}
	return us, peer
}

// listener is of the sockets behind a door, for dial.
func listener(t testing.TB, door string) net.Listener {
	t.Helper()
	network, addr := "tcp", "127.0.0.1:0"
	if door == "unix" {
		dir, err := os.MkdirTemp("", "n")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		network, addr = "unix", filepath.Join(dir, "s")
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dial is a connection to l, both ends, for one caller at a time.
func dial(l net.Listener) (us, peer net.Conn, err error) {
	if peer, err = net.Dial(l.Addr().Network(), l.Addr().String()); err != nil {
		return nil, nil, err
	}
	if us, err = l.Accept(); err != nil {
		return nil, nil, err
	}
	return us, peer, nil
}

// pairs is n connections through one of the doors that are sockets.
func pairs(t testing.TB, door string, n int) (us, peers []net.Conn) {
	t.Helper()
	l := listener(t, door)
	defer l.Close()
	for range n {
		u, p, err := dial(l)
		if err != nil {
			t.Fatal(err)
		}
		us, peers = append(us, u), append(peers, p)
	}
	return us, peers
}

// probe is a handler made of functions, any of which may be nil. It checks
// the order of the calls that Handler promises.
type probe struct {
	data   func(b []byte) int
	tick   func(now time.Time)
	slow   func()
	closed func(err error)
	ended  chan error // gets Closed's error, once

	reading, calling atomic.Int32
	slows            atomic.Int32
	over             atomic.Bool
}

func newProbe() *probe { return &probe{ended: make(chan error, 1)} }

func (p *probe) enter() func() {
	p.calling.Add(1)
	if p.over.Load() {
		panic("called after Closed")
	}
	return func() { p.calling.Add(-1) }
}

func (p *probe) Data(b []byte) int {
	defer p.enter()()
	if p.reading.Add(1) != 1 {
		panic("two Data at once")
	}
	defer p.reading.Add(-1)
	if len(b) == 0 {
		panic("Data without a byte")
	}
	if p.data != nil {
		return p.data(b)
	}
	return len(b)
}

func (p *probe) Tick(now time.Time) {
	defer p.enter()()
	if p.tick != nil {
		p.tick(now)
	}
}

func (p *probe) Slow() {
	defer p.enter()()
	if p.slows.Add(1) != 1 {
		panic("two Slow")
	}
	if p.slow != nil {
		p.slow()
	}
}

func (p *probe) Closed(err error) {
	if p.over.Swap(true) {
		panic("two Closed")
	}
	if p.calling.Load() != 0 {
		panic("Closed while another call runs")
	}
	if p.closed != nil {
		p.closed(err)
	}
	p.ended <- err
}

func (p *probe) wantClosed(t testing.TB, want error) {
	t.Helper()
	select {
	case err := <-p.ended:
		if !errors.Is(err, want) {
			t.Fatalf("Closed: got %v, want %v", err, want)
		}
	case <-time.After(patience):
		t.Fatal("Closed was not called")
	}
}

func driver(t testing.TB, cfg Config) *Driver {
	d := New(cfg)
	t.Cleanup(d.Close)
	return d
}

// open is a started connection of a new driver.
func open(t testing.TB, door string, cfg Config) (d *Driver, c *Conn, p *probe, peer net.Conn) {
	t.Helper()
	d, c, p, peer = add(t, door, cfg)
	c.Start()
	return d, c, p, peer
}

// add is a connection of a new driver that is not started: p's functions may
// still be set.
func add(t testing.TB, door string, cfg Config) (d *Driver, c *Conn, p *probe, peer net.Conn) {
	t.Helper()
	d = driver(t, cfg)
	us, peer := pair(t, door)
	t.Cleanup(func() { hang(peer) })
	p = newProbe()
	return d, d.Add(us, p), p, peer
}

// hang closes without waiting for TLS to say goodbye.
func hang(nc net.Conn) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	nc.Close()
}

// until waits for what another goroutine is about to bring about.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !f(); runtime.Gosched() {
		if time.Now().After(limit) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + seed + i>>8)
	}
	return b
}

func wantRead(t testing.TB, peer net.Conn, want []byte) {
	t.Helper()
	peer.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(peer, got); err != nil {
		t.Fatalf("read %d of %d bytes: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the peer read other bytes than were written")
	}
}

func TestConcurrentWritesOfAnySizeArriveInOrder(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		d, c, p, peer := open(t, door, Config{})
		const writers, each = 4, 150
		for w := range writers {
			go func() {
				r := mrand.New(mrand.NewPCG(uint64(w), 1))
				for i := range each {
					n := 1 << r.IntN(17)
					b := binary.BigEndian.AppendUint32(nil, uint32(w))
					b = binary.BigEndian.AppendUint32(b, uint32(i))
					b = binary.BigEndian.AppendUint32(b, uint32(n))
					if err := c.Write(append(b, pattern(n, w+i)...)); err != nil {
						panic(err)
					}
				}
			}()
		}
		peer.SetReadDeadline(time.Now().Add(patience))
		var next [writers]int
		for range writers * each {
			var head [12]byte
			if _, err := io.ReadFull(peer, head[:]); err != nil {
				t.Fatal(err)
			}
			w, i := int(binary.BigEndian.Uint32(head[:])), int(binary.BigEndian.Uint32(head[4:]))
			if w >= writers || i != next[w] {
				t.Fatalf("writer %d: got message %d", w, i)
			}
			next[w]++
			wantRead(t, peer, pattern(int(binary.BigEndian.Uint32(head[8:])), w+i))
		}
		until(t, "an empty queue", func() bool { return d.QueuedBytes() == 0 })
		c.mu.Lock()
		if c.queue() != nil {
			t.Error("an idle connection holds a queue")
		}
		c.mu.Unlock()
		hang(peer)
		if err := <-p.ended; err == ErrClosed {
			t.Error("we did not close it")
		}
	})
}

func TestSlowAtTheLimitAndTheConnectionGoesOn(t *testing.T) {
	for _, limit := range []Config{{QueueBytes: 64 << 10}, {QueueMessages: 10}} {
		eachDoor(t, func(t *testing.T, door string) {
			d, c, p, peer := open(t, door, limit)
			var sent []byte
			for i := 0; ; i++ {
				b := pattern(8000, i)
				err := c.Write(b)
				if err == ErrSlow {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				sent = append(sent, b...)
			}
			size, count := c.Queued()
			if limit.QueueBytes > 0 && size > limit.QueueBytes+8064 || limit.QueueMessages > 0 && count > limit.QueueMessages+1 {
				t.Errorf("queued at the limit: %d bytes, %d messages", size, count)
			}
			until(t, "QueuedBytes to be what is queued", func() bool {
				size, _ := c.Queued()
				return d.QueuedBytes() == int64(size)
			})
			wantRead(t, peer, sent)
			until(t, "an empty queue", func() bool { return d.QueuedBytes() == 0 })
			if err := c.Write([]byte("on")); err != nil {
				t.Fatal(err)
			}
			wantRead(t, peer, []byte("on"))
			if p.slows.Load() != 0 {
				t.Error("Slow is not for a full queue")
			}
		})
	}
}

func TestLimitsAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, limit := range []Config{{QueueBytes: 1000}, {QueueMessages: 6}} {
			_, c, _, _ := open(t, "pipe", limit)
			for i := range 6 {
				if err := c.Write(make([]byte, 100)); err != nil {
					t.Fatalf("message %d: %v", i, err)
				}
			}
			synctest.Wait()
			if err := c.Write(make([]byte, 100)); err != ErrSlow {
				t.Errorf("the seventh: got %v, want ErrSlow", err)
			}
			if size, count := c.Queued(); size != 6*164 || count != 6 {
				t.Errorf("queued: %d bytes, %d messages, want 984 and 6", size, count)
			}
		}
	})
}

func TestEmptyQueueTakesAnyMessage(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		_, c, _, peer := open(t, door, Config{QueueBytes: 1000, QueueMessages: 1})
		b := pattern(16<<20, 1)
		if err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := c.Write([]byte("x")); err != ErrSlow {
			t.Errorf("the next: got %v, want ErrSlow", err)
		}
		wantRead(t, peer, b)
	})
}

func TestSlowReaderLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, c, _, peer := open(t, "pipe", Config{QueueBytes: 4000})
		var sent, got []byte
		go func() {
			for i := range 2000 {
				b := pattern(1+i%300, i)
				for c.Write(b) == ErrSlow {
					time.Sleep(time.Second)
				}
				sent = append(sent, b...)
			}
			for d.QueuedBytes() > 0 {
				time.Sleep(time.Second)
			}
			c.Close()
		}()
		buf := make([]byte, 100)
		for i := 0; ; i++ {
			time.Sleep(time.Duration(i%3) * 10 * time.Millisecond)
			n, err := peer.Read(buf[:1+i%100])
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.Equal(got, sent) {
			t.Errorf("got %d bytes, want %d, or others", len(got), len(sent))
		}
	})
}

// clog fills the connection until a message of size bytes is partly written
// and stays so, and returns what was written before it and the message.
func clog(t *testing.T, c *Conn, size int) (before, message []byte) {
	t.Helper()
	for i := 0; ; i++ {
		b := pattern(size, i)
		if err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if n, _ := c.Queued(); n > 0 {
			until(t, "a message in flight", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.queue() == nil || c.queue().off > 0 || c.queue().flying > 0
			})
		}
		if n, _ := c.Queued(); n > 0 {
			return before, b
		}
		before = append(before, b...)
	}
}

func TestCutSendsTheMessageInFlightThenLastAndNothingElse(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		d, c, p, peer := open(t, door, Config{})
		before, message := clog(t, c, 8<<20)
		for range 1000 {
			if err := c.Write([]byte("never to be seen")); err != nil {
				t.Fatal(err)
			}
		}
		c.Shut([]byte("last"), true, patience)
		if got, want := d.QueuedBytes(), int64(len(message)+overhead+4+overhead); got != want {
			t.Errorf("queued after the cut: got %d, want %d", got, want)
		}
		if err := c.Write([]byte("late")); err != ErrClosed {
			t.Errorf("Write after Shut: got %v, want ErrClosed", err)
		}
		wantRead(t, peer, before)
		wantRead(t, peer, message)
		wantRead(t, peer, []byte("last"))
		until(t, "an empty queue", func() bool { return d.QueuedBytes() == 0 })
		peer.Close()
		p.wantClosed(t, nil)
	})
}

// The cut comes at any moment, with small messages that are joined.
func TestCutNeverTearsAMessage(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		for round := range 100 {
			d, c, p, peer := open(t, door, Config{QueueBytes: 1 << 20})
			var wg sync.WaitGroup
			for w := range 2 {
				wg.Go(func() {
					for i := 0; ; i++ {
						n := 1 + (i*(w+3)+round)%4000
						b := binary.BigEndian.AppendUint32(nil, uint32(n))
						if c.Write(append(b, pattern(n, n)...)) == ErrClosed {
							return
						}
					}
				})
			}
			time.AfterFunc(time.Duration(round%10)*time.Millisecond/2, func() {
				c.Shut([]byte{0, 0, 0, 0}, true, patience)
			})
			peer.SetReadDeadline(time.Now().Add(patience))
			for {
				var head [4]byte
				if _, err := io.ReadFull(peer, head[:]); err != nil {
					t.Fatal(err)
				}
				n := int(binary.BigEndian.Uint32(head[:]))
				if n == 0 {
					break
				}
				wantRead(t, peer, pattern(n, n))
			}
			wg.Wait()
			hang(peer)
			select {
			case <-p.ended:
			case <-time.After(patience):
				t.Fatal("Closed was not called")
			}
			if got := d.QueuedBytes(); got != 0 {
				t.Fatalf("queued after Closed: %d", got)
			}
			d.Close()
		}
	})
}

func TestShutSendsWhatIsQueuedThenLastAndStillReads(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		_, c, p, peer := add(t, door, Config{})
		heard := make(chan string, 1)
		p.data = func(b []byte) int { heard <- string(b); return len(b) }
		c.Start()
		before, message := clog(t, c, 1<<20)
		var more []byte
		for i := range 100 {
			b := pattern(i*10, i)
			more = append(more, b...)
			if err := c.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		c.Shut([]byte("last"), false, patience)
		c.Shut([]byte("ignored"), false, 2*patience)
		wantRead(t, peer, before)
		wantRead(t, peer, message)
		wantRead(t, peer, more)
		wantRead(t, peer, []byte("last"))
		if _, err := peer.Write([]byte("bye")); err != nil {
			t.Fatal(err)
		}
		if got := <-heard; got != "bye" {
			t.Errorf("after Shut: got %q", got)
		}
		peer.Close()
		p.wantClosed(t, nil)
	})
}

func TestHangUpIsSeenBehindTheLastBytes(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		for _, queued := range []bool{false, true} {
			for _, last := range []string{"", "last"} {
				_, c, p, peer := add(t, door, Config{})
				heard := make(chan string, 1)
				p.data = func(b []byte) int { heard <- string(b); return len(b) }
				c.Start()
				var want []byte
				if queued {
					before, message := clog(t, c, 1<<20)
					want = append(before, message...)
				}
				c.HangUp([]byte(last), false, patience)
				got, err := io.ReadAll(peer)
				if err != nil || !bytes.Equal(got, append(want, last...)) {
					t.Errorf("read %d bytes, %v, want %d and the end", len(got), err, len(want)+len(last))
				}
				if door != "pipe" {
					if _, err := peer.Write([]byte("bye")); err != nil {
						t.Error(err)
					} else if got := <-heard; got != "bye" {
						t.Errorf("after HangUp: got %q", got)
					}
					peer.Close()
					p.wantClosed(t, nil)
				} else {
					p.wantClosed(t, ErrClosed)
				}
			}
		}
	})
}

func TestHangUpAfterShutStillHangsUp(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		_, c, _, peer := add(t, door, Config{})
		c.Start()
		c.Shut([]byte("last"), false, patience)
		c.HangUp([]byte("ignored"), false, patience)
		if got, err := io.ReadAll(peer); err != nil || string(got) != "last" {
			t.Errorf("read %q, %v", got, err)
		}
		peer.Close()
	})
}

func TestSecondShutMayCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c, p, peer := open(t, "pipe", Config{})
		start := time.Now()
		for _, m := range []string{"a", "b", "c"} {
			c.Write([]byte(m))
			synctest.Wait() // a is in flight, the others wait
		}
		c.Shut([]byte("last"), false, time.Minute)
		c.Shut([]byte("other"), true, time.Second)
		c.Shut(nil, false, time.Hour)
		wantRead(t, peer, []byte("alast"))
		p.wantClosed(t, ErrClosed)
		if got := time.Since(start); got != time.Second {
			t.Errorf("closed after %v, want 1s", got)
		}
	})
}

func TestShutWaitsForThePeerAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, read := range []bool{true, false} {
			_, c, p, peer := open(t, "pipe", Config{Tick: time.Minute})
			start := time.Now()
			c.Shut([]byte("last"), true, time.Second)
			if read {
				wantRead(t, peer, []byte("last"))
			}
			p.wantClosed(t, ErrClosed)
			if got := time.Since(start); got != time.Second {
				t.Errorf("closed after %v, want 1s", got)
			}
		}
	})
}

func TestOutputUnsentWhenTheWaitEndsIsAReset(t *testing.T) {
	for _, door := range []string{"tcp", "tls"} {
		t.Run(door, func(t *testing.T) {
			d, c, p, peer := open(t, door, Config{})
			clog(t, c, 8<<20)
			c.Shut([]byte("last"), true, time.Millisecond)
			p.wantClosed(t, ErrClosed)
			if got := d.QueuedBytes(); got != 0 {
				t.Errorf("queued after Closed: %d", got)
			}
			peer.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer saw %v, want a reset", err)
			}
		})
	}
}

func TestNothingUnsentIsAPlainClose(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		_, c, p, peer := open(t, door, Config{})
		c.Shut(nil, false, time.Millisecond)
		p.wantClosed(t, ErrClosed)
		peer.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.Copy(io.Discard, peer); n != 0 || err != nil {
			t.Errorf("the peer saw %d bytes and %v", n, err)
		}
	})
}

func TestStuckQueueIsSlowOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c, p, peer := add(t, "pipe", Config{WriteTimeout: 10 * time.Second, Tick: time.Second})
		var after time.Duration
		start := time.Now()
		p.slow = func() { after = time.Since(start) }
		c.Start()
		time.Sleep(time.Minute) // idle is not stuck
		start = time.Now()
		c.Write([]byte("hello"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if after < 10*time.Second || after > 12*time.Second {
			t.Errorf("Slow after %v, want 10s to 12s", after)
		}
		wantRead(t, peer, []byte("hello"))
	})
}

func TestProgressInsideOneMessageIsNotStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c, p, peer := open(t, "pipe", Config{WriteTimeout: 10 * time.Second})
		b := pattern(20*joinSize, 3)
		c.Write(b)
		for len(b) > 0 {
			time.Sleep(8 * time.Second)
			wantRead(t, peer, b[:joinSize])
			b = b[joinSize:]
		}
		if p.slows.Load() != 0 {
			t.Error("Slow although bytes left")
		}
	})
}

func TestReliefPicksTheFullest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const total = 100_000
		d := driver(t, Config{TotalBytes: total})
		var conns []*Conn
		var probes []*probe
		for i := range 10 {
			us, peer := net.Pipe()
			defer peer.Close()
			p := newProbe()
			c := d.Add(us, p)
			p.slow = func() { c.Shut([]byte("slow"), true, time.Hour) }
			c.Start()
			for range i + 1 { // together 55 messages
				if err := c.Write(make([]byte, 1000-overhead)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
			conns, probes = append(conns, c), append(probes, p)
		}
		for i := range 45 {
			if err := conns[0].Write(make([]byte, 1000-overhead)); err != nil {
				t.Fatalf("message %d of 100: %v", 55+i, err)
			}
		}
		for i, p := range probes {
			if p.slows.Load() != 0 {
				t.Fatalf("connection %d is slow before the limit", i)
			}
		}
		// The writer itself is the fullest, then the last one.
		if err := conns[0].Write(make([]byte, 1000-overhead)); err != ErrClosed {
			t.Errorf("the fullest: got %v, want ErrClosed", err)
		}
		if got, want := d.QueuedBytes(), int64(55_000+4+overhead); got != want {
			t.Errorf("queued after the relief: got %d, want %d", got, want)
		}
		for range 60 {
			if err := conns[1].Write(make([]byte, 1000-overhead)); err != nil && err != ErrClosed {
				t.Fatal(err)
			}
		}
		if probes[0].slows.Load() != 1 || probes[1].slows.Load() != 1 || probes[9].slows.Load() != 0 {
			t.Error("relief chose others than the fullest")
		}
		if err := conns[2].Write(make([]byte, total)); err != ErrSlow {
			t.Errorf("a message larger than the total: got %v, want ErrSlow", err)
		}
		if d.QueuedBytes() > total {
			t.Errorf("queued %d of %d", d.QueuedBytes(), total)
		}
	})
}

func TestTotalIsStrictUnderConcurrentWriters(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		// A message of 50 bytes is written whole or not at all, so nothing may
		// excuse itself with being partly on the wire.
		const total, last = 200_000, 4 + overhead
		d := driver(t, Config{TotalBytes: total})
		const n = 12
		var conns []*Conn
		for range n {
			us, peer := pair(t, door)
			t.Cleanup(func() { hang(peer) })
			p := newProbe()
			c := d.Add(us, p)
			p.slow = func() { c.Shut([]byte("slow"), true, patience) }
			c.Start()
			conns = append(conns, c)
		}
		var wg sync.WaitGroup
		var most atomic.Int64
		for w := range 4 {
			wg.Go(func() {
				r := mrand.New(mrand.NewPCG(uint64(w), 7))
				b := make([]byte, 50)
				refused := 0
				for refused < 3000 {
					if conns[r.IntN(n)].Write(b) != nil {
						refused++
					}
					if now := d.QueuedBytes(); now > most.Load() {
						most.Store(now)
					}
				}
			})
		}
		wg.Wait()
		if got := most.Load(); got > total+n*last {
			t.Errorf("queued at most %d, want %d and %d last messages", got, total, n)
		}
	})
}

func TestStopAndResumeAtEveryByte(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		_, c, p, peer := add(t, door, Config{})
		want := pattern(20_000, 5)
		var got []byte
		done := make(chan struct{})
		r := mrand.New(mrand.NewPCG(1, 2))
		step := 0
		p.data = func(b []byte) int {
			n := min(step%40, len(b))
			step++
			got = append(got, b[:n]...)
			clear(b[:n]) // allowed; the rest must not suffer
			if len(got) == len(want) {
				close(done)
				return n
			}
			if n < len(b) {
				switch r.IntN(3) {
				case 0:
					c.Resume() // before the stop
				case 1:
					go c.Resume() // racing with it
				case 2:
					go func() { // after it, and once too often
						until(t, "a stop", func() bool {
							select {
							case <-done: // an earlier Resume was late and took the stop away
								return true
							default:
							}
							c.mu.Lock()
							defer c.mu.Unlock()
							return c.stopped
						})
						c.Resume()
						c.Resume()
					}()
				}
			}
			return n
		}
		c.Start()
		go func() {
			for b := want; len(b) > 0; {
				n := min(1+len(b)%777, len(b))
				if _, err := peer.Write(b[:n]); err != nil {
					panic(err)
				}
				b = b[n:]
			}
		}()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("reading does not go on")
		}
		if !bytes.Equal(got, want) {
			t.Error("other bytes than were written")
		}
	})
}

func TestStoppedConnectionHoldsNoGoroutineAndCloses(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		_, c, p, peer := add(t, door, Config{})
		p.data = func(b []byte) int { return len(b) - 1 }
		c.Start()
		peer.Write([]byte("two"))
		until(t, "a stop", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.stopped && c.refs == 0 && string(*c.more.carry) == "o"
		})
		c.Close()
		p.wantClosed(t, ErrClosed)
		c.Resume()
	})
}

func TestShutResumesReading(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		_, c, p, peer := add(t, door, Config{})
		var n int
		stopped := make(chan struct{})
		p.data = func(b []byte) int {
			if n++; n == 1 {
				close(stopped)
				return 0
			}
			return len(b)
		}
		c.Start()
		peer.Write([]byte("hello"))
		<-stopped
		c.Shut(nil, false, patience)
		peer.Close()
		p.wantClosed(t, nil)
	})
}

func TestSilenceDoesNotCountStoppedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c, p, peer := add(t, "pipe", Config{Tick: time.Second})
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
		peer.Write([]byte("x"))
		synctest.Wait()
		silent(0)
		time.Sleep(20 * time.Second)
		silent(20 * time.Second)
		take = false
		peer.Write([]byte("x"))
		synctest.Wait()
		time.Sleep(time.Hour)
		silent(0)
		take = true
		c.Resume()
		synctest.Wait()
		silent(0)
		time.Sleep(5 * time.Second)
		silent(5 * time.Second)
	})
}

func TestSweepTicksEveryConnectionOnceBetweenStartAndClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := driver(t, Config{Tick: time.Second})
		const n = 1500
		ticks := make([]int, n)
		conns := make([]*Conn, n)
		for i := range conns {
			us, peer := net.Pipe()
			defer peer.Close()
			p := newProbe()
			p.tick = func(time.Time) {
				ticks[i]++
				if i%3 == 0 {
					conns[i].Close() // frees a slot while the sweep is under way
					conns[i].Close()
				}
			}
			conns[i] = d.Add(us, p)
			if i%3 < 2 {
				conns[i].Start()
			}
		}
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		for i, got := range ticks {
			if want := []int{1, 10, 0}[i%3]; got != want {
				t.Fatalf("connection %d of kind %d: %d ticks, want %d", i, i%3, got, want)
			}
		}
		d.Close()
		for i := range d.shards {
			if left := len(d.shards[i].slots) - len(d.shards[i].free); left != 0 {
				t.Errorf("shard %d: %d connections left", i, left)
			}
		}
	})
}

func TestCloseFromInsideAnyCallback(t *testing.T) {
	for _, where := range []string{"Data", "Tick", "Slow", "Closed"} {
		t.Run(where, func(t *testing.T) {
			eachDoor(t, func(t *testing.T, door string) {
				d := driver(t, Config{Tick: time.Millisecond, TotalBytes: 1 << 20})
				us, peer := pair(t, door)
				defer hang(peer)
				p := newProbe()
				c := d.Add(us, p)
				end := func() { c.Close(); c.Close(); c.Shut(nil, true, 0) }
				switch where {
				case "Data":
					p.data = func(b []byte) int { end(); return 0 }
					go peer.Write([]byte("hello"))
				case "Tick":
					p.tick = func(time.Time) { end() }
				case "Slow":
					p.slow = end
				case "Closed":
					p.closed = func(error) { end() }
				}
				c.Start()
				switch where {
				case "Slow":
					for c.Write(make([]byte, 60_000)) == nil {
					}
				case "Closed":
					c.Close()
				}
				p.wantClosed(t, ErrClosed)
			})
		})
	}
}

func TestPeerThatEndsIsNilAndAResetIsAnError(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		_, _, p, peer := open(t, door, Config{})
		peer.Close()
		p.wantClosed(t, nil)
	})
	for _, door := range []string{"tcp", "unix", "tls"} {
		t.Run("half close "+door, func(t *testing.T) {
			_, _, p, peer := open(t, door, Config{})
			if err := peer.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			p.wantClosed(t, nil)
		})
	}
	t.Run("reset", func(t *testing.T) {
		_, _, p, peer := open(t, "tcp", Config{})
		peer.(*net.TCPConn).SetLinger(0)
		peer.Close()
		p.wantClosed(t, syscall.ECONNRESET)
	})
	t.Run("reset with a full queue", func(t *testing.T) {
		d, c, p, peer := add(t, "tcp", Config{})
		p.data = func([]byte) int { return 0 } // only the writer can notice
		c.Start()
		peer.Write([]byte("x"))
		until(t, "a stop", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.stopped })
		clog(t, c, 1<<20)
		peer.(*net.TCPConn).SetLinger(0)
		peer.Close()
		select {
		case err := <-p.ended:
			if err == nil || err == ErrClosed {
				t.Errorf("Closed: got %v, want what the write failed with", err)
			}
		case <-time.After(patience):
			t.Fatal("nobody noticed")
		}
		if err := c.Write([]byte("x")); err != ErrClosed {
			t.Errorf("Write: got %v, want ErrClosed", err)
		}
		if got := d.QueuedBytes(); got != 0 {
			t.Errorf("queued on a closed connection: %d", got)
		}
	})
}

// eachHalfDoor is eachDoor for those of which one half can be closed.
func eachHalfDoor(t *testing.T, f func(t *testing.T, door string)) {
	for _, door := range []string{"tcp", "unix", "tls"} {
		t.Run(door, func(t *testing.T) { f(t, door) })
	}
}

func closeWrite(t testing.TB, nc net.Conn) {
	t.Helper()
	if err := nc.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

func TestHalvesCloseInAnyOrder(t *testing.T) {
	ends := func(t *testing.T, peer net.Conn, want string) {
		t.Helper()
		peer.SetReadDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(peer); err != nil || string(got) != want {
			t.Errorf("read %q, %v, want %q and the end", got, err, want)
		}
	}
	eachHalfDoor(t, func(t *testing.T, door string) {
		t.Run("ours first", func(t *testing.T) {
			_, c, p, peer := add(t, door, Config{})
			heard := make(chan string, 1)
			p.data = func(b []byte) int { heard <- string(b); return len(b) }
			c.Start()
			c.HangUp([]byte("last"), false, patience)
			ends(t, peer, "last")
			for _, b := range []string{"still", "here"} {
				if _, err := peer.Write([]byte(b)); err != nil {
					t.Fatal(err)
				}
				if got := <-heard; got != b {
					t.Errorf("heard %q, want %q", got, b)
				}
			}
			closeWrite(t, peer)
			p.wantClosed(t, nil)
		})
		t.Run("the peer's first", func(t *testing.T) {
			_, c, p, peer := add(t, door, Config{})
			taken := 0
			p.data = func(b []byte) int { return taken }
			c.Start()
			peer.Write([]byte("x"))
			until(t, "a stop", c.Paused) // or we would end it
			closeWrite(t, peer)
			if err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			wantRead(t, peer, []byte("hello"))
			taken = 1
			c.Resume()
			p.wantClosed(t, nil)
		})
		t.Run("both at once", func(t *testing.T) {
			for range 50 {
				_, c, p, peer := open(t, door, Config{})
				go c.HangUp(nil, false, patience)
				closeWrite(t, peer)
				if _, err := io.ReadAll(peer); err != nil {
					t.Error(err)
				}
				p.wantClosed(t, nil)
			}
		})
		t.Run("the peer's with our queue full", func(t *testing.T) {
			d, c, p, peer := open(t, door, Config{})
			clog(t, c, 8<<20)
			closeWrite(t, peer)
			p.wantClosed(t, nil)
			if got := d.QueuedBytes(); got != 0 {
				t.Errorf("queued on a closed connection: %d", got)
			}
		})
	})
}

func TestResetIsNoticedInAnyState(t *testing.T) {
	reset := func(peer net.Conn) {
		peer.(*net.TCPConn).SetLinger(0)
		peer.Close()
	}
	for _, state := range []string{"idle", "full", "stopped", "stopped and full", "not started", "hung up"} {
		t.Run(state, func(t *testing.T) {
			d, c, p, peer := add(t, "tcp", Config{})
			calls := 0
			p.data = func([]byte) int { calls++; return calls - 1 } // the first stops
			if state != "not started" {
				c.Start()
			}
			if state == "stopped" || state == "stopped and full" {
				peer.Write([]byte("x"))
				until(t, "a stop", c.Paused)
			}
			if state == "full" || state == "stopped and full" {
				clog(t, c, 8<<20)
			}
			if state == "hung up" {
				c.HangUp(nil, false, patience)
				io.ReadAll(peer)
			}
			reset(peer)
			switch state { // nobody looks
			case "stopped":
				c.Resume()
			case "not started":
				c.Start()
			}
			select {
			case err := <-p.ended:
				// Reading and writing may both notice; each hides it from the other.
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && (err != nil || state != "full") {
					t.Errorf("Closed: got %v, want a reset", err)
				}
			case <-time.After(patience):
				t.Fatal("nobody noticed")
			}
			if got := d.QueuedBytes(); got != 0 {
				t.Errorf("queued on a closed connection: %d", got)
			}
		})
	}
}

// With so small buffers nearly every write finds the socket full.
func TestSocketThatIsFullOverAndOverLosesNothing(t *testing.T) {
	for _, door := range []string{"tcp", "unix"} {
		t.Run(door, func(t *testing.T) {
			us, peer := pair(t, door)
			defer peer.Close()
			// Not smaller: TCP would wait for its timers.
			if err := errors.Join(us.(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(1), peer.(interface{ SetReadBuffer(int) error }).SetReadBuffer(8<<10)); err != nil {
				t.Fatal(err)
			}
			d := driver(t, Config{QueueBytes: 20_000, TotalBytes: 30_000})
			c := d.Add(us, newProbe())
			c.Start()
			const writers, each, size = 8, 200, 200
			for w := range writers {
				go func() {
					for i := range each {
						b := append([]byte{byte(w), byte(i)}, pattern(size, w+i)...)
						for c.Write(b) == ErrSlow {
							runtime.Gosched()
						}
					}
				}()
			}
			var next [writers]int
			peer.SetReadDeadline(time.Now().Add(patience))
			slow := io.LimitReader(peer, writers*each*(size+2))
			for range writers * each {
				var b [size + 2]byte
				for n := 0; n < len(b); {
					m, err := slow.Read(b[n:min(n+17, len(b))])
					if n += m; err != nil {
						t.Fatal(err)
					}
				}
				w, i := int(b[0]), int(b[1])
				if w >= writers || i != next[w] || !bytes.Equal(b[2:], pattern(size, w+i)) {
					t.Fatalf("writer %d: got message %d", w, i)
				}
				next[w]++
			}
			until(t, "an empty queue", func() bool { return d.QueuedBytes() == 0 })
		})
	}
}

// Every way to end a connection, from every place and in every state.
func TestEveryEndAtEveryMomentIsOneClosed(t *testing.T) {
	ends := map[string]func(c *Conn){
		"Close":  (*Conn).Close,
		"Shut":   func(c *Conn) { c.Shut([]byte("last"), false, time.Millisecond) },
		"cut":    func(c *Conn) { c.Shut([]byte("last"), true, time.Millisecond) },
		"HangUp": func(c *Conn) { c.HangUp([]byte("last"), false, time.Millisecond) },
		"all":    func(c *Conn) { c.HangUp(nil, false, patience); c.Shut(nil, true, patience); c.Close() },
	}
	much := make([]byte, 8<<20) // more than a socket takes
	moments := []string{"before Start", "idle", "in Data", "in Data that stops", "in Data of what was kept", "stopped", "full", "full and in Data", "full and stopped", "full, then read"}
	eachDoor(t, func(t *testing.T, door string) {
		for name, end := range ends {
			for _, moment := range moments {
				d, c, p, peer := add(t, door, Config{Tick: time.Millisecond})
				var calls atomic.Int32
				p.data = func(b []byte) int {
					switch n := calls.Add(1); {
					case moment == "in Data", moment == "full and in Data", moment == "in Data of what was kept" && n == 2:
						end(c)
					case moment == "in Data that stops":
						end(c)
						return 0
					case n == 1:
						return 0
					}
					return len(b)
				}
				if moment != "before Start" {
					c.Start()
				}
				if strings.HasPrefix(moment, "full") {
					c.Write(much)
				}
				if strings.Contains(moment, "Data") || strings.Contains(moment, "stopped") {
					go peer.Write([]byte("hello"))
				}
				switch moment {
				case "before Start", "idle", "full":
					end(c)
				case "stopped", "full and stopped":
					until(t, "a stop", c.Paused)
					end(c)
				case "in Data of what was kept":
					until(t, "a stop", c.Paused)
					c.Resume()
				case "full, then read":
					go io.Copy(io.Discard, peer)
					end(c)
				}
				select {
				case <-p.ended:
				case <-time.After(patience):
					t.Fatalf("%s %s: Closed was not called", name, moment)
				}
				if got := d.QueuedBytes(); got != 0 {
					t.Errorf("%s %s: queued after Closed: %d", name, moment, got)
				}
				if got := len(c.shard.slots); got != 0 {
					t.Errorf("%s %s: %d places in the table after Closed", name, moment, got)
				}
				hang(peer)
			}
		}
	})
}

// A wake-up that is lost stays lost where nobody else wakes the poller, so
// there are few connections, and many.
func TestPingPongNeverStalls(t *testing.T) {
	for _, n := range []int{1, 2, 200} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			d := driver(t, Config{})
			var wg sync.WaitGroup
			var pings atomic.Int64
			for i := range n {
				us, peer := pair(t, []string{"tcp", "unix"}[i%2])
				defer peer.Close()
				p := newProbe()
				var c *Conn
				p.data = func(b []byte) int {
					n := len(b)
					if pings.Add(1)%7 == 0 {
						n--
						go c.Resume() // before the stop, or after it
					}
					c.Write(bytes.Clone(b[:n]))
					return n
				}
				c = d.Add(us, p)
				c.Start()
				wg.Go(func() {
					var b, back [8]byte
					peer.SetDeadline(time.Now().Add(patience))
					for j := range 4000 / n {
						binary.BigEndian.PutUint64(b[:], uint64(i)<<32|uint64(j))
						if _, err := peer.Write(b[:]); err != nil {
							t.Error(err)
							return
						}
						if _, err := io.ReadFull(peer, back[:]); err != nil || back != b {
							t.Errorf("ping %d of connection %d: got %x, %v", j, i, back, err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestBeforeStartOnlyWritesAndClosed(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		d := driver(t, Config{Tick: time.Millisecond})
		us, peer := pair(t, door)
		defer hang(peer)
		p := newProbe()
		p.data = func([]byte) int { panic("Data before Start") }
		p.tick = func(time.Time) { panic("Tick before Start") }
		c := d.Add(us, p)
		if err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		wantRead(t, peer, []byte("hello"))
		c.Resume()
		c.Close()
		p.wantClosed(t, ErrClosed)
		c.Start()
		if err := c.Write([]byte("hello")); err != ErrClosed {
			t.Errorf("Write after Close: got %v, want ErrClosed", err)
		}
	})
}

func TestAddAfterDriverCloseClosesTheConnection(t *testing.T) {
	d := New(Config{})
	d.Close()
	d.Close()
	us, peer := net.Pipe()
	p := newProbe()
	c := d.Add(us, p)
	c.Start()
	p.wantClosed(t, ErrClosed)
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer saw %v, want EOF", err)
	}
	if err := c.Write([]byte("x")); err != ErrClosed {
		t.Errorf("Write: got %v, want ErrClosed", err)
	}
}

func TestNoGoroutineAfterDriverClose(t *testing.T) {
	d := New(Config{})
	var all []*probe
	for _, door := range doors {
		for state := range 6 {
			us, peer := pair(t, door)
			t.Cleanup(func() { hang(peer) })
			p := newProbe()
			c := d.Add(us, p)
			all = append(all, p)
			if state == 2 {
				p.data = func([]byte) int { return 0 }
			}
			if state != 0 { // 0: not started
				c.Start()
			}
			switch state {
			case 2:
				peer.Write([]byte("stop"))
			case 3:
				clog(t, c, 1<<20)
			case 4:
				c.Shut([]byte("last"), false, time.Hour)
			case 5:
				clog(t, c, 1<<20)
				c.Shut([]byte("last"), true, time.Hour)
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
	if got := d.QueuedBytes(); got != 0 {
		t.Errorf("queued after Close: %d", got)
	}
}

// wrapped must not be bypassed: it counts what passes through it.
type wrapped struct {
	*net.TCPConn
	read, wrote atomic.Int64
}

func (w *wrapped) Read(b []byte) (int, error) {
	n, err := w.TCPConn.Read(b)
	w.read.Add(int64(n))
	return n, err
}

func (w *wrapped) Write(b []byte) (int, error) {
	n, err := w.TCPConn.Write(b)
	w.wrote.Add(int64(n))
	return n, err
}

func TestWrapperIsNotBypassed(t *testing.T) {
	d := driver(t, Config{})
	us, peer := pair(t, "tcp")
	defer peer.Close()
	w := &wrapped{TCPConn: us.(*net.TCPConn)}
	p := newProbe()
	var c *Conn
	p.data = func(b []byte) int { c.Write(bytes.Clone(b)); return len(b) }
	c = d.Add(w, p)
	c.Start()
	peer.Write([]byte("hello"))
	wantRead(t, peer, []byte("hello"))
	peer.Close()
	p.wantClosed(t, nil)
	until(t, "5 bytes each way through the wrapper", func() bool { return w.read.Load() == 5 && w.wrote.Load() == 5 })
}

func TestDeadlineLeftByAHandshakeIsForgotten(t *testing.T) {
	d := driver(t, Config{})
	us, peer := pair(t, "tcp")
	defer peer.Close()
	us.SetDeadline(time.Now())
	c := d.Add(us, newProbe())
	if err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	wantRead(t, peer, []byte("hello"))
}

// TestAnythingAtOnceEndsWithOneClosedAndNothingQueued lets goroutines call
// everything on every connection; probe checks the promises of Handler.
func TestAnythingAtOnceEndsWithOneClosedAndNothingQueued(t *testing.T) {
	eachDoor(t, func(t *testing.T, door string) {
		for round := range 30 {
			d := New(Config{QueueBytes: 100_000, TotalBytes: 300_000, WriteTimeout: time.Millisecond, Tick: time.Millisecond})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			var wg sync.WaitGroup
			for i := range 4 {
				us, peer := pair(t, door)
				p := newProbe()
				c := d.Add(us, p)
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
								c.Silence(time.Now())
							case op < 995:
								c.Shut([]byte("last"), r.IntN(2) == 0, time.Duration(r.IntN(3))*time.Millisecond)
							case op < 996:
								c.Close()
							}
						}
					})
				}
				wg.Go(func() {
					c.Start()
					select {
					case <-p.ended:
					case <-ctx.Done():
						t.Error("a connection did not end")
						c.Close()
					}
					hang(peer)
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

func TestHandlersYieldsWhatIsStartedAndNotClosed(t *testing.T) {
	d := driver(t, Config{})
	want := map[Handler]bool{}
	for i := range 1000 {
		us, peer := net.Pipe()
		defer peer.Close()
		p := newProbe()
		c := d.Add(us, p)
		if i%3 > 0 {
			c.Start()
		}
		if i%3 == 1 {
			c.Close()
			p.wantClosed(t, ErrClosed) // or its place is filled during the walk
		}
		want[p] = i%3 == 2
	}
	for h := range d.Handlers() {
		if !want[h] {
			t.Fatal("yielded twice, or one that was not started or is closed")
		}
		want[h] = false
	}
	for _, left := range want {
		if left {
			t.Fatal("one was not yielded")
		}
	}
	for range d.Handlers() {
		break
	}
}

func TestConnIsSmall(t *testing.T) {
	if got := unsafe.Sizeof(Conn{}); unsafe.Sizeof(uintptr(0)) == 8 && got > 96 {
		t.Errorf("a Conn takes %d bytes, want at most 96", got)
	} else {
		t.Logf("a Conn takes %d bytes", got)
	}
}

func TestDescriptorsAreKnownOnUnix(t *testing.T) {
	if n := Descriptors(); n <= 0 && runtime.GOOS != "windows" {
		t.Errorf("got %d", n)
	}
}

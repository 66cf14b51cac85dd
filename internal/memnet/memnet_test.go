package memnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

// pair is a connection between two new hosts, 10.0.0.1 (near) and 10.0.0.2 (far), through a listener.
func pair(t *testing.T, n *Network) (near, far net.Conn) {
	t.Helper()
	ln, err := n.Host("10.0.0.2").Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	near, err = n.Host("10.0.0.1").DialContext(t.Context(), "tcp", "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	far, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close(); ln.Close() })
	return near, far
}

func wantRead(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v, want %q", got, err, want)
	}
}

func TestStreamCarriesEveryByteInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.SetDelay(time.Millisecond, 20*time.Millisecond)
		near, far := pair(t, n)
		rnd := rand.New(rand.NewPCG(1, 2))
		want := make([]byte, 1<<20)
		for i := range want {
			want[i] = byte(rnd.Uint32())
		}
		go func() {
			for rest := want; len(rest) > 0; {
				m := min(len(rest), 1+rnd.IntN(9000))
				if _, err := near.Write(rest[:m]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[m:]
			}
			near.Close()
		}()
		if got, err := io.ReadAll(far); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes, %v, want the %d written", len(got), err, len(want))
		}
	})
}

func TestStreamHasAddressesAndTakesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.SetDelay(30*time.Millisecond, 30*time.Millisecond)
		start := time.Now()
		near, far := pair(t, n)
		if got := time.Since(start); got != 60*time.Millisecond {
			t.Errorf("dialling took %v, want a round trip", got)
		}
		if near.RemoteAddr().String() != "10.0.0.2:80" || far.LocalAddr().String() != "10.0.0.2:80" ||
			near.LocalAddr().String() != far.RemoteAddr().String() || !strings.HasPrefix(near.LocalAddr().String(), "10.0.0.1:") {
			t.Errorf("addresses: near %v→%v, far %v→%v", near.LocalAddr(), near.RemoteAddr(), far.LocalAddr(), far.RemoteAddr())
		}
		start = time.Now()
		near.Write([]byte("hello"))
		if time.Since(start) != 0 {
			t.Error("a write to an empty buffer took time")
		}
		wantRead(t, far, "hello")
		if got := time.Since(start); got != 30*time.Millisecond {
			t.Errorf("hello arrived after %v, want the delay", got)
		}
	})
}

func TestFullStreamBlocksItsWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pair(t, New(1))
		near.SetWriteDeadline(time.Now().Add(time.Second))
		m, err := near.Write(make([]byte, window+1))
		if m != window || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d, %v, want %d and the deadline", m, err, window)
		}
		near.SetWriteDeadline(time.Time{})
		go func() {
			time.Sleep(time.Minute)
			far.Read(make([]byte, 10))
		}()
		start := time.Now()
		if _, err := near.Write([]byte("x")); err != nil || time.Since(start) != time.Minute {
			t.Fatalf("wrote after %v, %v, want it to wait for the reader", time.Since(start), err)
		}
	})
}

func TestReadDeadlineEndsARead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, _ := pair(t, New(1))
		start := time.Now()
		near.SetReadDeadline(start.Add(time.Hour))
		go func() {
			time.Sleep(time.Second)
			near.SetReadDeadline(start.Add(2 * time.Second)) // also while the read waits
		}()
		_, err := near.Read(make([]byte, 1))
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(start) != 2*time.Second {
			t.Fatalf("read: %v after %v", err, time.Since(start))
		}
	})
}

func TestClosedStreamTellsEOFOrReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := pair(t, New(1))
		near.Write([]byte("last words"))
		near.Close()
		wantRead(t, far, "last words")
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read %v, want EOF", err)
		}
		if _, err := far.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write to a closed end: %v, want EPIPE", err)
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of the closed end: %v, want ErrClosed", err)
		}
		if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write of the closed end: %v, want ErrClosed", err)
		}

		near, far = pair(t, New(1))
		far.Write([]byte("never read"))
		near.Close()
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %v, want a reset: the other end closed with bytes unread", err)
		}

		near, far = pair(t, New(1))
		near.(*conn).CloseWrite()
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read after CloseWrite: %v, want EOF", err)
		}
		far.Write([]byte("answer"))
		wantRead(t, near, "answer")
	})
}

func TestCutStreamHangsAndGoesOnAfterMend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		near, far := pair(t, n)
		n.CutOneWay("10.0.0.1", "10.0.0.2")
		near.Write([]byte("held"))
		far.Write([]byte("passes"))
		wantRead(t, near, "passes")
		far.SetReadDeadline(time.Now().Add(time.Minute))
		if m, err := far.Read(make([]byte, 4)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read %d, %v over the cut", m, err)
		}
		far.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Minute, func() { n.Mend("10.0.0.1", "10.0.0.2") })
		wantRead(t, far, "held")
	})
}

func TestDialIsRefusedWaitsOrIsTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		dial := func(addr string) error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			c, err := a.DialContext(ctx, "tcp", addr)
			if err == nil {
				c.Close()
			}
			return err
		}
		if err := dial("10.0.0.2:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("port without listener: %v", err)
		}
		start := time.Now()
		if err := dial("10.0.0.9:80"); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 10*time.Second {
			t.Errorf("no such host: %v after %v", err, time.Since(start))
		}
		ln, _ := b.Listen(80)
		n.CutOneWay("10.0.0.2", "10.0.0.1")
		time.AfterFunc(3*time.Second, n.MendAll)
		start = time.Now()
		if err := dial("10.0.0.2:80"); err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("mended while dialling: %v after %v", err, time.Since(start))
		}
		if _, err := b.Listen(80); err == nil {
			t.Error("two listeners took one port")
		}
		ln.Close()
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
		if ln, err := b.Listen(80); err != nil {
			t.Errorf("the port is not free after Close: %v", err)
		} else if c, err := ln.DialFrom(t.Context(), "198.51.100.7"); err != nil || !strings.HasPrefix(c.LocalAddr().String(), "198.51.100.7:") {
			t.Errorf("DialFrom: %v", err)
		}
	})
}

func TestKilledHostResetsAndUnpluggedHostIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		near, _ := pair(t, n)
		n.Host("10.0.0.2").Kill()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read from a killed host: %v, want a reset", err)
		}
		if _, err := n.Host("10.0.0.1").DialContext(t.Context(), "tcp", "10.0.0.2:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial of a killed host: %v, want refused", err)
		}
		near, _ = pair(t, n) // the address is free
		n.Host("10.0.0.2").Unplug()
		near.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read from an unplugged host: %v, want nothing at all", err)
		}
	})
}

func TestPacketsAreLostCutDelayedAndDroppedWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := n.Host("10.0.0.1").Transport(1), n.Host("10.0.0.2").Transport(1)
		read := func() (got int) {
			for {
				select {
				case <-b.PacketCh():
					got++
				case <-time.After(time.Second):
					return got
				}
			}
		}
		send := func(count int) {
			for i := range count {
				if _, err := a.WriteTo([]byte{byte(i)}, b.Addr()); err != nil {
					t.Error(err)
				}
			}
		}
		n.SetLoss(0.3)
		send(200)
		if got := read(); got < 110 || got > 170 {
			t.Errorf("%d of 200 arrived at 30 %% loss", got)
		}
		n.SetLoss(0)
		send(packetBuffer + 50)
		if got := read(); got != packetBuffer {
			t.Errorf("%d arrived unread, want the buffer's %d", got, packetBuffer)
		}
		n.CutOneWay("10.0.0.1", "10.0.0.2")
		send(10)
		b.WriteTo([]byte("back"), a.Addr())
		if p := <-a.PacketCh(); string(p.Buf) != "back" || p.From.String() != b.Addr() {
			t.Errorf("got %q from %v", p.Buf, p.From)
		}
		if got := read(); got != 0 {
			t.Errorf("%d arrived over the cut", got)
		}
		n.MendAll()
		n.SetDelay(10*time.Millisecond, 20*time.Millisecond)
		start := time.Now()
		send(50)
		var order []byte
		for range 50 {
			p := <-b.PacketCh()
			if d := p.Timestamp.Sub(start); d < 10*time.Millisecond || d > 20*time.Millisecond {
				t.Fatalf("arrived after %v", d)
			}
			order = append(order, p.Buf[0])
		}
		if slices.IsSorted(order) {
			t.Error("no packet overtook another")
		}
		if lost := n.Lost(); lost < 50+10+30 {
			t.Errorf("Lost %d", lost)
		}
	})
}

// peer is one unmodified memberlist node that notes who left.
type peer struct {
	*memberlist.Memberlist
	host *Host
	addr string

	mu   sync.Mutex
	left map[string]time.Time
}

func (p *peer) NotifyJoin(*memberlist.Node)   {}
func (p *peer) NotifyUpdate(*memberlist.Node) {}
func (p *peer) NotifyLeave(n *memberlist.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left[n.Name] = time.Now()
}

func (p *peer) sawLeave(name string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left[name]
}

func startPeer(t *testing.T, n *Network, ip string) *peer {
	t.Helper()
	host := n.Host(ip)
	tr := host.Transport(7946)
	p := &peer{host: host, addr: tr.Addr(), left: map[string]time.Time{}}
	cfg := memberlist.DefaultLANConfig()
	cfg.Name, cfg.Transport, cfg.Events, cfg.Logger = ip, tr, p, log.New(io.Discard, "", 0)
	m, err := memberlist.Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.Memberlist = m
	return p
}

func startPeers(t *testing.T, n *Network, count int) (peers []*peer) {
	t.Helper()
	for i := range count {
		p := startPeer(t, n, fmt.Sprintf("10.0.0.%d", i+1))
		if i > 0 {
			if _, err := p.Join([]string{peers[0].addr}); err != nil {
				t.Fatal(err)
			}
		}
		peers = append(peers, p)
	}
	time.Sleep(5 * time.Second)
	wantMembers(t, count, peers...)
	return peers
}

// stopPeers ends them and lets the last goroutine of memberlist run out.
func stopPeers(peers ...*peer) {
	for _, p := range peers {
		p.Shutdown()
	}
	time.Sleep(2 * time.Minute)
}

func wantMembers(t *testing.T, want int, peers ...*peer) {
	t.Helper()
	for _, p := range peers {
		if got := p.NumMembers(); got != want {
			t.Fatalf("%s sees %d members, want %d", p.addr, got, want)
		}
	}
}

func TestMemberlistNoticesAKilledAndAnUnpluggedNode(t *testing.T) {
	for seed := range uint64(5) {
		for how, end := range map[string]func(*Host){"killed": (*Host).Kill, "unplugged": (*Host).Unplug} {
			synctest.Test(t, func(t *testing.T) {
				n := New(seed)
				n.SetDelay(time.Millisecond, 3*time.Millisecond)
				peers := startPeers(t, n, 3)
				defer stopPeers(peers...)
				end(peers[2].host)
				start := time.Now()
				time.Sleep(8 * time.Second)
				for _, p := range peers[:2] {
					if at := p.sawLeave("10.0.0.3"); at.IsZero() {
						t.Errorf("seed %d: %s has not noticed the %s node after %v", seed, p.addr, how, time.Since(start))
					}
				}
			})
		}
	}
}

func TestMemberlistHealsAfterAPartitionOnceSomeoneJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(2)
		n.SetDelay(time.Millisecond, 3*time.Millisecond)
		peers := startPeers(t, n, 3)
		defer stopPeers(peers...)
		n.Partition([]string{"10.0.0.1"}, []string{"10.0.0.2", "10.0.0.3"})
		time.Sleep(2 * time.Minute)
		wantMembers(t, 1, peers[0])
		wantMembers(t, 2, peers[1:]...)
		n.MendAll()
		time.Sleep(5 * time.Minute)
		wantMembers(t, 1, peers[0]) // memberlist alone never finds back: spec/cluster.md 1.1
		if _, err := peers[0].Join([]string{peers[1].addr}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		wantMembers(t, 3, peers...)
	})
}

func TestMemberlistStandsLossWithoutFalseAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(3)
		n.SetDelay(time.Millisecond, 3*time.Millisecond)
		peers := startPeers(t, n, 3)
		defer stopPeers(peers...)
		n.SetLoss(0.3)
		time.Sleep(10 * time.Minute)
		for _, p := range peers {
			for _, q := range peers {
				if at := p.sawLeave(q.host.IP()); !at.IsZero() {
					t.Errorf("%s took %s for dead at 30 %% loss", p.addr, q.addr)
				}
			}
		}
	})
}

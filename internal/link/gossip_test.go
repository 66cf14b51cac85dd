package link

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/memnet"
	"github.com/hashicorp/memberlist"
)

// gossipHead is how a stream of memberlist's begins.
func gossipHead(label string, length uint32, version byte) []byte {
	var b []byte
	if label != "" {
		b = append([]byte{labelByte, byte(len(label))}, label...)
	}
	return append(binary.BigEndian.AppendUint32(append(b, sealedByte), length), version)
}

// sealed is a message as memberlist encrypts it, and data what is authenticated
// with it.
func sealed(t *testing.T, version byte, plain, data []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(gossipKey)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	return gcm.Seal(append([]byte{version}, nonce...), nonce, plain, data)
}

// dialFrom dials a node from an address and says something.
func dialFrom(t *testing.T, nw *memnet.Network, ip string, n *node, say ...byte) net.Conn {
	t.Helper()
	conn, err := nw.Host(ip).DialContext(t.Context(), "tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if len(say) > 0 {
		if _, err := conn.Write(say); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

// isOpen tells whether the other side has not closed it.
func isOpen(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func TestStrangersCannotFillTheMemoryThroughMemberlist(t *testing.T) {
	zeros := make([]byte, 21<<20)
	for name, length := range map[string]uint32{"as long as memberlist takes": 20<<20 - 1, "as long as it gets": maxSealed} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				nw.SetDelay(0, 0)
				a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
				gossip(t, a, func(cfg *memberlist.Config) { cfg.Label = "push" })
				var before, now runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				for i := range 100 {
					conn := dialFrom(t, nw, fmt.Sprintf("10.1.0.%d", i), a)
					go func() {
						_, _ = conn.Write(gossipHead("push", length, sealedVersion))
						_, _ = conn.Write(zeros[:length-100]) // and nothing more
					}()
				}
				synctest.Wait()
				runtime.GC()
				runtime.ReadMemStats(&now)
				s := a.mesh.Stats()
				grown := int64(now.HeapAlloc) - int64(before.HeapAlloc)
				t.Logf("%d MiB, %d streams are open, %d refused", grown>>20, s.Gossip, s.StreamsRefused)
				if grown > 100<<20 || s.StreamsRefused < 90 || int(s.StreamsRefused)+s.Gossip != 100 {
					t.Errorf("%d MiB, %d streams are open, %d refused", grown>>20, s.Gossip, s.StreamsRefused)
				}
				a.wantLog("level=WARN", "stream refused")

				time.Sleep(11 * time.Second) // memberlist's TCPTimeout
				a.mesh.pending.mu.Lock()
				held := a.mesh.pending.held
				a.mesh.pending.mu.Unlock()
				if n := a.mesh.Stats().Gossip; n != 0 || held != 0 {
					t.Errorf("%d streams with %d bytes are counted after the deadline", n, held)
				}
			})
		})
	}
}

func TestSmallStatesPassWhileStrangersHoldAllBytes(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		nw.SetDelay(0, 0)
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		b := start(t, nw, "10.0.0.2", origin("b", 1), nil)
		one, two := gossip(t, a, nil), gossip(t, b, nil)
		zeros := make([]byte, maxSealed)
		for i := range 10 {
			conn := dialFrom(t, nw, fmt.Sprintf("10.1.0.%d", i), a)
			go func() {
				_, _ = conn.Write(gossipHead("", maxSealed, sealedVersion))
				_, _ = conn.Write(zeros[:maxSealed-100])
			}()
		}
		synctest.Wait()
		if s := a.mesh.Stats(); s.Gossip == 0 || s.StreamsRefused == 0 {
			t.Fatalf("%d streams are open, %d refused", s.Gossip, s.StreamsRefused)
		}
		_, err := two.Join([]string{a.addr})
		time.Sleep(time.Second) // who is joined reads on after it has answered
		if err != nil || one.NumMembers() != 2 {
			t.Errorf("Join: %v, %d members", err, one.NumMembers())
		}
		if err := two.SendReliable(one.LocalNode(), make([]byte, freeBytes/2)); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatMemberlistMayReadIsLimitedWithoutASecretToo(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		nw.SetDelay(0, 0)
		a := start(t, nw, "10.0.0.1", origin("a", 1), func(cfg *Config) { cfg.Keys = nil })
		conn := dialFrom(t, nw, "10.0.0.2", a, 'x')
		go func() {
			_, _ = conn.Write(make([]byte, maxGossipBytes+2*freeBytes))
		}()
		got := <-a.mesh.Transport().StreamCh()
		n, err := io.Copy(io.Discard, got)
		if !errors.Is(err, errTooMuch) || n < maxGossipBytes-freeBytes || n > maxGossipBytes+1 { // the first byte is free
			t.Errorf("read %d bytes, %v", n, err)
		}
		if s := a.mesh.Stats(); s.StreamsRefused != 1 || s.Gossip != 0 {
			t.Errorf("%d refused, %d open", s.StreamsRefused, s.Gossip)
		}
		got.Close()
		got.Close()
		if p := a.mesh.pending; p.held != 0 {
			t.Errorf("%d bytes are counted", p.held)
		}
	})
}

func TestMemberlistsStreamsAreCountedUntilTheyAreClosed(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		nw.SetDelay(0, 0)
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		want := func(open, refused int) {
			t.Helper()
			synctest.Wait()
			if s := a.mesh.Stats(); s.Gossip != open || s.StreamsRefused != uint64(refused) || s.Unproved != 0 {
				t.Fatalf("%d open, %d refused, %d unproved, want %d, %d and 0", s.Gossip, s.StreamsRefused, s.Unproved, open, refused)
			}
		}
		take := func() net.Conn {
			t.Helper()
			select {
			case conn := <-a.mesh.Transport().StreamCh():
				return conn
			case <-time.After(time.Second):
				t.Fatal("no stream")
				return nil
			}
		}
		var taken []net.Conn
		for i := range maxGossip {
			dialFrom(t, nw, fmt.Sprintf("10.1.%d.1", i/maxGossipEach), a, 'x')
			taken = append(taken, take())
			time.Sleep(time.Millisecond)
		}
		want(maxGossip, 0)
		dialFrom(t, nw, "10.1.0.1", a, 'x') // over both limits
		want(maxGossip, 1)
		dialFrom(t, nw, "10.2.0.1", a, 'x') // over the limit of all
		want(maxGossip, 2)
		taken[0].Close()
		taken[0].Close()
		want(maxGossip-1, 2)
		dialFrom(t, nw, "10.1.3.1", a, 'x') // over its own
		want(maxGossip-1, 3)
		dialFrom(t, nw, "10.2.0.1", a, 'x')
		taken[0] = take()
		want(maxGossip, 3)

		time.Sleep(2 * time.Second) // now the oldest has been there for long
		dialFrom(t, nw, "10.2.0.1", a, 'x')
		taken = append(taken, take())
		want(maxGossip, 4)
		_ = taken[1].SetReadDeadline(time.Now().Add(time.Second))
		if n, err := io.Copy(io.Discard, taken[1]); n != 1 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) { // its first byte
			t.Errorf("of the oldest: %d bytes, %v", n, err)
		}
		for _, conn := range taken {
			conn.Close()
		}
		want(0, 4)
	})
}

func TestANetworkIsAnAddressOrAnIPv6Subnet(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		nw.SetDelay(0, 0)
		a := start(t, nw, "2001:db8::1", origin("a", 1), nil)
		for i := range 50 {
			dialFrom(t, nw, fmt.Sprintf("2001:db8:0:7::%x", i+1), a)
			synctest.Wait()
		}
		if s := a.mesh.Stats(); s.Unproved != maxSilent || s.StreamsRefused != 50-maxSilent {
			t.Errorf("of a /64: %d unproved, %d refused", s.Unproved, s.StreamsRefused)
		}
		dialFrom(t, nw, "2001:db8:0:8::1", a)
		synctest.Wait()
		if s := a.mesh.Stats(); s.Unproved != maxSilent+1 {
			t.Errorf("of another /64: %d unproved", s.Unproved)
		}
	})
}

func TestTheOldestSilentStreamGoesForANewOne(t *testing.T) {
	for _, c := range []struct {
		name string
		ip   func(i int) string
		room int
	}{
		{"of all", func(i int) string { return fmt.Sprintf("10.1.%d.1", i) }, maxPending},
		{"of one address", func(int) string { return "10.1.0.1" }, maxSilent},
		{"of loopback", func(int) string { return "127.0.0.2" }, maxPending},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				nw.SetDelay(0, 0)
				a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
				var conns []net.Conn
				for i := range c.room {
					conns = append(conns, dialFrom(t, nw, c.ip(i), a))
					synctest.Wait()
					time.Sleep(time.Millisecond / 10)
				}
				if conn := dialFrom(t, nw, c.ip(200), a); isOpen(conn) {
					t.Error("one too many is open, and nobody had time to speak")
				}
				time.Sleep(200 * time.Millisecond)
				newest := dialFrom(t, nw, c.ip(201), a)
				synctest.Wait()
				if isOpen(conns[0]) || !isOpen(conns[1]) || !isOpen(newest) {
					t.Errorf("open: the oldest %v, the next %v, the newest %v", isOpen(conns[0]), isOpen(conns[1]), isOpen(newest))
				}
				if s := a.mesh.Stats(); s.Unproved != c.room || s.StreamsRefused != 2 || s.HandshakesFailed != 0 {
					t.Errorf("%d unproved, %d refused, %d failed", s.Unproved, s.StreamsRefused, s.HandshakesFailed)
				}
			})
		})
	}
}

func TestStreamsThatNoMemberSendsAreRefused(t *testing.T) {
	good := gossipHead("push", minSealed, sealedVersion)
	for _, c := range []struct {
		name string
		head []byte
		ok   bool
	}{
		{"sealed", good, true},
		{"without label", gossipHead("", maxSealed, sealedVersion), true},
		{"of a long label", gossipHead(string(make([]byte, 255)), minSealed, sealedVersion), true},
		{"not sealed", []byte("\xF4\x04push\x06"), true}, // memberlist says what is wrong
		{"too long", gossipHead("push", maxSealed+1, sealedVersion), false},
		{"empty", gossipHead("push", minSealed-1, sealedVersion), false},
		{"version 0", gossipHead("push", 1000, 0), false},
		{"version 2", gossipHead("", 1000, 2), false},
		{"of an empty label", []byte{labelByte, 0, sealedByte, 0, 0, 1, 0, sealedVersion}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
				conn := dialFrom(t, nw, "10.0.0.2", a)
				go func() {
					for _, b := range c.head { // in pieces
						_, _ = conn.Write([]byte{b})
						time.Sleep(time.Millisecond)
					}
					_, _ = conn.Write([]byte("rest"))
				}()
				select {
				case got := <-a.mesh.Transport().StreamCh():
					text := make([]byte, len(c.head)+4)
					if _, err := io.ReadFull(got, text); !c.ok || err != nil || string(text) != string(c.head)+"rest" {
						t.Errorf("memberlist gets %q, %v", text, err)
					}
					got.Close()
				case <-time.After(2 * time.Second):
					if s := a.mesh.Stats(); c.ok || isOpen(conn) || s.StreamsRefused != 1 {
						t.Errorf("memberlist gets nothing, %d refused", s.StreamsRefused)
					}
				}
			})
		})
	}
}

func TestAGossipHeadThatStopsIsClosedInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		head := gossipHead("push", minSealed, sealedVersion)
		var conns []net.Conn
		for n := 1; n < len(head); n++ {
			conns = append(conns, dialFrom(t, nw, "10.0.0.2", a, head[:n]...))
		}
		time.Sleep(handshakeTime + time.Second)
		for i, conn := range conns {
			if isOpen(conn) {
				t.Errorf("with %d bytes it is open", i+1)
			}
		}
		if s := a.mesh.Stats(); s.Unproved != 0 || s.HandshakesFailed != uint64(len(conns)) {
			t.Errorf("%d unproved, %d failed", s.Unproved, s.HandshakesFailed)
		}
	})
}

func TestPacketsThatNoMemberSendsAreDroppedAndTheOthersKeepTheirOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		nw.SetDelay(0, 0)
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		from := nw.Host("10.0.0.2").Transport(port)
		send := func(b ...byte) {
			t.Helper()
			if _, err := from.WriteTo(b, a.addr); err != nil {
				t.Fatal(err)
			}
		}
		bad := [][]byte{
			nil, {labelByte}, {labelByte, 4}, {labelByte, 255, 'p'}, {labelByte, 1, 'p'}, {sealedVersion},
			make([]byte, 100), append([]byte{2}, make([]byte, 100)...), append([]byte{12}, make([]byte, 100)...),
			append([]byte{sealedVersion}, make([]byte, minSealed-2)...),
			append([]byte{labelByte, 1, 'p', sealedVersion}, make([]byte, minSealed-2)...),
			append([]byte{labelByte, 1, 'p', 0}, make([]byte, 100)...),
		}
		var want, got []int
		for i := range 100 {
			b := make([]byte, minSealed)
			b[0], b[1] = sealedVersion, byte(i)
			if i%2 == 0 {
				b = append([]byte{labelByte, 4, 'p', 'u', 's', 'h'}, b...)
			}
			send(b...)
			send(bad[i%len(bad)]...)
			want = append(want, i)
		}
		for range want {
			select {
			case p := <-a.mesh.Transport().PacketCh():
				got = append(got, int(p.Buf[len(p.Buf)-minSealed+1]))
			case <-time.After(time.Second):
			}
		}
		synctest.Wait()
		if !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
		if n := a.mesh.Stats().PacketsRefused; n != 100 {
			t.Errorf("%d refused", n)
		}
		a.wantLog("level=WARN", "packet refused", "addr=10.0.0.2")
		send(append([]byte{sealedVersion}, make([]byte, 100)...)...) // nobody takes it, and the Mesh ends
	})
}

func TestWhatIsSealedAndMalformedDoesNotEndTheProcess(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		one, two := gossip(t, a, nil), gossip(t, b, nil)
		padded := bytes.Repeat([]byte{200}, 16) // more padding than there are bytes
		packet := sealed(t, 0, padded, nil)
		if _, err := nw.Host("10.0.0.3").Transport(port).WriteTo(packet, a.addr); err != nil {
			t.Fatal(err)
		}
		for version, plain := range map[byte][]byte{0: padded, 1: nil} {
			head := gossipHead("", uint32(len(plain)+minSealed-1), version)
			head = head[:len(head)-1] // sealed has the version
			dialFrom(t, nw, "10.0.0.3", a, append(head, sealed(t, version, plain, head)...)...)
		}
		time.Sleep(time.Second)
		if s := a.mesh.Stats(); s.PacketsRefused != 1 || s.StreamsRefused != 2 {
			t.Errorf("%d packets and %d streams refused", s.PacketsRefused, s.StreamsRefused)
		}
		if _, err := two.Join([]string{a.addr}); err != nil || one.NumMembers() != 2 {
			t.Errorf("Join: %v, %d members", err, one.NumMembers())
		}
	})
}

func TestAbandonEndsWhatTakesPacketsAndStreams(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		dialFrom(t, nw, "10.0.0.2", a, gossipHead("", 1000, sealedVersion)...)
		if _, err := nw.Host("10.0.0.2").Transport(port).WriteTo(append([]byte{sealedVersion}, make([]byte, 100)...), a.addr); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		began := time.Now()
		a.mesh.Abandon()
		if d := time.Since(began); d > 0 || a.mesh.Stats().Gossip != 0 {
			t.Errorf("it took %v, and %d streams are counted", d, a.mesh.Stats().Gossip)
		}
		if _, err := a.host.DialContext(t.Context(), "tcp", a.addr); err != nil {
			t.Errorf("the transport is shut: %v", err)
		}
	})
}

func FuzzGossipHead(f *testing.F) {
	f.Add(gossipHead("push", 1000, sealedVersion))
	f.Add([]byte{labelByte, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if membersPacket(b) && len(b) < minSealed {
			t.Fatal("too short")
		}
		if len(b) == 0 {
			return
		}
		r := bytes.NewReader(b[1:])
		head, err := readGossipHead(r, b[:1:1])
		if err == nil && (len(head) > maxGossipHead || !bytes.Equal(head, b[:len(b)-r.Len()])) {
			t.Fatalf("%x of %x", head, b)
		}
	})
}

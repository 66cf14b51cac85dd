package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/memnet"
	"github.com/hashicorp/memberlist"
)

// gossipKey is what memberlists have whose Mesh has keys.
var gossipKey = bytes.Repeat([]byte{7}, 32)

// gossip runs an unmodified memberlist over a node's transport.
func gossip(t *testing.T, n *node, change func(*memberlist.Config)) *memberlist.Memberlist {
	t.Helper()
	cfg := memberlist.DefaultLANConfig()
	cfg.Name = n.self.ID
	cfg.Transport = n.mesh.Transport()
	cfg.LogOutput = io.Discard
	if len(n.mesh.cfg.Keys) > 0 {
		cfg.SecretKey = gossipKey
	}
	if change != nil {
		change(cfg)
	}
	l, err := memberlist.Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Shutdown(); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		time.Sleep(2 * time.Minute) // its timers
	})
	return l
}

func TestMemberlistAndLinksShareAPort(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		for _, label := range []string{"", "push"} {
			t.Run(fmt.Sprintf("encrypted %v, label %q", encrypted, label), func(t *testing.T) {
				inBubble(t, func(t *testing.T, nw *memnet.Network) {
					change := func(cfg *memberlist.Config) { cfg.Label = label }
					a, b := pair(t, nw, func(cfg *Config) {
						if !encrypted {
							cfg.Keys = nil
						}
					})
					one, two := gossip(t, a, change), gossip(t, b, change)
					a.up(b)
					b.up(a)
					if _, err := two.Join([]string{a.addr}); err != nil {
						t.Fatal(err)
					}
					a.wantLinked(b)
					b.wantLinked(a)
					time.Sleep(2 * time.Minute) // push/pulls over the same port
					if one.NumMembers() != 2 || two.NumMembers() != 2 || len(a.seen().broken)+len(b.seen().broken) > 0 {
						t.Errorf("%d and %d members, %d broken", one.NumMembers(), two.NumMembers(), len(a.seen().broken)+len(b.seen().broken))
					}
					if err := one.SendReliable(two.LocalNode(), make([]byte, 100_000)); err != nil {
						t.Error(err)
					}
					for _, n := range []*node{a, b} {
						if s := n.mesh.Stats(); s.StreamsRefused+s.PacketsRefused > 0 || s.Gossip > 1 {
							t.Errorf("%s: %+v", n.self.ID, s)
						}
					}
				})
			})
		}
	}
}

func TestMemberlistGetsAStreamAsIfNobodyHadLooked(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		conn := dialRaw(t, nw, a, []byte("hello")...)
		got := <-a.mesh.Transport().StreamCh()
		defer got.Close()
		text := make([]byte, 5)
		if _, err := io.ReadFull(got, text); err != nil || string(text) != "hello" {
			t.Fatalf("read %q, %v", text, err)
		}
		go func() {
			time.Sleep(30 * time.Minute)
			_, _ = conn.Write([]byte("still"))
		}()
		if _, err := io.ReadFull(got, text); err != nil || string(text) != "still" {
			t.Errorf("half an hour later: read %q, %v", text, err)
		}
		if a.mesh.Stats().Unproved != 0 {
			t.Error("it is counted still")
		}
	})
}

func TestAFloodOfSilentStreamsKeepsNobodyOut(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		gossip(t, a, nil)
		two := gossip(t, b, nil)
		var conns []net.Conn
		for i := range 600 {
			conn := dialRaw(t, nw, a)
			switch i % 3 {
			case 1:
				_, _ = conn.Write([]byte{linkByte, 0x16})
			case 2:
				_, _ = conn.Write([]byte{relayByte})
			}
			conns = append(conns, conn)
			if i%50 == 0 {
				time.Sleep(3 * time.Millisecond)
			}
		}
		time.Sleep(10 * time.Millisecond)
		s := a.mesh.Stats()
		if s.Unproved > maxSilent+maxProving || s.Unproved < maxSilent || s.StreamsRefused < 500 {
			t.Errorf("of one address: %d unproved, %d refused", s.Unproved, s.StreamsRefused)
		}
		a.wantLog("level=WARN", "stream refused", "that prove nothing")
		b.up(a)
		if _, err := two.Join([]string{a.addr}); err != nil {
			t.Errorf("Join meanwhile: %v", err)
		}
		b.wantLinked(a)
		time.Sleep(handshakeTime)
		synctest.Wait()
		if n := a.mesh.Stats().Unproved; n != 0 {
			t.Errorf("%d streams are held after the deadline", n)
		}
		for _, c := range conns {
			c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) {
				t.Fatal("a stream is open still")
			}
		}
	})
}

func TestStreamsOfManyAddressesAreLimitedInAll(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		for i := range 200 {
			conn, err := nw.Host(fmt.Sprintf("10.1.0.%d", i)).DialContext(t.Context(), "tcp", a.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			synctest.Wait()
		}
		if s := a.mesh.Stats(); s.Unproved != maxPending || s.StreamsRefused != 200-maxPending {
			t.Errorf("%d unproved, %d refused", s.Unproved, s.StreamsRefused)
		}
	})
}

func TestManyNodesMayStartOnOneLoopbackAddress(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "127.0.0.1", origin("a", 1), nil)
		for range 100 {
			conn, err := nw.Host("127.0.0.1").DialContext(t.Context(), "tcp", a.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, _ = conn.Write([]byte{linkByte})
			synctest.Wait()
		}
		time.Sleep(10 * time.Millisecond)
		if s := a.mesh.Stats(); s.Unproved != 100 || s.StreamsRefused != 0 {
			t.Errorf("%d unproved, %d refused", s.Unproved, s.StreamsRefused)
		}
	})
}

func TestGarbageOnThePortCostsLittleAndHarmsNobody(t *testing.T) {
	for _, secure := range []bool{true, false} {
		t.Run(fmt.Sprint("TLS ", secure), func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				a, b := pair(t, nw, func(cfg *Config) {
					if !secure {
						cfg.Keys = nil
					}
				})
				gossip(t, a, nil)
				b.up(a)
				b.wantLinked(a)
				rnd := rand.New(rand.NewPCG(8, 9))
				for i := range 300 {
					junk := make([]byte, rnd.IntN(2000))
					for j := range junk {
						junk[j] = byte(rnd.Uint32())
					}
					switch i % 4 {
					case 0:
						junk = append([]byte{linkByte}, junk...)
					case 1:
						junk = append([]byte{linkByte, 0xff, 0xff, 0xff, 0xff}, junk...)
					case 2:
						junk = append(binary.BigEndian.AppendUint32([]byte{linkByte}, uint32(len(junk)+1)), append([]byte{kindHello}, junk...)...)
					case 3:
						junk = append([]byte{relayByte}, junk...)
					}
					conn := dialRaw(t, nw, a, junk...)
					time.Sleep(2 * time.Millisecond)
					conn.Close()
					time.Sleep(2 * time.Millisecond)
				}
				b.offer(a, "hello")
				b.waitFor(time.Second, "an answer", func() bool { return slices.Equal(b.answers, []string{"hello"}) })
				if s := a.mesh.Stats(); s.HandshakesFailed < 150 || s.LinksIn != 1 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestRelaysCarryBytesBothWaysAndEndWithTheMesh(t *testing.T) {
	for _, secure := range []bool{true, false} {
		t.Run(fmt.Sprint("TLS ", secure), func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				a, b := pair(t, nw, func(cfg *Config) {
					if !secure {
						cfg.Keys = nil
					}
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				near, err := a.mesh.DialRelay(ctx, b.addr)
				cancel()
				if err != nil {
					t.Fatal(err)
				}
				_, _ = near.Write([]byte("question"))
				far, err := b.mesh.Relays().Accept()
				if err != nil {
					t.Fatal(err)
				}
				if got := far.RemoteAddr().String(); got != near.LocalAddr().String() {
					t.Errorf("it comes from %s, want %s", got, near.LocalAddr())
				}
				time.Sleep(time.Minute) // no deadline is left
				for _, c := range []struct {
					from, to net.Conn
					text     string
				}{{near, far, "question"}, {far, near, "answer"}} {
					if c.text == "answer" {
						_, _ = c.from.Write([]byte(c.text))
					}
					got := make([]byte, len(c.text))
					if _, err := io.ReadFull(c.to, got); err != nil || string(got) != c.text {
						t.Fatalf("read %q, %v, want %q", got, err, c.text)
					}
				}
				b.end()
				if _, err := near.Read(make([]byte, 1)); err == nil {
					t.Error("it lives on after its Mesh")
				}
				if _, err := b.mesh.Relays().Accept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v", err)
				}
				if _, err := far.Write([]byte("x")); err == nil {
					t.Error("a write after Close")
				}
			})
		})
	}
}

func TestARelayIsNotALinkAndNeedsTheSecret(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		for name, cfg := range impostors(t) {
			if name == "relay's ALPN" {
				continue
			}
			conn := dialRaw(t, nw, b, relayByte)
			cfg = cfg.Clone()
			cfg.InsecureSkipVerify = true
			if name == "" {
				cfg.NextProtos = []string{linkALPN}
			}
			end := tls.Client(conn, cfg)
			_ = end.Handshake()
			_, _ = end.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			if n, err := end.Read(make([]byte, 1)); err == nil {
				t.Errorf("%q: read %d bytes", name, n)
			}
			conn.Close()
		}
		if n := b.mesh.Stats().RelaysIn; n != 0 {
			t.Errorf("%d relays", n)
		}
		if _, err := a.mesh.DialRelay(t.Context(), "10.0.0.77:1"); err == nil {
			t.Error("a relay to nobody")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if _, err := a.mesh.DialRelay(ctx, "10.0.0.77:1"); err == nil || time.Since(began) != time.Second {
			t.Errorf("DialRelay: %v after %v", err, time.Since(began))
		}
	})
}

func TestCloseDoesNotWaitForStreamsThatProveNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		dialRaw(t, nw, a, linkByte)
		dialRaw(t, nw, a, relayByte, 0x16)
		time.Sleep(5 * time.Millisecond)
		if n := a.mesh.Stats().Unproved; n != 2 {
			t.Fatalf("%d streams wait", n)
		}
		began := time.Now()
		a.mesh.Close(t.Context())
		if d := time.Since(began); d > 0 {
			t.Errorf("it took %v", d)
		}
	})
}

func TestRelaysThatNobodyAcceptsAreLimited(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, func(cfg *Config) { cfg.Keys = nil })
		for range maxAccepted + 20 {
			if _, err := a.mesh.DialRelay(t.Context(), b.addr); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if s := b.mesh.Stats(); s.RelaysIn != maxAccepted || s.StreamsRefused != 20 || s.RelayConn != maxAccepted {
			t.Errorf("%+v", s)
		}
		b.mesh.Relays().Close()
		synctest.Wait()
		if n := b.mesh.Stats().RelayConn; n != 0 {
			t.Errorf("%d are left after Close", n)
		}
	})
}

func TestTheTransportMayBeShutDownBeforeTheMesh(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		a.up(b)
		b.up(a)
		a.wantLinked(b)
		dialRaw(t, nw, a)            // says nothing
		dialRaw(t, nw, a, 1, 2, 3)   // memberlist's, and nobody takes it
		dialRaw(t, nw, a, linkByte)  // never says HELLO
		dialRaw(t, nw, a, relayByte) // never says anything
		time.Sleep(time.Millisecond * 5)
		began := time.Now()
		if err := a.mesh.Transport().Shutdown(); err != nil || time.Since(began) > 0 {
			t.Fatalf("Shutdown: %v after %v", err, time.Since(began))
		}
		a.offer(b, "hello")
		a.waitFor(time.Second, "an answer", func() bool { return len(a.answers) == 1 })
	})
}

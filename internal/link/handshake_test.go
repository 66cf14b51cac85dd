package link

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/memnet"
)

func TestNodesWithACommonSecretLink(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b [][]byte
	}{
		{"same", keys("one"), keys("one")},
		{"none", nil, nil},
		{"rotating, both know both", keys("old", "new"), keys("new", "old")},
		{"rotating, one does not know the new one yet", keys("old", "new"), keys("old")},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				a := start(t, nw, "10.0.0.1", origin("a", 1), func(cfg *Config) { cfg.Keys = c.a; cfg.Greeting = []byte("I am a") })
				b := start(t, nw, "10.0.0.2", origin("b", 1), func(cfg *Config) { cfg.Keys = c.b; cfg.Greeting = []byte("I am b") })
				a.up(b)
				b.up(a)
				a.wantLinked(b)
				b.wantLinked(a)
				synctest.Wait()
				for n, want := range map[*node]string{a: "I am b", b: "I am a"} {
					n.mu.Lock()
					if len(n.greeting) != 2 || n.greeting[0] != want || n.greeting[1] != want {
						t.Errorf("%s was greeted %q, want %q by HELLO and by WELCOME", n.self.ID, n.greeting, want)
					}
					n.mu.Unlock()
				}
			})
		})
	}
}

func TestNodesWithoutACommonSecretAreRefusedAndTheLogsSayWhy(t *testing.T) {
	const see = "Cluster.Secrets"
	for _, c := range []struct {
		name     string
		a, b     [][]byte
		aSays    string
		bSays    string
		bRefuses string
	}{
		{"other secret", keys("one"), keys("two"), see, see, "link refused"},
		{"other name", keysIn("blue", "one"), keysIn("green", "one"), see, "Cluster.Name", "link refused"},
		{"removed secret", keys("old", "new"), keys("new"), see, "Cluster.Name", "link refused"},
		{"only the dialler has one", keys("one"), nil, see, "this one none", "link refused"},
		{"only the acceptor has one", nil, keys("one"), see, "seems to have no secret", "link refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				a := start(t, nw, "10.0.0.1", origin("a", 1), func(cfg *Config) { cfg.Keys = c.a })
				b := start(t, nw, "10.0.0.2", origin("b", 1), func(cfg *Config) { cfg.Keys = c.b })
				a.up(b)
				a.wantLog("level=WARN", "cluster: no link", "node=b", c.aSays)
				b.wantLog("level=WARN", c.bRefuses, "addr=10.0.0.1:", c.bSays)
				time.Sleep(time.Minute)
				if a.peer(b).Up() || b.mesh.Stats().LinksIn > 0 || b.mesh.Stats().HandshakesFailed == 0 {
					t.Errorf("up %v, %+v", a.peer(b).Up(), b.mesh.Stats())
				}
				b.mu.Lock()
				defer b.mu.Unlock()
				if n := bytes.Count(b.log.Bytes(), []byte("level=WARN")); n > 3 {
					t.Errorf("%d warnings in a minute", n)
				}
			})
		})
	}
}

// certificate makes one for a key.
func certificate(t *testing.T, public, private any) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// impostors are TLS configurations that must not get in, and one that must.
func impostors(t *testing.T) map[string]*tls.Config {
	good := func() *tls.Config {
		c := newIdentity(keys("a secret")).config(linkALPN)
		c.VerifyConnection = nil
		return c
	}
	with := func(change func(*tls.Config)) *tls.Config {
		c := good()
		change(c)
		return c
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	own := good().Certificates[0]
	return map[string]*tls.Config{
		"":                    good(),
		"relay's ALPN":        with(func(c *tls.Config) { c.NextProtos = []string{relayALPN} }),
		"another ALPN":        with(func(c *tls.Config) { c.NextProtos = []string{"h2"} }),
		"no ALPN":             with(func(c *tls.Config) { c.NextProtos = nil }),
		"no certificate":      with(func(c *tls.Config) { c.Certificates = nil }),
		"RSA":                 with(func(c *tls.Config) { c.Certificates = []tls.Certificate{certificate(t, &rsaKey.PublicKey, rsaKey)} }),
		"ECDSA":               with(func(c *tls.Config) { c.Certificates = []tls.Certificate{certificate(t, &ecKey.PublicKey, ecKey)} }),
		"another Ed25519 key": with(func(c *tls.Config) { c.Certificates = []tls.Certificate{certificate(t, edKey.Public(), edKey)} }),
		"two certificates": with(func(c *tls.Config) {
			own.Certificate = append(own.Certificate, own.Certificate[0])
			c.Certificates = []tls.Certificate{own}
		}),
		"a foreign key and ours behind": with(func(c *tls.Config) {
			cert := certificate(t, edKey.Public(), edKey)
			cert.Certificate = append(cert.Certificate, good().Certificates[0].Certificate[0])
			c.Certificates = []tls.Certificate{cert}
		}),
		"our certificate without its key": with(func(c *tls.Config) {
			c.Certificates = []tls.Certificate{{Certificate: good().Certificates[0].Certificate, PrivateKey: edKey}}
		}),
		"TLS 1.2": with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }),
	}
}

func TestADiallerWithoutTheKeyGetsNoWelcome(t *testing.T) {
	for name, cfg := range impostors(t) {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				b := start(t, nw, "10.0.0.2", origin("b", 1), nil)
				conn := dialRaw(t, nw, b, linkByte)
				end := tls.Client(conn, cfg)
				_, _ = end.Write(hello{min: 1, max: 1, from: origin("evil", 1), to: b.self}.append(nil))
				kind, _, err := newReader(end, new(atomic.Uint64)).next()
				if name == "" && (err != nil || kind != kindWelcome) {
					t.Fatalf("the right key: %v", err)
				}
				if name != "" && err == nil {
					t.Fatal("it was let in")
				}
				if _, hash := b.dir.Have(origin("evil", 1)); name != "" && (hash != 0 || len(b.dir.Origins(nil)) > 0) {
					t.Error("the directory knows it")
				}
			})
		})
	}
}

func TestAnAcceptorWithoutTheKeyGetsNoHello(t *testing.T) {
	for name, cfg := range impostors(t) {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				ln, err := nw.Host("10.0.0.2").Listen(port)
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				got := make(chan error, 1)
				go func() {
					conn, err := ln.Accept()
					if err == nil {
						conn.SetDeadline(time.Now().Add(8 * time.Second))
						_, err = conn.Read(make([]byte, 1))
						end := tls.Server(conn, cfg)
						if err == nil {
							_, _, err = newReader(end, new(atomic.Uint64)).next()
						}
						conn.Close()
					}
					got <- err
				}()
				a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
				a.mesh.Up(origin("b", 1), "10.0.0.2:7946")
				if err := <-got; (err == nil) != (name == "") {
					t.Errorf("HELLO came: %v", err == nil)
				}
				a.mesh.Down(origin("b", 1))
			})
		})
	}
}

func dialRaw(t *testing.T, nw *memnet.Network, to *node, first ...byte) net.Conn {
	t.Helper()
	conn, err := nw.Host("10.0.0.99").DialContext(t.Context(), "tcp", to.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Hour))
	_, _ = conn.Write(first) // it may be refused already
	return conn
}

func TestVersionsMeetAtTheNewestThatBothSpeak(t *testing.T) {
	for _, c := range []struct{ a, b, want int }{{1, 1, 1}, {1, 2, 1}, {2, 1, 1}, {2, 2, 2}} {
		t.Run(fmt.Sprintf("%d to %d", c.a, c.b), func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				a := start(t, nw, "10.0.0.1", origin("a", 1), func(cfg *Config) { cfg.Proto = c.a })
				b := start(t, nw, "10.0.0.2", origin("b", 1), func(cfg *Config) { cfg.Proto = c.b })
				a.up(b)
				a.wantLinked(b)
				time.Sleep(10 * time.Second)
				a.offer(b, "hello")
				a.waitFor(time.Second, "an answer", func() bool { return len(a.answers) == 1 })
				a.wantLog("link up", fmt.Sprintf("proto=%d", c.want))
				if u := a.mesh.Stats().UnknownFrames + b.mesh.Stats().UnknownFrames; u != 0 {
					t.Errorf("%d frames were not understood", u)
				}
			})
		})
	}
}

func TestVersionsWithoutACommonProtocolTellEachOther(t *testing.T) {
	for _, newerDials := range []bool{false, true} {
		t.Run(fmt.Sprintf("newer dials %v", newerDials), func(t *testing.T) {
			inBubble(t, func(t *testing.T, nw *memnet.Network) {
				newer := start(t, nw, "10.0.0.1", origin("newer", 1), func(cfg *Config) { cfg.minProto, cfg.Proto = 3, 4 })
				older := start(t, nw, "10.0.0.2", origin("older", 1), func(cfg *Config) { cfg.Proto = 2 })
				a, b := older, newer
				itSpeaks, mine := "it speaks 3 to 4", "this node 1 to 2"
				if newerDials {
					a, b = newer, older
					itSpeaks, mine = "it speaks 1 to 2", "this node 3 to 4"
				}
				a.up(b)
				a.wantLog("level=WARN", "no common protocol", itSpeaks, mine)
				b.wantLog("level=WARN", "no common protocol", "this node", "it speaks")
				if a.peer(b).Up() || b.mesh.Stats().RefusedHellos == 0 {
					t.Error("they have a link")
				}
			})
		})
	}
}

func TestAnAnswerInTheNameOfAnotherRunEndsThatRun(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		old := origin("b", 77) // also when it seems to be the later one: the clock went back
		if err := a.dir.Up(old); err != nil {
			t.Fatal(err)
		}
		a.mesh.Up(old, b.addr)
		p := a.mesh.Peer(old)
		if err := p.Offer([]byte{40}); err != nil {
			t.Fatal(err)
		}
		a.waitFor(time.Second, "Gone", func() bool { return slices.Equal(a.gone, []directory.Origin{old}) })
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.broken) != 1 || a.broken[0] != p {
			t.Errorf("Broken was called %d times for what had been taken, want once", len(a.broken))
		}
		if len(a.dir.Origins(nil)) != 0 {
			t.Errorf("the directory still knows %v", a.dir.Origins(nil))
		}
		if a.mesh.Peer(old) != nil {
			t.Error("it is dialled for ever")
		}
		if err := p.Offer([]byte{40}); err != ErrDown {
			t.Errorf("Offer: %v", err)
		}
	})
}

func TestAnotherNodeAtTheAddressEndsNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		c := origin("c", 1)
		a.dir.Up(c)
		a.mesh.Up(c, b.addr)
		a.wantLog("level=WARN", "no link", "node=c", `\"b\"`, "Cluster.Advertise")
		time.Sleep(time.Minute)
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.gone) > 0 || len(a.dir.Origins(nil)) != 1 {
			t.Errorf("gone: %v", a.gone)
		}
	})
}

func TestTwoNodesOfOneIDDoNotLinkAndBothSaySo(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("twin", 1), nil)
		b := start(t, nw, "10.0.0.2", origin("twin", 2), nil)
		a.mesh.Up(b.self, b.addr)
		a.wantLog("level=ERROR", "Cluster.Node must be unlike")
		b.wantLog("level=ERROR", "Cluster.Node must be unlike")
	})
}

func TestAnOldRunReadLateIsRefusedUntilTheLaterOneIsProvedGone(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		later := start(t, nw, "10.0.0.2", origin("b", 2), nil)
		a.up(later)
		later.up(a)
		a.wantLinked(later)
		later.wantLinked(a)
		later.join("alice")
		a.wantKnows(time.Second, later)

		// Its clock went back: the new run has the smaller epoch.
		later.host.Kill()
		later.end()
		b := start(t, nw, "10.0.0.2", origin("b", 1), nil)
		b.up(a)
		b.wantLog("no link", "it knows a later run of this node")
		a.wantLog("level=WARN", "link refused", "a later run of it is known")
		a.waitFor(10*time.Second, "Gone of the run that the clock calls later", func() bool { return slices.Equal(a.gone, []directory.Origin{later.self}) })
		b.wantLinked(a)
	})
}

func TestTheOneWhoAnswersIsIdentifiedAsWell(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		old := start(t, nw, "10.0.0.2", origin("b", 1), nil)
		old.up(a)
		old.wantLinked(a)
		old.join("alice")
		a.up(old)
		a.waitFor(time.Second, "alice", func() bool { return a.knows(old) })
		old.host.Kill()
		old.end()
		b := start(t, nw, "10.0.0.3", origin("b", 2), nil)
		a.up(b) // b does not dial
		a.wantLinked(b)
		if all := a.dir.Origins(nil); len(all) != 1 || all[0].Origin != b.self {
			t.Errorf("the directory knows %v, want the run that answered and no earlier one", all)
		}

		back := start(t, nw, "10.0.0.2", origin("b", 1), nil) // the earlier one is not dead
		a.up(back)
		a.wantLog("level=WARN", "no link", "addr=10.0.0.2", "a later run of it is known")
		if a.peer(back).Up() || !a.peer(b).Up() {
			t.Error("the earlier run has a link")
		}
	})
}

func TestAReplayOfAnEarlierRunChangesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a := start(t, nw, "10.0.0.1", origin("a", 1), nil)
		b := start(t, nw, "10.0.0.2", origin("b", 5), nil)
		old := start(t, nw, "10.0.0.3", origin("b", 4), nil) // it runs still, cut off from membership
		a.up(b)
		b.up(a)
		a.wantLinked(b)
		b.wantLinked(a)
		b.join("alice")
		a.wantKnows(time.Second, b)
		old.up(a)
		a.wantLog("link refused", "later run")
		time.Sleep(time.Minute)
		if !a.knows(b) || !a.peer(b).Up() || len(a.dir.Origins(nil)) != 1 {
			t.Error("the earlier run did harm")
		}
	})
}

func TestANodeThatShutsDownSaysSoToWhoDials(t *testing.T) {
	inBubble(t, func(t *testing.T, nw *memnet.Network) {
		a, b := pair(t, nw, nil)
		b.mesh.mu.Lock()
		b.mesh.ending = true
		b.mesh.mu.Unlock()
		a.up(b)
		a.wantLog("level=DEBUG", "no link", "it shuts down")
		b.wantLog("level=DEBUG", "link refused", "shuts down")
	})
}

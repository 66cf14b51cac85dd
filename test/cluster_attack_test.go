package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/members"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/nodemsg"
	"github.com/embedpush/push/internal/quietlog"
	"github.com/embedpush/push/internal/secret"
	"github.com/embedpush/push/internal/wire"
	"github.com/vmihailenco/msgpack/v5"
)

// What goes over a link, as package link has it.
const (
	linkByte  = 0xC7
	relayByte = 0xC8

	frameHello   = 1
	frameWelcome = 2
	frameDelta   = 3
	frameSnap    = 4
	frameBeat    = 6

	linkProtocol = "push-link/1"
)

// rogue is a node that has the secret and no manners: gossip takes it for a
// member, and what it says over links is the test's.
type rogue struct {
	*memnet.Transport
	t       *testing.T
	self    directory.Origin
	host    *memnet.Host
	list    *members.List
	streams chan net.Conn // memberlist's
	done    chan struct{}
	work    sync.WaitGroup

	// hears is told what comes over the links that others dialled, by the
	// goroutine that reads each. nil: nothing is answered.
	hears func(l *rogueLink, kind byte, body []byte)

	mu    sync.Mutex
	links []*rogueLink // guarded by mu: all, those that have ended too
}

// rogueLink is a link of a rogue's, either way.
type rogueLink struct {
	x     *rogue
	peer  directory.Origin
	conn  net.Conn
	r     *bufio.Reader
	turn  turn          // held while something is written
	over  chan struct{} // closed when it is not read any more
	clock atomic.Uint64 // in its beats
}

// rogueJoins starts a rogue on the last byte of an address, and waits until all
// nodes know it.
func (w *clusterWorld) rogueJoins(id string, at int, hears func(l *rogueLink, kind byte, body []byte)) *rogue {
	w.t.Helper()
	host := w.net.Host(clusterIP(at))
	x := &rogue{
		Transport: host.Transport(7946), t: w.t, host: host, hears: hears,
		self:    directory.Origin{ID: id, Epoch: uint64(time.Now().UnixMilli())},
		streams: make(chan net.Conn), done: make(chan struct{}),
	}
	x.work.Go(x.takes)
	log := quietlog.New(slog.New(slog.DiscardHandler), "rogue")
	ctx, stop := context.WithCancel(context.Background())
	x.work.Go(func() { log.Run(ctx) })
	var err error
	x.list, err = members.Start(members.Config{
		Self: x.self, Cluster: "push", Keys: [][]byte{secret.Derive(clusterSecret(1), "gossip", "push")}, Transport: x,
		Seeds: []members.Seed{{IP: netip.MustParseAddr(clusterIP(1)), Port: 7946}}, Log: log, Extra: []byte{9, 9, 9, byte(at)},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		x.list.Leave(gone)
		close(x.done)
		x.cuts()
		stop()
		x.work.Wait()
	})
	for _, n := range w.nodes {
		var names []string
		for _, o := range w.nodes {
			names = append(names, o.name)
		}
		n.wantWithin(time.Minute, append(names, id)...)
	}
	time.Sleep(100 * time.Millisecond)
	return x
}

// StreamCh implements memberlist.Transport.
func (x *rogue) StreamCh() <-chan net.Conn { return x.streams }

// takes gives memberlist its streams, and takes the links.
func (x *rogue) takes() {
	for {
		select {
		case conn := <-x.Transport.StreamCh():
			x.work.Go(func() {
				r := bufio.NewReader(conn)
				first, err := r.Peek(1)
				switch {
				case err != nil, first[0] == relayByte:
					conn.Close()
				case first[0] == linkByte:
					r.Discard(1)
					x.accepts(&readFirst{conn, r})
				default:
					select {
					case x.streams <- &readFirst{conn, r}:
					case <-x.done:
						conn.Close()
					}
				}
			})
		case <-x.done:
			return
		}
	}
}

// readFirst is a stream of which something is read already.
type readFirst struct {
	net.Conn
	r *bufio.Reader
}

func (c *readFirst) Read(b []byte) (int, error) { return c.r.Read(b) }

// linkTLS is what a node of the cluster shows and takes.
func linkTLS() *tls.Config {
	key := ed25519.NewKeyFromSeed(secret.Derive(clusterSecret(1), "link", "push"))
	return keyTLS(key, key.Public())
}

// keyTLS shows the certificate of a key, and takes any.
func keyTLS(key, public any) *tls.Config {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{linkProtocol}, InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
}

// accepts answers who dialled, and reads what it says.
func (x *rogue) accepts(conn net.Conn) {
	t := tls.Server(conn, linkTLS())
	if t.Handshake() != nil {
		conn.Close()
		return
	}
	l := x.link(t)
	kind, body, err := l.next()
	var min, max, epoch, toEpoch uint64
	var id, to string
	if err != nil || kind != frameHello || msgpack.NewDecoder(bytes.NewReader(body[1:])).DecodeMulti(&min, &max, &id, &epoch, &to, &toEpoch) != nil {
		conn.Close()
		return
	}
	l.peer = directory.Origin{ID: id, Epoch: epoch}
	l.says(frameWelcome, packedList(0, 1, 1, 1, x.self.ID, x.self.Epoch, 0, 0, []byte(nil)))
	l.begins(x.hears)
}

// dials dials a node as somebody, who is let in.
func (x *rogue) dials(n *nodeWorld, as directory.Origin) *rogueLink {
	x.t.Helper()
	l, status := x.triesToDial(n, as)
	if status != 0 {
		x.t.Fatalf("HELLO as %v was answered with status %d", as, status)
	}
	return l
}

// triesToDial dials a node and says HELLO. Status is WELCOME's, 0: let in.
func (x *rogue) triesToDial(n *nodeWorld, as directory.Origin) (l *rogueLink, status uint64) {
	x.t.Helper()
	raw, err := x.DialTimeout(clusterIP(n.at)+":7946", 5*time.Second)
	if err != nil {
		x.t.Fatal(err)
	}
	raw.Write([]byte{linkByte})
	conn := tls.Client(raw, linkTLS())
	if err := conn.Handshake(); err != nil {
		x.t.Fatal(err)
	}
	l = x.link(conn)
	l.peer = n.origin()
	l.says(frameHello, packedList(1, 1, as.ID, as.Epoch, l.peer.ID, l.peer.Epoch, []byte(nil)))
	kind, body, err := l.next()
	if err != nil || kind != frameWelcome {
		x.t.Fatalf("HELLO was answered with kind %d, %v", kind, err)
	}
	if err := msgpack.NewDecoder(bytes.NewReader(body[1:])).DecodeMulti(&status); err != nil {
		x.t.Fatal(err)
	}
	if status == 0 {
		go l.begins(nil)
	}
	return l, status
}

// packedList is an array as msgpack.
func packedList(fields ...any) []byte {
	b, err := msgpack.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return b
}

// runOf is a node's run, as this one knows it.
func (n *nodeWorld) runOf(id string) directory.Origin {
	for _, o := range n.Nodes() {
		if o.ID == id {
			return directory.Origin{ID: o.ID, Epoch: uint64(o.Started.UnixMilli())}
		}
	}
	n.clusterNode.t.Errorf("%s does not know %s", n.name, id)
	return directory.Origin{}
}

// origin is the node's own run.
func (n *nodeWorld) origin() directory.Origin { return n.runOf(n.name) }

func (x *rogue) link(conn net.Conn) *rogueLink {
	l := &rogueLink{x: x, conn: conn, r: bufio.NewReader(conn), turn: make(turn, 1), over: make(chan struct{})}
	x.mu.Lock()
	x.links = append(x.links, l)
	x.mu.Unlock()
	return l
}

// cuts closes all links.
func (x *rogue) cuts() {
	x.mu.Lock()
	links := x.links
	x.mu.Unlock()
	for _, l := range links {
		l.conn.Close()
	}
}

func (l *rogueLink) ended() bool {
	select {
	case <-l.over:
		return true
	default:
		return false
	}
}

// begins reads until the end, and beats.
func (l *rogueLink) begins(hears func(l *rogueLink, kind byte, body []byte)) {
	defer close(l.over)
	defer l.conn.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			l.beats(0, 0, l.clock.Load())
			select {
			case <-time.After(3 * time.Second):
			case <-stop:
				return
			}
		}
	}()
	for {
		kind, body, err := l.next()
		if err != nil {
			return
		}
		if hears != nil {
			hears(l, kind, body)
		}
	}
}

func (l *rogueLink) beats(seq, hash, clock uint64, own ...byte) error {
	b := binary.BigEndian.AppendUint64(nil, seq)
	b = binary.BigEndian.AppendUint64(b, hash)
	b = binary.BigEndian.AppendUint64(b, clock)
	b = binary.BigEndian.AppendUint16(b, uint16(len(own)))
	return l.says(frameBeat, append(b, own...))
}

// next reads a frame.
func (l *rogueLink) next() (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err = io.ReadFull(l.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 {
		return 0, nil, errors.New("an empty frame")
	}
	body = make([]byte, n-1)
	_, err = io.ReadFull(l.r, body)
	return head[4], body, err
}

// says sends a frame.
func (l *rogueLink) says(kind byte, body []byte) error { return l.saysRaw(frame(kind, body)) }

func frame(kind byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)+1))
	return append(append(b, kind), body...)
}

func (l *rogueLink) saysRaw(b []byte) error {
	l.turn.Lock()
	defer l.turn.Unlock()
	_, err := l.conn.Write(b)
	return err
}

// holds says over a link that this rogue has users, as the first ops of its
// history.
func (l *rogueLink) holds(clock uint64, users ...string) {
	l.says(frameDelta, joins(0, clock, userKind, users...))
}

// joins is a delta of joins behind base.
func joins(base, clock uint64, kind byte, names ...string) []byte {
	b := binary.BigEndian.AppendUint64(binary.AppendUvarint(nil, base), clock)
	for _, name := range names {
		b = append(b, 1<<4|kind)
		b = binary.AppendUvarint(b, uint64(len(name)))
		b = append(b, name...)
	}
	return b
}

// userKind is the directory's.
const userKind = 0

// result is the body of one, with rows.
func result(res nodemsg.Result, rows ...nodemsg.Row) []byte {
	b := nodemsg.AppendResultHead(nil, &res)
	for i := range rows {
		b = nodemsg.AppendRow(b, &rows[i])
	}
	return b
}

// TestANobodyWithoutEndCostsTheAskerLittle: a peer (limits.md 126) answers a
// push to one user by naming him a million times.
func TestANobodyWithoutEndCostsTheAskerLittle(t *testing.T) {
	begin := time.Now()
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, nil)
		a, b := w.nodes[0], w.nodes[1]
		v := b.visits("push.json", "honest")
		x := w.rogueJoins("x", 9, func(l *rogueLink, kind byte, body []byte) {
			if kind != nodemsg.KindPush {
				return
			}
			p, err := nodemsg.ParsePush(body)
			if err != nil {
				l.x.t.Error(err)
				return
			}
			l.says(nodemsg.KindResult, result(nodemsg.Result{ID: p.ID, Done: true, Nobody: make([]uint32, 1_000_000)}))
		})
		x.dials(a, x.self).holds(0, "alice")
		w.spreads()
		if r, err := a.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: 1}); err == nil || r.Sent != 0 {
			t.Errorf("%+v, %v, want an error: nobody got it", r, err)
		}
		if r, err := a.PushToUser(t.Context(), "honest", push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); err != nil || r.Acked != 1 {
			t.Errorf("behind it %+v, %v, want it Acked", r, err)
		}
		v.wants("e", "1")
	})
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("one answer of 1 MB took the node %v", took)
	}
}

// TestPushesOfOneIDAreForgottenWithTheirLink: a peer uses an id twice, and goes
// away while the device that both are for says nothing.
func TestPushesOfOneIDAreForgottenWithTheirLink(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 1, nil)
		a := w.nodes[0]
		v := a.visits("push.json", "alice")
		v.isMute()
		x := w.rogueJoins("x", 9, nil)
		l := x.dials(a, x.self)
		p := nodemsg.Push{ID: 7, Ack: 1, To: nodemsg.Audience{Kind: nodemsg.User, User: "alice"}, Event: "e", Value: wire.Value{JSON: []byte("1")}}
		for range 1000 {
			l.says(nodemsg.KindPush, nodemsg.AppendPush(nil, &p))
		}
		time.Sleep(time.Second)
		l.conn.Close()
		time.Sleep(10 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		err := a.Shutdown(ctx)
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("the node's end took %v (%v), want it not to wait for a link that is gone", took, err)
		}
	})
}

// TestAHelloDoesNotHideALiveNodeForEver: somebody with the secret says over a
// link that it is a later run of b, and is never heard of again.
func TestAHelloDoesNotHideALiveNodeForEver(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, nil)
		a, b, _ := w.abc()
		v := b.visits("push.json", "alice")
		w.spreads()
		x := w.rogueJoins("x", 9, nil)
		l := x.dials(a, directory.Origin{ID: "b", Epoch: b.origin().Epoch + 3_600_000})
		time.Sleep(time.Second)
		l.conn.Close()
		begin := time.Now()
		for time.Since(begin) < 2*time.Minute {
			time.Sleep(time.Second)
			if r, _ := a.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); r.Acked == 1 {
				v.wants("e", "1")
				t.Logf("after %v", time.Since(begin))
				return
			}
		}
		t.Errorf("a does not reach the users of b, which it sees: %v, ready: %v", a.sees(), a.Ready())
	})
}

// TestABeatFromTheEndOfTimeLeavesLoginsInOrder: a peer's clock is as late as one
// can be, or a thousand years ahead.
func TestABeatFromTheEndOfTimeLeavesLoginsInOrder(t *testing.T) {
	for _, clock := range []uint64{1<<64 - 1, 1<<64 - 100, 1 << 63, uint64(time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()) << 16, uint64(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()) << 16} {
		inBubble(t, func(t *testing.T) {
			w := newClusterWorld(t, 2, func(cfg *push.Config) { cfg.DeviceClass = func(*push.Login) string { return "phone" } })
			a, b := w.nodes[0], w.nodes[1]
			x := w.rogueJoins("x", 9, nil)
			for _, n := range w.nodes {
				l := x.dials(n, x.self)
				l.clock.Store(clock)
			}
			time.Sleep(5 * time.Second)
			for i := range 40 {
				from, to := b, a
				if i%2 == 1 {
					from, to = a, b
				}
				if i == 0 {
					from.visits("push.json", "alice")
				}
				w.spreads()
				last := to.visits("push.json", "alice")
				w.spreads()
				time.Sleep(50 * time.Millisecond)
				if r, err := to.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); err != nil || r.Acked != 1 || r.Deliveries[0].Node != to.name {
					t.Errorf("clock %x: the %d. login, on %s, is not the one that is left: %+v, %v", clock, i, to.name, r, err)
					return
				}
				last.wants("e", "1")
			}
		})
	}
}

// TestStrangersProveNothingOnTheClustersPort: rows 114 to 116 of limits.md, and
// B2 of compatibility.md. Whatever somebody without the secret sends, it is cut
// off in time, and the cluster does not notice.
func TestStrangersProveNothingOnTheClustersPort(t *testing.T) {
	_, right, _ := ed25519.GenerateKey(rand.Reader) // certificates of the cluster's key, made without it
	rightCert := linkTLS().Certificates[0].Certificate[0]
	_, wrong, _ := ed25519.GenerateKey(rand.Reader)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	with := func(cfg *tls.Config, change func(*tls.Config)) *tls.Config {
		change(cfg)
		return cfg
	}
	handshakes := map[string]*tls.Config{
		"another key":               keyTLS(wrong, wrong.Public()),
		"an ECDSA key":              keyTLS(ec, ec.Public()),
		"an RSA key":                keyTLS(rs, rs.Public()),
		"no certificate":            with(linkTLS(), func(c *tls.Config) { c.Certificates = nil }),
		"the certificate, no key":   {InsecureSkipVerify: true, NextProtos: []string{linkProtocol}, Certificates: []tls.Certificate{{Certificate: [][]byte{rightCert}, PrivateKey: right}}},
		"two certificates":          with(linkTLS(), func(c *tls.Config) { c.Certificates[0].Certificate = [][]byte{rightCert, rightCert} }),
		"another and the right one": with(keyTLS(wrong, wrong.Public()), func(c *tls.Config) { c.Certificates[0].Certificate = append(c.Certificates[0].Certificate, rightCert) }),
		"TLS 1.2":                   with(linkTLS(), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }),
		"no protocol inside":        with(linkTLS(), func(c *tls.Config) { c.NextProtos = nil }),
		"another protocol inside":   with(linkTLS(), func(c *tls.Config) { c.NextProtos = []string{"h2"} }),
		"a relay's protocol":        with(linkTLS(), func(c *tls.Config) { c.NextProtos = []string{"push-relay/1"} }),
	}
	hello := clientHello(linkTLS())
	streams := map[string]string{
		"nothing":                    "",
		"a link's byte":              "\xc7",
		"a relay's byte":             "\xc8",
		"both":                       "\xc7\xc8\xc7\xc8\xc7\xc8\xc7\xc8",
		"half a HELLO of TLS":        "\xc7" + hello[:len(hello)/2],
		"a HELLO of TLS and no more": "\xc7" + hello,
		"two HELLOs of TLS":          "\xc7" + hello + hello,
		"… for a relay":              "\xc8" + hello,
		"a long record":              "\xc7\x16\x03\x03\xff\xff" + strings.Repeat("x", 70_000),
		"a HELLO without TLS":        "\xc7\x00\x00\x00\x10\x01" + strings.Repeat("\x01", 15),
		"4 GiB without TLS":          "\xc7\xff\xff\xff\xff\x01",
		"HTTP":                       "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"HTTP behind a relay's byte": "\xc8GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: node\r\nPush-Remote: 1.2.3.4:5\r\n\r\n",
		"HTTP/2":                     "\xc8PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"half a label":               "\xf4\x04pu",
		"an empty label":             "\xf4\x00",
		"another label":              "\xf4\x05other\x00",
		"two labels":                 "\xf4\x04push\xf4\x04push\x00",
		"no label":                   "\x00\x80",
		"a plain ping":               "\xf4\x04push\x00" + string(packedList(1, "a")),
		"a plain push/pull":          "\xf4\x04push\x06\x83\xa5Nodes\xce\x7f\xff\xff\xff\xacUserStateLen\xce\x7f\xff\xff\xff\xa4Join\xc3",
		"a plain bomb":               "\xf4\x04push\x09\x82\xa4Algo\x00\xa3Buf\xc6\x7f\xff\xff\xff",
		"4 GiB of gossip":            "\xf4\x04push\x0a\xff\xff\xff\xff",
		"20 MiB of gossip, unsent":   "\xf4\x04push\x0a\x01\x3f\xff\xff",
		"gossip of another key":      "\xf4\x04push\x0a\x00\x00\x00\x40\x01" + strings.Repeat("k", 63),
		"gossip too short":           "\xf4\x04push\x0a\x00\x00\x00\x01\x01",
		"gossip of no version":       "\xf4\x04push\x0a\x00\x00\x00\x40\x09" + strings.Repeat("k", 63),
	}
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, nil)
		a, b := w.nodes[0], w.nodes[1]
		v := b.visits("push.json", "alice")
		w.spreads()
		before := a.Stats().Cluster
		stranger := w.net.Host("10.0.0.66")
		dial := func() net.Conn {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			conn, err := stranger.DialContext(ctx, "tcp", clusterIP(a.at)+":7946")
			if err != nil {
				t.Fatal(err)
			}
			return conn
		}
		// end wants the node to end it soon, without having said much.
		end := func(what string, conn net.Conn, begin time.Time, most int64) {
			conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			n, err := io.Copy(io.Discard, conn)
			if took := time.Since(begin); errors.Is(err, os.ErrDeadlineExceeded) || took > 10100*time.Millisecond || n > most {
				t.Errorf("%s: the node said %d bytes and ended it after %v, %v", what, n, took, err)
			}
			conn.Close()
		}
		for what, bytes := range streams {
			begin, conn := time.Now(), dial()
			if what != "nothing" {
				conn.Write([]byte(bytes))
			}
			end(what, conn, begin, 4<<10)
		}
		for what, cfg := range handshakes {
			for _, first := range []byte{linkByte, relayByte} {
				begin, raw := time.Now(), dial()
				raw.Write([]byte{first})
				conn := tls.Client(raw, cfg)
				if what == "a relay's protocol" && first == relayByte {
					raw.Close() // that is how it is done
					continue
				}
				if err := conn.Handshake(); err == nil { // the node's refusal comes after it
					o := a.origin()
					conn.Write(frame(frameHello, packedList(1, 1, "y", 1, o.ID, o.Epoch, nil)))
					conn.Write([]byte("GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: node\r\nPush-Remote: 1.2.3.4:5\r\n\r\n"))
					if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("%s: let in behind %x", what, first)
					}
				}
				end(what, raw, begin, 4<<10)
			}
		}
		packets := stranger.Transport(7946)
		defer packets.Shutdown()
		rnd := mrand.New(mrand.NewPCG(1, 1))
		for i := range 2000 {
			b := make([]byte, rnd.IntN(1400))
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			switch i % 4 {
			case 1:
				b = append([]byte("\xf4\x04push"), b...)
			case 2: // plain gossip: compound in compound
				b = append([]byte("\xf4\x04push\x07\xff"), b...)
			case 3: // a goodbye of b's, as it would be without a secret
				b = append([]byte("\xf4\x04push\x08"), packedList(1, "b", a.runOf("b").Epoch)...)
			}
			packets.WriteTo(b, clusterIP(a.at)+":7946")
			if i%100 == 99 {
				time.Sleep(20 * time.Millisecond)
			}
		}
		time.Sleep(time.Second)
		a.want("a", "b")
		b.want("a", "b")
		begin := time.Now()
		if r, err := a.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); err != nil || r.Acked != 1 || time.Since(begin) > 20*time.Millisecond {
			t.Errorf("%+v, %v after %v, want it Acked at once", r, err, time.Since(begin))
		}
		v.wants("e", "1")
		s := a.Stats().Cluster
		if s.LinksLost != before.LinksLost || s.DialFailures != before.DialFailures || s.Pending != 0 || s.StreamsRefused-before.StreamsRefused < uint64(2*len(handshakes)) {
			t.Errorf("counted %+v, before it was %+v", s, before)
		}
		if lines := a.log.at(slog.LevelInfo, ""); len(lines) > 100 {
			t.Errorf("%d lines in the log: %.2000q", len(lines), lines)
		}
	})
}

// clientHello is the first that a client of TLS sends.
func clientHello(cfg *tls.Config) string {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go tls.Client(near, cfg).Handshake()
	b := make([]byte, 64<<10)
	n, err := far.Read(b)
	if err != nil {
		panic(err)
	}
	return string(b[:n])
}

// TestStrangersInCrowdsKeepNobodyOut: three hundred connections of one address at
// each stage of proving something, again and again.
func TestStrangersInCrowdsKeepNobodyOut(t *testing.T) {
	hello := clientHello(linkTLS())
	for what, bytes := range map[string]string{"silent": "", "links": "\xc7", "relays": "\xc8", "TLS": "\xc7" + hello, "half of TLS": "\xc8" + hello[:9], "gossip": "\xf4\x04push\x0a\x00\x08\x00\x00\x01" + strings.Repeat("k", 1000), "half of gossip": "\xf4\x04pu"} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newClusterWorld(t, 2, nil)
				a, b := w.nodes[0], w.nodes[1]
				v := b.visits("push.json", "alice")
				w.spreads()
				stranger := w.net.Host("10.0.0.66")
				goroutines := runtime.NumGoroutine()
				ctx, stop := context.WithCancel(t.Context())
				var crowd sync.WaitGroup
				var tried atomic.Int64
				for range 300 {
					crowd.Go(func() {
						for ctx.Err() == nil {
							conn, err := stranger.DialContext(ctx, "tcp", clusterIP(a.at)+":7946")
							if err != nil {
								return
							}
							tried.Add(1)
							release := context.AfterFunc(ctx, func() { conn.Close() })
							conn.Write([]byte(bytes))
							io.Copy(io.Discard, conn)
							release()
							conn.Close()
							sleepFor(ctx, 300*time.Millisecond)
						}
					})
				}
				time.Sleep(time.Second)
				begin := time.Now()
				c := w.starts("c", 3)
				for c.Ready() != nil && time.Since(begin) < 10*time.Second {
					time.Sleep(time.Millisecond)
				}
				ready := time.Since(begin)
				u := c.visits("push.json", "bob")
				for !a.Online("bob") && time.Since(begin) < 10*time.Second {
					time.Sleep(time.Millisecond)
				}
				known := time.Since(begin)
				if ready > time.Second || known > 1100*time.Millisecond {
					t.Errorf("a node joined in %v, its user was known after %v", ready, known)
				}
				worst := time.Duration(0)
				for range 60 {
					begin := time.Now()
					for _, user := range []string{"alice", "bob"} {
						if r, err := a.PushToUser(t.Context(), user, push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); err != nil || r.Acked != 1 {
							t.Errorf("%s: %+v, %v", user, r, err)
						}
					}
					worst = max(worst, time.Since(begin)/2)
					time.Sleep(100 * time.Millisecond)
				}
				v.heard()
				u.heard()
				s := a.Stats().Cluster
				if worst > 15*time.Millisecond || s.Pending > 128 || s.LinksLost > 0 {
					t.Errorf("a push took up to %v, %+v", worst, s)
				}
				if more := runtime.NumGoroutine() - goroutines; more > 2*300+300 { // the strangers have two each
					t.Errorf("%d goroutines more", more)
				}
				if lines, most := a.log.at(slog.LevelInfo, ""), 30+10*time.Since(begin)/time.Second; len(lines) > int(most) {
					t.Errorf("%d lines in the log, want at most %d: %.2000q", len(lines), most, lines)
				}
				stop()
				crowd.Wait()
				time.Sleep(6 * time.Second)
				if s := a.Stats().Cluster; s.Pending != 0 {
					t.Errorf("%d streams are left", s.Pending)
				}
				t.Logf("%d streams came, ready after %v, pushes up to %v", tried.Load(), ready, worst)
			})
		})
	}
}

// TestStrangersStreamsCostLittle: what looks like memberlist's is memory before
// anybody knows that it has no key.
func TestStrangersStreamsCostLittle(t *testing.T) {
	a := startSocketNode(t, "a")
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	heap, goroutines := int64(mem.HeapAlloc), runtime.NumGoroutine()
	most, crowd := int64(0), 0
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", a.Nodes()[0].Addr)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	var all []net.Conn
	var senders sync.WaitGroup
	chunk := make([]byte, 1<<20)
	for range 30 {
		conn := dial()
		all = append(all, conn)
		senders.Go(func() {
			conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
			conn.Write([]byte("\xf4\x04push\x0a\x01\x3f\xff\xff")) // 20 MiB, of which 19 come
			for range 19 {
				if _, err := conn.Write(chunk); err != nil {
					return
				}
			}
		})
	}
	sent := make(chan struct{})
	go func() { senders.Wait(); close(sent) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for going := true; going; {
		select {
		case <-sent:
			going = false
		case <-tick.C:
		}
		runtime.ReadMemStats(&mem)
		most = max(most, int64(mem.HeapAlloc)-heap)
	}
	if most > 200<<20 {
		t.Errorf("30 streams without a key cost %d MiB", most>>20)
	}
	for range 1000 {
		conn := dial()
		conn.Write([]byte{0xf4})
		all = append(all, conn)
	}
	for begin := time.Now(); time.Since(begin) < time.Second; <-tick.C {
		crowd = max(crowd, runtime.NumGoroutine()-goroutines)
	}
	if crowd > 400 {
		t.Errorf("1000 streams of one byte have %d goroutines", crowd)
	}
	for _, conn := range all {
		conn.Close()
	}
}

// startSocketNode starts a node on a free port of the loopback interface.
func startSocketNode(t *testing.T, name string, seeds ...string) *clusterNode {
	t.Helper()
	n := &clusterNode{t: t, name: name, log: &logBook{}}
	var err error
	n.Engine, err = push.New(push.Config{
		Logger: slog.New(n.log), Authenticate: believe,
		Cluster: &push.Cluster{Node: name, Bind: "127.0.0.1:0", Seeds: seeds, Secrets: [][]byte{clusterSecret(1)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// saysAll is every kind of frame with many bodies: what is right, what is cut
// off, and what has been changed.
func saysAll(l *rogueLink, seed uint64, all [][]byte) {
	rnd := mrand.New(mrand.NewPCG(seed, 2))
	kinds := []byte{nodemsg.KindPush, nodemsg.KindResult, nodemsg.KindCancel, nodemsg.KindCall, nodemsg.KindReturn, 37, 64, 255}
	for range 40 {
		for _, kind := range kinds {
			body := slices.Clone(all[rnd.IntN(len(all))])
			switch rnd.IntN(4) {
			case 0:
				body = body[:rnd.IntN(len(body)+1)]
			case 1:
				body = append(body, all[rnd.IntN(len(all))]...)
			case 2:
				for range 1 + rnd.IntN(4) {
					if len(body) > 0 {
						body[rnd.IntN(len(body))] = byte(rnd.Uint32())
					}
				}
			}
			if l.says(kind, body) != nil {
				return
			}
		}
	}
}

// messages are bodies as nodes say them.
func messages() [][]byte {
	texts := slices.Repeat([]string{"alice"}, 100)
	all := [][]byte{nil, {0x90}, {0xc1}, {0xdd, 0xff, 0xff, 0xff, 0xff}, bytes.Repeat([]byte{0x91}, 100_000), nodemsg.AppendCancel(nil, 1)}
	for _, to := range []nodemsg.Audience{
		{Kind: nodemsg.User, User: "alice"}, {Kind: nodemsg.Users, Users: texts}, {Kind: nodemsg.Room, Room: "room"}, {Kind: nodemsg.All}, {Kind: nodemsg.Conn, Conn: 7},
		{Kind: nodemsg.User, User: strings.Repeat("u", 256), Namespace: "/" + strings.Repeat("n", 127), AnyTag: texts, OS: texts, MinVersion: "1.2", Percent: 50, Except: []uint64{1, 2}},
		{Kind: nodemsg.Room, Room: "a\x00b", Namespace: "\x00"}, {Kind: nodemsg.Users},
	} {
		for _, v := range []wire.Value{{}, {JSON: []byte(`{"a":[1,2,{"b":null}]}`)}, {Bytes: []byte("bytes")}, {Args: []wire.Value{{JSON: []byte("1")}, {Bytes: []byte("2")}}}} {
			for _, quiet := range []bool{false, true} {
				all = append(all, nodemsg.AppendPush(nil, &nodemsg.Push{ID: uint64(len(all)), Wait: 100, Ack: uint8(len(all) % 3), Quiet: quiet, To: to, Event: "e", Value: v}))
			}
		}
		for op := nodemsg.Join; op <= nodemsg.Devices; op++ { // not Kick, which may hit
			all = append(all, nodemsg.AppendCall(nil, &nodemsg.Call{ID: uint64(op), Op: op, To: to, Text: "room"}))
		}
	}
	for id := range uint64(4) {
		all = append(all,
			result(nodemsg.Result{ID: id, Done: true, Total: 1, Nobody: []uint32{0, 1, 5}}, nodemsg.Row{New: true, User: "alice", Device: "d", Settled: true, Status: 3, Reply: []byte("1")}),
			result(nodemsg.Result{ID: id}, nodemsg.Row{Index: 9, Settled: true, Status: 1}),
			nodemsg.AppendReturn(nil, &nodemsg.Return{ID: id, Done: true, N: 1 << 60, Errors: texts, Devices: []nodemsg.Device{{User: "alice", Tags: texts}}, Seq: 1 << 60}))
	}
	return all
}

// TestGarbageOfANodeHarmsNobodyElse: row 126 of limits.md. A node with the
// secret sends every kind of message garbled, over its own link and as answers,
// and is kept.
func TestGarbageOfANodeHarmsNobodyElse(t *testing.T) {
	for seed := range uint64(4) {
		inBubble(t, func(t *testing.T) {
			w := newClusterWorld(t, 2, many)
			a, b := w.nodes[0], w.nodes[1]
			v := b.visits("push.json", "honest")
			a.visits("push.json", "alice")
			a.visits("push.json", "alice").isMute()
			all := messages()
			var rnd atomic.Uint64
			x := w.rogueJoins("x", 9, func(l *rogueLink, kind byte, body []byte) {
				if kind >= nodemsg.KindPush {
					saysAll(l, rnd.Add(1), all)
				}
			})
			l := x.dials(a, x.self)
			l.holds(0, "alice", "garbled")
			w.spreads()
			var work sync.WaitGroup
			work.Go(func() { saysAll(l, seed+100, all) })
			for i := range 20 {
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				begin := time.Now()
				to := []push.Audience{{User: "garbled"}, {Users: []string{"garbled", "alice"}}, {All: true}}[i%3]
				a.Push(ctx, to, push.Message{Event: "e", Data: i, Ack: push.BizAck})
				if took := time.Since(begin); took > 210*time.Millisecond {
					t.Errorf("seed %d: a push to a garbling node took %v", seed, took)
				}
				a.Devices(ctx, push.Audience{User: "garbled"})
				cancel()
				begin = time.Now()
				r, err := a.PushToUser(t.Context(), "honest", push.Message{Event: "e", Data: i, Ack: push.AutoAck})
				if took := time.Since(begin); err != nil || r.Acked != 1 || took > 20*time.Millisecond {
					t.Errorf("seed %d: %+v, %v after %v, want it Acked at once", seed, r, err, took)
				}
			}
			work.Wait()
			time.Sleep(time.Second)
			v.heard()
			if s := a.Stats().Cluster; s.Malformed == 0 || s.LinksLost > 0 || l.ended() {
				t.Errorf("seed %d: %+v, its link is over: %v; want garbage counted and the node kept", seed, s, l.ended())
			}
			if lines := a.log.at(slog.LevelInfo, ""); len(lines) > 60 {
				t.Errorf("seed %d: %d lines in the log: %.2000q", seed, len(lines), lines)
			}
		})
	}
}

// TestALinkThatIsGarbledIsDroppedAndMadeAnew, and what its node told is kept or
// asked for anew.
func TestALinkThatIsGarbledIsDroppedAndMadeAnew(t *testing.T) {
	huge := binary.BigEndian.AppendUint32(nil, 1<<32-1)
	place := joins(0, 0, userKind, "alice")
	for what, raw := range map[string][]byte{
		"4 GiB":                         huge,
		"a byte over 16 MiB":            binary.BigEndian.AppendUint32(nil, 16<<20+1),
		"an empty frame":                make([]byte, 4),
		"a beat too short":              frame(frameBeat, make([]byte, 25)),
		"a beat with less than it says": frame(frameBeat, append(make([]byte, 24), 0xff, 0xff)),
		"an empty delta":                frame(frameDelta, nil),
		"a delta without ops":           frame(frameDelta, joins(0, 0, userKind)),
		"half a delta":                  frame(frameDelta, place[:len(place)-2]),
		"a delta of no kind":            frame(frameDelta, joins(0, 0, 0xf0, "alice")),
		"a long name":                   frame(frameDelta, joins(0, 0, userKind, strings.Repeat("x", 513))),
		"a name that is no UTF-8":       frame(frameDelta, joins(0, 0, userKind, "\xff\xfe")),
		"a delta beyond numbers":        frame(frameDelta, joins(1<<63, 0, userKind, "alice")),
		"an empty snapshot":             frame(frameSnap, nil),
		"a snapshot without id":         frame(frameSnap, make([]byte, 20)),
	} {
		inBubble(t, func(t *testing.T) {
			w := newClusterWorld(t, 1, nil)
			a := w.nodes[0]
			x := w.rogueJoins("x", 9, nil)
			l := x.dials(a, x.self)
			l.holds(0, "before")
			time.Sleep(time.Second)
			l.saysRaw(raw)
			select {
			case <-l.over:
			case <-time.After(11 * time.Second):
				t.Errorf("%s: the link goes on", what)
			}
			l = x.dials(a, x.self)
			l.says(frameDelta, joins(1, 0, userKind, "behind"))
			w.spreads()
			if !a.Online("before") || !a.Online("behind") || a.Online("alice") {
				t.Errorf("%s: before: %v, behind: %v, alice: %v", what, a.Online("before"), a.Online("behind"), a.Online("alice"))
			}
		})
	}
}

// TestWrongRowsSettleAPushOnce: whatever a node answers, each device has one row
// and the push an end.
func TestWrongRowsSettleAPushOnce(t *testing.T) {
	device := func(i uint32, settled bool) nodemsg.Row {
		row := nodemsg.Row{Index: i, New: true, User: "alice", Device: fmt.Sprint("d", i), Protocol: "mpush", Conn: uint64(i + 1)}
		if settled {
			row.Settled, row.Status = true, uint8(push.Acked)
		}
		return row
	}
	later := nodemsg.Row{Settled: true, Status: uint8(push.Acked)}
	far := later
	far.Index = 1<<32 - 1
	say := func(res nodemsg.Result, rows ...nodemsg.Row) func(uint64) []byte {
		return func(id uint64) []byte {
			res := res
			res.ID = id
			return result(res, rows...)
		}
	}
	type answers []func(id uint64) []byte
	for what, of := range map[string]struct {
		says answers
		want []push.Status
		soon bool // it has an end before the deadline
	}{
		"nothing":                {nil, []push.Status{push.NodeLost}, false},
		"never done":             {answers{say(nodemsg.Result{}, device(0, true))}, []push.Status{push.Acked, push.NodeLost}, false},
		"never settled":          {answers{say(nodemsg.Result{Done: true, Total: 1}, device(0, false))}, []push.Status{push.Timeout}, false},
		"total too small":        {answers{say(nodemsg.Result{Done: true}, device(0, true))}, []push.Status{push.Acked, push.NodeLost}, true},
		"total too large":        {answers{say(nodemsg.Result{Done: true, Total: 9}, device(0, true))}, []push.Status{push.Acked, push.NodeLost}, true},
		"an index left out":      {answers{say(nodemsg.Result{Done: true, Total: 1}, device(1, true))}, []push.Status{push.NodeLost}, true},
		"an index twice":         {answers{say(nodemsg.Result{Done: true, Total: 2}, device(0, true), device(0, true))}, []push.Status{push.Acked, push.NodeLost}, true},
		"settled twice":          {answers{say(nodemsg.Result{Done: true, Total: 2}, device(0, true), device(1, false)), say(nodemsg.Result{}, later)}, []push.Status{push.Acked, push.NodeLost}, true},
		"one that was not told":  {answers{say(nodemsg.Result{}, far)}, []push.Status{push.NodeLost}, true},
		"done twice":             {answers{say(nodemsg.Result{Done: true, Total: 1}, device(0, true)), say(nodemsg.Result{Done: true, Total: 1}, device(0, true))}, []push.Status{push.Acked}, true},
		"a device after the end": {answers{say(nodemsg.Result{Done: true, Total: 1}, device(0, false)), say(nodemsg.Result{Done: true, Total: 2}, device(1, true))}, []push.Status{push.NodeLost}, true},
		"nobody who was asked":   {answers{say(nodemsg.Result{Done: true, Nobody: []uint32{1, 2, 999_999}})}, []push.Status{push.NodeLost}, true},
		"nobody twice":           {answers{say(nodemsg.Result{Nobody: []uint32{0}}), say(nodemsg.Result{Done: true, Nobody: []uint32{0}})}, []push.Status{push.NodeLost}, true},
	} {
		inBubble(t, func(t *testing.T) {
			w := newClusterWorld(t, 1, nil)
			a := w.nodes[0]
			x := w.rogueJoins("x", 9, func(l *rogueLink, kind byte, body []byte) {
				p, err := nodemsg.ParsePush(body)
				if kind == nodemsg.KindPush && err == nil {
					for _, b := range of.says {
						l.says(nodemsg.KindResult, b(p.ID))
					}
				}
			})
			x.dials(a, x.self).holds(0, "alice")
			w.spreads()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			before := a.Stats().Deliveries
			begin := time.Now()
			r, err := a.PushToUser(ctx, "alice", push.Message{Event: "e", Data: 1, Ack: push.AutoAck})
			took := time.Since(begin)
			var got []push.Status
			for _, d := range r.Deliveries {
				got = append(got, d.Status)
			}
			if !slices.Equal(got, of.want) || took > time.Second || of.soon && took > 150*time.Millisecond {
				t.Errorf("%s: %v after %v, %v, want %v", what, got, took, err, of.want)
			}
			var counted uint64
			for status, n := range a.Stats().Deliveries {
				counted += n - before[status]
			}
			if counted != uint64(max(len(got), 0)) {
				t.Errorf("%s: %d deliveries counted, %d rows", what, counted, len(got))
			}
			if err := a.Ready(); err != nil {
				t.Errorf("%s: not ready any more: %v", what, err)
			}
		})
	}
}

// TestRowsWithoutEndEndAPush: a node announces devices for ever.
func TestRowsWithoutEndEndAPush(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 1, nil)
		a := w.nodes[0]
		x := w.rogueJoins("x", 9, func(l *rogueLink, kind byte, body []byte) {
			p, err := nodemsg.ParsePush(body)
			if kind == nodemsg.KindCall {
				call, _ := nodemsg.ParseCall(body)
				for range 6 {
					ret := nodemsg.Return{ID: call.ID, Devices: make([]nodemsg.Device, 50_000)}
					if l.says(nodemsg.KindReturn, nodemsg.AppendReturn(nil, &ret)) != nil {
						return
					}
				}
			}
			for i := uint32(0); kind == nodemsg.KindPush && err == nil && i < 500_000; {
				rows := make([]nodemsg.Row, 50_000)
				for j := range rows {
					rows[j] = nodemsg.Row{Index: i, New: true, User: "alice", Device: "d", Protocol: "mpush", Conn: uint64(i)}
					i++
				}
				if l.says(nodemsg.KindResult, result(nodemsg.Result{ID: p.ID}, rows...)) != nil {
					return
				}
			}
		})
		x.dials(a, x.self).holds(0, "alice")
		w.spreads()
		r, err := a.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: 1, Ack: push.AutoAck})
		if len(r.Deliveries) > 100_000 || err == nil {
			t.Errorf("%d rows, %v", len(r.Deliveries), err)
		}
		devices, err := a.Devices(t.Context(), push.Audience{User: "alice"})
		if len(devices) > 150_000 || err == nil {
			t.Errorf("%d devices, %v", len(devices), err)
		}
	})
}

// TestAnOldRunsHelloIsRefused: one that was recorded, or comes late.
func TestAnOldRunsHelloIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, nil)
		a, b := w.nodes[0], w.nodes[1]
		b.visits("push.json", "alice")
		w.spreads()
		x := w.rogueJoins("x", 9, nil)
		old, own := b.origin(), a.origin()
		old.Epoch--
		for _, of := range []struct {
			what string
			as   directory.Origin
			want uint64
		}{
			{"an older run of b", old, 4},
			{"the first run of b", directory.Origin{ID: "b"}, 4},
			{"a itself", own, 3},
			{"an id that is none", directory.Origin{ID: "b c", Epoch: 1}, 5},
			{"no id", directory.Origin{Epoch: 1}, 5},
			{"a long id", directory.Origin{ID: strings.Repeat("x", 65), Epoch: 1}, 5},
		} {
			l, status := x.triesToDial(a, of.as)
			if status != of.want {
				t.Errorf("%s: HELLO was answered with status %d, want %d", of.what, status, of.want)
			}
			l.conn.Close()
			if !a.Online("alice") {
				t.Errorf("%s: b's users are gone", of.what)
			}
		}
		// Who is no member is not asked, and what it holds is nobody's.
		l := x.dials(a, directory.Origin{ID: "y", Epoch: 1})
		l.holds(0, "bob")
		w.spreads()
		if a.Online("bob") {
			t.Error("a user of a node that is no member is online")
		}
		a.want("a", "b", "x")
	})
}

// tap records what a node sends by UDP.
type tap struct {
	*memnet.Transport
	mu      sync.Mutex
	off     bool         // guarded by mu: it records no more
	packets []sentPacket // guarded by mu
}

type sentPacket struct {
	to string
	b  []byte
}

func (p *tap) WriteTo(b []byte, addr string) (time.Time, error) {
	p.mu.Lock()
	if !p.off {
		p.packets = append(p.packets, sentPacket{addr, slices.Clone(b)})
	}
	p.mu.Unlock()
	return p.Transport.WriteTo(b, addr)
}

// TestRecordedGossipTakesNobodysUsersAway: row 118 of limits.md. All packets of
// a node's life and death are sent again while its next run is there.
func TestRecordedGossipTakesNobodysUsersAway(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var taps []*tap
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			p := &tap{Transport: cfg.Cluster.Transport.(*memnet.Transport)}
			cfg.Cluster.Transport = p
			taps = append(taps, p)
		})
		a, b, c := w.abc()
		time.Sleep(10 * time.Second)
		b.host.Kill()
		b.Close()
		a.wantWithin(10*time.Second, "a", "c")
		c.wantWithin(10*time.Second, "a", "c")
		time.Sleep(2 * time.Minute) // memberlist has forgotten it
		var recorded []sentPacket
		for _, p := range taps {
			p.mu.Lock()
			p.off = true
			recorded = append(recorded, p.packets...)
			p.mu.Unlock()
		}
		b = w.starts("b", 2)
		w.isWhole()
		v := b.visits("push.json", "alice")
		w.spreads()
		replayed := w.net.Host("10.0.0.66").Transport(7946)
		defer replayed.Shutdown()
		for range 3 {
			for i, p := range recorded {
				replayed.WriteTo(p.b, p.to)
				if i%50 != 0 {
					continue
				}
				time.Sleep(20 * time.Millisecond)
				if !a.Online("alice") || !c.Online("alice") {
					t.Fatalf("a knows her: %v, c: %v", a.Online("alice"), c.Online("alice"))
				}
			}
		}
		for _, n := range []*nodeWorld{a, c} {
			begin := time.Now()
			if r, err := n.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); err != nil || r.Acked != 1 || time.Since(begin) > 20*time.Millisecond {
				t.Errorf("%s: %+v, %v after %v", n.name, r, err, time.Since(begin))
			}
			begin = time.Now()
			if r, err := n.Push(t.Context(), push.Audience{All: true}, push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); err != nil || r.Acked != 1 || len(r.Deliveries) != 1 {
				t.Errorf("%s, to all: %+v, %v after %v", n.name, r, err, time.Since(begin))
			}
			n.want("a", "b", "c")
		}
		v.heard()
		t.Logf("%d packets", len(recorded))
	})
}

// TestWhatNodesTellMayBeAsLongAsItMay: names, greetings and what comes with a
// beat at their limits.
func TestWhatNodesTellMayBeAsLongAsItMay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, nil)
		a, b := w.nodes[0], w.nodes[1]
		x := w.rogueJoins("x", 9, nil)
		l := x.dials(a, x.self)
		for _, n := range []int{0, 1, 10, 1024, 60_000} {
			l.beats(0, 0, 0, bytes.Repeat([]byte{0xff}, n)...)
		}
		l.holds(0, strings.Repeat("u", 512), "", "a\x00b", "ü")
		time.Sleep(time.Second)
		if l.ended() || !a.Online("ü") || !a.Online(strings.Repeat("u", 512)) {
			t.Error("what is long is not taken")
		}
		user, room, event := strings.Repeat("ü", 128), strings.Repeat("r", 256), strings.Repeat("e", 256)
		v := b.visits("push.json", user, "token="+room)
		w.spreads()
		for _, to := range []push.Audience{{User: user}, {Users: []string{user, "x"}}, {Room: room}} {
			if r, err := a.Push(t.Context(), to, push.Message{Event: event, Data: 1, Ack: push.AutoAck}); err != nil || r.Acked != 1 {
				t.Errorf("%+v, %v", r, err)
			}
			v.wants(event, "1")
		}
		// What cannot be a name is nobody, and the links live.
		for _, to := range []push.Audience{
			{User: user + "x"}, {User: "\xff"}, {User: "a\x00b"}, {Room: "\xff"}, {Room: strings.Repeat("r", 100_000)},
			{User: user, Namespace: "/" + strings.Repeat("n", 200)}, {User: user, Namespace: "\xff"}, {Users: []string{"\xff", user + "x"}},
			{User: user, AnyTag: []string{"\xff"}}, {User: user, OS: []string{strings.Repeat("o", 1000)}}, {All: true, MinVersion: strings.Repeat("1", 1000)}, {All: true, NoTag: slices.Repeat([]string{"t"}, 20_000)},
		} {
			r, err := a.Push(t.Context(), to, push.Message{Event: "e", Data: 1, Ack: push.AutoAck})
			if r.Acked > 0 || err == nil {
				t.Errorf("a push to %.100v: %+v, %v", to, r, err)
			}
			a.Kick(t.Context(), to, "\xff\x00"+strings.Repeat("k", 5000))
			a.Devices(t.Context(), to)
			a.Join(t.Context(), to, strings.Repeat("j", 257))
			a.Leave(t.Context(), to, "\xff")
		}
		if s := a.Stats().Cluster; s.LinksLost > 0 || s.Malformed > 0 || b.Stats().Cluster.Malformed > 0 || !a.Online(user) {
			t.Errorf("a: %+v, b: %+v", s, b.Stats().Cluster)
		}
	})
}

// TestChurnOfOneNodeHoldsUpNobody: ten thousand users come and go on b each
// second of which a hears, while the link between b and c stands still.
func TestChurnOfOneNodeHoldsUpNobody(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, nil)
		a, b, c := w.abc()
		v, u := a.visits("push.json", "alice"), b.visits("push.json", "bob")
		w.spreads()
		w.net.CutOneWay(clusterIP(b.at), clusterIP(c.at))
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		conn := u.conn()
		worst := time.Duration(0)
		for i := range 800 {
			for j := range 100 {
				room := fmt.Sprintf("room of some length %d %d", i%2, j)
				conn.Join(room)
				conn.Leave(room)
			}
			time.Sleep(10 * time.Millisecond)
			if i%20 == 0 {
				begin := time.Now()
				for _, of := range []struct {
					n    *nodeWorld
					user string
				}{{b, "alice"}, {a, "bob"}, {c, "alice"}} {
					if r, err := of.n.PushToUser(t.Context(), of.user, push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); err != nil || r.Acked != 1 {
						t.Errorf("%s: %+v, %v", of.user, r, err)
					}
				}
				worst = max(worst, time.Since(begin)/3)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 40<<20 || worst > 20*time.Millisecond {
			t.Errorf("%d MiB more on the heap, pushes took up to %v", grown>>20, worst)
		}
		w.net.MendAll()
		conn.Join("last")
		for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			if r, err := c.PushToRoom(t.Context(), "last", push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); err == nil && r.Acked == 1 {
				break
			}
			if time.Since(begin) > 20*time.Second {
				t.Fatal("c does not hear what b did last")
			}
		}
		v.heard()
		u.heard()
	})
}

// dialCount counts what a node dials.
type dialCount struct {
	*memnet.Transport
	n atomic.Int64
}

func (d *dialCount) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	d.n.Add(1)
	return d.Transport.DialTimeout(addr, timeout)
}

// TestClientsCannotMisuseTheRelay: what a client of Socket.IO sends for a session
// on another node goes there only if it could be that session's, and nothing
// that nodes say to each other can be said by a client.
func TestClientsCannotMisuseTheRelay(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		dials := make(map[string]*dialCount)
		var mu sync.Mutex
		var addrs []string
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			d := &dialCount{Transport: cfg.Cluster.Transport.(*memnet.Transport)}
			cfg.Cluster.Transport, dials[cfg.Cluster.Node] = d, d
			cfg.Authenticate = func(ctx context.Context, l *push.Login) (string, error) {
				mu.Lock()
				addrs = append(addrs, fmt.Sprint(l.Remote))
				mu.Unlock()
				return believe(ctx, l)
			}
		})
		a, b, c := w.abc()
		client := func(n *nodeWorld) *http.Client {
			tr := &http.Transport{DialContext: n.dial}
			t.Cleanup(tr.CloseIdleConnections)
			return &http.Client{Transport: tr}
		}
		fromA, fromB, fromC := client(a), client(b), client(c)
		do := func(of *http.Client, method, query string, body io.Reader) (status int, text string) {
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, method, "http://push.test/socket.io/?EIO=4&transport=polling&"+query, body)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"Push-Remote", "X-Forwarded-For", "X-Real-Ip", "Forwarded"} {
				r.Header.Set(name, "6.6.6.6:6")
			}
			resp, err := of.Do(r)
			if err != nil {
				return 0, err.Error()
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil {
				return 0, err.Error()
			}
			return resp.StatusCode, string(got)
		}
		opens := func(of *http.Client) (sid string) {
			status, text := do(of, "GET", "", nil)
			var hello struct{ SID string }
			if status != 200 || json.Unmarshal([]byte(strings.TrimPrefix(text, "0")), &hello) != nil || hello.SID == "" {
				t.Fatalf("%d %q", status, text)
			}
			return hello.SID
		}
		sid, of := opens(fromB), "sid="
		of += sid

		const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		before := dials["a"].n.Load()
		for i := range sid {
			at := strings.IndexByte(letters, sid[i])
			forged := sid[:i] + letters[at^8:][:1] + sid[i+1:]
			if status, text := do(fromA, "GET", "sid="+forged, nil); status != 400 || !strings.Contains(text, `"code":1`) {
				t.Errorf("a sid with another letter %d is answered %d %s", i, status, text)
			}
		}
		for what, query := range map[string]string{
			"short": of[:len(of)-1], "long": of + "A", "none": "sid=%00", "twice": of[:10] + "&" + of[:12], "huge": of + "&x=" + strings.Repeat("x", 9<<10), "MBs": of + "&x=" + strings.Repeat("x", 500<<10),
		} {
			if status, text := do(fromA, "GET", query, nil); status != 400 {
				t.Errorf("%s: %d %s", what, status, text)
			}
		}
		for _, method := range []string{"RELEASE", "PUT", "DELETE", "HEAD", "PRI", "TRACE"} {
			if status, text := do(fromA, method, of, nil); status != 400 {
				t.Errorf("%s: %d %s", method, status, text)
			}
		}
		if n := dials["a"].n.Load(); n != before {
			t.Errorf("%d dials for requests that are nobody's", n-before)
		}

		if status, text := do(fromA, "POST", of, strings.NewReader("40{\"user\":\"alice\"}")); status != 200 {
			t.Errorf("POST: %d %s", status, text)
		}
		if status, text := do(fromA, "GET", of, nil); status != 200 || !strings.HasPrefix(text, "40") {
			t.Errorf("GET: %d %s", status, text)
		}
		if dials["a"].n.Load() == before || !b.Online("alice") {
			t.Error("the session's own requests were not relayed")
		}
		mu.Lock()
		if len(addrs) != 1 || !strings.HasPrefix(addrs[0], "10.0.1.2:") {
			t.Errorf("the logins came from %q, want b's client", addrs)
		}
		mu.Unlock()
		for what, of := range map[string]struct {
			body io.Reader
			want int
		}{
			"too long":                {strings.NewReader(strings.Repeat("x", 1_000_001)), 413},
			"too long, length untold": {io.MultiReader(strings.NewReader(strings.Repeat("x", 1_000_001))), 413},
			"endless":                 {endless{}, 413},
		} {
			again := opens(fromB)
			if status, text := do(fromA, "POST", "sid="+again, of.body); status != of.want && !(status == 0 && strings.Contains(text, "reset")) {
				t.Errorf("a POST that is %s: %d %s, want %d", what, status, text, of.want)
			}
		}
		again := opens(fromC)
		c.host.Kill()
		begin := time.Now()
		status, text := do(fromA, "GET", "sid="+again, nil)
		if took := time.Since(begin); status != 503 && status != 400 || took > time.Second {
			t.Errorf("a request for a node that is dead: %d %s after %v", status, text, took)
		}
		if s := a.Stats().Cluster; s.Relayed != 0 || s.RelaysBusy != 0 {
			t.Errorf("%+v", s)
		}
		c.Close()
	})
}

// endless is a body without end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// sealed is what memberlist takes for encrypted with the cluster's secret.
func sealed(version byte, plain, about []byte) []byte {
	block, err := aes.NewCipher(secret.Derive(clusterSecret(1), "gossip", "push"))
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	rand.Read(nonce)
	return gcm.Seal(append([]byte{version}, nonce...), nonce, plain, about)
}

// TestGarbledGossipWithTheKeyEndsNoProcess: row 115 of limits.md, from whoever
// has the secret.
func TestGarbledGossipWithTheKeyEndsNoProcess(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, nil)
		a, b := w.nodes[0], w.nodes[1]
		v := b.visits("push.json", "alice")
		w.spreads()
		const label = "push"
		head := "\xf4" + string(rune(len(label))) + label
		host := w.net.Host("10.0.0.66")
		packets := host.Transport(7946)
		defer packets.Shutdown()
		say := func(version byte, plain []byte) {
			packets.WriteTo(append([]byte(head), sealed(version, plain, []byte(label))...), clusterIP(a.at)+":7946")
		}
		stream := func(version byte, plain []byte) {
			conn, err := host.DialContext(t.Context(), "tcp", clusterIP(a.at)+":7946")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			n := binary.BigEndian.AppendUint32([]byte{10}, uint32(1+12+len(plain)+16))
			conn.Write(append(append([]byte(head), n...), sealed(version, plain, append(n, label...))...))
			conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a stream of %.20q goes on", plain)
			}
		}
		nested, deep := []byte{0}, []byte{0}
		for range 300 {
			nested = append([]byte{7, 1, byte(len(nested) >> 8), byte(len(nested))}, nested...)
			deep = append([]byte{9, 0x82, 0xa4, 'A', 'l', 'g', 'o', 0, 0xa3, 'B', 'u', 'f', 0xc5, byte(len(deep) >> 8), byte(len(deep))}, deep...)
		}
		for _, version := range []byte{0, 1, 2} {
			for _, plain := range [][]byte{nil, {0}, bytes.Repeat([]byte{255}, 16), make([]byte, 16), nested, deep} {
				say(version, plain)
				stream(version, plain)
			}
		}
		for kind := range 256 {
			for _, fill := range []byte{0, 0x80, 0xdd, 0xff} {
				for _, n := range []int{0, 1, 5, 300} {
					say(1, append([]byte{byte(kind)}, bytes.Repeat([]byte{fill}, n)...))
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
		for _, plain := range []string{
			"\x06\x83\xa5Nodes\xce\x7f\xff\xff\xff\xacUserStateLen\x00\xa4Join\xc3", "\x06\x83\xa5Nodes\xff\xacUserStateLen\xff\xa4Join\xc3", "\x06\x83\xa5Nodes\x00\xacUserStateLen\xce\x7f\xff\xff\xff\xa4Join\xc3",
			"\x09\x82\xa4Algo\x00\xa3Buf\xc6\x7f\xff\xff\xff", "\x08\x81\xaaUserMsgLen\xce\x7f\xff\xff\xff",
		} {
			stream(1, []byte(plain))
		}
		time.Sleep(time.Second)
		a.want("a", "b")
		if r, err := a.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: 1, Ack: push.AutoAck}); err != nil || r.Acked != 1 {
			t.Errorf("%+v, %v, want it Acked", r, err)
		}
		v.wants("e", "1")
		if lines := a.log.at(slog.LevelWarn, "gossip"); len(lines) == 0 || len(lines) > 60 {
			t.Errorf("%d lines in the log: %.2000q", len(lines), lines)
		}
	})
}

// TestAReplyThatNoLinkCarriesIsLeftOut, and neither the device nor those that
// are told of behind it are lost.
func TestAReplyThatNoLinkCarriesIsLeftOut(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, func(cfg *push.Config) {
			many(cfg)
			cfg.Limits.MaxMessage = -1
		})
		a, b := w.nodes[0], w.nodes[1]
		for i, size := range []int{8 << 20, 17 << 20} {
			user := fmt.Sprint("user", i)
			b.visits("push.json", user).replies(strings.Repeat("x", size))
			for range 5 {
				b.visits("push.json", user).replies("small")
			}
			w.spreads()
			r, err := a.PushToUser(t.Context(), user, push.Message{Event: "e", Data: 1, Ack: push.BizAck})
			if err != nil || r.Acked != 6 {
				for i := range r.Deliveries {
					r.Deliveries[i].Reply = nil
				}
				t.Errorf("a reply of %d MiB: %+v, %v, want 6 Acked", size>>20, r, err)
			}
		}
	})
}

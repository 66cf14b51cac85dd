package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/mpush"
)

// TestMain runs the tests and fails the run if goroutines are left.
func TestMain(m *testing.M) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		os.Unsetenv(name) // the networks of these tests have none
	}
	code := m.Run()
	if code == 0 {
		if left := leftGoroutines(10 * time.Second); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left:\n\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

func leftGoroutines(patience time.Duration) string {
	buf := make([]byte, 1<<20)
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		var left []string
		for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")[1:] {
			if !strings.Contains(stack, "testing.(*") && !strings.Contains(stack, "os/signal.") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			return strings.Join(left, "\n\n")
		}
	}
}

var quiet = slog.New(slog.DiscardHandler)

const (
	serverIP = "10.0.0.1"
	clientIP = "10.0.0.2"
)

// door is a way to an Engine.
type door struct {
	name  string
	keyed bool
	addr  string
	tls   bool
}

var doors = []door{
	{name: "tcp", keyed: true, addr: serverIP + ":3000"},
	{name: "tls", addr: serverIP + ":3001", tls: true},
	{name: "ws", keyed: true, addr: "ws://" + serverIP + ":8080/ws"},
	{name: "wss", addr: "wss://" + serverIP + ":8443/ws", tls: true},
}

// overDoors runs a test once for each door, in virtual time, in which an
// engine serves them all.
func overDoors(t *testing.T, f func(t *testing.T, w *world, d door)) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, push.Config{}), d) })
		})
	}
}

// world is an engine on a network in memory.
type world struct {
	*push.Engine
	t   *testing.T
	net *memnet.Network
}

func newWorld(t *testing.T, cfg push.Config) *world {
	t.Helper()
	w := &world{t: t, net: memnet.New(1)}
	w.serve(cfg)
	return w
}

// serve starts an engine on all doors; the test's end closes it.
func (w *world) serve(cfg push.Config) {
	w.t.Helper()
	if cfg.Authenticate == nil {
		cfg.Authenticate = func(ctx context.Context, l *push.Login) (string, error) { return l.UserID, nil }
	}
	if cfg.MPush.PrivateKey == nil {
		cfg.MPush.PrivateKey = []byte(mpush.StockPrivateKey)
	}
	if cfg.MPush.MinHeartbeat == 0 {
		cfg.MPush.MinHeartbeat = 10 * time.Second
	}
	cfg.Logger = quiet
	e, err := push.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Engine = e
	var serving sync.WaitGroup
	server := &http.Server{Handler: e, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	for port, serve := range map[int]func(net.Listener){
		3000: func(l net.Listener) { e.Serve(l) },
		3001: func(l net.Listener) { e.Serve(tls.NewListener(l, serverTLS())) },
		8080: func(l net.Listener) { server.Serve(l) },
		8443: func(l net.Listener) { server.Serve(tls.NewListener(l, serverTLS())) },
	} {
		l, err := w.net.Host(serverIP).Listen(port)
		if err != nil {
			w.t.Fatal(err)
		}
		serving.Go(func() { serve(l) })
	}
	w.t.Cleanup(func() {
		e.Close()
		server.Close()
		serving.Wait()
	})
}

// config is a client's of one door.
func (w *world) config(d door) Config {
	cfg := Config{
		Addrs: []string{d.addr}, Dial: w.net.Host(clientIP).DialContext,
		DeviceID: "d1", OSName: "android", OSVersion: "14", ClientVersion: "1.0", Logger: quiet,
	}
	if d.keyed {
		cfg.PublicKey = []byte(mpush.StockPublicKey)
	}
	if d.tls {
		roots := x509.NewCertPool()
		roots.AddCert(certificate().Leaf)
		cfg.TLS = &tls.Config{RootCAs: roots, ServerName: "push.test"}
	}
	return cfg
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "push.test"}, DNSNames: []string{"push.test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), // virtual time begins in 2000
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

func serverTLS() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{certificate()}} }

// subject is a client with what its hooks told.
type subject struct {
	*Client
	t *testing.T

	mu      sync.Mutex
	told    []string // guarded by mu: not looked at yet
	all     []string // guarded by mu
	reasons []error  // guarded by mu: of OnDisconnected
}

// starts makes a client with hooks that note what they are told, in front of
// the test's own, and starts it. The test's end stops it.
func starts(t *testing.T, cfg Config) *subject {
	t.Helper()
	s := &subject{t: t}
	own := cfg
	cfg.OnConnected = func(c *Client) {
		s.note("connected")
		if own.OnConnected != nil {
			own.OnConnected(c)
		}
	}
	cfg.OnDisconnected = func(c *Client, reason error) {
		s.mu.Lock()
		s.reasons = append(s.reasons, reason)
		s.mu.Unlock()
		s.note("disconnected")
		if own.OnDisconnected != nil {
			own.OnDisconnected(c, reason)
		}
	}
	cfg.OnHandshakeOk = func(c *Client, heartbeat time.Duration) {
		s.note("handshake " + heartbeat.String())
		if own.OnHandshakeOk != nil {
			own.OnHandshakeOk(c, heartbeat)
		}
	}
	cfg.OnReceivePush = func(c *Client, content []byte, id int32) {
		if content == nil {
			t.Error("OnReceivePush got nil content")
		}
		if id != 0 {
			s.note(fmt.Sprintf("push %.60q to ack", content))
		} else {
			s.note(fmt.Sprintf("push %.60q", content))
		}
		if own.OnReceivePush != nil {
			own.OnReceivePush(c, content, id)
		}
	}
	cfg.OnKickUser = func(c *Client, device, user string) {
		s.note("kick " + device + " " + user)
		if own.OnKickUser != nil {
			own.OnKickUser(c, device, user)
		}
	}
	cfg.OnBind = func(c *Client, ok bool, user string) {
		s.note(fmt.Sprintf("bind %v %s", ok, user))
		if own.OnBind != nil {
			own.OnBind(c, ok, user)
		}
	}
	cfg.OnUnbind = func(c *Client, ok bool, user string) {
		s.note(fmt.Sprintf("unbind %v %s", ok, user))
		if own.OnUnbind != nil {
			own.OnUnbind(c, ok, user)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Client = c
	c.Start()
	t.Cleanup(func() {
		c.Stop()
		c.Wait()
	})
	return s
}

func (s *subject) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, text)
	s.all = append(s.all, text)
}

// wants waits until the hooks have told this, in this order and nothing else.
func (s *subject) wants(told ...string) {
	s.t.Helper()
	for i, want := range told {
		deadline := time.Now().Add(5 * time.Minute)
		for {
			s.mu.Lock()
			got := ""
			if len(s.told) > 0 {
				got = s.told[0]
				s.told = s.told[1:]
			}
			s.mu.Unlock()
			if got == want {
				break
			}
			if got != "" || time.Now().After(deadline) {
				s.t.Fatalf("hook %d told %q, want %q; last: %q, reasons: %v", i, got, want, s.all[max(0, len(s.all)-10):], s.reasons)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// wantsNothing lets time pass in which no hook may tell anything.
func (s *subject) wantsNothing(d time.Duration) {
	s.t.Helper()
	time.Sleep(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.told) > 0 {
		s.t.Fatalf("hooks told %q, want nothing; last: %q, reasons: %v", s.told, s.all[max(0, len(s.all)-10):], s.reasons)
	}
}

func (s *subject) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reasons) == 0 {
		return nil
	}
	return s.reasons[len(s.reasons)-1]
}

// fake is a server whose answers the test writes.
type fake struct {
	t   *testing.T
	net *memnet.Network
	l   *memnet.Listener
}

const fakeAddr = serverIP + ":3000"

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{t: t, net: memnet.New(1)}
	l, err := f.net.Host(serverIP).Listen(3000)
	if err != nil {
		t.Fatal(err)
	}
	f.l = l
	t.Cleanup(func() { l.Close() })
	return f
}

func (f *fake) config() Config {
	return Config{
		Addrs: []string{fakeAddr}, Dial: f.net.Host(clientIP).DialContext, PublicKey: []byte(mpush.StockPublicKey),
		DeviceID: "d1", OSName: "android", OSVersion: "14", ClientVersion: "1.0", UserID: "alice", Logger: quiet,
	}
}

// peer is one connection at the fake's end.
type peer struct {
	net.Conn
	t      *testing.T
	r      mpush.Reader
	rest   []byte
	key    []byte // the client's
	iv     []byte
	cipher *mpush.Cipher
}

func (f *fake) accepts() *peer {
	f.t.Helper()
	nc, err := f.l.Accept()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { nc.Close() })
	return &peer{Conn: nc, t: f.t, r: mpush.Reader{Max: 4 << 20}}
}

// gets is the client's next packet; heartbeats are answered and skipped.
func (p *peer) gets(cmd mpush.Cmd) mpush.Packet {
	p.t.Helper()
	got, err := p.next(true)
	if err != nil {
		p.t.Fatalf("waiting for cmd %d: %v", cmd, err)
	}
	if got.Cmd != cmd {
		p.t.Fatalf("cmd %d, want %d", got.Cmd, cmd)
	}
	return got
}

func (p *peer) next(beats bool) (mpush.Packet, error) {
	buf := make([]byte, 4096)
	for {
		for len(p.rest) > 0 {
			var got mpush.Packet
			n, err := p.r.Next(p.rest, &got)
			p.rest = p.rest[n:]
			if err != nil {
				return got, err
			}
			if got.OK && !got.Beat {
				got.Body = bytes.Clone(got.Body)
				return got, nil
			}
			if got.OK && beats {
				p.Write([]byte{mpush.Beat})
			}
		}
		n, err := p.Read(buf)
		if n == 0 && err != nil {
			return mpush.Packet{}, err
		}
		p.rest = bytes.Clone(buf[:n])
	}
}

// ends waits until the client has closed.
func (p *peer) ends() {
	p.t.Helper()
	p.SetReadDeadline(time.Now().Add(5 * time.Minute))
	if _, err := io.Copy(io.Discard, p.Conn); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
		p.t.Fatalf("the client did not close: %v", err)
	}
	p.Close()
}

// takesHandshake reads a HANDSHAKE, which handshakeOK answers.
func (p *peer) takesHandshake() mpush.Packet {
	p.t.Helper()
	got := p.gets(mpush.CmdHandshake)
	body := got.Body
	if got.Flags&mpush.FlagCrypto != 0 {
		body = stockKey().Decrypt(body)
	}
	var h mpush.Handshake
	if err := h.Decode(body); err != nil {
		p.t.Fatal(err)
	}
	p.key, p.iv = h.ClientKey, h.IV
	return got
}

func (p *peer) handshakeOK(id int32, serverKey []byte) []byte {
	first, _ := mpush.NewCipher(p.key, p.iv)
	ok := mpush.HandshakeOK{ServerKey: serverKey, Heartbeat: 30000, SessionID: "tok", ExpireTime: time.Now().Add(time.Hour).UnixMilli()}
	if len(serverKey) == 16 {
		key := mpush.MixKey(p.key, serverKey)
		p.cipher, _ = mpush.NewCipher(key[:], p.iv)
	}
	return mpush.AppendPacket(nil, mpush.CmdHandshake, mpush.FlagCrypto, id, first.Append(nil, ok.Append(nil)))
}

// shakes answers a handshake with this.
func (p *peer) shakes(ok mpush.HandshakeOK) {
	p.t.Helper()
	ask := p.takesHandshake()
	first, _ := mpush.NewCipher(p.key, p.iv)
	p.Write(mpush.AppendPacket(nil, mpush.CmdHandshake, mpush.FlagCrypto, ask.ID, first.Append(nil, ok.Append(nil))))
}

// opens answers a handshake and the BIND behind it.
func (p *peer) opens() {
	p.t.Helper()
	p.Write(p.handshakeOK(p.takesHandshake().ID, []byte("0123456789abcdef")))
	p.ok(mpush.CmdBind, p.gets(mpush.CmdBind).ID)
}

func (p *peer) ok(cmd mpush.Cmd, id int32) {
	p.Write(mpush.AppendPacket(nil, mpush.CmdOK, 0, id, (&mpush.OK{Cmd: cmd}).Append(nil)))
}

func (p *peer) error(cmd mpush.Cmd, id int32, code int8, reason string) {
	p.Write(mpush.AppendPacket(nil, mpush.CmdError, 0, id, (&mpush.Error{Cmd: cmd, Code: code, Reason: reason}).Append(nil)))
}

func (p *peer) sealed(cmd mpush.Cmd, flags mpush.Flags, id int32, body []byte) []byte {
	return mpush.AppendPacket(nil, cmd, flags|mpush.FlagCrypto, id, p.cipher.Append(nil, body))
}

var stockKey = sync.OnceValue(func() *mpush.PrivateKey {
	k, err := mpush.ParsePrivateKey([]byte(mpush.StockPrivateKey))
	if err != nil {
		panic(err)
	}
	return k
})

func bg(t *testing.T) context.Context {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(stop)
	return ctx
}

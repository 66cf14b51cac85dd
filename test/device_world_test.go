package test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/mpush"
)

// door is a way for an mpush device to come in.
type door struct {
	name  string
	keyed bool // the handshake and all bodies are encrypted
	tls   bool
	ws    bool // packets come in binary messages of a WebSocket
	json  bool // packets are JSON, in its text messages
	sniff bool // the WebSocket names no subprotocol
}

var (
	doorTCP   = door{name: "tcp", keyed: true}
	doorPlain = door{name: "tcp plain"}
	doorJSON  = door{name: "ws json", ws: true, json: true}
	doors     = []door{
		doorTCP, doorPlain,
		{name: "tls plain", tls: true},
		{name: "ws binary", ws: true, keyed: true},
		{name: "ws binary plain", ws: true},
		doorJSON,
		{name: "ws json sniffed", ws: true, json: true, sniff: true},
	}
)

// overDoors runs a test once for each door, in virtual time.
func overDoors(t *testing.T, f func(t *testing.T, door door)) {
	for _, door := range doors {
		t.Run(door.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, door) })
		})
	}
}

// overPackets is overDoors without those of JSON.
func overPackets(t *testing.T, f func(t *testing.T, door door)) {
	for _, door := range doors {
		if door.json {
			continue
		}
		t.Run(door.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, door) })
		})
	}
}

// deviceWorld is a world whose engine serves devices, too: over one listener
// as they come, and over one with TLS.
type deviceWorld struct {
	*world
	door  door // of the devices that come from now on
	dials [2]func(context.Context) (net.Conn, error)

	serving sync.WaitGroup
	devices []*device // guarded by world.mu
}

// worldWithDevices starts a world in memory whose devices come through the
// first door. The test's end closes it.
func worldWithDevices(t testing.TB, cfg push.Config) *deviceWorld {
	t.Helper()
	return doorTCP.world(t, cfg)
}

// world starts a world in memory for the devices of a door.
func (d door) world(t testing.TB, cfg push.Config) *deviceWorld {
	t.Helper()
	return d.worldOn(t, cfg, memnet.New(1), serverIP, clientIP)
}

// worldOn is world on a network that there is: the engine is on one address,
// and its pages and devices on the other.
func (d door) worldOn(t testing.TB, cfg push.Config, nw *memnet.Network, server, client string) *deviceWorld {
	t.Helper()
	w := &deviceWorld{world: newWorldOn(t, d.config(cfg), nw, server, client), door: d}
	for i, port := range []int{3000, 3001} {
		ln, err := nw.Host(server).Listen(port)
		if err != nil {
			t.Fatal(err)
		}
		w.dials[i] = func(ctx context.Context) (net.Conn, error) { return ln.DialFrom(ctx, client) }
		w.serves(ln, i == 1)
	}
	w.endsWith(t)
	return w
}

// socketWorld starts a world on free ports of the loopback interface.
func (d door) socketWorld(t testing.TB, cfg push.Config) *deviceWorld {
	t.Helper()
	w := &deviceWorld{world: newSocketWorld(t, d.config(cfg)), door: d}
	for i := range w.dials {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		w.dials[i] = func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		}
		w.serves(ln, i == 1)
	}
	w.endsWith(t)
	return w
}

// config is cfg with the key that the door needs.
func (d door) config(cfg push.Config) push.Config {
	if cfg.MPush.PrivateKey == nil && d != doorPlain {
		cfg.MPush.PrivateKey = []byte(mpush.StockPrivateKey)
	}
	return cfg
}

func (w *deviceWorld) serves(ln net.Listener, secure bool) {
	if secure {
		ln = tls.NewListener(ln, serverTLS())
	}
	w.serving.Go(func() {
		if err := w.Serve(ln); err != push.ErrClosed {
			w.t.Errorf("Serve returned %v, want ErrClosed", err)
		}
	})
}

func (w *deviceWorld) endsWith(t testing.TB) {
	t.Cleanup(func() {
		w.Close()
		w.serving.Wait()
		w.mu.Lock()
		devices := w.devices
		w.mu.Unlock()
		for _, d := range devices {
			d.vanishes()
		}
	})
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

func clientTLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(certificate().Leaf)
	return &tls.Config{ServerName: "push.test", RootCAs: roots}
}

var stockPublicKey = sync.OnceValue(func() *mpush.PublicKey {
	key, err := mpush.ParsePublicKey([]byte(mpush.StockPublicKey))
	if err != nil {
		panic(err)
	}
	return key
})

// packet is what a device got.
type packet struct {
	cmd   mpush.Cmd
	flags mpush.Flags // as they came
	id    int32
	body  []byte // decrypted and inflated; over JSON the body's JSON
	size  int    // of the body as it came
	json  bool
	at    time.Time
}

func (p packet) String() string {
	switch p.cmd {
	case mpush.CmdOK:
		return fmt.Sprintf("OK %d %+v", p.id, p.ok())
	case mpush.CmdError:
		return fmt.Sprintf("ERROR %d %+v", p.id, p.error())
	case mpush.CmdKick:
		return fmt.Sprintf("KICK %d %+v", p.id, p.kick())
	case mpush.CmdPush:
		return fmt.Sprintf("PUSH %x %.60q", p.id, p.content())
	}
	return fmt.Sprintf("cmd %d, id %d, flags %#x, %d bytes", p.cmd, p.id, p.flags, len(p.body))
}

// fields reads a body, from JSON into into, otherwise by decode.
func (p packet) fields(into any, decode func([]byte) error) {
	var err error
	if !p.json {
		err = decode(p.body)
	} else if len(p.body) > 0 {
		err = json.Unmarshal(p.body, into)
	}
	if err != nil {
		panic(fmt.Sprintf("body of cmd %d: %v: %q", p.cmd, err, p.body))
	}
}

func (p packet) ok() (o mpush.OK) {
	p.fields(&o, o.Decode)
	return o
}

func (p packet) error() (e mpush.Error) {
	p.fields(&e, e.Decode)
	return e
}

func (p packet) kick() (k mpush.Kick) {
	p.fields(&k, k.Decode)
	return k
}

func (p packet) content() string {
	if !p.json {
		return string(p.body)
	}
	var body struct{ Content string }
	p.fields(&body, nil)
	return body.Content
}

// device is one mpush client. Over the doors without JSON it is as unsparing as
// the one in the field: what it cannot decrypt, inflate or read fails the test.
type device struct {
	t    testing.TB
	w    *deviceWorld
	door door
	is   mpush.Handshake // what it says of itself
	user string          // whom it bound last

	nc     net.Conn
	ws     *websocket.Conn // nil: packets are on nc
	gate   *gateConn       // under nc
	writes sync.Mutex      // one packet at a time
	ids    atomic.Int32    // the last one it used
	plain  bool            // it encrypts nothing though the door does
	born   time.Time

	acks atomic.Pointer[func(*device, packet)] // answers pushes that want an ack; nil: answer

	done chan struct{} // closed when nothing more comes

	mu        sync.Mutex
	first     *mpush.Cipher // guarded by mu: of the handshake's answer
	cipher    *mpush.Cipher // guarded by mu: the session's; nil before and in JSON
	heartbeat time.Duration // guarded by mu: as negotiated
	token     string        // guarded by mu
	expires   time.Time     // guarded by mu: the token does
	got       []packet      // guarded by mu: not looked at yet
	all       []packet      // guarded by mu: all that ever came
	beats     []time.Time   // guarded by mu: when heartbeats came
	changed   chan struct{} // guarded by mu: closed when something came
	err       error         // guarded by mu: why nothing more comes
	ended     time.Time     // guarded by mu
}

// dialsIn makes a device that is connected and has said nothing. More is
// "key=value": device, os, osversion, version.
func (w *deviceWorld) dialsIn(more ...string) *device {
	w.t.Helper()
	d, err := w.triesToDial(more...)
	if err != nil {
		w.t.Fatalf("a device dials: %v", err)
	}
	return d
}

func (w *deviceWorld) triesToDial(more ...string) (*device, error) {
	d := &device{t: w.t, w: w, door: w.door, born: time.Now(), done: make(chan struct{}), changed: make(chan struct{})}
	d.is = mpush.Handshake{
		DeviceID: "m" + strconv.FormatInt(w.seq.Add(1), 10), OSName: "android", OSVersion: "14", ClientVersion: "1.2.3",
		IV: make([]byte, 16), ClientKey: make([]byte, 16), MinHeartbeat: 240000, MaxHeartbeat: 240000,
	}
	rand.Read(d.is.IV)
	rand.Read(d.is.ClientKey)
	for _, kv := range more {
		k, v, _ := strings.Cut(kv, "=")
		*map[string]*string{"device": &d.is.DeviceID, "os": &d.is.OSName, "osversion": &d.is.OSVersion, "version": &d.is.ClientVersion}[k] = v
	}
	return d, d.dials()
}

// dials connects the device.
func (d *device) dials() error {
	w := d.w
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		var nc net.Conn
		var err error
		switch {
		case d.door.ws:
			nc, err = w.dial(ctx, network, addr)
		case d.door.tls:
			nc, err = w.dials[1](ctx)
		default:
			nc, err = w.dials[0](ctx)
		}
		if err != nil {
			return nil, err
		}
		d.gate = &gateConn{Conn: nc, once: make(chan struct{})}
		return d.gate, nil
	}
	if d.door.ws {
		dialer := websocket.Dialer{NetDialContext: dial, Subprotocols: []string{"mpush"}}
		if d.door.sniff {
			dialer.Subprotocols = nil
		}
		ws, resp, err := dialer.DialContext(context.Background(), "ws://push.test/ws", http.Header{})
		if err != nil {
			if resp != nil {
				err = fmt.Errorf("status %d: %w", resp.StatusCode, err)
			}
			return err
		}
		if want := dialer.Subprotocols; len(want) > 0 && ws.Subprotocol() != want[0] {
			d.t.Errorf("the server took subprotocol %q, want %q", ws.Subprotocol(), want[0])
		}
		d.ws, d.nc = ws, ws.NetConn()
	} else {
		nc, err := dial(context.Background(), "", "")
		if err != nil {
			return err
		}
		if d.nc = nc; d.door.tls {
			d.nc = tls.Client(nc, clientTLS())
		}
	}
	w.mu.Lock()
	w.devices = append(w.devices, d)
	w.mu.Unlock()
	go d.read()
	return nil
}

// shakesHands makes a device whose session is open.
func (w *deviceWorld) shakesHands(more ...string) *device {
	w.t.Helper()
	d := w.dialsIn(more...)
	d.handshake()
	return d
}

// binds makes a device that is user's. More is also "data=…" and "tags=…".
func (w *deviceWorld) binds(user string, more ...string) *device {
	w.t.Helper()
	var is, asks []string
	for _, kv := range more {
		if strings.HasPrefix(kv, "data=") || strings.HasPrefix(kv, "tags=") {
			asks = append(asks, kv)
		} else {
			is = append(is, kv)
		}
	}
	d := w.shakesHands(is...)
	d.bind(user, asks...)
	return d
}

// resumes makes a device that comes back with the session of another
// connection, and has said nothing.
func (w *deviceWorld) resumes(old *device) *device {
	w.t.Helper()
	d := w.dialsIn("device="+old.is.DeviceID, "os="+old.is.OSName, "osversion="+old.is.OSVersion, "version="+old.is.ClientVersion)
	old.mu.Lock()
	defer old.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cipher, d.token, d.user = old.cipher, old.token, old.user
	return d
}

// read collects what comes and answers what wants an ack.
func (d *device) read() {
	defer close(d.done)
	defer d.nc.Close()
	r := mpush.Reader{Max: -1}
	buf := make([]byte, 4<<10)
	for {
		var in []byte
		var err error
		if d.ws == nil {
			var n int
			n, err = d.nc.Read(buf)
			in = buf[:n]
		} else {
			var kind int
			kind, in, err = d.ws.ReadMessage()
			if err == nil && (kind == websocket.TextMessage) != d.door.json {
				err = fmt.Errorf("a message of kind %d", kind)
			}
		}
		for len(in) > 0 && (err == nil || d.ws == nil) {
			if d.door.json {
				switch p, bad := parseText(in); {
				case bad == errEnvelope && d.door.sniff: // before it turned: a page of mpush ignores it
				case bad != nil:
					err = bad
				default:
					d.takes(p)
				}
				break
			}
			var p mpush.Packet
			n, bad := r.Next(in, &p)
			in = in[n:]
			if bad != nil {
				err = bad
				break
			}
			if p.OK {
				if bad := d.opens(&p); bad != nil {
					err = bad
					break
				}
			}
		}
		if err != nil {
			d.mu.Lock()
			d.err, d.ended = err, time.Now()
			close(d.changed)
			d.changed = make(chan struct{})
			d.mu.Unlock()
			return
		}
	}
}

var errEnvelope = errors.New("a message of push.json")

// parseText reads a packet of the JSON form.
func parseText(text []byte) (p packet, err error) {
	var m struct {
		Cmd, Flags, SessionID, BodyLength *int32
		Body                              json.RawMessage
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return p, err
	}
	if m.Cmd == nil && bytes.HasPrefix(text, []byte(`{"event":`)) {
		return p, errEnvelope
	}
	if m.Cmd == nil || m.Flags == nil || m.SessionID == nil || m.BodyLength == nil || *m.Flags&int32(mpush.FlagJSON) == 0 {
		return p, fmt.Errorf("not a packet: %s", text)
	}
	var keys map[string]any
	if len(m.Body) > 0 {
		json.Unmarshal(m.Body, &keys)
	}
	if int(*m.BodyLength) != len(keys) {
		return p, fmt.Errorf("bodyLength is not the number of keys: %s", text)
	}
	return packet{cmd: mpush.Cmd(*m.Cmd), flags: mpush.Flags(*m.Flags), id: *m.SessionID, body: m.Body, size: len(m.Body), json: true, at: time.Now()}, nil
}

// opens decrypts and inflates a packet.
func (d *device) opens(in *mpush.Packet) (err error) {
	if in.Beat {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.beats = append(d.beats, time.Now())
		close(d.changed)
		d.changed = make(chan struct{})
		return nil
	}
	p := packet{cmd: in.Cmd, flags: in.Flags, id: in.ID, body: bytes.Clone(in.Body), size: len(in.Body), at: time.Now()}
	d.mu.Lock()
	cipher := d.cipher
	if p.cmd == mpush.CmdHandshake {
		cipher = d.first
	}
	d.mu.Unlock()
	if p.flags&mpush.FlagCrypto != 0 {
		if cipher == nil {
			return fmt.Errorf("cmd %d is encrypted before there is a key", p.cmd)
		}
		if p.body, err = cipher.Open(p.body); err != nil {
			return fmt.Errorf("cmd %d: %w", p.cmd, err)
		}
	}
	if p.flags&mpush.FlagCompress != 0 {
		if p.body, err = mpush.Inflate(p.body, 64<<20); err != nil {
			return fmt.Errorf("cmd %d: %w", p.cmd, err)
		}
	}
	if p.cmd == mpush.CmdPush && len(p.body) == 0 {
		return errors.New("a PUSH with an empty body, over which the client in the field reconnects")
	}
	d.takes(p)
	return nil
}

// takes notes a packet, and answers a push.
func (d *device) takes(p packet) {
	d.mu.Lock()
	if p.cmd == mpush.CmdHandshake && !p.json {
		var ok mpush.HandshakeOK
		if ok.Decode(p.body) == nil && len(ok.ServerKey) == 16 {
			key := mpush.MixKey(d.is.ClientKey, ok.ServerKey)
			d.cipher, _ = mpush.NewCipher(key[:], d.is.IV)
			d.heartbeat = time.Duration(ok.Heartbeat) * time.Millisecond
			d.token, d.expires = ok.SessionID, time.UnixMilli(ok.ExpireTime)
		}
	}
	if p.cmd == mpush.CmdFastConnect {
		var ok mpush.FastConnectOK
		if ok.Decode(p.body) == nil {
			d.heartbeat = time.Duration(ok.Heartbeat) * time.Millisecond
		}
	}
	d.got = append(d.got, p)
	d.all = append(d.all, p)
	close(d.changed)
	d.changed = make(chan struct{})
	d.mu.Unlock()
	if p.cmd == mpush.CmdPush && p.flags&(mpush.FlagAutoAck|mpush.FlagBizAck) != 0 {
		if f := d.acks.Load(); f != nil {
			(*f)(d, p)
		} else {
			d.ack(p.id)
		}
	}
}

// onAck says how the device answers pushes from now on.
func (d *device) onAck(f func(*device, packet)) { d.acks.Store(&f) }

// mute answers no pushes.
func mute(*device, packet) {}

// raw writes bytes, over a WebSocket as one message.
func (d *device) raw(b []byte) {
	d.writes.Lock()
	defer d.writes.Unlock()
	switch { // a device that is being closed may write into the void
	case d.ws == nil:
		d.nc.Write(b)
	case d.door.json:
		d.ws.WriteMessage(websocket.TextMessage, b)
	default:
		d.ws.WriteMessage(websocket.BinaryMessage, b)
	}
}

// sealed is a body as the device's session has it on the wire.
func (d *device) sealed(flags mpush.Flags, body []byte) (mpush.Flags, []byte) {
	if flags&mpush.FlagCompress != 0 {
		body = mpush.AppendDeflate(nil, body)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.door.keyed && !d.plain && d.cipher != nil && len(body) > 0 {
		flags |= mpush.FlagCrypto
		body = d.cipher.Append(nil, body)
	}
	return flags, body
}

// packet is a request as the device's session has it on the wire, under the
// next id. What has no form in JSON is nil there.
func (d *device) packet(cmd mpush.Cmd, flags mpush.Flags, body any) []byte {
	return d.packetWith(d.ids.Add(1), cmd, flags, body)
}

func (d *device) packetWith(id int32, cmd mpush.Cmd, flags mpush.Flags, body any) []byte {
	if d.door.json {
		m := map[string]any{"cmd": cmd, "flags": flags | mpush.FlagJSON, "sessionId": id}
		switch b := body.(type) {
		case *mpush.Handshake:
			m["body"] = map[string]string{"deviceId": b.DeviceID, "osName": b.OSName, "osVersion": b.OSVersion, "clientVersion": b.ClientVersion}
		case *mpush.Bind:
			m["body"] = map[string]string{"userId": b.UserID, "data": b.Data, "tags": b.Tags}
		case []byte:
			if cmd == mpush.CmdPush {
				m["body"] = map[string]string{"content": string(b)}
			}
		}
		text, err := json.Marshal(m)
		if err != nil {
			panic(err)
		}
		return text
	}
	var b []byte
	switch body := body.(type) {
	case nil:
	case []byte:
		b = body
	case interface{ Append([]byte) []byte }:
		b = body.Append(nil)
	default:
		panic(fmt.Sprintf("a body that is a %T", body))
	}
	switch cmd {
	case mpush.CmdHandshake:
		if d.door.keyed && !d.plain {
			var err error
			if b, err = stockPublicKey().Encrypt(b); err != nil {
				panic(err)
			}
			flags |= mpush.FlagCrypto
		}
	case mpush.CmdFastConnect:
	default:
		flags, b = d.sealed(flags, b)
	}
	return mpush.AppendPacket(nil, cmd, flags, id, b)
}

// asks sends a request and does not wait for its answer.
func (d *device) asks(cmd mpush.Cmd, flags mpush.Flags, body any) { d.raw(d.packet(cmd, flags, body)) }

// hello is its HANDSHAKE.
func (d *device) hello() []byte {
	d.mu.Lock()
	d.first, _ = mpush.NewCipher(d.is.ClientKey, d.is.IV)
	d.mu.Unlock()
	return d.packet(mpush.CmdHandshake, 0, &d.is)
}

// handshake opens a session.
func (d *device) handshake() packet {
	d.t.Helper()
	d.raw(d.hello())
	p := d.next()
	if p.cmd != mpush.CmdHandshake || p.id != d.ids.Load() {
		d.t.Fatalf("%s got %v, want the answer to its handshake", d.is.DeviceID, p)
	}
	return p
}

// fastConnect asks for the session of a token.
func (d *device) fastConnect(token string) {
	d.asks(mpush.CmdFastConnect, 0, &mpush.FastConnect{SessionID: token, DeviceID: d.is.DeviceID, MinHeartbeat: d.is.MinHeartbeat, MaxHeartbeat: d.is.MaxHeartbeat})
}

// wantResumed wants the answer to a fast connect.
func (d *device) wantResumed() {
	d.t.Helper()
	if p := d.next(); p.cmd != mpush.CmdFastConnect || p.id != d.ids.Load() || p.flags != 0 {
		d.t.Fatalf("%s got %v, want the answer to its fast connect", d.is.DeviceID, p)
	}
}

// asksToBind sends a BIND. More is "data=…" and "tags=…".
func (d *device) asksToBind(user string, more ...string) {
	d.raw(d.bindPacket(user, more...))
}

func (d *device) bindPacket(user string, more ...string) []byte {
	b := mpush.Bind{UserID: user}
	for _, kv := range more {
		k, v, _ := strings.Cut(kv, "=")
		*map[string]*string{"data": &b.Data, "tags": &b.Tags}[k] = v
	}
	d.user = user
	return d.packet(mpush.CmdBind, 0, &b)
}

// bind logs in, for the first time or again as the same user.
func (d *device) bind(user string, more ...string) {
	d.t.Helper()
	d.asksToBind(user, more...)
	d.wantOK(mpush.CmdBind, "bind success")
}

// asksToUnbind sends an UNBIND.
func (d *device) asksToUnbind(user string) {
	d.asks(mpush.CmdUnbind, 0, &mpush.Bind{UserID: user})
}

func (d *device) unbind(user string) {
	d.t.Helper()
	d.asksToUnbind(user)
	d.wantOK(mpush.CmdUnbind, "unbind success")
}

// push sends a message; flags say which ack it wants.
func (d *device) push(content string, flags mpush.Flags) {
	d.asks(mpush.CmdPush, flags, []byte(content))
}

// ack answers a push.
func (d *device) ack(id int32) { d.raw(d.packetWith(id, mpush.CmdAck, 0, nil)) }

// beat sends a heartbeat.
func (d *device) beat() { d.raw([]byte{mpush.Beat}) }

// vanishes without goodbye.
func (d *device) vanishes() {
	d.resume()
	if d.gate != nil {
		d.gate.Close()
		<-d.done
	}
}

// pause stops reading, resume goes on.
func (d *device) pause() {
	d.gate.mu.Lock()
	defer d.gate.mu.Unlock()
	if d.gate.open == nil {
		d.gate.open = make(chan struct{})
	}
}

func (d *device) resume() {
	if d.gate == nil {
		return
	}
	d.gate.mu.Lock()
	defer d.gate.mu.Unlock()
	if d.gate.open != nil {
		close(d.gate.open)
		d.gate.open = nil
	}
}

// waitFor waits until ok, which runs with d.mu held, says yes.
func (d *device) waitFor(what string, ok func() bool) {
	d.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		d.mu.Lock()
		yes, changed, err, got := ok(), d.changed, d.err, briefPackets(d.got)
		d.mu.Unlock()
		if yes {
			return
		}
		if err != nil {
			d.t.Fatalf("%s waits for %s: %v; got %v", d.is.DeviceID, what, err, got)
		}
		select {
		case <-changed:
		case <-timeout.C:
			d.t.Fatalf("%s waits for %s in vain; got %v", d.is.DeviceID, what, got)
		}
	}
}

func briefPackets(got []packet) string {
	if len(got) > 20 {
		return fmt.Sprintf("%v … and %d more", got[:20], len(got)-20)
	}
	return fmt.Sprint(got)
}

// next is the next packet that comes.
func (d *device) next() (p packet) {
	d.t.Helper()
	d.waitFor("anything", func() bool {
		if len(d.got) == 0 {
			return false
		}
		p, d.got = d.got[0], d.got[1:]
		return true
	})
	return p
}

// taken is everything that came so far.
func (d *device) taken() []packet {
	d.mu.Lock()
	defer d.mu.Unlock()
	got := d.got
	d.got = nil
	return got
}

// wantPush wants pushes with these contents to come next, in this order,
// encrypted if the session is.
func (d *device) wantPush(contents ...string) (last packet) {
	d.t.Helper()
	for _, want := range contents {
		if last = d.next(); last.cmd != mpush.CmdPush || last.content() != want {
			d.t.Fatalf("%s got %v, want a push of %.60q", d.is.DeviceID, last, want)
		}
		if got, want := last.flags&mpush.FlagCrypto != 0, d.hears(); got != want {
			d.t.Errorf("%s got a push with flags %#x, want it encrypted: %v", d.is.DeviceID, last.flags, want)
		}
	}
	return last
}

// hears reports whether what it is sent shall be encrypted.
func (d *device) hears() bool { return d.door.keyed }

// wantOK wants the OK to its last request.
func (d *device) wantOK(cmd mpush.Cmd, data string) packet {
	d.t.Helper()
	p := d.next()
	if p.cmd != mpush.CmdOK || p.id != d.ids.Load() || p.ok() != (mpush.OK{Cmd: cmd, Data: data}) || p.flags&^mpush.FlagJSON != 0 {
		d.t.Fatalf("%s got %v with flags %#x, want OK %d to cmd %d, %q", d.is.DeviceID, p, p.flags, d.ids.Load(), cmd, data)
	}
	return p
}

// wantError wants an ERROR about its last request.
func (d *device) wantError(cmd mpush.Cmd, code int8, reason string) packet {
	d.t.Helper()
	return d.wantErrorTo(d.ids.Load(), cmd, code, reason)
}

func (d *device) wantErrorTo(id int32, cmd mpush.Cmd, code int8, reason string) packet {
	d.t.Helper()
	p := d.next()
	if p.cmd != mpush.CmdError || p.id != id || p.flags&^mpush.FlagJSON != 0 {
		d.t.Fatalf("%s got %v with flags %#x, want ERROR %d about cmd %d, %d %q", d.is.DeviceID, p, p.flags, id, cmd, code, reason)
	}
	if e := p.error(); e.Cmd != cmd || e.Code != code || e.Reason != reason {
		d.t.Fatalf("%s got %v, want ERROR %d about cmd %d, %d %q", d.is.DeviceID, p, id, cmd, code, reason)
	}
	return p
}

// wantKick wants to be told that its place is taken: itself, id 0, encrypted if
// the session is.
func (d *device) wantKick(device, user string) packet {
	d.t.Helper()
	p := d.next()
	if p.cmd != mpush.CmdKick || p.id != 0 || p.kick() != (mpush.Kick{DeviceID: device, UserID: user}) {
		d.t.Fatalf("%s got %v, want KICK of %s, %s", d.is.DeviceID, p, device, user)
	}
	if got := p.flags&mpush.FlagCrypto != 0; got != d.hears() {
		d.t.Errorf("%s got a KICK with flags %#x, want it encrypted: %v", d.is.DeviceID, p.flags, d.hears())
	}
	return p
}

// wantAck wants its last push to be answered.
func (d *device) wantAck() {
	d.t.Helper()
	if p := d.next(); p.cmd != mpush.CmdAck || p.id != d.ids.Load() || len(p.body) > 0 || p.flags&^mpush.FlagJSON != 0 {
		d.t.Fatalf("%s got %v, want ACK %d", d.is.DeviceID, p, d.ids.Load())
	}
}

// wantBeat sends a heartbeat and wants it back.
func (d *device) wantBeat() {
	d.t.Helper()
	before := d.beaten()
	d.beat()
	d.waitFor("a heartbeat", func() bool { return len(d.beats) > before })
}

// wantABeat sends heartbeats until one comes back: one that meets other bytes
// on their way may not. It is for sockets.
func (d *device) wantABeat() {
	d.t.Helper()
	before, tries := d.beaten(), 0
	settles(d.t, "a heartbeat comes back", func() bool {
		if tries++; tries%100 == 1 {
			d.beat()
		}
		return d.beaten() > before
	})
}

// beaten is how many heartbeats came.
func (d *device) beaten() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.beats)
}

// wantNothing wants nothing to have come. In virtual time only: everybody else
// has come to rest.
func (d *device) wantNothing() {
	d.t.Helper()
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.got) > 0 || d.err != nil {
		d.t.Fatalf("%s got %v (end: %v), want nothing", d.is.DeviceID, briefPackets(d.got), d.err)
	}
}

// wantOpen wants the connection to live, and nothing to come over it, for so
// long. In virtual time only.
func (d *device) wantOpen(for_ time.Duration) {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(for_):
	}
	d.wantNothing()
}

// wantClosed wants the server to end the connection within a time, and nothing
// before it.
func (d *device) wantClosed(within time.Duration) {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(within + time.Millisecond): // what happens at that very moment is in time
		d.t.Fatalf("%s is not closed after %v", d.is.DeviceID, within)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.got) > 0 {
		d.t.Errorf("%s got %v, want to be closed first", d.is.DeviceID, briefPackets(d.got))
	}
	if d.door.ws {
		return // see wantCode
	}
	if d.err != nil && strings.Contains(d.err.Error(), "mpush:") {
		d.t.Errorf("%s ended over %v", d.is.DeviceID, d.err)
	}
}

// wantCode wants a WebSocket's close code; over TCP there is none.
func (d *device) wantCode(code int) {
	d.t.Helper()
	if !d.door.ws {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if closed := new(websocket.CloseError); !errors.As(d.err, &closed) || closed.Code != code {
		d.t.Errorf("%s ended with %v, want close code %d", d.is.DeviceID, d.err, code)
	}
}

// tail is what came and was not looked at, when the connection has ended.
func (d *device) tail(within time.Duration) []packet {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(within):
		d.t.Fatalf("%s is not closed after %v", d.is.DeviceID, within)
	}
	return d.taken()
}

// endedAt is when the connection did.
func (d *device) endedAt() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}

// conn is the engine's side of the device, nil when it is in no place.
func (d *device) conn() *push.Conn {
	for c := range d.w.Conns() {
		if c.Login().DeviceID == d.is.DeviceID {
			return c
		}
	}
	return nil
}

// conns are all of them.
func (w *deviceWorld) conns() []*push.Conn { return slices.Collect(w.Conns()) }

// aKeyOfItsOwn is the public half of a key that no server has.
func aKeyOfItsOwn(t testing.TB) *mpush.PublicKey {
	t.Helper()
	own, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&own.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := mpush.ParsePublicKey(der)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// parseRSA reads a public key of base64.
func parseRSA(text string) (*rsa.PublicKey, error) {
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	return key.(*rsa.PublicKey), nil
}

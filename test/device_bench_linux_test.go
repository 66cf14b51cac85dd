package test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
	"github.com/embedpush/push/internal/secret"
)

// The benchmarks of mpush devices measure as those of pages do (see
// bench_linux_test.go): clients in a second process, the CPU of the server's.
// A device is called sealed if its session is encrypted. There are never more
// than 10 000 devices at a time, which is as many descriptors in each process.

// BenchmarkDeviceHandshake is a device's whole beginning: connection,
// HANDSHAKE with RSA, BIND with the gate and the places. The stock key has no
// values for the Chinese remainder theorem. Half of the processors do RSA at a
// time, and the clients need theirs: handshakes/s is for one core or so here,
// and cpu-µs/handshake is what to count with.
func BenchmarkDeviceHandshake(b *testing.B) {
	run := func(name string, private []byte, public string) {
		b.Run(name, func(b *testing.B) {
			benchmarkBegin(b, push.MPush{PrivateKey: private}, public, 300, "handshake")
		})
	}
	run("1024-stock", []byte(mpush.StockPrivateKey), mpush.StockPublicKey)
	for _, bits := range []int{1024, 2048} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			b.Fatal(err)
		}
		public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			b.Fatal(err)
		}
		run(strconv.Itoa(bits), x509.MarshalPKCS1PrivateKey(key), base64.StdEncoding.EncodeToString(public))
	}
}

// BenchmarkDeviceFastConnect is the same for a device that was here before:
// connection, FAST_CONNECT with its token, BIND.
func BenchmarkDeviceFastConnect(b *testing.B) {
	benchmarkBegin(b, push.MPush{}, asSealed, 1000, "connect")
}

// benchmarkBegin connects n devices and hangs up, in turn; only the former
// counts.
func benchmarkBegin(b *testing.B, m push.MPush, as string, n int, unit string) {
	f := newDevices(b, m, as, 0)
	f.dial(n) // the first ones pay for what is there once
	var wall, cpu time.Duration
	rounds := 0
	for b.Loop() {
		f.load.hangUp()
		f.waitConns(0)
		begin, before := time.Now(), cpuTime()
		f.dial(n)
		wall, cpu = wall+time.Since(begin), cpu+cpuTime()-before
		rounds++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(n*rounds)/wall.Seconds(), unit+"s/s")
	b.ReportMetric(float64(cpu.Nanoseconds())/1000/float64(n*rounds), "cpu-µs/"+unit)
}

// BenchmarkDevicePushAck pushes to one device and waits for its ack: to a
// sealed device, a plain one and a page in turn. A sealed device decrypts the
// push before it answers.
func BenchmarkDevicePushAck(b *testing.B) {
	const turns, pushes = 10, 50
	f := newDevices(b, push.MPush{}, asSealed, 1)
	f.load.as = asPlain
	f.dial(1)
	f.load.as = asPage
	f.load.dial(port(listenOn(b, f.engine)), 2, 1, 10)
	f.waitConns(3)
	ctx, m := context.Background(), push.Message{Event: benchEvent, Data: benchText, Ack: push.AutoAck}
	kinds := []struct {
		name, user string
		took       []time.Duration
		cpu        time.Duration
	}{{name: "sealed", user: "u0"}, {name: "plain", user: "u1"}, {name: "page", user: "u2"}}
	for b.Loop() {
		for i := range turns * len(kinds) {
			k := &kinds[i%len(kinds)]
			before := cpuTime()
			for range pushes {
				begin := time.Now()
				if r, err := f.engine.PushToUser(ctx, k.user, m); err != nil || r.Acked != 1 {
					b.Fatalf("receipt %+v, error %v", r, err)
				}
				k.took = append(k.took, time.Since(begin))
			}
			k.cpu += cpuTime() - before
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, k := range kinds {
		slices.Sort(k.took)
		n := len(k.took)
		b.ReportMetric(float64(k.took[n/2].Nanoseconds())/1000, k.name+"-p50-µs")
		b.ReportMetric(float64(k.took[n*99/100].Nanoseconds())/1000, k.name+"-p99-µs")
		b.ReportMetric(float64(k.cpu.Nanoseconds())/1000/float64(n), k.name+"-cpu-µs/push")
	}
}

// BenchmarkDeviceBroadcast pushes 256 bytes to 10 000 sealed devices and to
// 10 000 plain ones, in turn. Plain devices are all written the same bytes,
// while each sealed one is written a copy of its own, encrypted with its key:
// that is the difference. The figures are those of the median broadcast.
func BenchmarkDeviceBroadcast(b *testing.B) {
	f := newDevices(b, push.MPush{}, asPlain, 0)
	var plain, sealed []pushCost
	for b.Loop() {
		plain = append(plain, f.broadcasts(asPlain, mpush.HeaderLen+broadcastSize)...)
		sealed = append(sealed, f.broadcasts(asSealed, mpush.HeaderLen+mpush.SealedLen(broadcastSize))...)
	}
	median := func(costs []pushCost) *pushCost {
		slices.SortFunc(costs, func(a, b pushCost) int { return cmp.Compare(a.cpu, b.cpu) })
		return &costs[len(costs)/2]
	}
	p, s := median(plain), median(sealed)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p.perDelivery(), "plain-cpu-ns/delivery")
	b.ReportMetric(s.perDelivery(), "sealed-cpu-ns/delivery")
	b.ReportMetric(s.perDelivery()/p.perDelivery(), "sealed/plain")
	b.ReportMetric(float64(p.mallocs)/float64(p.deliveries), "plain-allocs/delivery")
	b.ReportMetric(float64(s.mallocs)/float64(s.deliveries), "sealed-allocs/delivery")
}

const broadcastSize = 256

// broadcasts makes some to as many devices of one kind as there may be, which
// come for that and go. size is what each of them has to get of each.
func (f *fleet) broadcasts(as string, size int) (costs []pushCost) {
	f.b.Helper()
	f.load.as = as
	f.dial(maxClients)
	ctx, m := context.Background(), push.Message{Event: benchEvent, Data: make([]byte, broadcastSize)}
	for i := range 13 {
		if i == 3 { // pools are full, buffers have grown
			runtime.GC()
		}
		start := f.start()
		if r, err := f.engine.Broadcast(ctx, m); err != nil || r.Targets != maxClients {
			f.b.Fatalf("receipt %+v, error %v", r, err)
		}
		c := start.end(1, maxClients)
		if want := int64(size) * maxClients; c.bytes != want {
			f.b.Fatalf("%d bytes came, want %d", c.bytes, want)
		}
		if i >= 3 {
			costs = append(costs, c)
		}
	}
	f.load.hangUp()
	f.waitConns(0)
	return costs
}

// BenchmarkDeviceMemory is BenchmarkIdleConnection for sealed devices, each
// with a user of its own and in a room of ten, after it has got a push and had
// a heartbeat answered.
func BenchmarkDeviceMemory(b *testing.B) {
	for b.Loop() {
		rss, heap, stacks := idleMemory(b, roleDevices, asSealed)
		b.ReportMetric(rss, "B/conn")
		b.ReportMetric(heap, "heap-B/conn")
		b.ReportMetric(stacks, "stack-B/conn")
	}
	b.ReportMetric(0, "ns/op")
}

// newDeviceEngine is an engine that believes its devices, and pages, whom they
// say they are; a device's token is the room it wants to be in. It resumes the
// sessions that benchTokens makes.
func newDeviceEngine(m push.MPush) (*push.Engine, error) {
	m.SessionKey = benchSecret[:]
	return push.New(push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			l.Rooms = []string{cmp.Or(l.Token, l.Query("room"))}
			return l.UserID, nil
		},
		Heartbeat: time.Hour,
		MPush:     m,
		Logger:    slog.New(slog.DiscardHandler),
	})
}

var benchSecret = sha256.Sum256([]byte("the benchmarks'"))

// benchTokens makes session tokens as an engine without a cluster does, so
// that sealed sessions need no RSA.
var benchTokens = sync.OnceValue(func() *mpush.Tokens {
	return mpush.NewTokens("", 24*time.Hour, secret.Derive(benchSecret[:], "mpush-session", ""))
})

// newDevices is newFleet for devices of one kind.
func newDevices(b *testing.B, m push.MPush, as string, devices int) *fleet {
	b.Helper()
	e, err := newDeviceEngine(m)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	f := &fleet{b: b, engine: e, ln: ln, load: startLoad(b)}
	f.load.as = as
	go e.Serve(f.ln)
	if devices > 0 {
		f.dial(devices)
	}
	return f
}

// What load.dial opens. Anything else is a public key in base64: devices that
// shake hands with it.
const (
	asPage   = "page"
	asPlain  = "plain"  // devices that shake hands without encryption
	asSealed = "sealed" // devices that resume an encrypted session
)

// loadDevice is what a client knows of itself as a device.
type loadDevice struct {
	user, room int
	clientKey  []byte        // of a handshake that is not answered yet; nil: there is none
	cipher     *mpush.Cipher // of the session; while there is a clientKey, of its answer
	plain      bool
}

// dialDevices is dial for devices.
func (c *loadClients) dialDevices(port, first, n, roomSize int, as string) error {
	var fds [dialBatch]int
	var devices [dialBatch]*loadDevice
	for begin := 0; begin < n; begin += dialBatch {
		fds := fds[:min(dialBatch, n-begin)]
		for i := range fds {
			fd, err := connect(port)
			if err != nil {
				return err
			}
			user := first + begin + i
			fds[i], devices[i] = fd, &loadDevice{user: user, room: user / roomSize}
			if err := devices[i].hello(fd, as); err != nil {
				return err
			}
		}
		for i, fd := range fds {
			if err := devices[i].bind(fd, c); err != nil {
				return err
			}
		}
		for i, fd := range fds {
			if _, err := c.packet(fd, mpush.CmdOK); err != nil {
				return err
			}
			if err := c.add(fd, devices[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// hello sends the first packet. Its claims are as long as those of real
// devices, so that a handshake is one block of 1024 bits, too.
func (d *loadDevice) hello(fd int, as string) (err error) {
	const os, osVersion, version = "android", "14", "1.2.3"
	id, key, iv := fmt.Sprintf("%032d", d.user), make([]byte, mpush.KeyLen), make([]byte, mpush.KeyLen)
	rand.Read(key)
	rand.Read(iv)
	if d.cipher, err = mpush.NewCipher(key, iv); err != nil {
		return err
	}
	if as == asSealed {
		token := benchTokens().Seal(time.Now(), &mpush.Resumed{
			DeviceID: id, Key: d.cipher.Key(), IV: d.cipher.IV(), OSName: os, OSVersion: osVersion, ClientVersion: version,
		})
		f := mpush.FastConnect{SessionID: token, DeviceID: id, MinHeartbeat: 180_000, MaxHeartbeat: 180_000}
		return send(fd, mpush.CmdFastConnect, 0, 1, f.Append(nil))
	}
	d.clientKey, d.plain = key, as == asPlain
	h := mpush.Handshake{
		DeviceID: id, OSName: os, OSVersion: osVersion, ClientVersion: version,
		IV: iv, ClientKey: key, MinHeartbeat: 180_000, MaxHeartbeat: 180_000,
	}
	body := h.Append(nil)
	if d.plain {
		return send(fd, mpush.CmdHandshake, 0, 1, body)
	}
	public, err := mpush.ParsePublicKey([]byte(as))
	if err != nil {
		return err
	}
	if body, err = public.Encrypt(body); err != nil {
		return err
	}
	return send(fd, mpush.CmdHandshake, mpush.FlagCrypto, 1, body)
}

// bind reads the answer to the first packet and sends the second.
func (d *loadDevice) bind(fd int, c *loadClients) error {
	want := mpush.CmdFastConnect
	if d.clientKey != nil {
		want = mpush.CmdHandshake
	}
	p, err := c.packet(fd, want)
	if err != nil {
		return err
	}
	if d.clientKey != nil {
		body, err := d.cipher.Open(p.Body)
		if err != nil {
			return err
		}
		var ok mpush.HandshakeOK
		if err := ok.Decode(body); err != nil {
			return err
		}
		key, iv := mpush.MixKey(d.clientKey, ok.ServerKey), d.cipher.IV()
		if d.cipher, err = mpush.NewCipher(key[:], iv[:]); err != nil {
			return err
		}
		d.clientKey = nil
	}
	bind := mpush.Bind{UserID: fmt.Sprintf("u%d", d.user), Data: fmt.Sprintf("r%d", d.room)}
	body, flags := bind.Append(nil), mpush.Flags(0)
	if !d.plain {
		body, flags = d.cipher.Append(nil, body), mpush.FlagCrypto
	}
	return send(fd, mpush.CmdBind, flags, 2, body)
}

func send(fd int, cmd mpush.Cmd, flags mpush.Flags, id int32, body []byte) error {
	_, err := syscall.Write(fd, mpush.AppendPacket(nil, cmd, flags, id, body))
	return err
}

// packet waits for one packet, which has to have this command.
func (c *loadClients) packet(fd int, want mpush.Cmd) (p mpush.Packet, err error) {
	r := mpush.Reader{Max: -1}
	for !p.OK {
		n, err := c.await(fd)
		if err != nil {
			return p, fmt.Errorf("answer to a device: %w", err)
		}
		if used, err := r.Next(c.buf[:n], &p); err != nil || used != n {
			return p, fmt.Errorf("answer to a device: %q, error %v", c.buf[:n], err)
		}
	}
	if p.Cmd != want {
		return p, fmt.Errorf("answer to a device: command %d, want %d: %q", p.Cmd, want, p.Body)
	}
	return p, nil
}

// feedDevice counts the packets and heartbeats that end in b, and answers the
// pushes that want an ack.
func (c *loadClients) feedDevice(fd int, b []byte) {
	f := &c.conns[fd]
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, len(b))
			f.left -= n
			b = b[n:]
			if f.left == 0 {
				c.frames++
			}
			continue
		}
		if f.have == 0 && b[0] == mpush.Beat {
			c.frames++
			b = b[1:]
			continue
		}
		n := copy(f.head[f.have:], b)
		f.have += n
		b = b[n:]
		if f.have < len(f.head) {
			return
		}
		h := mpush.ParseHeader(f.head[:])
		f.have, f.left = 0, int(h.Len)
		if f.left == 0 {
			c.frames++
		}
		if h.Flags&mpush.FlagAutoAck != 0 && len(b) >= f.left { // the usual case, and one push is there at a time
			c.ackDevice(fd, h, b[:f.left])
		}
	}
}

func (c *loadClients) ackDevice(fd int, h mpush.Header, body []byte) {
	if h.Flags&mpush.FlagCrypto != 0 {
		content, err := c.conns[fd].device.cipher.Open(bytes.Clone(body))
		if err != nil || string(content) != strconv.Quote(benchText) {
			fmt.Printf("error a push of %q, %v\n", content, err)
			return
		}
	}
	if err := send(fd, mpush.CmdAck, 0, h.ID, nil); err != nil {
		fmt.Println("error", err)
	}
}

// ackPage answers a push.json push that wants an ack, if b ends with one.
func (c *loadClients) ackPage(fd int, b []byte) {
	head, automatic := bytes.CutSuffix(b, []byte(`,"auto":true}`))
	if !automatic {
		return
	}
	id := head[bytes.LastIndexByte(head, ':')+1:]
	frame := fmt.Appendf([]byte{0x81, 0x80, 0, 0, 0, 0}, `{"ack":%s}`, id) // a mask of zeros changes nothing
	frame[1] |= byte(len(frame) - 6)
	if _, err := syscall.Write(fd, frame); err != nil {
		fmt.Println("error", err)
	}
}

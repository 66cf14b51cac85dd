package test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/mpush"
	"github.com/embedpush/push/internal/secret"
)

// javaClient behaves as mpush's Java client 0.8.1 does, faults included,
// because its fleets cannot be changed: a server is right if these get along
// with it. What it is known for:
//
//   - It has no back-off once a connection was accepted, and a budget of 1 000
//     attempts in its life; a server that sends it away quickly loses it.
//   - An end within milliseconds of connecting, or while it is about to
//     reconnect by itself, wedges it: two of its threads reconnect at once,
//     and then neither does.
//   - What comes faster than it handles it, beyond 100, is lost.
//   - An ERROR about its handshake stops it, about its fast connect makes it
//     shake hands, about anything else makes it reconnect.
//   - Two threads handle packets at a time, so what follows the answer to its
//     handshake is decrypted under the wrong key.
type javaClient struct {
	// Static.
	cfg  javaConfig
	ctx  context.Context // ends with the test
	end  context.CancelFunc
	done chan struct{} // closed when it connects no more
	work sync.WaitGroup

	addrs []string // run's: what is left of the allocator's last answer

	mu        sync.Mutex
	conn      *javaConn     // guarded by mu: the last one
	session   *javaSession  // guarded by mu: what fast connects are made of; nil: there is none
	fate      javaFate      // guarded by mu
	user      string        // guarded by mu: whom it binds; "": nobody
	seq       int32         // guarded by mu: id of the last request
	lastRead  time.Time     // guarded by mu
	lastWrite time.Time     // guarded by mu
	misses    int           // guarded by mu: heartbeats in a row
	queue     []javaPacket  // guarded by mu: what no worker has yet
	workers   int           // guarded by mu
	count     javaCounts    // guarded by mu
	boundAt   time.Time     // guarded by mu: the last OK to a BIND
	changed   chan struct{} // guarded by mu: closed when count or conn did
}

// javaConfig is what an app gives its client. The zero value of what it may
// leave out is the client's own.
type javaConfig struct {
	user, device, os string // of os: "android"

	dial  func(ctx context.Context, addr string) (net.Conn, error)
	addr  string       // of the server, without alloc
	alloc http.Handler // the allocator; nil: addr

	session *javaSession     // of an earlier life; nil: it begins with a handshake
	key     *mpush.PublicKey // nil: the stock key
	health  time.Duration    // how often the app has the heartbeat checked; 0: 10 s; -1: never, as on a phone that sleeps
	service time.Duration    // what the app takes for a push; 0: 1 ms
	timeout time.Duration    // of a request, for tests in real time; 0: 3 s
	unbinds bool             // the app unbinds when it is kicked, as Android's does
}

// javaFate is why a client connects no more.
type javaFate string

const (
	javaAlive     javaFate = ""
	javaStopped   javaFate = "stopped"   // over an ERROR about its handshake
	javaExhausted javaFate = "exhausted" // of its 1 000 attempts
	javaWedged    javaFate = "wedged"
)

// javaCounts are what a client has done and met.
type javaCounts struct {
	attempts, connects       int // to connect; with a connection
	handshakes, fastConnects int // that were answered
	binds, resends, bound    int // requests, the same once more, answers
	unbound                  int
	kicks                    int
	pushes, acks             int // handled; sent
	lost                     int // packets, because 100 waited
	unacked, mostUnacked     int // pushes that came on this connection and want an ack
	beats                    int
	longestGap               time.Duration // between two writes of one connection
	early                    int           // packets that a server must not send before BIND
	exceptions               int
	answeredWrong            int      // requests that something else than their answer took for answered
	errors                   []string // the first ten: exceptions, ERRORs, what a KICK should not say
}

// What is built into it.
const (
	javaAttempts  = 1000
	javaQuick     = 2  // attempts at once; then each waits as many seconds as it has a number
	javaPatient   = 10 // attempts until it pauses
	javaPause     = 10 * time.Minute
	javaTimeout   = 3 * time.Second
	javaHeartbeat = 4 * time.Minute // what it asks for
	javaQueue     = 100
	javaCore      = 2 // threads that handle packets, and how many when the queue is full
	javaThreads   = 4
	javaBrink     = 50 * time.Millisecond // an end so soon wedges it
	javaReset     = 500 * time.Millisecond
	javaSwitch    = time.Millisecond // what an answer or an ERROR takes; another thread may have the next packet, and the old key, meanwhile
)

// javaSession is its session file.
type javaSession struct {
	token   string
	expires time.Time
	cipher  *mpush.Cipher
}

// javaConn is one connection. Its fields are guarded by javaClient.mu.
type javaConn struct {
	c      *javaClient // static
	nc     net.Conn    // static
	began  time.Time   // static
	writes sync.Mutex  // one packet at a time; not guarded

	cipher    *mpush.Cipher // for what comes and goes; nil: RSA
	switched  bool          // to the session's key
	heartbeat time.Duration
	user      string // of its BIND
	bound     bool
	pending   map[int32]*javaRequest
	health    *time.Timer
	closed    bool // by us
	doomed    bool // an ERROR came over which a thread is about to reconnect
}

// javaRequest is a request without an answer.
type javaRequest struct {
	cmd   mpush.Cmd
	timer *time.Timer
}

// javaPacket is a packet that waits for a worker.
type javaPacket struct {
	conn *javaConn
	mpush.Packet
}

// newJavaClient starts a client. The test's end stops it.
func newJavaClient(t testing.TB, cfg javaConfig) *javaClient {
	t.Helper()
	if cfg.os == "" {
		cfg.os = "android"
	}
	if cfg.key == nil {
		cfg.key = javaStockKey()
	}
	if cfg.health == 0 {
		cfg.health = 10 * time.Second
	}
	if cfg.timeout == 0 {
		cfg.timeout = javaTimeout
	}
	if cfg.service == 0 {
		cfg.service = time.Millisecond
	}
	c := &javaClient{cfg: cfg, user: cfg.user, session: cfg.session, done: make(chan struct{}), changed: make(chan struct{})}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.work.Go(c.run)
	t.Cleanup(c.stops)
	return c
}

var javaStockKey = sync.OnceValue(func() *mpush.PublicKey {
	key, err := mpush.ParsePublicKey([]byte(mpush.StockPublicKey))
	if err != nil {
		panic(err)
	}
	return key
})

// javaToken is the session that a node with this MPush.SessionKey would have
// given a device.
func javaToken(sessionKey []byte, device string) *javaSession {
	r := mpush.Resumed{DeviceID: device, OSName: "android", OSVersion: "9", ClientVersion: "0.8.1"}
	rand.Read(r.Key[:])
	rand.Read(r.IV[:])
	tokens := mpush.NewTokens("", 24*time.Hour, secret.Derive(sessionKey, "mpush-session", ""))
	s := &javaSession{token: tokens.Seal(time.Now(), &r), expires: r.Expires}
	s.cipher, _ = mpush.NewCipher(r.Key[:], r.IV[:])
	return s
}

// stops ends the client, as the end of its program does.
func (c *javaClient) stops() {
	c.end()
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		conn.close()
	}
	c.work.Wait()
}

// breaks ends its connection, and with it whatever came over it.
func (c *javaClient) breaks() {
	c.mu.Lock()
	conn := c.conn
	conn.closeLocked()
	c.queue = nil
	c.mu.Unlock()
	conn.nc.Close()
}

// forgets loses its session file.
func (c *javaClient) forgets() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = nil
}

// counts is a copy of them.
func (c *javaClient) counts() javaCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// is its fate so far.
func (c *javaClient) is() javaFate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fate
}

// isBound tells whether it is connected and bound, and since when.
func (c *javaClient) isBound() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boundAt, c.conn != nil && !c.conn.closed && c.conn.bound
}

// reconnects is how often it came back.
func (n javaCounts) reconnects() int { return max(0, n.connects-1) }

// noteLocked wakes who waits for a change.
func (c *javaClient) noteLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *javaClient) errorLocked(format string, args ...any) {
	if len(c.count.errors) < 10 {
		c.count.errors = append(c.count.errors, fmt.Sprintf(format, args...))
	}
}

// waitFor waits until ok, which runs with c.mu held, says yes.
func (c *javaClient) waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		c.mu.Lock()
		yes, changed, count, fate := ok(), c.changed, c.count, c.fate
		c.mu.Unlock()
		if yes {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			t.Fatalf("%s waits for %s in vain: %q %+v", c.cfg.device, what, fate, count)
		}
	}
}

func (c *javaClient) waitBound(t testing.TB) {
	t.Helper()
	c.waitFor(t, "being bound", func() bool { return c.conn != nil && c.conn.bound })
}

// sleep is for d, or tells that the test is over.
func (c *javaClient) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// run is the thread that connects, and then reads.
func (c *javaClient) run() {
	defer close(c.done)
	tries := 0 // since the last connection
	for c.ctx.Err() == nil {
		c.mu.Lock()
		if c.fate == javaAlive && c.count.attempts > javaAttempts {
			c.fate = javaExhausted
			c.noteLocked()
		}
		if c.fate != javaAlive {
			c.mu.Unlock()
			return
		}
		c.count.attempts++
		c.mu.Unlock()
		tries++
		switch {
		case tries > javaPatient:
			if !c.sleep(javaPause) {
				return
			}
			tries = 0
		case tries > javaQuick:
			if !c.sleep(time.Duration(tries) * time.Second) {
				return
			}
		}
		if nc := c.connect(); nc != nil {
			tries = 0
			if !c.serve(nc) {
				return
			}
		}
	}
}

// connect goes through the addresses it knows and forgets those that fail.
// When none is left, it asks for others.
func (c *javaClient) connect() net.Conn {
	if len(c.addrs) == 0 {
		c.addrs = c.ask()
	}
	for len(c.addrs) > 0 {
		if strings.Count(c.addrs[0], ":") == 1 {
			if nc, err := c.cfg.dial(c.ctx, c.addrs[0]); err == nil {
				return nc
			}
		}
		c.addrs = c.addrs[1:]
	}
	return nil
}

// ask asks the allocator, whose answer has to be in its simplest form.
func (c *javaClient) ask() []string {
	if c.cfg.alloc == nil {
		return []string{c.cfg.addr}
	}
	w := httptest.NewRecorder()
	c.cfg.alloc.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusOK || w.Body.Len() == 0 {
		return nil
	}
	return strings.Split(w.Body.String(), ",")
}

// serve is a connection's life. It tells whether to connect again.
func (c *javaClient) serve(nc net.Conn) bool {
	conn := &javaConn{c: c, nc: nc, began: time.Now(), heartbeat: javaHeartbeat, pending: make(map[int32]*javaRequest)}
	c.mu.Lock()
	c.conn = conn
	c.count.connects++
	c.count.unacked = 0
	c.lastWrite = time.Time{}
	if c.cfg.health > 0 {
		conn.health = time.AfterFunc(c.cfg.health, conn.check)
	}
	session := c.session
	if session != nil && !time.Now().Before(session.expires) {
		session, c.session = nil, nil
	}
	over := c.fate != javaAlive
	c.noteLocked()
	c.mu.Unlock()
	if over || c.ctx.Err() != nil {
		conn.close()
	}

	if session != nil {
		conn.fastConnect(session)
	} else {
		conn.handshake()
	}
	err := conn.read()

	c.mu.Lock()
	ours, doomed := conn.closed, conn.doomed
	conn.closeLocked()
	if !ours && (doomed || time.Since(conn.began) < javaBrink) {
		c.fate = javaWedged
	}
	over = c.fate != javaAlive
	c.noteLocked()
	c.mu.Unlock()
	nc.Close()
	if !over && !ours && err != io.EOF {
		return c.sleep(javaReset)
	}
	return !over
}

// close ends the connection, after which the client reconnects.
func (n *javaConn) close() {
	n.c.mu.Lock()
	n.closeLocked()
	n.c.mu.Unlock()
	n.nc.Close()
}

func (n *javaConn) closeLocked() {
	n.closed = true
	n.bound = false
	if n.health != nil {
		n.health.Stop()
	}
	for id, r := range n.pending {
		r.timer.Stop()
		delete(n.pending, id)
	}
}

// write writes packets that are complete.
func (n *javaConn) write(b []byte) {
	c := n.c
	c.mu.Lock()
	now := time.Now()
	if !c.lastWrite.IsZero() {
		c.count.longestGap = max(c.count.longestGap, now.Sub(c.lastWrite))
	}
	c.lastWrite = now
	c.mu.Unlock()
	n.writes.Lock()
	defer n.writes.Unlock()
	n.nc.Write(b) // an error is the reader's, too
}

// ask sends a request that is to be answered in time, if not after having been
// sent again some times.
func (n *javaConn) ask(cmd mpush.Cmd, flags mpush.Flags, body func() []byte, resend int) {
	c := n.c
	c.mu.Lock()
	if n.closed {
		c.mu.Unlock()
		return
	}
	c.seq++
	id := c.seq
	packet := mpush.AppendPacket(nil, cmd, flags, id, body())
	r := &javaRequest{cmd: cmd}
	r.timer = time.AfterFunc(c.cfg.timeout, func() {
		c.mu.Lock()
		if n.pending[id] != r {
			c.mu.Unlock()
			return
		}
		again := resend > 0
		if again {
			resend--
			c.count.resends++
			r.timer.Reset(c.cfg.timeout)
		}
		c.mu.Unlock()
		if again {
			n.write(packet)
		} else {
			n.close()
		}
	})
	n.pending[id] = r
	c.mu.Unlock()
	n.write(packet)
}

func (n *javaConn) handshake() {
	h := mpush.Handshake{
		DeviceID: n.c.cfg.device, OSName: n.c.cfg.os, OSVersion: "9", ClientVersion: "0.8.1",
		IV: make([]byte, mpush.KeyLen), ClientKey: make([]byte, mpush.KeyLen),
		MinHeartbeat: int32(javaHeartbeat.Milliseconds()), MaxHeartbeat: int32(javaHeartbeat.Milliseconds()),
	}
	rand.Read(h.IV)
	rand.Read(h.ClientKey)
	n.ask(mpush.CmdHandshake, mpush.FlagCrypto, func() []byte {
		body, err := n.c.cfg.key.Encrypt(h.Append(nil))
		if err != nil {
			panic(err)
		}
		n.cipher, _ = mpush.NewCipher(h.ClientKey, h.IV)
		n.switched = false
		return body
	}, 0)
}

func (n *javaConn) fastConnect(s *javaSession) {
	f := mpush.FastConnect{
		SessionID: s.token, DeviceID: n.c.cfg.device,
		MinHeartbeat: int32(javaHeartbeat.Milliseconds()), MaxHeartbeat: int32(javaHeartbeat.Milliseconds()),
	}
	n.ask(mpush.CmdFastConnect, 0, func() []byte {
		n.cipher, n.switched = s.cipher, true
		return f.Append(nil)
	}, 0)
}

// bind binds the app's user, if there is one.
func (n *javaConn) bind() {
	c := n.c
	c.mu.Lock()
	user := c.user
	again := user == "" || user == n.user
	if !again {
		n.user = user
		c.count.binds++
	}
	c.mu.Unlock()
	if again {
		return
	}
	b := mpush.Bind{UserID: user}
	n.ask(mpush.CmdBind, mpush.FlagCrypto, func() []byte { return n.cipher.Append(nil, b.Append(nil)) }, 1)
}

// unbind gives the user up, for later connections too.
func (n *javaConn) unbind() {
	c := n.c
	c.mu.Lock()
	b := mpush.Bind{UserID: c.user}
	if b.UserID == "" {
		c.mu.Unlock()
		return
	}
	c.user, n.user = "", ""
	c.seq++
	packet := mpush.AppendPacket(nil, mpush.CmdUnbind, mpush.FlagCrypto, c.seq, n.cipher.Append(nil, b.Append(nil)))
	c.mu.Unlock()
	n.write(packet)
}

// check is the app's call of healthCheck.
func (n *javaConn) check() {
	c := n.c
	c.mu.Lock()
	if n.closed {
		c.mu.Unlock()
		return
	}
	n.health.Reset(c.cfg.health)
	now := time.Now()
	if c.misses++; now.Sub(c.lastRead) <= n.heartbeat+time.Second {
		c.misses = 0
	}
	dead := c.misses >= 2
	beat := now.Sub(c.lastWrite) > n.heartbeat-time.Second
	if dead {
		c.misses = 0
	} else if beat {
		c.count.beats++
	}
	c.mu.Unlock()
	switch {
	case dead:
		n.close()
	case beat:
		n.write([]byte{mpush.Beat})
	}
}

// read reads until the end.
func (n *javaConn) read() error {
	r := mpush.Reader{Max: -1}
	buf := make([]byte, 4<<10)
	for {
		m, err := n.nc.Read(buf)
		n.c.mu.Lock()
		n.c.lastRead = time.Now()
		n.c.mu.Unlock()
		for in := buf[:m]; len(in) > 0; {
			var p mpush.Packet
			used, broken := r.Next(in, &p)
			if broken != nil {
				return broken
			}
			in = in[used:]
			if p.OK {
				p.Body = append([]byte(nil), p.Body...)
				n.c.dispatch(javaPacket{n, p})
			}
		}
		if err != nil {
			return err
		}
	}
}

// dispatch hands a packet to a thread, now or later, or loses it.
func (c *javaClient) dispatch(p javaPacket) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.conn.closed {
		return
	}
	var e mpush.Error
	switch {
	case p.Beat:
	case p.Cmd == mpush.CmdError && e.Decode(p.Body) == nil:
		p.conn.doomed = e.Cmd != mpush.CmdFastConnect && e.Cmd != mpush.CmdHandshake
	case p.Cmd == mpush.CmdPush || p.Cmd == mpush.CmdKick:
		if p.conn.user == "" && c.user != "" {
			c.count.early++
		}
		if p.Cmd == mpush.CmdPush && p.Flags&mpush.FlagAutoAck != 0 {
			c.count.unacked++
			c.count.mostUnacked = max(c.count.mostUnacked, c.count.unacked)
		}
	}
	switch {
	case c.workers < javaCore, c.workers < javaThreads && len(c.queue) >= javaQueue:
		c.workers++
		c.work.Go(func() { c.handleAll(p) })
	case len(c.queue) < javaQueue:
		c.queue = append(c.queue, p)
	default:
		c.count.lost++
	}
}

// handleAll is a thread that handles packets while there are some.
func (c *javaClient) handleAll(p javaPacket) {
	for {
		c.handle(p)
		c.mu.Lock()
		if len(c.queue) == 0 {
			c.workers--
			c.noteLocked()
			c.mu.Unlock()
			return
		}
		p, c.queue = c.queue[0], c.queue[1:]
		c.mu.Unlock()
	}
}

// handle handles a packet, on the connection there is now. An exception makes
// it reconnect.
func (c *javaClient) handle(p javaPacket) {
	if p.Beat || c.ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	n := c.conn
	if r := n.pending[p.ID]; r != nil { // whatever it is
		r.timer.Stop()
		delete(n.pending, p.ID)
		if p.Cmd != r.cmd && p.Cmd != mpush.CmdOK && p.Cmd != mpush.CmdError {
			c.count.answeredWrong++
		}
	}
	cipher, switched := n.cipher, n.switched
	c.mu.Unlock()

	body, err := p.open(cipher)
	if err == nil {
		switch p.Cmd {
		case mpush.CmdHandshake:
			err = n.handshakeOK(body)
		case mpush.CmdFastConnect:
			err = n.fastConnectOK(body)
		case mpush.CmdOK:
			err = n.ok(body)
		case mpush.CmdError:
			err = n.refused(body)
		case mpush.CmdKick:
			err = n.kicked(body, switched)
		case mpush.CmdPush:
			err = n.pushed(&p, body, switched)
		}
	}
	if err != nil {
		c.mu.Lock()
		c.count.exceptions++
		c.errorLocked("%v", err)
		c.mu.Unlock()
		n.close()
	}
}

// open decrypts and inflates a packet's body.
func (p *javaPacket) open(cipher *mpush.Cipher) (body []byte, err error) {
	body = p.Body
	if p.Flags&mpush.FlagCrypto != 0 && len(body) > 0 {
		if cipher == nil {
			return nil, errors.New("encrypted without a key")
		}
		if body, err = cipher.Open(body); err != nil {
			return nil, err
		}
	}
	if p.Flags&mpush.FlagCompress != 0 && len(body) > 0 {
		return mpush.Inflate(body, 64<<20)
	}
	return body, nil
}

func (n *javaConn) handshakeOK(body []byte) error {
	c := n.c
	var h mpush.HandshakeOK
	if err := h.Decode(body); err != nil {
		return err
	}
	if len(h.ServerKey) != mpush.KeyLen {
		return fmt.Errorf("a server's key of %d bytes", len(h.ServerKey))
	}
	c.sleep(javaSwitch)
	c.mu.Lock()
	if n.closed {
		c.mu.Unlock()
		return nil
	}
	clientKey, iv := n.cipher.Key(), n.cipher.IV()
	key := mpush.MixKey(clientKey[:], h.ServerKey)
	n.cipher, _ = mpush.NewCipher(key[:], iv[:])
	n.switched = true
	n.heartbeat = time.Duration(h.Heartbeat) * time.Millisecond
	c.count.handshakes++
	if h.SessionID != "" {
		c.session = &javaSession{h.SessionID, time.UnixMilli(h.ExpireTime), n.cipher}
	}
	c.mu.Unlock()
	n.bind()
	return nil
}

func (n *javaConn) fastConnectOK(body []byte) error {
	var f mpush.FastConnectOK
	if err := f.Decode(body); err != nil {
		return err
	}
	n.c.mu.Lock()
	n.heartbeat = time.Duration(f.Heartbeat) * time.Millisecond
	n.c.count.fastConnects++
	n.c.mu.Unlock()
	n.bind()
	return nil
}

func (n *javaConn) ok(body []byte) error {
	var o mpush.OK
	if err := o.Decode(body); err != nil {
		return err
	}
	c := n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.noteLocked()
	switch {
	case n.closed:
	case o.Cmd == mpush.CmdBind:
		c.count.bound++
		n.bound = true
		c.boundAt = time.Now()
	case o.Cmd == mpush.CmdUnbind:
		c.count.unbound++
		n.bound = false
	}
	return nil
}

// refused is what it makes of an ERROR.
func (n *javaConn) refused(body []byte) error {
	var e mpush.Error
	if err := e.Decode(body); err != nil {
		return err
	}
	c := n.c
	c.mu.Lock()
	c.errorLocked("%d %d %s", e.Cmd, e.Code, e.Reason)
	switch {
	case e.Cmd == mpush.CmdFastConnect:
		c.session = nil
		c.mu.Unlock()
		n.handshake()
		return nil
	case e.Cmd == mpush.CmdHandshake && e.Code == mpush.CodeRepeat:
		c.mu.Unlock()
		return nil
	case e.Cmd == mpush.CmdHandshake:
		c.fate = javaStopped
		c.mu.Unlock()
	default:
		c.mu.Unlock()
		c.sleep(javaSwitch) // in which the reader may meet the end
	}
	n.close()
	return nil
}

func (n *javaConn) kicked(body []byte, switched bool) error {
	var k mpush.Kick
	if err := k.Decode(body); err != nil || !switched {
		return fmt.Errorf("KICK: %v", err)
	}
	c := n.c
	c.mu.Lock()
	c.count.kicks++
	if k.DeviceID != c.cfg.device || k.UserID != c.cfg.user {
		c.errorLocked("KICK for %s of %s", k.DeviceID, k.UserID)
	}
	c.noteLocked()
	c.mu.Unlock()
	if c.cfg.unbinds {
		n.unbind()
	}
	return nil
}

func (n *javaConn) pushed(p *javaPacket, body []byte, switched bool) error {
	switch {
	case len(body) == 0:
		return errors.New("PUSH without a body")
	case !switched:
		return errors.New("PUSH before the key was there")
	}
	c := n.c
	if !c.sleep(c.cfg.service) {
		return nil
	}
	c.mu.Lock()
	c.count.pushes++
	auto := p.Flags&mpush.FlagAutoAck != 0
	if auto {
		c.count.acks++
		c.count.unacked--
	}
	c.noteLocked()
	c.mu.Unlock()
	if auto {
		n.write(mpush.AppendPacket(nil, mpush.CmdAck, 0, p.ID, nil))
	}
	return nil
}

// javaStub is one connection of a server that does what a test says, to see
// that javaClient is the client it is meant to be.
type javaStub struct {
	t      testing.TB
	nc     net.Conn
	reader mpush.Reader
	in     []byte
	first  *mpush.Cipher // of the client's key
	cipher *mpush.Cipher // of the session's
}

var javaStubKey = sync.OnceValue(func() *mpush.PrivateKey {
	key, err := mpush.ParsePrivateKey([]byte(mpush.StockPrivateKey))
	if err != nil {
		panic(err)
	}
	return key
})

// next is the client's next packet; false: it closed.
func (s *javaStub) next() (p mpush.Packet, ok bool) {
	buf := make([]byte, 4<<10)
	for {
		used, err := s.reader.Next(s.in, &p)
		if err != nil {
			s.t.Errorf("the client sent what cannot be: %v", err)
			return p, false
		}
		if s.in = s.in[used:]; p.OK {
			return p, true
		}
		n, err := s.nc.Read(buf)
		if n == 0 && err != nil {
			return p, false
		}
		s.in = append(s.in, buf[:n]...)
	}
}

// wants the client's next packet to be cmd.
func (s *javaStub) wants(cmd mpush.Cmd) (p mpush.Packet) {
	s.t.Helper()
	p, ok := s.next()
	if !ok || p.Beat || p.Cmd != cmd {
		s.t.Errorf("the client sent %+v (%v), want command %d", p, ok, cmd)
	}
	return p
}

func (s *javaStub) sends(cmd mpush.Cmd, flags mpush.Flags, id int32, body []byte, c *mpush.Cipher) {
	if c != nil {
		flags, body = flags|mpush.FlagCrypto, c.Append(nil, body)
	}
	s.nc.Write(mpush.AppendPacket(nil, cmd, flags, id, body))
}

func (s *javaStub) refuses(cmd mpush.Cmd, id int32, code int8) {
	e := mpush.Error{Cmd: cmd, Code: code, Reason: "no"}
	s.sends(mpush.CmdError, 0, id, e.Append(nil), nil)
}

func (s *javaStub) oks(cmd mpush.Cmd, id int32) {
	o := mpush.OK{Cmd: cmd}
	s.sends(mpush.CmdOK, 0, id, o.Append(nil), nil)
}

// shakes answers a HANDSHAKE.
func (s *javaStub) shakes(heartbeat time.Duration, token string) {
	s.t.Helper()
	p := s.wants(mpush.CmdHandshake)
	var h mpush.Handshake
	if err := h.Decode(javaStubKey().Decrypt(p.Body)); err != nil {
		s.t.Errorf("HANDSHAKE: %v", err)
		return
	}
	ok := mpush.HandshakeOK{ServerKey: make([]byte, mpush.KeyLen), Heartbeat: int32(heartbeat.Milliseconds())}
	if token != "" {
		ok.SessionID, ok.ExpireTime = token, time.Now().Add(time.Hour).UnixMilli()
	}
	rand.Read(ok.ServerKey)
	key := mpush.MixKey(h.ClientKey, ok.ServerKey)
	s.first, _ = mpush.NewCipher(h.ClientKey, h.IV)
	s.cipher, _ = mpush.NewCipher(key[:], h.IV)
	s.sends(mpush.CmdHandshake, 0, p.ID, ok.Append(nil), s.first)
}

// binds answers what comes up to a BIND.
func (s *javaStub) binds() {
	s.t.Helper()
	s.shakes(time.Minute, "")
	s.oks(mpush.CmdBind, s.wants(mpush.CmdBind).ID)
}

func (s *javaStub) pushes(flags mpush.Flags, id int32, content string) {
	if content == "" {
		s.sends(mpush.CmdPush, flags, id, nil, nil)
	} else {
		s.sends(mpush.CmdPush, flags, id, []byte(content), s.cipher)
	}
}

// TestJavaClientIsTheClientItImitates holds the imitation against the facts.
func TestJavaClientIsTheClientItImitates(t *testing.T) {
	const user, device = "alice", "phone"
	type want struct {
		attempts, connects int
		fate               javaFate
		check              func(c *javaClient, n javaCounts) bool // nil: nothing more
	}
	for _, tt := range []struct {
		name  string
		after time.Duration
		serve func(s *javaStub, i int) // the i-th connection, from 0; it is closed in the end
		want  want
	}{
		{"closed at once", time.Hour, func(s *javaStub, i int) {}, want{1, 1, javaWedged, nil}},
		{"closed after a second", 2500 * time.Millisecond, func(s *javaStub, i int) {
			s.wants(mpush.CmdHandshake)
			time.Sleep(time.Second)
		}, want{3, 3, javaAlive, nil}},
		{"reset after a second", 2500 * time.Millisecond, func(s *javaStub, i int) { time.Sleep(time.Second) }, want{2, 2, javaAlive, nil}},
		{"an ERROR and a close", time.Hour, func(s *javaStub, i int) {
			s.shakes(time.Minute, "")
			time.Sleep(time.Second)
			s.refuses(mpush.CmdBind, s.wants(mpush.CmdBind).ID, 0)
		}, want{1, 1, javaWedged, nil}},
		{"ERRORs at once use up its attempts", time.Minute, func(s *javaStub, i int) {
			s.shakes(time.Minute, "")
			s.refuses(mpush.CmdBind, s.wants(mpush.CmdBind).ID, 0)
			s.next()
		}, want{1001, 1001, javaExhausted, nil}},
		{"handshake without an answer", 7 * time.Second, func(s *javaStub, i int) {
			s.wants(mpush.CmdHandshake)
			s.next()
		}, want{3, 3, javaAlive, func(_ *javaClient, n javaCounts) bool { return n.resends == 0 }}},
		{"BIND without an answer", 7 * time.Second, func(s *javaStub, i int) {
			s.shakes(time.Minute, "")
			first, begin := s.wants(mpush.CmdBind), time.Now()
			if i > 0 {
				s.next()
				return
			}
			first.Body = append([]byte(nil), first.Body...)
			again := s.wants(mpush.CmdBind)
			if d := time.Since(begin).Round(time.Second); again.ID != first.ID || string(again.Body) != string(first.Body) || d != 3*time.Second {
				t.Errorf("BIND %d came again as %d after %s, want the same after 3 s", first.ID, again.ID, d)
			}
			if p, ok := s.next(); ok {
				t.Errorf("the client sent %+v, want it to reconnect", p)
			}
		}, want{2, 2, javaAlive, func(_ *javaClient, n javaCounts) bool { return n.resends == 1 }}},
		{"something with the BIND's id", time.Hour, func(s *javaStub, i int) {
			s.shakes(4*time.Minute, "")
			s.pushes(0, s.wants(mpush.CmdBind).ID, "hello")
			for {
				if _, ok := s.next(); !ok {
					return
				}
				s.nc.Write([]byte{mpush.Beat})
			}
		}, want{1, 1, javaAlive, func(_ *javaClient, n javaCounts) bool { return n.answeredWrong == 1 && n.resends == 0 && n.bound == 0 }}},
		{"a repeated handshake", time.Second, func(s *javaStub, i int) {
			s.binds()
			s.refuses(mpush.CmdHandshake, 0, mpush.CodeRepeat)
			s.next()
		}, want{1, 1, javaAlive, nil}},
		{"an ERROR about its handshake", time.Hour, func(s *javaStub, i int) {
			s.refuses(mpush.CmdHandshake, s.wants(mpush.CmdHandshake).ID, mpush.CodeHandler)
			s.next()
		}, want{1, 1, javaStopped, nil}},
		{"an ERROR about its fast connect", time.Second, func(s *javaStub, i int) {
			if i == 0 {
				s.shakes(time.Minute, "token")
				s.wants(mpush.CmdBind)
				time.Sleep(100 * time.Millisecond)
				return
			}
			s.refuses(mpush.CmdFastConnect, s.wants(mpush.CmdFastConnect).ID, mpush.CodeExpired)
			s.binds()
			s.next()
		}, want{2, 2, javaAlive, func(c *javaClient, n javaCounts) bool {
			return n.handshakes == 2 && n.fastConnects == 0 && n.bound == 1 && c.session == nil
		}}},
		{"a push before its key", 100 * time.Millisecond, func(s *javaStub, i int) {
			if i > 0 {
				s.binds()
				s.next()
				return
			}
			s.shakes(time.Minute, "")
			time.Sleep(javaSwitch / 2)
			s.pushes(0, 0, "hello")
			s.next()
		}, want{2, 2, javaAlive, func(_ *javaClient, n javaCounts) bool { return n.early == 1 && n.exceptions == 1 && n.pushes == 0 }}},
		{"an empty push", 100 * time.Millisecond, func(s *javaStub, i int) {
			s.binds()
			if i == 0 {
				s.pushes(0, 0, "")
			}
			s.next()
		}, want{2, 2, javaAlive, func(_ *javaClient, n javaCounts) bool { return n.exceptions == 1 }}},
		{"pushes with and without acks", 100 * time.Millisecond, func(s *javaStub, i int) {
			s.binds()
			s.pushes(0, 0, "one")
			s.pushes(mpush.FlagBizAck, 1<<30, "two")
			s.pushes(mpush.FlagAutoAck, 1<<30+1, "three")
			if p := s.wants(mpush.CmdAck); p.ID != 1<<30+1 || p.Len != 0 {
				t.Errorf("%+v, want an ACK of the third", p)
			}
			s.next()
		}, want{1, 1, javaAlive, func(_ *javaClient, n javaCounts) bool { return n.pushes == 3 && n.acks == 1 }}},
		{"a silent server", 150 * time.Second, func(s *javaStub, i int) {
			s.binds() // with a heartbeat of a minute: misses after 70 and 80 s
			for {
				if _, ok := s.next(); !ok {
					return
				}
			}
		}, want{2, 2, javaAlive, func(_ *javaClient, n javaCounts) bool { return n.beats == 2 }}},
		{"nobody listens", 70 * time.Second, nil, want{11, 0, javaAlive, nil}}, // 0+0+3+…+10 = 52 s, then it pauses
		{"nobody listens for long", 12 * time.Minute, nil, want{22, 0, javaAlive, nil}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newJavaNet(t)
				w.Host(serverIP)
				if tt.serve != nil {
					l := w.listen(serverIP)
					var stubs sync.WaitGroup
					stubs.Go(func() {
						for i := 0; ; i++ {
							nc, err := l.Accept()
							if err != nil {
								return
							}
							stubs.Go(func() {
								defer nc.Close()
								tt.serve(&javaStub{t: t, nc: nc, reader: mpush.Reader{Max: -1}}, i)
							})
						}
					})
					defer stubs.Wait()
					defer l.Close()
				}
				c := newJavaClient(t, javaConfig{user: user, device: device, dial: w.dialFrom(clientIP), addr: javaAddr})
				defer c.stops()
				time.Sleep(tt.after)
				synctest.Wait()
				n, fate := c.counts(), c.is()
				if n.attempts != tt.want.attempts || n.connects != tt.want.connects || fate != tt.want.fate || tt.want.check != nil && !tt.want.check(c, n) {
					t.Errorf("%q %+v, want %q after %d attempts and %d connections", fate, n, tt.want.fate, tt.want.attempts, tt.want.connects)
				}
			})
		})
	}
}

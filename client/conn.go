package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/mpush"
)

// conn is one connection.
type conn struct {
	c *Client
	r *run

	// Static.
	addr   string          // of Config.Addrs or the allocator's
	raw    *countedConn    // below TLS and WebSocket
	nc     net.Conn        // what packets go through; nil: ws
	ws     *websocket.Conn // nil: nc
	secure bool            // TLS protects it
	ended  chan struct{}   // closed when it has a reason

	// The reading goroutine's; the cipher and what follows it are static once
	// the session is open.
	packets   mpush.Reader
	buf       []byte
	rest      []byte    // of buf: read and not looked at
	message   io.Reader // of ws: the one that is being read; nil: none
	misread   bool      // the server could not read a request
	cipher    *mpush.Cipher
	openedAt  time.Time // zero: never
	heartbeat time.Duration

	writing sync.Mutex // held while bytes are written, but by nobody who holds another lock
	dead    bool       // guarded by writing: nothing is written any more

	kickedUser string // guarded by Client.mu: the last user who was kicked here

	mu       sync.Mutex
	reason   error       // guarded by mu: why it ended; nil: it has not
	stalled  bool        // guarded by mu: it is not read because hooks are behind
	quiet    time.Time   // guarded by mu: since when nothing came, or the last miss
	wrote    time.Time   // guarded by mu
	misses   int         // guarded by mu
	reads    int         // guarded by mu: counts them
	beats    *time.Timer // guarded by mu: of check; nil: none yet, or never again
	probing  *time.Timer // guarded by mu: of probe
	binding  *time.Timer // guarded by mu: of a BIND without an answer
	bindCall *call       // guarded by mu: that binding is about; nil: it is answered
	repeated bool        // guarded by mu: bindCall was written twice
}

// countedConn counts what was written to it.
type countedConn struct {
	net.Conn
	written atomic.Int64
	left    int // the reading goroutine's: bytes that an upgrade may still read, plus one; 0: any number
}

func (c *countedConn) Read(b []byte) (int, error) {
	if c.left == 0 {
		return c.Conn.Read(b)
	}
	if c.left == 1 {
		return 0, fmt.Errorf("%w: an upgrade of more than %d bytes", ErrProtocol, maxUpgrade)
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left-1)])
	c.left -= n
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// dial reaches one server, up to where packets can be exchanged.
func (c *Client) dial(r *run, addr string) (*conn, error) {
	ctx, stop := context.WithTimeout(r.ctx, dialTimeout)
	defer stop()
	cn := &conn{c: c, r: r, addr: addr, packets: mpush.Reader{Max: c.cfg.MaxMessage}, buf: make([]byte, 4<<10), ended: make(chan struct{})}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := c.cfg.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		cn.raw = &countedConn{Conn: nc}
		return cn.raw, nil
	}
	if strings.Contains(addr, "://") {
		return cn, cn.dialWebSocket(ctx, addr, dial)
	}
	nc, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if cn.nc = nc; c.cfg.TLS == nil {
		return cn, nil
	}
	cfg := c.cfg.TLS.Clone()
	host, _, _ := net.SplitHostPort(addr)
	cfg.ServerName = cmp.Or(cfg.ServerName, host)
	secure := tls.Client(nc, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	cn.nc, cn.secure = secure, true
	return cn, nil
}

// wsBuffers are needed while a packet is written, and not between two.
var wsBuffers sync.Pool

func (cn *conn) dialWebSocket(ctx context.Context, url string, dial func(context.Context, string, string) (net.Conn, error)) error {
	stop := func() bool { return true }
	dialer := websocket.Dialer{
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := dial(ctx, network, addr)
			if err == nil {
				cn.raw.left = maxUpgrade + 1
				stop = context.AfterFunc(ctx, func() { nc.Close() })
			}
			return nc, err
		},
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: cn.c.cfg.TLS.Clone(),
		Subprotocols: []string{"mpush"}, ReadBufferSize: 1 << 10, WriteBufferPool: &wsBuffers,
	}
	ws, resp, err := dialer.DialContext(ctx, url, nil)
	if !stop() && err == nil {
		ws.Close()
		return ctx.Err()
	}
	if err != nil {
		if errors.Is(err, websocket.ErrBadHandshake) && resp != nil {
			err = fmt.Errorf("the upgrade came back with status %d, want 101: %w", resp.StatusCode, err)
		}
		return err
	}
	if ws.Subprotocol() != "mpush" {
		ws.Close()
		return fmt.Errorf("%w: it took subprotocol %.40q, want %q", ErrProtocol, ws.Subprotocol(), "mpush")
	}
	ws.SetPingHandler(func(data string) error { // by the writer, so that nobody else writes
		cn.c.offer(&call{only: cn, pong: true, body: []byte(data)})
		return nil
	})
	cn.raw.left = 0
	cn.ws, cn.secure = ws, strings.HasPrefix(url, "wss:")
	return nil
}

// live is a connection's life after it was dialled. It returns why it ended.
func (cn *conn) live() error {
	c := cn.c
	defer context.AfterFunc(cn.r.ctx, func() { cn.fail(context.Cause(cn.r.ctx)) })()
	c.cfg.Logger.Debug("client: connected", "addr", cn.raw.RemoteAddr())
	cn.tell(0, func() {
		c.mu.Lock()
		c.server = cn.addr
		c.mu.Unlock()
		if hook := c.cfg.OnConnected; hook != nil {
			hook(c)
		}
	})
	err := cn.open()
	for err == nil {
		var p mpush.Packet
		if err = cn.next(&p); err == nil {
			err = cn.handle(&p)
		}
	}
	cn.fail(err)
	cn.bury()
	reason := cn.why()
	if cn.misread || errors.Is(reason, ErrProtocol) { // as when the keys of a stored session are not the server's
		c.forget()
	}
	c.cfg.Logger.Debug("client: disconnected", "reason", reason)
	cn.tell(0, func() {
		if hook := c.cfg.OnDisconnected; hook != nil {
			hook(c, reason)
		}
	})
	return reason
}

// fail ends the connection, for the first reason that is given. Whoever reads
// or writes finds out.
func (cn *conn) fail(reason error) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	cn.failLocked(reason)
}

func (cn *conn) failLocked(reason error) {
	if cn.reason != nil {
		return
	}
	cn.reason = reason
	close(cn.ended)
	for _, t := range []**time.Timer{&cn.beats, &cn.probing, &cn.binding} {
		if *t != nil {
			(*t).Stop()
			*t = nil
		}
	}
	cn.raw.Close() // not TLS's: that would wait for a peer who does not read
}

// bury waits for who writes, and settles the requests of the connection. It may
// come twice.
func (cn *conn) bury() {
	c := cn.c
	c.mu.Lock()
	if c.conn == cn {
		c.conn = nil
		c.changedLocked()
	}
	c.mu.Unlock()
	cn.writing.Lock()
	cn.dead = true
	cn.writing.Unlock()

	reason := cn.why()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.calls {
		if p.on == cn {
			c.settleLocked(p, uncertain(reason))
		}
	}
	if l := c.login; l != nil {
		if l.sentLocked() {
			l.settleLocked(uncertain(reason))
		}
		l.call, l.bound = nil, false
	}
}

// open opens the session, binds the user and lets the writer begin.
func (cn *conn) open() error {
	c := cn.c
	if c.key == nil && !cn.secure && !c.warned && !isLoopback(cn.raw.RemoteAddr()) {
		c.warned = true
		c.cfg.Logger.Warn("client: nothing is encrypted: set Config.PublicKey, or use TLS", "addr", cn.raw.RemoteAddr())
	}
	err := cn.fastConnect()
	var fresh *session // nil: an old one was resumed
	if err == nil && cn.cipher == nil {
		fresh, err = cn.shakeHands()
	}
	if err != nil {
		return err
	}
	cn.raw.SetReadDeadline(time.Time{})
	now := time.Now()
	cn.openedAt = now
	cn.heartbeat = max(cn.heartbeat, time.Second) // whatever the server says

	cn.mu.Lock()
	cn.quiet, cn.wrote = now, now
	if cn.reason == nil {
		cn.beats = time.AfterFunc(cn.heartbeat, func() { cn.check() })
	}
	cn.mu.Unlock()
	c.cfg.Logger.Debug("client: session open", "heartbeat", cn.heartbeat, "fast", fresh == nil)
	c.outageEnds()
	cn.tell(0, func() {
		if hook := c.cfg.OnHandshakeOk; hook != nil {
			hook(c, cn.heartbeat)
		}
	})
	if err := cn.publish(); err != nil {
		return err
	}
	if fresh != nil && fresh.token != "" && fresh.expires.UnixMilli() > 0 {
		c.save(fresh)
	}
	return nil
}

// publish binds who is to be bound and then lets everybody write.
func (cn *conn) publish() error {
	c := cn.c
	var bound *login
	for {
		c.mu.Lock()
		l := c.login
		if l == bound {
			c.conn = cn
			c.changedLocked()
			select {
			case <-c.wake: // it is of no use any more
			default:
			}
			c.mu.Unlock()
			return nil
		}
		var p *call
		if l != nil {
			p = c.bindCallLocked(l, cn)
		} else { // Unbind came while its user was being bound
			cn.awaitBind(nil)
			p = c.newCallLocked(&call{cmd: mpush.CmdUnbind, body: bound.unbind(), until: time.Now().Add(writeTimeout), only: cn, waits: true})
		}
		c.mu.Unlock()
		bound = l
		if _, _, err := cn.writeCall(nil, p); err != nil {
			c.settle(p, err)
			return err
		}
	}
}

// fastConnect tries the stored session. It sets the cipher if that is open;
// with neither a cipher nor an error a handshake has to follow.
func (cn *conn) fastConnect() error {
	c := cn.c
	s := c.load()
	if s == nil {
		return nil
	}
	ms := int32(c.cfg.Heartbeat.Milliseconds())
	body := mpush.FastConnect{SessionID: s.token, DeviceID: c.cfg.DeviceID, MinHeartbeat: ms, MaxHeartbeat: ms}
	p, err := cn.ask(mpush.CmdFastConnect, 0, body.Append(nil))
	if err != nil {
		if e := (*Error)(nil); errors.As(err, &e) {
			c.cfg.Logger.Debug("client: fast connect refused, handshake follows", "code", e.Code)
			c.mute = 0
			c.forget()
			return nil
		}
		if cn.r.ctx.Err() == nil {
			c.mute++
		}
		if c.mute >= 2 { // it may be the session that the server cannot take
			c.mute = 0
			c.forget()
		}
		return err
	}
	c.mute = 0
	cn.cipher = s.cipher
	var ok mpush.FastConnectOK
	if err := cn.read(p, ok.Decode); err != nil {
		return err
	}
	cn.heartbeat = time.Duration(ok.Heartbeat) * time.Millisecond
	return nil
}

// handshake is the body of a HANDSHAKE.
func (c *Client) handshake(key, iv []byte) []byte {
	ms := int32(c.cfg.Heartbeat.Milliseconds())
	h := mpush.Handshake{
		DeviceID: c.cfg.DeviceID, OSName: c.cfg.OSName, OSVersion: c.cfg.OSVersion, ClientVersion: c.cfg.ClientVersion,
		IV: iv, ClientKey: key, MinHeartbeat: ms, MaxHeartbeat: ms,
	}
	return h.Append(nil)
}

func (cn *conn) shakeHands() (*session, error) {
	c := cn.c
	key, iv := make([]byte, mpush.KeyLen), make([]byte, mpush.KeyLen)
	rand.Read(key)
	rand.Read(iv)
	body, flags := c.handshake(key, iv), mpush.Flags(0)
	if c.key != nil {
		var err error
		if body, err = c.key.Encrypt(body); err != nil {
			return nil, err
		}
		flags = mpush.FlagCrypto
	}
	p, err := cn.ask(mpush.CmdHandshake, flags, body)
	if err != nil {
		return nil, err
	}
	first, err := mpush.NewCipher(key, iv)
	if err != nil {
		return nil, err
	}
	cn.cipher = first
	var ok mpush.HandshakeOK
	if err := cn.read(p, ok.Decode); err != nil {
		return nil, err
	}
	if len(ok.ServerKey) != mpush.KeyLen {
		return nil, fmt.Errorf("%w: a server key of %d bytes, want %d", ErrProtocol, len(ok.ServerKey), mpush.KeyLen)
	}
	mixed := mpush.MixKey(key, ok.ServerKey)
	if cn.cipher, err = mpush.NewCipher(mixed[:], iv); err != nil {
		return nil, err
	}
	cn.heartbeat = time.Duration(ok.Heartbeat) * time.Millisecond
	return &session{token: ok.SessionID, expires: time.UnixMilli(ok.ExpireTime), cipher: cn.cipher}, nil
}

// ask sends one of the two packets that open a session, and returns its
// answer. An ERROR is an *Error.
func (cn *conn) ask(cmd mpush.Cmd, flags mpush.Flags, body []byte) (*mpush.Packet, error) {
	id := cn.c.nextID()
	cn.raw.SetReadDeadline(time.Now().Add(handshakeTimeout))
	if err := cn.writeBytes(mpush.AppendPacket(nil, cmd, flags, id, body)); err != nil {
		return nil, err
	}
	cn.c.cfg.Logger.Debug("client: do "+commandName(cmd), "id", id)
	for {
		p := new(mpush.Packet)
		if err := cn.next(p); err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				err = fmt.Errorf("%w: no answer to the %s within %v", ErrSilent, commandName(cmd), handshakeTimeout)
			}
			return nil, err
		}
		switch {
		case p.Beat:
		case p.Cmd == cmd && p.ID == id:
			return p, nil
		case p.Cmd == mpush.CmdError:
			var e mpush.Error
			if err := cn.read(p, e.Decode); err != nil {
				return nil, err
			}
			if e.Cmd == cmd && p.ID == id {
				return nil, newError(&e)
			}
		case p.Cmd == mpush.CmdPush, p.Cmd == mpush.CmdKick, p.Cmd == mpush.CmdHandshake, p.Cmd == mpush.CmdFastConnect:
			return nil, fmt.Errorf("%w: cmd %d with id %d, want the answer to %s %d", ErrProtocol, p.Cmd, p.ID, commandName(cmd), id)
		}
	}
}

// next reads until there is a packet or a heartbeat. p.Body is good until the
// next call.
func (cn *conn) next(p *mpush.Packet) error {
	for {
		for len(cn.rest) > 0 {
			n, err := cn.packets.Next(cn.rest, p)
			cn.rest = cn.rest[n:]
			if err != nil {
				return fmt.Errorf("%w: cmd %d with a body of %d bytes, want 0 to %d", ErrProtocol, p.Cmd, p.Len, cn.packets.Max)
			}
			if p.OK {
				return nil
			}
		}
		n, err := cn.readBytes(cn.buf)
		if n == 0 && err != nil {
			return err
		}
		cn.rest = cn.buf[:n]
		cn.mu.Lock()
		cn.quiet, cn.misses = time.Now(), 0
		cn.reads++
		cn.mu.Unlock()
	}
}

// readBytes reads what the server sent next.
func (cn *conn) readBytes(b []byte) (int, error) {
	if cn.nc != nil {
		return cn.nc.Read(b)
	}
	for {
		if cn.message == nil {
			kind, r, err := cn.ws.NextReader()
			if err != nil {
				if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived, websocket.CloseAbnormalClosure) {
					err = fmt.Errorf("%w: %w", io.EOF, err)
				}
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, fmt.Errorf("%w: a text message, want binary ones", ErrProtocol)
			}
			cn.message = r
		}
		n, err := cn.message.Read(b)
		if err == io.EOF {
			cn.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// body is a packet's body decrypted and inflated; it may point into the
// packet's.
func (cn *conn) body(p *mpush.Packet) (body []byte, err error) {
	if body = p.Body; len(body) == 0 {
		return nil, nil
	}
	if p.Flags&mpush.FlagCrypto != 0 {
		if cn.cipher == nil {
			return nil, fmt.Errorf("%w: %s encrypted before there is a key", ErrProtocol, commandName(p.Cmd))
		}
		if body, err = cn.cipher.Open(body); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrProtocol, commandName(p.Cmd), err)
		}
	} else if cn.c.key != nil {
		switch p.Cmd {
		case mpush.CmdHandshake, mpush.CmdPush, mpush.CmdKick:
			return nil, errPlain(p.Cmd)
		}
	}
	if p.Flags&mpush.FlagCompress != 0 {
		if body, err = mpush.Inflate(body, cn.packets.Max); err != nil {
			return nil, fmt.Errorf("%w: %s: %w, want %d bytes at most", ErrProtocol, commandName(p.Cmd), err, cn.packets.Max)
		}
	}
	return body, nil
}

// errPlain is a body that anybody on the way may have made up.
func errPlain(cmd mpush.Cmd) error {
	return fmt.Errorf("%w: %s came plain, want it encrypted", ErrProtocol, commandName(cmd))
}

// read is body and what is in it.
func (cn *conn) read(p *mpush.Packet, decode func([]byte) error) error {
	body, err := cn.body(p)
	if err == nil {
		if err = decode(body); err != nil {
			err = fmt.Errorf("%w: %s: %w: %d bytes", ErrProtocol, commandName(p.Cmd), err, len(body))
		}
	}
	return err
}

// handle is told every packet of an open session.
func (cn *conn) handle(p *mpush.Packet) error {
	if p.Beat {
		return nil
	}
	switch p.Cmd {
	case mpush.CmdPush:
		return cn.pushed(p)
	case mpush.CmdKick:
		return cn.kicked(p)
	case mpush.CmdOK:
		var ok mpush.OK
		if err := cn.read(p, ok.Decode); err != nil {
			return err
		}
		if ok.Cmd != mpush.CmdUnbind && ok.Cmd != mpush.CmdBind || ok.Cmd == mpush.CmdBind && ok.Data == "unbind success" {
			return nil // nothing else is answered so; and a user's end before another one's BIND is not its answer
		}
		return cn.answer(callID{ok.Cmd, p.ID}, nil, nil)
	case mpush.CmdError:
		var e mpush.Error
		if err := cn.read(p, e.Decode); err != nil {
			return err
		}
		if e.Cmd == mpush.CmdBind && e.Reason == "unbind failed" {
			return nil // so is this
		}
		return cn.answer(callID{e.Cmd, p.ID}, nil, newError(&e))
	case mpush.CmdAck:
		return cn.answer(callID{mpush.CmdPush, p.ID}, nil, nil)
	case mpush.CmdHTTPProxy:
		return cn.proxied(p)
	}
	return nil // heartbeats with a header, and what later servers may send
}

// pushed hands a push to the program.
func (cn *conn) pushed(p *mpush.Packet) error {
	body, err := cn.body(p)
	if err != nil {
		return err
	}
	c, id, auto := cn.c, p.ID, p.Flags&mpush.FlagAutoAck != 0
	content := append(make([]byte, 0, len(body)), body...)
	messageID := int32(0)
	if p.Flags&mpush.FlagBizAck != 0 {
		messageID = id
	}
	c.cfg.Logger.Debug("client: receive push", "id", id, "bytes", len(content))
	cn.tell(len(content)+64, func() {
		if hook := c.cfg.OnReceivePush; hook != nil {
			hook(c, content, messageID)
		}
		if auto {
			c.autoAck(cn.r, id)
		}
	})
	return nil
}

// kicked logs the user out.
func (cn *conn) kicked(p *mpush.Packet) error {
	var k mpush.Kick
	if err := cn.read(p, k.Decode); err != nil {
		return err
	}
	c := cn.c
	c.mu.Lock()
	l := c.login
	ours := k.DeviceID == c.cfg.DeviceID && l != nil && (l.bound || l.sentLocked()) && l.user == k.UserID
	if ours {
		c.login, cn.kickedUser = nil, k.UserID
		l.settleLocked(ErrKicked)
		cn.awaitBind(nil)
	}
	c.mu.Unlock()
	if !ours { // another device's, or of a user who is not bound here any more
		c.cfg.Logger.Debug("client: kick is not about this device and its user", "device", cut(k.DeviceID), "user", cut(k.UserID))
		return nil
	}
	c.cfg.Logger.Debug("client: receive kick user", "user", cut(k.UserID))
	cn.tell(0, func() {
		if hook := c.cfg.OnKickUser; hook != nil {
			hook(c, k.DeviceID, k.UserID)
		}
	})
	if c.cfg.StopOnKick {
		cn.r.cancel(ErrKicked)
		return ErrKicked
	}
	return nil
}

// tell puts a hook into the queue and waits for room there, unless the client
// is being stopped. The connection is not read meanwhile: silence is not the
// server's then. If the connection ends meanwhile, a hook may be waiting for one
// of its answers.
func (cn *conn) tell(size int, hook func()) {
	stall := func(stalled bool) {
		cn.mu.Lock()
		defer cn.mu.Unlock()
		cn.stalled = stalled
		cn.quiet = time.Now()
	}
	stall(true)
	c, ended := cn.c, cn.ended
	for c.hooks.Full(hookLimit) && cn.r.ctx.Err() == nil {
		select {
		case <-c.moved:
		case <-cn.r.ctx.Done():
		case <-ended:
			cn.bury()
			ended = nil
		}
	}
	c.hooks.Put(size, func() { c.guard(cn, hook) }, (*hookStarter)(c))
	stall(false)
}

// guard runs a hook, whose panic, or whose end of its goroutine, ends cn. nil:
// there is no connection.
func (c *Client) guard(cn *conn, hook func()) {
	returned := false
	defer func() {
		if returned {
			return
		}
		text := "runtime.Goexit"
		if p := recover(); p != nil { // otherwise it goes on
			text = fmt.Sprint(p)
		}
		c.cfg.Logger.Error("client: hook panicked", "panic", text, "stack", string(debug.Stack()))
		if cn != nil {
			cn.fail(fmt.Errorf("client: a hook panicked: %s", text))
		}
	}()
	hook()
	returned = true
}

// check is one step of the heartbeat: of its timer, and of HealthCheck.
func (cn *conn) check() bool {
	cn.mu.Lock()
	if cn.reason != nil {
		cn.mu.Unlock()
		return false
	}
	now := time.Now()
	miss := false
	if cn.stalled {
		cn.quiet = now
	} else if miss = now.Sub(cn.quiet) >= cn.heartbeat+time.Second; miss {
		cn.quiet = now
		cn.misses++
	}
	misses := cn.misses
	slack := min(time.Second, cn.heartbeat/2)
	beat := miss || now.Sub(cn.wrote) >= cn.heartbeat-slack
	due := cn.wrote.Add(cn.heartbeat - slack)
	if beat {
		due = now.Add(cn.heartbeat - slack)
	}
	if silent := cn.quiet.Add(cn.heartbeat + time.Second); silent.Before(due) {
		due = silent
	}
	if cn.beats != nil {
		cn.beats.Reset(due.Sub(now))
	}
	cn.mu.Unlock()

	if miss {
		cn.c.cfg.Logger.Debug("client: heartbeat timeout", "times", misses)
	}
	if misses >= 2 {
		cn.fail(fmt.Errorf("%w: nothing for two heartbeats of %v", ErrSilent, cn.heartbeat))
		return false
	}
	if beat {
		cn.beat()
	}
	return true
}

func (cn *conn) beat() {
	cn.c.cfg.Logger.Debug("client: send heartbeat ping")
	cn.c.offer(&call{cmd: mpush.CmdHeartbeat, only: cn})
}

// probe sends a heartbeat and gives the connection up if nothing comes.
func (cn *conn) probe() {
	const patience = 6 * time.Second // as in the original
	cn.mu.Lock()
	if cn.reason == nil {
		reads := cn.reads
		if cn.probing != nil {
			cn.probing.Stop()
		}
		cn.probing = time.AfterFunc(patience, func() {
			cn.mu.Lock()
			silent := cn.reads == reads && !cn.stalled
			cn.mu.Unlock()
			if silent {
				cn.fail(fmt.Errorf("%w: nothing for %v after the network changed", ErrSilent, patience))
			}
		})
	}
	cn.mu.Unlock()
	cn.beat()
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// cut is a name as the log takes it.
func cut(name string) string { return strings.ToValidUTF8(name[:min(len(name), 64)], "\uFFFD") }

func newError(e *mpush.Error) *Error {
	return &Error{Request: commandName(e.Cmd), Code: int(e.Code), Reason: e.Reason, Data: e.Data}
}

var commandNames = map[mpush.Cmd]string{
	mpush.CmdHandshake: "handshake", mpush.CmdFastConnect: "fast connect", mpush.CmdBind: "bind", mpush.CmdUnbind: "unbind",
	mpush.CmdPush: "push", mpush.CmdHTTPProxy: "http", mpush.CmdKick: "kick", mpush.CmdOK: "ok", mpush.CmdError: "error",
}

func commandName(cmd mpush.Cmd) string {
	if name := commandNames[cmd]; name != "" {
		return name
	}
	return fmt.Sprintf("cmd %d", cmd)
}

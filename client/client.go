// Package client is an mpush client: it connects to an Engine's
// push.Engine.Serve, or to a Java mpush server, logs in as a device and as a
// user, and gets that user's pushes. It connects again by itself, for as long
// as it is started.
//
// Its words are those of the Java client: the hooks of [Config] are
// ClientListener's methods, [FileStorage] reads and writes its token.dat.
//
//	c, err := client.New(client.Config{
//		Addrs:     []string{"push.example:3000"},
//		PublicKey: key,
//		DeviceID:  "kiosk-17",
//		UserID:    "alice",
//		Token:     token,
//		OnReceivePush: func(c *client.Client, content []byte, messageID int32) {
//			fmt.Printf("%s\n", content)
//		},
//	})
//	c.Start()
//	defer c.Stop()
package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push/internal/lane"
	"github.com/embedpush/push/internal/mpush"
)

// Config is what a [Client] is made of. New copies it.
//
// Hooks run one after another, in the order of what they tell, on a goroutine
// of the client that is there while there are any; their order across a Stop
// and the next Start is kept, too. Up to 64 of them, or 1 MiB of content, wait
// for one that takes long; then the client stops reading its connection, and
// the server waits. Nothing is lost by that, and nothing grows. A hook may
// call every method of the client but Wait. One that waits there for an answer
// gets it as long as the queue behind it has room: with more pushes than that
// in front of the answer it waits until its context or the connection ends, so
// what takes a context is better called from another goroutine where pushes come
// in floods. One that panics ends the connection, with the stack in the log, and
// the client connects again; a push whose hook did that is not acknowledged.
type Config struct {
	// Addrs are the servers, tried in turn: "host:port" for mpush's own TCP
	// port, or a URL "ws://host/path" or "wss://host/path" for mpush in the
	// binary messages of a WebSocket, which goes through proxies as the
	// environment says (http.ProxyFromEnvironment). WebSocket is for an Engine: a
	// Java server speaks JSON there. nil: those of Allocator.
	Addrs []string

	// Allocator is the URL of a list of servers as mpush's allocators and
	// push.Engine.Alloc serve it: "host:port,host:port". It is asked when the
	// client begins and when no server it named can be reached, for at most 3 s;
	// of its answer 16 addresses are taken; if it fails, Addrs are tried. "": there is none.
	Allocator string

	// TLS is for servers behind TLS: Addrs without a scheme and those of
	// Allocator are dialled with it, and wss URLs use it. ServerName "" is the
	// host that is dialled. nil: plain TCP; wss with Go's defaults.
	TLS *tls.Config

	// Dial makes the connections below TLS and WebSocket, and those to
	// Allocator. It must not call Stop. nil: a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// PublicKey is the server's RSA key, X.509 in PEM, base64 or DER, 1 024 to
	// 4 096 bits: the handshake is encrypted with it and all that follows with
	// AES, and what should have come encrypted and did not ends the
	// connection. nil: nothing is encrypted by the client, which is for TLS,
	// wss and loopback; anywhere else there is a warning.
	PublicKey []byte

	// DeviceID names this device to the server: 1 to 128 bytes. A session
	// belongs to it. A comma in it, or in OSName, makes the tokens of a Java
	// server's sessions useless.
	DeviceID string

	// OSName, OSVersion and ClientVersion describe the device, at most 256
	// bytes each. By OSName a server tells a user's mobile, pc and web devices
	// apart, of which each keeps one. OSName "": the system of this program.
	OSName, OSVersion, ClientVersion string

	// UserID is bound on every connection, together with Token, for the check
	// on the server (the original calls it alias, and data on the wire), and
	// Tags, which have no commas; token and tags have 64 KiB together at most.
	// Bind replaces the three. UserID "": nobody is bound.
	UserID, Token string
	Tags          []string

	// Heartbeat is the interval that the client asks for; the server decides.
	// At least a second. 0: 4 min.
	Heartbeat time.Duration

	// Storage keeps the session from one connection to the next, so that no RSA
	// is needed again and the server knows the device. nil: a MemoryStorage.
	Storage SessionStorage

	// MinBackoff and MaxBackoff bound the time before the client connects
	// again. It is random, from a quarter of a value up to that value, which is
	// MinBackoff after a connection that lasted and twice as much after each
	// one that did not. 0: 1 s and 1 min.
	MinBackoff, MaxBackoff time.Duration

	// CompressOver is how many bytes a body may have without being compressed.
	// 0: 1 024; -1: any number.
	CompressOver int

	// MaxMessage bounds one body from the server in bytes, as it comes and
	// inflated; a larger one ends the connection. 0: 1 MiB + 64 KiB, which takes
	// every push and proxied response of an Engine with its own defaults.
	MaxMessage int

	// StopOnKick stops the client when its user is kicked.
	StopOnKick bool

	// OnConnected tells that a server was reached, which Client.Server names;
	// nothing was exchanged yet. nil: nothing.
	OnConnected func(c *Client)

	// OnDisconnected tells that a connection for which OnConnected was called
	// ended, and why: ErrStopped or ErrKicked if the client is stopped, io.EOF
	// if the server closed, ErrSilent, ErrProtocol, an *Error, or what the
	// network said, some of them wrapped. Unless it is stopped the client
	// connects again by itself. nil: nothing.
	OnDisconnected func(c *Client, reason error)

	// OnHandshakeOk tells that the session is open, after a fast connect as
	// well as after a handshake, and which heartbeat was agreed. nil: nothing.
	OnHandshakeOk func(c *Client, heartbeat time.Duration)

	// OnReceivePush gets a push. content is the hook's own; it may be empty but
	// is not nil. messageID is what Ack takes if the program has to acknowledge,
	// else 0. A push whose ack is the library's is acknowledged when the hook
	// has returned. nil: pushes are taken, and acknowledged, unseen.
	OnReceivePush func(c *Client, content []byte, messageID int32)

	// OnKickUser tells that the user came in on another device of the same
	// kind, or was taken out. The client is logged out then: it stays
	// connected, gets no pushes, and does not bind again by itself, not on
	// the next connection either; Bind does. StopOnKick stops it instead, after
	// this hook. A Java server goes on to think that the connection has the
	// user: Bind of the same one ends it and binds on the next; and after that
	// server's own kickUser pushes still come. nil: nothing.
	OnKickUser func(c *Client, deviceID, userID string)

	// OnBind tells how the server answered a BIND, of Bind or of a new
	// connection. After true the user's pushes begin. After false the client
	// has no user any more and stays connected, unless the server ends that;
	// Client.Refusal has its reason, and Bind may be called with a fresh token.
	// Without an answer for 6 s it is not called: the client connects again and
	// asks there. nil: nothing.
	OnBind func(c *Client, success bool, userID string)

	// OnUnbind tells how the server answered an UNBIND. true without a
	// connection: there was nothing to ask for. After false the server still has
	// the user, whose pushes may come until the connection ends; the client does
	// not bind it again; Client.Refusal has the reason. nil: nothing.
	OnUnbind func(c *Client, success bool, userID string)

	// Logger gets at Debug what the original logs, and at Warn what should not
	// be: that the server refused the user, and that for a minute no connection
	// came about or lasted, which is told again every 10 min and at Info when it
	// is over. Keys, tokens and contents never. nil: slog.Default().
	Logger *slog.Logger
}

// Errors of requests, and reasons of OnDisconnected. They come wrapped.
var (
	// ErrUncertain: bytes of the request were written, then the connection or
	// the wait for its answer ended. The server may have got it, or may not;
	// the client does not send it again.
	ErrUncertain = errors.New("client: the server may have got it or not")

	// ErrTimeout: for 10 s there was no connection, or no room in the queue. No
	// byte of the request was written.
	ErrTimeout = errors.New("client: not sent in time")

	// ErrStopped: the client is not started, or was stopped meanwhile.
	ErrStopped = errors.New("client: stopped")

	// ErrKicked: StopOnKick stopped the client, or the user was kicked before
	// its Bind was answered.
	ErrKicked = errors.New("client: the user was kicked")

	// ErrNoUser: there is no user to unbind.
	ErrNoUser = errors.New("client: no user is bound")

	// ErrSuperseded: another Bind or Unbind came before the server answered.
	ErrSuperseded = errors.New("client: another bind or unbind came in between")

	// ErrSilent: nothing came from the server for two heartbeats, or it left a
	// request of the session itself unanswered.
	ErrSilent = errors.New("client: the server is silent")

	// ErrProtocol: what came is not what a server of mpush sends.
	ErrProtocol = errors.New("client: the server broke the protocol")
)

// Error is the server's ERROR to a request.
type Error struct {
	Request string // "handshake", "fast connect", "bind", "unbind", "push" or "http"
	Code    int    // 0: Reason says it all
	Reason  string // as the server put it
	Data    string
}

func (e *Error) Error() string {
	return fmt.Sprintf("client: the server refused the %s: code %d, %.200q", e.Request, e.Code, e.Reason)
}

// What is not for a Config to say.
const (
	dialTimeout      = 10 * time.Second // TLS and the WebSocket's upgrade included
	handshakeTimeout = 3 * time.Second  // as in the original, for each answer that opens the session
	bindTimeout      = 3 * time.Second  // the same once more then, and then another connection
	writeTimeout     = 10 * time.Second // a packet's wait for a connection, and each write
	lasted           = 10 * time.Second // a session open for so long was a good one
	warnAfter        = time.Minute      // without a good one
	warnAgain        = 10 * time.Minute // after a warning
	maxUpgrade       = 64 << 10         // bytes that a WebSocket's upgrade may read
	queueLen         = 100              // packets, as in the original
	keepPacket       = 64 << 10         // bytes of the write buffer that are kept from packet to packet
	maxLogin         = 64 << 10         // bytes of a user's token and tags
	maxText          = 256              // bytes of what the server keeps of a device's texts
)

var hookLimit = lane.Limit{Items: 64, Bytes: 1 << 20}

// Client is one mpush client. Its methods may be called by any goroutine.
//
// The contexts of its requests bound the wait and nothing else: the connection
// lives on. Requests wait for a connection, for 10 s at most. What they return
// is an *Error if the server refused; ErrUncertain, which may wrap the context's
// error as well, if bytes were written; or another error, if none were.
type Client struct {
	cfg     Config
	key     *mpush.PublicKey // nil: plain sessions
	tags    string           // Config.Tags
	servers servers          // the connecting goroutine's
	warned  bool             // the connecting goroutine's: of a plain session
	mute    int              // the connecting goroutine's: fast connects in a row without an answer
	outage  outage           // the connecting goroutine's

	hooks lane.Lane
	moved chan struct{} // a hook ended; never closed

	queue  chan *call    // to the writer; never closed
	logins chan *call    // BINDs and UNBINDs, which go first; in the order in which login changed; never closed
	wake   chan struct{} // there is a network, and no connection; never closed
	ids    atomic.Uint32 // of requests

	mu      sync.Mutex
	run     *run             // guarded by mu: nil while stopped
	ended   <-chan struct{}  // guarded by mu: closed when the last run's hooks have returned; nil: never started
	conn    *conn            // guarded by mu: whose session is open; nil: none
	changed chan struct{}    // guarded by mu: closed and replaced when conn changes
	calls   map[callID]*call // guarded by mu: that wait for answers
	login   *login           // guarded by mu: who is to be bound; nil: nobody
	offline bool             // guarded by mu: the program says that there is no network
	server  string           // guarded by mu: as Server has it
	refusal *Error           // guarded by mu: as Refusal has it
}

// run is one life, from Start to Stop.
type run struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	over   chan struct{} // closed when its goroutines have ended
}

// New makes a client, which does nothing before Start. An error says what of
// the Config cannot be.
func New(cfg Config) (*Client, error) {
	c := &Client{
		cfg: cfg, moved: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		queue: make(chan *call, queueLen), logins: make(chan *call, queueLen), changed: make(chan struct{}), calls: make(map[callID]*call),
	}
	fail := func(format string, args ...any) (*Client, error) {
		return nil, fmt.Errorf("client: Config."+format, args...)
	}
	switch {
	case len(cfg.Addrs) == 0 && cfg.Allocator == "":
		return fail("Addrs is empty and there is no Allocator")
	case len(cfg.DeviceID) < 1 || len(cfg.DeviceID) > 128:
		return fail("DeviceID has %d bytes, want 1 to 128", len(cfg.DeviceID))
	case max(len(cfg.OSName), len(cfg.OSVersion), len(cfg.ClientVersion)) > maxText:
		return fail("OSName, OSVersion or ClientVersion has more than %d bytes", maxText)
	case cfg.Heartbeat != 0 && (cfg.Heartbeat < time.Second || cfg.Heartbeat > 24*time.Hour):
		return fail("Heartbeat is %v, want 1 s to 24 h", cfg.Heartbeat)
	case cfg.MinBackoff < 0 || cfg.MaxBackoff < 0 || cfg.MaxMessage < 0:
		return fail("MinBackoff, MaxBackoff or MaxMessage is negative")
	}
	for _, addr := range cfg.Addrs {
		if err := checkAddr(addr); err != nil {
			return fail("Addrs: %w", err)
		}
	}
	if cfg.Allocator != "" {
		if err := checkURL(cfg.Allocator, "http", "https"); err != nil {
			return fail("Allocator: %w", err)
		}
	}
	if cfg.PublicKey != nil {
		var err error
		if c.key, err = mpush.ParsePublicKey(cfg.PublicKey); err != nil {
			return fail("PublicKey: %w", err)
		}
	}
	var err error
	if c.tags, err = joinTags(cfg.Token, cfg.Tags); err != nil {
		return fail("Tags: %w", err)
	}
	c.cfg.Addrs, c.cfg.TLS = slices.Clone(cfg.Addrs), cfg.TLS.Clone()
	c.cfg.OSName = cmp.Or(cfg.OSName, map[string]string{"darwin": "macos"}[runtime.GOOS], runtime.GOOS)
	c.cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 4*time.Minute)
	c.cfg.MinBackoff = cmp.Or(cfg.MinBackoff, time.Second)
	c.cfg.MaxBackoff = max(cmp.Or(cfg.MaxBackoff, time.Minute), c.cfg.MinBackoff)
	c.cfg.CompressOver = cmp.Or(cfg.CompressOver, 1024)
	c.cfg.MaxMessage = cmp.Or(cfg.MaxMessage, 1<<20+64<<10)
	c.cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	if cfg.Storage == nil {
		c.cfg.Storage = new(MemoryStorage)
	}
	if cfg.Dial == nil {
		dialer := net.Dialer{KeepAlive: c.cfg.Heartbeat} // Go's 15 s would keep a phone's radio awake
		c.cfg.Dial = dialer.DialContext
	}
	c.servers.cfg = &c.cfg
	if c.key != nil { // it must fit into what a server decrypts
		if _, err := c.key.Encrypt(c.handshake(make([]byte, 16), make([]byte, 16))); err != nil {
			return fail("DeviceID, OSName, OSVersion and ClientVersion are too long together for PublicKey: %w", err)
		}
	}
	if cfg.UserID != "" {
		c.login = newLogin(cfg.UserID, cfg.Token, c.tags)
	}
	return c, nil
}

// joinTags makes the text of tags that goes with this token.
func joinTags(token string, tags []string) (string, error) {
	for _, tag := range tags {
		if strings.Contains(tag, ",") {
			return "", fmt.Errorf("%.100q has a comma, which is between two tags", tag)
		}
	}
	text := strings.Join(tags, ",")
	if n := len(token) + len(text); n > maxLogin {
		return "", fmt.Errorf("they and the token have %d bytes, want %d at most", n, maxLogin)
	}
	return text, nil
}

// Start lets the client connect, and stay connected, until Stop. It does
// nothing if the client is started, and waits for one that is being stopped,
// which takes no longer than Stop. It may be called by a hook.
func (c *Client) Start() {
	c.mu.Lock()
	for c.run != nil {
		old := c.run
		if old.ctx.Err() == nil {
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		<-old.over
		c.mu.Lock()
	}
	defer c.mu.Unlock()
	r := &run{over: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	ended := make(chan struct{})
	c.run, c.ended = r, ended
	c.cfg.Logger.Debug("client: start", "device", c.cfg.DeviceID)
	var writer sync.WaitGroup
	writer.Go(func() { c.write(r) })
	go func() {
		c.connect(r)
		writer.Wait()
		c.hooks.Always(func() { close(ended) }, (*hookStarter)(c))
		c.mu.Lock()
		c.run = nil
		c.mu.Unlock()
		close(r.over)
	}()
}

// Stop closes the connection and ends all requests with ErrStopped, or
// ErrUncertain, and returns when the client is disconnected. Hooks that wait
// run after that, the last one is OnDisconnected; see Wait. Start begins anew,
// with the same session and user. Stop may be called by a hook.
func (c *Client) Stop() {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r != nil {
		r.cancel(ErrStopped)
		<-r.over
	}
}

// Wait returns when the client was stopped, by Stop or StopOnKick, and its last
// hook has returned. A hook must not call it.
func (c *Client) Wait() {
	c.mu.Lock()
	ended := c.ended
	c.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// Connected reports whether a session is open now.
func (c *Client) Connected() bool { return c.opened() != nil }

// Server is the server that OnConnected told of last, as it stands in
// Config.Addrs or in the allocator's answer. A hook finds there the server of
// the connection that it tells of. "": none was reached yet.
func (c *Client) Server() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server
}

// Refusal is what the server said to the last BIND or UNBIND that a hook told
// of; in OnBind and OnUnbind, to that one. nil: it did not refuse, or no hook
// told anything yet.
func (c *Client) Refusal() *Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusal
}

func (c *Client) setRefusal(e *Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusal = e
}

// UserID is who is bound, or will be on the next connection. "": nobody.
func (c *Client) UserID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.login == nil {
		return ""
	}
	return c.login.user
}

func (c *Client) opened() *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

// HealthCheck looks after the connection at once, as the client does by itself
// at every heartbeat: it sends a heartbeat if nothing was sent for almost as
// long as one, and counts a miss if nothing came for a second more than that;
// a second miss ends the connection. It is for programs whose timers may have
// stood still. It reports whether a session is open.
func (c *Client) HealthCheck() bool {
	cn := c.opened()
	return cn != nil && cn.check()
}

// NetworkChanged tells the client what the program knows of the network. false:
// there is none, so the client does not try to connect until true. true: it
// is another one, or there is one again, so a client without a connection
// tries at once. Either way a connection that is there is tested by a
// heartbeat, and given up if nothing comes for 6 s.
func (c *Client) NetworkChanged(available bool) {
	c.mu.Lock()
	c.offline = !available
	cn := c.conn
	if available && cn == nil {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()
	c.cfg.Logger.Debug("client: network changed", "available", available, "connected", cn != nil)
	if cn != nil {
		cn.probe()
	}
}

// connect is the goroutine that connects, again and again, and reads.
func (c *Client) connect(r *run) {
	failed := 0 // connections that did not last, one after another
	c.rest(r, 0)
	c.outage = outage{since: time.Now()}
	for r.ctx.Err() == nil {
		cn, err := c.dialNext(r)
		if err == nil {
			err = cn.live()
			if !cn.openedAt.IsZero() && time.Since(cn.openedAt) >= lasted {
				failed, c.outage = 0, outage{since: time.Now()}
			} else {
				c.servers.drop()
				c.outageGoesOn(r, cn.addr, err)
			}
		}
		if r.ctx.Err() != nil {
			return
		}
		wait := c.backoff(failed)
		failed++
		c.cfg.Logger.Debug("client: connects again", "in", wait, "failed", failed, "err", err)
		if c.rest(r, wait) {
			failed, c.outage = 0, outage{since: time.Now()}
		}
	}
}

// outage is the time without a connection that lasts.
type outage struct {
	since  time.Time
	failed int       // servers tried in vain
	warned time.Time // zero: not yet
	told   bool      // since then, that a session is open
}

// outageGoesOn warns of an outage now and then.
func (c *Client) outageGoesOn(r *run, addr string, err error) {
	o := &c.outage
	o.failed++
	now := time.Now()
	if r.ctx.Err() != nil || now.Sub(o.since) < warnAfter || now.Sub(o.warned) < warnAgain {
		return
	}
	o.warned, o.told = now, false
	c.cfg.Logger.Warn("client: no connection comes about and lasts", "for", now.Sub(o.since).Round(time.Second),
		"failed", o.failed, "addr", logAddr(addr), "err", err)
}

// outageEnds tells who was warned of an outage that a session is open.
func (c *Client) outageEnds() {
	if o := &c.outage; !o.warned.IsZero() && !o.told {
		o.told = true
		c.cfg.Logger.Info("client: a session is open again", "after", time.Since(o.since).Round(time.Second))
	}
}

// dialNext tries the servers until one is reached or all have been tried.
func (c *Client) dialNext(r *run) (*conn, error) {
	for {
		addr, err := c.servers.next(r.ctx)
		if err != nil {
			c.outageGoesOn(r, c.cfg.Allocator, err)
			return nil, err
		}
		c.cfg.Logger.Debug("client: try connect server", "addr", logAddr(addr))
		cn, err := c.dial(r, addr)
		if err == nil {
			return cn, nil
		}
		c.cfg.Logger.Debug("client: connect server failed", "addr", logAddr(addr), "err", err)
		c.outageGoesOn(r, addr, err)
		if c.servers.drop() || r.ctx.Err() != nil {
			return nil, err
		}
	}
}

func (c *Client) backoff(failed int) time.Duration {
	d := c.cfg.MaxBackoff
	if failed < 32 && c.cfg.MinBackoff < d>>failed {
		d = c.cfg.MinBackoff << failed
	}
	return d/4 + rand.N(d-d/4+1)
}

// rest waits, and for as long as there is no network. It reports whether a new
// one cut that short.
func (c *Client) rest(r *run, d time.Duration) bool {
	var timer <-chan time.Time // nil: there is nothing to wait for
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	for rested, woken := d <= 0, false; ; {
		c.mu.Lock()
		offline := c.offline
		c.mu.Unlock()
		if !offline && (rested || woken) {
			return woken
		}
		select {
		case <-timer:
			rested = true
		case <-c.wake:
			woken = true
		case <-r.ctx.Done():
			return false
		}
	}
}

// hookStarter is the Client as its lane sees it.
type hookStarter Client

func (h *hookStarter) LaneBegins() {}
func (h *hookStarter) LaneEnds()   {}
func (h *hookStarter) LaneDied()   {}
func (h *hookStarter) LaneMoved() {
	select {
	case h.moved <- struct{}{}:
	default:
	}
}

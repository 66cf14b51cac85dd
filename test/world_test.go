package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
)

// dialectNames are the doors that every promise is tested over.
var dialectNames = []string{"push.json", "push.msgpack"}

// overDialects runs a test once for each dialect, in virtual time.
func overDialects(t *testing.T, f func(t *testing.T, dialect string)) {
	for _, dialect := range dialectNames {
		t.Run(dialect, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, dialect) })
		})
	}
}

// overNetworks runs a test over memory in virtual time, where every write goes
// through the queue, and over real sockets, where the caller of a push writes.
func overNetworks(t *testing.T, f func(t *testing.T, w func(push.Config) *world)) {
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(t, func(c push.Config) *world { return newWorld(t, c) }) })
	})
	t.Run("sockets", func(t *testing.T) {
		f(t, func(c push.Config) *world { return newSocketWorld(t, c) })
	})
}

// world is an engine behind an http.Server, and the pages that visit it.
type world struct {
	*push.Engine
	t       testing.TB
	dialect string // of the pages that connect from now on

	server *http.Server
	served chan struct{} // closed when the server's accept loop has ended
	net    *memnet.Network
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)

	seq     atomic.Int64 // device ids
	mu      sync.Mutex
	pages   []*page     // guarded by mu
	clients []*ioClient // guarded by mu: of Socket.IO
}

const (
	serverIP = "10.0.0.1"
	clientIP = "10.0.0.2"
)

// newWorld starts a world in memory. The test's end closes it.
func newWorld(t testing.TB, cfg push.Config) *world {
	t.Helper()
	return newWorldOn(t, cfg, memnet.New(1), serverIP, clientIP)
}

// newWorldOn is newWorld on a network that there is: the engine is on one
// address, and its pages on the other.
func newWorldOn(t testing.TB, cfg push.Config, nw *memnet.Network, server, client string) *world {
	t.Helper()
	ln, err := nw.Host(server).Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	w := serveWorld(t, cfg, ln)
	w.net = nw
	w.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return ln.DialFrom(ctx, client) }
	return w
}

// newSocketWorld starts a world on a free port of the loopback interface.
func newSocketWorld(t testing.TB, cfg push.Config) *world {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := serveWorld(t, cfg, tightListener{ln})
	w.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
		if err == nil {
			nc.(*net.TCPConn).SetReadBuffer(tight)
		}
		return nc, err
	}
	return w
}

// tight is a socket's buffer: with the kernel's own, it takes megabytes to make
// a page slow.
const tight = 16 << 10

type tightListener struct{ net.Listener }

func (l tightListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		nc.(*net.TCPConn).SetWriteBuffer(tight)
	}
	return nc, err
}

func serveWorld(t testing.TB, cfg push.Config, ln net.Listener) *world {
	t.Helper()
	if cfg.Authenticate == nil {
		cfg.Authenticate = believe
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e, err := push.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Engine: e, t: t, dialect: dialectNames[0], served: make(chan struct{})}
	w.server = &http.Server{Handler: e, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() {
		defer close(w.served)
		w.server.Serve(ln)
	}()
	t.Cleanup(func() {
		e.Close()
		w.server.Close()
		<-w.served
		w.mu.Lock()
		pages, clients := w.pages, w.clients
		w.mu.Unlock()
		for _, c := range clients {
			c.over()
		}
		for _, p := range pages {
			p.resume()
			p.cuts()
			<-p.done
		}
	})
	return w
}

// believe is TrustClaims, quieter. The rooms it gives are the words of the
// token.
func believe(ctx context.Context, l *push.Login) (string, error) {
	l.Rooms = strings.Fields(l.Token)
	return l.UserID, nil
}

// envelope is what a page got, in either dialect.
type envelope struct {
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
	ID    uint64          `json:"id"`
	Auto  bool            `json:"auto"`
	Ack   *uint64         `json:"ack"`
	Error string          `json:"error"`
	Login *struct {
		User string `json:"user"`
		Conn string `json:"conn"`
	} `json:"login"`
	Pong int `json:"pong"`

	args  []json.RawMessage // all that came over Socket.IO
	bytes [][]byte          // beside args: those that are opaque
}

func (m envelope) String() string {
	switch {
	case m.Login != nil:
		return "login as " + m.Login.User
	case m.Ack != nil:
		return fmt.Sprintf("answer %d %s%s", *m.Ack, m.Data, m.Error)
	}
	return m.Event + " " + string(m.Data)
}

// page is one client, or of Socket.IO what one client is in one namespace.
type page struct {
	t       testing.TB
	w       *world
	ws      *websocket.Conn
	gate    *gateConn
	io      *ioClient // Socket.IO: instead of ws and gate
	space   string    // Socket.IO
	device  string    // unlike every other page's
	dialect string

	acks   atomic.Pointer[func(*page, envelope)] // answers pushes that want an ack; nil: answer
	mute   atomic.Bool                           // answers no pings
	pings  atomic.Int64
	writes sync.Mutex // one frame at a time

	done chan struct{} // closed when nothing more comes

	mu      sync.Mutex
	got     []envelope    // guarded by mu: not looked at yet
	changed chan struct{} // guarded by mu: closed when something came
	err     error         // guarded by mu: why nothing more comes
	joined  string        // guarded by mu: Socket.IO: its id, "2.x" if it is not told
}

// connect lets a page in as user ("": nobody), and waits until it is in its
// places. More is "key=value" of the query.
func (w *world) connect(user string, more ...string) *page {
	w.t.Helper()
	p, resp, err := w.tryConnect(user, more...)
	if err != nil {
		status := 0
		if resp != nil {
			status = resp.StatusCode
		}
		w.t.Fatalf("%q connects: status %d, %v", user, status, err)
	}
	if p.io != nil {
		return p
	}
	p.sendsRaw(map[string]any{"ping": 1})
	p.waitFor("a pong", func() bool {
		i := slices.IndexFunc(p.got, func(m envelope) bool { return m.Pong != 0 })
		if i >= 0 {
			p.got = slices.Delete(p.got, i, i+1)
		}
		return i >= 0
	})
	return p
}

// tryConnect only dials.
func (w *world) tryConnect(user string, more ...string) (*page, *http.Response, error) {
	if isSocketIO(w.dialect) {
		return w.tryConnectIO(user, more...)
	}
	q := url.Values{}
	if user != "" {
		q.Set("user", user)
	}
	header := http.Header{}
	device := "d" + strconv.FormatInt(w.seq.Add(1), 10)
	q.Set("device", device)
	for _, kv := range more {
		k, v, _ := strings.Cut(kv, "=")
		if k == "origin" {
			header.Set("Origin", v)
		} else {
			q.Add(k, v)
		}
	}
	p := &page{t: w.t, w: w, device: device, dialect: w.dialect, done: make(chan struct{}), changed: make(chan struct{})}
	d := websocket.Dialer{
		Subprotocols: []string{w.dialect},
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := w.dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			p.gate = &gateConn{Conn: nc, once: make(chan struct{})}
			return p.gate, nil
		},
	}
	ws, resp, err := d.DialContext(context.Background(), "ws://push.test/ws?"+q.Encode(), header)
	if err != nil {
		return nil, resp, err
	}
	p.ws = ws
	pong := ws.PingHandler()
	ws.SetPingHandler(func(s string) error {
		p.pings.Add(1)
		if p.mute.Load() {
			return nil
		}
		return pong(s)
	})
	w.mu.Lock()
	w.pages = append(w.pages, p)
	w.mu.Unlock()
	go p.read()
	return p, resp, nil
}

// read collects what comes and answers what wants an ack.
func (p *page) read() {
	defer close(p.done)
	defer p.ws.Close()
	for {
		_, b, err := p.ws.ReadMessage()
		var m envelope
		if err == nil {
			m, err = decodeEnvelope(p.dialect, b)
		}
		if err != nil {
			p.mu.Lock()
			p.err = err
			p.changedLocked()
			p.mu.Unlock()
			return
		}
		p.gets(m)
	}
}

// gets m, and answers if it wants an ack.
func (p *page) gets(m envelope) {
	p.mu.Lock()
	p.got = append(p.got, m)
	p.changedLocked()
	p.mu.Unlock()
	if m.Event != "" && m.ID != 0 {
		if f := p.acks.Load(); f != nil {
			(*f)(p, m)
		} else {
			p.answers(m, nil)
		}
	}
}

func (p *page) changedLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func decodeEnvelope(dialect string, b []byte) (m envelope, err error) {
	if dialect == "push.msgpack" {
		var v map[string]any
		if err := msgpack.Unmarshal(b, &v); err != nil {
			return m, err
		}
		if b, err = json.Marshal(v); err != nil {
			return m, err
		}
	}
	return m, json.Unmarshal(b, &m)
}

// onAck says how the page answers pushes from now on.
func (p *page) onAck(f func(*page, envelope)) { p.acks.Store(&f) }

// silent answers nothing.
func silent(*page, envelope) {}

// answers a push.
func (p *page) answers(m envelope, data any) {
	if p.io != nil {
		p.acknowledges(m, data)
		return
	}
	p.sendsRaw(map[string]any{"ack": m.ID, "data": data})
}

// sends a message that wants no answer.
func (p *page) sends(event string, data any) {
	if p.io != nil {
		p.emits(-1, event, data)
		return
	}
	p.sendsRaw(map[string]any{"event": event, "data": data})
}

// asks sends a message that wants an answer.
func (p *page) asks(id int, event string, data any) {
	if p.io != nil {
		p.emits(int64(id), event, data)
		return
	}
	p.sendsRaw(map[string]any{"event": event, "data": data, "id": id})
}

// logsIn later, with "key=value" as for connect.
func (p *page) logsIn(user string, more ...string) {
	login := map[string]any{"user": user, "device": p.device}
	var tags []string
	for _, kv := range more {
		if k, v, _ := strings.Cut(kv, "="); k == "tag" {
			tags = append(tags, v)
		} else {
			login[k] = v
		}
	}
	login["tags"] = tags
	p.sendsRaw(map[string]any{"login": login})
}

func (p *page) sendsRaw(m map[string]any) {
	kind, b := websocket.TextMessage, []byte(nil)
	var err error
	if p.dialect == "push.msgpack" {
		kind = websocket.BinaryMessage
		b, err = msgpack.Marshal(m)
	} else {
		b, err = json.Marshal(m)
	}
	if err != nil {
		panic(err)
	}
	p.writes.Lock()
	defer p.writes.Unlock()
	p.ws.WriteMessage(kind, b) // a page that is being closed may write into the void
}

// says goodbye, and waits until the socket is closed.
func (p *page) leaves() {
	if p.io != nil {
		p.io.enqueue(p.io.disconnectPacket(p.space))
		p.io.closes()
		<-p.done
		return
	}
	p.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
	<-p.done
}

// vanishes without goodbye.
func (p *page) vanishes() {
	p.cuts()
	<-p.done
}

// cuts its connection and does not wait.
func (p *page) cuts() {
	if p.io != nil {
		p.io.cuts()
	} else {
		p.ws.NetConn().Close()
	}
}

// isAlive wants an answer that goes past every hook, if its protocol has one.
func (p *page) isAlive() {
	p.t.Helper()
	switch {
	case p.io == nil:
		p.sendsRaw(map[string]any{"ping": 1})
		if m := p.next(); m.Pong != 1 {
			p.t.Errorf("got %v, want a pong", m)
		}
	case p.io.rev == 3:
		before := p.io.pings.Load()
		p.io.says("2")
		synctest.Wait()
		if p.io.pings.Load() != before+1 {
			p.t.Error("a ping is not answered")
		}
	}
}

// patience is how long a page waits for what has to come: virtual time in a
// bubble, real time outside, where it is only spent by a test that fails.
const patience = 20 * time.Second

// waitFor waits until ok, which runs with p.mu held, says yes.
func (p *page) waitFor(what string, ok func() bool) {
	p.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		p.mu.Lock()
		yes, changed, err, got := ok(), p.changed, p.err, slices.Clone(p.got)
		p.mu.Unlock()
		if yes {
			return
		}
		if err != nil {
			p.t.Fatalf("%s waits for %s: %v; got %v", p.device, what, err, brief(got))
		}
		select {
		case <-changed:
		case <-timeout.C:
			p.t.Fatalf("%s waits for %s in vain; got %v", p.device, what, brief(got))
		}
	}
}

func brief(got []envelope) string {
	if len(got) > 20 {
		return fmt.Sprintf("%v … and %d more", got[:20], len(got)-20)
	}
	return fmt.Sprint(got)
}

// next is the next thing that comes.
func (p *page) next() (m envelope) {
	p.t.Helper()
	p.waitFor("anything", func() bool {
		if len(p.got) == 0 {
			return false
		}
		m, p.got = p.got[0], p.got[1:]
		return true
	})
	return m
}

// wantPush wants events to come next, in this order.
func (p *page) wantPush(events ...string) (last envelope) {
	p.t.Helper()
	for _, want := range events {
		if last = p.next(); last.Event != want {
			p.t.Fatalf("%s got %v, want event %q", p.device, last, want)
		}
	}
	return last
}

// wantAnswer wants the answer to what it asked with id.
func (p *page) wantAnswer(id uint64, data, refusal string) {
	p.t.Helper()
	m := p.next()
	if m.Ack == nil || *m.Ack != id || m.Error != refusal || refusal == "" && !sameJSON(m.Data, data) {
		p.t.Fatalf("%s got %v, want answer %d %s%s", p.device, m, id, data, refusal)
	}
}

func (p *page) wantLogin(user string) {
	p.t.Helper()
	if m := p.next(); m.Login == nil || m.Login.User != user || m.Login.Conn != p.conn().ID().String() {
		p.t.Fatalf("%s got %v, want login as %s", p.device, m, user)
	}
}

// wantNothing wants nothing to have come. In virtual time only: everybody else
// has come to rest.
func (p *page) wantNothing() {
	p.t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.got) > 0 || p.err != nil {
		p.t.Fatalf("%s got %v (end: %v), want nothing", p.device, brief(p.got), p.err)
	}
}

// wantClosed wants the server to end the connection with this close code, and
// nothing before it.
func (p *page) wantClosed(code int) {
	p.t.Helper()
	err := p.end()
	p.mu.Lock()
	got := slices.Clone(p.got)
	p.mu.Unlock()
	if len(got) > 0 {
		p.t.Errorf("%s got %v, want to be closed with %d first", p.device, brief(got), code)
	}
	if !endedWith(err, code) {
		p.t.Errorf("%s ended with %v, want close code %d", p.device, err, code)
	}
}

// end waits for the page's end and tells it.
func (p *page) end() error {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s is not closed", p.device)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// pinged tells how often it was pinged, or of Socket.IO 4 had a pong.
func (p *page) pinged() int64 {
	if p.io != nil {
		return p.io.pings.Load()
	}
	return p.pings.Load()
}

// protocol is what Conn.Protocol says.
func (p *page) protocol() string {
	protocol, _, _ := strings.Cut(p.dialect, " ")
	return protocol
}

// taken is everything that came so far.
func (p *page) taken() []envelope {
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.got
	p.got = nil
	return got
}

// conn is the engine's side of the page, nil when there is none.
func (p *page) conn() *push.Conn {
	for c := range p.w.Conns() {
		if c.Login().DeviceID == p.device {
			return c
		}
	}
	return nil
}

// pause stops reading, but for what a read under way still brings (at most
// gorilla's 4 KiB).
func (p *page) pause() {
	if p.io != nil {
		p.io.pause()
	} else {
		p.gate.pause()
	}
}

func (p *page) resume() {
	if p.io != nil {
		p.io.resume()
	} else {
		p.gate.resume()
	}
}

// readsOnce lets a paused page read once, if it wants to.
func (p *page) readsOnce() {
	select {
	case p.gate.once <- struct{}{}:
	case <-p.done:
	case <-time.After(time.Millisecond):
	}
}

// gateConn is a net.Conn whose reading can be stopped.
type gateConn struct {
	net.Conn
	once chan struct{} // never closed: lets one Read pass
	mu   sync.Mutex
	open chan struct{} // guarded by mu: closed by resume; nil while not paused
}

func (g *gateConn) pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = make(chan struct{})
	}
}

func (g *gateConn) resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open != nil {
		close(g.open)
		g.open = nil
	}
}

func (g *gateConn) Read(b []byte) (int, error) {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open != nil {
		select {
		case <-open:
		case <-g.once:
		}
	}
	return g.Conn.Read(b)
}

// sameJSON compares values, not texts.
func sameJSON(got json.RawMessage, want string) bool {
	norm := func(b []byte) string {
		var v any
		if len(b) == 0 || json.Unmarshal(b, &v) != nil {
			return string(b)
		}
		b, _ = json.Marshal(v)
		return string(b)
	}
	return bytes.Equal([]byte(norm(got)), []byte(norm([]byte(want))))
}

// ask is a context that ends with the test.
func (w *world) ctx() context.Context { return w.t.Context() }

// wantStatus wants a push to have had exactly these statuses, in any order.
func wantStatus(t testing.TB, r push.Receipt, want ...push.Status) {
	t.Helper()
	var got []push.Status
	sent, acked, failed := 0, 0, 0
	for _, d := range r.Deliveries {
		got = append(got, d.Status)
		switch d.Status {
		case push.Sent:
			sent++
		case push.Acked:
			acked++
		default:
			failed++
		}
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("receipt has %v, want %v: %+v", got, want, r)
	}
	if r.Targets != len(r.Deliveries) || r.Sent != sent || r.Acked != acked || r.Failed != failed {
		t.Errorf("receipt counts %d = %d + %d + %d, its deliveries %d = %d + %d + %d", r.Targets, r.Sent, r.Acked, r.Failed, len(r.Deliveries), sent, acked, failed)
	}
}

// diary is what hooks did, in order.
type diary struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *diary) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

func (d *diary) want(t testing.TB, want ...string) {
	t.Helper()
	if got := d.all(); !slices.Equal(got, want) {
		t.Errorf("hooks ran as %q, want %q", got, want)
	}
}

package polling

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/netio"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// inBubble runs f in virtual time.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// rig is a Server behind an http.Server on a network in memory, with hosts over
// a real driver.
type rig struct {
	t      *testing.T
	s      *Server
	d      *netio.Driver
	net    *memnet.Network
	ln     *memnet.Listener
	http   *http.Server
	client *http.Client

	mu      sync.Mutex // guards what follows
	hosts   map[string]*host
	refused map[Why]int
	asked   []Ask
	limit   int    // PostLimit
	first   string // a message that every new session is sent with its open packet
}

// newRig makes a rig; change, if not nil, changes what is about to be started.
func newRig(t *testing.T, change func(*Config, *http.Server)) *rig {
	t.Helper()
	g := &rig{t: t, hosts: map[string]*host{}, refused: map[Why]int{}, limit: 1_000_000}
	c := Config{
		Origin:  func(*http.Request) (bool, bool) { return true, false },
		Open:    g.open,
		Refused: func(why Why) { g.mu.Lock(); g.refused[why]++; g.mu.Unlock() },
	}
	g.http = &http.Server{}
	if change != nil {
		change(&c, g.http)
	}
	g.s = New(c)
	g.d = netio.New(netio.Config{})
	if g.http.Handler == nil {
		g.http.Handler = g.s
	}
	g.net = memnet.New(1)
	ln, err := g.net.Host("10.0.0.1").Listen(80)
	if err != nil {
		t.Fatal(err)
	}
	g.ln = ln
	go g.http.Serve(ln)
	transport := &http.Transport{DialContext: ln.DialContext, Protocols: g.http.Protocols}
	g.client = &http.Client{Transport: transport, Timeout: 2 * time.Hour} // virtual: so that nothing hangs
	t.Cleanup(func() {
		g.http.Close()
		g.d.Close()
		transport.CloseIdleConnections()
		time.Sleep(5 * time.Second) // net/http lingers
	})
	return g
}

func (g *rig) open(w http.ResponseWriter, r *http.Request, a Ask) {
	g.mu.Lock()
	g.asked = append(g.asked, a)
	first := g.first
	g.mu.Unlock()
	if a.WebSocket {
		Refuse(w, r, http.StatusServiceUnavailable, BadRequest, "not here")
		return
	}
	h := &host{g: g, p: g.s.NewSession(a), reader: eio.NewReader(a.Revision, 1_000_000), alive: true}
	h.nc = new(netio.Conn)
	g.d.DrivePulled(h.nc, h, h.p.Wake, netip.AddrPort{})
	g.mu.Lock()
	g.hosts[h.p.SID()] = h
	g.mu.Unlock()
	h.nc.Write(eio.AppendOpen(nil, &eio.Handshake{SID: h.p.SID(), Upgrade: true, PingInterval: 25 * time.Second, PingTimeout: 20 * time.Second, MaxPayload: 1_000_000}))
	if first != "" {
		h.send(first)
	}
	h.nc.Start()
	h.p.Begin(w, r, h.nc, h)
}

// host is a Host and a netio.Handler that writes down what it is told.
type host struct {
	g  *rig
	p  *Session
	nc *netio.Conn

	mu       sync.Mutex // guards what follows
	reader   eio.Reader
	alive    bool
	stalled  bool // Data takes nothing
	shuts    bool // it ends by Shut, as engines do
	binary   []bool
	got      []string
	broken   []error
	upgraded int
	closed   bool
}

func (h *host) PostLimit() int           { h.g.mu.Lock(); defer h.g.mu.Unlock(); return h.g.limit }
func (h *host) Alive(now time.Time) bool { h.mu.Lock(); defer h.mu.Unlock(); return h.alive }

func (h *host) Posted(binary bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.binary = append(h.binary, binary)
	h.reader.Body(binary)
}

func (h *host) Upgraded() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.upgraded++
	h.reader.WebSocket()
}

func (h *host) Broken(err error) {
	h.mu.Lock()
	h.broken = append(h.broken, err)
	shuts := h.shuts
	h.mu.Unlock()
	if shuts {
		h.shut()
	} else {
		h.nc.Close()
	}
}

func (h *host) Data(b []byte) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stalled {
		return 0
	}
	n := 0
	for n < len(b) {
		var p eio.Packet
		used, err := h.reader.Next(b[n:], &p)
		n += used
		switch {
		case err != nil, p.Control.Op == ws.Close:
			h.nc.Close()
			return len(b)
		case p.Type == eio.Close:
			h.p.Goodbye()
			h.nc.Close()
			return len(b)
		case p.Type == eio.Message:
			h.got = append(h.got, string(p.Data))
		}
	}
	return n
}

func (h *host) Tick(time.Time) {}
func (h *host) Slow()          {}

func (h *host) Closed(error) {
	h.p.End()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
}

// shut ends the session as a server does.
func (h *host) shut() {
	h.nc.Shut(ws.AppendClose(nil, wire.GoingAway, ""), false, 30*time.Second)
}

func (h *host) send(text string) {
	if err := h.nc.Write(eio.AppendPacket(nil, eio.Message, text)); err != nil {
		h.g.t.Errorf("Write of %q: %v", text, err)
	}
}

func (h *host) stall(on bool) {
	h.mu.Lock()
	h.stalled = on
	h.mu.Unlock()
	if !on {
		h.nc.Resume()
	}
}

func (h *host) wantGot(want ...string) {
	h.g.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.got, want) {
		h.g.t.Errorf("the host got %q, want %q", h.got, want)
	}
}

// wantBroken wants the session broken once: with this code, 0 for a client that
// went away; and ended.
func (h *host) wantBroken(code wire.Code) {
	h.g.t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	var got wire.Code
	if len(h.broken) == 1 {
		if err, ok := h.broken[0].(*wire.Error); ok {
			got = err.Code
		} else if h.broken[0] != nil {
			h.g.t.Errorf("Broken got a %T", h.broken[0])
		}
	}
	if len(h.broken) != 1 || got != code {
		h.g.t.Errorf("broken: %v, want one, code %d", h.broken, code)
	}
	if !h.closed {
		h.g.t.Error("the broken session has not ended")
	}
}

// wantWhole wants a session that lives.
func (h *host) wantWhole() {
	h.g.t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.broken) > 0 || h.closed {
		h.g.t.Errorf("broken: %v, closed: %v, want neither", h.broken, h.closed)
	}
}

func (g *rig) wantRefused(why Why, n int) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refused[why] != n {
		g.t.Errorf("refused for reason %d: %d, want %d", why, g.refused[why], n)
	}
}

func (g *rig) wantLen(n int) {
	g.t.Helper()
	synctest.Wait()
	if got := g.s.Len(); got != n {
		g.t.Errorf("Len = %d, want %d", got, n)
	}
}

// answer is an HTTP response that was read.
type answer struct {
	*http.Response
	body string
	err  error
}

func (a answer) want(t *testing.T, status int, body string) {
	t.Helper()
	if a.err != nil {
		t.Errorf("got error %v, want %d %q", a.err, status, body)
	} else if a.StatusCode != status || a.body != body {
		t.Errorf("got %d %q, want %d %q", a.StatusCode, a.body, status, body)
	}
}

func (a answer) wantCode(t *testing.T, code int) {
	t.Helper()
	status := http.StatusBadRequest
	if code == Forbidden {
		status = http.StatusForbidden
	}
	a.want(t, status, fmt.Sprintf(`{"code":%d,"message":%q}`, code, messages[code]))
	if a.err == nil && a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("Content-Type of a refusal is %q", a.Header.Get("Content-Type"))
	}
}

// do sends one request. headers are name, value, …
func (g *rig) do(ctx context.Context, method, query string, body io.Reader, headers ...string) answer {
	r, err := http.NewRequestWithContext(ctx, method, "http://push.example/socket.io/?"+query, body)
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := g.client.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp, string(b), err}
}

// session is a client's half of one session.
type session struct {
	*host
	query string
}

// begin makes a session. more is appended to the query.
func (g *rig) begin(rev eio.Revision, more string) *session {
	g.t.Helper()
	a := g.do(g.t.Context(), "GET", fmt.Sprintf("EIO=%d&transport=polling%s", rev, more), nil)
	if a.err != nil || a.StatusCode != 200 {
		g.t.Fatalf("handshake: %v %v %q", a.err, a.Response, a.body)
	}
	_, sid, _ := strings.Cut(a.body, `"sid":"`)
	sid, _, _ = strings.Cut(sid, `"`)
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.hosts[sid]
	if h == nil {
		g.t.Fatalf("no session of sid %q in %q", sid, a.body)
	}
	return &session{h, fmt.Sprintf("EIO=%d&transport=polling&sid=%s%s", rev, sid, more)}
}

func (c *session) get() answer { return c.g.do(c.g.t.Context(), "GET", c.query, nil) }

// hold is a GET that is not answered at once.
func (c *session) hold() <-chan answer {
	done := make(chan answer, 1)
	go func() { done <- c.get() }()
	synctest.Wait()
	select {
	case a := <-done:
		c.g.t.Errorf("the GET was not held: %v %q %v", a.Response, a.body, a.err)
		done <- a
	default:
	}
	return done
}

func (c *session) post(body string, headers ...string) answer {
	return c.g.do(c.g.t.Context(), "POST", c.query, strings.NewReader(body), append([]string{"Content-Type", "text/plain;charset=UTF-8"}, headers...)...)
}

// socket dials the upgrade of the session.
func (c *session) socket() *socket {
	c.g.t.Helper()
	d := websocket.Dialer{NetDialContext: c.g.ln.DialContext}
	conn, resp, err := d.DialContext(c.g.t.Context(), "ws://push.example/socket.io/?"+strings.Replace(c.query, "transport=polling", "transport=websocket", 1), nil)
	if err != nil {
		c.g.t.Fatalf("dial: %v %v", err, resp)
	}
	c.g.t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(2 * time.Hour))
	return &socket{c.g.t, conn}
}

// socket is the client's end of a WebSocket.
type socket struct {
	t *testing.T
	*websocket.Conn
}

func (s *socket) say(text string) {
	s.t.Helper()
	if err := s.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		s.t.Errorf("writing %q: %v", text, err)
	}
}

func (s *socket) hear(want string) {
	s.t.Helper()
	if _, b, err := s.ReadMessage(); err != nil || string(b) != want {
		s.t.Errorf("the WebSocket said %q, %v, want %q", b, err, want)
	}
}

// wantEnd wants the server to say goodbye and close.
func (s *socket) wantEnd() {
	s.t.Helper()
	_, b, err := s.ReadMessage()
	if _, ok := err.(*websocket.CloseError); !ok {
		s.t.Errorf("the WebSocket said %q, %v, want a close frame", b, err)
	}
	s.Close()
}

// wantCut wants the socket closed, in whatever way.
func (s *socket) wantCut() {
	s.t.Helper()
	s.SetReadDeadline(time.Now().Add(time.Minute))
	_, b, err := s.ReadMessage()
	if ne, ok := err.(net.Error); err == nil || ok && ne.Timeout() {
		s.t.Errorf("the WebSocket said %q, %v, want it closed", b, err)
	}
}

// both runs f for both revisions, in bubbles.
func both(t *testing.T, f func(t *testing.T, rev eio.Revision)) {
	t.Helper()
	for _, rev := range []eio.Revision{eio.V3, eio.V4} {
		t.Run(fmt.Sprintf("EIO=%d", rev), func(t *testing.T) {
			inBubble(t, func(t *testing.T) { f(t, rev) })
		})
	}
}

// body is packets as a body in text.
func body(rev eio.Revision, packets ...string) string {
	if rev == eio.V4 {
		return strings.Join(packets, "\x1e")
	}
	var b strings.Builder
	for _, p := range packets {
		fmt.Fprintf(&b, "%d:%s", len([]rune(p)), p)
	}
	return b.String()
}

package relay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/netio"
	"github.com/embedpush/push/internal/polling"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// pair is two nodes on a network in memory, the holder "10.0.0.1", where
// sessions begin, and the entry "10.0.0.2", where their clients go on.
type pair struct {
	t             *testing.T
	net           *memnet.Network
	holder, entry *station

	mu    sync.Mutex // guards what follows
	hosts map[string]*host
}

// station is a node: a polling.Server behind an http.Server, and a Relay.
type station struct {
	p      *pair
	ip     string
	tag    [8]byte
	s      *polling.Server
	relay  *Relay
	http   *http.Server
	d      *netio.Driver
	ln     *memnet.Listener
	client *http.Client
	dials  atomic.Int64 // of its Relay

	mu      sync.Mutex // guards what follows
	refused map[polling.Why]int
	seen    []*http.Request // that were relayed to it
}

const relayPort = 7946

// noLog is under the log of the entry's server, which has nothing to tell: no
// panic above all.
type noLog struct{ t *testing.T }

func (l noLog) Write(b []byte) (int, error) {
	l.t.Errorf("the host's server logs %q", clip(string(b)))
	return len(b), nil
}

// newPair makes the nodes; change, if not nil, changes what is about to be
// started of each.
func newPair(t *testing.T, change func(st *station, c *Config, pc *polling.Config)) *pair {
	t.Helper()
	p := &pair{t: t, net: memnet.New(1), hosts: map[string]*host{}}
	key := bytes.Repeat([]byte{7}, 32)
	p.holder = p.newStation("10.0.0.1", key, change)
	p.entry = p.newStation("10.0.0.2", key, change)
	t.Cleanup(func() {
		for _, st := range []*station{p.entry, p.holder} {
			st.client.CloseIdleConnections()
			st.http.Close()
			st.relay.Close()
			st.d.Close()
		}
		time.Sleep(5 * time.Second) // net/http lingers
	})
	synctest.Wait() // everybody serves
	return p
}

func tagOf(ip string) (tag [8]byte) { copy(tag[:], ip); return tag }

func ipOf(tag [8]byte) string { return strings.TrimRight(string(tag[:]), "\x00") }

func (p *pair) newStation(ip string, key []byte, change func(*station, *Config, *polling.Config)) *station {
	p.t.Helper()
	st := &station{p: p, ip: ip, tag: tagOf(ip), http: &http.Server{ErrorLog: log.New(noLog{p.t}, "", 0)}, refused: map[polling.Why]int{}}
	machine := p.net.Host(ip)
	c := Config{
		Dial: func(ctx context.Context, node string) (net.Conn, error) {
			st.dials.Add(1)
			return machine.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", node, relayPort))
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			st.mu.Lock()
			st.seen = append(st.seen, r)
			st.mu.Unlock()
			st.s.ServeHTTP(w, r)
		}),
	}
	pc := polling.Config{
		Sids:   polling.NewSids(st.tag, key),
		Origin: func(r *http.Request) (bool, bool) { return r.Header.Get("Origin") == "https://page.example", true },
		Open:   st.open,
		Relay: func(w http.ResponseWriter, r *http.Request, tag [8]byte) bool {
			st.relay.Forward(w, r, ipOf(tag))
			return true
		},
		Refused: func(why polling.Why) { st.mu.Lock(); st.refused[why]++; st.mu.Unlock() },
	}
	if change != nil {
		change(st, &c, &pc)
	}
	st.relay, st.s, st.d = New(c), polling.New(pc), netio.New(netio.Config{QueueBytes: 8 << 20})
	if st.http.Handler == nil {
		st.http.Handler = st.s
	}
	st.ln = p.listen(machine, 80)
	go st.http.Serve(st.ln)
	between := p.listen(machine, relayPort)
	go st.relay.Serve(between)
	st.client = &http.Client{
		Transport: &http.Transport{DialContext: st.ln.DialContext, Protocols: st.http.Protocols},
		Timeout:   2 * time.Hour, // virtual: so that nothing hangs
	}
	return st
}

func (p *pair) listen(machine *memnet.Host, port int) *memnet.Listener {
	p.t.Helper()
	ln, err := machine.Listen(port)
	if err != nil {
		p.t.Fatal(err)
	}
	return ln
}

func (st *station) open(w http.ResponseWriter, r *http.Request, a polling.Ask) {
	h := &host{st: st, p: st.s.NewSession(a), reader: eio.NewReader(a.Revision, 1_000_000), limit: 1_000_000}
	h.nc = new(netio.Conn)
	st.d.DrivePulled(h.nc, h, h.p.Wake, netip.AddrPort{})
	st.p.mu.Lock()
	st.p.hosts[h.p.SID()] = h
	st.p.mu.Unlock()
	h.nc.Write(eio.AppendOpen(nil, &eio.Handshake{SID: h.p.SID(), Upgrade: true, PingInterval: 25 * time.Second, PingTimeout: 20 * time.Second, MaxPayload: 1_000_000}))
	h.nc.Start()
	h.p.Begin(w, r, h.nc, h)
}

// host is a session's host that writes down what it is told.
type host struct {
	st *station
	p  *polling.Session
	nc *netio.Conn

	mu       sync.Mutex // guards what follows
	reader   eio.Reader
	limit    int // PostLimit
	stalled  bool
	got      []string
	broken   []error
	upgraded int
	closed   bool
}

func (h *host) PostLimit() int       { h.mu.Lock(); defer h.mu.Unlock(); return h.limit }
func (h *host) Alive(time.Time) bool { return true }
func (h *host) Posted(binary bool)   { h.mu.Lock(); defer h.mu.Unlock(); h.reader.Body(binary) }
func (h *host) Tick(time.Time)       {}
func (h *host) Slow()                {}

func (h *host) Upgraded() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.upgraded++
	h.reader.WebSocket()
}

func (h *host) Broken(err error) {
	h.mu.Lock()
	h.broken = append(h.broken, err)
	h.mu.Unlock()
	h.nc.Close()
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
		case p.Type == eio.Message:
			h.got = append(h.got, string(p.Data))
		}
	}
	return n
}

func (h *host) Closed(error) {
	h.p.End()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
}

func (h *host) stall(on bool) {
	h.mu.Lock()
	h.stalled = on
	h.mu.Unlock()
	if !on {
		h.nc.Resume()
	}
}

func (h *host) send(text string) {
	if err := h.nc.Write(eio.AppendPacket(nil, eio.Message, text)); err != nil {
		h.st.p.t.Errorf("Write of %d bytes: %v", len(text), err)
	}
}

func (h *host) wantGot(want ...string) {
	h.st.p.t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.got, want) {
		h.st.p.t.Errorf("the host got %q, want %q", h.got, want)
	}
}

// wantLeft wants the session ended, once, as one whose client went away.
func (h *host) wantLeft() {
	h.st.p.t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.broken) != 1 || h.broken[0] != nil || !h.closed {
		h.st.p.t.Errorf("broken: %v, closed: %v, want a client that went away", h.broken, h.closed)
	}
}

// wantWhole wants a session that lives.
func (h *host) wantWhole() {
	h.st.p.t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.broken) > 0 || h.closed {
		h.st.p.t.Errorf("broken: %v, closed: %v, want neither", h.broken, h.closed)
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
		t.Errorf("got error %v, want %d %q", a.err, status, clip(body))
	} else if a.StatusCode != status || a.body != body {
		t.Errorf("got %d %q, want %d %q", a.StatusCode, clip(a.body), status, clip(body))
	}
}

func clip(s string) string { return s[:min(len(s), 200)] }

func (a answer) wantUnknown(t *testing.T) {
	t.Helper()
	a.want(t, 400, `{"code":1,"message":"Session ID unknown"}`)
}

// wantUnavailable wants a 503 in the form of the protocol's refusals.
func (a answer) wantUnavailable(t *testing.T) {
	t.Helper()
	if a.err != nil || a.StatusCode != 503 || !strings.HasPrefix(a.body, `{"code":3,"message":"`) || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("got %v, %v %q, want 503 with code 3", a.err, a.Response, a.body)
	}
}

// do sends one request. headers are name, value, …
func (st *station) do(ctx context.Context, method, query string, body io.Reader, headers ...string) answer {
	r, err := http.NewRequestWithContext(ctx, method, "http://push.example/socket.io/?"+query, body)
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := st.client.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp, string(b), err}
}

// session is a client's half of one session, which asks the entry.
type session struct {
	*host
	t     *testing.T
	via   *station
	query string
}

// begin makes a session at the holder.
func (p *pair) begin(rev eio.Revision) *session {
	p.t.Helper()
	a := p.holder.do(p.t.Context(), "GET", fmt.Sprintf("EIO=%d&transport=polling", rev), nil)
	if a.err != nil || a.StatusCode != 200 {
		p.t.Fatalf("handshake: %v %v %q", a.err, a.Response, a.body)
	}
	_, sid, _ := strings.Cut(a.body, `"sid":"`)
	sid, _, _ = strings.Cut(sid, `"`)
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hosts[sid]
	if h == nil {
		p.t.Fatalf("no session of sid %q in %q", sid, a.body)
	}
	return &session{h, p.t, p.entry, fmt.Sprintf("EIO=%d&transport=polling&sid=%s", rev, sid)}
}

func (c *session) get(headers ...string) answer {
	return c.via.do(c.t.Context(), "GET", c.query, nil, headers...)
}

// hold is a GET that is not answered at once.
func (c *session) hold() <-chan answer {
	done := make(chan answer, 1)
	go func() { done <- c.get() }()
	time.Sleep(100 * time.Millisecond)
	select {
	case a := <-done:
		c.t.Errorf("the GET was not held: %v %q %v", a.Response, clip(a.body), a.err)
		done <- a
	default:
	}
	return done
}

func (c *session) post(body string, headers ...string) answer {
	return c.via.do(c.t.Context(), "POST", c.query, strings.NewReader(body), append([]string{"Content-Type", "text/plain;charset=UTF-8"}, headers...)...)
}

// socket dials the upgrade of the session.
func (c *session) socket() *socket {
	c.t.Helper()
	d := websocket.Dialer{NetDialContext: c.via.ln.DialContext}
	conn, resp, err := d.DialContext(c.t.Context(), "ws://push.example/socket.io/?"+strings.Replace(c.query, "transport=polling", "transport=websocket", 1), nil)
	if err != nil {
		c.t.Fatalf("dial: %v %v", err, resp)
	}
	c.t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(12 * time.Hour))
	return &socket{c.t, conn}
}

// upgrade makes a WebSocket the session's transport.
func (c *session) upgrade() *socket {
	c.t.Helper()
	s := c.socket()
	s.say("2probe")
	s.hear("3probe")
	s.say("5")
	time.Sleep(100 * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.upgraded != 1 {
		c.t.Errorf("Upgraded was called %d times", c.upgraded)
	}
	return s
}

// raw sends a request over a connection of its own, and returns it with nothing
// of the answer read.
func (c *session) raw(head string) net.Conn {
	c.t.Helper()
	conn, err := c.via.ln.Dial()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	io.WriteString(conn, strings.Replace(head, "QUERY", c.query, 1))
	return conn
}

// socket is the client's end of a WebSocket.
type socket struct {
	t *testing.T
	*websocket.Conn
}

func (s *socket) say(text string) {
	s.t.Helper()
	if err := s.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		s.t.Errorf("writing %q: %v", clip(text), err)
	}
}

func (s *socket) hear(want string) {
	s.t.Helper()
	if _, b, err := s.ReadMessage(); err != nil || string(b) != want {
		s.t.Errorf("the WebSocket said %q, %v, want %q", clip(string(b)), err, clip(want))
	}
}

// wantEnd wants the WebSocket closed within a time.
func (s *socket) wantEnd(within time.Duration) {
	s.t.Helper()
	s.SetReadDeadline(time.Now().Add(within))
	_, b, err := s.ReadMessage()
	if ne, ok := err.(net.Error); err == nil || ok && ne.Timeout() {
		s.t.Errorf("the WebSocket said %q, %v, want it closed", clip(string(b)), err)
	}
}

// both runs f for both revisions, in bubbles.
func both(t *testing.T, f func(t *testing.T, rev eio.Revision)) {
	t.Helper()
	for _, rev := range []eio.Revision{eio.V3, eio.V4} {
		t.Run(fmt.Sprintf("EIO=%d", rev), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, rev) })
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

func (h *host) shut() { h.nc.Shut(ws.AppendClose(nil, wire.GoingAway, ""), false, 30*time.Second) }

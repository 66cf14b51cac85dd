package test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
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
	"unicode/utf16"

	"github.com/gorilla/websocket"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push"
)

// socketIODoors are the doors of Socket.IO that every promise is tested over:
// what Conn.Protocol says, and the transport.
var socketIODoors = []string{
	"socket.io.5 websocket", "socket.io.4 websocket", "socket.io.msgpack websocket",
	"socket.io.5 polling", "socket.io.4 polling", "socket.io.5 upgrade",
}

// moreSocketIODoors are the others; overSocketIO has all.
var moreSocketIODoors = []string{"socket.io.4 upgrade", "socket.io.msgpack polling", "socket.io.msgpack upgrade"}

func isSocketIO(dialect string) bool { return strings.HasPrefix(dialect, "socket.io") }

// overPages runs a test once for each door of pages, in virtual time.
func overPages(t *testing.T, f func(t *testing.T, dialect string)) {
	for _, dialect := range slices.Concat(dialectNames, socketIODoors) {
		t.Run(dialect, func(t *testing.T) {
			inBubble(t, func(t *testing.T) { f(t, dialect) })
		})
	}
}

// inBubble runs f in virtual time, and lets time go on for a moment at its end:
// net/http lingers over a connection on which it refused a body.
func inBubble(t *testing.T, f func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Second) })
		f(t)
	})
}

// overSocketIO runs a test once for each door of Socket.IO, in virtual time.
func overSocketIO(t *testing.T, f func(t *testing.T, door string)) {
	for _, door := range slices.Concat(socketIODoors, moreSocketIODoors) {
		t.Run(door, func(t *testing.T) {
			inBubble(t, func(t *testing.T) { f(t, door) })
		})
	}
}

// overWebSockets is overPages without polling, where a page that reads nothing
// takes nothing out of its queue either.
func overWebSockets(t *testing.T, f func(t *testing.T, dialect string)) {
	for i := range webSocketDoors {
		t.Run(anyWebSocket(i), func(t *testing.T) {
			inBubble(t, func(t *testing.T) { f(t, anyWebSocket(i)) })
		})
	}
}

const webSocketDoors = 6

func anyWebSocket(i int) string {
	i %= webSocketDoors
	if i == webSocketDoors-1 {
		return "socket.io.5 upgrade"
	}
	return anyDoor(i)
}

// anyDoor is one door after the other.
func anyDoor(i int) string {
	all := slices.Concat(dialectNames, socketIODoors)
	return all[i%len(all)]
}

// ioClient is a client of Engine.IO, with as much of Socket.IO on top as its
// pages use. It behaves like the ones of npm until it is told not to.
type ioClient struct {
	t         testing.TB
	w         *world
	rev       int // of Engine.IO
	packed    bool
	transport string // "websocket", "polling", "upgrade"
	path      string
	query     url.Values // of every request
	header    http.Header

	hello struct {
		SID          string   `json:"sid"`
		Upgrades     []string `json:"upgrades"`
		PingInterval int      `json:"pingInterval"`
		PingTimeout  int      `json:"pingTimeout"`
		MaxPayload   int      `json:"maxPayload"`
	}
	manual bool // set before opening: pings come to next, and nothing is sent by itself

	mute   atomic.Bool // answers no pings, or of revision 3 sends none
	stays  atomic.Bool // does not close when it is disconnected from everywhere
	pings  atomic.Int64
	gets   atomic.Int64
	posts  atomic.Int64
	tr     *http.Transport
	ctx    context.Context // of its requests
	cancel context.CancelFunc
	wg     sync.WaitGroup
	done   chan struct{} // closed when nothing more comes

	hearing turn // had while a packet is given to a page
	sending turn // had while something is sent, and while the transport changes

	queued chan struct{} // pokes the sender; never closed
	polled chan struct{} // closed when the last GET before the upgrade is done

	mu      sync.Mutex
	ws      *websocket.Conn  // guarded by mu, and changed only by who has sending; nil: it polls
	gate    *gateConn        // guarded by mu: of ws
	out     []ioOut          // guarded by mu: to be sent by POST
	pausing bool             // guarded by mu: the next GET is not made
	leaving bool             // guarded by mu: it said goodbye
	held    chan struct{}    // guarded by mu: closed by resume; nil while not paused
	pages   map[string]*page // guarded by mu: by namespace
	got     []ioPacket       // guarded by mu: for no page
	half    *ioPacket        // guarded by mu: waits for attachments
	want    int              // guarded by mu: how many
	parts   [][]byte         // guarded by mu
	err     *ioEnd           // guarded by mu
	changed chan struct{}    // guarded by mu: closed when something came
}

// turn is a lock on which virtual time does not wait.
type turn chan struct{}

func (t turn) Lock()   { t <- struct{}{} }
func (t turn) Unlock() { <-t }

// ioOut are packets that go out together.
type ioOut struct {
	packets []ioMessage
	sent    chan struct{}
}

// ioMessage is one packet of Engine.IO: text with its type, or a binary
// message without.
type ioMessage struct {
	text   string
	binary []byte // nil: text
}

// ioPacket is one packet of Socket.IO, or what is none of it, as text.
type ioPacket struct {
	text  string // as it came, but for attachments; msgpack: as it would have come in text
	typ   byte   // 0 to 4; 9: no packet of Socket.IO
	space string
	id    int64 // -1: none
	data  json.RawMessage
	args  []json.RawMessage // of an event or ack, bytes as base64
	bytes [][]byte          // beside args
}

func (p ioPacket) String() string { return p.text }

// ioEnd is why nothing more comes.
type ioEnd struct {
	disconnected bool // by a packet of Socket.IO
	refused      bool
	ours         bool // by us
	code         int  // of the WebSocket's close frame
	closed       bool // by a close packet
	status       int  // of the request that was refused
	err          error
}

func (e *ioEnd) Error() string {
	return fmt.Sprintf("end (disconnected %v, ours %v, close code %d, close packet %v, status %d): %v", e.disconnected, e.ours, e.code, e.closed, e.status, e.err)
}

// endedWith reports whether err is the end that a page of a WebSocket has with
// this close code. Socket.IO has a packet for who shall not come back, and no
// codes over polling.
func endedWith(err error, code int) bool {
	end := new(ioEnd)
	if !errors.As(err, &end) {
		return websocket.IsCloseError(err, code)
	}
	if code == 4410 || code == 4409 || code == 4401 {
		return end.disconnected
	}
	return !end.disconnected && !end.refused && !end.ours && (end.code == code || end.closed || end.status == http.StatusBadRequest)
}

// triesToOpen makes the handshake. More is "key=value" of the query, or of a
// header behind an "@". The status is the one that refused it, 0 without one.
func (w *world) triesToOpen(door string, more ...string) (c *ioClient, status int, body string, err error) {
	protocol, transport, _ := strings.Cut(door, " ")
	c = &ioClient{
		t: w.t, w: w, rev: 4, packed: protocol == "socket.io.msgpack", transport: transport, path: "/socket.io/",
		query: url.Values{}, header: http.Header{}, done: make(chan struct{}), changed: make(chan struct{}),
		hearing: make(turn, 1), sending: make(turn, 1), queued: make(chan struct{}, 1), polled: make(chan struct{}), pages: map[string]*page{},
	}
	if protocol == "socket.io.4" {
		c.rev = 3
	}
	c.query.Set("EIO", strconv.Itoa(c.rev))
	for _, kv := range more {
		k, v, _ := strings.Cut(kv, "=")
		switch {
		case k == "":
		case k == "origin":
			c.header.Set("Origin", v)
		case k == "path":
			c.path = v
		case k == "manual":
			c.manual = true
		case k[0] == '@':
			c.header.Add(k[1:], v)
		default:
			c.query.Add(k, v)
		}
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.tr = &http.Transport{DialContext: w.dial, DisableCompression: true}
	if c.transport == "websocket" {
		return c.openWebSocket()
	}
	status, kind, b, err := c.request("GET", "", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d %s", status, b)
	}
	if err != nil {
		c.cancel()
		c.tr.CloseIdleConnections()
		return c, status, string(b), err
	}
	packets, err := decodePayload(c.rev, kind, b)
	if err != nil || len(packets) == 0 {
		w.t.Fatalf("handshake of %q: %v", b, err)
	}
	if packets[0].text == "1" { // the engine ended meanwhile, or too much was pushed at once
		c.cancel()
		c.tr.CloseIdleConnections()
		return c, 0, "", &ioEnd{closed: true, err: errors.New("closed during the handshake")}
	}
	c.greeted(packets[0])
	w.remember(c)
	c.take(packets[1:])
	c.wg.Go(c.poll)
	c.wg.Go(c.post)
	if c.transport == "upgrade" {
		c.upgrades()
	}
	c.beat()
	return c, 0, "", nil
}

func (w *world) remember(c *ioClient) {
	w.mu.Lock()
	w.clients = append(w.clients, c)
	w.mu.Unlock()
}

// opens is triesToOpen for who is let in.
func (w *world) opens(door string, more ...string) *ioClient {
	w.t.Helper()
	c, status, body, err := w.triesToOpen(door, more...)
	if err != nil {
		w.t.Fatalf("%s opens: %d %s %v", door, status, body, err)
	}
	return c
}

func (c *ioClient) greeted(p ioMessage) {
	c.t.Helper()
	if p.binary != nil || len(p.text) == 0 || p.text[0] != '0' || json.Unmarshal([]byte(p.text[1:]), &c.hello) != nil || c.hello.SID == "" {
		c.t.Fatalf("the first packet is %q", p.text)
	}
}

func (c *ioClient) url(scheme, transport string) string {
	q := url.Values{}
	for k, v := range c.query {
		q[k] = v
	}
	q.Set("transport", transport)
	if c.hello.SID != "" {
		q.Set("sid", c.hello.SID)
	}
	return scheme + "://push.test" + c.path + "?" + q.Encode()
}

// request makes one request of polling.
func (c *ioClient) request(method, kind string, body []byte) (status int, answered string, b []byte, err error) {
	r, err := http.NewRequestWithContext(c.ctx, method, c.url("http", "polling"), bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	for k, v := range c.header {
		r.Header[k] = v
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	resp, err := c.tr.RoundTrip(r)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	b, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header.Get("Content-Type"), b, err
}

func (c *ioClient) dialWebSocket() (*websocket.Conn, *gateConn, *http.Response, error) {
	var gate *gateConn
	d := websocket.Dialer{NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := c.w.dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		gate = &gateConn{Conn: nc, once: make(chan struct{})}
		return gate, nil
	}}
	ws, resp, err := d.DialContext(context.Background(), c.url("ws", "websocket"), c.header)
	return ws, gate, resp, err
}

func (c *ioClient) openWebSocket() (*ioClient, int, string, error) {
	ws, gate, resp, err := c.dialWebSocket()
	if err != nil {
		c.cancel()
		if resp == nil {
			return c, 0, "", err
		}
		b, _ := io.ReadAll(resp.Body)
		return c, resp.StatusCode, string(b), err
	}
	_, b, err := ws.ReadMessage()
	if err != nil {
		ws.Close()
		c.cancel()
		return c, 0, "", err
	}
	c.greeted(ioMessage{text: string(b)})
	c.setWebSocket(ws, gate)
	c.w.remember(c)
	c.wg.Go(func() { c.read(ws) })
	c.beat()
	return c, 0, "", nil
}

// beat sends the pings of revision 3.
func (c *ioClient) beat() {
	if c.rev != 3 || c.manual {
		return
	}
	c.wg.Go(func() {
		for {
			select {
			case <-time.After(time.Duration(c.hello.PingInterval) * time.Millisecond):
				if !c.mute.Load() {
					c.enqueue(ioMessage{text: "2"})
				}
			case <-c.done:
				return
			}
		}
	})
}

// upgrades from polling to a WebSocket, as the clients do it: what is sent
// meanwhile waits.
func (c *ioClient) upgrades() {
	c.t.Helper()
	ws, gate, _, err := c.dialWebSocket()
	if err != nil {
		if c.w.Ready() == nil {
			c.t.Errorf("upgrade: %v", err)
		}
		return
	}
	ws.WriteMessage(websocket.TextMessage, []byte("2probe"))
	if _, b, err := ws.ReadMessage(); err != nil || string(b) != "3probe" {
		ws.Close()
		c.mu.Lock()
		ended := c.err != nil
		c.mu.Unlock()
		if !ended && c.w.Ready() == nil {
			c.t.Errorf("upgrade: the probe was answered %q, %v", b, err)
		}
		return
	}
	c.sending.Lock() // a POST under way is done by then, and none begins
	defer c.sending.Unlock()
	c.mu.Lock()
	c.pausing = true
	c.mu.Unlock()
	select {
	case <-c.polled:
	case <-c.done:
		ws.Close()
		return
	}
	ws.WriteMessage(websocket.TextMessage, []byte("5"))
	c.setWebSocket(ws, gate)
	c.wg.Go(func() { c.read(ws) })
}

func (c *ioClient) setWebSocket(ws *websocket.Conn, gate *gateConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ws, c.gate = ws, gate; c.held != nil {
		gate.pause()
	}
	if c.err != nil {
		gate.Conn.Close()
	}
}

func (c *ioClient) webSocket() *websocket.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ws
}

// poll makes one GET after the other.
func (c *ioClient) poll() {
	for {
		c.mu.Lock()
		held, pausing := c.held, c.pausing
		c.mu.Unlock()
		if pausing {
			close(c.polled)
			return
		}
		if held != nil {
			select {
			case <-held:
			case <-c.ctx.Done():
				c.ends(&ioEnd{ours: true})
				return
			}
			continue
		}
		c.gets.Add(1)
		status, kind, b, err := c.request("GET", "", nil)
		var packets []ioMessage
		if err == nil && status == http.StatusOK {
			packets, err = decodePayload(c.rev, kind, b)
			if err != nil {
				c.t.Errorf("the body of a GET is %q: %v", b, err)
			}
		} else if err == nil {
			err = fmt.Errorf("%s", b)
		}
		if err != nil {
			c.mu.Lock()
			leaving := c.leaving
			c.mu.Unlock()
			if leaving { // the answer to the goodbye is waited for
				return
			}
			c.ends(&ioEnd{ours: c.ctx.Err() != nil, status: status, err: err})
			return
		}
		if !c.take(packets) {
			return
		}
	}
}

// read reads a WebSocket.
func (c *ioClient) read(ws *websocket.Conn) {
	for {
		kind, b, err := ws.ReadMessage()
		if err != nil {
			end := &ioEnd{err: err, ours: c.ctx.Err() != nil}
			if closed := new(websocket.CloseError); errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure {
				end.code = closed.Code
			}
			c.ends(end)
			ws.Close()
			return
		}
		m := ioMessage{text: string(b)}
		if kind == websocket.BinaryMessage {
			if c.rev == 3 {
				if len(b) == 0 || b[0] != 4 {
					c.t.Errorf("a binary frame of revision 3 begins with %x", b)
				}
				b = b[1:]
			}
			m = ioMessage{binary: append([]byte{}, b...)}
		}
		c.take([]ioMessage{m})
	}
}

// take does what packets say. false: they said that it ends.
func (c *ioClient) take(packets []ioMessage) bool {
	for _, m := range packets {
		if m.binary != nil {
			c.message(m)
			continue
		}
		if m.text == "" {
			c.t.Errorf("an empty packet")
			continue
		}
		switch m.text[0] {
		case '4':
			c.message(m)
		case '2', '3':
			c.mu.Lock()
			c.pings.Add(1)
			c.changedLocked()
			c.mu.Unlock()
			if c.manual {
				c.deliver(ioPacket{text: m.text, typ: 9})
			} else if c.rev == 4 && m.text[0] == '2' {
				if !c.mute.Load() {
					c.enqueue(ioMessage{text: "3" + m.text[1:]})
				}
			} else if c.rev == 4 || m.text[0] == '2' {
				c.t.Errorf("a heartbeat %q in the wrong direction", m.text)
			}
		case '6':
		case '1':
			c.ends(&ioEnd{closed: true})
			return false
		default:
			c.t.Errorf("a packet %q", m.text)
		}
	}
	return true
}

// message reads a packet of Socket.IO, or an attachment.
func (c *ioClient) message(m ioMessage) {
	c.mu.Lock()
	half := c.half
	c.mu.Unlock()
	if c.packed && m.binary != nil {
		p, err := unpack(m.binary)
		if err != nil {
			c.t.Errorf("msgpack %x: %v", m.binary, err)
		}
		c.deliver(p)
		return
	}
	if m.binary != nil {
		if half == nil {
			c.t.Errorf("an attachment %x to nothing", m.binary)
			return
		}
		c.mu.Lock()
		c.parts = append(c.parts, m.binary)
		all := len(c.parts) == c.want
		if all {
			c.half = nil
		}
		c.mu.Unlock()
		if all {
			if err := half.split(c.parts); err != nil {
				c.t.Errorf("%q: %v", half.text, err)
			}
			c.deliver(*half)
		}
		return
	}
	if half != nil {
		c.t.Errorf("%q between attachments", m.text)
	}
	if c.packed {
		c.t.Errorf("text %q to a client of msgpack", m.text)
	}
	p, n, err := parseIO(m.text)
	if err != nil {
		c.t.Errorf("%q: %v", m.text, err)
		return
	}
	if n > 0 {
		c.mu.Lock()
		c.half, c.want, c.parts = &p, n, nil
		c.mu.Unlock()
		return
	}
	if err := p.split(nil); err != nil {
		c.t.Errorf("%q: %v", p.text, err)
	}
	c.deliver(p)
}

func parseIO(s string) (p ioPacket, attachments int, err error) {
	p = ioPacket{text: s, space: "/", id: -1}
	if len(s) < 2 || s[0] != '4' || s[1] < '0' || s[1] > '6' {
		return p, 0, errors.New("no packet")
	}
	p.typ = s[1] - '0'
	s = s[2:]
	if p.typ >= 5 {
		n, rest, ok := strings.Cut(s, "-")
		if attachments, err = strconv.Atoi(n); err != nil || !ok {
			return p, 0, errors.New("no number of attachments")
		}
		p.typ, s = p.typ-3, rest
	}
	if strings.HasPrefix(s, "/") {
		p.space, s, _ = strings.Cut(s, ",")
	}
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	if digits > 0 {
		if p.id, err = strconv.ParseInt(s[:digits], 10, 64); err != nil {
			return p, 0, err
		}
	}
	if p.data = json.RawMessage(s[digits:]); len(p.data) > 0 && !json.Valid(p.data) {
		return p, 0, errors.New("not JSON")
	}
	return p, attachments, nil
}

// split makes args of the data of an event or ack.
func (p *ioPacket) split(parts [][]byte) error {
	if p.typ != 2 && p.typ != 3 {
		return nil
	}
	if err := json.Unmarshal(p.data, &p.args); err != nil {
		return err
	}
	used := 0
	p.bytes = make([][]byte, len(p.args))
	for i, arg := range p.args {
		var hole struct {
			Placeholder bool `json:"_placeholder"`
			Num         int  `json:"num"`
		}
		if json.Unmarshal(arg, &hole) == nil && hole.Placeholder {
			if hole.Num != used || hole.Num >= len(parts) {
				return fmt.Errorf("placeholder %d of %d", hole.Num, len(parts))
			}
			used++
			p.bytes[i] = parts[hole.Num]
			p.args[i], _ = json.Marshal(parts[hole.Num])
		}
	}
	if used != len(parts) {
		return fmt.Errorf("%d attachments, %d placeholders", len(parts), used)
	}
	return nil
}

// unpack reads a packet in msgpack.
func unpack(b []byte) (ioPacket, error) {
	p := ioPacket{id: -1}
	var v map[string]any
	if err := msgpack.Unmarshal(b, &v); err != nil {
		return p, err
	}
	typ, ok := toInt(v["type"])
	if p.space, _ = v["nsp"].(string); !ok || p.space == "" {
		return p, fmt.Errorf("no type or no namespace in %v", v)
	}
	p.typ = byte(typ)
	for k := range v {
		if !slices.Contains([]string{"type", "nsp", "id", "data"}, k) {
			return p, fmt.Errorf("key %q", k)
		}
	}
	if id, ok := v["id"]; ok {
		if p.id, ok = toInt(id); !ok {
			return p, fmt.Errorf("id %v", id)
		}
	}
	if data, ok := v["data"]; ok {
		var err error
		if p.data, err = json.Marshal(data); err != nil {
			return p, err
		}
		if list, ok := data.([]any); ok && (p.typ == 2 || p.typ == 3) {
			for _, arg := range list {
				b, _ := json.Marshal(arg)
				opaque, _ := arg.([]byte)
				p.args, p.bytes = append(p.args, b), append(p.bytes, opaque)
			}
		}
	}
	p.text = fmt.Sprintf("4%d", p.typ)
	if p.space != "/" {
		p.text += p.space + ","
	}
	if p.id >= 0 {
		p.text += fmt.Sprint(p.id)
	}
	p.text += string(p.data)
	return p, nil
}

func toInt(v any) (int64, bool) {
	switch v := v.(type) {
	case int8:
		return int64(v), true
	case uint8:
		return int64(v), true
	case int16:
		return int64(v), true
	case uint16:
		return int64(v), true
	case int32:
		return int64(v), true
	case uint32:
		return int64(v), true
	case int64:
		return v, true
	case uint64:
		return int64(v), true
	}
	return 0, false
}

// encode makes the packets of an event (2) or an ack (3). []byte are opaque.
func (c *ioClient) encode(typ int, space string, id int64, args ...any) []ioMessage {
	if c.packed {
		list := make([]any, 0, len(args))
		for _, arg := range args {
			list = append(list, simple(arg))
		}
		return []ioMessage{packed(typ, space, id, list)}
	}
	var parts []ioMessage
	list := make([]any, 0, len(args))
	for _, arg := range args {
		if b, ok := arg.([]byte); ok {
			list = append(list, map[string]any{"_placeholder": true, "num": len(parts)})
			parts = append(parts, ioMessage{binary: append([]byte{}, b...)})
		} else {
			list = append(list, arg)
		}
	}
	b, err := json.Marshal(list)
	if err != nil {
		panic(err)
	}
	head := strconv.Itoa(typ)
	if len(parts) > 0 {
		head = fmt.Sprintf("%d%d-", typ+3, len(parts))
	}
	return append([]ioMessage{{text: "4" + head + spaceHead(space) + idText(id) + string(b)}}, parts...)
}

func spaceHead(space string) string {
	if space == "/" {
		return ""
	}
	return space + ","
}

func idText(id int64) string {
	if id < 0 {
		return ""
	}
	return fmt.Sprint(id)
}

// packed is a packet as socket.io-msgpack-parser sends it; data nil: without.
func packed(typ int, space string, id int64, data any) ioMessage {
	m := map[string]any{"type": typ, "nsp": space}
	if data != nil {
		m["data"] = data
	}
	if id >= 0 {
		m["id"] = id
	}
	var b bytes.Buffer
	e := msgpack.NewEncoder(&b)
	e.UseCompactInts(true)
	if err := e.Encode(m); err != nil {
		panic(err)
	}
	return ioMessage{binary: b.Bytes()}
}

// simple is what JavaScript would make of a value; bytes stay bytes.
func simple(v any) any {
	if b, ok := v.([]byte); ok {
		return b
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	var out any
	json.Unmarshal(b, &out)
	return whole(out)
}

func whole(v any) any {
	switch v := v.(type) {
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v)
		}
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = whole(v[k])
		}
	}
	return v
}

// connectPacket is a CONNECT; auth nil: without.
func (c *ioClient) connectPacket(space string, auth map[string]any) ioMessage {
	if c.packed {
		if auth == nil {
			return packed(0, space, -1, nil)
		}
		return packed(0, space, -1, simple(auth))
	}
	text := "40" + spaceHead(space)
	if auth != nil {
		b, _ := json.Marshal(auth)
		text += string(b)
	}
	return ioMessage{text: text}
}

func (c *ioClient) disconnectPacket(space string) ioMessage {
	if c.packed {
		return packed(1, space, -1, nil)
	}
	return ioMessage{text: "41" + spaceHead(space)}
}

// deliver gives a packet to its page, or to next.
func (c *ioClient) deliver(p ioPacket) {
	c.hearing.Lock()
	defer c.hearing.Unlock()
	c.mu.Lock()
	to := c.pages[p.space]
	if p.typ == 9 {
		to = nil
	}
	if to == nil {
		c.got = append(c.got, p)
		c.changedLocked()
	}
	c.mu.Unlock()
	if to != nil {
		to.hears(p)
	}
}

func (c *ioClient) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// ends notes that nothing more comes.
func (c *ioClient) ends(why *ioEnd) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = why
	pages := c.pages
	c.pages = map[string]*page{}
	c.changedLocked()
	c.mu.Unlock()
	c.cancel()
	c.tr.CloseIdleConnections()
	close(c.done)
	for _, p := range pages {
		p.ended(why)
	}
}

// sendsAll sends packets in one go: in one POST, or as frames in a row. It
// returns when they are sent.
func (c *ioClient) sendsAll(packets ...ioMessage) {
	select {
	case <-c.enqueue(packets...):
	case <-c.done:
	}
}

var alreadySent = func() chan struct{} { ch := make(chan struct{}); close(ch); return ch }()

// enqueue sends packets and does not wait for the POST.
func (c *ioClient) enqueue(packets ...ioMessage) (sent <-chan struct{}) {
	if c.transport == "websocket" {
		c.sending.Lock()
		defer c.sending.Unlock()
		c.writes(c.webSocket(), packets)
		return alreadySent
	}
	out := ioOut{packets, make(chan struct{})}
	c.mu.Lock()
	c.out = append(c.out, out)
	c.mu.Unlock()
	select {
	case c.queued <- struct{}{}:
	default:
	}
	return out.sent
}

// writes frames; the caller has sending.
func (c *ioClient) writes(ws *websocket.Conn, packets []ioMessage) {
	for _, m := range packets {
		if m.binary == nil {
			ws.WriteMessage(websocket.TextMessage, []byte(m.text))
		} else if c.rev == 3 {
			ws.WriteMessage(websocket.BinaryMessage, append([]byte{4}, m.binary...))
		} else {
			ws.WriteMessage(websocket.BinaryMessage, m.binary)
		}
	}
}

// post sends what is queued, all that there is at a time, as the clients do.
func (c *ioClient) post() {
	for {
		select {
		case <-c.queued:
		case <-c.done:
			return
		}
		c.sending.Lock()
		c.mu.Lock()
		out := c.out
		c.out = nil
		c.mu.Unlock()
		var all []ioMessage
		for _, o := range out {
			all = append(all, o.packets...)
		}
		switch {
		case len(all) == 0:
		case c.webSocket() != nil:
			c.writes(c.webSocket(), all)
		default:
			c.postsAll(all)
		}
		c.sending.Unlock()
		for _, o := range out {
			close(o.sent)
		}
	}
}

func (c *ioClient) postsAll(all []ioMessage) {
	body, kind := encodePayload(c.rev, c.query.Get("b64") != "", all)
	c.posts.Add(1)
	status, _, b, err := c.request("POST", kind, body)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("POST: %s", b)
	} else if err == nil && string(b) != "ok" {
		c.t.Errorf("a POST is answered %q", b)
	}
	if err != nil && !c.manual {
		c.ends(&ioEnd{ours: c.ctx.Err() != nil, status: status, err: err})
	}
}

// says text packets, types of Engine.IO and all, in one go.
func (c *ioClient) says(texts ...string) {
	var packets []ioMessage
	for _, text := range texts {
		packets = append(packets, ioMessage{text: text})
	}
	c.sendsAll(packets...)
}

// nextPacket is the next packet for none of its pages.
func (c *ioClient) nextPacket() (p ioPacket) {
	c.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		c.mu.Lock()
		changed, err := c.changed, c.err
		if len(c.got) > 0 {
			p, c.got = c.got[0], c.got[1:]
			c.mu.Unlock()
			return p
		}
		c.mu.Unlock()
		if err != nil {
			c.t.Fatalf("a client waits for a packet: %v", err)
		}
		select {
		case <-changed:
		case <-timeout.C:
			c.t.Fatal("a client waits for a packet in vain")
		}
	}
}

// wants packets to come next, as they would be in text.
func (c *ioClient) wants(texts ...string) {
	c.t.Helper()
	for _, want := range texts {
		if p := c.nextPacket(); p.text != want {
			c.t.Fatalf("a client got %q, want %q", p.text, want)
		}
	}
}

// wantsConnect wants a CONNECT to be answered, and returns the id.
func (c *ioClient) wantsConnect(space string) (sid string) {
	c.t.Helper()
	p := c.nextPacket()
	if p.typ != 0 || p.space != space {
		c.t.Fatalf("a client got %q, want to be connected to %s", p.text, space)
	}
	var reply struct {
		SID string `json:"sid"`
	}
	if c.rev == 3 {
		if len(p.data) > 0 {
			c.t.Errorf("a client 2.x got %q", p.text)
		}
	} else if json.Unmarshal(p.data, &reply) != nil || reply.SID == "" {
		c.t.Errorf("a CONNECT is answered %q", p.text)
	}
	return reply.SID
}

// wantsRefusal wants a CONNECT to be refused with this text.
func (c *ioClient) wantsRefusal(space, text string) {
	c.t.Helper()
	quoted, _ := json.Marshal(text)
	want := "44" + spaceHead(space) + string(quoted)
	if c.rev == 4 {
		want = "44" + spaceHead(space) + `{"message":` + string(quoted) + "}"
	}
	c.wants(want)
}

// wantsNothing is wantNothing.
func (c *ioClient) wantsNothing() {
	c.t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.got) > 0 || c.err != nil {
		c.t.Fatalf("a client got %v (%v), want nothing", c.got, c.err)
	}
}

// wantsEnd wants the server to close the transport without a packet before it,
// over a WebSocket with this code, if it is not 0.
func (c *ioClient) wantsEnd(code int) {
	c.t.Helper()
	end := c.end()
	c.mu.Lock()
	got := slices.Clone(c.got)
	c.mu.Unlock()
	if len(got) > 0 {
		c.t.Errorf("a client got %v, want to be closed first", got)
	}
	if end.ours || end.disconnected || c.webSocket() != nil && code != 0 && end.code != code {
		c.t.Errorf("a client ended with %v, want to be closed (%d)", end, code)
	}
}

func (c *ioClient) end() *ioEnd {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		c.t.Fatal("a client is not closed")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// closes says goodbye as the clients do: a close frame, or a close packet.
func (c *ioClient) closes() {
	if ws := c.webSocket(); ws != nil {
		ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
		return
	}
	c.mu.Lock()
	c.leaving = true
	c.mu.Unlock()
	sent := c.enqueue(ioMessage{text: "1"})
	c.wg.Go(func() {
		select {
		case <-sent:
		case <-c.done:
		}
		c.ends(&ioEnd{ours: true})
	})
}

// cuts its connections without a word.
func (c *ioClient) cuts() {
	c.cancel()
	c.mu.Lock()
	gate := c.gate
	c.mu.Unlock()
	if gate != nil {
		gate.Conn.Close()
	}
	c.resume()
}

func (c *ioClient) pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = make(chan struct{})
	}
	if c.gate != nil {
		c.gate.pause()
	}
}

func (c *ioClient) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil {
		close(c.held)
		c.held = nil
	}
	if c.gate != nil {
		c.gate.resume()
	}
}

// ended ends what is left of a client. It is for the world's end.
func (c *ioClient) over() {
	c.cuts()
	c.ends(&ioEnd{ours: true})
	c.wg.Wait()
	c.tr.CloseIdleConnections()
}

// joins a namespace as user, with "key=value" as for connect, and returns the
// page there. It does not wait for the answer.
func (c *ioClient) joins(space, user string, more ...string) *page {
	device := "d" + strconv.FormatInt(c.w.seq.Add(1), 10)
	p := c.page(space, device)
	auth := map[string]any{"device": device}
	query := url.Values{"device": {device}}
	if user != "" {
		auth["user"] = user
		query.Set("user", user)
	}
	var tags []string
	for _, kv := range more {
		k, v, _ := strings.Cut(kv, "=")
		if k == "tag" {
			tags = append(tags, v)
			query.Add("tag", v)
		} else {
			auth[k] = v
			query.Set(k, v)
		}
	}
	if tags != nil {
		auth["tags"] = tags
	}
	if c.rev == 3 {
		c.sendsAll(ioMessage{text: "40" + space + "?" + query.Encode() + ","})
	} else {
		c.sendsAll(c.connectPacket(space, auth))
	}
	return p
}

// page is the client's page in a namespace.
func (c *ioClient) page(space, device string) *page {
	p := &page{t: c.t, w: c.w, io: c, space: space, device: device, dialect: c.w.dialect, done: make(chan struct{}), changed: make(chan struct{})}
	c.hearing.Lock()
	defer c.hearing.Unlock()
	c.mu.Lock()
	var rest []ioPacket
	var mine []ioPacket
	for _, m := range c.got {
		if m.space == space && m.typ != 9 {
			mine = append(mine, m)
		} else {
			rest = append(rest, m)
		}
	}
	c.got = rest
	err := c.err
	if err == nil {
		c.pages[space] = p
	}
	c.mu.Unlock()
	for _, m := range mine {
		p.hears(m)
	}
	if err != nil {
		p.ended(err)
	}
	c.w.mu.Lock()
	c.w.pages = append(c.w.pages, p)
	c.w.mu.Unlock()
	return p
}

// tryConnectIO is tryConnect for Socket.IO: it waits for the answer to the
// CONNECT.
func (w *world) tryConnectIO(user string, more ...string) (*page, *http.Response, error) {
	device := "d" + strconv.FormatInt(w.seq.Add(1), 10)
	var ask []string
	auth := map[string]any{"device": device}
	var tags []string
	old := strings.HasPrefix(w.dialect, "socket.io.4")
	if user != "" {
		auth["user"] = user
		if old {
			ask = append(ask, "user="+user)
		}
	}
	if old {
		ask = append(ask, "device="+device)
	}
	for _, kv := range more {
		k, v, _ := strings.Cut(kv, "=")
		if k == "origin" || old {
			ask = append(ask, kv)
		} else if k == "tag" {
			tags = append(tags, v)
		} else if k != "" {
			auth[k] = v
		}
	}
	if tags != nil {
		auth["tags"] = tags
	}
	c, status, _, err := w.triesToOpen(w.dialect, ask...)
	if err != nil {
		var resp *http.Response
		if status != 0 {
			resp = &http.Response{StatusCode: status}
		}
		return nil, resp, err
	}
	p := c.page("/", device)
	if !old {
		c.sendsAll(c.connectPacket("/", auth))
	}
	return p, nil, p.answered()
}

// answered waits for the answer to the page's CONNECT.
func (p *page) answered() error {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		p.mu.Lock()
		joined, err, changed := p.joined, p.err, p.changed
		p.mu.Unlock()
		switch {
		case joined != "":
			return nil
		case err != nil:
			return err
		}
		select {
		case <-changed:
		case <-timeout.C:
			return errors.New("a CONNECT is not answered")
		}
	}
}

// isIn wants the page's CONNECT to be let in.
func (p *page) isIn() *page {
	p.t.Helper()
	if err := p.answered(); err != nil {
		p.t.Fatalf("%s joins %s: %v", p.device, p.space, err)
	}
	return p
}

// hears a packet of its namespace.
func (p *page) hears(m ioPacket) {
	switch m.typ {
	case 0:
		var reply struct {
			SID string `json:"sid"`
		}
		json.Unmarshal(m.data, &reply)
		p.mu.Lock()
		if p.joined != "" {
			p.t.Errorf("%s is connected twice", p.device)
		}
		p.joined = reply.SID
		if p.joined == "" {
			p.joined = "2.x"
		}
		p.changedLocked()
		p.mu.Unlock()
	case 1, 4:
		c := p.io
		c.mu.Lock()
		if c.pages[p.space] == p {
			delete(c.pages, p.space)
		}
		last := len(c.pages) == 0
		c.mu.Unlock()
		p.ended(&ioEnd{disconnected: m.typ == 1, refused: m.typ == 4, err: errors.New(string(m.data))})
		if last && m.typ == 1 && !c.stays.Load() {
			c.closes()
		}
	case 2, 3:
		p.mu.Lock()
		early := p.joined == ""
		p.mu.Unlock()
		if early {
			p.t.Errorf("%s got %q before it was connected", p.device, m.text)
		}
		e := envelope{args: m.args, bytes: m.bytes}
		args := m.args
		if m.typ == 3 {
			id := uint64(m.id)
			e.Ack = &id
		} else {
			if len(args) == 0 || json.Unmarshal(args[0], &e.Event) != nil {
				p.t.Errorf("%s got %q", p.device, m.text)
				return
			}
			args = args[1:]
			e.args, e.bytes = e.args[1:], e.bytes[1:]
			if m.id >= 0 {
				e.ID = uint64(m.id)
			}
		}
		switch len(args) {
		case 0:
		case 1:
			e.Data = args[0]
			var no struct {
				Error *string `json:"error"`
			}
			if m.typ == 3 && json.Unmarshal(args[0], &no) == nil && no.Error != nil {
				e.Error, e.Data = *no.Error, nil
			}
		default:
			e.Data, _ = json.Marshal(args)
		}
		p.gets(e)
	}
}

// ended is the end of a page of Socket.IO.
func (p *page) ended(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return
	}
	p.err = why
	p.changedLocked()
	close(p.done)
}

// emits an event with any arguments; id -1: without a callback.
func (p *page) emits(id int64, event string, args ...any) {
	p.io.sendsAll(p.io.encode(2, p.space, id, append([]any{event}, args...)...)...)
}

// acks with any arguments.
func (p *page) acknowledges(m envelope, args ...any) {
	p.io.enqueue(p.io.encode(3, p.space, int64(m.ID), args...)...)
}

// leavesSpace leaves the namespace and keeps the transport.
func (p *page) leavesSpace() {
	c := p.io
	c.mu.Lock()
	delete(c.pages, p.space)
	c.mu.Unlock()
	c.sendsAll(c.disconnectPacket(p.space))
	p.ended(&ioEnd{ours: true})
}

func utf16Len(s string) int { return len(utf16.Encode([]rune(s))) }

// encodePayload makes the body of a POST.
func encodePayload(rev int, b64 bool, packets []ioMessage) (body []byte, kind string) {
	const text = "text/plain;charset=UTF-8"
	if rev == 4 {
		for i, m := range packets {
			if i > 0 {
				body = append(body, 0x1e)
			}
			if m.binary != nil {
				body = append(body, "b"+base64.StdEncoding.EncodeToString(m.binary)...)
			} else {
				body = append(body, m.text...)
			}
		}
		return body, text
	}
	octets := !b64 && slices.ContainsFunc(packets, func(m ioMessage) bool { return m.binary != nil })
	for _, m := range packets {
		switch {
		case octets:
			b, mark := []byte(m.text), byte(0)
			if m.binary != nil {
				b, mark = append([]byte{4}, m.binary...), 1
			}
			body = append(body, mark)
			for _, digit := range strconv.Itoa(len(b)) {
				body = append(body, byte(digit-'0'))
			}
			body = append(append(body, 0xff), b...)
		case m.binary != nil:
			s := "b4" + base64.StdEncoding.EncodeToString(m.binary)
			body = append(body, fmt.Sprintf("%d:%s", len(s), s)...)
		default:
			body = append(body, fmt.Sprintf("%d:%s", utf16Len(m.text), m.text)...)
		}
	}
	if octets {
		return body, "application/octet-stream"
	}
	return body, text
}

// decodePayload reads the body of an answer to a GET.
func decodePayload(rev int, kind string, b []byte) (packets []ioMessage, err error) {
	octets := kind == "application/octet-stream"
	switch {
	case !octets && kind != "text/plain; charset=UTF-8":
		return nil, fmt.Errorf("content type %q", kind)
	case rev == 4 && octets:
		return nil, errors.New("octets in revision 4")
	case rev == 4:
		for s := range strings.SplitSeq(string(b), "\x1e") {
			if data, ok := strings.CutPrefix(s, "b"); ok {
				raw, err := base64.StdEncoding.DecodeString(data)
				if err != nil {
					return nil, err
				}
				packets = append(packets, ioMessage{binary: append([]byte{}, raw...)})
			} else {
				packets = append(packets, ioMessage{text: s})
			}
		}
		return packets, nil
	case octets:
		for len(b) > 0 {
			end := bytes.IndexByte(b, 0xff)
			if end < 2 {
				return nil, errors.New("no length")
			}
			n := 0
			for _, digit := range b[1:end] {
				n = n*10 + int(digit)
			}
			if n < 1 || len(b) < end+1+n {
				return nil, errors.New("too short")
			}
			data := b[end+1 : end+1+n]
			switch {
			case b[0] == 1 && data[0] == 4:
				packets = append(packets, ioMessage{binary: append([]byte{}, data[1:]...)})
			case b[0] == 0:
				packets = append(packets, ioMessage{text: string(data)})
			default:
				return nil, errors.New("marked neither as text nor as binary")
			}
			b = b[end+1+n:]
		}
		return packets, nil
	}
	for rest := string(b); rest != ""; {
		head, tail, ok := strings.Cut(rest, ":")
		n, err := strconv.Atoi(head)
		units := utf16.Encode([]rune(tail))
		if !ok || err != nil || n > len(units) {
			return nil, fmt.Errorf("length %q", head)
		}
		s := string(utf16.Decode(units[:n]))
		rest = tail[len(s):]
		if data, ok := strings.CutPrefix(s, "b4"); ok {
			raw, err := base64.StdEncoding.DecodeString(data)
			if err != nil {
				return nil, err
			}
			packets = append(packets, ioMessage{binary: append([]byte{}, raw...)})
		} else if s != "" {
			packets = append(packets, ioMessage{text: s})
		}
	}
	return packets, nil
}

// connOf is the engine's side of the page in a namespace with this id.
func (w *world) connOf(sid string) *push.Conn {
	for c := range w.Conns() {
		if c.ID().String() == sid {
			return c
		}
	}
	return nil
}

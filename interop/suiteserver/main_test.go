package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/memnet"
)

// What the protocol documents of Engine.IO 3 and 4 and of Socket.IO 5 say that a
// server does, against this one, in virtual time.

const (
	host     = "192.0.2.1:80"
	engineIO = "/engine.io/?EIO="
	socketIO = "/socket.io/?EIO=4"
)

// suite is a server and its client.
type suite struct {
	*testing.T
	ln   *memnet.Listener
	http *http.Client
}

func inSuite(t *testing.T, f func(s *suite)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ln, err := memnet.Listen(host)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- run(ctx, ln, io.Discard) }()
		transport := &http.Transport{DialContext: ln.DialContext}
		defer func() {
			transport.CloseIdleConnections()
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			time.Sleep(time.Second) // net/http waits that long for the end of a request that it refused
		}()
		f(&suite{t, ln, &http.Client{Transport: transport}})
	})
}

// each runs a test once for each revision of Engine.IO.
func each(t *testing.T, f func(s *suite, revision string)) {
	for _, revision := range []string{"3", "4"} {
		t.Run("revision "+revision, func(t *testing.T) { inSuite(t, func(s *suite) { f(s, revision) }) })
	}
}

// ask makes a request and returns its status and body.
func (s *suite) ask(method, path, kind, body string) (int, string) {
	s.Helper()
	r, err := http.NewRequest(method, "http://"+host+path, strings.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", kind)
	}
	resp, err := s.http.Do(r)
	if err != nil {
		s.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (s *suite) get(path string) (int, string) { return s.ask("GET", path, "", "") }
func (s *suite) post(path, body string) (int, string) {
	return s.ask("POST", path, "text/plain;charset=UTF-8", body)
}

// want fails unless an answer is this one.
func (s *suite) want(what string, status int, body string, wantStatus int, wantBody string) {
	s.Helper()
	if status != wantStatus || body != wantBody {
		s.Errorf("%s: got %d %q, want %d %q", what, status, body, wantStatus, wantBody)
	}
}

// opened checks an Open packet and returns the sid.
func (s *suite) opened(packet string, upgrades []string) string {
	s.Helper()
	var got map[string]any
	if !strings.HasPrefix(packet, "0") || json.Unmarshal([]byte(packet[1:]), &got) != nil {
		s.Fatalf("%q is no open packet", packet)
	}
	want := map[string]any{"pingInterval": 300.0, "pingTimeout": 200.0, "maxPayload": 1000000.0}
	for key, value := range want {
		if got[key] != value {
			s.Errorf("%s is %v, want %v", key, got[key], value)
		}
	}
	list, ok := got["upgrades"].([]any)
	if !ok || len(list) != len(upgrades) || len(list) == 1 && list[0] != upgrades[0] {
		s.Errorf("upgrades are %v, want %v", got["upgrades"], upgrades)
	}
	if len(got) != 5 {
		s.Errorf("an open packet with %d keys, want 5: %s", len(got), packet)
	}
	sid, _ := got["sid"].(string)
	if sid == "" {
		s.Fatalf("no sid in %q", packet)
	}
	return sid
}

// poll opens a session of polling and returns the path of its requests.
func (s *suite) poll(base, revision string) string {
	s.Helper()
	path := base + revision + "&transport=polling"
	status, body := s.get(path)
	if status != 200 {
		s.Fatalf("open: %d %q", status, body)
	}
	if revision == "3" {
		_, body, _ = strings.Cut(body, ":")
	}
	return path + "&sid=" + s.opened(body, []string{"websocket"})
}

// socket is a WebSocket to the server.
type socket struct {
	*suite
	ws *websocket.Conn
}

func (s *suite) dial(path string) *socket {
	s.Helper()
	dialer := websocket.Dialer{NetDialContext: s.ln.DialContext}
	ws, _, err := dialer.Dial("ws://"+host+path, nil)
	if err != nil {
		s.Fatalf("dial %s: %v", path, err)
	}
	s.Cleanup(func() { ws.Close() })
	return &socket{s, ws}
}

// open opens a session that begins as a WebSocket.
func (s *suite) open(base string) *socket {
	s.Helper()
	c := s.dial(base + "&transport=websocket")
	s.opened(c.read(), nil)
	return c
}

func (c *socket) send(packets ...string) {
	c.Helper()
	for _, p := range packets {
		if err := c.ws.WriteMessage(websocket.TextMessage, []byte(p)); err != nil {
			c.Fatal(err)
		}
	}
}

func (c *socket) sendBytes(b ...byte) {
	c.Helper()
	if err := c.ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
		c.Fatal(err)
	}
}

// next reads a message; binary ones get a mark in front.
func (c *socket) next() (string, error) {
	c.ws.SetReadDeadline(time.Now().Add(10 * time.Second))
	kind, b, err := c.ws.ReadMessage()
	if kind == websocket.BinaryMessage {
		return "bytes:" + string(b), err
	}
	return string(b), err
}

func (c *socket) read() string {
	c.Helper()
	p, err := c.next()
	if err != nil {
		c.Fatalf("read: %v", err)
	}
	return p
}

// expect reads packets, answering pings as a client of revision 4 does.
func (c *socket) expect(want ...string) {
	c.Helper()
	for _, w := range want {
		got := c.read()
		for got == "2" && w != "2" {
			c.send("3")
			got = c.read()
		}
		if got != w {
			c.Fatalf("got %q, want %q", got, w)
		}
	}
}

// expectEnd fails unless the server closes, without another packet than pings.
func (c *socket) expectEnd(within time.Duration) {
	c.Helper()
	begin := time.Now()
	for {
		p, err := c.next()
		if err == nil && p != "2" {
			c.Fatalf("got %q, want the end", p)
		}
		if took := time.Since(begin); took > within {
			c.Fatalf("the end came after %s, want %s", took, within)
		}
		if err != nil {
			return
		}
	}
}

const (
	unknownTransport = `{"code":0,"message":"Transport unknown"}`
	unknownSID       = `{"code":1,"message":"Session ID unknown"}`
	badMethod        = `{"code":2,"message":"Bad handshake method"}`
	badRequest       = `{"code":3,"message":"Bad request"}`
	badVersion       = `{"code":5,"message":"Unsupported protocol version"}`
)

func TestHandshakeIsRefusedInTheWordsOfTheProtocol(t *testing.T) {
	inSuite(t, func(s *suite) {
		for _, c := range []struct{ method, path, body string }{
			{"GET", "/engine.io/", unknownTransport},
			{"GET", "/engine.io/?EIO=4", unknownTransport},
			{"GET", "/engine.io/?EIO=4&transport=abc", unknownTransport},
			{"GET", "/engine.io/?EIO=4&transport=constructor", unknownTransport},
			{"GET", "/engine.io/?transport=polling", badVersion},
			{"GET", "/engine.io/?EIO=abc&transport=polling", badVersion},
			{"GET", "/engine.io/?EIO=2&transport=polling", badVersion},
			{"GET", "/engine.io/?EIO=99&transport=polling", badVersion},
			{"POST", "/engine.io/?EIO=4&transport=polling", badMethod},
			{"PUT", "/engine.io/?EIO=4&transport=polling", badMethod},
			{"GET", "/engine.io/?EIO=4&transport=websocket", badRequest},
			{"GET", "/engine.io/?EIO=4&transport=polling&sid=abc", unknownSID},
			{"GET", "/engine.io/?EIO=3&transport=polling&sid=abc", unknownSID},
		} {
			status, body := s.ask(c.method, c.path, "", "")
			s.want(c.method+" "+c.path, status, body, 400, c.body)
		}
		for _, version := range []string{"", "EIO=abc&", "EIO=5&"} {
			_, resp, err := (&websocket.Dialer{NetDialContext: s.ln.DialContext}).Dial("ws://"+host+"/engine.io/?"+version+"transport=websocket", nil)
			if err == nil || resp.StatusCode != 400 {
				t.Errorf("a WebSocket with %q: %v, want status 400", version, err)
			}
		}
	})
}

func TestHandshakeOpensASession(t *testing.T) {
	each(t, func(s *suite, revision string) {
		s.poll(engineIO, revision)
		c := s.open(engineIO + revision)
		c.ws.Close()
	})
}

func TestMessagesGoBothWaysOverPolling(t *testing.T) {
	inSuite(t, func(s *suite) {
		path := s.poll(engineIO, "4")
		status, body := s.post(path, "4hello\x1e4€😀\x1ebAQIDBA==")
		s.want("POST", status, body, 200, "ok")
		status, body = s.get(path)
		s.want("GET", status, body, 200, "4hello\x1e4€😀\x1ebAQIDBA==")

		path = s.poll(engineIO, "3")
		status, body = s.post(path+"&b64=1", "6:4hello2:4€3:4😀10:b4AQIDBA==")
		s.want("POST of revision 3", status, body, 200, "ok")
		status, body = s.get(path)
		s.want("GET of revision 3", status, body, 200,
			"\x00\x06\xff4hello\x00\x04\xff4€\x00\x05\xff4😀\x01\x05\xff\x04\x01\x02\x03\x04")
		status, body = s.ask("POST", path, "application/octet-stream", "\x00\x06\xff4hello\x01\x05\xff\x04\x01\x02\x03\x04")
		s.want("POST of bytes", status, body, 200, "ok")
		status, body = s.get(path)
		s.want("GET of bytes", status, body, 200, "\x00\x06\xff4hello\x01\x05\xff\x04\x01\x02\x03\x04")
	})
}

func TestMessagesGoBothWaysOverWebSocket(t *testing.T) {
	each(t, func(s *suite, revision string) {
		c := s.open(engineIO + revision)
		c.send("4hello")
		c.expect("4hello")
		if revision == "3" {
			c.sendBytes(4, 1, 2, 3, 4)
			c.expect("bytes:\x04\x01\x02\x03\x04")
			c.send("2")
			c.expect("3")
		} else {
			c.sendBytes(1, 2, 3, 4)
			c.expect("bytes:\x01\x02\x03\x04")
		}
	})
}

func TestMalformedPostEndsItsSessionOnly(t *testing.T) {
	each(t, func(s *suite, revision string) {
		other := s.poll(engineIO, revision)
		for _, body := range []string{"abc", "9", "b!!!", "4a\x1e\x1e", "999999999999:4", "-1:4", "7:4a"} {
			path := s.poll(engineIO, revision)
			status, answer := s.post(path, body)
			s.want("POST of "+body, status, answer, 400, "")
			status, answer = s.get(path)
			s.want("GET after it", status, answer, 400, unknownSID)
		}
		if revision == "4" {
			s.post(other, "4x")
		} else {
			s.post(other, "2:4x")
		}
		if status, body := s.get(other); status != 200 || !strings.HasSuffix(body, "4x") {
			t.Errorf("the other session: %d %q", status, body)
		}
	})
}

func TestTooLargePostIs413(t *testing.T) {
	inSuite(t, func(s *suite) {
		path := s.poll(engineIO, "4")
		status, body := s.post(path, "4"+strings.Repeat("x", maxPayload))
		s.want("POST", status, body, 413, "")
		status, _ = s.post(path, "4"+strings.Repeat("x", maxPayload-1))
		if status != 200 {
			t.Errorf("a POST of maxPayload bytes: %d, want 200", status)
		}
	})
}

func TestOverlappingPollsEndTheSession(t *testing.T) {
	inSuite(t, func(s *suite) {
		path := s.poll(engineIO, "4")
		type answer struct {
			status int
			body   string
		}
		first := make(chan answer, 1)
		go func() { status, body := s.get(path); first <- answer{status, body} }()
		synctest.Wait()
		status, body := s.get(path)
		s.want("the second GET", status, body, 400, "")
		a := <-first
		s.want("the first GET", a.status, a.body, 200, "1")
		status, body = s.get(path)
		s.want("a third", status, body, 400, unknownSID)
	})
}

func TestPingsKeepASessionAliveAndSilenceEndsIt(t *testing.T) {
	t.Run("polling", func(t *testing.T) {
		inSuite(t, func(s *suite) {
			path := s.poll(engineIO, "4")
			for range 3 {
				status, body := s.get(path)
				s.want("GET", status, body, 200, "2")
				status, body = s.post(path, "3")
				s.want("POST", status, body, 200, "ok")
			}
			path = s.poll(engineIO, "4")
			time.Sleep(pingInterval + pingTimeout)
			status, body := s.get(path)
			s.want("GET after silence", status, body, 400, unknownSID)
		})
	})
	t.Run("WebSocket", func(t *testing.T) {
		inSuite(t, func(s *suite) {
			c := s.open(engineIO + "4")
			for range 3 {
				c.expect("2")
				c.send("3")
			}
			c.expectEnd(pingInterval + 2*pingTimeout)
		})
	})
	t.Run("revision 3", func(t *testing.T) {
		inSuite(t, func(s *suite) {
			c := s.open(engineIO + "3")
			for range 3 {
				time.Sleep(pingInterval)
				c.send("2")
				c.expect("3")
			}
			c.expectEnd(pingInterval + 2*pingTimeout)
			path := s.poll(engineIO, "3")
			time.Sleep(pingInterval + pingTimeout)
			status, body := s.get(path)
			s.want("GET after silence", status, body, 400, unknownSID)
		})
	})
}

func TestHeartbeatOfTheWrongDirectionEndsTheSession(t *testing.T) {
	inSuite(t, func(s *suite) {
		c := s.open(engineIO + "4")
		c.send("2")
		c.expectEnd(time.Second)
		c = s.open(engineIO + "3")
		c.send("3")
		c.expectEnd(time.Second)
	})
}

func TestClosePacketEndsTheSession(t *testing.T) {
	inSuite(t, func(s *suite) {
		path := s.poll(engineIO, "4")
		pending := make(chan string, 1)
		go func() { _, body := s.get(path); pending <- body }()
		synctest.Wait()
		status, body := s.post(path, "1")
		s.want("POST", status, body, 200, "ok")
		if body := <-pending; body != "6" {
			t.Errorf("the pending GET got %q, want a noop", body)
		}
		status, body = s.get(path)
		s.want("GET", status, body, 400, unknownSID)
		c := s.open(engineIO + "4")
		c.send("1")
		c.expectEnd(time.Second)
		c = s.open(engineIO + "4")
		c.send("9")
		c.expectEnd(time.Second)
	})
}

func TestAbortedPollEndsTheSession(t *testing.T) {
	inSuite(t, func(s *suite) {
		path := s.poll(engineIO, "4")
		ctx, cancel := context.WithTimeout(s.Context(), 50*time.Millisecond)
		defer cancel()
		r, _ := http.NewRequestWithContext(ctx, "GET", "http://"+host+path, nil)
		if _, err := s.http.Do(r); err == nil {
			t.Error("the GET was answered")
		}
		time.Sleep(10 * time.Millisecond)
		status, body := s.get(path)
		s.want("GET", status, body, 400, unknownSID)
	})
}

func TestUpgradeMovesASessionToAWebSocket(t *testing.T) {
	each(t, func(s *suite, revision string) {
		path := s.poll(engineIO, revision)
		wsPath := strings.Replace(path, "polling", "websocket", 1)
		noop := map[string]string{"3": "1:6", "4": "6"}[revision]
		pending := make(chan string, 1)
		go func() { _, body := s.get(path); pending <- body }()
		synctest.Wait()
		c := s.dial(wsPath)
		c.send("2probe")
		c.expect("3probe")
		if body := <-pending; body != noop {
			t.Errorf("the pending GET got %q, want a noop", body)
		}
		second := s.dial(wsPath) // beside the one that is upgrading
		second.expectEnd(2 * time.Second)
		c.send("5")
		c.send("4hello")
		c.expect("4hello")
		status, body := s.get(path)
		s.want("GET after the upgrade", status, body, 400, badRequest)
		status, body = s.post(path, "4x")
		s.want("POST after the upgrade", status, body, 400, badRequest)
		third := s.dial(wsPath)
		third.expectEnd(2 * time.Second)
		c.send("4still here")
		c.expect("4still here")
	})
}

func TestUpgradeThatGoesWrongLeavesPollingAlone(t *testing.T) {
	inSuite(t, func(s *suite) {
		path := s.poll(engineIO, "4")
		for _, packets := range [][]string{{"2probee"}, {"4hello"}, {"5"}, {"2probe", "4early"}} {
			c := s.dial(strings.Replace(path, "polling", "websocket", 1))
			c.send(packets...)
			for {
				if p, err := c.next(); err != nil {
					break
				} else if p != "3probe" {
					t.Errorf("got %q after %q", p, packets)
				}
			}
		}
		s.post(path, "4hello")
		status, body := s.get(path)
		s.want("GET", status, body, 200, "4hello")
	})
}

// connected opens a WebSocket and connects it to a namespace.
func (s *suite) connected(connect, reply string) *socket {
	s.Helper()
	c := s.open(socketIO)
	c.join(connect, reply)
	return c
}

func (c *socket) join(connect, reply string) {
	c.Helper()
	c.send(connect)
	got := c.read()
	var answer struct{ SID string }
	if !strings.HasPrefix(got, reply) || json.Unmarshal([]byte(strings.TrimPrefix(got, reply)), &answer) != nil || answer.SID == "" {
		c.Fatalf("%q was answered %q, want %s and a sid", connect, got, reply)
	}
}

func TestClientConnectsToANamespace(t *testing.T) {
	inSuite(t, func(s *suite) {
		s.connected("40", "40").expect(`42["auth",{}]`)
		s.connected(`40{"token":"123"}`, "40").expect(`42["auth",{"token":"123"}]`)
		s.connected("40/custom,", "40/custom,").expect(`42/custom,["auth",{}]`)
		s.connected(`40/custom,{"token":"abc"}`, "40/custom,").expect(`42/custom,["auth",{"token":"abc"}]`)
		s.connected("40/custom", "40/custom,").expect(`42/custom,["auth",{}]`)
		c := s.open(socketIO)
		c.send("40/random")
		c.expect(`44/random,{"message":"Invalid namespace"}`)
	})
}

func TestClientThatDoesNotConnectIsClosed(t *testing.T) {
	inSuite(t, func(s *suite) {
		c := s.open(socketIO)
		begin := time.Now()
		for {
			p, err := c.next()
			if err != nil {
				break
			}
			if p != "2" {
				t.Fatalf("got %q", p)
			}
			c.send("3")
		}
		if took := time.Since(begin); took < time.Second || took > 1100*time.Millisecond {
			t.Errorf("closed after %s, want a second", took)
		}
	})
}

func TestMalformedSocketIOPacketEndsTheSession(t *testing.T) {
	for _, packet := range []string{"4abc", "42{}", `42abc["message-with-ack",1]`, "42[]", "42[1]", "43[1]", "49", "4", `42["connect"]`, `40[1]`, `451-["x"]`, `42/custom,["message"]`, "40"} {
		t.Run(packet, func(t *testing.T) {
			inSuite(t, func(s *suite) {
				other := s.connected("40", "40")
				other.expect(`42["auth",{}]`)
				c := s.connected("40", "40")
				c.expect(`42["auth",{}]`)
				c.send(packet)
				if strings.HasPrefix(packet, "45") {
					c.send(`42["message"]`) // an attachment was to come
				}
				c.expectEnd(time.Second)
				other.send(`42["message",1]`)
				other.expect(`42["message-back",1]`)
			})
		})
	}
	inSuite(t, func(s *suite) {
		for _, packet := range []string{`42["message"]`, "41", `43/custom,0[1]`, "4abc"} { // before a CONNECT
			c := s.open(socketIO)
			c.send(packet)
			c.expectEnd(500 * time.Millisecond)
		}
	})
}

func TestLeavingANamespaceKeepsTheConnection(t *testing.T) {
	inSuite(t, func(s *suite) {
		c := s.connected("40", "40")
		c.expect(`42["auth",{}]`)
		c.send("41")
		for range 3 {
			c.expect("2")
			c.send("3")
		}
		c = s.connected("40", "40")
		c.expect(`42["auth",{}]`)
		c.join("40/custom,", "40/custom,")
		c.expect(`42/custom,["auth",{}]`)
		c.send("41/custom")
		c.send(`42["message","to the main namespace"]`)
		c.expect(`42["message-back","to the main namespace"]`)
	})
}

func TestEventsAndAcksGoBothWays(t *testing.T) {
	inSuite(t, func(s *suite) {
		c := s.connected("40", "40")
		c.expect(`42["auth",{}]`)
		c.send(`42["message",1,"2",{"3":[true]}]`)
		c.expect(`42["message-back",1,"2",{"3":[true]}]`)
		c.send(`42456["message-with-ack",1,"2",{"3":[false]}]`)
		c.expect(`43456[1,"2",{"3":[false]}]`)
		c.send(`452-["message",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`)
		c.sendBytes(1, 2, 3)
		c.sendBytes(4, 5, 6)
		c.expect(`452-["message-back",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`, "bytes:\x01\x02\x03", "bytes:\x04\x05\x06")
		c.send(`452-789["message-with-ack",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`)
		c.sendBytes(1, 2, 3)
		c.sendBytes(4, 5, 6)
		c.expect(`462-789[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`, "bytes:\x01\x02\x03", "bytes:\x04\x05\x06")
	})
}

func TestSocketIOOverPollingUpgrades(t *testing.T) {
	inSuite(t, func(s *suite) {
		path := s.poll("/socket.io/?EIO=", "4")
		s.post(path, "40")
		synctest.Wait() // for the engine's hooks, here and below: a GET takes what there is
		status, body := s.get(path)
		parts := strings.Split(body, "\x1e")
		if status != 200 || !strings.HasPrefix(parts[0], `40{"sid":`) || !slices.Equal(parts[1:], []string{`42["auth",{}]`}) {
			t.Fatalf("CONNECT was answered %d %q", status, body)
		}
		c := s.dial(strings.Replace(path, "polling", "websocket", 1))
		c.send("2probe")
		c.expect("3probe")
		s.post(path, `42["message","by poll"]`)
		synctest.Wait()
		status, body = s.get(path)
		s.want("GET", status, body, 200, `42["message-back","by poll"]`)
		c.send("5", `42["message","by socket"]`)
		c.expect(`42["message-back","by socket"]`)
	})
}

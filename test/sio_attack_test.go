package test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
)

// sioAttack is what a client that is connected to "/" sends. binary goes out
// behind texts.
type sioAttack struct {
	name   string
	texts  []string
	binary [][]byte
	rev    int // 0: both
}

// sioAttacks are answered by the end of that session: rows 99 and 105 to 107.
var sioAttacks = []sioAttack{
	{name: "no type", texts: []string{"4"}},
	{name: "unknown type", texts: []string{"49"}},
	{name: "a letter", texts: []string{"4abc"}},
	{name: "a server's packet", texts: []string{`44{"message":"x"}`}},
	{name: "event that is an object", texts: []string{`42{}`}},
	{name: "event that is null", texts: []string{`42null`}},
	{name: "event that is a string", texts: []string{`42"x"`}},
	{name: "event without payload", texts: []string{`42`}},
	{name: "event without name", texts: []string{`42[]`}},
	{name: "event name null", texts: []string{`42[null]`}},
	{name: "event name number", texts: []string{`42[5]`}},
	{name: "event name object", texts: []string{`42[{}]`}},
	{name: "event name empty", texts: []string{`42[""]`}},
	{name: "event name with NUL", texts: []string{"42[\"a\\u0000\"]"}},
	{name: "long event name", texts: []string{`42["` + strings.Repeat("x", 257) + `"]`}},
	{name: "half JSON", texts: []string{`42["x"`}},
	{name: "two JSONs", texts: []string{`42["x"]["y"]`}},
	{name: "ack id that is none", texts: []string{`42abc["x"]`}},
	{name: "negative ack id", texts: []string{`42-1["x"]`}},
	{name: "long ack id", texts: []string{`4299999999999["x"]`}},
	{name: "endless ack id", texts: []string{"42" + strings.Repeat("9", 5000) + `["x"]`}},
	{name: "ack without id", texts: []string{`43["x"]`}},
	{name: "ack that is an object", texts: []string{`431{}`}},
	{name: "disconnect with payload", texts: []string{`41{"x":1}`}},
	{name: "namespace of 60 KB", texts: []string{"42/" + strings.Repeat("x", 60_000) + `,["x"]`}},
	{name: "namespace with a control character", texts: []string{"42/a\x01b,[\"x\"]"}},
	{name: "event to a namespace that was not joined", texts: []string{`42/chat,["x"]`}},
	{name: "reserved connect", texts: []string{`42["connect",1]`}},
	{name: "reserved connect_error", texts: []string{`42["connect_error"]`}},
	{name: "reserved disconnect", texts: []string{`421["disconnect"]`}},
	{name: "reserved disconnecting", texts: []string{`42["disconnecting"]`}},
	{name: "reserved newListener", texts: []string{`42["newListener"]`}},
	{name: "reserved by escapes", texts: []string{`42["remove\u004cistener"]`}},
	{name: "reserved binary", texts: []string{`451-["disconnect",{"_placeholder":true,"num":0}]`}, binary: [][]byte{{1}}},
	{name: "a thousand attachments", texts: []string{`451000-["x"]`}},
	{name: "eleven attachments", texts: []string{`4511-["x"]`}},
	{name: "10^9 attachments", texts: []string{`451000000000-["x",{"_placeholder":true,"num":0}]`}},
	{name: "endless number of attachments", texts: []string{"45" + strings.Repeat("1", 3000) + `-["x"]`}},
	{name: "no number of attachments", texts: []string{`45-["x"]`}},
	{name: "negative attachments", texts: []string{`45-1-["x"]`}},
	{name: "placeholder out of range", texts: []string{`451-["x",{"_placeholder":true,"num":1}]`}, binary: [][]byte{{1}}},
	{name: "negative placeholder", texts: []string{`451-["x",{"_placeholder":true,"num":-1}]`}, binary: [][]byte{{1}}},
	{name: "placeholder by name", texts: []string{`451-["x",{"_placeholder":true,"num":"splice"}]`}, binary: [][]byte{{1}}},
	{name: "text for an attachment", texts: []string{`451-["x",{"_placeholder":true,"num":0}]`, `42["y"]`}},
	{name: "heartbeat in the wrong direction", texts: []string{"2"}, rev: 4},
	{name: "pong in the wrong direction", texts: []string{"3"}, rev: 3},
	{name: "unknown packet of Engine.IO", texts: []string{"9x"}},
	{name: "attachment to nothing", binary: [][]byte{{1, 2, 3}}, rev: 3},
	{name: "too many arguments", texts: []string{`42["x"` + strings.Repeat(",1", 1000) + `]`}},
	{name: "CONNECT that is an array", texts: []string{`40/chat,[]`}},
	{name: "CONNECT that is a string", texts: []string{`40/chat,"x"`}},
}

// TestMalformedPacketsEndThatSessionOnly, and reach no handler.
func TestMalformedPacketsEndThatSessionOnly(t *testing.T) {
	for _, door := range []string{"socket.io.5 websocket", "socket.io.4 websocket", "socket.io.5 polling", "socket.io.4 polling", "socket.io.5 upgrade"} {
		t.Run(door, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				var handled []string
				w := newWorld(t, push.Config{
					OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
						handled = append(handled, m.Event)
						return nil, nil
					},
					SocketIO: push.SocketIO{Namespace: anySpace},
				})
				w.dialect = door
				v := w.witness()
				for i, a := range sioAttacks {
					if a.rev != 0 && a.rev != v.io.rev {
						continue
					}
					p := w.connect("mallory")
					var packets []ioMessage
					for _, text := range a.texts {
						packets = append(packets, ioMessage{text: text})
					}
					for _, b := range a.binary {
						packets = append(packets, ioMessage{binary: b})
					}
					p.io.enqueue(packets...)
					select {
					case <-p.done:
					case <-time.After(5 * time.Second): // below MessageTimeout
						t.Errorf("%s: not refused", a.name)
						p.vanishes()
					}
					if err := p.end(); endedWith(err, 4410) {
						t.Errorf("%s: ended with %v", a.name, err)
					}
					v.isFine()
					time.Sleep(time.Second)
					synctest.Wait()
					if s := w.Stats(); s.Conns != 1 || s.Sockets != 1 || s.QueuedBytes != 0 {
						t.Errorf("%s: left %+v", a.name, s)
					}
					if s := w.Stats(); s.Closed[push.ReasonProtocol]+1 < uint64(i) && t.Failed() {
						return
					}
				}
				if len(handled) > 0 {
					t.Errorf("handlers got %q", handled)
				}
				if s := w.Stats(); s.Closed[push.ReasonProtocol] != s.Accepted-1 || s.Panics != 0 {
					t.Errorf("%d of %d are counted: %v", s.Closed[push.ReasonProtocol], s.Accepted-1, s.Closed)
				}
			})
		})
	}
}

// TestMalformedFirstPacketsEndThatSession: a client that is not connected may
// only connect.
func TestMalformedFirstPacketsEndThatSession(t *testing.T) {
	for _, door := range []string{"socket.io.5 websocket", "socket.io.5 polling"} {
		t.Run(door, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				asked := 0
				w := newWorld(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) { asked++; return l.UserID, nil }})
				w.dialect = door
				v := w.witness()
				for _, first := range []ioMessage{
					{text: `42["x"]`}, {text: "41"}, {text: `431[]`}, {text: `40[]`}, {text: `40"x"`}, {text: `40{`}, {text: `40nonsense`}, {text: `400{}`}, {text: "4"},
					{text: "40/" + strings.Repeat("x", 200)}, {text: `40{"x":"` + strings.Repeat("\\u0000", 20_000) + `"}`},
					packed(2, "/", -1, []any{"x"}), packed(9, "/", -1, nil), packed(0, "", -1, nil), packed(0, "/", 5, nil), packed(0, "/", -1, []any{1}),
					packed(0, "/a,b", -1, nil), packed(0, "/"+strings.Repeat("x", 200), -1, nil),
					{binary: []byte{}}, {binary: []byte("abc")}, {binary: []byte{0xdf, 0xff, 0xff, 0xff, 0xff}}, {binary: []byte{0x81, 0xa4, 't', 'y', 'p', 'e'}},
					{binary: bytes.Repeat([]byte{0x91}, 60_000)},
				} {
					c := w.opens(door)
					c.enqueue(first)
					select {
					case <-c.done:
						if end := c.end(); end.ours {
							t.Errorf("%.40q: ended with %v", first.text, end)
						}
					case <-time.After(5 * time.Second):
						t.Errorf("%.40q %.20x: not refused, %v", first.text, first.binary, c.got)
						c.over()
					}
					v.isFine()
				}
				if asked != 1 {
					t.Errorf("the gate was asked %d times", asked)
				}
				time.Sleep(31 * time.Second)
				if s := w.Stats(); s.Sockets != 1 || s.Pending != 0 {
					t.Errorf("left %+v", s)
				}
			})
		})
	}
}

// TestFormIsSettledByTheFirstConnect: text to a client of msgpack, and the other
// way round, is an error.
func TestFormIsSettledByTheFirstConnect(t *testing.T) {
	for _, transport := range []string{"websocket", "polling"} {
		t.Run(transport, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				handled := 0
				w := newWorld(t, push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { handled++; return nil, nil }})
				for _, c := range []struct {
					door string
					m    ioMessage
				}{
					{"socket.io.msgpack " + transport, ioMessage{text: `42["x"]`}},
					{"socket.io.5 " + transport, packed(2, "/", -1, []any{"x"})},
				} {
					w.dialect = c.door
					p := w.connect("alice")
					p.io.enqueue(c.m)
					if err := p.end(); endedWith(err, 4410) {
						t.Errorf("ended with %v", err)
					}
				}
				if handled != 0 {
					t.Errorf("%d reached a handler", handled)
				}
			})
		})
	}
}

// TestMsgpackAttacks: bombs, shapes, reserved names.
func TestMsgpackAttacks(t *testing.T) {
	for _, door := range []string{"socket.io.msgpack websocket", "socket.io.msgpack polling"} {
		t.Run(door, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				handled := 0
				w := newWorld(t, push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { handled++; return nil, nil }})
				w.dialect = door
				v := w.witness()
				for i, m := range []ioMessage{
					packed(2, "/", -1, []any{}), packed(2, "/", -1, nil), packed(2, "/", -1, "x"), packed(2, "/", -1, []any{5}), packed(2, "/", -1, []any{"disconnect"}),
					packed(3, "/", -1, []any{}), packed(3, "/", 5, "x"), packed(4, "/", -1, map[string]any{"message": "x"}), packed(5, "/", -1, []any{"x"}), packed(-1, "/", -1, nil),
					packed(2, "/chat", -1, []any{"x"}), packed(2, "/", 99999999999, []any{"x"}), packed(0, "/", -1, nil), packed(1, "/", -1, map[string]any{}),
					{binary: []byte{0xdd, 0x7f, 0xff, 0xff, 0xff}}, {binary: []byte{0xc6, 0xff, 0xff, 0xff, 0xff}}, {binary: []byte{0xc1}},
					{binary: append([]byte{0x83, 0xa4, 't', 'y', 'p', 'e', 2, 0xa3, 'n', 's', 'p', 0xa1, '/', 0xa4, 'd', 'a', 't', 'a'}, bytes.Repeat([]byte{0x91}, 50_000)...)},
				} {
					p := w.connect("mallory")
					p.io.enqueue(m)
					select {
					case <-p.done:
					case <-time.After(5 * time.Second):
						t.Errorf("%d %.40x: not refused", i, m.binary)
						p.vanishes()
					}
					if err := p.end(); endedWith(err, 4410) {
						t.Errorf("%d: ended with %v", i, err)
					}
					v.isFine()
				}
				if handled != 0 {
					t.Errorf("%d reached a handler", handled)
				}
			})
		})
	}
}

// TestMalformedBodiesEndThatSessionOnly: row 99.
func TestMalformedBodiesEndThatSessionOnly(t *testing.T) {
	const text, octets = "text/plain;charset=UTF-8", "application/octet-stream"
	for door, bodies := range map[string][]struct{ name, kind, body string }{
		"socket.io.5 polling": {
			{"empty", text, ""}, {"letters", text, "abc"}, {"only separators", text, strings.Repeat("\x1e", 5000)}, {"a separator at the end", text, "42[\"x\"]\x1e"},
			{"bad base64", text, "b~~~"}, {"half base64", text, "bYWJ"}, {"octets", octets, "42[\"x\"]"}, {"not UTF-8", text, "42[\"x\xff\"]"},
			{"an attachment to nothing", text, "b" + base64.StdEncoding.EncodeToString([]byte("x"))}, {"many packets", text, strings.Repeat("42[\"\"]\x1e", 1000) + "3"},
		},
		"socket.io.4 polling": {
			{"empty", text, ""}, {"letters", text, "abc"}, {"no colon", text, "5"}, {"too long", text, "100:42[\"x\"]"}, {"negative", text, "-5:42[\"x\"]"},
			{"endless length", text, strings.Repeat("1", 400) + ":4"}, {"length 10^10", text, "10000000000:4"}, {"bad base64", text, "5:b4~~~"},
			{"octets without length", octets, "\x00\xff"}, {"octets with a bad mark", octets, "\x02\x01\xff4"}, {"octets too long", octets, "\x00\x09\xff4"},
			{"octets with a bad digit", octets, "\x00\x0a\xff42[\"x\"]"}, {"octets endless", octets, "\x00" + strings.Repeat("\x09", 400) + "\xff4"}, {"cut in a pair", text, "5:42[\"😀\"]"},
		},
	} {
		t.Run(door, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				handled := 0
				w := newWorld(t, push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { handled++; return nil, nil }})
				w.dialect = door
				v := w.witness()
				for _, b := range bodies {
					p := w.connect("mallory")
					status, _, answer, err := p.io.request("POST", b.kind, []byte(b.body))
					if err == nil && status != 400 {
						t.Errorf("%s: %d %q, want 400", b.name, status, answer)
					}
					if err := p.end(); endedWith(err, 4410) {
						t.Errorf("%s: ended with %v", b.name, err)
					}
					status, _, answer2 := w.fetch("GET", strings.TrimPrefix(p.io.url("http", "polling"), "http://push.test"), nil, "")
					if status != 400 {
						t.Errorf("%s: a GET after it %d %q", b.name, status, answer2)
					}
					v.isFine()
				}
				if handled > 1 { // one stood before the separator at the end
					t.Errorf("%d reached a handler", handled)
				}
				time.Sleep(31 * time.Second)
				if s := w.Stats(); s.Sockets != 1 || s.Conns != 1 {
					t.Errorf("left %+v", s)
				}
			})
		})
	}
}

// TestRefusedConnectsCannotBeTriedForEver on one connection.
func TestRefusedConnectsCannotBeTriedForEver(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		asked := 0
		w := newWorld(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) { asked++; return "", push.ErrUnauthorized }})
		c := w.opens("socket.io.5 websocket")
		for range 1000 {
			c.says(`40{"token":"guess"}`)
		}
		end := c.end()
		if asked > 200 || end.ours {
			t.Errorf("the gate was asked %d times; %v", asked, end)
		}
		if s := w.Stats(); s.Refused["unauthorized"] != uint64(asked) {
			t.Errorf("asked %d times, %v", asked, s.Refused)
		}
	})
}

// TestNamespacesOfAnAttackerCostNothing: row 107, 5 000 of them.
func TestNamespacesOfAnAttackerCostNothing(t *testing.T) {
	for _, hook := range []bool{false, true} {
		t.Run(fmt.Sprintf("hook %v", hook), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				cfg := push.Config{Limits: push.Limits{MessageRate: -1}}
				if hook {
					cfg.SocketIO.Namespace = anySpace
				}
				w := newWorld(t, cfg)
				for _, door := range []string{"socket.io.5 websocket", "socket.io.4 polling"} {
					w.dialect = door
					p := w.connect("alice")
					var packets []ioMessage
					for i := range 5000 {
						packets = append(packets, p.io.connectPacket(fmt.Sprintf("/n%d", i), nil))
					}
					p.io.enqueue(packets...)
					if err := p.end(); endedWith(err, 4410) {
						t.Errorf("%s: ended with %v", door, err)
					}
				}
				time.Sleep(31 * time.Second)
				w.wantSocketsGone()
			})
		})
	}
}

// TestSecretsOfSocketIOAreNeverLogged: sids, tokens, queries, cookies.
func TestSecretsOfSocketIOAreNeverLogged(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		book := &logBook{}
		w := newWorld(t, push.Config{Authenticate: byToken, Logger: slog.New(book), SocketIO: push.SocketIO{Namespace: anySpace}})
		w.dialect = door
		p := w.connect("alice", "token=secret-token", "@Cookie=session=secret-cookie")
		sids := []string{p.io.hello.SID}
		p.io.joins("/chat", "alice", "token=secret-token").isIn()
		for _, end := range []string{`42[`, `49`} {
			q := w.connect("mallory", "token=secret-token")
			sids = append(sids, q.io.hello.SID)
			q.io.enqueue(ioMessage{text: end})
			q.end()
		}
		for _, token := range []string{"refuse", "later", "panic"} {
			c, _, _, err := w.triesToOpen(door, "token="+token, "user=secret-query")
			if err == nil {
				sids = append(sids, c.hello.SID)
				if c.rev == 4 {
					c.enqueue(c.connectPacket("/", map[string]any{"token": token, "x": "secret-auth"}))
				}
				synctest.Wait()
			}
		}
		p.conn().Close("")
		p.end()
		time.Sleep(time.Minute)
		for _, line := range book.at(slog.LevelDebug, "") {
			for _, secret := range append(slices.Clone(sids), "secret-token", "secret-cookie", "secret-auth", "transport=", "EIO=") {
				if strings.Contains(line, secret) {
					t.Errorf("the log says %q: %s", secret, line)
				}
			}
		}
	})
}

// TestWebSocketOfSocketIOIsGuardedLikeAnyOther: frames without a mask, fragments
// without end.
func TestWebSocketOfSocketIOIsGuardedLikeAnyOther(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		w.dialect = "socket.io.5 websocket"
		v := w.witness()
		for name, b := range map[string][]byte{
			"no mask":        {0x81, 2, '4', '0'},
			"reserved bit":   maskedFrame(0xc1, []byte("40")),
			"bad opcode":     maskedFrame(0x83, []byte("40")),
			"not UTF-8":      maskedFrame(0x81, []byte("42[\"\xff\"]")),
			"length 2^62":    {0x81, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4},
			"continuation":   maskedFrame(0x80, []byte("40")),
			"a long control": maskedFrame(0x89, make([]byte, 126)),
		} {
			p := w.connect("mallory")
			p.io.gate.Conn.Write(b)
			if err := p.end(); endedWith(err, 4410) {
				t.Errorf("%s: ended with %v", name, err)
			}
			v.isFine()
		}
		// Pings of the WebSocket itself are answered.
		p := w.connect("alice")
		pongs := 0
		p.io.ws.SetPongHandler(func(string) error { pongs++; return nil })
		p.io.ws.WriteControl(websocket.PingMessage, []byte("x"), time.Now().Add(time.Second))
		synctest.Wait()
		if pongs != 1 {
			t.Errorf("%d pongs", pongs)
		}
	})
}

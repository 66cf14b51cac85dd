package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// fetch makes one request of its own.
func (w *world) fetch(method, target string, header http.Header, body string) (status int, got http.Header, text string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, "http://push.test"+target, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for k, v := range header {
		r.Header[k] = v
	}
	tr := &http.Transport{DialContext: w.dial, DisableKeepAlives: true, DisableCompression: true}
	resp, err := tr.RoundTrip(r)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Errorf("%s %s: %v", method, target, err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// TestConnectIsAnsweredWithTheConnsID, which the page shows as socket.id.
func TestConnectIsAnsweredWithTheConnsID(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{})
		w.dialect = door
		p := w.connect("alice")
		c := p.conn()
		if p.io.rev == 4 && c.ID().String() != p.joined {
			t.Errorf("the page is told %q, its Conn is %v", p.joined, c.ID())
		}
		if c.Protocol() != p.protocol() || c.Namespace() != "" || c.UserID() != "alice" || c.Login().Protocol != p.protocol() || c.Login().DeviceID != p.device {
			t.Errorf("%s in %q is %s's: %+v", c.Protocol(), c.Namespace(), c.UserID(), c.Login())
		}
		if p.joined == p.io.hello.SID {
			t.Error("the id that others see is the session's secret")
		}
		if h := p.io.hello; h.PingInterval != 25000 || h.PingTimeout != 20000 || h.MaxPayload != 1000000 || (len(h.Upgrades) == 1) != (p.io.transport != "websocket") {
			t.Errorf("the open packet says %+v", h)
		}
	})
}

// TestOldClientIsConnectedInTheHandshakesAnswer: what 2.3.0 expects of a server.
func TestOldClientIsConnectedInTheHandshakesAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		for query, want := range map[string]string{"": `2:40`, "&b64=1": `2:40`} {
			status, h, body := w.fetch("GET", "/socket.io/?EIO=3&transport=polling&user=alice"+query, nil, "")
			if status != 200 || h.Get("Content-Type") != "text/plain; charset=UTF-8" || !strings.HasSuffix(body, "}"+want) {
				t.Errorf("%q: %d %v %q, want the open packet and %s", query, status, h, body, want)
			}
		}
		status, _, body := w.fetch("GET", "/socket.io/?EIO=4&transport=polling", nil, "")
		if status != 200 || strings.Contains(body, "\x1e") || !strings.HasPrefix(body, "0{") {
			t.Errorf("revision 4: %d %q, want the open packet alone", status, body)
		}
		if s := w.Stats(); s.Conns != 2 || s.Pending != 1 {
			t.Errorf("%+v", s)
		}
	})
}

type ctxKey struct{}

// TestGateIsAskedAboutEveryConnect, with and without auth, and sees all that
// the client and the host's middleware said.
func TestGateIsAskedAboutEveryConnect(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		type seen struct{ Protocol, Space, User, Token, Device, Auth, Query, Header, Cookie, Value string }
		var got []seen
		w := newWorld(t, push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				value, _ := l.Request.Context().Value(ctxKey{}).(string)
				got = append(got, seen{l.Protocol, l.Namespace, l.UserID, l.Token, l.DeviceID, string(l.Auth), l.Query("shop"), l.Header("X-Shop"), l.Cookie("session"), value})
				if l.Conn != nil || l.Remote.Addr().String() != clientIP || l.Request.Method != "GET" || !strings.HasPrefix(l.Request.URL.Path, "/socket.io") {
					t.Errorf("%+v, request %+v", l, l.Request)
				}
				if b, err := io.ReadAll(l.Request.Body); len(b) > 0 || err != nil {
					t.Errorf("a body %q, %v", b, err)
				}
				l.Data = "mine"
				return l.UserID, nil
			},
			SocketIO: push.SocketIO{Namespace: func(context.Context, string, *push.Login) error { return nil }},
		})
		synctest.Wait() // it serves
		w.server.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			w.Engine.ServeHTTP(rw, r.WithContext(context.WithValue(r.Context(), ctxKey{}, "middleware's")))
		})
		c := w.opens(door, "shop=7", "user=q", "token=qt", "device=qd", "@X-Shop=eight", "@Cookie=session=s; other=o")
		protocol, _, _ := strings.Cut(door, " ")
		common := seen{protocol, "", "q", "qt", "qd", "{}", "7", "eight", "s", "middleware's"}
		var want []seen
		connect := func(space string, auth map[string]any, change func(*seen)) {
			t.Helper()
			s := common
			if space != "/" {
				s.Space = space
			}
			if change != nil {
				change(&s)
			}
			want = append(want, s)
			if c.rev == 4 || space != "/" {
				c.sendsAll(c.connectPacket(space, auth))
			}
			sid := c.wantsConnect(space)
			if c.rev == 4 {
				if conn := w.connOf(sid); conn == nil || conn.Namespace() != s.Space || conn.UserID() != s.User || conn.Data() != "mine" || conn.Login().Auth != nil || conn.Login().Token != "" {
					t.Errorf("the Conn is %+v", conn)
				}
			}
		}
		connect("/", nil, nil)
		if c.rev == 4 {
			connect("/a", map[string]any{}, nil)
			connect("/b", map[string]any{"user": "u", "token": "t"}, func(s *seen) { s.User, s.Token, s.Auth = "u", "t", `{"token":"t","user":"u"}` })
			connect("/c", map[string]any{"userId": "u", "x": []int{1}}, func(s *seen) { s.User, s.Auth = "u", `{"userId":"u","x":[1]}` })
			connect("/d", map[string]any{"user": 5, "token": nil}, func(s *seen) { s.Auth = `{"token":null,"user":5}` })
			connect("/e", map[string]any{"user": "u", "userId": "v", "device": "d"}, func(s *seen) { s.User, s.Device, s.Auth = "u", "d", `{"device":"d","user":"u","userId":"v"}` })
		} else {
			connect("/a", nil, nil)
			query := func(space, query string, change func(*seen)) {
				s := common
				s.Space = space
				change(&s)
				want = append(want, s)
				c.says("40" + space + "?" + query + ",")
				c.wants("40" + space + ",")
			}
			query("/b", "userId=u1", func(s *seen) {}) // user=q of the session is there
			query("/c", "user=u2&token=t2&shop=9", func(s *seen) { s.User, s.Token, s.Query = "u2", "t2", "9" })
		}
		if len(got) == len(want) {
			for i := range got {
				if c.rev == 4 && sameJSON(json.RawMessage(got[i].Auth), want[i].Auth) {
					got[i].Auth = want[i].Auth
				}
				if !reflect.DeepEqual(got[i], want[i]) {
					t.Errorf("CONNECT %d: the gate saw\n%+v, want\n%+v", i, got[i], want[i])
				}
			}
		} else {
			t.Errorf("the gate saw %d CONNECTs, want %d", len(got), len(want))
		}
	})
}

// TestUserIDIsTakenFromTheQueryToo: netty-socketio's pages say userId.
func TestUserIDIsTakenFromTheQueryToo(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: func(context.Context, string, *push.Login) error { return nil }}})
		c := w.opens(door, "userId=alice")
		if c.rev == 4 {
			c.sendsAll(c.connectPacket("/", nil))
		}
		c.wantsConnect("/")
		if !w.Online("alice") {
			t.Error("alice is not online")
		}
		if c.rev == 3 { // the query of the namespace goes first
			c.says("40/chat?userId=u1,")
			c.wants("40/chat,")
			if !w.Online("u1") {
				t.Error("u1 is not online")
			}
		}
	})
}

// byToken is a gate that does what the token says.
func byToken(ctx context.Context, l *push.Login) (string, error) {
	switch l.Token {
	case "refuse":
		return "", push.ErrUnauthorized
	case "wrapped":
		return "", fmt.Errorf("%w: the password is 1234", push.ErrUnauthorized)
	case "text":
		return "", fmt.Errorf("wrapped: %w", push.Refuse("go away"))
	case "nobody":
		return "", nil
	case "later":
		return "", errors.New("the database is down")
	case "panic":
		panic("the gate panics")
	}
	return l.UserID, nil
}

var refusals = map[string]string{"refuse": "unauthorized", "wrapped": "unauthorized", "text": "go away", "nobody": "unauthorized"}

// TestRefusedConnectIsTold in the form of the revision, and the transport stays
// for another one.
func TestRefusedConnectIsTold(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{Authenticate: byToken, SocketIO: push.SocketIO{Namespace: func(context.Context, string, *push.Login) error { return nil }}})
		n := uint64(0)
		for token, text := range refusals {
			n++
			if strings.HasPrefix(door, "socket.io.4") {
				c := w.opens(door, "user=mallory", "token="+token)
				c.wantsRefusal("/", text)
				c.wantsNothing() // no 40
				if s := w.Stats(); s.Conns != 0 || s.Pending != 1 || s.Refused["unauthorized"] != n {
					t.Errorf("%s: %+v", token, s)
				}
				begin := time.Now()
				<-c.done
				if took := time.Since(begin); took < 44*time.Second || took > 47*time.Second {
					t.Errorf("%s: closed after %v, want ConnectTimeout", token, took)
				}
				if end := c.end(); end.ours || end.disconnected {
					t.Errorf("%s: ended with %v", token, end)
				}
			} else {
				c := w.opens(door)
				c.sendsAll(c.connectPacket("/", map[string]any{"user": "mallory", "token": token}))
				c.wantsRefusal("/", text)
				if s := w.Stats(); s.Conns != 0 || s.Pending != 1 || s.Refused["unauthorized"] != n {
					t.Errorf("%s: %+v", token, s)
				}
				time.Sleep(20 * time.Second)
				c.sendsAll(c.connectPacket("/", map[string]any{"user": "alice"}))
				c.wantsConnect("/")
				time.Sleep(60 * time.Second)
				c.wantsNothing()
				c.closes()
				<-c.done
			}
			synctest.Wait()
			if s := w.Stats(); s.Pending != 0 || s.Conns != 0 {
				t.Errorf("%s: left %+v", token, s)
			}
		}
	})
}

// TestFailedGateClosesWithoutARefusal, so that the client comes back: an outage
// logs nobody out.
func TestFailedGateClosesWithoutARefusal(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{Authenticate: byToken})
		for token, want := range map[string]struct{ status, code int }{"later": {503, 1013}, "panic": {500, 1011}} {
			if strings.HasPrefix(door, "socket.io.4") {
				_, status, body, err := w.triesToOpen(door, "user=alice", "token="+token)
				if err == nil || status != want.status || strings.Contains(body, "database") {
					t.Errorf("%s: %d %q, %v, want %d", token, status, body, err, want.status)
				}
			} else {
				c := w.opens(door)
				c.sendsAll(c.connectPacket("/", map[string]any{"user": "alice", "token": token}))
				c.wantsEnd(want.code)
			}
		}
		synctest.Wait()
		s := w.Stats()
		if s.Refused["later"] == 0 || s.Refused["unauthorized"] != 0 || s.Panics != 1 || s.Pending != 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Minute)
		if s := w.Stats(); s.Sockets != 0 {
			t.Errorf("left %+v", s)
		}
	})
}

// TestGateThatAnswersTooLateIsNotNow, and its context is over.
func TestGateThatAnswersTooLateIsNotNow(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			<-ctx.Done()
			return "alice", nil
		}})
		begin := time.Now()
		if strings.HasPrefix(door, "socket.io.4") {
			if _, status, _, err := w.triesToOpen(door); status != 503 {
				t.Errorf("%d, %v, want 503", status, err)
			}
		} else {
			c := w.opens(door)
			c.sendsAll(c.connectPacket("/", nil))
			c.wantsEnd(1013)
		}
		if took := time.Since(begin); took != 5*time.Second || w.Online("alice") {
			t.Errorf("it took %v, want AuthTimeout", took)
		}
	})
}

// TestGateHearsThatItsClientLeft, over HTTP and over the connection.
func TestGateHearsThatItsClientLeft(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		if strings.HasPrefix(door, "socket.io.4") {
			return // it is the HTTP request that waits
		}
		var ended time.Duration
		w := newWorld(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			begin := time.Now()
			<-ctx.Done()
			ended = time.Since(begin)
			return "", ctx.Err()
		}})
		c := w.opens(door)
		c.sendsAll(c.connectPacket("/", nil))
		synctest.Wait()
		time.Sleep(time.Second)
		c.closes()
		<-c.done
		synctest.Wait()
		if ended != time.Second {
			t.Errorf("the gate's context ended after %v, want 1 s", ended)
		}
		if s := w.Stats(); s.Pending != 0 || s.Sockets != 0 {
			t.Errorf("left %+v", s)
		}
	})
}

// TestNilGateRefusesAUser and lets the anonymous in.
func TestNilGateRefusesAUser(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) { return l.UserID, nil }})
		e, err := push.New(push.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		synctest.Wait() // it serves
		w.server.Handler = e
		c := w.opens(door, "user=alice")
		if c.rev == 4 {
			c.sendsAll(c.connectPacket("/", nil))
		}
		c.wantsRefusal("/", "unauthorized")
		c = w.opens(door)
		if c.rev == 4 {
			c.sendsAll(c.connectPacket("/", nil))
		}
		c.wantsConnect("/")
		if s := e.Stats(); s.Conns != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestLoginWithMalformedClaimsIsRefused, not cut or mangled.
func TestLoginWithMalformedClaimsIsRefused(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		asked := 0
		w := newWorld(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) { asked++; return l.UserID, nil }})
		for _, user := range []string{strings.Repeat("x", 257), "a\nb", "a\x00"} {
			if strings.HasPrefix(door, "socket.io.4") {
				if _, status, _, err := w.triesToOpen(door, "user="+user); status != 400 {
					t.Errorf("%.10q: %d, %v, want 400", user, status, err)
				}
				continue
			}
			c := w.opens(door, "user="+user)
			c.sendsAll(c.connectPacket("/", nil))
			if p := c.nextPacket(); p.typ != 4 {
				t.Errorf("%.10q: %v, want a refusal", user, p)
			}
		}
		if asked != 0 {
			t.Errorf("the gate was asked %d times", asked)
		}
	})
}

// TestSessionIsNeverTheClientsToChoose: session fixation.
func TestSessionIsNeverTheClientsToChoose(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{})
		first := w.opens(door, "user=alice")
		sid := first.hello.SID
		again := w.opens(door, "user=mallory", "@Cookie=io="+sid)
		if again.hello.SID == sid {
			t.Error("the sid of a cookie was adopted")
		}
		for _, made := range []string{"abc", strings.Repeat("A", len(sid)), sid[:len(sid)-1] + "~", sid + "A", sid[:len(sid)-2]} {
			status, h, body := w.fetch("GET", "/socket.io/?EIO=4&transport=polling&sid="+made, nil, "")
			if status != 400 || !sameJSON(json.RawMessage(body), `{"code":1,"message":"Session ID unknown"}`) || h.Get("Content-Type") != "application/json" || h.Get("Set-Cookie") != "" {
				t.Errorf("sid %q: %d %v %q", made, status, h, body)
			}
		}
		if first.transport == "websocket" { // what it has is no session of polling
			for _, method := range []string{"GET", "POST"} {
				if status, _, body := w.fetch(method, "/socket.io/?EIO=4&transport=polling&sid="+sid, nil, map[string]string{"POST": "1"}[method]); status != 400 || !strings.Contains(body, `"code":1`) {
					t.Errorf("%s with the sid of a WebSocket: %d %q", method, status, body)
				}
			}
		}
		synctest.Wait()
		for _, c := range []*ioClient{first, again} {
			select {
			case <-c.done:
				t.Errorf("a session ended: %v", c.end())
			default:
			}
		}
		if total(w.Stats().Refused) == 0 {
			t.Error("not counted")
		}
	})
}

// TestConnectTimeoutIsForWhoDoesNotConnect: a refused CONNECT does not extend
// it, any namespace's ends it, and leaving does not start it again.
func TestConnectTimeoutIsForWhoDoesNotConnect(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		if strings.HasPrefix(door, "socket.io.4") {
			return // TestRefusedConnectIsTold
		}
		w := newWorld(t, push.Config{Authenticate: byToken, SocketIO: push.SocketIO{
			ConnectTimeout: 10 * time.Second, Namespace: func(context.Context, string, *push.Login) error { return nil },
		}})
		begin := time.Now()
		idle, refused, other := w.opens(door), w.opens(door), w.opens(door)
		time.Sleep(9 * time.Second)
		refused.sendsAll(refused.connectPacket("/", map[string]any{"user": "u", "token": "refuse"}))
		refused.wantsRefusal("/", "unauthorized")
		other.sendsAll(other.connectPacket("/chat", nil))
		other.wantsConnect("/chat")
		other.sendsAll(other.disconnectPacket("/chat"))
		idle.wantsEnd(1008)
		refused.wantsEnd(1008)
		if took := time.Since(begin); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("closed after %v, want 10 s", took)
		}
		time.Sleep(5 * time.Minute)
		other.wantsNothing()
		other.sendsAll(other.connectPacket("/", nil))
		other.wantsConnect("/")
		if s := w.Stats(); s.Limited["connect_timeout"] != 2 || s.Closed[push.ReasonRefused] != 2 || s.Pending != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestMaxPendingIsForWhoIsNotConnected, and not for others.
func TestMaxPendingIsForWhoIsNotConnected(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		if strings.HasPrefix(door, "socket.io.4") {
			return // it is connected when it opens
		}
		w := newWorld(t, push.Config{Limits: push.Limits{MaxPending: 3}})
		var clients []*ioClient
		for range 3 {
			clients = append(clients, w.opens(door))
		}
		if _, status, body, err := w.triesToOpen(door); status != 503 {
			t.Errorf("the fourth: %d %q %v, want 503", status, body, err)
		}
		w.dialect = "push.json"
		w.connect("plain") // has places of its own
		w.dialect = "socket.io.4 websocket"
		w.connect("old")
		if s := w.Stats(); s.Pending != 3 || s.Refused["max_pending"] != 1 {
			t.Errorf("%+v", s)
		}
		clients[0].sendsAll(clients[0].connectPacket("/", nil))
		clients[0].wantsConnect("/")
		clients[1].closes()
		<-clients[1].done
		synctest.Wait()
		w.opens(door)
		w.opens(door)
		if _, status, _, _ := w.triesToOpen(door); status != 503 {
			t.Errorf("the fourth again: %d, want 503", status)
		}
	})
}

// TestCapsOnSocketIO: over all, by address, by user.
func TestCapsOnSocketIO(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{Limits: push.Limits{MaxConns: 3}})
		w.dialect = door
		var pages []*page
		for range 3 {
			pages = append(pages, w.connect("alice"))
		}
		if _, status, _, err := w.triesToOpen(door); status != 503 || w.Stats().Refused["max_conns"] != 1 {
			t.Errorf("over MaxConns: %d %v", status, err)
		}
		pages[0].leaves()
		synctest.Wait()
		w.connect("alice")

		w = newWorld(t, push.Config{Limits: push.Limits{MaxConnsPerAddr: 2}})
		w.dialect = door
		one := w.connect("alice")
		w.connect("alice")
		if _, status, _, err := w.triesToOpen(door); status != 429 || w.Stats().Refused["max_conns_per_addr"] != 1 {
			t.Errorf("over MaxConnsPerAddr: %d %v", status, err)
		}
		one.leaves()
		synctest.Wait()
		w.connect("alice")

		w = newWorld(t, push.Config{Limits: push.Limits{MaxConnsPerUser: 2}, SocketIO: push.SocketIO{Namespace: func(context.Context, string, *push.Login) error { return nil }}})
		w.dialect = door
		one = w.connect("alice")
		two := w.connect("alice")
		p, _, err := w.tryConnect("alice")
		if end := new(ioEnd); !errors.As(err, &end) || !end.refused || !strings.Contains(end.Error(), "limit reached") {
			t.Errorf("over MaxConnsPerUser: %v", err)
		}
		select {
		case <-p.io.done:
			t.Error("the refusal closed the transport")
		default:
		}
		one.leaves()
		if s := w.Stats(); s.Refused["max_conns_per_user"] != 1 || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
		if p.io.rev == 4 {
			p.io.joins("/", "alice").isIn()
		}
		// Namespaces have users of their own.
		two.io.joins("/chat", "alice").isIn()
		two.io.joins("/news", "alice").isIn()
		time.Sleep(time.Second)
		if r, err := w.PushToUser(t.Context(), "alice", push.Message{}); r.Targets > 2 || err != nil {
			t.Error(r, err)
		}
	})
}

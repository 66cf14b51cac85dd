package push_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
)

// TestMain fails a run that leaves goroutines behind.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	for begin := time.Now(); code == 0 && runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Since(begin) > 5*time.Second {
			buf := make([]byte, 1<<20)
			fmt.Printf("goroutines were left behind:\n%s\n", buf[:runtime.Stack(buf, true)])
			code = 1
		}
	}
	os.Exit(code)
}

// A door is a way in: the promises are the same behind each.
type door struct {
	name        string
	subprotocol string // "": none is offered
	kind        int    // of the WebSocket messages
	encode      func(any) []byte
	decode      func([]byte, any) error
}

var doors = []door{
	{"push.json", "push.json", websocket.TextMessage, mustJSON, json.Unmarshal},
	{"push.msgpack", "push.msgpack", websocket.BinaryMessage, mustMsgpack, unmarshalMsgpack},
	{"no subprotocol", "", websocket.TextMessage, mustJSON, json.Unmarshal},
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func mustMsgpack(v any) []byte {
	b, err := msgpack.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func unmarshalMsgpack(b []byte, v any) error { return msgpack.Unmarshal(b, v) }

// world is an engine behind an http.Server, in memory.
type world struct {
	*testing.T
	*push.Engine
	ln *memnet.Listener
}

// everywhere runs a test in virtual time once for each door.
func everywhere(t *testing.T, cfg push.Config, f func(w *world, d door)) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			inMemory(t, cfg, func(w *world) { f(w, d) })
		})
	}
}

// inMemory runs a test in virtual time with an engine of its own.
func inMemory(t *testing.T, cfg push.Config, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if cfg.Logger == nil {
			cfg.Logger = slog.New(slog.DiscardHandler)
		}
		e, err := push.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := memnet.Listen("192.0.2.1:80")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: e}
		served := make(chan struct{})
		go func() { srv.Serve(ln); close(served) }()
		t.Cleanup(func() { // a test that failed did not come to its end
			e.Close()
			srv.Close()
		})
		f(&world{t, e, ln})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := e.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		srv.Close()
		<-served
		checkEmpty(t, e)
	})
}

// checkEmpty fails unless the engine holds nothing any more.
func checkEmpty(t *testing.T, e *push.Engine) {
	t.Helper()
	s := e.Stats()
	if s.Conns != 0 || s.Users != 0 || s.Rooms != 0 || s.Memberships != 0 || s.QueuedBytes != 0 || s.Flights != 0 || s.Pending != 0 {
		t.Errorf("after Shutdown something is left: %+v", s)
	}
}

// client is a connection as its far end sees it.
type client struct {
	*world
	door
	ws   *websocket.Conn
	name string
}

// dial tries to connect; query is "user=alice&…".
func (w *world) dial(d door, query string, header http.Header) (*client, *http.Response, error) {
	dialer := websocket.Dialer{NetDialContext: w.ln.DialContext}
	if d.subprotocol != "" {
		dialer.Subprotocols = []string{d.subprotocol}
	}
	ws, resp, err := dialer.Dial("ws://192.0.2.1/ws?"+query, header)
	if err != nil {
		return nil, resp, err
	}
	if ws.Subprotocol() != d.subprotocol {
		w.Fatalf("subprotocol: want %q, got %q", d.subprotocol, ws.Subprotocol())
	}
	w.Cleanup(func() { ws.Close() })
	return &client{world: w, door: d, ws: ws, name: query}, resp, nil
}

// connect connects, and returns when the engine has done all it does by itself.
func (w *world) connect(d door, query string) *client {
	w.Helper()
	c, _, err := w.dial(d, query, nil)
	if err != nil {
		w.Fatalf("connect %q: %v", query, err)
	}
	synctest.Wait()
	return c
}

func (c *client) send(v any) {
	c.Helper()
	if err := c.ws.WriteMessage(c.kind, c.encode(v)); err != nil {
		c.Fatalf("%s: send: %v", c.name, err)
	}
}

// read is the next message, within a minute.
func (c *client) read() map[string]any {
	c.Helper()
	c.ws.SetReadDeadline(time.Now().Add(time.Minute))
	kind, b, err := c.ws.ReadMessage()
	if err != nil {
		c.Fatalf("%s: read: %v", c.name, err)
	}
	if kind != c.kind {
		c.Fatalf("%s: read: want a message of kind %d, got %d: %q", c.name, c.kind, kind, b)
	}
	var m map[string]any
	if err := c.decode(b, &m); err != nil {
		c.Fatalf("%s: read %q: %v", c.name, b, err)
	}
	return m
}

// wantPush reads a push and returns it.
func (c *client) wantPush(event string, data any) map[string]any {
	c.Helper()
	m := c.read()
	if m["event"] != event || !same(m["data"], data) {
		c.Fatalf("%s: want event %q with %v, got %v", c.name, event, data, m)
	}
	return m
}

// same compares what came with what was meant, whatever number types the
// dialect chose.
func same(got, want any) bool {
	return string(mustJSON(got)) == string(mustJSON(want))
}

// wantNothing fails if anything is there to be read.
func (c *client) wantNothing() {
	c.Helper()
	synctest.Wait()
	c.ws.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, b, err := c.ws.ReadMessage()
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		c.Fatalf("%s: want nothing, got %q, %v", c.name, b, err)
	}
	c.ws.Close() // gorilla reads no more after a deadline
}

// wantClose reads until the connection is closed with a code.
func (c *client) wantClose(code int) string {
	c.Helper()
	c.ws.SetReadDeadline(time.Now().Add(2 * time.Minute))
	for {
		_, _, err := c.ws.ReadMessage()
		if err == nil {
			continue
		}
		var closed *websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != code {
			c.Fatalf("%s: want close code %d, got %v", c.name, code, err)
		}
		return closed.Text
	}
}

// answer acknowledges a push.
func (c *client) answer(m map[string]any, data any) {
	c.Helper()
	if m["id"] == nil {
		c.Fatalf("%s: %v wants no answer", c.name, m)
	}
	c.send(map[string]any{"ack": number(m["id"]), "data": data})
}

func number(v any) uint64 {
	switch n := v.(type) {
	case float64:
		return uint64(n)
	case uint32:
		return uint64(n)
	case int64:
		return uint64(n)
	case uint64:
		return n
	}
	panic(fmt.Sprintf("%T is no number", v))
}

func TestPushReachesEveryConnectionOfAUserAndNobodyElse(t *testing.T) {
	everywhere(t, push.Config{Authenticate: push.TrustClaims}, func(w *world, d door) {
		phone, laptop, bob := w.connect(d, "user=alice&device=phone"), w.connect(doors[0], "user=alice&device=laptop"), w.connect(d, "user=bob")
		r, err := w.PushToUser(w.Context(), "alice", push.Message{Event: "order", Data: map[string]any{"n": 7}})
		if err != nil || r.Targets != 2 || r.Sent != 2 || r.Failed != 0 || len(r.Deliveries) != 2 {
			t.Fatalf("want two devices Sent, got %+v, %v", r, err)
		}
		devices := []string{r.Deliveries[0].DeviceID, r.Deliveries[1].DeviceID}
		slices.Sort(devices)
		if !slices.Equal(devices, []string{"laptop", "phone"}) {
			t.Errorf("want the laptop and the phone, got %v", devices)
		}
		phone.wantPush("order", map[string]any{"n": 7})
		laptop.wantPush("order", map[string]any{"n": 7})
		bob.wantNothing()
	})
}

func TestAPushToNobodySaysOffline(t *testing.T) {
	everywhere(t, push.Config{Authenticate: push.TrustClaims}, func(w *world, d door) {
		w.connect(d, "user=alice")
		r, err := w.PushToUsers(w.Context(), []string{"alice", "bob", "carol", "bob"}, push.Message{})
		if err != nil || r.Targets != 1 || !slices.Equal(r.Offline, []string{"bob", "carol"}) {
			t.Errorf("want alice reached and bob and carol offline, got %+v, %v", r, err)
		}
		r, err = w.PushToUser(w.Context(), "bob", push.Message{})
		if !errors.Is(err, push.ErrOffline) || r.Targets != 0 || !slices.Equal(r.Offline, []string{"bob"}) {
			t.Errorf("want ErrOffline and bob offline, got %+v, %v", r, err)
		}
		r, err = w.Push(w.Context(), push.Audience{Conn: 42}, push.Message{})
		if !errors.Is(err, push.ErrOffline) || len(r.Deliveries) != 1 || r.Deliveries[0].Status != push.Offline || r.Failed != 1 {
			t.Errorf("a connection that is not there: want ErrOffline and one Offline, got %+v, %v", r, err)
		}
		if r, err := w.PushToRoom(w.Context(), "empty", push.Message{}); err != nil || r.Targets != 0 {
			t.Errorf("an empty room without an ack is no error, got %+v, %v", r, err)
		}
		if _, err := w.PushToRoom(w.Context(), "empty", push.Message{Ack: push.AutoAck}); !errors.Is(err, push.ErrOffline) {
			t.Errorf("an empty room with an ack: want ErrOffline, got %v", err)
		}
	})
}

func TestAReceiptSaysWhatEachDeviceAnswered(t *testing.T) {
	for _, ack := range []push.Ack{push.AutoAck, push.BizAck} {
		everywhere(t, push.Config{Authenticate: push.TrustClaims}, func(w *world, d door) {
			answers, silent, leaves := w.connect(d, "user=alice&device=answers"), w.connect(d, "user=alice&device=silent"), w.connect(d, "user=alice&device=leaves")
			var wg sync.WaitGroup
			wg.Go(func() {
				m := answers.wantPush("order", "x")
				if auto := m["auto"] == true; auto != (ack == push.AutoAck) {
					t.Errorf("Ack %d: auto is %v", ack, auto)
				}
				time.Sleep(time.Second)
				answers.answer(m, map[string]any{"ok": true})
				answers.answer(m, "a second time")
				answers.send(map[string]any{"ack": 1})
			})
			wg.Go(func() {
				m := silent.wantPush("order", "x")
				time.Sleep(10 * time.Second)
				silent.answer(m, "too late")
			})
			wg.Go(func() {
				leaves.wantPush("order", "x")
				leaves.ws.Close()
			})
			begin := time.Now()
			r, err := w.PushToUser(w.Context(), "alice", push.Message{Event: "order", Data: "x", Ack: ack})
			if err != nil || r.Targets != 3 || r.Acked != 1 || r.Failed != 2 || r.Sent != 0 {
				t.Fatalf("want one of three acked, got %+v, %v", r, err)
			}
			if took := time.Since(begin); took != 5*time.Second {
				t.Errorf("want the default AckTimeout of 5s, got %v", took)
			}
			for _, got := range r.Deliveries {
				want := map[string]push.Status{"answers": push.Acked, "silent": push.Timeout, "leaves": push.Gone}[got.DeviceID]
				if got.Status != want || got.UserID != "alice" || got.Conn == 0 || got.Protocol == "" {
					t.Errorf("want %s %v, got %+v", got.DeviceID, want, got)
				}
				if got.DeviceID == "answers" && (string(got.Reply) != `{"ok":true}` || got.Latency < time.Second || got.Latency > 1100*time.Millisecond) {
					t.Errorf("want the reply after a second, got %s after %v", got.Reply, got.Latency)
				}
			}
			wg.Wait()
			synctest.Wait()
			if s := w.Stats(); s.StrayAcks != 3 || s.Deliveries["acked"] != 1 || s.Deliveries["timeout"] != 1 || s.Deliveries["gone"] != 1 {
				t.Errorf("a second, a made-up and a late answer change nothing and are counted, got %+v", s)
			}
		})
	}
}

func TestTheContextEndsTheWaitAndNothingElse(t *testing.T) {
	everywhere(t, push.Config{Authenticate: push.TrustClaims}, func(w *world, d door) {
		alice := w.connect(d, "user=alice")
		ctx, cancel := context.WithTimeout(w.Context(), 300*time.Millisecond)
		defer cancel()
		begin := time.Now()
		r, err := w.PushToUser(ctx, "alice", push.Message{Ack: push.BizAck})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 300*time.Millisecond || r.Deliveries[0].Status != push.Timeout {
			t.Errorf("want Timeout at the deadline, got %+v, %v after %v", r, err, time.Since(begin))
		}
		_, err = w.PushToUser(w.Context(), "alice", push.Message{Ack: push.BizAck})
		if !errors.Is(err, push.ErrTimeout) {
			t.Errorf("AckTimeout alone: want ErrTimeout, got %v", err)
		}
		cancel()
		if _, err := w.PushToUser(ctx, "alice", push.Message{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a context that is over: want its error, got %v", err)
		}
		alice.wantPush("message", nil)
		alice.wantPush("message", nil)
		if _, err := w.PushToUser(w.Context(), "alice", push.Message{Event: "still"}); err != nil {
			t.Error(err)
		}
		alice.wantPush("still", nil)
	})
}

func TestDataArrivesAsWhatItIs(t *testing.T) {
	everywhere(t, push.Config{Authenticate: push.TrustClaims}, func(w *world, d door) {
		alice := w.connect(d, "user=alice")
		type point struct {
			X int    `json:"x"`
			Y string `json:"y,omitempty"`
		}
		for _, c := range []struct {
			data any
			want string
		}{
			{nil, `null`},
			{"häß<&>\u2028\"", ""},
			{point{X: 3}, `{"x":3}`},
			{push.Args{1, "b", nil}, `[1,"b",null]`},
			{push.Args{}, `[]`},
			{push.Args(nil), `[]`},
			{json.RawMessage(` { "a" : [ 1.5 , -2 ] } `), `{"a":[1.5,-2]}`},
			{uint64(1) << 63, `9223372036854775808`},
			{map[string]any{"deep": []any{map[string]any{}, []any{}}}, ""},
		} {
			if c.want == "" {
				c.want = string(mustJSON(c.data))
			}
			if _, err := w.PushToUser(w.Context(), "alice", push.Message{Data: c.data}); err != nil {
				t.Fatalf("%v: %v", c.data, err)
			}
			m := alice.read()
			var want any
			json.Unmarshal([]byte(c.want), &want)
			if !same(m["data"], json.RawMessage(c.want)) && !same(m["data"], want) {
				t.Errorf("%#v: want %s, got %s", c.data, c.want, mustJSON(m["data"]))
			}
		}
		raw := []byte{0, 1, 2, 0xff}
		if _, err := w.PushToUser(w.Context(), "alice", push.Message{Data: raw}); err != nil {
			t.Fatal(err)
		}
		raw[0] = 9 // the caller's again
		m := alice.read()
		got, _ := m["data"].([]byte)
		if d.kind == websocket.TextMessage {
			if m["encoding"] != "base64" {
				t.Errorf("bytes without encoding base64: %v", m)
			}
			got, _ = base64.StdEncoding.DecodeString(m["data"].(string))
		}
		if !slices.Equal(got, []byte{0, 1, 2, 0xff}) {
			t.Errorf("bytes: got %v", m)
		}
	})
}

func TestAMessageThatCannotBeIsRefusedBeforeItIsSent(t *testing.T) {
	inMemory(t, push.Config{Authenticate: push.TrustClaims, Limits: push.Limits{MaxPush: 1000}}, func(w *world) {
		alice := w.connect(doors[0], "user=alice")
		all := push.Audience{All: true}
		for name, c := range map[string]struct {
			a push.Audience
			m push.Message
		}{
			"no audience":           {push.Audience{}, push.Message{}},
			"two audiences":         {push.Audience{User: "alice", All: true}, push.Message{}},
			"percent over 100":      {push.Audience{All: true, Percent: 101}, push.Message{}},
			"percent below 0":       {push.Audience{All: true, Percent: -1}, push.Message{}},
			"empty bytes":           {all, push.Message{Data: []byte{}}},
			"a channel":             {all, push.Message{Data: make(chan int)}},
			"JSON that is none":     {all, push.Message{Data: json.RawMessage(`{`)}},
			"JSON that is not text": {all, push.Message{Data: json.RawMessage("\"\xff\"")}},
			"a reserved event":      {all, push.Message{Event: "connect_error"}},
			"a control character":   {all, push.Message{Event: "a\nb"}},
			"a long event":          {all, push.Message{Event: strings.Repeat("e", 257)}},
			"an event not UTF-8":    {all, push.Message{Event: "\xff"}},
			"an unknown ack":        {all, push.Message{Ack: 3}},
			"a negative rate":       {all, push.Message{Rate: -1}},
		} {
			if r, err := w.Push(w.Context(), c.a, c.m); err == nil || r.Targets != 0 {
				t.Errorf("%s: want an error, got %+v", name, r)
			}
		}
		_, err := w.Broadcast(w.Context(), push.Message{Data: strings.Repeat("x", 1000)})
		if !errors.Is(err, push.ErrTooLarge) || w.Stats().TooLarge != 1 {
			t.Errorf("over MaxPush: want ErrTooLarge, counted, got %v", err)
		}
		alice.wantNothing()
	})
}

func TestAnAudienceIsNarrowedByEveryFilter(t *testing.T) {
	inMemory(t, push.Config{Authenticate: push.TrustClaims}, func(w *world) {
		w.connect(doors[0], "user=a&device=1&os=iOS&version=2.10&tag=red&tag=big")
		w.connect(doors[1], "user=b&device=2&os=android&version=2.9.1&tag=red")
		w.connect(doors[0], "user=c&device=3&version=nonsense&tag=blue")
		w.connect(doors[0], "device=4")
		first := slices.Collect(w.Conns())[0]
		for _, c := range []struct {
			name string
			a    push.Audience
			want string
		}{
			{"all", push.Audience{All: true}, "1234"},
			{"any tag", push.Audience{All: true, AnyTag: []string{"red", "blue"}}, "123"},
			{"all tags", push.Audience{All: true, AllTags: []string{"red", "big"}}, "1"},
			{"no tag", push.Audience{All: true, NoTag: []string{"red"}}, "34"},
			{"substring of a tag", push.Audience{All: true, AnyTag: []string{"re"}}, ""},
			{"os", push.Audience{All: true, OS: []string{"ios", "ANDROID"}}, "12"},
			{"version", push.Audience{All: true, MinVersion: "2.9.1"}, "12"},
			{"newer version", push.Audience{All: true, MinVersion: "2.10.0"}, "1"},
			{"everybody by percent", push.Audience{All: true, Percent: 100}, "1234"},
			{"two filters", push.Audience{All: true, AnyTag: []string{"red"}, OS: []string{"android"}}, "2"},
			{"a user who does not match", push.Audience{User: "a", NoTag: []string{"red"}}, ""},
			{"some users", push.Audience{Users: []string{"a", "c", "x"}}, "13"},
			{"a namespace without anybody", push.Audience{All: true, Namespace: "/chat"}, ""},
			{"the namespace", push.Audience{All: true, Namespace: "/"}, "1234"},
			{"except", push.Audience{All: true, Except: []push.ConnID{first.ID()}}, strings.Replace("1234", first.Login().DeviceID, "", 1)},
			{"one connection", push.Audience{Conn: first.ID()}, first.Login().DeviceID},
		} {
			devices, err := w.Devices(w.Context(), c.a)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			var got []string
			for _, d := range devices {
				got = append(got, d.DeviceID)
			}
			slices.Sort(got)
			if strings.Join(got, "") != c.want {
				t.Errorf("%s: want devices %s, got %s", c.name, c.want, got)
			}
			r, err := w.Push(w.Context(), c.a, push.Message{})
			if r.Targets != len(c.want) || c.a.User == "" && c.a.Conn == 0 && err != nil {
				t.Errorf("%s: want %d targets, got %+v, %v", c.name, len(c.want), r, err)
			}
		}
	})
}

func TestPercentIsAlwaysTheSameShareOfUsers(t *testing.T) {
	inMemory(t, push.Config{Authenticate: push.TrustClaims}, func(w *world) {
		for i := range 300 {
			w.connect(doors[0], fmt.Sprintf("user=u%d", i))
		}
		seen := func(percent int) map[string]bool {
			devices, _ := w.Devices(w.Context(), push.Audience{All: true, Percent: percent})
			m := make(map[string]bool)
			for _, d := range devices {
				m[d.UserID] = true
			}
			return m
		}
		few, more := seen(20), seen(50)
		if len(few) < 30 || len(few) > 90 || len(more) < 110 || len(more) > 190 {
			t.Errorf("of 300 users want about 60 and 150, got %d and %d", len(few), len(more))
		}
		for user := range few {
			if !more[user] {
				t.Errorf("%s is of 20 percent and not of 50", user)
			}
		}
	})
}

// gate is an Authenticate whose answer the client asks for.
func gate(ctx context.Context, l *push.Login) (string, error) {
	switch l.Token {
	case "refuse":
		return "", push.ErrUnauthorized
	case "text":
		return "", fmt.Errorf("wrapped: %w", push.Refuse("ask the admin"))
	case "down":
		return "", errors.New("database is down, at 10.0.0.7")
	case "nobody":
		return "", nil
	case "panic":
		panic("gate")
	case "late":
		<-ctx.Done()
		return l.UserID, nil
	case "invalid":
		return "a\x00b", nil
	}
	return l.UserID, nil
}

func TestTheGateDecidesWhoComesIn(t *testing.T) {
	everywhere(t, push.Config{Authenticate: gate, Origins: []string{"https://page.example"}}, func(w *world, d door) {
		page := http.Header{"Origin": {"https://page.example"}}
		for _, c := range []struct {
			query  string
			status int
			code   int
			text   string
		}{
			{"user=alice&token=refuse", 401, 4401, "unauthorized"},
			{"token=refuse", 401, 4401, "unauthorized"},
			{"user=alice&token=text", 401, 4401, "ask the admin"},
			{"user=alice&token=down", 503, 1013, ""},
			{"user=alice&token=nobody", 401, 4401, "unauthorized"},
			{"user=alice&token=panic", 500, 1011, ""},
			{"user=alice&token=late", 503, 1013, ""},
			{"user=alice&token=invalid", 503, 1013, ""},
		} {
			// Without an Origin it is a program: an HTTP status.
			_, resp, err := w.dial(d, c.query, nil)
			if err == nil || resp == nil || resp.StatusCode != c.status {
				t.Errorf("%s: want status %d, got %v, %v", c.query, c.status, resp, err)
			} else {
				body := make([]byte, 200)
				n, _ := resp.Body.Read(body)
				if got := string(body[:n]); !strings.Contains(got, c.text) || strings.Contains(got, "10.0.0.7") {
					t.Errorf("%s: want text %q, got %q", c.query, c.text, got)
				}
				if c.status == 503 && resp.Header.Get("Retry-After") == "" {
					t.Errorf("%s: no Retry-After", c.query)
				}
			}
			// With one it is a page: a close code.
			tab, _, err := w.dial(d, c.query, page)
			if err != nil {
				t.Errorf("%s: a page: %v", c.query, err)
				continue
			}
			if got := tab.wantClose(c.code); c.text != "" && got != c.text {
				t.Errorf("%s: a page: want text %q, got %q", c.query, c.text, got)
			}
			// A later login on a connection that is in.
			if strings.HasPrefix(c.query, "token") {
				continue
			}
			in := w.connect(d, "")
			in.send(map[string]any{"login": map[string]any{"user": "alice", "token": strings.TrimPrefix(c.query, "user=alice&token=")}})
			if got := in.wantClose(c.code); c.text != "" && got != c.text {
				t.Errorf("%s: a later login: want text %q, got %q", c.query, c.text, got)
			}
		}
		s := w.Stats()
		if s.Refused["unauthorized"] != 11 || s.Refused["later"] != 8+4 || s.Panics != 3 || s.Users != 0 {
			t.Errorf("refusals are counted by why, got %v, %d panics, %d users", s.Refused, s.Panics, s.Users)
		}
	})
}

func TestWithoutAGateNobodyMayNameAUser(t *testing.T) {
	everywhere(t, push.Config{}, func(w *world, d door) {
		if _, resp, err := w.dial(d, "user=alice", nil); err == nil || resp.StatusCode != 401 {
			t.Errorf("want 401, got %v", err)
		}
		c := w.connect(d, "device=x")
		if r, err := w.Broadcast(w.Context(), push.Message{Event: "all"}); err != nil || r.Targets != 1 {
			t.Errorf("want one, got %+v, %v", r, err)
		}
		c.wantPush("all", nil)
		c.send(map[string]any{"login": map[string]any{"user": "alice"}})
		c.wantClose(4401)
	})
}

func TestTheGateGivesRoomsTagsDataAndAnExpiry(t *testing.T) {
	type session struct{ admin bool }
	cfg := push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
		if l.Cookie("session") != "s1" && l.Conn == nil || l.Header("X-Test") != "" || l.Query("none") != "" {
			return "", push.ErrUnauthorized
		}
		l.Tags = []string{"set by the gate"}
		l.Rooms = []string{"staff", "news"}
		l.Data = session{admin: true}
		l.DeviceID = "d1"
		l.Expires = time.Now().Add(time.Hour)
		return "alice", nil
	}}
	everywhere(t, cfg, func(w *world, d door) {
		tab, _, err := w.dial(d, "tag=claimed&device=claimed", http.Header{"Cookie": {"session=s1"}})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c := slices.Collect(w.Conns())[0]
		rooms := c.Rooms()
		slices.Sort(rooms)
		if !slices.Equal(rooms, []string{"news", "staff"}) || c.UserID() != "alice" || c.Data() != (session{admin: true}) ||
			c.Login().DeviceID != "d1" || !slices.Equal(c.Login().Tags, []string{"set by the gate"}) || c.Login().Request != nil || c.Login().Token != "" {
			t.Errorf("got rooms %v, user %q, data %v, login %+v", rooms, c.UserID(), c.Data(), c.Login())
		}
		if _, err := w.PushToRoom(w.Context(), "staff", push.Message{Event: "room"}); err != nil {
			t.Error(err)
		}
		tab.wantPush("room", nil)
		go func() { // keep it alive
			for range 240 {
				time.Sleep(15 * time.Second)
				tab.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
			}
		}()
		begin := time.Now()
		tab.ws.SetReadDeadline(time.Now().Add(2 * time.Hour))
		_, _, err = tab.ws.ReadMessage()
		var closed *websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != 4401 {
			t.Fatalf("want 4401, got %v", err)
		}
		if took := time.Since(begin); took < 59*time.Minute || took > time.Hour+2*time.Second {
			t.Errorf("want it after an hour, got %v", took)
		}
		time.Sleep(10 * time.Minute)
	})
}

func TestALaterLoginMakesTheConnectionAnothers(t *testing.T) {
	cfg := push.Config{Authenticate: gate}
	everywhere(t, cfg, func(w *world, d door) {
		c := w.connect(d, "user=alice")
		conn := slices.Collect(w.Conns())[0]
		if err := conn.Join("room"); err != nil {
			t.Fatal(err)
		}
		c.send(map[string]any{"login": map[string]any{"user": "bob", "token": "fine", "device": "d9", "tags": []string{"t"}}})
		m := c.read()
		in, _ := m["login"].(map[string]any)
		if in["user"] != "bob" || in["conn"] != conn.ID().String() {
			t.Fatalf("want the login answered, got %v", m)
		}
		if w.Online("alice") || !w.Online("bob") || len(conn.Rooms()) != 0 || conn.Login().DeviceID != "d9" || conn.UserID() != "bob" {
			t.Errorf("want bob without alice's rooms, got %q in %v", conn.UserID(), conn.Rooms())
		}
		conn.Join("room")
		c.send(map[string]any{"login": map[string]any{"user": "bob"}}) // again the same: stays where it is
		c.read()
		if !slices.Equal(conn.Rooms(), []string{"room"}) {
			t.Errorf("the same user logs in again: want the rooms kept, got %v", conn.Rooms())
		}
		c.send(map[string]any{"logout": true})
		synctest.Wait()
		if w.Online("bob") || conn.UserID() != "" || len(conn.Rooms()) != 0 {
			t.Errorf("after a logout: user %q, rooms %v", conn.UserID(), conn.Rooms())
		}
		w.Broadcast(w.Context(), push.Message{Event: "all"})
		c.wantPush("all", nil)
	})
}

func TestHandlersAnswerTheClient(t *testing.T) {
	var got []string
	cfg := push.Config{OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
		var first json.RawMessage
		err := m.Decode(&first)
		got = append(got, fmt.Sprintf("%s %d %s %v %v", m.Event, m.Args(), first, m.Bytes(0), err))
		return nil, nil
	}}
	everywhere(t, cfg, func(w *world, d door) {
		got = nil
		type in struct{ A int }
		push.On(w.Engine, "add", func(ctx context.Context, c *push.Conn, v in) (any, error) { return v.A + 1, nil })
		push.On(w.Engine, "refuse", func(ctx context.Context, c *push.Conn, v any) (any, error) { return nil, push.Refuse("no such thing") })
		push.On(w.Engine, "fail", func(ctx context.Context, c *push.Conn, v any) (any, error) { return nil, errors.New("secret") })
		push.On(w.Engine, "bytes", func(ctx context.Context, c *push.Conn, v []byte) (any, error) { return append(v, '!'), nil })
		push.On(w.Engine, "bad reply", func(ctx context.Context, c *push.Conn, v any) (any, error) { return make(chan int), nil })
		c := w.connect(d, "")
		for _, x := range []struct {
			event string
			data  any
			want  string
		}{
			{"add", map[string]any{"A": 4}, `{"ack":5,"data":5}`},
			{"add", map[string]any{"A": "x"}, `{"ack":5,"error":"cannot decode the data"}`},
			{"refuse", nil, `{"ack":5,"error":"no such thing"}`},
			{"fail", nil, `{"ack":5,"error":"internal error"}`},
			{"bad reply", nil, `{"ack":5,"error":"internal error"}`},
			{"other", []any{1, 2}, `{"ack":5,"data":null}`},
		} {
			c.send(map[string]any{"event": x.event, "data": x.data, "id": 5})
			if m := c.read(); string(mustJSON(m)) != x.want {
				t.Errorf("%s: want %s, got %s", x.event, x.want, mustJSON(m))
			}
		}
		if d.kind == websocket.TextMessage {
			c.send(map[string]any{"event": "bytes", "data": "aGk=", "encoding": "base64", "id": 6})
			if m := c.read(); string(mustJSON(m)) != `{"ack":6,"data":"aGkh","encoding":"base64"}` {
				t.Errorf("bytes: got %s", mustJSON(m))
			}
		} else {
			c.send(map[string]any{"event": "bytes", "data": []byte("hi"), "id": 6})
			if m := c.read(); string(m["data"].([]byte)) != "hi!" {
				t.Errorf("bytes: got %v", m)
			}
		}
		c.send(map[string]any{"event": "no answer wanted"})
		synctest.Wait()
		if want := []string{"other 1 [1,2] [] <nil>", "no answer wanted 0 null [] <nil>"}; !slices.Equal(got, want) {
			t.Errorf("OnMessage: want %q, got %q", want, got)
		}
		defer func() {
			if recover() == nil {
				t.Error("a second handler for an event did not panic")
			}
		}()
		push.On(w.Engine, "add", func(ctx context.Context, c *push.Conn, v in) (any, error) { return nil, nil })
	})
}

func TestAnUnknownEventIsAnsweredAndCounted(t *testing.T) {
	everywhere(t, push.Config{}, func(w *world, d door) {
		c := w.connect(d, "")
		c.send(map[string]any{"event": "what", "id": 1})
		if m := c.read(); m["error"] == nil {
			t.Errorf("want an error, got %v", m)
		}
		c.send(map[string]any{"nothing": "known"})
		c.send(map[string]any{"ping": 1})
		if m := c.read(); m["pong"] == nil {
			t.Errorf("want a pong, got %v", m)
		}
		if s := w.Stats(); s.Unhandled != 1 || s.Ignored != 1 {
			t.Errorf("want both counted, got %+v", s)
		}
	})
}

func TestMalformedMessagesCloseTheirConnectionWithTheRightCode(t *testing.T) {
	everywhere(t, push.Config{Limits: push.Limits{MaxMessage: 100}}, func(w *world, d door) {
		other := websocket.BinaryMessage
		if d.kind == other {
			other = websocket.TextMessage
		}
		for name, c := range map[string]struct {
			kind int
			b    []byte
			code int
		}{
			"wrong kind": {other, []byte("{}"), 1003},
			"no object":  {d.kind, d.encode([]int{1}), 1007},
			"garbage":    {d.kind, []byte("{\xc1"), 1007},
			"bomb":       {d.kind, []byte{0xdd, 0xff, 0xff, 0xff, 0xff, 0, 0, 0}, 1007},
			"too large":  {d.kind, d.encode(map[string]any{"event": strings.Repeat("x", 101)}), 1009},
		} {
			tab := w.connect(d, "")
			if err := tab.ws.WriteMessage(c.kind, c.b); err != nil {
				t.Fatal(err)
			}
			tab.ws.SetReadDeadline(time.Now().Add(time.Minute))
			_, _, err := tab.ws.ReadMessage()
			if !websocket.IsCloseError(err, c.code) {
				t.Errorf("%s: want %d, got %v", name, c.code, err)
			}
		}
		tab := w.connect(d, "")
		for range 25 {
			tab.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
		}
		tab.wantClose(1008)
		slow := w.connect(d, "")
		slow.ws.NetConn().Write([]byte{0x81}) // half a header, and no more
		slow.wantClose(1008)
		time.Sleep(2 * time.Second) // its goodbye reads as the rest of that message
		if s := w.Stats(); s.Closed[push.ReasonProtocol] != 7 {
			t.Errorf("want 7 counted as protocol, got %v", s.Closed)
		}
	})
}

func TestOnlyAllowedPagesConnect(t *testing.T) {
	asked := 0
	for name, c := range map[string]struct {
		cfg    push.Config
		origin string
		want   bool
	}{
		"same host":        {push.Config{}, "http://192.0.2.1", true},
		"another host":     {push.Config{}, "http://evil.example", false},
		"null":             {push.Config{}, "null", false},
		"listed":           {push.Config{Origins: []string{"http://a.example"}}, "http://a.example", true},
		"CheckOrigin says": {push.Config{Origins: []string{"http://a.example"}, CheckOrigin: func(r *http.Request) bool { asked++; return false }}, "http://a.example", false},
		"a panic":          {push.Config{CheckOrigin: func(r *http.Request) bool { panic("x") }}, "http://192.0.2.1", false},
	} {
		inMemory(t, c.cfg, func(w *world) {
			_, resp, err := w.dial(doors[0], "", http.Header{"Origin": {c.origin}})
			if (err == nil) != c.want || !c.want && resp.StatusCode != 403 {
				t.Errorf("%s: want %v, got %v", name, c.want, err)
			}
			if n := w.Stats().Refused["origin"]; !c.want && n != 1 {
				t.Errorf("%s: want it counted, got %d", name, n)
			}
		})
	}
	if asked != 1 {
		t.Errorf("CheckOrigin: want one call, got %d", asked)
	}
	if _, err := push.New(push.Config{Origins: []string{"not an origin"}}); err == nil {
		t.Error("an origin that cannot match was taken")
	}
}

func TestOneMoreThanALimitIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		limits push.Limits
		auth   func(context.Context, *push.Login) (string, error)
		status int
		code   int // for a page; 0: the status as well
		why    string
	}{
		"MaxConns":        {push.Limits{MaxConns: 2}, push.TrustClaims, 503, 0, "max_conns"},
		"MaxConnsPerUser": {push.Limits{MaxConnsPerUser: 2}, push.TrustClaims, 429, 1013, "max_conns_per_user"},
		"MaxConnsPerAddr": {push.Limits{MaxConnsPerAddr: 2}, push.TrustClaims, 429, 0, "max_conns_per_addr"},
	} {
		inMemory(t, push.Config{Authenticate: c.auth, Limits: c.limits}, func(w *world) {
			first := w.connect(doors[0], "user=alice")
			w.connect(doors[1], "user=alice")
			if _, resp, err := w.dial(doors[0], "user=alice", nil); err == nil || resp.StatusCode != c.status {
				t.Errorf("%s: want %d, got %v", name, c.status, err)
			}
			tab, resp, err := w.dial(doors[0], "user=alice", http.Header{"Origin": {"http://192.0.2.1"}})
			if c.code == 0 {
				if err == nil || resp.StatusCode != c.status {
					t.Errorf("%s: a page: want %d, got %v", name, c.status, err)
				}
			} else if err != nil {
				t.Errorf("%s: a page: %v", name, err)
			} else {
				tab.wantClose(c.code)
			}
			if s := w.Stats(); s.Refused[c.why] != 2 || s.Conns != 2 {
				t.Errorf("%s: want two counted, got %v", name, s.Refused)
			}
			first.ws.Close()
			synctest.Wait()
			if _, _, err := w.dial(doors[0], "user=alice", nil); err != nil {
				t.Errorf("%s: there is room again: %v", name, err)
			}
		})
	}
	inMemory(t, push.Config{Limits: push.Limits{MaxPending: 1}, Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	}}, func(w *world) {
		done := make(chan struct{})
		go func() { defer close(done); w.dial(doors[0], "", nil) }()
		synctest.Wait()
		if _, resp, err := w.dial(doors[0], "", nil); err == nil || resp.StatusCode != 503 {
			t.Errorf("MaxPending: want 503, got %v", err)
		}
		<-done
	})
}

func TestRoomsAreBoundedAndEmptyOnesAreGone(t *testing.T) {
	inMemory(t, push.Config{Authenticate: push.TrustClaims}, func(w *world) {
		tab := w.connect(doors[0], "user=alice")
		c := slices.Collect(w.Conns())[0]
		for i := range 256 {
			if err := c.Join(fmt.Sprintf("r%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Join("r0", "r1"); err != nil {
			t.Errorf("rooms it is in: %v", err)
		}
		if err := c.Join("one too many"); !errors.Is(err, push.ErrLimit) {
			t.Errorf("want ErrLimit, got %v", err)
		}
		if err := c.Join("bad\nname"); err == nil {
			t.Error("a bad name was taken")
		}
		if n, err := w.Join(w.Context(), push.Audience{User: "alice"}, "x"); n != 0 || !errors.Is(err, push.ErrLimit) {
			t.Errorf("Engine.Join: want ErrLimit, got %d, %v", n, err)
		}
		if n, err := w.Leave(w.Context(), push.Audience{User: "alice"}, "r0"); n != 1 || err != nil {
			t.Errorf("want one that left, got %d, %v", n, err)
		}
		if n, _ := w.Leave(w.Context(), push.Audience{User: "alice"}, "r0"); n != 0 {
			t.Errorf("nobody is left to leave, got %d", n)
		}
		if n, err := w.Join(w.Context(), push.Audience{All: true}, "x"); n != 1 || err != nil {
			t.Errorf("want one that joined, got %d, %v", n, err)
		}
		if n := w.Stats().Rooms; n != 256 {
			t.Errorf("want 256 rooms, got %d", n)
		}
		for i := range 256 {
			c.Leave(fmt.Sprintf("r%d", i))
		}
		for room, n := range w.Rooms() {
			if room != "x" || n != 1 {
				t.Errorf("want x with one, got %s with %d", room, n)
			}
		}
		tab.ws.Close()
		synctest.Wait()
		if err := c.Join("late"); !errors.Is(err, push.ErrClosed) {
			t.Errorf("a join after the end: want ErrClosed, got %v", err)
		}
		if err := c.Bind(w.Context(), "late"); !errors.Is(err, push.ErrClosed) {
			t.Errorf("a bind after the end: want ErrClosed, got %v", err)
		}
		if d, err := c.Push(w.Context(), push.Message{}); !errors.Is(err, push.ErrOffline) || d.Status != push.Offline {
			t.Errorf("a push after the end: want ErrOffline, got %+v, %v", d, err)
		}
		if c.Context().Err() == nil {
			t.Error("the context did not end with the connection")
		}
		if s := w.Stats(); s.Rooms != 0 || s.Memberships != 0 || s.Conns != 0 {
			t.Errorf("something of a closed connection is left: %+v", s)
		}
	})
}

func TestKickEndsConnectionsForGood(t *testing.T) {
	var mu sync.Mutex
	var why []push.Reason
	cfg := push.Config{Authenticate: push.TrustClaims, OnDisconnect: func(c *push.Conn, r push.Reason) {
		mu.Lock()
		defer mu.Unlock()
		why = append(why, r)
	}}
	everywhere(t, cfg, func(w *world, d door) {
		why = nil
		a, b := w.connect(d, "user=alice"), w.connect(d, "user=alice")
		n, err := w.Kick(w.Context(), push.Audience{User: "alice"}, strings.Repeat("ä", 100))
		if n != 2 || err != nil {
			t.Fatalf("want two kicked, got %d, %v", n, err)
		}
		if w.Online("alice") {
			t.Error("kicked and still online")
		}
		if text := a.wantClose(4410); text != strings.Repeat("ä", 61) {
			t.Errorf("want the text cut at 123 bytes, got %q", text)
		}
		b.wantClose(4410)
		synctest.Wait()
		if !slices.Equal(why, []push.Reason{push.ReasonKicked, push.ReasonKicked}) {
			t.Errorf("want kicked twice, got %v", why)
		}
	})
}

func TestAMiddlewareThatUnwrapsIsNoObstacle(t *testing.T) {
	e, err := push.New(push.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for name, wrap := range map[string]func(http.ResponseWriter) http.ResponseWriter{
		"unwraps":   func(w http.ResponseWriter) http.ResponseWriter { return unwrapper{w} },
		"hides all": func(w http.ResponseWriter) http.ResponseWriter { return struct{ http.ResponseWriter }{w} },
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { e.ServeHTTP(wrap(w), r) }))
		ws, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http"), nil)
		if name == "unwraps" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else {
				ws.Close()
			}
		} else if err == nil || resp.StatusCode != 500 {
			t.Errorf("%s: want 500, got %v", name, err)
		} else {
			body := make([]byte, 500)
			n, _ := resp.Body.Read(body)
			if !strings.Contains(string(body[:n]), "Unwrap") {
				t.Errorf("%s: the usual cause is not named: %s", name, body[:n])
			}
		}
		srv.Close()
	}
}

type unwrapper struct{ inner http.ResponseWriter }

func (u unwrapper) Header() http.Header         { return u.inner.Header() }
func (u unwrapper) Write(b []byte) (int, error) { return u.inner.Write(b) }
func (u unwrapper) WriteHeader(code int)        { u.inner.WriteHeader(code) }
func (u unwrapper) Unwrap() http.ResponseWriter { return u.inner }

func TestTLSAndHTTP2(t *testing.T) {
	e, err := push.New(push.Config{Authenticate: push.TrustClaims})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	srv := httptest.NewUnstartedServer(e)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL + "/ws")
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 500)
	n, _ := resp.Body.Read(body)
	resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != 426 || !strings.Contains(string(body[:n]), "HTTP/2") {
		t.Errorf("HTTP/2: want a sentence, got %s %d %q", resp.Proto, resp.StatusCode, body[:n])
	}

	dialer := websocket.Dialer{TLSClientConfig: srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()}
	dialer.TLSClientConfig.NextProtos = nil
	ws, _, err := dialer.Dial("wss"+strings.TrimPrefix(srv.URL, "https")+"/?user=alice", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.WriteMessage(websocket.TextMessage, []byte(`{"ping":1}`)) // its pong says that it is in
	if _, b, err := ws.ReadMessage(); err != nil || string(b) != `{"pong":1}` {
		t.Fatalf("got %q, %v", b, err)
	}
	for range 100 {
		if _, err := e.PushToUser(t.Context(), "alice", push.Message{Event: "tls", Data: strings.Repeat("x", 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		if _, b, err := ws.ReadMessage(); err != nil || !strings.HasPrefix(string(b), `{"event":"tls"`) {
			t.Fatalf("got %q, %v", b, err)
		}
	}
}

func TestARequestThatIsNoWebSocketIsAnswered(t *testing.T) {
	e, err := push.New(push.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	upgrade := func(change func(*http.Request)) *http.Request {
		r := httptest.NewRequest("GET", "/ws", nil)
		r.Header.Set("Connection", "keep-alive, Upgrade")
		r.Header.Set("Upgrade", "WebSocket")
		r.Header.Set("Sec-WebSocket-Version", "13")
		r.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
		change(r)
		return r
	}
	for name, c := range map[string]struct {
		r      *http.Request
		status int
		header string
	}{
		"no upgrade":     {httptest.NewRequest("GET", "/ws", nil), 426, "Upgrade"},
		"another method": {upgrade(func(r *http.Request) { r.Method = "POST" }), 405, "Allow"},
		"old version":    {upgrade(func(r *http.Request) { r.Header.Set("Sec-WebSocket-Version", "8") }), 426, "Sec-Websocket-Version"},
		"short key":      {upgrade(func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "abc") }), 400, ""},
		"bad name":       {upgrade(func(r *http.Request) { r.URL.RawQuery = "user=a%0Ab" }), 400, ""},
		"long name":      {upgrade(func(r *http.Request) { r.URL.RawQuery = "user=" + strings.Repeat("a", 257) }), 400, ""},
		"many tags":      {upgrade(func(r *http.Request) { r.URL.RawQuery = strings.Repeat("tag=t&", 33) }), 400, ""},
	} {
		rec := httptest.NewRecorder()
		e.ServeHTTP(rec, c.r)
		if rec.Code != c.status || c.header != "" && rec.Header().Get(c.header) == "" {
			t.Errorf("%s: want %d with %q, got %d %v", name, c.status, c.header, rec.Code, rec.Header())
		}
	}
	rec := httptest.NewRecorder()
	e.ServeHTTP(rec, httptest.NewRequest("GET", "/static/push.js", nil))
	if rec.Code != 200 || !strings.HasPrefix(rec.Header().Get("Content-Type"), "text/javascript") || !strings.Contains(rec.Body.String(), "export") {
		t.Errorf("push.js: got %d %v", rec.Code, rec.Header())
	}
	r := httptest.NewRequest("GET", "/push.js", nil)
	r.Header.Set("If-None-Match", rec.Header().Get("ETag"))
	rec = httptest.NewRecorder()
	e.ServeHTTP(rec, r)
	if rec.Code != http.StatusNotModified {
		t.Errorf("push.js again: want 304, got %d", rec.Code)
	}
	if n := e.Stats().Refused["bad_request"]; n != 7 {
		t.Errorf("want 7 bad requests counted, got %d", n)
	}
}

func TestRemoteAddrIsTheOneBehindTheProxy(t *testing.T) {
	cfg := push.Config{RemoteAddr: func(r *http.Request) netip.Addr {
		addr, _ := netip.ParseAddr(r.Header.Get("X-Real-IP"))
		return addr
	}}
	inMemory(t, cfg, func(w *world) {
		w.dial(doors[0], "device=proxied", http.Header{"X-Real-Ip": {"203.0.113.9"}})
		w.dial(doors[0], "device=direct", nil)
		synctest.Wait()
		for c := range w.Conns() {
			l := c.Login()
			if proxied := l.DeviceID == "proxied"; proxied != (l.Remote == netip.MustParseAddrPort("203.0.113.9:0")) || !l.Remote.IsValid() {
				t.Errorf("%s: got %v", l.DeviceID, l.Remote)
			}
		}
	})
}

func TestPushRateRefusesWhatIsTooMuch(t *testing.T) {
	inMemory(t, push.Config{Limits: push.Limits{PushRate: 10}}, func(w *world) {
		refused := 0
		for range 30 {
			if _, err := w.Broadcast(w.Context(), push.Message{}); errors.Is(err, push.ErrOverloaded) {
				refused++
			}
		}
		if refused != 20 {
			t.Errorf("want 20 of 30 refused, got %d", refused)
		}
		time.Sleep(time.Second)
		if _, err := w.Broadcast(w.Context(), push.Message{}); err != nil {
			t.Error(err)
		}
	})
}

func TestTooManyUnansweredPushesAreOverloadedAndTheConnectionLives(t *testing.T) {
	inMemory(t, push.Config{Authenticate: push.TrustClaims, Limits: push.Limits{AcksWaiting: 2}}, func(w *world) {
		alice := w.connect(doors[0], "user=alice")
		for range 2 {
			w.PushToUser(w.Context(), "alice", push.Message{Ack: push.BizAck, Async: true})
		}
		r, err := w.PushToUser(w.Context(), "alice", push.Message{Ack: push.BizAck})
		if !errors.Is(err, push.ErrOverloaded) || r.Deliveries[0].Status != push.Overloaded {
			t.Errorf("want Overloaded, got %+v, %v", r, err)
		}
		m := alice.read()
		alice.answer(m, nil)
		synctest.Wait()
		go func() { alice.read(); alice.answer(alice.read(), nil) }()
		if _, err := w.PushToUser(w.Context(), "alice", push.Message{Ack: push.BizAck}); err != nil {
			t.Errorf("there is room again: %v", err)
		}
	})
}

func TestStatusAndConnIDAreText(t *testing.T) {
	in := push.Delivery{Conn: 0xabc, Status: push.NodeLost}
	b, err := json.Marshal(in)
	if err != nil || !strings.Contains(string(b), `"conn":"0000000000000abc"`) || !strings.Contains(string(b), `"status":"nodelost"`) {
		t.Fatalf("got %s, %v", b, err)
	}
	var out push.Delivery
	if err := json.Unmarshal(b, &out); err != nil || out.Conn != in.Conn || out.Status != in.Status {
		t.Errorf("want it back, got %+v, %v", out, err)
	}
	if json.Unmarshal([]byte(`{"status":"unheard of"}`), &out) == nil || json.Unmarshal([]byte(`{"conn":"xyz"}`), &out) == nil {
		t.Error("garbage was taken")
	}
	if s := push.Status(200).String(); s != "status(200)" {
		t.Errorf("got %q", s)
	}
}

func TestAPageThatOnlyTheStarLetsInComesWithoutItsCookies(t *testing.T) {
	seen := make(map[string]string)
	cfg := push.Config{
		Origins: []string{"*", "https://shop.example"},
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			seen[l.Header("Origin")] = l.Cookie("session") + l.Token
			return "", nil
		},
	}
	inMemory(t, cfg, func(w *world) {
		for _, page := range []string{"https://evil.example", "null", "https://shop.example", "http://192.0.2.1"} {
			if _, _, err := w.dial(doors[0], "", http.Header{"Origin": {page}, "Cookie": {"session=s"}, "Authorization": {"Bearer t"}}); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
		want := map[string]string{"https://evil.example": "", "null": "", "https://shop.example": "st", "http://192.0.2.1": "st"}
		if !maps.Equal(seen, want) {
			t.Errorf("want %v, got %v", want, seen)
		}
	})
}

func TestCompressionIsNotOffered(t *testing.T) {
	inMemory(t, push.Config{}, func(w *world) {
		dialer := websocket.Dialer{NetDialContext: w.ln.DialContext, EnableCompression: true}
		ws, resp, err := dialer.Dial("ws://192.0.2.1/", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		if got := resp.Header.Get("Sec-Websocket-Extensions"); got != "" {
			t.Errorf("want no extension, got %q", got)
		}
	})
}

func TestPushJSIsServedAlsoBehindStripPrefix(t *testing.T) {
	e, err := push.New(push.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	rec := httptest.NewRecorder()
	http.StripPrefix("/rt/", e).ServeHTTP(rec, httptest.NewRequest("GET", "/rt/push.js", nil))
	if rec.Code != 200 {
		t.Errorf("want 200, got %d", rec.Code)
	}
}

func TestProgressIsToldWhileAPushIsPaced(t *testing.T) {
	inMemory(t, push.Config{}, func(w *world) {
		for range 40 {
			w.connect(doors[0], "")
		}
		var sent []int
		r, err := w.Broadcast(w.Context(), push.Message{Rate: 20, Progress: func(r push.Receipt) { sent = append(sent, r.Sent) }})
		if err != nil || r.Sent != 40 {
			t.Fatalf("want 40 sent, got %+v, %v", r, err)
		}
		if len(sent) < 10 || !slices.IsSorted(sent) || sent[0] > 10 || sent[len(sent)-1] != 40 {
			t.Errorf("two seconds of pushing: want at least ten rising calls, got %v", sent)
		}
	})
}

func TestWhatWaitsForOnConnectIsBoundedAndNotForgotten(t *testing.T) {
	let := make(chan struct{})
	cfg := push.Config{
		Authenticate: push.TrustClaims,
		Limits:       push.Limits{TotalQueueBytes: 100_000},
		OnConnect: func(ctx context.Context, c *push.Conn) {
			if c.UserID() != "free" {
				<-let
			}
		},
	}
	synctest.Test(t, func(t *testing.T) {
		let = make(chan struct{})
		e, err := push.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ln, _ := memnet.Listen("192.0.2.1:80")
		srv := &http.Server{Handler: e}
		go srv.Serve(ln)
		w := &world{t, e, ln}
		kicked := w.connect(doors[0], "user=kicked")
		if _, err := w.PushToUser(w.Context(), "kicked", push.Message{Event: "held"}); err != nil {
			t.Fatal(err)
		}
		w.Kick(w.Context(), push.Audience{User: "kicked"}, "")
		kicked.wantPush("held", nil)
		kicked.wantClose(4410)

		for i := range 20 {
			w.connect(doors[0], fmt.Sprintf("user=u%d", i))
		}
		slow := 0
		for i := range 20 {
			_, err := w.PushToUser(w.Context(), fmt.Sprintf("u%d", i), push.Message{Data: strings.Repeat("x", 10_000)})
			if errors.Is(err, push.ErrSlow) {
				slow++
			}
			if n := w.Stats().QueuedBytes; n > 110_000 {
				t.Fatalf("held pushes take %d bytes", n)
			}
		}
		if slow < 8 {
			t.Errorf("20 times 10 000 bytes into 100 000: want about half refused, got %d", slow)
		}
		close(let)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
		defer cancel()
		e.Shutdown(ctx)
		srv.Close()
		checkEmpty(t, e)
	})
}

func TestAVersionThatIsNoneIsOlderThanEverything(t *testing.T) {
	inMemory(t, push.Config{}, func(w *world) {
		for _, version := range []string{"", "1..9", "1.0", "v3", "2.0.0", "10"} {
			w.connect(doors[0], "device=d"+version+"&version="+version)
		}
		for least, want := range map[string]int{"0": 3, "1": 3, "1.0.0": 3, "1.0.1": 2, "2": 2, "2.0.0.1": 1, "11": 0} {
			if devices, err := w.Devices(w.Context(), push.Audience{All: true, MinVersion: least}); err != nil || len(devices) != want {
				t.Errorf("at least %s: want %d, got %v, %v", least, want, devices, err)
			}
		}
		for _, least := range []string{"v2", "1..9", ".", "1.", "-1"} {
			if _, err := w.Broadcast(w.Context(), push.Message{}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Push(w.Context(), push.Audience{All: true, MinVersion: least}, push.Message{}); err == nil {
				t.Errorf("MinVersion %q was taken", least)
			}
		}
	})
}

func TestARoomPushGoesToWhoWasThereWhenItWasPushed(t *testing.T) {
	inMemory(t, push.Config{Authenticate: push.TrustClaims}, func(w *world) {
		for range 80 {
			w.connect(doors[0], "")
		}
		w.Join(w.Context(), push.Audience{All: true}, "room")
		alice := w.connect(doors[0], "user=alice")
		var c *push.Conn
		for conn := range w.Conns() {
			if conn.UserID() == "alice" {
				c = conn
			}
		}
		for i := range 100 {
			w.PushToRoom(w.Context(), "room", push.Message{Event: "not hers"})
			c.Join("room")
			w.PushToRoom(w.Context(), "room", push.Message{Event: "hers", Data: i})
			c.Leave("room")
		}
		for i := range 100 {
			alice.wantPush("hers", i)
		}
		alice.wantNothing()
	})
}

func TestLimitsAreCountedByName(t *testing.T) {
	cfg := push.Config{Authenticate: push.TrustClaims, Limits: push.Limits{
		MaxMessage: 200, MessageRate: 2, AcksWaiting: 1, PushRate: 3, InboxMessages: 1, MessageTimeout: time.Second,
	}}
	inMemory(t, cfg, func(w *world) {
		push.On(w.Engine, "slow", func(ctx context.Context, c *push.Conn, in any) (any, error) {
			time.Sleep(100 * time.Millisecond)
			return nil, nil
		})
		c := w.connect(doors[0], "user=alice")
		for range 15 {
			c.send(map[string]any{"event": "slow"})
		}
		time.Sleep(10 * time.Second)
		w.PushToUser(w.Context(), "alice", push.Message{Ack: push.BizAck, Async: true})
		w.PushToUser(w.Context(), "alice", push.Message{Ack: push.BizAck})
		for range 5 {
			w.PushToUser(w.Context(), "alice", push.Message{})
		}
		for i := range 257 {
			w.Join(w.Context(), push.Audience{User: "alice"}, fmt.Sprint(i))
		}
		big := w.connect(doors[0], "")
		big.send(map[string]any{"event": strings.Repeat("x", 250)})
		big.wantClose(1009)
		half := w.connect(doors[0], "")
		half.ws.NetConn().Write([]byte{0x81})
		half.wantClose(1008)
		pings := w.connect(doors[0], "")
		for range 22 {
			pings.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second))
		}
		pings.wantClose(1008)
		time.Sleep(5 * time.Second)
		got := w.Stats().Limited
		for _, name := range []string{"message_rate", "inbox", "push_rate", "acks_waiting", "rooms", "max_message", "message_timeout", "pings"} {
			if got[name] == 0 {
				t.Errorf("%s is not counted: %v", name, got)
			}
		}
	})
}

func TestAKickComesBehindWhatWaitedForOnConnect(t *testing.T) {
	inside, let := make(chan struct{}), make(chan struct{})
	e, err := push.New(push.Config{
		Authenticate: push.TrustClaims, Logger: slog.New(slog.DiscardHandler),
		Limits:    push.Limits{QueueBytes: 64 << 20, QueueMessages: 10_000},
		OnConnect: func(ctx context.Context, c *push.Conn) { close(inside); <-let },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	srv := httptest.NewServer(e)
	defer srv.Close()
	ws, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http")+"/?user=alice", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	<-inside
	const n = 2000
	for i := range n {
		if _, err := e.PushToUser(t.Context(), "alice", push.Message{Data: push.Args{i, strings.Repeat("x", 1000)}}); err != nil {
			t.Fatal(err)
		}
	}
	close(let)
	for i := range n + 1 {
		_, b, err := ws.ReadMessage()
		if err != nil || !strings.HasPrefix(string(b), fmt.Sprintf(`{"event":"message","data":[%d,`, i)) {
			t.Fatalf("want push %d, got %.60q, %v", i, b, err)
		}
		if i == 0 { // it is being released now
			if _, err := e.PushToUser(t.Context(), "alice", push.Message{Data: push.Args{n, ""}}); err != nil {
				t.Fatal(err)
			}
			e.Kick(t.Context(), push.Audience{User: "alice"}, "")
		}
	}
	if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, 4410) {
		t.Errorf("want 4410 at the end, got %v", err)
	}
}

func TestAPacedProgressThatEndsItsGoroutineLeavesNoDeviceWithoutAStatus(t *testing.T) {
	inMemory(t, push.Config{Authenticate: push.TrustClaims, Limits: push.Limits{AcksWaiting: 1}}, func(w *world) {
		for i := range 10 {
			w.connect(doors[0], fmt.Sprintf("user=u%d", i))
		}
		m := push.Message{Async: true, Rate: 10, Ack: push.BizAck, Progress: func(push.Receipt) { runtime.Goexit() }}
		if _, err := w.Broadcast(w.Context(), m); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		s := w.Stats()
		if n := s.Deliveries["overloaded"] + s.Deliveries["timeout"]; n != 10 || s.Flights != 0 {
			t.Errorf("want ten devices settled, got %v", s.Deliveries)
		}
		if _, err := w.PushToUser(w.Context(), "u0", push.Message{Ack: push.BizAck}); !errors.Is(err, push.ErrTimeout) {
			t.Errorf("the answers that did not come are forgotten: want ErrTimeout, got %v", err)
		}
	})
}

func TestMemoryOfWhoEndsIsGivenBackBeforeOthersAreClosed(t *testing.T) {
	inMemory(t, push.Config{Authenticate: push.TrustClaims, Limits: push.Limits{TotalQueueBytes: 1 << 20, QueueBytes: 1 << 20}}, func(w *world) {
		w.connect(doors[0], "user=stuck")
		reads := w.connect(doors[0], "user=reads")
		var wg sync.WaitGroup
		wg.Go(func() {
			for err := error(nil); err == nil; {
				_, _, err = reads.ws.ReadMessage()
			}
		})
		for w.Stats().QueuedBytes < 950_000 {
			if _, err := w.PushToUser(w.Context(), "stuck", push.Message{Data: strings.Repeat("x", 40_000)}); err != nil {
				t.Fatal(err)
			}
		}
		w.Kick(w.Context(), push.Audience{User: "stuck"}, "") // flushes what it can, for a second
		if _, err := w.PushToUser(w.Context(), "reads", push.Message{Data: strings.Repeat("x", 200_000)}); err != nil {
			t.Errorf("want it sent, got %v", err)
		}
		synctest.Wait()
		if !w.Online("reads") {
			t.Error("who reads was closed for the memory of who does not")
		}
		reads.ws.Close()
		wg.Wait()
	})
}

// TestAllocations keeps what is promised about allocations.
func TestAllocations(t *testing.T) {
	info, _ := debug.ReadBuildInfo()
	if testing.CoverMode() != "" || slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector and coverage allocate themselves")
	}
	e, err := push.New(push.Config{Authenticate: push.TrustClaims})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(e)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer srv.Close()
	defer e.Close()
	connect := func(query string, n int) {
		for range n {
			ws, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http")+"/?"+query, nil)
			if err != nil {
				t.Fatal(err)
			}
			ws.WriteMessage(websocket.TextMessage, []byte(`{"ping":1}`))
			if _, _, err := ws.ReadMessage(); err != nil {
				t.Fatal(err)
			}
			readers.Go(func() { // takes bytes off the socket, and allocates nothing
				defer ws.Close()
				buf := make([]byte, 64<<10)
				for {
					if _, err := ws.NetConn().Read(buf); err != nil {
						return
					}
				}
			})
		}
	}
	connect("user=alice", 1)
	connect("user=bob&tag=x", 40)
	type order struct{ ID, Price int }
	data := &order{7, 995}
	ctx := context.Background()
	got := testing.AllocsPerRun(200, func() {
		if _, err := e.PushToUser(ctx, "alice", push.Message{Event: "order", Data: data}); err != nil {
			t.Fatal(err)
		}
	})
	if got > 2 {
		t.Errorf("PushToUser, one device, no ack: want 2 allocations (the frame and the receipt), got %v", got)
	}
	// To 41 connections written by the caller: no more than to one, and no receipt.
	got = testing.AllocsPerRun(200, func() {
		if _, err := e.Broadcast(ctx, push.Message{Event: "order", Data: data}); err != nil {
			t.Fatal(err)
		}
	})
	if got > 1 {
		t.Errorf("Broadcast to 41: want 1 allocation (the frame), got %v", got)
	}
	// By the workers: the same number for 100 connections and for 300.
	fanout := func() float64 {
		return testing.AllocsPerRun(200, func() {
			if _, err := e.Broadcast(ctx, push.Message{Event: "order", Data: data}); err != nil {
				t.Fatal(err)
			}
		})
	}
	connect("user=carol", 60)
	few := fanout()
	for i := range 4 {
		connect(fmt.Sprintf("user=dave%d", i), 50)
	}
	many := fanout()
	if many > few+2 {
		t.Errorf("a broadcast allocates per member: %v for 101 connections, %v for 301", few, many)
	}
}

func Example() {
	engine, err := push.New(push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			return userOfSession(l.Cookie("session"))
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/ws", engine)      // WebSocket
	mux.Handle("/push.js", engine) // the page's client
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		receipt, err := engine.PushToUser(r.Context(), "alice", push.Message{Event: "order", Data: 4711, Ack: push.AutoAck})
		fmt.Fprintln(w, receipt.Acked, "of", receipt.Targets, "devices have it:", err)
	})
	server := &http.Server{Addr: "127.0.0.1:0", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go server.ListenAndServe()

	// At the end, in this order: http.Server.Shutdown neither closes nor waits
	// for WebSockets.
	engine.Shutdown(context.Background())
	server.Shutdown(context.Background())
	// Output:
}

// userOfSession stands for what the application knows.
func userOfSession(cookie string) (string, error) {
	if cookie == "" {
		return "", push.ErrUnauthorized
	}
	return "alice", nil
}

func ExampleEngine_PushToUser() {
	engine, err := push.New(push.Config{Authenticate: push.TrustClaims})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	receipt, err := engine.PushToUser(context.Background(), "alice", push.Message{Event: "order", Data: map[string]int{"id": 4711}})
	fmt.Println(receipt.Targets, receipt.Offline, errors.Is(err, push.ErrOffline))
	// Output: 0 [alice] true
}

func ExampleOn() {
	engine, err := push.New(push.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	// Clients never join a room by themselves: the application lets them.
	push.On(engine, "watch", func(ctx context.Context, c *push.Conn, auction string) (any, error) {
		return nil, c.Join("auction " + auction)
	})
	// Output:
}

// mpush devices connect as they are. Apps that expect mpush's PushMsg envelope
// get it from MPush.Content.
func ExampleEngine_Serve() {
	engine, err := push.New(push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			return userOfSession(l.Token) // the data of its BIND
		},
		MPush: push.MPush{Content: func(m push.Message) ([]byte, error) {
			return json.Marshal(map[string]any{"msgType": 2, "msgId": rand.Text(), "content": string(m.Data.(json.RawMessage))})
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- engine.Serve(ln) }()

	engine.Shutdown(context.Background())
	fmt.Println(<-served)
	// Output: push: closed
}

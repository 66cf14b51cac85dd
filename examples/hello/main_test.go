package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	patience := time.After(5 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); code == 0 && runtime.NumGoroutine() > before; {
		select {
		case <-tick.C:
		case <-patience:
			buf := make([]byte, 1<<20)
			fmt.Printf("goroutines were left behind:\n%s\n", buf[:runtime.Stack(buf, true)])
			code = 1
		}
	}
	os.Exit(code)
}

// console is what the program prints.
type console struct {
	mu      sync.Mutex
	text    bytes.Buffer  // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced by Write
}

func newConsole() *console { return &console{changed: make(chan struct{})} }

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
	return c.text.Write(b)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// want waits until a line matches, and returns its groups.
func (c *console) want(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	patience := time.After(10 * time.Second)
	for {
		c.mu.Lock()
		found, changed := re.FindStringSubmatch(c.text.String()), c.changed
		c.mu.Unlock()
		if found != nil {
			return found
		}
		select {
		case <-changed:
		case <-patience:
			t.Fatalf("no line like %s in:\n%s", pattern, c)
		}
	}
}

// hello is the program, running.
type hello struct {
	t       *testing.T
	url     string // of the page
	console *console
	stop    func() // as Ctrl-C; waits
}

func start(t *testing.T, args ...string) *hello {
	t.Helper()
	h := &hello{t: t, console: newConsole()}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, append([]string{"-http", "127.0.0.1:0", "-mpush", "127.0.0.1:0"}, args...), h.console)
	}()
	h.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the program ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the program does not end")
		}
	})
	t.Cleanup(h.stop)
	h.url = h.console.want(t, `^(http://\S+)$`)[1]
	h.console.want(t, `^curl .*$`)
	return h
}

// client keeps no connections.
var client = http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 15 * time.Second}

// ask sends a request; each edit changes it before.
func (h *hello) ask(method, path, body string, edits ...func(*http.Request)) (int, http.Header, string) {
	h.t.Helper()
	r, err := http.NewRequest(method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, edit := range edits {
		edit(r)
	}
	resp, err := client.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func host(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
func header(key, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(key, value) }
}

// push posts to path and reads the receipt.
func (h *hello) push(path, body string) (int, result) {
	h.t.Helper()
	code, _, text := h.ask("POST", path, body)
	var r result
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		h.t.Fatalf("POST %s answered %d %s", path, code, text)
	}
	return code, r
}

// tab is a client as a page would be one.
type tab struct {
	*websocket.Conn
	t *testing.T
}

func (h *hello) dial(query string, headers http.Header) (*websocket.Conn, int, error) {
	ws, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(h.url, "http")+"/ws"+query, headers)
	code := 0
	if resp != nil {
		code = resp.StatusCode
	}
	return ws, code, err
}

// open connects, and returns when the connection is where pushes find it.
func (h *hello) open(query string) tab {
	h.t.Helper()
	ws, _, err := h.dial(query, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { ws.Close() })
	tb := tab{ws, h.t}
	tb.send(map[string]any{"ping": 1})
	tb.want("the pong", func(f frame) bool { return f.Pong != 0 })
	return tb
}

type frame struct {
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
	ID    int             `json:"id"`
	Auto  bool            `json:"auto"`
	Ack   int             `json:"ack"`
	Pong  int             `json:"pong"`
	Error string          `json:"error"`
	Login *struct{ User, Conn string }
}

// want reads until a frame is as wanted.
func (tb tab) want(what string, is func(frame) bool) frame {
	tb.t.Helper()
	tb.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		var f frame
		if err := tb.ReadJSON(&f); err != nil {
			tb.t.Fatalf("waiting for %s: %v", what, err)
		}
		if is(f) {
			return f
		}
	}
}

func (tb tab) wantEvent(event string) frame {
	tb.t.Helper()
	return tb.want(event, func(f frame) bool { return f.Event == event })
}

func (tb tab) send(v any) {
	tb.t.Helper()
	if err := tb.WriteJSON(v); err != nil {
		tb.t.Fatal(err)
	}
}

func TestPageAndItsClientAreServed(t *testing.T) {
	h := start(t)
	code, headers, body := h.ask("GET", "/", "")
	if code != 200 || !strings.HasPrefix(headers.Get("Content-Type"), "text/html") {
		t.Errorf("GET / answered %d %s", code, headers.Get("Content-Type"))
	}
	if strings.Contains(body, "{{") || !strings.Contains(body, "engine.PushToUser(r.Context()") {
		t.Error("the page does not show the program")
	}
	for _, url := range regexp.MustCompile(`(src|href|url)\s*[=(]\s*["']?(https?:)?//[^"')]*`).FindAllString(body, -1) {
		t.Errorf("the page needs the network: %s", url)
	}
	if code, headers, body := h.ask("GET", "/push.js", ""); code != 200 || !strings.HasPrefix(headers.Get("Content-Type"), "text/javascript") || !strings.Contains(body, "export function connect") {
		t.Errorf("GET /push.js answered %d %s", code, headers.Get("Content-Type"))
	}
	if code, _, _ := h.ask("GET", "/nothing", ""); code != 404 {
		t.Errorf("GET /nothing answered %d, want 404", code)
	}
	if code, _, _ := h.ask("GET", "/push?user=alice", ""); code != 405 {
		t.Errorf("GET /push answered %d, want 405", code)
	}
}

func TestTheFifteenLinesAreFifteen(t *testing.T) {
	if lines := strings.Split(program(), "\n"); len(lines) != 15 {
		t.Errorf("they are %d:\n%s", len(lines), program())
	}
}

func TestEveryConnectionGetsTheSameNumbersEachSecond(t *testing.T) {
	h := start(t)
	alice, nobody := h.open("?user=alice"), h.open("")
	first := nobody.wantEvent("hello") // alice may have had one before
	alice.want("the same numbers", func(f frame) bool { return f.Event == "hello" && bytes.Equal(f.Data, first.Data) })
	for range 2 {
		a, b := alice.wantEvent("hello"), nobody.wantEvent("hello")
		if !bytes.Equal(a.Data, b.Data) {
			t.Errorf("alice got %s, the other %s", a.Data, b.Data)
		}
		var p point
		if err := json.Unmarshal(a.Data, &p); err != nil || p.X < 0 || p.X > 99 || p.Y < 0 || p.Y > 99 {
			t.Errorf("%s is no point below 100", a.Data)
		}
	}
}

func TestPushAnswersWithTheReceipt(t *testing.T) {
	t.Parallel()
	h := start(t)
	alice := h.open("?user=alice&device=phone")
	if code, r := h.push("/push?user=alice&event=note", `{"n":1}`); code != 200 || r.Sent != 1 || r.Deliveries[0].DeviceID != "phone" || r.Error != "" {
		t.Errorf("a push without ack answered %d %+v", code, r)
	}
	if f := alice.wantEvent("note"); string(f.Data) != `{"n":1}` || f.ID != 0 {
		t.Errorf("alice got %+v", f)
	}

	for _, ack := range []string{"auto", "biz"} {
		var acked sync.WaitGroup
		acked.Go(func() {
			f := alice.wantEvent("ask")
			if f.ID == 0 || f.Auto != (ack == "auto") {
				t.Errorf("with ack %s alice got %+v", ack, f)
			}
			alice.send(map[string]any{"ack": f.ID, "data": "yes"})
		})
		code, r := h.push("/push?user=alice&event=ask&ack="+ack, `null`)
		acked.Wait()
		if code != 200 || r.Acked != 1 || r.Deliveries[0].Status != push.Acked || string(r.Deliveries[0].Reply) != `"yes"` {
			t.Errorf("a push with ack %s answered %d %+v", ack, code, r)
		}
	}

	if code, r := h.push("/push?user=alice&ack=biz", `1`); code != 504 || r.Failed != 1 || r.Deliveries[0].Status != push.Timeout || r.Error == "" {
		t.Errorf("a push that nobody acked answered %d %+v, want 504", code, r)
	}
	if code, r := h.push("/push?user=carol", `1`); code != 404 || len(r.Offline) != 1 || r.Offline[0] != "carol" {
		t.Errorf("a push to carol, who is not there, answered %d %+v, want 404", code, r)
	}
}

func TestBadPushIsRefused(t *testing.T) {
	h := start(t)
	h.open("?user=alice")
	for _, bad := range []struct{ path, body string }{
		{"/push?user=alice", ``},
		{"/push?user=alice", `{`},
		{"/push?user=alice", `1 2`},
		{"/push?user=alice", `"` + strings.Repeat("x", 64<<10) + `"`},
		{"/push?user=alice&ack=yes", `1`},
		{"/push", `1`},
		{"/push?user=alice&event=connect", `1`}, // a reserved name
		{"/push?user=alice&event=%00", `1`},
		{"/broadcast?ack=perhaps", `1`},
		{"/broadcast", `nonsense`},
	} {
		if code, r := h.push(bad.path, bad.body); code != 400 || r.Error == "" || r.Targets != 0 {
			t.Errorf("POST %s with %.20s answered %d %+v, want 400", bad.path, bad.body, code, r)
		}
	}
}

func TestStatusSaysWhatBecameOfAPush(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 200},
		{push.ErrOffline, 404},
		{push.ErrTimeout, 504},
		{context.DeadlineExceeded, 504},
		{errors.Join(push.ErrGone, push.ErrTimeout), 504},
		{push.ErrGone, 502},
		{push.ErrSlow, 502},
		{push.ErrTooLarge, 502},
		{push.ErrOverloaded, 502},
		{push.ErrNodeLost, 502},
		{push.ErrClosed, 502},
		{errors.New("the audience names nobody"), 400},
	} {
		if got := statusOf(c.err); got != c.want {
			t.Errorf("%v is %d, want %d", c.err, got, c.want)
		}
	}
}

func TestBroadcastReachesEverybody(t *testing.T) {
	h := start(t)
	tabs := []tab{h.open("?user=alice"), h.open("?user=bob"), h.open("")}
	if code, r := h.push("/broadcast?event=news", `"all"`); code != 200 || r.Targets != 3 || r.Sent != 3 {
		t.Errorf("a broadcast to three answered %d %+v", code, r)
	}
	for _, tb := range tabs {
		tb.wantEvent("news")
	}
}

func TestWhatOneSaysEverybodyReads(t *testing.T) {
	h := start(t)
	alice, bob := h.open("?user=alice"), h.open("?user=bob")
	alice.send(map[string]any{"event": "say", "data": "hi", "id": 7})
	if f := alice.want("the answer", func(f frame) bool { return f.Ack == 7 }); string(f.Data) != "2" {
		t.Errorf("the answer is %+v, want 2", f)
	}
	if f := bob.wantEvent("said"); string(f.Data) != `{"user":"alice","text":"hi"}` {
		t.Errorf("bob read %s", f.Data)
	}
	alice.send(map[string]any{"event": "say", "data": "", "id": 8})
	if f := alice.want("the answer", func(f frame) bool { return f.Ack == 8 }); f.Error != "say 1 to 500 bytes" {
		t.Errorf("the answer is %+v", f)
	}
}

func TestStatsTellWhoIsOnline(t *testing.T) {
	h := start(t)
	h.open("?user=alice")
	h.open("?user=alice")
	h.open("?user=bob")
	h.open("")
	code, _, body := h.ask("GET", "/stats", "")
	var o online
	if err := json.Unmarshal([]byte(body), &o); err != nil || code != 200 {
		t.Fatalf("GET /stats answered %d %s", code, body)
	}
	if o.Conns != 4 || o.Users != 2 || len(o.Online) != 2 || o.Online["alice"] != 2 || o.Online["bob"] != 1 {
		t.Errorf("the answer is %s", body)
	}
	if code, _, body := h.ask("GET", "/nodes", ""); code != 200 || strings.TrimSpace(body) != "[]" {
		t.Errorf("GET /nodes answered %d %s, want an empty list", code, body)
	}
}

func TestEveryEventIsALine(t *testing.T) {
	h := start(t)
	alice := h.open("")
	conn := h.console.want(t, `connected +([0-9a-f]{16}) from 127\.0\.0\.1:\d+, push\.json$`)[1]
	alice.send(map[string]any{"login": map[string]any{"user": "alice", "device": "phone", "token": "secret token"}})
	f := alice.want("the login's answer", func(f frame) bool { return f.Login != nil })
	if f.Login.User != "alice" || f.Login.Conn != conn {
		t.Errorf("the login's answer is %+v, want alice on %s", f.Login, conn)
	}
	h.console.want(t, `login +`+conn+` is "alice" on device "phone"$`)
	h.push("/push?user=alice&event=note", `"private text"`)
	h.console.want(t, `push +"note" to "alice": 1 of 1, "phone" sent in \S+s$`)
	h.push("/broadcast?event=news", `"private text"`)
	h.console.want(t, `push +"news" to "everybody": 1 of 1$`)
	alice.Close()
	h.console.want(t, `disconnected +`+conn+`, "alice": lost$`)
	for _, private := range []string{"secret token", "private text"} {
		if strings.Contains(h.console.String(), private) {
			t.Errorf("%q was printed:\n%s", private, h.console)
		}
	}
}

func TestOtherHostNamesAreRefused(t *testing.T) {
	h := start(t)
	for _, name := range []string{"evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.1", "[2001:db8::1]:80", "0.0.0.0", "2130706433", ":80"} {
		for _, route := range []string{"GET /", "GET /stats", "POST /push?user=alice", "GET /ws"} {
			method, path, _ := strings.Cut(route, " ")
			if code, _, _ := h.ask(method, path, "1", host(name)); code != 403 {
				t.Errorf("%s with host %s answered %d, want 403", route, name, code)
			}
		}
	}
	for _, name := range []string{"localhost", "LocalHost:9092", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:9092"} {
		if code, _, _ := h.ask("POST", "/push?user=carol", "1", host(name)); code != 404 {
			t.Errorf("a push with host %s answered %d, want 404", name, code)
		}
	}
}

func TestPagesOfOthersCannotPost(t *testing.T) {
	h := start(t)
	for _, foreign := range []func(*http.Request){header("Origin", "https://evil.example"), header("Origin", "null"), header("Sec-Fetch-Site", "cross-site"), header("Sec-Fetch-Site", "same-site")} {
		for _, path := range []string{"/push?user=carol", "/broadcast"} {
			if code, _, _ := h.ask("POST", path, "1", foreign); code != 403 {
				t.Errorf("POST %s from another page answered %d, want 403", path, code)
			}
		}
	}
	if code, _, _ := h.ask("POST", "/push?user=carol", "1", header("Origin", h.url), header("Sec-Fetch-Site", "same-origin")); code != 404 {
		t.Errorf("a push from the own page answered %d, want 404", code)
	}
}

func TestOriginFlagLetsPagesConnect(t *testing.T) {
	from := func(h *hello, origin string) int {
		ws, code, err := h.dial("?user=alice", http.Header{"Origin": {origin}})
		if err == nil {
			ws.Close()
		}
		return code
	}
	h := start(t)
	for origin, want := range map[string]int{h.url: 101, "null": 101, "http://localhost:3000": 101, "https://shop.example": 403} {
		if got := from(h, origin); got != want {
			t.Errorf("without -origin, %s got %d, want %d", origin, got, want)
		}
	}
	h = start(t, "-origin", "https://shop.example, null")
	for origin, want := range map[string]int{"https://shop.example": 101, "null": 101, "https://evil.example": 403, "http://localhost:3000": 403} {
		if got := from(h, origin); got != want {
			t.Errorf("with -origin, %s got %d, want %d", origin, got, want)
		}
	}
	h = start(t, "-origin", "*")
	if got := from(h, "https://any.example"); got != 101 {
		t.Errorf("with -origin *, any page got %d, want 101", got)
	}
}

func TestPagesOfThisMachineAndFromDiskMayConnect(t *testing.T) {
	for _, c := range []struct {
		host   string
		origin []string
		want   bool
	}{
		{"127.0.0.1:9092", nil, true}, // not from a page
		{"127.0.0.1:9092", []string{"null"}, true},
		{"127.0.0.1:9092", []string{"http://127.0.0.1:9092"}, true},
		{"127.0.0.1:9092", []string{"http://127.0.0.1:8080"}, true},
		{"127.0.0.1:9092", []string{"http://127.0.0.1"}, true},
		{"127.0.0.1:9092", []string{"https://localhost:8443"}, true},
		{"127.0.0.1:9092", []string{"http://LocalHost"}, true},
		{"127.0.0.1:9092", []string{"http://[::1]:8080"}, true},
		{"[::1]:9092", []string{"http://[::1]"}, true},
		{"192.0.2.1:9092", []string{"http://192.0.2.1:9092"}, true},
		{"hello.example:9092", []string{"https://Hello.example:9092"}, true},

		{"192.0.2.1:9092", []string{"http://192.0.2.1:8080"}, false},
		{"192.0.2.1:9092", []string{"http://192.0.2.2:9092"}, false},
		{"127.0.0.1:9092", []string{"https://shop.example"}, false},
		{"127.0.0.1:9092", []string{"http://localhost.evil.example"}, false},
		{"127.0.0.1:9092", []string{"http://evil.example:9092"}, false},
		{"127.0.0.1:9092", []string{"http://127.0.0.1.evil.example:9092"}, false},
		{"127.0.0.1:9092", []string{"http://localhost@evil.example"}, false},
		{"127.0.0.1:9092", []string{"http://evil.example@localhost"}, false},
		{"127.0.0.1:9092", []string{"http://localhost/evil"}, false},
		{"127.0.0.1:9092", []string{"chrome-extension://localhost"}, false},
		{"127.0.0.1:9092", []string{"file://"}, false},
		{"127.0.0.1:9092", []string{"localhost"}, false},
		{"127.0.0.1:9092", []string{"NULL"}, false},
		{"127.0.0.1:9092", []string{"http://%zz"}, false},
		{"127.0.0.1:9092", []string{""}, false},
		{"", []string{"http://"}, false},
		{"127.0.0.1:9092", []string{"null", "https://evil.example"}, false},
		{"127.0.0.1:9092", []string{"http://localhost", "http://localhost"}, false},
	} {
		r, err := http.NewRequest("GET", "/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = c.host
		if c.origin != nil {
			r.Header["Origin"] = c.origin
		}
		if got := near(r); got != c.want {
			t.Errorf("origin %q at %s: %v, want %v", c.origin, c.host, got, c.want)
		}
	}
}

func TestSocketIOPageIsServed(t *testing.T) {
	h := start(t)
	code, headers, body := h.ask("GET", "/socketio", "")
	if code != 200 || !strings.HasPrefix(headers.Get("Content-Type"), "text/html") {
		t.Errorf("GET /socketio answered %d %s", code, headers.Get("Content-Type"))
	}
	for _, text := range []string{`id="x"`, `id="y"`, `id="problem"`, "io.connect(server)", "socket.on('hello', function (data) {", "$('#x').text(data.x)", "$('#y').text(data.y)", "'http://" + defaultAddr + "'"} {
		if !strings.Contains(body, text) {
			t.Errorf("the page does not say %s", text)
		}
	}
	scripts := regexp.MustCompile(`<script src="[^"]*"[^>]*>`).FindAllString(body, -1)
	for _, script := range scripts {
		if !regexp.MustCompile(`src="https://.* integrity="sha256-[\w+/]{43}=" crossorigin="anonymous"`).MatchString(script) {
			t.Errorf("what %s loads can be replaced under way", script)
		}
	}
	if len(scripts) != 2 || !strings.Contains(scripts[0], "/jquery-") || !strings.Contains(scripts[1], "/socket.io/2.3.0/") {
		t.Errorf("it loads %q, want jQuery and socket.io-client 2.3.0", scripts)
	}
	onDisk, err := os.ReadFile("socketio.html")
	if err != nil {
		t.Fatal(err)
	}
	if body != string(onDisk) {
		t.Error("from disk the page is another one")
	}
	if _, _, first := h.ask("GET", "/", ""); !strings.Contains(first, `href="/socketio"`) {
		t.Error("the first page does not link to it")
	}
}

// TestSocketIOPageGetsHelloEachSecond from its own origin, from disk, and from
// another server of this machine.
func TestSocketIOPageGetsHelloEachSecond(t *testing.T) {
	h := start(t)
	for _, origin := range []string{h.url, "null", "http://localhost:3000"} {
		ws, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(h.url, "http")+"/socket.io/?EIO=4&transport=websocket", http.Header{"Origin": {origin}})
		if err != nil {
			t.Fatalf("from %s: %v", origin, err)
		}
		defer ws.Close()
		ws.SetReadDeadline(time.Now().Add(10 * time.Second))
		want := func(prefix string) string {
			t.Helper()
			for {
				_, text, err := ws.ReadMessage()
				if err != nil {
					t.Fatalf("from %s, waiting for %s: %v", origin, prefix, err)
				}
				if rest, ok := strings.CutPrefix(string(text), prefix); ok {
					return rest
				}
				if text[0] != '2' { // a ping
					t.Fatalf("from %s it got %s, want %s", origin, text, prefix)
				}
			}
		}
		want(`0{"sid":`)
		if err := ws.WriteMessage(websocket.TextMessage, []byte("40")); err != nil {
			t.Fatal(err)
		}
		want(`40{"sid":`)
		for range 2 {
			data := want(`42["hello",`)
			var p point
			if err := json.Unmarshal([]byte(strings.TrimSuffix(data, "]")), &p); err != nil || p.X < 0 || p.X > 99 || p.Y < 0 || p.Y > 99 {
				t.Errorf("%s is no point below 100", data)
			}
		}
	}
}

// TestPollingPostsAreLeftToTheEngine: what keeps other pages from POST /push
// keeps no page that may connect from polling, and opens no way around it.
func TestPollingPostsAreLeftToTheEngine(t *testing.T) {
	h := start(t)
	disk := []func(*http.Request){header("Origin", "null"), header("Sec-Fetch-Site", "cross-site")}
	_, headers, body := h.ask("GET", "/socket.io/?EIO=4&transport=polling", "", disk...)
	open := regexp.MustCompile(`"sid":"([^"]+)"`).FindStringSubmatch(body)
	if open == nil || headers.Get("Access-Control-Allow-Origin") != "null" {
		t.Fatalf("a page from disk that polls got %s, with leave for %q", body, headers.Get("Access-Control-Allow-Origin"))
	}
	if code, _, body := h.ask("POST", "/socket.io/?EIO=4&transport=polling&sid="+open[1], "40", disk...); code != 200 || body != "ok" {
		t.Errorf("a page from disk posted and got %d %s", code, body)
	}
	if code, _, body := h.ask("GET", "/socket.io/?EIO=4&transport=polling&sid="+open[1], "", disk...); code != 200 || !strings.HasPrefix(body, `40{"sid":`) {
		t.Errorf("a page from disk polled and got %d %s", code, body)
	}
	for _, method := range []string{"GET", "POST"} {
		if code, _, body := h.ask(method, "/socket.io/?EIO=4&transport=polling", "", header("Origin", "https://evil.example")); code == 200 {
			t.Errorf("%s of another page answered %s", method, body)
		}
	}
	for _, path := range []string{"/socket.io/../push?user=carol", "/socket.io/%2e%2e/push?user=carol", "//socket.io/../push?user=carol", "/socket.io/./../push/?user=carol", "/push?user=carol&/socket.io/"} {
		code, _, body := h.ask("POST", path, "1", disk...)
		if code == 200 || strings.Contains(body, "carol") || strings.Contains(h.console.String(), "carol") {
			t.Errorf("POST %s from another page answered %d %.80q", path, code, body)
		}
	}
}

func TestOtherMachinesNeedTrust(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0"} {
		err := run(t.Context(), []string{"-http", addr}, newConsole())
		if err == nil || !strings.Contains(err.Error(), "-trust") || !strings.Contains(err.Error(), "other machines") {
			t.Errorf("-http %s ended with %v, want a sentence that says why and names -trust", addr, err)
		}
	}
	h := start(t, "-http", "0.0.0.0:0", "-trust")
	if code, _, _ := h.ask("GET", "/", "", host("192.0.2.1")); code != 200 {
		t.Errorf("by an address, which nobody can rebind, GET / answered %d", code)
	}
	if code, _, _ := h.ask("GET", "/", "", host("evil.example")); code != 403 {
		t.Errorf("by a foreign name, GET / answered %d, want 403", code)
	}
}

func TestTakenPortIsReplacedUnlessGiven(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	if err := run(t.Context(), []string{"-http", addr}, newConsole()); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("-http with a taken port ended with %v", err)
	}

	s := new(server)
	if err := s.listen(addr, false); err != nil {
		t.Fatal(err)
	}
	defer s.ln.Close()
	if len(s.notes) != 1 || s.notes[0] != addr+" is taken; this is a free port instead." {
		t.Errorf("it says %q", s.notes)
	}
	if at := s.ln.Addr().(*net.TCPAddr); !at.IP.IsLoopback() || at.String() == addr {
		t.Errorf("it listens on %s", at)
	}
}

func TestFlagsThatCannotBeAreRefused(t *testing.T) {
	t.Setenv("PUSH_SECRET", "")
	empty := filepath.Join(t.TempDir(), "empty")
	short, words := empty+"-short", empty+"-words"
	for file, text := range map[string]string{
		empty: " \n",
		short: base64.StdEncoding.EncodeToString(make([]byte, 31)),
		words: "correct horse battery staple, which is a good deal longer than that",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"-http 127.0.0.1", "port"},
		{"9092", `"9092" is no flag`},
		{"-origin https://*", "Origins"},
		{"-mpush 127.0.0.1", "-mpush: "},
		{"-mpush off -mpush-key stock", "it needs -mpush"},
		{"-join 127.0.0.1:7946", "-cluster"},
		{"-secret " + empty, "-cluster"},
		{"-cluster 127.0.0.1:0 -secret " + empty, "is empty"},
		{"-cluster 127.0.0.1:0 -secret " + empty + "er", "-secret"},
		{"-cluster 127.0.0.1:0 -join 127.0.0.1:7946", "PUSH_SECRET"},
		{"-cluster nowhere", "Bind"},
		{"-cluster -http 127.0.0.1", "-http: "},
		{"-cluster -secret " + short, "32"},
		{"-cluster -secret " + words, "base64"},
	} {
		args := append([]string{"-http", "127.0.0.1:0", "-mpush", "127.0.0.1:0"}, strings.Fields(c.args)...)
		if err := run(t.Context(), args, newConsole()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s ended with %v, want %q in it", c.args, err, c.want)
		}
	}
}

func TestClusterTakesItsAddressOrNone(t *testing.T) {
	t.Setenv("PUSH_SECRET", "")
	for _, c := range []struct{ args, bind string }{
		{"", ""},
		{"-cluster", defaultCluster},
		{"--cluster", defaultCluster},
		{"-cluster -trust", defaultCluster},
		{"-cluster 127.0.0.2:7946", "127.0.0.2:7946"},
		{"-cluster=127.0.0.2:7946", "127.0.0.2:7946"},
		{"-cluster 127.0.0.2:7946 -trust", "127.0.0.2:7946"},
	} {
		s, err := newServer(append([]string{"-http", "127.0.0.1:0", "-mpush", "off"}, strings.Fields(c.args)...), newConsole())
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		s.close()
		bind := ""
		if s.cluster != nil {
			bind = s.cluster.Bind
		}
		if bind != c.bind {
			t.Errorf("with %q nodes talk to it on %q, want %q", c.args, bind, c.bind)
		}
	}
}

// TestSecretIsTheSameInBase64AndHex, from the environment and from a file.
func TestSecretIsTheSameInBase64AndHex(t *testing.T) {
	want := []byte("\xff\xfe0123456789 abcdefghijklmnopqr\xfb")
	for _, text := range []string{
		base64.StdEncoding.EncodeToString(want), base64.RawStdEncoding.EncodeToString(want),
		base64.URLEncoding.EncodeToString(want), base64.RawURLEncoding.EncodeToString(want),
		hex.EncodeToString(want), strings.ToUpper(hex.EncodeToString(want)),
	} {
		file := filepath.Join(t.TempDir(), "the secret")
		if err := os.WriteFile(file, []byte("\n"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, given := range []struct{ env, file, pass string }{
			{text, "", "PUSH_SECRET=$PUSH_SECRET go run ./examples/hello -cluster -http 127.0.0.1:0 -join 127.0.0.1:4711"},
			{"", file, "go run ./examples/hello -cluster -http 127.0.0.1:0 -join 127.0.0.1:4711 -secret '" + file + "'"},
			{"another", file, "go run ./examples/hello -cluster -http 127.0.0.1:0 -join 127.0.0.1:4711 -secret '" + file + "'"},
		} {
			t.Setenv("PUSH_SECRET", given.env)
			s := new(server)
			if err := s.setCluster(defaultCluster, nil, given.file); err != nil {
				t.Errorf("%s: %v", text, err)
			} else if !bytes.Equal(s.cluster.Secrets[0], want) {
				t.Errorf("%s is read as %q", text, s.cluster.Secrets[0])
			}
			if got := s.nextNode([]push.Node{{Addr: "127.0.0.1:1"}, {Addr: "127.0.0.1:4711", Self: true}}); got != given.pass {
				t.Errorf("the next node is started by %s, want %s", got, given.pass)
			}
		}
	}
}

func TestNextNodeIsOnTheSameAddress(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:4711": " -cluster -http",
		"127.0.0.2:4711": " -cluster -http",
		"10.0.0.5:4711":  " -cluster 10.0.0.5:0 -http",
		"[::1]:4711":     " -cluster [::1]:0 -http",
	} {
		if got := new(server).nextNode([]push.Node{{Addr: addr, Self: true}}); !strings.Contains(got, want) || !strings.Contains(got, "-join "+addr) {
			t.Errorf("next to %s it is started by %s", addr, got)
		}
	}
	if got := new(server).nextNode(nil); got != "" {
		t.Errorf("without a cluster the next node is started by %s", got)
	}
}

// cluster starts three nodes, by what the first one prints, and returns when
// each knows all.
func cluster(t *testing.T) []*hello {
	t.Helper()
	t.Setenv("PUSH_SECRET", "")
	one := start(t, "-cluster")
	line := one.console.want(t, `\APUSH_SECRET=(\S+) go run ./examples/hello -cluster -http 127\.0\.0\.1:0 -join (127\.0\.0\.1:\d+)$`)

	t.Setenv("PUSH_SECRET", line[1])
	two := start(t, "-cluster", "-join", line[2])
	two.console.want(t, `\APUSH_SECRET=\$PUSH_SECRET go run ./examples/hello -cluster -http 127\.0\.0\.1:0 -join 127\.0\.0\.1:\d+$`)

	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(line[1]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PUSH_SECRET", "")
	three := start(t, "-cluster", "127.0.0.1:0", "-join", line[2], "-secret", file)
	three.console.want(t, `\Ago run ./examples/hello -cluster -http 127\.0\.0\.1:0 -join \S+ -secret \S+$`)

	for _, h := range []*hello{two, three} {
		if strings.Contains(h.console.String(), line[1]) {
			t.Error("a secret that was given is printed")
		}
	}
	nodes := []*hello{one, two, three}
	for _, h := range nodes {
		eventually(t, func() string {
			var known []push.Node
			_, _, body := h.ask("GET", "/nodes", "")
			if err := json.Unmarshal([]byte(body), &known); err != nil || len(known) != 3 {
				return fmt.Sprintf("a node knows %s, want three", body)
			}
			return ""
		})
	}
	return nodes
}

// eventually waits until there is nothing to complain of.
func eventually(t *testing.T, complaint func() string) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	patience := time.After(15 * time.Second)
	for {
		text := complaint()
		if text == "" {
			return
		}
		select {
		case <-tick.C:
		case <-patience:
			t.Fatal(text)
		}
	}
}

func TestNodesMeetByThePrintedLine(t *testing.T) {
	cluster(t)
}

// TestPushOnAnyNodeReachesEveryNode, and the receipt says which device is on
// which.
func TestPushOnAnyNodeReachesEveryNode(t *testing.T) {
	nodes := cluster(t)
	for i, h := range nodes {
		h.open(fmt.Sprint("?user=alice&device=", i))
	}
	for _, h := range nodes {
		eventually(t, func() string {
			code, r := h.push("/push?user=alice&event=note", `"here"`)
			on := make(map[string]string) // device by node
			for _, d := range r.Deliveries {
				on[d.Node] = d.DeviceID
			}
			if code != 200 || r.Sent != 3 || len(on) != 3 || on[""] != "" {
				return fmt.Sprintf("a push to three devices on three nodes answered %d %+v", code, r)
			}
			return ""
		})
	}
}

// TestOneNodeTellsTheNumbers: those of each second are the same on every node.
func TestOneNodeTellsTheNumbers(t *testing.T) {
	nodes := cluster(t)
	var tabs []tab
	for _, h := range nodes {
		tabs = append(tabs, h.open(""))
	}
	tabs[0].wantEvent("hello") // which a tab that came later may have missed
	var points []string
	for range 2 {
		points = append(points, string(tabs[0].wantEvent("hello").Data))
	}
	for _, tb := range tabs[1:] {
		tb.want(points[0], func(f frame) bool { return f.Event == "hello" && string(f.Data) == points[0] })
		if f := tb.wantEvent("hello"); string(f.Data) != points[1] {
			t.Errorf("behind %s came %s on one node and %s on another", points[0], points[1], f.Data)
		}
	}
}

func TestEndSaysGoodbye(t *testing.T) {
	h := start(t)
	alice := h.open("?user=alice")
	go h.stop()
	alice.SetReadDeadline(time.Now().Add(10 * time.Second))
	var err error
	for err == nil {
		_, _, err = alice.ReadMessage()
	}
	if !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("alice's connection ended with %v, want 1001", err)
	}
	h.stop()
	h.console.want(t, `disconnected .* "alice": shutdown$`)
	if resp, err := client.Get(h.url); err == nil {
		resp.Body.Close()
		t.Error("it still answers")
	}
}

func TestEndWaitsForThePushUnderWay(t *testing.T) {
	h := start(t)
	alice := h.open("?user=alice")
	var pushed sync.WaitGroup
	var code int
	var r result
	pushed.Go(func() { code, r = h.push("/push?user=alice&event=ask&ack=biz", "1") })
	f := alice.wantEvent("ask")
	stopped := make(chan struct{})
	go func() { h.stop(); close(stopped) }()
	h.console.want(t, `shutting down$`)
	alice.send(map[string]any{"ack": f.ID})
	pushed.Wait()
	<-stopped
	if code != 200 || r.Acked != 1 {
		t.Errorf("the push answered %d %+v, want its ack", code, r)
	}
}

func TestAFailedListenerEndsTheProgram(t *testing.T) {
	s, err := newServer([]string{"-http", "127.0.0.1:0", "-mpush", "off"}, newConsole())
	if err != nil {
		t.Fatal(err)
	}
	engine, err := push.New(s.config(push.TrustClaims, nil))
	if err != nil {
		t.Fatal(err)
	}
	s.ln.Close()
	if err := s.serve(t.Context(), engine, http.NewServeMux()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it ended with %v, want what the listener said", err)
	}
	if err := engine.Ready(); !errors.Is(err, push.ErrClosed) {
		t.Errorf("the engine is %v, want closed", err)
	}
}

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/client"
	"github.com/embedpush/push/internal/mpush"
)

// TestMain fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) {
	every = 50 * time.Millisecond
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

// server is an engine that believes everybody but mallory, and who has the
// token "wrong".
type server struct {
	*push.Engine
	t    *testing.T
	addr string
	said chan string   // "alice on phone: text"
	tags chan []string // of each login
	ln   *listener
}

// listener remembers what it accepted, in a wrapper, which leaves it its own.
type listener struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns = append(l.conns, nc)
		nc = struct{ net.Conn }{nc}
	}
	return nc, err
}

// cut ends every connection, as a network does.
func (l *listener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, nc := range l.conns {
		nc.Close()
	}
}

func serve(t *testing.T, edits ...func(*push.Config)) *server {
	t.Helper()
	s := &server{t: t, said: make(chan string, 10), tags: make(chan []string, 10)}
	cfg := push.Config{
		Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.UserID == "mallory" || l.Token == "wrong" {
				return "", push.Refuse("not you")
			}
			return l.UserID, nil
		},
		OnConnect: func(_ context.Context, c *push.Conn) {
			select {
			case s.tags <- c.Login().Tags:
			default:
			}
		},
		OnMessage: func(_ context.Context, c *push.Conn, m *push.Received) (any, error) {
			s.said <- fmt.Sprintf("%s on %s: %s", c.UserID(), c.Login().DeviceID, m.Bytes(0))
			return nil, nil
		},
		MPush:  push.MPush{PrivateKey: []byte(mpush.StockPrivateKey), RefuseDelay: time.Millisecond},
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, edit := range edits {
		edit(&cfg)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.ln, s.addr = &listener{Listener: ln}, ln.Addr().String()
	cfg.MPush.Advertise = s.addr
	if s.Engine, err = push.New(cfg); err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { s.Serve(s.ln) })
	t.Cleanup(func() {
		s.Close()
		served.Wait()
	})
	return s
}

func (s *server) wantSaid(want string) {
	s.t.Helper()
	select {
	case got := <-s.said:
		if got != want {
			s.t.Errorf("the server heard %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		s.t.Errorf("the server did not hear %q", want)
	}
}

// wantLogin waits for the next one, and returns its tags.
func (s *server) wantLogin() (tags []string) {
	s.t.Helper()
	select {
	case tags = <-s.tags:
	case <-time.After(10 * time.Second):
		s.t.Fatal("nobody logs in")
	}
	return tags
}

// wantPush pushes to alice, and wants one row with this status.
func (s *server) wantPush(m push.Message, want push.Status) {
	s.t.Helper()
	r, err := s.PushToUser(s.t.Context(), "alice", m)
	if len(r.Deliveries) != 1 || r.Deliveries[0].Status != want {
		s.t.Errorf("the push to alice came back with %+v, %v, want one that is %s", r, err, want)
	}
}

// program is the device, running.
type program struct {
	t       *testing.T
	console *console
	typed   *io.PipeWriter
	stop    func() // as Ctrl-C; waits
	ended   <-chan error
}

// start runs the program with these arguments.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	stdin, typed := io.Pipe()
	ended := make(chan error, 1)
	p := &program{t: t, console: newConsole(), typed: typed, ended: ended}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ended <- run(ctx, args, stdin, p.console)
		close(ended)
		stdin.Close() // whoever types goes on
	}()
	p.stop = sync.OnceFunc(func() {
		cancel()
		p.wantEnd(nil)
	})
	t.Cleanup(func() {
		p.stop()
		typed.Close()
	})
	return p
}

// login is start, until alice is logged in on the device "phone".
func (s *server) login(args ...string) *program {
	s.t.Helper()
	p := start(s.t, append([]string{"-addr", s.addr, "-device", "phone"}, args...)...)
	p.console.want(s.t, `login +as "alice" on device "phone"$`)
	return p
}

func (p *program) wantEnd(want error) {
	p.t.Helper()
	select {
	case err, first := <-p.ended:
		if first && !errors.Is(err, want) {
			p.t.Errorf("it ended with %v, want %v", err, want)
		}
	case <-time.After(10 * time.Second):
		p.t.Errorf("it does not end:\n%s", p.console)
	}
}

func (p *program) line(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.typed, text+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

func TestStockKeyIsThatOfMPush(t *testing.T) {
	if stockPublicKey != mpush.StockPublicKey {
		t.Error("it differs from internal/mpush")
	}
}

func TestTypedLineReachesTheServer(t *testing.T) {
	s := serve(t)
	p := s.login()
	p.line("hello, world")
	s.wantSaid("alice on phone: hello, world")
	p.console.want(t, `sent +hello, world: the server took it in \S+s$`)
	p.line("")
	p.line("and\tmore")
	s.wantSaid("alice on phone: and\tmore")
	p.console.want(t, `sent +"and\\tmore": the server took it`)
}

func TestLineThatIsTooLongIsNotSent(t *testing.T) {
	s := serve(t)
	p := s.login()
	p.line(strings.Repeat("x", 3*maxLine))
	p.console.want(t, `not sent +a line of more than 65536 bytes$`)
	p.line("a shorter one")
	s.wantSaid("alice on phone: a shorter one")
}

func TestEndOfTheInputIsNotTheEnd(t *testing.T) {
	s := serve(t)
	p := s.login()
	p.typed.Close()
	s.wantPush(push.Message{Data: 42}, push.Sent)
	p.console.want(t, `push +42$`)
}

func TestPushIsPrintedAndAcknowledged(t *testing.T) {
	s := serve(t)
	p := s.login()
	s.wantPush(push.Message{Data: map[string]int{"x": 1}}, push.Sent)
	p.console.want(t, `push +\{"x":1\}$`)
	s.wantPush(push.Message{Data: "auto", Ack: push.AutoAck}, push.Acked)
	p.console.want(t, `push +"auto"$`)
	s.wantPush(push.Message{Data: []byte("biz"), Ack: push.BizAck}, push.Acked)
	id := p.console.want(t, `push (\d+) +biz$`)[1]
	p.console.want(t, `acked +`+id+`$`)
}

func TestWithoutBizTheProgramDoesNotAcknowledge(t *testing.T) {
	s := serve(t, func(cfg *push.Config) { cfg.Limits.AckTimeout = 50 * time.Millisecond })
	p := s.login("-biz=false")
	s.wantPush(push.Message{Data: []byte("biz"), Ack: push.BizAck}, push.Timeout)
	p.console.want(t, `push \d+ +biz$`)
	if strings.Contains(p.console.String(), "acked") {
		t.Errorf("it says that it did:\n%s", p.console)
	}
}

func TestQuietPrintsWhatIsPushedAndNothingElse(t *testing.T) {
	s := serve(t)
	p := start(t, "-addr", s.addr, "-quiet")
	s.wantLogin()
	s.wantPush(push.Message{Data: []byte("one\x1b[31m"), Ack: push.AutoAck}, push.Acked)
	s.wantPush(push.Message{Data: []byte("two"), Ack: push.BizAck}, push.Acked)
	p.stop()
	if got := p.console.String(); got != "one\x1b[31m\ntwo\n" {
		t.Errorf("it printed %q", got)
	}
}

func TestTerminalIsNotToldWhatAPushWantsOfIt(t *testing.T) {
	long := strings.Repeat("é", maxShown) // which is twice as many bytes
	for content, want := range map[string]string{
		"plain text, “ünï”":     "plain text, “ünï”",
		"two\nlines":            `"two\nlines"`,
		"\x1b]0;title\a":        `"\x1b]0;title\a"`,
		"\u009b31m":             `"\u009b31m"`,
		"abc\u202ecba":          `"abc\u202ecba"`,
		"\xff":                  `"\xff"`,
		"":                      "",
		long:                    long[:maxShown] + fmt.Sprintf("… and %d bytes", maxShown),
		"x" + long:              "x" + long[:maxShown-2] + fmt.Sprintf("… and %d bytes", maxShown+2),
		string(make([]byte, 3)): `"\x00\x00\x00"`,
	} {
		if got := shown([]byte(content)); got != want {
			t.Errorf("%.20q is shown as %.80s, want %.80s", content, got, want)
		}
	}
	s := serve(t)
	p := s.login()
	s.wantPush(push.Message{Data: []byte("\x1b[2J")}, push.Sent)
	p.console.want(t, `push +"\\x1b\[2J"$`)
}

func TestKickIsPrinted(t *testing.T) {
	s := serve(t)
	p := s.login()
	if n, err := s.Kick(t.Context(), push.Audience{User: "alice"}, "out"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	p.console.want(t, `kicked +"alice" is logged out`)
}

func TestKickedDeviceStaysButGetsNoMore(t *testing.T) {
	s := serve(t)
	p := s.login()
	other := start(t, "-addr", s.addr, "-device", "tablet")
	other.console.want(t, `login +as "alice" on device "tablet"$`)
	p.console.want(t, `kicked +"alice" is logged out`)
	s.wantPush(push.Message{Data: 42, Ack: push.AutoAck}, push.Acked)
	other.console.want(t, `push +42$`)
	p.stop()
	if strings.Contains(p.console.String(), "push ") || strings.Count(p.console.String(), "login") != 1 {
		t.Errorf("it got a push, or logged in again:\n%s", p.console)
	}
}

func TestDeviceOfAnotherKindIsNotKicked(t *testing.T) {
	s := serve(t)
	pc, mobile := s.login("-os", "linux"), s.login("-os", "android")
	r, err := s.PushToUser(t.Context(), "alice", push.Message{Data: 42, Ack: push.AutoAck})
	if err != nil || r.Acked != 2 {
		t.Errorf("the push came back with %+v, %v, want two acks", r, err)
	}
	pc.console.want(t, `push +42$`)
	mobile.console.want(t, `push +42$`)
}

func TestStopOnKickEndsTheProgram(t *testing.T) {
	s := serve(t)
	p := s.login("-stop-on-kick")
	start(t, "-addr", s.addr, "-device", "tablet").console.want(t, `login +as "alice" on device "tablet"$`)
	p.wantEnd(client.ErrKicked)
	p.console.want(t, `(?s)kicked +"alice".*disconnected after the kick$`)
}

func TestRefusedLoginIsPrinted(t *testing.T) {
	s := serve(t)
	start(t, "-addr", s.addr, "-user", "mallory").console.want(t, `refused +"mallory" may not log in: "not you", code 0$`)
	p := start(t, "-addr", s.addr, "-token", "wrong")
	p.console.want(t, `refused +"alice" may not log in: "not you", code 0$`)
	p.stop()
	if strings.Contains(p.console.String(), "wrong") {
		t.Errorf("the token was printed:\n%s", p.console)
	}
}

func TestTagsReachTheServer(t *testing.T) {
	s := serve(t)
	s.login("-tags", "floor-1, red")
	if got := s.wantLogin(); len(got) != 2 || got[0] != "floor-1" || got[1] != "red" {
		t.Errorf("the tags are %q", got)
	}
}

func TestEndIsInOrder(t *testing.T) {
	s := serve(t)
	p := s.login()
	p.stop()
	p.console.want(t, `(?s)shutting down\n[^\n]* disconnected\n\z`)
}

func TestServerThatIsLostIsFoundAgain(t *testing.T) {
	t.Parallel()
	s := serve(t)
	p := s.login()
	s.ln.cut()
	p.console.want(t, `(?s)disconnected [^\n]*; it tries again by itself\n.*login +as "alice"`)
}

// dead is an address at which nobody listens, and nobody can: it is the near
// end of a connection.
func dead(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc.LocalAddr().String()
}

func TestServerThatIsNotThereIsPrinted(t *testing.T) {
	addr := dead(t)
	p := start(t, "-addr", addr)
	p.console.want(t, `connecting +to `+addr+`$`)
	p.console.want(t, `unreachable +dial tcp `+addr+`: .*; it tries again by itself$`)
}

// doors are the ways to a server.
func (s *server) doors() map[string][]string {
	mux := http.NewServeMux()
	mux.Handle("/alloc", s.Alloc())
	mux.Handle("/ws", s)
	web := httptest.NewServer(mux)
	s.t.Cleanup(web.Close)
	return map[string][]string{
		"allocator":               {"-alloc", web.URL + "/alloc?secret"},
		"allocator that fails":    {"-alloc", web.URL + "/nothing", "-addr", s.addr},
		"second address":          {"-addr", dead(s.t) + "," + s.addr},
		"WebSocket":               {"-addr", "ws" + strings.TrimPrefix(web.URL, "http") + "/ws"},
		"WebSocket without a key": {"-addr", "ws" + strings.TrimPrefix(web.URL, "http") + "/ws", "-key", "none"},
	}
}

func TestEveryDoorLeadsIn(t *testing.T) {
	s := serve(t)
	for name, args := range s.doors() {
		t.Run(name, func(t *testing.T) {
			p := start(t, append(args, "-user", "bob")...)
			device := p.console.want(t, `login +as "bob" on device "(.*)"$`)[1]
			p.console.want(t, `connected +to \S+$`)
			if strings.Contains(p.console.String(), "secret") {
				t.Errorf("the query was printed:\n%s", p.console)
			}
			p.line("hi")
			p.console.want(t, `sent +hi: `)
			s.wantSaid("bob on " + device + ": hi")
		})
	}
}

func TestKeyOfAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("-----BEGIN PUBLIC KEY-----\n"+stockPublicKey+"\n-----END PUBLIC KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	serve(t).login("-key", file)
	serve(t, func(cfg *push.Config) { cfg.MPush.PrivateKey = nil }).login("-key", "none")
}

func TestSessionIsResumed(t *testing.T) {
	s := serve(t)
	dir := filepath.Join(t.TempDir(), "of the phone")
	p := s.login("-session", dir, "-v")
	p.console.want(t, `session open.*fast=false`)
	p.stop()
	if _, err := os.Stat(filepath.Join(dir, "token.dat")); err != nil {
		t.Fatal(err)
	}
	s.login("-session", dir, "-v").console.want(t, `session open.*fast=true`)
}

// The other example is the server that this one's documentation names.
func TestDeviceWorksWithHello(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Skip(err)
	}
	bin := filepath.Join(t.TempDir(), "hello.exe")
	if out, err := exec.CommandContext(t.Context(), tool, "build", "-o", bin, "../hello").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	hello, out := exec.CommandContext(t.Context(), bin, "-http", "127.0.0.1:0", "-mpush", "127.0.0.1:0"), newConsole()
	hello.Stdout, hello.WaitDelay = out, 5*time.Second
	if err := hello.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hello.Process.Kill()
		hello.Wait()
	})
	page := out.want(t, `^(http://\S+)$`)[1]
	addr := out.want(t, `^mpush devices: ([^,\s]+)`)[1]
	for i, args := range [][]string{{"-addr", addr}, {"-alloc", page + "/alloc"}} {
		p := start(t, append(args, "-device", fmt.Sprint("phone-", i))...)
		p.console.want(t, `login +as "alice"`)
		web := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
		resp, err := web.Post(page+"/push?user=alice&event=answer&ack=auto", "text/plain", strings.NewReader("42"))
		if err != nil {
			t.Fatal(err)
		}
		receipt, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(receipt), "acked") {
			t.Errorf("the push was answered %s, %v: %s", resp.Status, err, receipt)
		}
		p.console.want(t, `push +42$`)
		p.line("hello from the shell")
		p.console.want(t, `sent +hello from the shell: the server took it`)
		p.stop()
	}
	many := start(t, "-addr", addr, "-n", "20", "-rate", "1000")
	many.console.want(t, `bound +all 20, `)
	many.console.want(t, `devices +20, connected 20, bound 20, received \d+ \(\+\d+\)`)
}

func TestManyConnectAndAreCounted(t *testing.T) {
	t.Parallel()
	const n = 50
	s := serve(t)
	p := start(t, "-addr", s.addr, "-n", fmt.Sprint(n), "-rate", "100000")
	p.console.want(t, `bound +all 50, \S+s after the first began$`)
	p.console.want(t, `devices +50, connected 50, bound 50, received 0 \(\+0\)`)
	for _, ack := range []push.Ack{push.NoAck, push.AutoAck, push.BizAck} {
		if r, err := s.Broadcast(t.Context(), push.Message{Data: 42, Ack: ack}); err != nil || r.Targets != n || r.Sent+r.Acked != n {
			t.Errorf("the broadcast came back with %+v, %v, want %d", r, err, n)
		}
	}
	for i := range n {
		if user := fmt.Sprint("load-", i); !s.Online(user) {
			t.Errorf("%s is not online", user)
		}
	}
	p.console.want(t, `devices +50, connected 50, bound 50, received 150 \(\+\d+\)`)
	p.stop()
	p.console.want(t, `(?s)shutting down\n50 devices received 150 pushes in \S+s`)
}

func TestManyMayBeOneUser(t *testing.T) {
	t.Parallel()
	s := serve(t)
	p := start(t, "-addr", s.addr, "-n", "3", "-user", "alice", "-device", "x")
	p.console.want(t, `devices +3, connected 3, bound 1, received 0 \(\+0\), kicked \d+$`)
	if devices, err := s.Devices(t.Context(), push.Audience{User: "alice"}); len(devices) != 1 || !regexp.MustCompile(`^x-[012]$`).MatchString(devices[0].DeviceID) {
		t.Errorf("alice has %+v, %v, want one device", devices, err)
	}
}

func TestManyTellTheirTroubles(t *testing.T) {
	t.Parallel()
	s := serve(t)
	start(t, "-addr", s.addr, "-n", "3", "-user", "mallory").console.want(t, `devices +3, .* bound 0, .*, refused [1-3].*: "mallory" may not log in: "not you", code 0$`)
	addr := dead(t)
	p := start(t, "-addr", addr, "-n", "1")
	p.console.want(t, `devices +1, connected 0, bound 0, received 0 \(\+0\), unreachable \d+: dial tcp `+addr+`: .*$`)
}

func TestQuietManyPrintTheCountsAtTheEnd(t *testing.T) {
	s := serve(t)
	p := start(t, "-addr", s.addr, "-n", "1", "-quiet", "-user", "alice")
	s.wantLogin()
	p.stop()
	if got := p.console.String(); !regexp.MustCompile(`^1 devices received 0 pushes in \S+s\n$`).MatchString(got) {
		t.Errorf("it printed %q", got)
	}
}

func TestRateBoundsTheStarts(t *testing.T) {
	t.Parallel()
	s := serve(t)
	begin := time.Now()
	p := start(t, "-addr", s.addr, "-n", "1000", "-rate", "5")
	started, err := strconv.Atoi(p.console.want(t, `devices +(\d+), `)[1])
	if most := 1 + 5*time.Since(begin).Seconds(); err != nil || started < 1 || float64(started) > most {
		t.Errorf("there are %d devices, %v, want %.1f at most", started, err, most)
	}
}

func TestStockKeyIsWarnedOfElsewhere(t *testing.T) {
	for args, want := range map[string]bool{
		"":                                  false,
		"-addr localhost:3000":              false,
		"-addr [::1]:3000":                  false,
		"-addr ws://127.0.0.1/ws":           false,
		"-addr 192.0.2.1:3000":              true,
		"-addr 127.0.0.1:1,push.example:1":  true,
		"-alloc http://push.example/alloc":  true,
		"-addr ws://push.example/ws":        true,
		"-addr wss://push.example/ws":       false,
		"-tls -addr push.example:3001":      false,
		"-key none -addr push.example:1":    false,
		"-key stock -tls -addr a.example:1": false,
	} {
		out := newConsole()
		o, err := parse(strings.Fields(args), out)
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		if o.announce(); strings.Contains(out.String(), "CAREFUL") != want {
			t.Errorf("%s printed %q, want a warning: %v", cmp.Or(args, "nothing"), out, want)
		}
	}
}

func TestKeyIsNotNeededOverTLS(t *testing.T) {
	for args, want := range map[string]bool{
		"":                                   true,
		"-tls":                               false,
		"-tls -key stock":                    true,
		"-addr wss://a.example/":             false,
		"-addr wss://a.example/,b.example:1": true,
		"-addr wss://a.example/,b.example:1 -tls": false,
		"-addr ws://a.example/ -tls":              true,
		"-alloc http://a.example/":                true,
		"-alloc http://a.example/ -tls":           false,
	} {
		if o, err := parse(strings.Fields(args), newConsole()); err != nil || (o.key != nil) != want {
			t.Errorf("%s: %v, a key: %v, want %v", cmp.Or(args, "nothing"), err, o.key != nil, want)
		}
	}
}

func TestNoMoreDevicesThanDescriptors(t *testing.T) {
	const n = 2_000_000_000
	if descriptors() > n {
		t.Skip("nothing bounds descriptors here")
	}
	err := run(t.Context(), []string{"-n", strconv.Itoa(n)}, strings.NewReader(""), newConsole())
	if err == nil || !strings.Contains(err.Error(), "descriptors") {
		t.Errorf("it ended with %v", err)
	}
}

func TestFlagsThatCannotBeAreRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want string }{
		{"3000", `"3000" is no flag`},
		{"-addr 127.0.0.1", "Addrs"},
		{"-addr http://127.0.0.1", "want ws or wss"},
		{"-addr ,", "-addr is empty"},
		{"-alloc 127.0.0.1:9092", "Allocator"},
		{"-alloc ftp://a.example/", "want http or https"},
		{"-key " + empty, "is empty"},
		{"-key " + empty + "er", "-key wants a file, stock or none"},
		{"-key main.go", "PublicKey"},
		{"-device " + strings.Repeat("x", 129), "DeviceID has 129 bytes"},
		{"-device=", "DeviceID has 0 bytes"},
		{"-user=", "-user is empty"},
		{"-n 0", "-n is 0"},
		{"-n -1", "-n is -1"},
		{"-n x", "invalid value"},
		{"-n 10 -rate 0", "-rate is 0"},
		{"-rate 10", "it needs -n"},
		{"-n 10 -session x", "does not go with -n"},
		{"-n 10 -stop-on-kick", "does not go with -n"},
		{"-n 10 -addr nowhere", "Addrs"},
		{"-colour", "-colour"},
	} {
		err := run(t.Context(), strings.Fields(c.args), strings.NewReader(""), newConsole())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s ended with %v, want %q in it", c.args, err, c.want)
		}
	}
}

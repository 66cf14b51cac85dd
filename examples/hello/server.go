package main

// What every server needs, whatever it serves: flags, an address, who may ask,
// timeouts, a line for each event, an orderly end.

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/embedpush/push"
)

const defaultAddr = "127.0.0.1:9092"

// server is the flags and what they led to.
type server struct {
	ln      net.Listener
	devices net.Listener // of -mpush; nil: off, and engine.Serve returns at once
	mpush   push.MPush
	stock   bool   // mpush's key is the one that everybody knows
	host    string // of -http
	trust   bool
	origins []string
	cluster *push.Cluster
	fresh   string // the secret made because there was none
	out     io.Writer
	log     *log.Logger // to out; one line an event
	tasks   []func(context.Context)
}

// newServer reads the flags and listens.
func newServer(args []string, stdout io.Writer) (*server, error) {
	flags := flag.NewFlagSet("hello", flag.ContinueOnError)
	flags.SetOutput(stdout)
	addr := flags.String("http", defaultAddr, "address of the page; port 0 is any free one")
	origin := flags.String("origin", "", "pages that may connect, comma-separated: https://shop.example, *.example.com, null, or * for all (default: this one's own, those that this machine serves, and null, which is pages from disk)")
	devices := flags.String("mpush", defaultDevices, "address for mpush devices; port 0 is any free one, off (or nothing) is no devices")
	key := flags.String("mpush-key", "stock", "file with the private RSA key that mpush devices have the public half of, in PEM or base64; stock: the published one of mpush; none: no encryption")
	trust := flags.Bool("trust", false, "serve other machines too, although everybody is believed to be who they say they are")
	bind := flags.String("cluster", "", "address on which this node talks to other nodes, such as 127.0.0.1:7946; port 0 is any free one")
	join := flags.String("join", "", "other nodes' -cluster addresses, comma-separated")
	secret := flags.String("secret", "", "file with the secret of the cluster (default: PUSH_SECRET of the environment, or a fresh one)")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	s := &server{trust: *trust, origins: split(*origin), out: stdout, log: log.New(stdout, "", log.Ltime)}
	if err := s.setCluster(*bind, split(*join), *secret); err != nil {
		return nil, err
	}
	given := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if err := s.listen(*addr, given["http"]); err != nil {
		return nil, err
	}
	if err := s.setDevices(*devices, *key, given); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close closes the listeners, which who serves them has done before.
func (s *server) close() {
	s.ln.Close()
	if s.devices != nil {
		s.devices.Close()
	}
}

// split cuts a comma-separated list; an empty one is nil.
func split(list string) (items []string) {
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func (s *server) setCluster(bind string, join []string, file string) error {
	if bind == "" {
		if len(join) > 0 || file != "" {
			return errors.New("-join and -secret are about a cluster: they need -cluster, this node's own address in it")
		}
		return nil
	}
	secret := os.Getenv("PUSH_SECRET")
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("-secret: %w", err)
		}
		secret = string(b)
	}
	if secret = strings.TrimSpace(secret); secret == "" {
		if file != "" {
			return fmt.Errorf("-secret: %s is empty", file)
		}
		if len(join) > 0 {
			return errors.New("-join needs the secret of the nodes to join: name a file with -secret, or set PUSH_SECRET")
		}
		b := make([]byte, 32)
		rand.Read(b)
		secret = base64.StdEncoding.EncodeToString(b)
		s.fresh = secret
	}
	s.cluster = &push.Cluster{Bind: bind, Seeds: join, Secrets: [][]byte{[]byte(secret)}}
	return nil
}

// believed is why only this machine is served.
const believed = "this example believes everybody to be who they say they are: anyone there could read and send in anyone's name"

// listen takes the page's address.
func (s *server) listen(addr string, binding bool) (err error) {
	s.ln, err = s.take("http", addr, binding, "this is", believed)
	s.host, _, _ = net.SplitHostPort(addr)
	return err
}

// take listens on addr, which the flag name says. If that is nobody's wish
// (not binding) and taken, it takes a free port and tells who gets it. Without
// -trust it takes no address that other machines reach, because of the risk.
func (s *server) take(name, addr string, binding bool, who, risk string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("-%s: %w", name, err)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil && !binding {
		fmt.Fprintf(s.out, "%s is taken; %s a free port instead.\n", addr, who)
		ln, err = net.Listen("tcp", net.JoinHostPort(host, "0"))
	}
	if err != nil {
		return nil, fmt.Errorf("-%s: %w", name, err)
	}
	if at := ln.Addr().(*net.TCPAddr); !at.IP.IsLoopback() && !s.trust {
		ln.Close()
		return nil, fmt.Errorf("-%s %s is reached from other machines, and %s. Say -trust if that is all right on this network", name, addr, risk)
	}
	return ln, nil
}

// config is the engine's: what the flags said, and a line for each event. say
// takes what a device has to say.
func (s *server) config(authenticate func(context.Context, *push.Login) (string, error), say sayer) push.Config {
	login := func(id push.ConnID, l push.Login) {
		s.log.Printf("login        %s is %.64q on device %.64q", id, l.UserID, l.DeviceID)
	}
	cfg := push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			user, err := authenticate(ctx, l)
			if l.Conn != nil && err == nil { // a login on an open connection
				login(l.Conn.ID(), *l)
			}
			return user, err
		},
		OnConnect: func(_ context.Context, c *push.Conn) {
			s.log.Printf("connected    %s from %s, %s", c.ID(), c.Login().Remote, c.Protocol())
			if c.UserID() != "" { // named in the URL: /ws?user=alice
				login(c.ID(), c.Login())
			}
		},
		OnMessage: heard(say),
		OnDisconnect: func(c *push.Conn, why push.Reason) {
			s.log.Printf("disconnected %s, %.64q: %s", c.ID(), c.UserID(), why)
		},
		Origins: s.origins,
		MPush:   s.mpush,
		Cluster: s.cluster,
		Limits:  push.Limits{AckTimeout: 3 * time.Second},
	}
	if s.origins == nil {
		cfg.CheckOrigin = near
	}
	return cfg
}

// near is who may connect without -origin: a page of this program, one that
// any server on the visitor's own machine serves, and one from disk. Every
// site can make a frame that looks like the last ("null"), and here everybody
// is alice who says so: it is a rule for a demo that has no cookies and no
// secrets. That r.Host is a name of this program, guard has seen to.
func near(r *http.Request) bool {
	pages := r.Header["Origin"]
	switch {
	case len(pages) == 0: // not from a page
		return true
	case len(pages) > 1:
		return false
	case pages[0] == "null":
		return true
	}
	page, err := url.Parse(pages[0])
	if err != nil || (page.Scheme != "http" && page.Scheme != "https") || page.Scheme+"://"+page.Host != pages[0] {
		return false
	}
	switch strings.ToLower(page.Hostname()) {
	case "localhost", "127.0.0.1", "::1":
		return true
	}
	return page.Host != "" && strings.EqualFold(page.Host, r.Host)
}

// result is the answer to a push.
type result struct {
	push.Receipt
	Error string `json:"error,omitempty"`
}

// receipt is a route that pushes the request's message and answers with what
// became of it.
func (s *server) receipt(do func(*http.Request, push.Message) (push.Receipt, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var receipt push.Receipt
		m, err := message(w, r)
		code := http.StatusBadRequest
		if err == nil {
			receipt, err = do(r, m)
			code = statusOf(err)
			s.log.Printf("push         %.64q to %.64q: %s", m.Event, cmp.Or(r.URL.Query().Get("user"), "everybody"), inWords(receipt, err))
		}
		answer := result{Receipt: receipt}
		if err != nil {
			answer.Error = err.Error()
		}
		writeJSON(w, code, answer)
	}
}

// message reads a push from a request: ?event= and ?ack=, and any JSON.
func message(w http.ResponseWriter, r *http.Request) (m push.Message, err error) {
	m.Event = cmp.Or(r.URL.Query().Get("event"), "message")
	switch ack := r.URL.Query().Get("ack"); ack {
	case "":
	case "auto":
		m.Ack = push.AutoAck
	case "biz":
		m.Ack = push.BizAck
	default:
		return m, fmt.Errorf("ack is %.20q, want nothing, auto or biz", ack)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err != nil {
		return m, err
	}
	if !json.Valid(body) {
		return m, errors.New("the body is no JSON")
	}
	m.Data = json.RawMessage(body)
	return m, nil
}

// statusOf is the HTTP status for a push's error.
func statusOf(err error) int {
	is := func(targets ...error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return http.StatusOK
	case is(push.ErrOffline):
		return http.StatusNotFound
	case is(push.ErrTimeout, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	case is(push.ErrGone, push.ErrSlow, push.ErrTooLarge, push.ErrOverloaded, push.ErrNodeLost, push.ErrClosed, context.Canceled):
		return http.StatusBadGateway
	}
	return http.StatusBadRequest // it says what is wrong with the event or the user
}

// inWords is a receipt on one line.
func inWords(r push.Receipt, err error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d", r.Sent+r.Acked, r.Targets)
	for i, d := range r.Deliveries {
		if i == 5 {
			fmt.Fprintf(&b, ", %d more", len(r.Deliveries)-i)
			break
		}
		fmt.Fprintf(&b, ", %.32q %s in %s", cmp.Or(d.DeviceID, d.Conn.String()), d.Status, d.Latency.Round(10*time.Microsecond))
	}
	if err != nil {
		fmt.Fprintf(&b, " (%v)", err)
	}
	return b.String()
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}

// guard lets in who asked for this program by one of its own names. Without
// it, any page in the world could make its own name point here (DNS
// rebinding), and would then be of the same origin as this one.
func (s *server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		everywhere := s.ln.Addr().(*net.TCPAddr).IP.IsUnspecified()
		switch {
		case strings.EqualFold(host, "localhost"), strings.EqualFold(host, s.host):
		case err == nil && (ip.IsLoopback() || everywhere): // no name, so nothing to rebind
		default:
			http.Error(w, fmt.Sprintf("%.64q is not a name of this program; if it should be, start it with -http %.64s:port", host, host), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// every has f called at an interval while serve runs.
func (s *server) every(interval time.Duration, f func()) {
	s.tasks = append(s.tasks, func(ctx context.Context) {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				f()
			}
		}
	})
}

// serve answers requests until ctx ends; then it ends engine and whatever else
// it started.
func (s *server) serve(ctx context.Context, engine *push.Engine, mux http.Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	for _, task := range s.tasks {
		tasks.Go(func() { task(ctx) })
	}
	own := http.NewCrossOriginProtection()
	own.AddInsecureBypassPattern("/socket.io/") // polling posts there; whose pages may, the engine decides
	srv := &http.Server{
		Handler:           s.guard(own.Handler(mux)),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	var failed error
	tasks.Go(func() {
		if err := srv.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
			failed = err
			cancel()
		}
	})
	s.announce(engine)
	<-ctx.Done()

	s.log.Print("shutting down")
	wait, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	err := engine.Shutdown(wait) // first: http.Server neither closes nor waits for WebSockets
	wait, stop = context.WithTimeout(context.Background(), time.Second)
	defer stop()
	if srv.Shutdown(wait) != nil { // browsers hold connections ready that they never use
		srv.Close()
	}
	tasks.Wait()
	return cmp.Or(failed, err)
}

// announce says where everything is.
func (s *server) announce(engine *push.Engine) {
	urls := s.urls()
	for _, url := range urls {
		fmt.Fprintf(s.out, "%s\n", url)
	}
	fmt.Fprintf(s.out, "curl -d 42 \"%s/push?user=alice&event=answer&ack=auto\"\n", urls[0])
	s.announceDevices(urls[0])
	if s.fresh != "" {
		for _, node := range engine.Nodes() {
			fmt.Fprintf(s.out, "PUSH_SECRET=%s go run ./examples/hello -cluster 127.0.0.1:0 -join %s\n", s.fresh, node.Addr)
		}
	}
}

// urls are the addresses to click on, this machine's own first.
func (s *server) urls() (urls []string) {
	for _, at := range reachable(s.ln) {
		urls = append(urls, "http://"+at.String())
	}
	return urls
}

// reachable is where ln is reached, by this machine first.
func reachable(ln net.Listener) []netip.AddrPort {
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	if !at.Addr().IsUnspecified() {
		return []netip.AddrPort{at}
	}
	all := []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())}
	addrs, _ := net.InterfaceAddrs()
	for _, addr := range addrs {
		if prefix, err := netip.ParsePrefix(addr.String()); err == nil && prefix.Addr().IsGlobalUnicast() {
			all = append(all, netip.AddrPortFrom(prefix.Addr(), at.Port()))
		}
	}
	return all
}

//go:embed index.html
var index string

//go:embed socketio.html
var socketIO []byte

//go:embed main.go
var source string

// thePage is index.html with gaps. It is no html/template, which would take
// the comments out of the page's script: everything in a gap is given to html.
var thePage = template.Must(template.New("index.html").Parse(index))

// program cuts the fifteen lines out of main.go.
func program() string {
	_, lines, _ := strings.Cut(source, "The page shows them.\n")
	lines, _, _ = strings.Cut(lines, "\t// That was all")
	return strings.TrimSpace(strings.ReplaceAll(lines, "\n\t", "\n"))
}

// page is index.html with the fifteen lines in it, and where devices connect.
func (s *server) page(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	thePage.Execute(w, struct {
		Program string
		Devices *door
	}{program(), s.door(r)})
}

// socketIOPage is socketio.html as it is, for it works from disk, too.
func socketIOPage(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.Write(socketIO)
}

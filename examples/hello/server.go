package main

// What every server needs, whatever it serves: flags, an address, who may ask,
// timeouts, a line for each event, an orderly end.

import (
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
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
	"slices"
	"strings"
	"sync"
	"text/template"
	"time"

	"github.com/embedpush/push"
)

const (
	defaultAddr    = "127.0.0.1:9092"
	defaultCluster = "127.0.0.1:0" // what -cluster alone means
)

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
	pass    [2]string // how the next node is given the secret: before its command, and behind it
	out     io.Writer
	notes   []string    // for announce
	log     *log.Logger // to out; one line an event
	tasks   []func(context.Context, *push.Engine)
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
	bind := flags.String("cluster", "", "be a node of a cluster; the `address` on which it talks to the others may follow (default "+defaultCluster+", any free port)")
	join := flags.String("join", "", "other nodes' -cluster addresses, comma-separated")
	secret := flags.String("secret", "", "file with the secret of the cluster, at least 32 random bytes in base64 or hex (default: PUSH_SECRET of the environment, or a fresh one, which is printed)")
	if err := flags.Parse(clusterAlone(args)); err != nil {
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

// clusterAlone gives -cluster its default where no address follows it.
func clusterAlone(args []string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		if (arg == "-cluster" || arg == "--cluster") && (i+1 == len(args) || strings.HasPrefix(args[i+1], "-")) {
			args[i] = "-cluster=" + defaultCluster
		}
	}
	return args
}

func (s *server) setCluster(bind string, join []string, file string) error {
	if bind == "" {
		if len(join) > 0 || file != "" {
			return errors.New("-join and -secret are about a cluster: they need -cluster")
		}
		return nil
	}
	text, from := os.Getenv("PUSH_SECRET"), "PUSH_SECRET"
	s.pass[0] = "PUSH_SECRET=$PUSH_SECRET "
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("-secret: %w", err)
		}
		if text, from = string(b), "-secret"; strings.TrimSpace(text) == "" {
			return fmt.Errorf("-secret: %s is empty", file)
		}
		s.pass = [2]string{"", " -secret " + quoted(file)}
	}
	if text = strings.TrimSpace(text); text == "" {
		if len(join) > 0 {
			return errors.New("-join needs the secret of the nodes to join: name a file with -secret, or set PUSH_SECRET")
		}
		fresh := make([]byte, 32)
		rand.Read(fresh)
		text = base64.StdEncoding.EncodeToString(fresh)
		s.pass[0] = "PUSH_SECRET=" + text + " "
	}
	secret, err := unhide(text)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	s.cluster = &push.Cluster{Bind: bind, Seeds: join, Secrets: [][]byte{secret}}
	return nil
}

// unhide reads a secret's text, hex or base64. The error shows none of it.
func unhide(text string) ([]byte, error) {
	for _, decode := range []func(string) ([]byte, error){
		hex.DecodeString, // first: 64 digits of hex are base64, too
		base64.StdEncoding.DecodeString, base64.RawStdEncoding.DecodeString,
		base64.URLEncoding.DecodeString, base64.RawURLEncoding.DecodeString,
	} {
		if secret, err := decode(text); err == nil {
			if len(secret) < 32 {
				return nil, fmt.Errorf("it is %d bytes in base64 or hex, want at least 32; one comes from: openssl rand -base64 32", len(secret))
			}
			return secret, nil
		}
	}
	return nil, errors.New("it is neither base64 nor hex; one that is comes from: openssl rand -base64 32")
}

// quoted is a word of a shell's command line.
func quoted(word string) string {
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+=,") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// nextNode is the command that starts one more node, for the next terminal on
// this machine. "": there is no cluster.
func (s *server) nextNode(nodes []push.Node) string {
	for _, node := range nodes {
		if !node.Self {
			continue
		}
		cluster := "-cluster"
		if at, err := netip.ParseAddrPort(node.Addr); err == nil && !(at.Addr().Is4() && at.Addr().IsLoopback()) {
			cluster += " " + netip.AddrPortFrom(at.Addr(), 0).String()
		}
		return s.pass[0] + "go run ./examples/hello " + cluster + " -http 127.0.0.1:0 -join " + node.Addr + s.pass[1]
	}
	return ""
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
// (not binding) and taken, it takes a free port and notes who gets it. Without
// -trust it takes no address that other machines reach, because of the risk.
func (s *server) take(name, addr string, binding bool, who, risk string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("-%s: %w", name, err)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil && !binding {
		s.notes = append(s.notes, fmt.Sprintf("%s is taken; %s a free port instead.", addr, who))
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

// every has f called at an interval while serve runs, of a cluster by one node.
func (s *server) every(interval time.Duration, f func()) {
	s.tasks = append(s.tasks, func(ctx context.Context, engine *push.Engine) {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				// Nodes is sorted by id, the same everywhere.
				if nodes := engine.Nodes(); len(nodes) == 0 || nodes[0].Self {
					f()
				}
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
		tasks.Go(func() { task(ctx, engine) })
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

// announce says where everything is, and first how another node joins.
func (s *server) announce(engine *push.Engine) {
	if next := s.nextNode(engine.Nodes()); next != "" {
		fmt.Fprintln(s.out, next)
	}
	for _, note := range s.notes {
		fmt.Fprintln(s.out, note)
	}
	urls := s.urls()
	for _, url := range urls {
		fmt.Fprintf(s.out, "%s\n", url)
	}
	fmt.Fprintf(s.out, "curl -d 42 \"%s/push?user=alice&event=answer&ack=auto\"\n", urls[0])
	s.announceDevices(urls[0])
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

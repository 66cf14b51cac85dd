// Sioserver embeds push for the tests of Socket.IO clients beside it. What a
// client sends, it counts, repeats or passes on; the other routes are for the
// test, which pushes, kicks and pulls plugs through them. It prints its
// address and believes everybody, so it serves this machine only.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/embedpush/push"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "sioserver:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	addr := flag.String("http", "127.0.0.1:0", "address; port 0 is any free one")
	nodes := flag.Int("nodes", 0, "be a cluster of so many nodes, and at the address a proxy that sends each request to the next of them")
	var o options
	flag.DurationVar(&o.heartbeat, "heartbeat", 20*time.Second, "time between two heartbeats, and the time to answer one")
	flag.BoolVar(&o.quiet, "quiet", false, "say hello to nobody")
	verbose := flag.Bool("v", false, "log everything to standard error")
	flag.Parse()
	level := slog.LevelWarn
	if *verbose {
		level = slog.LevelDebug
	}
	o.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if *nodes > 0 {
		return runFleet(ctx, *addr, *nodes, o)
	}
	s, err := begin(*addr, o, nil)
	if err != nil {
		return err
	}
	defer s.cut()
	fmt.Printf("http://%s\n", s.addr)

	hello := hellos(o)
	defer hello.Stop()
	for i := 0; ; i++ {
		select {
		case <-hello.C:
			s.engine.Broadcast(ctx, point(i))
		case err := <-s.failed:
			return err
		case <-ctx.Done():
			return s.shutdown()
		}
	}
}

// options are the flags that every engine is made from.
type options struct {
	heartbeat time.Duration
	quiet     bool
	log       *slog.Logger
}

// hellos ticks each second, or never.
func hellos(o options) *time.Ticker {
	second := time.NewTicker(time.Second)
	if o.quiet {
		second.Stop()
	}
	return second
}

// point is the hello of a second: each x and each y is another than the one
// before.
func point(i int) push.Message {
	return push.Message{Event: "hello", Data: map[string]int{"x": i % 100, "y": i * 7 % 100}}
}

// begin starts an engine behind all routes, as one of a cluster unless that is
// nil.
func begin(addr string, o options, cluster *push.Cluster) (*server, error) {
	s := &server{tabs: make(map[string]*tab), ended: make(map[string][]push.Reason), failed: make(chan error, 1)}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	if !ln.Addr().(*net.TCPAddr).IP.IsLoopback() {
		ln.Close()
		return nil, fmt.Errorf("%s is reached from other machines", addr)
	}
	s.engine, err = push.New(push.Config{
		Authenticate: authenticate,
		OnConnect:    s.welcome,
		OnMessage:    s.message,
		OnDisconnect: s.disconnected,
		CheckOrigin:  fromHere,
		Limits:       push.Limits{QueueBytes: 2 << 20, AckTimeout: 10 * time.Second},
		SocketIO:     push.SocketIO{PingInterval: o.heartbeat, PingTimeout: o.heartbeat, Namespace: namespace},
		Cluster:      cluster,
		Logger:       o.log,
	})
	if err != nil {
		ln.Close()
		return nil, err
	}
	s.handle()
	if cluster != nil {
		s.name = cluster.Node
	}

	s.addr = ln.Addr().String()
	s.routes = http.NewServeMux()
	s.routes.Handle("/socket.io/", s.watch(s.engine))
	s.routes.Handle("/else/where/", s.watch(s.engine))
	s.routes.HandleFunc("POST /push", s.push)
	s.routes.HandleFunc("POST /kick", s.kick)
	s.routes.HandleFunc("POST /drop", s.drop)
	s.routes.HandleFunc("GET /ended", s.reasons)
	s.routes.HandleFunc("GET /requests", s.requests)
	s.routes.HandleFunc("GET /held", s.held)
	s.routes.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { write(w, s.engine.Stats()) })
	s.http = &http.Server{
		Handler:           s.routes,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.engine.Close()
		ln.Close()
		return nil, err
	}
	s.cable = &cable{ln: ln, to: inner.Addr().String(), ends: make(map[string][2]net.Conn)}
	go s.cable.run()
	go func() { s.failed <- s.http.Serve(inner) }()
	return s, nil
}

// shutdown ends the engine politely, in at most 5 s.
func (s *server) shutdown() error {
	wait, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	err := s.engine.Shutdown(wait)
	s.http.Close()
	s.cable.close()
	return err
}

// cut ends it at once.
func (s *server) cut() {
	s.engine.Close()
	s.http.Close()
	s.cable.close()
}

// authenticate believes everybody but one.
func authenticate(_ context.Context, l *push.Login) (string, error) {
	if l.Token == "wrong" {
		return "", push.Refuse("wrong password")
	}
	l.Data = new(client)
	return l.UserID, nil
}

// namespace knows three of them and lets nobody into one.
func namespace(_ context.Context, name string, _ *push.Login) error {
	switch name {
	case "/custom", "/chat":
		return nil
	case "/private":
		return push.Refuse("not you")
	}
	return push.ErrUnauthorized
}

// fromHere lets in pages from files and those of this machine.
func fromHere(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || origin == "null" {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && addr.IsLoopback()
}

// client is what is remembered of one connection. Its hooks never overlap.
type client struct {
	numbers  int  // how many numbered events came
	disorder bool // one of them did not have the next number
	stop     context.CancelFunc
	trickled chan int
}

// welcome tells a client who and where it is.
func (s *server) welcome(ctx context.Context, c *push.Conn) {
	c.Push(ctx, push.Message{Event: "welcome", Data: map[string]string{"user": c.UserID(), "namespace": c.Namespace(), "protocol": c.Protocol(), "node": s.name}})
}

type server struct {
	// Static after begin.
	engine *push.Engine
	http   *http.Server
	routes *http.ServeMux
	cable  *cable
	addr   string
	name   string     // of the node; "": it is the only one
	failed chan error // never closed; has one error when http ends

	mu    sync.Mutex               // guards what follows
	tabs  map[string]*tab          // by the parameter tab of their requests
	ended map[string][]push.Reason // by user
}

func (s *server) disconnected(c *push.Conn, why push.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended[c.UserID()] = append(s.ended[c.UserID()], why)
}

// toRoom and toUser are what clients ask to be passed on.
type toRoom struct {
	Room, Event string
	Data        json.RawMessage
}

type toUser struct {
	User, Event string
	Data        json.RawMessage
}

// blob has bytes in it, and bytes deeper in it.
type blob struct {
	Name  string
	Data  []byte
	Parts []struct{ Data []byte }
}

// handle says what becomes of events with one argument.
func (s *server) handle() {
	push.On(s.engine, "join", func(_ context.Context, c *push.Conn, room string) (any, error) {
		return c.Rooms(), c.Join(room)
	})
	push.On(s.engine, "leave", func(_ context.Context, c *push.Conn, room string) (any, error) {
		c.Leave(room)
		return c.Rooms(), nil
	})
	push.On(s.engine, "room", func(ctx context.Context, c *push.Conn, in toRoom) (any, error) {
		receipt, err := s.engine.Push(ctx, push.Audience{Room: in.Room, Namespace: c.Namespace()}, push.Message{Event: in.Event, Data: in.Data})
		return receipt.Targets, err
	})
	push.On(s.engine, "push-user", func(ctx context.Context, c *push.Conn, in toUser) (any, error) {
		receipt, err := s.engine.PushToUser(ctx, in.User, push.Message{Event: in.Event, Data: in.Data, Ack: push.BizAck})
		return result(receipt, err), nil
	})
	push.On(s.engine, "blob", func(_ context.Context, _ *push.Conn, in blob) (any, error) {
		reply := push.Args{in.Name, in.Data}
		for _, part := range in.Parts {
			reply = append(reply, part.Data)
		}
		return reply, nil
	})
	push.On(s.engine, "refuse", func(_ context.Context, _ *push.Conn, text string) (any, error) {
		return nil, push.Refuse(text)
	})
	push.On(s.engine, "flood", func(ctx context.Context, c *push.Conn, n int) (any, error) {
		for i := range min(n, 5000) {
			if _, err := c.Push(ctx, push.Message{Event: "n", Data: i}); err != nil {
				return nil, err
			}
		}
		return n, nil
	})
	push.On(s.engine, "trickle", trickle)
	push.On(s.engine, "enough", func(ctx context.Context, c *push.Conn, _ any) (any, error) {
		me := c.Data().(*client)
		if me.stop == nil {
			return nil, push.Refuse("nothing trickles")
		}
		me.stop()
		return <-me.trickled, nil
	})
	push.On(s.engine, "count", func(_ context.Context, c *push.Conn, _ any) (any, error) {
		me := c.Data().(*client)
		return map[string]any{"count": me.numbers, "ordered": !me.disorder}, nil
	})
	push.On(s.engine, "kick-me", func(_ context.Context, c *push.Conn, text string) (any, error) {
		c.Close(text)
		return nil, nil
	})
}

// trickle sends numbered events, a hundred and then one each millisecond, until
// "enough", or for a minute.
func trickle(_ context.Context, c *push.Conn, _ any) (any, error) {
	me := c.Data().(*client)
	if me.stop != nil {
		return nil, push.Refuse("it trickles")
	}
	ctx, stop := context.WithTimeout(c.Context(), time.Minute)
	me.stop, me.trickled = stop, make(chan int, 1)
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := 0; ; {
			if _, err := c.Push(context.Background(), push.Message{Event: "n", Data: n}); err != nil {
				me.trickled <- n
				return
			}
			if n++; n < 100 {
				continue
			}
			select {
			case <-ctx.Done():
				me.trickled <- n
				return
			case <-tick.C:
			}
		}
	}()
	return nil, nil
}

// message gets events with any number of arguments.
func (s *server) message(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
	switch {
	case m.Event == "n":
		var i int
		me := c.Data().(*client)
		if err := m.Decode(&i); err != nil || i != me.numbers {
			me.disorder = true
		}
		me.numbers++
		return nil, nil
	case strings.HasPrefix(m.Event, "echo"):
		all := make(push.Args, 0, m.Args())
		for i := range m.Args() {
			if b := m.Bytes(i); b != nil {
				all = append(all, b)
			} else {
				all = append(all, m.JSON(i))
			}
		}
		if _, err := c.Push(ctx, push.Message{Event: m.Event, Data: all}); err != nil {
			return nil, err
		}
		return all, nil
	}
	return nil, push.Refuse("unknown event")
}

// push is POST /push?user=&room=&all&namespace=&event=&ack=&wait=&as=. as says what the
// body, JSON, is: "args", an array of arguments, in which strings that begin
// with base64: are bytes; otherwise the one argument. wait is how long.
func (s *server) push(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		return
	}
	m := push.Message{Event: q.Get("event"), Data: json.RawMessage(body)}
	if q.Get("as") == "args" {
		if m.Data, err = arguments(body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	switch q.Get("ack") {
	case "auto":
		m.Ack = push.AutoAck
	case "biz":
		m.Ack = push.BizAck
	}
	ctx := r.Context()
	if wait, err := time.ParseDuration(q.Get("wait")); err == nil {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, wait)
		defer stop()
	}
	write(w, result(s.engine.Push(ctx, push.Audience{User: q.Get("user"), Room: q.Get("room"), All: q.Has("all"), Namespace: q.Get("namespace")}, m)))
}

func arguments(body []byte) (args push.Args, err error) {
	var list []json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	for _, item := range list {
		var text string
		json.Unmarshal(item, &text) // what is no string stays ""
		if code, ok := strings.CutPrefix(text, "base64:"); ok {
			b, err := base64.StdEncoding.DecodeString(code)
			if err != nil {
				return nil, err
			}
			args = append(args, b)
		} else {
			args = append(args, item)
		}
	}
	return args, nil
}

// outcome is a receipt with the error in words.
type outcome struct {
	push.Receipt
	Error string `json:"error,omitempty"`
}

func result(r push.Receipt, err error) outcome {
	o := outcome{Receipt: r}
	if err != nil {
		o.Error = err.Error()
	}
	return o
}

// kick is POST /kick?user=&namespace=&text=.
func (s *server) kick(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	n, err := s.engine.Kick(r.Context(), push.Audience{User: q.Get("user"), Namespace: q.Get("namespace")}, q.Get("text"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	write(w, n)
}

// reasons is GET /ended?user=: why the connections of a user ended, in order.
func (s *server) reasons(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	write(w, append([]push.Reason{}, s.ended[r.URL.Query().Get("user")]...))
}

// tab is what one client has asked: clients name themselves in the query.
type tab struct {
	open map[string]bool // connections with a request held open, or a WebSocket, by their address
	seen map[string]int  // requests, by method, transport and kind of body
}

// watch notes which client is at which socket.
func (s *server) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		name, conn := q.Get("tab"), r.RemoteAddr
		kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
		s.mu.Lock()
		t := s.tabs[name]
		if t == nil {
			t = &tab{open: make(map[string]bool), seen: make(map[string]int)}
			s.tabs[name] = t
		}
		t.seen[strings.TrimSpace(r.Method+" "+q.Get("transport")+" "+kind)]++
		if r.Method == http.MethodGet && q.Get("sid") != "" || r.Header.Get("Upgrade") != "" {
			t.open[conn] = true
		}
		s.mu.Unlock()
		next.ServeHTTP(w, r)
		if r.Header.Get("Upgrade") == "" {
			s.mu.Lock()
			delete(t.open, conn)
			s.mu.Unlock()
		}
	})
}

// requests is GET /requests?tab=.
func (s *server) requests(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tabs[r.URL.Query().Get("tab")]; t != nil {
		write(w, t.seen)
		return
	}
	write(w, map[string]int{})
}

// held is GET /held?tab=: how many requests are held for a client, or have
// become a WebSocket.
func (s *server) held(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tabs[r.URL.Query().Get("tab")]; t != nil {
		write(w, len(t.open))
		return
	}
	write(w, 0)
}

// drop is POST /drop?tab=: it cuts the sockets of a client, as a network
// would. A client between two polls has none; then it waits for the next.
func (s *server) drop(w http.ResponseWriter, r *http.Request) {
	for range 200 {
		if n := s.unplug(r.URL.Query().Get("tab")); n > 0 {
			write(w, n)
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	http.Error(w, "it has no socket", http.StatusNotFound)
}

func (s *server) unplug(name string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tabs[name]
	if t == nil {
		return 0
	}
	for conn := range t.open {
		s.cable.cut(conn)
		delete(t.open, conn)
		n++
	}
	return n
}

func write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

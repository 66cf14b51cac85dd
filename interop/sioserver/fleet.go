package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push"
)

// fleet is several nodes and a proxy in front of them that keeps nobody with
// one: each request, be it a poll, a POST or an upgrade, goes to the next node.
type fleet struct {
	// Static after runFleet's beginning.
	o      options
	secret []byte // the cluster's
	nodes  []*node

	turn     atomic.Uint32 // requests that the proxy has sent somewhere
	starting sync.Mutex    // held while nodes start or end, one after another
}

// node is one of them, in whichever of its runs.
type node struct {
	name  string
	proxy *httputil.ReverseProxy // set at its first run; it keeps its address
	addr  string                 // likewise

	mu     sync.Mutex
	run    *server // guarded by mu; nil: it is down
	gossip string  // guarded by mu: where this run talks to others

	out atomic.Bool // the proxy sends it nothing, though it is up
}

func (n *node) server() *server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.run
}

// meetTime is how long nodes may take to know each other.
const meetTime = 15 * time.Second

func runFleet(ctx context.Context, addr string, nodes int, o options) error {
	f := &fleet{o: o, secret: make([]byte, 32)}
	rand.Read(f.secret)
	for i := range nodes {
		f.nodes = append(f.nodes, &node{name: string(rune('a' + i)), addr: "127.0.0.1:0"})
	}
	defer func() {
		for _, n := range f.nodes {
			if s := n.server(); s != nil {
				s.cut()
			}
		}
	}()
	for _, n := range f.nodes {
		if err := f.start(n); err != nil {
			return err
		}
	}
	if err := f.meet(ctx); err != nil {
		return err
	}

	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	if !ln.Addr().(*net.TCPAddr).IP.IsLoopback() {
		return fmt.Errorf("%s is reached from other machines", addr)
	}
	routes := http.NewServeMux()
	routes.HandleFunc("/socket.io/", f.pass)
	routes.HandleFunc("/node/{node}/", f.one)
	routes.HandleFunc("POST /down", f.down)
	routes.HandleFunc("POST /up", f.up)
	front := &http.Server{Handler: routes, ReadHeaderTimeout: 5 * time.Second}
	defer front.Close()
	failed := make(chan error, 1)
	go func() { failed <- front.Serve(ln) }()
	fmt.Printf("http://%s\n", ln.Addr())

	hello := hellos(o)
	defer hello.Stop()
	for i := 0; ; i++ {
		select {
		case <-hello.C: // each from another node than the one before
			if s := f.nodes[i%len(f.nodes)].server(); s != nil {
				m := point(i)
				m.Data.(map[string]int)["node"] = i % len(f.nodes)
				s.engine.Broadcast(ctx, m)
			}
		case err := <-failed:
			return err
		case <-ctx.Done():
			return f.shutdown()
		}
	}
}

// start starts a node, and the first time gives it its address.
func (f *fleet) start(n *node) error {
	f.starting.Lock()
	defer f.starting.Unlock()
	if n.server() != nil {
		return errors.New("it runs")
	}
	cluster := &push.Cluster{Node: n.name, Bind: "127.0.0.1:0", Secrets: [][]byte{f.secret}}
	for _, other := range f.nodes {
		other.mu.Lock()
		if other.run != nil {
			cluster.Seeds = append(cluster.Seeds, other.gossip)
		}
		other.mu.Unlock()
	}
	s, err := begin(n.addr, f.o, cluster)
	if err != nil {
		return err
	}
	if n.proxy == nil {
		n.addr = s.addr
		n.proxy = &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(&url.URL{Scheme: "http", Host: n.addr})
				r.SetXForwarded()
			},
			Transport:     &http.Transport{MaxIdleConnsPerHost: 100, DisableCompression: true},
			FlushInterval: -1,
			ErrorLog:      log.New(io.Discard, "", 0), // a node that is being cut is no news
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.run = s
	for _, at := range s.engine.Nodes() {
		if at.Self {
			n.gossip = at.Addr
		}
	}
	return nil
}

// meet waits until every node that is up has a link to and from every other,
// and is ready.
func (f *fleet) meet(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, meetTime)
	defer stop()
	for {
		var up []*server
		for _, n := range f.nodes {
			if s := n.server(); s != nil {
				up = append(up, s)
			}
		}
		strangers := 0
		for _, s := range up {
			at := s.engine.Stats().Cluster
			if others := len(up) - 1; at.LinksUp != others || at.LinksIn != others || s.engine.Ready() != nil {
				strangers++
			}
		}
		if strangers == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d nodes do not know the others", strangers, len(up))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// pass sends a request to the next node that is up.
func (f *fleet) pass(w http.ResponseWriter, r *http.Request) {
	for range f.nodes {
		n := f.nodes[f.turn.Add(1)%uint32(len(f.nodes))]
		if n.server() != nil && !n.out.Load() {
			n.proxy.ServeHTTP(w, r)
			return
		}
	}
	http.Error(w, "no node is up", http.StatusBadGateway)
}

// one is /node/{node}/…: the routes of that node, but those of clients.
func (f *fleet) one(w http.ResponseWriter, r *http.Request) {
	n := f.named(r.PathValue("node"))
	if n == nil {
		http.NotFound(w, r)
		return
	}
	s := n.server()
	if s == nil {
		http.Error(w, "the node is down", http.StatusServiceUnavailable)
		return
	}
	http.StripPrefix("/node/"+n.name, s.routes).ServeHTTP(w, r)
}

func (f *fleet) named(name string) *node {
	for _, n := range f.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// down is POST /down?node=&how=: it ends a node, and answers when that is done.
// how is "drain": politely, and the proxy knows before; "surprise": politely,
// and the proxy goes on with it until the end; or "kill".
func (f *fleet) down(w http.ResponseWriter, r *http.Request) {
	f.starting.Lock()
	defer f.starting.Unlock()
	n := f.named(r.URL.Query().Get("node"))
	if n == nil || n.server() == nil {
		http.NotFound(w, r)
		return
	}
	s := n.server()
	how := r.URL.Query().Get("how")
	n.out.Store(how == "drain")
	var err error
	if how != "kill" {
		ctx, stop := context.WithTimeout(r.Context(), endTime)
		defer stop()
		err = errors.Join(s.engine.Shutdown(ctx), s.http.Shutdown(ctx))
	}
	s.cut()
	n.mu.Lock()
	n.run = nil
	n.mu.Unlock()
	n.out.Store(false)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	write(w, n.name)
}

const endTime = 10 * time.Second // a polite end's longest

// up is POST /up?node=: it starts a node that is down, and answers when all know
// each other.
func (f *fleet) up(w http.ResponseWriter, r *http.Request) {
	n := f.named(r.URL.Query().Get("node"))
	if n == nil {
		http.NotFound(w, r)
		return
	}
	err := f.start(n)
	if err == nil {
		err = f.meet(r.Context())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	write(w, n.name)
}

// shutdown ends all nodes politely, and at once.
func (f *fleet) shutdown() error {
	errs := make(chan error)
	for _, n := range f.nodes {
		go func() {
			if s := n.server(); s != nil {
				errs <- s.shutdown()
				return
			}
			errs <- nil
		}()
	}
	var all []error
	for range f.nodes {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

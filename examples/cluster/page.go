package main

// The page: what there is, twice a second, and buttons that do things to it.

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/embedpush/push"
)

//go:embed page.html
var pageHTML []byte

// buttonStop is how long the page's stop button stops a node.
const buttonStop = 10 * time.Second

// serve shows the page until ctx ends.
func (w *world) serve(ctx context.Context, addr string, out io.Writer) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("-http: %w", err)
	}
	defer ln.Close()
	if !ln.Addr().(*net.TCPAddr).IP.IsLoopback() {
		return fmt.Errorf("-http %s is reached from other machines, and whoever opens this page ends processes: it is for this one", addr)
	}
	if err := w.begin(ctx, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() { w.load.run(ctx, ctx) })
	srv := &http.Server{
		Handler:           w.handler(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	var failed error
	work.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			failed = err
			cancel()
		}
	})
	fmt.Fprintf(out, "http://%s\n", ln.Addr())
	<-ctx.Done()
	srv.Close()
	work.Wait()
	w.report(out)
	return failed
}

// handler is the page, for pages of this machine alone.
func (w *world) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		rw.Header().Set("Cache-Control", "no-cache")
		rw.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'")
		rw.Write(pageHTML)
	})
	mux.HandleFunc("GET /state", func(rw http.ResponseWriter, r *http.Request) { writeJSON(rw, w.look(r.Context())) })
	mux.HandleFunc("POST /push", w.pushForm)
	mux.HandleFunc("POST /node/{id}/{what}", w.button)
	return onlyHere(http.NewCrossOriginProtection().Handler(mux))
}

// look is everything the page shows.
type look struct {
	Nodes   []nodeLook   `json:"nodes"`
	Devices []deviceView `json:"devices"`
	Counts  counts       `json:"counts"`
	Wrong   []string     `json:"wrong"`
	Diary   []string     `json:"diary"`
	CanStop bool         `json:"can_stop"`
}

// nodeLook is a node as the parent sees it, and as it sees itself.
type nodeLook struct {
	nodeView
	Answers bool        `json:"answers"`
	Sees    []push.Node `json:"sees"`
	Conns   int         `json:"conns"`
	Ready   string      `json:"ready"`
}

func (w *world) look(ctx context.Context) look {
	l := look{Devices: w.devices.view(), Diary: w.diary.last(40), CanStop: canStop}
	l.Counts, l.Wrong = w.ledger.sum()
	var asking sync.WaitGroup
	views := w.fleet.view()
	l.Nodes = make([]nodeLook, len(views))
	for i, v := range views {
		n := &l.Nodes[i]
		n.nodeView = v
		if v.PID == 0 || v.Is == stopped {
			continue
		}
		asking.Go(func() {
			if s, err := w.fleet.situation(ctx, v.ID); err == nil {
				n.Answers, n.Sees, n.Conns, n.Ready = true, s.Nodes, s.Stats.Conns, s.Ready
			}
		})
	}
	asking.Wait()
	return l
}

// button does what a button says, and answers when it is done.
func (w *world) button(rw http.ResponseWriter, r *http.Request) {
	id, err := r.PathValue("id"), error(nil)
	if !w.fleet.has(id) {
		http.NotFound(rw, r)
		return
	}
	switch r.PathValue("what") {
	case "kill":
		err = w.fleet.kill(id)
	case "stop":
		err = w.fleet.stop(id, buttonStop)
	case "drain":
		err = w.fleet.drain(id)
	case "restart":
		err = w.fleet.restart(context.WithoutCancel(r.Context()), id)
	default:
		http.NotFound(rw, r)
		return
	}
	if err != nil {
		http.Error(rw, err.Error(), http.StatusConflict)
	}
}

// pushForm pushes what the form says: {"from":"a","user":"alice","text":"…","ack":"auto"}.
func (w *world) pushForm(rw http.ResponseWriter, r *http.Request) {
	var form struct{ From, User, Text, Ack string }
	if err := json.NewDecoder(http.MaxBytesReader(rw, r.Body, 16<<10)).Decode(&form); err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	acks := map[string]push.Ack{"": push.NoAck, "auto": push.AutoAck, "biz": push.BizAck}
	ack, ok := acks[form.Ack]
	if !ok || !w.fleet.has(form.From) || form.Text == "" {
		http.Error(rw, "say from which node, what, and no ack, auto or biz", http.StatusBadRequest)
		return
	}
	a, err := w.load.push(r.Context(), form.From, form.User, note{Text: form.Text}, ack)
	if err != nil {
		a.Error = fmt.Sprintf("node %s gave no receipt: %v", form.From, err)
	}
	w.diary.printf("push to %q from %s: %d of %d devices %s", form.User, form.From, a.Sent+a.Acked, a.Targets, cmp.Or(a.Error, "have it"))
	writeJSON(rw, a)
}

// onlyHere lets in who asks for this machine by its own name or by a number.
// Without it any page in the world could make its own name point here.
func onlyHere(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if !strings.EqualFold(host, "localhost") && (err != nil || !ip.IsLoopback()) {
			http.Error(w, "that is no name of this program", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

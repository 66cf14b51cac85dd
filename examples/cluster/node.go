package main

// One node, in a process of its own: an engine behind a port for pages and one
// for devices, and three routes for the parent.

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/embedpush/push"
)

// asNode in the environment makes this program a node.
const asNode = "PUSH_EXAMPLE_NODE"

// orders is what the parent tells a node: one line of JSON on its standard
// input. That stays open for as long as the parent lives, and when it ends, so
// does the node.
type orders struct {
	Node   string
	Token  string // what the parent's requests carry
	Secret []byte // the cluster's
	Seeds  []string
}

// addresses is the node's answer: one line of JSON on its standard output.
type addresses struct {
	HTTP   string `json:"http"`
	MPush  string `json:"mpush"`
	Gossip string `json:"gossip"`
}

// order is a push that the parent asks for.
type order struct {
	User   string
	Note   note
	Ack    push.Ack
	Within time.Duration // to be answered
}

// note is what is pushed. N is the ledger's number of it.
type note struct {
	N    uint64 `json:"n"`
	From string `json:"from"` // the node
	Text string `json:"text,omitempty"`
}

// answer is what became of it.
type answer struct {
	push.Receipt
	Error string        `json:"error,omitempty"`
	Took  time.Duration `json:"took"` // the call, by the node's clock
}

// situation is a node as it sees itself and the others.
type situation struct {
	Ready string      `json:"ready"` // "": it is
	Nodes []push.Node `json:"nodes"`
	Stats push.Stats  `json:"stats"`
}

const (
	drainTime = time.Second      // over which a drain spreads its closes
	endTime   = 10 * time.Second // a drain's longest
)

// runNode is the node until its standard input ends or it has been drained.
func runNode(stdin io.Reader, stdout io.Writer) error {
	in := bufio.NewReader(stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var o orders
	if err := json.Unmarshal(line, &o); err != nil {
		return err
	}

	pages, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	phones, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	engine, err := push.New(push.Config{
		Authenticate: push.TrustClaims, // whoever says to be alice is alice
		MPush:        push.MPush{Advertise: phones.Addr().String()},
		Cluster:      &push.Cluster{Node: o.Node, Bind: "127.0.0.1:0", Seeds: o.Seeds, Secrets: [][]byte{o.Secret}},
		Drain:        drainTime,
	})
	if err != nil {
		return err
	}
	defer engine.Close()
	go engine.Serve(phones)

	mux := http.NewServeMux()
	mux.Handle("/ws", engine)
	mux.Handle("/socket.io/", engine)
	mux.Handle("/alloc", engine.Alloc())
	drained := make(chan struct{})
	drain := sync.OnceFunc(func() { close(drained) })
	for pattern, h := range map[string]http.HandlerFunc{
		"POST /control/push": func(w http.ResponseWriter, r *http.Request) { pushOrder(w, r, engine) },
		"GET /control/situation": func(w http.ResponseWriter, r *http.Request) {
			s := situation{Nodes: engine.Nodes(), Stats: engine.Stats()}
			if err := engine.Ready(); err != nil {
				s.Ready = err.Error()
			}
			writeJSON(w, s)
		},
		"POST /control/drain": func(w http.ResponseWriter, r *http.Request) { drain() },
	} {
		mux.Handle(pattern, onlyWith(o.Token, h))
	}
	srv := &http.Server{Handler: onlyAs(pages.Addr().String(), mux), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go srv.Serve(pages)

	at := addresses{HTTP: pages.Addr().String(), MPush: phones.Addr().String()}
	for _, n := range engine.Nodes() {
		if n.Self {
			at.Gossip = n.Addr
		}
	}
	if err := json.NewEncoder(stdout).Encode(at); err != nil {
		return err
	}

	orphaned := make(chan struct{})
	go func() {
		io.Copy(io.Discard, in)
		close(orphaned)
	}()
	select {
	case <-orphaned:
		return nil
	case <-drained:
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	err = engine.Shutdown(ctx)
	return errors.Join(err, srv.Shutdown(ctx)) // which lets the last answers out
}

// pushOrder does what the parent asks for and answers with the receipt.
func pushOrder(w http.ResponseWriter, r *http.Request, engine *push.Engine) {
	var o order
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&o); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), o.Within)
	defer cancel()
	begin := time.Now()
	receipt, err := engine.PushToUser(ctx, o.User, push.Message{Event: "note", Data: o.Note, Ack: o.Ack})
	a := answer{Receipt: receipt, Took: time.Since(begin)}
	if err != nil {
		a.Error = err.Error()
	}
	writeJSON(w, a)
}

// onlyWith lets in who knows the token: the parent.
func onlyWith(token string, next http.Handler) http.Handler {
	want := []byte("Bearer " + token)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
			http.Error(w, "that is the parent's", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// onlyAs lets in who asks for host by that name. Without it any page in the
// world could make its own name point here (DNS rebinding) and be alice.
func onlyAs(host string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != host {
			http.Error(w, "that is no name of this program", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(v)
}

// Hello is push in one small program. Open the page it prints, open it in a
// second tab, and push to both: the receipt has one row for each. A device
// that speaks mpush is one more; the page says how it connects. /socketio is a
// page as it is written for netty-socketio, with socket.io-client.
//
//	go run ./examples/hello
//
// With -cluster it is a node of a cluster, and the first line it prints is the
// command that starts the next one.
//
//	go run ./examples/hello -cluster
//
// This file is the program; server.go has what every server needs around it,
// devices.go what mpush devices need.
// It believes whoever says to be alice, so it serves this machine only, unless
// -trust says otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/embedpush/push"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, and then says goodbye to everybody.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	s, err := newServer(args, stdout)
	if err != nil {
		return err
	}
	defer s.close()
	mux := http.NewServeMux()
	var engine *push.Engine

	// say is what a page does with event "say", and a device with each line.
	say := func(ctx context.Context, c *push.Conn, text string) (any, error) {
		if text == "" || len(text) > 500 || !utf8.ValidString(text) {
			return nil, push.Refuse("say 1 to 500 bytes")
		}
		r, err := engine.Broadcast(ctx, push.Message{Event: "said", Data: said{c.UserID(), text}})
		return r.Targets, err
	}

	// The fifteen lines. The page shows them.
	engine, err = push.New(s.config(push.TrustClaims, say)) // whoever says to be alice is alice
	if err != nil {
		return err
	}
	go engine.Serve(s.devices)           // an mpush device's connection
	mux.Handle("/alloc", engine.Alloc()) // where a device asks for that address
	mux.Handle("/ws", engine)            // a tab's connection
	mux.Handle("/push.js", engine)       // the client that a page imports
	mux.Handle("/socket.io/", engine)    // a tab's connection by socket.io-client
	push.On(engine, "say", say)          // what one says, everybody reads
	mux.HandleFunc("POST /push", s.receipt(func(r *http.Request, m push.Message) (push.Receipt, error) {
		return engine.PushToUser(r.Context(), r.URL.Query().Get("user"), m)
	}))
	mux.HandleFunc("POST /broadcast", s.receipt(func(r *http.Request, m push.Message) (push.Receipt, error) { return engine.Broadcast(r.Context(), m) }))
	s.every(time.Second, func() { engine.Broadcast(ctx, push.Message{Event: "hello", Data: anyPoint()}) })
	// That was all; the rest is for the page.

	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, 200, statsOf(r.Context(), engine)) })
	mux.HandleFunc("GET /nodes", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, 200, append([]push.Node{}, engine.Nodes()...))
	})
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /socketio", socketIOPage)
	return s.serve(ctx, engine, mux)
}

// point is what everybody gets each second.
type point struct {
	X int `json:"x"`
	Y int `json:"y"`
}

func anyPoint() point { return point{rand.IntN(100), rand.IntN(100)} }

// said is what everybody gets when one tab has something to say.
type said struct {
	User string `json:"user"`
	Text string `json:"text"`
}

// online is Stats with what the page wants to know on top.
type online struct {
	push.Stats
	Online map[string]int `json:"online"` // users and how many devices each has
}

// maxOnline bounds the answer of /stats, not who may be online.
const maxOnline = 100

func statsOf(ctx context.Context, engine *push.Engine) online {
	o := online{engine.Stats(), make(map[string]int)}
	for user := range engine.Users() {
		if len(o.Online) == maxOnline {
			break
		}
		if devices, _ := engine.Devices(ctx, push.Audience{User: user}); len(devices) > 0 {
			o.Online[user] = len(devices)
		}
	}
	return o
}

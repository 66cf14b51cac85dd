// Suiteserver is a server as the official conformance suites of Engine.IO 3 and
// 4 and of Socket.IO 5 expect one: at /engine.io/ what sends every message
// back, at /socket.io/ an Engine with the namespaces / and /custom. The suites
// want a heartbeat of 300 and 200 ms, bodies of at most 1 000 000 bytes, and a
// CONNECT within a second.
//
//	go run ./interop/suiteserver -http 127.0.0.1:3000
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/embedpush/push"
)

const (
	pingInterval = 300 * time.Millisecond
	pingTimeout  = 200 * time.Millisecond
	maxPayload   = 1000000
)

func main() {
	addr := flag.String("http", "127.0.0.1:3000", "address to serve; port 0 is any free one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ln, err := net.Listen("tcp", *addr)
	if err == nil {
		err = run(ctx, ln, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "suiteserver:", err)
		os.Exit(1)
	}
}

// run serves ln until ctx ends.
func run(ctx context.Context, ln net.Listener, stdout io.Writer) error {
	engine, err := newEngine()
	if err != nil {
		return err
	}
	echo := newEcho()
	mux := http.NewServeMux()
	mux.Handle("/socket.io/", engine)
	mux.Handle("/engine.io/", echo)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	fmt.Fprintf(stdout, "http://%s\n", ln.Addr())

	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ln) }()
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	engine.Close()
	echo.close()
	server.Close()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// newEngine makes the Socket.IO server of the suite: it tells who connects what
// he said of himself, sends "message" back as "message-back", and answers
// "message-with-ack" with the arguments.
func newEngine() (*push.Engine, error) {
	engine, err := push.New(push.Config{
		Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			l.Data = l.Auth
			return "", nil
		},
		OnConnect: func(ctx context.Context, c *push.Conn) {
			c.Push(ctx, push.Message{Event: "auth", Data: c.Data()})
		},
		OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
			args := make(push.Args, m.Args())
			for i := range args {
				if args[i] = m.JSON(i); m.Bytes(i) != nil {
					args[i] = m.Bytes(i)
				}
			}
			switch m.Event {
			case "message":
				_, err := c.Push(ctx, push.Message{Event: "message-back", Data: args})
				return nil, err
			case "message-with-ack":
				return args, nil
			}
			return nil, push.Refuse("unknown event")
		},
		Origins: []string{"*"},
		SocketIO: push.SocketIO{
			MaxPayload: maxPayload, ConnectTimeout: time.Second, PingInterval: pingInterval, PingTimeout: pingTimeout,
			Namespace: func(_ context.Context, name string, _ *push.Login) error {
				if name != "/custom" {
					return push.ErrUnauthorized
				}
				return nil
			},
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	return engine, err
}

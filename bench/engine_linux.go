package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// engine is this project's: each connection has a user of its own and a room
// of ten, which the client names.
type engine struct{ *push.Engine }

func newEngine(o serverOptions) (server, error) {
	cfg := push.Config{
		Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			l.Rooms = []string{cmp.Or(l.Query("room"), l.Token)} // an mpush device's is its BIND's data
			return l.UserID, nil
		},
		Heartbeat: o.heartbeat,
		SocketIO:  push.SocketIO{PingInterval: o.heartbeat},
		Limits:    push.Limits{MaxConns: -1}, // the default leaves a quarter of the descriptors
		Logger:    slog.New(slog.DiscardHandler),
	}
	if o.door == doorMPushRSA {
		cfg.MPush.PrivateKey = []byte(mpush.StockPrivateKey)
	}
	e, err := push.New(cfg)
	if err != nil {
		return nil, err
	}
	if o.door == doorSocketIO {
		return engineForSocketIO{engine{e}}, nil
	}
	return engine{e}, nil
}

func (e engine) conns() int { return e.Stats().Conns }

func (e engine) broadcast() error { return e.broadcastData(eventData) }

func (e engine) broadcastData(data string) error {
	r, err := e.Broadcast(context.Background(), push.Message{Event: eventName, Data: data})
	if err == nil && r.Sent != r.Targets {
		err = fmt.Errorf("a broadcast was sent to %d of %d", r.Sent, r.Targets)
	}
	return err
}

func (e engine) push(user, data string) error {
	_, err := e.PushToUser(context.Background(), user, push.Message{Event: eventName, Data: data})
	return err
}

// engineForSocketIO broadcasts what makes eventSize bytes there.
type engineForSocketIO struct{ engine }

func (e engineForSocketIO) broadcast() error { return e.broadcastData(socketIOData) }

func (e engineForSocketIO) push(user, data string) error {
	if data == eventData {
		data = socketIOData
	}
	return e.engine.push(user, data)
}

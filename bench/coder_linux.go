package main

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// coder is the chat example of coder/websocket (github.com/coder/websocket,
// internal/examples/chat): the handler stays with its connection and writes
// what comes through a channel of 16, CloseRead reads, and who is too slow is
// closed. The example's limit on how often something is published is left out.
// It sends no pings.
type coder struct {
	mu          sync.Mutex
	subscribers map[string]*coderSubscriber // guarded by mu, by user
}

type coderSubscriber struct {
	conn *websocket.Conn
	msgs chan []byte // never closed
}

func newCoder(serverOptions) (server, error) {
	return &coder{subscribers: make(map[string]*coderSubscriber)}, nil
}

func (s *coder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := r.URL.Query().Get("user")
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	sub := &coderSubscriber{conn, make(chan []byte, 16)}
	s.mu.Lock()
	s.subscribers[user] = sub
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.subscribers, user)
		s.mu.Unlock()
	}()
	ctx := conn.CloseRead(r.Context())
	for {
		select {
		case msg := <-sub.msgs:
			if sub.write(ctx, msg) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (s *coderSubscriber) write(ctx context.Context, msg []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s.conn.Write(ctx, websocket.MessageText, msg)
}

func (s *coder) conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.subscribers)
}

func (s *coder) broadcast() error {
	msg := []byte(eventText)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.subscribers {
		sub.offer(msg)
	}
	return nil
}

func (s *coder) push(user, data string) error {
	text, err := marshalEvent(data)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.subscribers[user]
	if sub == nil {
		return errNoUser
	}
	sub.offer(text)
	return nil
}

func (s *coderSubscriber) offer(msg []byte) {
	select {
	case s.msgs <- msg:
	default:
		go s.conn.Close(websocket.StatusPolicyViolation, "connection too slow to keep up with messages")
	}
}

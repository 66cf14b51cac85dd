package main

import (
	"net/http"
	"sync"
	"time"

	"github.com/lxzan/gws"
)

// gwsServer is lxzan/gws as its README (github.com/lxzan/gws) advises under
// "Best Practice": parallel handling of messages, recovery, ReadLoop on a
// goroutine of its own so that the request is garbage; and under "Broadcast":
// one Broadcaster for all connections. Buffers are at their
// defaults, of which it says nothing. Compression is off here as everywhere.
// Its clients are the ones that ping.
type gwsServer struct {
	gws.BuiltinEventHandler
	upgrader *gws.Upgrader
	silence  time.Duration

	mu    sync.RWMutex
	users map[string]*gws.Conn // guarded by mu
}

func newGWS(o serverOptions) (server, error) {
	s := &gwsServer{silence: 3 * o.heartbeat, users: make(map[string]*gws.Conn)}
	s.upgrader = gws.NewUpgrader(s, &gws.ServerOption{ParallelEnabled: true, Recovery: gws.Recovery})
	return s, nil
}

func (s *gwsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := r.URL.Query().Get("user")
	conn, err := s.upgrader.Upgrade(w, r)
	if err != nil {
		return
	}
	conn.Session().Store("user", user)
	s.mu.Lock()
	s.users[user] = conn
	s.mu.Unlock()
	go conn.ReadLoop()
}

func (s *gwsServer) OnOpen(conn *gws.Conn) { s.heard(conn) }

func (s *gwsServer) OnPing(conn *gws.Conn, _ []byte) {
	s.heard(conn)
	conn.WritePong(nil)
}

func (s *gwsServer) heard(conn *gws.Conn) { conn.SetDeadline(time.Now().Add(s.silence)) }

func (s *gwsServer) OnClose(conn *gws.Conn, _ error) {
	user, _ := conn.Session().Load("user")
	s.mu.Lock()
	delete(s.users, user.(string))
	s.mu.Unlock()
}

func (s *gwsServer) conns() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.users)
}

func (s *gwsServer) broadcast() error {
	b := gws.NewBroadcaster(gws.OpcodeText, []byte(eventText))
	defer b.Close()
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, conn := range s.users {
		if err := b.Broadcast(conn); err != nil {
			return err
		}
	}
	return nil
}

func (s *gwsServer) push(user, data string) error {
	text, err := marshalEvent(data)
	if err != nil {
		return err
	}
	s.mu.RLock()
	conn := s.users[user]
	s.mu.RUnlock()
	if conn == nil {
		return errNoUser
	}
	return conn.WriteMessage(gws.OpcodeText, text)
}

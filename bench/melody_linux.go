package main

import (
	"net/http"
	"sync"

	"github.com/olahol/melody"
)

// melodyServer is olahol/melody with its defaults, as the chat of its README
// (github.com/olahol/melody) has it. Only the heartbeat is another, as for all.
type melodyServer struct {
	*melody.Melody

	mu       sync.RWMutex
	sessions map[string]*melody.Session // guarded by mu, by user
}

func newMelody(o serverOptions) (server, error) {
	s := &melodyServer{Melody: melody.New(), sessions: make(map[string]*melody.Session)}
	s.Config.PingPeriod, s.Config.PongWait = o.heartbeat, o.heartbeat+pongLate
	s.HandleConnect(func(session *melody.Session) {
		s.mu.Lock()
		s.sessions[session.Request.URL.Query().Get("user")] = session
		s.mu.Unlock()
	})
	s.HandleDisconnect(func(session *melody.Session) {
		s.mu.Lock()
		delete(s.sessions, session.Request.URL.Query().Get("user"))
		s.mu.Unlock()
	})
	return s, nil
}

func (s *melodyServer) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.HandleRequest(w, r) }

func (s *melodyServer) conns() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.sessions)
}

func (s *melodyServer) broadcast() error { return s.Broadcast([]byte(eventText)) }

func (s *melodyServer) push(user, data string) error {
	text, err := marshalEvent(data)
	if err != nil {
		return err
	}
	s.mu.RLock()
	session := s.sessions[user]
	s.mu.RUnlock()
	if session == nil {
		return errNoUser
	}
	return session.Write(text)
}

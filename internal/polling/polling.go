// Package polling is the HTTP half of Engine.IO, revisions 3 and 4: it answers
// handshakes, the GETs that are held until there is something to send, the
// POSTs that bring what the client sends, and the WebSocket to which a session
// may be upgraded. What the packets mean is not its business: a session's bytes
// stand in the queue of a netio.Conn, and what comes is fed to that Conn.
//
// A session id is a secret: who has it is the client. This package puts it into
// no log, no error and no answer but the packets that it is given.
package polling

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/upgrade"
)

// Config is what New takes; it is copied.
type Config struct {
	// Sids makes and opens session ids. nil: of a key of its own, for a node
	// that stands alone.
	Sids *Sids
	// Timeout is how long a POST may go without a byte, how long the write of
	// an answer may take beside the time for its size, and how long the upgrade
	// may take from the WebSocket's handshake to the packet that completes it.
	// 0 or less: 10 s.
	Timeout time.Duration
	// Origin judges the page that sends a request's Origin; it is asked for
	// every request that has one, on the request's goroutine. credentials: the
	// browser may send cookies along. nil: no page is let in.
	Origin func(r *http.Request) (allowed, credentials bool)
	// Open is called on the request's goroutine when a client without a session
	// asks for one. It has to answer: by Session.Begin, by Refuse, or, if
	// a.WebSocket, by taking the socket over; upgrade.Check has passed then.
	// The headers for CORS are set. There is no body.
	Open func(w http.ResponseWriter, r *http.Request, a Ask)
	// Relay is called on the request's goroutine for a well-formed request whose
	// sid is genuine and of another node, the one that tag stands for. The origin
	// was judged, the headers for CORS are set; a request for a WebSocket has
	// passed upgrade.Check. true: it has answered, or has taken the socket over.
	// false: there is no such session. nil: it is always false.
	Relay func(w http.ResponseWriter, r *http.Request, tag [8]byte) bool
	// Refused is called for every request that this package refuses by itself,
	// by any goroutine: it is there to count. nil: nobody counts.
	Refused func(why Why)
}

// Ask is the session that a client wants.
type Ask struct {
	Revision  eio.Revision
	WebSocket bool // from the start, without polling
	Base64    bool // V3: no bodies in bytes, they come as base64
}

// Why says why a request was refused.
type Why uint8

const (
	WhyOrigin     Why = iota // the page may not connect
	WhyBadRequest            // malformed, or not the moment for it
	WhyUnknownSID            // forged, forgotten, or of another node
	WhyOverlap               // a second GET, POST or upgrade beside the first
	WhyTooLarge              // a POST over its limit
	WhySlow                  // a POST or an upgrade that did not come to its end in time
)

// Server answers the requests of all sessions. Make one with New.
type Server struct {
	c Config // static

	mu       sync.RWMutex          // guards sessions
	sessions map[[16]byte]*Session // those that began with polling and have not ended
}

// New makes a Server. There is nothing to close: it ends with its sessions.
func New(c Config) *Server {
	if c.Sids == nil {
		c.Sids = NewSids([8]byte{})
	}
	if c.Timeout <= 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Origin == nil {
		c.Origin = func(*http.Request) (bool, bool) { return false, false }
	}
	if c.Refused == nil {
		c.Refused = func(Why) {}
	}
	return &Server{c: c, sessions: make(map[[16]byte]*Session)}
}

// Len is the number of sessions that began with polling and have not ended.
func (s *Server) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.sessions)
}

const (
	maxQuery = 8 << 10 // bytes of a query; the application's parameters stand in it too
	maxEcho  = 1 << 10 // bytes of a header that is sent back

	minRate = 16 << 10 // bytes a second that a body has to move on average, either way
)

// ServeHTTP answers a request of Engine.IO, whatever its path.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 { // whoever refuses without reading it: net/http looks for its end before the next request
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.c.Timeout))
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	legal := legalOrigin(r)
	if legal && !s.admit(w, r) {
		s.refuse(w, r, WhyOrigin, http.StatusForbidden, Forbidden)
		return
	}
	if legal && r.Method == http.MethodOptions {
		preflight(w, r)
		return
	}

	// In the order in which npm's server checks them.
	q := parseQuery(r.URL.RawQuery)
	switch {
	case q.tooLong:
		s.badRequest(w, r)
	case q.transport != "polling" && q.transport != "websocket":
		s.refuse(w, r, WhyBadRequest, http.StatusBadRequest, UnknownTransport)
	case !legal:
		s.badRequest(w, r)
	case q.sid == "":
		s.handshake(w, r, q)
	default:
		webSocket := q.transport == "websocket"
		tag, id, ok := s.c.Sids.Open(q.sid)
		switch {
		case !ok:
			s.unknownSID(w, r)
		case tag != s.c.Sids.tag:
			s.relay(w, r, tag, webSocket)
		default:
			if p := s.find(id); p != nil {
				p.serve(w, r, webSocket)
			} else {
				s.unknownSID(w, r)
			}
		}
	}
}

// relay answers a request with the sid of another node. What no session would
// take goes nowhere.
func (s *Server) relay(w http.ResponseWriter, r *http.Request, tag [tagSize]byte, webSocket bool) {
	get, post := r.Method == http.MethodGet && r.ContentLength == 0, r.Method == http.MethodPost
	switch {
	case s.c.Relay == nil:
		s.unknownSID(w, r)
	case webSocket != isUpgrade(r), !webSocket && !get && !post:
		s.badRequest(w, r)
	case webSocket && !s.upgradable(w, r):
	case !s.c.Relay(w, r, tag):
		s.unknownSID(w, r)
	}
}

// handshake answers a request for a new session.
func (s *Server) handshake(w http.ResponseWriter, r *http.Request, q query) {
	a := Ask{WebSocket: q.transport == "websocket"}
	switch q.eio {
	case "3":
		a.Revision, a.Base64 = eio.V3, q.b64
	case "4":
		a.Revision = eio.V4
	}
	switch {
	case r.Method != http.MethodGet:
		s.refuse(w, r, WhyBadRequest, http.StatusBadRequest, BadMethod)
	case a.WebSocket != isUpgrade(r), r.ContentLength != 0:
		s.badRequest(w, r)
	case a.Revision == 0:
		s.refuse(w, r, WhyBadRequest, http.StatusBadRequest, BadVersion)
	case a.WebSocket && !s.upgradable(w, r):
	default:
		s.c.Open(w, r, a)
	}
}

// upgradable reports whether the request can become a WebSocket; if not, it has
// answered.
func (s *Server) upgradable(w http.ResponseWriter, r *http.Request) bool {
	no := upgrade.Check(r)
	if no == nil {
		return true
	}
	s.c.Refused(WhyBadRequest)
	if no.Header[0] != "" {
		w.Header().Set(no.Header[0], no.Header[1])
	}
	Refuse(w, r, no.Status, BadRequest, no.Text)
	return false
}

// find returns the session with an id, nil if there is none, or if it is about
// to end.
func (s *Server) find(id [idSize]byte) *Session {
	s.mu.RLock()
	p := s.sessions[id]
	s.mu.RUnlock()
	if p == nil || !p.h.Alive(time.Now()) {
		return nil
	}
	return p
}

func (s *Server) badRequest(w http.ResponseWriter, r *http.Request) {
	s.refuse(w, r, WhyBadRequest, http.StatusBadRequest, BadRequest)
}

func (s *Server) unknownSID(w http.ResponseWriter, r *http.Request) {
	s.refuse(w, r, WhyUnknownSID, http.StatusBadRequest, UnknownSID)
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, why Why, status, code int) {
	s.c.Refused(why)
	Refuse(w, r, status, code, messages[code])
}

// query is what the protocol wants to know of a request's query. Of a parameter
// that is repeated the first counts.
type query struct {
	eio, transport, sid string
	b64, tooLong        bool
}

func parseQuery(raw string) (q query) {
	if len(raw) > maxQuery {
		q.tooLong = true
		return q
	}
	var b64 string
	var seen [4]bool
	for pair := range strings.SplitSeq(raw, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if strings.ContainsAny(key, "%+") {
			key, _ = url.QueryUnescape(key)
		}
		var i int
		var into *string
		switch key {
		case "EIO":
			i, into = 0, &q.eio
		case "transport":
			i, into = 1, &q.transport
		case "sid":
			i, into = 2, &q.sid
		case "b64":
			i, into = 3, &b64
		default:
			continue
		}
		if !seen[i] {
			seen[i] = true
			*into, _ = url.QueryUnescape(value) // "" if it is not escaped well
		}
	}
	q.b64 = b64 != "" // whatever it says, as npm's server has it
	return q
}

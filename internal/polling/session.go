package polling

import (
	"net/http"
	"sync"
	"time"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/netio"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// Host is who owns a session. Its methods are called on the goroutines of
// requests, with no lock held, and may overlap each other, except Posted and
// Upgraded, which overlap neither themselves nor a Feed.
type Host interface {
	// PostLimit is how many bytes a POST may have now; -1: any number.
	PostLimit() int
	// Alive is asked at each request with the session's sid. false: its
	// heartbeat is overdue, or it has ended; the request is answered as if there
	// were no session, and the host ends it by itself. A session that was Shut
	// is alive until its Conn is closed: a GET has to come for the rest.
	Alive(now time.Time) bool
	// Posted says that what Conn.Feed gets next is the whole body of one POST;
	// it is never empty. binary: of type application/octet-stream, which only a
	// V3 client may send. If the host finds it malformed it has to Close the
	// Conn, not to Shut it: then Feed fails, the POST is answered 400, and a GET
	// that is pending gets a close packet.
	Posted(binary bool)
	// Broken says that the client broke the protocol, then err is a *wire.Error,
	// or that it went away in the middle of a request, then err is nil. The
	// session is to be ended: what is still queued at the return, and a close
	// packet if the host has not Shut the Conn with one, goes to the GET that is
	// pending; without one the Conn is closed. It is called at most once.
	Broken(err error)
	// Upgraded says that what the handler's Data gets next are frames of the
	// WebSocket. It is called before Conn.Attach.
	Upgraded()
}

// Session is one session that began, or is about to begin, with polling. It
// takes 112 bytes (TestSessionIsSmall), a channel of as many, and its place in
// the Server's table, without what net/http has for a connection.
type Session struct {
	// Static.
	s    *Server
	id   [idSize]byte
	rev  eio.Revision
	b64  bool
	wake chan struct{} // never closed; holds one: whoever holds a GET has to look again

	// Static once begun.
	nc *netio.Conn
	h  Host

	mu       sync.Mutex               // guards everything below; nc.Take is called under it, so Wake must not need it
	polling  bool                     // a GET is pending
	posting  bool                     // a POST is being read, or fed
	probing  bool                     // a WebSocket has the place of the one that may be upgraded to
	probed   bool                     // … and was told 3probe: GETs are to end
	parting  int8                     // other WebSockets beside it that are told goodbye
	upgraded bool                     // the WebSocket is the transport
	gone     bool                     // no request finds the session any more
	said     bool                     // … because the client said close
	broken   bool                     // … because the client broke it, and the host knows
	ended    bool                     // by End
	writing  *http.ResponseController // of the GET that is being answered; nil: none is
	probe    deadliner                // the probing WebSocket; nil: there is none that anybody may touch
}

// partingTime is how long the answer to a GET may still be written when the
// session has ended.
const partingTime = time.Second

// deadliner is what End needs of a net.Conn.
type deadliner interface{ SetDeadline(t time.Time) error }

// NewSession makes a session with a fresh sid. Nobody can ask for it before
// Begin. A session that begins with a WebSocket has nothing of this package but
// its sid.
func (s *Server) NewSession(a Ask) *Session {
	p := &Session{s: s, rev: a.Revision, b64: a.Base64}
	_, p.id = s.c.Sids.Make()
	if !a.WebSocket {
		p.wake = make(chan struct{}, 1)
	}
	return p
}

// SID is the session id, a secret. It is made anew at each call.
func (p *Session) SID() string { return p.s.c.Sids.seal(p.id) }

// Polls reports whether a GET is pending.
func (p *Session) Polls() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.polling
}

// Wake says that there is something to Take. It is for Driver.DrivePulled, may be
// called by any goroutine at any time, and takes no lock.
func (p *Session) Wake() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Begin registers the session and answers its handshake with everything that
// is queued on nc, of which the open packet has to be the first. nc comes from
// DrivePulled with p.Wake, and was started. Begin returns when the answer is
// written, or when it cannot be.
func (p *Session) Begin(w http.ResponseWriter, r *http.Request, nc *netio.Conn, h Host) {
	p.nc, p.h = nc, h
	p.mu.Lock()
	p.polling = true // the handshake is the first GET
	ended := p.ended
	if !ended { // under p.mu: End, which comes later, has to find it
		p.s.mu.Lock()
		p.s.sessions[p.id] = p
		p.s.mu.Unlock()
	}
	p.mu.Unlock()
	if ended {
		Refuse(w, r, http.StatusServiceUnavailable, BadRequest, messages[BadRequest])
		return
	}
	p.hold(w, r)
}

// End forgets the session: for the handler's Closed. A GET that is pending is
// answered, the socket of an upgrade that is not complete is closed. It does
// not block, and may be called twice, and without Begin.
func (p *Session) End() {
	p.mu.Lock()
	p.ended, p.gone = true, true
	p.s.mu.Lock()
	delete(p.s.sessions, p.id)
	p.s.mu.Unlock()
	if p.writing != nil { // what nobody reads is not kept for long
		_ = p.writing.SetWriteDeadline(time.Now().Add(partingTime))
	}
	if p.probe != nil {
		_ = p.probe.SetDeadline(time.Unix(1, 0)) // its goroutine closes it
	}
	p.mu.Unlock()
	p.Wake()
}

// Goodbye says that the client said close: the POST that said it is answered
// well, and a GET that is pending ends with a noop. The host calls it, perhaps
// out of the handler's Data, before it closes the Conn.
func (p *Session) Goodbye() {
	p.mu.Lock()
	p.said, p.gone = true, true
	p.mu.Unlock()
	p.Wake()
}

// serve answers a request with the session's sid.
func (p *Session) serve(w http.ResponseWriter, r *http.Request, webSocket bool) {
	switch {
	case webSocket != isUpgrade(r):
		p.s.badRequest(w, r)
	case webSocket:
		p.upgrade(w, r)
	case r.Method == http.MethodGet && r.ContentLength == 0:
		p.get(w, r)
	case r.Method == http.MethodPost:
		p.post(w, r)
	default:
		p.s.badRequest(w, r)
	}
}

// claim takes the place of the one GET or the one POST. If it cannot be had it
// answers, and ends a session whose client has two at once.
func (p *Session) claim(w http.ResponseWriter, r *http.Request, place *bool) bool {
	p.mu.Lock()
	gone, upgraded, taken := p.gone, p.upgraded, *place
	free := !gone && !upgraded && !taken
	if free {
		*place = true
	}
	p.mu.Unlock()
	switch {
	case free:
	case gone:
		p.s.unknownSID(w, r)
	case upgraded:
		p.s.badRequest(w, r)
	default:
		p.s.c.Refused(WhyOverlap)
		p.fail(errOverlap)
		unread(w, r)
		p.s.reply(w, http.StatusBadRequest, "", nil, nil)
	}
	return free
}

// What a client can do wrong. They are shared: nobody may change them.
var (
	errOverlap = &wire.Error{Code: wire.Policy, Text: "two requests of one kind at once"}
	errSlow    = &wire.Error{Code: wire.Policy, Text: "request body came too slowly"}
	errEmpty   = &wire.Error{Code: wire.Protocol, Text: "empty body"}
	errOctets  = &wire.Error{Code: wire.Unsupported, Text: "binary body in revision 4"}
)

// fail ends a session that the client broke; err is nil if it went away. If
// somebody else has ended it, or is at it, it does nothing.
func (p *Session) fail(err *wire.Error) {
	p.mu.Lock()
	first := !p.gone
	p.gone = true
	p.mu.Unlock()
	if first {
		p.tell(err)
	}
}

// tell has the host end the session. It is for who set gone.
func (p *Session) tell(err *wire.Error) {
	if err != nil {
		p.h.Broken(err)
	} else {
		p.h.Broken(nil) // an error that is nil, not a *wire.Error
	}
	p.mu.Lock()
	p.broken = true
	pending := p.polling
	p.mu.Unlock()
	if pending {
		p.Wake()
	} else {
		p.nc.Close()
	}
}

// The frames that this package makes itself.
var (
	noop    = eio.AppendPacket(nil, eio.Noop, "")
	closing = eio.AppendPacket(nil, eio.Close, "")
	ponged  = eio.AppendPacket(nil, eio.Pong, "probe")
	goodbye = ws.AppendClose(nil, wire.Normal, "")
)

package polling

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/embedpush/push/internal/eio"
)

// get answers a GET with what is queued, as soon as there is something.
func (p *Session) get(w http.ResponseWriter, r *http.Request) {
	if p.claim(w, r, &p.polling) {
		p.hold(w, r)
	}
}

// hold answers the GET whose place is taken.
func (p *Session) hold(w http.ResponseWriter, r *http.Request) {
	gone := r.Context().Done()
	var over <-chan struct{} // closed: it is to end
	for held, letGo := false, false; ; {
		select {
		case <-gone:
			p.left(false)
			return
		default:
		}
		if frames, cost, what := p.next(letGo); what != nothing {
			p.answer(w, frames, what)
			p.nc.Taken(cost)
			return
		}
		if !held {
			// The host's http.Server may give a request a second. A read deadline
			// that passes ends its context, since net/http waits for the client to
			// go away by reading.
			held = true
			over = released(r.Context())
			rc := http.NewResponseController(w)
			_ = rc.SetReadDeadline(time.Time{})
			_ = rc.SetWriteDeadline(time.Time{})
		}
		select {
		case <-p.wake:
		case <-gone:
		case <-over:
			letGo, over = true, nil
		}
	}
}

// found is what a GET found when it looked.
type found uint8

const (
	nothing found = iota // it is to be held
	reason               // a reason to end with a noop, nothing was taken
	packets
	theEnd // packets, of which the last is the session's last
)

// next takes what a GET is to be answered with, in any case if it is to be let
// go. It is to be given back to nc.Taken what it cost.
func (p *Session) next(letGo bool) (frames [][]byte, cost int, what found) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.said, p.upgraded:
		return [][]byte{noop}, 0, reason
	case p.ended:
		return [][]byte{closing}, 0, theEnd
	}
	frames, cost, over := p.nc.Take()
	switch {
	case over && len(frames) == 0, p.broken && !over:
		return append(frames, closing), cost, theEnd
	case over:
		return frames, cost, theEnd
	case len(frames) > 0:
		return frames, cost, packets
	case p.probed, letGo:
		return [][]byte{noop}, 0, reason
	}
	return nil, 0, nothing
}

// answer writes what next took.
func (p *Session) answer(w http.ResponseWriter, frames [][]byte, what found) {
	room := bodies.Get().(*[]byte)
	body, binary := eio.AppendBody((*room)[:0], p.rev, p.b64, frames...)
	clear(frames)
	kind := "text/plain; charset=UTF-8"
	if binary {
		kind = "application/octet-stream"
	}
	p.mu.Lock()
	p.writing = http.NewResponseController(w)
	p.mu.Unlock()
	lost := p.s.reply(w, http.StatusOK, kind, body, func() {
		p.mu.Lock()
		p.polling = false
		p.gone = p.gone || what == theEnd
		p.mu.Unlock()
	})
	keep(room, body)
	p.mu.Lock()
	p.writing = nil
	broken := p.broken // meanwhile: then nobody else closes it
	p.mu.Unlock()
	switch {
	case what == theEnd || broken:
		p.nc.Close()
	case lost != nil:
		p.left(what == packets)
	}
}

// left ends a session whose client went away during a GET, or could not be
// answered. took: with it went what the GET had taken; otherwise an upgraded
// session has lost nothing.
func (p *Session) left(took bool) {
	p.mu.Lock()
	p.polling = false
	ended := p.broken || p.ended
	ours := !p.gone && (took || !p.upgraded)
	p.gone = p.gone || ours
	p.mu.Unlock()
	switch {
	case ended:
		p.nc.Close()
	case ours:
		p.tell(nil)
	}
}

// reply writes an answer within Timeout and the time that its size takes, and
// leaves the connection without a deadline. last is called before the last byte
// is written: when the client has the whole answer its next request may come at
// once, on another connection. nil: nothing is called.
func (s *Server) reply(w http.ResponseWriter, status int, kind string, body []byte, last func()) error {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(s.c.Timeout + atMinRate(len(body))))
	h := w.Header()
	if kind != "" {
		h.Set("Content-Type", kind)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	cut := max(0, len(body)-1)
	var err error
	if cut > 0 {
		_, err = w.Write(body[:cut])
	}
	if last != nil {
		last()
	}
	if err == nil && len(body) > 0 {
		_, err = w.Write(body[cut:])
	}
	if flushed := rc.Flush(); err == nil && !unsupported(flushed) {
		err = flushed
	}
	_ = rc.SetWriteDeadline(time.Time{})
	return err
}

// atMinRate is the time that n bytes may take.
func atMinRate(n int) time.Duration { return time.Duration(n) * time.Second / minRate }

// bodies are for answers and for the bodies of POSTs.
var bodies = sync.Pool{New: func() any { return new([]byte) }}

const maxKept = 64 << 10

// keep gives room back to bodies. b is what it has become.
func keep(room *[]byte, b []byte) {
	if cap(b) <= maxKept {
		*room = b
		bodies.Put(room)
	}
}

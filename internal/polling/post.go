package polling

import (
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/embedpush/push/internal/eio"
)

// post feeds the body of a POST to the session, and answers when all of it is
// taken.
func (p *Session) post(w http.ResponseWriter, r *http.Request) {
	if !p.claim(w, r, &p.posting) {
		return
	}
	status := p.receive(w, r)
	p.mu.Lock()
	p.posting = false // before the client can know: an upgrade waits for the answer
	p.mu.Unlock()
	if status == http.StatusOK {
		_ = p.s.reply(w, status, "text/html", []byte("ok"), nil) // who does not read it is found out otherwise
		return
	}
	unread(w, r)
	_ = p.s.reply(w, status, "", nil, nil)
}

// receive reads a POST, feeds it, and returns the status to answer.
func (p *Session) receive(w http.ResponseWriter, r *http.Request) int {
	octets := isOctets(r)
	if octets && p.rev != eio.V3 {
		p.s.c.Refused(WhyBadRequest)
		p.fail(errOctets)
		return http.StatusBadRequest
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // feeding may take longer than the host gives a request
	room := bodies.Get().(*[]byte)
	body, err := p.s.read(w, r, (*room)[:0], p.h.PostLimit())
	switch {
	case err == errTooLarge:
		p.s.c.Refused(WhyTooLarge)
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		p.s.c.Refused(WhySlow)
		p.fail(errSlow)
		return http.StatusRequestTimeout
	case err != nil:
		p.s.c.Refused(WhyBadRequest)
		p.fail(nil)
		return http.StatusBadRequest
	case len(body) == 0:
		p.s.c.Refused(WhyBadRequest)
		p.fail(errEmpty)
		return http.StatusBadRequest
	}

	p.mu.Lock()
	gone := p.gone
	p.mu.Unlock()
	if !gone {
		p.h.Posted(octets)
		if gone = p.nc.Feed(body) != nil; gone {
			p.nc.Close() // as it is, unless the host has forgotten to start it
		} else {
			keep(room, body) // otherwise who knows who still looks at it
		}
	}
	p.mu.Lock()
	said := p.said
	p.gone = p.gone || gone
	p.mu.Unlock()
	if gone && !said {
		p.s.c.Refused(WhyBadRequest)
		return http.StatusBadRequest
	}
	return http.StatusOK
}

var errTooLarge = errors.New("polling: body over the limit")

const (
	firstRead = 4 << 10 // the least room for one read of a body
)

// read appends a request's body to b. It waits Timeout for the first byte and
// for each further one, and for all of them as long as minRate allows.
func (s *Server) read(w http.ResponseWriter, r *http.Request, b []byte, limit int) ([]byte, error) {
	if limit >= 0 && r.ContentLength > int64(limit) {
		return b, errTooLarge
	}
	b = slices.Grow(b, firstRead) // what a header announces has not come
	rc := http.NewResponseController(w)
	start := time.Now()
	for {
		now := time.Now()
		by := now.Add(s.c.Timeout)
		if slowest := start.Add(s.c.Timeout + atMinRate(len(b))); slowest.Before(by) {
			by = slowest
		}
		if !now.Before(by) {
			return b, os.ErrDeadlineExceeded
		}
		_ = rc.SetReadDeadline(by)
		if cap(b)-len(b) < firstRead/8 {
			b = slices.Grow(b, max(firstRead, len(b)))
		}
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case limit >= 0 && len(b) > limit:
			return b, errTooLarge
		case err == io.EOF:
			// While it is fed net/http waits for the next request.
			_ = rc.SetReadDeadline(time.Time{})
			return b, nil
		case err != nil:
			return b, err
		}
	}
}

// isOctets reports whether a POST says that it is V3's binary form.
func isOctets(r *http.Request) bool {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(kind), "application/octet-stream")
}

// unsupported reports whether the ResponseWriter has no such thing as what was
// asked of it; then the host's server has to do without.
func unsupported(err error) bool { return errors.Is(err, http.ErrNotSupported) }

package relay

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/embedpush/push/internal/polling"
)

// poll relays a GET or a POST.
func (r *Relay) poll(w http.ResponseWriter, req *http.Request, node string) {
	if tooLong(req) {
		r.stats.tooLarge.Add(1)
		r.refuse(w, req, http.StatusBadRequest, polling.BadRequest, "Bad request")
		return
	}
	if r.c.MaxBody >= 0 && req.ContentLength > r.c.MaxBody {
		r.empty(w, req, http.StatusRequestEntityTooLarge)
		return
	}
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{}) // the host may give a request a second
	ctx, cancel := context.WithTimeout(req.Context(), r.c.Hold)
	defer cancel()
	out := outgoing(ctx, req)
	var body *upload
	if req.ContentLength != 0 {
		body = &upload{rc: rc, body: req.Body, start: time.Now(), timeout: r.c.Timeout, limit: r.c.MaxBody}
		out.Body, out.ContentLength = body, req.ContentLength
		defer body.end() // nobody reads it when the host has it back
	} else {
		_ = rc.SetReadDeadline(time.Time{}) // net/http waits for the client to go away by reading
	}

	l, err := r.take(ctx, node)
	if err != nil {
		r.unreached(w, req, node, err)
		return
	}
	defer r.free(node, l)
	resp, err := l.cc.RoundTrip(out)
	if err != nil {
		r.unanswered(w, req, node, body, err)
		return
	}
	defer resp.Body.Close()
	if body != nil && !body.stop() {
		unread(w, req)
	}
	switch r.answer(w, req, rc, resp) {
	case arrived:
		r.stats.relayed.Add(1)
	case broken:
		r.stats.broken.Add(1)
		panic(http.ErrAbortHandler) // the client must not take what it has for all
	case lost:
		r.stats.lost.Add(1)
		resp.Body.Close() // a holder that is still writing knows it by that
		if req.Method == http.MethodGet && resp.StatusCode == http.StatusOK {
			r.tellLost(req, l)
		}
	}
}

// unanswered answers a request to which there is no answer.
func (r *Relay) unanswered(w http.ResponseWriter, req *http.Request, node string, body *upload, err error) {
	gone := req.Context().Err() != nil // then the holder knows it, too
	if body != nil && !body.stop() {
		defer func() { _ = r.flush(body.rc) }() // before a read is waited for
		gone = false                            // net/http takes a read's deadline for the client's end
		switch err := body.failed(); {
		case err == errTooLarge:
			r.empty(w, req, http.StatusRequestEntityTooLarge)
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			r.empty(w, req, http.StatusRequestTimeout)
			return
		case err != nil:
			r.empty(w, req, http.StatusBadRequest)
			return
		}
	}
	if gone {
		r.stats.left.Add(1)
		return
	}
	r.stats.broken.Add(1)
	r.complain(node, "a node broke off", err)
	r.unavailable(w, req, "the session's node cannot be reached")
}

// empty answers a POST that came to nothing because of its body, as package
// polling does.
func (r *Relay) empty(w http.ResponseWriter, req *http.Request, status int) {
	switch status {
	case http.StatusRequestEntityTooLarge:
		r.stats.tooLarge.Add(1)
	case http.StatusRequestTimeout:
		r.stats.slow.Add(1)
	default:
		r.stats.left.Add(1)
	}
	r.part(w)
	unread(w, req)
	setLength(w.Header(), 0)
	w.WriteHeader(status)
}

// unread ends the connection after the answer, since the request's body was not
// read to its end.
func unread(w http.ResponseWriter, req *http.Request) {
	if req.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}

// What of a request's header is passed on. No cookies and no credentials: the
// session's id is what it is known by. No Origin: the entry has judged it. No
// Accept-Encoding: nobody compresses.
var (
	passed   = []string{"Content-Type"}
	switched = []string{"Connection", "Upgrade", "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions"}
)

// outgoing is a request as it is sent to the holder, without its body.
func outgoing(ctx context.Context, req *http.Request) *http.Request {
	h := http.Header{
		"User-Agent": {""}, // none
		remote:       {req.RemoteAddr},
	}
	for _, name := range passed {
		if v := req.Header[name]; len(v) > 0 {
			h[name] = v[:1:1]
		}
	}
	u := &url.URL{Scheme: "http", Host: "node", Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery}
	if !strings.HasPrefix(u.Path, "/") { // a prefix was stripped
		u.Path, u.RawPath = "/"+u.Path, ""
	}
	out := &http.Request{Method: req.Method, URL: u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: req.Host, Header: h}
	return out.WithContext(ctx)
}

// tooLong reports whether a request is too long for the header that a holder
// takes. Package polling has bounded the query already.
func tooLong(req *http.Request) bool {
	n := len(req.URL.Path) + len(req.URL.RawPath) + len(req.URL.RawQuery) + len(req.Host) + len(req.RemoteAddr)
	for _, names := range [][]string{passed, switched} {
		for _, name := range names {
			for _, v := range req.Header[name] {
				n += len(v)
			}
		}
	}
	return n > maxTarget || len(req.RemoteAddr) > maxRemote
}

// fate is what became of an answer.
type fate uint8

const (
	arrived fate = iota // as far as the client's connection took all of it
	broken              // the holder broke off
	lost                // the client did not take it
)

// copied is what of an answer's header the client gets. The entry has set the
// headers for CORS.
var copied = []string{"Content-Type", "Cache-Control", "X-Content-Type-Options", "Retry-After"}

// answer relays the holder's answer, and reads it to its end: one that is cut
// would be to the holder an answer that did not arrive.
func (r *Relay) answer(w http.ResponseWriter, req *http.Request, rc *http.ResponseController, resp *http.Response) fate {
	if resp.StatusCode < 200 || resp.StatusCode > 599 { // net/http panics over some
		return broken
	}
	h := w.Header()
	for _, name := range copied {
		if v := resp.Header[name]; len(v) == 1 {
			h[name] = v
		}
	}
	setLength(h, resp.ContentLength)
	r.part(w)
	w.WriteHeader(resp.StatusCode)
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }()
	room := rooms.Get().(*[chunk]byte)
	defer rooms.Put(room)
	flushed := resp.ContentLength == 0
	if flushed && r.flush(rc) != nil {
		return lost
	}
	for left := resp.ContentLength; ; {
		n, err := resp.Body.Read(room[:])
		if n > 0 {
			_ = rc.SetWriteDeadline(time.Now().Add(r.c.Timeout + atMinRate(n)))
			if _, err := w.Write(room[:n]); err != nil {
				return lost
			}
			// When the client has all of it its next request may come: the holder
			// has seen to that before it sent the last byte. Its goroutine's end
			// is not waited for.
			if left -= int64(n); left == 0 {
				if r.flush(rc) != nil {
					return lost
				}
				flushed = true
			} else { // over HTTP/2 it ends the answer even if nobody writes
				_ = rc.SetWriteDeadline(time.Time{})
			}
		}
		switch {
		case err == nil:
			continue
		case flushed: // whatever the error is
		case req.Context().Err() != nil:
			return lost
		case err != io.EOF || left > 0:
			return broken
		case r.flush(rc) != nil: // of a length that was not told
			return lost
		}
		return arrived
	}
}

func (r *Relay) flush(rc *http.ResponseController) error {
	_ = rc.SetWriteDeadline(time.Now().Add(r.c.Timeout))
	if err := rc.Flush(); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

const chunk = 16 << 10 // bytes of an answer that are copied at a time

var rooms = sync.Pool{New: func() any { return new([chunk]byte) }}

// tellLost has the holder end a session whose client did not take what its GET
// had taken out of the queue, as it would have if it had written the answer
// itself: by a POST that breaks off.
func (r *Relay) tellLost(req *http.Request, l *line) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), r.c.Timeout)
	defer cancel()
	out := outgoing(ctx, req)
	out.Method, out.Body, out.ContentLength = http.MethodPost, breaksOff{}, 1
	if resp, err := l.cc.RoundTrip(out); err == nil {
		resp.Body.Close()
	}
}

// breaksOff is a body that does.
type breaksOff struct{}

func (breaksOff) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
func (breaksOff) Close() error             { return nil }

// upload is the body of a POST on its way to the holder. The transport reads it
// on a goroutine of its own, and may still do so when there is an answer.
type upload struct {
	// Static.
	rc      *http.ResponseController
	body    io.Reader
	start   time.Time
	timeout time.Duration
	limit   int64 // bytes; less than 0: any number

	reading sync.Mutex // held while somebody reads, guards n
	n       int64      // bytes that were read

	mu   sync.Mutex // guards what follows; comes after reading
	over bool       // no read may begin
	done bool       // all was read
	err  error      // why not
}

var (
	errTooLarge = errors.New("relay: body over the limit")
	errOver     = errors.New("relay: the request has its answer")
)

// Read waits longer for the client than the holder waits for this: whose
// session it is says whether it was too slow.
func (u *upload) Read(b []byte) (n int, err error) {
	u.reading.Lock()
	defer u.reading.Unlock()
	by := time.Now().Add(2 * u.timeout)
	if slowest := u.start.Add(2 * (u.timeout + atMinRate(int(u.n)))); slowest.Before(by) {
		by = slowest
	}
	u.mu.Lock()
	if u.over {
		u.mu.Unlock()
		return 0, errOver
	}
	_ = u.rc.SetReadDeadline(by)
	u.mu.Unlock()

	n, err = u.body.Read(b)
	u.n += int64(n)
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.over:
		return 0, errOver
	case u.limit >= 0 && u.n > u.limit:
		n, err = 0, errTooLarge
		u.err = err
	case err == io.EOF:
		u.done = true
		_ = u.rc.SetReadDeadline(time.Time{}) // while it is fed net/http waits for the next request
	case err != nil:
		u.err = err
	}
	return n, err
}

// stop lets no further read begin, and reports whether all was read.
func (u *upload) stop() (whole bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	return u.done
}

// Close is the transport's stop, which may wait for a read that has begun. That
// is not cut at once: net/http could then not read on, and would close the
// connection of a client that is sending before that has read its answer.
func (u *upload) Close() error {
	if u.stop() {
		return nil
	}
	return u.rc.SetReadDeadline(time.Now().Add(lastRead))
}

const lastRead = 500 * time.Millisecond

// end waits for a read that has begun, which must not outlive the request.
func (u *upload) end() {
	if u.Close() == nil && !u.stop() {
		u.reading.Lock()
		defer u.reading.Unlock()
		_ = u.rc.SetReadDeadline(time.Now().Add(u.timeout)) // for net/http, which looks for the body's end
	}
}

func (u *upload) failed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

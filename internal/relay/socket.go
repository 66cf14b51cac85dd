package relay

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/embedpush/push/internal/polling"
)

// socket relays a request for a WebSocket, and the WebSocket. One that is idle
// takes two goroutines and 2 KiB; httputil's ReverseProxy would have four and
// copy with 64 KiB, without a deadline.
func (r *Relay) socket(w http.ResponseWriter, req *http.Request, node string) {
	if tooLong(req) {
		r.stats.tooLarge.Add(1)
		r.refuse(w, req, http.StatusBadRequest, polling.BadRequest, "Bad request")
		return
	}
	t := r.newTunnel(node)
	if t == nil {
		r.late(w, req)
		return
	}
	kept := false
	defer func() {
		if !kept {
			t.end()
		}
	}()
	ctx, cancel := context.WithTimeout(req.Context(), r.c.Timeout)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	holder, err := r.c.Dial(ctx, node)
	if err != nil {
		r.unreached(w, req, node, err)
		return
	}
	defer func() {
		if !kept {
			holder.Close()
		}
	}()
	goOn := context.AfterFunc(ctx, func() { _ = holder.SetDeadline(time.Unix(1, 0)) })
	defer goOn()

	out := outgoing(ctx, req)
	for _, name := range switched {
		if v := req.Header[name]; len(v) > 0 {
			out.Header[name] = v
		}
	}
	from := &io.LimitedReader{R: holder, N: maxAnswer}
	br := bufio.NewReaderSize(from, 1<<10)
	var resp *http.Response
	if err = out.Write(holder); err == nil {
		resp, err = http.ReadResponse(br, out)
	}
	if err != nil {
		r.unanswered(w, req, node, nil, err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		rc := http.NewResponseController(w)
		unread(w, req) // as package polling closes it
		switch r.answer(w, req, rc, resp) {
		case arrived:
			r.stats.relayed.Add(1)
		case broken:
			r.stats.broken.Add(1)
			panic(http.ErrAbortHandler)
		case lost:
			r.stats.lost.Add(1)
		}
		return
	}

	if !goOn() { // the deadline is about to be cut
		r.unanswered(w, req, node, nil, context.Cause(ctx))
		return
	}
	client, brw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		r.refuse(w, req, http.StatusInternalServerError, polling.BadRequest, "this connection cannot be taken over")
		return
	}
	// What came behind the answer is the WebSocket's.
	head := []byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + resp.Header.Get("Sec-Websocket-Accept") + "\r\n\r\n")
	rest, _ := br.Peek(br.Buffered())
	head = append(head, rest...)
	_ = client.SetDeadline(time.Time{}) // the host's server may have set some
	_ = client.SetWriteDeadline(time.Now().Add(r.c.Timeout))
	if brw.Reader.Buffered() > 0 { // a client waits for the answer
		client.Close()
		return
	}
	if _, err := client.Write(head); err != nil {
		r.stats.lost.Add(1)
		client.Close()
		return
	}
	kept = true
	r.stats.relayed.Add(1)
	r.running.Add(1)
	r.sockets.Add()
	go func() {
		defer r.sockets.Done()
		defer r.running.Add(-1)
		defer t.end()
		r.splice(t.ctx, client, holder)
	}()
}

// tunnel is a WebSocket that is relayed, or a request for one.
type tunnel struct {
	// Static.
	r    *Relay
	node string
	ctx  context.Context // ends with cut, and with Close
	cut  context.CancelFunc
}

// newTunnel makes a tunnel; nil: it would be cut soon.
func (r *Relay) newTunnel(node string) *tunnel {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining.Load() {
		return nil
	}
	t := &tunnel{r: r, node: node}
	t.ctx, t.cut = context.WithCancel(r.ctx)
	r.tunnels[t] = struct{}{}
	return t
}

func (t *tunnel) end() {
	t.cut()
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	delete(t.r.tunnels, t)
}

// tunnelsTo are those to a node; "": to any.
func (r *Relay) tunnelsTo(node string) (found []*tunnel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t := range r.tunnels {
		if node == "" || t.node == node {
			found = append(found, t)
		}
	}
	return found
}

// splice copies both ways until both have ended, or ctx has.
func (r *Relay) splice(ctx context.Context, client, holder net.Conn) {
	defer client.Close()
	defer holder.Close()
	defer context.AfterFunc(ctx, func() { client.Close(); holder.Close() })()
	var other sync.WaitGroup
	other.Go(func() { r.carry(holder, client) })
	r.carry(client, holder)
	other.Wait()
}

const (
	small   = 1 << 10         // bytes that an idle direction of a WebSocket has
	parting = 2 * time.Second // after one direction has ended, for what the other still brings
)

// carry copies one way. An end of it ends the other way soon, an error at once.
func (r *Relay) carry(to, from net.Conn) {
	own := make([]byte, small)
	buf := own
	var big *[chunk]byte // while there is much
	giveBack := func() {
		if big != nil {
			rooms.Put(big)
		}
		big, buf = nil, own
	}
	defer giveBack()
	for {
		n, err := from.Read(buf)
		if n > 0 {
			_ = to.SetWriteDeadline(time.Now().Add(r.c.Timeout + atMinRate(n)))
			if _, failed := to.Write(buf[:n]); failed != nil {
				err = failed
			}
		}
		if err == io.EOF {
			if half, ok := to.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
				_ = to.SetReadDeadline(time.Now().Add(parting))
				return
			}
		}
		if err != nil {
			to.Close()
			from.Close()
			return
		}
		switch {
		case n == len(buf) && big == nil:
			big = rooms.Get().(*[chunk]byte)
			buf = big[:]
		case n <= small && big != nil:
			giveBack()
		}
	}
}

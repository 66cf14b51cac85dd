package client

import (
	"context"
	"fmt"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/mpush"
)

// call is a packet on its way, and the request that it is.
type call struct {
	cmd   mpush.Cmd // CmdHeartbeat: the byte
	pong  bool      // not a packet at all: a WebSocket's pong with this body
	flags mpush.Flags
	id    int32
	body  []byte    // plain
	until time.Time // it waits for a connection; zero: it is for one connection only
	only  *conn     // not for any other; nil: for any
	again bool      // it is sent again if only a part of it was written
	waits bool      // for an answer
	keeps bool      // … and is written also when nobody waits for it here any more

	// answered is told the answer, by the reading goroutine; an error that it
	// returns ends the connection. nil: nobody is.
	answered func(err error) error

	done  chan struct{}        // closed when it is settled; nil: nobody waits
	on    *conn                // guarded by Client.mu: on which a byte of it was written
	over  bool                 // guarded by Client.mu: it is settled
	err   error                // static once done is closed
	reply *mpush.ProxyResponse // static once done is closed
}

// callID is what an answer is known by.
type callID struct {
	cmd mpush.Cmd
	id  int32
}

// nextID makes ids that are not those of an Engine's pushes.
func (c *Client) nextID() int32 {
	for {
		if id := int32(c.ids.Add(1) & (1<<30 - 1)); id != 0 {
			return id
		}
	}
}

// newCallLocked gives a request its id and awaits its answer. Client.mu is
// held.
func (c *Client) newCallLocked(p *call) *call {
	p.done = make(chan struct{})
	for p.id == 0 || c.calls[callID{p.cmd, p.id}] != nil {
		p.id = c.nextID()
	}
	if p.waits {
		c.calls[callID{p.cmd, p.id}] = p
	}
	return p
}

// settle ends a request once: with err, or with success.
func (c *Client) settle(p *call, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settleLocked(p, err)
}

func (c *Client) settleLocked(p *call, err error) {
	if p.over {
		return
	}
	p.over, p.err = true, err
	if id := (callID{p.cmd, p.id}); c.calls[id] == p {
		delete(c.calls, id)
	}
	if p.done != nil {
		close(p.done)
	}
}

func uncertain(why error) error { return fmt.Errorf("%w: %w", ErrUncertain, why) }

func (c *Client) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// send queues a packet and waits: until it is written, or answered if it
// waits for that, or ctx ends.
func (c *Client) send(ctx context.Context, p *call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.until = time.Now().Add(writeTimeout)
	c.mu.Lock()
	r := c.run
	if r == nil {
		c.mu.Unlock()
		return ErrStopped
	}
	c.newCallLocked(p)
	c.mu.Unlock()
	if err := c.enqueue(ctx, r, p); err != nil {
		c.settle(p, err)
		return err
	}
	return c.wait(ctx, r, p)
}

// wait waits for the end of p, which is queued.
func (c *Client) wait(ctx context.Context, r *run, p *call) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return c.leave(p, ctx.Err())
	case <-r.ctx.Done():
		<-r.over // who wrote it has settled it
		return c.leave(p, ErrStopped)
	}
}

// leave is the end of a wait for p.
func (c *Client) leave(p *call, why error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.over {
		return p.err
	}
	if p.on != nil {
		why = uncertain(why)
	}
	if !p.keeps {
		c.settleLocked(p, why)
	}
	return why
}

// enqueue waits for room in the queue.
func (c *Client) enqueue(ctx context.Context, r *run, p *call) error {
	if r.ctx.Err() != nil {
		return ErrStopped
	}
	select {
	case c.queue <- p:
		return nil
	default:
	}
	timer := time.NewTimer(writeTimeout)
	defer timer.Stop()
	select {
	case c.queue <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return ErrStopped
	case <-timer.C:
		return fmt.Errorf("%w: the queue was full for %v", ErrTimeout, writeTimeout)
	}
}

// queueLocked queues a BIND or an UNBIND; together with the change of login, so
// that the server is told of the changes in their order. Client.mu is held. An
// error, for which there is no room, has to end the connection: the next one
// binds.
func (c *Client) queueLocked(p *call) error {
	select {
	case c.logins <- p:
		return nil
	default:
		err := fmt.Errorf("client: %d binds and unbinds wait to be written", queueLen)
		c.settleLocked(p, err)
		return err
	}
}

// offer queues a heartbeat or a pong, unless there is so much to write that
// the server hears of us anyway.
func (c *Client) offer(p *call) {
	select {
	case c.queue <- p:
	default:
	}
}

// autoAck acknowledges a push that the program has taken. It waits for room,
// and goes on to the next connection if need be: a Java server knows acks by
// their id alone.
func (c *Client) autoAck(r *run, id int32) {
	p := &call{cmd: mpush.CmdAck, id: id, again: true, until: time.Now().Add(writeTimeout)}
	if err := c.enqueue(context.Background(), r, p); err != nil {
		c.cfg.Logger.Debug("client: ack was not sent", "id", id, "err", err)
	}
}

// write is the goroutine that writes, one packet after another.
func (c *Client) write(r *run) {
	buf := make([]byte, 0, 1024)
	for {
		var p *call
		select {
		case p = <-c.logins:
		default:
			select {
			case p = <-c.logins:
			case p = <-c.queue:
			case <-r.ctx.Done():
				c.flushQueue()
				return
			}
		}
		if cap(buf) > keepPacket {
			buf = make([]byte, 0, 1024)
		}
		buf = c.deliver(r, p, buf)
	}
}

// flushQueue ends what the run has left. What comes into the queue behind it has
// been left by its caller, or is an ack.
func (c *Client) flushQueue() {
	for {
		select {
		case p := <-c.logins:
			c.settle(p, ErrStopped)
		case p := <-c.queue:
			c.settle(p, ErrStopped)
		default:
			return
		}
	}
}

// deliver writes one packet, on this connection or on a later one, or settles
// it.
func (c *Client) deliver(r *run, p *call, buf []byte) []byte {
	for {
		cn, err := c.await(r, p)
		if cn == nil {
			if p.cmd == mpush.CmdAck && err != nil {
				c.cfg.Logger.Debug("client: ack was not sent", "id", p.id, "err", err)
			}
			c.settle(p, err)
			return buf
		}
		var n int64
		buf, n, err = cn.writeCall(buf, p)
		switch {
		case err == nil && !p.waits:
			c.settle(p, nil)
			return buf
		case err == nil:
			return buf
		case n > 0 && !p.again:
			c.settle(p, uncertain(err))
			return buf
		}
	}
}

// await is the connection that p goes to. nil: p is over, with that error.
func (c *Client) await(r *run, p *call) (*conn, error) {
	var timer *time.Timer
	for {
		c.mu.Lock()
		cn, changed, over := c.conn, c.changed, p.over
		c.mu.Unlock()
		switch {
		case r.ctx.Err() != nil:
			return nil, ErrStopped
		case over || p.only != nil && p.only != cn:
			return nil, nil
		case p.only == nil && !time.Now().Before(p.until):
			return nil, fmt.Errorf("%w: it waited for %v", ErrTimeout, writeTimeout)
		case cn != nil && cn.why() == nil:
			return cn, nil
		}
		if timer == nil {
			timer = time.NewTimer(time.Until(p.until))
			defer timer.Stop()
		}
		select {
		case <-changed:
		case <-p.done:
		case <-r.ctx.Done():
		case <-timer.C:
			return nil, fmt.Errorf("%w: there was no connection for %v", ErrTimeout, writeTimeout)
		}
	}
}

// writeCall encodes p under the connection's session, into buf, and writes it.
// n tells whether any byte of it was written. An error has ended the
// connection.
func (cn *conn) writeCall(buf []byte, p *call) (_ []byte, n int64, err error) {
	c := cn.c
	cn.writing.Lock()
	defer cn.writing.Unlock()
	if cn.dead {
		return buf, 0, cn.why()
	}
	// The answer may be here before the write returns, so p is on its way first.
	c.mu.Lock()
	if p.over {
		c.mu.Unlock()
		return buf, 0, nil
	}
	p.on = cn
	c.mu.Unlock()

	before := cn.raw.written.Load()
	if p.pong {
		err = cn.ws.WriteControl(websocket.PongMessage, p.body, time.Now().Add(writeTimeout))
	} else {
		buf = cn.appendCall(buf[:0], p)
		err = cn.writeBytes(buf)
	}
	n = cn.raw.written.Load() - before
	if err != nil {
		cn.fail(fmt.Errorf("client: write: %w", err))
		if n == 0 {
			c.mu.Lock()
			p.on = nil
			c.mu.Unlock()
		}
		return buf, n, cn.why()
	}
	cn.mu.Lock()
	cn.wrote = time.Now()
	if cn.bindCall == p && cn.reason == nil {
		cn.binding = time.AfterFunc(bindTimeout, func() { cn.bindLate(p) })
	}
	cn.mu.Unlock()
	return buf, n, nil
}

// why is the reason for which the connection ended. nil: it has not.
func (cn *conn) why() error {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	return cn.reason
}

// writeBytes writes all of b within the time that a write has.
func (cn *conn) writeBytes(b []byte) error {
	deadline := time.Now().Add(writeTimeout)
	if cn.ws != nil {
		cn.ws.SetWriteDeadline(deadline)
		return cn.ws.WriteMessage(websocket.BinaryMessage, b)
	}
	cn.nc.SetWriteDeadline(deadline)
	_, err := cn.nc.Write(b)
	return err
}

// appendCall appends a packet as it is on the wire.
func (cn *conn) appendCall(dst []byte, p *call) []byte {
	if p.cmd == mpush.CmdHeartbeat {
		return append(dst, mpush.Beat)
	}
	body, flags := p.body, p.flags
	if over := cn.c.cfg.CompressOver; over >= 0 && len(body) > over {
		if packed := mpush.AppendDeflate(nil, body); len(packed) < len(body) {
			body, flags = packed, flags|mpush.FlagCompress
		}
	}
	if len(body) == 0 || cn.c.key == nil { // an empty body is never encrypted
		return mpush.AppendPacket(dst, p.cmd, flags, p.id, body)
	}
	dst = mpush.AppendHeader(dst, mpush.Header{
		Len: int32(mpush.SealedLen(len(body))), Cmd: p.cmd, Flags: flags | mpush.FlagCrypto, ID: p.id,
	})
	return cn.cipher.Append(dst, body)
}

package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/embedpush/push/internal/mpush"
)

// AckModel says which proof of arrival a push of this client asks for.
type AckModel uint8

const (
	NoAck   AckModel = iota // none
	AutoAck                 // the server acknowledges that it has the push
	BizAck                  // the program behind the server acknowledges it
)

// Push sends content to the server's program. With NoAck it returns when the
// content is written, otherwise when the server has acknowledged it: a refusal
// has no packet, so give ctx an end. content is copied; it has at most
// Config.MaxMessage bytes, and no more than the server takes: 64 KiB for an
// Engine, 10 KiB for a Java server as they come.
func (c *Client) Push(ctx context.Context, content []byte, ack AckModel) error {
	if err := c.checkSize(content); err != nil {
		return err
	}
	p := &call{cmd: mpush.CmdPush, body: bytes.Clone(content)} // it may be written after ctx has ended
	switch ack {
	case NoAck:
	case AutoAck:
		p.flags, p.waits = mpush.FlagAutoAck, true
	case BizAck:
		p.flags, p.waits = mpush.FlagBizAck, true
	default:
		return fmt.Errorf("client: AckModel %d, want NoAck, AutoAck or BizAck", ack)
	}
	return c.send(ctx, p)
}

func (c *Client) checkSize(body []byte) error {
	if len(body) > c.cfg.MaxMessage {
		return fmt.Errorf("client: a body of %d bytes, want %d at most", len(body), c.cfg.MaxMessage)
	}
	return nil
}

// Ack acknowledges the push that OnReceivePush got with this message id. It
// returns when the acknowledgement is written. An id of 0, which is that of
// pushes that want none, is nothing to do.
func (c *Client) Ack(ctx context.Context, messageID int32) error {
	if messageID == 0 {
		return nil
	}
	return c.send(ctx, &call{cmd: mpush.CmdAck, id: messageID, again: true})
}

// login is a user to be bound.
type login struct {
	user, token, tags string

	done  chan struct{} // closed when the first answer is there, or will not come
	over  bool          // guarded by Client.mu: done is closed
	err   error         // static once done is closed
	call  *call         // guarded by Client.mu: its BIND on the present connection; nil: none
	bound bool          // guarded by Client.mu: that was answered with OK
}

// errRebind ends a connection on which a Java server would answer the BIND with
// OK and do nothing.
var errRebind = errors.New("client: the user was kicked here and is bound on the next connection")

func newLogin(user, token, tags string) *login {
	return &login{user: user, token: token, tags: tags, done: make(chan struct{})}
}

func (l *login) settleLocked(err error) {
	if !l.over {
		l.over, l.err = true, err
		close(l.done)
	}
}

func (l *login) sentLocked() bool { return l.call != nil && l.call.on != nil }

func (l *login) unbind() []byte { return (&mpush.Bind{UserID: l.user}).Append(nil) }

// Bind makes userID the user of the client, in place of the one before: on
// this connection and on all that follow, until the server refuses it, Unbind,
// or a kick. It returns when the server has answered, or after 10 s without a
// connection. After an error other than an *Error, ErrSuperseded and ErrKicked
// the client still means to bind it, and OnBind tells how that went. token and
// tags are as in Config. A user who was kicked on this connection is bound on
// the next one, for which this one is ended. A client that is not started takes
// note of the user and returns nil.
func (c *Client) Bind(ctx context.Context, userID, token string, tags ...string) error {
	if userID == "" {
		return errors.New("client: Bind needs a user")
	}
	joined, err := joinTags(token, tags)
	if err != nil {
		return fmt.Errorf("client: tags: %w", err)
	}
	l := newLogin(userID, token, joined)
	c.mu.Lock()
	if c.login != nil {
		c.login.settleLocked(ErrSuperseded)
	}
	c.login = l
	r, cn := c.run, c.conn
	if cn != nil && cn.kickedUser == userID {
		err = errRebind
	} else if r != nil && cn != nil {
		err = c.queueLocked(c.bindCallLocked(l, cn))
	}
	c.mu.Unlock()
	if r == nil {
		return nil
	}
	if cn != nil {
		c.cfg.Logger.Debug("client: do bind user", "user", cut(l.user))
	}
	if err != nil {
		cn.fail(err)
	}
	timer := time.NewTimer(writeTimeout)
	defer timer.Stop()
	for late := timer.C; ; late = nil {
		select {
		case <-l.done:
			return l.err
		case <-ctx.Done():
			return c.leaveLogin(l, ctx.Err())
		case <-r.ctx.Done():
			<-r.over // who wrote the BIND has settled it
			return c.leaveLogin(l, ErrStopped)
		case <-late:
			c.mu.Lock()
			waiting := !l.sentLocked()
			c.mu.Unlock()
			if waiting {
				return c.leaveLogin(l, fmt.Errorf("%w: there was no connection for %v", ErrTimeout, writeTimeout))
			}
		}
	}
}

func (c *Client) leaveLogin(l *login, why error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case l.over:
		return l.err
	case l.sentLocked():
		return uncertain(why)
	}
	return why
}

// bindCallLocked makes the BIND of l for one connection. Client.mu is held.
func (c *Client) bindCallLocked(l *login, cn *conn) *call {
	body := mpush.Bind{UserID: l.user, Data: l.token, Tags: l.tags}
	p := c.newCallLocked(&call{cmd: mpush.CmdBind, body: body.Append(nil), until: time.Now().Add(writeTimeout), only: cn, waits: true})
	p.answered = func(err error) error { return c.bound(cn, l, p, err) }
	l.call, l.bound = p, false
	cn.awaitBind(p)
	return p
}

// awaitBind makes p the BIND whose answer the connection needs, from when it is
// written. nil: it needs none.
func (cn *conn) awaitBind(p *call) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.binding != nil {
		cn.binding.Stop()
		cn.binding = nil
	}
	cn.bindCall, cn.repeated = p, false
}

// stopAwaiting is the end of p, if that is the one.
func (cn *conn) stopAwaiting(p *call) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.bindCall == p {
		cn.bindCall = nil // its timer finds that out
	}
}

// bindLate asks once more if the BIND p is not answered, and then gives the
// connection up.
func (cn *conn) bindLate(p *call) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	switch {
	case cn.bindCall != p || cn.reason != nil:
	case cn.stalled: // the answer may be among what is not read yet
		cn.binding.Reset(bindTimeout)
	case !cn.repeated:
		cn.repeated = true
		select { // in front of an UNBIND, which stops the waiting before it is queued
		case cn.c.logins <- &call{cmd: p.cmd, id: p.id, body: p.body, only: cn}: // p gets the answer
		default:
		}
		cn.binding.Reset(bindTimeout)
	default:
		cn.failLocked(fmt.Errorf("%w: no answer to two binds within %v each", ErrSilent, bindTimeout))
	}
}

// bound is told the answer to the BIND p of l.
func (c *Client) bound(cn *conn, l *login, p *call, err error) error {
	cn.stopAwaiting(p)
	if unreadable(err) {
		return fmt.Errorf("%w: %w", ErrProtocol, err) // it could not read the BIND: that says nothing of the user
	}
	c.mu.Lock()
	current := c.login == l
	if l.bound = err == nil; !l.bound && current {
		c.login = nil
	}
	l.settleLocked(err)
	c.mu.Unlock()
	if !current {
		return nil
	}
	var refusal *Error
	if errors.As(err, &refusal) {
		c.cfg.Logger.Warn("client: bind refused", "user", cut(l.user), "err", err)
	} else {
		c.cfg.Logger.Debug("client: bind answered", "user", cut(l.user))
	}
	cn.tell(0, func() {
		c.setRefusal(refusal)
		if hook := c.cfg.OnBind; hook != nil {
			hook(c, err == nil, l.user)
		}
	})
	return nil
}

// Unbind logs the user out: no connection binds it any more. It returns when
// the server has answered; without a connection, at once. The server is told
// also when ctx has ended. ErrNoUser: there is no user.
func (c *Client) Unbind(ctx context.Context) error {
	c.mu.Lock()
	l, cn := c.login, c.conn
	if l == nil {
		c.mu.Unlock()
		return ErrNoUser
	}
	c.login = nil
	l.settleLocked(ErrSuperseded)
	if cn == nil {
		c.mu.Unlock()
		c.neverBound(l)
		return nil
	}
	cn.awaitBind(nil)
	p := c.newCallLocked(&call{cmd: mpush.CmdUnbind, body: l.unbind(), until: time.Now().Add(writeTimeout), only: cn, waits: true, keeps: true})
	p.answered = func(err error) error {
		var refusal *Error
		errors.As(err, &refusal)
		cn.tell(0, func() { c.unbound(l, refusal) })
		return nil
	}
	err := c.queueLocked(p)
	c.mu.Unlock()
	c.cfg.Logger.Debug("client: do unbind user", "user", cut(l.user))
	if err != nil {
		cn.fail(err) // which logs the user out, too
		return err
	}
	err = c.wait(ctx, cn.r, p)
	c.mu.Lock()
	ended := err == nil && p.on == nil
	c.mu.Unlock()
	if ended { // the connection, before the UNBIND was written
		c.neverBound(l)
	}
	return err
}

// neverBound tells that there was nobody to ask for the end of l.
func (c *Client) neverBound(l *login) {
	c.hooks.Always(func() {
		c.guard(nil, func() { c.unbound(l, nil) })
	}, (*hookStarter)(c))
}

func (c *Client) unbound(l *login, refusal *Error) {
	c.setRefusal(refusal)
	if hook := c.cfg.OnUnbind; hook != nil {
		hook(c, refusal == nil, l.user)
	}
}

// unreadable reports whether the server could not read the request.
func unreadable(err error) bool {
	e := (*Error)(nil)
	return errors.As(err, &e) && e.Code == int(mpush.CodeHandler)
}

// answer gives a request its answer. One that nobody asked for means nothing.
func (cn *conn) answer(id callID, reply *mpush.ProxyResponse, err error) error {
	c := cn.c
	c.mu.Lock()
	p := c.calls[id]
	if p == nil || p.on != cn {
		c.mu.Unlock()
		c.cfg.Logger.Debug("client: answer to nothing", "request", commandName(id.cmd), "id", id.id)
		return nil
	}
	p.reply = reply
	c.settleLocked(p, err)
	c.mu.Unlock()
	cn.misread = cn.misread || unreadable(err)
	if p.answered != nil {
		return p.answered(err)
	}
	return nil
}

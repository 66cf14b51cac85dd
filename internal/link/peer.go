package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/embedpush/push/internal/directory"
)

const (
	firstPause = 100 * time.Millisecond // before a link is dialled again: doubled each time …
	longPause  = 5 * time.Second        // … up to this, from the start after a link has worked …
	worked     = 10 * time.Second       // … for so long

	sendTime   = time.Second      // how long Send waits
	byeTime    = time.Second      // how long a peer has to hang up after BYE
	deltaBytes = 16 << 10         // of one delta
	complainAt = 10 * time.Second // a node cannot be dialled for so long: a warning
)

// Peer is a run to which this node keeps a link. Its methods may be called by
// any goroutine.
type Peer struct {
	// Static.
	m      *Mesh
	origin directory.Origin
	wake   chan struct{} // holds one, never closed: the writer has something to do
	again  chan struct{} // holds one, never closed: dial now
	ctx    context.Context
	stop   context.CancelFunc // cuts the link and ends run
	over   chan struct{}      // closed by run

	mu      sync.Mutex // guards what follows; a leaf
	addr    string
	state   state
	taken   bool               // something was, in the state dialling
	dialing context.CancelFunc // of the attempt under way; nil: none
	link    *out               // that works; nil: none
	queue   []byte             // whole frames, taken and not yet given to the writer
	bytes   int                // unsent, in queue and at the writer
	count   int                // … messages
	room    chan struct{}      // closed when some of it was sent; nil: nobody waits
	resting bool               // the writer waits for wake
	needed  bool               // the peer has said NEED …
	need    uint64             // … with this
	bye     byte               // the reason to say BYE when all is sent; 0: none
}

// state is what becomes of a message.
type state uint8

const (
	dialling state = iota // for the first time: taken, it waits
	down                  // not taken
	working               // taken
	ended                 // not taken, and never will be
)

func (m *Mesh) newPeer(o directory.Origin, addr string) *Peer {
	p := &Peer{m: m, origin: o, addr: addr, wake: make(chan struct{}, 1), again: make(chan struct{}, 1), over: make(chan struct{})}
	p.ctx, p.stop = context.WithCancel(m.cut)
	return p
}

// Origin is the run.
func (p *Peer) Origin() directory.Origin { return p.origin }

// Addr is where it is dialled.
func (p *Peer) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// Up tells whether the link works now.
func (p *Peer) Up() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == working
}

// Offer sends a message, its kind, from FirstKind on, and its body, behind all
// that were taken before. The bytes are copied. nil: it was taken, which says
// nothing about its arrival. ErrFull: QueueBytes or QueueMessages are unsent; a
// message that is larger than the queue goes into an empty one. ErrDown: there
// is no link now. While the first dial of a Peer is under way messages are taken
// and wait; after a break none is taken until the link works again.
func (p *Peer) Offer(message []byte) error {
	err := p.offer(message, nil)
	if err == ErrFull {
		p.m.n.Full.Add(1)
	}
	return err
}

// Send is Offer, but it waits for room, until ctx ends or for one second.
func (p *Peer) Send(ctx context.Context, message []byte) error {
	var room chan struct{}
	err := p.offer(message, &room)
	if err != ErrFull {
		return err
	}
	t := time.NewTimer(sendTime)
	defer t.Stop()
	for err == ErrFull {
		select {
		case <-room:
			err = p.offer(message, &room)
			continue
		case <-t.C:
		case <-ctx.Done():
		}
		p.m.n.Full.Add(1)
		return err
	}
	return err
}

// offer takes a message, or tells why not, and if there is no room, and room is
// not nil, what is closed when there may be some.
func (p *Peer) offer(message []byte, room *chan struct{}) error {
	if len(message) == 0 || message[0] < FirstKind {
		panic("link: a message without a kind of its owner's")
	}
	if len(message) > MaxFrame {
		return ErrTooLarge
	}
	size := 4 + len(message)
	p.mu.Lock()
	switch {
	case p.state == down || p.state == ended:
		p.mu.Unlock()
		return ErrDown
	case p.count > 0 && (p.count >= p.m.cfg.QueueMessages || p.bytes+size > p.m.cfg.QueueBytes):
		if room != nil {
			if p.room == nil {
				p.room = make(chan struct{})
			}
			*room = p.room
		}
		p.mu.Unlock()
		return ErrFull
	}
	p.queue = binary.BigEndian.AppendUint32(p.queue, uint32(len(message)))
	p.queue = append(p.queue, message...)
	p.bytes += size
	p.count++
	p.taken = true
	rested := p.resting
	p.resting = false
	p.mu.Unlock()
	if rested {
		poke(p.wake)
	}
	return nil
}

// wakeUp has the writer look what there is to do.
func (p *Peer) wakeUp() {
	p.mu.Lock()
	rested := p.resting
	p.resting = false
	p.mu.Unlock()
	if rested {
		poke(p.wake)
	}
}

// sentLocked notes that messages are gone, and lets who waits for room try when
// half of the queue is free.
func (p *Peer) sentLocked(bytes, count int) {
	p.bytes -= bytes
	p.count -= count
	if p.room != nil && (p.bytes <= p.m.cfg.QueueBytes/2 && p.count <= p.m.cfg.QueueMessages/2) {
		close(p.room)
		p.room = nil
	}
}

// dropLocked gives up what is unsent.
func (p *Peer) dropLocked() {
	p.m.n.Dropped.Add(uint64(p.count))
	p.queue, p.bytes, p.count, p.resting, p.needed, p.taken = nil, 0, 0, false, false, false
	if p.room != nil {
		close(p.room)
		p.room = nil
	}
}

// move sets the address, and if that is another ends what there is at the old
// one and dials.
func (p *Peer) move(addr string) {
	p.mu.Lock()
	if p.addr == addr {
		p.mu.Unlock()
		return
	}
	p.addr = addr
	link, cancel := p.link, p.dialing
	p.mu.Unlock()
	poke(p.again)
	if link != nil {
		link.end(errMoved)
	}
	if cancel != nil {
		cancel()
	}
}

// goodbye ends the Peer: what was taken is sent, then BYE, if there is a link.
func (p *Peer) goodbye(reason byte) {
	p.mu.Lock()
	p.state = ended
	p.bye = reason
	link := p.link
	p.mu.Unlock()
	if link == nil {
		p.stop()
		return
	}
	p.wakeUp()
	if reason == byeDown {
		time.AfterFunc(byeTime, p.stop) // it is probably dead
	}
}

var (
	errMoved = errors.New("it has another address now")
	errBye   = errors.New("it said goodbye")
	errEnded = errors.New("this node ended the link")
	errLater = errors.New("a later run of it is known")
)

// refusal is a WELCOME that is none.
type refusal struct {
	w                  welcome
	minProto, maxProto uint64
}

func (r *refusal) Error() string {
	switch r.w.status {
	case statusOther:
		return fmt.Sprintf("node %q, run %d, answers there", r.w.origin.ID, r.w.origin.Epoch)
	case statusProto:
		return fmt.Sprintf("no common protocol: it speaks %d to %d, this node %d to %d", r.w.min, r.w.max, r.minProto, r.maxProto)
	case statusSameID:
		return "it has this node's id"
	case statusLater:
		return "it knows a later run of this node"
	case statusMany:
		return "it knows too many nodes"
	case statusClosing:
		return "it shuts down"
	}
	return fmt.Sprintf("it refused for a reason that this version does not know, %d", r.w.status)
}

// run keeps the link until the Peer ends.
func (p *Peer) run() {
	defer close(p.over)
	defer p.stop()
	pause := firstPause
	since := time.Now() // of the failures, without a link between
	for p.ctx.Err() == nil {
		l, greeting, err := p.connect()
		if err == nil {
			began := time.Now()
			p.use(l, greeting)
			since = time.Now()
			if since.Sub(began) >= worked {
				pause = firstPause
			}
		} else if p.failed(err, since) {
			break
		}
		if !p.rest(pause - rand.N(pause/3)) {
			break
		}
		pause = min(2*pause, longPause)
	}
	p.mu.Lock()
	lost := p.taken // moved while it was dialled for the first time, and then ended
	p.state = ended
	p.dropLocked()
	p.mu.Unlock()
	if lost {
		p.m.cfg.Handler.Broken(p)
	}
}

// rest waits before the next attempt. false: there is none.
func (p *Peer) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.again:
	case <-p.ctx.Done():
	}
	return p.ctx.Err() == nil
}

// failed does what is to be done after a dial that came to nothing, and tells
// whether it was the last.
func (p *Peer) failed(err error, since time.Time) (last bool) {
	p.mu.Lock()
	moved := errors.Is(err, errMoved)
	lost := p.taken && !moved
	if !moved {
		p.dropLocked()
		if p.state == dialling {
			p.state = down
		}
	}
	addr := p.addr
	p.mu.Unlock()
	m := p.m
	if p.ctx.Err() == nil && !moved {
		m.n.DialFailures.Add(1)
	}
	var r *refusal
	gone := errors.As(err, &r) && r.w.status == statusOther && r.w.origin.ID == p.origin.ID
	if gone {
		m.remove(p)
		m.cfg.Directory.Forget(p.origin)
	}
	if lost {
		m.cfg.Handler.Broken(p)
	}
	if gone {
		m.log(slog.LevelInfo, "", "node's run is over, another answered", "node", p.origin.ID, "addr", addr, "run", p.origin.Epoch, "now", r.w.origin.Epoch)
		m.cfg.Handler.Gone(p.origin)
		return true
	}
	if p.ctx.Err() != nil || moved {
		return false
	}

	level, why := slog.LevelDebug, hint(err)
	switch {
	case r != nil && r.w.status == statusClosing:
	case r != nil && r.w.status == statusSameID:
		level, why = slog.LevelError, "two nodes run under one id, Cluster.Node must be unlike every other's"
	case r != nil && r.w.status == statusOther:
		level, why = slog.LevelWarn, "two nodes advertise one address, or the network leads to another: see Cluster.Advertise"
	case errors.Is(err, errLater):
		level, why = slog.LevelWarn, "two nodes run under one id, or that one's clock went back before it started"
	case r != nil && r.w.status == statusLater:
		level, why = slog.LevelWarn, "two nodes run under one id, or this one's clock went back before it started"
	case r != nil, isHandshake(err), time.Since(since) > complainAt:
		level = slog.LevelWarn
	}
	args := []any{"node", p.origin.ID, "addr", addr, "err", err}
	if why != "" && level > slog.LevelDebug {
		args = append(args, "hint", why)
	}
	m.log(level, p.origin.ID, "no link", args...)
	return false
}

// handshakeError is what went wrong when somebody had answered.
type handshakeError struct{ error }

func (e handshakeError) Unwrap() error { return e.error }

func isHandshake(err error) bool {
	var h handshakeError
	return errors.As(err, &h)
}

// connect dials and introduces this node. It returns an error when the Peer has
// ended meanwhile, and errMoved when it has another address.
func (p *Peer) connect() (l *out, greeting []byte, err error) {
	m := p.m
	ctx, cancel := context.WithTimeout(p.ctx, 2*handshakeTime)
	defer cancel()
	p.mu.Lock()
	addr := p.addr
	p.dialing = cancel
	p.mu.Unlock()

	m.n.Dials.Add(1)
	l, w, err := p.introduce(ctx, addr)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialing = nil
	switch {
	case p.addr != addr:
		err = errMoved
	case p.state == ended && err == nil:
		err = errEnded
	}
	if err != nil {
		if l != nil {
			l.raw.Close()
		}
		return nil, nil, err
	}
	p.state = working
	p.link = l
	return l, w.greeting, nil
}

// introduce is connect without the Peer's state.
func (p *Peer) introduce(ctx context.Context, addr string) (l *out, w welcome, err error) {
	m := p.m
	raw, err := m.dial(ctx, addr, linkByte)
	if err != nil {
		return nil, w, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			raw.Close()
			l = nil
		}
	}()
	conn, err := secure(raw, m.linkTLS, true)
	if err != nil {
		return nil, w, handshakeError{err}
	}
	me := hello{min: m.minProto, max: m.maxProto, from: m.self, to: p.origin, greeting: m.cfg.Greeting}
	if _, err := conn.Write(me.append(nil)); err != nil {
		return nil, w, handshakeError{err}
	}
	r := newReader(conn, &m.n.BytesIn)
	kind, body, err := r.next()
	if err == nil && kind != kindWelcome {
		err = errNoHello
	}
	if err == nil {
		w, err = readWelcome(body)
	}
	if err != nil {
		return nil, w, handshakeError{err}
	}
	switch {
	case w.status != statusOK:
		err = &refusal{w, m.minProto, m.maxProto}
	case w.proto < m.minProto || w.proto > m.maxProto || w.origin != p.origin:
		err = handshakeError{errHello}
	}
	if err != nil {
		return nil, w, err
	}
	// Who answers is as well identified as who dials.
	later, err := m.cfg.Directory.Hello(p.origin, m.cfg.Handler.Member(p.origin), time.Now())
	if later {
		m.redialLater(p.origin)
		err = errLater
	}
	if err != nil {
		return nil, w, err
	}
	_ = raw.SetDeadline(time.Time{})
	r.max, r.silence = MaxFrame, m.cfg.Silence
	l = &out{p: p, m: m, raw: raw, r: r, proto: w.proto, done: make(chan struct{})}
	l.w = writer{conn: conn, count: &m.n.BytesOut, stuck: m.cfg.Silence}
	l.have, l.hash = w.seq, w.hash
	return l, w, nil
}

// use reads the link until it ends.
func (p *Peer) use(l *out, greeting []byte) {
	m := p.m
	defer context.AfterFunc(p.ctx, func() { l.end(errEnded) })()
	m.log(slog.LevelDebug, "", "link up", "node", p.origin.ID, "addr", l.raw.RemoteAddr(), "proto", l.proto)
	m.cfg.Handler.Linked(p, greeting)
	written := make(chan struct{})
	go func() {
		defer close(written)
		l.write()
	}()
	l.end(l.read())
	<-written

	p.mu.Lock()
	p.link = nil
	if p.state == ended {
		p.stop()
	} else {
		p.state = down
	}
	p.dropLocked()
	addr := p.addr
	p.mu.Unlock()
	m.cfg.Handler.Broken(p)
	m.told(l.err, p.origin, addr)
}

package link

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/embedpush/push/internal/directory"
)

// out is a link that this node dialled and that works.
type out struct {
	// Static.
	p     *Peer
	m     *Mesh
	raw   net.Conn
	proto uint64
	done  chan struct{} // closed by end
	once  sync.Once
	err   error // why it ended; static once done is closed

	r *reader // run's

	// The writer's.
	w          writer
	have, hash uint64 // of the WELCOME
	batch      []byte // whole frames
	at         int    // up to here they are sent
	buf        []byte
	cursor     uint64 // of the history, what the peer was sent
	target     uint64 // … and is to be sent now
	snap       *directory.Snapshot
}

// end ends the link, for the first reason that is told.
func (l *out) end(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.done)
		l.raw.Close()
	})
}

// told counts and tells why a link has ended.
func (m *Mesh) told(err error, o directory.Origin, addr any) {
	level := slog.LevelWarn
	switch {
	case errors.Is(err, errSilent):
		m.n.LinksSilent.Add(1)
	case errors.Is(err, errStuck):
		m.n.LinksStuck.Add(1)
	case errors.Is(err, errBye), errors.Is(err, errEnded), errors.Is(err, errMoved), errors.Is(err, errReplaced), errors.Is(err, directory.ErrUnknown):
		level = slog.LevelDebug
	case m.leaves(): // peers hang up when they have heard its goodbye
		level = slog.LevelDebug
	}
	m.log(level, o.ID, "link lost", "node", o.ID, "addr", addr, "err", err)
}

// read reads what the peer sends.
func (l *out) read() error {
	p, m := l.p, l.m
	messages := uint64(0)
	for {
		if messages > 0 && !l.r.ready() {
			m.n.MessagesIn.Add(messages)
			messages = 0
		}
		kind, body, err := l.r.next()
		if err != nil {
			m.n.MessagesIn.Add(messages)
			return err
		}
		if kind >= FirstKind {
			messages++
			m.cfg.Handler.Answer(p, kind, body)
			continue
		}
		switch kind {
		case kindBeat:
			b, ok := readBeat(body)
			if !ok {
				return errFrame
			}
			// Its history comes over the link that it dialled, and so do the
			// beats that are compared with it.
			m.cfg.Handler.Beat(p.origin, b.own)
		case kindNeed:
			have, ok := readNeed(body)
			if !ok {
				return errFrame
			}
			m.n.NeedsTaken.Add(1)
			p.mu.Lock()
			p.needed, p.need = true, have
			p.mu.Unlock()
			p.wakeUp()
		case kindBye:
			return errBye
		case kindBeat2:
			if l.proto < 2 {
				m.n.UnknownFrames.Add(1)
			}
		default:
			m.n.UnknownFrames.Add(1)
		}
	}
}

// write writes until the link ends.
func (l *out) write() {
	beats := time.NewTicker(l.m.cfg.Beats)
	defer beats.Stop()
	l.begin()
	due, busy := true, true // a beat at once; something was sent since the last
	for sent, count := 0, 0; ; {
		p := l.p
		p.mu.Lock()
		p.sentLocked(sent, count)
		sent, count = 0, 0
		if l.at == len(l.batch) {
			l.batch, p.queue, l.at = p.queue, l.batch[:0], 0
		}
		l.target = max(l.target, l.m.target.Load())
		messages := l.at < len(l.batch)
		history := l.snap != nil || l.cursor < l.target || p.needed
		needed, need := p.needed, p.need
		p.needed = false
		bye := p.bye
		p.resting = !messages && !history && !due && bye == 0
		resting := p.resting
		p.mu.Unlock()

		if resting {
			select {
			case <-p.wake:
				runtime.Gosched() // who is about to offer something does it first: one write takes more
			case <-beats.C:
				due = true
			case <-l.done:
				return
			}
			continue
		}
		select {
		case <-beats.C:
			due = true
		case <-l.done:
			return
		default:
		}

		var err error
		if due {
			err = l.w.write(l.m.appendBeat(l.buf[:0], l.proto))
			if !busy {
				l.shrink()
			}
			due, busy = false, false
		}
		if err == nil && messages {
			busy = true
			sent, count = cut(l.batch[l.at:])
			err = l.w.write(l.batch[l.at : l.at+sent])
			l.at += sent
			l.m.n.MessagesOut.Add(uint64(count))
		}
		if needed {
			l.setCursor(need)
		}
		if err == nil && history {
			busy = true
			l.buf = l.appendHistory(l.buf[:0])
			err = l.w.write(l.buf)
		}
		if err == nil && bye != 0 && !messages {
			err = l.w.write(AppendMessage(l.buf[:0], kindBye, []byte{bye}))
			if err == nil {
				t := time.AfterFunc(byeTime, func() { l.end(errEnded) })
				<-l.done // the peer hangs up
				t.Stop()
				return
			}
		}
		if err != nil {
			l.end(err)
			return
		}
	}
}

// begin finds out from where the peer is to be sent the history.
func (l *out) begin() {
	d := l.m.cfg.Directory
	l.target, _, _ = d.Position()
	if d.Resume(l.have, l.hash) {
		l.cursor = l.have
	} else {
		l.snapshot()
	}
}

func (l *out) snapshot() {
	l.m.n.SnapshotsSent.Add(1)
	l.snap = l.m.cfg.Directory.Snapshot()
}

// setCursor does what a NEED says. Under a snapshot it says nothing that the
// snapshot does not bring.
func (l *out) setCursor(have uint64) {
	seq, _, _ := l.m.cfg.Directory.Position()
	switch {
	case l.snap != nil:
	case have == 0, have > seq:
		l.snapshot()
	default:
		l.cursor, l.target = have, seq
	}
}

// appendHistory appends a part of a snapshot or a delta.
func (l *out) appendHistory(dst []byte) []byte {
	d := l.m.cfg.Directory
	if l.snap == nil {
		dst, mark := Begin(dst, kindDelta)
		frame, last, ok := d.AppendDelta(dst, l.cursor, deltaBytes)
		if ok && last == l.cursor {
			l.target = l.cursor
			return dst[:mark]
		}
		if ok {
			l.cursor = last
			l.m.n.DeltasSent.Add(1)
			return End(frame, mark)
		}
		l.snapshot()
	}
	dst, mark := Begin(dst, kindSnap)
	frame, seq, done := l.snap.Next(dst)
	if done {
		l.snap, l.cursor = nil, seq
	}
	return End(frame, mark)
}

// shrink frees what a link needs that has something to do.
func (l *out) shrink() {
	if cap(l.buf) > chunk {
		l.buf = nil
	}
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if l.at == len(l.batch) && cap(l.batch) > chunk {
		l.batch, l.at = nil, 0
	}
	if len(l.p.queue) == 0 && cap(l.p.queue) > chunk {
		l.p.queue = nil
	}
}

// appendBeat appends what is told each few seconds.
func (m *Mesh) appendBeat(dst []byte, proto uint64) []byte {
	dst, mark := Begin(dst, kindBeat)
	seq, hash, clock := m.cfg.Directory.Position()
	dst = binary.BigEndian.AppendUint64(dst, seq)
	dst = binary.BigEndian.AppendUint64(dst, hash)
	dst = binary.BigEndian.AppendUint64(dst, uint64(clock))
	dst = append(dst, 0, 0)
	own := len(dst)
	if m.cfg.Beat != nil {
		dst = m.cfg.Beat(dst)
		if len(dst)-own > MaxBeat {
			m.log(slog.LevelError, "", "too much told with a beat", "bytes", len(dst)-own)
			dst = dst[:own]
		}
	}
	binary.BigEndian.PutUint16(dst[own-2:], uint16(len(dst)-own))
	dst = End(dst, mark)
	if proto >= 2 {
		dst = AppendMessage(dst, kindBeat2, nil)
	}
	return dst
}

package members

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls. Joins, leaves and updates come with its
// lock held, so these methods only set state and post to the log.
type delegate struct{ *List }

// NodeMeta implements memberlist.Delegate.
func (d delegate) NodeMeta(limit int) []byte {
	return packMeta(Member{Origin: d.cfg.Self, Draining: d.draining.Load(), Extra: d.cfg.Extra})
}

// NotifyMsg implements memberlist.Delegate. Kinds of messages that this
// version does not know are passed over.
func (d delegate) NotifyMsg(b []byte) {
	o, err := unpackBye(b)
	if err != nil || o == d.cfg.Self {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.peers[o]; p != nil && !p.gone {
		p.gone = true
		d.log.Post(slog.LevelInfo, "", "node left", "node", p.ID, "addr", p.Addr)
		d.noteLocked(change{Member: p.Member, goodbye: true})
	}
}

// GetBroadcasts implements memberlist.Delegate: nothing is spread this way.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte { return nil }

// LocalState implements memberlist.Delegate. No lock is held.
func (d delegate) LocalState(join bool) []byte {
	if d.cfg.Digest == nil || d.ctx.Err() != nil {
		return nil
	}
	b := d.cfg.Digest(nil)
	if len(b) > MaxDigest {
		d.log.Post(slog.LevelWarn, "", "digest too large, not sent", "bytes", len(b), "limit", MaxDigest)
		return nil
	}
	return b
}

// MergeRemoteState implements memberlist.Delegate. No lock is held; memberlist
// made b for this call.
func (d delegate) MergeRemoteState(b []byte, join bool) {
	if d.cfg.Merge == nil || d.ctx.Err() != nil || len(b) == 0 {
		return
	}
	if len(b) > MaxDigest {
		d.log.Post(slog.LevelWarn, "", "digest too large, not read", "bytes", len(b), "limit", MaxDigest)
		return
	}
	d.cfg.Merge(b)
}

// AckPayload implements memberlist.PingDelegate.
func (d delegate) AckPayload() []byte { return nil }

// NotifyPingComplete implements memberlist.PingDelegate: UDP works, there and
// back.
func (d delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	if o, err := parseName(n.Name); err == nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		if p := d.peers[o]; p != nil {
			p.noUDP = 0
		}
	}
}

// NotifyAlive implements memberlist.AliveDelegate: only a node that this one
// understands becomes a member.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	m, err := readMember(n)
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err == nil && d.peers[m.Origin] == nil && len(d.peers) >= maxNodes {
		err = fmt.Errorf("there are %d nodes already", maxNodes)
	}
	if err == nil && d.insecure && !m.Addr.Addr().IsLoopback() {
		err = errors.New("it is not on loopback, and there is no secret")
	}
	if err != nil {
		d.log.Post(slog.LevelWarn, n.Name, "node ignored", "name", n.Name, "addr", n.Address(), "err", err)
	}
	return err
}

// readMember reads what a node says about itself.
func readMember(n *memberlist.Node) (Member, error) {
	m, err := unpackMeta(n.Meta)
	if err != nil {
		return m, err
	}
	if !ValidID(m.ID) || m.Epoch > maxEpoch || runName(m.Origin) != n.Name {
		return m, errors.New("its name and its metadata differ")
	}
	ip, ok := netip.AddrFromSlice(n.Addr)
	if !ok || n.Port == 0 {
		return m, errors.New("its address is none")
	}
	m.Addr = netip.AddrPortFrom(ip.Unmap(), n.Port)
	return m, nil
}

// NotifyJoin and NotifyUpdate implement memberlist.EventDelegate.
func (d delegate) NotifyJoin(n *memberlist.Node)   { d.set(n, true) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.set(n, false) }

func (d delegate) set(n *memberlist.Node, joined bool) {
	m, err := readMember(n)
	if err != nil {
		return // NotifyAlive let no such node in
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return // who leaves need not know
	}
	p := d.peers[m.Origin]
	if p == nil {
		p = new(peer)
		d.peers[m.Origin] = p
	}
	drained := m.Draining && !p.Draining
	p.Member = m
	if joined {
		p.gone = false
		delete(d.lost, m.ID)
		if d.twinLocked(p) != nil {
			time.AfterFunc(conflictAfter, func() { d.checkTwin(p) })
		}
	}
	if m.Origin == d.cfg.Self {
		return
	}
	if m.ID != d.cfg.Self.ID { // an earlier run of this node, which is not known to be gone yet, has nothing to tell
		d.met.Store(true)
	}
	switch {
	case joined:
		d.log.Post(slog.LevelInfo, "", "node up", "node", m.ID, "addr", m.Addr)
	case drained:
		d.log.Post(slog.LevelInfo, "", "node draining", "node", m.ID, "addr", m.Addr)
	}
	if !p.gone {
		d.noteLocked(change{Member: m, there: true})
	}
}

// NotifyLeave implements memberlist.EventDelegate: the node died, or left,
// which look the same here.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	o, err := parseName(n.Name)
	if err != nil || o == d.cfg.Self {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[o]
	if p == nil {
		return
	}
	delete(d.peers, o)
	if p.gone {
		return // told
	}
	d.log.Post(slog.LevelInfo, "", "node gone", "node", p.ID, "addr", p.Addr, "draining", p.Draining)
	d.noteLocked(change{Member: p.Member})
	if p.Draining {
		return // it meant to go; if it is only cut off, it looks for us
	}
	for _, q := range d.peers {
		if q.ID == p.ID {
			return // it runs anew
		}
	}
	d.loseLocked(p.ID, p.Addr)
}

// NotifyConflict implements memberlist.ConflictDelegate: two runs of one id
// even started in the same millisecond.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.log.Post(slog.LevelError, other.Name, twoOfOneID, "node", other.Name, "older", existing.Address(), "newer", other.Address())
}

const twoOfOneID = "two nodes run under one id, Cluster.Node must be unlike every other's"

// twinLocked finds another run of the same node id at another address: the
// node moved and the old run is not noticed dead yet, or they are two.
func (l *List) twinLocked(p *peer) *peer {
	for _, q := range l.peers {
		if q.ID == p.ID && q != p && !p.gone && !q.gone && q.Addr != p.Addr {
			return q
		}
	}
	return nil
}

// checkTwin tells of a node that has a twin still, conflictAfter it joined.
func (l *List) checkTwin(newer *peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	older := l.twinLocked(newer)
	if older == nil || l.peers[newer.Origin] != newer || l.ctx.Err() != nil {
		return
	}
	if newer.Epoch < older.Epoch {
		older, newer = newer, older
	}
	l.log.Post(slog.LevelError, runName(newer.Origin), twoOfOneID,
		"node", newer.ID, "self", newer.ID == l.cfg.Self.ID, "older", older.Addr, "newer", newer.Addr)
}

package link

import "sync/atomic"

// Stats are the counts since New, and how many there are now of some things.
type Stats struct {
	// Now.
	Peers     int // that Up named and Down did not
	LinksOut  int // that this node dialled, and that work
	LinksIn   int // that peers dialled, and that work
	Unproved  int // streams that came in and have not proved what they are
	Gossip    int // streams that came in and that memberlist has
	RelayConn int // relays, either way

	Dials        uint64
	DialFailures uint64 // no WELCOME came of it

	SnapshotsSent  uint64 // begun
	SnapshotsTaken uint64 // begun
	DeltasSent     uint64
	DeltasTaken    uint64
	NeedsSent      uint64 // something was missing here
	NeedsTaken     uint64 // … or at a peer
	Diverged       uint64 // the same seq and something else: a bug here or there

	BytesIn     uint64 // of links, without what TLS adds
	BytesOut    uint64
	MessagesIn  uint64 // requests and answers
	MessagesOut uint64
	Full        uint64 // times Offer or Send said ErrFull
	Dropped     uint64 // messages that were taken and not sent, or came and were not handled, when the link broke

	UnknownFrames    uint64 // of a later version; skipped
	RefusedHellos    uint64 // by this node
	HandshakesFailed uint64 // streams that came in and proved nothing
	StreamsRefused   uint64 // streams that came in over a limit, went for a newer one, or are none that a member sends
	PacketsRefused   uint64 // packets that no member sends
	LinksSilent      uint64 // links given up because nothing came
	LinksStuck       uint64 // … and because nothing went
	RelaysIn         uint64
	RelaysDialed     uint64
}

// counters are those of Stats that only grow.
type counters struct {
	Dials, DialFailures                                            atomic.Uint64
	SnapshotsSent, SnapshotsTaken, DeltasSent, DeltasTaken         atomic.Uint64
	NeedsSent, NeedsTaken, Diverged                                atomic.Uint64
	BytesIn, BytesOut, MessagesIn, MessagesOut, Full, Dropped      atomic.Uint64
	UnknownFrames, RefusedHellos, HandshakesFailed, StreamsRefused atomic.Uint64
	LinksSilent, LinksStuck, RelaysIn, RelaysDialed                atomic.Uint64
	PacketsRefused                                                 atomic.Uint64
}

// Stats counts.
func (m *Mesh) Stats() Stats {
	peers := *m.peers.Load()
	s := Stats{
		Peers: len(peers),

		Dials:            m.n.Dials.Load(),
		DialFailures:     m.n.DialFailures.Load(),
		SnapshotsSent:    m.n.SnapshotsSent.Load(),
		SnapshotsTaken:   m.n.SnapshotsTaken.Load(),
		DeltasSent:       m.n.DeltasSent.Load(),
		DeltasTaken:      m.n.DeltasTaken.Load(),
		NeedsSent:        m.n.NeedsSent.Load(),
		NeedsTaken:       m.n.NeedsTaken.Load(),
		Diverged:         m.n.Diverged.Load(),
		BytesIn:          m.n.BytesIn.Load(),
		BytesOut:         m.n.BytesOut.Load(),
		MessagesIn:       m.n.MessagesIn.Load(),
		MessagesOut:      m.n.MessagesOut.Load(),
		Full:             m.n.Full.Load(),
		Dropped:          m.n.Dropped.Load(),
		UnknownFrames:    m.n.UnknownFrames.Load(),
		RefusedHellos:    m.n.RefusedHellos.Load(),
		HandshakesFailed: m.n.HandshakesFailed.Load(),
		StreamsRefused:   m.n.StreamsRefused.Load(),
		PacketsRefused:   m.n.PacketsRefused.Load(),
		LinksSilent:      m.n.LinksSilent.Load(),
		LinksStuck:       m.n.LinksStuck.Load(),
		RelaysIn:         m.n.RelaysIn.Load(),
		RelaysDialed:     m.n.RelaysDialed.Load(),
	}
	s.Unproved, s.Gossip = m.pending.count()
	for _, p := range peers {
		if p.Up() {
			s.LinksOut++
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.RelayConn = len(m.relaying)
	for _, in := range m.ins {
		if !in.ended() {
			s.LinksIn++
		}
	}
	return s
}

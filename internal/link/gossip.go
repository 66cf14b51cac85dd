package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"
)

// What memberlist 0.7 reads with encryption on, of a packet and of a stream:
//
//	label     0xF4, length 1 byte, from 1; the label. It may be missing
//	type      10, of a stream only
//	length    4 bytes, big-endian, of what follows, of a stream only
//	version   1: AES-GCM. 0 is the same with padding, which members do not speak
//	nonce     12 bytes
//	sealed    1 byte at least, and a tag of 16
//
// It reads up to 20 MiB of a stream into memory before it unseals anything, and
// takes any number of streams. It panics for an empty message in a stream, and
// for version 0 with a padding longer than its message.
const (
	labelByte     = 0xF4
	sealedByte    = 10
	sealedVersion = 1
	minSealed     = 1 + 12 + 1 + 16
	maxSealed     = 8 << 20             // a state of more than 10 000 members
	maxGossipHead = 2 + 255 + 1 + 4 + 1 // from label to version

	maxGossip     = 128 // streams that memberlist has
	maxGossipEach = 32  // … of one network

	// What memberlist may read of one stream, and of all that are open. The first
	// bytes of each are free, so that those who hold the rest keep no small state
	// out. memberlist's buffers may be twice as large.
	maxGossipBytes = 24 << 20
	maxGossipHeld  = 32 << 20
	freeBytes      = 64 << 10
)

var (
	errNoMember = errors.New("link: no member sends this")
	errTooMuch  = errors.New("link: too many bytes that nobody has vouched for")
)

// giveToGossip gives a stream to memberlist, with its first bytes. It is counted
// until memberlist closes it. memberlist sets the deadline: TCPTimeout, 10 s, for
// all of it.
func (m *Mesh) giveToGossip(s *stranger, first []byte) {
	if len(m.cfg.Keys) > 0 {
		var err error
		if first, err = readGossipHead(s.Conn, first); errors.Is(err, errNoMember) {
			m.full(s, err.Error())
			return
		} else if err != nil {
			m.saidNothing(s, err)
			return
		}
	}
	const why = "memberlist has too many"
	closed, ok := s.becomes(gossiping)
	if closed != nil {
		m.refused(closed, why)
	}
	if !ok {
		m.full(s, why)
		return
	}
	_ = s.SetDeadline(time.Time{})
	g := &gossipStream{s, m, first}
	select {
	case m.streams <- g:
	case <-m.shut:
		g.Close()
	}
}

// readGossipHead reads the rest of what comes before the nonce and looks whether
// a member may have sent it. What is not sealed memberlist refuses by itself, and
// says what is wrong.
func readGossipHead(r io.Reader, head []byte) ([]byte, error) {
	more := func(n int) error {
		from := len(head)
		head = append(head, make([]byte, n)...)
		_, err := io.ReadFull(r, head[from:])
		return err
	}
	if head[0] == labelByte {
		if err := more(1); err != nil {
			return nil, err
		}
		if head[1] == 0 {
			return nil, fmt.Errorf("%w: an empty label", errNoMember)
		}
		if err := more(int(head[1]) + 1); err != nil {
			return nil, err
		}
	}
	if head[len(head)-1] != sealedByte {
		return head, nil
	}
	if err := more(5); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[len(head)-5:])
	version := head[len(head)-1]
	if n < minSealed || n > maxSealed || version != sealedVersion {
		return nil, fmt.Errorf("%w: %d bytes, sealed in way %d", errNoMember, n, version)
	}
	return head, nil
}

// gossipStream is a stream that memberlist has.
type gossipStream struct {
	*stranger
	m     *Mesh
	first []byte // read already
}

var _ net.Conn = (*gossipStream)(nil)

// Read fails, and the stream is closed, when it or all of them together have
// brought too much.
func (g *gossipStream) Read(b []byte) (int, error) {
	if len(g.first) > 0 {
		n := copy(b, g.first)
		g.first = g.first[n:]
		return n, nil
	}
	n, err := g.Conn.Read(b[:min(len(b), freeBytes)])
	if n > 0 && !g.hold(n) {
		g.m.full(g.stranger, "it has brought too much")
		return 0, errTooMuch
	}
	return n, err
}

// Close ends the counting, and gives back what was read.
func (g *gossipStream) Close() error {
	g.release()
	g.known()
	return g.Conn.Close()
}

// hold counts bytes that memberlist has read, and tells whether it may.
func (s *stranger) hold(n int) bool {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.read += n
	more := s.read - freeBytes - s.held
	if s.over || more <= 0 {
		return true // what is closed, nobody keeps
	}
	if s.read > maxGossipBytes || s.p.held+more > maxGossipHeld {
		return false
	}
	s.held += more
	s.p.held += more
	return true
}

func (s *stranger) release() {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.held -= s.held
	s.held, s.over = 0, true
}

// takePackets passes on the packets that a member may have sent, in their order,
// until the transport is shut down.
func (m *Mesh) takePackets() {
	packets := m.inner.PacketCh()
	for {
		select {
		case p, ok := <-packets:
			if !ok {
				return
			}
			if !membersPacket(p.Buf) {
				m.n.PacketsRefused.Add(1)
				m.log(slog.LevelWarn, "packet", "packet refused, no member sends such", "addr", p.From)
				continue
			}
			select {
			case m.packets <- p:
			case <-m.shut:
				return
			}
		case <-m.shut:
			return
		}
	}
}

// membersPacket tells whether a member may have sent a packet.
func membersPacket(b []byte) bool {
	if len(b) > 1 && b[0] == labelByte {
		b = b[min(len(b), 2+int(b[1])):]
	}
	return len(b) >= minSealed && b[0] == sealedVersion
}

// Package link connects the nodes of a cluster. It shares memberlist's TCP
// port, proves by TLS that a node has the cluster's secret, and keeps one link
// per direction and pair: the dialler's own history of who is where goes over
// it, and its owner's messages, and what the peer answers comes back. It knows
// bytes and peers, a [directory.Origin] each, and not what the messages say.
//
// # The port
//
// Every stream that comes in is one of three, and its first byte tells: 0xC7 a
// link, 0xC8 a relay, anything else memberlist's, which gets it as if nobody had
// looked ([Mesh.Transport]), if it can do no harm: memberlist reads a whole
// message before it knows whether the sender has the secret, so its streams are
// limited in number and bytes. With a secret, streams and packets that no member
// sends, a message over 8 MiB, an empty one or one sealed in an older way, are
// refused. Behind the first byte of a link or a relay comes
// TLS 1.3, each side showing the one certificate that it made for a key derived
// from the secret. No x509 authority and no name is asked: the key is the proof.
//
// # The link
//
// A link is a row of frames:
//
//	length   4 bytes, big-endian, of what follows: 1 to MaxFrame
//	kind     1 byte: below 32 the link's own, from 32 on a message of its owner
//	body     the rest
//
// The dialler says HELLO, the acceptor WELCOME, and nothing else counts before.
// Then the dialler sends its history from where the acceptor says it is (DELTA,
// SNAP), and messages; the acceptor sends answers, and NEED when something is
// missing. Both send BEAT each few seconds, so silence is a fault, and BYE
// before they close.
//
// Each writer has an order: beats and goodbyes, then messages, then deltas, and
// of a snapshot one part at a time, so that a message waits behind at most one
// part of 64 KiB, and no history waits for ever behind messages. A peer that does
// not read costs a bounded queue and, of the history, only a cursor.
//
// # Goroutines and locks
//
// A Mesh has one goroutine that takes streams, one that takes packets if there is
// a secret, and one that gathers what is new in the history; a stream that is not yet known to be anything has one. A
// Peer has one that dials and reads, and a link that is up one that writes. An
// In has one that reads, one that writes and one that works. No lock is held
// while a socket is written or the Handler is called, and no goroutine writes to
// two sockets, so a peer that is dead or slow costs the others nothing.
package link

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/quietlog"
	"github.com/hashicorp/memberlist"
)

const (
	// MaxFrame is how long a frame may be, its first four bytes not counted: a
	// message is its kind and its body.
	MaxFrame = 16 << 20

	// MinProto is the oldest protocol this version speaks.
	MinProto = 1

	// MaxGreeting and MaxBeat are how much an owner tells in HELLO and WELCOME,
	// and with a beat.
	MaxGreeting = 1 << 10
	MaxBeat     = 1 << 10

	// FirstKind is the lowest kind of a message; those below are the link's own.
	FirstKind = 32
)

// What Offer and Send return.
var (
	// ErrDown: there is no link now, and the message was not taken.
	ErrDown = errors.New("link: down")

	// ErrFull: too much is unsent, and the message was not taken.
	ErrFull = errors.New("link: queue full")

	// ErrTooLarge: the message is larger than MaxFrame, and was not taken.
	ErrTooLarge = errors.New("link: message too large")
)

// Config is what a Mesh is made of. The zero value of a field is the default
// that its comment names.
type Config struct {
	Self      directory.Origin     // this run
	Directory *directory.Directory // whose history is told and who merges the others'
	Handler   Handler              // the owner
	Log       *quietlog.Log        // nil: nothing is logged

	// Keys are 32-byte seeds of Ed25519 keys. The first is this node's, all are
	// accepted of others, and memberlist encrypts too, which the Mesh counts on.
	// none: links and relays are neither encrypted nor authenticated, memberlist's
	// framing is not looked at, and the owner has made sure that no other machine
	// reaches them.
	Keys [][]byte

	// Transport carries everything; the Mesh takes its streams. Dials go through
	// its DialAddressTimeout if it is a memberlist.NodeAwareTransport.
	Transport memberlist.Transport

	// Greeting is told every peer in HELLO and WELCOME, at most MaxGreeting
	// bytes. nil: nothing.
	Greeting []byte

	// Beat appends what this node tells with each beat, at most MaxBeat bytes;
	// more are left out, with a word in the log. It is called by the links'
	// writers, calls overlap, and it must not block. nil: nothing.
	Beat func(dst []byte) []byte

	QueueBytes    int           // unsent bytes of a Peer, and unhandled ones of an In; 0: 4 MiB
	QueueMessages int           // … and messages; 0: 8 192
	Flush         time.Duration // how long what is new in the history is gathered; 0: 20 ms
	Beats         time.Duration // between two beats; 0: 3 s
	Silence       time.Duration // after which a link is dead, reading and writing; 0: 10 s
	Proto         int           // the newest protocol to speak; 0: MaxProto

	minProto int // 0: MinProto; for tests
}

// Handler is the owner of a Mesh. No method may block, but Request, which holds
// up that link alone. Calls about different links overlap.
type Handler interface {
	// Member tells whether membership knows a run as alive. Any goroutine.
	Member(o directory.Origin) bool

	// Request is a message over the link that a peer dialled, on that link's
	// worker goroutine: one at a time, in the order in which they were offered.
	// body is the callee's, and shares memory with others: who keeps a part of it
	// for long copies that. While it does not return, the queue fills, then the
	// link is not read, and after 10 s of that the peer gives it up. Close waits
	// for the one that has begun.
	Request(in *In, kind byte, body []byte)

	// Answer is a message that came back over the link that this node dialled,
	// on the goroutine that reads it: one at a time, in order. body is valid
	// during the call only.
	Answer(p *Peer, kind byte, body []byte)

	// Linked says that a link that this node dialled works, with what the peer
	// told of itself, which is the callee's. No Answer comes before it.
	Linked(p *Peer, greeting []byte)

	// Broken says that the link that this node dialled is down: what was taken
	// and not answered is lost, at least for this node. It comes exactly once
	// after each Linked, behind the last Answer, and also when a first dial
	// fails after Offer or Send took something.
	//
	// Who waits for an answer has to be on the list before it calls Offer: the
	// link may break before Offer returns.
	Broken(p *Peer)

	// Ended says that a link that a peer dialled is over. It comes once for each
	// Greeted, on the goroutine of Request, after the last one.
	Ended(in *In)

	// Greeted says that a peer has dialled, with what it told of itself, which is
	// the callee's. No Request comes before it.
	Greeted(o directory.Origin, greeting []byte)

	// Beat is what came with a beat, over either link, on the goroutine that
	// reads it. body is valid during the call only.
	Beat(o directory.Origin, body []byte)

	// News is what came of merging o's history, if there is something Lost or
	// Ahead in it, on the goroutine that reads the link. Need, Have and Diverged
	// are dealt with.
	News(o directory.Origin, n directory.News)

	// Gone says that another run answered in the place of o, so that o is over.
	// The directory has forgotten it, and the Mesh does not dial it any more.
	Gone(o directory.Origin)
}

// Source has answers to send back.
type Source interface {
	// Append appends whole frames (AppendMessage, Begin and End), together of
	// about room bytes: it stops behind the one with which they are more. more:
	// it has further ones and is to be asked again when others had their turn.
	// It is called by the writer of the In, one call at a time, without a lock.
	// One that appends nothing is not asked again before it is Ready.
	Append(dst []byte, room int) (out []byte, more bool)
}

// Mesh is one node's links.
type Mesh struct {
	// Static.
	cfg      Config
	self     directory.Origin
	minProto uint64
	maxProto uint64
	inner    memberlist.Transport
	linkTLS  *tls.Config             // nil: plain
	relayTLS *tls.Config             // nil: plain
	streams  chan net.Conn           // memberlist's; never closed
	packets  chan *memberlist.Packet // … too; never closed; nil: it gets the transport's own
	pending  *pending
	relays   *relays
	n        counters
	news     chan struct{} // holds one, never closed: something is new in the history

	cut      context.Context // when it ends everything is closed
	cutNow   context.CancelFunc
	work     sync.WaitGroup // everything but what port has and dials
	port     sync.WaitGroup // what takes and classifies streams, and takes packets
	shut     chan struct{}  // closed by the transport's Shutdown
	shutting sync.Once
	shutErr  error
	closing  sync.Once

	fresh  atomic.Bool                                // news has been told
	target atomic.Uint64                              // up to where the history is to be sent now
	peers  atomic.Pointer[map[directory.Origin]*Peer] // replaced under mu, never changed

	mu       sync.Mutex               // guards what follows; a leaf
	ins      map[directory.Origin]*In // the last one of each peer, until its worker has ended
	relaying map[*relay]struct{}
	ending   bool // Close was called: nothing new is let in
	closed   bool // … and everything was cut: no goroutine begins
}

// New starts a Mesh on a transport, whose streams it takes from now on.
func New(cfg Config) *Mesh {
	if len(cfg.Greeting) > MaxGreeting {
		panic(fmt.Sprintf("link: a greeting of %d bytes", len(cfg.Greeting)))
	}
	cfg.QueueBytes = cmp.Or(cfg.QueueBytes, 4<<20)
	cfg.QueueMessages = cmp.Or(cfg.QueueMessages, 8192)
	cfg.Flush = cmp.Or(cfg.Flush, 20*time.Millisecond)
	cfg.Beats = cmp.Or(cfg.Beats, 3*time.Second)
	cfg.Silence = cmp.Or(cfg.Silence, 10*time.Second)
	id := newIdentity(cfg.Keys)
	m := &Mesh{
		cfg:      cfg,
		self:     cfg.Self,
		minProto: uint64(cmp.Or(cfg.minProto, MinProto)),
		maxProto: uint64(cmp.Or(cfg.Proto, MaxProto)),
		inner:    cfg.Transport,
		linkTLS:  id.config(linkALPN),
		relayTLS: id.config(relayALPN),
		streams:  make(chan net.Conn),
		pending:  newPending(),
		news:     make(chan struct{}, 1),
		shut:     make(chan struct{}),
		ins:      make(map[directory.Origin]*In),
		relaying: make(map[*relay]struct{}),
	}
	m.relays = &relays{m: m, conns: make(chan net.Conn, maxAccepted), done: make(chan struct{})}
	m.cut, m.cutNow = context.WithCancel(context.Background())
	m.peers.Store(&map[directory.Origin]*Peer{})
	m.port.Go(m.takeStreams)
	if len(cfg.Keys) > 0 {
		m.packets = make(chan *memberlist.Packet)
		m.port.Go(m.takePackets)
	}
	m.work.Go(m.gather)
	return m
}

// Transport is what memberlist gets: the transport of Config without the
// streams that are links and relays, and without what no member sends. Its
// Shutdown shuts that down.
func (m *Mesh) Transport() memberlist.Transport { return transport{m} }

// Up keeps a link to a run at an address, from now on and until Down; it dials
// at once. For a run that has one, another address means to dial anew there.
// It never blocks.
func (m *Mesh) Up(o directory.Origin, addr string) {
	m.mu.Lock()
	old := *m.peers.Load()
	p := old[o]
	if p == nil && !m.ending && o != m.self {
		peers := maps.Clone(old)
		peers[o] = m.newPeer(o, addr)
		m.work.Go(peers[o].run)
		m.peers.Store(&peers)
	}
	m.mu.Unlock()
	if p != nil {
		p.move(addr)
	}
}

// Down ends the link to a run. It never blocks.
func (m *Mesh) Down(o directory.Origin) {
	if p := m.Peer(o); p != nil {
		m.remove(p)
		p.goodbye(byeDown)
	}
}

// remove takes a Peer away, if it is still there.
func (m *Mesh) remove(p *Peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := *m.peers.Load(); old[p.origin] == p {
		peers := maps.Clone(old)
		delete(peers, p.origin)
		m.peers.Store(&peers)
	}
}

// Redial dials a run now, if there is no link to it and a next attempt is
// waited for. It never blocks.
func (m *Mesh) Redial(o directory.Origin) {
	if p := m.Peer(o); p != nil {
		poke(p.again)
	}
}

// redialLater dials the runs of an id that are later than o: if another answers
// there, they are over.
func (m *Mesh) redialLater(o directory.Origin) {
	for other, p := range *m.peers.Load() {
		if other.ID == o.ID && other.Epoch > o.Epoch {
			poke(p.again)
		}
	}
}

// Need asks a run for a snapshot, over the link that it dialled, if there is
// one. It never blocks.
func (m *Mesh) Need(o directory.Origin) {
	m.mu.Lock()
	in := m.ins[o]
	m.mu.Unlock()
	if in != nil {
		in.ask(0)
	}
}

// Wake says that there is something new in the own history. It costs a few
// nanoseconds, and may be called under a lock.
func (m *Mesh) Wake() {
	if !m.fresh.Load() && !m.fresh.Swap(true) {
		poke(m.news)
	}
}

// gather waits for news in the history and wakes the links' writers, at once if
// they have rested, else so late that they gather some. With many peers it is
// later, for each costs a write.
func (m *Mesh) gather() {
	var last time.Time
	for {
		select {
		case <-m.news:
		case <-m.cut.Done():
			return
		}
		peers := len(*m.peers.Load())
		if d := time.Until(last.Add(max(m.cfg.Flush, time.Duration(peers)*time.Millisecond))); d > 0 {
			t := time.NewTimer(d)
			select {
			case <-t.C:
			case <-m.cut.Done():
				t.Stop()
				return
			}
		}
		last = time.Now()
		m.fresh.Store(false) // before Position: what comes behind it pokes again
		seq, _, _ := m.cfg.Directory.Position()
		m.target.Store(seq)
		for _, p := range *m.peers.Load() {
			p.wakeUp()
		}
	}
}

// poke puts a token into a channel that holds one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Peer is the run that Up named, nil if there is none. It takes no lock.
func (m *Mesh) Peer(o directory.Origin) *Peer { return (*m.peers.Load())[o] }

// Relays are the connections that other nodes' DialRelay make, authenticated.
// Their type hides that there is TLS. It is always the same listener; its Close,
// as the Mesh's, ends Accept and refuses further ones.
func (m *Mesh) Relays() net.Listener { return m.relays }

// begin starts a goroutine that Close waits for, unless Close has cut
// everything.
func (m *Mesh) begin(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.work.Go(f)
	return true
}

// Close says goodbye on all links, flushes what was taken until ctx ends, cuts
// everything, and waits for every goroutine. memberlist goes on until the
// Shutdown of the Transport, before or after; then nothing is left. A dial that
// the transport of Config does not give up is not waited for; it ends by its
// timeout, 5 s, and what it brings is closed.
func (m *Mesh) Close(ctx context.Context) {
	defer context.AfterFunc(ctx, m.cutNow)()
	m.closing.Do(m.close)
}

func (m *Mesh) close() {
	m.mu.Lock()
	m.ending = true
	peers := *m.peers.Load()
	m.peers.Store(&map[directory.Origin]*Peer{})
	ins := maps.Clone(m.ins)
	m.mu.Unlock()
	m.relays.Close()

	for _, p := range peers {
		p.goodbye(byeClosing)
	}
	for _, in := range ins {
		in.goodbye()
	}
	for _, p := range peers {
		<-p.over
	}
	for _, in := range ins {
		<-in.over
	}

	m.mu.Lock()
	m.closed = true
	for r := range m.relaying {
		r.raw.Close()
	}
	clear(m.relaying)
	m.mu.Unlock()
	m.pending.close(proving)
	m.cutNow()
	m.work.Wait()
}

func (m *Mesh) log(level slog.Level, same, msg string, args ...any) {
	if m.cfg.Log != nil {
		m.cfg.Log.Post(level, same, msg, args...)
	}
}

// leaves tells whether Close has begun.
func (m *Mesh) leaves() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ending
}

// handshakeFailed counts and tells of a stream that proved nothing.
func (m *Mesh) handshakeFailed(conn net.Conn, what string, err error) {
	m.n.HandshakesFailed.Add(1)
	args := []any{"addr", conn.RemoteAddr(), "err", err}
	if why := hint(err); why != "" {
		args = append(args, "hint", why)
	}
	level := slog.LevelWarn
	if what == "relay" && hungUp(err) { // the client that it was for has gone
		level = slog.LevelDebug
	}
	m.log(level, remoteIP(conn).String(), what+" refused", args...)
}

package members

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/quietlog"
	"github.com/hashicorp/memberlist"
)

// key is the cluster's.
var key = []byte("0123456789abcdef0123456789ABCDEF")

// node is a List on a host of its own, and what it told its owner.
type node struct {
	*List
	t    *testing.T
	host *memnet.Host
	log  *book

	stopLog context.CancelFunc
	logging sync.WaitGroup

	mu   sync.Mutex
	told []string // guarded by mu: since take
}

// start starts node id on the last byte of an address in 10.0.0.0/24; its seed
// is node 1. More is in mod.
func start(t *testing.T, nw *memnet.Network, id string, at int, mod func(*Config)) *node {
	t.Helper()
	ip := fmt.Sprintf("10.0.0.%d", at)
	n := &node{t: t, host: nw.Host(ip), log: new(book)}
	l := quietlog.New(slog.New(n.log), "cluster")
	ctx, stop := context.WithCancel(t.Context())
	n.stopLog = stop
	n.logging.Go(func() { l.Run(ctx) })
	cfg := Config{
		Self:      directory.Origin{ID: id, Epoch: uint64(time.Now().UnixMilli())},
		Cluster:   "push",
		Keys:      [][]byte{key},
		Transport: n.host.Transport(7946),
		Seeds:     []Seed{{IP: netip.MustParseAddr("10.0.0.1"), Port: 7946}},
		Log:       l,
		Joined:    n.joined,
		Left:      n.left,
	}
	if mod != nil {
		mod(&cfg)
	}
	var err error
	if n.List, err = Start(cfg); err != nil {
		t.Fatal(err)
	}
	return n
}

// stop ends nodes at once and lets the last goroutines of memberlist, whose
// timers go on for a while, run out.
func stop(nodes ...*node) {
	for _, n := range nodes {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		n.Leave(ctx)
		n.stopLog()
		n.logging.Wait()
	}
	time.Sleep(3 * time.Minute)
}

func (n *node) joined(m Member) {
	text := "joined " + m.ID
	if m.Draining {
		text += " draining"
	}
	if m.Extra != nil {
		text += " " + string(m.Extra)
	}
	n.note(text)
}

func (n *node) left(m Member, goodbye bool) {
	if goodbye {
		n.note("left " + m.ID)
	} else {
		n.note("lost " + m.ID)
	}
}

func (n *node) note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = append(n.told, text)
}

// take is what it told since the last time.
func (n *node) take() []string {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	told := n.told
	n.told = nil
	return told
}

func (n *node) wantTold(want ...string) {
	n.t.Helper()
	if got := n.take(); !slices.Equal(got, want) {
		n.t.Errorf("%s told %q, want %q", n.cfg.Self.ID, got, want)
	}
}

// ids lists the runs that are there.
func (n *node) ids() (ids []string) {
	for _, m := range n.Members() {
		ids = append(ids, m.ID)
		if !n.Alive(m.Origin) {
			n.t.Errorf("%s lists %v, which is not alive", n.cfg.Self.ID, m)
		}
	}
	return ids
}

func (n *node) want(ids ...string) {
	n.t.Helper()
	if got := n.ids(); !slices.Equal(got, ids) {
		n.t.Errorf("%s lists %q, want %q", n.cfg.Self.ID, got, ids)
	}
}

// book is a slog.Handler that keeps what it is told.
type book struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

func (b *book) Enabled(context.Context, slog.Level) bool { return true }
func (b *book) WithAttrs([]slog.Attr) slog.Handler       { return b }
func (b *book) WithGroup(string) slog.Handler            { return b }
func (b *book) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { line += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line)
	return nil
}

// with returns the lines that contain a part.
func (b *book) with(part string) (lines []string) {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, line := range b.lines {
		if strings.Contains(line, part) {
			lines = append(lines, line)
		}
	}
	return lines
}

// stranger is a bare memberlist node that says what it likes.
type stranger struct {
	*memberlist.Memberlist
	mu    sync.Mutex
	meta  []byte // guarded by mu
	state []byte
}

func (s *stranger) NodeMeta(int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meta
}
func (s *stranger) NotifyMsg([]byte)                {}
func (s *stranger) GetBroadcasts(int, int) [][]byte { return nil }
func (s *stranger) LocalState(bool) []byte          { return s.state }
func (s *stranger) MergeRemoteState([]byte, bool)   {}

// say changes what it says of itself.
func (s *stranger) say(meta []byte) {
	s.mu.Lock()
	s.meta = meta
	s.mu.Unlock()
	_ = s.UpdateNode(time.Nanosecond)
}

// startStranger joins a stranger to node 1.
func startStranger(t *testing.T, nw *memnet.Network, m Member, state []byte) *stranger {
	t.Helper()
	s := &stranger{meta: packMeta(m), state: state}
	cfg := memberlist.DefaultLANConfig()
	cfg.Name, cfg.Label, cfg.Delegate, cfg.SecretKey = runName(m.Origin), "push", s, key
	cfg.Transport = nw.Host(m.Addr.Addr().String()).Transport(int(m.Addr.Port()))
	cfg.Logger = log.New(io.Discard, "", 0)
	var err error
	if s.Memberlist, err = memberlist.Create(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Join([]string{"10.0.0.1:7946"}); err != nil {
		t.Fatal(err)
	}
	return s
}

// peerNode is a run as memberlist tells of it.
func peerNode(m Member) *memberlist.Node {
	return &memberlist.Node{
		Name: runName(m.Origin), Addr: net.IP(m.Addr.Addr().AsSlice()), Port: m.Addr.Port(), Meta: packMeta(m),
	}
}

// member makes one, on an address of its own for the first 65 535.
func member(id string, epoch int) Member {
	return Member{
		Origin: directory.Origin{ID: id, Epoch: uint64(epoch)},
		Addr:   netip.AddrPortFrom(netip.MustParseAddr("10.1.0.1"), uint16(1+epoch%65535)),
	}
}

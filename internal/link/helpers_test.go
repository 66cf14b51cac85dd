package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/quietlog"
	"github.com/embedpush/push/internal/secret"
)

const port = 7946

// inBubble runs f in virtual time, with a network.
func inBubble(t *testing.T, f func(t *testing.T, nw *memnet.Network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		nw := memnet.New(1)
		nw.SetDelay(time.Millisecond, 2*time.Millisecond)
		f(t, nw)
	})
}

// keys are those of secrets in the cluster "push".
func keys(secrets ...string) [][]byte { return keysIn("push", secrets...) }

func keysIn(cluster string, secrets ...string) (out [][]byte) {
	for _, s := range secrets {
		out = append(out, secret.Derive([]byte(s), "link", cluster))
	}
	return out
}

// quiet is a Handler that does nothing.
type quiet struct{}

func (quiet) Member(directory.Origin) bool          { return true }
func (quiet) Request(*In, byte, []byte)             {}
func (quiet) Answer(*Peer, byte, []byte)            {}
func (quiet) Linked(*Peer, []byte)                  {}
func (quiet) Broken(*Peer)                          {}
func (quiet) Ended(*In)                             {}
func (quiet) Greeted(directory.Origin, []byte)      {}
func (quiet) Beat(directory.Origin, []byte)         {}
func (quiet) News(directory.Origin, directory.News) {}
func (quiet) Gone(directory.Origin)                 {}

// node is a Mesh with a Handler that notes what it is told.
type node struct {
	t    *testing.T
	self directory.Origin
	addr string
	host *memnet.Host
	dir  *directory.Directory
	mesh *Mesh

	end func() // closes all, once

	mu  sync.Mutex // guards what follows
	log bytes.Buffer
	notes
	stopped  bool          // Request waits …
	going    chan struct{} // … until this is closed
	pace     time.Duration // Request takes so long
	silent   bool          // Request answers nothing
	stranger bool          // Member says no
	odd      []string      // calls that must not be
}

// notes are what a Handler was told.
type notes struct {
	linked   []*Peer
	broken   []*Peer
	greeted  []directory.Origin
	greeting []string // with WELCOME and HELLO
	ended    []*In
	gone     []directory.Origin
	beats    map[string]int // by what they said
	lost     []directory.Lost
	requests []string
	answers  []string
}

// seen is what the Handler was told so far, but for the beats.
func (n *node) seen() notes {
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := n.notes
	seen.beats = nil
	return seen
}

// start starts a node at port of an address; change may change what it is made
// of.
func start(t *testing.T, nw *memnet.Network, ip string, self directory.Origin, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, self: self, host: nw.Host(ip)}
	n.beats = make(map[string]int)
	n.dir = directory.New(self, nil)
	logger := slog.New(slog.NewTextHandler(lockedWriter{n}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	log := quietlog.New(logger, "cluster")
	tr := n.host.Transport(port)
	n.addr = tr.Addr()
	cfg := Config{Self: self, Keys: keys("a secret"), Directory: n.dir, Transport: tr, Handler: n, Log: log}
	if change != nil {
		change(&cfg)
	}
	n.mesh = New(cfg)
	ctx, stop := context.WithCancel(context.Background())
	logged := make(chan struct{})
	go func() { defer close(logged); log.Run(ctx) }()
	n.end = sync.OnceFunc(func() {
		n.release()
		bounded, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		n.mesh.Close(bounded)
		if err := n.mesh.Transport().Shutdown(); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		stop()
		<-logged
	})
	t.Cleanup(func() {
		n.end()
		time.Sleep(2 * handshakeTime) // dials that were given up
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.odd) > 0 {
			t.Errorf("%s: %q", self.ID, n.odd)
		}
		if len(n.linked) > len(n.broken) {
			t.Errorf("%s: Linked %d times, Broken %d times", self.ID, len(n.linked), len(n.broken))
		}
		if len(n.greeted) != len(n.ended) {
			t.Errorf("%s: Greeted %d times, Ended %d times", self.ID, len(n.greeted), len(n.ended))
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", self.ID, n.log.String())
		}
	})
	return n
}

type lockedWriter struct{ n *node }

func (w lockedWriter) Write(b []byte) (int, error) {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	return w.n.log.Write(b)
}

func origin(id string, epoch uint64) directory.Origin { return directory.Origin{ID: id, Epoch: epoch} }

// pair starts two nodes, a and b, that do not know each other.
func pair(t *testing.T, nw *memnet.Network, change func(*Config)) (a, b *node) {
	t.Helper()
	return start(t, nw, "10.0.0.1", origin("a", 1), change), start(t, nw, "10.0.0.2", origin("b", 1), change)
}

// up makes membership tell n of another node.
func (n *node) up(others ...*node) {
	for _, o := range others {
		if err := n.dir.Up(o.self); err != nil {
			n.t.Errorf("Up(%v): %v", o.self, err)
		}
		n.mesh.Up(o.self, o.addr)
	}
}

func (n *node) peer(o *node) *Peer {
	n.t.Helper()
	p := n.mesh.Peer(o.self)
	if p == nil {
		n.t.Fatalf("%s has no peer %s", n.self.ID, o.self.ID)
	}
	return p
}

// waitFor waits in virtual time until ok, for at most a time.
func (n *node) waitFor(d time.Duration, what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(time.Millisecond) {
		synctest.Wait()
		n.mu.Lock()
		done := ok()
		n.mu.Unlock()
		if done {
			return
		}
		if !time.Now().Before(end) {
			n.t.Fatalf("%s: not within %v: %s", n.self.ID, d, what)
		}
	}
}

func (n *node) wantLinked(o *node) {
	n.t.Helper()
	n.waitFor(10*time.Second, "a link to "+o.self.ID, func() bool {
		p := n.mesh.Peer(o.self)
		return p != nil && p.Up()
	})
}

func (n *node) wantLog(parts ...string) {
	n.t.Helper()
	n.waitFor(time.Second, fmt.Sprintf("a line in the log with %q", parts), func() bool { return n.logged(parts...) })
}

// logged tells whether there is a line with all parts. mu is held.
func (n *node) logged(parts ...string) bool {
	for line := range strings.Lines(n.log.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return true
		}
	}
	return false
}

func (n *node) offer(o *node, text string) {
	n.t.Helper()
	if err := n.peer(o).Offer(append([]byte{FirstKind}, text...)); err != nil {
		n.t.Fatalf("Offer: %v", err)
	}
}

// hold makes Request wait until release.
func (n *node) hold() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopped, n.going = true, make(chan struct{})
}

func (n *node) release() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		n.stopped = false
		close(n.going)
	}
}

func (n *node) Member(directory.Origin) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.stranger
}

func (n *node) Request(in *In, kind byte, body []byte) {
	n.mu.Lock()
	stopped, going := n.stopped, n.going
	n.mu.Unlock()
	if stopped {
		<-going
	}
	n.mu.Lock()
	pace, silent := n.pace, n.silent
	n.mu.Unlock()
	time.Sleep(pace)
	n.mu.Lock()
	n.requests = append(n.requests, string(body))
	if !slices.Contains(n.greeted, in.Origin()) || slices.Contains(n.ended, in) {
		n.odd = append(n.odd, "Request outside of Greeted and Ended")
	}
	n.mu.Unlock()
	if !silent {
		in.Ready(&reply{kind: kind, body: body})
	}
}

// reply is a Source of one answer.
type reply struct {
	kind byte
	body []byte
}

func (r *reply) Append(dst []byte, _ int) ([]byte, bool) {
	dst, mark := Begin(dst, r.kind)
	return End(append(dst, r.body...), mark), false
}

func (n *node) Answer(p *Peer, kind byte, body []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers = append(n.answers, string(body))
	if count(n.linked, p) != count(n.broken, p)+1 {
		n.odd = append(n.odd, "Answer outside of Linked and Broken")
	}
}

func (n *node) Linked(p *Peer, greeting []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linked = append(n.linked, p)
	n.greeting = append(n.greeting, string(greeting))
}

func (n *node) Broken(p *Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = append(n.broken, p)
}

func (n *node) Ended(in *In) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Contains(n.ended, in) {
		n.odd = append(n.odd, "Ended twice")
	}
	n.ended = append(n.ended, in)
}

func (n *node) Greeted(o directory.Origin, greeting []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.greeted = append(n.greeted, o)
	n.greeting = append(n.greeting, string(greeting))
}

func (n *node) Beat(o directory.Origin, body []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.beats[o.ID+" "+string(body)]++
}

func (n *node) News(o directory.Origin, news directory.News) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = append(n.lost, news.Lost...)
}

func (n *node) Gone(o directory.Origin) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone = append(n.gone, o)
}

func count[T comparable](in []T, want T) (n int) {
	for _, v := range in {
		if v == want {
			n++
		}
	}
	return n
}

// join makes n hold places and says so.
func (n *node) join(names ...string) {
	for _, name := range names {
		n.dir.Join(directory.Place{Kind: 1, Name: name})
		n.mesh.Wake()
	}
}

func (n *node) leave(names ...string) {
	for _, name := range names {
		n.dir.Leave(directory.Place{Kind: 1, Name: name})
		n.mesh.Wake()
	}
}

// knows tells whether n has all of o's history.
func (n *node) knows(o *node) bool {
	seq, hash, _ := o.dir.Position()
	got, gotHash := n.dir.Have(o.self)
	return got == seq && gotHash == hash
}

func (n *node) wantKnows(d time.Duration, o *node) {
	n.t.Helper()
	n.waitFor(d, "all of "+o.self.ID+"'s history", func() bool { return n.knows(o) })
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s: want %v, got %v", what, want, got)
	}
}

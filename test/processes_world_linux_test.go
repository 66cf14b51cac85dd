//go:build processes

package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/embedpush/push"
)

// procWorld is a cluster of processes, its clients, which live in this one, and
// what is known of each push that the nodes' loads made.
type procWorld struct {
	t       *testing.T
	secrets [][]byte // of nodes that start
	drain   time.Duration
	repeats bool   // clients come to nodes that were stopped
	exe     string // what nodes are made of; "": this program
	ctx     context.Context
	clients []*procClient
	closing sync.WaitGroup // goroutines of clients

	mu       sync.Mutex // guards what follows, and what of nodes and clients is said to be guarded by it
	nodes    map[string]*procNode
	pushes   int
	rows     map[push.Status]int
	asserted int           // rows that had to be there, and Acked
	late     time.Duration // the longest over its deadline, less what excuses it
	stalled  procSpans     // this process did not run
	doubts   []procDoubt
	excused  int
	wrong    int
	watch    func(by *procNode, p *procPush) // called with mu held; nil: nobody
}

// procSlack is how much longer than its deadline a push may take, besides the
// time in which its process did not run.
const procSlack = 250 * time.Millisecond

// procDoubt is what is wrong with a push unless the processes that it needed did
// not run for some time while it was under way. That is known a little later.
type procDoubt struct {
	by, at     *procNode // at: the device's node; nil: it is about by alone
	begin, end time.Time
	excuse     time.Duration
	text       string
}

// settle judges the doubts.
func (w *procWorld) settle() {
	for _, n := range w.running() { // who answers has told of its last stall
		n.ask(nil, 5*time.Second, procAsk{Op: "nothing"})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.doubts {
		stalled := d.by.stalled.share(d.begin, d.end)
		if d.at != nil {
			stalled = max(stalled, w.stalled.share(d.begin, d.end), d.at.stalled.share(d.begin, d.end))
		} else {
			w.late = max(w.late, d.excuse+procSlack-stalled)
		}
		if stalled >= d.excuse {
			w.excused++
			continue
		}
		w.wrongLocked("%s; it did not run for %v of it", d.text, stalled)
	}
	w.doubts = nil
}

// procSpans are times during which something holds; the last one may be open.
type procSpans []procSpan

type procSpan struct {
	from, to time.Time
	home     string // of a client
}

func (s *procSpans) begin(now time.Time, home string) {
	if len(*s) == 0 || !(*s)[len(*s)-1].to.IsZero() {
		*s = append(*s, procSpan{from: now, home: home})
	}
}

func (s *procSpans) end(now time.Time) {
	if n := len(*s); n > 0 && (*s)[n-1].to.IsZero() {
		(*s)[n-1].to = now
	}
}

func (s *procSpans) add(stall procStall) {
	*s = append(*s, procSpan{from: time.Unix(0, stall.From), to: time.Unix(0, stall.To)})
}

// hold tells whether it held all the time, and a client's home then.
func (s procSpans) hold(from, to time.Time) (home string, ok bool) {
	for _, span := range s {
		if !span.from.After(from) && (span.to.IsZero() || !span.to.Before(to)) {
			return span.home, true
		}
	}
	return "", false
}

// share is how much of a time it held.
func (s procSpans) share(from, to time.Time) (d time.Duration) {
	for _, span := range s {
		a, b := span.from, span.to
		if b.IsZero() || b.After(to) {
			b = to
		}
		if a.Before(from) {
			a = from
		}
		d += max(0, b.Sub(a))
	}
	return d
}

// procNode is one run of a node.
type procNode struct {
	w         *procWorld
	cfg       procConfig
	cmd       *exec.Cmd
	in        io.WriteCloser
	over      chan struct{} // closed when the process has ended and all that it said is read
	procPlace               // once it has started; until then its clients look at it with procWorld.mu held

	// Guarded by procWorld.mu.
	steady  procSpans // nothing is done to it
	stalled procSpans // it did not run
	ending  bool      // its end is no surprise
	last    uint64
	asked   map[uint64]chan json.RawMessage
	lines   []string // of its log: warnings and worse
	links   []string // … and "link up"
}

// newProcWorld makes a world that ends with the test.
func newProcWorld(t *testing.T) *procWorld {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &procWorld{
		t: t, secrets: [][]byte{clusterSecret(1)}, ctx: ctx,
		nodes: make(map[string]*procNode), rows: make(map[push.Status]int),
	}
	w.closing.Go(func() {
		procClock(ctx, func(s procStall) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.stalled.add(s)
		})
	})
	t.Cleanup(func() {
		w.settle()
		for _, n := range w.running() {
			n.disturb()
		}
		cancel()
		for _, c := range w.clients {
			if c.device != nil {
				c.device.Stop()
				c.device.Wait()
			}
		}
		w.closing.Wait()
		for _, n := range w.running() {
			n.kill()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		t.Logf("%d pushes, deliveries %v, of which %d had to be acked; the longest took %v over its deadline; %d late for want of CPU", w.pushes, w.rows, w.asserted, w.late.Round(time.Millisecond), w.excused)
		if w.wrong > procErrors {
			t.Errorf("%d further errors", w.wrong-procErrors)
		}
		if w.pushes == 0 || w.excused*10 > w.pushes {
			t.Errorf("%d pushes, of which %d prove nothing", w.pushes, w.excused)
		}
		if t.Failed() {
			for _, n := range w.nodes {
				t.Logf("%s logged:\n%s", n.cfg.ID, strings.Join(n.lines, "\n"))
			}
		}
	})
	return w
}

const procErrors = 20 // that are told

// wrongLocked is an error about a push or a client.
func (w *procWorld) wrongLocked(format string, args ...any) {
	if w.wrong++; w.wrong <= procErrors {
		w.t.Errorf(format, args...)
	}
}

// running are the nodes that are to be there.
func (w *procWorld) running() []*procNode {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []*procNode
	for _, id := range slices.Sorted(maps.Keys(w.nodes)) {
		if n := w.nodes[id]; !n.ending {
			all = append(all, n)
		}
	}
	return all
}

// start starts a node. at is where it is to listen, an address each; nil: ports
// that are free on 127.0.0.k, where k is the id's first letter, 11 for a. It
// waits until the node listens.
func (w *procWorld) start(id string, at *procPlace) *procNode {
	w.t.Helper()
	if at == nil {
		free := fmt.Sprintf("127.0.0.%d:0", 11+id[0]-'a')
		at = &procPlace{Cluster: free, HTTP: free, MPush: free}
	}
	cfg := procConfig{ID: id, Bind: at.Cluster, HTTP: at.HTTP, MPush: at.MPush, Secrets: w.secrets, Drain: w.drain}
	for _, n := range w.running() {
		cfg.Seeds = append(cfg.Seeds, n.Cluster)
	}
	exe := w.exe
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			w.t.Fatal(err)
		}
	}
	n := &procNode{w: w, cfg: cfg, over: make(chan struct{}), asked: make(map[uint64]chan json.RawMessage)}
	n.cmd = exec.Command(exe)
	n.cmd.Env = append(os.Environ(), procEnv+"=1")
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also one that is stopped
	in, err := n.cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	n.in = in
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	logged, err := n.cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	first := make(chan json.RawMessage, 1)
	n.asked[0] = first
	w.mu.Lock()
	w.nodes[id] = n
	w.mu.Unlock()
	var reading sync.WaitGroup
	reading.Go(func() { n.read(out) })
	reading.Go(func() { n.readLog(logged) })
	go func() {
		reading.Wait()
		err := n.cmd.Wait()
		w.mu.Lock()
		if !n.ending {
			w.wrongLocked("%s ended: %v", id, err)
			n.ending = true
		}
		for _, answer := range n.asked {
			close(answer)
		}
		n.asked = nil
		w.mu.Unlock()
		close(n.over)
	}()
	line, _ := json.Marshal(&cfg)
	n.in.Write(append(line, '\n'))
	select {
	case place := <-first:
		var at procPlace
		if err := json.Unmarshal(place, &at); err != nil {
			w.t.Fatalf("%s did not start: %v", id, err)
		}
		w.mu.Lock()
		n.procPlace = at
		w.mu.Unlock()
	case <-time.After(20 * time.Second):
		w.t.Fatalf("%s did not start", id)
	}
	return n
}

// read takes what the node says.
func (n *procNode) read(out io.Reader) {
	lines := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil { // and half a line is of one that was killed
			return
		}
		var tell procTell
		if err := json.Unmarshal(line, &tell); err != nil {
			n.w.mu.Lock()
			n.w.wrongLocked("%s said %q", n.cfg.ID, line)
			n.w.mu.Unlock()
			continue
		}
		if tell.Stall != nil {
			n.w.mu.Lock()
			n.stalled.add(*tell.Stall)
			n.w.mu.Unlock()
			continue
		}
		if tell.Push != nil {
			n.w.judge(n, tell.Push)
			continue
		}
		n.w.mu.Lock()
		answer := n.asked[tell.ID]
		delete(n.asked, tell.ID)
		n.w.mu.Unlock()
		if answer != nil {
			answer <- tell.Answer
		}
	}
}

func (n *procNode) readLog(logged io.Reader) {
	lines := bufio.NewScanner(logged)
	for lines.Scan() {
		line := lines.Text()
		n.w.mu.Lock()
		switch {
		case strings.Contains(line, `link up"`):
			n.links = append(n.links, line)
		case strings.Contains(line, "level=ERROR"), strings.Contains(line, "DATA RACE"), strings.HasPrefix(line, "panic:"):
			n.lines = append(n.lines, line)
			n.w.wrongLocked("%s says: %s", n.cfg.ID, line)
		case !strings.Contains(line, "level=DEBUG") && !strings.Contains(line, "level=INFO") && len(n.lines) < 300:
			n.lines = append(n.lines, line)
		}
		n.w.mu.Unlock()
	}
}

// ask asks the node to do something, and gives it so long.
func (n *procNode) ask(answer any, limit time.Duration, ask procAsk) error {
	got := make(chan json.RawMessage, 1)
	n.w.mu.Lock()
	if n.asked == nil {
		n.w.mu.Unlock()
		return errors.New("its process has ended")
	}
	n.last++
	ask.ID = n.last
	n.asked[ask.ID] = got
	n.w.mu.Unlock()
	line, err := json.Marshal(&ask)
	if err != nil {
		return err
	}
	if _, err := n.in.Write(append(line, '\n')); err != nil {
		return err
	}
	select {
	case b, ok := <-got:
		if !ok {
			return errors.New("its process ended")
		}
		if answer == nil {
			return nil
		}
		return json.Unmarshal(b, answer)
	case <-time.After(limit):
		return errors.New("no answer")
	}
}

// must is an ask that has to be answered.
func (n *procNode) must(answer any, ask procAsk) {
	n.w.t.Helper()
	if err := n.ask(answer, 30*time.Second, ask); err != nil {
		n.w.t.Fatalf("%s does not answer %s: %v", n.cfg.ID, ask.Op, err)
	}
}

// stats are the node's counters.
func (n *procNode) stats() (s push.Stats) {
	n.w.t.Helper()
	n.must(&s, procAsk{Op: "stats"})
	return s
}

// online tells whether the node has a user online.
func (n *procNode) online(user string) bool {
	n.w.t.Helper()
	var online map[string]bool
	n.must(&online, procAsk{Op: "online", Users: []string{user}})
	return online[user]
}

// disturb says that something is done to the node: what concerns it may fail.
func (n *procNode) disturb() {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	now := time.Now()
	n.steady.end(now)
	for _, c := range n.w.clients {
		if c.home == n.cfg.ID {
			c.steady.end(now)
		}
	}
}

// kill ends the process without a word.
func (n *procNode) kill() {
	n.disturb()
	n.w.mu.Lock()
	n.ending = true
	n.w.mu.Unlock()
	n.cmd.Process.Kill()
	<-n.over
	n.in.Close()
}

// halt keeps the process from running for some time.
func (n *procNode) halt(d time.Duration, meanwhile func()) {
	n.w.t.Helper()
	n.disturb()
	on := time.NewTimer(d)
	if err := n.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		n.w.t.Fatal(err)
	}
	if meanwhile != nil {
		meanwhile()
	}
	<-on.C
	if err := n.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		n.w.t.Fatal(err)
	}
}

// shutdown ends the node politely, its load with it; its clients go to the
// others.
func (n *procNode) shutdown() {
	n.w.t.Helper()
	n.disturb()
	n.w.mu.Lock()
	n.ending = true
	var others []string
	for id, other := range n.w.nodes {
		if !other.ending {
			others = append(others, id)
		}
	}
	slices.Sort(others)
	for i, c := range n.w.clients {
		if c.home == n.cfg.ID {
			c.home = others[i%len(others)]
		}
	}
	n.w.mu.Unlock()
	var text string
	if err := n.ask(&text, 30*time.Second, procAsk{Op: "shutdown", Wait: 10 * time.Second}); err != nil || text != "" {
		n.w.t.Errorf("%s: Shutdown: %v, %s", n.cfg.ID, err, text)
	}
	n.in.Close()
	select {
	case <-n.over:
	case <-time.After(20 * time.Second):
		n.w.t.Errorf("%s does not end after Shutdown", n.cfg.ID)
		n.kill()
	}
}

// after lets the load go on until it has made so many pushes more.
func (w *procWorld) after(pushes int) {
	w.t.Helper()
	count := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.pushes
	}
	until := count() + pushes
	w.eventually(time.Minute, "pushes", func() string {
		if n := count(); n < until {
			return fmt.Sprintf("%d more were wanted", until-n)
		}
		return ""
	})
}

// watching calls look again and again for some time.
func watching(d time.Duration, look func()) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for over := time.After(d); ; {
		look()
		select {
		case <-tick.C:
		case <-over:
			return
		}
	}
}

// move sends the clients of a node, and of a user, "" meaning any, to another
// when their connections end.
func (w *procWorld) move(user, from, to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.clients {
		if c.home == from && (user == "" || c.user == user) {
			c.home = to
		}
	}
}

// eventually waits until why returns nothing, and tells how long that took.
func (w *procWorld) eventually(limit time.Duration, what string, why func() string) time.Duration {
	w.t.Helper()
	begin := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		reason := why()
		took := time.Since(begin)
		if reason == "" {
			return took
		}
		if took > limit {
			w.t.Fatalf("%s: not after %v: %s", what, limit, reason)
		}
		<-tick.C
	}
}

// sees tells what is wrong with the nodes that a node knows.
func (n *procNode) sees(want []string) string {
	var nodes []push.Node
	if err := n.ask(&nodes, 10*time.Second, procAsk{Op: "nodes"}); err != nil {
		return fmt.Sprintf("%s: %v", n.cfg.ID, err)
	}
	var ids []string
	for _, node := range nodes {
		ids = append(ids, node.ID)
	}
	if !slices.Equal(ids, want) {
		return fmt.Sprintf("%s sees %v, want %v", n.cfg.ID, ids, want)
	}
	return ""
}

// whole waits until all nodes know each other and reach every client that has
// a home, and from then on expects that.
func (w *procWorld) whole(limit time.Duration) time.Duration {
	w.t.Helper()
	nodes := w.running()
	var ids []string
	for _, n := range nodes {
		ids = append(ids, n.cfg.ID)
	}
	took := w.eventually(limit, "whole", func() string {
		for _, n := range nodes {
			if why := n.sees(ids); why != "" {
				return why
			}
			if why := n.reaches(); why != "" {
				return why
			}
		}
		return ""
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for _, n := range nodes {
		n.steady.begin(now, "")
	}
	for _, c := range w.clients {
		if c.home != "" {
			c.steady.begin(now, c.home)
		}
	}
	return took
}

// users are all users that have a client.
func (w *procWorld) users() (users []string) {
	for _, c := range w.clients {
		if !slices.Contains(users, c.user) {
			users = append(users, c.user)
		}
	}
	return users
}

// reaches tells whom a push to all users does not reach.
func (n *procNode) reaches() string {
	var p procPush
	if err := n.ask(&p, 10*time.Second, procAsk{Op: "push", Users: n.w.users(), Wait: 2 * time.Second}); err != nil {
		return fmt.Sprintf("%s: %v", n.cfg.ID, err)
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	n.w.checkLocked(n, &p)
	for _, c := range n.w.clients {
		if c.home == "" {
			continue
		}
		found := slices.ContainsFunc(p.Rows, func(r procRow) bool {
			return r.User == c.user && r.Device == c.name && r.Node == c.home && r.Status == push.Acked
		})
		if !found {
			return fmt.Sprintf("%s does not reach %s/%s on %s: %v", n.cfg.ID, c.user, c.name, c.home, p.rowsOf(c.user, ""))
		}
	}
	return ""
}

// rowsOf are the rows of a user, and of a node; "": of any.
func (p *procPush) rowsOf(user, node string) (rows []procRow) {
	for _, r := range p.Rows {
		if (user == "" || r.User == user) && (node == "" || r.Node == node) {
			rows = append(rows, r)
		}
	}
	return rows
}

func (r procRow) String() string {
	return fmt.Sprintf("%s/%s on %s (%d): %s", r.User, r.Device, r.Node, r.Conn, r.Status)
}

// load begins to push on all nodes.
func (w *procWorld) load(workers int) {
	w.t.Helper()
	for _, n := range w.running() {
		n.load(workers, w.users()...)
	}
}

// load begins to push to some users.
func (n *procNode) load(workers int, users ...string) {
	n.w.t.Helper()
	n.must(nil, procAsk{Op: "load", Workers: workers, Users: users})
}

// rest ends the load, and looks whether something is left of it.
func (w *procWorld) rest() {
	w.t.Helper()
	nodes := w.running()
	for _, n := range nodes {
		n.must(nil, procAsk{Op: "rest"})
	}
	for _, n := range nodes {
		w.eventually(10*time.Second, "flights end", func() string {
			s := n.stats()
			if s.Flights != 0 {
				return fmt.Sprintf("%s has %d", n.cfg.ID, s.Flights)
			}
			if s.Panics != 0 || s.Cluster.Malformed != 0 || s.Cluster.Diverged != 0 {
				w.t.Errorf("%s: %d panics, %d malformed, %d diverged", n.cfg.ID, s.Panics, s.Cluster.Malformed, s.Cluster.Diverged)
			}
			return ""
		})
	}
}

// judge checks a push of a load.
func (w *procWorld) judge(by *procNode, p *procPush) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pushes++
	for _, r := range p.Rows {
		w.rows[r.Status]++
	}
	w.checkLocked(by, p)
	w.expectLocked(by, p)
	if w.watch != nil {
		w.watch(by, p)
	}
}

// checkLocked checks what holds for every push, whatever happens.
func (w *procWorld) checkLocked(by *procNode, p *procPush) {
	begin, end := time.Unix(0, p.Begin), time.Unix(0, p.End)
	if over := p.Took - p.Deadline; over > procSlack {
		w.doubts = append(w.doubts, procDoubt{by, nil, begin, end, over - procSlack, fmt.Sprintf("push %s by %s to %s%v took %v until %v, its deadline was %v", p.ID, by.cfg.ID, p.Room, p.To, p.Took, end, p.Deadline)})
	} else {
		w.late = max(w.late, over)
	}
	if p.Err == procClosed {
		if !by.ending {
			w.wrongLocked("push %s by %s, which runs: closed", p.ID, by.cfg.ID)
		}
	} else if p.Targets != len(p.Rows) || p.Open != 0 {
		w.wrongLocked("push %s by %s: %d targets, %d of them without a count, %d deliveries", p.ID, by.cfg.ID, p.Targets, p.Open, len(p.Rows))
	}
	seen := make(map[push.ConnID]bool)
	for _, r := range p.Rows {
		switch r.Status {
		case push.Acked, push.Timeout, push.Gone, push.NodeLost, push.Overloaded, push.Offline:
		default:
			w.wrongLocked("push %s by %s to %s%v: %q for %s", p.ID, by.cfg.ID, p.Room, p.To, r.Status, r)
		}
		if r.Conn != 0 && seen[r.Conn] {
			w.wrongLocked("push %s by %s to %s%v: two outcomes for %s", p.ID, by.cfg.ID, p.Room, p.To, r)
		}
		seen[r.Conn] = true
		if r.Status != push.Acked {
			continue
		}
		c := w.clientOf(r.User, r.Device)
		if c == nil {
			w.wrongLocked("push %s by %s was acked by %s, who is nobody", p.ID, by.cfg.ID, r)
		} else if !c.saw(p.ID) {
			w.wrongLocked("push %s by %s is lost: acked, but not seen by %s", p.ID, by.cfg.ID, r)
		}
	}
	for _, user := range p.Offline {
		if rows := p.rowsOf(user, ""); len(rows) > 0 {
			w.wrongLocked("push %s by %s: %s is offline, and there is %s", p.ID, by.cfg.ID, user, rows)
		}
	}
	if len(p.To) == 1 && p.Err != procClosed && len(p.Rows) == 0 && len(p.Offline) == 0 {
		w.wrongLocked("push %s by %s to %s%v has no outcome at all: %q", p.ID, by.cfg.ID, p.Room, p.To, p.Err)
	}
}

// expectLocked checks what has to be when nothing is done to either side.
func (w *procWorld) expectLocked(by *procNode, p *procPush) {
	begin, end := time.Unix(0, p.Begin), time.Unix(0, p.End)
	if _, ok := by.steady.hold(begin, end); !ok {
		return
	}
	for _, c := range w.clients {
		home, ok := c.steady.hold(begin, end)
		if !ok || p.Room != "" && p.Room != procRoom(home) || p.To != nil && !slices.Contains(p.To, c.user) {
			continue
		}
		w.asserted++
		i := slices.IndexFunc(p.Rows, func(r procRow) bool { return r.User == c.user && r.Device == c.name && r.Node == home })
		wrong := ""
		switch {
		case i < 0:
			wrong = fmt.Sprintf("push %s by %s to %s%v missed %s/%s on %s, to which nothing was done: %v, offline %v", p.ID, by.cfg.ID, p.Room, p.To, c.user, c.name, home, p.rowsOf(c.user, ""), p.Offline)
		case p.Rows[i].Status != push.Acked:
			wrong = fmt.Sprintf("push %s by %s to %s%v: %s after %v, and nothing was done to it", p.ID, by.cfg.ID, p.Room, p.To, p.Rows[i], p.Took)
		}
		if wrong != "" {
			w.doubtLocked(by, home, p, wrong)
		}
	}
	for _, user := range p.To {
		clients, all := 0, true
		for _, c := range w.clients {
			if c.user == user {
				clients++
				_, ok := c.steady.hold(begin, end)
				all = all && ok
			}
		}
		if rows := p.rowsOf(user, ""); all && len(rows) != clients {
			w.doubtLocked(by, "", p, fmt.Sprintf("push %s by %s: %s has %d clients, and there is %v", p.ID, by.cfg.ID, user, clients, rows))
		}
	}
}

// doubtLocked is for a push that failed where nothing was done: there is an
// excuse if it waited until its deadline, and for half of that time a process
// did not run that it needed. at is the device's node; "": any.
func (w *procWorld) doubtLocked(by *procNode, at string, p *procPush, text string) {
	if p.Took < p.Deadline-50*time.Millisecond {
		w.wrongLocked("%s", text)
		return
	}
	for id, n := range w.nodes {
		if id == at || at == "" && n != by {
			w.doubts = append(w.doubts, procDoubt{by, n, time.Unix(0, p.Begin), time.Unix(0, p.End), p.Deadline / 2, text})
		}
	}
}

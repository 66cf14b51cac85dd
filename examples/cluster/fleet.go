package main

// The parent's side of the nodes: it starts them and does things to them.

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// nodeIDs are the nodes there are. What becomes of one, its id stays.
var nodeIDs = []string{"a", "b", "c"}

// state is what a node's process does, as the parent knows it.
type state string

const (
	down     state = "down"
	starting state = "starting" // and looking for the others
	up       state = "up"
	stopped  state = "stopped"  // by SIGSTOP
	draining state = "draining" // it shuts down in order
)

// node is one node's process, and after its end the next one's.
type node struct {
	id      string
	is      state
	at      addresses
	process *os.Process
	stdin   io.Closer     // the process ends when it is closed
	ended   chan struct{} // closed when the process has ended
	killed  bool          // by us: it needs no good end
	tally
}

// tally counts what was done to a node.
type tally struct {
	Started int `json:"started"`
	Killed  int `json:"killed"`
	Stopped int `json:"stopped"`
	Drained int `json:"drained"`
	Pushes  int `json:"pushes"` // that it was asked for
}

// fleet is the nodes.
type fleet struct {
	diary  *diary
	said   *said
	exe    string
	secret []byte
	token  string
	http   *http.Client
	ctx    context.Context // ends when the fleet does
	cancel context.CancelFunc
	work   sync.WaitGroup

	launching sync.Mutex // one starts at a time, so that the next one knows its address

	mu      sync.Mutex // guards what follows and every node
	nodes   map[string]*node
	crashed int           // ended badly, or not at all
	changed chan struct{} // closed and replaced when a node's state changes
}

func newFleet(d *diary, verbose bool) (*fleet, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f := &fleet{
		diary: d, said: &said{}, exe: exe, secret: make([]byte, 32), token: rand.Text(),
		http:  &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}, // no proxy
		nodes: make(map[string]*node), changed: make(chan struct{}),
	}
	if verbose {
		f.said.out = os.Stderr
	}
	rand.Read(f.secret)
	f.ctx, f.cancel = context.WithCancel(context.Background())
	for _, id := range nodeIDs {
		f.nodes[id] = &node{id: id, is: down}
	}
	return f, nil
}

// begin starts every node, and returns when each knows all.
func (f *fleet) begin(ctx context.Context) error {
	var errs []error
	for _, id := range nodeIDs {
		errs = append(errs, f.start(ctx, id))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, id := range nodeIDs {
		for {
			s, err := f.situation(ctx, id)
			if err == nil && len(s.Nodes) == len(nodeIDs) {
				break
			}
			if !pauseFor(ctx, 50*time.Millisecond) {
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// setLocked changes a node's state, if it was one of from.
func (f *fleet) setLocked(n *node, to state, from ...state) error {
	if len(from) > 0 && !slices.Contains(from, n.is) {
		return fmt.Errorf("%s is %s", n.id, n.is)
	}
	n.is = to
	close(f.changed)
	f.changed = make(chan struct{})
	return nil
}

// until waits until cond, which is called under f.mu, or ctx ends.
func (f *fleet) until(ctx context.Context, cond func() bool) error {
	for {
		f.mu.Lock()
		ok, changed := cond(), f.changed
		f.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// start starts a node that is down, and returns when it serves.
func (f *fleet) start(ctx context.Context, id string) error {
	f.mu.Lock()
	n := f.nodes[id]
	err := f.setLocked(n, starting, down)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	f.diary.printf("start %s", id)
	if err := f.launch(n); err != nil {
		f.mu.Lock()
		f.setLocked(n, down)
		f.mu.Unlock()
		return fmt.Errorf("starting %s: %w", id, err)
	}
	for { // as a load balancer asks its back ends
		if s, err := f.situation(ctx, id); err == nil && s.Ready == "" {
			f.mu.Lock()
			err := f.setLocked(n, up, starting)
			f.mu.Unlock()
			if err == nil {
				f.diary.printf("%s is up", id)
			}
			return err // not starting any more: it was killed
		}
		f.mu.Lock()
		is := n.is
		f.mu.Unlock()
		if is != starting {
			return fmt.Errorf("%s is %s", id, is)
		}
		if !pauseFor(ctx, 20*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

const launchTime = 10 * time.Second // from a process's start to its addresses

// launch starts a process and reads its addresses.
func (f *fleet) launch(n *node) error {
	f.launching.Lock()
	defer f.launching.Unlock()
	if err := f.ctx.Err(); err != nil {
		return err
	}
	o := orders{Node: n.id, Token: f.token, Secret: f.secret}
	f.mu.Lock()
	for _, id := range nodeIDs {
		if other := f.nodes[id]; other.is != down && other.is != starting {
			o.Seeds = append(o.Seeds, other.at.Gossip)
		}
	}
	f.mu.Unlock()

	cmd := exec.Command(f.exe)
	cmd.Env = append(os.Environ(), asNode+"="+n.id)
	cmd.Stderr = f.said.by(n.id)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	late := time.AfterFunc(launchTime, func() { cmd.Process.Kill() })
	err = json.NewEncoder(stdin).Encode(o)
	var at addresses
	if err == nil {
		var line []byte
		if line, err = bufio.NewReader(stdout).ReadBytes('\n'); err == nil {
			err = json.Unmarshal(line, &at)
		}
	}
	late.Stop()
	if err != nil {
		cmd.Process.Kill()
		return cmp.Or(cmd.Wait(), err)
	}

	ended := make(chan struct{})
	f.mu.Lock()
	n.at, n.process, n.stdin, n.ended, n.killed = at, cmd.Process, stdin, ended, false
	n.Started++
	f.mu.Unlock()
	f.work.Go(func() {
		defer close(ended)
		err := cmd.Wait()
		f.mu.Lock()
		n.process, n.at = nil, addresses{}
		crashed := !n.killed && (err != nil || n.is != draining)
		f.setLocked(n, down)
		if crashed {
			f.crashed++
		}
		f.mu.Unlock()
		if crashed {
			all, inShort := f.said.last(n.id)
			f.diary.printf("%s ENDED BADLY, %v: %s", n.id, cmp.Or(err, errors.New("without an error")), inShort)
			fmt.Fprintf(os.Stderr, "node %s said last:\n%s\n", n.id, all)
		}
	})
	return nil
}

// kill ends a node as the kernel does when memory is short: at once, and nobody
// is told.
func (f *fleet) kill(id string) error {
	f.mu.Lock()
	n := f.nodes[id]
	if n.process == nil {
		f.mu.Unlock()
		return fmt.Errorf("%s is %s", id, n.is)
	}
	n.killed = true
	n.Killed++
	ended := n.ended
	f.diary.printf("kill -9 %s", id)
	err := n.process.Kill()
	f.mu.Unlock()
	<-ended
	return err
}

// stop stops a node's process for a while, as a machine does that swaps or
// whose virtual machine is moved.
func (f *fleet) stop(id string, length time.Duration) error {
	f.mu.Lock()
	n := f.nodes[id]
	p := n.process
	err := f.setLocked(n, stopped, up)
	if err == nil {
		n.Stopped++
		f.diary.printf("stop %s for %.1f s", id, length.Seconds())
		err = pause(p)
	}
	f.mu.Unlock()
	if err != nil {
		return err
	}
	f.work.Go(func() {
		pauseFor(f.ctx, length)
		f.mu.Lock()
		if n.process == p && n.is == stopped {
			f.diary.printf("%s goes on", id)
			resume(p)
			f.setLocked(n, up)
		}
		f.mu.Unlock()
	})
	return nil
}

// drain lets a node shut down in order. It does not wait for the end.
func (f *fleet) drain(id string) error {
	f.mu.Lock()
	n := f.nodes[id]
	err := f.setLocked(n, draining, up)
	if err == nil {
		n.Drained++
	}
	p, ended := n.process, n.ended
	f.mu.Unlock()
	if err != nil {
		return err
	}
	f.diary.printf("drain %s", id)
	ctx, cancel := context.WithTimeout(f.ctx, 2*time.Second)
	defer cancel()
	err = f.ask(ctx, id, "POST", "/control/drain", nil, nil)
	f.work.Go(func() {
		late := time.NewTimer(endTime + 5*time.Second)
		defer late.Stop()
		select {
		case <-ended:
			f.diary.printf("%s has ended", id)
		case <-late.C:
			f.diary.printf("%s DOES NOT END, and is killed", id)
			f.mu.Lock()
			f.crashed++
			f.mu.Unlock()
			p.Kill()
		}
	})
	return err
}

// restart drains a node that is up, waits for its end and starts it again.
func (f *fleet) restart(ctx context.Context, id string) error {
	f.mu.Lock()
	n := f.nodes[id]
	is := n.is
	f.mu.Unlock()
	if is == up {
		if err := f.drain(id); err != nil {
			return err
		}
		is = draining
	}
	if is == draining {
		if err := f.until(ctx, func() bool { return n.is == down }); err != nil {
			return err
		}
	}
	return f.start(ctx, id)
}

const farewell = 2 * time.Second // for a node that is to end

// end ends every node, and returns when they have ended.
func (f *fleet) end() {
	f.cancel()
	f.launching.Lock() // what starts now starts no more
	defer f.launching.Unlock()
	f.mu.Lock()
	var late []*time.Timer
	for _, n := range f.nodes {
		if n.process == nil {
			continue
		}
		n.killed = true
		n.stdin.Close()
		if n.is == stopped {
			n.process.Kill() // it reads nothing
			continue
		}
		p := n.process
		late = append(late, time.AfterFunc(farewell, func() { p.Kill() }))
	}
	f.mu.Unlock()
	f.work.Wait()
	for _, t := range late {
		t.Stop()
	}
	f.http.CloseIdleConnections()
}

// has tells whether there is such a node.
func (f *fleet) has(id string) bool { return slices.Contains(nodeIDs, id) }

// up tells which nodes serve.
func (f *fleet) up() (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range nodeIDs {
		if f.nodes[id].is == up {
			ids = append(ids, id)
		}
	}
	return ids
}

// crashes is how many nodes ended badly.
func (f *fleet) crashes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashed
}

// stops is how often a node was stopped.
func (f *fleet) stops(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[id].Stopped
}

// nodeView is a node for the page and the table.
type nodeView struct {
	ID  string    `json:"id"`
	Is  state     `json:"is"`
	PID int       `json:"pid"` // 0: none
	At  addresses `json:"at"`
	tally
}

func (f *fleet) view() (views []nodeView) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range nodeIDs {
		n := f.nodes[id]
		v := nodeView{ID: id, Is: n.is, At: n.at, tally: n.tally}
		if n.process != nil {
			v.PID = n.process.Pid
		}
		views = append(views, v)
	}
	return views
}

// pauseFor waits, and reports false if ctx ended before.
func pauseFor(ctx context.Context, length time.Duration) bool {
	t := time.NewTimer(length)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// strain is what goes on in a cluster while something breaks: goroutines on each
// node push to everybody, devices of several doors answer, and a ledger has
// every push and everything that was heard. check compares them.
type strain struct {
	t    *testing.T
	w    *clusterWorld
	seed uint64

	// moves: users move between nodes, so what is pushed to a room, or is Async,
	// may overtake what was pushed before, and the other way round.
	moves bool

	work sync.WaitGroup

	mu       sync.Mutex
	pushes   []*pushed             // guarded by mu
	ears     []*listener           // guarded by mu
	stops    map[*nodeWorld]func() // guarded by mu: end the senders of a node
	troubles []*trouble            // guarded by mu
	users    []string              // guarded by mu: who is pushed to
	senders  int                   // guarded by mu: the last one
	runs     map[string]int        // guarded by mu: how often a node was started again
	errs     int                   // guarded by mu
	dead     map[*nodeWorld]bool   // guarded by mu
}

// pushed is one push and what came of it.
type pushed struct {
	from           string // node
	sender, number int
	to             push.Audience
	m              push.Message
	begin          time.Time
	took, limit    time.Duration
	over           bool // it returned, or if Async all is settled
	refused        bool // its node is closed
	finals         int  // calls of Progress with everything settled
	r              push.Receipt
	err            error
}

// listener is a visitor by what it heard.
type listener struct {
	*visitor
	user, room   string
	since, until time.Time // known everywhere, and going; until is the zero time while it stays
	loose        bool      // it may go at any time
	heard        map[int][]int
}

// trouble is the time in which what goes between some nodes may fail.
type trouble struct {
	from, to time.Time // to is the zero time while it lasts
	between  func(x, y string) bool
}

// faultConfig is for nodes under load: users have many devices, but for those
// that come with os=one, of which the last one stays.
func faultConfig(cfg *push.Config) {
	cfg.DeviceClass = func(l *push.Login) string {
		if l.OS == "one" {
			return "one"
		}
		return ""
	}
}

// loadDoors are those that a load's devices come through.
var loadDoors = []string{"push.json", "mpush tcp plain", "socket.io.5 websocket", "push.msgpack", "mpush ws binary", "socket.io.4 polling"}

// newStrain lets three devices in on each node x: of the users only-x, who is on
// x alone, both-x, who is on the next one, too, and of the one before.
func newStrain(t *testing.T, w *clusterWorld) *strain {
	t.Helper()
	l := &strain{t: t, w: w, seed: rand.Uint64(), stops: map[*nodeWorld]func(){}, runs: map[string]int{}, dead: map[*nodeWorld]bool{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", l.seed)
		}
	})
	for i, n := range w.nodes {
		next := w.nodes[(i+1)%len(w.nodes)]
		l.visits(n, loadDoors[i%len(loadDoors)], "only-"+n.name)
		l.visits(n, loadDoors[(i+1)%len(loadDoors)], "both-"+n.name)
		l.visits(next, loadDoors[(i+3)%len(loadDoors)], "both-"+n.name)
		l.users = append(l.users, "only-"+n.name, "both-"+n.name)
	}
	w.spreads()
	return l
}

func (l *strain) errorf(format string, args ...any) {
	l.t.Helper()
	l.mu.Lock()
	l.errs++
	n := l.errs
	l.mu.Unlock()
	if n <= 12 {
		l.t.Errorf(format, args...)
	} else if n == 13 {
		l.t.Error("… and more")
	}
}

// visits lets a device in that stays until it leaves.
func (l *strain) visits(n *nodeWorld, door, user string, more ...string) *listener {
	l.t.Helper()
	e := &listener{visitor: n.visits(door, user, append(more, "token=hall")...), user: user, room: "hall", since: time.Now(), heard: map[int][]int{}}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ears = append(l.ears, e)
	return e
}

// leaves ends a device.
func (l *strain) leaves(e *listener) {
	l.mu.Lock()
	e.until = time.Now()
	l.mu.Unlock()
	e.vanishes()
}

// begins lets so many goroutines of each node push, each about once in every.
func (l *strain) begins(count int, every time.Duration) {
	for _, n := range l.w.nodes {
		l.beginsOn(n, count, every)
	}
}

func (l *strain) beginsOn(n *nodeWorld, count int, every time.Duration) {
	ctx, stop := context.WithCancel(context.Background())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stops[n] = stop
	for range count {
		l.senders++
		sender := l.senders
		l.work.Go(func() {
			rnd := rand.New(rand.NewPCG(l.seed, uint64(sender)))
			for number := 1; ctx.Err() == nil; number++ {
				l.sends(n, sender, number, rnd)
				sleepFor(ctx, time.Duration(rnd.Int64N(int64(2*every))))
			}
		})
	}
}

// sends pushes something to somebody, and notes what comes of it.
func (l *strain) sends(n *nodeWorld, sender, number int, rnd *rand.Rand) {
	p := &pushed{from: n.name, sender: sender, number: number, m: push.Message{Event: "n", Ack: push.Ack(rnd.IntN(3))}}
	p.m.Data = map[string]any{"s": sender, "n": number, "pad": strings.Repeat("x", rnd.IntN(200))}
	l.mu.Lock()
	switch k := rnd.IntN(9); k {
	case 0, 1:
		for _, i := range rnd.Perm(len(l.users))[:1+rnd.IntN(len(l.users)-1)] {
			p.to.Users = append(p.to.Users, l.users[i])
		}
	case 2, 3:
		p.to.Room = "hall"
		p.m.Ack = push.Ack(2 * (k - 2)) // none or BizAck
	case 4:
		e := l.ears[rnd.IntN(len(l.ears))]
		p.to.Conn = push.ConnID(0)
		if c := e.conn(); c != nil && !l.dead[e.node] {
			p.to.Conn = c.ID()
		} else {
			p.to.User = e.user
		}
	default:
		p.to.User = l.users[rnd.IntN(len(l.users))]
	}
	l.mu.Unlock()
	quiet := p.quiet()
	p.m.Async = !quiet && rnd.IntN(4) == 0
	l.does(n, p, []time.Duration{0, 500 * time.Millisecond, time.Second, 3 * time.Second}[rnd.IntN(4)])
}

// quiet pushes have counts only.
func (p *pushed) quiet() bool { return p.to.Room != "" && p.m.Ack == push.NoAck }

// does a push with a deadline, if it is not 0, and returns when its outcome is
// known; of Async ones when they return.
func (l *strain) does(n *nodeWorld, p *pushed, deadline time.Duration) *pushed {
	const ackTimeout = 5 * time.Second
	ctx, cancel := context.Background(), func() {}
	p.limit = ackTimeout
	if deadline > 0 {
		ctx, cancel = context.WithTimeout(ctx, deadline)
		if !p.m.Async {
			p.limit = min(p.limit, deadline)
		}
	}
	defer cancel()
	p.from, p.begin = n.name, time.Now()
	l.mu.Lock()
	l.pushes = append(l.pushes, p)
	l.mu.Unlock()
	p.m.Progress = func(r push.Receipt) {
		if r.Sent+r.Acked+r.Failed != r.Targets {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		p.finals++
		if p.m.Async {
			p.took, p.over, p.r = time.Since(p.begin), true, r
		}
	}
	r, err := n.Push(ctx, p.to, p.m)
	l.mu.Lock()
	defer l.mu.Unlock()
	p.err, p.refused = err, errors.Is(err, push.ErrClosed)
	if !p.m.Async || err != nil {
		p.took, p.over, p.r = time.Since(p.begin), true, r
	} else if took := time.Since(p.begin); took > time.Second {
		l.t.Errorf("%v returned after %v", p, took)
	}
	return p
}

func (p *pushed) String() string {
	var to []string
	for _, s := range []string{p.to.User, p.to.Room} {
		if s != "" {
			to = append(to, s)
		}
	}
	to = append(to, p.to.Users...)
	if p.to.Conn != 0 {
		to = append(to, p.to.Conn.String())
	}
	return fmt.Sprintf("push %d/%d of %s to %s (ack %d, async %v, at %s, took %v of %v)", p.sender, p.number, p.from, strings.Join(to, ","), p.m.Ack, p.m.Async, p.begin.Format("04:05.000"), p.took, p.limit)
}

// begun starts a time of trouble between nodes; mended ends it.
func (l *strain) begun(between func(x, y string) bool) *trouble {
	tr := &trouble{from: time.Now(), between: between}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.troubles = append(l.troubles, tr)
	return tr
}

func (l *strain) mended(tr *trouble) {
	l.mu.Lock()
	defer l.mu.Unlock()
	tr.to = time.Now()
}

// heals wants the cluster to be whole within a time, and to stay so, and ends a
// trouble in which nodes may have taken others for dead. They still say so when
// they are back, and until those have answered that they live any node may be
// hidden for a moment: 5 s are given for that.
func (l *strain) heals(tr *trouble, limit time.Duration) (took time.Duration) {
	l.t.Helper()
	all := l.begun(func(x, y string) bool { return true })
	took = l.within(limit, "whole", l.whole)
	time.Sleep(5 * time.Second)
	if wrong := l.whole(); wrong != "" {
		l.errorf("whole after %v, but not 5 s later: %s", took, wrong)
	}
	l.mended(tr)
	l.mended(all)
	return took
}

// with is trouble with these nodes.
func with(names ...string) func(x, y string) bool {
	return func(x, y string) bool { return slices.Contains(names, x) || slices.Contains(names, y) }
}

// across is trouble between the sides of a partition.
func across(side ...string) func(x, y string) bool {
	return func(x, y string) bool { return slices.Contains(side, x) != slices.Contains(side, y) }
}

func (l *strain) troubledLocked(x, y string, from, to time.Time) bool {
	return x != y && slices.ContainsFunc(l.troubles, func(tr *trouble) bool {
		return !to.Before(tr.from) && (tr.to.IsZero() || !from.After(tr.to)) && tr.between(x, y)
	})
}

// dies ends a node without goodbye, by Host.Kill or Host.Unplug; what it does
// from then on counts for nothing.
func (l *strain) dies(n *nodeWorld, how func()) {
	l.mu.Lock()
	for _, e := range l.ears {
		if e.node == n && e.until.IsZero() {
			e.until = time.Now()
		}
	}
	if stop := l.stops[n]; stop != nil {
		stop()
	}
	delete(l.stops, n)
	l.dead[n] = true
	for _, p := range l.pushes {
		if p.from == n.name && !p.over {
			p.from = "" // nobody is there to hear of it
		}
	}
	l.w.nodes = slices.DeleteFunc(l.w.nodes, func(other *nodeWorld) bool { return other == n })
	l.mu.Unlock()
	how()
}

// starts starts a node that has died, or left, as a new run.
func (l *strain) starts(name string, at int) *nodeWorld {
	l.t.Helper()
	n := l.w.starts(name, at)
	l.mu.Lock()
	l.runs[name]++
	n.seq.Add(int64(l.runs[name]) * 10_000) // device ids are unlike those of earlier runs
	l.mu.Unlock()
	return n
}

// ends stops all senders and waits for what is under way.
func (l *strain) ends() {
	l.mu.Lock()
	for _, stop := range l.stops {
		stop()
	}
	clear(l.stops)
	l.mu.Unlock()
	l.work.Wait()
	time.Sleep(6 * time.Second) // for Async ones
	synctest.Wait()
}

// key is what devices hear of a push.
type key struct{ sender, number int }

// outcomes counts how pushes ended, for the log of a test.
func (l *strain) outcomes() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := map[string]int{}
	for _, p := range l.pushes {
		for _, d := range p.r.Deliveries {
			n[d.Status.String()]++
		}
		n["offline"] += len(p.r.Offline)
		n["pushes"]++
	}
	return fmt.Sprint(n)
}

// check ends the load and compares what senders were told with what devices
// heard:
//
//   - each push ended by its deadline, with one outcome for each device;
//   - who is Acked has it, and so has who is Sent and stayed; who is Offline,
//     Overloaded or TooLarge has not;
//   - who has it is in the receipt, or his node is;
//   - nobody heard anything twice, or out of a sender's order;
//   - between nodes without trouble each device that was there has it.
func (l *strain) check() {
	l.t.Helper()
	l.ends()
	heard := map[*listener]map[key]bool{}
	for _, e := range l.ears {
		heard[e] = l.hears(e)
	}
	l.mu.Lock()
	pushes, ears := slices.Clone(l.pushes), slices.Clone(l.ears)
	l.mu.Unlock()
	for _, p := range pushes {
		if p.from != "" {
			l.checkPush(p, ears, heard)
		}
	}
	for _, n := range l.w.nodes {
		s := n.Stats()
		if s.Flights != 0 || s.Panics != 0 || s.Cluster.Diverged != 0 || s.Cluster.Malformed != 0 {
			l.errorf("%s ends with %d flights, %d panics, cluster %+v", n.name, s.Flights, s.Panics, *s.Cluster)
		}
	}
}

// hears takes what a device heard, and checks its order.
func (l *strain) hears(e *listener) map[key]bool {
	all := map[key]bool{}
	last := map[[2]int]int{}
	l.mu.Lock()
	kind := map[key]int{} // pushes of one kind are in order
	for _, p := range l.pushes {
		switch {
		case !l.moves:
		case p.to.Room != "":
			kind[key{p.sender, p.number}] = 1
		case p.m.Async:
			kind[key{p.sender, p.number}] = 2 + p.number // in no order
		}
	}
	l.mu.Unlock()
	for _, text := range e.visitor.heard() {
		var n numbered
		if json.Unmarshal([]byte(text), &n) != nil || n.Number == 0 {
			continue
		}
		k := key{n.Sender, n.Number}
		if all[k] {
			l.errorf("%v heard %v twice", e, k)
		}
		all[k] = true
		of := [2]int{n.Sender, kind[k]}
		if n.Number < last[of] {
			l.errorf("%v heard %v after %v of the same sender", e, l.find(k), l.find(key{n.Sender, last[of]}))
		}
		last[of] = max(last[of], n.Number)
	}
	return all
}

// find is the push that devices hear as k.
func (l *strain) find(k key) *pushed {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pushes {
		if p.sender == k.sender && p.number == k.number {
			return p
		}
	}
	return nil
}

// nodeRow stands for devices that a node has not told of.
type nodeRow struct{ node, user string }

func (l *strain) checkPush(p *pushed, ears []*listener, heard map[*listener]map[key]bool) {
	if !p.over {
		l.errorf("%v has no outcome", p)
		return
	}
	if p.took > p.limit {
		l.errorf("%v overran its deadline", p)
	}
	if p.refused {
		for _, e := range ears {
			if heard[e][key{p.sender, p.number}] {
				l.errorf("%v was refused, and %v has it", p, e)
			}
		}
		return
	}
	if p.finals != 1 {
		l.errorf("%v told Progress %d times that everything is settled", p, p.finals)
	}
	end := p.begin.Add(p.took)
	byDevice := map[string]push.Delivery{}
	byNode := map[nodeRow]push.Status{}
	n := map[push.Status]int{}
	for _, d := range p.r.Deliveries {
		n[d.Status]++
		if d.Conn == 0 || p.to.Conn != 0 && d.DeviceID == "" { // a node, or a Conn that there is not
			row := nodeRow{d.Node, d.UserID}
			if _, twice := byNode[row]; twice || !slices.Contains([]push.Status{push.NodeLost, push.Overloaded, push.TooLarge, push.Offline}, d.Status) || d.Status == push.Offline && p.to.Conn == 0 {
				l.errorf("%v: %+v in %+v", p, d, p.r)
			}
			byNode[row] = d.Status
			l.mu.Lock()
			bad := l.troubledLocked(p.from, d.Node, p.begin, end)
			l.mu.Unlock()
			if d.Status != push.Offline && !bad {
				l.errorf("%v: %+v, and there is no trouble between these nodes", p, d)
			}
			continue
		}
		if _, twice := byDevice[d.DeviceID]; twice {
			l.errorf("%v: two outcomes for %s: %+v", p, d.DeviceID, p.r)
		}
		byDevice[d.DeviceID] = d
		ok := true
		switch d.Status {
		case push.Sent:
			ok = p.m.Ack == push.NoAck
		case push.Acked, push.Timeout, push.Gone:
			ok = p.m.Ack != push.NoAck
		case push.NodeLost, push.Offline, push.Slow, push.Overloaded:
		default:
			ok = false
		}
		if !ok || d.Latency > p.took || d.Latency < 0 {
			l.errorf("%v: outcome %+v", p, d)
		}
	}
	r := &p.r
	if !p.quiet() {
		failed := len(r.Deliveries) - n[push.Sent] - n[push.Acked]
		if r.Targets != len(r.Deliveries) || r.Sent != n[push.Sent] || r.Acked != n[push.Acked] || r.Failed != failed {
			l.errorf("%v counts %d = %d + %d + %d, its deliveries %v", p, r.Targets, r.Sent, r.Acked, r.Failed, n)
		}
		if !p.m.Async && (p.err == nil) != (r.Sent+r.Acked > 0) {
			l.errorf("%v: error %v of %+v", p, p.err, r)
		}
		if p.err != nil && !errors.Is(p.err, context.DeadlineExceeded) {
			for status := range n {
				if status != push.Sent && status != push.Acked && !errors.Is(p.err, statusError[status]) {
					l.errorf("%v: error %v, and %v", p, p.err, status)
				}
			}
		}
	}
	for i, user := range r.Offline {
		if slices.Contains(r.Offline[i+1:], user) || slices.ContainsFunc(r.Deliveries, func(d push.Delivery) bool { return d.UserID == user }) {
			l.errorf("%v: %s is offline: %+v", p, user, r)
		}
	}

	k := key{p.sender, p.number}
	for _, e := range ears {
		has := heard[e][k]
		row, told := byDevice[e.id()]
		meant := e.user == p.to.User && e.user != "" || slices.Contains(p.to.Users, e.user) || p.to.Room != "" && e.room == p.to.Room || p.to.Conn != 0 && (told || has)
		if !meant {
			if has || told {
				l.errorf("%v went to %v", p, e)
			}
			continue
		}
		l.mu.Lock()
		if p.quiet() { // it may be on its way
			end = p.begin.Add(p.took + 100*time.Millisecond)
		}
		stays := e.until.IsZero()
		there := !e.loose && !e.since.Add(50*time.Millisecond).After(p.begin) && (stays || e.until.After(end)) && !l.troubledLocked(p.from, e.node.name, p.begin, end)
		l.mu.Unlock()
		if p.quiet() {
			if there && stays && !has {
				l.errorf("%v was not heard by %v, who was there", p, e)
			}
			continue
		}
		_, ofUser := byNode[nodeRow{e.node.name, e.user}]
		_, ofNode := byNode[nodeRow{e.node.name, ""}]
		switch {
		case has && !told && !ofUser && !ofNode:
			l.errorf("%v was heard by %v, who is not in %+v", p, e, r)
		case row.Status == push.Acked && !has:
			l.errorf("%v says that %v has it", p, e)
		case row.Status == push.Sent && !has && stays && !e.loose:
			l.errorf("%v was sent to %v, who stayed and has not heard it", p, e)
		case has && slices.Contains([]push.Status{push.Offline, push.Overloaded, push.TooLarge, push.Slow}, row.Status):
			l.errorf("%v says %v, and %v has it", p, row.Status, e)
		case has && slices.Contains(r.Offline, e.user):
			l.errorf("%v says that %s is offline, and %v has it", p, e.user, e)
		case there && p.to.Conn == 0 && row.Status != push.Sent && row.Status != push.Acked:
			l.errorf("%v to %v, who was there: %+v", p, e, r)
		}
	}
}

var statusError = map[push.Status]error{
	push.Timeout: push.ErrTimeout, push.Gone: push.ErrGone, push.Offline: push.ErrOffline, push.Slow: push.ErrSlow,
	push.TooLarge: push.ErrTooLarge, push.Overloaded: push.ErrOverloaded, push.NodeLost: push.ErrNodeLost,
}

// within waits until ok says nothing, and tells how long that took. It fails the
// test with what ok says when the time is over.
func (l *strain) within(limit time.Duration, what string, ok func() string) time.Duration {
	l.t.Helper()
	begin := time.Now()
	for {
		wrong := ok()
		took := time.Since(begin)
		if wrong == "" {
			return took
		}
		if took >= limit {
			l.errorf("after %v not %s: %s", limit, what, wrong)
			return took
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// hides wants users to be offline on all nodes that are there, within a time.
func (l *strain) hides(limit time.Duration, users ...string) time.Duration {
	l.t.Helper()
	return l.within(limit, "hidden", func() string {
		for _, n := range l.w.nodes {
			for _, user := range users {
				if n.Online(user) {
					return user + " is online on " + n.name
				}
			}
		}
		return ""
	})
}

// same says what is wrong with what the nodes know: each has to know all of
// them, and who is there. It takes no time.
func (l *strain) same() string {
	users, _ := l.there()
	var names []string
	for _, n := range l.w.nodes {
		names = append(names, n.name)
	}
	slices.Sort(names)
	for _, n := range l.w.nodes {
		if got := n.sees(); !slices.Equal(got, names) {
			return fmt.Sprintf("%s sees nodes %v, want %v", n.name, got, names)
		}
		if got := slices.Sorted(n.Users()); !slices.Equal(got, users) {
			return fmt.Sprintf("%s has %s", n.name, differ(got, users))
		}
		for _, user := range users {
			if !n.Online(user) {
				return fmt.Sprintf("on %s, %s is not online", n.name, user)
			}
		}
	}
	return ""
}

// there are the users and their devices, as the nodes have them.
func (l *strain) there() (users, devices []string) {
	for _, n := range l.w.nodes {
		for c := range n.Conns() {
			if c.UserID() != "" {
				users = append(users, c.UserID())
				devices = append(devices, c.UserID()+" "+c.ID().String()+" "+n.name)
			}
		}
	}
	slices.Sort(users)
	slices.Sort(devices)
	return slices.Compact(users), devices
}

// whole is same, and wants each node to be told by the others who is where.
func (l *strain) whole() string {
	if wrong := l.same(); wrong != "" {
		return wrong
	}
	users, devices := l.there()
	for _, n := range l.w.nodes { // the links answer
		all, err := n.Devices(context.Background(), push.Audience{All: true})
		var got []string
		for _, d := range all {
			if d.UserID != "" {
				got = append(got, d.UserID+" "+d.Conn.String()+" "+d.Node)
			}
		}
		slices.Sort(got)
		if err != nil || !slices.Equal(got, devices) {
			return fmt.Sprintf("%s: %v, %s", n.name, err, differ(got, devices))
		}
		for _, user := range users[:min(len(users), 10)] {
			some, err := n.Devices(context.Background(), push.Audience{User: user})
			if want := len(slices.DeleteFunc(slices.Clone(devices), func(d string) bool { return !strings.HasPrefix(d, user+" ") })); err != nil || len(some) != want {
				return fmt.Sprintf("%s: %v, %s has %d devices, want %d", n.name, err, user, len(some), want)
			}
		}
	}
	return ""
}

// differ says how two sorted lists do.
func differ(got, want []string) string {
	more := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return slices.Contains(want, s) })
	less := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(got, s) })
	return fmt.Sprintf("%d too many: %.200v, %d too few: %.200v", len(more), more, len(less), less)
}

// died lists what the nodes said of nodes that they took for dead.
func (l *strain) died() (lines []string) {
	for _, n := range l.w.nodes {
		lines = append(lines, n.log.at(slog.LevelInfo, "node gone")...)
	}
	return lines
}

// stats are the counters of the nodes that are there, by name.
func (l *strain) stats() map[string]push.ClusterStats {
	all := map[string]push.ClusterStats{}
	for _, n := range l.w.nodes {
		all[n.name] = *n.Stats().Cluster
	}
	return all
}

// probe is one push to a user, apart from the senders'.
func (l *strain) probe(n *nodeWorld, user string, ack push.Ack, deadline time.Duration) *pushed {
	l.mu.Lock()
	l.senders++
	p := &pushed{sender: l.senders, number: 1, to: push.Audience{User: user}, m: push.Message{Event: "n", Ack: ack}}
	l.mu.Unlock()
	p.m.Data = numbered{p.sender, p.number}
	return l.does(n, p, deadline)
}

// statuses of a push, sorted.
func (p *pushed) statuses() (all []push.Status) {
	for _, d := range p.r.Deliveries {
		all = append(all, d.Status)
	}
	slices.Sort(all)
	return all
}

// named are nodes by their names.
func (w *clusterWorld) named(names ...string) (nodes []*nodeWorld) {
	for _, name := range names {
		nodes = append(nodes, w.node(name))
	}
	return nodes
}

// isolates cuts a node off all others, rejoins undoes it.
func (l *strain) isolates(n *nodeWorld) {
	for _, other := range l.w.nodes {
		if other != n {
			l.w.cuts(n, other)
		}
	}
}

func (l *strain) rejoins(n *nodeWorld) {
	for _, other := range l.w.nodes {
		if other != n {
			l.w.mends(n, other)
		}
	}
}

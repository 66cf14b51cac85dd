//go:build processes

package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/link"
)

// A node of a process test is this program started again. It reads lines of
// JSON from its stdin: first a procConfig, then a procAsk each, and writes
// procTells to its stdout; what is logged goes to its stderr. It ends with its
// stdin.

const procEnv = "PUSH_PROCESS_NODE" // set for a node

// A node takes over before the flags are looked at.
func init() {
	if os.Getenv(procEnv) == "" {
		return
	}
	if err := runProcNode(); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// procConfig is what a node is made of.
type procConfig struct {
	ID      string        `json:"id"`
	Bind    string        `json:"bind"`  // of the cluster
	HTTP    string        `json:"http"`  // where pages come
	MPush   string        `json:"mpush"` // where devices come
	Seeds   []string      `json:"seeds"`
	Secrets [][]byte      `json:"secrets"`
	Drain   time.Duration `json:"drain"`
}

// procAsk is one request of the parent.
type procAsk struct {
	ID      uint64        `json:"id"`
	Op      string        `json:"op"`
	Users   []string      `json:"users,omitempty"`
	Room    string        `json:"room,omitempty"`
	Workers int           `json:"workers,omitempty"`
	Rate    int           `json:"rate,omitempty"`
	Wait    time.Duration `json:"wait,omitempty"`
}

// procTell is one line of a node: a push that its load made, a time in which it
// did not run, or the answer to the request with this id. The first line of all
// is where it listens, under id 0.
type procTell struct {
	ID     uint64          `json:"id,omitempty"`
	Push   *procPush       `json:"push,omitempty"`
	Stall  *procStall      `json:"stall,omitempty"`
	Answer json.RawMessage `json:"answer,omitempty"`
}

// procPlace is where a node listens.
type procPlace struct {
	Cluster string `json:"cluster"`
	HTTP    string `json:"http"`
	MPush   string `json:"mpush"`
	Proto   int    `json:"proto"` // the newest protocol of links that it speaks
}

// procPush is a push with its outcome. Times are Unix nanoseconds, by the clock
// that all processes of a machine share.
type procPush struct {
	ID       string        `json:"i"` // worker/number, the worker's name unlike any other's
	Room     string        `json:"m,omitempty"`
	To       []string      `json:"t"` // users; nil, and no Room: all
	Begin    int64         `json:"b"`
	End      int64         `json:"e"`
	Took     time.Duration `json:"k"`
	Deadline time.Duration `json:"d"`
	Targets  int           `json:"n"`
	Open     int           `json:"o,omitempty"` // targets that no count has
	Offline  []string      `json:"f,omitempty"`
	Rows     []procRow     `json:"r"`
	Err      string        `json:"x,omitempty"`
}

type procRow struct {
	User   string      `json:"u,omitempty"`
	Device string      `json:"d,omitempty"`
	Node   string      `json:"n"`
	Conn   push.ConnID `json:"c"`
	Status push.Status `json:"s"`
}

// procFlood is what came of a flood. Its devices only count.
type procFlood struct {
	Begun    int            `json:"begun"`
	Statuses map[string]int `json:"statuses"`
	Errors   map[string]int `json:"errors"`  // that are of no status
	Longest  procStall      `json:"longest"` // call
	Memory   uint64         `json:"memory"`  // in use before it …
	Peak     uint64         `json:"peak"`    // … and the most while it went on
	Routines int            `json:"routines"`
}

type procNodeState struct {
	e   *push.Engine
	cfg procConfig

	mu  sync.Mutex // guards what follows
	out *bufio.Writer

	loading  context.Context // nil: not yet
	loadStop context.CancelFunc
	load     sync.WaitGroup

	floodStop context.CancelFunc
	flooded   chan procFlood // holds one
}

func runProcNode() error {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	n := &procNodeState{out: bufio.NewWriter(os.Stdout)}
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, &n.cfg); err != nil {
		return err
	}
	n.e, err = push.New(push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			l.Rooms = []string{procRoom(n.cfg.ID)}
			return push.TrustClaims(ctx, l)
		},
		Drain:  n.cfg.Drain,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Cluster: &push.Cluster{
			Node: n.cfg.ID, Bind: n.cfg.Bind, Seeds: n.cfg.Seeds, Secrets: n.cfg.Secrets,
		},
	})
	if err != nil {
		return err
	}
	pages, err := net.Listen("tcp", n.cfg.HTTP)
	if err != nil {
		return err
	}
	devices, err := net.Listen("tcp", n.cfg.MPush)
	if err != nil {
		return err
	}
	go procClock(context.Background(), func(s procStall) { n.tell(&procTell{Stall: &s}) })
	go http.Serve(pages, n.e)
	go n.e.Serve(devices)
	place := procPlace{HTTP: pages.Addr().String(), MPush: devices.Addr().String(), Proto: link.MaxProto}
	for _, node := range n.e.Nodes() {
		if node.Self {
			place.Cluster = node.Addr
		}
	}
	n.answer(0, place)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil // the parent is gone, or done
		}
		var ask procAsk
		if err := json.Unmarshal(line, &ask); err != nil {
			return err
		}
		go n.do(&ask)
	}
}

// procClock tells of times in which this process did not run though it wanted
// to, until ctx ends: it was stopped, or the machine had other things to do.
func procClock(ctx context.Context, tell func(procStall)) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for last := time.Now(); ctx.Err() == nil; {
		<-tick.C
		now := time.Now()
		if now.Sub(last) > 100*time.Millisecond {
			tell(procStall{last.UnixNano(), now.UnixNano()})
		}
		last = now
	}
}

// procStall is a time, in Unix nanoseconds.
type procStall struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

func (n *procNodeState) answer(id uint64, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		b, _ = json.Marshal(err.Error())
	}
	n.tell(&procTell{ID: id, Answer: b})
}

func (n *procNodeState) tell(t *procTell) {
	b, err := json.Marshal(t)
	if err != nil {
		panic(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out.Write(b)
	n.out.WriteByte('\n')
	n.out.Flush()
}

func (n *procNodeState) do(ask *procAsk) {
	ctx := context.Background()
	if ask.Wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, ask.Wait)
		defer cancel()
	}
	switch ask.Op {
	case "nothing":
		n.answer(ask.ID, nil)
	case "nodes":
		n.answer(ask.ID, n.e.Nodes())
	case "ready":
		n.answer(ask.ID, fmt.Sprint(n.e.Ready()))
	case "online":
		online := make(map[string]bool)
		for _, user := range ask.Users {
			online[user] = n.e.Online(user)
		}
		n.answer(ask.ID, online)
	case "push":
		n.answer(ask.ID, n.push(ctx, fmt.Sprintf("asked %s/%d", n.cfg.ID, time.Now().UnixNano()), "", ask.Users, push.AutoAck, ask.Wait))
	case "stats":
		n.answer(ask.ID, n.e.Stats())
	case "load":
		n.mu.Lock()
		if n.loading == nil {
			n.loading, n.loadStop = context.WithCancel(context.Background())
		}
		ctx := n.loading
		n.mu.Unlock()
		for i := range ask.Workers {
			n.load.Go(func() { n.work(ctx, fmt.Sprintf("%s-%d-%d-%d", n.cfg.ID, os.Getpid(), ask.ID, i), ask.Users) })
		}
		n.answer(ask.ID, nil)
	case "rest":
		n.mu.Lock()
		if n.loadStop != nil {
			n.loadStop()
		}
		n.mu.Unlock()
		n.load.Wait()
		n.answer(ask.ID, nil)
	case "flood":
		ctx, cancel := context.WithCancel(context.Background())
		n.mu.Lock()
		n.floodStop, n.flooded = cancel, make(chan procFlood, 1)
		flooded := n.flooded
		n.mu.Unlock()
		n.answer(ask.ID, nil)
		flooded <- n.flood(ctx, ask)
	case "calm":
		n.mu.Lock()
		stop, flooded := n.floodStop, n.flooded
		n.mu.Unlock()
		stop()
		n.answer(ask.ID, <-flooded)
	case "shutdown":
		err := n.e.Shutdown(ctx)
		n.load.Wait() // its pushes are told, too
		text := ""
		if err != nil {
			text = err.Error()
		}
		n.answer(ask.ID, text)
		os.Exit(0)
	}
}

// push pushes its id, with an ack, to a room or to users; neither: to all.
func (n *procNodeState) push(ctx context.Context, id, room string, users []string, ack push.Ack, deadline time.Duration) *procPush {
	a := push.Audience{Room: room, All: room == "" && len(users) == 0}
	if len(users) == 1 {
		a.User = users[0]
	} else {
		a.Users = users
	}
	begin := time.Now()
	r, err := n.e.Push(ctx, a, push.Message{Event: procEvent, Data: id, Ack: ack})
	end := time.Now()
	p := &procPush{
		ID: id, Room: room, To: users, Begin: begin.UnixNano(), End: end.UnixNano(), Took: end.Sub(begin), Deadline: deadline,
		Targets: r.Targets, Open: r.Targets - r.Sent - r.Acked - r.Failed, Offline: r.Offline,
	}
	for _, d := range r.Deliveries {
		p.Rows = append(p.Rows, procRow{d.UserID, d.DeviceID, d.Node, d.Conn, d.Status})
	}
	switch {
	case errors.Is(err, push.ErrClosed):
		p.Err = procClosed
	case err != nil:
		p.Err = err.Error()
	}
	return p
}

// procRoom is the room in which all connections of a node are.
func procRoom(node string) string { return "at-" + node }

const (
	procEvent  = "load"
	procClosed = "closed"
)

// work pushes one after the other, until the engine is closed or ctx ends:
// mostly to one user, sometimes to some or to a room, seldom to all.
func (n *procNodeState) work(ctx context.Context, name string, users []string) {
	for i := 1; ctx.Err() == nil; i++ {
		room, to := "", []string{users[rand.IntN(len(users))]}
		switch rand.IntN(40) {
		case 0:
			to = nil
		case 1, 2:
			if nodes := n.e.Nodes(); len(nodes) > 0 {
				room, to = procRoom(nodes[rand.IntN(len(nodes))].ID), nil
			}
		case 3, 4, 5, 6:
			for _, at := range rand.Perm(len(users))[:min(3, len(users))] {
				to = append(to, users[at])
			}
			slices.Sort(to)
			to = slices.Compact(to)
		}
		deadline := time.Second * time.Duration(1+rand.IntN(2))
		ack := push.AutoAck
		if rand.IntN(2) == 0 {
			ack = push.BizAck
		}
		within, cancel := context.WithTimeout(context.Background(), deadline)
		p := n.push(within, fmt.Sprintf("%s/%d", name, i), room, to, ack, deadline)
		cancel()
		n.tell(&procTell{Push: p})
		if p.Err == procClosed {
			return
		}
		pause := time.NewTimer(procPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

const procPause = 10 * time.Millisecond // of a worker between two pushes

// flood pushes without acks at a rate, each call with a second's time. Half of
// the pushes are to users, from a pool of workers that wait for what becomes of
// them, and half to a room, from a smaller one that does not.
func (n *procNodeState) flood(ctx context.Context, ask *procAsk) (f procFlood) {
	runtime.GC()
	f.Statuses, f.Errors, f.Memory = make(map[string]int), make(map[string]int), procMemory()
	pad := struct{ Pad string }{strings.Repeat("x", 200)}
	var mu sync.Mutex // guards f
	var begun atomic.Int64
	one := func(a push.Audience) {
		begun.Add(1)
		within, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		begin := time.Now()
		r, err := n.e.Push(within, a, push.Message{Event: "flood", Data: pad})
		end := time.Now()
		mu.Lock()
		defer mu.Unlock()
		if end.Sub(begin) > time.Duration(f.Longest.To-f.Longest.From) {
			f.Longest = procStall{begin.UnixNano(), end.UnixNano()}
		}
		f.Statuses["of users offline"] += len(r.Offline)
		for _, d := range r.Deliveries {
			f.Statuses[d.Status.String()]++
		}
		if err != nil && len(r.Deliveries)+len(r.Offline) == 0 {
			f.Errors[err.Error()]++
		}
	}
	users, rooms := make(chan push.Audience, ask.Workers), make(chan push.Audience, ask.Workers/8)
	var pool sync.WaitGroup
	for _, turns := range []chan push.Audience{users, rooms} {
		for range cap(turns) {
			pool.Go(func() {
				for a := range turns {
					one(a)
				}
			})
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i, last := 0, time.Now(); ctx.Err() == nil; i++ {
		<-tick.C
		now := time.Now()
		for j := range min(int(now.Sub(last).Seconds()*float64(ask.Rate)), ask.Rate/10) {
			a, turns := push.Audience{Room: ask.Room}, rooms
			if j%2 == 0 {
				a, turns = push.Audience{User: ask.Users[j/2%len(ask.Users)]}, users
			}
			select {
			case turns <- a:
			default: // all workers are busy, and each has one to come
			}
		}
		last = now
		if i%20 == 0 {
			f.Routines = max(f.Routines, runtime.NumGoroutine())
			f.Peak = max(f.Peak, procMemory())
		}
	}
	close(users)
	close(rooms)
	pool.Wait()
	f.Peak = max(f.Peak, procMemory())
	f.Begun = int(begun.Load())
	return f
}

// procMemory is what heap and stacks use, garbage too.
func procMemory() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

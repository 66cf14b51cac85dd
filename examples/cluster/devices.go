package main

// The clients: where each is connected, what it saw, and which node is next.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// device is one client of a user.
type device struct {
	user, name string
	protocol   string
	home       string // the node it begins on

	all  *devices
	stay func(ctx context.Context, d *device) // connects, again and again, until ctx ends

	// Guarded by devices.mu.
	chosen string // the node it connects to; "": none
	on     string // the node it is connected to; "": none
	lost   int    // connections
	seen   int
	lines  []string // what it logged, the newest last
}

func (d *device) String() string { return d.user + "/" + d.name }

// query is how it names itself in a URL.
func (d *device) query() string {
	return url.Values{"user": {d.user}, "device": {d.name}}.Encode()
}

// devices are the clients, and the load balancer in front of the nodes.
type devices struct {
	fleet  *fleet
	ledger *ledger
	diary  *diary
	list   []*device
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	ctx    context.Context // ends when they do
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex    // guards what a device says it does
	changed chan struct{} // guarded by mu; closed and replaced when a device is connected
}

func newDevices(f *fleet, l *ledger, d *diary) *devices {
	all := &devices{fleet: f, ledger: l, diary: d, dial: new(net.Dialer).DialContext, changed: make(chan struct{})}
	all.ctx, all.cancel = context.WithCancel(context.Background())
	all.list = []*device{
		{user: "alice", name: "browser", protocol: "push.json", home: "a", stay: again(webSocket)},
		{user: "alice", name: "socketio", protocol: "socket.io", home: "b", stay: again(socketIO)},
		{user: "alice", name: "phone", protocol: "mpush", home: "c", stay: phone},
		{user: "bob", name: "browser", protocol: "push.json", home: "b", stay: again(webSocket)},
	}
	for _, d := range all.list {
		d.all = all
	}
	return all
}

func (a *devices) begin() {
	for _, d := range a.list {
		a.work.Go(func() { d.stay(a.ctx, d) })
	}
}

func (a *devices) end() {
	a.cancel()
	a.work.Wait()
}

// wait returns when every device is connected.
func (a *devices) wait(ctx context.Context) error {
	for {
		a.mu.Lock()
		var missing []string
		for _, d := range a.list {
			if d.on == "" {
				missing = append(missing, d.String())
			}
		}
		changed := a.changed
		a.mu.Unlock()
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s: not connected: %w", strings.Join(missing, ", "), context.Cause(ctx))
		}
	}
}

// choose is the load balancer: it tells a device its node, the one with the
// fewest devices of those that are up, and first of all its home. It waits for
// one to be up.
func (a *devices) choose(ctx context.Context, d *device) (id string, at addresses, err error) {
	if err := a.fleet.until(ctx, func() bool {
		for _, n := range a.fleet.nodes {
			if n.is == up {
				return true
			}
		}
		return false
	}); err != nil {
		return "", at, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	load := make(map[string]int)
	for _, other := range a.list {
		load[other.chosen]++
	}
	for _, n := range a.fleet.view() {
		if n.Is != up {
			continue
		}
		if d.lost == 0 && n.ID == d.home {
			id, at = n.ID, n.At
			break
		}
		if id == "" || load[n.ID] < load[id] {
			id, at = n.ID, n.At
		}
	}
	if id == "" {
		return "", at, errors.New("no node is up any more")
	}
	d.chosen = id
	return id, at, nil
}

// again is the stay of a device that dials anew each time.
func again(connect func(ctx context.Context, d *device, at addresses, opened func()) error) func(context.Context, *device) {
	return func(ctx context.Context, d *device) {
		for ctx.Err() == nil {
			if id, at, err := d.all.choose(ctx, d); err == nil {
				d.ended(connect(ctx, d, at, func() { d.opened(id) }))
			}
			pauseFor(ctx, 100*time.Millisecond+rand.N(200*time.Millisecond))
		}
	}
}

// opened: the device is logged in at a node.
func (d *device) opened(id string) {
	a := d.all
	a.mu.Lock()
	d.chosen, d.on = id, id
	line := "is on " + d.on
	d.noteLocked(line)
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	a.diary.printf("%s %s", d, line)
}

// ended: the connection to the chosen node has ended, or came to nothing.
func (d *device) ended(why error) {
	a := d.all
	if a.ctx.Err() != nil {
		return // by ourselves
	}
	a.mu.Lock()
	on := d.on
	d.chosen, d.on = "", ""
	line := ""
	if on != "" {
		d.lost++
		line = fmt.Sprintf("lost %s: %s", on, inShort(why))
		d.noteLocked(line)
	}
	a.mu.Unlock()
	if line != "" {
		a.diary.printf("%s %s", d, line)
	}
}

// saw: the device sees what was pushed to it. It acknowledges after this.
func (d *device) saw(data []byte) {
	var n note
	if err := json.Unmarshal(data, &n); err != nil {
		n = note{Text: fmt.Sprintf("%.100q, which is no note", data)}
	}
	d.all.ledger.saw(n.N, d.String())
	d.all.mu.Lock()
	defer d.all.mu.Unlock()
	d.seen++
	if n.Text != "" { // the load's have none, and are too many
		d.noteLocked(fmt.Sprintf("sees %q from %s", n.Text, n.From))
	}
}

const deviceLines = 8 // of its log

func (d *device) noteLocked(line string) {
	d.lines = append(d.lines, time.Now().Format("15:04:05 ")+line)
	d.lines = d.lines[max(0, len(d.lines)-deviceLines):]
}

// deviceView is a device for the page and the table.
type deviceView struct {
	Name     string   `json:"name"`
	Protocol string   `json:"protocol"`
	Home     string   `json:"home"`
	On       string   `json:"on"`
	Lost     int      `json:"lost"`
	Seen     int      `json:"seen"`
	Lines    []string `json:"lines"`
}

func (a *devices) view() (views []deviceView) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.list {
		views = append(views, deviceView{d.String(), d.protocol, d.home, d.on, d.lost, d.seen, append([]string{}, d.lines...)})
	}
	return views
}

// inShort is an error without what only a network needs to know.
func inShort(err error) string {
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		return fmt.Sprintf("close %d", closed.Code)
	}
	if err == nil {
		return "the end"
	}
	text := err.Error()
	if i := strings.LastIndex(text, ": "); strings.Contains(text, "->") {
		text = text[i+2:] // behind the addresses
	}
	return text
}

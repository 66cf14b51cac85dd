//go:build processes

package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/embedpush/push/client"
	"github.com/gorilla/websocket"
)

// procClient is a client: it acks what it gets when it has noted it, and comes
// back to its home, wherever that is then.
type procClient struct {
	w          *procWorld
	user, name string
	kind       string
	device     *client.Client // of kind mpush; else nil

	home   string    // guarded by procWorld.mu: a node; "": it stays away
	steady procSpans // guarded by procWorld.mu: it is there, and nothing is done to it or its node

	mu   sync.Mutex     // guards what follows
	got  map[string]int // by a push's id: the connection on which it came
	conn int            // the one that it has
	last map[string]int // of this connection, by worker: its last push
}

var procKinds = []string{"page", "socket.io", "mpush"}

func (w *procWorld) clientOf(user, name string) *procClient {
	for _, c := range w.clients {
		if c.user == user && c.name == name {
			return c
		}
	}
	return nil
}

// dial makes a client of a user, which lives on a node.
func (w *procWorld) dial(user, kind, home string) *procClient {
	c := &procClient{w: w, user: user, name: fmt.Sprintf("%s-%d", kind, len(w.clients)), kind: kind, home: home, got: make(map[string]int)}
	w.mu.Lock()
	w.clients = append(w.clients, c)
	w.mu.Unlock()
	if kind != "mpush" {
		w.closing.Go(c.run)
		return c
	}
	var err error
	c.device, err = client.New(client.Config{
		Addrs: []string{"home:1"}, DeviceID: c.name, UserID: user, Token: "any",
		MinBackoff: 50 * time.Millisecond, MaxBackoff: 400 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			place, ok := c.place()
			if !ok {
				return nil, errors.New("it stays away")
			}
			return new(net.Dialer).DialContext(ctx, network, place.MPush)
		},
		OnConnected: func(*client.Client) { c.fresh() },
		OnReceivePush: func(device *client.Client, content []byte, id int32) {
			var data string
			if json.Unmarshal(content, &data) != nil {
				return // of a flood
			}
			c.note(data)
			if id != 0 {
				device.Ack(w.ctx, id)
			}
		},
		OnKickUser: func(*client.Client, string, string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.wrongLocked("%s/%s was kicked, and there is no other", user, c.name)
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	c.device.Start()
	return c
}

// populate gives each node a user with a client of each kind there, "on-" and
// the node, and as many users with clients on three nodes.
func (w *procWorld) populate(nodes ...string) {
	for i, node := range nodes {
		for j, kind := range procKinds {
			w.dial("on-"+node, kind, node)
			w.dial("near-"+node, kind, nodes[(i+j)%len(nodes)])
		}
	}
}

// place is where it is to go.
func (c *procClient) place() (place procPlace, ok bool) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	n := c.w.nodes[c.home]
	if n == nil || n.ending {
		return place, false
	}
	return n.procPlace, n.HTTP != ""
}

func (c *procClient) fresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = make(map[string]int)
	c.conn++
}

// note notes a push: each comes once, and those of one worker in their order.
// A client that has changed its node meanwhile may get one again only from a node
// that was stopped when it should have had it.
func (c *procClient) note(id string) {
	worker, number, _ := strings.Cut(id, "/")
	at, _ := strconv.Atoi(number)
	c.mu.Lock()
	first, again := c.got[id]
	conn, before := c.conn, c.last[worker]
	c.got[id], c.last[worker] = conn, at
	c.mu.Unlock()
	if !again && before < at {
		return
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	switch {
	case again && first != conn && c.w.repeats:
		c.w.t.Logf("push %s came to %s/%s again, from another node", id, c.user, c.name)
	case again:
		c.w.wrongLocked("push %s came to %s/%s twice, on connections %d and %d", id, c.user, c.name, first, conn)
	default:
		c.w.wrongLocked("push %s came to %s/%s behind %d", id, c.user, c.name, before)
	}
}

func (c *procClient) saw(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, saw := c.got[id]
	return saw
}

// run connects a page or a client of Socket.IO again and again.
func (c *procClient) run() {
	for c.w.ctx.Err() == nil {
		if place, ok := c.place(); ok {
			c.visit(place.HTTP)
		}
		pause := time.NewTimer(50*time.Millisecond + rand.N(50*time.Millisecond))
		select {
		case <-pause.C:
		case <-c.w.ctx.Done():
		}
		pause.Stop()
	}
}

// visit is one connection from its beginning to its end.
func (c *procClient) visit(host string) {
	target := fmt.Sprintf("ws://%s/ws?user=%s&device=%s", host, url.QueryEscape(c.user), url.QueryEscape(c.name))
	serve := c.page
	if c.kind == "socket.io" {
		target = fmt.Sprintf("ws://%s/socket.io/?EIO=4&transport=websocket", host)
		serve = c.socket
	}
	ctx, cancel := context.WithTimeout(c.w.ctx, 5*time.Second)
	conn, resp, err := websocket.DefaultDialer.DialContext(ctx, target, nil)
	cancel()
	if resp != nil && resp.Body != nil {
		resp.Body.Close()
	}
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(c.w.ctx, func() { conn.Close() })()
	c.fresh()
	for {
		_, b, err := conn.ReadMessage()
		if err != nil {
			return
		}
		if answer := serve(b); answer != nil && conn.WriteMessage(websocket.TextMessage, answer) != nil {
			return
		}
	}
}

// page answers a message of push.json.
func (c *procClient) page(b []byte) (answer []byte) {
	var m struct {
		Event string `json:"event"`
		Data  any    `json:"data"`
		ID    uint64 `json:"id"`
	}
	if json.Unmarshal(b, &m) != nil || m.Event != procEvent {
		return nil
	}
	if id, ok := m.Data.(string); ok {
		c.note(id)
	}
	return fmt.Appendf(nil, `{"ack":%d}`, m.ID)
}

// socket answers a packet of Socket.IO 5.
func (c *procClient) socket(b []byte) (answer []byte) {
	switch text := string(b); {
	case strings.HasPrefix(text, "0"):
		return fmt.Appendf(nil, `40{"user":%q,"device":%q}`, c.user, c.name)
	case text == "2":
		return []byte("3")
	case strings.HasPrefix(text, "42"):
		args := strings.TrimLeft(text[2:], "0123456789")
		ack := text[2 : len(text)-len(args)]
		var event []any
		if json.Unmarshal([]byte(args), &event) != nil || len(event) != 2 || event[0] != procEvent {
			return nil
		}
		if id, ok := event[1].(string); ok {
			c.note(id)
		}
		return fmt.Appendf(nil, "43%s[]", ack)
	}
	return nil
}

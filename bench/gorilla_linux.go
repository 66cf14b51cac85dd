package main

import (
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// gorilla is the hub of gorilla/websocket's chat example
// (github.com/gorilla/websocket, examples/chat): for each connection a
// goroutine that reads and one that writes what comes through a channel of
// 256. Two things differ. A message that waits is a frame of its own and not a
// line of the one before it, since clients want events. And what its
// documentation (pkg.go.dev/github.com/gorilla/websocket, "Buffers" and
// PreparedMessage) advises for many connections is used: a pool of write
// buffers, buffers no larger than needed, and prepared messages for broadcasts.
type gorilla struct {
	upgrader websocket.Upgrader
	ping     time.Duration

	mu      sync.RWMutex
	clients map[string]*gorillaClient // guarded by mu, by user
}

type gorillaClient struct {
	conn *websocket.Conn
	send chan *gorillaMessage // closed by read's end
}

// gorillaMessage is one of the two.
type gorillaMessage struct {
	text     []byte
	prepared *websocket.PreparedMessage
}

// pongLate is by how much a pong may be late: the example pings after 54 s and
// waits for 60.
const pongLate = 6 * time.Second

func newGorilla(o serverOptions) (server, error) {
	return &gorilla{
		upgrader: websocket.Upgrader{ReadBufferSize: 256, WriteBufferSize: 1024, WriteBufferPool: new(sync.Pool)},
		ping:     o.heartbeat,
		clients:  make(map[string]*gorillaClient),
	}, nil
}

func (g *gorilla) conns() int {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.clients)
}

func (g *gorilla) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := r.URL.Query().Get("user")
	conn, err := g.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	c := &gorillaClient{conn, make(chan *gorillaMessage, 256)}
	g.mu.Lock()
	g.clients[user] = c
	g.mu.Unlock()
	go c.write(g.ping)
	go g.read(user, c)
}

func (g *gorilla) read(user string, c *gorillaClient) {
	pongWait := g.ping + pongLate
	c.conn.SetReadLimit(512)
	c.conn.SetReadDeadline(time.Now().Add(pongWait))
	c.conn.SetPongHandler(func(string) error { return c.conn.SetReadDeadline(time.Now().Add(pongWait)) })
	for {
		if _, _, err := c.conn.ReadMessage(); err != nil {
			break
		}
	}
	g.mu.Lock()
	delete(g.clients, user)
	close(c.send)
	g.mu.Unlock()
	c.conn.Close()
}

func (c *gorillaClient) write(ping time.Duration) {
	ticker := time.NewTicker(ping)
	defer ticker.Stop()
	defer c.conn.Close()
	for {
		var err error
		select {
		case m, open := <-c.send:
			c.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			switch {
			case !open:
				return
			case m.prepared != nil:
				err = c.conn.WritePreparedMessage(m.prepared)
			default:
				err = c.conn.WriteMessage(websocket.TextMessage, m.text)
			}
		case <-ticker.C:
			c.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
			err = c.conn.WriteMessage(websocket.PingMessage, nil)
		}
		if err != nil {
			return
		}
	}
}

func (g *gorilla) broadcast() error {
	prepared, err := websocket.NewPreparedMessage(websocket.TextMessage, []byte(eventText))
	if err != nil {
		return err
	}
	m := &gorillaMessage{prepared: prepared}
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, c := range g.clients {
		c.offer(m)
	}
	return nil
}

func (g *gorilla) push(user, data string) error {
	text, err := marshalEvent(data)
	if err != nil {
		return err
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	c := g.clients[user]
	if c == nil {
		return errNoUser
	}
	c.offer(&gorillaMessage{text: text})
	return nil
}

// offer closes a client that is too slow, as the example does; its end is
// read's.
func (c *gorillaClient) offer(m *gorillaMessage) {
	select {
	case c.send <- m:
	default:
		c.conn.Close()
	}
}

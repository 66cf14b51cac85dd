package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// TestNamespacesAreWhatTheModelSays runs random programs of several clients, each
// in several namespaces, against an engine and against a model of plain maps.
func TestNamespacesAreWhatTheModelSays(t *testing.T) {
	for _, door := range slices.Concat(socketIODoors, []string{"socket.io.4 upgrade", "socket.io.msgpack polling", "mixed"}) {
		t.Run(door, func(t *testing.T) {
			for range max(1, *modelSeeds/4) {
				seed := rand.Uint64()
				if *modelSeed != 0 {
					seed = *modelSeed
				}
				inBubble(t, func(t *testing.T) { runSpaces(t, door, seed, 60) })
				if t.Failed() {
					t.Fatalf("again: go test ./test -run '%s' -model.seed=%d", t.Name(), seed)
				}
				if *modelSeed != 0 {
					return
				}
			}
		})
	}
}

// spaces is what an engine should hold.
type spaces struct {
	t       *testing.T
	rnd     *rand.Rand
	w       *world
	door    string
	clients []*spaceClient
	n       int
	hooks   map[push.ConnID]string // what OnConnect told, until OnDisconnect
	steps   []string
}

type spaceClient struct {
	io  *ioClient
	ins []*spaceConn
}

type spaceConn struct {
	of    *spaceClient
	page  *page
	conn  *push.Conn
	space string
	user  string
	rooms map[string]bool
	inbox []string
}

var (
	spaceNames = []string{"/", "/", "/chat", "/news", "/ü?x=1"}
	spaceUsers = []string{"", "alice", "bob", "carol"}
	spaceRooms = []string{"red", "green", "alice"}
)

func runSpaces(t *testing.T, door string, seed uint64, steps int) {
	m := &spaces{t: t, rnd: rand.New(rand.NewPCG(seed, 2)), door: door, hooks: map[push.ConnID]string{}}
	var calls diary
	m.w = newWorld(t, push.Config{
		Authenticate: believe,
		OnConnect: func(ctx context.Context, c *push.Conn) {
			calls.note("+%v %s", c.ID(), c.Namespace())
			c.Push(ctx, push.Message{Event: "welcome", Data: c.Namespace()})
		},
		OnMessage: func(ctx context.Context, c *push.Conn, r *push.Received) (any, error) {
			if r.Event == "refused" {
				return nil, push.Refuse("no")
			}
			return push.Args{c.Namespace(), r.JSON(0)}, nil
		},
		OnDisconnect: func(c *push.Conn, why push.Reason) { calls.note("-%v %s", c.ID(), c.Namespace()) },
		SocketIO: push.SocketIO{Namespace: func(ctx context.Context, name string, l *push.Login) error {
			if name == "/none" {
				return push.ErrUnauthorized
			}
			return nil
		}},
		Limits: push.Limits{MaxConnsPerUser: -1, MessageRate: -1},
	})
	ops := []func() string{m.open, m.open, m.join, m.join, m.join, m.refused, m.leave, m.push, m.push, m.push, m.push, m.emit, m.emit, m.room, m.bind, m.close, m.kick}
	for i := range steps {
		m.steps = append(m.steps, ops[m.rnd.IntN(len(ops))]())
		m.check()
		if t.Failed() {
			t.Logf("seed %d, step %d of:\n%s", seed, i, strings.Join(m.steps[max(0, len(m.steps)-12):], "\n"))
			return
		}
	}
	if err := m.w.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	open := map[string]bool{}
	for _, line := range calls.all() {
		if line[0] == '+' && open[line[1:]] || line[0] == '-' && !open[line[1:]] {
			t.Errorf("hooks ran as %q", line)
		}
		if line[0] == '+' {
			open[line[1:]] = true
		} else {
			delete(open, line[1:])
		}
	}
	if len(open) > 0 {
		t.Errorf("no OnDisconnect for %v", open)
	}
	time.Sleep(40 * time.Second)
	m.w.wantSocketsGone()
}

func (m *spaces) pick(of []string) string { return of[m.rnd.IntN(len(of))] }

func (m *spaces) one() *spaceConn {
	var all []*spaceConn
	for _, c := range m.clients {
		all = append(all, c.ins...)
	}
	if len(all) == 0 {
		return nil
	}
	return all[m.rnd.IntN(len(all))]
}

func (m *spaces) added(of *spaceClient, p *page, user string, rooms []string) {
	synctest.Wait()
	c := &spaceConn{of: of, page: p, space: p.space, user: user, rooms: map[string]bool{}, conn: p.conn()}
	if c.conn == nil {
		m.t.Fatalf("no Conn in %s", p.space)
	}
	for _, room := range rooms {
		c.rooms[room] = true
	}
	space := p.space
	if space == "/" {
		space = ""
	}
	quoted, _ := json.Marshal(space)
	c.inbox = []string{"welcome " + string(quoted)}
	of.ins = append(of.ins, c)
}

func (m *spaces) open() string {
	if len(m.clients) >= 6 {
		return "-"
	}
	m.w.dialect = m.door
	if m.door == "mixed" {
		all := slices.Concat(socketIODoors, moreSocketIODoors)
		m.w.dialect = m.pick(all)
	}
	user, room := m.pick(spaceUsers), m.pick(spaceRooms)
	p := m.w.connect(user, "token="+room)
	c := &spaceClient{io: p.io}
	p.io.stays.Store(true)
	m.clients = append(m.clients, c)
	m.added(c, p, user, []string{room})
	return fmt.Sprintf("%s opens by %s as %q in %s", p.device, m.w.dialect, user, room)
}

func (m *spaces) join() string {
	if len(m.clients) == 0 {
		return "-"
	}
	c := m.clients[m.rnd.IntN(len(m.clients))]
	space := m.pick(spaceNames)
	if c.io.rev == 3 { // a '?' begins the query there, and "/" is joined by itself
		space, _, _ = strings.Cut(space, "?")
		if space == "/" {
			return "-"
		}
	}
	if slices.ContainsFunc(c.ins, func(in *spaceConn) bool { return in.space == space }) {
		return "-"
	}
	user, room := m.pick(spaceUsers), m.pick(spaceRooms)
	if user == "" && c.io.rev == 3 {
		user = "carol" // or the session's would count
	}
	p := c.io.joins(space, user, "token="+room).isIn()
	m.added(c, p, user, []string{room})
	return fmt.Sprintf("%s joins %s as %q in %s", p.device, space, user, room)
}

func (m *spaces) refused() string {
	if len(m.clients) == 0 {
		return "-"
	}
	c := m.clients[m.rnd.IntN(len(m.clients))]
	c.io.sendsAll(c.io.connectPacket("/none", nil))
	c.io.wantsRefusal("/none", "Invalid namespace")
	return "a client is refused"
}

func (m *spaces) leave() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	m.look(c)
	c.page.leavesSpace()
	synctest.Wait()
	c.of.ins = slices.DeleteFunc(c.of.ins, func(o *spaceConn) bool { return o == c })
	return fmt.Sprintf("%s leaves %s", c.page.device, c.space)
}

// audience is anybody.
func (m *spaces) audience() (a push.Audience, to []*spaceConn) {
	space := m.pick(spaceNames)
	a.Namespace = space
	if space == "/" && m.rnd.IntN(2) == 0 {
		a.Namespace = ""
	}
	in := func(ok func(c *spaceConn) bool) {
		for _, c := range m.clients {
			for _, o := range c.ins {
				if o.space == space && ok(o) {
					to = append(to, o)
				}
			}
		}
	}
	switch m.rnd.IntN(5) {
	case 0:
		a.User = m.pick(spaceUsers[1:])
		in(func(c *spaceConn) bool { return c.user == a.User })
	case 1:
		a.Room = m.pick(spaceRooms)
		in(func(c *spaceConn) bool { return c.rooms[a.Room] })
	case 2:
		a.All = true
		in(func(c *spaceConn) bool { return true })
	case 3:
		a.Users = []string{"alice", "bob"}
		in(func(c *spaceConn) bool { return c.user == "alice" || c.user == "bob" })
	default:
		c := m.one()
		if c == nil {
			a.All, a.Namespace = true, "/empty"
			return a, nil
		}
		a = push.Audience{Conn: c.conn.ID()}
		if m.rnd.IntN(2) == 0 {
			a.Namespace = c.space
		}
		to = []*spaceConn{c}
	}
	return a, to
}

func (m *spaces) push() string {
	a, to := m.audience()
	m.n++
	msg := push.Message{Event: fmt.Sprintf("e%d", m.n), Data: m.n, Ack: push.Ack(m.rnd.IntN(3))}
	want := fmt.Sprintf("%s %d", msg.Event, m.n)
	if m.rnd.IntN(3) == 0 {
		msg.Data = push.Args{m.n, []byte("abc"), "x"}
		want = fmt.Sprintf(`%s [%d,"YWJj","x"]`, msg.Event, m.n)
	}
	did := fmt.Sprintf("push %d to %+v, which is %d", m.n, a, len(to))
	r, err := m.w.Push(m.t.Context(), a, msg)
	if r.Targets != len(to) || r.Failed > 0 || msg.Ack != push.NoAck && r.Acked != len(to) {
		m.t.Errorf("%s: %+v, %v", did, r, err)
	}
	if err != nil && (len(to) > 0 || !errors.Is(err, push.ErrOffline)) {
		m.t.Errorf("%s: %v", did, err)
	}
	for _, c := range to {
		c.inbox = append(c.inbox, want)
	}
	return did
}

func (m *spaces) emit() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	m.look(c)
	m.n++
	space := c.space
	if space == "/" {
		space = ""
	}
	if m.rnd.IntN(4) == 0 {
		c.page.emits(int64(m.n), "refused", m.n)
		c.page.wantAnswer(uint64(m.n), "", "no")
	} else {
		c.page.emits(int64(m.n), "event", m.n, []byte("abc"))
		quoted, _ := json.Marshal([]any{space, m.n})
		c.page.wantAnswer(uint64(m.n), string(quoted), "")
	}
	return fmt.Sprintf("%s emits %d", c.page.device, m.n)
}

func (m *spaces) room() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	room := m.pick(spaceRooms)
	if m.rnd.IntN(2) == 0 {
		c.conn.Join(room)
		c.rooms[room] = true
		return c.page.device + " joins " + room
	}
	c.conn.Leave(room)
	delete(c.rooms, room)
	return c.page.device + " leaves " + room
}

func (m *spaces) bind() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	user := m.pick(spaceUsers)
	if user == "" {
		c.conn.Unbind()
	} else if err := c.conn.Bind(m.t.Context(), user); err != nil {
		m.t.Error(err)
	}
	if user != c.user || user == "" {
		clear(c.rooms)
	}
	c.user = user
	return fmt.Sprintf("%s is %q's", c.page.device, user)
}

func (m *spaces) close() string {
	if len(m.clients) == 0 || m.rnd.IntN(2) == 0 {
		return "-"
	}
	i := m.rnd.IntN(len(m.clients))
	c := m.clients[i]
	for _, in := range c.ins {
		m.look(in)
	}
	m.clients = slices.Delete(m.clients, i, i+1)
	did := "vanishes"
	if m.rnd.IntN(2) == 0 {
		c.io.closes()
		did = "closes"
	} else {
		synctest.Wait()
		c.io.cuts()
	}
	<-c.io.done
	synctest.Wait()
	return "a client " + did
}

func (m *spaces) kick() string {
	if m.rnd.IntN(3) > 0 {
		return "-"
	}
	c := m.one()
	if c == nil {
		return "-"
	}
	for _, in := range c.of.ins {
		m.look(in)
	}
	if n, err := m.w.Kick(m.t.Context(), push.Audience{Conn: c.conn.ID()}, ""); n != 1 || err != nil {
		m.t.Error(n, err)
	}
	for _, in := range c.of.ins {
		in.page.wantClosed(4410)
	}
	m.clients = slices.DeleteFunc(m.clients, func(o *spaceClient) bool { return o == c.of })
	c.of.io.closes()
	<-c.of.io.done
	synctest.Wait()
	return c.page.device + " is kicked"
}

func (m *spaces) look(c *spaceConn) {
	m.t.Helper()
	synctest.Wait()
	var got []string
	for _, e := range c.page.taken() {
		got = append(got, e.String())
	}
	if !slices.Equal(got, c.inbox) {
		m.t.Errorf("%s in %s got %q, want %q", c.page.device, c.space, got, c.inbox)
	}
	c.inbox = nil
}

func (m *spaces) check() {
	synctest.Wait()
	users, conns, members := map[string]bool{}, 0, 0
	rooms := map[string]bool{}
	roots := map[string]int{}
	for _, c := range m.clients {
		for _, in := range c.ins {
			m.look(in)
			conns++
			members += 1 + len(in.rooms)
			if in.user != "" {
				users[in.user] = true
				members++
			}
			for room := range in.rooms {
				rooms[in.space+" "+room] = true
				if in.space == "/" {
					roots[room]++
				}
			}
			space := in.space
			if space == "/" {
				space = ""
			}
			if got := slices.Sorted(slices.Values(in.conn.Rooms())); !slices.Equal(got, slices.Sorted(maps.Keys(in.rooms))) || in.conn.UserID() != in.user || in.conn.Namespace() != space {
				m.t.Errorf("%s in %q is %q's in rooms %q, want %q's in %v", in.page.device, in.conn.Namespace(), in.conn.UserID(), got, in.user, in.rooms)
			}
		}
	}
	if got := slices.Sorted(m.w.Users()); !slices.Equal(got, slices.Sorted(maps.Keys(users))) {
		m.t.Errorf("users are %q, want %v", got, users)
	}
	for _, user := range spaceUsers[1:] {
		if m.w.Online(user) != users[user] {
			m.t.Errorf("%s online: %v", user, m.w.Online(user))
		}
	}
	if got := maps.Collect(m.w.Rooms()); !maps.Equal(got, roots) {
		m.t.Errorf("rooms are %v, want %v", got, roots)
	}
	a, to := m.audience()
	devices, err := m.w.Devices(m.t.Context(), a)
	if err != nil || len(devices) != len(to) {
		m.t.Errorf("devices of %+v are %v, %v, want %d", a, devices, err, len(to))
	}
	if s := m.w.Stats(); s.Conns != conns || s.Sockets != len(m.clients) || s.Users != len(users) || s.Rooms != len(rooms) || s.Memberships != members || s.Pending != 0 || s.QueuedBytes != 0 || s.Flights != 0 {
		m.t.Errorf("Stats are %+v, want %d conns of %d clients, %d users, %d rooms, %d memberships", s, conns, len(m.clients), len(users), len(rooms), members)
	}
}

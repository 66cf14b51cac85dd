package test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/embedpush/push"
)

var (
	modelSeed  = flag.Uint64("model.seed", 0, "the one `program` that the model test runs; 0: random ones")
	modelSeeds = flag.Int("model.seeds", 60, "how many programs it runs for each dialect")
)

// TestEngineIsWhatTheModelSays runs random programs against an engine and
// against a model made of plain maps.
func TestEngineIsWhatTheModelSays(t *testing.T) {
	for _, dialect := range slices.Concat(dialectNames, socketIODoors, []string{"mixed"}) {
		t.Run(dialect, func(t *testing.T) {
			for range *modelSeeds {
				seed := rand.Uint64()
				if *modelSeed != 0 {
					seed = *modelSeed
				}
				synctest.Test(t, func(t *testing.T) { runProgram(t, dialect, seed, 50, 0) })
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

// TestCrowdIsWhatTheModelSays is the same with places that grow over 64
// members, where they become lists by shard, and shrink again.
func TestCrowdIsWhatTheModelSays(t *testing.T) {
	for range max(1, *modelSeeds/20) {
		seed := rand.Uint64()
		if *modelSeed != 0 {
			seed = *modelSeed
		}
		synctest.Test(t, func(t *testing.T) { runProgram(t, "mixed", seed, 200, 75) })
		if t.Failed() {
			t.Fatalf("again: go test ./test -run '%s' -model.seed=%d", t.Name(), seed)
		}
		if *modelSeed != 0 {
			return
		}
	}
}

// model is what an engine should hold.
type model struct {
	t      *testing.T
	rnd    *rand.Rand
	w      *world
	crowd  int
	conns  []*modelConn // connected
	pushes int
	steps  []string
}

type modelConn struct {
	page  *page
	conn  *push.Conn
	user  string
	os    string
	tags  []string
	rooms map[string]bool
	inbox []string // what should have come since the last look
}

// A connection whose system has a name is its user's only one there.
func (c *modelConn) class() string { return modelClass(c.user, c.os) }

func modelClass(user, os string) string {
	if user == "" || os == "web" {
		return ""
	}
	return os
}

const modelMaxPerUser = 3

var (
	modelUsers = []string{"alice", "bob", "carol"}
	modelRooms = []string{"red", "green", "blue", "alice"} // names of users are rooms of their own
	modelTags  = []string{"a", "b", "c"}
	modelOSs   = []string{"web", "web", "phone", "desk"}
)

func runProgram(t *testing.T, dialect string, seed uint64, steps, crowd int) {
	m := &model{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), crowd: crowd}
	m.w = newWorld(t, push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			if l.Token == "refused" {
				return "", push.ErrUnauthorized
			}
			return believe(ctx, l)
		},
		DeviceClass: func(l *push.Login) string { return modelClass(l.UserID, l.OS) },
		Limits:      push.Limits{MaxConnsPerUser: modelMaxPerUser, MessageRate: -1},
	})
	setDialect := func() {
		if m.w.dialect = dialect; dialect == "mixed" {
			m.w.dialect = anyDoor(m.rnd.IntN(100))
		}
	}
	for range crowd {
		setDialect()
		m.connect()
	}
	ops := []func() string{
		m.connect, m.connect, m.connect, m.connect, m.lateLogin, m.lateLogin, m.logout, m.bind, m.unbind, m.join, m.leave, m.joinAudience, m.leaveAudience,
		m.push, m.push, m.push, m.push, m.push, m.push, m.setTags, m.kick, m.close, m.close,
	}
	for i := range steps {
		setDialect()
		if crowd > 0 && i%50 >= 30 && len(m.conns) > 10 { // tides
			m.close()
			m.close()
		} else if crowd > 0 && i%50 < 20 {
			m.connect()
		}
		did := ops[m.rnd.IntN(len(ops))]()
		m.steps = append(m.steps, did)
		m.check()
		if t.Failed() {
			t.Logf("seed %d, step %d of:\n%s", seed, i, strings.Join(m.steps[max(0, len(m.steps)-12):], "\n"))
			return
		}
	}
}

func (m *model) pick(of []string) string { return of[m.rnd.IntN(len(of))] }

func (m *model) some(of []string) (list []string) {
	for _, s := range of {
		if m.rnd.IntN(3) == 0 {
			list = append(list, s)
		}
	}
	return list
}

func (m *model) user() string {
	if m.rnd.IntN(4) == 0 {
		return ""
	}
	return m.pick(modelUsers)
}

// one is any connection, nil if there is none.
func (m *model) one() *modelConn {
	if len(m.conns) == 0 {
		return nil
	}
	return m.conns[m.rnd.IntN(len(m.conns))]
}

func (m *model) of(user string) (conns []*modelConn) {
	for _, c := range m.conns {
		if user != "" && c.user == user {
			conns = append(conns, c)
		}
	}
	return conns
}

// becomes is what a login of c as user on os does. replaced are closed; false:
// there are too many.
func (m *model) becomes(c *modelConn, user, os string) (replaced []*modelConn, ok bool) {
	if user == c.user && modelClass(user, os) == c.class() {
		c.os = os
		return nil, true
	}
	class := modelClass(user, os)
	others := 0
	for _, o := range m.of(user) {
		switch {
		case o == c:
		case class != "" && o.class() == class:
			replaced = append(replaced, o)
		default:
			others++
		}
	}
	if others >= modelMaxPerUser {
		return nil, false
	}
	if user != c.user {
		clear(c.rooms)
	}
	c.user, c.os = user, os
	return replaced, true
}

// gone takes connections out of the model and wants their pages to be closed.
func (m *model) gone(code int, conns ...*modelConn) {
	for _, c := range conns {
		m.conns = slices.DeleteFunc(m.conns, func(o *modelConn) bool { return o == c })
		m.look(c)
		c.page.wantClosed(code)
	}
}

func (m *model) connect() string {
	user, os, tags, rooms := m.user(), m.pick(modelOSs), m.some(modelTags), m.some(modelRooms)
	if m.crowd > 0 && m.rnd.IntN(8) > 0 {
		user = "" // or MaxConnsPerUser keeps the crowd out
	}
	c := &modelConn{tags: tags, rooms: map[string]bool{}}
	replaced, ok := m.becomes(c, user, os)
	c.os = os
	for _, room := range rooms {
		c.rooms[room] = true
	}
	query := []string{"os=" + os, "token=" + strings.Join(rooms, " ")}
	for _, tag := range tags {
		query = append(query, "tag="+tag)
	}
	did := fmt.Sprintf("connect %q on %s, tags %q, rooms %q: ok %v, replaces %d", user, os, tags, rooms, ok, len(replaced))
	if !ok {
		p, resp, err := m.w.tryConnect(user, query...)
		if p != nil && p.io != nil {
			if end := new(ioEnd); !errors.As(err, &end) || !end.refused {
				m.t.Errorf("one connection too many got %v, want a connect error", err)
			}
			p.io.closes()
			<-p.io.done
			return did
		}
		if err == nil || resp == nil || resp.StatusCode != http.StatusTooManyRequests {
			m.t.Errorf("one connection too many got %v %v, want 429", resp, err)
		}
		return did
	}
	c.page = m.w.connect(user, query...)
	if c.conn = c.page.conn(); c.conn == nil {
		m.t.Fatal("a connected page has no Conn")
	}
	m.conns = append(m.conns, c)
	m.gone(4409, replaced...)
	return did
}

func (m *model) lateLogin() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	if c.page.io != nil {
		return "-"
	}
	user, os, tags, rooms := m.user(), m.pick(modelOSs), m.some(modelTags), m.some(modelRooms)
	token := strings.Join(rooms, " ")
	if m.rnd.IntN(20) == 0 {
		c.page.logsIn(user, "token=refused")
		m.gone(4401, c)
		return "late login of " + c.page.device + " refused"
	}
	old := c.user
	replaced, ok := m.becomes(c, user, os)
	query := []string{"os=" + os, "token=" + token}
	for _, tag := range tags {
		query = append(query, "tag="+tag)
	}
	c.page.logsIn(user, query...)
	did := fmt.Sprintf("late login of %s (%q) as %q on %s, tags %q, rooms %q: ok %v, replaces %d", c.page.device, old, user, os, tags, rooms, ok, len(replaced))
	if !ok {
		m.gone(1013, c)
		return did
	}
	c.tags = tags
	for _, room := range rooms {
		c.rooms[room] = true
	}
	c.inbox = append(c.inbox, "login as "+user)
	m.gone(4409, replaced...)
	return did
}

func (m *model) logout() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	if c.page.io != nil {
		return "-"
	}
	c.page.sendsRaw(map[string]any{"logout": true})
	synctest.Wait()
	c.user = ""
	clear(c.rooms)
	return "logout of " + c.page.device
}

func (m *model) unbind() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	c.conn.Unbind()
	c.user = ""
	clear(c.rooms)
	return "unbind " + c.page.device
}

func (m *model) bind() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	user := m.pick(modelUsers)
	replaced, ok := m.becomes(c, user, c.os)
	if err := c.conn.Bind(m.w.ctx(), user); ok != (err == nil) || err != nil && !errors.Is(err, push.ErrLimit) {
		m.t.Errorf("Bind says %v, the model %v", err, ok)
	}
	m.gone(4409, replaced...)
	return fmt.Sprintf("bind %s to %q: ok %v, replaces %d", c.page.device, user, ok, len(replaced))
}

func (m *model) join() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	rooms := m.some(modelRooms)
	if err := c.conn.Join(rooms...); err != nil {
		m.t.Error(err)
	}
	for _, room := range rooms {
		c.rooms[room] = true
	}
	return fmt.Sprintf("%s joins %q", c.page.device, rooms)
}

func (m *model) leave() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	rooms := m.some(modelRooms)
	c.conn.Leave(rooms...)
	for _, room := range rooms {
		delete(c.rooms, room)
	}
	return fmt.Sprintf("%s leaves %q", c.page.device, rooms)
}

func (m *model) joinAudience() string {
	a, conns, _, did := m.audience()
	room, want := m.pick(modelRooms), 0
	for _, c := range conns {
		if !c.rooms[room] {
			want++
		}
		c.rooms[room] = true
	}
	if got, err := m.w.Join(m.w.ctx(), a, room); got != want || err != nil {
		m.t.Errorf("Join of %s is %d, %v, want %d", did, got, err, want)
	}
	return did + " joins " + room
}

func (m *model) leaveAudience() string {
	a, conns, _, did := m.audience()
	room, want := m.pick(modelRooms), 0
	for _, c := range conns {
		if c.rooms[room] {
			want++
		}
		delete(c.rooms, room)
	}
	if got, err := m.w.Leave(m.w.ctx(), a, room); got != want || err != nil {
		m.t.Errorf("Leave of %s is %d, %v, want %d", did, got, err, want)
	}
	return did + " leaves " + room
}

func (m *model) setTags() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	c.tags = m.some(modelTags)
	if err := c.conn.SetTags(c.tags...); err != nil {
		m.t.Error(err)
	}
	return fmt.Sprintf("tags of %s are %q", c.page.device, c.tags)
}

func (m *model) close() string {
	c := m.one()
	if c == nil {
		return "-"
	}
	did := "vanishes"
	switch m.rnd.IntN(3) {
	case 0:
		m.look(c)
		c.page.leaves()
		did = "leaves"
	case 1:
		m.look(c)
		c.page.vanishes()
	default:
		c.conn.Close("bye")
		m.gone(4410, c)
		did = "is closed"
	}
	m.conns = slices.DeleteFunc(m.conns, func(o *modelConn) bool { return o == c })
	synctest.Wait()
	return c.page.device + " " + did
}

func (m *model) kick() string {
	if m.rnd.IntN(3) > 0 {
		return "-"
	}
	a, conns, _, did := m.audience()
	if a.All && m.crowd > 0 {
		return "-"
	}
	if n, err := m.w.Kick(m.w.ctx(), a, "out"); n != len(conns) || err != nil {
		m.t.Errorf("Kick of %s is %d, %v, want %d", did, n, err, len(conns))
	}
	m.gone(4410, conns...)
	return "kick " + did
}

// audience is a random one, with the connections that it means and the users
// that it names who have none.
func (m *model) audience() (a push.Audience, conns []*modelConn, offline []string, did string) {
	switch m.rnd.IntN(5) {
	case 0:
		a.User = m.pick(modelUsers)
		if conns = m.of(a.User); len(conns) == 0 {
			offline = []string{a.User}
		}
	case 1:
		a.Users = append(m.some(modelUsers), m.pick(modelUsers)) // perhaps one twice
		for i, user := range a.Users {
			if slices.Contains(a.Users[:i], user) {
				continue
			}
			if of := m.of(user); len(of) > 0 {
				conns = append(conns, of...)
			} else {
				offline = append(offline, user)
			}
		}
	case 2:
		a.Room = m.pick(modelRooms)
		for _, c := range m.conns {
			if c.rooms[a.Room] {
				conns = append(conns, c)
			}
		}
	case 3:
		a.All = true
		conns = slices.Clone(m.conns)
	default:
		c := m.one()
		if c == nil || m.rnd.IntN(8) == 0 {
			a.Conn = 1
		} else {
			a.Conn = c.conn.ID()
			conns = []*modelConn{c}
		}
	}
	keep := func(f func(c *modelConn) bool) {
		conns = slices.DeleteFunc(conns, func(c *modelConn) bool { return !f(c) })
	}
	has := func(c *modelConn, tags []string) (n int) {
		for _, tag := range tags {
			if slices.Contains(c.tags, tag) {
				n++
			}
		}
		return n
	}
	if m.rnd.IntN(2) == 0 {
		switch m.rnd.IntN(6) {
		case 0:
			a.AnyTag = append(m.some(modelTags), m.pick(modelTags))
			keep(func(c *modelConn) bool { return has(c, a.AnyTag) > 0 })
		case 1:
			a.AllTags = m.some(modelTags)
			keep(func(c *modelConn) bool { return has(c, a.AllTags) == len(a.AllTags) })
		case 2:
			a.NoTag = m.some(modelTags)
			keep(func(c *modelConn) bool { return has(c, a.NoTag) == 0 })
		case 3:
			a.OS = []string{strings.ToUpper(m.pick(modelOSs))}
			keep(func(c *modelConn) bool { return strings.EqualFold(c.os, a.OS[0]) })
		case 4:
			if c := m.one(); c != nil {
				a.Except = []push.ConnID{1, c.conn.ID()}
				keep(func(o *modelConn) bool { return o != c })
			}
		default:
			a.Namespace = "/elsewhere"
			keep(func(o *modelConn) bool { return false })
			offline = nil // there nobody is
			for _, user := range append(slices.Clone(a.Users), a.User) {
				if user != "" && !slices.Contains(offline, user) {
					offline = append(offline, user)
				}
			}
		}
	}
	return a, conns, offline, fmt.Sprintf("%+v", a)
}

func (m *model) push() string {
	a, conns, offline, did := m.audience()
	m.pushes++
	msg := push.Message{Event: fmt.Sprintf("e%d", m.pushes), Data: m.pushes, Ack: push.Ack(m.rnd.IntN(3))}
	async := m.rnd.IntN(4) == 0
	msg.Async = async
	var told []push.Receipt
	if async || m.rnd.IntN(4) == 0 {
		msg.Progress = func(r push.Receipt) { told = append(told, r) }
	}
	did = fmt.Sprintf("push %s (ack %d, async %v) to %s, which is %d", msg.Event, msg.Ack, async, did, len(conns))
	var r push.Receipt
	var err error
	if m.rnd.IntN(2) == 0 {
		r, err = m.short(a, msg)
	} else {
		r, err = m.w.Push(m.w.ctx(), a, msg)
	}
	for _, c := range conns {
		c.inbox = append(c.inbox, fmt.Sprintf("%s %d", msg.Event, m.pushes))
	}
	synctest.Wait()

	if msg.Progress != nil {
		if len(told) == 0 {
			m.t.Errorf("%s: Progress was not called", did)
			return did
		}
		last := told[len(told)-1]
		if async {
			if r.Targets != last.Targets || !slices.Equal(r.Offline, last.Offline) {
				m.t.Errorf("%s: the receipt is %+v, Progress ended with %+v", did, r, last)
			}
			r = last
		} else if r.Targets != last.Targets || r.Sent != last.Sent || r.Acked != last.Acked || r.Failed != last.Failed {
			m.t.Errorf("%s: the receipt is %+v, Progress ended with %+v", did, r, last)
		}
	}

	good, waits := push.Sent, a.Room == "" && !a.All || msg.Ack != push.NoAck
	if msg.Ack != push.NoAck {
		good = push.Acked
	}
	want := map[push.ConnID]push.Delivery{}
	if waits {
		for _, c := range conns {
			d := push.Delivery{UserID: c.user, DeviceID: c.page.device, Protocol: c.page.protocol(), Conn: c.conn.ID(), Status: good}
			if good == push.Acked {
				d.Reply = json.RawMessage("null")
			}
			want[d.Conn] = d
		}
		if a.Conn != 0 && len(conns) == 0 {
			want[a.Conn] = push.Delivery{Conn: a.Conn, Status: push.Offline}
		}
	}
	got := map[push.ConnID]push.Delivery{}
	for _, d := range r.Deliveries {
		if _, twice := got[d.Conn]; twice {
			m.t.Errorf("%s: the receipt has %v twice", did, d.Conn)
		}
		d.Latency = 0
		got[d.Conn] = d
	}
	if !maps.EqualFunc(got, want, func(a, b push.Delivery) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		m.t.Errorf("%s: deliveries are\n%+v, want\n%+v", did, got, want)
	}
	if slices.Sort(r.Offline); !slices.Equal(r.Offline, slices.Sorted(slices.Values(offline))) {
		m.t.Errorf("%s: offline are %q, want %q", did, r.Offline, offline)
	}
	targets, failed := len(conns), 0
	if a.Conn != 0 && targets == 0 {
		targets, failed = 1, 1
	}
	sent, acked := len(conns), 0
	if good == push.Acked {
		sent, acked = 0, len(conns)
	}
	if r.Targets != targets || r.Sent != sent || r.Acked != acked || r.Failed != failed {
		m.t.Errorf("%s: receipt counts %d = %d + %d + %d, want %d = %d + %d + %d", did, r.Targets, r.Sent, r.Acked, r.Failed, targets, sent, acked, failed)
	}
	if wantErr := waits && len(conns) == 0; wantErr != errors.Is(err, push.ErrOffline) || err != nil && !wantErr {
		m.t.Errorf("%s: error %v, want offline: %v", did, err, wantErr)
	}
	return did
}

// short pushes by the short form of Push, where there is one.
func (m *model) short(a push.Audience, msg push.Message) (push.Receipt, error) {
	plain := len(a.AnyTag)+len(a.AllTags)+len(a.NoTag)+len(a.OS)+len(a.Except)+len(a.Namespace) == 0
	switch {
	case plain && a.User != "":
		return m.w.PushToUser(m.w.ctx(), a.User, msg)
	case plain && a.Users != nil:
		return m.w.PushToUsers(m.w.ctx(), a.Users, msg)
	case plain && a.Room != "":
		return m.w.PushToRoom(m.w.ctx(), a.Room, msg)
	case plain && a.All:
		return m.w.Broadcast(m.w.ctx(), msg)
	}
	return m.w.Push(m.w.ctx(), a, msg)
}

// look compares what came to a page with what should have come.
func (m *model) look(c *modelConn) {
	m.t.Helper()
	synctest.Wait()
	var got []string
	for _, e := range c.page.taken() {
		got = append(got, e.String())
	}
	if !slices.Equal(got, c.inbox) {
		m.t.Errorf("%s got %q, want %q", c.page.device, got, c.inbox)
	}
	c.inbox = nil
}

// check compares everything that the engine tells with the model.
func (m *model) check() {
	synctest.Wait()
	for _, c := range m.conns {
		m.look(c)
		if got := slices.Sorted(slices.Values(c.conn.Rooms())); !slices.Equal(got, slices.Sorted(maps.Keys(c.rooms))) {
			m.t.Errorf("%s is in rooms %q, want %v", c.page.device, got, c.rooms)
		}
		if c.conn.UserID() != c.user {
			m.t.Errorf("%s is %q's, want %q's", c.page.device, c.conn.UserID(), c.user)
		}
	}
	users, rooms, members := map[string]bool{}, map[string]int{}, len(m.conns)
	for _, c := range m.conns {
		if c.user != "" {
			users[c.user] = true
			members++
		}
		for room := range c.rooms {
			rooms[room]++
			members++
		}
	}
	for _, user := range modelUsers {
		if m.w.Online(user) != users[user] {
			m.t.Errorf("%s online: %v, want %v", user, m.w.Online(user), users[user])
		}
	}
	if got := slices.Sorted(m.w.Users()); !slices.Equal(got, slices.Sorted(maps.Keys(users))) {
		m.t.Errorf("users are %q, want %q", got, slices.Sorted(maps.Keys(users)))
	}
	got := map[string]int{}
	for room, n := range m.w.Rooms() {
		if _, twice := got[room]; twice {
			m.t.Errorf("room %q is told twice", room)
		}
		got[room] = n
	}
	if !maps.Equal(got, rooms) {
		m.t.Errorf("rooms are %v, want %v", got, rooms)
	}
	n := 0
	for c := range m.w.Conns() {
		n++
		if !slices.ContainsFunc(m.conns, func(o *modelConn) bool { return o.conn == c }) {
			m.t.Errorf("Conns has %v, which ended", c.ID())
		}
	}
	if n != len(m.conns) {
		m.t.Errorf("Conns has %d, want %d", n, len(m.conns))
	}
	a, conns, _, did := m.audience()
	devices, err := m.w.Devices(m.w.ctx(), a)
	if err != nil || len(devices) != len(conns) {
		m.t.Errorf("Devices of %s are %v, %v, want %d", did, devices, err, len(conns))
	}
	for _, d := range devices {
		i := slices.IndexFunc(conns, func(c *modelConn) bool { return c.conn.ID() == d.Conn })
		if i < 0 || d.UserID != conns[i].user || d.OS != conns[i].os || !slices.Equal(d.Tags, conns[i].tags) || d.Protocol != conns[i].page.protocol() {
			m.t.Errorf("Devices of %s have %+v", did, d)
		}
	}
	if s := m.w.Stats(); s.Conns != len(m.conns) || s.Users != len(users) || s.Rooms != len(rooms) || s.Memberships != members || s.Pending != 0 || s.QueuedBytes != 0 || s.Flights != 0 {
		m.t.Errorf("Stats are %+v, want %d conns, %d users, %d rooms, %d memberships, nothing queued or waiting", s, len(m.conns), len(users), len(rooms), members)
	}
}

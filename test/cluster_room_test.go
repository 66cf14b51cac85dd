package test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// crowd are visitors on three nodes by whom an audience's part can be told.
type crowd struct {
	w   *clusterWorld
	all []*visitor
	of  map[*visitor]string // user
}

// gathers two devices of alice and one of another user through every door, and
// one without a user on each node; all are in the room red but for the latter.
func (w *clusterWorld) gathers() *crowd {
	c := &crowd{w: w, of: make(map[*visitor]string)}
	for i, door := range everyDoor {
		for j, user := range []string{"alice", "alice", fmt.Sprint("user", i)} {
			v := w.nodes[(i+j)%3].visits(door, user, "token=red", "tag="+[]string{"x", "y"}[i%2], "os=ios")
			c.all = append(c.all, v)
			c.of[v] = user
		}
	}
	for _, n := range w.nodes {
		v := n.visits("push.json", "", "tag=x")
		c.all = append(c.all, v)
		c.of[v] = ""
	}
	w.spreads()
	return c
}

func (c *crowd) who(is func(v *visitor) bool) (some []*visitor) {
	for _, v := range c.all {
		if is(v) {
			some = append(some, v)
		}
	}
	return some
}

// parts are audiences of every kind, with who they are.
func (c *crowd) parts() map[string]struct {
	a    push.Audience
	want []*visitor
} {
	user := func(names ...string) func(*visitor) bool {
		return func(v *visitor) bool { return slices.Contains(names, c.of[v]) }
	}
	one := c.all[7]
	last := c.all[len(c.all)-1]
	tagged := c.who(func(v *visitor) bool { return slices.Contains(v.conn().Login().Tags, "x") })
	return map[string]struct {
		a    push.Audience
		want []*visitor
	}{
		"a user":            {push.Audience{User: "alice"}, c.who(user("alice"))},
		"users":             {push.Audience{Users: []string{"user3", "nobody", "alice", "user3", "user4"}}, c.who(user("alice", "user3", "user4"))},
		"a room":            {push.Audience{Room: "red"}, c.who(func(v *visitor) bool { return c.of[v] != "" })},
		"all":               {push.Audience{All: true}, c.all},
		"a Conn":            {push.Audience{Conn: one.conn().ID()}, []*visitor{one}},
		"a nameless Conn":   {push.Audience{Conn: last.conn().ID()}, []*visitor{last}},
		"all with a tag":    {push.Audience{All: true, AnyTag: []string{"x"}}, tagged},
		"nobody's name":     {push.Audience{User: "nobody"}, nil},
		"nobody's room":     {push.Audience{Room: "empty"}, nil},
		"nobody's filter":   {push.Audience{All: true, OS: []string{"plan9"}}, nil},
		"a room of filters": {push.Audience{Room: "red", NoTag: []string{"x"}}, c.who(func(v *visitor) bool { return c.of[v] != "" && !slices.Contains(tagged, v) })},
	}
}

func TestDevicesTellsThoseOfAllNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		c := w.gathers()
		for what, part := range c.parts() {
			for _, from := range w.nodes {
				devices, err := from.Devices(t.Context(), part.a)
				if err != nil || len(devices) != len(part.want) {
					t.Errorf("%s from %s: %d devices, %v, want %d", what, from.name, len(devices), err, len(part.want))
				}
				for _, v := range part.want {
					conn := v.conn()
					l := conn.Login()
					i := slices.IndexFunc(devices, func(d push.Device) bool { return d.Conn == conn.ID() })
					if i < 0 {
						t.Errorf("%s from %s: %s is missing", what, from.name, v)
						continue
					}
					d := devices[i]
					if d.UserID != c.of[v] || d.DeviceID != v.id() || d.Node != v.node.name || d.Protocol != v.protocol() || d.OS != l.OS || d.Version != l.ClientVersion || d.Namespace != "" || !slices.Equal(d.Tags, l.Tags) || len(d.Tags) != 1 {
						t.Errorf("%s from %s: %s is %+v", what, from.name, v, d)
					}
				}
			}
		}
	})
}

func TestJoinAndLeaveWorkOnAllNodesAndCount(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		c := w.gathers()
		i := 0
		for what, part := range c.parts() {
			i++
			from, to := w.nodes[i%3], w.nodes[(i+1)%3]
			room := fmt.Sprint("room", i)
			// Some are in it already.
			before := 0
			for j, v := range part.want {
				if j%4 == 1 {
					if err := v.conn().Join(room); err != nil {
						t.Error(err)
					}
					before++
				}
			}
			for again, want := range []int{len(part.want) - before, 0} {
				if n, err := from.Join(t.Context(), part.a, room); n != want || err != nil {
					t.Errorf("join %d of %s from %s: %d, %v, want %d", again, what, from.name, n, err, want)
				}
			}
			for _, v := range c.all {
				if in := slices.Contains(v.conn().Rooms(), room); in != slices.Contains(part.want, v) {
					t.Errorf("after the join of %s %s is in the room: %v", what, v, in)
				}
			}
			w.spreads()
			for _, n := range []*nodeWorld{to, from} {
				r, err := n.PushToRoom(t.Context(), room, push.Message{Event: "in", Ack: push.AutoAck})
				if (err == nil) != (len(part.want) > 0) {
					t.Errorf("a push to the room of %s from %s: %v", what, n.name, err)
				}
				wantRows(t, r, push.Acked, part.want...)
				wantAll(part.want, "in", "null")
			}
			for again, want := range []int{len(part.want), 0} {
				if n, err := to.Leave(t.Context(), part.a, room); n != want || err != nil {
					t.Errorf("leave %d of %s from %s: %d, %v, want %d", again, what, to.name, n, err, want)
				}
			}
			w.spreads()
			for _, n := range w.nodes {
				if r, err := n.PushToRoom(t.Context(), room, push.Message{Ack: push.AutoAck}); !errors.Is(err, push.ErrOffline) || r.Targets != 0 {
					t.Errorf("a push to the room that all of %s left: %+v, %v", what, r, err)
				}
				for name := range n.Rooms() {
					if name == room {
						t.Errorf("%s still has the room of %s", n.name, what)
					}
				}
			}
		}
		wantQuiet(c.all)
	})
}

// TestARoomJoinedOnOtherNodesIsKnownToWhoJoinedThem: what one goroutine pushes
// after Join returned reaches who has joined.
func TestARoomJoinedOnOtherNodesIsKnownToWhoJoinedThem(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		all := w.everywhere("alice")
		missed, late := 0, 0
		const rounds = 30
		for i := range rounds {
			from, other := w.nodes[i%3], w.nodes[(i+1)%3]
			room := fmt.Sprint("room", i)
			if n, err := from.Join(t.Context(), push.Audience{User: "alice"}, room); n != len(all) || err != nil {
				t.Fatal(n, err)
			}
			r, _ := from.PushToRoom(t.Context(), room, push.Message{Ack: push.AutoAck})
			if r.Acked != len(all) {
				missed++
			}
			time.Sleep(25 * time.Millisecond) // a flush and the way
			r, err := other.PushToRoom(t.Context(), room, push.Message{Ack: push.AutoAck})
			if r.Acked != len(all) {
				late++
				t.Logf("25 ms later from %s: %d of %d, %v", other.name, r.Acked, len(all), err)
			}
			time.Sleep(time.Duration(i) * time.Millisecond)
		}
		if missed > 0 {
			t.Errorf("a push to the room right after Join, from the node that joined, missed nodes %d times of %d", missed, rounds)
		}
		if late > 0 {
			t.Errorf("a push from another node 25 ms after Join missed nodes %d times of %d", late, rounds)
		}
	})
}

func TestKickEndsWhoIsMeantOnAllNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		kicked := func(v *visitor, text string) {
			t.Helper()
			if v.dev == nil {
				err := v.page.end()
				if closed := new(websocket.CloseError); !endedWith(err, 4410) || errors.As(err, &closed) && v.page.io == nil && closed.Text != text {
					t.Errorf("%s ended with %v, want 4410 %q", v, err, text)
				}
				return
			}
			d := v.dev
			user := d.user
			d.wantKick(v.id(), user)
			if e := d.wantErrorTo(0, mpush.CmdHandshake, 0, "kicked").error(); e.Data != text {
				t.Errorf("%s was told %q, want %q", v, e.Data, text)
			}
			d.wantClosed(3 * time.Second)
			d.wantCode(4410)
		}
		i := 0
		probe := w.gathers()
		for what := range probe.parts() {
			if i > 0 {
				for _, v := range probe.all {
					v.vanishes()
				}
				w.spreads()
				probe = w.gathers()
			}
			i++
			part := probe.parts()[what]
			from := w.nodes[i%3]
			text := "out, " + what
			if i == 2 {
				text = strings.Repeat("ü", 100)
			}
			begin := time.Now()
			n, err := from.Kick(t.Context(), part.a, text)
			if n != len(part.want) || err != nil || time.Since(begin) > 100*time.Millisecond {
				t.Errorf("kick of %s from %s: %d, %v after %v, want %d", what, from.name, n, err, time.Since(begin), len(part.want))
			}
			if i == 2 {
				text = strings.Repeat("ü", 61)
			}
			for _, v := range part.want {
				kicked(v, text)
			}
			w.spreads()
			rest := probe.who(func(v *visitor) bool { return !slices.Contains(part.want, v) })
			r, err := from.Broadcast(t.Context(), push.Message{Event: "still", Ack: push.AutoAck})
			if (err == nil) != (len(rest) > 0) {
				t.Errorf("after the kick of %s: %v", what, err)
			}
			wantRows(t, r, push.Acked, rest...)
			wantAll(rest, "still", "null")
			wantQuiet(rest)
			if n, err := from.Kick(t.Context(), part.a, ""); n != 0 || err != nil {
				t.Errorf("the second kick of %s: %d, %v", what, n, err)
			}
		}
	})
}

// TestAKickComesBehindWhatWasPushedBefore by the same goroutine, on other
// nodes, too.
func TestAKickComesBehindWhatWasPushedBeforeOnOtherNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		for round := range 5 {
			all := w.everywhere("alice", "token=red")
			from := w.nodes[round%3]
			const count = 50
			for i := range count {
				m := push.Message{Data: i, Async: i%2 == 0}
				var err error
				if i%3 == 0 {
					_, err = from.PushToRoom(t.Context(), "red", m)
				} else {
					_, err = from.PushToUser(t.Context(), "alice", m)
				}
				if err != nil {
					t.Error(err)
				}
			}
			if n, err := from.Kick(t.Context(), push.Audience{User: "alice"}, "bye"); n != len(all) || err != nil {
				t.Errorf("kicked %d, %v, want %d", n, err, len(all))
			}
			time.Sleep(5 * time.Second)
			for _, v := range all {
				heard := v.heard()
				for i := range count {
					if len(heard) != count || heard[i] != fmt.Sprint(i) {
						t.Errorf("%s heard %q before it was kicked", v, heard)
						break
					}
				}
				v.vanishes()
			}
			w.spreads()
		}
	})
}

func TestErrorsOfOtherNodesAreTold(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		a, b, c := w.abc()
		all := w.onEach("alice")
		for i := range 256 {
			if err := all[1].conn().Join(fmt.Sprint("full", i)); err != nil {
				t.Fatal(err)
			}
		}
		w.spreads()
		// One of three cannot.
		for _, from := range w.nodes {
			n, err := from.Join(t.Context(), push.Audience{User: "alice"}, "more "+from.name)
			if n != 2 || err == nil {
				t.Errorf("from %s: %d, %v, want 2 and what is wrong on b", from.name, n, err)
			} else if from != b && (!strings.Contains(err.Error(), "node b") || !strings.Contains(err.Error(), "rooms")) {
				t.Errorf("from %s: %v does not say what is wrong on which node", from.name, err)
			}
		}
		// What is wrong with the call is no other node's business.
		for what, call := range map[string]func() (int, error){
			"a bad room":       func() (int, error) { return a.Join(t.Context(), push.Audience{All: true}, "a\x01") },
			"no room":          func() (int, error) { return a.Leave(t.Context(), push.Audience{All: true}, "") },
			"no audience":      func() (int, error) { return a.Kick(t.Context(), push.Audience{}, "x") },
			"two audiences":    func() (int, error) { return a.Kick(t.Context(), push.Audience{All: true, User: "alice"}, "x") },
			"a bad filter":     func() (int, error) { return a.Join(t.Context(), push.Audience{All: true, Percent: 101}, "x") },
			"a bad MinVersion": func() (int, error) { return a.Leave(t.Context(), push.Audience{All: true, MinVersion: "x"}, "x") },
			"a bad Devices call": func() (int, error) {
				d, err := a.Devices(t.Context(), push.Audience{Namespace: "x", All: true})
				return len(d), err
			},
		} {
			before := c.Stats().Cluster
			if n, err := call(); n != 0 || err == nil || !strings.HasPrefix(err.Error(), "push: ") {
				t.Errorf("%s: %d, %v", what, n, err)
			}
			if after := c.Stats().Cluster; after.Malformed != before.Malformed {
				t.Errorf("%s: another node was asked", what)
			}
		}
		// A node that does not answer in time.
		w.cuts(a, c)
		begin := time.Now()
		n, err := a.Join(t.Context(), push.Audience{User: "alice"}, "cut")
		if took := time.Since(begin); n != 1 || !errors.Is(err, push.ErrNodeLost) || !strings.Contains(err.Error(), "node c") || took > 5*time.Second {
			t.Errorf("with c cut off: %d, %v after %v", n, err, took)
		}
		w.mends(a, c)
		time.Sleep(time.Minute)
		if n, err := a.Devices(t.Context(), push.Audience{User: "alice"}); len(n) != 3 || err != nil {
			t.Errorf("after the cut: %v, %v", n, err)
		}
	})
}

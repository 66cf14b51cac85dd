package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// many lets a user have as many devices as he likes.
func many(cfg *push.Config) { cfg.DeviceClass = func(*push.Login) string { return "" } }

// wantRows wants a receipt to have exactly one row for each of these visitors,
// right in all that says whose it is, with this status.
func wantRows(t *testing.T, r push.Receipt, status push.Status, want ...*visitor) {
	t.Helper()
	wantStatus(t, r, slices.Repeat([]push.Status{status}, len(want))...)
	for _, v := range want {
		wantRow(t, r, status, v)
	}
	for _, d := range r.Deliveries {
		if slices.Contains(r.Offline, d.UserID) {
			t.Errorf("%s is offline and has the row %+v", d.UserID, d)
		}
	}
}

// wantRow wants a receipt to have exactly one row of this visitor, with this
// status, and returns it.
func wantRow(t *testing.T, r push.Receipt, status push.Status, v *visitor) (row push.Delivery) {
	t.Helper()
	rows := 0
	for _, d := range r.Deliveries {
		if d.DeviceID != v.id() {
			continue
		}
		rows++
		row = d
		if c := v.conn(); d.Status != status || d.Node != v.node.name || d.Protocol != v.protocol() || c != nil && (d.Conn != c.ID() || d.UserID != c.UserID()) {
			t.Errorf("%s has the row %+v, want it %v", v, d, status)
		}
	}
	if rows != 1 {
		t.Errorf("%s has %d rows in %+v", v, rows, r)
	}
	return row
}

// wantAll wants the same push to be the next thing that all of them get.
func wantAll(all []*visitor, event, data string) {
	for _, v := range all {
		v.node.clusterNode.t.Helper()
		v.wants(event, data)
	}
}

// wantQuiet wants nothing else to have come to any of them.
func wantQuiet(all []*visitor) {
	for _, v := range all {
		v.node.clusterNode.t.Helper()
		v.wantsNothing()
	}
}

// everywhere lets a user in through every door of every node.
func (w *clusterWorld) everywhere(user string, more ...string) (all []*visitor) {
	w.t.Helper()
	for _, n := range w.nodes {
		for _, door := range everyDoor {
			all = append(all, n.visits(door, user, more...))
		}
	}
	w.spreads()
	return all
}

// onEach lets a user in on each node, through one door after the other.
func (w *clusterWorld) onEach(user string, more ...string) (all []*visitor) {
	w.t.Helper()
	for _, n := range w.nodes {
		w.doors++
		all = append(all, n.visits(everyDoor[w.doors%len(everyDoor)], user, more...))
	}
	w.spreads()
	return all
}

var acks = []push.Ack{push.NoAck, push.AutoAck, push.BizAck}

func TestOnePushReachesAUserOverEveryDoorOfEveryNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		all := w.everywhere("alice")
		var others []*visitor
		for _, n := range w.nodes {
			others = append(others, n.visits("push.json", "only on "+n.name))
		}
		w.spreads()
		for i, v := range all {
			v.replies(map[string]any{"yes": i})
		}
		for i, from := range w.nodes {
			for _, ack := range acks {
				begin := time.Now()
				r, err := from.PushToUser(t.Context(), "alice", push.Message{Event: "hello", Data: map[string]any{"n": i}, Ack: ack})
				took := time.Since(begin)
				if err != nil || took > 100*time.Millisecond {
					t.Errorf("from %s: %v after %v", from.name, err, took)
				}
				want := push.Sent
				if ack != push.NoAck {
					want = push.Acked
				}
				wantRows(t, r, want, all...)
				wantAll(all, "hello", fmt.Sprintf(`{"n":%d}`, i))
				wantQuiet(all)
				for i, v := range all {
					if asks := v.asked; asks != ack && (asks != push.BizAck || v.page == nil || v.page.io == nil) { // Socket.IO has one kind
						t.Errorf("%s was asked for ack %d, want %d", v, asks, ack)
					}
					row := wantRow(t, r, want, v)
					reply := ""
					if ack != push.NoAck {
						reply = v.reply(fmt.Sprintf(`{"yes":%d}`, i))
					}
					if !sameJSON(row.Reply, reply) {
						t.Errorf("%s replied %q, want %q", v, row.Reply, reply)
					}
					if row.Latency < 0 || row.Latency > took {
						t.Errorf("%s took %v of %v", v, row.Latency, took)
					}
				}
			}
		}
		// A user who is on other nodes only.
		for _, v := range others {
			for _, from := range w.nodes {
				for _, ack := range acks {
					r, err := from.PushToUser(t.Context(), v.conn().UserID(), push.Message{Event: "bob", Ack: ack})
					if err != nil || len(r.Offline) != 0 {
						t.Errorf("from %s: %+v, %v", from.name, r, err)
					}
					want := push.Sent
					if ack != push.NoAck {
						want = push.Acked
					}
					wantRows(t, r, want, v)
					v.wants("bob", "null")
				}
			}
		}
		wantQuiet(slices.Concat(all, others))
	})
}

func TestAPushToUsersReachesEachOnceAndNamesWhoIsOffline(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		a, b, c := w.abc()
		var all []*visitor
		for i, door := range everyDoor {
			all = append(all, w.nodes[i%3].visits(door, "alice"), w.nodes[(i+1)%3].visits(door, "bob"))
		}
		all = append(all, a.visits("push.json", "anna"), b.visits("push.json", "ben"), c.visits("mpush tcp", "cleo"))
		other := b.visits("push.json", "dora")
		w.spreads()
		users := []string{"alice", "zoe", "anna", "bob", "alice", "ben", "yves", "zoe", "cleo", "bob"}
		for _, from := range w.nodes {
			for _, ack := range acks {
				r, err := from.PushToUsers(t.Context(), users, push.Message{Event: "news", Data: 1, Ack: ack})
				if err != nil {
					t.Error(err)
				}
				want := push.Sent
				if ack != push.NoAck {
					want = push.Acked
				}
				wantRows(t, r, want, all...)
				if got := slices.Sorted(slices.Values(r.Offline)); !slices.Equal(got, []string{"yves", "zoe"}) {
					t.Errorf("from %s: offline are %q", from.name, r.Offline)
				}
				wantAll(all, "news", "1")
			}
			for _, users := range [][]string{{"zoe"}, {"zoe", "yves", "zoe"}} {
				r, err := from.PushToUsers(t.Context(), users, push.Message{})
				if !errors.Is(err, push.ErrOffline) || r.Targets != 0 || len(r.Deliveries) != 0 || len(r.Offline) != min(len(users), 2) {
					t.Errorf("from %s to who is offline: %+v, %v", from.name, r, err)
				}
			}
			r, err := from.PushToUser(t.Context(), "zoe", push.Message{})
			if !errors.Is(err, push.ErrOffline) || r.Targets != 0 || !slices.Equal(r.Offline, []string{"zoe"}) {
				t.Errorf("from %s to who is offline: %+v, %v", from.name, r, err)
			}
		}
		wantQuiet(append(all, other))
	})
}

func TestARoomAndEverybodyAreOnAllNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		var members []*visitor
		for i, door := range everyDoor {
			members = append(members, w.nodes[i%3].visits(door, fmt.Sprint("user", i), "token=red"))
		}
		others := append(w.onEach("bob", "token=green"), w.nodes[1].visits("push.json", ""))
		everybody := append(slices.Clone(members), others...)
		w.spreads()
		of := func(n *nodeWorld, all []*visitor) (count int) {
			for _, v := range all {
				if v.node == n {
					count++
				}
			}
			return count
		}
		for _, from := range w.nodes {
			for what, all := range map[string][]*visitor{"room": members, "all": everybody} {
				for _, ack := range acks {
					m := push.Message{Event: "red", Data: what, Ack: ack}
					var r push.Receipt
					var err error
					if what == "room" {
						r, err = from.PushToRoom(t.Context(), "red", m)
					} else {
						r, err = from.Broadcast(t.Context(), m)
					}
					if err != nil {
						t.Error(err)
					}
					if ack == push.NoAck {
						if here := of(from, all); r.Targets != here || r.Sent != here || r.Failed != 0 || len(r.Deliveries) != 0 {
							t.Errorf("from %s to %s: %+v, want counts of %d", from.name, what, r, here)
						}
					} else {
						wantRows(t, r, push.Acked, all...)
					}
					wantAll(all, "red", strconv.Quote(what))
					wantQuiet(everybody)
				}
			}
			// A room that nobody is in, anywhere.
			if r, err := from.PushToRoom(t.Context(), "blue", push.Message{}); err != nil || r.Targets != 0 {
				t.Errorf("to an empty room: %+v, %v", r, err)
			}
			if r, err := from.PushToRoom(t.Context(), "blue", push.Message{Ack: push.AutoAck}); !errors.Is(err, push.ErrOffline) || r.Targets != 0 {
				t.Errorf("to an empty room with an ack: %+v, %v", r, err)
			}
		}
	})
}

// TestNamespacesAreApartOnAllNodes: users, rooms and everybody of one are
// found in it alone.
func TestNamespacesAreApartOnAllNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			many(cfg)
			cfg.SocketIO.Namespace = anySpace
		})
		var roots, chats, news []*visitor
		for i, door := range append(slices.Clone(socketIODoors), moreSocketIODoors...) {
			n := w.nodes[i%3]
			root := n.visits(door, "alice", "token=red")
			roots = append(roots, root)
			chats = append(chats, &visitor{node: n, page: root.page.io.joins("/chat", "alice", "token=red").isIn()})
			news = append(news, &visitor{node: n, page: root.page.io.joins("/news", "bob", "token=red").isIn()})
		}
		all := slices.Concat(roots, chats, news)
		w.spreads()
		for _, from := range w.nodes {
			for _, ack := range acks {
				for i, to := range []struct {
					a    push.Audience
					want []*visitor
				}{
					{push.Audience{User: "alice"}, roots},
					{push.Audience{User: "alice", Namespace: "/"}, roots},
					{push.Audience{User: "alice", Namespace: "/chat"}, chats},
					{push.Audience{User: "alice", Namespace: "/news"}, nil},
					{push.Audience{Users: []string{"alice", "bob"}, Namespace: "/news"}, news},
					{push.Audience{Room: "red"}, roots},
					{push.Audience{Room: "red", Namespace: "/chat"}, chats},
					{push.Audience{Room: "red", Namespace: "/none"}, nil},
					{push.Audience{All: true}, roots},
					{push.Audience{All: true, Namespace: "/news"}, news},
				} {
					r, err := from.Push(t.Context(), to.a, push.Message{Event: "e", Data: i, Ack: ack})
					rows := to.a.User != "" || to.a.Users != nil || ack != push.NoAck
					switch {
					case to.want == nil && rows:
						if !errors.Is(err, push.ErrOffline) || r.Targets != 0 {
							t.Errorf("%+v: %+v, %v", to.a, r, err)
						}
					case err != nil:
						t.Errorf("%+v: %v", to.a, err)
					case ack != push.NoAck:
						wantRows(t, r, push.Acked, to.want...)
					case rows:
						wantRows(t, r, push.Sent, to.want...)
					}
					wantAll(to.want, "e", fmt.Sprint(i))
					wantQuiet(all)
				}
			}
			room := "of " + from.name
			if n, err := from.Join(t.Context(), push.Audience{User: "alice", Namespace: "/chat"}, room); n != len(chats) || err != nil {
				t.Errorf("join in /chat from %s: %d, %v, want %d", from.name, n, err, len(chats))
			}
			w.spreads()
			r, err := w.nodes[0].Push(t.Context(), push.Audience{Room: room, Namespace: "/chat"}, push.Message{Event: "joined", Ack: push.AutoAck})
			if err != nil {
				t.Error(err)
			}
			wantRows(t, r, push.Acked, chats...)
			wantAll(chats, "joined", "null")
			if devices, err := from.Devices(t.Context(), push.Audience{All: true, Namespace: "/news"}); len(devices) != len(news) || err != nil || devices[0].Namespace != "/news" {
				t.Errorf("devices of /news: %+v, %v", devices, err)
			}
			if !from.Online("bob") || !from.Online("alice") || from.Online("carl") {
				t.Errorf("on %s a user is not online in any namespace", from.name)
			}
		}
	})
}

func TestAConnIsReachedFromEveryNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			many(cfg)
			cfg.SocketIO.Namespace = anySpace
		})
		a, b, _ := w.abc()
		all := w.everywhere("alice")
		chat := &visitor{node: b, page: b.visits("socket.io.5 websocket", "alice").page.io.joins("/chat", "alice").isIn()}
		w.spreads()
		for _, from := range w.nodes {
			for _, v := range append(all, chat) {
				for _, ack := range acks {
					r, err := from.Push(t.Context(), push.Audience{Conn: v.conn().ID()}, push.Message{Event: "you", Data: 7, Ack: ack})
					if err != nil {
						t.Errorf("%s from %s: %v", v, from.name, err)
					}
					want := push.Acked
					if ack == push.NoAck {
						want = push.Sent
					}
					wantRows(t, r, want, v)
					v.wants("you", "7")
				}
			}
			// A filter that it does not pass.
			r, err := from.Push(t.Context(), push.Audience{Conn: chat.conn().ID(), Namespace: "/"}, push.Message{})
			if !errors.Is(err, push.ErrOffline) || len(r.Deliveries) != 1 || r.Deliveries[0].Status != push.Offline {
				t.Errorf("a Conn of another namespace from %s: %+v, %v", from.name, r, err)
			}
			r, err = from.Push(t.Context(), push.Audience{Conn: chat.conn().ID(), Namespace: "/chat"}, push.Message{Event: "chat"})
			if err != nil {
				t.Error(err)
			}
			wantRows(t, r, push.Sent, chat)
			chat.wants("chat", "null")
		}
		wantQuiet(append(all, chat))

		// One that has gone, one that never was, one of no node.
		gone := b.visits("push.json", "bob")
		id := gone.conn().ID()
		gone.vanishes()
		w.spreads()
		for _, from := range w.nodes {
			for what, id := range map[string]push.ConnID{"gone": id, "never there": id&^0xffffffff | 0xfffffff0, "of no node": 0x12345678_00000001 ^ id&^0xffffffff} {
				for _, ack := range acks {
					begin := time.Now()
					r, err := from.Push(t.Context(), push.Audience{Conn: id}, push.Message{Ack: ack})
					wantStatus(t, r, push.Offline)
					node := "b"
					if what == "of no node" {
						node = from.name
					}
					if !errors.Is(err, push.ErrOffline) || len(r.Deliveries) != 1 || r.Deliveries[0].Conn != id || r.Deliveries[0].Node != node || time.Since(begin) > 200*time.Millisecond {
						t.Errorf("a Conn that is %s, from %s: %+v, %v after %v", what, from.name, r, err, time.Since(begin))
					}
				}
			}
		}
		if n := a.Stats().Cluster.Malformed + b.Stats().Cluster.Malformed; n != 0 {
			t.Errorf("%d malformed messages", n)
		}
	})
}

func TestFiltersNarrowOnEveryNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		type is struct {
			tags        []string
			os, version string
		}
		kinds := []is{
			{nil, "", ""}, {[]string{"x"}, "ios", "1.2"}, {[]string{"x", "y"}, "Android", "1.10.1"}, {[]string{"y", "z"}, "ANDROID", "2"},
			{[]string{"z"}, "mac", "no number"}, {[]string{"x", "y", "z"}, "iOS", "1.9.9"},
		}
		of := make(map[*visitor]is)
		var all []*visitor
		for i := range 36 {
			k := kinds[i%len(kinds)]
			more := []string{"token=red", "os=" + k.os}
			if k.version != "" {
				more = append(more, "version="+k.version)
			}
			for _, tag := range k.tags {
				more = append(more, "tag="+tag)
			}
			door := everyDoor[i%len(everyDoor)]
			v := w.nodes[i%3].visits(door, "alice", more...)
			if v.dev != nil && k.version == "" {
				k.version = "1.2.3" // what it says otherwise
			}
			of[v] = k
			all = append(all, v)
		}
		w.spreads()
		has := func(v *visitor, tag string) bool { return slices.Contains(of[v].tags, tag) }
		except := []push.ConnID{all[0].conn().ID(), all[1].conn().ID(), all[2].conn().ID(), all[20].conn().ID()}
		for i, f := range []struct {
			narrow func(a *push.Audience)
			passes func(v *visitor) bool
		}{
			{func(a *push.Audience) { a.AnyTag = []string{"x", "z"} }, func(v *visitor) bool { return has(v, "x") || has(v, "z") }},
			{func(a *push.Audience) { a.AllTags = []string{"x", "y"} }, func(v *visitor) bool { return has(v, "x") && has(v, "y") }},
			{func(a *push.Audience) { a.NoTag = []string{"y"} }, func(v *visitor) bool { return !has(v, "y") }},
			{func(a *push.Audience) { a.OS = []string{"IOS", "mac"} }, func(v *visitor) bool { return strings.EqualFold(of[v].os, "ios") || of[v].os == "mac" }},
			{func(a *push.Audience) { a.MinVersion = "1.9" }, func(v *visitor) bool { return slices.Contains([]string{"1.10.1", "2", "1.9.9"}, of[v].version) }},
			{func(a *push.Audience) { a.Except = except }, func(v *visitor) bool { return !slices.Contains(except, v.conn().ID()) }},
			{func(a *push.Audience) {
				a.AnyTag, a.NoTag, a.OS, a.Except = []string{"x"}, []string{"z"}, []string{"android"}, except
			}, func(v *visitor) bool {
				return has(v, "x") && !has(v, "z") && strings.EqualFold(of[v].os, "android") && !slices.Contains(except, v.conn().ID())
			}},
			{func(a *push.Audience) { a.AnyTag = []string{"nobody's"} }, func(*visitor) bool { return false }},
		} {
			var want []*visitor
			for _, v := range all {
				if f.passes(v) {
					want = append(want, v)
				}
			}
			for what, a := range map[string]push.Audience{"user": {User: "alice"}, "users": {Users: []string{"nobody", "alice"}}, "room": {Room: "red"}, "all": {All: true}} {
				f.narrow(&a)
				for _, ack := range acks {
					from := w.nodes[(i+int(ack))%3]
					r, err := from.Push(t.Context(), a, push.Message{Event: "f", Data: what, Ack: ack})
					quiet := (what == "room" || what == "all") && ack == push.NoAck
					switch {
					case len(want) == 0 && !quiet:
						if !errors.Is(err, push.ErrOffline) || r.Targets != 0 {
							t.Errorf("filter %d, %s from %s: %+v, %v", i, what, from.name, r, err)
						}
					case err != nil:
						t.Errorf("filter %d, %s from %s: %v", i, what, from.name, err)
					case quiet:
					case ack == push.NoAck:
						wantRows(t, r, push.Sent, want...)
					default:
						wantRows(t, r, push.Acked, want...)
					}
					wantAll(want, "f", strconv.Quote(what))
					wantQuiet(all)
				}
			}
		}
	})
}

func TestPercentIsTheSameShareOfUsersOnEveryNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		var users []string
		for i := range 90 {
			user := fmt.Sprint("user", i)
			users = append(users, user)
			w.nodes[i%3].visits("push.json", user)
			w.nodes[(i+1)%3].visits("push.json", user)
		}
		w.spreads()
		reached := func(from *push.Engine, a push.Audience, percent int) map[string]int {
			a.Percent = percent
			r, err := from.Push(t.Context(), a, push.Message{Ack: push.AutoAck})
			if err != nil {
				t.Error(err)
			}
			found := make(map[string]int)
			for _, d := range r.Deliveries {
				found[d.UserID]++
			}
			return found
		}
		alone := newWorld(t, push.Config{}) // a node without a cluster chooses the same
		for _, user := range users {
			alone.connect(user)
		}
		before := 0
		for _, percent := range []int{20, 50, 100} {
			want := reached(alone.Engine, push.Audience{All: true}, percent)
			if len(want) <= before || len(want) > len(users)*(percent+20)/100 {
				t.Errorf("%d %% are %d of %d users", percent, len(want), len(users))
			}
			before = len(want)
			for user := range want {
				want[user] = 2 // devices of each, on different nodes
			}
			for _, from := range w.nodes {
				for _, a := range []push.Audience{{All: true}, {Users: users}} {
					if got := reached(from.Engine, a, percent); !maps.Equal(got, want) {
						t.Errorf("%d %% of %+v from %s are %v, want %v", percent, a, from.name, got, want)
					}
				}
			}
		}
	})
}

func TestDataArrivesAcrossNodesAsWhatItIs(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		var all []*visitor
		for i, door := range everyDoor {
			all = append(all, w.nodes[i%3].visits(door, "alice", "token=red"))
		}
		w.spreads()
		big := strings.Repeat("ü€😀 ", 900<<10/12)
		type point struct {
			X int    `json:"x"`
			S string `json:"s,omitempty"`
		}
		for what, data := range map[string]any{
			"nil": nil, "number": 1.5, "unicode": "grüße 😀\u2028 \x00 <&>", "struct": point{1, "ß"}, "raw": json.RawMessage(`{ "a" : [1, 2e3] }`),
			"args": push.Args{1, "two", nil, map[string]any{"three": 3}}, "args with bytes": push.Args{"a", []byte{0, 255, 10}, "b", []byte("xyz")}, "no args": push.Args{},
			"empty string": "", "big": big, "nested": map[string]any{"a": map[string]any{"b": []any{}}},
		} {
			text, err := json.Marshal(data)
			if err != nil {
				t.Fatal(err)
			}
			for i, ack := range acks {
				if what == "big" && ack != push.AutoAck {
					continue
				}
				from := w.nodes[i]
				r, err := from.PushToUser(t.Context(), "alice", push.Message{Event: "ö " + what, Data: data, Ack: ack})
				if err != nil {
					t.Errorf("%s from %s: %v", what, from.name, err)
				}
				want := push.Acked
				if ack == push.NoAck {
					want = push.Sent
				}
				wantRows(t, r, want, all...)
				for _, v := range all {
					if what == "no args" && v.page != nil && v.page.io != nil {
						v.wants("ö "+what, "") // no argument at all
					} else {
						v.wants("ö "+what, string(text))
					}
				}
			}
			if what == "big" {
				continue
			}
			if _, err := w.nodes[0].PushToRoom(t.Context(), "red", push.Message{Event: "room", Data: data}); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			for _, v := range all {
				if what == "no args" && v.page != nil && v.page.io != nil {
					v.wants("room", "")
				} else {
					v.wants("room", string(text))
				}
			}
		}
		for what, opaque := range map[string][]byte{"short": {0, 1, 254, 255}, "JSON": []byte(`{"a":1}`), "big": bytes.Repeat([]byte{0, 'x', 200}, 300<<10)} {
			text, _ := json.Marshal(opaque)
			for i, ack := range acks {
				if what == "big" && ack != push.BizAck {
					continue
				}
				from := w.nodes[i]
				r, err := from.PushToUser(t.Context(), "alice", push.Message{Event: "bytes", Data: opaque, Ack: ack})
				if err != nil {
					t.Errorf("%s bytes from %s: %v", what, from.name, err)
				}
				for _, v := range all {
					want := push.Acked
					if ack == push.NoAck {
						want = push.Sent
					}
					if v.protocol() == "mpush.json" && !utf8.Valid(opaque) {
						want = push.Unsupported
					}
					wantRow(t, r, want, v)
					switch {
					case want == push.Unsupported:
					case v.dev != nil:
						if got := v.dev.next().content(); got != string(opaque) {
							t.Errorf("%s got %.40q, want %.40q", v, got, opaque)
						}
					default:
						v.wants("bytes", string(text))
					}
				}
			}
		}
		wantQuiet(all)
		// What is wrong goes nowhere.
		for _, m := range []push.Message{{Data: []byte{}}, {Data: strings.Repeat("x", 2<<20)}, {Event: "connect"}, {Event: "a\x01"}, {Data: func() {}}} {
			if r, err := w.nodes[0].PushToUser(t.Context(), "alice", m); err == nil || r.Targets != 0 {
				t.Errorf("a push of %.20q %T: %+v, %v", m.Event, m.Data, r, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
		wantQuiet(all)
	})
}

// TestProgressTellsOfDevicesOnAllNodes: its calls never overlap, and the last
// one has everything settled.
func TestProgressTellsOfDevicesOnAllNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		all := w.everywhere("alice")
		for i, v := range all { // they answer one after the other, over 2 s
			pause := time.Duration(i) * 2 * time.Second / time.Duration(len(all))
			if v.page != nil {
				v.page.onAck(func(p *page, m envelope) {
					time.AfterFunc(pause, func() { p.answers(m, "late") })
				})
			} else {
				v.dev.onAck(func(d *device, p packet) { time.AfterFunc(pause, func() { d.ack(p.id) }) })
			}
		}
		for _, async := range []bool{true, false} {
			for _, from := range w.nodes {
				var in atomic.Int32
				var mu sync.Mutex
				var told []push.Receipt
				ended := make(chan struct{})
				m := push.Message{Ack: push.BizAck, Async: async, Progress: func(r push.Receipt) {
					if in.Add(1) != 1 {
						t.Error("two calls of Progress overlap")
					}
					time.Sleep(20 * time.Millisecond)
					mu.Lock()
					told = append(told, r)
					mu.Unlock()
					if in.Add(-1); r.Targets == len(all) && r.Acked == len(all) {
						close(ended)
					}
				}}
				ctx, cancel := context.WithCancel(t.Context())
				begin := time.Now()
				r, err := from.PushToUser(ctx, "alice", m)
				took := time.Since(begin)
				cancel() // is not used after the return
				if async {
					if err != nil || took > 10*time.Millisecond || len(r.Deliveries) != 0 || r.Acked+r.Sent+r.Failed != 0 {
						t.Errorf("async from %s: %+v, %v after %v", from.name, r, err, took)
					}
				} else {
					wantRows(t, r, push.Acked, all...)
				}
				select {
				case <-ended:
				case <-time.After(5 * time.Second):
					t.Fatalf("Progress never told of all: %+v", told[len(told)-1])
				}
				time.Sleep(10 * time.Second)
				mu.Lock()
				if n := len(told); n < 10 || n > 25 {
					t.Errorf("Progress ran %d times in 2 s", n)
				}
				for i, r := range told {
					settled := r.Sent+r.Acked+r.Failed == r.Targets
					if last := i == len(told)-1; last != (settled && r.Targets == len(all)) || i > 0 && (r.Acked < told[i-1].Acked || r.Targets < told[i-1].Targets) {
						t.Errorf("call %d of %d: %d targets, %d acked", i, len(told), r.Targets, r.Acked)
					}
				}
				wantRows(t, told[len(told)-1], push.Acked, all...)
				mu.Unlock()
				for _, v := range all {
					v.wants("message", "null")
				}
			}
		}
		for _, n := range w.nodes {
			if s := n.Stats(); s.Flights != 0 || s.Panics != 0 {
				t.Errorf("%s: %d flights, %d panics", n.name, s.Flights, s.Panics)
			}
		}
	})
}

func TestRatePacesAPushOverAllNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		for i := range 90 {
			w.nodes[i%3].visits(dialectNames[i%2], "alice", "token=red")
		}
		w.spreads()
		const rate = 30
		for _, a := range []push.Audience{{User: "alice"}, {Room: "red"}} {
			for _, ack := range []push.Ack{push.NoAck, push.AutoAck} {
				begin := time.Now()
				r, err := w.nodes[1].Push(t.Context(), a, push.Message{Rate: rate, Ack: ack})
				took := time.Since(begin)
				if err != nil || r.Targets != 90 || r.Failed != 0 || len(r.Deliveries) != 90 {
					t.Fatalf("%+v: %d targets, %d failed, %v", a, r.Targets, r.Failed, err)
				}
				if took < 2500*time.Millisecond || took > 3300*time.Millisecond {
					t.Errorf("%+v with ack %d took %v, want about 3 s", a, ack, took)
				}
				var at []time.Duration
				for _, d := range r.Deliveries {
					at = append(at, d.Latency)
				}
				if ack == push.NoAck { // as rows come: those of a node may come together
					continue
				}
				slices.Sort(at)
				for i := range at[:len(at)-rate] {
					if span := at[i+rate] - at[i]; span < 800*time.Millisecond {
						t.Fatalf("%d devices within %v: %v", rate+1, span, at)
					}
				}
			}
		}
	})
}

func TestAPacedAsyncPushTellsProgressOfAllNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		all := w.everywhere("alice")
		for _, ack := range acks {
			var mu sync.Mutex
			var told []push.Receipt
			begin := time.Now()
			r, err := w.nodes[2].PushToUser(t.Context(), "alice", push.Message{Ack: ack, Async: true, Rate: 12, Progress: func(r push.Receipt) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, r)
			}})
			if took := time.Since(begin); err != nil || took > time.Millisecond || len(r.Deliveries) != 0 {
				t.Errorf("%+v, %v after %v", r, err, took)
			}
			time.Sleep(2 * time.Second)
			mu.Lock()
			if n := len(told); n == 0 || told[n-1].Sent+told[n-1].Acked > len(all)-6 {
				t.Errorf("with ack %d it was not paced: %d calls of Progress after 2 of 3 s", ack, n)
			}
			mu.Unlock()
			time.Sleep(8 * time.Second)
			want := push.Acked
			if ack == push.NoAck {
				want = push.Sent
			}
			mu.Lock()
			wantRows(t, told[len(told)-1], want, all...)
			mu.Unlock()
			wantAll(all, "message", "null")
		}
		wantQuiet(all)
	})
}

// TestARowIsTheSameWhicheverNodeAsks, replies of every kind among it.
func TestARowIsTheSameWhicheverNodeAsks(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		all := w.everywhere("alice")
		for _, v := range all {
			var turn atomic.Int32
			if v.page == nil {
				continue
			}
			v.page.onAck(func(p *page, m envelope) {
				kind := int(turn.Add(1)-1) / len(w.nodes)
				if p.io != nil {
					p.acknowledges(m, [][]any{{}, {nil}, {"ü"}, {1, []any{}, "x"}, {[]byte{0, 255}}, {map[string]any{"a": []any{1.5}}}}[kind]...)
				} else {
					p.answers(m, []any{nil, nil, "ü", []any{1, []any{}, "x"}, "bytes", map[string]any{"a": []any{1.5}}}[kind])
				}
			})
		}
		before := make(map[string]push.Stats)
		for _, n := range w.nodes {
			before[n.name] = n.Stats()
		}
		for kind := range 6 {
			var first map[string]push.Delivery
			for _, from := range w.nodes {
				r, err := from.PushToUser(t.Context(), "alice", push.Message{Ack: push.BizAck})
				if err != nil {
					t.Error(err)
				}
				wantRows(t, r, push.Acked, all...)
				rows := make(map[string]push.Delivery)
				for _, d := range r.Deliveries {
					d.Latency = 0
					rows[d.DeviceID] = d
				}
				if first == nil {
					first = rows
				}
				for id, d := range rows {
					if want := first[id]; fmt.Sprintf("%+v", d) != fmt.Sprintf("%+v", want) {
						t.Errorf("reply %d, asked by %s:\n%+v, by a:\n%+v", kind, from.name, d, want)
					}
				}
			}
		}
		// Each is counted where it was called.
		for _, n := range w.nodes {
			s := n.Stats()
			if acked := s.Deliveries["acked"] - before[n.name].Deliveries["acked"]; acked != uint64(6*len(all)) || s.Pushes-before[n.name].Pushes != 6 {
				t.Errorf("%s counts %d acked of %d pushes, want %d of 6", n.name, acked, s.Pushes-before[n.name].Pushes, 6*len(all))
			}
		}
	})
}

// TestHooksMayPushToTheirUserOnAllNodes and wait for the acks, all at once.
func TestHooksMayPushToTheirUserOnAllNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		nodes := make(map[string]*nodeWorld)
		var mu sync.Mutex
		pushes := func(name string, ctx context.Context, c *push.Conn, event string) (int, error) {
			mu.Lock()
			n := nodes[name]
			mu.Unlock()
			r, err := n.PushToUser(ctx, c.UserID(), push.Message{Event: event, Ack: push.AutoAck})
			if err == nil && r.Failed > 0 {
				err = fmt.Errorf("%+v", r)
			}
			return r.Acked, err
		}
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			many(cfg)
			name := cfg.Cluster.Node
			cfg.OnConnect = func(ctx context.Context, c *push.Conn) {
				if _, err := pushes(name, ctx, c, "hello"); err != nil {
					t.Errorf("in OnConnect on %s: %v", name, err)
				}
			}
			cfg.OnMessage = func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				return pushes(name, ctx, c, "chat")
			}
		})
		for _, n := range w.nodes {
			nodes[n.name] = n
		}
		begin := time.Now()
		all := w.everywhere("alice")
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("it took %v to connect them", took)
		}
		for _, v := range all {
			v.heard()
		}
		for _, v := range all {
			if v.page != nil {
				v.page.asks(1, "say", nil)
			} else {
				v.dev.push("say", mpush.FlagBizAck)
			}
		}
		time.Sleep(time.Second)
		for _, v := range all {
			if got := len(v.heard()); got != len(all) {
				t.Errorf("%s heard %d of %d", v, got, len(all))
			}
		}
		for _, n := range w.nodes {
			if s := n.Stats(); s.Flights != 0 || s.SlowHooks != 0 {
				t.Errorf("%s: %d flights, %d slow hooks", n.name, s.Flights, s.SlowHooks)
			}
		}
	})
}

// TestAPacedPushWaitsForMuteDevicesAfterItsLastOne, wherever they are, no longer
// than AckTimeout.
func TestAPacedPushWaitsForMuteDevicesAfterItsLastOne(t *testing.T) {
	for what, on := range map[string][]string{"here": {"a"}, "there": {"b"}, "here and there": {"a", "b"}, "on all": {"a", "b", "c"}} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newClusterWorld(t, 3, many)
				for _, n := range w.nodes { // who answers
					n.visits("push.json", "alice")
				}
				var mutes []*visitor
				for i, name := range on {
					v := w.node(name).visits(everyDoor[i*3], "alice")
					v.isMute()
					mutes = append(mutes, v)
				}
				w.spreads()
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				begin := time.Now()
				r, err := w.nodes[0].PushToUser(ctx, "alice", push.Message{Ack: push.AutoAck, Rate: 10})
				if took := time.Since(begin); err != nil || took < 4900*time.Millisecond || took > 6*time.Second {
					t.Errorf("it took %v, want about 5 s: %v", took, err)
				}
				if r.Acked != 3 || r.Failed != len(mutes) {
					t.Errorf("%+v", r)
				}
				for _, v := range mutes {
					wantRow(t, r, push.Timeout, v)
				}
			})
		})
	}
}

func TestAPacedPushMayTakeLongerThanAckTimeoutOnAnotherNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, many)
		const count = 8 // at one a second; AckTimeout is 5 s
		for range count {
			w.nodes[1].visits("push.json", "alice")
		}
		w.spreads()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for _, n := range w.nodes {
			r, err := n.PushToUser(ctx, "alice", push.Message{Ack: push.AutoAck, Rate: 1})
			if err != nil || r.Acked != count || r.Failed != 0 {
				t.Errorf("from %s: %+v, %v", n.name, r, err)
			}
		}
	})
}

// TestNewsOfAnAsyncPushMayComeWhileItIsBegun: other nodes answer before all were
// asked.
func TestNewsOfAnAsyncPushMayComeWhileItIsBegun(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 6, many)
		for _, n := range w.nodes {
			n.visits("push.json", "alice")
		}
		w.spreads()
		w.net.SetDelay(0, 0)
		data := strings.Repeat("x", 20_000)
		for range 150 {
			var sent atomic.Int32
			if _, err := w.nodes[0].PushToUser(t.Context(), "alice", push.Message{Async: true, Data: data, Progress: func(r push.Receipt) {
				sent.Store(int32(r.Sent))
			}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if n := sent.Load(); n != int32(len(w.nodes)) {
				t.Errorf("want %d told as Sent, got %d", len(w.nodes), n)
			}
		}
	})
}

func TestAUserWhoLeftAnotherNodeCostsNoSecondContent(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var calls atomic.Int32
		w := newClusterWorld(t, 2, func(cfg *push.Config) {
			many(cfg)
			cfg.MPush.Content = func(m push.Message) ([]byte, error) {
				calls.Add(1)
				return m.Data.(json.RawMessage), nil
			}
		})
		a, b := w.nodes[0], w.nodes[1]
		a.visits("mpush tcp plain", "alice")
		gone := b.visits("push.json", "alice")
		w.spreads()
		gone.vanishes()
		synctest.Wait() // b knows, and has not told
		before := a.Stats().Cluster.Sent
		r, err := a.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck})
		if err != nil || r.Acked != 1 || r.Targets != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		if n := a.Stats().Cluster.Sent - before; n != 1 {
			t.Errorf("b was asked %d times", n)
		}
		if n := calls.Load(); n != 1 {
			t.Errorf("want MPush.Content called once, got %d", n)
		}
	})
}

// TestMuteDevicesAreTimeoutAtTheDeadline, and what they answer after it changes
// nothing.
func TestMuteDevicesAreTimeoutAtTheDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		mutes, others := w.everywhere("alice"), w.everywhere("alice")
		for _, v := range mutes {
			v.isMute()
		}
		only := w.everywhere("bob")
		for _, v := range only {
			v.isMute()
		}
		for _, wait := range []time.Duration{0, 300 * time.Millisecond, time.Second} {
			for _, from := range w.nodes {
				ctx, limit := t.Context(), 5*time.Second
				if wait > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, wait)
					defer cancel()
					limit = wait
				}
				last := make(chan push.Receipt, 1000)
				begin := time.Now()
				r, err := from.PushToUser(ctx, "alice", push.Message{Ack: push.AutoAck, Progress: func(r push.Receipt) { last <- r }})
				took := time.Since(begin)
				if err != nil || took > limit || took < limit-50*time.Millisecond {
					t.Errorf("from %s within %v: %v after %v", from.name, limit, err, took)
				}
				if r.Targets != len(mutes)+len(others) || r.Acked != len(others) || r.Failed != len(mutes) {
					t.Errorf("from %s: %d targets, %d acked, %d failed", from.name, r.Targets, r.Acked, r.Failed)
				}
				for _, v := range mutes {
					if row := wantRow(t, r, push.Timeout, v); row.Latency > limit {
						t.Errorf("%s is Timeout after %v", v, row.Latency)
					}
				}
				for _, v := range others {
					wantRow(t, r, push.Acked, v)
				}
				told := len(last)
				for _, v := range mutes { // too late
					switch {
					case v.dev != nil:
						v.dev.ack(v.dev.next().id)
					default:
						v.page.answers(v.page.next(), "late")
					}
				}
				for _, v := range others {
					v.wants("message", "null")
				}
				time.Sleep(time.Second)
				if len(last) != told || r.Failed != len(mutes) {
					t.Errorf("Progress was told of late answers: %d calls, then %d", told, len(last))
				}
			}
		}
		// When nobody answers, the error says why.
		begin := time.Now()
		r, err := w.nodes[0].PushToUser(t.Context(), "bob", push.Message{Ack: push.BizAck})
		wantRows(t, r, push.Timeout, only...)
		if !errors.Is(err, push.ErrTimeout) || time.Since(begin) > 5*time.Second {
			t.Errorf("%v after %v, want ErrTimeout", err, time.Since(begin))
		}
		for _, n := range w.nodes {
			s := n.Stats()
			if s.Flights != 0 || s.Cluster.Malformed != 0 {
				t.Errorf("%s: %d flights, %d malformed", n.name, s.Flights, s.Cluster.Malformed)
			}
		}
	})
}

// TestTheContextEndsAPushAcrossNodes at once, and other nodes wait no longer
// either.
func TestTheContextEndsAPushAcrossNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			many(cfg)
			cfg.Limits.AckTimeout = -1
		})
		all := w.everywhere("alice")
		for _, v := range all {
			v.isMute()
		}
		for _, from := range w.nodes {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(137*time.Millisecond, cancel)
			begin := time.Now()
			r, err := from.PushToUser(ctx, "alice", push.Message{Ack: push.AutoAck})
			if took := time.Since(begin); !errors.Is(err, context.Canceled) || took != 137*time.Millisecond {
				t.Errorf("from %s: %v after %v", from.name, err, took)
			}
			wantRows(t, r, push.Timeout, all...)
			time.Sleep(100 * time.Millisecond)
			for _, n := range w.nodes {
				if got := n.Stats().Flights; got != 0 {
					t.Errorf("%s still waits for %d pushes", n.name, got)
				}
			}
			// And the deadline of a context is the only one.
			ctx, cancel = context.WithTimeout(t.Context(), 42*time.Second)
			begin = time.Now()
			r, err = from.PushToUser(ctx, "alice", push.Message{Ack: push.AutoAck})
			cancel()
			if took := time.Since(begin); err == nil || took > 42*time.Second || took < 41*time.Second {
				t.Errorf("from %s: %v after %v", from.name, err, took)
			}
			wantRows(t, r, push.Timeout, all...)
			// One that has ended sends nothing.
			if r, err := from.PushToUser(ctx, "alice", push.Message{}); err == nil || r.Targets != 0 {
				t.Errorf("with an ended context: %+v, %v", r, err)
			}
		}
		for _, v := range all {
			for range 2 * len(w.nodes) {
				v.wants("message", "null")
			}
		}
		wantQuiet(all)
		// Without any limit it waits until they answer. (A device that sends no
		// heartbeats is there for nine minutes.)
		time.AfterFunc(time.Minute, func() {
			for _, v := range all {
				if v.page != nil {
					v.page.answers(v.page.next(), 1)
				} else {
					v.dev.ack(v.dev.next().id)
				}
			}
		})
		begin := time.Now()
		r, err := w.nodes[0].PushToUser(t.Context(), "alice", push.Message{Ack: push.BizAck})
		if took := time.Since(begin); err != nil || took < time.Minute || took > time.Minute+time.Second {
			t.Errorf("%v after %v", err, took)
		}
		wantRows(t, r, push.Acked, all...)
	})
}

func TestNobodyIsAskedWhoHasNoPartOfIt(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		a, b, c := w.abc()
		onA, onB := a.visits("push.json", "alice", "token=red"), b.visits("mpush tcp", "alice", "token=red")
		onC := c.visits("push.json", "carl", "token=blue")
		w.spreads()
		before := c.Stats().Cluster.Served
		w.cuts(a, c)
		w.cuts(b, c)
		for _, audience := range []push.Audience{
			{User: "alice"}, {Users: []string{"alice", "zoe"}}, {Room: "red"}, {Conn: onB.conn().ID()}, {Conn: onA.conn().ID()},
			{User: "alice", NoTag: []string{"x"}}, {Room: "red", Namespace: "/"},
		} {
			for _, ack := range acks {
				for _, from := range []*nodeWorld{a, b} {
					begin := time.Now()
					r, err := from.Push(t.Context(), audience, push.Message{Ack: ack})
					if took := time.Since(begin); err != nil || took > 30*time.Millisecond || r.Failed != 0 {
						t.Errorf("%+v with ack %d from %s: %+v, %v after %v", audience, ack, from.name, r, err, took)
					}
				}
			}
			if n, err := a.Join(t.Context(), audience, "green"); err != nil || n == 0 {
				t.Errorf("join of %+v: %d, %v", audience, n, err)
			}
			if n, err := a.Leave(t.Context(), audience, "green"); err != nil || n == 0 {
				t.Errorf("leave of %+v: %d, %v", audience, n, err)
			}
			if ds, err := b.Devices(t.Context(), audience); err != nil || len(ds) == 0 {
				t.Errorf("devices of %+v: %v, %v", audience, ds, err)
			}
		}
		w.mends(a, c)
		w.mends(b, c)
		w.spreads()
		onC.wantsNothing()
		if got := c.Stats().Cluster.Served; got != before {
			t.Errorf("c was asked %d times", got-before)
		}
	})
}

// TestWhatOneGoroutinePushesComesInOrderOnEveryNode, whatever the audiences and
// the acks, and whether it waits.
func TestWhatOneGoroutinePushesComesInOrderOnEveryNode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		var all []*visitor
		for i, door := range everyDoor {
			all = append(all, w.nodes[i%3].visits(door, "alice", "token=red"))
		}
		for i := range 70 { // so that workers write to a room of a
			w.nodes[0].visits("push.json", fmt.Sprint("crowd", i), "token=red")
		}
		w.spreads()
		const count = 200
		var senders sync.WaitGroup
		for _, from := range w.nodes {
			senders.Go(func() {
				for i := range count {
					m := push.Message{Event: from.name, Data: fmt.Sprintf("%s %d", from.name, i), Async: i%3 != 0, Ack: acks[i/7%3]}
					var err error
					switch i * 7 % 5 {
					case 0:
						_, err = from.PushToUser(t.Context(), "alice", m)
					case 1:
						_, err = from.PushToRoom(t.Context(), "red", m)
					case 2:
						_, err = from.Broadcast(t.Context(), m)
					case 3:
						_, err = from.PushToUsers(t.Context(), []string{"zoe", "alice"}, m)
					case 4:
						_, err = from.Push(t.Context(), push.Audience{Room: "red", NoTag: []string{"x"}}, m)
					}
					if err != nil {
						t.Errorf("push %d from %s: %v", i, from.name, err)
					}
					if i%50 == 0 {
						time.Sleep(3 * time.Millisecond)
					}
				}
			})
		}
		senders.Wait()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for _, v := range all {
			next := make(map[string]int)
			for _, text := range v.heard() {
				var s string
				if err := json.Unmarshal([]byte(text), &s); err != nil {
					t.Fatalf("%s got %q", v, text)
				}
				from, number, _ := strings.Cut(s, " ")
				if i, _ := strconv.Atoi(number); i != next[from] {
					t.Errorf("%s got %q, want number %d", v, s, next[from])
					break
				}
				next[from]++
			}
			for _, from := range w.nodes {
				if next[from.name] != count {
					t.Errorf("%s got %d of %d from %s", v, next[from.name], count, from.name)
				}
			}
		}
	})
}

// TestAPushDoesNotOutliveItsEngine: Close and Shutdown of the node that pushes,
// or of the one that is asked, end it.
func TestAPushDoesNotOutliveItsEngine(t *testing.T) {
	for _, who := range []string{"a", "b"} {
		for _, how := range []string{"Close", "Shutdown"} {
			t.Run(how+" of "+who, func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					w := newClusterWorld(t, 3, many)
					a := w.nodes[0]
					all := w.everywhere("alice", "token=red")
					for _, v := range all {
						v.isMute()
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // none of them needs that
					defer cancel()
					var pushes sync.WaitGroup
					begin := time.Now()
					for i, m := range []push.Message{{Ack: push.AutoAck}, {Ack: push.BizAck, Async: true}, {Ack: push.AutoAck, Rate: 5}, {Rate: 5}, {Rate: 5, Async: true}} {
						for _, audience := range []push.Audience{{User: "alice"}, {Room: "red"}, {All: true}} {
							pushes.Go(func() {
								r, err := a.Push(ctx, audience, m)
								if err != nil && !m.Async && (errors.Is(err, push.ErrClosed) || r.Targets == 0) {
									t.Errorf("push %d began before the end and is %+v, %v", i, r, err)
								}
								for _, d := range r.Deliveries {
									if d.Status == 0 {
										t.Errorf("push %d has a row without a status: %+v", i, d)
									}
								}
							})
						}
					}
					time.Sleep(500 * time.Millisecond)
					n := w.node(who)
					if how == "Close" {
						n.Close()
					} else if err := n.Shutdown(t.Context()); err != nil {
						t.Error(err)
					}
					pushes.Wait()
					// A paced one goes on if the node that it is from does.
					if took := time.Since(begin); took > 20*time.Second || who == "a" && took > 7*time.Second {
						t.Errorf("a push ended after %v", took)
					}
					if who == "a" {
						if _, err := a.PushToUser(t.Context(), "alice", push.Message{}); !errors.Is(err, push.ErrClosed) {
							t.Errorf("a push after the end: %v", err)
						}
					}
					time.Sleep(20 * time.Second)
					for _, n := range w.nodes {
						if got := n.Stats().Flights; got != 0 {
							t.Errorf("%s still has %d flights", n.name, got)
						}
					}
				})
			})
		}
	}
}

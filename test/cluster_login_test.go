package test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/mpush"
)

// byOS makes one class of all devices of an OS.
func byOS(cfg *push.Config) { cfg.DeviceClass = func(l *push.Login) string { return l.OS } }

// lost is how a visitor was told that its place was taken, "" if it was not;
// it takes away what came.
func (v *visitor) lost() string {
	synctest.Wait()
	if v.dev != nil {
		var said []string
		for _, p := range v.dev.taken() {
			said = append(said, p.String())
		}
		return strings.Join(said, ", ")
	}
	v.page.mu.Lock()
	defer v.page.mu.Unlock()
	switch {
	case v.page.err == nil:
		return ""
	case endedWith(v.page.err, 4409):
		return "replaced"
	}
	return v.page.err.Error()
}

// wantLost wants a visitor to have been told once that its place was taken.
func (v *visitor) wantLost(user string) {
	t := v.node.clusterNode.t
	t.Helper()
	want := "replaced"
	if v.dev != nil {
		want = fmt.Sprintf("KICK 0 %+v", mpush.Kick{DeviceID: v.id(), UserID: user})
	}
	if got := v.lost(); got != want {
		t.Errorf("%s was told %q, want %q", v, got, want)
	}
	if c := v.conn(); c != nil && c.UserID() == user {
		t.Errorf("%s is still there", v)
	}
}

// wantOnly wants exactly these visitors to be a user's devices, on every node's
// word, and a push to reach them.
func (w *clusterWorld) wantOnly(user string, want ...*visitor) {
	w.t.Helper()
	var ids []string
	for _, v := range want {
		ids = append(ids, v.id())
	}
	slices.Sort(ids)
	for _, n := range w.nodes {
		devices, err := n.Devices(w.t.Context(), push.Audience{User: user})
		if err != nil {
			w.t.Errorf("Devices on %s: %v", n.name, err)
		}
		var got []string
		for _, d := range devices {
			got = append(got, d.DeviceID)
		}
		slices.Sort(got)
		if !slices.Equal(got, ids) {
			w.t.Errorf("on %s %s has the devices %q, want %q", n.name, user, got, ids)
		}
		if n.Online(user) != (len(want) > 0) {
			w.t.Errorf("on %s %s is online: %v", n.name, user, n.Online(user))
		}
		r, err := n.PushToUser(w.t.Context(), user, push.Message{Event: "only", Ack: push.AutoAck})
		if (err == nil) != (len(want) > 0) {
			w.t.Errorf("a push from %s: %v", n.name, err)
		}
		wantRows(w.t, r, push.Acked, want...)
		for _, v := range want {
			v.wants("only", "null")
		}
	}
}

func TestTheNewestLoginOfAClassStaysWhateverTheNodes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, byOS)
		for i, first := range everyDoor {
			for j, second := range everyDoor {
				user := fmt.Sprintf("u%d-%d", i, j)
				x, y := w.nodes[(i+j)%3], w.nodes[(i+j+1+i%2)%3]
				other := x.visits("push.json", user, "os=other")
				unclassed := y.visits("push.json", user)
				old := x.visits(first, user, "os=phone")
				w.spreads()
				young := y.visits(second, user, "os=phone")
				w.spreads()
				time.Sleep(10 * time.Millisecond)
				old.wantLost(user)
				wantQuiet([]*visitor{young, other, unclassed})
				if i%3 == j%3 {
					w.wantOnly(user, young, other, unclassed)
				}
				if old.dev != nil {
					old.dev.wantOpen(4 * time.Second) // it stays open, in no place, and hears nothing more
				} else {
					time.Sleep(time.Second)
				}
				wantQuiet([]*visitor{young, other, unclassed})
				for _, v := range []*visitor{old, young, other, unclassed} {
					v.vanishes()
				}
			}
		}
	})
}

func TestAKickedOutDeviceIsClosedAfterThreeSecondsIfSo(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, func(cfg *push.Config) { cfg.MPush.CloseKicked = true })
		a, b := w.nodes[0], w.nodes[1]
		for _, door := range everyDoor {
			if !strings.HasPrefix(door, "mpush") {
				continue
			}
			old := a.visits(door, "alice")
			w.spreads()
			young := b.visits(door, "alice")
			w.spreads()
			old.wantLost("alice")
			old.dev.wantClosed(3 * time.Second)
			old.dev.wantCode(4409)
			w.wantOnly("alice", young)
			young.vanishes()
			w.spreads()
		}
	})
}

// TestOneOfLoginsAtOneInstantSurvives on all nodes, and the others are told
// once.
func TestOneOfLoginsAtOneInstantSurvives(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, byOS)
		for round := range 40 {
			user := fmt.Sprint("user", round)
			var mu sync.Mutex
			var all []*visitor
			var logins sync.WaitGroup
			var ways []func(string, ...string) *visitor
			for i, n := range w.nodes {
				door := everyDoor[(round*5+i*3)%len(everyDoor)]
				way := n.through(door)
				if !strings.HasPrefix(door, "mpush") {
					way = func(user string, more ...string) *visitor { // who is thrown out before he sees that he is in
						p, _, err := n.tryConnect(user, more...)
						if err != nil {
							t.Errorf("%s on %s: %v", door, n.name, err)
							return nil
						}
						return &visitor{node: n, page: p}
					}
				}
				ways = append(ways, way)
			}
			for i := range 2 + round%4 { // of four and more, some on one node
				logins.Go(func() {
					if v := ways[(round+i)%3](user, "os=phone"); v != nil {
						mu.Lock()
						defer mu.Unlock()
						all = append(all, v)
					}
				})
			}
			logins.Wait()
			time.Sleep(200 * time.Millisecond)
			var survivors []*visitor
			for _, v := range all {
				if c := v.conn(); c != nil && c.UserID() == user {
					survivors = append(survivors, v)
					continue
				}
				v.wantLost(user)
			}
			if len(survivors) != 1 {
				t.Fatalf("round %d: %v survive of %v", round, survivors, all)
			}
			wantQuiet(survivors)
			w.wantOnly(user, survivors...)
			time.Sleep(10 * time.Second)
			wantQuiet(survivors)
		}
	})
}

func TestALoginMovesFromNodeToNodeAHundredTimes(t *testing.T) {
	for _, pause := range []time.Duration{100 * time.Millisecond, 10 * time.Millisecond, 2 * time.Millisecond} {
		t.Run(pause.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newClusterWorld(t, 3, byOS)
				var all []*visitor
				for i := range 100 {
					all = append(all, w.nodes[i%3].visits(everyDoor[i%len(everyDoor)], "alice", "os=phone"))
					time.Sleep(pause)
				}
				w.spreads()
				time.Sleep(10 * time.Second)
				last := all[len(all)-1]
				for _, v := range all[:len(all)-1] {
					v.wantLost("alice")
				}
				wantQuiet([]*visitor{last})
				w.wantOnly("alice", last)
				last.vanishes()
				w.spreads()
				w.wantOnly("alice")
			})
		})
	}
}

func TestASecondLoginOnTheSameNodeReplacesTheFirstInACluster(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 2, byOS)
		a, b := w.nodes[0], w.nodes[1]
		for _, door := range everyDoor {
			var now *visitor
			for i := range 4 { // a, a, b, b
				old := now
				now = []*nodeWorld{a, a, b, b}[i].visits(door, "alice", "os=phone")
				w.spreads()
				if old != nil {
					old.wantLost("alice")
				}
				w.wantOnly("alice", now)
			}
			now.vanishes()
			w.spreads()
			w.wantOnly("alice")
		}
	})
}

// TestADeviceThatComesBackOnAnotherNodeStays, and its old connection is
// detached without KICK, as on one node: the device would believe that another
// one took its place.
func TestADeviceThatComesBackOnAnotherNodeStays(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, nil)
		for i := range 6 {
			old := w.nodes[i%3].visits("mpush tcp", "alice", "device=phone")
			w.spreads()
			again := w.nodes[(i+1)%3].visits("mpush tcp", "alice", "device=phone")
			time.Sleep(5 * time.Second)
			if got := old.lost(); got != "" {
				t.Errorf("the device was told %q on its old connection, want nothing", got)
			}
			wantQuiet([]*visitor{again})
			w.wantOnly("alice", again)
			old.vanishes()
			again.vanishes()
			w.spreads()
		}
	})
}

// What is known of who is online.

func TestEveryNodeKnowsWhoIsOnline(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			many(cfg)
			cfg.SocketIO.Namespace = anySpace
		})
		a, b, c := w.abc()
		want := func(users ...string) {
			t.Helper()
			w.spreads()
			for _, n := range w.nodes {
				var got []string
				for user := range n.Users() {
					got = append(got, user)
					if !n.Online(user) {
						t.Errorf("%s has %s among its Users and not Online", n.name, user)
					}
				}
				slices.Sort(got)
				if !slices.Equal(got, users) {
					t.Errorf("%s knows the users %q, want %q", n.name, got, users)
				}
				for user := range n.Users() { // may be stopped
					_ = user
					break
				}
			}
		}
		want()
		var all []*visitor
		for _, door := range everyDoor {
			for _, n := range w.nodes {
				all = append(all, n.visits(door, "alice"))
			}
		}
		want("alice")
		nobody := b.visits("push.json", "")
		bob := c.visits("mpush tcp", "bob")
		root := a.visits("socket.io.5 websocket", "alice")
		root.page.io.joins("/chat", "chatter").isIn()
		c.visits("socket.io.4 websocket", "").page.io.joins("/chat", "chatter").isIn()
		want("alice", "bob", "chatter")
		for _, v := range all[:len(all)-1] {
			v.vanishes()
		}
		root.vanishes()
		want("alice", "bob", "chatter")
		all[len(all)-1].vanishes()
		bob.dev.unbind("bob")
		want("chatter")
		nobody.page.logsIn("nora")
		nobody.page.wantLogin("nora")
		want("chatter", "nora")
		nobody.page.logsIn("nina")
		nobody.page.wantLogin("nina")
		want("chatter", "nina")
		nobody.page.sendsRaw(map[string]any{"logout": true})
		want("chatter")
		c.host.Kill()
		a.wantWithin(8*time.Second, "a", "b")
		b.wantWithin(8*time.Second, "a", "b")
		for _, n := range []*nodeWorld{a, b} {
			if n.Online("chatter") {
				t.Errorf("%s has a dead node's user online", n.name)
			}
		}
	})
}

// TestOnPresenceTellsTheLatestStateOfEachUser, once for each change, on every
// node, one call at a time.
func TestOnPresenceTellsTheLatestStateOfEachUser(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var mu sync.Mutex
		told := make(map[string][]string)
		busy := make(map[string]bool)
		w := newClusterWorld(t, 2, func(cfg *push.Config) {
			many(cfg)
			cfg.SocketIO.Namespace = anySpace
			name := cfg.Cluster.Node
			cfg.OnPresence = func(p push.Presence) {
				mu.Lock()
				if busy[name] {
					t.Errorf("two calls of OnPresence overlap on %s", name)
				}
				busy[name] = true
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				busy[name] = false
				is := "off"
				if p.Online {
					is = "on"
				}
				told[name] = append(told[name], fmt.Sprintf("%s %s %s", p.User, is, p.Node))
			}
		})
		want := func(after string, lines ...string) {
			t.Helper()
			w.spreads()
			time.Sleep(100 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			for _, n := range w.nodes {
				if got := told[n.name]; !slices.Equal(got, lines) {
					t.Errorf("after %s %s was told %q, want %q", after, n.name, got, lines)
				}
			}
			clear(told)
		}
		a, b := w.nodes[0], w.nodes[1]
		want("nothing")
		for _, door := range everyDoor {
			first := a.visits(door, "alice")
			want("a login on a over "+door, "alice on a")
			second := b.visits(door, "alice")
			third := b.visits("push.json", "alice")
			want("more on b")
			first.vanishes()
			want("the first one's end")
			second.vanishes()
			third.vanishes()
			want("the last one's end", "alice off b")
		}
		root := b.visits("socket.io.5 polling", "")
		want("nobody")
		chat := root.page.io.joins("/chat", "bob").isIn()
		want("a login in a namespace", "bob on b")
		other := a.visits("socket.io.5 websocket", "bob")
		want("one in / elsewhere")
		chat.leavesSpace()
		want("the namespace's end")
		other.vanishes()
		want("the other's end", "bob off a")

		// A user who comes and goes faster than the hook looks is told as he is in
		// the end.
		stuck := a.visits("push.json", "sam")
		want("sam", "sam on a")
		stuck.vanishes()
		for range 20 {
			a.visits("push.json", "eve").vanishes()
		}
		w.spreads()
		time.Sleep(time.Second)
		mu.Lock()
		for name, lines := range told {
			state := map[string]string{}
			for _, line := range lines {
				f := strings.Fields(line)
				if state[f[0]] == f[1] {
					t.Errorf("%s was told twice that %s is %s: %q", name, f[0], f[1], lines)
				}
				state[f[0]] = f[1]
			}
			if state["sam"] != "off" || state["eve"] == "on" {
				t.Errorf("%s believes %v at the end", name, state)
			}
		}
		clear(told)
		mu.Unlock()

		// Who was online before a node was there is not told by it; that he goes
		// is. A dead node's users go.
		before := a.visits("push.json", "before")
		onB := b.visits("push.json", "bert")
		_ = onB
		want("two more", "before on a", "bert on b")
		c := w.starts("c", 3)
		w.isWhole()
		want("a new node")
		cath := c.visits("mpush tcp", "cath")
		want("a login on c", "cath on c")
		before.vanishes()
		want("the end of who was there before c", "before off a")
		c.host.Kill()
		a.wantWithin(8*time.Second, "a", "b")
		b.wantWithin(8*time.Second, "a", "b")
		time.Sleep(time.Second)
		mu.Lock()
		for _, name := range []string{"a", "b"} {
			if got := told[name]; !slices.Equal(got, []string{"cath off c"}) {
				t.Errorf("after c's death %s was told %q", name, got)
			}
		}
		mu.Unlock()
		_ = cath
	})
}

// Where devices may go.

func (n *nodeWorld) allocs() (status int, addrs string) {
	w := httptest.NewRecorder()
	n.Alloc().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	return w.Code, w.Body.String()
}

func TestAllocTellsTheNodesThatServe(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 4, func(cfg *push.Config) {
			many(cfg)
			cfg.Limits.MaxConnsPerUser = -1
			if name := cfg.Cluster.Node; name != "d" { // d is not for devices
				cfg.MPush.Advertise = name + ".push.test:3000"
			}
			cfg.Drain = 10 * time.Second
		})
		a, b, c := w.abc()
		d := w.nodes[3]
		addr := func(names string) string {
			var addrs []string
			for name := range strings.SplitSeq(names, "") {
				addrs = append(addrs, name+".push.test:3000")
			}
			return strings.Join(addrs, ",")
		}
		fill := func(n *nodeWorld, to int) {
			for n.Stats().Sockets < to {
				n.visits("push.json", "crowd")
			}
		}
		fill(d, 3)
		seen := func(n *nodeWorld, turns int) map[string]int {
			t.Helper()
			orders := make(map[string]int)
			for range turns {
				status, addrs := n.allocs()
				if status != http.StatusOK {
					t.Errorf("%s answers %d", n.name, status)
				}
				orders[addrs]++
			}
			return orders
		}
		// All empty: each is first as often.
		for _, n := range w.nodes {
			first := make(map[string]int)
			for order, times := range seen(n, 30) {
				if strings.Count(order, ",") != 2 || !strings.Contains(order, "a.") || !strings.Contains(order, "b.") || !strings.Contains(order, "c.") {
					t.Errorf("%s tells %q", n.name, order)
				}
				first[order[:1]] += times
			}
			if first["a"] != 10 || first["b"] != 10 || first["c"] != 10 {
				t.Errorf("%s tells them first so often: %v", n.name, first)
			}
		}
		fill(a, 40)
		fill(b, 20)
		fill(c, 21)
		time.Sleep(15 * time.Second) // as beats tell
		for _, n := range w.nodes {
			got := seen(n, 20)
			if len(got) != 2 || got[addr("bca")] != 10 || got[addr("cba")] != 10 {
				t.Errorf("%s tells %v, want b and c in turns and then a", n.name, got)
			}
		}
		fill(c, 23)
		time.Sleep(15 * time.Second)
		for _, n := range w.nodes {
			if got := seen(n, 20); got[addr("bca")] != 20 {
				t.Errorf("%s tells %v, want b, c, a", n.name, got)
			}
		}
		var ends sync.WaitGroup
		ends.Go(func() { b.Shutdown(context.Background()) })
		time.Sleep(time.Second)
		for _, n := range w.nodes {
			if got := seen(n, 5); got[addr("ca")] != 5 {
				t.Errorf("%s tells %v while b drains, want c, a", n.name, got)
			}
		}
		ends.Wait()
		ends.Go(func() { a.Shutdown(context.Background()) })
		ends.Go(func() { c.Shutdown(context.Background()) })
		time.Sleep(time.Second)
		for _, n := range w.nodes {
			if status, body := n.allocs(); status != http.StatusServiceUnavailable {
				t.Errorf("%s answers %d %q when nobody serves, want 503", n.name, status, body)
			}
		}
		ends.Wait()
	})
}

// Tokens, keys and secrets.

func TestASessionOfOneNodeIsResumedOnAnother(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, nil)
		a, b, c := w.abc()
		for _, name := range []string{"mpush tcp", "mpush ws binary"} {
			old := a.visits(name, "alice").dev
			for i, n := range []*nodeWorld{b, c, a, b} {
				old.vanishes()
				w.spreads()
				n.door = old.door
				d := n.resumes(old)
				d.fastConnect(d.token)
				d.wantResumed()
				d.bind("alice")
				v := &visitor{node: n, dev: d}
				w.spreads()
				w.wantOnly("alice", v)
				if i == 3 {
					d.vanishes()
				}
				d.token, old = old.token, d
			}
			w.spreads()
		}
	})
}

func TestNodesWithDifferentKeysSayWho(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const text = "another MPush.PrivateKey"
		key, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		own := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			if cfg.Cluster.Node == "c" {
				cfg.MPush.PrivateKey = own
			}
		})
		time.Sleep(20 * time.Minute)
		for _, n := range w.nodes {
			got := n.log.at(slog.LevelError, text)
			want := []string{"node=c"}
			if n.name == "c" {
				want = []string{"node=a", "node=b"}
			}
			for _, node := range want {
				if !slices.ContainsFunc(got, func(line string) bool { return strings.Contains(line, node) }) {
					t.Errorf("%s does not tell of %s: %q", n.name, node, got)
				}
			}
			if len(got) > 10*len(want) {
				t.Errorf("%s told it %d times in 20 minutes", n.name, len(got))
			}
			if n.name != "c" && slices.ContainsFunc(got, func(line string) bool { return !strings.Contains(line, "node=c") }) {
				t.Errorf("%s tells of a node with the same key: %q", n.name, got)
			}
		}
		// Pages do not mind.
		v := w.nodes[2].visits("push.json", "alice")
		w.spreads()
		w.wantOnly("alice", v)
	})
}

// TestAClusterWithoutSecretsAndOneWithThemSayWhy they do not meet.
func TestAClusterWithoutSecretsAndOneWithThemSayWhy(t *testing.T) {
	for what, first := range map[string]bool{"the open one first": true, "the closed one first": false} {
		synctest.Test(t, func(t *testing.T) {
			nw := memnet.New(1)
			start := func(name, ip string, open bool) *clusterNode {
				n := &clusterNode{t: t, name: name, host: nw.Host(ip), log: &logBook{}}
				cfg := push.Cluster{Node: name, Insecure: open, Seeds: []string{"127.0.0.1", "127.0.0.2"}, Transport: n.host.Transport(7946)}
				if !open {
					cfg.Secrets = [][]byte{clusterSecret(1)}
				}
				var err error
				if n.Engine, err = push.New(push.Config{Logger: slog.New(n.log), Cluster: &cfg}); err != nil {
					t.Fatal(err)
				}
				return n
			}
			x := start("x", "127.0.0.1", first)
			y := start("y", "127.0.0.2", !first)
			time.Sleep(10 * time.Minute)
			x.want("x")
			y.want("y")
			for _, n := range []*clusterNode{x, y} {
				if lines := n.log.at(slog.LevelWarn, "hint="); len(lines) == 0 || !strings.Contains(strings.Join(lines, "\n"), "Cluster.Secrets") && !strings.Contains(strings.Join(lines, "\n"), "Cluster.Insecure") {
					t.Errorf("%s: %s does not say what is wrong: %q", what, n.name, n.log.at(slog.LevelWarn, ""))
				}
				if lines := n.log.at(slog.LevelWarn, ""); len(lines) > 30 {
					t.Errorf("%s: %s wrote %d lines", what, n.name, len(lines))
				}
			}
			stopCluster(x, y)
		})
	}
}

// TestNodesOfAnotherClusterHoldNothingOfThisOne: neither a wrong secret nor
// another name lets users through.
func TestNodesOfAnotherClusterHoldNothingOfThisOne(t *testing.T) {
	for what, mod := range map[string]func(*push.Config){
		"other secret": func(cfg *push.Config) { cfg.Cluster.Secrets = [][]byte{clusterSecret(2)} },
		"other name":   func(cfg *push.Config) { cfg.Cluster.Name = "blue" },
	} {
		inBubble(t, func(t *testing.T) {
			w := newClusterWorld(t, 2, many)
			w.mod = func(cfg *push.Config) { many(cfg); mod(cfg) }
			x := w.starts("x", 9)
			w.nodes = w.nodes[:2]
			w.nodes[1].visits("push.json", "alice")
			page := x.visits("push.json", "xavier")
			time.Sleep(time.Minute)
			w.wantOnly("xavier")
			if x.Online("alice") {
				t.Errorf("%s: alice is online for a stranger", what)
			}
			if r, err := w.nodes[0].Broadcast(t.Context(), push.Message{Ack: push.AutoAck}); err != nil || r.Targets != 1 {
				t.Errorf("%s: %+v, %v", what, r, err)
			}
			page.wantsNothing()
			for _, n := range []*nodeWorld{w.nodes[0], x} {
				if n.log.at(slog.LevelWarn, "hint=") == nil {
					t.Errorf("%s: %s does not say what is wrong", what, n.name)
				}
			}
		})
	}
}

// TestTwoNodesOfOneIDHarmNobodyElse: what is on other nodes is reached.
func TestTwoNodesOfOneIDHarmNobodyElse(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		a, b, c := w.abc()
		onA, onC := a.visits("push.json", "alice"), c.visits("mpush tcp", "alice")
		onB := b.visits("push.json", "bob")
		twin := w.starts("b", 9)
		w.nodes = []*nodeWorld{a, b, c}
		onTwin := twin.visits("push.json", "bill")
		for range 30 {
			time.Sleep(time.Second)
			for _, n := range []*nodeWorld{a, c} {
				r, err := n.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck})
				if err != nil {
					t.Error(err)
				}
				wantRows(t, r, push.Acked, onA, onC)
				wantAll([]*visitor{onA, onC}, "message", "null")
			}
		}
		for _, n := range []*nodeWorld{a, b, c, twin} {
			if got := n.log.at(slog.LevelError, "two nodes run under one id"); len(got) == 0 {
				t.Errorf("%s (at %d) does not report it", n.name, n.at)
			}
		}
		// Both serve their own.
		for v, user := range map[*visitor]string{onB: "bob", onTwin: "bill"} {
			if r, err := v.node.PushToUser(t.Context(), user, push.Message{Ack: push.AutoAck}); err != nil || r.Acked != 1 {
				t.Errorf("%s: %+v, %v", v, r, err)
			}
		}
	})
}

// The end of a node.

func TestShutdownOfANodeLosesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const drain = 8 * time.Second
		w := newClusterWorld(t, 3, func(cfg *push.Config) {
			many(cfg)
			cfg.Drain = drain
		})
		a, b, c := w.abc()
		var all []*visitor
		for _, door := range everyDoor {
			all = append(all, b.visits(door, "alice"), b.visits(door, "alice"))
		}
		onC := c.visits("push.json", "carl")
		w.spreads()
		for _, v := range all { // they answer after two seconds
			if v.page != nil {
				v.page.onAck(func(p *page, m envelope) { time.AfterFunc(2*time.Second, func() { p.answers(m, "done") }) })
			} else {
				v.dev.onAck(func(d *device, p packet) { time.AfterFunc(2*time.Second, func() { d.ack(p.id) }) })
			}
		}
		var pushes sync.WaitGroup
		pushes.Go(func() {
			r, err := a.PushToUser(t.Context(), "alice", push.Message{Ack: push.BizAck})
			if err != nil {
				t.Error(err)
			}
			wantStatus(t, r, slices.Repeat([]push.Status{push.Acked}, len(all))...)
		})
		time.Sleep(time.Second)
		begin := time.Now()
		var ended time.Duration
		var end sync.WaitGroup
		end.Go(func() {
			if err := b.Shutdown(context.Background()); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			ended = time.Since(begin)
		})
		synctest.Wait()
		if err := b.Ready(); err == nil || errors.Is(err, push.ErrClosed) {
			t.Errorf("Ready is %v while it drains", err)
		}
		a.wantWithin(time.Second, "a", "b*", "c")
		c.wantWithin(time.Second, "a", "b*", "c")
		if took := time.Since(begin); took > 500*time.Millisecond {
			t.Errorf("peers see it drain after %v", took)
		}
		if _, _, err := b.tryConnect("late"); err == nil {
			t.Error("it still lets somebody in")
		}
		pushes.Wait()

		// Pushes work until the last connection is closed, and who was closed is
		// not in them any more.
		var last int
		for last = len(all); last > 0; {
			r, err := a.PushToUser(t.Context(), "alice", push.Message{Event: "while"})
			if err != nil && !errors.Is(err, push.ErrOffline) && !errors.Is(err, push.ErrNodeLost) {
				t.Errorf("while it drains: %v", err)
			}
			if r.Sent > last {
				t.Errorf("%d devices, then %d", last, r.Sent)
			}
			for _, d := range r.Deliveries {
				if d.Status != push.Sent {
					t.Errorf("while it drains: %+v", d)
				}
			}
			last = r.Sent
			if time.Since(begin) > 30*time.Second {
				t.Fatal("it never ends")
			}
			if last > 0 {
				time.Sleep(100 * time.Millisecond)
			}
		}
		end.Wait()
		if ended < drain/2 || ended > drain+6*time.Second {
			t.Errorf("Shutdown took %v", ended)
		}
		time.Sleep(100 * time.Millisecond)
		for _, n := range []*nodeWorld{a, c} {
			n.want("a", "c")
			if n.Online("alice") {
				t.Errorf("%s has a user of the node that left", n.name)
			}
			r, err := n.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck})
			if !errors.Is(err, push.ErrOffline) || len(r.Offline) != 1 || r.Targets != 0 {
				t.Errorf("from %s to a user of the node that left: %+v, %v", n.name, r, err)
			}
		}
		var ends []time.Duration
		for _, v := range all {
			if v.dev != nil {
				v.dev.tail(time.Second)
				ends = append(ends, v.dev.endedAt().Sub(begin))
				v.dev.wantCode(1001)
				continue
			}
			if err := v.page.end(); !endedWith(err, 1001) {
				t.Errorf("%s ended with %v, want 1001", v, err)
			}
		}
		slices.Sort(ends)
		if spread := ends[len(ends)-1] - ends[0]; spread < drain/4 {
			t.Errorf("devices were closed within %v of %v: %v", spread, drain, ends)
		}
		onC.wantsNothing()
	})
}

// TestUsersOfANodeThatShutsDownAreGoneAtOnce: within 100 ms at its peers.
func TestUsersOfANodeThatShutsDownAreGoneAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		a, b, c := w.abc()
		for i := range 20 {
			b.visits(everyDoor[i%len(everyDoor)], fmt.Sprint("user", i))
		}
		w.spreads()
		for _, end := range []func(){
			func() {
				if err := b.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			},
		} {
			var wg sync.WaitGroup
			wg.Go(end)
			for begin := time.Now(); time.Since(begin) < 20*time.Second && b.Stats().Sockets > 0; {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(100 * time.Millisecond)
			for _, n := range []*nodeWorld{a, c} {
				for user := range n.Users() {
					t.Errorf("%s has %s", n.name, user)
				}
				r, err := n.PushToUser(t.Context(), "user1", push.Message{})
				if !errors.Is(err, push.ErrOffline) || r.Targets != 0 {
					t.Errorf("%s: %+v, %v", n.name, r, err)
				}
			}
			wg.Wait()
		}
	})
}

func TestUsersOfANodeThatIsClosedAreGoneAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newClusterWorld(t, 3, many)
		a, b, c := w.abc()
		for i := range 20 {
			b.visits(everyDoor[i%len(everyDoor)], fmt.Sprint("user", i))
		}
		w.spreads()
		b.Close()
		time.Sleep(100 * time.Millisecond)
		for _, n := range []*nodeWorld{a, c} {
			n.want("a", "c")
			for user := range n.Users() {
				t.Errorf("%s has %s", n.name, user)
			}
			r, err := n.PushToUser(t.Context(), "user1", push.Message{})
			if !errors.Is(err, push.ErrOffline) || r.Targets != 0 {
				t.Errorf("%s: %+v, %v", n.name, r, err)
			}
		}
	})
}

package test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// anySpace lets everybody into every namespace.
func anySpace(context.Context, string, *push.Login) error { return nil }

// TestUnknownNamespaceIsRefusedInTheFormOfTheRevision, and the connection goes
// on.
func TestUnknownNamespaceIsRefusedInTheFormOfTheRevision(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		for name, space := range map[string]func(context.Context, string, *push.Login) error{
			"nil":          nil,
			"unauthorized": func(context.Context, string, *push.Login) error { return push.ErrUnauthorized },
			"wrapped":      func(context.Context, string, *push.Login) error { return fmt.Errorf("x: %w", push.ErrUnauthorized) },
		} {
			w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: space}})
			w.dialect = door
			p := w.connect("alice")
			for range 3 {
				p.io.sendsAll(p.io.connectPacket("/chat", nil))
				p.io.wantsRefusal("/chat", "Invalid namespace")
			}
			if p.io.rev == 3 {
				p.io.says("40/chat?user=u,")
				p.io.wantsRefusal("/chat", "Invalid namespace")
			}
			if r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "still", Ack: push.AutoAck}); err != nil || r.Acked != 1 {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
			p.wantPush("still")
			if s := w.Stats(); s.Refused["unauthorized"] < 3 || s.Conns != 1 {
				t.Errorf("%s: %+v", name, s)
			}
		}
	})
}

// TestNamespaceHookDecides, after the gate and with what it left.
func TestNamespaceHookDecides(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var d diary
		w := newWorld(t, push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				l.Data = "data of " + l.UserID
				l.Rooms = []string{"gate's"}
				return l.UserID + "!", nil
			},
			SocketIO: push.SocketIO{Namespace: func(ctx context.Context, name string, l *push.Login) error {
				d.note("%s %s %v %v", name, l.UserID, l.Data, l.Request != nil)
				if _, ok := ctx.Deadline(); !ok {
					t.Error("its context has no end")
				}
				switch name {
				case "/text":
					return push.Refuse("members only")
				case "/later":
					return errors.New("the database is down")
				case "/panic":
					panic("the hook panics")
				case "/slow":
					<-ctx.Done()
				}
				return nil
			}},
		})
		w.dialect = door
		open := func() *ioClient {
			c := w.opens(door, "user=alice")
			if c.rev == 4 {
				c.sendsAll(c.connectPacket("/", nil))
			}
			c.wantsConnect("/")
			return c
		}
		c := open()
		c.sendsAll(c.connectPacket("/ok", nil))
		c.wantsConnect("/ok")
		c.sendsAll(c.connectPacket("/text", nil))
		c.wantsRefusal("/text", "members only")
		r, err := w.Push(t.Context(), push.Audience{Room: "gate's", Namespace: "/ok"}, push.Message{Event: "in"})
		if err != nil || r.Targets != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		c.wants(`42/ok,["in",null]`)
		d.want(t, "/ok alice! data of alice true", "/text alice! data of alice true")
		for space, code := range map[string]int{"/later": 1013, "/panic": 1011, "/slow": 1013} {
			c := open()
			begin := time.Now()
			c.sendsAll(c.connectPacket(space, nil))
			c.wantsEnd(code)
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("%s: it took %v", space, took)
			}
		}
		synctest.Wait()
		c.wantsNothing() // the first one is as it was
		if s := w.Stats(); s.Panics != 1 || s.Conns != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestNamespacesAreApart: users, rooms and everyone of one know nothing of
// another's, and pushes go to "/" unless the audience names another.
func TestNamespacesAreApart(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var d diary
		w := newWorld(t, push.Config{
			OnConnect: func(ctx context.Context, c *push.Conn) { d.note("connect %q %s", c.Namespace(), c.UserID()) },
			OnDisconnect: func(c *push.Conn, why push.Reason) {
				d.note("disconnect %q %s %s", c.Namespace(), c.UserID(), why)
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		w.dialect = door
		root := w.connect("alice", "token=red")
		chat := root.io.joins("/chat", "alice", "token=red blue", "tag=x").isIn()
		news := root.io.joins("/news", "bob", "token=").isIn()
		synctest.Wait() // what its OnConnect notes comes before the next one's
		w.dialect = "push.json"
		plain := w.connect("alice", "token=red")
		all := []*page{root, chat, news, plain}
		n := 0
		push1 := func(a push.Audience, to ...*page) {
			t.Helper()
			n++
			event := fmt.Sprintf("e%d", n)
			m := push.Message{Event: event, Data: n}
			if n%2 == 0 {
				m.Ack = push.AutoAck
			}
			r, err := w.Push(t.Context(), a, m)
			if targets := max(len(to), map[bool]int{true: 1}[a.Conn != 0]); r.Targets != targets || (err != nil) != (len(to) == 0 && (a.User != "" || a.Conn != 0 || m.Ack != 0)) {
				t.Errorf("push to %+v: %+v, %v, want %d", a, r, err, len(to))
			}
			for _, p := range all {
				if slices.Contains(to, p) {
					p.wantPush(event)
				}
				p.wantNothing()
			}
		}
		for range 2 {
			push1(push.Audience{User: "alice"}, root, plain)
			push1(push.Audience{User: "alice", Namespace: "/"}, root, plain)
			push1(push.Audience{User: "alice", Namespace: "/chat"}, chat)
			push1(push.Audience{User: "bob"})
			push1(push.Audience{User: "bob", Namespace: "/news"}, news)
			push1(push.Audience{Users: []string{"alice", "bob"}, Namespace: "/news"}, news)
			push1(push.Audience{Room: "red"}, root, plain)
			push1(push.Audience{Room: "red", Namespace: "/chat"}, chat)
			push1(push.Audience{Room: "red", Namespace: "/chat", AnyTag: []string{"x"}}, chat)
			push1(push.Audience{Room: "red", Namespace: "/chat", NoTag: []string{"x"}})
			push1(push.Audience{Room: "blue"})
			push1(push.Audience{All: true}, root, plain)
			push1(push.Audience{All: true, Namespace: "/chat"}, chat)
			push1(push.Audience{All: true, Namespace: "/news", Except: []push.ConnID{news.conn().ID()}})
			push1(push.Audience{All: true, Namespace: "/none"})
			push1(push.Audience{Conn: chat.conn().ID()}, chat)
			push1(push.Audience{Conn: chat.conn().ID(), Namespace: "/chat"}, chat)
			push1(push.Audience{Conn: chat.conn().ID(), Namespace: "/news"})
			n++ // the other kind of ack
		}
		if _, err := w.Push(t.Context(), push.Audience{All: true, Namespace: "chat"}, push.Message{}); err == nil {
			t.Error("a namespace without a slash is taken")
		}
		if s := w.Stats(); s.Conns != 4 || s.Sockets != 2 || s.Users != 2 || s.Rooms != 3 || s.Memberships != 4+4+4 {
			t.Errorf("%+v", s)
		}
		devices, err := w.Devices(t.Context(), push.Audience{All: true, Namespace: "/chat"})
		if err != nil || len(devices) != 1 || devices[0].Conn != chat.conn().ID() || devices[0].UserID != "alice" {
			t.Errorf("%+v, %v", devices, err)
		}
		if rooms := chat.conn().Rooms(); len(rooms) != 2 || !slices.Contains(rooms, "red") || !slices.Contains(rooms, "blue") {
			t.Errorf("rooms %q", rooms)
		}

		// The end of one is not the end of the others; that of the transport is.
		chat.leavesSpace()
		synctest.Wait()
		root.wantNothing()
		news.wantNothing()
		if !w.Online("alice") || w.Stats().Conns != 3 {
			t.Errorf("%+v", w.Stats())
		}
		d.want(t, `connect "" alice`, `connect "/chat" alice`, `connect "/news" bob`, `connect "" alice`, `disconnect "/chat" alice client`)
		root.io.closes()
		<-root.done
		<-news.done
		synctest.Wait()
		if s := w.Stats(); s.Conns != 1 || w.Online("bob") || !w.Online("alice") {
			t.Errorf("%+v", s)
		}
		if got := d.all()[5:]; len(got) != 2 || !slices.Contains(got, `disconnect "" alice client`) || !slices.Contains(got, `disconnect "/news" bob client`) {
			t.Errorf("hooks ran as %q", got)
		}
	})
}

// TestUserIsOnlineInAnyNamespace, counted once and told once.
func TestUserIsOnlineInAnyNamespace(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var d diary
		w := newWorld(t, push.Config{
			OnPresence: func(p push.Presence) { d.note("%s %v", p.User, p.Online) },
			SocketIO:   push.SocketIO{Namespace: anySpace},
		})
		w.dialect = door
		online := func(want int, users ...string) {
			t.Helper()
			synctest.Wait()
			got := slices.Sorted(w.Users())
			if s := w.Stats(); s.Users != len(users) || !slices.Equal(got, users) || s.Conns != want {
				t.Errorf("users %q, stats %d, %d conns, want %q, %d", got, s.Users, s.Conns, users, want)
			}
			for _, user := range []string{"alice", "bob"} {
				if w.Online(user) != slices.Contains(users, user) {
					t.Errorf("%s online: %v", user, w.Online(user))
				}
			}
		}
		root := w.connect("")
		online(1)
		chat := root.io.joins("/chat", "alice").isIn()
		online(2, "alice")
		news := root.io.joins("/news", "alice").isIn()
		online(3, "alice")
		if err := root.conn().Bind(t.Context(), "alice"); err != nil {
			t.Error(err)
		}
		online(3, "alice")
		chat.leavesSpace()
		online(2, "alice")
		root.conn().Unbind()
		online(2, "alice")
		if err := news.conn().Bind(t.Context(), "bob"); err != nil {
			t.Error(err)
		}
		online(2, "bob")
		root.conn().Bind(t.Context(), "bob")
		news.conn().Unbind()
		online(2, "bob")
		root.io.closes()
		<-root.done
		online(0)
		d.want(t, "alice true", "alice false", "bob true", "bob false")
	})
}

// TestConnOfANamespaceIsLikeAnyOther: Bind, Unbind, Join, Leave, SetTags, Push.
func TestConnOfANamespaceIsLikeAnyOther(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: anySpace}})
		w.dialect = door
		root := w.connect("alice")
		chat := root.io.joins("/chat", "alice").isIn()
		c := chat.conn()
		if c == nil || c.Namespace() != "/chat" || c.Login().Namespace != "/chat" || c.ID() == root.conn().ID() {
			t.Fatalf("%+v", c)
		}
		reaches := func(a push.Audience, want bool) {
			t.Helper()
			a.Namespace = "/chat"
			r, _ := w.Push(t.Context(), a, push.Message{Event: "x"})
			if (r.Targets == 1) != want {
				t.Errorf("%+v reaches %d", a, r.Targets)
			}
			if want {
				chat.wantPush("x")
			}
			chat.wantNothing()
			root.wantNothing()
		}
		if err := c.Join("a", "b"); err != nil {
			t.Error(err)
		}
		if n, err := w.Join(t.Context(), push.Audience{User: "alice", Namespace: "/chat"}, "c"); n != 1 || err != nil {
			t.Error(n, err)
		}
		if n, err := w.Join(t.Context(), push.Audience{User: "alice"}, "root's"); n != 1 || err != nil {
			t.Error(n, err)
		}
		reaches(push.Audience{Room: "a"}, true)
		reaches(push.Audience{Room: "c"}, true)
		reaches(push.Audience{Room: "root's"}, false)
		c.Leave("a")
		reaches(push.Audience{Room: "a"}, false)
		if n, err := w.Leave(t.Context(), push.Audience{Room: "b", Namespace: "/chat"}, "b"); n != 1 || err != nil {
			t.Error(n, err)
		}
		reaches(push.Audience{Room: "b"}, false)
		if err := c.SetTags("t"); err != nil {
			t.Error(err)
		}
		reaches(push.Audience{All: true, AnyTag: []string{"t"}}, true)
		if err := c.Bind(t.Context(), "bob"); err != nil {
			t.Error(err)
		}
		reaches(push.Audience{User: "alice"}, false)
		reaches(push.Audience{User: "bob"}, true)
		reaches(push.Audience{Room: "c"}, false) // another user's rooms are left
		c.Join("d")
		c.Unbind()
		reaches(push.Audience{User: "bob"}, false)
		reaches(push.Audience{Room: "d"}, false)
		reaches(push.Audience{All: true}, true)
		if c.Namespace() != "/chat" || len(c.Rooms()) != 0 || !w.Online("alice") || w.Online("bob") {
			t.Errorf("after Unbind: %q, rooms %q", c.Namespace(), c.Rooms())
		}
		if d, err := c.Push(t.Context(), push.Message{Event: "own", Ack: push.AutoAck}); err != nil || d.Status != push.Acked || d.Conn != c.ID() {
			t.Errorf("%+v, %v", d, err)
		}
		chat.wantPush("own")
		if m := chat.conn(); m != c {
			t.Error("Conns does not have it")
		}
	})
}

// TestDeviceClassIsPerNamespace: a login to one replaces nobody in another.
func TestDeviceClassIsPerNamespace(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{
			DeviceClass: func(l *push.Login) string { return "only" },
			SocketIO:    push.SocketIO{Namespace: anySpace},
		})
		w.dialect = door
		one := w.connect("alice")
		chat := one.io.joins("/chat", "alice").isIn()
		one.wantNothing()
		two := w.connect("alice")
		one.wantClosed(4409)
		chat.wantClosed(4409) // the transport that was replaced ends as a whole
		two.wantNothing()
		if s := w.Stats(); s.Conns != 1 || s.Closed[push.ReasonReplaced] != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestKickDisconnectsEveryNamespace and leaves the client 5 s to close.
func TestKickDisconnectsEveryNamespace(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		for _, polite := range []bool{true, false} {
			var d diary
			w := newWorld(t, push.Config{
				OnDisconnect: func(c *push.Conn, why push.Reason) { d.note("%s %s", c.Namespace(), why) },
				SocketIO:     push.SocketIO{Namespace: anySpace},
			})
			w.dialect = door
			root := w.connect("alice")
			root.io.stays.Store(!polite)
			chat := root.io.joins("/chat", "bob").isIn()
			if _, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "last"}); err != nil {
				t.Error(err)
			}
			begin := time.Now()
			if n, err := w.Kick(t.Context(), push.Audience{User: "bob", Namespace: "/chat"}, "out"); n != 1 || err != nil {
				t.Error(n, err)
			}
			root.wantPush("last")
			root.wantClosed(4410)
			chat.wantClosed(4410)
			synctest.Wait()
			if got := d.all(); len(got) != 2 || !slices.Contains(got, " kicked") || !slices.Contains(got, "/chat kicked") || w.Online("alice") {
				t.Errorf("hooks ran as %q", got)
			}
			if r, err := w.PushToUser(t.Context(), "alice", push.Message{}); err == nil {
				t.Errorf("a push after the kick: %+v", r)
			}
			<-root.io.done
			took := time.Since(begin)
			if polite && took != 0 || !polite && (took < 5*time.Second || took > 6*time.Second) {
				t.Errorf("polite %v: closed after %v", polite, took)
			}
			if end := root.io.end(); polite && root.io.webSocket() == nil && !end.ours {
				t.Errorf("who says goodbye after it was disconnected hears %v, want ok", end)
			}
			synctest.Wait()
			time.Sleep(31 * time.Second)
			if s := w.Stats(); s.Sockets != 0 || s.Conns != 0 || s.Closed[push.ReasonKicked] != 1 {
				t.Errorf("%+v", s)
			}
		}
	})
}

// TestClosedAndExpiredAreDisconnected: the client does not come back by itself.
func TestClosedAndExpiredAreDisconnected(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				if in, err := time.ParseDuration(l.Token); err == nil {
					l.Expires = time.Now().Add(in)
				}
				return l.UserID, nil
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		w.dialect = door
		alice, bob := w.connect("alice"), w.connect("bob", "token=90s")
		alice.conn().Close("enough")
		alice.wantClosed(4410)
		begin := time.Now()
		time.Sleep(85 * time.Second)
		bob.wantNothing()
		bob.wantClosed(4401)
		if took := time.Since(begin); took < 90*time.Second || took > 92*time.Second {
			t.Errorf("closed after %v, want 90 s", took)
		}
		carol := w.connect("carol")
		chat := carol.io.joins("/chat", "carol", "token=10s").isIn() // the earliest counts
		carol.wantClosed(4401)
		chat.wantClosed(4401)
		synctest.Wait()
		if s := w.Stats(); s.Closed[push.ReasonExpired] != 2 || s.Closed[push.ReasonKicked] != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestLeavingKeepsTheTransport: pings go on, and the client may come back.
func TestLeavingKeepsTheTransport(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				return c.Namespace() + " " + m.Event, nil
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		w.dialect = door
		root := w.connect("alice")
		io := root.io
		chat := io.joins("/chat", "alice").isIn()
		before := chat.conn().ID()
		chat.leavesSpace()
		synctest.Wait()
		if r, err := w.Push(t.Context(), push.Audience{Conn: before}, push.Message{}); !errors.Is(err, push.ErrOffline) {
			t.Errorf("%+v, %v", r, err)
		}
		again := io.joins("/chat", "alice").isIn()
		if again.conn().ID() == before {
			t.Error("a Conn came back from its end")
		}
		again.asks(1, "hi", nil)
		again.wantAnswer(1, `"/chat hi"`, "")
		root.asks(1, "hi", nil)
		root.wantAnswer(1, `" hi"`, "")

		again.leavesSpace()
		root.leavesSpace()
		synctest.Wait()
		if s := w.Stats(); s.Conns != 0 || s.Sockets != 1 || s.Memberships != 0 || s.Pending != 0 {
			t.Errorf("%+v", s)
		}
		pings := io.pings.Load()
		time.Sleep(10 * time.Minute)
		io.wantsNothing()
		if n := io.pings.Load() - pings; n < 20 || n > 26 {
			t.Errorf("%d pings in 10 minutes", n)
		}
		if io.rev == 4 {
			io.joins("/", "alice").isIn().asks(2, "back", nil)
		} else {
			io.joins("/chat", "alice").isIn().asks(2, "back", nil)
		}
		if s := w.Stats(); s.Conns != 1 || s.Users != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestNinthNamespaceEndsTheConnection: row 107.
func TestNinthNamespaceEndsTheConnection(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: anySpace}})
		w.dialect = door
		fine := w.connect("fine")
		root := w.connect("alice")
		for i := range 7 {
			root.io.joins(fmt.Sprintf("/n%d", i), "alice").isIn()
		}
		if s := w.Stats(); s.Conns != 9 || s.Users != 2 {
			t.Errorf("%+v", s)
		}
		// One left makes room for one.
		six := root.io.joins("/none", "alice")
		<-six.done
		<-root.done
		if endedWith(root.end(), 4410) {
			t.Errorf("ended with %v", root.end())
		}
		synctest.Wait()
		fine.wantNothing()
		if s := w.Stats(); s.Conns != 1 || s.Limited["namespaces"] != 1 || s.Closed[push.ReasonProtocol] != 1 {
			t.Errorf("%+v", s)
		}
		root = w.connect("alice")
		for i := range 30 { // joined and left as often as one likes
			p := root.io.joins(fmt.Sprintf("/n%d", i), "alice").isIn()
			p.leavesSpace()
		}
		root.wantNothing()
	})
}

// TestSecondConnectToANamespaceEndsTheConnection; a client 2.x joins "/" by
// itself and may say so.
func TestSecondConnectToANamespaceEndsTheConnection(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: anySpace}})
		w.dialect = door
		p := w.connect("alice")
		chat := p.io.joins("/chat", "alice").isIn()
		p.io.sendsAll(p.io.connectPacket("/chat", nil))
		if p.io.rev == 3 {
			p.io.says("40")
			p.wantNothing()
			chat.wantNothing()
			return
		}
		if err := p.end(); endedWith(err, 4410) {
			t.Errorf("ended with %v", err)
		}
		synctest.Wait()
		if s := w.Stats(); s.Closed[push.ReasonProtocol] != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestEventBehindItsConnectIsHandled: what comes in the same POST waits for the
// gate, and in order.
func TestEventBehindItsConnectIsHandled(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var d diary
		w := newWorld(t, push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				time.Sleep(time.Second)
				return l.UserID, nil
			},
			OnConnect: func(ctx context.Context, c *push.Conn) {
				time.Sleep(time.Second)
				d.note("connect %s", c.Namespace())
				c.Push(ctx, push.Message{Event: "welcome"})
			},
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				d.note("%s %s", c.Namespace(), m.Event)
				return nil, nil
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		c := w.opens(door)
		var packets []ioMessage
		if c.rev == 4 {
			packets = append(packets, c.connectPacket("/", nil))
		}
		packets = append(packets, c.encode(2, "/", 1, "one")...)
		packets = append(packets, c.encode(2, "/", -1, "two", []byte("bytes"))...)
		packets = append(packets, c.connectPacket("/chat", nil))
		packets = append(packets, c.encode(2, "/chat", -1, "three")...)
		packets = append(packets, c.disconnectPacket("/chat"))
		c.sendsAll(packets...)
		c.wantsConnect("/")
		c.wants(`42["welcome",null]`, `431[]`)
		c.wantsConnect("/chat")
		c.wants(`42/chat,["welcome",null]`)
		c.wantsNothing()
		d.want(t, "connect ", " one", " two", "connect /chat", "/chat three")
	})
}

// TestWhatOnConnectPushesComesBehindTheConnectReply and before what others
// pushed meanwhile.
func TestWhatOnConnectPushesComesBehindTheConnectReply(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		gate := make(chan struct{})
		w := newWorld(t, push.Config{
			OnConnect: func(ctx context.Context, c *push.Conn) {
				<-gate
				for i := range 3 {
					c.Push(ctx, push.Message{Event: fmt.Sprint("first", i)})
				}
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		for _, space := range []string{"/", "/chat"} {
			c := w.opens(door, "user=alice")
			if c.rev == 4 || space != "/" {
				if c.rev == 3 {
					c.wantsConnect("/")
					close(gate)
					c.wants(`42["first0",null]`, `42["first1",null]`, `42["first2",null]`)
					gate = make(chan struct{})
				}
				c.sendsAll(c.connectPacket(space, nil))
			}
			c.wantsConnect(space)
			c.wantsNothing()
			for i := range 5 {
				if r, err := w.Push(t.Context(), push.Audience{User: "alice", Namespace: space}, push.Message{Event: "later", Data: i}); err != nil || r.Sent < 1 {
					t.Error(r, err)
				}
			}
			c.wantsNothing()
			close(gate)
			head := "42" + strings.TrimSuffix(spaceHead(space), "")
			c.wants(head+`["first0",null]`, head+`["first1",null]`, head+`["first2",null]`)
			for i := range 5 {
				c.wants(fmt.Sprintf(`%s["later",%d]`, head, i))
			}
			c.wantsNothing()
			c.closes()
			<-c.done
			gate = make(chan struct{})
		}
		close(gate)
	})
}

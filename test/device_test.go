package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

func TestAHandshakeIsAnsweredWithAKeyAHeartbeatAndAToken(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		d := w.dialsIn()
		begin := time.Now()
		p := d.handshake()
		if door.json {
			if p.flags != mpush.FlagJSON || len(p.body) > 0 {
				t.Errorf("got %v, want no body", p)
			}
			return
		}
		var ok mpush.HandshakeOK
		if err := ok.Decode(p.body); err != nil || p.flags != mpush.FlagCrypto {
			t.Fatalf("%v, flags %#x", err, p.flags)
		}
		if len(ok.ServerKey) != 16 || ok.Heartbeat != 180000 {
			t.Errorf("a key of %d bytes and a heartbeat of %d ms, want 16 and 180000", len(ok.ServerKey), ok.Heartbeat)
		}
		if n := len(ok.SessionID); n < 64 || n > 512 || strings.Trim(ok.SessionID, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			t.Errorf("a token of %d characters: %q", n, ok.SessionID)
		}
		if want := begin.Add(24 * time.Hour).UnixMilli(); ok.ExpireTime != want {
			t.Errorf("it expires at %d, want %d", ok.ExpireTime, want)
		}
		// Long claims neither break the token nor are refused.
		long := w.shakesHands("os=android "+strings.Repeat("x", 252), "osversion="+strings.Repeat("ü", 130), "version="+strings.Repeat("9.", 130), "device="+strings.Repeat("d", 60)) // eight RSA blocks
		if n := len(long.token); n > 512 {
			t.Errorf("a token of %d characters", n)
		}
		long.bind("alice")
		l := long.conn().Login()
		for _, claim := range []string{l.OS, l.OSVersion, l.ClientVersion} {
			if n := len(claim); n > 256 || n < 255 {
				t.Errorf("a claim is kept in %d bytes: %.20q…", n, claim)
			}
		}
	})
}

func TestTheHeartbeatIsNegotiated(t *testing.T) {
	const least, most = 10 * time.Second, 4 * time.Minute
	for _, c := range []struct {
		min, max time.Duration // of the server
		client   []int32       // its wishes
		want     []int32
	}{
		{0, 0, []int32{0, -1, 1, 180000, 240000, math.MaxInt32, math.MinInt32}, []int32{180000, 180000, 180000, 180000, 180000, 180000, 180000}},
		{least, most, []int32{0, -1, math.MinInt32, 9999, 10000, 10001, 60000, 239999, 240000, 240001, math.MaxInt32}, []int32{10000, 10000, 10000, 10000, 10000, 10001, 60000, 239999, 240000, 240000, 240000}},
		{time.Minute, 2 * time.Minute, []int32{0, 59999, 90000, 180000}, []int32{60000, 60000, 90000, 120000}},
		{0, time.Minute, []int32{0, 30000, 240000}, []int32{60000, 60000, 60000}},
		{0, most, []int32{0, 200000, 300000}, []int32{180000, 200000, 240000}},
		{most, 0, []int32{0, 300000}, []int32{240000, 240000}},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := worldWithDevices(t, push.Config{MPush: push.MPush{MinHeartbeat: c.min, MaxHeartbeat: c.max}})
			for i, wish := range c.client {
				d := w.dialsIn()
				d.is.MaxHeartbeat = wish
				d.handshake()
				if got := int32(d.heartbeat.Milliseconds()); got != c.want[i] {
					t.Errorf("%v to %v, and a client that wishes %d: %d, want %d", c.min, c.max, wish, got, c.want[i])
				}
				again := w.resumes(d)
				again.is.MaxHeartbeat = wish
				again.fastConnect(d.token)
				again.wantResumed()
				if got := int32(again.heartbeat.Milliseconds()); got != c.want[i] {
					t.Errorf("%v to %v, and a fast connect that wishes %d: %d, want %d", c.min, c.max, wish, got, c.want[i])
				}
			}
		})
	}
	for _, c := range [][2]time.Duration{{9 * time.Second, 0}, {0, 5 * time.Minute}, {2 * time.Minute, time.Minute}, {-1, 0}, {0, -1}} {
		if _, err := push.New(push.Config{MPush: push.MPush{MinHeartbeat: c[0], MaxHeartbeat: c[1]}}); err == nil {
			t.Errorf("heartbeats of %v to %v are taken", c[0], c[1])
		}
	}
}

// TestADeviceIsNowhereBeforeItsBind: what is written to it before its key has
// changed breaks the client in the field (compatibility.md A1).
func TestADeviceIsNowhereBeforeItsBind(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var notes diary
		w := door.world(t, push.Config{
			OnConnect: func(_ context.Context, c *push.Conn) {
				if c.Protocol() != "push.json" { // sniffed: a page at first
					notes.note("connect %s", c.UserID())
				}
			},
		})
		nobody := func() {
			t.Helper()
			synctest.Wait()
			if n := len(w.conns()); n != 0 || w.Stats().Conns != 0 {
				t.Errorf("%d connections and Stats count %d, want none", n, w.Stats().Conns)
			}
			if r, err := w.Broadcast(t.Context(), push.Message{Data: "for all"}); err != nil || r.Targets != 0 {
				t.Errorf("a broadcast had %+v, %v", r, err)
			}
			if r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: "for alice"}); !errors.Is(err, push.ErrOffline) || r.Targets != 0 {
				t.Errorf("a push had %+v, %v", r, err)
			}
			if devices, _ := w.Devices(t.Context(), push.Audience{All: true}); len(devices) != 0 {
				t.Errorf("devices: %+v", devices)
			}
			if w.Online("alice") {
				t.Error("alice is online")
			}
		}
		d := w.dialsIn()
		if !door.sniff {
			nobody()
		}
		d.handshake()
		nobody()
		d.wantOpen(time.Minute)
		nobody()
		if s := w.Stats(); s.Pending != 0 {
			t.Errorf("%d are pending after the handshake", s.Pending)
		}
		d.bind("alice")
		synctest.Wait()
		if c := w.conns(); len(c) != 1 || c[0] != d.conn() || !w.Online("alice") {
			t.Fatalf("after BIND: %v", c)
		}
		if r, err := w.Broadcast(t.Context(), push.Message{Data: "for all"}); err != nil || r.Targets != 1 {
			t.Errorf("a broadcast had %+v, %v", r, err)
		}
		d.wantPush(`"for all"`)
		notes.want(t, "connect alice")
	})
}

func TestAConnTellsWhatItsDeviceSaid(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var asked []push.Login
		w := door.world(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			if l.Protocol != "push.json" {
				asked = append(asked, *l)
				l.Data = "data"
				l.Rooms = []string{"room"}
			}
			return l.UserID, nil
		}})
		d := w.dialsIn("device=phone 1", "os=Android,13", "osversion=14,1", "version=2.0,3")
		if !door.json {
			d.is.Timestamp = time.Now().UnixMilli()
		}
		d.handshake()
		d.bind("alice", "data=the token", "tags= a, b,,a ,c d,")
		want := push.Login{
			Protocol: "mpush", UserID: "alice", DeviceID: "phone 1", OS: "Android,13", OSVersion: "14,1", ClientVersion: "2.0,3", Tags: []string{"a", "b", "c d"},
		}
		if door.json {
			want.Protocol = "mpush.json"
		}
		same := func(what string, got, want push.Login) {
			t.Helper()
			if !got.Remote.IsValid() || got.Remote.Addr().String() != clientIP {
				t.Errorf("%s comes from %v", what, got.Remote)
			}
			got.Remote = want.Remote
			if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
				t.Errorf("%s is\n%s, want\n%s", what, g, w)
			}
		}
		conn := d.conn()
		question := want
		question.Token = "the token"
		same("the question", asked[0], question)
		answer := want
		answer.Data = "data"
		same("the Conn's login", conn.Login(), answer)
		if conn.Protocol() != want.Protocol || conn.UserID() != "alice" || conn.Data() != "data" || !slices.Equal(conn.Rooms(), []string{"room"}) || conn.Namespace() != "" {
			t.Errorf("%s of %q, %v in %q", conn.Protocol(), conn.UserID(), conn.Data(), conn.Rooms())
		}
		devices, err := w.Devices(t.Context(), push.Audience{User: "alice", OS: []string{"ANDROID,13"}, AnyTag: []string{"c d"}})
		if err != nil || len(devices) != 1 {
			t.Fatal(devices, err)
		}
		if got, want := fmt.Sprintf("%+v", devices[0]), fmt.Sprintf("%+v", push.Device{UserID: "alice", DeviceID: "phone 1", Protocol: want.Protocol, Conn: conn.ID(), OS: "Android,13", Version: "2.0,3", Tags: want.Tags}); got != want {
			t.Errorf("Devices tell\n%s, want\n%s", got, want)
		}
		r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: 1})
		if err != nil || r.Deliveries[0].Protocol != want.Protocol || r.Deliveries[0].DeviceID != "phone 1" || r.Deliveries[0].Conn != conn.ID() {
			t.Errorf("the delivery tells %+v, %v", r, err)
		}
		d.wantPush("1")

		// A later BIND knows its connection, and brings its tags anew.
		d.bind("alice", "data=later")
		question.Token, question.Tags, question.Conn = "later", nil, conn
		same("the later question", asked[1], question)
		if asked[1].Conn != conn || asked[0].Conn != nil || asked[0].Request != nil || asked[1].Request != nil {
			t.Errorf("asked with %+v", asked)
		}
		if got := conn.Login().Tags; len(got) != 0 {
			t.Errorf("tags are %q after a login without any", got)
		}
	})
}

func TestTagsInJSONMayBeAnArray(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorJSON.world(t, push.Config{})
		d := w.dialsIn()
		d.raw([]byte(`{"cmd":2,"sessionId":1,"body":{"deviceId":"page"}}`)) // no flags, no osName
		if p := d.next(); p.cmd != mpush.CmdHandshake || p.id != 1 {
			t.Fatal(p)
		}
		d.raw([]byte(`{"sessionId":7,"body":{"userId":"alice","tags":["a","b"]},"cmd":5,"unknown":{}}`))
		d.ids.Store(7)
		d.wantOK(mpush.CmdBind, "bind success")
		var conn *push.Conn
		for conn = range w.Conns() {
		}
		if l := conn.Login(); !slices.Equal(l.Tags, []string{"a", "b"}) || l.OS != "" {
			t.Errorf("got %+v", l)
		}
	})
}

func TestUnbindEndsItsOwnBindingAndOnlyThat(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		other := w.binds("bob")
		d := w.shakesHands()
		d.unbind("alice") // nothing is bound
		d.bind("alice", "data=room1 room2")
		id := d.conn().ID()
		for _, named := range []string{"alice", "bob"} {
			d.unbind(named)
			if w.Online("alice") || !w.Online("bob") || len(slices.Collect(func(yield func(string) bool) {
				for room := range w.Rooms() {
					yield(room)
				}
			})) != 0 {
				t.Errorf("after UNBIND of %s: alice is online: %v, bob: %v", named, w.Online("alice"), w.Online("bob"))
			}
			if r, _ := w.Broadcast(t.Context(), push.Message{Data: "all"}); r.Targets != 1 {
				t.Errorf("a broadcast had %+v, want bob alone", r)
			}
			other.wantPush(`"all"`)
			d.wantNothing()
			d.unbind("alice") // once more
			if dl, err := d.conn().Push(t.Context(), push.Message{Data: "you"}); err != nil || dl.Status != push.Sent {
				t.Errorf("Conn.Push to an unbound device: %+v, %v", dl, err)
			}
			d.wantPush(`"you"`)
			d.bind("alice", "data=room1 room2")
		}
		if d.conn().ID() != id {
			t.Error("UNBIND and BIND made another Conn")
		}
		if r, _ := w.PushToRoom(t.Context(), "room2", push.Message{Data: "room"}); r.Targets != 1 {
			t.Errorf("a room had %+v", r)
		}
		d.wantPush(`"room"`)

		d.asksToUnbind("")
		d.wantError(mpush.CmdUnbind, 0, "invalid param")
		d.wantClosed(time.Second)
		other.wantNothing()
	})
}

func TestBindAgain(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var notes diary
		w := door.world(t, push.Config{
			OnConnect: func(_ context.Context, c *push.Conn) {
				if c.Protocol() != "push.json" {
					notes.note("connect %s", c.UserID())
				}
			},
			OnDisconnect: func(c *push.Conn, why push.Reason) {
				if c.Protocol() != "push.json" {
					notes.note("disconnect %s %s", c.UserID(), why)
				}
			},
		})
		d := w.binds("alice")
		c := d.conn()
		d.bind("alice", "data=room1")
		if got := c.Rooms(); !slices.Equal(got, []string{"room1"}) {
			t.Errorf("rooms are %q", got)
		}
		d.bind("alice") // rooms stay if the user does
		if got := c.Rooms(); !slices.Equal(got, []string{"room1"}) {
			t.Errorf("rooms are %q", got)
		}
		d.asksToBind("bob", "data=room2", "tags=x")
		d.wantOK(mpush.CmdBind, "unbind success")
		d.wantOK(mpush.CmdBind, "bind success") // the same id: wantOK looks
		if w.Online("alice") || !w.Online("bob") || d.conn() != c || c.UserID() != "bob" || !slices.Equal(c.Rooms(), []string{"room2"}) {
			t.Errorf("the connection is %q's, in %q", c.UserID(), c.Rooms())
		}
		w.PushToUser(t.Context(), "bob", push.Message{Data: 1})
		d.wantPush("1")
		d.unbind("bob")
		d.bind("alice") // one OK: nobody was there before
		d.wantNothing()
		notes.want(t, "connect alice")
		d.vanishes()
		synctest.Wait()
		notes.want(t, "connect alice", "disconnect alice lost")
	})
}

func TestARepeatedHandshakeChangesNothingAndTheThirdCloses(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		for _, bound := range []bool{false, true} {
			w := door.world(t, push.Config{})
			d := w.shakesHands()
			if bound {
				d.bind("alice")
			}
			hello := func(device string) {
				is := d.is
				is.DeviceID, is.ClientKey = device, slices.Repeat([]byte{1}, 16)
				d.raw(d.packet(mpush.CmdHandshake, 0, &is))
			}
			hello(d.is.DeviceID)
			d.wantError(mpush.CmdHandshake, mpush.CodeRepeat, "repeat handshake")
			hello("another")
			d.wantError(mpush.CmdHandshake, mpush.CodeRepeat, "repeat handshake")
			if bound {
				w.PushToUser(t.Context(), "alice", push.Message{Data: 1})
				d.wantPush("1") // under the old key
			}
			d.bind("alice")
			if c := d.conn(); c == nil || c.UserID() != "alice" {
				t.Fatalf("the device is %v", c)
			}
			hello(d.is.DeviceID)
			d.wantError(mpush.CmdHandshake, mpush.CodeRepeat, "repeat handshake")
			d.wantClosed(time.Second)
			d.wantCode(1002)
			synctest.Wait()
			if closed := w.Stats().Closed[push.ReasonProtocol]; closed != 1 {
				t.Errorf("%d closed for protocol, want 1", closed)
			}
		}
	})
}

// TestOnConnectRunsBehindTheOK, and what it pushes comes before what others
// push meanwhile.
func TestOnConnectRunsBehindTheOKAndPushesFirst(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var w *deviceWorld
		runs := 0
		w = door.world(t, push.Config{OnConnect: func(ctx context.Context, c *push.Conn) {
			if c.Protocol() == "push.json" {
				return
			}
			runs++
			go w.PushToUser(context.Background(), c.UserID(), push.Message{Data: "live"})
			time.Sleep(time.Second)
			if d, err := c.Push(ctx, push.Message{Data: "first", Ack: push.BizAck}); err != nil || d.Status != push.Acked {
				t.Errorf("%+v, %v", d, err)
			}
			w.PushToUser(ctx, c.UserID(), push.Message{Data: "second"})
		}})
		d := w.shakesHands()
		begin := time.Now()
		d.bind("alice")
		if took := time.Since(begin); took != 0 {
			t.Errorf("the OK took %v: it waits for OnConnect", took)
		}
		d.wantPush(`"first"`, `"second"`, `"live"`)
		d.bind("alice")
		d.unbind("alice")
		d.bind("alice")
		if runs != 1 {
			t.Errorf("OnConnect ran %d times", runs)
		}
	})
}

func TestOnDisconnectRunsOnceForEachDevice(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var mu sync.Mutex
		ends := map[push.ConnID][]push.Reason{}
		w := door.world(t, push.Config{
			OnConnect: func(_ context.Context, c *push.Conn) {},
			OnDisconnect: func(c *push.Conn, why push.Reason) {
				mu.Lock()
				defer mu.Unlock()
				if c.Protocol() != "push.json" {
					ends[c.ID()] = append(ends[c.ID()], why)
				}
			},
		})
		var want []push.Reason
		lost, unbound, kicked, closed, broken, second, shut := w.binds("a"), w.binds("b"), w.binds("c"), w.binds("d"), w.binds("e"), w.binds("f"), w.binds("g")
		synctest.Wait() // the OK comes before OnConnect: who ends between has neither hook
		var ids []push.ConnID
		for _, d := range []*device{lost, unbound, kicked, closed, broken, second, shut} {
			ids = append(ids, d.conn().ID())
		}
		lost.vanishes()
		want = append(want, push.ReasonLost)
		unbound.unbind("b")
		unbound.vanishes()
		want = append(want, push.ReasonLost)
		w.Kick(t.Context(), push.Audience{User: "c"}, "")
		want = append(want, push.ReasonKicked)
		closed.conn().Close("")
		want = append(want, push.ReasonKicked)
		broken.asks(mpush.CmdLogin, 0, nil)
		want = append(want, push.ReasonProtocol)
		newer := w.binds("f")
		want = append(want, push.ReasonReplaced)
		time.Sleep(10 * time.Second)
		second.vanishes() // its own end comes later, and is nobody's
		w.shakesHands().vanishes()
		w.Shutdown(t.Context())
		want = append(want, push.ReasonShutdown)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		for i, id := range ids {
			if got := ends[id]; !slices.Equal(got, want[i:i+1]) {
				t.Errorf("device %d ended with %q, want %q", i, got, want[i])
			}
		}
		if len(ends) != len(ids)+1 {
			t.Errorf("%d ends, want %d: %v", len(ends), len(ids)+1, ends)
		}
		<-newer.done
	})
}

// Sessions that are resumed.

func TestASessionIsResumedOverAnotherConnection(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{OnMessage: nobodyMinds})
		first := w.binds("alice", "os=ios", "osversion=17", "version=3.1")
		first.vanishes()
		synctest.Wait()
		d := w.resumes(first)
		d.fastConnect(first.token)
		d.wantResumed()

		// It restores no user: nothing is sent to it before its BIND.
		if w.Online("alice") || len(w.conns()) != 0 {
			t.Error("alice is online before BIND")
		}
		w.Broadcast(t.Context(), push.Message{Data: "all"})
		d.wantOpen(time.Minute)
		d.bind("alice")
		if l := d.conn().Login(); l.OS != "ios" || l.OSVersion != "17" || l.ClientVersion != "3.1" || l.DeviceID != first.is.DeviceID {
			t.Errorf("the token kept %+v", l)
		}
		w.PushToUser(t.Context(), "alice", push.Message{Data: "back"})
		d.wantPush(`"back"`)
		d.push("hello", mpush.FlagAutoAck)
		d.wantAck()
	})
}

func TestSeveralConnectionsMayHaveOneToken(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{DeviceClass: func(*push.Login) string { return "" }, OnMessage: nobodyMinds})
		all := []*device{w.binds("alice")}
		for range 4 {
			d := w.resumes(all[0])
			d.fastConnect(all[0].token)
			d.wantResumed()
			d.bind("alice")
			all = append(all, d)
		}
		r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: "x", Ack: push.AutoAck})
		if err != nil {
			t.Error(err)
		}
		wantStatus(t, r, push.Acked, push.Acked, push.Acked, push.Acked, push.Acked)
		for _, d := range all {
			d.wantPush(`"x"`)
			d.push("y", mpush.FlagAutoAck)
			d.wantAck()
		}
	})
}

func nobodyMinds(context.Context, *push.Conn, *push.Received) (any, error) { return nil, nil }

// aSessionKey is 32 bytes that look random.
func aSessionKey(seed byte) []byte {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i)*7 + seed
	}
	return key
}

func TestAnotherEngineWithTheSameSessionKeyResumes(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		with := func(key []byte) *deviceWorld { return door.world(t, push.Config{MPush: push.MPush{SessionKey: key}}) }
		a, b, other, own := with(aSessionKey(1)), with(aSessionKey(1)), with(aSessionKey(2)), with(nil)
		first := a.binds("alice")
		d := b.resumes(first)
		d.fastConnect(first.token)
		d.wantResumed()
		d.bind("alice")
		b.PushToUser(t.Context(), "alice", push.Message{Data: "here"})
		d.wantPush(`"here"`)
		for _, w := range []*deviceWorld{other, own} {
			d := w.resumes(first)
			d.fastConnect(first.token)
			d.wantError(mpush.CmdFastConnect, mpush.CodeExpired, "session expired")
			d.wantOpen(9 * time.Second)
		}
	})
}

func TestATokenExpires(t *testing.T) {
	for _, ttl := range []time.Duration{0, time.Minute, 72 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			w := worldWithDevices(t, push.Config{MPush: push.MPush{SessionTTL: ttl, SessionKey: aSessionKey(1)}})
			if ttl == 0 {
				ttl = 24 * time.Hour
			}
			first := w.shakesHands()
			begin := time.Now()
			time.Sleep(ttl - time.Millisecond)
			d := w.resumes(first)
			d.fastConnect(first.token)
			d.wantResumed()
			time.Sleep(time.Until(begin.Add(ttl))) // and it was not renewed
			d = w.resumes(first)
			d.fastConnect(first.token)
			d.wantError(mpush.CmdFastConnect, mpush.CodeExpired, "session expired")
		})
	}
}

// TestABadTokenIsAnsweredAtOnceAndTheThirdCloses; until then a handshake works
// on the same connection.
func TestABadTokenIsAnsweredAtOnceAndTheThirdCloses(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		owner := w.shakesHands()
		token := owner.token
		flipped := []byte(token)
		flipped[len(flipped)/2] ^= 1
		bad := []string{
			"", "x", "\x00", "../../etc/passwd", "*", string(flipped), token + "A", token[:len(token)-1], token + "\n", " " + token, token + "=",
			strings.Repeat("A", 512), strings.Repeat("A", 513), strings.Repeat("A", 5000), "0123456789abcdef0123456789abcdef", strings.ToUpper(token),
		}
		for i, token := range bad {
			begin := time.Now()
			d := w.resumes(owner)
			d.fastConnect(token)
			p := d.wantError(mpush.CmdFastConnect, mpush.CodeExpired, "session expired")
			d.fastConnect(bad[(i+1)%len(bad)])
			d.wantError(mpush.CmdFastConnect, mpush.CodeExpired, "session expired")
			if p.at != begin {
				t.Errorf("token %.20q is answered after %v", token, p.at.Sub(begin))
			}
			d.handshake()
			d.bind("alice")
			d.vanishes()
		}
		thief := w.dialsIn("device=thief")
		thief.fastConnect(token)
		thief.wantError(mpush.CmdFastConnect, mpush.CodeDevice, "invalid device")
		thief.fastConnect("garbage")
		thief.wantError(mpush.CmdFastConnect, mpush.CodeExpired, "session expired")
		thief.fastConnect(token)
		thief.wantError(mpush.CmdFastConnect, mpush.CodeDevice, "invalid device")
		thief.wantClosed(time.Second)

		// On a session that is open it is refused as well, and changes nothing.
		d := w.binds("bob")
		d.fastConnect(d.token)
		d.wantError(mpush.CmdFastConnect, mpush.CodeExpired, "session expired")
		w.PushToUser(t.Context(), "bob", push.Message{Data: 1})
		d.wantPush("1")

		// The real one still works: there is nothing to burn.
		d = w.resumes(owner)
		d.fastConnect(token)
		d.wantResumed()
	})
}

func TestNoResumeGivesNoToken(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		given := door.world(t, push.Config{MPush: push.MPush{SessionKey: aSessionKey(1)}}).shakesHands()
		w := door.world(t, push.Config{MPush: push.MPush{NoResume: true, SessionKey: aSessionKey(1)}})
		d := w.shakesHands()
		if d.token != "" || d.expires.UnixMilli() != 0 {
			t.Errorf("a token of %d characters until %v, want none until 0", len(d.token), d.expires)
		}
		d.bind("alice")
		d = w.resumes(given)
		d.fastConnect(given.token)
		d.wantError(mpush.CmdFastConnect, mpush.CodeExpired, "session expired")
		d.handshake()
		d.bind("alice")
	})
}

// TestAnEncryptedSessionRefusesPlainBodies, of its connection and of every
// later one that has its token.
func TestAnEncryptedSessionRefusesPlainBodies(t *testing.T) {
	for _, door := range doors {
		if !door.keyed {
			continue
		}
		t.Run(door.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := door.world(t, push.Config{OnMessage: nobodyMinds})
				owner := w.shakesHands()
				for _, resumed := range []bool{false, true} {
					for _, bound := range []bool{false, true} {
						for _, ask := range []struct {
							cmd  mpush.Cmd
							body any
						}{
							{mpush.CmdBind, &mpush.Bind{UserID: "alice"}}, {mpush.CmdUnbind, &mpush.Bind{UserID: "alice"}},
							{mpush.CmdPush, []byte("plain")}, {mpush.CmdHTTPProxy, &mpush.ProxyRequest{URI: "http://shop.example/"}},
						} {
							d := w.resumes(owner)
							if resumed {
								d.fastConnect(owner.token)
								d.wantResumed()
							} else {
								d.handshake()
							}
							if bound {
								d.bind("alice")
							}
							d.plain = true
							d.asks(ask.cmd, 0, ask.body)
							d.wantError(ask.cmd, mpush.CodeHandler, "handle message error")
							d.wantClosed(time.Second)
							if !bound && w.Online("alice") {
								t.Errorf("cmd %d: alice is online", ask.cmd)
							}
						}
					}
				}
				// What has no body is never encrypted.
				d := w.binds("alice")
				d.plain = true
				d.push("", mpush.FlagAutoAck)
				d.wantAck()
				d.ack(1 << 30)
				d.beat()
				d.wantNothing()
			})
		})
	}
}

// TestAPlainTokenIsGoodWherePlainIs: it comes from where the transport protects
// it, and a bare connection to the same server does not.
func TestAPlainTokenIsGoodWherePlainIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tls := doors[2]
		w := tls.world(t, push.Config{})
		first := w.binds("alice")
		d := w.resumes(first)
		d.fastConnect(first.token)
		d.wantResumed()
		d.bind("alice")
		w.door = door{name: "bare"}
		d = w.resumes(first)
		d.fastConnect(first.token)
		d.wantError(mpush.CmdFastConnect, mpush.CodeExpired, "session expired")
		// Nor may it shake hands in plain there.
		d.raw(d.hello())
		d.wantError(mpush.CmdHandshake, mpush.CodeHandler, "handle message error")
		d.wantClosed(time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		w := doorTCP.world(t, push.Config{MPush: push.MPush{AllowPlain: true}})
		w.binds("alice")
		w.door = door{name: "bare"}
		first := w.binds("bob")
		d := w.resumes(first)
		d.fastConnect(first.token)
		d.wantResumed()
		d.bind("bob")
	})
}

// TestADeviceHearsWhatItSpeaks: who shook hands in plain and encrypts its BIND,
// as the Java client does, is pushed to encrypted.
func TestADeviceHearsWhatItSpeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorPlain.world(t, push.Config{})
		d := w.shakesHands()
		d.door.keyed = true
		d.bind("alice")
		w.PushToUser(t.Context(), "alice", push.Message{Data: 1, Ack: push.AutoAck})
		d.wantPush("1")
		w.Kick(t.Context(), push.Audience{User: "alice"}, "")
		d.wantKick(d.is.DeviceID, "alice")
	})
}

// Pushes.

func TestAPushHasAnIDOnlyWithAnAck(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		d := w.binds("alice")
		seen := map[int32]bool{}
		for range 3 {
			for ack, want := range map[push.Ack]mpush.Flags{push.NoAck: 0, push.AutoAck: mpush.FlagAutoAck, push.BizAck: mpush.FlagBizAck} {
				r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: "x", Ack: ack})
				if err != nil {
					t.Fatal(err)
				}
				p := d.wantPush(`"x"`)
				if got := p.flags &^ (mpush.FlagCrypto | mpush.FlagJSON); got != want {
					t.Errorf("ack %d has flags %#x, want %#x", ack, got, want)
				}
				if ack == push.NoAck {
					wantStatus(t, r, push.Sent)
					if p.id != 0 {
						t.Errorf("a push without an ack has id %d", p.id)
					}
					continue
				}
				wantStatus(t, r, push.Acked)
				if r.Deliveries[0].Reply != nil {
					t.Errorf("a device's ack has reply %q", r.Deliveries[0].Reply)
				}
				if p.id < 1<<30 || seen[p.id] {
					t.Errorf("id %#x, want a fresh one of [2^30, 2^31)", p.id)
				}
				seen[p.id] = true
			}
		}
	})
}

func TestReceiptsOfDevices(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{DeviceClass: func(*push.Login) string { return "" }})
		quick, silent, leaver := w.binds("alice"), w.binds("alice"), w.binds("alice")
		silent.onAck(mute)
		leaver.onAck(func(d *device, _ packet) { time.AfterFunc(time.Second, func() { d.gate.Close() }) })
		for _, ack := range []push.Ack{push.AutoAck, push.BizAck} {
			begin := time.Now()
			r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: 1, Ack: ack})
			if err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took != 5*time.Second {
				t.Errorf("it took %v", took)
			}
			want := map[string]push.Status{quick.is.DeviceID: push.Acked, silent.is.DeviceID: push.Timeout}
			latency := map[push.Status]time.Duration{push.Timeout: 5 * time.Second, push.Gone: time.Second}
			if ack == push.AutoAck {
				want[leaver.is.DeviceID] = push.Gone
			}
			for _, d := range r.Deliveries {
				if d.Status != want[d.DeviceID] || d.Latency != latency[d.Status] || d.UserID != "alice" {
					t.Errorf("%+v, want %v after %v", d, want[d.DeviceID], latency[want[d.DeviceID]])
				}
			}
			if len(r.Deliveries) != len(want) {
				t.Errorf("%+v, want %v", r, want)
			}
		}
		quick.vanishes()
		silent.vanishes()
		synctest.Wait()
		r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: 1, Ack: push.AutoAck})
		if !errors.Is(err, push.ErrOffline) || !slices.Equal(r.Offline, []string{"alice"}) {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestContentIsTheDatasBytes(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		d := w.binds("alice")
		type order struct {
			Number int `json:"n"`
		}
		for _, c := range []struct {
			data any
			want string
		}{
			{nil, "null"}, {"text \"ü\" </script>", ""}, {4711, "4711"}, {order{5}, `{"n":5}`}, {push.Args{1, "b"}, `[1,"b"]`}, {json.RawMessage(`{ "a" : 1 }`), ""},
			{[]byte("bytes"), "bytes"}, {[]byte("{\"ü\u2028\x00\x1f\n\"}"), "{\"ü\u2028\x00\x1f\n\"}"}, {[]byte(strings.Repeat("long", 20000)), strings.Repeat("long", 20000)},
		} {
			want := c.want
			if want == "" {
				b, err := json.Marshal(c.data)
				if err != nil {
					t.Fatal(err)
				}
				want = string(b)
			}
			for _, ack := range []push.Ack{push.NoAck, push.AutoAck} {
				if _, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "order", Data: c.data, Ack: ack}); err != nil {
					t.Errorf("%v: %v", c.data, err)
				}
				if p := d.next(); p.cmd != mpush.CmdPush || p.content() != want {
					t.Errorf("%v arrives as %.80q, want %.80q", c.data, p.content(), want)
				}
			}
		}

		// What is no text cannot be put into JSON.
		opaque := []byte("\xff\x00\xfe")
		for _, ack := range []push.Ack{push.NoAck, push.AutoAck} {
			r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: opaque, Ack: ack})
			all, _ := w.Broadcast(t.Context(), push.Message{Data: opaque})
			if door.json {
				wantStatus(t, r, push.Unsupported)
				if !errors.Is(err, push.ErrUnsupported) || all.Failed != 1 || all.Sent != 0 {
					t.Errorf("%v; a broadcast %+v", err, all)
				}
				d.wantNothing()
				continue
			}
			if err != nil || all.Sent != 1 {
				t.Errorf("%v; a broadcast %+v", err, all)
			}
			d.wantPush(string(opaque), string(opaque))
		}
		if n := w.Stats().Deliveries["unsupported"]; door.json && n != 4 || !door.json && n != 0 {
			t.Errorf("Stats count %d unsupported", n)
		}
	})
}

func TestContentMayBeWrapped(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var asked []push.Message
		w := door.world(t, push.Config{
			Limits: push.Limits{MaxPush: 1000},
			MPush: push.MPush{Content: func(m push.Message) ([]byte, error) {
				asked = append(asked, m)
				switch m.Event {
				case "error":
					return []byte("not this"), errors.New("no")
				case "nothing":
					return nil, nil
				case "large":
					return make([]byte, 1001), nil
				case "full":
					return []byte(strings.Repeat("x", 1000)), nil
				case "panic":
					panic("no")
				}
				data, ok := m.Data.([]byte)
				if !ok {
					data = m.Data.(json.RawMessage)
				}
				if len(data) > 0 {
					defer func() { data[0] = '!' }() // both are its own
				}
				return fmt.Appendf(nil, "%s/%d/%T/%s", m.Event, m.Ack, m.Data, data), nil
			}},
		})
		d := w.binds("alice")
		bystander := w.connect("bob")
		data := []byte("bytes")
		for _, c := range []struct {
			m    push.Message
			want string
		}{
			{push.Message{Data: 1}, "message/0/json.RawMessage/1"},
			{push.Message{Event: "order", Data: data, Ack: push.AutoAck}, "order/1/[]uint8/bytes"},
			{push.Message{Event: "order", Ack: push.BizAck}, "order/2/json.RawMessage/null"},
			{push.Message{Event: "full"}, strings.Repeat("x", 1000)},
		} {
			if _, err := w.PushToUser(t.Context(), "alice", c.m); err != nil {
				t.Error(err)
			}
			d.wantPush(c.want)
		}
		if string(data) != "bytes" {
			t.Errorf("the caller's bytes are %q now", data)
		}
		for event, want := range map[string]push.Status{"error": push.Unsupported, "nothing": push.Unsupported, "panic": push.Unsupported, "large": push.TooLarge} {
			for _, ack := range []push.Ack{push.NoAck, push.AutoAck} {
				r, err := w.PushToUsers(t.Context(), []string{"alice", "bob"}, push.Message{Event: event, Ack: ack})
				if err != nil {
					t.Errorf("%s: %v, though bob has it", event, err)
				}
				bystander.wantPush(event)
				for _, dl := range r.Deliveries {
					if (dl.UserID == "alice") != (dl.Status == want) {
						t.Errorf("%s: %+v, want %v for alice alone", event, dl, want)
					}
				}
			}
			r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: event})
			if sentinel := map[push.Status]error{push.Unsupported: push.ErrUnsupported, push.TooLarge: push.ErrTooLarge}[want]; !errors.Is(err, sentinel) {
				t.Errorf("%s: %v, want %v", event, err, sentinel)
			}
			wantStatus(t, r, want)
		}
		d.wantNothing()
		if n := w.Stats().Panics; n != 3 {
			t.Errorf("Stats count %d panics, want 3", n)
		}
		before := len(asked)
		w.Broadcast(t.Context(), push.Message{Data: "x"})
		d.wantPush("message/0/json.RawMessage/\"x\"")
		if n := len(asked) - before; n != 1 {
			t.Errorf("Content was asked %d times for one broadcast", n)
		}
	})
}

func TestLongContentIsCompressed(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		for _, c := range []struct{ over, limit int }{{0, 10240}, {100, 100}, {1, 1}, {-1, math.MaxInt}} {
			w := door.world(t, push.Config{MPush: push.MPush{CompressOver: c.over}})
			d := w.binds("alice")
			for _, n := range []int{1, 2, 100, 101, 10240, 10241, 100000} {
				want := strings.Repeat("x", n)
				w.PushToUser(t.Context(), "alice", push.Message{Data: []byte(want), Ack: push.AutoAck})
				p := d.wantPush(want)
				if got := p.flags&mpush.FlagCompress != 0; got != (n > c.limit) {
					t.Errorf("%d bytes over %d: compressed %v", n, c.over, got)
				}
				if n == 100000 && n > c.limit && p.size > 2000 {
					t.Errorf("%d times the same byte takes %d bytes", n, p.size)
				}
			}
		}
	})
}

// TestOnlyItsOwnAckCompletesAPush: late, second, foreign and made up ones
// change nothing.
func TestOnlyItsOwnAckCompletesAPush(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{DeviceClass: func(*push.Login) string { return "" }})
		a, b := w.binds("alice"), w.binds("alice")
		var ids []int32
		a.onAck(func(d *device, p packet) { ids = append(ids, p.id) })
		b.onAck(func(d *device, p packet) {
			d.ack(p.id ^ 1<<29)
			d.ack(0)
			d.ack(-1)
			d.ack(-1 << 31)
			d.ack(p.id)
			d.ack(p.id)
		})
		r, _ := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.BizAck})
		wantStatus(t, r, push.Timeout, push.Acked)
		synctest.Wait()
		if n := w.Stats().StrayAcks; n != 5 {
			t.Errorf("Stats count %d stray acks, want 5", n)
		}
		a.ack(ids[0]) // late
		synctest.Wait()
		if n := w.Stats().StrayAcks; n != 6 {
			t.Errorf("Stats count %d stray acks, want 6", n)
		}
		// A push to a alone, acked by b.
		done := make(chan push.Receipt)
		go func() {
			r, _ := w.Push(context.Background(), push.Audience{Conn: a.conn().ID()}, push.Message{Ack: push.AutoAck})
			done <- r
		}()
		synctest.Wait()
		b.ack(ids[1])
		wantStatus(t, <-done, push.Timeout)
		synctest.Wait()
		if n := w.Stats().StrayAcks; n != 7 {
			t.Errorf("Stats count %d stray acks, want 7", n)
		}
	})
}

// The window (compatibility.md A4).

// pushes lets n pushes go out one behind another without waiting, and returns
// what becomes of them.
func (w *deviceWorld) pushes(user string, from, n int, ack push.Ack) func(i int) push.Status {
	var mu sync.Mutex
	status := make([]push.Status, n)
	for i := range n {
		_, err := w.PushToUser(context.Background(), user, push.Message{
			Data: from + i, Ack: ack, Async: true,
			Progress: func(r push.Receipt) {
				mu.Lock()
				defer mu.Unlock()
				status[i] = r.Deliveries[0].Status
			},
		})
		if err != nil {
			w.t.Errorf("push %d: %v", from+i, err)
		}
	}
	return func(i int) push.Status {
		mu.Lock()
		defer mu.Unlock()
		return status[i]
	}
}

// wantNumbers wants pushes of these numbers to have come, and nothing else. In
// virtual time only.
func (d *device) wantNumbers(from, to int) (got []packet) {
	d.t.Helper()
	synctest.Wait()
	got = d.taken()
	for i, p := range got {
		if p.cmd != mpush.CmdPush || p.content() != fmt.Sprint(from+i) {
			d.t.Fatalf("%s got %v at place %d, want number %d", d.is.DeviceID, p, i, from+i)
		}
	}
	if len(got) != to-from {
		d.t.Fatalf("%s got %d pushes, want numbers %d to %d", d.is.DeviceID, len(got), from, to-1)
	}
	return got
}

func TestAtMostFiftyPushesAreUnanswered(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Limits: push.Limits{AckTimeout: time.Hour}})
		d := w.binds("alice")
		d.onAck(mute)
		before := w.pushes("alice", 0, 100, push.AutoAck)
		// One without an ack waits behind the held ones, and so do others.
		if r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: 100}); err != nil || r.Sent != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		w.Broadcast(t.Context(), push.Message{Data: 101})
		after := w.pushes("alice", 102, 98, push.BizAck)
		unanswered := d.wantNumbers(0, 50)
		next := 50
		for len(unanswered) > 0 {
			// Answers in any order; each makes room for one.
			k := len(unanswered) / 2
			d.ack(unanswered[k].id)
			unanswered = slices.Delete(unanswered, k, k+1)
			synctest.Wait()
			got := d.taken()
			room := min(1, 200-next)
			if next == 99 {
				room = 3 // two behind it want no ack
			}
			if len(got) != room {
				t.Fatalf("one answer let %d pushes go, want %d", len(got), room)
			}
			for _, p := range got {
				if p.content() != fmt.Sprint(next) {
					t.Fatalf("got %v, want %d", p, next)
				}
				if next++; p.id != 0 {
					unanswered = append(unanswered, p)
				}
			}
			if len(unanswered) > 50 {
				t.Fatalf("%d are unanswered", len(unanswered))
			}
		}
		if next != 200 {
			t.Errorf("%d of 200 came", next)
		}
		time.Sleep(time.Second)
		for i := range 98 {
			if before(i) != push.Acked || after(i) != push.Acked {
				t.Fatalf("push %d is %v, push %d is %v", i, before(i), 102+i, after(i))
			}
		}
		// And with nothing held, everything goes at once again.
		w.PushToUser(t.Context(), "alice", push.Message{Data: 1})
		d.wantPush("1")
		if s := w.Stats(); s.QueuedBytes != 0 {
			t.Errorf("%d bytes are left", s.QueuedBytes)
		}
	})
}

func TestAnswersAndHeartbeatsPassWhatIsHeld(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Limits: push.Limits{AckTimeout: time.Hour}, OnMessage: nobodyMinds})
		d := w.binds("alice")
		d.onAck(mute)
		status := w.pushes("alice", 0, 60, push.AutoAck)
		d.wantNumbers(0, 50)
		if !door.json {
			d.wantBeat()
		}
		d.push("message", mpush.FlagAutoAck)
		d.wantAck()
		d.bind("alice")
		// So does KICK.
		w.Kick(t.Context(), push.Audience{User: "alice"}, "bye")
		d.wantKick(d.is.DeviceID, "alice")
		d.wantErrorTo(0, mpush.CmdHandshake, 0, "kicked")
		d.vanishes()
		synctest.Wait()
		time.Sleep(time.Second)
		for i := range 60 {
			want := push.Gone
			if i >= 50 {
				want = push.Offline // it never left
			}
			if status(i) != want {
				t.Errorf("push %d is %v, want %v", i, status(i), want)
			}
		}
	})
}

// TestATimeoutFreesItsPlace, and who gives up while it is held is never
// written.
func TestATimeoutFreesItsPlace(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Limits: push.Limits{AckTimeout: 10 * time.Second}})
		d := w.binds("alice")
		d.onAck(mute)
		within := func(wait time.Duration, n, from int) chan push.Receipt {
			receipts := make(chan push.Receipt, n)
			for i := range n {
				go func() {
					ctx, cancel := context.WithTimeout(context.Background(), wait)
					defer cancel()
					r, err := w.PushToUser(ctx, "alice", push.Message{Data: from + i, Ack: push.BizAck})
					if err == nil {
						t.Errorf("push %d has no error: %+v", from+i, r)
					}
					receipts <- r
				}()
				synctest.Wait()
			}
			return receipts
		}
		early := within(2*time.Second, 50, 0)
		never := within(time.Second, 10, 1000) // held, and they give up before there is room
		w.PushToUser(t.Context(), "alice", push.Message{Data: 50})
		late := within(8*time.Second, 20, 51)
		d.wantNumbers(0, 50)
		time.Sleep(time.Second)
		for range 10 {
			r := <-never
			wantStatus(t, r, push.Overloaded)
			if l := r.Deliveries[0].Latency; l != time.Second {
				t.Errorf("it gave up after %v", l)
			}
		}
		d.wantNumbers(50, 51) // behind who gave up, and it wants no place
		time.Sleep(time.Second)
		d.wantNumbers(51, 71)
		for range 50 {
			wantStatus(t, <-early, push.Timeout)
		}
		for range 20 {
			wantStatus(t, <-late, push.Timeout)
		}
		// The connection lives.
		d.onAck(func(d *device, p packet) { d.ack(p.id) })
		r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: 71, Ack: push.AutoAck})
		if err != nil {
			t.Error(err)
		}
		wantStatus(t, r, push.Acked)
		d.wantNumbers(71, 72)
	})
}

func TestTheWindowIsConfigured(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		for window, most := range map[int]int{-1: 200, 1: 1, 7: 7} {
			w := door.world(t, push.Config{MPush: push.MPush{Window: window}, Limits: push.Limits{AckTimeout: time.Hour}})
			d := w.binds("alice")
			d.onAck(mute)
			status := w.pushes("alice", 0, 200, push.AutoAck)
			open := d.wantNumbers(0, most)
			for next := most; len(open) > 0; {
				for _, p := range open {
					d.ack(p.id)
				}
				more := min(most, 200-next)
				open = d.wantNumbers(next, next+more)
				next += more
			}
			time.Sleep(time.Second)
			if status(0) != push.Acked || status(199) != push.Acked {
				t.Errorf("window %d: %v … %v", window, status(0), status(199))
			}
		}
	})
}

func TestWhatIsHeldIsBounded(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Limits: push.Limits{AckTimeout: time.Hour, QueueMessages: 100}})
		d := w.binds("alice")
		d.onAck(mute)
		synctest.Wait() // behind the OK everything is held for a moment
		status := w.pushes("alice", 0, 160, push.AutoAck)
		open := d.wantNumbers(0, 50)
		time.Sleep(time.Second)
		for i := range 160 {
			if overloaded := status(i) == push.Overloaded; overloaded != (i >= 150) {
				t.Errorf("push %d is %v", i, status(i))
			}
		}
		if s := w.Stats(); s.Limited["window"] != 10 || s.QueuedBytes == 0 {
			t.Errorf("%d are counted, %d bytes queued", s.Limited["window"], s.QueuedBytes)
		}
		d.onAck(func(d *device, p packet) { d.ack(p.id) })
		for _, p := range open {
			d.ack(p.id)
		}
		d.wantNumbers(50, 150)
		if s := w.Stats(); s.QueuedBytes != 0 {
			t.Errorf("%d bytes are left", s.QueuedBytes)
		}
	})
}

func TestOnConnectMayPushMoreThanTheWindow(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var w *deviceWorld
		w = door.world(t, push.Config{OnConnect: func(ctx context.Context, c *push.Conn) {
			if c.Protocol() == "push.json" {
				return
			}
			for i := range 120 {
				if _, err := c.Push(ctx, push.Message{Data: i, Ack: push.AutoAck, Async: true}); err != nil {
					t.Error(err)
				}
				if i == 60 {
					go w.PushToUser(context.Background(), "alice", push.Message{Data: 121})
					time.Sleep(time.Millisecond)
				}
			}
			w.PushToUser(ctx, "alice", push.Message{Data: 120})
		}})
		d := w.shakesHands()
		d.onAck(mute)
		d.bind("alice")
		open := d.wantNumbers(0, 50)
		time.Sleep(time.Second)
		d.onAck(func(d *device, p packet) { d.ack(p.id) })
		for _, p := range open {
			d.ack(p.id)
		}
		d.wantNumbers(50, 122)
	})
}

// What devices send.

func TestADevicesMessageReachesItsHandler(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var fail error
		var got []string
		w := door.world(t, push.Config{OnMessage: func(_ context.Context, c *push.Conn, m *push.Received) (any, error) {
			got = append(got, fmt.Sprintf("%s %q %d %q %v", c.UserID(), m.Event, m.Args(), m.Bytes(0), m.Bytes(0) == nil))
			return "a reply, which has no form", fail
		}})
		d := w.binds("alice")
		synctest.Wait()
		const wants = mpush.FlagAutoAck | mpush.FlagBizAck
		for _, flags := range []mpush.Flags{mpush.FlagAutoAck, mpush.FlagBizAck, wants} {
			d.push("hello", flags)
			d.wantAck()
		}
		d.push("no answer", 0)
		d.wantNothing()
		d.push("", mpush.FlagAutoAck)
		d.wantAck()
		for _, fail = range []error{errors.New("not done"), push.Refuse("go away"), push.ErrUnauthorized} {
			d.push("fails", wants)
			d.wantNothing()
		}
		fail = nil
		if !door.json {
			long := strings.Repeat("long ", 10000)
			d.push(long, mpush.FlagCompress|mpush.FlagBizAck)
			d.wantAck()
			if want := fmt.Sprintf("alice %q 1 %q false", "", long); got[len(got)-1] != want {
				t.Errorf("what was compressed arrives as %.80s…", got[len(got)-1])
			}
			got = got[:len(got)-1]
		}
		want := []string{
			`alice "" 1 "hello" false`, `alice "" 1 "hello" false`, `alice "" 1 "hello" false`, `alice "" 1 "no answer" false`, `alice "" 1 "" false`,
			`alice "" 1 "fails" false`, `alice "" 1 "fails" false`, `alice "" 1 "fails" false`,
		}
		if !slices.Equal(got, want) {
			t.Errorf("the handler got\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}

		// Of who is not bound nobody hears.
		before := len(got)
		d.unbind("alice")
		d.push("unbound?", mpush.FlagAutoAck)
		synctest.Wait()
		if n := len(d.taken()) + len(got) - before; n != 0 && n != 2 {
			t.Errorf("a message of an unbound device is half taken: %q", got)
		}
		other := w.shakesHands()
		other.push("never bound", mpush.FlagAutoAck)
		other.wantNothing()
		if strings.Contains(fmt.Sprint(got), "never bound") {
			t.Error("a handler ran for who was never bound")
		}
	})
}

func TestADevicesMessageIsDecoded(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		type order struct {
			Number int `json:"n"`
		}
		var got []string
		push.On(w.Engine, "", func(_ context.Context, c *push.Conn, in order) (any, error) {
			got = append(got, fmt.Sprint(c.UserID(), " ", in.Number))
			return nil, nil
		})
		d := w.binds("alice")
		d.push(`{"n":5}`, mpush.FlagAutoAck)
		d.wantAck()
		for _, bad := range []string{"{", "", "[]", "\x00"} {
			d.push(bad, mpush.FlagAutoAck)
			d.wantNothing()
		}
		d.push(`{"n":6}`, mpush.FlagBizAck)
		d.wantAck()
		if want := []string{"alice 5", "alice 6"}; !slices.Equal(got, want) {
			t.Errorf("the handler got %q, want %q", got, want)
		}
		if n := w.Stats().Undecodable; n != 4 {
			t.Errorf("Stats count %d undecodable, want 4", n)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := worldWithDevices(t, push.Config{})
		var got [][]byte
		push.On(w.Engine, "", func(_ context.Context, c *push.Conn, in []byte) (any, error) {
			got = append(got, in)
			return nil, nil
		})
		d := w.binds("alice")
		for _, content := range []string{`{"n":5}`, "", "\x00\xff"} {
			d.push(content, mpush.FlagAutoAck)
			d.wantAck()
		}
		if want := `["{\"n\":5}" "" "\x00\xff"]`; fmt.Sprintf("%q", got) != want {
			t.Errorf("got %q, want %s", got, want)
		}
	})
}

func TestAHandlerThatPushesToItsOwnDeviceGetsTheAck(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
			d, err := c.Push(ctx, push.Message{Data: m.Bytes(0), Ack: push.BizAck})
			if d.Status != push.Acked || d.Latency != 0 {
				t.Errorf("%+v", d)
			}
			return nil, err
		}})
		d := w.binds("alice")
		d.push("echo", mpush.FlagAutoAck)
		d.wantPush("echo")
		d.wantAck()
	})
}

func TestAPageAndADeviceOfOneUserBothGetAPush(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		for _, dialect := range dialectNames {
			w.dialect = dialect
			p, d := w.connect(dialect), w.binds(dialect)
			r, err := w.PushToUser(t.Context(), dialect, push.Message{Event: "order", Data: map[string]int{"n": 1}, Ack: push.AutoAck})
			if err != nil {
				t.Error(err)
			}
			wantStatus(t, r, push.Acked, push.Acked)
			if m := p.wantPush("order"); !sameJSON(m.Data, `{"n":1}`) {
				t.Errorf("the page got %s", m.Data)
			}
			d.wantPush(`{"n":1}`)
			p.vanishes()
			d.vanishes()
		}
	})
}

// TestABroadcastReachesDevicesOfEveryDoor, more of them than are written to by
// the caller, in order and each once.
func TestABroadcastReachesDevicesOfEveryDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorTCP.world(t, push.Config{MPush: push.MPush{AllowPlain: true, CompressOver: 200}, DeviceClass: func(*push.Login) string { return "" }, Limits: push.Limits{MaxConnsPerUser: -1}})
		var all []*device
		var pages []*page
		for i := range 150 {
			w.door = doors[i%len(doors)]
			all = append(all, w.binds(fmt.Sprint("u", i%7), "data=hall"))
			if i%10 == 0 {
				pages = append(pages, w.connect(""))
			}
		}
		contents := []string{`"short"`, `"` + strings.Repeat("long", 100) + `"`, "7", `"ü"`}
		for _, c := range contents {
			for _, room := range []bool{false, true} {
				a := push.Audience{All: true}
				if room {
					a = push.Audience{Room: "hall"}
				}
				if r, err := w.Push(t.Context(), a, push.Message{Event: "e", Data: json.RawMessage(c)}); err != nil || r.Sent != 150 && room || r.Sent != 165 && !room {
					t.Errorf("%+v, %v", r, err)
				}
			}
		}
		for _, d := range all {
			for _, c := range contents {
				d.wantPush(c, c)
			}
			d.wantNothing()
		}
		for _, p := range pages {
			p.wantPush("e", "e", "e", "e")
		}
		r, err := w.Push(t.Context(), push.Audience{Room: "hall"}, push.Message{Data: 1, Ack: push.BizAck})
		if err != nil || r.Acked != 150 {
			t.Errorf("%d of 150 acked, %v", r.Acked, err)
		}
	})
}

// Classes.

func TestTheSecondDeviceOfAClassReplacesTheFirst(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var notes diary
		w := door.world(t, push.Config{OnDisconnect: func(c *push.Conn, why push.Reason) {
			if c.Protocol() != "push.json" {
				notes.note("%s %s", c.Login().DeviceID, why)
			}
		}, OnMessage: nobodyMinds, Limits: push.Limits{AckTimeout: time.Hour, MaxConnsPerUser: 1}})
		old := w.binds("alice", "device=old", "os=Android")
		old.onAck(mute)
		first := old.conn()
		synctest.Wait()
		status := w.pushes("alice", 0, 3, push.AutoAck)
		old.wantNumbers(0, 3)

		newer := w.binds("alice", "device=newer", "os=iOS 17")
		old.wantKick("old", "alice")
		synctest.Wait()
		notes.want(t, "old replaced")
		time.Sleep(time.Second)
		for i := range 3 {
			if status(i) != push.Gone {
				t.Errorf("push %d is %v, want Gone", i, status(i))
			}
		}
		if c := w.conns(); len(c) != 1 || c[0] != newer.conn() {
			t.Errorf("connections are %v", c)
		}
		if d, err := first.Push(t.Context(), push.Message{}); !errors.Is(err, push.ErrOffline) {
			t.Errorf("a push to the replaced Conn: %+v, %v", d, err)
		}
		if first.Context().Err() == nil {
			t.Error("its context lives")
		}
		w.PushToUser(t.Context(), "alice", push.Message{Data: "x"})
		w.Broadcast(t.Context(), push.Message{Data: "y"})
		newer.wantPush(`"x"`, `"y"`)
		old.wantOpen(time.Minute) // in no place
		if s := w.Stats(); s.Detached != 1 || s.Conns != 1 {
			t.Errorf("Stats count %d detached, %d connections", s.Detached, s.Conns)
		}

		// What it still sends is answered or ignored, and it may come back.
		if !door.json {
			old.wantBeat()
		}
		old.ack(1 << 30)
		old.push("from nobody", mpush.FlagAutoAck)
		old.wantNothing()
		old.unbind("alice")
		old.onAck(func(d *device, p packet) { d.ack(p.id) })
		old.bind("alice")
		newer.wantKick("newer", "alice")
		if c := old.conn(); c == nil || c.ID() == first.ID() {
			t.Errorf("after its BIND it is %v, want another Conn", c)
		}
		r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: "back", Ack: push.BizAck})
		if err != nil {
			t.Error(err)
		}
		wantStatus(t, r, push.Acked)
		old.wantPush(`"back"`)
		newer.wantNothing()
		newer.bind("bob") // or somebody else's
		old.wantOpen(time.Second)
		notes.want(t, "old replaced", "newer replaced")
	})
}

func TestTheSameDeviceIsReplacedWithoutKick(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		for _, close := range []bool{false, true} {
			w := door.world(t, push.Config{MPush: push.MPush{CloseKicked: close}})
			old := w.binds("alice", "device=phone")
			again := w.binds("alice", "device=phone")
			old.wantOpen(time.Minute)
			w.PushToUser(t.Context(), "alice", push.Message{Data: 1})
			again.wantPush("1")
			old.wantNothing()
			if n := w.Stats().Detached; n != 1 {
				t.Errorf("Stats count %d detached", n)
			}
		}
	})
}

func TestDevicesOfOtherClassesStay(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		classes := map[string][]string{ // the first match counts
			"mobile": {"android", "ios", "iPhone iOS", "web Android"},
			"pc":     {"windows", "mac", "linux", "web Mozilla Windows"},
			"web":    {"web", "h5", "Web"},
			"other":  {"", "plan9"},
		}
		var now []*device
		for class := range classes {
			now = append(now, w.binds("alice", "os="+classes[class][0]))
		}
		w.binds("bob", "os=android") // another user's
		for _, d := range now {
			d.wantNothing()
		}
		i := 0
		for class := range classes {
			for _, os := range classes[class][1:] {
				for j := range now {
					if strings.EqualFold(now[j].is.OSName, classes[class][0]) || slices.Contains(classes[class], now[j].is.OSName) {
						d := w.binds("alice", "os="+os)
						now[j].wantKick(now[j].is.DeviceID, "alice")
						now[j] = d
						i++
						break
					}
				}
				for _, d := range now {
					d.wantNothing()
				}
			}
		}
		if i != 9 || len(w.conns()) != 5 {
			t.Errorf("%d replaced, %d connections", i, len(w.conns()))
		}
		r, _ := w.PushToUser(t.Context(), "alice", push.Message{})
		wantStatus(t, r, push.Sent, push.Sent, push.Sent, push.Sent)
	})
}

func TestDeviceClassOverridesMPushs(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{DeviceClass: func(l *push.Login) string { return strings.TrimPrefix(l.DeviceID, "many") }})
		a, b := w.binds("alice", "device=one"), w.binds("alice", "device=two")
		c, d := w.binds("alice", "device=many"), w.binds("alice", "device=many")
		a.wantNothing()
		b.wantNothing()
		c.wantNothing()
		d.wantNothing()
		r, _ := w.PushToUser(t.Context(), "alice", push.Message{})
		wantStatus(t, r, push.Sent, push.Sent, push.Sent, push.Sent)
	})
}

func TestCloseKickedClosesAfterThreeSeconds(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{MPush: push.MPush{CloseKicked: true}})
		old, newer := w.binds("alice"), w.binds("alice")
		kicked := old.wantKick(old.is.DeviceID, "alice")
		old.wantOpen(3*time.Second - time.Millisecond)
		old.wantClosed(time.Second)
		old.wantCode(4409)
		if after := old.endedAt().Sub(kicked.at); after != 3*time.Second {
			t.Errorf("it was closed after %v", after)
		}
		// Not one that has bound anew.
		third := w.binds("alice")
		newer.wantKick(newer.is.DeviceID, "alice")
		newer.bind("bob")
		newer.wantOpen(10 * time.Second)
		third.wantNothing()
		synctest.Wait()
		if n := w.Stats().Closed[push.ReasonReplaced]; n != 1 {
			t.Errorf("%d closed as replaced", n)
		}
	})
}

func TestAKickedDeviceIsToldAndHasThreeSeconds(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		for how, kick := range map[string]func(w *deviceWorld, d *device){
			"Kick":  func(w *deviceWorld, d *device) { w.Kick(t.Context(), push.Audience{User: "alice"}, "the reason") },
			"Close": func(w *deviceWorld, d *device) { d.conn().Close("the reason") },
		} {
			for _, leaves := range []bool{false, true} {
				var notes diary
				w := door.world(t, push.Config{OnDisconnect: func(c *push.Conn, why push.Reason) {
					if c.Protocol() != "push.json" {
						notes.note("%s", why)
					}
				}})
				d := w.binds("alice", "device=phone")
				synctest.Wait()
				w.PushToUser(t.Context(), "alice", push.Message{Data: "before"})
				kick(w, d)
				d.wantPush(`"before"`)
				d.wantKick("phone", "alice")
				p := d.wantErrorTo(0, mpush.CmdHandshake, 0, "kicked")
				if e := p.error(); e.Data != "the reason" {
					t.Errorf("%s: the text is %q", how, e.Data)
				}
				if len(w.conns()) != 0 {
					t.Errorf("%s: it is still there", how)
				}
				synctest.Wait()
				notes.want(t, "kicked")
				if leaves {
					d.vanishes()
				} else if !door.ws { // over a WebSocket the close frame has come
					d.wantOpen(3*time.Second - time.Millisecond)
				}
				d.wantClosed(time.Millisecond)
				if !leaves {
					d.wantCode(4410)
				}
				synctest.Wait()
				if n := w.Stats().Closed[push.ReasonKicked]; n != 1 {
					t.Errorf("%s: %d closed as kicked", how, n)
				}
			}
		}
	})
}

// TestTheTextOfAKickIsCut, as Engine.Kick says, at a character.
func TestTheTextOfAKickIsCut(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		d := w.binds("alice")
		w.Kick(t.Context(), push.Audience{User: "alice"}, strings.Repeat("ü", 100))
		d.wantKick(d.is.DeviceID, "alice")
		if e := d.wantErrorTo(0, mpush.CmdHandshake, 0, "kicked").error(); e.Data != strings.Repeat("ü", 61) {
			t.Errorf("the text has %d bytes, want 122", len(e.Data))
		}
		if door.ws {
			d.wantClosed(0)
			d.wantCode(4410)
		}
	})
}

func TestAGoodbyeOfAWebSocketIsOne(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		if !door.ws {
			return
		}
		w := door.world(t, push.Config{})
		d := w.binds("alice")
		d.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
		d.wantClosed(0)
		d.wantCode(1000)
		synctest.Wait()
		if s := w.Stats(); s.Closed[push.ReasonClient] != 1 || s.Conns != 0 {
			t.Errorf("closed %v, %d connections", s.Closed, s.Conns)
		}
	})
}

// TestTheApplicationMayBindADevice that it has unbound, and it is everywhere
// again.
func TestTheApplicationMayBindADevice(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		d, other := w.binds("alice", "data=room"), w.binds("bob")
		c := d.conn()
		c.Unbind()
		if r, _ := w.Broadcast(t.Context(), push.Message{Data: 1}); r.Targets != 1 || len(c.Rooms()) != 0 {
			t.Errorf("%+v, in %q", r, c.Rooms())
		}
		other.wantPush("1")
		if err := c.Bind(t.Context(), "bob"); err != nil {
			t.Fatal(err)
		}
		other.wantKick(other.is.DeviceID, "bob")
		w.Broadcast(t.Context(), push.Message{Data: 2})
		w.PushToUser(t.Context(), "bob", push.Message{Data: 3})
		d.wantPush("2", "3")
		other.wantNothing()
	})
}

// overDoorsAndSockets is overDoors, and once more over sockets.
func overDoorsAndSockets(t *testing.T, f func(t *testing.T, start func(push.Config) *deviceWorld)) {
	overDoors(t, func(t *testing.T, door door) {
		f(t, func(cfg push.Config) *deviceWorld { return door.world(t, cfg) })
	})
	for _, door := range doors {
		t.Run(door.name+", sockets", func(t *testing.T) {
			f(t, func(cfg push.Config) *deviceWorld { return door.socketWorld(t, cfg) })
		})
	}
}

// TestNothingComesBeforeTheOK, however much is pushed to the user and to all
// while a device binds.
func TestNothingComesBeforeTheOK(t *testing.T) {
	overDoorsAndSockets(t, func(t *testing.T, start func(push.Config) *deviceWorld) {
		w := start(push.Config{Limits: push.Limits{QueueBytes: -1, QueueMessages: -1, AcksWaiting: -1, AckTimeout: time.Millisecond}, DeviceClass: func(*push.Login) string { return "" }})
		ctx, stop := context.WithCancel(t.Context())
		var pushes sync.WaitGroup
		for i := range 3 {
			pushes.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					m := push.Message{Data: n, Ack: push.Ack(n % 3)}
					if i == 0 {
						w.Broadcast(ctx, push.Message{Data: n})
					} else {
						w.PushToUser(ctx, "alice", m)
					}
					pauseFor(n)
				}
			})
		}
		for range 20 {
			d := w.shakesHands()
			d.bind("alice") // wants the OK to come next
			d.waitFor("pushes", func() bool { return len(d.got) > 3 })
			d.vanishes()
		}
		stop()
		pushes.Wait()
	})
}

// TestOfDevicesThatBindAtOnceOneStays, and every other one is told.
func TestOfDevicesThatBindAtOnceOneStays(t *testing.T) {
	overDoorsAndSockets(t, func(t *testing.T, start func(push.Config) *deviceWorld) {
		w := start(push.Config{})
		for range 5 {
			var all []*device
			for range 6 {
				all = append(all, w.shakesHands())
			}
			for _, d := range all {
				go d.asksToBind("alice")
			}
			kicked := func(d *device) bool {
				d.mu.Lock()
				defer d.mu.Unlock()
				return slices.ContainsFunc(d.got, func(p packet) bool { return p.cmd == mpush.CmdKick })
			}
			for _, d := range all {
				d.waitFor("its OK", func() bool {
					return slices.ContainsFunc(d.got, func(p packet) bool { return p.cmd == mpush.CmdOK })
				})
			}
			// Who stays is in the place; all others hear of it.
			var stays *device
			for _, d := range all {
				if d.conn() != nil && !kicked(d) {
					stays = d
				}
			}
			if stays == nil {
				t.Fatal("nobody stays")
			}
			for _, d := range all {
				if d != stays {
					d.waitFor("KICK", func() bool {
						return slices.ContainsFunc(d.got, func(p packet) bool { return p.cmd == mpush.CmdKick })
					})
					d.mu.Lock()
					ok := slices.IndexFunc(d.got, func(p packet) bool { return p.cmd == mpush.CmdOK })
					if kick := slices.IndexFunc(d.got, func(p packet) bool { return p.cmd == mpush.CmdKick }); kick < ok {
						t.Errorf("%s hears KICK before its OK, and takes itself for bound", d.is.DeviceID)
					}
					d.mu.Unlock()
				}
			}
			r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: "x", Ack: push.AutoAck})
			if err != nil || r.Targets != 1 || r.Deliveries[0].DeviceID != stays.is.DeviceID || kicked(stays) {
				t.Fatalf("%+v, %v; %s stays, kicked %v", r, err, stays.is.DeviceID, kicked(stays))
			}
			for _, d := range all {
				d.vanishes()
			}
		}
	})
}

// Refusals (compatibility.md A3).

func TestARefusalIsToldAfterTwoSeconds(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var asked time.Duration // what the gate takes
		gate := func(ctx context.Context, l *push.Login) (string, error) {
			if l.Protocol == "push.json" {
				return "", nil
			}
			time.Sleep(asked)
			switch l.UserID {
			case "text":
				return "", push.Refuse("no money left")
			case "wrapped":
				return "", fmt.Errorf("secret: %w", push.ErrUnauthorized)
			case "nobody":
				return "", nil
			}
			return l.UserID, push.ErrUnauthorized
		}
		w := door.world(t, push.Config{Authenticate: gate, MPush: push.MPush{SessionKey: aSessionKey(3)}, OnDisconnect: func(c *push.Conn, why push.Reason) {
			if c.Protocol() != "push.json" {
				t.Errorf("OnDisconnect of a device that was never let in: %s", why)
			}
		}})
		n := uint64(0)
		for user, reason := range map[string]string{"no": "bind failed", "wrapped": "bind failed", "nobody": "bind failed", "text": "no money left"} {
			for _, asked = range []time.Duration{0, time.Second, 4 * time.Second} {
				d := w.shakesHands()
				begin := time.Now()
				d.asksToBind(user)
				d.raw(d.packetWith(d.ids.Load(), mpush.CmdBind, 0, &mpush.Bind{UserID: user})) // as it does after 3 s
				told := max(2*time.Second, asked)
				d.wantOpen(told - time.Millisecond)
				p := d.wantError(mpush.CmdBind, 0, reason)
				if after := p.at.Sub(begin); after != told {
					t.Errorf("%s is told after %v, want %v", user, after, told)
				}
				d.wantOpen(3*time.Second - time.Millisecond)
				d.wantClosed(time.Second)
				if after := d.endedAt().Sub(p.at); after != 3*time.Second {
					t.Errorf("%s is closed %v after the answer", user, after)
				}
				n++
			}
		}
		// Whose client closes is gone at once.
		d := w.shakesHands()
		d.asksToBind("no")
		d.wantError(mpush.CmdBind, 0, "bind failed")
		d.vanishes()
		synctest.Wait()
		if s := w.Stats(); s.Refused["unauthorized"] != n+1 || s.Closed[push.ReasonRefused] != n+1 || s.Conns != 0 {
			t.Errorf("%d refused and %d closed, want %d; %d connections", s.Refused["unauthorized"], s.Closed[push.ReasonRefused], n+1, s.Conns)
		}
	})
}

func TestALaterBindThatIsRefusedEndsTheDevice(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.UserID == "mallory" {
				return "", push.ErrUnauthorized
			}
			return l.UserID, nil
		}})
		d := w.binds("alice")
		d.asksToBind("mallory")
		d.wantOpen(2*time.Second - time.Millisecond)
		d.wantError(mpush.CmdBind, 0, "bind failed")
		if w.Online("alice") {
			t.Error("alice is online")
		}
		d.wantClosed(3 * time.Second)
	})
}

func TestAGateThatFailsIsNotAnsweredAndAskedAgain(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		calls := 0
		down := true
		w := door.world(t, push.Config{Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.Protocol == "push.json" {
				return "", nil
			}
			if calls++; down {
				return "alice", errors.New("the database is down: password=secret")
			}
			return l.UserID, nil
		}})
		d := w.shakesHands()
		ask := d.bindPacket("alice", "data=token")
		d.raw(ask)
		d.wantOpen(3 * time.Second)
		d.raw(ask) // the same packet once more
		d.wantOpen(time.Minute)
		if calls != 2 {
			t.Errorf("%d calls, want 2", calls)
		}
		if s := w.Stats(); s.Refused["later"] != 2 || s.Conns != 0 {
			t.Errorf("%d refused as later; %d connections", s.Refused["later"], s.Conns)
		}
		down = false
		d.raw(ask)
		d.wantOK(mpush.CmdBind, "bind success")

		// Who is bound stays so while the gate is down.
		down = true
		d.asksToBind("bob")
		d.wantOpen(10 * time.Second)
		if !w.Online("alice") || w.Online("bob") {
			t.Error("the failing gate changed who is there")
		}
	})
}

func TestABindThatIsRepeatedWhileTheGateThinksIsOne(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		calls := 0
		w := door.world(t, push.Config{OnMessage: nobodyMinds, Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.Protocol == "push.json" {
				return "", nil
			}
			calls++
			time.Sleep(4 * time.Second)
			return l.UserID, nil
		}})
		d := w.shakesHands()
		ask := d.bindPacket("alice", "data=x", "tags=a,b")
		begin := time.Now()
		d.raw(ask)
		for range 20 { // more than five a second are not counted either
			d.raw(ask)
		}
		if !door.json {
			d.wantBeat()
			time.Sleep(time.Second)
			d.wantBeat()
		}
		d.wantOpen(time.Until(begin.Add(3 * time.Second)))
		d.raw(ask)
		p := d.wantOK(mpush.CmdBind, "bind success")
		if after := p.at.Sub(begin); after != 4*time.Second {
			t.Errorf("answered after %v", after)
		}
		d.wantOpen(10 * time.Second)
		if calls != 1 {
			t.Errorf("%d calls, want 1", calls)
		}
		// Another id, or another body, is another login.
		d.asksToBind("alice", "data=x", "tags=a,b")
		d.asksToBind("alice", "data=y", "tags=a,b")
		d.wantOpen(4*time.Second - time.Millisecond)
		first, second := d.next(), d.next()
		if first.id != d.ids.Load()-1 || second.id != d.ids.Load() || calls != 3 {
			t.Errorf("%v, %v after %d calls", first, second, calls)
		}
	})
}

func TestAuthTimeoutIsNotNow(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		for limit, want := range map[time.Duration]time.Duration{0: 5 * time.Second, time.Second: time.Second, time.Hour: 5500 * time.Millisecond, -1: 5500 * time.Millisecond} {
			var took []time.Duration
			w := door.world(t, push.Config{Limits: push.Limits{AuthTimeout: limit}, Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				if l.Protocol == "push.json" {
					return "", nil
				}
				begin := time.Now()
				<-ctx.Done()
				took = append(took, time.Since(begin))
				return l.UserID, nil // too late
			}})
			d := w.shakesHands()
			d.asksToBind("alice")
			d.wantOpen(time.Minute)
			if len(took) != 1 || took[0] != want {
				t.Errorf("AuthTimeout %v: ctx ended after %v, want %v", limit, took, want)
			}
			if w.Online("alice") {
				t.Error("an answer after the end counts")
			}
			d.asksToBind("alice")
			time.Sleep(time.Second / 2)
			d.vanishes() // and who leaves does not keep the gate waiting
			synctest.Wait()
			if len(took) != 2 || took[1] != time.Second/2 {
				t.Errorf("AuthTimeout %v: the ctx of who left ended after %v", limit, took[1:])
			}
		}
	})
}

func TestTooManyDevicesOfAUserAreRefusedAsALogin(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Limits: push.Limits{MaxConnsPerUser: 2}, DeviceClass: func(*push.Login) string { return "" }})
		a, b := w.binds("alice"), w.binds("alice")
		c := w.shakesHands()
		begin := time.Now()
		c.asksToBind("alice")
		if p := c.wantError(mpush.CmdBind, 0, "bind failed"); p.at.Sub(begin) != 2*time.Second {
			t.Errorf("told after %v", p.at.Sub(begin))
		}
		c.wantClosed(3 * time.Second)
		r, _ := w.PushToUser(t.Context(), "alice", push.Message{Data: 1})
		wantStatus(t, r, push.Sent, push.Sent)
		a.wantPush("1")
		b.wantPush("1")
		if n := w.Stats().Refused["max_conns_per_user"]; n != 1 {
			t.Errorf("Stats count %d", n)
		}
		b.unbind("alice")
		w.binds("alice")
	})
}

func TestAnExpiredLoginEndsTheDevice(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.UserID != "" {
				l.Expires = time.Now().Add(10 * time.Second)
			}
			return l.UserID, nil
		}})
		d := w.binds("alice")
		time.Sleep(5 * time.Second)
		d.bind("alice") // anew
		d.wantOpen(10*time.Second - time.Millisecond)
		d.wantClosed(2 * time.Second)
		d.wantCode(4401)
		synctest.Wait()
		if n := w.Stats().Closed[push.ReasonExpired]; n != 1 {
			t.Errorf("%d closed as expired", n)
		}
	})
}

func TestAPanickingGateEndsItsDeviceQuietly(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.UserID == "panic" {
				panic("gate")
			}
			return l.UserID, nil
		}})
		other := w.binds("alice")
		d := w.shakesHands()
		d.asksToBind("panic")
		d.wantOpen(2*time.Second - time.Millisecond) // a quick end makes clients come back at once
		d.wantClosed(4 * time.Second)
		synctest.Wait()
		if s := w.Stats(); s.Closed[push.ReasonPanic] != 1 || s.Panics != 1 {
			t.Errorf("%d closed, %d panics", s.Closed[push.ReasonPanic], s.Panics)
		}
		other.wantNothing()
	})
}

// TestWhatWasHeldForAUserEndsWithItsLogin: the next user of a shared device, or
// nobody, is not shown it.
func TestWhatWasHeldForAUserEndsWithItsLogin(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		for _, logsOut := range []bool{true, false} {
			w := door.world(t, push.Config{})
			d := w.binds("alice")
			d.onAck(func(*device, packet) {})
			var receipts []push.Receipt
			var mu sync.Mutex
			for i := range 61 {
				m := push.Message{Data: i, Ack: push.BizAck}
				if i == 60 {
					m.Ack = push.NoAck
				}
				go func() {
					r, _ := w.PushToUser(context.Background(), "alice", m)
					mu.Lock()
					defer mu.Unlock()
					receipts = append(receipts, r)
				}()
				synctest.Wait()
			}
			first := d.taken()
			if len(first) != 50 {
				t.Fatalf("%d pushes came, want the window's 50", len(first))
			}
			if logsOut {
				d.unbind("alice")
				d.bind("bob")
			} else {
				d.asksToBind("bob")
				d.wantOK(mpush.CmdBind, "unbind success")
				d.wantOK(mpush.CmdBind, "bind success")
			}
			for _, p := range first {
				d.ack(p.id)
			}
			synctest.Wait()
			d.wantNothing()
			became := make(map[push.Status]int)
			for _, r := range receipts {
				became[r.Deliveries[0].Status]++
			}
			if became[push.Acked] != 50 || became[push.Offline] != 10 || became[push.Sent] != 1 {
				t.Errorf("alice's pushes became %v, want 50 acked and 10 that nobody took", became)
			}
			w.PushToUser(t.Context(), "bob", push.Message{Data: "bob's"})
			d.wantPush(`"bob's"`)
		}
	})
}

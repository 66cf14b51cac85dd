package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
)

func isPolling(door string) bool { return strings.HasSuffix(door, "polling") }

// wantSocketsGone wants nothing to be left of any client.
func (w *world) wantSocketsGone() {
	w.t.Helper()
	synctest.Wait()
	s := w.Stats()
	if s.Sockets+s.Conns+s.Pending+s.Users+s.Rooms+s.Memberships+s.Flights != 0 || s.QueuedBytes != 0 {
		w.t.Errorf("left: %+v", s)
	}
}

// TestMuteClientEndsWhenItWasTold: after PingInterval and PingTimeout, whatever
// the transport.
func TestMuteClientEndsWhenItWasTold(t *testing.T) {
	for _, times := range [][2]time.Duration{{0, 0}, {2 * time.Second, time.Second}, {300 * time.Millisecond, 200 * time.Millisecond}, {time.Minute, 10 * time.Second}} {
		t.Run(fmt.Sprint(times), func(t *testing.T) {
			overSocketIO(t, func(t *testing.T, door string) {
				var d diary
				w := newWorld(t, push.Config{
					OnDisconnect: func(c *push.Conn, why push.Reason) { d.note("%s %s", c.UserID(), why) },
					SocketIO:     push.SocketIO{PingInterval: times[0], PingTimeout: times[1]},
				})
				w.dialect = door
				interval, timeout := times[0], times[1]
				if interval == 0 {
					interval, timeout = 25*time.Second, 20*time.Second
				}
				tick := min(time.Second, min(interval, timeout)/5)
				alive := w.connect("alive")
				mute := w.connect("mute")
				mute.io.mute.Store(true)
				begin := time.Now()
				if h := mute.io.hello; h.PingInterval != int(interval.Milliseconds()) || h.PingTimeout != int(timeout.Milliseconds()) {
					t.Errorf("announced %+v", h)
				}
				for w.Online("mute") && time.Since(begin) < 3*(interval+timeout) {
					time.Sleep(10 * time.Millisecond)
				}
				// A sweep asks, and another one looks for the answer.
				if took := time.Since(begin); took < interval+timeout || took > interval+timeout+2*tick+20*time.Millisecond {
					t.Errorf("ended after %v, want %v", took, interval+timeout)
				}
				if err := mute.end(); endedWith(err, 4410) || !endedWith(err, 1001) {
					t.Errorf("ended with %v", err)
				}
				time.Sleep(20 * interval)
				alive.wantNothing()
				if n := alive.pinged(); n < 18 || n > 24 {
					t.Errorf("%d pings in %v", n, time.Since(begin))
				}
				d.want(t, "mute heartbeat")
				if s := w.Stats(); s.Closed[push.ReasonHeartbeat] != 1 || s.Sockets != 1 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// TestClientThatStopsPollingEnds: it posts, but its pings reach nobody.
func TestClientThatStopsPollingEnds(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		if !isPolling(door) {
			return
		}
		w := newWorld(t, push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { return nil, nil }})
		w.dialect = door
		p := w.connect("alice")
		synctest.Wait()
		p.pause()
		w.PushToUser(t.Context(), "alice", push.Message{}) // ends the GET that is held
		begin := time.Now()
		if p.io.rev == 4 {
			for w.Online("alice") && time.Since(begin) < 2*time.Minute {
				p.io.enqueue(p.io.encode(2, "/", -1, "x")...) // is no pong
				time.Sleep(time.Second)
			}
		} else {
			p.io.mute.Store(true)
			for w.Online("alice") && time.Since(begin) < 2*time.Minute {
				time.Sleep(time.Second)
			}
		}
		if took := time.Since(begin); took < 44*time.Second || took > 48*time.Second {
			t.Errorf("ended after %v, want 45 s", took)
		}
		p.resume()
		p.end()
		w.wantSocketsGone()
	})
}

// TestSessionsThatAreNeverPolledExpire, a thousand of them: a third round leaves
// no more than the second.
func TestSessionsThatAreNeverPolledExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		tr := &http.Transport{DialContext: w.dial, DisableCompression: true}
		defer tr.CloseIdleConnections()
		var heaps []int64
		var goroutines []int
		for round := range 3 {
			for i := range 1000 {
				r, _ := http.NewRequest("GET", fmt.Sprintf("http://push.test/socket.io/?EIO=%d&transport=polling&user=u%d", 3+i%2, i%100), nil)
				resp, err := tr.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Fatalf("session %d: %d", i, resp.StatusCode)
				}
			}
			if s := w.Stats(); s.Sockets != 1000 || s.Conns != 500 || s.Pending != 500 || s.Users != 50 {
				t.Errorf("round %d: %+v", round, s)
			}
			time.Sleep(20 * time.Second) // who is not connected, and does not poll, has 10 s
			if s := w.Stats(); s.Sockets != 500 || s.Conns != 500 || s.Pending != 0 {
				t.Errorf("round %d: after 20 s %+v", round, s)
			}
			time.Sleep(20 * time.Second)
			if s := w.Stats(); s.Conns != 500 {
				t.Errorf("round %d: after 40 s %+v", round, s)
			}
			time.Sleep(10 * time.Second)
			if s := w.Stats(); s.Conns != 0 || s.Pending != 0 || s.Users != 0 {
				t.Errorf("round %d: after 50 s %+v", round, s)
			}
			time.Sleep(30 * time.Second) // for a poll that would hear of the end
			w.wantSocketsGone()
			if s := w.Stats(); total(s.Closed) != uint64(1000*(round+1)) {
				t.Errorf("round %d: closed %v", round, s.Closed)
			}
			tr.CloseIdleConnections()
			synctest.Wait()
			heaps = append(heaps, liveHeap())
			goroutines = append(goroutines, runtime.NumGoroutine())
		}
		if goroutines[2] > goroutines[1] || heaps[2] > heaps[1]+100<<10 {
			t.Errorf("after three rounds %v goroutines, %v bytes", goroutines, heaps)
		}
	})
}

// TestEndedSessionFreesEverything, however it ends.
func TestEndedSessionFreesEverything(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: anySpace}})
		w.dialect = door
		for name, end := range map[string]func(p *page){
			"leaves":   func(p *page) { p.leaves() },
			"closes":   func(p *page) { p.io.closes() },
			"vanishes": func(p *page) { p.vanishes() },
			"kicked":   func(p *page) { p.conn().Close(""); p.end() },
			"breaks":   func(p *page) { p.io.says("4nonsense"); p.end() },
			"silent":   func(p *page) { p.io.mute.Store(true) },
		} {
			p := w.connect("alice", "token=red")
			chat := p.io.joins("/chat", "bob", "token=blue").isIn()
			p.onAck(silent)
			pushed := make(chan error, 1)
			go func() {
				_, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.BizAck})
				pushed <- err
			}()
			p.wantPush("message")
			synctest.Wait() // its next GET is held
			end(p)
			if name == "silent" {
				time.Sleep(50 * time.Second)
			}
			if err := <-pushed; !errors.Is(err, push.ErrGone) && name != "silent" {
				t.Errorf("%s: the push in flight: %v", name, err)
			}
			chat.end()
			<-p.io.done
			time.Sleep(time.Second)
			w.wantSocketsGone()
			if t.Failed() {
				t.Fatalf("after %s", name)
			}
		}
	})
}

// TestTwoRequestsOfAKindEndTheSession: row 98.
func TestTwoRequestsOfAKindEndTheSession(t *testing.T) {
	for _, door := range []string{"socket.io.5 polling", "socket.io.4 polling"} {
		t.Run(door, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, push.Config{})
				w.dialect = door
				fine, p := w.connect("fine"), w.connect("alice")
				synctest.Wait() // its GET is held
				target := strings.TrimPrefix(p.io.url("http", "polling"), "http://push.test")
				status, _, body := w.fetch("GET", target, nil, "")
				if status != 400 {
					t.Errorf("a second GET: %d %q", status, body)
				}
				if err := p.end(); endedWith(err, 4410) {
					t.Errorf("ended with %v", err)
				}
				if status, _, body := w.fetch("GET", target, nil, ""); status != 400 || !strings.Contains(body, `"code":1`) {
					t.Errorf("after the end: %d %q", status, body)
				}
				fine.wantNothing()
				if s := w.Stats(); s.Sockets != 1 || s.Conns != 1 || s.Closed[push.ReasonProtocol] != 1 || s.Refused["bad_request"] == 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// TestBadRequestsAreAnsweredAsTheSuitesWant: rows 95 and 96, each counted.
func TestBadRequestsAreAnsweredAsTheSuitesWant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		w.dialect = "socket.io.5 polling"
		p := w.connect("alice")
		sid := "&sid=" + p.io.hello.SID
		for _, c := range []struct {
			method, query, body string
			status, code        int // code -1: any body
			message             string
		}{
			{"GET", "", "", 400, 0, "Transport unknown"},
			{"GET", "EIO=4", "", 400, 0, "Transport unknown"},
			{"GET", "EIO=4&transport=constructor", "", 400, 0, "Transport unknown"},
			{"GET", "EIO=4&transport=webtransport", "", 400, 0, "Transport unknown"},
			{"GET", "EIO=4&transport=polling&sid=x", "", 400, 1, "Session ID unknown"},
			{"POST", "EIO=4&transport=polling&sid=x", "1", 400, 1, "Session ID unknown"},
			{"POST", "EIO=4&transport=polling", "1", 400, 2, "Bad handshake method"},
			{"PUT", "EIO=4&transport=polling", "1", 400, 2, "Bad handshake method"},
			{"DELETE", "EIO=4&transport=polling", "", 400, 2, "Bad handshake method"},
			{"GET", "EIO=4&transport=websocket", "", 400, 3, "Bad request"},
			{"GET", "EIO=4&transport=websocket" + sid, "", 400, 3, "Bad request"},
			{"GET", "transport=polling", "", 400, 5, "Unsupported protocol version"},
			{"GET", "EIO=2&transport=polling", "", 400, 5, "Unsupported protocol version"},
			{"GET", "EIO=5&transport=polling", "", 400, 5, "Unsupported protocol version"},
			{"GET", "EIO=99&transport=polling", "", 400, 5, "Unsupported protocol version"},
			{"GET", "EIO=abc&transport=polling", "", 400, 5, "Unsupported protocol version"},
			{"PUT", "EIO=4&transport=polling" + sid, "x", 400, -1, ""},
			{"GET", "EIO=4&transport=polling&x=" + strings.Repeat("x", 10_000), "", 400, -1, ""},
		} {
			before := total(w.Stats().Refused)
			status, h, body := w.fetch(c.method, "/socket.io/?"+c.query, nil, c.body)
			if status != c.status {
				t.Errorf("%s %.60s: %d, want %d", c.method, c.query, status, c.status)
			}
			if c.code >= 0 && (!sameJSON(json.RawMessage(body), fmt.Sprintf(`{"code":%d,"message":%q}`, c.code, c.message)) || h.Get("Content-Type") != "application/json") {
				t.Errorf("%s %.60s: %v %q, want code %d", c.method, c.query, h, body, c.code)
			}
			if total(w.Stats().Refused) != before+1 {
				t.Errorf("%s %.60s: not counted", c.method, c.query)
			}
			if strings.Contains(body, p.io.hello.SID) {
				t.Errorf("%s %.60s: the sid is in the answer", c.method, c.query)
			}
		}
		p.wantNothing()
		if _, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck}); err != nil {
			t.Error(err)
		}
		if s := w.Stats(); s.Sockets != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestMaxPayloadIsSmallBeforeTheConnect, and as announced behind it: 413, and
// 1009 over a WebSocket.
func TestMaxPayloadIsSmallBeforeTheConnect(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var sizes []int
		w := newWorld(t, push.Config{
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				sizes = append(sizes, len(m.JSON(0)))
				return nil, nil
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		w.dialect = door
		if !strings.HasPrefix(door, "socket.io.4") {
			c := w.opens(door)
			auth := map[string]any{"x": strings.Repeat("x", 40<<10)}
			c.sendsAll(c.connectPacket("/", auth))
			c.wantsConnect("/")
			c = w.opens(door, "manual")
			over := map[string]any{"x": strings.Repeat("x", 64<<10)}
			if isPolling(door) {
				body, kind := encodePayload(c.rev, false, []ioMessage{c.connectPacket("/", over)})
				status, _, b, err := c.request("POST", kind, body)
				if status != 413 || len(b) > 0 || err != nil {
					t.Errorf("over 64 KiB before CONNECT: %d %q, %v", status, b, err)
				}
				c.sendsAll(c.connectPacket("/", nil)) // the session goes on
				c.wantsConnect("/")
			} else {
				c.sendsAll(c.connectPacket("/", over))
				if end := c.end(); end.code != 1009 {
					t.Errorf("over 64 KiB before CONNECT: %v", end)
				}
			}
		}
		p := w.connect("alice")
		p.emits(1, "x", strings.Repeat("x", 200_000))
		p.wantAnswer(1, "", "")
		p.emits(2, "x", strings.Repeat("x", 740_000)) // as base64 and with the rest it would still fit
		p.wantAnswer(2, "", "")
		if len(sizes) != 2 || sizes[1] != 740_002 {
			t.Errorf("sizes %v", sizes)
		}
		big := p.io.encode(2, "/", -1, "x", strings.Repeat("x", 1_000_001))
		if isPolling(door) {
			body, kind := encodePayload(p.io.rev, false, big)
			status, _, b, err := p.io.request("POST", kind, body)
			if status != 413 || len(b) > 0 || err != nil {
				t.Errorf("over MaxPayload: %d %q, %v", status, b, err)
			}
			p.wantNothing()
			p.emits(3, "x", 1)
			p.wantAnswer(3, "", "")
		} else {
			p.io.enqueue(big...)
			if err := p.end(); !endedWith(err, 1009) {
				t.Errorf("over MaxPayload: %v", err)
			}
		}
	})
}

// TestAttachmentsCountTogether against MaxPayload.
func TestAttachmentsCountTogether(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{
			OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { return nil, nil },
			SocketIO:  push.SocketIO{MaxPayload: 100_000},
		})
		w.dialect = door
		p := w.connect("alice")
		part := make([]byte, 20_000)
		p.emits(1, "x", part, part, part)
		p.wantAnswer(1, "", "")
		p.io.enqueue(p.io.encode(2, "/", -1, "x", part, part, part, part, part, part)...)
		if err := p.end(); endedWith(err, 4410) {
			t.Errorf("ended with %v", err)
		}
	})
}

// TestPostIsAnsweredLateOverTheRate, and nothing is lost.
func TestPostIsAnsweredLateOverTheRate(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		if !isPolling(door) {
			return // TestMessageRatePausesReadingAndLosesNothing
		}
		var got []int
		w := newWorld(t, push.Config{
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				n := -1
				m.Decode(&n)
				got = append(got, n)
				return nil, nil
			},
			Limits: push.Limits{MessageRate: 10},
		})
		w.dialect = door
		p := w.connect("alice")
		var packets []ioMessage
		for i := range 250 {
			packets = append(packets, p.io.encode(2, "/", -1, "n", i)...)
		}
		begin := time.Now()
		p.io.sendsAll(packets...)
		if took := time.Since(begin); took < 18*time.Second || took > 21*time.Second {
			t.Errorf("the POST of 250 events at ten a second, 50 at once, took %v", took)
		}
		synctest.Wait()
		for i := range got {
			if got[i] != i {
				t.Fatalf("got %v", got)
			}
		}
		if len(got) != 250 || w.Stats().Limited["message_rate"] == 0 {
			t.Errorf("%d events, %v", len(got), w.Stats().Limited)
		}
		p.wantNothing()
	})
}

// TestOnePostMayHaveThousandsOfEvents: a real client's 2 999 in one body.
func TestOnePostMayHaveThousandsOfEvents(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		n := 0
		w := newWorld(t, push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { n++; return nil, nil }})
		w.dialect = door
		p := w.connect("alice")
		var packets []ioMessage
		for i := range 2999 {
			packets = append(packets, p.io.encode(2, "/", -1, "n", i, "some thirty bytes of padding..")...)
		}
		p.io.sendsAll(packets...)
		synctest.Wait()
		if n != 2999 {
			t.Errorf("%d events", n)
		}
		p.wantNothing()
	})
}

// TestClientThatDoesNotPollIsSlow, counted, and hears of the end when it polls.
func TestClientThatDoesNotPollIsSlow(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		if !isPolling(door) {
			return
		}
		for _, polls := range []bool{true, false} {
			var d diary
			w := newWorld(t, push.Config{
				OnDisconnect: func(c *push.Conn, why push.Reason) { d.note("%s", why) },
				Limits:       push.Limits{QueueBytes: 64 << 10},
			})
			w.dialect = door
			p, fine := w.connect("alice"), w.connect("fine")
			synctest.Wait()
			p.pause()
			w.PushToUser(t.Context(), "alice", block(0, 10)) // ends the GET that is held
			p.wantPush("n")
			sent := 1
			for ; ; sent++ {
				r, err := w.PushToUser(t.Context(), "alice", block(sent, 4<<10))
				if err != nil {
					wantStatus(t, r, push.Slow)
					break
				}
				if n := w.Stats().QueuedBytes; n > 80<<10 || sent > 100 {
					t.Fatalf("%d pushes, %d bytes are queued", sent, n)
				}
			}
			if sent < 14 || sent > 18 {
				t.Errorf("%d pushes of 4 KiB fit into 64 KiB", sent)
			}
			synctest.Wait()
			d.want(t, "slow")
			if w.Online("alice") || w.Stats().Deliveries["slow"] != 1 {
				t.Errorf("%+v", w.Stats())
			}
			if polls {
				p.resume()
				if err := p.end(); !endedWith(err, 4408) {
					t.Errorf("ended with %v", err)
				}
				for i, n := range numbers(p.taken()) {
					if n != i+1 {
						t.Errorf("got number %d as %d after a loss", n, i+1)
					}
				}
			} else {
				time.Sleep(40 * time.Second)
				target := strings.TrimPrefix(p.io.url("http", "polling"), "http://push.test")
				if status, _, body := w.fetch("GET", target, nil, ""); status != 400 {
					t.Errorf("a poll after the end: %d %q", status, body)
				}
			}
			synctest.Wait()
			if s := w.Stats(); s.Sockets != 1 || s.QueuedBytes != 0 || s.Closed[push.ReasonSlow] != 1 {
				t.Errorf("%+v", s)
			}
			fine.wantNothing()
		}
	})
}

// TestTotalQueueBytesClosesTheFullestOfThosePolling.
func TestTotalQueueBytesClosesTheFullestOfThosePolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Limits: push.Limits{QueueBytes: 1 << 20, TotalQueueBytes: 600 << 10}})
		w.dialect = "socket.io.5 polling"
		full, fullest, fine := w.connect("full"), w.connect("fullest"), w.connect("fine")
		for _, p := range []*page{full, fullest} {
			synctest.Wait()
			p.pause()
			w.Push(t.Context(), push.Audience{Conn: p.conn().ID()}, push.Message{})
			p.wantPush("message")
		}
		for n := range 30 {
			if _, err := w.PushToUser(t.Context(), "fullest", block(n, 10_000)); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for ; w.Online("fullest") && n < 60; n++ {
			if _, err := w.PushToUser(t.Context(), "full", block(n, 10_000)); err != nil {
				t.Fatal(n, err)
			}
			if s := w.Stats(); s.QueuedBytes > 650<<10 {
				t.Fatalf("%d bytes are queued", s.QueuedBytes)
			}
		}
		if w.Online("fullest") || !w.Online("full") {
			t.Errorf("after %d: %+v", n, w.Stats())
		}
		full.resume()
		synctest.Wait()
		wantPrefix(t, full, numbers(full.taken()))
		full.wantNothing()
		fine.wantNothing()
		if s := w.Stats(); s.Limited["stuck"] == 0 {
			t.Errorf("%+v", s.Limited)
		}
	})
}

// TestClientThatGoesAwayDuringAPollIsGoneAtOnce.
func TestClientThatGoesAwayDuringAPollIsGoneAtOnce(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var d diary
		w := newWorld(t, push.Config{OnDisconnect: func(c *push.Conn, why push.Reason) { d.note("%s", why) }})
		w.dialect = door
		p := w.connect("alice")
		synctest.Wait()
		p.vanishes()
		synctest.Wait()
		if w.Online("alice") {
			t.Error("still online")
		}
		d.want(t, "lost")
		w.wantSocketsGone()
	})
}

// TestHostsTimeoutsDoNotCutPolls: WriteTimeout and ReadTimeout of a second.
func TestHostsTimeoutsDoNotCutPolls(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var got int
		w := newWorld(t, push.Config{
			OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { got++; return nil, nil },
			Limits:    push.Limits{MessageRate: 10},
		})
		synctest.Wait() // it serves
		w.server.WriteTimeout, w.server.ReadTimeout, w.server.IdleTimeout = time.Second, time.Second, time.Minute
		w.dialect = door
		p := w.connect("alice")
		gets := p.io.gets.Load()
		for range 20 {
			time.Sleep(10 * time.Second)
			p.wantNothing()
			if r, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck}); err != nil || r.Acked != 1 {
				t.Fatal(r, err)
			}
			p.wantPush("message")
		}
		if n := p.io.gets.Load() - gets; isPolling(door) && n > 40 {
			t.Errorf("%d GETs in 200 s", n)
		}
		var packets []ioMessage
		for i := range 250 { // a POST of 20 s
			packets = append(packets, p.io.encode(2, "/", -1, "n", i)...)
		}
		p.io.sendsAll(packets...)
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if got != 250 {
			t.Errorf("%d events", got)
		}
		p.wantNothing()
	})
}

// TestSlowPostIsCut: row 109.
func TestSlowPostIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		w.dialect = "socket.io.5 polling"
		fine, p := w.connect("fine"), w.connect("alice")
		nc, err := w.dial(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		defer time.Sleep(time.Second)
		defer nc.Close()
		target := strings.TrimPrefix(p.io.url("http", "polling"), "http://push.test")
		fmt.Fprintf(nc, "POST %s HTTP/1.1\r\nHost: push.test\r\nContent-Type: text/plain\r\nContent-Length: 60000\r\n\r\n", target)
		begin := time.Now()
		go func() {
			for {
				if _, err := io.WriteString(nc, "4"); err != nil {
					return
				}
				time.Sleep(500 * time.Millisecond)
			}
		}()
		if err := p.end(); endedWith(err, 4410) {
			t.Errorf("ended with %v", err)
		}
		if took := time.Since(begin); took > 12*time.Second {
			t.Errorf("cut after %v", took)
		}
		b := make([]byte, 100)
		nc.SetReadDeadline(time.Now().Add(time.Minute))
		n, _ := nc.Read(b)
		if !strings.HasPrefix(string(b[:n]), "HTTP/1.1 408") && n > 0 {
			t.Errorf("answered %q", b[:n])
		}
		fine.wantNothing()
	})
}

// TestShutdownEndsPollingAtOnce: held GETs, between polls, during an upgrade.
// Nobody is told to stay away.
func TestShutdownEndsPollingAtOnce(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: anySpace}})
		w.dialect = door
		held := w.connect("held")
		chat := held.io.joins("/chat", "held").isIn()
		between := w.connect("between")
		synctest.Wait()
		between.pause()
		if isPolling(door) {
			w.PushToUser(t.Context(), "between", push.Message{})
			between.wantPush("message")
		}
		var probing *page
		var probe *websocket.Conn
		if isPolling(door) {
			probing = w.connect("probing")
			probing.pause() // from 3probe on polls are answered at once
			ws, _, _, err := probing.io.dialWebSocket()
			if err != nil {
				t.Fatal(err)
			}
			probe = ws
			ws.WriteMessage(websocket.TextMessage, []byte("2probe"))
			if _, b, err := ws.ReadMessage(); err != nil || string(b) != "3probe" {
				t.Fatalf("%q, %v", b, err)
			}
		}
		if door != "socket.io.4 websocket" && !strings.HasPrefix(door, "socket.io.4") {
			w.opens(door) // not connected yet
		}
		synctest.Wait()
		if _, err := w.PushToUser(t.Context(), "held", push.Message{Event: "last"}); err != nil {
			t.Error(err)
		}
		begin := time.Now()
		if err := w.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("Shutdown took %v", took)
		}
		held.wantPush("last")
		held.wantClosed(1001)
		chat.wantClosed(1001)
		between.resume()
		if err := between.end(); endedWith(err, 4410) {
			t.Errorf("between polls ended with %v", err)
		}
		if probe != nil {
			probing.resume()
			if err := probing.end(); endedWith(err, 4410) {
				t.Errorf("probing ended with %v", err)
			}
			if _, b, err := probe.ReadMessage(); err == nil {
				t.Errorf("the probe got %q", b)
			}
			probe.Close()
		}
		wantEnded(t, w.Engine)
		w.wantSocketsGone()
		if s := w.Stats(); s.Closed[push.ReasonShutdown] < 2 {
			t.Errorf("%v", s.Closed)
		}
	})
}

// TestHandshakesAreRefusedWhileItDrains, and sessions go on until it is their
// turn.
func TestHandshakesAreRefusedWhileItDrains(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{Drain: 20 * time.Second})
		w.dialect = door
		var pages []*page
		for range 4 {
			pages = append(pages, w.connect("alice"))
		}
		ended := make(chan error)
		go func() { ended <- w.Shutdown(t.Context()) }()
		time.Sleep(time.Second)
		if _, status, body, err := w.triesToOpen(door, "user=late"); status != 503 {
			t.Errorf("%d %q, %v", status, body, err)
		}
		if transport := "polling"; isPolling(door) {
			status, h, _ := w.fetch("GET", "/socket.io/?EIO=4&transport="+transport, nil, "")
			if status != 503 || h.Get("Retry-After") == "" {
				t.Errorf("%d %v, want 503 with Retry-After", status, h)
			}
		}
		if r, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck}); err != nil || r.Acked < 3 {
			t.Errorf("%+v, %v", r, err)
		}
		for _, p := range pages {
			p.end()
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, status, _, _ := w.triesToOpen(door, "user=late"); status != 503 {
			t.Errorf("after the end: %d", status)
		}
		if w.Stats().Refused["draining"] < 2 {
			t.Errorf("%v", w.Stats().Refused)
		}
	})
}

// TestUpgradeThatGoesWrongLeavesPollingAlone: row 100.
func TestUpgradeThatGoesWrongLeavesPollingAlone(t *testing.T) {
	for _, door := range []string{"socket.io.5 polling", "socket.io.4 polling"} {
		t.Run(door, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, push.Config{})
				w.dialect = door
				p := w.connect("alice")
				works := func(name string) {
					t.Helper()
					if r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: name, Ack: push.AutoAck}); err != nil || r.Acked != 1 {
						t.Fatalf("after %s: %+v, %v", name, r, err)
					}
					p.wantPush("e")
				}
				closes := func(ws *websocket.Conn, name string) {
					t.Helper()
					ws.SetReadDeadline(time.Now().Add(15 * time.Second))
					for {
						_, b, err := ws.ReadMessage()
						if err == nil && string(b) == "3probe" {
							continue
						}
						if err == nil {
							t.Errorf("%s: the WebSocket got %q", name, b)
						} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
							t.Errorf("%s: the WebSocket is not closed", name)
						}
						break
					}
					ws.Close()
				}
				for name, packets := range map[string][]string{
					"no probe": {"5"}, "an event": {`42["x"]`}, "another word": {"2prob"}, "twice": {"2probe", "2probe"}, "an event for 5": {"2probe", `42["x"]`},
					"nothing": {}, "never finished": {"2probe"}, "garbage": {"xyz"}, "long": {"2probe" + strings.Repeat("x", 1000)},
				} {
					unfinished := name == "never finished"
					if unfinished {
						p.pause() // from 3probe on polls are answered at once
					}
					ws, _, _, err := p.io.dialWebSocket()
					if err != nil {
						t.Fatal(name, err)
					}
					for _, s := range packets {
						ws.WriteMessage(websocket.TextMessage, []byte(s))
					}
					synctest.Wait()
					if !unfinished {
						works(name)
					}
					closes(ws, name)
					p.resume()
					works(name)
				}
				// A second one beside the first.
				first, _, _, err := p.io.dialWebSocket()
				if err != nil {
					t.Fatal(err)
				}
				second, _, _, err := p.io.dialWebSocket()
				if err == nil {
					closes(second, "a second")
				}
				works("a second")
				first.Close()
				synctest.Wait()
				// An unknown sid.
				sid := p.io.hello.SID
				p.io.hello.SID = "unknown"
				_, _, resp, err := p.io.dialWebSocket()
				p.io.hello.SID = sid
				if err == nil || resp == nil || resp.StatusCode != 400 {
					t.Errorf("an unknown sid: %v, %v", resp, err)
				}
				p.io.upgrades()
				works("all that")
				third, _, _, err := p.io.dialWebSocket()
				if err == nil {
					closes(third, "one for an upgraded session")
				}
				works("a third")
				if p.io.webSocket() == nil {
					t.Error("not upgraded")
				}
			})
		})
	}
}

// TestOriginsOfSocketIO: who is let in, what the browser is told, and what the
// gate sees.
func TestOriginsOfSocketIO(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			origins []string
			origin  string
			in      bool
			trusted bool // credentials
		}{
			{nil, "", true, true},
			{nil, "http://push.test", true, true},
			{nil, "http://evil.test", false, false},
			{nil, "null", false, false},
			{[]string{"https://shop.example"}, "https://shop.example", true, true},
			{[]string{"https://shop.example"}, "https://evil.example", false, false},
			{[]string{"null"}, "null", true, true},
			{[]string{"*"}, "http://any.test", true, false},
			{[]string{"*"}, "null", true, false},
			{[]string{"*", "https://shop.example"}, "https://shop.example", true, true},
		} {
			var cookie, authorization string
			asked := 0
			w := newWorld(t, push.Config{
				Origins: c.origins,
				Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
					asked++
					cookie, authorization = l.Cookie("session"), l.Header("Authorization")
					return l.UserID, nil
				},
			})
			name := fmt.Sprintf("origins %q, origin %q", c.origins, c.origin)
			header := http.Header{"Cookie": {"session=s"}, "Authorization": {"Bearer t"}}
			if c.origin != "" {
				header.Set("Origin", c.origin)
			}
			for _, eio := range []string{"3", "4"} {
				asked, cookie, authorization = 0, "", ""
				status, h, body := w.fetch("GET", "/socket.io/?EIO="+eio+"&transport=polling", header, "")
				if (status == 200) != c.in || !c.in && status != 403 {
					t.Errorf("%s: %d %q", name, status, body)
				}
				allow := ""
				if c.in {
					allow = c.origin
				}
				if got := h.Get("Access-Control-Allow-Origin"); got != allow {
					t.Errorf("%s: allows %q", name, got)
				}
				if got := h.Get("Access-Control-Allow-Credentials"); (got == "true") != (c.in && c.trusted && c.origin != "") {
					t.Errorf("%s: credentials %q", name, got)
				}
				if c.origin != "" && !slices.Contains(strings.Split(h.Get("Vary"), ", "), "Origin") {
					t.Errorf("%s: Vary %q", name, h.Values("Vary"))
				}
				if eio == "3" && c.in && (asked != 1 || (cookie == "s") != c.trusted || (authorization != "") != c.trusted) {
					t.Errorf("%s: the gate was asked %d times with cookie %q and %q", name, asked, cookie, authorization)
				}
				status, h, _ = w.fetch("OPTIONS", "/socket.io/?EIO="+eio+"&transport=polling&sid=x", http.Header{
					"Origin": {c.origin}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"content-type,x-own"},
				}, "")
				if c.origin != "" && (status == 204) != c.in || c.in && c.origin != "" && (h.Get("Access-Control-Allow-Headers") != "content-type,x-own" || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST")) {
					t.Errorf("%s: OPTIONS %d %v", name, status, h)
				}
			}
			// The same over a WebSocket, and for its CONNECT.
			asked, cookie, authorization = 0, "", ""
			more := []string{"@Cookie=session=s", "@Authorization=Bearer t"}
			if c.origin != "" {
				more = append(more, "origin="+c.origin)
			}
			client, status, body, err := w.triesToOpen("socket.io.5 websocket", more...)
			if (err == nil) != c.in || err != nil && status != 403 {
				t.Errorf("%s: over a WebSocket %d %q %v", name, status, body, err)
			}
			if err == nil {
				client.sendsAll(client.connectPacket("/", nil))
				client.wantsConnect("/")
				if asked != 1 || (cookie == "s") != c.trusted || (authorization != "") != c.trusted {
					t.Errorf("%s: over a WebSocket the gate saw cookie %q and %q", name, cookie, authorization)
				}
			}
			if n := w.Stats().Refused["origin"]; c.in && n != 0 || !c.in && n < 3 {
				t.Errorf("%s: %d are counted", name, n)
			}
			w.Close()
		}
	})
}

// TestForeignPageCannotUseASession that it somehow knows.
func TestForeignPageCannotUseASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		w.dialect = "socket.io.5 polling"
		p := w.connect("alice")
		target := strings.TrimPrefix(p.io.url("http", "polling"), "http://push.test")
		for _, method := range []string{"GET", "POST"} {
			if status, _, _ := w.fetch(method, target, http.Header{"Origin": {"http://evil.test"}}, map[string]string{"POST": "1"}[method]); status != 403 {
				t.Errorf("%s: %d", method, status)
			}
		}
		p.wantNothing()
	})
}

// TestPollingOverHTTP2 works like over HTTP/1.
func TestPollingOverHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := push.New(push.Config{
			Authenticate: believe,
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				return m.Event, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := memnet.Listen("192.0.2.1:80")
		if err != nil {
			t.Fatal(err)
		}
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		versions := map[string]bool{}
		var mu sync.Mutex
		srv := &http.Server{Protocols: &protocols, WriteTimeout: time.Second, ReadTimeout: time.Second, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			mu.Lock()
			versions[r.Proto] = true
			mu.Unlock()
			e.ServeHTTP(rw, r)
		})}
		served := make(chan struct{})
		go func() { defer close(served); srv.Serve(ln) }()
		tr := &http.Transport{Protocols: &protocols, DialContext: ln.DialContext}
		do := func(method, query, body string) (int, string) {
			t.Helper()
			r, _ := http.NewRequest(method, "http://push.test/socket.io/?EIO=4&transport=polling"+query, strings.NewReader(body))
			if body == "" {
				r.Body = nil
			}
			resp, err := tr.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Error(err)
			}
			return resp.StatusCode, string(b)
		}
		_, body := do("GET", "", "")
		var hello struct{ SID string }
		if json.Unmarshal([]byte(body[1:]), &hello) != nil {
			t.Fatalf("%q", body)
		}
		sid := "&sid=" + hello.SID
		if status, body := do("POST", sid, "40"); status != 200 || body != "ok" {
			t.Errorf("%d %q", status, body)
		}
		if _, body := do("GET", sid, ""); !strings.HasPrefix(body, `40{"sid":`) {
			t.Errorf("%q", body)
		}
		got := make(chan string)
		go func() { _, body := do("GET", sid, ""); got <- body }()
		time.Sleep(10 * time.Second) // over the host's timeouts
		do("POST", sid, `427["hi"]`)
		if body := <-got; body != `437["hi"]` {
			t.Errorf("%q", body)
		}
		if !versions["HTTP/2.0"] || len(versions) != 1 {
			t.Errorf("versions %v", versions)
		}
		// A client that goes away.
		ctx, cancel := context.WithCancel(t.Context())
		r, _ := http.NewRequestWithContext(ctx, "GET", "http://push.test/socket.io/?EIO=4&transport=polling"+sid, nil)
		go func() {
			if resp, err := tr.RoundTrip(r); err == nil {
				resp.Body.Close()
				t.Error("a GET that was cancelled was answered")
			}
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if s := e.Stats(); s.Conns != 0 || s.Sockets != 0 {
			t.Errorf("left: %+v", s)
		}
		e.Close()
		tr.CloseIdleConnections()
		srv.Close()
		<-served
	})
}

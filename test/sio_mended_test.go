package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
)

// isOld tells the doors of clients 2.x, which are connected when they open.
func isOld(door string) bool { return strings.HasPrefix(door, "socket.io.4") }

// poller is a client of polling that makes a request when it is told to.
type poller struct {
	w      *world
	rev    int
	target string
}

// polled is the answer to one request.
type polled struct {
	status int
	body   string
}

// startsPolling opens a session, joins "/" as user, and takes what the client
// is told about it.
func (w *world) startsPolling(rev int, user string) *poller {
	w.t.Helper()
	p := &poller{w, rev, fmt.Sprintf("/socket.io/?EIO=%d&transport=polling", rev)}
	status, h, body := w.fetch("GET", p.target+"&user="+user, nil, "")
	packets, err := decodePayload(rev, h.Get("Content-Type"), []byte(body))
	var hello struct {
		SID string `json:"sid"`
	}
	if status != 200 || err != nil || json.Unmarshal([]byte(packets[0].text[1:]), &hello) != nil || hello.SID == "" {
		w.t.Fatalf("the handshake is answered %d %q", status, body)
	}
	p.target += "&sid=" + hello.SID
	if rev == 4 {
		p.wants(p.posts(`40{"user":"`+user+`"}`), 200, "ok")
		if a := <-p.gets(); a.status != 200 || !strings.HasPrefix(a.body, "40{") {
			w.t.Fatalf("CONNECT is answered %d %q", a.status, a.body)
		}
	}
	return p
}

// frame is a packet as the body of a request has it.
func (p *poller) frame(packet string) string {
	if p.rev == 3 {
		return fmt.Sprintf("%d:%s", len(packet), packet)
	}
	return packet
}

func (p *poller) posts(packet string) polled {
	status, _, body := p.w.fetch("POST", p.target, http.Header{"Content-Type": {"text/plain;charset=UTF-8"}}, p.frame(packet))
	return polled{status, body}
}

func (p *poller) gets() <-chan polled {
	answer := make(chan polled, 1)
	go func() {
		status, _, body := p.w.fetch("GET", p.target, nil, "")
		answer <- polled{status, body}
	}()
	return answer
}

func (p *poller) wants(a polled, status int, body string) {
	p.w.t.Helper()
	if a.status != status || a.body != body {
		p.w.t.Fatalf("answered %d %q, want %d %q", a.status, a.body, status, body)
	}
}

// TestPayloadWithoutALimitMayHaveAnySize, from a client that is connected.
func TestPayloadWithoutALimitMayHaveAnySize(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) { return len(m.JSON(0)), nil },
			SocketIO:  push.SocketIO{MaxPayload: -1},
		})
		w.dialect = door
		p := w.connect("alice")
		if n := p.io.hello.MaxPayload; n != 0 {
			t.Errorf("the client is told %d", n)
		}
		for i, n := range []int{1, 70_000, 3_000_000} {
			p.emits(int64(i), "x", strings.Repeat("x", n))
			p.wantAnswer(uint64(i), fmt.Sprint(n+2), "")
		}
		if isOld(door) {
			return
		}
		c := w.opens(door, "manual=")
		over := c.connectPacket("/", map[string]any{"x": strings.Repeat("x", 64<<10)})
		if isPolling(door) {
			body, kind := encodePayload(c.rev, false, []ioMessage{over})
			if status, _, _, err := c.request("POST", kind, body); status != 413 {
				t.Errorf("64 KiB before the CONNECT: %d, %v", status, err)
			}
		} else {
			c.enqueue(over)
			if end := c.end(); end.code != 1009 {
				t.Errorf("64 KiB before the CONNECT: %v", end)
			}
		}
	})
}

// TestSmallMaxPayloadHoldsBeforeTheConnect, too: 413 and the session goes on,
// 1009 over a WebSocket.
func TestSmallMaxPayloadHoldsBeforeTheConnect(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{Authenticate: byToken, SocketIO: push.SocketIO{MaxPayload: 1000, Namespace: anySpace}})
		c := w.opens(door, "manual=", "user=alice", "token=refuse")
		if isOld(door) {
			c.wantsRefusal("/", "unauthorized")
		}
		if c.rev == 4 && c.hello.MaxPayload != 1000 {
			t.Errorf("the client is told %d", c.hello.MaxPayload)
		}
		space := "/chat"
		over := c.connectPacket(space, map[string]any{"x": strings.Repeat("x", 1000)})
		fits := c.connectPacket(space, map[string]any{"token": "fine", "x": strings.Repeat("x", 600)})
		if isOld(door) {
			over = ioMessage{text: "40" + space + "?token=fine&x=" + strings.Repeat("x", 1000) + ","}
			fits = ioMessage{text: "40" + space + "?token=fine&x=" + strings.Repeat("x", 600) + ","}
		}
		if !isPolling(door) {
			c.enqueue(over)
			if end := c.end(); end.code != 1009 {
				t.Errorf("over MaxPayload: %v", end)
			}
			return
		}
		body, kind := encodePayload(c.rev, false, []ioMessage{over})
		if status, _, b, err := c.request("POST", kind, body); status != 413 || len(b) > 0 {
			t.Errorf("over MaxPayload: %d %q, %v", status, b, err)
		}
		c.sendsAll(fits)
		c.wantsConnect(space)
	})
}

// TestClientIsPingedWhileItIsNotRead: its pongs lie unread, and it would take us
// for dead; we do not take it for dead, and find out later if it is.
func TestClientIsPingedWhileItIsNotRead(t *testing.T) {
	for _, times := range [][2]time.Duration{{25 * time.Second, 20 * time.Second}, {2 * time.Second, time.Second}} {
		for _, why := range []string{"inbox", "message_rate"} {
			t.Run(fmt.Sprint(times, why), func(t *testing.T) {
				overSocketIO(t, func(t *testing.T, door string) {
					interval, timeout := times[0], times[1]
					pause := 10 * interval
					release, events, limits := make(chan struct{}), 4, push.Limits{InboxMessages: 1}
					if why == "message_rate" {
						close(release)
						events, limits = int(pause.Seconds())+12, push.Limits{MessageRate: 1}
					}
					var handled atomic.Int64
					w := newWorld(t, push.Config{
						Limits: limits,
						OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) {
							<-release
							handled.Add(1)
							return nil, nil
						},
						SocketIO: push.SocketIO{PingInterval: interval, PingTimeout: timeout},
					})
					w.dialect = door
					p := w.connect("alice")
					time.Sleep(interval / 2)
					var packets []ioMessage
					for range events {
						packets = append(packets, p.io.encode(2, "/", -1, "x")...)
					}
					p.io.enqueue(packets...)

					before := p.pinged()
					time.Sleep(pause)
					if n := p.pinged() - before; p.io.rev == 4 && (n < 9 || n > 11) {
						t.Errorf("%d pings in the %v in which it was not read", n, pause)
					}
					if !w.Online("alice") || int(handled.Load()) >= events || w.Stats().Limited[why] == 0 {
						t.Fatalf("%d of %d are handled; %+v", handled.Load(), events, w.Stats())
					}
					if why == "inbox" {
						close(release)
					}
					time.Sleep(30 * time.Second) // its pongs count as messages
					if n := int(handled.Load()); n != events {
						t.Errorf("%d of %d are handled", n, events)
					}

					before = p.pinged()
					time.Sleep(pause)
					if n := p.pinged() - before; n < 9 || n > 11 || !w.Online("alice") {
						t.Errorf("%d pings in the %v behind it; %+v", n, pause, w.Stats())
					}
					p.wantNothing()
					p.io.mute.Store(true)
					begin := time.Now()
					for w.Online("alice") && time.Since(begin) < 2*pause {
						time.Sleep(100 * time.Millisecond)
					}
					if took := time.Since(begin); took < timeout/2 || took > interval+timeout+3*time.Second {
						t.Errorf("a mute client ended after %v", took)
					}
					p.end()
					time.Sleep(10 * time.Second)
					if s := w.Stats(); s.Closed[push.ReasonHeartbeat] != 1 || total(s.Closed) != 1 {
						t.Errorf("closed %v", s.Closed)
					}
				})
			})
		}
	}
}

// TestForeignPageCannotOpenASessionUnseen: an image's GET has cookies and no
// Origin, but the browser says whose it is.
func TestForeignPageCannotOpenASessionUnseen(t *testing.T) {
	for _, origins := range [][]string{nil, {"https://shop.example"}, {"*"}} {
		t.Run(fmt.Sprintf("origins %q", origins), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				asked := 0
				w := newWorld(t, push.Config{
					Origins: origins,
					Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
						asked++
						return l.Cookie("session"), nil
					},
					DeviceClass: func(*push.Login) string { return "web" },
				})
				victim := w.opens("socket.io.5 websocket", "@Cookie=session=alice")
				victim.sendsAll(victim.connectPacket("/", nil))
				victim.wantsConnect("/")
				asked = 0
				refused := uint64(0)
				for _, eio := range []string{"3", "4"} {
					for _, site := range []string{"cross-site", "same-site"} {
						status, _, body := w.fetch("GET", "/socket.io/?EIO="+eio+"&transport=polling", http.Header{
							"Cookie": {"session=alice"}, "Sec-Fetch-Site": {site}, "Sec-Fetch-Mode": {"no-cors"}, "Sec-Fetch-Dest": {"image"},
						}, "")
						refused++
						if status != 403 || w.Stats().Refused["origin"] != refused || asked != 0 {
							t.Errorf("EIO %s, %s: %d %q, refused %v, the gate was asked %d times", eio, site, status, body, w.Stats().Refused, asked)
						}
					}
				}
				victim.wantsNothing()
				if s := w.Stats(); s.Sockets != 1 || s.Conns != 1 || s.Pending != 0 || total(s.Refused) != refused {
					t.Errorf("%+v", s)
				}
				for _, site := range []string{"same-origin", "none"} {
					if status, _, body := w.fetch("GET", "/socket.io/?EIO=4&transport=polling", http.Header{"Sec-Fetch-Site": {site}}, ""); status != 200 {
						t.Errorf("%s: %d %q", site, status, body)
					}
				}
				if origins == nil {
					return
				}
				// One that says who it is and may.
				header := http.Header{"Sec-Fetch-Site": {"cross-site"}, "Origin": {"https://shop.example"}}
				if status, _, body := w.fetch("GET", "/socket.io/?EIO=4&transport=polling", header, ""); status != 200 {
					t.Errorf("an origin that is allowed: %d %q", status, body)
				}
			})
		})
	}
}

// unread makes a GET on a connection of its own and does not read the answer.
func (p *poller) unread() net.Conn {
	p.w.t.Helper()
	nc, err := p.w.dial(context.Background(), "tcp", "")
	if err != nil {
		p.w.t.Fatal(err)
	}
	fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: push.test\r\n\r\n", p.target)
	return nc
}

// TestWhatAPollHasTakenCountsUntilItIsWritten, in QueuedBytes.
func TestWhatAPollHasTakenCountsUntilItIsWritten(t *testing.T) {
	for _, rev := range []int{3, 4} {
		for _, end := range []string{"reads", "leaves", "stalls"} {
			t.Run(fmt.Sprintf("EIO %d %s", rev, end), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					const size = 200 << 10 // memory's wire holds 64 KiB
					w := newWorld(t, push.Config{})
					p := w.startsPolling(rev, "alice")
					nc := p.unread()
					defer nc.Close()
					synctest.Wait()
					if _, err := w.PushToUser(t.Context(), "alice", block(1, size)); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					if n := w.Stats().QueuedBytes; n < size || n > size+1000 {
						t.Errorf("%d bytes count while the GET is being answered, want %d", n, size)
					}
					switch end {
					case "reads":
						resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
						if err != nil {
							t.Fatal(err)
						}
						if n, err := io.Copy(io.Discard, resp.Body); n < size || err != nil {
							t.Errorf("read %d bytes, %v", n, err)
						}
						synctest.Wait()
						if s := w.Stats(); s.QueuedBytes != 0 || s.Conns != 1 {
							t.Errorf("when it is written: %+v", s)
						}
						return
					case "leaves":
						nc.Close()
						time.Sleep(time.Second)
					case "stalls":
						time.Sleep(10*time.Second + 20*time.Second)
					}
					w.wantSocketsGone()
				})
			})
		}
	}
}

// TestTotalQueueBytesHoldsForWhatPollsHaveTaken: the fullest of those who do not
// read their polls are closed.
func TestTotalQueueBytesHoldsForWhatPollsHaveTaken(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const total, clients, size = 1 << 20, 20, 200 << 10
		w := newWorld(t, push.Config{Limits: push.Limits{TotalQueueBytes: total}})
		for i := range clients {
			defer w.startsPolling(3+i%2, fmt.Sprint("u", i)).unread().Close()
		}
		synctest.Wait()
		for i := range clients {
			w.PushToUser(t.Context(), fmt.Sprint("u", i), block(i, size))
			synctest.Wait()
			if n := w.Stats().QueuedBytes; n > total {
				t.Fatalf("%d bytes are queued for %d clients", n, i+1)
			}
		}
		if s := w.Stats(); s.Limited["stuck"] < clients-total/size || s.QueuedBytes == 0 {
			t.Errorf("%d of %d clients were given up, %d bytes are queued", s.Limited["stuck"], clients, s.QueuedBytes)
		}
	})
}

// TestKickReachesAPollerWhoseQueueIsFull, behind what is queued.
func TestKickReachesAPollerWhoseQueueIsFull(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		if !isPolling(door) {
			return
		}
		w := newWorld(t, push.Config{Limits: push.Limits{QueueMessages: 4}})
		w.dialect = door
		p := w.connect("alice")
		synctest.Wait()
		p.pause()
		for _, event := range []string{"held", "1", "2", "3", "4"} { // the first ends the GET that is held
			if _, err := w.PushToUser(t.Context(), "alice", push.Message{Event: event}); err != nil {
				t.Fatalf("%s: %v", event, err)
			}
			synctest.Wait()
		}
		if n, err := w.Kick(t.Context(), push.Audience{User: "alice"}, ""); n != 1 || err != nil {
			t.Error(n, err)
		}
		time.Sleep(time.Second)
		p.resume()
		p.wantPush("held", "1", "2", "3", "4")
		p.wantClosed(4410)
		<-p.io.done
		time.Sleep(time.Second)
		w.wantSocketsGone()
		if s := w.Stats(); s.Closed[push.ReasonKicked] != 1 || total(s.Closed) != 1 {
			t.Errorf("closed %v", s.Closed)
		}
	})
}

// TestEngineBehindStripPrefix: whether the prefix has a slash at its end, which
// takes the path's, or not. The gate sees the request at every CONNECT.
func TestEngineBehindStripPrefix(t *testing.T) {
	for _, prefix := range []string{"/api", "/api/"} {
		for _, hook := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s hook %v", prefix, hook), func(t *testing.T) {
				overSocketIO(t, func(t *testing.T, door string) {
					var d diary
					cfg := push.Config{
						Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
							path := "/" + strings.TrimPrefix(l.Request.URL.Path, "/")
							d.note("%s %s: %s%s %s %s %s", l.Namespace, l.UserID, l.Request.Host, path, l.Query("shop"), l.Header("X-Own"), l.Cookie("session"))
							return l.UserID, nil
						},
						OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) { return c.Namespace(), nil },
					}
					if hook {
						cfg.SocketIO.Namespace = anySpace
					}
					w := newWorld(t, cfg)
					w.server.Handler = http.StripPrefix(prefix, w.Engine)
					w.dialect = door
					more := []string{"path=/api/socket.io/", "shop=7", "@X-Own=mine", "@Cookie=session=s"}
					var c *ioClient
					var root *page
					if isOld(door) {
						c = w.opens(door, append(more, "user=alice", "device=old")...)
						root = c.page("/", "old")
					} else {
						c = w.opens(door, more...)
						root = c.joins("/", "alice")
					}
					root.isIn().asks(1, "x", nil)
					root.wantAnswer(1, `""`, "")
					want := []string{" alice: push.test/socket.io/ 7 mine s"}
					if hook {
						for i, space := range []string{"/chat", "/news"} {
							time.Sleep(time.Minute)
							p := c.joins(space, "bob").isIn()
							p.asks(i, "x", nil)
							p.wantAnswer(uint64(i), fmt.Sprintf("%q", space), "")
							want = append(want, space+" bob: push.test/socket.io/ 7 mine s")
						}
					}
					if r, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck}); err != nil || r.Acked != 1 {
						t.Error(r, err)
					}
					d.want(t, want...)
				})
			})
		}
	}
}

// TestKickedPollerThatClosesIsAnsweredWell: its POST with ok, its GET with a
// noop, and it has made no mistake.
func TestKickedPollerThatClosesIsAnsweredWell(t *testing.T) {
	for _, rev := range []int{3, 4} {
		t.Run(fmt.Sprintf("EIO %d", rev), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t, push.Config{})
				p := w.startsPolling(rev, "alice")
				get := p.gets()
				synctest.Wait()
				w.Kick(t.Context(), push.Audience{User: "alice"}, "")
				p.wants(<-get, 200, p.frame("41"))
				get = p.gets()
				synctest.Wait()
				p.wants(p.posts("1"), 200, "ok")
				p.wants(<-get, 200, p.frame("6"))
				w.wantSocketsGone()
				if s := w.Stats(); total(s.Refused) != 0 || s.Closed[push.ReasonKicked] != 1 {
					t.Errorf("refused %v, closed %v", s.Refused, s.Closed)
				}
			})
		})
	}
}

// slowDoors are WebSockets, whose frames a test sends as it likes.
var slowDoors = []string{"socket.io.5 websocket", "socket.io.4 websocket", "socket.io.5 upgrade"}

// overSlowDoors gives f a client that is connected to "/" and sends nothing by
// itself.
func overSlowDoors(t *testing.T, cfg push.Config, f func(t *testing.T, w *world, c *ioClient)) {
	for _, door := range slowDoors {
		t.Run(door, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t, cfg)
				c := w.opens(door, "manual=", "user=alice")
				if c.rev == 4 {
					c.says("40")
				}
				c.wantsConnect("/")
				f(t, w, c)
			})
		})
	}
}

// drips a message of so many bytes at 20 KiB a second, and leaves its end to
// who calls.
func (c *ioClient) drips(n int) io.WriteCloser {
	m, err := c.webSocket().NextWriter(websocket.TextMessage)
	if err != nil {
		c.t.Fatal(err)
	}
	io.WriteString(m, `421["x","`)
	for ; n > 0; n -= 20 << 10 {
		io.WriteString(m, strings.Repeat("x", min(n, 20<<10)))
		time.Sleep(time.Second)
	}
	return m
}

// TestLargeMessageHasTheTimeThatItsSizeTakes: 16 KiB a second are enough.
func TestLargeMessageHasTheTimeThatItsSizeTakes(t *testing.T) {
	for _, limit := range []int{0, 500_000, -1} {
		t.Run(fmt.Sprintf("MaxPayload %d", limit), func(t *testing.T) {
			overSlowDoors(t, push.Config{
				OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) { return len(m.JSON(0)), nil },
				SocketIO:  push.SocketIO{MaxPayload: limit},
			}, func(t *testing.T, w *world, c *ioClient) {
				m := c.drips(400 << 10) // 20 s, behind a MessageTimeout of 10 s
				io.WriteString(m, `"]`)
				m.Close()
				c.wants(fmt.Sprintf("431[%d]", 400<<10+2))
				if s := w.Stats(); total(s.Limited) != 0 {
					t.Errorf("limited %v", s.Limited)
				}
			})
		})
	}
}

// TestMessageThatStandsStillIsCut when nothing has come of it for
// MessageTimeout.
func TestMessageThatStandsStillIsCut(t *testing.T) {
	overSlowDoors(t, push.Config{}, func(t *testing.T, w *world, c *ioClient) {
		c.drips(240 << 10) // 12 s
		begin := time.Now()
		end := c.end()
		if took := time.Since(begin) + time.Second; took < 10*time.Second || took > 12*time.Second || end.code != 1008 { // drips has slept behind the last
			t.Errorf("cut after %v, %v", took, end)
		}
		if s := w.Stats(); s.Limited["message_timeout"] != 1 {
			t.Errorf("limited %v", s.Limited)
		}
	})
}

// TestPongsDoNotExtendTheTimeOfHalfAMessage: neither they nor noops between the
// attachments. It is MessageTimeout, and over a WebSocket what a message of
// MaxPayload may take behind it.
func TestPongsDoNotExtendTheTimeOfHalfAMessage(t *testing.T) {
	for _, door := range []string{"socket.io.5 websocket", "socket.io.5 upgrade", "socket.io.5 polling"} {
		for limit, most := range map[int]time.Duration{32 << 10: 12 * time.Second, 0: 10*time.Second + 1_000_000*time.Second/(16<<10)} {
			if isPolling(door) {
				most = 10 * time.Second
			}
			for _, between := range []string{"3", "6"} {
				t.Run(fmt.Sprintf("%s MaxPayload %d packet %s", door, limit, between), func(t *testing.T) {
					inBubble(t, func(t *testing.T) {
						w := newWorld(t, push.Config{SocketIO: push.SocketIO{MaxPayload: limit, PingInterval: time.Hour}})
						c := w.opens(door, "manual=")
						c.says("40")
						c.wantsConnect("/")
						begin := time.Now()
						c.says(`452-["x",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`)
						c.wg.Go(func() {
							for {
								select {
								case <-time.After(700 * time.Millisecond):
									c.says(between)
								case <-c.done:
									return
								}
							}
						})
						select {
						case <-c.done:
						case <-time.After(5 * time.Minute):
						}
						if took := time.Since(begin); took < 10*time.Second || took > most+2*time.Second {
							t.Errorf("half a message lives for %v, want %v", took, most)
						}
						time.Sleep(31 * time.Second)
						if s := w.Stats(); s.Limited["message_timeout"] != 1 || s.Closed[push.ReasonProtocol] != 1 {
							t.Errorf("limited %v, closed %v", s.Limited, s.Closed)
						}
					})
				})
			}
		}
	}
}

// TestConnThatWasLeftIsNotReplaced: a client leaves a namespace while another
// one takes its place there. Its transport goes on, with the other namespaces.
func TestConnThatWasLeftIsNotReplaced(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var leaving *push.Conn
		inGate := make(chan struct{})
		w := newWorld(t, push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				if l.Token == "second" {
					close(inGate)
					for { // until it has begun to leave
						if d, _ := leaving.Push(ctx, push.Message{Data: opaque(11)}); d.Status == push.Offline {
							break
						}
						runtime.Gosched()
					}
				}
				return l.UserID, nil
			},
			DeviceClass: func(l *push.Login) string { return strings.TrimPrefix(l.Namespace, "/") },
			SocketIO:    push.SocketIO{Namespace: anySpace},
		})
		w.dialect = "socket.io.5 websocket"
		for round := range 100 {
			root := w.connect("root")
			chat := root.io.joins("/chat", "alice").isIn()
			leaving = chat.conn()
			for i := range 256 { // leaving them all takes a moment
				if err := leaving.Join(fmt.Sprint("room", i)); err != nil {
					t.Fatal(err)
				}
			}
			inGate = make(chan struct{})
			second := w.connect("other").io.joins("/chat", "alice", "token=second")
			<-inGate
			chat.leavesSpace()
			second.isIn()
			synctest.Wait()
			root.wantNothing()
			if n := w.Stats().Closed[push.ReasonReplaced]; n != 0 {
				t.Fatalf("round %d: %d are replaced", round, n)
			}
			root.io.over()
			second.io.over()
			synctest.Wait()
		}
	})
}

// TestLogNamesTheConnOfTheHandler, not another one of its client's.
func TestLogNamesTheConnOfTheHandler(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		book := &logBook{}
		w := newWorld(t, push.Config{
			Logger: slog.New(book),
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				if m.Event == "boom" {
					panic("boom")
				}
				return nil, errors.New("broken")
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		w.dialect = door
		root := w.connect("alice")
		chat := root.io.joins("/chat", "bob").isIn()
		news := root.io.joins("/news", "carol").isIn()
		lines := func(message string) (found []string) {
			for _, line := range book.at(slog.LevelDebug, "") {
				if strings.Contains(line, message) {
					found = append(found, line+" ")
				}
			}
			return found
		}
		for i, p := range []*page{root, chat, news, root} {
			id, user := p.conn().ID().String(), p.conn().UserID()
			p.asks(i, "fail", nil)
			p.wantAnswer(uint64(i), "", "internal error")
			if got := lines("handler failed"); len(got) != i+1 || !strings.Contains(got[i], " conn="+id+" ") || !strings.Contains(got[i], " user="+user+" ") {
				t.Errorf("a handler of %s (%s, %s) failed; the log has %q", p.space, id, user, got)
			}
		}
		id := chat.conn().ID().String()
		chat.emits(-1, "boom")
		root.end()
		if got := lines("hook panicked"); len(got) != 1 || !strings.Contains(got[0], " conn="+id+" ") {
			t.Errorf("a handler of /chat (%s) panicked; the log has %.300q", id, got)
		}
	})
}

// TestOldClientOverMaxConnsPerUserIsNotConnected: it is told, counts as one that
// is not connected, and has the time of one.
func TestOldClientOverMaxConnsPerUserIsNotConnected(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		if !isOld(door) {
			return
		}
		w := newWorld(t, push.Config{
			Limits:   push.Limits{MaxConnsPerUser: 1},
			SocketIO: push.SocketIO{ConnectTimeout: 10 * time.Second},
		})
		w.dialect = door
		first := w.connect("alice")
		begin := time.Now()
		c := w.opens(door, "user=alice")
		c.wants(`44"limit reached"`)
		if s := w.Stats(); s.Pending != 1 || s.Conns != 1 || s.Sockets != 2 || s.Refused["max_conns_per_user"] != 1 {
			t.Errorf("%+v", s)
		}
		c.wantsEnd(1008)
		if took := time.Since(begin); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("closed after %v, want 10 s", took)
		}
		time.Sleep(31 * time.Second) // for a poll that would hear of the end
		if s := w.Stats(); s.Pending != 0 || s.Conns != 1 || s.Sockets != 1 || s.Limited["connect_timeout"] != 1 || s.Closed[push.ReasonRefused] != 1 {
			t.Errorf("%+v", s)
		}
		first.wantNothing()

		// With no place left among those it is told all the same.
		w = newWorld(t, push.Config{Limits: push.Limits{MaxConnsPerUser: 1, MaxPending: 1}})
		w.dialect = door
		w.connect("alice")
		w.opens("socket.io.5 polling")
		c = w.opens(door, "user=alice")
		c.wants(`44"limit reached"`)
		if s := w.Stats(); s.Pending != 1 || s.Sockets != 3 {
			t.Errorf("%+v", s)
		}
		synctest.Wait()
		c.cuts()
		synctest.Wait()
		if s := w.Stats(); s.Pending != 1 || s.Sockets != 2 {
			t.Errorf("when it is gone: %+v", s)
		}
	})
}

// TestNamespaceHookChangesNothing of what Authenticate left.
func TestNamespaceHookChangesNothing(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				l.Rooms, l.Data = []string{"red", "green"}, "data"
				return l.UserID, nil
			},
			SocketIO: push.SocketIO{Namespace: func(ctx context.Context, name string, l *push.Login) error {
				if len(l.Rooms) != 2 || len(l.Tags) != 1 || l.Data != "data" || l.UserID != "alice" || l.Namespace != "/chat" {
					t.Errorf("the hook sees %+v", l)
				}
				l.UserID, l.DeviceID, l.Namespace, l.OS = "mallory", "another", "/news", "beos"
				l.Rooms = append(l.Rooms, "grey", "a\x00b")
				l.Tags = append(l.Tags, "more")
				l.Data, l.Expires = "changed", time.Now()
				return nil
			}},
		})
		w.dialect = door
		root := w.connect("root")
		chat := root.io.joins("/chat", "alice", "tag=one").isIn()
		c := chat.conn()
		if c == nil {
			t.Fatal("the device is another")
		}
		rooms := slices.Sorted(slices.Values(c.Rooms()))
		if c.UserID() != "alice" || c.Namespace() != "/chat" || c.Data() != "data" || !slices.Equal(rooms, []string{"green", "red"}) {
			t.Errorf("%s in %s with %v in %q", c.UserID(), c.Namespace(), c.Data(), rooms)
		}
		if l := c.Login(); l.UserID != "alice" || l.OS != "" || !slices.Equal(l.Tags, []string{"one"}) || !l.Expires.IsZero() {
			t.Errorf("logged in as %+v", l)
		}
		if r, err := w.Push(t.Context(), push.Audience{Room: "red", Namespace: "/chat"}, push.Message{}); err != nil || r.Targets != 1 {
			t.Error(r, err)
		}
		chat.wantPush("message")
		time.Sleep(5 * time.Second)
		chat.wantNothing()
		if s := w.Stats(); s.Rooms != 2+2 || s.Users != 2 || w.Online("mallory") {
			t.Errorf("%+v", s)
		}
	})
}

// TestNamespaceHookChangesNothingInPlace: what a Login points to is not changed
// either.
func TestNamespaceHookChangesNothingInPlace(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		refuse := true
		w := newWorld(t, push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				if l.Header("X-Own") != "mine" || l.Query("shop") != "7" {
					t.Errorf("the gate sees %q, %q", l.Header("X-Own"), l.Query("shop"))
				}
				l.Rooms = []string{"red", "green"}
				return l.UserID, nil
			},
			SocketIO: push.SocketIO{Namespace: func(ctx context.Context, name string, l *push.Login) error {
				l.Rooms[0], l.Tags[0] = "blue", "changed"
				l.Request.Header.Set("X-Own", "changed")
				l.Request.URL.RawQuery = "shop=8"
				if refuse {
					return push.Refuse("not yet")
				}
				return nil
			}},
		})
		c := w.opens(door, "shop=7", "@X-Own=mine")
		first := c.joins("/chat", "alice", "tag=one")
		if err := first.answered(); !strings.Contains(fmt.Sprint(err), "not yet") {
			t.Fatalf("answered %v", err)
		}
		refuse = false
		conn := c.joins("/chat", "alice", "tag=one").isIn().conn()
		rooms := slices.Sorted(slices.Values(conn.Rooms()))
		if tags := conn.Login().Tags; !slices.Equal(rooms, []string{"green", "red"}) || !slices.Equal(tags, []string{"one"}) {
			t.Errorf("in %q with %q", rooms, tags)
		}
	})
}

// opaque are n arguments of bytes.
func opaque(n int) push.Args {
	args := push.Args{}
	for i := range n {
		args = append(args, []byte{byte(i), 0xff})
	}
	return args
}

// jsonOf is what a page has of them that knows no bytes.
func jsonOf(args push.Args) string {
	b, _ := json.Marshal(args)
	return string(b)
}

// TestMoreThanTenBytesAreNotForEveryClient: they end its connection, or its
// program.
func TestMoreThanTenBytesAreNotForEveryClient(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: anySpace}})
		pages := map[*page]bool{} // whether it takes more than ten
		for _, door := range slices.Concat(dialectNames, socketIODoors, moreSocketIODoors) {
			w.dialect = door
			pages[w.connect("alice")] = !isSocketIO(door) || strings.HasPrefix(door, "socket.io.msgpack")
		}
		for _, n := range []int{10, 11, 12, 100} {
			for _, ack := range []push.Ack{0, push.AutoAck} {
				r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "x", Data: opaque(n), Ack: ack})
				want := map[push.Status]int{}
				for p, many := range pages {
					status := push.Sent
					if ack != 0 {
						status = push.Acked
					}
					if n > 10 && !many {
						status = push.Unsupported
					} else if m := p.wantPush("x"); !sameJSON(m.Data, jsonOf(opaque(n))) {
						t.Errorf("%s got %s", p.dialect, m.Data)
					}
					want[status]++
				}
				got := map[push.Status]int{}
				for _, d := range r.Deliveries {
					got[d.Status]++
					if (d.Status == push.Unsupported) != (n > 10 && (d.Protocol == "socket.io.4" || d.Protocol == "socket.io.5")) {
						t.Errorf("%d to %s: %v", n, d.Protocol, d.Status)
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(want) || n == 10 && err != nil {
					t.Errorf("%d arguments: %v, want %v (%v)", n, got, want, err)
				}
			}
		}
		w.dialect = "socket.io.4 polling"
		w.connect("bob")
		if r, err := w.PushToUser(t.Context(), "bob", push.Message{Data: append(opaque(11), "x")}); !errors.Is(err, push.ErrUnsupported) || r.Failed != 1 {
			t.Error(r, err)
		}
		for p := range pages {
			p.wantNothing()
		}
		if s := w.Stats(); total(s.Closed) != 0 || s.QueuedBytes != 0 || s.Flights != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestReplyOfMoreThanTenBytesIsAnError, and logged, where clients do not take
// it.
func TestReplyOfMoreThanTenBytesIsAnError(t *testing.T) {
	for _, door := range slices.Concat(dialectNames, socketIODoors, moreSocketIODoors) {
		t.Run(door, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				book := &logBook{}
				w := newWorld(t, push.Config{Logger: slog.New(book), OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
					var n int
					err := m.Decode(&n)
					return opaque(n), err
				}})
				w.dialect = door
				p := w.connect("alice")
				p.asks(1, "x", 10)
				p.wantAnswer(1, jsonOf(opaque(10)), "")
				if lines := book.at(slog.LevelWarn, ""); len(lines) != 0 {
					t.Errorf("the log has %q", lines)
				}
				p.asks(2, "x", 11)
				lines := 0
				if !isSocketIO(door) || p.io.packed {
					p.wantAnswer(2, jsonOf(opaque(11)), "")
				} else {
					p.wantAnswer(2, "", "internal error")
					lines = 1
				}
				if got := book.at(slog.LevelWarn, ""); len(got) != lines || lines == 1 && !strings.Contains(got[0], "handler failed") {
					t.Errorf("the log has %q", got)
				}
				p.asks(3, "x", 2)
				p.wantAnswer(3, jsonOf(opaque(2)), "")
			})
		})
	}
}

// TestEventNamedErrorReachesNoHandler: with the client's library it is a refusal.
func TestEventNamedErrorReachesNoHandler(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var d diary
		w := newWorld(t, push.Config{
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				d.note("%s", m.Event)
				return nil, nil
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		w.dialect = door
		p := w.connect("alice")
		chat := p.io.joins("/chat", "alice").isIn()
		p.emits(-1, "error")
		p.emits(1, "error", "no", 5)
		chat.emits(-1, "error", map[string]any{"message": "no"}, []byte("bytes"))
		p.asks(2, "errors", nil)
		p.wantAnswer(2, "", "")
		p.wantNothing()
		chat.wantNothing()
		d.want(t, "errors")
		if s := w.Stats(); s.Ignored != 3 || s.Received != 1 || s.Unhandled != 0 {
			t.Errorf("%d are ignored, %d received, %d unhandled", s.Ignored, s.Received, s.Unhandled)
		}
	})
}

// TestNotANumberIsNull, as JSON.stringify has it. Only msgpack can say it.
func TestNotANumberIsNull(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		if !strings.HasPrefix(door, "socket.io.msgpack") {
			return
		}
		var got string
		w := newWorld(t, push.Config{OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
			for i := range m.Args() {
				got += string(m.JSON(i)) + " "
			}
			var f *float64
			if err := m.Decode(&f); err != nil || f != nil {
				t.Errorf("decoded as %v, %v", f, err)
			}
			return nil, nil
		}})
		w.dialect = door
		p := w.connect("alice")
		p.io.sendsAll(packed(2, "/", 1, []any{
			"x", math.NaN(), float32(math.NaN()), math.Inf(1), float32(math.Inf(-1)), 1.5,
			map[string]any{"a": math.NaN()}, []any{math.Inf(-1), 2.5},
		}))
		p.wantAnswer(1, "", "")
		if want := `null null null null 1.5 {"a":null} [null,2.5] `; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		p.wantNothing()
	})
}

// TestRefusedRequestsAreCountedByWhy: a stale sid, what is too large, what is too
// slow, and what is tried too often are no bad requests.
func TestRefusedRequestsAreCountedByWhy(t *testing.T) {
	for _, rev := range []int{3, 4} {
		open := func(t *testing.T) (*world, *poller) {
			w := newWorld(t, push.Config{SocketIO: push.SocketIO{MaxPayload: 30_000}})
			return w, w.startsPolling(rev, "alice")
		}
		counts := func(w *world, kind string, counters map[string]uint64, want uint64) {
			w.t.Helper()
			s := w.Stats()
			if counters[kind] != want || total(s.Refused)+total(s.Limited) != want {
				w.t.Errorf("refused %v, limited %v, want %s %d", s.Refused, s.Limited, kind, want)
			}
		}
		t.Run(fmt.Sprintf("EIO %d stale sid", rev), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w, p := open(t)
				p.wants(p.posts("1"), 200, "ok")
				for i := range 3 {
					status, body := 0, ""
					switch i {
					case 0:
						a := <-p.gets()
						status, body = a.status, a.body
					case 1:
						a := p.posts("1")
						status, body = a.status, a.body
					case 2:
						status, _, body = w.fetch("GET", "/socket.io/?EIO=4&transport=polling&sid=madeup", nil, "")
					}
					if status != 400 || !sameJSON(json.RawMessage(body), `{"code":1,"message":"Session ID unknown"}`) {
						t.Errorf("request %d: %d %q", i, status, body)
					}
					counts(w, "unknown_sid", w.Stats().Refused, uint64(i+1))
				}
			})
		})
		t.Run(fmt.Sprintf("EIO %d too large", rev), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w, p := open(t)
				p.wants(p.posts(`42["x","`+strings.Repeat("x", 30_000)+`"]`), 413, "")
				counts(w, "max_message", w.Stats().Limited, 1)
				if !w.Online("alice") {
					t.Error("it was closed for that")
				}
			})
		})
		t.Run(fmt.Sprintf("EIO %d too slow", rev), func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w, p := open(t)
				nc, err := w.dial(t.Context(), "tcp", "")
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				fmt.Fprintf(nc, "POST %s HTTP/1.1\r\nHost: push.test\r\nContent-Type: text/plain\r\nContent-Length: 20000\r\n\r\n4", p.target)
				begin := time.Now()
				resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
				if err != nil || resp.StatusCode != 408 || time.Since(begin) > 12*time.Second {
					t.Errorf("after %v: %v, %v", time.Since(begin), resp, err)
				}
				counts(w, "message_timeout", w.Stats().Limited, 1)
			})
		})
	}
	t.Run("refused CONNECTs", func(t *testing.T) {
		overSocketIO(t, func(t *testing.T, door string) {
			w := newWorld(t, push.Config{})
			w.dialect = door
			p := w.connect("alice")
			for range 100 {
				p.io.sendsAll(p.io.connectPacket("/nowhere", nil))
				p.io.wantsRefusal("/nowhere", "Invalid namespace")
			}
			p.wantNothing()
			if s := w.Stats(); s.Limited["connects"] != 0 || s.Conns != 1 {
				t.Errorf("after 100: %+v", s)
			}
			p.io.enqueue(p.io.connectPacket("/nowhere", nil))
			if err := p.end(); endedWith(err, 4410) {
				t.Errorf("ended with %v", err)
			}
			time.Sleep(10 * time.Second)
			if s := w.Stats(); s.Limited["connects"] != 1 || s.Refused["bad_request"] != 0 || s.Closed[push.ReasonProtocol] != 1 {
				t.Errorf("limited %v, refused %v, closed %v", s.Limited, s.Refused, s.Closed)
			}
		})
	})
}

// TestEngineEndsWhateverPollersAreAt: a GET that is held, one that nobody reads,
// a POST that waits for a handler, an upgrade before and behind its probe.
func TestEngineEndsWhateverPollersAreAt(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *world) error{
		"Close":    func(t *testing.T, w *world) error { return w.Close() },
		"Shutdown": func(t *testing.T, w *world) error { return w.Shutdown(t.Context()) },
		"Shutdown in no time": func(t *testing.T, w *world) error {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			w.Shutdown(ctx)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			overSocketIO(t, func(t *testing.T, door string) {
				if !isPolling(door) {
					return
				}
				begun := make(chan struct{}, 10)
				w := newWorld(t, push.Config{
					Limits: push.Limits{InboxMessages: 1},
					OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
						begun <- struct{}{}
						<-ctx.Done()
						return nil, nil
					},
				})
				w.dialect = door
				held, posting := w.connect("held"), w.connect("posting")
				var packets []ioMessage
				for range 10 {
					packets = append(packets, posting.io.encode(2, "/", -1, "x")...)
				}
				posting.io.enqueue(packets...)
				<-begun
				unread := w.startsPolling(4, "unread")
				stuck := unread.unread()
				defer stuck.Close()
				var probes []*websocket.Conn
				probing := []*page{held, posting, w.connect("before"), w.connect("behind")}
				for i, p := range probing {
					ws, _, _, err := p.io.dialWebSocket()
					if err != nil {
						t.Fatal(err)
					}
					defer ws.Close()
					probes = append(probes, ws)
					if i == 3 {
						p.pause() // from 3probe on polls are answered at once
						ws.WriteMessage(websocket.TextMessage, []byte("2probe"))
						if _, b, err := ws.ReadMessage(); err != nil || string(b) != "3probe" {
							t.Fatalf("%q, %v", b, err)
						}
					}
				}
				synctest.Wait()
				if _, err := w.PushToUser(t.Context(), "unread", block(1, 200<<10)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()

				begin := time.Now()
				if err := end(t, w); err != nil {
					t.Error(err)
				}
				if took := time.Since(begin); took > 10*time.Second {
					t.Errorf("it took %v", took)
				}
				begin = time.Now()
				for i, ws := range probes {
					if _, b, err := ws.ReadMessage(); err == nil || time.Since(begin) > time.Second {
						t.Errorf("probe %d got %q after %v", i, b, time.Since(begin))
					}
				}
				for _, p := range probing {
					p.resume()
					if err := p.end(); endedWith(err, 4410) {
						t.Errorf("%s ended with %v", p.device, err)
					}
				}
				w.wantSocketsGone()
				wantEnded(t, w.Engine)
				// Nobody is in a request any more.
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				defer cancel()
				if err := w.server.Shutdown(ctx); err != nil {
					t.Errorf("the server's end: %v", err)
				}
			})
		})
	}
}

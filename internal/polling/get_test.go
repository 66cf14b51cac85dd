package polling

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

func TestGETTakesEverythingThatIsQueued(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		c.send("one")
		c.send("two")
		c.send("€😀")
		want := body(rev, "4one", "4two", "4€😀")
		if rev == eio.V3 {
			want = "4:4one4:4two4:4€😀" // the last: 4, € and a surrogate pair
		}
		a := c.get()
		a.want(t, 200, want)
		if got := a.Header.Get("Content-Type"); got != "text/plain; charset=UTF-8" {
			t.Errorf("Content-Type is %q", got)
		}
		if a.ContentLength != int64(len(want)) {
			t.Errorf("Content-Length is %d, want %d", a.ContentLength, len(want))
		}
	})
}

func TestGETIsHeldUntilThereIsSomething(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		for _, text := range []string{"first", "second", strings.Repeat("x", 300_000)} {
			done := c.hold()
			time.Sleep(10 * time.Minute)
			c.send(text)
			(<-done).want(t, 200, body(rev, "4"+text))
		}
		c.wantWhole()
	})
}

func TestBytesComeAsTheClientCanTakeThem(t *testing.T) {
	for _, row := range []struct {
		rev              eio.Revision
		more, kind, want string
	}{
		{eio.V3, "", "application/octet-stream", "\x00\x02\xff4x\x01\x03\xff\x04\xfe\xff"},
		{eio.V3, "&b64=1", "text/plain; charset=UTF-8", "2:4x6:b4/v8="},
		{eio.V4, "", "text/plain; charset=UTF-8", "4x\x1eb/v8="},
	} {
		inBubble(t, func(t *testing.T) {
			g := newRig(t, nil)
			c := g.begin(row.rev, row.more)
			c.send("x")
			c.nc.Write(eio.AppendBinary(nil, row.rev, []byte{0xfe, 0xff}))
			a := c.get()
			a.want(t, 200, row.want)
			if got := a.Header.Get("Content-Type"); got != row.kind {
				t.Errorf("Content-Type is %q, want %q", got, row.kind)
			}
		})
	}
}

func TestSecondGETEndsTheSession(t *testing.T) {
	for _, shuts := range []bool{false, true} {
		both(t, func(t *testing.T, rev eio.Revision) {
			g := newRig(t, nil)
			c := g.begin(rev, "")
			c.shuts = shuts
			done := c.hold()
			second := c.get()
			second.want(t, 400, "")
			(<-done).want(t, 200, body(rev, "1"))
			c.wantBroken(wire.Policy)
			g.wantRefused(WhyOverlap, 1)
			c.get().wantCode(t, UnknownSID)
			g.wantLen(0)
		})
	}
}

func TestGETWhoseClientGoesAwayEndsTheSession(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if a := g.do(ctx, "GET", c.query, nil); !errors.Is(a.err, context.DeadlineExceeded) {
			t.Errorf("the GET was answered: %v", a)
		}
		c.wantBroken(0)
		c.get().wantCode(t, UnknownSID)
		g.wantLen(0)
	})
}

func TestShutSessionGivesAllThatIsQueuedAndAClosePacket(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		held, queued := g.begin(rev, ""), g.begin(rev, "")
		done := held.hold()
		held.shut()
		(<-done).want(t, 200, body(rev, "1"))
		queued.send("last")
		queued.shut()
		time.Sleep(20 * time.Second)
		queued.get().want(t, 200, body(rev, "4last", "1"))
		g.wantLen(0)
		for _, c := range []*session{held, queued} {
			c.get().wantCode(t, UnknownSID)
			if len(c.broken) > 0 {
				t.Errorf("broken: %v", c.broken)
			}
		}
	})
}

func TestShutWithoutAFrameStillEndsWithAClosePacket(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		done := c.hold()
		c.nc.Shut(nil, false, time.Minute)
		(<-done).want(t, 200, body(rev, "1"))
		g.wantLen(0)
	})
}

func TestClosedSessionAnswersItsGETWithAClosePacket(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		done := c.hold()
		c.nc.Close()
		(<-done).want(t, 200, body(rev, "1"))
		g.wantLen(0)
	})
}

func TestGoodbyeByPOSTEndsThePendingGETWithANoop(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		done := c.hold()
		c.post(body(rev, "4x", "1")).want(t, 200, "ok")
		(<-done).want(t, 200, body(rev, "6"))
		c.wantGot("x")
		c.get().wantCode(t, UnknownSID)
		c.post(body(rev, "4x")).wantCode(t, UnknownSID)
		g.wantLen(0)
		if len(c.broken) > 0 {
			t.Errorf("broken: %v", c.broken)
		}
	})
}

// A server that gives requests a second still holds GETs and reads slowly, over
// HTTP/1.1 and HTTP/2.
func TestTimeoutsOfTheServerDoNotCutAHold(t *testing.T) {
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	for name, protocols := range map[string]*http.Protocols{"HTTP/1.1": &h1, "HTTP/2": &h2} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, rev eio.Revision) {
				g := newRig(t, func(_ *Config, s *http.Server) {
					s.ReadTimeout, s.WriteTimeout, s.IdleTimeout = time.Second, time.Second, time.Hour
					s.Protocols = protocols
				})
				c := g.begin(rev, "")
				for _, text := range []string{"one", "two", "three"} {
					done := c.hold()
					time.Sleep(5 * time.Second)
					c.post(body(rev, "4"+text)).want(t, 200, "ok")
					c.send(text)
					(<-done).want(t, 200, body(rev, "4"+text))
				}
				c.stall(true)
				posted := make(chan answer, 1)
				go func() { posted <- c.post(body(rev, "4late")) }()
				time.Sleep(5 * time.Second)
				c.stall(false)
				(<-posted).want(t, 200, "ok")
				c.wantGot("one", "two", "three", "late")
				c.wantWhole()
			})
		})
	}
}

func TestDeadlinesOfAnAnswerDoNotReachTheNextRequest(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		mux := http.NewServeMux()
		mux.Handle("/", g.s)
		mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Hour)
			io.WriteString(w, "slow")
		})
		g.http.Handler = mux
		c := g.begin(eio.V4, "")
		c.send("x")
		c.get().want(t, 200, "4x")
		c.post("4x").want(t, 200, "ok")
		resp, err := g.client.Get("http://push.example/slow")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "slow" {
			t.Errorf("got %q, %v", b, err)
		}
	})
}

// A client that does not read its answer has it cut, and what it took is lost.
func TestAnswerThatIsNotReadEndsTheSession(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		conn, err := g.ln.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		const size = 800_000
		c.send(strings.Repeat("x", size))
		io.WriteString(conn, "GET /socket.io/?"+c.query+" HTTP/1.1\r\nHost: push.example\r\n\r\n")
		begin := time.Now()
		synctest.Wait()
		c.wantWhole()
		for !func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.closed }() {
			time.Sleep(time.Second)
			if time.Since(begin) > 2*time.Minute {
				t.Fatal("it is never cut")
			}
		}
		if got, least := time.Since(begin), 10*time.Second+size*time.Second/minRate; got < least {
			t.Errorf("cut after %v, want %v at least", got, least)
		}
		c.wantBroken(0)
	})
}

func TestGETsOfOneClientMayFollowEachOtherOnDifferentConnections(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		transport := g.client.Transport.(*http.Transport)
		for i := range 200 {
			if i%2 == 0 {
				transport.CloseIdleConnections()
			}
			text := strings.Repeat("x", 1+i*200)
			c.send(text)
			c.get().want(t, 200, body(rev, "4"+text))
		}
		c.wantWhole()
		g.wantRefused(WhyOverlap, 0)
	})
}

// A ResponseWriter that can do nothing, as behind a bad middleware, is enough.
type bare struct {
	header http.Header
	status int
	body   strings.Builder
}

func (b *bare) Header() http.Header         { return b.header }
func (b *bare) WriteHeader(status int)      { b.status = status }
func (b *bare) Write(p []byte) (int, error) { return b.body.Write(p) }

func TestResponseWriterMayBeBare(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		c := g.begin(eio.V4, "")
		for _, method := range []string{"GET", "POST"} {
			c.send("x")
			w := &bare{header: http.Header{}}
			r, _ := http.NewRequest(method, "/socket.io/?"+c.query, strings.NewReader("4y"))
			if method == "GET" {
				r.Body, r.ContentLength = http.NoBody, 0
			}
			g.s.ServeHTTP(w, r)
			if want := map[string]string{"GET": "4x", "POST": "ok"}[method]; w.status != 200 || w.body.String() != want {
				t.Errorf("%s: %d %q, want %q", method, w.status, &w.body, want)
			}
		}
		c.wantGot("y")
		c.wantWhole()
	})
}

func TestControlFramesInTheQueueAreNotPackets(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		c := g.begin(eio.V4, "")
		c.nc.Write(ws.AppendFrame(nil, ws.Ping, nil))
		c.get().want(t, 200, "6")
		c.wantWhole()
	})
}

package polling

import (
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/eio"
)

// poll is what a polling client does until it is paused: it GETs, and hands
// over the packets that came.
func (c *session) poll(paused <-chan struct{}, packet func(string)) {
	for {
		select {
		case <-paused:
			return
		default:
		}
		a := c.get()
		if a.err != nil || a.StatusCode != 200 {
			c.g.t.Errorf("a GET got %v %v %q", a.err, a.Response, a.body)
			return
		}
		reader := eio.NewReader(c.p.rev, -1)
		reader.Body(false)
		for in := []byte(a.body); len(in) > 0; {
			var p eio.Packet
			n, err := reader.Next(in, &p)
			if err != nil {
				c.g.t.Errorf("body %q: %v", a.body, err)
				return
			}
			in = in[n:]
			if p.Type != 0 {
				packet(string(p.Type) + string(p.Data))
			}
		}
	}
}

func TestUpgradeLosesDoublesAndReordersNothing(t *testing.T) {
	const count = 400
	for seed := range uint64(10) {
		both(t, func(t *testing.T, rev eio.Revision) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			g := newRig(t, nil)
			g.net.SetDelay(time.Millisecond, 5*time.Millisecond)
			c := g.begin(rev, "")
			var want []string
			for i := range count {
				want = append(want, fmt.Sprint(i))
			}

			var wg sync.WaitGroup
			wg.Go(func() { // the server sends
				for _, text := range want {
					c.send(text)
					if rnd.IntN(3) > 0 {
						time.Sleep(time.Millisecond)
					}
				}
			})

			// The client: GETs, POSTs, and in the middle of it an upgrade.
			var heard []string
			hear := func(packet string) {
				if text, ok := strings.CutPrefix(packet, "4"); ok {
					heard = append(heard, text)
				} else if packet != "6" {
					t.Errorf("heard %q", packet)
				}
			}
			paused := make(chan struct{})
			var transport sync.WaitGroup
			transport.Go(func() { c.poll(paused, hear) })
			said := 0
			transport.Go(func() {
				for ; ; said++ {
					select {
					case <-paused:
						return
					default:
						c.post(body(rev, "4"+want[said])).want(t, 200, "ok")
					}
				}
			})
			time.Sleep(50 * time.Millisecond)
			s := c.socket()
			s.say("2probe")
			s.hear("3probe")
			time.Sleep(10 * time.Millisecond)
			close(paused)
			transport.Wait()
			if len(heard) == 0 || len(heard) == count || said == 0 {
				t.Errorf("before the upgrade %d were heard and %d said", len(heard), said)
			}
			s.say("5")
			for _, text := range want[said:] { // right behind it
				s.say("4" + text)
			}
			for len(heard) < count {
				_, b, err := s.ReadMessage()
				if err != nil {
					t.Fatal(err)
				}
				hear(string(b))
			}
			wg.Wait()
			time.Sleep(time.Second)
			if got := strings.Join(heard, " "); got != strings.Join(want, " ") {
				t.Errorf("heard %s", got)
			}
			c.wantGot(want...)
			c.wantWhole()
			if c.upgraded != 1 {
				t.Errorf("Upgraded was called %d times", c.upgraded)
			}
		})
	}
}

func TestPollingIsOverAfterTheUpgrade(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		c.send("queued")
		s := c.upgrade()
		s.hear("4queued")
		c.get().wantCode(t, BadRequest)
		c.post(body(rev, "4x")).wantCode(t, BadRequest)
		g.wantLen(1)
		s.say("4hello")
		time.Sleep(time.Hour)
		c.wantGot("hello")
		c.send("late")
		s.hear("4late")
		s.Close()
		g.wantLen(0)
		c.get().wantCode(t, UnknownSID)
	})
}

func (c *session) upgrade() *socket {
	c.g.t.Helper()
	s := c.socket()
	s.say("2probe")
	s.hear("3probe")
	s.say("5")
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.upgraded != 1 {
		c.g.t.Errorf("Upgraded was called %d times", c.upgraded)
	}
	return s
}

func TestGETsEndWithANoopWhileAWebSocketIsProbed(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		pending := c.hold()
		s := c.socket()
		time.Sleep(time.Second)
		if len(pending) > 0 {
			t.Error("the GET ended before the probe")
		}
		s.say("2probe")
		s.hear("3probe")
		(<-pending).want(t, 200, body(rev, "6"))
		c.get().want(t, 200, body(rev, "6"))
		c.send("x")
		c.get().want(t, 200, body(rev, "4x"))
		c.post(body(rev, "4y")).want(t, 200, "ok")
		s.Close()
		time.Sleep(time.Second)
		again := c.hold()
		c.send("z")
		(<-again).want(t, 200, body(rev, "4z"))
		c.wantWhole()
		c.upgrade()
	})
}

func TestGETThatIsPendingAtTheUpgradeTakesNothing(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		pending := c.hold()
		c.p.mu.Lock() // as if the WebSocket had been probed and nothing told the GET
		c.p.upgraded = true
		c.p.mu.Unlock()
		c.send("x")
		(<-pending).want(t, 200, body(rev, "6"))
		if _, n := c.nc.Queued(); n != 1 {
			t.Errorf("%d are queued, want 1", n)
		}
	})
}

func TestFailedUpgradeClosesTheWebSocketAlone(t *testing.T) {
	for name, row := range map[string]struct {
		try func(s *socket)
		why Why
	}{
		"other packet":          {func(s *socket) { s.say("4hello") }, WhyBadRequest},
		"ping without probe":    {func(s *socket) { s.say("2") }, WhyBadRequest},
		"upgrade without probe": {func(s *socket) { s.say("5") }, WhyBadRequest},
		"probe twice":           {func(s *socket) { s.say("2probe"); s.hear("3probe"); s.say("2probe") }, WhyBadRequest},
		"message after probe":   {func(s *socket) { s.say("2probe"); s.hear("3probe"); s.say("4x") }, WhyBadRequest},
		"bytes":                 {func(s *socket) { s.WriteMessage(websocket.BinaryMessage, []byte("\x04probe")) }, WhyBadRequest},
		"too long":              {func(s *socket) { s.say("2" + strings.Repeat("probe", 100)) }, WhyBadRequest},
		"empty":                 {func(s *socket) { s.say("") }, WhyBadRequest},
		"close frame":           {func(s *socket) { s.WriteMessage(websocket.CloseMessage, []byte{3, 232}) }, WhyBadRequest},
		"not masked":            {func(s *socket) { s.NetConn().Write([]byte("\x81\x062probe")) }, WhyBadRequest},
		"nothing":               {func(s *socket) {}, WhySlow},
		"nothing after probe":   {func(s *socket) { s.say("2probe"); s.hear("3probe") }, WhySlow},
		"pings without end":     {pingsWithoutEnd, WhySlow},
		"half a frame":          {func(s *socket) { s.NetConn().Write([]byte{0x81}) }, WhySlow},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, rev eio.Revision) {
				g := newRig(t, nil)
				c := g.begin(rev, "")
				begin := time.Now()
				s := c.socket()
				row.try(s)
				s.wantEnd()
				if took := time.Since(begin); took > 11*time.Second || row.why == WhySlow && took < 10*time.Second {
					t.Errorf("it took %v", took)
				}
				time.Sleep(2 * time.Second)
				g.wantRefused(row.why, 1)
				if s := c.p; s.probing || s.probed || s.probe != nil {
					t.Error("the place is not free")
				}
				pending := c.hold()
				c.send("x")
				(<-pending).want(t, 200, body(rev, "4x"))
				c.post(body(rev, "4y")).want(t, 200, "ok")
				c.wantGot("y")
				c.wantWhole()
				c.upgrade().say("4z")
				synctest.Wait()
				c.wantGot("y", "z")
			})
		})
	}
}

func pingsWithoutEnd(s *socket) {
	pongs := 0
	s.SetPongHandler(func(string) error { pongs++; return nil })
	go func() {
		for s.WriteMessage(websocket.PingMessage, []byte("x")) == nil {
			time.Sleep(time.Second)
		}
	}()
}

func TestSecondWebSocketIsClosedAndTheFirstGoesOn(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		first := c.socket()
		c.socket().wantEnd()
		first.say("2probe")
		first.hear("3probe")
		c.socket().wantEnd()
		first.say("5")
		synctest.Wait()
		second := c.socket()
		second.say("2probe")
		second.wantEnd()
		g.wantRefused(WhyOverlap, 3)
		c.send("x")
		first.hear("4x")
		c.wantWhole()
	})
}

func TestUpgradeDuringAPOSTFailsAndThePOSTIsTaken(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		c.stall(true)
		posted := make(chan answer, 1)
		go func() { posted <- c.post(body(rev, "4x")) }()
		synctest.Wait()
		s := c.socket()
		s.say("2probe")
		s.hear("3probe")
		s.say("5")
		s.wantEnd()
		time.Sleep(2 * time.Second)
		c.stall(false)
		(<-posted).want(t, 200, "ok")
		c.wantGot("x")
		c.wantWhole()
		c.upgrade()
	})
}

func TestSessionThatEndsDuringTheProbeClosesTheSocket(t *testing.T) {
	for _, probed := range []bool{false, true} {
		both(t, func(t *testing.T, rev eio.Revision) {
			g := newRig(t, nil)
			c := g.begin(rev, "")
			s := c.socket()
			if probed {
				s.say("2probe")
				s.hear("3probe")
			}
			begin := time.Now()
			c.nc.Close()
			s.wantCut()
			if took := time.Since(begin); took > time.Second {
				t.Errorf("it took %v", took)
			}
			g.wantLen(0)
			g.wantRefused(WhySlow, 0)
		})
	}
}

// A session that is shut when the upgrade completes says goodbye over the
// WebSocket.
func TestSessionShutDuringTheProbeGivesItsQueueToTheWebSocket(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		s := c.socket()
		s.say("2probe")
		s.hear("3probe")
		c.send("last")
		c.shut()
		s.say("5")
		s.hear("4last")
		s.wantEnd()
		time.Sleep(2 * time.Second)
		g.wantLen(0)
	})
}

func TestEndMayComeAtAnyMoment(t *testing.T) {
	for i := range 40 {
		both(t, func(t *testing.T, rev eio.Revision) {
			g := newRig(t, nil)
			g.net.SetDelay(time.Millisecond, 5*time.Millisecond)
			c := g.begin(rev, "")
			time.AfterFunc(time.Duration(i)*time.Millisecond, func() {
				switch i % 4 {
				case 0:
					c.nc.Close()
				case 1:
					c.shut()
				case 2:
					c.p.Goodbye()
					c.nc.Close()
				case 3:
					c.p.fail(errOverlap)
				}
			})
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					for c.get().StatusCode == 200 {
					}
				})
				wg.Go(func() {
					for c.post(body(rev, "4x")).StatusCode == 200 {
					}
				})
				wg.Go(func() {
					d := websocket.Dialer{NetDialContext: g.ln.DialContext}
					conn, _, err := d.DialContext(t.Context(), "ws://push.example/?"+strings.Replace(c.query, "=polling", "=websocket", 1), nil)
					if err != nil {
						return
					}
					defer conn.Close()
					conn.WriteMessage(websocket.TextMessage, []byte("2probe"))
					conn.ReadMessage()
					conn.WriteMessage(websocket.TextMessage, []byte("5"))
					conn.ReadMessage()
				})
			}
			wg.Wait()
			time.Sleep(time.Minute)
			g.wantLen(0)
		})
	}
}

func TestSocketThatCannotBeTakenOverLeavesPollingAlone(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		r := httptest.NewRequest("GET", "/?"+strings.Replace(c.query, "=polling", "=websocket", 1), nil)
		for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="} {
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder() // no Hijacker
		g.s.ServeHTTP(w, r)
		if w.Code != 500 {
			t.Errorf("got %d %q, want 500", w.Code, w.Body)
		}
		c.upgrade()
		c.wantWhole()
	})
}

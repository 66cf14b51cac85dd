package relay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/polling"
)

// third adds a node, on which sessions can begin, too.
func (p *pair) third() *station {
	p.t.Helper()
	st := p.newStation("10.0.0.3", []byte(strings.Repeat("\x07", 32)), nil)
	p.t.Cleanup(func() {
		st.client.CloseIdleConnections()
		st.http.Close()
		st.relay.Close()
		st.d.Close()
	})
	synctest.Wait()
	return st
}

// beginAt makes a session at a node.
func (p *pair) beginAt(st *station, rev eio.Revision) *session {
	p.t.Helper()
	holder := p.holder
	p.holder = st
	defer func() { p.holder = holder }()
	return p.begin(rev)
}

// wantNoUpgrade wants a request for a WebSocket refused.
func (c *session) wantNoUpgrade() {
	c.t.Helper()
	d := websocket.Dialer{NetDialContext: c.via.ln.DialContext}
	_, resp, err := d.DialContext(c.t.Context(), "ws://push.example/socket.io/?"+strings.Replace(c.query, "transport=polling", "transport=websocket", 1), nil)
	if err == nil || resp == nil || resp.StatusCode != 503 || !resp.Close {
		c.t.Errorf("the upgrade got %v, %v, want 503 and the connection closed", resp, err)
	}
}

func (a answer) wantParting(t *testing.T) {
	t.Helper()
	if a.err != nil || !a.Close {
		t.Errorf("after %v, %v the client may keep its connection", a.Response, a.err)
	}
}

func TestDrainSendsClientsElsewhere(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, func(_ *station, c *Config, _ *polling.Config) { c.MaxRequests, c.MaxBody = 2, 1000 })
		c, d := p.begin(rev), p.begin(rev)
		if a := c.post(body(rev, "4x")); a.Close {
			t.Error("a connection was closed before there was a reason")
		}
		done := c.hold()
		p.entry.relay.Drain()
		p.entry.relay.Drain()
		a := c.post(body(rev, "4y")) // it is relayed as before
		a.want(t, 200, "ok")
		a.wantParting(t)
		time.Sleep(20 * time.Second)
		c.send("x")
		a = <-done
		a.want(t, 200, body(rev, "4x"))
		a.wantParting(t)
		c.wantGot("x", "y")

		// What is refused, by the holder or here.
		d.nc.Close()
		synctest.Wait()
		a = d.get()
		a.wantUnknown(t)
		a.wantParting(t)
		a = c.post(body(rev, "4"+strings.Repeat("x", 1000)))
		a.want(t, 413, "")
		a.wantParting(t)
		c.wantNoUpgrade()
		first, second := c.hold(), p.begin(rev).hold()
		a = c.post(body(rev, "4z"))
		a.wantUnavailable(t)
		a.wantParting(t)
		p.holder.relay.Close()
		for _, done := range []<-chan answer{first, second} {
			a = <-done
			a.wantUnavailable(t)
			a.wantParting(t)
		}
	})
}

// HTTP/2 has no such header, but net/http ends the connection all the same, when
// all that goes on there has ended.
func TestDrainSendsClientsOfHTTP2Elsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h2 http.Protocols
		h2.SetUnencryptedHTTP2(true)
		p := newPair(t, func(st *station, _ *Config, _ *polling.Config) { st.http.Protocols = &h2 })
		p.net.SetDelay(time.Millisecond, 3*time.Millisecond)
		var dials atomic.Int64
		p.entry.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return p.entry.ln.DialContext(ctx, network, addr)
		}
		c, d := p.begin(eio.V4), p.begin(eio.V4)
		done := d.hold()
		p.entry.relay.Drain()
		for i := range 3 {
			c.send("x")
			c.get().want(t, 200, "4x")
			c.post("4y").want(t, 200, "ok")
			time.Sleep(10 * time.Second)
			if n := dials.Load(); n < int64(i+1) {
				t.Errorf("after %d answers there were %d connections", i, n)
			}
		}
		d.send("x")
		(<-done).want(t, 200, "4x")
		if n := p.entry.relay.Stats().Relayed; n != 7 {
			t.Errorf("Relayed = %d, want 7", n)
		}
	})
}

func TestReleaseLetsHeldGETsGoAndSessionsLive(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		c := p.third()
		p.net.SetDelay(time.Millisecond, 3*time.Millisecond)
		var all []*session
		var held []<-chan answer
		for _, st := range []*station{p.holder, c} {
			for range 20 {
				s := p.beginAt(st, rev)
				all, held = append(all, s), append(held, s.hold())
			}
		}
		begin := time.Now()
		if err := p.entry.relay.Release(t.Context()); err != nil {
			t.Errorf("Release: %v", err)
		}
		if took := time.Since(begin); took > 20*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		for _, done := range held {
			a := <-done
			a.want(t, 200, body(rev, "6"))
			a.wantParting(t)
			if got := a.Header.Get("Content-Type"); got != "text/plain; charset=UTF-8" {
				t.Errorf("Content-Type is %q", got)
			}
		}
		p.entry.relay.Close()
		for i, s := range all {
			s.wantWhole()
			s.via = []*station{c, p.holder}[i/20] // the other one
			done := s.hold()
			s.send("x")
			(<-done).want(t, 200, body(rev, "4x"))
		}
		if s := p.entry.relay.Stats(); s.Relayed != 40 || s.Running+int64(s.Broken+s.Lost+s.Left+s.Late) > 0 {
			t.Errorf("the entry counted %+v", s)
		}
		if n := p.holder.relay.Stats().Releases; n != 1 {
			t.Errorf("the holder was asked %d times, want once for all", n)
		}
	})
}

// As many requests as a connection takes leave room to ask.
func TestReleaseIsAskedForOverAFullConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		letGo := make(chan struct{})
		p := newPair(t, func(_ *station, c *Config, _ *polling.Config) {
			c.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-letGo })
		})
		var wg sync.WaitGroup
		for range maxStreams {
			wg.Go(func() {
				p.entry.relay.Forward(httptest.NewRecorder(), httptest.NewRequest("GET", "/socket.io/", nil), p.holder.ip)
			})
		}
		synctest.Wait()
		over := make(chan error, 1)
		go func() { over <- p.entry.relay.Release(t.Context()) }()
		synctest.Wait()
		if n, dials := p.holder.relay.Stats().Releases, p.entry.dials.Load(); n != 1 || dials != 1 {
			t.Errorf("the holder was asked %d times over %d connections, want once over one", n, dials)
		}
		close(letGo)
		if err := <-over; err != nil {
			t.Errorf("Release: %v", err)
		}
		wg.Wait()
	})
}

func TestReleaseWaitsForPOSTs(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		c := p.begin(rev)
		c.stall(true)
		posted := make(chan answer, 1)
		go func() { posted <- c.post(body(rev, "4x")) }()
		time.Sleep(time.Second)
		over := make(chan error, 1)
		go func() { over <- p.entry.relay.Release(t.Context()) }()
		time.Sleep(time.Minute)
		if len(over)+len(posted) > 0 {
			t.Error("the POST was not waited for")
		}
		c.stall(false)
		(<-posted).want(t, 200, "ok")
		if err := <-over; err != nil {
			t.Errorf("Release: %v", err)
		}
		c.wantGot("x")
		c.wantWhole()
	})
}

// A client that knows no other node asks again at once.
func TestRequestsThatComeDuringReleaseAreRelayedAndLetGo(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		p.net.SetDelay(time.Millisecond, 3*time.Millisecond)
		c, slow := p.begin(rev), p.begin(rev)
		slow.stall(true) // so that it goes on
		posted := make(chan answer, 1)
		go func() { posted <- slow.post(body(rev, "4x")) }()
		time.Sleep(time.Second)
		begin := time.Now()
		over := make(chan error, 1)
		go func() { over <- p.entry.relay.Release(t.Context()) }()
		noops := 0
		for i := 0; ; i++ {
			c.post(body(rev, fmt.Sprint("4", i))).want(t, 200, "ok")
			a := c.get()
			if a.err == nil && a.StatusCode == 503 {
				a.wantUnavailable(t)
				break
			}
			a.want(t, 200, body(rev, "6"))
			a.wantParting(t)
			noops++
			if len(over) > 0 || time.Since(begin) > time.Minute {
				t.Fatal("nothing ends it")
			}
			if time.Since(begin) > 1900*time.Millisecond {
				break
			}
		}
		if noops < 7 || noops > 9 {
			t.Errorf("%d GETs were let go in 2 s, want 4 a second", noops)
		}
		time.Sleep(time.Second)
		c.get().wantUnavailable(t)
		c.post(body(rev, "4x")).wantUnavailable(t)
		if n := p.entry.relay.Stats().Late; n < 2 {
			t.Errorf("Late = %d", n)
		}
		c.wantWhole()
		if len(over) > 0 {
			t.Error("Release did not wait")
		}
		slow.stall(false)
		(<-posted).want(t, 200, "ok")
		if err := <-over; err != nil {
			t.Errorf("Release: %v", err)
		}
	})
}

func TestEventsComeAtOnceDuringRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c, slow := p.begin(eio.V4), p.begin(eio.V4)
		slow.stall(true)
		go slow.post("4x")
		time.Sleep(time.Second)
		go p.entry.relay.Release(t.Context())
		synctest.Wait()
		done := c.hold()
		begin := time.Now()
		c.send("x")
		(<-done).want(t, 200, "4x")
		if took := time.Since(begin); took > 0 {
			t.Errorf("it took %v", took)
		}
		slow.stall(false)
	})
}

func TestHolderThatDoesNotAnswerDelaysNoOthers(t *testing.T) {
	for name, said := range map[string]string{"is silent": "", "knows no release": "HTTP/1.1"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, nil)
				if said == "" {
					p.nonsense("10.0.0.3", "")
				} else { // an HTTP/2 server that holds GETs and refuses the rest
					var h2 http.Protocols
					h2.SetUnencryptedHTTP2(true)
					ln := p.listen(p.net.Host("10.0.0.3"), relayPort)
					s := &http.Server{Protocols: &h2, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.Method != "GET" {
							w.WriteHeader(400)
							return
						}
						<-r.Context().Done()
					})}
					go s.Serve(ln)
					t.Cleanup(func() { s.Close() })
				}
				sid, _ := polling.NewSids(tagOf("10.0.0.3"), []byte(strings.Repeat("\x07", 32))).Make()
				stuck := make(chan answer, 1)
				go func() {
					stuck <- p.entry.do(t.Context(), "GET", "EIO=4&transport=polling&sid="+sid, nil)
				}()
				time.Sleep(100 * time.Millisecond)
				c := p.begin(eio.V4)
				done := c.hold()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				begin := time.Now()
				over := make(chan error, 1)
				go func() { over <- p.entry.relay.Release(ctx) }()
				(<-done).want(t, 200, "6")
				if took := time.Since(begin); took > 0 {
					t.Errorf("it took %v", took)
				}
				if err := <-over; err != context.DeadlineExceeded {
					t.Errorf("Release: %v", err)
				}
				if took := time.Since(begin); took != 5*time.Second {
					t.Errorf("Release took %v", took)
				}
				if len(stuck) > 0 {
					t.Error("the GET has an answer that nobody gave")
				}
				p.entry.relay.Close()
				a := <-stuck
				a.wantUnavailable(t)
				a.wantParting(t)
				c.wantWhole()
			})
		})
	}
}

// What others relay to this node is answered before its connections are cut.
func TestReleaseWaitsForWhatOthersRelayHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		done := p.begin(eio.V4).hold()
		over := make(chan error, 1)
		go func() { over <- p.holder.relay.Release(t.Context()) }()
		time.Sleep(time.Minute)
		if len(over)+len(done) > 0 {
			t.Error("it did not wait")
		}
		for _, h := range p.hosts {
			h.shut()
		}
		(<-done).want(t, 200, "1")
		if err := <-over; err != nil {
			t.Errorf("Release: %v", err)
		}
	})
}

func TestReleaseOfASessionThatIsJustUpgradedHarmsNothing(t *testing.T) {
	for _, probed := range []bool{false, true} {
		for _, through := range []string{"entry", "holder"} { // what the WebSocket goes through
			t.Run(fmt.Sprint(through, "/", probed), func(t *testing.T) {
				both(t, func(t *testing.T, rev eio.Revision) {
					p := newPair(t, nil)
					p.net.SetDelay(time.Millisecond, 3*time.Millisecond)
					c := p.begin(rev)
					pending := c.hold()
					near := *c
					near.via = p.holder
					s := map[string]*session{"entry": c, "holder": &near}[through].socket()
					if probed {
						s.say("2probe")
					}
					if err := p.entry.relay.Release(t.Context()); err != nil {
						t.Errorf("Release: %v", err)
					}
					(<-pending).want(t, 200, body(rev, "6"))
					if !probed {
						pending = near.hold()
						s.say("2probe")
						(<-pending).want(t, 200, body(rev, "6"))
					}
					s.hear("3probe")
					s.say("5")
					s.say("4up")
					c.send("down")
					s.hear("4down")
					time.Sleep(time.Second)
					c.wantGot("up")
					c.wantWhole()
				})
			})
		}
	}
}

func TestReleaseAndCloseMayComeInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		r := p.entry.relay
		c := p.begin(eio.V4)
		c.stall(true)
		posted := make(chan answer, 1)
		go func() { posted <- c.post("4x") }()
		time.Sleep(time.Second)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := r.Release(t.Context()); err != nil {
					t.Errorf("Release: %v", err)
				}
			})
		}
		time.Sleep(5 * time.Second)
		r.Close()
		(<-posted).wantUnavailable(t)
		wg.Wait()
		for range 2 {
			if err := r.Release(t.Context()); err != nil {
				t.Errorf("Release after Close: %v", err)
			}
			if err := r.CutSockets(t.Context(), time.Hour); err != nil {
				t.Errorf("CutSockets after Close: %v", err)
			}
		}
		c.stall(false)
	})
}

// A connection on which nothing is held, or not any more.
func TestReleaseThatFindsNothingDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		r := p.entry.relay
		c := p.begin(eio.V4)
		l, err := r.take(t.Context(), p.holder.ip)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			r.lines.Add()
			r.release(p.holder.ip, l)
		}
		c.nc.Close()
		synctest.Wait()
		c.get().wantUnknown(t)
		r.lines.Add()
		r.release(p.holder.ip, l)
		r.free(p.holder.ip, l)
		d := p.begin(eio.V4)
		done := d.hold() // one that comes later is held
		time.Sleep(time.Minute)
		d.send("x")
		(<-done).want(t, 200, "4x")
		if n := p.holder.relay.Stats().Releases; n != 4 {
			t.Errorf("Releases = %d, want 4", n)
		}
	})
}

func TestClientCannotHaveGETsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c, other := p.begin(eio.V4), p.begin(eio.V4)
		done := c.hold()
		for _, st := range []*station{p.entry, p.holder} {
			for _, query := range []string{c.query, other.query, "", strings.Replace(c.query, "=polling", "=websocket", 1)} {
				for _, headers := range [][]string{nil, {"Push-Remote", ""}, {"Connection", "Push-Remote"}, {"Connection", "Upgrade", "Upgrade", "websocket", "Sec-Websocket-Version", "13", "Sec-Websocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}} {
					if a := st.do(t.Context(), methodRelease, query, nil, headers...); a.err != nil || a.StatusCode < 400 {
						t.Errorf("%s of %q got %v, %v", methodRelease, query, a.Response, a.err)
					}
				}
			}
		}
		// Even if the entry would relay it.
		for _, addr := range []string{"10.0.0.9:1", "@", ""} {
			for _, upgrade := range []bool{false, true} {
				r := httptest.NewRequest(methodRelease, "/socket.io/?"+c.query, nil)
				r.RemoteAddr = addr
				if upgrade {
					r.Header.Set("Connection", "Upgrade")
					r.Header.Set("Upgrade", "websocket")
				}
				w := httptest.NewRecorder()
				p.entry.relay.Forward(w, r, p.holder.ip)
				if w.Code != 400 {
					t.Errorf("got %d from %q", w.Code, addr)
				}
			}
		}
		time.Sleep(time.Minute)
		if len(done) > 0 || p.holder.relay.Stats().Releases != 0 || p.entry.relay.Stats().Releases != 0 {
			t.Error("somebody was let go")
		}
		c.send("x")
		(<-done).want(t, 200, "4x")
		c.wantWhole()
	})
}

// One node's asking is about its own requests.
func TestReleaseLeavesGETsOfOtherEntriesHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		second := p.third()
		c, d := p.begin(eio.V4), p.begin(eio.V4)
		c.via = second
		done := c.hold()
		away := d.hold()
		p.entry.relay.Release(t.Context())
		(<-away).want(t, 200, "6")
		time.Sleep(time.Minute)
		if len(done) > 0 {
			t.Error("a GET through another node was let go")
		}
		c.send("x")
		(<-done).want(t, 200, "4x")
	})
}

func TestCutSocketsSpreadsTheClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		const count = 10
		var ends [count]atomic.Int64
		begin := time.Now()
		for i := range count {
			s := p.begin(eio.V4).upgrade()
			go func() {
				s.wantEnd(time.Hour)
				ends[i].Store(int64(time.Since(begin)))
			}()
		}
		polls := p.begin(eio.V4)
		done := polls.hold()
		begin = time.Now()
		if err := p.entry.relay.CutSockets(t.Context(), 20*time.Second); err != nil {
			t.Errorf("CutSockets: %v", err)
		}
		if took := time.Since(begin); took != 18*time.Second {
			t.Errorf("it took %v, want that the last of 10 is cut after 18 s", took)
		}
		synctest.Wait()
		at := map[time.Duration]bool{}
		for i := range ends {
			at[time.Duration(ends[i].Load())] = true
		}
		for i := range count {
			if due := time.Duration(i) * 2 * time.Second; !at[due] {
				t.Errorf("nobody was cut after %v: %v", due, at)
			}
		}
		if len(done) > 0 {
			t.Error("a poll was cut, too")
		}
		polls.wantNoUpgrade()
		if r := p.entry.relay; len(r.tunnels) > 0 {
			t.Errorf("%d tunnels are left", len(r.tunnels))
		}
		polls.send("x")
		(<-done).want(t, 200, "4x")
	})
}

func TestCutSocketsEndsWithItsContextAndCloseCutsTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		var all []*socket
		for range 4 {
			all = append(all, p.begin(eio.V4).upgrade())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begin := time.Now()
		if err := p.entry.relay.CutSockets(ctx, time.Minute); err != context.DeadlineExceeded {
			t.Errorf("CutSockets: %v", err)
		}
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("it took %v", took)
		}
		synctest.Wait()
		if n := p.entry.relay.Stats().Running; n != 3 {
			t.Errorf("%d run, want 3", n)
		}
		p.entry.relay.Close()
		for _, s := range all {
			s.wantEnd(time.Second)
		}
	})
}

func TestLostNodeIsDroppedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		other := p.beginAt(p.third(), eio.V4)
		otherHeld := other.hold()
		var held []<-chan answer
		for range 20 {
			held = append(held, p.begin(eio.V4).hold())
		}
		c := p.begin(eio.V4)
		s := c.upgrade()
		d := p.begin(eio.V4)
		p.net.Host(p.holder.ip).Unplug()
		noUpgrade := make(chan error, 1)
		go func() { // it waits for its dial
			dialer := websocket.Dialer{NetDialContext: p.entry.ln.DialContext}
			_, resp, err := dialer.DialContext(t.Context(), "ws://push.example/socket.io/?"+strings.Replace(d.query, "=polling", "=websocket", 1), nil)
			if err != nil && resp != nil && resp.StatusCode == 503 {
				err = nil
			}
			noUpgrade <- err
		}()
		time.Sleep(time.Second)
		begin := time.Now()
		p.entry.relay.Lost("10.0.0.77")
		p.entry.relay.Lost(p.holder.ip)
		p.entry.relay.Lost(p.holder.ip)
		for _, done := range held {
			(<-done).wantUnavailable(t)
		}
		if err := <-noUpgrade; err != nil {
			t.Errorf("the upgrade got %v", err)
		}
		s.wantEnd(time.Second)
		if took := time.Since(begin); took > 0 {
			t.Errorf("it took %v", took)
		}

		// So does who waits for a dial.
		waiting := make(chan answer, 1)
		go func() { waiting <- d.get() }()
		time.Sleep(time.Second)
		begin = time.Now()
		p.entry.relay.Lost(p.holder.ip)
		(<-waiting).wantUnavailable(t)
		if took := time.Since(begin); took > 0 {
			t.Errorf("it took %v", took)
		}
		synctest.Wait()
		if r := p.entry.relay; len(r.nodes) != 1 || len(r.tunnels) > 0 {
			t.Errorf("what is left: %v %v", r.nodes, r.tunnels)
		}
		other.send("x")
		(<-otherHeld).want(t, 200, "4x")
	})
}

// Another run of the node may be at the address by now.
func TestLostNodeCanBeReachedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c, d := p.begin(eio.V4), p.begin(eio.V4)
		done := c.hold()
		p.entry.relay.Lost(p.holder.ip)
		d.send("x")
		d.get().want(t, 200, "4x")
		(<-done).wantUnavailable(t)
		if n := p.entry.dials.Load(); n != 2 {
			t.Errorf("there were %d dials, want 2", n)
		}
		// A dial that comes to its end although it was given up leaves nothing.
		slow := New(Config{Dial: func(context.Context, string) (net.Conn, error) {
			time.Sleep(time.Second)
			return p.net.Host("10.0.0.2").DialContext(t.Context(), "tcp", "10.0.0.1:7946")
		}})
		go func() {
			time.Sleep(time.Second / 2)
			slow.Lost("x")
		}()
		if l, err := slow.take(t.Context(), "x"); err == nil {
			t.Errorf("got %v of a node that was lost", l)
		}
		synctest.Wait()
		if len(slow.nodes) > 0 {
			t.Errorf("it is remembered: %v", slow.nodes)
		}
		slow.Close()
	})
}

// balancer sends each request to any of its nodes; out is left out of it some
// time after it began to drain.
type balancer struct {
	mu    sync.Mutex // guards what follows
	rnd   *rand.Rand
	nodes []*station
	out   *station // nil: none
}

func (b *balancer) next() *station {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		if st := b.nodes[b.rnd.IntN(len(b.nodes))]; st != b.out {
			return st
		}
	}
}

// A rolling restart as the sessions of the other nodes live through it.
func TestDrainingEntryLosesDoublesAndReordersNothing(t *testing.T) {
	const count = 40
	var let atomic.Int64
	for seed := range uint64(5) {
		both(t, func(t *testing.T, rev eio.Revision) {
			p := newPair(t, nil)
			b := &balancer{rnd: rand.New(rand.NewPCG(seed, 1)), nodes: []*station{p.entry, p.holder, p.third()}}
			p.net.SetDelay(time.Millisecond, 5*time.Millisecond)
			var sessions, clients sync.WaitGroup
			var all []*session
			var noops atomic.Int64
			for i := range 6 {
				c := p.beginAt(b.nodes[1+i%2], rev)
				all = append(all, c)
				rnd := [2]*rand.Rand{rand.New(rand.NewPCG(seed, uint64(10+i))), rand.New(rand.NewPCG(seed, uint64(20+i)))}
				pause := func(rnd *rand.Rand) { time.Sleep(time.Duration(1+rnd.IntN(100)) * time.Millisecond) }
				var want []string
				for n := range count {
					want = append(want, fmt.Sprint(n))
				}
				sessions.Go(func() {
					for _, text := range want {
						c.send(text)
						pause(rnd[0])
					}
				})
				clients.Go(func() { // it listens
					var heard []string
					for len(heard) < count {
						a := b.next().do(t.Context(), "GET", c.query, nil)
						if a.err != nil || a.StatusCode != 200 {
							t.Errorf("a GET got %v %v %q", a.err, a.Response, a.body)
							return
						}
						reader := eio.NewReader(rev, -1)
						reader.Body(false)
						for in := []byte(a.body); len(in) > 0; {
							var packet eio.Packet
							n, err := reader.Next(in, &packet)
							if err != nil {
								t.Errorf("body %q: %v", a.body, err)
								return
							}
							switch in = in[n:]; packet.Type {
							case 0:
							case eio.Message:
								heard = append(heard, string(packet.Data))
							case eio.Noop:
								noops.Add(1)
							default:
								t.Errorf("heard %q", a.body)
							}
						}
					}
					if got := strings.Join(heard, " "); got != strings.Join(want, " ") {
						t.Errorf("heard %s", got)
					}
				})
				clients.Go(func() { // it speaks
					for _, text := range want {
						b.next().do(t.Context(), "POST", c.query, strings.NewReader(body(rev, "4"+text))).want(t, 200, "ok")
						pause(rnd[1])
					}
					c.wantGot(want...)
				})
			}
			time.Sleep(500 * time.Millisecond)
			p.entry.relay.Drain()
			time.Sleep(time.Duration(seed) * 20 * time.Millisecond)
			b.mu.Lock()
			b.out = p.entry
			b.mu.Unlock()
			time.Sleep(20 * time.Millisecond) // who has chosen it comes
			if err := p.entry.relay.Release(t.Context()); err != nil {
				t.Errorf("Release: %v", err)
			}
			p.entry.relay.Close()
			p.entry.http.Close()
			sessions.Wait()
			clients.Wait()
			for _, c := range all {
				c.wantWhole()
			}
			st := p.entry.relay.Stats()
			if st.Broken+st.Lost+st.Left+st.Unreached+st.Late > 0 || st.Relayed == 0 {
				t.Errorf("the entry counted %+v", st)
			}
			let.Add(noops.Load())
		})
	}
	if let.Load() == 0 {
		t.Error("nothing was ever held when it was let go")
	}
}

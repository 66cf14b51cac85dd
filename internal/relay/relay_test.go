package relay

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/polling"
)

func TestSessionGoesOnThroughAnotherNode(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		p.net.SetDelay(time.Millisecond, 3*time.Millisecond)
		c := p.begin(rev)
		for _, text := range []string{"first", "second", strings.Repeat("x", 300_000), "€😀"} {
			done := c.hold()
			time.Sleep(5 * time.Minute)
			c.send(text)
			want := body(rev, "4"+text)
			if text == "€😀" && rev == eio.V3 {
				want = "4:4€😀" // 4, € and a surrogate pair
			}
			a := <-done
			a.want(t, 200, want)
			if got := a.Header.Get("Content-Type"); got != "text/plain; charset=UTF-8" {
				t.Errorf("Content-Type is %q", got)
			}
			if a.ContentLength != int64(len(want)) {
				t.Errorf("Content-Length is %d, want %d", a.ContentLength, len(want))
			}
		}
		long := strings.Repeat("y", 500_000)
		c.post(body(rev, "4hello", "4"+long)).want(t, 200, "ok")
		c.post(body(rev, "4last")).want(t, 200, "ok")
		c.wantGot("hello", long, "last")
		c.wantWhole()
		if s := p.entry.relay.Stats(); s.Relayed != 6 || s.Running != 0 || s.Broken+s.Lost+s.Left > 0 {
			t.Errorf("the entry counted %+v", s)
		}
		if s := p.holder.relay.Stats(); s.Served != 6 || s.Complaints > 0 {
			t.Errorf("the holder counted %+v", s)
		}
	})
}

func TestBytesComeThroughAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c := p.begin(eio.V3)
		c.nc.Write(eio.AppendBinary(nil, eio.V3, []byte{0xfe, 0xff}))
		a := c.get()
		a.want(t, 200, "\x01\x03\xff\x04\xfe\xff")
		if got := a.Header.Get("Content-Type"); got != "application/octet-stream" {
			t.Errorf("Content-Type is %q", got)
		}
		c.via.do(t.Context(), "POST", c.query, strings.NewReader("\x00\x02\xff4x"), "Content-Type", "application/octet-stream").want(t, 200, "ok")
		c.wantGot("x")
	})
}

func TestUpgradeGoesThroughAnotherNode(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		p.net.SetDelay(time.Millisecond, 3*time.Millisecond)
		c := p.begin(rev)
		pending := c.hold()
		s := c.socket()
		s.say("2probe")
		s.hear("3probe")
		(<-pending).want(t, 200, body(rev, "6"))
		s.say("5")
		long := strings.Repeat("z", 400_000)
		for _, text := range []string{"one", long, "two"} {
			s.say("4" + text)
			c.send(text)
			s.hear("4" + text)
		}
		time.Sleep(10 * time.Hour) // nothing here ends it
		c.send("late")
		s.hear("4late")
		s.say("4late")
		time.Sleep(time.Second)
		c.wantGot("one", long, "two", "late")
		c.wantWhole()
		c.get().want(t, 400, `{"code":3,"message":"Bad request"}`)
		if n := p.entry.relay.Stats().Running; n != 1 {
			t.Errorf("%d run, want the WebSocket", n)
		}
		s.Close()
		time.Sleep(5 * time.Second)
		if c.mu.Lock(); !c.closed {
			t.Error("the holder does not know that the client has closed")
		}
		c.mu.Unlock()
		if n := p.entry.relay.Stats().Running; n != 0 {
			t.Errorf("%d run, want none", n)
		}
	})
}

// The holder says goodbye over the WebSocket, and then its socket is closed.
func TestEndOfASessionReachesARelayedWebSocket(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		c := p.begin(rev)
		s := c.upgrade()
		c.send("last")
		c.shut()
		s.hear("4last")
		if _, b, err := s.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
			t.Errorf("the WebSocket said %q, %v, want a close frame", b, err)
		}
		time.Sleep(time.Minute)
		if n := p.entry.relay.Stats().Running; n != 0 {
			t.Errorf("%d run, want none", n)
		}
	})
}

func TestUpgradeThatTheHolderRefusesIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c := p.begin(eio.V4)
		c.nc.Close()
		synctest.Wait()
		d := websocket.Dialer{NetDialContext: p.entry.ln.DialContext}
		_, resp, err := d.Dial("ws://push.example/socket.io/?"+strings.Replace(c.query, "=polling", "=websocket", 1), nil)
		if err == nil || resp == nil || resp.StatusCode != 400 || !resp.Close {
			t.Fatalf("got %v, %v, want 400 and the connection closed", resp, err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != "Session ID unknown" {
			t.Errorf("the body is %q", b)
		}
	})
}

func TestManyHeldPollsShareAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		const count = 1000
		var all []*session
		for range count {
			all = append(all, p.begin(eio.V4))
		}
		var wg sync.WaitGroup
		for i, c := range all {
			wg.Go(func() { c.get().want(t, 200, fmt.Sprint("4", i)) })
		}
		time.Sleep(time.Minute)
		if n := p.entry.relay.Stats().Running; n != count {
			t.Errorf("%d are held, want %d", n, count)
		}
		if n := p.entry.dials.Load(); n != 1 {
			t.Errorf("there were %d dials, want 1", n)
		}
		for i, c := range all {
			c.send(fmt.Sprint(i))
		}
		wg.Wait()
	})
}

// Before the node's settings have come, HTTP/2 allows for 100 requests.
func TestCrowdWaitsForOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		const count = 250
		var all []*session
		for range count {
			all = append(all, p.begin(eio.V4))
			all[len(all)-1].send("x")
		}
		p.net.SetDelay(10*time.Millisecond, 20*time.Millisecond)
		var wg sync.WaitGroup
		for _, c := range all {
			wg.Go(func() { c.get().want(t, 200, "4x") })
		}
		wg.Wait()
		if n := p.entry.dials.Load(); n != 1 {
			t.Errorf("there were %d dials, want 1", n)
		}
	})
}

func TestFurtherPollsHaveAConnectionOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		r := p.entry.relay
		var lines []*line
		for range 2*maxStreams + 1 {
			l, err := r.take(t.Context(), p.holder.ip)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, l)
		}
		if n := p.entry.dials.Load(); n != 3 {
			t.Errorf("there were %d dials, want 3", n)
		}
		for _, l := range lines {
			r.free(p.holder.ip, l)
		}
		c := p.begin(eio.V4)
		c.send("x")
		c.get().want(t, 200, "4x")
		if n := p.entry.dials.Load(); n != 3 {
			t.Errorf("there were %d dials, want no further one", n)
		}
		time.Sleep(idleFor + time.Second)
		if r.mu.Lock(); len(r.nodes) > 0 {
			t.Errorf("connections that nobody uses are kept: %v", r.nodes)
		}
		r.mu.Unlock()
		c.send("y")
		c.get().want(t, 200, "4y")
	})
}

// The clients that do not read keep more bytes between the nodes than the
// documented window of an HTTP/2 connection.
func TestSlowReadersDelayNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		const slow = 160
		if slow*streamRoom < 4<<20 {
			t.Fatal("too few")
		}
		text := strings.Repeat("x", 250_000)
		for range slow {
			c := p.begin(eio.V4)
			c.send(text)
			c.raw("GET /socket.io/?QUERY HTTP/1.1\r\nHost: push.example\r\n\r\n")
		}
		time.Sleep(time.Second)
		if n := p.entry.relay.Stats().Running; n != slow {
			t.Errorf("%d answers are stuck, want %d", n, slow)
		}
		c := p.begin(eio.V4)
		begin := time.Now()
		for range 10 {
			c.send(text)
			c.get().want(t, 200, "4"+text)
			c.post("4"+text).want(t, 200, "ok")
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if n := p.entry.dials.Load(); n != 1 {
			t.Errorf("there were %d dials, want 1", n)
		}
		time.Sleep(time.Minute)
		if n := p.entry.relay.Stats().Running; n != 0 {
			t.Errorf("%d answers are still stuck", n)
		}
	})
}

func TestClientThatHangsUpAHeldGETIsSeenByTheHolder(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		p.net.SetDelay(time.Millisecond, 3*time.Millisecond)
		c := p.begin(rev)
		c.send("x")
		c.get().want(t, 200, body(rev, "4x"))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if a := c.via.do(ctx, "GET", c.query, nil); a.err == nil {
			t.Errorf("the GET was answered: %v", a)
		}
		time.Sleep(20 * time.Millisecond)
		c.wantLeft() // not 45 s later: what is pushed now is not taken for sent
		if err := c.nc.Write(eio.AppendPacket(nil, eio.Message, "late")); err == nil {
			t.Error("the session took a message for a client that has hung up")
		}
		c.get().wantUnknown(t)
		if n := p.entry.relay.Stats().Left; n != 1 {
			t.Errorf("%d clients have left, want 1", n)
		}
	})
}

// The last bytes of an answer stand between the nodes, so its holder has written
// all of it, but its client does not read.
func TestHolderIsToldOfAnAnswerThatDidNotArrive(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		c := p.begin(rev)
		c.send(strings.Repeat("x", 64<<10+4<<10+streamRoom/2))
		c.raw("GET /socket.io/?QUERY HTTP/1.1\r\nHost: push.example\r\n\r\n")
		time.Sleep(5 * time.Second)
		c.wantWhole()
		if c.p.Polls() {
			t.Fatal("the holder has not written all of it")
		}
		time.Sleep(15 * time.Second)
		c.wantLeft()
		if n := p.entry.relay.Stats().Lost; n != 1 {
			t.Errorf("%d answers were lost, want 1", n)
		}
	})
}

func TestHolderThatDiesMakesA503(t *testing.T) {
	for name, die := range map[string]func(p *pair){
		"killed":    func(p *pair) { p.net.Host(p.holder.ip).Kill() },
		"unplugged": func(p *pair) { p.net.Host(p.holder.ip).Unplug() },
		"closed":    func(p *pair) { p.holder.relay.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, nil)
				var held []<-chan answer
				for range 20 {
					held = append(held, p.begin(eio.V4).hold())
				}
				last := p.begin(eio.V4)
				s := last.upgrade()
				time.Sleep(time.Minute)
				begin := time.Now()
				die(p)
				for _, done := range held {
					(<-done).wantUnavailable(t)
				}
				took := time.Since(begin)
				if name == "unplugged" && took > 21*time.Second || name != "unplugged" && took > 0 {
					t.Errorf("it took %v", took)
				}
				if name == "killed" {
					s.wantEnd(time.Second)
				}
				begin = time.Now()
				last.get().wantUnavailable(t)
				if took := time.Since(begin); took > 11*time.Second {
					t.Errorf("a GET for a node that is not there took %v", took)
				}
			})
		})
	}
}

func TestNodeThatCannotBeReachedIsNotDialledByEveryRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c := p.begin(eio.V4)
		p.holder.relay.Close()
		for range 50 {
			c.get().wantUnavailable(t)
		}
		c.post("4x").wantUnavailable(t)
		if n := p.entry.dials.Load(); n != 1 {
			t.Errorf("there were %d dials, want 1", n)
		}
		time.Sleep(failedFor)
		synctest.Wait()
		c.get().wantUnavailable(t)
		if n := p.entry.dials.Load(); n != 2 {
			t.Errorf("there were %d dials a second later, want 2", n)
		}
		if n := p.entry.relay.Stats().Unreached; n != 52 {
			t.Errorf("Unreached = %d, want 52", n)
		}
		time.Sleep(failedFor)
		synctest.Wait()
		if r := p.entry.relay; len(r.nodes) > 0 {
			t.Errorf("the node is remembered: %v", r.nodes)
		}
	})
}

// The host gives requests a second, over HTTP/1.1 and HTTP/2.
func TestTimeoutsOfTheEntrysServerDoNotCutAHold(t *testing.T) {
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	for name, protocols := range map[string]*http.Protocols{"HTTP/1.1": &h1, "HTTP/2": &h2} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, rev eio.Revision) {
				p := newPair(t, func(st *station, _ *Config, _ *polling.Config) {
					st.http.ReadTimeout, st.http.WriteTimeout, st.http.IdleTimeout = time.Second, time.Second, time.Hour
					st.http.Protocols = protocols
				})
				c := p.begin(rev)
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
				time.Sleep(20 * time.Second)
				c.stall(false)
				(<-posted).want(t, 200, "ok")
				c.wantGot("one", "two", "three", "late")
				if protocols == &h1 {
					s := c.upgrade()
					time.Sleep(time.Hour)
					c.send("x")
					s.hear("4x")
					s.say("4y")
					c.wantGot("one", "two", "three", "late", "y")
				}
				c.wantWhole()
			})
		})
	}
}

func TestHoldEndsAtItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, func(_ *station, c *Config, _ *polling.Config) { c.Hold = time.Minute })
		c := p.begin(eio.V4)
		done := c.hold()
		time.Sleep(59 * time.Second)
		if len(done) > 0 {
			t.Error("it ended too early")
		}
		(<-done).wantUnavailable(t)
		c.wantLeft()
	})
}

func TestRequestMakesOneHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		third := polling.NewSids(tagOf("10.0.0.3"), []byte(strings.Repeat("\x07", 32)))
		p := newPair(t, func(st *station, c *Config, pc *polling.Config) {
			if st.ip == "10.0.0.2" { // its map is wrong: everybody is the holder
				pc.Relay = func(w http.ResponseWriter, r *http.Request, tag [8]byte) bool {
					st.relay.Forward(w, r, "10.0.0.1")
					return true
				}
			}
		})
		sid, _ := third.Make()
		p.entry.do(t.Context(), "GET", "EIO=4&transport=polling&sid="+sid, nil).wantUnknown(t)
		p.entry.do(t.Context(), "POST", "EIO=4&transport=polling&sid="+sid, strings.NewReader("4x")).wantUnknown(t)
		if n := p.holder.relay.Stats().Hops; n != 2 {
			t.Errorf("Hops = %d, want 2", n)
		}
		if n := p.holder.dials.Load(); n != 0 {
			t.Errorf("there were %d dials for a second hop", n)
		}
	})
}

func TestSessionThatTheHolderDoesNotHaveIsUnknown(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		c := p.begin(rev)
		c.nc.Close()
		synctest.Wait()
		c.get().wantUnknown(t)
		c.post(body(rev, "4x")).wantUnknown(t)
		if n := p.holder.relay.Stats().Served; n != 2 {
			t.Errorf("the holder was asked %d times, want 2", n)
		}
	})
}

func TestForgedSidMakesNoHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		sid, _ := polling.NewSids(tagOf("10.0.0.1"), []byte(strings.Repeat("\x08", 32))).Make()
		p.entry.do(t.Context(), "GET", "EIO=4&transport=polling&sid="+sid, nil).wantUnknown(t)
		if s := p.entry.relay.Stats(); s.Relayed != 0 || p.entry.dials.Load() > 0 {
			t.Errorf("it was relayed: %+v", s)
		}
	})
}

// What the holder's handler sees of a request is what the entry says.
func TestHolderSeesTheClientThroughTheEntryAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c := p.begin(eio.V4)
		c.send("x")
		a := c.get("Push-Remote", "6.6.6.6:6", "Cookie", "a=b", "Authorization", "Basic eA==", "Origin", "https://page.example",
			"Accept-Encoding", "gzip", "X-Forwarded-For", "6.6.6.6", "Sec-Fetch-Site", "cross-site", "User-Agent", "browser", "Connection", "Push-Remote")
		a.want(t, 200, "4x")
		c.query += "&token=a;b&%zz=+&user=alice"
		c.post("4y", "Push-Remote", "6.6.6.6:6", "Cookie", "a=b").want(t, 200, "ok")
		s := c.upgrade()
		s.say("4z")
		c.wantGot("y", "z")
		p.holder.mu.Lock()
		defer p.holder.mu.Unlock()
		if len(p.holder.seen) != 3 {
			t.Fatalf("the holder saw %d requests, want 3", len(p.holder.seen))
		}
		for i, r := range p.holder.seen {
			if host, _, err := net.SplitHostPort(r.RemoteAddr); err != nil || host != "10.0.0.1" && host != "10.0.0.2" || strings.HasPrefix(r.RemoteAddr, "6.") {
				t.Errorf("RemoteAddr is %q", r.RemoteAddr)
			}
			if r.Host != "push.example" || r.URL.Path != "/socket.io/" || !IsRelayed(r.Context()) {
				t.Errorf("Host %q, path %q, relayed %v", r.Host, r.URL.Path, IsRelayed(r.Context()))
			}
			if i > 0 && !strings.HasSuffix(r.URL.RawQuery, "&token=a;b&%zz=+&user=alice") {
				t.Errorf("the query is %q", r.URL.RawQuery)
			}
			var names []string
			for name := range r.Header {
				names = append(names, name)
			}
			slices.Sort(names)
			want := [][]string{nil, {"Content-Length", "Content-Type"}, {"Connection", "Sec-Websocket-Key", "Sec-Websocket-Version", "Upgrade"}}[i]
			if !slices.Equal(names, want) {
				t.Errorf("the header has %q, want %q", names, want)
			}
		}
	})
}

func TestAnswersHaveTheHeadersOfALocalOneAndNoneTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c := p.begin(eio.V4)
		ask := func(method string, st *station) http.Header {
			t.Helper()
			c.send("x")
			a := st.do(t.Context(), method, c.query, strings.NewReader(map[string]string{"GET": "", "POST": "4y"}[method]), "Origin", "https://page.example")
			if a.err != nil || a.StatusCode != 200 {
				t.Fatalf("got %v, %v", a.Response, a.err)
			}
			a.Header.Del("Date")
			return a.Header
		}
		for _, method := range []string{"GET", "POST"} {
			local, far := ask(method, p.holder), ask(method, p.entry)
			if method == "POST" {
				c.get()
			}
			if got, want := fmt.Sprint(far), fmt.Sprint(local); got != want {
				t.Errorf("%s: got\n%s, want\n%s", method, got, want)
			}
			if far.Get("Access-Control-Allow-Origin") != "https://page.example" || far.Get("Cache-Control") != "no-store" {
				t.Errorf("the header is %v", far)
			}
		}
	})
}

func TestPOSTOverMaxBodyIs413(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, func(_ *station, c *Config, _ *polling.Config) { c.MaxBody = 100_000 })
		c := p.begin(eio.V4)
		text := strings.Repeat("x", 100_000)
		c.post("4"+text).want(t, 413, "")
		if n := p.holder.relay.Stats().Served; n != 0 {
			t.Errorf("the holder was asked %d times", n)
		}
		c.post("4"+text[1:]).want(t, 200, "ok")
		c.wantWhole()

		// What says no length is cut, and its session is over.
		a := c.via.do(t.Context(), "POST", c.query, struct{ io.Reader }{strings.NewReader("4" + text)})
		a.want(t, 413, "")
		c.wantGot(text[1:])
		c.wantLeft()
		if n := p.entry.relay.Stats().TooLarge; n != 2 {
			t.Errorf("TooLarge = %d, want 2", n)
		}
	})
}

// The holder's limit is below the entry's: it answers before it has read all,
// and its session lives.
func TestPOSTOverTheHoldersLimitIs413(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		p := newPair(t, nil)
		p.net.SetDelay(time.Millisecond, 3*time.Millisecond)
		c := p.begin(rev)
		c.limit = 1000
		text := strings.Repeat("x", 900_000)
		c.post("4"+text).want(t, 413, "")
		c.via.do(t.Context(), "POST", c.query, struct{ io.Reader }{strings.NewReader("4" + text)}).want(t, 413, "")
		c.post(body(rev, "4y")).want(t, 200, "ok")
		c.wantGot("y")
		c.wantWhole()
		if n := p.entry.relay.Stats().Relayed; n != 3 {
			t.Errorf("Relayed = %d, want 3", n)
		}
	})
}

// A client that stalls in its POST after the holder has refused it, or before.
func TestPOSTThatDoesNotEndIsJudgedByTheHolder(t *testing.T) {
	for name, row := range map[string]struct {
		limit int
		want  string
		took  time.Duration
	}{
		"refused": {10, "HTTP/1.1 413 ", 0},
		"slow":    {1_000_000, "HTTP/1.1 408 ", 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, nil)
				c := p.begin(eio.V4)
				c.limit = row.limit
				begin := time.Now()
				conn := c.raw("POST /socket.io/?QUERY HTTP/1.1\r\nHost: push.example\r\nContent-Length: 1000\r\n\r\n4x")
				b := make([]byte, 1000)
				n, err := conn.Read(b)
				if b = b[:n]; !strings.HasPrefix(string(b), row.want) || !strings.Contains(string(b), "Connection: close") || err != nil {
					t.Errorf("got %q, %v, want %s", b, err, row.want)
				}
				if took := time.Since(begin); took != row.took {
					t.Errorf("it took %v, want %v", took, row.took)
				}
				if _, err := io.ReadAll(conn); err != nil {
					t.Errorf("the connection ends with %v", err)
				}
				if took := time.Since(begin); took > row.took+12*time.Second {
					t.Errorf("the connection was open for %v", took)
				}
			})
		})
	}
}

func TestPOSTThatBreaksOffEndsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c := p.begin(eio.V4)
		conn := c.raw("POST /socket.io/?QUERY HTTP/1.1\r\nHost: push.example\r\nContent-Length: 1000\r\n\r\n4x")
		synctest.Wait()
		c.wantWhole()
		conn.Close()
		c.wantLeft()
		c.wantGot()
	})
}

func TestRequestsOverMaxRequestsAre503(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, func(_ *station, c *Config, _ *polling.Config) { c.MaxRequests = 2 })
		a, b, c := p.begin(eio.V4), p.begin(eio.V4), p.begin(eio.V4)
		s := a.upgrade()
		done := b.hold()
		no := c.get()
		no.wantUnavailable(t)
		if no.Header.Get("Retry-After") == "" {
			t.Error("there is no Retry-After")
		}
		b.send("x")
		(<-done).want(t, 200, "4x")
		synctest.Wait()
		c.send("y")
		c.get().want(t, 200, "4y")
		s.Close()
		if st := p.entry.relay.Stats(); st.Busy != 1 {
			t.Errorf("Busy = %d, want 1", st.Busy)
		}
	})
}

func TestRequestThatIsTooLongIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c := p.begin(eio.V4)
		r, _ := http.NewRequest("GET", "http://push.example/"+strings.Repeat("x", maxTarget)+"/socket.io/?"+c.query, nil)
		resp, err := p.entry.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 400 || p.entry.dials.Load() != 0 {
			t.Errorf("got %v after %d dials, want 400", resp, p.entry.dials.Load())
		}
		// The longest that goes on.
		c.send("x")
		c.query += "&x=" + strings.Repeat("y", 8<<10-len(c.query)-3)
		c.get().want(t, 200, "4x")
	})
}

// Whatever goes on, Close ends it: a goroutine that is left hangs the bubble.
func TestCloseLeavesNoGoroutine(t *testing.T) {
	for _, which := range []string{"entry", "holder"} {
		t.Run(which, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, nil)
				p.net.Cut("10.0.0.2", "10.0.0.3")
				held, posting := p.begin(eio.V4), p.begin(eio.V4)
				done := held.hold()
				s := p.begin(eio.V4).upgrade()
				conn := posting.raw("POST /socket.io/?QUERY HTTP/1.1\r\nHost: push.example\r\nContent-Length: 1000\r\n\r\n4x")
				sid, _ := polling.NewSids(tagOf("10.0.0.3"), []byte(strings.Repeat("\x07", 32))).Make()
				nobody := make(chan answer, 1)
				go func() { nobody <- p.entry.do(t.Context(), "GET", "EIO=4&transport=polling&sid="+sid, nil) }()
				synctest.Wait()
				begin := time.Now()
				st := map[string]*station{"entry": p.entry, "holder": p.holder}[which]
				st.relay.Close()
				st.relay.Close()
				if took := time.Since(begin); took > time.Second {
					t.Errorf("Close took %v", took)
				}
				(<-done).wantUnavailable(t)
				if b, _ := io.ReadAll(conn); !strings.HasPrefix(string(b), "HTTP/1.1 503 ") {
					t.Errorf("the POST got %q", b)
				}
				if which == "entry" {
					s.wantEnd(time.Second)
					(<-nobody).wantUnavailable(t)
					held.get().wantUnavailable(t)
					if n := st.relay.Stats().Running; n != 0 {
						t.Errorf("%d run", n)
					}
				} else {
					s.Close() // it is the holder's, no Relay's
					(<-nobody).wantUnavailable(t)
				}
			})
		})
	}
}

// A node that was let in, but talks nonsense, is refused and nothing else.
func TestServeRefusesWhatNoEntrySends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		for _, said := range []string{
			"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nPush-Remote: a\r\nPush-Remote: b\r\nConnection: close\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nPush-Remote: " + strings.Repeat("a", maxRemote+1) + "\r\nConnection: close\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nPush-Remote: " + strings.Repeat("a", maxHeader+5000) + "\r\n\r\n",
			"\x00\x01\x02nonsense\r\n\r\n",
			"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
			"",
		} {
			conn, err := p.net.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.1:7946")
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, said)
			conn.SetReadDeadline(time.Now().Add(time.Minute))
			b, err := io.ReadAll(conn)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Errorf("%q: the connection stays", clip(said))
			}
			if strings.Contains(string(b), " 200 ") {
				t.Errorf("%q got %q", clip(said), b)
			}
			conn.Close()
		}
		if s := p.holder.relay.Stats(); s.Malformed != 3 || s.Served != 0 {
			t.Errorf("the holder counted %+v", s)
		}
		c := p.begin(eio.V4)
		c.send("x")
		c.get().want(t, 200, "4x")
	})
}

func TestPanicOfTheHandlerEndsItsRequestAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, func(st *station, c *Config, _ *polling.Config) {
			inner := c.Handler
			c.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.RawQuery, "panic") {
					panic("as asked")
				}
				inner.ServeHTTP(w, r)
			})
		})
		c, d := p.begin(eio.V4), p.begin(eio.V4)
		done := d.hold()
		c.query += "&panic"
		c.get().wantUnavailable(t)
		synctest.Wait()
		if n := p.holder.relay.Stats().Complaints; n == 0 {
			t.Error("nobody counted it")
		}
		d.send("x")
		(<-done).want(t, 200, "4x")
		if n := p.entry.dials.Load(); n != 1 {
			t.Errorf("there were %d dials, want 1", n)
		}
	})
}

// nonsense is a node that answers each connection with said, and lets it be.
func (p *pair) nonsense(ip, said string) {
	ln := p.listen(p.net.Host(ip), relayPort)
	p.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				io.WriteString(conn, said)
				conn.SetReadDeadline(time.Now().Add(time.Hour))
				io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
}

func TestNodeThatTalksNonsenseHarmsNobody(t *testing.T) {
	for name, said := range map[string]string{
		"nothing":          "",
		"no HTTP":          "nonsense\r\n\r\n",
		"a bad status":     "HTTP/1.1 099 Well\r\nContent-Length: 0\r\n\r\n",
		"an endless head":  "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxAnswer),
		"an endless body":  "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 2*maxAnswer),
		"frames that fail": "\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, nil)
				p.nonsense("10.0.0.3", said)
				sid, _ := polling.NewSids(tagOf("10.0.0.3"), []byte(strings.Repeat("\x07", 32))).Make()
				d := websocket.Dialer{NetDialContext: p.entry.ln.DialContext}
				begin := time.Now()
				_, resp, err := d.Dial("ws://push.example/socket.io/?EIO=4&transport=websocket&sid="+sid, nil)
				if err == nil || resp != nil && resp.StatusCode != 503 && name != "an endless body" {
					t.Errorf("the upgrade got %v, %v", resp, err)
				}
				for range 3 {
					p.entry.do(t.Context(), "GET", "EIO=4&transport=polling&sid="+sid, nil).wantUnavailable(t)
				}
				if took := time.Since(begin); took > 100*time.Second {
					t.Errorf("it took %v", took)
				}
				c := p.begin(eio.V4)
				c.send("x")
				c.get().want(t, 200, "4x")
				synctest.Wait()
				if n := p.entry.relay.Stats().Running; n != 0 {
					t.Errorf("%d run", n)
				}
			})
		})
	}
}

func TestRelayedWebSocketThatIsNotReadIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		c := p.begin(eio.V4)
		c.upgrade()
		begin := time.Now()
		c.send(strings.Repeat("x", 500_000))
		for p.entry.relay.Stats().Running > 0 {
			time.Sleep(time.Second)
			if time.Since(begin) > time.Minute {
				t.Fatal("it is never cut")
			}
		}
		if took := time.Since(begin); took < 10*time.Second {
			t.Errorf("it was cut after %v", took)
		}
		time.Sleep(time.Second)
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.closed {
			t.Error("the holder does not know")
		}
	})
}

// A load balancer that sends each request to any of the nodes.
func TestSessionOverBothNodesLosesDoublesAndReordersNothing(t *testing.T) {
	const count = 300
	for seed := range uint64(6) {
		both(t, func(t *testing.T, rev eio.Revision) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			p := newPair(t, nil)
			p.net.SetDelay(time.Millisecond, 5*time.Millisecond)
			c := p.begin(rev)
			var want []string
			for i := range count {
				want = append(want, fmt.Sprint(i))
			}
			var wg sync.WaitGroup
			wg.Go(func() { // the server sends
				for _, text := range want {
					c.send(text)
					time.Sleep(2 * time.Millisecond)
				}
			})

			var heard []string
			hear := func(packet string) {
				if text, ok := strings.CutPrefix(packet, "4"); ok {
					heard = append(heard, text)
				} else if packet != "6" {
					t.Errorf("heard %q", packet)
				}
			}
			either := [2][]*station{}
			for i := range either {
				for range 10_000 {
					either[i] = append(either[i], []*station{p.entry, p.holder}[rnd.IntN(2)])
				}
			}
			paused := make(chan struct{})
			var polls sync.WaitGroup
			polls.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-paused:
						return
					default:
					}
					a := either[0][i].do(t.Context(), "GET", c.query, nil)
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
						if in = in[n:]; packet.Type != 0 {
							hear(string(packet.Type) + string(packet.Data))
						}
					}
				}
			})
			said := 0
			polls.Go(func() {
				for ; ; said++ {
					select {
					case <-paused:
						return
					default:
						either[1][said].do(t.Context(), "POST", c.query, strings.NewReader(body(rev, "4"+want[said]))).want(t, 200, "ok")
					}
				}
			})
			time.Sleep(200 * time.Millisecond)
			s := c.socket()
			s.say("2probe")
			s.hear("3probe")
			time.Sleep(10 * time.Millisecond)
			close(paused)
			polls.Wait()
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
			if st := p.entry.relay.Stats(); st.Broken+st.Lost+st.Left+st.Unreached > 0 {
				t.Errorf("the entry counted %+v", st)
			}
		})
	}
}

func TestAnswerThatBreaksOffIsNotTakenForWhole(t *testing.T) {
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	for name, protocols := range map[string]*http.Protocols{"HTTP/1.1": &h1, "HTTP/2": &h2} {
		for _, known := range []bool{true, false} { // its length
			t.Run(fmt.Sprint(name, "/", known), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPair(t, func(st *station, c *Config, _ *polling.Config) {
						st.http.Protocols = protocols
						c.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							if known {
								w.Header().Set("Content-Length", "100000")
							}
							io.WriteString(w, strings.Repeat("x", 50_000))
							w.(http.Flusher).Flush()
							<-r.Context().Done()
						})
					})
					c := p.begin(eio.V4)
					time.AfterFunc(time.Minute, func() { p.net.Host(p.holder.ip).Kill() })
					if a := c.get(); a.err == nil {
						t.Errorf("%d bytes were taken for all", len(a.body))
					}
					synctest.Wait()
					if n := p.entry.relay.Stats().Broken; n != 1 {
						t.Errorf("Broken = %d, want 1", n)
					}
				})
			})
		}
	}
}

func TestEndOfOneDirectionLeavesTheOtherAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, nil)
		ends := func(ip string) (near, far net.Conn) {
			ln := p.listen(p.net.Host(ip), 1)
			near, err := p.net.Host("10.0.0.2").DialContext(t.Context(), "tcp", ip+":1")
			if err != nil {
				t.Fatal(err)
			}
			if far, err = ln.Accept(); err != nil {
				t.Fatal(err)
			}
			ln.Close()
			return near, far
		}
		toClient, client := ends("10.0.0.8")
		toHolder, holder := ends("10.0.0.9")
		done := make(chan struct{})
		go func() { p.entry.relay.splice(t.Context(), toClient, toHolder); close(done) }()
		io.WriteString(client, "bye")
		client.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(holder); string(b) != "bye" || err != nil {
			t.Errorf("the holder got %q, %v", b, err)
		}
		time.Sleep(parting / 2)
		io.WriteString(holder, "goodbye")
		b := make([]byte, 100)
		if n, err := client.Read(b); string(b[:n]) != "goodbye" {
			t.Errorf("the client got %q, %v", b[:n], err)
		}
		begin := time.Now()
		<-done
		if took := time.Since(begin); took > parting {
			t.Errorf("it took %v", took)
		}
		client.Close()
		holder.Close()
	})
}

package test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// proxied reads the answer to the device's request of that id.
func (d *device) proxied(id int32) (r mpush.ProxyResponse, p packet) {
	d.t.Helper()
	d.waitFor("the proxy's answer", func() bool {
		for i := range d.got {
			if d.got[i].cmd == mpush.CmdHTTPProxy && d.got[i].id == id {
				p = d.got[i]
				d.got = append(d.got[:i:i], d.got[i+1:]...)
				return true
			}
		}
		return false
	})
	if err := r.Decode(p.body); err != nil {
		d.t.Fatalf("%s: the proxy's answer: %v", d.is.DeviceID, err)
	}
	return r, p
}

// asksProxy sends a request and returns its id.
func (d *device) asksProxy(r *mpush.ProxyRequest) int32 {
	d.asks(mpush.CmdHTTPProxy, 0, r)
	return d.ids.Load()
}

// proxyFloor is the least time of an answer: the client in the field loses one
// that comes sooner.
const proxyFloor = 20 * time.Millisecond

// TestTheProxyRefusesAfterItsFloor, and the connection lives.
func TestTheProxyRefusesAfterItsFloor(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		for _, c := range []struct {
			what  string
			proxy *push.Proxy
			bound bool
			body  any
			want  int32
		}{
			{"off", nil, true, &mpush.ProxyRequest{URI: "http://shop.example/"}, 403},
			{"off, not bound", nil, false, &mpush.ProxyRequest{URI: "http://shop.example/"}, 403},
			{"off, malformed", nil, true, []byte{0, 0xff}, 403},
			{"not bound", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, false, &mpush.ProxyRequest{URI: "http://shop.example/"}, 403},
			{"nothing allowed", &push.Proxy{}, true, &mpush.ProxyRequest{URI: "http://shop.example/"}, 403},
			{"another host", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, &mpush.ProxyRequest{URI: "http://evil.example/"}, 403},
			{"another port", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, &mpush.ProxyRequest{URI: "http://shop.example:81/"}, 403},
			{"loopback", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, &mpush.ProxyRequest{URI: "http://127.0.0.1/"}, 403},
			{"a short body", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, []byte{0}, 400},
			{"a negative length", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, []byte{0, 0xff, 0xff, 0, 0, 0, 0}, 400},
			{"no URI", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, &mpush.ProxyRequest{}, 400},
			{"no absolute URI", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, &mpush.ProxyRequest{URI: "/x"}, 400},
			{"a line feed in the URI", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, &mpush.ProxyRequest{URI: "http://shop.example/\r\nX: y"}, 400},
			{"a line feed in a header", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, &mpush.ProxyRequest{URI: "http://shop.example/", Headers: "X:a\rY:b\n"}, 400},
			{"a header that is none", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, &mpush.ProxyRequest{URI: "http://shop.example/", Headers: "a b:c\n"}, 400},
			{"an unknown method", &push.Proxy{Allow: []string{"http://shop.example=10.0.0.9"}}, true, &mpush.ProxyRequest{Method: 4, URI: "http://shop.example/"}, 400},
		} {
			w := door.world(t, push.Config{MPush: push.MPush{Proxy: c.proxy}})
			d := w.shakesHands()
			if c.bound {
				d.bind("alice")
			}
			begin := time.Now()
			d.asks(mpush.CmdHTTPProxy, 0, c.body)
			r, p := d.proxied(d.ids.Load())
			if r.Status != c.want || len(r.Body) > 0 || p.flags != 0 { // its own words are plain
				t.Errorf("%s: got %+v with flags %#x, want %d", c.what, r, p.flags, c.want)
			}
			if after := p.at.Sub(begin); after != proxyFloor {
				t.Errorf("%s: answered after %v", c.what, after)
			}
			d.wantOpen(5 * time.Second)
			d.bind("alice")
			// Nor for one that was bound before.
			d.unbind("alice")
			if r, _ := d.proxied(d.asksProxy(&mpush.ProxyRequest{URI: "http://shop.example/"})); r.Status != 403 {
				t.Errorf("%s: got %d after UNBIND", c.what, r.Status)
			}
		}
	})
}

func TestJSONHasNoProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorJSON.world(t, push.Config{MPush: push.MPush{Proxy: &push.Proxy{}}})
		d := w.binds("alice")
		d.asks(mpush.CmdHTTPProxy, 0, nil)
		d.wantError(mpush.CmdHTTPProxy, mpush.CodeUnsupported, "unsupported command")
		d.wantClosed(0)
	})
}

// The rest needs services, and so sockets.

// overProxies runs a test over every door of packets, with a service called
// http://shop.example that answers as serve does.
func overProxies(t *testing.T, serve http.HandlerFunc, f func(t *testing.T, w *deviceWorld)) {
	for _, door := range doors {
		if door.json {
			continue
		}
		t.Run(door.name, func(t *testing.T) {
			s := httptest.NewServer(serve)
			t.Cleanup(s.Close)
			f(t, door.socketWorld(t, push.Config{
				OnMessage: nobodyMinds,
				MPush:     push.MPush{Proxy: &push.Proxy{Allow: []string{"http://shop.example=" + s.Listener.Addr().String()}}},
			}))
		})
	}
}

func TestABoundDeviceReachesAnAllowedService(t *testing.T) {
	overProxies(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Mine", "yes")
		w.Header().Set("Location", "http://127.0.0.1/")
		if r.URL.Path == "/long" {
			io.WriteString(w, strings.Repeat("long ", 10000))
			return
		}
		if r.URL.Path == "/away" {
			w.WriteHeader(http.StatusFound)
		}
		fmt.Fprintf(w, "%s %s %s %q %q %s", r.Method, r.Host, r.URL, r.Header.Get("X-A"), r.Header.Get("X-Forwarded-For"), body)
	}, func(t *testing.T, w *deviceWorld) {
		d := w.binds("alice")
		for method, name := range []string{"GET", "POST", "PUT", "DELETE"} {
			begin := time.Now()
			id := d.asksProxy(&mpush.ProxyRequest{Method: uint8(method), URI: "http://shop.example/path?q=1", Headers: "X-A:b\nHost:evil.example\nX-Forwarded-For:6.6.6.6\n", Body: []byte("body")})
			r, p := d.proxied(id)
			want := fmt.Sprintf("%s shop.example /path?q=1 %q %q body", name, "b", "127.0.0.1")
			if r.Status != 200 || r.Reason != "OK" || !strings.Contains(r.Headers, "x-mine:yes\n") || string(r.Body) != want {
				t.Errorf("got %+v, want %s", r, want)
			}
			if got := p.flags&mpush.FlagCrypto != 0; got != w.door.keyed {
				t.Errorf("a service's answer has flags %#x, want it encrypted: %v", p.flags, w.door.keyed)
			}
			if after := time.Since(begin); after < proxyFloor {
				t.Errorf("answered after %v", after)
			}
		}
		r, p := d.proxied(d.asksProxy(&mpush.ProxyRequest{URI: "http://shop.example/long"}))
		if string(r.Body) != strings.Repeat("long ", 10000) || p.flags&mpush.FlagCompress == 0 || p.size > 5000 {
			t.Errorf("%d bytes of body in %d bytes with flags %#x", len(r.Body), p.size, p.flags)
		}
		if r, _ := d.proxied(d.asksProxy(&mpush.ProxyRequest{URI: "http://shop.example/away"})); r.Status != 302 || !strings.Contains(r.Headers, "location:http://127.0.0.1/\n") {
			t.Errorf("a redirect arrives as %+v", r)
		}
	})
}

// TestAFifthRequestAtATimeIsTurnedAway, and the others, pushes and heartbeats
// go on meanwhile.
func TestAFifthRequestAtATimeIsTurnedAway(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 100)
	overProxies(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		io.WriteString(w, r.URL.Path)
	}, func(t *testing.T, w *deviceWorld) {
		free := sync.OnceFunc(func() { close(release) })
		release = make(chan struct{})
		t.Cleanup(free)
		d, other := w.binds("alice"), w.binds("bob")
		var ids []int32
		for i := range 4 {
			ids = append(ids, d.asksProxy(&mpush.ProxyRequest{URI: fmt.Sprint("http://shop.example/", i)}))
			<-arrived
		}
		for range 3 {
			begin := time.Now()
			r, p := d.proxied(d.asksProxy(&mpush.ProxyRequest{URI: "http://shop.example/5"}))
			if r.Status != 503 || p.flags != 0 || time.Since(begin) < proxyFloor {
				t.Errorf("the fifth got %+v with flags %#x after %v", r, p.flags, time.Since(begin))
			}
		}
		if n := w.Stats().Limited["proxied"]; n != 3 {
			t.Errorf("Stats count %d", n)
		}
		if r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: 1, Ack: push.BizAck}); err != nil || r.Acked != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		d.wantPush("1")
		d.push("x", mpush.FlagAutoAck)
		d.wantAck()
		d.wantABeat()
		id := other.asksProxy(&mpush.ProxyRequest{URI: "http://shop.example/other"})
		<-arrived
		free()
		for i, id := range ids {
			if r, _ := d.proxied(id); r.Status != 200 || string(r.Body) != fmt.Sprint("/", i) {
				t.Errorf("request %d got %+v", i, r)
			}
		}
		if r, _ := other.proxied(id); string(r.Body) != "/other" {
			t.Errorf("the other one got %+v", r)
		}
		// A place for each that is done.
		settles(t, "there is a place", func() bool {
			r, _ := d.proxied(d.asksProxy(&mpush.ProxyRequest{URI: "http://shop.example/6"}))
			return r.Status == 200
		})
	})
}

// TestWhoLeavesGivesItsRequestsUp, and Shutdown does not wait for them.
func TestWhoLeavesGivesItsRequestsUp(t *testing.T) {
	arrived, gone := make(chan struct{}, 10), make(chan struct{}, 10)
	overProxies(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	}, func(t *testing.T, w *deviceWorld) {
		leaves, stays := w.binds("alice"), w.binds("bob")
		leaves.asksProxy(&mpush.ProxyRequest{URI: "http://shop.example/"})
		<-arrived
		leaves.vanishes()
		<-gone
		stays.asksProxy(&mpush.ProxyRequest{URI: "http://shop.example/"})
		<-arrived
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := w.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-gone
	})
}

// TestAServiceThatIsNotThereHasItsStatus: plain, since the proxy says it.
func TestAServiceThatIsNotThereHasItsStatus(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	at := s.Listener.Addr().String()
	s.Close()
	for _, door := range doors {
		if door.json {
			continue
		}
		w := door.socketWorld(t, push.Config{MPush: push.MPush{Proxy: &push.Proxy{Allow: []string{"http://shop.example=" + at}}}})
		d := w.binds("alice")
		r, p := d.proxied(d.asksProxy(&mpush.ProxyRequest{URI: "http://shop.example/"}))
		if r.Status != 504 || p.flags != 0 {
			t.Errorf("%s: got %+v with flags %#x", door.name, r, p.flags)
		}
	}
}

func TestAProxyThatCannotBeIsRefused(t *testing.T) {
	for _, entry := range []string{"", "shop.example", "ftp://shop.example", "http://shop.example/path", "http://127.0.0.1", "http://10.0.0.1:80", "http://shop.example=x", "http://u@shop.example"} {
		if e, err := push.New(push.Config{MPush: push.MPush{Proxy: &push.Proxy{Allow: []string{entry}}}}); err == nil {
			t.Errorf("entry %q is taken", entry)
			e.Close()
		}
	}
}

// The allocator (compatibility.md A15).

func TestAllocTellsTheAddressExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := func(w *deviceWorld, method string) *http.Response {
			rec := httptest.NewRecorder()
			w.Alloc().ServeHTTP(rec, httptest.NewRequest(method, "/alloc", nil))
			return rec.Result()
		}
		want := func(what string, r *http.Response, status int, text string) {
			t.Helper()
			body, _ := io.ReadAll(r.Body)
			if r.StatusCode != status || text != "" && string(body) != text || status == 200 && !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") {
				t.Errorf("%s: %d %q %q, want %d %q", what, r.StatusCode, r.Header.Get("Content-Type"), body, status, text)
			}
		}
		want("without Advertise", ask(worldWithDevices(t, push.Config{}), "GET"), 503, "")
		for _, at := range []string{"10.0.0.7:3000", "push.example:3000"} {
			w := worldWithDevices(t, push.Config{MPush: push.MPush{Advertise: at}})
			want("GET", ask(w, "GET"), 200, at)
			want("POST", ask(w, "POST"), 405, "")
			d := w.binds("alice")
			d.onAck(mute)
			go w.PushToUser(context.Background(), "alice", push.Message{Ack: push.AutoAck})
			synctest.Wait()
			ended := make(chan error)
			go func() { ended <- w.Shutdown(context.Background()) }()
			synctest.Wait()
			want("while it drains", ask(w, "GET"), 503, "")
			<-ended
			want("after the end", ask(w, "GET"), 503, "")
		}
		for _, at := range []string{"10.0.0.7", ":3000", "[::1]:3000", "::1:3000", "a b:3000", "a,b:3000", "host:0", "host:65536", "host:x", "host:3000\n"} {
			if e, err := push.New(push.Config{MPush: push.MPush{Advertise: at}}); err == nil {
				t.Errorf("Advertise %q is taken", at)
				e.Close()
			}
		}
	})
}

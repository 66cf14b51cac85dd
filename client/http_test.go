package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

func TestHTTPThroughTheServersProxy(t *testing.T) {
	site := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		rw.Header().Set("X-Seen", r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("X-Asked")+r.Header.Get("readTimeout"))
		if r.URL.Path == "/redirect" {
			http.Redirect(rw, r, "/to", http.StatusFound)
			return
		}
		rw.WriteHeader(http.StatusTeapot)
		rw.Write(append([]byte("got "), body...))
	}))
	defer site.Close()
	e, err := push.New(push.Config{
		Authenticate: push.TrustClaims, Logger: quiet,
		MPush: push.MPush{PrivateKey: []byte(mpush.StockPrivateKey), Proxy: &push.Proxy{Allow: []string{"http://site.test=" + site.Listener.Addr().String()}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.Serve(l) }()
	defer func() { e.Close(); <-served }()
	bound := make(chan bool, 1)
	c, err := New(Config{
		Addrs: []string{l.Addr().String()}, PublicKey: []byte(mpush.StockPublicKey), DeviceID: "d1", UserID: "alice", Logger: quiet,
		OnBind: func(c *Client, ok bool, user string) { bound <- ok },
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Start()
	defer func() { c.Stop(); c.Wait() }()
	if !<-bound {
		t.Fatal("not bound")
	}
	web := http.Client{Transport: c, Timeout: 5 * time.Second}
	for _, ask := range []struct{ method, path, body, want string }{
		{"GET", "/a?b=c", "", "got "},
		{"POST", "/a", "hello", "got hello"},
		{"PUT", "/a", strings.Repeat("long ", 2000), "got " + strings.Repeat("long ", 2000)},
		{"DELETE", "/a", "", "got "},
	} {
		req, _ := http.NewRequest(ask.method, "http://site.test"+ask.path, strings.NewReader(ask.body))
		req.Header.Set("X-Asked", "yes")
		resp, err := web.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", ask.method, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusTeapot || string(body) != ask.want || resp.Header.Get("X-Seen") != ask.method+" "+ask.path+" yes" || resp.ContentLength != int64(len(body)) {
			t.Errorf("%s: %s, %v, %.50q", ask.method, resp.Status, resp.Header, body)
		}
	}
	resp, err := web.Get("http://site.test/redirect#part")
	if err != nil || resp.StatusCode != http.StatusTeapot || resp.Request.URL.Path != "/to" {
		t.Errorf("a redirect: %v, %v", resp, err)
	}
	if resp, err = web.Get("http://other.test/"); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("what is not allowed: %v, %v; want 403", resp, err)
	}
	for name, req := range map[string]*http.Request{
		"method":       httptest.NewRequest("PATCH", "http://site.test/", nil),
		"http or":      httptest.NewRequest("GET", "/relative", nil),
		"header":       {Method: "GET", URL: httptest.NewRequest("GET", "http://site.test/", nil).URL, Header: http.Header{"A": {"b\nc:d"}}},
		"bytes, want ": httptest.NewRequest("POST", "http://site.test/", strings.NewReader(strings.Repeat("x", 2<<20))),
	} {
		if _, err := c.RoundTrip(req); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOfAPlainHTTPFailureOnlyTheStatusIsBelieved(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		type result struct {
			resp *http.Response
			err  error
		}
		results := make(chan result, 1)
		ctx, stop := context.WithTimeout(context.Background(), 2500*time.Millisecond)
		defer stop()
		ask := func(ctx context.Context) {
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://user:secret@site.test/x#y", nil)
			req.Header.Set("A", "b")
			resp, err := s.RoundTrip(req)
			results <- result{resp, err}
		}
		go ask(ctx)
		got := p.gets(mpush.CmdHTTPProxy)
		var r mpush.ProxyRequest
		if body, err := p.cipher.Open(got.Body); err != nil || r.Decode(body) != nil || r.URI != "http://site.test/x" || r.Headers != "A:b\nreadTimeout:2500\n" {
			t.Errorf("request %+v, %v", r, err)
		}
		forged := mpush.ProxyResponse{Status: 503, Reason: "busy", Headers: "Set-Cookie:a=b\n", Body: []byte("forged")}
		p.Write(mpush.AppendPacket(nil, mpush.CmdHTTPProxy, 0, got.ID, forged.Append(nil)))
		res := <-results
		if body, _ := io.ReadAll(res.resp.Body); res.err != nil || res.resp.Status != "503 busy" || len(body) != 0 || len(res.resp.Header) != 0 {
			t.Errorf("%v, %q, %v", res.resp, body, res.err)
		}
		go ask(ctx)
		p.gets(mpush.CmdHTTPProxy)
		if res := <-results; !errors.Is(res.err, context.DeadlineExceeded) || !errors.Is(res.err, ErrUncertain) {
			t.Errorf("without an answer: %v", res.err)
		}
	})
}

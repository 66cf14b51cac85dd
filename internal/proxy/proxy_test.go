package proxy

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestARequestReachesItsService(t *testing.T) {
	at := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Answer", "42")
		w.Header()["Date"] = nil
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s %s %d %s", r.Method, r.Host, r.RequestURI, r.ContentLength, body)
	})
	p := newProxy(t, "http://shop.example="+at)
	for _, c := range []struct {
		method uint8
		uri    string
		body   string
		want   string
	}{
		{0, "http://shop.example", "", "GET shop.example / 0 "},
		{0, "http://shop.example/a//b/../c?d=e&f=%20g?", "", "GET shop.example /a//b/../c?d=e&f=%20g? 0 "},
		{0, "http://shop.example//evil.example/", "", "GET shop.example //evil.example/ 0 "},
		{0, "http://shop.example/a%2Fb%00?", "", "GET shop.example /a%2Fb%00? 0 "},
		{0, "http://shop.example/é?ü=語", "", "GET shop.example /%C3%A9?%C3%BC=%E8%AA%9E 0 "},
		{0, "http://shop.example/", "hello", "GET shop.example / 5 hello"},
		{1, "http://shop.example/", "hello", "POST shop.example / 5 hello"},
		{1, "http://shop.example/", "", "POST shop.example / 0 "},
		{2, "http://shop.example/", "\x00\xff", "PUT shop.example / 2 \x00\xff"},
		{3, "http://shop.example/", "", "DELETE shop.example / 0 "},
	} {
		r := p.Do(t.Context(), &Request{Method: c.method, URI: c.uri, Body: []byte(c.body)})
		wantFrom(t, c.uri, r, http.StatusTeapot, c.want)
		want := fmt.Sprintf("content-length:%d\ncontent-type:text/plain; charset=utf-8\nx-answer:42\n", len(c.want))
		if strings.Contains(c.body, "\xff") {
			want = strings.Replace(want, "text/plain; charset=utf-8", "application/octet-stream", 1)
		}
		if r.Headers != want || r.Reason != "I'm a teapot" {
			t.Errorf("%s: got %q and headers %q, want %q", c.uri, r.Reason, r.Headers, want)
		}
	}
}

func TestAServiceSeesWhatTheClientMaySay(t *testing.T) {
	seen := make(chan string, 1)
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			seen <- readHeader(c)
			io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
			c.Close()
		}
	}()
	p := newProxy(t, "http://shop.example="+l.Addr().String())
	for _, c := range []struct{ headers, remote, want string }{
		{"", "", ""},
		{"", "192.0.2.7", "X-Forwarded-For: 192.0.2.7\r\n"},
		{"", "::ffff:192.0.2.7", "X-Forwarded-For: 192.0.2.7\r\n"},
		{"", "fe80::1%eth0", "X-Forwarded-For: fe80::1\r\n"},
		{"X-Forwarded-For:10.0.0.1\nx-forwarded-for:10.0.0.2\nX_Forwarded_For:10.0.0.3\n", "192.0.2.7", "X-Forwarded-For: 192.0.2.7\r\n"},
		{"X-Forwarded-For:10.0.0.1\n", "", ""},
		{"accept-encoding:gzip\ncookie:a=b\nuser-agent:device\n", "", "User-Agent: device\r\nAccept-Encoding: gzip\r\nCookie: a=b\r\n"},
		{"Host:evil.example\nConnection:close, x-a\nX-A:b\nX-B:c\nContent-Length:9\nTransfer-Encoding:chunked\nreadTimeout:3000\n", "", "X-B: c\r\n"},
	} {
		r := Request{URI: "http://shop.example/", Headers: c.headers}
		if c.remote != "" {
			r.Remote = netip.MustParseAddr(c.remote)
		}
		wantFrom(t, c.headers, p.Do(t.Context(), &r), http.StatusNoContent, "")
		want := "GET / HTTP/1.1\r\nHost: shop.example\r\n" + c.want + "\r\n"
		if got := <-seen; got != want {
			t.Errorf("%q: it sees %q, want %q", c.headers, got, want)
		}
	}
}

func TestARedirectIsTheDevicesToFollow(t *testing.T) {
	c := newCanary(t)
	for status := 300; status <= 308; status++ {
		at := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://"+c.Addr().String()+"/")
			w.WriteHeader(status)
		})
		p := newProxy(t, "http://shop.example="+at)
		for method := range uint8(4) {
			r := p.Do(t.Context(), &Request{Method: method, URI: "http://shop.example/"})
			wantFrom(t, fmt.Sprint(status), r, status, "")
			if !strings.Contains(r.Headers, "\nlocation:http://"+c.Addr().String()+"/\n") {
				t.Errorf("%d: %q", status, r.Headers)
			}
		}
	}
	c.wantNone()
}

func TestNoCookieIsKept(t *testing.T) {
	at := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		fmt.Fprint(w, len(r.Cookies()))
	})
	p := newProxy(t, "http://shop.example="+at)
	for range 3 {
		r := p.Do(t.Context(), &Request{URI: "http://shop.example/"})
		wantFrom(t, "again", r, http.StatusOK, "0")
		if !strings.Contains(r.Headers, "\nset-cookie:a=b\n") {
			t.Errorf("got %q", r.Headers)
		}
	}
}

func TestBodiesPassAsTheyAre(t *testing.T) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	io.WriteString(z, "hello")
	z.Close()
	at := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(zipped.Bytes())
	})
	p := newProxy(t, "http://shop.example="+at)
	for _, headers := range []string{"", "Accept-Encoding:gzip\n"} {
		r := p.Do(t.Context(), &Request{URI: "http://shop.example/", Headers: headers})
		wantFrom(t, headers, r, http.StatusOK, zipped.String())
		if !strings.Contains(r.Headers, "content-encoding:gzip\n") {
			t.Errorf("got %q", r.Headers)
		}
	}
}

func TestResponsesAreBounded(t *testing.T) {
	at := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/full":
			w.Write(make([]byte, maxBody))
		case "/full/declared":
			w.Header().Set("Content-Length", fmt.Sprint(maxBody))
			w.Write(make([]byte, maxBody))
		case "/over/declared":
			w.Header().Set("Content-Length", fmt.Sprint(maxBody+1))
			w.Write(make([]byte, maxBody+1))
		case "/over":
			w.Write(make([]byte, maxBody/2))
			w.Write(make([]byte, maxBody/2+1))
		case "/endless":
			for {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		case "/header":
			w.Header().Set("X-Long", strings.Repeat("a", 12<<10))
		case "/header/over":
			w.Header().Set("X-Long", strings.Repeat("a", 17<<10))
		}
	})
	p := newProxy(t, "http://shop.example="+at)
	for path, want := range map[string]int{
		"/full": 200, "/full/declared": 200, "/header": 200,
		"/over": 502, "/over/declared": 502, "/endless": 502, "/header/over": 502,
	} {
		r := p.Do(t.Context(), &Request{URI: "http://shop.example" + path})
		if want != 200 {
			wantOwn(t, path, r, want)
		} else if r.Own || r.Status != want {
			t.Errorf("%s: got %d, own %v", path, r.Status, r.Own)
		}
	}
}

func TestFailuresHaveTheirStatus(t *testing.T) {
	// A port where nobody listens, nor can begin to: the near end of a dial.
	taken, err := net.Dial("tcp", listen(t).Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	secure.Config.ErrorLog = quiet()
	defer secure.Close()
	for _, c := range []struct {
		what, at, raw string
		want          int
	}{
		{"refused", taken.LocalAddr().String(), "", http.StatusGatewayTimeout},
		{"closed", "", "", http.StatusBadGateway},
		{"not HTTP", "", "SSH-2.0-OpenSSH_9.6\r\n", http.StatusBadGateway},
		{"a status of two digits", "", "HTTP/1.1 20 OK\r\n\r\n", http.StatusBadGateway},
		{"no status", "", "HTTP/1.1 000 OK\r\n\r\n", http.StatusBadGateway},
		{"another protocol", "", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nbytes", http.StatusBadGateway},
		{"a cut header", "", "HTTP/1.1 200 OK\r\nX-A: b", http.StatusBadGateway},
		{"a cut body", "", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", http.StatusBadGateway},
		{"a cut chunk", "", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", http.StatusBadGateway},
		{"two lengths", "", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", http.StatusBadGateway},
		{"plain HTTP to TLS", secure.Listener.Addr().String(), "", http.StatusBadRequest},
	} {
		if c.at == "" {
			c.at = answer(t, c.raw)
		}
		p := newProxy(t, "http://shop.example="+c.at)
		r := p.Do(t.Context(), &Request{URI: "http://shop.example/"})
		if c.want == http.StatusBadRequest {
			wantFrom(t, c.what, r, c.want, "Client sent an HTTP request to an HTTPS server.\n")
		} else {
			wantOwn(t, c.what, r, c.want)
		}
	}
}

func TestReasonsAndHeadersOfAServiceAreMadeFit(t *testing.T) {
	for _, c := range []struct{ raw, reason, headers, body string }{
		{"HTTP/1.1 200 Fine, thanks\r\nContent-Length: 2\r\n\r\nok", "Fine, thanks", "content-length:2\n", "ok"},
		{"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "OK", "content-length:0\n", ""},
		{"HTTP/1.1 200 a\x00b\r\n\r\n", "OK", "content-length:0\n", ""},
		{"HTTP/1.1 200 caf\xe9\r\n\r\n", "caf\uFFFD", "content-length:0\n", ""},
		{"HTTP/1.0 200 OK\r\n\r\nto the end", "OK", "content-length:10\n", "to the end"},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nok\r\n0\r\nX-T: t\r\n\r\n", "OK", "content-length:2\n", "ok"},
		{"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nX-A: a\r\n\r\n", "OK", "content-length:0\nx-a:a\n", ""},
		{"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: x\r\n\r\n", "Not Modified", "content-length:0\netag:x\n", ""},
		{"HTTP/1.1 200 OK\r\nZ: 1\r\nb: 2\r\nA: 3\r\nB: 4\r\nContent-Length: 0\r\n\r\n", "OK", "a:3\nb:2\nb:4\ncontent-length:0\nz:1\n", ""},
		{"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive, X-Mine\r\nX-Mine: a\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nTE: x\r\nUpgrade: h2c\r\nX-Yours: b\r\n\r\n", "OK", "content-length:0\nx-yours:b\n", ""},
		{"HTTP/1.1 200 OK\r\nX-A: a\tb\r\nX-B: caf\xe9\r\nX-C: \r\nX D: d\r\n\r\n", "OK", "content-length:0\nx-b:caf\uFFFD\nx-c:\n", ""},
	} {
		p := newProxy(t, "http://shop.example="+answer(t, c.raw))
		r := p.Do(t.Context(), &Request{URI: "http://shop.example/"})
		if r.Own || r.Reason != c.reason || r.Headers != c.headers || string(r.Body) != c.body {
			t.Errorf("%q: got %+v", c.raw, r)
		}
	}
}

func TestTLSIsAskedForTheNameOfTheEntry(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Proto, " ", r.Host, " ", r.TLS.ServerName)
	}))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = quiet()
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())

	at := s.Listener.Addr().String()
	p := newProxy(t, "https://example.com="+at, "https://shop.invalid="+at)
	for _, service := range p.services {
		service.transport.TLSClientConfig.RootCAs = roots
	}
	wantFrom(t, "its name", p.Do(t.Context(), &Request{URI: "https://example.com/"}), http.StatusOK, "HTTP/1.1 example.com example.com")
	wantOwn(t, "another's certificate", p.Do(t.Context(), &Request{URI: "https://shop.invalid/"}), http.StatusBadGateway)
	wantOwn(t, "an unknown root", newProxy(t, "https://example.com="+at).Do(t.Context(), &Request{URI: "https://example.com/"}), http.StatusBadGateway)
}

func TestConnectionsAreKeptAndNeverMixed(t *testing.T) {
	const services = 3
	var allow []string
	var dials [services]atomic.Int32
	for i := range services {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, i) }))
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				dials[i].Add(1)
			}
		}
		s.Start()
		defer s.Close()
		allow = append(allow, fmt.Sprintf("http://shop.example:%d=%s", 8000+i, s.Listener.Addr()))
	}
	p := newProxy(t, allow...)
	for n := range 20 {
		for i := range services {
			uri := fmt.Sprintf("http://%s:%d/", []string{"shop.example", "SHOP.Example"}[n%2], 8000+i)
			wantFrom(t, uri, p.Do(t.Context(), &Request{URI: uri}), http.StatusOK, fmt.Sprint(i))
		}
	}
	for i := range dials {
		if n := dials[i].Load(); n != 1 {
			t.Errorf("service %d: %d connections", i, n)
		}
	}
}

// inMemory lets the services of p be reached without a socket: serve has the
// other end of each connection. It closes when the proxy closes its own.
func inMemory(p *Proxy, serve func(net.Conn)) {
	for _, s := range p.services {
		s.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				serve(theirs)
			}()
			return ours, nil
		}
	}
}

func TestARequestEndsInTime(t *testing.T) {
	silent := func(c net.Conn) { io.Copy(io.Discard, c) }
	for _, c := range []struct {
		what, headers string
		serve         func(net.Conn)
		want          time.Duration
	}{
		{"silence", "", silent, 10 * time.Second},
		{"silence, and a client's time", "readTimeout:2500\n", silent, 2500 * time.Millisecond},
		{"too short a time", "READTIMEOUT: 1 \n", silent, time.Second},
		{"a negative time", "readTimeout:-99999999999999999999\n", silent, time.Second},
		{"too long a time", "readTimeout:3600000\n", silent, 10 * time.Second},
		{"far too long a time", "readTimeout:99999999999999999999\n", silent, 10 * time.Second},
		{"no number", "readTimeout:soon\n", silent, 10 * time.Second},
		{"no request is read", "", func(c net.Conn) { <-time.After(time.Minute) }, 10 * time.Second},
		{"a header, byte by byte", "", func(c net.Conn) {
			readHeader(c)
			for {
				if _, err := io.WriteString(c, "H"); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		}, 10 * time.Second},
		{"a body, byte by byte", "", func(c net.Conn) {
			readHeader(c)
			for _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"); err == nil; _, err = io.WriteString(c, "x") {
				<-time.After(time.Second)
			}
		}, 10 * time.Second},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProxy(t, "http://shop.example")
				inMemory(p, c.serve)
				begin := time.Now()
				wantOwn(t, c.what, p.Do(t.Context(), &Request{URI: "http://shop.example/", Headers: c.headers}), http.StatusRequestTimeout)
				if took := time.Since(begin); took != c.want {
					t.Errorf("it took %v, want %v", took, c.want)
				}
				time.Sleep(time.Minute) // the service gives up too
			})
		})
	}
}

func TestABodyThatIsTooLongIsNotAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, "http://shop.example")
		inMemory(p, func(c net.Conn) {
			readHeader(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n")
			io.Copy(io.Discard, c)
		})
		begin := time.Now()
		wantOwn(t, "1 MiB and a byte", p.Do(t.Context(), &Request{URI: "http://shop.example/"}), http.StatusBadGateway)
		if took := time.Since(begin); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}

func TestADialThatHangsEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, "https://shop.example")
		for _, s := range p.services {
			s.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
			}
		}
		begin := time.Now()
		wantOwn(t, "a dial", p.Do(t.Context(), &Request{URI: "https://shop.example/"}), http.StatusRequestTimeout)
		p = newProxy(t, "https://shop.example")
		inMemory(p, func(c net.Conn) { io.Copy(io.Discard, c) })
		wantOwn(t, "a TLS handshake", p.Do(t.Context(), &Request{URI: "https://shop.example/"}), http.StatusRequestTimeout)
		if took := time.Since(begin); took != 20*time.Second {
			t.Errorf("they took %v", took)
		}
	})
}

func TestARequestEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, "http://shop.example")
		inMemory(p, func(c net.Conn) { io.Copy(io.Discard, c) })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		wantOwn(t, "a context", p.Do(ctx, &Request{URI: "http://shop.example/"}), http.StatusRequestTimeout)
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("it took %v", took)
		}
		wantOwn(t, "the same", p.Do(ctx, &Request{URI: "http://shop.example/"}), http.StatusRequestTimeout)
	})
}

// lateConn writes when it is released, be it closed or not.
type lateConn struct {
	net.Conn
	release chan struct{}
	written *bytes.Buffer
}

func (c lateConn) Write(p []byte) (int, error) {
	<-c.release
	return c.written.Write(p)
}

func TestDoKeepsNothingOfTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, "http://shop.example")
		release, written := make(chan struct{}), new(bytes.Buffer)
		for _, s := range p.services {
			s.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
				ours, _ := net.Pipe()
				return lateConn{ours, release, written}, nil
			}
		}
		body := bytes.Repeat([]byte("a"), 64<<10)
		wantOwn(t, "nothing is written", p.Do(t.Context(), &Request{Method: 1, URI: "http://shop.example/", Body: body}), http.StatusRequestTimeout)
		clear(body) // it is the owner's again
		close(release)
		synctest.Wait()
		if got := written.String(); !strings.Contains(got, "\r\n\r\na") || strings.Contains(got, "\x00") {
			t.Errorf("%d bytes were written, of a body that is not Do's", len(got))
		}
	})
}

func TestOnlySoManyRequestsAreUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, "http://shop.example", "http://stock.example")
		release := make(chan struct{})
		inMemory(p, func(c net.Conn) {
			for readHeader(c) != "" {
				<-release
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
		var wg sync.WaitGroup
		for i := range maxRequests {
			wg.Go(func() {
				uri := "http://" + []string{"shop", "stock"}[i%2] + ".example/"
				wantFrom(t, uri, p.Do(t.Context(), &Request{URI: uri}), http.StatusOK, "ok")
			})
		}
		synctest.Wait()
		wantOwn(t, "one more", p.Do(t.Context(), &Request{URI: "http://shop.example/"}), http.StatusServiceUnavailable)
		wantOwn(t, "a refusal costs nothing", p.Do(t.Context(), &Request{URI: "http://evil.example/"}), http.StatusForbidden)
		close(release)
		wg.Wait()
		wantFrom(t, "afterwards", p.Do(t.Context(), &Request{URI: "http://shop.example/"}), http.StatusOK, "ok")
	})
}

func TestCloseClosesWhatIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(t, "http://shop.example")
		closed := false
		inMemory(p, func(c net.Conn) {
			for readHeader(c) != "" {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
			closed = true
		})
		wantFrom(t, "before", p.Do(t.Context(), &Request{URI: "http://shop.example/"}), http.StatusOK, "ok")
		synctest.Wait()
		if closed {
			t.Error("not kept")
		}
		p.Close()
		synctest.Wait()
		if !closed {
			t.Error("not closed")
		}
	})
}

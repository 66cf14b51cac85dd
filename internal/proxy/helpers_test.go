package proxy

import (
	"context"
	"encoding/binary"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// newProxy is New with entries that are right.
func newProxy(t *testing.T, allow ...string) *Proxy {
	t.Helper()
	p, err := New(allow)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// serve starts a service and returns its host:port.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// answer starts a service that reads a request's header and answers with
// these bytes, whatever they are.
func answer(t *testing.T, raw string) string {
	t.Helper()
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				readHeader(c)
				io.WriteString(c, raw)
			}()
		}
	}()
	return l.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// readHeader reads to the empty line.
func readHeader(r io.Reader) string {
	var b strings.Builder
	one := make([]byte, 1)
	for !strings.HasSuffix(b.String(), "\r\n\r\n") {
		if _, err := io.ReadFull(r, one); err != nil {
			break
		}
		b.Write(one)
	}
	return b.String()
}

// canary is an inner service that nobody may reach.
type canary struct {
	t *testing.T
	net.Listener
}

func newCanary(t *testing.T) *canary { return &canary{t, listen(t)} }

func (c *canary) port() string {
	_, port, _ := net.SplitHostPort(c.Addr().String())
	return port
}

// wantNone wants that nothing connected. Connections are accepted in the
// order of their coming, so the first one is to be its own.
func (c *canary) wantNone() {
	c.t.Helper()
	mine, err := net.Dial("tcp", c.Addr().String())
	if err != nil {
		c.t.Fatal(err)
	}
	defer mine.Close()
	first, err := c.Accept()
	if err != nil {
		c.t.Fatal(err)
	}
	defer first.Close()
	if got := first.RemoteAddr().String(); got != mine.LocalAddr().String() {
		c.t.Errorf("the canary was reached, from %s", got)
	}
}

// names is a name server in memory. It answers every name with the same
// addresses until told otherwise.
type names struct {
	mu    sync.Mutex // guards addrs and asked
	addrs []netip.Addr
	asked int
}

func (n *names) set(addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs = nil
	for _, a := range addrs {
		n.addrs = append(n.addrs, netip.MustParseAddr(a))
	}
}

func (n *names) queries() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

func (n *names) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			for n.answer(server) == nil {
			}
		}()
		return client, nil
	}}
}

// answer answers one query as DNS over TCP has it (RFC 1035 section 4).
func (n *names) answer(c net.Conn) error {
	head := make([]byte, 2)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	query := make([]byte, binary.BigEndian.Uint16(head))
	if _, err := io.ReadFull(c, query); err != nil {
		return err
	}
	end := 12
	for query[end] != 0 {
		end += 1 + int(query[end])
	}
	kind := binary.BigEndian.Uint16(query[end+1:])
	end += 1 + 4

	n.mu.Lock()
	n.asked++
	addrs := n.addrs
	n.mu.Unlock()

	reply := append([]byte(nil), query[:2]...)                // id
	reply = append(reply, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0) // an answer to one question
	reply = append(reply, query[12:end]...)
	for _, a := range addrs {
		if k := uint16(1); kind == k && a.Is4() || kind == 28 && a.Is6() {
			reply[7]++
			reply = append(reply, 0xc0, 12) // the name of the question
			reply = binary.BigEndian.AppendUint16(reply, kind)
			reply = append(reply, 0, 1, 0, 0, 0, 0) // IN, for 0 s
			reply = binary.BigEndian.AppendUint16(reply, uint16(a.BitLen()/8))
			reply = append(reply, a.AsSlice()...)
		}
	}
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
	return err
}

// wantOwn wants an answer of the proxy itself, which says nothing else.
func wantOwn(t *testing.T, what string, got Response, status int) {
	t.Helper()
	if got.Status != status || !got.Own {
		t.Errorf("%s: want an own %d, got %d, own %v", what, status, got.Status, got.Own)
	}
	if got.Own && (got.Reason != http.StatusText(got.Status) || got.Headers != "content-length:0\n" || len(got.Body) != 0) {
		t.Errorf("%s: it says %q %q %q", what, got.Reason, got.Headers, got.Body)
	}
}

// wantFrom wants the answer of a service.
func wantFrom(t *testing.T, what string, got Response, status int, body string) {
	t.Helper()
	if got.Status != status || got.Own || string(got.Body) != body {
		t.Errorf("%s: want %d %.80q of the service, got %d %.80q, own %v", what, status, body, got.Status, got.Body, got.Own)
	}
}

// quiet is for servers whose complaints are what a test wants.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

package relay

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/netio"
	"github.com/embedpush/push/internal/polling"
)

// counted counts the bytes that cross between the nodes.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// quiet is a session's host for benchmarks.
type quiet struct {
	p  *polling.Session
	nc *netio.Conn
}

func (*quiet) PostLimit() int       { return -1 }
func (*quiet) Alive(time.Time) bool { return true }
func (*quiet) Posted(bool)          {}
func (q *quiet) Broken(error)       { q.nc.Close() }
func (*quiet) Upgraded()            {}
func (*quiet) Data(b []byte) int    { return len(b) }
func (*quiet) Tick(time.Time)       {}
func (*quiet) Slow()                {}
func (q *quiet) Closed(error)       { q.p.End() }

// rack is two nodes over loopback. What it asks the servers does not cross a
// socket, what one relays to the other does.
type rack struct {
	tb            testing.TB
	holder, entry *polling.Server
	driver        *netio.Driver
	wire          atomic.Int64
	last          *quiet
}

func newRack(tb testing.TB) *rack {
	tb.Helper()
	k := &rack{tb: tb, driver: netio.New(netio.Config{})}
	key := bytes.Repeat([]byte{7}, 32)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	k.holder = polling.New(polling.Config{
		Sids: polling.NewSids(tagOf("a"), key),
		Open: func(w http.ResponseWriter, r *http.Request, a polling.Ask) {
			k.last = &quiet{p: k.holder.NewSession(a)}
			k.last.nc = new(netio.Conn)
			k.driver.DrivePulled(k.last.nc, k.last, k.last.p.Wake, netip.AddrPort{})
			k.last.nc.Write(eio.AppendOpen(nil, &eio.Handshake{SID: k.last.p.SID()}))
			k.last.nc.Start()
			k.last.p.Begin(w, r, k.last.nc, k.last)
		},
	})
	far := New(Config{Handler: k.holder})
	go far.Serve(ln)
	near := New(Config{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		nc, err := d.DialContext(ctx, "tcp", ln.Addr().String())
		return counted{nc, &k.wire}, err
	}})
	k.entry = polling.New(polling.Config{
		Sids:  polling.NewSids(tagOf("b"), key),
		Relay: func(w http.ResponseWriter, r *http.Request, _ [8]byte) bool { near.Forward(w, r, "a"); return true },
	})
	tb.Cleanup(func() { near.Close(); far.Close(); k.driver.Close() })
	return k
}

// writer is a ResponseWriter that costs next to nothing.
type writer struct {
	header http.Header
	status int
	n      int
}

func (w *writer) Header() http.Header              { return w.header }
func (w *writer) WriteHeader(status int)           { w.status = status }
func (w *writer) Write(b []byte) (int, error)      { w.n += len(b); return len(b), nil }
func (w *writer) FlushError() error                { return nil }
func (w *writer) SetReadDeadline(time.Time) error  { return nil }
func (w *writer) SetWriteDeadline(time.Time) error { return nil }

func (k *rack) ask(s *polling.Server, method, query, body string) {
	k.askWith(context.Background(), s, method, query, body)
}

func (k *rack) askWith(ctx context.Context, s *polling.Server, method, query, body string) {
	r, err := http.NewRequestWithContext(ctx, method, "/socket.io/?"+query, nil)
	if err != nil {
		k.tb.Fatal(err)
	}
	r.Body, r.RemoteAddr, r.Host = http.NoBody, "10.1.2.3:45678", "push.example"
	if body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		r.Header["Content-Type"] = []string{"text/plain;charset=UTF-8"}
	}
	w := &writer{header: http.Header{}}
	s.ServeHTTP(w, r)
	if w.status != 200 {
		k.tb.Errorf("%s got %d", method, w.status)
	}
}

// begin makes a session, and returns its query.
func (k *rack) begin() (*quiet, string) {
	k.ask(k.holder, "GET", "EIO=4&transport=polling", "")
	return k.last, "EIO=4&transport=polling&t=abcdefg&sid=" + k.last.p.SID()
}

// One small poll of a session, at its node and through another. wire-B/op is
// what crosses between the nodes, both ways.
func BenchmarkSmallPoll(b *testing.B) {
	frame := eio.AppendPacket(nil, eio.Message, `2["hello","`+strings.Repeat("x", 100)+`"]`)
	packet := string(eio.Message) + `2["hello","` + strings.Repeat("x", 100) + `"]`
	for _, method := range []string{"GET", "POST"} {
		for _, where := range []string{"local", "relayed"} {
			for _, how := range []string{"one", "many"} {
				b.Run(method+"/"+where+"/"+how, func(b *testing.B) {
					k := newRack(b)
					s := map[string]*polling.Server{"local": k.holder, "relayed": k.entry}[where]
					_, query := k.begin()
					if where == "relayed" {
						k.ask(s, "POST", query, packet) // it dials
					}
					b.ReportAllocs()
					k.wire.Store(0)
					one := func(q *quiet, query string) {
						if method == "GET" {
							q.nc.Write(frame)
							k.ask(s, "GET", query, "")
						} else {
							k.ask(s, "POST", query, packet)
						}
					}
					if how == "one" {
						q, query := k.begin()
						for b.Loop() {
							one(q, query)
						}
					} else {
						b.SetParallelism(32)
						begun := make(chan struct{}, 1)
						b.RunParallel(func(pb *testing.PB) {
							begun <- struct{}{}
							q, query := k.begin()
							<-begun
							for pb.Next() {
								one(q, query)
							}
						})
					}
					b.ReportMetric(float64(k.wire.Load())/float64(b.N), "wire-B/op")
				})
			}
		}
	}
}

// What a held GET costs, both nodes together, without the client's connection.
func BenchmarkHeldPolls(b *testing.B) {
	for _, where := range []string{"local", "relayed"} {
		b.Run(where, func(b *testing.B) {
			const count = 2000
			for b.Loop() {
				k := newRack(b)
				s := map[string]*polling.Server{"local": k.holder, "relayed": k.entry}[where]
				var all []*quiet
				var queries []string
				for range count {
					q, query := k.begin()
					all, queries = append(all, q), append(queries, query)
				}
				before := memory()
				done := make(chan struct{})
				for i := range all {
					go func() { k.ask(s, "GET", queries[i], ""); done <- struct{}{} }()
				}
				for _, q := range all {
					for !q.p.Polls() {
						runtime.Gosched()
					}
				}
				b.ReportMetric(float64(memory()-before)/count, "B/poll")
				for _, q := range all {
					q.nc.Write(eio.AppendPacket(nil, eio.Message, "x"))
				}
				for range all {
					<-done
				}
			}
		})
	}
}

// memory is what the heap and the stacks have now.
func memory() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

//go:build unix

package link

import (
	"fmt"
	"io"
	"log"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/embedpush/push/internal/directory"
	"github.com/hashicorp/memberlist"
)

// echo is a Handler that answers each request with its body.
type echo struct {
	quiet
	answered func()
	linked   chan struct{}

	mu   sync.Mutex // guards what follows
	back []byte
}

func (e *echo) Request(in *In, kind byte, body []byte) {
	e.mu.Lock()
	e.back = AppendMessage(e.back, kind+1, body)
	e.mu.Unlock()
	in.Ready(e)
}

func (e *echo) Append(dst []byte, room int) ([]byte, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, used := wholeMessages(e.back[:min(len(e.back), room)])
	if n == 0 {
		used = len(e.back)
	}
	dst = append(dst, e.back[:used]...)
	e.back = e.back[:copy(e.back, e.back[used:])]
	return dst, len(e.back) > 0
}

func (e *echo) Answer(p *Peer, kind byte, body []byte) { e.answered() }
func (e *echo) Linked(p *Peer, greeting []byte)        { close(e.linked) }

func sockets(b testing.TB) *memberlist.NetTransport {
	t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{"127.0.0.1"}, Logger: log.New(io.Discard, "", 0)})
	if err != nil {
		b.Fatal(err)
	}
	return t
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// report tells messages a second and the CPU of both ends for one.
func report(b *testing.B, since time.Duration) {
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	b.ReportMetric(float64((cpu()-since).Nanoseconds())/1000/float64(b.N), "cpu-µs/msg")
}

func BenchmarkRequestAnswer(b *testing.B) {
	for _, secure := range []bool{true, false} {
		for _, window := range []int{1, 64, 1024} {
			name := "plain"
			if secure {
				name = "tls"
			}
			b.Run(fmt.Sprintf("%s/window%d", name, window), func(b *testing.B) { benchRequestAnswer(b, secure, window) })
		}
	}
}

func benchRequestAnswer(b *testing.B, secure bool, window int) {
	slots := make(chan struct{}, window)
	var answers atomic.Int64
	ends := [2]*echo{{linked: make(chan struct{})}, {linked: make(chan struct{})}}
	ends[0].answered = func() { answers.Add(1); <-slots }
	var meshes [2]*Mesh
	var addrs [2]string
	for i := range ends {
		self := directory.Origin{ID: fmt.Sprintf("n%d", i), Epoch: 1}
		tr := sockets(b)
		addrs[i] = fmt.Sprintf("127.0.0.1:%d", tr.GetAutoBindPort())
		cfg := Config{Self: self, Directory: directory.New(self, nil), Transport: tr, Handler: ends[i]}
		if secure {
			cfg.Keys = keys("a secret")
		}
		meshes[i] = New(cfg)
		defer meshes[i].Transport().Shutdown()
		defer meshes[i].Close(b.Context())
	}
	other := directory.Origin{ID: "n1", Epoch: 1}
	meshes[0].Up(other, addrs[1])
	<-ends[0].linked
	p := meshes[0].Peer(other)
	message := append([]byte{40}, make([]byte, 256)...)
	b.ReportAllocs()
	b.ResetTimer()
	began := cpu()
	for range b.N {
		slots <- struct{}{}
		if err := p.Offer(message); err != nil {
			b.Fatal(err)
		}
	}
	for range window {
		slots <- struct{}{}
	}
	b.StopTimer()
	report(b, began)
	if n := answers.Load(); n != int64(b.N) {
		b.Fatalf("%d answers to %d requests", n, b.N)
	}
}

// BenchmarkSendReliable is what memberlist has for the purpose: a dial for each
// message, and no answer.
func BenchmarkSendReliable(b *testing.B) {
	var got atomic.Int64
	var lists [2]*memberlist.Memberlist
	for i := range lists {
		cfg := memberlist.DefaultLANConfig()
		cfg.Name = fmt.Sprintf("n%d", i)
		cfg.Transport = sockets(b)
		cfg.Delegate = countDelegate{&got}
		cfg.LogOutput = io.Discard
		l, err := memberlist.Create(cfg)
		if err != nil {
			b.Fatal(err)
		}
		defer l.Shutdown()
		lists[i] = l
	}
	if _, err := lists[0].Join([]string{lists[1].LocalNode().Address()}); err != nil {
		b.Fatal(err)
	}
	to := lists[1].LocalNode()
	message := make([]byte, 256)
	b.ResetTimer()
	began := cpu()
	for range b.N {
		if err := lists[0].SendReliable(to, message); err != nil {
			b.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); got.Load() < int64(b.N) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	report(b, began)
}

type countDelegate struct{ n *atomic.Int64 }

func (d countDelegate) NodeMeta(int) []byte               { return nil }
func (d countDelegate) NotifyMsg([]byte)                  { d.n.Add(1) }
func (d countDelegate) GetBroadcasts(int, int) [][]byte   { return nil }
func (d countDelegate) LocalState(bool) []byte            { return nil }
func (d countDelegate) MergeRemoteState(b []byte, _ bool) {}

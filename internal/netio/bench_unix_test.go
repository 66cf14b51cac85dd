//go:build unix

package netio

import (
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// BenchmarkWrite compares Write with the bare system call on the same socket,
// a hundred of each in turn, so that a busy machine disturbs both alike.
func BenchmarkWrite(b *testing.B) {
	us, peer := pair(b, "tcp")
	defer hang(peer)
	file, err := us.(*net.TCPConn).File()
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	fd := int(file.Fd())
	syscall.SetNonblock(fd, true)
	c := driver(b, Config{QueueBytes: 256 << 10, TotalBytes: 256 << 20}).Add(us, idle{})
	c.Start()
	const each = 100
	m := make([]byte, 130)
	in := make([]byte, each*len(m))
	var bare, ours time.Duration
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		for range each {
			if _, err := syscall.Write(fd, m); err != nil {
				b.Fatal(err)
			}
		}
		bare += time.Since(start)
		io.ReadFull(peer, in)
		start = time.Now()
		for range each {
			if err := c.Write(m); err != nil {
				b.Fatal(err)
			}
		}
		ours += time.Since(start)
		io.ReadFull(peer, in)
	}
	n := float64(b.N * each)
	b.ReportMetric(float64(bare)/n, "bare-ns/write")
	b.ReportMetric(float64(ours)/n, "ns/write")
	b.ReportMetric(float64(ours)/float64(bare), "x-bare")
	b.ReportMetric(0, "ns/op")
}

//go:build unix

package netio

import (
	"io"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
)

// rawConn returns nc's descriptor if nc is exactly a type of package net: a
// wrapper would be bypassed.
func rawConn(nc net.Conn) syscall.RawConn {
	var raw syscall.RawConn
	var err error
	switch nc := nc.(type) {
	case *net.TCPConn:
		raw, err = nc.SyscallConn()
	case *net.UnixConn:
		raw, err = nc.SyscallConn()
	}
	if raw != nil && err == nil {
		// Whoever looked at the socket by File().Fd() has made it a blocking
		// one, in all its copies, and our reads and writes must not block.
		err = raw.Control(func(fd uintptr) { _ = syscall.SetNonblock(int(fd), true) })
	}
	if err != nil {
		return nil // reading says what is wrong
	}
	return raw
}

// input is what one read brought.
type input struct {
	buf [readSize]byte
	n   int
	err syscall.Errno
}

var inputs = sync.Pool{New: func() any { return new(input) }}

// readRaw waits for bytes without a buffer.
func (c *Conn) readRaw(f freshness) {
	var in *input // what the last read brought
	ready := func(fd uintptr) bool {
		in = tryRead(fd)
		return in != nil
	}
	for {
		err := c.s.raw.Read(ready)
		if err == nil && in.n > 0 {
			more, n := c.deliver(in.buf[:in.n], true, false), in.n
			inputs.Put(in)
			in = nil
			switch {
			case !more:
				return
			case n < readSize && f.spend(c.shard.d):
				go c.readRaw(f)
				return
			}
			continue
		}
		if in != nil {
			err = io.EOF
			if in.err != 0 {
				err = os.NewSyscallError("read", in.err)
			}
			inputs.Put(in)
		}
		c.readEnded(err)
		return
	}
}

// tryRead is called inside RawConn.Read, where nothing but a read is allowed:
// a Close in here would wait for itself. It returns nil when there is nothing
// yet.
func tryRead(fd uintptr) *input {
	in := inputs.Get().(*input)
	in.n, in.err = sysRead(fd, in.buf[:])
	if in.err == syscall.EAGAIN {
		inputs.Put(in)
		return nil
	}
	return in
}

// tryRaw is called inside RawConn.Write. When it is called again, after a
// wait, it does not write: the queue may have changed meanwhile.
func (w *writer) tryRaw(fd uintptr) bool {
	if w.parked {
		return true
	}
	w.n, w.err = sysWrite(fd, w.b)
	if w.err != syscall.EAGAIN {
		return true
	}
	w.n, w.err = 0, 0
	if !w.wait {
		return true
	}
	// The wait is to begin inside this very call of RawConn.Write: another
	// one would begin by forgetting a wake-up that came between the two.
	// Whoever holds the connection's lock never waits for the descriptor.
	w.parked = true
	w.b = nil
	w.unjoin()
	w.c.parking()
	return false
}

func writeError(err syscall.Errno) error { return os.NewSyscallError("write", err) }

// Descriptors is how many descriptors the process may have, 0 if unknown.
func Descriptors() int {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil {
		return 0
	}
	return int(min(uint64(r.Cur), math.MaxInt32))
}

//go:build !pushgoroutines

package netio

import (
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// A shard's poller is an epoll descriptor and one goroutine. A connection that
// it has is a descriptor in that set: the net.Conn it came in, with the
// runtime's own registration, is gone. The set is itself watched by the
// runtime's poller, so no thread is blocked in it.
//
// The set is level-triggered: what is not read, or not written, is told of
// again, and no connection keeps the poller longer than a few reads. It holds a
// descriptor only while something is wanted of it: one that nobody reads must
// not tell of its hang-up again and again.
//
// A descriptor is closed by finish, when nobody holds a reference any more, and
// every system call with it is made with a reference: so no number is ever
// used that was given to another connection. What the set tells carries slot
// and generation instead of the number, for the same reason.

// poller is guarded by its shard's mu; ep is static once it is there.
type poller struct {
	ep   int32
	file *os.File      // ep's, known to the runtime's poller; nil: there is none yet
	done chan struct{} // closed when the goroutine has ended
}

// polled is what a connection needs that a poller has.
type polled struct {
	fd      int32  // static
	port    uint16 // static: of the peer; it has room here
	want    uint8  // guarded by Conn.mu: toRead, toWrite
	watched uint8  // guarded by Conn.mu: what the set tells of; 0: it is not in the set
}

const (
	someEvents = 128
	someReads  = 4 // of one connection, of readSize bytes, before others have their turn
)

// adopt makes c a polled connection with nc's descriptor and closes nc, if it
// has one that may be used and there is a second one to be had for it. There is
// no way back: one that the set does not take later is closed.
func (c *Conn) adopt(nc net.Conn) bool {
	raw := rawConn(nc)
	if raw == nil {
		return false
	}
	if !c.shard.openPoller() {
		return false
	}
	p := polled{fd: -1, port: c.port}
	// Not nc.File, which makes the socket a blocking one.
	err := raw.Control(func(fd uintptr) {
		dup, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_DUPFD_CLOEXEC, 0)
		if errno == 0 {
			p.fd = int32(dup)
		}
	})
	if err != nil || p.fd < 0 {
		return false
	}
	_ = nc.Close() // the other descriptor keeps the socket
	c.polled = p
	return true
}

// openPoller makes the shard's poller if there is none, which there is not
// before the first connection that needs it.
func (s *shard) openPoller() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return false
	case s.poll.file != nil:
		return true
	}
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	_ = syscall.SetNonblock(ep, true) // which tells os that it can be polled
	file := os.NewFile(uintptr(ep), "epoll")
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetReadDeadline(time.Time{}) // fails if it cannot
	}
	if err != nil {
		_ = file.Close()
		return false
	}
	s.poll = poller{int32(ep), file, make(chan struct{})}
	go s.run(raw, s.poll.done)
	return true
}

// closePoller ends the poller. No connection has it any more.
func (s *shard) closePoller() {
	s.mu.Lock()
	file, done := s.poll.file, s.poll.done
	s.mu.Unlock()
	if file != nil {
		_ = file.Close() // a second time it fails
		<-done
	}
}

// run is the poller's goroutine.
func (s *shard) run(raw syscall.RawConn, done chan<- struct{}) {
	defer close(done)
	var (
		events [someEvents]syscall.EpollEvent
		conns  [someEvents]*Conn
		buf    [readSize]byte
		n      int
	)
	wait := func(ep uintptr) bool {
		n = epollWait(ep, events[:])
		return n > 0
	}
	for raw.Read(wait) == nil {
		s.mu.Lock()
		for i := range n {
			slot, gen := int(events[i].Fd), uint32(events[i].Pad)
			if slot < len(s.slots) {
				if c := s.slots[slot]; c != nil && c.gen == gen {
					conns[i] = c
				}
			}
		}
		s.mu.Unlock()
		for i, c := range conns[:n] {
			if c != nil {
				c.ready(events[i].Events, buf[:])
				conns[i] = nil
			}
		}
	}
}

// epollWait takes what there is, without waiting.
func epollWait(ep uintptr, events []syscall.EpollEvent) int {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, ep, uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n)
		case syscall.EINTR:
		default:
			return 0
		}
	}
}

// ready is called by the poller when the set tells of c.
func (c *Conn) ready(events uint32, buf []byte) {
	const broken = syscall.EPOLLERR | syscall.EPOLLHUP
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.refs++
	if c.want&toWrite != 0 && events&(toWrite|broken) != 0 {
		c.refillLocked()
	}
	read := c.want&toRead != 0 && events&(toRead|broken) != 0
	c.mu.Unlock()
	if read {
		c.readSome(buf)
	} else {
		c.leave()
	}
}

// refillLocked writes what is queued as far as the socket takes it, and a few
// writes go. It lets go of mu for each.
func (c *Conn) refillLocked() {
	w := newWriter()
	for range takeOver {
		if c.queue() == nil || !c.stepLocked(w, false) {
			break
		}
	}
	w.free()
	if c.queue() == nil {
		c.watchLocked(toWrite, false)
		c.wroteAllLocked()
	}
}

// readSome reads, as long as there is more but for a few times, and gives up
// the caller's reference.
func (c *Conn) readSome(buf []byte) {
	for range someReads {
		n, errno := sysRead(uintptr(c.fd), buf)
		switch {
		case errno == syscall.EAGAIN:
			c.leave()
			return
		case errno != 0:
			c.readEnded(os.NewSyscallError("read", errno))
			return
		case n == 0:
			c.readEnded(nil)
			return
		case !c.deliver(buf[:n], false, false):
			return
		case n < len(buf):
			c.leave()
			return
		}
	}
	c.leave()
}

// readApart goes on reading on a goroutine of c's own, as long as Data takes
// long and there is something to read. It gives up the caller's reference.
func (c *Conn) readApart() {
	for {
		c.mu.Lock()
		long := c.long
		c.long = false
		if !long {
			c.watchLocked(toRead, true)
			c.mu.Unlock()
			c.leave()
			return
		}
		c.mu.Unlock()
		in := inputs.Get().(*input)
		n, errno := sysRead(uintptr(c.fd), in.buf[:])
		more := n > 0 && c.deliver(in.buf[:n], true, false)
		inputs.Put(in)
		switch {
		case errno == syscall.EAGAIN: // and the set looks for more
		case errno != 0:
			c.readEnded(os.NewSyscallError("read", errno))
			return
		case n == 0:
			c.readEnded(nil)
			return
		case !more:
			return
		}
	}
}

// watchLocked has the set look for something, or not any more.
func (c *Conn) watchLocked(events uint8, on bool) {
	if on {
		c.want |= events
	} else {
		c.want &^= events
	}
	op := syscall.EPOLL_CTL_MOD
	switch {
	case c.closed || c.want == c.watched:
		return
	case c.want == 0:
		op = syscall.EPOLL_CTL_DEL
	case c.watched == 0:
		op = syscall.EPOLL_CTL_ADD
	}
	c.watched = c.want
	event := syscall.EpollEvent{Events: uint32(c.want), Fd: c.slot, Pad: int32(c.gen)}
	if err := syscall.EpollCtl(int(c.shard.poll.ep), op, int(c.fd), &event); err != nil {
		go c.close(os.NewSyscallError("epoll_ctl", err), false)
	}
}

// put writes once to a polled connection and returns how much left. The caller
// is its writer and holds a reference.
func (c *Conn) put(b []byte) (int, error) {
	n, errno := sysWrite(uintptr(c.fd), b)
	if errno != 0 && errno != syscall.EAGAIN {
		return 0, writeError(errno)
	}
	return n, nil
}

// finLocked closes our side of a polled connection.
func (c *Conn) finLocked() {
	if syscall.Shutdown(int(c.fd), syscall.SHUT_WR) != nil {
		go c.Close()
	}
}

// drop closes the descriptor. Nobody else uses it any more.
func (c *Conn) drop(reset bool) {
	if c.watched != 0 { // closing does it too, but not while a child process has a copy
		_ = syscall.EpollCtl(int(c.shard.poll.ep), syscall.EPOLL_CTL_DEL, int(c.fd), nil)
	}
	// With a time to linger that somebody set before, close would wait.
	var linger syscall.Linger
	if reset {
		linger.Onoff = 1
	}
	_ = syscall.SetsockoptLinger(int(c.fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &linger)
	_ = syscall.Close(int(c.fd))
}

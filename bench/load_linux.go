package main

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/embedpush/push/internal/mpush"
)

// load is the clients of one server: a process of its own with one thread and
// one epoll, which reads what comes, checks it, counts it and answers pings. It
// obeys lines of stdin, each with one line on stdout, and ends with stdin:
//
//	dial PORT DOOR FIRST N  opens connections as users uFIRST, …, ten in a room
//	wait N                  until so many events have come in all, or long enough: how many, when the last
//	latencies               of the stamped ones since the last time, in ns
//	beat                    sends what answers a ping, or a device's heartbeat, on every connection
//	drop N                  closes those of the users below uN
//	lost                    how many connections ended, and how many pings were answered
type load struct {
	epoll     int
	conns     []loadConn // by descriptor
	buf       []byte
	in        []byte // the beginning of a command
	events    int64
	lost      int64
	pings     int64
	wrong     string // the first thing that should not have come
	target    int64  // the events that a wait waits for; 0: none does
	deadline  time.Time
	latencies []int64
}

// loadConn is a connection. There are tens of thousands.
type loadConn struct {
	open bool
	user int
	door string
	rest []byte        // the beginning of a frame
	tls  *tls.Conn     // doorTLS
	key  *mpush.Cipher // of a device's session; nil: it is plain
}

const waitAtMost = 30 * time.Second // of wait

func runLoad() (err error) {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // what dialing leaves behind is little
	debug.SetMemoryLimit(1 << 30)
	l := &load{buf: make([]byte, 256<<10)}
	if l.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if err := l.watch(0); err != nil {
		return err
	}
	ready := make([]syscall.EpollEvent, 512)
	for {
		patience := -1
		if l.target > 0 {
			patience = 1000
		}
		n, err := syscall.EpollWait(l.epoll, ready, patience)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for _, r := range ready[:n] {
			if r.Fd != 0 {
				l.read(int(r.Fd))
				continue
			}
			if more, err := l.commands(); !more || err != nil {
				return err
			}
		}
		if l.target > 0 && (l.events >= l.target || l.lost > 0 || l.wrong != "" || n == 0 && time.Now().After(l.deadline)) {
			l.answer(l.events, monotonic())
			l.target = 0
		}
	}
}

func (l *load) watch(fd int) error {
	return syscall.EpollCtl(l.epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)})
}

// answer prints numbers, or what went wrong.
func (l *load) answer(numbers ...int64) {
	if l.wrong != "" {
		fmt.Printf("error %q\n", l.wrong)
		return
	}
	var b []byte
	for _, n := range numbers {
		b = append(strconv.AppendInt(b, n, 10), ' ')
	}
	os.Stdout.Write(append(b, '\n'))
}

// commands reads stdin and obeys; more is false at its end.
func (l *load) commands() (more bool, err error) {
	n, err := syscall.Read(0, l.buf)
	if n <= 0 {
		return false, err
	}
	l.in = append(l.in, l.buf[:n]...)
	for {
		line, rest, whole := bytes.Cut(l.in, []byte("\n"))
		if !whole {
			return true, nil
		}
		if err := l.command(strings.Fields(string(line))); err != nil {
			return false, err
		}
		l.in = rest
	}
}

func (l *load) command(words []string) error {
	number := func(i int) int {
		n, _ := strconv.Atoi(words[i])
		return n
	}
	switch words[0] {
	case "dial":
		if err := l.dial(number(1), words[2], number(3), number(4)); err != nil {
			return err
		}
		l.answer()
	case "wait":
		l.target, l.deadline = int64(number(1)), time.Now().Add(waitAtMost)
	case "latencies":
		l.answer(l.latencies...)
		l.latencies = l.latencies[:0]
	case "beat":
		for fd := range l.conns {
			c := &l.conns[fd]
			if !c.open {
				continue
			}
			beat := []byte{mpush.Beat}
			switch c.door {
			case doorWebSocket, doorTLS:
				beat = []byte{0x8a, 0x80, 0, 0, 0, 0}
			case doorSocketIO:
				beat = maskedText("3")
			}
			if err := l.write(fd, beat); err != nil {
				return err
			}
		}
		l.answer()
	case "drop":
		for fd := range l.conns {
			if c := &l.conns[fd]; c.open && c.user < number(1) {
				l.close(fd)
			}
		}
		l.answer()
	case "lost":
		l.answer(l.lost, l.pings)
	}
	return nil
}

// close ends a connection by a reset: thousands of ends in TIME_WAIT would use
// up the ports.
func (l *load) close(fd int) {
	l.conns[fd] = loadConn{}
	syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	syscall.Close(fd)
}

func (l *load) write(fd int, b []byte) (err error) {
	if c := l.conns[fd].tls; c != nil {
		_, err = c.Write(b)
		return err
	}
	_, err = syscall.Write(fd, b)
	return err
}

// read reads once: epoll says again if there is more.
func (l *load) read(fd int) {
	c := &l.conns[fd]
	if !c.open { // dropped since epoll told of it
		return
	}
	if c.tls != nil {
		l.readTLS(fd, c)
		return
	}
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&l.buf[0])), uintptr(len(l.buf)))
	if errno == syscall.EAGAIN || errno == syscall.EINTR {
		return
	}
	if errno != 0 || n == 0 {
		l.lose(fd)
		return
	}
	l.feed(fd, l.buf[:n])
}

// readTLS reads all that there is: what crypto/tls has buffered no epoll tells.
func (l *load) readTLS(fd int, c *loadConn) {
	for c.open {
		n, err := c.tls.Read(l.buf)
		switch {
		case n > 0:
			l.feed(fd, l.buf[:n])
		case errors.Is(err, syscall.EAGAIN):
			return
		default:
			l.lose(fd)
		}
	}
}

func (l *load) lose(fd int) {
	l.lost++
	l.close(fd)
}

// feed takes what came on a connection apart.
func (l *load) feed(fd int, b []byte) {
	c := &l.conns[fd]
	if len(c.rest) > 0 {
		c.rest = append(c.rest, b...)
		b = c.rest
	}
	for len(b) > 0 && c.open {
		n := 0
		if c.door == doorMPush || c.door == doorMPushRSA {
			n = l.packet(c, b)
		} else {
			n = l.frame(fd, c, b)
		}
		if n == 0 {
			break
		}
		b = b[n:]
	}
	if len(b) > 0 && c.open {
		c.rest = append([]byte(nil), b...)
	} else {
		c.rest = nil
	}
}

// frame takes a frame of a server from the beginning of b and returns its
// length, 0 if not all of it is there.
func (l *load) frame(fd int, c *loadConn, b []byte) int {
	if len(b) < 2 {
		return 0
	}
	size, head := int(b[1]), 2
	switch size {
	case 126:
		if head = 4; len(b) < head {
			return 0
		}
		size = int(binary.BigEndian.Uint16(b[2:]))
	case 127:
		l.wrong = "a frame is longer than any should be"
		return 0
	}
	if len(b) < head+size {
		return 0
	}
	payload := b[head : head+size]
	switch {
	case b[0] == 0x89:
		l.pings++
		pong := append([]byte{0x8a, 0x80 | byte(size), 0, 0, 0, 0}, payload...) // a mask of zeros changes nothing
		if l.write(fd, pong) != nil {
			l.lose(fd)
		}
	case b[0] != 0x81:
		l.wrong = fmt.Sprintf("a frame %.64q of user %d", b[:head+size], c.user)
	case c.door == doorSocketIO && string(payload) == "2":
		l.pings++
		if l.write(fd, maskedText("3")) != nil {
			l.lose(fd)
		}
	default:
		l.event(c, payload)
	}
	return head + size
}

var (
	eventBytes    = []byte(eventText)
	socketIOBytes = []byte(socketIOText)
	eventHead     = eventBytes[:len(eventText)-len(eventData)-len(`"}`)]
	socketIOHead  = socketIOBytes[:len(socketIOText)-len(socketIOData)-len(`"]`)]
)

// event counts one that is as it should be.
func (l *load) event(c *loadConn, payload []byte) {
	want, head := eventBytes, eventHead
	if c.door == doorSocketIO {
		want, head = socketIOBytes, socketIOHead
	}
	if bytes.Equal(payload, want) {
		l.events++
		return
	}
	stamp, ok := bytes.CutPrefix(payload, head)
	if ok && len(stamp) >= stampLen && stamp[0] == stampMark {
		if sent, err := strconv.ParseInt(string(stamp[1:stampLen]), 10, 64); err == nil {
			l.latencies = append(l.latencies, monotonic()-sent)
			l.events++
			return
		}
	}
	l.wrong = fmt.Sprintf("an event %.150q of user %d", payload, c.user)
}

// packet does the same for a device.
func (l *load) packet(c *loadConn, b []byte) int {
	if b[0] == mpush.Beat {
		return 1
	}
	if len(b) < mpush.HeaderLen {
		return 0
	}
	h := mpush.ParseHeader(b[:mpush.HeaderLen])
	n := mpush.HeaderLen + int(h.Len)
	if len(b) < n {
		return 0
	}
	body, want := bytes.Clone(b[mpush.HeaderLen:n]), strconv.Quote(eventData)
	var err error
	if h.Flags&mpush.FlagCrypto != 0 {
		body, err = c.key.Open(body)
	}
	if h.Cmd != mpush.CmdPush || err != nil || string(body) != want {
		l.wrong = fmt.Sprintf("a packet of command %d for device %d: %.150q, %v", h.Cmd, c.user, body, err)
	}
	l.events++
	return n
}

// maskedText is a text frame of a client; a mask of zeros changes nothing.
func maskedText(text string) []byte {
	return append([]byte{0x81, 0x80 | byte(len(text)), 0, 0, 0, 0}, text...)
}

const dialBatch = 128 // connections that begin at a time, so that both processes have work

// dial opens connections. A batch makes each step together.
func (l *load) dial(port int, door string, first, n int) error {
	steps := map[string][]func(fd int, c *loadConn) error{
		doorWebSocket: {l.request, l.upgraded},
		doorTLS:       {l.secure, l.request, l.upgraded},
		doorSocketIO:  {l.request, l.upgraded, l.join, l.joined},
		doorMPush:     {l.handshake, l.bind, l.bound},
		doorMPushRSA:  {l.handshake, l.bind, l.bound},
	}[door]
	if steps == nil {
		return fmt.Errorf("no door is called %q", door)
	}
	for begin := first; begin < first+n; begin += dialBatch {
		var fds []int
		for user := begin; user < min(begin+dialBatch, first+n); user++ {
			fd, err := connect(port, user)
			if err != nil {
				return err
			}
			for fd >= len(l.conns) {
				l.conns = append(l.conns, make([]loadConn, 1024)...)
			}
			l.conns[fd] = loadConn{open: true, user: user, door: door}
			fds = append(fds, fd)
		}
		for _, step := range steps {
			for _, fd := range fds {
				if err := step(fd, &l.conns[fd]); err != nil {
					return fmt.Errorf("user %d: %w", l.conns[fd].user, err)
				}
			}
		}
		for _, fd := range fds {
			if err := syscall.SetNonblock(fd, true); err != nil {
				return err
			}
			if err := l.watch(fd); err != nil {
				return err
			}
		}
	}
	return nil
}

// connect opens a socket, on which nothing is waited for longer than 20 s. The
// clients come from several addresses, so that there are ports enough.
func connect(port, user int) (fd int, err error) {
	const bindAddressNoPort = 24 // IP_BIND_ADDRESS_NO_PORT: the port is chosen by connect
	if fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 20})
	syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, bindAddressNoPort, 1)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 2 + byte(user%8)}}); err != nil {
		return 0, fmt.Errorf("bind: %w", err)
	}
	if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

const roomSize = 10

func (l *load) request(fd int, c *loadConn) error {
	path := "/ws?"
	if c.door == doorSocketIO {
		path = "/socket.io/?EIO=4&transport=websocket&"
	}
	return l.write(fd, fmt.Appendf(nil, "GET %suser=u%d&room=r%d HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n", path, c.user, c.user/roomSize))
}

// upgraded awaits the answer to a request. Socket.IO has its first frame behind
// that; others may have a ping there, for the first is not a whole heartbeat
// later.
func (l *load) upgraded(fd int, c *loadConn) error {
	return l.await(fd, c, func(got []byte) (whole bool, err error) {
		head, rest, ended := bytes.Cut(got, []byte("\r\n\r\n"))
		if !ended {
			return false, nil
		}
		if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
			return false, fmt.Errorf("answer %.300q", got)
		}
		if c.door == doorSocketIO {
			return beginsWith(rest, "0{")
		}
		l.feed(fd, rest)
		return true, nil
	})
}

// join is Socket.IO's CONNECT.
func (l *load) join(fd int, c *loadConn) error { return l.write(fd, maskedText("40")) }

func (l *load) joined(fd int, c *loadConn) error {
	return l.await(fd, c, func(got []byte) (bool, error) { return beginsWith(got, "40{") })
}

// beginsWith reports whether b is one short frame whose text begins so, or
// false if it may still become it.
func beginsWith(b []byte, text string) (bool, error) {
	head := 2
	if len(b) < head {
		return false, nil
	}
	size := int(b[1])
	if size == 126 {
		if head = 4; len(b) < head {
			return false, nil
		}
		size = int(binary.BigEndian.Uint16(b[2:]))
	}
	if len(b) < head+size {
		return false, nil
	}
	if len(b) > head+size || !bytes.HasPrefix(b[head:], []byte(text)) {
		return false, fmt.Errorf("frames %.300q, want one of %q", b, text)
	}
	return true, nil
}

// await reads, and waits, until whole says that it has all or cannot get it.
func (l *load) await(fd int, c *loadConn, whole func(got []byte) (bool, error)) error {
	var got []byte
	for {
		var n int
		var err error
		if c.tls != nil {
			n, err = c.tls.Read(l.buf)
		} else {
			n, err = syscall.Read(fd, l.buf)
		}
		if err == syscall.EINTR { // a socket with a timeout does not go on by itself
			continue
		}
		if n <= 0 {
			return fmt.Errorf("after %.300q: %w", got, cmp.Or(err, io.ErrUnexpectedEOF))
		}
		got = append(got, l.buf[:n]...)
		if done, err := whole(got); done || err != nil {
			return err
		}
	}
}

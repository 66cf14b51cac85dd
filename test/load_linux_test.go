package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// A benchmark's clients live in a second process, this program started again,
// so that the first one's CPU and memory are the server's alone. The two talk
// in lines over the second's stdin and stdout; it ends with its stdin.

// runLoadClient is that second process.
func runLoadClient() {
	var err error
	switch role := os.Getenv("PUSH_LOAD_CLIENT"); role {
	case roleClients:
		debug.SetGCPercent(-1) // it allocates when it dials, and is one thread otherwise
		debug.SetMemoryLimit(1 << 30)
		err = newLoadClients().run()
	default:
		err = runMemoryServer(role)
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

const roleClients = "clients"

// secondProcess is the first process's view of a second one.
type secondProcess struct {
	b    *testing.B
	in   *os.File // its stdin
	out  *os.File // its stdout
	buf  *bufio.Reader
	stop func() // ends it and waits for its end
}

// startProcess starts a second process; it ends with the benchmark.
func startProcess(b *testing.B, role string) *secondProcess {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	childIn, in, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "PUSH_LOAD_CLIENT="+role)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = childIn, childOut, os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	childIn.Close()
	childOut.Close()
	end := sync.OnceFunc(func() {
		in.Close()
		cmd.Wait()
		out.Close()
	})
	b.Cleanup(end)
	return &secondProcess{b: b, in: in, out: out, buf: bufio.NewReader(out), stop: end}
}

// ask sends a line and returns the numbers of the answer.
func (p *secondProcess) ask(answer []int64, format string, args ...any) {
	p.b.Helper()
	p.tell(format, args...)
	p.hear(answer)
}

func (p *secondProcess) tell(format string, args ...any) {
	p.b.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		p.b.Fatal(err)
	}
}

func (p *secondProcess) hear(answer []int64) {
	p.b.Helper()
	p.out.SetReadDeadline(time.Now().Add(time.Minute))
	line, err := p.buf.ReadSlice('\n')
	if err != nil {
		p.b.Fatalf("the second process does not answer: %v", err)
	}
	rest := bytes.TrimSpace(line)
	if bytes.HasPrefix(rest, []byte("error")) {
		p.b.Fatalf("the second process says %q", line)
	}
	for i := range answer {
		var word []byte
		word, rest, _ = bytes.Cut(rest, []byte(" "))
		if answer[i], err = strconv.ParseInt(string(word), 10, 64); err != nil {
			p.b.Fatalf("the second process says %q", line)
		}
	}
}

// load is many clients in a second process.
type load struct {
	*secondProcess
	as     string // what dial opens: asPage, asTLS, or a kind of device or of socketKinds
	conns  int    // open
	frames int64  // that wait has waited for
	bytes  int64  // that wait has told
	line   []byte
}

func startLoad(b *testing.B) *load {
	b.Helper()
	return &load{secondProcess: startProcess(b, roleClients), as: asPage}
}

// dial opens n connections as users first, first+1, …; each group of roomSize
// is in one room.
func (l *load) dial(port, first, n, roomSize int) {
	l.b.Helper()
	l.ask(nil, "dial %d %d %d %d %s", port, first, n, roomSize, l.as)
	l.conns += n
}

// wait returns when n more frames have come, with the time (by monotonic) when
// the last of them had been read, and what they had in bytes.
func (l *load) wait(n int) (at, bytes int64) {
	l.b.Helper()
	l.frames += int64(n)
	l.line = append(strconv.AppendInt(append(l.line[:0], "wait "...), l.frames, 10), '\n') // allocates nothing
	if _, err := l.in.Write(l.line); err != nil {
		l.b.Fatal(err)
	}
	var got [4]int64
	l.hear(got[:])
	if got[0] != l.frames || got[1] != 0 {
		l.b.Fatalf("%d frames came, want %d; %d connections were lost", got[0], l.frames, got[1])
	}
	bytes, l.bytes = got[3]-l.bytes, got[3]
	return got[2], bytes
}

// latencies returns, and forgets, the latencies of messages that carry a stamp
// of this sender.
func (l *load) latencies(who byte) []time.Duration {
	l.b.Helper()
	var n [1]int64
	l.ask(n[:], "latencies %d", who)
	all := make([]time.Duration, n[0])
	for i := range all {
		l.hear(n[:])
		all[i] = time.Duration(n[0])
	}
	return all
}

// pong sends a frame on every connection, as the answer to a heartbeat is. A
// device sends a heartbeat, and is answered.
func (l *load) pong() {
	l.b.Helper()
	l.ask(nil, "pong")
	if l.as != asPage && l.as != asTLS {
		l.wait(l.conns)
	}
}

// hangUp closes every connection.
func (l *load) hangUp() { l.b.Helper(); l.drop(l.conns) }

// drop closes the last n connections.
func (l *load) drop(n int) { l.b.Helper(); l.ask(nil, "close %d", n); l.conns -= n }

// A stamp in a message lets the client tell how long that took: stampMark, who
// sent it, and when.
const (
	stampMark = '@'
	stampLen  = 2 + 19
)

func stamp(who byte) string { return fmt.Sprintf("%c%c%019d", stampMark, who, monotonic()) }

// monotonic is a clock that both processes have in common.
func monotonic() int64 {
	const clockMonotonic = 1
	var ts syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

// loadClients is the second process's side of load: one thread, one epoll.
type loadClients struct {
	epoll   int
	conns   []loadConn // by descriptor
	in      []byte     // the beginning of a command
	buf     []byte
	frames  int64
	bytes   int64
	lost    int64
	target  int64 // the frames that a wait waits for; 0: none does
	latency [256][]int64
}

// loadConn is one connection; frame boundaries are all it knows of its
// protocol.
type loadConn struct {
	open   bool
	left   int                   // of the current frame's payload
	head   [mpush.HeaderLen]byte // the beginning of a frame's header
	have   int                   // how much of head
	device *loadDevice           // nil: a page
	socket *loadSocket           // nil: not one of socketKinds
	tls    *tls.Conn             // nil: it is plain
}

func newLoadClients() *loadClients {
	return &loadClients{buf: make([]byte, 256<<10)}
}

func (c *loadClients) run() (err error) {
	runtime.LockOSThread()
	if c.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if err := c.watch(0); err != nil {
		return err
	}
	events := make([]syscall.EpollEvent, 512)
	for {
		n, err := syscall.EpollWait(c.epoll, events, -1)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for _, ev := range events[:n] {
			if ev.Fd != 0 {
				c.read(int(ev.Fd))
				continue
			}
			n, err := syscall.Read(0, c.buf)
			if n <= 0 {
				return err // the first process is gone, or done
			}
			c.in = append(c.in, c.buf[:n]...)
			for {
				line, rest, whole := bytes.Cut(c.in, []byte("\n"))
				if !whole {
					break
				}
				if err := c.command(strings.Fields(string(line))); err != nil {
					return err
				}
				c.in = rest
			}
		}
		if c.target > 0 && (c.frames >= c.target || c.lost > 0) {
			fmt.Println(c.frames, c.lost, monotonic(), c.bytes)
			c.target = 0
		}
	}
}

func (c *loadClients) watch(fd int) error {
	return syscall.EpollCtl(c.epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)})
}

func (c *loadClients) command(words []string) error {
	args := make([]int, len(words))
	for i, word := range words[1:] {
		args[i], _ = strconv.Atoi(word)
	}
	switch words[0] {
	case "dial":
		dial := func(port, first, n, roomSize int) error {
			return c.dial(port, first, n, roomSize, words[5] == asTLS)
		}
		if as := words[5]; socketKinds[as] != nil {
			dial = func(port, first, n, roomSize int) error {
				return c.dialSockets(port, first, n, roomSize, socketKinds[as])
			}
		} else if as != asPage && as != asTLS {
			dial = func(port, first, n, roomSize int) error { return c.dialDevices(port, first, n, roomSize, as) }
		}
		if err := dial(args[0], args[1], args[2], args[3]); err != nil {
			return err
		}
		fmt.Println("ok")
	case "wait":
		c.target = int64(args[0])
	case "latencies":
		all := c.latency[args[0]]
		c.latency[args[0]] = all[:0]
		out := fmt.Appendln(nil, len(all))
		for _, d := range all {
			out = fmt.Appendln(out, d)
		}
		os.Stdout.Write(out)
	case "pong":
		for fd, conn := range c.conns {
			frame := pong
			if conn.device != nil {
				frame = []byte{mpush.Beat}
			} else if conn.socket != nil {
				frame = conn.socket.beat()
			}
			if conn.open && len(frame) > 0 {
				if err := c.write(fd, frame); err != nil {
					return err
				}
			}
		}
		fmt.Println("ok")
	case "close":
		for fd := len(c.conns) - 1; fd >= 0 && args[0] > 0; fd-- { // each got the lowest descriptor there was
			if c.conns[fd].open {
				c.close(fd)
				args[0]--
			}
		}
		c.lost = 0
		fmt.Println("ok")
	}
	return nil
}

var pong = []byte{0x8a, 0x80, 1, 2, 3, 4}

func (c *loadClients) write(fd int, b []byte) (err error) {
	if t := c.conns[fd].tls; t != nil {
		_, err = t.Write(b)
	} else {
		_, err = syscall.Write(fd, b)
	}
	return err
}

// close ends a connection by a reset: 10 000 ends in TIME_WAIT would use up
// the ports.
func (c *loadClients) close(fd int) {
	c.conns[fd].open = false
	syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	syscall.Close(fd)
}

const dialBatch = 128 // connections that begin at a time, so that both processes have work

// dial opens a page's connections.
func (c *loadClients) dial(port, first, n, roomSize int, secure bool) error {
	var fds [dialBatch]int
	var conns [dialBatch]io.ReadWriter
	for begin := 0; begin < n; begin += dialBatch {
		fds := fds[:min(dialBatch, n-begin)]
		for i := range fds {
			fd, err := connect(port)
			if err != nil {
				return err
			}
			fds[i], conns[i] = fd, descriptor{fd: fd}
			if secure {
				conns[i] = tls.Client(descriptor{fd: fd}, &tls.Config{InsecureSkipVerify: true}) // the server is ours
			}
			user := first + begin + i
			request := fmt.Sprintf("GET /ws?user=u%d&room=r%d HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
				"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n", user, user/roomSize)
			if _, err := conns[i].Write([]byte(request)); err != nil {
				return fmt.Errorf("request: %w", err)
			}
		}
		for i, fd := range fds {
			var answer []byte
			var frames []byte
			for whole := false; !whole; {
				n, err := conns[i].Read(c.buf)
				if err != nil {
					return fmt.Errorf("answer %q: %w", answer, err)
				}
				answer = append(answer, c.buf[:n]...)
				_, frames, whole = bytes.Cut(answer, []byte("\r\n\r\n"))
			}
			if !bytes.HasPrefix(answer, []byte("HTTP/1.1 101 ")) {
				return fmt.Errorf("answer %q", answer)
			}
			if err := c.add(fd, nil); err != nil {
				return err
			}
			c.conns[fd].tls, _ = conns[i].(*tls.Conn)
			c.feed(fd, frames)
		}
	}
	return nil
}

// descriptor is what crypto/tls needs of a net.Conn. When there is nothing to
// read it returns EAGAIN, a temporary net.Error: a tls.Conn can be read again.
type descriptor struct {
	net.Conn // nil
	fd       int
}

func (d descriptor) Read(b []byte) (int, error) {
	n, err := syscall.Read(d.fd, b)
	for err == syscall.EINTR { // a socket with a timeout does not go on by itself
		n, err = syscall.Read(d.fd, b)
	}
	if n == 0 && err == nil {
		err = io.ErrUnexpectedEOF
	}
	return max(n, 0), err
}

func (d descriptor) Write(b []byte) (int, error) {
	n, err := syscall.Write(d.fd, b)
	return max(n, 0), err
}

// connect opens a socket, on which nothing is waited for longer than 20 s.
func connect(port int) (fd int, err error) {
	if fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 20})
	if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

// await reads into buf and waits until there is something.
func (c *loadClients) await(fd int) (n int, err error) { return descriptor{fd: fd}.Read(c.buf) }

// add takes a connection in that has been greeted.
func (c *loadClients) add(fd int, d *loadDevice) error {
	if err := syscall.SetNonblock(fd, true); err != nil {
		return err
	}
	for fd >= len(c.conns) {
		c.conns = append(c.conns, loadConn{})
	}
	c.conns[fd] = loadConn{open: true, device: d}
	return c.watch(fd)
}

// read reads what there is, once: epoll says again if there is more.
func (c *loadClients) read(fd int) {
	if c.conns[fd].tls != nil {
		c.readTLS(fd)
		return
	}
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&c.buf[0])), uintptr(len(c.buf)))
	if errno == syscall.EAGAIN || errno == syscall.EINTR {
		return
	}
	if errno != 0 || n == 0 {
		c.lost++
		c.close(fd)
		return
	}
	c.feed(fd, c.buf[:n])
	c.stamps(c.buf[:n])
	if c.conns[fd].socket == nil {
		c.ackPage(fd, c.buf[:n])
	} else {
		c.ackSocket(fd, c.buf[:n])
	}
}

// readTLS reads all there is: what crypto/tls has buffered no epoll tells.
func (c *loadClients) readTLS(fd int) {
	for {
		n, err := c.conns[fd].tls.Read(c.buf)
		if errors.Is(err, syscall.EAGAIN) {
			return
		}
		if err != nil {
			c.lost++
			c.close(fd)
			return
		}
		c.feed(fd, c.buf[:n])
	}
}

// stamps notes how long every stamped message in b took.
func (c *loadClients) stamps(b []byte) {
	if bytes.IndexByte(b, stampMark) < 0 {
		return
	}
	now := monotonic()
	for {
		i := bytes.IndexByte(b, stampMark)
		if i < 0 || i+stampLen > len(b) {
			return
		}
		if sent, err := strconv.ParseInt(string(b[i+2:i+stampLen]), 10, 64); err == nil {
			c.latency[b[i+1]] = append(c.latency[b[i+1]], now-sent)
		}
		b = b[i+stampLen:]
	}
}

// feed counts the frames that end in b, and answers pings, which are empty.
func (c *loadClients) feed(fd int, b []byte) {
	c.bytes += int64(len(b))
	f := &c.conns[fd]
	if f.device != nil {
		c.feedDevice(fd, b)
		return
	}
	if f.socket != nil && f.socket.polls {
		c.feedPolling(fd, b)
		return
	}
	for len(b) > 0 {
		if f.left > 0 {
			n := min(f.left, len(b))
			f.left -= n
			b = b[n:]
			if f.left == 0 {
				c.frames++
			}
			continue
		}
		f.head[f.have] = b[0]
		f.have++
		b = b[1:]
		if f.have < 2 {
			continue
		}
		size, need := int(f.head[1]), 2
		switch size {
		case 126:
			size, need = int(f.head[2])<<8|int(f.head[3]), 4
		case 127:
			size, need = int(f.head[6])<<24|int(f.head[7])<<16|int(f.head[8])<<8|int(f.head[9]), 10
		}
		if f.have < need {
			continue
		}
		f.have, f.left = 0, size
		if size == 0 {
			c.frames++
		}
		if f.head[0] == 0x89 {
			if err := c.write(fd, pong); err != nil {
				fmt.Println("error", err)
			}
		}
	}
}

// runMemoryServer is a second process that serves, so that what it needs is
// not hidden by what other benchmarks left behind. It prints its port, and for
// each line that it gets how many connections it has and what memory is in
// use: resident, heap objects, stacks.
func runMemoryServer(role string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var h http.Handler
	serve := func() { http.Serve(ln, h) }
	var conns func() int
	var broadcast func()
	switch role {
	case roleEngine, roleTLS:
		e, err := newBenchEngine(noHeartbeat)
		if err != nil {
			return err
		}
		if role == roleTLS {
			ln = overTLS(ln)
		}
		h, conns = e, func() int { return e.Stats().Conns }
		broadcast = func() { e.Broadcast(context.Background(), push.Message{Event: benchEvent, Data: benchText}) }
	case roleDevices:
		e, err := newDeviceEngine(push.MPush{})
		if err != nil {
			return err
		}
		serve, conns = func() { e.Serve(ln) }, func() int { return e.Stats().Conns }
		broadcast = func() { e.Broadcast(context.Background(), push.Message{Event: benchEvent, Data: benchText}) }
	case roleHub:
		hub := newHub()
		h, conns = hub, hub.size
		broadcast = func() { hub.broadcast([]byte(benchText)) }
	default:
		s, err := newSocketServer(role)
		if err != nil {
			return err
		}
		serve, conns, broadcast = func() { s.http.Serve(ln) }, s.count, s.broadcast
	}
	go serve()
	fmt.Println(ln.Addr().(*net.TCPAddr).Port)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "push" {
			broadcast()
			continue
		}
		rss, heap, stacks := residentMemory()
		fmt.Println(conns(), rss, heap, stacks)
	}
	return nil
}

const (
	roleEngine  = "engine"
	roleTLS     = "tls"     // the same over TLS
	roleDevices = "devices" // an engine that serves these
	roleHub     = "hub"
)

// asTLS is a page over TLS.
const asTLS = "tls"

// overTLS speaks TLS 1.3, with the key that handshakes are cheapest with.
func overTLS(ln net.Listener) net.Listener {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: keyTLS(key, key.Public()).Certificates})
}

// residentMemory is what this process needs when nothing is garbage: in RAM, and of it
// in heap objects and in stacks.
func residentMemory() (rss, heap, stacks int64) {
	runtime.GC()
	runtime.GC() // what sync.Pools held is garbage only now
	debug.FreeOSMemory()
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(samples)
	b, _ := os.ReadFile("/proc/self/statm")
	if words := strings.Fields(string(b)); len(words) > 1 {
		rss, _ = strconv.ParseInt(words[1], 10, 64)
	}
	return rss * int64(os.Getpagesize()), int64(samples[0].Value.Uint64()), int64(samples[1].Value.Uint64())
}

// cpuTime is what this process has used so far, user and system.
func cpuTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

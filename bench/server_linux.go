package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// server is one of the Go programs that are compared.
type server interface {
	http.Handler
	conns() int
	broadcast() error // of eventText, or what it is at the door
	push(user, data string) error
}

// serverOptions are what a server is started with.
type serverOptions struct {
	door      string
	heartbeat time.Duration // between pings
}

var servers = map[string]func(serverOptions) (server, error){
	"engine":  newEngine,
	"gorilla": newGorilla,
	"melody":  newMelody,
	"gws":     newGWS,
	"coder":   newCoder,
}

// runServer is a server's process. It prints its port, then obeys lines of
// stdin, each with one line on stdout, and ends with stdin:
//
//	conns             how many connections there are
//	cpu               user and system time so far, in ns
//	memory            when nothing is garbage, in bytes: RAM, heap objects, stacks; goroutines
//	broadcast N       so many back to back; tells when they began
//	push HOW N USERS  to N different of so many users: work, rest or flat
func runServer(role string, o serverOptions) error {
	newServer := servers[role]
	if newServer == nil {
		return fmt.Errorf("no server is called %q", role)
	}
	s, err := newServer(o)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	switch o.door {
	case doorMPush, doorMPushRSA:
		devices, ok := s.(interface{ Serve(net.Listener) error })
		if !ok {
			return fmt.Errorf("%s has no devices", role)
		}
		go devices.Serve(ln)
	case doorTLS:
		certificate, err := newCertificate()
		if err != nil {
			return err
		}
		go http.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{certificate}}), s)
	default:
		go http.Serve(ln, s)
	}
	fmt.Println(port)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := strings.Fields(lines.Text())
		switch words[0] {
		case "conns":
			fmt.Println(s.conns())
		case "cpu":
			fmt.Println(cpuTime().Nanoseconds())
		case "memory":
			rss, heap, stacks := residentMemory()
			fmt.Println(rss, heap, stacks, runtime.NumGoroutine())
		case "broadcast":
			n, _ := strconv.Atoi(words[1])
			began, err := monotonic(), error(nil)
			for range n {
				err = errors.Join(err, s.broadcast())
			}
			answer(err, began)
		case "push":
			n, _ := strconv.Atoi(words[2])
			users, _ := strconv.Atoi(words[3])
			answer(pushes(s, words[1], n, users), 0)
		}
	}
	return nil
}

func answer(err error, what int64) {
	if err != nil {
		fmt.Printf("error %q\n", err)
		return
	}
	fmt.Println(what)
}

// What a caller does after a push until all is quiet: it works on, as one that
// has a request to answer, so that a goroutine that writes needs another
// processor; or it rests, and that goroutine gets its.
const (
	pushWork = "work"
	pushRest = "rest"
	pushFlat = "flat" // it pushes again, and what it pushes has no stamp
	quiet    = 250 * time.Microsecond
)

func pushes(s server, how string, n, users int) (err error) {
	for _, i := range mathrand.Perm(users)[:n] {
		user := "u" + strconv.Itoa(i)
		if how == pushFlat {
			err = errors.Join(err, s.push(user, eventData))
			continue
		}
		err = errors.Join(err, s.push(user, fmt.Sprintf("%c%019d", stampMark, monotonic())))
		if how == pushRest {
			time.Sleep(quiet)
			continue
		}
		for end := time.Now().Add(quiet); time.Now().Before(end); {
		}
	}
	return err
}

// marshalEvent is what a Go peer's program has to do for a push.
func marshalEvent(data string) ([]byte, error) {
	return json.Marshal(struct {
		Event string `json:"event"`
		Data  any    `json:"data"`
	}{eventName, data})
}

// errNoUser is what pushing to a user without a connection is.
var errNoUser = errors.New("no such user")

// residentMemory is what this process needs when nothing is garbage: in RAM,
// and of it in heap objects and in stacks.
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

// monotonic is the clock that all processes have in common, in nanoseconds.
func monotonic() int64 {
	const clockMonotonic = 1
	var ts syscall.Timespec
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano()
}

// newCertificate is one for loopback, with the key that handshakes are
// cheapest with.
func newCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

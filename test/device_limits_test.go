package test

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
	"github.com/embedpush/push/internal/mpush"
)

// A device's life.

// TestLoginHasTenSeconds, whatever else a device sends (rows 7, 19, 67).
func TestLoginHasTenSeconds(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		if door.sniff {
			return // a page until its first message, and pages may stay
		}
		for what, speak := range map[string]func(d *device){
			"nothing":         func(d *device) {},
			"heartbeats":      func(d *device) { d.beat() },
			"half a header":   func(d *device) { d.raw([]byte{0, 0, 0, 0, 2, 0}) },
			"half a body":     func(d *device) { d.raw(mpush.AppendHeader(nil, mpush.Header{Len: 100, Cmd: mpush.CmdHandshake})) },
			"a failed resume": func(d *device) { d.fastConnect("x") },
			"stray acks":      func(d *device) { d.ack(7) },
		} {
			if door.json && what != "nothing" && what != "stray acks" {
				continue
			}
			w := door.world(t, push.Config{})
			d := w.dialsIn()
			once := sync.OnceFunc(func() { speak(d) })
			for time.Since(d.born) < 9*time.Second {
				if once(); what == "heartbeats" || what == "stray acks" {
					speak(d)
				}
				time.Sleep(time.Second / 2)
			}
			if what == "a failed resume" {
				d.wantError(mpush.CmdFastConnect, mpush.CodeExpired, "session expired")
			}
			d.wantOpen(10*time.Second - time.Since(d.born) - time.Millisecond)
			d.wantClosed(2 * time.Second) // with the next sweep
			synctest.Wait()
			s := w.Stats()
			if n := s.Closed[push.ReasonRefused] + s.Closed[push.ReasonProtocol]; n != 1 || s.Pending != 0 {
				t.Errorf("%s: closed %v, %d pending", what, s.Closed, s.Pending)
			}
			if strings.HasPrefix(what, "half") {
				continue // its time may be over a moment sooner
			}
			if s.Limited["login_timeout"] != 1 || s.Closed[push.ReasonRefused] != 1 {
				t.Errorf("%s: closed %v, limited %v", what, s.Closed, s.Limited)
			}
		}
		// A device without a user never binds, and stays.
		w := door.world(t, push.Config{})
		d := w.dialsIn()
		time.Sleep(9 * time.Second)
		d.handshake()
		d.wantOpen(30 * time.Second)
	})
	synctest.Test(t, func(t *testing.T) {
		for limit, want := range map[time.Duration]time.Duration{3 * time.Second: 3 * time.Second, -1: 0} {
			w := worldWithDevices(t, push.Config{Limits: push.Limits{LoginTimeout: limit}})
			d := w.dialsIn()
			if want == 0 {
				d.wantOpen(time.Hour)
				continue
			}
			d.wantOpen(want - time.Millisecond)
			d.wantClosed(2 * time.Second)
		}
	})
}

// TestADeadDeviceIsClosedAfterThreeHeartbeatsAndASecond (compatibility.md A12).
func TestADeadDeviceIsClosedAfterThreeHeartbeatsAndASecond(t *testing.T) {
	for _, door := range doors {
		if door.ws { // has a WebSocket's own pings
			continue
		}
		for wish, beat := range map[int32]time.Duration{0: 10 * time.Second, 60000: time.Minute, 1 << 30: 4 * time.Minute} {
			t.Run(fmt.Sprint(door.name, " ", beat), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := door.world(t, push.Config{MPush: push.MPush{MinHeartbeat: 10 * time.Second, MaxHeartbeat: 4 * time.Minute}})
					d := w.dialsIn()
					d.is.MaxHeartbeat = wish
					d.handshake()
					d.bind("alice")
					for range 3 { // gaps of two heartbeats and more are normal
						d.wantOpen(3*beat - time.Second)
						d.wantBeat()
					}
					d.wantOpen(3*beat + time.Second - time.Millisecond)
					d.wantClosed(3 * time.Second) // within two sweeps
					synctest.Wait()
					if n := w.Stats().Closed[push.ReasonHeartbeat]; n != 1 {
						t.Errorf("closed %v", w.Stats().Closed)
					}
					// What is pushed to it is no sign of life.
					d = w.dialsIn()
					d.is.MaxHeartbeat = wish
					d.handshake()
					d.bind("bob")
					begin := time.Now()
					for time.Since(begin) < 3*beat {
						time.Sleep(beat / 4)
						w.PushToUser(t.Context(), "bob", push.Message{})
					}
					synctest.Wait()
					d.taken()
					d.wantClosed(4*time.Second + beat/4)
				})
			})
		}
	}
	// Over a WebSocket its pongs count.
	synctest.Test(t, func(t *testing.T) {
		w := doors[3].world(t, push.Config{})
		d := w.binds("alice")
		d.wantOpen(time.Hour)
		d.pause()
		time.Sleep(25*time.Second + 25*time.Second + 20*time.Second + 3*time.Second)
		if n := w.Stats().Closed[push.ReasonHeartbeat]; n != 1 {
			t.Errorf("closed %v", w.Stats().Closed)
		}
	})
}

// TestAHeartbeatFloodIsEchoedInMeasure (rows 17 and 18).
func TestAHeartbeatFloodIsEchoedInMeasure(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		for _, state := range []string{"fresh", "bound"} {
			w := door.world(t, push.Config{})
			d := w.dialsIn()
			if state == "bound" {
				d.handshake()
				d.bind("alice")
				synctest.Wait()
			}
			d.raw(bytes.Repeat([]byte{mpush.Beat}, 900))
			d.wantNothing()
			if n := d.beaten(); n < 1 || n > 10 {
				t.Errorf("%s: 900 heartbeats have %d echoes, want 1 to 10", state, n)
			}
			if state == "bound" {
				w.PushToUser(t.Context(), "alice", push.Message{Data: 1, Ack: push.AutoAck})
				d.wantPush("1")
			}
			time.Sleep(5 * time.Second)
			before := d.beaten()
			for range 20 {
				d.beat()
				synctest.Wait()
			}
			if n := d.beaten() - before; n > 10 {
				t.Errorf("%s: 20 heartbeats 5 s later have %d echoes", state, n)
			}
			d.raw(bytes.Repeat([]byte{mpush.Beat}, 1100))
			d.wantClosed(time.Second)
			d.wantCode(1008)
			synctest.Wait()
			if s := w.Stats(); s.Closed[push.ReasonProtocol] != 1 || s.Limited["pings"] == 0 {
				t.Errorf("%s: closed %v, limited %v", state, s.Closed, s.Limited)
			}
		}
		// One who does not read them does not collect them.
		w := door.world(t, push.Config{})
		d := w.binds("alice")
		d.pause()
		for range 60 {
			d.raw(bytes.Repeat([]byte{mpush.Beat}, 500))
			time.Sleep(time.Second)
		}
		if n := w.Stats().QueuedBytes; n > 1000 {
			t.Errorf("%d bytes are queued for who does not read", n)
		}
		if w.Stats().Conns != 1 {
			t.Error("it was closed")
		}
	})
}

// TestAHeartbeatIsAnsweredRightBehindAPush that the device has read already.
func TestAHeartbeatIsAnsweredRightBehindAPush(t *testing.T) {
	for _, door := range doors {
		if door.json {
			continue
		}
		t.Run(door.name, func(t *testing.T) {
			w := door.socketWorld(t, push.Config{MPush: push.MPush{SessionKey: aSessionKey(9)}, OnMessage: nobodyMinds})
			owner := w.shakesHands()
			var unanswered atomic.Int64
			var all sync.WaitGroup
			for i := range 4 {
				all.Go(func() {
					for j := range 20 {
						d := w.resumes(owner)
						d.fastConnect(owner.token)
						d.wantResumed()
						user := fmt.Sprint("u", i, " ", j)
						d.bind(user)
						for range 9 { // of ten that may come at once
							for range 3 {
								go w.PushToUser(context.Background(), user, push.Message{Data: 1})
							}
							d.wantPush("1", "1", "1")
							before := d.beaten()
							d.beat()
							d.push("x", mpush.FlagAutoAck) // whose answer comes behind the heartbeat's
							d.wantAck()
							if d.beaten() == before {
								unanswered.Add(1)
							}
						}
						d.vanishes()
					}
				})
			}
			all.Wait()
			if n := unanswered.Load(); n > 0 {
				t.Errorf("%d of 720 heartbeats were not answered", n)
			}
		})
	}
}

func TestShutdownClosesDevicesWithoutAWord(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.UserID == "no" {
				return "", push.ErrUnauthorized
			}
			return l.UserID, nil
		}})
		fresh, open, old := w.dialsIn(), w.shakesHands(), w.binds("alice")
		bound := w.binds("alice")
		old.wantKick(old.is.DeviceID, "alice")
		refused := w.shakesHands()
		refused.asksToBind("no")
		synctest.Wait()
		w.PushToUser(t.Context(), "alice", push.Message{Data: "before"})
		begin := time.Now()
		if err := w.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %v", took)
		}
		bound.wantPush(`"before"`)
		for _, d := range []*device{fresh, open, old, bound, refused} {
			d.wantClosed(0)
			if d != refused {
				d.wantCode(1001)
			}
		}
		w.serving.Wait() // Serve has returned ErrClosed: serves looks
		if _, err := w.dials[0](t.Context()); err == nil {
			t.Error("the listener is open")
		}
		synctest.Wait()
		if s := w.Stats(); s.Closed[push.ReasonShutdown] != 4 || s.Closed[push.ReasonRefused] != 1 || s.Conns != 0 || s.Pending != 0 || s.QueuedBytes != 0 {
			t.Errorf("closed %v; %d connections, %d pending, %d bytes", s.Closed, s.Conns, s.Pending, s.QueuedBytes)
		}
	})
}

// TestShutdownWaitsForADevicesAck and takes nobody new meanwhile.
func TestShutdownWaitsForADevicesAck(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		d := w.binds("alice")
		synctest.Wait() // its HTTP handler, which looks whether the engine drains, has returned
		d.onAck(func(d *device, p packet) { time.AfterFunc(2*time.Second, func() { d.ack(p.id) }) })
		done := make(chan push.Receipt)
		go func() {
			r, _ := w.PushToUser(context.Background(), "alice", push.Message{Data: 1, Ack: push.BizAck})
			done <- r
		}()
		d.wantPush("1")
		ended := make(chan error)
		go func() { ended <- w.Shutdown(context.Background()) }()
		synctest.Wait()
		if _, err := w.triesToDial(); err == nil {
			t.Error("a device is taken while the engine drains")
		}
		r := <-done
		wantStatus(t, r, push.Acked)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		d.wantClosed(0)
	})
}

// TestShutdownIsNotHeldUpByDevicesThatDoNotClose, nor by those that are told to
// wait because there are too many of their address.
func TestShutdownIsNotHeldUpByDevicesThatDoNotClose(t *testing.T) {
	for _, what := range []string{"kicked", "stuck", "of its address one too many"} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := push.Config{}
				if what == "of its address one too many" {
					cfg.Limits.MaxConnsPerAddr = 1
				}
				w := worldWithDevices(t, cfg)
				d := w.binds("alice")
				switch what {
				case "kicked":
					w.Kick(t.Context(), push.Audience{User: "alice"}, "")
				case "stuck":
					d.pause()
					w.PushToUser(t.Context(), "alice", push.Message{Data: strings.Repeat("x", 500000)})
				default:
					w.dialsIn()
				}
				synctest.Wait()
				begin := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
				defer cancel()
				if err := w.Shutdown(ctx); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
				if took := time.Since(begin); took > 3*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// TestShutdownDoesNotWaitForAGateThatListensToItsContext.
func TestShutdownDoesNotWaitForAGateThatListensToItsContext(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			if l.UserID != "" {
				<-ctx.Done()
			}
			return l.UserID, ctx.Err()
		}})
		d := w.shakesHands()
		d.asksToBind("alice")
		synctest.Wait()
		begin := time.Now()
		if err := w.Shutdown(t.Context()); err != nil || time.Since(begin) > time.Second {
			t.Errorf("Shutdown took %v, %v", time.Since(begin), err)
		}
		d.wantClosed(0)
	})
}

func TestServeRefusesWhatCannotBeServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := func() *memnet.Listener {
			ln, err := memnet.Listen(serverIP + ":3000")
			if err != nil {
				t.Fatal(err)
			}
			return ln
		}
		closed := func(ln *memnet.Listener) {
			t.Helper()
			if _, err := ln.Dial(); err == nil {
				t.Error("the listener is open")
			}
		}
		e, err := push.New(push.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ln := open()
		if err := e.Serve(ln); err == nil || errors.Is(err, push.ErrClosed) || !strings.Contains(err.Error(), "Authenticate") {
			t.Errorf("Serve without Authenticate: %v", err)
		}
		closed(ln)
		e.Close()

		e, err = push.New(push.Config{Authenticate: believe, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Serve(nil); err == nil || errors.Is(err, push.ErrClosed) {
			t.Errorf("Serve(nil): %v", err)
		}
		ln = open()
		ended := make(chan error, 1)
		go func() { ended <- e.Serve(ln) }()
		synctest.Wait()
		ln.Close() // by itself
		if err := <-ended; err == nil || errors.Is(err, push.ErrClosed) || !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve of a listener that ends: %v", err)
		}
		if err := e.Ready(); err != nil {
			t.Errorf("and then the engine is %v", err)
		}
		for _, end := range []func(){func() { e.Shutdown(t.Context()) }, func() { e.Close() }} {
			end()
			ln = open()
			if err := e.Serve(ln); err != push.ErrClosed {
				t.Errorf("Serve after the end: %v", err)
			}
			closed(ln)
		}
	})
}

func TestSeveralListenersAreServedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := worldWithDevices(t, push.Config{DeviceClass: func(*push.Login) string { return "" }})
		for port := 4000; port < 4003; port++ {
			ln, err := w.net.Host(serverIP).Listen(port)
			if err != nil {
				t.Fatal(err)
			}
			w.serves(ln, false)
			w.dials[0] = func(ctx context.Context) (net.Conn, error) { return ln.DialFrom(ctx, clientIP) }
			w.binds("alice")
		}
		r, err := w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck})
		if err != nil || r.Acked != 3 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestServeTakesListenersOfAnyType, also one that cannot be compared.
func TestServeTakesListenersOfAnyType(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := worldWithDevices(t, push.Config{})
		ln, err := w.net.Host(serverIP).Listen(4000)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan any, 1)
		go func() {
			defer func() {
				if p := recover(); p != nil {
					ended <- p
				}
			}()
			ended <- w.Serve(failing{ln, func() error { return nil }})
		}()
		w.dials[0] = func(ctx context.Context) (net.Conn, error) { return ln.DialFrom(ctx, clientIP) }
		w.binds("alice")
		w.Shutdown(t.Context())
		if got := <-ended; got != push.ErrClosed {
			t.Errorf("Serve ended with %v, want ErrClosed", got)
		}
	})
}

// failing is a listener whose Accept fails as it is told.
type failing struct {
	*memnet.Listener
	fail func() error
}

func (l failing) Accept() (net.Conn, error) {
	if err := l.fail(); err != nil {
		return nil, err
	}
	return l.Listener.Accept()
}

// TestAListenerWithoutDescriptorsIsWaitedFor (row 138).
func TestAListenerWithoutDescriptorsIsWaitedFor(t *testing.T) {
	for name, errno := range map[string]error{"EMFILE": syscall.EMFILE, "ENFILE": syscall.ENFILE, "ECONNABORTED": syscall.ECONNABORTED} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := worldWithDevices(t, push.Config{})
				ln, err := w.net.Host(serverIP).Listen(4000)
				if err != nil {
					t.Fatal(err)
				}
				var mu sync.Mutex
				var asked []time.Time
				failures := 12
				w.serves(&failing{ln, func() error {
					mu.Lock()
					defer mu.Unlock()
					asked = append(asked, time.Now())
					if failures--; failures < 0 {
						return nil
					}
					if errno == syscall.ECONNABORTED {
						return &net.OpError{Op: "accept", Net: "tcp", Err: errno}
					}
					return &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", errno)}
				}}, false)
				w.dials[0] = func(ctx context.Context) (net.Conn, error) { return ln.DialFrom(ctx, clientIP) }
				d := w.binds("alice") // it takes as long as it takes
				mu.Lock()
				for i := 1; i < len(asked) && i <= 12; i++ {
					want := min(5*time.Millisecond<<(i-1), time.Second)
					if got := asked[i].Sub(asked[i-1]); got != want {
						t.Errorf("it asked again after %v, want %v", got, want)
					}
				}
				failures = 3 // and the waits begin anew
				mu.Unlock()
				if n := w.Stats().Limited["accept"]; n != 12 {
					t.Errorf("Stats count %d", n)
				}
				w.binds("bob")
				d.wantNothing()
				mu.Lock()
				failures = 1 << 30
				mu.Unlock()
				w.triesToDial()
				time.Sleep(10 * time.Second)
				begin := time.Now()
				w.Shutdown(t.Context())
				w.serving.Wait()
				if took := time.Since(begin); took > time.Second {
					t.Errorf("Shutdown took %v", took)
				}
			})
		})
	}
}

// TestWithoutRoomDevicesWaitToBeAccepted (compatibility.md A3).
func TestWithoutRoomDevicesWaitToBeAccepted(t *testing.T) {
	for _, limit := range []string{"MaxPending", "MaxConns"} {
		t.Run(limit, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := push.Config{Limits: push.Limits{MaxPending: 2}}
				if limit == "MaxConns" {
					cfg.Limits = push.Limits{MaxConns: 2}
				}
				// One listener: another one could have accepted one more.
				w := &deviceWorld{world: newWorld(t, doorTCP.config(cfg)), door: doorTCP}
				ln, err := w.net.Host(serverIP).Listen(3000)
				if err != nil {
					t.Fatal(err)
				}
				w.dials[0] = func(ctx context.Context) (net.Conn, error) { return ln.DialFrom(ctx, clientIP) }
				w.serves(ln, false)
				w.endsWith(t)

				a, b := w.dialsIn(), w.dialsIn()
				waits := w.dialsIn()
				waits.raw(waits.hello())
				waits.wantOpen(5 * time.Second)
				if limit == "MaxPending" {
					a.handshake() // one place
				} else {
					a.handshake()
					b.handshake()
					waits.wantOpen(20 * time.Second)
					a.vanishes()
				}
				if p := waits.next(); p.cmd != mpush.CmdHandshake {
					t.Fatal(p)
				}
				waits.bind("alice")
				if s := w.Stats(); s.Limited["accept"] == 0 || total(s.Refused) != 0 {
					t.Errorf("limited %v, refused %v", s.Limited, s.Refused)
				}
				if limit == "MaxPending" {
					// Who gives up in the backlog, and who is not let in, gives its place back.
					w.dialsIn()
					w.dialsIn().vanishes()
					late := w.dialsIn()
					late.raw(late.hello())
					if p := late.next(); p.cmd != mpush.CmdHandshake || time.Since(late.born) > 12*time.Second {
						t.Errorf("%v after %v", p, time.Since(late.born))
					}
				}
			})
		})
	}
	// Over a WebSocket it is told by HTTP.
	synctest.Test(t, func(t *testing.T) {
		w := doors[3].world(t, push.Config{Limits: push.Limits{MaxPending: 2}})
		w.dialsIn()
		w.dialsIn()
		if _, err := w.triesToDial(); err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("got %v, want 503", err)
		}
		time.Sleep(12 * time.Second)
		w.binds("alice")
	})
}

func TestOneTooManyOfAnAddressIsLeftUnread(t *testing.T) {
	for _, door := range doors {
		if door.ws { // 429
			continue
		}
		t.Run(door.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := door.world(t, push.Config{Limits: push.Limits{MaxConnsPerAddr: 2}})
				a, b := w.binds("alice"), w.binds("alice")
				a.wantKick(a.is.DeviceID, "alice") // detached, and counted all the same
				for range 2 {
					d := w.dialsIn()
					if !door.tls { // whose handshake is its hello
						d.raw(d.hello())
					}
					d.wantOpen(5*time.Second - time.Millisecond)
					d.wantClosed(time.Second)
				}
				a.vanishes()
				synctest.Wait()
				c := w.binds("bob")
				c.vanishes()
				synctest.Wait()
				w.binds("bob")
				b.wantNothing()
				if s := w.Stats(); s.Refused["max_conns_per_addr"] != 2 || s.Pending != 0 {
					t.Errorf("refused %v, %d pending", s.Refused, s.Pending)
				}
			})
		})
	}
}

func TestLoopbackIsNotCounted(t *testing.T) {
	w := doorTCP.socketWorld(t, push.Config{Limits: push.Limits{MaxConnsPerAddr: 1}})
	w.binds("alice")
	w.binds("bob")
}

// What is wrong with the bytes (rows 1 to 37).

// row is one thing a client can do wrong, or unusual.
type row struct {
	what  string
	bytes func(d *device) []byte
	cmd   mpush.Cmd // of the ERROR, if code or text is set
	code  int8
	text  string // of code 0
	close int    // the close code over a WebSocket; 0: it stays open and nothing comes
}

// overRows lets a device that is fresh, open or bound do every one of them, over
// every door of packets, beside a page that must not notice.
func overRows(t *testing.T, states string, rows []row) {
	overPackets(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{OnMessage: nobodyMinds, DeviceClass: func(*push.Login) string { return "" }, MPush: push.MPush{SessionKey: aSessionKey(9)}})
		witness := w.witness()
		owner := w.shakesHands()
		at := ""
		defer func() {
			if t.Failed() {
				t.Logf("the last was %s", at)
			}
		}()
		for _, state := range strings.Fields(states) {
			for _, r := range rows {
				at = fmt.Sprint(state, ", ", r.what, ", cmd ", r.cmd)
				d := w.resumes(owner)
				if state != "fresh" {
					d.fastConnect(owner.token)
					d.wantResumed()
				}
				if state == "bound" {
					d.bind("alice")
				}
				begin := time.Now()
				d.raw(r.bytes(d))
				if r.code != 0 || r.text != "" {
					p := d.next()
					if e := p.error(); p.cmd != mpush.CmdError || p.flags != 0 || e.Cmd != r.cmd || e.Code != r.code || e.Code == 0 && e.Reason != r.text {
						t.Errorf("%s, %s: got %v, want an ERROR about %d, %d %q", state, r.what, p, r.cmd, r.code, r.text)
					}
				}
				if r.close == 0 {
					d.wantNothing()
					if state == "bound" {
						w.PushToUser(t.Context(), "alice", push.Message{Data: 1, Ack: push.AutoAck})
						d.wantPush("1")
					}
					d.vanishes()
				} else {
					d.wantClosed(0)
					if d.wantCode(r.close); t.Failed() {
						t.FailNow()
					}
				}
				if took := time.Since(begin); took > 0 {
					t.Errorf("%s, %s: took %v", state, r.what, took)
				}
				synctest.Wait()
				if w.Online("alice") {
					t.Fatalf("%s, %s: alice is online", state, r.what)
				}
			}
			witness.isFine()
		}
		synctest.Wait()
		if s := w.Stats(); s.Panics != 0 || s.QueuedBytes != 0 {
			t.Errorf("%d panics, %d bytes queued", s.Panics, s.QueuedBytes)
		}
	})
}

func header(length int32, cmd mpush.Cmd) []byte {
	return mpush.AppendHeader(nil, mpush.Header{Len: length, Cmd: cmd, ID: 7})
}

func TestLengthsAreJudgedByTheHeader(t *testing.T) {
	rows := []row{
		{"-1", func(*device) []byte { return header(-1, mpush.CmdBind) }, mpush.CmdBind, mpush.CodeHandler, "", 1002},
		{"the least", func(*device) []byte { return header(-1<<31, mpush.CmdPush) }, mpush.CmdPush, mpush.CodeHandler, "", 1002},
		{"the most", func(*device) []byte { return header(1<<31-1, mpush.CmdPush) }, 0, 0, "", 1009},
		{"one that wraps", func(*device) []byte { return header(1<<31-13, mpush.CmdPush) }, 0, 0, "", 1009},
		{"1 GiB", func(*device) []byte { return append(header(1<<30, mpush.CmdPush), make([]byte, 4000)...) }, 0, 0, "", 1009},
		{"over the limit", func(*device) []byte { return header(64<<10+1, mpush.CmdPush) }, 0, 0, "", 1009},
	}
	overRows(t, "fresh open bound", rows)
	overRows(t, "fresh", []row{
		{"over the limit before login", func(*device) []byte { return header(8<<10+1, mpush.CmdHandshake) }, 0, 0, "", 1009},
	})
	overPackets(t, func(t *testing.T, door door) {
		for limit, most := range map[int]int{0: 64 << 10, 1000: 992, -1: 300 << 10} {
			w := door.world(t, push.Config{Limits: push.Limits{MaxMessage: limit}, OnMessage: nobodyMinds})
			d := w.binds("alice")
			n := most // on the wire
			if door.keyed {
				n-- // one byte of padding
			}
			d.push(strings.Repeat("x", n), mpush.FlagAutoAck)
			d.wantAck()
			if limit == -1 {
				continue
			}
			d.push(strings.Repeat("x", n+16), mpush.FlagAutoAck)
			d.wantClosed(0)
			d.wantCode(1009)
		}
	})
}

func TestGarbageOnTheMPushPortIsClosed(t *testing.T) {
	// A ClientHello, as crypto/tls makes it.
	var hello bytes.Buffer
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		tls.Client(theirs, clientTLS()).Handshake()
	}()
	head := make([]byte, 5)
	ours.Read(head)
	hello.Write(head)
	ours.Close()
	overRows(t, "fresh open bound", []row{
		{"HTTP", func(*device) []byte { return []byte("GET / HTTP/1.1\r\nHost: push.test\r\n\r\n") }, 0, 0, "", 1009},
		{"HTTP, POST", func(*device) []byte { return []byte("POST /x HTTP/1.1\r\nHost: push.test\r\n\r\n") }, 0, 0, "", 1009},
		{"TLS", func(*device) []byte { return append(hello.Bytes(), make([]byte, 200)...) }, 0, 0, "", 1009},
		{"SSH", func(*device) []byte { return []byte("SSH-2.0-OpenSSH_9.6\r\n") }, 0, 0, "", 1009},
		{"letters", func(*device) []byte { return []byte("letters, and nothing else") }, 0, 0, "", 1009},
	})
}

// TestRandomBytesHurtNobody (row 10).
func TestRandomBytesHurtNobody(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		seed := rand.Uint64()
		defer func() {
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		}()
		rnd := rand.New(rand.NewPCG(seed, 1))
		w := door.world(t, push.Config{OnMessage: nobodyMinds, MPush: push.MPush{SessionKey: aSessionKey(9)}})
		witness, owner := w.witness(), w.shakesHands()
		for i := range 50 {
			d := w.resumes(owner)
			switch i % 3 {
			case 1:
				d.fastConnect(owner.token)
				d.wantResumed()
			case 2:
				d.fastConnect(owner.token)
				d.wantResumed()
				d.bind("alice")
			}
			b := make([]byte, 1000)
			for i := 0; i < len(b); i += 8 {
				binary.BigEndian.PutUint64(b[i:], rnd.Uint64())
			}
			if i%2 == 0 { // sound headers around them
				var frames []byte
				for len(b) > 0 {
					n := min(len(b), rnd.IntN(60))
					frames = mpush.AppendPacket(frames, []mpush.Cmd{2, 5, 6, 7, 12, 15, 23, mpush.Cmd(rnd.IntN(256) - 128)}[rnd.IntN(8)], mpush.Flags(rnd.IntN(256)), int32(rnd.Uint32()), b[:n])
					b = b[n:]
				}
				b = frames
			}
			for range 10 {
				d.raw(b)
			}
			time.Sleep(time.Second)
			d.vanishes()
		}
		witness.isFine()
		synctest.Wait()
		if s := w.Stats(); s.Panics != 0 || s.QueuedBytes != 0 || s.Conns != 1 {
			t.Errorf("%d panics, %d bytes queued, %d connections", s.Panics, s.QueuedBytes, s.Conns)
		}
	})
}

// session is everything a device says in one connection, when it says it at
// once. It begins with a fast connect, since only then its key is known before.
func (d *device) session(token string) []byte {
	parts := [][]byte{
		{mpush.Beat},
		d.packet(mpush.CmdFastConnect, 0, &mpush.FastConnect{SessionID: token, DeviceID: d.is.DeviceID}),
		d.packet(mpush.CmdBind, 0, &mpush.Bind{UserID: "alice", Data: strings.Repeat("\xdf", 20)}),
		{mpush.Beat},
		mpush.AppendPacket(nil, mpush.CmdHeartbeat, 0, 0, nil), // a heartbeat as a packet
		d.packetWith(-0x20202021, mpush.CmdAck, 0, nil),        // 0xDFDFDFDF
		d.packetWith(-0x20202021, mpush.CmdPush, mpush.FlagAutoAck, []byte(strings.Repeat("\xdf", 40))),
		d.packet(mpush.CmdUnbind, 0, &mpush.Bind{UserID: "alice"}),
		d.packet(mpush.CmdPush, 0, []byte("unbound")),
		d.packet(mpush.CmdBind, 0, &mpush.Bind{UserID: "bob"}),
		d.packet(mpush.CmdPush, mpush.FlagBizAck|mpush.FlagCompress, []byte(strings.Repeat("\xdf", 40))),
		{mpush.Beat},
	}
	return bytes.Join(parts, nil)
}

// heard is what the answers to session have to be.
func (d *device) heard() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var text []string
	for _, p := range d.got {
		text = append(text, p.String())
	}
	return fmt.Sprintf("%s, %v", strings.Join(text, "; "), d.err)
}

// TestBytesMayComeInAnySplit (rows 8, 9, 20).
func TestBytesMayComeInAnySplit(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		var messages atomic.Int64
		w := door.world(t, push.Config{
			Authenticate: func(_ context.Context, l *push.Login) (string, error) { return l.UserID, nil },
			DeviceClass:  func(*push.Login) string { return "" },
			MPush:        push.MPush{SessionKey: aSessionKey(9)},
			Limits:       push.Limits{MaxConnsPerUser: -1},
			OnMessage: func(_ context.Context, _ *push.Conn, m *push.Received) (any, error) {
				if string(m.Bytes(0)) == strings.Repeat("\xdf", 40) {
					messages.Add(1)
				}
				return nil, nil
			},
		})
		owner := w.shakesHands()
		comes := func() (*device, []byte) {
			d := w.resumes(owner)
			return d, d.session(owner.token)
		}
		d, all := comes()
		d.raw(all)
		synctest.Wait()
		want := d.heard()
		if n := messages.Load(); n != 2 || strings.Count(want, "; ") != 5 {
			t.Fatalf("%d messages, and the answers to all at once are %s", n, want)
		}
		wanted := func(how string, d *device) {
			t.Helper()
			synctest.Wait()
			if got := d.heard(); got != want {
				t.Fatalf("%s: the answers are\n%s, want\n%s", how, got, want)
			}
			if n := d.beaten(); n < 1 || n > 4 {
				t.Errorf("%s: %d heartbeats came back", how, n)
			}
			d.vanishes()
		}
		wanted("glued", d)
		d, all = comes()
		for _, b := range all {
			d.raw([]byte{b})
		}
		wanted("byte by byte", d)
		d, all = comes()
		for _, b := range all {
			d.raw([]byte{b})
			synctest.Wait()
		}
		wanted("byte by byte, slowly", d)
		for at := range all {
			if at == 0 {
				continue
			}
			d, all := comes()
			d.raw(all[:at])
			synctest.Wait()
			d.raw(all[at:])
			wanted(fmt.Sprint("split at ", at), d)
		}
	})
}

func TestAHandshakeMayComeInPieces(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		d := w.dialsIn()
		hello := d.hello()
		for at := 1; at < len(hello); at += 7 {
			d := w.dialsIn()
			hello := d.hello()
			d.raw(hello[:at])
			synctest.Wait()
			d.raw(hello[at:])
			if p := d.next(); p.cmd != mpush.CmdHandshake {
				t.Fatal(p)
			}
			d.bind("alice")
			d.vanishes()
		}
		for _, b := range hello {
			d.raw([]byte{b})
			time.Sleep(10 * time.Millisecond)
		}
		if p := d.next(); p.cmd != mpush.CmdHandshake {
			t.Fatal(p)
		}
		d.bind("alice")
	})
}

// TestALoginMayComeAtOnce: without encryption nobody has to wait for an answer.
func TestALoginMayComeAtOnce(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		if door.keyed {
			return
		}
		w := door.world(t, push.Config{OnMessage: nobodyMinds})
		d := w.dialsIn()
		all := [][]byte{d.hello(), d.bindPacket("alice"), d.packet(mpush.CmdPush, mpush.FlagAutoAck, []byte("x"))}
		if door.json {
			for _, b := range all {
				d.raw(b)
			}
		} else {
			d.raw(bytes.Join(all, nil))
		}
		for i, want := range []mpush.Cmd{mpush.CmdHandshake, mpush.CmdOK, mpush.CmdAck} {
			if p := d.next(); p.cmd != want || p.id != int32(i+1) {
				t.Fatalf("answer %d is %v", i, p)
			}
		}
		w.PushToUser(t.Context(), "alice", push.Message{Data: 1})
		d.wantPush("1")
	})
}

func TestUnknownCommandsAreRefused(t *testing.T) {
	var rows []row
	for _, cmd := range []mpush.Cmd{
		0, 99, 127, -128, -1, -2, mpush.CmdNack, // unknown
		mpush.CmdLogin, mpush.CmdLogout, mpush.CmdPause, mpush.CmdResume, // never in use
		mpush.CmdError, mpush.CmdOK, mpush.CmdKick, mpush.CmdGatewayKick, mpush.CmdGatewayPush, mpush.CmdNotification, // the server's
		mpush.CmdGatewayNotification, mpush.CmdChat, mpush.CmdGatewayChat, mpush.CmdGroup, mpush.CmdGatewayGroup,
	} {
		for _, body := range []string{"", "0123456789abcdef"} {
			rows = append(rows, row{fmt.Sprintf("cmd %d, %d bytes", cmd, len(body)), func(*device) []byte { return mpush.AppendPacket(nil, cmd, 0, 7, []byte(body)) }, cmd, mpush.CodeUnsupported, "", 1002})
		}
	}
	overRows(t, "fresh open bound", rows)
}

func TestNothingCountsBeforeTheHandshake(t *testing.T) {
	var rows []row
	for cmd, body := range map[mpush.Cmd]any{
		mpush.CmdBind: &mpush.Bind{UserID: "alice"}, mpush.CmdUnbind: &mpush.Bind{UserID: "alice"}, mpush.CmdPush: []byte("hello"),
		mpush.CmdHTTPProxy: &mpush.ProxyRequest{URI: "http://shop.example/"},
	} {
		rows = append(rows,
			row{fmt.Sprint("plain ", cmd), func(d *device) []byte { d.plain = true; return d.packet(cmd, 0, body) }, cmd, 0, "not handshake", 1008},
			row{fmt.Sprint("encrypted ", cmd), func(d *device) []byte {
				d.door.keyed = true // with the key of another connection
				return d.packet(cmd, 0, body)
			}, cmd, mpush.CodeHandler, "", 1002},
			row{fmt.Sprint("encrypted, empty ", cmd), func(d *device) []byte { return mpush.AppendPacket(nil, cmd, mpush.FlagCrypto, 7, nil) }, cmd, 0, "not handshake", 1008},
		)
	}
	overRows(t, "fresh", rows)
}

// TestAllFlagBytes (row 16): unknown bits mean nothing, JSON is an error, and
// nothing panics.
func TestAllFlagBytes(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{OnMessage: nobodyMinds, MPush: push.MPush{SessionKey: aSessionKey(9)}, DeviceClass: func(*push.Login) string { return "" }, Limits: push.Limits{MaxConnsPerUser: -1}})
		owner := w.shakesHands()
		for flags := range 256 {
			flags := mpush.Flags(flags)
			for _, cmd := range []mpush.Cmd{mpush.CmdBind, mpush.CmdUnbind, mpush.CmdPush, mpush.CmdHTTPProxy} {
				d := w.resumes(owner)
				d.fastConnect(owner.token)
				d.wantResumed()
				d.raw(mpush.AppendPacket(nil, cmd, flags, 7, []byte("0123456789abcdef0123456789abcdef")))
				synctest.Wait()
				got := d.taken()
				if len(got) > 0 && got[0].cmd == mpush.CmdHTTPProxy {
					continue
				}
				fails := flags&mpush.FlagJSON != 0 || cmd != mpush.CmdPush && cmd != mpush.CmdHTTPProxy ||
					cmd == mpush.CmdPush && (flags&(mpush.FlagCrypto|mpush.FlagCompress) != 0 || door.keyed)
				if cmd == mpush.CmdHTTPProxy {
					fails = flags&mpush.FlagJSON != 0 || flags&(mpush.FlagCrypto|mpush.FlagCompress) != 0 || door.keyed
				}
				if fails && (len(got) != 1 || got[0].cmd != mpush.CmdError || got[0].error().Code != mpush.CodeHandler) {
					t.Errorf("cmd %d with flags %#x: got %v", cmd, flags, got)
				}
				if !fails && len(got) != 0 {
					t.Errorf("cmd %d with flags %#x: got %v, want nothing", cmd, flags, got)
				}
				d.vanishes()
			}
		}
		for bit := mpush.Flags(0x20); bit != 0; bit <<= 1 {
			d := w.resumes(owner)
			d.fastConnect(owner.token)
			d.wantResumed()
			d.asks(mpush.CmdBind, bit|mpush.FlagCompress, &mpush.Bind{UserID: "alice"})
			d.wantOK(mpush.CmdBind, "bind success")
			d.push("x", bit|mpush.FlagAutoAck)
			d.wantAck()
		}
		for _, flags := range []mpush.Flags{mpush.FlagJSON, 0xff} {
			d := w.binds("alice")
			d.raw(mpush.AppendPacket(nil, mpush.CmdPush, flags, 7, nil))
			d.wantErrorTo(7, mpush.CmdPush, mpush.CodeHandler, "handle message error")
			d.wantClosed(0)
			d = w.dialsIn()
			hello := d.hello()
			hello[7] |= byte(flags)
			d.raw(hello)
			d.wantError(mpush.CmdHandshake, mpush.CodeHandler, "handle message error")
			d.wantClosed(0)
		}
	})
}

func TestChecksumsAreNotLookedAt(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		d := w.shakesHands()
		ask := d.bindPacket("alice")
		binary.BigEndian.PutUint16(ask[5:], 12345)
		ask[12] = 55
		d.raw(ask)
		d.wantOK(mpush.CmdBind, "bind success")
	})
}

// sealedPacket is a packet whose body is compressed already, or not.
func sealedPacket(d *device, cmd mpush.Cmd, flags mpush.Flags, body []byte) []byte {
	add, b := d.sealed(flags&^mpush.FlagCompress, body)
	return mpush.AppendPacket(nil, cmd, add|flags, 7, b)
}

func TestWhatIsCompressedIsBounded(t *testing.T) {
	const z = mpush.FlagCompress
	deflated := func(n int) []byte { return mpush.AppendDeflate(nil, make([]byte, n)) }
	sound := mpush.AppendDeflate(nil, (&mpush.Bind{UserID: "alice"}).Append(nil))
	changed := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(sound)) }
	var rows []row
	for what, body := range map[string][]byte{
		"a bomb":          deflated(10 << 20),
		"one byte over":   deflated(256<<10 + 1),
		"garbage":         []byte("0123456789abcdef"),
		"cut":             changed(func(b []byte) []byte { return b[:len(b)-5] }),
		"a wrong sum":     changed(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }),
		"something more":  changed(func(b []byte) []byte { return append(b, 0) }),
		"twice":           mpush.AppendDeflate(nil, sound),
		"a dictionary":    {0x78, 0xbb, 0, 0, 0, 2, 0x03, 0x00, 0, 0, 0, 1},
		"an empty stream": {0x78},
	} {
		rows = append(rows, row{what, func(d *device) []byte { return sealedPacket(d, mpush.CmdBind, z, body) }, mpush.CmdBind, mpush.CodeHandler, "", 1002})
		if what != "twice" {
			rows = append(rows, row{what, func(d *device) []byte { return sealedPacket(d, mpush.CmdPush, z, body) }, mpush.CmdPush, mpush.CodeHandler, "", 1002})
		}
	}
	overRows(t, "open bound", rows)

	overPackets(t, func(t *testing.T, door door) {
		var got []int
		w := door.world(t, push.Config{OnMessage: func(_ context.Context, _ *push.Conn, m *push.Received) (any, error) {
			got = append(got, len(m.Bytes(0)))
			return nil, nil
		}})
		d := w.binds("alice")
		twice := mpush.AppendDeflate(nil, deflated(1000)) // is inflated once
		for _, body := range [][]byte{deflated(256 << 10), twice, deflated(0)} {
			d.raw(sealedPacket(d, mpush.CmdPush, z, body))
		}
		synctest.Wait()
		if want := []int{256 << 10, len(deflated(1000)), 0}; !slices.Equal(got, want) {
			t.Errorf("messages of %d bytes, want %d", got, want)
		}
		d.wantNothing()
		// A bomb costs nothing: row 22.
		owner := d
		before := heap()
		bomb := deflated(10 << 20)
		for range 20 {
			d := w.resumes(owner)
			d.fastConnect(owner.token)
			d.wantResumed()
			d.raw(sealedPacket(d, mpush.CmdPush, z, bomb))
			synctest.Wait()
			d.taken()
			d.wantClosed(0)
		}
		if grown := heap() - before; grown > 4<<20 {
			t.Errorf("20 bombs of 10 MiB leave %d KiB", grown>>10)
		}
	})
}

func TestInnerLengthsAreJudged(t *testing.T) {
	user := []byte("\x00\x05alice")
	var rows []row
	for what, body := range map[string][]byte{
		"nothing":              {0},
		"cut in a length":      append(slices.Clone(user), 0),
		"cut in a text":        []byte("\x00\x06alice"),
		"cut before the tags":  append(slices.Clone(user), 0, 0),
		"-1":                   []byte("\xff\xffalice\x00\x00\x00\x00"),
		"the least":            []byte("\x80\x00alice\x00\x00\x00\x00"),
		"a negative escape":    []byte("\x7f\xff\xff\xff\xff\xffalice\x00\x00\x00\x00"),
		"an escape that wraps": []byte("\x7f\xff\x7f\xff\xff\xffalice\x00\x00\x00\x00"),
		"half an escape":       []byte("\x7f\xff\x00"),
		"-1 as data":           append(slices.Clone(user), 0xff, 0xff, 0, 0),
		"a huge tag list":      append(slices.Clone(user), 0, 0, 0x7f, 0xff, 0x7f, 0xff, 0xff, 0xff),
	} {
		for _, cmd := range []mpush.Cmd{mpush.CmdBind, mpush.CmdUnbind} {
			rows = append(rows, row{what, func(d *device) []byte { return sealedPacket(d, cmd, 0, body) }, cmd, mpush.CodeHandler, "", 1002})
		}
	}
	for _, cmd := range []mpush.Cmd{mpush.CmdBind, mpush.CmdUnbind} { // as the Java server answers them
		rows = append(rows, row{"no body", func(d *device) []byte { return mpush.AppendPacket(nil, cmd, 0, 7, nil) }, cmd, 0, "invalid param", 1008})
	}
	overRows(t, "open bound", rows)
	rows = nil
	for what, body := range map[string][]byte{
		"empty": nil, "one byte": {0}, "a negative length": {0xff, 0xff, 0, 0}, "no device": {0, 1, 'x'}, "no heartbeats": {0, 1, 'x', 0, 1, 'y'},
	} {
		rows = append(rows, row{what, func(*device) []byte { return mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, 7, body) }, mpush.CmdFastConnect, mpush.CodeHandler, "", 1002})
	}
	overRows(t, "fresh", rows)
}

// TestNamesOfUsersAreJudged (row 52).
func TestNamesOfUsersAreJudged(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Authenticate: func(_ context.Context, l *push.Login) (string, error) { return l.UserID, nil }})
		for _, user := range []string{"", strings.Repeat("x", 257), strings.Repeat("x", 9000), "a\nb", "a\x00", "\x1b[31m", "a\u0085b", "\x7f"} {
			for _, bound := range []bool{false, true} {
				d := w.shakesHands()
				if bound {
					d.bind("alice")
				}
				d.asksToBind(user)
				d.wantError(mpush.CmdBind, 0, "invalid param")
				d.wantClosed(0)
				d.wantCode(1008)
			}
		}
		// Tags that are too long or too many are refused as a login is, and so
		// is too much data.
		for _, more := range []string{"tags=" + strings.Repeat("x", 65), "tags=" + tagList(33), "tags=a\x01", "tags=" + strings.Repeat("x", 4<<10+1), "data=" + strings.Repeat("x", 4<<10+1)} {
			d := w.shakesHands()
			d.asksToBind("alice", more)
			d.wantOpen(2*time.Second - time.Millisecond)
			d.wantError(mpush.CmdBind, 0, "bind failed")
			d.wantClosed(3 * time.Second)
		}
		d := w.shakesHands()
		d.bind(strings.Repeat("x", 256), "data="+strings.Repeat("x", 4<<10), "tags="+tagList(32)+","+strings.Repeat(" ,", 1000))
		d.asksToBind("ü user, with = signs")
		d.wantOK(mpush.CmdBind, "unbind success")
		d.wantOK(mpush.CmdBind, "bind success")
		if !door.json {
			d.asksToBind("\xff")
			d.wantError(mpush.CmdBind, 0, "invalid param")
			d.wantClosed(0)
		}
	})
}

func tagList(n int) string {
	var tags []string
	for i := range n {
		tags = append(tags, fmt.Sprint(i))
	}
	return strings.Join(tags, ",")
}

// TestAChangedBodyIsAnErrorOrAnotherBody (row 36): without a MAC it cannot be
// more, and nothing worse.
func TestAChangedBodyIsAnErrorOrAnotherBody(t *testing.T) {
	for _, door := range doors {
		if !door.keyed {
			continue
		}
		t.Run(door.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := door.world(t, push.Config{MPush: push.MPush{SessionKey: aSessionKey(9)}})
				owner := w.shakesHands()
				begins := func() *device {
					d := w.resumes(owner)
					d.fastConnect(owner.token)
					d.wantResumed()
					return d
				}
				body := len(begins().bindPacket("alice", "data=x")) - mpush.HeaderLen
				for bit := range 8 * body {
					d := begins()
					ask := d.bindPacket("alice", "data=x")
					ask[mpush.HeaderLen+bit/8] ^= 1 << (bit % 8)
					d.raw(ask)
					synctest.Wait()
					for _, p := range d.taken() {
						if e := p.cmd == mpush.CmdError && p.error().Cmd == mpush.CmdBind; !e && p.cmd != mpush.CmdOK {
							t.Errorf("bit %d: got %v", bit, p)
						}
					}
					d.vanishes()
				}
				// Under another key it is an error, but for one in 256 or so.
				errs := 0
				for range 100 {
					d := begins()
					d.mu.Lock()
					key := d.cipher.Key()
					crand.Read(key[:])
					iv := d.cipher.IV()
					d.cipher, _ = mpush.NewCipher(key[:], iv[:])
					d.mu.Unlock()
					d.asksToBind("alice")
					synctest.Wait()
					if got := d.taken(); len(got) == 1 && got[0].cmd == mpush.CmdError {
						errs++
					}
					if d.conn() != nil {
						t.Error("a device with another key is bound")
					}
					d.vanishes()
				}
				if errs < 90 {
					t.Errorf("%d of 100 were refused", errs)
				}
				// Lengths that no cipher makes.
				for _, n := range []int{1, 15, 17, 31} {
					d := begins()
					d.raw(mpush.AppendPacket(nil, mpush.CmdBind, mpush.FlagCrypto, 7, make([]byte, n)))
					d.wantErrorTo(7, mpush.CmdBind, mpush.CodeHandler, "handle message error")
					d.wantClosed(0)
				}
			})
		})
	}
}

// TestHandshakesFailAlike (rows 26 to 33, compatibility.md B6): whatever is
// wrong, the answer is the same to the byte and comes at the same time.
func TestHandshakesFailAlike(t *testing.T) {
	stranger := sync.OnceValue(func() *mpush.PublicKey { return aKeyOfItsOwn(t) })()
	overPackets(t, func(t *testing.T, door door) {
		if door == doorPlain {
			return // see below
		}
		w := door.world(t, push.Config{})
		witness := w.witness()
		key := stockPublicKey()
		is := func(change func(h *mpush.Handshake)) func(*device) []byte {
			return func(d *device) []byte {
				h := d.is
				change(&h)
				return h.Append(nil)
			}
		}
		modulus := stockModulus(t)
		type try struct {
			what  string
			flags mpush.Flags
			body  func(d *device) []byte // on the wire, without encryption
			wire  func(d *device) []byte
		}
		tries := []try{
			{"an empty body", mpush.FlagCrypto, nil, func(*device) []byte { return nil }},
			{"random bytes", mpush.FlagCrypto, nil, func(*device) []byte { b := make([]byte, 128); crand.Read(b); b[0] = 0; return b }},
			{"two blocks of random bytes", mpush.FlagCrypto, nil, func(*device) []byte { b := make([]byte, 256); crand.Read(b); return b }},
			{"zeros", mpush.FlagCrypto, nil, func(*device) []byte { return make([]byte, 128) }},
			{"the modulus", mpush.FlagCrypto, nil, func(*device) []byte { return modulus.FillBytes(make([]byte, 128)) }},
			{"more than the modulus", mpush.FlagCrypto, nil, func(*device) []byte { return bytes.Repeat([]byte{0xff}, 128) }},
			{"half a block", mpush.FlagCrypto, nil, func(*device) []byte { return make([]byte, 64) }},
			{"a block and a byte", mpush.FlagCrypto, nil, func(*device) []byte { return make([]byte, 129) }},
			{"nine blocks", mpush.FlagCrypto, nil, func(*device) []byte { return make([]byte, 9*128) }},
			{"64 blocks", mpush.FlagCrypto, nil, func(*device) []byte { return make([]byte, 64*128) }},
			{"another's key", mpush.FlagCrypto, nil, func(d *device) []byte { b, _ := stranger.Encrypt(d.is.Append(nil)); return b }},
			{"a block changed", mpush.FlagCrypto, nil, func(d *device) []byte { b, _ := key.Encrypt(d.is.Append(nil)); b[5] ^= 1; return b }},
			{"blocks before", mpush.FlagCrypto, nil, func(d *device) []byte { // one may seem to be empty, hardly four
				junk := make([]byte, 4*128)
				crand.Read(junk)
				b, _ := key.Encrypt(d.is.Append(nil))
				return append(junk, b...)
			}},
			{"nothing in it", 0, func(*device) []byte { return nil }, nil},
			{"one field", 0, func(*device) []byte { return []byte("\x00\x05phone") }, nil},
			{"something behind", 0, func(d *device) []byte { return append(d.is.Append(nil), 0) }, nil},
			{"a negative length", 0, func(d *device) []byte { return append([]byte{0xff, 0xff}, d.is.Append(nil)...) }, nil},
			{"no device", 0, is(func(h *mpush.Handshake) { h.DeviceID = "" }), nil},
			{"a long device", 0, is(func(h *mpush.Handshake) { h.DeviceID = strings.Repeat("x", 129) }), nil},
			{"a device of control characters", 0, is(func(h *mpush.Handshake) { h.DeviceID = "a\nb" }), nil},
			{"an escape as device", 0, is(func(h *mpush.Handshake) { h.DeviceID = "\x1b[31m" }), nil},
			{"a device that is not UTF-8", 0, is(func(h *mpush.Handshake) { h.DeviceID = "\xff" }), nil},
			{"no iv", 0, is(func(h *mpush.Handshake) { h.IV = nil }), nil},
			{"an iv of 15 bytes", 0, is(func(h *mpush.Handshake) { h.IV = h.IV[:15] }), nil},
			{"an iv of 17 bytes", 0, is(func(h *mpush.Handshake) { h.IV = append(slices.Clone(h.IV), 0) }), nil},
			{"no key", 0, is(func(h *mpush.Handshake) { h.ClientKey = nil }), nil},
			{"a key of 1 byte", 0, is(func(h *mpush.Handshake) { h.ClientKey = h.ClientKey[:1] }), nil},
			{"a key of 32 bytes", 0, is(func(h *mpush.Handshake) { h.ClientKey = make([]byte, 32) }), nil},
			{"an old one", 0, is(func(h *mpush.Handshake) { h.Timestamp = time.Now().Add(-5*time.Minute - time.Second).UnixMilli() }), nil},
			{"one of before time", 0, is(func(h *mpush.Handshake) { h.Timestamp = -1 << 63 }), nil},
			{"bytes that do not inflate", mpush.FlagCompress, func(*device) []byte { return []byte("0123456789abcdef") }, nil},
			{"a bomb", mpush.FlagCompress, func(*device) []byte { return mpush.AppendDeflate(nil, make([]byte, 100<<10)) }, nil},
		}
		if door == doorTCP {
			tries = append(tries, try{"a plain one", 0, nil, func(d *device) []byte { return d.is.Append(nil) }})
		}
		var answer []byte
		for _, c := range tries {
			d := w.dialsIn()
			flags, body := c.flags, []byte(nil)
			if c.wire != nil {
				body = c.wire(d)
			} else if body = c.body(d); door.keyed {
				flags |= mpush.FlagCrypto
				var err error
				if body, err = key.Encrypt(body); err != nil {
					t.Fatal(err)
				}
			}
			begin := time.Now()
			d.raw(mpush.AppendPacket(nil, mpush.CmdHandshake, flags, 7, body))
			p := d.next()
			got := mpush.AppendPacket(nil, p.cmd, p.flags, p.id, p.body)
			if answer == nil {
				answer = got
				if e := p.error(); p.cmd != mpush.CmdError || e != (mpush.Error{Cmd: mpush.CmdHandshake, Code: mpush.CodeHandler, Reason: "handle message error"}) {
					t.Fatalf("%s: got %v", c.what, p)
				}
			}
			if !bytes.Equal(got, answer) {
				t.Errorf("%s: got %x, the first got %x", c.what, got, answer)
			}
			if after := p.at.Sub(begin); after != 20*time.Millisecond {
				t.Errorf("%s: answered after %v, want 20 ms", c.what, after)
			}
			d.wantClosed(0)
			d.wantCode(1002)
		}
		witness.isFine()
		if n := w.Stats().Refused["handshake"]; int(n) != len(tries) {
			t.Errorf("Stats count %d of %d", n, len(tries))
		}
		// An empty one of 0 is no time, and five minutes are forgiven.
		for _, at := range []int64{0, time.Now().Add(-4 * time.Minute).UnixMilli(), time.Now().Add(time.Hour).UnixMilli()} {
			d := w.dialsIn()
			d.is.Timestamp = at
			d.handshake()
		}
		// The same bytes twice are two sessions.
		d := w.dialsIn()
		hello := d.hello()
		d.raw(hello)
		d.next()
		again := w.dialsIn()
		again.is = d.is
		again.hello()
		again.raw(hello)
		again.next()
		if d.cipher.Key() == again.cipher.Key() {
			t.Error("a replayed handshake has the same key")
		}
	})
	// A server without a key has nothing to tell by padding, and tells the same.
	synctest.Test(t, func(t *testing.T) {
		w := doorPlain.world(t, push.Config{})
		for _, flags := range []mpush.Flags{0, mpush.FlagCrypto, mpush.FlagCompress} {
			d := w.dialsIn()
			begin := time.Now()
			d.raw(mpush.AppendPacket(nil, mpush.CmdHandshake, flags, 7, []byte("nonsense, and some more")))
			if p := d.wantErrorTo(7, mpush.CmdHandshake, mpush.CodeHandler, "handle message error"); p.at.Sub(begin) != 20*time.Millisecond {
				t.Errorf("answered after %v", p.at.Sub(begin))
			}
			d.wantClosed(0)
		}
	})
	// JSON has the same floor.
	synctest.Test(t, func(t *testing.T) {
		w := doorJSON.world(t, push.Config{})
		for _, body := range []string{`null`, `{}`, `{"deviceId":""}`, `{"deviceId":7}`, `[]`, `{"deviceId":"a\nb"}`, `{"deviceId":"` + strings.Repeat("x", 129) + `"}`} {
			d := w.dialsIn()
			begin := time.Now()
			d.raw([]byte(`{"cmd":2,"flags":16,"sessionId":7,"body":` + body + `}`))
			if p := d.wantErrorTo(7, mpush.CmdHandshake, mpush.CodeHandler, "handle message error"); p.at.Sub(begin) != 20*time.Millisecond {
				t.Errorf("%s: answered after %v", body, p.at.Sub(begin))
			}
			d.wantClosed(0)
		}
	})
}

// stockModulus is the modulus of the stock key: the long integer in its DER.
func stockModulus(t *testing.T) *big.Int {
	t.Helper()
	key, err := parseRSA(mpush.StockPublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key.N
}

// Floods (rows 21, 53, 63).

func TestTheFirstErrorEndsAFlood(t *testing.T) {
	overPackets(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{})
		d := w.binds("alice")
		go d.raw(bytes.Repeat(mpush.AppendPacket(nil, 99, 0, 7, nil), 4000))
		d.wantErrorTo(7, 99, mpush.CodeUnsupported, "unsupported command")
		if rest := d.tail(2 * time.Second); len(rest) != 0 {
			t.Errorf("and then %v", briefPackets(rest))
		}
	})
}

// TestAFloodIsReadMoreSlowlyAndNothingIsLost: 20 000 frames at a thousand a
// second after a burst of 5 000.
func TestAFloodIsReadMoreSlowlyAndNothingIsLost(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		handled := 0
		w := door.world(t, push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) {
			handled++
			return nil, nil
		}})
		other := w.binds("bob")
		d := w.binds("alice")
		synctest.Wait()
		begin := time.Now()
		go func() {
			for i := range 20000 {
				if i%2 == 0 {
					d.ack(7)
				} else {
					d.push("x", mpush.FlagAutoAck)
				}
			}
		}()
		time.Sleep(5 * time.Second)
		r, err := w.PushToUser(t.Context(), "bob", push.Message{Data: 1, Ack: push.AutoAck})
		if err != nil || r.Deliveries[0].Latency != 0 {
			t.Errorf("somebody else waited: %+v, %v", r, err)
		}
		other.wantPush("1")
		d.waitFor("10000 acks", func() bool { return len(d.got) == 10000 })
		if took := time.Since(begin); took < 14*time.Second || took > 17*time.Second {
			t.Errorf("it took %v, want about 15 s", took)
		}
		last := int32(0)
		for _, p := range d.taken() {
			if p.cmd != mpush.CmdAck || p.id <= last {
				t.Fatalf("got %v after %d", p, last)
			}
			last = p.id
		}
		if s := w.Stats(); handled != 10000 || s.StrayAcks != 10000 || s.Limited["message_rate"] == 0 {
			t.Errorf("%d handled, %d stray acks, limited %v", handled, s.StrayAcks, s.Limited)
		}
		d.wantNothing()
	})
}

// TestAcksThatCompleteAPushAreFree (compatibility.md A5).
func TestAcksThatCompleteAPushAreFree(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		w := door.world(t, push.Config{Limits: push.Limits{MessageRate: 10, AckTimeout: time.Hour}})
		d := w.binds("alice")
		time.Sleep(time.Minute)
		begin := time.Now()
		status := w.pushes("alice", 0, 1000, push.AutoAck)
		d.wantNumbers(0, 1000)
		if took := time.Since(begin); took != 0 {
			t.Errorf("1000 acks took %v", took)
		}
		time.Sleep(time.Second)
		if status(999) != push.Acked {
			t.Errorf("the last is %v", status(999))
		}
	})
}

// TestManyBindsAreReadMoreSlowly: five a second, and the last one counts.
func TestManyBindsAreReadMoreSlowly(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		const n = 2000
		calls := 0
		w := door.world(t, push.Config{Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.UserID != "" {
				calls++
			}
			return l.UserID, nil
		}})
		d := w.shakesHands()
		go func() {
			for i := range n {
				d.asksToBind(fmt.Sprint("u", i%7))
			}
			d.asksToBind("alice")
		}()
		time.Sleep(n/5*time.Second + time.Second)
		synctest.Wait()
		bound := 0
		for _, p := range d.taken() {
			if o := p.ok(); p.cmd != mpush.CmdOK || o.Cmd != mpush.CmdBind {
				t.Fatalf("got %v", p)
			} else if o.Data == "bind success" {
				bound++
			}
		}
		if bound != n+1 || calls != n+1 || !slices.Equal(slices.Collect(w.Users()), []string{"alice"}) {
			t.Errorf("%d binds, %d calls; online is %v", bound, calls, slices.Collect(w.Users()))
		}
		if w.Stats().Limited["binds"] == 0 {
			t.Error("it is not counted")
		}
	})
}

// TestABindIsBeatenByItsEnd: who binds and vanishes at the same time leaves
// nothing (row 57).
func TestABindIsBeatenByItsEnd(t *testing.T) {
	var connects, disconnects atomic.Int64
	w := doorTCP.socketWorld(t, push.Config{
		MPush:        push.MPush{SessionKey: aSessionKey(9)},
		OnConnect:    func(context.Context, *push.Conn) { connects.Add(1) },
		OnDisconnect: func(*push.Conn, push.Reason) { disconnects.Add(1) },
	})
	owner := w.shakesHands()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 100 {
				d := w.resumes(owner)
				d.fastConnect(owner.token)
				d.asksToBind(fmt.Sprint("u", (i+j)%3), "data=room")
				if j%2 == 0 {
					d.asksToBind("other")
				}
				if j%3 == 0 {
					d.asksToUnbind("x")
				}
				if j%4 != 0 {
					d.waitFor("an answer", func() bool { return len(d.got) > j%2 })
				}
				d.vanishes()
			}
		})
	}
	all.Wait()
	settles(t, "nobody is left", func() bool {
		s := w.Stats()
		return s.Conns == 0 && s.Users == 0 && s.Rooms == 0 && s.Memberships == 0 && s.Pending == 0 && total(s.Closed) == s.Accepted-1 && connects.Load() == disconnects.Load()
	})
	if slices.Collect(w.Users()) != nil {
		t.Error("ghosts are online")
	}
}

// TestClaimsOfLengthsHoldNoMemory (row 5).
func TestClaimsOfLengthsHoldNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := worldWithDevices(t, push.Config{MPush: push.MPush{SessionKey: aSessionKey(9)}, DeviceClass: func(*push.Login) string { return "" }, Limits: push.Limits{MaxConnsPerUser: -1}})
		owner := w.shakesHands()
		var all []*device
		for range 200 {
			d := w.resumes(owner)
			d.fastConnect(owner.token)
			d.wantResumed()
			d.bind("alice")
			all = append(all, d)
		}
		synctest.Wait()
		before := heap()
		for _, d := range all {
			d.raw(append(header(64<<10, mpush.CmdPush), make([]byte, 10)...))
		}
		synctest.Wait()
		if grown := heap() - before; grown > 200*(4<<10) {
			t.Errorf("200 claims of 64 KiB hold %d KiB", grown>>10)
		}
		time.Sleep(12 * time.Second) // and not for long
		if s := w.Stats(); s.Limited["message_timeout"] != 200 || s.Closed[push.ReasonProtocol] != 200 {
			t.Errorf("limited %v, closed %v", s.Limited, s.Closed)
		}
	})
}

// The JSON form (section 11).

func TestWhatIsWrongInJSON(t *testing.T) {
	for _, sniff := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			door := doorJSON
			door.sniff = sniff
			w := door.world(t, push.Config{OnMessage: nobodyMinds})
			witness := w.witness()
			for _, c := range []struct {
				text string
				id   int32
				cmd  mpush.Cmd
				code int8
				say  string
				end  int
			}{
				{`{"cmd":1}`, 0, 1, mpush.CodeUnsupported, "unsupported command", 1002},
				{`{"cmd":7,"sessionId":3,"body":{"sessionId":"x"}}`, 3, 7, mpush.CodeUnsupported, "unsupported command", 1002},
				{`{"cmd":12,"sessionId":4}`, 4, 12, mpush.CodeUnsupported, "unsupported command", 1002},
				{`{"cmd":0}`, 0, 0, mpush.CodeUnsupported, "unsupported command", 1002},
				{`{"cmd":13,"body":{"userId":"witness"}}`, 0, 13, mpush.CodeUnsupported, "unsupported command", 1002},
				{`{"cmd":261}`, 0, -1, mpush.CodeUnsupported, "unsupported command", 1002},
				{`{"cmd":5,"flags":0,"sessionId":5,"body":{"userId":"a"}}`, 5, 5, mpush.CodeHandler, "handle message error", 1002},
				{`{"cmd":5,"flags":8,"sessionId":5,"body":{"userId":"a"}}`, 5, 5, mpush.CodeHandler, "handle message error", 1002},
				{`{"cmd":5,"body":{"userId":7}}`, 0, 5, mpush.CodeHandler, "handle message error", 1002},
				{`{"cmd":5,"body":[]}`, 0, 5, mpush.CodeHandler, "handle message error", 1002},
				{`{"cmd":5,"body":{"userId":"a","tags":[1]}}`, 0, 5, mpush.CodeHandler, "handle message error", 1002},
				{`{"cmd":5}`, 0, 5, 0, "invalid param", 1008},
				{`{"cmd":6,"body":null}`, 0, 6, 0, "invalid param", 1008},
				{`{"cmd":15,"body":"x"}`, 0, 15, mpush.CodeHandler, "handle message error", 1002},
			} {
				for _, open := range []bool{false, true} {
					d := w.dialsIn()
					say, code, end := c.say, c.code, c.end
					if open {
						d.handshake()
					} else if c.cmd != -1 && slices.Contains([]mpush.Cmd{5, 6, 15}, c.cmd) && !strings.Contains(c.text, `"flags"`) {
						say, code, end = "not handshake", 0, 1008
					}
					d.raw([]byte(c.text))
					d.wantErrorTo(c.id, c.cmd, code, say)
					d.wantClosed(0)
					d.wantCode(end)
				}
			}
			for _, text := range []string{`{`, `[]`, `"x"`, `7`, ``, `null`, `{"cmd":2}{}`, `{"cmd":5000000000}`, `{"cmd":5.5}`, `{"cmd":"5"}`, `{"cmd":5,"sessionId":"x"}`, strings.Repeat("[", 20000)} {
				d := w.shakesHands()
				d.raw([]byte(text))
				d.wantClosed(0)
				d.wantCode(1007)
			}
			d := w.shakesHands()
			d.raw([]byte(`{}`))
			d.wantErrorTo(0, 0, mpush.CodeUnsupported, "unsupported command")
			d.wantClosed(0)
			d = w.shakesHands()
			d.ws.WriteMessage(websocket.BinaryMessage, []byte{mpush.Beat})
			d.wantClosed(0)
			d.wantCode(1003)
			d = w.shakesHands() // over the limit
			d.push(strings.Repeat("x", 64<<10), 0)
			d.wantClosed(0)
			d.wantCode(1009)
			witness.isFine()
			synctest.Wait()
			if s := w.Stats(); s.Panics != 0 || s.Conns != 1 || s.Pending != 0 {
				t.Errorf("%d panics, %d connections, %d pending", s.Panics, s.Conns, s.Pending)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // packets first, then a text
		w := doors[3].world(t, push.Config{})
		d := w.shakesHands()
		d.ws.WriteMessage(websocket.TextMessage, []byte(`{"cmd":5,"body":{"userId":"a"}}`))
		d.wantClosed(0)
		d.wantCode(1003)
	})
}

func TestNoJSONRefusesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorJSON.world(t, push.Config{MPush: push.MPush{NoJSON: true}})
		d := w.dialsIn()
		d.raw(d.hello())
		d.wantClosed(0)
		d.wantCode(1003)
		w.door.sniff = true
		d = w.dialsIn()
		d.raw(d.hello())
		d.wantOpen(time.Second) // it is a page, whose message means nothing
		if n := w.Stats().Ignored; n != 1 {
			t.Errorf("Stats count %d ignored", n)
		}
		w.door = doors[3]
		w.binds("alice")
	})
}

// TestAPageTurnsOnlyWithItsFirstMessage.
func TestAPageTurnsOnlyWithItsFirstMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var notes diary
		w := newWorld(t, push.Config{
			OnMessage:    nobodyMinds,
			OnConnect:    func(_ context.Context, c *push.Conn) { notes.note("connect %s %s", c.Protocol(), c.UserID()) },
			OnDisconnect: func(c *push.Conn, why push.Reason) { notes.note("disconnect %s %s", c.Protocol(), why) },
		})
		dialer := websocket.Dialer{NetDialContext: w.dial}
		comes := func() *websocket.Conn {
			ws, _, err := dialer.Dial("ws://push.test/ws?user=page&token=room", http.Header{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ws.Close() })
			return ws
		}
		ws := comes()
		ws.WriteMessage(websocket.TextMessage, []byte(`{"event":"x"}`))
		ws.WriteMessage(websocket.TextMessage, []byte(`{"cmd":2,"body":{"deviceId":"d"}}`))
		synctest.Wait()
		if !w.Online("page") || w.Stats().Ignored != 1 {
			t.Errorf("a page that sends a packet later is gone; %d ignored", w.Stats().Ignored)
		}
		ws.Close()
		synctest.Wait()
		ws = comes()
		synctest.Wait()
		w.PushToUser(t.Context(), "page", push.Message{Event: "before"})
		ws.WriteMessage(websocket.TextMessage, []byte(`{"cmd":2,"sessionId":1,"body":{"deviceId":"d"}}`))
		_, first, _ := ws.ReadMessage()
		_, second, _ := ws.ReadMessage()
		if !bytes.Contains(first, []byte(`"before"`)) || string(second) != `{"bodyLength":0,"cmd":2,"flags":16,"sessionId":1}` {
			t.Errorf("got %s, %s", first, second)
		}
		synctest.Wait()
		if s := w.Stats(); w.Online("page") || s.Rooms != 0 || s.Conns != 0 || s.Accepted != 2 || len(slices.Collect(w.Conns())) != 0 {
			t.Errorf("it turned and is still there: %+v", s)
		}
		notes.want(t, "connect push.json page", "disconnect push.json lost", "connect push.json page", "disconnect push.json replaced")
	})
}

// TestASessionLeavesNoSecretsInTheLog (row 40).
func TestASessionLeavesNoSecretsInTheLog(t *testing.T) {
	overDoors(t, func(t *testing.T, door door) {
		var mu sync.Mutex
		var text bytes.Buffer
		out := writerFunc(func(b []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return text.Write(b)
		})
		w := door.world(t, push.Config{
			Logger: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug - 100})),
			Authenticate: func(_ context.Context, l *push.Login) (string, error) {
				switch l.UserID {
				case "down":
					return "", errors.New("down")
				case "no":
					return "", push.ErrUnauthorized
				case "panic":
					panic("gate")
				}
				return l.UserID, nil
			},
			OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { return nil, errors.New("handler") },
			MPush:     push.MPush{Proxy: &push.Proxy{}, SessionKey: []byte("SECRET session key, 0123456789ABCDEF")},
		})
		var secrets []string
		note := func(b []byte) {
			secrets = append(secrets, string(b), fmt.Sprintf("%x", b), fmt.Sprint(b), fmt.Sprintf("%q", b))
		}
		for _, user := range []string{"alice", "down", "no", "panic"} {
			d := w.dialsIn()
			note(d.is.ClientKey)
			note(d.is.IV)
			d.handshake()
			if !door.json {
				key := d.cipher.Key()
				note(key[:])
				note([]byte(d.token))
			}
			d.asksToBind(user, "data=SECRET token", "tags=SECRET")
			w.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: "SECRET", Ack: push.AutoAck})
			d.push("SECRET", mpush.FlagAutoAck)
			if !door.json {
				d.asks(mpush.CmdHTTPProxy, 0, &mpush.ProxyRequest{URI: "http://SECRET.example/SECRET", Headers: "Cookie:SECRET\n", Body: []byte("SECRET")})
				d.raw(mpush.AppendPacket(nil, mpush.CmdBind, mpush.FlagCrypto, 7, []byte("SECRETSECRETSECRETSECRETSECRETSE")))
			} else {
				d.raw([]byte(`{"cmd":5,"body":{"userId":"SECRET`))
			}
			time.Sleep(20 * time.Second)
			d.vanishes()
			if !door.json {
				d := w.resumes(d)
				d.fastConnect("SECRET" + d.token)
				d.fastConnect(d.token)
				d.asksToBind(user, "data=SECRET")
				time.Sleep(20 * time.Second)
				d.vanishes()
			}
			d = w.dialsIn()
			if door.json {
				d.raw([]byte(`{"cmd":2,"body":{"SECRET":"SECRET"}}`))
			} else {
				d.raw(mpush.AppendPacket(nil, mpush.CmdHandshake, mpush.FlagCrypto, 7, []byte(strings.Repeat("SECRET", 30))))
				d.raw([]byte("SECRET"))
			}
			time.Sleep(20 * time.Second)
		}
		w.Shutdown(t.Context())
		mu.Lock()
		defer mu.Unlock()
		got := text.String()
		if len(strings.Split(got, "\n")) < 10 {
			t.Fatalf("the log is\n%s\nthe test is blind", got)
		}
		for _, secret := range append(secrets, "SECRET") {
			if i := strings.Index(got, secret); i >= 0 && len(secret) > 5 {
				t.Errorf("the log has …%s…", got[max(0, i-200):min(len(got), i+50)])
			}
		}
	})
}

// TestASessionOverSockets is the whole of it once more where the caller of a
// push writes, and nothing is virtual.
func TestASessionOverSockets(t *testing.T) {
	for _, door := range doors {
		t.Run(door.name, func(t *testing.T) {
			w := door.socketWorld(t, push.Config{OnMessage: nobodyMinds, MPush: push.MPush{RefuseDelay: time.Millisecond, CompressOver: 100}, Limits: push.Limits{AckTimeout: time.Minute}})
			d := w.binds("alice")
			for range 20 {
				r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: "x", Ack: push.BizAck})
				if err != nil || r.Acked != 1 {
					t.Fatalf("%+v, %v", r, err)
				}
				d.wantPush(`"x"`)
			}
			status := w.pushes("alice", 0, 500, push.AutoAck)
			d.waitFor("500 pushes", func() bool { return len(d.got) == 500 })
			for i, p := range d.taken() {
				if p.content() != fmt.Sprint(i) {
					t.Fatalf("got %v, want %d", p, i)
				}
			}
			settles(t, "all are acked", func() bool { return status(499) == push.Acked && status(0) == push.Acked })
			d.push("hello", mpush.FlagAutoAck)
			d.wantAck()
			if !door.json {
				d.wantABeat()
			}
			d.asksToBind("bob")
			d.wantOK(mpush.CmdBind, "unbind success")
			d.wantOK(mpush.CmdBind, "bind success")
			newer := w.binds("bob")
			d.wantKick(d.is.DeviceID, "bob")
			d.unbind("bob")
			if !door.json {
				again := w.resumes(newer)
				again.fastConnect(newer.token)
				again.wantResumed()
				again.bind("bob")
			}
			long := strings.Repeat("long ", 30000)
			if r, err := w.PushToUser(t.Context(), "bob", push.Message{Data: long, Ack: push.AutoAck}); err != nil || r.Acked != 1 {
				t.Errorf("%+v, %v", r, err)
			}
			if err := w.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			d.wantClosed(patience)
		})
	}
}

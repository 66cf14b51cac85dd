package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// faulty is a connection whose writes can be made to end after so many bytes.
type faulty struct {
	net.Conn
	left atomic.Int64 // bytes that may be written; negative: all
}

func (f *faulty) Write(b []byte) (int, error) {
	left := f.left.Load()
	if left < 0 || left >= int64(len(b)) {
		if left >= 0 {
			f.left.Add(-int64(len(b)))
		}
		return f.Conn.Write(b)
	}
	n, _ := f.Conn.Write(b[:left])
	f.left.Store(0)
	f.Conn.Close()
	return n, errors.New("the network broke")
}

func TestUncertainExactlyWhenAByteWasWritten(t *testing.T) {
	content := strings.Repeat("x", 100)
	size := int64(mpush.HeaderLen + mpush.SealedLen(len(content)))
	for n := range size + 1 {
		withFake(t, func(t *testing.T, f *fake) {
			var last *faulty
			cfg := f.config()
			dial := cfg.Dial
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := dial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				last = &faulty{Conn: nc}
				last.left.Store(-1)
				return last, nil
			}
			s := starts(t, cfg)
			p := f.accepts()
			p.opens()
			s.wants("connected", "handshake 30s", "bind true alice")
			last.left.Store(n)
			errs := make(chan error, 1)
			go func() { errs <- s.Push(context.Background(), []byte(content), NoAck) }()
			if n == size {
				if err := <-errs; err != nil {
					t.Errorf("all %d bytes written: %v", n, err)
				}
				return
			}
			// On the next connection it is encoded anew, or not sent again.
			key := p.cipher
			p = f.accepts()
			p.cipher = key
			fc := p.gets(mpush.CmdFastConnect)
			p.error(mpush.CmdFastConnect, fc.ID, mpush.CodeExpired, "")
			p.opens()
			s.wants("disconnected", "connected", "handshake 30s", "bind true alice")
			if n > 0 {
				if err := <-errs; !errors.Is(err, ErrUncertain) || errors.Is(err, ErrTimeout) {
					t.Errorf("%d bytes written: %v, want ErrUncertain", n, err)
				}
				go s.Push(context.Background(), []byte("next"), NoAck)
				content = "next"
			} else if err := <-errs; err != nil {
				t.Errorf("no byte written: %v, want it sent on the next connection", err)
			}
			got := p.gets(mpush.CmdPush)
			if body, err := p.cipher.Open(got.Body); err != nil || string(body) != content {
				t.Errorf("the next connection gets %q, %v; want %q", body, err, content)
			}
			content = strings.Repeat("x", 100)
		})
	}
}

// As in the original: strictly more than 1 024 bytes, and here only if that
// makes fewer of them.
func TestBodiesOver1KiBAreCompressed(t *testing.T) {
	for _, c := range []struct {
		over   int
		body   []byte
		packed bool
	}{
		{0, make([]byte, 1024), false},
		{0, make([]byte, 1025), true},
		{0, noise(10 << 10), false},
		{100, make([]byte, 100), false},
		{100, make([]byte, 101), true},
		{-1, make([]byte, 10<<10), false},
	} {
		withFake(t, func(t *testing.T, f *fake) {
			cfg := f.config()
			cfg.CompressOver = c.over
			s := starts(t, cfg)
			p := f.accepts()
			p.opens()
			s.wants("connected", "handshake 30s", "bind true alice")
			go s.Push(context.Background(), c.body, NoAck)
			got := p.gets(mpush.CmdPush)
			body, err := p.cipher.Open(got.Body)
			packed := got.Flags&mpush.FlagCompress != 0
			if err == nil && packed {
				body, err = mpush.Inflate(body, len(c.body))
			}
			if packed != c.packed || err != nil || !bytes.Equal(body, c.body) {
				t.Errorf("%d bytes, CompressOver %d: compressed %v, want %v; %v", len(c.body), c.over, packed, c.packed, err)
			}
		})
	}
}

func TestAnswersLostWithTheConnectionAreUncertain(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		errs := make(chan error, 2)
		go func() { errs <- s.Push(context.Background(), []byte("x"), AutoAck) }()
		p.gets(mpush.CmdPush)
		go func() { errs <- s.Bind(context.Background(), "bob", "") }()
		p.gets(mpush.CmdBind)
		p.Close()
		for range 2 {
			if err := <-errs; !errors.Is(err, ErrUncertain) {
				t.Errorf("%v, want ErrUncertain", err)
			}
		}
		if s.UserID() != "bob" {
			t.Errorf("UserID %q, want bob: the next connection binds", s.UserID())
		}
	})
}

func TestAcksAreSentAgain(t *testing.T) {
	for n := range int64(mpush.HeaderLen) {
		withFake(t, func(t *testing.T, f *fake) {
			var last *faulty
			cfg := f.config()
			cfg.UserID = ""
			dial := cfg.Dial
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := dial(ctx, network, addr)
				if err != nil {
					return nil, err
				}
				last = &faulty{Conn: nc}
				last.left.Store(-1)
				return last, nil
			}
			s := starts(t, cfg)
			p := f.accepts()
			p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
			s.wants("connected", "handshake 30s")
			last.left.Store(n)
			p.Write(p.sealed(mpush.CmdPush, mpush.FlagAutoAck, 77, []byte("x")))
			key := p.cipher
			p = f.accepts()
			p.cipher = key
			fc := p.gets(mpush.CmdFastConnect)
			p.Write(mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, fc.ID, (&mpush.FastConnectOK{Heartbeat: 30000}).Append(nil)))
			if ack := p.gets(mpush.CmdAck); ack.ID != 77 {
				t.Errorf("ACK %d, want 77", ack.ID)
			}
		})
	}
}

func TestAWriteThatTheServerDoesNotTakeEndsAfterTenSeconds(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		big := make([]byte, 500<<10)
		for i := range big {
			big[i] = byte(i * i >> 8 * i)
		}
		s.cfg.CompressOver = -1
		began := time.Now()
		err := s.Push(context.Background(), big, NoAck) // the network holds 64 KiB
		if took := time.Since(began); !errors.Is(err, ErrUncertain) || !errors.Is(err, os.ErrDeadlineExceeded) || took != 10*time.Second {
			t.Errorf("%v after %v, want ErrUncertain after 10 s", err, took)
		}
		s.wants("disconnected")
	})
}

func TestAFullQueueKeepsItsCallersWaiting(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		var done sync.WaitGroup
		var timeouts, sent atomic.Int32
		for i := range 3 * queueLen {
			done.Go(func() {
				switch err := s.Push(context.Background(), fmt.Append(nil, i), NoAck); {
				case err == nil:
					sent.Add(1)
				case errors.Is(err, ErrTimeout):
					timeouts.Add(1)
				default:
					t.Errorf("push %d: %v", i, err)
				}
			})
		}
		done.Wait() // nobody accepts
		if sent.Load() != 0 || timeouts.Load() != 3*queueLen || len(s.queue) > queueLen {
			t.Errorf("%d sent, %d timeouts, %d in the queue", sent.Load(), timeouts.Load(), len(s.queue))
		}
		for i := range 3 * queueLen {
			done.Go(func() {
				if err := s.Push(context.Background(), fmt.Append(nil, i), NoAck); err != nil {
					t.Errorf("push %d: %v", i, err)
				}
			})
		}
		go func() { // the connections before had their chance
			for {
				nc, err := f.l.Accept()
				if err != nil {
					return
				}
				go func() {
					p := &peer{Conn: nc, t: t, r: mpush.Reader{Max: 4 << 20}}
					defer nc.Close()
					for {
						got, err := p.next(true)
						if err != nil {
							return
						}
						switch got.Cmd {
						case mpush.CmdHandshake:
							var h mpush.Handshake
							if h.Decode(stockKey().Decrypt(got.Body)) != nil {
								return
							}
							p.key, p.iv = h.ClientKey, h.IV
							p.Write(p.handshakeOK(got.ID, serverKey))
						case mpush.CmdBind:
							p.ok(mpush.CmdBind, got.ID)
						}
					}
				}()
			}
		}()
		done.Wait()
	})
}

// Ten thousand pushes through a connection that breaks every hundred: the
// program's log has every push that was acknowledged, once and in order, and
// the session is resumed each time.
func TestTenThousandPushesThroughDisconnects(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		const total, every = 10000, 100
		cfg := w.config(d)
		store := new(spyStorage)
		cfg.UserID, cfg.Storage = "alice", store
		cfg.MinBackoff, cfg.MaxBackoff = time.Millisecond, 10*time.Millisecond
		var mu sync.Mutex
		var log []int
		var last net.Conn
		dial := cfg.Dial
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := dial(ctx, network, addr)
			mu.Lock()
			defer mu.Unlock()
			last = nc
			return nc, err
		}
		sessions := 0
		cfg.OnHandshakeOk = func(*Client, time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			sessions++
		}
		cfg.OnReceivePush = func(c *Client, content []byte, id int32) {
			var n int
			fmt.Sscan(string(content), &n)
			mu.Lock()
			defer mu.Unlock()
			log = append(log, n)
			if len(log)%every == 0 {
				last.Close() // before its ack is out
			}
		}
		cfg.Logger = quiet
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.Start()
		defer func() { c.Stop(); c.Wait() }()

		acked := make(map[int]bool)
		for i := range total { // what is not acknowledged is not pushed again
			for !w.Online("alice") {
				time.Sleep(time.Millisecond)
			}
			m := pushMessage(fmt.Sprint(i), push.AutoAck)
			m.Async = true
			m.Progress = func(r push.Receipt) {
				mu.Lock()
				defer mu.Unlock()
				acked[i] = r.Acked == 1
			}
			w.PushToUser(context.Background(), "alice", m)
			if i%10 == 9 { // as many are on their way together
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		n, before := 0, -1
		seen := make(map[int]bool)
		for _, i := range log {
			if i <= before {
				t.Fatalf("push %d came after %d", i, before)
			}
			before, seen[i] = i, true
		}
		for i := range total {
			if acked[i] {
				n++
				if !seen[i] {
					t.Fatalf("push %d was acknowledged and is not in the log", i)
				}
			}
		}
		if n < total*9/10 || sessions < n/every {
			t.Errorf("%d of %d acknowledged, over %d sessions", n, total, sessions)
		}
		if got := store.saves.Load(); got != 1 {
			t.Errorf("%d handshakes, want 1: the rest are fast connects", got)
		}
	})
}

func TestAThousandStartsAndStopsLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		for i := range 1000 {
			cfg := w.config(doors[i%2])
			cfg.UserID = "alice"
			c, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			c.Start()
			time.Sleep(time.Duration(i%50) * 100 * time.Microsecond)
			if i%3 == 0 {
				synctest.Wait()
			}
			c.Stop()
			c.Wait()
			if i%10 == 0 {
				c.Start()
				c.Stop()
				c.Wait()
			}
		}
	})
	if left := leftGoroutines(10 * time.Second); left != "" {
		t.Errorf("goroutines left:\n%s", left)
	}
}

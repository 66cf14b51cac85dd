package client

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// noise is a body that does not get smaller.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func TestAnUnbindWhoseWaitEndsReachesTheServer(t *testing.T) {
	overDoors(t, func(t *testing.T, w *world, d door) {
		cfg := w.config(d)
		cfg.UserID = "alice"
		s := starts(t, cfg)
		s.wants("connected", "handshake 3m0s", "bind true alice")
		ctx, stop := context.WithCancel(context.Background())
		stop()
		if err := s.Unbind(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Unbind: %v", err)
		}
		s.wants("unbind true alice")
		if w.Online("alice") {
			t.Error("alice is online")
		}
	})
}

func TestAnUnbindBehindASlowWriteReachesTheServer(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		go s.Push(context.Background(), noise(300<<10), NoAck)
		synctest.Wait()
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		if err := s.Unbind(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUncertain) {
			t.Errorf("Unbind: %v, want DeadlineExceeded", err)
		}
		p.gets(mpush.CmdPush)
		p.ok(mpush.CmdUnbind, p.gets(mpush.CmdUnbind).ID)
		s.wants("unbind true alice")
	})
}

func TestAnUnbindThatCannotBeQueuedEndsTheConnection(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		go s.Push(context.Background(), noise(300<<10), NoAck)
		synctest.Wait()
		for range queueLen {
			go s.Bind(context.Background(), "bob", "")
		}
		synctest.Wait()
		began := time.Now()
		if err := s.Unbind(bg(t)); err == nil {
			t.Error("Unbind: nil")
		}
		s.wants("disconnected")
		if took := time.Since(began); took > time.Second {
			t.Errorf("it ends after %v", took)
		}
	})
}

// A full queue is what a Bind goes past: it does not wait there for its context
// to end, which once ended the connection.
func TestABindGoesPastAFullQueue(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		go s.Push(context.Background(), noise(300<<10), NoAck)
		synctest.Wait()
		for range 2 * queueLen {
			go s.Push(context.Background(), []byte("x"), NoAck)
		}
		synctest.Wait()
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		if err := s.Bind(ctx, "bob", ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Bind: %v, want DeadlineExceeded", err)
		}
		p.gets(mpush.CmdPush)
		p.ok(mpush.CmdBind, p.gets(mpush.CmdBind).ID)
		s.wants("bind true bob")
	})
}

// gate is a log that stops whoever writes this message, with this user.
type gate struct {
	slog.Handler
	message, user string
	open          chan struct{}
}

func (g gate) Enabled(context.Context, slog.Level) bool { return true }

func (g gate) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if r.Message == g.message && a.Value.String() == g.user {
			<-g.open
		}
		return true
	})
	return nil
}

// The server is told of users in the order in which the client changed them,
// however slow a caller is.
func TestBindsAndUnbindsAreWrittenInTheirOrder(t *testing.T) {
	for _, message := range []string{"client: do bind user", "client: do unbind user"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, push.Config{})
			cfg := w.config(doors[0])
			g := gate{slog.DiscardHandler, message, "alice", make(chan struct{})}
			cfg.Logger = slog.New(g)
			if message == "client: do unbind user" {
				cfg.UserID = "alice"
			}
			s := starts(t, cfg)
			s.wants("connected", "handshake 3m0s")
			synctest.Wait()
			go func() {
				if cfg.UserID == "" {
					s.Bind(context.Background(), "alice", "")
				} else {
					s.Unbind(context.Background())
				}
			}()
			synctest.Wait()
			if err := s.Bind(bg(t), "bob", ""); err != nil {
				t.Error(err)
			}
			close(g.open)
			time.Sleep(time.Minute)
			if s.UserID() != "bob" || !w.Online("bob") || w.Online("alice") {
				t.Errorf("%q is the user; online: bob %v, alice %v", s.UserID(), w.Online("bob"), w.Online("alice"))
			}
		})
	}
}

func TestABindAnsweredAtTheLastMomentIsAnswered(t *testing.T) {
	for range 500 {
		withFake(t, func(t *testing.T, f *fake) {
			s := starts(t, f.config())
			p := f.accepts()
			p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
			bind := p.gets(mpush.CmdBind)
			time.Sleep(bindTimeout)
			p.ok(mpush.CmdBind, bind.ID)
			s.wants("connected", "handshake 30s", "bind true alice")
			s.wantsNothing(10 * time.Second)
			s.Stop()
		})
	}
}

func TestABindsTimeCountsFromItsBeingWritten(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		go s.Push(context.Background(), noise(300<<10), NoAck)
		synctest.Wait()
		go s.Bind(context.Background(), "bob", "")
		time.Sleep(8 * time.Second)
		p.gets(mpush.CmdPush)
		bind := p.gets(mpush.CmdBind)
		time.Sleep(bindTimeout - time.Second)
		p.ok(mpush.CmdBind, bind.ID)
		s.wants("bind true bob")
		s.wantsNothing(10 * time.Second)
		if beat, err := nextOf(p); err == nil {
			t.Errorf("cmd %d came behind, want no second BIND", beat.Cmd)
		}
	})
}

// nextOf is what the client sends within a second.
func nextOf(p *peer) (mpush.Packet, error) {
	p.SetReadDeadline(time.Now().Add(time.Second))
	defer p.SetReadDeadline(time.Time{})
	return p.next(true)
}

func TestABindIsNotRepeatedBehindAnUnbind(t *testing.T) {
	for _, wait := range []time.Duration{bindTimeout - time.Second, bindTimeout + time.Second} {
		withFake(t, func(t *testing.T, f *fake) {
			cfg := f.config()
			cfg.UserID = ""
			s := starts(t, cfg)
			p := f.accepts()
			p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
			s.wants("connected", "handshake 30s")
			go s.Bind(context.Background(), "bob", "")
			p.gets(mpush.CmdBind)
			go s.Push(context.Background(), noise(300<<10), NoAck)
			time.Sleep(wait)
			go s.Unbind(context.Background())
			synctest.Wait()
			p.gets(mpush.CmdPush)
			if wait > bindTimeout {
				p.gets(mpush.CmdBind) // it was queued before
			}
			p.gets(mpush.CmdUnbind)
			s.wantsNothing(3 * bindTimeout)
			if got, err := nextOf(p); err == nil {
				t.Errorf("cmd %d behind the UNBIND", got.Cmd)
			}
		})
	}
}

// A hook that waits for an answer behind more pushes than there is room for is
// freed by the connection's end.
func TestAHookThatWaitsIsFreedByTheConnectionsEnd(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		first := true
		done := make(chan error, 1)
		cfg.OnReceivePush = func(c *Client, content []byte, id int32) {
			if first {
				first = false
				done <- c.Push(context.Background(), []byte("x"), AutoAck)
			}
		}
		s := starts(t, cfg)
		p := f.accepts()
		p.opens()
		for range 100 {
			p.Write(p.sealed(mpush.CmdPush, 0, 1, []byte("x")))
		}
		p.Write(mpush.AppendPacket(nil, mpush.CmdAck, 0, p.gets(mpush.CmdPush).ID, nil))
		p.Close()
		time.Sleep(10 * time.Minute)
		select {
		case err := <-done:
			if !errors.Is(err, ErrUncertain) {
				t.Errorf("Push: %v, want ErrUncertain", err)
			}
		default:
			t.Fatal("the hook waits for ever")
		}
		f.accepts()
		s.Stop()
	})
}

// A Java server answers a second BIND of a user whom it has kicked on the same
// connection with OK, and does nothing.
func TestAKickedUserIsBoundOnANewConnection(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		p.Write(p.sealed(mpush.CmdKick, 0, 0, (&mpush.Kick{DeviceID: "d1", UserID: "alice"}).Append(nil)))
		s.wants("connected", "handshake 30s", "bind true alice", "kick d1 alice")
		errs := make(chan error, 1)
		go func() { errs <- s.Bind(context.Background(), "alice", "") }()
		if got, err := nextOf(p); err == nil {
			t.Errorf("cmd %d on the connection of the kick", got.Cmd)
		}
		p = f.accepts()
		fc := p.gets(mpush.CmdFastConnect)
		p.Write(mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, fc.ID, (&mpush.FastConnectOK{Heartbeat: 30000}).Append(nil)))
		p.ok(mpush.CmdBind, p.gets(mpush.CmdBind).ID)
		if err := <-errs; err != nil {
			t.Error(err)
		}
		s.wants("disconnected", "connected", "handshake 30s", "bind true alice")
	})
}

func TestAKickBeforeTheAnswerToTheBindCounts(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.UserID = ""
		s := starts(t, cfg)
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		errs := make(chan error, 1)
		s.wants("connected", "handshake 30s")
		go func() { errs <- s.Bind(context.Background(), "alice", "") }()
		bind := p.gets(mpush.CmdBind)
		p.Write(p.sealed(mpush.CmdKick, 0, 0, (&mpush.Kick{DeviceID: "d1", UserID: "alice"}).Append(nil)))
		p.ok(mpush.CmdBind, bind.ID)
		s.wants("kick d1 alice")
		if err := <-errs; !errors.Is(err, ErrKicked) || s.UserID() != "" {
			t.Errorf("Bind: %v, want ErrKicked; UserID %q", err, s.UserID())
		}
		s.wantsNothing(20 * time.Second)
	})
}

// That the server could not read one request says nothing of the next.
func TestAnOKAfterARequestThatCouldNotBeReadIsOne(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.UserID = ""
		s := starts(t, cfg)
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		s.wants("connected", "handshake 30s")
		go s.Push(context.Background(), []byte("x"), AutoAck)
		p.error(mpush.CmdPush, p.gets(mpush.CmdPush).ID, mpush.CodeHandler, "x")
		errs := make(chan error, 1)
		go func() { errs <- s.Bind(context.Background(), "bob", "") }()
		p.ok(mpush.CmdBind, p.gets(mpush.CmdBind).ID)
		if err := <-errs; err != nil {
			t.Error(err)
		}
		s.wants("bind true bob")
		s.wantsNothing(10 * time.Second)
	})
}

// A server that has to end the user before first, and cannot, says so.
func TestAFailedUnbindIsNotTheAnswerToABind(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		errs := make(chan error, 1)
		s.wants("connected", "handshake 30s", "bind true alice")
		go func() { errs <- s.Bind(context.Background(), "bob", "") }()
		id := p.gets(mpush.CmdBind).ID
		p.error(mpush.CmdBind, id, 0, "unbind failed")
		p.Write(mpush.AppendPacket(nil, mpush.CmdOK, 0, id, (&mpush.OK{Cmd: mpush.CmdBind, Data: "bind success"}).Append(nil)))
		if err := <-errs; err != nil {
			t.Error(err)
		}
		s.wants("bind true bob")
	})
}

func TestAForeignKickIsLoggedAtDebug(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		var log bytes.Buffer
		cfg := f.config()
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		s := starts(t, cfg)
		p := f.accepts()
		p.opens()
		p.Write(p.sealed(mpush.CmdKick, 0, 0, (&mpush.Kick{DeviceID: "d2", UserID: "bob"}).Append(nil)))
		s.wants("connected", "handshake 30s", "bind true alice")
		s.wantsNothing(time.Second)
		if log.Len() > 0 {
			t.Errorf("log: %s", log.String())
		}
	})
}

func TestNothingIsQueuedForARunThatHasEnded(t *testing.T) {
	c, err := New(Config{Addrs: []string{"a:1"}, DeviceID: "d", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	stop(ErrStopped)
	for range 20 {
		if err := c.enqueue(context.Background(), &run{ctx: ctx}, new(call)); !errors.Is(err, ErrStopped) {
			t.Fatalf("enqueue: %v, want ErrStopped", err)
		}
	}
}

func TestATokenAndTagsHaveABound(t *testing.T) {
	token := strings.Repeat("x", maxLogin-2)
	for tag, sound := range map[string]bool{"ab": true, "abc": false} {
		cfg := Config{Addrs: []string{"a:1"}, DeviceID: "d", UserID: "u", Token: token, Tags: []string{tag}, Logger: quiet}
		c, err := New(cfg)
		if (err == nil) != sound {
			t.Errorf("New, tag %q: %v", tag, err)
		}
		if c == nil {
			cfg.Tags = nil
			if c, err = New(cfg); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Bind(context.Background(), "u", token, tag); (err == nil) != sound {
			t.Errorf("Bind, tag %q: %v", tag, err)
		}
	}
}

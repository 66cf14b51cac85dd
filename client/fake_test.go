package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

var serverKey = []byte("0123456789abcdef")

// withFake runs a test in virtual time with a scripted server.
func withFake(t *testing.T, f func(t *testing.T, f *fake)) {
	synctest.Test(t, func(t *testing.T) { f(t, newFake(t)) })
}

func TestOddAnswersToTheHandshakeAreRetriedWithBackoff(t *testing.T) {
	for name, script := range map[string]struct {
		answer func(p *peer, id int32)
		want   error
		text   string
	}{
		"short key":  {func(p *peer, id int32) { p.Write(p.handshakeOK(id, serverKey[:15])) }, ErrProtocol, "15 bytes, want 16"},
		"long key":   {func(p *peer, id int32) { p.Write(p.handshakeOK(id, append(serverKey, 'x'))) }, ErrProtocol, "17 bytes, want 16"},
		"no key":     {func(p *peer, id int32) { p.Write(p.handshakeOK(id, nil)) }, ErrProtocol, "0 bytes, want 16"},
		"error 0":    {func(p *peer, id int32) { p.error(mpush.CmdHandshake, id, 0, "Param invalid") }, nil, `"Param invalid"`},
		"error 102":  {func(p *peer, id int32) { p.error(mpush.CmdHandshake, id, mpush.CodeRepeat, "repeat handshake") }, nil, "code 102"},
		"error -1":   {func(p *peer, id int32) { p.error(mpush.CmdHandshake, id, -1, "") }, nil, "code -1"},
		"silence":    {func(p *peer, id int32) {}, ErrSilent, "handshake within 3s"},
		"another's":  {func(p *peer, id int32) { p.error(mpush.CmdHandshake, id+1, 0, "not yours") }, ErrSilent, ""},
		"beats only": {func(p *peer, id int32) { p.Write([]byte{mpush.Beat, mpush.Beat}) }, ErrSilent, ""},
		"closed":     {func(p *peer, id int32) { p.Close() }, io.EOF, ""},
		"push first": {func(p *peer, id int32) { p.Write(mpush.AppendPacket(nil, mpush.CmdPush, 0, 1, []byte("x"))) }, ErrProtocol, "cmd 15 with id 1, want the answer to handshake"},
		"empty":      {func(p *peer, id int32) { p.Write(mpush.AppendPacket(nil, mpush.CmdHandshake, 0, id, nil)) }, ErrProtocol, "0 bytes"},
		"plain": {func(p *peer, id int32) {
			p.Write(mpush.AppendPacket(nil, mpush.CmdHandshake, 0, id, (&mpush.HandshakeOK{ServerKey: serverKey}).Append(nil)))
		}, ErrProtocol, "came plain"},
		"garbage": {func(p *peer, id int32) {
			p.Write(mpush.AppendPacket(nil, mpush.CmdHandshake, mpush.FlagCrypto, id, make([]byte, 31)))
		}, ErrProtocol, "decrypted"},
		"bad error": {func(p *peer, id int32) { p.Write(mpush.AppendPacket(nil, mpush.CmdError, 0, id, []byte{2})) }, ErrProtocol, ""},
		"early crypto": {func(p *peer, id int32) {
			p.Write(mpush.AppendPacket(nil, mpush.CmdError, mpush.FlagCrypto, id, make([]byte, 16)))
		}, ErrProtocol, "before there is a key"},
		"negative":      {func(p *peer, id int32) { p.Write(mpush.AppendHeader(nil, mpush.Header{Len: -1, Cmd: 2})) }, ErrProtocol, "-1 bytes, want 0 to"},
		"too big":       {func(p *peer, id int32) { p.Write(mpush.AppendHeader(nil, mpush.Header{Len: math.MaxInt32, Cmd: 2})) }, ErrProtocol, "2147483647 bytes, want 0 to 1114112"},
		"an HTTP reply": {func(p *peer, id int32) { io.WriteString(p, "HTTP/1.1 400 Bad Request\r\n\r\n") }, ErrProtocol, ""},
	} {
		t.Run(name, func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				s := starts(t, f.config())
				for range 3 {
					p := f.accepts()
					script.answer(p, p.takesHandshake().ID)
					p.ends()
					s.wants("connected", "disconnected")
					if got := s.reason(); script.want != nil && !errors.Is(got, script.want) || !strings.Contains(got.Error(), script.text) {
						t.Errorf("reason %v, want %v, %q", got, script.want, script.text)
					}
					if script.want == nil {
						if e := (*Error)(nil); !errors.As(s.reason(), &e) || e.Request != "handshake" {
							t.Errorf("reason %#v, want an *Error", s.reason())
						}
					}
				}
				began := time.Now()
				p := f.accepts()
				if took := time.Since(began); took < time.Second || took > 4*time.Second {
					t.Errorf("the fourth connection comes after %v, want 1 s to 4 s", took)
				}
				p.opens()
				s.wants("connected", "handshake 30s", "bind true alice")
			})
		})
	}
}

func TestErrorsToAFastConnectLeadToAHandshakeOnTheSameSocket(t *testing.T) {
	for _, code := range []int8{mpush.CodeExpired, mpush.CodeDevice, 0, -1} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				store := new(spyStorage)
				cfg := f.config()
				cfg.Storage = store
				s := starts(t, cfg)
				p := f.accepts()
				p.opens()
				s.wants("connected", "handshake 30s", "bind true alice")
				p.Close()
				p = f.accepts()
				ask := p.gets(mpush.CmdFastConnect)
				var fc mpush.FastConnect
				if err := fc.Decode(ask.Body); err != nil || ask.Flags != 0 || fc.SessionID != "tok" || fc.DeviceID != "d1" || fc.MaxHeartbeat != 240000 || fc.MinHeartbeat != 240000 {
					t.Errorf("fast connect %+v, flags %d, %v", fc, ask.Flags, err)
				}
				p.error(mpush.CmdFastConnect, ask.ID, code, "no")
				p.opens()
				s.wants("disconnected", "connected", "handshake 30s", "bind true alice")
				if store.clears.Load() != 1 || store.saves.Load() != 2 {
					t.Errorf("%d clears, %d saves; want 1 and 2", store.clears.Load(), store.saves.Load())
				}
			})
		})
	}
}

func TestAnExpiredOrEmptySessionIsNotUsed(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.UserID = ""
		s := starts(t, cfg)
		f.accepts().shakes(mpush.HandshakeOK{ServerKey: serverKey, SessionID: "tok", ExpireTime: time.Now().Add(time.Hour).UnixMilli()})
		for _, ok := range []mpush.HandshakeOK{
			{ServerKey: serverKey},
			{ServerKey: serverKey, SessionID: "tok"},
			{ServerKey: serverKey, ExpireTime: math.MaxInt64},
			{ServerKey: serverKey, SessionID: "a,b", ExpireTime: time.Now().Add(24 * time.Hour).UnixMilli()}, // the file has no place for it
			{ServerKey: serverKey, SessionID: "tok", ExpireTime: math.MinInt64},
		} {
			s.wants("connected", "handshake 1s")
			s.Stop()
			time.Sleep(2 * time.Hour)
			s.Start()
			s.wants("disconnected")
			f.accepts().shakes(ok)
		}
	})
}

func TestAfterTheSessionComesTheBindThenTheRest(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		sent := make(chan error, 1)
		go func() { sent <- s.Push(context.Background(), []byte("early"), NoAck) }()
		synctest.Wait()
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		bind := p.gets(mpush.CmdBind)
		if bind.Flags != mpush.FlagCrypto {
			t.Errorf("BIND has flags %#x, want it encrypted", bind.Flags)
		}
		push := p.gets(mpush.CmdPush)
		if body, err := p.cipher.Open(push.Body); err != nil || string(body) != "early" || push.Flags != mpush.FlagCrypto {
			t.Errorf("PUSH %q, %v, flags %#x", body, err, push.Flags)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

func TestErrorsToRequestsEndOnlyThem(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		for cmd, request := range map[mpush.Cmd]func() error{
			mpush.CmdBind: func() error { return s.Bind(bg(t), "bob", "") },
			mpush.CmdPush: func() error { return s.Push(bg(t), []byte("x"), BizAck) },
			mpush.CmdHTTPProxy: func() error {
				req, _ := http.NewRequest("GET", "http://a.test/", nil)
				_, err := s.RoundTrip(req)
				return err
			},
		} {
			errs := make(chan error, 1)
			go func() { errs <- request() }()
			p.error(cmd, p.gets(cmd).ID, 0, "no reason")
			if e := (*Error)(nil); !errors.As(<-errs, &e) || e.Reason != "no reason" || e.Request != commandName(cmd) || e.Code != 0 {
				t.Errorf("cmd %d: %v", cmd, e)
			}
			if cmd == mpush.CmdBind {
				s.wants("bind false bob")
			}
		}
		if s.UserID() != "" {
			t.Errorf("UserID %q after the refusal", s.UserID())
		}
		go s.Bind(context.Background(), "bob", "")
		p.ok(mpush.CmdBind, p.gets(mpush.CmdBind).ID)
		s.wants("bind true bob")
		errs := make(chan error, 1)
		go func() { errs <- s.Unbind(context.Background()) }()
		p.error(mpush.CmdUnbind, p.gets(mpush.CmdUnbind).ID, 0, "no")
		if err := <-errs; err == nil {
			t.Error("Unbind: nil, want an *Error")
		}
		s.wants("unbind false bob")

		// Answers that nobody waits for, and packets of no use to a client.
		for id := range int32(20) {
			for _, cmd := range []mpush.Cmd{2, 5, 6, 7, 12, 15, 99} {
				p.ok(cmd, id)
				p.error(cmd, id, 100, "")
			}
			p.Write(mpush.AppendPacket(nil, mpush.CmdAck, 0, id, nil))
			p.Write(mpush.AppendPacket(nil, 99, 0, id, []byte("?")))
			p.Write(mpush.AppendPacket(nil, mpush.CmdHandshake, 0, id, []byte("?")))
			p.Write(mpush.AppendPacket(nil, mpush.CmdHeartbeat, 0, id, nil))
		}
		s.wantsNothing(time.Second)
	})
}

// An ERROR of code 100 says that the server could not read the request: the
// session is of no use.
func TestABindThatTheServerCannotReadDropsTheSession(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		p.error(mpush.CmdBind, p.gets(mpush.CmdBind).ID, mpush.CodeHandler, "handle message error")
		p.ends()
		f.accepts().opens()
		s.wants("connected", "handshake 30s", "disconnected", "connected", "handshake 30s", "bind true alice")
		if !errors.Is(s.reason(), ErrProtocol) {
			t.Errorf("reason %v, want ErrProtocol", s.reason())
		}
	})
}

func TestABindIsRepeatedOnceThenTheConnectionGivenUp(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		began := time.Now()
		first := p.gets(mpush.CmdBind)
		again := p.gets(mpush.CmdBind)
		if first.ID != again.ID || !bytes.Equal(first.Body, again.Body) || time.Since(began) != 3*time.Second {
			t.Errorf("BIND %d, then %d after %v; want the same after 3 s", first.ID, again.ID, time.Since(began))
		}
		p.ends()
		if took := time.Since(began); took != 6*time.Second {
			t.Errorf("given up after %v, want 6 s", took)
		}
		s.wants("connected", "handshake 30s", "disconnected")

		p = f.accepts()
		p.gets(mpush.CmdFastConnect)
		p.Close()
		p = f.accepts() // the answer to the second one counts
		fc := p.gets(mpush.CmdFastConnect)
		p.Write(mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, fc.ID, (&mpush.FastConnectOK{Heartbeat: 30000}).Append(nil)))
		p.gets(mpush.CmdBind)
		p.ok(mpush.CmdBind, p.gets(mpush.CmdBind).ID)
		s.wants("connected", "disconnected", "connected", "handshake 30s", "bind true alice")
		s.wantsNothing(20 * time.Second)
	})
}

func TestPushesOfEveryKindArrive(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		big := strings.Repeat("big ", 5000)
		var all []byte
		all = append(all, mpush.AppendPacket(nil, mpush.CmdPush, mpush.FlagAutoAck, 7, nil)...)
		all = append(all, mpush.Beat, mpush.Beat)
		all = append(all, p.sealed(mpush.CmdPush, mpush.FlagBizAck, 8, []byte("biz"))...)
		all = append(all, p.sealed(mpush.CmdPush, 0xf0&^mpush.FlagCompress, 9, []byte("unknown flags"))...)
		all = append(all, p.sealed(mpush.CmdPush, mpush.FlagCompress|mpush.FlagAutoAck|mpush.FlagBizAck, -10, mpush.AppendDeflate(nil, []byte(big)))...)
		for _, b := range all {
			p.Write([]byte{b})
		}
		if ack := p.gets(mpush.CmdAck); ack.ID != 7 || len(ack.Body) != 0 || ack.Flags != 0 {
			t.Errorf("ACK %+v, want id 7", ack)
		}
		if ack := p.gets(mpush.CmdAck); ack.ID != -10 {
			t.Errorf("ACK %+v, want id -10", ack)
		}
		s.wants(`push ""`, `push "biz" to ack`, `push "unknown flags"`, fmt.Sprintf("push %.60q to ack", big))
		go s.Ack(context.Background(), 8)
		if ack := p.gets(mpush.CmdAck); ack.ID != 8 {
			t.Errorf("ACK %+v, want id 8", ack)
		}
		if err := s.Ack(context.Background(), 0); err != nil {
			t.Errorf("Ack(0): %v", err)
		}
	})
}

func TestWhatShouldBeEncryptedAndIsNotEndsTheConnection(t *testing.T) {
	kick := (&mpush.Kick{DeviceID: "d1", UserID: "alice"}).Append(nil)
	web := (&mpush.ProxyResponse{Status: 200, Body: []byte("forged")}).Append(nil)
	bomb := mpush.AppendDeflate(nil, make([]byte, 8<<20))
	for name, script := range map[string]struct {
		packet func(p *peer) []byte
		text   string
	}{
		"plain push": {func(p *peer) []byte { return mpush.AppendPacket(nil, mpush.CmdPush, 0, 1, []byte("forged")) }, "push came plain, want it encrypted"},
		"packed push": {func(p *peer) []byte {
			return mpush.AppendPacket(nil, mpush.CmdPush, mpush.FlagCompress, 1, mpush.AppendDeflate(nil, []byte("forged")))
		}, "push came plain"},
		"plain kick": {func(p *peer) []byte { return mpush.AppendPacket(nil, mpush.CmdKick, 0, 0, kick) }, "kick came plain"},
		"plain http": {func(p *peer) []byte { return mpush.AppendPacket(nil, mpush.CmdHTTPProxy, 0, 5, web) }, "http came plain"},
		"garbled": {func(p *peer) []byte {
			return mpush.AppendPacket(nil, mpush.CmdPush, mpush.FlagCrypto, 1, []byte("garbled"))
		}, "decrypted"},
		"bomb":       {func(p *peer) []byte { return p.sealed(mpush.CmdPush, mpush.FlagCompress, 1, bomb) }, "too big, want 1114112 bytes at most"},
		"no zlib":    {func(p *peer) []byte { return p.sealed(mpush.CmdPush, mpush.FlagCompress, 1, []byte("not zlib")) }, "inflated"},
		"short kick": {func(p *peer) []byte { return p.sealed(mpush.CmdKick, 0, 0, []byte{0, 9}) }, "cannot be read"},
		"short http": {func(p *peer) []byte { return p.sealed(mpush.CmdHTTPProxy, 0, 5, []byte{0}) }, "cannot be read"},
		"http status": {func(p *peer) []byte {
			return p.sealed(mpush.CmdHTTPProxy, 0, 5, (&mpush.ProxyResponse{Status: -7}).Append(nil))
		}, "status of -7"},
		"short ok":     {func(p *peer) []byte { return mpush.AppendPacket(nil, mpush.CmdOK, 0, 5, []byte{5}) }, "cannot be read"},
		"huge body":    {func(p *peer) []byte { return mpush.AppendHeader(nil, mpush.Header{Len: 1<<20 + 64<<10 + 1, Cmd: 15}) }, "1114113 bytes, want 0 to 1114112"},
		"negative len": {func(p *peer) []byte { return mpush.AppendHeader(nil, mpush.Header{Len: -2, Cmd: 15}) }, "-2 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				s := starts(t, f.config())
				p := f.accepts()
				p.opens()
				s.wants("connected", "handshake 30s", "bind true alice")
				p.Write(script.packet(p))
				p.ends()
				s.wants("disconnected")
				if got := s.reason(); !errors.Is(got, ErrProtocol) || !strings.Contains(got.Error(), script.text) {
					t.Errorf("reason %v, want ErrProtocol, %q", got, script.text)
				}
				f.accepts().opens() // by a handshake
				s.wants("connected", "handshake 30s", "bind true alice")
			})
		})
	}
}

// slowBind calls a function in the middle of the second write of a connection,
// which is the BIND.
type slowBind struct {
	net.Conn
	writes int
	then   func()
}

func (s *slowBind) Write(b []byte) (int, error) {
	if s.writes++; s.writes == 2 {
		s.then()
	}
	return s.Conn.Write(b)
}

func TestTheUserMayChangeWhileItIsBeingBound(t *testing.T) {
	for _, to := range []string{"bob", ""} {
		withFake(t, func(t *testing.T, f *fake) {
			ready := make(chan *subject, 1)
			changed := make(chan error, 1)
			cfg := f.config()
			dial := cfg.Dial
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := dial(ctx, network, addr)
				return &slowBind{Conn: nc, then: func() {
					s := <-ready
					go func() {
						if to == "" {
							changed <- s.Unbind(context.Background())
						} else {
							changed <- s.Bind(context.Background(), to, "")
						}
					}()
					for s.UserID() != to {
						time.Sleep(time.Millisecond)
					}
				}}, err
			}
			s := starts(t, cfg)
			ready <- s
			p := f.accepts()
			p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
			old := p.gets(mpush.CmdBind)
			if to == "" {
				p.gets(mpush.CmdUnbind)
				p.ok(mpush.CmdBind, old.ID)
				s.wants("connected", "handshake 30s", "unbind true alice")
			} else {
				next := p.gets(mpush.CmdBind)
				p.ok(mpush.CmdBind, old.ID)
				p.ok(mpush.CmdBind, next.ID)
				s.wants("connected", "handshake 30s", "bind true bob")
			}
			if err := <-changed; err != nil {
				t.Error(err)
			}
			s.wantsNothing(20 * time.Second)
		})
	}
}

func TestABindWhoseWaitEndsGoesOn(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.UserID = ""
		s := starts(t, cfg)
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		s.wants("connected", "handshake 30s")
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		err := s.Bind(ctx, "alice", "")
		if !errors.Is(err, ErrUncertain) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want ErrUncertain and DeadlineExceeded", err)
		}
		p.ok(mpush.CmdBind, p.gets(mpush.CmdBind).ID)
		s.wants("bind true alice")

		errs := make(chan error, 1)
		go func() { errs <- s.Bind(context.Background(), "bob", "") }()
		first := p.gets(mpush.CmdBind)
		go s.Bind(context.Background(), "carol", "")
		second := p.gets(mpush.CmdBind)
		if err := <-errs; !errors.Is(err, ErrSuperseded) {
			t.Errorf("%v, want ErrSuperseded", err)
		}
		p.error(mpush.CmdBind, first.ID, 0, "bob is refused, which is no news any more")
		p.Write(mpush.AppendPacket(nil, mpush.CmdOK, 0, second.ID, (&mpush.OK{Cmd: mpush.CmdBind, Data: "unbind success"}).Append(nil)))
		s.wantsNothing(time.Second)
		p.ok(mpush.CmdBind, second.ID)
		s.wants("bind true carol")
	})
}

func TestAKickForAnotherIsIgnored(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		for _, k := range []mpush.Kick{{DeviceID: "d2", UserID: "alice"}, {DeviceID: "d1", UserID: "bob"}, {}, {DeviceID: "d1"}} {
			p.Write(p.sealed(mpush.CmdKick, 0, 0, k.Append(nil)))
		}
		s.wantsNothing(time.Second)
		if s.UserID() != "alice" {
			t.Errorf("UserID %q", s.UserID())
		}
		kick := p.sealed(mpush.CmdKick, 0, 0, (&mpush.Kick{DeviceID: "d1", UserID: "alice"}).Append(nil))
		p.Write(append(kick, kick...))
		s.wants("kick d1 alice")
		s.wantsNothing(time.Second)
	})
}

// The ids of a Java server's pushes are small, as those of a client's requests
// are.
func TestIdsThatCollideDoNotAnswerEachOther(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		s := starts(t, f.config())
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		errs := make(chan error, 1)
		go func() { errs <- s.Push(context.Background(), []byte("up"), AutoAck) }()
		id := p.gets(mpush.CmdPush).ID
		p.Write(p.sealed(mpush.CmdPush, mpush.FlagBizAck, id, []byte("down")))
		p.ok(mpush.CmdBind, id)
		p.error(mpush.CmdHTTPProxy, id, 0, "")
		p.Write(p.sealed(mpush.CmdHTTPProxy, 0, id, (&mpush.ProxyResponse{Status: 200}).Append(nil)))
		s.wants(`push "down" to ack`)
		synctest.Wait()
		select {
		case err := <-errs:
			t.Fatalf("the push was answered: %v", err)
		default:
		}
		p.Write(mpush.AppendPacket(nil, mpush.CmdAck, 0, id, nil))
		if err := <-errs; err != nil {
			t.Error(err)
		}

		go func() { // an OK is no HTTP response, nor an ACK
			req, _ := http.NewRequest("GET", "http://a.test/", nil)
			resp, err := s.RoundTrip(req)
			if err == nil && resp.StatusCode != 204 {
				err = errors.New(resp.Status)
			}
			errs <- err
		}()
		id = p.gets(mpush.CmdHTTPProxy).ID
		p.ok(mpush.CmdHTTPProxy, id)
		p.Write(mpush.AppendPacket(nil, mpush.CmdAck, 0, id, nil))
		p.Write(p.sealed(mpush.CmdHTTPProxy, 0, id, (&mpush.ProxyResponse{Status: 204}).Append(nil)))
		if err := <-errs; err != nil {
			t.Error(err)
		}
	})
}

// A stored session whose keys are not the server's is of no use for pushes
// either.
func TestARequestThatTheServerCannotReadDropsTheSession(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.UserID = ""
		s := starts(t, cfg)
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		s.wants("connected", "handshake 30s")
		errs := make(chan error, 1)
		go func() { errs <- s.Push(context.Background(), []byte("x"), AutoAck) }()
		p.error(mpush.CmdPush, p.gets(mpush.CmdPush).ID, mpush.CodeHandler, "handle message error")
		if e := (*Error)(nil); !errors.As(<-errs, &e) || e.Code != 100 {
			t.Errorf("%v, want code 100", e)
		}
		p.Close()
		f.accepts().takesHandshake()
	})
}

func TestStoppingWhileAnswersArriveIsSafe(t *testing.T) {
	for i := range 50 {
		withFake(t, func(t *testing.T, f *fake) {
			s := starts(t, f.config())
			p := f.accepts()
			p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
			bind := p.gets(mpush.CmdBind)
			go func() {
				for range i {
					p.Write([]byte{mpush.Beat})
				}
				p.ok(mpush.CmdBind, bind.ID)
				p.Write(p.sealed(mpush.CmdKick, 0, 0, (&mpush.Kick{DeviceID: "d1", UserID: "alice"}).Append(nil)))
				p.Write(p.sealed(mpush.CmdPush, mpush.FlagAutoAck, 1, []byte("x")))
			}()
			for range i % 7 {
				runtime.Gosched()
			}
			s.Stop()
		})
	}
}

// FuzzServer is a server that sends anything at all on an open session.
func FuzzServer(f *testing.F) {
	key, _ := mpush.NewCipher(serverKey, serverKey)
	for _, cmd := range []mpush.Cmd{1, 2, 5, 7, 10, 11, 12, 13, 15, 23, 99} {
		for _, flags := range []mpush.Flags{0, mpush.FlagCrypto, mpush.FlagCompress, mpush.FlagCrypto | mpush.FlagCompress | mpush.FlagAutoAck} {
			body := (&mpush.Error{Cmd: 15, Code: 100, Reason: "x"}).Append(nil)
			if flags&mpush.FlagCompress != 0 {
				body = mpush.AppendDeflate(nil, body)
			}
			if flags&mpush.FlagCrypto != 0 {
				body = key.Append(nil, body)
			}
			f.Add(mpush.AppendPacket([]byte{mpush.Beat}, cmd, flags, 1, body), flags&mpush.FlagCrypto != 0)
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte, keyed bool) {
		cfg := Config{Addrs: []string{"a:1"}, DeviceID: "d", UserID: "u", Logger: quiet, MaxMessage: 1 << 16}
		if keyed {
			cfg.PublicKey = []byte(mpush.StockPublicKey)
		}
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		defer far.Close()
		r := &run{over: make(chan struct{})}
		r.ctx, r.cancel = context.WithCancelCause(context.Background())
		r.cancel(ErrStopped) // so that nothing is queued
		cn := &conn{c: c, r: r, raw: &countedConn{Conn: near}, nc: near, packets: mpush.Reader{Max: c.cfg.MaxMessage}, buf: make([]byte, 512), cipher: key, ended: make(chan struct{})}
		c.mu.Lock()
		for id := range int32(4) {
			for _, cmd := range []mpush.Cmd{mpush.CmdPush, mpush.CmdHTTPProxy, mpush.CmdUnbind} {
				c.newCallLocked(&call{cmd: cmd, id: id, waits: true, on: cn})
			}
		}
		c.bindCallLocked(c.login, cn).on = cn
		c.mu.Unlock()
		go func() {
			far.Write(stream)
			far.Close()
		}()
		for err == nil {
			var p mpush.Packet
			if err = cn.next(&p); err == nil {
				err = cn.handle(&p)
			}
		}
		if err.Error() == "" {
			t.Error("an error without a text")
		}
		cn.fail(err)
		cn.bury()
		if len(c.calls) != 0 {
			t.Errorf("%d requests have no end", len(c.calls))
		}
	})
}

func TestAConnectionThatClosesAtAnyByteIsSurvived(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.MinBackoff, cfg.MaxBackoff = time.Millisecond, time.Millisecond
		cfg.UserID = ""
		s := starts(t, cfg)
		p := f.accepts()
		p.Write(p.handshakeOK(p.takesHandshake().ID, serverKey))
		s.wants("connected", "handshake 30s")
		all := func() (stream []byte, whole int) { // every frame there is
			c := p.cipher
			seal := func(cmd mpush.Cmd, body []byte) []byte {
				return mpush.AppendPacket(nil, cmd, mpush.FlagCrypto, 3, c.Append(nil, body))
			}
			stream = append(stream, seal(mpush.CmdPush, []byte("content"))...)
			whole = len(stream)
			stream = append(stream, mpush.Beat)
			stream = append(stream, mpush.AppendPacket(nil, mpush.CmdOK, 0, 4, (&mpush.OK{Cmd: 5, Data: "bind success"}).Append(nil))...)
			stream = append(stream, mpush.AppendPacket(nil, mpush.CmdError, 0, 4, (&mpush.Error{Cmd: 5, Reason: "bind failed"}).Append(nil))...)
			stream = append(stream, mpush.AppendPacket(nil, mpush.CmdAck, 0, 4, nil)...)
			stream = append(stream, seal(mpush.CmdKick, (&mpush.Kick{DeviceID: "d1", UserID: "bob"}).Append(nil))...)
			stream = append(stream, seal(mpush.CmdHTTPProxy, (&mpush.ProxyResponse{Status: 200, Reason: "OK", Headers: "a:b\n", Body: []byte("x")}).Append(nil))...)
			return stream, whole
		}
		stream, whole := all()
		key := p.cipher
		for n := range len(stream) + 1 {
			p.Write(stream[:n])
			p.Conn.(interface{ CloseWrite() error }).CloseWrite()
			p.ends()
			if n >= whole {
				s.wants(`push "content"`)
			}
			s.wants("disconnected")
			if !errors.Is(s.reason(), io.EOF) {
				t.Fatalf("after %d bytes: %v, want EOF", n, s.reason())
			}
			p = f.accepts()
			p.cipher = key
			fc := p.gets(mpush.CmdFastConnect)
			answer := mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, fc.ID, (&mpush.FastConnectOK{Heartbeat: 30000}).Append(nil))
			if n < len(answer) { // and within that, too
				p.Write(answer[:n])
				p.Close()
				s.wants("connected", "disconnected")
				p = f.accepts()
				p.cipher = key
				fc = p.gets(mpush.CmdFastConnect)
				answer = mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, fc.ID, (&mpush.FastConnectOK{Heartbeat: 30000}).Append(nil))
			}
			p.Write(answer)
			s.wants("connected", "handshake 30s")
		}
	})
	withFake(t, func(t *testing.T, f *fake) { // within the answer to a handshake
		cfg := f.config()
		cfg.MinBackoff, cfg.MaxBackoff = time.Millisecond, time.Millisecond
		s := starts(t, cfg)
		for n := 0; ; n++ {
			p := f.accepts()
			answer := p.handshakeOK(p.takesHandshake().ID, serverKey)
			if n >= len(answer) {
				break
			}
			p.Write(answer[:n])
			p.Close()
			s.wants("connected", "disconnected")
		}
	})
}

// A server that names an absurd heartbeat costs it, not the client.
func TestAHeartbeatOfTheServersHasABound(t *testing.T) {
	for _, ms := range []int32{math.MinInt32, -1, 0, 1, math.MaxInt32} {
		withFake(t, func(t *testing.T, f *fake) {
			cfg := f.config()
			cfg.UserID = ""
			s := starts(t, cfg)
			p := f.accepts()
			p.shakes(mpush.HandshakeOK{ServerKey: serverKey, Heartbeat: ms})
			go io.Copy(p, p.Conn) // each is answered
			s.wants("connected", "handshake "+max(time.Second, time.Duration(ms)*time.Millisecond).String())
			s.wantsNothing(time.Hour)
		})
	}
}

func TestOverAWebSocketOnlyBinaryMessagesOfMpushAreTaken(t *testing.T) {
	for name, script := range map[string]struct {
		protocols []string
		then      func(ws *websocket.Conn)
		text      string
	}{
		"no subprotocol": {nil, func(ws *websocket.Conn) { ws.ReadMessage() }, `subprotocol "", want "mpush"`},
		"text": {[]string{"mpush"}, func(ws *websocket.Conn) {
			ws.WriteMessage(websocket.TextMessage, []byte("{}"))
			ws.ReadMessage()
			ws.ReadMessage()
		}, "text message, want binary"},
		"close": {[]string{"mpush"}, func(ws *websocket.Conn) {
			ws.ReadMessage()
			ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, "Bye"))
		}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, push.Config{})
				l, err := w.net.Host(serverIP).Listen(80)
				if err != nil {
					t.Fatal(err)
				}
				upgrader := websocket.Upgrader{Subprotocols: script.protocols}
				server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/ws" {
						http.NotFound(rw, r)
						return
					}
					ws, err := upgrader.Upgrade(rw, r, nil)
					if err != nil {
						return
					}
					defer ws.Close()
					script.then(ws)
				})}
				go server.Serve(l)
				defer server.Close()
				cfg := w.config(doors[2])
				cfg.Addrs = []string{"ws://" + serverIP + "/ws"}
				s := starts(t, cfg)
				if script.protocols == nil {
					s.wantsNothing(time.Minute)
					c := s.Client
					s.Stop()
					_, err := c.dial(&run{ctx: context.Background()}, cfg.Addrs[0])
					if err == nil || !strings.Contains(err.Error(), script.text) {
						t.Errorf("dial: %v, want %q", err, script.text)
					}
					_, err = c.dial(&run{ctx: context.Background()}, "ws://"+serverIP+"/other")
					if err == nil || !strings.Contains(err.Error(), "status 404, want 101") {
						t.Errorf("dial: %v, want status 404", err)
					}
					return
				}
				s.wants("connected", "disconnected")
				if !strings.Contains(s.reason().Error(), script.text) {
					t.Errorf("reason %v, want %q", s.reason(), script.text)
				}
			})
		})
	}
}

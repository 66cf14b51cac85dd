package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

func TestAnUpgradeHasABound(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.Addrs = []string{"ws://" + fakeAddr + "/"}
		cfg.MinBackoff = time.Hour
		starts(t, cfg)
		nc, err := f.l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\n")
		line := []byte("A: " + strings.Repeat("x", 1000) + "\r\n")
		sent := 0
		for sent < 10*maxUpgrade && err == nil {
			var n int
			n, err = nc.Write(line)
			sent += n
		}
		if err == nil {
			t.Errorf("%d bytes were read", sent)
		}
	})
}

func TestStopDoesNotWaitForAnUpgrade(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.Addrs = []string{"ws://" + fakeAddr + "/"}
		s := starts(t, cfg)
		nc, err := f.l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		synctest.Wait()
		began := time.Now()
		s.Stop()
		if took := time.Since(began); took > 0 {
			t.Errorf("Stop took %v", took)
		}
	})
}

// allocator is a Dial to an allocator that answers with this text, and to
// servers, which are counted and do not answer.
func allocator(text string, dials *atomic.Int32) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != "a.test:80" {
			dials.Add(1)
			return nil, errors.New("refused")
		}
		near, far := net.Pipe()
		go func() {
			far.Read(make([]byte, 4096))
			fmt.Fprintf(far, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
			far.Close()
		}()
		return near, nil
	}
}

func TestOfAnAllocatorsAnswerSixteenAddressesAreTaken(t *testing.T) {
	long := ""
	for i := range 1000 {
		long += fmt.Sprintf("v:%d,", i+1)
	}
	for text, want := range map[string]int32{long: maxAddrs, strings.Repeat("v:1,", 1000): 1} {
		synctest.Test(t, func(t *testing.T) {
			var dials atomic.Int32
			starts(t, Config{Allocator: "http://a.test/", DeviceID: "d", Dial: allocator(text, &dials)})
			synctest.Wait()
			if n := dials.Load(); n != want {
				t.Errorf("%d dials, want %d", n, want)
			}
		})
	}
}

func TestDialsToTheAllocatorEndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int32
		s := starts(t, Config{
			Allocator: "http://a.test/", DeviceID: "d", MinBackoff: time.Hour,
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				open.Add(1)
				defer open.Add(-1)
				<-ctx.Done()
				return nil, ctx.Err()
			},
		})
		time.Sleep(allocTimeout - time.Millisecond)
		if open.Load() != 1 {
			t.Fatalf("%d dials, want 1", open.Load())
		}
		time.Sleep(2 * time.Millisecond)
		if open.Load() != 0 {
			t.Error("the dial goes on after 3 s")
		}
		s.NetworkChanged(true)
		synctest.Wait()
		s.Stop()
		synctest.Wait()
		if open.Load() != 0 {
			t.Error("the dial goes on after Stop")
		}
	})
}

func TestTheLogHasNoSecretsOfURLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		var log bytes.Buffer
		cfg := w.config(doors[0])
		cfg.Addrs = []string{"ws://" + serverIP + ":9/secret?token=secret", "ws://" + serverIP + ":8080/secret"}
		cfg.Allocator = "http://" + serverIP + ":10/secret?key=secret"
		cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		s := starts(t, cfg)
		time.Sleep(5 * time.Second)
		s.Stop()
		s.Wait()
		if text := log.String(); strings.Contains(text, "secret") || !strings.Contains(text, "ws://"+serverIP+":9") {
			t.Errorf("log:\n%s", text)
		}
	})
}

func TestASessionThatIsNotAnsweredIsForgotten(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		starts(t, f.config())
		p := f.accepts()
		p.opens()
		p.Close()
		p = f.accepts()
		p.gets(mpush.CmdFastConnect)
		p.Close()
		p = f.accepts()
		p.gets(mpush.CmdFastConnect)
		p.ends() // it was silent
		f.accepts().opens()
	})
}

func TestALongTokenIsNotSaved(t *testing.T) {
	for n, saves := range map[int]int32{maxToken: 1, maxToken + 1: 0} {
		withFake(t, func(t *testing.T, f *fake) {
			store := new(spyStorage)
			cfg := f.config()
			cfg.UserID, cfg.Storage = "", store
			s := starts(t, cfg)
			f.accepts().shakes(mpush.HandshakeOK{
				ServerKey: serverKey, SessionID: strings.Repeat("x", n), ExpireTime: time.Now().Add(time.Hour).UnixMilli(),
			})
			s.wants("connected", "handshake 1s")
			synctest.Wait()
			if got := store.saves.Load(); got != saves {
				t.Errorf("a token of %d bytes is saved %d times, want %d", n, got, saves)
			}
		})
	}
}

func TestAfterAConnectionThatDidNotLastTheNextServerIsTried(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		next, err := f.net.Host(serverIP).Listen(3001)
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		cfg := f.config()
		cfg.Addrs = append(cfg.Addrs, serverIP+":3001")
		starts(t, cfg)
		p := f.accepts()
		p.opens()
		time.Sleep(lasted)
		p.Close()
		p = f.accepts() // the same: it lasted
		fc := p.gets(mpush.CmdFastConnect)
		p.Write(mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, fc.ID, (&mpush.FastConnectOK{Heartbeat: 30000}).Append(nil)))
		p.gets(mpush.CmdBind)
		p.Close()
		reached := make(chan struct{})
		go func() {
			if nc, err := next.Accept(); err == nil {
				close(reached)
				nc.Close()
			}
		}()
		select {
		case <-reached:
		case <-time.After(handshakeTimeout): // for which the first one could be tried in vain
			t.Error("the other server is not tried")
		}
	})
}

func TestANetworkThatChangesDuringTheHandshakeIsTried(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.MinBackoff, cfg.MaxBackoff = time.Hour, time.Hour
		s := starts(t, cfg)
		p := f.accepts()
		p.takesHandshake()
		s.NetworkChanged(true)
		p.Close()
		began := time.Now()
		p = f.accepts()
		if took := time.Since(began); took > time.Second {
			t.Errorf("the next try comes after %v", took)
		}
		id := p.takesHandshake().ID
		s.NetworkChanged(true) // which is no news any more when this one is open
		p.Write(p.handshakeOK(id, serverKey))
		p.ok(mpush.CmdBind, p.gets(mpush.CmdBind).ID)
		p.Close()
		began = time.Now()
		f.accepts()
		if took := time.Since(began); took < time.Minute {
			t.Errorf("the next try comes after %v, want the back-off", took)
		}
	})
}

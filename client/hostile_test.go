package client

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/mpush"
)

// serves answers each connection of a fake by this.
func (f *fake) serves(answer func(p *peer)) (accepted *atomic.Int32) {
	accepted = new(atomic.Int32)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := f.l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			serving.Go(func() {
				defer nc.Close()
				answer(&peer{Conn: nc, t: f.t, r: mpush.Reader{Max: 4 << 20}})
			})
		}
	})
	f.t.Cleanup(func() {
		f.l.Close()
		serving.Wait()
	})
	return accepted
}

// Whatever a server answers, for ever: the client goes on, at the pace of its
// back-off.
func TestAServerThatAlwaysAnswersTheSameIsNeitherHammeredNorGivenUp(t *testing.T) {
	open := func(p *peer) bool { // without a session to resume
		got, err := p.next(true)
		if err != nil || got.Cmd != mpush.CmdHandshake {
			return false
		}
		var h mpush.Handshake
		h.Decode(stockKey().Decrypt(got.Body))
		p.key, p.iv = h.ClientKey, h.IV
		p.Write(p.handshakeOK(got.ID, serverKey))
		return true
	}
	for name, answer := range map[string]func(p *peer){
		"error to the handshake": func(p *peer) {
			got, _ := p.next(true)
			p.error(mpush.CmdHandshake, got.ID, 0, "kicked")
			p.next(true)
		},
		"repeat handshake": func(p *peer) {
			got, _ := p.next(true)
			p.error(mpush.CmdHandshake, got.ID, mpush.CodeRepeat, "")
			p.next(true)
		},
		"error to the fast connect and to the handshake": func(p *peer) {
			for {
				got, err := p.next(true)
				if err != nil {
					return
				}
				p.error(got.Cmd, got.ID, mpush.CodeExpired, "")
			}
		},
		"a session and the end": func(p *peer) {
			if open(p) {
				p.next(true)
			}
		},
		"a fast connect and the end": func(p *peer) {
			got, _ := p.next(true)
			if got.Cmd == mpush.CmdFastConnect {
				p.Write(mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, got.ID, (&mpush.FastConnectOK{Heartbeat: 30000}).Append(nil)))
				p.next(true)
			}
		},
		"a bind that cannot be read": func(p *peer) {
			if open(p) {
				got, _ := p.next(true)
				p.error(mpush.CmdBind, got.ID, mpush.CodeHandler, "")
				p.next(true)
			}
		},
		"a plain push": func(p *peer) {
			if open(p) {
				p.Write(mpush.AppendPacket(nil, mpush.CmdPush, 0, 1, []byte("x")))
				p.next(true)
				p.next(true)
			}
		},
		"an error to nothing": func(p *peer) { // as the original would stop at
			if open(p) {
				got, _ := p.next(true)
				p.ok(mpush.CmdBind, got.ID)
				p.error(mpush.CmdHandshake, 0, 0, "kicked")
				time.Sleep(5 * time.Second)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				n := f.serves(answer)
				s := starts(t, f.config())
				time.Sleep(time.Hour)
				if n := n.Load(); n < 50 || n > 300 {
					t.Errorf("%d connections in an hour, want one or two a minute", n)
				}
				s.Stop()
				s.Wait()
				if len(s.calls) != 0 {
					t.Errorf("%d calls are left", len(s.calls))
				}
			})
		})
	}
}

// What keeps coming does not stand in for an answer.
func TestNoiseDoesNotLengthenTheHandshake(t *testing.T) {
	for name, noise := range map[string][]byte{
		"beats":      {mpush.Beat, mpush.Beat},
		"oks":        mpush.AppendPacket(nil, mpush.CmdOK, 0, 99, (&mpush.OK{Cmd: mpush.CmdBind}).Append(nil)),
		"unknown":    mpush.AppendPacket(nil, 99, 0, 1, []byte("x")),
		"big bodies": mpush.AppendPacket(nil, 99, 0, 1, make([]byte, 60<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				f.serves(func(p *peer) {
					go io.Copy(io.Discard, p.Conn)
					for {
						if _, err := p.Write(noise); err != nil {
							return
						}
						time.Sleep(100 * time.Millisecond)
					}
				})
				began := time.Now()
				s := starts(t, f.config())
				s.wants("connected", "disconnected")
				if took := time.Since(began); took > 3200*time.Millisecond || !errors.Is(s.reason(), ErrSilent) {
					t.Errorf("given up after %v: %v, want 3 s and ErrSilent", took, s.reason())
				}
			})
		})
	}
}

func TestAStormOfKicksIsOneKick(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		gate := make(chan struct{})
		cfg.OnKickUser = func(*Client, string, string) { <-gate }
		s := starts(t, cfg)
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s", "bind true alice")
		ours := p.sealed(mpush.CmdKick, 0, 0, (&mpush.Kick{DeviceID: "d1", UserID: "alice"}).Append(nil))
		for range 10000 {
			if _, err := p.Write(ours); err != nil {
				t.Fatal(err)
			}
		}
		close(gate)
		s.wants("kick d1 alice")
		s.wantsNothing(time.Minute)
		if !s.Connected() {
			t.Error("it is not connected any more")
		}
	})
}

func TestAFloodOfPushesWaitsInTheNetworkWhileAHookBlocks(t *testing.T) {
	for name, size := range map[string]int{"empty": 0, "small": 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				gate := make(chan struct{})
				cfg := f.config()
				cfg.OnReceivePush = func(*Client, []byte, int32) { <-gate }
				s := starts(t, cfg)
				p := f.accepts()
				p.opens()
				s.wants("connected", "handshake 30s", "bind true alice")
				push := p.sealed(mpush.CmdPush, 0, 0, make([]byte, size))
				if size == 0 {
					push = mpush.AppendPacket(nil, mpush.CmdPush, 0, 0, nil)
				}
				var sent atomic.Int32
				go func() {
					for {
						if _, err := p.Write(push); err != nil {
							return
						}
						sent.Add(1)
					}
				}()
				time.Sleep(time.Hour)
				inNetwork := 64<<10/len(push) + 1
				taken := int(sent.Load()) - inNetwork
				if most := hookLimit.Items + 4<<10/len(push) + 4; taken > most { // what runs, what is being put in, what is read
					t.Errorf("%d pushes were taken, want %d at most", taken, most)
				}
				if taken*size > hookLimit.Bytes+3*size {
					t.Errorf("%d bytes were taken, want %d at most", taken*size, hookLimit.Bytes+3*size)
				}
				if !s.Connected() {
					t.Error("it is not connected any more")
				}
				close(gate)
			})
		})
	}
}

// A packet that is announced costs what has come of it.
func TestAnnouncedBytesCostNothingBeforeTheyCome(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		const n = 200
		f.serves(func(p *peer) {
			p.takesHandshake()
			p.Write(mpush.AppendHeader(nil, mpush.Header{Len: 1 << 20, Cmd: mpush.CmdHandshake}))
			p.next(true)
		})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for range n {
			starts(t, f.config())
		}
		time.Sleep(time.Second)
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 256<<10 {
			t.Errorf("%d bytes for each, want less than the announced 1 MiB", each)
		}
	})
}

func TestAnAllocatorThatMisbehavesCostsThreeSeconds(t *testing.T) {
	for name, answer := range map[string]func(w io.Writer){
		"nothing":         func(w io.Writer) { time.Sleep(time.Hour) },
		"closes":          func(w io.Writer) {},
		"no HTTP":         func(w io.Writer) { io.WriteString(w, "\x00\x01\x02 hello\r\n\r\n") },
		"redirects to it": func(w io.Writer) { io.WriteString(w, "HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n") },
		"drips": func(w io.Writer) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\n\r\n")
			for range 1000 {
				io.WriteString(w, "1")
				time.Sleep(100 * time.Millisecond)
			}
		},
		"drips headers": func(w io.Writer) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\n")
			for range 1000 {
				io.WriteString(w, "a: b\r\n")
				time.Sleep(100 * time.Millisecond)
			}
		},
		"endless": func(w io.Writer) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\n\r\n")
			for {
				if _, err := w.Write(bytes.Repeat([]byte("10.0.0.1:3000,"), 1000)); err != nil {
					return
				}
			}
		},
		"endless headers": func(w io.Writer) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := w.Write(bytes.Repeat([]byte("a: b\r\n"), 1000)); err != nil {
					return
				}
			}
		},
		"rubbish": func(w io.Writer) {
			io.WriteString(w, "HTTP/1.1 200 OK\r\n\r\n<html>,:,a:,:1,"+strings.Repeat("h", 1000)+":1")
		},
		"an error":  func(w io.Writer) { io.WriteString(w, "HTTP/1.1 503 No\r\n\r\n10.0.0.9:9") },
		"a bomb":    func(w io.Writer) { w.Write(gzipBomb()) },
		"1xx only":  func(w io.Writer) { io.WriteString(w, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1000)) },
		"two hosts": func(w io.Writer) { io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n10.") },
	} {
		t.Run(name, func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				l, err := f.net.Host("10.0.0.3").Listen(80)
				if err != nil {
					t.Fatal(err)
				}
				(&fake{t: t, l: l}).serves(func(p *peer) {
					p.Read(make([]byte, 4096))
					answer(p)
				})
				cfg := f.config()
				cfg.Allocator = "http://10.0.0.3/alloc"
				began := time.Now()
				s := starts(t, cfg)
				f.accepts().opens()
				s.wants("connected", "handshake 30s", "bind true alice")
				if took := time.Since(began); took > allocTimeout+100*time.Millisecond {
					t.Errorf("it took %v, want %v at most", took, allocTimeout)
				}
				s.Stop()
			})
		})
	}
}

// gzipBomb is a response of 8 MiB of zeros, in 8 KiB.
func gzipBomb() []byte {
	var body bytes.Buffer
	z := gzip.NewWriter(&body)
	z.Write(make([]byte, 8<<20))
	z.Close()
	return append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", body.Len()), body.Bytes()...)
}

// A name that is not found is one server in vain.
func TestANameThatIsNotFoundIsPassedOver(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		dial := cfg.Dial
		cfg.Addrs = []string{"nowhere.invalid:3000", "ws://nowhere.invalid/ws", fakeAddr}
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if strings.HasPrefix(addr, "nowhere") {
				return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: addr, IsNotFound: true}}
			}
			return dial(ctx, network, addr)
		}
		s := starts(t, cfg)
		f.accepts().opens()
		s.wants("connected", "handshake 30s", "bind true alice")
	})
}

// A resolver that hangs until the dial is given up costs 10 s.
func TestANameThatIsLookedUpForEverIsPassedOver(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		dial := cfg.Dial
		cfg.Addrs = []string{"slow.invalid:3000", "ws://slow.invalid/ws", fakeAddr}
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if strings.HasPrefix(addr, "slow") {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dial(ctx, network, addr)
		}
		began := time.Now()
		s := starts(t, cfg)
		f.accepts().opens()
		if took := time.Since(began); took != 2*dialTimeout {
			t.Errorf("it took %v, want %v", took, 2*dialTimeout)
		}
		s.wants("connected", "handshake 30s", "bind true alice")
	})
}

func TestAWebSocketsPingsAndFramesCannotExhaustTheClient(t *testing.T) {
	for name, script := range map[string]struct {
		write func(nc net.Conn)
		end   error
	}{
		"pings": {func(nc net.Conn) {
			for range 20000 {
				if _, err := nc.Write([]byte{0x89, 3, 'a', 'b', 'c'}); err != nil {
					return
				}
			}
			time.Sleep(time.Second)
		}, io.EOF},
		"empty frames": {func(nc net.Conn) {
			for range 20000 {
				nc.Write([]byte{0x82, 0})
			}
		}, io.EOF},
		"a frame of 2^62 bytes": {func(nc net.Conn) {
			nc.Write([]byte{0x82, 127, 0x40, 0, 0, 0, 0, 0, 0, 0})
			nc.Write(mpush.AppendHeader(nil, mpush.Header{Len: math.MaxInt32, Cmd: mpush.CmdHandshake}))
			time.Sleep(time.Second)
		}, ErrProtocol},
		"a frame of 2^64-1 bytes": {func(nc net.Conn) {
			nc.Write([]byte{0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
			time.Sleep(time.Second)
		}, nil},
		"a masked frame":       {func(nc net.Conn) { nc.Write([]byte{0x82, 0x81, 1, 2, 3, 4, 5}); time.Sleep(time.Second) }, nil},
		"a reserved bit":       {func(nc net.Conn) { nc.Write([]byte{0xc2, 1, mpush.Beat}); time.Sleep(time.Second) }, nil},
		"a continuation first": {func(nc net.Conn) { nc.Write([]byte{0x80, 1, mpush.Beat}); time.Sleep(time.Second) }, nil},
		"half a header":        {func(nc net.Conn) { nc.Write([]byte{0x82}); time.Sleep(time.Second) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			withFake(t, func(t *testing.T, f *fake) {
				upgrader := websocket.Upgrader{Subprotocols: []string{"mpush"}}
				server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					ws, err := upgrader.Upgrade(w, r, nil)
					if err != nil {
						return
					}
					defer ws.Close()
					go io.Copy(io.Discard, ws.NetConn())
					script.write(ws.NetConn())
				})}
				go server.Serve(f.l)
				defer server.Close()
				cfg := f.config()
				cfg.Addrs, cfg.MinBackoff, cfg.MaxBackoff = []string{"ws://" + fakeAddr + "/"}, time.Hour, time.Hour
				s := starts(t, cfg)
				s.wants("connected", "disconnected")
				reason := s.reason()
				hungUp := script.end == io.EOF && errors.Is(reason, syscall.EPIPE) // it was writing at that moment
				if script.end != nil && !hungUp && !errors.Is(reason, script.end) {
					t.Errorf("reason %v, want %v", reason, script.end)
				}
				s.Stop()
				time.Sleep(time.Minute) // until the scripts have ended
			})
		})
	}
}

func TestASessionFileThatIsNoSessionCostsAHandshake(t *testing.T) {
	for name, lay := range map[string]func(name string) error{
		"empty":     func(name string) error { return os.WriteFile(name, nil, 0o600) },
		"rubbish":   func(name string) error { return os.WriteFile(name, noise(1000), 0o600) },
		"cut":       func(name string) error { return os.WriteFile(name, []byte(javaSession[:90]), 0o600) },
		"huge":      func(name string) error { return os.WriteFile(name, make([]byte, 1<<20), 0o600) },
		"closed":    func(name string) error { return os.WriteFile(name, []byte(javaSession), 0) },
		"directory": func(name string) error { return os.MkdirAll(filepath.Join(name, "x"), 0o700) },
		"link":      func(name string) error { return os.Symlink(filepath.Join(filepath.Dir(name), "none"), name) },
		"link to itself": func(name string) error {
			return os.Symlink(name, name)
		},
		"link to a device": func(name string) error { return os.Symlink("/dev/zero", name) },
		"pipe":             func(name string) error { return mkfifo(name) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, fileName)
			if err := lay(file); err != nil {
				t.Skip(err)
			}
			withFake(t, func(t *testing.T, f *fake) {
				cfg := f.config()
				cfg.Storage = FileStorage(dir)
				cfg.Logger = slog.New(slog.DiscardHandler)
				s := starts(t, cfg)
				p := f.accepts()
				if name == "closed" && os.Getuid() == 0 { // who may read everything
					fc := p.gets(mpush.CmdFastConnect)
					p.error(mpush.CmdFastConnect, fc.ID, mpush.CodeExpired, "")
				}
				p.opens()
				s.wants("connected", "handshake 30s", "bind true alice")
				s.Stop()
			})
			if name == "directory" {
				return
			}
			if text, err := FileStorage(dir).GetSession(); err != nil || !strings.HasPrefix(text, "tok,") {
				t.Errorf("after the handshake the file has %.40q, %v", text, err)
			}
			if info, err := os.Lstat(file); err != nil || info.Mode() != 0o600 {
				t.Errorf("its mode is %v, %v, want that of a file of 0600", info.Mode(), err)
			}
		})
	}
}

// A context ends each wait at once, and nothing of the request stays behind
// that is not on its way.
func TestAContextEndsEveryWait(t *testing.T) {
	for name, stage := range map[string]func(t *testing.T, f *fake, s *subject){
		"no connection": func(t *testing.T, f *fake, s *subject) {},
		"no session":    func(t *testing.T, f *fake, s *subject) { f.accepts().takesHandshake() },
		"no answer":     func(t *testing.T, f *fake, s *subject) { p := f.accepts(); p.opens(); go p.next(false) },
		"no reader":     func(t *testing.T, f *fake, s *subject) { f.accepts().opens(); clog(s) },
		"a full queue": func(t *testing.T, f *fake, s *subject) {
			f.accepts().opens()
			clog(s)
			for range queueLen {
				go s.Push(context.Background(), []byte("x"), NoAck)
			}
			synctest.Wait()
		},
	} {
		for kind, request := range map[string]func(ctx context.Context, s *subject) error{
			"bind":   func(ctx context.Context, s *subject) error { return s.Bind(ctx, "bob", "") },
			"unbind": func(ctx context.Context, s *subject) error { return s.Unbind(ctx) },
			"push":   func(ctx context.Context, s *subject) error { return s.Push(ctx, []byte("x"), BizAck) },
			"http": func(ctx context.Context, s *subject) error {
				req, _ := http.NewRequestWithContext(ctx, "POST", "http://a.test/", strings.NewReader("x"))
				_, err := s.RoundTrip(req)
				return err
			},
		} {
			t.Run(name+" "+kind, func(t *testing.T) {
				withFake(t, func(t *testing.T, f *fake) {
					s := starts(t, f.config())
					stage(t, f, s)
					synctest.Wait()
					for _, patience := range []time.Duration{0, time.Millisecond} {
						s.mu.Lock()
						before := len(s.calls)
						s.mu.Unlock()
						ctx, stop := context.WithTimeout(context.Background(), patience)
						began := time.Now()
						err := request(ctx, s)
						stop()
						if took := time.Since(began); took > patience {
							t.Errorf("it took %v, want %v", took, patience)
						}
						alone := kind == "unbind" && (name == "no connection" || name == "no session" || errors.Is(err, ErrNoUser)) // there is nobody to ask
						if err == nil != alone && !errors.Is(err, ErrNoUser) {
							t.Errorf("%v, want an error: %v", err, !alone)
						}
						s.mu.Lock()
						after := len(s.calls)
						s.mu.Unlock()
						if keeps := kind == "bind" || kind == "unbind"; after > before && !keeps {
							t.Errorf("%d calls are left, %d before", after, before)
						}
					}
					s.Stop()
					if len(s.calls) != 0 {
						t.Errorf("%d calls are left after Stop", len(s.calls))
					}
				})
			})
		}
	}
}

// clog lets the client write more than the network takes.
func clog(s *subject) {
	for range 3 {
		go s.Push(context.Background(), noise(64<<10), NoAck)
	}
	synctest.Wait()
}

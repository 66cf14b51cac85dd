package polling

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/wire"
)

func TestPOSTIsFedAndAnsweredOk(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		a := c.post(body(rev, "4one", "4two"))
		a.want(t, 200, "ok")
		if got := a.Header.Get("Content-Type"); got != "text/html" {
			t.Errorf("Content-Type is %q", got)
		}
		chunked := g.do(t.Context(), "POST", c.query, io.MultiReader(strings.NewReader(body(rev, "4three"))))
		chunked.want(t, 200, "ok")
		big := strings.Repeat("x", 200_000)
		c.post(body(rev, "4"+big)).want(t, 200, "ok")
		c.wantGot("one", "two", "three", big)
		if fmt.Sprint(c.binary) != "[false false false]" {
			t.Errorf("binary: %v", c.binary)
		}
		c.wantWhole()
	})
}

func TestPOSTInBytesIsForRevision3(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		a := g.do(t.Context(), "POST", c.query, strings.NewReader("\x01\x03\xff\x04\xfe\xff"), "Content-Type", "Application/Octet-Stream; x=y")
		if rev == eio.V3 {
			a.want(t, 200, "ok")
			c.wantGot("\xfe\xff")
			c.wantWhole()
			return
		}
		a.want(t, 400, "")
		c.wantBroken(wire.Unsupported)
		c.get().wantCode(t, UnknownSID)
	})
}

func TestMalformedPOSTEndsTheSession(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		list := []string{"", "abc", "-1:4x", "99:4x", "9999999999999:4", ":"}
		if rev == eio.V3 {
			list = append(list, "1:x", "5:4x", "2:4x1:", "2:4x\x1e")
		} else {
			list = append(list, "4x\x1e", "4x\x1e\x1e\x1e", "bx")
		}
		for i, malformed := range list {
			c := g.begin(rev, "")
			done := c.hold()
			c.post(malformed).want(t, 400, "")
			(<-done).want(t, 200, body(rev, "1"))
			c.get().wantCode(t, UnknownSID)
			g.wantRefused(WhyBadRequest, i+1)
			if malformed == "" {
				c.wantBroken(wire.Protocol)
			}
		}
		g.wantLen(0)
	})
}

func TestPOSTOverTheLimitIsRefusedAndTheSessionLives(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		g.limit = 1000
		c := g.begin(rev, "")
		at := body(rev, "4"+strings.Repeat("x", 990))
		at = body(rev, "4"+strings.Repeat("x", 990+1000-len(at)))
		if len(at) != 1000 {
			t.Fatal(len(at))
		}
		c.post(at).want(t, 200, "ok")
		c.post(at+"x").want(t, 413, "")
		g.do(t.Context(), "POST", c.query, io.MultiReader(strings.NewReader(at+"x"))).want(t, 413, "")
		g.wantRefused(WhyTooLarge, 2)
		c.wantGot(strings.Repeat("x", len(c.got[0])))
		c.wantWhole()
	})
}

// raw sends the head of a POST and leaves the body to the test.
func (c *session) raw(length string) net.Conn {
	c.g.t.Helper()
	conn, err := c.g.ln.Dial()
	if err != nil {
		c.g.t.Fatal(err)
	}
	c.g.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST /socket.io/?%s HTTP/1.1\r\nHost: push.example\r\n%s\r\n\r\n", c.query, length)
	return conn
}

func wantStatus(t *testing.T, conn net.Conn, status int) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if want := fmt.Sprintf("HTTP/1.1 %d ", status); !strings.HasPrefix(string(buf[:n]), want) {
		t.Errorf("got %q, %v, want %s", buf[:n], err, want)
	}
}

func TestEndlessChunkedPOSTIsRefusedAtTheLimit(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		conn := c.raw("Transfer-Encoding: chunked")
		var sent atomic.Int64
		go func() {
			chunk := "1000\r\n" + strings.Repeat("x", 0x1000) + "\r\n"
			for {
				n, err := io.WriteString(conn, chunk)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		}()
		wantStatus(t, conn, 413)
		time.Sleep(time.Minute)
		if n := sent.Load(); n > 3_000_000 {
			t.Errorf("%d bytes were taken", n)
		}
		c.wantWhole()
	})
}

func TestSlowPOSTIsCutAndEndsTheSession(t *testing.T) {
	for name, pace := range map[string]struct {
		every time.Duration
		bytes int
		after time.Duration // the least and, with 10 s more, the most time until the answer
	}{
		"nothing":         {time.Hour, 1, 10 * time.Second},
		"a byte a second": {time.Second, 1, 10 * time.Second},
		"8 KiB a second":  {time.Second, 8 << 10, 19 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, rev eio.Revision) {
				g := newRig(t, nil)
				c := g.begin(rev, "")
				conn := c.raw("Content-Length: 900000")
				begin := time.Now()
				end := make(chan struct{})
				defer close(end)
				go func() {
					for {
						select {
						case <-time.After(pace.every):
							io.WriteString(conn, strings.Repeat("x", pace.bytes))
						case <-end:
							return
						}
					}
				}()
				wantStatus(t, conn, 408)
				if got := time.Since(begin); got < pace.after || got > pace.after+10*time.Second {
					t.Errorf("answered after %v, want about %v", got, pace.after)
				}
				g.wantRefused(WhySlow, 1)
				c.wantBroken(wire.Policy)
				c.wantGot()
			})
		})
	}
}

func TestPOSTAtTheLeastRateIsTaken(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		message := body(rev, "4"+strings.Repeat("x", 500_000))
		conn := c.raw(fmt.Sprint("Content-Length: ", len(message)))
		for len(message) > 0 {
			n := min(len(message), 5*minRate)
			time.Sleep(5 * time.Second)
			io.WriteString(conn, message[:n])
			message = message[n:]
		}
		wantStatus(t, conn, 200)
		c.wantWhole()
	})
}

func TestPOSTWhoseClientGoesAwayEndsTheSession(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		conn := c.raw("Content-Length: 10000")
		io.WriteString(conn, "4hello")
		synctest.Wait()
		c.wantWhole()
		conn.Close()
		c.wantBroken(0)
		c.wantGot()
		g.wantLen(0)
	})
}

func TestPOSTIsAnsweredWhenAllOfItIsTaken(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		c.stall(true)
		done := make(chan answer, 1)
		go func() { done <- c.post(body(rev, "4x")) }()
		time.Sleep(time.Minute)
		select {
		case a := <-done:
			t.Fatalf("answered: %v", a)
		default:
		}
		c.stall(false)
		(<-done).want(t, 200, "ok")
		c.wantGot("x")
	})
}

func TestSecondPOSTEndsTheSession(t *testing.T) {
	for _, shuts := range []bool{false, true} {
		for _, fed := range []bool{false, true} {
			both(t, func(t *testing.T, rev eio.Revision) {
				g := newRig(t, nil)
				c := g.begin(rev, "")
				c.shuts = shuts
				get := c.hold()
				c.stall(true)
				message := body(rev, "4x")
				first := c.raw(fmt.Sprint("Content-Length: ", len(message)))
				if fed {
					io.WriteString(first, message)
				} else {
					io.WriteString(first, message[:1])
				}
				synctest.Wait()
				c.post(message).want(t, 400, "")
				(<-get).want(t, 200, body(rev, "1"))
				if !fed {
					io.WriteString(first, message[1:])
				}
				wantStatus(t, first, 400)
				c.wantBroken(wire.Policy)
				g.wantRefused(WhyOverlap, 1)
				c.get().wantCode(t, UnknownSID)
				c.wantGot()
				g.wantLen(0)
			})
		}
	}
}

func TestPOSTWithoutALimitMayHaveAnySize(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		g.limit = -1
		c := g.begin(rev, "")
		big := "4" + strings.Repeat("x", 200_000)
		if a := c.post(body(rev, big)); a.StatusCode != 200 {
			t.Errorf("%d, want 200", a.StatusCode)
		}
	})
}

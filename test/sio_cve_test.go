package test

import (
	"bytes"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// What the server of socket.io 2.3.0 died of (limits.md, section 0), which
// speaks the same protocol.

// TestEventNamedErrorEndsNothing: CVE-2024-38355, one packet ended the process.
func TestEventNamedErrorEndsNothing(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{})
		w.dialect = door
		p := w.connect("alice")
		p.emits(-1, "error", map[string]any{})
		p.asks(1, "after", nil)
		p.wantAnswer(1, "", "unknown event")
		if s := w.Stats(); s.Panics != 0 || s.Ignored != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestForeignOriginIsNotReflected: CVE-2020-28481, any page could act for who
// visited it.
func TestForeignOriginIsNotReflected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		defer time.Sleep(time.Second) // net/http waits that long for the end of a request that was refused
		transport := &http.Transport{DialContext: w.dial}
		defer transport.CloseIdleConnections()
		for _, method := range []string{"GET", "OPTIONS", "POST"} {
			for _, revision := range []string{"3", "4"} {
				r, err := http.NewRequest(method, "http://push.test/socket.io/?transport=polling&EIO="+revision, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Origin", "https://evil.example")
				resp, err := transport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				for name := range resp.Header {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("%s of revision %s: %s: %s", method, revision, name, resp.Header.Get(name))
					}
				}
				if resp.StatusCode != http.StatusForbidden {
					t.Errorf("%s of revision %s: %d, want 403", method, revision, resp.StatusCode)
				}
			}
		}
	})
}

// TestPostOfEightMebibytesCostsNothing: CVE-2020-36048, one took two seconds
// and 291 MiB.
func TestPostOfEightMebibytesCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		defer time.Sleep(time.Second) // as above
		for _, door := range socketIODoors {
			if !strings.HasSuffix(door, "polling") {
				continue
			}
			w.dialect = door
			p := w.connect("alice")
			body := bytes.Repeat([]byte("4"), 8<<20)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			status, _, _, err := p.io.request("POST", "text/plain", body)
			runtime.ReadMemStats(&after)
			if err == nil && status != http.StatusRequestEntityTooLarge { // or it was cut before it could be read
				t.Errorf("%s: %d, want 413", door, status)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
				t.Errorf("%s: %d bytes were allocated", door, got)
			}
		}
	})
}

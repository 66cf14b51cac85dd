package polling

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/eio"
)

var sharedKey = []byte(strings.Repeat("k", 32))

// relayRig is a rig on node "here", and a sid of node "there". tags are those
// that Relay was asked for; it answers "relayed", unless no is set.
type relayRig struct {
	*rig
	sid  string
	tags []string
	no   bool
}

func newRelayRig(t *testing.T) *relayRig {
	t.Helper()
	g := &relayRig{}
	g.rig = newRig(t, func(c *Config, _ *http.Server) {
		c.Sids = NewSids([8]byte{'h', 'e', 'r', 'e'}, sharedKey)
		c.Origin = func(r *http.Request) (bool, bool) { return r.Header.Get("Origin") != "https://evil.example", false }
		c.Relay = func(w http.ResponseWriter, r *http.Request, tag [8]byte) bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.tags = append(g.tags, strings.TrimRight(string(tag[:]), "\x00"))
			if !g.no {
				io.WriteString(w, "relayed")
			}
			return !g.no
		}
	})
	g.sid, _ = NewSids([8]byte{'t', 'h', 'e', 'r', 'e'}, sharedKey).Make()
	return g
}

func (g *relayRig) wantRelayed(n int) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.tags) != n {
		g.t.Errorf("%d requests were relayed, want %d", len(g.tags), n)
	}
	for _, tag := range g.tags {
		if tag != "there" {
			g.t.Errorf("the tag is %q", tag)
		}
	}
}

func TestRequestsOfAnotherNodesSessionAreRelayed(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRelayRig(t)
		query := fmt.Sprintf("EIO=%d&transport=polling&sid=%s", rev, g.sid)
		for _, method := range []string{"GET", "POST"} {
			a := g.do(t.Context(), method, query, strings.NewReader(map[string]string{"POST": "4x"}[method]), "Origin", "https://page.example")
			a.want(t, 200, "relayed")
			if got := a.Header.Get("Access-Control-Allow-Origin"); got != "https://page.example" {
				t.Errorf("Access-Control-Allow-Origin is %q", got)
			}
		}
		d := websocket.Dialer{NetDialContext: g.ln.DialContext}
		_, resp, err := d.Dial("ws://push.example/socket.io/?"+strings.Replace(query, "=polling", "=websocket", 1), nil)
		if err == nil || resp == nil || resp.StatusCode != 200 {
			t.Errorf("the upgrade got %v, %v, want what Relay answers", resp, err)
		}
		g.wantRelayed(3)
		g.wantRefused(WhyUnknownSID, 0)

		c := g.begin(rev, "") // its own it answers itself
		c.send("x")
		c.get().want(t, 200, body(rev, "4x"))
		c.nc.Close()
		synctest.Wait()
		c.get().wantCode(t, UnknownSID)
		g.wantRelayed(3)
	})
}

func TestSidThatNobodyRelaysIsUnknown(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRelayRig(t)
		g.no = true
		query := "EIO=4&transport=polling&sid=" + g.sid
		g.do(t.Context(), "GET", query, nil).wantCode(t, UnknownSID)
		g.wantRelayed(1)
		g.wantRefused(WhyUnknownSID, 1)

		alone := newRig(t, func(c *Config, _ *http.Server) { c.Sids = NewSids([8]byte{}, sharedKey) })
		alone.do(t.Context(), "GET", query, nil).wantCode(t, UnknownSID)
		alone.wantRefused(WhyUnknownSID, 1)
	})
}

func TestWhatNoSessionWouldTakeIsNotRelayed(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRelayRig(t)
		forged, _ := NewSids([8]byte{'t', 'h', 'e', 'r', 'e'}).Make()
		do := func(method, query, body string, headers ...string) answer {
			return g.do(t.Context(), method, query, strings.NewReader(body), headers...)
		}
		polls, sockets := "EIO=4&transport=polling&sid=", "EIO=4&transport=websocket&sid="
		do("GET", polls+forged, "").wantCode(t, UnknownSID)
		do("GET", polls+g.sid[1:], "").wantCode(t, UnknownSID)
		do("GET", polls+g.sid, "", "Origin", "https://evil.example").wantCode(t, Forbidden)
		do("GET", polls+g.sid, "", "Sec-Fetch-Site", "cross-site").wantCode(t, Forbidden)
		do("GET", polls+g.sid, "a body").wantCode(t, BadRequest)
		do("PUT", polls+g.sid, "4x").wantCode(t, BadRequest)
		do("GET", sockets+g.sid, "").wantCode(t, BadRequest)
		do("GET", "EIO=4&transport=carrier&sid="+g.sid, "").wantCode(t, UnknownTransport)
		do("OPTIONS", polls+g.sid, "", "Origin", "https://page.example").want(t, 204, "")
		do("GET", polls+g.sid, "", "Connection", "Upgrade", "Upgrade", "websocket").want(t, 400, "Bad request")
		if a := do("GET", sockets+g.sid, "", "Connection", "Upgrade", "Upgrade", "websocket"); a.err != nil || a.StatusCode != 426 {
			t.Errorf("a WebSocket without a version got %v, %v, want 426", a.Response, a.err)
		}
		g.wantRelayed(0)
	})
}

package polling

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"unsafe"

	"github.com/embedpush/push/internal/eio"
)

func TestHandshakeIsAnsweredWithTheOpenPacketAndWhatIsQueuedBehindIt(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		g.first = "0"
		a := g.do(t.Context(), "GET", fmt.Sprintf("userId=u1&EIO=%d&transport=polling&t=abc&sid=", rev), nil)
		var sid string
		for sid = range g.hosts {
		}
		open := `0{"sid":"` + sid + `","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}`
		a.want(t, 200, body(rev, open, "40"))
		for name, want := range map[string]string{
			"Content-Type":   "text/plain; charset=UTF-8",
			"Cache-Control":  "no-store",
			"Content-Length": fmt.Sprint(len(a.body)),
			"Vary":           "Origin",
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if got := a.Header.Get("Access-Control-Allow-Origin"); got != "" {
			t.Errorf("a request without Origin was answered with %q", got)
		}
		g.wantLen(1)
	})
}

func TestMalformedRequestsGetTheirCode(t *testing.T) {
	forged := NewSids([8]byte{}).seal([16]byte{})
	for _, row := range []struct {
		name, method, query string
		code                int
	}{
		{"no transport", "GET", "EIO=%d", UnknownTransport},
		{"unknown transport", "GET", "EIO=%d&transport=constructor", UnknownTransport},
		{"transport in capitals", "GET", "EIO=%d&transport=Polling", UnknownTransport},
		{"webtransport", "GET", "EIO=%d&transport=webtransport", UnknownTransport},
		{"transport escaped badly", "GET", "EIO=%d&transport=polling%%zz", UnknownTransport},
		{"first transport counts", "GET", "EIO=%d&transport=x&transport=polling", UnknownTransport},
		{"unknown transport before unknown sid", "POST", "EIO=%d&transport=x&sid=x", UnknownTransport},
		{"short sid", "GET", "EIO=%d&transport=polling&sid=x", UnknownSID},
		{"forged sid", "GET", "EIO=%d&transport=polling&sid=" + forged, UnknownSID},
		{"long sid", "GET", "EIO=%d&transport=polling&sid=" + strings.Repeat("A", 4000), UnknownSID},
		{"unknown sid and PUT", "PUT", "EIO=%d&transport=polling&sid=x", UnknownSID},
		{"POST without sid", "POST", "EIO=%d&transport=polling", BadMethod},
		{"PUT with an empty sid", "PUT", "EIO=%d&transport=polling&sid=", BadMethod},
		{"method before version", "DELETE", "EIO=9%d&transport=polling", BadMethod},
		{"websocket without Upgrade", "GET", "EIO=%d&transport=websocket", BadRequest},
		{"websocket without Upgrade before version", "GET", "EIO=9%d&transport=websocket", BadRequest},
		{"query over 8 KiB", "GET", "EIO=%d&transport=polling&x=" + strings.Repeat("x", maxQuery), BadRequest},
		{"version 2", "GET", "EIO=2&_=%d&transport=polling", BadVersion},
		{"version 34", "GET", "EIO=3%d&transport=polling", BadVersion},
		{"no version", "GET", "_=%d&transport=polling", BadVersion},
		{"version abc", "GET", "EIO=abc%d&transport=polling", BadVersion},
		{"first version counts", "GET", "EIO=5&EIO=%d&transport=polling", BadVersion},
	} {
		t.Run(row.name, func(t *testing.T) {
			both(t, func(t *testing.T, rev eio.Revision) {
				g := newRig(t, nil)
				a := g.do(t.Context(), row.method, fmt.Sprintf(row.query, rev), nil)
				a.wantCode(t, row.code)
				if a.err == nil && a.Header.Get("Cache-Control") != "no-store" {
					t.Error("a refusal may be cached")
				}
				why := WhyBadRequest
				if row.code == UnknownSID {
					why = WhyUnknownSID
				}
				g.wantRefused(why, 1)
				g.wantLen(0)
				if len(g.asked) > 0 {
					t.Error("Open was called")
				}
			})
		})
	}
}

func TestQueryIsUnescaped(t *testing.T) {
	for raw, want := range map[string]query{
		"":                                      {},
		"&&=&EIO":                               {},
		"EI%4F=%34&transport=polling":           {eio: "4", transport: "polling"},
		"EIO=4&EIO=3&sid=a&sid=b":               {eio: "4", sid: "a"},
		"sid=&sid=b&EIO=3&b64=1":                {eio: "3", b64: true},
		"b64=&EIO=3":                            {eio: "3"},
		"%zz=1&sid=%zz&sid=b&transport=a%20b+c": {transport: "a b c"},
		"j=0&t=x&EIO=3;transport=polling":       {eio: "3;transport=polling"},
	} {
		if got := parseQuery(raw); got != want {
			t.Errorf("parseQuery(%q) = %+v, want %+v", raw, got, want)
		}
	}
	escaped := "sid=" + url.QueryEscape("a&b=c")
	if got := parseQuery(escaped).sid; got != "a&b=c" {
		t.Errorf("sid of %q is %q", escaped, got)
	}
}

func TestOpenHearsWhatTheClientAsksFor(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}
		for _, row := range []struct {
			query   string
			headers []string
			want    Ask
		}{
			{"EIO=3&transport=polling", nil, Ask{Revision: eio.V3}},
			{"EIO=3&transport=polling&b64=1", nil, Ask{Revision: eio.V3, Base64: true}},
			{"EIO=4&transport=polling&b64=1", nil, Ask{Revision: eio.V4}},
			{"EIO=4&transport=polling&j=alert(1)", nil, Ask{Revision: eio.V4}},
			{"EIO=4&transport=polling", []string{"Connection", "Upgrade", "Upgrade", "h2c"}, Ask{Revision: eio.V4}},
			{"EIO=3&transport=websocket", upgrade, Ask{Revision: eio.V3, WebSocket: true}},
			{"EIO=4&transport=websocket", upgrade, Ask{Revision: eio.V4, WebSocket: true}},
		} {
			g.asked = nil
			g.do(t.Context(), "GET", row.query, nil, row.headers...)
			if len(g.asked) != 1 || g.asked[0] != row.want {
				t.Errorf("%s: asked %+v, want %+v", row.query, g.asked, row.want)
			}
		}
	})
}

func TestRefusedUpgradesAreAnsweredInPlainText(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, func(c *Config, _ *http.Server) {
			c.Origin = func(r *http.Request) (bool, bool) { return false, false }
		})
		c := g.begin(rev, "")
		sid := c.p.SID()
		for _, row := range []struct {
			query, origin, version string
			status                 int
			text                   string
		}{
			{"EIO=%d&transport=x", "", "13", 400, "Transport unknown"},
			{"EIO=%d&transport=polling", "", "13", 400, "Bad request"},
			{"EIO=%d&transport=polling&sid=" + sid, "", "13", 400, "Bad request"},
			{"EIO=%d&transport=websocket&sid=x", "", "13", 400, "Session ID unknown"},
			{"EIO=%d&transport=websocket&sid=" + sid, "", "12", 426, "WebSocket version 13 is spoken here"},
			{"EIO=%d&transport=websocket", "", "12", 426, "WebSocket version 13 is spoken here"},
			{"EIO=5%d&transport=websocket", "", "13", 400, "Unsupported protocol version"},
			{"EIO=%d&transport=websocket", "http://evil.example", "13", 403, "Forbidden"},
			{"EIO=%d&transport=websocket", "", "13", 503, "not here"},
		} {
			headers := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", row.version, "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}
			if row.origin != "" {
				headers = append(headers, "Origin", row.origin)
			}
			a := g.do(t.Context(), "GET", fmt.Sprintf(row.query, rev), nil, headers...)
			a.want(t, row.status, row.text)
			if a.err == nil && !a.Close {
				t.Errorf("%s: the connection is kept", row.query)
			}
		}
		c.wantWhole()
	})
}

func TestRequestsThatDoNotFitTheSessionAreRefusedAndHarmless(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		for _, method := range []string{"PUT", "DELETE", "PATCH"} {
			g.do(t.Context(), method, c.query, nil).wantCode(t, BadRequest)
		}
		g.do(t.Context(), "GET", c.query, strings.NewReader("body")).wantCode(t, BadRequest)
		g.do(t.Context(), "GET", strings.Replace(c.query, "=polling", "=websocket", 1), nil).wantCode(t, BadRequest)
		g.do(t.Context(), "POST", strings.Replace(c.query, "=polling", "=websocket", 1), strings.NewReader(body(rev, "4x"))).wantCode(t, BadRequest)
		c.wantWhole()
		c.wantGot()
		c.send("hello")
		c.get().want(t, 200, body(rev, "4hello"))
	})
}

func TestOverdueSessionIsUnknown(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		c := g.begin(rev, "")
		c.mu.Lock()
		c.alive = false
		c.mu.Unlock()
		c.get().wantCode(t, UnknownSID)
		c.post(body(rev, "4x")).wantCode(t, UnknownSID)
		c.wantGot()
	})
}

func TestUnknownSIDIsAnsweredWithoutReadingTheBody(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		conn, err := g.ln.Dial()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "POST /socket.io/?EIO=4&transport=polling&sid=x HTTP/1.1\r\nHost: push.example\r\nContent-Length: 100000\r\n\r\n")
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if head := string(buf[:n]); err != nil || !strings.HasPrefix(head, "HTTP/1.1 400 ") || !strings.Contains(head, "Connection: close") {
			t.Errorf("answered %q, %v", head, err)
		}
	})
}

func TestSidsAreRefusedBeforeAnythingIsLookedUp(t *testing.T) {
	key, old := []byte(strings.Repeat("k", 32)), []byte(strings.Repeat("o", 32))
	s := NewSids([8]byte{1, 2, 3}, key, old)
	sid, id := s.Make()
	if len(sid) != 54 || strings.ContainsAny(sid, "+/=") {
		t.Errorf("sid %q", sid)
	}
	if tag, got, ok := s.Open(sid); !ok || got != id || tag != s.tag {
		t.Errorf("Open(Make) = %v %v %v", tag, got, ok)
	}
	if other, otherID := s.Make(); other == sid || otherID == id {
		t.Error("a sid was made twice")
	}
	oldSID, oldID := NewSids([8]byte{9}, old).Make()
	if tag, got, ok := s.Open(oldSID); !ok || got != oldID || tag != [8]byte{9} {
		t.Error("a sid of the second key, by another node, is not accepted")
	}
	if _, _, ok := NewSids([8]byte{9}, old).Open(sid); ok {
		t.Error("a sid of an unknown key is accepted")
	}
	if _, _, ok := NewSids([8]byte{}).Open(NewSids([8]byte{}).seal([16]byte{})); ok {
		t.Error("two Sids without keys have the same")
	}
	for i := range sid {
		for _, c := range "A_\n=" {
			if forged := sid[:i] + string(c) + sid[i+1:]; forged != sid {
				if _, _, ok := s.Open(forged); ok {
					t.Errorf("accepted with byte %d changed to %q", i, c)
				}
			}
		}
	}
	for _, forged := range []string{"", sid[:53], sid + "A", sid + "\n", strings.Repeat("\n", 54), sid + "=="} {
		if _, _, ok := s.Open(forged); ok {
			t.Errorf("accepted %q", forged)
		}
	}
}

func TestSIDOfAnotherNodeIsUnknown(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		key := []byte(strings.Repeat("k", 32))
		g := newRig(t, func(c *Config, _ *http.Server) { c.Sids = NewSids([8]byte{1}, key) })
		c := g.begin(eio.V4, "")
		foreign := NewSids([8]byte{2}, key).seal(c.p.id)
		g.do(t.Context(), "GET", "EIO=4&transport=polling&sid="+foreign, nil).wantCode(t, UnknownSID)
		c.wantWhole()
	})
}

func TestAThousandSessionsLeaveNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		var all []*session
		var held []<-chan answer
		for i := range 1000 {
			c := g.begin(eio.Revision(3+i%2), "")
			all = append(all, c)
			if i%10 == 0 {
				held = append(held, c.hold())
			}
		}
		g.wantLen(1000)
		for i, c := range all {
			if i%3 == 0 {
				c.shut()
			} else {
				c.nc.Close()
			}
		}
		for _, done := range held {
			if a := <-done; a.err != nil || a.StatusCode != 200 {
				t.Errorf("a held GET got %+v", a)
			}
		}
		synctest.Wait()
		for i, c := range all {
			if i%3 == 0 && i%10 != 0 {
				c.get()
			}
		}
		g.wantLen(0)
		// That no goroutine is left the bubble sees to.
	})
}

func TestSessionsThatNeverBeganEndWell(t *testing.T) {
	g := New(Config{})
	for _, a := range []Ask{{Revision: eio.V3}, {Revision: eio.V4, WebSocket: true}} {
		p := g.NewSession(a)
		p.Wake()
		p.Wake()
		p.End()
		p.Goodbye()
		p.End()
		w := httptest.NewRecorder()
		p.Begin(w, httptest.NewRequest("GET", "/", nil), nil, nil)
		if w.Code != http.StatusServiceUnavailable || g.Len() != 0 {
			t.Errorf("a session that had ended began: %d, Len %d", w.Code, g.Len())
		}
	}
}

func TestSessionIsSmall(t *testing.T) {
	if got := unsafe.Sizeof(Session{}); got > 112 {
		t.Errorf("a Session takes %d bytes", got)
	}
	t.Logf("a Session takes %d bytes", unsafe.Sizeof(Session{}))
}

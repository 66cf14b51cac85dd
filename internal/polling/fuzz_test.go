package polling

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/netio"
)

func FuzzRequest(f *testing.F) {
	for _, query := range []string{
		"EIO=4&transport=polling", "EIO=3&transport=polling&b64=1", "EIO=3&transport=websocket",
		"EIO=4&transport=polling&sid=SID", "EIO=3&transport=polling&sid=SID", "transport=websocket&sid=SID", "sid=%zz&&=",
	} {
		for _, method := range []string{"GET", "POST", "OPTIONS", "BREW"} {
			f.Add(method, query, "https://a.example", "text/plain", "websocket", []byte("4hello"))
			f.Add(method, query, "", "application/octet-stream", "", []byte("\x01\x02\xff\x04x"))
			f.Add(method, query, "null", "", "", []byte("5:4hello1:1"))
		}
	}
	g := &rig{hosts: map[string]*host{}, refused: map[Why]int{}, limit: 1000}
	g.s = New(Config{Open: g.open, Origin: func(*http.Request) (bool, bool) { return true, true }, Timeout: time.Second})
	g.d = netio.New(netio.Config{})
	f.Cleanup(g.d.Close)
	f.Fuzz(func(t *testing.T, method, query, origin, kind, upgrade string, body []byte) {
		for _, rev := range []eio.Revision{eio.V3, eio.V4} {
			g.t = t
			w := httptest.NewRecorder()
			g.s.ServeHTTP(w, httptest.NewRequest("GET", "/?transport=polling&EIO="+string('0'+rune(rev)), nil))
			_, sid, _ := strings.Cut(w.Body.String(), `"sid":"`)
			sid, _, _ = strings.Cut(sid, `"`)
			h := g.hosts[sid]
			if h == nil {
				t.Fatalf("no session in %q", w.Body)
			}
			h.send("x") // so that no GET is held
			r := httptest.NewRequest("GET", "/", strings.NewReader(string(body)))
			if method == "GET" {
				r = httptest.NewRequest("GET", "/", nil)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			r = r.WithContext(ctx)
			r.Method = method
			r.URL.RawQuery = strings.ReplaceAll(query, "SID", sid)
			r.Header = http.Header{"Content-Type": {kind}}
			for name, value := range map[string]string{"Origin": origin, "Upgrade": upgrade, "Access-Control-Request-Headers": kind} {
				if value != "" {
					r.Header.Set(name, value)
				}
			}
			if upgrade != "" {
				r.Header.Set("Connection", "Upgrade")
			}
			w = httptest.NewRecorder()
			g.s.ServeHTTP(w, r)
			if ctx.Err() != nil {
				t.Error("it was held")
			}
			cancel()
			if w.Code >= 500 && w.Body.String() != "not here" {
				t.Errorf("%s %q: %d %q", method, query, w.Code, w.Body)
			}
			if strings.Contains(w.Body.String(), sid) {
				t.Errorf("the sid is in the answer %q", w.Body)
			}
			for sid, h := range g.hosts {
				h.nc.Close()
				h.p.End()
				delete(g.hosts, sid)
			}
		}
		if n := g.s.Len(); n > 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

package polling

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/embedpush/push/internal/eio"
)

// shop lets in its own pages, with credentials, and pages from files without.
func shop(c *Config, _ *http.Server) {
	c.Origin = func(r *http.Request) (bool, bool) {
		o := r.Header.Get("Origin")
		return o == "https://shop.example" || o == "null", o == "https://shop.example"
	}
}

func wantCORS(t *testing.T, a answer, origin, credentials string) {
	t.Helper()
	if a.err != nil {
		t.Fatal(a.err)
	}
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin":      origin,
		"Access-Control-Allow-Credentials": credentials,
	} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if !strings.Contains(strings.Join(a.Header.Values("Vary"), ","), "Origin") {
		t.Errorf("Vary is %q", a.Header.Values("Vary"))
	}
}

func TestAllowedOriginIsEchoedOnEveryAnswer(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, shop)
		c := g.begin(rev, "")
		for origin, credentials := range map[string]string{"https://shop.example": "true", "null": ""} {
			wantCORS(t, g.do(t.Context(), "GET", strings.Split(c.query, "&sid=")[0], nil, "Origin", origin), origin, credentials)
			c.send("x")
			wantCORS(t, g.do(t.Context(), "GET", c.query, nil, "Origin", origin), origin, credentials)
			wantCORS(t, c.post(body(rev, "4x"), "Origin", origin), origin, credentials)
			for _, query := range []string{"", "transport=polling", "transport=polling&sid=x"} {
				a := g.do(t.Context(), "GET", query, nil, "Origin", origin)
				wantCORS(t, a, origin, credentials)
				if a.StatusCode != 400 {
					t.Errorf("%q: %d, want 400", query, a.StatusCode)
				}
			}
		}
	})
}

func TestOtherOriginsAreForbiddenWithoutAnyCORSHeader(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, shop)
		c := g.begin(rev, "")
		n := 0
		for _, method := range []string{"GET", "POST", "OPTIONS", "PUT"} {
			for _, query := range []string{"", "EIO=4&transport=polling", "transport=polling&sid=x", c.query} {
				a := g.do(t.Context(), method, query, nil, "Origin", "https://evil.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "x")
				a.wantCode(t, Forbidden)
				wantCORS(t, a, "", "")
				for name := range a.Header {
					if strings.HasPrefix(name, "Access-Control-") {
						t.Errorf("%s %q was answered with %s", method, query, name)
					}
				}
				n++
			}
		}
		g.wantRefused(WhyOrigin, n)
		g.wantLen(1)
		c.wantWhole()
	})
}

func TestNoRuleLetsNoPageIn(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRig(t, func(c *Config, _ *http.Server) { c.Origin = nil })
		g.do(t.Context(), "GET", "EIO=4&transport=polling", nil, "Origin", "null").wantCode(t, Forbidden)
		g.begin(eio.V4, "")
	})
}

func TestOriginThatCannotBeSentBackIsABadRequest(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		for _, headers := range [][]string{
			{"Origin", "https://" + strings.Repeat("a", maxEcho)},
			{"Origin", "https://a.example", "Origin", "https://b.example"},
		} {
			a := g.do(t.Context(), "GET", "EIO=4&transport=polling", nil, headers...)
			a.wantCode(t, BadRequest)
			if a.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Error("it was sent back")
			}
			g.do(t.Context(), "OPTIONS", "EIO=4&transport=polling", nil, headers...).wantCode(t, BadRequest)
			g.do(t.Context(), "GET", "EIO=4&transport=x", nil, headers...).wantCode(t, UnknownTransport)
		}
		for _, illegal := range []string{"a\nb", "a\x00", "a\x7f"} {
			if legalOrigin(&http.Request{Header: http.Header{"Origin": {illegal}}}) {
				t.Errorf("%q is legal", illegal)
			}
		}
	})
}

func TestPreflightIsAnsweredBeforeTheQueryIsLookedAt(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		g := newRig(t, shop)
		for _, query := range []string{"", "transport=x&sid=x", "EIO=3&transport=polling&sid=x", strings.Repeat("x", maxQuery+1)} {
			a := g.do(t.Context(), "OPTIONS", query, nil, "Origin", "https://shop.example",
				"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type,x-token")
			a.want(t, 204, "")
			wantCORS(t, a, "https://shop.example", "true")
			if got := a.Header.Get("Access-Control-Allow-Methods"); got != "GET,HEAD,PUT,PATCH,POST,DELETE" {
				t.Errorf("methods: %q", got)
			}
			if got := a.Header.Get("Access-Control-Allow-Headers"); got != "content-type,x-token" {
				t.Errorf("headers: %q", got)
			}
		}
		a := g.do(t.Context(), "OPTIONS", "", nil, "Origin", "null", "Access-Control-Request-Headers", strings.Repeat("x", maxEcho+1))
		a.want(t, 204, "")
		if a.Header.Get("Access-Control-Allow-Headers") != "" {
			t.Error("headers of any length are sent back")
		}
	})
}

func TestRequestThatAPageHasItsBrowserMakeUnseenIsForbidden(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g := newRig(t, nil)
		open := fmt.Sprintf("EIO=%d&transport=polling", rev)
		for site, want := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200, "": 200} {
			a := g.do(t.Context(), "GET", open, nil, "Sec-Fetch-Site", site)
			if a.StatusCode != want {
				t.Errorf("Sec-Fetch-Site %q without an Origin: %d, want %d", site, a.StatusCode, want)
			}
			a = g.do(t.Context(), "GET", open, nil, "Sec-Fetch-Site", site, "Origin", "https://shop.example")
			if a.StatusCode != 200 {
				t.Errorf("Sec-Fetch-Site %q with an Origin that is allowed: %d, want 200", site, a.StatusCode)
			}
		}
	})
}

package test

import (
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/embedpush/push"
)

// TestWhatRemoteAddrTellsIsCountedOut in whatever form an address has; and it
// is what Login says.
func TestWhatRemoteAddrTellsIsCountedOut(t *testing.T) {
	for told, want := range map[string]string{
		"203.0.113.7":        "203.0.113.7",
		"::ffff:203.0.113.7": "203.0.113.7",
		"2001:db8::7":        "2001:db8::7",
		"fe80::7%eth0":       "fe80::7",
		"0.0.0.0":            clientIP, // none: the socket's
		"::":                 clientIP,
	} {
		t.Run(told, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, push.Config{
					Authenticate: push.TrustClaims,
					RemoteAddr:   func(*http.Request) netip.Addr { return netip.MustParseAddr(told) },
					Limits:       push.Limits{MaxConnsPerAddr: 1},
				})
				for range 3 {
					p := w.connect("alice")
					for c := range w.Conns() {
						if got := c.Login().Remote.Addr().String(); got != want {
							t.Errorf("Login says %s, want %s", got, want)
						}
					}
					if _, resp, err := w.tryConnect("bob"); err == nil || resp.StatusCode != http.StatusTooManyRequests {
						t.Errorf("a second one of the address: %v, want 429", err)
					}
					p.vanishes()
					synctest.Wait()
				}
			})
		})
	}
}

package origin

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func request(host string, origins ...string) *http.Request {
	r := httptest.NewRequest("GET", "http://"+host+"/ws", nil)
	r.Host = host
	for _, o := range origins {
		r.Header.Add("Origin", o)
	}
	return r
}

func TestOnlyListedPagesAreLetIn(t *testing.T) {
	list := []string{"https://shop.example", "*.example.com", "http://localhost:8080", "https://[::1]:9", "HTTPS://Upper.example:443"}
	for _, c := range []struct {
		name    string
		entries []string
		origin  string
		want    bool
	}{
		{"same host", nil, "http://here.example:81", true},
		{"same host, other scheme", nil, "https://HERE.example:81", true},
		{"other port", nil, "http://here.example", false},
		{"other host", nil, "http://evil.example:81", false},
		{"null to the same-host rule", nil, "null", false},
		{"garbage", nil, "http://%zz", false},
		{"listed", list, "https://shop.example", true},
		{"listed with its default port", list, "https://shop.example:443", true},
		{"listed in other case", list, "https://SHOP.example", true},
		{"other scheme", list, "http://shop.example", false},
		{"subdomain", list, "http://a.b.example.com:7", true},
		{"the domain itself", list, "http://example.com", false},
		{"a domain that only ends alike", list, "http://evilexample.com", false},
		{"a listed name as a prefix", list, "https://shop.example.evil.com", false},
		{"user info", list, "https://shop.example@evil.com", false},
		{"port", list, "http://localhost:8080", true},
		{"another port", list, "http://localhost:8081", false},
		{"address", list, "https://[::1]:9", true},
		{"listed in upper case", list, "https://upper.example", true},
		{"null unlisted", list, "null", false},
		{"null", []string{"null"}, "null", true},
		{"all", []string{"*"}, "http://any.example", true},
		{"all and null", []string{"*"}, "null", true},
		{"nobody", []string{}, "http://here.example:81", false},
	} {
		rule, err := NewRule(c.entries)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := rule.Allows(request("here.example:81", c.origin)); got != c.want {
			t.Errorf("%s: origin %s: want %v, got %v", c.name, c.origin, c.want, got)
		}
		if !rule.Allows(request("here.example:81")) {
			t.Errorf("%s: a request without an Origin was refused", c.name)
		}
		if rule.Allows(request("here.example:81", "http://here.example:81", "http://evil.example")) {
			t.Errorf("%s: two Origins were let in", c.name)
		}
	}
}

func TestAPageThatOnlyTheStarLetsInIsNotTrusted(t *testing.T) {
	rule, err := NewRule([]string{"*", "https://shop.example"})
	if err != nil {
		t.Fatal(err)
	}
	for page, want := range map[string]bool{"https://shop.example": true, "http://here.example:81": true, "https://evil.example": false, "null": false, "": true} {
		r := request("here.example:81")
		if page != "" {
			r = request("here.example:81", page)
		}
		if !rule.Allows(r) || rule.Trusts(r) != want {
			t.Errorf("%q: want let in, trusted %v", page, want)
		}
	}
}

func TestAnEntryThatCannotMatchIsRefused(t *testing.T) {
	for _, entry := range []string{"", "shop.example", "https://", "https://a/path", "https://a/", "*.", "*.*.com", "https://*.com", "*.a:80", "http://u@h"} {
		if _, err := NewRule([]string{entry}); err == nil {
			t.Errorf("%q was taken", entry)
		}
	}
}

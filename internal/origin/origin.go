// Package origin is the one rule for which pages may connect, over every door.
package origin

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Rule is a list of origins. The nil Rule lets pages of the same host in.
type Rule struct {
	all   bool
	exact map[string]bool // "scheme://host[:port]" in lower case, and "null"
	hosts []string        // "example.com" for "*.example.com"
}

// NewRule reads entries "https://shop.example", "*.example.com" (any
// subdomain, scheme and port), "null" and "*". nil is the rule of the same
// host.
func NewRule(entries []string) (*Rule, error) {
	if entries == nil {
		return nil, nil
	}
	r := &Rule{exact: make(map[string]bool)}
	for _, entry := range entries {
		entry = strings.ToLower(entry)
		switch host, wild := strings.CutPrefix(entry, "*."); {
		case entry == "*":
			r.all = true
		case entry == "null":
			r.exact[entry] = true
		case wild && host != "" && !strings.ContainsAny(host, "*/:"):
			r.hosts = append(r.hosts, "."+host)
		default:
			u, err := url.Parse(entry)
			if err != nil || u.Scheme == "" || u.Host == "" || entry != u.Scheme+"://"+u.Host || strings.Contains(entry, "*") {
				return nil, fmt.Errorf("%q is none of scheme://host[:port], *.domain, null and *", entry)
			}
			r.exact[u.Scheme+"://"+withoutDefaultPort(u)] = true
		}
	}
	return r, nil
}

// Allows reports whether the page that sends the request's Origin may connect.
// A request without an Origin may: for a WebSocket a page's browser always sends
// one (RFC 6455 section 4.1). It is not so for a plain GET.
func (r *Rule) Allows(req *http.Request) bool {
	if len(req.Header["Origin"]) > 1 {
		return false
	}
	return r != nil && r.all || r.Trusts(req)
}

// Trusts reports whether the page may connect as its user, with cookies: it is
// of the same host, or the list says more of it than "*".
func (r *Rule) Trusts(req *http.Request) bool {
	page := strings.ToLower(req.Header.Get("Origin"))
	if page == "" {
		return true
	}
	if r == nil || r.all {
		if _, host, ok := strings.Cut(page, "://"); ok && host != "" && strings.EqualFold(host, req.Host) {
			return true
		}
	}
	if r == nil {
		return false
	}
	if page == "null" {
		return r.exact[page]
	}
	u, err := url.Parse(page)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return false
	}
	if r.exact[u.Scheme+"://"+withoutDefaultPort(u)] {
		return true
	}
	for _, suffix := range r.hosts {
		if name := u.Hostname(); strings.HasSuffix(name, suffix) && len(name) > len(suffix) {
			return true
		}
	}
	return false
}

// withoutDefaultPort is u.Host as a browser writes it in Origin (RFC 6454
// section 6.1).
func withoutDefaultPort(u *url.URL) string {
	if port := u.Port(); u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80" {
		return strings.TrimSuffix(u.Host, ":"+port)
	}
	return u.Host
}

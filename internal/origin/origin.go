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

// All reports whether every page is let in. Credentials must then not be
// offered to pages of other hosts.
func (r *Rule) All() bool { return r != nil && r.all }

// Allows reports whether the page that sends r's Origin may connect. A request
// without an Origin does not come from a page (RFC 6454 section 7.3) and may.
func (r *Rule) Allows(req *http.Request) bool {
	values := req.Header["Origin"]
	if len(values) == 0 || len(values) == 1 && values[0] == "" {
		return true
	}
	if len(values) > 1 {
		return false
	}
	page := strings.ToLower(values[0])
	if r == nil {
		u, err := url.Parse(page)
		return err == nil && u.Host != "" && strings.EqualFold(u.Host, req.Host)
	}
	if r.all || page == "null" {
		return r.all || r.exact[page]
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

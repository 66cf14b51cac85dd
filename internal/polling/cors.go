package polling

import "net/http"

// legalOrigin reports whether the Origin, if there is one, can be judged and
// sent back. A request with several is nobody's page.
func legalOrigin(r *http.Request) bool {
	values := r.Header["Origin"]
	return len(values) == 0 || len(values) == 1 && legalValue(values[0])
}

// legalValue reports whether a header of a request can be sent back.
func legalValue(v string) bool {
	if len(v) > maxEcho {
		return false
	}
	for i := range len(v) {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// admit reports whether the page that sends the request may connect, and tells
// its browser. The origin is named even if all are allowed: a client that sends
// credentials, as the ones of 2.x do, would not take "*".
func (s *Server) admit(w http.ResponseWriter, r *http.Request) bool {
	h := w.Header()
	h.Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if origin == "" {
		// A page can have its browser make a GET without an Origin, and with
		// cookies: an image's, a navigation's. New browsers say so (Fetch
		// Metadata); one that may speak with us does not ask in this way.
		site := r.Header.Get("Sec-Fetch-Site")
		return site != "cross-site" && site != "same-site"
	}
	allowed, credentials := s.c.Origin(r)
	if !allowed {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	if credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	return true
}

// preflight answers OPTIONS: a browser asks before it sends a POST in bytes, or
// headers of the page's.
func preflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Add("Vary", "Access-Control-Request-Headers")
	h.Set("Access-Control-Allow-Methods", "GET,HEAD,PUT,PATCH,POST,DELETE")
	if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" && legalValue(asked) {
		h.Set("Access-Control-Allow-Headers", asked)
	}
	h.Set("Access-Control-Max-Age", "600")
	unread(w, r)
	w.WriteHeader(http.StatusNoContent)
}

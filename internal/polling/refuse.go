package polling

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
)

// The codes of refusals, the protocol's own.
const (
	UnknownTransport = 0
	UnknownSID       = 1
	BadMethod        = 2
	BadRequest       = 3
	Forbidden        = 4
	BadVersion       = 5
)

// messages are npm's, to the letter: clients compare them.
var messages = [...]string{
	UnknownTransport: "Transport unknown",
	UnknownSID:       "Session ID unknown",
	BadMethod:        "Bad handshake method",
	BadRequest:       "Bad request",
	Forbidden:        "Forbidden",
	BadVersion:       "Unsupported protocol version",
}

// Refuse answers a request that is refused: with {"code":…,"message":…}, or a
// request for a WebSocket with the message alone. The request's body, if there
// is one, is not read.
func Refuse(w http.ResponseWriter, r *http.Request, status, code int, message string) {
	h := w.Header()
	body, kind := []byte(message), "text/plain; charset=utf-8"
	if isUpgrade(r) {
		h.Set("Connection", "close")
	} else {
		kind = "application/json"
		body, _ = json.Marshal(struct { // of an int and a string: there is no error
			Code    int    `json:"code"`
			Message string `json:"message"`
		}{code, message})
	}
	h.Set("Content-Type", kind)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	unread(w, r)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// unread ends the connection after the answer if the request has a body:
// otherwise net/http reads it, before it answers.
func unread(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}

// isUpgrade reports whether the request is for a WebSocket. Other upgrades
// (h2c) are offers that may be ignored (RFC 9110 section 7.8).
func isUpgrade(r *http.Request) bool {
	for _, v := range r.Header["Upgrade"] {
		for token := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(token), "websocket") {
				return true
			}
		}
	}
	return false
}

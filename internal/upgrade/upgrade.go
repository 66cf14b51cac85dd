// Package upgrade turns an HTTP request into a WebSocket's net.Conn, or says
// why not. gorilla/websocket answers the handshake; nothing else of it is
// kept, because its buffers are what an idle connection would cost most.
package upgrade

import (
	"bufio"
	"encoding/base64"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/websocket"
)

// Refusal is an HTTP answer instead of an upgrade.
type Refusal struct {
	Status int // 0: nobody is left to answer
	Text   string
	Header [2]string // one header, name and value; empty: none
}

// Write answers with the refusal.
func (r *Refusal) Write(w http.ResponseWriter) {
	if r.Status == 0 {
		return
	}
	if r.Header[0] != "" {
		w.Header().Set(r.Header[0], r.Header[1])
	}
	http.Error(w, r.Text, r.Status)
}

// Check says what is wrong with a request that should be an upgrade (RFC 6455
// section 4.2.1), nil if nothing is.
func Check(r *http.Request) *Refusal {
	switch {
	case r.ProtoMajor >= 2:
		return &Refusal{Status: http.StatusUpgradeRequired, Text: "a WebSocket needs HTTP/1.1, and this request came over " + r.Proto + ": have the proxy or the TLS listener speak HTTP/1.1 on this path"}
	case !websocket.IsWebSocketUpgrade(r):
		return &Refusal{http.StatusUpgradeRequired, "this is a WebSocket", [2]string{"Upgrade", "websocket"}}
	case r.Method != http.MethodGet:
		return &Refusal{http.StatusMethodNotAllowed, "a WebSocket begins with GET", [2]string{"Allow", "GET"}}
	case r.Header.Get("Sec-Websocket-Version") != "13":
		return &Refusal{http.StatusUpgradeRequired, "WebSocket version 13 is spoken here", [2]string{"Sec-WebSocket-Version", "13"}}
	}
	key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-Websocket-Key"))
	if err != nil || len(key) != 16 {
		return &Refusal{Status: http.StatusBadRequest, Text: "bad Sec-WebSocket-Key"}
	}
	return nil
}

// Negotiate is the index of the first subprotocol the client offers that is
// one of ours, or -1.
func Negotiate(r *http.Request, ours []string) int {
	for _, offered := range websocket.Subprotocols(r) {
		if i := slices.Index(ours, offered); i >= 0 {
			return i
		}
	}
	return -1
}

// Do answers a checked request and takes its socket over. protocol is named in
// the answer if the client offered it. A Refusal with status 500 means that
// the socket cannot be taken over.
func Do(w http.ResponseWriter, r *http.Request, protocol string) (net.Conn, *Refusal) {
	var refused *Refusal
	u := websocket.Upgrader{
		HandshakeTimeout: 10 * time.Second,
		ReadBufferSize:   256, // never read through: the smallest will do
		Subprotocols:     []string{protocol},
		CheckOrigin:      func(*http.Request) bool { return true }, // checked before
		Error: func(w http.ResponseWriter, r *http.Request, status int, reason error) {
			refused = &Refusal{Status: status, Text: reason.Error()}
			if status == http.StatusInternalServerError {
				refused.Text = "this connection cannot be taken over (" + reason.Error() + "): usually a middleware wraps the http.ResponseWriter and has no Unwrap method"
			}
		},
	}
	ws, err := u.Upgrade(&hijacker{w}, r, nil)
	if err != nil {
		if refused == nil { // taken over, and then it failed: bytes behind the request, a dead socket
			refused = &Refusal{Text: err.Error()}
		}
		return nil, refused
	}
	return ws.NetConn(), nil
}

// hijacker finds the Hijacker behind middlewares that only Unwrap; gorilla
// looks at the outermost ResponseWriter alone.
type hijacker struct{ http.ResponseWriter }

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(h.ResponseWriter).Hijack()
}

package relay

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/embedpush/push/internal/polling"
	"github.com/embedpush/push/internal/quietlog"
)

// remote is the header in which the entry names the client's address. A
// client's own is not passed on, and nobody else reads it.
const remote = "Push-Remote"

const maxRemote = 128 // bytes of an address as text

// relayed is a context's key, for the *polling.Group of the connection.
type relayed struct{}

// IsRelayed reports whether the request with this context came from another
// node, through a Relay's Serve.
func IsRelayed(ctx context.Context) bool { return ctx.Value(relayed{}) != nil }

// newServer makes the holder's half.
func (r *Relay) newServer() *http.Server {
	var both http.Protocols
	both.SetHTTP1(true)            // the upgrades
	both.SetUnencryptedHTTP2(true) // the polls; the connections are encrypted, but net/http does not see it
	return &http.Server{
		Handler:           http.HandlerFunc(r.serve),
		Protocols:         &both,
		ReadHeaderTimeout: r.c.Timeout,
		IdleTimeout:       4 * idleFor, // the entry closes first: it knows whether it is about to ask
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(complaints{r, quietlog.Writer{Log: r.c.Log, Msg: "the server of relayed requests complains"}}, "", 0),
		// It is not of r.ctx: a handler whose request is cancelled answers nothing,
		// which net/http makes an empty 200 of as long as the connection lives.
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			g := new(polling.Group)
			return context.WithValue(g.Context(ctx), relayed{}, g)
		},
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams + spare,
			MaxReceiveBufferPerStream:     bodyRoom,
			MaxReceiveBufferPerConnection: bodiesRoom,
			SendPingTimeout:               r.c.Timeout,
			PingTimeout:                   r.c.Timeout,
			WriteByteTimeout:              r.c.Timeout,
		},
	}
}

// Serve answers what other nodes relay, over connections that they dialled and
// l has let in. It closes l at its end. nil: the Relay was closed.
func (r *Relay) Serve(l net.Listener) error {
	if err := r.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (r *Relay) serve(w http.ResponseWriter, req *http.Request) {
	r.serving.Add()
	defer r.serving.Done()
	from := req.Header[remote]
	if req.Method == methodRelease && len(from) == 0 {
		r.stats.releases.Add(1)
		req.Context().Value(relayed{}).(*polling.Group).Release()
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if len(from) != 1 || len(from[0]) > maxRemote || r.c.Handler == nil {
		r.stats.malformed.Add(1)
		http.Error(w, "not relayed as it should be", http.StatusBadRequest)
		return
	}
	r.stats.served.Add(1)
	delete(req.Header, remote)
	req.RemoteAddr = from[0]
	r.c.Handler.ServeHTTP(w, req)
}

// complaints is under the log of the http.Server.
type complaints struct {
	r  *Relay
	to quietlog.Writer
}

func (c complaints) Write(b []byte) (int, error) {
	c.r.stats.complaints.Add(1)
	if c.to.Log != nil {
		return c.to.Write(b)
	}
	return len(b), nil
}

const idleFor = 2 * time.Minute // how long the entry keeps a connection that nobody uses

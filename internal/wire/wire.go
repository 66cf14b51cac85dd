// Package wire is the seam between the engine and its protocols: what a
// protocol tells the engine (an Event) and what the engine asks of a protocol
// (a Session). A Session is sans-IO: bytes in, events and bytes out; it has no
// goroutine, no socket and no clock, so the same code runs under a goroutine,
// a poller, a fuzzer and virtual time.
package wire

import (
	"bytes"
	"fmt"
)

// Session is one protocol's state for one connection. Its methods are called
// by one goroutine at a time, except the ones that only encode (Answer,
// LoggedIn, Ping, Close), which touch no changing state and may be called by
// any goroutine at any time.
type Session interface {
	// Feed reads from in, in any split, until one event is complete or in is
	// used up, and returns how many bytes it used. ev.Kind is None when it
	// needs more bytes; then n is len(in). Feed may modify in, and what ev
	// points to is valid only until the next call. An error is a *Error: the
	// connection is to be ended with it and Feed is not called again.
	Feed(in []byte, ev *Event) (n int, err error)
	// Partial reports whether Feed holds the beginning of an event, so that
	// its owner can bound how long the rest may take.
	Partial() bool

	// Answer appends the answer to a Message event of this Space that carried
	// an id: the value v, or, when refusal is not empty, that text as an error.
	Answer(dst []byte, space string, id uint64, v Value, refusal string) []byte
	// LoggedIn appends the answer to a Login event that was let in; id is the
	// event's. left: the connection was another user's before.
	LoggedIn(dst []byte, id uint64, user, conn string, left bool) []byte
	// Ping appends the heartbeat that the server sends.
	Ping(dst []byte) []byte
	// Close appends the frames that end a connection with this code.
	Close(dst []byte, code Code, text string) []byte
}

// Kind says what an Event is.
type Kind uint8

const (
	None    Kind = iota // nothing yet: more bytes are needed
	Message             // the client's program sent Event and Data; with HasID it wants an answer
	Ack                 // the client answered the push ID; Data is the answer's value, if any
	Login               // the client claims to be Login.User; ID is for the answer
	Logout              // the client gives its user up; ID is for the answer
	Ping                // a heartbeat from the client; Reply, if not empty, is to be sent back
	Pong                // the client's answer to a heartbeat that it has to answer
	Open                // the client asks for a session: its protocol's Open has to be called before anything more is fed; Heavy: that takes a millisecond of CPU
	Turn                // the client's first message, Data.JSON, is of another protocol, mpush in JSON
	Request             // the client wants an HTTP request made, HTTP; nil: it is malformed. ID is for the answer
	Reply               // the protocol has answered by itself: Reply is to be sent
	Closed              // the client said goodbye with Code and Text; Reply is to be sent back
	Ignored             // well formed, but means nothing here; to be counted
)

// Event is what a protocol tells the engine. Byte slices in it are valid only
// until the next Feed.
type Event struct {
	Kind  Kind
	HasID bool   // Message: the client wants an answer with ID
	Heavy bool   // Open
	Code  Code   // Closed: the client's code, 0 if it gave none
	ID    uint64 // Message, Ack, Login, Logout and Request
	Space []byte // Message, Ack, Login and Logout: the Socket.IO namespace; empty: "/", and in other protocols
	Name  []byte // Message: the event's name
	Data  Value  // Message, Ack and Turn
	Reply []byte // Ping, Closed and Reply: for the engine to keep, not to change
	Text  []byte // Closed
	Login *LoginClaim
	HTTP  *HTTPRequest
}

// HTTPRequest is what a client wants to be asked for it. It is its owner's to
// keep.
type HTTPRequest struct {
	Method  uint8
	URI     string
	Headers string // lines name:value
	Body    []byte
}

// HTTPResponse is the answer. Own: no service made it, the proxy did.
type HTTPResponse struct {
	Status          int
	Reason, Headers string
	Body            []byte
	Own             bool
}

// Value is a message's value: JSON, or opaque bytes, or several arguments of
// which each is either. The zero Value is no value, which reads as JSON null.
type Value struct {
	JSON  []byte  // valid JSON; nil when Bytes is set or there is no value
	Bytes []byte  // opaque bytes when not nil
	Args  []Value // not nil: several arguments, or none; then JSON, if set, is the array of them, bytes as base64
}

// Clone is a copy that shares no memory with v.
func (v Value) Clone() Value {
	c := Value{JSON: bytes.Clone(v.JSON), Bytes: bytes.Clone(v.Bytes)}
	if v.Args != nil {
		c.Args = make([]Value, len(v.Args))
		for i, arg := range v.Args {
			c.Args[i] = arg.Clone()
		}
	}
	return c
}

// Size is the number of bytes in v.
func (v Value) Size() int {
	n := len(v.JSON) + len(v.Bytes)
	for _, arg := range v.Args {
		n += arg.Size()
	}
	return n
}

// LoginClaim is what a client says of itself when it logs in late. Its strings
// and bytes are its own.
type LoginClaim struct {
	User, Token, Device, OS, Version string
	Tags                             []string
	Auth                             []byte // Socket.IO's CONNECT: its JSON object; nil: none
	Query                            string // Socket.IO's CONNECT: the query behind the namespace, without "?"
}

// Code says why a connection is ended by us. The numbers are WebSocket close
// codes (RFC 6455 section 7.4); other protocols translate them.
type Code uint16

const (
	Normal       Code = 1000 // the client asked for it
	GoingAway    Code = 1001 // the node shuts down: come back elsewhere
	Protocol     Code = 1002 // malformed frames
	Unsupported  Code = 1003 // a kind of frame this dialect does not have
	NoStatus     Code = 1005 // never on the wire: a close frame without a code
	BadData      Code = 1007 // frames were sound, their content was not
	Policy       Code = 1008 // well formed, but not allowed
	TooBig       Code = 1009 // over the limit for one message
	Internal     Code = 1011 // a hook of the application panicked
	TryLater     Code = 1013 // overload or a failing back end: come back later
	Unauthorized Code = 4401 // not let in, or the login expired
	TooSlow      Code = 4408 // the queue was full: come back
	Replaced     Code = 4409 // a newer login of the same user and class
	Kicked       Code = 4410 // the application ended it
)

// Error ends a connection: the peer broke the protocol or a limit of it.
type Error struct {
	Code  Code
	Text  string // for the peer and the log; holds nothing the peer sent
	Reply []byte // to be sent before the frames of Close; nil: nothing
}

func (e *Error) Error() string { return fmt.Sprintf("%s (%d)", e.Text, e.Code) }

// Package push is a message-push engine that lives inside a Go program. One
// [Engine] takes browsers (WebSocket, Socket.IO) on an http.Handler and mpush
// devices on a net.Listener, knows which connections belong to which user and
// which room, and tells the caller of a push what became of it on every
// device.
//
// Nothing is stored and nothing else has to run: several nodes find each other
// by gossip ([Cluster]), and a push reaches who is connected now to any of
// them, at most once, and the [Receipt] says whether it did. What is in memory
// is bounded (see [Limits]), and every refusal has an error or a close code of
// its own and a counter in [Stats].
//
//	engine, err := push.New(push.Config{
//		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
//			return sessions.User(ctx, l.Cookie("session"))
//		},
//	})
//	go engine.Serve(listener)          // mpush devices
//	http.Handle("/ws", engine)         // WebSocket
//	http.Handle("/socket.io/", engine) // Socket.IO
//	http.Handle("/push.js", engine)    // the page's client
//	...
//	receipt, err := engine.PushToUser(ctx, "alice", push.Message{Event: "order", Data: order, Ack: push.AutoAck})
package push

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push/internal/accept"
	"github.com/embedpush/push/internal/deadline"
	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/mpush"
	"github.com/embedpush/push/internal/netio"
	"github.com/embedpush/push/internal/nodemsg"
	"github.com/embedpush/push/internal/origin"
	"github.com/embedpush/push/internal/polling"
	"github.com/embedpush/push/internal/proxy"
	"github.com/embedpush/push/internal/quietlog"
	"github.com/embedpush/push/internal/rate"
	"github.com/embedpush/push/internal/secret"
	"github.com/embedpush/push/internal/tally"
	"github.com/embedpush/push/internal/wire"
)

// Config is what an [Engine] is made of. New copies it. The zero value is one
// node on which nobody may name a user: every page may connect, and gets rooms
// and broadcasts.
//
// Hooks: Authenticate, OnConnect, OnMessage, the handlers of [On] and
// OnDisconnect of one connection (of a Socket.IO client: of all its namespaces)
// run one after another, never overlapping, on a goroutine of that connection
// (Authenticate of an HTTP upgrade, and of a Socket.IO client 2.x that opens: on
// the handler's goroutine). Hooks of different connections overlap. A hook that
// blocks stalls its own connection's messages and nothing else; one that
// panics ends its own connection. A hook may call anything of the Engine and
// of any Conn, but Shutdown waits for hooks, also for the one that calls it.
// Byte slices a hook gets are its own.
type Config struct {
	// Authenticate is the one gate: it is called for every WebSocket upgrade,
	// whether it claims a user or not (cookies are claims), and for every
	// later login on a connection (Login.Conn is set). It returns whose
	// connection this is:
	//
	//   - a user and nil: in, as that user;
	//   - "" and nil: in, without a user, if the login named none; otherwise
	//     refused;
	//   - ErrUnauthorized or Refuse(text): refused (401; with an Origin: close
	//     code 4401, since a page cannot see an HTTP status);
	//   - any other error: not now (503, or close code 1013), so that a
	//     failing database logs nobody out.
	//
	// For an mpush device it is called for every BIND, never for a connection,
	// a handshake or a fast connect. A refusal is an ERROR after
	// MPush.RefuseDelay ("bind failed", or the text of Refuse); any other
	// error is not answered, and the device asks again by itself.
	//
	// For a Socket.IO client it is called for every CONNECT, to whichever
	// namespace; for a client 2.x also when it opens, which is its CONNECT to
	// "/". A refusal is a connect_error (2.x: error) with the text; any other
	// error closes the transport (2.x when it opens: 503), and the client comes
	// back by itself.
	//
	// It may change the login's Tags, Rooms, Data, DeviceID and Expires; what
	// it leaves there counts. ctx ends after Limits.AuthTimeout, and an answer
	// after that counts as "not now". nil: a claim of a user is refused,
	// everybody else is let in without a user.
	Authenticate func(ctx context.Context, l *Login) (userID string, err error)

	// DeviceClass sorts a user's connections into classes of which the newest
	// stays and the others are replaced: a page is closed (4409), an mpush
	// device gets KICK and is in no place (see MPush.CloseKicked). "" is the class
	// of which there may be many. At most 16 bytes of UTF-8: another one fails the
	// login like any other error. It runs right after Authenticate on the same
	// goroutine. nil: pages have class "", and mpush devices are "mobile", "pc",
	// "web" or "unknown" by their OS, as mpush sorts them.
	DeviceClass func(l *Login) string

	// OnConnect runs once for each Conn, when it is already in its user's
	// place and its rooms; an mpush device becomes one with its first BIND. What it pushes to c (c.Push, or the Engine's
	// methods with ctx) reaches c before anything pushed meanwhile by others,
	// which waits until OnConnect returns: one that takes long is a queue that
	// fills. What was pushed just before may come behind a snapshot that has
	// it already: give both a version. ctx ends with the connection. nil:
	// nothing.
	OnConnect func(ctx context.Context, c *Conn)

	// OnMessage gets what no handler of [On] took. What it returns answers a
	// client that wants an answer; see [On]. ctx ends with the connection.
	// nil: such messages are answered with an error and counted.
	OnMessage func(ctx context.Context, c *Conn, m *Received) (reply any, err error)

	// OnDisconnect runs exactly once for each Conn that was there for
	// OnConnect, after every other hook of it. nil: nothing.
	OnDisconnect func(c *Conn, why Reason)

	// OnPresence tells that a user's first connection came or the last one
	// went, on whichever node: every node tells. One goroutine calls it, one
	// call at a time, with the latest state of each user: changes that cancel
	// out before the hook got to them are not told, nor users who were online
	// before this node joined its cluster. nil: nothing.
	OnPresence func(p Presence)

	// Origins are the pages that may connect: "https://shop.example",
	// "*.example.com" (any scheme and port), "null" (pages from files), "*"
	// (all; one that is let in by this alone comes without its Cookie and
	// Authorization headers, so that no page can act for who visits it). A
	// request without an Origin is not from a page and is not asked. nil: only
	// pages of the same host. An empty list: none.
	Origins []string

	// CheckOrigin decides instead of Origins, and whom it lets in comes with
	// all headers. It runs on the handler's goroutine. nil: Origins decides.
	CheckOrigin func(r *http.Request) bool

	// RemoteAddr tells the client's address behind a proxy, for Login.Remote
	// and Limits.MaxConnsPerAddr. It runs on the handler's goroutine. nil, or
	// an invalid address: the peer's.
	RemoteAddr func(r *http.Request) netip.Addr

	// Heartbeat is how often a WebSocket is pinged; one that is silent for
	// Heartbeat + 20 s is closed. 0: 25 s.
	Heartbeat time.Duration

	// Drain is the time over which Shutdown spreads its closes, so that
	// clients do not come back all at once. 0: at once.
	Drain time.Duration

	// Limits bound what the engine holds.
	Limits Limits

	// MPush is about mpush devices, over Serve and over WebSockets.
	MPush MPush

	// SocketIO is about the clients of Socket.IO.
	SocketIO SocketIO

	// Cluster joins this node to others. nil: one node.
	Cluster *Cluster

	// Logger gets what goes wrong, at most ten lines a second of each kind; a
	// healthy engine logs below Info only. Tokens, queries, cookies and bodies
	// are never logged. Its handler must not call the engine, which may wait
	// for it; its Enabled must not wait for anything. nil: slog.Default().
	Logger *slog.Logger
}

// MPush is how an engine serves the clients of mpush. The zero value serves
// them without encryption.
type MPush struct {
	// PrivateKey is the RSA key of the handshake: PEM or base64 DER, PKCS #8 or
	// PKCS #1, 1 024 to 4 096 bits. The clients hold its public half. The stock
	// key of mpush is taken too, with a warning: everybody knows it. With a
	// key, a handshake has to be encrypted, unless its transport is TLS or a
	// WebSocket. nil: only plain handshakes, and a warning if devices come over
	// neither TLS nor loopback.
	PrivateKey []byte

	// AllowPlain takes plain handshakes over bare TCP in spite of PrivateKey.
	AllowPlain bool

	// Content makes a device's content of a push, in which Event is not
	// carried. m has Event, Ack, and Data as []byte, or as json.RawMessage if
	// it was not opaque; both are its own. It runs on the goroutine of the
	// push, calls may overlap. An error or nothing: the push is Unsupported on
	// mpush devices; over Limits.MaxPush it is TooLarge. nil: the content is
	// Data.
	Content func(m Message) ([]byte, error)

	// Window is how many pushes a device may have unanswered that want an
	// answer; the others wait, and what is pushed later behind them. The
	// clients in the field lose what comes faster. 0: 50; -1: no limit; at
	// most 32 767.
	Window int

	// CompressOver is the size in bytes over which a push's content, or an
	// answer of Proxy, is compressed. 0: 10 240; -1: never.
	CompressOver int

	// CloseKicked closes the connection of a device 3 s after a newer login
	// of its user and class replaced it. Otherwise it stays open, in no place,
	// because a client whose connection is closed comes back and replaces the
	// newer one in turn.
	CloseKicked bool

	// NoJSON refuses mpush in JSON, which has no encryption of its own.
	NoJSON bool

	// NoResume gives devices no session tokens: each connection begins with
	// an RSA handshake.
	NoResume bool

	// SessionKey is the secret under which session tokens are sealed: at least
	// 32 random bytes. nil: the cluster's secrets, and without a cluster a key
	// that ends with the process, after which every device needs RSA again.
	SessionKey []byte

	// MinHeartbeat and MaxHeartbeat bound what is negotiated; the client's
	// wish counts between them. A device that is silent for three heartbeats
	// and a second is closed. From 10 s to 4 min. 0: 3 min, or the other one if
	// that is on the wrong side of it.
	MinHeartbeat, MaxHeartbeat time.Duration

	// SessionTTL is how long a session token is good for. 0: 24 h.
	SessionTTL time.Duration

	// RefuseDelay is the time from a BIND to the answer that refuses it: the
	// clients in the field come back at once from a quick refusal, or not at
	// all. Below the 3 s after which they ask again. 0: 2 s.
	RefuseDelay time.Duration

	// Advertise is the host:port at which devices reach this node, for Alloc:
	// an IPv4 address or a name. "": it is not told.
	Advertise string

	// Proxy lets bound devices reach HTTP services. nil: none.
	Proxy *Proxy
}

// Proxy is mpush's HTTP proxy: services that a bound device may ask through
// its connection. At most 4 requests of a device and 256 in all run at a time,
// each for at most 10 s, with a response of at most 1 MiB; no redirects, no
// cookies. Addresses that are not public are refused when they are dialled,
// unless an entry maps to them.
type Proxy struct {
	// Allow are the services: "https://api.shop.example", with a port if it is
	// not the scheme's, and with "=10.0.0.7:8080" behind it if that address is
	// to be dialled for it.
	Allow []string
}

// SocketIO is how an engine serves the clients of Socket.IO, 2.x to 4.x, over
// WebSockets and over HTTP polling. The zero value serves them.
type SocketIO struct {
	// MaxPayload is the size in bytes of what a client may send at a time: one
	// message with its attachments, or the body of one POST. Before the client
	// is connected it is 64 KiB, if that is less. Of a message at least 16 KiB
	// have to come in a second, behind Limits.MessageTimeout. A message may have
	// 10 attachments (msgpack: any number) and 256 arguments. 1009; 413, and the
	// session goes on. 0: 1 000 000; -1: no limit, and clients are told 0.
	MaxPayload int

	// ConnectTimeout is the time from a client's opening to its first CONNECT
	// that is let in, to any namespace; then the transport is closed. A client
	// 2.x is connected at once, or refused and then given as long. 0: 45 s; -1:
	// no limit.
	// One that polls and has not asked for anything for 10 s has no longer.
	ConnectTimeout time.Duration

	// PingInterval and PingTimeout are the heartbeat, as the client is told: a
	// client that does not answer a ping for PingTimeout (2.x: that has sent
	// nothing for both together) is closed. 10 ms to a day. 0: 25 s and 20 s.
	PingInterval, PingTimeout time.Duration

	// Namespace decides whether a client may join a namespace other than "/";
	// name is such as "/chat". It runs after Authenticate, on the same
	// goroutine and with the same ctx; calls for different clients overlap. l is
	// what Authenticate left, and changing it changes nothing. It returns nil:
	// the client may; ErrUnauthorized: there is no such namespace for it, which
	// is what the client reads; Refuse: its text is; any other error: not now,
	// the transport is closed. With this hook the request that opened a session
	// stays in memory as long as the session, with its cookies and its
	// Authorization: about 1 KB. nil: there is only "/".
	Namespace func(ctx context.Context, name string, l *Login) error
}

// Limits bound what one engine holds. Everywhere 0 is the default and -1 is no
// limit, and what a limit turns away is counted in [Stats].
type Limits struct {
	MaxConns        int // connections; 503, and mpush devices wait to be accepted. A session that polls is one, whatever connections its requests come by. 0: three quarters of the process's descriptors
	MaxPending      int // upgrades whose login is undecided, as many mpush devices without a session, and as many Socket.IO clients that are not connected; as MaxConns. 0: 4 096
	MaxConnsPerUser int // the newest is refused: 1013, without an Origin 429, mpush and Socket.IO as a login; in each Socket.IO namespace by itself. 0: 64
	MaxConnsPerAddr int // connections of one whole address, loopback not counted; 429, mpush closed after 5 s unread. 0: none

	MaxMessage int // bytes of one message from a client; 1009. An mpush device has 8 KiB before its session; for Socket.IO it is SocketIO.MaxPayload. 0: 64 KiB
	MaxPush    int // bytes of one push: its JSON, or its bytes, and the event's name; ErrTooLarge. 0: 1 MiB

	QueueBytes      int // what one connection may have unsent, a message counting 64 extra; 4408. As much again of pushes that wait (OnConnect, MPush.Window). 0: 256 KiB
	QueueMessages   int // the same in messages. 0: 8 192
	TotalQueueBytes int // all queues together; beyond it the fullest are closed, 4408. As much again for pushes that wait for OnConnect (4408) or for a device's answers (Overloaded), for messages that wait for hooks (beyond it connections wait to be read), and for answers that receipts wait with (1008). 0: 256 MiB
	FanoutBytes     int // pushes waiting for one fan-out worker; full, it blocks the caller until ctx ends. 0: 8 MiB
	InboxMessages   int // messages of one connection that wait for hooks; full, it is not read from. 0: 64

	AcksWaiting int // unanswered pushes of one connection; over it Overloaded. 0: 1 024
	MessageRate int // messages a second of one connection, bursts of five times that; over it, it is read from more slowly. 0: 1 000
	PushRate    int // pushes a second of this engine; over it ErrOverloaded. 0: none

	LoginTimeout   time.Duration // from an mpush device's connecting to its session; closed, heartbeats or not. 0: 10 s
	AuthTimeout    time.Duration // one call of Authenticate; for an mpush device 5.5 s at most. 0: 5 s
	MessageTimeout time.Duration // from the first byte of a message to its last; 1008. 0: 10 s
	WriteTimeout   time.Duration // a queue from which nothing leaves; 4408. 0: 10 s
	AckTimeout     time.Duration // the longest wait for acks and for other nodes, whatever ctx allows. 0: 5 s
}

// withDefaults gives every zero its default and turns every negative value
// into zero, which then means no limit.
func (l Limits) withDefaults() Limits {
	ints := []struct {
		field *int
		value int
	}{
		{&l.MaxConns, maxConns()}, {&l.MaxPending, 4096}, {&l.MaxConnsPerUser, 64}, {&l.MaxConnsPerAddr, -1},
		{&l.MaxMessage, 64 << 10}, {&l.MaxPush, 1 << 20},
		{&l.QueueBytes, 256 << 10}, {&l.QueueMessages, 8192}, {&l.TotalQueueBytes, 256 << 20}, {&l.FanoutBytes, 8 << 20}, {&l.InboxMessages, 64},
		{&l.AcksWaiting, 1024}, {&l.MessageRate, 1000}, {&l.PushRate, -1},
	}
	for _, f := range ints {
		if *f.field == 0 {
			*f.field = f.value
		}
		*f.field = max(*f.field, 0)
	}
	times := []struct {
		field *time.Duration
		value time.Duration
	}{
		{&l.LoginTimeout, 10 * time.Second}, {&l.AuthTimeout, 5 * time.Second}, {&l.MessageTimeout, 10 * time.Second}, {&l.WriteTimeout, 10 * time.Second}, {&l.AckTimeout, 5 * time.Second},
	}
	for _, f := range times {
		if *f.field == 0 {
			*f.field = f.value
		}
		*f.field = max(*f.field, 0)
	}
	return l
}

// maxConns leaves a quarter of the descriptors to the host program.
func maxConns() int {
	if n := netio.Descriptors(); n > 0 {
		return max(n/4*3, 1)
	}
	return 65536
}

// Errors of a push, each the meaning of a [Status]. What a push returns is
// one of them, several joined, or the context's error: use errors.Is.
var (
	ErrOffline     = errors.New("push: nobody to take it")
	ErrTimeout     = errors.New("push: no answer in time")
	ErrGone        = errors.New("push: the connection ended before it answered")
	ErrSlow        = errors.New("push: the connection does not read fast enough")
	ErrTooLarge    = errors.New("push: message too large")
	ErrOverloaded  = errors.New("push: overloaded, not sent")
	ErrUnsupported = errors.New("push: the device's protocol cannot carry it")
	ErrNodeLost    = errors.New("push: the node did not answer")
)

// ErrClosed is returned by an Engine after Shutdown or Close, and by a Conn
// that has ended.
var ErrClosed = errors.New("push: closed")

// ErrLimit is returned where one more would be too many: connections of one
// user, rooms of one connection. The text says which.
var ErrLimit = errors.New("push: limit reached")

// ErrUnauthorized refuses a login when Authenticate returns it. The client
// reads "unauthorized".
var ErrUnauthorized = errors.New("unauthorized")

// Refuse is ErrUnauthorized with a text that the client may read. As an error
// of a handler it answers the client with that text. "": "unauthorized".
func Refuse(text string) error { return &refusal{cmp.Or(text, ErrUnauthorized.Error())} }

type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return ErrUnauthorized }

// TrustClaims is an Authenticate that believes: whoever says to be alice is
// alice. For demos and trusted networks only; it warns at its first call.
func TrustClaims(ctx context.Context, l *Login) (string, error) {
	warnTrust.Do(func() {
		slog.Warn("push: TrustClaims believes every client's user name; never use it on a public address")
	})
	return l.UserID, nil
}

var warnTrust sync.Once

// Ack says which proof of arrival a push asks for.
type Ack uint8

const (
	NoAck   Ack = iota // none: Sent is the best a device can do
	AutoAck            // the client library answers as soon as it has the message
	BizAck             // the client's program answers, when it has done its work; mpush: both kinds come without a Reply; Socket.IO: both wait for the page's callback
)

// Message is what a push carries.
type Message struct {
	// Event names it for the client's program. "": "message". At most 256
	// bytes of UTF-8 without control characters.
	Event string

	// Data is its value. []byte is opaque and arrives as bytes; it is copied,
	// and an empty one is refused. Anything else is encoded once by
	// encoding/json, and that JSON is the value for every client. nil: null.
	Data any

	// Ack is the proof of arrival asked for. Zero: none.
	Ack Ack

	// Async does not wait for devices: the Receipt has Targets and Offline
	// only, as far as this node knows by itself, and outcomes go to Progress. Only a full fan-out queue
	// (Limits.FanoutBytes) is waited for, until ctx ends; ctx is not used after
	// the return, and the wait for answers is Limits.AckTimeout.
	Async bool

	// Rate paces the push: that many devices a second, of which each node has an
	// equal part, in no order relative to other pushes. The push returns after the last one (with Async:
	// before the first), and its waiting for acks begins there. 0: not paced.
	Rate int

	// Progress, if not nil, gets the Receipt as devices settle: calls never
	// overlap, come from one goroutine, at most ten a second, and the last
	// has every device settled. Without Async the last one is made before
	// the push returns.
	Progress func(Receipt)
}

// Args are several arguments as a Message's Data or a handler's reply: each an
// argument of its own for Socket.IO, where a []byte arrives as bytes (its
// clients take 10 of these, with their msgpack parser any number); a JSON array
// elsewhere, with a []byte as a base64 string.
type Args []any

// Audience says whom a call is for: exactly one of User, Users, Room, All and
// Conn, narrowed by every filter that is set.
type Audience struct {
	User  string   // every device of this user
	Users []string // every device of these users
	Room  string   // everybody in this room
	All   bool     // everybody, logged in or not
	Conn  ConnID   // this one connection

	// Namespace is the Socket.IO namespace, such as "/chat"; "" and "/" are the
	// one where everybody else is, too. Users and rooms are looked for in it
	// alone. With Conn, "" is any.
	Namespace string

	AnyTag     []string // with at least one of these tags
	AllTags    []string // with all of these tags
	NoTag      []string // with none of these tags
	OS         []string // whose login named one of these, in any letter case
	MinVersion string   // whose ClientVersion is at least this, as dotted numbers; what is none is older than everything
	Percent    int      // that share of users, 1 to 100, always the same ones; connections without a user by themselves. 0: all
	Except     []ConnID // none of these
}

// Status is what became of a push on one device.
type Status uint8

const (
	_           Status = iota
	Sent               // accepted by the connection, written or queued within its limits: no proof of arrival
	Acked              // the client answered
	Timeout            // written, not answered in time
	Gone               // written, the connection ended before it answered
	Offline            // nobody to take it
	Slow               // not sent: the connection does not read fast enough, it is being closed
	TooLarge           // not sent: larger than the device takes
	Overloaded         // not sent: too much is waiting, here or on that connection
	NodeLost           // the node did not answer: it may have arrived
	Unsupported        // not sent: the device's protocol cannot carry it (opaque bytes in mpush JSON, more than 10 arguments of them in Socket.IO, what MPush.Content refuses)
	statuses
)

var statusNames = [statuses]string{"", "sent", "acked", "timeout", "gone", "offline", "slow", "toolarge", "overloaded", "nodelost", "unsupported"}
var statusErrors = [statuses]error{Timeout: ErrTimeout, Gone: ErrGone, Offline: ErrOffline, Slow: ErrSlow, TooLarge: ErrTooLarge, Overloaded: ErrOverloaded, NodeLost: ErrNodeLost, Unsupported: ErrUnsupported}

// String is the status in lower case, "" for the zero Status of a device that
// has none yet.
func (s Status) String() string {
	if s < statuses {
		return statusNames[s]
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// MarshalText writes the status in lower case.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Status) UnmarshalText(b []byte) error {
	for i, name := range statusNames {
		if name == string(b) {
			*s = Status(i)
			return nil
		}
	}
	return fmt.Errorf("push: unknown status %q", b)
}

// Reason says why a connection ended.
type Reason string

const (
	ReasonClient    Reason = "client"    // the client said goodbye
	ReasonLost      Reason = "lost"      // the socket ended without a goodbye
	ReasonHeartbeat Reason = "heartbeat" // silent for too long
	ReasonProtocol  Reason = "protocol"  // malformed or over a limit of the protocol
	ReasonRefused   Reason = "refused"   // a later login, or an mpush device's, was refused, or none came in time
	ReasonSlow      Reason = "slow"      // did not read fast enough
	ReasonKicked    Reason = "kicked"    // Kick or Conn.Close
	ReasonReplaced  Reason = "replaced"  // a newer login of the same user and class, or a page's connection turned out to be mpush
	ReasonExpired   Reason = "expired"   // Login.Expires passed
	ReasonPanic     Reason = "panic"     // a hook panicked
	ReasonShutdown  Reason = "shutdown"  // the engine shuts down
)

// Presence is a change of a user's being online.
type Presence struct {
	User   string `json:"user"`
	Online bool   `json:"online"`
	Node   string `json:"node"` // where it happened last; "" without a cluster
}

// Device is one connection as Devices tells it.
type Device struct {
	UserID    string   `json:"user,omitempty"`
	DeviceID  string   `json:"device,omitempty"`
	Node      string   `json:"node,omitempty"` // "" without a cluster
	Protocol  string   `json:"protocol"`
	Namespace string   `json:"namespace,omitempty"`
	Conn      ConnID   `json:"conn"`
	OS        string   `json:"os,omitempty"`
	Version   string   `json:"version,omitempty"`
	Tags      []string `json:"tags,omitempty"`
}

// Engine is one node. Its methods are safe for concurrent use.
type Engine struct {
	// Static after New.
	cfg      Config
	log      *slog.Logger
	origins  *origin.Rule
	driver   *netio.Driver
	places   *places
	shards   []*shard
	presence *presence // nil without OnPresence
	cluster  *cluster  // nil on a single node
	idBase   uint64    // upper half of every ConnID

	connSeq  atomic.Uint32 // lower half of the last ConnID
	ackSeq   atomic.Uint32 // of the last push that asked for an ack
	stats    counters
	inboxes  atomic.Int64 // bytes of messages that wait for hooks
	held     atomic.Int64 // bytes of pushes that wait for OnConnect, or for a device to answer others
	replies  atomic.Int64 // bytes of answers that flights keep
	pushRate pushRate
	waits    deadline.Queue // of flights that are not paced: AckTimeout
	addrs    addrCounts

	// mpush.
	mpush      mpush.Config // static after New
	proxy      *proxy.Proxy // static after New; nil: off
	handshakes rate.Slots   // RSA operations
	listeners  accept.Set
	room       chan struct{} // poked when a connection left, or is not pending any more; never closed
	warnPlain  sync.Once

	// Socket.IO.
	socketIO *polling.Server // static after New
	sids     *polling.Sids   // static after New
	beats    eio.Timing      // static after New

	handlersMu sync.RWMutex
	handlers   map[string]handler // guarded by handlersMu

	// The end, Shutdown and Close.
	draining atomic.Bool    // no more connections
	closed   atomic.Bool    // no more pushes
	expiring atomic.Bool    // some login has, or had, an end
	ending   sync.Once      // brings done about
	leaving  chan struct{}  // closed when draining begins: what waits for time of its own gives up
	unread   unread         // sockets that are held without being read
	cutting  chan struct{}  // closed by ending: what waits for time gives up
	done     chan struct{}  // closed when everything has ended
	live     tally.Tally    // transports that have not ended
	flights  [2]tally.Tally // pushes that wait for devices: begun before and after the drain, which waits for the first
	hooks    tally.Tally    // goroutines that run hooks
}

// New makes an engine from cfg and starts it; Shutdown or Close ends it. It
// listens nowhere by itself: mount it as an http.Handler, and have it Serve
// listeners. An error says which field of cfg cannot be used, or why the
// cluster could not be started.
func New(cfg Config) (*Engine, error) {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Heartbeat < 0 || cfg.Drain < 0 {
		return nil, errors.New("push: Config.Heartbeat and Config.Drain cannot be negative")
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 25 * time.Second
	}
	cfg.Heartbeat = min(cfg.Heartbeat, 20*24*time.Hour) // what millis measures
	rule, err := origin.NewRule(cfg.Origins)
	if err != nil {
		return nil, fmt.Errorf("push: Config.Origins: %w", err)
	}
	e := &Engine{
		cfg:      cfg,
		log:      quietlog.Limit(cfg.Logger),
		origins:  rule,
		idBase:   uint64(rand.Uint32()|1) << 32,
		handlers: make(map[string]handler),
		leaving:  make(chan struct{}),
		room:     make(chan struct{}, 1),
		cutting:  make(chan struct{}),
		done:     make(chan struct{}),
	}
	e.ackSeq.Store(rand.Uint32())
	if err := e.setMPush(); err != nil {
		return nil, err
	}
	if err := e.setSocketIO(); err != nil {
		return nil, err
	}
	if cfg.OnPresence != nil {
		e.presence = newPresence(e)
	}
	if cfg.Cluster != nil {
		if e.cluster, err = newCluster(e, *cfg.Cluster); err != nil {
			return nil, err
		}
	}
	e.driver = netio.New(netio.Config{
		QueueBytes:    cfg.Limits.QueueBytes,
		QueueMessages: cfg.Limits.QueueMessages,
		TotalBytes:    int64(cfg.Limits.TotalQueueBytes),
		WriteTimeout:  cfg.Limits.WriteTimeout,
		Tick:          min(time.Second, max(min(cfg.Heartbeat, e.beats.Interval, e.beats.Timeout)/5, 10*time.Millisecond)),
	})
	e.serveSocketIO()
	for range min(runtime.GOMAXPROCS(0), stripeCount) {
		e.shards = append(e.shards, newShard(e, len(e.shards)))
	}
	e.places = newPlaces(len(e.shards), e.presence, e.cluster)
	if e.cluster != nil {
		if err := e.cluster.start(); err != nil {
			e.driver.Close()
			return nil, err
		}
	}
	return e, nil
}

// setMPush makes what cfg.MPush says, and gives it its defaults.
func (e *Engine) setMPush() (err error) {
	m := &e.cfg.MPush
	if m.MinHeartbeat == 0 {
		m.MinHeartbeat = min(cmp.Or(m.MaxHeartbeat, 3*time.Minute), 3*time.Minute)
	}
	m.MaxHeartbeat = cmp.Or(m.MaxHeartbeat, max(m.MinHeartbeat, 3*time.Minute))
	m.SessionTTL = cmp.Or(m.SessionTTL, 24*time.Hour)
	m.RefuseDelay = cmp.Or(m.RefuseDelay, 2*time.Second)
	m.Window = min(cmp.Or(m.Window, 50), 1<<15-1)
	m.CompressOver = cmp.Or(m.CompressOver, 10240)
	switch {
	case m.MinHeartbeat < 10*time.Second || m.MaxHeartbeat > 4*time.Minute || m.MinHeartbeat > m.MaxHeartbeat:
		return fmt.Errorf("push: MPush.MinHeartbeat %s and MaxHeartbeat %s, want 10 s to 4 min", m.MinHeartbeat, m.MaxHeartbeat)
	case m.SessionTTL < time.Second || m.SessionTTL > 365*24*time.Hour:
		return fmt.Errorf("push: MPush.SessionTTL is %s, want a second to a year", m.SessionTTL)
	case m.RefuseDelay < 0 || m.RefuseDelay > 2900*time.Millisecond:
		return fmt.Errorf("push: MPush.RefuseDelay is %s, want less than the 3 s after which a device asks again", m.RefuseDelay)
	}
	if m.Advertise != "" {
		if !validAdvertise(m.Advertise) {
			return fmt.Errorf("push: MPush.Advertise is %q, want host:port with an IPv4 address or a name", m.Advertise)
		}
	}
	c := &e.mpush
	c.MinHeartbeat, c.MaxHeartbeat = m.MinHeartbeat, m.MaxHeartbeat
	c.MaxMessage, c.NoJSON, c.Compress = unlimited(e.cfg.Limits.MaxMessage), m.NoJSON, m.CompressOver
	if m.PrivateKey != nil {
		if c.Key, err = mpush.ParsePrivateKey(m.PrivateKey); err != nil {
			return fmt.Errorf("push: MPush.PrivateKey: %w", err)
		}
		if c.Key.Stock() {
			e.log.Warn("push: MPush.PrivateKey is the stock key of mpush, which everybody knows: whoever listens reads along")
		}
	}
	if !m.NoResume {
		keys, err := e.sessionKeys()
		if err != nil {
			return err
		}
		c.Tokens = mpush.NewTokens(e.clusterName(), m.SessionTTL, keys...)
	}
	if m.Proxy != nil {
		if e.proxy, err = proxy.New(m.Proxy.Allow); err != nil {
			return fmt.Errorf("push: MPush.Proxy: %w", err)
		}
	}
	e.handshakes = make(rate.Slots, max(1, runtime.GOMAXPROCS(0)/2)) // half of the CPU
	return nil
}

// validAdvertise tells whether a device can be told an address.
func validAdvertise(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	n, numErr := strconv.ParseUint(port, 10, 16)
	return err == nil && numErr == nil && host != "" && n != 0 && len(addr) <= 260 && !strings.ContainsAny(addr, ", \t\r\n[")
}

// sessionKeys are the keys of session tokens, the first of which seals.
func (e *Engine) sessionKeys() (keys [][]byte, err error) {
	var secrets [][]byte
	switch c := e.cfg.Cluster; {
	case e.cfg.MPush.SessionKey != nil:
		if err := secret.Check(e.cfg.MPush.SessionKey); err != nil {
			return nil, fmt.Errorf("push: MPush.SessionKey: %w", err)
		}
		secrets = [][]byte{e.cfg.MPush.SessionKey}
	case c != nil && len(c.Secrets) > 0:
		secrets = c.Secrets
	default:
		own := make([]byte, 32)
		crand.Read(own)
		return [][]byte{own}, nil
	}
	for _, s := range secrets {
		keys = append(keys, secret.Derive(s, "mpush-session", e.clusterName()))
	}
	return keys, nil
}

// setSocketIO gives cfg.SocketIO its defaults.
func (e *Engine) setSocketIO() error {
	s := &e.cfg.SocketIO
	s.MaxPayload = max(cmp.Or(s.MaxPayload, 1000000), 0)
	s.ConnectTimeout = max(cmp.Or(s.ConnectTimeout, 45*time.Second), 0)
	s.PingInterval = cmp.Or(s.PingInterval, 25*time.Second)
	s.PingTimeout = cmp.Or(s.PingTimeout, 20*time.Second)
	for _, d := range []time.Duration{s.PingInterval, s.PingTimeout} {
		if d < 10*time.Millisecond || d > 24*time.Hour {
			return fmt.Errorf("push: SocketIO.PingInterval %s and PingTimeout %s, want 10 ms to a day", s.PingInterval, s.PingTimeout)
		}
	}
	e.beats = eio.Timing{Interval: s.PingInterval, Timeout: s.PingTimeout}
	return nil
}

// serveSocketIO makes the HTTP half of it. A session id tells which node made
// it, by a tag, and is sealed with the cluster's keys.
func (e *Engine) serveSocketIO() {
	var keys [][]byte
	var tag [8]byte
	if c := e.cfg.Cluster; c != nil {
		for _, s := range c.Secrets {
			keys = append(keys, secret.Derive(s, "sid", e.clusterName()))
		}
		tag = tagOf(e.node())
	}
	if len(keys) == 0 {
		keys = [][]byte{make([]byte, 32)}
		crand.Read(keys[0])
	}
	e.sids = polling.NewSids(tag, keys...)
	var relayed func(http.ResponseWriter, *http.Request, [8]byte) bool
	if e.cluster != nil {
		relayed = e.cluster.forward
	}
	e.socketIO = polling.New(polling.Config{
		Sids:    e.sids,
		Timeout: upgradeTimeout,
		Origin:  func(r *http.Request) (allowed, credentials bool) { return e.allowsOrigin(r), e.trustsOrigin(r) },
		Open:    e.openSocketIO,
		Relay:   relayed,
		Refused: func(why polling.Why) {
			switch why {
			case polling.WhyOrigin:
				e.stats.refused(refusedOrigin)
			case polling.WhyUnknownSID:
				e.stats.refused(refusedSID)
			case polling.WhyTooLarge:
				e.stats.limit(limitedMaxMessage)
			case polling.WhySlow:
				e.stats.limit(limitedMessageTimeout)
			default:
				e.stats.refused(refusedBadRequest)
			}
		},
	})
}

func (e *Engine) clusterName() string {
	if e.cfg.Cluster == nil {
		return ""
	}
	return cmp.Or(e.cfg.Cluster.Name, "push")
}

// Alloc is mpush's allocator, which devices ask where to connect: the nodes
// that have an MPush.Advertise and do not drain, as host:port[,host:port]. The
// node with the fewest connections stands first, and those within a tenth of
// each other take turns. 503: there is none. It answers from memory; other
// nodes' numbers are some seconds old.
func (e *Engine) Alloc() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		addrs := e.cfg.MPush.Advertise
		if e.draining.Load() {
			addrs = ""
		}
		if e.cluster != nil {
			addrs = e.cluster.alloc(addrs)
		}
		if addrs == "" {
			w.Header().Set(retryAfter[0], retryAfter[1])
			http.Error(w, "no node", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		io.WriteString(w, addrs)
	})
}

// PushToUser pushes m to every device of a user. It is Push with
// Audience{User: userID}.
func (e *Engine) PushToUser(ctx context.Context, userID string, m Message) (Receipt, error) {
	return e.push(ctx, &Audience{User: userID}, &m)
}

// PushToUsers pushes m to every device of these users. It is Push with
// Audience{Users: userIDs}.
func (e *Engine) PushToUsers(ctx context.Context, userIDs []string, m Message) (Receipt, error) {
	return e.push(ctx, &Audience{Users: userIDs}, &m)
}

// PushToRoom pushes m to everybody in a room. It is Push with
// Audience{Room: room}.
func (e *Engine) PushToRoom(ctx context.Context, room string, m Message) (Receipt, error) {
	return e.push(ctx, &Audience{Room: room}, &m)
}

// Broadcast pushes m to everybody. It is Push with Audience{All: true}.
func (e *Engine) Broadcast(ctx context.Context, m Message) (Receipt, error) {
	return e.push(ctx, &Audience{All: true}, &m)
}

// Push pushes m to an audience. A push to users, to a Conn, or with an ack
// returns when every device has its status, at the latest when ctx or
// Limits.AckTimeout ends. A push to a room or to all without an ack returns
// when it is handed to the connections or, above 64 of them, to the workers
// that write to them: its receipt has counts and no Deliveries, and no error
// when nobody is there.
//
// The error is nil if any device is Sent (no ack asked) or Acked; otherwise
// ctx's error if ctx ended, else one that Is the error of each status there
// was. (To a room or to all without an ack it is ctx's error also if ctx ended
// before the push was handed over to everybody; see Receipt.) ErrClosed: the engine is closed. ErrTooLarge: m is over Limits.MaxPush
// and went to nobody. An error that is none of these says what is wrong with
// a or m.
//
// In a cluster it reaches the connections of every node. A node that cannot be
// asked, or is lost before it has told of its devices, is one Delivery, for each
// of its users or in all, with Node and a Status only: NodeLost without a link
// to it, Overloaded if the link has had no room for a second (4 MiB or 8 192
// messages wait), TooLarge over 16 MiB. Devices that it has told of have a
// Delivery of their own. Other nodes begin to say Timeout 10 ms before this one
// has to. To a room or to all without an ack, the counts are of this node's
// connections, and the nodes that it could not be handed to are Deliveries. A
// user who has just left the node that is known to have him is looked for once
// more, for up to 100 ms.
//
// What one goroutine pushes reaches a connection in the order of the calls,
// whatever the audiences (but see Message.Rate and Conn.Push; while a user moves
// to another node, what is pushed to him with Async, and later pushes to a room,
// may overtake what has to be sent once more).
func (e *Engine) Push(ctx context.Context, a Audience, m Message) (Receipt, error) {
	return e.push(ctx, &a, &m)
}

// Join puts everybody of an audience into a room and tells how many were not
// in it before. The error is nil, or says what is wrong with a or room, or
// joins the reasons of those that could not join (too many rooms, ended), and
// of nodes that did not answer within ctx and Limits.AckTimeout: there it may
// have been done. What is pushed to the room on this node from here on reaches
// them all, and on other nodes some 20 ms later.
func (e *Engine) Join(ctx context.Context, a Audience, room string) (int, error) {
	if err := checkName("room", room); err != nil {
		return 0, err
	}
	return e.everywhere(ctx, a, nodemsg.Join, room, joins(room))
}

func joins(room string) func(*Conn) (bool, error) {
	return func(c *Conn) (bool, error) { return c.join(room) }
}

// Leave takes everybody of an audience out of a room and tells how many were
// in it. The error is as Join's.
func (e *Engine) Leave(ctx context.Context, a Audience, room string) (int, error) {
	if err := checkName("room", room); err != nil {
		return 0, err
	}
	return e.everywhere(ctx, a, nodemsg.Leave, room, leaves(room))
}

func leaves(room string) func(*Conn) (bool, error) {
	return func(c *Conn) (bool, error) { return c.leave(room), nil }
}

// Kick ends every connection of an audience (close code 4410; KICK and an
// ERROR for an mpush device; a Socket.IO disconnect of each of its namespaces
// and 5 s for the client to close), which clients do not come back from by
// themselves, and tells how many. text goes to the client, cut at 123 bytes;
// Socket.IO has no place for it. The error is as Join's.
func (e *Engine) Kick(ctx context.Context, a Audience, text string) (int, error) {
	return e.everywhere(ctx, a, nodemsg.Kick, text, kicks(text))
}

func kicks(text string) func(*Conn) (bool, error) {
	return func(c *Conn) (bool, error) { return c.shut(ReasonKicked, wire.Kicked, text), nil }
}

// everywhere is each, on every node: op and text are what f does.
func (e *Engine) everywhere(ctx context.Context, a Audience, op uint8, text string, f func(*Conn) (bool, error)) (int, error) {
	if e.cluster == nil {
		return e.each(ctx, a, f)
	}
	if err := a.one(); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	q, err := e.cluster.ask(op, &a, text)
	if err != nil {
		return 0, err
	}
	n, err := e.each(ctx, a, f)
	others, _, errs := q.wait(ctx)
	if op == nodemsg.Join && others > 0 {
		q.known(ctx)
	}
	return n + others, errors.Join(append([]error{err}, errs...)...)
}

// each calls f for every connection of an audience, behind what was pushed
// before, and counts the ones that it says yes to.
func (e *Engine) each(ctx context.Context, a Audience, f func(*Conn) (bool, error)) (n int, err error) {
	conns, err := e.find(&a)
	if err != nil {
		return 0, err
	}
	for _, s := range e.shards {
		if err := s.flush(ctx); err != nil {
			return 0, err
		}
	}
	var errs []error
	for _, c := range conns {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		ok, err := f(c)
		if ok {
			n++
		}
		if err != nil && len(errs) < 10 {
			errs = append(errs, err)
		}
	}
	return n, errors.Join(errs...)
}

// Receipt tells what became of a push. Targets is Sent + Acked + Failed +
// what is still open (only in Progress, and with Async).
type Receipt struct {
	Targets    int        `json:"targets"`              // devices there were
	Sent       int        `json:"sent"`                 // of them with Status Sent; to more than 64 in a room or of all, those it was handed over for
	Acked      int        `json:"acked"`                // of them with Status Acked
	Failed     int        `json:"failed"`               // of them with any other Status
	Offline    []string   `json:"offline,omitempty"`    // users asked for that had no device
	Deliveries []Delivery `json:"deliveries,omitempty"` // one for each device, in no order; none for a room or all without Ack and Rate
}

// Delivery is what became of a push on one device.
type Delivery struct {
	UserID   string          `json:"user,omitempty"`
	DeviceID string          `json:"device,omitempty"`
	Node     string          `json:"node,omitempty"` // that has the device; "" without a cluster
	Protocol string          `json:"protocol,omitempty"`
	Conn     ConnID          `json:"conn"` // 0: it stands for all devices there of the user, or of the audience
	Status   Status          `json:"status"`
	Latency  time.Duration   `json:"latency"`         // from the call to the Status, in nanoseconds
	Reply    json.RawMessage `json:"reply,omitempty"` // what came with the ack; opaque bytes as a base64 string
}

// count fills the counts from Deliveries.
func (r *Receipt) count() {
	r.Targets, r.Sent, r.Acked, r.Failed = len(r.Deliveries), 0, 0, 0
	for i := range r.Deliveries {
		switch r.Deliveries[i].Status {
		case 0:
		case Sent:
			r.Sent++
		case Acked:
			r.Acked++
		default:
			r.Failed++
		}
	}
}

// err is the error of a push with this receipt. ctxErr is why its wait ended,
// if its context did that.
func (r *Receipt) err(ctxErr error) error {
	if r.Sent+r.Acked > 0 {
		return nil
	}
	if ctxErr != nil {
		return ctxErr
	}
	var seen [statuses]bool
	var errs []error
	if len(r.Offline) > 0 || r.Targets == 0 {
		seen[Offline], errs = true, append(errs, ErrOffline)
	}
	for i := range r.Deliveries {
		if s := r.Deliveries[i].Status; !seen[s] && statusErrors[s] != nil {
			seen[s], errs = true, append(errs, statusErrors[s])
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// one is the selector of an audience, checked: exactly one is set.
func (a *Audience) one() error {
	n := 0
	for _, set := range [...]bool{a.User != "", len(a.Users) > 0, a.Room != "", a.All, a.Conn != 0} {
		if set {
			n++
		}
	}
	switch {
	case n == 0:
		return errors.New("push: the audience names nobody")
	case n > 1:
		return errors.New("push: the audience has more than one of User, Users, Room, All and Conn")
	case a.Percent < 0 || a.Percent > 100:
		return fmt.Errorf("push: Audience.Percent is %d, want 0 to 100", a.Percent)
	case a.Namespace != "" && a.Namespace[0] != '/':
		return fmt.Errorf("push: Audience.Namespace is %q, want one that begins with a slash", brief(a.Namespace))
	case a.MinVersion != "" && olderVersion(a.MinVersion, "0"):
		return fmt.Errorf("push: Audience.MinVersion is %q, want dotted numbers", a.MinVersion)
	}
	return nil
}

// filtered reports whether a narrows its selector.
func (a *Audience) filtered() bool {
	return len(a.AnyTag) > 0 || len(a.AllTags) > 0 || len(a.NoTag) > 0 || len(a.OS) > 0 || a.MinVersion != "" || a.Percent > 0 || len(a.Except) > 0 || a.Conn != 0 && a.Namespace != ""
}

// space is the namespace as Conns have it: "" for "/".
func (a *Audience) space() string {
	if a.Namespace == "/" {
		return ""
	}
	return a.Namespace
}

// place is the room or everyone that a selects.
func (a *Audience) place() (placeKey, bool) {
	switch {
	case a.Room != "":
		return keyOf(a.space(), kindRoom, a.Room), true
	case a.All:
		return keyOf(a.space(), kindAll, ""), true
	}
	return placeKey{}, false
}

// matches reports whether a connection passes every filter.
func (a *Audience) matches(c *Conn) bool {
	who := c.who.Load()
	if slices.Contains(a.Except, c.id) || a.Namespace != "" && a.space() != who.space {
		return false
	}
	has := func(tag string) bool { return slices.Contains(who.tags, tag) }
	if len(a.AnyTag) > 0 && !slices.ContainsFunc(a.AnyTag, has) || slices.ContainsFunc(a.NoTag, has) {
		return false
	}
	for _, tag := range a.AllTags {
		if !has(tag) {
			return false
		}
	}
	if len(a.OS) > 0 && !slices.ContainsFunc(a.OS, func(os string) bool { return strings.EqualFold(os, who.os) }) {
		return false
	}
	if a.MinVersion != "" && olderVersion(who.version, a.MinVersion) {
		return false
	}
	return a.Percent == 0 || share(who.user, c.id) < uint32(a.Percent)
}

// share sorts users into a hundred parts, the same on every node and always.
func share(user string, id ConnID) uint32 {
	h := fnv.New32a()
	if user == "" {
		binary.Write(h, binary.BigEndian, uint64(id))
	} else {
		io.WriteString(h, user)
	}
	return h.Sum32() % 100
}

// olderVersion compares dotted numbers; missing parts are 0, and a v that is
// not dotted numbers is older than everything.
func olderVersion(v, least string) bool {
	older := 0 // -1: decided, v is older; 1: v is newer
	for more, needs := true, true; more || needs; {
		a, b := "0", "0"
		if more {
			a, v, more = strings.Cut(v, ".")
		}
		if needs {
			b, least, needs = strings.Cut(least, ".")
		}
		x, err := strconv.ParseUint(a, 10, 32)
		if err != nil {
			return true
		}
		y, _ := strconv.ParseUint(b, 10, 32)
		if older == 0 {
			older = cmp.Compare(x, y)
		}
	}
	return older < 0
}

// find tells the connections of an audience.
func (e *Engine) find(a *Audience) ([]*Conn, error) {
	if err := a.one(); err != nil {
		return nil, err
	}
	conns, _, _ := e.appendConns(nil, nil, a)
	return conns, nil
}

// appendConns appends the connections of a checked audience to dst. For Users
// it tells whose each one is, and users who have none are appended to nobody.
func (e *Engine) appendConns(dst []*Conn, nobody []string, a *Audience) (conns []*Conn, owners, offline []string) {
	collect := func(key placeKey) (n int) {
		before := len(dst)
		dst = e.places.collect(dst, key)
		n = len(dst) - before
		if a.filtered() {
			dst = append(dst[:before], slices.DeleteFunc(dst[before:], func(c *Conn) bool { return !a.matches(c) })...)
		}
		return n
	}
	if key, ok := a.place(); ok {
		collect(key)
	} else if a.Conn != 0 {
		if c := e.places.conn(a.Conn); c != nil && (!a.filtered() || a.matches(c)) {
			dst = append(dst, c)
		}
	} else if a.User != "" {
		if collect(keyOf(a.space(), kindUser, a.User)) == 0 {
			nobody = append(nobody, a.User)
		}
	} else {
		seen := make(map[string]bool, len(a.Users))
		found := make(map[*Conn]bool, len(a.Users)) // one may move from a user to another meanwhile
		for _, user := range a.Users {
			if seen[user] {
				continue
			}
			seen[user] = true
			before := len(dst)
			if collect(keyOf(a.space(), kindUser, user)) == 0 {
				nobody = append(nobody, user)
			}
			fresh := slices.DeleteFunc(dst[before:], func(c *Conn) bool { return found[c] })
			dst = dst[:before+len(fresh)]
			for _, c := range fresh {
				found[c] = true
				owners = append(owners, user)
			}
		}
	}
	return dst, owners, nobody
}

func (e *Engine) push(ctx context.Context, a *Audience, m *Message) (Receipt, error) {
	if err := a.one(); err != nil {
		return Receipt{}, err
	}
	s := scratches.Get().(*scratch)
	defer s.release()
	var p encoded
	if err := e.admitPush(ctx, &p, m, s); err != nil {
		return Receipt{}, err
	}
	p.space = a.space()
	var away *sending // nil: other nodes have nothing to do with it
	if e.cluster != nil {
		var err error
		if away, err = e.cluster.reach(a, &p); err != nil {
			return Receipt{}, err
		}
	}
	var few [fewMembers]*Conn
	if key, ok := a.place(); ok && m.Ack == NoAck && m.Rate == 0 && !a.filtered() {
		conns, n := e.places.collectFew(few[:0], key)
		return e.pushPlace(ctx, key, conns, n, m, &p, away)
	}
	conns, owners, offline := e.appendConns(few[:0], away.nobody(), a)
	if away != nil && away.waits { // behind the others, also to connections here
		conns, offline = nil, append(away.nobody(), a.User)
	}
	if _, ok := a.place(); ok && m.Ack == NoAck && (m.Rate == 0 || len(conns) == 0 && away == nil) {
		return e.pushRoom(ctx, conns, m, &p, away)
	}
	if a.Conn != 0 && len(conns) == 0 && away == nil {
		r := Receipt{Deliveries: []Delivery{{Conn: a.Conn, Node: e.node(), Status: Offline}}}
		return e.settled(r, m)
	}
	if a.Conn != 0 && len(conns) > 0 {
		p.space = conns[0].Namespace()
	}
	if a.User != "" {
		owners = []string{a.User}
	}
	return e.pushDevices(ctx, conns, owners, offline, m, &p, away)
}

// admitPush encodes a message into p, or says why it goes to nobody.
func (e *Engine) admitPush(ctx context.Context, p *encoded, m *Message, s *scratch) error {
	if e.closed.Load() {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !e.pushRate.take(e.cfg.Limits.PushRate) {
		e.stats.limit(limitedPushRate)
		return ErrOverloaded
	}
	if err := e.encode(p, m, s); err != nil {
		return err
	}
	e.stats.pushes.Add(1)
	return nil
}

// settled returns a receipt in which everything is decided, telling Progress.
func (e *Engine) settled(r Receipt, m *Message) (Receipt, error) {
	r.count()
	for i := range r.Deliveries {
		e.stats.delivered(r.Deliveries[i].Status, 1)
	}
	e.progress(m, r)
	return r, r.err(nil)
}

// handed returns the receipt of a push that was handed over without waiting,
// once the rest of its nodes have it. err is why this node's part ended early;
// then who is not Sent has not got it.
func (e *Engine) handed(ctx context.Context, r Receipt, m *Message, away *sending, err error) (Receipt, error) {
	failed := r.Targets - r.Sent - r.Failed // besides those who were too slow
	r.Failed += failed
	e.stats.delivered(Overloaded, failed)
	if r.Deliveries = away.finish(ctx); len(r.Deliveries) > 0 { // a node each
		r.Targets += len(r.Deliveries)
		r.Failed += len(r.Deliveries)
		for i := range r.Deliveries {
			e.stats.delivered(r.Deliveries[i].Status, 1)
		}
		if err == nil && r.Sent == 0 && len(r.Deliveries) == len(away.targets) {
			err = r.err(ctx.Err())
		}
	}
	e.progress(m, r)
	return r, err
}

// progress tells Progress a receipt in which everything is decided.
func (e *Engine) progress(m *Message, r Receipt) {
	if m.Progress != nil {
		e.hook("Progress", 0, func() { m.Progress(r) })
	}
}

// pushPlace pushes to a whole place without an ack: conns are its members if
// they are few, n says how many there are.
func (e *Engine) pushPlace(ctx context.Context, key placeKey, conns []*Conn, n int, m *Message, p *encoded, away *sending) (Receipt, error) {
	if n <= fewMembers {
		return e.pushRoom(ctx, conns, m, p, away)
	}
	r := Receipt{Targets: n}
	push := p.share(e)
	away.beginQuietly(ctx)
	for i, s := range e.shards {
		if err := s.post(ctx, &item{push: push, place: key, from: connecting(ctx)}); err != nil {
			r.Sent = n * i / len(e.shards) // about: connections are spread evenly over the shards
			return e.handed(ctx, r, m, away, err)
		}
	}
	r.Sent = n
	return e.handed(ctx, r, m, away, nil)
}

// pushRoom pushes to connections of a room or of everyone without an ack: it
// counts and does not wait.
func (e *Engine) pushRoom(ctx context.Context, conns []*Conn, m *Message, p *encoded, away *sending) (Receipt, error) {
	r := Receipt{Targets: len(conns)}
	from := connecting(ctx)
	away.beginQuietly(ctx)
	if len(conns) > fewMembers {
		push := p.share(e)
		for i, mine := range e.byShard(conns) {
			if len(mine) == 0 {
				continue
			}
			if err := e.shards[i].post(ctx, &item{push: push, conns: mine, from: from}); err != nil {
				return e.handed(ctx, r, m, away, err)
			}
			r.Sent += len(mine)
		}
		return e.handed(ctx, r, m, away, nil)
	}
	var shared *encoded
	for _, c := range conns {
		status := Sent
		if s := e.shards[c.shard]; s.pending.Load() > 0 {
			if shared == nil {
				shared = p.share(e)
			}
			if err := s.post(ctx, &item{push: shared, conns: []*Conn{c}, from: from}); err != nil {
				return e.handed(ctx, r, m, away, err)
			}
		} else {
			status = c.push(p, c == from)
			e.stats.delivered(status, 1)
		}
		if status == Sent {
			r.Sent++
		} else {
			r.Failed++
		}
	}
	return e.handed(ctx, r, m, away, nil)
}

// byShard sorts connections by the shard they belong to.
func (e *Engine) byShard(conns []*Conn) [][]*Conn {
	sorted := make([][]*Conn, len(e.shards))
	for _, c := range conns {
		sorted[c.shard] = append(sorted[c.shard], c)
	}
	return sorted
}

// pushDevices pushes to connections and waits until each has its status, and
// so with the devices of other nodes. owners says whose they were when they
// were found; nil: whose they are now.
func (e *Engine) pushDevices(ctx context.Context, conns []*Conn, owners, offline []string, m *Message, p *encoded, away *sending) (Receipt, error) {
	if len(conns) == 0 && away == nil {
		e.stats.delivered(Offline, len(offline))
		return e.settled(Receipt{Offline: offline}, m)
	}
	from := connecting(ctx)
	if away == nil && m.Ack == NoAck && m.Rate == 0 && !m.Async && len(conns) <= fewMembers && !e.anyPending(conns) {
		// The usual case: the caller writes.
		begin := time.Now()
		r := Receipt{Offline: offline, Deliveries: describeAll(conns, owners)}
		for i, c := range conns {
			r.Deliveries[i].Status = c.push(p, c == from)
			r.Deliveries[i].Latency = time.Since(begin)
		}
		e.stats.delivered(Offline, len(offline))
		return e.settled(r, m)
	}
	for _, c := range conns {
		p.frame(c.dialect) // which may call a hook: not when something has begun
	}
	f := away.room()
	f.init(e, conns, owners, p.ack)
	f.done = make(chan struct{})
	if m.Progress != nil {
		f.progress, f.moved = m.Progress, make(chan struct{}, 1)
	}
	f.offline, f.sought = away.divide(offline)
	offline = f.offline
	e.stats.delivered(Offline, len(offline))
	f.flights = e.counted()
	pace := float64(m.Rate)
	f.paced = m.Rate > 0
	f.async = m.Async && !f.paced // before the links' readers know of it
	if away != nil {
		away.frames, away.cannot = p.frames, p.cannot
		pace /= float64(away.parts(len(conns)))
		if m.Rate > 0 {
			f.pause = time.Duration(float64(time.Second) / pace)
		}
		var until time.Time
		if !m.Async {
			until, _ = ctx.Deadline()
		}
		away.begin(f, m.Ack, pace, until)
	}
	r := Receipt{Targets: len(conns), Offline: offline}
	if pace > 0 {
		push := p.share(e)
		away.finish(ctx)
		f.depart()
		if m.Async {
			go func() {
				defer f.land()
				f.pace(context.Background(), push, from, pace)
				f.wait(context.Background())
			}()
			return r, nil
		}
		defer f.land()
		f.pace(ctx, push, from, pace)
	} else {
		f.launch(ctx, p, from)
		away.finish(ctx)
		if d := e.cfg.Limits.AckTimeout; d > 0 {
			e.waits.Add(&f.deadline, f.begin.Add(d), f)
		}
		f.depart()
		if m.Async {
			return r, nil
		}
		defer f.land()
	}
	f.wait(ctx)
	r = f.receipt()
	return r, r.err(ctx.Err())
}

// counted counts a flight in, and returns where it is to be counted out.
func (e *Engine) counted() *tally.Tally {
	flights := &e.flights[0]
	if e.draining.Load() {
		flights = &e.flights[1]
	}
	flights.Add()
	return flights
}

func (e *Engine) anyPending(conns []*Conn) bool {
	for _, c := range conns {
		if e.shards[c.shard].pending.Load() > 0 {
			return true
		}
	}
	return false
}

// flight is a push that waits for its devices: those of this node, which it
// begins with, and those that other nodes tell of.
type flight struct {
	// Static once it is launched.
	e        *Engine
	conns    []*Conn // this node's; their deliveries are the first
	ack      uint32  // 0: none wanted
	begin    time.Time
	progress func(Receipt)
	done     chan struct{} // closed when open falls to 0; nil: nobody waits for that. Of a paced sink it is made later, but before depart
	moved    chan struct{} // poked by settle for progress; never closed
	paced    bool          // the wait for answers begins when it was sent to the last device here
	pause    time.Duration // of a push that other nodes pace: the longest between two devices there; 0: none does
	async    bool          // nobody waits but, from the first news on, a goroutine that tells progress; a paced one has a goroutine anyway
	sink     *served       // it is another node's, which is told; nil: it is this node's
	flights  *tally.Tally  // it is counted there

	deadline  deadline.Wait // in Engine.waits, or of a sink in answers.waits; in none while it is paced
	following atomic.Bool   // that goroutine runs, or ran

	mu         sync.Mutex
	deliveries []Delivery // guarded by mu; more come while it is open
	written    []bool     // guarded by mu, as long as conns: may have left, its status will come
	late       []late     // guarded by mu: connections that came to this node meanwhile
	parts      []*part    // guarded by mu: what other nodes do of it
	offline    []string   // guarded by mu: users without a device
	sought     []string   // guarded by mu: users without a device here, who had one on another node
	open       int        // guarded by mu: deliveries without a status, parts that are not over, and one while it is launched
	over       bool       // guarded by mu: what is not written yet never will be
	replies    int        // guarded by mu: bytes of answers, counted by keepReply
	landed     bool       // guarded by mu: they are counted no more

	// Room for what most have one of.
	oneConn    [1]*Conn
	oneWritten [1]bool
	onePart    [1]*part
}

// late is a connection that was not there when the flight began.
type late struct {
	conn  *Conn
	index int // of its delivery
}

// init makes f a flight that is open until depart.
func (f *flight) init(e *Engine, conns []*Conn, owners []string, ack uint32) {
	f.e, f.ack, f.begin, f.open = e, ack, time.Now(), len(conns)+1
	if len(conns) > 0 {
		f.conns, f.deliveries = append(f.oneConn[:0], conns...), describeAll(conns, owners)
		if f.written = f.oneWritten[:]; len(conns) > 1 {
			f.written = make([]bool, len(conns))
		}
	}
}

// describeAll makes a delivery for each connection. owners are one for all, or
// one for each, or none.
func describeAll(conns []*Conn, owners []string) []Delivery {
	deliveries := make([]Delivery, len(conns))
	for i, c := range conns {
		describe(&deliveries[i], c, owners, i)
	}
	return deliveries
}

// describe makes a delivery for the connection with an index among several.
func describe(d *Delivery, c *Conn, owners []string, i int) {
	c.describe(d)
	switch {
	case len(owners) == 1:
		d.UserID = owners[0]
	case len(owners) > 0:
		d.UserID = owners[i]
	}
}

// launch writes the push, or posts it to be written.
func (f *flight) launch(ctx context.Context, p *encoded, from *Conn) {
	var shared *encoded
	post := func(s *shard, conns []*Conn, indexes []int) {
		if shared == nil {
			shared = p.share(f.e)
		}
		if s.post(ctx, &item{push: shared, conns: conns, indexes: indexes, flight: f, from: from}) != nil {
			for _, i := range indexes {
				f.settle(i, Overloaded, nil)
			}
		}
	}
	if len(f.conns) <= fewMembers {
		for i, c := range f.conns {
			if s := f.e.shards[c.shard]; s.pending.Load() > 0 {
				post(s, []*Conn{c}, []int{i})
			} else {
				f.send(i, c, p, from)
			}
		}
		return
	}
	indexes := make([][]int, len(f.e.shards))
	for i, c := range f.conns {
		indexes[c.shard] = append(indexes[c.shard], i)
	}
	for i, conns := range f.e.byShard(f.conns) {
		if len(conns) > 0 {
			post(f.e.shards[i], conns, indexes[i])
		}
	}
}

// pace writes the push to so many devices a second. It makes its steps a
// twentieth of a second, in which several may be written.
func (f *flight) pace(ctx context.Context, p *encoded, from *Conn, rate float64) {
	begin := time.Now()
	told := begin
	for i, c := range f.conns {
		due := time.Duration(float64(i) / rate * float64(time.Second))
		if ahead := due - time.Since(begin); ahead > 0 && sleep(ctx, (ahead+paceStep-1)/paceStep*paceStep, f.e.leaving) != nil {
			for ; i < len(f.conns); i++ {
				f.settle(i, Overloaded, nil)
			}
			return
		}
		f.send(i, c, p, from)
		if f.progress != nil && time.Since(told) >= progressEvery {
			told = time.Now()
			f.tell(false)
		}
	}
}

const paceStep = 50 * time.Millisecond

// has tells whether the push goes to a connection of this node.
func (f *flight) has(c *Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hasLocked(c)
}

func (f *flight) hasLocked(c *Conn) bool {
	return slices.Contains(f.conns, c) || slices.ContainsFunc(f.late, func(l late) bool { return l.conn == c })
}

// sendLate writes the push to a connection that came to this node after it had
// begun, unless that has it.
func (f *flight) sendLate(c *Conn, owner string, p *encoded) {
	var d Delivery
	c.describe(&d)
	d.UserID = owner
	f.mu.Lock()
	if f.over || f.open == 0 || f.hasLocked(c) {
		f.mu.Unlock()
		return
	}
	i := len(f.deliveries)
	f.deliveries = append(f.deliveries, d)
	f.late = append(f.late, late{c, i})
	f.open++
	f.mu.Unlock()
	s := f.e.shards[c.shard]
	if s.pending.Load() == 0 {
		f.send(i, c, p, nil)
	} else if s.post(noWait, &item{push: p, conns: []*Conn{c}, indexes: []int{i}, flight: f}) != nil {
		f.settle(i, Overloaded, nil)
	}
}

// noWait is for who may not wait for room.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// send writes the push to one connection and settles what can be said now. A
// shard's worker and wait may be at it at the same time: who takes the
// expected ack out of the connection is the one to settle.
func (f *flight) send(i int, c *Conn, p *encoded, from *Conn) {
	if f.ack != 0 {
		if status := c.expect(f.ack, f, i); status != Sent {
			f.settle(i, status, nil)
			return
		}
	}
	f.mu.Lock()
	over := f.over
	if i < len(f.written) {
		f.written[i] = !over
	}
	f.mu.Unlock()
	if over {
		if f.ack == 0 || c.forget(f.ack) {
			f.settle(i, Overloaded, nil)
		}
		return
	}
	status := c.write(p, f.ack, c == from)
	if f.ack == 0 || status != Sent && c.forget(f.ack) {
		f.settle(i, status, nil)
	}
	if status == Slow {
		c.t.overflow() // after the settling: what it ends is Gone, and this was not sent
	}
}

// settle gives one delivery its status; the first one counts.
func (f *flight) settle(i int, status Status, reply json.RawMessage) {
	f.mu.Lock()
	d := &f.deliveries[i]
	if d.Status != 0 {
		f.mu.Unlock()
		return
	}
	d.Status, d.Reply, d.Latency = status, reply, time.Since(f.begin)
	last, nobody := f.closeLocked(1)
	f.mu.Unlock()
	if f.sink != nil {
		f.sink.settled(i)
	} else {
		f.e.stats.delivered(status, 1)
	}
	f.closed(last, nobody)
}

// depart says that the flight is launched: from here on it is over when every
// device has its status.
func (f *flight) depart() {
	f.mu.Lock()
	last, nobody := f.closeLocked(1)
	f.mu.Unlock()
	if last {
		f.closed(last, nobody)
	}
}

// close counts n of what was open out.
func (f *flight) close(n int) {
	f.mu.Lock()
	last, nobody := f.closeLocked(n)
	f.mu.Unlock()
	f.closed(last, nobody)
}

// closeLocked tells whether nothing is open any more. At that moment it is
// known which users had no device anywhere; nobody is how many.
func (f *flight) closeLocked(n int) (last bool, nobody int) {
	f.open -= n
	if last = f.open == 0 && n > 0; !last || len(f.sought) == 0 {
		return last, 0
	}
	has := func(user string) bool {
		return slices.ContainsFunc(f.deliveries, func(d Delivery) bool { return d.UserID == user })
	}
	if len(f.sought) > 1 {
		found := make(map[string]bool, len(f.deliveries))
		for i := range f.deliveries {
			found[f.deliveries[i].UserID] = true
		}
		has = func(user string) bool { return found[user] }
	}
	for _, user := range f.sought {
		if !has(user) {
			f.offline = append(f.offline, user)
			nobody++
		}
	}
	return last, nobody
}

// closed does without the lock what closeLocked brought about.
func (f *flight) closed(last bool, nobody int) {
	f.e.stats.delivered(Offline, nobody)
	if last && f.done != nil {
		close(f.done)
	}
	switch {
	case last && f.sink != nil:
		f.sink.ended()
	case f.progress != nil:
		if !last {
			f.poke()
		}
		if f.async && !f.following.Swap(true) {
			go func() {
				defer f.land()
				f.wait(context.Background())
			}()
		}
	case last && f.async:
		f.land()
	}
}

func (f *flight) poke() {
	select {
	case f.moved <- struct{}{}:
	default:
	}
}

// wait returns when every delivery is settled: at the latest when ctx or
// AckTimeout ends, whose end settles the rest. Progress is called here.
func (f *flight) wait(ctx context.Context) {
	var timer *time.Timer
	var timeout <-chan time.Time
	if d := f.e.cfg.Limits.AckTimeout; d > 0 && f.paced {
		timer = time.NewTimer(d)
		defer timer.Stop()
		timeout = timer.C
	}
	if f.progress == nil && !f.paced {
		if ended := ctx.Done(); ended != nil {
			select {
			case <-f.done:
			case <-ended:
				f.giveUp()
			}
		}
		<-f.done
		return
	}
	var told time.Time
	moved := f.moved
	var pause <-chan time.Time
	for {
		select {
		case <-f.done:
			if f.progress != nil {
				f.tell(true)
			}
			return
		case <-ctx.Done():
			f.giveUp()
			<-f.done
		case <-timeout:
			if more := f.patience(); more > 0 {
				timer.Reset(more)
				continue
			}
			f.giveUp()
			<-f.done
		case <-moved:
			if time.Since(told) >= progressEvery {
				told = time.Now()
				f.tell(false)
			} else {
				moved, pause = nil, time.After(progressEvery)
			}
		case <-pause:
			moved, pause = f.moved, nil
			f.poke()
		}
	}
}

const progressEvery = 100 * time.Millisecond

// tell calls Progress. That everything is settled is told once, last.
func (f *flight) tell(last bool) {
	r := f.receipt()
	if !last && r.Sent+r.Acked+r.Failed == r.Targets {
		return
	}
	f.e.hook("Progress", 0, func() { f.progress(r) })
}

// patience is how much longer a flight waits for other nodes that pace the push,
// when the wait for this one's devices is over: until the one with the most
// devices has sent to the last of them, and waited for its answer.
func (f *flight) patience() time.Duration {
	if f.pause == 0 {
		return 0
	}
	f.giveUpConns()
	f.mu.Lock()
	defer f.mu.Unlock()
	most := 1
	for _, p := range f.parts {
		most = max(most, len(p.devices))
	}
	return time.Until(f.begin.Add(time.Duration(most)*f.pause + f.e.cfg.Limits.AckTimeout + time.Second))
}

// Expire is the end of AckTimeout.
func (f *flight) Expire() { f.giveUp() }

// giveUp settles what has no status: Timeout what was written, Overloaded what
// was not, NodeLost what a node has said nothing of.
func (f *flight) giveUp() {
	f.mu.Lock()
	f.over = true
	parts := slices.Clone(f.parts)
	f.mu.Unlock()
	f.giveUpConns()
	for _, p := range parts {
		p.giveUp()
	}
}

// giveUpConns is giveUp for the connections of this node.
func (f *flight) giveUpConns() {
	f.mu.Lock()
	if f.open == 0 {
		f.mu.Unlock()
		return
	}
	written := slices.Clone(f.written)
	lates := slices.Clone(f.late)
	f.mu.Unlock()
	for i, c := range f.conns {
		if written[i] {
			f.giveUpConn(i, c)
		} else {
			f.settle(i, Overloaded, nil)
		}
	}
	for _, l := range lates {
		f.giveUpConn(l.index, l.conn)
	}
}

// giveUpConn is giveUp for a connection to which the push may have been written.
func (f *flight) giveUpConn(i int, c *Conn) {
	switch {
	case f.ack == 0: // being written at this moment
	case c.unhold(f.ack):
		if c.forget(f.ack) {
			f.settle(i, Overloaded, nil)
		}
		c.relay() // what was held behind it may not have to wait
	case c.forget(f.ack):
		f.settle(i, Timeout, nil)
	}
}

// keepReply counts the bytes of an answer that a flight keeps, unless all
// answers together are over TotalQueueBytes.
func (e *Engine) keepReply(f *flight, n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return n == 0 || e.keepReplyLocked(f, n)
}

// keepReplyLocked is keepReply with f.mu held.
func (e *Engine) keepReplyLocked(f *flight, n int) bool {
	if total := int64(e.cfg.Limits.TotalQueueBytes); f.landed || total > 0 && e.replies.Load()+int64(n) > total {
		return f.landed
	}
	e.replies.Add(int64(n))
	f.replies += n
	return true
}

// land is the end of a flight: from here on the answers are the caller's. What
// is open then is given up: Progress ended the goroutine, or the link of a sink
// ended. Of a sink it may come twice, from the link's writer and its end.
func (f *flight) land() {
	f.mu.Lock()
	if f.landed {
		f.mu.Unlock()
		return
	}
	f.landed = true
	if f.replies > 0 {
		f.e.replies.Add(-int64(f.replies))
	}
	settled := f.open == 0
	f.mu.Unlock()
	if !settled {
		f.giveUp()
	}
	if f.sink == nil {
		f.e.waits.Remove(&f.deadline)
		f.flights.Done()
	}
}

func (f *flight) receipt() Receipt {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := Receipt{Offline: f.offline, Deliveries: f.deliveries}
	if f.progress != nil { // which may be told more than once, and change what it gets
		r = Receipt{Offline: slices.Clone(f.offline), Deliveries: slices.Clone(f.deliveries)}
	}
	r.count()
	return r
}

// Online tells whether a user has a connection, on whichever node and in
// whichever namespace. It answers from memory.
func (e *Engine) Online(userID string) bool {
	return e.here(userID) || e.cluster != nil && e.cluster.online(userID)
}

// here tells whether a user has a connection on this node.
func (e *Engine) here(userID string) bool {
	return e.places.size(placeKey{kindUser, userID}) > 0 || e.places.size(placeKey{kindElsewhere, userID}) > 0
}

// Users yields every user that has a connection, on whichever node, each once,
// in no order, from memory. What comes and goes meanwhile may be missed or
// yielded, and who moves between nodes yielded twice.
func (e *Engine) Users() iter.Seq[string] {
	return func(yield func(string) bool) {
		if e.cluster != nil {
			for user := range e.cluster.users() {
				if !e.here(user) && !yield(user) {
					return
				}
			}
		}
		for user := range e.places.all(kindUser) {
			if !yield(user) {
				return
			}
		}
		for user := range e.places.all(kindElsewhere) {
			if e.places.size(placeKey{kindUser, user}) == 0 && !yield(user) {
				return
			}
		}
	}
}

// Rooms yields every room of this node with the number of connections in it, in
// no order; those of other nodes, and of other namespaces than "/", Devices
// tells of.
// What changes meanwhile may be missed or yielded.
func (e *Engine) Rooms() iter.Seq2[string, int] { return e.places.all(kindRoom) }

// Conns yields every connection of this node, in no order; a Socket.IO client
// has one for each namespace that it joined. What comes and goes meanwhile may be missed or yielded.
func (e *Engine) Conns() iter.Seq[*Conn] { return e.places.conns() }

// Devices tells the connections of an audience. The error says what is wrong
// with a, or is ctx's; nobody there is no error.
func (e *Engine) Devices(ctx context.Context, a Audience) ([]Device, error) {
	conns, err := e.find(&a)
	if err != nil {
		return nil, err
	}
	var q *question
	if e.cluster != nil {
		if q, err = e.cluster.ask(nodemsg.Devices, &a, ""); err != nil {
			return nil, err
		}
	}
	devices := make([]Device, 0, len(conns))
	for _, c := range conns {
		devices = append(devices, c.device())
	}
	_, others, errs := q.wait(ctx)
	return append(devices, others...), cmp.Or(ctx.Err(), errors.Join(errs...))
}

// Nodes tells the nodes of the cluster as this one knows them, itself among
// them; nil without a cluster. It answers from memory.
func (e *Engine) Nodes() []Node {
	if e.cluster == nil {
		return nil
	}
	return e.cluster.nodes()
}

// node is this node's name, "" without a cluster.
func (e *Engine) node() string {
	if e.cluster == nil {
		return ""
	}
	return e.cluster.id()
}

// Ready is nil when this node serves. It is an error while it drains, after
// its end, and until it has reached a peer of its cluster or found none within
// the join time. For a /readyz route.
func (e *Engine) Ready() error {
	switch {
	case e.closed.Load():
		return ErrClosed
	case e.draining.Load():
		return errors.New("push: draining")
	case e.cluster != nil:
		return e.cluster.ready()
	}
	return nil
}

// Shutdown ends the engine politely: no new connections (503 with
// Retry-After; the listeners of Serve are closed), peers are told that this node drains, acks in flight are
// waited for, what is queued is flushed, connections are closed (1001; mpush
// without a word; a client that polls hears of it in its poll) spread
// over Config.Drain, hooks end, the cluster is left. Pushes work until the
// last connection is closed. At most half of ctx's time goes to acks in flight
// (without a deadline Limits.AckTimeout), and paced pushes give up what they
// have not sent. When ctx ends, everything is cut and its error is
// returned; a hook that never returns is then left behind. Call it before
// http.Server.Shutdown, which neither closes nor waits for WebSockets. It is
// safe to call it again, and at any time after New.
func (e *Engine) Shutdown(ctx context.Context) error {
	e.drain()
	half := e.cfg.Limits.AckTimeout // of what is left, so that there is time for goodbyes
	if until, ok := ctx.Deadline(); ok {
		half = time.Until(until) / 2
	}
	waiting, cancel := ctx, context.CancelFunc(func() {})
	if half > 0 {
		waiting, cancel = context.WithTimeout(ctx, half)
	}
	e.flights[0].Wait(waiting)
	cancel()
	released := make(chan error, 1)
	go func() {
		if e.cluster == nil {
			released <- nil
		} else {
			released <- e.cluster.release(ctx, e.cfg.Drain)
		}
	}()
	err := cmp.Or(e.closeAll(ctx), <-released)
	return cmp.Or(err, e.finish(ctx))
}

// Close ends the engine at once: sockets are cut, hooks that still run are not
// waited for. It is safe to call it again, also while Shutdown runs.
func (e *Engine) Close() error {
	e.drain()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	e.finish(ctx)
	return nil
}

// drain refuses new connections from now on.
func (e *Engine) drain() {
	if e.draining.Swap(true) {
		return
	}
	close(e.leaving)
	e.listeners.Close()
	e.unread.close()
	if e.cluster != nil {
		e.cluster.drain()
	}
}

// enter counts a transport in, unless the engine drains.
func (e *Engine) enter() bool {
	e.live.Add()
	if e.draining.Load() {
		e.live.Done()
		return false
	}
	return true
}

// closeAll tells every connection goodbye behind what was pushed to it, spread
// over Config.Drain, and waits until all are gone. One that enter let in just
// before the drain, and that is not seen here, says goodbye itself when it
// starts.
func (e *Engine) closeAll(ctx context.Context) error {
	for _, s := range e.shards {
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	var all []*transport
	for h := range e.driver.Handlers() {
		if t, ok := h.(*transport); ok {
			all = append(all, t)
		}
	}
	begin, latest := time.Now(), time.Duration(0)
	for _, t := range all {
		if d := t.device.Load(); d != nil && d.age(begin) >= 0 {
			latest = max(latest, youngest+time.Millisecond-d.age(begin)) // by a clock of milliseconds
		}
	}
	begin = begin.Add(latest)
	for i, t := range all {
		if due := e.cfg.Drain*time.Duration(i)/time.Duration(len(all)) - time.Since(begin); due > 0 {
			if err := sleep(ctx, due, e.cutting); err != nil {
				return err
			}
		}
		t.shut(ReasonShutdown, wire.GoingAway, "", false)
		t.hurry()
	}
	return e.live.Wait(ctx)
}

// finish cuts what is left and waits, until ctx ends, for everything of the
// engine to end: sockets, pushes, hooks, the cluster.
func (e *Engine) finish(ctx context.Context) error {
	e.closed.Store(true)
	for h := range e.driver.Handlers() {
		if t, ok := h.(*transport); ok {
			t.cut(ReasonShutdown)
		}
	}
	if e.cluster != nil {
		e.cluster.cut()
	}
	e.ending.Do(func() {
		close(e.cutting)
		go func() {
			defer close(e.done)
			e.driver.Close()
			e.live.Wait(context.Background())
			e.flights[0].Wait(context.Background())
			e.flights[1].Wait(context.Background())
			e.hooks.Wait(context.Background())
			if e.presence != nil {
				e.presence.close()
				e.hooks.Wait(context.Background())
			}
			if e.proxy != nil {
				e.proxy.Close()
			}
		}()
	})
	err := e.ended(ctx)
	if e.cluster != nil {
		e.cluster.leave(ctx)
	}
	return err
}

// ended waits until everything but the cluster has ended, or ctx has. What
// ends by itself ends within moments: also Close, whose ctx is over, gives it
// those, so that without a stuck hook nothing is left behind.
func (e *Engine) ended(ctx context.Context) error {
	grace := time.NewTimer(endGrace)
	defer grace.Stop()
	select {
	case <-e.done:
		return nil
	case <-grace.C:
	}
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// endGrace is how long Close waits for goroutines to end.
const endGrace = 100 * time.Millisecond

// sleep waits for d, or returns ctx's error, or ErrClosed when ended is closed.
func sleep(ctx context.Context, d time.Duration, ended <-chan struct{}) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-ended:
		return ErrClosed
	}
}

// hook runs a hook of the application: it counts and logs one that takes over
// a second, while it still runs, and recovers one that panics. It reports
// whether it panicked.
func (e *Engine) hook(name string, conn ConnID, f func()) (panicked bool) {
	slow := time.AfterFunc(slowHook, func() {
		e.stats.slowHooks.Add(1)
		e.log.Warn("push: slow hook", "hook", name, "conn", conn)
	})
	returned := false
	defer func() {
		slow.Stop()
		if returned {
			return
		}
		p := recover() // nil: runtime.Goexit, which goes on
		panicked = true
		e.stats.panics.Add(1)
		e.log.Error("push: hook panicked", "hook", name, "conn", conn, "panic", textOf(p), "stack", string(debug.Stack()))
	}()
	f()
	returned = true
	return false
}

// textOf is a panic's value as text, whatever its methods do.
func textOf(p any) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("a %T whose text panics", p)
		}
	}()
	switch v := p.(type) {
	case error:
		return v.Error()
	case fmt.Stringer:
		return v.String()
	}
	return fmt.Sprint(p)
}

const slowHook = time.Second

// Stats is what an engine holds now and has counted since New. As JSON, its
// names are snake_case.
type Stats struct {
	// Now.
	Sockets     int   `json:"sockets"`      // what Limits.MaxConns counts: the connections, and devices that are not bound
	Conns       int   `json:"conns"`        // pages (of Socket.IO one for each namespace), and devices that are bound or were and gave their user up
	Pending     int   `json:"pending"`      // upgrades whose login is undecided, mpush devices without a session, Socket.IO clients that are not connected
	Users       int   `json:"users"`        // that have a connection
	Rooms       int   `json:"rooms"`        // that have a connection in them
	Memberships int   `json:"memberships"`  // of connections in users, rooms and everyone
	QueuedBytes int64 `json:"queued_bytes"` // in connections' queues, and held
	Flights     int   `json:"flights"`      // pushes that wait for devices

	// Since New.
	Accepted    uint64            `json:"accepted"`
	Refused     map[string]uint64 `json:"refused"`     // logins and upgrades, by why: origin, unauthorized, later, max_conns, max_pending, max_conns_per_user, max_conns_per_addr, draining, bad_request, hijack, handshake (mpush), unknown_sid (a Socket.IO request whose session is not there, or not any more)
	Closed      map[Reason]uint64 `json:"closed"`      // connections, by why
	Pushes      uint64            `json:"pushes"`      // calls that were let through
	TooLarge    uint64            `json:"too_large"`   // calls over Limits.MaxPush
	Deliveries  map[string]uint64 `json:"deliveries"`  // pushes to devices, by status: where the push was called, and of rooms and all without an ack where the device is
	Limited     map[string]uint64 `json:"limited"`     // what a limit held back or ended, by which: message_rate and inbox (reading paused), fanout (a push waited), push_rate, acks_waiting, rooms, queue, stuck (WriteTimeout or TotalQueueBytes), message_timeout, max_message, pings, replies; of mpush: window (what it held was too much), binds (reading paused; also CONNECTs of Socket.IO), accept (a listener waited), login_timeout, handshakes (not answered), proxied; of Socket.IO: connect_timeout, namespaces (more than 8), connects (more than 100 refused)
	StrayAcks   uint64            `json:"stray_acks"`  // answers to nothing that waits: late, second, made up
	Received    uint64            `json:"received"`    // messages given to handlers
	Unhandled   uint64            `json:"unhandled"`   // messages for which there is no handler
	Discarded   uint64            `json:"discarded"`   // messages that still waited for their handler when their connection was kicked, replaced, refused, expired or had panicked
	Undecodable uint64            `json:"undecodable"` // messages that did not decode into a handler's type
	Ignored     uint64            `json:"ignored"`     // messages that mean nothing in their dialect, and those of devices that have not bound
	Detached    uint64            `json:"detached"`    // mpush devices that a newer login replaced; their sockets stay
	Panics      uint64            `json:"panics"`      // of hooks
	SlowHooks   uint64            `json:"slow_hooks"`  // over a second

	Cluster *ClusterStats `json:"cluster,omitempty"` // nil: this node is the only one
}

// refusedWhy is a counter of Stats.Refused.
type refusedWhy uint8

const (
	refusedOrigin refusedWhy = iota
	refusedUnauthorized
	refusedLater
	refusedMaxConns
	refusedMaxPending
	refusedMaxPerUser
	refusedMaxPerAddr
	refusedDraining
	refusedBadRequest
	refusedHijack
	refusedHandshake
	refusedSID
	refusals
)

var refusalNames = [refusals]string{"origin", "unauthorized", "later", "max_conns", "max_pending", "max_conns_per_user", "max_conns_per_addr", "draining", "bad_request", "hijack", "handshake", "unknown_sid"}

// limited is a counter of Stats.Limited.
type limited uint8

const (
	limitedMessageRate limited = iota
	limitedInbox
	limitedFanout
	limitedPushRate
	limitedAcks
	limitedRooms
	limitedQueue
	limitedStuck
	limitedMessageTimeout
	limitedMaxMessage
	limitedPings
	limitedReplies
	limitedWindow
	limitedBinds
	limitedAccept
	limitedLoginTimeout
	limitedHandshakes
	limitedProxied
	limitedConnectTimeout
	limitedNamespaces
	limitedConnects
	limits
)

var limitNames = [limits]string{"message_rate", "inbox", "fanout", "push_rate", "acks_waiting", "rooms", "queue", "stuck", "message_timeout", "max_message", "pings", "replies", "window", "binds", "accept", "login_timeout", "handshakes", "proxied", "connect_timeout", "namespaces", "connects"}

// reasons are the counters of Stats.Closed.
var reasons = [...]Reason{ReasonClient, ReasonLost, ReasonHeartbeat, ReasonProtocol, ReasonRefused, ReasonSlow, ReasonKicked, ReasonReplaced, ReasonExpired, ReasonPanic, ReasonShutdown}

func reasonIndex(why Reason) uint8 { return uint8(slices.Index(reasons[:], why)) }

// counters are what Stats tells.
type counters struct {
	pending, unopened, unjoined                          atomic.Int64           // logins of upgrades; mpush devices without a session; Socket.IO clients without a namespace
	dialects                                             [dialects]atomic.Int64 // connections that speak each
	accepted, pushes, tooLarge, strayAcks                atomic.Uint64
	received, unhandled, discarded, undecodable, ignored atomic.Uint64
	detached, panics, slowHooks                          atomic.Uint64
	refusals                                             [refusals]atomic.Uint64
	limits                                               [limits]atomic.Uint64
	closed                                               [len(reasons)]atomic.Uint64
	deliveries                                           [statuses]atomic.Uint64
}

func (s *counters) refused(why refusedWhy) { s.refusals[why].Add(1) }
func (s *counters) limit(which limited)    { s.limits[which].Add(1) }
func (s *counters) ended(why Reason)       { s.closed[reasonIndex(why)].Add(1) }

func (s *counters) delivered(status Status, n int) {
	if n > 0 {
		s.deliveries[status].Add(uint64(n))
	}
}

// Stats tells what the engine holds and has counted. It is cheap enough to be
// called every second.
func (e *Engine) Stats() Stats {
	c := &e.stats
	s := Stats{
		Sockets: e.live.Len(), Pending: int(c.pending.Load() + c.unopened.Load() + c.unjoined.Load()), QueuedBytes: e.driver.QueuedBytes() + e.held.Load(), Flights: e.flights[0].Len() + e.flights[1].Len(),
		Accepted: c.accepted.Load(), Pushes: c.pushes.Load(), TooLarge: c.tooLarge.Load(), StrayAcks: c.strayAcks.Load(),
		Received: c.received.Load(), Unhandled: c.unhandled.Load(), Discarded: c.discarded.Load(), Undecodable: c.undecodable.Load(), Ignored: c.ignored.Load(),
		Detached: c.detached.Load(), Panics: c.panics.Load(), SlowHooks: c.slowHooks.Load(),
		Limited: make(map[string]uint64), Refused: make(map[string]uint64), Closed: make(map[Reason]uint64), Deliveries: make(map[string]uint64),
	}
	s.Conns, s.Users, s.Rooms, s.Memberships = e.places.totals()
	if e.cluster != nil {
		s.Cluster = e.cluster.stats()
	}
	for i, name := range refusalNames {
		s.Refused[name] = c.refusals[i].Load()
	}
	for i, name := range limitNames {
		s.Limited[name] = c.limits[i].Load()
	}
	for i, why := range reasons {
		s.Closed[why] = c.closed[i].Load()
	}
	for status := Sent; status < statuses; status++ {
		s.Deliveries[status.String()] = c.deliveries[status].Load()
	}
	return s
}

// pushRate is the engine's own token bucket.
type pushRate struct {
	mu     sync.Mutex
	bucket rate.Bucket // guarded by mu
}

func (p *pushRate) take(perSecond int) bool {
	if perSecond <= 0 {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := float64(perSecond)
	return p.bucket.Take(rate.Limit{PerSecond: n, Burst: n}, time.Now()) == 0
}

package push

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/embedpush/push/client/js"
	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/intern"
	"github.com/embedpush/push/internal/lane"
	"github.com/embedpush/push/internal/mpush"
	"github.com/embedpush/push/internal/netio"
	"github.com/embedpush/push/internal/polling"
	"github.com/embedpush/push/internal/proxy"
	"github.com/embedpush/push/internal/pushjson"
	"github.com/embedpush/push/internal/rate"
	"github.com/embedpush/push/internal/sio"
	"github.com/embedpush/push/internal/table"
	"github.com/embedpush/push/internal/upgrade"
	"github.com/embedpush/push/internal/wire"
)

// ConnID names a connection, unique in the cluster. It is a string of 16
// hexadecimal digits as text and in JSON. 0 is no connection.
type ConnID uint64

func (id ConnID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// MarshalText writes String.
func (id ConnID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (id *ConnID) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil {
		return fmt.Errorf("push: %.20q is no connection id", b)
	}
	*id = ConnID(n)
	return nil
}

// Login is what a client says of itself and what the gate makes of it. UserID,
// DeviceID, OS, ClientVersion and Tags are the client's claims until
// Authenticate has set them.
//
// An mpush device brings them in its HANDSHAKE (DeviceID, OS, OSVersion and
// ClientVersion; the token of a fast connect keeps them) and in its BIND: the
// user, its data as Token, and its tags, split at commas.
//
// At a WebSocket upgrade the claims come from the query: user, device, os,
// version, tag (may be repeated), and token, which may as well come as
// "Authorization: Bearer" and then stays out of access logs. A later login
// brings its claims anew: device, os, version and tags of the one before are
// gone, and Data is nil; the rooms stay if the user does.
//
// A Socket.IO client's claims are the same, from the object of its CONNECT
// (user, token, device, os, version, tags) and, where that says nothing, from
// the query of the request that opened its session, and of a client 2.x from
// the query behind the namespace. userId is another name for user there.
type Login struct {
	Protocol  string          // "push.json", "push.msgpack", "mpush", "mpush.json" (mpush in JSON), "socket.io.4" (clients 2.x), "socket.io.5" (3.x and 4.x), "socket.io.msgpack"
	Namespace string          // of Socket.IO, such as "/chat". "": "/", and every other protocol
	UserID    string          // who the client says it is; "": it does not say
	Token     string          // its proof; not kept after Authenticate
	Auth      json.RawMessage // Socket.IO: the object that came with the CONNECT, {} without one; nil: another protocol. Not kept

	DeviceID, OS, ClientVersion string
	OSVersion                   string // mpush only

	Tags  []string // at most 32 of 64 bytes
	Rooms []string // for Authenticate to set: the connection is in them before anything else can happen to it; at most 256

	Remote  netip.AddrPort // the client's address; port 0 when Config.RemoteAddr told it
	Request *http.Request  // the upgrade's, only valid during Authenticate; nil for a later login and for mpush. Socket.IO: the one that opened the session, at every CONNECT, without a body
	Conn    *Conn          // the connection of a later login; nil for an upgrade, a device's first BIND, and Socket.IO
	Data    any            // for Authenticate to set: Conn.Data
	Expires time.Time      // for Authenticate to set: then the connection is closed (4401), within a second. Zero: never
}

// Cookie is the value of a cookie of the request, "" without one.
func (l *Login) Cookie(name string) string {
	if l.Request == nil {
		return ""
	}
	c, err := l.Request.Cookie(name)
	if err != nil {
		return ""
	}
	return c.Value
}

// Header is the first value of a header of the request, "" without one.
func (l *Login) Header(name string) string {
	if l.Request == nil {
		return ""
	}
	return l.Request.Header.Get(name)
}

// Query is the first value of a parameter of the request's URL, "" without
// one.
func (l *Login) Query(name string) string {
	if l.Request == nil {
		return ""
	}
	return l.Request.URL.Query().Get(name)
}

const (
	maxTags  = 32
	maxTag   = 64
	maxRooms = 256
	maxClass = 16
)

// check refuses what may not be kept.
func (l *Login) check() error {
	if l.UserID != "" {
		if err := checkName("user", l.UserID); err != nil {
			return err
		}
	}
	for _, field := range []struct{ what, value string }{{"device", l.DeviceID}, {"os", l.OS}, {"OS version", l.OSVersion}, {"version", l.ClientVersion}} {
		if err := checkText(field.what, field.value, 0, 256); err != nil {
			return err
		}
	}
	if len(l.Tags) > maxTags || len(l.Rooms) > maxRooms {
		return fmt.Errorf("push: %d tags and %d rooms, want at most %d and %d", len(l.Tags), len(l.Rooms), maxTags, maxRooms)
	}
	for _, tag := range l.Tags {
		if err := checkText("tag", tag, 1, maxTag); err != nil {
			return err
		}
	}
	for _, room := range l.Rooms {
		if err := checkName("room", room); err != nil {
			return err
		}
	}
	return nil
}

// identity is who a connection is. It is never changed, only replaced.
type identity struct {
	user     string
	*details // what few clients tell; nodetails for the others
}

type details struct {
	*traits
	device string
	stamp  uint64 // of this login as the newest of its class in the cluster; 0: it has no class, or there is no cluster
	*extra        // nothing for most
}

var (
	nodetails = newDetails(traits{}, "")
	anonymous = identity{details: &nodetails}
)

func newDetails(is traits, device string) details {
	return details{traits: knownTraits.Of(is, traits.clone), device: device, extra: &noextra}
}

// traits are what many clients have in common, who share them.
type traits struct {
	class                  string // of DeviceClass
	os, osVersion, version string
	space                  string // the Socket.IO namespace; "": "/". The same for all identities of a Conn
}

var knownTraits intern.Pool[traits]

// clone copies: a substring of a request would keep all of it.
func (is traits) clone() traits {
	return traits{strings.Clone(is.class), strings.Clone(is.os), strings.Clone(is.osVersion), strings.Clone(is.version), strings.Clone(is.space)}
}

// extra is what few clients have.
type extra struct {
	tags    []string
	data    any
	expires int64 // Login.Expires in Unix nanoseconds, 0: never
}

var noextra extra

// newIdentity keeps copies: a substring of a request would keep all of it.
func newIdentity(user, class string, l *Login) *identity {
	user = strings.Clone(user)
	if class == "" && l.Namespace == "" && l.DeviceID == "" && l.OS == "" && l.OSVersion == "" && l.ClientVersion == "" && len(l.Tags) == 0 && l.Data == nil && l.Expires.IsZero() {
		return &identity{user, &nodetails}
	}
	both := &struct { // one object takes less than two
		identity
		of details
	}{of: newDetails(traits{class, l.OS, l.OSVersion, l.ClientVersion, l.Namespace}, strings.Clone(l.DeviceID))}
	who := &both.identity
	who.user, who.details = user, &both.of
	if len(l.Tags) == 0 && l.Data == nil && l.Expires.IsZero() {
		return who
	}
	who.extra = &extra{tags: cloneAll(l.Tags), data: l.Data}
	switch year := l.Expires.Year(); { // what does not fit has been, or never comes
	case l.Expires.IsZero() || year >= 2200:
	case year < 1970:
		who.expires = 1
	default:
		who.expires = max(1, l.Expires.UnixNano())
	}
	return who
}

// unbound is what is kept of a login at its end: no class, Data and Expires.
func (d *details) unbound() *details {
	is := *d.traits
	is.class = ""
	u := newDetails(is, d.device)
	if len(d.tags) > 0 {
		u.extra = &extra{tags: d.tags}
	}
	return &u
}

func cloneAll(list []string) []string {
	var kept []string
	for _, s := range list {
		kept = append(kept, strings.Clone(s))
	}
	return kept
}

// Conn is one connection as the application sees it: who it is, where it is,
// what it owes an answer to. Its methods are safe for concurrent use.
type Conn struct {
	// All of it is one cache line, 64 bytes, for a broadcast is bound by memory,
	// not by instructions.

	// Static.
	t       *transport
	id      ConnID
	dialect dialect // t's
	shard   uint8   // whose worker writes to it

	everywhere bool // guarded by its stripe's lock, and written under mu: it is in everyone
	parted     bool // written by greet, then owned by the lane: OnDisconnect ran, or never will: it ended before OnConnect

	// Guarded by mu.
	ended   bool // in no place ever again
	greeted bool // OnConnect runs, or ran, or would: OnDisconnect will
	oking   bool // the OK to its BIND is not sent yet
	kickDue bool // and it was replaced meanwhile

	mark    uint32        // the shard's worker's: the last walk that took it
	state   atomic.Uint32 // holding, or gone and why; see its methods
	mu      sync.Mutex
	who     atomic.Pointer[identity] // written under mu
	members *member                  // guarded by mu: where it is
	waits   *waits                   // guarded by mu: &nothing while nothing does
}

// In Conn.state: that pushes go to held, and, below it, why it ends, so that no
// push is taken any more, not even after one that was lost: an index of reasons
// and one, 0 while it lives.
const holding = 1 << 8

// holdLocked has pushes go to held, or not any more. c.mu is held.
func (c *Conn) holdLocked(yes bool) {
	if yes {
		c.state.Or(holding)
	} else {
		c.state.And(^uint32(holding))
	}
}

func (c *Conn) gone() bool { return c.state.Load()%holding != 0 }

// markGone notes why it ends, and tells whether it was the first to do so.
func (c *Conn) markGone(why Reason) bool {
	for {
		state := c.state.Load()
		if state%holding != 0 {
			return false
		}
		if c.state.CompareAndSwap(state, state+1+uint32(reasonIndex(why))) {
			return true
		}
	}
}

// waits is what waits for a connection. Its Conn's mu guards it.
type waits struct {
	acks acks  // unanswered pushes
	out  int   // of them, those written through the window
	held *held // while holding
	life *life // of Context; nil: nobody has asked for its end
}

// nothing is not to be changed.
var nothing waits

// waitsLocked is what a connection keeps there from now on.
func (c *Conn) waitsLocked() *waits {
	if c.waits == &nothing {
		c.waits = new(waits)
	}
	return c.waits
}

// restLocked lets go of it when nothing waits any more.
func (c *Conn) restLocked() {
	if w := c.waits; w.acks.len() == 0 && w.held == nil && w.life == nil {
		c.waits = &nothing
	}
}

// held is what waits: for OnConnect to be done, or for the client to answer
// what it has.
type held struct {
	relay      sync.Mutex // who writes what was held: relay, or an end that flushes. Taken before Conn.mu
	connecting bool       // guarded by Conn.mu: OnConnect runs, and pushes of others wait for it
	writing    bool       // guarded by Conn.mu: relay has taken some and not written them yet
	first      []heldPush // guarded by Conn.mu: what OnConnect pushed and the window holds back
	pushes     []heldPush // guarded by Conn.mu: everybody else's
	bytes      int        // guarded by Conn.mu: of both, a push counts queueCost extra
}

type heldPush struct {
	frame []byte
	ack   uint32 // 0: none wanted
}

// ackWait is who waits for an answer.
type ackWait struct {
	flight *flight
	index  int32
	out    bool // it has a place in the window
}

// acks are ackWaits by their pushes' ids, none of which is 0. Most connections
// have one at a time.
type acks struct {
	id   uint32 // of one; 0: it is free
	one  ackWait
	rest map[uint32]ackWait // nil when there are none
}

func (a *acks) len() int {
	n := len(a.rest)
	if a.id != 0 {
		n++
	}
	return n
}

func (a *acks) get(id uint32) (w ackWait, ok bool) {
	if id != 0 && a.id == id {
		return a.one, true
	}
	w, ok = a.rest[id]
	return w, ok
}

// set adds one, or replaces it.
func (a *acks) set(id uint32, w ackWait) {
	switch _, there := a.rest[id]; {
	case a.id == id, a.id == 0 && !there:
		a.id, a.one = id, w
	default:
		if a.rest == nil {
			a.rest = make(map[uint32]ackWait)
		}
		a.rest[id] = w
	}
}

// remove removes one that is there.
func (a *acks) remove(id uint32) {
	if a.id == id {
		a.id, a.one = 0, ackWait{}
	} else if delete(a.rest, id); len(a.rest) == 0 {
		a.rest = nil
	}
}

func (a *acks) all(yield func(ackWait) bool) {
	if a.id != 0 && !yield(a.one) {
		return
	}
	for _, w := range a.rest {
		if !yield(w) {
			return
		}
	}
}

// ID is the connection's id.
func (c *Conn) ID() ConnID { return c.id }

// UserID is whose connection it is, "" for nobody's.
func (c *Conn) UserID() string { return c.who.Load().user }

// Login is the login that made it whose it is: without its Token, Auth, Rooms,
// Request and Conn, which are not kept. Its slices are not to be changed.
func (c *Conn) Login() Login {
	who := c.who.Load()
	l := Login{
		Protocol: c.Protocol(), Namespace: who.space, UserID: who.user, DeviceID: who.device, OS: who.os, OSVersion: who.osVersion, ClientVersion: who.version,
		Tags: who.tags, Remote: c.t.remoteAddr(), Data: who.data,
	}
	if who.expires != 0 {
		l.Expires = time.Unix(0, who.expires)
	}
	return l
}

// Data is what Authenticate left in Login.Data.
func (c *Conn) Data() any { return c.who.Load().data }

// Namespace is Login.Namespace: a Socket.IO client has a Conn for each
// namespace that it joined.
func (c *Conn) Namespace() string { return c.who.Load().space }

// Protocol is Login.Protocol.
func (c *Conn) Protocol() string { return protocols[c.dialect] }

// Context ends when the connection does.
func (c *Conn) Context() context.Context { return (*connContext)(c) }

// closedChan is closed.
var closedChan = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// connContext is a Conn's Context. It takes nothing until somebody asks for
// Done: then there is a life, which package context also finds by Value, so
// that it needs no goroutine for a context made of this one.
type connContext Conn

type life struct {
	context.Context
	end context.CancelFunc
}

func (*connContext) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }
func (x *connContext) String() string                        { return "push.Conn " + x.id.String() }

func (x *connContext) Done() <-chan struct{} {
	c := (*Conn)(x)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waits.life == nil {
		if c.ended {
			return closedChan
		}
		l := new(life)
		l.Context, l.end = context.WithCancel(context.Background())
		c.waitsLocked().life = l
	}
	return c.waits.life.Done()
}

func (x *connContext) Err() error {
	c := (*Conn)(x)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return context.Canceled
	}
	return nil
}

func (x *connContext) Value(key any) any {
	c := (*Conn)(x)
	c.mu.Lock()
	life := c.waits.life
	c.mu.Unlock()
	if life == nil {
		return nil
	}
	return life.Value(key)
}

// Push pushes m to this connection alone. It goes before what others push
// while OnConnect runs. The errors are those of Engine.Push; after the
// connection's end it is ErrOffline.
func (c *Conn) Push(ctx context.Context, m Message) (Delivery, error) {
	s := scratches.Get().(*scratch)
	defer s.release()
	var p encoded
	if err := c.t.e.admitPush(ctx, &p, &m, s); err != nil {
		return Delivery{}, err
	}
	p.space = c.Namespace()
	conns := [1]*Conn{c}
	r, err := c.t.e.pushDevices(context.WithValue(ctx, connectingKey{}, c), conns[:], nil, nil, &m, &p, nil)
	if len(r.Deliveries) == 0 { // Async
		var d Delivery
		c.describe(&d)
		return d, err
	}
	return r.Deliveries[0], err
}

// connectingKey marks the context of OnConnect with its Conn, whose pushes to
// it go before those of others.
type connectingKey struct{}

func connecting(ctx context.Context) *Conn {
	c, _ := ctx.Value(connectingKey{}).(*Conn)
	return c
}

// Bind makes the connection userID's, as a login would: another user's
// connection leaves that user and every room, userID's own keeps them. What
// its login told (DeviceID, Tags, Data, Expires) stays. It asks DeviceClass, on the caller's goroutine, but not
// Authenticate. Errors: ErrClosed, ErrLimit (MaxConnsPerUser), ctx's, or one
// that says what is wrong with userID.
func (c *Conn) Bind(ctx context.Context, userID string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName("user", userID); err != nil {
		return err
	}
	l := c.Login()
	l.UserID, l.Conn = userID, c
	class, err := c.t.e.class(&l)
	if err != nil {
		return err
	}
	c.flushed()
	return c.bind(newIdentity(userID, class, &l), nil)
}

// Unbind takes the connection out of its user and of every room, as a logout
// does. It stays connected, without a user, Data and Expires; its Tags stay. A
// page goes on hearing what is for everyone; an mpush device hears nothing
// but Conn.Push until it binds again.
func (c *Conn) Unbind() {
	c.flushed()
	c.mu.Lock()
	old := c.who.Load()
	c.who.Store(&identity{details: old.unbound()})
	c.leaveLocked(func(k placeKey) bool { return k.kind.in() != kindAll || c.dialect.device() })
	dropped := c.dropLocked()
	c.mu.Unlock()
	dropped()
	c.t.e.loggedOut(old)
}

// dropLocked takes out what is held of a device that is another user's from
// now on, or nobody's: it was for the one before. What it returns settles
// that, without the lock.
func (c *Conn) dropLocked() (settle func()) {
	if c.waits.held == nil || !c.dialect.device() {
		return func() {}
	}
	var dropped []ackWait
	for _, p := range c.emptyLocked(c.waits.held) {
		if w, ok := c.waits.acks.get(p.ack); ok {
			c.waits.acks.remove(p.ack)
			dropped = append(dropped, w)
		}
	}
	return func() {
		for _, w := range dropped {
			w.flight.settle(int(w.index), Offline, nil)
		}
	}
}

// Join puts the connection into rooms. Errors: ErrClosed, ErrLimit (256 rooms
// a connection), or one that says what is wrong with a name; then it is in the
// rooms before it.
func (c *Conn) Join(rooms ...string) error {
	c.flushed()
	for _, room := range rooms {
		if err := checkName("room", room); err != nil {
			return err
		}
		if _, err := c.join(room); err != nil {
			return err
		}
	}
	return nil
}

// Leave takes the connection out of rooms.
func (c *Conn) Leave(rooms ...string) {
	c.flushed()
	for _, room := range rooms {
		c.leave(room)
	}
}

// Rooms tells the rooms the connection is in, in no order.
func (c *Conn) Rooms() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	rooms := []string{}
	for m := c.members; m != nil; m = m.next {
		if k := m.key(); k.kind.in() == kindRoom {
			rooms = append(rooms, k.local())
		}
	}
	return rooms
}

// SetTags replaces the connection's tags: at most 32 of 64 bytes. The error
// says what is wrong with them.
func (c *Conn) SetTags(tags ...string) error {
	l := Login{Tags: tags}
	if err := l.check(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.who.Load()
	d, more := *old.details, *old.extra
	more.tags, d.extra = cloneAll(tags), &more
	c.who.Store(&identity{old.user, &d})
	return nil
}

// Close ends the connection as Engine.Kick does, a Socket.IO client's in all its
// namespaces, behind what was pushed before. It does not wait for that, and has no effect on a connection that
// has ended.
func (c *Conn) Close(text string) {
	shut := func() { c.shut(ReasonKicked, wire.Kicked, text) }
	if s := c.t.e.shards[c.shard]; s.pending.Load() > 0 {
		s.post(context.Background(), &item{behind: shut}) // costs nothing, so it never waits
	} else {
		shut()
	}
}

// shut ends the connection and its transport, unless it has ended: then the
// transport may carry another.
func (c *Conn) shut(why Reason, code wire.Code, text string) bool {
	return !c.gone() && c.t.shut(why, code, text, false)
}

// why is the reason for its end, "" while it lives.
func (c *Conn) why() Reason {
	if i := c.state.Load() % holding; i > 0 {
		return reasons[i-1]
	}
	return ""
}

// describe fills in who a delivery is for.
func (c *Conn) describe(d *Delivery) {
	who := c.who.Load()
	d.UserID, d.DeviceID, d.Node, d.Protocol, d.Conn = who.user, who.device, c.t.e.node(), c.Protocol(), c.id
}

func (c *Conn) device() Device {
	who := c.who.Load()
	return Device{
		UserID: who.user, DeviceID: who.device, Node: c.t.e.node(), Protocol: c.Protocol(), Namespace: c.Namespace(),
		Conn: c.id, OS: who.os, Version: who.version, Tags: slices.Clone(who.tags),
	}
}

// flushed waits until what was pushed to many before is written, so that it
// goes to who was there when it was pushed. No worker waits for anything.
func (c *Conn) flushed() { c.t.e.shards[c.shard].flush(context.Background()) }

// bind makes the connection who's and puts it into rooms. Whom it replaces is
// closed.
func (c *Conn) bind(who *identity, rooms []string) error {
	replaced, dropped, err := c.bindLocked(who, rooms)
	if dropped != nil {
		dropped()
	}
	for _, old := range replaced {
		old.t.replaced(old, old.who.Load().device == who.device)
	}
	return err
}

func (c *Conn) bindLocked(who *identity, rooms []string) (replaced []*Conn, dropped func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, nil, ErrClosed
	}
	e, old := c.t.e, c.who.Load()
	if who.expires != 0 {
		e.expiring.Store(true)
	}
	key := keyOf(who.space, kindUser, who.user)
	if who.class != "" && who.class == old.class && who.user == old.user {
		who.stamp = old.stamp
	}
	admit := func(pl *place) error {
		if replaced, err = e.makeRoom(pl, c, who); err == nil {
			if who.class != "" && who.user != "" && e.cluster != nil {
				who.stamp = e.cluster.login(key, who)
			}
			c.who.Store(who) // before the next one of its class looks
		}
		return err
	}
	defer func() {
		if c.who.Load() == who && who.stamp != old.stamp {
			e.loggedOut(old)
		}
	}()
	switch {
	case who.user != old.user:
		var m *member
		if who.user != "" {
			if m, err = e.places.add(c, key, admit); err != nil {
				return nil, nil, err
			}
		}
		c.leaveLocked(func(k placeKey) bool { return k.kind.in() != kindAll })
		if old.user != "" {
			dropped = c.dropLocked()
		}
		if m != nil {
			m.next, c.members = c.members, m
			if who.space != "" {
				c.addLocked(placeKey{kindElsewhere, who.user})
			}
			if old.user == "" && c.dialect.device() {
				c.addLocked(everyone)
			}
		}
	case who.class != old.class:
		if err = e.places.ask(key, admit); err != nil {
			return nil, nil, err
		}
	}
	c.who.Store(who)
	for _, room := range rooms {
		if _, err := c.joinLocked(room); err != nil {
			return replaced, dropped, err
		}
	}
	return replaced, dropped, nil
}

// loggedOut takes back what the cluster was told of a login, if it was.
func (e *Engine) loggedOut(who *identity) {
	if who.stamp != 0 {
		e.cluster.logout(keyOf(who.space, kindUser, who.user), who.class, who.stamp)
	}
}

// loginLost ends the login of a class that a newer one on another node has
// replaced; device is the tag of the one that came.
func (e *Engine) loginLost(key placeKey, class string, stamp, device uint64) {
	for _, c := range e.places.collect(nil, key) {
		if who := c.who.Load(); who.class == class && who.stamp == stamp {
			c.t.replaced(c, deviceTag(who.device) == device)
		}
	}
}

// makeRoom is asked before c joins its user's place pl, under its stripe's
// lock: it tells whom c replaces, or that there are too many.
func (e *Engine) makeRoom(pl *place, c *Conn, who *identity) (replaced []*Conn, err error) {
	if pl == nil {
		return nil, nil
	}
	n := pl.size()
	for m := range pl.each {
		switch {
		case m.conn == c:
			n--
		case who.class != "":
			if other := m.conn.who.Load(); other.class == who.class && other.user == who.user { // another user: it is about to leave
				replaced = append(replaced, m.conn)
				n--
			}
		}
	}
	if limit := e.cfg.Limits.MaxConnsPerUser; limit > 0 && n >= limit {
		return nil, fmt.Errorf("%w: %d connections of one user", ErrLimit, limit)
	}
	return replaced, nil
}

func (c *Conn) join(room string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.joinLocked(room)
}

// joinLocked tells whether the connection was not in the room before.
func (c *Conn) joinLocked(room string) (bool, error) {
	if c.ended {
		return false, ErrClosed
	}
	key, rooms := keyOf(c.Namespace(), kindRoom, room), 0
	for m := c.members; m != nil; m = m.next {
		if m.key() == key {
			return false, nil
		}
		if m.kind.in() == kindRoom {
			rooms++
		}
	}
	if rooms >= maxRooms {
		c.t.e.stats.limit(limitedRooms)
		return false, fmt.Errorf("%w: %d rooms of one connection", ErrLimit, maxRooms)
	}
	c.addLocked(key)
	return true, nil
}

// addLocked puts the connection into a place where it is not.
func (c *Conn) addLocked(key placeKey) {
	if key == everyone {
		c.t.e.places.enter(c)
		return
	}
	m, _ := c.t.e.places.add(c, key, nil)
	m.next, c.members = c.members, m
}

func (c *Conn) leave(room string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := keyOf(c.Namespace(), kindRoom, room)
	return c.leaveLocked(func(k placeKey) bool { return k == key })
}

// leaveLocked leaves the places that match, and tells whether there were any.
func (c *Conn) leaveLocked(match func(placeKey) bool) bool {
	left := false
	if c.everywhere && match(everyone) {
		c.t.e.places.exit(c)
		left = true
	}
	for at := &c.members; *at != nil; {
		m := *at
		if !match(m.key()) {
			at = &m.next
			continue
		}
		*at = m.next
		c.t.e.places.remove(m)
		left = true
	}
	return left
}

// push hands a push to the connection that wants no answer: written or queued
// (Sent), or why not. One that is too slow for it is closed.
func (c *Conn) push(p *encoded, first bool) Status {
	status := c.write(p, 0, first)
	if status == Slow {
		c.t.overflow()
	}
	return status
}

// write is push for any push, and leaves the closing to the caller. What
// OnConnect pushes is first; the rest waits until it is done.
func (c *Conn) write(p *encoded, ack uint32, first bool) Status {
	state := c.state.Load()
	if state%holding != 0 {
		return Offline
	}
	frame, status := p.frame(c.dialect)
	if status != 0 {
		return status
	}
	if c.dialect == dialectMPush {
		frame = c.t.device.Load().session.Seal(frame)
	}
	if state >= holding || ack != 0 && c.dialect.device() {
		if status := c.hold(frame, ack, first); status != 0 {
			return status
		}
	}
	switch err := c.t.nc.Write(frame); err {
	case nil:
		return Sent
	case netio.ErrSlow:
		return Slow
	default:
		return Offline
	}
}

// queueCost is what a queued message counts besides its bytes.
const queueCost = 64

// hold keeps a frame that has to wait. The zero Status: it has not to, and the
// caller writes it.
func (c *Conn) hold(frame []byte, ack uint32, first bool) Status {
	l := &c.t.e.cfg.Limits
	cost := len(frame) + queueCost
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return Offline
	}
	h := c.waits.held
	switch {
	case h != nil && !(first && h.connecting && len(h.first) == 0 && !h.writing):
	case ack != 0 && !c.windowLocked(ack, len(frame)):
	default:
		return 0
	}
	if h == nil {
		h = new(held)
		c.waitsLocked().held = h
		c.holdLocked(true)
	}
	if n := len(h.first) + len(h.pushes); n > 0 && (l.QueueBytes > 0 && h.bytes+cost > l.QueueBytes || l.QueueMessages > 0 && n >= l.QueueMessages) ||
		!c.t.e.keepHeld(cost) {
		if ack != 0 && c.dialect.device() {
			c.t.e.stats.limit(limitedWindow)
			return Overloaded
		}
		return Slow
	}
	if first && h.connecting {
		h.first = append(h.first, heldPush{frame, ack})
	} else {
		h.pushes = append(h.pushes, heldPush{frame, ack})
	}
	h.bytes += cost
	return Sent
}

// windowLocked gives a push that wants an ack a place among those a client is
// to have unanswered at a time, if there is one. Who has it writes the push.
// Large ones are fewer: all but the first have to fit into the queue.
func (c *Conn) windowLocked(ack uint32, size int) bool {
	window := c.t.e.cfg.MPush.Window
	if !c.dialect.device() || window <= 0 {
		return true
	}
	w, there := c.waits.acks.get(ack)
	switch {
	case !there || w.out: // given up meanwhile
	case c.waits.out >= window, c.waits.out > 0 && !c.fits(size):
		return false
	default:
		w.out = true
		c.waits.acks.set(ack, w)
		c.waits.out++
	}
	return true
}

// fits reports whether the driver's queue has room for a frame.
func (c *Conn) fits(size int) bool {
	limit := c.t.e.cfg.Limits.QueueBytes
	bytes, _ := c.t.nc.Queued()
	return limit <= 0 || bytes == 0 || bytes+size+queueCost <= limit
}

// keepHeld takes n bytes for a push that is held, unless all of them together
// are over TotalQueueBytes.
func (e *Engine) keepHeld(n int) bool {
	total := int64(e.cfg.Limits.TotalQueueBytes)
	if e.held.Add(int64(n)) > total && total > 0 {
		e.held.Add(-int64(n))
		return false
	}
	return true
}

// unhold takes a push that wants an ack out of what is held.
func (c *Conn) unhold(ack uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := c.waits.held
	if held == nil {
		return false
	}
	for _, list := range [...]*[]heldPush{&held.first, &held.pushes} {
		for i, h := range *list {
			if h.ack == ack {
				*list = slices.Delete(*list, i, i+1)
				c.freeHeldLocked(held, h)
				return true
			}
		}
	}
	return false
}

func (c *Conn) freeHeldLocked(h *held, p heldPush) {
	h.bytes -= len(p.frame) + queueCost
	c.t.e.held.Add(-int64(len(p.frame) + queueCost))
}

// release ends the holding back for OnConnect.
func (c *Conn) release() {
	c.mu.Lock()
	if h := c.waits.held; h != nil {
		h.connecting = false
	}
	c.mu.Unlock()
	c.relay()
}

// relay writes what was held as far as it may go, and when nothing is left,
// everything goes at once from then on.
func (c *Conn) relay() {
	c.mu.Lock()
	h := c.waits.held
	c.mu.Unlock()
	if h == nil {
		return
	}
	h.relay.Lock()
	defer h.relay.Unlock()
	for {
		pushes := c.next(h)
		if len(pushes) == 0 {
			return
		}
		for i, p := range pushes {
			if c.t.nc.Write(p.frame) == netio.ErrSlow {
				for _, unsent := range pushes[i:] {
					if w, ok, _ := c.takeAck(unsent.ack); ok {
						w.flight.settle(int(w.index), Slow, nil)
					}
				}
				c.t.overflow()
				return
			}
		}
	}
}

// next takes out of h what may be written now.
func (c *Conn) next(h *held) (pushes []heldPush) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waits.held != h || c.ended {
		return nil
	}
	take := func(list *[]heldPush) bool {
		for len(*list) > 0 && len(pushes) < chunk {
			p := (*list)[0]
			if p.ack != 0 && !c.windowLocked(p.ack, len(p.frame)) {
				return false
			}
			(*list)[0] = heldPush{}
			*list = (*list)[1:]
			c.freeHeldLocked(h, p)
			pushes = append(pushes, p)
		}
		return len(*list) == 0
	}
	if take(&h.first) && !h.connecting && take(&h.pushes) && len(pushes) == 0 {
		c.waits.held = nil
		c.restLocked()
		c.holdLocked(false)
	}
	h.writing = len(pushes) > 0
	return pushes
}

// expect notes that f's delivery i waits for an answer. Sent: noted.
func (c *Conn) expect(ack uint32, f *flight, i int) Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return Offline
	}
	if limit := c.t.e.cfg.Limits.AcksWaiting; limit > 0 && c.waits.acks.len() >= limit {
		c.t.e.stats.limit(limitedAcks)
		return Overloaded
	}
	waits := c.waitsLocked()
	if old, ok := waits.acks.get(ack); ok { // 2^30 pushes ago
		if old.out {
			waits.out--
		}
		defer old.flight.settle(int(old.index), Timeout, nil)
	}
	waits.acks.set(ack, ackWait{flight: f, index: int32(i)})
	return Sent
}

// forget ends the waiting for an answer, and tells whether there was any.
// Whoever ends it has to settle the delivery.
func (c *Conn) forget(ack uint32) bool {
	_, ok, more := c.takeAck(ack)
	if more {
		c.relay()
	}
	return ok
}

// takeAck ends the waiting for an answer. more: there is room in the window
// for what is held, and it is for the caller to relay it.
func (c *Conn) takeAck(ack uint32) (w ackWait, ok, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok = c.waits.acks.get(ack)
	if ok {
		if w.out {
			c.waits.out--
			more = c.waits.held != nil
		}
		c.waits.acks.remove(ack)
		c.restLocked()
	}
	return w, ok, more
}

// acked settles the push that the client answered, if one waits for it.
func (c *Conn) acked(id uint64, v wire.Value) bool {
	if id >= 2*firstAck {
		return false
	}
	w, ok, more := c.takeAck(uint32(id))
	if !ok {
		return false
	}
	if more {
		defer c.relay()
	}
	var reply json.RawMessage
	if v.JSON != nil || v.Bytes != nil || len(v.Args) > 0 {
		reply = appendJSON(nil, v)
	}
	if e := c.t.e; !e.keepReply(w.flight, len(reply)) {
		e.stats.limit(limitedReplies)
		w.flight.settle(int(w.index), Gone, nil)
		c.t.fail(&wire.Error{Code: wire.Policy, Text: "answers too large"})
		return true
	}
	w.flight.settle(int(w.index), Acked, reply)
	return true
}

// appendJSON appends a value as JSON: several arguments as an array, opaque
// bytes as a base64 string.
func appendJSON(dst []byte, v wire.Value) []byte {
	switch {
	case v.JSON != nil:
		return append(dst, v.JSON...)
	case v.Bytes != nil:
		return append(base64.StdEncoding.AppendEncode(append(dst, '"'), v.Bytes), '"')
	case v.Args == nil:
		return append(dst, jsonNull...)
	}
	dst = append(dst, '[')
	for i, arg := range v.Args {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendJSON(dst, arg)
	}
	return append(dst, ']')
}

// end takes the connection out of every place for good. What was held is
// written with flush; what was written and not answered is Gone. It tells
// whether it was the first to end the connection, whose reason counts; to the
// others it returns when the connection is in no place any more.
func (c *Conn) end(why Reason, flush bool) (first bool) {
	first = c.markGone(why)
	why = c.why() // the first one's
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return first
	}
	c.ended = true
	c.leaveLocked(func(placeKey) bool { return true })
	had, h, greeted := *c.waits, c.waits.held, c.greeted
	acks, out := had.acks, had.out
	if c.waits = &nothing; had.life != nil {
		had.life.end()
		c.waits = &waits{life: had.life} // Done is to return the same again
	}
	var waiting []heldPush
	if h != nil && !flush {
		waiting = c.emptyLocked(h)
	}
	c.mu.Unlock()

	e := c.t.e
	e.places.removeConn(c)
	e.loggedOut(c.who.Load())
	e.stats.dialects[c.dialect].Add(-1)
	if h != nil {
		if flush { // behind what relay is writing
			h.relay.Lock()
			defer h.relay.Unlock()
			c.mu.Lock()
			waiting = c.emptyLocked(h)
			c.mu.Unlock()
		}
		window := e.cfg.MPush.Window
		for _, p := range waiting {
			if flush && p.ack != 0 && c.dialect.device() && window > 0 {
				out++
				flush = out <= window
			}
			if flush && c.t.nc.Write(p.frame) == nil {
				continue
			}
			flush = false
			if w, ok := acks.get(p.ack); ok {
				acks.remove(p.ack)
				w.flight.settle(int(w.index), Offline, nil)
			}
		}
	}
	for w := range acks.all {
		w.flight.settle(int(w.index), Gone, nil)
	}
	if greeted && e.cfg.OnDisconnect != nil {
		c.t.lane.Always(func() {
			c.parted = true
			e.hook("OnDisconnect", c.id, func() { e.cfg.OnDisconnect(c, why) })
		}, c.t)
	}
	return first
}

// emptyLocked takes everything out of what is held.
func (c *Conn) emptyLocked(h *held) []heldPush {
	all := append(h.first, h.pushes...)
	c.t.e.held.Add(-int64(h.bytes))
	h.first, h.pushes, h.bytes = nil, nil, 0
	return all
}

// transport is one socket, or one session of HTTP polling: the driver's
// connection, the protocol's state and the lane on which its hooks run. It
// carries one Conn at a time: a page's from the beginning, an mpush device's
// from its first BIND, and another one when it binds after it was replaced;
// of Socket.IO one for each namespace that the client has joined.
type transport struct {
	// Static after start.
	e       *Engine
	nc      netio.Conn
	session wire.Session // what it speaks; see speaks, and socketio

	conn   atomic.Pointer[Conn]   // the last one; nil: there was none. Stored by newConn
	device atomic.Pointer[device] // nil: it does not speak mpush

	ends     atomic.Uint32 // why it ends, an index of reasons and one; 0 while it lives
	counted  bool          // static: its address is, by e.addrs
	broken   bool          // owned by Data: the peer broke the protocol, nothing of it is read any more
	owes     uint8         // owned by Data: messages that rate has not paid for yet; one of a device or of Socket.IO counts for each 8 KiB that it became
	stalled  atomic.Bool   // reading stopped because the lane is full
	rate     rate.Bucket   // owned by Data: of messages
	pings    rate.Bucket   // owned by Data
	nextPing uint32        // owned by Tick: by the clock of millis
	begun    atomic.Uint32 // when the message that Feed holds a part of began, by that clock; 0: none
	part     uint32        // owned by Data: how many bytes of it came

	lane lane.Lane
}

// device is what a transport of mpush has besides.
type device struct {
	// Static, but for debt.
	session *mpush.Session
	began   uint32 // when it was accepted, or turned to mpush, by the clock of millis
	ws      bool   // its packets come in WebSocket messages
	debt    bool   // owned by Data: a BIND that binds has not paid for yet

	opening atomic.Bool                 // the session's Open runs, and nothing is read
	counted atomic.Bool                 // it is counted out of those that are not open
	lingers atomic.Bool                 // it ends, and has some seconds to close its side itself
	proxied atomic.Int32                // HTTP requests that run
	is      atomic.Pointer[details]     // what it said of itself; if that is all, its identity's. nil: HANDSHAKE or FAST_CONNECT was not answered yet. Stored on the lane
	bind    atomic.Pointer[bindRequest] // the BIND that is not answered yet

	// Owned by Data.
	beats rate.Bucket // heartbeats of any kind
	binds rate.Bucket
}

// age is how long ago it was accepted. It is negative if that was after now,
// which a sweep may have begun with, and after more than 24 days.
func (d *device) age(now time.Time) time.Duration {
	return time.Duration(int32(millis(now)-d.began)) * time.Millisecond
}

// asking lets the end of a transport end the context of its Authenticate.
type asking struct {
	stop atomic.Pointer[context.CancelFunc]
}

// begin makes that context, which ends after d as well, if that is not 0.
func (a *asking) begin(t *transport, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		d = 365 * 24 * time.Hour
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	a.stop.Store(&cancel)
	if t.ending() {
		cancel()
	}
	return ctx, func() { a.stop.Store(nil); cancel() }
}

func (a *asking) end() {
	if stop := a.stop.Load(); stop != nil {
		(*stop)()
	}
}

// bindRequest is a BIND with the time it came, and what ends the asking about
// it.
type bindRequest struct {
	id      uint64
	claim   *wire.LoginClaim
	at      time.Time
	*asking // the one before's if that is not answered either: it is asked about first
}

// closeWait is how long a peer may take to read our goodbye and say its own.
const closeWait = time.Second

// speaks is what the transport speaks now: that may change once, from
// push.json to mpush.
func (t *transport) speaks() wire.Session {
	if d := t.device.Load(); d != nil {
		return d.session
	}
	return t.session
}

// newTransport makes the transport of a connection that the engine counted in.
func (e *Engine) newTransport(session wire.Session, counted bool) *transport {
	return &transport{e: e, session: session, counted: counted}
}

// drive gives the transport its socket; from here on Closed counts it out.
func (t *transport) drive(nc net.Conn, remote netip.AddrPort) {
	t.e.stats.accepted.Add(1)
	t.e.driver.Drive(&t.nc, nc, t, remote)
}

// newConn makes the transport's next Conn, in no place. hold: what is pushed
// to it waits for release. An earlier one has ended, or is in another
// namespace.
func (t *transport) newConn(d dialect, space string, hold bool) *Conn {
	e := t.e
	id := ConnID(e.idBase | uint64(e.connSeq.Add(1)))
	c := &Conn{t: t, waits: &nothing, id: id, dialect: d, shard: e.places.shardOf(id)}
	if hold {
		c.waits = &waits{held: &held{connecting: true}}
		c.holdLocked(true)
	}
	if space == "" {
		c.who.Store(&anonymous)
	} else {
		d := newDetails(traits{space: space}, "")
		c.who.Store(&identity{details: &d})
	}
	e.stats.dialects[d].Add(1)
	if s := t.socketio(); s != nil {
		s.add(c)
	}
	t.conn.Store(c)
	if t.ending() { // since before the Store: whoever ended it may not have seen c
		c.end(t.why(), false)
	}
	c.mu.Lock()
	if !c.ended {
		e.places.addConn(c)
	}
	c.mu.Unlock()
	return c
}

// start makes a transport of an upgraded connection, in its places, and begins
// to read. The engine counted it in. It returns why the connection is not let
// in after all; then it is being closed.
func (e *Engine) start(nc net.Conn, d dialect, session wire.Session, who *identity, l *Login, counted bool) error {
	t := e.newTransport(session, counted)
	t.drive(nc, l.Remote)
	c := t.newConn(d, "", e.cfg.OnConnect != nil)
	t.schedulePing(uint64(c.id))
	c.mu.Lock()
	if !c.ended { // the engine may have been closed by now
		c.addLocked(everyone)
	}
	c.mu.Unlock()
	err := c.bind(who, cloneAll(l.Rooms))
	if err != nil {
		t.shut(ReasonRefused, wire.TryLater, "too many connections", true)
	} else {
		c.greet(func() {
			if e.cfg.OnConnect != nil {
				t.lane.Always(func() { t.connect(c) }, t)
			}
		})
	}
	t.begin()
	return err
}

// schedulePing sets the first ping between half a heartbeat and a whole one,
// so that not everybody's comes at once.
func (t *transport) schedulePing(id uint64) {
	beat := t.e.cfg.Heartbeat
	t.nextPing = millis(time.Now().Add(beat/2 + beat/2*time.Duration(id%64)/64))
}

// millis is a clock in half the memory: it wraps after 49 days, and nothing
// that it measures takes half as long. Nobody sets it.
func millis(t time.Time) uint32 { return uint32(t.Sub(epoch).Milliseconds()) }

// steady is a time of which the same is true.
func steady(t time.Time) time.Time { return epoch.Add(t.Sub(epoch)) }

var epoch = time.Now()

// begin begins to read.
func (t *transport) begin() {
	t.nc.Start()
	if !t.e.draining.Load() {
		return
	}
	leave := func() {
		for c := range t.conns {
			c.flushed() // what was pushed to it before the drain may still be with a worker
		}
		t.shut(ReasonShutdown, wire.GoingAway, "", false)
	}
	if t.device.Load() != nil {
		time.AfterFunc(youngest, leave)
	} else {
		leave()
	}
}

// startDevice makes a transport of an mpush device and begins to read. It gets
// a Conn when it binds. The engine counted it in, also among those that are
// not open yet.
func (e *Engine) startDevice(nc net.Conn, remote netip.AddrPort, counted, plain, webSocket bool) {
	d := &device{session: mpush.NewSession(&e.mpush, plain, webSocket), began: millis(time.Now()), ws: webSocket}
	t := e.newTransport(d.session, counted)
	t.device.Store(d)
	t.drive(nc, remote)
	t.schedulePing(uint64(e.connSeq.Load()))
	t.begin()
}

// remoteAddr is the client's address.
func (t *transport) remoteAddr() netip.AddrPort { return t.nc.Peer() }

// newSession is the protocol of a browser's dialect. unnamed: the browser did
// not name one, so it may turn out to be mpush.
func (e *Engine) newSession(d dialect, unnamed bool) wire.Session {
	limit := unlimited(e.cfg.Limits.MaxMessage)
	switch {
	case d == dialectMsgpack:
		return pushjson.New(pushjson.Msgpack, limit)
	case unnamed && !e.cfg.MPush.NoJSON:
		return pushjson.NewUnnamed(limit)
	}
	return pushjson.New(pushjson.JSON, limit)
}

// unlimited makes -1 of a limit of 0, which is what protocols take for none.
func unlimited(limit int) int {
	if limit == 0 {
		return -1
	}
	return limit
}

// greet notes that OnConnect is to run, unless the connection has ended
// already. Who calls it is on the lane, or puts OnConnect on it by then, which
// runs with c.mu: an end that comes now puts OnDisconnect behind it.
func (c *Conn) greet(then func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.greeted, c.parted = !c.ended, c.ended
	if c.greeted && then != nil {
		then()
	}
	return c.greeted
}

// welcome runs OnConnect for a Conn that was greeted, also if it has ended since
// then, and lets go what was pushed to it meanwhile. It runs on the lane.
func (t *transport) welcome(c *Conn) {
	if !c.parted && t.e.cfg.OnConnect != nil {
		t.connect(c)
	} else {
		c.release()
	}
}

// connect runs OnConnect. It runs on the lane.
func (t *transport) connect(c *Conn) {
	ctx := context.WithValue(c.Context(), connectingKey{}, c)
	defer func() {
		c.flushed() // what OnConnect pushed to many
		c.release()
	}()
	t.hook("OnConnect", c, func() { t.e.cfg.OnConnect(ctx, c) })
}

// hook runs a hook of c, which ends with its connection if it panics.
func (t *transport) hook(name string, c *Conn, f func()) {
	if t.e.hook(name, c.id, f) {
		t.panicked()
	}
}

// panicked ends a connection whose hook panicked: a device's not at once, for
// it would be back at once.
func (t *transport) panicked() {
	if t.device.Load() != nil {
		t.refuse(ReasonPanic, time.Now(), nil)
	} else {
		t.shut(ReasonPanic, wire.Internal, "", false)
	}
}

// id is the Conn's, 0 before there is one.
func (t *transport) id() ConnID {
	if c := t.conn.Load(); c != nil {
		return c.id
	}
	return 0
}

// user is the Conn's, "" before there is one.
func (t *transport) user() string {
	if c := t.conn.Load(); c != nil {
		return c.UserID()
	}
	return ""
}

// LaneBegins, LaneMoved, LaneDied and LaneEnds are called by the lane.
func (t *transport) LaneBegins() { t.e.hooks.Add() }
func (t *transport) LaneEnds()   { t.e.hooks.Done() }
func (t *transport) LaneDied()   { t.panicked() }
func (t *transport) LaneMoved() {
	if t.stalled.Load() && !t.lane.Full(t.inbox()) && t.stalled.Swap(false) {
		t.nc.Resume()
	}
}

// inbox bounds what waits for hooks.
func (t *transport) inbox() lane.Limit {
	l := &t.e.cfg.Limits
	return lane.Limit{Items: l.InboxMessages, Bytes: max(4*l.MaxMessage, 256<<10)}
}

var events = sync.Pool{New: func() any { return new(wire.Event) }}

// Data reads what came in. It is called by the driver, and takes less than all
// when the connection has to wait for its hooks or its rate.
func (t *transport) Data(b []byte) int {
	ev := events.Get().(*wire.Event)
	defer func() {
		*ev = wire.Event{}
		events.Put(ev)
	}()
	if d := t.device.Load(); d != nil && t.ending() && !d.opening.Load() {
		if !d.ws {
			return len(b)
		}
		d.session.Deafen() // but for its goodbye
	}
	if t.broken {
		return len(b)
	}
	s := t.socketio()
	if s != nil {
		s.raise()
	}
	if t.part+uint32(len(b)) > longPart && t.nc.Apart() {
		return 0
	}
	used := 0
	for used < len(b) {
		if t.full() {
			t.begun.Store(0)
			return used
		}
		session := t.speaks()
		n, err := session.Feed(b[used:], ev)
		used += n
		t.part += uint32(n)
		if err != nil {
			t.broken = true
			t.fail(err)
			return len(b)
		}
		if s != nil {
			s.heard()
		}
		if ev.Kind != wire.None {
			if !session.Partial() { // heartbeats may come inside a message, or between its attachments
				t.begun.Store(0)
				t.part = 0
			}
			t.handle(ev)
		}
	}
	if !t.speaks().Partial() {
		t.begun.Store(0)
		t.part = 0
	} else if t.begun.Load() == 0 {
		t.begun.Store(max(1, millis(time.Now())))
	}
	return used
}

// longPart is how much of a message is taken apart from other connections: the
// scan of 1 MB takes some 30 ms.
const longPart = 16 << 10

// full tells that reading has to wait, and sees to its going on. One that ends
// is read to its end, for the peer's goodbye.
func (t *transport) full() bool {
	d := t.device.Load()
	if d != nil && d.opening.Load() {
		return true // open resumes; until then the session is its alone, even at the end
	}
	if t.ending() {
		return false
	}
	s := t.socketio()
	if s != nil && s.debt {
		if wait := s.connects.Take(connectRate, time.Now()); wait > 0 {
			t.e.stats.limit(limitedBinds)
			time.AfterFunc(wait, t.nc.Resume)
			return true
		}
		s.debt = false
	}
	if d != nil {
		if d.debt {
			if wait := d.binds.Take(bindRate, time.Now()); wait > 0 {
				t.e.stats.limit(limitedBinds)
				time.AfterFunc(wait, t.nc.Resume)
				return true
			}
			d.debt = false
		}
	}
	for ; t.owes > 0; t.owes-- {
		if wait := t.rate.Take(t.messageRate(), time.Now()); wait > 0 {
			t.e.stats.limit(limitedMessageRate)
			time.AfterFunc(wait, t.nc.Resume)
			return true
		}
	}
	limit := t.inbox()
	if total := int64(t.e.cfg.Limits.TotalQueueBytes); total > 0 && t.e.inboxes.Load() > total {
		if s != nil { // whose messages are large
			t.e.stats.limit(limitedInbox)
			time.AfterFunc(inboxPause, t.nc.Resume)
			return true
		}
		limit = lane.Limit{Items: 1} // all inboxes together are full: whoever has something in his waits
	} else if s != nil && !s.joined.Load() {
		limit = lane.Limit{Items: 2} // a CONNECT, and while it is asked about we hear of the client's end
	}
	if !t.lane.Full(limit) {
		return false
	}
	t.e.stats.limit(limitedInbox)
	t.stalled.Store(true)
	// The lane may have moved before it could see stalled.
	return t.lane.Full(limit) || !t.stalled.Swap(false)
}

func (t *transport) messageRate() rate.Limit {
	n := float64(t.e.cfg.Limits.MessageRate)
	return rate.Limit{PerSecond: n, Burst: 5 * n}
}

// What a client may do how often.
var (
	pingRate  = rate.Limit{PerSecond: 10, Burst: 20}     // more is no heartbeat (limits.md row 82)
	beatRate  = rate.Limit{PerSecond: 1, Burst: 10}      // mpush: what is answered (row 17)
	floodRate = rate.Limit{PerSecond: 1000, Burst: 1000} // mpush: what is borne
	bindRate  = rate.Limit{PerSecond: 5, Burst: 5}       // row 53

	connectRate = rate.Limit{PerSecond: 5, Burst: 16} // Socket.IO: CONNECTs
)

// inboxPause is how long nothing is read of a Socket.IO client while all
// inboxes together are full.
const inboxPause = 100 * time.Millisecond

// handle is the one switch over what a protocol tells.
func (t *transport) handle(ev *wire.Event) {
	if t.ending() {
		if ev.Kind == wire.Closed {
			t.goodbyeHeard()
		}
		return
	}
	switch ev.Kind {
	case wire.Message:
		m := newReceived(ev, t.device.Load() != nil)
		size := m.size()
		t.e.inboxes.Add(int64(size))
		t.lane.Put(size, func() {
			defer t.e.inboxes.Add(-int64(size))
			t.receive(m)
		}, t)
	case wire.Ack:
		if c := t.at(ev.Space); c != nil && c.acked(ev.ID, ev.Data) {
			return // free: it is our push that it answers
		}
		t.e.stats.strayAcks.Add(1)
	case wire.Login:
		if d := t.device.Load(); d != nil {
			t.askBind(d, ev)
			break
		}
		claim := ev.Login
		if s := t.socketio(); s != nil {
			space, size := string(ev.Space), len(claim.Auth)+len(claim.Query)
			s.debt = s.connects.Take(connectRate, time.Now()) > 0
			t.e.inboxes.Add(int64(size))
			t.lane.Put(size, func() {
				defer t.e.inboxes.Add(-int64(size))
				t.enter(s, space, claim)
			}, t)
			break
		}
		t.lane.Put(len(claim.User)+len(claim.Token), func() { t.login(claim) }, t)
	case wire.Logout:
		if s := t.socketio(); s != nil {
			space := string(ev.Space)
			t.lane.Put(0, func() { s.leave(space) }, t)
			break
		}
		id := ev.ID
		t.lane.Put(0, func() { t.logout(id) }, t)
	case wire.Ping:
		t.pinged(ev.Reply)
		return
	case wire.Pong: // heard, and to be paid for like a message
	case wire.Open:
		t.open(t.device.Load(), ev.Heavy)
	case wire.Turn:
		t.turn(ev)
		return
	case wire.Request:
		t.request(t.device.Load(), ev)
	case wire.Reply:
		t.send(ev.Reply)
	case wire.Closed:
		if t.polls() {
			t.goodbyeHeard()
			return
		}
		t.end(ReasonClient, false)
		t.nc.Shut(ev.Reply, false, closeWait)
		if n, _ := t.nc.Queued(); n == 0 {
			t.nc.Close()
		}
		return
	default:
		t.e.stats.ignored.Add(1)
	}
	if t.rate.Take(t.messageRate(), time.Now()) > 0 {
		t.owes = 1
	}
	if t.device.Load() != nil || t.socketio() != nil {
		t.owes += uint8(min(ev.Data.Size()/(8<<10), 200))
	}
}

// goodbyeHeard cuts a connection whose client needs no more of it.
func (t *transport) goodbyeHeard() {
	if s := t.socketio(); s != nil && s.poll != nil {
		s.poll.Goodbye()
	}
	t.cut(ReasonClient)
}

// enoughToRead is how many queued bytes are sign of life enough for a device.
const enoughToRead = 1 << 10

// pinged answers a heartbeat. A device that sends more than one a second is
// not answered each, nor is one that has much to read first.
func (t *transport) pinged(reply []byte) {
	now := time.Now()
	allowed := pingRate
	if d := t.device.Load(); d != nil {
		allowed = floodRate
		if d.beats.Take(beatRate, now) > 0 {
			t.e.stats.limit(limitedPings)
			reply = nil
		} else if n, _ := t.nc.Queued(); n > enoughToRead {
			reply = nil
		}
	}
	if t.pings.Take(allowed, now) > 0 {
		t.e.stats.limit(limitedPings)
		t.fail(&wire.Error{Code: wire.Policy, Text: "too many pings"})
		return
	}
	t.send(reply)
}

// send writes what is not a push: answers and pings. It passes whatever is
// held.
func (t *transport) send(frame []byte) {
	if len(frame) > 0 && t.nc.Write(frame) == netio.ErrSlow {
		t.overflow()
	}
}

// receive gives a message to its handler and answers it. It runs on the lane.
// What came before the connection's end still counts, unless the end was that
// nobody wants to hear from it.
func (t *transport) receive(m *Received) {
	e, c := t.e, t.at(m.space)
	if c == nil && t.socketio() != nil {
		t.fail(&wire.Error{Code: wire.Protocol, Text: "message to a namespace that was not joined"})
		return
	}
	if c == nil { // a device that has not bound
		e.stats.ignored.Add(1)
		return
	}
	switch c.why() {
	case ReasonReplaced, ReasonKicked, ReasonRefused, ReasonExpired, ReasonPanic:
		e.stats.discarded.Add(1)
		return
	}
	if c.parted {
		e.stats.discarded.Add(1)
		return
	}
	e.stats.received.Add(1)
	e.handlersMu.RLock()
	h, ok := e.handlers[m.Event]
	e.handlersMu.RUnlock()
	if !ok {
		h = handler{"OnMessage", e.cfg.OnMessage}
		if h.call == nil {
			h.call = e.unhandled
		}
	}
	var frame []byte
	t.hook(h.name, c, func() {
		// What comes back is the application's code as well: a MarshalJSON,
		// an Unwrap.
		reply, err := h.call(c.Context(), c, m)
		frame = t.answer(c, m, reply, err)
	})
	if m.wanted {
		t.send(frame)
	}
}

// answer is the frame that answers a message with what its handler returned.
func (t *transport) answer(c *Conn, m *Received, reply any, err error) []byte {
	var v wire.Value
	if err == nil {
		if v, err = answer(reply); err == nil && t.socketio() != nil && !sio.Fits(c.dialect.form(), v) {
			err = errors.New("push: an answer with more than 10 arguments of bytes")
		}
		if err == nil {
			return t.speaks().Answer(nil, string(m.space), m.id, v, "")
		}
	}
	text := "internal error"
	if r := (*refusal)(nil); errors.As(err, &r) {
		text = r.text
	} else {
		t.e.log.Warn("push: handler failed", "event", brief(m.Event), "conn", c.id, "user", brief(c.UserID()), "err", err)
	}
	return t.speaks().Answer(nil, string(m.space), m.id, wire.Value{}, text)
}

func (e *Engine) unhandled(context.Context, *Conn, *Received) (any, error) {
	e.stats.unhandled.Add(1)
	return nil, Refuse("unknown event")
}

// brief shortens a name that a client chose, for the log.
func brief(s string) string { return strings.ToValidUTF8(s[:min(len(s), 64)], "") }

// login is a later login. It runs on the lane.
func (t *transport) login(claim *wire.LoginClaim) {
	if t.ending() {
		return
	}
	c := t.conn.Load()
	l := Login{
		Protocol: c.Protocol(), UserID: claim.User, Token: claim.Token,
		DeviceID: claim.Device, OS: claim.OS, ClientVersion: claim.Version, Tags: claim.Tags,
		Remote: t.remoteAddr(), Conn: c,
	}
	who, err := t.e.authenticate(c.Context(), &l)
	if err == nil {
		c.flushed()
		err = c.bind(who, l.Rooms)
	}
	if err == nil {
		t.send(t.session.LoggedIn(nil, 0, who.user, c.id.String(), false))
		return
	}
	counted, no, code := loginRefused(err)
	t.e.stats.refused(counted)
	ends := ReasonRefused
	if errors.Is(err, errPanic) {
		ends = ReasonPanic
	}
	t.shut(ends, code, no.Text, false)
}

// logout is a client's giving its user up. It runs on the lane.
func (t *transport) logout(id uint64) {
	if c := t.live(); c != nil {
		c.Unbind()
	}
	if d := t.device.Load(); d != nil {
		t.send(d.session.LoggedOut(nil, id))
	}
}

// live is the transport's Conn unless that has ended, nil without one.
func (t *transport) live() *Conn {
	if c := t.conn.Load(); c != nil && !c.gone() {
		return c
	}
	return nil
}

// What an mpush client in the field imposes on the times of answers.
const (
	deviceWait    = 3 * time.Second         // it closes the connection itself, or we do
	answerFloor   = 20 * time.Millisecond   // a proxy's answer that comes sooner is lost, and a failed handshake's tells nothing by its time
	handshakeWait = 3 * time.Second         // after that it has given up
	longestBind   = 5500 * time.Millisecond // after 6 s it has
	youngest      = 100 * time.Millisecond  // closed sooner after it connected, it never comes back
	maxToken      = 4 << 10                 // the data of a BIND
	maxProxied    = 4                       // HTTP requests of one connection at a time
)

// open answers the HANDSHAKE or FAST_CONNECT that the session asks about, on
// the lane. Nothing is read until it has. heavy: it takes an RSA operation, of
// which only so many run at a time; who waits for too long is not answered,
// and not closed either, or it would be back at once.
func (t *transport) open(d *device, heavy bool) {
	arrived := time.Now()
	d.opening.Store(true)
	t.lane.Put(0, func() {
		defer func() {
			d.opening.Store(false)
			t.nc.Resume()
		}()
		if heavy {
			if !t.e.handshakes.Enter(handshakeWait-time.Since(arrived), t.e.cutting) {
				t.e.stats.limit(limitedHandshakes)
				d.session.Discard()
				return
			}
			if t.ending() { // it gave up: the time belongs to those who wait
				t.e.handshakes.Leave()
				return
			}
		}
		opened, err := d.session.Open(time.Now())
		if heavy {
			t.e.handshakes.Leave()
		}
		switch {
		case err != nil && opened.Slow:
			t.e.stats.refused(refusedHandshake)
			t.failLater(err, answerFloor-time.Since(arrived))
			return
		case err != nil:
			t.fail(err)
			return
		case opened.OK:
			is := newDetails(traits{os: opened.Device.OS, osVersion: opened.Device.OSVersion, version: opened.Device.Version}, opened.Device.ID)
			d.is.Store(&is)
			t.e.unpend(d)
		}
		t.send(opened.Reply)
	}, t)
}

// unpend counts a device out of those whose session is not open.
func (e *Engine) unpend(d *device) {
	if !d.counted.Swap(true) {
		e.stats.unopened.Add(-1)
		e.left()
	}
}

// turn makes an mpush device of a page's connection whose first message says
// so. Its Conn ends: it gets another one when it binds.
func (t *transport) turn(ev *wire.Event) {
	first := bytes.Clone(ev.Data.JSON)
	d := &device{session: mpush.NewJSON(&t.e.mpush), began: millis(time.Now()), ws: true}
	if !t.e.pend(&t.e.stats.unopened) {
		t.e.stats.refused(refusedMaxPending)
		t.shut(ReasonRefused, wire.TryLater, "too many logins at once", false)
		return
	}
	if c := t.conn.Load(); c != nil {
		c.end(ReasonReplaced, true)
	}
	t.device.Store(d)
	if t.ending() { // since before the Store
		t.e.unpend(d)
	}
	var packet wire.Event
	if err := d.session.First(first, &packet); err != nil {
		t.broken = true
		t.fail(err)
		return
	}
	t.handle(&packet)
}

// askBind has a BIND asked about, on the lane. The same once more while it is
// is no second login.
func (t *transport) askBind(d *device, ev *wire.Event) {
	claim := ev.Login
	b := &bindRequest{ev.ID, claim, time.Now(), new(asking)}
	if last := d.bind.Load(); last != nil {
		if last.id == b.id && last.claim.User == claim.User && last.claim.Token == claim.Token && slices.Equal(last.claim.Tags, claim.Tags) {
			return
		}
		b.asking = last.asking
	}
	d.bind.Store(b)
	d.debt = d.binds.Take(bindRate, b.at) > 0
	t.lane.Put(len(claim.User)+len(claim.Token), func() { t.bind(d, b) }, t)
}

// bind is the login of a device. It runs on the lane.
func (t *transport) bind(d *device, b *bindRequest) {
	defer d.bind.CompareAndSwap(b, nil)
	if t.ending() {
		return
	}
	e, c, is := t.e, t.live(), d.is.Load()
	form := dialectMPush
	if d.session.Form() == mpush.JSON {
		form = dialectMPushJSON
	}
	l := Login{
		Protocol: protocols[form], UserID: b.claim.User, Token: b.claim.Token,
		DeviceID: is.device, OS: is.os, OSVersion: is.osVersion, ClientVersion: is.version, Tags: b.claim.Tags,
		Remote: t.remoteAddr(), Conn: c,
	}
	if err := l.check(); err != nil || len(l.Token) > maxToken {
		e.log.Warn("push: BIND with too much", "user", brief(l.UserID), "remote", l.Remote, "token", len(l.Token), "err", err)
		e.stats.refused(refusedBadRequest)
		t.refuse(ReasonRefused, b.at, d.session.BindFailed(nil, b.id, ""))
		return
	}
	who, err := t.ask(b, &l)
	fresh, left := false, false
	for again := err == nil; again; {
		if c = t.live(); c == nil {
			c, fresh, left = t.newConn(form, "", true), true, false
		} else {
			c.flushed()
			was := c.UserID()
			left = was != "" && was != who.user
		}
		c.answering(true)
		if err = c.bind(who, l.Rooms); err != nil && fresh {
			c.end(ReasonRefused, false)
		}
		again = err == ErrClosed && !fresh && !t.ending() // replaced meanwhile
	}
	if err != nil {
		t.bindFailed(d, b, err)
		return
	}
	if who.device == is.device && who.os == is.os && who.osVersion == is.osVersion && who.version == is.version && who.extra == &noextra {
		d.is.Store(who.details)
	}
	if fresh {
		c.greet(nil)
	}
	t.send(d.session.LoggedIn(nil, b.id, who.user, "", left))
	if c.answering(false) {
		t.send(c.kickNote(d))
	}
	d.bind.CompareAndSwap(b, nil)
	if fresh { // before whatever came behind the BIND, which waits on this lane
		t.welcome(c)
	}
}

// ask asks the gate about a device's login, for as long as the device waits
// for the answer and is there.
func (t *transport) ask(b *bindRequest, l *Login) (*identity, error) {
	ctx, done := b.begin(t, longestBind)
	defer done()
	return t.e.authenticate(ctx, l)
}

// bindFailed answers a BIND that was not let in: a refusal late enough for the
// client to have come to rest, anything else not at all, so that it tries
// again by itself.
func (t *transport) bindFailed(d *device, b *bindRequest, err error) {
	if err == ErrClosed { // the connection ended
		return
	}
	counted, _, _ := loginRefused(err)
	t.e.stats.refused(counted)
	text := ""
	if r := (*refusal)(nil); errors.As(err, &r) {
		text = r.text
	}
	switch {
	case errors.Is(err, errPanic):
		t.refuse(ReasonPanic, b.at, nil)
	case counted != refusedLater:
		t.refuse(ReasonRefused, b.at, d.session.BindFailed(nil, b.id, text))
	}
}

// refuse ends a device's connection RefuseDelay after what it asked for at
// that time, with these last bytes; then it has deviceWait to close it.
func (t *transport) refuse(why Reason, at time.Time, last []byte) {
	if t.end(why, false) {
		t.device.Load().lingers.Store(true)
		time.AfterFunc(t.e.cfg.MPush.RefuseDelay-time.Since(at), func() { t.nc.Shut(last, false, deviceWait) })
	}
}

// replaced ends the Conn whose place a newer login took. A page is closed; a
// device is told and its connection stays open, for it would come back at once
// and replace the other in turn. The same device is not told: it is half
// dead, and would take the news for its own.
func (t *transport) replaced(old *Conn, same bool) {
	d := t.device.Load()
	if d == nil {
		old.shut(ReasonReplaced, wire.Replaced, "")
		return
	}
	if !old.end(ReasonReplaced, true) {
		return
	}
	t.e.stats.detached.Add(1)
	if same && old.who.Load().device != "" {
		return
	}
	if !old.deferKick() {
		t.send(old.kickNote(d))
	}
	if t.e.cfg.MPush.CloseKicked {
		time.AfterFunc(deviceWait, func() {
			if t.conn.Load() == old { // it has not bound anew
				t.shut(ReasonReplaced, wire.Replaced, "", false)
			}
		})
	}
}

// socketio is what a transport of Socket.IO has besides; it is the session, and
// the host of its polling half.
type socketio struct {
	sio.Session // Data's, but for what encodes

	// Static after open.
	t    *transport
	poll *polling.Session // nil: it came as a WebSocket
	born uint32           // when it was opened, by the clock of millis

	pinged  atomic.Uint32 // when it was, by the same clock
	beats   eio.Beat
	asking  asking
	conns   atomic.Pointer[[]*Conn] // written on the lane: one for each namespace that the client has joined, once that was not t.conn alone
	opening *opening                // owned by the lane: what later CONNECTs are asked with; nil: there is none any more
	moved   atomic.Bool             // its polling has moved to a WebSocket
	over    atomic.Bool             // its polling has ended: no poll gets anything any more
	lingers atomic.Bool             // it ends, and has some time to close by itself, or to poll
	joined  atomic.Bool             // a CONNECT was let in
	counted atomic.Bool             // it is counted out of those that are not joined

	// Owned by Data.
	connects rate.Bucket
	raised   bool // it takes MaxPayload
	debt     bool // a CONNECT that connects has not paid for yet

	refusals uint8 // owned by the lane: CONNECTs that were refused
}

const (
	upgradeTimeout  = 10 * time.Second // from the upgrade's WebSocket to its end
	kickWait        = 5 * time.Second  // a client that hears that it is disconnected closes by itself
	pollWait        = 30 * time.Second // for the next poll, which hears of the end
	unpolledTime    = 10 * time.Second // a client that has opened asks at once for more; such a session costs it not even a socket
	maxSpaces       = 8                // limits.md row 107
	maxRefusals     = 100              // of CONNECTs on one connection
	unjoinedPayload = 64 << 10         // what a client may send at a time before that (compatibility.md A5)
	leastRate       = 16 << 10         // bytes of a large message in a second (limits.md row 109)
)

// socketio is nil for every other protocol.
func (t *transport) socketio() *socketio {
	s, _ := t.session.(*socketio)
	return s
}

// polls tells that it is a session of HTTP polling now.
func (t *transport) polls() bool {
	s := t.socketio()
	return s != nil && s.poll != nil && !s.moved.Load()
}

// add is called before c is t.conn.
func (s *socketio) add(c *Conn) {
	if s.t.conn.Load() != nil {
		list := append(slices.Collect(s.all), c)
		s.conns.Store(&list)
	}
}

func (s *socketio) remove(c *Conn) {
	left := slices.DeleteFunc(slices.Collect(s.all), func(o *Conn) bool { return o == c })
	s.conns.Store(&left)
}

// all yields its Conns.
func (s *socketio) all(yield func(*Conn) bool) {
	last := s.t.conn.Load() // before conns, which is stored first
	if conns := s.conns.Load(); conns != nil {
		for _, c := range *conns {
			if !yield(c) {
				return
			}
		}
	} else if last != nil {
		yield(last)
	}
}

func (s *socketio) at(space []byte) *Conn {
	for c := range s.all {
		if c.Namespace() == string(space) {
			return c
		}
	}
	return nil
}

// disconnects tells the client that it is in none of its namespaces any more.
func (s *socketio) disconnects() (frames []byte) {
	for c := range s.all {
		frames = sio.AppendDisconnect(frames, s.Form(), c.Namespace())
	}
	return frames
}

// unpend counts it out of those that are not joined.
func (s *socketio) unpend() {
	if !s.counted.Swap(true) {
		s.t.e.stats.unjoined.Add(-1)
	}
}

// raise lets a client that has joined send more at a time. It is called by
// Data.
func (s *socketio) raise() {
	if !s.raised && s.joined.Load() {
		s.raised = true
		s.SetLimit(unlimited(s.t.e.cfg.SocketIO.MaxPayload))
	}
}

// heard notes what the last Feed read as a sign of life. It is called by Data.
func (s *socketio) heard() {
	if is := s.Type(); is == eio.Pong || is != 0 && s.Revision() == eio.V3 {
		s.beats.Heard(s.Revision(), &s.t.e.beats, is, steady(time.Now()))
	}
}

// beat pings a client when it is time to, and ends one that gives no sign of
// life or does not join.
func (t *transport) beat(s *socketio, now time.Time) {
	e := t.e
	if !s.joined.Load() && t.polls() && t.nc.Silence(now) > unpolledTime && !s.poll.Polls() {
		e.stats.limit(limitedConnectTimeout)
		t.cut(ReasonRefused)
		return
	}
	if wait := e.cfg.SocketIO.ConnectTimeout; wait > 0 && !s.joined.Load() && time.Duration(int32(millis(now)-s.born))*time.Millisecond >= wait {
		e.stats.limit(limitedConnectTimeout)
		t.shut(ReasonRefused, wire.Policy, "no CONNECT in time", true)
		return
	}
	ping, dead := false, false
	if t.nc.Paused() { // its pongs lie unread, and it wants pings all the same
		s.beats.Excuse(s.Revision(), &e.beats, steady(now))
		ping = time.Duration(int32(millis(now)-s.pinged.Load()))*time.Millisecond >= e.beats.Interval
	} else {
		ping, dead = s.beats.Check(s.Revision(), &e.beats, steady(now))
	}
	switch {
	case ping:
		s.pinged.Store(millis(now))
		t.send(s.Ping(nil))
	case dead && t.polls():
		t.cut(ReasonHeartbeat) // nobody is left to poll for a goodbye
	case dead:
		t.shut(ReasonHeartbeat, wire.GoingAway, "no sign of life", true)
	}
}

// PostLimit, Alive, Posted, Broken and Upgraded are called by the polling half.
// Alive looks at the heartbeat, because a request may come before the sweep.
func (s *socketio) PostLimit() int {
	if s.joined.Load() {
		return unlimited(s.t.e.cfg.SocketIO.MaxPayload)
	}
	return s.t.e.unjoinedPayload()
}

func (e *Engine) unjoinedPayload() int {
	if n := e.cfg.SocketIO.MaxPayload; n > 0 {
		return min(n, unjoinedPayload)
	}
	return unjoinedPayload
}

func (s *socketio) Alive(now time.Time) bool {
	if !s.t.ending() {
		s.t.beat(s, now)
	}
	return !s.over.Load() // one that ends politely says so in its next poll
}

func (s *socketio) Posted(binary bool) { s.Body(binary) }

func (s *socketio) Broken(err error) {
	if err != nil {
		s.t.fail(err)
	} else {
		s.t.cut(ReasonLost)
	}
}

func (s *socketio) Upgraded() {
	s.WebSocket()
	s.moved.Store(true)
}

// openSocketIO begins a session, as a WebSocket or with polling. A client 2.x
// is asked about now: it takes itself for connected to "/" when it has opened.
func (e *Engine) openSocketIO(w http.ResponseWriter, r *http.Request, ask polling.Ask) {
	refuse := func(why refusedWhy, no *upgrade.Refusal) {
		e.stats.refused(why)
		if no.Status == 0 {
			return
		}
		if no.Header[0] != "" {
			w.Header().Set(no.Header[0], no.Header[1])
		}
		polling.Refuse(w, r, no.Status, polling.Forbidden, no.Text)
	}
	asked, ok := keepOpening(e.untrusting(r))
	if !ok {
		refuse(refusedBadRequest, &upgrade.Refusal{Status: http.StatusRequestHeaderFieldsTooLarge, Text: "request header too large"})
		return
	}
	a, why, no := e.arrive(r)
	if no != nil {
		refuse(why, no)
		return
	}
	defer e.depart(a)

	var who *identity
	var l *Login
	denied := ""
	if ask.Revision == eio.V3 {
		var err error
		if l, err = asked.login(dialectSocketIO4, "", a.remote, &wire.LoginClaim{}); err != nil {
			refuse(refusedBadRequest, &upgrade.Refusal{Status: http.StatusBadRequest, Text: "bad login"})
			return
		}
		if who, err = e.authenticatePending(r.Context(), l); err == errMaxPending {
			refuse(refusedMaxPending, tooManyLogins)
			return
		} else if err != nil {
			why, no, _ := loginRefused(err)
			if why != refusedUnauthorized {
				refuse(why, no)
				return
			}
			e.stats.refused(why)
			denied = no.Text
		}
	}
	if who == nil && !e.pend(&e.stats.unjoined) {
		refuse(refusedMaxPending, tooManyLogins)
		return
	}
	unpend := func() {
		if who == nil {
			e.stats.unjoined.Add(-1)
		}
	}
	if e.draining.Load() {
		unpend()
		refuse(refusedDraining, shuttingDown)
		return
	}

	s := &socketio{born: millis(time.Now()), opening: asked}
	s.Init(ask.Revision, e.unjoinedPayload())
	s.counted.Store(who != nil)
	s.t = e.newTransport(s, a.counted)
	s.pinged.Store(s.born)
	s.beats.Start(ask.Revision, &e.beats, steady(time.Now()))
	hello := eio.Handshake{PingInterval: e.beats.Interval, PingTimeout: e.beats.Timeout, MaxPayload: e.cfg.SocketIO.MaxPayload}
	if ask.WebSocket {
		hello.SID, _ = e.sids.Make()
		nc, unable := upgrade.Do(w, r, "")
		if unable != nil {
			unpend()
			refuse(unableWhy(unable), unable)
			return
		}
		a.kept = true
		s.t.drive(nc, a.remote)
	} else {
		s.poll = e.socketIO.NewSession(ask)
		hello.SID, hello.Upgrade = s.poll.SID(), true
		a.kept = true
		e.stats.accepted.Add(1)
		e.driver.DrivePulled(&s.t.nc, s.t, s.poll.Wake, a.remote)
	}
	s.t.send(eio.AppendOpen(nil, &hello))
	switch {
	case denied != "":
		s.t.send(sio.AppendConnectError(nil, sio.Old, "", denied))
	case who != nil:
		told := make(chan struct{})
		s.t.lane.Always(func() { s.t.enterOld(s, who, l.Rooms, told) }, s.t)
		<-told // so that it is in the answer, and nothing is read before
	}
	s.t.begin()
	if s.poll != nil {
		s.poll.Begin(w, r, &s.t.nc, s)
	}
}

// enterOld makes a client 2.x, which the gate let in, join "/". It runs on the
// lane, and closes told when the client was told and before any hook.
func (t *transport) enterOld(s *socketio, who *identity, rooms []string, told chan struct{}) {
	c, err := t.join(s, "", who, rooms)
	if err != nil && err != ErrClosed {
		if s.counted.Store(false); !t.e.pend(&t.e.stats.unjoined) {
			s.counted.Store(true)
		}
		t.notJoined(s, "", err)
	}
	close(told)
	if err == nil {
		t.welcome(c)
	}
}

// enter is a client's CONNECT to a namespace. It runs on the lane.
func (t *transport) enter(s *socketio, space string, claim *wire.LoginClaim) {
	if t.ending() {
		return
	}
	e := t.e
	switch {
	case s.at([]byte(space)) != nil:
		if s.Revision() == eio.V4 { // 2.x: it was joined when it opened
			t.fail(&wire.Error{Code: wire.Protocol, Text: "CONNECT to a namespace that was joined"})
		}
		return
	case space != "" && e.cfg.SocketIO.Namespace == nil:
		t.notJoined(s, space, errNoSpace)
		return
	case s.opening == nil: // it left "/", and comes back: the gate would have to be asked without its request
		t.shut(ReasonClient, wire.GoingAway, "", false)
		return
	case s.conns.Load() != nil && len(*s.conns.Load()) >= maxSpaces:
		e.stats.limit(limitedNamespaces)
		t.fail(&wire.Error{Code: wire.Policy, Text: "too many namespaces"})
		return
	}
	l, err := s.opening.login(dialectOf(s.Form()), space, t.remoteAddr(), claim)
	if err != nil {
		t.notJoined(s, space, Refuse("bad login"))
		return
	}
	who, err := t.askSpace(s, space, l)
	var c *Conn
	if err == nil {
		c, err = t.join(s, space, who, l.Rooms)
	}
	switch {
	case err == nil: // before whatever came behind the CONNECT, which waits on this lane
		t.welcome(c)
	case err == ErrClosed || t.ending():
	default:
		t.notJoined(s, space, err)
	}
}

// askSpace asks the gate, and Namespace, about a CONNECT.
func (t *transport) askSpace(s *socketio, space string, l *Login) (*identity, error) {
	ctx, done := s.asking.begin(t, t.e.cfg.Limits.AuthTimeout)
	defer done()
	who, err := t.e.authenticate(ctx, l)
	if err != nil || space == "" {
		return who, err
	}
	told := *l
	told.Rooms, told.Tags, told.Request = slices.Clone(l.Rooms), slices.Clone(l.Tags), l.Request.Clone(ctx)
	if t.e.hook("SocketIO.Namespace", 0, func() {
		if err = t.e.cfg.SocketIO.Namespace(ctx, space, &told); err == nil {
			err = ctx.Err()
		}
		err = verdict(err)
	}) {
		return nil, errPanic
	}
	if err == ErrUnauthorized {
		err = errNoSpace
	}
	return who, err
}

var errNoSpace = Refuse("Invalid namespace")

// join makes the Conn of a namespace, in its places, and tells the client. What
// is pushed to it waits for release.
func (t *transport) join(s *socketio, space string, who *identity, rooms []string) (*Conn, error) {
	c := t.newConn(dialectOf(s.Form()), space, true)
	c.mu.Lock()
	if !c.ended {
		c.addLocked(keyOf(space, kindAll, ""))
	}
	c.mu.Unlock()
	if err := c.bind(who, cloneAll(rooms)); err != nil {
		c.end(ReasonRefused, false)
		s.remove(c)
		return nil, err
	}
	if !c.greet(nil) {
		return nil, ErrClosed
	}
	s.joined.Store(true)
	s.unpend()
	if t.e.cfg.SocketIO.Namespace == nil {
		s.opening = nil // there is no other to join
	} else {
		s.opening.compact()
	}
	t.send(sio.AppendConnect(nil, s.Form(), space, c.id.String()))
	return c, nil
}

// notJoined answers a CONNECT that was not let in: a refusal with its text;
// anything else closes the transport, so that the client comes back.
func (t *transport) notJoined(s *socketio, space string, err error) {
	why, no, code := loginRefused(err)
	t.e.stats.refused(why)
	switch {
	case errors.Is(err, errPanic):
		t.panicked()
	case why == refusedLater:
		t.shut(ReasonRefused, code, no.Text, false)
	case s.refusals == maxRefusals:
		t.e.stats.limit(limitedConnects)
		t.fail(&wire.Error{Code: wire.Policy, Text: "too many refused CONNECTs"})
	default:
		s.refusals++
		t.send(sio.AppendConnectError(nil, s.Form(), space, no.Text))
	}
}

// leave is a client's leaving a namespace. It runs on the lane.
func (s *socketio) leave(space string) {
	if c := s.at([]byte(space)); c != nil {
		c.end(ReasonClient, true)
		s.remove(c)
	}
}

// opening is what is kept of the request that opened a Socket.IO session, until
// the client has joined every namespace that it can.
type opening struct {
	r    *http.Request // as it came; nil: it is text
	text string        // as it came, but for headers that say nothing about who asks
	ctx  context.Context
	tls  *tls.ConnectionState
}

const maxRequest = 16 << 10

// connectionHeaders are about the connection.
var connectionHeaders = map[string]bool{
	"Connection": true, "Upgrade": true, "Accept-Encoding": true, "Sec-Websocket-Key": true,
	"Sec-Websocket-Version": true, "Sec-Websocket-Extensions": true, "Sec-Websocket-Protocol": true,
}

// keepOpening is false for one that is too large to be kept.
func keepOpening(r *http.Request) (k *opening, ok bool) {
	size := len(r.URL.Path) + len(r.URL.RawQuery) + len(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(v)
		}
	}
	return &opening{r: r.WithContext(context.WithoutCancel(r.Context()))}, size <= maxRequest
}

// compact makes it small, for one that is kept for long.
func (k *opening) compact() {
	if k.r == nil {
		return
	}
	var b strings.Builder
	uri := strings.TrimPrefix(k.r.URL.RequestURI(), "/") // http.StripPrefix may have taken it
	fmt.Fprintf(&b, "GET /%s HTTP/1.1\r\nHost: %s\r\n", uri, k.r.Host)
	k.r.Header.WriteSubset(&b, connectionHeaders)
	b.WriteString("\r\n")
	*k = opening{text: strings.Clone(b.String()), ctx: k.r.Context(), tls: k.r.TLS}
}

// restore is the request, with more in front of its query.
func (k *opening) restore(remote netip.AddrPort, query string) (*http.Request, error) {
	r := k.r
	if r == nil {
		var err error
		if r, err = http.ReadRequest(bufio.NewReader(strings.NewReader(k.text))); err != nil {
			return nil, err
		}
		r = r.WithContext(k.ctx)
		r.RemoteAddr, r.TLS = remote.String(), k.tls
	}
	if query != "" {
		r = r.Clone(r.Context())
		r.URL.RawQuery = query + "&" + r.URL.RawQuery // the first one counts
	}
	return r, nil
}

// login is the login that a CONNECT claims.
func (k *opening) login(d dialect, space string, remote netip.AddrPort, claim *wire.LoginClaim) (*Login, error) {
	r, err := k.restore(remote, claim.Query)
	if err != nil {
		return nil, err
	}
	l := claims(r, d, remote)
	l.Namespace, l.Auth = space, json.RawMessage("{}")
	if claim.Auth != nil {
		l.Auth = claim.Auth
	}
	if l.UserID = cmp.Or(claim.User, l.UserID); l.UserID == "" {
		l.UserID = r.URL.Query().Get("userId")
	}
	l.Token = cmp.Or(claim.Token, l.Token)
	l.DeviceID, l.OS, l.ClientVersion = cmp.Or(claim.Device, l.DeviceID), cmp.Or(claim.OS, l.OS), cmp.Or(claim.Version, l.ClientVersion)
	if claim.Tags != nil {
		l.Tags = claim.Tags
	}
	return l, l.check()
}

// request has an HTTP request made for a bound device and answers it, not
// before answerFloor.
func (t *transport) request(d *device, ev *wire.Event) {
	e, c, id, r := t.e, t.live(), ev.ID, ev.HTTP
	begin := time.Now()
	own := func(status int) {
		time.AfterFunc(answerFloor-time.Since(begin), func() {
			t.send(d.session.Proxied(nil, id, &wire.HTTPResponse{Status: status, Reason: http.StatusText(status), Own: true}))
		})
	}
	switch {
	case e.proxy == nil || c == nil || c.UserID() == "":
		own(http.StatusForbidden)
		return
	case r == nil:
		own(http.StatusBadRequest)
		return
	case d.proxied.Add(1) > maxProxied:
		d.proxied.Add(-1)
		e.stats.limit(limitedProxied)
		own(http.StatusServiceUnavailable)
		return
	}
	e.hooks.Add()
	go func() {
		defer e.hooks.Done()
		defer d.proxied.Add(-1)
		answer := e.proxy.Do(c.Context(), &proxy.Request{Method: r.Method, URI: r.URI, Headers: r.Headers, Body: r.Body, Remote: t.remoteAddr().Addr()})
		sleep(c.Context(), answerFloor-time.Since(begin), e.cutting)
		frame := d.session.Proxied(nil, id, &wire.HTTPResponse{
			Status: answer.Status, Reason: answer.Reason, Headers: answer.Headers, Body: answer.Body, Own: answer.Own,
		})
		if t.nc.Write(frame) == netio.ErrSlow { // the queue has no room for that much
			own(http.StatusServiceUnavailable)
		}
	}()
}

// fail ends a connection whose peer broke the protocol.
func (t *transport) fail(err error) { t.failLater(err, 0) }

// failLater is fail with its answer after a while; nothing that comes in
// meanwhile counts.
func (t *transport) failLater(err error, after time.Duration) {
	broken := &wire.Error{Code: wire.Protocol, Text: "protocol error"}
	errors.As(err, &broken)
	if broken.Code == wire.TooBig {
		t.e.stats.limit(limitedMaxMessage)
	}
	t.debug("push: protocol error", "conn", t.id(), "remote", t.remoteAddr(), "err", broken)
	if !t.end(ReasonProtocol, false) {
		return
	}
	if t.polls() { // the POST is answered by that
		t.cut(ReasonProtocol)
		return
	}
	last := t.speaks().Close(slices.Clone(broken.Reply), broken.Code, broken.Text)
	if after > 0 {
		time.AfterFunc(after, func() { t.goodbye(last, true) })
	} else {
		t.goodbye(last, true)
	}
}

// goodbye sends the last bytes and closes when the client has read them. Over
// TCP an mpush client sees the end by our closing alone.
func (t *transport) goodbye(last []byte, cut bool) {
	d := t.device.Load()
	switch {
	case d != nil && !d.ws:
		t.nc.HangUp(last, cut, closeWait)
	case t.polls() && t.why() != ReasonShutdown:
		t.nc.Shut(last, cut, pollWait)
		t.socketio().lingers.Store(true)
	default:
		t.nc.Shut(last, cut, closeWait)
	}
}

// Tick is called by the driver's sweep.
func (t *transport) Tick(now time.Time) {
	if t.ending() {
		return
	}
	e, d := t.e, t.device.Load()
	limits := &e.cfg.Limits
	patience, pings := e.cfg.Heartbeat+heartbeatGrace, true
	slowest := limits.MessageTimeout
	if s := t.socketio(); s != nil {
		if t.beat(s, now); t.ending() {
			return
		}
		patience, pings = 365*24*time.Hour, false
		if slowest > 0 && !t.polls() && t.nc.Silence(now) <= slowest { // at least so much of it has to come in a second
			slowest += time.Duration(e.cfg.SocketIO.MaxPayload) * time.Second / leastRate
			if e.cfg.SocketIO.MaxPayload == 0 {
				slowest = time.Hour // as long as something comes
			}
		}
	}
	if d != nil {
		if d.is.Load() == nil {
			if limits.LoginTimeout > 0 && d.age(now) >= limits.LoginTimeout {
				e.stats.limit(limitedLoginTimeout)
				t.shut(ReasonRefused, wire.Policy, "no login in time", true)
				return
			}
			patience = 365 * 24 * time.Hour
		} else {
			d.session.Rest()
			if !d.ws {
				patience, pings = 3*d.session.Heartbeat()+time.Second, false
			}
		}
	}
	switch begun := t.begun.Load(); {
	case t.nc.Silence(now) > patience:
		t.shut(ReasonHeartbeat, wire.GoingAway, "no sign of life", true)
		return
	case begun > 0 && slowest > 0 && time.Duration(int32(millis(now)-begun))*time.Millisecond > slowest:
		e.stats.limit(limitedMessageTimeout)
		t.fail(&wire.Error{Code: wire.Policy, Text: "message took too long"})
		return
	}
	if e.expiring.Load() { // else it costs nothing: a login's end is three objects away
		for c := range t.conns {
			if at := c.who.Load().expires; at > 0 && now.UnixNano() >= at && !c.gone() {
				t.shut(ReasonExpired, wire.Unauthorized, "login expired", false)
				return
			}
		}
	}
	if pings && int32(millis(now)-t.nextPing) >= 0 {
		t.nextPing = millis(now.Add(e.cfg.Heartbeat))
		t.send(t.speaks().Ping(nil))
	}
}

// heartbeatGrace is how much longer than a heartbeat a client may be silent.
const heartbeatGrace = 20 * time.Second

// Slow is the driver's word that the queue is stuck, or the fullest when all
// queues together were full.
func (t *transport) Slow() {
	if t.shut(ReasonSlow, wire.TooSlow, "too slow", true) {
		t.e.stats.limit(limitedStuck)
	} else {
		t.nc.Shut(nil, true, closeWait) // it ends already; others wait for the memory
	}
}

// overflow ends a connection whose queue is full.
func (t *transport) overflow() {
	if t.shut(ReasonSlow, wire.TooSlow, "too slow", true) {
		t.e.stats.limit(limitedQueue)
	}
}

// debug logs on the lane: others wait for who calls it, and must not for the
// application's logger.
func (t *transport) debug(msg string, args ...any) {
	if log := t.e.log; log.Enabled(context.Background(), slog.LevelDebug) {
		t.lane.Always(func() { log.Debug(msg, args...) }, t)
	}
}

// Closed is the driver's last call.
func (t *transport) Closed(err error) {
	t.end(ReasonLost, false)
	e, why := t.e, t.why()
	t.debug("push: closed", "conn", t.id(), "user", brief(t.user()), "why", string(why), "err", err)
	e.stats.ended(why)
	if t.counted {
		e.addrs.leave(t.remoteAddr().Addr())
	}
	if s := t.socketio(); s != nil && s.poll != nil {
		s.poll.End()
	}
	e.live.Done()
	e.left()
}

func (t *transport) ending() bool { return t.ends.Load() > 0 }

// why is the reason for its end, "" while it lives.
func (t *transport) why() Reason {
	if i := t.ends.Load(); i > 0 {
		return reasons[i-1]
	}
	return ""
}

// end marks the transport as ending and ends its Conn. It tells whether it was
// the first to do so, and so whose reason counts.
func (t *transport) end(why Reason, flush bool) bool {
	t.e.hooks.Add() // until OnDisconnect is on the lane: Closed may come meanwhile
	defer t.e.hooks.Done()
	if !t.ends.CompareAndSwap(0, 1+uint32(reasonIndex(why))) {
		return false
	}
	for c := range t.conns {
		c.end(why, flush)
	}
	if d := t.device.Load(); d != nil {
		t.e.unpend(d)
		if b := d.bind.Load(); b != nil {
			b.end()
		}
	}
	if s := t.socketio(); s != nil {
		s.unpend()
		s.asking.end()
	}
	return true
}

// conns yields its Conns.
func (t *transport) conns(yield func(*Conn) bool) {
	if s := t.socketio(); s != nil {
		s.all(yield)
	} else if c := t.conn.Load(); c != nil {
		yield(c)
	}
}

// at is its Conn in a namespace, nil without one.
func (t *transport) at(space []byte) *Conn {
	if s := t.socketio(); s != nil {
		return s.at(space)
	}
	return t.conn.Load()
}

// shut ends the transport politely: what is queued (with cut only what is
// already on its way), then the protocol's goodbye with this code.
func (t *transport) shut(why Reason, code wire.Code, text string, cut bool) bool {
	if !t.end(why, !cut) {
		return false
	}
	d, c, s := t.device.Load(), t.conn.Load(), t.socketio()
	switch {
	case cut && t.polls(): // a GET that is held hears of it; nobody waits for the next one
		t.cut(why)
	case d != nil && code == wire.Kicked && c != nil:
		t.nc.Shut(d.session.Close(c.kickNote(d), code, text), cut, deviceWait)
		d.lingers.Store(true)
	case s != nil && (code == wire.Kicked || code == wire.Replaced || code == wire.Unauthorized):
		// It would come back if it were closed without a word.
		if t.polls() { // it closes by a POST, for which there has to be a session
			if last := s.disconnects(); t.nc.Write(last) == nil {
				time.AfterFunc(kickWait, func() { t.cut(why) })
				s.lingers.Store(true)
				break
			}
		}
		t.nc.Shut(s.disconnects(), cut, kickWait)
		s.lingers.Store(true)
	default:
		t.goodbye(t.speaks().Close(nil, code, text), cut)
	}
	return true
}

// answering notes that the OK to a BIND is about to be sent, or was: then it
// tells whether KICK is due behind it. A device that hears them the other way
// round takes itself for bound.
func (c *Conn) answering(yes bool) (kick bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kick = c.kickDue && !yes
	c.oking, c.kickDue = yes, c.kickDue && yes
	return kick
}

// deferKick leaves KICK to whoever is about to answer the BIND, if anybody is.
func (c *Conn) deferKick() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kickDue = c.oking
	return c.oking
}

// hurry shortens the time that a connection has which is ending by itself.
func (t *transport) hurry() {
	if d := t.device.Load(); d != nil && d.lingers.Load() {
		t.nc.HangUp(nil, false, closeWait)
	} else if s := t.socketio(); s != nil && s.lingers.Load() {
		t.nc.Shut(nil, false, closeWait)
	}
}

// kickNote is the KICK that tells a device of its own end.
func (c *Conn) kickNote(d *device) []byte {
	who := c.who.Load()
	return d.session.Kick(nil, who.device, who.user)
}

// cut ends the transport at once.
func (t *transport) cut(why Reason) {
	t.end(why, false)
	if s := t.socketio(); s != nil {
		s.over.Store(true)
	}
	t.nc.Close()
}

// Received is a message from a client.
type Received struct {
	Event string // its name, 1 to 256 bytes of UTF-8 without control characters; "" from an mpush device

	value   wire.Value
	space   []byte // the Socket.IO namespace it is for
	id      uint64 // of the answer
	wanted  bool   // the client wants one
	untyped bool   // its bytes may be JSON as well
}

func newReceived(ev *wire.Event, untyped bool) *Received {
	return &Received{
		untyped: untyped,
		Event:   string(ev.Name), id: ev.ID, wanted: ev.HasID,
		value: ev.Data.Clone(), space: bytes.Clone(ev.Space),
	}
}

func (m *Received) size() int { return len(m.Event) + m.value.Size() }

// Args is how many arguments came: 0 or 1, and of Socket.IO any number.
func (m *Received) Args() int {
	switch {
	case m.value.Args != nil:
		return len(m.value.Args)
	case m.value.JSON == nil && m.value.Bytes == nil:
		return 0
	}
	return 1
}

// arg is argument i, the zero Value if it is not there.
func (m *Received) arg(i int) wire.Value {
	switch {
	case m.value.Args == nil && i == 0:
		return m.value
	case i >= 0 && i < len(m.value.Args):
		return m.value.Args[i]
	}
	return wire.Value{}
}

// Bytes is argument i if it is opaque bytes, nil if it is JSON or not there.
// Bytes inside of an object or array that Socket.IO carries are base64 strings
// in its JSON.
func (m *Received) Bytes(i int) []byte { return m.arg(i).Bytes }

// JSON is argument i as JSON: opaque bytes as a base64 string, null if it is
// not there.
func (m *Received) JSON(i int) json.RawMessage {
	if arg := m.arg(i); arg.JSON == nil {
		return appendJSON(nil, arg)
	} else {
		return arg.JSON
	}
}

// Decode decodes the arguments, in order, as encoding/json does; opaque bytes
// go into a *[]byte. What an mpush device sent is bytes, and decoded as JSON
// into anything else. An argument that is not there is null.
func (m *Received) Decode(into ...any) error {
	for i, v := range into {
		if b := m.Bytes(i); b != nil {
			dst, ok := v.(*[]byte)
			if !ok && m.untyped {
				if err := json.Unmarshal(b, v); err != nil {
					return fmt.Errorf("push: argument %d: %w", i, err)
				}
				continue
			}
			if !ok {
				return fmt.Errorf("push: argument %d is bytes, not JSON", i)
			}
			*dst = b
			continue
		}
		if err := json.Unmarshal(m.JSON(i), v); err != nil {
			return fmt.Errorf("push: argument %d: %w", i, err)
		}
	}
	return nil
}

// handler is a hook for messages, with the name that the log gives it.
type handler struct {
	name string
	call func(ctx context.Context, c *Conn, m *Received) (reply any, err error)
}

// On sets the handler of an event that clients send. in is decoded from the
// message's first argument; what does not decode is answered with an error. A
// client that asked for an answer gets reply, or err's text if it is a Refuse;
// any other error is answered "internal error" and logged. An mpush device's
// messages are event ""; the answer is an ACK if err is nil, without reply, and
// none otherwise. A Socket.IO client's callback gets reply, which may be Args,
// or an object whose error is err's text; c tells the namespace. ctx ends with the connection. On may be called at any time; a second handler of one event
// panics.
func On[T any](e *Engine, event string, h func(ctx context.Context, c *Conn, in T) (reply any, err error)) {
	e.handlersMu.Lock()
	defer e.handlersMu.Unlock()
	if _, ok := e.handlers[event]; ok {
		panic(fmt.Sprintf("push: a second handler for event %q", event))
	}
	e.handlers[event] = handler{"On " + strconv.Quote(event), func(ctx context.Context, c *Conn, m *Received) (any, error) {
		var in T
		if err := m.Decode(&in); err != nil {
			e.stats.undecodable.Add(1)
			return nil, Refuse("cannot decode the data")
		}
		return h(ctx, c, in)
	}}
}

// authenticatePending is authenticate for an upgrade: of those there may be
// only so many at once.
func (e *Engine) authenticatePending(ctx context.Context, l *Login) (*identity, error) {
	if !e.pend(&e.stats.pending) {
		return nil, errMaxPending
	}
	defer e.stats.pending.Add(-1)
	return e.authenticate(ctx, l)
}

// pend counts in a connection whose login is undecided, unless there are too
// many. Pages and devices do not keep each other out.
func (e *Engine) pend(n *atomic.Int64) bool {
	if now := n.Add(1); e.cfg.Limits.MaxPending > 0 && now > int64(e.cfg.Limits.MaxPending) {
		n.Add(-1)
		return false
	}
	return true
}

var errMaxPending = errors.New("push: too many logins at once")

// authenticate asks the gate. The error is ErrUnauthorized (perhaps with a
// text), errPanic, or anything else for "not now".
func (e *Engine) authenticate(ctx context.Context, l *Login) (*identity, error) {
	claimed, space := l.UserID, l.Namespace
	user := ""
	var err error
	if e.cfg.Authenticate == nil {
		if claimed != "" {
			return nil, ErrUnauthorized
		}
	} else {
		var id ConnID
		if l.Conn != nil {
			id = l.Conn.id
		}
		limited := ctx
		if d := e.cfg.Limits.AuthTimeout; d > 0 {
			var cancel context.CancelFunc
			limited, cancel = context.WithTimeout(ctx, d)
			defer cancel()
		}
		if e.hook("Authenticate", id, func() {
			user, err = e.cfg.Authenticate(limited, l)
			if err == nil {
				err = limited.Err()
			}
			err = verdict(err)
		}) {
			return nil, errPanic
		}
		if err != nil && !errors.Is(err, ErrUnauthorized) && ctx.Err() == nil { // it did not just leave
			e.log.Warn("push: Authenticate failed", "user", brief(claimed), "remote", l.Remote, "err", err)
		}
		if err != nil {
			return nil, err
		}
		if user == "" && claimed != "" {
			return nil, ErrUnauthorized
		}
	}
	l.UserID, l.Namespace = user, space
	if err := l.check(); err != nil {
		e.log.Error("push: Authenticate let in what cannot be", "err", err)
		return nil, err
	}
	class, err := e.class(l)
	if err != nil {
		return nil, err
	}
	return newIdentity(user, class, l), nil
}

// verdict makes one of our own errors of what Authenticate returned, whose
// methods are the application's code.
func verdict(err error) error {
	r := (*refusal)(nil)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r):
		return r
	case errors.Is(err, ErrUnauthorized):
		return ErrUnauthorized
	}
	return errors.New(err.Error())
}

var errPanic = errors.New("push: a hook panicked")

// class asks DeviceClass.
func (e *Engine) class(l *Login) (class string, err error) {
	switch {
	case l.UserID == "":
		return "", nil
	case e.cfg.DeviceClass != nil:
	case l.Protocol == protocols[dialectMPush] || l.Protocol == protocols[dialectMPushJSON]:
		return mpush.Class(l.OS), nil
	default:
		return "", nil
	}
	if e.hook("DeviceClass", 0, func() { class = e.cfg.DeviceClass(l) }) {
		return "", errPanic
	}
	if len(class) > maxClass || !utf8.ValidString(class) {
		err = fmt.Errorf("push: DeviceClass of %d bytes, want at most %d of UTF-8", len(class), maxClass)
		e.log.Error("push: login failed", "err", err)
	}
	return class, err
}

// clientText is what a client may read of a refusal.
func clientText(err error) string {
	if r := (*refusal)(nil); errors.As(err, &r) {
		return r.text
	}
	return ErrUnauthorized.Error()
}

// ServeHTTP takes WebSockets; the clients of Socket.IO, where the path's last
// element is socket.io or the query has EIO or transport; and serves the page's
// client where the path ends in /push.js. Any other request that does not ask
// for a WebSocket gets 426.
//
// An upgraded connection belongs to the engine, as Serve says of its own: who
// kept the net.Conn (http.Server.ConnContext, ConnState) cannot end it by that.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if path.Base(r.URL.Path) == "push.js" {
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("ETag", pageClientTag)
		http.ServeContent(w, r, "push.js", time.Time{}, bytes.NewReader(js.Push))
		return
	}
	if speaksSocketIO(r) {
		e.socketIO.ServeHTTP(w, r)
		return
	}
	if no := e.serveWebSocket(w, r); no != nil {
		no.Write(w)
	}
}

func speaksSocketIO(r *http.Request) bool {
	if path.Base(r.URL.Path) == "socket.io" {
		return true
	}
	if raw := r.URL.RawQuery; !strings.Contains(raw, "EIO") && !strings.Contains(raw, "transport") {
		return false
	}
	q := r.URL.Query()
	return q.Has("EIO") || q.Has("transport")
}

var pageClientTag = fmt.Sprintf(`"%x"`, sha256.Sum256(js.Push))

var retryAfter = [2]string{"Retry-After", "5"}

// serveWebSocket lets a WebSocket in, or says why not.
func (e *Engine) serveWebSocket(w http.ResponseWriter, r *http.Request) *upgrade.Refusal {
	refuse := func(why refusedWhy, no *upgrade.Refusal) *upgrade.Refusal {
		e.stats.refused(why)
		return no
	}
	if no := upgrade.Check(r); no != nil {
		return refuse(refusedBadRequest, no)
	}
	if !e.allowsOrigin(r) {
		return refuse(refusedOrigin, &upgrade.Refusal{Status: http.StatusForbidden, Text: "origin not allowed"})
	}
	asked := e.untrusting(r)
	a, why, no := e.arrive(r)
	if no != nil {
		return refuse(why, no)
	}
	defer e.depart(a)
	remote, counted := a.remote, a.counted

	named := upgrade.Negotiate(r, subprotocols)
	d := dialect(max(named, int(dialectJSON)))
	if d == dialectMPush { // who it is, it says in its BIND
		if !e.pend(&e.stats.unopened) {
			return refuse(refusedMaxPending, tooManyLogins)
		}
		nc, unable := upgrade.Do(w, r, protocols[d])
		if unable != nil {
			e.stats.unopened.Add(-1)
			return refuse(unableWhy(unable), unable)
		}
		a.kept = true
		e.startDevice(nc, remote, counted, true, true)
		return nil
	}
	l := claims(asked, d, remote)
	if err := l.check(); err != nil {
		return refuse(refusedBadRequest, &upgrade.Refusal{Status: http.StatusBadRequest, Text: "bad login"})
	}
	who, err := e.authenticatePending(r.Context(), l)
	if err == errMaxPending {
		return refuse(refusedMaxPending, tooManyLogins)
	}
	if e.draining.Load() {
		return refuse(refusedDraining, shuttingDown)
	}
	if err == nil && who.user != "" { // bind decides; this is for the status
		err = e.places.ask(placeKey{kindUser, who.user}, func(pl *place) error {
			_, err := e.makeRoom(pl, nil, who)
			return err
		})
	}
	var code wire.Code
	if err != nil {
		why, no, code = loginRefused(err)
		e.stats.refused(why)
		if r.Header.Get("Origin") == "" {
			return no
		}
	}
	nc, unable := upgrade.Do(w, r, protocols[d])
	if unable != nil {
		return refuse(unableWhy(unable), unable)
	}
	a.kept = true
	if no != nil { // a page cannot see an HTTP status: it gets a close code
		e.dismiss(nc, d, code, no.Text, remote.Addr(), counted)
		return nil
	}
	l.Remote = remote
	if err := e.start(nc, d, e.newSession(d, named < 0), who, l, counted); errors.Is(err, ErrLimit) {
		e.stats.refused(refusedMaxPerUser)
	}
	return nil
}

var (
	tooManyLogins = &upgrade.Refusal{Status: http.StatusServiceUnavailable, Text: "too many logins at once", Header: retryAfter}
	shuttingDown  = &upgrade.Refusal{Status: http.StatusServiceUnavailable, Text: "shutting down", Header: retryAfter}
)

// arrival is a request's connection that is counted in; kept: whoever has it
// counts it out.
type arrival struct {
	remote  netip.AddrPort
	counted bool // by e.addrs
	kept    bool
}

// arrive counts a request's connection in, or says why not. depart follows.
func (e *Engine) arrive(r *http.Request) (*arrival, refusedWhy, *upgrade.Refusal) {
	a := &arrival{remote: e.remote(r)}
	if !e.enter() {
		return nil, refusedDraining, shuttingDown
	}
	limits := &e.cfg.Limits
	if limits.MaxConns > 0 && e.live.Len() > limits.MaxConns {
		e.live.Done()
		return nil, refusedMaxConns, &upgrade.Refusal{Status: http.StatusServiceUnavailable, Text: "too many connections", Header: retryAfter}
	}
	var ok bool
	if a.counted, ok = e.addrs.enter(a.remote.Addr(), limits.MaxConnsPerAddr); !ok {
		e.live.Done()
		return nil, refusedMaxPerAddr, &upgrade.Refusal{Status: http.StatusTooManyRequests, Text: "too many connections from this address"}
	}
	return a, 0, nil
}

// depart counts out what was not kept.
func (e *Engine) depart(a *arrival) {
	if a.kept {
		return
	}
	if a.counted {
		e.addrs.leave(a.remote.Addr())
	}
	e.live.Done()
}

// untrusting is what the gate sees of a request: one from a page that is let in
// only because all are comes without what makes it its user's.
func (e *Engine) untrusting(r *http.Request) *http.Request {
	if e.trustsOrigin(r) {
		return r
	}
	r = r.Clone(r.Context())
	r.Header.Del("Cookie")
	r.Header.Del("Authorization")
	return r
}

func (e *Engine) trustsOrigin(r *http.Request) bool {
	return e.cfg.CheckOrigin != nil || e.origins.Trusts(r)
}

func unableWhy(no *upgrade.Refusal) refusedWhy {
	if no.Status == http.StatusInternalServerError {
		return refusedHijack
	}
	return refusedBadRequest
}

func (e *Engine) allowsOrigin(r *http.Request) bool {
	if e.cfg.CheckOrigin == nil {
		return e.origins.Allows(r)
	}
	allowed := false
	e.hook("CheckOrigin", 0, func() { allowed = e.cfg.CheckOrigin(r) })
	return allowed
}

// loginRefused says how a login that failed is counted and answered: over
// HTTP, and on a connection.
func loginRefused(err error) (refusedWhy, *upgrade.Refusal, wire.Code) {
	switch {
	case errors.Is(err, ErrLimit):
		return refusedMaxPerUser, &upgrade.Refusal{Status: http.StatusTooManyRequests, Text: "limit reached"}, wire.TryLater
	case errors.Is(err, ErrUnauthorized):
		return refusedUnauthorized, &upgrade.Refusal{Status: http.StatusUnauthorized, Text: clientText(err)}, wire.Unauthorized
	case errors.Is(err, errPanic):
		return refusedLater, &upgrade.Refusal{Status: http.StatusInternalServerError, Text: "internal error"}, wire.Internal
	default:
		return refusedLater, &upgrade.Refusal{Status: http.StatusServiceUnavailable, Text: "come back later", Header: retryAfter}, wire.TryLater
	}
}

// claims reads a login from an upgrade.
func claims(r *http.Request, d dialect, remote netip.AddrPort) *Login {
	q := r.URL.Query()
	l := &Login{
		Protocol: protocols[d], UserID: q.Get("user"), Token: q.Get("token"),
		DeviceID: q.Get("device"), OS: q.Get("os"), ClientVersion: q.Get("version"), Tags: q["tag"],
		Remote: remote, Request: r,
	}
	if l.Token == "" {
		if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
			l.Token = token
		}
	}
	return l
}

// remote is the client's address.
func (e *Engine) remote(r *http.Request) netip.AddrPort {
	if e.cfg.RemoteAddr != nil {
		var addr netip.Addr
		e.hook("RemoteAddr", 0, func() { addr = e.cfg.RemoteAddr(r) })
		if addr.IsValid() && !addr.IsUnspecified() {
			return netip.AddrPortFrom(addr.Unmap().WithZone(""), 0)
		}
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil { // a middleware may have put an address alone there
		addr, _ := netip.ParseAddr(r.RemoteAddr)
		peer = netip.AddrPortFrom(addr, 0)
	}
	return netip.AddrPortFrom(peer.Addr().Unmap().WithZone(""), peer.Port())
}

// dismiss tells a page that was upgraded only for that why it is not let in.
// The engine counted it in.
func (e *Engine) dismiss(nc net.Conn, d dialect, code wire.Code, text string, addr netip.Addr, counted bool) {
	session := e.newSession(d, false)
	c := new(netio.Conn)
	e.driver.Drive(c, nc, &dismissed{e, addr, counted}, netip.AddrPort{})
	c.Start()
	c.Shut(session.Close(nil, code, text), false, closeWait)
}

// dismissed swallows what a dismissed page still sends.
type dismissed struct {
	e       *Engine
	addr    netip.Addr
	counted bool
}

func (*dismissed) Data(b []byte) int { return len(b) }
func (*dismissed) Tick(time.Time)    {}
func (*dismissed) Slow()             {}
func (d *dismissed) Closed(error) {
	if d.counted {
		d.e.addrs.leave(d.addr)
	}
	d.e.live.Done()
}

// Serve takes mpush devices from a listener, until Shutdown or Close; then it
// returns ErrClosed. It closes l, and may be called for several at once. A TLS
// listener protects what mpush's own cryptography does not (see
// .github/SECURITY.md); behind a wrapper that hides ConnectionState it looks
// bare, and MPush.AllowPlain says otherwise. Without room for one more connection
// (Limits.MaxConns, MaxPending) it leaves devices in l's backlog: they are
// better off waiting than refused. Errors of l that pass, such as too many
// open files, are waited for, up to a second at a time. An error at once: l is
// nil, or Config.Authenticate is, without which no device may bind.
//
// A connection belongs to the engine, as that of an upgraded request does: on
// Linux it keeps the socket of a plain *net.TCPConn or *net.UnixConn and closes
// the net.Conn, so nobody else can use it any more, or end it. Behind a wrapper
// it is left as it is, and costs a goroutine.
func (e *Engine) Serve(l net.Listener) error {
	if l == nil {
		return errors.New("push: Serve of a nil listener")
	}
	if e.cfg.Authenticate == nil {
		l.Close()
		return errors.New("push: Serve needs Config.Authenticate: without it no device may bind")
	}
	err := e.listeners.Serve(l, e.roomForDevice, func(err error, d time.Duration) error {
		e.stats.limit(limitedAccept)
		e.log.Warn("push: accept failed", "err", err)
		return sleep(context.Background(), d, e.leaving)
	}, e.accept)
	if err == nil || err == ErrClosed {
		return ErrClosed
	}
	e.log.Error("push: Serve ended", "addr", l.Addr(), "err", err)
	return fmt.Errorf("push: accept: %w", err)
}

// roomForDevice waits until there may be one more connection.
func (e *Engine) roomForDevice() error {
	limits := &e.cfg.Limits
	for waited := false; limits.MaxConns > 0 && e.live.Len() >= limits.MaxConns ||
		limits.MaxPending > 0 && e.stats.unopened.Load() >= int64(limits.MaxPending); waited = true {
		if !waited {
			e.stats.limit(limitedAccept)
		}
		timer := time.NewTimer(20 * time.Millisecond) // not every way out pokes, nor every Serve
		select {
		case <-e.room:
		case <-timer.C:
		case <-e.leaving:
		}
		timer.Stop()
		if e.draining.Load() {
			return ErrClosed
		}
	}
	return nil
}

// left pokes a Serve that waits for room.
func (e *Engine) left() {
	select {
	case e.room <- struct{}{}:
	default:
	}
}

// accept takes a device's socket. One too many of its address is neither read
// nor closed for a while, because a client that is refused at once is back at
// once.
func (e *Engine) accept(nc net.Conn) {
	if !e.enter() {
		time.AfterFunc(youngest, func() { nc.Close() })
		return
	}
	_, secure := nc.(interface{ ConnectionState() tls.ConnectionState })
	tcp, _ := nc.(*net.TCPConn)
	if wrapped, ok := nc.(interface{ NetConn() net.Conn }); ok {
		tcp, _ = wrapped.NetConn().(*net.TCPConn)
	}
	var remote netip.AddrPort
	if addr, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
		remote = netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port())
	}
	if tcp != nil {
		// Go's 15 s would keep a phone's radio awake.
		idle := max(e.cfg.MPush.MaxHeartbeat, time.Minute)
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idle, Interval: idle})
	}
	if local, ok := nc.LocalAddr().(*net.TCPAddr); ok && !secure && e.mpush.Key == nil && !local.IP.IsLoopback() {
		e.warnPlain.Do(func() {
			e.log.Warn("push: mpush devices are served without encryption: set MPush.PrivateKey, or serve a TLS listener", "addr", nc.LocalAddr())
		})
	}
	counted, ok := e.addrs.enter(remote.Addr(), e.cfg.Limits.MaxConnsPerAddr)
	if !ok {
		e.stats.refused(refusedMaxPerAddr)
		c := new(netio.Conn)
		e.driver.Drive(c, nc, &dismissed{e: e}, netip.AddrPort{})
		e.unread.hold(c, e.cfg.MPush.RefuseDelay+deviceWait)
		return
	}
	e.stats.unopened.Add(1)
	e.startDevice(nc, remote, counted, secure || e.mpush.Key == nil || e.cfg.MPush.AllowPlain, false)
}

// unread are sockets that are neither read nor closed until their time is
// over, or the engine drains.
type unread struct {
	mu    sync.Mutex
	conns map[*netio.Conn]*time.Timer // guarded by mu
	over  bool                        // guarded by mu
}

func (u *unread) hold(c *netio.Conn, d time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		c.Close()
		return
	}
	if u.conns == nil {
		u.conns = make(map[*netio.Conn]*time.Timer)
	}
	u.conns[c] = time.AfterFunc(d, func() {
		u.mu.Lock()
		delete(u.conns, c)
		u.mu.Unlock()
		c.Close()
	})
}

func (u *unread) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	for c, timer := range u.conns {
		timer.Stop()
		c.Close()
	}
	u.conns = nil
}

// addrCounts counts connections by address.
type addrCounts struct {
	mu sync.Mutex
	n  table.Table[netip.Addr, int] // guarded by mu
}

// enter counts an address in, unless it has as many as limit. Loopback is not
// counted, and nothing is without a limit; what was counted has to leave.
func (a *addrCounts) enter(addr netip.Addr, limit int) (counted, ok bool) {
	if limit <= 0 || !addr.IsValid() || addr.IsLoopback() {
		return false, true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n.Get(addr) >= limit {
		return false, false
	}
	a.n.Set(addr, a.n.Get(addr)+1)
	return true, true
}

func (a *addrCounts) leave(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n.Get(addr) > 1 {
		a.n.Set(addr, a.n.Get(addr)-1)
	} else {
		a.n.Remove(addr)
	}
}

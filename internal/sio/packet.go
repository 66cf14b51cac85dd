package sio

import (
	"bytes"
	"encoding/json"
	"unicode"
	"unicode/utf8"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/wire"
)

// A packet's type, its first character in text.
const (
	typeConnect     byte = iota // client: an object, or none; server: {"sid":…}, or none in protocol 4
	typeDisconnect              // no payload
	typeEvent                   // an array, the first item is the event's name
	typeAck                     // an array; the id is mandatory
	typeError                   // server to client
	typeBinaryEvent             // an event, and that many attachments; not in msgpack
	typeBinaryAck               // an ack, the same
)

const messageDigit = byte(eio.Message)

// What a client may send. The reader's limit is beside it.
const (
	maxAttachments = 10  // of a packet, as in socket.io-parser
	maxArgs        = 256 // of an event or an ack
	maxName        = 256
	maxSpace       = 128
	maxIDDigits    = 10
	maxID          = 9_999_999_999
	maxQuery       = 8 << 10  // behind a namespace
	maxAuth        = 64 << 10 // of a CONNECT
	maxClaim       = 512      // each, and each tag
	maxToken       = 4 << 10
	maxTags        = 32
	maxKey         = 7 // the longest key of a claim
)

// What a client can do wrong. They are shared: nobody may change them.
var (
	errDirection   = &wire.Error{Code: wire.Protocol, Text: "heartbeat in the wrong direction"}
	errPing        = &wire.Error{Code: wire.Policy, Text: "ping with too much data"}
	errType        = &wire.Error{Code: wire.Protocol, Text: "unknown packet type"}
	errFirst       = &wire.Error{Code: wire.Protocol, Text: "first packet is not CONNECT"}
	errForm        = &wire.Error{Code: wire.Protocol, Text: "packet is not in the session's form"}
	errAwaited     = &wire.Error{Code: wire.Protocol, Text: "text while attachments are outstanding"}
	errCount       = &wire.Error{Code: wire.Protocol, Text: "malformed number of attachments"}
	errAttachments = &wire.Error{Code: wire.Policy, Text: "too many attachments"}
	errPlaceholder = &wire.Error{Code: wire.BadData, Text: "placeholder of no attachment, or of one that has one"}
	errSpace       = &wire.Error{Code: wire.BadData, Text: "malformed namespace"}
	errSpaceSize   = &wire.Error{Code: wire.Policy, Text: "namespace too long"}
	errID          = &wire.Error{Code: wire.Protocol, Text: "malformed ack id, none, or one too many"}
	errJSON        = &wire.Error{Code: wire.BadData, Text: "payload is not JSON"}
	errPacked      = &wire.Error{Code: wire.BadData, Text: "packet is not a msgpack map"}
	errTranscode   = &wire.Error{Code: wire.BadData, Text: "payload has no JSON"}
	errShape       = &wire.Error{Code: wire.BadData, Text: "payload is not what its type has"}
	errName        = &wire.Error{Code: wire.BadData, Text: "event is not a name of 1 to 256 bytes"}
	errReserved    = &wire.Error{Code: wire.Policy, Text: "event name is reserved"}
	errArgs        = &wire.Error{Code: wire.Policy, Text: "too many arguments"}
	errAuth        = &wire.Error{Code: wire.TooBig, Text: "auth or query too big"}
	errTooBig      = &wire.Error{Code: wire.TooBig, Text: "packet with its attachments too big"}
)

// packet is one packet without its attachments.
type packet struct {
	typ         byte // typeConnect to typeError
	attached    bool // it was a binary type: placeholders mean something
	packed      bool // data is msgpack
	hasID       bool
	attachments int
	space       []byte // with its slash; empty: the main one
	query       []byte
	id          uint64
	data        []byte // JSON not yet judged, or msgpack that packedSkip has accepted; nil: none
	name        []byte // of an event, once it is judged
	args        int    // once it is judged: where in data the arguments begin; in msgpack, which item is the first
}

// unfinished is a packet whose attachments are coming.
type unfinished struct {
	packet packet // in memory of its own
	holes  []hole
	parts  [][]byte
	size   int // of the packet and of parts
}

// message reads a packet of Socket.IO, or one attachment.
func (s *Session) message(p *eio.Packet, ev *wire.Event) error {
	if s.pending != nil {
		if !p.Binary {
			return errAwaited
		}
		return s.attachment(p.Data, ev)
	}
	var pkt packet
	var err error
	if p.Binary {
		if s.joined && s.Form() != Packed || s.rev == eio.V3 {
			return errForm
		}
		pkt.packed = true
		err = pkt.parsePacked(p.Data)
	} else {
		if s.joined && s.Form() == Packed {
			return errForm
		}
		err = pkt.parse(p.Data)
	}
	if err != nil {
		return err
	}
	if err := pkt.splitSpace(s.rev); err != nil {
		return err
	}
	if !s.joined && s.rev != eio.V3 && pkt.typ != typeConnect {
		return errFirst
	}
	holes, err := pkt.judge()
	if err != nil {
		return err
	}
	if pkt.attachments > 0 {
		s.await(&pkt, holes, len(p.Data))
		return nil
	}
	if err := pkt.event(ev, nil, nil); err != nil {
		return err
	}
	if pkt.typ == typeConnect && !s.joined {
		s.joined = true
		if pkt.packed {
			s.form.Store(uint32(Packed))
		}
	}
	return nil
}

// await keeps a packet until its attachments are there.
func (s *Session) await(p *packet, holes []hole, size int) {
	u := &unfinished{packet: *p, holes: holes, size: size}
	u.packet.space = bytes.Clone(p.space)
	u.packet.name = bytes.Clone(p.name)
	u.packet.data = bytes.Clone(p.data)
	s.pending = u
}

// attachment takes the next of the attachments that are outstanding.
func (s *Session) attachment(data []byte, ev *wire.Event) error {
	u := s.pending
	u.size += len(data)
	if limit := s.reader.Limit(); limit >= 0 && u.size > limit {
		return errTooBig
	}
	if len(u.parts)+1 < u.packet.attachments {
		u.parts = append(u.parts, append([]byte{}, data...))
		return nil
	}
	if data == nil {
		data = []byte{} // an attachment is never nil, that would be no value
	}
	u.parts = append(u.parts, data)
	s.pending = nil
	return u.packet.event(ev, u.holes, u.parts)
}

// parse reads the text of a packet:
//
//	<type>[<n>-][<namespace>,][<ack id>][JSON]
func (p *packet) parse(b []byte) error {
	if len(b) == 0 || b[0] < '0' || b[0] > '0'+typeBinaryAck {
		return errType
	}
	p.typ = b[0] - '0'
	i := 1
	if p.typ >= typeBinaryEvent {
		p.typ -= typeBinaryEvent - typeEvent
		p.attached = true
		n, used := digits(b[i:])
		i += used
		if used == 0 || i == len(b) || b[i] != '-' {
			return errCount
		}
		if i++; n > maxAttachments {
			return errAttachments
		}
		p.attachments = int(n)
	}
	if i < len(b) && b[i] == '/' {
		end := bytes.IndexByte(b[i:], ',')
		if end < 0 {
			p.space = b[i:]
			return nil
		}
		p.space = b[i : i+end]
		i += end + 1
	}
	id, used := digits(b[i:])
	if used > 0 {
		if id > maxID {
			return errID
		}
		p.id, p.hasID = id, true
	}
	if i += used; i < len(b) {
		p.data = b[i:]
	}
	return nil
}

// digits reads the number that b begins with; n is how many digits it has. Of
// more than maxIDDigits it says a number that is over every limit.
func digits(b []byte) (u uint64, n int) {
	for n < len(b) && '0' <= b[n] && b[n] <= '9' {
		if n < maxIDDigits {
			u = u*10 + uint64(b[n]-'0')
		} else {
			u = maxID + 1
		}
		n++
	}
	return u, n
}

// splitSpace judges the namespace. Protocol 4 has no other place for what a
// client says of itself than a query behind it; in 5 a name may have a '?'. A
// comma, which only msgpack could bring, cannot be written in the other forms.
func (p *packet) splitSpace(rev eio.Revision) error {
	if i := bytes.IndexByte(p.space, '?'); i >= 0 && rev == eio.V3 {
		p.space, p.query = p.space[:i], p.space[i+1:]
		if len(p.query) > maxQuery {
			return errAuth
		}
	}
	switch {
	case len(p.space) > maxSpace:
		return errSpaceSize
	case !plain(p.space) || !plain(p.query) || bytes.IndexByte(p.space, ',') >= 0:
		return errSpace
	case len(p.space) == 1:
		p.space = nil
	}
	return nil
}

// plain reports whether s is UTF-8 and has no control characters.
func plain(s []byte) bool {
	ascii := true
	for _, c := range s {
		if c < ' ' || c == 0x7f {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	if ascii {
		return true
	}
	for _, r := range string(s) {
		if unicode.IsControl(r) {
			return false
		}
	}
	return utf8.Valid(s)
}

// judge says whether a packet is what its type has, and finds its name and its
// placeholders.
func (p *packet) judge() (holes []hole, err error) {
	switch {
	case p.typ == typeError:
		return nil, errType // is the server's to send
	case p.hasID != (p.typ == typeAck) && p.typ != typeEvent:
		return nil, errID
	case p.packed:
		return nil, p.judgePacked()
	case p.data == nil:
		if p.typ == typeEvent || p.typ == typeAck {
			err = errShape
		}
		return nil, err
	case !json.Valid(p.data):
		return nil, errJSON
	}
	at := skipSpace(p.data, 0)
	switch p.typ {
	case typeConnect:
		if p.data[at] != '{' {
			return nil, errShape
		}
		if len(p.data) > maxAuth {
			return nil, errAuth
		}
		return nil, nil
	case typeDisconnect:
		return nil, errShape
	}
	if p.data[at] != '[' {
		return nil, errShape
	}
	p.args = at + 1
	if p.typ == typeEvent {
		c := items{p.data, p.args}
		from, to, ok := c.next()
		if !ok || p.data[from] != '"' {
			return nil, errShape
		}
		if p.name, ok = unquote(p.data[from:to], maxName); !ok {
			return nil, errName
		}
		if err := checkName(p.name); err != nil {
			return nil, err
		}
		p.args = c.i
	}
	if p.attached {
		return findHoles(p.data, p.attachments)
	}
	return nil, nil
}

func (p *packet) judgePacked() error {
	var k packedKind
	var size int
	var n uint64
	if p.data != nil {
		k, size, n = packedHead(p.data)
	}
	switch p.typ {
	case typeConnect:
		if p.data != nil && k != packedMap {
			return errShape
		}
		if len(p.data) > maxAuth {
			return errAuth
		}
	case typeDisconnect:
		if p.data != nil {
			return errShape
		}
	case typeAck:
		if k != packedList {
			return errShape
		}
	case typeEvent:
		if k != packedList || n == 0 {
			return errShape
		}
		used, _ := packedSkip(p.data[size:], maxDepth)
		name, ok := packedString(p.data[size : size+used])
		if !ok {
			return errShape
		}
		if err := checkName(name); err != nil {
			return err
		}
		p.name, p.args = name, 1
	}
	return nil
}

func checkName(name []byte) error {
	if len(name) == 0 || len(name) > maxName || !plain(name) { // one in msgpack was not measured yet
		return errName
	}
	switch string(name) {
	case "connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener":
		return errReserved
	}
	return nil
}

// event says what a packet that was judged means.
func (p *packet) event(ev *wire.Event, holes []hole, parts [][]byte) (err error) {
	ev.Space = p.space
	switch p.typ {
	case typeConnect:
		ev.Kind = wire.Login
		ev.Login, err = p.login()
		return err
	case typeDisconnect:
		ev.Kind = wire.Logout
		return nil
	case typeEvent:
		ev.Kind, ev.Name = wire.Message, p.name
		if string(p.name) == "error" { // the client library's own name for a refusal
			ev.Kind = wire.Ignored
			return nil
		}
	case typeAck:
		ev.Kind = wire.Ack
	}
	ev.ID, ev.HasID = p.id, p.hasID && p.typ == typeEvent
	if p.packed {
		ev.Data, err = packedArgs(p.data, p.args)
	} else {
		ev.Data, err = argumentsOf(p.data, p.args, holes, parts)
	}
	return err
}

// login reads a CONNECT.
func (p *packet) login() (*wire.LoginClaim, error) {
	l := &wire.LoginClaim{Query: string(p.query)}
	switch {
	case p.data == nil:
		return l, nil
	case p.packed:
		auth, _, err := appendJSON(make([]byte, 0, len(p.data)*3/2+16), p.data)
		if err != nil {
			return nil, err
		}
		if len(auth) > maxAuth {
			return nil, errAuth
		}
		l.Auth = auth
	default:
		l.Auth = bytes.Clone(bytes.TrimSpace(p.data))
	}
	claim(l)
	return l, nil
}

// claim reads the keys of an auth object that mean something here, when they
// are strings of sane size. What is not is left to whoever reads Auth.
func claim(l *wire.LoginClaim) {
	var user, userID string
	for c := (items{l.Auth, 1}); ; {
		key, val, ok := c.pair()
		if !ok {
			break
		}
		if key, ok = unquote(key, maxKey); !ok {
			continue
		}
		var into *string
		limit := maxClaim
		switch string(key) {
		case "user":
			into = &user
		case "userId":
			into = &userID
		case "token":
			into, limit = &l.Token, maxToken
		case "device":
			into = &l.Device
		case "os":
			into = &l.OS
		case "version":
			into = &l.Version
		case "tags":
			l.Tags = tags(val)
			continue
		default:
			continue
		}
		*into, _ = claimText(val, limit)
	}
	if l.User = user; user == "" {
		l.User = userID
	}
}

// tags reads an array of strings of sane size; nil: it is none.
func tags(val []byte) (tags []string) {
	if val[0] != '[' {
		return nil
	}
	for c := (items{val, 1}); ; {
		from, to, ok := c.next()
		if !ok {
			return tags
		}
		tag, ok := claimText(val[from:to], maxClaim)
		if !ok || len(tags) == maxTags {
			return nil
		}
		tags = append(tags, tag)
	}
}

func claimText(val []byte, limit int) (string, bool) {
	if val[0] != '"' {
		return "", false
	}
	s, ok := unquote(val, limit)
	if !ok || !plain(s) {
		return "", false
	}
	return string(s), true
}

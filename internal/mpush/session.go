package mpush

import (
	"bytes"
	"crypto/rand"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// Config is what all sessions of a server share. Nobody changes it.
type Config struct {
	Key    *PrivateKey // of the handshake; nil: only plain handshakes can be understood
	Tokens *Tokens     // nil: sessions are not resumed

	MinHeartbeat, MaxHeartbeat time.Duration

	MaxMessage int  // bytes of a body, and of what it inflates to about four times that; -1: none
	NoJSON     bool // the JSON form is refused
	Compress   int  // a push or an answer over this many bytes is compressed; 0 or less: none
}

// Form is how a session's packets are written.
type Form uint8

const (
	Undecided Form = iota // over a WebSocket, before its first message
	Packets               // 13-byte headers; over a WebSocket in binary messages
	JSON                  // section 11: text messages of a WebSocket
)

// What is bounded beside MaxMessage.
const (
	maxEarly    = 8 << 10 // a body before the handshake
	maxDevice   = 128
	maxClaim    = 256 // osName, osVersion, clientVersion: cut
	maxUser     = 256
	maxTags     = 32       // of a bind; one more is passed on, for its owner to refuse
	maxToken    = 4 << 10  // its data; one byte more, the same
	maxBind     = 16 << 10 // all of it, inflated
	maxInflated = 256 << 10
	maxBlunders = 3               // of one kind on one connection; the third closes it
	maxSkew     = 5 * time.Minute // a handshake's timestamp, if it has one
)

// Session is the server's side of one connection, a wire.Session. Its states
// are: fresh; opening, from the Open event until Open has returned, in which
// Feed is not called; and open, in which the keys, the heartbeat and the form
// do not change any more. Between two packets it holds nothing but itself.
type Session struct {
	cfg *Config
	web *webSocket // static; nil: over TCP

	// Feed's, and Open's while opening.
	part    *partial // of a Reader
	request *Packet  // of the Open event; nil: it was answered

	// Static once open; of no meaning in the JSON form.
	key, iv [KeyLen]byte
	cipher  atomic.Pointer[Cipher] // of them; not static, see keyed; nil: to be made
	uses    atomic.Uint32          // of keyed since Rest, up to busy

	heartbeat int32 // static once open: as negotiated, in milliseconds
	opener    int32 // Feed's: id of the fast connect that opened it
	resumed   bool  // Feed's: there was one
	state     state // Feed's, and Open's while opening
	repeats   uint8 // Feed's: handshakes on an open session
	failures  uint8 // Feed's: fast connects
	bound     bool  // Feed's: a BIND came: sealed is static
	plain     bool  // static: a handshake may come plain
	form      Form  // Feed's; static once open
	encrypted bool  // static once open: the handshake was: what has a body has to be
	sealed    bool  // pushes are encrypted
}

// webSocket is what Feed has besides when packets come in WebSocket messages.
type webSocket struct {
	frames ws.Reader
	rest   []byte // of a message with several packets: the packets behind the first
	deaf   bool   // of messages
}

type state uint8

const (
	fresh state = iota
	opening
	open
)

// Device is what the handshake told, or the token kept.
type Device struct {
	ID, OS, OSVersion, Version string
}

// NewSession is the session of a connection that was accepted. plain: its
// transport protects it, or nothing has to, so a handshake may come without
// encryption (section 5). overWebSocket: packets come in its messages.
func NewSession(cfg *Config, plain, overWebSocket bool) *Session {
	s := &Session{cfg: cfg, plain: plain, form: Packets}
	if overWebSocket {
		s.web, s.form = &webSocket{frames: ws.Reader{Max: s.maxBody() + HeaderLen}}, Undecided
	}
	return s
}

// NewJSON is the session of a WebSocket that spoke another dialect until its
// first message turned out to be a packet in JSON, which goes to First.
func NewJSON(cfg *Config) *Session {
	s := NewSession(cfg, true, true)
	s.form = JSON
	return s
}

// maxBody is a Reader's Max.
func (s *Session) maxBody() int {
	switch most := s.cfg.MaxMessage; {
	case s.state == open:
		return most
	case most < 0:
		return maxEarly
	default:
		return min(most, maxEarly)
	}
}

// Form is how packets are written.
func (s *Session) Form() Form { return s.form }

// Heartbeat is how often the client wants to be heard. The session is open.
func (s *Session) Heartbeat() time.Duration { return time.Duration(s.heartbeat) * time.Millisecond }

// busy is how often a session has to need its cipher between two calls of Rest
// for it to be kept: that is more than a BIND and a push behind it.
const busy = 3

// keyed is the session's cipher, several times as large as all the rest: it is
// made each time it is needed, but while the session is busy.
func (s *Session) keyed() *Cipher {
	if s.uses.Load() < busy {
		s.uses.Add(1)
	}
	c := s.cipher.Load()
	if c == nil {
		c, _ = NewCipher(s.key[:], s.iv[:])
		if s.uses.Load() >= busy {
			s.cipher.Store(c)
		}
	}
	return c
}

// Rest is to be called every second or so, by one goroutine at a time: it lets
// go of the cipher that was not needed since the last call.
func (s *Session) Rest() {
	if s.uses.Load() > 0 {
		s.uses.Store(0)
	} else if s.cipher.Load() != nil {
		s.cipher.Store(nil)
	}
}

// next reads a packet.
func (s *Session) next(in []byte, p *Packet) (n int, err error) {
	r := Reader{Max: s.maxBody(), part: s.part}
	n, err = r.Next(in, p)
	s.part = r.part
	return n, err
}

// Partial implements wire.Session.
func (s *Session) Partial() bool {
	r := Reader{part: s.part}
	return r.Partial() || s.web != nil && s.web.frames.Partial()
}

// Feed implements wire.Session.
func (s *Session) Feed(in []byte, ev *wire.Event) (n int, err error) {
	*ev = wire.Event{}
	if s.web != nil {
		return s.feedMessages(s.web, in, ev)
	}
	for n < len(in) && ev.Kind == wire.None {
		var p Packet
		used, err := s.next(in[n:], &p)
		n += used
		if err != nil {
			return n, s.misframed(&p, err)
		}
		if p.OK {
			if err := s.packet(&p, ev); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// feedMessages reads WebSocket messages: the payloads of binary ones are one
// stream of packets, a text one is one packet in JSON, and the first of either
// kind decides. A message that ends several packets is used up but for its
// last byte until the last of them is told: so the caller, who may stop
// between any two events, has bytes to come back with.
func (s *Session) feedMessages(w *webSocket, in []byte, ev *wire.Event) (n int, err error) {
	if len(w.rest) > 0 {
		if w.deaf {
			w.rest = nil
		} else if err := s.unpack(w, ev); err != nil {
			return 0, err
		}
		if len(w.rest) > 0 {
			return 0, nil
		}
		w.rest = nil
		n = 1 // the byte that was kept back
	}
	for n < len(in) && ev.Kind == wire.None {
		var m ws.Message
		used, err := w.frames.Next(in[n:], &m)
		n += used
		if err != nil {
			return n, err
		}
		if m.Op == ws.Text || m.Op == ws.Binary {
			if w.deaf {
				continue
			}
			if s.form == Undecided {
				if s.form = Packets; m.Op == ws.Text {
					s.form = JSON
				}
			}
			if (s.form == JSON) != (m.Op == ws.Text) || s.form == JSON && s.cfg.NoJSON {
				return n, errKind
			}
		}
		switch m.Op {
		case ws.Text:
			err = s.First(m.Payload, ev)
		case ws.Binary:
			w.rest = m.Payload
			if err = s.unpack(w, ev); len(w.rest) > 0 {
				w.rest = bytes.Clone(w.rest)
				return n - 1, err
			}
			w.rest = nil
		default:
			m.Control(ev)
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

var errKind = &wire.Error{Code: wire.Unsupported, Text: "this session has no messages of that kind"}

// unpack takes the next packet off rest.
func (s *Session) unpack(w *webSocket, ev *wire.Event) error {
	for len(w.rest) > 0 && ev.Kind == wire.None {
		var p Packet
		used, err := s.next(w.rest, &p)
		w.rest = w.rest[used:]
		if err != nil {
			return s.misframed(&p, err)
		}
		if p.OK {
			if err := s.packet(&p, ev); err != nil {
				return err
			}
		}
	}
	return nil
}

// misframed is the end of a connection whose header cannot be: a negative
// length is answered, one over the limit is not (section 1).
func (s *Session) misframed(p *Packet, err error) error {
	if err == ErrNegative {
		return s.broken(p.Cmd, p.ID, CodeHandler)
	}
	return &wire.Error{Code: wire.TooBig, Text: "body over the limit"}
}

// Texts of ERROR bodies, as the Java server has them.
const (
	textHandler      = "handle message error"
	textUnsupported  = "unsupported command"
	textRepeat       = "repeat handshake"
	textExpired      = "session expired"
	textDevice       = "invalid device"
	textNotHandshake = "not handshake"
	textParam        = "invalid param"
	textBindFailed   = "bind failed"
)

var errorTexts = map[int8]string{
	CodeHandler: textHandler, CodeUnsupported: textUnsupported, CodeRepeat: textRepeat, CodeExpired: textExpired, CodeDevice: textDevice,
}

// broken ends a connection with an ERROR (section 14).
func (s *Session) broken(cmd Cmd, id int32, code int8) error {
	return &wire.Error{Code: wire.Protocol, Text: errorTexts[code], Reply: s.error(nil, cmd, id, code, errorTexts[code], "")}
}

// refused ends a connection with an ERROR of code 0.
func (s *Session) refused(cmd Cmd, id int32, text string) error {
	return &wire.Error{Code: wire.Policy, Text: text, Reply: s.error(nil, cmd, id, 0, text, "")}
}

// packet reads one packet or heartbeat.
func (s *Session) packet(p *Packet, ev *wire.Event) error {
	if p.Beat {
		ev.Kind, ev.Reply = wire.Ping, s.beat()
		return nil
	}
	cmd, id := p.Cmd, p.ID
	switch cmd {
	case CmdHeartbeat: // section 1: a whole frame is answered with the byte
		ev.Kind, ev.Reply = wire.Ping, s.beat()
		return nil
	case CmdHandshake, CmdFastConnect, CmdBind, CmdUnbind, CmdPush, CmdHTTPProxy, CmdAck:
	default:
		return s.broken(cmd, id, CodeUnsupported)
	}
	if p.Flags&FlagJSON != 0 {
		return s.broken(cmd, id, CodeHandler)
	}
	switch {
	case cmd == CmdAck: // its body, if any, means nothing
		ev.Kind, ev.ID = wire.Ack, uint64(uint32(id))
		return nil
	case cmd == CmdHandshake && s.state == open:
		return s.repeated(id, ev)
	case cmd == CmdHandshake || cmd == CmdFastConnect:
		return s.ask(p, ev)
	case s.state != open && p.Flags&FlagCrypto != 0 && len(p.Body) > 0: // with which key?
		return s.broken(cmd, id, CodeHandler)
	case s.state != open:
		return s.refused(cmd, id, textNotHandshake)
	}
	body, err := s.body(p)
	if err != nil {
		return s.broken(cmd, id, CodeHandler)
	}
	switch cmd {
	case CmdBind:
		var b Bind
		if err := b.Decode(body); err != nil && len(body) > 0 {
			return s.broken(cmd, id, CodeHandler)
		}
		if !s.bound { // section 5
			s.bound = true
			s.sealed = s.encrypted || p.Flags&FlagCrypto != 0 // a client hears what it speaks
		}
		return s.bind(&b, id, ev)
	case CmdUnbind:
		var b Bind
		if err := b.Decode(body); err != nil && len(body) > 0 {
			return s.broken(cmd, id, CodeHandler)
		}
		return s.unbind(&b, id, ev)
	case CmdPush:
		s.message(body, p.Flags, id, ev)
	case CmdHTTPProxy:
		ev.Kind, ev.ID = wire.Request, uint64(uint32(id))
		var r ProxyRequest
		if err := r.Decode(body); err == nil {
			ev.HTTP = &wire.HTTPRequest{Method: r.Method, URI: r.URI, Headers: r.Headers, Body: bytes.Clone(r.Body)}
		}
	}
	return nil
}

// body is a packet's body, decrypted and inflated. Encryption is told by the
// packet's flag, but who shook hands encrypted has to go on so; an empty body
// has neither (section 3).
func (s *Session) body(p *Packet) (body []byte, err error) {
	body = p.Body
	if len(body) == 0 {
		return body, nil
	}
	if p.Flags&FlagCrypto != 0 {
		if body, err = s.keyed().Open(body); err != nil {
			return nil, err
		}
	} else if s.encrypted {
		return nil, ErrBody
	}
	if p.Flags&FlagCompress != 0 {
		limit := s.inflated()
		if !s.bound || p.Cmd == CmdBind || p.Cmd == CmdUnbind {
			limit = min(limit, maxBind) // nobody pays for more yet
		}
		body, err = Inflate(body, limit)
	}
	return body, err
}

// inflated is how much a compressed body may become.
func (s *Session) inflated() int {
	if s.cfg.MaxMessage < 0 {
		return 16 << 20
	}
	return max(s.cfg.MaxMessage, min(4*s.cfg.MaxMessage, maxInflated))
}

// repeated answers a handshake on an open session: it changes nothing.
func (s *Session) repeated(id int32, ev *wire.Event) error {
	if s.repeats++; s.repeats >= maxBlunders {
		return s.broken(CmdHandshake, id, CodeRepeat)
	}
	ev.Kind, ev.Reply = wire.Reply, s.error(nil, CmdHandshake, id, CodeRepeat, textRepeat, "")
	return nil
}

// ask asks the owner to call Open.
func (s *Session) ask(p *Packet, ev *wire.Event) error {
	if s.state == open { // a fast connect would change the keys under what is being sent
		if s.resumed && p.ID == s.opener { // the one that opened the session, sent again: some clients do after a second
			ev.Kind, ev.Reply = wire.Reply, s.resumedOK(p.ID)
			return nil
		}
		return s.failed(p.ID, CodeExpired, func(reply []byte) { ev.Kind, ev.Reply = wire.Reply, reply })
	}
	s.state = opening
	s.request = &Packet{Header: p.Header, Body: bytes.Clone(p.Body)}
	ev.Kind = wire.Open
	ev.Heavy = p.Cmd == CmdHandshake && p.Flags&FlagCrypto != 0 && s.cfg.Key != nil
	return nil
}

// failed answers a fast connect that failed; the client shakes hands on the
// same connection, or, the third time, is not let try again.
func (s *Session) failed(id int32, code int8, reply func([]byte)) error {
	if s.failures++; s.failures >= maxBlunders {
		return s.broken(CmdFastConnect, id, code)
	}
	reply(s.error(nil, CmdFastConnect, id, code, errorTexts[code], ""))
	return nil
}

// Opened is what Open made of a request.
type Opened struct {
	Reply  []byte // to be sent
	OK     bool   // the session is open
	Device Device // with OK: what is known of the client, which the session does not keep
	Slow   bool   // the error is about a handshake: it is answered at a time that tells nothing
}

// Open answers the request of an Open event. It is called once for each, by
// any goroutine, and nothing is fed meanwhile. An error is a *wire.Error and
// ends the connection.
func (s *Session) Open(now time.Time) (Opened, error) {
	p := s.request
	s.Discard()
	if p.Cmd == CmdFastConnect {
		return s.fastConnect(p, now)
	}
	var h Handshake
	switch {
	case s.form == JSON:
		if h.DecodeJSON(p.Body) == nil && validDevice(h.DeviceID) {
			s.opened(h.MaxHeartbeat)
			return Opened{OK: true, Device: h.device(), Reply: s.handshakeOK(p.ID)}, nil
		}
	case s.decodeHandshake(p, &h) && validDevice(h.DeviceID) && !(h.Timestamp != 0 && now.Sub(time.UnixMilli(h.Timestamp)) > maxSkew):
		s.encrypted = p.Flags&FlagCrypto != 0
		is := h.device()
		return Opened{OK: true, Device: is, Reply: s.greet(&h, &is, p.ID, now)}, nil
	}
	// One failure for everything that can be wrong, so that it tells nothing
	// of the padding (RFC 8017 section 7.2.2, note).
	return Opened{Slow: true}, s.broken(CmdHandshake, p.ID, CodeHandler)
}

// Deafen has Feed read no packets any more, only the control frames of its
// WebSocket. It is called where Feed is.
func (s *Session) Deafen() { s.web.deaf = true }

// Discard forgets the request of an Open event, instead of answering it.
func (s *Session) Discard() {
	s.request = nil
	s.state = fresh
}

// decodeHandshake decrypts and reads a handshake. What does not decrypt goes
// the same way as random bytes.
func (s *Session) decodeHandshake(p *Packet, h *Handshake) bool {
	body := p.Body
	crypto := p.Flags&FlagCrypto != 0
	switch {
	case crypto && s.cfg.Key != nil:
		body = s.cfg.Key.Decrypt(body)
	case crypto, !s.plain, p.Flags&FlagCompress != 0:
		return false
	}
	if p.Flags&FlagCompress != 0 {
		inflated, err := Inflate(body, maxEarly)
		if err != nil {
			return false
		}
		body = inflated
	}
	return h.Decode(body) == nil && len(h.Append(nil)) == len(body) && // nothing behind it
		len(h.ClientKey) == 16 && len(h.IV) == 16
}

func validDevice(id string) bool {
	return len(id) >= 1 && len(id) <= maxDevice && printable(id)
}

func printable(text string) bool {
	return utf8.ValidString(text) && strings.IndexFunc(text, control) < 0
}

func control(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }

// claim is what may be kept of a client's text about itself.
func claim(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), maxClaim)], "")
	return strings.Map(func(r rune) rune {
		if control(r) {
			return -1
		}
		return r
	}, text)
}

func (h *Handshake) device() Device {
	return Device{ID: h.DeviceID, OS: claim(h.OSName), OSVersion: claim(h.OSVersion), Version: claim(h.ClientVersion)}
}

// opened lifts the bounds of before the handshake, and negotiates the heartbeat
// (section 7): the most that the client wants, within what the server does.
func (s *Session) opened(most int32) {
	s.state = open
	wanted := time.Duration(most) * time.Millisecond
	s.heartbeat = int32(max(s.cfg.MinHeartbeat, min(wanted, s.cfg.MaxHeartbeat)).Milliseconds())
	if w := s.web; w != nil {
		if w.frames.Max = -1; s.cfg.MaxMessage >= 0 {
			w.frames.Max = s.cfg.MaxMessage + HeaderLen
		}
	}
}

// greet makes the keys and answers a handshake: under the client's key, and
// from then on the mixed one counts (section 5).
func (s *Session) greet(h *Handshake, is *Device, id int32, now time.Time) []byte {
	s.opened(h.MaxHeartbeat)
	serverKey := make([]byte, KeyLen)
	rand.Read(serverKey)
	s.key, s.iv = MixKey(h.ClientKey, serverKey), [KeyLen]byte(h.IV)
	first, _ := NewCipher(h.ClientKey, h.IV)
	ok := HandshakeOK{ServerKey: serverKey, Heartbeat: s.heartbeat}
	if t := s.cfg.Tokens; t != nil {
		kept := Resumed{
			DeviceID: is.ID, Key: s.key, IV: s.iv, Plain: !s.encrypted,
			OSName: is.OS, OSVersion: is.OSVersion, ClientVersion: is.Version,
		}
		ok.SessionID = t.Seal(now, &kept)
		ok.ExpireTime = kept.Expires.UnixMilli()
	}
	return s.seal(nil, CmdHandshake, 0, id, ok.Append(nil), first)
}

func (s *Session) fastConnect(p *Packet, now time.Time) (o Opened, err error) {
	var f FastConnect
	body := p.Body
	if p.Flags&FlagCompress != 0 && len(body) > 0 { // clients compress what is long, also with our tokens
		if body, err = Inflate(body, maxEarly); err != nil {
			return o, s.broken(CmdFastConnect, p.ID, CodeHandler)
		}
	}
	if p.Flags&FlagCrypto != 0 && len(body) > 0 || f.Decode(body) != nil {
		return o, s.broken(CmdFastConnect, p.ID, CodeHandler)
	}
	var r Resumed
	err = ErrExpired
	if s.cfg.Tokens != nil {
		r, err = s.cfg.Tokens.Open(now, f.SessionID, f.DeviceID)
	}
	if err == nil && r.Plain && !s.plain {
		err = ErrExpired // it was made where plain is all right
	}
	if err != nil {
		code := int8(CodeExpired)
		if err == ErrDevice {
			code = CodeDevice
		}
		err = s.failed(p.ID, code, func(reply []byte) { o.Reply = reply })
		return o, err
	}
	s.key, s.iv = r.Key, r.IV
	s.encrypted = !r.Plain
	s.opened(f.MaxHeartbeat)
	s.resumed, s.opener = true, p.ID
	is := Device{ID: f.DeviceID, OS: r.OSName, OSVersion: r.OSVersion, Version: r.ClientVersion}
	return Opened{OK: true, Device: is, Reply: s.resumedOK(p.ID)}, nil
}

func (s *Session) resumedOK(id int32) []byte {
	ok := FastConnectOK{Heartbeat: s.heartbeat}
	return s.append(nil, CmdFastConnect, 0, id, ok.Append(nil))
}

// bind reads a BIND: a login.
func (s *Session) bind(b *Bind, id int32, ev *wire.Event) error {
	if b.UserID == "" || len(b.UserID) > maxUser || !printable(b.UserID) {
		return s.refused(CmdBind, id, textParam)
	}
	ev.Kind, ev.ID = wire.Login, uint64(uint32(id))
	ev.Login = &wire.LoginClaim{User: b.UserID, Token: strings.Clone(b.Data[:min(len(b.Data), maxToken+1)])}
	for tag := range strings.SplitSeq(b.Tags, ",") {
		if len(ev.Login.Tags) > maxTags {
			break // one too many already
		}
		if tag = strings.TrimSpace(tag); tag != "" && !slices.Contains(ev.Login.Tags, tag) {
			ev.Login.Tags = append(ev.Login.Tags, strings.Clone(tag))
		}
	}
	return nil
}

// unbind reads an UNBIND: a logout of whoever is bound, whom it names means
// nothing.
func (s *Session) unbind(b *Bind, id int32, ev *wire.Event) error {
	if b.UserID == "" {
		return s.refused(CmdUnbind, id, textParam)
	}
	ev.Kind, ev.ID = wire.Logout, uint64(uint32(id))
	return nil
}

// message reads a PUSH.
func (s *Session) message(content []byte, flags Flags, id int32, ev *wire.Event) {
	if content == nil {
		content = []byte{}
	}
	ev.Kind, ev.Data.Bytes = wire.Message, content
	ev.HasID, ev.ID = flags&(FlagAutoAck|FlagBizAck) != 0, uint64(uint32(id))
}

// First reads a packet in JSON (section 11).
func (s *Session) First(text []byte, ev *wire.Event) error {
	p, err := ParseJSON(text)
	if err != nil {
		return &wire.Error{Code: wire.BadData, Text: "message is not one JSON object"}
	}
	cmd, id := Cmd(p.Cmd), p.ID
	if int32(cmd) != p.Cmd {
		cmd = CmdUnknown
	}
	switch cmd {
	case CmdHandshake, CmdBind, CmdUnbind, CmdPush, CmdAck:
	default:
		return s.broken(cmd, id, CodeUnsupported)
	}
	if p.HasFlags && Flags(p.Flags)&FlagJSON == 0 {
		return s.broken(cmd, id, CodeHandler)
	}
	switch {
	case cmd == CmdAck:
		ev.Kind, ev.ID = wire.Ack, uint64(uint32(id))
		return nil
	case cmd == CmdHandshake && s.state == open:
		return s.repeated(id, ev)
	case cmd == CmdHandshake:
		s.state = opening
		s.request = &Packet{Header: Header{Cmd: cmd, ID: id}, Body: bytes.Clone(p.Body)}
		ev.Kind = wire.Open
		return nil
	case s.state != open:
		return s.refused(cmd, id, textNotHandshake)
	}
	switch cmd {
	case CmdBind, CmdUnbind:
		var b Bind
		if err := b.DecodeJSON(p.Body); err != nil {
			return s.broken(cmd, id, CodeHandler)
		}
		if cmd == CmdBind {
			return s.bind(&b, id, ev)
		}
		return s.unbind(&b, id, ev)
	default:
		content, err := PushJSON(p.Body)
		if err != nil {
			return s.broken(cmd, id, CodeHandler)
		}
		s.message([]byte(content), Flags(p.Flags), id, ev)
	}
	return nil
}

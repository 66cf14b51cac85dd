package mpush

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

var _ wire.Session = (*Session)(nil)

var stockKey = sync.OnceValue(func() *PrivateKey {
	k, err := ParsePrivateKey([]byte(StockPrivateKey))
	if err != nil {
		panic(err)
	}
	return k
})

// aConfig is a server with the stock key that resumes sessions.
func aConfig() *Config {
	return &Config{
		Key: stockKey(), Tokens: NewTokens("push", 24*time.Hour, tokenKey(1)),
		MinHeartbeat: 3 * time.Minute, MaxHeartbeat: 3 * time.Minute,
		MaxMessage: 64 << 10,
	}
}

func aHandshake() *Handshake {
	return &Handshake{
		DeviceID: "dev", OSName: "android", OSVersion: "6.0", ClientVersion: "2.0",
		IV: []byte("0123456789abcdef"), ClientKey: []byte("fedcba9876543210"),
		MinHeartbeat: 240000, MaxHeartbeat: 240000,
	}
}

// peer is the client of a session, and what drives that session: it calls Open
// when it is asked to, and writes down all that happens.
type peer struct {
	t      testing.TB
	s      *Session
	ws     bool // over a WebSocket
	json   bool // in JSON
	crypto bool // speaks encrypted, as the real clients do

	cipher *Cipher                         // the session's, nil before
	first  *Cipher                         // of its own key
	token  string                          // that it was given
	expire int64                           // of that
	is     Device                          // what its session told of it
	on     func(*peer, *wire.Event) []byte // answers events; nil: they are only written down
	at     time.Time

	log   []string
	sent  []byte // by the session: all its bytes
	ended *wire.Error
	slow  bool // the end was to be told later
}

// The ways of a client to a session. Only TCP and a WebSocket carry packets.
var doors = []struct {
	name             string
	ws, crypto, json bool
}{
	{"TCP", false, true, false}, {"TCP plain", false, false, false},
	{"WebSocket", true, true, false}, {"WebSocket plain", true, false, false},
	{"JSON", true, false, true},
}

func newPeer(t testing.TB, cfg *Config, overWS, crypto bool) *peer {
	return &peer{t: t, s: NewSession(cfg, !crypto, overWS), ws: overWS, crypto: crypto, at: tokenNoon}
}

// eachDoor calls f with a fresh peer for each way.
func eachDoor(t *testing.T, cfg *Config, f func(t *testing.T, p *peer)) {
	for _, d := range doors {
		t.Run(d.name, func(t *testing.T) {
			p := newPeer(t, cfg, d.ws, d.crypto)
			p.json = d.json
			f(t, p)
		})
	}
}

// eachPackets is eachDoor without JSON.
func eachPackets(t *testing.T, cfg *Config, f func(t *testing.T, p *peer)) {
	eachDoor(t, cfg, func(t *testing.T, p *peer) {
		if !p.json {
			f(t, p)
		}
	})
}

// masked is a client's frame, a final one.
func masked(op ws.Opcode, payload []byte) []byte { return maskedWith(op, 0x37fa213d, payload) }

func maskedWith(op ws.Opcode, key uint32, payload []byte) []byte {
	b := ws.AppendHeader(nil, op, len(payload))
	b[1] |= 0x80
	b = binary.BigEndian.AppendUint32(b, key)
	for i, c := range payload {
		b = append(b, c^byte(key>>(24-8*(i%4))))
	}
	return b
}

// fragment is a frame after which more of its message comes.
func fragment(op ws.Opcode, payload []byte) []byte {
	b := masked(op, payload)
	b[0] &^= 0x80
	return b
}

const continued ws.Opcode = 0

// constant is what does not change in an open session.
func constant(s *Session) [3]any { return [3]any{s.key, s.iv, s.heartbeat} }

// frame is a packet or a heartbeat as it comes over this way.
func (p *peer) frame(packet []byte) []byte {
	switch {
	case p.json:
		return masked(ws.Text, packet)
	case p.ws:
		return masked(ws.Binary, packet)
	}
	return packet
}

// packet is a packet, encrypted if the peer is and its body is not empty.
func (p *peer) packet(cmd Cmd, flags Flags, id int32, body []byte) []byte {
	if p.crypto && p.cipher != nil && len(body) > 0 {
		return AppendPacket(nil, cmd, flags|FlagCrypto, id, p.cipher.Append(nil, body))
	}
	return AppendPacket(nil, cmd, flags, id, body)
}

// handshake is a HANDSHAKE as the peer sends it.
func (p *peer) handshake(h *Handshake, id int32) []byte {
	if p.json {
		return fmt.Appendf(nil, `{"cmd":2,"flags":16,"sessionId":%d,"body":{"deviceId":%q,"osName":%q,"osVersion":%q,"clientVersion":%q}}`,
			id, h.DeviceID, h.OSName, h.OSVersion, h.ClientVersion)
	}
	p.first, _ = NewCipher(h.ClientKey, h.IV)
	if !p.crypto {
		return AppendPacket(nil, CmdHandshake, 0, id, h.Append(nil))
	}
	return AppendPacket(nil, CmdHandshake, FlagCrypto, id, encrypted(p.t, h.Append(nil)))
}

// encrypted is what a client makes of a body with the stock public key.
func encrypted(t testing.TB, body []byte) []byte {
	t.Helper()
	b, err := stockKey().Public().Encrypt(body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open shakes hands.
func (p *peer) open() *peer {
	p.t.Helper()
	p.send(p.handshake(aHandshake(), 1))
	if p.s.state != open || p.ended != nil {
		p.t.Fatalf("no session after the handshake: %q", p.log)
	}
	return p.forget()
}

// bound shakes hands and binds.
func (p *peer) bound() *peer {
	p.t.Helper()
	p.open()
	if p.json {
		p.send([]byte(`{"cmd":5,"sessionId":2,"body":{"userId":"u1"}}`))
	} else {
		p.send(p.packet(CmdBind, 0, 2, (&Bind{UserID: "u1"}).Append(nil)))
	}
	p.want(`LOGIN 2 "u1" "" []`)
	return p.forget()
}

// resume opens a session by the token of another.
func (p *peer) resume(token, device string, id int32) *peer {
	p.send(AppendPacket(nil, CmdFastConnect, 0, id, (&FastConnect{token, device, 240000, 240000}).Append(nil)))
	return p
}

// clone is a second client with a second session, in the same state. Between
// packets a session may be copied.
func (p *peer) clone() *peer {
	from, q := p.s, *p
	q.s, q.log = &Session{
		cfg: from.cfg, part: from.part, request: from.request, key: from.key, iv: from.iv,
		heartbeat: from.heartbeat, opener: from.opener, resumed: from.resumed, state: from.state, repeats: from.repeats, failures: from.failures,
		bound: from.bound, plain: from.plain, form: from.form, encrypted: from.encrypted, sealed: from.sealed,
	}, slices.Clone(p.log)
	if from.web != nil {
		web := *from.web
		q.s.web = &web
	}
	return &q
}

func (p *peer) forget() *peer {
	p.log, p.sent = nil, nil
	return p
}

// send feeds packets, each as its own message over a WebSocket.
func (p *peer) send(packets ...[]byte) *peer {
	p.t.Helper()
	for _, b := range packets {
		p.feed(p.frame(b))
	}
	return p
}

// feed gives the session bytes, and what it asks for. They are overwritten
// when they are used up, and what an event points to as well.
func (p *peer) feed(in []byte) *peer {
	p.t.Helper()
	p.feedKept(bytes.Clone(in), true)
	return p
}

// feedKept feeds in until it is used up, or, unless all, until an event; it
// returns what is left.
func (p *peer) feedKept(in []byte, all bool) []byte {
	p.t.Helper()
	for idle := 0; len(in) > 0 && p.ended == nil; {
		ev := wire.Event{Kind: wire.Ignored, Text: []byte("stale")}
		n, err := p.s.Feed(in, &ev)
		switch {
		case n < 0 || n > len(in):
			p.t.Fatalf("Feed used %d of %d bytes", n, len(in))
		case err == nil && ev.Kind == wire.None && n != len(in):
			p.t.Fatalf("Feed wants more after %d of %d bytes", n, len(in))
		case err != nil && ev.Kind != wire.None:
			p.t.Fatalf("Feed tells of %s besides %v", show(&ev), err)
		}
		if idle++; n > 0 {
			idle = 0
		} else if idle > 1<<20 {
			p.t.Fatal("Feed makes no progress")
		}
		if err != nil {
			p.end(err)
			return nil
		}
		told := ev.Kind != wire.None
		if told && ev.Kind != wire.Open {
			p.event(&ev)
		}
		for i := range in[:n] {
			in[i] = 0xEE
		}
		in = in[n:]
		if ev.Kind == wire.Open { // it is answered when the bytes are gone
			p.event(&ev)
		}
		if told && !all {
			break
		}
	}
	return in
}

func (p *peer) event(ev *wire.Event) {
	p.t.Helper()
	switch {
	case ev.Kind == wire.Open:
		if p.s.state != opening {
			p.t.Fatalf("asked to open in state %d", p.s.state)
		}
		if p.on == nil && ev.Heavy {
			p.log = append(p.log, "HEAVY")
		}
		o, err := p.s.Open(p.at)
		if o.OK != (p.s.state == open) || o.OK && o.Slow || err != nil && (o.OK || o.Reply != nil) {
			p.t.Fatalf("Open: %+v, %v in state %d", o, err, p.s.state)
		}
		if p.slow = o.Slow; o.OK {
			p.is = o.Device
		}
		if p.hear(o.Reply); err != nil {
			p.end(err)
		}
		return
	case p.on == nil && ev.Kind == wire.Reply:
	case p.on == nil:
		p.log = append(p.log, show(ev))
	default:
		p.hear(p.on(p, ev))
	}
	if ev.Kind == wire.Ping || ev.Kind == wire.Reply || ev.Kind == wire.Closed {
		p.hear(ev.Reply)
	}
}

// end writes down an error, which has to be a *wire.Error.
func (p *peer) end(err error) {
	p.t.Helper()
	e, ok := err.(*wire.Error)
	if !ok || e.Code == 0 || e.Text == "" {
		p.t.Fatalf("error %#v", err)
	}
	p.ended = e
	p.hear(e.Reply)
	p.log = append(p.log, fmt.Sprintf("CLOSED %d", e.Code))
}

// hear takes what the session sends.
func (p *peer) hear(b []byte) {
	p.t.Helper()
	p.sent = append(p.sent, b...)
	p.log = append(p.log, p.say(b)...)
}

// want asserts what has happened since it last did.
func (p *peer) want(want ...string) *peer {
	p.t.Helper()
	if !slices.Equal(p.log, want) {
		p.t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(p.log, "\n\t"), strings.Join(want, "\n\t"))
	}
	p.log = nil
	return p
}

// quoted is b in quotation marks, or, if it is long, a digest of it.
func quoted(b []byte) string {
	if len(b) <= 64 {
		return fmt.Sprintf("%q", b)
	}
	return fmt.Sprintf("%.16q and more, %d bytes, %08x", b, len(b), crc32.ChecksumIEEE(b))
}

// show writes down all of an event.
func show(ev *wire.Event) string {
	switch ev.Kind {
	case wire.Message:
		if ev.Data.JSON != nil || ev.Data.Bytes == nil || ev.Name != nil {
			return fmt.Sprintf("odd message %+v", ev)
		}
		return fmt.Sprintf("MESSAGE %d %v %s", ev.ID, ev.HasID, quoted(ev.Data.Bytes))
	case wire.Ack:
		return fmt.Sprintf("ACKED %d", ev.ID)
	case wire.Login:
		return fmt.Sprintf("LOGIN %d %q %q %q", ev.ID, ev.Login.User, ev.Login.Token, ev.Login.Tags)
	case wire.Logout:
		return fmt.Sprintf("LOGOUT %d", ev.ID)
	case wire.Ping:
		return "PING"
	case wire.Request:
		if ev.HTTP == nil {
			return fmt.Sprintf("REQUEST %d malformed", ev.ID)
		}
		return fmt.Sprintf("REQUEST %d %d %q %q %s", ev.ID, ev.HTTP.Method, ev.HTTP.URI, ev.HTTP.Headers, quoted(ev.HTTP.Body))
	case wire.Closed:
		return fmt.Sprintf("GOODBYE %d %q", ev.Code, ev.Text)
	}
	return fmt.Sprintf("kind %d", ev.Kind)
}

// say reads what a session sent, as the probes in testdata/session.txt are
// written down: packets over both transports alike, and a WebSocket's other
// messages.
func (p *peer) say(b []byte) (said []string) {
	p.t.Helper()
	if !p.ws {
		for len(b) > 0 {
			var s string
			s, b = p.packetSaid(b)
			said = append(said, s)
		}
		return said
	}
	for len(b) > 0 {
		var op ws.Opcode
		var payload []byte
		op, payload, b = serverFrame(p.t, b)
		switch op {
		case ws.Text:
			said = append(said, string(payload))
		case ws.Close:
			said = append(said, fmt.Sprintf("CLOSE %x", payload))
		case ws.Binary:
			s, rest := p.packetSaid(payload)
			if len(rest) != 0 {
				p.t.Fatalf("a message with more than one packet: %x", payload)
			}
			said = append(said, s)
		default:
			said = append(said, fmt.Sprintf("opcode %d %q", op, payload))
		}
	}
	return said
}

// serverFrame takes one frame of a server off b.
func serverFrame(t testing.TB, b []byte) (op ws.Opcode, payload, rest []byte) {
	t.Helper()
	if len(b) < 2 || b[0]&0xF0 != 0x80 || b[1]&0x80 != 0 {
		t.Fatalf("not a final unmasked frame: %.20x", b)
	}
	op, n, size := ws.Opcode(b[0]&0xF), 2, uint64(b[1])
	switch size {
	case 126:
		n, size = 4, uint64(binary.BigEndian.Uint16(b[2:]))
	case 127:
		n, size = 10, binary.BigEndian.Uint64(b[2:])
	}
	if n != ws.HeaderLen(int(size)) || uint64(len(b)-n) < size {
		t.Fatalf("header %x before %d bytes", b[:n], len(b)-n)
	}
	return op, b[n : n+int(size)], b[n+int(size):]
}

// packetSaid reads the first packet of b.
func (p *peer) packetSaid(b []byte) (said string, rest []byte) {
	p.t.Helper()
	r := Reader{Max: -1}
	var got Packet
	n, err := r.Next(b, &got)
	if err != nil || !got.OK {
		p.t.Fatalf("not a packet: %.40x, %v", b, err)
	}
	if got.Beat {
		return "HB", b[n:]
	}
	if got.CC != 0 || got.LRC != 0 || got.Flags&FlagJSON != 0 || len(got.Body) == 0 && got.Flags&(FlagCrypto|FlagCompress) != 0 {
		p.t.Fatalf("header %+v", got.Header)
	}
	return fmt.Sprintf("%s flags=%d sid=%d %s", cmdNames[got.Cmd], got.Flags, got.ID, p.bodySaid(&got)), b[n:]
}

var cmdNames = map[Cmd]string{
	CmdHandshake: "HANDSHAKE", CmdFastConnect: "FAST_CONNECT", CmdOK: "OK", CmdError: "ERROR",
	CmdKick: "KICK", CmdPush: "PUSH", CmdAck: "ACK", CmdHTTPProxy: "HTTP_PROXY",
}

// bodySaid is the body of a server's packet. What is random in an answer to a
// HANDSHAKE is not in it, but looked at and taken over.
func (p *peer) bodySaid(got *Packet) string {
	p.t.Helper()
	body, err := bytes.Clone(got.Body), error(nil)
	if got.Flags&FlagCrypto != 0 {
		c := p.cipher
		if got.Cmd == CmdHandshake {
			c = p.first
		}
		if body, err = c.Open(body); err != nil {
			p.t.Fatalf("%+v: %v", got.Header, err)
		}
	}
	if got.Flags&FlagCompress != 0 {
		if body, err = Inflate(body, 4<<20); err != nil {
			p.t.Fatalf("%+v: %v", got.Header, err)
		}
	}
	exactly := func(b aBody) {
		p.t.Helper()
		if err := b.Decode(body); err != nil || !bytes.Equal(b.Append(nil), body) {
			p.t.Fatalf("%+v: %q, %v", got.Header, body, err)
		}
	}
	switch got.Cmd {
	case CmdHandshake:
		var h HandshakeOK
		exactly(&h)
		if len(h.ServerKey) != KeyLen || got.Flags != FlagCrypto {
			p.t.Fatalf("server key %x, flags %x", h.ServerKey, got.Flags)
		}
		key := MixKey(p.first.key[:], h.ServerKey)
		p.cipher, _ = NewCipher(key[:], p.first.iv[:])
		p.token, p.expire = h.SessionID, h.ExpireTime
		return fmt.Sprintf("{'heartbeat': %d}", h.Heartbeat)
	case CmdFastConnect:
		var f FastConnectOK
		exactly(&f)
		return fmt.Sprintf("{'heartbeat': %d}", f.Heartbeat)
	case CmdOK:
		var o OK
		exactly(&o)
		return fmt.Sprintf("{'cmd': %d, 'code': %d, 'data': '%s'}", o.Cmd, o.Code, o.Data)
	case CmdError:
		var e Error
		exactly(&e)
		return fmt.Sprintf("{'cmd': %d, 'code': %d, 'reason': '%s', 'data': '%s'}", e.Cmd, e.Code, e.Reason, e.Data)
	case CmdKick:
		var k Kick
		exactly(&k)
		return fmt.Sprintf("{'deviceId': '%s', 'userId': '%s'}", k.DeviceID, k.UserID)
	case CmdHTTPProxy:
		var r ProxyResponse
		exactly(&r)
		return fmt.Sprintf("{'statusCode': %d, 'reason': '%s', 'headers': '%s', 'body': '%s'}", r.Status, r.Reason, r.Headers, r.Body)
	case CmdPush:
		return fmt.Sprintf("{'content': '%s', 'len': %d}", body, len(body))
	case CmdAck:
		if len(body) == 0 {
			return "{}"
		}
	}
	p.t.Fatalf("a server sends %+v", got.Header)
	return ""
}

// failure is an ERROR as say says it.
func failure(json bool, cmd Cmd, id int32, code int8, reason string) string {
	if json {
		return string((&Error{Cmd: cmd, Code: code, Reason: reason}).AppendJSON(nil, id))
	}
	return fmt.Sprintf("ERROR flags=0 sid=%d {'cmd': %d, 'code': %d, 'reason': '%s', 'data': ''}", id, cmd, code, reason)
}

// The same of the errors that come most.
func handlerFailed(cmd Cmd, id int32) string {
	return failure(false, cmd, id, 100, "handle message error")
}

// What a client may send in which state.
func TestEveryCommandInEveryState(t *testing.T) {
	const id = 9
	known := []Cmd{CmdHeartbeat, CmdHandshake, CmdFastConnect, CmdBind, CmdUnbind, CmdPush, CmdHTTPProxy, CmdAck}
	body := (&Bind{UserID: "u1"}).Append(nil)
	for _, state := range []struct {
		name   string
		crypto bool
		until  func(*peer)
	}{
		{"fresh", true, func(*peer) {}},
		{"fresh again", true, func(p *peer) { p.resume("no", "dev", 1).forget() }},
		{"open", true, func(p *peer) { p.open() }},
		{"bound", true, func(p *peer) { p.bound() }},
		{"open plain", false, func(p *peer) { p.open() }},
	} {
		before := strings.HasPrefix(state.name, "fresh")
		var reached [2]*peer // over TCP, and over a WebSocket
		for i := range reached {
			reached[i] = newPeer(t, aConfig(), i == 1, state.crypto)
			state.until(reached[i])
		}
		for n := math.MinInt8; n <= math.MaxInt8; n++ {
			cmd := Cmd(n)
			there := reached[n&1]
			p, empty, other := there.clone(), there.clone(), there.clone()
			empty.send(AppendPacket(nil, cmd, 0, id, nil))

			// sealed has a body as it should be, wrong the other way.
			sealed, wrong := p.packet(cmd, 0, id, body), AppendPacket(nil, cmd, 0, id, body)
			if state.crypto && before {
				wrong = AppendPacket(nil, cmd, FlagCrypto, id, make([]byte, 32))
			}
			p.send(sealed)
			other.send(wrong)

			name := fmt.Sprintf("%s, cmd %d", state.name, cmd)
			wants := func(what string, p *peer, want ...string) {
				t.Helper()
				if !slices.Equal(p.log, want) {
					t.Errorf("%s, %s: got %q, want %q", name, what, p.log, want)
				}
			}
			unsupported := []string{failure(false, cmd, id, 101, "unsupported command"), "CLOSED 1002"}
			handler := []string{handlerFailed(cmd, id), "CLOSED 1002"}
			notShaken := []string{failure(false, cmd, id, 0, "not handshake"), "CLOSED 1008"}
			param := []string{failure(false, cmd, id, 0, "invalid param"), "CLOSED 1008"}
			switch {
			case !slices.Contains(known, cmd):
				wants("empty", empty, unsupported...)
				wants("body", p, unsupported...)
				wants("wrong", other, unsupported...)
			case cmd == CmdHeartbeat:
				wants("empty", empty, "PING", "HB")
				wants("body", p, "PING", "HB")
				wants("wrong", other, "PING", "HB")
			case cmd == CmdAck:
				wants("empty", empty, "ACKED 9")
				wants("body", p, "ACKED 9")
				wants("wrong", other, "ACKED 9")
			case cmd == CmdHandshake && !before:
				repeat := failure(false, cmd, id, 102, "repeat handshake")
				wants("empty", empty, repeat)
				wants("body", p, repeat)
				wants("wrong", other, repeat)
			case cmd == CmdFastConnect && !before:
				expired := failure(false, cmd, id, 103, "session expired")
				wants("empty", empty, expired)
				wants("body", p, expired)
				wants("wrong", other, expired)
			case cmd == CmdHandshake:
				wants("empty", empty, handler...)
				wants("body", p, handler...)
				wants("wrong", other, append([]string{"HEAVY"}, handler...)...)
			case cmd == CmdFastConnect:
				wants("empty", empty, handler...)
				wants("body", p, handler...)
				wants("wrong", other, handler...)
			case before:
				wants("empty", empty, notShaken...)
				wants("body", p, notShaken...)
				wants("wrong", other, handler...)
			default:
				var ok string
				switch cmd {
				case CmdBind:
					wants("empty", empty, param...)
					ok = `LOGIN 9 "u1" "" []`
				case CmdUnbind:
					wants("empty", empty, param...)
					ok = "LOGOUT 9"
				case CmdPush:
					wants("empty", empty, `MESSAGE 9 false ""`)
					ok = fmt.Sprintf("MESSAGE 9 false %q", body)
				case CmdHTTPProxy:
					wants("empty", empty, "REQUEST 9 malformed")
					ok = "REQUEST 9 malformed"
				}
				wants("body", p, ok)
				if state.crypto {
					wants("wrong", other, handler...)
				} else {
					wants("wrong", other, ok)
				}
			}
		}
	}
}

// All that can be wrong with a handshake reads the same (limits.md row 30).
func TestEveryFailedHandshakeIsAnsweredAlike(t *testing.T) {
	field := func(change func(*Handshake)) []byte {
		h := aHandshake()
		change(h)
		return encrypted(t, h.Append(nil))
	}
	body := aHandshake().Append(nil)
	good := encrypted(t, body)
	foreign, err := wellFormed(t).Public().Encrypt(body)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[40] ^= 1
	raised := bytes.Repeat([]byte{0xFF}, 128)
	bomb := deflated(make([]byte, 1<<20))
	type attempt struct {
		flags Flags
		body  []byte
		plain bool // on a connection that takes plain handshakes
	}
	tests := map[string]attempt{
		"no body":                 {FlagCrypto, nil, false},
		"no body and no flag":     {0, nil, false},
		"a flipped bit":           {FlagCrypto, flipped, false},
		"a byte short":            {FlagCrypto, good[:127], false},
		"a byte over":             {FlagCrypto, append(bytes.Clone(good), 0), false},
		"over the modulus":        {FlagCrypto, raised, false},
		"zero":                    {FlagCrypto, make([]byte, 128), false},
		"another key's":           {FlagCrypto, foreign, false},
		"nine blocks":             {FlagCrypto, bytes.Repeat(good, 9), false},
		"trailing bytes":          {FlagCrypto, encrypted(t, append(bytes.Clone(body), 0)), false},
		"a field short":           {FlagCrypto, encrypted(t, body[:len(body)-8]), false},
		"a byte of a field short": {FlagCrypto, encrypted(t, body[:len(body)-1]), false},
		"nothing encrypted":       {FlagCrypto, encrypted(t, []byte{0}), false},
		"a negative length":       {FlagCrypto, encrypted(t, append([]byte{0x80, 0}, body...)), false},
		"a huge length":           {FlagCrypto, encrypted(t, append([]byte{0x7F, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF}, body...)), false},
		"no device":               {FlagCrypto, field(func(h *Handshake) { h.DeviceID = "" }), false},
		"a long device":           {FlagCrypto, field(func(h *Handshake) { h.DeviceID = strings.Repeat("x", 129) }), false},
		"a device of 800":         {FlagCrypto, field(func(h *Handshake) { h.DeviceID = strings.Repeat("x", 800) }), false},
		"a device with a newline": {FlagCrypto, field(func(h *Handshake) { h.DeviceID = "a\nb" }), false},
		"a device with ESC":       {FlagCrypto, field(func(h *Handshake) { h.DeviceID = "a\x1b[2J" }), false},
		"a device with NUL":       {FlagCrypto, field(func(h *Handshake) { h.DeviceID = "\x00" }), false},
		"a device with C1":        {FlagCrypto, field(func(h *Handshake) { h.DeviceID = "a\u0085" }), false},
		"a device not in UTF-8":   {FlagCrypto, field(func(h *Handshake) { h.DeviceID = "a\xff" }), false},
		"an old timestamp":        {FlagCrypto, field(func(h *Handshake) { h.Timestamp = tokenNoon.Add(-5*time.Minute - time.Millisecond).UnixMilli() }), false},
		"the oldest timestamp":    {FlagCrypto, field(func(h *Handshake) { h.Timestamp = math.MinInt64 }), false},
		"compressed garbage":      {FlagCrypto | FlagCompress, good, false},
		"a bomb":                  {FlagCrypto | FlagCompress, encrypted(t, bomb[:900]), false},
		"over what it may inflate to": {FlagCrypto | FlagCompress, encrypted(t, deflated((&Handshake{
			DeviceID: "dev", OSName: strings.Repeat("x", 20000), IV: make([]byte, 16), ClientKey: make([]byte, 16),
		}).Append(nil))), false},
		"plain":                {0, body, false},
		"plain and compressed": {FlagCompress, deflated(body), true},
		"plain garbage":        {0, make([]byte, 50), true},
		"plain with no key":    {0, (&Handshake{DeviceID: "d", IV: make([]byte, 16)}).Append(nil), true},
		"a JSON flag":          {FlagCrypto | FlagJSON, good, false},
	}
	for _, size := range []int{0, 1, 8, 15, 17, 24, 32} {
		tests[fmt.Sprintf("a key of %d", size)] = attempt{FlagCrypto, field(func(h *Handshake) { h.ClientKey = make([]byte, size) }), false}
		tests[fmt.Sprintf("an iv of %d", size)] = attempt{FlagCrypto, field(func(h *Handshake) { h.IV = make([]byte, size) }), false}
	}
	for _, overWS := range []bool{false, true} {
		var first []byte
		for name, test := range tests {
			p := newPeer(t, aConfig(), overWS, !test.plain)
			p.send(AppendPacket(nil, CmdHandshake, test.flags, 77, test.body))
			if p.ended == nil || p.ended.Code != wire.Protocol || p.s.state == open || p.slow == (test.flags&FlagJSON != 0) {
				t.Errorf("%s: %q, slow %v", name, p.log, p.slow)
				continue
			}
			if first == nil {
				first = p.sent
				p.log = slices.DeleteFunc(p.log, func(s string) bool { return s == "HEAVY" })
				p.want(handlerFailed(CmdHandshake, 77), "CLOSED 1002")
			}
			if !bytes.Equal(p.sent, first) || p.ended.Text != "handle message error" {
				t.Errorf("%s: %x %q, others %x", name, p.sent, p.ended.Text, first)
			}
		}
	}

	// Without a key nothing encrypted is understood.
	cfg := aConfig()
	cfg.Key = nil
	p := newPeer(t, cfg, false, true)
	p.send(AppendPacket(nil, CmdHandshake, FlagCrypto, 77, good)).want(handlerFailed(CmdHandshake, 77), "CLOSED 1002")
	if !p.slow {
		t.Error("without a key the answer is not slow")
	}
}

func TestHandshakesThatAreJustGoodEnough(t *testing.T) {
	for name, change := range map[string]func(*Handshake){
		"the longest device":       func(h *Handshake) { h.DeviceID = strings.Repeat("x", 128) },
		"a comma":                  func(h *Handshake) { h.DeviceID = "a,b" },
		"not ASCII":                func(h *Handshake) { h.DeviceID = "设备-1" },
		"no OS":                    func(h *Handshake) { h.OSName, h.OSVersion, h.ClientVersion = "", "", "" },
		"a timestamp of now":       func(h *Handshake) { h.Timestamp = tokenNoon.UnixMilli() },
		"one five minutes ago":     func(h *Handshake) { h.Timestamp = tokenNoon.Add(-5*time.Minute).UnixMilli() + 1 },
		"one of tomorrow":          func(h *Handshake) { h.Timestamp = tokenNoon.Add(24 * time.Hour).UnixMilli() },
		"the last one":             func(h *Handshake) { h.Timestamp = math.MaxInt64 },
		"several blocks":           func(h *Handshake) { h.OSName = strings.Repeat("x", 500) },
		"the least heartbeat":      func(h *Handshake) { h.MinHeartbeat, h.MaxHeartbeat = math.MinInt32, math.MinInt32 },
		"the most heartbeat":       func(h *Handshake) { h.MaxHeartbeat = math.MaxInt32 },
		"a heartbeat of nothing":   func(h *Handshake) { h.MinHeartbeat, h.MaxHeartbeat = 0, 0 },
		"a heartbeat that is less": func(h *Handshake) { h.MaxHeartbeat = -1 },
	} {
		for _, crypto := range []bool{true, false} {
			h := aHandshake()
			change(h)
			p := newPeer(t, aConfig(), false, crypto)
			p.send(p.handshake(h, -5))
			want := []string{"HANDSHAKE flags=1 sid=-5 {'heartbeat': 180000}"}
			if crypto {
				want = append([]string{"HEAVY"}, want...)
			}
			if !slices.Equal(p.log, want) || p.slow {
				t.Errorf("%s: %q", name, p.log)
			}
			if beat := p.s.Heartbeat(); p.is.ID != h.DeviceID || beat != 3*time.Minute {
				t.Errorf("%s: %+v, %s", name, p.is, beat)
			}
		}
	}

	// Compressed, as a client with a low limit does.
	p := newPeer(t, aConfig(), false, true)
	p.handshake(aHandshake(), 1)
	p.send(AppendPacket(nil, CmdHandshake, FlagCrypto|FlagCompress, 1, encrypted(t, deflated(aHandshake().Append(nil)))))
	p.want("HEAVY", "HANDSHAKE flags=1 sid=1 {'heartbeat': 180000}")
}

func TestClaimsAreCutAndCleaned(t *testing.T) {
	h := aHandshake()
	h.OSName = strings.Repeat("x", 255) + "é"
	h.OSVersion = "6\x1b[0m\n.0\u0085"
	h.ClientVersion = "\xff2\xff.0"
	p := newPeer(t, aConfig(), false, true)
	p.send(p.handshake(h, 1))
	want := Device{ID: "dev", OS: strings.Repeat("x", 255), OSVersion: "6[0m.0", Version: "2.0"}
	if got := p.is; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}

	// A token keeps less of them, but cleaned too.
	again := newPeer(t, aConfig(), false, true)
	again.resume(p.token, "dev", 2)
	want.OS = want.OS[:48]
	if got := again.is; got != want {
		t.Errorf("resumed %+v, want %+v", got, want)
	}
}

func TestSessionsOfTheSameHandshakeHaveDifferentKeys(t *testing.T) {
	a, b := newPeer(t, aConfig(), false, true).open(), newPeer(t, aConfig(), false, true).open()
	if a.cipher.key == b.cipher.key || a.token == b.token {
		t.Errorf("keys %x and %x, tokens %s and %s", a.cipher.key, b.cipher.key, a.token, b.token)
	}
}

func TestWithoutTokensASessionIsNotResumed(t *testing.T) {
	cfg := aConfig()
	token := newPeer(t, cfg, false, true).open().token
	cfg.Tokens = nil
	p := newPeer(t, cfg, false, true).open()
	if p.token != "" || p.expire != 0 {
		t.Errorf("token %q until %d", p.token, p.expire)
	}
	p = newPeer(t, cfg, false, true).resume(token, "dev", 1)
	p.want(failure(false, CmdFastConnect, 1, 103, "session expired"))
}

// Section 5 and compatibility.md A10: what may come plain.
func TestAnEncryptedSessionRefusesPlainBodies(t *testing.T) {
	bind := (&Bind{UserID: "u1"}).Append(nil)
	for _, cmd := range []Cmd{CmdBind, CmdUnbind, CmdPush, CmdHTTPProxy} {
		for _, flags := range []Flags{0, FlagCompress, FlagAutoAck, 0xE0} {
			body := bind
			if flags == FlagCompress {
				body = deflated(bind)
			}
			// by a handshake, and by a token of one
			for _, plain := range []bool{false, true} {
				p := newPeer(t, aConfig(), false, true).open()
				resumed := newPeer(t, aConfig(), false, true)
				resumed.s.plain = plain // where the token is used plain handshakes would be all right
				resumed.cipher = p.cipher
				resumed.resume(p.token, "dev", 1).forget()
				for _, p := range []*peer{p, resumed} {
					p.send(AppendPacket(nil, cmd, flags, 3, body))
					p.want(handlerFailed(cmd, 3), "CLOSED 1002")
				}
			}
		}
	}

	// Empty bodies have no flag, and are taken with one (section 3).
	p := newPeer(t, aConfig(), false, true).bound()
	for _, flags := range []Flags{0, FlagCrypto, FlagCompress, FlagCrypto | FlagCompress} {
		p.send(AppendPacket(nil, CmdPush, flags, 3, nil)).want(`MESSAGE 3 false ""`)
	}
	p.send(AppendPacket(nil, CmdAck, FlagCrypto, 4, nil)).want("ACKED 4")
	p.send(AppendPacket(nil, CmdAck, 0, -1, []byte("junk"))).want(fmt.Sprintf("ACKED %d", uint32(math.MaxUint32)))
	p.send(p.packet(CmdPush, 0, 5, nil)).want(`MESSAGE 5 false ""`)
	p.send(AppendPacket(nil, CmdPush, FlagCrypto, 6, p.cipher.Append(nil, nil))).want(`MESSAGE 6 false ""`)
}

func TestAPlainSessionTakesBoth(t *testing.T) {
	for _, first := range []bool{false, true} {
		p := newPeer(t, aConfig(), false, false).open()
		p.crypto = first
		p.send(p.packet(CmdBind, 0, 2, (&Bind{UserID: "u1"}).Append(nil))).want(`LOGIN 2 "u1" "" []`)
		for _, crypto := range []bool{false, true} {
			p.crypto = crypto
			p.send(p.packet(CmdPush, 0, 3, []byte("hello"))).want(`MESSAGE 3 false "hello"`)
			p.send(p.packet(CmdBind, 0, 4, (&Bind{UserID: "u2"}).Append(nil))).want(`LOGIN 4 "u2" "" []`)
		}
		// It hears what its first BIND spoke.
		p.hear(p.s.Kick(nil, "dev", "u2"))
		p.hear(p.s.Proxied(nil, 5, &wire.HTTPResponse{Status: 200}))
		p.hear(p.s.Seal(AppendPush(nil, []byte("x"), 0, false, 0)))
		flag := 0
		if first {
			flag = 1
		}
		p.want(fmt.Sprintf("KICK flags=%d sid=0 {'deviceId': 'dev', 'userId': 'u2'}", flag),
			fmt.Sprintf("HTTP_PROXY flags=%d sid=5 {'statusCode': 200, 'reason': '', 'headers': '', 'body': ''}", flag),
			fmt.Sprintf("PUSH flags=%d sid=0 {'content': 'x', 'len': 1}", flag))
	}
}

// compatibility.md A7.
func TestFastConnect(t *testing.T) {
	ok := func(id int) string { return fmt.Sprintf("FAST_CONNECT flags=0 sid=%d {'heartbeat': 180000}", id) }
	expired := func(id int32) string { return failure(false, CmdFastConnect, id, 103, "session expired") }
	device := func(id int32) string { return failure(false, CmdFastConnect, id, 104, "invalid device") }
	of := newPeer(t, aConfig(), false, true).open()

	t.Run("restores the session and nothing of the user", func(t *testing.T) {
		eachPackets(t, aConfig(), func(t *testing.T, p *peer) {
			of := newPeer(t, aConfig(), p.ws, p.crypto).bound()
			p.cipher = of.cipher
			p.resume(of.token, "dev", 1).want(ok(1))
			if p.is != of.is {
				t.Errorf("%+v, want %+v", p.is, of.is)
			}
			if p.s.sealed || p.s.bound {
				t.Error("it is bound")
			}
			p.send(p.packet(CmdBind, 0, 2, (&Bind{UserID: "u1"}).Append(nil))).want(`LOGIN 2 "u1" "" []`)
		})
	})
	t.Run("three failures", func(t *testing.T) {
		p := newPeer(t, aConfig(), false, true)
		p.resume("", "dev", 1).want(expired(1))
		p.resume(of.token, "other", 2).want(device(2))
		p.resume(of.token[:100], "dev", 3).want(expired(3), "CLOSED 1002")
		p = newPeer(t, aConfig(), false, true)
		p.resume("x", "dev", 1).resume("x", "dev", 2).forget()
		p.resume(of.token, "other", 3).want(device(3), "CLOSED 1002")
	})
	t.Run("a handshake after failures", func(t *testing.T) {
		p := newPeer(t, aConfig(), false, true)
		p.resume("x", "dev", 1).resume("x", "dev", 2).forget()
		p.open().resume(p.token, "dev", 3).want(expired(3), "CLOSED 1002") // the third
	})
	t.Run("a success after failures", func(t *testing.T) {
		p := newPeer(t, aConfig(), false, true)
		p.resume("x", "dev", 1).resume("x", "dev", 2).forget()
		p.resume(of.token, "dev", 3).want(ok(3))
	})
	t.Run("on an open session", func(t *testing.T) {
		p := newPeer(t, aConfig(), false, true).bound()
		before := constant(p.s)
		p.resume(of.token, "dev", 3).want(expired(3))
		p.resume(p.token, "dev", 4).want(expired(4))
		if constant(p.s) != before || p.s.state != open {
			t.Error("the session changed")
		}
		p.send(p.packet(CmdPush, 0, 5, []byte("still there"))).want(`MESSAGE 5 false "still there"`)
		p.resume(p.token, "dev", 6).want(expired(6), "CLOSED 1002")
	})
	t.Run("a plain session's token where encryption is wanted", func(t *testing.T) {
		of := newPeer(t, aConfig(), false, false).open()
		newPeer(t, aConfig(), false, true).resume(of.token, "dev", 1).want(expired(1))
		newPeer(t, aConfig(), false, false).resume(of.token, "dev", 1).want(ok(1))
	})
	t.Run("by time", func(t *testing.T) {
		p := newPeer(t, aConfig(), false, true)
		p.at = tokenNoon.Add(24*time.Hour - time.Millisecond)
		p.resume(of.token, "dev", 1).want(ok(1))
		p = newPeer(t, aConfig(), false, true)
		p.at = tokenNoon.Add(24 * time.Hour)
		p.resume(of.token, "dev", 1).want(expired(1))
	})
	t.Run("odd tokens", func(t *testing.T) {
		for _, token := range []string{"", "*", "../..", "\x00", strings.Repeat("A", 512), strings.Repeat("A", 513), strings.Repeat("A", 8000), of.token + "A", of.token + "\n"} {
			newPeer(t, aConfig(), false, true).resume(token, "dev", 1).want(expired(1))
		}
	})
	t.Run("malformed", func(t *testing.T) {
		body := (&FastConnect{of.token, "dev", 1, 2}).Append(nil)
		for _, p := range [][]byte{
			AppendPacket(nil, CmdFastConnect, 0, 1, nil),
			AppendPacket(nil, CmdFastConnect, 0, 1, body[:len(body)-1]),
			AppendPacket(nil, CmdFastConnect, FlagCrypto, 1, of.cipher.Append(nil, body)),
			AppendPacket(nil, CmdFastConnect, FlagJSON, 1, body),
		} {
			newPeer(t, aConfig(), false, true).send(p).want(handlerFailed(CmdFastConnect, 1), "CLOSED 1002")
		}
		p := newPeer(t, aConfig(), false, true)
		p.send(AppendPacket(nil, CmdFastConnect, 0x80, 1, append(body, "more"...))).want(ok(1))
	})
	t.Run("heartbeat", func(t *testing.T) {
		cfg := aConfig()
		cfg.MinHeartbeat, cfg.MaxHeartbeat = 10*time.Second, 4*time.Minute
		for most, want := range map[int32]int{-1: 10000, 0: 10000, 9999: 10000, 30000: 30000, 240000: 240000, math.MaxInt32: 240000, math.MinInt32: 10000} {
			p := newPeer(t, cfg, false, true)
			p.send(AppendPacket(nil, CmdFastConnect, 0, 1, (&FastConnect{of.token, "dev", math.MaxInt32, most}).Append(nil)))
			p.want(fmt.Sprintf("FAST_CONNECT flags=0 sid=1 {'heartbeat': %d}", want))
			if got := p.s.Heartbeat(); got != time.Duration(want)*time.Millisecond {
				t.Errorf("%d: %s", most, got)
			}
		}
	})
}

// compatibility.md A14.
func TestARepeatedHandshakeChangesNothing(t *testing.T) {
	eachDoor(t, aConfig(), func(t *testing.T, p *peer) {
		p.bound()
		before := constant(p.s)
		other := aHandshake()
		other.DeviceID, other.ClientKey = "other", make([]byte, 16)
		cipher, first := p.cipher, p.first
		for i := int32(3); i < 5; i++ {
			b := p.handshake(other, i)
			p.first = first
			p.send(b).want(failure(p.json, CmdHandshake, i, 102, "repeat handshake"))
		}
		if constant(p.s) != before || p.cipher != cipher {
			t.Error("the session changed")
		}
		if !p.json {
			p.send(p.packet(CmdPush, 0, 5, []byte("x"))).want(`MESSAGE 5 false "x"`)
		}
		p.send(p.handshake(other, 6)).want(failure(p.json, CmdHandshake, 6, 102, "repeat handshake"), "CLOSED 1002")
	})
}

// A request that is discarded leaves the session as it was.
func TestADiscardedRequest(t *testing.T) {
	eachDoor(t, aConfig(), func(t *testing.T, p *peer) {
		in := p.frame(p.handshake(aHandshake(), 1))
		var ev wire.Event
		if n, err := p.s.Feed(bytes.Clone(in), &ev); n != len(in) || err != nil || ev.Kind != wire.Open || p.s.state != opening {
			t.Fatalf("%d of %d, %s, %v", n, len(in), show(&ev), err)
		}
		p.s.Discard()
		if p.s.state != fresh || p.s.request != nil {
			t.Errorf("state %d, %+v kept", p.s.state, p.s.request)
		}
		p.open()
		if p.s.request != nil {
			t.Error("the request is kept")
		}
	})
}

// bindBody is a BIND's body, for packets or for JSON.
func (p *peer) bindBody(cmd Cmd, id int32, b Bind) []byte {
	if p.json {
		return fmt.Appendf(nil, `{"cmd":%d,"sessionId":%d,"body":{"userId":%s,"data":%s,"tags":%s}}`,
			cmd, id, appendQuoted(nil, b.UserID), appendQuoted(nil, b.Data), appendQuoted(nil, b.Tags))
	}
	return p.packet(cmd, 0, id, b.Append(nil))
}

func TestBindAndUnbindLookAtTheirParameters(t *testing.T) {
	const bad = "invalid param"
	long := strings.Repeat("x", 257)
	for _, test := range []struct {
		name    string
		b       Bind
		refused bool
		tags    []string
	}{
		{"a user", Bind{UserID: "u"}, false, nil},
		{"the longest", Bind{long[1:], strings.Repeat("d", 4096), strings.Repeat("t", 5000)}, false, []string{strings.Repeat("t", 5000)}}, // what is too long of these the engine says
		{"not ASCII", Bind{UserID: "用户"}, false, nil},
		{"no user", Bind{Data: "d", Tags: "t"}, true, nil},
		{"a long user", Bind{UserID: long}, true, nil},
		{"a newline", Bind{UserID: "a\nb"}, true, nil},
		{"NUL", Bind{UserID: "\x00"}, true, nil},
		{"DEL", Bind{UserID: "a\x7f"}, true, nil},
		{"C1", Bind{UserID: "a\u009f"}, true, nil},
		{"tags", Bind{UserID: "u", Tags: "a,b"}, false, []string{"a", "b"}},
		{"untidy tags", Bind{UserID: "u", Tags: " a ,,b,\ta,,, c d ,"}, false, []string{"a", "b", "c d"}},
		{"no tags", Bind{UserID: "u", Tags: ", ,"}, false, nil},
		{"the array that PushClients send", Bind{UserID: "u", Tags: `["a","b"]`}, false, []string{`["a"`, `"b"]`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			eachDoor(t, aConfig(), func(t *testing.T, p *peer) {
				p.open().send(p.bindBody(CmdBind, 7, test.b))
				if test.refused {
					p.want(failure(p.json, CmdBind, 7, 0, bad), "CLOSED 1008")
				} else {
					p.want(fmt.Sprintf("LOGIN 7 %q %q %q", test.b.UserID, test.b.Data, test.tags))
				}
			})
			eachDoor(t, aConfig(), func(t *testing.T, p *peer) {
				p.open().send(p.bindBody(CmdUnbind, 8, test.b)) // whom it names means nothing
				if test.b.UserID == "" {
					p.want(failure(p.json, CmdUnbind, 8, 0, bad), "CLOSED 1008")
				} else {
					p.want("LOGOUT 8")
				}
			})
		})
	}
	eachPackets(t, aConfig(), func(t *testing.T, p *peer) {
		p.open().send(p.bindBody(CmdBind, 7, Bind{UserID: "a\xff"})).want(failure(false, CmdBind, 7, 0, bad), "CLOSED 1008")
	})
}

func TestTheClaimOfABindIsItsOwn(t *testing.T) {
	p := newPeer(t, aConfig(), false, false).open()
	in := p.packet(CmdBind, 0, 2, (&Bind{"user", "data", "tag1,tag2"}).Append(nil))
	var ev wire.Event
	if _, err := p.s.Feed(in, &ev); err != nil {
		t.Fatal(err)
	}
	clear(in)
	if got := show(&ev); got != `LOGIN 2 "user" "data" ["tag1" "tag2"]` {
		t.Error(got)
	}
	in = p.packet(CmdHTTPProxy, 0, 3, (&ProxyRequest{1, "http://h/", "a:b\n", []byte("body")}).Append(nil))
	if _, err := p.s.Feed(in, &ev); err != nil {
		t.Fatal(err)
	}
	clear(in)
	p.s.Feed([]byte{Beat}, new(wire.Event))
	if got := show(&ev); got != `REQUEST 3 1 "http://h/" "a:b\n" "body"` {
		t.Error(got)
	}
}

func TestTagsInJSON(t *testing.T) {
	cfg := aConfig()
	for in, want := range map[string]string{
		`"a,b"`: `["a" "b"]`, `["a","b"]`: `["a" "b"]`, `[]`: `[]`, `null`: `[]`, `""`: `[]`, `["a,b"," a "]`: `["a" "b"]`, `[""]`: `[]`, `[null,"x"]`: `["x"]`,
	} {
		p := newPeer(t, cfg, true, false)
		p.json = true
		p.open().send([]byte(`{"cmd":5,"flags":16,"sessionId":2,"body":{"userId":"u","tags":` + in + `}}`))
		p.want(`LOGIN 2 "u" "" ` + want)
	}
	for _, in := range []string{`5`, `{}`, `[5]`, `true`, `[["a"]]`} {
		p := newPeer(t, cfg, true, false)
		p.json = true
		p.open().send([]byte(`{"cmd":5,"flags":16,"sessionId":2,"body":{"userId":"u","tags":` + in + `}}`))
		p.want(failure(true, CmdBind, 2, 100, "handle message error"), "CLOSED 1002")
	}
}

func TestPushFlags(t *testing.T) {
	for flags := range 256 {
		if Flags(flags)&(FlagCrypto|FlagCompress|FlagJSON) != 0 {
			continue
		}
		want := fmt.Sprintf(`MESSAGE 8 %v "hi"`, Flags(flags)&(FlagAutoAck|FlagBizAck) != 0)
		p := newPeer(t, aConfig(), false, true).bound()
		p.send(p.packet(CmdPush, Flags(flags), 8, []byte("hi"))).want(want)
		p = newPeer(t, aConfig(), true, false)
		p.json = true
		p.bound().send(fmt.Appendf(nil, `{"cmd":15,"flags":%d,"sessionId":8,"body":{"content":"hi"}}`, flags|16)).want(want)
	}
	// All flags with a body that means nothing: an end or an event, no panic (limits.md row 16).
	for flags := range 256 {
		p := newPeer(t, aConfig(), false, true).bound()
		p.send(AppendPacket(nil, CmdPush, Flags(flags), 8, bytes.Repeat([]byte{0xDF}, 48)))
		const crypto = FlagCrypto | FlagCompress | FlagJSON
		if len(p.log) == 1 && Flags(flags)&crypto == FlagCrypto && strings.HasPrefix(p.log[0], "MESSAGE 8") {
			continue // one in 256 has a padding
		}
		p.want(handlerFailed(CmdPush, 8), "CLOSED 1002")
	}
}

func TestContentsInJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"cmd":15,"flags":24,"sessionId":9,"body":{"content":"héllo \u4e16"}}`: `MESSAGE 9 true "héllo 世"`,
		`{"cmd":15,"sessionId":9,"body":{"content":""}}`:                        `MESSAGE 9 false ""`,
		`{"cmd":15,"sessionId":9,"body":{}}`:                                    `MESSAGE 9 false ""`,
		`{"cmd":15,"sessionId":9,"body":null}`:                                  `MESSAGE 9 false ""`,
		`{"cmd":15,"sessionId":9}`:                                              `MESSAGE 9 false ""`,
		`{"cmd":15,"sessionId":-9}`:                                             fmt.Sprintf(`MESSAGE %d false ""`, uint32(math.MaxUint32-8)),
		`{"cmd":15}`:                                                            `MESSAGE 0 false ""`,
		`{"cmd":15,"flags":null}`:                                               `MESSAGE 0 false ""`,
		`{"cmd":23,"sessionId":5}`:                                              `ACKED 5`,
		`{"cmd":23,"flags":16,"sessionId":5,"body":null}`:                       `ACKED 5`,
		`{"cmd":23,"flags":48,"sessionId":5,"body":[1,{"x":2}]}`:                `ACKED 5`,
	} {
		p := newPeer(t, aConfig(), true, false)
		p.json = true
		if p.bound().send([]byte(in)).want(want); t.Failed() {
			t.Fatal(in)
		}
	}
}

func TestMalformedJSON(t *testing.T) {
	const closed = "CLOSED 1007"
	for in, want := range map[string][]string{
		`hello`: {closed}, ``: {closed}, `[1]`: {closed}, `null`: {closed}, `7`: {closed}, `"x"`: {closed}, `{"cmd":5`: {closed}, `{}{}`: {closed},
		`{"cmd":"5"}`: {closed}, `{"cmd":5.5}`: {closed}, `{"cmd":5,"sessionId":4294967296}`: {closed}, `{"cmd":5,"flags":"16"}`: {closed},
		`{}`:                                             {failure(true, 0, 0, 101, "unsupported command"), "CLOSED 1002"},
		`{"cmd":258,"sessionId":1}`:                      {failure(true, -1, 1, 101, "unsupported command"), "CLOSED 1002"},
		`{"cmd":-254,"sessionId":1}`:                     {failure(true, -1, 1, 101, "unsupported command"), "CLOSED 1002"},
		`{"cmd":99,"sessionId":1}`:                       {failure(true, 99, 1, 101, "unsupported command"), "CLOSED 1002"},
		`{"cmd":1,"sessionId":1}`:                        {failure(true, 1, 1, 101, "unsupported command"), "CLOSED 1002"},
		`{"cmd":7,"sessionId":1}`:                        {failure(true, 7, 1, 101, "unsupported command"), "CLOSED 1002"},
		`{"cmd":12,"sessionId":1}`:                       {failure(true, 12, 1, 101, "unsupported command"), "CLOSED 1002"},
		`{"cmd":5,"flags":0,"sessionId":1}`:              {failure(true, 5, 1, 100, "handle message error"), "CLOSED 1002"},
		`{"cmd":23,"flags":8,"sessionId":1}`:             {failure(true, 23, 1, 100, "handle message error"), "CLOSED 1002"},
		`{"cmd":5,"sessionId":1,"body":[]}`:              {failure(true, 5, 1, 100, "handle message error"), "CLOSED 1002"},
		`{"cmd":6,"sessionId":1,"body":"x"}`:             {failure(true, 6, 1, 100, "handle message error"), "CLOSED 1002"},
		`{"cmd":15,"sessionId":1,"body":{"content":{}}}`: {failure(true, 15, 1, 100, "handle message error"), "CLOSED 1002"},
		`{"cmd":5,"sessionId":1}`:                        {failure(true, 5, 1, 0, "invalid param"), "CLOSED 1008"},
		`{"cmd":6,"sessionId":1,"body":null}`:            {failure(true, 6, 1, 0, "invalid param"), "CLOSED 1008"},
	} {
		p := newPeer(t, aConfig(), true, false)
		p.json = true
		if p.open().send([]byte(in)).want(want...); t.Failed() {
			t.Fatal(in)
		}
	}
	for in, want := range map[string][]string{
		`{"cmd":15,"sessionId":1}`:                                                       {failure(true, 15, 1, 0, "not handshake"), "CLOSED 1008"},
		`{"cmd":6,"sessionId":1}`:                                                        {failure(true, 6, 1, 0, "not handshake"), "CLOSED 1008"},
		`{"cmd":23,"sessionId":1}`:                                                       {"ACKED 1"},
		`{"cmd":2,"sessionId":1}`:                                                        {failure(true, 2, 1, 100, "handle message error"), "CLOSED 1002"},
		`{"cmd":2,"sessionId":1,"body":{"deviceId":5}}`:                                  {failure(true, 2, 1, 100, "handle message error"), "CLOSED 1002"},
		`{"cmd":2,"sessionId":1,"body":{"deviceId":"a\u0000"}}`:                          {failure(true, 2, 1, 100, "handle message error"), "CLOSED 1002"},
		`{"cmd":2,"sessionId":1,"body":{"deviceId":"` + strings.Repeat("x", 129) + `"}}`: {failure(true, 2, 1, 100, "handle message error"), "CLOSED 1002"},
		`{"cmd":2,"sessionId":1,"body":{"deviceId":"d"}}`:                                {`{"bodyLength":0,"cmd":2,"flags":16,"sessionId":1}`},
	} {
		p := newPeer(t, aConfig(), true, false)
		p.json = true
		if p.send([]byte(in)).want(want...); t.Failed() {
			t.Fatal(in)
		}
	}
}

func TestCompressedBodies(t *testing.T) {
	for _, crypto := range []bool{true, false} {
		text := bytes.Repeat([]byte("abcdefgh"), 1000)
		good := deflated(text)
		cfg := aConfig()
		p := newPeer(t, cfg, false, crypto).bound()
		p.send(p.packet(CmdPush, FlagCompress, 3, good)).want("MESSAGE 3 false " + quoted(text))
		p.send(p.packet(CmdBind, FlagCompress, 4, deflated((&Bind{UserID: "u"}).Append(nil)))).want(`LOGIN 4 "u" "" []`)
		p.send(p.packet(CmdUnbind, FlagCompress, 5, deflated((&Bind{UserID: "u"}).Append(nil)))).want(`LOGOUT 5`)
		p.send(p.packet(CmdHTTPProxy, FlagCompress, 6, deflated((&ProxyRequest{URI: "u"}).Append(nil)))).want(`REQUEST 6 0 "u" "" ""`)
		p.send(p.packet(CmdPush, FlagCompress, 7, deflated(nil))).want(`MESSAGE 7 false ""`)
		p.send(p.packet(CmdPush, FlagCompress, 8, deflated(deflated([]byte("twice"))))).want("MESSAGE 8 false " + quoted(deflated([]byte("twice")))) // limits.md row 24
		if p.ended != nil {
			t.Fatal(p.ended)
		}
		flipped := bytes.Clone(good)
		flipped[len(flipped)-1] ^= 1
		for name, body := range map[string][]byte{
			"garbage": []byte("no zlib"), "cut": good[:len(good)-1], "bad checksum": flipped, "trailing": append(bytes.Clone(good), 0), "a header only": good[:2],
		} {
			p := newPeer(t, cfg, false, crypto).bound()
			if p.send(p.packet(CmdPush, FlagCompress, 3, body)).want(handlerFailed(CmdPush, 3), "CLOSED 1002"); t.Failed() {
				t.Fatal(name)
			}
		}
	}
}

// Limits.md row 22: four times what a body may be, 256 KiB at most, unless a
// body may be more.
func TestBombsAreNotInflated(t *testing.T) {
	for limit, most := range map[int]int{
		1000: 4000, 8 << 10: 32 << 10, 64 << 10: 256 << 10, 100 << 10: 256 << 10, 1 << 20: 1 << 20,
	} {
		cfg := aConfig()
		cfg.MaxMessage = limit
		p := newPeer(t, cfg, false, true).bound()
		p.on = func(p *peer, ev *wire.Event) []byte {
			p.log = append(p.log, fmt.Sprint(len(ev.Data.Bytes)))
			return nil
		}
		fits, bomb := deflated(make([]byte, most)), deflated(make([]byte, most+1))
		p.send(p.packet(CmdPush, FlagCompress, 3, fits)).want(fmt.Sprint(most))
		p.send(p.packet(CmdPush, FlagCompress, 4, bomb)).want(handlerFailed(CmdPush, 4), "CLOSED 1002")
	}
	if got := (&Session{cfg: &Config{MaxMessage: -1}}).inflated(); got != 16<<20 {
		t.Errorf("without a limit %d bytes", got)
	}

	p := newPeer(t, aConfig(), false, true).bound()
	in := p.packet(CmdPush, FlagCompress, 3, deflated(make([]byte, 8<<20)))
	var err error
	if n := bytesAllocated(func() { _, err = p.s.Feed(in, new(wire.Event)) }); err == nil || n > 2<<20 {
		t.Errorf("a bomb of %d bytes takes %d: %v", len(in), n, err)
	}
}

func TestRequests(t *testing.T) {
	body := (&ProxyRequest{3, "http://h/", "a:b\n", []byte("\x00body")}).Append(nil)
	eachPackets(t, aConfig(), func(t *testing.T, p *peer) {
		p.bound()
		p.send(p.packet(CmdHTTPProxy, 0, 3, body)).want(`REQUEST 3 3 "http://h/" "a:b\n" "\x00body"`)
		p.send(p.packet(CmdHTTPProxy, 0, 4, append(bytes.Clone(body), "more"...))).want(`REQUEST 4 3 "http://h/" "a:b\n" "\x00body"`)
		for _, bad := range [][]byte{nil, body[:len(body)-1], {0, 0x80, 0}, []byte("?")} {
			p.send(p.packet(CmdHTTPProxy, 0, 5, bad)).want("REQUEST 5 malformed")
		}
		p.hear(p.s.Proxied(nil, 5, &wire.HTTPResponse{Status: 400, Reason: "Bad Request", Own: true}))
		p.want("HTTP_PROXY flags=0 sid=5 {'statusCode': 400, 'reason': 'Bad Request', 'headers': '', 'body': ''}")
		p.hear(p.s.Proxied(nil, 1<<32-1, &wire.HTTPResponse{Status: 200, Reason: "OK", Headers: "a:b\n", Body: []byte("hi")}))
		flag := 0
		if p.crypto {
			flag = 1
		}
		p.want(fmt.Sprintf("HTTP_PROXY flags=%d sid=-1 {'statusCode': 200, 'reason': 'OK', 'headers': 'a:b\n', 'body': 'hi'}", flag))
	})

	cfg := aConfig()
	cfg.Compress = 100
	p := newPeer(t, cfg, false, true).bound()
	long := strings.Repeat("x", 1000)
	p.hear(p.s.Proxied(nil, 1, &wire.HTTPResponse{Status: 200, Body: []byte(long)}))
	p.hear(p.s.Proxied(nil, 2, &wire.HTTPResponse{Status: 502, Body: []byte(long), Own: true}))
	p.want("HTTP_PROXY flags=3 sid=1 {'statusCode': 200, 'reason': '', 'headers': '', 'body': '"+long+"'}",
		"HTTP_PROXY flags=2 sid=2 {'statusCode': 502, 'reason': '', 'headers': '', 'body': '"+long+"'}")
}

func TestHeartbeats(t *testing.T) {
	eachPackets(t, aConfig(), func(t *testing.T, p *peer) {
		frame := AppendPacket(nil, CmdHeartbeat, 0, 5, nil)
		withBody := AppendPacket(nil, CmdHeartbeat, FlagCrypto|FlagJSON, 5, []byte("body"))
		for range 2 { // before and after the handshake
			p.send([]byte{Beat}).want("PING", "HB")
			p.send(frame).want("PING", "HB")
			p.send(withBody).want("PING", "HB")
			p.send(append([]byte{Beat, Beat}, frame...)).want("PING", "HB", "PING", "HB", "PING", "HB")
			p.open()
		}
	})
}

// Limits.md rows 1 to 4: judged by the header alone.
func TestLengths(t *testing.T) {
	eachPackets(t, aConfig(), func(t *testing.T, p *peer) {
		for _, until := range []func(*peer) *peer{(*peer).forget, (*peer).open} {
			for _, length := range []int32{-1, math.MinInt32, -(1 << 16)} {
				q := newPeer(t, p.s.cfg, p.ws, p.crypto)
				until(q).send(claimed(length)).want(handlerFailed(CmdPush, 7), "CLOSED 1002")
			}
			for _, length := range []int32{math.MaxInt32, math.MaxInt32 - 12, 1 << 30, 64<<10 + 1} {
				q := newPeer(t, p.s.cfg, p.ws, p.crypto)
				until(q)
				var n uint64
				if n = bytesAllocated(func() { q.send(claimed(length)) }); n > 64<<10 {
					t.Errorf("%d takes %d bytes", length, n)
				}
				q.want("CLOSED 1009")
				if q.s.Partial() {
					t.Error("partial after the end")
				}
			}
		}
	})
}

// bodyOf is a packet that is answered in any state and has n bytes of body.
func bodyOf(n int) []byte { return AppendPacket(nil, CmdAck, 0, 6, make([]byte, n)) }

func TestLimitsBeforeAndAfterTheSessionIsOpen(t *testing.T) {
	const early, late = 8 << 10, 64 << 10
	for _, test := range []struct{ max, early, late int }{
		{late, early, late}, {-1, early, -1}, {early, early, early}, {1000, 1000, 1000}, {1 << 20, early, 1 << 20}, {200, 200, 200}, {0, 0, 0},
	} {
		for _, overWS := range []bool{false, true} {
			cfg := aConfig()
			cfg.MaxMessage = test.max
			fresh := func() *peer { return newPeer(t, cfg, overWS, false) }
			opened := func() *peer {
				p := fresh()
				if test.max < 100 && test.max >= 0 { // none that small can be opened
					p.s.opened(0)
					return p
				}
				return p.open()
			}
			p := fresh().send(bodyOf(test.early)).want("ACKED 6")
			p.send(bodyOf(test.early + 1)).want("CLOSED 1009")
			p = opened().send(bodyOf(max(test.late, 1<<20)))
			if test.late < 0 || test.late >= 1<<20 {
				p.want("ACKED 6")
			} else {
				p.want("CLOSED 1009")
			}
			if test.late < 0 {
				continue
			}
			p = opened().send(bodyOf(test.late)).want("ACKED 6")
			p.send(bodyOf(test.late + 1)).want("CLOSED 1009")
			if !overWS {
				continue
			}
			// The messages of a WebSocket are bounded by their own lengths too.
			p = fresh().feed(masked(ws.Binary, bodyOf(test.early))).want("ACKED 6")
			p.feed(masked(ws.Binary, make([]byte, HeaderLen+test.early+1))[:14]).want("CLOSED 1009")
			fresh().feed(masked(ws.Text, make([]byte, HeaderLen+test.early+1))[:14]).want("CLOSED 1009")
			p = opened().feed(masked(ws.Binary, make([]byte, HeaderLen+test.late+1))[:14]).want("CLOSED 1009")
			if p.s.Partial() {
				t.Error("partial after the end")
			}
		}
	}

	// A packet may be longer than a message when it spans two.
	p := newPeer(t, aConfig(), true, false).open()
	b := bodyOf(late)
	p.feed(masked(ws.Binary, b[:20])).feed(masked(ws.Binary, append(bytes.Clone(b[20:]), Beat))).want("ACKED 6", "PING", "HB")
}

// A session is asked to read what it may hold only.
func TestAClaimTakesNoMemory(t *testing.T) {
	eachPackets(t, aConfig(), func(t *testing.T, p *peer) {
		p.open()
		b := claimed(64 << 10)
		if n := bytesAllocated(func() { p.send(b).send(make([]byte, 100)) }); n > 16<<10 {
			t.Errorf("100 of 64 Ki bytes take %d", n)
		}
		if !p.s.Partial() {
			t.Error("not partial")
		}
	})
}

// aDialogue is what a client may say over a WebSocket, in messages that hold
// several packets, span packets, or come in fragments between which there are
// control frames; and what comes of it.
func aDialogue(p *peer) (in []byte, want []string) {
	bind := p.packet(CmdBind, 0, 2, (&Bind{UserID: "u1", Tags: "a,b"}).Append(nil))
	push := func(id int32, n int) []byte { return p.packet(CmdPush, FlagAutoAck, id, bytes.Repeat([]byte("x"), n)) }
	binary := func(packets ...[]byte) { in = append(in, masked(ws.Binary, slices.Concat(packets...))...) }
	said := func(id, n int) string {
		return fmt.Sprintf("MESSAGE %d true %s", id, quoted(bytes.Repeat([]byte("x"), n)))
	}

	in = append(in, masked(ws.Ping, []byte("early"))...)
	want = append(want, "PING", `opcode 10 "early"`)
	binary([]byte{Beat}, (&FastConnect{"none", "dev", 1, 1}).packet(), p.handshake(aHandshake(), 1), bind, []byte{Beat, Beat}, push(3, 10)[:12])
	want = append(want, "PING", "HB", failure(false, CmdFastConnect, 8, 103, "session expired"),
		"HANDSHAKE flags=1 sid=1 {'heartbeat': 180000}", `LOGIN 2 "u1" "" ["a" "b"]`, "PING", "HB", "PING", "HB")
	in = append(in, masked(ws.Pong, nil)...)
	binary(push(3, 10)[12:14])
	binary(nil)
	binary(push(3, 10)[14:], push(4, 0), push(5, 300)[:200])
	want = append(want, said(3, 10), said(4, 0))
	in = append(in, fragment(ws.Binary, push(5, 300)[200:])...)
	in = append(in, masked(ws.Ping, []byte("inside"))...)
	want = append(want, "PING", `opcode 10 "inside"`)
	in = append(in, fragment(continued, []byte{Beat})...)
	in = append(in, fragment(continued, nil)...)
	in = append(in, masked(continued, append(push(6, 1), push(7, 1)...))...)
	want = append(want, said(5, 300), "PING", "HB", said(6, 1), said(7, 1))
	binary(AppendPacket(nil, CmdAck, 0, 9, nil), AppendPacket(nil, CmdAck, 0, 10, nil))
	want = append(want, "ACKED 9", "ACKED 10")
	binary(push(11, 5))
	want = append(want, said(11, 5))
	in = append(in, masked(ws.Close, []byte("\x03\xe8bye"))...)
	want = append(want, `GOODBYE 1000 "bye"`, "CLOSE 03e8")
	in = append(in, "what comes after a goodbye means nothing"...)
	return in, want
}

func (c *FastConnect) packet() []byte { return AppendPacket(nil, CmdFastConnect, 0, 8, c.Append(nil)) }

// However a client's bytes come, and wherever the caller stops to come back
// with what is left, the same happens once.
func TestSplitsChangeNothing(t *testing.T) {
	p := newPeer(t, aConfig(), true, false)
	in, want := aDialogue(p)
	p.feed(in).want(want...)
	if p.s.Partial() {
		t.Error("partial at the end")
	}
	for at := range len(in) + 1 {
		p := newPeer(t, aConfig(), true, false)
		aDialogue(p) // for its keys
		if p.feed(in[:at]).feed(in[at:]).want(want...); t.Failed() {
			t.Fatalf("cut at %d of %d", at, len(in))
		}
		// The same, but what an event leaves comes back with the rest behind it.
		p = newPeer(t, aConfig(), true, false)
		aDialogue(p)
		left := p.feedKept(bytes.Clone(in[:at]), false)
		left = append(bytes.Clone(left), in[at:]...)
		for len(left) > 0 {
			left = bytes.Clone(p.feedKept(left, false))
		}
		if p.want(want...); t.Failed() {
			t.Fatalf("back with the rest of %d, from %d", len(in), at)
		}
	}
	for step := 1; step < 30; step++ {
		p := newPeer(t, aConfig(), true, false)
		aDialogue(p)
		for piece := range slices.Chunk(in, step) {
			p.feed(piece)
		}
		if p.want(want...); t.Failed() {
			t.Fatalf("in pieces of %d", step)
		}
	}

	// Byte by byte, with a caller who stops at every event for good measure.
	p = newPeer(t, aConfig(), true, false)
	aDialogue(p)
	var kept []byte
	for _, b := range in {
		kept = bytes.Clone(p.feedKept(append(kept, b), false))
	}
	for len(kept) > 0 {
		kept = p.feedKept(kept, false)
	}
	p.want(want...)
}

// The same over TCP, and in JSON.
func TestSplitsChangeNothingOverTCPAndInJSON(t *testing.T) {
	eachDoor(t, aConfig(), func(t *testing.T, p *peer) {
		if p.ws && !p.json {
			return
		}
		p.open()
		var in []byte
		add := func(b []byte) { in = append(in, p.frame(b)...) }
		for _, text := range []string{
			`{"cmd":5,"sessionId":2,"body":{"userId":"u1"}}`, `{"cmd":23,"sessionId":3}`, `{"cmd":2,"sessionId":4}`,
			`{"cmd":15,"flags":20,"sessionId":5,"body":{"content":"hi"}}`, `{"cmd":6,"sessionId":6,"body":{"userId":"u1"}}`,
		} {
			if p.json {
				add([]byte(text))
				in = append(in, masked(ws.Ping, nil)...)
			}
		}
		if !p.json {
			add([]byte{Beat, Beat})
			add(p.packet(CmdBind, 0, 2, (&Bind{UserID: "u1"}).Append(nil)))
			add(AppendPacket(nil, CmdAck, 0, 0x00DF, nil))
			add(p.packet(CmdPush, FlagCompress, 5, deflated(bytes.Repeat([]byte("x"), 3000))))
			add(AppendPacket(nil, CmdHandshake, 0, -33, []byte("again")))
			add(p.packet(CmdHTTPProxy, 0, 6, (&ProxyRequest{URI: "http://h/", Body: bytes.Repeat([]byte{Beat}, 700)}).Append(nil)))
			add([]byte{Beat})
		}
		add([]byte("this is the end"))
		want := p.clone().feed(in).log
		if len(want) < 10 || !strings.HasPrefix(want[len(want)-1], "CLOSED") {
			t.Fatalf("%.200q", want)
		}
		for at := range len(in) + 1 {
			if p.clone().feed(in[:at]).feed(in[at:]).want(want...); t.Failed() {
				t.Fatalf("cut at %d of %d", at, len(in))
			}
		}
		q := p.clone()
		for _, b := range in {
			q.feed([]byte{b})
		}
		q.want(want...)
	})
}

// Feed returns after one event. Over a WebSocket a message with more packets
// is not used up before the last of them is told, so that a caller who stops
// has something to come back with.
func TestFeedTellsOneEventAtATime(t *testing.T) {
	p := newPeer(t, aConfig(), true, false).open()
	three := masked(ws.Binary, []byte{Beat, Beat, Beat})
	in := append(bytes.Clone(three), masked(ws.Binary, []byte{Beat})...)
	for i, want := range []int{len(three) - 1, 0, 1, len(in) - len(three)} {
		var ev wire.Event
		n, err := p.s.Feed(in, &ev)
		if n != want || err != nil || ev.Kind != wire.Ping {
			t.Fatalf("%d: used %d, want %d; %s, %v", i, n, want, show(&ev), err)
		}
		if kept := i < 2; (p.s.web.rest != nil) != kept {
			t.Fatalf("%d: %d bytes kept", i, len(p.s.web.rest))
		}
		in = in[n:]
	}

	// An error in a later packet comes after what was before it.
	p.feed(masked(ws.Binary, append([]byte{Beat}, claimed(-1)...))).want("PING", "HB", handlerFailed(CmdPush, 7), "CLOSED 1002")
	p = newPeer(t, aConfig(), true, false).open()
	p.feed(masked(ws.Binary, slices.Concat([]byte{Beat}, AppendPacket(nil, 99, 0, 4, nil), []byte{Beat})))
	p.want("PING", "HB", failure(false, 99, 4, 101, "unsupported command"), "CLOSED 1002")

	// Over TCP the bytes themselves are left.
	p = newPeer(t, aConfig(), false, false).open()
	in = []byte{Beat, Beat}
	var ev wire.Event
	if n, err := p.s.Feed(in, &ev); n != 1 || err != nil || ev.Kind != wire.Ping {
		t.Errorf("used %d, %s, %v", n, show(&ev), err)
	}
}

// What is fed behind a HANDSHAKE in the same message waits until Open has
// answered, and is judged by the session's own limits.
func TestPacketsBehindAHandshakeInTheSameMessage(t *testing.T) {
	p := newPeer(t, aConfig(), true, false)
	big := p.packet(CmdPush, 0, 3, make([]byte, 8<<10-300))
	in := masked(ws.Binary, slices.Concat(p.handshake(aHandshake(), 1), p.packet(CmdBind, 0, 2, (&Bind{UserID: "u"}).Append(nil)), big))
	p.on = func(p *peer, ev *wire.Event) []byte {
		p.log = append(p.log, fmt.Sprint(ev.Kind, len(ev.Data.Bytes)))
		return nil
	}
	p.feed(in).want("HANDSHAKE flags=1 sid=1 {'heartbeat': 180000}", fmt.Sprint(wire.Login, 0), fmt.Sprint(wire.Message, 8<<10-300))

	// If the handshake fails they mean nothing.
	p = newPeer(t, aConfig(), true, true)
	p.feed(masked(ws.Binary, slices.Concat(AppendPacket(nil, CmdHandshake, 0, 1, nil), []byte{Beat})))
	p.want(handlerFailed(CmdHandshake, 1), "CLOSED 1002")

	// Over TCP too: 9 KiB behind the handshake are allowed after it.
	p = newPeer(t, aConfig(), false, false)
	p.feed(append(p.handshake(aHandshake(), 1), bodyOf(9<<10)...)).want("HANDSHAKE flags=1 sid=1 {'heartbeat': 180000}", "ACKED 6")
	p = newPeer(t, aConfig(), false, false)
	p.feed(append((&FastConnect{"none", "dev", 1, 1}).packet(), bodyOf(9<<10)...))
	p.want(failure(false, CmdFastConnect, 8, 103, "session expired"), "CLOSED 1009")
}

// The first message decides how packets are written; the other kind is 1003
// from then on.
func TestTheFirstMessageDecides(t *testing.T) {
	text := masked(ws.Text, []byte(`{"cmd":23,"sessionId":1}`))
	binary := masked(ws.Binary, AppendPacket(nil, CmdAck, 0, 1, nil))
	fresh := func() *peer { return newPeer(t, aConfig(), true, false) }
	form := func(p *peer, want Form) {
		t.Helper()
		if got := p.s.Form(); got != want {
			t.Errorf("form %d, want %d", got, want)
		}
	}
	p := fresh().feed(masked(ws.Ping, nil)).feed(masked(ws.Pong, nil)).forget()
	form(p, Undecided)
	p.feed(text).feed(text).want("ACKED 1", "ACKED 1")
	form(p, JSON)
	p.feed(binary).want("CLOSED 1003")
	p = fresh().feed(binary).feed(binary).want("ACKED 1", "ACKED 1")
	form(p, Packets)
	p.feed(text).want("CLOSED 1003")
	if p.sent != nil {
		t.Errorf("%x", p.sent)
	}
	p = fresh().feed(masked(ws.Binary, nil)).want()
	form(p, Packets)
	p.feed(text).want("CLOSED 1003")
	fresh().feed(masked(ws.Text, nil)).want("CLOSED 1007")
	form(newPeer(t, aConfig(), false, false), Packets)

	// The opcode of a message's first fragment counts, when its last has come.
	p = fresh().feed(fragment(ws.Text, []byte(`{"cmd":2`)))
	form(p, Undecided)
	if !p.s.Partial() {
		t.Error("not partial inside a message")
	}
	p.feed(masked(ws.Ping, nil)).feed(masked(continued, []byte(`3,"sessionId":1}`))).want("PING", `opcode 10 ""`, "ACKED 1")
	form(p, JSON)

	// An open session has its form for good.
	p = fresh()
	p.json = true
	p.open().feed(binary).want("CLOSED 1003")
	p = fresh()
	p.open().feed(text).want("CLOSED 1003")
	p = newPeer(t, aConfig(), true, true)
	p.open().feed(text).want("CLOSED 1003")

	cfg := aConfig()
	cfg.NoJSON = true
	newPeer(t, cfg, true, false).feed(text).want("CLOSED 1003")
	newPeer(t, cfg, true, false).open().send([]byte{Beat}).want("PING", "HB")
}

func TestWebSocketViolationsEndTheSession(t *testing.T) {
	unmasked := ws.AppendFrame(nil, ws.Binary, []byte{Beat})
	for name, test := range map[string]struct {
		in   []byte
		want string
	}{
		"unmasked": {unmasked, "CLOSED 1002"}, "reserved bits": {[]byte{0xC2, 0x80}, "CLOSED 1002"}, "not UTF-8": {masked(ws.Text, []byte{0xFF}), "CLOSED 1007"},
		"stray continuation": {masked(continued, nil), "CLOSED 1002"},
	} {
		for _, until := range []func(*peer) *peer{(*peer).forget, (*peer).open} {
			p := newPeer(t, aConfig(), true, false)
			if until(p).feed(test.in).want(test.want); p.sent != nil || t.Failed() {
				t.Fatalf("%s: %x", name, p.sent)
			}
		}
	}
}

func TestASessionOfAPageThatTurnedOutToBeOurs(t *testing.T) {
	s := NewJSON(aConfig())
	var ev wire.Event
	if err := s.First([]byte(`{"cmd":2,"flags":16,"sessionId":1,"body":{"deviceId":"d","osName":"web"}}`), &ev); err != nil || ev.Kind != wire.Open || ev.Heavy {
		t.Fatal(show(&ev), err)
	}
	o, err := s.Open(tokenNoon)
	p := &peer{t: t, s: s, ws: true, json: true}
	p.hear(o.Reply)
	if p.want(`{"bodyLength":0,"cmd":2,"flags":16,"sessionId":1}`); err != nil || !o.OK || s.Form() != JSON {
		t.Error(o, err)
	}
	if got, want := o.Device, (Device{ID: "d", OS: "web"}); got != want || s.Heartbeat() != 3*time.Minute {
		t.Errorf("%+v, want %+v; %s", got, want, s.Heartbeat())
	}
	p.send([]byte(`{"cmd":5,"sessionId":2,"body":{"userId":"u"}}`)).want(`LOGIN 2 "u" "" []`)

	s = NewJSON(aConfig())
	err = s.First([]byte(`{"cmd":99,"sessionId":1}`), &ev)
	if e, ok := err.(*wire.Error); !ok || e.Code != wire.Protocol {
		t.Error(err)
	}
}

// A push is made once and sealed for each session.
func TestSealMakesOfAPushWhatASessionSends(t *testing.T) {
	long := bytes.Repeat([]byte("abcdefgh"), 64)
	joined := AppendPush(nil, []byte("first"), 0, false, 0)
	joined = AppendPush(joined, long, 0x40000001, true, 100)
	joined = AppendPush(joined, nil, 0x40000002, false, 100)
	joined = AppendPush(joined, long, 1<<32-1, true, 0)
	joined = AppendPush(joined, long[:100], 7, false, 100)
	before := bytes.Clone(joined)
	eachPackets(t, aConfig(), func(t *testing.T, p *peer) {
		p.bound()
		got := p.s.Seal(joined)
		if !p.ws && !p.crypto && (len(got) != len(joined) || &got[0] != &joined[0]) {
			t.Error("it is not the packets themselves")
		}
		n := 0
		if p.crypto {
			n = 1
		}
		p.hear(got)
		p.want(fmt.Sprintf("PUSH flags=%d sid=0 {'content': 'first', 'len': 5}", n),
			fmt.Sprintf("PUSH flags=%d sid=1073741825 {'content': '%s', 'len': 512}", n|8|2, long),
			"PUSH flags=4 sid=1073741826 {'content': '', 'len': 0}",
			fmt.Sprintf("PUSH flags=%d sid=-1 {'content': '%s', 'len': 512}", n|8, long),
			fmt.Sprintf("PUSH flags=%d sid=7 {'content': '%s', 'len': 100}", n|4, long[:100]))
		if !bytes.Equal(joined, before) {
			t.Error("the packets were written to")
		}
		if len(p.s.Seal(nil)) != 0 {
			t.Error("nothing becomes something")
		}
		for n := range 70 { // each length of padding, and of a WebSocket's header
			for _, n := range []int{n, 100 + n, 65520 - 70 + n} {
				p.hear(p.s.Seal(AppendPush(nil, make([]byte, n), 5, true, 0)))
				if !strings.HasSuffix(p.log[0], fmt.Sprintf("'len': %d}", n)) || len(p.log) != 1 {
					t.Fatalf("%d bytes: %.100q", n, p.log)
				}
				p.forget()
			}
		}
	})
}

func TestPushesInJSON(t *testing.T) {
	p := newPeer(t, aConfig(), true, false)
	p.json = true
	p.hear(AppendPushText(nil, []byte(`"héllo" 世`), 0x40000001, true))
	p.hear(AppendPushText(nil, nil, 0, true))
	p.hear(AppendPushText(nil, []byte("x"), 5, false))
	p.want(`{"body":{"content":"\"héllo\" 世"},"bodyLength":1,"cmd":15,"flags":24,"sessionId":1073741825}`,
		`{"body":{"content":""},"bodyLength":1,"cmd":15,"flags":16,"sessionId":0}`,
		`{"body":{"content":"x"},"bodyLength":1,"cmd":15,"flags":20,"sessionId":5}`)
	if b := AppendPushText([]byte("before"), []byte{0xFF}, 1, true); b != nil {
		t.Errorf("%q", b)
	}
}

func TestAnswers(t *testing.T) {
	eachDoor(t, aConfig(), func(t *testing.T, p *peer) {
		p.bound()
		ok := func(cmd Cmd, id int32, data string) string {
			if p.json {
				return string((&OK{Cmd: cmd, Data: data}).AppendJSON(nil, id))
			}
			return fmt.Sprintf("OK flags=0 sid=%d {'cmd': %d, 'code': 0, 'data': '%s'}", id, cmd, data)
		}
		p.hear(p.s.LoggedIn(nil, 5, "u", "c", false))
		p.hear(p.s.LoggedIn(nil, 6, "u", "c", true))
		p.hear(p.s.LoggedOut(nil, 1<<32-7))
		p.hear(p.s.BindFailed(nil, 8, ""))
		p.hear(p.s.BindFailed(nil, 9, "come back \"later\""))
		p.hear(p.s.Answer(nil, "", 10, wire.Value{JSON: []byte("1")}, ""))
		ack := "ACK flags=0 sid=10 {}"
		if p.json {
			ack = `{"bodyLength":0,"cmd":23,"flags":16,"sessionId":10}`
		}
		p.want(ok(CmdBind, 5, "bind success"), ok(CmdBind, 6, "unbind success"), ok(CmdBind, 6, "bind success"), ok(CmdUnbind, -7, "unbind success"),
			failure(p.json, CmdBind, 8, 0, "bind failed"), failure(p.json, CmdBind, 9, 0, `come back "later"`), ack)

		dst := []byte("before")
		if got := p.s.Answer(dst, "", 11, wire.Value{}, "no"); string(got) != "before" {
			t.Errorf("a refusal is %q", got)
		}
		for name, f := range map[string]func([]byte) []byte{
			"LoggedIn": func(b []byte) []byte { return p.s.LoggedIn(b, 1, "", "", true) }, "LoggedOut": func(b []byte) []byte { return p.s.LoggedOut(b, 1) },
			"BindFailed": func(b []byte) []byte { return p.s.BindFailed(b, 1, "") }, "Answer": func(b []byte) []byte { return p.s.Answer(b, "", 1, wire.Value{}, "") },
			"Kick": func(b []byte) []byte { return p.s.Kick(b, "d", "u") }, "Ping": p.s.Ping, "Close": func(b []byte) []byte { return p.s.Close(b, wire.Kicked, "") },
			"Proxied": func(b []byte) []byte { return p.s.Proxied(b, 1, &wire.HTTPResponse{Status: 200, Body: []byte("b")}) },
		} {
			if got := f([]byte("before")); !bytes.Equal(got, append([]byte("before"), f(nil)...)) {
				t.Errorf("%s does not append: %q", name, got)
			}
		}

		if got, want := p.s.Ping(nil), "\x89\x00"; string(got) != want && p.ws || len(got) > 0 && !p.ws {
			t.Errorf("ping %x", got)
		}
	})
}

func TestKick(t *testing.T) {
	eachDoor(t, aConfig(), func(t *testing.T, p *peer) {
		p.bound()
		p.hear(p.s.Kick(nil, "dev", "u1"))
		switch {
		case p.json:
			p.want(`{"body":{"deviceId":"dev","userId":"u1"},"bodyLength":2,"cmd":13,"flags":16,"sessionId":0}`)
		case p.crypto:
			p.want("KICK flags=1 sid=0 {'deviceId': 'dev', 'userId': 'u1'}")
		default:
			p.want("KICK flags=0 sid=0 {'deviceId': 'dev', 'userId': 'u1'}")
		}
	})
}

// compatibility.md A2: an ERROR about its handshake stops a client that is
// kicked; nothing else says goodbye but a WebSocket's own close.
func TestClose(t *testing.T) {
	codes := []wire.Code{wire.Normal, wire.GoingAway, wire.Protocol, wire.TooBig, wire.TryLater, wire.Unauthorized, wire.TooSlow, wire.Replaced, wire.Kicked}
	eachDoor(t, aConfig(), func(t *testing.T, p *peer) {
		p.bound()
		for _, code := range codes {
			var want []string
			if code == wire.Kicked {
				want = append(want, failure(p.json, CmdHandshake, 0, 0, "kicked"))
			}
			if p.ws {
				want = append(want, fmt.Sprintf("CLOSE %04x", uint16(code)))
			}
			p.hear(p.s.Close(nil, code, ""))
			p.want(want...)
		}
		p.hear(p.s.Close(nil, wire.Kicked, "spam"))
		var want string
		if p.json {
			want = string((&Error{Cmd: CmdHandshake, Reason: "kicked", Data: "spam"}).AppendJSON(nil, 0))
		} else {
			want = "ERROR flags=0 sid=0 {'cmd': 2, 'code': 0, 'reason': 'kicked', 'data': 'spam'}"
		}
		if len(p.log) == 0 || p.log[0] != want {
			t.Errorf("%q, want %s", p.log, want)
		}
	})
	// A long text is cut at a character, also where there is no close frame.
	p := newPeer(t, aConfig(), false, false).open()
	p.hear(p.s.Close(nil, wire.Kicked, strings.Repeat("x", 122)+"é!"))
	p.want("ERROR flags=0 sid=0 {'cmd': 2, 'code': 0, 'reason': 'kicked', 'data': '" + strings.Repeat("x", 122) + "'}")
	// Before its first message a WebSocket has no form.
	p = newPeer(t, aConfig(), true, false)
	p.hear(p.s.Close(nil, wire.GoingAway, "bye"))
	p.want("CLOSE 03e9627965")
}

func TestPartial(t *testing.T) {
	tcp := newPeer(t, aConfig(), false, false)
	overWS := newPeer(t, aConfig(), true, false)
	for _, step := range []struct {
		p    *peer
		in   []byte
		want bool
	}{
		{tcp, []byte{Beat}, false}, {tcp, bodyOf(3)[:1], true}, {tcp, bodyOf(3)[1:15], true}, {tcp, bodyOf(3)[15:], false},
		{overWS, []byte{0x82}, true}, {overWS, []byte{0x81, 0, 0, 0, 0, Beat}, false},
		{overWS, masked(ws.Binary, bodyOf(3)[:1]), true}, {overWS, masked(ws.Ping, nil), true}, {overWS, masked(ws.Binary, bodyOf(3)[1:]), false},
		{overWS, fragment(ws.Binary, nil), true}, {overWS, masked(continued, nil), false},
	} {
		if step.p.feed(step.in); step.p.s.Partial() != step.want {
			t.Errorf("after %x: %v", step.in, !step.want)
		}
	}
}

// Section 8 of the protocol. The first match counts.
func TestClass(t *testing.T) {
	for os, want := range map[string]string{
		"android": "mobile", "Android 14": "mobile", "iOS": "mobile", "ios": "mobile", "iPhone OS": "unknown",
		"windows": "pc", "Windows 11": "pc", "mac": "pc", "macOS": "pc", "MacIntosh": "pc", "linux": "pc", "GNU/Linux": "pc",
		"web": "web", "WEB": "web", "h5": "web", "H5 page": "web", "": "unknown", "symbian": "unknown", "-": "unknown",
		"web Mozilla/5.0 (Windows NT 10.0)": "pc", "web Mozilla/5.0 (Linux; Android 14)": "mobile", "web on a mac": "pc", "web on android": "mobile",
		"linux android": "mobile", "windows ios": "mobile", "h5 in a webview of Windows": "pc",
	} {
		if got := Class(os); got != want {
			t.Errorf("%q: %s, want %s", os, got, want)
		}
	}
}

// What only encodes may be called while Feed reads.
func TestAnswersAreMadeWhileAnotherGoroutineFeeds(t *testing.T) {
	eachDoor(t, aConfig(), func(t *testing.T, p *peer) {
		p.bound()
		push := AppendPush(nil, []byte("hello"), 5, true, 0)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 100 {
					p.s.Answer(nil, "", 1, wire.Value{}, "")
					p.s.LoggedIn(nil, 0, "a", "b", true)
					p.s.LoggedOut(nil, 0)
					p.s.BindFailed(nil, 0, "")
					p.s.Kick(nil, "d", "u")
					p.s.Ping(nil)
					p.s.Close(nil, wire.Kicked, "x")
					p.s.Proxied(nil, 1, &wire.HTTPResponse{Status: 200})
					p.s.Seal(push)
					p.s.Heartbeat()
					p.s.Form()
				}
			})
		}
		for range 100 {
			p.send(p.bindBody(CmdBind, 3, Bind{UserID: "other"}))
			p.send(p.bindBody(CmdUnbind, 4, Bind{UserID: "other"}))
			if !p.json {
				p.send(p.packet(CmdPush, FlagAutoAck, 5, []byte("x")), []byte{Beat})
			}
		}
		wg.Wait()
	})
}

func sessionAllocs(t *testing.T, want float64, what string, p *peer, in []byte, kind wire.Kind) {
	t.Helper()
	var ev wire.Event
	buf := make([]byte, len(in))
	got := testing.AllocsPerRun(200, func() {
		copy(buf, in)
		if n, err := p.s.Feed(buf, &ev); n != len(in) || err != nil || ev.Kind != kind {
			t.Fatalf("%s: %d of %d, %s, %v", what, n, len(in), show(&ev), err)
		}
	})
	if got > want {
		t.Errorf("%s: %v allocations, want %v", what, got, want)
	}
}

func TestReadingAllocatesNothingButWhatTheEngineKeeps(t *testing.T) {
	eachPackets(t, aConfig(), func(t *testing.T, p *peer) {
		p.bound()
		frame := func(b []byte) []byte {
			if p.ws {
				return maskedWith(ws.Binary, 0, b) // unmasking changes nothing
			}
			return b
		}
		ack := AppendPacket(nil, CmdAck, 0, 0x40000001, nil)
		sessionAllocs(t, 0, "heartbeat", p, frame([]byte{Beat}), wire.Ping)
		sessionAllocs(t, 0, "heartbeat as a packet", p, frame(AppendPacket(nil, CmdHeartbeat, 0, 0, nil)), wire.Ping)
		sessionAllocs(t, 0, "ack", p, frame(ack), wire.Ack)
		sessionAllocs(t, 0, "push", p, frame(p.packet(CmdPush, 0, 3, make([]byte, 256))), wire.Message)
	})
}

func benchmarkFeed(b *testing.B, p *peer, in []byte) {
	var ev wire.Event
	buf := make([]byte, len(in))
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, in)
		if n, err := p.s.Feed(buf, &ev); n != len(in) || err != nil {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkSessionFeedPush256(b *testing.B) {
	for _, d := range doors {
		if !d.json {
			b.Run(d.name, func(b *testing.B) {
				p := newPeer(b, aConfig(), d.ws, d.crypto).bound()
				in := p.packet(CmdPush, FlagAutoAck, 3, make([]byte, 256))
				if p.ws {
					in = maskedWith(ws.Binary, 0, in)
				}
				benchmarkFeed(b, p, in)
			})
		}
	}
}

func BenchmarkSessionFeedAck(b *testing.B) {
	benchmarkFeed(b, newPeer(b, aConfig(), false, true).bound(), AppendPacket(nil, CmdAck, 0, 5, nil))
}

func BenchmarkSessionSeal256(b *testing.B) {
	push := AppendPush(nil, make([]byte, 256), 5, true, 0)
	for _, d := range doors {
		if !d.json {
			b.Run(d.name, func(b *testing.B) {
				s := newPeer(b, aConfig(), d.ws, d.crypto).bound().s
				b.SetBytes(int64(len(push)))
				b.ReportAllocs()
				for b.Loop() {
					s.Seal(push)
				}
			})
		}
	}
}

func BenchmarkSessionOpen(b *testing.B) {
	run := func(name string, plain bool, in []byte) {
		b.Run(name, func(b *testing.B) {
			cfg, buf := aConfig(), make([]byte, len(in))
			var ev wire.Event
			b.ReportAllocs()
			for b.Loop() {
				s := NewSession(cfg, plain, false)
				copy(buf, in)
				if _, err := s.Feed(buf, &ev); err != nil || ev.Kind != wire.Open {
					b.Fatal(err)
				}
				if o, err := s.Open(tokenNoon); err != nil || !o.OK {
					b.Fatal(o, err)
				}
			}
		})
	}
	p := newPeer(b, aConfig(), false, true).open()
	run("fast connect", false, AppendPacket(nil, CmdFastConnect, 0, 1, (&FastConnect{p.token, "dev", 1, 1}).Append(nil)))
	run("handshake", false, p.handshake(aHandshake(), 1))
	p.crypto = false
	run("plain handshake", true, p.handshake(aHandshake(), 1))
}

// A client may say what it likes before anybody knows it; Feed runs where
// other connections are read too.
func TestABindOfManyTagsIsNotReadToItsEnd(t *testing.T) {
	var tags strings.Builder
	for i := 0; tags.Len() < 15_000; i++ {
		fmt.Fprintf(&tags, "%x,", i)
	}
	bind := func(tags string) (ev wire.Event, err error) {
		p := newPeer(t, aConfig(), false, true).open()
		_, err = p.s.Feed(p.packet(CmdBind, FlagCompress, 2, deflated((&Bind{"u", strings.Repeat("d", 5000)[:len(tags)%5000], tags}).Append(nil))), &ev)
		return ev, err
	}
	if ev, err := bind(tags.String()); err != nil || ev.Login == nil || len(ev.Login.Tags) != maxTags+1 {
		t.Errorf("%d bytes of tags are %+v, %v; want %d tags looked at", tags.Len(), ev.Login, err, maxTags+1)
	}
	if ev, err := bind(strings.Repeat("t", 4999)); err != nil || len(ev.Login.Token) != maxToken+1 {
		t.Errorf("a token of 4 999 bytes is %+v, %v; want one byte too many for the engine to refuse", ev.Login, err)
	}
	if ev, err := bind(strings.Repeat("t,", 10_000)); err == nil {
		t.Errorf("tags that inflate to 20 000 bytes are %+v", ev.Login)
	}
}

// The Java client compresses a FAST_CONNECT that is longer than its
// compressLimit, as it does any packet, and with our tokens it is longer than
// 350 bytes. compatibility.md A7: it is answered OK, 103 or 104.
func TestACompressedFastConnectIsAFastConnect(t *testing.T) {
	of := newPeer(t, aConfig(), false, true).open()
	p := newPeer(t, aConfig(), false, true)
	p.send(AppendPacket(nil, CmdFastConnect, FlagCompress, 1, deflated((&FastConnect{of.token, "dev", 1, 1}).Append(nil))))
	p.want("FAST_CONNECT flags=0 sid=1 {'heartbeat': 180000}")
	for name, body := range map[string][]byte{
		"garbage": []byte("no zlib"), "a bomb": deflated(make([]byte, 1<<20)), "nothing": deflated(nil),
	} {
		p := newPeer(t, aConfig(), false, true)
		if p.send(AppendPacket(nil, CmdFastConnect, FlagCompress, 1, body)).want(handlerFailed(CmdFastConnect, 1), "CLOSED 1002"); t.Failed() {
			t.Fatal(name)
		}
	}
}

// Some clients send a fast connect again when they wait for a second; what
// opened the session is answered as it was, and nothing changes.
func TestAFastConnectThatIsSentAgainIsAnsweredAgain(t *testing.T) {
	of := newPeer(t, aConfig(), false, true).open()
	p := newPeer(t, aConfig(), false, true)
	again := AppendPacket(nil, CmdFastConnect, 0, 1, (&FastConnect{of.token, "dev", 1, 1}).Append(nil))
	for range 5 {
		p.send(again)
		p.want("FAST_CONNECT flags=0 sid=1 {'heartbeat': 180000}")
	}
	other := AppendPacket(nil, CmdFastConnect, 0, 2, (&FastConnect{of.token, "dev", 1, 1}).Append(nil))
	p.send(other)
	p.want("ERROR flags=0 sid=2 {'cmd': 7, 'code': 103, 'reason': 'session expired', 'data': ''}")
}

func TestAnIdleSessionIsSmallAndKeepsNoCipher(t *testing.T) {
	if got := unsafe.Sizeof(Session{}); got > 96 && unsafe.Sizeof(uintptr(0)) == 8 {
		t.Errorf("a Session takes %d bytes", got)
	}
	eachPackets(t, aConfig(), func(t *testing.T, p *peer) {
		p.bound() // one use, if it was encrypted
		if !p.s.sealed {
			return
		}
		push := AppendPush(nil, []byte("hello"), 5, true, 0)
		want := p.s.Seal(push)
		if p.s.cipher.Load() != nil {
			t.Error("a BIND and a push leave a cipher")
		}
		check := func(when string, kept bool) {
			t.Helper()
			if got := p.s.cipher.Load() != nil; got != kept {
				t.Errorf("%s: it has a cipher: %v", when, got)
			}
		}
		for range busy {
			if got := p.s.Seal(push); !bytes.Equal(got, want) {
				t.Fatalf("sealed as %x, then as %x", want, got)
			}
		}
		check("busy", true)
		if n := testing.AllocsPerRun(100, func() { p.s.Seal(push) }); n > 1 {
			t.Errorf("a busy session makes %v allocations to seal a push", n)
		}
		p.s.Rest()
		check("after a second", true)
		p.s.Seal(push)
		p.s.Rest()
		check("after another one with a push", true)
		p.s.Rest()
		check("after one without", false)
		if got := p.s.Seal(push); !bytes.Equal(got, want) {
			t.Errorf("sealed as %x, then as %x", want, got)
		}
		p.send(p.packet(CmdPush, 0, 6, []byte("still there"))).want(`MESSAGE 6 false "still there"`)
		if p.s.part != nil || p.s.request != nil {
			t.Error("it holds something of a packet")
		}
	})
}

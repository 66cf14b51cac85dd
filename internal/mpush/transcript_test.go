package mpush

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// transcript is testdata/session.txt, which says what it is.
type transcript struct {
	frames []recordedFrame   // of the Java clients
	web    []recordedMessage // of the WebSocket port
	probes []struct{ name, answer string }
}

type recordedFrame struct {
	section, conn string
	fromClient    bool
	what          string // as the transcript says it
	bytes         []byte
	cut           bool // bytes are the first ones only
}

type recordedMessage struct {
	line       int
	conn       string
	fromClient bool
	kind, text string
}

var (
	frameLine = regexp.MustCompile(`^(client#\d+) (C->S|S->C) ([A-Z_]+ ?.*)$`)
	webLine   = regexp.MustCompile(`^(web#\d+) (C->S|S->C) (TEXT|BINARY|PING|PONG|CLOSE) ?(.*)$`)
	probeLine = regexp.MustCompile(`^probe (.*) => (.*)$`)
)

func readTranscript(t testing.TB) *transcript {
	t.Helper()
	b, err := os.ReadFile("testdata/session.txt")
	if err != nil {
		t.Fatal(err)
	}
	tr := new(transcript)
	section := ""
	lines := strings.Split(string(b), "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		if m := frameLine.FindStringSubmatch(line); m != nil {
			i++
			text, cut := strings.CutSuffix(strings.TrimSpace(lines[i]), "...")
			raw, err := hex.DecodeString(text)
			if err != nil {
				t.Fatalf("line %d: %v", i+1, err)
			}
			tr.frames = append(tr.frames, recordedFrame{section, m[1], m[2] == "C->S", m[3], raw, cut})
		} else if m := webLine.FindStringSubmatch(line); m != nil {
			tr.web = append(tr.web, recordedMessage{i + 1, m[1], m[2] == "C->S", m[3], m[4]})
		} else if m := probeLine.FindStringSubmatch(line); m != nil {
			tr.probes = append(tr.probes, struct{ name, answer string }{m[1], m[2]})
		} else if name, ok := strings.CutPrefix(line, "== "); ok {
			section, _, _ = strings.Cut(name, ".")
		} else if line != "" && line[0] != '#' {
			t.Fatalf("line %d: %q", i+1, line)
		}
	}
	if len(tr.frames) != 95 || len(tr.web) != 60 || len(tr.probes) != 57 {
		t.Fatalf("%d frames, %d messages, %d probes", len(tr.frames), len(tr.web), len(tr.probes))
	}
	return tr
}

// replayed is one connection of a Java client, once more.
type replayed struct {
	*peer
	user     string  // bound
	recorded *Cipher // of the recorded session
	answers  [][]byte
	asked    Packet // the client's last packet, as it was recorded
	body     []byte // of that, decrypted and inflated
}

// replay plays all connections of the Java clients together, since one resumes
// the session of another.
type replay struct {
	t        *testing.T
	overWS   bool
	crypto   bool
	cfg      *Config
	conns    map[string]*replayed
	sessions map[string]*replayed // by their recorded tokens
	pushes   map[int32]bool       // recorded ids of pushes that want an ack
}

// What a Java client did is replayed to a Session, which has to answer what the
// Java server answered: byte for byte what both send plain, and what is
// encrypted, decrypted. A server chooses half of the session key, so what the
// client encrypted is decrypted with the recorded key and encrypted with ours.
func TestAJavaClientGetsTheAnswersOfTheJavaServer(t *testing.T) {
	tr := readTranscript(t)
	for _, d := range doors {
		if d.json {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			r := &replay{
				t: t, overWS: d.ws, crypto: d.crypto, cfg: aConfig(),
				conns: make(map[string]*replayed), sessions: make(map[string]*replayed),
				pushes: make(map[int32]bool),
			}
			for i := range tr.frames {
				f := &tr.frames[i]
				c := r.conns[f.conn]
				if c == nil {
					c = &replayed{peer: newPeer(t, r.cfg, r.overWS, r.crypto)}
					c.on = func(_ *peer, ev *wire.Event) []byte { return r.answer(c, ev) }
					r.conns[f.conn] = c
				}
				if f.fromClient {
					r.client(c, f)
				} else {
					r.server(c, f)
				}
				if c.ended != nil {
					t.Fatalf("%s: %s: %v", f.section, f.what, c.ended)
				}
				if t.Failed() {
					t.Fatalf("%s: %s %s", f.section, f.conn, f.what)
				}
			}
			for name, c := range r.conns {
				if len(c.answers) > 0 {
					t.Errorf("%s: %d answers that the Java server did not give", name, len(c.answers))
				}
			}
		})
	}
}

// packet takes a recorded frame apart; its body is decrypted and inflated.
func (r *replay) packet(c *replayed, f *recordedFrame) (p Packet, body []byte) {
	r.t.Helper()
	if f.bytes[0] == Beat {
		return Packet{Beat: true}, nil
	}
	p.Header, p.Body = ParseHeader(f.bytes), f.bytes[HeaderLen:]
	if int(p.Len) != len(p.Body) != f.cut {
		r.t.Fatalf("%d bytes of %d", len(p.Body), p.Len)
	}
	body, err := bytes.Clone(p.Body), error(nil)
	switch {
	case p.Flags&FlagCrypto == 0:
	case p.Cmd == CmdHandshake && f.fromClient:
		body = stockKey().Decrypt(body)
	case p.Cmd == CmdHandshake:
		body, err = c.first.Open(body)
	case f.cut: // it ends with a whole block, and not with the padding
		last := f.bytes[len(f.bytes)-KeyLen:]
		chained := mustCipher(r.t, c.recorded.key[:], last)
		body, err = c.recorded.Open(append(body, chained.Append(nil, nil)...))
	default:
		body, err = c.recorded.Open(body)
	}
	if err == nil && p.Flags&FlagCompress != 0 {
		body, err = Inflate(body, 1<<20)
	}
	if err != nil {
		r.t.Fatalf("%s: %v", f.what, err)
	}
	return p, body
}

// client has the client say again what it said.
func (r *replay) client(c *replayed, f *recordedFrame) {
	t := r.t
	p, body := r.packet(c, f)
	c.asked, c.body = p, body
	again := f.bytes
	switch {
	case p.Beat:
	case p.Cmd == CmdHandshake:
		var h Handshake
		if err := h.Decode(body); err != nil {
			t.Fatal(err)
		}
		c.first = mustCipher(t, h.ClientKey, h.IV)
		if !r.crypto {
			again = AppendPacket(nil, p.Cmd, 0, p.ID, body)
		}
	case p.Cmd == CmdFastConnect:
		var q FastConnect
		if err := q.Decode(body); err != nil {
			t.Fatal(err)
		}
		if of := r.sessions[q.SessionID]; of != nil { // it keeps our token instead
			q.SessionID = of.token
			again = AppendPacket(nil, p.Cmd, 0, p.ID, q.Append(nil))
			c.recorded, c.cipher = of.recorded, of.cipher
		}
	case p.Flags&FlagCrypto != 0:
		plain, err := c.recorded.Open(bytes.Clone(p.Body)) // perhaps compressed
		if err != nil {
			t.Fatal(err)
		}
		again = c.packet(p.Cmd, p.Flags&^FlagCrypto, p.ID, plain)
	}
	c.feed(c.frame(again))
	if c.sent != nil {
		c.answers = append(c.answers, splitAnswers(t, c.ws, c.sent)...)
		c.sent = nil
	}
}

// splitAnswers cuts what a session sent into packets, without the messages of
// a WebSocket around them.
func splitAnswers(t testing.TB, overWS bool, b []byte) (each [][]byte) {
	t.Helper()
	for len(b) > 0 {
		if overWS {
			op, payload, rest := serverFrame(t, b)
			if op != ws.Binary {
				t.Fatalf("a message of kind %d", op)
			}
			each, b = append(each, payload), rest
			continue
		}
		r := Reader{Max: -1}
		var p Packet
		n, err := r.Next(b, &p)
		if err != nil || !p.OK {
			t.Fatalf("%.40x: %v", b, err)
		}
		each, b = append(each, b[:n]), b[n:]
	}
	return each
}

// answer is what an engine that lets everybody in answers to an event, which
// has to say what the client said.
func (r *replay) answer(c *replayed, ev *wire.Event) []byte {
	t := r.t
	id := uint64(c.asked.ID)
	switch ev.Kind {
	case wire.Login:
		var b Bind
		b.Decode(c.body)
		if ev.ID != id || ev.Login.User != b.UserID || ev.Login.Token != b.Data || strings.Join(ev.Login.Tags, ",") != b.Tags {
			t.Errorf("%+v became %s", b, show(ev))
		}
		left := c.user != "" && c.user != b.UserID
		c.user = b.UserID
		return c.s.LoggedIn(nil, ev.ID, b.UserID, "", left)
	case wire.Logout:
		if ev.ID != id {
			t.Errorf("id %d became %s", id, show(ev))
		}
		c.user = ""
		return c.s.LoggedOut(nil, ev.ID)
	case wire.Message:
		if ev.ID != id || ev.HasID != (c.asked.Flags&FlagAutoAck != 0) || !bytes.Equal(ev.Data.Bytes, c.body) {
			t.Errorf("%d, %q became %s", id, c.body, show(ev))
		}
		if ev.HasID {
			return c.s.Answer(nil, "", ev.ID, wire.Value{}, "")
		}
	case wire.Ack:
		if ev.ID != id || !r.pushes[int32(ev.ID)] {
			t.Errorf("id %d, a push's: %v, became %s", id, r.pushes[int32(ev.ID)], show(ev))
		}
	case wire.Request:
		var q ProxyRequest
		q.Decode(c.body)
		if h := ev.HTTP; h == nil || ev.ID != id || h.Method != q.Method || h.URI != q.URI || h.Headers != q.Headers || !bytes.Equal(h.Body, q.Body) {
			t.Errorf("%+v became %s", q, show(ev))
		}
	case wire.Ping:
	default:
		t.Errorf("%d, %+v became %s", id, c.asked.Header, show(ev))
	}
	return nil
}

// server wants from the session what the Java server sent.
func (r *replay) server(c *replayed, f *recordedFrame) {
	t := r.t
	p, body := r.packet(c, f)
	want := f.bytes
	var made []byte // what the engine says unasked
	switch {
	case p.Cmd == CmdPush:
		id := uint32(p.ID)
		if p.Flags&(FlagAutoAck|FlagBizAck) == 0 {
			id = 0 // ours has no id unless an ack is wanted (compatibility.md A11)
		} else {
			r.pushes[p.ID] = true
		}
		content := body
		if f.cut { // the alphabet, again and again
			content = []byte(strings.Repeat("abcdefghijklmnopqrstuvwxyz", int(p.Len)/26+1)[:4000])
			if !bytes.HasPrefix(content, body) {
				t.Fatalf("it begins with %.60q", body)
			}
		}
		made = c.s.Seal(AppendPush(nil, content, id, p.Flags&FlagAutoAck != 0, 10240))
		want = r.wantSealed(c, Header{Cmd: CmdPush, Flags: p.Flags, ID: int32(id)}, content)
	case p.Cmd == CmdKick:
		made = c.s.Kick(nil, c.is.ID, c.user)
		want = r.wantSealed(c, p.Header, body)
	case p.Cmd == CmdHTTPProxy:
		var a ProxyResponse
		if err := a.Decode(body); err != nil {
			t.Fatal(err)
		}
		made = c.s.Proxied(nil, uint64(p.ID), &wire.HTTPResponse{
			Status: int(a.Status), Reason: a.Reason, Headers: a.Headers, Body: a.Body, Own: p.Flags&FlagCrypto == 0,
		})
		if p.Flags&FlagCrypto != 0 {
			want = r.wantSealed(c, p.Header, body)
		}
	}
	if made != nil {
		c.answers = append(c.answers, splitAnswers(t, c.ws, made)...)
	}
	if len(c.answers) == 0 {
		t.Fatalf("nothing, want %s", f.what)
	}
	got := c.answers[0]
	c.answers = c.answers[1:]
	if p.Cmd != CmdHandshake {
		if !bytes.Equal(got, want) {
			t.Errorf("%x\nwant %x", got, want)
		}
		return
	}

	// Of the answer to a handshake only the heartbeat is the same.
	var theirs HandshakeOK
	if err := theirs.Decode(body); err != nil {
		t.Fatal(err)
	}
	key := MixKey(c.first.key[:], theirs.ServerKey)
	c.recorded = mustCipher(t, key[:], c.first.iv[:])
	if !strings.Contains(f.what, fmt.Sprintf("'=> sessionKey': '%x'", key)) {
		t.Errorf("session key %x, want it of %s", key, f.what)
	}
	r.sessions[theirs.SessionID] = c
	h := ParseHeader(got)
	if h.Cmd != p.Cmd || h.Flags != p.Flags || h.ID != p.ID || len(got) != HeaderLen+int(h.Len) {
		t.Errorf("%+v, want the like of %+v", h, p.Header)
	}
	plain, err := c.first.Open(bytes.Clone(got[HeaderLen:]))
	var ours HandshakeOK
	if err != nil || ours.Decode(plain) != nil || len(ours.ServerKey) != KeyLen || ours.Heartbeat != theirs.Heartbeat ||
		ours.SessionID == "" || ours.ExpireTime != c.at.Add(24*time.Hour).UnixMilli() {
		t.Errorf("%+v, %v; want the like of %+v", ours, err, theirs)
	}
}

// wantSealed is a packet with this body under our session's key, or plain if
// the client is.
func (r *replay) wantSealed(c *replayed, h Header, body []byte) []byte {
	if r.crypto {
		return AppendPacket(nil, h.Cmd, h.Flags, h.ID, c.cipher.Append(nil, body))
	}
	return AppendPacket(nil, h.Cmd, h.Flags&^FlagCrypto, h.ID, body)
}

// lenient answers events as an engine does that lets everybody in.
func lenient() func(*peer, *wire.Event) []byte {
	user := ""
	return func(p *peer, ev *wire.Event) []byte {
		switch ev.Kind {
		case wire.Login:
			left := user != "" && user != ev.Login.User
			user = ev.Login.User
			return p.s.LoggedIn(nil, ev.ID, user, "", left)
		case wire.Logout:
			user = ""
			return p.s.LoggedOut(nil, ev.ID)
		case wire.Message:
			if ev.HasID {
				return p.s.Answer(nil, "", ev.ID, wire.Value{}, "")
			}
		}
		return nil
	}
}

// What the transcript's probes tried is tried again. Where ours is not what
// the Java server answered, it says which clause has it so: of
// compatibility.md (A, B), or a row of limits.md.
func TestProbesGetTheAnswersOfTheJavaServer(t *testing.T) {
	const closed = "CLOSED"
	bind := func(user string) []byte { return (&Bind{UserID: user}).Append(nil) }
	shake := func(change func(*Handshake)) func(*peer) {
		return func(p *peer) {
			h := aHandshake()
			change(h)
			p.send(p.handshake(h, 1))
		}
	}
	opened := func(f func(*peer)) func(*peer) {
		return func(p *peer) { f(p.open()) }
	}
	packet := func(cmd Cmd, flags Flags, id int32, body []byte) func(*peer) {
		return opened(func(p *peer) { p.send(p.packet(cmd, flags, id, body)) })
	}
	raw := func(b []byte) func(*peer) { return opened(func(p *peer) { p.send(b) }) }
	// other is a connection that resumes the session of an earlier one.
	other := func(f func(p, of *peer)) func(*peer) {
		return func(p *peer) {
			of := newPeer(p.t, p.s.cfg, false, true).open()
			p.cipher = of.cipher
			f(p, of)
		}
	}
	tests := map[string]struct {
		play   func(*peer)
		ours   string // "": the same
		clause string
	}{
		"BIND before handshake, plain": {play: func(p *peer) { p.send(p.packet(CmdBind, 0, 1, bind("u"))) }},
		"BIND before handshake, flag CRYPTO garbage (server context is RSA)": {play: func(p *peer) {
			p.send(AppendPacket(nil, CmdBind, FlagCrypto, 1, bytes.Repeat([]byte{7}, 128)))
		}},
		"FAST_CONNECT unknown token":             {play: func(p *peer) { p.resume("nothing", "dev", 9) }},
		"HANDSHAKE without iv/clientKey (empty)": {play: shake(func(h *Handshake) { h.IV, h.ClientKey = nil, nil })},
		"8-byte clientKey":                       {play: shake(func(h *Handshake) { h.ClientKey = h.ClientKey[:8] })},
		"HANDSHAKE with 8-byte iv":               {shake(func(h *Handshake) { h.IV = h.IV[:8] }), handlerFailed(CmdHandshake, 1) + " | " + closed, "rows 28 and 30: one answer to all"},
		"HANDSHAKE empty deviceId":               {shake(func(h *Handshake) { h.DeviceID = "" }), handlerFailed(CmdHandshake, 1) + " | " + closed, "rows 27 and 30"},
		"HANDSHAKE garbage RSA (128 random bytes)": {play: func(p *peer) {
			p.send(AppendPacket(nil, CmdHandshake, FlagCrypto, 1, bytes.Repeat([]byte{7}, 128)))
		}},
		"HANDSHAKE truncated body": {play: func(p *peer) {
			body := aHandshake().Append(nil)
			p.send(AppendPacket(nil, CmdHandshake, FlagCrypto, 1, encrypted(p.t, body[:len(body)-9])))
		}},
		"HANDSHAKE with flags 0": {play: func(p *peer) {
			p.s, p.crypto = NewSession(p.s.cfg, true, false), false
			p.send(p.handshake(aHandshake(), 1))
		}},
		"second HANDSHAKE, same deviceId": {play: opened(func(p *peer) { p.send(p.handshake(aHandshake(), 7)) })},
		"second HANDSHAKE, same deviceId, then BIND": {play: opened(func(p *peer) {
			p.send(p.handshake(aHandshake(), 7)).forget()
			p.send(p.packet(CmdBind, 0, 2, bind("u")))
		})},
		"second HANDSHAKE, other deviceId": {opened(func(p *peer) {
			h := aHandshake()
			h.DeviceID = "other"
			p.send(p.handshake(h, 7))
		}), failure(false, CmdHandshake, 7, CodeRepeat, "repeat handshake"), "A14"},
		"HEARTBEAT before handshake":                           {play: func(p *peer) { p.send([]byte{Beat, Beat, Beat}) }},
		"unsupported cmd 3 (LOGIN)":                            {play: packet(CmdLogin, 0, 5, nil)},
		"unsupported cmd 16 (GATEWAY_PUSH) on the client port": {play: packet(CmdGatewayPush, 0, 5, nil)},
		"unsupported cmd 99":                                   {play: packet(99, 0, 5, nil)},
		"cmd 1 as a full 13-byte frame":                        {play: packet(CmdHeartbeat, 0, 5, nil)},
		"wrong cc and lrc on BIND": {play: opened(func(p *peer) {
			b := p.packet(CmdBind, 0, 5, bind("u"))
			h := ParseHeader(b)
			h.CC, h.LRC = 12345, 55
			p.send(append(AppendHeader(nil, h), b[HeaderLen:]...))
		})},
		"BIND plain after handshake": {raw(AppendPacket(nil, CmdBind, 0, 5, bind("u"))), handlerFailed(CmdBind, 5) + " | " + closed, "A10"},
		"BIND empty body":            {play: packet(CmdBind, 0, 5, nil)},
		"BIND empty userId":          {play: packet(CmdBind, 0, 2, bind(""))},
		"BIND encrypted with a wrong key": {play: opened(func(p *peer) {
			p.cipher = p.first
			p.send(p.packet(CmdBind, 0, 5, bind("u")))
		})},
		"BIND with truncated body":        {play: packet(CmdBind, 0, 2, bind("u")[:3])},
		"BIND with negative field length": {play: packet(CmdBind, 0, 2, []byte{0, 1, 'u', 0x80, 0, 0, 0})},
		"UNBIND without bind":             {packet(CmdUnbind, 0, 2, bind("u")), "OK flags=0 sid=2 {'cmd': 6, 'code': 0, 'data': 'unbind success'}", "A13"},
		"UNBIND naming another user than bound": {play: opened(func(p *peer) {
			p.send(p.packet(CmdBind, 0, 2, bind("u"))).forget()
			p.send(p.packet(CmdUnbind, 0, 3, bind("another")))
		})},
		"UNBIND empty userId": {play: packet(CmdUnbind, 0, 3, bind(""))},
		"BIND second user on the same connection (server unbinds first)": {play: opened(func(p *peer) {
			p.send(p.packet(CmdBind, 0, 2, bind("u"))).forget()
			p.send(p.packet(CmdBind, 0, 3, bind("another")))
		})},
		"ACK for unknown id":                                                           {play: packet(CmdAck, 0, 999, nil)},
		"client PUSH empty body AUTO_ACK":                                              {play: packet(CmdPush, FlagAutoAck, 6, nil)},
		"client PUSH BIZ_ACK (server answers?)":                                        {packet(CmdPush, FlagBizAck, 6, []byte("x")), "ACK flags=0 sid=6 {}", "A16: an ack says that a handler took it"},
		"flags 0x80 unknown bit on PUSH":                                               {play: packet(CmdPush, FlagAutoAck|0x80, 6, []byte("x"))},
		"FLAG_JSON_BODY on TCP BIND":                                                   {play: packet(CmdBind, FlagJSON, 6, bind("u"))},
		"body length 10240 (max), PUSH AUTO_ACK":                                       {play: packet(CmdPush, FlagAutoAck, 6, make([]byte, 10239))},
		"body length 10241, full body sent":                                            {play: raw(AppendPacket(nil, CmdPush, FlagCrypto, 6, make([]byte, 10241)))},
		"body length 10241 announced, only header sent (no close until body complete)": {raw(claimed(10241)), closed, "row 3"},
		"body length 0x7fffffff announced, only header":                                {play: raw(claimed(0x7fffffff))},
		"body length -1":                                                               {raw(claimed(-1)), handlerFailed(CmdPush, 7) + " | " + closed, "row 1"},
		`garbage text "GET / HTTP/1.1"`:                                                {func(p *peer) { p.feed([]byte("GET / HTTP/1.1\r\n\r\n")) }, closed, "row 11"},
		"BIND byte by byte": {play: opened(func(p *peer) {
			for _, b := range p.packet(CmdBind, 0, 5, bind("u")) {
				p.feed([]byte{b})
			}
		})},
		"heartbeats around a frame in one segment": {play: opened(func(p *peer) {
			p.feed(append(p.packet(CmdAck, 0, 1, nil), Beat, Beat)).feed([]byte{Beat})
		})},
		"FAST_CONNECT ok (min 1000, max 600000)": {play: other(func(p, of *peer) {
			p.send(AppendPacket(nil, CmdFastConnect, 0, 3, (&FastConnect{of.token, "dev", 1000, 600000}).Append(nil)))
		})},
		"BIND with old session key": {play: other(func(p, of *peer) {
			p.resume(of.token, "dev", 3).forget()
			p.send(p.packet(CmdBind, 0, 1, bind("u")))
		})},
		"FAST_CONNECT with the same token while the first is still connected": {play: other(func(p, of *peer) {
			p.resume(of.token, "dev", 3)
		})},
		"BIND plain without knowing the key": {other(func(p, of *peer) {
			p.resume(of.token, "dev", 3).forget()
			p.send(AppendPacket(nil, CmdBind, 0, 4, bind("u")))
		}), handlerFailed(CmdBind, 4) + " | " + closed, "A10, B1"},
		"FAST_CONNECT with another deviceId": {play: other(func(p, of *peer) { p.resume(of.token, "other", 3) })},
		"FAST_CONNECT after a handshake on the same connection": {opened(func(p *peer) {
			p.resume(p.token, "dev", 3)
		}), failure(false, CmdFastConnect, 3, CodeExpired, "session expired"), "as A14: keys do not change under what is being sent"},
		"FAST_CONNECT for a deviceId containing a comma": {func(p *peer) {
			h := aHandshake()
			h.DeviceID = "a,b"
			of := newPeer(p.t, p.s.cfg, false, true)
			of.send(of.handshake(h, 1))
			p.resume(of.token, "a,b", 3)
		}, "FAST_CONNECT flags=0 sid=3 {'heartbeat': 180000}", "A7: the Java server keeps sessions as CSV"},
	}
	random := regexp.MustCompile(`'serverKey': '\w+', | *,? *'sessionId': '\w+', 'expireTime': \d+`)
	beats := regexp.MustCompile(`^heartbeat negotiation server (\d+)\.\.(\d+), client min=(\d+) max=(\d+)$`)
	for _, probe := range readTranscript(t).probes {
		t.Run(probe.name, func(t *testing.T) {
			cfg := aConfig()
			cfg.MaxMessage = 10240 // as the Java server has it
			p := newPeer(t, cfg, false, true)
			p.on = lenient()
			want := random.ReplaceAllString(probe.answer, "")
			if m := beats.FindStringSubmatch(probe.name); m != nil {
				n := func(i int) (n int32) { fmt.Sscan(m[i], &n); return n }
				cfg.MinHeartbeat, cfg.MaxHeartbeat = time.Duration(n(1))*time.Millisecond, time.Duration(n(2))*time.Millisecond
				h := aHandshake()
				h.MinHeartbeat, h.MaxHeartbeat = n(3), n(4)
				p.send(p.handshake(h, 1)).want(fmt.Sprintf("HANDSHAKE flags=1 sid=1 {'heartbeat': %s}", want))
				return
			}
			test, ok := tests[probe.name]
			if !ok {
				t.Fatal("it is not replayed")
			}
			test.play(p)
			got := strings.Join(p.log, " | ")
			if p.ended != nil {
				got, _, _ = strings.Cut(got, closed)
				got += closed
			} else if got == "" {
				got = "nothing"
			}
			if test.clause != "" {
				if want == test.ours {
					t.Errorf("it is no difference: %s", want)
				}
				want = test.ours
			}
			if got != want {
				t.Errorf("got  %s\nwant %s (the Java server: %s)", got, want, probe.answer)
			}
		})
	}
}

// The dialogues in JSON. Where the Java server closes, it says 1000 "Bye"; ours
// says why.
func TestADialogueInJSONIsThatOfTheJavaServer(t *testing.T) {
	closes := map[string]wire.Code{
		"web#3": wire.Protocol, "web#4": wire.Protocol, "web#5": wire.Protocol, "web#6": wire.Policy, "web#7": wire.Protocol,
		"web#9": wire.Protocol, "web#10": wire.BadData, "web#11": wire.BadData, "web#12": wire.Protocol,
	}
	// What ours says where the Java server says something else.
	ours := map[string]string{
		// A failed handshake reads the same whatever failed (limits.md row 30).
		`web#7 TEXT {"body":{"reason":"Param invalid","cmd":2},"bodyLength":2,"cmd":10,"flags":16,"sessionId":1}`: `{"body":{"reason":"handle message error","cmd":2,"code":100},"bodyLength":3,"cmd":10,"flags":16,"sessionId":1}`,
		// Without an ack there is no id (compatibility.md A11).
		`web#1 TEXT {"body":{"content":"plain"},"bodyLength":1,"cmd":15,"flags":16,"sessionId":83}`: `{"body":{"content":"plain"},"bodyLength":1,"cmd":15,"flags":16,"sessionId":0}`,
		// An ack is an ack (A16); the Java server fails to encode it.
		`web#14 CLOSE 03e8427965`: `{"bodyLength":0,"cmd":23,"flags":16,"sessionId":9}`,
		// The first message decides the form (A16): this one is of packets.
		`web#15 CLOSE 03e8427965`: ``,
	}
	peers := make(map[string]*peer)
	users := make(map[*peer]string)
	for _, m := range readTranscript(t).web {
		p := peers[m.conn]
		if p == nil {
			p = newPeer(t, aConfig(), true, false)
			p.json = true
			engine := lenient()
			p.on = func(p *peer, ev *wire.Event) []byte {
				if ev.Kind == wire.Login {
					users[p] = ev.Login.User
				}
				return engine(p, ev)
			}
			peers[m.conn] = p
		}
		fail := func(format string, args ...any) {
			t.Helper()
			t.Errorf("line %d, %s %s: %s", m.line, m.kind, m.text, fmt.Sprintf(format, args...))
		}
		if m.fromClient {
			if len(p.log) != 0 {
				fail("before it, the session said %q", p.log)
			}
			p.forget()
			switch m.kind {
			case "TEXT":
				p.send([]byte(m.text))
			case "BINARY":
				p.feed(masked(ws.Binary, []byte("\x00")))
			case "PING":
				p.feed(masked(ws.Ping, nil))
			}
			continue
		}
		want := m.text
		if m.kind == "CLOSE" {
			want = ""
		} else if m.kind == "PONG" {
			want = `opcode 10 ""`
		}
		if other, ok := ours[m.conn+" "+m.kind+" "+m.text]; ok {
			want = other
		} else if m.kind == "CLOSE" {
			want = fmt.Sprintf("CLOSED %d", closes[m.conn])
		}
		in, err := ParseJSON([]byte(m.text))
		switch {
		case err != nil:
		case in.Cmd == int32(CmdPush):
			content, _ := PushJSON(in.Body)
			id := uint32(in.ID)
			if Flags(in.Flags)&(FlagAutoAck|FlagBizAck) == 0 {
				id = 0
			}
			p.hear(AppendPushText(nil, []byte(content), id, Flags(in.Flags)&FlagAutoAck != 0))
		case in.Cmd == int32(CmdKick):
			p.hear(p.s.Kick(nil, p.is.ID, users[p]))
		}
		if len(p.log) == 0 {
			if want != "" {
				fail("the session says nothing, want %s", want)
			}
			continue
		}
		if p.log[0] != want {
			fail("got\n%s, want\n%s", p.log[0], want)
		}
		p.log = p.log[1:]
	}
	for name, p := range peers {
		if _, ended := closes[name]; ended != (p.ended != nil) || len(p.log) != 0 {
			t.Errorf("%s: ended %v, left %q", name, p.ended, p.log)
		}
	}
}

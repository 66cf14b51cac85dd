package mpush

import (
	"strings"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// What a Session sends. Everything here only reads what is static once the
// session is open (and, for errors before that, its form), so any goroutine
// may call it; answers before the session is open are made by Feed and Open.

// append appends one packet as it is.
func (s *Session) append(dst []byte, cmd Cmd, flags Flags, id int32, body []byte) []byte {
	if s.web != nil {
		dst = ws.AppendHeader(dst, ws.Binary, HeaderLen+len(body))
	}
	dst = AppendHeader(dst, Header{Len: int32(len(body)), Cmd: cmd, Flags: flags, ID: id})
	return append(dst, body...)
}

// seal appends one packet encrypted. An empty body never is (section 3).
func (s *Session) seal(dst []byte, cmd Cmd, flags Flags, id int32, body []byte, c *Cipher) []byte {
	if len(body) == 0 {
		return s.append(dst, cmd, flags, id, nil)
	}
	n := SealedLen(len(body))
	if s.web != nil {
		dst = ws.AppendHeader(dst, ws.Binary, HeaderLen+n)
	}
	dst = AppendHeader(dst, Header{Len: int32(n), Cmd: cmd, Flags: flags | FlagCrypto, ID: id})
	return c.Append(dst, body)
}

func (s *Session) text(dst, json []byte) []byte { return ws.AppendFrame(dst, ws.Text, json) }

// error appends an ERROR, which is always plain (section 5).
func (s *Session) error(dst []byte, cmd Cmd, id int32, code int8, reason, data string) []byte {
	e := Error{Cmd: cmd, Code: code, Reason: reason, Data: data}
	if s.form == JSON {
		return s.text(dst, e.AppendJSON(nil, id))
	}
	return s.append(dst, CmdError, 0, id, e.Append(nil))
}

// ok appends an OK, which is always plain.
func (s *Session) ok(dst []byte, cmd Cmd, id int32, data string) []byte {
	o := OK{Cmd: cmd, Data: data}
	if s.form == JSON {
		return s.text(dst, o.AppendJSON(nil, id))
	}
	return s.append(dst, CmdOK, 0, id, o.Append(nil))
}

// handshakeOK answers a handshake in JSON.
func (s *Session) handshakeOK(id int32) []byte {
	return s.text(nil, AppendJSON(nil, CmdHandshake, 0, id))
}

var (
	beat   = []byte{Beat}
	wsBeat = ws.AppendFrame(nil, ws.Binary, beat)
)

// beat is a heartbeat; the bytes are shared.
func (s *Session) beat() []byte {
	if s.web != nil {
		return wsBeat
	}
	return beat
}

// Answer implements wire.Session: an ACK to what a handler took. There is no
// packet for what it refused, nor for a value.
func (s *Session) Answer(dst []byte, _ string, id uint64, _ wire.Value, refusal string) []byte {
	switch {
	case refusal != "":
		return dst
	case s.form == JSON:
		return s.text(dst, AppendJSON(nil, CmdAck, 0, int32(id)))
	}
	return s.append(dst, CmdAck, 0, int32(id), nil)
}

// LoggedIn implements wire.Session. Whom a BIND takes over from another user
// is told that one's end first (section 6).
func (s *Session) LoggedIn(dst []byte, id uint64, _, _ string, left bool) []byte {
	if left {
		dst = s.ok(dst, CmdBind, int32(id), "unbind success")
	}
	return s.ok(dst, CmdBind, int32(id), "bind success")
}

// LoggedOut appends the answer to an UNBIND.
func (s *Session) LoggedOut(dst []byte, id uint64) []byte {
	return s.ok(dst, CmdUnbind, int32(id), "unbind success")
}

// BindFailed appends the answer to a BIND that was refused; "" is the text
// that tells nothing.
func (s *Session) BindFailed(dst []byte, id uint64, text string) []byte {
	if text == "" {
		text = textBindFailed
	}
	return s.error(dst, CmdBind, int32(id), 0, text, "")
}

// Kick appends the news that a newer login took the user's place, or that it
// was taken out: who is told is told of itself (section 8).
func (s *Session) Kick(dst []byte, device, user string) []byte {
	k := Kick{DeviceID: device, UserID: user}
	if s.form == JSON {
		return s.text(dst, k.AppendJSON(nil))
	}
	if s.sealed {
		return s.seal(dst, CmdKick, 0, 0, k.Append(nil), s.keyed())
	}
	return s.append(dst, CmdKick, 0, 0, k.Append(nil))
}

// Ping implements wire.Session: over a WebSocket its own ping; TCP clients
// ask for their heartbeats themselves (section 7).
func (s *Session) Ping(dst []byte) []byte {
	if s.web != nil {
		return ws.AppendHeader(dst, ws.Ping, 0)
	}
	return dst
}

// Close implements wire.Session. There is no goodbye packet; but who is kicked
// gets an ERROR about its handshake, over which the clients in the field stop
// instead of coming back.
func (s *Session) Close(dst []byte, code wire.Code, text string) []byte {
	if code == wire.Kicked {
		dst = s.error(dst, CmdHandshake, 0, 0, "kicked", cutText(text, 123)) // as much as a WebSocket's close frame takes
	}
	if s.web != nil {
		dst = ws.AppendClose(dst, code, text)
	}
	return dst
}

// Proxied appends the answer to a Request: encrypted when it is a service's,
// plain when it is ours (section 5).
func (s *Session) Proxied(dst []byte, id uint64, r *wire.HTTPResponse) []byte {
	p := ProxyResponse{Status: int32(r.Status), Reason: r.Reason, Headers: r.Headers, Body: r.Body}
	body, flags := compressed(p.Append(nil), s.cfg.Compress)
	if r.Own || !s.sealed {
		return s.append(dst, CmdHTTPProxy, flags, int32(id), body)
	}
	return s.seal(dst, CmdHTTPProxy, flags, int32(id), body, s.keyed())
}

func compressed(body []byte, over int) ([]byte, Flags) {
	if over <= 0 || len(body) <= over {
		return body, 0
	}
	return AppendDeflate(nil, body), FlagCompress
}

// AppendPush appends a PUSH as a packet that every session gets through its
// Seal. id 0: no ack is wanted. Content over compress bytes is compressed; 0:
// never.
func AppendPush(dst, content []byte, id uint32, auto bool, compress int) []byte {
	body, flags := compressed(content, compress)
	return append(AppendHeader(dst, Header{Len: int32(len(body)), Cmd: CmdPush, Flags: flags | ackFlags(id, auto), ID: int32(id)}), body...)
}

// AppendPushText appends a PUSH as the text message that every session in JSON
// gets; nil if content is no text, which JSON cannot carry.
func AppendPushText(dst, content []byte, id uint32, auto bool) []byte {
	json, ok := AppendPushJSON(nil, ackFlags(id, auto), int32(id), string(content))
	if !ok {
		return nil
	}
	return ws.AppendFrame(dst, ws.Text, json)
}

func ackFlags(id uint32, auto bool) Flags {
	switch {
	case id == 0:
		return 0
	case auto:
		return FlagAutoAck
	}
	return FlagBizAck
}

// Seal makes packets of AppendPush, one or several behind each other, what
// this session sends: encrypted unless the session is plain, and in messages
// of its WebSocket. It returns packets itself if that is what it sends.
func (s *Session) Seal(packets []byte) []byte {
	if !s.sealed && s.web == nil {
		return packets
	}
	out := make([]byte, 0, len(packets)+len(packets)/16+64)
	var c *Cipher
	if s.sealed {
		c = s.keyed()
	}
	for len(packets) > 0 {
		h := ParseHeader(packets)
		body := packets[HeaderLen : HeaderLen+int(h.Len)]
		packets = packets[HeaderLen+int(h.Len):]
		if c != nil {
			out = s.seal(out, h.Cmd, h.Flags, h.ID, body, c)
		} else {
			out = s.append(out, h.Cmd, h.Flags, h.ID, body)
		}
	}
	return out
}

// Class sorts devices by their OS (section 8), of whose classes a user has one
// device each. The first match counts: a browser that names its system is a
// pc.
func Class(os string) string {
	os = strings.ToLower(os)
	for _, c := range classes {
		if strings.Contains(os, c.part) {
			return c.class
		}
	}
	return "unknown"
}

var classes = [...]struct{ part, class string }{
	{"android", "mobile"}, {"ios", "mobile"},
	{"windows", "pc"}, {"mac", "pc"}, {"linux", "pc"},
	{"web", "web"}, {"h5", "web"},
}

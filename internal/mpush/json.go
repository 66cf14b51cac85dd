package mpush

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ErrJSON says that a packet of section 11 or its body cannot be read.
var ErrJSON = errors.New("mpush: JSON cannot be read")

// JSONPacket is a packet of section 11, one text message over WebSocket.
type JSONPacket struct {
	Cmd      int32 // 0: absent
	Flags    int32
	HasFlags bool // false: absent, which means FlagJSON alone
	ID       int32
	Body     json.RawMessage // nil: absent or null
}

// ParseJSON reads a packet. Keys it does not know are ignored, among them
// bodyLength, which servers send. Keys are found as encoding/json finds them:
// in any case of letters, and the last of several counts.
func ParseJSON(text []byte) (JSONPacket, error) {
	var in *struct {
		Cmd, Flags, SessionID *int32
		Body                  json.RawMessage
	}
	if err := json.Unmarshal(text, &in); err != nil || in == nil {
		return JSONPacket{}, ErrJSON
	}
	p := JSONPacket{Cmd: value(in.Cmd), Flags: value(in.Flags), HasFlags: in.Flags != nil, ID: value(in.SessionID)}
	if !isNull(in.Body) {
		p.Body = in.Body
	}
	return p, nil
}

func value(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

func isNull(body []byte) bool { return len(body) == 0 || string(body) == "null" }

// DecodeJSON reads the body of a HANDSHAKE, which has no keys and no heartbeats
// over WebSocket. All fields may be absent, and so may the body.
func (h *Handshake) DecodeJSON(body []byte) error {
	var in struct{ DeviceID, OSName, OSVersion, ClientVersion string }
	err := decodeJSON(body, &in)
	*h = Handshake{DeviceID: in.DeviceID, OSName: in.OSName, OSVersion: in.OSVersion, ClientVersion: in.ClientVersion}
	return err
}

// DecodeJSON reads the body of a BIND or an UNBIND. All fields may be absent,
// and so may the body. Tags may be a string or an array of strings, which are
// joined by commas.
func (b *Bind) DecodeJSON(body []byte) error {
	var in struct {
		UserID, Data string
		Tags         tags
	}
	err := decodeJSON(body, &in)
	*b = Bind{UserID: in.UserID, Data: in.Data, Tags: string(in.Tags)}
	return err
}

type tags string

func (t *tags) UnmarshalJSON(b []byte) error {
	if b[0] != '[' {
		return json.Unmarshal(b, (*string)(t))
	}
	var list []string
	err := json.Unmarshal(b, &list)
	*t = tags(strings.Join(list, ","))
	return err
}

// PushJSON reads the content in the body of a PUSH, empty if it is absent.
func PushJSON(body []byte) (content string, err error) {
	var in struct{ Content string }
	err = decodeJSON(body, &in)
	return in.Content, err
}

func decodeJSON(body []byte, v any) error {
	if !isNull(body) && json.Unmarshal(body, v) != nil {
		return ErrJSON
	}
	return nil
}

// The packets of servers. Their flags have FlagJSON in any case. Fields of a
// body that are 0 or empty are left out. What is not UTF-8 in them is replaced,
// since a text message must be.

// AppendJSON appends a packet without a body: the OK to a HANDSHAKE, or an ACK.
func AppendJSON(dst []byte, cmd Cmd, flags Flags, id int32) []byte {
	return appendJSON(dst, cmd, flags, id)
}

// AppendJSON appends an OK.
func (o *OK) AppendJSON(dst []byte, id int32) []byte {
	return appendJSON(dst, CmdOK, 0, id, jsonField{"data", o.Data, 0}, jsonField{"cmd", "", int8(o.Cmd)}, jsonField{"code", "", o.Code})
}

// AppendJSON appends an ERROR.
func (e *Error) AppendJSON(dst []byte, id int32) []byte {
	return appendJSON(dst, CmdError, 0, id,
		jsonField{"reason", e.Reason, 0}, jsonField{"cmd", "", int8(e.Cmd)}, jsonField{"code", "", e.Code}, jsonField{"data", e.Data, 0})
}

// AppendJSON appends a KICK.
func (k *Kick) AppendJSON(dst []byte) []byte {
	return appendJSON(dst, CmdKick, 0, 0, jsonField{"deviceId", k.DeviceID, 0}, jsonField{"userId", k.UserID, 0})
}

// AppendPushJSON appends a PUSH; flags say which ack it wants. It reports
// false, and appends nothing, when content is not UTF-8.
func AppendPushJSON(dst []byte, flags Flags, id int32, content string) ([]byte, bool) {
	if !utf8.ValidString(content) {
		return dst, false
	}
	dst = append(dst, `{"body":{"content":`...)
	dst = appendQuoted(dst, content)
	return appendTail(append(dst, "},"...), 1, CmdPush, flags, id), true
}

// jsonField is a field of a body: a string, or a number if that is empty.
type jsonField struct {
	key  string
	text string
	num  int8
}

// appendJSON appends a packet with its keys in the order of section 11.
// bodyLength is how many keys the body has; there is no body without any.
func appendJSON(dst []byte, cmd Cmd, flags Flags, id int32, body ...jsonField) []byte {
	dst = append(dst, '{')
	n := 0
	for _, f := range body {
		if f.text == "" && f.num == 0 {
			continue
		}
		if n++; n == 1 {
			dst = append(dst, `"body":{"`...)
		} else {
			dst = append(dst, `,"`...)
		}
		dst = append(append(dst, f.key...), `":`...)
		if f.text != "" {
			dst = appendQuoted(dst, f.text)
		} else {
			dst = strconv.AppendInt(dst, int64(f.num), 10)
		}
	}
	if n > 0 {
		dst = append(dst, "},"...)
	}
	return appendTail(dst, n, cmd, flags, id)
}

func appendTail(dst []byte, bodyLength int, cmd Cmd, flags Flags, id int32) []byte {
	dst = strconv.AppendInt(append(dst, `"bodyLength":`...), int64(bodyLength), 10)
	dst = strconv.AppendInt(append(dst, `,"cmd":`...), int64(cmd), 10)
	dst = strconv.AppendUint(append(dst, `,"flags":`...), uint64(flags|FlagJSON), 10)
	dst = strconv.AppendInt(append(dst, `,"sessionId":`...), int64(id), 10)
	return append(dst, '}')
}

// appendQuoted appends s as a JSON string, escaping what must be and no more.
func appendQuoted(dst []byte, s string) []byte {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, string(utf8.RuneError))
	}
	dst = append(dst, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, `\b`...)
		case '\t':
			dst = append(dst, `\t`...)
		case '\n':
			dst = append(dst, `\n`...)
		case '\f':
			dst = append(dst, `\f`...)
		case '\r':
			dst = append(dst, `\r`...)
		default:
			const hex = "0123456789abcdef"
			dst = append(dst, `\u00`...)
			dst = append(dst, hex[c>>4], hex[c&0xF])
		}
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

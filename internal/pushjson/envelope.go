package pushjson

import (
	"bytes"
	"encoding/base64"
	"unicode"
	"unicode/utf8"

	"github.com/embedpush/push/internal/wire"
)

// What a client may claim and name, in bytes and tags.
const (
	maxName  = 256
	maxClaim = 256
	maxToken = 8 << 10
	maxTags  = 32
	maxTag   = 64
	maxID    = 1<<53 - 1 // the largest integer that every JavaScript number holds
)

// What can be wrong with an envelope. They are shared: nobody may change them.
var (
	errObject   = &wire.Error{Code: wire.BadData, Text: "message is not one object"}
	errType     = &wire.Error{Code: wire.BadData, Text: "a key has a value of the wrong type"}
	errID       = &wire.Error{Code: wire.BadData, Text: "id or ack is not an integer from 0 to 2^53-1"}
	errName     = &wire.Error{Code: wire.BadData, Text: "event is not a name of 1 to 256 bytes"}
	errData     = &wire.Error{Code: wire.BadData, Text: "data has no JSON"}
	errEncoding = &wire.Error{Code: wire.BadData, Text: "encoding is not base64, or data is not"}
	errLogin    = &wire.Error{Code: wire.BadData, Text: "login is malformed or too long"}
)

// envelope holds the values of the keys that mean something here, as they
// stand in the message; nil where a key is absent or null.
type envelope struct {
	event, data, encoding, id, ack, login, logout, ping []byte
}

// parse reads one message. Keys are matched exactly, the last of equal ones
// counts, others mean nothing, and null is as good as absent except as data.
// A message with keys of several kinds is the first of event, ack, login,
// logout and ping. A JSON b has to be UTF-8, and parse changes it.
func (d Dialect) parse(b []byte, ev *wire.Event) error {
	b, ok := d.object(b)
	if !ok {
		return errObject
	}
	var e envelope
	for c := d.open(b); ; {
		key, val, ok := c.next()
		if !ok {
			break
		}
		var into *[]byte
		var want kind
		switch string(key) {
		case "event":
			into, want = &e.event, text
		case "data":
			e.data = val
			continue
		case "encoding":
			into, want = &e.encoding, text
		case "id":
			into, want = &e.id, number
		case "ack":
			into, want = &e.ack, number
		case "login":
			into, want = &e.login, object
		case "logout":
			into, want = &e.logout, yes
		case "ping":
			into, want = &e.ping, number
		default:
			continue
		}
		switch k := d.kind(val); {
		case k == want:
			*into = val
		case k == null, k == no && want == yes:
			*into = nil
		default:
			return errType
		}
	}

	id, ack := uint64(0), uint64(0)
	if e.id != nil {
		if id, ok = d.integer(e.id); !ok {
			return errID
		}
	}
	if e.ack != nil {
		if ack, ok = d.integer(e.ack); !ok {
			return errID
		}
	}
	var err error
	switch {
	case e.event != nil:
		ev.Kind, ev.ID, ev.HasID = wire.Message, id, e.id != nil
		if ev.Name, ok = d.text(e.event); !ok || len(ev.Name) == 0 || !plain(ev.Name, maxName) {
			return errName
		}
		ev.Data, err = d.value(&e)
	case e.ack != nil:
		ev.Kind, ev.ID = wire.Ack, ack
		ev.Data, err = d.value(&e)
	case e.login != nil:
		ev.Kind = wire.Login
		ev.Login, err = d.login(e.login)
	case e.logout != nil:
		ev.Kind = wire.Logout
	case e.ping != nil:
		ev.Kind = wire.Ping
		ev.Reply = d.pong()
	default:
		ev.Kind = wire.Ignored
	}
	return err
}

// value reads data and what encoding says of it.
func (d Dialect) value(e *envelope) (wire.Value, error) {
	switch {
	case e.encoding != nil:
		encoding, ok := d.text(e.encoding)
		if !ok || string(encoding) != "base64" || e.data == nil {
			return wire.Value{}, errEncoding
		}
		s, ok := d.text(e.data)
		if !ok {
			return wire.Value{}, errEncoding
		}
		n, err := base64.StdEncoding.Decode(s, s) // in place: it writes no byte before it has read it
		if err != nil {
			return wire.Value{}, errEncoding
		}
		return wire.Value{Bytes: s[:n:n]}, nil
	case e.data == nil:
		return wire.Value{}, nil
	case d == JSON:
		return wire.Value{JSON: e.data}, nil
	case d.kind(e.data) == bin:
		_, size, _ := readHead(e.data)
		return wire.Value{Bytes: e.data[size:]}, nil
	default:
		json, _, err := appendJSON(make([]byte, 0, len(e.data)*3/2+16), e.data)
		if err != nil {
			return wire.Value{}, errData
		}
		return wire.Value{JSON: json}, nil
	}
}

func (d Dialect) login(b []byte) (*wire.LoginClaim, error) {
	l := new(wire.LoginClaim)
	for c := d.open(b); ; {
		key, val, ok := c.next()
		if !ok {
			return l, nil
		}
		var into *string
		limit := maxClaim
		switch string(key) {
		case "user":
			into = &l.User
		case "token":
			into, limit = &l.Token, maxToken
		case "device":
			into = &l.Device
		case "os":
			into = &l.OS
		case "version":
			into = &l.Version
		case "tags":
			if l.Tags, ok = d.tags(val); !ok {
				return nil, errLogin
			}
			continue
		default:
			continue
		}
		if *into, ok = d.claim(val, limit); !ok {
			return nil, errLogin
		}
	}
}

func (d Dialect) tags(b []byte) (tags []string, ok bool) {
	switch d.kind(b) {
	case null:
		return nil, true
	case list:
	default:
		return nil, false
	}
	for c := d.open(b); ; {
		_, val, ok := c.next()
		if !ok {
			return tags, true
		}
		tag, ok := d.claim(val, maxTag)
		if !ok || len(tags) == maxTags {
			return nil, false
		}
		tags = append(tags, tag)
	}
}

// claim reads a string of at most limit bytes, or null as the empty one.
func (d Dialect) claim(b []byte, limit int) (string, bool) {
	if d.kind(b) == null {
		return "", true
	}
	s, ok := d.text(b)
	return string(s), ok && plain(s, limit)
}

// plain reports whether s has at most limit bytes, is UTF-8 and has no control
// characters.
func plain(s []byte, limit int) bool {
	if len(s) > limit || !utf8.Valid(s) {
		return false
	}
	for _, r := range string(s) {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

// pong is the answer to {"ping":1}.
func (d Dialect) pong() []byte {
	w := begin(nil, d, 0)
	w.open(1)
	w.key("pong")
	w.uint(1)
	w.close()
	return w.end()
}

// object returns the one object that a whole message is.
func (d Dialect) object(b []byte) (_ []byte, ok bool) {
	if d == JSON {
		if b, ok = jsonValue(b); !ok {
			return nil, false
		}
	} else if n, err := Scan(b, maxDepth); err != nil || n != len(b) {
		return nil, false
	}
	return b, d.kind(b) == object
}

// kind says what a valid value is. All numbers are of kind number.
func (d Dialect) kind(b []byte) kind {
	if d == Msgpack {
		k, _, _ := readHead(b)
		switch k {
		case unsigned, signed, float32bits, float64bits:
			return number
		}
		return k
	}
	switch b[0] {
	case '{':
		return object
	case '[':
		return list
	case '"':
		return text
	case 't':
		return yes
	case 'f':
		return no
	case 'n':
		return null
	default:
		return number
	}
}

// text reads a string. It takes the escapes out of a JSON one in place.
func (d Dialect) text(b []byte) (s []byte, ok bool) {
	if d == Msgpack {
		k, size, _ := readHead(b)
		return b[size:], k == text
	}
	if b[0] != '"' {
		return nil, false
	}
	s = b[1 : len(b)-1]
	if bytes.IndexByte(s, '\\') >= 0 {
		s = unquote(s[:0], s)
	}
	return s, true
}

// integer reads a number from 0 to maxID that is written as an integer.
func (d Dialect) integer(b []byte) (u uint64, ok bool) {
	if d == Msgpack {
		k, _, u := readHead(b)
		return u, (k == unsigned || k == signed) && u <= maxID // a negative one is over it
	}
	for _, c := range b {
		if c < '0' || c > '9' || u > maxID {
			return 0, false
		}
		u = u*10 + uint64(c-'0')
	}
	return u, u <= maxID
}

// cursor walks the pairs of an object or the items of a list, which are valid.
type cursor struct {
	dialect Dialect
	keyed   bool
	b       []byte
	i       int    // where the next pair or item begins
	left    uint64 // msgpack: how many there are still
}

// open returns a cursor for b, which is an object or a list.
func (d Dialect) open(b []byte) cursor {
	if d == Msgpack {
		k, size, n := readHead(b)
		return cursor{dialect: d, keyed: k == object, b: b, i: size, left: n}
	}
	return cursor{dialect: d, keyed: b[0] == '{', b: b, i: 1}
}

// next returns the next pair or item, false after the last. The key of an item
// is nil, and of a pair whose key is not a string.
func (c *cursor) next() (key, val []byte, ok bool) {
	d := c.dialect
	if d == Msgpack {
		if c.left == 0 {
			return nil, nil, false
		}
		c.left--
	} else {
		c.i = skipSpace(c.b, c.i)
		switch c.b[c.i] {
		case '}', ']':
			return nil, nil, false
		case ',':
			c.i = skipSpace(c.b, c.i+1)
		}
	}
	if c.keyed {
		if key, ok = d.text(c.value()); !ok {
			key = nil
		}
		if d == JSON {
			c.i = skipSpace(c.b, skipSpace(c.b, c.i)+1) // the colon
		}
	}
	return key, c.value(), true
}

// value returns the value at i and steps over it.
func (c *cursor) value() []byte {
	from := c.i
	if c.dialect == Msgpack {
		n, _ := Scan(c.b[from:], maxDepth)
		c.i += n
	} else {
		c.i = skipJSON(c.b, from, maxNesting)
	}
	return c.b[from:c.i:c.i]
}

// isPacket reports whether a message in JSON is an object with an integer
// "cmd", which makes it a packet of mpush.
func isPacket(b []byte) (is bool) {
	b, ok := JSON.object(bytes.Clone(b))
	if !ok {
		return false
	}
	for c := JSON.open(b); ; {
		key, val, ok := c.next()
		if !ok {
			return is
		}
		if string(key) == "cmd" {
			_, is = JSON.integer(bytes.TrimPrefix(val, []byte("-")))
			is = is && JSON.kind(val) == number
		}
	}
}

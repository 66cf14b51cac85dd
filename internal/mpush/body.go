package mpush

import (
	"encoding/binary"
	"errors"
	"math"
)

// ErrBody is the error of every Decode: a length is negative, or there are
// fewer bytes than the fields need.
var ErrBody = errors.New("mpush: body cannot be read")

// Error codes (section 4). Code 0 is in errors that have a reason only.
const (
	CodeUnknown     int8 = -1
	CodeOffline     int8 = 1 // gateway: the user is offline
	CodeFailure     int8 = 2 // gateway: the push did not reach the client
	CodeRouter      int8 = 3 // gateway: the user has moved to another node
	CodeAckTimeout  int8 = 4 // gateway
	CodeHandler     int8 = 100
	CodeUnsupported int8 = 101 // command
	CodeRepeat      int8 = 102 // handshake
	CodeExpired     int8 = 103 // session
	CodeDevice      int8 = 104 // the session is another device's
)

// The bodies of section 4, fields in their order on the wire. Decode reads one
// from a body that is decrypted and inflated: strings are copies, a []byte
// points into the body, bytes behind the last field are ignored, and an empty
// string or []byte cannot be told from an absent one. After an error the fields
// mean nothing. Append appends one.

// Handshake is a client's HANDSHAKE.
type Handshake struct {
	DeviceID, OSName, OSVersion, ClientVersion string

	IV, ClientKey              []byte // 16 bytes each, if all is well
	MinHeartbeat, MaxHeartbeat int32  // milliseconds; the first is ignored
	Timestamp                  int64  // 0 from the Java client
}

func (h *Handshake) Decode(body []byte) error {
	f := fields{rest: body}
	*h = Handshake{
		DeviceID: f.str(), OSName: f.str(), OSVersion: f.str(), ClientVersion: f.str(),
		IV: f.bytes(), ClientKey: f.bytes(),
		MinHeartbeat: f.int32(), MaxHeartbeat: f.int32(),
		Timestamp: f.int64(),
	}
	return f.err()
}

func (h *Handshake) Append(dst []byte) []byte {
	for _, s := range [...]string{h.DeviceID, h.OSName, h.OSVersion, h.ClientVersion} {
		dst = appendField(dst, s)
	}
	dst = appendField(appendField(dst, h.IV), h.ClientKey)
	dst = appendInt32(appendInt32(dst, h.MinHeartbeat), h.MaxHeartbeat)
	return binary.BigEndian.AppendUint64(dst, uint64(h.Timestamp))
}

// HandshakeOK is the server's answer to HANDSHAKE.
type HandshakeOK struct {
	ServerKey  []byte // 16 bytes
	Heartbeat  int32  // milliseconds, as negotiated
	SessionID  string // a token for FAST_CONNECT; empty: there is none
	ExpireTime int64  // of the token, in Unix milliseconds
}

func (h *HandshakeOK) Decode(body []byte) error {
	f := fields{rest: body}
	*h = HandshakeOK{ServerKey: f.bytes(), Heartbeat: f.int32(), SessionID: f.str(), ExpireTime: f.int64()}
	return f.err()
}

func (h *HandshakeOK) Append(dst []byte) []byte {
	dst = appendInt32(appendField(dst, h.ServerKey), h.Heartbeat)
	return binary.BigEndian.AppendUint64(appendField(dst, h.SessionID), uint64(h.ExpireTime))
}

// FastConnect is a client's FAST_CONNECT.
type FastConnect struct {
	SessionID, DeviceID        string
	MinHeartbeat, MaxHeartbeat int32 // as in Handshake
}

func (c *FastConnect) Decode(body []byte) error {
	f := fields{rest: body}
	*c = FastConnect{SessionID: f.str(), DeviceID: f.str(), MinHeartbeat: f.int32(), MaxHeartbeat: f.int32()}
	return f.err()
}

func (c *FastConnect) Append(dst []byte) []byte {
	dst = appendField(appendField(dst, c.SessionID), c.DeviceID)
	return appendInt32(appendInt32(dst, c.MinHeartbeat), c.MaxHeartbeat)
}

// FastConnectOK is the server's answer to FAST_CONNECT.
type FastConnectOK struct {
	Heartbeat int32 // milliseconds, as negotiated
}

func (c *FastConnectOK) Decode(body []byte) error {
	f := fields{rest: body}
	c.Heartbeat = f.int32()
	return f.err()
}

func (c *FastConnectOK) Append(dst []byte) []byte { return appendInt32(dst, c.Heartbeat) }

// Bind is a client's BIND or UNBIND.
type Bind struct {
	UserID string
	Data   string // for whoever checks the user; Java's client calls it alias
	Tags   string // free text, by convention separated by commas
}

func (b *Bind) Decode(body []byte) error {
	f := fields{rest: body}
	*b = Bind{UserID: f.str(), Data: f.str(), Tags: f.str()}
	return f.err()
}

func (b *Bind) Append(dst []byte) []byte {
	return appendField(appendField(appendField(dst, b.UserID), b.Data), b.Tags)
}

// OK is the server's OK to a request of command Cmd.
type OK struct {
	Cmd  Cmd
	Code int8 // 0
	Data string
}

func (o *OK) Decode(body []byte) error {
	f := fields{rest: body}
	*o = OK{Cmd: Cmd(f.int8()), Code: f.int8(), Data: f.str()}
	return f.err()
}

func (o *OK) Append(dst []byte) []byte {
	return appendField(append(dst, byte(o.Cmd), byte(o.Code)), o.Data)
}

// Error is the server's ERROR to a request of command Cmd.
type Error struct {
	Cmd          Cmd
	Code         int8 // 0: Reason says it all
	Reason, Data string
}

func (e *Error) Decode(body []byte) error {
	f := fields{rest: body}
	*e = Error{Cmd: Cmd(f.int8()), Code: f.int8(), Reason: f.str(), Data: f.str()}
	return f.err()
}

func (e *Error) Append(dst []byte) []byte {
	return appendField(appendField(append(dst, byte(e.Cmd), byte(e.Code)), e.Reason), e.Data)
}

// Kick is the server's KICK, with the receiver's own device and user.
type Kick struct {
	DeviceID, UserID string
}

func (k *Kick) Decode(body []byte) error {
	f := fields{rest: body}
	*k = Kick{DeviceID: f.str(), UserID: f.str()}
	return f.err()
}

func (k *Kick) Append(dst []byte) []byte { return appendField(appendField(dst, k.DeviceID), k.UserID) }

// ProxyRequest is a client's HTTP_PROXY.
type ProxyRequest struct {
	Method  uint8  // 0 GET, 1 POST, 2 PUT, 3 DELETE, others GET
	URI     string // absolute
	Headers string // "name:value\n" for each
	Body    []byte
}

func (r *ProxyRequest) Decode(body []byte) error {
	f := fields{rest: body}
	*r = ProxyRequest{Method: uint8(f.int8()), URI: f.str(), Headers: f.str(), Body: f.bytes()}
	return f.err()
}

func (r *ProxyRequest) Append(dst []byte) []byte {
	return appendField(appendField(appendField(append(dst, r.Method), r.URI), r.Headers), r.Body)
}

// ProxyResponse is the server's answer to HTTP_PROXY.
type ProxyResponse struct {
	Status          int32
	Reason, Headers string // Headers as in ProxyRequest
	Body            []byte
}

func (r *ProxyResponse) Decode(body []byte) error {
	f := fields{rest: body}
	*r = ProxyResponse{Status: f.int32(), Reason: f.str(), Headers: f.str(), Body: f.bytes()}
	return f.err()
}

func (r *ProxyResponse) Append(dst []byte) []byte {
	return appendField(appendField(appendField(appendInt32(dst, r.Status), r.Reason), r.Headers), r.Body)
}

// GatewayPush is a back end's GATEWAY_PUSH (section 10). The packet's flags say
// which ack it wants.
type GatewayPush struct {
	UserID     string // empty: to everybody
	ClientType int32
	Timeout    int32 // milliseconds
	Content    []byte
	TaskID     string
	Tags       string // a JSON array
	Condition  string // JavaScript
}

func (g *GatewayPush) Decode(body []byte) error {
	f := fields{rest: body}
	*g = GatewayPush{
		UserID: f.str(), ClientType: f.int32(), Timeout: f.int32(), Content: f.bytes(),
		TaskID: f.str(), Tags: f.str(), Condition: f.str(),
	}
	return f.err()
}

func (g *GatewayPush) Append(dst []byte) []byte {
	dst = appendInt32(appendInt32(appendField(dst, g.UserID), g.ClientType), g.Timeout)
	return appendField(appendField(appendField(appendField(dst, g.Content), g.TaskID), g.Tags), g.Condition)
}

// GatewayKick is a node's GATEWAY_KICK to another (section 10).
type GatewayKick struct {
	UserID, DeviceID, ConnID string
	ClientType               int32
	TargetServer             string
	TargetPort               int32
}

func (g *GatewayKick) Decode(body []byte) error {
	f := fields{rest: body}
	*g = GatewayKick{
		UserID: f.str(), DeviceID: f.str(), ConnID: f.str(), ClientType: f.int32(),
		TargetServer: f.str(), TargetPort: f.int32(),
	}
	return f.err()
}

func (g *GatewayKick) Append(dst []byte) []byte {
	dst = appendField(appendField(appendField(dst, g.UserID), g.DeviceID), g.ConnID)
	return appendInt32(appendField(appendInt32(dst, g.ClientType), g.TargetServer), g.TargetPort)
}

// longField stands in place of a length that does not fit before it: the rest
// of the length follows as an int (section 4).
const longField = math.MaxInt16

// fields reads a body field by field. Once one does not fit, all that follow
// are empty and err is ErrBody.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) err() error {
	if f.bad {
		return ErrBody
	}
	return nil
}

// take returns the next n bytes, or nil.
func (f *fields) take(n int64) []byte {
	if f.bad || n < 0 || n > int64(len(f.rest)) {
		f.bad = true
		return nil
	}
	b := f.rest[:n:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) int8() int8 {
	if b := f.take(1); b != nil {
		return int8(b[0])
	}
	return 0
}

func (f *fields) int16() int16 {
	if b := f.take(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (f *fields) int32() int32 {
	if b := f.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (f *fields) int64() int64 {
	if b := f.take(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

// bytes returns nil for an empty field.
func (f *fields) bytes() []byte {
	n := int64(f.int16())
	if n == longField {
		more := f.int32()
		if more < 0 {
			f.bad = true
		}
		n += int64(more)
	}
	if n == 0 {
		return nil
	}
	return f.take(n)
}

func (f *fields) str() string { return string(f.bytes()) }

func appendInt32(dst []byte, v int32) []byte { return binary.BigEndian.AppendUint32(dst, uint32(v)) }

func appendField[T string | []byte](dst []byte, s T) []byte {
	if len(s) < longField {
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	} else {
		dst = binary.BigEndian.AppendUint16(dst, longField)
		dst = appendInt32(dst, int32(len(s)-longField))
	}
	return append(dst, s...)
}

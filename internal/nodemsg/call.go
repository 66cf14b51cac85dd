package nodemsg

import (
	"math"
	"unicode/utf8"
)

// What a Call asks for. The zero value is nothing.
const (
	Kick    uint8 = 1 + iota // end the connections; Text goes to the clients
	Join                     // put them into the room Text
	Leave                    // take them out of the room Text
	Devices                  // tell them
)

// Call asks a node to do something to its part of an audience.
//
//	id            uint
//	op            uint
//	wait          uint
//	to            Audience
//	text          str
type Call struct {
	ID   uint64
	Op   uint8
	Wait uint32 // milliseconds the sender will wait; 0: no limit
	To   Audience
	Text string // Kick: at most MaxText bytes; Join and Leave: the room, at most MaxName; Devices: none
}

// AppendCall appends the body of c. A room that no connection can be in, for
// it is too long or not UTF-8, goes as "".
func AppendCall(dst []byte, c *Call) []byte {
	dst = appendList(dst, 5)
	dst = appendUint(dst, c.ID)
	dst = appendUint(dst, uint64(c.Op))
	dst = appendUint(dst, uint64(c.Wait))
	dst = appendAudience(dst, &c.To)
	switch {
	case c.Op == Kick:
		return appendText(dst, clean(c.Text, MaxText))
	case c.Op == Devices, len(c.Text) > MaxName, !utf8.ValidString(c.Text):
		return appendText(dst, "")
	}
	return appendText(dst, c.Text)
}

// ParseCall parses the body of a Call.
func ParseCall(body []byte) (c Call, err error) {
	r, err := read(body)
	if err != nil {
		return Call{}, err
	}
	more := r.fields(5)
	c.ID = r.uint(math.MaxUint64)
	c.Op = uint8(r.uint(uint64(Devices)))
	c.Wait = uint32(r.uint(math.MaxUint32))
	r.audience(&c.To)
	switch c.Op {
	case Kick:
		c.Text = string(r.text(MaxText))
	case Join, Leave:
		c.Text = string(r.text(MaxName))
	case Devices:
		r.text(0)
	default:
		r.fail()
	}
	r.skip(more)
	if !r.done() {
		return Call{}, ErrMalformed
	}
	return c, nil
}

// Return answers a Call. Many devices may come in several, of which the last
// is Done.
//
//	id            uint
//	flags         uint, bit 0: done; others mean nothing
//	n             uint
//	errors        array of str
//	devices       array of arrays:
//	  user, device                     str
//	  protocol                         uint or str, as in a Row
//	  namespace, OS, version           str
//	  conn                             uint
//	  tags                             array of str
//	seq           uint
type Return struct {
	ID      uint64
	Done    bool
	N       uint64   // how many it was done to
	Errors  []string // at most MaxErrors, of at most MaxError bytes; more and longer ones are cut
	Devices []Device
	Seq     uint64 // how far the node's history was when it was done; 0: it does not say
}

// Device is a connection as Devices tells it.
type Device struct {
	User, Device, Protocol, Namespace, OS, Version string // at most MaxName bytes, Namespace MaxNamespace
	Conn                                           uint64
	Tags                                           []string // at most MaxTags, of at most MaxTag bytes
}

// minDevice is what the shortest device takes: its head and its fields.
const minDevice = 9

// AppendReturn appends the body of ret.
func AppendReturn(dst []byte, ret *Return) []byte {
	dst = appendList(dst, 6)
	dst = appendUint(dst, ret.ID)
	dst = appendDone(dst, ret.Done)
	dst = appendUint(dst, ret.N)
	dst = appendCleans(dst, ret.Errors, MaxErrors, MaxError)
	dst = appendList(dst, len(ret.Devices))
	for i := range ret.Devices {
		d := &ret.Devices[i]
		dst = appendList(dst, 8)
		dst = appendText(dst, clean(d.User, MaxName))
		dst = appendText(dst, clean(d.Device, MaxName))
		dst = appendProtocol(dst, d.Protocol)
		dst = appendText(dst, clean(d.Namespace, MaxNamespace))
		dst = appendText(dst, clean(d.OS, MaxName))
		dst = appendText(dst, clean(d.Version, MaxName))
		dst = appendUint(dst, d.Conn)
		dst = appendCleans(dst, d.Tags, MaxTags, MaxTag)
	}
	return appendUint(dst, ret.Seq)
}

// ParseReturn parses the body of a Return.
func ParseReturn(body []byte) (ret Return, err error) {
	r, err := read(body)
	if err != nil {
		return Return{}, err
	}
	more := r.fields(6)
	ret.ID = r.uint(math.MaxUint64)
	ret.Done = r.uint(math.MaxUint64)&done != 0
	ret.N = r.uint(math.MaxUint64)
	ret.Errors = r.texts(MaxErrors, MaxError)
	if n := r.list(len(r.b) / minDevice); n > 0 {
		ret.Devices = make([]Device, n)
		for i := range ret.Devices {
			r.device(&ret.Devices[i])
		}
	}
	ret.Seq = r.uint(math.MaxUint64)
	r.skip(more)
	if !r.done() {
		return Return{}, ErrMalformed
	}
	return ret, nil
}

// device reads a device. Its strings are parts of one.
func (r *reader) device(d *Device) {
	r.share()
	more := r.fields(8)
	d.User = r.string(r.text(MaxName))
	d.Device = r.string(r.text(MaxName))
	d.Protocol = r.protocol()
	d.Namespace = r.string(r.text(MaxNamespace))
	d.OS = r.string(r.text(MaxName))
	d.Version = r.string(r.text(MaxName))
	d.Conn = r.uint(math.MaxUint64)
	d.Tags = r.texts(MaxTags, MaxTag)
	r.unshare()
	r.skip(more)
}

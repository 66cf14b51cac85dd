package nodemsg

import "math"

// Result is the beginning of the body of a Result, which is this array and
// then, up to the body's end, one more for each Row:
//
//	id            uint
//	flags         uint, bit 0: done; others mean nothing
//	total         uint
//	nobody        array of uint
type Result struct {
	ID     uint64
	Done   bool     // every device was announced; those that are not settled will be
	Total  uint32   // when Done: how many devices there were
	Nobody []uint32 // of the users asked for, which have no device here: places in Audience.Users; 0 for the one of User. At most MaxUsers, in any Result of a push. The reader has to hold them against how many it asked for
	Rows   Rows     // what ParseResult read
}

// Row is what became of the push on one device.
//
//	index         uint
//	flags         uint, bit 0: new, bit 1: settled; others mean nothing
//	status        uint, 0 to MaxStatus; 0 unless settled
//	reply         nil, or str: JSON
//	user          str, and the rest only if new
//	device        str
//	protocol      uint: a place in the list of known ones; or str
//	conn          uint
type Row struct {
	// Index is the device's, counted from 0 in the order in which the devices
	// of one push were announced. The reader has to hold it against what was
	// announced.
	Index uint32

	// New announces the device, and tells the four below.
	New                    bool
	User, Device, Protocol string // at most MaxName bytes
	Conn                   uint64

	// Settled gives the device its Status. Once for each device.
	Settled bool
	Status  uint8  // as the engine's, 1 to MaxStatus
	Reply   []byte // valid JSON; nil: none
}

// Bits of flags.
const (
	done    = 1 // of a Result and a Return
	isNew   = 1 // of a Row
	settled = 2
)

// protocols are the ones that go as a number. A later version may append to
// them, for a peer that knows it.
var protocols = [...]string{"push.json", "push.msgpack", "mpush", "mpush.json", "socket.io.4", "socket.io.5", "socket.io.msgpack"}

// AppendResultHead begins the body of a Result; rows may be appended to it.
func AppendResultHead(dst []byte, res *Result) []byte {
	dst = appendList(dst, 4)
	dst = appendUint(dst, res.ID)
	dst = appendDone(dst, res.Done)
	dst = appendUint(dst, uint64(res.Total))
	dst = appendList(dst, len(res.Nobody))
	for _, i := range res.Nobody {
		dst = appendUint(dst, uint64(i))
	}
	return dst
}

func appendDone(dst []byte, is bool) []byte {
	if is {
		return append(dst, done)
	}
	return append(dst, 0)
}

// AppendRow appends a row to the body of a Result.
func AppendRow(dst []byte, row *Row) []byte {
	var flags byte
	if row.Settled {
		flags = settled
	}
	if row.New {
		flags |= isNew
		dst = appendList(dst, 8)
	} else {
		dst = appendList(dst, 4)
	}
	dst = appendUint(dst, uint64(row.Index))
	dst = append(dst, flags)
	if row.Settled {
		dst = appendUint(dst, uint64(row.Status))
	} else {
		dst = append(dst, 0)
	}
	if row.Settled && len(row.Reply) > 0 {
		dst = appendText(dst, row.Reply)
	} else {
		dst = append(dst, codeNil)
	}
	if !row.New {
		return dst
	}
	dst = appendText(dst, clean(row.User, MaxName))
	dst = appendText(dst, clean(row.Device, MaxName))
	dst = appendProtocol(dst, row.Protocol)
	return appendUint(dst, row.Conn)
}

func appendProtocol(dst []byte, name string) []byte {
	for i, known := range protocols {
		if name == known {
			return append(dst, byte(i))
		}
	}
	return appendText(dst, clean(name, MaxName))
}

// ParseResult parses the body of a Result, all its rows included.
func ParseResult(body []byte) (res Result, err error) {
	r := reader{b: body}
	more := r.fields(4)
	res.ID = r.uint(math.MaxUint64)
	res.Done = r.uint(math.MaxUint64)&done != 0
	res.Total = uint32(r.uint(math.MaxUint32))
	if n := r.list(MaxUsers); n > 0 {
		res.Nobody = make([]uint32, n)
		for i := range res.Nobody {
			res.Nobody[i] = uint32(r.uint(MaxUsers - 1))
		}
	}
	r.skip(more)
	res.Rows.r = reader{b: r.b, trusted: true}
	for len(r.b) > 0 {
		r.row(nil, "")
	}
	if !r.done() {
		return Result{}, ErrMalformed
	}
	return res, nil
}

// Rows are the rows of a Result that are still to be read. ParseResult has
// judged them all. A copy goes on by itself.
type Rows struct {
	// User is a user whom rows may be about: then they have this string, and
	// none is made. Next sets it to the last one.
	User string

	r reader
}

// Next reads the next row into row, and reports whether there was one. Reply
// is a part of the body.
func (rs *Rows) Next(row *Row) bool {
	if len(rs.r.b) == 0 {
		return false
	}
	*row = Row{}
	rs.r.row(row, rs.User)
	if row.New {
		rs.User = row.User
	}
	return true
}

// row reads a row. into is nil if it is only to be judged; user is what
// row.User may be.
func (r *reader) row(into *Row, user string) {
	more := r.fields(4)
	index := uint32(r.uint(math.MaxUint32))
	flags := r.uint(math.MaxUint64)
	status := uint8(r.uint(MaxStatus))
	k, reply := r.item()
	switch {
	case k == text:
		r.json(reply)
	case k != null:
		r.fail()
	}
	if settled := flags&settled != 0; settled != (status != 0) || !settled && reply != nil {
		r.fail()
	}
	if into != nil {
		into.Index, into.New, into.Settled = index, flags&isNew != 0, flags&settled != 0
		into.Status, into.Reply = status, reply
	}
	if flags&isNew != 0 {
		if more -= 4; more < 0 {
			r.fail()
		}
		r.announced(into, user)
	}
	r.skip(more)
}

// announced reads the part of a row that tells the device.
func (r *reader) announced(into *Row, user string) {
	if into == nil {
		r.text(MaxName)
		r.text(MaxName)
		if !r.isUint() {
			r.text(MaxName)
		} else {
			r.uint(uint64(len(protocols) - 1))
		}
		r.uint(math.MaxUint64)
		return
	}
	if b := r.text(MaxName); string(b) == user {
		into.User = user
	} else {
		into.User = string(b)
	}
	into.Device = string(r.text(MaxName))
	into.Protocol = r.protocol()
	into.Conn = r.uint(math.MaxUint64)
}

// protocol reads a protocol's name.
func (r *reader) protocol() string {
	if !r.isUint() {
		return r.string(r.text(MaxName))
	}
	i := r.uint(uint64(len(protocols) - 1))
	if r.bad {
		return ""
	}
	return protocols[i]
}

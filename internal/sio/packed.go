package sio

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/embedpush/push/internal/pushjson"
	"github.com/embedpush/push/internal/wire"
)

// maxDepth is how deep msgpack may be nested, its envelope included.
const maxDepth = 16

// parsePacked reads one msgpack map.
func (p *packet) parsePacked(b []byte) error {
	if n, ok := packedSkip(b, maxDepth); !ok || n != len(b) {
		return errPacked
	}
	k, at, pairs := packedHead(b)
	if k != packedMap {
		return errPacked
	}
	var typ, space, id []byte
	next := func() []byte {
		from := at
		n, _ := packedSkip(b[from:], maxDepth)
		at += n
		return b[from:at:at]
	}
	for range pairs {
		key, ok := packedString(next())
		val := next()
		if !ok {
			continue
		}
		switch string(key) {
		case "type":
			typ = val
		case "nsp":
			space = val
		case "id":
			id = val
		case "data":
			p.data = val
		}
	}
	if absent(p.data) {
		p.data = nil
	}
	u, ok := packedInt(typ, uint64(typeError))
	if !ok {
		return errType
	}
	p.typ = byte(u)
	s, ok := packedString(space)
	if !ok || len(s) == 0 || s[0] != '/' {
		return errSpace
	}
	p.space = s
	if !absent(id) {
		if p.id, p.hasID = packedInt(id, maxID); !p.hasID {
			return errID
		}
	}
	return nil
}

// packedArgs reads the array b, from its item number from on.
func packedArgs(b []byte, from int) (wire.Value, error) {
	_, at, n := packedHead(b)
	if n > maxArgs+1 {
		return wire.Value{}, errArgs
	}
	var all collector
	var buf []byte
	for i := range int(n) {
		size, _ := packedSkip(b[at:], maxDepth)
		item := b[at : at+size : at+size]
		at += size
		if i < from {
			continue
		}
		var v wire.Value
		if k, head, _ := packedHead(item); k == packedBin {
			v.Bytes = item[head:]
		} else {
			if buf == nil {
				buf = make([]byte, 0, (len(b)-at+size)*3/2+16)
			}
			start := len(buf)
			var err error
			if buf, _, err = appendJSON(buf, item); err != nil {
				return wire.Value{}, err
			}
			v.JSON = buf[start:len(buf):len(buf)]
		}
		if !all.add(v) {
			return wire.Value{}, errArgs
		}
	}
	return all.value(), nil
}

// appendJSON appends the value that b begins with, which packedSkip has
// accepted, and returns how long it is. Bytes become a base64 string, a date
// what JSON.stringify makes of it, and undefined null, or in a map nothing.
func appendJSON(dst, b []byte) (_ []byte, n int, err error) {
	k, n, v := packedHead(b)
	switch k {
	case packedBin:
		end := n + int(v)
		return appendBase64(dst, b[n:end]), end, nil
	case packedUndefined:
		return append(dst, "null"...), n, nil
	case packedDate:
		return appendDate(dst, int64(v)), n, nil
	case packedList:
		dst = append(dst, '[')
		for i := range v {
			if i > 0 {
				dst = append(dst, ',')
			}
			var used int
			if dst, used, err = appendJSON(dst, b[n:]); err != nil {
				return dst, n, err
			}
			n += used
		}
		return append(dst, ']'), n, nil
	case packedMap:
		dst = append(dst, '{')
		first := true
		for range v {
			size, _ := packedSkip(b[n:], maxDepth)
			key := b[n : n+size]
			n += size
			if k, size, _ := packedHead(b[n:]); k == packedUndefined {
				n += size
				continue
			}
			if !first {
				dst = append(dst, ',')
			}
			first = false
			switch k, _, _ := packedHead(key); k {
			case packedText:
				dst, err = pushjson.AppendJSON(dst, key)
			case packedUnsigned, packedSigned:
				dst, err = pushjson.AppendJSON(append(dst, '"'), key)
				dst = append(dst, '"')
			default:
				err = errTranscode
			}
			if err != nil {
				return dst, n, errTranscode
			}
			dst = append(dst, ':')
			var used int
			if dst, used, err = appendJSON(dst, b[n:]); err != nil {
				return dst, n, err
			}
			n += used
		}
		return append(dst, '}'), n, nil
	}
	if k == packedText {
		n += int(v)
	}
	if notFinite(b[:n]) { // JSON.stringify makes the same of it
		return append(dst, "null"...), n, nil
	}
	if dst, err = pushjson.AppendJSON(dst, b[:n]); err != nil { // a number that JSON does not have, or no UTF-8
		return dst, n, errTranscode
	}
	return dst, n, nil
}

// notFinite reports whether a value is NaN or an infinity.
func notFinite(b []byte) bool {
	var f float64
	switch {
	case len(b) == 5 && b[0] == 0xca:
		f = float64(math.Float32frombits(binary.BigEndian.Uint32(b[1:])))
	case len(b) == 9 && b[0] == 0xcb:
		f = math.Float64frombits(binary.BigEndian.Uint64(b[1:]))
	}
	return math.IsNaN(f) || math.IsInf(f, 0)
}

func appendBase64(dst, b []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, b)
	return append(dst, '"')
}

// maxDate is as far from 1970 as a date of JavaScript can be, in milliseconds
// (ECMA-262, Time Values).
const maxDate = 864e13

// appendDate appends what JSON.stringify makes of a date: ISO 8601 in UTC with
// milliseconds, with a sign and six digits for years that four cannot hold,
// and null for a date that is none.
func appendDate(dst []byte, ms int64) []byte {
	if ms < -maxDate || ms > maxDate {
		return append(dst, "null"...)
	}
	t := time.UnixMilli(ms).UTC()
	dst = append(dst, '"')
	year := t.Year()
	switch {
	case year < 0:
		dst = append(dst, '-')
		dst = appendDigits(dst, -year, 6)
	case year > 9999:
		dst = append(dst, '+')
		dst = appendDigits(dst, year, 6)
	default:
		dst = appendDigits(dst, year, 4)
	}
	dst = t.AppendFormat(dst, "-01-02T15:04:05.000Z")
	return append(dst, '"')
}

// appendDigits appends n with leading zeros.
func appendDigits(dst []byte, n, width int) []byte {
	at := len(dst)
	for range width {
		dst = append(dst, '0')
	}
	for i := at + width - 1; i >= at; i-- {
		dst[i] += byte(n % 10)
		n /= 10
	}
	return dst
}

// packedKind is what a msgpack value is.
type packedKind uint8

const (
	packedBroken    packedKind = iota // its head is cut off, its code is no code, or an extension nobody sends
	packedNil                         //
	packedPlain                       // a boolean
	packedUnsigned                    //
	packedSigned                      //
	packedFloat32                     //
	packedFloat64                     //
	packedText                        //
	packedBin                         // or what JavaScript calls an ArrayBuffer
	packedList                        //
	packedMap                         //
	packedUndefined                   // JavaScript's
	packedDate                        // JavaScript's
)

const (
	codeNil     = 0xc0
	codeExt8    = 0xc7 // length, type
	codeExt32   = 0xc9
	codeFixext1 = 0xd4 // type, one byte
	codeFixext8 = 0xd7
	extType     = 0x00 // of all that notepack, the clients' encoder, makes extensions of
)

// packedCode says what the codes from 0xc0 to 0xdf mean, how many bytes of a
// number or a length follow, and how many of nothing (an extension's type).
var packedCode = [0x20]struct {
	kind        packedKind
	bytes, skip uint8
}{
	0x00: {packedNil, 0, 0},
	0x02: {packedPlain, 0, 0},
	0x03: {packedPlain, 0, 0},
	0x04: {packedBin, 1, 0},
	0x05: {packedBin, 2, 0},
	0x06: {packedBin, 4, 0},
	0x07: {packedBin, 1, 1},
	0x08: {packedBin, 2, 1},
	0x09: {packedBin, 4, 1},
	0x0a: {packedFloat32, 4, 0},
	0x0b: {packedFloat64, 8, 0},
	0x0c: {packedUnsigned, 1, 0},
	0x0d: {packedUnsigned, 2, 0},
	0x0e: {packedUnsigned, 4, 0},
	0x0f: {packedUnsigned, 8, 0},
	0x10: {packedSigned, 1, 0},
	0x11: {packedSigned, 2, 0},
	0x12: {packedSigned, 4, 0},
	0x13: {packedSigned, 8, 0},
	0x14: {packedUndefined, 1, 1},
	0x17: {packedDate, 8, 1},
	0x19: {packedText, 1, 0},
	0x1a: {packedText, 2, 0},
	0x1b: {packedText, 4, 0},
	0x1c: {packedList, 2, 0},
	0x1d: {packedList, 4, 0},
	0x1e: {packedMap, 2, 0},
	0x1f: {packedMap, 4, 0},
}

// packedHead reads the head of the value that b begins with: its kind, the
// head's size, and v, which is a number's value or bits, the bytes of a text
// or bin, the items of a list, the pairs of a map, a date's milliseconds.
// Bytes, items and pairs follow the head, if they are there.
func packedHead(b []byte) (k packedKind, size int, v uint64) {
	if len(b) == 0 {
		return packedBroken, 0, 0
	}
	switch c := b[0]; {
	case c < 0x80:
		return packedUnsigned, 1, uint64(c)
	case c >= 0xe0:
		return packedSigned, 1, uint64(int64(int8(c)))
	case c < 0x90:
		return packedMap, 1, uint64(c & 0xF)
	case c < 0xa0:
		return packedList, 1, uint64(c & 0xF)
	case c < 0xc0:
		return packedText, 1, uint64(c & 0x1F)
	}
	code := packedCode[b[0]-0xc0]
	size = 1 + int(code.bytes) + int(code.skip)
	if len(b) < size {
		return packedBroken, 0, 0
	}
	at := 1 // the number's
	if code.skip != 0 {
		typeAt := 1 + int(code.bytes)
		if code.kind != packedBin {
			typeAt, at = 1, 2
		}
		if b[typeAt] != extType {
			return packedBroken, 0, 0
		}
	}
	switch code.bytes {
	case 1:
		v = uint64(b[at])
	case 2:
		v = uint64(binary.BigEndian.Uint16(b[at:]))
	case 4:
		v = uint64(binary.BigEndian.Uint32(b[at:]))
	case 8:
		v = binary.BigEndian.Uint64(b[at:])
	}
	if code.kind == packedSigned {
		shift := 64 - 8*code.bytes
		v = uint64(int64(v<<shift) >> shift)
	}
	return code.kind, size, v
}

// packedSkip returns how long the value is that b begins with, false if it
// claims more than there is, has an extension that is none of notepack's, or
// is nested more than depth deep. It is linear and does not allocate.
func packedSkip(b []byte, depth int) (n int, ok bool) { return packedSkipAll(b, 1, depth) }

// packedSkipAll skips count values.
func packedSkipAll(b []byte, count uint64, depth int) (n int, ok bool) {
	for ; count > 0; count-- {
		k, size, v := packedHead(b[n:])
		n += size
		switch left := uint64(len(b) - n); k {
		case packedBroken:
			return 0, false
		case packedText, packedBin:
			if v > left {
				return 0, false
			}
			n += int(v)
		case packedList, packedMap:
			if k == packedMap {
				v *= 2
			}
			if v > left || depth <= 0 {
				return 0, false
			}
			used, ok := packedSkipAll(b[n:], v, depth-1)
			if !ok {
				return 0, false
			}
			n += used
		}
	}
	return n, true
}

// packedString returns the text that a whole value is.
func packedString(b []byte) (s []byte, ok bool) {
	k, size, _ := packedHead(b)
	return b[size:], k == packedText
}

// packedInt returns the number that a value is, if it is an integer from 0 to
// most. JavaScript sends large ones as floats.
func packedInt(b []byte, most uint64) (u uint64, ok bool) {
	k, _, u := packedHead(b)
	f := -1.0
	switch k {
	case packedUnsigned, packedSigned: // a negative one is over most
		return u, u <= most
	case packedFloat32:
		f = float64(math.Float32frombits(uint32(u)))
	case packedFloat64:
		f = math.Float64frombits(u)
	}
	if !(f >= 0 && f <= float64(most)) || f != math.Trunc(f) {
		return 0, false
	}
	return uint64(f), true
}

// absent reports whether a value stands for one that is not there.
func absent(b []byte) bool {
	if b == nil {
		return true
	}
	k, _, _ := packedHead(b)
	return k == packedNil || k == packedUndefined
}

// appendPackedHead appends the shortest head of a bin of n bytes, a list of n
// items or a map of n pairs.
func appendPackedHead(dst []byte, k packedKind, n int) []byte {
	var fix, code byte // the code for a length of two bytes; one byte is before it, four behind
	switch k {
	case packedList:
		fix, code = 0x90, 0xdc
	case packedMap:
		fix, code = 0x80, 0xde
	default:
		code = 0xc5
	}
	switch {
	case fix != 0 && n < 16:
		return append(dst, fix|byte(n))
	case fix == 0 && n <= math.MaxUint8:
		return append(dst, code-1, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, code), uint16(n))
	default:
		return binary.BigEndian.AppendUint32(append(dst, code+1), uint32(n))
	}
}

// appendPackedText appends s, what is not UTF-8 in it as U+FFFD.
func appendPackedText(dst []byte, s string) []byte {
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	switch n := len(s); {
	case n < 32:
		dst = append(dst, 0xa0|byte(n))
	case n <= math.MaxUint8:
		dst = append(dst, 0xd9, byte(n))
	case n <= math.MaxUint16:
		dst = binary.BigEndian.AppendUint16(append(dst, 0xda), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint32(append(dst, 0xdb), uint32(n))
	}
	return append(dst, s...)
}

// appendPackedUint appends u in the shortest form. From 2^53 on it is one that
// no JavaScript number holds; nobody has sent such an id.
func appendPackedUint(dst []byte, u uint64) []byte {
	switch {
	case u < 0x80:
		return append(dst, byte(u))
	case u <= math.MaxUint8:
		return append(dst, 0xcc, byte(u))
	case u <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, 0xcd), uint16(u))
	case u <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, 0xce), uint32(u))
	default:
		return binary.BigEndian.AppendUint64(append(dst, 0xcf), u)
	}
}

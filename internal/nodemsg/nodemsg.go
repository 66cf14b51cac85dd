// Package nodemsg is what the nodes of a cluster say to each other about
// pushes, as bytes. It appends and parses, and nothing else: it opens no
// socket, starts no goroutine, takes no lock and reads no clock. A message
// travels in a frame of a link, which gives its kind and its body; here are the
// bodies.
//
// # What is said
//
// The node on which a push was made sends each node that may have some of its
// devices a [Push]. That one answers with any number of Results: one [Row] for
// each device, announced once and settled then or by a later row, and a
// [Result] that is Done and tells how many there were. Cancel says that nobody
// waits any more. A [Call] is everything else that is done to an [Audience],
// and is answered by Returns, of which the last is Done. An id belongs to the
// link that the asker dialled.
//
// # Bytes
//
// Bodies are msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md):
// nil, unsigned integers, float 64, str, bin and arrays, each in the shortest
// form when written and in any when read. A message is an array, and so is
// every part of one that has more than one field; a later version may append
// fields to each, and a reader skips the ones it does not know. What else a
// later version has to say, a peer must not be sent before the link has settled
// that it understands: an unknown value of a field is malformed.
//
// What Append writes, Parse takes, if what it was given keeps to the limits
// below; [Audience.Check] tells for the parts that come from the application.
// Texts that only tell something (a device's, an error's, a kick's) are cut to
// their limit and made UTF-8 instead.
//
// Whatever a body holds, parsing it does not panic and allocates at most in
// proportion to its length: every length and count is held against a limit and
// what is left before anything is made, and [pushjson.Scan] passes what is not
// known. A body is taken whole or not at all.
//
// # Who owns what
//
// Append copies what it is given and allocates nothing but dst. A body belongs
// to who parses it: byte slices of what Parse returns are parts of the body,
// strings are not. The strings of one list, or of one device, share memory with
// each other.
package nodemsg

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// The kinds of frames. Those below 32 are the link's own.
const (
	KindPush   = 32 + iota // asker to holder: Push
	KindResult             // holder to asker: Result
	KindCancel             // asker to holder: nobody waits for a push or a call any more
	KindCall               // asker to holder: Call
	KindReturn             // holder to asker: Return
)

// Limits of what is said.
const (
	MaxName      = 256       // bytes of a user, a room, an event, a device's fields, an OS, a version
	MaxNamespace = 128       // bytes
	MaxTag       = 64        // bytes
	MaxUsers     = 1_000_000 // of one Audience
	MaxFilter    = 10_000    // entries of each of an Audience's other lists
	MaxArgs      = 65_536    // arguments of a value; the engine should refuse more
	MaxText      = 1 << 10   // bytes of a Call's Text
	MaxErrors    = 10        // of a Return
	MaxError     = 512       // bytes of one
	MaxTags      = 256       // of one Device
	MaxAck       = 2         // the greatest Push.Ack; with a new one of the engine it grows, as MaxStatus
	MaxStatus    = 10        // the greatest Row.Status
)

// A rate is 0 or between these, in devices a second.
const (
	MinRate = 1e-6
	MaxRate = 1e9
)

// ErrMalformed: the body is not what this version writes. Nothing of it was
// taken.
var ErrMalformed = errors.New("nodemsg: malformed message")

// Kinds of an Audience. The zero value is none.
const (
	User  uint8 = 1 + iota // every device of Audience.User
	Users                  // every device of each of Audience.Users
	Room                   // everybody in Audience.Room
	All                    // everybody
	Conn                   // the connection Audience.Conn
)

// Audience says whom something is for. Only the selector that Kind names
// counts; the filters narrow it as those of the engine's Audience do.
//
//	kind          uint
//	selector      User, Room: str; Users: array of str; Conn: uint; All: nil
//	namespace     str
//	filters       nil without any, or an array:
//	  any tag, all tags, no tag, OS   each an array of str
//	  min version                     str
//	  percent                         uint, 0 to 100
//	  except                          array of uint
type Audience struct {
	Kind       uint8
	User, Room string   // 1 to MaxName bytes
	Users      []string // at most MaxUsers, each at most MaxName bytes
	Conn       uint64
	Namespace  string // "": "/", for Conn any

	AnyTag, AllTags, NoTag []string // at most MaxFilter each, of at most MaxTag bytes
	OS                     []string // at most MaxFilter, of at most MaxName bytes
	MinVersion             string   // at most MaxName bytes
	Percent                int      // 0 to 100; 0: all
	Except                 []uint64 // at most MaxFilter
}

// Check tells what of an audience a peer would not take.
func (a *Audience) Check() error {
	if a.Kind < User || a.Kind > Conn {
		return fmt.Errorf("push: audience of kind %d", a.Kind)
	}
	for _, f := range [...]struct {
		what, value       string
		of                uint8
		shortest, longest int
	}{
		{"User", a.User, User, 1, MaxName},
		{"Room", a.Room, Room, 1, MaxName},
		{"Namespace", a.Namespace, a.Kind, 0, MaxNamespace},
		{"MinVersion", a.MinVersion, a.Kind, 0, MaxName},
	} {
		if f.of == a.Kind {
			if err := checkText(f.what, f.value, f.shortest, f.longest); err != nil {
				return err
			}
		}
	}
	for _, f := range [...]struct {
		what          string
		list          []string
		of            uint8
		most, longest int
	}{
		{"Users", a.Users, Users, MaxUsers, MaxName},
		{"AnyTag", a.AnyTag, a.Kind, MaxFilter, MaxTag},
		{"AllTags", a.AllTags, a.Kind, MaxFilter, MaxTag},
		{"NoTag", a.NoTag, a.Kind, MaxFilter, MaxTag},
		{"OS", a.OS, a.Kind, MaxFilter, MaxName},
	} {
		if f.of != a.Kind {
			continue
		}
		if len(f.list) > f.most {
			return fmt.Errorf("push: Audience.%s has %d entries, want at most %d", f.what, len(f.list), f.most)
		}
		for _, s := range f.list {
			if err := checkText(f.what, s, 0, f.longest); err != nil {
				return err
			}
		}
	}
	switch {
	case a.Percent < 0 || a.Percent > 100:
		return fmt.Errorf("push: Audience.Percent is %d, want 0 to 100", a.Percent)
	case len(a.Except) > MaxFilter:
		return fmt.Errorf("push: Audience.Except has %d entries, want at most %d", len(a.Except), MaxFilter)
	}
	return nil
}

func checkText(what, s string, shortest, longest int) error {
	if len(s) < shortest || len(s) > longest {
		return fmt.Errorf("push: Audience.%s has a name of %d bytes, want %d to %d", what, len(s), shortest, longest)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("push: Audience.%s has a name that is not UTF-8", what)
	}
	return nil
}

// filtered reports whether a has any filter.
func (a *Audience) filtered() bool {
	return len(a.AnyTag) > 0 || len(a.AllTags) > 0 || len(a.NoTag) > 0 || len(a.OS) > 0 || a.MinVersion != "" || a.Percent != 0 || len(a.Except) > 0
}

func appendAudience(dst []byte, a *Audience) []byte {
	dst = appendList(dst, 4)
	dst = appendUint(dst, uint64(a.Kind))
	switch a.Kind {
	case User:
		dst = appendText(dst, a.User)
	case Users:
		dst = appendTexts(dst, a.Users)
	case Room:
		dst = appendText(dst, a.Room)
	case Conn:
		dst = appendUint(dst, a.Conn)
	default:
		dst = append(dst, codeNil)
	}
	dst = appendText(dst, a.Namespace)
	if !a.filtered() {
		return append(dst, codeNil)
	}
	dst = appendList(dst, 7)
	dst = appendTexts(dst, a.AnyTag)
	dst = appendTexts(dst, a.AllTags)
	dst = appendTexts(dst, a.NoTag)
	dst = appendTexts(dst, a.OS)
	dst = appendText(dst, a.MinVersion)
	dst = appendUint(dst, uint64(max(0, a.Percent)))
	dst = appendList(dst, len(a.Except))
	for _, conn := range a.Except {
		dst = appendUint(dst, conn)
	}
	return dst
}

func (r *reader) audience(a *Audience) {
	more := r.fields(4)
	a.Kind = uint8(r.uint(uint64(Conn)))
	switch a.Kind {
	case User:
		a.User = r.name()
	case Users:
		a.Users = r.texts(MaxUsers, MaxName)
	case Room:
		a.Room = r.name()
	case All:
		r.null()
	case Conn:
		a.Conn = r.uint(1<<64 - 1)
	default:
		r.fail()
	}
	a.Namespace = string(r.text(MaxNamespace))
	if !r.isNull() {
		more := r.fields(7)
		a.AnyTag = r.texts(MaxFilter, MaxTag)
		a.AllTags = r.texts(MaxFilter, MaxTag)
		a.NoTag = r.texts(MaxFilter, MaxTag)
		a.OS = r.texts(MaxFilter, MaxName)
		a.MinVersion = string(r.text(MaxName))
		a.Percent = int(r.uint(100))
		a.Except = r.uints(MaxFilter)
		r.skip(more)
	}
	r.skip(more)
}

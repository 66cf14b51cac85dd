package nodemsg

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push/internal/wire"
)

func TestWhatIsAppendedIsParsed(t *testing.T) {
	each(t, func(t *testing.T, m *message, g *gen) {
		for range 1000 {
			want := m.random(g)
			before := []byte("before")
			body, ok := bytes.CutPrefix(m.append(before, want), before)
			if !ok {
				t.Fatal("what dst held is gone")
			}
			got, err := m.parse(body)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v came back as %+v, %v", want, got, err)
			}
			m.check(t, body)
		}
	})
}

// examples are messages and the bytes that stand for them for ever.
var examples = []struct {
	what string
	m    any
	hex  string
}{
	{
		"Push", &Push{ID: 5, Wait: 3000, Ack: 1, To: Audience{Kind: User, User: "alice"}, Event: "order", Value: wire.Value{JSON: []byte(`{"a":1}`)}},
		"97 05 cd0bb8 01 00 00 94 01 a5616c696365 a0 c0 92 a56f72646572 a77b2261223a317d",
	}, {
		"Push", &Push{ID: 1 << 40, Quiet: true, Rate: 0.5, To: Audience{Kind: All, Namespace: "/chat"}, Event: "m", Value: wire.Value{Bytes: []byte{0, 255}}},
		"97 cf0000010000000000 00 00 01 cb3fe0000000000000 94 04 c0 a52f63686174 c0 92 a16d c40200ff",
	}, {
		"Push", &Push{To: Audience{Kind: Users, Users: []string{"a", "b"}, AnyTag: []string{"t"}, NoTag: []string{"n"}, OS: []string{"ios"}, MinVersion: "2.1", Percent: 10, Except: []uint64{300}}, Event: "m"},
		"97 00 00 00 00 00 94 02 92a161a162 a0 97 91a174 90 91a16e 91a3696f73 a3322e31 0a 91cd012c 92 a16d c0",
	}, {
		"Push", &Push{To: Audience{Kind: Room, Room: "r", AllTags: []string{"t"}}, Event: "m", Value: wire.Value{JSON: []byte(`[1,"AA==",null]`), Args: []wire.Value{{JSON: []byte("1")}, {Bytes: []byte{0}}, {}}}},
		"97 00 00 00 00 00 94 03 a172 a0 97 90 91a174 90 90 a0 00 90 92 a16d 93 a131 c40100 c0",
	}, {
		"Push", &Push{To: Audience{Kind: Conn, Conn: 1<<32 + 1}, Event: "m", Value: wire.Value{JSON: []byte("[]"), Args: []wire.Value{}}},
		"97 00 00 00 00 00 94 05 cf0000000100000001 a0 c0 92 a16d 90",
	}, {
		"Result", &answer{Result{ID: 5, Done: true, Total: 2, Nobody: []uint32{0, 300}}, []Row{
			{Index: 0, New: true, User: "alice", Device: "d", Protocol: "mpush", Conn: 7},
			{Index: 1, New: true, Protocol: "telnet", Settled: true, Status: 1},
			{Index: 0, Settled: true, Status: 2, Reply: []byte(`"ok"`)},
		}},
		"94 05 01 02 92 00 cd012c  98 00 01 00 c0 a5616c696365 a164 02 07  98 01 03 01 c0 a0 a0 a674656c6e6574 00  94 00 02 02 a4226f6b22",
	},
	{"Cancel", uint64(5), "91 05"},
	{"Call", &Call{ID: 6, Op: Kick, Wait: 100, To: Audience{Kind: Room, Room: "r"}, Text: "bye"}, "95 06 01 64 94 03 a172 a0 c0 a3627965"},
	{"Call", &Call{ID: 6, Op: Devices, To: Audience{Kind: All}}, "95 06 04 00 94 04 c0 a0 c0 a0"},
	{
		"Return", &Return{ID: 6, Done: true, N: 2, Errors: []string{"full"}, Devices: []Device{{User: "u", Device: "d", Protocol: "push.json", Namespace: "/n", OS: "ios", Version: "1", Conn: 9, Tags: []string{"t"}}}, Seq: 300},
		"96 06 01 02 91 a466756c6c 91 98 a175 a164 00 a22f6e a3696f73 a131 09 91a174 cd012c",
	},
}

func TestBytesStayTheSame(t *testing.T) {
	for _, e := range examples {
		m := &messages[slices.IndexFunc(messages, func(m message) bool { return m.name == e.what })]
		want, err := hex.DecodeString(strings.ReplaceAll(e.hex, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := m.append(nil, e.m); !bytes.Equal(got, want) {
			t.Errorf("%+v is\n%x, want\n%x", e.m, got, want)
		}
		if got, err := m.parse(want); err != nil || !reflect.DeepEqual(got, e.m) {
			t.Errorf("%x is %+v, %v, want %+v", want, got, err, e.m)
		}
	}
}

// The library reads what is written here as the same values.
func TestBodiesAreMsgpack(t *testing.T) {
	each(t, func(t *testing.T, m *message, g *gen) {
		for range 300 {
			sent := m.random(g)
			body := m.append(nil, sent)
			d := msgpack.NewDecoder(bytes.NewReader(body))
			d.UseLooseInterfaceDecoding(true)
			v, err := d.DecodeInterface()
			if err != nil {
				t.Fatalf("%x: %v", body, err)
			}
			all := v.([]any)
			number := func(v any) uint64 {
				if i, ok := v.(int64); ok {
					return uint64(i)
				}
				return v.(uint64)
			}
			var id uint64
			switch sent := sent.(type) {
			case *Push:
				id = sent.ID
				if wait, event := number(all[1]), all[6].([]any)[0]; wait != uint64(sent.Wait) || event != sent.Event {
					t.Fatalf("%+v is %v", sent, all)
				}
			case *answer:
				id = sent.ID
				for _, row := range sent.rows {
					v, err := d.DecodeInterface()
					if err != nil || number(v.([]any)[0]) != uint64(row.Index) || row.New && v.([]any)[5] != row.Device {
						t.Fatalf("%+v is %v, %v", row, v, err)
					}
				}
			case *Call:
				id = sent.ID
				if all[4] != sent.Text {
					t.Fatalf("%+v is %v", sent, all)
				}
			case *Return:
				id = sent.ID
				if devices := all[4].([]any); len(devices) != len(sent.Devices) || len(devices) > 0 && devices[0].([]any)[1] != sent.Devices[0].Device || number(all[5]) != sent.Seq {
					t.Fatalf("%+v is %v", sent, all)
				}
			case uint64:
				id = sent
			}
			if number(all[0]) != id {
				t.Fatalf("%+v is %v", sent, all)
			}
			if _, err := d.DecodeInterface(); err == nil {
				t.Fatalf("%x goes on", body)
			}
		}
	})
}

func TestTooManyArgumentsGoAsOneArray(t *testing.T) {
	for n := MaxArgs; n <= MaxArgs+1; n++ {
		args := make([]wire.Value, n)
		for i := range args {
			args[i].JSON = []byte("1")
		}
		want := wire.Value{JSON: arrayOf(args), Args: args}
		p, err := ParsePush(AppendPush(nil, &Push{To: Audience{Kind: All}, Value: want}))
		if n > MaxArgs {
			want.Args = nil
		}
		if err != nil || !reflect.DeepEqual(p.Value, want) {
			t.Errorf("%d arguments came as %d and %d bytes of JSON, %v", n, len(p.Value.Args), len(p.Value.JSON), err)
		}
	}
}

func TestRoomsThatCannotBeAreLeftByNobody(t *testing.T) {
	for _, room := range []string{"", strings.Repeat("x", MaxName+1), "room\xff"} {
		for op := Join; op <= Leave; op++ {
			c, err := ParseCall(AppendCall(nil, &Call{Op: op, To: Audience{Kind: All}, Text: room}))
			if err != nil || c.Text != "" {
				t.Errorf("%q came as %q, %v", room, c.Text, err)
			}
		}
	}
}

func TestOneMessageGoesToSeveralNodes(t *testing.T) {
	for _, v := range []wire.Value{{}, {JSON: []byte(`{"a":[1]}`)}, {Bytes: []byte{}}, {JSON: []byte(`[1]`), Args: []wire.Value{{JSON: []byte("1")}}}} {
		m := AppendMessage(nil, "order", v)
		for id, to := range []Audience{{Kind: All}, {Kind: User, User: "alice"}} {
			got, err := ParsePush(AppendPush(nil, &Push{ID: uint64(id), To: to, Message: m, Event: "not looked at"}))
			if want := (Push{ID: uint64(id), To: to, Event: "order", Value: v}); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v came back as %+v, %v", want, got, err)
			}
		}
	}
}

func TestNoBodyOfItsBytesPanics(t *testing.T) {
	each(t, func(t *testing.T, m *message, g *gen) {
		for tried := 0; tried < 5; {
			body := m.append(nil, m.random(g))
			if len(body) > 300 {
				continue
			}
			tried++
			rows := map[int]bool{} // where a Result may end
			if m.name == "Result" {
				a, _ := parseAnswer(body)
				for i := range len(a.rows) + 1 {
					rows[len(appendAnswer(nil, &answer{a.Result, a.rows[:i]}))] = true
				}
			}
			for n := range len(body) {
				if _, err := m.parse(body[:n:n]); (err == nil) != rows[n] {
					t.Fatalf("the first %d bytes of %x: %v", n, body, err)
				}
			}
			if _, err := m.parse(append(bytes.Clone(body), 0)); err != ErrMalformed {
				t.Fatalf("%x and a byte more: %v", body, err)
			}
			for i, was := range body {
				for _, now := range []byte{was ^ 1, was ^ 0x80, was + 1, was - 1, ^was, 0xc0, 0xc1, 0xc6, 0xdd, 0xdf, 0xff} {
					body[i] = now
					m.check(t, body)
				}
				body[i] = was
			}
		}
	})
}

func TestFieldsOfLaterVersionsAreSkipped(t *testing.T) {
	// A nil, a list, a map and a text, as fields that this version has not.
	for _, extra := range []string{"\xc0", "\x92\x01\x91\x02", "\x81\xa1k\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00", "\xa5hello"} {
		for _, e := range examples {
			m := &messages[slices.IndexFunc(messages, func(m message) bool { return m.name == e.what })]
			body := m.append(nil, e.m)
			later := lengthen(t, body, extra, 3, func(place int) bool { return countAt(e.m, place) })
			if bytes.Equal(later, body) {
				t.Fatalf("%s has no more fields", e.what)
			}
			got, err := m.parse(later)
			if err != nil || !reflect.DeepEqual(got, e.m) {
				t.Errorf("%+v with more fields is %+v, %v", e.m, got, err)
			}
		}
	}
}

// countAt reports whether the array of that place in m, in the order in which
// they begin, has a count of equal things instead of fields.
func countAt(m any, place int) bool {
	audience := func(a *Audience) (is []bool) {
		is = append(is, false)
		if a.Kind == Users {
			is = append(is, true)
		}
		if a.filtered() {
			is = append(is, false, true, true, true, true, true)
		}
		return is
	}
	is := []bool{false}
	switch m := m.(type) {
	case *Push:
		is = append(is, audience(&m.To)...)
		is = append(is, false)
		if m.Value.Args != nil {
			is = append(is, true)
		}
	case *answer:
		is = append(is, true)
	case *Call:
		is = append(is, audience(&m.To)...)
	case *Return:
		is = append(is, true, true)
		for range m.Devices {
			is = append(is, false, true)
		}
	}
	return place < len(is) && is[place]
}

func TestMalformedBodiesAreRefused(t *testing.T) {
	text := func(s string) string { return string(appendText(nil, s)) }
	long := func(n int) string { return text(strings.Repeat("x", n)) }
	list := func(n int, item string) string { return string(appendList(nil, n)) + strings.Repeat(item, n) }
	// Bodies by their fields, the head before them, so that each can be replaced.
	all := "\x94\x04\xc0\xa0\xc0"
	push := []string{"\x97", "\x05", "\x00", "\x00", "\x00", "\x00", all, "\x92\xa1m\xc0"}
	to := []string{"\x94", "\x01", "\xa5alice", "\xa0", "\xc0"}
	filters := []string{"\x97", "\x90", "\x90", "\x90", "\x90", "\xa0", "\x00", "\x90"}
	result := []string{"\x94", "\x05", "\x01", "\x02", "\x90"}
	row := []string{"\x98", "\x00", "\x03", "\x01", "\xc0", "\xa1u", "\xa1d", "\x02", "\x07"}
	call := []string{"\x95", "\x05", "\x01", "\x00", all, "\xa0"}
	ret := []string{"\x96", "\x05", "\x01", "\x00", "\x90", "\x90", "\x07"}
	device := []string{"\x98", "\xa1u", "\xa1d", "\x00", "\xa0", "\xa0", "\xa0", "\x07", "\x90"}
	with := func(fields []string, i int, s string) string {
		fields = slices.Clone(fields)
		fields[i] = s
		return strings.Join(fields, "")
	}
	inTo := func(i int, s string) string { return with(push, 6, with(to, i, s)) }
	inFilter := func(i int, s string) string { return inTo(4, with(filters, i, s)) }
	inMessage := func(s string) string { return with(push, 7, s) }
	inRow := func(i int, s string) string { return strings.Join(result, "") + with(row, i, s) }
	inDevice := func(i int, s string) string { return with(ret, 5, "\x91"+with(device, i, s)) }
	huge, wide := "\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "\xce\xff\xff\xff\xff"

	for _, c := range []struct {
		what string
		body string
		ok   bool
	}{
		{"Push", strings.Join(push, ""), true},
		{"Push", inTo(1, "\x01"), true},
		{"Push", inFilter(1, "\x90"), true},
		{"Push", "", false},
		{"Push", with(push, 0, "\x96"), false},
		{"Push", with(push, 0, "\xdd\xff\xff\xff\xff"), false},
		{"Push", with(push, 0, "\x88"), false},
		{"Push", with(push, 1, "\xff"), false},
		{"Push", with(push, 1, "\xd0\x05"), false},
		{"Push", with(push, 1, "\xc0"), false},
		{"Push", with(push, 1, huge), true},
		{"Push", with(push, 2, wide), true},
		{"Push", with(push, 2, "\xcf\x00\x00\x00\x01\x00\x00\x00\x00"), false},
		{"Push", with(push, 3, "\x02"), true},
		{"Push", with(push, 3, "\x03"), false},
		{"Push", with(push, 4, "\xfe"), false},
		{"Push", with(push, 4, huge), true},
		{"Push", with(push, 5, "\x01"), false},
		{"Push", with(push, 5, "\xc0"), false},
		{"Push", with(push, 5, "\xca\x3f\x80\x00\x00"), false},
		{"Push", with(push, 5, string(appendFloat(nil, 1))), true},
		{"Push", with(push, 5, string(appendFloat(nil, 0))), false},
		{"Push", with(push, 5, string(appendFloat(nil, -1))), false},
		{"Push", with(push, 5, string(appendFloat(nil, 1e-7))), false},
		{"Push", with(push, 5, string(appendFloat(nil, 1.1e9))), false},
		{"Push", with(push, 5, string(appendFloat(nil, math.Inf(1)))), false},
		{"Push", with(push, 5, string(appendFloat(nil, math.NaN()))), false},
		{"Push", with(push, 6, "\xc0"), false},
		{"Push", inTo(0, "\x93"), false},
		{"Push", inTo(1, "\x00"), false},
		{"Push", inTo(1, "\x06"), false},
		{"Push", inTo(1, "\x02"), false}, // users, but a text
		{"Push", inTo(1, "\x04"), false}, // all, but a text
		{"Push", inTo(1, "\x05"), false}, // a connection, but a text
		{"Push", inTo(2, "\xa0"), false},
		{"Push", inTo(2, "\xc4\x01a"), false},
		{"Push", inTo(2, "\x90"), false},
		{"Push", inTo(2, "\xa2\xc3\x28"), false},
		{"Push", inTo(2, "\xa3\xed\xa0\x80"), false},
		{"Push", inTo(2, long(MaxName)), true},
		{"Push", inTo(2, long(MaxName+1)), false},
		{"Push", inTo(2, "\xdb\xff\xff\xff\xff"), false},
		{"Push", inTo(3, long(MaxNamespace)), true},
		{"Push", inTo(3, long(MaxNamespace+1)), false},
		{"Push", inTo(3, "\xa1\xff"), false},
		{"Push", inTo(3, "\xc0"), false},
		{"Push", inTo(4, "\x00"), false},
		{"Push", inFilter(0, "\x96"), false},
		{"Push", inFilter(1, list(1, long(MaxTag))), true},
		{"Push", inFilter(1, list(1, long(MaxTag+1))), false},
		{"Push", inFilter(2, list(MaxFilter, "\xa1a")), true},
		{"Push", inFilter(2, list(MaxFilter+1, "\xa1a")), false},
		{"Push", inFilter(2, list(1, long(MaxTag+1))), false},
		{"Push", inFilter(3, list(1, long(MaxTag+1))), false},
		{"Push", inFilter(1, list(MaxFilter+1, "\xa1a")), false},
		{"Push", inFilter(3, list(MaxFilter+1, "\xa1a")), false},
		{"Push", inFilter(4, list(MaxFilter+1, "\xa1a")), false},
		{"Push", inFilter(3, "\xdd\xff\xff\xff\xff"), false},
		{"Push", inFilter(3, "\x91\xa1\x80"), false},
		{"Push", inFilter(3, "\x91\x01"), false},
		{"Push", inFilter(3, "\xc0"), false},
		{"Push", inFilter(4, list(1, long(MaxName))), true},
		{"Push", inFilter(4, list(1, long(MaxName+1))), false},
		{"Push", inFilter(5, long(MaxName+1)), false},
		{"Push", inFilter(5, "\xa1\xff"), false},
		{"Push", inFilter(6, "\x64"), true},
		{"Push", inFilter(6, "\x65"), false},
		{"Push", inFilter(7, list(MaxFilter, huge)), true},
		{"Push", inFilter(7, list(MaxFilter+1, "\x00")), false},
		{"Push", inFilter(7, "\x91\xff"), false},
		{"Push", inMessage("\x91\xa1m"), false},
		{"Push", inMessage("\x92\xc0\xc0"), false},
		{"Push", inMessage("\x92" + long(MaxName) + "\xc0"), true},
		{"Push", inMessage("\x92" + long(MaxName+1) + "\xc0"), false},
		{"Push", inMessage("\x92\xa1\xc0\xc0"), false},
		{"Push", inMessage("\x92\xa1m\x05"), false},
		{"Push", inMessage("\x92\xa1m\xc3"), false},
		{"Push", inMessage("\x92\xa1m\x81\xa1a\x01"), false},
		{"Push", inMessage("\x92\xa1m\xd4\x00\x00"), false}, // an extension
		{"Push", inMessage("\x92\xa1m" + text(`{"a":[1,2.5e-3,"é\u00e9"]}`)), true},
		{"Push", inMessage("\x92\xa1m" + text(`{"a":}`)), false},
		{"Push", inMessage("\x92\xa1m\xa0"), false},
		{"Push", inMessage("\x92\xa1m" + text("\"\xff\"")), false},
		{"Push", inMessage("\x92\xa1m\x91" + text("nul")), false},
		{"Push", inMessage("\x92\xa1m\x91\x91\xa11"), false}, // arguments within arguments
		{"Push", inMessage("\x92\xa1m" + list(MaxArgs, "\xa11")), true},
		{"Push", inMessage("\x92\xa1m" + list(MaxArgs+1, "\xa11")), false},
		{"Push", inMessage("\x92\xa1m\xdd\xff\xff\xff\xff"), false},
		{"Push", inMessage("\x92\xa1m\x91" + text(nest(9999, 1))), true},
		{"Push", inMessage("\x92\xa1m" + text(nest(10_000, 1))), true},
		{"Push", inMessage("\x92\xa1m\x91" + text(nest(10_000, 1))), false}, // one deeper than encoding/json reads, with the array of all
		{"Push", inMessage("\x92\xa1m" + text(nest(1_000_000, 1))), false},
		{"Push", inMessage("\x93\xa1m\xc0" + strings.Repeat("\x91", 30) + "\x01"), false},
		{"Push", strings.Repeat("\x91", 1_000_000) + "\x01", false},
		{"Push", strings.Join(push, "") + "\xc0", false},

		{"Result", strings.Join(result, ""), true},
		{"Result", strings.Join(result, "") + strings.Join(row, "") + strings.Join(row, ""), true},
		{"Result", "", false},
		{"Result", with(result, 0, "\x93"), false},
		{"Result", with(result, 3, wide), true},
		{"Result", with(result, 3, huge), false},
		{"Result", with(result, 4, list(1, string(appendUint(nil, MaxUsers-1)))), true},
		{"Result", with(result, 4, list(1, string(appendUint(nil, MaxUsers)))), false},
		{"Result", with(result, 4, list(MaxUsers+1, "\x00")), false},
		{"Result", with(result, 4, "\xdd\x0f\xff\xff\xff"), false},
		{"Result", strings.Join(result, "") + "\xc0", false},
		{"Result", inRow(0, "\x97"), false},
		{"Result", inRow(1, huge), false},
		{"Result", inRow(2, "\x01"), false}, // a status, but not settled
		{"Result", inRow(3, "\x00"), false}, // settled, but no status
		{"Result", inRow(3, "\x0a"), true},
		{"Result", inRow(3, "\x0b"), false},
		{"Result", inRow(4, text(`"yes"`)), true},
		{"Result", inRow(4, text(`yes`)), false},
		{"Result", inRow(4, text("\"\xc3\"")), false},
		{"Result", inRow(4, "\xa0"), false},
		{"Result", inRow(4, "\xc4\x011"), false},
		{"Result", inRow(5, long(MaxName+1)), false},
		{"Result", inRow(5, "\xa1\xff"), false},
		{"Result", inRow(6, long(MaxName+1)), false},
		{"Result", inRow(7, "\x06"), true},
		{"Result", inRow(7, "\x07"), false},
		{"Result", inRow(7, text("telnet")), true},
		{"Result", inRow(7, long(MaxName+1)), false},
		{"Result", inRow(7, "\xc0"), false},
		{"Result", inRow(8, "\xc0"), false},
		{"Result", strings.Join(result, "") + "\x94\x00\x01\x00\xc0", false}, // new, but nothing of it
		{"Result", strings.Join(result, "") + "\x94\x00\x00\x00\xa11", false},
		{"Result", strings.Join(result, "") + "\x94\x00\x00\x00\xc0", true},

		{"Cancel", "\x91\x05", true},
		{"Cancel", "\x90", false},
		{"Cancel", "\x05", false},
		{"Cancel", "\x91\xc0", false},
		{"Cancel", "\x91\x05\x05", false},

		{"Call", strings.Join(call, ""), true},
		{"Call", with(call, 0, "\x94"), false},
		{"Call", with(call, 2, "\x00"), false},
		{"Call", with(call, 2, "\x05"), false},
		{"Call", with(call, 2, "\x02"), true},
		{"Call", with(call, 2, "\x04"), true},
		{"Call", with(call, 3, huge), false},
		{"Call", with(call, 4, "\xc0"), false},
		{"Call", with(call, 5, long(MaxText)), true},
		{"Call", with(call, 5, long(MaxText+1)), false},
		{"Call", with(call, 5, "\xa1\xff"), false},
		{"Call", "\x95\x05\x02\x00" + all + long(MaxName), true},
		{"Call", "\x95\x05\x03\x00" + all + long(MaxName+1), false},
		{"Call", "\x95\x05\x04\x00" + all + "\xa1a", false},

		{"Return", strings.Join(ret, ""), true},
		{"Return", with(ret, 0, "\x95"), false},
		{"Return", "\x95" + strings.Join(ret[1:6], ""), false},
		{"Return", with(ret, 3, huge), true},
		{"Return", with(ret, 4, list(MaxErrors, long(MaxError))), true},
		{"Return", with(ret, 4, list(MaxErrors+1, "\xa0")), false},
		{"Return", with(ret, 4, list(1, long(MaxError+1))), false},
		{"Return", with(ret, 4, "\x91\xa1\xff"), false},
		{"Return", with(ret, 5, "\xdd\x0f\xff\xff\xff"), false},
		{"Return", with(ret, 5, list(100, "\xc0")), false},
		{"Return", with(ret, 6, huge), true},
		{"Return", with(ret, 6, "\xc0"), false},
		{"Return", with(ret, 6, "\xff"), false},
		{"Return", inDevice(0, "\x98"), true},
		{"Return", inDevice(0, "\x97"), false},
		{"Return", inDevice(1, long(MaxName+1)), false},
		{"Return", inDevice(1, "\xa1\xff"), false},
		{"Return", inDevice(2, long(MaxName+1)), false},
		{"Return", inDevice(3, "\x07"), false},
		{"Return", inDevice(4, long(MaxNamespace+1)), false},
		{"Return", inDevice(5, "\xc0"), false},
		{"Return", inDevice(6, long(MaxName+1)), false},
		{"Return", inDevice(7, "\xa0"), false},
		{"Return", inDevice(8, list(MaxTags, long(MaxTag))), true},
		{"Return", inDevice(8, list(MaxTags+1, "\xa0")), false},
		{"Return", inDevice(8, list(1, long(MaxTag+1))), false},
		{"Return", inDevice(8, "\x91\xa1\xff"), false},
	} {
		m := &messages[slices.IndexFunc(messages, func(m message) bool { return m.name == c.what })]
		if _, err := m.parse([]byte(c.body)); (err == nil) != c.ok {
			t.Errorf("%s %.60x of %d bytes: %v", c.what, c.body, len(c.body), err)
		}
		m.check(t, []byte(c.body))
	}
}

// nest is JSON of so many arrays inside each other.
func nest(depth, item int) string {
	return strings.Repeat("[", depth) + fmt.Sprint(item) + strings.Repeat("]", depth)
}

func TestAudiencesThatNoPeerTakesAreTold(t *testing.T) {
	long := strings.Repeat("x", MaxName+1)
	for _, c := range []struct {
		a  Audience
		ok bool
	}{
		{Audience{Kind: All}, true},
		{Audience{Kind: All, User: long, Room: long, Users: []string{long}}, true}, // they do not count
		{Audience{Kind: User, User: long[1:]}, true},
		{Audience{Kind: Users, Users: []string{"", long[1:]}}, true},
		{Audience{}, false},
		{Audience{Kind: 6}, false},
		{Audience{Kind: 200}, false},
		{Audience{Kind: User}, false},
		{Audience{Kind: User, User: long}, false},
		{Audience{Kind: User, User: "\xff"}, false},
		{Audience{Kind: Room}, false},
		{Audience{Kind: Room, Room: "\xff"}, false},
		{Audience{Kind: Users, Users: []string{long}}, false},
		{Audience{Kind: Users, Users: make([]string, MaxUsers)}, true},
		{Audience{Kind: Users, Users: make([]string, MaxUsers+1)}, false},
		{Audience{Kind: All, Namespace: long[:MaxNamespace]}, true},
		{Audience{Kind: All, Namespace: long[:MaxNamespace+1]}, false},
		{Audience{Kind: All, AnyTag: []string{long[:MaxTag]}}, true},
		{Audience{Kind: All, AnyTag: []string{long[:MaxTag+1]}}, false},
		{Audience{Kind: All, AllTags: []string{"\xff"}}, false},
		{Audience{Kind: All, AllTags: []string{long[:MaxTag+1]}}, false},
		{Audience{Kind: All, NoTag: []string{long[:MaxTag+1]}}, false},
		{Audience{Kind: All, AnyTag: make([]string, MaxFilter+1)}, false},
		{Audience{Kind: All, AllTags: make([]string, MaxFilter+1)}, false},
		{Audience{Kind: All, OS: make([]string, MaxFilter+1)}, false},
		{Audience{Kind: All, NoTag: make([]string, MaxFilter)}, true},
		{Audience{Kind: All, NoTag: make([]string, MaxFilter+1)}, false},
		{Audience{Kind: All, OS: []string{long}}, false},
		{Audience{Kind: All, MinVersion: long}, false},
		{Audience{Kind: All, Percent: 100}, true},
		{Audience{Kind: All, Percent: 101}, false},
		{Audience{Kind: All, Percent: -1}, false},
		{Audience{Kind: All, Except: make([]uint64, MaxFilter)}, true},
		{Audience{Kind: All, Except: make([]uint64, MaxFilter+1)}, false},
	} {
		if err := c.a.Check(); (err == nil) != c.ok {
			t.Errorf("%.100s: %v", fmt.Sprintf("%+v", c.a), err)
		}
		if c.a.Percent < 0 {
			continue // goes as 0
		}
		if _, err := ParsePush(AppendPush(nil, &Push{To: c.a})); (err == nil) != c.ok {
			t.Errorf("a peer of %.100s: %v", fmt.Sprintf("%+v", c.a), err)
		}
	}
}

func TestTextsThatOnlyTellAreCut(t *testing.T) {
	long := strings.Repeat("é", 1000)[1:]
	for i, got := range []string{clean("a\xffb", 9), clean("aé", 2), clean("aé", 3), clean(long, MaxName)[:2]} {
		if want := []string{"ab", "a", "aé", "é"}[i]; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	tags := make([]string, MaxTags+1)
	tags[0] = long
	ret, err := ParseReturn(AppendReturn(nil, &Return{
		Errors:  slices.Repeat([]string{long}, MaxErrors+1),
		Devices: []Device{{User: long, Device: long, Protocol: long, Namespace: long, OS: long, Version: "\xff1", Tags: tags}},
	}))
	if err != nil || len(ret.Errors) != MaxErrors || len(ret.Devices[0].Tags) != MaxTags || ret.Devices[0].Version != "1" {
		t.Errorf("%.100s, %v", fmt.Sprintf("%+v", ret), err)
	}
	x := strings.Repeat("x", 1000)
	back, err := ParseReturn(AppendReturn(nil, &Return{Errors: []string{x}, Devices: []Device{{User: x, Device: x, Protocol: x, Namespace: x, OS: x, Version: x, Tags: []string{x}}}}))
	name := x[:MaxName]
	if want := (Return{Errors: []string{x[:MaxError]}, Devices: []Device{{User: name, Device: name, Protocol: name, Namespace: x[:MaxNamespace], OS: name, Version: name, Tags: []string{x[:MaxTag]}}}}); err != nil || !reflect.DeepEqual(back, want) {
		t.Errorf("%+v, %v", back, err)
	}
	a, err := parseAnswer(AppendRow(AppendResultHead(nil, &Result{}), &Row{New: true, User: long, Device: "\xff", Protocol: long, Settled: true, Status: 1}))
	if err != nil || len(a.rows) != 1 || a.rows[0].Device != "" || !utf8.ValidString(a.rows[0].User) || len(a.rows[0].User) < MaxName-4 {
		t.Errorf("%+v, %v", a, err)
	}
	c, err := ParseCall(AppendCall(nil, &Call{Op: Kick, To: Audience{Kind: All}, Text: long}))
	if err != nil || len(c.Text) < MaxText-2 {
		t.Errorf("%+v, %v", c, err)
	}
	for rate, want := range map[float64]float64{-1: 0, math.NaN(): 0, math.Inf(1): MaxRate, 1e-30: MinRate, 20: 20} {
		if p, err := ParsePush(AppendPush(nil, &Push{Rate: rate, To: Audience{Kind: All}})); err != nil || p.Rate != want {
			t.Errorf("%v devices a second came as %v, %v", rate, p.Rate, err)
		}
	}
}

// What a few bytes claim to hold must not be made.
func TestSmallBodiesMakeLittle(t *testing.T) {
	for _, m := range messages {
		for _, claim := range []string{"\xdd\xff\xff\xff\xff", "\xdd\x00\x0f\x00\x00", "\xdb\xff\xff\xff\xff", "\xc6\x7f\xff\xff\xff", "\xdf\xff\xff\xff\xff", "\xdc\xff\xff"} {
			good := m.append(nil, m.random(&gen{seeded(1)}))
			for i := range min(len(good), 200) {
				body := slices.Concat(good[:i], []byte(claim), good[i:])
				makesAtMost(t, 16<<10+160*len(body), body, func() { m.parse(body) })
			}
		}
	}
}

// A body of the greatest frame makes a bounded multiple of it, whatever it is
// full of.
func TestFullFramesMakeABoundedMultiple(t *testing.T) {
	const frame = 1 << 20
	fill := func(head, item string, tail ...string) []byte {
		n := (frame - len(head)) / len(item)
		return []byte(head + string(binary.BigEndian.AppendUint32([]byte{codeList16 + 1}, uint32(n))) + strings.Repeat(item, n) + strings.Join(tail, ""))
	}
	parses := map[string]func([]byte) error{
		"Push":   func(b []byte) error { _, err := ParsePush(b); return err },
		"Result": func(b []byte) error { _, err := ParseResult(b); return err },
		"Return": func(b []byte) error { _, err := ParseReturn(b); return err },
	}
	for _, c := range []struct {
		what string
		body []byte
		ok   bool
	}{
		{"Push", fill("\x97\x00\x00\x00\x00\x00\x94\x02", "\xa4abcd", "\xa0\xc0\x92\xa1m\xc0"), true},
		{"Push", fill("\x97\x00\x00\x00\x00\x00\x94\x02", "\xa0", "\xa0\xc0\x92\xa1m\xc0"), false},
		{"Push", fill("\x97\x00\x00\x00\x00\x00\x94\x04\xc0\xa0\xc0\x92\xa1m", "\xc0"), false},
		{"Push", fill("\x97\x00\x00\x00\x00\x00\x94\x04\xc0\xa0\xc0\x92\xa1m", "\xc4\x3e"+strings.Repeat("x", 62)), true},
		{"Result", fill("\x94\x00\x00\x00", "\xce\x00\x00\x00\x01"), true},
		{"Return", fill("\x96\x00\x00\x00\x90", "\x98\xa0\xa0\x00\xa0\xa0\xa0\x00\x90", "\x00"), true},
		{"Return", fill("\x96\x00\x00\x00\x90", "\x98\xa0\xa0\x00\xa0\xa0\xa0\x00\xdc\x01\x00"+strings.Repeat("\xa0", 256), "\x00"), true},
	} {
		var err error
		used := allocated(func() { err = parses[c.what](c.body) })
		if (err == nil) != c.ok || used > uint64(20*len(c.body)) {
			t.Errorf("%s %.30x… of %d bytes made %d: %v", c.what, c.body, len(c.body), used, err)
		}
	}
}

func TestAppendingAllocatesNothing(t *testing.T) {
	dst := make([]byte, 0, 4096)
	p, row := benchPush(), benchRow()
	p.To.AnyTag, p.To.Except = []string{"vip"}, []uint64{1 << 40}
	row.Reply = []byte(`{"a":1}`)
	m := AppendMessage(nil, p.Event, p.Value)
	args := wire.Value{Args: []wire.Value{p.Value, {Bytes: m}}}
	call := &Call{Op: Join, To: p.To, Text: "room"}
	ret := &Return{Done: true, Errors: []string{"e"}, Devices: []Device{{User: "u", Protocol: "mpush", Tags: []string{"t"}}}}
	res := &Result{ID: 1, Done: true, Total: 1, Nobody: []uint32{1, 2}}
	for name, f := range map[string]func(){
		"AppendPush":    func() { AppendPush(dst, p) },
		"with Message":  func() { q := Push{To: Audience{Kind: User, User: "alice"}, Message: m}; AppendPush(dst, &q) },
		"AppendMessage": func() { AppendMessage(dst, "order", args) },
		"AppendRow":     func() { AppendRow(AppendRow(AppendResultHead(dst, res), row), row) },
		"AppendCancel":  func() { AppendCancel(dst, 1<<40) },
		"AppendCall":    func() { AppendCall(dst, call) },
		"AppendReturn":  func() { AppendReturn(dst, ret) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func TestParsingAllocatesTheStringsOnly(t *testing.T) {
	one := AppendPush(nil, benchPush())
	p := benchPush()
	p.To = Audience{Kind: All}
	all := AppendPush(nil, p)
	p.To = Audience{Kind: Users, Users: slices.Repeat([]string{"some user"}, 1000)}
	users := AppendPush(nil, p)
	row := benchRow()
	settled := AppendRow(AppendResultHead(nil, &Result{ID: 1}), &Row{Index: 7, Settled: true, Status: 2, Reply: []byte(`"ok"`)})
	announced := AppendRow(AppendResultHead(nil, &Result{ID: 1, Done: true, Total: 1}), row)
	rows := func(body []byte) {
		res, err := ParseResult(body)
		if err != nil {
			t.Error(err)
		}
		res.Rows.User = row.User
		var got Row
		for res.Rows.Next(&got) {
		}
	}
	for _, c := range []struct {
		name string
		want float64
		f    func()
	}{
		{"a push to a user: the user and the event", 2, func() { ParsePush(one) }},
		{"a push to all: the event", 1, func() { ParsePush(all) }},
		{"a push to users: the event, the list and its text", 3, func() { ParsePush(users) }},
		{"a row that settles", 0, func() { rows(settled) }},
		{"a row of a known user: the device", 1, func() { rows(announced) }},
		{"a cancel", 0, func() { ParseCancel([]byte{0x91, 5}) }},
	} {
		if n := testing.AllocsPerRun(100, c.f); n != c.want {
			t.Errorf("%s: %v allocations, want %v", c.name, n, c.want)
		}
	}
}

func TestRowsOfAUserShareItsName(t *testing.T) {
	body := AppendResultHead(nil, &Result{})
	want := []Row{{Index: 0, New: true, User: "alice"}, {Index: 0, Settled: true, Status: 1}, {Index: 1, New: true, User: "alice"}, {Index: 2, New: true, User: "bob"}, {Index: 3, New: true}}
	for i := range want {
		body = AppendRow(body, &want[i])
	}
	res, err := ParseResult(body)
	if err != nil {
		t.Fatal(err)
	}
	var got []Row
	for row := (Row{User: "stale", Device: "stale", Reply: []byte("stale"), Conn: 1}); res.Rows.Next(&row); {
		got = append(got, row)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if res.Rows.Next(new(Row)) {
		t.Error("a row behind the last")
	}
}

// Values are parts of the body; strings outlive it.
func TestStringsOutliveTheBody(t *testing.T) {
	p := &Push{To: Audience{Kind: Users, Users: []string{"alice", "bob"}, AnyTag: []string{"vip"}}, Event: "order", Value: wire.Value{JSON: []byte(`{"a":1}`)}}
	body := AppendPush(nil, p)
	got, err := ParsePush(body)
	if err != nil {
		t.Fatal(err)
	}
	clear(body)
	if !reflect.DeepEqual(got.To, p.To) || got.Event != p.Event {
		t.Errorf("%+v, want %+v", got, p)
	}
	if got.Value.JSON[0] != 0 {
		t.Error("the JSON is a copy")
	}
	ret := &Return{Errors: []string{"full"}, Devices: []Device{{User: "u", Device: "d", Protocol: "telnet", Namespace: "/n", OS: "o", Version: "1", Tags: []string{"a", "b"}}, {User: "v", Protocol: "mpush"}}}
	body = AppendReturn(nil, ret)
	back, err := ParseReturn(body)
	if err != nil {
		t.Fatal(err)
	}
	clear(body)
	if !reflect.DeepEqual(&back, ret) {
		t.Errorf("%+v, want %+v", back, ret)
	}
	// Growing what aliases the body must not write into it.
	body = AppendPush(nil, p)
	kept := bytes.Clone(body)
	got, _ = ParsePush(body)
	_ = append(got.Value.JSON, "grown"...)
	if !bytes.Equal(body, kept) {
		t.Error("growing the JSON wrote behind it")
	}
}

func TestJSONIsJudgedAsEncodingJSONDoes(t *testing.T) {
	for _, s := range jsons {
		for i := range len(s) + 1 {
			sameJSON(t, []byte(s[:i]))
		}
	}
	const odd = "\"\\{}[],:0123eE+-.tfnul \x00\xff\x1f/"
	g := &gen{seeded(3)}
	for range 300 {
		b := g.json(0)
		sameJSON(t, b)
		for range 30 {
			c := bytes.Clone(b)
			c[g.IntN(len(c))] = odd[g.IntN(len(odd))]
			sameJSON(t, c)
		}
	}
	for _, depth := range []int{63, 64, 65, 66, 9_999, 10_000, 10_001} {
		sameJSON(t, []byte(nest(depth, 1)))
		sameJSON(t, []byte(strings.Repeat(`{"a":`, depth)+"1"+strings.Repeat("}", depth)))
		sameJSON(t, []byte(strings.Repeat(`[{"a":`, depth/2)+"1"+strings.Repeat("]", depth)))
	}
}

var jsons = []string{
	`{"a":[1,-2,1.5e10,null,true,false,"é\u00e9\ud83c\udf89\ud83c"],"":{},"b":[[],[{}]]} `,
	`-0.0E-0`, `01`, `-`, `1.`, `.5`, `1e`, `1e+`, `0x1`, `[1,]`, `{"a":1,}`, `{a:1}`, `{"a" : 1 , "b":[ ] }`, `["\x"]`, `"\u12G4"`, "\"\x7f\"", "\"\x1f\"", "\"\\\"",
	`nulll`, `truefalse`, `[1 2]`, `{"a":1]`, `[1}`, `{"a"}`, `{"a",1}`, `{,}`, `[,1]`, ` `, ``, `1 2`, "\ufeff1", "\"\xed\xa0\x80\"", "\v1", `"a" "b"`, `{"a":1 "b":2}`, `[]]`, `}`, `:`, `"\/\b\f\n\r\t"`,
}

func sameJSON(t *testing.T, b []byte) {
	t.Helper()
	if got, _ := validJSON(b); got != (utf8.Valid(b) && json.Valid(b)) {
		t.Fatalf("%q is valid: %v", b, got)
	}
}

func TestAMessageIsReadAsItWasWritten(t *testing.T) {
	deep := []byte(strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)) // as deep as JSON may be, and one more in an array
	for _, v := range []wire.Value{
		{JSON: []byte("null")},
		{JSON: []byte(`{"a":[1,"x"]}`)},
		{Bytes: []byte{0, 1, 255}},
		{JSON: []byte(`[1,"AP8="]`), Args: []wire.Value{{JSON: []byte("1")}, {Bytes: []byte{0, 255}}}},
		{JSON: []byte(`[]`), Args: []wire.Value{}},
		{JSON: slices.Concat([]byte("["), deep, []byte("]")), Args: []wire.Value{{JSON: deep}}},
	} {
		event, got, err := ParseMessage(AppendMessage(nil, "order", v))
		if err != nil || event != "order" || !reflect.DeepEqual(got, v) {
			t.Errorf("want order %.100q, got %s %.100q, error %v", v, event, got, err)
		}
	}
}

package sio

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// golden is what socket.io-msgpack-parser 3.0.2 with notepack.io 2.2.0 makes of
// packets as socket.io-client 4 gives them to it, in Node or in a browser.
var golden = []struct{ hex, want string }{
	{"83a47479706500a36e7370a12fa464617461d40000", `login`},
	{"83a47479706500a36e7370a52f63686174a46461746184a6757365724964a27531a5746f6b656ea174a47461677392a161a162a16e05",
		`login /chat user=u1 token=t tags=["a" "b"] auth={"userId":"u1","token":"t","tags":["a","b"],"n":5}`},
	{"84a47479706502a46461746193a46368617481a1619601fecb3ff8000000000000c0c3a6c3a9f09f8e8907a76f7074696f6e7381a8636f6d7072657373c3a36e7370a12f",
		`message "chat" ({"a":[1,-2,1.5,null,true,"é🎉"]} 7)`},
	{"85a47479706502a46461746191a463686174a76f7074696f6e7381a8636f6d7072657373c3a269640ca36e7370a52f63686174", `message /chat "chat" id 12 -`},
	{"84a47479706502a46461746192a162c703000102ffa76f7074696f6e7381a8636f6d7072657373c3a36e7370a12f", `message "b" "\x01\x02\xff"`},                                                                     // an ArrayBuffer in Node
	{"84a47479706502a46461746192a162c4030102ffa76f7074696f6e7381a8636f6d7072657373c3a36e7370a12f", `message "b" "\x01\x02\xff"`},                                                                       // in a browser
	{"84a47479706502a46461746192a16283a13001a13102a132ccffa76f7074696f6e7381a8636f6d7072657373c3a36e7370a12f", `message "b" {"0":1,"1":2,"2":255}`},                                                    // a Uint8Array in a browser
	{"84a47479706502a46461746193a16282a178c703000102ffa17991c703000102ffa17aa76f7074696f6e7381a8636f6d7072657373c3a36e7370a12f", `message "b" ({"x":"AQL/","y":["AQL/"]} "z")`},                        // bytes that are deeper
	{"84a47479706502a46461746193a16282a178c4030102ffa1799183a13001a13102a132ccffa17aa76f7074696f6e7381a8636f6d7072657373c3a36e7370a12f", `message "b" ({"x":"AQL/","y":[{"0":1,"1":2,"2":255}]} "z")`}, // and in a browser
	{"84a47479706502a46461746193a175d4000083a161d40000a16201a16391d40000a76f7074696f6e7381a8636f6d7072657373c3a36e7370a12f", `message "u" (null {"b":1,"c":[null]})`},                                  // undefined
	{"84a47479706502a46461746193a164d700000001a202156fb495d700ffffffffffffffffd7000000000000000000d700001eb208c2dc0000d700ffe14df73d240000d700ffffc76e394a7400a76f7074696f6e7381a8636f6d7072657373c3a36e7370a12f",
		`message "d" ("2026-11-22T07:08:09.012Z" ["1969-12-31T23:59:59.999Z","1970-01-01T00:00:00.000Z","+275760-09-13T00:00:00.000Z","-271821-04-20T00:00:00.000Z","-000001-01-01T00:00:00.000Z"])`}, // dates
	{"84a47479706503a2696405a36e7370a12fa4646174619181a26f6bc3", `ack id 5 {"ok":true}`},
	{"84a47479706503a26964cf0000000100000005a36e7370a12fa46461746190", `ack id 4294967301 -`},
	{"82a47479706501a36e7370a52f63686174", `logout /chat`},
	{"83a47479706502a4646174619ca16ece80000000cf0000000100000000cf0000010000000000d3ffffffff7fffffffcf0020000000000000d1ff7fccc8ce00011170d2ffff63c0cf0000000000000000cb3fb999999999999aa36e7370a12f",
		`message "n" (2147483648 4294967296 1099511627776 -2147483649 9007199254740992 -129 200 70000 -40000 0 0.1)`},
}

func TestWhatTheMsgpackClientsSendIsRead(t *testing.T) {
	for _, test := range golden {
		ev := joined(t, Packed).want(masked(ws.Binary, unhex(t, test.hex)))
		if got := show(&ev); got != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", test.hex, got, test.want)
		}
	}
}

func TestPacketsInMsgpackAreRead(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{`{"type":0,"nsp":"/"}`, `login`},
		{`{"type":0,"nsp":"/","data":null}`, `login`},
		{`{"type":0,"nsp":"/chat?a=b","data":{}}`, `login /chat?a=b auth={}`},
		{`{"type":1,"nsp":"/","data":null,"id":null}`, `logout`},
		{`{"type":2,"nsp":"/","data":["x"],"more":[{}],"5":6}`, `message "x" -`},
		{`{"type":2.0,"nsp":"/","id":300.0,"data":["x",[[]]]}`, `message "x" id 300 [[]]`},
		{`{"type":2,"nsp":"/","id":9999999999,"data":["é",""]}`, `message "é" id 9999999999 ""`},
		{`{"type":3,"nsp":"/chat","id":0,"data":[]}`, `ack /chat id 0 -`},
		{`{"type":2,"nsp":"/","data":["x",{"_placeholder":true,"num":9}]}`, `message "x" {"_placeholder":true,"num":9}`},
	} {
		ev := joined(t, Packed).want(masked(ws.Binary, pack(t, test.in)))
		if got := show(&ev); got != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", test.in, got, test.want)
		}
	}
	const event = "\x83\xa4type\x02\xa3nsp\xa1/\xa4data"
	for _, test := range []struct{ in, want string }{
		{event + "\x92\xa1x\x82\x01\x02\xff\xa1a", `message "x" {"1":2,"-1":"a"}`},
		{event + "\x92\xa1x\xd4\x00\x07", `message "x" null`},
		{event + "\x93\xa1x\xc4\x00\xc7\x00\x00", `message "x" ("" "")`},
		{event + "\x92\xa1x\xc7\x01\x00A", `message "x" "A"`},
		{event + "\x92\xa1x\xc8\x00\x01\x00A", `message "x" "A"`},
		{event + "\x92\xa1x\xc9\x00\x00\x00\x01\x00A", `message "x" "A"`},
		{event + "\x92\xd9\x01x\xd7\x00\x7f\xff\xff\xff\xff\xff\xff\xff", `message "x" null`},
		{event + "\x92\xa1x\x82\xa1a\xd4\x00\x00\xa1b\xd4\x00\x00", `message "x" {}`},
		{event + "\x92\xa1x\xca\x3d\xcc\xcc\xcd", `message "x" 0.1`},
		{event + "\x92\xa1x\xca\x7f\xc0\x00\x00", `message "x" null`}, // NaN, as JSON.stringify has it
		{event + "\x93\xa1x\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00\x91\xca\xff\x80\x00\x00", `message "x" (null [null])`},
		{"\x84\xa4type\x02\xa3nsp\xa1/\xa4data\x91\xa1x\xa2id\xd4\x00\x00", `message "x" -`},
		{"\x84\xa4type\xd3\x00\x00\x00\x00\x00\x00\x00\x02\xa3nsp\xa1/\xa4data\x91\xa1x\xa2id\xca\x42\xc8\x00\x00", `message "x" id 100 -`},
		{"\xdf\x00\x00\x00\x03\xd9\x04type\xcd\x00\x02\xda\x00\x03nsp\xdb\x00\x00\x00\x01/\xa4data\xdd\x00\x00\x00\x01\xa1x", `message "x" -`},
		{"\x84\xa4type\x00\xa4type\x02\xa3nsp\xa1/\xa4data\x91\xa1x", `message "x" -`}, // the last counts
		{event + "\x92\xa1x" + strings.Repeat("\x91", 13) + "\x90", `message "x" ` + strings.Repeat("[", 14) + strings.Repeat("]", 14)},
	} {
		ev := joined(t, Packed).want(masked(ws.Binary, test.in))
		if got := show(&ev); got != test.want {
			t.Errorf("%q:\ngot  %s\nwant %s", test.in, got, test.want)
		}
	}
}

func TestWhatIsMalformedInMsgpackEndsTheSession(t *testing.T) {
	const event, long = "\x83\xa4type\x02\xa3nsp\xa1/\xa4data", "\xdb\xff\xff\xff\xff"
	for _, test := range []struct {
		code wire.Code
		in   []string
	}{
		{wire.Protocol, []string{
			pack(t, `{"type":4,"nsp":"/","data":{"message":"x"}}`), pack(t, `{"type":5,"nsp":"/","data":["x"]}`), pack(t, `{"type":6,"nsp":"/","id":1,"data":[]}`),
			pack(t, `{"type":-1,"nsp":"/"}`), pack(t, `{"type":"2","nsp":"/","data":["x"]}`), pack(t, `{"type":2.5,"nsp":"/","data":["x"]}`), pack(t, `{"nsp":"/","data":["x"]}`), pack(t, `{}`),
			pack(t, `{"type":2,"nsp":"/","id":-1,"data":["x"]}`), pack(t, `{"type":2,"nsp":"/","id":1.5,"data":["x"]}`), pack(t, `{"type":2,"nsp":"/","id":"1","data":["x"]}`),
			pack(t, `{"type":2,"nsp":"/","id":10000000000,"data":["x"]}`), pack(t, `{"type":2,"nsp":"/","id":1e300,"data":["x"]}`), pack(t, `{"type":2,"nsp":"/","id":true,"data":["x"]}`),
			pack(t, `{"type":3,"nsp":"/","data":[]}`), pack(t, `{"type":3,"nsp":"/","id":null,"data":[]}`), pack(t, `{"type":0,"nsp":"/","id":1}`), pack(t, `{"type":1,"nsp":"/","id":1}`),
			"\x84\xa4type\x02\xa3nsp\xa1/\xa4data\x91\xa1x\xa2id\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", // NaN
			"\x84\xa4type\x02\xa3nsp\xa1/\xa4data\x91\xa1x\xa2id\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
		}},
		{wire.Policy, []string{
			pack(t, `{"type":2,"nsp":"/`+strings.Repeat("x", 128)+`","data":["x"]}`), pack(t, `{"type":2,"nsp":"/","data":["connect"]}`), pack(t, `{"type":2,"nsp":"/","data":["removeListener",1]}`),
			pack(t, `{"type":2,"nsp":"/","data":["x"`+strings.Repeat(",1", 257)+`]}`), pack(t, `{"type":3,"nsp":"/","id":1,"data":[1`+strings.Repeat(",1", 256)+`]}`),
		}},
		{wire.TooBig, []string{pack(t, `{"type":0,"nsp":"/x","data":{"a":"`+strings.Repeat("x", 64<<10)+`"}}`), pack(t, `{"type":0,"nsp":"/x","data":{"a":"`+strings.Repeat(`\u0001`, 11<<10)+`"}}`)}},
		{wire.BadData, []string{
			"", "\x90", "\xc0", "\xa1x", "2[\"x\"]", "\x81", "\x82\xa4type\x01\xa3nsp", "\x82\xa4type\x01\xa3nsp\xa1/\x00", "\xdf\xff\xff\xff\xff", "\xdd\xff\xff\xff\xff\x00\x00\x00", "\xc6\xff\xff\xff\xff",
			event + "\x92\xa1x" + long, event + "\x92\xa1x\xc6\xff\xff\xff\xff", event + "\x92\xa1x\xdd\xff\xff\xff\xff", event + "\x92\xa1x\xdf\x80\x00\x00\x00", event + "\xdd\x7f\xff\xff\xff\xa1x",
			event + "\x92\xa1x\xc1", event + "\x92\xa1x\xc7\x01\x01A", event + "\x92\xa1x\xc7\x02\x00A", event + "\x92\xa1x\xc9\xff\xff\xff\xff\x00", event + "\x92\xa1x\xc7", event + "\x92\xa1x\xc7\x00", event + "\x92\xa1x\xd4\x00", event + "\x92\xa1x\xd4\x01\x00",
			event + "\x92\xa1x\xd5\x00ab", event + "\x92\xa1x\xd6\x00abcd", event + "\x92\xa1x\xd6\xffabcd", event + "\x92\xa1x\xd7\xffabcdefgh", event + "\x92\xa1x\xd7\x00abcdefg", event + "\x92\xa1x\xd8\x000123456789abcdef",
			event + "\x92\xa1x" + strings.Repeat("\x91", 14) + "\x90", strings.Repeat("\x91", 100_000) + "\x90", strings.Repeat("\xdd\x00\x00\x00\x01", 100_000),
			event + "\x92\xa1x\xa1\xff", event + "\x92\xa1x\x81\xa1\xff\x01", event + "\x92\xa1x\x81\x90\x01", event + "\x92\xa1x\x81\xc4\x01a\x01", event + "\x92\xa1x\x91\x81\xc0\x01",
			event + "\x90", event + "\x91\x01", event + "\x91\xc4\x01x", event + "\x91\xa0", event + "\x91\xc0", event + "\x91\xa1\x00", event + "\x91\xa1\xff", event + "\xa1x", event + "\x81\xa1x\x01", event + "\xc0",
			pack(t, `{"type":2,"nsp":"/"}`), pack(t, `{"type":3,"nsp":"/","id":1}`), pack(t, `{"type":3,"nsp":"/","id":1,"data":{}}`), pack(t, `{"type":2,"nsp":"/","data":["`+strings.Repeat("x", 257)+`"]}`),
			pack(t, `{"type":0,"nsp":"/x","data":[]}`), pack(t, `{"type":0,"nsp":"/x","data":"x"}`), pack(t, `{"type":0,"nsp":"/x","data":false}`), pack(t, `{"type":1,"nsp":"/x","data":{}}`),
			"\x83\xa4type\x03\xa3nsp\xa1/\xa2id\x01", "\x83\xa4type\x02\xa3nsp\xa1/\x01\x02",
			pack(t, `{"type":2,"data":["x"]}`), pack(t, `{"type":2,"nsp":"","data":["x"]}`), pack(t, `{"type":2,"nsp":"chat","data":["x"]}`), pack(t, `{"type":2,"nsp":5,"data":["x"]}`), pack(t, `{"type":2,"nsp":"/a,b","data":["x"]}`), pack(t, `{"type":2,"nsp":"/\u0000","data":["x"]}`),
			"\x83\xa4type\x02\xa3nsp\xa2/\xff\xa4data\x91\xa1x",
		}},
	} {
		for _, in := range test.in {
			_, err := joined(t, Packed).feed(masked(ws.Binary, in))
			wantCode(t, in, err, test.code)
		}
	}
}

func TestAClaimInMsgpackIsItsOwn(t *testing.T) {
	frame := masked(ws.Binary, pack(t, `{"type":0,"nsp":"/","data":{"user":"alice"}}`))
	var ev wire.Event
	if _, err := newSession(eio.V4, 1000).Feed(frame, &ev); err != nil {
		t.Fatal(err)
	}
	clear(frame)
	if show(&ev) != `login user=alice auth={"user":"alice"}` {
		t.Error(show(&ev))
	}
}

func TestDatesAreWrittenAsByJSONStringify(t *testing.T) {
	for ms, want := range map[int64]string{
		0: `"1970-01-01T00:00:00.000Z"`, -62167219200000: `"0000-01-01T00:00:00.000Z"`, -62167219200001: `"-000001-12-31T23:59:59.999Z"`,
		253402300799999: `"9999-12-31T23:59:59.999Z"`, 253402300800000: `"+010000-01-01T00:00:00.000Z"`,
		maxDate: `"+275760-09-13T00:00:00.000Z"`, -maxDate: `"-271821-04-20T00:00:00.000Z"`, maxDate + 1: `null`, -maxDate - 1: `null`, math.MinInt64: `null`,
	} {
		got := string(appendDate(nil, ms))
		if got != want {
			t.Errorf("%d: got %s, want %s", ms, got, want)
		}
		var back time.Time
		if len(got) == len(`"1970-01-01T00:00:00.000Z"`) && (json.Unmarshal([]byte(got), &back) != nil || back.UnixMilli() != ms) {
			t.Errorf("%s is not what time.Time reads", got)
		}
	}
}

func TestHeadsOfMsgpackAreRightForAnyLength(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536, 100_000} {
		for _, k := range []packedKind{packedText, packedBin, packedList, packedMap} {
			var b []byte
			if k == packedText {
				b = appendPackedText(nil, strings.Repeat("x", n))
			} else {
				b = appendPackedHead(nil, k, n)
			}
			if got, _, size := packedHead(b); got != k || size != uint64(n) {
				t.Errorf("kind %d of %d: %x is kind %d of %d", k, n, b[:min(len(b), 8)], got, size)
			}
		}
	}
	for shift := range 64 {
		for _, u := range []uint64{1<<shift - 1, 1 << shift} {
			b := appendPackedUint(nil, u)
			if k, size, got := packedHead(b); k != packedUnsigned || size != len(b) || got != u {
				t.Errorf("%d: %x is %d", u, b, got)
			}
		}
	}
	if b := appendPackedText(nil, "a\xffb"); !bytes.Equal(b, []byte("\xa5a\ufffdb")) {
		t.Errorf("%q", b)
	}
	var b []byte
	b = binary.BigEndian.AppendUint32(append(b, 0xd2), uint32(0xfffffffe))
	if k, size, v := packedHead(b); k != packedSigned || size != 5 || int64(v) != -2 {
		t.Errorf("%x is %d", b, int64(v))
	}
}

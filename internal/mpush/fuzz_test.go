package mpush

import (
	"bytes"
	"compress/zlib"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzReader: however the bytes are cut, the same comes out as if they had
// come at once, and memory stays within what came.
func FuzzReader(f *testing.F) {
	v := loadVectors(f)
	var in []byte
	for _, frame := range append(v.ClientFrames, v.ServerFrames...) {
		f.Add([]byte(frame.Frame), []byte{13, 1}, uint16(10240))
		in = append(in, frame.Frame...)
	}
	f.Add(in, []byte{1, 12, 13, 14, 200}, uint16(10240))
	for _, length := range []int32{-1, -1 << 31, 0, 100, 101, 1<<31 - 1} {
		f.Add(claimed(length), []byte{3}, uint16(100))
	}
	f.Fuzz(func(t *testing.T, in, steps []byte, limit uint16) {
		whole := Reader{Max: int(limit)}
		want, wantErr := readPackets(t, &whole, in)

		var cuts []int
		for at := 0; len(steps) > 0 && at < len(in); {
			step := int(steps[len(cuts)%len(steps)])
			at += step
			if at >= len(in) || step == 0 && len(cuts) > len(in) {
				break
			}
			cuts = append(cuts, at)
		}
		for _, cuts := range [][]int{cuts, afterEach(in)} {
			r := Reader{Max: int(limit)}
			got, err := readPackets(t, &r, in, cuts...)
			if err != wantErr || !slices.Equal(got, want) {
				t.Fatalf("cuts %v: %v\ngot   %+v\nwhole %+v, %v", cuts, err, got, want, wantErr)
			}
			if r.Partial() != whole.Partial() {
				t.Fatalf("cuts %v: Partial is %v, whole %v", cuts, r.Partial(), whole.Partial())
			}
			if r.Partial() && cap(r.part.body) > min(int(limit), max(2*len(in), minBuffer)) {
				t.Fatalf("cuts %v: %d bytes kept after %d, limit %d", cuts, cap(r.part.body), len(in), limit)
			}
		}

		// What was read is what was there.
		var back []byte
		for _, p := range want {
			if p.beat {
				back = append(back, Beat)
			} else {
				back = append(AppendHeader(back, p.Header), p.body...)
			}
		}
		if !bytes.HasPrefix(in, back) {
			t.Fatalf("read\n%x of\n%x", back, in)
		}
	})
}

// FuzzBodies: whatever decodes is appended as it was, but for what is behind
// the last field, and decodes to the same again.
func FuzzBodies(f *testing.F) {
	v := loadVectors(f)
	for _, frame := range append(v.ClientFrames, v.ServerFrames...) {
		f.Add([]byte(frame.Plain))
	}
	for _, b := range someBodies() {
		f.Add(b.Append(nil))
	}
	for _, p := range v.Prefix {
		f.Add([]byte(p.Prefix))
	}
	f.Add([]byte("\x7f\xff\x7f\xff\xff\xff"))
	f.Add([]byte("\x00\x01u\x80\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		for _, like := range someBodies() {
			b := newLike(like)
			err := b.Decode(in)
			if err != nil {
				if err != ErrBody {
					t.Fatalf("%T: %v", b, err)
				}
				continue
			}
			wire := b.Append(nil)
			if !bytes.HasPrefix(in, wire) {
				t.Fatalf("%T: %+v of\n%x is appended as\n%x", b, b, in, wire)
			}
			again := newLike(b)
			if err := again.Decode(wire); err != nil || !reflect.DeepEqual(again, b) {
				t.Fatalf("%T: %+v, then %+v, %v", b, b, again, err)
			}
			if err := newLike(b).Decode(in[:len(wire)-1]); err != ErrBody {
				t.Fatalf("%T: a byte less is taken too", b)
			}
		}
		if !bytes.Equal(in, before) {
			t.Fatal("the body was written to")
		}
	})
}

// FuzzInflate holds Inflate against compress/zlib, and inflates what was
// deflated.
func FuzzInflate(f *testing.F) {
	for _, b := range [][]byte{nil, []byte("short"), make([]byte, 70_000), bytes.Repeat([]byte("abc"), 500)} {
		f.Add(deflated(b), uint16(1024))
	}
	good := deflated([]byte("a body"))
	f.Add(good[:len(good)-1], uint16(6))
	f.Add(append(bytes.Clone(good), 'x'), uint16(6))
	f.Add(good, uint16(5))
	f.Add(deflated(good), uint16(100))
	for _, frame := range loadVectors(f).ServerFrames {
		if frame.Name == "push compressed plain" {
			f.Add([]byte(frame.Frame[HeaderLen:]), uint16(12000))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, limit uint16) {
		got, err := Inflate(in, int(limit))
		if len(got) > int(limit) || err != nil && got != nil || err != nil && err != ErrInflate && err != ErrInflated {
			t.Fatalf("%d bytes, limit %d, %v", len(got), limit, err)
		}
		want, wantErr := oracle(in, int(limit))
		if err != wantErr || !bytes.Equal(got, want) {
			t.Fatalf("limit %d: %d bytes, %v; compress/zlib %d, %v", limit, len(got), err, len(want), wantErr)
		}
		back, err := Inflate(deflated(in), len(in))
		if err != nil || !bytes.Equal(back, in) {
			t.Fatalf("deflated and inflated: %d of %d bytes, %v", len(back), len(in), err)
		}
	})
}

// oracle is Inflate in a few simple lines.
func oracle(in []byte, limit int) ([]byte, error) {
	src := bytes.NewReader(in)
	z, err := zlib.NewReader(src)
	if err != nil {
		return nil, ErrInflate
	}
	out, err := io.ReadAll(io.LimitReader(z, int64(limit)+1))
	switch {
	case len(out) > limit:
		return nil, ErrInflated
	case err != nil || src.Len() != 0:
		return nil, ErrInflate
	}
	return out, nil
}

// FuzzJSON: what is parsed is what encoding/json says, and
// what is encoded reads back.
func FuzzJSON(f *testing.F) {
	for _, v := range loadVectors(f).JSON {
		f.Add([]byte(v.Text))
	}
	for _, s := range []string{
		`{"cmd":2,"flags":16,"sessionId":1,"body":{"deviceId":"d","osName":"web","osVersion":"1","clientVersion":"2"}}`,
		`{"cmd":5,"flags":16,"sessionId":2,"body":{"userId":"u","tags":["a","b"],"data":"t"}}`,
		`{"cmd":5,"sessionId":2,"body":{"userId":"u","tags":"a,b"}}`,
		`{"cmd":15,"flags":24,"sessionId":3,"body":{"content":"<x>\u0000"}}`,
		`{"cmd":23,"flags":16,"sessionId":4,"body":null}`,
		`{}`, `[]`, `{"cmd":null}`, `{"cmd":1.0}`, `{"CMD":1,"cmd":"x"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseJSON(text)
		if err != nil {
			if !errors.Is(err, ErrJSON) || !reflect.DeepEqual(p, JSONPacket{}) {
				t.Fatalf("%+v, %v", p, err)
			}
		} else {
			var top map[string]json.RawMessage
			if json.Unmarshal(text, &top) != nil || top == nil {
				t.Fatalf("%q is no object, and gives %+v", text, p)
			}
			if !p.HasFlags && p.Flags != 0 || p.Body != nil && !json.Valid(p.Body) {
				t.Fatalf("%q: %+v", text, p)
			}
			again := append([]byte(`{"body":`), p.Body...)
			if p.Body == nil {
				again = append(again, "null"...)
			}
			again = appendTail(append(again, ','), 0, Cmd(p.Cmd), Flags(p.Flags), p.ID)
			back, err := ParseJSON(again)
			if err != nil || back.Cmd != int32(Cmd(p.Cmd)) || back.ID != p.ID || Flags(back.Flags) != Flags(p.Flags)|FlagJSON || !bytes.Equal(back.Body, p.Body) {
				t.Fatalf("%q: %+v, then %s: %+v, %v", text, p, again, back, err)
			}
		}

		for _, body := range [][]byte{text, p.Body} {
			var h Handshake
			var b Bind
			if err := h.DecodeJSON(body); err != nil && err != ErrJSON {
				t.Fatal(err)
			}
			if err := b.DecodeJSON(body); err != nil && err != ErrJSON {
				t.Fatal(err)
			}
			if _, err := PushJSON(body); err != nil && err != ErrJSON {
				t.Fatal(err)
			}
		}

		// Anything at all as a content, and as a reason.
		s := string(text)
		e := Error{CmdBind, CodeHandler, s, s}
		in, err := ParseJSON(e.AppendJSON(nil, 1))
		if err != nil || s != "" && !json.Valid(in.Body) {
			t.Fatalf("%q as a reason: %v", s, err)
		}
		var reason struct{ Reason, Data string }
		json.Unmarshal(in.Body, &reason)
		if want := strings.ToValidUTF8(s, "\uFFFD"); reason.Reason != want || reason.Data != want {
			t.Fatalf("%q as a reason reads back as %q", s, reason)
		}
		push, ok := AppendPushJSON(nil, 0, 1, s)
		if ok != utf8.ValidString(s) {
			t.Fatalf("%q as a content: %v", s, ok)
		}
		if ok {
			in, err := ParseJSON(push)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := PushJSON(in.Body); err != nil || got != s {
				t.Fatalf("%q as a content reads back as %q, %v", s, got, err)
			}
		}
	})
}

// FuzzDecrypt: neither RSA nor AES panics, what opens can be sealed again, and
// RSA always gives as much as it might have.
func FuzzDecrypt(f *testing.F) {
	v := loadVectors(f)
	stock, c := mustPrivate(f, StockPrivateKey), v.cipher(f)
	for _, frame := range append(v.ClientFrames, v.ServerFrames...) {
		if frame.Flags&FlagCrypto != 0 && frame.Frame != nil {
			f.Add([]byte(frame.Frame[HeaderLen:]))
		}
	}
	for _, block := range wrongBlocks(stock) {
		f.Add(block)
	}
	f.Add(c.Append(nil, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		got := stock.Decrypt(in)
		if most := len(stock.n) - padding; len(got) > most*min(max(1, len(in)/len(stock.n)), maxBlocks) {
			t.Fatalf("%d bytes become %d", len(in), len(got))
		}
		if again := stock.Decrypt(in); !bytes.Equal(again, got) || !bytes.Equal(in, before) {
			t.Fatalf("%x, and again %x", got, again)
		}

		plain, err := c.Open(in)
		if err != nil {
			if err != ErrDecrypt || plain != nil {
				t.Fatalf("%x, %v", plain, err)
			}
			return
		}
		if back := c.Append(nil, plain); !bytes.Equal(back, before) {
			t.Fatalf("%x opens and is sealed as %x", before, back)
		}
	})
}

package eio

import (
	"slices"
	"testing"
)

// fuzzBody reads in as a body and holds to what came out of it: it is no more
// than in, it is valid, and a client reads it back from an answer's body.
func fuzzBody(t *testing.T, rev Revision, binary bool, in []byte, limit uint16) []packet {
	t.Helper()
	all, err := readBody(t, rev, int(limit), binary, string(in))
	size := 0
	for _, p := range all {
		size += 1 + len(p.data)
		if p.t < Open || p.t > Noop || p.op != 0 || p.binary && p.t != Message {
			t.Fatalf("a packet is %v", p)
		}
		n := len(p.data)
		if !p.binary || rev == V3 {
			n++
		}
		if n > int(limit) {
			t.Fatalf("%d bytes over the limit %d: %v", n, limit, p)
		}
	}
	if size > len(in) || len(all) > MaxPackets {
		t.Fatalf("%d packets of %d bytes from %d", len(all), size, len(in))
	}

	// The limit is all that it does.
	if more, moreErr := readBody(t, rev, -1, binary, string(in)); err != errTooBig && (!slices.Equal(more, all) || moreErr != err) {
		t.Fatalf("limit %d: %v, %v\nwithout %v, %v", limit, all, err, more, moreErr)
	}
	if len(all) == 0 {
		return all
	}
	for _, text64 := range []bool{false, true} {
		body, octets := AppendBody(nil, rev, text64, queued(rev, all))
		if len(body) > 2*size+16*len(all) {
			t.Fatalf("a body of %d bytes for %d packets of %d", len(body), len(all), size)
		}
		if got, err := asClient(rev, octets, body); !slices.Equal(got, all) || err != nil {
			t.Fatalf("a client reads %v, %v\nwant %v", got, err, all)
		}
		if got, err := readBody(t, rev, int(limit), octets, string(body)); !slices.Equal(got, all) || err != nil {
			t.Fatalf("read again %v, %v\nwant %v", got, err, all)
		}
	}
	return all
}

func FuzzTextPayloadV3(f *testing.F) {
	for _, in := range []string{"6:4hello2:4€10:b4AQIDBA==", "3:4😀0:1:2", "30:4aaaaaaaaé€😀bbbbbbbbccccccc😀1:2", "2:4😀", "9999999999:4", "0:", "", ":", "2:4\xff", "1:7"} {
		f.Add([]byte(in), uint16(1000))
	}
	f.Fuzz(func(t *testing.T, in []byte, limit uint16) { fuzzBody(t, V3, false, in, limit) })
}

func FuzzBinaryPayloadV3(f *testing.F) {
	for _, in := range []string{"\x00\x06\xff4hello\x00\x04\xff4€\x01\x05\xff\x04\x01\x02\x03\x04", "\x01\x01\xff\x04", "\x00\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\xff4", "\x00\xff", "\x02", ""} {
		f.Add([]byte(in), uint16(1000))
	}
	f.Fuzz(func(t *testing.T, in []byte, limit uint16) {
		all := fuzzBody(t, V3, true, in, limit)
		whole, err := readBody(t, V3, -1, true, string(in))
		if err != nil || len(whole) != len(all) || !slices.ContainsFunc(all, func(p packet) bool { return p.binary }) {
			return
		}
		// There is one form for everything but lengths with zeros in front.
		if body, _ := AppendBody(nil, V3, false, queued(V3, all)); len(body) > len(in) || len(body) == len(in) && string(body) != string(in) {
			t.Fatalf("%q became %q", in, body)
		}
	})
}

func FuzzPayloadV4(f *testing.F) {
	for _, in := range []string{"4hello\x1e4€\x1ebAQIDBA==", "3\x1e4\x1e1", "b", "4\x1e", "\x1e", "", "7", "bA\n===", "b+/+/", "4\xff"} {
		f.Add([]byte(in), uint16(1000))
	}
	f.Fuzz(func(t *testing.T, in []byte, limit uint16) { fuzzBody(t, V4, false, in, limit) })
}

// FuzzFrames: however the bytes are cut, the same packets come out as if they
// had come at once.
func FuzzFrames(f *testing.F) {
	for _, rev := range []Revision{V3, V4} {
		in, _ := session(rev)
		f.Add(in, []byte{1, 2, 3, 50}, uint16(1000), rev == V3)
	}
	for _, in := range []string{"7", "", "b4AQID", "bAQID", "4\xff"} {
		f.Add(client(textFrame, in), []byte{3}, uint16(1000), true)
		f.Add(client(binaryFrame, in), []byte{7}, uint16(2), false)
	}
	f.Fuzz(func(t *testing.T, in, steps []byte, limit uint16, three bool) {
		rev := V4
		if three {
			rev = V3
		}
		whole := NewReader(rev, int(limit))
		want, wantErr := read(t, &whole, in)

		var cuts, every []int
		for at, i := 0, 0; len(steps) > 0 && i < 2*len(in); i++ {
			if at += int(steps[i%len(steps)]); at >= len(in) {
				break
			}
			cuts = append(cuts, at)
		}
		for i := range in {
			every = append(every, i)
		}
		for _, cuts := range [][]int{cuts, every} {
			r := NewReader(rev, int(limit))
			got, err := read(t, &r, in, cuts...)
			if !slices.Equal(got, want) || err != wantErr {
				t.Fatalf("cuts %v: %v, %v\nwhole %v, %v", cuts, got, err, want, wantErr)
			}
			if r.Partial() != whole.Partial() {
				t.Fatalf("cuts %v: Partial is %v, whole %v", cuts, r.Partial(), whole.Partial())
			}
		}
	})
}

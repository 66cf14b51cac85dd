package members

import (
	"bytes"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/embedpush/push/internal/directory"
)

func TestMetadataAndGoodbyeAreReadAsTheyWereWritten(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		m := Member{
			Origin:   directory.Origin{ID: strings.Repeat("x", 1+rnd.IntN(directory.MaxID)), Epoch: rnd.Uint64N(maxEpoch + 1)},
			Draining: rnd.IntN(2) == 0,
		}
		if n := rnd.IntN(MaxExtra + 1); n > 0 {
			m.Extra = bytes.Repeat([]byte{byte(n)}, n)
		}
		b := packMeta(m)
		if got, err := unpackMeta(b); err != nil || !got.equal(m) || (got.Extra == nil) != (m.Extra == nil) {
			t.Fatalf("%+v was read as %+v, %v", m, got, err)
		}
		for i := range b {
			if got, err := unpackMeta(b[:i]); err == nil {
				t.Fatalf("the first %d of %d bytes were read as %+v", i, len(b), got)
			}
		}
		if got, err := unpackBye(packBye(m.Origin)); err != nil || got != m.Origin {
			t.Fatalf("the goodbye of %v was read as %v, %v", m.Origin, got, err)
		}
	}
}

func TestMetadataOfOtherVersionsIsRead(t *testing.T) {
	for what, c := range map[string]struct {
		b     []byte
		extra string // "-": refused
	}{
		"before there was an extra": {pack(metaProto, "x", 1, "", 0, 0), ""},
		"no extra":                  {pack(metaProto, "x", 1, "", 0, 0, nil), ""},
		"an empty one":              {pack(metaProto, "x", 1, "", 0, 0, []byte{}), ""},
		"one":                       {pack(metaProto, "x", 1, "", 0, 0, []byte("e")), "e"},
		"one and more":              {pack(metaProto, "x", 1, "", 0, 0, []byte("e"), 7, "more"), "e"},
		"a text in its place":       {pack(metaProto, "x", 1, "", 0, 0, "e"), ""},
		"a list in its place":       {pack(metaProto, "x", 1, "", 0, 0, []int{1}), ""},
		"the next version":          {pack(metaProto+1, "x", 1, "", 0, 0, []byte("e")), "-"},
		"one that is too long":      {pack(metaProto, "x", 1, "", 0, 0, make([]byte, MaxExtra+1)), "-"},
		"a state that is none":      {pack(metaProto, "x", 1, "", 0, "up"), "-"},
	} {
		m, err := unpackMeta(c.b)
		switch {
		case (err != nil) != (c.extra == "-"):
			t.Errorf("%s: %+v, %v", what, m, err)
		case err == nil && (string(m.Extra) != c.extra || (m.Extra == nil) != (c.extra == "")):
			t.Errorf("%s: extra %q, want %q", what, m.Extra, c.extra)
		}
	}
}

func FuzzMeta(f *testing.F) {
	f.Add(packMeta(Member{Origin: directory.Origin{ID: "web-1", Epoch: 1_700_000_000_000}, Extra: []byte("extra")}))
	f.Add(packMeta(Member{Origin: directory.Origin{ID: "web-1", Epoch: maxEpoch}, Draining: true}))
	f.Add(pack(metaProto, "x", uint64(math.MaxUint64), "10.0.0.1:1", int64(1<<40), 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		m, err := unpackMeta(b)
		if !bytes.Equal(b, before) {
			t.Error("the input was changed")
		}
		if err != nil {
			return
		}
		if len(m.Extra) > MaxExtra || len(m.ID) > len(b) {
			t.Errorf("read %+v from %d bytes", m, len(b))
		}
		clear(b)
		again, err := unpackMeta(packMeta(m))
		if len(m.ID) <= directory.MaxID && (err != nil || !again.equal(m)) {
			t.Errorf("%+v was read as %+v, %v", m, again, err)
		}
	})
}

func FuzzBye(f *testing.F) {
	f.Add(packBye(directory.Origin{ID: "web-1", Epoch: 1_700_000_000_000}))
	f.Add(pack(byeKind, "x", 1, "a reason"))
	f.Add(pack(byeKind+1, "x", 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := unpackBye(b)
		if err != nil {
			return
		}
		if again, err := unpackBye(packBye(o)); len(o.ID) <= directory.MaxID && (err != nil || again != o) {
			t.Errorf("%v was read as %v, %v", o, again, err)
		}
	})
}

func FuzzName(f *testing.F) {
	f.Add("web-1~loyw3v28")
	f.Add("~")
	f.Add("x~zzzzzzzzzzzzzzzz")
	f.Fuzz(func(t *testing.T, name string) {
		o, err := parseName(name)
		if err != nil || !ValidID(o.ID) {
			return
		}
		if again, err := parseName(runName(o)); err != nil || again != o {
			t.Errorf("%q is %v and then %v, %v", name, o, again, err)
		}
	})
}

package directory

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// checked is a set beside a map that does the same.
type checked struct {
	t     testing.TB
	set   *set
	model map[string]uint64 // record without tail → hash
}

func newChecked(t testing.TB) *checked {
	return &checked{t: t, set: new(set), model: make(map[string]uint64)}
}

func (c *checked) add(h uint64, p Place) {
	rec := appendPlace(nil, join, p)
	_, there := c.model[string(rec)]
	if c.set.add(h, rec[0], rec[1:], nil) == there {
		c.t.Fatalf("add of %q: %v, and it was there: %v", rec, !there, there)
	}
	c.model[string(rec)] = h
}

func (c *checked) remove(h uint64, p Place) {
	rec := appendPlace(nil, join, p)
	_, there := c.model[string(rec)]
	if c.set.remove(h, rec[0], rec[1:]) != there {
		c.t.Fatalf("remove of %q: %v, and it was there: %v", rec, !there, there)
	}
	delete(c.model, string(rec))
}

func (c *checked) check() {
	c.t.Helper()
	for rec, h := range c.model {
		if !c.set.has(h, rec[0], []byte(rec[1:])) {
			c.t.Fatalf("%q is not in the set", rec)
		}
	}
	n := 0
	for i := range c.set.shards {
		sh := &c.set.shards[i]
		live, used := 0, 0
		for rest := sh.appendAll(nil); len(rest) > 0; {
			_, size := splitOp(rest)
			if _, ok := c.model[string(rest[:size])]; !ok {
				c.t.Fatalf("%q is in the set", rest[:size])
			}
			rest = rest[size:]
			live++
		}
		for _, slot := range sh.slots {
			if slot != 0 {
				used++
			}
		}
		if live != sh.n || used != sh.n {
			c.t.Fatalf("shard %d has %d records and %d slots, and counts %d", i, live, used, sh.n)
		}
		n += live
	}
	if n != len(c.model) || c.set.n != n {
		c.t.Fatalf("%d records, counted as %d, want %d", n, c.set.n, len(c.model))
	}
}

func TestSetIsASet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	c := newChecked(t)
	place := func() (uint64, Place) {
		n := r.IntN(3000)
		p := Place{Kind(n % 3), fmt.Sprintf("%0*d", 1+n%200, n)}
		h := sum(0, []byte(p.Name))
		if n%2 == 0 {
			h &= 0xff00_0000_0000_000f // many want the same slot of few shards
		}
		return h, p
	}
	for round := range 6 {
		for i := range 20_000 {
			h, p := place()
			if r.IntN(10) < []int{8, 5, 2, 9, 1, 0}[round] {
				c.add(h, p)
			} else {
				c.remove(h, p)
			}
			if i%2000 == 0 {
				c.check()
			}
		}
		c.check()
	}
	for rec, h := range c.model {
		op, _ := splitOp([]byte(rec))
		c.remove(h, Place{op.kind, string(op.name)})
	}
	c.check()
	for i := range c.set.shards {
		if sh := &c.set.shards[i]; sh.slots != nil || sh.arena != nil {
			t.Fatalf("an empty shard keeps %d slots and %d bytes", len(sh.slots), cap(sh.arena))
		}
	}
}

func TestSetGivesMemoryBack(t *testing.T) {
	c := newChecked(t)
	add := func(i int) (uint64, Place) {
		p := Place{0, fmt.Sprintf("user-%08d", i)}
		return sum(0, []byte(p.Name)), p
	}
	for i := range 100_000 {
		c.add(add(i))
	}
	for i := range 99_000 {
		c.remove(add(i))
	}
	bytes := 0
	for i := range c.set.shards {
		bytes += 8*cap(c.set.shards[i].slots) + cap(c.set.shards[i].arena)
	}
	if bytes > 1000*300 {
		t.Errorf("1 000 of 100 000 records keep %d bytes", bytes)
	}
	for round := range 50 { // as many come as go
		for i := range 1000 {
			c.remove(add(99_000 + round*1000 + i))
			c.add(add(100_000 + round*1000 + i))
		}
	}
	c.check()
	bytes = 0
	for i := range c.set.shards {
		bytes += 8*cap(c.set.shards[i].slots) + cap(c.set.shards[i].arena)
	}
	if bytes > 1000*300 {
		t.Errorf("after 50 000 came and went 1 000 records keep %d bytes", bytes)
	}
}

// FuzzSet reads pairs of a command and a short name.
func FuzzSet(f *testing.F) {
	f.Add([]byte("\x01a\x01b\x01c\x00b\x11b\x01d\x01e\x00a\x00c"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := newChecked(t)
		for ; len(in) >= 2; in = in[2:] {
			p := Place{Kind(in[0] >> 4), string(slices.Repeat(in[1:2], int(in[0]>>1&7)*20))}
			h := sum(0, []byte(p.Name)) & 0x0100_0000_e000_0001 // two shards, few homes
			if in[0]&1 == 1 {
				c.add(h, p)
			} else {
				c.remove(h, p)
			}
		}
		c.check()
	})
}

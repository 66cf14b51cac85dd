package directory

import (
	"bytes"
	"testing"
	"time"
)

// reference does ops one by one on a map.
type reference map[Place]bool

func (r reference) do(ops []byte) (n uint64) {
	for ; len(ops) > 0; n++ {
		op, size := splitOp(ops)
		ops = ops[size:]
		p := Place{op.kind, string(op.name)}
		switch op.what {
		case join:
			r[p] = true
		case leave:
			delete(r, p)
		}
	}
	return n
}

func (r reference) hash() (h uint64) {
	for p := range r {
		h += sum(p.Kind, appendPlace(nil, join, p)[1:])
	}
	return h
}

// want holds b's places at a against the reference.
func (r reference) want(t *testing.T, a node, b Origin) {
	t.Helper()
	for p := range r {
		if got := a.Locate(nil, p); len(got) != 1 || got[0] != b {
			t.Fatalf("%v is at %v", p, got)
		}
	}
	if _, got := a.Have(b); got != r.hash() || a.origins[b].set.n != len(r) {
		t.Fatalf("%d places with hash %x, want %d and %x", a.origins[b].set.n, got, len(r), r.hash())
	}
}

// again encodes ops that were read anew.
func again(ops []byte) (out []byte) {
	for len(ops) > 0 {
		op, n := splitOp(ops)
		ops = ops[n:]
		if p := (Place{op.kind, string(op.name)}); op.what == bind {
			out = appendBind(out, p, string(op.class), op.stamp, op.device)
		} else {
			out = appendPlace(out, op.what, p)
		}
	}
	return out
}

func seeds(f *testing.F) node {
	b := newNode(f, "b", 1)
	b.Join(user("alice"))
	b.Join(Place{rooms, "r"})
	b.Bind(user("alice"), "web", 0, time.UnixMilli(1))
	b.Leave(Place{rooms, "r"})
	b.Join(Place{Kind: 15})
	return b
}

func FuzzMergeDelta(f *testing.F) {
	b := seeds(f)
	f.Add(b.delta(0))
	f.Add(b.delta(3))
	f.Fuzz(func(t *testing.T, in []byte) {
		a := newNode(t, "a", 1)
		a.Up(b.Self())
		a.Bind(user("alice"), "web", 0, time.UnixMilli(0))
		news, err := a.MergeDelta(b.Self(), in, start)
		seq, _ := a.Have(b.Self())
		want := make(reference)
		if err != nil || news.Need {
			if err != nil && err != ErrMalformed || seq != 0 {
				t.Fatalf("%v, and seq %d", err, seq)
			}
			want.want(t, a, b.Self())
			return
		}
		d, _ := readDelta(in)
		if want.do(d.ops) != seq {
			t.Fatalf("seq %d", seq)
		}
		want.want(t, a, b.Self())
		if len(news.Lost) > 1 {
			t.Fatalf("lost %v", news.Lost)
		}
		if out := append(appendDelta(nil, d.base, d.clock), again(d.ops)...); !bytes.Equal(out, in) {
			t.Fatalf("%q became %q", in, out)
		}
	})
}

func FuzzMergeSnap(f *testing.F) {
	b := seeds(f)
	f.Add(b.snapshot()[0], b.snapshot()[0])
	b.own.partBytes = 28
	parts := b.snapshot()
	f.Add(parts[0], parts[1])
	f.Add(parts[1], parts[0])
	f.Fuzz(func(t *testing.T, first, second []byte) {
		a := newNode(t, "a", 1)
		a.Up(b.Self())
		a.Bind(user("alice"), "web", 0, time.UnixMilli(0))
		var (
			id, next, wantSeq uint64
			over              bool
			ops               []byte
			want              = make(reference)
			losses            int
		)
		for _, in := range [][]byte{first, second} {
			news, err := a.MergeSnap(b.Self(), in, start)
			p, bad := readSnap(in)
			if bad == nil && !p.clock.sane(start) {
				bad = ErrMalformed
			}
			if err != bad {
				t.Fatal(err, bad)
			}
			losses += len(news.Lost)
			if err != nil {
				continue
			}
			if out := appendSnap(nil, snapFrame{p.id, p.part, p.clock, p.last, p.seq, p.hash, again(p.ops)}); !bytes.Equal(out, in) {
				t.Fatalf("%q became %q", in, out)
			}
			if p.id > id {
				id, next, over, ops = p.id, 0, false, nil
			}
			needed := false
			switch {
			case p.id < id || p.part < next || over:
			case p.part > next:
				over, needed = true, true
			default:
				next++
				ops = append(ops, p.ops...)
				if !p.last {
					break
				}
				over = true
				fresh := make(reference)
				fresh.do(ops)
				if needed = fresh.hash() != p.hash; !needed && (p.seq > wantSeq || p.seq == wantSeq && fresh.hash() != want.hash()) {
					want, wantSeq = fresh, p.seq
				}
			}
			if news.Need != needed {
				t.Fatalf("needed %v, want %v", news.Need, needed)
			}
			if seq, _ := a.Have(b.Self()); seq != wantSeq {
				t.Fatalf("seq %d, want %d", seq, wantSeq)
			}
			want.want(t, a, b.Self())
		}
		if losses > 1 {
			t.Fatalf("lost %d times", losses)
		}
	})
}

func FuzzMergeDigest(f *testing.F) {
	b := seeds(f)
	b.Up(Origin{"c", 2})
	b.Up(Origin{"long-name.of_a-node", 1 << 60})
	f.Add(b.AppendDigest(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		a := newNode(t, "a", 1)
		a.Up(b.Self())
		a.Up(Origin{"c", 2})
		stale, err := a.MergeDigest(nil, in)
		if err != nil && (err != ErrMalformed || len(stale) > 0) {
			t.Fatal(stale, err)
		}
		if len(stale) > len(in)/digestEntry {
			t.Fatalf("%d stale origins of %d bytes", len(stale), len(in))
		}
		for i, s := range stale {
			if s.Origin != b.Self() && s.Origin != (Origin{"c", 2}) || s.Diverged != (s.Behind == 0) || i > 0 && s.Behind > stale[i-1].Behind {
				t.Fatalf("stale %+v", stale)
			}
		}
	})
}

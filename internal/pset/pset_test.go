package pset

import (
	"math/rand/v2"
	"testing"
)

type thing struct{ key uint64 }

// hashes of different quality: the last makes everything collide.
var hashes = map[string]func(uint64) uint64{
	"good":  func(k uint64) uint64 { return k * 0x9E3779B97F4A7C15 },
	"poor":  func(k uint64) uint64 { return k % 7 << 61 },
	"end":   func(k uint64) uint64 { return ^(k % 3) }, // all want the last slots, and run over the end
	"equal": func(k uint64) uint64 { return 0 },
}

// TestSetIsLikeAMap under random additions and removals.
func TestSetIsLikeAMap(t *testing.T) {
	for name, mix := range hashes {
		t.Run(name, func(t *testing.T) {
			hash := func(e *thing) uint64 { return mix(e.key) }
			r := rand.New(rand.NewPCG(1, 2))
			var s Set[*thing]
			want := map[uint64]*thing{}
			for step := range 20_000 {
				k := uint64(r.IntN(200))
				if step/2000%2 == 1 {
					k %= 20 // it shrinks
				}
				got := s.Get(mix(k), func(e *thing) bool { return e.key == k })
				if got != want[k] {
					t.Fatalf("step %d: got %v, want %v", step, got, want[k])
				}
				switch {
				case got == nil:
					want[k] = &thing{k}
					s.Add(want[k], hash)
				case r.IntN(2) == 0:
					s.Remove(got, hash)
					delete(want, k)
					s.Remove(got, hash) // nothing
				}
				if step/2000%2 == 1 {
					for k, e := range want {
						if k >= 20 {
							s.Remove(e, hash)
							delete(want, k)
						}
					}
				}
				if s.Len() != len(want) {
					t.Fatalf("step %d: %d members, want %d", step, s.Len(), len(want))
				}
				if size := len(s.slots); s.n > 0 && (4*s.n > 3*size || size > 64 && 8*s.n < size) {
					t.Fatalf("step %d: %d members in %d slots", step, s.n, size)
				}
			}
			for e := range s.All {
				if want[e.key] != e {
					t.Fatalf("yielded %v, which is not in it", e)
				}
				delete(want, e.key)
			}
			if len(want) > 0 {
				t.Fatalf("%d members were not yielded", len(want))
			}
		})
	}
}

func TestEmptySetHoldsNothing(t *testing.T) {
	var s Set[*thing]
	hash := func(e *thing) uint64 { return e.key }
	e := &thing{1}
	if s.Remove(e, hash); s.Get(1, func(*thing) bool { return true }) != nil {
		t.Error("found something")
	}
	s.Add(e, hash)
	s.Remove(e, hash)
	if s.slots != nil {
		t.Errorf("%d slots", len(s.slots))
	}
}

func BenchmarkGet(b *testing.B) {
	const n = 200
	var s Set[*thing]
	hash := func(e *thing) uint64 { return e.key * 0x9E3779B97F4A7C15 }
	for k := range uint64(n) {
		s.Add(&thing{k}, hash)
	}
	k := uint64(0)
	for b.Loop() {
		if k++; k == n {
			k = 0
		}
		if s.Get(k*0x9E3779B97F4A7C15, func(e *thing) bool { return e.key == k }) == nil {
			b.Fatal(k)
		}
	}
}

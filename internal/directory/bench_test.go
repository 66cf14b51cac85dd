package directory

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
)

// names are users of 12 characters.
func names(n int) []Place {
	all := make([]Place, n)
	for i := range all {
		all[i] = user(fmt.Sprintf("user-%07d", i))
	}
	return all
}

// What the owner does under a place's lock.
func BenchmarkOwn(b *testing.B) {
	a := newNode(b, "a", 1)
	all := names(100_000)
	for _, p := range all[:50_000] {
		a.Join(p)
	}
	b.Run("Join+Leave", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			a.Join(all[50_000+i%50_000])
			a.Leave(all[50_000+i%50_000])
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(2*b.N), "ns/op")
	})
	b.Run("Bind+Unbind", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			p := all[50_000+i%50_000]
			a.Unbind(p, "mobile", a.Bind(p, "mobile", 0, start))
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(2*b.N), "ns/op")
	})
	b.Run("Bind that stays", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			a.Bind(all[i%len(all)], "mobile", 0, start)
		}
	})
}

// A frame of 60 ops read from the ring, and merged into an origin of 100 000
// users.
func BenchmarkDelta(b *testing.B) {
	const perFrame = 60
	o := newNode(b, "o", 1)
	all := names(200_000)
	for _, p := range all[:100_000] {
		o.Join(p)
	}
	a := newNode(b, "a", 1).meet(o)
	a.learnParts(o, o.snapshot())
	var frames [][]byte
	for i := 0; i < 30_000; i += perFrame / 2 {
		from, _, _ := o.Position()
		for j := range perFrame / 2 {
			o.Join(all[100_000+i+j])
			o.Leave(all[i+j])
		}
		frames = append(frames, o.delta(from))
	}
	seq, _, _ := o.Position()
	b.Run("append", func(b *testing.B) {
		var buf []byte
		for i := range b.N {
			buf, _, _ = o.AppendDelta(buf[:0], seq-uint64(1+i%500)*perFrame, 17*perFrame)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(perFrame*b.N), "ns/op")
		b.ReportMetric(float64(len(buf)), "B/frame")
	})
	b.Run("merge", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if i%len(frames) == 0 {
				b.StopTimer()
				f, _ := readDelta(frames[0])
				a.origins[o.Self()].seq = f.base // once more from the beginning
				b.StartTimer()
			}
			if news, err := a.MergeDelta(o.Self(), frames[i%len(frames)], start); err != nil || news.Need {
				b.Fatalf("%+v, %v", news, err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(perFrame*b.N), "ns/op")
	})
}

// A million users on some nodes, each user on one.
func BenchmarkLocate(b *testing.B) {
	const n = 1_000_000
	all := names(n)
	order := rand.New(rand.NewPCG(1, 2)).Perm(n)
	for _, origins := range []int{3, 10, 30} {
		before := heapBytes()
		a := million(b, all, origins)
		each := float64(heapBytes()-before) / n
		var dst []Origin
		b.Run(fmt.Sprintf("%d nodes", origins), func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if dst = a.Locate(dst[:0], all[order[i%n]]); len(dst) != 1 {
					b.Fatal(dst)
				}
			}
			b.ReportMetric(each, "B/user")
		})
		b.Run(fmt.Sprintf("%d nodes, nowhere", origins), func(b *testing.B) {
			for i := range b.N {
				if a.Held(Place{rooms, all[order[i%n]].Name}) {
					b.Fatal("a room")
				}
			}
		})
		if origins == 10 {
			b.Run("Names of a million", func(b *testing.B) {
				for range b.N {
					for range a.Names(users, elsewhere) {
					}
				}
			})
			b.Run("Down and Up", func(b *testing.B) {
				o := a.live[0].Origin
				for range b.N {
					a.Down(o, start)
					a.Up(o)
				}
			})
		}
		runtime.KeepAlive(a)
	}
}

// million is a node that has got snapshots from others.
func million(b *testing.B, all []Place, origins int) node {
	a := newNode(b, "a", 1)
	for i := range origins {
		o := newNode(b, fmt.Sprint("node-", i), 1)
		a.meet(o)
		for j := i; j < len(all); j += origins {
			o.Join(all[j])
		}
		a.learnParts(o, o.snapshot())
	}
	return a
}

func BenchmarkSnapshot(b *testing.B) {
	o := newNode(b, "o", 1)
	for _, p := range names(100_000) {
		o.Join(p)
		o.Bind(p, "mobile", 0, start)
	}
	b.Run("write 100k users and logins", func(b *testing.B) {
		var buf []byte
		size := 0
		for range b.N {
			size = 0
			for s, done := o.Snapshot(), false; !done; {
				buf, _, done = s.Next(buf[:0])
				size += len(buf)
			}
		}
		b.ReportMetric(float64(size)/100_000, "B/user")
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/snapshot")
	})
	parts := o.snapshot()
	b.Run("merge 100k users and logins", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			a := newNode(b, "a", 1).meet(o)
			a.learnParts(o, parts)
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/snapshot")
	})
}

func BenchmarkDigest(b *testing.B) {
	a, c := newNode(b, "a", 1), newNode(b, "b", 1)
	for i := range 100 {
		o := newNode(b, fmt.Sprint("node-", i), 1_700_000_000_000)
		a.meet(o)
		c.meet(o)
	}
	var buf []byte
	var stale []Stale
	for range b.N {
		buf = a.AppendDigest(buf[:0])
		stale, _ = c.MergeDigest(stale[:0], buf)
	}
	b.ReportMetric(float64(len(buf)), "B/100-nodes")
}

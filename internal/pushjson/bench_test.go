package pushjson

import (
	"testing"

	"github.com/embedpush/push/internal/wire"
)

const benchData = `{"id":123456789,"user":"user-000123","text":"hello there, how are you?","x":12.5,"y":7.25,"tags":["a","b","c"]}`

func BenchmarkFeed(b *testing.B) {
	for _, what := range []struct{ name, in string }{
		{"ack", `{"ack":1073741901}`},
		{"event", `{"event":"chat","data":` + benchData + `,"id":5}`},
	} {
		for _, d := range dialects {
			b.Run(what.name+"/"+d.name, func(b *testing.B) {
				s, frame := New(d.Dialect, 1<<16), steady(d.Dialect, message(b, d.Dialect, what.in))
				var ev wire.Event
				b.SetBytes(int64(len(frame)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.Feed(frame, &ev); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkAppendPush(b *testing.B) {
	v := wire.Value{JSON: []byte(benchData)}
	dst := make([]byte, 0, 1024)
	for _, d := range dialects {
		b.Run(d.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				AppendPush(dst, d.Dialect, "order", v, 1<<30, true)
			}
		})
	}
}

func BenchmarkScan(b *testing.B) {
	m := message(b, Msgpack, benchData)
	b.SetBytes(int64(len(m)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Scan(m, maxDepth); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	m, dst := message(b, Msgpack, benchData), make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := AppendJSON(dst, m); err != nil {
			b.Fatal(err)
		}
	}
}

package nodemsg

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/embedpush/push/internal/wire"
)

const benchData = `{"id":123456789,"user":"user-000123","text":"hello there, how are you?","x":12.5,"y":7.25,"tags":["a","b","c"]}`

// large is benchData over and over, up to about size bytes.
func large(size int) []byte {
	all := []byte("[" + benchData)
	for len(all) < size {
		all = append(append(all, ','), benchData...)
	}
	return append(all, ']')
}

func benchPush() *Push {
	return &Push{ID: 123_456, Wait: 5000, Ack: 1, To: Audience{Kind: User, User: "user-000123"}, Event: "order", Value: wire.Value{JSON: []byte(benchData)}}
}

func benchRow() *Row {
	return &Row{New: true, User: "user-000123", Device: "0123456789abcdef", Protocol: "push.json", Conn: 1<<40 + 12345, Settled: true, Status: 2}
}

func BenchmarkAppendPush(b *testing.B) {
	dst := make([]byte, 0, 1024)
	p := benchPush()
	b.Run("event and value", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			dst = AppendPush(dst[:0], p)
		}
	})
	p.Message = AppendMessage(nil, p.Event, p.Value)
	b.Run("message", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			dst = AppendPush(dst[:0], p)
		}
	})
}

func BenchmarkParsePush(b *testing.B) {
	users := make([]string, 1000)
	for i := range users {
		users[i] = fmt.Sprintf("user-%07d", i)
	}
	for _, what := range []struct {
		name   string
		change func(p *Push)
	}{
		{"user", func(p *Push) {}},
		{"bytes", func(p *Push) { p.Value = wire.Value{Bytes: []byte(benchData)} }},
		{"filtered", func(p *Push) {
			p.To = Audience{Kind: All, AnyTag: []string{"vip", "staff"}, OS: []string{"android"}, MinVersion: "2.1", Percent: 10}
		}},
		{"thousand users", func(p *Push) { p.To = Audience{Kind: Users, Users: users} }},
		{"arguments", func(p *Push) {
			p.Value = wire.Value{Args: []wire.Value{{JSON: []byte(benchData)}, {Bytes: []byte(benchData)}}}
		}},
	} {
		p := benchPush()
		what.change(p)
		body := AppendPush(nil, p)
		b.Run(what.name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParsePush(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendResult(b *testing.B) {
	dst := make([]byte, 0, 1024)
	res, row := &Result{ID: 123_456, Done: true, Total: 1}, benchRow()
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendRow(AppendResultHead(dst[:0], res), row)
	}
}

func BenchmarkParseResult(b *testing.B) {
	for _, rows := range []int{1, 100} {
		body := AppendResultHead(nil, &Result{ID: 123_456, Done: true, Total: uint32(rows)})
		for range rows {
			body = AppendRow(body, benchRow())
		}
		b.Run(fmt.Sprintf("%d rows", rows), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				res, err := ParseResult(body)
				if err != nil {
					b.Fatal(err)
				}
				res.Rows.User = "user-000123"
				var row Row
				for res.Rows.Next(&row) {
				}
			}
		})
	}
}

func BenchmarkParseReturn(b *testing.B) {
	ret := &Return{ID: 1, Done: true, N: 100, Seq: 1 << 20}
	for i := range 100 {
		ret.Devices = append(ret.Devices, Device{User: fmt.Sprintf("user-%07d", i), Device: "0123456789abcdef", Protocol: "mpush", OS: "android", Version: "2.1.7", Conn: uint64(i), Tags: []string{"vip", "beta"}})
	}
	body := AppendReturn(nil, ret)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseReturn(body); err != nil {
			b.Fatal(err)
		}
	}
}

// Judging JSON, and what encoding/json needs for it.
func BenchmarkValidJSON(b *testing.B) {
	for _, data := range [][]byte{[]byte(benchData), large(64 << 10)} {
		b.Run(fmt.Sprintf("here/%d", len(data)), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if ok, _ := validJSON(data); !ok {
					b.Fatal("refused")
				}
			}
		})
		b.Run(fmt.Sprintf("encoding_json/%d", len(data)), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if !json.Valid(data) {
					b.Fatal("refused")
				}
			}
		})
	}
}

package sio

import (
	"testing"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

const benchData = `{"id":123456789,"user":"user-000123","text":"hello there, how are you?","x":12.5,"y":7.25,"tags":["a","b","c"]}`

// unmasking frames are such that reading one does not change it: their key is 0.
func unmasking(op ws.Opcode, payload string) []byte {
	b := ws.AppendHeader(nil, op, len(payload))
	b[1] |= 0x80
	b = append(b, 0, 0, 0, 0)
	return append(b, payload...)
}

func BenchmarkEvent(b *testing.B) {
	packed := pack(b, `{"type":2,"nsp":"/","id":12,"data":["chat",`+benchData+`],"options":{"compress":true}}`)
	for _, what := range []struct {
		name string
		form Form
		in   []byte
	}{
		{"ack", New, unmasking(ws.Text, `431073741901[]`)},
		{"text", New, unmasking(ws.Text, `4212["chat",`+benchData+`]`)},
		{"two arguments", New, unmasking(ws.Text, `4212["chat",`+benchData+`,1]`)},
		{"attachment", New, append(unmasking(ws.Text, `451-["chat",`+hole0+`]`), unmasking(ws.Binary, benchData)...)},
		{"attachment inside", New, append(unmasking(ws.Text, `451-["chat",{"a":`+hole0+`}]`), unmasking(ws.Binary, benchData)...)},
		{"packed", Packed, unmasking(ws.Binary, packed)},
	} {
		b.Run(what.name, func(b *testing.B) {
			c := joined(b, what.form)
			b.SetBytes(int64(len(what.in)))
			b.ReportAllocs()
			for b.Loop() {
				var ev wire.Event
				if n, err := c.Feed(what.in, &ev); err != nil || n != len(what.in) || ev.Kind == wire.None {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkAppendEvent(b *testing.B) {
	dst := make([]byte, 0, 1024)
	for _, what := range []struct {
		name string
		v    wire.Value
	}{{"JSON", js(benchData)}, {"bytes", blob(benchData)}, {"both", args(js(benchData), blob(benchData))}} {
		for _, f := range forms {
			b.Run(what.name+"/"+f.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					AppendEvent(dst, f.Form, "/chat", "order", what.v, 1<<30)
				}
			})
		}
	}
}

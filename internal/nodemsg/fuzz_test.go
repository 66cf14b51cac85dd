package nodemsg

import (
	"slices"
	"testing"
)

// fuzz throws bodies at the parser of one kind of message.
func fuzz(f *testing.F, name string) {
	m := &messages[slices.IndexFunc(messages, func(m message) bool { return m.name == name })]
	for _, e := range examples {
		if e.what == name {
			f.Add(m.append(nil, e.m))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) { m.check(t, body) })
}

func FuzzPush(f *testing.F)   { fuzz(f, "Push") }
func FuzzResult(f *testing.F) { fuzz(f, "Result") }
func FuzzCall(f *testing.F)   { fuzz(f, "Call") }
func FuzzReturn(f *testing.F) { fuzz(f, "Return") }

func FuzzJSON(f *testing.F) {
	for _, s := range jsons {
		f.Add([]byte(s))
	}
	f.Add([]byte(nest(70, 1)))
	f.Fuzz(func(t *testing.T, b []byte) { sameJSON(t, b) })
}

package intern

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

type kind struct{ system, version string }

func clone(k kind) kind { return kind{strings.Clone(k.system), strings.Clone(k.version)} }

func TestEqualValuesShareOnePointer(t *testing.T) {
	var p Pool[kind]
	text := []byte("android")
	a := p.Of(kind{string(text), "1"}, clone)
	b := p.Of(kind{string(text), "1"}, clone)
	c := p.Of(kind{"android", "2"}, clone)
	if a != b || *a != (kind{"android", "1"}) {
		t.Errorf("%p %v and %p %v", a, *a, b, *b)
	}
	if c == a || *c != (kind{"android", "2"}) {
		t.Errorf("another value has %p %v", c, *c)
	}
}

func TestWhatNobodyHasAnyMoreIsForgotten(t *testing.T) {
	var p Pool[kind]
	known := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.known.Len()
	}
	stays := p.Of(kind{"stays", ""}, clone)
	kept := make([]*kind, 100)
	for i := range kept {
		kept[i] = p.Of(kind{"goes", fmt.Sprint(i)}, clone)
	}
	if got := known(); got != 101 {
		t.Fatalf("%d are known, want 101", got)
	}
	runtime.KeepAlive(kept)
	clear(kept)
	for end := time.Now().Add(20 * time.Second); known() > 1; runtime.Gosched() {
		if runtime.GC(); time.Now().After(end) {
			t.Fatalf("%d are known, want 1", known())
		}
	}
	if again := p.Of(kind{"stays", ""}, clone); again != stays {
		t.Error("one that somebody has was forgotten")
	}
}

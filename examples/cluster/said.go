package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"sync"
)

// said is what the nodes write to their standard error.
type said struct {
	out io.Writer // nil: nobody reads along

	mu    sync.Mutex // guards lines, and writes to out
	lines map[string]string
}

// by is the writer for one node.
func (s *said) by(id string) io.Writer { return &voice{s: s, id: id} }

// last is the last that a node wrote, all and in short: why it panicked, or the
// last line.
func (s *said) last(id string) (all, inShort string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all = strings.TrimSpace(s.lines[id])
	inShort = all[strings.LastIndex(all, "\n")+1:]
	for line := range strings.Lines(all) {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			inShort = strings.TrimSpace(line)
			break
		}
	}
	return all, cmp.Or(inShort, "it said nothing")
}

type voice struct {
	s  *said
	id string
}

const saidLongest = 16 << 10 // bytes that are kept of a node

func (v *voice) Write(b []byte) (int, error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.s.lines == nil {
		v.s.lines = make(map[string]string)
	}
	kept := v.s.lines[v.id] + string(b)
	v.s.lines[v.id] = kept[max(0, len(kept)-saidLongest):]
	if v.s.out != nil {
		for line := range strings.Lines(string(b)) {
			fmt.Fprintf(v.s.out, "%s: %s\n", v.id, strings.TrimRight(line, "\n"))
		}
	}
	return len(b), nil
}

package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// diary is what happened and when, a line for each event.
type diary struct {
	mu    sync.Mutex // guards what follows, and writes to out
	out   io.Writer  // nil: nobody reads along
	start time.Time
	lines []string
}

const diaryLines = 200 // kept; out has got them all

func newDiary() *diary { return &diary{start: time.Now()} }

// begin sets the clock to 0 and forgets what was before, which out was not told.
func (d *diary) begin(out io.Writer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.start, d.out, d.lines = time.Now(), out, nil
}

func (d *diary) printf(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	line := fmt.Sprintf("%6.1f s  ", time.Since(d.start).Seconds()) + fmt.Sprintf(format, args...)
	if d.lines = append(d.lines, line); len(d.lines) > diaryLines {
		d.lines = d.lines[1:]
	}
	if d.out != nil {
		fmt.Fprintln(d.out, line)
	}
}

// last tells the last n lines, the newest first.
func (d *diary) last(n int) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	lines := make([]string, 0, n)
	for i := len(d.lines) - 1; i >= 0 && len(lines) < n; i-- {
		lines = append(lines, d.lines[i])
	}
	return lines
}

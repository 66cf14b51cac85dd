package quietlog

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// book is a slog.Handler that keeps what it is told from a level on.
type book struct {
	least slog.Level
	block chan struct{} // set in the bubble, before the first line; nil: Handle does not wait for it

	mu    sync.Mutex
	lines []string // guarded by mu
}

func (b *book) Enabled(_ context.Context, level slog.Level) bool { return level >= b.least }
func (b *book) WithAttrs([]slog.Attr) slog.Handler               { panic("not used") }
func (b *book) WithGroup(string) slog.Handler                    { panic("not used") }
func (b *book) Handle(_ context.Context, r slog.Record) error {
	if b.block != nil {
		<-b.block
	}
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { line += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line)
	return nil
}

// take waits until all is written and returns it.
func (b *book) take() []string {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := b.lines
	b.lines = nil
	return lines
}

func (b *book) want(t *testing.T, want ...string) {
	t.Helper()
	if got := b.take(); !slices.Equal(got, want) {
		t.Errorf("the log is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// bubble runs f with a Log that Run writes to b, in virtual time. The second
// function ends Run.
func bubble(t *testing.T, b *book, f func(l *Log, end func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := New(slog.New(b), "test")
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { l.Run(ctx) })
		end := func() { cancel(); run.Wait() }
		defer end()
		f(l, end)
	})
}

func TestLinesAreWrittenInOrder(t *testing.T) {
	b := &book{least: slog.LevelInfo}
	bubble(t, b, func(l *Log, _ func()) {
		l.Post(slog.LevelDebug, "", "nobody wants that")
		l.Post(slog.LevelInfo, "", "up", "node", "a")
		l.Post(slog.LevelInfo, "", "up", "node", "a")
		l.Post(slog.LevelError, "a", "bad", "node", "a", "err", context.Canceled)
		b.want(t, "INFO test: up node=a", "INFO test: up node=a", "ERROR test: bad node=a err=context canceled")
	})
}

func TestPostDoesNotWaitForASlowHandler(t *testing.T) {
	b := &book{}
	bubble(t, b, func(l *Log, _ func()) {
		b.block = make(chan struct{})
		l.Post(slog.LevelInfo, "", "first")
		synctest.Wait() // Run hangs in the handler
		var posters sync.WaitGroup
		for range 10 {
			posters.Go(func() {
				for range 100 {
					l.Post(slog.LevelInfo, "", "more")
				}
			})
		}
		posters.Wait()
		close(b.block)
		got := b.take()
		if len(got) != 1+maxLines+1 {
			t.Errorf("%d lines were written, want one, those that fit into the queue, and a count", len(got))
		}
		if want := fmt.Sprintf("WARN test: log lines dropped lines=%d", 1000-maxLines); got[len(got)-1] != want {
			t.Errorf("last is %q, want %q", got[len(got)-1], want)
		}
	})
}

func TestRunWritesWhatWaitsWhenItEnds(t *testing.T) {
	b := &book{}
	bubble(t, b, func(l *Log, end func()) {
		b.block = make(chan struct{})
		l.Post(slog.LevelInfo, "", "first")
		synctest.Wait()
		l.Post(slog.LevelInfo, "", "last")
		go func() {
			time.Sleep(time.Second)
			close(b.block)
		}()
		end()
		l.Post(slog.LevelInfo, "", "too late")
		b.want(t, "INFO test: first", "INFO test: last")
	})
}

func TestAComplaintIsToldOnceInFiveMinutesWithACount(t *testing.T) {
	b := &book{}
	bubble(t, b, func(l *Log, _ func()) {
		for range 600 {
			l.Post(slog.LevelWarn, "10.0.0.1", "refused", "addr", "10.0.0.1")
			time.Sleep(time.Second)
		}
		l.Post(slog.LevelWarn, "10.0.0.2", "refused", "addr", "10.0.0.2")
		l.Post(slog.LevelWarn, "10.0.0.1", "ignored", "addr", "10.0.0.1")
		b.want(t,
			"WARN test: refused addr=10.0.0.1",
			"WARN test: refused addr=10.0.0.1 again=299",
			"WARN test: refused addr=10.0.0.2",
			"WARN test: ignored addr=10.0.0.1")
		time.Sleep(repeatAfter)
		l.Post(slog.LevelWarn, "10.0.0.1", "refused", "addr", "10.0.0.1")
		l.Post(slog.LevelWarn, "10.0.0.2", "refused", "addr", "10.0.0.2")
		b.want(t, "WARN test: refused addr=10.0.0.1 again=299", "WARN test: refused addr=10.0.0.2")
	})
}

func TestAFloodOfDifferentComplaintsIsThinned(t *testing.T) {
	b := &book{}
	bubble(t, b, func(l *Log, _ func()) {
		flood := func(from int) (lines int) {
			for i := range 100 {
				l.Post(slog.LevelWarn, fmt.Sprint(from+i), "refused", "addr", from+i)
			}
			return len(b.take())
		}
		if got := flood(0); got != 10+1 {
			t.Errorf("%d lines of 100, want 10 and one that says that there were more", got)
		}
		time.Sleep(500 * time.Millisecond)
		if got := flood(1000); got != 5 {
			t.Errorf("%d lines of 100 half a second later, want 5", got)
		}
		l.Post(slog.LevelWarn, "", "something else")
		b.want(t, "WARN test: something else")
	})
}

func TestDroppedLinesAreToldOnceInFiveMinutes(t *testing.T) {
	b := &book{}
	bubble(t, b, func(l *Log, end func()) {
		told, dropped := 0, 0
		read := func() {
			for _, line := range b.take() {
				var n int
				if _, err := fmt.Sscanf(line, "WARN test: log lines dropped lines=%d", &n); err == nil {
					told++
					dropped += n
				}
			}
		}
		for i := range 1000 { // a second each
			for j := range 20 {
				l.Post(slog.LevelWarn, fmt.Sprint(i, j), "refused")
			}
			read()
			time.Sleep(time.Second)
		}
		if told != 4 { // after 0, 5, 10 and 15 minutes
			t.Errorf("told %d times, want 4", told)
		}
		if got := len(l.complaints); got > maxComplaints {
			t.Errorf("%d complaints are remembered, want at most %d", got, maxComplaints)
		}
		end()
		read()
		if dropped != 10_000 {
			t.Errorf("%d lines were told as dropped, want 10000, half of all", dropped)
		}
	})
}

func TestLongStringsAreCut(t *testing.T) {
	b := &book{}
	bubble(t, b, func(l *Log, _ func()) {
		long := strings.Repeat("x", maxText-1) + "é" + strings.Repeat("y", 1<<20)
		l.Post(slog.LevelWarn, long, "refused", "name", long, "short", "é")
		b.want(t, "WARN test: refused name="+strings.Repeat("x", maxText-1)+"… short=é")
		for key := range l.complaints {
			if len(key) > 2*maxText {
				t.Errorf("%d bytes are kept of what is the same", len(key))
			}
		}
	})
}

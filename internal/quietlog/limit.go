package quietlog

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/embedpush/push/internal/rate"
)

// Limit returns a Logger that writes to another, at most ten lines a second of
// each message from Info on, so that nobody outside can fill a disk. The next
// line that is written tells how many were not.
func Limit(to *slog.Logger) *slog.Logger {
	return slog.New(&limiter{to.Handler(), &tallies{of: make(map[string]*tally)}})
}

type limiter struct {
	slog.Handler
	tallies *tallies // shared by what With makes
}

type tallies struct {
	mu sync.Mutex
	of map[string]*tally // guarded by mu: by message, of which a program has few
}

type tally struct {
	bucket  rate.Bucket
	dropped int
}

// Handle writes a line or counts it.
func (l *limiter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo {
		dropped, ok := l.tallies.take(r.Message, time.Now())
		if !ok {
			return nil
		}
		if dropped > 0 {
			r.AddAttrs(slog.Int("dropped", dropped))
		}
	}
	return l.Handler.Handle(ctx, r)
}

// take tells whether a line with this message may be written, and how many
// before it were not.
func (p *tallies) take(message string, now time.Time) (dropped int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.of[message]
	if of == nil {
		of = new(tally)
		p.of[message] = of
	}
	if of.bucket.Take(pace, now) > 0 {
		of.dropped++
		return 0, false
	}
	dropped, of.dropped = of.dropped, 0
	return dropped, true
}

func (l *limiter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &limiter{l.Handler.WithAttrs(attrs), l.tallies}
}

func (l *limiter) WithGroup(name string) slog.Handler {
	return &limiter{l.Handler.WithGroup(name), l.tallies}
}

// Package quietlog carries log lines to a slog.Logger from where none may be
// called: from under a lock, or from a goroutine that others wait for. Lines
// wait in a bounded queue and one goroutine writes them; of complaints that
// repeat themselves it writes few and counts the others.
package quietlog

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/embedpush/push/internal/rate"
)

const (
	maxLines      = 256             // that wait; further ones are dropped
	maxText       = 200             // bytes of a string, of which a stranger may have written more
	maxComplaints = 256             // that are remembered; beyond it all are forgotten
	repeatAfter   = 5 * time.Minute // a complaint is told again
)

// pace is how many different complaints of one message are written; further
// ones are dropped.
var pace = rate.Limit{PerSecond: 10, Burst: 10}

// Log is a queue of log lines.
type Log struct {
	to    *slog.Logger
	about string
	wake  chan struct{} // capacity 1, never closed: a line waits, or was dropped

	mu      sync.Mutex // guards what follows; a leaf: nothing is called or locked under it
	lines   []line
	dropped int

	// Run's.
	complaints map[string]*complaint // by message and what is the same
	paces      map[string]*rate.Bucket
	untold     int       // lines dropped, here too
	told       time.Time // when that was last in the log
}

type line struct {
	level     slog.Level
	same, msg string
	args      []any
}

type complaint struct {
	at    time.Time // of the last line
	again int       // held back since
}

// New makes a Log whose lines go to a logger once Run runs, each message
// behind what it is about and a colon.
func New(to *slog.Logger, about string) *Log {
	return &Log{
		to:         to,
		about:      about,
		wake:       make(chan struct{}, 1),
		complaints: make(map[string]*complaint),
		paces:      make(map[string]*rate.Bucket),
	}
}

// Post queues a line. It never waits, calls nothing of the logger's, keeps
// args, and cuts long strings among them. From slog.LevelWarn on a line is a
// complaint: one with the same message and the same same as another of the
// last five minutes is only counted, and the next that is written tells the
// count as the attribute again. Messages must be few.
func (l *Log) Post(level slog.Level, same, msg string, args ...any) {
	for i, arg := range args {
		if s, ok := arg.(string); ok {
			args[i] = clip(s)
		}
	}
	l.mu.Lock()
	if len(l.lines) < maxLines {
		l.lines = append(l.lines, line{level, clip(same), msg, args})
	} else {
		l.dropped++
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run writes the lines until ctx ends, and last those that still wait. It is
// called once.
func (l *Log) Run(ctx context.Context) {
	for {
		select {
		case <-l.wake:
			l.write(false)
		case <-ctx.Done():
			l.write(true)
			return
		}
	}
}

func (l *Log) write(last bool) {
	l.mu.Lock()
	lines := l.lines
	l.untold += l.dropped
	l.lines, l.dropped = nil, 0
	l.mu.Unlock()

	ctx := context.Background()
	for _, n := range lines {
		if !l.to.Enabled(ctx, n.level) {
			continue
		}
		if n.level >= slog.LevelWarn {
			again, ok := l.allow(n, time.Now())
			if !ok {
				continue
			}
			if again > 0 {
				n.args = append(n.args, "again", again)
			}
		}
		l.to.Log(ctx, n.level, l.about+": "+n.msg, n.args...)
	}
	if now := time.Now(); l.untold > 0 && (last || now.Sub(l.told) >= repeatAfter) {
		l.to.Warn(l.about+": log lines dropped", "lines", l.untold)
		l.untold, l.told = 0, now
	}
}

// allow says whether to write a complaint, and how many like it were held back.
func (l *Log) allow(n line, now time.Time) (again int, ok bool) {
	key := n.msg + "\n" + n.same
	c := l.complaints[key]
	if c != nil && now.Sub(c.at) < repeatAfter {
		c.again++
		return 0, false
	}
	if l.paces[n.msg] == nil {
		l.paces[n.msg] = new(rate.Bucket)
	}
	if l.paces[n.msg].Take(pace, now) > 0 {
		l.untold++
		return 0, false
	}
	if c == nil {
		if len(l.complaints) >= maxComplaints {
			clear(l.complaints)
		}
		c = new(complaint)
		l.complaints[key] = c
	}
	again, c.again, c.at = c.again, 0, now
	return again, true
}

func clip(s string) string {
	if len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

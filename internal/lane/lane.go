// Package lane runs functions one after another on a goroutine that lives only
// while there are some.
package lane

import "sync"

// Lane is a queue of functions. The zero Lane is ready.
type Lane struct {
	mu    sync.Mutex
	tasks []task // guarded by mu: waiting, the one that runs not among them; nil when there is none
	items int    // guarded by mu: limited tasks waiting or running
	bytes int    // guarded by mu: their sizes
	alive bool   // guarded by mu: run's goroutine is there
}

type task struct {
	run   func()
	bytes int // -1: not limited
}

// Limit bounds the tasks put in with Put.
type Limit struct {
	Items, Bytes int
}

// Full reports whether limited tasks reach the limit.
func (l *Lane) Full(limit Limit) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.full(limit)
}

func (l *Lane) full(limit Limit) bool {
	return limit.Items > 0 && l.items >= limit.Items || limit.Bytes > 0 && l.bytes >= limit.Bytes
}

// Put adds a task that counts against the limit, with its size. Whether there
// is room is for the caller to ask before, by Full.
func (l *Lane) Put(size int, f func(), s Starter) { l.add(task{f, size}, s) }

// Always adds a task that counts against no limit: one of the few that come
// once in a connection's life.
func (l *Lane) Always(f func(), s Starter) { l.add(task{f, -1}, s) }

// Starter is told of the goroutine's beginning and end, and of each limited
// task's end.
type Starter interface {
	LaneBegins()
	LaneMoved()
	LaneEnds()
}

func (l *Lane) add(t task, s Starter) {
	l.mu.Lock()
	l.tasks = append(l.tasks, t)
	if t.bytes >= 0 {
		l.items++
		l.bytes += t.bytes
	}
	begin := !l.alive
	l.alive = true
	l.mu.Unlock()
	if begin {
		s.LaneBegins()
		go l.run(s)
	}
}

func (l *Lane) run(s Starter) {
	defer s.LaneEnds()
	for {
		l.mu.Lock()
		if len(l.tasks) == 0 {
			l.tasks = nil
			l.alive = false
			l.mu.Unlock()
			return
		}
		t := l.tasks[0]
		l.tasks[0] = task{}
		l.tasks = l.tasks[1:]
		l.mu.Unlock()

		t.run()
		if t.bytes < 0 {
			continue
		}
		l.mu.Lock()
		l.items--
		l.bytes -= t.bytes
		l.mu.Unlock()
		s.LaneMoved()
	}
}

// Package lane runs functions one after another on a goroutine that lives only
// while there are some.
package lane

import "sync"

// Lane is a queue of functions. The zero Lane is ready, and one that has
// nothing to do holds nothing.
type Lane struct {
	mu   sync.Mutex
	work *work // guarded by mu: nil exactly while run's goroutine is not there
}

// work is guarded by its Lane's mu.
type work struct {
	tasks []task // waiting, the one that runs not among them
	items int    // limited tasks waiting or running
	bytes int    // their sizes
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
	w := l.work
	return w != nil && (limit.Items > 0 && w.items >= limit.Items || limit.Bytes > 0 && w.bytes >= limit.Bytes)
}

// Put adds a task that counts against the limit, with its size. Whether there
// is room is for the caller to ask before, by Full.
func (l *Lane) Put(size int, f func(), s Starter) { l.add(task{f, size}, s) }

// Always adds a task that counts against no limit: one of the few that come
// once in a connection's life.
func (l *Lane) Always(f func(), s Starter) { l.add(task{f, -1}, s) }

// Starter is told of the goroutine's beginning and end, and of each limited
// task's end. LaneDied says that a task ended its goroutine (runtime.Goexit);
// the tasks behind it run on another.
type Starter interface {
	LaneBegins()
	LaneMoved()
	LaneDied()
	LaneEnds()
}

func (l *Lane) add(t task, s Starter) {
	l.mu.Lock()
	begin := l.work == nil
	if begin {
		l.work = new(work)
	}
	w := l.work
	w.tasks = append(w.tasks, t)
	if t.bytes >= 0 {
		w.items++
		w.bytes += t.bytes
	}
	l.mu.Unlock()
	if begin {
		s.LaneBegins()
		go l.run(w, s)
	}
}

func (l *Lane) run(w *work, s Starter) {
	for l.next(w, s) {
	}
	s.LaneEnds()
}

// next runs one task, and reports whether there was any.
func (l *Lane) next(w *work, s Starter) bool {
	l.mu.Lock()
	if len(w.tasks) == 0 {
		l.work = nil
		l.mu.Unlock()
		return false
	}
	t := w.tasks[0]
	w.tasks[0] = task{}
	w.tasks = w.tasks[1:]
	l.mu.Unlock()

	returned := false
	defer func() {
		if t.bytes >= 0 {
			l.mu.Lock()
			w.items--
			w.bytes -= t.bytes
			l.mu.Unlock()
			s.LaneMoved()
		}
		if !returned {
			s.LaneDied()
			go l.run(w, s)
		}
	}()
	t.run()
	returned = true
	return true
}

package members

// What the owner is told. The queue holds, of each run of which the owner knows
// something else than what is so, the last thing that happened to it, in the
// order in which those happened. What brings a run back to what the owner knows
// takes it out, so the queue is never longer than the runs that are there and
// those that the owner takes to be there: twice maxNodes.

// change is the last of what happened to a run.
type change struct {
	Member
	there   bool
	goodbye bool // why it is not
}

// noteLocked queues a change, or what it undid.
func (l *List) noteLocked(c change) {
	was, told := l.told[c.Origin]
	if e := l.waiting[c.Origin]; e != nil {
		l.queue.Remove(e)
		delete(l.waiting, c.Origin)
	}
	if c.there == told && (!told || was.equal(c.Member)) {
		return
	}
	l.waiting[c.Origin] = l.queue.PushBack(c)
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// next takes a change from the queue; the owner knows it from now on.
func (l *List) next() (c change, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.queue.Front()
	if e == nil || l.ctx.Err() != nil {
		return c, false
	}
	c = l.queue.Remove(e).(change)
	delete(l.waiting, c.Origin)
	if c.there {
		l.told[c.Origin] = c.Member
	} else {
		delete(l.told, c.Origin)
	}
	return c, true
}

// tell tells the owner until Leave begins.
func (l *List) tell() {
	for {
		for c, ok := l.next(); ok; c, ok = l.next() {
			switch {
			case c.there && l.cfg.Joined != nil:
				l.cfg.Joined(c.Member)
			case !c.there && l.cfg.Left != nil:
				l.cfg.Left(c.Member, c.goodbye)
			}
		}
		select {
		case <-l.news:
		case <-l.ctx.Done():
			return
		}
	}
}

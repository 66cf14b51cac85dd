package netio

import "iter"

// Handlers yields the handler of every connection that was started and has
// not closed, with no lock held. What comes and goes meanwhile may be missed
// or yielded, and one may be yielded twice.
func (d *Driver) Handlers() iter.Seq[Handler] {
	return func(yield func(Handler) bool) {
		more := true
		d.each(func(c *Conn) {
			c.mu.Lock()
			live := c.started && !c.closed
			c.mu.Unlock()
			more = more && (!live || yield(c.h))
		})
	}
}

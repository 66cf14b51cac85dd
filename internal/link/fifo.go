package link

import "sync"

// keepItems is how long a queue is kept when it is empty.
const keepItems = 1024

// message is a request that waits for the worker.
type message struct {
	kind byte
	body []byte
}

func (m message) size() int { return headSize + len(m.body) }

// fifo is a bounded queue between the reader of an In and its worker. Both take
// its lock once for many messages.
type fifo struct {
	// Static.
	maxBytes, maxCount int
	some               chan struct{} // holds one, never closed: take may go on
	room               chan struct{} // holds one, never closed: put may go on

	mu    sync.Mutex // guards what follows; a leaf
	items []message
	bytes int // not handled, in items and at the worker
	count int // … messages
	over  bool
}

func newFIFO(maxBytes, maxCount int) *fifo {
	return &fifo{maxBytes: maxBytes, maxCount: maxCount, some: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// put appends messages, which are copied out of the slice. It waits until there
// is room for all of them, or the queue is empty. false: done was closed first.
func (f *fifo) put(items []message, done <-chan struct{}) bool {
	bytes := 0
	for _, m := range items {
		bytes += m.size()
	}
	for {
		f.mu.Lock()
		if f.count == 0 || f.bytes+bytes <= f.maxBytes && f.count+len(items) <= f.maxCount {
			was := len(f.items)
			f.items = append(f.items, items...)
			f.bytes += bytes
			f.count += len(items)
			f.mu.Unlock()
			if was == 0 {
				poke(f.some)
			}
			return true
		}
		f.mu.Unlock()
		select {
		case <-f.room:
		case <-done:
			return false
		}
	}
}

// take returns all messages, and waits for the first; nil: there are none any
// more. spare is what it returned before.
func (f *fifo) take(spare []message) []message {
	for {
		f.mu.Lock()
		if len(f.items) > 0 {
			items := f.items
			if f.items = spare[:0]; cap(spare) > keepItems {
				f.items = nil
			}
			f.mu.Unlock()
			return items
		}
		over := f.over
		f.mu.Unlock()
		if over {
			return nil
		}
		<-f.some
	}
}

// handled makes room.
func (f *fifo) handled(bytes, count int) {
	f.mu.Lock()
	f.bytes -= bytes
	f.count -= count
	f.mu.Unlock()
	poke(f.room)
}

// end says that no more will be put.
func (f *fifo) end() {
	f.mu.Lock()
	f.over = true
	f.mu.Unlock()
	poke(f.some)
}

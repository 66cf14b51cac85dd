package main

// The ledger compares two witnesses: the receipts of pushes, which say what was
// acknowledged, and the clients, which write down what they see before they
// acknowledge it.

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/embedpush/push"
)

const (
	ledgerLength = 10_000      // pushes that are remembered; of older ones only the counts
	lateAfter    = time.Second // over its deadline, on a machine that is busy with four processes
	maxWrong     = 10          // things that are wrong and told in words
)

// aliceHas are the devices of which each should have what is pushed to alice.
var aliceHas = []string{"alice/browser", "alice/socketio", "alice/phone"}

// ledger is safe for concurrent use.
type ledger struct {
	devices []string // that a push in the quiet has to reach

	mu      sync.Mutex // guards what follows
	pushes  map[uint64]*entry
	last    uint64
	counted counts
	wrong   []string
}

// entry is one push.
type entry struct {
	quiet   bool // nothing was done to the nodes lately: it has to reach all
	settled bool // there is a receipt, or there will be none
	seen    map[string]int
	acked   map[string]int // says the receipt
}

// counts is what it comes to.
type counts struct {
	Pushes    int `json:"pushes"`
	Open      int `json:"open"`      // of them, without a receipt yet
	Receipts  int `json:"receipts"`  // of them, with one
	Died      int `json:"died"`      // of them, whose node ended before there was one
	Late      int `json:"late"`      // receipts long behind their deadline
	Unreached int `json:"unreached"` // receipts without any device

	Deliveries map[string]int `json:"deliveries"` // the receipts' rows, by status
	Seen       int            `json:"seen"`       // by clients

	Lies    int `json:"lies"`    // acked but not seen
	Unacked int `json:"unacked"` // seen but not acked, or its receipt was lost
	Twice   int `json:"twice"`   // seen more than once by one device
	Strange int `json:"strange"` // seen, but never pushed

	Quiet int `json:"quiet"` // pushes in the quiet
	Whole int `json:"whole"` // of them, acked by all devices
}

func newLedger(devices []string) *ledger {
	return &ledger{devices: devices, pushes: make(map[uint64]*entry), counted: counts{Deliveries: make(map[string]int)}}
}

// begin enters a push that is about to be made, and numbers it.
func (l *ledger) begin(quiet bool) (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	l.pushes[l.last] = &entry{quiet: quiet, seen: make(map[string]int), acked: make(map[string]int)}
	delete(l.pushes, l.last-ledgerLength)
	l.counted.Pushes++
	l.counted.Open++
	if quiet {
		l.counted.Quiet++
	}
	return l.last
}

// saw enters what a device sees. The device calls it before it acknowledges.
func (l *ledger) saw(n uint64, device string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counted.Seen++
	e := l.pushes[n]
	if e == nil {
		if n == 0 || n > l.last {
			l.counted.Strange++
			l.wrongLocked("%s saw push %d, which nobody made", device, n)
		}
		return
	}
	e.seen[device]++
	if e.seen[device] > 1 {
		l.counted.Twice++
		l.wrongLocked("%s saw push %d %d times", device, n, e.seen[device])
	}
	if e.settled && e.seen[device] > e.acked[device] {
		l.counted.Unacked++
	}
}

// receipt enters what became of a push. late: it came long behind the deadline.
func (l *ledger) receipt(n uint64, r push.Receipt, late bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counted.Receipts++
	if late {
		l.counted.Late++
		l.wrongLocked("the receipt of push %d came long behind its deadline", n)
	}
	if r.Targets == 0 {
		l.counted.Unreached++
	}
	e := l.settleLocked(n)
	for _, d := range r.Deliveries {
		l.counted.Deliveries[d.Status.String()]++
		if e == nil || d.Status != push.Acked {
			continue
		}
		device := d.UserID + "/" + d.DeviceID
		e.acked[device]++
		if e.acked[device] > e.seen[device] {
			l.counted.Lies++
			l.wrongLocked("push %d: %s on node %s is said to have acked, and has not seen it", n, device, d.Node)
		}
	}
	if e == nil {
		return
	}
	for device, seen := range e.seen {
		l.counted.Unacked += max(0, seen-e.acked[device])
	}
	if e.quiet {
		l.wholeLocked(n, e, r)
	}
}

// wholeLocked looks whether a push in the quiet reached every device.
func (l *ledger) wholeLocked(n uint64, e *entry, r push.Receipt) {
	for _, device := range l.devices {
		if e.acked[device] == 0 {
			rows := make(map[string]string)
			for _, d := range r.Deliveries {
				rows[d.DeviceID+"@"+d.Node] = d.Status.String()
			}
			l.wrongLocked("push %d in the quiet did not reach %s: %v", n, device, rows)
			return
		}
	}
	l.counted.Whole++
}

// died enters that there will be no receipt: the node that pushed has ended.
func (l *ledger) died(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counted.Died++
	e := l.settleLocked(n)
	if e == nil {
		return
	}
	for _, seen := range e.seen {
		l.counted.Unacked += seen
	}
	if e.quiet {
		l.wrongLocked("push %d in the quiet has no receipt", n)
	}
}

func (l *ledger) settleLocked(n uint64) *entry {
	l.counted.Open--
	e := l.pushes[n]
	if e != nil {
		e.settled = true
	}
	return e
}

// wrongLocked notes something that must not be.
func (l *ledger) wrongLocked(format string, args ...any) {
	if len(l.wrong) < maxWrong {
		l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
	}
}

// sum tells the counts, and in words the first things that were wrong.
func (l *ledger) sum() (counts, []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counted
	c.Deliveries = maps.Clone(c.Deliveries)
	return c, append([]string(nil), l.wrong...)
}

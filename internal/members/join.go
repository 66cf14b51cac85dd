package members

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"
)

// lostNode is a node that vanished without goodbye: dead, or on the other side
// of a partition, and memberlist never looks for it again.
type lostNode struct {
	addr  netip.AddrPort
	since time.Time
	next  time.Time
	pause time.Duration
}

// run looks for peers.
func (l *List) run() {
	tick := time.NewTicker(tickTime)
	defer tick.Stop()
	var nextSeeds time.Time
	pause := time.Second
	for {
		now := time.Now()
		if nextSeeds.Sub(now) < tickTime/2 && len(l.cfg.Seeds) > 0 {
			if l.alone() {
				nextSeeds, pause = now.Add(pause), min(2*pause, rejoinLongest)
			} else {
				nextSeeds, pause = now.Add(rejoinLongest), time.Second
			}
			l.work.Go(l.joinSeeds)
		}
		for _, addr := range l.due(now) {
			l.startJoin(addr, false)
		}
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// alone: there is no other node now.
func (l *List) alone() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.peers) <= 1
}

// due tells which lost nodes are to be tried now.
func (l *List) due(now time.Time) (addrs []netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, n := range l.lost {
		switch {
		case now.Sub(n.since) > rememberLost:
			delete(l.lost, id)
		case n.next.Sub(now) < tickTime/2:
			// A little early, so that two halves of a cluster spread out.
			n.pause = min(2*n.pause, rejoinLongest)
			n.next = now.Add(n.pause - rand.N(n.pause/10))
			addrs = append(addrs, n.addr)
		}
	}
	return addrs
}

// loseLocked remembers a node to look for.
func (l *List) loseLocked(id string, addr netip.AddrPort) {
	if len(l.lost) >= maxLost {
		for other := range l.lost { // any
			delete(l.lost, other)
			break
		}
	}
	now := time.Now()
	l.lost[id] = &lostNode{addr: addr, since: now, next: now.Add(time.Second), pause: time.Second}
}

// joinSeeds tries every address of every seed that is no member.
func (l *List) joinSeeds() {
	for _, s := range l.cfg.Seeds {
		ips := []netip.Addr{s.IP}
		if s.Name != "" {
			var err error
			ctx, cancel := context.WithTimeout(l.ctx, lookupTime)
			ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip", s.Name)
			cancel()
			if err != nil && l.ctx.Err() == nil {
				l.log.Post(slog.LevelWarn, s.Name, "looking up a seed", "seed", s.Name, "err", err)
			}
		}
		for _, ip := range ips {
			if l.insecure && !ip.Unmap().IsLoopback() {
				continue // what localhost stands for is not ours to know
			}
			l.startJoin(netip.AddrPortFrom(ip.Unmap(), s.Port), true)
		}
	}
}

// Meet tells a member all that is known here of the others, and of this node: it
// seems not to know it, for news by packets may be lost. It does not wait.
func (l *List) Meet(addr netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil || l.joining[addr] || len(l.joining) >= maxJoins {
		return
	}
	l.joining[addr] = true
	l.work.Go(func() { l.join(addr, false) })
}

// startJoin begins to join the node at addr, unless it is a member, is being
// tried, or enough others are.
func (l *List) startJoin(addr netip.AddrPort, seed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil || l.joining[addr] || len(l.joining) >= maxJoins {
		return
	}
	for _, p := range l.peers {
		if p.Addr == addr {
			return
		}
	}
	l.joining[addr] = true
	l.work.Go(func() { l.join(addr, seed) })
}

func (l *List) join(addr netip.AddrPort, seed bool) {
	done := make(chan error, 1)
	go func() {
		_, err := l.ml.Join([]string{addr.String()})
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-l.ctx.Done():
		return // what Listen made ends the attempt at its Shutdown; another transport knows no such thing
	}
	l.mu.Lock()
	delete(l.joining, addr)
	l.mu.Unlock()
	if err == nil || l.ctx.Err() != nil {
		return
	}
	// memberlist lists its errors one below the other, each with a star.
	_, text, _ := strings.Cut(err.Error(), "* ")
	text = strings.TrimPrefix(strings.TrimSpace(text), "failed to join "+addr.String()+": ")
	args := []any{"addr", addr, "err", text}
	level := slog.LevelDebug
	if seed && l.alone() {
		level = slog.LevelWarn
	}
	if why := hint(text); why != "" {
		level = slog.LevelWarn
		args = append(args, "hint", why)
	}
	l.log.Post(level, addr.String(), "cannot join", args...)
}

package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// pair is a server with its clients.
type pair struct {
	server, load *process
	effort       effort
	port         int
	door         string
	conns        int   // open
	events       int64 // that came
}

func (b *bench) start(p peer, door string, heartbeat time.Duration) (*pair, error) {
	server, err := startProcess(p.name, p.command(door, heartbeat))
	if err != nil {
		return nil, err
	}
	load, err := startProcess("the load on "+p.name, []string{b.self, "load"})
	if err != nil {
		server.stop()
		return nil, err
	}
	s := &pair{server: server, load: load, effort: b.effort, door: door}
	if p.name == peerSocketIO {
		s.door = doorSocketIO
	}
	first, err := server.hear()
	if err == nil && len(first) != 1 {
		err = fmt.Errorf("%s told no port", p.name)
	}
	if err != nil {
		s.stop(&err)
		return nil, err
	}
	s.port = int(first[0])
	return s, nil
}

// stop ends both. How they end is the error if there is none yet.
func (s *pair) stop(err *error) {
	*err = cmp.Or(*err, s.server.stop(), s.load.stop())
}

// dial opens connections as users first, first+1, …, and waits until the
// server has them.
func (s *pair) dial(first, n int) error {
	if _, err := s.load.ask("dial %d %s %d %d", s.port, s.door, first, n); err != nil {
		return err
	}
	return s.wantConns(s.conns + n)
}

// drop ends those of the users below n.
func (s *pair) drop(n int) error {
	if _, err := s.load.ask("drop %d", n); err != nil {
		return err
	}
	return s.wantConns(s.conns - n)
}

func (s *pair) wantConns(n int) error {
	var got int64
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		var err error
		if got, err = s.server.number("conns"); err != nil {
			return err
		}
		if got == int64(n) {
			s.conns = n
			return nil
		}
	}
	return fmt.Errorf("%s has %d connections, want %d", s.server.name, got, n)
}

// wait waits for n more events and tells when the last came.
func (s *pair) wait(n int) (at int64, err error) {
	s.events += int64(n)
	got, err := s.load.ask("wait %d", s.events)
	if err != nil {
		return 0, err
	}
	if len(got) != 2 || got[0] != s.events {
		lost, _ := s.load.number("lost")
		return 0, fmt.Errorf("%s: %d events came, want %d; %d connections were lost", s.server.name, got[0], s.events, lost)
	}
	return got[1], nil
}

func (s *pair) cpu() (time.Duration, error) {
	n, err := s.server.number("cpu")
	return time.Duration(n), err
}

// memory is what the server needs when it has done what it had to.
type memory struct{ rss, heap, stacks, goroutines float64 }

func (s *pair) memory() (memory, error) {
	time.Sleep(s.effort.settle)
	got, err := s.server.ask("memory")
	if err == nil && len(got) != 4 {
		err = fmt.Errorf("%s: memory is %v", s.server.name, got)
	}
	if err != nil {
		return memory{}, err
	}
	return memory{float64(got[0]), float64(got[1]), float64(got[2]), float64(got[3])}, nil
}

// broadcasts makes n of them, times back to back each, and waits for each. It
// returns the CPU of one delivery, and the median of the times to the last
// delivery.
func (s *pair) broadcasts(n, times int) (perDelivery float64, span time.Duration, err error) {
	before, err := s.cpu()
	if err != nil {
		return 0, 0, err
	}
	var spans []float64
	for range n {
		began, err := s.server.number("broadcast %d", times)
		if err != nil {
			return 0, 0, err
		}
		at, err := s.wait(times * s.conns)
		if err != nil {
			return 0, 0, err
		}
		spans = append(spans, float64(at-began))
	}
	after, err := s.cpu()
	return micros(after-before) / float64(n*times*s.conns), time.Duration(median(spans)), err
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// push pushes to n users once each, in turns of at most all of them, and waits
// for each turn. It returns the CPU of a push.
func (s *pair) push(how string, n int) (perPush float64, err error) {
	before, err := s.cpu()
	if err != nil {
		return 0, err
	}
	for left := n; left > 0; left -= s.conns {
		turn := min(left, s.conns)
		if _, err := s.server.ask("push %s %d %d", how, turn, s.conns); err != nil {
			return 0, err
		}
		if _, err := s.wait(turn); err != nil {
			return 0, err
		}
	}
	after, err := s.cpu()
	return micros(after-before) / float64(n), err
}

// latencies appends those of n pushes, in µs.
func (s *pair) latencies(all []float64, how string, n int) ([]float64, error) {
	if _, err := s.push(how, n); err != nil {
		return nil, err
	}
	got, err := s.load.ask("latencies")
	if err != nil {
		return nil, err
	}
	if len(got) != n {
		return nil, fmt.Errorf("%s: %d latencies of %d pushes", s.server.name, len(got), n)
	}
	for _, ns := range got {
		all = append(all, float64(ns)/1000)
	}
	return all, nil
}

// effort is how much is done for one figure.
type effort struct {
	deliveries int           // of broadcasts, about
	pushes     int           // flat out
	latencies  int           // in turns of latencyTurn
	duels      int           // of strict
	settle     time.Duration // for what nobody is told of: reading what clients sent, ending goroutines
	silence    time.Duration // of partHeartbeat
	heartbeat  time.Duration // the same
}

const latencyTurn = 10

var (
	fullEffort  = effort{deliveries: 50_000, pushes: 10_000, latencies: 40 * latencyTurn, duels: 5, settle: 300 * time.Millisecond, silence: 50 * time.Second, heartbeat: 25 * time.Second}
	quickEffort = effort{deliveries: 1_000, pushes: 200, latencies: 4 * latencyTurn, duels: 2, settle: 50 * time.Millisecond, silence: 2500 * time.Millisecond, heartbeat: time.Second}
)

// noHeartbeat is long enough for none to fall into a measurement.
const noHeartbeat = time.Hour

// warmConns pay for what is there once. They are as many whatever comes then,
// or the growth with the number of connections would have theirs in it.
const warmConns = 1_000

// warmUp has those connections come and go. It returns the memory without any.
func (s *pair) warmUp(conns int) (memory, error) {
	n := min(warmConns, conns)
	if err := s.dial(0, n); err != nil {
		return memory{}, err
	}
	if _, _, err := s.broadcasts(1, 1); err != nil {
		return memory{}, err
	}
	if _, err := s.load.ask("beat"); err != nil {
		return memory{}, err
	}
	if err := s.drop(n); err != nil {
		return memory{}, err
	}
	return s.memory()
}

// connect opens the connections and tells what that and they cost. They have
// got one broadcast and sent something when they are weighed.
func (s *pair) connect(conns int, v map[string]float64) error {
	before, err := s.warmUp(conns)
	if err != nil {
		return err
	}
	cpu, err := s.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := s.dial(0, conns); err != nil {
		return err
	}
	took := time.Since(began)
	cpuNow, err := s.cpu()
	if err != nil {
		return err
	}
	v[valueConnect] = micros(cpuNow-cpu) / float64(conns)
	v[valueConnects] = float64(conns) / took.Seconds()
	if _, _, err := s.broadcasts(1, 1); err != nil {
		return err
	}
	if _, err := s.load.ask("beat"); err != nil {
		return err
	}
	after, err := s.memory()
	if err != nil {
		return err
	}
	n := float64(conns)
	v[valueRSS] = (after.rss - before.rss) / n
	v[valueHeap] = (after.heap - before.heap) / n
	if after.goroutines > 0 {
		v[valueStacks] = (after.stacks - before.stacks) / n
		v[valueGoroutines] = (after.goroutines - before.goroutines) / n
	}
	return nil
}

// deliver measures broadcasts.
func (s *pair) deliver(v map[string]float64) error {
	if _, _, err := s.broadcasts(3, 1); err != nil { // pools fill, buffers grow
		return err
	}
	const burst = 10
	singles := max(5, s.effort.deliveries/s.conns)
	cpu, span, err := s.broadcasts(singles, 1)
	if err != nil {
		return err
	}
	v[valueSingle], v[valueSingleSpan] = cpu, float64(span.Nanoseconds())/1e6
	cpu, span, err = s.broadcasts(max(3, singles/3), burst)
	if err != nil {
		return err
	}
	v[valueBurst], v[valueBurstRate] = cpu, float64(burst*s.conns)/span.Seconds()
	return nil
}

// churn has half of the connections go and come three times.
func (s *pair) churn(v map[string]float64) error {
	half := s.conns / 2
	var cpus []float64
	var after [3]memory
	for i := range after {
		before, err := s.cpu()
		if err != nil {
			return err
		}
		if err := s.drop(half); err != nil {
			return err
		}
		if err := s.dial(0, half); err != nil {
			return err
		}
		now, err := s.cpu()
		if err != nil {
			return err
		}
		cpus = append(cpus, micros(now-before)/float64(half))
		if after[i], err = s.memory(); err != nil {
			return err
		}
	}
	v[valueChurn] = median(cpus)
	v[valueChurnHeap] = after[2].heap / after[1].heap
	if after[2].goroutines > 0 {
		v[valueChurnGo] = after[2].goroutines - after[1].goroutines
	}
	return nil
}

// measureLoad is partLoad.
func (b *bench) measureLoad(p peer, conns int) (v map[string]float64, err error) {
	s, err := b.start(p, doorWebSocket, noHeartbeat)
	if err != nil {
		return nil, err
	}
	defer s.stop(&err)
	v = make(map[string]float64)
	if p.name == peerBare {
		if err := s.dial(0, conns); err != nil {
			return nil, err
		}
	} else if err := s.connect(conns, v); err != nil {
		return nil, err
	}
	if err := s.deliver(v); err != nil {
		return nil, err
	}
	if v[valueFlat], err = s.push(pushFlat, s.effort.pushes); err != nil {
		return nil, err
	}
	if p.name != peerBare && conns == b.results.most(markConns) {
		if err := s.churn(v); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// measureDoor tells what connections at another door cost.
func (b *bench) measureDoor(p peer, door string, conns int) (v map[string]float64, err error) {
	s, err := b.start(p, door, noHeartbeat)
	if err != nil {
		return nil, err
	}
	defer s.stop(&err)
	v = make(map[string]float64)
	if err := s.connect(conns, v); err != nil {
		return nil, err
	}
	if door == doorMPush || door == doorMPushRSA { // a device's latency is not timed
		return v, nil
	}
	return v, s.deliver(v)
}

// contestant is a peer of partPush.
type contestant struct {
	peer
	pair       *pair
	work, rest []float64 // latencies
}

// measurePush has everybody push to one user at a time, in turns as short as
// the moods of a machine that has other work, too. failed is told whom that did
// not go well with; they are out.
func (b *bench) measurePush(peers []peer, conns int, failed func(peer, error)) []*contestant {
	var all []*contestant
	for _, p := range peers {
		s, err := b.start(p, doorWebSocket, noHeartbeat)
		if err != nil {
			failed(p, err)
			continue
		}
		defer func() {
			var err error
			if s.stop(&err); err != nil {
				failed(p, err)
			}
		}()
		all = append(all, &contestant{peer: p, pair: s})
	}
	each := func(step func(*contestant) error) {
		all = slices.DeleteFunc(all, func(c *contestant) bool {
			err := step(c)
			if err != nil {
				failed(c.peer, err)
			}
			return err != nil
		})
	}
	each(func(c *contestant) error {
		if err := c.pair.dial(0, conns); err != nil {
			return err
		}
		if _, err := c.pair.push(pushFlat, conns); err != nil {
			return err
		}
		if c.name == peerBare {
			return nil
		}
		_, err := c.pair.memory() // garbage of the beginning is not the pushes'
		return err
	})
	for n := b.effort.latencies; n > 0; n -= latencyTurn {
		each(func(c *contestant) (err error) {
			if c.work, err = c.pair.latencies(c.work, pushWork, latencyTurn); err != nil {
				return err
			}
			c.rest, err = c.pair.latencies(c.rest, pushRest, latencyTurn)
			return err
		})
	}
	return all
}

// values are the contestant's.
func (c *contestant) values() map[string]float64 {
	slices.Sort(c.work)
	slices.Sort(c.rest)
	at := func(sorted []float64, percent int) float64 { return sorted[len(sorted)*percent/100] }
	return map[string]float64{
		valuePush50: at(c.work, 50), valuePush99: at(c.work, 99),
		valueRest50: at(c.rest, 50), valueRest99: at(c.rest, 99),
	}
}

// measureStrict has the engine and the bare loop broadcast in turn.
func (b *bench) measureStrict(p, bare peer, conns int) (all []map[string]float64, err error) {
	var pairs [2]*pair
	for i, p := range []peer{p, bare} {
		s, failed := b.start(p, doorWebSocket, noHeartbeat)
		if failed != nil {
			return nil, failed
		}
		defer s.stop(&err)
		if err := s.dial(0, conns); err != nil {
			return nil, err
		}
		if _, _, err := s.broadcasts(3, 1); err != nil {
			return nil, err
		}
		pairs[i] = s
	}
	engine, write := pairs[0], pairs[1]
	if _, err := engine.memory(); err != nil { // garbage of the beginning is not the broadcasts'
		return nil, err
	}
	cost := func(s *pair, n, times int) float64 {
		if err != nil {
			return math.NaN()
		}
		var c float64
		c, _, err = s.broadcasts(n, times)
		return c
	}
	first := cost(write, 1, 1)
	for range b.effort.duels {
		one := cost(engine, 2, 1)
		middle := cost(write, 1, 1)
		ten := cost(engine, 1, 10)
		last := cost(write, 1, 1)
		if err != nil {
			return nil, err
		}
		all = append(all, map[string]float64{
			valueSingle:     one,
			valueBurst:      ten,
			valueSingleBare: one / ((first + middle) / 2),
			valueBurstBare:  ten / ((middle + last) / 2),
		})
		first = last
	}
	return all, nil
}

// measureHeartbeat leaves connections alone. The time is a whole number of
// heartbeats. It begins when nobody dials any more, which dialing is told of.
func (b *bench) measureHeartbeat(p peer, conns int, dialing *sync.WaitGroup) (v map[string]float64, err error) {
	s, err := b.start(p, doorWebSocket, b.effort.heartbeat)
	if err == nil {
		defer s.stop(&err)
		err = s.dial(0, conns)
	}
	dialing.Done()
	dialing.Wait()
	if err != nil {
		return nil, err
	}
	pings := func() (int64, error) {
		got, err := s.load.ask("lost")
		if err == nil && (len(got) != 2 || got[0] != 0) {
			err = fmt.Errorf("%s: connections were lost: %v", p.name, got)
		}
		if err != nil {
			return 0, err
		}
		return got[1], nil
	}
	pingsBefore, err := pings()
	if err != nil {
		return nil, err
	}
	cpuBefore, err := s.cpu()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	time.Sleep(b.effort.silence)
	cpu, err := s.cpu()
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	pingsNow, err := pings()
	if err != nil {
		return nil, err
	}
	for end, late := time.Now().Add(20*time.Second), pingsNow; late-pingsBefore < int64(conns); { // the machine may be busy
		if time.Now().After(end) {
			return nil, fmt.Errorf("%s: %d pings of %d connections", p.name, late-pingsBefore, conns)
		}
		time.Sleep(50 * time.Millisecond)
		if late, err = pings(); err != nil {
			return nil, err
		}
	}
	return map[string]float64{
		valueIdleCPU: 100 * (cpu - cpuBefore).Seconds() / took.Seconds(),
		valuePings:   float64(pingsNow-pingsBefore) / float64(conns),
	}, s.wantConns(conns)
}

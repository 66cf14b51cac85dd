package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// runRole is what this program does when it has started itself again, nil when
// somebody else started it.
func runRole(args []string) func() error {
	switch {
	case len(args) == 1 && args[0] == "load":
		return func() error { return told(runLoad()) }
	case len(args) == 4 && args[0] == "serve":
		return func() error {
			heartbeat, err := time.ParseDuration(args[3])
			if err != nil {
				return err
			}
			return told(runServer(args[1], serverOptions{door: args[2], heartbeat: heartbeat}))
		}
	}
	return nil
}

// told tells an error to who started this process.
func told(err error) error {
	if err != nil {
		fmt.Printf("error %q\n", err)
	}
	return err
}

// peer is a server that can be started.
type peer struct {
	name    string
	command func(door string, heartbeat time.Duration) []string
}

// bench is a run of everything.
type bench struct {
	options
	self    string // this program
	peers   []peer // that can run, in the order of peerNames
	effort  effort
	results results
	began   time.Time
}

// reserve is how many descriptors a process needs for itself, and for the
// connections that it is just taking over.
const reserve = 500

func measure(o options) (err error) {
	b := &bench{options: o, effort: fullEffort, began: time.Now()}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "push-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		os.RemoveAll(dir) // the other processes end with this one
		os.Exit(1)
	}()
	b.results = results{Date: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(), Quick: o.quick, Runs: o.runs}
	if o.quick {
		b.effort = quickEffort
	}
	if err := b.setConns(); err != nil {
		return err
	}
	b.findPeers(dir)
	if len(b.peers) == 0 {
		return errors.New("there is nobody to measure")
	}
	for round := range o.runs {
		b.round(round)
		if err := b.results.write(o.out); err != nil {
			return err
		}
	}
	b.log("%s is made", filepath.Join(o.out, "table.md"))
	if n := len(b.results.Failures); n > 0 {
		return fmt.Errorf("%d failures, the first: %s", n, b.results.Failures[0])
	}
	return nil
}

func (b *bench) log(format string, args ...any) {
	fmt.Printf("%6.1f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// setConns sets how many connections there are: what was asked for, within the
// limit on descriptors, rising.
func (b *bench) setConns() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	most := int(min(limit.Max, 1_000_000)) - reserve
	for _, n := range b.conns {
		if n == 0 {
			n = min(most, 50_000) // clients are 8 addresses with 28 000 ports each
		}
		if n > most {
			return fmt.Errorf("%d connections need more than the %d descriptors that this process may have", n, limit.Max)
		}
		b.results.Conns = append(b.results.Conns, n)
	}
	slices.Sort(b.results.Conns)
	b.results.Conns = slices.Compact(b.results.Conns)
	return nil
}

// findPeers makes the ones that can run. One whose compiler or packages are not
// there is left out; one that does not compile is a failure. With -all, so is
// one whose packages only are not there.
func (b *bench) findPeers(dir string) {
	for _, name := range peerNames {
		if len(b.only) > 0 && !slices.Contains(b.only, name) {
			continue
		}
		p := peer{name: name}
		var missing, broken error
		switch name {
		case peerBare:
			program := filepath.Join(dir, "bare")
			if _, missing = exec.LookPath("cc"); missing == nil {
				broken = command("cc", "-O2", "-o", program, filepath.Join("bare", "bare.c"))
			}
			p.command = func(string, time.Duration) []string { return []string{program, eventText} }
		case peerGoroutines:
			program := filepath.Join(dir, "bench-goroutines")
			if _, missing = exec.LookPath("go"); missing == nil {
				broken = command("go", "build", "-tags", "pushgoroutines", "-o", program, ".")
			}
			p.command = serveCommand(program, peerEngine)
		case peerWS, peerSocketIO:
			script := filepath.Join("node", map[string]string{peerWS: "ws.mjs", peerSocketIO: "socketio.mjs"}[name])
			if _, missing = exec.LookPath("node"); missing == nil {
				if _, err := os.Stat(filepath.Join("node", "node_modules", name)); err != nil {
					missing = errors.New("it is not installed; npm ci in bench/node does that")
				}
			}
			p.command = func(_ string, heartbeat time.Duration) []string {
				return []string{"node", "--expose-gc", script, strconv.FormatInt(heartbeat.Milliseconds(), 10)}
			}
		default:
			p.command = serveCommand(b.self, name)
		}
		switch {
		case missing != nil && b.all && !errors.Is(missing, exec.ErrNotFound):
			b.fail("%s: %v", peerTitles[name], missing)
		case missing != nil:
			b.results.LeftOut = append(b.results.LeftOut, fmt.Sprintf("%s is left out: %v", peerTitles[name], missing))
			b.log("%s", b.results.LeftOut[len(b.results.LeftOut)-1])
		case broken != nil:
			b.fail("%s: %v", peerTitles[name], broken)
		default:
			b.peers = append(b.peers, p)
		}
	}
}

func (b *bench) fail(format string, args ...any) {
	b.results.Failures = append(b.results.Failures, fmt.Sprintf(format, args...))
	b.log("%s", b.results.Failures[len(b.results.Failures)-1])
}

func serveCommand(program, role string) func(string, time.Duration) []string {
	return func(door string, heartbeat time.Duration) []string {
		return []string{program, "serve", role, door, heartbeat.String()}
	}
}

// command runs a program; its error has the last line of what it printed.
func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); err != nil && lines[len(lines)-1] != "" {
		return fmt.Errorf("%w: %s", err, lines[len(lines)-1])
	}
	return err
}

// round measures everything once. Each round begins with another peer.
func (b *bench) round(round int) {
	peers := slices.Concat(b.peers[round%len(b.peers):], b.peers[:round%len(b.peers)])
	named := func(names ...string) (some []peer) {
		for _, p := range peers {
			if slices.Contains(names, p.name) {
				some = append(some, p)
			}
		}
		return some
	}
	one := func(part string, p peer, conns int, measured func() (map[string]float64, error)) {
		v, err := measured()
		b.keep(round, part, p, conns, err, v)
	}
	for _, conns := range b.results.Conns {
		for _, p := range peers {
			one(partLoad, p, conns, func() (map[string]float64, error) { return b.measureLoad(p, conns) })
		}
	}
	engines := named(peerEngine, peerGoroutines)
	most := b.results.most(markConns)
	if most == 0 {
		return
	}
	few := b.results.most(pushConns)
	if few > 0 {
		failed := func(p peer, err error) { b.keep(round, partPush, p, few, err) }
		for _, c := range b.measurePush(peers, few, failed) {
			b.keep(round, partPush, c.peer, few, nil, c.values())
		}
	}
	for _, bare := range named(peerBare) {
		for _, p := range engines {
			all, err := b.measureStrict(p, bare, most)
			b.keep(round, partStrict, p, most, err, all...)
		}
	}
	for _, p := range named(peerEngine, peerGoroutines, peerGorilla, peerGWS, peerCoder) {
		conns := min(tlsConns, most)
		one(partTLS, p, conns, func() (map[string]float64, error) { return b.measureDoor(p, doorTLS, conns) })
	}
	for _, door := range []string{doorSocketIO, doorMPush, doorMPushRSA} {
		for _, p := range engines {
			one(door, p, most, func() (map[string]float64, error) { return b.measureDoor(p, door, most) })
		}
	}
	// Who does next to nothing does it at the same time.
	idle := named(peerEngine, peerGoroutines, peerGorilla)
	v, errs := make([]map[string]float64, len(idle)), make([]error, len(idle))
	var all, dialing sync.WaitGroup
	dialing.Add(len(idle))
	for i, p := range idle {
		all.Go(func() { v[i], errs[i] = b.measureHeartbeat(p, most, &dialing) })
	}
	all.Wait()
	for i, p := range idle {
		b.keep(round, partHeartbeat, p, most, errs[i], v[i])
	}
}

// keep takes samples in, or a failure.
func (b *bench) keep(round int, part string, p peer, conns int, err error, samples ...map[string]float64) {
	what := fmt.Sprintf("run %d, %s, %s, %d connections", round+1, part, peerTitles[p.name], conns)
	if err != nil {
		b.fail("%s: %v", what, err)
		return
	}
	b.log("%s", what)
	for _, v := range samples {
		b.results.Samples = append(b.results.Samples, sample{round + 1, part, p.name, conns, v})
	}
}

// thisMachine reads what the figures depend on.
func thisMachine() machine {
	m := machine{CPU: "unknown", Versions: make(map[string]string)}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			m.CPU = strings.TrimSpace(value)
		case "processor":
			m.Cores++
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = "Linux " + strings.TrimSpace(string(kernel))
	load, _ := os.ReadFile("/proc/loadavg")
	m.Load, _, _ = strings.Cut(string(load), " ")
	readVersions(m.Versions)
	return m
}

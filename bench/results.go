package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// results are what results.json has: the samples as they were taken, from which
// the table and the plots are made.
type results struct {
	Date     time.Time `json:"date"`
	Machine  machine   `json:"machine"`
	Quick    bool      `json:"quick,omitempty"`
	Runs     int       `json:"runs"`
	Conns    []int     `json:"conns"`              // the last one is the maximum
	LeftOut  []string  `json:"left_out,omitempty"` // peers, and why
	Failures []string  `json:"failures,omitempty"`
	Samples  []sample  `json:"samples"`
}

type machine struct {
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	Kernel   string            `json:"kernel"`
	Load     string            `json:"load"`     // the average of the minute before it began
	Versions map[string]string `json:"versions"` // of Go, of Node, of the C compiler, of the peers; push is the engine's commit, with a + if files were changed
}

// sample is what one run of one peer told.
type sample struct {
	Run    int                `json:"run"`
	Part   string             `json:"part"`
	Peer   string             `json:"peer"`
	Conns  int                `json:"conns"`
	Values map[string]float64 `json:"values"`
}

// The parts: what is measured of whom.
const (
	partLoad      = "load"      // everybody: memory, deliveries, churn
	partPush      = "push"      // everybody in turn: latency
	partStrict    = "strict"    // the engine and the bare loop in turn
	partTLS       = "tls"       // some, over TLS
	partHeartbeat = "heartbeat" // some, with nothing but pings
	// The engine's other doors are parts of their own, called as they are.
)

// The values of a sample. CPU is the server's process, user and system.
const (
	valueRSS        = "rss"          // bytes a connection in RAM, after garbage collection
	valueHeap       = "heap"         // of it in heap objects
	valueStacks     = "stacks"       // of it in stacks
	valueGoroutines = "goroutines"   // a connection
	valueConnect    = "connect_cpu"  // µs a connection
	valueConnects   = "connect_rate" // connections a second
	valueSingle     = "single_cpu"   // µs a delivery of one broadcast
	valueSingleSpan = "single_ms"    // from the call to the last delivery
	valueBurst      = "burst_cpu"    // µs a delivery of ten broadcasts back to back
	valueBurstRate  = "burst_rate"   // deliveries a second of them
	valueFlat       = "flat_cpu"     // µs a push to one user, flat out
	valuePush50     = "push_p50"     // µs from the call to the client, whose caller works on
	valuePush99     = "push_p99"
	valueRest50     = "rest_p50" // the same, whose caller rests
	valueRest99     = "rest_p99"
	valueChurn      = "churn_cpu"        // µs a connection that went and came
	valueChurnHeap  = "churn_heap"       // after the third cycle / after the second
	valueChurnGo    = "churn_goroutines" // the third's less the second's

	valueSingleBare = "single_bare" // strict: CPU a delivery / of a bare write
	valueBurstBare  = "burst_bare"  // strict: the same of ten back to back

	valueIdleCPU = "idle_cpu" // heartbeat: % of a core
	valuePings   = "pings"    // heartbeat: answered, a connection
)

// The peers, in the order of the tables.
const (
	peerBare       = "bare"
	peerEngine     = "engine"
	peerGoroutines = "engine-goroutines"
	peerGorilla    = "gorilla"
	peerMelody     = "melody"
	peerGWS        = "gws"
	peerCoder      = "coder"
	peerWS         = "ws"
	peerSocketIO   = "socket.io"
)

var peerNames = []string{peerBare, peerEngine, peerGoroutines, peerGorilla, peerMelody, peerGWS, peerCoder, peerWS, peerSocketIO}

// peerTitles are what readers know them as.
var peerTitles = map[string]string{
	peerBare:       "bare write loop (C)",
	peerEngine:     "push",
	peerGoroutines: "push, goroutine driver",
	peerGorilla:    "gorilla hub",
	peerMelody:     "melody",
	peerGWS:        "gws",
	peerCoder:      "coder/websocket",
	peerWS:         "npm ws",
	peerSocketIO:   "npm socket.io",
}

// write makes results.json, table.md and the plots.
func (r *results) write(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	files := r.plots()
	files["results.json"] = append(raw, '\n')
	files["table.md"] = r.table()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o666); err != nil {
			return err
		}
	}
	return nil
}

func readResults(dir string) (*results, error) {
	b, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		return nil, err
	}
	r := new(results)
	return r, json.Unmarshal(b, r)
}

// values are those of all samples of a kind, in the order of the runs.
func (r *results) values(part, peer string, conns int, value string) (all []float64) {
	for _, s := range r.Samples {
		if s.Part != part || s.Peer != peer || s.Conns != conns {
			continue
		}
		if v, ok := s.Values[value]; ok {
			all = append(all, v)
		}
	}
	return all
}

// of says whose value it is.
type of struct {
	part, peer string
	conns      int
	value      string
}

// in is the median of a value in one run.
func (o of) in(r *results, run int) (float64, bool) {
	one := results{Samples: slices.DeleteFunc(slices.Clone(r.Samples), func(s sample) bool { return s.Run != run })}
	all := one.values(o.part, o.peer, o.conns, o.value)
	if len(all) == 0 {
		return 0, false
	}
	return median(all), true
}

// ratios are those of two values, or of a/b to c/d, within each run.
func (r *results) ratios(a, b of, under ...of) (all []float64) {
	for run := 1; run <= r.Runs; run++ {
		ratio, whole := 1.0, true
		for i, o := range append([]of{a, b}, under...) {
			v, ok := o.in(r, run)
			whole = whole && ok && v != 0
			if i == 0 || i == 3 {
				ratio *= v
			} else {
				ratio /= v
			}
		}
		if whole {
			all = append(all, ratio)
		}
	}
	return all
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// maximum is the largest number of connections, 0 if there is none.
func (r *results) maximum() int { return r.most(math.MaxInt) }

// growthOfMemory is what one more connection needs between pushConns and the
// maximum / a connection at markConns, in each run. What a process has once is
// in neither number that it is the difference of.
func (r *results) growthOfMemory(peer string) (all []float64) {
	few, maximum := r.most(pushConns), r.maximum()
	if few == 0 || maximum <= few {
		return nil
	}
	for run := 1; run <= r.Runs; run++ {
		at := func(conns int) (float64, bool) { return of{partLoad, peer, conns, valueRSS}.in(r, run) }
		least, ok1 := at(few)
		most, ok2 := at(maximum)
		each, ok3 := at(markConns)
		if ok1 && ok2 && ok3 && each != 0 {
			slope := (most*float64(maximum) - least*float64(few)) / float64(maximum-few)
			all = append(all, slope/each)
		}
	}
	return all
}

// most is the largest number of connections that was measured and is at most
// this one, 0 if there is none.
func (r *results) most(limit int) (n int) {
	for _, c := range r.Conns {
		if c <= limit {
			n = max(n, c)
		}
	}
	return n
}

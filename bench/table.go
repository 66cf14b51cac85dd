package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A mark is a ratio, or an amount, that the engine is to reach.
type mark struct {
	what  string
	limit float64
	unit  string
	at    int       // the connections that it is about; 0: any
	got   int       // those that were measured
	all   []float64 // one for each run, or more
}

const (
	markConns = 10_000
	pushConns = 1_000 // a push to one user, on an idle server
	tlsConns  = 2_000
)

func (r *results) marks() []mark {
	most, few, maximum := r.most(markConns), r.most(pushConns), r.maximum()
	growth := func(value string) []float64 {
		if few == 0 || maximum <= few {
			return nil
		}
		return r.ratios(of{partLoad, peerEngine, maximum, value}, of{partLoad, peerEngine, few, value})
	}
	var inWrites []float64
	if few > 0 && maximum > few {
		inWrites = r.ratios(of{partLoad, peerEngine, maximum, valueSingle}, of{partLoad, peerBare, maximum, valueSingle},
			of{partLoad, peerEngine, few, valueSingle}, of{partLoad, peerBare, few, valueSingle})
	}
	return []mark{
		{"memory of an idle WebSocket connection with a user and a room", 700, "B", markConns, most, r.values(partLoad, peerEngine, most, valueRSS)},
		{"the same under the goroutine driver", 4_500, "B", markConns, most, r.values(partLoad, peerGoroutines, most, valueRSS)},
		{"memory of an idle mpush device with an encrypted session, a user and a room", 800, "B", markConns, most, r.values(doorMPushRSA, peerEngine, most, valueRSS)},
		{"memory of an idle Socket.IO connection on WebSocket, with a user and a room", 1_000, "B", markConns, most, r.values(doorSocketIO, peerEngine, most, valueRSS)},
		{"one broadcast: CPU of a delivery / of a bare write in C", 1.15, "", markConns, most, r.values(partStrict, peerEngine, most, valueSingleBare)},
		{"ten broadcasts back to back: CPU of a delivery / of a bare write in C", 0.12, "", markConns, most, r.values(partStrict, peerEngine, most, valueBurstBare)},
		{"push to one user, p50 / the gorilla hub's, callers work on", 0.3, "", pushConns, few, r.ratios(of{partPush, peerEngine, few, valuePush50}, of{partPush, peerGorilla, few, valuePush50})},
		{"CPU of idle connections with heartbeats", 0.5, "% of a core", markConns, most, r.values(partHeartbeat, peerEngine, most, valueIdleCPU)},
		{"growth: memory of one more connection from 1 000 to the maximum / of one at 10 000", 1.1, "", 0, maximum, r.growthOfMemory(peerEngine)},
		{"growth: CPU to take a connection at the maximum / at 1 000", 1.1, "", 0, maximum, growth(valueConnect)},
		{"growth: CPU of a broadcast's delivery, the same", 1.1, "", 0, maximum, growth(valueSingle)},
		{"growth: the same counted in bare writes, which grow, too", 1.1, "", 0, maximum, inWrites},
	}
}

// verdict is reached, missed, or why it is neither.
func (m *mark) verdict() string {
	switch {
	case len(m.all) == 0:
		return "not measured"
	case m.at != 0 && m.at != m.got:
		return "no verdict at " + count(m.got)
	case median(m.all) <= m.limit:
		return "reached"
	default:
		return "**missed**"
	}
}

// table is the text that the README shows.
func (r *results) table() []byte {
	t := new(bytes.Buffer)
	fmt.Fprintf(t, "# The engine beside its peers\n\n")
	if r.Quick {
		fmt.Fprintf(t, "A run with -quick: it shows that everything works, its figures mean nothing.\n\n")
	}
	fmt.Fprintf(t, "%s. %s, %d cores, %s, load %s at the beginning. ",
		r.Date.UTC().Format("2006-01-02 15:04 UTC"), r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Load)
	versions := make([]string, 0, len(r.Machine.Versions))
	for name, version := range r.Machine.Versions {
		versions = append(versions, name+" "+version)
	}
	slices.SortFunc(versions, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	fmt.Fprintf(t, "%s.\n\n", strings.Join(versions, ", "))
	fmt.Fprintf(t, "%s Cells are the median of %s and, in brackets, the least and the most. CPU is the server process's, user and system; "+
		"memory is its RAM after garbage collection, less what it was when 1 000 connections had come and gone. How it is measured, and what that leaves out, is in bench/README.md.\n\n",
		"Every server is a process of its own, all take turns in each run, and the clients are one thread of another process on the same cores.", plural(r.Runs, "run"))
	for _, why := range r.LeftOut {
		fmt.Fprintf(t, "- %s\n", why)
	}
	for _, why := range r.Failures {
		fmt.Fprintf(t, "- **failed:** %s\n", why)
	}
	if len(r.LeftOut)+len(r.Failures) > 0 {
		fmt.Fprintln(t)
	}

	fmt.Fprintf(t, "## Marks\n\n")
	rows := [][]string{{"", "measured", "mark", ""}}
	for _, m := range r.marks() {
		if m.got > 0 {
			m.what += ", " + count(m.got) + " connections"
		}
		unit := ""
		if m.unit != "" {
			unit = " " + m.unit
		}
		rows = append(rows, []string{m.what, cell(m.all), "≤ " + number(m.limit) + unit, m.verdict()})
	}
	write(t, rows)

	most, few, maximum := r.most(markConns), r.most(pushConns), r.maximum()
	if most > 0 {
		fmt.Fprintf(t, "## Ratios, %s connections\n\nEach is of two figures of the same run. The bare loop writes each frame by itself, so a burst may be below 1 of it. Columns \"/ bare\" are of figures that were taken minutes apart; only \"The engine and the bare loop in turn\" below has them in turn.\n\n", count(most))
		load := func(value, to string) func(string) []float64 {
			toValue := value
			if to == peerBare {
				toValue = valueSingle
			}
			return func(peer string) []float64 {
				return r.ratios(of{partLoad, peer, most, value}, of{partLoad, to, most, toValue})
			}
		}
		r.peers(t, partLoad, most, []column{
			{"memory / gorilla", load(valueRSS, peerGorilla)},
			{"broadcast CPU / bare", load(valueSingle, peerBare)},
			{"burst CPU / bare", load(valueBurst, peerBare)},
			{"push p50 / gorilla, " + count(few), func(peer string) []float64 {
				return r.ratios(of{partPush, peer, few, valuePush50}, of{partPush, peerGorilla, few, valuePush50})
			}},
			{"connect CPU / gorilla", load(valueConnect, peerGorilla)},
		})
	}
	for _, conns := range r.Conns {
		fmt.Fprintf(t, "## %s connections\n\n", count(conns))
		at := func(value string) func(string) []float64 {
			return func(peer string) []float64 { return r.values(partLoad, peer, conns, value) }
		}
		fmt.Fprintf(t, "Idle connections, bytes each, and what taking one costs.\n\n")
		r.peers(t, partLoad, conns, []column{
			{"memory B", at(valueRSS)}, {"heap B", at(valueHeap)}, {"stacks B", at(valueStacks)}, {"goroutines", at(valueGoroutines)},
			{"connect CPU µs", at(valueConnect)}, {"connections/s", at(valueConnects)},
		})
		fmt.Fprintf(t, "Deliveries: CPU seconds for a million (or µs for one) of single broadcasts, of ten back to back, and of pushes to one user flat out.\n\n")
		r.peers(t, partLoad, conns, []column{
			{"broadcast s/M", at(valueSingle)}, {"to the last, ms", at(valueSingleSpan)},
			{"burst s/M", at(valueBurst)}, {"burst deliveries/s", at(valueBurstRate)}, {"to users s/M", at(valueFlat)},
		})
	}
	if few > 0 && maximum > few {
		fmt.Fprintf(t, "## Growth from %s to %s connections\n\nMemory is that of one more connection between the two numbers / of one at %s, so what is there once is not in it. CPU is that at the maximum / at %s.\n\n", count(few), count(maximum), count(markConns), count(few))
		growth := func(value string) func(string) []float64 {
			return func(peer string) []float64 {
				return r.ratios(of{partLoad, peer, maximum, value}, of{partLoad, peer, few, value})
			}
		}
		r.peers(t, partLoad, maximum, []column{
			{"memory of one more connection", r.growthOfMemory}, {"CPU to connect", growth(valueConnect)},
			{"CPU of a broadcast's delivery", growth(valueSingle)}, {"of a burst's", growth(valueBurst)},
		})
	}
	part := func(part string, conns int, title, text string, columns ...column) {
		if conns == 0 || !slices.ContainsFunc(r.Samples, func(s sample) bool { return s.Part == part && s.Conns == conns }) {
			return
		}
		fmt.Fprintf(t, "## %s, %s connections\n\n%s\n\n", title, count(conns), text)
		r.peers(t, part, conns, columns)
	}
	at := func(part string, conns int, value string) func(string) []float64 {
		return func(peer string) []float64 { return r.values(part, peer, conns, value) }
	}
	part(partPush, few, "Push to one user", "µs from the call until the client has it. All servers are there, and take turns; nothing else happens on them. "+
		"A caller that works on keeps its processor after the call, as one does that has a request to answer; one that rests gives it to the goroutine that writes.",
		column{"p50, caller works on", at(partPush, few, valuePush50)}, column{"p99, works on", at(partPush, few, valuePush99)},
		column{"p50, caller rests", at(partPush, few, valueRest50)}, column{"p99, rests", at(partPush, few, valueRest99)})
	part(partStrict, most, "The engine and the bare loop in turn", "CPU of a delivery / of a bare write right before and after it.",
		column{"broadcast / bare", at(partStrict, most, valueSingleBare)}, column{"burst / bare", at(partStrict, most, valueBurstBare)})
	if slices.ContainsFunc(r.Samples, func(s sample) bool { _, ok := s.Values[valueChurn]; return ok }) {
		fmt.Fprintf(t, "## Churn, %s connections\n\nHalf of the connections go and come, three times.\n\n", count(most))
		r.peers(t, partLoad, most, []column{
			{"CPU µs of one that goes and comes", at(partLoad, most, valueChurn)},
			{"heap after the third / the second", at(partLoad, most, valueChurnHeap)},
			{"goroutines, third less second", at(partLoad, most, valueChurnGo)},
		})
	}
	for _, door := range []struct{ part, title, text string }{
		{partTLS, "TLS", "TLS 1.3, ECDSA P-256, no resumption; connecting is the handshake and the upgrade."},
		{doorSocketIO, "Socket.IO on WebSocket", "Clients of Socket.IO 4 on the engine; npm socket.io's are in the tables above."},
		{doorMPush, "mpush devices, plain", "A session that is not encrypted."},
		{doorMPushRSA, "mpush devices, encrypted", "Connecting has an RSA handshake of 1 024 bits without CRT values, mpush's stock key."},
	} {
		conns := most
		if door.part == partTLS {
			conns = min(most, tlsConns)
		}
		at := func(value string) func(string) []float64 { return at(door.part, conns, value) }
		columns := []column{{"memory B", at(valueRSS)}, {"heap B", at(valueHeap)}, {"stacks B", at(valueStacks)}, {"connect CPU µs", at(valueConnect)}}
		if door.part == partTLS || door.part == doorSocketIO {
			columns = append(columns, column{"broadcast s/M", at(valueSingle)}, column{"burst s/M", at(valueBurst)})
		}
		part(door.part, conns, door.title, door.text, columns...)
	}
	part(partHeartbeat, most, "Heartbeats", "Nothing happens but pings, every 25 s, which clients answer.",
		column{"CPU, % of a core", at(partHeartbeat, most, valueIdleCPU)}, column{"pings a connection", at(partHeartbeat, most, valuePings)})
	return append(bytes.TrimRight(t.Bytes(), "\n"), '\n')
}

// column is a heading and the values of a peer.
type column struct {
	title string
	of    func(peer string) []float64
}

// peers writes a table of those who have samples in a part. Columns in which
// nobody has anything are left out.
func (r *results) peers(t *bytes.Buffer, part string, conns int, columns []column) {
	columns = slices.DeleteFunc(slices.Clone(columns), func(c column) bool {
		return !slices.ContainsFunc(peerNames, func(peer string) bool { return len(c.of(peer)) > 0 })
	})
	rows := [][]string{{""}}
	for _, c := range columns {
		rows[0] = append(rows[0], c.title)
	}
	for _, peer := range peerNames {
		if !slices.ContainsFunc(r.Samples, func(s sample) bool { return s.Part == part && s.Peer == peer && s.Conns == conns }) {
			continue
		}
		row := []string{peerTitles[peer]}
		for _, c := range columns {
			row = append(row, cell(c.of(peer)))
		}
		if slices.ContainsFunc(row[1:], func(s string) bool { return s != "-" }) {
			rows = append(rows, row)
		}
	}
	if len(rows) == 1 || len(columns) == 0 {
		fmt.Fprintf(t, "Not measured.\n\n")
		return
	}
	write(t, rows)
}

// write writes rows, of which the first is the head.
func write(t *bytes.Buffer, rows [][]string) {
	line := func(cells []string) { fmt.Fprintf(t, "| %s |\n", strings.Join(cells, " | ")) }
	line(rows[0])
	rule := []string{"---"}
	for range rows[0][1:] {
		rule = append(rule, "---:")
	}
	line(rule)
	for _, row := range rows[1:] {
		line(row)
	}
	fmt.Fprintln(t)
}

// cell is the median, and what the others are within.
func cell(all []float64) string {
	switch len(all) {
	case 0:
		return "-"
	case 1:
		return number(all[0])
	}
	least, most := number(slices.Min(all)), number(slices.Max(all))
	if least == most {
		return least
	}
	return fmt.Sprintf("%s (%s–%s)", number(median(all)), least, most)
}

// number has three digits that count, or all before the point.
func number(x float64) string {
	if x == 0 || math.Abs(x) >= 100 {
		return count(int(math.Round(x)))
	}
	decimals := 2
	if math.Abs(x) >= 10 {
		decimals = 1
	} else if math.Abs(x) < 0.1 {
		decimals = 3
	}
	return strconv.FormatFloat(x, 'f', decimals, 64)
}

// count is a number with a space between thousands.
func count(n int) string {
	if n < 0 {
		return "-" + count(-n)
	}
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s %03d", count(n/1000), n%1000)
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

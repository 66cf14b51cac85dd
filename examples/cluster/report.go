package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// report prints what became of nodes, clients and pushes.
func (w *world) report(out io.Writer) {
	c, wrong := w.ledger.sum()
	writeReport(out, w.fleet.view(), w.devices.view(), c, wrong)
}

func writeReport(out io.Writer, nodes []nodeView, devices []deviceView, c counts, wrong []string) {
	fmt.Fprintln(out)
	rows := [][]string{{"node", "is", "#started", "#killed", "#stopped", "#drained", "#pushes made"}}
	for _, n := range nodes {
		rows = append(rows, []string{n.ID, string(n.Is), strconv.Itoa(n.Started), count(n.Killed), count(n.Stopped), count(n.Drained), strconv.Itoa(n.Pushes)})
	}
	writeTable(out, rows)

	rows = [][]string{{"client", "protocol", "began on", "is on", "#lost", "#pushes seen"}}
	for _, d := range devices {
		rows = append(rows, []string{d.Name, d.Protocol, d.Home, or(d.On, "-"), count(d.Lost), strconv.Itoa(d.Seen)})
	}
	writeTable(out, rows)

	total := 0
	for _, n := range c.Deliveries {
		total += n
	}
	rows = [][]string{
		{"pushes", "#" + strconv.Itoa(c.Pushes)},
		{"  whose node was killed before the receipt", strconv.Itoa(c.Died)},
		{"  whose receipt came behind its deadline", strconv.Itoa(c.Late)},
		{"  in the quiet at the end", strconv.Itoa(c.Quiet)},
		{"  of these, acked by all three devices", strconv.Itoa(c.Whole)},
		{"deliveries, as the receipts say", strconv.Itoa(total)},
	}
	for _, status := range slices.Sorted(maps.Keys(c.Deliveries)) {
		rows = append(rows, []string{"  " + status, strconv.Itoa(c.Deliveries[status])})
	}
	rows = append(rows, []string{"seen but not acked", strconv.Itoa(c.Unacked)}, []string{"seen twice", strconv.Itoa(c.Twice)})
	writeTable(out, rows)
	for _, text := range wrong {
		fmt.Fprintf(out, "WRONG: %s\n", text)
	}
	fmt.Fprintf(out, "acked but not seen: %d\n", c.Lies)
}

// count is a number of faults, of which most are none.
func count(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func or(text, instead string) string {
	if text == "" {
		return instead
	}
	return text
}

// writeTable prints rows in columns and a blank line. A column whose head begins
// with # is numbers, and stands on the right.
func writeTable(out io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	right := make([]bool, len(rows[0]))
	for i, head := range rows[0] {
		rows[0][i], right[i] = strings.CutPrefix(head, "#")
	}
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if right[i] {
				line.WriteString(pad + cell + "  ")
			} else {
				line.WriteString(cell + pad + "  ")
			}
		}
		fmt.Fprintln(out, strings.TrimRight(line.String(), " "))
	}
	fmt.Fprintln(out)
}

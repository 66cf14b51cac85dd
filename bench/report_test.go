package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func canned(t *testing.T) *results {
	t.Helper()
	r, err := readResults("testdata")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTableIsThatOfItsResults compares with testdata/table.md. After a change
// that is wanted, go run . -table -out testdata makes that anew, beside plots.
func TestTableIsThatOfItsResults(t *testing.T) {
	want, err := os.ReadFile(filepath.Join("testdata", "table.md"))
	if err != nil {
		t.Fatal(err)
	}
	got := canned(t).table()
	if bytes.Equal(got, want) {
		return
	}
	wantLines := strings.Split(string(want), "\n")
	for i, line := range strings.Split(string(got), "\n") {
		if i >= len(wantLines) || line != wantLines[i] {
			t.Fatalf("line %d is\n%s\nwant\n%s", i+1, line, strings.Join(wantLines[min(i, len(wantLines)):min(i+1, len(wantLines))], ""))
		}
	}
	t.Fatalf("%d lines are missing", len(wantLines)-strings.Count(string(got), "\n")-1)
}

func TestMarksAreJudgedByMedians(t *testing.T) {
	r := canned(t)
	want := []struct {
		median  float64
		verdict string
	}{
		{600, "reached"},
		{4600, "**missed**"},
		{790, "reached"},
		{math.NaN(), "not measured"}, // there is no Socket.IO
		{1.125, "reached"},
		{0.1, "reached"},
		{0.25, "reached"},
		{0.6, "**missed**"},
		{1, "reached"},
		{1.5, "**missed**"},
		{1.5, "**missed**"},
		{1, "reached"},
	}
	marks := r.marks()
	if len(marks) != len(want) {
		t.Fatalf("%d marks, want %d", len(marks), len(want))
	}
	for i, m := range marks {
		if got := m.verdict(); got != want[i].verdict {
			t.Errorf("%s: %s, want %s", m.what, got, want[i].verdict)
		}
		if len(m.all) > 0 && math.Abs(median(m.all)-want[i].median) > 1e-9 {
			t.Errorf("%s: %v, want %v", m.what, median(m.all), want[i].median)
		}
	}
	r.Conns = []int{200}
	if m := r.marks()[0]; m.verdict() != "not measured" {
		t.Errorf("without samples: %s", m.verdict())
	}
	for i := range r.Samples {
		r.Samples[i].Conns = 200
	}
	for _, m := range r.marks() {
		if v := m.verdict(); v == "reached" || v == "**missed**" {
			t.Errorf("%s is judged at 200 connections", m.what)
		}
	}
}

// TestRatiosAreOfOneRun: the machine's moods change between runs.
func TestRatiosAreOfOneRun(t *testing.T) {
	r := canned(t)
	for _, ratio := range r.ratios(of{partLoad, peerEngine, 10_000, valueSingle}, of{partLoad, peerBare, 10_000, valueSingle}) {
		if math.Abs(ratio-1.1) > 1e-9 {
			t.Errorf("a ratio of %v, want 1.1 in each run", ratio)
		}
	}
	r.Samples = r.Samples[1:] // the bare loop's in run 1 at 1 000
	if got := r.ratios(of{partLoad, peerEngine, 1000, valueSingle}, of{partLoad, peerBare, 1000, valueSingle}); len(got) != 2 {
		t.Errorf("%d ratios of two runs that have both", len(got))
	}
}

// TestGrowthOfMemoryLeavesOutWhatIsThereOnce: a process whose RAM is so much
// once, and so much for each connection, does not grow; one whose connections
// need more the more there are does.
func TestGrowthOfMemoryLeavesOutWhatIsThereOnce(t *testing.T) {
	for _, c := range []struct {
		once, each, more float64 // more: for each connection beside each
		want             float64
		verdict          string
	}{
		{0, 700, 0, 1, "reached"},
		{-400_000, 700, 0, 700. / 660, "reached"},
		{200_000, 700, 0, 700. / 720, "reached"},
		{0, 600, 0.01, 805. / 700, "**missed**"},
	} {
		r := &results{Runs: 1, Conns: []int{1000, 10_000, 19_500}}
		for _, conns := range r.Conns {
			n := float64(conns)
			r.Samples = append(r.Samples, sample{1, partLoad, peerEngine, conns, map[string]float64{valueRSS: c.once/n + c.each + c.more*n}})
		}
		got := r.growthOfMemory(peerEngine)
		if len(got) != 1 || math.Abs(got[0]-c.want) > 1e-9 {
			t.Errorf("%+v: growth %v, want %v", c, got, c.want)
		}
		for _, m := range r.marks() {
			if strings.HasPrefix(m.what, "growth: memory") && m.verdict() != c.verdict {
				t.Errorf("%+v is %s, want %s", c, m.verdict(), c.verdict)
			}
		}
	}
}

// TestResultsOfNothingMakeATable: a run may have been ended before it began.
func TestResultsOfNothingMakeATable(t *testing.T) {
	if got := new(results).table(); !bytes.Contains(got, []byte("not measured")) {
		t.Errorf("table without samples:\n%s", got)
	}
	if got := new(results).plots(); len(got) != 0 {
		t.Errorf("%d plots without samples", len(got))
	}
}

// element is one of an SVG file.
type element struct {
	name string
	attr map[string]string
	text string
}

func parse(t *testing.T, name string, svg []byte) (all []element) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{name: token.Name.Local, attr: make(map[string]string)}
			for _, a := range token.Attr {
				e.attr[a.Name.Local] = a.Value
			}
			all = append(all, e)
		case xml.CharData:
			if len(all) > 0 {
				all[len(all)-1].text += strings.TrimSpace(string(token))
			}
		}
	}
}

func TestPlotsAreWellFormedAndInsideTheirFrame(t *testing.T) {
	plots := canned(t).plots()
	for _, name := range []string{"memory", "broadcast", "burst", "push", "connect", "growth-memory", "growth-broadcast"} {
		name += ".svg"
		elements := parse(t, name, plots[name])
		if len(elements) == 0 || elements[0].name != "svg" {
			t.Fatalf("%s has no svg", name)
		}
		inside := func(value, limit string) {
			v, err := strconv.ParseFloat(value, 64)
			most, _ := strconv.ParseFloat(elements[0].attr[limit], 64)
			if err != nil || v < 0 || v > most {
				t.Errorf("%s: %q is not from 0 to %v", name, value, most)
			}
		}
		for _, e := range elements[1:] {
			for attr, value := range e.attr {
				switch attr {
				case "x", "x1", "x2":
					inside(value, "width")
				case "y", "y1", "y2":
					inside(value, "height")
				case "points":
					for _, point := range strings.Fields(value) {
						x, y, _ := strings.Cut(point, ",")
						inside(x, "width")
						inside(y, "height")
					}
				}
			}
		}
	}
	if again := canned(t).plots(); !bytes.Equal(again["memory.svg"], plots["memory.svg"]) {
		t.Error("the same results make another plot")
	}
}

func TestBarsAreAsLongAsTheirMedians(t *testing.T) {
	var lengths []float64
	var names []string
	for _, e := range parse(t, "memory.svg", canned(t).plots()["memory.svg"])[2:] { // behind svg and its frame
		switch {
		case e.name == "rect":
			width, err := strconv.ParseFloat(e.attr["width"], 64)
			if err != nil {
				t.Fatal(err)
			}
			lengths = append(lengths, width)
		case e.attr["text-anchor"] == "end":
			names = append(names, e.text)
		}
	}
	if got, want := strings.Join(names, ", "), "push, push, goroutine driver, gorilla hub"; got != want {
		t.Fatalf("bars of %s, want %s", got, want)
	}
	for i, want := range []float64{600, 4600, 12_000} {
		if got := lengths[i] / lengths[2] * 12_000; math.Abs(got-want) > 20 {
			t.Errorf("%s has a bar of %v B, want %v", names[i], got, want)
		}
	}
}

func TestNumbersHaveThreeDigitsThatCount(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 0.0456: "0.046", 0.1234: "0.12", 1.15: "1.15", 12.34: "12.3", 123.4: "123", 12345.6: "12 346", 1234567: "1 234 567", -1234: "-1 234"} {
		if got := number(x); got != want {
			t.Errorf("%v is %q, want %q", x, got, want)
		}
	}
}

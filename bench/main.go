// Command bench runs the engine beside its peers, in turn, over the same
// load on loopback, and makes a table and plots of what it measured. See
// README.md.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// options are the command line's.
type options struct {
	quick bool
	all   bool
	runs  int
	conns []int // 0: as many as there may be
	only  []string
	out   string
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if role := runRole(args); role != nil {
		return role()
	}
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	var o options
	flags.BoolVar(&o.quick, "quick", false, "everything once, with 200 connections: a check that it works, not a measurement")
	flags.IntVar(&o.runs, "runs", 5, "how often each figure is measured")
	flags.BoolVar(&o.all, "all", false, "it is an error if a peer is left out whose compiler, or Node, is there")
	conns := flags.String("conns", "1000,10000,max", "numbers of connections; max: what the limit on descriptors allows")
	only := flags.String("only", "", "the peers that run, of "+strings.Join(peerNames, ",")+"; empty: all")
	flags.StringVar(&o.out, "out", "results", "the folder for results.json, table.md and the plots")
	table := flags.Bool("table", false, "measure nothing, make table and plots of the results.json in -out anew")
	flags.Parse(args)
	if *table {
		r, err := readResults(o.out)
		if err != nil {
			return err
		}
		return r.write(o.out)
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	for _, name := range o.only {
		if !slices.Contains(peerNames, name) {
			return fmt.Errorf("no peer is called %q", name)
		}
	}
	for _, word := range strings.Split(*conns, ",") {
		n, err := strconv.Atoi(word)
		if word != "max" && (err != nil || n < 10) {
			return fmt.Errorf("-conns: %q", word)
		}
		o.conns = append(o.conns, n)
	}
	if o.runs < 1 || flags.NArg() > 0 {
		return errors.New("see -help")
	}
	if o.quick {
		o.runs, o.conns = 1, []int{200}
	}
	return measure(o)
}

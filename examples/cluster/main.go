// Cluster is three nodes on one machine, and what happens to pushes when they
// are killed, stopped and drained. It starts itself three times as nodes a, b
// and c, connects alice three times (a WebSocket page to a, a Socket.IO page to
// b, an mpush device to c) and bob once (to b), pushes to alice ten times a
// second from the nodes in turn, and shows it all on a page with buttons.
//
//	go run ./examples/cluster                      # the page's address is printed
//	go run ./examples/cluster -headless -for 30s   # no page: a fixed sequence of faults, and the table
//
// One number is what it is for: acked but not seen. Each client writes down
// what it sees before it acknowledges it, each receipt says what was
// acknowledged, and the ledger compares the two. It has to be 0, whatever is
// done to the nodes.
//
// A client whose node is gone goes to the node that is up and has the fewest
// clients, as behind a load balancer, and stays there. A stopped node's clients
// stay with it: their connections are whole, and ten seconds are no reason to
// leave. Everything is on loopback and on free ports, and ends with this
// program.
//
// The files, in the order of reading: node.go is one node; fleet.go starts the
// three and does things to them, and ask.go asks them to push; devices.go,
// pages.go and phone.go are the clients; ledger.go compares; load.go pushes;
// script.go is the sequence of -headless and report.go its table; page.go and
// page.html are the page.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if os.Getenv(asNode) != "" {
		signal.Ignore(os.Interrupt) // Ctrl-C goes to parent and nodes alike; the parent ends the nodes
		if err := runNode(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "node:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// options is the flags.
type options struct {
	http     string
	headless bool
	length   time.Duration // of the sequence of -headless
	verbose  bool
}

// shortest is what the sequence needs between its steps.
const shortest = 10 * time.Second

func parse(args []string, stdout io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	flags.SetOutput(stdout)
	flags.StringVar(&o.http, "http", "127.0.0.1:0", "address of the page, on this machine; port 0 is any free one")
	flags.BoolVar(&o.headless, "headless", false, "no page: do a sequence of faults, print what came of it, and end with 1 if a receipt was wrong")
	flags.DurationVar(&o.length, "for", 30*time.Second, "how long -headless takes, at least "+shortest.String())
	flags.BoolVar(&o.verbose, "v", false, "print what the nodes log, too")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	given := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("%q is no flag", flags.Arg(0))
	case given["for"] && !o.headless:
		return o, errors.New("-for is about -headless")
	case given["http"] && o.headless:
		return o, errors.New("-http is about the page, which -headless has not")
	case o.length < shortest:
		return o, fmt.Errorf("-for is %v, want at least %v", o.length, shortest)
	}
	return o, nil
}

// run is the program until ctx ends or the sequence has.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	w, err := newWorld(o.verbose)
	if err != nil {
		return err
	}
	defer w.end()
	if o.headless {
		return w.headless(ctx, o.length, stdout)
	}
	return w.serve(ctx, o.http, stdout)
}

// world is everything there is.
type world struct {
	diary   *diary
	ledger  *ledger
	fleet   *fleet
	devices *devices
	load    *load
}

func newWorld(verbose bool) (*world, error) {
	w := &world{diary: newDiary(), ledger: newLedger(aliceHas)}
	var err error
	if w.fleet, err = newFleet(w.diary, verbose); err != nil {
		return nil, err
	}
	w.devices = newDevices(w.fleet, w.ledger, w.diary)
	w.load = &load{nodes: w.fleet, ledger: w.ledger}
	return w, nil
}

// begin returns when the nodes know each other and the clients are connected.
// What happens from then on is told to out, if it is not nil.
func (w *world) begin(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the nodes did not find each other in 30 s"))
	defer cancel()
	if err := w.fleet.begin(ctx); err != nil {
		return err
	}
	w.devices.begin()
	if err := w.devices.wait(ctx); err != nil {
		return err
	}
	w.diary.begin(out)
	w.diary.printf("%s are up and know each other", strings.Join(w.fleet.up(), ", "))
	for _, d := range w.devices.view() {
		w.diary.printf("%s is on %s", d.Name, d.On)
	}
	return nil
}

// end ends clients and nodes, and waits for both.
func (w *world) end() {
	w.devices.end()
	w.fleet.end()
}

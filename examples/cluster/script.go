package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// step is one thing that is done to a node.
type step struct {
	at time.Duration // from the beginning
	do func(ctx context.Context) error
}

const stopLongest = 10 * time.Second

// script is what -headless does in this time, and when the quiet begins: the
// last tenth.
func (w *world) script(length time.Duration) (steps []step, quiet time.Duration) {
	part := func(percent int) time.Duration { return length * time.Duration(percent) / 100 }
	f := w.fleet
	steps = []step{
		{part(10), func(context.Context) error { return f.kill("a") }},
		{part(20), func(ctx context.Context) error { return f.start(ctx, "a") }},
		{part(30), func(context.Context) error {
			if !canStop {
				return nil
			}
			return f.stop("c", min(stopLongest, part(34)))
		}},
		{part(70), func(context.Context) error { return f.drain("b") }},
		{part(80), func(ctx context.Context) error { return f.restart(ctx, "b") }}, // when it has ended
	}
	return steps, part(90)
}

// headless does the script and prints the table.
func (w *world) headless(ctx context.Context, length time.Duration, out io.Writer) error {
	fmt.Fprintf(out, "Three nodes; alice on three devices, bob on one; ten pushes a second to alice\n\n")
	if err := w.begin(ctx, out); err != nil {
		return err
	}
	begin := time.Now()
	enough, stop := context.WithCancel(ctx)
	defer stop()
	var load sync.WaitGroup
	load.Go(func() { w.load.run(ctx, enough) })
	err := w.play(ctx, begin, length)
	stop()
	load.Wait()
	w.report(out)
	return errors.Join(err, w.verdict())
}

// play does the steps, and returns when the time is over.
func (w *world) play(ctx context.Context, begin time.Time, length time.Duration) error {
	until := func(at time.Duration) error {
		if !pauseFor(ctx, time.Until(begin.Add(at))) {
			return errors.New("interrupted")
		}
		return nil
	}
	steps, quiet := w.script(length)
	for _, s := range steps {
		if err := until(s.at); err != nil {
			return err
		}
		if err := s.do(ctx); err != nil {
			return err
		}
	}
	// A step that took long leaves the quiet its length.
	quiet = max(quiet, time.Since(begin)+length/20)
	if err := until(quiet); err != nil {
		return err
	}
	w.diary.printf("quiet: from here on a push has to reach all of alice's devices")
	w.load.quiet.Store(true)
	return until(quiet + length/10)
}

// verdict is nil if the receipts were right.
func (w *world) verdict() error {
	c, _ := w.ledger.sum()
	var errs []error
	if c.Lies > 0 {
		errs = append(errs, fmt.Errorf("%d deliveries were acked but not seen", c.Lies))
	}
	if c.Strange > 0 {
		errs = append(errs, fmt.Errorf("%d pushes were seen that nobody made", c.Strange))
	}
	if c.Quiet == 0 || c.Whole < c.Quiet {
		errs = append(errs, fmt.Errorf("%d of %d pushes in the quiet at the end reached all of alice's devices", c.Whole, c.Quiet))
	}
	if n := w.fleet.crashes(); n > 0 {
		errs = append(errs, fmt.Errorf("%d nodes ended badly", n))
	}
	return errors.Join(errs...)
}

package test

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// TestContextOfAConnectionEndsWithIt, and so does what was made of it, in
// whatever way that was made; before that it costs no goroutine.
func TestContextOfAConnectionEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Authenticate: push.TrustClaims})
		p := w.connect("alice")
		c := slices.Collect(w.Conns())[0]
		ctx := c.Context()
		if c.Context() != ctx {
			t.Error("asked again, it is another context")
		}
		synctest.Wait()
		before := runtime.NumGoroutine()
		var made []context.Context
		for range 10 {
			with, cancel := context.WithCancel(context.WithValue(ctx, t, "x"))
			defer cancel()
			timed, cancel := context.WithTimeout(with, time.Hour)
			defer cancel()
			made = append(made, with, timed)
		}
		given, giveUp := context.WithCancel(ctx)
		giveUp()
		called, stopped := make(chan struct{}), make(chan struct{})
		context.AfterFunc(ctx, func() { close(called) })
		if stop := context.AfterFunc(ctx, func() { close(stopped) }); !stop() || stop() {
			t.Error("a function that waits is stopped once")
		}
		synctest.Wait()
		if n := runtime.NumGoroutine(); n != before {
			t.Errorf("%d goroutines, %d before", n, before)
		}
		for i, ctx := range append(made, ctx) {
			if err := ctx.Err(); err != nil {
				t.Errorf("context %d of a connection that lives: %v", i, err)
			}
		}
		done := ctx.Done()
		p.vanishes()
		<-called
		<-done
		synctest.Wait()
		for i, ctx := range append(made, ctx, given) {
			if err := ctx.Err(); err != context.Canceled {
				t.Errorf("context %d of a connection that ended: %v", i, err)
			}
			<-ctx.Done()
		}
		if ctx.Done() != done {
			t.Error("Done is another channel than before the end")
		}
		select {
		case <-stopped:
			t.Error("a function that was stopped ran")
		default:
		}
		late := make(chan struct{})
		if stop := context.AfterFunc(ctx, func() { close(late) }); stop() {
			t.Error("a function that is called at once was stopped")
		}
		<-late
		after, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		if after.Err() != context.Canceled {
			t.Errorf("a context made after the end: %v", after.Err())
		}
		if _, limited := ctx.Deadline(); limited || ctx.Value(t) != nil {
			t.Error("it has a deadline, or a value")
		}
	})
}

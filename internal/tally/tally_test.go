package tally

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestWaitEndsAtZeroOrWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Tally
		if err := c.Wait(t.Context()); err != nil {
			t.Fatalf("nothing counted: %v", err)
		}
		c.Add()
		c.Add()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Wait(ctx); err != context.DeadlineExceeded {
			t.Fatalf("two counted: want the deadline, got %v", err)
		}
		time.AfterFunc(time.Minute, c.Done)
		time.AfterFunc(2*time.Minute, c.Done)
		begin := time.Now()
		if err := c.Wait(t.Context()); err != nil || time.Since(begin) != 2*time.Minute {
			t.Fatalf("want nil after 2m, got %v after %v", err, time.Since(begin))
		}
		if c.Len() != 0 {
			t.Fatalf("want 0, got %d", c.Len())
		}
	})
}

package polling

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/eio"
)

// newGroupRig is a rig whose requests that say so are of a group.
func newGroupRig(t *testing.T) (*rig, *Group) {
	t.Helper()
	group := new(Group)
	var g *rig
	g = newRig(t, func(_ *Config, s *http.Server) {
		s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("In") != "" {
				r = r.WithContext(group.Context(r.Context()))
			}
			g.s.ServeHTTP(w, r)
		})
	})
	return g, group
}

// holdIn is a GET of the group that is held.
func (c *session) holdIn(t *testing.T) <-chan answer {
	t.Helper()
	done := make(chan answer, 1)
	go func() { done <- c.g.do(t.Context(), "GET", c.query, nil, "In", "it") }()
	synctest.Wait()
	if len(done) > 0 {
		t.Error("the GET was not held")
	}
	return done
}

func TestReleaseEndsTheHeldGETsOfItsGroupWithANoop(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g, group := newGroupRig(t)
		in, out := g.begin(rev, "&b64=1"), g.begin(rev, "")
		group.Release() // nobody is held
		for range 3 {
			done, other := in.holdIn(t), out.hold()
			time.Sleep(time.Minute)
			group.Release()
			group.Release()
			a := <-done
			a.want(t, 200, body(rev, "6"))
			if got := a.Header.Get("Content-Type"); got != "text/plain; charset=UTF-8" {
				t.Errorf("Content-Type is %q", got)
			}
			time.Sleep(time.Minute)
			if len(other) > 0 {
				t.Error("a GET of no group was ended")
			}
			in.send("x")
			in.get().want(t, 200, body(rev, "4x"))
			out.send("y")
			(<-other).want(t, 200, body(rev, "4y"))
		}
		in.wantWhole()
		out.wantWhole()
	})
}

// What was pushed in the same moment is not behind a noop, and not lost.
func TestReleaseBesideAPushLosesNothing(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g, group := newGroupRig(t)
		c := g.begin(rev, "")
		for range 50 {
			done := c.holdIn(t)
			var wg sync.WaitGroup
			wg.Go(group.Release)
			wg.Go(func() { c.send("x") })
			a := <-done
			if a.body == body(rev, "6") {
				a = c.get()
			}
			a.want(t, 200, body(rev, "4x"))
			wg.Wait()
		}
		c.wantWhole()
	})
}

func TestReleaseOfAClientThatWentAwayEndsItsSessionAsEver(t *testing.T) {
	both(t, func(t *testing.T, rev eio.Revision) {
		g, group := newGroupRig(t)
		c := g.begin(rev, "")
		ctx, cancel := context.WithCancel(t.Context())
		go g.do(ctx, "GET", c.query, nil, "In", "it")
		synctest.Wait()
		cancel()
		synctest.Wait()
		group.Release()
		c.wantBroken(0)
		c.get().wantCode(t, UnknownSID)
	})
}

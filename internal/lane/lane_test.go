package lane

import (
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
)

type starter struct{ begins, moved, died, ends int }

func (s *starter) LaneBegins() { s.begins++ }
func (s *starter) LaneMoved()  { s.moved++ }
func (s *starter) LaneDied()   { s.died++ }
func (s *starter) LaneEnds()   { s.ends++ }

func TestTasksRunInOrderOnAGoroutineThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lane
		var s starter
		var got []int
		hold := make(chan struct{})
		l.Always(func() { <-hold }, &s)
		for i := range 100 {
			l.Put(1, func() { got = append(got, i) }, &s)
		}
		if !l.Full(Limit{Items: 100}) || !l.Full(Limit{Bytes: 100}) || l.Full(Limit{Items: 101, Bytes: 101}) || l.Full(Limit{}) {
			t.Fatal("100 tasks of one byte wait: the limits are judged wrongly")
		}
		close(hold)
		synctest.Wait()
		want := make([]int, 100)
		for i := range want {
			want[i] = i
		}
		if !slices.Equal(got, want) {
			t.Fatalf("out of order: %v", got)
		}
		if s.begins != 1 || s.ends != 1 || s.moved != 100 {
			t.Fatalf("want one goroutine that began, moved 100 times and ended, got %+v", s)
		}
		if l.Full(Limit{Items: 1, Bytes: 1}) {
			t.Fatal("full although nothing waits")
		}
	})
}

func TestATaskMayAddTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lane
		var s starter
		depth := 0
		var f func()
		f = func() {
			if depth++; depth < 10 {
				l.Put(0, f, &s)
			}
		}
		l.Put(0, f, &s)
		synctest.Wait()
		if depth != 10 || s.begins != s.ends {
			t.Fatalf("want 10 runs and every goroutine ended, got %d and %+v", depth, s)
		}
	})
}

func TestATaskThatEndsItsGoroutineEndsNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Lane
		var s starter
		ran := false
		l.Put(1, runtime.Goexit, &s)
		l.Put(1, func() { ran = true }, &s)
		synctest.Wait()
		if !ran || s.died != 1 || s.begins != 1 || s.ends != 1 || s.moved != 2 || l.Full(Limit{Items: 1}) {
			t.Fatalf("want the next task run and everything counted, got %v, %+v", ran, s)
		}
	})
}

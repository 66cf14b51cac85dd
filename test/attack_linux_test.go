package test

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/embedpush/push"
)

// TestProgramOutOfDescriptorsServesOnAndRecovers: row 138 and goal R15.
func TestProgramOutOfDescriptorsServesOnAndRecovers(t *testing.T) {
	inAProcess(t, func(t *testing.T) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 256, Max: 256}); err != nil {
			t.Fatal(err)
		}
		w := newSocketWorld(t, push.Config{Limits: push.Limits{MaxConns: -1}})
		v := w.witness()
		var flood []net.Conn
		for len(flood) < 1000 {
			nc, err := w.dial(t.Context(), "tcp", "")
			if err != nil {
				break // EMFILE is ours, too: the clients live in the same process
			}
			flood = append(flood, nc)
		}
		if len(flood) == 1000 {
			t.Fatal("there are descriptors still")
		}
		before, begin := burnt(t), time.Now()
		for range 20 {
			v.isFine()
			time.Sleep(50 * time.Millisecond)
		}
		if used, took := burnt(t)-before, time.Since(begin); used > took/5 {
			t.Errorf("%v of CPU in %v, want a fifth at most", used, took)
		}
		for _, nc := range flood {
			nc.Close()
		}
		begin = time.Now()
		settles(t, "it serves again", func() bool {
			p, err := w.triesToBreakIn("user=new")
			if err == nil {
				p.Close()
			}
			return err == nil
		})
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("it serves again after %v, want about 1 s", took)
		}
		v.isFine()
	})
}

// burnt is what this process has used.
func burnt(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

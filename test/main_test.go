package test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain runs the tests and fails the run if goroutines are left. Started
// with PUSH_LOAD_CLIENT set, this program is a benchmark's other process.
func TestMain(m *testing.M) {
	if os.Getenv("PUSH_LOAD_CLIENT") != "" {
		runLoadClient()
		os.Exit(0)
	}
	code := m.Run()
	if code == 0 {
		if left := leftGoroutines(10 * time.Second); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left:\n\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

// leftGoroutines returns the stacks of goroutines that neither the runtime nor
// the testing package owns, after giving them some time to end.
func leftGoroutines(patience time.Duration) string {
	buf := make([]byte, 1<<20)
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		var left []string
		stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
		for _, stack := range stacks[1:] { // the first is this one
			if !strings.Contains(stack, "testing.(*") && !strings.Contains(stack, "os/signal.") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 || time.Now().After(end) {
			return strings.Join(left, "\n\n")
		}
	}
}

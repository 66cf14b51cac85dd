//go:build processes && unix

package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestReceiptsAreTrueThroughFaults does the sequence of -headless with real
// processes.
func TestReceiptsAreTrueThroughFaults(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), []string{"-headless", "-for", "15s"}, &out)
	t.Log("\n" + out.String())
	if err != nil {
		t.Error(err)
	}
	if !strings.HasSuffix(out.String(), "\nacked but not seen: 0\n") {
		t.Error("it does not end with: acked but not seen: 0")
	}
}

// TestNodesEndWithTheProgram, however it ends.
func TestNodesEndWithTheProgram(t *testing.T) {
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM, os.Kill} {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), asParent+"=1")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill()
		page := make([]byte, 100)
		n, err := stdout.Read(page)
		if err != nil {
			t.Fatal(err)
		}
		url := regexp.MustCompile(`http://\S+`).FindString(string(page[:n]))
		resp, err := http.Get(url + "/state")
		if err != nil {
			t.Fatal(err)
		}
		var l look
		err = json.NewDecoder(resp.Body).Decode(&l)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Process.Signal(signal)
		cmd.Wait()
		for _, n := range l.Nodes {
			if n.PID == 0 {
				t.Errorf("%s is %s", n.ID, n.Is)
				continue
			}
			wantGone(t, n.PID, signal)
		}
	}
}

// wantGone waits until there is no process with this id.
func wantGone(t *testing.T, pid int, why os.Signal) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	patience := time.After(10 * time.Second)
	for syscall.Kill(pid, 0) == nil {
		select {
		case <-tick.C:
		case <-patience:
			t.Fatalf("process %d lives on after its parent's %v", pid, why)
		}
	}
}

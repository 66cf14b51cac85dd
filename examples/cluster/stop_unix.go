//go:build unix

package main

import (
	"os"
	"syscall"
)

// canStop: a process can be stopped and continued.
const canStop = true

func pause(p *os.Process) error  { return p.Signal(syscall.SIGSTOP) }
func resume(p *os.Process) error { return p.Signal(syscall.SIGCONT) }

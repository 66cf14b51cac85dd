//go:build !unix

package main

import (
	"errors"
	"os"
)

// canStop: here no process can be stopped and continued.
const canStop = false

func pause(*os.Process) error  { return errors.ErrUnsupported }
func resume(*os.Process) error { return errors.ErrUnsupported }

//go:build unix

package main

import (
	"math"
	"syscall"
)

// descriptors is how many this process may have open. Go has raised that to
// what the system lets it have.
func descriptors() uint64 {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil {
		return math.MaxUint64
	}
	return uint64(r.Cur)
}

//go:build !unix

package netio

import (
	"net"
	"syscall"
)

// Without descriptors that can be tried without blocking every connection is
// read by net.Conn.Read, and written by a goroutine of its own while
// something is queued.
type input struct{}

func rawConn(net.Conn) syscall.RawConn { return nil }

func (c *Conn) readRaw(freshness)        { panic("netio: no descriptors here") }
func (w *writer) tryRaw(uintptr) bool    { panic("netio: no descriptors here") }
func writeError(err syscall.Errno) error { return err }

// Descriptors is how many descriptors the process may have, 0 if unknown.
func Descriptors() int { return 0 }

//go:build !linux || pushgoroutines

package netio

import "net"

// Without pollers no connection is ever polled.
type (
	poller struct{}
	polled struct{ port uint16 } // of the peer
)

func (c *Conn) adopt(net.Conn) bool { return false }
func (s *shard) closePoller()       {}

func (c *Conn) watchLocked(uint8, bool) { panic(noPollers) }
func (c *Conn) put([]byte) (int, error) { panic(noPollers) }
func (c *Conn) readApart()              { panic(noPollers) }
func (c *Conn) finLocked()              { panic(noPollers) }
func (c *Conn) drop(bool)               { panic(noPollers) }

const noPollers = "netio: there are no pollers here"

package netio

import (
	"net"
	"net/netip"
)

// Add drives a Conn of its own.
func (d *Driver) Add(nc net.Conn, h Handler) *Conn {
	c := new(Conn)
	d.Drive(c, nc, h, netip.AddrPort{})
	return c
}

// AddPulled is Add for DrivePulled.
func (d *Driver) AddPulled(h Handler, wake func()) *Conn {
	c := new(Conn)
	d.DrivePulled(c, h, wake, netip.AddrPort{})
	return c
}

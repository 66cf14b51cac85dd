package main

import (
	"io"
	"net"
	"sync"
)

// cable is the network in front of a server: whatever comes goes through it, so
// that it can be cut. The engine has its sockets for itself.
type cable struct {
	ln net.Listener // clients come here
	to string       // the server's own address

	mu   sync.Mutex
	ends map[string][2]net.Conn // guarded by mu: both ends, by the address that the server sees
	over bool                   // guarded by mu
}

func (c *cable) run() {
	for {
		near, err := c.ln.Accept()
		if err != nil {
			return
		}
		go c.carry(near)
	}
}

func (c *cable) carry(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer far.Close()
	name := far.LocalAddr().String()
	c.mu.Lock()
	over := c.over
	c.ends[name] = [2]net.Conn{near, far}
	c.mu.Unlock()
	if !over {
		var both sync.WaitGroup
		pipe := func(to, from net.Conn) {
			io.Copy(to, from)
			to.(*net.TCPConn).CloseWrite()
		}
		both.Go(func() { pipe(far, near) })
		both.Go(func() { pipe(near, far) })
		both.Wait()
	}
	c.mu.Lock()
	delete(c.ends, name)
	c.mu.Unlock()
}

// cut cuts a connection, and tells whether there was one.
func (c *cable) cut(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ends, there := c.ends[name]
	if there {
		ends[0].Close()
		ends[1].Close()
	}
	return there
}

// close cuts everything and lets nobody through any more.
func (c *cable) close() {
	c.ln.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	for _, ends := range c.ends {
		ends[0].Close()
		ends[1].Close()
	}
}

// Package memnet is a network in memory, for tests: hosts with addresses, listeners, streams that buffer and delay as TCP does,
// and a memberlist.Transport whose packets get lost as UDP's do. Everything is done with channels and the clock of package time,
// so all of it runs in virtual time inside a testing/synctest bubble (make the Network inside the bubble).
//
//	nw := memnet.New(1)
//	nw.SetDelay(time.Millisecond, 3*time.Millisecond)
//	a, b := nw.Host("10.0.0.1"), nw.Host("10.0.0.2")
//	ln, err := a.Listen(80)
//	conn, err := b.DialContext(ctx, "tcp", "10.0.0.1:80")
//	nw.Cut("10.0.0.1", "10.0.0.2") // the connection hangs, as it would
//
// The randomness of the network is seeded; the order in which goroutines run is not, so tests assert bounds, not instants.
package memnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Network is a set of hosts and the faults between them. Without faults set, every packet arrives at once.
type Network struct {
	mu       sync.Mutex // guards what follows, and the fields of every Host; a leaf: nothing else is locked under it
	rnd      *rand.Rand
	hosts    map[netip.Addr]*Host
	cut      map[[2]netip.Addr]bool // from, to
	loss     float64
	min, max time.Duration
	lost     int
	changed  chan struct{} // closed and replaced when a path, a host or a listener comes or goes
}

// New makes an empty network whose losses and delays follow from the seed.
func New(seed uint64) *Network {
	return &Network{
		rnd:     rand.New(rand.NewPCG(seed, 0x6d656d6e6574)),
		hosts:   map[netip.Addr]*Host{},
		cut:     map[[2]netip.Addr]bool{},
		changed: make(chan struct{}),
	}
}

// SetLoss loses each packet with the given probability. Streams lose nothing, as TCP.
func (n *Network) SetLoss(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = p
}

// SetDelay lets each packet, and each write to a stream, arrive after a random time from min to max. Packets may overtake each
// other, the bytes of a stream do not.
func (n *Network) SetDelay(min, max time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.min, n.max = min, max
}

// Cut stops everything between two hosts, both ways. Packets are lost; streams hang and go on after Mend; dials wait for their
// timeout. The hosts need not exist yet.
func (n *Network) Cut(a, b string) {
	n.setCut(true, a, b)
	n.setCut(true, b, a)
}

// CutOneWay stops what the first host sends to the second, and nothing else.
func (n *Network) CutOneWay(from, to string) { n.setCut(true, from, to) }

// Mend undoes Cut and CutOneWay.
func (n *Network) Mend(a, b string) {
	n.setCut(false, a, b)
	n.setCut(false, b, a)
}

// Partition cuts every pair of hosts that stand on different sides.
func (n *Network) Partition(sides ...[]string) {
	for i, side := range sides {
		for _, other := range sides[i+1:] {
			for _, a := range side {
				for _, b := range other {
					n.Cut(a, b)
				}
			}
		}
	}
}

// MendAll undoes every cut.
func (n *Network) MendAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.changedLocked()
}

// Lost is the number of packets that did not arrive so far: lost by chance, by a cut, or because the receiver's buffer was full.
func (n *Network) Lost() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lost
}

func (n *Network) setCut(on bool, from, to string) {
	pair := [2]netip.Addr{netip.MustParseAddr(from), netip.MustParseAddr(to)}
	n.mu.Lock()
	defer n.mu.Unlock()
	if on {
		n.cut[pair] = true
	} else {
		delete(n.cut, pair)
	}
	n.changedLocked()
}

func (n *Network) changedLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *Network) delayLocked() time.Duration {
	if n.max <= n.min {
		return n.min
	}
	return n.min + time.Duration(n.rnd.Int64N(int64(n.max-n.min)+1))
}

func (n *Network) delay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delayLocked()
}

// fate is what becomes of bytes between two hosts.
type fate uint8

const (
	passes fate = iota
	hangs       // cut, or an end was unplugged: nothing arrives, nobody is told
	broken      // an end was killed: its kernel answers with a reset
)

func (n *Network) fateLocked(from, to *Host) fate {
	switch {
	case from.state == unplugged || to.state == unplugged || n.cut[[2]netip.Addr{from.ip, to.ip}]:
		return hangs
	case from.state == killed || to.state == killed:
		return broken
	}
	return passes
}

// path tells the fate of bytes between two hosts, and a channel that is closed when it may have changed.
func (n *Network) path(from, to *Host) (fate, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fateLocked(from, to), n.changed
}

// Host is one machine with one address. Its fields are guarded by Network.mu.
type Host struct {
	net       *Network
	ip        netip.Addr
	state     hostState
	listeners map[uint16]*Listener
	packets   map[uint16]*Transport
	port      uint16 // the last one given away for port 0 and for dialling
}

type hostState uint8

const (
	running hostState = iota
	unplugged
	killed
)

// Host returns the host with this IP address, and makes it if there is none; after Unplug or Kill that is the restarted machine. It
// panics if ip is not an IP address.
func (n *Network) Host(ip string) *Host {
	addr := netip.MustParseAddr(ip)
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.hosts[addr]; h != nil {
		return h
	}
	return n.addHostLocked(addr)
}

func (n *Network) addHostLocked(ip netip.Addr) *Host {
	h := &Host{net: n, ip: ip, listeners: map[uint16]*Listener{}, packets: map[uint16]*Transport{}, port: 32767}
	n.hosts[ip] = h
	n.changedLocked()
	return h
}

// IP is the host's address.
func (h *Host) IP() string { return h.ip.String() }

// Unplug takes the host off the network for good, as a power cut does: no goodbye and no reset, peers hear nothing any more. What
// runs on it goes on in silence. The address is free for a new Host.
func (h *Host) Unplug() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.endLocked(unplugged)
}

// Kill ends all that runs on the host, as kill -9 does: nobody says goodbye, but open streams are reset and dials refused. The
// machine is still there: Network.Host returns it anew, with every port free.
func (h *Host) Kill() {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.endLocked(killed) {
		h.net.addHostLocked(h.ip)
	}
}

func (h *Host) endLocked(how hostState) bool {
	if h.state != running {
		return false
	}
	h.state = how
	delete(h.net.hosts, h.ip)
	h.net.changedLocked()
	return true
}

// freePortLocked picks a port for who asks for port 0.
func (h *Host) freePortLocked() uint16 {
	for {
		h.port = max(h.port+1, 32768)
		if h.listeners[h.port] == nil && h.packets[h.port] == nil {
			return h.port
		}
	}
}

func (h *Host) takeLocked(port int) (netip.AddrPort, error) {
	if port < 0 || port > 65535 {
		return netip.AddrPort{}, fmt.Errorf("memnet: port %d", port)
	}
	p := uint16(port)
	if p == 0 {
		p = h.freePortLocked()
	}
	at := netip.AddrPortFrom(h.ip, p)
	if h.state != running {
		return at, fmt.Errorf("memnet: listen %s: the host is gone", at)
	}
	if h.listeners[p] != nil {
		return at, fmt.Errorf("memnet: listen %s: address already in use", at)
	}
	return at, nil
}

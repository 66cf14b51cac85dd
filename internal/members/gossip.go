package members

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"

	"github.com/embedpush/push/internal/quietlog"
)

// translate makes what is under memberlist's logger.
func translate(to *quietlog.Log) *quietlog.Writer {
	return &quietlog.Writer{Log: to, Msg: "gossip", Prefix: "memberlist: ", Ordinary: ordinary, Hint: hint}
}

// gossipLog passes on what memberlist logs, until Leave begins: who leaves need
// not know what does not work any more. Of one line it makes an error of its
// own.
type gossipLog struct {
	*quietlog.Writer
	list *List
}

// closedHere is in lines about a stream that was closed for a newer one, or by
// this node's end: who closed it counts and tells. Each has other ports in it, so
// they could not be told apart from new troubles.
var closedHere = []byte("use of closed network connection")

// Write takes one line, as log.Logger does, maybe with memberlist's lock held.
func (g *gossipLog) Write(b []byte) (int, error) {
	if g.list.ctx.Err() != nil || bytes.Contains(b, closedHere) {
		return len(b), nil
	}
	name, ok := strings.CutPrefix(strings.TrimSpace(string(b)), onlyTCP)
	if ok {
		name, ok = strings.CutSuffix(name, onlyTCPEnd)
	}
	if ok && g.list.onlyTCP(name) {
		return len(b), nil
	}
	return g.Writer.Write(b)
}

// The line that says that a probe of a peer found no way by UDP, not through
// other nodes either, but by TCP. The peer stays a member, but news comes to it
// late or not at all.
const (
	onlyTCP    = "[WARN] memberlist: Was able to connect to "
	onlyTCPEnd = " over TCP but UDP probes failed, network may be misconfigured"

	// In succession; fewer are packets that got lost. A peer is probed once a
	// second in turn. Of two nodes, of whose packets 5 % get lost, it would be
	// eight once in years.
	onlyTCPTimes = 8
)

// onlyTCP counts such a probe, and tells whether it has logged what to do.
func (l *List) onlyTCP(name string) bool {
	o, err := parseName(name)
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[o]
	if p == nil {
		return false
	}
	if p.noUDP++; p.noUDP < onlyTCPTimes {
		return false
	}
	l.log.Post(slog.LevelError, name, "peer reached by TCP but not by UDP", "node", p.ID, "addr", p.Addr,
		"hint", fmt.Sprintf("open UDP port %d", p.Addr.Port()))
	return true
}

// ordinary begins memberlist's warnings about what this package tells in its
// own words, or about what is no trouble.
var ordinary = []string{
	"ignoring alive message",                        // NotifyAlive
	"Conflicting address",                           // NotifyConflict
	"Got ping for unexpected node",                  // the address had another run, or node, before
	`discarding stream with unacceptable label "":`, // closed without a byte: a port check, a node that left
}

// hint explains an error in terms of the configuration, or is "".
func hint(text string) string {
	for _, h := range hints {
		if strings.Contains(text, h.part) {
			return h.hint
		}
	}
	return ""
}

var hints = []struct{ part, hint string }{
	{"installed keys could decrypt", "the two nodes have no secret in common: see Cluster.Secrets"},
	{"remote state is not encrypted", "the other node has no secret: see Cluster.Secrets"},
	{"encryption is not configured", "the other node has a secret, this one none: see Cluster.Secrets"},
	{"unacceptable label", "the other node belongs to another cluster: see Cluster.Name"},
	{"UDP probes failed", "packets get lost, or UDP does not pass: see whether that node's port is open for it"},
	{"EOF", "the other node hung up: see whether Cluster.Name and Cluster.Secrets are the same"},
	{"connection reset", "the other node hung up: see whether Cluster.Name and Cluster.Secrets are the same"},
}

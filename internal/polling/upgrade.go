package polling

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/upgrade"
	"github.com/embedpush/push/internal/ws"
)

// upgrade takes a WebSocket that wants to be the session's transport:
//
//  1. the client sends 2probe over it;
//  2. it is answered 3probe, and from now on GETs end, with a noop if need be;
//  3. the client waits for the answers to its GET and its POST, and sends 5;
//  4. the WebSocket is the transport.
//
// Until then polling goes on, and goes on if any of it goes wrong.
func (p *Session) upgrade(w http.ResponseWriter, r *http.Request) {
	if !p.s.upgradable(w, r) {
		return
	}
	p.mu.Lock()
	gone := p.gone
	second := p.probing || p.upgraded
	third := second && p.parting == maxParting
	switch {
	case gone || third:
	case second:
		p.parting++
	default:
		p.probing = true
	}
	p.mu.Unlock()
	switch {
	case gone:
		p.s.unknownSID(w, r)
		return
	case third:
		p.s.refuse(w, r, WhyOverlap, http.StatusBadRequest, BadRequest)
		return
	}
	if second {
		defer func() {
			p.mu.Lock()
			p.parting--
			p.mu.Unlock()
		}()
	}
	nc, no := upgrade.Do(w, r, "")
	if no != nil {
		p.s.c.Refused(WhyBadRequest)
		if !second {
			p.giveUp()
		}
		if no.Status != 0 {
			Refuse(w, r, no.Status, BadRequest, no.Text)
		}
		return
	}
	if second { // the first one goes on
		p.s.c.Refused(WhyOverlap)
		p.s.dismiss(nc, goodbye)
		return
	}

	_ = nc.SetDeadline(time.Now().Add(p.s.c.Timeout))
	p.mu.Lock()
	ended := p.ended
	if !ended {
		p.probe = nc // End may cut the deadline from now on
	}
	p.mu.Unlock()
	var rest, last []byte
	err := net.ErrClosed
	if !ended {
		rest, last, err = p.handOver(nc)
	}
	if err != nil {
		switch ended = p.giveUp(); {
		case ended:
			nc.Close()
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.s.c.Refused(WhySlow)
		default:
			p.s.c.Refused(WhyBadRequest)
		}
		p.s.dismiss(nc, last)
		return
	}
	p.Wake() // a client that has not waited for its GET
	p.h.Upgraded()
	if p.nc.Attach(nc, rest) != nil { // it was shut meanwhile, or closed
		last := goodbye
		frames, cost, _ := p.nc.Take()
		if len(frames) > 0 {
			last = bytes.Join(frames, nil) // with a close frame
		}
		p.s.dismiss(nc, last)
		p.nc.Taken(cost)
		p.nc.Close()
	}
}

// giveUp frees the place for another upgrade and lets GETs be held again.
func (p *Session) giveUp() (ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probing, p.probed, p.probe = false, false, nil
	return p.ended
}

// maxPings is how many pings of a probing WebSocket are answered.
const maxPings = 20

// maxParting bounds the WebSockets of one session that are told goodbye at a
// time: they are nobody's, and in no count.
const maxParting = 4

var errProbe = errors.New("polling: not what an upgrade consists of")

// handOver speaks with the WebSocket until the session is upgraded. rest came
// behind the packet that completed it. With an error, last is the frame for the
// WebSocket's end.
func (p *Session) handOver(nc net.Conn) (rest, last []byte, err error) {
	reader := eio.NewReader(p.rev, len("2probe"))
	buf := make([]byte, 512)
	probed, pings := false, 0
	for {
		n, err := nc.Read(buf)
		if n == 0 && err != nil {
			return nil, goodbye, err
		}
		for in := buf[:n]; len(in) > 0; {
			var packet eio.Packet
			used, err := reader.Next(in, &packet)
			if err != nil {
				return nil, goodbye, err
			}
			in = in[used:]
			switch {
			case packet.Control.Op == ws.Ping:
				if pings++; pings > maxPings {
					return nil, goodbye, errProbe
				}
				_, err = nc.Write(ws.AppendFrame(nil, ws.Pong, packet.Control.Payload))
			case packet.Control.Op == ws.Close:
				return nil, ws.AppendClose(nil, packet.Control.Code, ""), errProbe
			case packet.Type == 0: // a pong, or not all is there yet
			case !probed && packet.Type == eio.Ping && string(packet.Data) == "probe":
				probed = true
				_, err = nc.Write(ponged)
				p.mu.Lock()
				p.probed = true
				p.mu.Unlock()
				p.Wake()
			case probed && packet.Type == eio.Upgrade && p.complete():
				return in, nil, nil
			default:
				return nil, goodbye, errProbe
			}
			if err != nil {
				return nil, goodbye, err
			}
		}
	}
}

// complete makes the WebSocket the transport, unless a POST is being read: what
// it brings comes before what the WebSocket brings.
func (p *Session) complete() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.posting || p.gone {
		return false
	}
	p.upgraded, p.probe = true, nil
	return true
}

// dismiss says goodbye to a WebSocket that is no transport. What the client has
// sent is read away for a moment, for otherwise its kernel would drop the frame
// when it hears that nobody read it.
func (s *Server) dismiss(nc net.Conn, last []byte) {
	defer nc.Close()
	_ = nc.SetWriteDeadline(time.Now().Add(s.c.Timeout))
	if _, err := nc.Write(last); err == nil {
		_ = nc.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = io.CopyN(io.Discard, nc, 4<<10)
	}
}

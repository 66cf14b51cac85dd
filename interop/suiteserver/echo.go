package main

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/embedpush/push/internal/eio"
	"github.com/embedpush/push/internal/netio"
	"github.com/embedpush/push/internal/polling"
	"github.com/embedpush/push/internal/upgrade"
	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// echo is an Engine.IO server that sends every message back.
type echo struct {
	driver  *netio.Driver
	polling *polling.Server
	timing  eio.Timing
}

func newEcho() *echo {
	e := &echo{
		driver: netio.New(netio.Config{QueueBytes: 4 * maxPayload, Tick: pingTimeout / 5}),
		timing: eio.Timing{Interval: pingInterval, Timeout: pingTimeout},
	}
	e.polling = polling.New(polling.Config{
		Origin: func(*http.Request) (allowed, credentials bool) { return true, true },
		Open:   e.open,
	})
	return e
}

func (e *echo) close() { e.driver.Close() }

func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) { e.polling.ServeHTTP(w, r) }

func (e *echo) open(w http.ResponseWriter, r *http.Request, a polling.Ask) {
	p := e.polling.NewSession(a)
	s := &session{e: e, rev: a.Revision, reader: eio.NewReader(a.Revision, maxPayload)}
	s.beat.Start(s.rev, &e.timing, time.Now())
	hello := eio.AppendOpen(nil, &eio.Handshake{
		SID: p.SID(), Upgrade: !a.WebSocket, PingInterval: pingInterval, PingTimeout: pingTimeout, MaxPayload: maxPayload,
	})
	if a.WebSocket {
		nc, no := upgrade.Do(w, r, "")
		if no != nil {
			no.Write(w)
			return
		}
		e.driver.Drive(&s.nc, nc, s, netip.AddrPort{})
		s.nc.Write(hello)
		s.nc.Start()
		return
	}
	s.poll = p
	e.driver.DrivePulled(&s.nc, s, p.Wake, netip.AddrPort{})
	s.nc.Write(hello)
	s.nc.Start()
	p.Begin(w, r, &s.nc, s)
}

// session is one client. It is a netio.Handler, and the host of its polling
// half.
type session struct {
	e    *echo
	rev  eio.Revision
	nc   netio.Conn
	poll *polling.Session // nil: it came as a WebSocket
	beat eio.Beat

	reader eio.Reader // owned by Data
}

func (s *session) Data(b []byte) int {
	for used := 0; used < len(b); {
		var p eio.Packet
		n, err := s.reader.Next(b[used:], &p)
		used += n
		if err == nil && !eio.Allowed(s.rev, &p) {
			err = &wire.Error{Code: wire.Protocol}
		}
		if err != nil {
			s.nc.Close()
			return len(b)
		}
		if p.Type != 0 {
			s.beat.Heard(s.rev, &s.e.timing, p.Type, time.Now())
		}
		switch {
		case p.Control.Op == ws.Ping:
			s.nc.Write(ws.AppendFrame(nil, ws.Pong, p.Control.Payload))
		case p.Control.Op == ws.Close:
			s.nc.Write(ws.AppendClose(nil, p.Control.Code, ""))
			s.nc.Close()
		case p.Type == eio.Message && p.Binary:
			s.nc.Write(eio.AppendBinary(nil, s.rev, p.Data))
		case p.Type == eio.Message:
			s.nc.Write(eio.AppendPacket(nil, eio.Message, string(p.Data)))
		case p.Type == eio.Ping:
			s.nc.Write(eio.AppendPacket(nil, eio.Pong, string(p.Data)))
		case p.Type == eio.Close:
			if s.poll != nil {
				s.poll.Goodbye()
			}
			s.nc.Close()
		}
	}
	return len(b)
}

func (s *session) Tick(now time.Time) {
	if !s.pulse(now) {
		s.nc.Close()
	}
}

// pulse pings when it is time to, and reports whether the client is alive.
func (s *session) pulse(now time.Time) bool {
	ping, dead := s.beat.Check(s.rev, &s.e.timing, now)
	if ping {
		s.nc.Write(eio.AppendPacket(nil, eio.Ping, ""))
	}
	return !dead
}

func (s *session) Slow() { s.nc.Close() }

func (s *session) Closed(error) {
	if s.poll != nil {
		s.poll.End()
	}
}

// Of polling.Host:

func (s *session) PostLimit() int { return maxPayload }

func (s *session) Alive(now time.Time) bool {
	return s.pulse(now)
}

func (s *session) Posted(binary bool) { s.reader.Body(binary) }
func (s *session) Broken(error)       { s.nc.Close() }
func (s *session) Upgraded()          { s.reader.WebSocket() }

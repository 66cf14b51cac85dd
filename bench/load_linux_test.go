package main

import (
	"encoding/binary"
	"strings"
	"syscall"
	"testing"
)

// textFrame is a frame of a server.
func textFrame(text string) []byte {
	if len(text) < 126 {
		return append([]byte{0x81, byte(len(text))}, text...)
	}
	return append(binary.BigEndian.AppendUint16([]byte{0x81, 126}, uint16(len(text))), text...)
}

func newTestLoad(door string) *load {
	return &load{conns: []loadConn{{open: true, door: door}}}
}

func TestLoadCountsEventsInAnySplit(t *testing.T) {
	for door, texts := range map[string][]string{
		doorWebSocket: {eventText, `{"event":"bench","data":"@0000000000000000001"}`, eventText},
		doorSocketIO:  {socketIOText, `42["bench","@0000000000000000001"]`, socketIOText},
	} {
		var stream []byte
		for _, text := range texts {
			stream = append(stream, textFrame(text)...)
		}
		for size := 1; size <= len(stream); size++ {
			l := newTestLoad(door)
			for rest := stream; len(rest) > 0; rest = rest[min(size, len(rest)):] {
				l.feed(0, rest[:min(size, len(rest))])
			}
			if l.wrong != "" || l.events != 3 || len(l.latencies) != 1 || l.conns[0].rest != nil {
				t.Fatalf("%s in pieces of %d: %d events, %d latencies, %q left, wrong: %s", door, size, l.events, len(l.latencies), l.conns[0].rest, l.wrong)
			}
		}
	}
}

func TestLoadNoticesWhatNobodySent(t *testing.T) {
	for _, frame := range [][]byte{
		textFrame(strings.Replace(eventText, "x", "y", 1)),
		textFrame(eventText[1:]),
		textFrame(socketIOText),
		{0x88, 2, 3, 0xe8},
		{0x82, 1, 0},
	} {
		l := newTestLoad(doorWebSocket)
		l.feed(0, frame)
		if l.wrong == "" || l.events != 0 {
			t.Errorf("%q: %d events, wrong: %q", frame, l.events, l.wrong)
		}
	}
}

func TestLoadTakesWhatComesRightBehindAnUpgrade(t *testing.T) {
	for behind, want := range map[string]struct {
		pings int64
		rest  string
		wrong bool
	}{
		"":                 {},
		"\x89\x00":         {pings: 1},
		"\x89\x00\x89":     {pings: 1, rest: "\x89"},
		"\x88\x02\x03\xe8": {wrong: true},
	} {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		fd := fds[0]
		l := &load{conns: make([]loadConn, fd+1), buf: make([]byte, 1024)}
		c := &l.conns[fd]
		*c = loadConn{open: true, door: doorWebSocket}
		if _, err := syscall.Write(fds[1], []byte("HTTP/1.1 101 Switching Protocols\r\n\r\n"+behind)); err != nil {
			t.Fatal(err)
		}
		if err := l.upgraded(fd, c); err != nil {
			t.Errorf("%q: %v", behind, err)
		}
		if l.pings != want.pings || string(c.rest) != want.rest || (l.wrong != "") != want.wrong {
			t.Errorf("%q: %d pings, %q left, wrong: %q", behind, l.pings, c.rest, l.wrong)
		}
		syscall.Close(fds[0])
		syscall.Close(fds[1])
	}
}

func TestEventsAreOfOneSize(t *testing.T) {
	if len(eventText) != eventSize || len(socketIOText) != eventSize {
		t.Errorf("events of %d and %d bytes, want %d", len(eventText), len(socketIOText), eventSize)
	}
}

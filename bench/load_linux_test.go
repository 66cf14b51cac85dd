package main

import (
	"encoding/binary"
	"strings"
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

func TestEventsAreOfOneSize(t *testing.T) {
	if len(eventText) != eventSize || len(socketIOText) != eventSize {
		t.Errorf("events of %d and %d bytes, want %d", len(eventText), len(socketIOText), eventSize)
	}
}

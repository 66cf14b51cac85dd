package eio

import (
	"math"
	"sync"
	"testing"
	"time"
	"unsafe"
)

func TestBeatIsOneWord(t *testing.T) {
	if got := unsafe.Sizeof(Beat{}); got > 12 {
		t.Errorf("a Beat has %d bytes, want at most 12", got)
	}
}

var timing = Timing{Interval: 300 * time.Millisecond, Timeout: 200 * time.Millisecond}

// step is one thing that happens to a Beat, at this many milliseconds. do is
// the type of a packet that is heard, or one of these.
type step struct {
	at   int64
	do   PacketType
	want string // of a check: what Check says
}

const (
	check   PacketType = 'c'
	excuse  PacketType = 'e'
	control PacketType = 0
)

func play(t *testing.T, name string, rev Revision, timing Timing, steps []step) {
	t.Helper()
	// The second start is where 32 bits of milliseconds wrap, the third where
	// they change their sign.
	for _, start := range []int64{1_700_000_000_123, 400*(math.MaxUint32+1) - 250, 400*(math.MaxUint32+1) + math.MaxInt32 - 400} {
		var b Beat
		at := func(ms int64) time.Time { return time.UnixMilli(start + ms) }
		b.Start(rev, &timing, at(0))
		for i, s := range steps {
			switch s.do {
			case check:
				got := ""
				ping, dead := b.Check(rev, &timing, at(s.at))
				if ping {
					got += "ping"
				}
				if dead {
					got += "dead"
				}
				if got != s.want {
					t.Errorf("%s, started at %d: step %d, at %d ms: Check says %q, want %q", name, start, i, s.at, got, s.want)
				}
			case excuse:
				b.Excuse(rev, &timing, at(s.at))
			default:
				b.Heard(rev, &timing, s.do, at(s.at))
			}
		}
	}
}

func TestServerPingsInV4(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"a client that answers", []step{
			{0, check, ""}, {299, check, ""}, {300, check, "ping"}, {301, check, ""}, {310, Pong, ""},
			{609, check, ""}, {610, check, "ping"}, {620, check, ""}, {800, Pong, ""}, {1099, check, ""}, {1100, check, "ping"}}},
		{"a client that is silent", []step{
			{300, check, "ping"}, {499, check, ""}, {500, check, "dead"}, {501, check, "dead"}, {90_000, check, "dead"}}},
		{"the wait is from when the ping was due", []step{
			{450, check, "ping"}, {499, check, ""}, {500, check, "dead"}}},
		{"a client is not dead before it was asked", []step{
			{60_000, check, "ping"}, {60_199, check, ""}, {60_200, check, "dead"}}},
		{"nor at the very time", []step{
			{500, check, "ping"}, {699, check, ""}, {700, check, "dead"}}},
		{"a sweep coarser than the timing", []step{
			{1000, check, "ping"}, {1010, Pong, ""}, {2000, check, "ping"}, {2010, Pong, ""}, {3000, check, "ping"}, {4000, check, "dead"}}},
		{"other packets are no pong", []step{
			{100, Message, ""}, {300, check, "ping"}, {310, Message, ""}, {320, Ping, ""}, {330, Noop, ""}, {340, control, ""}, {500, check, "dead"}}},
		{"a late pong", []step{
			{300, check, "ping"}, {500, check, "dead"}, {510, Pong, ""}, {520, check, ""}, {810, check, "ping"}}},
		{"a pong that nobody asked for", []step{
			{200, Pong, ""}, {300, check, ""}, {499, check, ""}, {500, check, "ping"}}},
		{"excused with a ping out", []step{
			{300, check, "ping"}, {480, excuse, ""}, {500, check, ""}, {679, check, ""}, {680, check, "dead"}}},
		{"excused and answers", []step{
			{300, check, "ping"}, {480, excuse, ""}, {600, Pong, ""}, {899, check, ""}, {900, check, "ping"}}},
		{"excused without a ping out", []step{
			{200, excuse, ""}, {300, check, "ping"}, {500, check, "dead"}}},
		{"a check that is older than what was heard", []step{
			{400, Pong, ""}, {399, check, ""}, {700, check, "ping"}, {699, check, ""}}},
	} {
		play(t, tt.name, V4, timing, tt.steps)
	}
}

func TestClientPingsInV3(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"a client that is silent", []step{
			{300, check, ""}, {499, check, ""}, {500, check, "dead"}, {501, check, "dead"}, {90_000, check, "dead"}}},
		{"a client that pings", []step{
			{300, Ping, ""}, {500, check, ""}, {600, Ping, ""}, {1099, check, ""}, {1100, check, "dead"}}},
		{"any packet is life", []step{
			{400, Message, ""}, {899, check, ""}, {899, Upgrade, ""}, {1398, check, ""}, {1398, control, ""}, {1897, check, ""}, {1898, check, "dead"}}},
		{"excused", []step{
			{499, excuse, ""}, {500, check, ""}, {998, check, ""}, {999, check, "dead"}, {1000, excuse, ""}, {1499, check, ""}, {1500, check, "dead"}}},
		{"a check that is older than what was heard", []step{
			{400, Ping, ""}, {399, check, ""}}},
	} {
		play(t, tt.name, V3, timing, tt.steps)
	}
}

func TestLongTimingsDoNotWrap(t *testing.T) {
	day := int64(24 * time.Hour / time.Millisecond)
	long := Timing{Interval: math.MaxInt64, Timeout: math.MaxInt64}
	play(t, "V4", V4, long, []step{{6 * day, check, ""}, {7 * day, check, "ping"}, {12 * day, check, ""}, {13 * day, check, "dead"}, {24 * day, check, "dead"}})
	play(t, "V3", V3, long, []step{{7 * day, check, ""}, {12 * day, check, ""}, {13 * day, check, "dead"}, {24 * day, check, "dead"}})
}

func TestAPingIsAskedForOnceAndAPongIsNeverLost(t *testing.T) {
	start := time.UnixMilli(1_700_000_000_000)
	for range 200 {
		var b Beat
		b.Start(V4, &timing, start)
		now := start.Add(time.Second)
		pings := make([]bool, 4)
		var all sync.WaitGroup
		for i := range pings {
			all.Go(func() { pings[i], _ = b.Check(V4, &timing, now) })
		}
		all.Wait()
		n := 0
		for _, ping := range pings {
			if ping {
				n++
			}
		}
		if n != 1 {
			t.Fatalf("%d pings, want 1", n)
		}

		all.Go(func() { b.Heard(V4, &timing, Pong, now) })
		all.Go(func() { b.Check(V4, &timing, now.Add(time.Millisecond)) })
		all.Go(func() { b.Excuse(V4, &timing, now) })
		all.Wait()
		if ping, dead := b.Check(V4, &timing, now.Add(299*time.Millisecond)); ping || dead {
			t.Fatalf("Check says %v, %v behind a pong", ping, dead)
		}
		if ping, _ := b.Check(V4, &timing, now.Add(300*time.Millisecond)); !ping {
			t.Fatal("no ping behind a pong")
		}
	}
}

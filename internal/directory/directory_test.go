package directory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var start = time.UnixMilli(1_700_000_000_000)

const (
	users Kind = iota
	rooms
	elsewhere
)

func user(name string) Place { return Place{users, name} }

// node is a Directory with what a test says of it.
type node struct {
	*Directory
	t testing.TB
}

func newNode(t testing.TB, id string, epoch uint64) node {
	return node{New(Origin{id, epoch}, nil), t}
}

// meet makes n see all the others as alive.
func (n node) meet(others ...node) node {
	n.t.Helper()
	for _, o := range others {
		if err := n.Up(o.Self()); err != nil {
			n.t.Fatal(err)
		}
	}
	return n
}

// delta is what from wrote after a seq.
func (n node) delta(after uint64) []byte {
	n.t.Helper()
	frame, last, ok := n.AppendDelta(nil, after, math.MaxInt32)
	if seq, _, _ := n.Position(); !ok || last != seq {
		n.t.Fatalf("delta after %d: to %d, ok %v; want to %d", after, last, ok, seq)
	}
	return frame
}

// learn merges all that other wrote.
func (n node) learn(other node) News {
	n.t.Helper()
	seq, _ := n.Have(other.Self())
	if now, _, _ := other.Position(); seq == now {
		return News{}
	}
	news, err := n.MergeDelta(other.Self(), other.delta(seq), start)
	if err != nil || news.Need {
		n.t.Fatalf("%+v, %v", news, err)
	}
	return news
}

func (n node) wantAt(p Place, want ...node) {
	n.t.Helper()
	var ids []Origin
	for _, o := range want {
		ids = append(ids, o.Self())
	}
	if got := sorted(n.Locate(nil, p)); !slices.Equal(got, sorted(ids)) {
		n.t.Fatalf("%v is located at %v, want %v", p, got, ids)
	}
	if n.Held(p) != (len(want) > 0) {
		n.t.Fatalf("%v is held: %v, and it is located at %v", p, n.Held(p), ids)
	}
}

func (n node) wantEqual(other node) {
	n.t.Helper()
	seq, hash := n.Have(other.Self())
	wantSeq, wantHash, _ := other.Position()
	if seq != wantSeq || hash != wantHash {
		n.t.Fatalf("seq %d hash %x of %v, want %d %x", seq, hash, other.Self(), wantSeq, wantHash)
	}
	mine := n.origins[other.Self()].set
	for i := range other.own.set.shards {
		for rest := other.own.set.shards[i].appendAll(nil); len(rest) > 0; {
			op, size := splitOp(rest)
			rest = rest[size:]
			if op.what == join && !mine.has(n.hashBytes(op.name), head(join, op.kind), op.key) {
				n.t.Fatalf("%q is not known of %v", op.name, other.Self())
			}
		}
	}
}

func (n node) snapshot() (parts [][]byte) {
	n.t.Helper()
	s := n.Snapshot()
	for {
		part, _, done := s.Next(nil)
		parts = append(parts, part)
		if done {
			return parts
		}
	}
}

func (n node) learnParts(other node, parts [][]byte) (last News) {
	n.t.Helper()
	for _, part := range parts {
		var err error
		if last, err = n.MergeSnap(other.Self(), part, start); err != nil {
			n.t.Fatal(err)
		}
	}
	return last
}

func TestLocateFindsWhoHoldsAPlace(t *testing.T) {
	a, b, c := newNode(t, "a", 1), newNode(t, "b", 1), newNode(t, "c", 1)
	a.meet(b, c)
	b.Join(user("alice"))
	b.Join(Place{rooms, "alice"})
	c.Join(user("alice"))
	c.Join(Place{Kind: 7}) // no name: everyone
	long := user(strings.Repeat("ü", MaxName/2))
	c.Join(long)
	a.Join(user("alice")) // its own are not its directory's to find
	a.learn(b)
	a.learn(c)
	a.wantAt(user("alice"), b, c)
	a.wantAt(Place{rooms, "alice"}, b)
	a.wantAt(Place{Kind: 7}, c)
	a.wantAt(long, c)
	a.wantAt(user("bob"))
	a.wantAt(user(""))
	a.wantAt(user(long.Name + "x"))
	a.wantAt(Place{Kinds, "alice"})
	b.Leave(user("alice"))
	a.learn(b)
	a.wantAt(user("alice"), c)
	a.wantAt(Place{rooms, "alice"}, b)
	a.wantEqual(b)
	a.wantEqual(c)
}

func TestOnlyChangesAreOps(t *testing.T) {
	a := newNode(t, "a", 1)
	_, empty, _ := a.Position()
	a.Leave(user("alice"))
	a.Join(user("alice"))
	a.Join(user("alice"))
	if seq, _, _ := a.Position(); seq != 1 {
		t.Fatalf("want 1 op, got %d", seq)
	}
	a.Leave(user("alice"))
	a.Leave(user("alice"))
	if seq, hash, _ := a.Position(); seq != 2 || hash != empty {
		t.Fatalf("seq %d hash %x, want 2 and %x", seq, hash, empty)
	}
}

func TestDownHidesAtOnceAndUpBringsBackWithoutTransfer(t *testing.T) {
	a, b, c := newNode(t, "a", 1), newNode(t, "b", 1), newNode(t, "c", 1)
	a.meet(b, c)
	b.Join(user("alice"))
	c.Join(user("alice"))
	a.learn(b)
	a.learn(c)
	a.Down(b.Self(), start)
	a.wantAt(user("alice"), c)
	b.Join(user("bob"))
	a.learn(b) // its link still works
	a.wantAt(user("bob"))
	a.Sweep(start.Add(Keep - 1))
	a.meet(b)
	a.wantAt(user("alice"), b, c)
	a.wantAt(user("bob"), b)
	a.wantEqual(b)

	a.Down(b.Self(), start)
	a.Down(b.Self(), start.Add(time.Hour)) // not a second time
	a.Sweep(start.Add(Keep))
	if seq, _ := a.Have(b.Self()); seq != 0 {
		t.Fatalf("seq %d of a forgotten origin", seq)
	}
	if _, err := a.MergeDelta(b.Self(), b.delta(0), start); err != ErrUnknown {
		t.Fatalf("a frame of a forgotten origin: %v, want %v", err, ErrUnknown)
	}
	a.wantAt(user("bob"))
}

func TestFramesOfUnknownOriginsAndOfTheOwnIDAreRefused(t *testing.T) {
	a, b, old := newNode(t, "a", 2), newNode(t, "b", 1), newNode(t, "a", 1)
	b.Join(user("alice"))
	old.Join(user("alice"))
	for _, c := range []struct {
		from node
		want error
	}{{b, ErrUnknown}, {old, ErrSelf}} {
		from := c.from.Self()
		_, err := a.MergeDelta(from, c.from.delta(0), start)
		_, err2 := a.MergeSnap(from, c.from.snapshot()[0], start)
		_, err3 := a.MergeBeat(from, 1, 1, 1, start)
		if err != c.want || err2 != c.want || err3 != c.want {
			t.Errorf("from %v: %v, %v, %v, want %v", from, err, err2, err3, c.want)
		}
	}
	if _, err := a.Hello(old.Self(), true, start); err != ErrSelf {
		t.Errorf("HELLO of its own id: %v, want %v", err, ErrSelf)
	}
	if err := a.Up(a.Self()); err != ErrSelf {
		t.Errorf("its own coming up: %v, want %v", err, ErrSelf)
	}
	if err := a.Up(Origin{"b/../c", 1}); err != ErrMalformed {
		t.Errorf("a strange id: %v, want %v", err, ErrMalformed)
	}
	if got := a.Origins(nil); len(got) > 0 {
		t.Errorf("origins %v, want none", got)
	}
}

// A recorded "alive" of an old run can be played again by whoever recorded it.
func TestUpNeverTakesAnotherRunAway(t *testing.T) {
	a, b1, b2 := newNode(t, "a", 1), newNode(t, "b", 1), newNode(t, "b", 2)
	a.meet(b2)
	b2.Join(user("alice"))
	a.learn(b2)
	a.meet(b1)
	a.wantAt(user("alice"), b2)
	a.Forget(b1.Self()) // b2 answered where it was dialled
	a.wantAt(user("alice"), b2)
}

func TestHelloOfALaterRunEndsTheEarlier(t *testing.T) {
	a, b1, b2 := newNode(t, "a", 1), newNode(t, "b", 1), newNode(t, "b", 2)
	a.meet(b1)
	b1.Join(user("alice"))
	b2.Join(user("bob"))
	a.learn(b1)
	if later, err := a.Hello(b2.Self(), false, start); later || err != nil {
		t.Fatal(later, err)
	}
	a.wantAt(user("alice"))
	a.learn(b2)
	a.wantAt(user("bob")) // membership has not spoken
	a.meet(b2)
	a.wantAt(user("bob"), b2)

	// What the old run said before it ended comes late.
	if _, err := a.MergeDelta(b1.Self(), b1.delta(0), start); err != ErrUnknown {
		t.Fatalf("a delta of the old run: %v, want %v", err, ErrUnknown)
	}
	if later, err := a.Hello(b1.Self(), true, start); !later || err != nil {
		t.Fatalf("the HELLO of the old run: %v, %v", later, err)
	}
	if seq, _ := a.Have(b1.Self()); len(a.Origins(nil)) != 1 || seq != 0 {
		t.Fatalf("the old run came back: %v", a.Origins(nil))
	}
	a.wantAt(user("bob"), b2)
}

func TestARunWhoseClockWentBackTakesOverWhenTheOtherIsDisproved(t *testing.T) {
	for _, end := range []string{"Forget", "Down"} {
		a, old, fresh := newNode(t, "a", 1), newNode(t, "b", 9), newNode(t, "b", 3)
		a.meet(old)
		if later, _ := a.Hello(fresh.Self(), true, start); !later {
			t.Fatal("the later run was not told of")
		}
		if end == "Forget" {
			a.Forget(old.Self())
		} else {
			a.Down(old.Self(), start)
		}
		if later, err := a.Hello(fresh.Self(), true, start); later || err != nil {
			t.Fatal(later, err)
		}
		fresh.Join(user("alice"))
		a.learn(fresh)
		a.wantAt(user("alice"), fresh)
	}
}

func TestOneOriginMoreThanTooManyIsRefused(t *testing.T) {
	a := newNode(t, "a", 1)
	for i := range MaxOrigins {
		a.origins[Origin{"b", uint64(i)}] = &origin{Origin: Origin{"b", uint64(i)}}
	}
	if err := a.Up(Origin{"c", 1}); err != ErrFull {
		t.Errorf("Up: %v, want %v", err, ErrFull)
	}
	if _, err := a.Hello(Origin{"c", 1}, true, start); err != ErrFull {
		t.Errorf("Hello: %v, want %v", err, ErrFull)
	}
}

func TestDeltaPassesOverWhatIsKnownAndNeedsWhatIsMissing(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	for i := range 300 {
		b.Join(user(fmt.Sprint("user", i)))
	}
	first, to, _ := b.AppendDelta(nil, 0, 1000)
	rest := b.delta(to)
	if news, err := a.MergeDelta(b.Self(), rest, start); err != nil || !news.Need || news.Have != 0 {
		t.Fatalf("a gap from the beginning: %+v, %v", news, err)
	}
	a.MergeDelta(b.Self(), first, start)
	if news, err := a.MergeDelta(b.Self(), b.delta(to+1), start); err != nil || !news.Need || news.Have != to {
		t.Fatalf("a gap of one: %+v, %v; want a need of %d", news, err, to)
	}
	if seq, _ := a.Have(b.Self()); seq != to {
		t.Fatalf("seq %d, want %d", seq, to)
	}
	b.Leave(user("user0"))
	all := b.delta(0)
	for range 2 {
		if news, err := a.MergeDelta(b.Self(), all, start); err != nil || news.Need {
			t.Fatalf("%+v, %v", news, err)
		}
		a.wantEqual(b)
	}
	if news, _ := a.MergeDelta(b.Self(), first, start); news.Need {
		t.Fatal("an old delta is needed again")
	}
	a.wantAt(user("user0")) // though first says it joined
}

func TestAFrameIsMergedWholeOrNotAtAll(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.Join(user("alice"))
	b.Bind(user("alice"), "mobile", 0, start)
	b.Join(user("bob"))
	b.Leave(user("bob"))
	frames := map[string][]byte{"delta": b.delta(0), "snapshot": b.snapshot()[0]}
	for what, good := range frames {
		merge := a.MergeDelta
		if what == "snapshot" {
			merge = a.MergeSnap
		}
		for n := range good {
			// A delta cut between two ops is a shorter delta.
			if what == "delta" {
				if _, err := readDelta(good[:n]); err == nil {
					continue
				}
			} else if f, err := readSnap(good[:n]); err == nil && f.last {
				continue
			}
			if _, err := merge(b.Self(), good[:n], start); err != ErrMalformed {
				t.Fatalf("the first %d bytes of a %s of %d: %v, want %v", n, what, len(good), err, ErrMalformed)
			}
		}
		if seq, _ := a.Have(b.Self()); seq != 0 {
			t.Fatalf("seq %d after nothing but garbled frames", seq)
		}
	}
	a.learnParts(b, [][]byte{frames["snapshot"]})
	a.wantEqual(b)
}

func TestAnOpHasOneForm(t *testing.T) {
	clock := binary.BigEndian.AppendUint64(nil, 100)
	stamp := binary.BigEndian.AppendUint64(nil, 101)
	device := string(clock) // any 8 bytes
	ok := func(ops ...string) []byte { return append(append([]byte{0}, clock...), strings.Join(ops, "")...) }
	for what, c := range map[string]struct {
		frame []byte
		good  bool
	}{
		"a join":                       {ok("\x10\x05alice"), true},
		"two joins":                    {ok("\x10\x05alice\x1f\x00"), true},
		"a bind":                       {ok("\x20\x05alice\x03web" + string(clock) + device), true},
		"none":                         {ok(), false},
		"a kind of op that is not":     {ok("\x30\x05alice"), false},
		"one that is dead":             {ok("\x90\x05alice"), false},
		"a length in two bytes":        {ok("\x10\x85\x00alice"), false},
		"a base in two bytes":          {append(append([]byte{0x80, 0}, clock...), "\x10\x05alice"...), false},
		"a base without end":           {append(append(bytes.Repeat([]byte{0xff}, 9), 1), clock...), false},
		"a name that is too long":      {ok("\x10\x81\x04" + strings.Repeat("x", MaxName+1)), false},
		"the longest name":             {ok("\x10\x80\x04" + strings.Repeat("x", MaxName)), true},
		"a length beyond the end":      {ok("\x10\x06alice"), false},
		"a name that is not UTF-8":     {ok("\x10\x01\xff"), false},
		"a class of none":              {ok("\x20\x05alice\x00" + string(clock) + device), false},
		"a class that is too long":     {ok("\x20\x05alice\x11" + strings.Repeat("x", 17) + string(clock) + device), false},
		"the longest class":            {ok("\x20\x05alice\x10" + strings.Repeat("x", 16) + string(clock) + device), true},
		"a class that is not UTF-8":    {ok("\x20\x05alice\x01\xff" + string(clock) + device), false},
		"a stamp beyond the clock":     {ok("\x20\x05alice\x03web" + string(stamp) + device), false},
		"half a device":                {ok("\x20\x05alice\x03web" + string(clock) + device[:4]), false},
		"half a stamp":                 {ok("\x20\x05alice\x03web" + string(stamp[:4])), false},
		"nothing":                      {nil, false},
		"a bind without a class":       {ok("\x20\x05alice"), false},
		"a good one and half a second": {ok("\x10\x05alice\x10"), false},
	} {
		if _, err := readDelta(c.frame); (err == nil) != c.good {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestASnapshotReplacesOnlyWhatIsOlder(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.Join(user("alice"))
	old := b.snapshot()
	b.Join(user("bob"))
	b.Leave(user("alice"))
	a.learnParts(b, b.snapshot())
	a.wantEqual(b)
	a.learnParts(b, old)
	a.wantEqual(b)
	a.wantAt(user("alice"))

	// Nor does one that was begun later and is older all the same.
	f, _ := readSnap(old[0])
	f.id = 1000
	a.learnParts(b, [][]byte{appendSnap(nil, f)})
	a.wantEqual(b)
	a.Forget(b.Self())
	a.meet(b)
	a.learn(b)

	// It replaces everything: carol's leave was in the ops that were lost.
	b.Join(user("carol"))
	a.learn(b)
	b.Leave(user("carol"))
	b.Join(user("dave"))
	a.learnParts(b, b.snapshot())
	a.wantAt(user("carol"))
	a.wantAt(user("dave"), b)
	a.wantEqual(b)
	b.Join(user("erin"))
	a.learn(b)
	a.wantEqual(b)
}

func TestWhatDivergedIsNoticedAndHealed(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.Join(user("alice"))
	a.learn(b)
	s := a.origins[b.Self()]
	s.set, s.hash = new(set), 0 // a bug

	seq, hash, clock := b.Position()
	if news, err := a.MergeBeat(b.Self(), seq, hash, clock, start); err != nil || !news.Need || !news.Diverged || news.Have != 0 {
		t.Fatalf("a beat brought %+v, %v", news, err)
	}
	stale, err := a.MergeDigest(nil, b.AppendDigest(nil))
	if err != nil || len(stale) != 1 || stale[0] != (Stale{Origin: b.Self(), Diverged: true}) {
		t.Fatalf("a digest brought %+v, %v", stale, err)
	}
	a.learnParts(b, b.snapshot()) // of the same seq
	a.wantEqual(b)
	a.wantAt(user("alice"), b)
}

func TestASnapshotWithTheWrongHashIsNotTaken(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.Join(user("alice"))
	f, _ := readSnap(b.snapshot()[0])
	f.hash++
	news, err := a.MergeSnap(b.Self(), appendSnap(nil, f), start)
	if err != nil || !news.Need || !news.Diverged || news.Have != 0 {
		t.Fatalf("%+v, %v", news, err)
	}
	a.wantAt(user("alice"))
}

func TestALostPartEndsASnapshotAndTheNextOneWorks(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.own.partBytes = 600
	for i := range 300 {
		b.Join(user(fmt.Sprint("user", i)))
	}
	parts := b.snapshot()
	if len(parts) < 4 {
		t.Fatalf("%d parts", len(parts))
	}
	a.learnParts(b, parts[:1])
	if news := a.learnParts(b, parts[2:3]); !news.Need || news.Have != 0 {
		t.Fatalf("a lost part: %+v", news)
	}
	a.learnParts(b, parts)
	if seq, _ := a.Have(b.Self()); seq != 0 {
		t.Fatal("a snapshot that had ended was taken")
	}
	next := b.snapshot()
	for i, part := range next {
		a.learnParts(b, [][]byte{part, part}) // each twice, and the first again and again
		if i < len(next)-1 {
			a.learnParts(b, next[:1])
		}
	}
	a.wantEqual(b)
}

// Ops go on between the parts, as many as they want; what the receiver has
// after the last part is what was there when that was written, and deltas go on
// from there.
func TestASnapshotIsConsistentWhileOpsGoOn(t *testing.T) {
	for _, ops := range []int{1, 30, 1000} {
		a, b := newNode(t, "a", 1), newNode(t, "b", 1)
		a.meet(b)
		b.own.partBytes = 2000
		n := 0
		change := func() {
			n++
			p := user(fmt.Sprint("user", n*7919%5000))
			if n%3 == 0 {
				b.Leave(p)
			} else {
				b.Join(p)
			}
			if n%10 == 0 {
				b.Bind(p, "mobile", 0, start)
			}
		}
		for range 10_000 {
			change()
		}
		s := b.Snapshot()
		parts := 0
		for {
			frame, seq, done := s.Next(nil)
			if len(frame) > b.own.partBytes+48 {
				t.Fatalf("a part of %d bytes, want %d and 48 at most", len(frame), b.own.partBytes)
			}
			if parts++; parts > 5000 {
				t.Fatal("it never ends")
			}
			if news, err := a.MergeSnap(b.Self(), frame, start); err != nil || news.Need {
				t.Fatalf("%+v, %v", news, err)
			}
			if done {
				if now, _, _ := b.Position(); seq != now {
					t.Fatalf("the cursor is %d, want %d", seq, now)
				}
				a.wantEqual(b)
				break
			}
			for range ops {
				if parts < 300 {
					change()
				}
			}
		}
		for range 100 {
			change()
		}
		a.learn(b)
		a.wantEqual(b)
	}
}

func TestASnapshotWhoseRingRanOverBeginsAnew(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.own.partBytes, b.own.ringOps, b.own.segmentOps = 1000, 100, 10
	for i := range 1000 {
		b.Join(user(fmt.Sprint("user", i)))
	}
	s := b.Snapshot()
	for range 5 {
		frame, _, done := s.Next(nil)
		if done {
			t.Fatal("too soon")
		}
		a.learnParts(b, [][]byte{frame})
	}
	for i := range 500 {
		b.Leave(user(fmt.Sprint("user", i)))
	}
	for done := false; !done; {
		var frame []byte
		frame, _, done = s.Next(nil)
		a.learnParts(b, [][]byte{frame})
	}
	a.wantEqual(b)
	if b.own.snapshots != 2 {
		t.Errorf("it began %d times, want 2", b.own.snapshots)
	}
}

func TestACursorWithinTheRingIsServed(t *testing.T) {
	b := newNode(t, "b", 1)
	if frame, last, ok := b.AppendDelta(nil, 0, 1000); len(frame) > 0 || last != 0 || !ok {
		t.Fatalf("before the first op: %q, %d, %v", frame, last, ok)
	}
	if _, _, ok := b.AppendDelta(nil, 1, 1000); ok {
		t.Fatal("a cursor from the future is served")
	}
	for i := range RingOps + 5000 {
		b.Join(user(fmt.Sprint("user", i)))
	}
	seq, _, _ := b.Position()
	if _, _, ok := b.AppendDelta(nil, seq-RingOps, 1000); !ok {
		t.Error("the oldest cursor is not served")
	}
	if _, _, ok := b.AppendDelta(nil, seq-RingOps-2*segmentOps, 1000); ok {
		t.Error("the ring is longer than needed")
	}
	// From cursor to cursor, in frames of all sizes, there is every op once.
	for _, limit := range []int{1, 100, 30_000, 200_000} {
		after := seq - 3000
		for after < seq {
			frame, last, ok := b.AppendDelta(nil, after, limit)
			f, err := readDelta(frame)
			if !ok || err != nil || f.base != after || f.base+f.n != last || last <= after || len(f.ops) > max(limit, 11) {
				t.Fatalf("after %d: base %d, %d ops of %d bytes, last %d, %v, %v", after, f.base, f.n, len(f.ops), last, ok, err)
			}
			for i := range f.n {
				op, n := splitOp(f.ops)
				f.ops = f.ops[n:]
				if want := fmt.Sprint("user", after+i); string(op.name) != want {
					t.Fatalf("op %d is of %q, want %q", after+i+1, op.name, want)
				}
			}
			after = last
		}
	}
}

func TestTheRingKeepsWithinItsBytes(t *testing.T) {
	b := newNode(t, "b", 1)
	name := strings.Repeat("x", MaxName)
	for range 30_000 {
		b.Join(user(name))
		b.Leave(user(name))
	}
	size := 0
	for _, s := range b.own.ring {
		size += cap(s.ops)
	}
	if size > ringBytes+ringBytes/2 || b.own.bytes > ringBytes || b.own.ops < 20_000 {
		t.Errorf("the ring has %d ops of %d bytes in %d", b.own.ops, b.own.bytes, size)
	}
}

func TestResumeTakesOnlyTheRightHash(t *testing.T) {
	b := newNode(t, "b", 1)
	b.own.ringOps, b.own.segmentOps = 100, 10
	hashes := []uint64{0}
	for i := range 300 {
		if p := user(fmt.Sprint("user", i/2%7)); i%2 == 0 {
			b.Join(p)
		} else if i%3 == 0 {
			b.Bind(p, "web", 0, start)
		} else {
			b.Leave(p)
		}
		if seq, hash, _ := b.Position(); seq == uint64(len(hashes)) {
			hashes = append(hashes, hash)
		}
	}
	last := len(hashes) - 1
	for seq, hash := range hashes {
		if got, want := b.Resume(uint64(seq), hash), seq >= last-100; got != want && (seq >= last-100 || seq < last-110) {
			t.Errorf("resume at %d of %d: %v", seq, last, got)
		}
		if b.Resume(uint64(seq), hash+1) {
			t.Errorf("resume at %d with another hash", seq)
		}
	}
	if b.Resume(uint64(last+1), hashes[last]) {
		t.Error("resume beyond the end")
	}
}

func TestTheNewerLoginWinsAndTheOlderIsToldOnce(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.meet(a)
	older := a.Bind(user("alice"), "mobile", 0, start)
	pc := a.Bind(user("alice"), "pc", 0, start)
	newer := b.Bind(user("alice"), "mobile", 7, start.Add(time.Millisecond))
	if news := b.learn(a); len(news.Lost) > 0 {
		t.Fatalf("the newer one lost: %+v", news.Lost)
	}
	want := Lost{user("alice"), "mobile", older, b.Self(), newer, 7}
	if news := a.learn(b); len(news.Lost) != 1 || news.Lost[0] != want {
		t.Fatalf("lost %+v, want %+v", news.Lost, want)
	}
	news, err := a.MergeDelta(b.Self(), b.delta(0), start)
	if err != nil || len(news.Lost) > 0 {
		t.Fatalf("again: %+v, %v", news, err)
	}
	if news := a.learnParts(b, b.snapshot()); len(news.Lost) > 0 {
		t.Fatalf("again, from a snapshot: %+v", news)
	}
	a.Unbind(user("alice"), "mobile", older) // its connection ends, which is nothing new
	if a.own.set.n != 1 {
		t.Fatalf("%d binds are left, want pc's", a.own.set.n)
	}
	a.Unbind(user("alice"), "pc", pc)
	if a.own.set.n != 0 {
		t.Fatalf("%d binds are left", a.own.set.n)
	}
}

func TestALoginLosesToASnapshotToo(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	mine := a.Bind(user("alice"), "mobile", 0, start)
	b.Bind(user("alice"), "mobile", 0, start)
	theirs := b.Bind(user("alice"), "mobile", 0, start.Add(time.Second)) // in the stead of the one before
	if news := a.learnParts(b, b.snapshot()); len(news.Lost) != 1 || news.Lost[0] != (Lost{user("alice"), "mobile", mine, b.Self(), theirs, 0}) {
		t.Fatalf("%+v", news)
	}
}

func TestOfTwoLoginsAtOneMomentTheGreaterIDWins(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.meet(a)
	if s, q := a.Bind(user("alice"), "web", 0, start), b.Bind(user("alice"), "web", 0, start); s != q {
		t.Fatalf("stamps %d and %d", s, q)
	}
	if lost := b.learn(a).Lost; len(lost) != 0 {
		t.Errorf("b lost %+v", lost)
	}
	if lost := a.learn(b).Lost; len(lost) != 1 {
		t.Errorf("a lost %+v", lost)
	}
}

func TestALoginThatFollowsAnotherWinsWhateverTheClocksSay(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.meet(a)
	a.Bind(user("alice"), "web", 0, start.Add(time.Hour))
	if news := b.learn(a); news.Ahead != time.Hour {
		t.Errorf("a clock an hour ahead: %v", news.Ahead)
	}
	b.Bind(user("alice"), "web", 0, start)
	if lost := a.learn(b).Lost; len(lost) != 1 {
		t.Errorf("the first login was not lost: %+v", lost)
	}
}

func TestALoginThatWasReplacedHereIsNotLostElsewhere(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.meet(a)
	first := a.Bind(user("alice"), "web", 0, start)
	b.Bind(user("alice"), "web", 0, start.Add(time.Millisecond))
	second := a.Bind(user("alice"), "web", 0, start.Add(2*time.Millisecond))
	a.Unbind(user("alice"), "web", first) // the connection that second replaced ends late
	if lost := a.learn(b).Lost; len(lost) > 0 {
		t.Errorf("a lost %+v", lost)
	}
	if lost := b.learn(a).Lost; len(lost) != 1 || lost[0].ByStamp < second {
		t.Errorf("b lost %+v", lost)
	}
}

func TestClassesAndKindsOfPlacesAreApart(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	a.Bind(user("alice"), "mobile", 0, start)
	a.Bind(Place{elsewhere, "alice"}, "web", 0, start)
	b.Bind(user("alice"), "web", 0, start.Add(time.Second))
	b.Bind(user("alice2"), "mobile", 0, start.Add(time.Second))
	b.Bind(user("alic"), "emobile", 0, start.Add(time.Second))
	b.Join(user("alice"))
	if lost := a.learn(b).Lost; len(lost) > 0 {
		t.Errorf("lost %+v", lost)
	}
}

func TestDigestsListLiveOriginsAndFindWhatIsStale(t *testing.T) {
	a, b, c, d := newNode(t, "a", 1), newNode(t, "b", 1), newNode(t, "c", 1), newNode(t, "d", 1)
	a.meet(b, c, d)
	b.meet(a, c, d)
	for i := range 10 {
		c.Join(user(fmt.Sprint(i)))
		d.Join(user(fmt.Sprint(i)))
	}
	a.learn(c)
	a.learn(d)
	a.Join(user("x"))
	b.learn(c)
	c.Join(user("more"))
	a.learn(c)
	stale, err := b.MergeDigest(nil, a.AppendDigest(nil))
	want := []Stale{{Origin: d.Self(), Behind: 10}, {Origin: a.Self(), Behind: 1}, {Origin: c.Self(), Behind: 1}}
	if err != nil || !slices.Equal(stale, want) {
		t.Fatalf("stale %+v, %v; want %+v", stale, err, want)
	}
	a.Down(d.Self(), start)
	a.Down(c.Self(), start)
	if stale, err := b.MergeDigest(nil, a.AppendDigest(nil)); err != nil || !slices.Equal(stale, want[1:2]) {
		t.Fatalf("stale %+v, %v; want %+v", stale, err, want[1:2])
	}
	b.Down(a.Self(), start)
	if stale, err := b.MergeDigest(nil, a.AppendDigest(nil)); err != nil || len(stale) > 0 {
		t.Fatalf("of one that is down: %+v, %v", stale, err)
	}
}

func TestGarbledDigestsAreRefusedWhole(t *testing.T) {
	a, b, c := newNode(t, "a", 1), newNode(t, "b", 1), newNode(t, "c", 1)
	a.meet(b, c)
	b.meet(c)
	b.Join(user("x"))
	good := b.AppendDigest(nil)
	for n := range good {
		if stale, err := a.MergeDigest(nil, good[:n]); err != ErrMalformed || len(stale) > 0 {
			t.Errorf("the first %d bytes of %d: %v, %v", n, len(good), stale, err)
		}
	}
	if _, err := a.MergeDigest(nil, append(slices.Clone(good), 0)); err != ErrMalformed {
		t.Errorf("a byte too many: %v", err)
	}
	if _, err := a.MergeDigest(nil, bytes.Replace(good, []byte("\x01c"), []byte("\x01/"), 1)); err != ErrMalformed {
		t.Errorf("a strange id: %v", err)
	}
	if _, err := a.MergeDigest(nil, []byte{0xff, 0xff, 0xff, 0xff, 0x0f}); err != ErrMalformed {
		t.Errorf("4 G entries: %v", err)
	}
}

func TestABeatNeedsWhatIsMissingWhenNothingComes(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.Join(user("alice"))
	beat := func() News {
		seq, hash, clock := b.Position()
		news, err := a.MergeBeat(b.Self(), seq, hash, clock, start)
		if err != nil {
			t.Fatal(err)
		}
		return news
	}
	if news := beat(); news.Need {
		t.Error("the first beat is ahead of the ops: they may be on their way")
	}
	a.learn(b)
	b.Join(user("bob"))
	if news := beat(); news.Need {
		t.Error("some came meanwhile")
	}
	if news := beat(); !news.Need || news.Have != 1 || news.Diverged {
		t.Errorf("nothing came: %+v", news)
	}
	a.learn(b)
	if news := beat(); news.Need {
		t.Errorf("all is here: %+v", news)
	}
}

func TestClockNeverGoesBackAndNeverRunsOver(t *testing.T) {
	var c clock
	last := Stamp(0)
	for _, at := range []time.Duration{0, 0, -time.Hour, time.Second, time.Second} {
		now := c.tick(start.Add(at))
		if now <= last {
			t.Fatalf("%d after %d", now, last)
		}
		last = now
	}
	if want := start.Add(time.Second); !last.Time().Equal(want) {
		t.Errorf("the stamp says %v, want %v", last.Time(), want)
	}
	if ahead := c.see(wall(start.Add(MaxAhead)), start); ahead != 0 {
		t.Errorf("%v ahead is too much", ahead)
	}
	if ahead := c.see(wall(start.Add(MaxAhead+time.Millisecond)), start); ahead != MaxAhead+time.Millisecond {
		t.Errorf("want %v, got %v", MaxAhead+time.Millisecond, ahead)
	}
	seen := c.now()
	if c.see(seen-1, start); c.now() != seen {
		t.Error("a smaller stamp set it back")
	}
	if now := c.tick(start); now <= seen {
		t.Errorf("%d after having seen %d", now, seen)
	}
	if ahead := c.see(math.MaxUint64, start); ahead < time.Hour {
		t.Errorf("the greatest stamp is %v ahead", ahead)
	}
	for range 2 {
		if now := c.tick(start); now != math.MaxUint64 {
			t.Fatalf("after the greatest stamp comes %d", now)
		}
	}
	if s := wall(time.Time{}); s != 0 {
		t.Errorf("the year 1 is %d", s)
	}
}

func TestNamesAreYieldedOnce(t *testing.T) {
	a, b, c := newNode(t, "a", 1), newNode(t, "b", 1), newNode(t, "c", 1)
	a.meet(b, c)
	want := make(map[string]bool)
	for i := range 1000 {
		name := fmt.Sprint("user", i)
		want[name] = true
		switch i % 5 {
		case 0:
			b.Join(user(name))
		case 1:
			c.Join(Place{elsewhere, name})
		case 2:
			b.Join(user(name))
			c.Join(user(name))
		case 3:
			b.Join(Place{elsewhere, name})
			b.Join(user(name))
			c.Join(Place{elsewhere, name})
		case 4:
			delete(want, name)
			b.Join(Place{rooms, name})
			b.Bind(user(name), "web", 0, start)
		}
	}
	a.learn(b)
	a.learn(c)
	for _, kinds := range [][]Kind{{users, elsewhere}, {elsewhere, users}, {users, elsewhere, users, 99}} {
		seen := make(map[string]int)
		for name := range a.Names(kinds...) {
			seen[name]++
			a.Locate(nil, user(name)) // no lock is held
			if seen[name] > 1 || !want[name] {
				t.Fatalf("%v: %s %d times", kinds, name, seen[name])
			}
		}
		if len(seen) != len(want) {
			t.Fatalf("%v: %d names, want %d", kinds, len(seen), len(want))
		}
	}
	for range a.Names(users) {
		break
	}
	a.Down(b.Self(), start)
	a.Down(c.Self(), start)
	for name := range a.Names(users, elsewhere) {
		t.Fatalf("%s is nowhere", name)
	}
}

func TestChangedTellsEveryPlaceThatChanged(t *testing.T) {
	told := make(map[string]int)
	a := node{New(Origin{"a", 1}, func(_ Origin, kind Kind, name []byte, _ bool) { told[fmt.Sprintf("%d%s", kind, name)]++ }), t}
	b, b2 := newNode(t, "b", 1), newNode(t, "b", 2)
	want := func(what string, places ...string) {
		t.Helper()
		for _, p := range places {
			if told[p] != 1 {
				t.Errorf("%s: %s was told %d times", what, p, told[p])
			}
			delete(told, p)
		}
		if len(told) > 0 {
			t.Errorf("%s: told %v too", what, told)
			clear(told)
		}
	}
	a.meet(b)
	b.Join(user("alice"))
	b.Join(Place{rooms, "r"})
	b.Bind(user("alice"), "web", 0, start)
	a.learn(b)
	want("delta", "0alice", "1r")
	b.Leave(Place{rooms, "r"})
	b.Join(user("bob"))
	a.learnParts(b, b.snapshot())
	want("snapshot", "1r", "0bob")
	a.Down(b.Self(), start)
	want("down", "0alice", "0bob")
	a.Down(b.Self(), start)
	want("down again")
	a.meet(b)
	want("up", "0alice", "0bob")
	a.meet(b)
	want("up again")
	a.Hello(b2.Self(), true, start)
	want("a later run's HELLO", "0alice", "0bob")
	b2.Join(user("carol"))
	a.learn(b2)
	want("delta", "0carol")
	a.Forget(b2.Self())
	want("forget", "0carol")
	a.Forget(b2.Self())
	want("forget again")
}

// While Down tells what it hid, a delta takes some of that away, which Down does
// not see any more: the delta tells it.
func TestWhatChangesWhileChangedTellsIsNotMissed(t *testing.T) {
	var a node
	b := newNode(t, "b", 1)
	told := make(map[string]bool)
	a = node{New(Origin{"a", 1}, func(_ Origin, kind Kind, name []byte, _ bool) {
		first := len(told) == 0
		told[string(name)] = true
		if first {
			a.learn(b)
		}
	}), t}
	for i := range 100 {
		b.Join(user(fmt.Sprint("user", i)))
	}
	a.meet(b)
	told[""] = true // not yet
	a.learn(b)
	for i := range 100 {
		b.Leave(user(fmt.Sprint("user", i)))
	}
	clear(told)
	a.Down(b.Self(), start)
	if len(told) != 100 {
		t.Errorf("told of %d places, want 100", len(told))
	}
}

func TestADeltaOfWhomAnotherForgetsMeanwhileEnds(t *testing.T) {
	var a node
	b := newNode(t, "b", 1)
	told := 0
	a = node{New(Origin{"a", 1}, func(Origin, Kind, []byte, bool) {
		if told++; told == 1 {
			a.Forget(b.Self())
		}
	}), t}
	a.meet(b)
	for i := range 3 * mergeChunk {
		b.Join(user(fmt.Sprint("user", i)))
	}
	if _, err := a.MergeDelta(b.Self(), b.delta(0), start); err != ErrUnknown {
		t.Errorf("%v, want %v", err, ErrUnknown)
	}
}

func TestWhatNoPeerTakesPanics(t *testing.T) {
	a := newNode(t, "a", 1)
	for what, f := range map[string]func(){
		"a long name":       func() { a.Join(user(strings.Repeat("x", MaxName+1))) },
		"a name not UTF-8":  func() { a.Join(user("\xff")) },
		"a kind beyond":     func() { a.Leave(Place{Kind: Kinds}) },
		"no class":          func() { a.Bind(user("alice"), "", 0, start) },
		"a long class":      func() { a.Bind(user("alice"), strings.Repeat("x", MaxClass+1), 0, start) },
		"a node without id": func() { New(Origin{"", 1}, nil) },
		"a part too many": func() {
			s := a.Snapshot()
			s.Next(nil)
			s.Next(nil)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			f()
		}()
	}
	a.Join(user("alice")) // no lock was left behind
}

func TestLookupsAllocateNothing(t *testing.T) {
	a, b, c := newNode(t, "a", 1), newNode(t, "b", 1), newNode(t, "c", 1)
	a.meet(b, c)
	long := user(strings.Repeat("x", MaxName))
	for _, n := range []node{b, c} {
		n.Join(user("alice"))
		n.Join(long)
		a.learn(n)
	}
	dst := make([]Origin, 0, 4)
	for _, p := range []Place{user("alice"), long, user("bob")} {
		if n := testing.AllocsPerRun(100, func() {
			dst = a.Locate(dst[:0], p)
			a.Held(p)
		}); n != 0 {
			t.Errorf("%v allocations for a lookup of %.10s", n, p.Name)
		}
	}
}

func TestOwnOpsAndMergesAllocateNothingInTheLongRun(t *testing.T) {
	a, b := newNode(t, "a", 1), newNode(t, "b", 1)
	a.meet(b)
	b.own.ringOps = 2 * segmentOps // soon full
	alice := user("alice")
	var frame []byte
	round := func() {
		b.Join(alice)
		s := b.Bind(alice, "mobile", 0, start)
		b.Unbind(alice, "mobile", s)
		b.Leave(alice)
		seq, _ := a.Have(b.Self())
		frame, _, _ = b.AppendDelta(frame[:0], seq, 1000)
		a.MergeDelta(b.Self(), frame, start)
	}
	b.Join(user("another")) // so that no shard of theirs is emptied
	for i := range 5000 {
		b.Join(user(fmt.Sprint("user", i)))
		a.learn(b)
	}
	for range 5000 {
		round()
	}
	if n := testing.AllocsPerRun(2000, round); n > 0 {
		t.Errorf("%v allocations for a login and its end", n)
	}
}

// heap is what the garbage collector leaves.
func heapBytes() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestAnEntryCostsAtMost45Bytes(t *testing.T) {
	const n = 300_000
	for _, how := range []string{"snapshot", "delta"} {
		b := newNode(t, "b", 1)
		before := heapBytes()
		a := newNode(t, "a", 1).meet(b)
		for i := range n {
			b.Join(user(fmt.Sprintf("user-%07d", i)))
			if how == "delta" && i%50_000 == 49_999 {
				a.learn(b)
			}
		}
		if how == "snapshot" {
			a.learnParts(b, b.snapshot())
		}
		both := heapBytes() - before
		runtime.KeepAlive(a)
		own := heapBytes() - before
		runtime.KeepAlive(b)
		if each := float64(both-own) / n; each > 45 {
			t.Errorf("by %s: %.1f bytes a user of 12 characters", how, each)
		} else {
			t.Logf("by %s: %.1f bytes a user of 12 characters; at its owner %.1f, with the ring", how, each, float64(own)/n)
		}
	}
}

func TestAFrameCannotTakeMoreMemoryThanAFewTimesItsSize(t *testing.T) {
	a := newNode(t, "a", 1)
	if err := a.Up(Origin{"b", 1}); err != nil {
		t.Fatal(err)
	}
	var ops []byte
	for i := range 1 << 20 { // the shortest names there are
		if name := string(rune(i)); i < 0xd800 || i > 0xdfff {
			ops = appendPlace(ops, join, user(name))
		}
	}
	before := heapBytes()
	if news, err := a.MergeDelta(Origin{"b", 1}, append(appendDelta(nil, 0, 1), ops...), start); err != nil || news.Need {
		t.Fatalf("%+v, %v", news, err)
	}
	if grown := heapBytes() - before; grown > 6*int64(len(ops)) {
		t.Errorf("%d bytes of ops became %d", len(ops), grown)
	}
	runtime.KeepAlive(a)
}

// All at once, for the race detector, and at the end they agree.
func TestEverythingMayBeCalledAtOnce(t *testing.T) {
	var mu sync.Mutex
	told := make(map[string]bool)
	var a node
	a = node{New(Origin{"a", 1}, func(_ Origin, kind Kind, name []byte, _ bool) {
		mu.Lock()
		defer mu.Unlock()
		told[string(name)] = a.Held(Place{kind, string(name)})
	}), t}
	b, c := newNode(t, "b", 1), newNode(t, "c", 1)
	a.meet(b, c)
	rounds := 3000
	if testing.Short() {
		rounds = 300
	}
	var writers, others sync.WaitGroup
	stop := make(chan struct{})
	during := func(f func(i int)) {
		others.Add(1)
		go func() {
			defer others.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					f(i)
					runtime.Gosched()
				}
			}
		}()
	}
	for g, n := range []node{b, c, a} {
		writers.Add(1)
		go func() {
			defer writers.Done()
			for i := range rounds {
				p := user(fmt.Sprint("user", (i*31+g)%200))
				if i%3 == 0 {
					n.Leave(p)
				} else {
					n.Join(p)
				}
				n.Unbind(p, "web", n.Bind(p, "web", 0, start))
				n.Bind(p, "mobile", 0, start)
			}
		}()
	}
	for _, n := range []node{b, c} {
		during(func(int) {
			seq, hash := a.Have(n.Self())
			if !n.Resume(seq, hash) {
				return // it was just forgotten
			}
			frame, last, _ := n.AppendDelta(nil, seq, 500)
			if last > seq {
				if _, err := a.MergeDelta(n.Self(), frame, start); err != nil && !errors.Is(err, ErrUnknown) {
					t.Error(err)
				}
			}
			seq, hash, clock := n.Position()
			a.MergeBeat(n.Self(), seq, hash, clock, start)
		})
		during(func(int) {
			for _, part := range n.snapshot() {
				if _, err := a.MergeSnap(n.Self(), part, start); err != nil && !errors.Is(err, ErrUnknown) {
					t.Error(err)
				}
			}
		})
	}
	during(func(i int) {
		switch i % 50 {
		case 10:
			a.Down(b.Self(), start)
		case 20:
			a.Up(b.Self())
		case 30:
			a.Forget(b.Self())
		case 40:
			a.Hello(b.Self(), true, start)
		}
		a.Sweep(start)
	})
	var dst []Origin
	during(func(i int) { dst = a.Locate(dst[:0], user(fmt.Sprint("user", i%200))) })
	during(func(int) {
		for range a.Names(users) {
		}
		a.Origins(nil)
		a.MergeDigest(nil, b.AppendDigest(nil))
	})
	writers.Wait()
	close(stop)
	others.Wait()

	a.meet(b, c)
	for _, n := range []node{b, c} {
		a.learnParts(n, n.snapshot())
		a.wantEqual(n)
	}
	for name, held := range told {
		if now := a.Held(user(name)); now != held {
			t.Errorf("%s was told to be held: %v, and is: %v", name, held, now)
		}
	}
}

// TestChangesOfAnElderRunAreEarlyUntilItIsCurrent: who joins a cluster hears
// what was there before as no news, and everything after that as news.
func TestChangesOfAnElderRunAreEarlyUntilItIsCurrent(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	elder, younger := Origin{"b", 5}, Origin{"c", 20}
	early := map[string]bool{}
	d := New(Origin{"a", 10}, func(from Origin, _ Kind, name []byte, was bool) {
		early[from.ID+string(name)] = was
	})
	for _, o := range []Origin{elder, younger} {
		other := New(o, nil)
		other.Join(Place{1, "old"})
		if err := d.Up(o); err != nil {
			t.Fatal(err)
		}
		current := func() bool {
			for _, s := range d.Origins(nil) {
				if s.Origin == o {
					return s.Current
				}
			}
			return false
		}
		seq, hash, clock := other.Position()
		if _, err := d.MergeBeat(o, seq, hash, clock, now); err != nil {
			t.Fatal(err)
		}
		if current() {
			t.Errorf("%v is current before anything came", o)
		}
		frame, last, _ := other.AppendDelta(nil, 0, 1<<20)
		if _, err := d.MergeDelta(o, frame, now); err != nil {
			t.Fatal(err)
		}
		if !current() {
			t.Errorf("%v is not current when all has come", o)
		}
		other.Join(Place{1, "new"})
		frame, _, _ = other.AppendDelta(nil, last, 1<<20)
		if _, err := d.MergeDelta(o, frame, now); err != nil {
			t.Fatal(err)
		}
		d.Down(o, now)
		if was := early[o.ID+"old"]; was {
			t.Errorf("%v went, and that was told as early", o)
		}
	}
	early = map[string]bool{}
	d = New(Origin{"a", 10}, func(from Origin, _ Kind, name []byte, was bool) {
		early[from.ID+string(name)] = was
	})
	for _, o := range []Origin{elder, younger} {
		other := New(o, nil)
		other.Join(Place{1, "old"})
		_ = d.Up(o)
		frame, last, _ := other.AppendDelta(nil, 0, 1<<20)
		_, _ = d.MergeDelta(o, frame, now)
		seq, hash, clock := other.Position()
		_, _ = d.MergeBeat(o, seq, hash, clock, now)
		other.Join(Place{1, "new"})
		frame, _, _ = other.AppendDelta(nil, last, 1<<20)
		_, _ = d.MergeDelta(o, frame, now)
	}
	want := map[string]bool{"bold": true, "bnew": false, "cold": false, "cnew": false}
	for name, was := range want {
		if got, ok := early[name]; !ok || got != was {
			t.Errorf("%s: told %v, early %v, want early %v", name, ok, got, was)
		}
	}
}

// TestARunThatWasForgottenComesBackWithNews: a partition longer than Keep hid
// its places, so that they are there again is no early news.
func TestARunThatWasForgottenComesBackWithNews(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	elder := Origin{"b", 5}
	var told []bool
	d := New(Origin{"a", 10}, func(_ Origin, _ Kind, _ []byte, early bool) { told = append(told, early) })
	other := New(elder, nil)
	other.Join(Place{1, "old"})
	meets := func() {
		t.Helper()
		if err := d.Up(elder); err != nil {
			t.Fatal(err)
		}
		frame, _, _ := other.AppendDelta(nil, 0, 1<<20)
		if _, err := d.MergeDelta(elder, frame, now); err != nil {
			t.Fatal(err)
		}
		seq, hash, clock := other.Position()
		if _, err := d.MergeBeat(elder, seq, hash, clock, now); err != nil {
			t.Fatal(err)
		}
	}
	meets()
	d.Down(elder, now)
	d.Sweep(now.Add(Keep))
	if len(d.Origins(nil)) != 0 {
		t.Fatal("it is not forgotten")
	}
	meets()
	if want := []bool{true, false, false}; !slices.Equal(told, want) {
		t.Errorf("told %v of what it held when it was met, went and came back, want %v", told, want)
	}
	d.Forget(elder) // another run answered in its place
	meets()
	if want := []bool{true, false, false, false, true}; !slices.Equal(told, want) {
		t.Errorf("told %v, and then of a run that was proved to be over, want %v", told, want)
	}
}

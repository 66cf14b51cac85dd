package test

// Attacks, by the rows of the table of threats (limits.md 2.1). Each has two
// halves: the attacker gets the answer that the row names, and it is counted;
// and a witness, connected all the time, loses nothing.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/embedpush/push"
)

// rawPage is a client that sends what it likes: it knows frames, no rules.
type rawPage struct {
	net.Conn
	t    testing.TB
	in   *bufio.Reader
	done chan struct{} // closed when nothing more comes

	code int   // set before done is closed: of the server's close frame, 0 without one
	err  error // set before done is closed
}

// breaksIn upgrades a raw connection. The query is as in a URL, headers are
// whole lines. What comes is read and forgotten, until the close frame.
func (w *world) breaksIn(query string, headers ...string) *rawPage {
	w.t.Helper()
	p, err := w.triesToBreakIn(query, headers...)
	if err != nil {
		w.t.Fatal(err)
	}
	go p.read()
	w.t.Cleanup(func() { p.Close(); <-p.done })
	return p
}

// triesToBreakIn does not read what comes after the upgrade.
func (w *world) triesToBreakIn(query string, headers ...string) (*rawPage, error) {
	nc, err := w.dial(context.Background(), "tcp", "")
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(nc, w.upgradeRequest(query, headers...)); err != nil {
		nc.Close()
		return nil, err
	}
	in := bufio.NewReader(nc)
	resp, err := http.ReadResponse(in, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return &rawPage{Conn: nc, t: w.t, in: in, done: make(chan struct{})}, nil
}

func (w *world) upgradeRequest(query string, headers ...string) string {
	return "GET /ws?" + query + " HTTP/1.1\r\nHost: push.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: " + w.dialect + "\r\n" +
		strings.Join(append(headers, ""), "\r\n") + "\r\n"
}

func (p *rawPage) read() {
	defer close(p.done)
	for {
		op, payload, err := readServerFrame(p.in)
		if err != nil {
			p.err = err
			return
		}
		if op == websocket.CloseMessage {
			if len(payload) >= 2 {
				p.code = int(binary.BigEndian.Uint16(payload))
			}
			p.Close()
			return
		}
	}
}

func readServerFrame(r io.Reader) (op int, payload []byte, err error) {
	var head [10]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return 0, nil, err
	}
	n := uint64(head[1])
	switch n {
	case 126:
		_, err = io.ReadFull(r, head[2:4])
		n = uint64(binary.BigEndian.Uint16(head[2:]))
	case 127:
		_, err = io.ReadFull(r, head[2:10])
		n = binary.BigEndian.Uint64(head[2:])
	}
	if err != nil || n > 2<<20 {
		return 0, nil, errors.Join(err, fmt.Errorf("a frame of %d bytes", n))
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	return int(head[0] & 0xF), payload, err
}

func (p *rawPage) writes(frames ...[]byte) {
	p.Write(slices.Concat(frames...)) // it may have been closed already
}

// wantEnd wants the server to end it: with this close code, or 0 for none.
func (p *rawPage) wantEnd(code int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("it is not closed, want %d", code)
	}
	if p.code != code {
		p.t.Errorf("ended with %d (%v), want %d", p.code, p.err, code)
	}
}

// maskedFrame makes a client's frame.
func maskedFrame(first byte, payload []byte) []byte {
	b := []byte{first, 0}
	switch n := len(payload); {
	case n < 126:
		b[1] = byte(n)
	case n <= math.MaxUint16:
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b[1] = 127
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b[1] |= 0x80
	key := []byte{0x11, 0x22, 0x33, 0x44}
	b = append(b, key...)
	for i, c := range payload {
		b = append(b, c^key[i%4])
	}
	return b
}

// message is an envelope as one frame of the world's dialect.
func (w *world) message(v map[string]any) []byte {
	first, marshal := byte(0x81), json.Marshal
	if w.dialect == "push.msgpack" {
		first, marshal = 0x82, msgpack.Marshal
	}
	b, err := marshal(v)
	if err != nil {
		panic(err)
	}
	return maskedFrame(first, b)
}

// witness is an innocent user.
type witness struct {
	*page
	n int
}

func (w *world) witness() *witness { return &witness{page: w.connect("witness")} }

// isFine wants the witness to get the next push, and nothing but pushes.
func (v *witness) isFine() {
	v.t.Helper()
	r, err := v.w.PushToUser(v.t.Context(), "witness", push.Message{Event: "n", Data: v.n, Ack: push.AutoAck})
	if err != nil || r.Acked != 1 {
		v.t.Fatalf("the witness was told %+v, %v", r, err)
	}
	if m := v.wantPush("n"); string(m.Data) != fmt.Sprint(v.n) {
		v.t.Fatalf("the witness got %v, want %d", m, v.n)
	}
	v.n++
}

// total is the sum of a map of counters.
func total[K comparable](counters map[K]uint64) (n uint64) {
	for c := range maps.Values(counters) {
		n += c
	}
	return n
}

// TestBrokenFramesAreRefusedWithTheirCodeAndCounted: rows 77 to 80, 86 to 88,
// 91, 92.
func TestBrokenFramesAreRefusedWithTheirCodeAndCounted(t *testing.T) {
	long := bytes.Repeat([]byte("x"), 60_000)
	claim := func(first byte, n uint64) []byte {
		return append(binary.BigEndian.AppendUint64([]byte{first, 0xff}, n), 1, 2, 3, 4)
	}
	attacks := []struct {
		name    string
		dialect string // "": all
		b       []byte
		code    int
	}{
		{"not masked", "", []byte{0x81, 2, '{', '}'}, 1002},
		{"RSV1", "", maskedFrame(0xc1, []byte("{}")), 1002},
		{"RSV2", "", maskedFrame(0xa1, []byte("{}")), 1002},
		{"RSV3", "", maskedFrame(0x91, []byte("{}")), 1002},
		{"reserved data opcode", "", maskedFrame(0x83, nil), 1002},
		{"reserved control opcode", "", maskedFrame(0x8b, nil), 1002},
		{"fragmented ping", "", maskedFrame(0x09, nil), 1002},
		{"long ping", "", maskedFrame(0x89, make([]byte, 126)), 1002},
		{"long close", "", maskedFrame(0x88, append([]byte{3, 232}, make([]byte, 124)...)), 1002},
		{"stray continuation", "", maskedFrame(0x80, nil), 1002},
		{"message inside a message", "", slices.Concat(maskedFrame(0x01, nil), maskedFrame(0x81, nil)), 1002},
		{"length not the shortest, 16 bit", "", []byte{0x81, 0xfe, 0, 1, 1, 2, 3, 4, 'x'}, 1002},
		{"length not the shortest, 64 bit", "", claim(0x81, 1), 1002},
		{"length with its highest bit", "", claim(0x81, 1<<63), 1002},
		{"length of all ones", "", claim(0x81, math.MaxUint64), 1002},
		{"length beyond memory", "", claim(0x82, math.MaxInt64), 1009},
		{"one byte too many", "", claim(0x81, 64<<10+1), 1009},
		{"sum of fragments too long", "", slices.Concat(maskedFrame(0x01, long), maskedFrame(0x80, long)), 1009},
		{"sum of fragments wraps", "", slices.Concat(maskedFrame(0x01, long), claim(0x80, math.MaxInt64)), 1009},
		{"a million fragments of a byte", "", append(maskedFrame(0x02, []byte("x")), bytes.Repeat(maskedFrame(0x00, []byte("x")), 70_000)...), 1009},
		{"close of one byte", "", maskedFrame(0x88, []byte{3}), 1002},
		{"close code 1005", "", maskedFrame(0x88, []byte{3, 237}), 1002},
		{"close code 999", "", maskedFrame(0x88, []byte{3, 231}), 1002},
		{"close code 5000", "", maskedFrame(0x88, []byte{0x13, 0x88}), 1002},
		{"close reason not UTF-8", "", maskedFrame(0x88, []byte{3, 232, 0xff}), 1007},
		{"text not UTF-8", "push.json", maskedFrame(0x81, []byte("{\"event\":\"\xff\"}")), 1007},
		{"text overlong", "push.json", maskedFrame(0x81, []byte("{\"event\":\"\xc0\xaf\"}")), 1007},
		{"text with a surrogate", "push.json", maskedFrame(0x81, []byte("{\"event\":\"\xed\xa0\x80\"}")), 1007},
		{"deep JSON", "push.json", maskedFrame(0x81, []byte(`{"event":"x","data":`+strings.Repeat("[", 60_000))), 1007},
		{"deep and whole JSON", "push.json", maskedFrame(0x81, []byte(`{"event":"x","data":`+strings.Repeat("[", 20_000)+strings.Repeat("]", 20_000)+`}`)), 1007},
		{"deeper JSON", "push.json", claim(0x81, 500_000), 1009},
		{"huge id", "push.json", maskedFrame(0x81, []byte(`{"event":"x","id":1e400}`)), 1007},
		{"negative ack", "push.json", maskedFrame(0x81, []byte(`{"ack":-1}`)), 1007},
		{"event with a control character", "push.json", maskedFrame(0x81, []byte(`{"event":"a\nb"}`)), 1007},
		{"login with a control character", "push.json", maskedFrame(0x81, []byte(`{"login":{"user":"a\u0000b"}}`)), 1007},
		{"long user", "push.json", maskedFrame(0x81, []byte(`{"login":{"user":"`+strings.Repeat("a", 9000)+`"}}`)), 1007},
		{"array32 bomb", "push.msgpack", maskedFrame(0x82, []byte{0xdd, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0}), 1007},
		{"map32 bomb", "push.msgpack", maskedFrame(0x82, []byte{0xdf, 0xff, 0xff, 0xff, 0xff, 0, 0, 0}), 1007},
		{"bin32 bomb inside", "push.msgpack", maskedFrame(0x82, []byte{0x81, 0xa4, 'd', 'a', 't', 'a', 0xc6, 0xff, 0xff, 0xff, 0xff}), 1007},
		{"deep msgpack", "push.msgpack", maskedFrame(0x82, append([]byte{0x81, 0xa4, 'd', 'a', 't', 'a'}, append(bytes.Repeat([]byte{0x91}, 60_000), 0xc0)...)), 1007},
		{"extension", "push.msgpack", maskedFrame(0x82, []byte{0x81, 0xa4, 'd', 'a', 't', 'a', 0xd4, 1, 1}), 1007},
	}
	overDialects(t, func(t *testing.T, dialect string) {
		handled := 0
		w := newWorld(t, push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { handled++; return nil, nil }})
		w.dialect = dialect
		v := w.witness()
		refused := 0
		for _, a := range attacks {
			if a.dialect != "" && a.dialect != dialect {
				continue
			}
			p := w.breaksIn("user=mallory")
			p.writes(a.b)
			select {
			case <-p.done:
			case <-time.After(5 * time.Second): // below MessageTimeout
				t.Errorf("%s: not refused", a.name)
			}
			if p.Close(); p.code != a.code {
				t.Errorf("%s: ended with %d, %v, want %d", a.name, p.code, p.err, a.code)
			}
			refused++
			v.isFine()
			synctest.Wait()
			if got := w.Stats().Closed[push.ReasonProtocol]; got != uint64(refused) {
				t.Errorf("%s: %d are counted as protocol, want %d", a.name, got, refused)
				refused = int(got)
			}
		}
		if handled != 0 {
			t.Errorf("a handler was given %d of them", handled)
		}
		if s := w.Stats(); s.Conns != 1 || s.QueuedBytes != 0 {
			t.Errorf("left behind: %+v", s)
		}
	})
}

// TestDataAfterCloseIsIgnored: row 89.
func TestDataAfterCloseIsIgnored(t *testing.T) {
	overDialects(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{})
		w.dialect = dialect
		v := w.witness()
		event := w.message(map[string]any{"event": "late"})
		p := w.breaksIn("user=mallory")
		p.writes(maskedFrame(0x88, []byte{3, 232}), event, event, maskedFrame(0xff, nil))
		p.wantEnd(1000)
		v.isFine()
		synctest.Wait()
		if s := w.Stats(); s.Received+s.Unhandled != 0 || s.Closed[push.ReasonClient] != 1 || s.Conns != 1 {
			t.Errorf("%+v, want no message and one that said goodbye", s)
		}
	})
}

// TestFrameGluedToTheUpgradeIsRefusedQuietly: row 90. Quietly: a line in the
// host's log for each would let strangers fill it (row 142).
func TestFrameGluedToTheUpgradeIsRefusedQuietly(t *testing.T) {
	var book logBook
	w := newSocketWorld(t, push.Config{})
	w.server.ErrorLog = slog.NewLogLogger(&book, slog.LevelError)
	v := w.witness()
	for range 3 {
		nc, err := w.dial(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(nc, w.upgradeRequest("user=mallory")+string(w.message(map[string]any{"event": "x"})))
		if b, _ := io.ReadAll(nc); strings.Contains(string(b), " 101 ") {
			t.Errorf("it was upgraded: %q", b)
		}
		nc.Close()
	}
	v.isFine()
	if s := w.Stats(); total(s.Refused) != 3 || s.Conns != 1 || s.Pending != 0 {
		t.Errorf("%v refused, %d connections, %d pending, want 3, 1, 0", s.Refused, s.Conns, s.Pending)
	}
	w.server.Shutdown(t.Context()) // the handlers have returned
	if lines := book.at(slog.LevelDebug, ""); len(lines) > 0 {
		t.Errorf("the host's log has %q", lines)
	}
}

// TestPingsBetweenFragmentsDoNotKeepAMessageOpen: rows 66 and 81.
func TestPingsBetweenFragmentsDoNotKeepAMessageOpen(t *testing.T) {
	for name, between := range map[string][]byte{
		"ping": maskedFrame(0x89, nil), "pong": maskedFrame(0x8a, nil), "empty fragment": maskedFrame(0x00, nil), "fragment": maskedFrame(0x00, []byte("x")),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, push.Config{})
				v := w.witness()
				p := w.breaksIn("user=mallory")
				begin := time.Now()
				p.writes(maskedFrame(0x01, []byte("{")))
				for range 30 {
					time.Sleep(time.Second)
					p.writes(between)
				}
				v.isFine()
				select {
				case <-p.done:
				default:
					t.Fatalf("a message is still open after %v, want MessageTimeout to end it", time.Since(begin))
				}
				p.wantEnd(1008)
				if got := w.Stats().Closed[push.ReasonProtocol]; got != 1 {
					t.Errorf("%d counted as protocol", got)
				}
			})
		})
	}
}

// TestUnsolicitedPongsChangeNothing: row 84.
func TestUnsolicitedPongsChangeNothing(t *testing.T) {
	w := newSocketWorld(t, push.Config{})
	v := w.witness()
	p := w.breaksIn("user=mallory")
	before := heap()
	pongs := bytes.Repeat(maskedFrame(0x8a, make([]byte, 10)), 1000)
	for range 200 {
		p.writes(pongs)
	}
	v.isFine()
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("the heap grew by %d KiB", grown>>10)
	}
	p.writes(w.message(map[string]any{"event": "x"}))
	for begin := time.Now(); w.Stats().Unhandled == 0; time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			t.Fatal("what comes behind the pongs is not heard")
		}
	}
	if !w.Online("mallory") {
		t.Error("it was closed")
	}
}

// heap is what is in use after a collection.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// settles waits, in real time, until ok.
func settles(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			t.Fatalf("%s: in vain", what)
		}
	}
}

// TestResetOrHalfCloseMidFrameLeavesNothing: rows 6, 70, 71.
func TestResetOrHalfCloseMidFrameLeavesNothing(t *testing.T) {
	for _, dialect := range dialectNames {
		t.Run(dialect, func(t *testing.T) {
			w := newSocketWorld(t, push.Config{})
			w.dialect = dialect
			v := w.witness()
			frame := w.message(map[string]any{"event": "x", "data": strings.Repeat("x", 3000)})
			n := uint64(0)
			for _, cut := range []int{0, 1, 3, 7, 100, 2000, len(frame)} {
				for _, reset := range []bool{true, false} {
					p := w.breaksIn("user=mallory&token=room")
					p.writes(frame[:cut])
					if tc := p.Conn.(*net.TCPConn); reset {
						tc.SetLinger(0)
						tc.Close()
					} else {
						tc.CloseWrite()
					}
					select {
					case <-p.done:
					case <-time.After(patience):
						t.Fatalf("cut at %d: the server does not hang up", cut)
					}
					n++
				}
			}
			settles(t, "all are counted", func() bool { return w.Stats().Closed[push.ReasonLost] == n })
			v.isFine()
			if s := w.Stats(); s.Conns != 1 || s.Users != 1 || s.Rooms != 0 || s.Memberships != 2 || s.QueuedBytes != 0 {
				t.Errorf("left behind: %+v", s)
			}
		})
	}
}

// TestGarbageHurtsNobody: row 10, behind an upgrade.
func TestGarbageHurtsNobody(t *testing.T) {
	overDialects(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{})
		w.dialect = dialect
		v := w.witness()
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := range 200 {
			b := make([]byte, rnd.IntN(64<<10))
			for j := range b {
				b[j] = byte(rnd.Uint32())
			}
			if i%2 == 0 && len(b) > 0 { // as the payload of a sound frame
				b = maskedFrame(byte(0x81+i/2%2), b)
			}
			p := w.breaksIn("user=mallory")
			p.writes(b)
			time.Sleep(15 * time.Second)
			p.Close()
			<-p.done
			if i%50 == 0 {
				v.isFine()
			}
		}
		synctest.Wait()
		s := w.Stats()
		if closed := total(s.Closed); closed != 200 || s.Conns != 1 || s.Panics != 0 || s.Received != s.Unhandled {
			t.Errorf("%+v, want 200 closed and nothing left of them", s)
		}
	})
}

// TestStuckReadersHoldBoundedMemory: row 64 and goal R4, on real sockets whose
// windows are shut.
func TestStuckReadersHoldBoundedMemory(t *testing.T) {
	const stuck = 100
	w := newSocketWorld(t, push.Config{})
	v := w.witness()
	for i := range stuck {
		p, err := w.triesToBreakIn(fmt.Sprintf("user=stuck%d&token=room", i))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
	}
	settles(t, "all are in", func() bool { return w.Stats().Conns == stuck+1 })
	before, most := heap(), int64(0)
	statuses := map[push.Status]int{}
	for n := 0; w.Stats().Conns > 1; n++ {
		if n > 1000 {
			t.Fatalf("8 MB later, %d that read nothing are still there", w.Stats().Conns-1)
		}
		// All of 8 KiB apart, so that nothing is shared between them.
		for i := range stuck {
			r, _ := w.PushToUser(t.Context(), fmt.Sprint("stuck", i), block(n, 8<<10))
			for _, d := range r.Deliveries {
				statuses[d.Status]++
			}
		}
		if n%10 == 0 {
			most = max(most, heap()-before)
			v.isFine()
		}
	}
	if limit := int64(stuck * 2 * 256 << 10); most > limit {
		t.Errorf("the heap grew by %d MiB, want at most %d", most>>20, limit>>20)
	}
	if statuses[push.Slow] != stuck || len(statuses) != 2 {
		t.Errorf("statuses were %v, want %d slow, the others sent", statuses, stuck)
	}
	settles(t, "all are counted", func() bool { return w.Stats().Closed[push.ReasonSlow] == stuck })
	if s := w.Stats(); s.QueuedBytes != 0 || s.Deliveries["slow"] != stuck {
		t.Errorf("%+v", s)
	}
	v.isFine()
}

// TestMemoryReliefSparesWhoIsNotAmongTheFullest: what the fullest have in
// flight comes free only when they are gone, a second after they were given
// up; who reads, and has a few bytes queued at that moment, is not to pay.
func TestMemoryReliefSparesWhoIsNotAmongTheFullest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Limits: push.Limits{TotalQueueBytes: 8 << 20}})
		v := w.witness()
		for i := range 7 {
			w.connect(fmt.Sprint("stuck", i)).pause()
			if _, err := w.PushToUser(t.Context(), fmt.Sprint("stuck", i), block(0, 1_040_000)); err != nil {
				t.Fatal(err)
			}
		}
		var innocent []*page
		for i := range 5 {
			p := w.connect(fmt.Sprint("innocent", i))
			p.pause() // for a moment
			innocent = append(innocent, p)
			for n := range 9 {
				if _, err := w.PushToUser(t.Context(), fmt.Sprint("innocent", i), block(n, 10_000)); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		if s := w.Stats(); s.Conns != 13 || s.QueuedBytes < 7_400_000 {
			t.Fatalf("the test's sizes are off: %+v", s)
		}
		w.connect("last").pause()
		w.PushToUser(t.Context(), "last", block(0, 1_040_000)) // does not fit
		v.isFine()
		for i, p := range innocent {
			if !w.Online(fmt.Sprint("innocent", i)) {
				t.Errorf("innocent%d was closed", i)
			}
			p.resume()
		}
		synctest.Wait()
		for _, p := range innocent {
			if got := numbers(p.taken()); len(got) != 9 {
				t.Errorf("%s got %d of 9 pushes that were Sent", p.device, len(got))
			}
		}
		if got := w.Stats().QueuedBytes; got > 9<<20 {
			t.Errorf("%d MiB are queued", got>>20)
		}
	})
}

// TestFloodOfConnectionsIsCappedAndTheOldOnesWork: row 68.
func TestFloodOfConnectionsIsCappedAndTheOldOnesWork(t *testing.T) {
	w := newSocketWorld(t, push.Config{Limits: push.Limits{MaxConns: 20}})
	v := w.witness()
	var in, refused atomic.Int64
	var flood sync.WaitGroup
	for range 10 {
		flood.Go(func() {
			for range 20 {
				p, err := w.triesToBreakIn("")
				if err == nil {
					in.Add(1)
					t.Cleanup(func() { p.Close() })
				} else if err.Error() == "status 503" {
					refused.Add(1)
				} else {
					t.Error(err)
				}
			}
		})
	}
	flood.Wait()
	v.isFine()
	s := w.Stats()
	if in.Load() > 19 || refused.Load() != 200-in.Load() || s.Refused["max_conns"] != uint64(refused.Load()) || s.Conns > 20 {
		t.Errorf("%d in, %d refused, %d counted, %d connections, want at most 20 of them", in.Load(), refused.Load(), s.Refused["max_conns"], s.Conns)
	}
}

// TestLoginsThatNeverEndTakeOnlyThePlacesOfThePending: row 58, by a gate that
// does not look at its context.
func TestLoginsThatNeverEndTakeOnlyThePlacesOfThePending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		w := newWorld(t, push.Config{
			Limits: push.Limits{MaxPending: 10},
			Authenticate: func(_ context.Context, l *push.Login) (string, error) {
				if l.UserID == "mallory" {
					<-stuck
				}
				return l.UserID, nil
			},
		})
		v := w.witness()
		var attackers sync.WaitGroup
		for range 30 {
			attackers.Go(func() { w.triesToBreakIn("user=mallory") })
		}
		synctest.Wait()
		if s := w.Stats(); s.Pending != 10 || s.Refused["max_pending"] != 20 {
			t.Errorf("%d pending, %d refused, want 10 and 20", s.Pending, s.Refused["max_pending"])
		}
		v.isFine()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		if err := w.Shutdown(ctx); time.Since(begin) > 4*time.Second {
			t.Errorf("Shutdown took %v: %v", time.Since(begin), err)
		}
		close(stuck)
		attackers.Wait()
		synctest.Wait()
		if s := w.Stats(); s.Pending != 0 || s.Conns != 0 {
			t.Errorf("%d pending, %d connections at the end", s.Pending, s.Conns)
		}
	})
}

// The values by which a program can make its own hooks fail.
type (
	panickingJSON struct{}
	nilError      struct{ cause error }
	panickingText struct{}
	reentrantJSON struct{ f func() }
)

func (panickingJSON) MarshalJSON() ([]byte, error)   { panic("MarshalJSON panics") }
func (e *nilError) Error() string                    { return "wrapped" }
func (e *nilError) Unwrap() error                    { return e.cause } // panics for nil, as most do
func (panickingText) Error() string                  { panic(panickingText{}) }
func (r reentrantJSON) MarshalJSON() ([]byte, error) { r.f(); return []byte("1"), nil }

// aNilError is the classic mistake: it is not nil.
func aNilError() error { var e *nilError; return e }

// TestNothingThatAHookReturnsOrThrowsEndsTheProcess: row 129. We live in the
// host's process, so each runs in one of its own.
func TestNothingThatAHookReturnsOrThrowsEndsTheProcess(t *testing.T) {
	handler := func(f func() (any, error)) push.Config {
		return push.Config{OnMessage: func(_ context.Context, c *push.Conn, m *push.Received) (any, error) {
			if m.Event == "ordinary" {
				return m.JSON(0), nil
			}
			return f()
		}}
	}
	for name, cfg := range map[string]push.Config{
		"reply that panics":                 handler(func() (any, error) { return panickingJSON{}, nil }),
		"reply that panics inside":          handler(func() (any, error) { return map[string]any{"x": []any{panickingJSON{}}}, nil }),
		"error that panics when unwrapped":  handler(func() (any, error) { return nil, aNilError() }),
		"panic whose text panics":           handler(func() (any, error) { panic(panickingText{}) }),
		"panic of nil":                      handler(func() (any, error) { panic(nil) }),
		"panic of an error that panics too": handler(func() (any, error) { panic(aNilError()) }),
		"late login's error": {Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.Conn != nil {
				return "", aNilError()
			}
			return l.UserID, nil
		}},
		"first login's error": {Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			if l.UserID == "mallory" {
				return "", aNilError()
			}
			return l.UserID, nil
		}},
		"text of a panic in OnConnect": {OnConnect: func(_ context.Context, c *push.Conn) {
			if c.UserID() == "mallory" {
				panic(panickingText{})
			}
		}},
		"text of a panic in OnPresence": {OnPresence: func(p push.Presence) {
			if p.User == "mallory" {
				panic(panickingText{})
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inAProcess(t, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, cfg)
					v := w.witness()
					if p, _, err := w.tryConnect("mallory"); err == nil {
						p.asks(1, "bad", nil)
						p.logsIn("mallory")
						time.Sleep(time.Minute)
					}
					v.isFine()
					if s := w.Stats(); s.Panics+total(s.Refused) == 0 {
						t.Errorf("it is not counted: %+v", s)
					}
					if s := w.Stats(); s.Pending != 0 {
						t.Errorf("%d logins are pending", s.Pending)
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if err := w.Shutdown(ctx); err != nil {
						t.Errorf("Shutdown: %v", err)
					}
				})
			})
		})
	}
}

const childEnv = "PUSH_ATTACK_CHILD"

// inAProcess runs a test in a process of its own, which has to survive it.
func inAProcess(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if child := os.Getenv(childEnv); child == t.Name() {
		f(t)
		return
	} else if child != "" {
		return
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %.600s", err, out)
	}
}

// TestHookThatExitsItsGoroutineEndsItsOwnConnectionOnly: runtime.Goexit is
// what t.FailNow in a handler does. It is no panic, and no return either.
func TestHookThatExitsItsGoroutineEndsItsOwnConnectionOnly(t *testing.T) {
	for _, hook := range []string{"OnConnect", "OnMessage", "late Authenticate"} {
		t.Run(hook, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				exit := func(name, user string) {
					if name == hook && user == "mallory" {
						runtime.Goexit()
					}
				}
				w := newWorld(t, push.Config{
					Authenticate: func(_ context.Context, l *push.Login) (string, error) {
						if l.Conn != nil {
							exit("late Authenticate", l.UserID)
						}
						return l.UserID, nil
					},
					OnConnect: func(_ context.Context, c *push.Conn) { exit("OnConnect", c.UserID()) },
					OnMessage: func(_ context.Context, c *push.Conn, m *push.Received) (any, error) {
						exit("OnMessage", c.UserID())
						return nil, nil
					},
					OnDisconnect: func(c *push.Conn, why push.Reason) { d.note("disconnect %s", c.UserID()) },
				})
				v := w.witness()
				p, _, err := w.tryConnect("mallory")
				if err != nil {
					t.Fatal(err)
				}
				p.asks(1, "x", nil)
				p.logsIn("mallory")
				time.Sleep(time.Minute)
				if w.Online("mallory") {
					t.Error("the connection stays, and nobody will ever serve it")
					w.Kick(t.Context(), push.Audience{User: "mallory"}, "")
				}
				v.isFine()
				time.Sleep(time.Minute)
				d.want(t, "disconnect mallory")
				if got := w.Stats().Panics; got != 1 {
					t.Errorf("%d panics counted, want it to count as one", got)
				}
			})
		})
	}
	t.Run("OnPresence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var d diary
			w := newWorld(t, push.Config{OnPresence: func(p push.Presence) {
				d.note("%s", p.User)
				if p.User == "mallory" {
					runtime.Goexit()
				}
			}})
			w.connect("mallory")
			synctest.Wait()
			w.connect("alice")
			synctest.Wait()
			d.want(t, "mallory", "alice")
		})
	})
	t.Run("Progress", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, push.Config{})
			w.connect("alice")
			w.connect("alice").onAck(silent)
			w.PushToUser(t.Context(), "alice", push.Message{Ack: push.AutoAck, Async: true, Progress: func(push.Receipt) { runtime.Goexit() }})
			time.Sleep(time.Minute)
			if s := w.Stats(); s.Deliveries["acked"] != 1 || s.Deliveries["timeout"] != 1 || s.Flights != 0 {
				t.Errorf("statuses %v, %d flights, want one acked and one timed out", s.Deliveries, s.Flights)
			}
		})
	})
}

// TestDataMayPanicOrPushByItself: row 131, from inside encoding/json.
func TestDataMayPanicOrPushByItself(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{})
		w.dialect = dialect
		v := w.witness()
		for _, m := range []push.Message{{Data: panickingJSON{}}, {Data: panickingJSON{}, Async: true, Ack: push.BizAck}, {Data: panickingJSON{}, Rate: 1}} {
			func() {
				defer func() {
					if recover() == nil {
						t.Error("the panic is the caller's, and he did not get it")
					}
				}()
				w.PushToUser(t.Context(), "witness", m)
			}()
			v.isFine()
		}
		r, err := w.PushToUser(t.Context(), "witness", push.Message{Event: "outer", Data: reentrantJSON{func() {
			v.isFine()
			w.Join(t.Context(), push.Audience{All: true}, "room")
		}}})
		if err != nil {
			t.Error(r, err)
		}
		v.wantPush("outer")
		if s := w.Stats(); s.Flights != 0 {
			t.Errorf("%d flights are left", s.Flights)
		}
	})
}

// TestEngineMayBeEndedByAnyHook: rows 131 and 132.
func TestEngineMayBeEndedByAnyHook(t *testing.T) {
	ends := map[string]func(w *world){
		"Close": func(w *world) { w.Close() },
		"Shutdown": func(w *world) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			w.Shutdown(ctx)
		},
	}
	for _, hook := range []string{"Authenticate", "OnConnect", "OnMessage", "OnDisconnect", "OnPresence", "Progress", "async Progress", "DeviceClass"} {
		for how, end := range ends {
			t.Run(hook+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var w *world
					var calls atomic.Int64
					ends := func(name, user string) {
						if name == hook && user != "witness" && calls.Add(1) == 1 {
							end(w)
						}
					}
					w = newWorld(t, push.Config{
						Authenticate: func(_ context.Context, l *push.Login) (string, error) {
							ends("Authenticate", l.UserID)
							return l.UserID, nil
						},
						DeviceClass: func(l *push.Login) string { ends("DeviceClass", l.UserID); return "" },
						OnConnect:   func(_ context.Context, c *push.Conn) { ends("OnConnect", c.UserID()) },
						OnMessage: func(_ context.Context, c *push.Conn, m *push.Received) (any, error) {
							ends("OnMessage", c.UserID())
							return nil, nil
						},
						OnDisconnect: func(c *push.Conn, _ push.Reason) { ends("OnDisconnect", c.UserID()) },
						OnPresence:   func(p push.Presence) { ends("OnPresence", p.User) },
					})
					v := w.connect("witness")
					if p, _, err := w.tryConnect("mallory"); err == nil {
						synctest.Wait()
						w.PushToUser(t.Context(), "mallory", push.Message{Async: hook != "Progress", Progress: func(push.Receipt) { ends("Progress", ""); ends("async Progress", "") }})
						p.sends("x", nil)
						synctest.Wait()
						p.ws.Close()
					}
					time.Sleep(time.Minute)
					<-v.done
					if calls.Load() == 0 {
						t.Fatal("the hook did not run")
					}
					if _, err := w.Broadcast(t.Context(), push.Message{}); !errors.Is(err, push.ErrClosed) {
						t.Errorf("a push afterwards: %v", err)
					}
					if s := w.Stats(); s.Conns+s.Users+s.Memberships+s.Flights+s.Pending != 0 {
						t.Errorf("left behind: %+v", s)
					}
				})
			})
		}
	}
}

// TestBodyChangedAfterThePushIsNotSeen: row 135, one reader that is behind and
// a crowd that a worker writes to.
func TestBodyChangedAfterThePushIsNotSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{Limits: push.Limits{QueueBytes: 1 << 20, MaxConnsPerUser: -1}})
		var pages []*page
		for i := range 80 {
			w.dialect = anyDoor(i)
			pages = append(pages, w.connect("alice", "token=room"))
		}
		pages[0].pause()
		pages[1].pause()
		body := make([]byte, 3000)
		raw := json.RawMessage(make([]byte, 0, 3000))
		for n := range 50 {
			for i := range body {
				body[i] = byte('a' + n%26)
			}
			raw = append(append(append(raw[:0], '"'), body...), '"')
			m := push.Message{Data: body}
			if n%2 == 1 {
				m.Data = raw
			}
			switch n % 3 {
			case 0:
				w.PushToUser(t.Context(), "alice", m)
			case 1:
				w.Broadcast(t.Context(), m)
			case 2:
				m.Async = true
				w.PushToRoom(t.Context(), "room", m)
			}
			clear(body)
			clear(raw)
		}
		pages[0].resume()
		pages[1].resume()
		synctest.Wait()
		for _, p := range pages {
			got := p.taken()
			if len(got) != 50 {
				t.Fatalf("%s got %d of 50", p.device, len(got))
			}
			for n, m := range got {
				b := []byte(strings.Trim(string(m.Data), `"`))
				if n%2 == 0 {
					if err := json.Unmarshal(m.Data, &b); err != nil {
						t.Fatal(err)
					}
				}
				if want := bytes.Repeat([]byte{byte('a' + n%26)}, 3000); !bytes.Equal(b, want) {
					t.Fatalf("%s got %.10q… as push %d, want %.10q…", p.device, b, n, want)
				}
			}
		}
	})
}

// TestOneEngineBehindManyPathsIsOne: row 137.
func TestOneEngineBehindManyPathsIsOne(t *testing.T) {
	e, err := push.New(push.Config{Authenticate: believe, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	mux := http.NewServeMux()
	mux.Handle("/a", e)
	mux.Handle("/b/", http.StripPrefix("/b", e))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	server := &http.Server{Handler: mux}
	served.Go(func() { server.Serve(ln) })
	defer served.Wait()
	defer server.Close()
	for _, path := range []string{"/a", "/b/", "/b/c"} {
		ws, _, err := websocket.DefaultDialer.Dial("ws://"+ln.Addr().String()+path+"?user=alice", nil)
		if err != nil {
			t.Fatal(path, err)
		}
		defer ws.Close()
	}
	settles(t, "all are in", func() bool { return e.Stats().Memberships == 6 })
	if r, err := e.PushToUser(t.Context(), "alice", push.Message{}); err != nil || r.Sent != 3 {
		t.Errorf("%+v, %v, want one on each path", r, err)
	}
}

// TestPacedPushEndsWithTheEngine: rows 130 and 139. At one a second the push
// would go on for minutes.
func TestPacedPushEndsWithTheEngine(t *testing.T) {
	for _, async := range []bool{true, false} {
		for how, end := range map[string]func(w *world){
			"Close": func(w *world) { w.Close() },
			"Shutdown": func(w *world) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				w.Shutdown(ctx)
			},
		} {
			t.Run(fmt.Sprintf("%s async %v", how, async), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, push.Config{Limits: push.Limits{MaxConnsPerUser: -1}})
					for range 100 {
						w.connect("alice")
					}
					var last push.Receipt
					var pushing sync.WaitGroup
					pushing.Go(func() {
						w.PushToUser(context.Background(), "alice", push.Message{Rate: 1, Async: async, Progress: func(r push.Receipt) { last = r }})
					})
					time.Sleep(2500 * time.Millisecond)
					end(w)
					time.Sleep(2 * time.Second)
					if got := w.Stats().Flights; got != 0 {
						t.Errorf("%d pushes still fly after the engine's end", got)
					}
					pushing.Wait()
					for begin := time.Now(); w.Stats().Flights > 0; time.Sleep(time.Second) {
						if time.Since(begin) > time.Hour {
							t.Fatal("it flies for ever")
						}
					}
					synctest.Wait()
					if last.Targets != 100 || last.Sent+last.Failed != 100 {
						t.Errorf("the last Progress has %d + %d of %d settled", last.Sent, last.Failed, last.Targets)
					}
				})
			})
		}
	}
}

// TestClientsCannotFloodTheLog: row 142, ten lines a second of a kind.
func TestClientsCannotFloodTheLog(t *testing.T) {
	const perSecond, seconds = 100, 3
	fails := func(_ context.Context, l *push.Login) (string, error) {
		switch l.UserID {
		case "database":
			return "", errors.New("the database is down")
		case "odd":
			return "a\nb", nil
		}
		return l.UserID, nil
	}
	for _, c := range []struct {
		name   string
		cfg    push.Config
		attack func(w *world, p *page)
	}{
		{"handler fails", push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { return nil, errors.New("no") }},
			func(w *world, p *page) { p.sends("x", nil) }},
		{"handler panics", push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { panic("no") }},
			func(w *world, p *page) {
				if p, _, err := w.tryConnect("mallory"); err == nil {
					p.sends("x", nil)
				}
			}},
		{"handler is slow", push.Config{Limits: push.Limits{MaxConnsPerUser: -1}, OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) {
			time.Sleep(1100 * time.Millisecond)
			return nil, nil
		}}, func(w *world, p *page) {
			if p, _, err := w.tryConnect("mallory"); err == nil {
				p.sends("x", nil)
			}
		}},
		{"gate fails", push.Config{Authenticate: fails}, func(w *world, p *page) { w.tryConnect("database") }},
		{"gate lets in what cannot be", push.Config{Authenticate: fails}, func(w *world, p *page) { w.tryConnect("odd") }},
		{"class too long", push.Config{DeviceClass: func(l *push.Login) string {
			if l.UserID == "mallory" {
				return strings.Repeat("x", 17)
			}
			return ""
		}}, func(w *world, p *page) { w.tryConnect("mallory") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				book := &logBook{}
				c.cfg.Logger = slog.New(book)
				w := newWorld(t, c.cfg)
				p := w.connect("quiet")
				for range perSecond * seconds {
					c.attack(w, p)
					time.Sleep(time.Second / perSecond)
				}
				time.Sleep(2 * time.Second)
				kinds := map[string]int{}
				for _, line := range book.at(slog.LevelInfo, "") {
					kinds[strings.Join(strings.SplitN(line, " ", 4)[:3], " ")]++
				}
				for kind, n := range kinds {
					if n > 10*(seconds+2)+10 {
						t.Errorf("%d lines like %q in %d s, want at most ten a second", n, kind, seconds+2)
					}
				}
				if len(kinds) == 0 {
					t.Error("it is not logged at all")
				}
			})
		})
	}
}

// TestSecretsAreNeverLogged: row 40 and B6, at every level; and a name cannot
// begin a line of its own.
func TestSecretsAreNeverLogged(t *testing.T) {
	for _, dialect := range dialectNames {
		t.Run(dialect, func(t *testing.T) {
			var mu sync.Mutex
			var text bytes.Buffer
			out := writerFunc(func(b []byte) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				return text.Write(b)
			})
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, push.Config{
					Logger:      slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug - 100})),
					CheckOrigin: func(*http.Request) bool { return true },
					Authenticate: func(_ context.Context, l *push.Login) (string, error) {
						switch l.UserID {
						case "down":
							return "", errors.New("down")
						case "no":
							return "", push.ErrUnauthorized
						case "odd":
							return "a\nb", nil
						case "panic":
							panic("gate")
						}
						return l.UserID, nil
					},
					OnMessage: func(_ context.Context, c *push.Conn, m *push.Received) (any, error) {
						if m.Event == "panic" {
							panic("handler")
						}
						return nil, errors.New("handler")
					},
				})
				w.dialect = dialect
				w.server.ErrorLog = log.New(out, "level=ERROR ", 0)
				attack := func(query string, headers []string, frames ...[]byte) {
					p, err := w.triesToBreakIn(query, headers...)
					if err != nil {
						return
					}
					p.writes(frames...)
					go p.read()
					time.Sleep(20 * time.Second)
					p.Close()
					<-p.done
				}
				for _, user := range []string{"ok", "down", "no", "odd", "panic", "a%0Alevel=ERROR", "e%E2%80%A8%E2%80%AE%20level=ERROR" + strings.Repeat("x", 200), "%22quo%5Cted"} {
					for _, origin := range []string{"X-Nothing: 1", "Origin: http://SECRET.example"} {
						headers := []string{"Cookie: s=SECRET", "Authorization: Bearer SECRET", "X-Api-Key: SECRET", origin}
						query := "token=SECRET&other=SECRET&user=" + user
						attack(query, headers, w.message(map[string]any{"event": "x", "data": "SECRET", "id": 1}), w.message(map[string]any{"event": "panic", "data": "SECRET"}))
						attack(query, headers, w.message(map[string]any{"login": map[string]any{"user": "down", "token": "SECRET"}}))
						attack(query, headers, w.message(map[string]any{"login": map[string]any{"user": "panic", "token": "SECRET"}}))
						attack(query, headers, maskedFrame(0x81, []byte(`{"SECRET`)), maskedFrame(0x88, []byte("\x03\xe8SECRET")))
						attack(query, headers, w.message(map[string]any{"ack": 1 << 30, "data": "SECRET"}), maskedFrame(0x88, []byte("\x03\xe8SECRET")))
					}
				}
			})
			got := text.String()
			if i := strings.Index(got, "SECRET"); i >= 0 {
				t.Errorf("the log has …%s…", got[max(0, i-200):min(len(got), i+50)])
			}
			lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
			if len(lines) < 50 {
				t.Fatalf("%d lines, the test is blind", len(lines))
			}
			for _, line := range lines {
				if !strings.HasPrefix(line, "time=") || strings.Count(line, " level=") != 1 && !strings.Contains(line, `"`) {
					t.Errorf("a line that is none of ours: %.200q", line)
				}
			}
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestDeviceThatChangesUsersIsOneDevice: one push to both its users, one
// status.
func TestDeviceThatChangesUsersIsOneDevice(t *testing.T) {
	w := newSocketWorld(t, push.Config{})
	p := w.connect("a")
	c := p.conn()
	stop := make(chan struct{})
	var changing sync.WaitGroup
	changing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				c.Bind(t.Context(), []string{"a", "b"}[i%2])
			}
		}
	})
	defer changing.Wait()
	defer close(stop)
	for n := range 10_000 {
		ack := push.NoAck
		if n%10 == 0 {
			ack = push.AutoAck
		}
		r, err := w.PushToUsers(t.Context(), []string{"a", "b"}, push.Message{Ack: ack})
		if len(r.Deliveries) > 1 {
			t.Fatalf("push %d: one device was pushed to twice: %+v, %v", n, r, err)
		}
		p.taken()
	}
}

// TestWhoIsGoneIsNotCountedAsSlow: by the workers that write to a crowd.
func TestWhoIsGoneIsNotCountedAsSlow(t *testing.T) {
	w := newSocketWorld(t, push.Config{Limits: push.Limits{MaxConnsPerUser: -1}})
	for range 70 {
		w.breaksIn("user=a")
	}
	var stop atomic.Bool
	var pushing sync.WaitGroup
	pushing.Go(func() {
		for !stop.Load() {
			w.Broadcast(t.Context(), push.Message{})
			time.Sleep(10 * time.Microsecond)
		}
	})
	for range 500 {
		if p, err := w.triesToBreakIn("user=c"); err == nil {
			p.Conn.(*net.TCPConn).SetLinger(0)
			p.Close()
		}
	}
	stop.Store(true)
	pushing.Wait()
	if s := w.Stats(); s.Deliveries["slow"] != 0 && s.Closed[push.ReasonSlow] == 0 {
		t.Errorf("%d slow deliveries are counted, and nobody was slow: %v", s.Deliveries["slow"], s.Closed)
	}
}

// TestWhatOnConnectPushesComesFirstAlsoInACrowd: OnConnect pushes with its
// context to everybody, of whom there are too many for its caller to write to.
func TestWhatOnConnectPushesComesFirstAlsoInACrowd(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		for _, crowd := range []int{3, 70} {
			for name, a := range map[string]push.Audience{"all": {All: true}, "room": {Room: "room"}, "all with a filter": {All: true, NoTag: []string{"x"}}} {
				goOn := make(chan struct{})
				var w *world
				w = newWorld(t, push.Config{OnConnect: func(ctx context.Context, c *push.Conn) {
					if c.UserID() == "alice" {
						<-goOn
						w.Push(ctx, a, push.Message{Event: "first"})
					}
				}})
				w.dialect = dialect
				for i := range crowd {
					w.connect(fmt.Sprint(i), "token=room")
				}
				alice, _, err := w.tryConnect("alice", "token=room")
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				w.PushToUser(t.Context(), "alice", push.Message{Event: "meanwhile"})
				close(goOn)
				synctest.Wait()
				got := alice.taken()
				if len(got) != 2 || got[0].Event != "first" || got[1].Event != "meanwhile" {
					t.Errorf("%s of %d: alice got %v, want first, then meanwhile", name, crowd, got)
				}
				w.Close()
			}
		}
	})
}

// TestRefusalWithoutATextIsStillARefusal.
func TestRefusalWithoutATextIsStillARefusal(t *testing.T) {
	overPages(t, func(t *testing.T, dialect string) {
		w := newWorld(t, push.Config{OnMessage: func(context.Context, *push.Conn, *push.Received) (any, error) { return "yes", push.Refuse("") }})
		w.dialect = dialect
		p := w.connect("alice")
		p.asks(7, "may I", nil)
		if m := p.next(); m.Ack == nil || *m.Ack != 7 || m.Error == "" {
			t.Errorf("the page was told %v, want an error", m)
		}
	})
}

// TestNeverIsNotNow: times so far away that they stand for never.
func TestNeverIsNotNow(t *testing.T) {
	for name, cfg := range map[string]push.Config{
		"Heartbeat": {Heartbeat: math.MaxInt64},
		"Expires": {Authenticate: func(_ context.Context, l *push.Login) (string, error) {
			l.Expires = time.Date(2556, 1, 1, 0, 0, 0, 0, time.UTC) // over 2^63 nanoseconds
			return l.UserID, nil
		}},
		"Limits": {Limits: push.Limits{AuthTimeout: math.MaxInt64, MessageTimeout: math.MaxInt64, WriteTimeout: math.MaxInt64, AckTimeout: math.MaxInt64,
			MaxMessage: math.MaxInt, MaxPush: math.MaxInt, QueueBytes: math.MaxInt, QueueMessages: math.MaxInt, TotalQueueBytes: math.MaxInt, FanoutBytes: math.MaxInt,
			InboxMessages: math.MaxInt, AcksWaiting: math.MaxInt, MessageRate: math.MaxInt, PushRate: math.MaxInt, MaxConns: math.MaxInt, MaxPending: math.MaxInt,
			MaxConnsPerUser: math.MaxInt, MaxConnsPerAddr: math.MaxInt}},
		"no limits": {Limits: push.Limits{AuthTimeout: -1, MessageTimeout: -1, WriteTimeout: -1, AckTimeout: -1, MaxMessage: -1, MaxPush: -1, QueueBytes: -1, QueueMessages: -1,
			TotalQueueBytes: -1, FanoutBytes: -1, InboxMessages: -1, AcksWaiting: -1, MessageRate: -1, PushRate: -1, MaxConns: -1, MaxPending: -1, MaxConnsPerUser: -1, MaxConnsPerAddr: -1}},
	} {
		t.Run(name, func(t *testing.T) {
			overPages(t, func(t *testing.T, dialect string) {
				w := newWorld(t, cfg)
				w.dialect = dialect
				p, _, err := w.tryConnect("alice")
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if !w.Online("alice") {
					t.Fatalf("alice was closed: %v", w.Stats().Closed)
				}
				if r, err := w.PushToUser(t.Context(), "alice", push.Message{Data: strings.Repeat("x", 2<<20), Ack: push.AutoAck}); err != nil && !errors.Is(err, push.ErrTooLarge) {
					t.Errorf("%+v, %v", r.Deliveries[0].Status, err)
				}
				p.asks(1, "x", strings.Repeat("x", 60_000))
				p.waitFor("the answer", func() bool { return slices.ContainsFunc(p.got, func(m envelope) bool { return m.Ack != nil }) })
			})
		})
	}
}

// TestStormOfAttacksLeavesNothing: rows 69, 70, 71, 139 to 141, goals R3, R6
// and R7: every kind of client at once, while the program pushes, joins, kicks;
// the witness's acked pushes are all there, in order.
func TestStormOfAttacksLeavesNothing(t *testing.T) {
	const seconds = 2
	for _, dialect := range dialectNames {
		t.Run(dialect, func(t *testing.T) {
			goroutines := runtime.NumGoroutine()
			var connects, disconnects atomic.Int64
			some := func() string { return fmt.Sprint("u", rand.IntN(10)) }
			w := newSocketWorld(t, push.Config{
				Limits: push.Limits{AckTimeout: time.Second, MaxConnsPerUser: 5, QueueBytes: 64 << 10, TotalQueueBytes: 4 << 20},
				DeviceClass: func(l *push.Login) string {
					return []string{"", "a", "b"}[len(l.DeviceID)%3]
				},
				OnConnect: func(ctx context.Context, c *push.Conn) { connects.Add(1); c.Push(ctx, push.Message{Event: "hello"}) },
				OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
					switch rand.IntN(6) {
					case 0:
						return nil, c.Bind(ctx, some())
					case 1:
						return nil, c.Join(some())
					case 2:
						c.Unbind()
					case 3:
						panic("as the storm wants it")
					case 4:
						ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
						defer cancel()
						d, err := c.Push(ctx, push.Message{Ack: push.BizAck})
						return d, err
					}
					return 1, nil
				},
				OnDisconnect: func(c *push.Conn, _ push.Reason) {
					disconnects.Add(1)
					c.Bind(context.Background(), some())
					c.Join("after the end")
					c.SetTags("after the end")
					c.Unbind()
					c.Push(context.Background(), push.Message{})
				},
				OnPresence: func(push.Presence) {},
			})
			w.dialect = dialect
			ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
			defer cancel()
			var storm sync.WaitGroup
			for i := range 12 {
				storm.Go(func() {
					for ctx.Err() == nil {
						w.oneOfTheStorm(i%6, fmt.Sprintf("user=%s&device=%s&token=%s", some(), strings.Repeat("d", rand.IntN(4)), some()))
					}
				})
			}
			var pushed, statuses atomic.Int64
			for range 3 {
				storm.Go(func() {
					for ctx.Err() == nil {
						m := push.Message{Data: strings.Repeat("x", rand.IntN(3000)), Ack: push.Ack(rand.IntN(3))}
						ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(30))*time.Millisecond)
						var r push.Receipt
						switch all := (push.Audience{All: true, NoTag: []string{"witness"}}); rand.IntN(8) {
						case 0, 1:
							r, _ = w.PushToUser(ctx, some(), m)
						case 2:
							r, _ = w.PushToUsers(ctx, []string{some(), some()}, m)
						case 3:
							r, _ = w.PushToRoom(ctx, some(), m)
						case 4:
							r, _ = w.Push(ctx, all, m)
						case 5:
							w.Kick(ctx, push.Audience{User: some()}, "x")
						case 6:
							w.Join(ctx, all, some())
						case 7:
							w.Leave(ctx, all, some())
						}
						for _, d := range r.Deliveries {
							pushed.Add(1)
							if d.Status != 0 {
								statuses.Add(1)
							}
						}
						if r.Targets != r.Sent+r.Acked+r.Failed {
							t.Errorf("a receipt does not add up: %+v", r)
						}
						cancel()
					}
				})
			}
			v := &witness{page: w.connect("witness", "tag=witness")}
			v.wantPush("hello")
			for ctx.Err() == nil {
				v.isFine()
			}
			storm.Wait()
			if pushed.Load() != statuses.Load() {
				t.Errorf("%d deliveries have a status of %d", statuses.Load(), pushed.Load())
			}
			v.isFine()
			end, stop := context.WithTimeout(context.Background(), 10*time.Second)
			defer stop()
			if err := w.Shutdown(end); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			s := w.Stats()
			if s.Conns+s.Users+s.Rooms+s.Memberships+s.Flights+s.Pending != 0 || s.QueuedBytes != 0 {
				t.Errorf("left behind: %+v", s)
			}
			if s.Accepted != total(s.Closed) || connects.Load() != disconnects.Load() {
				t.Errorf("%d accepted and %d closed, %d connects and %d disconnects", s.Accepted, total(s.Closed), connects.Load(), disconnects.Load())
			}
			w.server.Close()
			settles(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines+5 })
		})
	}
}

// oneOfTheStorm is one connection's life.
func (w *world) oneOfTheStorm(kind int, query string) {
	p, err := w.triesToBreakIn(query)
	if err != nil {
		return
	}
	defer p.Close()
	p.SetDeadline(time.Now().Add(time.Second))
	switch kind {
	case 0: // garbage
		b := make([]byte, rand.IntN(5000))
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		p.writes(b)
	case 1: // everything there is, in any order
		for range rand.IntN(50) {
			p.writes(w.message([]map[string]any{
				{"event": "x", "id": 1}, {"event": "x", "data": []int{1}}, {"ack": 1<<30 + 1}, {"ack": 1<<31 - 1, "data": map[string]any{}},
				{"login": map[string]any{"user": "u1"}}, {"logout": true}, {"ping": 1}, {},
			}[rand.IntN(8)]))
		}
	case 2: // reset mid-frame
		p.writes(w.message(map[string]any{"event": "x"})[:5])
		p.Conn.(*net.TCPConn).SetLinger(0)
	case 3: // half a close
		p.writes(w.message(map[string]any{"event": "x"}))
		p.Conn.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, p.in)
	case 4: // reads nothing
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
	case 5: // reads, and says goodbye
		p.SetDeadline(time.Now().Add(time.Duration(rand.IntN(300)) * time.Millisecond))
		io.Copy(io.Discard, p.in)
		p.SetDeadline(time.Now().Add(time.Second))
		p.writes(maskedFrame(0x88, []byte{3, 232}))
	}
}

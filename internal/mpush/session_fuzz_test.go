package mpush

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"

	"github.com/embedpush/push/internal/wire"
	"github.com/embedpush/push/internal/ws"
)

// Bits of a fuzzed session's kind.
const (
	fuzzWS     = 1 << iota
	fuzzPlain  // plain handshakes are taken
	fuzzSmall  // messages of 300 bytes at most
	fuzzNoJSON // and no token either
	fuzzKinds
)

// fuzzRandom is where the randomness of a fuzzed session begins.
const fuzzRandom = 1

// fuzzServerKey is the server's key of the first handshake there.
func fuzzServerKey() []byte {
	key := make([]byte, KeyLen)
	rand.NewChaCha8([32]byte{fuzzRandom}).Read(key)
	return key
}

func fuzzConfig(kind byte) *Config {
	cfg := aConfig()
	if kind&fuzzSmall != 0 {
		cfg.MaxMessage = 300
	}
	if kind&fuzzNoJSON != 0 {
		cfg.NoJSON, cfg.Tokens = true, nil
	}
	return cfg
}

// playSession feeds in to a new session, in pieces whose sizes cuts says, and
// writes down all that happens. back: what an event leaves of a piece comes
// back together with the next.
func playSession(t *testing.T, kind byte, cfg *Config, in, cuts []byte, back bool) string {
	t.Helper()
	cryptotest.SetGlobalRandom(t, fuzzRandom)
	s := NewSession(cfg, kind&fuzzPlain != 0, kind&fuzzWS != 0)
	var log strings.Builder
	end := func(err error) {
		e, ok := err.(*wire.Error)
		if !ok || e.Code == 0 || e.Text == "" {
			t.Fatalf("error %#v", err)
		}
		fmt.Fprintf(&log, "%v %x\n", e, e.Reply)
		fmt.Fprintf(&log, "%x\n", s.Close(nil, e.Code, e.Text))
	}
	var kept []byte
	total, idle := len(in), 0
	for next := 0; len(in) > 0 || len(kept) > 0; next++ {
		size := len(in)
		if len(cuts) > 0 && next <= 4*total {
			size = min(size, 1+int(cuts[next%len(cuts)])%64)
		}
		piece := append(bytes.Clone(kept), in[:size]...)
		in, kept = in[size:], nil
		for len(piece) > 0 {
			ev := wire.Event{Kind: wire.Ignored, ID: 5}
			n, err := s.Feed(piece, &ev)
			switch {
			case n < 0 || n > len(piece) || err == nil && ev.Kind == wire.None && n != len(piece) || err != nil && ev.Kind != wire.None:
				t.Fatalf("used %d of %d, %s, %v", n, len(piece), show(&ev), err)
			case n > 0:
				idle = 0
			case idle > total:
				t.Fatal("Feed makes no progress")
			}
			idle++
			if err != nil {
				end(err)
				return log.String()
			}
			told := ev.Kind != wire.None
			if told {
				fmt.Fprintf(&log, "%s %x\n", show(&ev), ev.Reply)
			}
			if limit := s.inflated() + HeaderLen; len(ev.Data.Bytes) > limit {
				t.Fatalf("%d bytes of content", len(ev.Data.Bytes))
			}
			clear(piece[:n]) // an event is valid only until the next, and Open comes after that
			if ev.Kind == wire.Open {
				o, err := s.Open(tokenNoon)
				fmt.Fprintf(&log, "%v %v %x %+v\n", o.OK, o.Slow, o.Reply, o.Device)
				if o.OK != (s.state == open) || o.OK && (s.form == Undecided || o.Device.ID == "") {
					t.Fatalf("state %d, form %d, device %q", s.state, s.form, o.Device.ID)
				}
				if err != nil {
					end(err)
					return log.String()
				}
			}
			wantBounded(t, s, total)
			piece = piece[n:]
			if told && back && len(in) > 0 {
				kept, piece = piece, nil
			}
		}
	}
	fmt.Fprintln(&log, s.state, s.form, s.Partial(), s.sealed)
	if s.web != nil && len(s.web.rest) > 0 {
		t.Fatalf("%d bytes kept back", len(s.web.rest))
	}
	if s.state == open {
		fmt.Fprintf(&log, "%x %+v\n", crc32.ChecksumIEEE(s.Seal(AppendPush(nil, []byte("x"), 5, true, 0))), s.Heartbeat())
	}
	return log.String()
}

// wantBounded wants a session to hold no more than what has come.
func wantBounded(t *testing.T, s *Session, total int) {
	t.Helper()
	held := 0
	if s.web != nil {
		held = cap(s.web.rest)
	}
	if s.request != nil {
		held += cap(s.request.Body)
	}
	if s.part != nil {
		held += cap(s.part.body)
	}
	if held > 4*total+2*minBuffer || s.state == open && s.request != nil {
		t.Fatalf("%d bytes held after %d, state %d", held, total, s.state)
	}
}

// fuzzSeeds are sessions as clients speak them. Masked with nothing, messages
// of a WebSocket can be changed by whoever knows nothing of masking.
func fuzzSeeds(t testing.TB) (seeds []struct {
	kind byte
	in   []byte
}) {
	add := func(kind byte, in ...[]byte) {
		seeds = append(seeds, struct {
			kind byte
			in   []byte
		}{kind, slices.Concat(in...)})
	}
	message := func(b ...[]byte) []byte { return maskedWith(ws.Binary, 0, slices.Concat(b...)) }
	text := func(s string) []byte { return maskedWith(ws.Text, 0, []byte(s)) }

	for _, crypto := range []bool{true, false} {
		var kind byte
		p := &peer{t: t, crypto: crypto}
		first := p.handshake(aHandshake(), 1)
		if crypto {
			key := MixKey(aHandshake().ClientKey, fuzzServerKey())
			p.cipher = mustCipher(t, key[:], aHandshake().IV)
		} else {
			kind = fuzzPlain
		}
		bind := p.packet(CmdBind, 0, 2, (&Bind{"u1", "data", "a,b"}).Append(nil))
		push := p.packet(CmdPush, FlagAutoAck, 3, []byte("content"))
		small := p.packet(CmdPush, FlagCompress, 4, deflated(bytes.Repeat([]byte("x"), 1500)))
		proxy := p.packet(CmdHTTPProxy, 0, 5, (&ProxyRequest{1, "http://h/", "a:b\n", []byte("body")}).Append(nil))
		unbind := p.packet(CmdUnbind, 0, 6, (&Bind{UserID: "u1"}).Append(nil))
		ack := AppendPacket(nil, CmdAck, 0, 0x40000001, nil)
		beat := []byte{Beat}
		fast := (&FastConnect{"none", "dev", 1, 1}).packet()
		for _, kind := range []byte{kind, kind | fuzzSmall, kind | fuzzNoJSON} {
			add(kind, beat, fast, first, bind, beat, push, small, proxy, ack, unbind, first, fast, AppendPacket(nil, CmdHeartbeat, 0, 0, nil), claimed(400))
			add(kind, first, bind, push, first, first, first)
			add(kind|fuzzWS, message(beat, fast, first, bind, push[:20]), maskedWith(ws.Ping, 0, []byte("p")), message(push[20:], ack, ack), message(small, proxy), message(unbind[:5]))
			add(kind|fuzzWS, message(first), message(bind), fragment(ws.Binary, push[:9]), masked(ws.Pong, nil), masked(continued, push[9:]), message(beat, beat, beat), masked(ws.Close, []byte("\x03\xe8bye")))
		}
	}
	add(fuzzWS,
		text(`{"cmd":2,"flags":16,"sessionId":1,"body":{"deviceId":"d","osName":"web"}}`), text(`{"cmd":5,"sessionId":2,"body":{"userId":"u","tags":["a","b"],"data":"t"}}`),
		text(`{"cmd":15,"flags":24,"sessionId":3,"body":{"content":"hi"}}`), maskedWith(ws.Ping, 0, nil), text(`{"cmd":23,"sessionId":4}`),
		text(`{"cmd":2,"sessionId":5}`), text(`{"cmd":6,"sessionId":6,"body":{"userId":"u"}}`), message([]byte{Beat}))
	add(fuzzWS, text(`{"cmd":15}`))
	add(fuzzWS, text(`[1]`))
	add(fuzzWS|fuzzNoJSON, text(`{}`))
	return seeds
}

// FuzzSession: however the bytes of a client are cut, and wherever the caller
// pauses, the same happens, and no more is held than what has come.
func FuzzSession(f *testing.F) {
	for _, seed := range fuzzSeeds(f) {
		f.Add(seed.kind, seed.in, []byte{0})
		f.Add(seed.kind, seed.in, []byte{12, 0, 40, 1})
	}
	tr := readTranscript(f)
	clients := make(map[string][]byte)
	for _, frame := range tr.frames {
		if frame.fromClient {
			clients[frame.conn] = append(clients[frame.conn], frame.bytes...)
		}
	}
	for _, in := range clients {
		f.Add(byte(0), in, []byte{20})
		f.Add(byte(fuzzWS), maskedWith(ws.Binary, 0, in), []byte{20})
	}
	pages := make(map[string][]byte)
	for _, m := range tr.web {
		if m.fromClient && m.kind == "TEXT" {
			pages[m.conn] = append(pages[m.conn], maskedWith(ws.Text, 0, []byte(m.text))...)
		}
	}
	for _, in := range pages {
		f.Add(byte(fuzzWS), in, []byte{30, 5})
	}
	for _, frame := range loadVectors(f).ClientFrames {
		f.Add(byte(fuzzPlain), []byte(frame.Frame), []byte{7})
	}
	var configs [fuzzKinds]*Config
	for kind := range configs {
		configs[kind] = fuzzConfig(byte(kind))
	}
	f.Fuzz(func(t *testing.T, kind byte, in, cuts []byte) {
		kind %= fuzzKinds
		cfg := configs[kind]
		if len(in) > 16<<10 {
			return
		}
		whole := playSession(t, kind, cfg, in, nil, false)
		for _, cuts := range [][]byte{{0}, cuts} {
			for _, back := range []bool{false, true} {
				if split := playSession(t, kind, cfg, in, cuts, back); split != whole {
					t.Fatalf("kind %d, cuts %v, back %v:\n%s\nwhole:\n%s", kind, cuts, back, split, whole)
				}
			}
		}
	})
}

// A fuzzer that begins nowhere gets nowhere: the seeds have to come as far as
// they should, encrypted ones too.
func TestSeedsOfFuzzSessionComeFar(t *testing.T) {
	reached := make(map[string]int)
	for _, seed := range fuzzSeeds(t) {
		log := playSession(t, seed.kind, fuzzConfig(seed.kind), seed.in, nil, false)
		for line := range strings.Lines(log) {
			word, _, _ := strings.Cut(line, " ")
			reached[word]++
		}
		if seed.kind&(fuzzNoJSON|fuzzSmall) == 0 && len(seed.in) > 100 && !strings.Contains(log, "LOGIN 2 ") {
			t.Errorf("kind %d:\n%s", seed.kind, log)
		}
	}
	for _, word := range []string{"LOGIN", "LOGOUT", "MESSAGE", "ACKED", "REQUEST", "PING", "GOODBYE", "true", "false"} {
		if reached[word] == 0 {
			t.Errorf("no %s: %v", word, reached)
		}
	}
}

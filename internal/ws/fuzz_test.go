package ws

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/embedpush/push/internal/wire"
	"github.com/gorilla/websocket"
)

// FuzzSplits: however the bytes are cut, the same comes out as if they had
// come at once, and memory stays within what came and what may come.
func FuzzSplits(f *testing.F) {
	in, _ := session()
	f.Add(in, []byte{1, 2, 3, 50}, uint16(1000))
	for _, b := range broken {
		f.Add(b.in, []byte{3}, uint16(1000))
	}
	f.Fuzz(func(t *testing.T, in, steps []byte, limit uint16) {
		whole := Reader{Max: int(limit)}
		want, wantErr := feed(t, &whole, in)

		var cuts []int
		for at := 0; len(steps) > 0 && at < len(in); {
			step := int(steps[len(cuts)%len(steps)])
			at += step
			if at >= len(in) || step == 0 && len(cuts) > len(in) {
				break
			}
			cuts = append(cuts, at)
		}
		for _, cuts := range [][]int{cuts, everyByte(in)} {
			r := Reader{Max: int(limit)}
			got, err := feed(t, &r, in, cuts...)
			if err != wantErr {
				t.Fatalf("cuts %v: error %v, whole %v", cuts, err, wantErr)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("cuts %v:\ngot   %v\nwhole %v", cuts, got, want)
			}
			if r.Partial() != whole.Partial() {
				t.Fatalf("cuts %v: Partial is %v, whole %v", cuts, r.Partial(), whole.Partial())
			}
			if r.Partial() && (cap(r.part.data) > int(limit) || cap(r.part.data) > max(2*len(in), minBuffer) || cap(r.part.control) > maxControl) {
				t.Fatalf("cuts %v: %d and %d bytes kept after %d, limit %d", cuts, cap(r.part.data), cap(r.part.control), len(in), limit)
			}
		}
	})
}

// FuzzAgainstGorilla holds the Reader against gorilla's server side. Both must
// give the same messages and refuse at the same place, but for this:
//
// What we refuse and gorilla takes:
//   - a Text that is not UTF-8 (section 8.1; 1007)
//   - a length that is not in its shortest form (5.2; 1002)
//   - a close frame of one byte (5.5.1; 1002), which gorilla reads as empty
//   - a message over the limit before its masking key has come (1009), where
//     gorilla waits for the key
//
// What gorilla refuses and we take:
//   - close code 1014, in IANA's registry since 2016
//
// What both refuse, each in its way: a close reason that is not UTF-8 (ours
// 1007, gorilla's 1002), a length with its highest bit set (ours 1002,
// gorilla's 1009).
func FuzzAgainstGorilla(f *testing.F) {
	in, _ := session()
	f.Add(in, uint16(1000))
	for _, b := range broken {
		f.Add(b.in, uint16(1000))
	}
	f.Add(client(closing, "\x03\xf6"), uint16(1000)) // 1014
	f.Fuzz(func(t *testing.T, in []byte, limit uint16) {
		if limit == 0 {
			limit = 1 // for gorilla 0 is no limit
		}
		r := Reader{Max: int(limit)}
		got, err := feed(t, &r, in)
		want, refused := gorilla(t, in, int64(limit))

		switch {
		case err == errText, err == errLength, err == errCloseBody, err == errTooBig && !refused:
			if err == errTooBig && len(want) != len(got) {
				t.Fatalf("gorilla goes on behind a message over the limit:\nours    %v\ngorilla %v", got, want)
			}
			if len(want) < len(got) {
				t.Fatalf("we refuse with %v, gorilla got less:\nours    %v\ngorilla %v", err, got, want)
			}
			want = want[:len(got)]
		case err == nil && refused && len(got) == len(want)+1:
			if extra := got[len(want)]; extra.op != Close || extra.code != 1014 {
				t.Fatalf("gorilla refuses %v", extra)
			}
			got = got[:len(want)]
		case (err != nil) != refused:
			t.Fatalf("our error is %v, gorilla refuses: %v\nours    %v\ngorilla %v", err, refused, got, want)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("our error is %v\nours    %v\ngorilla %v", err, got, want)
		}
	})
}

// gorilla returns what a gorilla server reads of in, and whether it refused
// it: ended the connection otherwise than at a close frame or at the end of in.
func gorilla(t *testing.T, in []byte, limit int64) (events []event, refused bool) {
	t.Helper()
	nc := &memConn{r: bytes.NewReader(in)}
	// 125 is the smallest read buffer gorilla has, so that borders fall everywhere.
	up := websocket.Upgrader{ReadBufferSize: maxControl, WriteBufferSize: maxControl}
	c, err := up.Upgrade(hijacked{nc}, &http.Request{Method: "GET", Header: http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	c.SetReadLimit(limit)
	c.SetPingHandler(func(s string) error { events = append(events, event{Ping, 0, s}); return nil })
	c.SetPongHandler(func(s string) error { events = append(events, event{Pong, 0, s}); return nil })
	c.SetCloseHandler(func(code int, s string) error {
		closed = true
		events = append(events, event{Close, wire.Code(code), s})
		return nil
	})
	for {
		op, payload, err := c.ReadMessage()
		if err != nil {
			// The end of in is io.EOF or an abnormal closure without a close frame.
			var ce *websocket.CloseError
			atEnd := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &ce) && ce.Code == websocket.CloseAbnormalClosure
			return events, !closed && !atEnd
		}
		events = append(events, event{Opcode(op), 0, string(payload)})
	}
}

// memConn is a net.Conn that reads from memory and forgets what is written.
type memConn struct {
	net.Conn
	r io.Reader
}

func (c *memConn) Read(b []byte) (int, error)       { return c.r.Read(b) }
func (c *memConn) Write(b []byte) (int, error)      { return len(b), nil }
func (c *memConn) Close() error                     { return nil }
func (c *memConn) SetDeadline(time.Time) error      { return nil }
func (c *memConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }

// hijacked is the http.ResponseWriter of an upgrade on a memConn.
type hijacked struct{ c *memConn }

func (h hijacked) Header() http.Header         { return http.Header{} }
func (h hijacked) Write(b []byte) (int, error) { return len(b), nil }
func (h hijacked) WriteHeader(int)             {}
func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.c, bufio.NewReadWriter(bufio.NewReader(bytes.NewReader(nil)), bufio.NewWriter(io.Discard)), nil
}

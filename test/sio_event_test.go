package test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
)

// TestAckHasWhatThePageAnswered as Delivery.Reply: nothing, one argument,
// several, bytes.
func TestAckHasWhatThePageAnswered(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: anySpace}})
		w.dialect = door
		root := w.connect("alice")
		chat := root.io.joins("/chat", "alice").isIn()
		for _, c := range []struct {
			args  []any
			reply string // "": none
		}{
			{nil, ""},
			{[]any{nil}, "null"},
			{[]any{5}, "5"},
			{[]any{"done", 5, map[string]any{"a": []int{1}}}, `["done",5,{"a":[1]}]`},
			{[]any{[]byte{0, 1, 0xff}}, `"AAH/"`},
			{[]any{"x", []byte("abc"), []byte{}}, `["x","YWJj",""]`},
		} {
			for _, p := range []*page{root, chat} {
				var id uint64
				p.onAck(func(p *page, m envelope) {
					id = m.ID
					p.acknowledges(m, c.args...)
				})
				for _, ack := range []push.Ack{push.AutoAck, push.BizAck} {
					r, err := w.Push(t.Context(), push.Audience{User: "alice", Namespace: p.space}, push.Message{Event: "ask", Ack: ack})
					if err != nil || r.Acked != 1 {
						t.Fatalf("%v: %+v, %v", c.args, r, err)
					}
					reply := r.Deliveries[0].Reply
					if c.reply == "" {
						if len(reply) > 0 && string(reply) != "null" {
							t.Errorf("no argument is reply %s", reply)
						}
					} else if !sameJSON(reply, c.reply) {
						t.Errorf("%v is reply %s, want %s", c.args, reply, c.reply)
					}
					p.wantPush("ask")
					if id < 1<<30 || id >= 1<<31 {
						t.Errorf("id %d, want one in [2^30, 2^31)", id)
					}
				}
			}
		}
		if s := w.Stats(); s.StrayAcks != 0 || s.Flights != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestAckInAnotherNamespaceIsStray, and settles nothing.
func TestAckInAnotherNamespaceIsStray(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: anySpace}})
		w.dialect = door
		root := w.connect("alice")
		chat := root.io.joins("/chat", "alice").isIn()
		other := w.connect("bob")
		root.onAck(silent)
		pushed := make(chan push.Receipt)
		go func() {
			r, _ := w.PushToUser(t.Context(), "alice", push.Message{Event: "ask", Ack: push.BizAck})
			pushed <- r
		}()
		m := root.wantPush("ask")
		chat.acknowledges(m, "chat")
		other.acknowledges(m, "bob")
		root.io.enqueue(root.io.encode(3, "/never joined", int64(m.ID), "x")...)
		synctest.Wait()
		select {
		case r := <-pushed:
			t.Fatalf("settled by another's ack: %+v", r)
		default:
		}
		root.acknowledges(m, "root")
		r := <-pushed
		if !sameJSON(r.Deliveries[0].Reply, `"root"`) {
			t.Errorf("%+v", r)
		}
		root.acknowledges(m, "again")
		synctest.Wait()
		if s := w.Stats(); s.StrayAcks != 4 || s.Conns != 3 {
			t.Errorf("%d stray acks, %d connections", s.StrayAcks, s.Conns)
		}
	})
}

// TestAcksOfALeftNamespaceAreGone at once.
func TestAcksOfALeftNamespaceAreGone(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{SocketIO: push.SocketIO{Namespace: anySpace}})
		w.dialect = door
		root := w.connect("alice")
		chat := root.io.joins("/chat", "alice").isIn()
		chat.onAck(silent)
		begin := time.Now()
		pushed := make(chan push.Receipt)
		go func() {
			r, err := w.Push(t.Context(), push.Audience{User: "alice", Namespace: "/chat"}, push.Message{Event: "ask", Ack: push.BizAck})
			if !errors.Is(err, push.ErrGone) {
				t.Error(err)
			}
			pushed <- r
		}()
		chat.wantPush("ask")
		chat.leavesSpace()
		wantStatus(t, <-pushed, push.Gone)
		if took := time.Since(begin); took > 0 {
			t.Errorf("it took %v", took)
		}
	})
}

// TestEveryArgumentReachesTheHandler and is reachable one by one.
func TestEveryArgumentReachesTheHandler(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var got []string
		w := newWorld(t, push.Config{OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
			line := fmt.Sprintf("%s %d:", m.Event, m.Args())
			for i := range m.Args() {
				line += fmt.Sprintf(" %s/%x", m.JSON(i), m.Bytes(i))
			}
			got = append(got, line)
			if m.Bytes(m.Args()) != nil || string(m.JSON(m.Args())) != "null" || m.Bytes(-1) != nil || string(m.JSON(-1)) != "null" {
				t.Errorf("%s: an argument that is not there is %x, %s", m.Event, m.Bytes(m.Args()), m.JSON(m.Args()))
			}
			if m.Event == "mixed" {
				var s string
				var b []byte
				var v struct{ A []int }
				if err := m.Decode(&s, &b, &v); err != nil || s != "text" || string(b) != "abc" || len(v.A) != 2 {
					t.Errorf("decoded %q, %q, %v, %v", s, b, v, err)
				}
				if err := m.Decode(&s); err != nil { // fewer
					t.Errorf("the first alone: %v", err)
				}
				var n int
				if err := m.Decode(&n); err == nil {
					t.Error("a string is decoded into an int")
				}
			}
			return nil, nil
		}})
		w.dialect = door
		p := w.connect("alice")
		p.emits(-1, "none")
		p.emits(-1, "null", nil)
		p.emits(-1, "one", 5)
		p.emits(-1, "array", []int{1, 2})
		p.emits(-1, "mixed", "text", []byte("abc"), map[string]any{"A": []int{1, 2}})
		p.emits(-1, "bytes", []byte{}, []byte{1}, []byte{2, 3})
		p.emits(-1, "unicode ü😀", "ü😀\u2028\"\\\n")
		p.emits(1, "end")
		p.wantAnswer(1, "", "")
		for i, line := range []string{
			`none 0:`, `null 1: null/`, `one 1: 5/`, `array 1: [1,2]/`, `mixed 3: "text"/ "YWJj"/616263 {"A":[1,2]}/`, `bytes 3: ""/ "AQ=="/01 "AgM="/0203`,
			``, `end 0:`,
		} {
			if i >= len(got) {
				t.Fatalf("got %q", got)
			}
			if line != "" && got[i] != line {
				t.Errorf("got %q, want %q", got[i], line)
			}
		}
		text, _, _ := strings.Cut(strings.TrimPrefix(got[6], "unicode ü😀 1: "), "/")
		if !sameJSON(json.RawMessage(text), `"ü😀\u2028\"\\\n"`) {
			t.Errorf("got %q", got[6])
		}
	})
}

// TestNestedBytesAreBase64InTheirJSON.
func TestNestedBytesAreBase64InTheirJSON(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var got []string
		w := newWorld(t, push.Config{OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
			got = append(got, string(m.JSON(0)))
			var v struct {
				Name string
				Data []byte
				Deep []struct{ B []byte }
			}
			if err := m.Decode(&v); err != nil || v.Name != "f" || string(v.Data) != "abc" || len(v.Deep) != 1 || string(v.Deep[0].B) != "xyz" {
				t.Errorf("decoded %+v, %v", v, err)
			}
			return nil, nil
		}})
		w.dialect = door
		p := w.connect("alice")
		if p.io.packed {
			p.io.sendsAll(packed(2, "/", 1, []any{"file", map[string]any{"name": "f", "data": []byte("abc"), "deep": []any{map[string]any{"b": []byte("xyz")}}}}))
		} else {
			p.io.sendsAll(ioMessage{text: `452-1["file",{"name":"f","data":{"_placeholder":true,"num":0},"deep":[{"b":{"_placeholder":true,"num":1}}]}]`},
				ioMessage{binary: []byte("abc")}, ioMessage{binary: []byte("xyz")})
		}
		p.wantAnswer(1, "", "")
		if len(got) != 1 || !sameJSON(json.RawMessage(got[0]), `{"name":"f","data":"YWJj","deep":[{"b":"eHl6"}]}`) {
			t.Errorf("got %q", got)
		}
	})
}

// TestRepliesReachTheCallback: values, several, bytes, and errors.
func TestRepliesReachTheCallback(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		replies := map[string]struct {
			reply any
			err   error
		}{
			"nil":    {},
			"value":  {map[string]any{"a": 1}, nil},
			"args":   {push.Args{1, "two", nil}, nil},
			"noargs": {push.Args{}, nil},
			"bytes":  {[]byte("abc"), nil},
			"mixed":  {push.Args{"x", []byte{1, 2}, []byte{3}}, nil},
			"refuse": {nil, fmt.Errorf("wrapped: %w", push.Refuse("not \"you\""))},
			"secret": {5, errors.New("password is 1234")},
			"bad":    {func() {}, nil},
		}
		w := newWorld(t, push.Config{
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				r := replies[m.Event]
				return r.reply, r.err
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		w.dialect = door
		root := w.connect("alice")
		chat := root.io.joins("/chat", "alice").isIn()
		for _, p := range []*page{root, chat} {
			for i, c := range []struct{ event, args string }{
				{"nil", `[]`}, {"value", `[{"a":1}]`}, {"args", `[1,"two",null]`}, {"noargs", `[]`}, {"bytes", `["YWJj"]`}, {"mixed", `["x","AQI=","Aw=="]`},
				{"refuse", `[{"error":"not \"you\""}]`}, {"secret", `[{"error":"internal error"}]`}, {"bad", `[{"error":"internal error"}]`},
			} {
				id := int64(i)
				if i == 5 {
					id = 9_999_999_999
				}
				p.emits(id, c.event)
				m := p.next()
				args, _ := json.Marshal(m.args)
				if len(m.args) == 0 {
					args = []byte("[]")
				}
				if m.Ack == nil || *m.Ack != uint64(id) || !sameJSON(args, c.args) {
					t.Errorf("%s is answered %v %s, want %s", c.event, m, args, c.args)
				}
				switch c.event {
				case "bytes":
					if string(m.bytes[0]) != "abc" {
						t.Errorf("bytes arrive as %s", args)
					}
				case "mixed":
					if m.bytes[0] != nil || !bytes.Equal(m.bytes[1], []byte{1, 2}) || !bytes.Equal(m.bytes[2], []byte{3}) {
						t.Errorf("bytes arrive as %s", args)
					}
				}
			}
			p.emits(-1, "value") // without a callback nothing comes
			p.emits(-1, "secret")
			p.wantNothing()
		}
	})
}

// TestPushesCarryArgumentsAndBytes to Socket.IO, an array elsewhere.
func TestPushesCarryArgumentsAndBytes(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		w := newWorld(t, push.Config{})
		w.dialect = "push.json"
		plain := w.connect("alice")
		w.dialect = door
		p := w.connect("alice")
		for _, c := range []struct {
			data  any
			args  string // of Socket.IO
			plain string
		}{
			{nil, `[null]`, `null`},
			{5, `[5]`, `5`},
			{[]int{1, 2}, `[[1,2]]`, `[1,2]`},
			{push.Args{}, `[]`, `[]`},
			{push.Args{1}, `[1]`, `[1]`},
			{push.Args{1, []int{2}, nil}, `[1,[2],null]`, `[1,[2],null]`},
			{[]byte("abc"), `["YWJj"]`, `"YWJj"`},
			{push.Args{[]byte("abc"), "x", []byte{1}}, `["YWJj","x","AQ=="]`, `["YWJj","x","AQ=="]`},
			{map[string]any{"b": []byte("abc")}, `[{"b":"YWJj"}]`, `{"b":"YWJj"}`},
			{"ü😀\u2028</script>", `["ü😀\u2028</script>"]`, `"ü😀\u2028</script>"`},
		} {
			for _, ack := range []push.Ack{push.NoAck, push.BizAck} {
				r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "e", Data: c.data, Ack: ack})
				if err != nil || r.Failed > 0 {
					t.Fatalf("%v: %+v, %v", c.data, r, err)
				}
				m := p.wantPush("e")
				args, _ := json.Marshal(append([]json.RawMessage{}, m.args...))
				if !sameJSON(args, c.args) {
					t.Errorf("%v arrives as %s, want %s", c.data, args, c.args)
				}
				if list, ok := c.data.(push.Args); ok {
					for i, arg := range list {
						if b, ok := arg.([]byte); ok && !bytes.Equal(m.bytes[i], b) {
							t.Errorf("%v arrives with bytes %x", c.data, m.bytes[i])
						}
					}
				} else if b, ok := c.data.([]byte); ok && !bytes.Equal(m.bytes[0], b) {
					t.Errorf("%v arrives with bytes %x", c.data, m.bytes[0])
				}
				if m := plain.wantPush("e"); !sameJSON(m.Data, c.plain) {
					t.Errorf("%v arrives elsewhere as %s, want %s", c.data, m.Data, c.plain)
				}
			}
		}
	})
}

// TestReservedNamesAreRefusedToTheCaller, whoever the audience is.
func TestReservedNamesAreRefusedToTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		for _, door := range []string{"push.json", "socket.io.5 websocket"} {
			w.dialect = door
			p := w.connect("alice")
			for _, event := range []string{"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"} {
				for _, a := range []push.Audience{{User: "alice"}, {All: true}, {Conn: p.conn().ID()}, {Room: "r", Namespace: "/chat"}} {
					if r, err := w.Push(t.Context(), a, push.Message{Event: event}); err == nil {
						t.Errorf("%s to %+v: %+v", event, a, r)
					}
				}
			}
			p.wantNothing()
		}
	})
}

// TestTypedHandlersTakeTheFirstArgument, the catch-all the rest.
func TestTypedHandlersTakeTheFirstArgument(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		var d diary
		w := newWorld(t, push.Config{
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				d.note("%s of %q", m.Event, c.Namespace())
				return m.Event, nil
			},
			SocketIO: push.SocketIO{Namespace: anySpace},
		})
		type order struct {
			ID   int    `json:"id"`
			Note string `json:"note"`
		}
		push.On(w.Engine, "order", func(ctx context.Context, c *push.Conn, in order) (any, error) {
			d.note("order %d %s of %q", in.ID, in.Note, c.Namespace())
			return in.ID + 1, nil
		})
		push.On(w.Engine, "file", func(ctx context.Context, c *push.Conn, in []byte) (any, error) {
			d.note("file %s", in)
			return in, nil
		})
		w.dialect = door
		root := w.connect("alice")
		chat := root.io.joins("/chat", "alice").isIn()
		root.emits(1, "order", order{5, "x"}, "more", "and more")
		root.wantAnswer(1, "6", "")
		chat.emits(2, "order", order{7, "y"})
		chat.wantAnswer(2, "8", "")
		root.emits(3, "file", []byte("abc"))
		root.wantAnswer(3, `"`+base64.StdEncoding.EncodeToString([]byte("abc"))+`"`, "")
		root.emits(4, "order", "no order")
		root.wantAnswer(4, "", "cannot decode the data")
		chat.emits(5, "any", 1)
		chat.wantAnswer(5, `"any"`, "")
		root.emits(6, "order")
		m := root.next()
		if m.Ack == nil || *m.Ack != 6 {
			t.Errorf("an order without arguments is answered %v", m)
		}
		root.wantNothing()
		got := d.all()
		want := []string{`order 5 x of ""`, `order 7 y of "/chat"`, "file abc", `any of "/chat"`}
		if len(got) > len(want) {
			got = got[:len(want)]
		}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("handlers ran as %q, want %q", d.all(), want)
		}
		if s := w.Stats(); s.Undecodable < 1 {
			t.Errorf("%+v", s)
		}
	})
}

// counted is JSON that counts how often it is made.
type counted struct{ n *atomic.Int64 }

func (c counted) MarshalJSON() ([]byte, error) { c.n.Add(1); return []byte(`{"a":"b"}`), nil }

// TestPushIsEncodedOnceForAll, however many there are and whatever they speak.
func TestPushIsEncodedOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, push.Config{})
		var pages []*page
		for i := range 100 {
			w.dialect = anyDoor(i)
			pages = append(pages, w.connect(""))
		}
		var n atomic.Int64
		for _, data := range []any{counted{&n}, push.Args{counted{&n}, []byte("abc")}} {
			n.Store(0)
			if r, err := w.Broadcast(t.Context(), push.Message{Event: "e", Data: data}); err != nil || r.Targets != 100 {
				t.Fatal(r, err)
			}
			synctest.Wait()
			for _, p := range pages {
				if m := p.wantPush("e"); !strings.Contains(string(m.Data), `"a":"b"`) {
					t.Errorf("%s got %s", p.dialect, m.Data)
				}
			}
			if n.Load() != 1 {
				t.Errorf("encoded %d times", n.Load())
			}
		}
	})
}

// TestThreeThousandEventsEachWayStayInOrder, in a burst.
func TestThreeThousandEventsEachWayStayInOrder(t *testing.T) {
	overSocketIO(t, func(t *testing.T, door string) {
		const n = 3000
		var got []int
		w := newWorld(t, push.Config{
			OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
				var i int
				if err := m.Decode(&i); err != nil {
					t.Error(err)
				}
				got = append(got, i)
				return i, nil
			},
			Limits: push.Limits{QueueBytes: 2 << 20},
		})
		w.dialect = door
		p := w.connect("alice")
		var both sync.WaitGroup
		both.Go(func() {
			for i := range n {
				if _, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "n", Data: i}); err != nil {
					t.Errorf("push %d: %v", i, err)
					return
				}
			}
		})
		both.Go(func() {
			var sent <-chan struct{}
			for i := range n {
				sent = p.io.enqueue(p.io.encode(2, "/", int64(i), "n", i, strings.Repeat("x", i%50))...)
			}
			<-sent
		})
		both.Wait()
		p.waitFor("all of both", func() bool { return len(p.got) == 2*n })
		pushed, answered := 0, 0
		for _, m := range p.taken() {
			v := -1
			json.Unmarshal(m.Data, &v)
			if m.Ack == nil {
				if v != pushed {
					t.Fatalf("push %d came, want %d", v, pushed)
				}
				pushed++
			} else {
				if v != answered || int(*m.Ack) != answered {
					t.Fatalf("answer %d came with %d, want %d", *m.Ack, v, answered)
				}
				answered++
			}
		}
		for i := range got {
			if got[i] != i {
				t.Fatalf("the handler got %d as number %d", got[i], i)
			}
		}
		if len(got) != n || pushed != n || answered != n {
			t.Errorf("%d handled, %d pushed, %d answered", len(got), pushed, answered)
		}
		p.wantNothing()
	})
}

// TestUpgradeLosesDoublesAndReordersNothing, while events go both ways, with
// acks and attachments.
func TestUpgradeLosesDoublesAndReordersNothing(t *testing.T) {
	for _, door := range []string{"socket.io.5 polling", "socket.io.4 polling", "socket.io.msgpack polling"} {
		t.Run(door, func(t *testing.T) {
			overNetworks(t, func(t *testing.T, start func(push.Config) *world) {
				for round := range 4 {
					const n = 400
					var mu sync.Mutex
					var got []int
					w := start(push.Config{
						OnMessage: func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
							var i int
							if err := m.Decode(&i); err != nil || m.Args() != 2 || len(m.Bytes(1)) != i%7 {
								t.Errorf("%d arguments, %x, %v", m.Args(), m.Bytes(1), err)
							}
							mu.Lock()
							got = append(got, i)
							mu.Unlock()
							return push.Args{i, []byte{byte(i)}}, nil
						},
						Limits: push.Limits{QueueBytes: 2 << 20},
					})
					w.dialect = door
					p := w.connect("alice")
					var all sync.WaitGroup
					all.Go(func() {
						for i := range n {
							data := any(push.Args{i, []byte{byte(i)}})
							ack := push.NoAck
							if i%50 == 49 {
								ack = push.AutoAck
							}
							if r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "n", Data: data, Ack: ack}); err != nil {
								t.Errorf("push %d: %+v, %v", i, r, err)
								return
							}
							pauseFor(i)
						}
					})
					all.Go(func() {
						for i := range n {
							p.emits(int64(i), "n", i, make([]byte, i%7))
						}
					})
					all.Go(func() {
						for i := range 10 * round {
							pauseFor(i)
						}
						p.io.upgrades()
					})
					all.Wait()
					p.waitFor("all of both", func() bool { return len(p.got) >= 2*n })
					if p.io.webSocket() == nil {
						t.Error("not upgraded")
					}
					pushed, answered := 0, 0
					for _, m := range p.taken() {
						v := -1
						json.Unmarshal(m.args[0], &v)
						count := &pushed
						if m.Ack != nil {
							count = &answered
						}
						if v != *count || len(m.args) != 2 || len(m.bytes[1]) != 1 || m.bytes[1][0] != byte(v) {
							t.Fatalf("%v came, want number %d", m, *count)
						}
						*count++
					}
					mu.Lock()
					for i := range got {
						if got[i] != i {
							t.Fatalf("the handler got %d as number %d", got[i], i)
						}
					}
					if len(got) != n || pushed != n || answered != n {
						t.Errorf("%d handled, %d pushed, %d answered", len(got), pushed, answered)
					}
					mu.Unlock()
					// The old transport is no road any more.
					status, _, body := w.fetch("GET", strings.TrimPrefix(p.io.url("http", "polling"), "http://push.test"), nil, "")
					if status != 400 {
						t.Errorf("a poll after the upgrade: %d %q", status, body)
					}
					if r, err := w.PushToUser(t.Context(), "alice", push.Message{Event: "after", Ack: push.AutoAck}); err != nil || r.Acked != 1 {
						t.Error(r, err)
					}
					p.wantPush("after")
				}
			})
		})
	}
}

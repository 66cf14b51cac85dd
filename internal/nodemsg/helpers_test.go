package nodemsg

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/embedpush/push/internal/wire"
)

// answer is a Result with its rows.
type answer struct {
	Result
	rows []Row
}

func appendAnswer(dst []byte, a *answer) []byte {
	dst = AppendResultHead(dst, &a.Result)
	for i := range a.rows {
		dst = AppendRow(dst, &a.rows[i])
	}
	return dst
}

func parseAnswer(body []byte) (a answer, err error) {
	res, err := ParseResult(body)
	if err != nil {
		return answer{}, err
	}
	var row Row
	for res.Rows.Next(&row) {
		a.rows = append(a.rows, row)
	}
	res.Rows = Rows{}
	a.Result = res
	return a, nil
}

// message is a kind of message, by what is done with every one.
type message struct {
	name   string
	parse  func(body []byte) (any, error)
	append func(dst []byte, m any) []byte
	random func(g *gen) any
	limits func(m any) error // what of a parsed one is not as promised
}

// messages are all that are parsed from one body.
var messages = []message{
	{
		"Push",
		func(b []byte) (any, error) { p, err := ParsePush(b); return &p, err },
		func(dst []byte, m any) []byte { return AppendPush(dst, m.(*Push)) },
		func(g *gen) any { return g.push() },
		func(m any) error {
			p := m.(*Push)
			if p.Ack > MaxAck || p.Rate != 0 && !(p.Rate >= MinRate && p.Rate <= MaxRate) || p.Message != nil {
				return fmt.Errorf("head %+v", p)
			}
			if err := shortText(p.Event, MaxName); err != nil {
				return err
			}
			if err := sound(p.Value); err != nil {
				return err
			}
			return p.To.Check()
		},
	},
	{
		"Result",
		func(b []byte) (any, error) { a, err := parseAnswer(b); return &a, err },
		func(dst []byte, m any) []byte { return appendAnswer(dst, m.(*answer)) },
		func(g *gen) any { return g.answer() },
		func(m any) error {
			a := m.(*answer)
			for _, i := range a.Nobody {
				if i >= MaxUsers {
					return fmt.Errorf("nobody %d", i)
				}
			}
			for _, row := range a.rows {
				if row.Status > MaxStatus || row.Settled != (row.Status != 0) || row.Reply != nil && !json.Valid(row.Reply) {
					return fmt.Errorf("row %+v", row)
				}
				if row.Reply != nil && !utf8.Valid(row.Reply) {
					return fmt.Errorf("reply %q", row.Reply)
				}
				for _, s := range []string{row.User, row.Device, row.Protocol} {
					if err := shortText(s, MaxName); err != nil {
						return err
					}
				}
			}
			return nil
		},
	},
	{
		"Cancel",
		func(b []byte) (any, error) { return ParseCancel(b) },
		func(dst []byte, m any) []byte { return AppendCancel(dst, m.(uint64)) },
		func(g *gen) any { return g.uint() },
		func(m any) error { return nil },
	},
	{
		"Call",
		func(b []byte) (any, error) { c, err := ParseCall(b); return &c, err },
		func(dst []byte, m any) []byte { return AppendCall(dst, m.(*Call)) },
		func(g *gen) any { return g.call() },
		func(m any) error {
			c := m.(*Call)
			if c.Op < Kick || c.Op > Devices || c.Op == Devices && c.Text != "" || (c.Op == Join || c.Op == Leave) && len(c.Text) > MaxName {
				return fmt.Errorf("op %d with %q", c.Op, c.Text)
			}
			if err := shortText(c.Text, MaxText); err != nil {
				return err
			}
			return c.To.Check()
		},
	},
	{
		"Return",
		func(b []byte) (any, error) { r, err := ParseReturn(b); return &r, err },
		func(dst []byte, m any) []byte { return AppendReturn(dst, m.(*Return)) },
		func(g *gen) any { return g.ret() },
		func(m any) error {
			r := m.(*Return)
			if len(r.Errors) > MaxErrors {
				return fmt.Errorf("%d errors", len(r.Errors))
			}
			for _, s := range r.Errors {
				if err := shortText(s, MaxError); err != nil {
					return err
				}
			}
			for _, d := range r.Devices {
				for _, s := range []string{d.User, d.Device, d.Protocol, d.OS, d.Version} {
					if err := shortText(s, MaxName); err != nil {
						return err
					}
				}
				if len(d.Tags) > MaxTags {
					return fmt.Errorf("%d tags", len(d.Tags))
				}
				for _, s := range d.Tags {
					if err := shortText(s, MaxTag); err != nil {
						return err
					}
				}
				if err := shortText(d.Namespace, MaxNamespace); err != nil {
					return err
				}
			}
			return nil
		},
	},
}

func shortText(s string, longest int) error {
	if len(s) > longest || !utf8.ValidString(s) {
		return fmt.Errorf("text %.40q of %d bytes, want UTF-8 of at most %d", s, len(s), longest)
	}
	return nil
}

// sound says what is wrong with a value from a peer.
func sound(v wire.Value) error {
	if v.JSON != nil && (!json.Valid(v.JSON) || !utf8.Valid(v.JSON)) {
		return fmt.Errorf("JSON %.40q", v.JSON)
	}
	if v.Args == nil {
		if v.JSON != nil && v.Bytes != nil {
			return fmt.Errorf("value %+v", v)
		}
		return nil
	}
	if v.Bytes != nil || !bytes.Equal(v.JSON, arrayOf(v.Args)) {
		return fmt.Errorf("arguments %+v with %.40q", v.Args, v.JSON)
	}
	for _, arg := range v.Args {
		if arg.Args != nil {
			return fmt.Errorf("argument %+v", arg)
		}
		if err := sound(arg); err != nil {
			return err
		}
	}
	return nil
}

// arrayOf is the JSON of several arguments.
func arrayOf(args []wire.Value) []byte {
	var parts []string
	for _, arg := range args {
		switch {
		case arg.Bytes != nil:
			parts = append(parts, `"`+base64.StdEncoding.EncodeToString(arg.Bytes)+`"`)
		case arg.JSON != nil:
			parts = append(parts, string(arg.JSON))
		default:
			parts = append(parts, "null")
		}
	}
	return []byte("[" + strings.Join(parts, ",") + "]")
}

// allocated tells how many bytes f makes.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// makesAtMost asserts that f makes so many bytes at most. The quick look sees
// what was made when the memory at hand was used up, some ten KiB sooner or
// later.
func makesAtMost(t *testing.T, most int, body []byte, f func()) {
	t.Helper()
	made := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(made)
	before := made[0].Value.Uint64()
	f()
	if metrics.Read(made); made[0].Value.Uint64()-before <= uint64(most) {
		return
	}
	if used := allocated(f); used > uint64(most) {
		t.Fatalf("%d bytes made %d, want at most %d: %.100x", len(body), used, most, body)
	}
}

// check holds what parsing a body comes to against all that is promised of
// any body.
func (m *message) check(t *testing.T, body []byte) {
	t.Helper()
	kept := bytes.Clone(body)
	var got any
	var err error
	makesAtMost(t, 16<<10+160*len(body), body, func() { got, err = m.parse(body) }) // rows are gathered here, too
	if !bytes.Equal(body, kept) {
		t.Fatalf("%x became %x", kept, body)
	}
	if err != nil {
		if err != ErrMalformed {
			t.Fatalf("error %v, want ErrMalformed", err)
		}
		if v := reflect.Indirect(reflect.ValueOf(got)); !v.IsZero() {
			t.Fatalf("%.100x is malformed, and gave %+v", body, v)
		}
		return
	}
	if err := m.limits(got); err != nil {
		t.Fatalf("%.100x gave %v", body, err)
	}
	again := m.append(nil, got)
	if len(again) > len(body) {
		t.Fatalf("%x became %x, which is longer", body, again)
	}
	back, err := m.parse(again)
	if err != nil || !reflect.DeepEqual(back, got) {
		t.Fatalf("%+v came back as %+v, %v", got, back, err)
	}
}

// gen makes random messages that keep to the limits, as parsing gives them
// back.
type gen struct{ *rand.Rand }

func (g *gen) uint() uint64 { return g.Uint64() >> g.IntN(64) }
func (g *gen) bool() bool   { return g.IntN(2) == 0 }

// text is shortest to longest bytes of UTF-8, mostly few.
func (g *gen) text(shortest, longest int) string {
	if g.IntN(4) > 0 {
		longest = min(longest, shortest+12)
	}
	size := shortest + g.IntN(longest-shortest+1)
	var b []byte
	for len(b) < size {
		if r := []rune{'a', 'Z', ' ', '"', '\\', 0, '<', 'é', '€', 0x2028, '🎉', utf8.RuneError}[g.IntN(12)]; len(b)+utf8.RuneLen(r) <= size {
			b = utf8.AppendRune(b, r)
		}
	}
	return string(b)
}

func (g *gen) texts(most, longest int) (all []string) {
	if g.bool() {
		return nil
	}
	if g.IntN(8) > 0 {
		most = min(most, 4)
	}
	for range g.IntN(most + 1) {
		all = append(all, g.text(0, longest))
	}
	return all
}

func (g *gen) json(depth int) []byte {
	var v any
	switch g.IntN(7) {
	case 0:
		return []byte("null")
	case 1:
		v = g.text(0, 100)
	case 2:
		v = g.NormFloat64() * math.Pow(10, float64(g.IntN(40)-20))
	case 3:
		return fmt.Appendf(nil, " [ %d,\t-1e+9 , true,false]\r\n", g.uint())
	case 4:
		return []byte(nest(10*depth, 1))
	default:
		all := make(map[string]any)
		for range g.IntN(4) {
			if depth < 9 {
				all[g.text(0, 20)] = json.RawMessage(g.json(depth + 1))
			}
		}
		v = all
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func (g *gen) one() (v wire.Value) {
	switch g.IntN(5) {
	case 0:
	case 1:
		v.Bytes = make([]byte, g.IntN(300))
		for i := range v.Bytes {
			v.Bytes[i] = byte(g.Uint32())
		}
	default:
		v.JSON = g.json(0)
	}
	return v
}

func (g *gen) value() (v wire.Value) {
	if g.IntN(4) > 0 {
		return g.one()
	}
	v.Args = make([]wire.Value, g.IntN(20))
	for i := range v.Args {
		v.Args[i] = g.one()
	}
	v.JSON = arrayOf(v.Args)
	return v
}

func (g *gen) audience() (a Audience) {
	a.Kind = uint8(1 + g.IntN(5))
	switch a.Kind {
	case User:
		a.User = g.text(1, MaxName)
	case Users:
		a.Users = g.texts(100, MaxName)
	case Room:
		a.Room = g.text(1, MaxName)
	case Conn:
		a.Conn = g.uint()
	}
	if g.bool() {
		a.Namespace = g.text(0, MaxNamespace)
	}
	if g.bool() {
		a.AnyTag, a.AllTags, a.NoTag = g.texts(20, MaxTag), g.texts(20, MaxTag), g.texts(20, MaxTag)
		a.OS, a.MinVersion, a.Percent = g.texts(20, MaxName), g.text(0, MaxName), g.IntN(101)
		for range g.IntN(20) {
			a.Except = append(a.Except, g.uint())
		}
	}
	return a
}

func (g *gen) push() *Push {
	p := &Push{
		ID: g.uint(), Wait: uint32(g.uint()), Ack: uint8(g.IntN(MaxAck + 1)), Quiet: g.bool(),
		To: g.audience(), Event: g.text(0, MaxName), Value: g.value(),
	}
	if g.IntN(4) == 0 {
		p.Rate = math.Exp(g.Float64()*math.Log(MaxRate/MinRate)) * MinRate
	}
	return p
}

func (g *gen) answer() *answer {
	a := &answer{Result: Result{ID: g.uint(), Done: g.bool(), Total: uint32(g.uint())}}
	for range g.IntN(3) * g.IntN(20) {
		a.Nobody = append(a.Nobody, uint32(g.uint()%MaxUsers))
	}
	for range g.IntN(20) {
		row := Row{Index: uint32(g.uint()), New: g.bool(), Settled: g.bool()}
		if row.New {
			row.User, row.Device, row.Conn = g.text(0, MaxName), g.text(0, MaxName), g.uint()
			row.Protocol = append(protocols[:], "", g.text(0, MaxName))[g.IntN(len(protocols)+2)]
		}
		if row.Settled {
			row.Status = uint8(1 + g.IntN(MaxStatus))
			if g.bool() {
				row.Reply = g.json(0)
			}
		}
		a.rows = append(a.rows, row)
	}
	return a
}

func (g *gen) call() *Call {
	c := &Call{ID: g.uint(), Op: uint8(1 + g.IntN(4)), Wait: uint32(g.uint()), To: g.audience()}
	switch c.Op {
	case Kick:
		c.Text = g.text(0, MaxText)
	case Join, Leave:
		c.Text = g.text(0, MaxName)
	}
	return c
}

func (g *gen) ret() *Return {
	r := &Return{ID: g.uint(), Done: g.bool(), N: g.uint(), Errors: g.texts(MaxErrors, MaxError), Seq: g.uint()}
	for range g.IntN(20) {
		r.Devices = append(r.Devices, Device{
			User: g.text(0, MaxName), Device: g.text(0, MaxName), Protocol: append(protocols[:], g.text(0, MaxName))[g.IntN(len(protocols)+1)],
			Namespace: g.text(0, MaxNamespace), OS: g.text(0, MaxName), Version: g.text(0, MaxName), Conn: g.uint(), Tags: g.texts(MaxTags, MaxTag),
		})
	}
	return r
}

// each runs a test for every kind of message, with a source of random ones
// that is the same in every run.
func each(t *testing.T, f func(t *testing.T, m *message, g *gen)) {
	for i := range messages {
		m := &messages[i]
		t.Run(m.name, func(t *testing.T) { f(t, m, &gen{rand.New(rand.NewPCG(7, uint64(i)))}) })
	}
}

// lengthen returns body with k elements more in each of its arrays (but not in
// those of one kind of thing, whose length is a count), as a later version
// might send it. counts says of which arrays, by their place in the order in
// which they begin, the length is a count.
func lengthen(t testing.TB, body []byte, extra string, k int, counts func(place int) bool) []byte {
	t.Helper()
	place := 0
	var walk func(r *reader, dst []byte) []byte
	walk = func(r *reader, dst []byte) []byte {
		before := r.b
		kind, v := r.head()
		if kind == broken {
			t.Fatalf("broken %x", body)
		}
		if kind != list {
			if kind == text || kind == bin {
				r.take(int(v))
			}
			return append(dst, before[:len(before)-len(r.b)]...)
		}
		more := k
		if counts(place) {
			more = 0
		}
		place++
		// The widest head, which is good for any number.
		dst = binary.BigEndian.AppendUint32(append(dst, codeList16+1), uint32(int(v)+more))
		for range v {
			dst = walk(r, dst)
		}
		return append(dst, strings.Repeat(extra, more)...)
	}
	r := &reader{b: body}
	var dst []byte
	for len(r.b) > 0 {
		dst = walk(r, dst)
	}
	return dst
}

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, seed)) }

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
)

// TestMain lets the test's binary be a node, or the whole program.
func TestMain(m *testing.M) {
	if os.Getenv(asNode) != "" || os.Getenv(asParent) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// asParent in the environment makes the test's binary the program.
const asParent = "PUSH_EXAMPLE_PARENT"

func TestFlagsThatCannotBeAreRefused(t *testing.T) {
	for args, want := range map[string]string{
		"all":                           `"all" is no flag`,
		"-for 30s":                      "-headless",
		"-headless -for 9s":             "10s",
		"-headless -http 127.0.0.1:0":   "-http",
		"-headless -for soon":           "soon",
		"-http 127.0.0.1":               "-http",
		"-http 0.0.0.0:0":               "other machines",
		"-headless -v -for 30s goes on": `"goes" is no flag`,
	} {
		if err := run(t.Context(), strings.Fields(args), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s ended with %v, want %q in it", args, err, want)
		}
	}
}

// receipt has a row for each device, "alice/phone@c:acked".
func receipt(t *testing.T, rows ...string) (r push.Receipt) {
	t.Helper()
	for _, row := range rows {
		p := regexp.MustCompile(`^(.*)/(.*)@(.*):(.*)$`).FindStringSubmatch(row)
		d := push.Delivery{UserID: p[1], DeviceID: p[2], Node: p[3]}
		if err := d.Status.UnmarshalText([]byte(p[4])); err != nil {
			t.Fatal(err)
		}
		r.Targets++
		r.Deliveries = append(r.Deliveries, d)
	}
	return r
}

func TestAckedAndSeenIsAsItShouldBe(t *testing.T) {
	l := newLedger(aliceHas)
	n := l.begin(true)
	for _, device := range aliceHas {
		l.saw(n, device)
	}
	l.receipt(n, receipt(t, "alice/browser@a:acked", "alice/socketio@b:acked", "alice/phone@c:acked"), false)
	c, wrong := l.sum()
	if c.Lies+c.Unacked+c.Twice+c.Strange+c.Late+c.Died+c.Open+c.Unreached != 0 || c.Pushes != 1 || c.Receipts != 1 || c.Seen != 3 || c.Deliveries["acked"] != 3 || c.Quiet != 1 || c.Whole != 1 || wrong != nil {
		t.Errorf("it comes to %+v, wrong %q", c, wrong)
	}
}

func TestAckedButNotSeenIsFoundAndNamed(t *testing.T) {
	l := newLedger(aliceHas)
	l.begin(false)
	n := l.begin(false)
	l.saw(n, "alice/phone")
	l.saw(n-1, "alice/browser") // another push
	l.receipt(n, receipt(t, "alice/browser@a:acked", "alice/phone@c:acked", "alice/phone@b:timeout"), false)
	l.saw(n, "alice/browser") // too late: the ack came before it
	if c, wrong := l.sum(); c.Lies != 1 || len(wrong) != 1 || wrong[0] != "push 2: alice/browser on node a is said to have acked, and has not seen it" {
		t.Errorf("it comes to %+v, wrong %q", c, wrong)
	}
}

func TestTwoAcksOfOneSightAreOneTooMany(t *testing.T) {
	l := newLedger(aliceHas)
	n := l.begin(false)
	l.saw(n, "alice/phone")
	l.receipt(n, receipt(t, "alice/phone@b:acked", "alice/phone@c:acked"), false)
	if c, wrong := l.sum(); c.Lies != 1 || len(wrong) != 1 {
		t.Errorf("it comes to %+v, wrong %q", c, wrong)
	}
}

func TestSeenButNotAckedIsCountedOnce(t *testing.T) {
	for what, do := range map[string]func(l *ledger, n uint64){
		"seen before the receipt": func(l *ledger, n uint64) {
			l.saw(n, "alice/phone")
			l.receipt(n, receipt(t, "alice/phone@c:timeout"), false)
		},
		"seen behind the receipt": func(l *ledger, n uint64) {
			l.receipt(n, receipt(t, "alice/phone@c:nodelost"), false)
			l.saw(n, "alice/phone")
		},
		"not in the receipt": func(l *ledger, n uint64) {
			l.saw(n, "alice/phone")
			l.receipt(n, push.Receipt{}, false)
		},
		"seen, and the pushing node died": func(l *ledger, n uint64) {
			l.saw(n, "alice/phone")
			l.died(n)
		},
		"the pushing node died, and seen": func(l *ledger, n uint64) {
			l.died(n)
			l.saw(n, "alice/phone")
		},
	} {
		l := newLedger(aliceHas)
		do(l, l.begin(false))
		if c, wrong := l.sum(); c.Unacked != 1 || c.Lies != 0 || c.Open != 0 || wrong != nil {
			t.Errorf("%s: it comes to %+v, wrong %q", what, c, wrong)
		}
	}
}

func TestWhatMustNotBeIsFound(t *testing.T) {
	for what, c := range map[string]struct {
		do   func(l *ledger, n uint64)
		is   func(c counts) int
		want string
	}{
		"seen twice": {
			func(l *ledger, n uint64) { l.saw(n, "alice/phone"); l.saw(n, "alice/phone") },
			func(c counts) int { return c.Twice }, "alice/phone saw push 1 2 times",
		},
		"seen and never pushed": {
			func(l *ledger, n uint64) { l.saw(n+1, "alice/phone") },
			func(c counts) int { return c.Strange }, "alice/phone saw push 2, which nobody made",
		},
		"a late receipt": {
			func(l *ledger, n uint64) { l.receipt(l.begin(false), push.Receipt{}, true) },
			func(c counts) int { return c.Late }, "the receipt of push 2 came long behind its deadline",
		},
		"not all reached in the quiet": {
			func(l *ledger, n uint64) {
				l.saw(n, "alice/browser")
				l.saw(n, "alice/socketio")
				l.receipt(n, receipt(t, "alice/browser@a:acked", "alice/socketio@b:acked", "alice/phone@c:timeout"), false)
			},
			func(c counts) int { return c.Quiet - c.Whole }, "push 1 in the quiet did not reach alice/phone: map[browser@a:acked phone@c:timeout socketio@b:acked]",
		},
		"no receipt in the quiet": {
			func(l *ledger, n uint64) { l.died(n) },
			func(c counts) int { return c.Quiet - c.Whole }, "push 1 in the quiet has no receipt",
		},
	} {
		l := newLedger(aliceHas)
		c.do(l, l.begin(true))
		if sum, wrong := l.sum(); c.is(sum) != 1 || len(wrong) != 1 || wrong[0] != c.want {
			t.Errorf("%s: it comes to %+v, wrong %q, want %q", what, sum, wrong, c.want)
		}
	}
}

func TestOldPushesAreForgotten(t *testing.T) {
	l := newLedger(aliceHas)
	first := l.begin(false)
	for range 3 * ledgerLength {
		l.begin(false)
	}
	if len(l.pushes) != ledgerLength {
		t.Errorf("%d pushes are remembered, want %d", len(l.pushes), ledgerLength)
	}
	l.saw(first, "alice/phone")
	l.receipt(first, receipt(t, "alice/phone@c:acked", "alice/browser@a:acked"), false)
	if c, wrong := l.sum(); c.Lies+c.Unacked+c.Strange != 0 || wrong != nil || c.Deliveries["acked"] != 2 || c.Open != 3*ledgerLength {
		t.Errorf("of a forgotten push it makes %+v, wrong %q", c, wrong)
	}
}

// nodesOfMind are nodes that do what a test has in mind.
type nodesOfMind struct {
	mu      sync.Mutex // guards what follows
	serving []string
	stopped int
	asked   []string // which node pushed, in order
	does    func(ctx context.Context, o order) (answer, error)
}

func (n *nodesOfMind) up() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.serving
}

func (n *nodesOfMind) stops(string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stopped
}

func (n *nodesOfMind) push(ctx context.Context, id string, o order) (answer, error) {
	n.mu.Lock()
	n.asked = append(n.asked, id)
	does := n.does
	n.mu.Unlock()
	return does(ctx, o)
}

// loaded runs a load for a while of virtual time, and tells what came of it.
func loaded(n *nodesOfMind, length time.Duration) counts {
	l := &load{nodes: n, ledger: newLedger(aliceHas)}
	enough, stop := context.WithTimeout(context.Background(), length)
	defer stop()
	l.run(context.Background(), enough)
	c, _ := l.ledger.sum()
	return c
}

func TestTenPushesASecondFromTheNodesInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &nodesOfMind{serving: []string{"a", "b", "c"}, does: func(_ context.Context, o order) (answer, error) {
			if o.User != "alice" || o.Ack != push.AutoAck || o.Within != within || o.Note.Text != "" {
				t.Errorf("a node is asked for %+v", o)
			}
			return answer{Receipt: push.Receipt{Targets: 3}}, nil
		}}
		go func() {
			time.Sleep(time.Second + loadEvery/2)
			n.mu.Lock()
			n.serving = []string{"a", "c"}
			n.mu.Unlock()
		}()
		c := loaded(n, 2*time.Second+loadEvery/2)
		if c.Pushes != 20 || c.Receipts != 20 || c.Open != 0 {
			t.Errorf("in 2 s it comes to %+v, want 20 pushes", c)
		}
		from := strings.Join(n.asked, "")
		if from[:10] != "abcabcabca" || strings.Trim(from[10:], "ac") != "" || strings.Count(from[10:], "a") != 5 {
			t.Errorf("the pushes come from %s", from)
		}
	})
}

func TestReceiptIsLateUnlessItsNodeWasStopped(t *testing.T) {
	for what, c := range map[string]struct {
		took  time.Duration
		stops int
		want  int
	}{
		"at its deadline":         {within, 0, 0},
		"a little behind it":      {within + lateAfter, 0, 0},
		"long behind it":          {within + lateAfter + 1, 0, 1},
		"of a node that stood":    {within + time.Minute, 1, 0},
		"of a node that is quick": {time.Millisecond, 1, 0},
	} {
		n := &nodesOfMind{serving: []string{"a"}}
		n.does = func(context.Context, order) (answer, error) {
			n.mu.Lock()
			n.stopped += c.stops
			n.mu.Unlock()
			return answer{Took: c.took}, nil
		}
		l := &load{nodes: n, ledger: newLedger(nil)}
		l.push(t.Context(), "a", "alice", note{}, push.AutoAck)
		if sum, _ := l.ledger.sum(); sum.Late != c.want {
			t.Errorf("%s: %d are late, want %d", what, sum.Late, c.want)
		}
	}
}

func TestNodesThatHangHoldAFewPushesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &nodesOfMind{serving: []string{"a"}, does: func(ctx context.Context, _ order) (answer, error) {
			<-ctx.Done()
			return answer{}, ctx.Err()
		}}
		begin := time.Now()
		c := loaded(n, 29*time.Second) // shorter than patience
		if c.Pushes != maxOpen || c.Died != maxOpen || c.Open != 0 {
			t.Errorf("it comes to %+v, want %d pushes that never had a receipt", c, maxOpen)
		}
		if took := time.Since(begin); took > 29*time.Second+patience {
			t.Errorf("it ended after %v", took)
		}
	})
}

// theater is a world in memory: engines without a cluster stand for nodes, and
// the clients are the real ones.
type theater struct {
	*world
	t       *testing.T
	net     *memnet.Network
	engines map[string]*push.Engine
}

func newTheater(t *testing.T) *theater {
	t.Helper()
	w, err := newWorld(false)
	if err != nil {
		t.Fatal(err)
	}
	th := &theater{world: w, t: t, net: memnet.New(1), engines: make(map[string]*push.Engine)}
	w.devices.dial = th.net.Host("10.0.0.99").DialContext
	for _, id := range nodeIDs {
		th.begins(id)
	}
	t.Cleanup(func() {
		w.end()
		for _, e := range th.engines {
			e.Close()
		}
	})
	w.devices.begin()
	return th
}

func (th *theater) host(id string) *memnet.Host {
	return th.net.Host("10.0.0." + fmt.Sprint(id[0]-'a'+1))
}

// begins starts a node.
func (th *theater) begins(id string) {
	th.t.Helper()
	engine, err := push.New(push.Config{Authenticate: push.TrustClaims})
	if err != nil {
		th.t.Fatal(err)
	}
	listen := func() net.Listener {
		ln, err := th.host(id).Listen(0)
		if err != nil {
			th.t.Fatal(err)
		}
		return ln
	}
	pages, phones := listen(), listen()
	srv := &http.Server{Handler: engine}
	go srv.Serve(pages)
	go engine.Serve(phones)
	th.t.Cleanup(func() { srv.Close() })
	th.engines[id] = engine
	th.becomes(id, up, addresses{HTTP: pages.Addr().String(), MPush: phones.Addr().String()})
}

func (th *theater) becomes(id string, is state, at addresses) {
	th.fleet.mu.Lock()
	defer th.fleet.mu.Unlock()
	n := th.fleet.nodes[id]
	n.at = at
	th.fleet.setLocked(n, is)
}

// dies ends a node as kill -9 does.
func (th *theater) dies(id string) {
	th.becomes(id, down, addresses{})
	th.host(id).Kill()
	th.engines[id].Close()
}

// where tells which device is on which node.
func (th *theater) where() string {
	synctest.Wait()
	var all []string
	for _, d := range th.devices.view() {
		all = append(all, d.Name+"@"+d.On)
	}
	return strings.Join(all, " ")
}

// pushes has every node push to the devices it has, by itself, and compares.
func (th *theater) pushes(ack push.Ack, want int) {
	th.t.Helper()
	n := th.ledger.begin(false)
	var all push.Receipt
	for id, e := range th.engines {
		r, _ := e.PushToUser(th.t.Context(), "alice", push.Message{Event: "note", Data: note{N: n, From: id, Text: "hi"}, Ack: ack})
		all.Targets += r.Targets
		all.Deliveries = append(all.Deliveries, r.Deliveries...)
	}
	before, _ := th.ledger.sum()
	th.ledger.receipt(n, all, false)
	c, wrong := th.ledger.sum()
	if all.Targets != want || c.Deliveries["acked"]-before.Deliveries["acked"] != want || wrong != nil || c.Unacked != 0 {
		th.t.Errorf("with ack %d it comes to %+v, wrong %q, want %d acked and seen", ack, all, wrong, want)
	}
}

func TestClientsSeeWhatTheyAcknowledge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newTheater(t)
		if got := th.where(); got != "alice/browser@a alice/socketio@b alice/phone@c bob/browser@b" {
			t.Fatalf("they begin at %s", got)
		}
		th.pushes(push.AutoAck, 3)
		th.pushes(push.BizAck, 3)
		for _, d := range th.devices.view()[:3] {
			if last := d.Lines[len(d.Lines)-1]; d.Seen != 2 || !strings.Contains(last, `sees "hi" from `+d.On) {
				t.Errorf("%s saw %d, last %q", d.Name, d.Seen, last)
			}
		}
	})
}

func TestClientsGoToTheNodeWithTheFewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newTheater(t)
		th.where()
		th.dies("b")
		time.Sleep(3 * time.Second)
		if got := th.where(); got != "alice/browser@a alice/socketio@c alice/phone@c bob/browser@a" && got != "alice/browser@a alice/socketio@a alice/phone@c bob/browser@c" {
			t.Errorf("without b they are at %s", got)
		}
		th.begins("b")
		time.Sleep(time.Minute)
		if got := th.where(); strings.Contains(got, "@b") {
			t.Errorf("they do not stay: %s", got)
		}
		th.dies("c")
		time.Sleep(3 * time.Second)
		if got := th.where(); strings.Count(got, "@b") != 2 || strings.Count(got, "@a") != 2 {
			t.Errorf("without c they are at %s", got)
		}
		th.pushes(push.AutoAck, 3)
	})
}

func TestClientsWaitForANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newTheater(t)
		th.where()
		for _, id := range nodeIDs {
			th.dies(id)
		}
		time.Sleep(time.Minute)
		if got := th.where(); got != "alice/browser@ alice/socketio@ alice/phone@ bob/browser@" {
			t.Errorf("without nodes they are at %s", got)
		}
		th.begins("c")
		time.Sleep(3 * time.Second)
		if got := th.where(); strings.Count(got, "@c") != 4 {
			t.Errorf("with c alone they are at %s", got)
		}
		th.pushes(push.AutoAck, 3)
	})
}

func TestClientsComeBackFromADrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := newTheater(t)
		th.where()
		for _, id := range []string{"a", "b", "c"} {
			th.becomes(id, draining, th.fleet.nodes[id].at)
			if err := th.engines[id].Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			if got := th.where(); strings.Contains(got, "@"+id) || strings.Contains(got, "@ ") || strings.HasSuffix(got, "@") {
				t.Errorf("while %s drains they are at %s", id, got)
			}
			th.begins(id)
		}
		th.pushes(push.AutoAck, 3)
	})
}

// child is a node in this process.
type child struct {
	t     *testing.T
	at    addresses
	stdin io.Closer
	ended chan error
}

func newChild(t *testing.T, token string) *child {
	t.Helper()
	in, stdin := io.Pipe()
	stdout, out := io.Pipe()
	c := &child{t: t, stdin: stdin, ended: make(chan error, 1)}
	go func() { c.ended <- runNode(in, out) }()
	t.Cleanup(func() { stdin.Close(); stdout.Close() })
	secret := bytes.Repeat([]byte("0123456789abcdef~"), 2)
	secret[3] = '!' // which does not repeat itself
	if err := json.NewEncoder(stdin).Encode(orders{Node: "a", Token: token, Secret: secret}); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatal(err, <-c.ended)
	}
	if err := json.Unmarshal(line, &c.at); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends a request to the node.
func (c *child) ask(method, path, token, host string) (int, string) {
	c.t.Helper()
	r, err := http.NewRequest(method, "http://"+c.at.HTTP+path, strings.NewReader(`{"User":"alice","Within":1000000000,"Ack":1}`))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Host = host
	r.Header.Set("Authorization", "Bearer "+token)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 15 * time.Second}
	resp, err := client.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func (c *child) wantEnd() {
	c.t.Helper()
	select {
	case err := <-c.ended:
		if err != nil {
			c.t.Errorf("the node ended with %v", err)
		}
	case <-time.After(15 * time.Second):
		c.t.Error("the node does not end")
	}
}

func TestNodeObeysItsParentAlone(t *testing.T) {
	c := newChild(t, "the token")
	for _, route := range []string{"POST /control/push", "GET /control/situation", "POST /control/drain"} {
		method, path, _ := strings.Cut(route, " ")
		for _, token := range []string{"", "the", "the tokens", "another"} {
			if code, _ := c.ask(method, path, token, ""); code != 401 {
				t.Errorf("%s with token %q answered %d, want 401", route, token, code)
			}
		}
		if code, _ := c.ask(method, path, "the token", "evil.example"); code != 403 {
			t.Errorf("%s by another name answered %d, want 403", route, code)
		}
	}
	if code, _ := c.ask("GET", "/ws?user=alice", "", "localhost"); code != 403 {
		t.Errorf("GET /ws by another name answered %d, want 403", code)
	}
	if code, body := c.ask("POST", "/control/push", "the token", ""); code != 200 || !strings.Contains(body, `"offline":["alice"]`) {
		t.Errorf("a push to alice, who is not there, answered %d %s", code, body)
	}
	if code, body := c.ask("GET", "/control/situation", "the token", ""); code != 200 || !strings.Contains(body, `"ready":"","nodes":[{"id":"a","addr":"`+c.at.Gossip+`"`) {
		t.Errorf("its situation is %d %s", code, body)
	}
	if code, body := c.ask("GET", "/alloc", "", ""); code != 200 || strings.TrimSpace(body) != c.at.MPush {
		t.Errorf("devices are told %d %s, want %s", code, body, c.at.MPush)
	}
}

func TestNodeEndsWithItsParent(t *testing.T) {
	c := newChild(t, "token")
	c.stdin.Close()
	c.wantEnd()
}

func TestNodeEndsWhenItIsDrained(t *testing.T) {
	c := newChild(t, "token")
	if code, body := c.ask("POST", "/control/drain", "token", ""); code != 200 {
		t.Fatalf("a drain answered %d %s", code, body)
	}
	c.wantEnd()
}

// page is the page of a world whose nodes are all down.
func page(t *testing.T) *httptest.Server {
	w, err := newWorld(false)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(w.handler())
	t.Cleanup(func() { srv.Close(); w.end() })
	return srv
}

func askPage(t *testing.T, srv *httptest.Server, method, path, body string, edits ...func(*http.Request)) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, edit := range edits {
		edit(r)
	}
	resp, err := srv.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func TestPageNeedsNoNetwork(t *testing.T) {
	code, body := askPage(t, page(t), "GET", "/", "")
	if code != 200 || !strings.Contains(body, "acked but not seen") {
		t.Errorf("GET / answered %d", code)
	}
	for _, url := range regexp.MustCompile(`(src|href|url|import|fetch)\s*[=(]?\s*["'(]?(https?:)?//[^"')]*`).FindAllString(body, -1) {
		t.Errorf("the page needs the network: %s", url)
	}
}

func TestPageShowsEveryNodeAndClient(t *testing.T) {
	code, body := askPage(t, page(t), "GET", "/state", "")
	var l look
	if err := json.Unmarshal([]byte(body), &l); code != 200 || err != nil {
		t.Fatalf("GET /state answered %d %s", code, body)
	}
	if len(l.Nodes) != 3 || l.Nodes[2].ID != "c" || l.Nodes[2].Is != down || len(l.Devices) != 4 || l.Devices[3].Name != "bob/browser" || l.CanStop != canStop {
		t.Errorf("it shows %s", body)
	}
}

func TestButtonsThatCannotBeSaySo(t *testing.T) {
	srv := page(t)
	for path, want := range map[string]int{
		"/node/a/kill": 409, "/node/a/stop": 409, "/node/a/drain": 409,
		"/node/d/kill": 404, "/node/a/paint": 404, "/node/a": 404,
	} {
		if code, body := askPage(t, srv, "POST", path, ""); code != want || want == 409 && strings.TrimSpace(body) != "a is down" {
			t.Errorf("POST %s answered %d %s, want %d", path, code, body, want)
		}
	}
	for _, bad := range []string{"", "{", `{"from":"d","user":"alice","text":"hi"}`, `{"from":"a","user":"alice"}`, `{"from":"a","user":"alice","text":"hi","ack":"yes"}`, `{"text":"` + strings.Repeat("x", 16<<10) + `"}`} {
		if code, _ := askPage(t, srv, "POST", "/push", bad); code != 400 {
			t.Errorf("a push of %.40s answered %d, want 400", bad, code)
		}
	}
	if code, body := askPage(t, srv, "POST", "/push", `{"from":"a","user":"alice","text":"hi","ack":"auto"}`); code != 200 || !strings.Contains(body, "node a gave no receipt") {
		t.Errorf("a push from a node that is down answered %d %s", code, body)
	}
}

func TestPagesOfOthersCanDoNothing(t *testing.T) {
	srv := page(t)
	for _, path := range []string{"/push", "/node/a/kill"} {
		for _, foreign := range [][2]string{{"Origin", "https://evil.example"}, {"Origin", "null"}, {"Sec-Fetch-Site", "cross-site"}} {
			if code, _ := askPage(t, srv, "POST", path, "", func(r *http.Request) { r.Header.Set(foreign[0], foreign[1]) }); code != 403 {
				t.Errorf("POST %s with %s answered %d, want 403", path, foreign, code)
			}
		}
	}
	for host, want := range map[string]int{"evil.example": 403, "localhost.evil.example": 403, "192.0.2.1": 403, "localhost:80": 200, "127.0.0.1": 200, "[::1]:80": 200} {
		if code, _ := askPage(t, srv, "GET", "/state", "", func(r *http.Request) { r.Host = host }); code != want {
			t.Errorf("GET /state as %s answered %d, want %d", host, code, want)
		}
	}
}

func TestScriptIsQuietAtItsEnd(t *testing.T) {
	w, err := newWorld(false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.end()
	for _, length := range []time.Duration{shortest, 30 * time.Second, time.Hour} {
		steps, quiet := w.script(length)
		var before time.Duration
		for _, s := range steps {
			if s.at <= before || s.at >= quiet || quiet >= length {
				t.Errorf("in %v a step is at %v behind one at %v, and the quiet at %v", length, s.at, before, quiet)
			}
			before = s.at
		}
	}
}

func TestReportIsATable(t *testing.T) {
	var out bytes.Buffer
	writeReport(&out,
		[]nodeView{{ID: "a", Is: up, tally: tally{Started: 2, Killed: 1, Pushes: 101}}, {ID: "b", Is: draining, tally: tally{Started: 1, Drained: 1, Pushes: 7}}},
		[]deviceView{{Name: "alice/browser", Protocol: "push.json", Home: "a", On: "b", Lost: 1, Seen: 99}, {Name: "alice/phone", Protocol: "mpush", Home: "c"}},
		counts{Pushes: 108, Receipts: 107, Died: 1, Deliveries: map[string]int{"timeout": 2, "acked": 105}, Unacked: 3, Quiet: 20, Whole: 20}, []string{"it rains"})
	if got := out.String(); got != `
node  is        started  killed  stopped  drained  pushes made
a     up              2       1        -        -          101
b     draining        1       -        -        1            7

client         protocol   began on  is on  lost  pushes seen
alice/browser  push.json  a         b         1           99
alice/phone    mpush      c         -         -            0

pushes                                      108
  whose node was killed before the receipt    1
  whose receipt came behind its deadline      0
  in the quiet at the end                    20
  of these, acked by all three devices       20
deliveries, as the receipts say             107
  acked                                     105
  timeout                                     2
seen but not acked                            3
seen twice                                    0

WRONG: it rains
acked but not seen: 0
` {
		t.Errorf("it prints\n%s", got)
	}
}

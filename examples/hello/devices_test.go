package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/mpush"
)

// device is a client of mpush on a real socket.
type device struct {
	t      *testing.T
	nc     net.Conn
	reader mpush.Reader
	in     []byte        // read, and not yet taken by reader
	cipher *mpush.Cipher // of what comes, and of what goes unless plain
	plain  bool
}

// devicesAt is the address that the program prints for devices.
func (h *hello) devicesAt() string {
	h.t.Helper()
	return h.console.want(h.t, `^mpush devices: ([^\s,]+)`)[1]
}

// connect shakes hands as a device with this public key; nil: in plain.
func (h *hello) connect(id string, key *mpush.PublicKey) *device {
	h.t.Helper()
	nc, err := net.Dial("tcp", h.devicesAt())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(10 * time.Second))
	d := &device{t: h.t, nc: nc, reader: mpush.Reader{Max: 1 << 20}, plain: key == nil}

	secrets := make([]byte, 2*mpush.KeyLen)
	rand.Read(secrets)
	own, iv := secrets[:mpush.KeyLen], secrets[mpush.KeyLen:]
	body := (&mpush.Handshake{DeviceID: id, OSName: "Android", OSVersion: "15", ClientVersion: "1", IV: iv, ClientKey: own, MinHeartbeat: 240000, MaxHeartbeat: 240000}).Append(nil)
	flags := mpush.Flags(0)
	if key != nil {
		flags = mpush.FlagCrypto
		if body, err = key.Encrypt(body); err != nil {
			h.t.Fatal(err)
		}
	}
	if d.cipher, err = mpush.NewCipher(own, iv); err != nil {
		h.t.Fatal(err)
	}
	d.write(mpush.AppendPacket(nil, mpush.CmdHandshake, flags, 1, body))
	var ok mpush.HandshakeOK
	if err := ok.Decode(d.want(mpush.CmdHandshake).Body); err != nil {
		h.t.Fatal(err)
	}
	session := mpush.MixKey(own, ok.ServerKey)
	if d.cipher, err = mpush.NewCipher(session[:], iv); err != nil {
		h.t.Fatal(err)
	}
	return d
}

// bind logs the device in as user.
func (d *device) bind(user string) *device {
	d.t.Helper()
	body, flags := (&mpush.Bind{UserID: user}).Append(nil), mpush.Flags(0)
	if !d.plain {
		body, flags = d.cipher.Append(nil, body), mpush.FlagCrypto
	}
	d.write(mpush.AppendPacket(nil, mpush.CmdBind, flags, 2, body))
	if p := d.want(mpush.CmdOK); p.ID != 2 {
		d.t.Fatalf("BIND 2 was answered with %+v", p.Header)
	}
	return d
}

func (d *device) write(b []byte) {
	d.t.Helper()
	if _, err := d.nc.Write(b); err != nil {
		d.t.Fatal(err)
	}
}

// want reads until a packet of a command comes, and opens its body.
func (d *device) want(cmd mpush.Cmd) mpush.Packet {
	d.t.Helper()
	for {
		var p mpush.Packet
		n, err := d.reader.Next(d.in, &p)
		d.in = d.in[n:]
		switch {
		case err != nil:
			d.t.Fatal(err)
		case !p.OK:
			buf := make([]byte, 4096)
			if n, err = d.nc.Read(buf); err != nil {
				d.t.Fatalf("waiting for command %d: %v", cmd, err)
			}
			d.in = buf[:n]
		case p.Cmd == cmd:
			if p.Flags&mpush.FlagCrypto != 0 {
				if p.Body, err = d.cipher.Open(bytes.Clone(p.Body)); err != nil {
					d.t.Fatal(err)
				}
			}
			return p
		case p.Cmd != mpush.CmdPush: // the numbers of each second
			d.t.Fatalf("waiting for command %d: %+v %q", cmd, p.Header, p.Body)
		}
	}
}

// wantPush reads until this content is pushed, and acks it if that is wanted.
func (d *device) wantPush(content string) {
	d.t.Helper()
	for {
		p := d.want(mpush.CmdPush)
		if string(p.Body) != content {
			continue
		}
		if p.Flags&(mpush.FlagAutoAck|mpush.FlagBizAck) != 0 {
			d.write(mpush.AppendPacket(nil, mpush.CmdAck, 0, p.ID, nil))
		}
		return
	}
}

func stockKey(t *testing.T) *mpush.PublicKey {
	t.Helper()
	key, err := mpush.ParsePublicKey([]byte(stockPublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestStockKeyIsThatOfMPush(t *testing.T) {
	if stockPrivateKey != mpush.StockPrivateKey || stockPublicKey != mpush.StockPublicKey {
		t.Error("they differ from internal/mpush")
	}
}

func TestDeviceAndTabOfOneUserGetTheSamePush(t *testing.T) {
	h := start(t)
	phone := h.connect("phone", stockKey(t)).bind("alice")
	tab := h.open("?user=alice&device=laptop")
	var acked sync.WaitGroup
	for _, ack := range []string{"", "auto", "biz"} {
		data := fmt.Sprintf(`{"ack":%q}`, ack)
		acked.Go(func() { phone.wantPush(data) })
		acked.Go(func() {
			f := tab.wantEvent("note")
			if string(f.Data) != data {
				t.Errorf("with ack %q the tab got %s", ack, f.Data)
			}
			if ack != "" {
				tab.send(map[string]any{"ack": f.ID})
			}
		})
		code, r := h.push("/push?user=alice&event=note&ack="+ack, data)
		acked.Wait()
		want := push.Sent
		if ack != "" {
			want = push.Acked
		}
		rows := make(map[string]push.Delivery)
		for _, d := range r.Deliveries {
			rows[d.DeviceID] = d
		}
		if code != 200 || r.Targets != 2 || len(rows) != 2 {
			t.Fatalf("with ack %q it answered %d %+v, want two rows", ack, code, r)
		}
		for id, protocol := range map[string]string{"phone": "mpush", "laptop": "push.json"} {
			if d := rows[id]; d.Protocol != protocol || d.Status != want || d.UserID != "alice" {
				t.Errorf("with ack %q the row of %s is %+v, want %s, %s", ack, id, d, protocol, want)
			}
		}
	}
}

func TestEveryEventOfADeviceIsALine(t *testing.T) {
	h := start(t)
	phone := h.connect("phone", stockKey(t)).bind("alice")
	conn := h.console.want(t, `connected +([0-9a-f]{16}) from 127\.0\.0\.1:\d+, mpush$`)[1]
	h.console.want(t, `login +`+conn+` is "alice" on device "phone"$`)
	phone.bind("bob") // the same connection is another user's now
	h.console.want(t, `login +`+conn+` is "bob" on device "phone"$`)
	phone.nc.Close()
	h.console.want(t, `disconnected +`+conn+`, "bob": lost$`)
}

// say sends a line and, for a line that is taken, waits for its ACK.
func (d *device) say(id int32, line string, taken bool) {
	d.t.Helper()
	body, flags := []byte(line), mpush.FlagBizAck
	if !d.plain {
		body, flags = d.cipher.Append(nil, body), flags|mpush.FlagCrypto
	}
	d.write(mpush.AppendPacket(nil, mpush.CmdPush, flags, id, body))
	if !taken {
		return
	}
	if p := d.want(mpush.CmdAck); p.ID != id {
		d.t.Fatalf("the ACK is of %d, want %d", p.ID, id)
	}
}

func TestWhatADeviceTypesIsSaidAndAcknowledged(t *testing.T) {
	h := start(t)
	phone := h.connect("phone", stockKey(t)).bind("alice")
	tab := h.open("?user=bob")
	id := int32(0)
	for _, line := range []string{"hi from the phone", "{", `"quoted"`, strings.Repeat("é", 250)} {
		// What is no line, or too long for one, is neither said nor acknowledged.
		for _, bad := range []string{"", "\xff\xfe", strings.Repeat("x", 501)} {
			id++
			phone.say(id, bad, false)
		}
		id++
		phone.say(id, line, true)
		var got said
		if err := json.Unmarshal(tab.wantEvent("said").Data, &got); err != nil || got != (said{"alice", line}) {
			t.Errorf("bob read %+v, want %q of alice", got, line)
		}
	}
}

func TestUnknownEventsAreRefused(t *testing.T) {
	h := start(t)
	alice := h.open("?user=alice")
	alice.send(map[string]any{"event": "shout", "data": "hi", "id": 7})
	if f := alice.want("the answer", func(f frame) bool { return f.Ack == 7 }); f.Error != "unknown event" {
		t.Errorf("the answer is %+v", f)
	}
}

func TestAllocatorTellsTheDevicesAddress(t *testing.T) {
	h := start(t)
	code, headers, body := h.ask("GET", "/alloc", "")
	if code != 200 || body != h.devicesAt() || !strings.HasPrefix(headers.Get("Content-Type"), "text/plain") {
		t.Errorf("GET /alloc answered %d %s %q, want %s and nothing else", code, headers.Get("Content-Type"), body, h.devicesAt())
	}
	if told := h.console.want(t, `^mpush devices: .*, which they learn from (\S+)$`)[1]; told != h.url+"/alloc" {
		t.Errorf("they are told to ask %s, want %s/alloc", told, h.url)
	}
	if code, _, _ := h.ask("GET", "/alloc", "", host("evil.example")); code != 403 {
		t.Errorf("by a foreign name, GET /alloc answered %d, want 403", code)
	}
	if code, _, _ := h.ask("POST", "/alloc", ""); code != 405 {
		t.Errorf("POST /alloc answered %d, want 405", code)
	}
	if code, _, _ := h.ask("POST", "/alloc", "", header("Origin", "https://evil.example")); code != 403 {
		t.Errorf("POST /alloc from another page answered %d, want 403", code)
	}
}

// wantOnPage looks for text in the page.
func (h *hello) wantOnPage(texts ...string) (body string) {
	h.t.Helper()
	_, _, body = h.ask("GET", "/", "")
	for _, text := range texts {
		if !strings.Contains(body, html.EscapeString(text)) && !strings.Contains(body, text) {
			h.t.Errorf("the page does not say %q", text)
		}
	}
	return body
}

func TestPageSaysHowADeviceConnects(t *testing.T) {
	h := start(t)
	h.wantOnPage(">"+h.url+"/alloc<", ">"+h.devicesAt()+"<", "go engine.Serve(s.devices)", stockPublicKey, "published")
	h.console.want(t, `^CAREFUL: .*stock key.*public knowledge.*-mpush-key`)

	// The allocator is where the page was asked for.
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(h.url, "http://"))
	if _, _, body := h.ask("GET", "/", "", host("localhost:"+port)); !strings.Contains(body, ">http://localhost:"+port+"/alloc<") {
		t.Error("asked as localhost, the page names another allocator")
	}
}

func TestWithoutDevicesThereIsNoDoor(t *testing.T) {
	for _, off := range []string{"off", ""} {
		h := start(t, "-mpush", off)
		if code, _, _ := h.ask("GET", "/alloc", ""); code != 503 {
			t.Errorf("with -mpush %q, GET /alloc answered %d, want 503", off, code)
		}
		if body := h.wantOnPage("-mpush off"); strings.Contains(body, `id="address"`) || strings.Contains(body, stockPublicKey) {
			t.Error("the page tells where devices connect")
		}
		if code, _ := h.push("/push?user=carol", "1"); code != 404 {
			t.Errorf("a push to carol, who is not there, answered %d, want 404", code)
		}
		h.stop()
		for _, word := range []string{"mpush", "CAREFUL"} {
			if strings.Contains(h.console.String(), word) {
				t.Errorf("%s was printed:\n%s", word, h.console)
			}
		}
	}
}

func TestTakenDevicePortIsReplacedUnlessGiven(t *testing.T) {
	taken, err := net.Listen("tcp", defaultDevices)
	if err == nil { // or another program has it, which is as good
		defer taken.Close()
	}
	s, err := newServer([]string{"-http", "127.0.0.1:0"}, newConsole())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if len(s.notes) != 1 || s.notes[0] != defaultDevices+" is taken; mpush devices get a free port instead." {
		t.Errorf("it says %q", s.notes)
	}
	if at := s.devices.Addr().(*net.TCPAddr); !at.IP.IsLoopback() || at.String() == defaultDevices || s.mpush.Advertise != at.String() {
		t.Errorf("it listens on %s and tells devices %q", at, s.mpush.Advertise)
	}
	if err := run(t.Context(), []string{"-http", "127.0.0.1:0", "-mpush", defaultDevices}, newConsole()); err == nil || !strings.Contains(err.Error(), "-mpush") || !strings.Contains(err.Error(), defaultDevices) {
		t.Errorf("-mpush with a taken port ended with %v", err)
	}
}

func TestDevicesOfOtherMachinesNeedTrust(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0"} {
		args := []string{"-http", "127.0.0.1:0", "-mpush", addr}
		err := run(t.Context(), args, newConsole())
		if err == nil || !strings.Contains(err.Error(), "-trust") || !strings.Contains(err.Error(), "other machines") || !strings.Contains(err.Error(), "public knowledge") {
			t.Errorf("-mpush %s ended with %v, want a sentence that says why, and that the key is known, and names -trust", addr, err)
		}
		if err := run(t.Context(), append(args, "-mpush-key", "none"), newConsole()); err == nil || !strings.Contains(err.Error(), "-trust") || strings.Contains(err.Error(), "public knowledge") {
			t.Errorf("-mpush %s without a key ended with %v", addr, err)
		}
	}
	h := start(t, "-mpush", "0.0.0.0:0", "-trust")
	h.console.want(t, `^CAREFUL: .*public knowledge`)
	_, _, told := h.ask("GET", "/alloc", "")
	if name, _, err := net.SplitHostPort(told); err != nil || net.ParseIP(name) == nil || net.ParseIP(name).IsUnspecified() {
		t.Errorf("GET /alloc answered %q, want an address that can be dialled", told)
	}
	h.connect("phone", stockKey(t)).bind("alice")
}

func TestIPv6IsNotToldToDevices(t *testing.T) {
	if probe, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("this machine has no IPv6: ", err)
	} else {
		probe.Close()
	}
	h := start(t, "-mpush", "[::1]:0")
	if code, _, _ := h.ask("GET", "/alloc", ""); code != 503 {
		t.Errorf("GET /alloc answered %d, want 503: mpush's clients cut host:port at the first colon", code)
	}
	if body := h.wantOnPage(h.devicesAt()); strings.Contains(body, `id="alloc"`) {
		t.Error("the page offers the allocator")
	}
}

func TestDevicesConnectWithoutAKey(t *testing.T) {
	h := start(t, "-mpush-key", "none")
	phone := h.connect("phone", nil).bind("alice")
	h.push("/push?user=alice", `"in plain"`)
	phone.wantPush(`"in plain"`)
	if body := h.wantOnPage("without encryption"); strings.Contains(body, `id="key"`) {
		t.Error("the page shows a key")
	}
	if strings.Contains(h.console.String(), "stock") {
		t.Errorf("it warns of the stock key:\n%s", h.console)
	}
}

func TestDevicesConnectWithAKeyFromAFile(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	half, err := mpush.ParsePublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	for name, text := range map[string][]byte{
		"PEM":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"base64": []byte(base64.StdEncoding.EncodeToString(der) + "\n"),
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		h := start(t, "-mpush-key", file)
		phone := h.connect("phone", half).bind("alice")
		h.push("/push?user=alice", `"for `+name+`"`)
		phone.wantPush(`"for ` + name + `"`)
		if body := h.wantOnPage("the file that -mpush-key named"); strings.Contains(body, stockPublicKey) || strings.Contains(body, file) {
			t.Errorf("with a key in %s, the page shows the stock key or the file", name)
		}
		if strings.Contains(h.console.String(), "stock") {
			t.Errorf("it warns of the stock key:\n%s", h.console)
		}
	}
}

func TestWrongKeyFilesSayWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	small, _ := base64.StdEncoding.DecodeString(stockPublicKey)
	for _, c := range []struct {
		name string
		text []byte // nil: there is no such file
		want []string
	}{
		{"nothing", nil, []string{"-mpush-key", "stock or none", "nothing"}},
		{"empty", []byte(" \n"), []string{"-mpush-key", "empty"}},
		{"public", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: small}), []string{"PrivateKey", "want an RSA PRIVATE KEY"}},
		{"public64", []byte(stockPublicKey), []string{"PrivateKey", "public key, want the private one"}},
		{"text", []byte("What is this?\n"), []string{"PrivateKey", "neither PEM nor base64"}},
	} {
		file := filepath.Join(dir, c.name)
		if c.text != nil {
			if err := os.WriteFile(file, c.text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := run(t.Context(), []string{"-http", "127.0.0.1:0", "-mpush", "127.0.0.1:0", "-mpush-key", file}, newConsole())
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: it ended with %v, want %q in it", c.name, err, want)
			}
		}
	}
	if err := run(t.Context(), []string{"-http", "127.0.0.1:0", "-mpush", "127.0.0.1:0", "-mpush-key", dir}, newConsole()); err == nil || !strings.Contains(err.Error(), "-mpush-key") {
		t.Errorf("with a directory it ended with %v", err)
	}
}

func TestEndClosesDevices(t *testing.T) {
	h := start(t)
	phone := h.connect("phone", stockKey(t)).bind("alice")
	h.console.want(t, `login .* on device "phone"$`) // it is answered before OnConnect runs
	at := h.devicesAt()
	go h.stop()
	if _, err := io.Copy(io.Discard, phone.nc); err != nil {
		t.Errorf("the device's connection ended with %v, want its end", err)
	}
	phone.nc.Close()
	h.stop()
	h.console.want(t, `disconnected .* "alice": shutdown$`)
	if nc, err := net.Dial("tcp", at); err == nil {
		nc.Close()
		t.Error("it still takes devices")
	}
}

func TestAnUnservedDoorIsClosed(t *testing.T) {
	s, err := newServer([]string{"-http", "127.0.0.1:0", "-mpush", "127.0.0.1:0"}, newConsole())
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	for _, ln := range []net.Listener{s.ln, s.devices} {
		if nc, err := net.Dial("tcp", ln.Addr().String()); err == nil {
			nc.Close()
			t.Errorf("%s is still open", ln.Addr())
		}
	}
}

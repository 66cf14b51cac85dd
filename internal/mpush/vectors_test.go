package mpush

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// vectors are what the classes of the Java server and the Java client make,
// and frames that passed between the two. Not looked at are the tokens of the
// Java server, which are none of ours.
type vectors struct {
	Cfg struct {
		ClientKey  hexBytes `json:"client_key"`
		ServerKey  hexBytes `json:"server_key"`
		IV         hexBytes `json:"iv"`
		SessionKey hexBytes `json:"session_key"`
		Private    string   `json:"rsa_private_b64_pkcs8_stock"`
		Public     string   `json:"rsa_public_b64_spki"`
		N          string   `json:"rsa_n_hex"`
		D          string   `json:"rsa_d_hex"`
		E          int      `json:"rsa_e"`
		WellFormed string   `json:"rsa_private_b64_pkcs8_wellformed"`
		WellPublic string   `json:"rsa_public_b64_wellformed"`
	}
	ClientFrames []frameVector `json:"client_frames"`
	ServerFrames []frameVector `json:"server_frames"`
	Checksums    []struct {
		Body      hexBytes `json:"body_hex"`
		Cmd       Cmd
		CC        uint16 `json:"cc_in_header"`
		Flags     Flags
		SessionID int32
		CheckCode uint16 `json:"calcCheckCode"`
		LRC       int8   `json:"calcLrc_with_cc_in_header"`
		LRCWithCC int8   `json:"calcLrc_with_cc_set_to_checkCode"`
	}
	MixKey []struct{ ClientKey, ServerKey, SessionKey hexBytes } `json:"mix_key"`
	AES    []struct{ Plain, Cipher hexBytes }                    `json:"aes_cbc_pkcs5"`
	Prefix []struct {
		Len, Total int
		Prefix     hexBytes `json:"prefix_hex"`
	} `json:"bytes_field_prefix"`
	JSON []struct{ Name, Text string } `json:"websocket_json"`
	Real struct {
		ClientKey, IV, ServerKey, SessionKey hexBytes
		Frames                               []struct {
			Name  string
			Frame hexBytes `json:"frame_hex"`
		}
	} `json:"real_session_excerpt"`
}

type frameVector struct {
	Name      string
	Dir       string
	Cmd       Cmd
	Flags     Flags
	SessionID int32
	Cipher    string
	Fields    map[string]any
	Plain     hexBytes `json:"body_plain_hex"`
	Frame     hexBytes `json:"frame_hex"`
	BodyLen   int      `json:"body_len"`
}

type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode(nil, text)
	return err
}

func loadVectors(t testing.TB) *vectors {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	v := new(vectors)
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
	return v
}

func mustCipher(t testing.TB, key, iv []byte) *Cipher {
	t.Helper()
	c, err := NewCipher(key, iv)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustPrivate(t testing.TB, b string) *PrivateKey {
	t.Helper()
	k, err := ParsePrivateKey([]byte(b))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// aBody is what every struct of section 4 has.
type aBody interface {
	Decode([]byte) error
	Append([]byte) []byte
}

// body is the struct that the vector's fields say.
func (v *frameVector) body(cfg *vectors) aBody {
	str := func(key string) string { s, _ := v.Fields[key].(string); return s }
	num := func(key string) int64 { return int64(v.Fields[key].(float64)) }
	fromClient := v.Dir == "C->S"
	switch {
	case v.Cmd == CmdHandshake && fromClient:
		return &Handshake{
			DeviceID: str("deviceId"), OSName: str("osName"), OSVersion: str("osVersion"), ClientVersion: str("clientVersion"),
			IV: cfg.Cfg.IV, ClientKey: cfg.Cfg.ClientKey,
			MinHeartbeat: int32(num("minHeartbeat")), MaxHeartbeat: int32(num("maxHeartbeat")), Timestamp: num("timestamp"),
		}
	case v.Cmd == CmdHandshake:
		return &HandshakeOK{cfg.Cfg.ServerKey, int32(num("heartbeat")), str("sessionId"), num("expireTime")}
	case v.Cmd == CmdFastConnect && fromClient:
		return &FastConnect{str("sessionId"), str("deviceId"), int32(num("minHeartbeat")), int32(num("maxHeartbeat"))}
	case v.Cmd == CmdFastConnect:
		return &FastConnectOK{int32(num("heartbeat"))}
	case v.Cmd == CmdBind, v.Cmd == CmdUnbind:
		return &Bind{str("userId"), str("data"), str("tags")}
	case v.Cmd == CmdOK:
		return &OK{Cmd(num("cmd")), int8(num("code")), str("data")}
	case v.Cmd == CmdError:
		return &Error{Cmd(num("cmd")), int8(num("code")), str("reason"), str("data")}
	case v.Cmd == CmdKick:
		return &Kick{str("deviceId"), str("userId")}
	case v.Cmd == CmdHTTPProxy && fromClient:
		return &ProxyRequest{uint8(num("method")), str("uri"), str("headers"), orNil(str("body"))}
	case v.Cmd == CmdHTTPProxy:
		return &ProxyResponse{int32(num("statusCode")), str("reasonPhrase"), str("headers"), orNil(str("body"))}
	case v.Cmd == CmdGatewayPush:
		return &GatewayPush{
			str("userId"), int32(num("clientType")), int32(num("timeout")), orNil(str("content_utf8")),
			str("taskId"), str("tags"), str("condition"),
		}
	case v.Cmd == CmdGatewayKick:
		return &GatewayKick{str("userId"), str("deviceId"), str("connId"), int32(num("clientType")), str("targetServer"), int32(num("targetPort"))}
	case v.Cmd == CmdPush && v.Fields["content"] == nil:
		return &rawBody{[]byte(str("content_utf8"))}
	case v.Cmd == CmdPush:
		var n int
		if _, err := fmt.Sscanf(str("content"), "%d bytes: byte i = 'a' + i%%26", &n); err != nil {
			panic(err)
		}
		content := make([]byte, n)
		for i := range content {
			content[i] = 'a' + byte(i%26)
		}
		return &rawBody{content}
	case v.Cmd == CmdAck:
		return new(rawBody)
	}
	return nil
}

func orNil(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// rawBody is a body without a structure.
type rawBody struct{ b []byte }

func (r *rawBody) Decode(b []byte) error       { r.b = append([]byte(nil), b...); return nil }
func (r *rawBody) Append(dst []byte) []byte    { return append(dst, r.b...) }
func newLike(b aBody) aBody                    { return reflect.New(reflect.TypeOf(b).Elem()).Interface().(aBody) }
func (v *vectors) cipher(t testing.TB) *Cipher { return mustCipher(t, v.Cfg.SessionKey, v.Cfg.IV) }

func TestFramesOfTheJavaClassesReadAndWriteTheSame(t *testing.T) {
	vec := loadVectors(t)
	stock := mustPrivate(t, StockPrivateKey)
	for _, v := range append(vec.ClientFrames, vec.ServerFrames...) {
		t.Run(v.Name, func(t *testing.T) {
			if v.Frame == nil { // this one says only that 1024 bytes are not compressed
				if got := SealedLen(1024); got != v.BodyLen {
					t.Fatalf("SealedLen(1024) = %d, want %d", got, v.BodyLen)
				}
				return
			}
			r := Reader{Max: 64 << 10}
			var p Packet
			n, err := r.Next(v.Frame, &p)
			if err != nil || n != len(v.Frame) || !p.OK {
				t.Fatalf("Next: %d of %d bytes, %v", n, len(v.Frame), err)
			}
			if v.Name == "heartbeat" {
				if !p.Beat {
					t.Fatal("it is no Beat")
				}
				return
			}
			want := Header{Len: int32(len(v.Frame) - HeaderLen), Cmd: v.Cmd, Flags: v.Flags, ID: v.SessionID}
			if p.Header != want || p.Beat {
				t.Fatalf("header %+v, want %+v", p.Header, want)
			}
			if got := AppendPacket(nil, v.Cmd, v.Flags, v.SessionID, p.Body); !bytes.Equal(got, v.Frame) {
				t.Fatalf("AppendPacket gives\n%x, want\n%x", got, v.Frame)
			}

			// From the wire to the fields.
			var c *Cipher
			sealed := bytes.Clone(p.Body)
			plain := bytes.Clone(p.Body)
			switch {
			case strings.HasPrefix(v.Cipher, "RSA"):
				plain = stock.Decrypt(plain)
			case strings.Contains(v.Cipher, "AES(cfg.client_key"):
				c = mustCipher(t, vec.Cfg.ClientKey, vec.Cfg.IV)
			case strings.Contains(v.Cipher, "AES(cfg.session_key"):
				c = vec.cipher(t)
			}
			if c != nil {
				if plain, err = c.Open(plain); err != nil {
					t.Fatal(err)
				}
			}
			packed := bytes.Clone(plain)
			if v.Flags&FlagCompress != 0 {
				if plain, err = Inflate(plain, len(v.Plain)); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(plain, v.Plain) {
				t.Fatalf("plain body\n%x, want\n%x", plain, v.Plain)
			}
			wantBody := v.body(vec)
			got := newLike(wantBody)
			if err := got.Decode(plain); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, wantBody) {
				t.Fatalf("decoded\n%+v, want\n%+v", got, wantBody)
			}

			// And back.
			if got := wantBody.Append(nil); !bytes.Equal(got, v.Plain) {
				t.Fatalf("Append gives\n%x, want\n%x", got, v.Plain)
			}
			if v.Flags&FlagCompress != 0 {
				again, err := Inflate(AppendDeflate(nil, v.Plain), len(v.Plain))
				if err != nil || !bytes.Equal(again, v.Plain) {
					t.Fatalf("deflated and inflated: %v", err)
				}
			}
			if c != nil {
				if got := c.Append(nil, packed); !bytes.Equal(got, sealed) {
					t.Fatalf("encrypted\n%x, want\n%x", got, sealed)
				}
			}
			if strings.HasPrefix(v.Cipher, "RSA") {
				body, err := stock.Public().Encrypt(v.Plain)
				if err != nil || len(body) != len(sealed) || !bytes.Equal(stock.Decrypt(body), v.Plain) {
					t.Fatalf("encrypted to %d bytes, want %d: %v", len(body), len(sealed), err)
				}
			}
		})
	}
}

func TestChecksumsOfTheJavaClasses(t *testing.T) {
	for _, c := range loadVectors(t).Checksums {
		if got := CheckCode(c.Body); got != c.CheckCode {
			t.Errorf("%x: check code %d, want %d", c.Body, got, c.CheckCode)
		}
		h := Header{Len: int32(len(c.Body)), Cmd: c.Cmd, CC: c.CC, Flags: c.Flags, ID: c.SessionID}
		if got := int8(h.CalcLRC()); got != c.LRC {
			t.Errorf("%+v: LRC %d, want %d", h, got, c.LRC)
		}
		h.CC = c.CheckCode
		if got := int8(h.CalcLRC()); got != c.LRCWithCC {
			t.Errorf("%+v: LRC %d, want %d", h, got, c.LRCWithCC)
		}
	}
}

func TestMixedKeysOfTheJavaClasses(t *testing.T) {
	for _, m := range loadVectors(t).MixKey {
		if got := MixKey(m.ClientKey, m.ServerKey); !bytes.Equal(got[:], m.SessionKey) {
			t.Errorf("%x and %x: %x, want %x", m.ClientKey, m.ServerKey, got, m.SessionKey)
		}
	}
}

func TestCipherOfTheJavaClasses(t *testing.T) {
	v := loadVectors(t)
	c := v.cipher(t)
	for _, a := range v.AES {
		if got := c.Append(nil, a.Plain); !bytes.Equal(got, a.Cipher) {
			t.Errorf("%q: %x, want %x", a.Plain, got, a.Cipher)
		}
		if got, err := c.Open(a.Cipher); err != nil || !bytes.Equal(got, a.Plain) {
			t.Errorf("%q: opened %q, %v", a.Plain, got, err)
		}
	}
}

func TestFieldLengthsOfTheJavaClasses(t *testing.T) {
	for _, p := range loadVectors(t).Prefix {
		in := bytes.Repeat([]byte{7}, p.Len)
		b := appendField(nil, in)
		if len(b) != p.Total || !bytes.HasPrefix(b, p.Prefix) || !bytes.Equal(b[len(p.Prefix):], in) {
			t.Errorf("%d: %d bytes beginning with %.6x, want %d with %x", p.Len, len(b), b, p.Total, p.Prefix)
		}
		f := fields{rest: b}
		if got := f.bytes(); f.bad || len(f.rest) != 0 || !bytes.Equal(got, in) || (got == nil) != (p.Len == 0) {
			t.Errorf("%d: read back as %d bytes, %d left", p.Len, len(got), len(f.rest))
		}
	}
}

func TestStockKeysAreThePublishedOnes(t *testing.T) {
	v := loadVectors(t)
	if StockPrivateKey != v.Cfg.Private || StockPublicKey != v.Cfg.Public {
		t.Fatal("the constants differ")
	}
	k := mustPrivate(t, StockPrivateKey)
	if !k.Stock() || k.Bits() != 1024 || k.key.N.Text(16) != v.Cfg.N || k.key.D.Text(16) != v.Cfg.D || k.key.E != v.Cfg.E {
		t.Errorf("stock %v, %d bits, exponent %d", k.Stock(), k.Bits(), k.key.E)
	}
	well := mustPrivate(t, v.Cfg.WellFormed)
	if well.Stock() || well.Bits() != 1024 || len(well.key.Primes) != 2 {
		t.Errorf("stock %v, %d bits, %d primes", well.Stock(), well.Bits(), len(well.key.Primes))
	}
	public, err := ParsePublicKey([]byte(v.Cfg.WellPublic))
	if err != nil {
		t.Fatal(err)
	}
	body, err := public.Encrypt([]byte("fits"))
	if err != nil || string(well.Decrypt(body)) != "fits" {
		t.Errorf("the well-formed pair does not fit: %v", err)
	}
}

func TestJSONOfTheJavaClasses(t *testing.T) {
	push := func(content string, flags Flags, id int32) []byte {
		b, ok := AppendPushJSON(nil, flags, id, content)
		if !ok {
			t.Errorf("%q is refused", content)
		}
		return b
	}
	made := map[string][]byte{
		"handshake_ok":        AppendJSON(nil, CmdHandshake, 0, 1),
		"ok bind":             (&OK{Cmd: CmdBind, Data: "bind success"}).AppendJSON(nil, 2),
		"error not handshake": (&Error{Cmd: CmdBind, Reason: "not handshake"}).AppendJSON(nil, 2),
		"error unsupported":   (&Error{Cmd: CmdLogin, Code: CodeUnsupported, Reason: "unsupported command"}).AppendJSON(nil, 2),
		"push":                push(`hello 世界 "q"`, 0, 7),
		"ack":                 AppendJSON(nil, CmdAck, 0, 7),
		"kick":                (&Kick{"d1", "u1"}).AppendJSON(nil),
		"push auto_ack":       push("x", FlagAutoAck, 8),
	}
	for _, v := range loadVectors(t).JSON {
		if got := string(made[v.Name]); got != v.Text {
			t.Errorf("%s:\n%s, want\n%s", v.Name, got, v.Text)
		}
		p, err := ParseJSON([]byte(v.Text))
		if err != nil || !p.HasFlags {
			t.Errorf("%s: %+v, %v", v.Name, p, err)
			continue
		}
		b := append([]byte(nil), `{`...)
		if p.Body != nil {
			b = append(append(append(b, `"body":`...), p.Body...), ',')
		}
		var keys map[string]any
		json.Unmarshal(p.Body, &keys)
		if got := string(appendTail(b, len(keys), Cmd(p.Cmd), Flags(p.Flags), p.ID)); got != v.Text {
			t.Errorf("%s: parsed and put together again:\n%s, want\n%s", v.Name, got, v.Text)
		}
	}
}

func TestARealSessionReads(t *testing.T) {
	s := loadVectors(t).Real
	mixed := MixKey(s.ClientKey, s.ServerKey)
	if !bytes.Equal(mixed[:], s.SessionKey) {
		t.Fatalf("session key %x, want %x", mixed, s.SessionKey)
	}
	first, session := mustCipher(t, s.ClientKey, s.IV), mustCipher(t, mixed[:], s.IV)
	alphabet := []byte(strings.Repeat("abcdefghijklmnopqrstuvwxyz", 2000/26+1)[:2000])
	want := []struct {
		name  string
		cmd   Cmd
		flags Flags
		id    int32
		body  aBody
	}{
		{"handshake", CmdHandshake, 1, 1, &Handshake{DeviceID: "devA", OSName: "android", OSVersion: "6.0", ClientVersion: "2.0", IV: s.IV, ClientKey: s.ClientKey, MinHeartbeat: 240000, MaxHeartbeat: 240000}},
		{"handshake_ok", CmdHandshake, 1, 1, &HandshakeOK{s.ServerKey, 180000, "868b3431564a2e7c1530733e67190501", 1795390804507}},
		{"bind", CmdBind, 1, 2, &Bind{UserID: "u1", Tags: "t1,t2"}},
		{"ok", CmdOK, 0, 2, &OK{Cmd: CmdBind, Data: "bind success"}},
		{"push no_ack 'no-ack'", CmdPush, 1, 6, &rawBody{[]byte("no-ack")}},
		{"push auto_ack 'auto-ack'", CmdPush, 9, 8, &rawBody{[]byte("auto-ack")}},
		{"ack", CmdAck, 0, 8, &rawBody{}},
		{"push biz_ack 'biz-ack'", CmdPush, 5, 10, &rawBody{[]byte("biz-ack")}},
		{"client push compressed 2000", CmdPush, 11, 5, &rawBody{alphabet}},
		{"http response 502 plain", CmdHTTPProxy, 0, 9, &ProxyResponse{Status: 502, Reason: "Bad Gateway"}},
		{"unbind", CmdUnbind, 1, 11, &Bind{UserID: "u1"}},
		{"ok unbind", CmdOK, 0, 11, &OK{Cmd: CmdUnbind, Data: "unbind success"}},
	}
	if len(s.Frames) != len(want) {
		t.Fatalf("%d frames, want %d", len(s.Frames), len(want))
	}
	var stream []byte
	for i, f := range s.Frames {
		if f.Name != want[i].name {
			t.Fatalf("frame %d is %q, want %q", i, f.Name, want[i].name)
		}
		stream = append(stream, f.Frame...)
	}
	r := Reader{Max: 10240}
	var p Packet
	for i, w := range want {
		n, err := r.Next(stream, &p)
		if err != nil || !p.OK || p.Cmd != w.cmd || p.Flags != w.flags || p.ID != w.id {
			t.Fatalf("%s: %+v, %v", w.name, p.Header, err)
		}
		stream = stream[n:]
		body := p.Body
		switch {
		case p.Flags&FlagCrypto == 0:
		case i == 0:
			body = mustPrivate(t, StockPrivateKey).Decrypt(body)
		case i == 1:
			body, err = first.Open(body)
		default:
			body, err = session.Open(body)
		}
		if err == nil && p.Flags&FlagCompress != 0 {
			body, err = Inflate(body, 1<<20)
		}
		if err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
		got := newLike(w.body)
		if err := got.Decode(body); err != nil || !reflect.DeepEqual(got, w.body) {
			t.Errorf("%s: %+v, %v; want %+v", w.name, got, err, w.body)
		}
		if back := w.body.Append(nil); !bytes.Equal(back, body) {
			t.Errorf("%s: appended as %x, want %x", w.name, back, body)
		}
	}
}

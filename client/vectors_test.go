package client

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push/internal/mpush"
)

// vectors are frames that the classes of the Java server and the Java client
// make, of which this package writes the one side's and reads the other's.
type vectors struct {
	Cfg struct {
		IV         hexBytes
		SessionKey hexBytes `json:"session_key"`
	}
	ClientFrames []vector `json:"client_frames"`
	ServerFrames []vector `json:"server_frames"`
}

type vector struct {
	Name      string
	Cmd       mpush.Cmd
	Flags     mpush.Flags
	SessionID int32
	Cipher    string
	Plain     hexBytes `json:"body_plain_hex"`
	Frame     hexBytes `json:"frame_hex"`
}

type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.AppendDecode(nil, text)
	return err
}

func loadVectors(t *testing.T) (*vectors, *mpush.Cipher) {
	t.Helper()
	text, err := os.ReadFile("../internal/mpush/testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	v := new(vectors)
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatal(err)
	}
	c, err := mpush.NewCipher(v.Cfg.SessionKey, v.Cfg.IV)
	if err != nil {
		t.Fatal(err)
	}
	return v, c
}

func TestTheClientWritesTheFramesOfTheJavaClient(t *testing.T) {
	v, cipher := loadVectors(t)
	plain, err := New(Config{Addrs: []string{"a:1"}, DeviceID: "d"})
	if err != nil {
		t.Fatal(err)
	}
	keyed, err := New(Config{Addrs: []string{"a:1"}, DeviceID: "d", PublicKey: []byte(mpush.StockPublicKey)})
	if err != nil {
		t.Fatal(err)
	}
	written := 0
	for _, f := range v.ClientFrames {
		if f.Frame == nil || strings.HasPrefix(f.Cipher, "RSA") || f.Cmd == mpush.CmdHandshake {
			continue
		}
		cn := &conn{c: plain, cipher: cipher}
		if f.Flags&mpush.FlagCrypto != 0 {
			cn.c = keyed
		}
		p := &call{cmd: f.Cmd, id: f.SessionID, body: f.Plain, flags: f.Flags & (mpush.FlagAutoAck | mpush.FlagBizAck)}
		if f.Name == "heartbeat" {
			p = &call{cmd: mpush.CmdHeartbeat}
		}
		got := cn.appendCall(nil, p)
		if f.Flags&mpush.FlagCompress != 0 { // two zlibs may differ in the bytes
			h := mpush.ParseHeader(got)
			body, err := cipher.Open(bytes.Clone(got[mpush.HeaderLen:]))
			if err == nil {
				body, err = mpush.Inflate(body, len(f.Plain))
			}
			if err != nil || !bytes.Equal(body, f.Plain) || h.Flags != f.Flags || h.Cmd != f.Cmd || h.ID != f.SessionID {
				t.Errorf("%s: header %+v, %v", f.Name, h, err)
			}
		} else if !bytes.Equal(got, f.Frame) {
			t.Errorf("%s:\n%x, want\n%x", f.Name, got, f.Frame)
		}
		written++
	}
	if written < 5 {
		t.Errorf("%d frames were written", written)
	}
}

func TestTheClientReadsTheFramesOfTheJavaServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, cipher := loadVectors(t)
		f := newFake(t)
		store := new(MemoryStorage)
		stored := session{token: "t", expires: time.Now().Add(time.Hour), cipher: cipher}
		store.SaveSession(stored.String())
		cfg := f.config()
		cfg.Storage, cfg.UserID = store, ""
		s := starts(t, cfg)
		p := f.accepts()
		ask := p.gets(mpush.CmdFastConnect)
		read := 0
		for _, frame := range v.ServerFrames { // its own heartbeat, and the id of ours
			if frame.Cmd == mpush.CmdFastConnect {
				answer := bytes.Clone(frame.Frame)
				copy(answer[8:12], []byte{byte(ask.ID >> 24), byte(ask.ID >> 16), byte(ask.ID >> 8), byte(ask.ID)})
				p.Write(answer)
				read++
				break
			}
		}
		s.wants("connected")
		time.Sleep(time.Millisecond)
		s.mu.Lock()
		if len(s.told) != 1 || !strings.HasPrefix(s.told[0], "handshake ") {
			t.Fatalf("told %q, reasons %v", s.told, s.reasons)
		}
		s.told = nil
		s.mu.Unlock()
		for _, frame := range v.ServerFrames {
			sealed := strings.Contains(frame.Cipher, "AES(cfg.session_key")
			if frame.Frame == nil || frame.Cmd == mpush.CmdHandshake || frame.Cmd == mpush.CmdGatewayPush || frame.Cmd == mpush.CmdGatewayKick {
				continue
			}
			if frame.Cmd == mpush.CmdPush && !sealed && len(frame.Plain) > 0 {
				continue // a gateway's
			}
			p.Write(frame.Frame)
			read++
			if frame.Cmd == mpush.CmdPush {
				time.Sleep(time.Millisecond)
				s.mu.Lock()
				if len(s.told) != 1 || !strings.HasPrefix(s.told[0], "push ") {
					t.Errorf("%s: told %q, reasons %v", frame.Name, s.told, s.reasons)
				}
				s.told = nil
				s.mu.Unlock()
			}
		}
		s.wantsNothing(time.Second)
		if read < 8 {
			t.Errorf("%d frames were read", read)
		}
	})
}

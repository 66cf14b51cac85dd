package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/embedpush/push/internal/mpush"
)

// What the original writes for these.
const javaSession = "5f4dcc3b5aa765d61d8327deb882cf99,1893456000000," +
	"1|2|3|4|5|6|7|8|9|10|11|12|13|14|15|16," +
	"-128|-1|0|127|-16|-15|32|33|34|35|36|37|38|39|40|41"

func TestTheOriginalsSessionIsReadAndWritten(t *testing.T) {
	s, err := parseSession(javaSession + "\n")
	if err != nil {
		t.Fatal(err)
	}
	iv := s.cipher.IV()
	if s.token != "5f4dcc3b5aa765d61d8327deb882cf99" || s.expires.UnixMilli() != 1893456000000 || iv[0] != 0x80 || iv[1] != 0xff || iv[3] != 0x7f {
		t.Errorf("%+v, iv % x", s, iv)
	}
	if got := s.String(); got != javaSession {
		t.Errorf("written\n%s, want\n%s", got, javaSession)
	}
}

func TestWhatIsNoSessionIsNotTaken(t *testing.T) {
	for _, bad := range []string{
		",", "a,b,c,d", strings.Replace(javaSession, "1893456000000", "soon", 1), strings.TrimPrefix(javaSession, "5f4dcc3b5aa765d61d8327deb882cf99"),
		strings.Replace(javaSession, "-128", "-129", 1), strings.Replace(javaSession, "|127", "|128", 1),
		javaSession + "|1", strings.TrimSuffix(javaSession, "|41"), javaSession + ",x", strings.Replace(javaSession, "|16", "|", 1),
	} {
		if s, err := parseSession(bad); err == nil {
			t.Errorf("%q is read as %v", bad, s)
		}
	}
}

func TestFileStorage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	f := FileStorage(dir)
	if text, err := f.GetSession(); text != "" || err != nil {
		t.Errorf("without a file: %q, %v", text, err)
	}
	if err := f.ClearSession(); err != nil {
		t.Errorf("without a file: %v", err)
	}
	for _, text := range []string{javaSession, "second"} {
		if err := f.SaveSession(text); err != nil {
			t.Fatal(err)
		}
		if got, err := f.GetSession(); got != text || err != nil {
			t.Errorf("GetSession: %q, %v", got, err)
		}
	}
	name := filepath.Join(dir, "token.dat")
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d files are left, want 1", len(entries))
	}
	if err := os.WriteFile(name, make([]byte, maxSession+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := f.GetSession(); err == nil {
		t.Error("a file of 8 KiB is read")
	}
	if err := f.ClearSession(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(name); !os.IsNotExist(err) {
		t.Errorf("after ClearSession: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(name, "x"), 0o700); err != nil { // nothing can be renamed over it
		t.Fatal(err)
	}
	if err := f.SaveSession("x"); err == nil {
		t.Error("SaveSession over a directory: nil")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d files are left, want 1", len(entries))
	}
}

func TestADeviceMaySwitchFromTheOriginalsFile(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "token.dat"), []byte(javaSession), 0o644); err != nil {
			t.Fatal(err)
		}
		cfg := f.config()
		cfg.Storage = FileStorage(dir)
		s := starts(t, cfg)
		p := f.accepts()
		ask := p.gets(mpush.CmdFastConnect)
		p.Write(mpush.AppendPacket(nil, mpush.CmdFastConnect, 0, ask.ID, (&mpush.FastConnectOK{Heartbeat: 30000}).Append(nil)))
		java, _ := parseSession(javaSession)
		bind := p.gets(mpush.CmdBind)
		body, err := java.cipher.Open(bind.Body)
		var b mpush.Bind
		if err != nil || b.Decode(body) != nil || b.UserID != "alice" {
			t.Errorf("BIND %+v, %v", b, err)
		}
		s.wants("connected", "handshake 30s")
	})
}

// failing storage costs handshakes and nothing else.
type failing struct{}

func (failing) SaveSession(string) error    { return os.ErrPermission }
func (failing) GetSession() (string, error) { return "", os.ErrPermission }
func (failing) ClearSession() error         { return os.ErrPermission }

func TestStorageThatFailsCostsAHandshake(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		cfg := f.config()
		cfg.Storage = failing{}
		s := starts(t, cfg)
		for range 3 {
			p := f.accepts()
			p.opens()
			s.wants("connected", "handshake 30s", "bind true alice")
			p.Close()
			s.wants("disconnected")
		}
		time.Sleep(time.Second)
	})
}

// slowStorage saves when it may.
type slowStorage struct {
	MemoryStorage
	may chan struct{}
}

func (s *slowStorage) SaveSession(text string) error {
	<-s.may
	return s.MemoryStorage.SaveSession(text)
}

func TestTheUserIsBoundBeforeTheSessionIsSaved(t *testing.T) {
	withFake(t, func(t *testing.T, f *fake) {
		store := &slowStorage{may: make(chan struct{})}
		cfg := f.config()
		cfg.Storage = store
		s := starts(t, cfg)
		p := f.accepts()
		p.opens()
		s.wants("connected", "handshake 30s")
		if text, _ := store.GetSession(); text != "" {
			t.Errorf("%q is saved already", text)
		}
		close(store.may)
		s.wants("bind true alice")
		if text, _ := store.GetSession(); !strings.HasPrefix(text, "tok,") {
			t.Errorf("%q is saved, want the session", text)
		}
	})
}

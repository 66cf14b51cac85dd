package client

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/embedpush/push/internal/mpush"
)

// SessionStorage keeps one session, so that the next connection, also that of
// a later program, needs no RSA. The text of a session is a secret: it has
// the session's key in it. Its form is that of the original's token.dat:
//
//	token,expireMillis,k|k|…,i|i|…
//
// with 16 signed decimal bytes each of key and iv. The client calls the methods
// one at a time, on the goroutine that reads its connection; their errors are
// logged and cost a handshake. They must not call the client.
type SessionStorage interface {
	// SaveSession replaces what is stored.
	SaveSession(session string) error

	// GetSession returns what is stored. "": nothing.
	GetSession() (string, error)

	// ClearSession forgets it.
	ClearSession() error
}

// MemoryStorage keeps a session for as long as the program runs. The zero
// value is empty and ready; it may be given to a later client of the same
// device.
type MemoryStorage struct {
	mu      sync.Mutex
	session string // guarded by mu
}

// SaveSession implements SessionStorage.
func (m *MemoryStorage) SaveSession(session string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session = session
	return nil
}

// GetSession implements SessionStorage.
func (m *MemoryStorage) GetSession() (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session, nil
}

// ClearSession implements SessionStorage.
func (m *MemoryStorage) ClearSession() error { return m.SaveSession("") }

// FileStorage keeps a session in the file token.dat of this directory, which is
// made if it is missing. The file is the original's, so a device may change
// from one client to the other; it is replaced as a whole, and its owner alone
// may read it. One device has one directory. "": the working directory.
type FileStorage string

const (
	fileName   = "token.dat"
	maxSession = 8 << 10 // bytes of the file
	maxToken   = 1000    // bytes of it
)

// SaveSession implements SessionStorage.
func (f FileStorage) SaveSession(session string) (err error) {
	if f != "" {
		if err := os.MkdirAll(string(f), 0o700); err != nil {
			return err
		}
	}
	name := filepath.Join(string(f), fileName)
	suffix := make([]byte, 8)
	rand.Read(suffix)
	temp := name + "." + hex.EncodeToString(suffix)
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(session)
	if err == nil {
		err = file.Sync() // before the name is: a crash leaves the old file or the new one
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// GetSession implements SessionStorage.
func (f FileStorage) GetSession() (string, error) {
	name := filepath.Join(string(f), fileName)
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil && !info.Mode().IsRegular() { // to open a pipe might take for ever
		err = fmt.Errorf("client: %s is not a file", name)
	}
	if err != nil {
		return "", err
	}
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxSession+1))
	if err == nil && len(text) > maxSession {
		err = fmt.Errorf("client: %s has more than %d bytes", file.Name(), maxSession)
	}
	if err != nil {
		return "", err
	}
	return string(text), nil
}

// ClearSession implements SessionStorage.
func (f FileStorage) ClearSession() error {
	err := os.Remove(filepath.Join(string(f), fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// session is what is stored.
type session struct {
	token   string
	expires time.Time // in whole milliseconds
	cipher  *mpush.Cipher
}

func (s *session) String() string {
	key, iv := s.cipher.Key(), s.cipher.IV()
	return s.token + "," + strconv.FormatInt(s.expires.UnixMilli(), 10) + "," + formatBytes(key[:]) + "," + formatBytes(iv[:])
}

var errSession = errors.New("the stored session cannot be read: want token,expireMillis,key,iv")

func parseSession(text string) (*session, error) {
	parts := strings.Split(strings.TrimSpace(text), ",")
	if len(parts) != 4 || parts[0] == "" {
		return nil, errSession
	}
	ms, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return nil, errSession
	}
	c, err := mpush.NewCipher(parseBytes(parts[2]), parseBytes(parts[3]))
	if err != nil {
		return nil, errSession
	}
	return &session{token: parts[0], expires: time.UnixMilli(ms), cipher: c}, nil
}

func formatBytes(b []byte) string {
	var text strings.Builder
	for i, v := range b {
		if i > 0 {
			text.WriteByte('|')
		}
		text.WriteString(strconv.Itoa(int(int8(v))))
	}
	return text.String()
}

// parseBytes returns nil for what is no list of signed bytes.
func parseBytes(text string) []byte {
	var b []byte
	for part := range strings.SplitSeq(text, "|") {
		v, err := strconv.ParseInt(part, 10, 8)
		if err != nil || len(b) == mpush.KeyLen {
			return nil
		}
		b = append(b, byte(v))
	}
	return b
}

// load is the stored session, if there is one that may be good.
func (c *Client) load() *session {
	text, err := c.cfg.Storage.GetSession()
	var s *session
	if err == nil && text != "" {
		if s, err = parseSession(text); err == nil && !time.Now().Before(s.expires) {
			err = errors.New("session expired")
		}
	}
	if err != nil {
		c.cfg.Logger.Debug("client: no fast connect", "err", err)
		c.forget()
		return nil
	}
	return s
}

func (c *Client) save(s *session) {
	var err error
	switch {
	case strings.Contains(s.token, ","):
		err = errors.New("the token has a comma in it")
	case len(s.token) > maxToken:
		err = fmt.Errorf("the token has %d bytes, want %d at most", len(s.token), maxToken)
	default:
		err = c.cfg.Storage.SaveSession(s.String())
	}
	if err != nil {
		c.cfg.Logger.Warn("client: save session failed", "err", err)
	}
}

func (c *Client) forget() {
	if err := c.cfg.Storage.ClearSession(); err != nil {
		c.cfg.Logger.Warn("client: clear session failed", "err", err)
	}
}

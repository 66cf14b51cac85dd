package mpush

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"sync"
	"time"
	"unicode/utf8"
)

// Open's errors. The client that is told the second one has a session, which
// is another device's.
var (
	ErrExpired = errors.New("session expired")
	ErrDevice  = errors.New("invalid device")
)

// Resumed is what a token restores.
type Resumed struct {
	DeviceID                         string // not in the token: Open's argument, which the token was sealed for
	Key, IV                          [16]byte
	Plain                            bool      // the handshake came plain
	OSName, OSVersion, ClientVersion string    // each cut to 48 bytes
	Expires                          time.Time // in whole milliseconds, as the client is told
}

// Tokens seals a session into a token that the client keeps, and opens it
// again: no node stores sessions, and any node with the key resumes one. It is
// safe for concurrent use.
type Tokens struct {
	ttl  time.Duration
	aad  []byte
	keys [][]byte

	mu   sync.Mutex               // guards days
	days map[uint16][]cipher.AEAD // one for each key; nil: none needed yet
}

// A token is this in base64url without padding, 335 characters at most:
//
//	byte     version
//	uint16   the UTC day of its making, counted from 1970, modulo 2^16
//	[12]byte random nonce
//	AES-256-GCM of
//		[32]byte SHA-256 of the device id
//		[16]byte session key
//		[16]byte session iv
//		int64    expiry in Unix milliseconds
//		byte     1 if the handshake came plain, else 0
//		byte n, n bytes: OS name; the same for OS version and client version
//
// The day is the id of the key. It says no more than who sees the token used
// could note: a few keys at most are tried, and which one fits is not said.
const (
	tokenVersion = 1
	tokenHead    = 1 + 2
	tokenFixed   = sha256.Size + 16 + 16 + 8 + 1
	tokenText    = 48  // bytes of each of the three texts
	tokenMax     = 512 // characters; clients compress, and so break, a fast connect with over 1000

	gcmOverhead = 12 + 16 // nonce and tag
)

var tokenEncoding = base64.RawURLEncoding.Strict()

// tokenDays bounds the cache. The usual life of a day touches three.
const tokenDays = 8

// NewTokens makes the tokens of one cluster. A key is 32 bytes, derived from
// a secret for this purpose; the first one seals, and all of them open. A
// token lives for ttl, which is positive.
func NewTokens(cluster string, ttl time.Duration, keys ...[]byte) *Tokens {
	if ttl <= 0 || len(keys) == 0 {
		panic("mpush: tokens need a positive ttl and a key")
	}
	t := &Tokens{ttl: ttl, aad: []byte("mpush session v1" + cluster)}
	for _, k := range keys {
		if len(k) != 32 {
			panic("mpush: a token's key is not of 32 bytes")
		}
		t.keys = append(t.keys, append([]byte(nil), k...))
	}
	return t
}

// Seal makes the token of a session that begins now, and sets s.Expires.
func (t *Tokens) Seal(now time.Time, s *Resumed) string {
	s.Expires = time.UnixMilli(now.Add(t.ttl).UnixMilli())
	device := sha256.Sum256([]byte(s.DeviceID))

	plain := make([]byte, 0, tokenFixed+3*(1+tokenText))
	plain = append(plain, device[:]...)
	plain = append(plain, s.Key[:]...)
	plain = append(plain, s.IV[:]...)
	plain = binary.BigEndian.AppendUint64(plain, uint64(s.Expires.UnixMilli()))
	if s.Plain {
		plain = append(plain, 1)
	} else {
		plain = append(plain, 0)
	}
	for _, text := range [3]string{s.OSName, s.OSVersion, s.ClientVersion} {
		text = cutText(text, tokenText)
		plain = append(plain, byte(len(text)))
		plain = append(plain, text...)
	}

	day := utcDay(now)
	token := make([]byte, 0, tokenHead+gcmOverhead+cap(plain))
	token = append(token, tokenVersion)
	token = binary.BigEndian.AppendUint16(token, day)
	token = t.day(day)[0].Seal(token, nil, plain, t.aad)
	return tokenEncoding.EncodeToString(token)
}

// Open restores the session of a token. ErrExpired is the answer to whatever
// is not a token of these keys and this cluster, or was one for too long;
// ErrDevice, to a sound one that deviceID does not own.
func (t *Tokens) Open(now time.Time, token, deviceID string) (Resumed, error) {
	if len(token) > tokenMax {
		return Resumed{}, ErrExpired
	}
	// One spelling for each token: no bits after the last byte, and no line
	// feeds, which even the strict decoder skips.
	sealed, err := tokenEncoding.DecodeString(token)
	if err != nil || tokenEncoding.EncodedLen(len(sealed)) != len(token) ||
		len(sealed) < tokenHead+gcmOverhead+tokenFixed+3 || sealed[0] != tokenVersion {
		return Resumed{}, ErrExpired
	}
	day := binary.BigEndian.Uint16(sealed[1:])
	if !t.mayBeFrom(day, now) {
		return Resumed{}, ErrExpired
	}

	var plain []byte
	for _, aead := range t.day(day) {
		if plain, err = aead.Open(nil, nil, sealed[tokenHead:], t.aad); err == nil {
			break
		}
	}
	if err != nil {
		return Resumed{}, ErrExpired
	}

	r := Resumed{DeviceID: deviceID}
	device := sha256.Sum256([]byte(deviceID))
	owned := subtle.ConstantTimeCompare(plain[:sha256.Size], device[:]) == 1
	plain = plain[sha256.Size:]
	plain = plain[copy(r.Key[:], plain):]
	plain = plain[copy(r.IV[:], plain):]
	r.Expires = time.UnixMilli(int64(binary.BigEndian.Uint64(plain)))
	r.Plain = plain[8] != 0
	plain = plain[9:]
	for _, text := range [3]*string{&r.OSName, &r.OSVersion, &r.ClientVersion} {
		if len(plain) < 1 || len(plain) < 1+int(plain[0]) {
			return Resumed{}, ErrExpired // who has the key seals otherwise
		}
		end := 1 + int(plain[0])
		*text = string(plain[1:end])
		plain = plain[end:]
	}
	switch {
	case len(plain) != 0 || !now.Before(r.Expires):
		return Resumed{}, ErrExpired
	case !owned:
		return Resumed{}, ErrDevice
	}
	return r, nil
}

// mayBeFrom says whether a token made on that day may be alive. Tomorrow's
// may, for the clock of the node that made it may be ahead.
func (t *Tokens) mayBeFrom(day uint16, now time.Time) bool {
	const hours24 = 24 * time.Hour
	age := int64(int16(utcDay(now) - day))
	return age >= -1 && age <= int64((t.ttl-1)/hours24)+1
}

// day returns the ciphers of a day, one for each key. The nonces are random,
// so a key is good for 2^32 tokens; no day sees as many.
func (t *Tokens) day(day uint16) []cipher.AEAD {
	t.mu.Lock()
	defer t.mu.Unlock()
	if aeads, ok := t.days[day]; ok {
		return aeads
	}
	aeads := make([]cipher.AEAD, len(t.keys))
	for i, key := range t.keys {
		aeads[i] = newTokenAEAD(key, day)
	}
	if t.days == nil || len(t.days) >= tokenDays {
		t.days = make(map[uint16][]cipher.AEAD)
	}
	t.days[day] = aeads
	return aeads
}

func newTokenAEAD(key []byte, day uint16) cipher.AEAD {
	info := string(binary.BigEndian.AppendUint16([]byte("mpush session v1 day "), day))
	dayKey, err := hkdf.Key(sha256.New, key, nil, info, 32)
	if err != nil {
		panic("mpush: HKDF-SHA-256 of a token's key: " + err.Error()) // a key of 32 bytes is never refused
	}
	block, err := aes.NewCipher(dayKey)
	if err != nil {
		panic("mpush: AES-256: " + err.Error())
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("mpush: AES-256-GCM: " + err.Error())
	}
	return aead
}

// utcDay counts days of 86400 seconds, which Unix time has no others of.
func utcDay(t time.Time) uint16 { return uint16(t.Unix() / 86400) }

// cutText ends a text of more than n bytes before the character that does not
// fit.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for least := n - (utf8.UTFMax - 1); n > least && !utf8.RuneStart(s[n]); {
		n--
	}
	return s[:n]
}

package mpush

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

var tokenNoon = time.Date(2026, 3, 14, 12, 0, 0, 123456789, time.UTC)

func tokenKey(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func aSession() *Resumed {
	return &Resumed{
		DeviceID: "a-device",
		Key:      [16]byte([]byte("0123456789abcdef")),
		IV:       [16]byte([]byte("fedcba9876543210")),
		OSName:   "android", OSVersion: "14", ClientVersion: "0.8.1",
	}
}

// wantOpen wants the token to restore s.
func wantOpen(t *testing.T, tokens *Tokens, now time.Time, token string, s *Resumed) {
	t.Helper()
	got, err := tokens.Open(now, token, s.DeviceID)
	if err != nil {
		t.Errorf("want it open at %v, got: %v", now, err)
	} else if got != *s {
		t.Errorf("want %+v, got %+v", *s, got)
	}
}

// wantShut wants the error, and nothing of the session.
func wantShut(t *testing.T, tokens *Tokens, now time.Time, token, device string, want error) {
	t.Helper()
	got, err := tokens.Open(now, token, device)
	if !errors.Is(err, want) {
		t.Errorf("token %.40q… at %v: want %v, got %v", token, now, want, err)
	}
	if got != (Resumed{}) {
		t.Errorf("token %.40q… with %v restores %+v", token, err, got)
	}
}

func TestATokenRestoresItsSession(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	for _, s := range []*Resumed{
		aSession(),
		{},
		{DeviceID: "plain", Plain: true, Key: aSession().Key},
		{DeviceID: strings.Repeat("d", 5000), OSName: "\x00", OSVersion: strings.Repeat("x", 48), ClientVersion: "é"},
	} {
		token := tokens.Seal(tokenNoon, s)
		if want := tokenNoon.Add(24 * time.Hour).Truncate(time.Millisecond); !s.Expires.Equal(want) {
			t.Errorf("want it to expire at %v, got %v", want, s.Expires)
		}
		wantOpen(t, tokens, tokenNoon, token, s)
		wantOpen(t, NewTokens("push", 24*time.Hour, tokenKey(1)), tokenNoon, token, s) // another node
	}
}

func TestATokenIsNeverTheSameTwice(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	if a, b := tokens.Seal(tokenNoon, aSession()), tokens.Seal(tokenNoon, aSession()); a == b {
		t.Errorf("twice %s", a)
	}
}

func TestATokenOfAnotherDeviceSaysSo(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	token := tokens.Seal(tokenNoon, aSession())
	for _, device := range []string{"", "a-devic", "a-device\x00", "A-device", strings.Repeat("a", 9000)} {
		wantShut(t, tokens, tokenNoon, token, device, ErrDevice)
		wantShut(t, tokens, tokenNoon.Add(24*time.Hour), token, device, ErrExpired)
	}
}

func TestATokenLivesAsLongAsItSays(t *testing.T) {
	midnight := time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC)
	for _, ttl := range []time.Duration{time.Second, time.Hour, 24*time.Hour - 1, 24 * time.Hour, 24*time.Hour + 1, 30 * 24 * time.Hour} {
		tokens := NewTokens("push", ttl, tokenKey(1))
		for _, made := range []time.Time{midnight, midnight.Add(-time.Millisecond), tokenNoon} {
			s := aSession()
			token := tokens.Seal(made, s)
			wantOpen(t, tokens, made, token, s)
			wantOpen(t, tokens, s.Expires.Add(-1), token, s)
			wantShut(t, tokens, s.Expires, token, s.DeviceID, ErrExpired)
			wantShut(t, tokens, s.Expires.Add(time.Second), token, s.DeviceID, ErrExpired)
		}
	}
}

func TestATokenOutlivesMidnightAndNoMoreThanItsDays(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	s := aSession()
	late := time.Date(2026, 3, 14, 23, 59, 59, 0, time.UTC)
	token := tokens.Seal(late, s)
	wantOpen(t, tokens, late.Add(2*time.Second), token, s)
	wantOpen(t, tokens, late.Add(23*time.Hour), token, s)
	wantShut(t, tokens, late.Add(48*time.Hour), token, s.DeviceID, ErrExpired)

	// The day by itself refuses, whatever the expiry: a longer life sealed it.
	long := NewTokens("push", 1000*24*time.Hour, tokenKey(1))
	token = long.Seal(late, s)
	wantOpen(t, tokens, late.Add(24*time.Hour), token, s)
	wantShut(t, tokens, late.Add(24*time.Hour+time.Second), token, s.DeviceID, ErrExpired)
	wantOpen(t, long, late.Add(1000*24*time.Hour-time.Second), token, s)

	// Days are counted modulo 2^16.
	wantShut(t, long, late.Add(1<<16*24*time.Hour), token, s.DeviceID, ErrExpired)
}

func TestATokenOfANodeWhoseClockIsAheadOpens(t *testing.T) {
	tokens := NewTokens("push", time.Hour, tokenKey(1))
	s := aSession()
	token := tokens.Seal(time.Date(2026, 3, 15, 0, 0, 3, 0, time.UTC), s)
	wantOpen(t, tokens, time.Date(2026, 3, 14, 23, 59, 58, 0, time.UTC), token, s)
	wantShut(t, tokens, time.Date(2026, 3, 13, 23, 59, 58, 0, time.UTC), token, s.DeviceID, ErrExpired)
}

func TestKeysAreRotated(t *testing.T) {
	s := aSession()
	before := NewTokens("push", 24*time.Hour, tokenKey(1))
	during := NewTokens("push", 24*time.Hour, tokenKey(2), tokenKey(1))
	after := NewTokens("push", 24*time.Hour, tokenKey(2))

	token := before.Seal(tokenNoon, s)
	wantOpen(t, during, tokenNoon, token, s)
	wantShut(t, after, tokenNoon, token, s.DeviceID, ErrExpired)

	token = during.Seal(tokenNoon, s)
	wantOpen(t, after, tokenNoon, token, s)
	wantShut(t, before, tokenNoon, token, s.DeviceID, ErrExpired)
	wantOpen(t, NewTokens("push", 24*time.Hour, tokenKey(3), tokenKey(4), tokenKey(2)), tokenNoon, token, s)
}

func TestTokensKeepTheirOwnCopyOfAKey(t *testing.T) {
	key := tokenKey(1)
	tokens := NewTokens("push", 24*time.Hour, key)
	clear(key)
	s := aSession()
	wantOpen(t, NewTokens("push", 24*time.Hour, tokenKey(1)), tokenNoon, tokens.Seal(tokenNoon, s), s)
}

func TestATokenOfAnotherClusterIsUnknown(t *testing.T) {
	s := aSession()
	token := NewTokens("blue", 24*time.Hour, tokenKey(1)).Seal(tokenNoon, s)
	for _, cluster := range []string{"", "green", "blue2", "Blue"} {
		wantShut(t, NewTokens(cluster, 24*time.Hour, tokenKey(1)), tokenNoon, token, s.DeviceID, ErrExpired)
	}
}

func TestNoChangedTokenOpens(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1), tokenKey(2))
	s := aSession()
	token := tokens.Seal(tokenNoon, s)

	sealed, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		for bit := range 8 {
			changed := bytes.Clone(sealed)
			changed[i] ^= 1 << bit
			wantShut(t, tokens, tokenNoon, base64.RawURLEncoding.EncodeToString(changed), s.DeviceID, ErrExpired)
		}
		wantShut(t, tokens, tokenNoon, base64.RawURLEncoding.EncodeToString(sealed[:i]), s.DeviceID, ErrExpired)
	}
	for i := range token {
		for bit := range 8 {
			changed := []byte(token)
			changed[i] ^= 1 << bit
			wantShut(t, tokens, tokenNoon, string(changed), s.DeviceID, ErrExpired)
		}
		wantShut(t, tokens, tokenNoon, token[:i], s.DeviceID, ErrExpired)
		wantShut(t, tokens, tokenNoon, token[:i]+"\n"+token[i:], s.DeviceID, ErrExpired)
		wantShut(t, tokens, tokenNoon, token[:i]+"\r\n\r\n"+token[i:], s.DeviceID, ErrExpired)
	}
	wantOpen(t, tokens, tokenNoon, token, s)
}

// Where the last character has bits to spare, they are zero.
func TestATokenHasOneSpelling(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for n := range 3 {
		s := aSession()
		s.OSName = strings.Repeat("o", n)
		token := tokens.Seal(tokenNoon, s)
		opened := 0
		for _, last := range alphabet {
			if _, err := tokens.Open(tokenNoon, token[:len(token)-1]+string(last), s.DeviceID); err == nil {
				opened++
			}
		}
		if opened != 1 {
			t.Errorf("length %d: %d last characters open it, want 1", len(token), opened)
		}
	}
}

func TestATokenIsShortWhateverItHolds(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	for _, unit := range []string{"a", "é", "語", "🚀", "a🚀", "ab🚀", "\x00", "\x80", "\xff"} {
		long := strings.Repeat(unit, 5000)
		s := &Resumed{DeviceID: long, OSName: long, OSVersion: "x" + long, ClientVersion: "xx" + long}
		token := tokens.Seal(tokenNoon, s)
		if len(token) > 512 || len(token) < 64 {
			t.Errorf("%q: a token of %d characters", unit, len(token))
		}
		got, err := tokens.Open(tokenNoon, token, s.DeviceID)
		if err != nil {
			t.Errorf("%q: %v", unit, err)
			continue
		}
		for _, text := range [3][2]string{{s.OSName, got.OSName}, {s.OSVersion, got.OSVersion}, {s.ClientVersion, got.ClientVersion}} {
			whole, cut := text[0], text[1]
			if !strings.HasPrefix(whole, cut) || len(cut) > 48 || len(cut) < 45 {
				t.Errorf("%q: %d bytes %q are left", unit, len(cut), cut)
			}
			if utf8.ValidString(whole) && !utf8.ValidString(cut) {
				t.Errorf("%q: cut within a character: %q", unit, cut)
			}
		}
	}
}

func TestGarbageIsNoToken(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	s := aSession()
	token := tokens.Seal(tokenNoon, s)
	for _, garbage := range []string{
		"", "A", "AQ", "\x00", "*", "/", "../../etc/passwd", "null", "undefined", "true", "0",
		strings.Repeat("A", 64), strings.Repeat("A", 334), strings.Repeat("A", 512), strings.Repeat("A", 513), strings.Repeat("A", 5000),
		strings.Repeat("AQAA", 83), strings.Repeat("\x00", 334), strings.Repeat("\xff", 334), strings.Repeat("é", 167), strings.Repeat("\n", 334),
		token + "=", token + "==", "=" + token, token + "\n", "\n" + token, token + "\r\n", token + " ", " " + token,
		token + "A", token + "AAAA", token + token, token + ".", token + "\x00", token[1:], token[:len(token)-1],
		token + strings.Repeat("\n", 512-len(token)), token + strings.Repeat("A", 5000),
		strings.ToUpper(token), strings.ToLower(token), "d41d8cd98f00b204e9800998ecf8427e",
	} {
		wantShut(t, tokens, tokenNoon, garbage, s.DeviceID, ErrExpired)
	}
	std := base64.StdEncoding.EncodeToString
	for {
		raw, _ := base64.RawURLEncoding.DecodeString(token)
		if s := std(raw); strings.ContainsAny(s, "+/") {
			wantShut(t, tokens, tokenNoon, strings.TrimRight(s, "="), "a-device", ErrExpired)
			break
		}
		token = tokens.Seal(tokenNoon, s)
	}
}

// A token that another version of this program sealed with the same key.
func TestASealedTokenOfAnotherShapeIsRefused(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	s := aSession()
	good, err := base64.RawURLEncoding.DecodeString(tokens.Seal(tokenNoon, s))
	if err != nil {
		t.Fatal(err)
	}
	aead := tokens.day(utcDay(tokenNoon))[0]
	plain, err := aead.Open(nil, nil, good[tokenHead:], tokens.aad)
	if err != nil {
		t.Fatal(err)
	}
	text := append([]byte{255}, make([]byte, 255)...)
	for what, c := range map[string]struct {
		plain []byte
		want  error
	}{
		"as it is":             {plain, nil},
		"a byte more":          {append(bytes.Clone(plain), 0), ErrExpired},
		"a byte less":          {plain[:len(plain)-1], ErrExpired},
		"no texts":             {append(bytes.Clone(plain[:tokenFixed]), 0, 0, 0), nil},
		"two empty texts":      {append(bytes.Clone(plain[:tokenFixed]), 0, 0), ErrExpired},
		"a text past the end":  {append(bytes.Clone(plain[:tokenFixed]), 0, 0, 255), ErrExpired},
		"a text and no others": {append(bytes.Clone(plain[:tokenFixed]), 2, 0, 0), ErrExpired},
		"a text of 255":        {append(append(bytes.Clone(plain[:tokenFixed]), text...), 0, 0), nil},
		"over 512 characters":  {append(append(append(bytes.Clone(plain[:tokenFixed]), text...), text...), 0), ErrExpired},
		"nothing":              {nil, ErrExpired},
	} {
		token := tokenEncoding.EncodeToString(aead.Seal(bytes.Clone(good[:tokenHead]), nil, c.plain, tokens.aad))
		if _, err := tokens.Open(tokenNoon, token, s.DeviceID); err != c.want {
			t.Errorf("%s: want %v, got %v", what, c.want, err)
		}
	}
}

func TestAnyClockIsSurvived(t *testing.T) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	for _, now := range []time.Time{{}, time.Unix(0, 0), time.Unix(-1, 0), time.Unix(1<<40, 0)} {
		s := aSession()
		wantOpen(t, tokens, now, tokens.Seal(now, s), s)
	}
}

func TestTheKeyCacheIsBounded(t *testing.T) {
	tokens := NewTokens("push", 1000*24*time.Hour, tokenKey(1), tokenKey(2))
	for day := range 500 {
		s := aSession()
		now := tokenNoon.AddDate(0, 0, day)
		wantOpen(t, tokens, now, tokens.Seal(now, s), s)
		if len(tokens.days) > tokenDays {
			t.Fatalf("%d days are kept", len(tokens.days))
		}
	}
}

func TestNewTokensRefusesKeysThatAreNone(t *testing.T) {
	for what, build := range map[string]func(){
		"no key":      func() { NewTokens("push", time.Hour) },
		"31 bytes":    func() { NewTokens("push", time.Hour, make([]byte, 31)) },
		"nil, second": func() { NewTokens("push", time.Hour, tokenKey(1), nil) },
		"no life":     func() { NewTokens("push", 0, tokenKey(1)) },
		"less":        func() { NewTokens("push", -time.Hour, tokenKey(1)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: accepted", what)
				}
			}()
			build()
		}()
	}
}

func TestTokensAreForManyGoroutines(t *testing.T) {
	tokens := NewTokens("push", 60*24*time.Hour, tokenKey(2), tokenKey(1))
	old := NewTokens("push", 60*24*time.Hour, tokenKey(1))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				s := aSession()
				s.DeviceID = fmt.Sprint("device ", g, i)
				now := tokenNoon.AddDate(0, 0, (i+g)%12)
				wantOpen(t, tokens, now, tokens.Seal(now, s), s)
				wantOpen(t, tokens, now, old.Seal(now, s), s)
			}
		})
	}
	wg.Wait()
}

func FuzzToken(f *testing.F) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1), tokenKey(2))
	s := aSession()
	sealed := tokens.Seal(tokenNoon, s)
	f.Add(sealed, s.DeviceID)
	f.Add(sealed, "another")
	f.Add(sealed+"=", s.DeviceID)
	f.Add(NewTokens("push", 24*time.Hour, tokenKey(3)).Seal(tokenNoon, s), s.DeviceID)
	f.Add("", "")
	f.Add(strings.Repeat("A", 334), s.DeviceID)
	f.Fuzz(func(t *testing.T, token, device string) {
		got, err := tokens.Open(tokenNoon, token, device)
		switch {
		case err == nil:
			// Other seeds of other processes were sealed with the same keys.
			if device != s.DeviceID || got.Key != s.Key || got.IV != s.IV || got.OSName != s.OSName {
				t.Fatalf("what was never sealed opens as %+v", got)
			}
		case got != (Resumed{}):
			t.Fatalf("%v with %+v", err, got)
		case errors.Is(err, ErrDevice):
			if device == s.DeviceID {
				t.Fatal("it is its device")
			}
		case !errors.Is(err, ErrExpired):
			t.Fatal(err)
		}
	})
}

func BenchmarkTokenSeal(b *testing.B) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	s := aSession()
	b.ReportAllocs()
	for b.Loop() {
		tokens.Seal(tokenNoon, s)
	}
}

func BenchmarkTokenOpen(b *testing.B) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1))
	s := aSession()
	token := tokens.Seal(tokenNoon, s)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tokens.Open(tokenNoon, token, s.DeviceID); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTokenOpenGarbage(b *testing.B) {
	tokens := NewTokens("push", 24*time.Hour, tokenKey(1), tokenKey(2))
	token := []byte(tokens.Seal(tokenNoon, aSession()))
	token[len(token)/2] ^= 1
	garbage := string(token)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tokens.Open(tokenNoon, garbage, "a-device"); err == nil {
			b.Fatal("opened")
		}
	}
}

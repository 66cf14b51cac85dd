package secret

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

// count is the bytes 1, 2, 3 … n.
func count(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i + 1)
	}
	return b
}

func TestCheckTakesWhatMayBeRandom(t *testing.T) {
	for what, secret := range map[string][]byte{
		"32 bytes":                            count(32),
		"base64 of 32 bytes":                  []byte("yd0Dy3gk8Nv3qgUu6Z1n1yVJmVtY2YxJ0m2hQ1u8t5E="),
		"16 different bytes":                  append(count(16), bytes.Repeat([]byte{7}, 16)...),
		"a start that comes again at the end": append(count(40), 1, 2, 3, 4, 5, 6, 7, 8),
	} {
		if err := Check(secret); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestCheckRefusesWhatIsNotRandomAndTellsARecipe(t *testing.T) {
	for what, c := range map[string]struct {
		secret []byte
		want   string
	}{
		"nil":                   {nil, "0 bytes are too short"},
		"31 bytes":              {count(31), "31 bytes are too short"},
		"zeros":                 {make([]byte, 64), "only 1 different bytes"},
		"15 different bytes":    {append(count(15), bytes.Repeat([]byte{7}, 30)...), "only 15 different bytes"},
		"twice the same":        {bytes.Repeat(count(16), 2), "it repeats itself"},
		"twice and a bit":       {bytes.Repeat(count(17), 3)[:40], "it repeats itself"},
		"a text without number": {bytes.Repeat([]byte("correct horse battery staple "), 4), "only 13 different bytes"},
	} {
		err := Check(c.secret)
		if err == nil {
			t.Errorf("%s: accepted", what)
			continue
		}
		got := err.Error()
		if !strings.HasPrefix(got, c.want) || !strings.HasSuffix(got, "openssl rand -base64 32") {
			t.Errorf("%s: got %q, want %q and the recipe", what, got, c.want)
		}
		if len(c.secret) > 8 && strings.Contains(got, string(c.secret[:8])) {
			t.Errorf("%s: the error shows the secret", what)
		}
	}
}

// The vectors are OpenSSL's: openssl kdf -keylen 32 -kdfopt digest:SHA256
// -kdfopt hexkey:0102…1f20 -kdfopt info:push/v1/gossip/push HKDF
func TestDeriveIsHKDF(t *testing.T) {
	for _, v := range []struct{ purpose, cluster, want string }{
		{"gossip", "push", "24f4f70db3924d438d83b01401594c8191633ba25ff973494dfe18b7e86016e1"},
		{"link", "push", "326cf4da598898be763792ae7c369245740a70fa72a44ed5f60060e9abb49c37"},
		{"gossip", "blue.eu-1", "8982d1ea24361a8383b218c11e9710bb6c87abb74bb4b105eabb3f82cbd42884"},
	} {
		if got := hex.EncodeToString(Derive(count(32), v.purpose, v.cluster)); got != v.want {
			t.Errorf("%s of %s: got %s, want %s", v.purpose, v.cluster, got, v.want)
		}
	}
}

func TestDeriveLeavesTheSecretAlone(t *testing.T) {
	secret := count(32)
	key := Derive(secret, "gossip", "push")
	clear(key)
	if !bytes.Equal(secret, count(32)) {
		t.Errorf("the secret became %x", secret)
	}
}

// Package secret checks the secrets that nodes share and derives keys from
// them. The bytes of a secret themselves are a key for nothing.
package secret

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
)

// Advice is how to get a good secret, for the end of an error's text.
const Advice = "give every node the same secret of 32 random bytes, from: openssl rand -base64 32"

const (
	minBytes     = 32
	minDifferent = 16 // different bytes; 32 random ones have fewer once in 10^16 times
)

// Check refuses a secret that did not come from a random source. That cannot
// be known; it can be known of the frequent cases. The error never shows any
// of it.
func Check(secret []byte) error {
	if len(secret) < minBytes {
		return fmt.Errorf("%d bytes are too short: %s", len(secret), Advice)
	}
	var seen [256]bool
	different := 0
	for _, b := range secret {
		if !seen[b] {
			seen[b] = true
			different++
		}
	}
	if different < minDifferent {
		return fmt.Errorf("only %d different bytes are not random: %s", different, Advice)
	}
	for period := 1; period <= len(secret)/2; period++ {
		if bytes.Equal(secret[period:], secret[:len(secret)-period]) {
			return fmt.Errorf("it repeats itself: %s", Advice)
		}
	}
	return nil
}

// Derive makes the 32-byte key for one purpose in one cluster: who finds one
// key out knows no other. The secret has passed Check. There is no slash in a
// purpose nor in a cluster's name, so no two pairs make the same key.
func Derive(secret []byte, purpose, cluster string) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, "push/v1/"+purpose+"/"+cluster, sha256.Size)
	if err != nil {
		panic("secret: HKDF-SHA-256 of an unchecked secret: " + err.Error()) // FIPS 140: under 14 bytes
	}
	return key
}

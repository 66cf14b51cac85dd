package polling

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"slices"
)

// Sids makes session ids and opens them:
//
//	base64url, without padding, of: tag (8) | id (16) | MAC (16)
//
// The MAC is the beginning of the HMAC-SHA256 over the two others, so a guessed
// sid is refused before anything is looked up, on every node that has the key.
type Sids struct {
	tag  [tagSize]byte
	keys [][]byte
}

const (
	tagSize = 8
	idSize  = 16
	macSize = 16
	sidSize = tagSize + idSize + macSize
)

var sidLength = base64.RawURLEncoding.EncodedLen(sidSize) // 54 characters

// NewSids returns the Sids of the node that the tag stands for. The first of
// keys, of 32 bytes each, makes; all are accepted. Without keys there is one
// that nobody else has.
func NewSids(tag [8]byte, keys ...[]byte) *Sids {
	if len(keys) == 0 {
		key := make([]byte, sha256.Size)
		rand.Read(key)
		keys = [][]byte{key}
	}
	s := &Sids{tag: tag}
	for _, key := range keys {
		s.keys = append(s.keys, slices.Clone(key))
	}
	return s
}

// Make makes a sid. id is the part of it that is not the same for all.
func (s *Sids) Make() (sid string, id [16]byte) {
	rand.Read(id[:])
	return s.seal(id), id
}

// seal is the sid with this id.
func (s *Sids) seal(id [idSize]byte) string {
	b := make([]byte, 0, sidSize)
	b = append(append(b, s.tag[:]...), id[:]...)
	return base64.RawURLEncoding.EncodeToString(append(b, mac(s.keys[0], b)...))
}

// Open returns what a sid was made of; ok: with one of the keys. It may be
// another node's.
func (s *Sids) Open(sid string) (tag [8]byte, id [16]byte, ok bool) {
	if len(sid) != sidLength {
		return tag, id, false
	}
	var room [sidSize]byte
	b, err := strict.AppendDecode(room[:0], []byte(sid))
	if err != nil || len(b) != sidSize { // it skips line breaks
		return tag, id, false
	}
	signed, sum := b[:tagSize+idSize], b[tagSize+idSize:]
	for _, key := range s.keys {
		ok = hmac.Equal(mac(key, signed), sum) || ok
	}
	if !ok {
		return tag, id, false
	}
	copy(tag[:], signed)
	copy(id[:], signed[tagSize:])
	return tag, id, true
}

var strict = base64.RawURLEncoding.Strict() // one spelling for each sid

func mac(key, signed []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(signed)
	return m.Sum(nil)[:macSize]
}

package mpush

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
)

// KeyLen is the length of keys and of the iv.
const KeyLen = 16

// ErrDecrypt is Open's error. Nobody but the log's counters should learn more.
var ErrDecrypt = errors.New("mpush: body cannot be decrypted")

// Cipher encrypts and decrypts the bodies of one connection under one key:
// AES-128-CBC with PKCS #7 padding, each body from the same iv (section 5). It
// does not authenticate: a body that was changed may decrypt to something
// else. It never changes and is safe for concurrent use.
type Cipher struct {
	block   cipher.Block
	key, iv [KeyLen]byte
}

// NewCipher makes a Cipher. Both key and iv have KeyLen bytes, or it fails.
func NewCipher(key, iv []byte) (*Cipher, error) {
	if len(key) != KeyLen || len(iv) != KeyLen {
		return nil, fmt.Errorf("mpush: key of %d and iv of %d bytes, want %d each", len(key), len(iv), KeyLen)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return &Cipher{block, [KeyLen]byte(key), [KeyLen]byte(iv)}, nil
}

func (c *Cipher) Key() [KeyLen]byte { return c.key }
func (c *Cipher) IV() [KeyLen]byte  { return c.iv }

// SealedLen is the length of what Append appends for n bytes.
func SealedLen(n int) int { return n + aes.BlockSize - n%aes.BlockSize }

// Append appends plain encrypted. plain may lie where the result goes, and is
// overwritten then.
//
// It does what cipher.NewCBCEncrypter does, which would allocate 512 bytes each
// time and take twice as long for 256.
func (c *Cipher) Append(dst, plain []byte) []byte {
	size := SealedLen(len(plain))
	dst = slices.Grow(dst, size)
	out := dst[len(dst) : len(dst)+size]
	pad := byte(size - copy(out, plain))
	for i := len(plain); i < size; i++ {
		out[i] = pad
	}
	prev := c.iv[:]
	for at := 0; at < size; at += aes.BlockSize {
		block := out[at : at+aes.BlockSize : at+aes.BlockSize]
		subtle.XORBytes(block, block, prev)
		c.block.Encrypt(block, block)
		prev = block
	}
	return dst[:len(dst)+size]
}

// Open decrypts body in place and returns what was encrypted, which points
// into it. The error is ErrDecrypt; then body is lost.
func (c *Cipher) Open(body []byte) ([]byte, error) {
	if len(body) == 0 || len(body)%aes.BlockSize != 0 {
		return nil, ErrDecrypt
	}
	for at := len(body) - aes.BlockSize; at >= 0; at -= aes.BlockSize { // backwards: each needs the one before as it was
		prev := c.iv[:]
		if at > 0 {
			prev = body[at-aes.BlockSize : at]
		}
		block := body[at : at+aes.BlockSize : at+aes.BlockSize]
		c.block.Decrypt(block, block)
		subtle.XORBytes(block, block, prev)
	}

	// In constant time, whatever the padding is.
	last := body[len(body)-aes.BlockSize:]
	pad := int(last[aes.BlockSize-1])
	good := subtle.ConstantTimeLessOrEq(1, pad) & subtle.ConstantTimeLessOrEq(pad, aes.BlockSize)
	for i, b := range last {
		inside := subtle.ConstantTimeLessOrEq(aes.BlockSize-i, pad)
		good &= subtle.ConstantTimeSelect(inside, subtle.ConstantTimeByteEq(b, byte(pad)), 1)
	}
	if good == 0 {
		return nil, ErrDecrypt
	}
	return body[:len(body)-pad], nil
}

// MixKey is the session's key, made of the two that a handshake exchanges
// (section 5). Both have KeyLen bytes.
func MixKey(clientKey, serverKey []byte) (mixed [KeyLen]byte) {
	for i := range mixed {
		mixed[i] = clientKey[i] ^ serverKey[i]
	}
	return mixed
}

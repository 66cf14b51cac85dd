package mpush

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"math/big"
	"sync"
	"unicode"
)

// The pair of keys in the reference.conf of the Java server (section 5). The
// private one is known to everybody.
const (
	StockPrivateKey = "MIIBNgIBADANBgkqhkiG9w0BAQEFAASCASAwggEcAgEAAoGBAKCE8JYKhsbydMPbiO7BJVq1pbuJWJHFxOR7L8Hv3ZVkSG4eNC8DdwAmDHYu/wadfw0ihKFm2gKDcLHp5yz5UQ8PZ8FyDYvgkrvGV0ak4nc40QDJWws621dm01e/INlGKOIStAAsxOityCLv0zm5Vf3+My/YaBvZcB5mGUsPbx8fAgEAAoGAAy0+WanRqwRHXUzt89OsupPXuNNqBlCEqgTqGAt4Nimq6Ur9u2R1KXKXUotxjp71Ubw6JbuUWvJg+5Rmd9RjT0HOUEQF3rvzEepKtaraPhV5ejEIrB+nJWNfGye4yzLdfEXJBGUQzrG+wNe13izfRNXI4dN/6Q5npzqaqv0E1CkCAQACAQACAQACAQACAQA="
	StockPublicKey  = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCghPCWCobG8nTD24juwSVataW7iViRxcTkey/B792VZEhuHjQvA3cAJgx2Lv8GnX8NIoShZtoCg3Cx6ecs+VEPD2fBcg2L4JK7xldGpOJ3ONEAyVsLOttXZtNXvyDZRijiErQALMTorcgi79M5uVX9/jMv2Ggb2XAeZhlLD28fHwIDAQAB"
)

const (
	minBits, maxBits = 1024, 4096 // crypto/rsa has the same minimum
	maxBlocks        = 8          // of one HANDSHAKE; real ones have one or two
	padding          = 11         // bytes of each block that PKCS #1 v1.5 takes at least
)

// PrivateKey decrypts HANDSHAKEs. It is safe for concurrent use.
type PrivateKey struct {
	key    *rsa.PrivateKey
	n      []byte // the modulus, as long as a block
	secret [sha256.Size]byte
}

// ParsePrivateKey reads a key of PKCS #8 or PKCS #1 in PEM, in base64 without
// PEM's lines, or in DER, and tries it. It takes keys whose primes or public
// exponent are 0, as the stock key's are: the exponent is 65537 then, and a key
// without primes is slower. An error has nothing of the key in it.
func ParsePrivateKey(b []byte) (*PrivateKey, error) {
	der, kind, err := unwrap(b)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "", "PRIVATE KEY", "RSA PRIVATE KEY":
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("the key is encrypted, decrypt it first")
	default:
		return nil, fmt.Errorf("PEM has %.40q, want an RSA PRIVATE KEY or a PRIVATE KEY", kind)
	}
	key, err := parsePrivate(der)
	if err != nil {
		return nil, err
	}
	k := &PrivateKey{
		key:    key,
		n:      key.N.FillBytes(make([]byte, key.Size())),
		secret: sha256.Sum256(append([]byte("mpush implicit rejection"), key.D.Bytes()...)),
	}
	if err := k.try(); err != nil {
		return nil, err
	}
	return k, nil
}

// pkcs1 is a private key of RFC 8017 A.1.2.
type pkcs1 struct {
	Version    int
	N, E, D    *big.Int
	P, Q       *big.Int
	Dp, Dq, Qi *big.Int // not used: they follow from P, Q and D
}

// pkcs8 is a private key of RFC 5958.
type pkcs8 struct {
	Version   int
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
	// attributes follow
}

var oidRSA = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}

// parsePrivate reads PKCS #8 or PKCS #1. It does not use crypto/x509, which
// refuses the stock key.
func parsePrivate(der []byte) (*rsa.PrivateKey, error) {
	var outer pkcs8
	if rest, err := asn1.Unmarshal(der, &outer); err == nil && len(rest) == 0 {
		if !outer.Algorithm.Algorithm.Equal(oidRSA) {
			return nil, errors.New("it is not an RSA key")
		}
		der = outer.Key
	}
	var in pkcs1
	if rest, err := asn1.Unmarshal(der, &in); err != nil || len(rest) != 0 {
		if _, err := x509.ParsePKIXPublicKey(der); err == nil {
			return nil, errors.New("it is a public key, want the private one")
		}
		return nil, errors.New("it is neither PKCS #8 nor PKCS #1")
	}
	if in.Version != 0 {
		return nil, errors.New("it has more than two primes")
	}
	public, err := publicKey(in.N, in.E, true)
	if err != nil {
		return nil, err
	}
	if in.D.Sign() <= 0 || in.D.Cmp(in.N) >= 0 {
		return nil, errors.New("its private exponent is out of range")
	}
	key := &rsa.PrivateKey{PublicKey: *public, D: in.D}
	if in.P.Sign() == 0 && in.Q.Sign() == 0 {
		key.Precompute()
		return key, nil // try will tell whether D fits
	}
	if in.P.Sign() <= 0 || in.Q.Sign() <= 0 {
		return nil, errors.New("one of its primes is not positive")
	}
	key.Primes = []*big.Int{in.P, in.Q}
	key.Precompute()
	if err := key.Validate(); err != nil {
		return nil, fmt.Errorf("its parts do not fit each other: %w", err)
	}
	return key, nil
}

// publicKey judges a modulus and an exponent.
func publicKey(n, e *big.Int, orDefault bool) (*rsa.PublicKey, error) {
	if bits := n.BitLen(); n.Sign() <= 0 || bits < minBits || bits > maxBits {
		return nil, fmt.Errorf("it has %d bits, want %d to %d", bits, minBits, maxBits)
	}
	if n.Bit(0) == 0 {
		return nil, errors.New("its modulus is even")
	}
	exponent := int64(65537)
	if e.Sign() != 0 || !orDefault {
		if !e.IsInt64() || e.Int64() < 3 || e.Int64() > math.MaxInt32 || e.Bit(0) == 0 {
			return nil, errors.New("its public exponent is out of range")
		}
		exponent = e.Int64()
	}
	return &rsa.PublicKey{N: n, E: int(exponent)}, nil
}

// try encrypts and decrypts once.
func (k *PrivateKey) try() error {
	probe := make([]byte, KeyLen)
	rand.Read(probe)
	body, err := k.Public().Encrypt(probe)
	if err != nil {
		return err
	}
	if !bytes.Equal(k.Decrypt(body), probe) {
		return errors.New("its private exponent does not fit the rest")
	}
	return nil
}

func (k *PrivateKey) Bits() int          { return k.key.N.BitLen() }
func (k *PrivateKey) Public() *PublicKey { return &PublicKey{&k.key.PublicKey} }

// Fingerprint tells keys apart: the beginning of the SHA-256 over the public
// half. nil of no key.
func (k *PrivateKey) Fingerprint() []byte {
	if k == nil {
		return nil
	}
	sum := sha256.Sum256(x509.MarshalPKCS1PublicKey(&k.key.PublicKey))
	return sum[:8]
}

// Stock reports whether this is the published key that everybody has.
func (k *PrivateKey) Stock() bool { return k.key.N.Cmp(stockModulus()) == 0 }

var stockModulus = sync.OnceValue(func() *big.Int {
	key, err := ParsePublicKey([]byte(StockPublicKey))
	if err != nil {
		panic(err)
	}
	return key.key.N
})

// Decrypt decrypts a HANDSHAKE's body, which is cut into blocks of the key's
// length (section 5). It never fails, for an attacker who learns what fails can
// decrypt what he recorded: what cannot be decrypted becomes bytes that look as
// if it could, always the same ones for the same block, and whoever parses them
// refuses them as it refuses any other nonsense.
//
// A wrong block is replaced by itself, and costs as much time as a good one;
// were all replaced for one, a sender could put one block of his own before
// another's and learn about that. Only a wrong length, which is no secret, is
// seen at once.
func (k *PrivateKey) Decrypt(body []byte) []byte {
	size := len(k.n)
	if len(body) == 0 || len(body)%size != 0 || len(body)/size > maxBlocks {
		return k.pretend(nil, body[:min(len(body), maxBlocks*size)])
	}
	plain := make([]byte, 0, len(body)-len(body)/size*padding)
	for ; len(body) > 0; body = body[size:] {
		plain = k.block(plain, body[:size])
	}
	return plain
}

// block appends what one block decrypts to, or seems to.
func (k *PrivateKey) block(dst, block []byte) []byte {
	c, bad := block, false
	if bytes.Compare(c, k.n) >= 0 { // crypto/rsa would refuse it without any work
		c, bad = bytes.Clone(c), true
		c[0] = 0
	}
	// Either way both are made; what is left between them is a branch.
	pretended := k.pretend(dst, block)
	//lint:ignore SA1019 old clients speak nothing else
	plain, err := rsa.DecryptPKCS1v15(nil, k.key, c)
	if err != nil || bad {
		return pretended
	}
	return append(dst, plain...)
}

// pretend appends bytes that nobody without the key can tell from what a block
// decrypts to: a pseudo-random number of them, pseudo-random themselves.
func (k *PrivateKey) pretend(dst, block []byte) []byte {
	var out [8 + maxBits/8]byte
	most := len(k.n) - padding
	h := sha3.NewSHAKE256()
	h.Write(k.secret[:])
	h.Write(block)
	h.Read(out[:8+most])
	n := int(binary.BigEndian.Uint64(out[:]) % uint64(most+1))
	return append(dst, out[8:8+n]...)
}

// PublicKey encrypts HANDSHAKEs. It is safe for concurrent use.
type PublicKey struct {
	key *rsa.PublicKey
}

// ParsePublicKey reads an X.509 public key in PEM, in base64 without PEM's
// lines, or in DER.
func ParsePublicKey(b []byte) (*PublicKey, error) {
	der, kind, err := unwrap(b)
	if err != nil {
		return nil, err
	}
	if kind != "" && kind != "PUBLIC KEY" {
		return nil, fmt.Errorf("PEM has %.40q, want a PUBLIC KEY", kind)
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, errors.New("it is not an X.509 public key")
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("it is not an RSA key")
	}
	if key, err = publicKey(key.N, big.NewInt(int64(key.E)), false); err != nil {
		return nil, err
	}
	return &PublicKey{key}, nil
}

func (k *PublicKey) Bits() int { return k.key.N.BitLen() }

// Encrypt is the opposite of Decrypt: plain is cut into blocks as long as
// possible. It fails when there would be more of them than Decrypt takes.
func (k *PublicKey) Encrypt(plain []byte) ([]byte, error) {
	most := k.key.Size() - padding
	if len(plain) > maxBlocks*most {
		return nil, fmt.Errorf("mpush: %d bytes are too many for RSA, want %d at most", len(plain), maxBlocks*most)
	}
	var body []byte
	for {
		n := min(len(plain), most)
		//lint:ignore SA1019 old servers speak nothing else
		block, err := rsa.EncryptPKCS1v15(rand.Reader, k.key, plain[:n])
		if err != nil {
			return nil, err
		}
		body = append(body, block...)
		if plain = plain[n:]; len(plain) == 0 {
			return body, nil
		}
	}
}

// unwrap returns the DER in b, and what PEM calls it if it is in PEM.
func unwrap(b []byte) (der []byte, kind string, err error) {
	if bytes.Contains(b, []byte("-----BEGIN ")) {
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, "", errors.New("its PEM cannot be read")
		}
		if block.Headers["DEK-Info"] != "" {
			return nil, "", errors.New("the key is encrypted, decrypt it first")
		}
		return block.Bytes, block.Type, nil
	}
	if len(b) > 1 && b[0] == 0x30 && b[1] >= 0x80 { // a SEQUENCE of 128 bytes or more: no base64 has the second byte
		return b, "", nil
	}
	text := bytes.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, b)
	text = bytes.TrimRight(text, "=")
	if len(text) == 0 {
		return nil, "", errors.New("there is no key")
	}
	der = make([]byte, base64.RawStdEncoding.DecodedLen(len(text)))
	if _, err := base64.RawStdEncoding.Decode(der, text); err != nil {
		return nil, "", errors.New("it is neither PEM nor base64 nor DER")
	}
	return der, "", nil
}

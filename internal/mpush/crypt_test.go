package mpush

import (
	"bytes"
	"compress/zlib"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
	"sync"
	"testing"
)

// AES.

func TestWhatIsSealedOpens(t *testing.T) {
	c := loadVectors(t).cipher(t)
	for n := range 100 {
		plain := bytes.Repeat([]byte{byte(n)}, n)
		sealed := c.Append([]byte("before"), plain)
		if string(sealed[:6]) != "before" || len(sealed)-6 != SealedLen(n) || SealedLen(n)%16 != 0 || SealedLen(n) <= n || SealedLen(n) > n+16 {
			t.Fatalf("%d bytes become %d, SealedLen %d", n, len(sealed)-6, SealedLen(n))
		}
		got, err := c.Open(sealed[6:])
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes: %x, %v", n, got, err)
		}
		if n > 0 && &got[0] != &sealed[6] {
			t.Fatal("it was not opened in place")
		}
	}
}

func TestAppendEncryptsInPlaceToo(t *testing.T) {
	c := loadVectors(t).cipher(t)
	plain := []byte("a body of more than one block")
	want := c.Append(nil, plain)
	for _, room := range []int{0, 16, 64} {
		for _, shift := range []int{0, 1, 7} {
			b := make([]byte, 3, 3+shift+len(plain)+room)
			b = append(b[:3+shift], plain...)
			if got := c.Append(b[:3], b[3+shift:]); !bytes.Equal(got[3:], want) {
				t.Errorf("room %d, shift %d: %x, want %x", room, shift, got[3:], want)
			}
		}
	}
}

func TestOpenRefusesWrongLengthsAndPadding(t *testing.T) {
	c := loadVectors(t).cipher(t)
	for n := range 50 {
		if n > 0 && n%16 == 0 {
			continue
		}
		if got, err := c.Open(make([]byte, n)); err != ErrDecrypt || got != nil {
			t.Errorf("%d bytes: %x, %v", n, got, err)
		}
	}
	// Every last byte, with the bytes before it right but for one.
	for last := range 256 {
		for wrong := range 16 {
			block := bytes.Repeat([]byte{byte(last)}, 16)
			block[wrong] ^= 1
			end := int(block[15])
			want := end >= 1 && end <= 16 && (wrong < 16-end || wrong == 15 && end == 1)
			body := bytes.Clone(block)
			for i, b := range c.iv {
				body[i] ^= b
			}
			c.block.Encrypt(body, body)
			got, err := c.Open(body)
			if (err == nil) != want || err == nil && !bytes.Equal(got, block[:16-end]) {
				t.Fatalf("block %x: %x, %v; want %v", block, got, err, want)
			}
		}
	}
}

func TestAKeyOrIvOfAnotherLengthIsRefused(t *testing.T) {
	for _, n := range []int{0, 1, 15, 17, 24, 32} {
		if _, err := NewCipher(make([]byte, n), make([]byte, 16)); err == nil {
			t.Errorf("key of %d bytes is taken", n)
		}
		if _, err := NewCipher(make([]byte, 16), make([]byte, n)); err == nil {
			t.Errorf("iv of %d bytes is taken", n)
		}
	}
}

func TestACipherKeepsItsOwnKeyAndIv(t *testing.T) {
	key, iv := bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{2}, 16)
	c := mustCipher(t, key, iv)
	before := c.Append(nil, []byte("x"))
	clear(key)
	clear(iv)
	k, v := c.Key(), c.IV()
	if k != [16]byte(bytes.Repeat([]byte{1}, 16)) || v != [16]byte(bytes.Repeat([]byte{2}, 16)) || !bytes.Equal(c.Append(nil, []byte("x")), before) {
		t.Error("it changed with the slices it was made of")
	}
	clear(k[:])
	if c.Key() == k {
		t.Error("Key gives the Cipher's own")
	}
}

func TestACipherAllocatesNothing(t *testing.T) {
	c := loadVectors(t).cipher(t)
	plain := make([]byte, 300)
	dst := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() { dst = c.Append(dst[:0], plain) }); n != 0 {
		t.Errorf("Append into enough room: %v allocations", n)
	}
	body := make([]byte, len(dst))
	if n := testing.AllocsPerRun(100, func() {
		copy(body, dst)
		if _, err := c.Open(body); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Open: %v allocations", n)
	}
}

func TestACipherIsForManyGoroutines(t *testing.T) {
	c := loadVectors(t).cipher(t)
	want := c.Append(nil, []byte("the same for all"))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				b := c.Append(nil, []byte("the same for all"))
				if !bytes.Equal(b, want) {
					t.Error("another ciphertext")
				}
				c.Open(b)
			}
		})
	}
	wg.Wait()
}

// zlib.

func deflated(b []byte) []byte { return AppendDeflate(nil, b) }

func TestWhatIsDeflatedInflates(t *testing.T) {
	for _, n := range []int{0, 1, 511, 512, 513, 1024, 65536, 300_000} {
		in := make([]byte, n)
		for i := range in {
			in[i] = byte(i * i >> 3)
		}
		out := AppendDeflate([]byte("before"), in)
		if !bytes.HasPrefix(out, []byte("before\x78\x9c")) {
			t.Fatalf("%d bytes begin with %.8x", n, out)
		}
		for _, limit := range []int{n, n + 1, math.MaxInt} {
			got, err := Inflate(out[6:], limit)
			if err != nil || !bytes.Equal(got, in) {
				t.Fatalf("%d bytes, limit %d: %d bytes, %v", n, limit, len(got), err)
			}
		}
		for _, limit := range []int{n - 1, n / 2, 0, -1} {
			if limit >= n {
				continue
			}
			want := ErrInflated
			if n == 0 {
				want = nil // a limit below 0 is 0
			}
			if got, err := Inflate(out[6:], limit); err != want {
				t.Fatalf("%d bytes, limit %d: %d bytes, %v", n, limit, len(got), err)
			}
		}
	}
}

func TestWhatIsNotOneWholeStreamIsRefused(t *testing.T) {
	good := deflated([]byte(strings.Repeat("a good body ", 30)))
	changed := func(at int) []byte {
		b := bytes.Clone(good)
		b[(at+len(b))%len(b)] ^= 0x10
		return b
	}
	for name, in := range map[string][]byte{
		"nothing":             nil,
		"garbage":             []byte("garbage, and more of it"),
		"gzip":                []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00"),
		"deflate bare":        good[2 : len(good)-4],
		"wrong header check":  changed(1),
		"wrong adler, first":  changed(-4),
		"wrong adler, last":   changed(-1),
		"trailing byte":       append(bytes.Clone(good), 0),
		"two streams":         append(bytes.Clone(good), good...),
		"preset dictionary":   withDictionary(t),
		"header alone":        good[:2],
		"reserved block type": {0x78, 0x9c, 0x07, 0, 0, 0, 0, 1},
	} {
		if got, err := Inflate(in, 1<<20); err != ErrInflate || got != nil {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		// And what was refused leaves nothing behind in what is used again.
		if _, err := Inflate(good, 1<<20); err != nil {
			t.Fatalf("after %s: %v", name, err)
		}
	}
	if err := new(inflater).reset(); err == nil {
		t.Error("a new one takes nothing for a header")
	}
	for cut := range good {
		if _, err := Inflate(good[:cut], 1<<20); err != ErrInflate {
			t.Errorf("cut at %d of %d: %v", cut, len(good), err)
		}
	}
}

func withDictionary(t *testing.T) []byte {
	var b bytes.Buffer
	w, err := zlib.NewWriterLevelDict(&b, 6, []byte("dictionary"))
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("a dictionary"))
	w.Close()
	return b.Bytes()
}

func TestABombIsCutOffAtTheLimit(t *testing.T) {
	bomb := deflated(make([]byte, 10<<20))
	if len(bomb) > 11<<10 {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	const limit = 256 << 10
	Inflate(bomb, limit) // so that the pool has one
	if got := bytesAllocated(func() {
		if _, err := Inflate(bomb, limit); err != ErrInflated {
			t.Fatal(err)
		}
	}); got > 4*limit+64<<10 {
		t.Errorf("%d bytes allocated for a limit of %d", got, limit)
	}

	// The memory follows what comes out, not the limit.
	small := deflated([]byte("small"))
	if got := bytesAllocated(func() {
		if _, err := Inflate(small, math.MaxInt); err != nil {
			t.Fatal(err)
		}
	}); got > 128<<10 {
		t.Errorf("%d bytes allocated for 5", got)
	}
}

func TestInflateInflatesOnce(t *testing.T) {
	inner := deflated([]byte("inner"))
	if got, err := Inflate(deflated(inner), 1000); err != nil || !bytes.Equal(got, inner) {
		t.Errorf("%x, %v", got, err)
	}
}

// RSA.

var key2048 = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func asPKCS8(t testing.TB, key any) []byte {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func asPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// wellFormed is the 1024 bit key with primes.
func wellFormed(t testing.TB) *PrivateKey { return mustPrivate(t, loadVectors(t).Cfg.WellFormed) }

// big1024 is that key for tests to break.
func big1024(t testing.TB) pkcs1 {
	k := wellFormed(t).key
	return pkcs1{
		0, k.N, big.NewInt(int64(k.E)), k.D, k.Primes[0], k.Primes[1],
		k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv,
	}
}

func asDER(t testing.TB, key pkcs1) []byte {
	t.Helper()
	b, err := asn1.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPrivateKeysInEveryWrapping(t *testing.T) {
	key := key2048()
	pkcs8DER, pkcs1DER := asPKCS8(t, key), x509.MarshalPKCS1PrivateKey(key)
	stock, _ := base64.StdEncoding.DecodeString(StockPrivateKey)
	b64 := base64.StdEncoding.EncodeToString(pkcs8DER)
	var wrapped strings.Builder
	for i := 0; i < len(b64); i += 64 {
		wrapped.WriteString(" " + b64[i:min(i+64, len(b64))] + "\r\n\t")
	}
	for name, in := range map[string][]byte{
		"PKCS #8 in PEM":            asPEM("PRIVATE KEY", pkcs8DER),
		"PKCS #1 in PEM":            asPEM("RSA PRIVATE KEY", pkcs1DER),
		"PEM behind a comment":      append([]byte("a comment\n"), asPEM("PRIVATE KEY", pkcs8DER)...),
		"PKCS #8 in base64":         []byte(b64),
		"PKCS #8 in base64 unended": []byte(strings.TrimRight(b64, "=")),
		"PKCS #8 in lines":          []byte(wrapped.String()),
		"PKCS #1 in base64":         []byte(base64.StdEncoding.EncodeToString(pkcs1DER)),
		"PKCS #8 in DER":            pkcs8DER,
		"PKCS #1 in DER":            pkcs1DER,
		"stock in base64":           []byte(StockPrivateKey),
		"stock in PEM":              asPEM("PRIVATE KEY", stock),
		"stock in DER":              stock,
	} {
		k, err := ParsePrivateKey(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantBits := 2048
		if strings.HasPrefix(name, "stock") {
			wantBits = 1024
		}
		if k.Bits() != wantBits || k.Public().Bits() != wantBits || k.Stock() != (wantBits == 1024) || len(k.key.Primes) != 2 && !k.Stock() {
			t.Errorf("%s: %d bits, stock %v, %d primes", name, k.Bits(), k.Stock(), len(k.key.Primes))
		}
	}
}

func TestKeysThatAreNoneAreErrorsThatSayWhy(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, _ := base64.StdEncoding.DecodeString(StockPublicKey)
	edit := func(f func(*pkcs1)) []byte {
		k := big1024(t)
		f(&k)
		return asDER(t, k)
	}
	zero, one := new(big.Int), big.NewInt(1)
	plus := func(n *big.Int, d int64) *big.Int { return new(big.Int).Add(n, big.NewInt(d)) }
	noPrimes := func(k *pkcs1) { k.P, k.Q, k.Dp, k.Dq, k.Qi = zero, zero, zero, zero, zero }
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"nothing":             {nil, "there is no key"},
		"white space":         {[]byte(" \n"), "there is no key"},
		"a word":              {[]byte("secret!"), "neither PEM nor base64 nor DER"},
		"base64 of nonsense":  {[]byte("bm9uc2Vuc2U="), "neither PKCS #8 nor PKCS #1"},
		"a public key":        {[]byte(StockPublicKey), "it is a public key"},
		"a public key in PEM": {asPEM("PUBLIC KEY", public), `PEM has "PUBLIC KEY"`},
		"a certificate":       {asPEM("CERTIFICATE", public), `PEM has "CERTIFICATE"`},
		"broken PEM":          {[]byte("-----BEGIN PRIVATE KEY-----\nMIIB"), "PEM cannot be read"},
		"an encrypted key":    {asPEM("ENCRYPTED PRIVATE KEY", public), "encrypted"},
		"a key encrypted by PEM": {pem.EncodeToMemory(&pem.Block{
			Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: public,
		}), "encrypted"},
		"an elliptic curve":                   {asPKCS8(t, ec), "not an RSA key"},
		"cut DER":                             {asPKCS8(t, key2048())[:300], "neither PKCS #8 nor PKCS #1"},
		"DER and more":                        {append(asPKCS8(t, key2048()), 0), "neither PKCS #8 nor PKCS #1"},
		"three primes":                        {edit(func(k *pkcs1) { k.Version = 1 }), "more than two primes"},
		"modulus 0":                           {edit(func(k *pkcs1) { k.N = zero }), "0 bits"},
		"modulus negative":                    {edit(func(k *pkcs1) { k.N = new(big.Int).Neg(k.N) }), "bits"},
		"modulus even":                        {edit(func(k *pkcs1) { k.N = plus(k.N, 1) }), "even"},
		"512 bits":                            {edit(func(k *pkcs1) { k.N = new(big.Int).Rsh(k.N, 512) }), "it has 512 bits, want 1024 to 4096"},
		"1023 bits":                           {edit(func(k *pkcs1) { k.N = new(big.Int).Rsh(k.N, 1) }), "it has 1023 bits"},
		"4097 bits":                           {edit(func(k *pkcs1) { k.N = plus(new(big.Int).Lsh(one, 4096), 1) }), "it has 4097 bits"},
		"a million bits":                      {edit(func(k *pkcs1) { k.N = plus(new(big.Int).Lsh(one, 1_000_000), 1) }), "it has 1000001 bits"},
		"exponent 1":                          {edit(func(k *pkcs1) { k.E = one }), "public exponent"},
		"exponent even":                       {edit(func(k *pkcs1) { k.E = big.NewInt(65536) }), "public exponent"},
		"exponent negative":                   {edit(func(k *pkcs1) { k.E = big.NewInt(-3) }), "public exponent"},
		"exponent of 32 bits":                 {edit(func(k *pkcs1) { k.E = big.NewInt(1<<31 + 1) }), "public exponent"},
		"exponent of 100 bits":                {edit(func(k *pkcs1) { k.E = plus(new(big.Int).Lsh(one, 100), 1) }), "public exponent"},
		"private exponent 0":                  {edit(func(k *pkcs1) { k.D = zero }), "private exponent"},
		"private exponent too big":            {edit(func(k *pkcs1) { k.D = k.N }), "private exponent"},
		"another exponent":                    {edit(func(k *pkcs1) { k.E = big.NewInt(3) }), "do not fit each other"},
		"another private one":                 {edit(func(k *pkcs1) { k.D = plus(k.D, 2) }), "do not fit each other"},
		"another prime":                       {edit(func(k *pkcs1) { k.P = plus(k.P, 2) }), "do not fit each other"},
		"the same prime twice":                {edit(func(k *pkcs1) { k.P = k.Q }), "do not fit each other"},
		"only one prime":                      {edit(func(k *pkcs1) { k.Q = zero }), "primes"},
		"a negative prime":                    {edit(func(k *pkcs1) { k.Q = plus(zero, -7) }), "primes"},
		"no primes, another private exponent": {edit(func(k *pkcs1) { noPrimes(k); k.D = plus(k.D, 2) }), "does not fit"},
		"no primes, another exponent":         {edit(func(k *pkcs1) { noPrimes(k); k.E = big.NewInt(3) }), "does not fit"},
	} {
		k, err := ParsePrivateKey(c.in)
		if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 120 {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		if k != nil {
			t.Errorf("%s: there is a key all the same", name)
		}
	}

	// What is enough.
	for name, in := range map[string][]byte{
		"no primes":                 edit(noPrimes),
		"no primes and no exponent": edit(func(k *pkcs1) { noPrimes(k); k.E = zero }),
		"no exponent":               edit(func(k *pkcs1) { k.E = zero }),
		"primes alone":              edit(func(k *pkcs1) { k.Dp, k.Dq, k.Qi = zero, zero, zero }),
	} {
		if _, err := ParsePrivateKey(in); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPublicKeys(t *testing.T) {
	der, _ := base64.StdEncoding.DecodeString(StockPublicKey)
	for name, in := range map[string][]byte{
		"base64": []byte(StockPublicKey), "lines": []byte(StockPublicKey[:64] + "\n" + StockPublicKey[64:] + "\n"),
		"DER": der, "PEM": asPEM("PUBLIC KEY", der),
	} {
		if k, err := ParsePublicKey(in); err != nil || k.Bits() != 1024 {
			t.Errorf("%s: %v", name, err)
		}
	}
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ecDER, _ := x509.MarshalPKIXPublicKey(&ec.PublicKey)
	small, _ := asn1.Marshal(struct {
		A pkix.AlgorithmIdentifier
		K asn1.BitString
	}{
		pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: func() []byte {
			b, _ := asn1.Marshal(struct {
				N *big.Int
				E int
			}{new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 511), big.NewInt(1)), 65537})
			return b
		}()},
	})
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"nothing":        {nil, "there is no key"},
		"a private key":  {[]byte(StockPrivateKey), "not an X.509 public key"},
		"an EC key":      {asPEM("PUBLIC KEY", ecDER), "not an RSA key"},
		"PKCS #1 in PEM": {asPEM("RSA PUBLIC KEY", der), `PEM has "RSA PUBLIC KEY"`},
		"512 bits":       {asPEM("PUBLIC KEY", small), "512 bits"},
	} {
		if _, err := ParsePublicKey(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

func TestWhatIsEncryptedDecrypts(t *testing.T) {
	for _, k := range []*PrivateKey{mustPrivate(t, StockPrivateKey), wellFormed(t), mustPrivate(t, string(asPKCS8(t, key2048())))} {
		block := k.Bits() / 8
		most := block - padding
		for _, n := range []int{0, 1, most - 1, most, most + 1, 2 * most, 2*most + 1, maxBlocks * most} {
			plain := make([]byte, n)
			for i := range plain {
				plain[i] = byte(i)
			}
			body, err := k.Public().Encrypt(plain)
			if err != nil {
				t.Fatal(err)
			}
			if want := max(1, (n+most-1)/most) * block; len(body) != want {
				t.Errorf("%d bits: %d bytes become %d, want %d", k.Bits(), n, len(body), want)
			}
			before := bytes.Clone(body)
			if got := k.Decrypt(body); !bytes.Equal(got, plain) {
				t.Errorf("%d bits: %d bytes become %d others", k.Bits(), n, len(got))
			}
			if !bytes.Equal(body, before) {
				t.Error("Decrypt writes into the body")
			}
		}
		if _, err := k.Public().Encrypt(make([]byte, maxBlocks*most+1)); err == nil {
			t.Error("nine blocks are made")
		}
	}
}

// rawBlock is a block that decrypts to em, padding and all.
func rawBlock(k *PrivateKey, em []byte) []byte {
	m := new(big.Int).SetBytes(em)
	return m.Exp(m, big.NewInt(int64(k.key.E)), k.key.N).FillBytes(make([]byte, len(k.n)))
}

// wrongBlocks are blocks that no client makes.
func wrongBlocks(k *PrivateKey) map[string][]byte {
	size := len(k.n)
	em := func(f func(b []byte)) []byte {
		b := bytes.Repeat([]byte{0xAA}, size)
		b[0], b[1], b[60] = 0, 2, 0
		f(b)
		return rawBlock(k, b)
	}
	minus := func(d int64) []byte {
		return new(big.Int).Sub(k.key.N, big.NewInt(d)).FillBytes(make([]byte, size))
	}
	return map[string][]byte{
		"zero":                    make([]byte, size),
		"one":                     new(big.Int).SetInt64(1).FillBytes(make([]byte, size)),
		"modulus - 1":             minus(1),
		"modulus":                 minus(0),
		"modulus + 1":             minus(-1),
		"highest":                 bytes.Repeat([]byte{0xFF}, size),
		"random":                  em(func(b []byte) { copy(b[1:], "random") }),
		"first byte is not 0":     em(func(b []byte) { b[0] = 1 }),
		"type 1":                  em(func(b []byte) { b[1] = 1 }),
		"no zero":                 em(func(b []byte) { b[60] = 1 }),
		"padding of seven bytes":  em(func(b []byte) { b[9] = 0 }),
		"padding of no byte":      em(func(b []byte) { b[2] = 0 }),
		"modulus + a good block":  new(big.Int).Add(k.key.N, new(big.Int).SetBytes(em(func([]byte) {}))).FillBytes(make([]byte, size+1))[1:],
		"above, and good with 0s": aboveAndGood(k),
	}
}

// aboveAndGood is a block over the modulus that would be a good one if its
// first byte were 0.
func aboveAndGood(k *PrivateKey) []byte {
	for i := range 1000_000 {
		block, err := k.Public().Encrypt([]byte{byte(i)})
		if err != nil {
			panic(err)
		}
		if block[0] == 0 {
			block[0] = 0xFF
			return block
		}
	}
	panic("no block begins with 0")
}

func TestDecryptNeverTellsWhatIsWrong(t *testing.T) {
	for _, k := range []*PrivateKey{mustPrivate(t, StockPrivateKey), wellFormed(t)} {
		most := len(k.n) - padding
		good, err := k.Public().Encrypt([]byte("good"))
		if err != nil {
			t.Fatal(err)
		}
		for name, block := range wrongBlocks(k) {
			got := k.Decrypt(block)
			if len(got) > most {
				t.Errorf("%s: %d bytes", name, len(got))
			}
			if again := k.Decrypt(block); !bytes.Equal(again, got) {
				t.Errorf("%s: %x, and again %x", name, got, again)
			}
			var h Handshake
			if h.Decode(got) == nil {
				t.Errorf("%s: it is a handshake", name)
			}
			// Among good blocks it is replaced alone, by the same bytes: a
			// neighbour changes nothing.
			mixed := k.Decrypt(bytes.Join([][]byte{good, block, good}, nil))
			if want := "good" + string(got) + "good"; string(mixed) != want {
				t.Errorf("%s between good blocks: %q, want %q", name, mixed, want)
			}
		}
		for name, body := range map[string][]byte{
			"empty":              nil,
			"one byte":           {1},
			"a byte less":        good[1:],
			"a byte more":        append(bytes.Clone(good), 1),
			"nine blocks":        bytes.Repeat(good, maxBlocks+1),
			"64 KiB":             bytes.Repeat(good, 64<<10/len(good)),
			"64 KiB of anything": make([]byte, 65_535),
		} {
			if got := k.Decrypt(body); len(got) > most || bytes.Contains(got, []byte("good")) {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
}

func TestAnotherKeysHandshakeBecomesNonsense(t *testing.T) {
	a, b := mustPrivate(t, StockPrivateKey), wellFormed(t)
	plain := (&Handshake{DeviceID: "d", IV: make([]byte, 16), ClientKey: make([]byte, 16)}).Append(nil)
	body, err := a.Public().Encrypt(plain)
	if err != nil {
		t.Fatal(err)
	}
	var h Handshake
	if got := b.Decrypt(body); bytes.Equal(got, plain) || h.Decode(got) == nil {
		t.Errorf("it decrypts to %x", got)
	}
}

// What stands for a wrong block has every length, so that no length tells.
func TestNonsenseHasEveryLength(t *testing.T) {
	k := mustPrivate(t, StockPrivateKey)
	most := len(k.n) - padding
	seen := map[int]int{}
	block := make([]byte, len(k.n))
	for i := range 10_000 {
		block[0], block[1] = byte(i>>8), byte(i)
		seen[len(k.pretend(nil, block))]++
	}
	for n := range most + 1 {
		if seen[n] < 40 || seen[n] > 150 { // about 85
			t.Errorf("length %d: %d of 10000", n, seen[n])
		}
	}
	if len(seen) != most+1 {
		t.Errorf("%d lengths, want %d", len(seen), most+1)
	}
}

func TestDecryptIsForManyGoroutines(t *testing.T) {
	k := wellFormed(t)
	body, err := k.Public().Encrypt([]byte("the same for all"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				if string(k.Decrypt(body)) != "the same for all" {
					t.Error("another plaintext")
				}
				k.Decrypt(make([]byte, len(body)))
			}
		})
	}
	wg.Wait()
}

func TestErrorsOfTheCodecSayWhoseTheyAre(t *testing.T) {
	for _, err := range []error{ErrNegative, ErrTooBig, ErrBody, ErrInflate, ErrInflated, ErrDecrypt, ErrJSON} {
		if !strings.HasPrefix(err.Error(), "mpush: ") {
			t.Errorf("%q", err)
		}
	}
	if errors.Is(ErrInflate, ErrInflated) || errors.Is(ErrInflated, ErrInflate) {
		t.Error("the two of Inflate cannot be told apart")
	}
	_, err := NewCipher([]byte("top secret"), nil)
	if s := fmt.Sprint(err); strings.Contains(s, "secret") {
		t.Error(s)
	}
}

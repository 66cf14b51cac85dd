package mpush

import (
	"bytes"
	"fmt"
	"testing"
)

func BenchmarkParseHeader(b *testing.B) {
	in := claimed(300)
	b.ReportAllocs()
	var h Header
	for b.Loop() {
		h = ParseHeader(in)
	}
	_ = h
}

func BenchmarkAppendHeader(b *testing.B) {
	h := ParseHeader(claimed(300))
	dst := make([]byte, 0, 64)
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendHeader(dst[:0], h)
	}
}

func BenchmarkNext128(b *testing.B) {
	in := AppendPacket(nil, CmdPush, 0, 1, make([]byte, 128))
	r := Reader{Max: 64 << 10}
	var p Packet
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Next(in, &p); err != nil || !p.OK {
			b.Fatal(err)
		}
	}
}

// BenchmarkNextSplit128 is a packet whose body comes in two pieces.
func BenchmarkNextSplit128(b *testing.B) {
	in := AppendPacket(nil, CmdPush, 0, 1, make([]byte, 128))
	r := Reader{Max: 64 << 10}
	var p Packet
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		r.Next(in[:50], &p)
		if _, err := r.Next(in[50:], &p); err != nil || !p.OK {
			b.Fatal(err)
		}
	}
}

func BenchmarkNextBeats(b *testing.B) {
	in := bytes.Repeat([]byte{Beat}, 100)
	r := Reader{Max: 64 << 10}
	var p Packet
	b.ReportAllocs()
	for b.Loop() {
		for rest := in; len(rest) > 0; rest = rest[1:] {
			r.Next(rest, &p)
		}
	}
}

// BenchmarkBody is each body of section 4.
func BenchmarkBody(b *testing.B) {
	for _, body := range someBodies() {
		name := fmt.Sprintf("%T", body)[len("*mpush."):]
		in := body.Append(nil)
		b.Run("Decode/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := body.Decode(in); err != nil {
					b.Fatal(err)
				}
			}
		})
		dst := make([]byte, 0, 1024)
		b.Run("Append/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				dst = body.Append(dst[:0])
			}
		})
	}
}

// BenchmarkRSA is a handshake of one block.
func BenchmarkRSA(b *testing.B) {
	for name, k := range map[string]*PrivateKey{
		"1024stock": mustPrivate(b, StockPrivateKey),
		"1024":      wellFormed(b),
		"2048":      mustPrivate(b, string(asPKCS8(b, key2048()))),
	} {
		plain := make([]byte, 83)
		body, err := k.Public().Encrypt(plain)
		if err != nil {
			b.Fatal(err)
		}
		wrong := make([]byte, len(body))
		b.Run("Decrypt/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				k.Decrypt(body)
			}
		})
		b.Run("DecryptWrong/"+name, func(b *testing.B) {
			for b.Loop() {
				k.Decrypt(wrong)
			}
		})
		b.Run("Encrypt/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				k.Public().Encrypt(plain)
			}
		})
	}
}

func BenchmarkCipher(b *testing.B) {
	c := loadVectors(b).cipher(b)
	for _, n := range []int{16, 256, 4096} {
		plain := make([]byte, n)
		dst := make([]byte, 0, SealedLen(n))
		b.Run(fmt.Sprintf("Append/%d", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				dst = c.Append(dst[:0], plain)
			}
		})
		body := make([]byte, len(dst))
		b.Run(fmt.Sprintf("Open/%d", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				copy(body, dst)
				if _, err := c.Open(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("New", func(b *testing.B) {
		key := make([]byte, KeyLen)
		b.ReportAllocs()
		for b.Loop() {
			NewCipher(key, key)
		}
	})
}

// BenchmarkDeflate and BenchmarkInflate are a text as long as those that the
// clients (2 KB) and the servers (12 KB) begin to compress, and a bomb.
func BenchmarkDeflate(b *testing.B) {
	for _, n := range []int{2 << 10, 12 << 10} {
		in := someText(n)
		var dst []byte
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				dst = AppendDeflate(dst[:0], in)
			}
		})
	}
}

func BenchmarkInflate(b *testing.B) {
	for _, n := range []int{2 << 10, 12 << 10} {
		in := deflated(someText(n))
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Inflate(in, n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	bomb := deflated(make([]byte, 10<<20))
	b.Run("bomb", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Inflate(bomb, 256<<10); err != ErrInflated {
				b.Fatal(err)
			}
		}
	})
}

func someText(n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		b = fmt.Appendf(b, `{"id":%d,"text":"message %x for you"},`, i, i*i*7919)
	}
	return b[:n]
}

func BenchmarkJSON(b *testing.B) {
	text := []byte(`{"cmd":5,"flags":16,"sessionId":2,"body":{"userId":"user-1","tags":"a,b","data":"token"}}`)
	b.Run("Parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p, err := ParseJSON(text)
			var in Bind
			if err != nil || in.DecodeJSON(p.Body) != nil {
				b.Fatal(err)
			}
		}
	})
	dst := make([]byte, 0, 1024)
	b.Run("AppendPush", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			dst, _ = AppendPushJSON(dst[:0], FlagAutoAck, 1, "hello mpush")
		}
	})
}

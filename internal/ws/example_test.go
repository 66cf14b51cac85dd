package ws_test

import (
	"fmt"

	"github.com/embedpush/push/internal/ws"
)

// The client's "Hello" of RFC 6455 section 5.7, as two reads might bring it.
func ExampleReader() {
	r := ws.Reader{Max: 64 << 10}
	for _, in := range [][]byte{
		{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f},
		{0x4d, 0x51, 0x58},
	} {
		var m ws.Message
		for len(in) > 0 {
			n, err := r.Next(in, &m)
			if err != nil {
				fmt.Println(err)
				return
			}
			if m.Op != 0 {
				fmt.Printf("%d %s\n", m.Op, m.Payload)
			}
			in = in[n:]
		}
		fmt.Println("partial:", r.Partial())
	}
	// Output:
	// partial: true
	// 1 Hello
	// partial: false
}

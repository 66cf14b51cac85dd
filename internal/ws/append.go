package ws

import (
	"encoding/binary"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/embedpush/push/internal/wire"
)

// AppendFrame appends a message as one frame.
func AppendFrame(dst []byte, op Opcode, payload []byte) []byte {
	return append(AppendHeader(dst, op, len(payload)), payload...)
}

// AppendHeader appends the header of a final frame of n bytes, unmasked, as a
// server's frames MUST be (RFC 6455 section 5.1), in the shortest form (5.2).
func AppendHeader(dst []byte, op Opcode, n int) []byte {
	first := finBit | byte(op)
	switch {
	case n < 126:
		return append(dst, first, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, first, 126), uint16(n))
	default:
		return binary.BigEndian.AppendUint64(append(dst, first, 127), uint64(n))
	}
}

// HeaderLen is the length of what AppendHeader appends.
func HeaderLen(n int) int {
	switch {
	case n < 126:
		return 2
	case n <= math.MaxUint16:
		return 4
	default:
		return 10
	}
}

// AppendClose appends a close frame. The text is cut at a rune's border to the
// 123 bytes that fit (section 5.5); what is not UTF-8 in it is replaced, since
// a browser would fail the connection over it (8.1). With code 0 or
// wire.NoStatus the frame is empty: there is no text without a code (5.5.1).
func AppendClose(dst []byte, code wire.Code, text string) []byte {
	if code == 0 || code == wire.NoStatus {
		return AppendHeader(dst, Close, 0)
	}
	text = cut(strings.ToValidUTF8(text, string(utf8.RuneError)), maxControl-2)
	dst = AppendHeader(dst, Close, 2+len(text))
	dst = binary.BigEndian.AppendUint16(dst, uint16(code))
	return append(dst, text...)
}

// cut returns the longest beginning of s that has at most n bytes and ends at
// a rune's border.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

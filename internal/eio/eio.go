// Package eio is Engine.IO on the server's side, revisions 3 and 4, as bytes: a
// Reader turns what a client sends into packets, over a WebSocket or in the
// bodies of POSTs, and the Append functions make what the server sends. It has
// no goroutine, no socket and no clock, and it knows neither sessions nor
// Socket.IO, which is what the messages hold.
//
// What the server sends is made once, as WebSocket frames, whatever the
// transport: AppendBody turns frames that are queued into the answer to a GET.
// A Beat is the heartbeat of one session.
package eio

import "github.com/embedpush/push/internal/ws"

// Revision is the protocol's revision, the query parameter EIO of a session's
// first request. It does not change within a session.
type Revision uint8

const (
	V3 Revision = 3 // socket.io-client 1.x and 2.x
	V4 Revision = 4 // socket.io-client 3.x and 4.x
)

// PacketType is a packet's first character.
type PacketType byte

const (
	Open    PacketType = '0' + iota // server to client, the first packet: a Handshake
	Close                           // either way: the session ends
	Ping                            // V4: server to client; V3: client to server; "2probe", the client's, begins an upgrade
	Pong                            // the answer to a Ping, without data; "3probe" is the answer to "2probe"
	Message                         // either way; the only type that can be binary
	Upgrade                         // client to server: the upgrade is complete
	Noop                            // server to client: ends a GET
)

// Packet is one packet, or one control frame of a WebSocket.
type Packet struct {
	Type    PacketType // 0: nothing yet, or Control is set
	Binary  bool       // Data is not text but bytes; only a Message's
	Data    []byte     // what stands behind the type; valid until the next call of Next, and its reader may change it
	Control ws.Message // a ping, pong or close frame if its Op is not 0
}

// Allowed reports whether a session that is open may get p from its client,
// apart from the packets of an upgrade, on the socket that is upgraded to. It
// is about the direction of heartbeats: only a V4 client answers pings, so its
// Ping is an error, with or without "probe", and only a V3 client sends them, so
// its Pong is one. Open, Upgrade and Noop mean nothing from a client whose
// session is open; they are allowed and to be ignored, as npm's server does.
// Control frames are allowed.
func Allowed(rev Revision, p *Packet) bool {
	switch p.Type {
	case Ping:
		return rev == V3
	case Pong:
		return rev == V4
	default:
		return true
	}
}

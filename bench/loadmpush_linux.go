package main

import (
	"crypto/rand"
	"fmt"

	"github.com/embedpush/push/internal/mpush"
)

// handshake sends a HANDSHAKE with claims as long as those of real devices. Its
// answer is encrypted with the key that it names, in a plain session, too.
func (l *load) handshake(fd int, c *loadConn) error {
	key, iv := make([]byte, mpush.KeyLen), make([]byte, mpush.KeyLen)
	rand.Read(key)
	rand.Read(iv)
	answer, err := mpush.NewCipher(key, iv)
	if err != nil {
		return err
	}
	h := mpush.Handshake{
		DeviceID: fmt.Sprintf("%032d", c.user), OSName: "android", OSVersion: "14", ClientVersion: "1.2.3",
		IV: iv, ClientKey: key, MinHeartbeat: 180_000, MaxHeartbeat: 180_000,
	}
	body, flags := h.Append(nil), mpush.Flags(0)
	if c.door == doorMPushRSA {
		public, err := mpush.ParsePublicKey([]byte(mpush.StockPublicKey))
		if err != nil {
			return err
		}
		if body, err = public.Encrypt(body); err != nil {
			return err
		}
		flags = mpush.FlagCrypto
	}
	c.key = answer
	return l.write(fd, mpush.AppendPacket(nil, mpush.CmdHandshake, flags, 1, body))
}

// bind reads the answer to the HANDSHAKE and sends BIND, whose data is the
// room.
func (l *load) bind(fd int, c *loadConn) error {
	body, err := l.packetOf(fd, c, mpush.CmdHandshake)
	if err != nil {
		return err
	}
	if body, err = c.key.Open(body); err != nil {
		return err
	}
	var ok mpush.HandshakeOK
	if err := ok.Decode(body); err != nil {
		return err
	}
	clientKey, iv := c.key.Key(), c.key.IV()
	mixed := mpush.MixKey(clientKey[:], ok.ServerKey)
	if c.key, err = mpush.NewCipher(mixed[:], iv[:]); err != nil {
		return err
	}
	bind := mpush.Bind{UserID: fmt.Sprintf("u%d", c.user), Data: fmt.Sprintf("r%d", c.user/roomSize)}
	body, flags := bind.Append(nil), mpush.Flags(0)
	if c.door == doorMPushRSA {
		body, flags = c.key.Append(nil, body), mpush.FlagCrypto
	} else {
		c.key = nil
	}
	return l.write(fd, mpush.AppendPacket(nil, mpush.CmdBind, flags, 2, body))
}

func (l *load) bound(fd int, c *loadConn) error {
	_, err := l.packetOf(fd, c, mpush.CmdOK)
	return err
}

// packetOf awaits one packet, of this command.
func (l *load) packetOf(fd int, c *loadConn, want mpush.Cmd) (body []byte, err error) {
	var p mpush.Packet
	r := mpush.Reader{Max: -1}
	fed := 0
	err = l.await(fd, c, func(got []byte) (bool, error) {
		n, err := r.Next(got[fed:], &p)
		fed += n
		if err != nil || !p.OK {
			return false, err
		}
		if p.Cmd != want || fed != len(got) {
			return false, fmt.Errorf("command %d, want %d: %.300q", p.Cmd, want, got)
		}
		return true, nil
	})
	return append([]byte(nil), p.Body...), err
}

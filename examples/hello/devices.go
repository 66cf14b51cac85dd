package main

// What mpush devices need besides engine.Serve: an address, a key, and to be
// told where they connect.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"

	"github.com/embedpush/push"
)

const defaultDevices = "127.0.0.1:3000" // mpush's own port

// The pair of keys that mpush comes with, from its conf/reference.conf: its
// demo clients have the public half, and everybody has the private one. It is
// good for a first try. For more, `openssl genrsa -out FILE 2048` makes a key
// and `openssl rsa -in FILE -pubout` the half for the devices, which take what
// is between its first and last line.
const (
	stockPrivateKey = "MIIBNgIBADANBgkqhkiG9w0BAQEFAASCASAwggEcAgEAAoGBAKCE8JYKhsbydMPbiO7BJVq1pbuJWJHFxOR7L8Hv3ZVkSG4eNC8DdwAmDHYu/wadfw0ihKFm2gKDcLHp5yz5UQ8PZ8FyDYvgkrvGV0ak4nc40QDJWws621dm01e/INlGKOIStAAsxOityCLv0zm5Vf3+My/YaBvZcB5mGUsPbx8fAgEAAoGAAy0+WanRqwRHXUzt89OsupPXuNNqBlCEqgTqGAt4Nimq6Ur9u2R1KXKXUotxjp71Ubw6JbuUWvJg+5Rmd9RjT0HOUEQF3rvzEepKtaraPhV5ejEIrB+nJWNfGye4yzLdfEXJBGUQzrG+wNe13izfRNXI4dN/6Q5npzqaqv0E1CkCAQACAQACAQACAQACAQA="
	stockPublicKey  = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCghPCWCobG8nTD24juwSVataW7iViRxcTkey/B792VZEhuHjQvA3cAJgx2Lv8GnX8NIoShZtoCg3Cx6ecs+VEPD2fBcg2L4JK7xldGpOJ3ONEAyVsLOttXZtNXvyDZRijiErQALMTorcgi79M5uVX9/jMv2Ggb2XAeZhlLD28fHwIDAQAB"
)

// setDevices reads -mpush and -mpush-key, and listens. No address, or off:
// there are no devices.
func (s *server) setDevices(addr, key string, given map[string]bool) (err error) {
	if addr == "" || addr == "off" {
		if given["mpush-key"] {
			return errors.New("-mpush-key is about mpush devices: it needs -mpush, the address they connect to")
		}
		return nil
	}
	risk := believed
	switch key {
	case "none":
	case "stock":
		s.stock = true
		s.mpush.PrivateKey = []byte(stockPrivateKey)
		risk += ". Its key is mpush's stock key besides, which is public knowledge: whoever is on the way could read along"
	default:
		if s.mpush.PrivateKey, err = os.ReadFile(key); err != nil {
			return fmt.Errorf("-mpush-key wants a file, stock or none: %w", err)
		}
		if len(bytes.TrimSpace(s.mpush.PrivateKey)) == 0 {
			return fmt.Errorf("-mpush-key: %s is empty", key)
		}
	}
	ln, err := s.take("mpush", addr, given["mpush"], "mpush devices get", risk)
	if err != nil {
		return err
	}
	s.devices, s.mpush.Advertise = ln, advertised(ln)
	return nil
}

// advertised is what the allocator tells: where others reach ln, or at least
// this machine does. "": nowhere by IPv4, and mpush's clients know no other.
func advertised(ln net.Listener) string {
	addrs := reachable(ln)
	for _, at := range slices.Concat(addrs[1:], addrs[:1]) {
		if at.Addr().Is4() {
			return at.String()
		}
	}
	return ""
}

// announceDevices says where they connect.
func (s *server) announceDevices(page string) {
	if s.devices == nil {
		return
	}
	if s.mpush.Advertise == "" {
		fmt.Fprintf(s.out, "mpush devices: %s\n", s.devices.Addr())
	} else {
		fmt.Fprintf(s.out, "mpush devices: %s, which they learn from %s/alloc\n", s.mpush.Advertise, page)
	}
	if s.stock {
		fmt.Fprintln(s.out, "CAREFUL: the devices' key is mpush's stock key, which is public knowledge: whoever is on the way reads along. -mpush-key FILE takes your own.")
	}
}

// sayer broadcasts what somebody has to say. It is a handler of push.On.
type sayer func(ctx context.Context, c *push.Conn, text string) (any, error)

// heard is an OnMessage. What a device sends has no event's name: it is a line
// that its user typed, and is acknowledged when say took it. What else comes
// here nobody knows.
func heard(say sayer) func(context.Context, *push.Conn, *push.Received) (any, error) {
	return func(ctx context.Context, c *push.Conn, m *push.Received) (any, error) {
		if m.Event != "" {
			return nil, push.Refuse("unknown event")
		}
		text := string(m.Bytes(0))
		if text == "" && m.Decode(&text) != nil { // no bytes, no string
			return nil, push.Refuse("say something")
		}
		return say(ctx, c, text)
	}
}

// door is what the page tells of where devices connect.
type door struct {
	Addr  string
	Alloc string // URL of the allocator; "": it has nothing to tell
	Key   string // the public one, in base64; "": whoever started the program knows
	Plain bool   // there is no key
}

// door is nil when there are no devices.
func (s *server) door(r *http.Request) *door {
	if s.devices == nil {
		return nil
	}
	d := &door{Addr: s.devices.Addr().String(), Plain: s.mpush.PrivateKey == nil}
	if s.mpush.Advertise != "" {
		d.Addr, d.Alloc = s.mpush.Advertise, "http://"+r.Host+"/alloc"
	}
	if s.stock {
		d.Key = stockPublicKey
	}
	return d
}

package main

// What a page's client library does, in two dialects. A page has heartbeats of
// its own besides; here the kernel tells when a process is gone.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/gorilla/websocket"

	"github.com/embedpush/push/internal/eio"
)

// dialPage opens a WebSocket, which is closed when ctx ends.
func (d *device) dialPage(ctx context.Context, url string) (ws *websocket.Conn, closing func(), err error) {
	dialer := websocket.Dialer{NetDialContext: d.all.dial, HandshakeTimeout: 3 * time.Second}
	ws, _, err = dialer.DialContext(ctx, url, nil)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { ws.Close() })
	return ws, func() { stop(); ws.Close() }, nil
}

// webSocket is one connection of a page with push.js: push.json.
func webSocket(ctx context.Context, d *device, at addresses, opened func()) error {
	ws, closing, err := d.dialPage(ctx, "ws://"+at.HTTP+"/ws?"+d.query())
	if err != nil {
		return err
	}
	defer closing()
	opened()
	for {
		var f struct {
			Event string          `json:"event"`
			Data  json.RawMessage `json:"data"`
			ID    int             `json:"id"` // 0: no ack is wanted
		}
		if err := ws.ReadJSON(&f); err != nil {
			return err
		}
		if f.Event == "" {
			continue
		}
		d.saw(f.Data)
		if f.ID != 0 {
			if err := ws.WriteJSON(map[string]int{"ack": f.ID}); err != nil {
				return err
			}
		}
	}
}

// Socket.IO's packets inside of Engine.IO's messages.
const (
	sioConnect      = '0'
	sioDisconnect   = '1'
	sioEvent        = '2' // 2, the id if an ack is wanted, ["name",argument…]
	sioAck          = "3" // 3, the id, [argument…]
	sioConnectError = '4'
)

// socketIO is one connection of a page with socket.io-client 4.x that uses its
// WebSocket transport.
func socketIO(ctx context.Context, d *device, at addresses, opened func()) error {
	ws, closing, err := d.dialPage(ctx, "ws://"+at.HTTP+"/socket.io/?EIO=4&transport=websocket&"+d.query())
	if err != nil {
		return err
	}
	defer closing()
	send := func(t eio.PacketType, text string) error {
		return ws.WriteMessage(websocket.TextMessage, append([]byte{byte(t)}, text...))
	}
	for {
		_, packet, err := ws.ReadMessage()
		if err != nil {
			return err
		}
		if len(packet) == 0 {
			continue
		}
		switch eio.PacketType(packet[0]) {
		case eio.Open:
			err = send(eio.Message, string(sioConnect))
		case eio.Ping:
			err = send(eio.Pong, "")
		case eio.Close:
			return fmt.Errorf("closed by the server")
		case eio.Message:
			var answer string
			if answer, err = d.socketIOPacket(packet[1:], opened); answer != "" {
				err = send(eio.Message, answer)
			}
		}
		if err != nil {
			return err
		}
	}
}

// socketIOPacket takes one of Socket.IO's packets, and tells what to answer.
func (d *device) socketIOPacket(packet []byte, opened func()) (answer string, err error) {
	if len(packet) == 0 {
		return "", fmt.Errorf("an empty packet")
	}
	switch rest := packet[1:]; packet[0] {
	case sioConnect:
		opened()
	case sioDisconnect:
		return "", fmt.Errorf("disconnected by the server")
	case sioConnectError:
		return "", fmt.Errorf("not let in: %s", rest)
	case sioEvent:
		args := bytes.TrimLeft(rest, "0123456789")
		id := string(rest[:len(rest)-len(args)])
		var event []json.RawMessage // its name and one argument
		if err := json.Unmarshal(args, &event); err != nil || len(event) != 2 {
			return "", fmt.Errorf("not an event with one argument: %.100q", args)
		}
		d.saw(event[1])
		if id != "" {
			answer = sioAck + id + "[]"
		}
	}
	return answer, nil
}

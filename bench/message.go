package main

import (
	"fmt"
	"strings"
)

// Every server delivers the same bytes. An event of 128 bytes makes a WebSocket
// frame of 132, whether it is push.json's or Socket.IO's.
const (
	eventName = "bench"
	eventSize = 128
)

var (
	eventData    = strings.Repeat("x", eventSize-len(`{"event":"bench","data":""}`))
	socketIOData = strings.Repeat("x", eventSize-len(`42["bench",""]`))
)

// eventText is a broadcast as push.json has it, and as every peer but Socket.IO
// is given it.
var eventText = fmt.Sprintf(`{"event":"%s","data":"%s"}`, eventName, eventData)

// socketIOText is a broadcast as Socket.IO has it on the wire.
var socketIOText = fmt.Sprintf(`42["%s","%s"]`, eventName, socketIOData)

// A stamp is the data of a push whose way is timed: stampMark and 19 digits of
// CLOCK_MONOTONIC, in nanoseconds, which all processes have in common.
const (
	stampMark = '@'
	stampLen  = 1 + 19
)

// What a connection speaks.
const (
	doorWebSocket = "websocket"
	doorTLS       = "tls"
	doorSocketIO  = "socket.io"
	doorMPush     = "mpush"     // a plain session
	doorMPushRSA  = "mpush-rsa" // an encrypted one
)

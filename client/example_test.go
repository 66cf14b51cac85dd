package client_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/client"
)

// serve is an engine on a free port, as a program that embeds one has it.
func serve() (engine *push.Engine, addr string) {
	engine, err := push.New(push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
			if l.Token != "secret" {
				return "", push.Refuse("wrong token")
			}
			return l.UserID, nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go engine.Serve(listener)
	return engine, listener.Addr().String()
}

func Example() {
	engine, addr := serve()
	defer engine.Close()

	dir, err := os.MkdirTemp("", "kiosk")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	bound := make(chan bool, 1)
	c, err := client.New(client.Config{
		Addrs:    []string{addr}, // and PublicKey, or TLS, anywhere but on loopback
		DeviceID: "kiosk-17",
		UserID:   "alice", Token: "secret",
		Storage: client.FileStorage(dir), // of a device, one that stays
		OnBind:  func(c *client.Client, success bool, userID string) { bound <- success },
		OnReceivePush: func(c *client.Client, content []byte, messageID int32) {
			fmt.Printf("push: %s\n", content)
			c.Ack(context.Background(), messageID)
		},
		OnKickUser: func(c *client.Client, deviceID, userID string) { fmt.Println("kicked") },
	})
	if err != nil {
		log.Fatal(err)
	}
	c.Start()
	defer c.Stop()
	fmt.Println("bound:", <-bound)

	receipt, err := engine.PushToUser(context.Background(), "alice", push.Message{Data: []byte("hello"), Ack: push.BizAck})
	fmt.Println("acknowledged:", receipt.Acked, err)
	// Output:
	// bound: true
	// push: hello
	// acknowledged: 1 <nil>
}

// A refused user stays connected, and comes back with a fresh token.
func ExampleClient_Bind() {
	engine, addr := serve()
	defer engine.Close()

	c, err := client.New(client.Config{Addrs: []string{addr}, DeviceID: "kiosk-17"})
	if err != nil {
		log.Fatal(err)
	}
	c.Start()
	defer c.Stop()

	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	fmt.Println(c.Bind(ctx, "alice", "secret", "floor-1", "red"), c.UserID())
	fmt.Println(c.Unbind(ctx), c.UserID() == "")
	// Output:
	// <nil> alice
	// <nil> true
}

// A Client is a transport for http.Client: requests go through the server.
func ExampleClient_RoundTrip() {
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "in stock")
	}))
	defer site.Close()

	engine, err := push.New(push.Config{
		Authenticate: func(ctx context.Context, l *push.Login) (string, error) { return l.UserID, nil },
		MPush:        push.MPush{Proxy: &push.Proxy{Allow: []string{"http://stock.example=" + site.Listener.Addr().String()}}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go engine.Serve(listener)

	c, err := client.New(client.Config{Addrs: []string{listener.Addr().String()}, DeviceID: "kiosk-17"})
	if err != nil {
		log.Fatal(err)
	}
	c.Start()
	defer c.Stop()
	if err := c.Bind(context.Background(), "alice", ""); err != nil {
		log.Fatal(err)
	}

	web := http.Client{Transport: c, Timeout: 10 * time.Second}
	resp, err := web.Get("http://stock.example/apples")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body := make([]byte, 8)
	resp.Body.Read(body)
	fmt.Printf("%s: %s\n", resp.Status, body)
	// Output: 200 OK: in stock
}

// Behind TLS nothing needs RSA; over wss it passes where only HTTP does.
func ExampleNew() {
	_, err := client.New(client.Config{
		Addrs:    []string{"push.example:3001", "wss://push.example/ws"},
		TLS:      new(tls.Config),
		DeviceID: "kiosk-17",
	})
	fmt.Println(err)
	// Output: <nil>
}

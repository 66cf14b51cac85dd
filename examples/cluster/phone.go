package main

import (
	"context"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	mpush "github.com/embedpush/push/client"
)

// phone is alice's mpush device until ctx ends. Its client comes back by
// itself; what it dials is the load balancer, which knows a node.
func phone(ctx context.Context, d *device) {
	var dialled atomic.Value // the node's id
	c, err := mpush.New(mpush.Config{
		Addrs: []string{"localhost:3000"}, // a name for the load balancer; Dial knows better
		Dial: func(dialing context.Context, network, _ string) (net.Conn, error) {
			id, at, err := d.all.choose(dialing, d)
			if err != nil {
				return nil, err
			}
			dialled.Store(id)
			conn, err := d.all.dial(dialing, network, at.MPush)
			if err != nil {
				d.ended(err)
			}
			return conn, err
		},
		DeviceID: d.name, OSName: "android", UserID: d.user,
		MinBackoff: 300 * time.Millisecond, MaxBackoff: time.Second,
		OnBind: func(_ *mpush.Client, success bool, _ string) {
			if success {
				d.opened(dialled.Load().(string))
			}
		},
		OnDisconnected: func(_ *mpush.Client, why error) { d.ended(why) },
		OnReceivePush: func(c *mpush.Client, content []byte, messageID int32) {
			d.saw(content) // and then the client acknowledges what is for it to acknowledge
			if messageID != 0 {
				c.Ack(ctx, messageID)
			}
		},
		Logger: slog.New(slog.DiscardHandler), // the hooks tell
	})
	if err != nil {
		panic("a client that cannot be: " + err.Error())
	}
	c.Start()
	<-ctx.Done()
	c.Stop()
	c.Wait()
}

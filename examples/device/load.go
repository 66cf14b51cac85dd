package main

// Many devices in one process, as mpush's own load client has them
// (ConnClientTestMain): who is connected, who is bound, what came.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/embedpush/push/client"
)

// every is the time from one print of the counts to the next. Tests have less.
var every = time.Second

// spare is how many descriptors are left for everything but the devices.
const spare = 32

// load is many devices and what they count. Hooks of different devices
// overlap, hence the atomics.
type load struct {
	o       *options
	begin   time.Time
	clients []*client.Client // those started; load's own

	connected atomic.Int64 // connections now
	bound     atomic.Int64 // users logged in now
	received  atomic.Int64 // pushes

	kicked      atomic.Int64 // users logged out by the server
	refused     atomic.Int64 // logins
	lost        atomic.Int64 // connections that the device did not end
	unreachable atomic.Int64 // connections that were none

	why  atomic.Pointer[string] // the latest reason of one of these; nil: none since it was printed
	full sync.Once              // all were bound for the first time
}

// load runs them until ctx ends.
func (o *options) load(ctx context.Context) error {
	if most := descriptors(); uint64(o.n)+spare > most {
		return fmt.Errorf("-n %d needs as many descriptors and %d more, and this process may open %d: ulimit -n raises that", o.n, spare, most)
	}
	l := &load{o: o, begin: time.Now()}
	o.announce()
	err := l.run(ctx)

	var ending sync.WaitGroup
	for _, c := range l.clients {
		ending.Go(func() {
			c.Stop()
			c.Wait()
		})
	}
	ending.Wait()
	if err == nil {
		fmt.Fprintf(o.out, "%d devices received %d pushes in %v%s\n", len(l.clients), l.received.Load(), time.Since(l.begin).Round(time.Millisecond), l.troubles())
	}
	return err
}

// run starts the devices one after another, and prints the counts each second.
func (l *load) run(ctx context.Context) error {
	prints := time.NewTicker(every)
	defer prints.Stop()
	starts := time.NewTicker(max(time.Second/time.Duration(l.o.rate), 10*time.Millisecond))
	defer starts.Stop()
	for before := int64(0); ; {
		due := time.Since(l.begin).Seconds() * float64(l.o.rate) // besides the first
		for len(l.clients) < l.o.n && float64(len(l.clients)) <= due && ctx.Err() == nil {
			c, err := client.New(l.config(len(l.clients)))
			if err != nil {
				return err
			}
			c.Start()
			l.clients = append(l.clients, c)
		}
		if len(l.clients) == l.o.n {
			starts.Stop()
		}
		select {
		case <-ctx.Done():
			l.o.log.Print("shutting down")
			return nil
		case <-starts.C:
		case <-prints.C:
			received := l.received.Load()
			l.print(received, received-before)
			before = received
		}
	}
}

// print is the line of each second.
func (l *load) print(received, since int64) {
	because := ""
	if why := l.why.Swap(nil); why != nil {
		because = ": " + *why
	}
	l.o.log.Printf("devices      %d, connected %d, bound %d, received %d (+%d)%s%s",
		len(l.clients), l.connected.Load(), l.bound.Load(), received, since, l.troubles(), because)
}

// troubles are the counts that had better be none.
func (l *load) troubles() string {
	var b strings.Builder
	for _, count := range []struct {
		name string
		of   *atomic.Int64
	}{{"kicked", &l.kicked}, {"refused", &l.refused}, {"lost", &l.lost}, {"unreachable", &l.unreachable}} {
		if n := count.of.Load(); n > 0 {
			fmt.Fprintf(&b, ", %s %d", count.name, n)
		}
	}
	return b.String()
}

func (l *load) because(why string) { l.why.Store(&why) }

// config is that of device i.
func (l *load) config(i int) client.Config {
	cfg := l.o.config()
	cfg.DeviceID += "-" + strconv.Itoa(i)
	cfg.Logger = cfg.Logger.With("of", cfg.DeviceID)
	if cfg.UserID == "" {
		cfg.UserID = "load-" + strconv.Itoa(i)
	}
	cfg.Dial = dial(func(err error) {
		l.unreachable.Add(1)
		l.because(err.Error())
	})
	bound := false // the hooks' of this device, of which one runs at a time
	unbind := func() {
		if bound {
			bound = false
			l.bound.Add(-1)
		}
	}
	cfg.OnConnected = func(*client.Client) { l.connected.Add(1) }
	cfg.OnDisconnected = func(_ *client.Client, reason error) {
		l.connected.Add(-1)
		unbind()
		if errors.Is(reason, client.ErrStopped) {
			return
		}
		l.lost.Add(1)
		if errors.Is(reason, io.EOF) {
			l.because("the server closed")
		} else {
			l.because(reason.Error())
		}
	}
	cfg.OnBind = func(c *client.Client, success bool, user string) {
		unbind()
		if !success {
			l.refused.Add(1)
			l.because(fmt.Sprintf("%.64q may not log in: %s", user, because(c.Refusal())))
			return
		}
		bound = true
		if l.bound.Add(1) == int64(l.o.n) {
			l.full.Do(func() {
				l.o.log.Printf("bound        all %d, %v after the first began", l.o.n, time.Since(l.begin).Round(time.Millisecond))
			})
		}
	}
	cfg.OnKickUser = func(_ *client.Client, _, user string) {
		unbind()
		l.kicked.Add(1)
	}
	cfg.OnReceivePush = func(c *client.Client, _ []byte, messageID int32) {
		l.received.Add(1)
		if l.o.biz {
			c.Ack(context.Background(), messageID) // which is nothing to do for 0; if it is lost, the server counts that
		}
	}
	return cfg
}

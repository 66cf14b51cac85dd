// Device is an mpush device for the command line: it logs in as a user, prints
// what is pushed to it, acknowledges that, and sends the lines that are typed.
//
//	go run ./examples/hello             # a server for it, in another terminal
//	go run ./examples/device
//	go run ./examples/device -n 10000   # that many devices, which are counted
//
// This file is the device; load.go has the many, flags.go what both are told.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/embedpush/push/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "device:", err)
		os.Exit(1)
	}
}

// run is the device, or the many, until ctx ends.
func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	o, err := parse(args, stdout)
	switch {
	case err != nil:
		return err
	case o.n > 0:
		return o.load(ctx)
	}
	return o.device(ctx, stdin)
}

const (
	patience = 5 * time.Second // with a line's answer, and with the first session
	maxLine  = 64 << 10        // bytes, which is what an Engine takes
	maxShown = 4 << 10         // bytes of a content that are printed
	again    = "it tries again by itself"
)

// device is one device: each event is a line.
func (o *options) device(ctx context.Context, stdin io.Reader) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var kicked error // the last hook's, and after it this function's

	cfg := o.config()
	cfg.Dial = dial(func(err error) { o.log.Printf("unreachable  %v; %s", err, again) })
	cfg.OnConnected = func(c *client.Client) { o.log.Printf("connected    to %s", open(c.Server())) }
	cfg.OnHandshakeOk = func(_ *client.Client, heartbeat time.Duration) {
		o.log.Printf("session      open, a heartbeat every %v", heartbeat)
	}
	cfg.OnBind = func(c *client.Client, success bool, user string) {
		if success {
			o.log.Printf("login        as %.64q on device %.64q", user, cfg.DeviceID)
		} else {
			o.log.Printf("refused      %.64q may not log in: %s", user, because(c.Refusal()))
		}
	}
	cfg.OnReceivePush = func(c *client.Client, content []byte, messageID int32) {
		o.received(content, messageID)
		if messageID == 0 || !o.biz { // if the server wants to know at all, the client tells it
			return
		}
		if err := c.Ack(context.Background(), messageID); err != nil {
			o.log.Printf("not acked    %d: %v", messageID, err)
			return
		}
		o.log.Printf("acked        %d", messageID)
	}
	cfg.OnKickUser = func(_ *client.Client, _, user string) {
		o.log.Printf("kicked       %.64q is logged out: taken out by the server, or in on another device of this kind", user)
	}
	cfg.OnDisconnected = func(_ *client.Client, reason error) {
		switch {
		case errors.Is(reason, client.ErrKicked):
			kicked = reason
			o.log.Print("disconnected after the kick")
		case errors.Is(reason, client.ErrStopped):
			o.log.Print("disconnected")
		case errors.Is(reason, io.EOF):
			o.log.Printf("disconnected by the server; %s", again)
		default:
			o.log.Printf("disconnected %v; %s", reason, again)
		}
	}

	c, err := client.New(cfg)
	if err != nil {
		return err
	}
	o.announce()
	c.Start()
	ended := make(chan struct{})
	go func() {
		c.Wait()
		close(ended)
	}()
	o.converse(ctx, c, o.lines(ctx, stdin), ended)
	c.Stop()
	<-ended
	return kicked
}

// because is the server's reason for a refusal.
func because(e *client.Error) string { return fmt.Sprintf("%.200q, code %d", e.Reason, e.Code) }

// received prints a push.
func (o *options) received(content []byte, messageID int32) {
	switch {
	case o.quiet:
		o.out.Write(append(content, '\n'))
	case messageID != 0:
		o.log.Printf("push %-7d %s", messageID, shown(content))
	default:
		o.log.Printf("push         %s", shown(content))
	}
}

// converse sends what is typed until ctx ends or the client has.
func (o *options) converse(ctx context.Context, c *client.Client, typed <-chan string, ended <-chan struct{}) {
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case <-ctx.Done():
			o.log.Print("shutting down")
			return
		case <-ended:
			return
		case line, ok := <-typed:
			if !ok { // there is no more to send, but there may be pushes
				typed = nil
				continue
			}
			o.send(ctx, c, line)
		case <-late.C:
			if !c.Connected() {
				o.log.Printf("waiting      there is no session yet; -v tells more")
			}
		}
	}
}

// lines are those typed. What reads them is not waited for: nothing ends a
// read from a terminal.
func (o *options) lines(ctx context.Context, stdin io.Reader) <-chan string {
	typed := make(chan string)
	go func() {
		defer close(typed)
		r := bufio.NewReaderSize(stdin, maxLine)
		for long := false; ; {
			line, part, err := r.ReadLine()
			switch {
			case err != nil:
				if err != io.EOF && ctx.Err() == nil {
					o.log.Printf("no input     any more: %v", err)
				}
				return
			case part:
				long = true
			case long:
				long = false
				o.log.Printf("not sent     a line of more than %d bytes", maxLine)
			case len(line) > 0:
				select {
				case typed <- string(line):
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return typed
}

// send pushes a line, and prints what became of it.
func (o *options) send(ctx context.Context, c *client.Client, line string) {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	begin := time.Now()
	err := c.Push(ctx, []byte(line), client.AutoAck)
	switch uncertain := errors.Is(err, client.ErrUncertain); {
	case err == nil:
		o.log.Printf("sent         %s: the server took it in %v", shown([]byte(line)), time.Since(begin).Round(10*time.Microsecond))
	case uncertain && errors.Is(err, context.DeadlineExceeded):
		o.log.Printf("unanswered   %s: no answer within %v. A server does not answer what it has no handler for", shown([]byte(line)), patience)
	case uncertain:
		o.log.Printf("uncertain    %s: %v", shown([]byte(line)), err)
	default:
		o.log.Printf("not sent     %s: %v", shown([]byte(line)), err)
	}
}

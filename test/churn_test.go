package test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/embedpush/push"
	"github.com/embedpush/push/internal/memnet"
)

// What 10 000 connections needed, with 10 000 joins and leaves, is given back
// when they are gone: a third time needs nothing that the second did not.
func TestChurnGivesMemoryBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := push.New(push.Config{
			Authenticate: func(ctx context.Context, l *push.Login) (string, error) {
				l.Rooms = []string{"lobby", "room of " + l.UserID}
				return l.UserID, nil
			},
			Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		ln, err := memnet.Listen("127.0.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go http.Serve(ln, e)
		synctest.Wait()

		goroutines := runtime.NumGoroutine()
		var heap [4]int64
		for cycle := 1; cycle <= 3; cycle++ {
			churn(t, e, ln, cycle)
			// It stops the world, so goroutines that were just ending have ended;
			// one of a test before, too, perhaps.
			heap[cycle] = liveHeap()
			if n := runtime.NumGoroutine(); n > goroutines {
				t.Errorf("cycle %d: %d goroutines, want %d as before", cycle, n, goroutines)
			}
			if s := e.Stats(); s.Conns+s.Users+s.Rooms+s.Memberships != 0 || s.QueuedBytes != 0 || s.Flights != 0 || s.Pending != 0 {
				t.Errorf("cycle %d: %d connections, %d users, %d rooms, %d memberships, %d bytes queued, %d pushes and %d logins under way are left",
					cycle, s.Conns, s.Users, s.Rooms, s.Memberships, s.QueuedBytes, s.Flights, s.Pending)
			}
		}
		// So little is on this heap that 5 % are some 7 bytes a connection.
		if grown := heap[3] - heap[2]; grown > heap[2]/20 {
			t.Errorf("heap after the third cycle %d bytes, after the second %d: %.1f %% more, want at most 5", heap[3], heap[2], 100*float64(grown)/float64(heap[2]))
		}
		t.Logf("heap after each cycle: %d", heap[1:])
	})
}

// churn opens and closes 10 000 connections, each of a user never seen before,
// a thousand at a time; while they are there, they join and leave 10 000 rooms
// in all, and everybody gets pushes.
func churn(t *testing.T, e *push.Engine, ln *memnet.Listener, cycle int) {
	t.Helper()
	const batches, size = 10, 1000
	ctx := t.Context()
	conns := make([]net.Conn, size)
	for batch := range batches {
		for i := range conns {
			conns[i] = upgraded(t, ln, fmt.Sprintf("u%d.%d.%d", cycle, batch, i))
		}
		synctest.Wait()
		i := 0
		for c := range e.Conns() {
			room := fmt.Sprintf("r%d.%d.%d", cycle, batch, i)
			if err := c.Join(room); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 { // the others are still in it when they go
				c.Leave(room)
			}
			i++
		}
		if s := e.Stats(); s.Conns != size || s.Users != size || s.Rooms != 1+size+size/2 || s.Memberships != 4*size+size/2 {
			t.Fatalf("%d connections, %d users, %d rooms, %d memberships", s.Conns, s.Users, s.Rooms, s.Memberships)
		}
		for _, push := range []func() (push.Receipt, error){
			func() (push.Receipt, error) { return e.Broadcast(ctx, push.Message{}) },
			func() (push.Receipt, error) { return e.PushToRoom(ctx, "lobby", push.Message{}) },
			func() (push.Receipt, error) {
				return e.PushToUser(ctx, fmt.Sprintf("u%d.%d.0", cycle, batch), push.Message{})
			},
			// Nobody answers: what waits for acks ends with the connections.
			func() (push.Receipt, error) {
				return e.Push(ctx, push.Audience{All: true}, push.Message{Ack: push.AutoAck, Async: true})
			},
		} {
			if _, err := push(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		goodbye := []byte{0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8}
		for i, c := range conns {
			if i%2 == 0 {
				c.Write(goodbye)
			}
			c.Close()
		}
		synctest.Wait()
	}
	time.Sleep(10 * time.Second) // what the engine still waited for is over
	synctest.Wait()
}

// upgraded is a client's end of a WebSocket.
func upgraded(t *testing.T, ln *memnet.Listener, user string) net.Conn {
	t.Helper()
	c, err := ln.Dial()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET /ws?user=%s HTTP/1.1\r\nHost: push\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n", user)
	var answer []byte
	for buf := make([]byte, 512); !bytes.Contains(answer, []byte("\r\n\r\n")); {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		answer = append(answer, buf[:n]...)
	}
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 101 ")) {
		t.Fatalf("answer %q", answer)
	}
	return c
}

// liveHeap is what is on the heap when nothing is garbage.
func liveHeap() int64 {
	for range 3 { // a sync.Pool lets go in the second
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

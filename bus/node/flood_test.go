package node_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/node"
	"fbus/bus/wire"
)

// TestHalfOpen: of connections that never get through their handshake, silent or a
// byte at a time, the node keeps a bounded number; others enter and call as before.
func TestHalfOpen(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	b := beside(t, path)
	addr := listenTCP(t, n)
	everybody.open()
	hello := clientHello(t)
	var trickles sync.WaitGroup
	var list []net.Conn
	for i := range 2000 {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, nc)
		if i%4 == 0 {
			trickles.Go(func() { trickle(nc, hello) })
		}
		if i%200 == 0 {
			b.works()
			enters(t, addr)
			if k := n.Entering(); k > node.MaxEntering {
				t.Errorf("%d connections are at their handshake", k)
			}
		}
	}
	for _, nc := range list {
		nc.Close()
	}
	trickles.Wait()
	eventually(t, "no connection is at its handshake", func() bool { return n.Entering() == 0 })
	b.sane(time.Second)
}

// TestHandshakeIsBounded: a connection that is silent, or sends a byte at a time, is closed
// after some time.
func TestHandshakeIsBounded(t *testing.T) {
	noLeaks(t)
	t.Cleanup(node.SetHandshakeTime(300 * time.Millisecond))
	n, _ := start(t, node.Config{})
	addr := listenTCP(t, n)
	everybody.open()
	hello := clientHello(t)
	for _, silent := range []bool{true, false} {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		if !silent {
			go trickle(nc, hello) // ends when the connection does
		}
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection without a handshake, silent %v, was not closed", silent)
		}
	}
	eventually(t, "no connection is at its handshake", func() bool { return n.Entering() == 0 })
}

// trickle sends text a byte at a time.
func trickle(nc net.Conn, text []byte) {
	for i := range text {
		if _, err := nc.Write(text[i : i+1]); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// enters connects with a ticket, which has to succeed.
func enters(t *testing.T, addr string) {
	t.Helper()
	p := dialTLS(t, addr, everybody.ticket.ClientConfig(nil)).greet()
	p.nc.Close()
}

// clientHello is the first message of a handshake.
func clientHello(t *testing.T) []byte {
	t.Helper()
	near, far := net.Pipe()
	go tls.Client(near, everybody.ticket.ClientConfig(nil)).Handshake() // ends with the pipe
	defer far.Close()
	buf := make([]byte, 16<<10)
	k, err := far.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:k]
}

// TestHandshakeFlood: while others begin handshakes as fast as they can, and end
// none, there is room for who is in earnest.
func TestHandshakeFlood(t *testing.T) {
	noLeaks(t)
	n, path := start(t, node.Config{})
	b := beside(t, path)
	addr := listenTCP(t, n)
	everybody.open()
	hello := clientHello(t)
	var stop atomic.Bool
	var begun atomic.Int64
	var flood sync.WaitGroup
	for range 16 {
		flood.Go(func() {
			buf := make([]byte, 4096)
			for !stop.Load() {
				nc, err := net.Dial("tcp", addr)
				if err != nil {
					continue
				}
				nc.(*net.TCPConn).SetLinger(0)
				nc.Write(hello)
				if k, _ := nc.Read(buf); k > 0 {
					begun.Add(1)
				}
				nc.Close()
			}
		})
	}
	eventually(t, "the flood is there", func() bool { return begun.Load() > 100 })
	for range 20 {
		b.works()
		enters(t, addr)
		if k := n.Entering(); k > node.MaxEntering {
			t.Errorf("%d connections are at their handshake", k)
		}
	}
	stop.Store(true)
	flood.Wait()
	eventually(t, "no connection is at its handshake", func() bool { return n.Entering() == 0 })
}

// TestHalfFrames: who begins long frames and does not go on with them takes little
// more of the node's buffers than he has sent, and nobody finds them full.
func TestHalfFrames(t *testing.T) {
	const peers = 200
	for name, connect := range map[string]func(*testing.T, string, string) *raw{
		"unix": func(t *testing.T, path, _ string) *raw { return rawUnix(t, nil, path) },
		"tls":  func(t *testing.T, _, addr string) *raw { return dialTLS(t, addr, everybody.ticket.ClientConfig(nil)) },
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			n, path := start(t, node.Config{})
			b := beside(t, path)
			before := n.Books()
			everybody.open()
			addr := listenTCP(t, n)
			var list []*raw
			for range peers {
				p := connect(t, path, addr).greet()
				p.write([]byte{0, 15, 0, 0, 0x94})
				list = append(list, p)
			}
			holds := func(each int64) {
				t.Helper()
				eventually(t, "the node holds what was sent", func() bool { return n.BudgetUsed() == peers*each })
				b.works()
			}
			holds(4 << 10)
			for _, p := range list {
				p.write(make([]byte, 5000))
			}
			holds(8 << 10)
			for _, p := range list {
				p.nc.Close()
			}
			settled(t, n, before)
		})
	}
}

// TestMaxConnections: beyond the limits, of a ticket and in all, a peer is told so,
// and the log has it; who goes makes room. The node's own user is not held to them.
func TestMaxConnections(t *testing.T) {
	notes := make(chan string, 1000)
	n, path := start(t, node.Config{MaxConnections: 4, MaxPerTicket: 2, Note: func(format string, args ...any) {
		if strings.Contains(format, "refused") {
			notes <- args[len(args)-1].(error).Error()
		}
	}})
	everybody.open()
	addr := listenTCP(t, n)
	refused := func(want string) {
		t.Helper()
		p := dialTLS(t, addr, everybody.ticket.ClientConfig(nil))
		got, err := p.next()
		f, ok := got.(*wire.ErrorFrame)
		if !ok || string(f.Code) != args.CodeBusy || string(f.Message) != want {
			t.Errorf("the peer is told %+v, want %s (error %v)", got, want, err)
		}
		p.nc.Close()
		if got := await(t, "a note", notes); got != want {
			t.Errorf("noted %q, not %q", got, want)
		}
	}
	var list []*raw
	for range 2 {
		list = append(list, dialTLS(t, addr, everybody.ticket.ClientConfig(nil)).greet())
	}
	refused("too many connections of ticket:raw to this node (limit 2)")
	list[0].nc.Close()
	eventually(t, "the node notices", func() bool { return n.Books().Sessions == 2 })
	enters(t, addr)
	eventually(t, "the node notices", func() bool { return n.Books().Sessions == 2 })
	for range 3 {
		dial(t, path)
	}
	refused("too many connections to this node (limit 4)")
	if err := dial(t, path).Err(); err != nil {
		t.Errorf("the node's own user is refused: %v", err)
	}
	list[1].nc.Close()
}

// TestMaxConnectionsAtOnce: the limit holds however many come together.
func TestMaxConnectionsAtOnce(t *testing.T) {
	n, _ := start(t, node.Config{MaxPerTicket: 5})
	everybody.open()
	addr := listenTCP(t, n)
	creds := find.ForTicket(everybody.ticket)
	var in, out atomic.Int64
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			c, err := bus.Dial(context.Background(), bus.TCP(addr), &bus.Options{Identity: creds})
			switch {
			case err == nil:
				in.Add(1)
				t.Cleanup(func() { c.Close() })
			case errors.Is(err, bus.ErrBusy):
				out.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if in.Load() != 5 || out.Load() != 35 {
		t.Errorf("%d are in and %d were refused, with a limit of 5", in.Load(), out.Load())
	}
}

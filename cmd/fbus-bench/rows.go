package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/node"
	"fbus/bus/trust"
)

// slowStart is how long the program of the row warm takes to be ready.
const slowStart = "0.15"

var rows = []row{
	{"spawn", "start a program (true), 2 at once", "calls/s", "",
		func(b *bencher) (perSecond, perSecond, error) { return b.command(2, "true"), nil, nil }},
	{"once", "call a program (true), 2 at once", "calls/s", "starting it directly",
		func(b *bencher) (perSecond, perSecond, error) {
			err := b.offer("once", "--slots", "2", "--args", "argv", "--", "true")
			return b.calls("once", 2, "x"), b.command(2, "true"), err
		}},
	{"warm", "call a program that needs 150 ms to start, kept warm", "calls/s", "calling cat, which needs none",
		prepareWarm},
	{"resident", "call a resident program (lines), 2 at once", "calls/s", "the same two programs driven directly",
		func(b *bencher) (perSecond, perSecond, error) {
			loop, err := b.resident()
			return b.calls("resident", 2, "hello"), b.direct(loop, 2), err
		}},
	{"map-once", "fbus map of a program (true)", "lines/s", "xargs -P2 -n1 true",
		func(b *bencher) (perSecond, perSecond, error) {
			err := b.offer("once", "--slots", "2", "--args", "argv", "--", "true")
			return b.batch(b.fbus, "map", "once"), b.batch("xargs", "-P2", "-n1", "true"), err
		}},
	{"map", "fbus map of a resident program (lines), 2 slots", "lines/s", "the same two programs driven directly",
		func(b *bencher) (perSecond, perSecond, error) {
			loop, err := b.resident()
			return b.batch(b.fbus, "map", "resident"), b.direct(loop, 2), err
		}},
	{"call", "fbus call of a resident program, a whole process", "calls/s", "fbus --version",
		func(b *bencher) (perSecond, perSecond, error) {
			_, err := b.resident()
			return b.command(1, b.fbus, "call", "resident", "hello"), b.command(1, b.fbus, "--version"), err
		}},
	{"pipe", "calls of a resident program through fbus pipe, one at a time", "calls/s", "the program driven directly",
		preparePipe},
	{"roundtrip", "call a handler in this process through a node, one at a time", "calls/s", "two bare hops over unix sockets",
		func(b *bencher) (perSecond, perSecond, error) { return prepareRoundTrip(b, 1) }},
	{"throughput", "the same, 64 at once", "calls/s", "two bare hops, 64 messages under way",
		func(b *bencher) (perSecond, perSecond, error) { return prepareRoundTrip(b, 64) }},
	{"tls-call", "fbus call of a resident program over TLS, a whole process", "calls/s", "over the unix socket",
		prepareCallTLS},
	{"tls-roundtrip", "call a handler in this process over TLS, one at a time", "calls/s", "over the unix socket",
		prepareRoundTripTLS},
	{"bulk", "stream through cat on the bus", "bytes/s", "through cat and two bare hops",
		prepareBulk},
}

// prepareWarm measures single calls with a pause between them, in which the pool
// refills.
func prepareWarm(b *bencher) (perSecond, perSecond, error) {
	slots := strconv.Itoa(max(4, runtime.NumCPU()))
	err := b.offer("warm", "--slots", slots, "--warm", slots, "--", "sh", "-c", "sleep "+slowStart+"; exec cat")
	if err == nil {
		err = b.offer("cat", "--", "cat")
	}
	single := func(name string) perSecond {
		return func(d time.Duration) (float64, error) {
			var rates []float64
			for began := time.Now(); b.ctx.Err() == nil && (len(rates) == 0 || time.Since(began) < d); {
				time.Sleep(200 * time.Millisecond)
				t := time.Now()
				if _, err := b.client.Call(b.ctx, &bus.Request{Function: name, Args: args.List("hello")}); err != nil {
					return 0, err
				}
				rates = append(rates, 1/time.Since(t).Seconds())
			}
			return median(rates), nil
		}
	}
	return single("warm"), single("cat"), err
}

// loops are programs that answer each line with itself, the fastest first.
var loops = [][]string{
	{"perl", "-ne", "BEGIN { $| = 1 } print"},
	{"python3", "-uc", "import sys\nfor line in sys.stdin: sys.stdout.write(line); sys.stdout.flush()"},
	{"sh", "-c", "while IFS= read -r line; do printf '%s\\n' \"$line\"; done"},
}

// resident offers the first of the loops that is installed.
func (b *bencher) resident() ([]string, error) {
	for _, loop := range loops {
		if _, err := osexec.LookPath(loop[0]); err == nil {
			return loop, b.offer("resident", append([]string{"--slots", "2", "--resident", "lines", "--"}, loop...)...)
		}
	}
	return nil, errors.New("neither perl, python3 nor sh is installed")
}

// preparePipe sends requests to one fbus pipe.
func preparePipe(b *bencher) (perSecond, perSecond, error) {
	loop, err := b.resident()
	if err != nil {
		return nil, nil, err
	}
	cmd := osexec.Command(b.fbus, "pipe", "--node", b.socket)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	b.ended = append(b.ended, func() { in.Close(); cmd.Wait() })
	answers := bufio.NewReader(out)
	ours := func(d time.Duration) (float64, error) {
		return b.repeat(d, 1, func(int) error {
			if _, err := io.WriteString(in, `{"jsonrpc":"2.0","id":1,"method":"resident","params":["hello"]}`+"\n"); err != nil {
				return err
			}
			line, err := answers.ReadString('\n')
			if err == nil && !strings.Contains(line, `"result"`) {
				err = fmt.Errorf("fbus pipe answers %s", shorten(line))
			}
			return err
		})
	}
	return ours, b.direct(loop, 1), nil
}

// prepareRoundTrip runs a node, a worker and a caller in this process.
func prepareRoundTrip(b *bencher, outstanding int) (perSecond, perSecond, error) {
	path := filepath.Join(b.dir, "inside-"+strconv.Itoa(outstanding))
	l, err := node.Listen(path, false)
	if err != nil {
		return nil, nil, err
	}
	n, err := node.New(node.Config{Network: "bench", Address: path})
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	go n.Serve(l) // ends when the listener is closed
	b.ended = append(b.ended, func() { l.Close(); n.Close() })
	worker, err := bus.Dial(b.ctx, bus.Unix(path), nil)
	if err != nil {
		return nil, nil, err
	}
	caller, err := bus.Dial(b.ctx, bus.Unix(path), nil)
	if err != nil {
		return nil, nil, err
	}
	echo := func(_ context.Context, inv *bus.Invocation) bus.Result { return bus.Result{} }
	if _, err := worker.Offer(b.ctx, bus.Offer{Name: "echo", Slots: outstanding}, echo); err != nil {
		return nil, nil, err
	}
	args := args.List(strings.Repeat("x", 64))
	ours := func(d time.Duration) (float64, error) {
		return b.repeat(d, outstanding, func(int) error {
			_, err := caller.Call(context.Background(), &bus.Request{Function: "echo", Args: args})
			return err
		})
	}
	limit, err := b.relay(outstanding)
	return ours, limit, err
}

// prepareBulk streams zeros through cat: over the bus, and over as many hops that
// only copy.
func prepareBulk(b *bencher) (perSecond, perSecond, error) {
	if err := b.offer("cat", "--", "cat"); err != nil {
		return nil, nil, err
	}
	ours := func(d time.Duration) (float64, error) {
		in, out := &zeros{ctx: b.ctx, until: time.Now().Add(d)}, &counter{}
		began := time.Now()
		_, err := b.client.Call(b.ctx, &bus.Request{Function: "cat", Input: in, Stdout: out})
		return float64(out.n) / time.Since(began).Seconds(), err
	}
	far, err := b.listen("far", func(c net.Conn) {
		cmd := osexec.Command("cat")
		in, _ := cmd.StdinPipe()
		out, _ := cmd.StdoutPipe()
		if cmd.Start() != nil {
			c.Close()
			return
		}
		go func() { // ends with the connection's first half
			copyPlain(in, c)
			in.Close()
		}()
		copyPlain(c, out)
		cmd.Wait()
		c.Close()
	})
	if err != nil {
		return nil, nil, err
	}
	near, err := b.listen("near", func(c net.Conn) {
		w, err := net.Dial("unix", far)
		if err != nil {
			return
		}
		go func() { // ends with the connection's first half
			copyPlain(w, c)
			w.(*net.UnixConn).CloseWrite()
		}()
		copyPlain(c, w)
		c.Close()
		w.Close()
	})
	limit := func(d time.Duration) (float64, error) {
		conn, err := net.Dial("unix", near)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		in, out := &zeros{ctx: b.ctx, until: time.Now().Add(d)}, &counter{}
		began := time.Now()
		go func() { // ends when the time is up
			copyPlain(conn, in)
			conn.(*net.UnixConn).CloseWrite()
		}()
		copyPlain(out, conn)
		return float64(out.n) / time.Since(began).Seconds(), nil
	}
	return ours, limit, err
}

// ticket returns a file with a ticket of the private bus, for calls over TLS.
func (b *bencher) ticket() (string, error) {
	path := filepath.Join(b.dir, "ticket")
	if _, err := os.Lstat(path); err == nil {
		return path, nil
	}
	return path, b.run(nil, b.fbus, "invite", "-q", "--call", "*", "--reusable", "--name", "bench", "-o", path)
}

// prepareCallTLS measures fbus call over TLS, with its handshake, and over the socket.
func prepareCallTLS(b *bencher) (perSecond, perSecond, error) {
	if _, err := b.resident(); err != nil {
		return nil, nil, err
	}
	ticket, err := b.ticket()
	words := []string{b.fbus, "call", "resident", "hello"}
	far := func(d time.Duration) (float64, error) {
		return b.repeat(d, 1, func(int) error { return b.runWith([]string{"FBUS_NODE=", "FBUS_TICKET=" + ticket}, nil, words...) })
	}
	return far, b.command(1, words...), err
}

// prepareRoundTripTLS measures calls of a handler in this process through the node
// of the private bus, over TLS and over the socket.
func prepareRoundTripTLS(b *bencher) (perSecond, perSecond, error) {
	file, err := b.ticket()
	if err != nil {
		return nil, nil, err
	}
	t, err := trust.ReadTicket(file, file)
	if err != nil {
		return nil, nil, err
	}
	far, err := bus.Dial(b.ctx, bus.Addr{}, &bus.Options{Identity: find.ForTicket(t)})
	if err != nil {
		return nil, nil, err
	}
	b.ended = append(b.ended, func() { far.Close() })
	echo := func(context.Context, *bus.Invocation) bus.Result { return bus.Result{} }
	if _, err := b.client.Offer(b.ctx, bus.Offer{Name: "echo", Slots: 1}, echo); err != nil {
		return nil, nil, err
	}
	near, err := bus.Dial(b.ctx, bus.Unix(b.socket), nil)
	if err != nil {
		return nil, nil, err
	}
	b.ended = append(b.ended, func() { near.Close() })
	return b.oneByOne(far, "echo"), b.oneByOne(near, "echo"), nil
}

package testscripts

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	fbus "fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"
	"fbus/bus/wire"

	"golang.org/x/sys/unix"
)

// A flood is a process of its own that runs when nothing else does: it would be on another
// machine. It goes on until it is ended, a minute at most.
const floodTime = time.Minute

// floods are what a node is to bear.
var floods = map[string]func(addr string, t *trust.Ticket){
	// 2,000 connections on which nothing is sent.
	"half-open": func(addr string, _ *trust.Ticket) {
		many(2000, addr, func(nc net.Conn) { silent(nc) })
	},
	// 500 that send a byte of their handshake now and then.
	"slow-hello": func(addr string, t *trust.Ticket) {
		hello := clientHello(t)
		many(500, addr, func(nc net.Conn) { dribble(nc, hello) })
	},
	// 500 of a ticket's holder, each of which begins a frame of a megabyte.
	"slow-frame": func(addr string, t *trust.Ticket) {
		many(500, addr, func(nc net.Conn) {
			tc := tls.Client(nc, t.ClientConfig(nil))
			tc.SetDeadline(time.Now().Add(floodTime))
			hello := &wire.HelloFrame{Major: wire.Major, Minor: wire.Minor}
			tc.Write(wire.Append(nil, hello))
			tc.Read(make([]byte, 4096))
			dribble(tc, append([]byte{0, 15, 0, 0}, make([]byte, 4096)...))
		})
	},
	// As many handshakes as the node computes, none of which is gone on with.
	"handshakes": func(addr string, t *trust.Ticket) {
		hello := clientHello(t)
		many(64, addr, func(nc net.Conn) {
			nc.Write(hello)
			nc.Read(make([]byte, 4096))
			nc.(*net.TCPConn).SetLinger(0)
		})
	},
}

// many keeps so many connections, each of which f has until it returns. They come
// from another address than the calls.
func many(n int, addr string, f func(nc net.Conn)) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	pause := time.NewTicker(time.Millisecond / 5)
	for range n {
		go func() { // ends with the process
			for {
				<-pause.C
				nc, err := dialer.Dial("tcp", addr)
				if err == nil {
					f(nc)
					nc.Close()
				}
			}
		}()
	}
}

func silent(nc net.Conn) { io.Copy(io.Discard, nc) }

// dribble sends a byte of text now and then, until the peer has had enough.
func dribble(nc net.Conn, text []byte) {
	for i := range text {
		if _, err := nc.Write(text[i : i+1]); err != nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	silent(nc)
}

// clientHello is the first message of a handshake.
func clientHello(t *trust.Ticket) []byte {
	near, far := net.Pipe()
	go func() { // ends with the pipe
		tls.Client(near, t.ClientConfig(nil)).Handshake()
	}()
	buf := make([]byte, 16<<10)
	n, err := far.Read(buf)
	far.Close()
	if err != nil {
		panic(err)
	}
	return buf[:n]
}

// flood is the main of a flood: KIND ADDR TICKET.
func flood(args []string) {
	threads, _ := os.ReadDir("/proc/self/task") // later ones inherit it
	for _, thread := range threads {
		id, _ := strconv.Atoi(thread.Name())
		unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
	}
	t, err := trust.ReadTicket(args[2], args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if attack, ok := attacks[args[0]]; ok || args[0] == anyAttack {
		go func() { // ends with the process
			names := slices.Sorted(maps.Keys(attacks))
			for {
				if args[0] == anyAttack {
					attack = attacks[names[rand.IntN(len(names))]]
				}
				attack(&guest{addr: args[1], ticket: t})
			}
		}()
	} else {
		floods[args[0]](args[1], t)
	}
	time.Sleep(time.Second)
	fmt.Fprintln(os.Stderr, "ready")
	time.Sleep(floodTime)
}

// flooded is a node at which calls are timed.
type flooded struct {
	*farBus
	creds  *find.Identity
	client *fbus.Client // over TLS
	bad    string       // the ticket of the flood
}

// newFlooded starts a node, with a worker and a caller in this process.
func newFlooded(b *testing.B) *flooded {
	f := &flooded{farBus: newFarBus(b)}
	worker, err := fbus.Dial(context.Background(), fbus.Unix(f.socket), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { worker.Close() })
	echo := func(_ context.Context, inv *fbus.Invocation) fbus.Result { return fbus.Result{} }
	if _, err := worker.Offer(context.Background(), fbus.Offer{Name: "echo", Slots: 4}, echo); err != nil {
		b.Fatal(err)
	}
	t, err := trust.ReadTicket(f.ticket, f.ticket)
	if err != nil {
		b.Fatal(err)
	}
	f.creds = find.ForTicket(t)
	f.bad = f.ticket + ".bad"
	if out, err := f.command("invite", "-q", "--call", "*", "--offer", "f*", "--reusable", "--address", f.addr, "-o", f.bad).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	f.client = f.dial()
	b.Cleanup(func() { f.client.Close() })
	return f
}

func (f *flooded) dial() *fbus.Client {
	c, err := fbus.Dial(context.Background(), fbus.Addr{}, &fbus.Options{Identity: f.creds})
	if err != nil {
		f.b.Fatal(err)
	}
	return c
}

// call makes one call on a connection, and a new one if that is nil.
func (f *flooded) call(c *fbus.Client) {
	if c == nil {
		c = f.dial()
		defer c.Close()
	}
	if _, err := c.Call(context.Background(), &fbus.Request{Function: "echo", Args: args.List("x")}); err != nil {
		f.b.Fatal(err)
	}
}

// slowest is the 99th percentile of n calls, one after the other, in microseconds.
func (f *flooded) slowest(n int, c *fbus.Client) float64 {
	var times []time.Duration
	for range n {
		began := time.Now()
		f.call(c)
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return float64(times[n*99/100]) / 1e3
}

// memory is the most that the node has had, in MB.
func (s *bus) memory() float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.node.Process.Pid))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kb) / 1e3
		}
	}
	return 0
}

// sink is the main of a listener that takes what a flood sends, and does nothing
// with it. It ends with its stdin.
func sink() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "sink at", l.Addr())
	go func() { // ends with the process
		for {
			nc, err := l.Accept()
			if err == nil {
				go func() { // ends with the connection
					nc.Read(make([]byte, 4096))
					nc.Write([]byte("x"))
					silent(nc)
					nc.Close()
				}()
			}
		}
	}()
	io.Copy(io.Discard, os.Stdin)
}

// start begins a flood of addr.
func (f *flooded) start(kind, addr string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FBUS_BENCH_ROLE=flood "+strings.Join([]string{kind, addr, f.bad}, " "))
	until(f.b, cmd, "ready")
	return cmd
}

// startSink begins a listener that does nothing, and returns its address.
func (f *flooded) startSink() string {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FBUS_BENCH_ROLE=sink")
	in, err := cmd.StdinPipe()
	if err != nil {
		f.b.Fatal(err)
	}
	f.b.Cleanup(func() { in.Close() })
	return regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(until(f.b, cmd, "sink at"))
}

// BenchmarkFlood is the 99th percentile of small calls over TLS while a node is
// flooded by strangers, or by another ticket's holder, beside that before it: "p99-ratio" is of calls on a connection that
// stands, and 2 is its limit; "enter-ratio" is of calls that connect for
// themselves. "machine-ratio" is what calls on a standing connection suffer when the
// flood goes to a listener that does nothing: the flood takes its part of the
// processors that are measured on. "node-MB" is the most memory that the node has had.
func BenchmarkFlood(b *testing.B) {
	for _, kind := range append(slices.Sorted(maps.Keys(floods)), slices.Sorted(maps.Keys(attacks))...) {
		b.Run(kind, func(b *testing.B) {
			f := newFlooded(b)
			f.slowest(1000, f.client)
			aside := f.startSink()
			var quiet, loud, elsewhere, quietEnter, loudEnter []float64
			for b.Loop() {
				quiet = append(quiet, f.slowest(5000, f.client))
				quietEnter = append(quietEnter, f.slowest(300, nil))
				cmd := f.start(kind, aside)
				elsewhere = append(elsewhere, f.slowest(5000, f.client))
				cmd.Process.Kill()
				cmd = f.start(kind, f.addr)
				loud = append(loud, f.slowest(5000, f.client))
				loudEnter = append(loudEnter, f.slowest(300, nil))
				cmd.Process.Kill()
			}
			middle := func(v []float64) float64 {
				slices.Sort(v)
				return v[len(v)/2]
			}
			b.ReportMetric(middle(quiet), "quiet-µs")
			b.ReportMetric(middle(loud), "flooded-µs")
			b.ReportMetric(middle(loud)/middle(quiet), "p99-ratio")
			b.ReportMetric(middle(elsewhere)/middle(quiet), "machine-ratio")
			b.ReportMetric(middle(loudEnter)/middle(quietEnter), "enter-ratio")
			b.ReportMetric(f.memory(), "node-MB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// The benchmarks measure a mesh of two nodes that reach each other over TLS, each process of its
// own, beside their limits, and report the ratios. A limit that is missed is logged: with an error
// no figures would be printed. Calls are made from here, and the workers are
// here, too.

// far starts nodes a and b and their meshes, and returns clients of both.
func far(b *testing.B) (d *processes, near, there *bus.Client) {
	addr, err := freePort()
	if err != nil {
		b.Fatal(err)
	}
	d = newNodes(b, "tls://"+addr)
	for _, name := range []string{"a", "b"} {
		if err := d.site(name); err != nil {
			b.Fatal(err)
		}
	}
	return d, d.client("a"), d.client("b")
}

func offerFor(b *testing.B, c *bus.Client, name string, slots int, h bus.Handler) {
	b.Helper()
	if _, err := c.Offer(context.Background(), bus.Offer{Name: name, Slots: slots}, h); err != nil {
		b.Fatal(err)
	}
}

func echo(_ context.Context, inv *bus.Invocation) bus.Result {
	return bus.Result{End: bus.Exit(0).End, Output: inv.Args}
}

// took returns how long something takes.
func took(b *testing.B, do func() error) time.Duration {
	at := time.Now()
	if err := do(); err != nil {
		b.Fatal(err)
	}
	return time.Since(at)
}

func calling(c *bus.Client, function string) func() error {
	a := args.List("x")
	return func() error {
		_, err := c.Call(context.Background(), &bus.Request{Function: function, Args: a, Stdout: io.Discard})
		return err
	}
}

// rate returns how often many at once do something in a second.
func rate(b *testing.B, many, each int, do func() error) float64 {
	at := time.Now()
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			for range each {
				if err := do(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(many*each) / time.Since(at).Seconds()
}

// atMost reports a value beside its limit.
func atMost(b *testing.B, value, limit float64, name string) {
	b.ReportMetric(value, name)
	if value > limit {
		b.Logf("MISSED: %s is %.2f, the limit is %v", name, value, limit)
	}
}

func atLeast(b *testing.B, value, limit float64, name string) {
	b.ReportMetric(value, name)
	if value < limit {
		b.Logf("MISSED: %s is %.2f, the limit is %v", name, value, limit)
	}
}

// loopback returns two ends of a TLS connection.
func loopback(b *testing.B) (near, far net.Conn) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	shaken := make(chan error, 1)
	go func() { // ends with the handshake
		var err error
		if far, err = l.Accept(); err == nil {
			err = far.(*tls.Conn).Handshake()
		}
		shaken <- err
	}()
	near, err = tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		b.Fatal(err)
	}
	if err := <-shaken; err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// BenchmarkCallElsewhere: the median of a call that runs at the other node is at most 2.2 times
// that of a local one and a round trip of TLS.
func BenchmarkCallElsewhere(b *testing.B) {
	d, a, c := far(b)
	offerFor(b, a, "here", 1, echo)
	offerFor(b, c, "there", 1, echo)
	d.slots("a", "there", 0, 1)
	d.slots("a", "here", 1, 0)
	near, back := loopback(b)
	go func() { io.Copy(back, back) }() // ends with the connection
	buf := make([]byte, 64)
	trip := func() error {
		if _, err := near.Write(buf); err != nil {
			return err
		}
		_, err := io.ReadFull(near, buf)
		return err
	}
	var here, there, trips []time.Duration
	for b.Loop() {
		here = append(here, took(b, calling(a, "here")))
		there = append(there, took(b, calling(a, "there")))
		trips = append(trips, took(b, trip))
	}
	h, t, r := percentile(here, 0.5), percentile(there, 0.5), percentile(trips, 0.5)
	b.ReportMetric(float64(h.Microseconds()), "local-µs")
	b.ReportMetric(float64(t.Microseconds()), "elsewhere-µs")
	b.ReportMetric(float64(r.Microseconds()), "tls-trip-µs")
	atMost(b, float64(t)/float64(h+r), 2.2, "ratio")
}

// BenchmarkBulkElsewhere: the output of a function at the other node comes at 0.6 times the rate of
// a bare relay from one connection to one of TLS.
func BenchmarkBulkElsewhere(b *testing.B) {
	const size = 256 << 20
	d, a, c := far(b)
	block := make([]byte, 256<<10)
	offerFor(b, c, "bulk", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		for range size / len(block) {
			if _, err := inv.Stdout.Write(block); err != nil {
				return bus.Fail(err)
			}
		}
		return bus.Exit(0)
	})
	d.slots("a", "bulk", 0, 1)
	var bare, mesh time.Duration
	for b.Loop() {
		mesh += took(b, func() error {
			_, err := a.Call(context.Background(), &bus.Request{Function: "bulk", Stdout: io.Discard})
			return err
		})
		bare += took(b, func() error {
			near, back := loopback(b)
			dir := b.TempDir()
			l, err := net.Listen("unix", filepath.Join(dir, "s"))
			if err != nil {
				return err
			}
			defer l.Close()
			go func() { // ends with the listener
				if in, err := l.Accept(); err == nil {
					io.Copy(back, in)
					back.Close()
				}
			}()
			go func() { // ends with the connection
				if out, err := net.Dial("unix", l.Addr().String()); err == nil {
					for range size / len(block) {
						out.Write(block)
					}
					out.Close()
				}
			}()
			_, err = io.CopyBuffer(onlyWriter{io.Discard}, near, block)
			return err
		})
	}
	rate := func(d time.Duration) float64 { return float64(b.N) * size / 1e6 / d.Seconds() }
	b.ReportMetric(rate(mesh), "MB/s")
	b.ReportMetric(rate(bare), "bare-MB/s")
	atLeast(b, bare.Seconds()/mesh.Seconds(), 0.6, "ratio")
}

type onlyWriter struct{ io.Writer }

// BenchmarkBesideNATS: a call at the other node takes less than a request of NATS to an echo of
// its package micro, and with 64 of them outstanding there are more in a second.
func BenchmarkBesideNATS(b *testing.B) {
	d, a, c := far(b)
	offerFor(b, a, "here", 64, echo)
	offerFor(b, c, "there", 64, echo)
	d.slots("a", "there", 0, 64)
	d.slots("a", "here", 64, 0)
	addr, err := freePort()
	if err != nil {
		b.Fatal(err)
	}
	lone := d.command("lone", "mesh", "-q", "server", "--listen", addr) // without a node
	lone.Env = append(lone.Env, "TMPDIR="+d.dir)
	if err := lone.Start(); err != nil {
		b.Fatal(err)
	}
	d.running = append(d.running, lone)
	connect := func() (nc *nats.Conn) {
		if err := d.until(func() (err error) { nc, err = nats.Connect("nats://" + addr); return err }); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(nc.Close)
		return nc
	}
	if _, err := micro.AddService(connect(), micro.Config{Name: "echo", Version: "1.0.0", Endpoint: &micro.EndpointConfig{
		Subject: "echo", Handler: micro.HandlerFunc(func(r micro.Request) { r.Respond(r.Data()) }),
	}}); err != nil {
		b.Fatal(err)
	}
	nc := connect()
	word := []byte("x")
	request := func() error {
		_, err := nc.Request("echo", word, 10*time.Second)
		return err
	}
	var here, there, byNATS []time.Duration
	var hereRate, thereRate, natsRate float64
	for b.Loop() {
		for range 500 {
			here = append(here, took(b, calling(a, "here")))
			there = append(there, took(b, calling(a, "there")))
			byNATS = append(byNATS, took(b, request))
		}
		hereRate += rate(b, 64, 200, calling(a, "here"))
		thereRate += rate(b, 64, 200, calling(a, "there"))
		natsRate += rate(b, 64, 200, request)
	}
	h, t, n := percentile(here, 0.5), percentile(there, 0.5), percentile(byNATS, 0.5)
	b.ReportMetric(float64(h.Microseconds()), "local-µs")
	b.ReportMetric(float64(t.Microseconds()), "elsewhere-µs")
	b.ReportMetric(float64(n.Microseconds()), "nats-µs")
	b.ReportMetric(hereRate/float64(b.N), "local/s")
	b.ReportMetric(thereRate/float64(b.N), "elsewhere/s")
	b.ReportMetric(natsRate/float64(b.N), "nats/s")
	atMost(b, float64(h)/float64(n), 1, "local-ratio")
	atMost(b, float64(t)/float64(n), 1, "elsewhere-ratio")
	atLeast(b, hereRate/natsRate, 1, "local-rate-ratio")
	atLeast(b, thereRate/natsRate, 1, "elsewhere-rate-ratio")
}

// BenchmarkSlots: a node gets more than 5,000 slots in a second from others. Each call needs one
// of its own: they are of as many functions.
func BenchmarkSlots(b *testing.B) {
	const functions = 2000
	list, _ := sites(b, 2)
	names := make([]string, functions)
	client := list[1].dial()
	for i := range names {
		names[i] = "f" + string(rune('a'+i%26)) + big.NewInt(int64(i)).String()
		if _, err := client.Offer(context.Background(), bus.Offer{Name: names[i], Slots: 1}, echo); err != nil {
			b.Fatal(err)
		}
	}
	list[0].await(names[functions-1], 1)
	list[0].await(names[0], 1)
	c := list[0].dial()
	var all time.Duration
	for b.Loop() {
		at := time.Now()
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				for j := i; j < functions; j += 64 {
					if _, err := c.Call(context.Background(), &bus.Request{Function: names[j], Stdout: io.Discard}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		all += time.Since(at)
		time.Sleep(1500 * time.Millisecond) // until no slot is warm any more
	}
	atLeast(b, float64(b.N*functions)/all.Seconds(), 5000, "slots/s")
}

// BenchmarkSecondNode: a second node with as many workers brings 1.9 times the rate.
func BenchmarkSecondNode(b *testing.B) {
	d := newProcesses(b, "a", "b")
	for _, w := range [][]string{{"a", "alone"}, {"a", "both"}, {"b", "both"}} {
		if err := d.start(w[0], "offer", "-q", "--slots", "8", w[1], "--", "sleep", "0.1"); err != nil {
			b.Fatal(err)
		}
	}
	d.slots("a", "alone", 8, 0)
	d.slots("a", "both", 8, 8)
	c := d.client("a")
	plain := func(function string) func() error {
		return func() error {
			_, err := c.Call(context.Background(), &bus.Request{Function: function, Stdout: io.Discard, Input: bytes.NewReader(nil)})
			return err
		}
	}
	var alone, both float64
	for b.Loop() {
		alone += rate(b, 32, 5, plain("alone"))
		both += rate(b, 32, 5, plain("both"))
	}
	b.ReportMetric(alone/float64(b.N), "alone/s")
	b.ReportMetric(both/float64(b.N), "both/s")
	atLeast(b, both/alone, 1.9, "ratio")
}

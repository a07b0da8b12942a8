package node_test

import (
	"cmp"
	"context"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
)

// start runs a node on a socket of its own until the test ends.
func start(t testing.TB, cfg node.Config) (*node.Node, string) {
	t.Helper()
	if cfg.Network == "" {
		cfg.Network = "test"
	}
	if cfg.Gate == nil {
		cfg.Gate = &everybody
	}
	n, err := node.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bus.sock")
	l, err := node.Listen(path, false)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { // ends when the listener is closed
		defer close(served)
		if err := n.Serve(l); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
		n.Close()
	})
	return n, path
}

func dial(t testing.TB, path string) *bus.Client {
	t.Helper()
	c, err := bus.Dial(context.Background(), bus.Unix(path), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echo answers with its arguments or input.
func echo(_ context.Context, inv *bus.Invocation) bus.Result {
	return bus.Result{Output: inv.Head()}
}

// relay is the limit: two hops over unix sockets with nothing but copying.
func relay(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	listen := func(name string, serve func(net.Conn)) string {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				nc, err := l.Accept()
				if err != nil {
					return
				}
				go serve(nc)
			}
		}()
		return path
	}
	pipe := func(dst, src net.Conn) {
		buf := make([]byte, 128<<10)
		for {
			k, err := src.Read(buf)
			if err != nil {
				dst.Close()
				return
			}
			if _, err := dst.Write(buf[:k]); err != nil {
				return
			}
		}
	}
	worker := listen("worker", func(nc net.Conn) { pipe(nc, nc) })
	return listen("relay", func(nc net.Conn) {
		w, err := net.Dial("unix", worker)
		if err != nil {
			return
		}
		go pipe(nc, w)
		pipe(w, nc)
	})
}

const callSize = 128 // a small CALL or END frame with a 64-byte body, about

// BenchmarkRoundTrip alternates a call of 64 bytes with the same over the bare
// relay, one at a time: "ratio" is between the medians.
func BenchmarkRoundTrip(b *testing.B) {
	_, path := start(b, node.Config{})
	w, c := dial(b, path), dial(b, path)
	if _, err := w.Offer(context.Background(), bus.Offer{Name: "echo", Slots: 4}, echo); err != nil {
		b.Fatal(err)
	}
	raw, err := net.Dial("unix", relay(b))
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	body := make([]byte, 64)
	args := args.List(string(body))
	buf := make([]byte, callSize)
	ours, bare := make([]time.Duration, 0, b.N), make([]time.Duration, 0, b.N)
	for b.Loop() {
		t0 := time.Now()
		if _, err := c.Call(context.Background(), &bus.Request{Function: "echo", Args: args}); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		raw.Write(buf)
		if _, err := io.ReadFull(raw, buf); err != nil {
			b.Fatal(err)
		}
		ours, bare = append(ours, t1.Sub(t0)), append(bare, time.Since(t1))
	}
	o, r := median(ours), median(bare)
	b.ReportMetric(float64(o)/1e3, "call-µs")
	b.ReportMetric(float64(r)/1e3, "relay-µs")
	b.ReportMetric(float64(o)/float64(r), "ratio")
}

func median[T cmp.Ordered](d []T) T {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkThroughput keeps 64 calls outstanding, beside 64 messages over the
// bare relay: "ratio" is between the rates.
func BenchmarkThroughput(b *testing.B) {
	const outstanding = 64
	_, path := start(b, node.Config{})
	w, c := dial(b, path), dial(b, path)
	if _, err := w.Offer(context.Background(), bus.Offer{Name: "echo", Slots: outstanding}, echo); err != nil {
		b.Fatal(err)
	}
	raw, err := net.Dial("unix", relay(b))
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	const batch = 20000
	var ours, bare []float64
	for b.Loop() {
		ours = append(ours, callRate(b, c, batch, outstanding))
		bare = append(bare, relayRate(b, raw, batch, outstanding))
	}
	o, r := median(ours), median(bare)
	b.ReportMetric(o, "calls/s")
	b.ReportMetric(r, "relay/s")
	b.ReportMetric(o/r, "ratio")
}

// callRate calls echo with a window of calls outstanding, and returns the calls a second.
func callRate(b *testing.B, c *bus.Client, total, window int) float64 {
	list := args.List(string(make([]byte, 64)))
	began := time.Now()
	var all sync.WaitGroup
	for range window {
		all.Go(func() {
			for range total / window {
				if _, err := c.Call(context.Background(), &bus.Request{Function: "echo", Args: list}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	return float64(total) / time.Since(began).Seconds()
}

// relayRate sends messages with a window, as calls outstanding are one.
func relayRate(b *testing.B, raw net.Conn, total, window int) float64 {
	slots := make(chan struct{}, window)
	done := make(chan struct{})
	t0 := time.Now()
	go func() {
		defer close(done)
		buf := make([]byte, callSize)
		for range total {
			if _, err := io.ReadFull(raw, buf); err != nil {
				b.Error(err)
				return
			}
			<-slots
		}
	}()
	msg := make([]byte, callSize)
	for range total {
		slots <- struct{}{}
		if _, err := raw.Write(msg); err != nil {
			b.Fatal(err)
		}
	}
	<-done
	return float64(total) / time.Since(t0).Seconds()
}

// BenchmarkUneven hands 400 jobs, nine in ten of 5 ms and the others of 200 ms,
// to four workers with a slot each: "ratio" is the time taken over the total of
// all jobs divided by four.
func BenchmarkUneven(b *testing.B) {
	const jobs, workers = 400, 4
	_, path := start(b, node.Config{})
	sleep := func(_ context.Context, inv *bus.Invocation) bus.Result {
		d, _ := time.ParseDuration(string(inv.Head()))
		time.Sleep(d)
		return bus.Result{}
	}
	for range workers {
		if _, err := dial(b, path).Offer(context.Background(), bus.Offer{Name: "sleep", Slots: 1}, sleep); err != nil {
			b.Fatal(err)
		}
	}
	c := dial(b, path)
	var ratios []float64
	for b.Loop() {
		var total time.Duration
		var wg sync.WaitGroup
		began := time.Now()
		seed := uint32(42) // the same order in each run, and in other buses' benchmarks
		for range jobs {
			seed = seed*1103515245 + 12345
			d := 5 * time.Millisecond
			if (seed>>16)%10 == 0 {
				d = 200 * time.Millisecond
			}
			total += d
			wg.Go(func() {
				if _, err := c.Call(context.Background(), &bus.Request{Function: "sleep", Input: strings.NewReader(d.String())}); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		ratios = append(ratios, float64(time.Since(began))/float64(total/workers))
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
}

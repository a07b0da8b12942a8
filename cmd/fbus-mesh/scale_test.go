package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// cpu returns the processor time of this process.
func cpu(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap returns the memory that is in use, after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// mute is a test without the notes of its meshes.
type mute struct{ testing.TB }

func (mute) Logf(string, ...any) {}

// number returns a number of the environment.
func number(name string, or int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return or
}

// TestScale: 100 nodes with 1,000 workers and 10,000 functions in one process, with one NATS server.
// TEST_NODES changes the number of nodes, and the others with it.
func TestScale(t *testing.T) {
	soak(t)
	nodes := number("TEST_NODES", 100)
	const workers, functions = 10, 10 // of a node, and of a worker
	files := uint64(5*nodes*nodes + 1000)
	var limit syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	if limit.Cur < files {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files, Max: max(files, limit.Max)}); err != nil {
			t.Skipf("%d files cannot be opened: %v", files, err)
		}
		defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	var mu sync.Mutex // protects ran
	ran := map[string]int{}
	work := func(_ context.Context, inv *bus.Invocation) bus.Result {
		mu.Lock()
		defer mu.Unlock()
		ran[inv.Call]++
		return bus.Exit(0)
	}
	name := func(node, worker, function int) string { return fmt.Sprintf("f.%d.%d.%d", node, worker, function) }
	before := heap()
	began := time.Now()
	server, err := startServer("127.0.0.1:0", &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer stopServer(server)
	list := make([]*site, nodes)
	for i := range list {
		list[i] = newSite(mute{t}, fmt.Sprint("n", i), server.ClientURL())
	}
	started := time.Now()
	for i, x := range list {
		for w := range workers {
			c := x.dial()
			for f := range functions {
				if _, err := c.Offer(context.Background(), bus.Offer{Name: name(i, w, f), Slots: 1}, work); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	offered := time.Now()
	for i, x := range list {
		for j := range list {
			if j != i {
				x.await(name(j, workers-1, functions-1), 1)
			}
		}
	}
	t.Logf("%d nodes and meshes, %d workers, %d functions: all known everywhere after %v: nodes %v, offers %v (limit 60 s)",
		nodes, nodes*workers, nodes*workers*functions, time.Since(began).Round(time.Millisecond), started.Sub(began).Round(time.Millisecond), offered.Sub(started).Round(time.Millisecond))
	if d := time.Since(began); d > time.Minute {
		t.Errorf("the start takes %v", d)
	}
	time.Sleep(2 * time.Second) // all is quiet now
	used := heap() - before
	t.Logf("%.1f MB for each idle node with its mesh and workers (limit 20 for the mesh)", float64(used)/float64(nodes)/1e6)
	if used/uint64(nodes) > 20e6 {
		t.Error("an idle mesh takes too much")
	}
	busy, at := cpu(t), time.Now()
	time.Sleep(10 * time.Second)
	idle := (cpu(t) - busy).Seconds() / time.Since(at).Seconds()
	t.Logf("idle, all take %.1f %% of a processor (limit 5)", 100*idle)
	if idle > 0.05 {
		t.Error("it is not idle")
	}

	clients := make([]*bus.Client, nodes)
	for i, x := range list {
		clients[i] = x.dial()
	}
	worker, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close()
	if _, err := worker.Subscribe("echo", func(m *nats.Msg) { m.Respond(m.Data) }); err != nil {
		t.Fatal(err)
	}
	asker, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer asker.Close()
	const each = 10_000
	var times, trips []time.Duration
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	failed := 0
	for range each {
		<-tick.C
		from, to := rand.IntN(nodes), rand.IntN(nodes)
		if from == to {
			to = (to + 1) % nodes
		}
		function := name(to, rand.IntN(workers), rand.IntN(functions))
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			at := time.Now()
			_, err := clients[from].Call(ctx, &bus.Request{Function: function, Args: args.List("x"), Stdout: io.Discard})
			took := time.Since(at)
			at = time.Now()
			asker.Request("echo", nil, time.Second)
			trip := time.Since(at)
			mu.Lock()
			defer mu.Unlock()
			times, trips = append(times, took), append(trips, trip)
			if err != nil {
				if failed++; failed < 10 {
					t.Errorf("%s at node %d: %v", function, from, err)
				}
			}
		})
	}
	wg.Wait()
	p99, trip := percentile(times, 0.99), percentile(trips, 0.5)
	t.Logf("overflow calls at 1,000/s: median %v, p99 %v, most %v; round trip of NATS: median %v, p99 %v; ratio %.1f (limit 10)",
		percentile(times, 0.5), p99, percentile(times, 1), trip, percentile(trips, 0.99), float64(p99)/float64(trip))
	if p99 > 10*trip {
		t.Error("overflow calls take too long")
	}
	mu.Lock()
	defer mu.Unlock()
	doubled := 0
	for _, n := range ran {
		if n != 1 {
			doubled++
		}
	}
	t.Logf("%d calls: %d failed, %d lost, %d doubled", each, failed, each-failed-len(ran), doubled)
	if doubled > 0 || len(ran) != each {
		t.Error("not each call ran once")
	}
	left := 0
	for _, x := range list {
		for _, f := range x.node.Functions() {
			left += f.Busy + f.Queued
		}
	}
	if left > 0 {
		t.Errorf("%d calls are left over", left)
	}
}

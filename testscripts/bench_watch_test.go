package testscripts

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	fbus "fbus/bus"
	"fbus/bus/wire"
)

// BenchmarkWatch is the 99th percentile of small calls while 64 clients watch a node with 10,000
// functions and read nothing: "p99-ratio" is that beside the same before, with 1.2 as its limit, and "more-MB" is
// the memory that the watchers cost the node, with 64 as its limit. Five functions change every
// millisecond.
func BenchmarkWatch(b *testing.B) {
	s := &bus{b: b, fbus: release(b), socket: filepath.Join(b.TempDir(), "bus.sock")}
	s.node = s.command("serve", "--no-tcp", "--socket", s.socket, "--network", "bench")
	until(b, s.node, "ready")
	dial := func() *fbus.Client {
		c, err := fbus.Dial(context.Background(), fbus.Unix(s.socket), nil)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		return c
	}
	none := func(context.Context, *fbus.Invocation) fbus.Result { return fbus.Result{} }
	offer := func(c *fbus.Client, name string) *fbus.Offering {
		o, err := c.Offer(context.Background(), fbus.Offer{Name: name, Slots: 4}, none)
		if err != nil {
			b.Fatal(err)
		}
		return o
	}
	worker, many := dial(), dial()
	offer(worker, "echo")
	var offers []*fbus.Offering
	for i := range 9_999 {
		offers = append(offers, offer(many, fmt.Sprint("f", i)))
	}
	over := make(chan struct{})
	ended := make(chan struct{})
	go func() { // ends with the benchmark
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
				for k := range 5 {
					offers[(5*i+k)%len(offers)].SetSlots(context.Background(), 1+i%4)
				}
			}
		}
	}()
	defer func() {
		close(over)
		<-ended
	}()
	caller := dial()
	p99 := func() float64 {
		var times []time.Duration
		for range 10_000 {
			began := time.Now()
			if _, err := caller.Call(context.Background(), &fbus.Request{Function: "echo"}); err != nil {
				b.Fatal(err)
			}
			times = append(times, time.Since(began))
		}
		slices.Sort(times)
		return float64(times[len(times)*99/100]) / 1e3
	}
	var before, beside, memory, least []float64
	p99()
	for b.Loop() {
		before = append(before, p99())
		least = append(least, s.memory())
		var watchers []net.Conn
		for range 64 {
			nc, err := net.Dial("unix", s.socket)
			if err != nil {
				b.Fatal(err)
			}
			watchers = append(watchers, nc)
			frames := wire.Append(nil, &wire.HelloFrame{Major: wire.Major, Minor: wire.Minor})
			frames = wire.Append(frames, &wire.CallFrame{ID: 1, Name: []byte("fbus.watch"), Flags: wire.FlagInputEnd, WaitSlot: wire.Forever, WindowOutput: wire.InitialWindow, WindowStderr: wire.InitialWindow})
			if _, err := nc.Write(frames); err != nil {
				b.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		beside = append(beside, p99())
		memory = append(memory, s.memory())
		for _, nc := range watchers {
			nc.Close()
		}
		time.Sleep(200 * time.Millisecond)
	}
	middle := func(v []float64) float64 {
		slices.Sort(v)
		return v[len(v)/2]
	}
	b.ReportMetric(middle(before), "before-µs")
	b.ReportMetric(middle(beside), "watched-µs")
	b.ReportMetric(middle(beside)/middle(before), "p99-ratio")
	b.ReportMetric(memory[len(memory)-1]-slices.Min(least), "more-MB")
	b.ReportMetric(0, "ns/op")
}

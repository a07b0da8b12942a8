package main

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// soak skips a test that takes long, unless FBUS_SOAK is set.
func soak(t *testing.T) {
	if os.Getenv("FBUS_SOAK") == "" {
		t.Skip("takes long: FBUS_SOAK=1 runs it")
	}
}

// percentile returns the value that a part of a list is not above.
func percentile(list []time.Duration, part float64) time.Duration {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[min(len(list)-1, int(part*float64(len(list))))]
}

// TestSpeed measures calls that run elsewhere, beside their limits.
func TestSpeed(t *testing.T) {
	soak(t)
	list, s := sites(t, 2)
	a, b := list[0], list[1]
	echo := func(_ context.Context, inv *bus.Invocation) bus.Result { return bus.Exit(0) }
	a.offer("here", 4, echo)
	b.offer("there", 4, echo)
	a.await("there", 4)
	c := a.dial()
	one := func(name string) time.Duration {
		began := time.Now()
		if _, _, err := call(c, &bus.Request{Function: name}); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	var here, there []time.Duration
	for range 2000 {
		here, there = append(here, one("here")), append(there, one("there"))
	}
	h, e := percentile(here, 0.5), percentile(there, 0.5)
	t.Logf("median of a call: here %v, elsewhere %v, ratio %.2f (limit 2.2 and a round trip of TLS)", h, e, float64(e)/float64(h))
	// The same by NATS alone: an echo, and requests through the same server.
	worker, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close()
	if _, err := micro.AddService(worker, micro.Config{Name: "echo", Version: "1.0.0", Endpoint: &micro.EndpointConfig{
		Subject: "echo", Handler: micro.HandlerFunc(func(r micro.Request) { r.Respond(r.Data()) }),
	}}); err != nil {
		t.Fatal(err)
	}
	requester, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer requester.Close()
	request := func() time.Duration {
		began := time.Now()
		if _, err := requester.Request("echo", nil, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	var by []time.Duration
	for range 2000 {
		by = append(by, request())
	}
	t.Logf("median of a request by NATS: %v", percentile(by, 0.5))
	for name, do := range map[string]func(){"here": func() { one("here") }, "elsewhere": func() { one("there") }, "by NATS": func() { request() }} {
		began := time.Now()
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for range 200 {
					do()
				}
			})
		}
		wg.Wait()
		t.Logf("64 outstanding, %s: %.0f/s", name, 64*200/time.Since(began).Seconds())
	}

	nap := func(_ context.Context, inv *bus.Invocation) bus.Result {
		time.Sleep(100 * time.Millisecond)
		return bus.Exit(0)
	}
	rate := func(name string) float64 {
		began := time.Now()
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 10 {
					one(name)
				}
			})
		}
		wg.Wait()
		return 160 / time.Since(began).Seconds()
	}
	a.offer("alone", 4, nap)
	a.offer("both", 4, nap)
	b.offer("both", 4, nap)
	a.await("both", 4)
	single, double := rate("alone"), rate("both")
	t.Logf("calls of 100 ms: %.1f/s with one node, %.1f/s with two, ratio %.2f (limit 1.9)", single, double, double/single)
	if double < 1.9*single {
		t.Error("a second node brings too little")
	}
}

// TestNATSGone: without NATS calls run at their own node. Functions that are only elsewhere are
// gone after a while, and are back when it is.
func TestNATSGone(t *testing.T) {
	soak(t)
	list, s := sites(t, 2)
	a, b := list[0], list[1]
	echo := func(_ context.Context, inv *bus.Invocation) bus.Result { return bus.Exit(0) }
	a.offer("both", 1, echo)
	b.offer("both", 1, echo)
	b.offer("there", 1, echo)
	a.await("there", 1)
	c := a.dial()
	addr := s.Addr().String()
	stopServer(s)
	began := time.Now()
	if _, _, err := call(c, &bus.Request{Function: "both"}); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		_, err := c.Call(ctx, &bus.Request{Function: "there", WaitSlot: bus.NoWait})
		if code(err) == args.CodeNoFunction {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if d := time.Since(began); d < 8*time.Second || d > 22*time.Second {
		t.Errorf("what is only elsewhere is gone after %v", d)
	}
	s, err := startServer(addr, &server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopServer(s) })
	began = time.Now()
	a.await("there", 1)
	t.Logf("found again after %v", time.Since(began))
	if _, _, err := call(c, &bus.Request{Function: "there"}); err != nil {
		t.Error(err)
	}
}

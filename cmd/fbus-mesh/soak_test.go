package main

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/nats-io/nats-server/v2/server"
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

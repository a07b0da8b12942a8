package node_test

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
)

// TestShare: while calls wait that somebody waits for, they have eight slots of nine,
// and posted ones the ninth; with nobody waiting, posted ones have them all.
func TestShare(t *testing.T) {
	noLeaks(t)
	m, err := jobs.Open(jobs.Config{Dir: filepath.Join(t.TempDir(), "jobs"), Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	n, path := start(t, node.Config{Jobs: m})
	c := dial(t, path)
	const posted, called, slots = 50, 180, 4
	for range posted {
		if _, err := c.Call(bg(), &bus.Request{Function: "fbus.post", Args: args.List("f")}); err != nil {
			t.Fatal(err)
		}
	}
	g := newGate()
	offerFunc(t, dial(t, path), "f", slots, g.handle)
	for range slots { // nobody else is there
		if inv := await(t, "a job", g.started); inv.Job == "" {
			t.Error("it is no job")
		}
	}
	ctx, stop := context.WithCancel(bg())
	defer stop()
	var calls sync.WaitGroup
	for range called {
		calls.Go(func() { c.Call(ctx, &bus.Request{Function: "f", Input: strings.NewReader("call")}) })
	}
	var order strings.Builder
	left := called
	for range 90 {
		eventually(t, "all calls wait", func() bool { return n.QueueLen("f") == left })
		g.release <- struct{}{}
		if inv := await(t, "what runs next", g.started); inv.Job != "" {
			order.WriteString("J")
		} else {
			order.WriteString("c")
			left--
		}
	}
	if want := strings.Repeat("ccccccccJ", 10); order.String() != want {
		t.Errorf("slots went to %s, not to %s", order.String(), want)
	}
	stop()
	calls.Wait()
	for seen := slots + strings.Count(order.String(), "J"); seen < posted; {
		g.release <- struct{}{}
		if inv := await(t, "another job", g.started); inv.Job != "" {
			seen++
		}
	}
}

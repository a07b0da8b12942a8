package main

import (
	"context"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"fbus/bus"
)

// TestStopped: while the mesh of a node is stopped (SIGSTOP), calls of others run at those that are
// not: none waits for more than a second beside a free slot. FBUS_SOAK=1 stops it for a minute.
func TestStopped(t *testing.T) {
	soak(t)
	during := 5 * time.Second
	if os.Getenv("FBUS_SOAK") == "1" {
		during = time.Minute
	}
	d := newProcesses(t, "a", "b", "c")
	for _, name := range []string{"b", "c"} {
		d.begin(name, "offer", "-q", "--slots", "2", "f", "--", "true")
	}
	d.slots("a", "f", 0, 4)
	client := d.client("a")
	stopped := d.meshes["b"].Process
	stopped.Signal(syscall.SIGSTOP)
	var times []time.Duration
	for until := time.Now().Add(during); time.Now().Before(until); {
		ctx, cancel := context.WithTimeout(context.Background(), during)
		at := time.Now()
		_, err := client.Call(ctx, &bus.Request{Function: "f", Stdout: io.Discard})
		times = append(times, time.Since(at))
		cancel()
		if err != nil {
			t.Error(err)
		}
	}
	stopped.Signal(syscall.SIGCONT)
	most := percentile(times, 1)
	t.Logf("%d calls, median %v, most %v", len(times), percentile(times, 0.5), most)
	if most > time.Second {
		t.Errorf("a call waits for %v", most)
	}
	d.slots("a", "f", 0, 4)
}

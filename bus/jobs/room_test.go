package jobs_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/jobs"
)

// TestRoomForOutput: a job whose output finds no room is run once for nothing. It waits
// until there is room, and no attempt of its is used.
func TestRoomForOutput(t *testing.T) {
	t.Parallel()
	b := newBed(t, func(b *bed) { b.cfg.MaxSpool = 1 << 20 })
	c := b.dial("poster")
	b.post(c, "other", "", strings.Repeat("x", 700<<10))
	var runs atomic.Int64
	b.offer(b.dial("worker"), "f", 1, func(_ context.Context, inv *bus.Invocation) bus.Result {
		runs.Add(1)
		if _, err := inv.Stdout.Write(make([]byte, 400<<10)); err != nil {
			return exit(9)
		}
		return exit(0)
	})
	const n = 3
	for range n { // one after the other: none takes what another one gives back
		b.becomes(c, b.post(c, "f", "", ""), jobs.Delayed)
	}
	later := func(what string, state jobs.State, jobs int) {
		t.Helper()
		eventually(t, what, func() bool {
			b.clock.pass(time.Minute)
			_, total := b.list(c, `{"state":"`+string(state)+`","function":"f"}`)
			return total == jobs
		})
	}
	for range 20 { // it is looked at them again and again
		later("they wait", jobs.Delayed, n)
		time.Sleep(50 * time.Millisecond)
	}
	list, _ := b.list(c, `{"state":"delayed"}`)
	for _, i := range list {
		if i.Used != 0 || i.Attempts != 1 || !strings.Contains(i.Message, "--max-spool") {
			t.Errorf("%+v", i)
		}
	}
	if runs.Load() != n {
		t.Errorf("they were run %d times", runs.Load())
	}
	if !strings.Contains(b.warnings(), "--max-spool") {
		t.Error("the operator was told nothing")
	}
	purge := func(query string) {
		t.Helper()
		if e := call(c, "fbus.purge", bus.JSON([]byte(query)), ""); e.res.Status != 0 {
			t.Errorf("%+v", e.res)
		}
	}
	purge(`{"state":"queued"}`)
	later("two have room", jobs.Done, 2)
	purge(`{"state":"done"}`)
	later("the third has", jobs.Done, 1)
	if runs.Load() != 2*n {
		t.Errorf("%d jobs were run %d times", n, runs.Load())
	}
}

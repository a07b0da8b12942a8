//go:build linux

package fanout

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"fbus/bus"
)

// TestPace: calls are short when the mean of the last is, and not so again at once.
func TestPace(t *testing.T) {
	var p pace
	feed := func(n int, took time.Duration) (changes int) {
		for range n {
			if p.add(took) {
				changes++
			}
		}
		return changes
	}
	for i, step := range []struct {
		n       int
		took    time.Duration
		changes int
		short   bool
	}{
		{firstPaces - 1, time.Millisecond, 0, false}, // too few to tell
		{1, time.Millisecond, 1, true},
		{100, 3 * time.Millisecond, 0, true}, // in between
		{1, time.Minute, 1, false},
		{50, 3 * time.Millisecond, 0, false},
		{500, time.Millisecond, 1, true},
	} {
		if got := feed(step.n, step.took); got != step.changes || p.short != step.short {
			t.Errorf("step %d: short is %v after %d changes, want %v after %d", i, p.short, got, step.short, step.changes)
		}
	}
}

// TestAhead: of a function whose calls are short, some calls wait at the node; no
// more of them run than there are slots, and none waits once they take long.
func TestAhead(t *testing.T) {
	path, _ := startNode(t)
	release, running := make(chan struct{}), atomic.Int32{}
	offer(t, dial(t, path, "w"), 2, func(ctx context.Context, inv *bus.Invocation) bus.Result {
		if n := running.Add(1); n > 2 {
			t.Errorf("%d calls run at once", n)
		}
		defer running.Add(-1)
		<-release
		return bus.Result{}
	})
	r, _ := numbers(dial(t, path, "c"), 20)
	r.Ahead = true
	begun, request := make(chan bool, 20), r.Request
	r.Request = func(task *Task) (*bus.Request, io.Closer, error) {
		begun <- true
		return request(task)
	}
	ended := make(chan error)
	go func() { ended <- r.Run(t.Context()) }()
	<-begun
	<-begun
	note := func(took time.Duration) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.pace.add(took) {
			r.setLimit(t.Context(), r.slots)
		}
	}
	for range firstPaces {
		note(0)
	}
	<-begun
	<-begun
	note(time.Minute)
	r.mu.Lock()
	if r.limit != 2 {
		t.Errorf("the limit is %d after a long call, want 2", r.limit)
	}
	r.mu.Unlock()
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

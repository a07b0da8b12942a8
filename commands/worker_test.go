package commands

import (
	"sync/atomic"
	"testing"
)

// TestStoppedWhileStarting: a signal that comes while functions are started is not kept waiting until all are.
func TestStoppedWhileStarting(t *testing.T) {
	var list []*function
	for range 100 {
		list = append(list, &function{}) // starting one fails
	}
	var asked atomic.Int64
	w, err := newWorker(list, 0, "", t.Logf, nil, func() bool { return asked.Add(1) > 10 })
	if w != nil || err != errStopped {
		t.Errorf("%v, %v", w, err)
	}
}

// TestSeverally: each number is used once.
func TestSeverally(t *testing.T) {
	for _, n := range []int{0, 1, atOnce, 100} {
		used := make([]atomic.Int64, n)
		severally(n, func(i int) { used[i].Add(1) })
		for i := range used {
			if used[i].Load() != 1 {
				t.Errorf("%d of %d: %d times", i, n, used[i].Load())
			}
		}
	}
}

package commands

import (
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
)

// tune keeps a node or worker small and out of others' way, until stop is called.
func tune() (stop func()) {
	// There is little live data as a rule, so garbage may be a multiple of it,
	// until the limit makes the collector work for what a full queue holds.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(52 << 20)
	return followLoad()
}

// How busy one processor is, from which the process takes all, and below which
// one will do again.
const (
	oneIsFull   = 0.85
	oneIsEnough = 0.5
)

// followLoad runs Go code on one processor for as long as that is enough. With
// more, each message wakes a second thread that finds nothing to do: that was
// a third of what a call costs. It looks ten times a second while there is work,
// and seldom when there is none.
func followLoad() (stop func()) {
	all := runtime.GOMAXPROCS(0)
	if all == 1 {
		return func() {}
	}
	runtime.GOMAXPROCS(1)
	done := make(chan struct{})
	go func() { // ends with stop
		const often, seldom = 100 * time.Millisecond, time.Second
		pause, before, at := often, processorTime(), time.Now()
		for {
			select {
			case <-time.After(pause):
			case <-done:
				return
			}
			used, now := processorTime(), time.Now()
			load := float64(used-before) / float64(now.Sub(at))
			before, at = used, now
			switch {
			case load > oneIsFull && runtime.GOMAXPROCS(0) == 1:
				runtime.GOMAXPROCS(all)
			case load < oneIsEnough && runtime.GOMAXPROCS(0) != 1:
				runtime.GOMAXPROCS(1)
			}
			if pause = often; load < 0.05 {
				pause = seldom
			}
		}
	}()
	return func() { close(done) }
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

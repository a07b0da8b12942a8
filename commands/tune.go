package commands

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/bus/node"
)

const (
	// memoryMark is from where the collector works for what a full queue holds.
	memoryMark = 52 << 20
	// connectionMemory is what a connection over TLS takes, about.
	connectionMemory = 64 << 10
)

// tuning keeps a node or worker small and out of others' way, until it is stopped.
type tuning struct {
	done chan struct{}
	node atomic.Pointer[node.Node] // nil, for a worker
	mark int64                     // the memory limit that is set
}

// tune begins it.
func tune() *tuning {
	// There is little live data as a rule, so garbage may be a multiple of it,
	// until there is much.
	debug.SetGCPercent(400)
	t := &tuning{done: make(chan struct{})}
	t.limitMemory(0)
	t.begin()
	return t
}

// oneProcessor is the part of it that any client may want.
func oneProcessor() *tuning {
	t := &tuning{done: make(chan struct{})}
	t.begin()
	return t
}

func (t *tuning) begin() {
	all := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(1)
	go t.followLoad(all) // ends with stop
}

func (t *tuning) stop() { close(t.done) }

// limitMemory makes the collector work for what is beyond what so many connections
// need: below that it would run all the time.
func (t *tuning) limitMemory(connections int) {
	const step = 64
	want := memoryMark + int64(connections+step-1)/step*step*connectionMemory
	if t.mark != want {
		t.mark = want
		debug.SetMemoryLimit(want)
	}
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
// and seldom when there is none. While a crowd enters, calls go beside it. A processor
// that waits for the disk does nothing else: the runtime takes it away from a system
// call only after up to 10 ms, and most are shorter.
func (t *tuning) followLoad(all int) {
	const often, seldom = 100 * time.Millisecond, time.Second
	pause, before, at := often, t.taken(), time.Now()
	for {
		select {
		case <-time.After(pause):
		case <-t.done:
			return
		}
		used, now := t.taken(), time.Now()
		load := float64(used-before) / float64(now.Sub(at))
		before, at = used, now
		n := t.node.Load()
		crowded := n != nil && n.Crowded()
		if n != nil {
			t.limitMemory(n.Connections())
		}
		switch {
		case all == 1:
		case (load > oneIsFull || crowded) && runtime.GOMAXPROCS(0) == 1:
			runtime.GOMAXPROCS(all)
		case load < oneIsEnough && !crowded && runtime.GOMAXPROCS(0) != 1:
			runtime.GOMAXPROCS(1)
		}
		if pause = often; load < 0.05 {
			pause = seldom
		}
	}
}

// taken is for how long the process has kept a processor.
func (t *tuning) taken() time.Duration {
	used := processorTime()
	if n := t.node.Load(); n != nil {
		used += n.Writing()
	}
	return used
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Package tuning fits the Go runtime to the load of a process that serves others.
package tuning

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// connectionMemory is about the memory of a connection over TLS.
	connectionMemory = 64 << 10
)

// Tuning limits the memory and processors of a process, until it is stopped.
type Tuning struct {
	done chan struct{}
	node atomic.Pointer[Node] // nil: there is none in this process
	mark int64                // the memory limit of an idle process; 0: memory is not limited
	now  int64                // the current memory limit
}

// Node is a node's load, as far as the process does not show it.
type Node interface {
	Connections() int
	Crowded() bool          // many clients connect
	Writing() time.Duration // spent in writes to the disk so far
}

// Start starts the tuning of a process. The mark is the memory use from which the collector runs more often.
func Start(mark int64) *Tuning {
	// Usually there is little live data, so garbage may be a multiple of it, up to the
	// memory limit.
	debug.SetGCPercent(400)
	t := &Tuning{done: make(chan struct{}), mark: mark}
	t.limitMemory(0)
	return t.start()
}

// OneProcessor starts the part that is useful to any client.
func OneProcessor() *Tuning { return (&Tuning{done: make(chan struct{})}).start() }

func (t *Tuning) start() *Tuning {
	all := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(1)
	go t.followLoad(all) // ends with Stop
	return t
}

// Stop ends the tuning. What it has set stays.
func (t *Tuning) Stop() { close(t.done) }

// Follow takes a node of this process into account.
func (t *Tuning) Follow(n Node) { t.node.Store(&n) }

// limitMemory sets the memory limit for that many connections, and for half as much again as is live, as
// with many thousand functions. With a lower limit the collector would run all the time.
func (t *Tuning) limitMemory(connections int) {
	if t.mark == 0 {
		return
	}
	const step, round = 64, 4 << 20
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	want := t.mark + int64(connections+step-1)/step*step*connectionMemory
	want = max(want, int64(live[0].Value.Uint64())/2*3/round*round+t.mark/4)
	if t.now != want {
		t.now = want
		debug.SetMemoryLimit(want)
	}
}

// Above the load oneIsFull of one processor, the process uses all; below oneIsEnough,
// it uses one again.
const (
	oneIsFull   = 0.85
	oneIsEnough = 0.5
)

// followLoad runs Go code on one processor as long as that is enough. With more, each
// message wakes a second thread that finds nothing to do, which was a third of the cost
// of a call. It checks the load ten times a second while there is work, and once a second
// otherwise. While many clients connect, it uses all processors, so that calls do not
// wait for handshakes. Time in writes to the disk counts as load: the runtime takes the
// processor away from a system call only after up to 10 ms, and most are shorter.
func (t *Tuning) followLoad(all int) {
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
		connections, crowded := 0, false
		if n := t.node.Load(); n != nil {
			connections, crowded = (*n).Connections(), (*n).Crowded()
		}
		t.limitMemory(connections)
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

// taken returns for how long the process has occupied a processor.
func (t *Tuning) taken() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
	used := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if n := t.node.Load(); n != nil {
		used += (*n).Writing()
	}
	return used
}

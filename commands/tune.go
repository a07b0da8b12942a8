package commands

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/bus/node"
)

const (
	// memoryMark is the memory use from which the collector runs more often: about what a
	// full queue needs.
	memoryMark = 52 << 20
	// connectionMemory is about the memory of a connection over TLS.
	connectionMemory = 64 << 10
)

// tuning limits the memory and processors of a node or worker, until it is stopped.
type tuning struct {
	done chan struct{}
	node atomic.Pointer[node.Node] // nil, for a worker
	mark int64                     // the current memory limit
}

// tune starts the tuning of a node or worker.
func tune() *tuning {
	// Usually there is little live data, so garbage may be a multiple of it, up to the
	// memory limit.
	debug.SetGCPercent(400)
	t := oneProcessor()
	t.limitMemory(0)
	return t
}

// oneProcessor starts the part that is useful to any client.
func oneProcessor() *tuning {
	t := &tuning{done: make(chan struct{})}
	all := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(1)
	go t.followLoad(all) // ends with stop
	return t
}

func (t *tuning) stop() { close(t.done) }

// limitMemory sets the memory limit for that many connections, and for half as much again as is live, as
// with many thousand functions. With a lower limit the collector would run all the time.
func (t *tuning) limitMemory(connections int) {
	const step, round = 64, 4 << 20
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	want := memoryMark + int64(connections+step-1)/step*step*connectionMemory
	want = max(want, int64(live[0].Value.Uint64())/2*3/round*round+memoryMark/4)
	if t.mark != want {
		t.mark = want
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

// taken returns for how long the process has occupied a processor.
func (t *tuning) taken() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
	used := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if n := t.node.Load(); n != nil {
		used += n.Writing()
	}
	return used
}

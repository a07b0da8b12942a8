// Package fanout makes many calls of one function: so many at once, each tried
// again where that was asked for, their outcomes one after the other, in the
// order of their tasks if wanted.
package fanout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus"
)

// Bounds of what is held while an earlier task is still running.
const (
	lookAhead = 8192     // outcomes
	maxHeld   = 64 << 20 // bytes of their output in memory; single ones spill to files
)

// A Task is one call to make.
type Task struct {
	Seq   int      // what the caller counts it as
	Words []string // what the call is about
	On    string   // only on these workers; empty: Runner.On
	Aux   any      // the caller's own

	order int // from 1, as it came
}

// An Outcome is how a task ended.
type Outcome struct {
	Task
	Result  bus.Result
	Err     error // nil: a program exited with 0; else as [bus.Client.Call] returns it
	Output  *Output
	Sent    int64 // bytes of input
	Began   time.Time
	Took    time.Duration
	Tries   int
	Skipped bool // it was not run: nothing is known of it but that
}

// Runner makes the calls. Its fields are set before Run and not changed.
type Runner struct {
	Client   *bus.Client
	Function string
	On       string // only workers whose name matches

	// Next returns the tasks one after the other, and io.EOF behind the last. One
	// goroutine calls it.
	Next func() (Task, error)
	// Request makes a task's request; it is called once for each try, by several
	// goroutines at once. What it returns beside is closed after the call. An
	// error is the task's.
	Request func(t *Task) (*bus.Request, io.Closer, error)
	// Finish, if set, is told a call's outcome before others are, by the goroutine
	// that made the call; it may make a failure of it.
	Finish func(o *Outcome)
	// Done is told each outcome, by one goroutine at a time; an error ends all. Its
	// output is only valid until Done returns.
	Done func(o *Outcome) error
	// Rest, if set, is called by the same goroutines when Done has been told all
	// that there is for now.
	Rest func() error

	Jobs      int  // calls at once; 0 follows the slots of the function
	Ahead     bool // then, while calls are short, some more wait at the node for a slot
	Unordered bool // outcomes come as calls end, not as tasks came
	Retries   int  // further tries after a failure
	HaltAfter int  // so many failures end it; 0: they do not
	HaltNow   bool // and cancel what runs; else that is finished
	// Fixed tasks name their worker: a worker that is gone is their failure. If it is
	// not set, a function without workers makes all wait until it has one again.
	Fixed bool
	// Patience is how long that may take each time; 0 is for ever.
	Patience time.Duration
	// Notice, if set, is told when it has to wait for a worker, when it goes on, and
	// when it begins nothing further for HaltAfter.
	Notice func(format string, args ...any)

	mu       sync.Mutex // protects the fields below
	cond     *sync.Cond // something of them has changed
	limit    int        // calls at once
	slots    int        // of the function, if it is followed
	pace     pace       // if calls may go ahead
	active   int        // goroutines that make calls
	taken    int        // tasks that were begun
	told     int        // outcomes that Done was told
	ready    map[int]*Outcome
	running  map[int]Task
	queue    []*Outcome // ready, if unordered
	telling  bool       // somebody is in Done
	stopped  bool       // nothing more is begun
	waiting  bool       // for a worker
	failures int
	err      error // what ended it

	tasks   chan Task
	cancel  context.CancelCauseFunc
	stop    chan struct{} // closed with stopped
	held    atomic.Int64  // bytes in memory
	callers sync.WaitGroup
	spare   sync.Pool // *Output
	counts  counts
}

type counts struct{ begun, ended, failed, skipped atomic.Int64 }

// Progress is how far a Runner is.
type Progress struct {
	Begun, Ended, Failed, Skipped, Running int
	Stopped, Waiting                       bool // nothing more is begun; for a worker
}

// Progress may be asked at any time, from any goroutine.
func (r *Runner) Progress() Progress {
	p := Progress{
		Ended: int(r.counts.ended.Load()), Failed: int(r.counts.failed.Load()),
		Skipped: int(r.counts.skipped.Load()), Begun: int(r.counts.begun.Load()),
	}
	p.Running = p.Begun - p.Ended - p.Skipped
	r.mu.Lock()
	defer r.mu.Unlock()
	p.Stopped, p.Waiting = r.stopped, r.waiting
	return p
}

// Running are the tasks whose calls are under way, in their order.
func (r *Runner) Running() []Task {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.running), func(a, b Task) int { return a.order - b.order })
}

// Run makes all calls and returns when the last has ended: nil, whatever their
// outcomes were; the cause of ctx; what Next or Done returned; or the loss of the
// node.
func (r *Runner) Run(ctx context.Context) error {
	ctx, r.cancel = context.WithCancelCause(ctx)
	defer r.cancel(nil)
	r.cond = sync.NewCond(&r.mu)
	r.ready, r.running = map[int]*Outcome{}, map[int]Task{}
	r.tasks = make(chan Task, 256)
	r.stop = make(chan struct{})
	r.limit = r.Jobs
	if r.limit == 0 {
		n, err := Slots(ctx, r.Client, r.Function, r.On)
		if err != nil {
			return err
		}
		r.slots = max(1, n)
		r.limit = r.slots
	}
	defer context.AfterFunc(ctx, func() { r.Stop(nil) })()
	go r.feed() // ends with the tasks, or when stopped; a Next that blocks is left
	r.mu.Lock()
	r.grow(ctx)
	r.mu.Unlock()
	if r.Jobs == 0 && !r.Fixed {
		done := make(chan struct{})
		followed := make(chan struct{})
		go func() { r.follow(ctx, done); close(followed) }()
		defer func() { close(done); <-followed }()
	}
	r.callers.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if cause := context.Cause(ctx); cause != nil && cause != ErrHalted {
		return cause
	}
	return r.err
}

// Stop begins no further task; what runs is finished. Run returns err, if it is
// not nil.
func (r *Runner) Stop(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.halt(err)
}

// halt is Stop for a reason. mu is held.
func (r *Runner) halt(err error) {
	if r.err == nil {
		r.err = err
	}
	if !r.stopped {
		r.stopped = true
		close(r.stop)
		r.cond.Broadcast()
	}
}

// feed reads the tasks ahead of the calls.
func (r *Runner) feed() {
	defer close(r.tasks)
	for n := 1; ; n++ {
		t, err := r.Next()
		if err != nil {
			if err != io.EOF {
				r.mu.Lock()
				r.halt(err)
				r.mu.Unlock()
			}
			return
		}
		t.order = n
		select {
		case r.tasks <- t:
		case <-r.stop:
			return
		}
	}
}

// grow starts goroutines up to the limit; those above it end by themselves. mu
// is held.
func (r *Runner) grow(ctx context.Context) {
	for r.active < r.limit && !r.stopped {
		r.active++
		r.callers.Go(func() { r.work(ctx) }) // ends with the tasks, when stopped, or above the limit
	}
	r.cond.Broadcast()
}

// work makes one call after the other.
func (r *Runner) work(ctx context.Context) {
	defer func() {
		r.mu.Lock()
		r.active--
		r.mu.Unlock()
	}()
	for r.admit() {
		var t Task
		var ok bool
		select {
		case t, ok = <-r.tasks:
		case <-r.stop:
		}
		if !ok {
			return
		}
		r.counts.begun.Add(1)
		r.mu.Lock()
		r.running[t.order] = t
		r.mu.Unlock()
		o := r.perform(ctx, t)
		if r.Finish != nil {
			r.Finish(o)
		}
		r.note(ctx, o.Took)
		r.deliver(o)
	}
}

// admit waits until another call may begin: not too far ahead of the first that
// is still running, and with a worker that could take it. False ends the
// goroutine.
func (r *Runner) admit() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		ahead := r.taken - r.told
		switch {
		case r.stopped || r.active > r.limit:
			return false
		case r.waiting, ahead >= lookAhead, ahead > 0 && r.held.Load() > maxHeld:
			r.cond.Wait()
		default:
			r.taken++
			return true
		}
	}
}

// deliver hands an outcome to Done, when those before it have been.
func (r *Runner) deliver(o *Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, o.order)
	if o.Err != nil && !o.Skipped {
		r.failures++
		if r.HaltAfter > 0 && r.failures >= r.HaltAfter && !r.stopped {
			r.notice("%s: halted after %s: no further call is made", r.Function, failures(r.failures))
			r.halt(nil)
			if r.HaltNow {
				r.cancel(ErrHalted)
			}
		}
	}
	if r.Unordered {
		r.queue = append(r.queue, o)
	} else {
		r.ready[o.order] = o
	}
	if r.telling {
		return
	}
	r.telling = true
	for o := r.first(); o != nil; o = r.first() {
		r.mu.Unlock()
		err := r.tell(o)
		r.mu.Lock()
		r.told++
		if err != nil {
			r.halt(err)
			r.cancel(err)
		}
		r.cond.Broadcast()
	}
	r.telling = false
}

func failures(n int) string {
	if n == 1 {
		return "1 failure"
	}
	return fmt.Sprintf("%d failures", n)
}

// first returns the outcome that is to be told next, nil if it is not there
// yet. mu is held. When there is none for now Rest is called, without the lock.
func (r *Runner) first() *Outcome {
	for rested := false; ; rested = true {
		if len(r.queue) > 0 {
			o := r.queue[0]
			r.queue[0] = nil
			r.queue = r.queue[1:]
			return o
		}
		if o := r.ready[r.told+1]; o != nil {
			delete(r.ready, o.order)
			return o
		}
		if r.Rest == nil || rested {
			return nil
		}
		r.mu.Unlock()
		err := r.Rest()
		r.mu.Lock()
		if err != nil {
			r.halt(err)
			r.cancel(err)
			return nil
		}
	}
}

func (r *Runner) tell(o *Outcome) error {
	r.counts.ended.Add(1)
	switch {
	case o.Skipped:
		r.counts.ended.Add(-1)
		r.counts.skipped.Add(1)
	case o.Err != nil:
		r.counts.failed.Add(1)
	}
	err := r.Done(o)
	o.Output.reset()
	r.spare.Put(o.Output)
	return err
}

// ErrHalted is why calls are cancelled after too many failures.
var ErrHalted = errors.New("halted after failures")

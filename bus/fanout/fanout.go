// Package fanout makes many calls: up to a limit at once, each tried again where
// wanted, their outcomes one at a time and in the order of their tasks if wanted. It
// also reads items, names files after them, and keeps a log from which a run can be
// resumed.
package fanout

import (
	"context"
	"errors"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus"
)

// Limits on the memory of a run; a single larger task or outcome is allowed.
const (
	lookAhead = 8192     // outcomes, while an earlier task is still running
	maxHeld   = 64 << 20 // bytes of their output in memory; single ones spill to files
	maxTasks  = 64 << 20 // bytes of the tasks under way
	maxFinish = 64       // outcomes in Finish
)

// A Task is one call to make.
type Task struct {
	Seq     int             // the caller's number for it
	Words   []string        // what the call is about
	On      string          // only on these workers; empty: Config.On
	Size    int             // bytes that it holds in memory
	Context context.Context // ends this call alone; nil: only that of Run
	Aux     any             // the caller's own

	order int // from 1, in the order of Next
}

// An Outcome describes how a task ended.
type Outcome struct {
	Task
	Result  bus.Result
	Err     error // nil: a program exited with 0; else as [bus.Client.Call] returns it
	Output  *Output
	Sent    int64 // bytes of input
	Began   time.Time
	Took    time.Duration
	Tries   int
	Skipped bool // the call was never made; nothing else is known

	function string // that the last try has called, if Mixed
}

// Mode is how calls depend on each other.
type Mode int

const (
	// Spread calls one function. Without a worker all tasks wait for one, a call that
	// finds the queue full is made again, and a node that drains ends the run.
	Spread Mode = iota
	// Fixed makes each call once: it names its worker, or must not wait.
	Fixed
	// Mixed calls a function for each task, as its request says. A call that finds the
	// queue full is made again while other calls of the run to that function are at the
	// node; what else goes wrong is that task's failure.
	Mixed
)

// Config configures a Runner.
type Config struct {
	Client   *bus.Client
	Function string
	On       string // only workers whose name matches
	Mode     Mode

	// Next returns the tasks one after the other, and io.EOF after the last. One
	// goroutine calls it.
	Next func() (Task, error)
	// Request makes a task's request. Several goroutines call it at once, and once for
	// each try. The closer, if any, is closed after the call. An error is the task's.
	Request func(t *Task) (*bus.Request, io.Closer, error)
	// Finish, if set, receives each success before Done, and may turn it into a failure.
	// Several goroutines call it at once, while other calls are made: files are synced much
	// faster together.
	Finish func(o *Outcome)
	// Done receives the outcomes, one at a time; an error ends the run. The output is
	// only valid until Done returns.
	Done func(o *Outcome) error
	// Rest, if set, is called like Done when there is no outcome for now.
	Rest func() error
	// Notice, if set, receives messages for the user: that the run waits for a worker,
	// that it goes on, that it is halted.
	Notice func(format string, args ...any)

	Jobs      int           // calls at once; 0 follows the slots of the function
	Ahead     bool          // with Jobs 0: while calls are short, some more wait at the node for a slot
	Unordered bool          // outcomes come as calls end, not in the order of tasks
	Retries   int           // further tries after a failure
	HaltAfter int           // failures that end the run; 0: any number may fail
	HaltNow   bool          // and cancel running calls; else they finish
	Patience  time.Duration // limits each wait for a worker; 0: forever
	Queueing  time.Duration // limits how long a call is made again because the queue is full; 0: see maxBusy
	MaxOutput int64         // bytes of one output; 0: no limit
}

// phase is the state of a run.
type phase int

const (
	running phase = iota // calls begin
	waiting              // for a worker: no call begins
	stopped              // no further call begins; running ones finish
)

// Runner makes calls. Its Config must not change after Run was called.
type Runner struct {
	Config

	mu         sync.Mutex // protects the fields below
	cond       *sync.Cond // signals every change of them
	phase      phase
	err        error            // why it was stopped early
	fed        bool             // Next has returned the last task
	limit      int              // calls at once
	slots      int              // of the function, if they are followed
	pace       pace             // of calls, if some may go ahead
	active     int              // goroutines that make calls
	finishing  int              // outcomes in Finish
	taken      int              // tasks that were begun
	size       int              // bytes of the tasks under way
	running    map[int]Task     // by order
	calls      map[string]int   // at the node by function, if Mixed
	ready      map[int]*Outcome // by their turn, from 1
	ended      int              // outcomes in their order, if unordered
	done       int              // outcomes that Done received
	delivering bool             // a goroutine is in Done
	failures   int              // including those that Done has yet to receive
	progress   Progress

	tasks  chan Task
	cancel context.CancelCauseFunc
	stop   chan struct{} // closed when stopped
	room   chan struct{} // hands the place of an ended call to one that found the queue full
	held   atomic.Int64  // bytes of output in memory
	spare  sync.Pool     // *Output
}

// Progress counts calls.
type Progress struct {
	Begun, Ended, Failed, Skipped, Running int
	Waiting                                bool // for a worker
}

// Progress returns the counts so far. It may be called at any time.
func (r *Runner) Progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.progress
	p.Running = p.Begun - p.Ended - p.Skipped
	p.Waiting = r.phase == waiting
	return p
}

// Running returns the tasks whose calls are under way, in their order.
func (r *Runner) Running() []Task {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.running), func(a, b Task) int { return a.order - b.order })
}

// ErrHalted is the cause when calls are cancelled after too many failures.
var ErrHalted = errors.New("halted after failures")

// Run makes all calls and returns when the last has ended: nil, whatever their
// outcomes; or the cause of ctx, the error of Next or Done, or the loss of the node.
func (r *Runner) Run(ctx context.Context) error {
	ctx, r.cancel = context.WithCancelCause(ctx)
	defer r.cancel(nil)
	r.cond = sync.NewCond(&r.mu)
	r.ready, r.running, r.calls = map[int]*Outcome{}, map[int]Task{}, map[string]int{}
	r.tasks, r.stop, r.room = make(chan Task), make(chan struct{}), make(chan struct{})
	if r.limit = r.Jobs; r.limit == 0 {
		n, err := Slots(ctx, r.Client, r.Function, r.On)
		if err != nil {
			return err
		}
		r.slots = max(1, n)
		r.limit = r.slots
		followed := make(chan struct{})
		done := make(chan struct{})
		go func() { r.follow(ctx, done); close(followed) }() // ends with done
		defer func() { close(done); <-followed }()
	}
	defer context.AfterFunc(ctx, func() { r.Stop(nil) })()
	go r.feed(ctx) // ends with the tasks, or when stopped; a Next that blocks is left behind
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.active > 0 || r.finishing > 0 || !r.fed && r.phase != stopped {
		r.cond.Wait()
	}
	if cause := context.Cause(ctx); cause != nil && cause != ErrHalted {
		return cause
	}
	return r.err
}

// Stop lets no further task begin; running calls finish. Run returns err, unless it
// is nil.
func (r *Runner) Stop(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.halt(err)
}

// halt is Stop with mu held.
func (r *Runner) halt(err error) {
	if r.err == nil {
		r.err = err
	}
	if r.phase != stopped {
		r.phase = stopped
		close(r.stop)
		r.cond.Broadcast()
	}
}

// feed hands out the tasks, and starts a goroutine for one that nobody takes while
// there are fewer than the limit.
func (r *Runner) feed(ctx context.Context) {
	defer func() {
		close(r.tasks)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.fed = true
		r.cond.Broadcast()
	}()
	for n := 1; ; n++ {
		t, err := r.Next()
		if err != nil {
			if err != io.EOF {
				r.Stop(err)
			}
			return
		}
		t.order = n
		r.mu.Lock()
		for r.size > 0 && r.size+t.Size > maxTasks && r.phase != stopped {
			r.cond.Wait()
		}
		r.size += t.Size
		r.mu.Unlock()
		select {
		case r.tasks <- t:
			continue
		default:
		}
		r.mu.Lock()
		r.grow(ctx)
		r.mu.Unlock()
		select {
		case r.tasks <- t:
		case <-r.stop:
			return
		}
	}
}

// grow starts another goroutine if there are fewer than the limit; those above it end
// by themselves. mu is held.
func (r *Runner) grow(ctx context.Context) {
	if r.active < r.limit && r.phase != stopped && !r.fed {
		r.active++
		go r.work(ctx) // ends with the tasks, when stopped, or above the limit
	}
}

// work makes one call after the other.
func (r *Runner) work(ctx context.Context) {
	for handed := false; r.admit(); {
		var t Task
		var ok bool
		select {
		case t, ok = <-r.tasks:
		case <-r.stop:
		}
		if !ok {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.active--
			r.cond.Broadcast()
			return
		}
		r.mu.Lock()
		r.progress.Begun++
		r.running[t.order] = t
		r.mu.Unlock()
		if handed { // the place of the last call is another's: this one is behind it
			r.pause(ctx, firstPause, r.room)
		}
		o := r.perform(ctx, t)
		select {
		case r.room <- struct{}{}:
			handed = true
		default:
			handed = false
		}
		if r.Finish == nil || o.Err != nil || o.Skipped {
			r.deliver(ctx, o)
		} else {
			r.finish(ctx, o)
		}
	}
}

// finish passes an outcome to Finish and delivers it, in a goroutine that the next call
// need not wait for.
func (r *Runner) finish(ctx context.Context, o *Outcome) {
	r.mu.Lock()
	for r.finishing >= maxFinish {
		r.cond.Wait()
	}
	r.finishing++
	r.mu.Unlock()
	go func() { // ends with Finish
		r.Finish(o)
		r.deliver(ctx, o)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.finishing--
		r.cond.Broadcast()
	}()
}

// admit waits until another call may begin: not too far ahead of the first that is
// still running, and with a worker that could take it. False ends the goroutine.
func (r *Runner) admit() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		ahead := r.taken - r.done
		switch {
		case r.phase == stopped || r.active > r.limit:
			r.active--
			r.cond.Broadcast()
			return false
		case r.phase == waiting, ahead >= lookAhead, ahead > 0 && r.held.Load() > maxHeld:
			r.cond.Wait()
		default:
			r.taken++
			return true
		}
	}
}

// deliver passes an outcome to Done after those before it, and what became ready in the
// meantime. Another goroutine may do so for this one.
func (r *Runner) deliver(ctx context.Context, o *Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, o.order)
	r.size -= o.Size
	if r.Ahead && r.pace.add(o.Took) {
		r.setLimit(ctx, r.slots)
	}
	if o.Err != nil && !o.Skipped {
		r.fail()
	}
	turn := o.order
	if r.Unordered {
		r.ended++
		turn = r.ended
	}
	r.ready[turn] = o
	if r.delivering {
		return
	}
	r.delivering = true
	for o := r.first(); o != nil; o = r.first() {
		switch {
		case o.Skipped:
			r.progress.Skipped++
		case o.Err != nil:
			r.progress.Failed++
			fallthrough
		default:
			r.progress.Ended++
		}
		r.unlocked(func() error {
			err := r.Done(o)
			o.Output.reset()
			r.spare.Put(o.Output)
			return err
		})
		r.done++
		r.cond.Broadcast()
	}
	r.delivering = false
}

// fail counts a failure, of which there may be too many. mu is held.
func (r *Runner) fail() {
	r.failures++
	if r.HaltAfter == 0 || r.failures < r.HaltAfter || r.phase == stopped {
		return
	}
	plural := "s"
	if r.failures == 1 {
		plural = ""
	}
	r.notice("%s: halted after %d failure%s: no further call is made", r.Function, r.failures, plural)
	r.halt(nil)
	if r.HaltNow {
		r.cancel(ErrHalted)
	}
}

// first returns the next outcome for Done, nil if it is not there yet; then Rest was
// called. mu is held, but not in Rest.
func (r *Runner) first() *Outcome {
	yielded := r.Mode != Mixed || len(r.running) == 0
	for rested := false; ; {
		if o := r.ready[r.done+1]; o != nil {
			delete(r.ready, r.done+1)
			return o
		}
		if !yielded { // to calls that are about to end too: one write for many answers
			yielded = true
			r.unlocked(func() error { runtime.Gosched(); return nil })
			continue
		}
		if r.Rest == nil || rested || !r.unlocked(r.Rest) {
			return nil
		}
		rested = true
	}
}

// unlocked calls f without mu, which is held before and after. An error of f ends the
// run.
func (r *Runner) unlocked(f func() error) bool {
	r.mu.Unlock()
	err := f()
	r.mu.Lock()
	if err != nil {
		r.halt(err)
		r.cancel(err)
	}
	return err == nil
}

func (r *Runner) notice(format string, args ...any) {
	if r.Notice != nil {
		r.Notice(format, args...)
	}
}

// Short calls should reach the node before a slot is free: otherwise each slot is idle
// for a round trip after each call.
const (
	shortCall  = 2 * time.Millisecond // calls go ahead while they are shorter
	longCall   = 5 * time.Millisecond // and stop doing so at this length
	paceOver   = 16                   // calls that the mean is taken over, about
	mostAhead  = 64                   // calls that go ahead at most
	firstPaces = 2 * paceOver         // calls before the mean is used
)

// pace is how long calls have taken recently.
type pace struct {
	mean  time.Duration
	calls int
	short bool
}

// add reports whether short has changed.
func (p *pace) add(took time.Duration) (changed bool) {
	p.calls++
	p.mean += (took - p.mean) / time.Duration(min(p.calls, paceOver))
	was := p.short
	switch {
	case p.mean >= longCall:
		p.short = false
	case p.mean < shortCall && p.calls >= firstPaces:
		p.short = true
	}
	return was != p.short
}

// setLimit derives the limit from the function's slots. mu is held.
func (r *Runner) setLimit(ctx context.Context, slots int) {
	r.slots, r.limit = slots, slots
	if r.pace.short {
		r.limit += min(slots, mostAhead)
	}
	r.grow(ctx)
	r.cond.Broadcast()
}

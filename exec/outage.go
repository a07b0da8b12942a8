package exec

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/bus/args"

	"golang.org/x/sys/unix"
)

// longestUnseen is the longest pause while a failure can be seen: to look is cheap then.
const longestUnseen = 2 * time.Second

// maxHits is how often in a row not even one program at once can be started, before none is tried.
const maxHits = 3

// outage is a time in which a function's program cannot be started, or not as often as
// the function has slots. No call is to blame. So the function gives up slots, reports the
// reason once, and looks again after pauses.
type outage struct {
	f  *Function
	on atomic.Bool // spares the usual case the mutex

	round     atomic.Int64 // rises with each change for the worse
	inside    atomic.Int64 // attempts that have not ended
	trying    atomic.Int64 // programs that are being started
	processes atomic.Int64 // that are there
	most      atomic.Int64 // that were there at once in this round

	mu       sync.Mutex  // guards what follows; held while Spec.Limit is called, so that the last call is the last state
	slots    int         // that are left
	why      *args.Error // the last failure
	visible  bool        // check found it too: when check finds nothing, it is over
	short    bool        // it was a shortage
	reported string      // the last reason in the log
	fails    int         // failures since all slots were there
	hits     int         // of these, those in a row with one program at once
	timer    *time.Timer // to look again
	closed   bool
}

// attempt is one try to start a program.
type attempt struct {
	f     *Function
	round int64 // outage.round when it began
	ran   int64 // Function.ran then
	slot  int   // the process's FBUS_SLOT
}

// attempt begins a try. It ends with begun, with notStarted, or with drop.
func (f *Function) attempt() attempt {
	f.outage.inside.Add(1)
	f.outage.trying.Add(1)
	return attempt{f, f.outage.round.Load(), f.ran.Load(), f.numbers.take()}
}

// drop ends a try of a call that was ended before.
func (a *attempt) drop() {
	a.f.outage.inside.Add(-1)
	a.f.outage.trying.Add(-1)
	a.f.numbers.release(a.slot)
}

// environ is the part of a program's environment that is its own.
func (a *attempt) environ(c *Call, node string) []string {
	return append(callEnviron(c, node), "FBUS_SLOT="+strconv.Itoa(a.slot))
}

// begun notes that a keeper has the program. gone must be called when nothing of it is left.
func (a *attempt) begun() {
	n := a.f.outage.processes.Add(1)
	for most := a.f.outage.most.Load(); n > most && !a.f.outage.most.CompareAndSwap(most, n); most = a.f.outage.most.Load() {
	}
	a.f.outage.trying.Add(-1)
}

func (a *attempt) gone() {
	a.f.outage.inside.Add(-1)
	a.f.outage.processes.Add(-1)
	a.f.numbers.release(a.slot)
}

// notStarted returns the error of a call for which no process could be made.
func (a *attempt) notStarted(err error) *args.Error {
	o := &a.f.outage
	a.drop()
	o.inside.Add(1) // until the call ends
	defer o.inside.Add(-1)
	return o.failed(args.AsError(err, args.CodeCannotRun), a)
}

// notExecuted returns the error of a call whose program could not be executed. own: the call
// has a command line of its own.
func (a *attempt) notExecuted(errno syscall.Errno, own bool) *args.Error {
	if errno == unix.E2BIG && own {
		return args.BadInput("the arguments are too long for a command line")
	}
	o := &a.f.outage
	o.inside.Add(1)
	defer o.inside.Add(-1)
	return o.failed(a.f.why(errno), a)
}

// failed takes a failure to start a program, and returns the error of its call. When failed
// returns, the slots are given up.
func (o *outage) failed(e *args.Error, a *attempt) *args.Error {
	e = args.CannotStart(e)
	short, visible := shortage(e), false
	if short {
		o.f.pool.Trim()
		o.settle()
	} else {
		visible = o.f.check() != nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.on.Load() && (o.slots == 0 || a.round != o.round.Load()) {
		return e // it crossed another failure
	}
	unit, left := max(o.f.spec.Pipeline, 1), 0
	now := int(o.processes.Load())
	if most := max(now, int(o.most.Load())); short && (most > 0 || o.f.ran.Load() > a.ran) { // fewer at once will do
		left = max(most, 1) * unit
	}
	switch on := o.on.Load(); {
	case !on:
	case int(o.inside.Load()) > o.slots/unit: // the node did not know yet
		return e
	case o.slots > unit:
		left = min(left, o.slots-unit)
	case short && now > 0:
		return e
	case short && o.hits < maxHits:
		o.hits++
		return e
	default:
		left = 0
	}
	o.slots, o.visible, o.short, o.hits = left, visible, short, 0
	o.round.Add(1)
	o.most.Store(0)
	o.report(e)
	o.again()
	return e
}

// settle waits until it is known how many of the programs that are being started now have
// found room.
func (o *outage) settle() {
	for range 50 {
		if o.trying.Load() == 0 {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// report publishes the slots that are left, and logs a reason that is new. o.mu is held.
func (o *outage) report(e *args.Error) {
	name := o.f.spec.Name
	o.on.Store(true)
	o.why = e
	if o.short && o.slots >= o.f.spec.Slots { // all are tried again
		if o.f.spec.Limit != nil {
			o.f.spec.Limit(o.slots, nil)
		}
		return
	}
	note := "cannot start: " + e.Message
	if o.short && o.slots > 0 {
		note = args.Sprintf("cannot start more than %d programs at once: %s", o.slots, e.Message)
	}
	if e.Message != o.reported {
		o.reported = e.Message
		o.f.logf("%s: %s", name, note)
		if e.Hint != "" && o.slots == 0 {
			o.f.logf("hint: %s", e.Hint)
		}
	}
	if o.f.spec.Limit != nil {
		noted := *e
		noted.Message = note
		o.f.spec.Limit(o.slots, &noted)
	}
}

// again has look called after a pause. o.mu is held.
func (o *outage) again() {
	pause := min(firstPause<<min(o.fails, 10), longestPause)
	if o.visible {
		pause = min(pause, longestUnseen)
	}
	o.fails++
	if o.timer != nil {
		o.timer.Stop()
	}
	o.timer = time.AfterFunc(pause*3/4+rand.N(pause/2), o.look)
}

// look finds out whether a program could be started now. Then a failure that can be seen is over;
// after any other, one more program is tried. Only a start that succeeds ends such a failure.
func (o *outage) look() {
	seen := o.f.check()
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed || !o.on.Load():
	case seen != nil && o.slots == 0:
		o.visible = true
		o.report(args.CannotStart(seen))
		o.again()
	case seen != nil:
		o.again()
	case o.visible:
		o.end()
	default:
		unit := max(o.f.spec.Pipeline, 1)
		if o.short {
			unit += o.slots
		}
		o.slots = min(unit, o.f.spec.Slots)
		o.report(o.why)
		if o.short && o.slots < o.f.spec.Slots {
			o.fails-- // again counts it
			o.again()
		}
		go o.f.resume() // it takes locks under which failed is called
	}
}

// succeeded takes the news that a program was started.
func (o *outage) succeeded() {
	if !o.on.Load() {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hits = 0
	if o.on.Load() && !o.closed && o.slots > 0 && (!o.short || o.slots >= o.f.spec.Slots) {
		o.end()
	}
}

// end gives all slots back. o.mu is held.
func (o *outage) end() {
	o.on.Store(false)
	if o.reported != "" {
		o.f.logf("%s: its program can be started again", o.f.spec.Name)
	}
	o.slots, o.why, o.reported, o.fails, o.hits = o.f.spec.Slots, nil, "", 0, 0
	if o.f.spec.Limit != nil {
		o.f.spec.Limit(o.slots, nil)
	}
	go o.f.resume() // it takes locks under which failed is called
}

func (o *outage) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.timer != nil {
		o.timer.Stop()
	}
}

// check returns what prevents a program from starting, as far as can be seen without
// starting it.
func (f *Function) check() *args.Error {
	if e := f.inspect(); e != nil {
		return e
	}
	fds, err := openPipes(stdinPipe, f.spec.ReplyFD > 0)
	if err == nil {
		closeFDs(fds.child[:])
		fds.close()
		err = f.pool.Probe()
	}
	if err != nil {
		return args.AsError(err, args.CodeCannotRun)
	}
	return nil
}

// inspect returns what is wrong with the program's file or its directory.
func (f *Function) inspect() *args.Error {
	p, path := &f.program, searchPath(f.spec.Env)
	var err error
	cwd := p.dir
	if cwd != "" {
		_, err = checkDir("", cwd)
	} else {
		cwd, _ = os.Getwd() // if that is gone, only relative paths cannot be found
	}
	if err == nil {
		err = checkExecutable(p.path)
	}
	if err == nil {
		err = checkInterpreter(p.path, cwd, path)
	}
	if err != nil {
		return args.AsError(err, args.CodeCannotRun)
	}
	return nil
}

// resume starts the processes that are kept without waiting for the end of a pause.
func (f *Function) resume() {
	switch {
	case f.warm != nil:
		f.warm.resume()
	case f.stay != nil:
		f.stay.resume()
	}
}

// shortage reports whether the system, or a limit, has no room for one more program.
func shortage(e error) bool {
	var errno syscall.Errno
	if !errors.As(e, &errno) {
		return false
	}
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.ENOMEM:
		return true
	case unix.EBADF: // dup3(2) of the last descriptors below the limit, on the way to a program
		return true
	}
	return false
}

// The pauses between the starts of a program whose processes fail.
var firstPause = 100 * time.Millisecond

const longestPause = 10 * time.Second

// backoff spaces the starts of a program whose processes end before they were of
// use, and reports the reason once.
type backoff struct {
	f       *Function
	failing atomic.Bool // spares the usual case the mutex

	mu    sync.Mutex // guards what follows; held while Spec.Note is called, so that the last call is the last state
	fails int
	why   string
}

// failed counts a failure and returns how long the next start has to wait.
func (b *backoff) failed(why string) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failing.Store(true)
	if why != b.why && !b.f.outage.on.Load() { // that reports itself
		b.why = why
		b.f.logf("%s: no process can be held ready: %s", b.f.spec.Name, why)
		b.note(why)
	}
	pause := min(firstPause<<min(b.fails, 10), longestPause)
	b.fails++
	return pause*3/4 + rand.N(pause/2)
}

// succeeded resets the pauses: a process was of use, or has lived for long.
func (b *backoff) succeeded() {
	b.f.outage.succeeded()
	if !b.failing.Load() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failing.Swap(false) {
		b.fails, b.why = 0, ""
		b.note("")
	}
}

// reason returns why no process can be held ready, "" if one can.
func (b *backoff) reason() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

func (b *backoff) note(why string) {
	if b.f.spec.Note != nil {
		b.f.spec.Note(why)
	}
}

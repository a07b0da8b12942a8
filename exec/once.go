package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"

	"fbus/bus/args"
	"fbus/exec/keeper"

	"golang.org/x/sys/unix"
)

// input is one call's input for its program: words for the command line, bytes for
// stdin.
type input struct {
	argv []string // nil: the offer's own
	data []byte
	rest io.Reader // nil: data is all
	null bool      // no stdin at all: /dev/null
}

// ending is the reason why fbus ended a call.
type ending int

const (
	none ending = iota
	cancelled
	deadline
	timeout
	outputLimit
	inputLost
)

// run is one call that has a process to itself, from start to end.
type run struct {
	f    *Function
	call *Call
	in   input
	node string

	mu      sync.Mutex // guards what follows
	process *keeper.Process
	why     ending // the first reason
	lost    error  // of the input, with inputLost

	feed     feed
	out, err *stream
	extra    *stream         // of lines about progress, or nil
	passing  *sync.WaitGroup // of out and err
	ahead    *waiting        // if its process was started ahead

	try    attempt
	exit   keeper.End
	unread bool // a waiting process ended and had read nothing of the call
	left   bool // the slot was released
}

// do runs the program and returns when nothing of it is left.
func (r *run) do(ctx context.Context) Result {
	if r.f.enterSlot(ctx) != nil {
		r.end(endingOf(ctx), false)
		return r.result()
	}
	ctx, stop := r.f.limited(ctx)
	defer stop()
	if r.f.warm == nil || !r.serveWarm(ctx) {
		if err := r.serve(ctx); err != nil {
			r.leave()
			return failure(r.try.notStarted(err))
		}
	}
	r.leave()
	return r.result()
}

// leave releases the slot, once.
func (r *run) leave() {
	if r.left {
		return
	}
	r.left = true
	if r.f.warm != nil {
		r.f.warm.leave()
	}
	leave(r.f.spec.Room)
	leave(r.f.slots)
}

// serve starts a process for the call. With an error none was started.
func (r *run) serve(ctx context.Context) error {
	kind := stdinPipe
	if r.in.null {
		kind = stdinNull
	}
	r.try = r.f.attempt()
	p, err := openPipes(kind, r.f.spec.ProgressFD > 0)
	if err != nil {
		return err
	}
	r.out, r.err, r.extra, r.passing = p.out, p.err, p.extra, new(sync.WaitGroup)
	r.out.to, r.err.to = r.limited(r.call.Stdout), r.limited(r.call.Stderr)
	if !r.in.null {
		r.feed, err = fill(p.stdin, &r.in)
		p.stdin = -1
	}
	call := r.call
	if r.f.warm != nil {
		call = &Call{} // a program that is also started ahead has the same environment in every call
	}
	r.mu.Lock()
	if err == nil && r.why == none {
		r.process, err = p.start(r.f.pool, keeper.Order{Argv: r.in.argv, Env: r.try.environ(call, r.node), Tell: r.feed.file != nil && r.in.rest != nil, Extra: r.f.spec.ProgressFD})
	} else {
		closeFDs(p.child[:])
	}
	r.mu.Unlock()
	if r.process == nil { // also if it was ended before it began
		if r.feed.file != nil {
			r.feed.file.Close()
		}
		p.close()
		if err == nil {
			r.try.drop()
		}
		return err
	}
	r.try.begun()
	r.passing.Go(r.err.pass) // ends at the pipe's end, at the latest after finish
	r.attend(ctx)
	return nil
}

// limited returns a writer that ends the run when it gets more than MaxOutput.
func (r *run) limited(to io.Writer) io.Writer {
	if r.f.spec.MaxOutput <= 0 {
		return orDiscard(to)
	}
	return &limitedWriter{to: orDiscard(to), left: r.f.spec.MaxOutput, over: func() { r.end(outputLimit, true) }}
}

// limitedWriter passes on as many bytes as are left.
type limitedWriter struct {
	to   io.Writer
	left int64
	over func() // called when there are more
}

func (w *limitedWriter) Write(p []byte) (n int, err error) {
	over := int64(len(p)) > w.left
	if over {
		p = p[:w.left]
	}
	if len(p) > 0 {
		n, err = w.to.Write(p)
	}
	w.left -= int64(n)
	if over && err == nil {
		w.over()
		err = io.ErrShortWrite
	}
	return n, err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// attend passes the program's input and output until its tree is gone, then
// the rest of its output.
func (r *run) attend(ctx context.Context) {
	unhook := context.AfterFunc(ctx, func() { r.end(endingOf(ctx), false) })
	defer unhook()

	r.passing.Go(r.out.pass) // as r.err.pass
	var progress *progressLines
	if r.extra != nil {
		progress = &progressLines{report: r.call.Progress}
		r.extra.to = progress
		r.passing.Go(r.extra.pass)
	}
	begun := make(chan bool, 2) // whether the program was executed
	switch {
	case r.feed.file == nil:
	case r.ahead != nil || r.in.rest == nil:
		go r.feed.pass(&r.in, r.inputLost) // ends with stop, or when Rest is closed
	default: // nothing is read for a program that cannot be started: another worker may need it
		r.process.Executed = func() { begun <- true }
		go func() { // ends as above
			if <-begun {
				r.feed.pass(&r.in, r.inputLost)
			} else {
				close(r.feed.done)
			}
		}()
	}
	if r.ahead != nil {
		<-r.ahead.exited
		r.feed.stop()
		<-r.ahead.gone
		r.exit = r.ahead.end
	} else {
		r.exit = r.process.Wait(func(keeper.End) { r.feed.stop() })
		r.try.gone()
		begun <- false // if nothing has come before
		r.feed.stop()
	}
	r.out.finish()
	r.err.finish()
	if progress != nil {
		r.extra.finish()
	}
	if r.unread = r.feed.unread(); !r.unread {
		r.leave()
	}
	r.passing.Wait()
	if progress != nil {
		progress.flush()
	}
}

// end ends the run for a reason, unless there was one before. A kill always
// takes effect: it hastens an end that has begun.
func (r *run) end(why ending, kill bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why != none && !kill {
		return
	}
	if r.why == none || why == outputLimit {
		r.why = why
	}
	switch {
	case r.process == nil:
	case kill:
		r.process.Kill()
	default:
		r.process.Cancel()
	}
}

func (r *run) inputLost(err error) {
	r.mu.Lock()
	r.lost = err
	r.mu.Unlock()
	r.end(inputLost, false)
}

// errTimeout is the cause of a context whose time was Spec.Timeout.
var errTimeout = errors.New("timeout")

func endingOf(ctx context.Context) ending {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errTimeout):
		return timeout
	case errors.Is(cause, context.DeadlineExceeded):
		return deadline
	}
	return cancelled
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			syscall.Close(fd)
		}
	}
}

// result returns how the run ended. A program that exited before it was asked to
// keeps its own status; but output that was cut never goes with one.
func (r *run) result() Result {
	r.mu.Lock()
	why := r.why
	r.mu.Unlock()
	if r.exit.Exited {
		r.f.started()
	}
	var res Result
	switch {
	case r.exit.Errno != 0:
		res = failure(r.try.notExecuted(r.exit.Errno, r.in.argv != nil))
	case why == outputLimit:
		res = r.ended(why)
	case r.exit.Exited && !r.exit.Asked:
		res = r.exited()
	case why != none:
		res = r.ended(why)
	default:
		res = fbusEnd(args.CodeWorkerLost, args.KeeperKilled)
	}
	if r.exit.Survivors != "" {
		res.Message = strings.TrimPrefix(res.Message+"; could not be killed: "+r.exit.Survivors, "; ")
		r.f.logf("%s: could not be killed: %s", r.f.spec.Name, r.exit.Survivors)
	}
	return res
}

func (r *run) exited() Result {
	ws := r.exit.Status
	if !ws.Signaled() {
		return Result{End: args.End{Source: args.FromProgram, Status: ws.ExitStatus(), Code: "exit"}}
	}
	res := Result{End: args.End{Source: args.FromSignal, Status: 128 + int(ws.Signal()), Code: signalName(ws.Signal())}}
	if r.exit.OutOfMemory {
		res.Message = r.f.outOfMemory()
	}
	return res
}

func (f *Function) outOfMemory() string { return "out of memory: the limit is " + size(f.spec.Memory) }

func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return fmt.Sprintf("SIG%d", int(sig))
}

func (r *run) ended(why ending) Result {
	res := r.f.endedAs(why)
	if why == inputLost {
		res.Message = fmt.Sprintf("cancelled: input ended early: %v", r.lost)
	}
	return res
}

// endedAs is the end of a call that fbus ended.
func (f *Function) endedAs(why ending) Result {
	res := fbusEnd(args.CodeCancelled, "cancelled")
	switch why {
	case deadline:
		res = fbusEnd(args.CodeDeadline, "deadline exceeded")
	case timeout:
		res = fbusEnd(args.CodeDeadline, fmt.Sprintf("ran longer than %v", f.spec.Timeout))
	case outputLimit:
		res = fbusEnd(args.CodeOutputLimit, "output exceeds "+size(f.spec.MaxOutput))
	}
	return res
}

// why explains why the program could not be executed. It could when it was offered,
// so the checks are run again.
func (f *Function) why(errno syscall.Errno) *args.Error {
	path := f.program.path
	var e *args.Error
	switch errno {
	case unix.E2BIG:
		e = cannotRun("start %s: its environment is too long", path)
	case unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE:
		e = cannotRun("start %s: %s", path, errno)
	default:
		if e = f.inspect(); e != nil {
			return e
		}
		if e = cannotRun("%s: %s", path, errno); errno == unix.ENOENT {
			e.Code = args.CodeNotFound
		}
	}
	e.Err = errno
	return e
}

// whyEnded describes the end of a process that held no call, with the last line
// of its output.
func (f *Function) whyEnded(end *keeper.End, last string) string {
	if end.Errno != 0 {
		return f.why(end.Errno).Message
	}
	why := f.describe(end, "")
	if last != "" {
		why += ": " + last
	}
	return why
}

// describe describes the end of a process. when follows how the program ended.
func (f *Function) describe(end *keeper.End, when string) string {
	var why string
	switch {
	case !end.Exited:
		why = args.KeeperKilled
	case end.Status.Signaled():
		why = "the program was ended by " + signalName(end.Status.Signal()) + when
	default:
		why = fmt.Sprintf("the program exited with status %d", end.Status.ExitStatus()) + when
	}
	if end.OutOfMemory {
		why += ", " + f.outOfMemory()
	}
	return why
}

// size writes a number of bytes as users write it.
func size(n int64) string {
	units := []struct {
		bytes int64
		name  string
	}{{1 << 40, "T"}, {1 << 30, "G"}, {1 << 20, "M"}, {1 << 10, "K"}}
	for _, u := range units {
		if n >= u.bytes && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

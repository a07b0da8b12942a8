package exec

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"

	"fbus/exec/keeper"
)

// input is what one call brings for its program: words for the command line,
// bytes for stdin.
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
	child    [3]int // the program's descriptors, -1 if closed
	passing  sync.WaitGroup

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
	if r.f.warm == nil || !r.serveWarm(ctx) {
		if err := r.serve(ctx); err != nil {
			r.leave()
			return failure(err)
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
	r.f.leaveSlot()
}

// serve starts a process for the call. The error tells why none was started.
func (r *run) serve(ctx context.Context) error {
	err := r.open()
	if err == nil {
		err = r.start()
	}
	closeFDs(r.child[:])
	if err != nil || r.process == nil { // it was ended before it began
		r.closeStreams()
		return err
	}
	r.attend(ctx)
	return nil
}

// open makes the pipes.
func (r *run) open() (err error) {
	r.child = [3]int{-1, -1, -1}
	if r.feed, r.child[0], err = newFeed(&r.in); err != nil {
		return err
	}
	if r.out, r.child[1], err = newStream(orDiscard(r.call.Stdout)); err != nil {
		return err
	}
	if r.err, r.child[2], err = newStream(orDiscard(r.call.Stderr)); err != nil {
		return err
	}
	r.limit()
	return nil
}

func (r *run) limit() {
	if limit := r.f.spec.MaxOutput; limit > 0 {
		r.out.limit = limit
		r.out.over = func() { r.end(outputLimit, true) }
	}
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// start hands the program to a keeper, unless the run was ended before.
func (r *run) start() error {
	call := r.call
	if r.f.warm != nil {
		call = &Call{} // a program that is also started ahead has the same environment in every call
	}
	o := keeper.Order{Argv: r.in.argv, Env: callEnviron(call, r.node)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why != none {
		return nil
	}
	var err error
	r.process, err = r.f.pool.Start(o, r.child[:]...)
	return err
}

// attend passes the program's input and output until its tree is gone, then
// the rest of its output.
func (r *run) attend(ctx context.Context) {
	unhook := context.AfterFunc(ctx, func() { r.end(endingOf(ctx), false) })
	defer unhook()

	for _, s := range []*stream{r.out, r.err} {
		r.passing.Go(s.pass) // ends at the pipe's end, at the latest after finish
	}
	if r.feed.file != nil {
		go r.feed.pass(&r.in, r.inputLost) // ends with stop, or when Rest is closed
	}
	r.exit, _ = r.process.Wait(func(keeper.End) { r.feed.stop() })
	r.feed.stop()
	r.out.finish()
	r.err.finish()
	if r.unread = r.feed.unread(); !r.unread {
		r.leave()
	}
	r.passing.Wait()
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

// closeStreams closes what open made for a run that never started.
func (r *run) closeStreams() {
	if r.feed.file != nil {
		r.feed.file.Close()
	}
	for _, s := range []*stream{r.out, r.err} {
		if s != nil {
			s.file.Close()
		}
	}
}

package exec

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
)

// input is what one call brings for its program: words for the command line,
// bytes for stdin.
type input struct {
	argv []string // nil: the offer's own
	data []byte
	rest io.Reader // nil: data is all
	null bool      // no stdin at all: /dev/null
}

// ending is why fbus ended a run.
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

	mu     sync.Mutex // guards what follows
	k      *keeper    // set while it can be told to end this run
	number uint64
	why    ending // the first reason
	lost   error  // inputLost: what happened to the input

	feed     feed
	out, err *stream
	child    [4]int // the program's descriptors and its cgroup's, -1 if none
	leaf     *leaf
	passing  sync.WaitGroup

	exit     report // msgExited or msgFailed
	dead     bool   // the keeper died
	survivor string
	unread   bool // a waiting process ended and had read nothing of the call
	left     bool // the slot was given back
}

// do runs the program and returns when nothing of it is left.
func (r *run) do(ctx context.Context) Result {
	if r.f.pool.enter(ctx) != nil {
		r.end(endingOf(ctx), msgCancel)
		return r.result()
	}
	if r.f.warm == nil || !r.serveWarm(ctx) {
		if err := r.serve(ctx); err != nil {
			r.leave()
			return internal(err).result()
		}
	}
	r.leave()
	return r.result()
}

// leave gives the slot back, once.
func (r *run) leave() {
	if r.left {
		return
	}
	r.left = true
	if r.f.warm != nil {
		r.f.warm.leave()
	}
	r.f.pool.leave()
}

// serve starts a process for the call. The error says why none was started.
func (r *run) serve(ctx context.Context) error {
	if err := r.open(); err != nil {
		return err
	}
	started, err := r.start()
	r.closeChild()
	if !started {
		r.abandon()
		return err
	}
	r.attend(ctx)
	return nil
}

// attend passes the program's input and output until its tree is gone, then
// the rest of its output.
func (r *run) attend(ctx context.Context) {
	unhook := context.AfterFunc(ctx, func() { r.end(endingOf(ctx), msgCancel) })
	defer unhook()

	for _, s := range []*stream{r.out, r.err} {
		r.passing.Go(s.pass) // ends at the pipe's end, at the latest after finish
	}
	if r.feed.file != nil {
		go r.feed.pass(&r.in, r.inputLost) // ends with stop, or when Rest is closed
	}
	k := r.k
	fit := r.listen(k)
	r.release()
	r.feed.stop()
	if r.dead {
		k.bury()
	}
	r.out.finish()
	r.err.finish()
	switch {
	case fit:
		r.f.pool.put(k)
	case !r.dead:
		k.end()
	}
	if r.unread = r.feed.unread(); !r.unread {
		r.leave()
	}
	r.passing.Wait()
}

// listen follows the keeper's reports until nothing of the program is left.
// fit says that the keeper can be used again.
func (r *run) listen(k *keeper) (fit bool) {
	for {
		rep, err := k.next()
		if err != nil {
			r.dead = true
			return false
		}
		if rep.number != r.number {
			continue
		}
		switch rep.kind {
		case msgFailed:
			r.exit = rep
			return true
		case msgExited:
			r.exit = rep
			if rep.gone {
				return true
			}
			r.feed.stop()
		case msgGone:
			r.survivor = rep.survivors
			return rep.survivors == ""
		}
	}
}

// open makes the pipes.
func (r *run) open() (err error) {
	r.child = [4]int{-1, -1, -1, -1}
	defer func() {
		if err != nil {
			r.closeChild()
			r.abandon()
		}
	}()
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
	r.leaf, r.child[3], err = r.f.memory.leafFor()
	return err
}

func (r *run) limit() {
	if limit := r.f.spec.MaxOutput; limit > 0 {
		r.out.limit = limit
		r.out.over = func() { r.end(outputLimit, msgKill) }
	}
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// start hands the program to a keeper. No error and not started: the run was
// ended before it began.
func (r *run) start() (started bool, err error) {
	o := order{argv: r.in.argv, env: r.environ(), cgroup: r.child[3] >= 0}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why != none {
		return false, nil
	}
	k, err := r.f.pool.launch(&o, r.child[:o.descriptors()])
	if err != nil {
		return false, err
	}
	r.k, r.number = k, o.number
	return true, nil
}

// environ is this call's part of the environment. Of a program that is also
// started ahead it is the same in every call.
func (r *run) environ() []string {
	if r.f.warm != nil {
		return callEnviron(&Call{}, r.node)
	}
	return callEnviron(r.call, r.node)
}

// end ends the run for a reason, unless there was one before. Kill always
// goes through: it hurries an end that has begun.
func (r *run) end(why ending, how msgType) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why != none && how != msgKill {
		return
	}
	if r.why == none || why == outputLimit {
		r.why = why
	}
	if r.k != nil {
		r.k.tell(how, r.number)
	}
}

// release makes sure that nobody tells the keeper about this run any more: it
// is about to serve another one.
func (r *run) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.k = nil
}

func (r *run) inputLost(err error) {
	r.mu.Lock()
	r.lost = err
	r.mu.Unlock()
	r.end(inputLost, msgCancel)
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

// closeChild closes the program's ends, which are the keeper's now.
func (r *run) closeChild() {
	closeFDs(r.child[:])
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			syscall.Close(fd)
		}
	}
}

// abandon closes what open made for a run that never started.
func (r *run) abandon() {
	if r.feed.file != nil {
		r.feed.file.Close()
	}
	for _, s := range []*stream{r.out, r.err} {
		if s != nil {
			s.file.Close()
		}
	}
	r.leaf.remove()
	r.leaf = nil
}

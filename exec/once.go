package exec

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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

// run is one call in once mode: one process, from start to end.
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
}

// do runs the program and returns when nothing of it is left.
func (r *run) do(ctx context.Context) Result {
	k, err := r.f.pool.get(ctx)
	if ctx.Err() != nil {
		if err == nil {
			r.f.pool.put(k)
		}
		r.end(endingOf(ctx), msgCancel)
		return r.result()
	}
	if err != nil {
		return internal(err).result()
	}
	if err := r.open(); err != nil {
		r.f.pool.put(k)
		return internal(err).result()
	}
	k, err = r.start(k)
	r.closeChild()
	if err != nil || k == nil {
		r.abandon()
		if err != nil {
			return internal(err).result()
		}
		return r.result()
	}
	r.attend(ctx, k)
	return r.result()
}

// attend passes the program's input and output until its tree is gone, then
// the rest of its output.
func (r *run) attend(ctx context.Context, k *keeper) {
	if r.f.spec.Timeout > 0 {
		timer := time.AfterFunc(r.f.spec.Timeout, func() { r.end(timeout, msgCancel) })
		defer timer.Stop()
	}
	unhook := context.AfterFunc(ctx, func() { r.end(endingOf(ctx), msgCancel) })
	defer unhook()

	for _, s := range []*stream{r.out, r.err} {
		r.passing.Go(s.pass) // ends at the pipe's end, at the latest after finish
	}
	if r.feed.file != nil {
		go r.feed.pass(&r.in, r.inputLost) // ends with stop, or when Rest is closed
	}
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
	case r.dead:
		r.f.pool.leave()
	default:
		k.end()
		r.f.pool.leave()
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
	if limit := r.f.spec.MaxOutput; limit > 0 {
		r.out.limit = limit
		r.out.over = func() { r.end(outputLimit, msgKill) }
	}
	if r.leaf, err = r.f.memory.leaf(); err == nil && r.leaf != nil {
		r.child[3], err = unix.FcntlInt(uintptr(r.leaf.fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	return err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// start hands the program to a keeper. An idle keeper may have been killed
// meanwhile; then the program has not started and another one gets it. No
// keeper and no error: the run was ended before it began.
func (r *run) start(k *keeper) (*keeper, error) {
	fds := r.child[:3]
	if r.child[3] >= 0 {
		fds = r.child[:]
	}
	env := callEnviron(r.call, r.node)
	r.mu.Lock()
	defer r.mu.Unlock()
	for try := 0; ; try++ {
		if r.why != none {
			r.f.pool.put(k)
			return nil, nil
		}
		number, err := k.run(r.in.argv, env, fds)
		if err == nil {
			r.k, r.number = k, number
			return k, nil
		}
		k.bury()
		if try < 3 {
			k, err = r.f.pool.take()
		}
		if err != nil {
			r.f.pool.leave()
			return nil, err
		}
	}
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

func endingOf(ctx context.Context) ending {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return deadline
	}
	return cancelled
}

// closeChild closes the program's ends, which are the keeper's now.
func (r *run) closeChild() {
	for _, fd := range r.child {
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

package exec

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"fbus/exec/keeper"

	"golang.org/x/sys/unix"
)

// steadyAfter is how long a process waits before it counts as held ready
// where others ended too early.
var steadyAfter = 5 * time.Second

// warm holds the processes that are started ahead. Those and the ones that
// run are never more than the slots.
type warm struct {
	f       *Function
	want    int
	slots   int // 0: no limit
	backoff backoff
	watched sync.WaitGroup // one for every waiting process and every start

	mu       sync.Mutex // guards what follows
	idle     []*waiting // the longest waiting first: it is the likeliest to be ready
	starting int
	running  int
	node     string
	pause    *time.Timer // set while starts have to wait
	closed   bool
	settled  *sync.Cond // starting went down
}

func newWarm(f *Function) *warm {
	w := &warm{f: f, want: f.spec.Warm, slots: f.spec.Slots, node: f.nodeFor(f.node)}
	w.backoff.f = f
	w.settled = sync.NewCond(&w.mu)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refill()
	return w
}

// take returns a process that waits, or nil: the call then starts its own. It
// must have a slot, and leaves. Once it has handed itself over it calls taken. If the
// process has ended at that very moment it has read nothing of the call.
func (w *warm) take() *waiting {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.idle) == 0 && w.starting > 0 && w.slots > 0 && w.starting+w.running >= w.slots {
		w.settled.Wait() // for one that is about to be ready
	}
	w.running++
	for len(w.idle) > 0 {
		p := w.idle[0]
		w.idle = w.idle[1:]
		if p.process.Running() {
			p.claimed = true
			return p
		}
	}
	return nil
}

// spareWait is how long a refill waits while other processes are ready: a short
// call is over by then, its caller too, and has not shared the machine with a
// start.
const spareWait = 3 * time.Millisecond

// taken makes up for a process that was taken.
func (w *warm) taken() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refillSoon()
}

// leave handles the end of a running process.
func (w *warm) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running--
	w.refillSoon()
}

// refillSoon starts the missing processes, at once if none waits. w.mu is held.
func (w *warm) refillSoon() {
	if len(w.idle) == 0 {
		w.refill()
		return
	}
	time.AfterFunc(spareWait, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.refill()
	})
}

// refill starts the missing processes. w.mu is held.
func (w *warm) refill() {
	for !w.closed && w.pause == nil && len(w.idle)+w.starting < w.want &&
		(w.slots == 0 || len(w.idle)+w.starting+w.running < w.slots) {
		w.starting++
		w.watched.Add(1)
		go w.start(w.node) // ends with the process
	}
}

// start starts a process and follows it to its end.
func (w *warm) start(node string) {
	defer w.watched.Done()
	try := w.f.attempt()
	p, err := startWaiting(w, node, try)
	w.mu.Lock()
	w.starting--
	w.settled.Broadcast()
	if err != nil {
		w.mu.Unlock()
		w.failed(try.notStarted(err).Message)
		return
	}
	stale := w.closed || node != w.node
	if !stale {
		w.idle = append(w.idle, p)
	}
	w.mu.Unlock()
	if stale {
		p.discard(false)
	}
	p.follow()
}

// resume ends the pause between starts.
func (w *warm) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pause != nil && w.pause.Stop() {
		w.pause = nil
		w.refill()
	}
}

// failed puts the next start off.
func (w *warm) failed(why string) {
	pause := w.backoff.failed(why)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.pause != nil {
		return
	}
	w.pause = time.AfterFunc(pause, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.pause = nil
		w.refill()
	})
}

// setNode replaces processes that know another node.
func (w *warm) setNode(node string) {
	w.mu.Lock()
	if node == w.node {
		w.mu.Unlock()
		return
	}
	w.node = node
	w.mu.Unlock()
	w.discard(false)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refill()
}

// discard ends all that wait.
func (w *warm) discard(kill bool) {
	w.mu.Lock()
	old := w.idle
	w.idle = nil
	w.mu.Unlock()
	for _, p := range old {
		p.discard(kill)
	}
}

// close ends all that wait and returns when they are gone.
func (w *warm) close(kill bool) {
	w.mu.Lock()
	w.closed = true
	if w.pause != nil {
		w.pause.Stop()
	}
	w.mu.Unlock()
	w.discard(kill)
	w.watched.Wait()
}

// serveWarm hands the call to a process that waits. False: none does, or it ended
// before it read anything of the call, which may then start a process of its own.
func (r *run) serveWarm(ctx context.Context) bool {
	w := r.f.warm
	p := w.take()
	if p == nil {
		return false
	}
	whole := r.in
	r.adopt(p)
	w.taken()
	r.attend(ctx)
	if r.unread && !r.out.any && r.renew(whole) {
		return false
	}
	if r.exit.Exited && (r.exit.Status == 0 || r.feed.sent > 0 && !r.unread) {
		w.backoff.succeeded()
	}
	return true
}

// adopt hands the call over.
func (r *run) adopt(p *waiting) {
	r.ahead, r.out, r.err, r.extra, r.passing, r.try = p, p.out, p.err, p.extra, &p.passing, p.try
	r.out.to = r.limited(r.call.Stdout)
	p.stderr(r.limited(r.call.Stderr))
	var err error
	if r.in.rest == nil && len(r.in.data) > 0 && len(r.in.data) <= bufSize {
		sent := len(r.in.data)
		r.feed, err = fill(p.stdin, &r.in)
		r.feed.hold, r.feed.sent = p.hold, sent
	} else {
		// How much it has read of a long input cannot be found out afterwards. Without
		// our own descriptor a write fails if the process is dead.
		p.hold.close()
		if keeper.WithoutFork(func() bool { return nobodyReads(p.stdin) }) {
			closeFDs([]int{p.stdin})
			r.feed = feed{hold: noUnreadEnd, refused: true}
		} else {
			r.feed, err = fill(p.stdin, &r.in)
			r.feed.hold = noUnreadEnd
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.process = p.process
	if err != nil && r.why == none {
		r.why, r.lost = inputLost, err
	}
	if r.why != none {
		r.process.Kill() // ended before it began
	}
}

// renew resets the run to the state before it got a process. False: it was ended.
func (r *run) renew(whole input) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why != none {
		return false
	}
	r.in, r.feed, r.process, r.ahead = whole, feed{}, nil, nil
	r.exit, r.unread = keeper.End{}, false
	return true
}

// waiting is a process that was started ahead. Until a call claims it, its stderr goes
// to the log; its stdout stays in the pipe and is the first output of its call. Its
// stdin is never closed unclaimed: an end of input would be a call with empty input.
type waiting struct {
	*pipes
	w       *warm
	process *keeper.Process
	try     attempt
	passing sync.WaitGroup // of its outputs

	claimed   bool // guarded by w.mu: it serves a call
	discarded bool // guarded by w.mu: we end it

	exited, gone chan struct{} // closed when the program has exited, and when nothing of it is left
	end          keeper.End    // valid after gone

	mu  sync.Mutex // guards what follows
	log lineLog
	to  io.Writer // where its stderr goes
}

func startWaiting(w *warm, node string, try attempt) (*waiting, error) {
	p := &waiting{w: w, try: try, log: lineLog{f: w.f}, exited: make(chan struct{}), gone: make(chan struct{})}
	p.to = &p.log
	var err error
	if p.pipes, err = openPipes(stdinHeld, w.f.spec.ProgressFD > 0); err != nil {
		return nil, err
	}
	if p.process, err = p.start(w.f.pool, keeper.Order{Env: try.environ(&Call{}, node), Extra: w.f.spec.ProgressFD}); err != nil {
		p.close()
		return nil, err
	}
	p.err.to = p
	p.passing.Go(p.err.pass) // ends at the pipe's end, at the latest after finish
	return p, nil
}

// Write implements io.Writer for the process's stderr.
func (p *waiting) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.to.Write(b)
}

// stderr has stderr go to a call, beginning with the line that was begun.
func (p *waiting) stderr(to io.Writer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.log.part) > 0 {
		to.Write(p.log.part)
	}
	p.to = to
}

// follow returns when nothing of the process is left.
func (p *waiting) follow() {
	w := p.w
	p.try.begun()
	if w.backoff.failing.Load() {
		defer time.AfterFunc(steadyAfter, w.backoff.succeeded).Stop()
	}
	exited := sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.idle = slices.DeleteFunc(w.idle, func(q *waiting) bool { return q == p })
		close(p.exited)
	})
	p.end = p.process.Wait(func(keeper.End) { exited() }) // ending what it left behind may take a while
	exited()
	p.try.gone()
	close(p.gone)
	w.mu.Lock()
	claimed, discarded := p.claimed, p.discarded
	w.mu.Unlock()
	if claimed { // its call does the rest
		return
	}
	p.err.finish()
	p.passing.Wait()
	p.log.flush()
	p.close()
	if p.end.Survivors != "" {
		w.f.logf("%s: could not be killed: %s", w.f.spec.Name, p.end.Survivors)
	}
	switch {
	case discarded:
	case p.end.Errno != 0:
		w.failed(p.try.notExecuted(p.end.Errno, false).Message)
	default:
		w.failed(w.f.whyEnded(&p.end, p.log.last))
	}
}

// discard ends the process. It may be called again.
func (p *waiting) discard(kill bool) {
	p.w.mu.Lock()
	p.discarded = true
	p.w.mu.Unlock()
	if kill {
		p.process.Kill()
	} else {
		p.process.Cancel()
	}
}

// nobodyReads reports whether the other end of a pipe is closed everywhere.
func nobodyReads(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0
}

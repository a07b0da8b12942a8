package exec

import (
	"context"
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
// must have a slot, and leaves. Once it has handed itself over it calls taken.
func (w *warm) take() *waiting {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.idle) == 0 && w.starting > 0 && w.slots > 0 && w.starting+w.running >= w.slots {
			w.settled.Wait() // for one that is about to be ready
		}
		w.running++
		if len(w.idle) == 0 {
			return nil
		}
		p := w.idle[0]
		w.idle = w.idle[1:]
		p.summon()
		w.mu.Unlock()
		ok := p.claim()
		w.mu.Lock()
		if ok {
			return p
		}
		w.running--
	}
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
		go w.start(w.node) // ends with the process's wait, or at once
	}
}

// start starts a process and watches it while it waits.
func (w *warm) start(node string) {
	defer w.watched.Done()
	p, err := startWaiting(w, node)
	w.mu.Lock()
	w.starting--
	w.settled.Broadcast()
	if err != nil {
		w.mu.Unlock()
		w.failed(err.Error())
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
	p.wait()
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

// remove takes a process out that has ended.
func (w *warm) remove(p *waiting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.idle, p); i >= 0 {
		w.idle = slices.Delete(w.idle, i, i+1)
	}
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
	r.out, r.err = p.out, p.err
	r.out.to, r.err.to = orDiscard(r.call.Stdout), orDiscard(r.call.Stderr)
	r.err.first = p.log.part
	r.limit()
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
	r.in, r.feed, r.process = whole, feed{}, nil
	r.exit, r.unread = keeper.End{}, false
	return true
}

// waiting is a process that was started ahead. Until a call claims it, its stderr goes
// to the log; its stdout stays in the pipe and is the first output of its call. Its
// stdin is never closed unclaimed: an end of input would be a call with empty input.
type waiting struct {
	w        *warm
	process  *keeper.Process
	stdin    int
	hold     unreadEnd
	out, err *stream
	log      lineLog

	discarded bool          // guarded by w.mu: we end it
	ended     bool          // it did not live to be claimed; valid after watched
	watched   chan struct{} // closed when wait has ended
	logged    chan struct{} // closed when logErr has ended
}

func startWaiting(w *warm, node string) (p *waiting, err error) {
	p = &waiting{w: w, stdin: -1, hold: noUnreadEnd, log: lineLog{f: w.f}, watched: make(chan struct{}), logged: make(chan struct{})}
	child := [3]int{-1, -1, -1}
	defer func() {
		closeFDs(child[:])
		if err != nil {
			p.close()
		}
	}()
	if p.stdin, child[0], p.hold, err = newStdin(); err != nil {
		return p, err
	}
	if p.out, child[1], err = newStream(nil); err != nil {
		return p, err
	}
	if p.err, child[2], err = newStream(nil); err != nil {
		return p, err
	}
	p.process, err = w.f.pool.Start(keeper.Order{Env: callEnviron(&Call{}, node)}, child[:]...)
	return p, err
}

// wait returns when a call has claimed the process, or when nothing of it is
// left.
func (p *waiting) wait() {
	if p.w.backoff.failing.Load() {
		defer time.AfterFunc(steadyAfter, p.w.backoff.succeeded).Stop()
	}
	go p.logErr()                                                   // ends with the claim, or when cleanUp has finished stderr
	end, gone := p.process.Wait(func(keeper.End) { p.w.remove(p) }) // ending what it left behind may take a while
	p.ended = gone
	close(p.watched)
	if gone {
		p.cleanUp(end)
	}
}

func (p *waiting) logErr() {
	defer close(p.logged)
	for p.pass(false) {
	}
}

// pass logs what stderr has. False: it has ended, or time is up.
func (p *waiting) pass(finishing bool) bool {
	buf, n, err := p.err.read(finishing)
	if buf == nil {
		return false
	}
	p.log.Write(buf[:n])
	buffers.Put(buf)
	return n > 0 && err == nil
}

// summon ends the process's wait.
func (p *waiting) summon() { p.process.Interrupt() }

// claim takes the process out of its wait, after summon. False: it has ended.
func (p *waiting) claim() bool {
	p.err.finish()
	<-p.watched
	<-p.logged
	if p.ended {
		return false
	}
	p.err.file.SetReadDeadline(time.Time{})
	return true
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

// cleanUp releases a process that ended unclaimed.
func (p *waiting) cleanUp(end keeper.End) {
	w := p.w
	w.remove(p)
	w.mu.Lock()
	discarded := p.discarded
	w.mu.Unlock()
	p.err.finish()
	<-p.logged
	for p.pass(true) {
	}
	p.log.flush()
	why := w.f.whyEnded(&end, p.log.last)
	p.close()
	if end.Survivors != "" {
		w.f.logf("%s: could not be killed: %s", w.f.spec.Name, end.Survivors)
	}
	if !discarded {
		w.failed(why)
	}
}

// close closes what startWaiting opened.
func (p *waiting) close() {
	closeFDs([]int{p.stdin})
	p.hold.close()
	for _, s := range []*stream{p.out, p.err} {
		if s != nil {
			s.file.Close()
		}
	}
}

// nobodyReads reports whether the other end of a pipe is closed everywhere.
func nobodyReads(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0
}

package exec

import (
	"time"

	"fbus/exec/keeper"

	"golang.org/x/sys/unix"
)

// waiting is a process that was started ahead. Until a call claims it, what it
// says on stderr goes to the log; what it says on stdout stays in the pipe and
// is the first that its call hears. Its stdin is never closed unclaimed: an
// end of input would be a call with nothing in it.
type waiting struct {
	w        *warm
	process  *keeper.Process
	stdin    int
	hold     unreadEnd
	out, err *stream
	log      lineLog

	discarded bool          // guarded by w.mu: it was told to end
	ended     bool          // it did not live to be claimed; valid after watched
	watched   chan struct{} // closed when wait listens no more
	heard     chan struct{} // closed when hear listens no more
}

func startWaiting(w *warm, node string) (p *waiting, err error) {
	p = &waiting{w: w, stdin: -1, hold: noUnreadEnd, log: lineLog{f: w.f}, watched: make(chan struct{}), heard: make(chan struct{})}
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
	go p.hear()                                                     // ends with the claim, or when bury has finished stderr
	end, gone := p.process.Wait(func(keeper.End) { p.w.remove(p) }) // what it left behind may take a while
	p.ended = gone
	close(p.watched)
	if gone {
		p.bury(end)
	}
}

func (p *waiting) hear() {
	defer close(p.heard)
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

// claim takes the process out of its wait, once it was summoned. False: it has
// ended.
func (p *waiting) claim() bool {
	p.err.finish()
	<-p.watched
	<-p.heard
	if p.ended {
		return false
	}
	p.err.file.SetReadDeadline(time.Time{})
	return true
}

// discard tells the process to end. It may have been told before.
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

// bury cleans up behind a process that ended unclaimed.
func (p *waiting) bury(end keeper.End) {
	w := p.w
	w.remove(p)
	w.mu.Lock()
	discarded := p.discarded
	w.mu.Unlock()
	p.err.finish()
	<-p.heard
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

// nobodyReads says that the other end of a pipe is closed everywhere.
func nobodyReads(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0
}

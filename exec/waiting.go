package exec

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// waiting is a process that was started ahead. Until a call claims it, what it
// says on stderr goes to the log; what it says on stdout stays in the pipe and
// is the first that its call hears. Its stdin is never closed unclaimed: an
// end of input would be a call with nothing in it.
type waiting struct {
	w        *warm
	k        *keeper
	number   uint64
	stdin    int
	hold     unreadEnd
	out, err *stream
	leaf     *leaf
	log      lineLog

	discarded bool          // guarded by w.mu: it was told to end
	ended     bool          // it did not live to be claimed; valid after watched
	watched   chan struct{} // closed when wait listens no more
	heard     chan struct{} // closed when hear listens no more
}

func startWaiting(w *warm, node string) (p *waiting, err error) {
	p = &waiting{w: w, stdin: -1, hold: noUnreadEnd, log: lineLog{f: w.f}, watched: make(chan struct{}), heard: make(chan struct{})}
	child := [4]int{-1, -1, -1, -1}
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
	if p.leaf, child[3], err = w.f.memory.leafFor(); err != nil {
		return p, err
	}
	o := order{env: callEnviron(&Call{}, node), cgroup: child[3] >= 0}
	p.k, err = w.f.pool.launch(&o, child[:o.descriptors()])
	p.number = o.number
	return p, err
}

// wait returns when a call has claimed the process, or when nothing of it is
// left.
func (p *waiting) wait() {
	if p.w.trouble.any.Load() {
		defer time.AfterFunc(steadyAfter, p.w.trouble.over).Stop()
	}
	go p.hear() // ends with the claim, or when bury has finished stderr
	rep, claimed := p.listen()
	p.ended = !claimed
	close(p.watched)
	if !claimed {
		p.bury(rep)
	}
}

// listen follows the keeper's reports. The zero report is a dead keeper's.
func (p *waiting) listen() (end report, claimed bool) {
	for {
		rep, err := p.k.next()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && end.kind == 0:
			return end, true
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.k.file.SetReadDeadline(time.Time{}) // claimed too late: it has exited
		case err != nil:
			return report{}, false
		case rep.number != p.number:
		case rep.kind == msgFailed:
			return rep, false
		case rep.kind == msgExited:
			p.w.remove(p) // what it left behind may take a while
			if end = rep; rep.gone {
				return end, false
			}
		case rep.kind == msgGone:
			end.survivors = rep.survivors
			return end, false
		}
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

// summon ends the process's wait. w.mu is held: its keeper may not become
// another's between a look at it and the deadline.
func (p *waiting) summon() {
	if p.k != nil {
		p.k.file.SetReadDeadline(past)
	}
}

// claim takes the process out of its wait, once it was summoned. False: it has
// ended.
func (p *waiting) claim() bool {
	p.err.finish()
	<-p.watched
	<-p.heard
	if p.ended {
		return false
	}
	p.k.file.SetReadDeadline(time.Time{})
	p.err.file.SetReadDeadline(time.Time{})
	return true
}

// discard tells the process to end. It may have been told before.
func (p *waiting) discard(how msgType) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.discarded = true
	if p.k != nil {
		p.k.tell(how, p.number)
	}
}

// bury cleans up behind a process that ended unclaimed.
func (p *waiting) bury(end report) {
	w, k := p.w, p.k
	w.remove(p)
	w.mu.Lock()
	discarded := p.discarded
	p.k = nil // it may serve another
	k.file.SetReadDeadline(time.Time{})
	w.mu.Unlock()
	dead := end.kind == 0
	if dead {
		k.bury()
	}
	p.err.finish()
	<-p.heard
	for p.pass(true) {
	}
	p.log.flush()
	why := w.f.whyEnded(&end, p.leaf, p.log.last)
	p.close()
	switch {
	case end.survivors != "":
		w.f.logf("%s: could not be killed: %s", w.f.spec.Name, end.survivors)
		k.end()
	case !dead:
		w.f.pool.put(k)
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
	p.leaf.remove()
}

// nobodyReads says that the other end of a pipe is closed everywhere.
func nobodyReads(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0
}

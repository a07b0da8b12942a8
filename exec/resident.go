package exec

import (
	"context"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fbus/bus/args"
	"fbus/exec/keeper"

	"golang.org/x/sys/unix"
)

// resident is a process that stays for many calls.
type resident struct {
	s       *residents
	codec   codec
	node    string
	process *keeper.Process
	started time.Time
	try     attempt
	replies *stream // its answers
	stdout  *stream // if it answers on another descriptor
	stderr  stderrPump
	readers sync.WaitGroup // what reads its outputs and writes its stdin

	// Guarded by residents.mu.
	state state
	taken int       // calls, in all
	since time.Time // when it became idle, if MaxIdle is set
	last  stopping  // how it is stopped when it retires and holds only overdue calls

	answered atomic.Bool   // a call
	gone     chan struct{} // closed when nothing of it is left
	end      keeper.End    // valid after gone
	read     int64         // valid after gone: how much of stdin it read

	mu      sync.Mutex // guards what follows, and the writing of stdin
	in      requests
	stopped stopping
	grace   *time.Timer
	next    uint64      // the id of its last call
	calls   []*exchange // changed with residents.mu too, so either lets read it
}

// codec puts calls to a process by one of the protocols.
type codec interface {
	// exchange puts a call to the process and returns its end. again: the process
	// cannot have seen the call. A call that ctx ends may leave the process unusable;
	// then it is replaced.
	exchange(ctx context.Context, x *exchange) (res Result, again bool)
}

// exchange is one call at one process.
type exchange struct {
	c   *Call
	req []byte
	p   *resident // set with the seat
	id  uint64    // among the calls of p

	overdue bool   // guarded by residents.mu: fbus ended it, and the process did not let it go
	errors  int64  // guarded by stderrPump.mu: bytes of the program's stderr
	mute    bool   // Spec.Timeout ended it, and the program had written nothing
	stderr  string // what the call's caller gets on stderr at the end

	// Guarded by resident.mu.
	sent      bool   // its request was written, or is in requests.pending
	begin     int64  // where its request begins in all of stdin
	why       ending // why fbus ended it
	takenBack bool   // the process has not seen the request
	hinted    bool   // its caller got the flush hint
	quiet     bool   // JSONRPC: the program wrote nothing between the request and its end
	settled   bool   // JSONRPC: there is an answer, or will be at once

	// JSONRPC: valid after done.
	answer    Result
	answerErr string // for the caller's stderr
	done      chan struct{}
}

// stopping is how strongly a process was asked to end. It only rises.
type stopping int

const (
	drain stopping = iota + 1 // the end of its input, and TERM when the grace is over
	term                      // TERM, and KILL when the grace is over
	kill
)

func newResident(s *residents) *resident {
	p := &resident{s: s, node: s.node, last: drain, started: time.Now(), gone: make(chan struct{})}
	p.in.end = noUnreadEnd
	p.stderr.p, p.stderr.log.f = p, s.f
	if s.f.spec.Resident == LineByLine {
		p.codec = newLineCodec(p)
	} else {
		p.codec = &rpcCodec{p: p}
	}
	return p
}

func (p *resident) start() error {
	spec := &p.s.f.spec
	fds, err := openPipes(stdinHeld, spec.ReplyFD > 0)
	if err != nil {
		return err
	}
	p.in.end, p.replies, p.stderr.stream = fds.hold, fds.out, fds.err
	if fds.extra != nil {
		p.stdout, p.replies = fds.out, fds.extra
	}
	if p.in.file, err = nonblocking(fds.stdin, "stdin"); err == nil {
		p.in.conn, err = p.in.file.SyscallConn()
	}
	if fds.stdin = -1; err != nil {
		closeFDs(fds.child[:])
	} else if p.process, err = fds.start(p.s.f.pool, keeper.Order{Env: p.try.environ(&Call{}, p.node), Extra: spec.ReplyFD}); err == nil {
		return nil
	}
	p.in.file.Close() // it may be nil
	fds.close()
	return err
}

// watch reads the process's outputs, follows it to its end and cleans up.
func (p *resident) watch() {
	f := p.s.f
	p.readers.Go(p.stderr.run) // all end with the outputs, at the latest after finish
	if p.stdout != nil {
		p.readers.Go(func() {
			log := lineLog{f: f}
			io.Copy(&log, p.stdout)
			log.flush()
		})
	}
	if r, ok := p.codec.(*rpcCodec); ok {
		p.readers.Go(r.receive)
	}
	p.try.begun()
	exited := false
	end := p.process.Wait(func(end keeper.End) {
		exited = true
		p.exited(&end)
	})
	p.try.gone()
	p.mu.Lock()
	p.in.closed = true
	if p.grace != nil {
		p.grace.Stop()
	}
	flushed := p.in.flushed
	p.mu.Unlock()
	p.in.file.Close()
	if flushed != nil {
		<-flushed
	}
	for _, out := range []*stream{p.stderr.stream, p.stdout, p.replies} {
		if out != nil {
			out.finish()
		}
	}
	p.readers.Wait()
	p.stderr.log.flush()
	if !exited {
		p.exited(&end)
	}
	p.end = end
	p.read = p.in.written - int64(p.in.end.count())
	if end.Survivors != "" {
		f.logf("%s: could not be killed: %s", f.spec.Name, end.Survivors)
	}
	// But replies, which its last call still reads.
	p.in.end.close()
	for _, out := range []*stream{p.stderr.stream, p.stdout} {
		if out != nil {
			out.file.Close()
		}
	}
	close(p.gone)
}

// exited takes a process out of service that has exited.
func (p *resident) exited(end *keeper.End) {
	p.stderr.mu.Lock()
	p.stderr.drain()
	last := p.stderr.log.last
	p.stderr.mu.Unlock()
	p.mu.Lock()
	asked, idle := p.stopped > 0, len(p.calls) == 0
	p.mu.Unlock()
	why := ""
	switch {
	case end.Errno != 0:
		e := p.try.notExecuted(end.Errno, false)
		p.s.replace(p, e.Message)
		p.s.refuseUnserved(e)
		return
	case end.Exited:
		p.s.f.started()
	}
	if !asked {
		why = p.s.f.whyEnded(end, last)
		if idle && p.answered.Load() {
			p.s.f.logf("%s: replaced: %s", p.s.f.spec.Name, why)
		}
	}
	p.s.replace(p, why)
}

// hold adds a call. residents.mu is held.
func (p *resident) hold(x *exchange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	x.p, x.id = p, p.next
	p.calls = append(p.calls, x)
}

// release removes a call. Unless its stderr was drained it refuses for a call to
// which stderr may go. residents.mu is held.
func (p *resident) release(x *exchange, drained bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !drained && (len(p.calls) == 1 || p.stderr.to == x) {
		return false
	}
	if i := slices.Index(p.calls, x); i >= 0 {
		p.calls = slices.Delete(p.calls, i, i+1)
	}
	return true
}

// settle stops a process that retires and holds no call, or only overdue ones.
// residents.mu is held.
func (p *resident) settle() {
	if p.state == retiring && !slices.ContainsFunc(p.calls, func(x *exchange) bool { return !x.overdue }) {
		p.stop(p.last)
	}
}

// stop asks the process to end, unless it was asked as strongly before.
func (p *resident) stop(how stopping) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if how <= p.stopped || p.in.closed || p.process == nil {
		return
	}
	p.stopped = how
	switch how {
	case drain:
		p.in.file.Close()
		p.grace = time.AfterFunc(p.s.f.spec.Grace, func() { p.stop(term) })
	case term:
		p.process.Cancel()
	case kill:
		p.process.Kill()
	}
}

// fail replaces a process that broke the protocol, and ends it.
func (p *resident) fail(why string) {
	p.s.replace(p, why)
	p.stop(term)
}

// distrust is fail for a fault that no call reports: it is logged.
func (p *resident) distrust(why string) {
	p.s.f.logf("%s: replaced: %s", p.s.f.spec.Name, why)
	p.fail(why)
}

// closedAfter is how long a process that has closed its output is given to exit, so
// that its status can be reported.
var closedAfter = 200 * time.Millisecond

// awaitEnd waits until nothing is left of a process that has closed its output, and
// ends it if it goes on without.
func (p *resident) awaitEnd() {
	select {
	case <-p.gone:
	case <-time.After(closedAfter):
		p.fail("the program closed its output")
		<-p.gone
	}
}

// requests is a process's stdin.
type requests struct {
	file    *os.File
	conn    syscall.RawConn
	end     unreadEnd
	asked   int64         // bytes meant for stdin
	written int64         // bytes written to the pipe
	pending []byte        // what did not fit, flush writes it
	flushed chan struct{} // closed when flush has ended; nil if none runs
	closed  bool          // nothing is written any more
}

// ask writes a call's request, or begins to, unless the call was ended before. It
// never waits for the program to read.
func (p *resident) ask(x *exchange, req []byte) (sent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x.why != none {
		return false
	}
	x.sent, x.begin = true, p.in.asked
	p.write(req)
	return true
}

// write writes to stdin what fits, and leaves the rest to flush. p.mu is held.
func (p *resident) write(b []byte) {
	p.in.asked += int64(len(b))
	if p.in.closed {
		return
	}
	if p.in.flushed == nil {
		n := 0
		p.in.conn.Control(func(fd uintptr) { n, _ = keeper.WriteFD(int(fd), b) })
		p.in.written += int64(n)
		b = b[n:]
	}
	if len(b) == 0 {
		return
	}
	p.in.pending = append(p.in.pending, b...)
	if p.in.flushed == nil {
		p.in.flushed = make(chan struct{})
		go p.flush() // ends when all is written, or when watch closes stdin
	}
}

func (p *resident) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.in.pending) > 0 {
		b := p.in.pending
		p.in.pending = nil
		p.mu.Unlock()
		n, err := p.in.file.Write(b)
		p.mu.Lock()
		p.in.written += int64(n)
		if err != nil {
			break
		}
	}
	close(p.in.flushed)
	if !p.in.closed {
		p.in.flushed = nil
	}
}

// takeBack removes a call's request from the pipe, if it is all that is there.
// p.mu is held.
func (p *resident) takeBack(x *exchange) bool {
	if p.in.written != p.in.asked || !p.in.end.takeBack(int(p.in.asked-x.begin)) {
		return false
	}
	p.in.asked, p.in.written = x.begin, x.begin
	return true
}

// stderrPump passes a process's stderr on: to the call that the process holds if it
// holds one, otherwise to the log.
type stderrPump struct {
	p      *resident
	stream *stream
	to     *exchange // guarded by resident.mu: the call that is being written to

	mu  sync.Mutex // guards what follows; held while stderr is read and passed on
	log lineLog
	buf [4096]byte
}

func (e *stderrPump) run() {
	e.stream.conn.Read(func(fd uintptr) bool {
		for {
			e.mu.Lock()
			n, err := e.pass(fd)
			e.mu.Unlock()
			if n == 0 {
				return err != unix.EAGAIN
			}
		}
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drain() // finish has ended the read: the rest
}

// drain passes on the bytes that stderr holds, but not those that a flood adds in the
// meantime. e.mu is held.
func (e *stderrPump) drain() {
	e.stream.conn.Control(func(fd uintptr) {
		for range bufSize / len(e.buf) {
			if n, _ := e.pass(fd); n == 0 {
				return
			}
		}
	})
}

// pass passes one piece on. e.mu is held.
func (e *stderrPump) pass(fd uintptr) (n int, err error) {
	if n, err = keeper.ReadFD(int(fd), e.buf[:]); n == 0 {
		return n, err
	}
	e.p.mu.Lock()
	e.to = nil
	if len(e.p.calls) == 1 && e.p.calls[0].c.Stderr != nil {
		e.to = e.p.calls[0]
	}
	x := e.to
	e.p.mu.Unlock()
	if x == nil {
		e.log.Write(e.buf[:n])
		return n, err
	}
	e.log.remember(e.buf[:n])
	b := e.buf[:n]
	x.errors += int64(n)
	if limit := e.p.s.f.spec.MaxOutput; limit > 0 && x.errors > limit {
		b = b[:max(0, limit-x.errors+int64(n))]
		e.p.s.replace(e.p, "its error output exceeds "+size(limit))
		e.p.stop(kill)
	}
	e.write(x, b)
	return n, err
}

// write writes to the stderr of a call that is e.to. e.mu is held.
func (e *stderrPump) write(x *exchange, b []byte) {
	x.c.Stderr.Write(b)
	e.p.mu.Lock()
	e.to = nil
	e.p.mu.Unlock()
}

const flushHint = "fbus: hint: does the program flush its output after each line?\n"

// flushHintBefore is how long before its deadline a call's caller gets the hint that
// a program which never answered may not flush: at the deadline the caller leaves.
const flushHintBefore = 30 * time.Millisecond

// hintBeforeDeadline writes the flush hint shortly before a call's deadline, if the
// process has answered nothing by then. Stop it with the call.
func (p *resident) hintBeforeDeadline(x *exchange) (stop func()) {
	if x.c.Deadline.IsZero() || p.answered.Load() || x.c.Stderr == nil {
		return func() {}
	}
	left := time.Until(x.c.Deadline)
	timer := time.AfterFunc(max(left/2, left-flushHintBefore), func() {
		p.stderr.mu.Lock() // stderr is for one goroutine at a time
		defer p.stderr.mu.Unlock()
		p.mu.Lock()
		hint := !p.answered.Load() && slices.Contains(p.calls, x)
		if hint {
			x.hinted, p.stderr.to = true, x
		}
		p.mu.Unlock()
		if hint {
			p.stderr.write(x, []byte(flushHint))
		}
	})
	return func() { timer.Stop() }
}

// explain writes to a call's stderr what belongs to its end. The process must not
// hold the call any more.
func (p *resident) explain(x *exchange) {
	if x.mute && !x.hinted {
		x.stderr += flushHint
	}
	if x.stderr != "" {
		io.WriteString(orDiscard(x.c.Stderr), x.stderr)
	}
}

// ended is the end of a call that fbus ended. heard: the program has written
// something of an answer.
func (p *resident) ended(x *exchange, why ending, heard bool) Result {
	x.mute = why == timeout && x.sent && !heard
	return p.s.f.endedAs(why)
}

// lost is the end of a call whose process is gone, with half of an answer. It can be
// put to another process if the program has read nothing of it; a program that never
// answered would only do the same again.
func (p *resident) lost(x *exchange, half []byte, passed bool) (res Result, again bool) {
	p.mu.Lock()
	why, stopped := x.why, p.stopped
	p.mu.Unlock()
	f := p.s.f
	switch {
	case stopped == kill:
		return f.endedAs(cancelled), false
	case why != none:
		return p.ended(x, why, passed || len(half) > 0), false
	case p.end.Errno != 0: // exited has given the slots up
		return failure(args.CannotStart(f.why(p.end.Errno))), false
	}
	msg := f.describe(&p.end, " before it answered")
	if p.end.Exited && stopped > 0 && p.end.Asked {
		msg = "the program closed its output before it answered"
	}
	if len(half) > 0 {
		msg += "; it left half a line: " + quote(half)
	}
	if !p.answered.Load() && p.stderr.log.last != "" {
		msg += ": " + p.stderr.log.last
	}
	unread := !x.sent || x.begin >= p.read
	return fbusEnd(args.CodeWorkerLost, msg), unread && !passed && len(half) == 0 && p.answered.Load()
}

// blame returns the fault of a process that was ended with its call.
func blame(why ending) string {
	if why == cancelled {
		return ""
	}
	return "the program had not answered when its call's time was over"
}

// quote shows what a program wrote, shortened.
func quote(b []byte) string { return args.AbbreviateTo(b, longestQuoted) }

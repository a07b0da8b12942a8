package exec

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"fbus/exec/keeper"

	"golang.org/x/sys/unix"

	"fbus/bus/args"
)

// closingAfter is how long a process that has closed its output is given to
// say by its exit why.
var closingAfter = 200 * time.Millisecond

// chat is what LineByLine needs beside. Only the call that holds the process
// touches it.
type chat struct {
	step func(fd uintptr) bool // bound once: no allocation in a call
	cur  *holding
	req  []byte
	into []byte
	n    int
	err  error
}

func (t *chat) init(p *resident) { t.step = p.lineStep }

// line puts a line to the process and waits for the line that answers it.
// again says that the process can not have seen it.
func (p *resident) line(ctx context.Context, c *Call, req []byte) (res Result, again bool) {
	h := &holding{c: c}
	p.begin(h)
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { p.interrupt(h, endingOf(ctx)) })()
	}
	p.hearOut(ctx, c)
	defer p.hintAtFlushing(h)()
	p.cur, p.req = h, req
	l := lineReader{p: p, h: h, buf: buf[:]}
	end := l.read()
	p.cur, p.req = nil, nil
	if end == lineWhole {
		p.answered.Store(true)
		p.s.proven.Store(true)
		p.s.trouble.over()
		res = Result{End: args.End{Source: args.FromProgram, Code: "exit"}, Output: bytes.Clone(l.line())}
		if rest := l.rest(); len(rest) > 0 {
			p.distrust("it wrote more than one line: " + quote(rest))
		}
	} else {
		res, again = l.fault(end)
	}
	p.finish(h)
	p.hint(h)
	return res, again
}

// How long after its start a process may say what it was not asked: the first of
// a function, and where others have done so.
var (
	firstGreeting = 100 * time.Millisecond
	laterGreeting = 300 * time.Millisecond
)

// hearOut waits for a new process to write before it is asked, unless one of the
// same program was quiet: what comes behind the request would be taken for the
// answer. A call that has little time does not wait.
func (p *resident) hearOut(ctx context.Context, c *Call) {
	if p.answered.Load() || p.s.proven.Load() {
		return
	}
	limit := firstGreeting
	if p.s.greets.Load() {
		limit = laterGreeting
	}
	if !c.Deadline.IsZero() && time.Until(c.Deadline) < 3*limit {
		return
	}
	if whole := p.s.f.spec.Timeout; whole > 0 {
		limit = min(limit, whole/3)
	}
	for until := p.started.Add(limit); time.Now().Before(until) && ctx.Err() == nil; {
		ready := false
		p.replies.conn.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, _ := unix.Poll(fds, 10)
			ready = n > 0
		})
		if ready {
			return
		}
	}
}

// lineReader reads one answer.
type lineReader struct {
	p      *resident
	h      *holding
	buf    []byte
	n      int   // bytes in buf
	eol    int   // what of them is the answer
	passed int64 // bytes passed on before
}

// lineEnd is how the wait for an answer ended.
type lineEnd int

const (
	lineWhole lineEnd = iota
	lineCut           // the process ended first, or closed its output
	lineEnded         // fbus ended the call
	lineStray         // there was output before the request was written
	lineOver          // the answer is too long
)

func (l *lineReader) line() []byte { return l.buf[:l.eol] }
func (l *lineReader) rest() []byte { return l.buf[l.eol:l.n] }

func (l *lineReader) read() lineEnd {
	limit := l.p.s.f.spec.MaxOutput
	for {
		got, err := l.p.more(l.h, l.buf[l.n:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return lineEnded
		case err != nil:
			return lineCut
		}
		l.n += got
		if !l.h.sent {
			return lineStray
		}
		l.eol = l.n
		i := bytes.IndexByte(l.buf[l.n-got:l.n], '\n')
		if i >= 0 {
			l.eol = l.n - got + i + 1
		}
		switch {
		case limit > 0 && l.passed+int64(l.eol) > limit:
			return lineOver
		case i >= 0:
			return lineWhole
		case l.n == len(l.buf):
			if _, err := orDiscard(l.h.c.Stdout).Write(l.buf); err != nil {
				l.p.interrupt(l.h, cancelled) // nobody reads any more
				return lineEnded
			}
			l.passed += int64(l.n)
			l.n = 0
		}
	}
}

// more reads what there is of the answer, having written the request first.
// os.ErrDeadlineExceeded: the call was ended.
func (p *resident) more(h *holding, into []byte) (int, error) {
	p.into = into
	for {
		err := p.replies.conn.Read(p.step)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			if err == nil && p.n == 0 && p.err == nil {
				err = io.EOF
			}
			return p.n, cmp.Or(err, p.err)
		}
		p.mu.Lock()
		why, shut := h.why, p.shut
		if !shut {
			p.replies.file.SetReadDeadline(time.Time{}) // it may have been meant for a call before
		}
		p.mu.Unlock()
		switch {
		case why != none:
			return 0, err
		case shut && !h.sent:
			return 0, io.EOF
		case shut:
			p.replies.conn.Control(func(fd uintptr) { p.lineStep(fd) })
			if p.n == 0 {
				return 0, io.EOF
			}
			return p.n, nil
		}
	}
}

// lineStep is tried whenever there may be something to read. What is there
// before the request was written is no answer to it. The wait for an answer
// begins before the request is written, so no read fails in between.
func (p *resident) lineStep(fd uintptr) bool {
	p.n, p.err = keeper.ReadFD(int(fd), p.into)
	if p.err != unix.EAGAIN {
		return true
	}
	if !p.cur.sent {
		if sent, _ := p.ask(p.cur, p.req); !sent {
			p.err = os.ErrDeadlineExceeded
			return true
		}
	}
	return false
}

// interrupt ends a call. If its request is still in the pipe it is taken back,
// and the process is none the wiser; else that is of no use for another call.
func (p *resident) interrupt(h *holding, why ending) {
	p.mu.Lock()
	if h.why != none || !slices.Contains(p.calls, h) {
		p.mu.Unlock()
		return
	}
	h.why = why
	h.back = !h.sent
	if h.sent && p.written == p.asked && p.hold.takeBack(h.size) {
		h.back = true
		p.asked, p.written = h.begin, h.begin
	}
	p.mu.Unlock()
	if !h.back {
		p.s.replace(p, faultOf(why))
		p.tell(msgCancel)
	}
	p.replies.finish()
}

// faultOf is what a process is blamed for that was ended with its call.
func faultOf(why ending) string {
	if why == cancelled {
		return ""
	}
	return "the program had not answered when its call's time was over"
}

// fault is the end of a call that was not answered.
func (l *lineReader) fault(end lineEnd) (res Result, again bool) {
	p, h := l.p, l.h
	switch end {
	case lineStray:
		stray := quote(l.buf[:l.n])
		if !p.answered.Load() {
			p.s.greets.Store(true)
		}
		p.distrust("it wrote before it was asked: " + stray)
		res = fbusEnd(args.CodeInternal, "the program writes before it is asked: "+stray)
		res.Hint = "`reply-fd 3` takes answers from another descriptor than stdout"
		return res, true
	case lineOver:
		p.s.replace(p, "its answer exceeds "+size(p.s.f.spec.MaxOutput))
		p.tell(msgKill)
		<-p.gone
		return p.s.f.endedAs(outputLimit), false
	case lineCut:
		p.awaitEnd()
		return p.lost(h, l.buf[:l.n], l.passed > 0)
	}
	p.mu.Lock()
	why, back := h.why, h.back
	p.mu.Unlock()
	if !back {
		<-p.gone
	}
	return p.ended(h, why, l.n > 0 || l.passed > 0), false
}

// distrust replaces a process that wrote out of turn.
func (p *resident) distrust(why string) {
	p.s.f.logf("%s: replaced: %s", p.s.f.spec.Name, why)
	p.s.replace(p, why)
	p.tell(msgCancel)
}

// awaitEnd waits until nothing is left of a process that has closed its
// output, and ends it if it goes on without.
func (p *resident) awaitEnd() {
	select {
	case <-p.gone:
	case <-time.After(closingAfter):
		p.s.replace(p, "the program closed its output")
		p.tell(msgCancel)
		<-p.gone
	}
}

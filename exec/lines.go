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

	"fbus/bus/args"
	"fbus/exec/keeper"

	"golang.org/x/sys/unix"
)

// How long after its start a process may write before it is asked: the first of a
// function, and where others have done so.
var (
	firstGreeting = 100 * time.Millisecond
	laterGreeting = 300 * time.Millisecond
)

// lineCodec is the protocol LineByLine. The call's own goroutine reads the answer: a
// hand-over between goroutines would cost more than the call. Only the call that the
// process holds uses it.
type lineCodec struct {
	p    *resident
	step func(fd uintptr) bool // tryRead, bound once: no allocation in a call

	x      *exchange
	buf    []byte
	n      int   // bytes in buf
	eol    int   // of them, the answer
	passed int64 // bytes passed on before
	got    int   // by the last tryRead
	err    error // of the last tryRead
}

func newLineCodec(p *resident) *lineCodec {
	l := &lineCodec{p: p}
	l.step = l.tryRead
	return l
}

// lineEnd is how the wait for an answer ended.
type lineEnd int

const (
	lineWhole   lineEnd = iota
	lineCut             // the process ended first, or closed its output
	lineEnded           // fbus ended the call
	lineStray           // there was output before the request was written
	lineTooLong         // the answer exceeds MaxOutput
)

// replyHint is for a program that writes more than answers to stdout.
const replyHint = "`reply-fd 3` takes answers from another descriptor than stdout"

func (l *lineCodec) exchange(ctx context.Context, x *exchange) (res Result, again bool) {
	p, f := l.p, l.p.s.f
	buf := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(buf)
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { l.interrupt(x, endingOf(ctx)) })()
	}
	l.awaitGreeting(ctx, x.c)
	defer p.hintBeforeDeadline(x)()
	l.x, l.buf, l.n, l.eol, l.passed = x, buf[:], 0, 0, 0
	end := l.read()
	read, begun := l.buf[:l.n], l.n > 0 || l.passed > 0
	l.x, l.buf = nil, nil

	switch end {
	case lineWhole:
		p.answered.Store(true)
		p.s.proven.Store(true)
		p.s.backoff.succeeded()
		if rest := read[l.eol:]; len(rest) > 0 {
			p.distrust("it wrote more than one line: " + quote(rest))
		}
		return Result{End: args.End{Source: args.FromProgram, Code: "exit"}, Output: bytes.Clone(read[:l.eol])}, false
	case lineStray:
		if !p.answered.Load() {
			p.s.greets.Store(true)
		}
		p.distrust("it wrote before it was asked: " + quote(read))
		res = fbusEnd(args.CodeInternal, "the program writes before it is asked: "+quote(read))
		res.Hint = replyHint
		return res, true
	case lineTooLong:
		p.s.replace(p, "its answer exceeds "+size(f.spec.MaxOutput))
		p.stop(kill)
		<-p.gone
		return f.endedAs(outputLimit), false
	case lineCut:
		p.awaitEnd()
		return p.lost(x, read, l.passed > 0)
	}
	p.mu.Lock()
	why, takenBack := x.why, x.takenBack
	p.mu.Unlock()
	if !takenBack {
		<-p.gone
	}
	return p.ended(x, why, begun), false
}

// awaitGreeting waits for a new process to write before it is asked, unless one of the
// same program was silent until then: what comes after the request would be taken for
// the answer. A call that has little time does not wait.
func (l *lineCodec) awaitGreeting(ctx context.Context, c *Call) {
	p := l.p
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

// read reads the answer. Of one that is longer than the buffer it passes the beginning
// on.
func (l *lineCodec) read() lineEnd {
	limit := l.p.s.f.spec.MaxOutput
	for {
		err := l.more()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return lineEnded
		case err != nil:
			return lineCut
		}
		l.n += l.got
		if !l.x.sent {
			return lineStray
		}
		l.eol = l.n
		i := bytes.IndexByte(l.buf[l.n-l.got:l.n], '\n')
		if i >= 0 {
			l.eol = l.n - l.got + i + 1
		}
		switch {
		case limit > 0 && l.passed+int64(l.eol) > limit:
			return lineTooLong
		case i >= 0:
			return lineWhole
		case l.n == len(l.buf):
			if _, err := orDiscard(l.x.c.Stdout).Write(l.buf); err != nil {
				l.interrupt(l.x, cancelled) // nobody reads any more
				return lineEnded
			}
			l.passed += int64(l.n)
			l.n = 0
		}
	}
}

// more reads what there is of the answer, after it has written the request.
// os.ErrDeadlineExceeded: the call was ended.
func (l *lineCodec) more() error {
	p := l.p
	for {
		err := p.replies.conn.Read(l.step)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			if err == nil && l.got == 0 && l.err == nil {
				return io.EOF
			}
			return cmp.Or(err, l.err)
		}
		p.mu.Lock()
		why, closed := l.x.why, p.in.closed
		if !closed {
			p.replies.file.SetReadDeadline(time.Time{}) // it may have been meant for a call before
		}
		p.mu.Unlock()
		switch {
		case why != none:
			return err
		case closed && !l.x.sent:
			return io.EOF
		case closed:
			p.replies.conn.Control(func(fd uintptr) { l.tryRead(fd) })
			if l.got == 0 {
				return io.EOF
			}
			return nil
		}
	}
}

// tryRead runs whenever there may be something to read. What is there before the
// request was written is no answer to it. The wait for an answer begins before the
// request is written, so no read fails in between.
func (l *lineCodec) tryRead(fd uintptr) bool {
	l.got, l.err = keeper.ReadFD(int(fd), l.buf[l.n:])
	if l.err != unix.EAGAIN {
		return true
	}
	if !l.x.sent && !l.p.ask(l.x, l.x.req) {
		l.err = os.ErrDeadlineExceeded
		return true
	}
	return false
}

// interrupt ends a call. If its request is still in the pipe it is taken back, and
// the process has not seen it; otherwise the process can serve no other call.
func (l *lineCodec) interrupt(x *exchange, why ending) {
	p := l.p
	p.mu.Lock()
	if x.why != none || !slices.Contains(p.calls, x) {
		p.mu.Unlock()
		return
	}
	x.why = why
	x.takenBack = !x.sent || p.takeBack(x)
	p.mu.Unlock()
	if !x.takenBack {
		p.fail(blame(why))
	}
	p.replies.finish()
}

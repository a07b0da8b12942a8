package exec

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"fbus/bus/args"
)

// quote shows what a program wrote, shortened.
func quote(b []byte) string {
	if len(b) > longestQuoted {
		return strconv.Quote(string(b[:longestQuoted])) + "…"
	}
	return strconv.Quote(string(b))
}

// ended is the end of a call that fbus ended.
func (p *resident) ended(h *holding, why ending, heard bool) Result {
	h.mute = why == timeout && h.sent && !heard
	return p.s.f.endedAs(why)
}

const flushHint = "fbus: hint: does the program flush its output after each line?\n"

// flushHintBefore is how long before its deadline a call is told that a program
// which never answered may not flush: at the deadline its caller goes.
const flushHintBefore = 30 * time.Millisecond

// hintAtFlushing tells a call's caller, shortly before its deadline, what may be
// wrong with a program that has said nothing so far. Stop it with the call.
func (p *resident) hintAtFlushing(h *holding) (stop func()) {
	left := time.Until(h.c.Deadline)
	if h.c.Deadline.IsZero() || p.answered.Load() || h.c.Stderr == nil {
		return func() {}
	}
	timer := time.AfterFunc(max(left/2, left-flushHintBefore), func() {
		p.errMu.Lock() // stderr is for one goroutine at a time
		defer p.errMu.Unlock()
		p.mu.Lock()
		h.hinted = !p.answered.Load() && slices.Contains(p.calls, h)
		if h.hinted {
			p.talking = h
		}
		p.mu.Unlock()
		if h.hinted {
			p.pass(h, []byte(flushHint))
		}
	})
	return func() { timer.Stop() }
}

// hint is the same at the end of a call that the function's own limit has ended,
// when nobody else writes to its stderr any more.
func (p *resident) hint(h *holding) {
	p.mu.Lock()
	due := h.mute && !h.hinted
	p.mu.Unlock()
	if due {
		io.WriteString(orDiscard(h.c.Stderr), flushHint)
	}
}

// lost is the end of a call whose process is gone. It can be put to another
// one if the program has read nothing of it; one that never answered would
// only do the same again.
func (p *resident) lost(h *holding, half []byte, passed bool) (res Result, again bool) {
	p.mu.Lock()
	why, killed, told := h.why, p.killed, p.told
	p.mu.Unlock()
	f := p.s.f
	switch {
	case killed:
		return f.endedAs(cancelled), false
	case why != none:
		return p.ended(h, why, passed || len(half) > 0), false
	case p.end.Errno != 0:
		return failure(f.failed(p.end.Errno)), false
	}
	msg := p.farewell(told)
	if p.end.OutOfMemory {
		msg += ", " + f.outOfMemory()
	}
	if len(half) > 0 {
		msg += "; it left half a line: " + quote(half)
	}
	if !p.answered.Load() && p.log.last != "" {
		msg += ": " + p.log.last
	}
	res = fbusEnd(args.CodeWorkerLost, msg)
	unread := !h.sent || h.begin >= p.read
	return res, unread && !passed && len(half) == 0 && p.answered.Load()
}

func (p *resident) farewell(told signal) string {
	ws := p.end.Status
	switch {
	case !p.end.Exited:
		return "the program's keeper was killed"
	case told != 0 && p.end.Asked:
		return "the program closed its output before it answered"
	case ws.Signaled():
		return fmt.Sprintf("the program was ended by %s before it answered", signalName(ws.Signal()))
	}
	return fmt.Sprintf("the program exited with status %d before it answered", ws.ExitStatus())
}

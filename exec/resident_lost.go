package exec

import (
	"fmt"
	"strconv"
	"syscall"
)

// quote shows what a program wrote, shortened.
func quote(b []byte) string {
	if len(b) > longestQuoted {
		return strconv.Quote(string(b[:longestQuoted])) + "…"
	}
	return strconv.Quote(string(b))
}

// ended is the end of a call that fbus ended.
func (p *resident) ended(why ending, heard bool) Result {
	res := p.s.f.endedAs(why)
	if res.Code == "deadline" && !heard {
		res.Message += "\nhint: does the program flush its output after each line?"
	}
	return res
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
		return p.ended(why, passed || len(half) > 0), false
	case p.end.kind == msgFailed:
		return f.failed(syscall.Errno(p.end.errno)).result(), false
	}
	msg := p.farewell(told)
	if p.oom {
		msg += ", out of memory: the limit is " + size(f.spec.Memory)
	}
	if len(half) > 0 {
		msg += "; it left half a line: " + quote(half)
	}
	if !p.answered.Load() && p.log.last != "" {
		msg += ": " + p.log.last
	}
	res = Result{Source: SourceFbus, Status: StatusLost, Code: "worker_lost", Message: msg}
	unread := !h.sent || h.begin >= p.read
	return res, unread && !passed && len(half) == 0 && p.answered.Load()
}

func (p *resident) farewell(told msgType) string {
	ws := syscall.WaitStatus(p.end.status)
	switch {
	case p.end.kind == 0:
		return "the program's keeper was killed"
	case told != 0 && p.end.ended:
		return "the program closed its output before it answered"
	case ws.Signaled():
		return fmt.Sprintf("the program was ended by %s before it answered", signalName(ws.Signal()))
	}
	return fmt.Sprintf("the program exited with status %d before it answered", ws.ExitStatus())
}

package exec

import (
	"slices"
	"time"

	"fbus/exec/keeper"
)

// begin seats a call.
func (p *resident) begin(h *holding) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	h.id = p.next
	p.calls = append(p.calls, h)
}

// ask writes a call's request, or begins to. Not sent: the call was ended
// before. It never waits for the program to read. heard is what was heard of
// the program until then.
func (p *resident) ask(h *holding, req []byte) (sent bool, heard int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.why != none {
		return false, 0
	}
	h.sent, h.begin, h.size = true, p.asked, len(req)
	p.write(req)
	return true, p.heard
}

// write writes to stdin what fits, and leaves the rest to flush. p.mu is held.
func (p *resident) write(b []byte) {
	p.asked += int64(len(b))
	if p.shut {
		return
	}
	if p.flushes == nil {
		n := 0
		p.in.Control(func(fd uintptr) { n, _ = keeper.WriteFD(int(fd), b) })
		p.written += int64(n)
		b = b[n:]
	}
	if len(b) == 0 {
		return
	}
	p.pending = append(p.pending, b...)
	if p.flushes == nil {
		p.flushes = make(chan struct{})
		go p.flush() // ends when all is written, or when watch closes stdin
	}
}

func (p *resident) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.pending) > 0 {
		b := p.pending
		p.pending = nil
		p.mu.Unlock()
		n, err := p.stdin.Write(b)
		p.mu.Lock()
		p.written += int64(n)
		if err != nil {
			break
		}
	}
	close(p.flushes)
	if !p.shut {
		p.flushes = nil
	}
}

// finish ends a call's stay. What the program said on stderr before its answer
// is passed on by then, and nobody writes to the call's stderr any more.
func (p *resident) finish(h *holding) {
	p.mu.Lock()
	if len(p.calls) > 1 && p.talking != h {
		p.leave(h)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.errMu.Lock()
	defer p.errMu.Unlock()
	p.errs.conn.Control(p.drain)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave(h)
}

func (p *resident) leave(h *holding) {
	if i := slices.Index(p.calls, h); i >= 0 {
		p.calls = slices.Delete(p.calls, i, i+1)
	}
	p.endCondemned()
}

// signal is how a process is told to end.
type signal int

const (
	msgCancel signal = iota + 1
	msgKill
)

// tell has the keeper end the process.
func (p *resident) tell(how signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told == 0 || how == msgKill {
		p.told = how
	}
	if how == msgKill {
		p.process.Kill()
	} else {
		p.process.Cancel()
	}
}

// kill ends the process at once, and its calls as cancelled.
func (p *resident) kill() {
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	p.tell(msgKill)
}

// retire lets a process go that holds no call: the end of its input, TERM
// after the grace, KILL after another.
func (p *resident) retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told != 0 || p.shut {
		return
	}
	p.told = msgCancel
	p.stdin.Close()
	p.retired = time.AfterFunc(p.s.f.spec.Grace, func() { p.tell(msgCancel) })
}

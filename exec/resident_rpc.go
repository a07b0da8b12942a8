package exec

import (
	"bufio"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"fbus/bus/args"
	"fbus/bus/jsonrpc"
)

// longestAnswer bounds a message of a program when MaxOutput does not: it has
// to be complete before it can be passed on.
const longestAnswer = 64 << 20

// rpc is what JSONRPC needs beside. Guarded by resident.mu.
type rpc struct {
	heard int64  // messages received
	half  []byte // what was left of one at the end
}

// remote puts a request to the process and waits for the response with its id.
// again says that the process can not have seen it.
func (p *resident) remote(ctx context.Context, c *Call, params []byte) (res Result, again bool) {
	h := &holding{c: c, done: make(chan struct{})}
	p.begin(h)
	defer p.hintAtFlushing(h)()
	_, heard := p.ask(h, jsonrpc.AppendRequest(nil, h.id, p.s.f.spec.Name, params))
	select {
	case <-h.done:
	case <-p.gone:
	case <-ctx.Done():
		p.cancel(h, endingOf(ctx), heard)
	}
	p.finish(h)
	res, again = p.response(h)
	p.hint(h)
	return res, again
}

// response is how a call ended that is no longer held.
func (p *resident) response(h *holding) (res Result, again bool) {
	answered := false
	select {
	case <-h.done:
		answered = true
	default: // then the process is gone
	}
	p.mu.Lock()
	why, half := h.why, p.half
	p.mu.Unlock()
	switch {
	case why != none:
		return p.ended(h, why, !h.silent), false
	case !answered:
		return p.lost(h, half, false)
	}
	if h.answer.stderr != "" {
		io.WriteString(orDiscard(h.c.Stderr), h.answer.stderr)
	}
	return h.answer.Result, false
}

// cancel tells the program that nobody waits for a call, and gives it the
// grace to answer all the same. If it does not, the process takes no more
// calls, and ends when it has answered its others.
func (p *resident) cancel(h *holding, why ending, heard int64) {
	p.mu.Lock()
	h.why, h.silent = why, p.heard == heard
	p.write(jsonrpc.AppendCancel(nil, h.id))
	p.mu.Unlock()
	grace := time.NewTimer(p.s.f.spec.Grace)
	defer grace.Stop()
	if h.over(p, grace) {
		return
	}
	p.s.replace(p, faultOf(why))
	p.condemn(h)
	select {
	case <-h.done:
	case <-p.gone:
	}
}

// over waits for a call's answer or its process's end. False: time is up.
func (h *holding) over(p *resident, limit *time.Timer) bool {
	select {
	case <-h.done:
	case <-p.gone:
	case <-limit.C:
		return false
	}
	return true
}

// condemn has a process that is out of service end with its calls, of which it
// need not wait for the overdue one.
func (p *resident) condemn(overdue *holding) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if overdue != nil {
		overdue.overdue = true
	}
	p.condemned = true
	p.endCondemned()
}

// endCondemned ends a process that holds nothing but calls that are overdue.
// p.mu is held.
func (p *resident) endCondemned() {
	if !p.condemned || p.told != 0 || p.shut || slices.ContainsFunc(p.calls, func(h *holding) bool { return !h.overdue }) {
		return
	}
	p.told = msgCancel
	p.process.Cancel()
}

// receive reads the program's messages to the end of its output.
func (p *resident) receive() {
	bound := longestAnswer
	if limit := p.s.f.spec.MaxOutput; limit > 0 {
		bound = int(min(limit, longestAnswer)) + 64<<10 // and what goes round it
	}
	from := untilFinished{p.replies}
	r := bufio.NewReaderSize(from, bufSize)
	for {
		line, err := readLine(r, bound)
		p.mu.Lock()
		p.heard++
		p.mu.Unlock()
		switch {
		case errors.Is(err, errTooLong):
			p.refuse(p.s.f.tooLong(bound), "a message longer than "+size(int64(bound)))
		case err != nil:
			p.mu.Lock()
			p.half = line[:min(len(line), longestQuoted+1)]
			p.mu.Unlock()
			p.closed()
			return
		case p.message(line):
			continue
		}
		io.Copy(io.Discard, from) // not to be trusted any more
		return
	}
}

// closed ends a process that goes on without its output.
func (p *resident) closed() {
	p.mu.Lock()
	shut := p.shut
	p.mu.Unlock()
	if !shut {
		go p.awaitEnd() // ends with the process
	}
}

func (f *Function) tooLong(bound int) Result {
	if f.spec.MaxOutput > 0 {
		return f.endedAs(outputLimit)
	}
	return fbusEnd(args.CodeOutputLimit, "the answer exceeds "+size(int64(bound)))
}

var errTooLong = errors.New("line too long")

// readLine reads a line without its end. With an error it returns what there
// was of one.
func readLine(r *bufio.Reader, bound int) ([]byte, error) {
	var long []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(long)+len(part) > bound {
			return nil, errTooLong
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			long = append(long, part...)
			continue
		}
		if long != nil {
			part = append(long, part...)
		}
		if err == nil {
			part = part[:len(part)-1]
		}
		return part, err
	}
}

// refuse ends every call that the process holds, and the process: a message
// that is nobody's may be anybody's.
func (p *resident) refuse(res Result, why string) {
	p.s.replace(p, "it wrote "+why) // first, or a call that ends here makes room for another
	p.mu.Lock()
	n := len(p.calls)
	for _, h := range p.calls {
		if !h.got {
			h.got, h.answer.Result = true, res
			close(h.done)
		}
	}
	p.mu.Unlock()
	if n == 0 {
		p.s.f.logf("%s: replaced: it wrote %s", p.s.f.spec.Name, why)
	}
	p.tell(msgCancel)
}

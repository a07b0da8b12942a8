package exec

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fbus/bus/args"
	"fbus/bus/jsonrpc"
)

// maxAnswer bounds a message of a program when MaxOutput does not: it has to be
// complete before it can be passed on.
const maxAnswer = 64 << 20

// maxMessage is how much of an error's text travels with the end of a call; a longer
// one is on stderr alone.
const maxMessage = 2 << 10

// rpcCodec is the protocol JSONRPC. One goroutine reads the answers; their ids name the
// calls.
type rpcCodec struct {
	p *resident

	// Guarded by resident.mu.
	heard int64  // messages received
	half  []byte // the beginning of one that never ended
}

func (r *rpcCodec) exchange(ctx context.Context, x *exchange) (res Result, again bool) {
	p := r.p
	defer p.hintBeforeDeadline(x)()
	p.mu.Lock()
	heard := r.heard
	p.mu.Unlock()
	p.ask(x, jsonrpc.AppendRequest(nil, x.id, p.s.f.spec.Name, x.req))
	answered := true
	select {
	case <-x.done:
	case <-p.gone:
		select {
		case <-x.done:
		default:
			answered = false
		}
	case <-ctx.Done():
		r.cancel(x, endingOf(ctx), heard)
		return p.ended(x, x.why, !x.quiet), false
	}
	if !answered {
		return p.lost(x, r.half, false)
	}
	x.stderr = x.answerErr
	return x.answer, false
}

// cancel notifies the program that nobody waits for a call, and gives it the grace to
// answer. If it does not, the process takes no more calls, and ends when
// it has answered its others.
func (r *rpcCodec) cancel(x *exchange, why ending, heard int64) {
	p := r.p
	p.mu.Lock()
	x.why, x.quiet = why, r.heard == heard
	p.write(jsonrpc.AppendCancel(nil, x.id))
	p.mu.Unlock()
	grace := time.NewTimer(p.s.f.spec.Grace)
	defer grace.Stop()
	select {
	case <-x.done:
		return
	case <-p.gone:
		return
	case <-grace.C:
	}
	p.s.replace(p, blame(why))
	p.s.giveUp(p, x)
	select {
	case <-x.done:
	case <-p.gone:
	}
}

// receive reads the program's messages to the end of its output.
func (r *rpcCodec) receive() {
	p, f := r.p, r.p.s.f
	limit := maxAnswer
	if f.spec.MaxOutput > 0 {
		limit = int(min(f.spec.MaxOutput, maxAnswer)) + 64<<10 // and the rest of the message
	}
	in := bufio.NewReaderSize(p.replies, bufSize)
	for {
		line, err := readLine(in, limit)
		p.mu.Lock()
		r.heard++
		closed := p.in.closed
		if err != nil {
			r.half = line[:min(len(line), longestQuoted+1)]
		}
		p.mu.Unlock()
		switch {
		case errors.Is(err, errTooLong):
			res := fbusEnd(args.CodeOutputLimit, "the answer exceeds "+size(int64(limit)))
			if f.spec.MaxOutput > 0 {
				res = f.endedAs(outputLimit)
			}
			r.refuse(res, "a message longer than "+size(int64(limit)))
		case err != nil:
			if !closed {
				go p.awaitEnd() // ends with the process
			}
			return
		case r.message(bytes.TrimSpace(line)):
			continue
		}
		io.Copy(io.Discard, p.replies) // not trusted any more
		return
	}
}

// message takes one message of the program. False: the program is not trusted any
// more.
func (r *rpcCodec) message(line []byte) bool {
	p, f := r.p, r.p.s.f
	if line = args.WithoutBOM(line); len(line) == 0 {
		return true
	}
	m, err := jsonrpc.ParseMessage(line)
	if err == nil && m.Method != nil && (m.Result != nil || m.Error != nil) {
		err = errors.New("it is a request and an answer")
	}
	if err != nil {
		what := fmt.Sprintf("is not JSON-RPC: %v", err)
		r.refuse(malformed(what, line), quote(line)+", which "+what)
		return false
	}
	if m.Method != nil { // the program can call nothing from here
		if m.ID == nil && string(m.Method) == `"`+ProgressMethod+`"` {
			r.progress(m.Params)
			return true
		}
		what := "notification"
		if m.ID != nil {
			what = "request, refused"
			p.mu.Lock()
			p.write(append(jsonrpc.AppendAnswer(nil, m.ID, jsonrpc.Errorf(jsonrpc.CodeNoMethod, "nothing can be called from here"), nil, false), '\n'))
			p.mu.Unlock()
		}
		f.logf("%s: %s: %s", f.spec.Name, what, line[:min(len(line), longestLogged)])
		return true
	}

	id, ok := messageID(m.ID)
	p.mu.Lock()
	var x *exchange
	for _, held := range p.calls {
		if ok && held.id == id {
			x = held
		}
	}
	twice := ok && 0 < id && id <= p.next && (x == nil || x.settled)
	if x != nil {
		x.settled = true
	}
	p.mu.Unlock()
	switch {
	case twice:
		// The call is known, and has its answer. The others may still get theirs.
		f.logf("%s: replaced: it answered twice: %s", f.spec.Name, quote(line))
		p.s.replace(p, "it answered twice")
		p.s.giveUp(p, nil)
		return true
	case x == nil:
		r.refuse(malformed("has the id of no call", line), quote(line)+", which has the id of no call")
		return false
	}
	if err := r.answer(x, m); err != nil {
		x.answer = malformed(err.Error(), line)
	} else {
		p.answered.Store(true)
		p.s.backoff.succeeded()
	}
	close(x.done)
	return true
}

// refuse ends every call that the process holds, and the process: a message that
// belongs to no call may be meant for any.
func (r *rpcCodec) refuse(res Result, why string) {
	p := r.p
	if !p.answered.Load() {
		res.Hint = replyHint
		if p.s.greets.CompareAndSwap(false, true) {
			defer p.s.f.logf("hint: %s", strings.ReplaceAll(replyHint, "`reply-fd 3`", "--reply-fd 3"))
		}
	}
	p.s.replace(p, "it wrote "+why) // first, or a call that ends here makes room for another
	p.mu.Lock()
	n := len(p.calls)
	for _, x := range p.calls {
		if !x.settled {
			x.settled, x.answer = true, res
			close(x.done)
		}
	}
	p.mu.Unlock()
	if n == 0 {
		p.s.f.logf("%s: replaced: it wrote %s", p.s.f.spec.Name, why)
	}
	p.stop(term)
}

// answer reads a call's response. In JSON-RPC 1.0 the other one of result and error is
// null.
func (r *rpcCodec) answer(x *exchange, m *jsonrpc.Message) error {
	failed := m.Error != nil && string(m.Error) != "null"
	switch {
	case failed && m.Result != nil && string(m.Result) != "null":
		return errors.New("has a result and an error")
	case failed:
		return x.failed(m.Error)
	case m.Result == nil:
		return errors.New("has no result and no error")
	case !utf8.Valid(m.Result):
		return errors.New("is not UTF-8")
	}
	var out bytes.Buffer
	out.Grow(len(m.Result) + 1)
	if err := json.Compact(&out, m.Result); err != nil {
		return errors.New("is not JSON-RPC")
	}
	out.WriteByte('\n')
	f := r.p.s.f
	if limit := f.spec.MaxOutput; limit > 0 && int64(out.Len()) > limit {
		x.answer = f.endedAs(outputLimit)
		return nil
	}
	x.answer = Result{End: args.End{Source: args.FromProgram, Code: "exit"}, Output: out.Bytes()}
	return nil
}

// failed reads an error response: status 1, its message for people, its code for
// programs.
func (x *exchange) failed(doc []byte) error {
	var e struct {
		Code    *json.Number    `json:"code"`
		Message *string         `json:"message"`
		Data    json.RawMessage `json:"data"`
	}
	if json.Unmarshal(doc, &e) != nil || e.Code == nil || e.Message == nil {
		return errors.New("has an error without code and message")
	}
	code, err := e.Code.Int64()
	if err != nil {
		return errors.New("has an error whose code is not an integer")
	}
	text := *e.Message
	if e.Data != nil && string(e.Data) != "null" {
		var data bytes.Buffer
		if json.Compact(&data, e.Data) == nil {
			text += " " + data.String()
		}
	}
	x.answerErr = text + "\n"
	x.answer = Result{End: args.End{Source: args.FromProgram, Status: 1, Code: strconv.FormatInt(code, 10)}}
	if len(*e.Message) <= maxMessage {
		x.answer.Message = *e.Message
	}
	return nil
}

// messageID reads an id of ours. Some languages have only floating point.
func messageID(raw json.RawMessage) (uint64, bool) {
	if id, err := strconv.ParseUint(string(raw), 10, 64); err == nil {
		return id, true
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || f != math.Trunc(f) || f < 0 || f > 1<<53 {
		return 0, false
	}
	return uint64(f), true
}

func malformed(what string, line []byte) Result {
	return fbusEnd(args.CodeInternal, fmt.Sprintf("the program's answer %s: %s", what, quote(line)))
}

var errTooLong = errors.New("line too long")

// readLine reads a line without its end. With an error it returns what there was of
// one.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var long []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(long)+len(part) > limit {
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

// ProgressMethod is the notification by which a resident JSON-RPC program reports the progress of a
// call: params {"id":ID,"done":N,"total":N,"text":TEXT}.
const ProgressMethod = "$/progress"

// progress takes a notification of the program's progress.
func (r *rpcCodec) progress(params json.RawMessage) {
	var n struct {
		ID    json.RawMessage `json:"id"`
		Done  uint64          `json:"done"`
		Total uint64          `json:"total"`
		Text  string          `json:"text"`
	}
	err := json.Unmarshal(params, &n)
	id, ok := messageID(n.ID)
	if err != nil || !ok {
		r.p.s.f.logf("%s: %s: invalid params: %s", r.p.s.f.spec.Name, ProgressMethod, quote(params))
		return
	}
	var report func(done, total uint64, text string)
	r.p.mu.Lock()
	for _, held := range r.p.calls {
		if held.id == id && !held.settled {
			report = held.c.Progress
		}
	}
	r.p.mu.Unlock()
	if report != nil {
		report(n.Done, n.Total, n.Text)
	}
}

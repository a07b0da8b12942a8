package exec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"fbus/bus/args"
	"fbus/bus/jsonrpc"
)

// answer is a call's, and what its caller gets on stderr.
type answer struct {
	Result
	stderr string
}

// message takes one line of a program. False: the program is not to be trusted
// any more.
func (p *resident) message(line []byte) bool {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return true
	}
	m, err := jsonrpc.ParseMessage(line)
	switch {
	case err != nil || m.Method != nil && (m.Result != nil || m.Error != nil):
		p.refuse(malformed("is not JSON-RPC", line), quote(line)+", which is not JSON-RPC")
		return false
	case m.Method != nil:
		p.overheard(m, line)
		return true
	}
	id, ok := messageID(m.ID)
	p.mu.Lock()
	var h *holding
	for _, held := range p.calls {
		if ok && held.id == id {
			h = held
		}
	}
	again := ok && id <= p.next && (h == nil || h.got) && id > 0
	if h != nil && !again {
		h.got = true
	}
	p.mu.Unlock()
	switch {
	case again:
		// Whose it is is known, and that call has its answer. The others may
		// still get theirs.
		p.s.f.logf("%s: replaced: it answered twice: %s", p.s.f.spec.Name, quote(line))
		p.s.replace(p, "it answered twice")
		p.condemn(nil)
		return true
	case h == nil:
		p.refuse(malformed("has the id of no call", line), quote(line)+", which has the id of no call")
		return false
	}
	p.answer(h, m, line)
	return true
}

// overheard logs what a program says unasked, or asks. There is nothing here that it
// could call.
func (p *resident) overheard(m *jsonrpc.Message, line []byte) {
	what := "notification"
	if m.ID != nil {
		what = "request, refused"
		p.mu.Lock()
		p.write(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"nothing can be called from here"}}`+"\n", m.ID))
		p.mu.Unlock()
	}
	p.s.f.logf("%s: %s: %s", p.s.f.spec.Name, what, line[:min(len(line), longestLogged)])
}

// answer ends a call with its response.
func (p *resident) answer(h *holding, m *jsonrpc.Message, line []byte) {
	ans, err := p.s.f.answer(m)
	if err != nil {
		ans.Result = malformed(err.Error(), line)
	} else {
		p.answered.Store(true)
		p.s.trouble.over()
	}
	h.answer = ans
	close(h.done)
}

// answer reads a response. A null beside the other of the two is what JSON-RPC
// 1.0 puts there.
func (f *Function) answer(m *jsonrpc.Message) (ans answer, err error) {
	failed := m.Error != nil && string(m.Error) != "null"
	switch {
	case failed && m.Result != nil && string(m.Result) != "null":
		return ans, errors.New("has a result and an error")
	case failed:
		return errorAnswer(m.Error)
	case m.Result == nil:
		return ans, errors.New("has no result and no error")
	case !utf8.Valid(m.Result):
		return ans, errors.New("is not UTF-8")
	}
	var out bytes.Buffer
	out.Grow(len(m.Result) + 1)
	if err := json.Compact(&out, m.Result); err != nil {
		return ans, errors.New("is not JSON-RPC")
	}
	out.WriteByte('\n')
	if limit := f.spec.MaxOutput; limit > 0 && int64(out.Len()) > limit {
		ans.Result = f.endedAs(outputLimit)
		return ans, nil
	}
	ans.Result = Result{End: args.End{Source: args.FromProgram, Code: "exit"}, Output: out.Bytes()}
	return ans, nil
}

// longestMessage is how much of an error's text travels with the end of a call;
// a longer one is on stderr alone.
const longestMessage = 2 << 10

// errorAnswer is status 1: its message is for people, its code for programs.
func errorAnswer(doc []byte) (ans answer, err error) {
	var e struct {
		Code    *json.Number    `json:"code"`
		Message *string         `json:"message"`
		Data    json.RawMessage `json:"data"`
	}
	if json.Unmarshal(doc, &e) != nil || e.Code == nil || e.Message == nil {
		return ans, errors.New("has an error without code and message")
	}
	code, err := e.Code.Int64()
	if err != nil {
		return ans, errors.New("has an error whose code is no integer")
	}
	ans.stderr = *e.Message
	if e.Data != nil && string(e.Data) != "null" {
		var data bytes.Buffer
		if json.Compact(&data, e.Data) == nil {
			ans.stderr += " " + data.String()
		}
	}
	ans.stderr += "\n"
	ans.Result = Result{End: args.End{Source: args.FromProgram, Status: 1, Code: strconv.FormatInt(code, 10)}}
	if len(*e.Message) <= longestMessage {
		ans.Result.Message = *e.Message
	}
	return ans, nil
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

package exec

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
)

// ProgressMethod is the notification by which a resident JSON-RPC program reports the progress of a
// call: params {"id":ID,"done":N,"total":N,"text":TEXT}.
const ProgressMethod = "$/progress"

// progressLines takes the lines that a program writes about its progress. Of those that come at
// once it reports the last: only that is still true.
type progressLines struct {
	report func(done, total uint64, text string)
	part   []byte // a line that has no end yet
}

func (l *progressLines) Write(p []byte) (int, error) {
	lines, rest := []byte(nil), p
	if i := bytes.LastIndexByte(p, '\n'); i >= 0 {
		lines, rest = p[:i], p[i+1:]
		if j := bytes.LastIndexByte(lines, '\n'); j >= 0 {
			l.part, lines = l.part[:0], lines[j+1:]
		}
		l.keep(lines)
		l.flush()
	}
	l.keep(rest)
	return len(p), nil
}

func (l *progressLines) keep(p []byte) {
	l.part = append(l.part, p[:min(len(p), longestLogged-len(l.part))]...)
}

// flush reports the line that there is.
func (l *progressLines) flush() {
	line := strings.TrimSpace(string(l.part))
	if l.part = l.part[:0]; line == "" {
		return
	}
	l.report(parseProgress(line))
}

// parseProgress parses "DONE TOTAL [TEXT]" or "TEXT".
func parseProgress(line string) (done, total uint64, text string) {
	first, rest, _ := strings.Cut(line, " ")
	second, text, _ := strings.Cut(strings.TrimSpace(rest), " ")
	done, err := strconv.ParseUint(first, 10, 64)
	if err == nil {
		total, err = strconv.ParseUint(second, 10, 64)
	}
	if err != nil {
		return 0, 0, line
	}
	return done, total, strings.TrimSpace(text)
}

// progressTo returns where a program writes lines about the progress of a call.
func progressTo(c *Call) *progressLines {
	if c.Progress == nil {
		return &progressLines{report: func(uint64, uint64, string) {}}
	}
	return &progressLines{report: c.Progress}
}

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

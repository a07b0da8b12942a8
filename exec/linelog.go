package exec

import "bytes"

// longestLogged is where a line of the log is cut.
const longestLogged = 4 << 10

// longestQuoted is how much of a program's own words goes into a message.
const longestQuoted = 80

// lineLog puts what a program says where no call hears it into the worker's
// log, a line at a time, and remembers the last.
type lineLog struct {
	f    *Function
	part []byte // a line that has no end yet
	last string
}

func (l *lineLog) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		if room := longestLogged - len(l.part); len(line) > room {
			line, rest, ended = line[:room], p[room:], true
		}
		l.part, p = append(l.part, line...), rest
		if ended {
			l.flush()
		}
	}
	return n, nil
}

// flush ends the line that was begun.
func (l *lineLog) flush() {
	line := bytes.TrimSuffix(l.part, []byte("\r"))
	if len(line) > 0 {
		l.remember(line)
		l.f.logf("%s: %s", l.f.spec.Name, line)
	}
	l.part = l.part[:0]
}

// remember looks for the last line in what a call heard.
func (l *lineLog) remember(said []byte) {
	said = bytes.TrimSpace(said)
	if i := bytes.LastIndexByte(said, '\n'); i >= 0 {
		said = said[i+1:]
	}
	if len(said) > 0 {
		l.last = string(said[:min(len(said), longestQuoted)])
	}
}

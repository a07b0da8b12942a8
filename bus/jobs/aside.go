package jobs

import "strings"

// A line whose first job would do nothing at the node but wait is set aside: what
// stands there takes memory, and one of the calls that a connection may have open.
//
// One that nobody serves is looked at again when somebody offers its function. Of
// those that are served, each function has one that stands at the node, whatever the
// others do. All others share this room, and follow as it becomes free.
const (
	maxStanding      = 1000
	maxStandingBytes = 8 << 20 // of arguments and input that go with a call
)

// standing is what waits at the node for a slot. The manager's mu protects it.
type standing struct {
	of    map[string]int // function → attempts
	n     int
	bytes int64
}

func (s *standing) full(more int64) bool {
	return s.n >= maxStanding || s.bytes+more > maxStandingBytes
}

// lineSets are lines by their function. The manager's mu protects them.
type lineSets map[string]map[*line]bool

func (s lineSets) add(l *line) {
	f := l.function()
	if s[f] == nil {
		s[f] = map[*line]bool{}
	}
	s[f][l] = true
}

func (s lineSets) remove(l *line) {
	f := l.function()
	if delete(s[f], l); len(s[f]) == 0 {
		delete(s, f)
	}
}

// any is one of a function's lines; nil: there is none.
func (s lineSets) any(function string) *line {
	for l := range s[function] {
		return l
	}
	return nil
}

// parts are what a line waits for: a function, on workers of a glob.
func (l *line) parts() (function, on string) {
	function, on, _ = strings.Cut(l.key, "\x00")
	return function, on
}

func (l *line) function() string {
	function, _ := l.parts()
	return function
}

// setAside keeps a line from being fed until it is woken. m.mu is held.
func (m *Manager) setAside(l *line, among lineSets) {
	if m.lines[l.key] == l && l.aside == nil && l.first == nil {
		l.aside = among
		among.add(l)
		m.tidy(l)
	}
}

// rouse feeds a line that was set aside. m.mu is held.
func (m *Manager) rouse(l *line) {
	l.aside.remove(l)
	l.aside = nil
	m.feed(l)
}

// tidy forgets a line that was set aside and has no jobs any more. m.mu is held.
func (m *Manager) tidy(l *line) {
	if l.aside != nil && l.all && len(l.window) == 0 {
		l.aside.remove(l)
		delete(m.lines, l.key)
	}
}

// forsaken reports that nobody serves a line, which was set aside then; give is what
// its user has to do first, with m.mu held, and may say that it is not to be.
func (m *Manager) forsaken(l *line, give func() bool) bool {
	for {
		seen := m.appeared.Load() // first: what is offered from now on is not missed
		if m.host.Offered(l.parts()) {
			return false
		}
		m.mu.Lock()
		if m.appeared.Load() == seen {
			defer m.mu.Unlock()
			if !give() {
				return false
			}
			m.setAside(l, m.absent)
			return true
		}
		m.mu.Unlock()
	}
}

// Appeared is told by the node that somebody offers a function who did not. The
// node's lock is held.
func (m *Manager) Appeared(function string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.appeared.Add(1)
	for l := range m.absent[function] {
		m.rouse(l)
	}
}

// stand reports whether an attempt may wait at the node, with so many bytes. If not
// it has left, and its line was set aside.
func (a *attempt) stand(bytes int64) bool {
	m, f := a.m, a.line.function()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.standing.of[f] > 0 && m.standing.full(bytes) && a.ctx.Err() == nil {
		a.vacate(true)
		m.setAside(a.line, m.crowded)
		return false
	}
	a.stands, a.bytes = true, bytes
	m.standing.of[f]++
	m.standing.n++
	m.standing.bytes += bytes
	return true
}

// stood says that an attempt does not wait at the node any more. m.mu is held.
func (a *attempt) stood() {
	if !a.stands {
		return
	}
	m, f := a.m, a.line.function()
	a.stands = false
	m.standing.n--
	m.standing.bytes -= a.bytes
	if m.standing.of[f]--; m.standing.of[f] == 0 {
		delete(m.standing.of, f)
	}
}

// admit lets lines follow that had no room to stand at the node, after one of that
// function has left it, or has not come to stand there after all. m.mu is held.
func (m *Manager) admit(function string) {
	if l := m.crowded.any(function); l != nil && m.standing.of[function] == 0 {
		m.rouse(l)
	}
	if m.standing.full(0) {
		return
	}
	for f := range m.crowded {
		m.rouse(m.crowded.any(f))
		return
	}
}

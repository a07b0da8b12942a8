package jobs

import (
	"maps"
	"strings"
)

// lack is why jobs of a function wait for room: the output of one could not be kept.
type lack struct {
	why   error
	until int64 // when that one runs again: the store's time
	want  int64 // bytes that the output takes on the disk, or more than it had; 0: the bounds of the store are the reason
	left  int64 // bytes that the disk had then for output; 0: not known yet
	alone bool  // there is more room now, but not much: one runs at a time
}

const unkeptMessage = "its output could not be kept: "

// unkeptTries counts the last attempts in a row whose output could not be kept.
func unkeptTries(j *Job) (n int) {
	for n < len(j.Tries) && strings.HasPrefix(j.Tries[len(j.Tries)-1-n].Message, unkeptMessage) {
		n++
	}
	return n
}

// Lacked returns why there was no room for the output of a job's last attempt, "" if there was.
func Lacked(j *Job) string {
	if unkeptTries(j) == 0 {
		return ""
	}
	return strings.TrimPrefix(j.Tries[len(j.Tries)-1].Message, unkeptMessage)
}

// Blocked returns why the store lets no job of a function run now, nil if it does.
func (m *Manager) Blocked(function string) error {
	if err := m.store.Unwritable(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if l, ok := m.lacks[function]; ok && (l.want > 0 || m.store.Now() < l.until) {
		return l.why
	}
	return nil
}

// Overdue reports whether the time has come of a job that is still delayed.
func (m *Manager) Overdue(j *Job) bool { return j.State == Delayed && j.Due <= m.store.Now() }

// relieve has jobs run again for which there is room now: one at a time, until there is as much
// room as for a post. It reports whether some may wait.
func (m *Manager) relieve() (others bool) {
	m.mu.Lock()
	lacks := maps.Clone(m.lacks)
	m.mu.Unlock()
	for function, l := range lacks {
		next := l
		left, share := m.store.OutputRoom()
		switch {
		case l.want > 0 && left >= l.want+share, l.want == 0 && l.until < m.store.Now():
			next = lack{}
		case l.want == 0 || l.alone:
		case left >= l.want || l.left != 0 && left >= l.left+share:
			next.alone = true
		case l.left == 0:
			next.left = left
		}
		others = others || next.want > 0
		m.mu.Lock()
		if m.lacks[function] != l { // it has changed
			next = m.lacks[function]
		}
		if m.lacks[function] = next; next.why == nil {
			delete(m.lacks, function)
		}
		m.mu.Unlock()
		m.wake(function)
	}
	return others
}

// lacksRoom reports whether no job of a function may be taken now. m.mu is held.
func (m *Manager) lacksRoom(function string) bool {
	l := m.lacks[function]
	for _, t := range m.active {
		if l.alone && t.Function == function {
			return true
		}
	}
	return l.want > 0 && !l.alone
}

// tryNext has the next job taken of a function whose jobs run one at a time.
func (m *Manager) tryNext(function string) {
	m.mu.Lock()
	alone := m.lacks[function].alone
	m.mu.Unlock()
	if alone {
		m.wake(function)
	}
}

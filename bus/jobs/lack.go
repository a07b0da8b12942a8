package jobs

import (
	"errors"
	"maps"
	"strings"

	"fbus/bus/jobs/store"
)

// lack is why jobs of a function wait: the output of some could not be kept.
type lack struct {
	why error
	ids map[ID]bool // those that have not ended; they run one at a time
	// blocked: posts are refused too, or no output can be written. No job of the function runs, since
	// each would run for nothing.
	blocked bool
}

const unkeptMessage = "its output could not be kept: "

// fullTries counts the last attempts in a row for whose output there was no room. Those that found the
// store unwritable do not count: that is not the job's fault.
func fullTries(j *Job) (n int) {
	for n < len(j.Tries) && strings.HasPrefix(j.Tries[len(j.Tries)-1-n].Message, unkeptMessage+store.FullMessage) {
		n++
	}
	return n
}

// Lacked returns why the output of a job's last attempt could not be kept, "" if it was.
func Lacked(j *Job) string {
	if len(j.Tries) == 0 {
		return ""
	}
	if why, ok := strings.CutPrefix(j.Tries[len(j.Tries)-1].Message, unkeptMessage); ok {
		return why
	}
	return ""
}

// Blocked returns why the store lets no job of a function run now, nil if it does.
func (m *Manager) Blocked(function string) error {
	if err := m.store.Unwritable(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.lacks[function]; l != nil && (l.blocked || !errors.As(l.why, new(*FullError))) {
		return l.why
	}
	return nil
}

// Overdue reports whether the time has come of a job that is still delayed.
func (m *Manager) Overdue(j *Job) bool { return j.State == Delayed && j.Due <= m.store.Now() }

// blocks reports whether jobs would still run for nothing that could not keep their output for that
// reason.
func (m *Manager) blocks(why error) bool {
	if errors.As(why, new(*FullError)) {
		return m.store.HasRoom() != nil
	}
	return m.store.Spool.Writable() != nil
}

// lacked notes that the output of a job could not be kept. The job runs again.
func (m *Manager) lacked(function string, id ID, why error) {
	blocked := m.blocks(why)
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lacks[function]
	if l == nil {
		l = &lack{ids: map[ID]bool{}}
		m.lacks[function] = l
	}
	l.why, l.blocked, l.ids[id] = why, blocked, true
}

// relieve lets jobs run again for whose output there may be room now. It reports whether some may
// wait.
func (m *Manager) relieve() (others bool) {
	m.mu.Lock()
	lacks := maps.Clone(m.lacks)
	m.mu.Unlock()
	for function, l := range lacks {
		m.mu.Lock()
		why, was := l.why, l.blocked
		m.mu.Unlock()
		blocked := m.blocks(why)
		m.mu.Lock()
		if l.why == why {
			l.blocked = blocked
		}
		m.mu.Unlock()
		if was && !blocked {
			m.wake(function)
		}
	}
	return len(lacks) > 0
}

// forgive forgets what a job that has ended has lacked. m.mu is held.
func (m *Manager) forgive(id ID) {
	for function, l := range m.lacks {
		if delete(l.ids, id); len(l.ids) == 0 {
			delete(m.lacks, function)
			m.runs.Go(func() { m.wake(function) }) // not here: m.mu is held
		}
	}
}

// skip returns jobs that must not be taken besides the refused ones, and whether none may be. m.mu is
// held.
func (m *Manager) skip(function string, refused map[ID]bool) (skipped map[ID]bool, all bool) {
	l := m.lacks[function]
	if l == nil {
		return refused, false
	}
	for id := range l.ids {
		if m.active[id] != nil {
			skipped = maps.Clone(refused)
			maps.Copy(skipped, l.ids)
			return skipped, l.blocked
		}
	}
	return refused, l.blocked
}

// tryNext has another job taken that could not keep its output, once one is over.
func (m *Manager) tryNext(t *Taken) {
	m.mu.Lock()
	l := m.lacks[t.Function]
	more := l != nil && l.ids[t.ID] && len(l.ids) > 1
	m.mu.Unlock()
	if more {
		m.wake(t.Function)
	}
}

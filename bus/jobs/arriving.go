package jobs

import (
	"bytes"
	"slices"
)

// arriving are the ids of posts that are under way. A job is not handed over before
// those that are older: of some posts that come at once a younger one may be on disk
// first. The manager's mu protects it.
type arriving struct {
	ids   []ID               // in their order
	over  map[ID]struct{}    // of those, but not the first
	lines map[*line]struct{} // whose first jobs wait for that
	least ID                 // the oldest of those jobs
}

// Arrives makes the id of a post that comes now. It is greater than all before it: of several
// posts that are under way at once the ids decide which is the older job. Settled is to
// be told of it soon.
func (m *Manager) Arrives() ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := m.store.nextID()
	m.arriving.ids = append(m.arriving.ids, id)
	return id
}

// Settled is told that a post is under way no more, or is to be waited for by nobody. It
// may be told again.
func (m *Manager) Settled(id ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := &m.arriving
	i, ok := slices.BinarySearchFunc(a.ids, id, compareIDs)
	switch {
	case !ok:
		return
	case i > 0:
		if a.over == nil {
			a.over = map[ID]struct{}{}
		}
		a.over[id] = struct{}{}
		return
	}
	a.ids = a.ids[1:]
	for len(a.ids) > 0 {
		if _, over := a.over[a.ids[0]]; !over {
			break
		}
		delete(a.over, a.ids[0])
		a.ids = a.ids[1:]
	}
	if len(a.ids) == 0 {
		a.ids = nil
	}
	if len(a.lines) == 0 || a.before(a.least) {
		return
	}
	lines := a.lines
	a.lines = nil
	for l := range lines {
		if m.lines[l.key] == l {
			m.feed(l)
		}
	}
}

func compareIDs(a, b ID) int { return bytes.Compare(a[:], b[:]) }

// before reports whether a post is under way that is older than a job.
func (a *arriving) before(id ID) bool { return len(a.ids) > 0 && compareIDs(a.ids[0], id) < 0 }

// holds reports whether a line's first job is to wait for older ones.
func (a *arriving) holds(l *line) bool {
	id := l.window[0].id
	if !a.before(id) {
		return false
	}
	if len(a.lines) == 0 || compareIDs(id, a.least) < 0 {
		a.least = id
	}
	if a.lines == nil {
		a.lines = map[*line]struct{}{}
	}
	a.lines[l] = struct{}{}
	return true
}

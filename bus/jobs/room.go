package jobs

import "time"

// A job whose output found no room under --max-spool is not run again before there is
// as much as it has wanted: its work is not to be done for nothing once more. What it was
// sent goes when it is done, and counts as room: otherwise a store that is full of what
// is to be done would stay so.

// roomPause is how soon it is looked again whether there is room, at least.
const roomPause = 2 * time.Second

// needsRoom notes what a job's output came to; false: there can never be so much room.
func (m *Manager) needsRoom(id ID, size int64) bool {
	if size > m.store.spool.max {
		return false
	}
	m.mu.Lock()
	m.needs[id] = size
	m.mu.Unlock()
	if m.store.spool.noteFailure("--max-spool") {
		m.warn("job %s waits for room for its output: %d bytes of input and output are the limit (--max-spool)", id, m.store.spool.max)
	}
	return true
}

// promise keeps the room for a job that is known to need it, until release is called;
// false: there is not enough.
func (m *Manager) promise(id ID, sent int64) (release func(), ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	need := m.needs[id]
	if need > 0 && m.store.spool.used.Load()+m.promised+need > m.store.spool.max+sent {
		return nil, false
	}
	m.promised += need
	return func() {
		m.mu.Lock()
		m.promised -= need
		m.mu.Unlock()
	}, true
}

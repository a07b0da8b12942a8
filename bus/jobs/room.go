package jobs

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"fbus/bus/jobs/store"
)

// Results that are older than oldAge are deleted, the oldest first, when their room is
// needed.
const oldAge = 24 * time.Hour

const (
	maxFound     = 10_000 // old results that one reading of the store finds
	maxOldLists  = 100
	evictedBytes = 1 << 20 // that are deleted at once for a full disk
	maxEvicted   = 500     // results, at once
)

// oldResults finds old results.
type oldResults struct {
	mu    sync.Mutex          // protects lists; held while the store is read
	lists map[string]*oldList // by the poster's key; "": of all
}

// oldList is the old results of a poster, the oldest first.
type oldList struct {
	found []oldResult
	more  bool      // there are more than these
	next  time.Time // no other result is old before
}

type oldResult struct {
	id ID
	store.Ended
}

// list returns the old results of a poster, or of all. m.old.mu is held.
func (m *Manager) list(who string) *oldList {
	l, now := m.old.lists[who], m.store.Clock.Wall()
	if l != nil && (len(l.found) > 0 || !l.more && now.Before(l.next)) {
		return l
	}
	l = &oldList{next: now.Add(oldAge)}
	shorten := func() {
		slices.SortFunc(l.found, func(a, b oldResult) int { return cmp.Compare(a.Finished, b.Finished) })
		if len(l.found) > maxFound {
			l.found, l.more = l.found[:maxFound], true
		}
	}
	err := m.scan(m.ctx, &Filter{Owner: Owner{Key: who}}, ID{}, false, func(id ID, record []byte) bool {
		e, ok := store.PeekEnded(record)
		switch old := time.UnixMilli(e.Finished).Add(oldAge); {
		case !ok || e.KeyUntil > m.store.Now():
		case old.After(now):
			l.next = time.UnixMilli(min(l.next.UnixMilli(), old.UnixMilli()))
		case l.more && e.Finished >= l.found[maxFound-1].Finished: // as many are older
		default:
			if l.found = append(l.found, oldResult{id, e}); len(l.found) >= 2*maxFound {
				shorten()
			}
		}
		return true
	})
	shorten()
	if err == nil {
		if m.old.lists == nil || len(m.old.lists) >= maxOldLists {
			m.old.lists = map[string]*oldList{}
		}
		m.old.lists[who] = l
	}
	return l
}

// takeOld takes the oldest results off the list of a poster: one, or as many as have so many
// bytes.
func (m *Manager) takeOld(who string, bytes int64) (ids []ID) {
	m.old.mu.Lock()
	defer m.old.mu.Unlock()
	l := m.list(who)
	for len(l.found) > 0 && len(ids) < maxEvicted && (len(ids) == 0 || bytes > 0) {
		r := l.found[0]
		l.found = l.found[1:]
		ids = append(ids, r.id)
		bytes -= r.Bytes
	}
	return ids
}

// hasOld reports whether there are results that can be deleted.
func (m *Manager) hasOld() bool {
	m.old.mu.Lock()
	defer m.old.mu.Unlock()
	return len(m.list("").found) > 0
}

// evictOldest deletes the oldest results of a poster, or of all with "", and reports whether
// there was one.
func (m *Manager) evictOldest(who string, bytes int64) bool {
	for {
		ids := m.takeOld(who, bytes)
		if len(ids) == 0 {
			return false
		}
		now, wall := m.store.Now(), m.store.Clock.Wall()
		n, err := m.remove(m.ctx, ids, func(j *Job) bool { // it may have changed
			return (j.State == Done || j.State == Cancelled) && j.KeyUntil <= now && wall.Sub(time.UnixMilli(j.Finished)) >= oldAge
		})
		if n > 0 || err != nil {
			return n > 0
		}
	}
}

// evict deletes old results, since there was no room, and reports whether it has deleted
// any. For the share of a poster these are its own, unless others leave it less than its
// share.
func (m *Manager) evict(err error) bool {
	var full *FullError
	switch {
	case !errors.As(err, &full) || full.Live || errors.As(err, new(*store.UncertainError)):
		return false
	case full.Err != nil:
		return m.evictForDisk()
	case full.Of != "" && m.evictOldest(full.Of, 0):
		return true
	}
	return (full.Of == "" || full.Left) && m.evictOldest("", 0)
}

// evictForDisk is evict for a full disk.
func (m *Manager) evictForDisk() bool {
	was := m.store.Unwritable()
	m.clearing.Lock()
	defer m.clearing.Unlock()
	if was != nil && m.store.Unwritable() == nil {
		return true // somebody else has made room
	}
	ok := m.evictOldest("", evictedBytes)
	m.store.Apply(store.Op{Run: func(*store.Tx) error { return nil }}) // then the store knows whether it can be written
	return ok
}

// withRoom repeats a change while there is no room for it and old results can be deleted.
func (m *Manager) withRoom(change func() error) error {
	for {
		if err := change(); err == nil || !m.evict(err) {
			return err
		}
	}
}

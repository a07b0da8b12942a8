package jobs

import (
	"encoding/json"
	"time"
)

// maxTick is how many jobs one look at the clock changes in one commit.
const maxTick = 2000

// due puts jobs into their lines whose time has come, and says when to look again.
func (m *Manager) due() (next time.Duration) {
	var ids []ID
	next = maxPause
	m.idle.Store(true) // before it looks: whoever adds something wakes it
	if m.nothingTimed() {
		return idlePause
	}
	m.idle.Store(false)
	now := m.store.time.now()
	err := m.store.view(func(t *tx) error {
		c := t.Bucket([]byte(bucketDue)).Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if at := keyTime(k); at > now || len(ids) >= maxTick {
				next = min(maxPause, max(0, time.Duration(at-now)))
				break
			}
			ids = append(ids, keyID(k))
		}
		return nil
	})
	if err != nil || len(ids) == 0 {
		return next
	}
	var ready []*Job
	err = m.store.apply(false, func(t *tx) error {
		ready = nil
		for _, id := range ids {
			j, err := t.job(id)
			if err != nil || j == nil || j.State != Delayed || j.Due > m.store.time.now() {
				continue // damaged: it is told of when somebody looks
			}
			if again := m.early(j); again > 0 {
				err = t.move(j, func() { j.Due = again })
			} else {
				err = t.move(j, func() { j.State, j.Due = Queued, 0 })
				ready = append(ready, j)
			}
			if err != nil {
				return wrap(err)
			}
		}
		return nil
	})
	if err != nil {
		return maxPause
	}
	for _, j := range ready {
		m.ready(j)
		m.changed(j.ID, false)
	}
	return next
}

// nothingTimed reports that no job waits for its time, and no result for its end.
func (m *Manager) nothingTimed() (none bool) {
	m.store.view(func(t *tx) error {
		due, _ := t.Bucket([]byte(bucketDue)).Cursor().First()
		end, _ := t.Bucket([]byte(bucketEnd)).Cursor().First()
		none = due == nil && end == nil
		return nil
	})
	return none
}

// early is when a job is due that is bound to the date, if the date is not there
// yet: the clock was set back.
func (m *Manager) early(j *Job) int64 {
	if j.At == "" || j.Attempts > 0 || j.Laters > 0 {
		return 0
	}
	return j.Options.due(m.store.time)
}

// redate finds the times anew of jobs that are bound to the date, after that was
// set.
func (m *Manager) redate() {
	var ids []ID
	m.store.view(func(t *tx) error {
		c := t.Bucket([]byte(bucketDue)).Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if j, err := t.job(keyID(k)); err == nil && j != nil && j.At != "" && j.Attempts == 0 && j.Laters == 0 {
				ids = append(ids, j.ID)
			}
		}
		return nil
	})
	if len(ids) == 0 {
		return
	}
	m.store.apply(false, func(t *tx) error {
		for _, id := range ids {
			j, err := t.job(id)
			if err != nil || j == nil || j.State != Delayed {
				continue
			}
			due := max(j.Options.due(m.store.time), 1) // 1: long ago
			if err := t.move(j, func() { j.Due = due }); err != nil {
				return wrap(err)
			}
		}
		return nil
	})
	m.poke()
}

// expire deletes results whose time is over.
func (m *Manager) expire() {
	var ids []ID
	now := m.store.time.now()
	err := m.store.view(func(t *tx) error {
		c := t.Bucket([]byte(bucketEnd)).Cursor()
		for k, _ := c.First(); k != nil && keyTime(k) <= now && len(ids) < maxTick; k, _ = c.Next() {
			ids = append(ids, keyID(k))
		}
		return nil
	})
	if err != nil || len(ids) == 0 {
		return
	}
	m.remove(ids, func(j *Job) bool { return j.State.Finished() && j.State != Dead && j.Expires <= now })
	if len(ids) == maxTick {
		m.poke()
	}
}

// remove deletes those of some jobs that are as they should be, and counts them.
func (m *Manager) remove(ids []ID, fits func(j *Job) bool) (int, error) {
	var gone []*Job
	err := m.store.apply(false, func(t *tx) error {
		gone = nil
		for _, id := range ids {
			j, err := t.job(id)
			if err != nil || j == nil || !fits(j) {
				continue
			}
			if err := t.remove(j); err != nil {
				return wrap(err)
			}
			gone = append(gone, j)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	m.store.jobs.Add(-int64(len(gone)))
	for _, j := range gone {
		m.mu.Lock()
		if a := m.active[j.ID]; a != nil { // it stands at the node for its turn
			a.cancel(errCancelledJob)
		}
		m.mu.Unlock()
		m.store.spool.release(j.size())
		m.store.spool.remove(j.files()...)
		m.changed(j.ID, true)
	}
	return len(gone), nil
}

// interrupted puts jobs back into their lines that were running when the node
// ended. The attempt counts as begun, not against the retries: it is no fault of
// theirs.
func (m *Manager) interrupted() error {
	return m.store.apply(true, func(t *tx) error {
		var ids []ID
		c := t.Bucket([]byte(bucketRun)).Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			ids = append(ids, keyID(k))
		}
		for _, id := range ids {
			data, _ := t.get(bucketRun, id[:])
			if err := t.delete(bucketRun, id[:]); err != nil {
				return wrap(err)
			}
			j, err := t.job(id)
			if err != nil || j == nil || j.State != Queued {
				continue
			}
			var try Try
			if json.Unmarshal(data, &try) != nil {
				try = Try{Attempt: j.Attempts + 1}
			}
			if try.Attempt <= j.Attempts {
				continue
			}
			try.End = End{Source: "fbus", Status: 255, Code: "node_lost", Message: "the node ended before it had"}
			j.Attempts = try.Attempt
			j.note(try)
			if err := t.put(bucketJobs, j.ID[:], j.encode()); err != nil {
				return wrap(err)
			}
		}
		return nil
	})
}

package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"time"

	"fbus/bus/args"
	"fbus/bus/jobs/store"
)

// maxTick bounds how many jobs schedule changes in one commit.
const maxTick = 2000

// timed returns the delayed jobs whose time has come, the results that have expired, and
// when to look again.
func (m *Manager) timed() (due, expired []ID, next time.Duration) {
	m.idle.Store(true) // before it looks: a job that is added then wakes it
	next = idlePause
	now := m.store.Now()
	err := m.store.View(func(t *store.Tx) error {
		for bucket, ids := range map[string]*[]ID{store.BucketDue: &due, store.BucketEnd: &expired} {
			c := t.Bucket([]byte(bucket)).Cursor()
			for k, _ := c.First(); k != nil; k, _ = c.Next() {
				next = min(next, maxPause)
				if wait := time.Duration(store.KeyTime(k) - now); wait > 0 || len(*ids) == maxTick {
					if bucket == store.BucketDue || wait <= 0 { // results may go a little later
						next = min(next, max(0, wait))
					}
					break
				}
				*ids = append(*ids, store.KeyID(k))
			}
		}
		return nil
	})
	if err != nil {
		next = maxPause
	}
	if next < idlePause {
		m.idle.Store(false)
	}
	return due, expired, next
}

// queue queues delayed jobs whose time has come.
func (m *Manager) queue(ids []ID) error {
	if len(ids) == 0 {
		return nil
	}
	var ready []*Job
	err := m.store.Apply(store.Op{Run: func(t *store.Tx) error {
		ready = nil
		return eachDelayed(t, ids, func(j *Job) {
			if j.Due > m.store.Now() {
				return
			}
			if j.Due = 0; dated(j) { // the clock may have been set back
				j.Due = j.Options.DueAt(m.store.Time())
			}
			if j.Due == 0 {
				j.State = Queued
				ready = append(ready, j)
			}
		})
	}})
	if err == nil {
		for _, j := range ready {
			m.ready(j)
		}
	}
	return err
}

// eachDelayed changes those of some jobs that are delayed. A damaged one is reported when
// it is read.
func eachDelayed(t *store.Tx, ids []ID, change func(j *Job)) error {
	for _, id := range ids {
		if j, err := t.Job(id); err == nil && j != nil && j.State == Delayed {
			if err := t.Move(j, func() { change(j) }); err != nil {
				return store.Wrap(err)
			}
		}
	}
	return nil
}

// dated reports whether a job is delayed until a date.
func dated(j *Job) bool { return j.At != "" && j.Attempts == 0 && j.Laters == 0 }

// redate computes the times of jobs with a date again, after the clock was set.
func (m *Manager) redate() {
	var ids []ID
	m.store.View(func(t *store.Tx) error {
		c := t.Bucket([]byte(store.BucketDue)).Cursor()
		for k, _ := c.First(); k != nil; k, _ = c.Next() {
			if j, err := t.Job(store.KeyID(k)); err == nil && j != nil && dated(j) {
				ids = append(ids, j.ID)
			}
		}
		return nil
	})
	if len(ids) == 0 {
		return
	}
	m.store.Apply(store.Op{Run: func(t *store.Tx) error {
		return eachDelayed(t, ids, func(j *Job) { j.Due = max(j.Options.DueAt(m.store.Time()), 1) }) // 1: long ago
	}})
	m.poke()
}

func (m *Manager) expire(ids []ID) error {
	now := m.store.Now()
	_, err := m.remove(m.ctx, ids, func(j *Job) bool { return j.State.Finished() && j.State != Dead && j.Expires <= now })
	return err
}

// remove deletes those of some jobs that fit, until ctx ends, and counts them. On a full
// disk it deletes as many at a time as the reserve has room for.
func (m *Manager) remove(ctx context.Context, ids []ID, fits func(j *Job) bool) (total int, err error) {
	for size := len(ids); len(ids) > 0; {
		portion := ids[:min(size, len(ids), pageSize)]
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := m.removeAtOnce(portion, fits)
		var full *FullError
		switch {
		case errors.As(err, &full) && size > 1:
			size = max(1, size/8)
			continue
		case err != nil:
			return total, err
		}
		total += n
		ids = ids[len(portion):]
		size *= 2 // they have made room
	}
	return total, nil
}

// removeAtOnce is remove in one commit.
func (m *Manager) removeAtOnce(ids []ID, fits func(j *Job) bool) (int, error) {
	gone := map[ID]*Job{} // also by a commit that failed, and may be on disk all the same
	result := make(chan error, 1)
	m.store.Submit(&store.Op{Frees: true, Done: func(err error) { m.removed(gone, err); result <- err }, Run: func(t *store.Tx) error {
		for _, id := range ids {
			switch j, err := t.Job(id); {
			case err == nil && j == nil:
				m.mu.Lock()
				if j = m.doubt[id]; j != nil {
					gone[id] = j
				}
				m.mu.Unlock()
			case err != nil || !fits(j):
				delete(gone, id)
			default:
				if err := t.Remove(j); err != nil {
					return store.Wrap(err)
				}
				gone[id] = j
			}
		}
		return nil
	}})
	if err := <-result; err != nil {
		return 0, err
	}
	return len(gone), nil
}

// removed takes the result of a deletion. The writer calls it, as it calls resume, so each
// job is counted once.
func (m *Manager) removed(gone map[ID]*Job, err error) {
	m.mu.Lock()
	for id, j := range gone {
		if delete(m.doubt, id); err != nil {
			m.doubt[id] = j
		}
	}
	m.mu.Unlock()
	if err == nil {
		for _, j := range gone {
			m.gone(j)
		}
	}
}

// gone updates counters and files after a job was deleted.
func (m *Manager) gone(j *Job) {
	m.store.Shares.Change(j, nil)
	m.mu.Lock()
	m.unready(j)
	a := m.active[j.ID]
	m.mu.Unlock()
	if a != nil { // it was taken just before
		m.unwant(errCancelledJob, a)
	}
	m.store.Shares.AddBytes(j.Poster.Key(), -j.Bytes())
	m.store.Spool.Remove(j.Files()...)
	m.report(j.ID)
	m.finished(j.ID)
	m.settle(j.BatchKey())
}

// interrupted notes the attempts that ran when the last node ended. They do not count
// against the retries. Jobs that may run at most once are dead: their ends go to ended.
func (m *Manager) interrupted(t *store.Tx, ended map[ID]*ending) error {
	var ids []ID
	c := t.Bucket([]byte(store.BucketRun)).Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		ids = append(ids, store.KeyID(k))
	}
	for _, id := range ids {
		data, _ := t.Get(store.BucketRun, id[:])
		if err := t.Delete(store.BucketRun, id[:]); err != nil {
			return store.Wrap(err)
		}
		j, err := t.Job(id)
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
		try.End = End{Source: "fbus", Status: 255, Code: args.CodeNodeLost, Message: "the node ended before the job did"}
		if j.AtMostOnce {
			if ended[id] == nil {
				ended[id] = &ending{t: &Taken{m: m, ID: id}, o: &outcome{end: try.End, started: true, lost: true}, try: try}
			}
			if err := ended[id].write(t); err != nil {
				return err
			}
			continue
		}
		j.Attempts = try.Attempt
		j.Note(try)
		if err := t.Put(store.BucketJobs, j.ID[:], j.Encode()); err != nil {
			return store.Wrap(err)
		}
	}
	return nil
}

// DefaultBackoff is the pause before the second attempt, maxBackoff the longest one that
// grows by itself.
const (
	DefaultBackoff = time.Second
	maxBackoff     = time.Hour
)

// backoff is the pause before the n-th further attempt: twice as long each time, less
// up to half of it at random, so that jobs that have failed together do not come back
// together.
func backoff(j *Job, n int) time.Duration {
	pause := DefaultBackoff
	if j.Backoff > 0 {
		pause = store.Seconds(j.Backoff)
	}
	for ; n > 1 && pause < maxBackoff; n-- {
		pause *= 2
	}
	pause = max(min(pause, max(maxBackoff, store.Seconds(j.Backoff))), time.Millisecond)
	return pause - rand.N(pause/2+1)
}

// lossPause is the pause before a job runs again that has lost its worker. It is no failure
// of the job, so a long --backoff does not apply.
func lossPause(j *Job) time.Duration {
	short := *j
	short.Backoff = min(cmp.Or(j.Backoff, DefaultBackoff.Seconds()), DefaultBackoff.Seconds())
	return backoff(&short, j.Lost)
}

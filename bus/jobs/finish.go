package jobs

import (
	"bytes"
	"errors"
	"time"
)

// finish writes the end of an attempt, and posts what follows from it in the same
// commit. Until that is on disk nobody is told.
func (a *attempt) finish(o outcome) {
	m := a.m
	m.mu.Lock()
	a.kept = true
	try := a.try()
	m.mu.Unlock()
	if o.out != nil && !m.keepOutput(a, &o) {
		o.end = End{Source: "fbus", Status: 70, Code: "internal", Message: "its output could not be kept"}
		o.never, o.later = false, false
	}
	o.started = o.started || !a.startedAt().IsZero()
	e := &ending{a: a, o: &o, try: try}
	m.store.submit(&op{must: true, run: e.write, done: e.written})
}

// ending is the change that an attempt's end makes. It may be written again after
// a failure.
type ending struct {
	a   *attempt
	o   *outcome
	try Try

	job   *Job   // as it is then; nil: it has gone meanwhile
	born  []*Job // what it posts
	stale []string
	freed int64
}

func (e *ending) write(t *tx) error {
	tried := e.job // as a commit was to write it that has failed
	e.job = nil
	m := e.a.m
	j, err := t.job(e.a.id)
	if err == nil && j != nil && tried != nil && bytes.Equal(j.encode(), tried.encode()) {
		e.job = j // it is on disk nevertheless
		return nil
	}
	if err != nil || j == nil || j.State != Queued {
		return wrap(err)
	}
	old := *j
	m.mu.Lock()
	unwanted := e.a.unwanted
	m.mu.Unlock()
	err = t.move(j, func() {
		now, wall := m.store.time.now(), m.store.clock.Wall()
		e.o.apply(j, now, wall)
		if unwanted && j.State == Delayed {
			j.State, j.Due, j.Finished, j.Expires = Cancelled, 0, millis(wall), now+int64(j.keep())
		}
		if e.o.started {
			e.try.Ended, e.try.End = millis(wall), e.o.end
			j.note(e.try)
		}
		if e.o.out != nil {
			j.Output, j.Stderr = e.o.out.payload, e.o.stderr.payload
		}
		if j.State == Done {
			j.spend()
		}
		if e.born == nil {
			e.born = m.postbacks(j)
		}
		for _, b := range e.born {
			j.Children = append(j.Children, b.ID.String())
		}
	})
	e.freed, e.stale = 0, missing(old.files(), j.files())
	if err == nil && e.o.out != nil {
		err = errors.Join(t.replace(j, partOutput, e.o.out), t.replace(j, partStderr, e.o.stderr))
		e.freed += old.Output.Size + old.Stderr.Size
	}
	if err == nil && j.State == Done {
		err = errors.Join(t.delete(bucketData, dataKey(j.ID, partArgs)), t.delete(bucketData, dataKey(j.ID, partInput)))
		e.freed += old.sent()
	}
	for _, b := range e.born {
		if err == nil {
			err = m.bear(t, j, b)
		}
	}
	e.job = j
	return wrap(err)
}

func (e *ending) written(err error) {
	a, m := e.a, e.a.m
	if err != nil {
		m.warn("job %s: its end could not be kept: %v", a.id, err)
		e.job, e.born = nil, nil
	}
	m.store.spool.release(e.freed)
	m.store.spool.remove(e.stale...)
	for _, b := range e.born {
		m.store.spool.used.Add(b.Input.Size)
	}
	m.store.jobs.Add(int64(len(e.born)))
	a.leave(false)
	if e.job == nil {
		e.o.drop()
		return
	}
	for _, b := range e.born {
		m.ready(b)
	}
	m.changed(a.id, e.job.State.Finished())
	if e.job.State == Delayed || m.idle.Load() {
		m.poke()
	}
}

func (a *attempt) startedAt() time.Time {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	return a.started
}

// keepOutput makes what was written last; false: there is no room for it, or the
// disk fails.
func (m *Manager) keepOutput(a *attempt, o *outcome) bool {
	for part, d := range map[byte]*draft{partOutput: o.out, partStderr: o.stderr} {
		if err := d.keep(a.id, part, a.number); err != nil {
			m.warn("job %s: %v", a.id, err)
			o.out.drop()
			o.stderr.drop()
			o.out, o.stderr = nil, nil
			return false
		}
	}
	return true
}

// note adds an attempt to the history.
func (j *Job) note(t Try) {
	if len(j.Tries) >= maxTries {
		j.Tries = append(j.Tries[:0], j.Tries[len(j.Tries)-maxTries+1:]...)
	}
	j.Tries = append(j.Tries, t)
}

// replace puts a new part in the place of that of an earlier attempt.
func (t *tx) replace(j *Job, part byte, d *draft) error {
	if d.Size == 0 || d.File != "" {
		return t.delete(bucketData, dataKey(j.ID, part))
	}
	return t.write(j, part, d)
}

// missing lists the names that are in the old list and not in the new one.
func missing(old, now []string) (gone []string) {
	for _, name := range old {
		found := false
		for _, n := range now {
			found = found || n == name
		}
		if !found {
			gone = append(gone, name)
		}
	}
	return gone
}

// postbacks are the jobs that the end of one posts, with its output as their input.
func (m *Manager) postbacks(j *Job) (born []*Job) {
	var names []string
	switch j.State {
	case Done:
		names = []string{j.Then, j.Finally}
	case Dead:
		names = []string{j.Else, j.Finally}
	}
	for _, name := range names {
		if name == "" {
			continue
		}
		born = append(born, &Job{
			ID: m.store.nextID(), Function: name, State: Queued, Poster: j.Poster, Posted: millis(m.store.clock.Wall()),
			Options: Options{Retries: j.Retries, Backoff: j.Backoff, Priority: j.Priority, Keep: j.Keep},
			Origin:  &Origin{ID: j.ID.String(), Function: j.Function, Status: j.Last.Status, Attempts: j.Attempts},
		})
	}
	return born
}

// bear writes a postback of j.
func (m *Manager) bear(t *tx, j, b *Job) error {
	if j.Output.File != "" {
		p, err := m.store.spool.share(j.Output, b.ID, partInput)
		if err != nil {
			return err
		}
		b.Input = p
		return t.enter(b)
	}
	if b.Input = j.Output; b.Input.Size > 0 {
		data, err := t.read(j, partOutput, j.Output)
		if err != nil {
			return err
		}
		if err := t.put(bucketData, dataKey(b.ID, partInput), data); err != nil {
			return err
		}
	}
	return t.enter(b)
}

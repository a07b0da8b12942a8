package jobs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"fbus/bus/args"
)

// Cancel ends a job: one that waits is not run, one that runs is ended.
func (m *Manager) Cancel(ctx context.Context, id ID) (was *Job, err error) {
	was, err = m.Get(id)
	if err != nil {
		return nil, err
	}
	if was.State.Finished() {
		return was, fmt.Errorf("%s: it is %s: %w", id, was.State, errState)
	}
	if err := m.store.unwritable(); err != nil && m.State(was) != Running {
		return was, err
	}
	ended := m.await(id)
	defer m.unwait(id, ended)
	for {
		m.mu.Lock()
		a := m.active[id]
		if a != nil {
			a.unwanted = true // should its end be another try
			if !a.kept {
				a.cancel(errCancelledJob)
			}
		}
		m.mu.Unlock()
		if a == nil {
			return was, m.cancelQueued(id, false)
		}
		select {
		case <-ended:
			return was, nil
		case <-a.over: // it may have been too late to cancel the attempt: there may be another one to come
		case <-ctx.Done():
			return was, nil
		case <-m.ctx.Done():
			return was, nil
		}
	}
}

// cancelQueued ends a job that nobody has; must: it has been ended already.
func (m *Manager) cancelQueued(id ID, must bool) error {
	var j *Job
	err := m.store.apply(must, func(t *tx) (err error) {
		if j, err = t.job(id); err != nil || j == nil || j.State.Finished() {
			return wrap(err)
		}
		return wrap(t.move(j, func() {
			j.State, j.Due = Cancelled, 0
			j.Last = &End{Source: "fbus", Status: 143, Code: "cancelled", Message: "the job was cancelled"}
			j.Finished = millis(m.store.clock.Wall())
			j.Expires = m.store.time.now() + int64(j.keep())
		}))
	})
	if err != nil || j == nil {
		return err
	}
	m.mu.Lock()
	m.unready(j)
	if a := m.active[id]; a != nil { // its turn has come meanwhile
		a.cancel(errCancelledJob)
	}
	m.mu.Unlock()
	m.changed(id, true)
	m.poke()
	return nil
}

// Recheck ends the jobs of posters who may not call what they have posted, as after
// a ticket was revoked: those that run too. When it returns none of them begins any
// more.
func (m *Manager) Recheck() {
	m.CheckActive()
	m.runs.Go(m.recheck)
}

// CheckActive does so for those that run or stand at the node for a worker, where
// they may have been for long. The others are looked at when their turn comes.
func (m *Manager) CheckActive() {
	var list []*attempt
	m.mu.Lock()
	for _, a := range m.active {
		if a.job != nil {
			list = append(list, a)
		}
	}
	m.mu.Unlock()
	denied := map[*attempt]error{}
	for _, a := range list {
		if err := m.host.May(&a.job.Poster, a.job.Function); err != nil {
			denied[a] = &args.Error{Code: args.CodeDenied, Message: err.Error()}
		}
	}
	m.mu.Lock() // all at once: none is to begin in the slot of another
	defer m.mu.Unlock()
	for a, err := range denied {
		a.cancel(err)
	}
}

func (m *Manager) recheck() {
	for after := (ID{}); ; {
		list, next, err := m.page(&Filter{}, after, maxTick)
		if err != nil {
			return // each is looked at again before it is run
		}
		for _, j := range list {
			if j.State.Finished() || j.Poster.Serial == "" {
				continue
			}
			if err := m.host.May(&j.Poster, j.Function); err != nil {
				m.deny(j.ID, err)
			}
		}
		if after = next; after == (ID{}) {
			return
		}
	}
}

// deny makes a job dead whose poster has lost his rights.
func (m *Manager) deny(id ID, why error) {
	m.mu.Lock()
	a := m.active[id]
	if a != nil {
		a.cancel(&args.Error{Code: args.CodeDenied, Message: why.Error()})
	}
	m.mu.Unlock()
	if a != nil {
		return
	}
	o := outcome{end: denied(why), never: true}
	var j *Job
	err := m.store.apply(true, func(t *tx) (err error) {
		if j, err = t.job(id); err != nil || j == nil || j.State.Finished() {
			return wrap(err)
		}
		return wrap(t.move(j, func() { o.apply(j, m.store.time.now(), m.store.clock.Wall()) }))
	})
	if err == nil && j != nil {
		m.mu.Lock()
		m.unready(j)
		m.mu.Unlock()
		m.changed(id, true)
	}
}

// Retry queues a job again that is dead or was cancelled. It has all its retries
// anew.
func (m *Manager) Retry(id ID) error {
	var j *Job
	err := m.store.apply(false, func(t *tx) (err error) {
		switch j, err = t.job(id); {
		case err != nil:
			return wrap(err)
		case j == nil:
			return ErrNoJob
		case j.State != Dead && j.State != Cancelled:
			return fmt.Errorf("%s: it is %s: %w", id, j.State, errState)
		}
		if err := t.holdUnique(j); err != nil {
			return err
		}
		return wrap(t.move(j, func() {
			j.State, j.Used, j.Laters, j.Expires, j.Finished = Queued, 0, 0, 0, 0
		}))
	})
	if err != nil {
		return err
	}
	m.ready(j)
	m.changed(id, false)
	return nil
}

// Purge deletes jobs and their results. Of State "" only finished ones; those that
// run never.
func (m *Manager) Purge(f *Filter, older time.Duration) (int, error) {
	total := 0
	fits := m.purgeable(f, older)
	for after := (ID{}); ; {
		list, end, err := m.page(f, after, maxTick)
		if err != nil {
			return total, err
		}
		ids := make([]ID, 0, len(list))
		for _, j := range list {
			if fits(j) {
				ids = append(ids, j.ID)
			}
		}
		if len(ids) > 0 {
			n, err := m.remove(ids, fits)
			if total += n; err != nil {
				return total, err
			}
		}
		if after = end; after == (ID{}) {
			return total, nil
		}
	}
}

// PurgeThese is Purge of some jobs.
func (m *Manager) PurgeThese(ids []ID, f *Filter, older time.Duration) (int, error) {
	return m.remove(ids, m.purgeable(f, older))
}

// purgeable says which jobs a purge is about.
func (m *Manager) purgeable(f *Filter, older time.Duration) func(j *Job) bool {
	now := m.store.clock.Wall()
	return func(j *Job) bool {
		state := m.State(j)
		switch {
		case state == Running || !f.matches(j.Function, state, j.Poster.Caller):
			return false
		case f.State == "" && !j.State.Finished():
			return false
		case older > 0 && j.State.Finished():
			return now.Sub(time.UnixMilli(j.Finished)) >= older
		case older > 0:
			return now.Sub(time.UnixMilli(j.Posted)) >= older
		}
		return true
	}
}

// await returns what is closed when the job has ended.
func (m *Manager) await(id ID) chan struct{} {
	c := make(chan struct{})
	m.mu.Lock()
	m.waiters[id] = append(m.waiters[id], c)
	m.mu.Unlock()
	return c
}

func (m *Manager) unwait(id ID, c chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.waiters[id]
	for i := range list {
		if list[i] == c {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(m.waiters, id)
		return
	}
	m.waiters[id] = list
}

// Get reads a job.
func (m *Manager) Get(id ID) (*Job, error) {
	var j *Job
	err := m.store.view(func(t *tx) (err error) {
		j, err = t.job(id)
		return err
	})
	if err == nil && j == nil {
		err = m.store.absent(id)
	}
	return j, err
}

// Absent is what Get says of a job that is not there.
func (m *Manager) Absent(id ID) error { return m.store.absent(id) }

// Wait returns a job once it has finished.
func (m *Manager) Wait(ctx context.Context, id ID) (*Job, error) {
	ended := m.await(id) // before it is looked at: its end is not missed
	defer m.unwait(id, ended)
	j, err := m.Get(id)
	if err != nil || j.State.Finished() {
		return j, err
	}
	select {
	case <-ended:
		return m.Get(id)
	case <-ctx.Done():
		return j, ErrUnfinished
	case <-m.ctx.Done():
		return j, ErrClosed
	}
}

// Result opens what a finished job has written.
func (m *Manager) Result(j *Job) (stdout, stderr io.ReadCloser, err error) {
	out, err := m.store.content(j, partOutput, j.Output)
	if err != nil {
		return nil, nil, err
	}
	errs, err := m.store.content(j, partStderr, j.Stderr)
	if err != nil {
		out.Close()
		return nil, nil, err
	}
	return out, errs, nil
}

func (s *Store) content(j *Job, part byte, p payload) (io.ReadCloser, error) {
	if p.File != "" {
		return s.spool.open(j.ID, part, p)
	}
	var data []byte
	err := s.view(func(t *tx) (err error) {
		data, err = t.read(j, part, p)
		return err
	})
	return io.NopCloser(bytes.NewReader(data)), err
}

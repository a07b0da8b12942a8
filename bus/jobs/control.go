package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"fbus/bus/args"

	"fbus/bus/jobs/store"
)

// Cancel ends a job: one that waits is not run, one that runs is ended.
func (m *Manager) Cancel(ctx context.Context, id ID) (was *Job, err error) {
	was, err = m.Get(id)
	if err != nil {
		return nil, err
	}
	if was.State.Finished() {
		return was, fmt.Errorf("%s: it is %s: %w", id, was.State, store.ErrState)
	}
	if err := m.store.Unwritable(); err != nil && !store.IsFull(err) && m.State(was) != Running {
		return was, err
	}
	ended := make(chan ID, 1)
	m.await(id, ended)
	defer m.unwait(id, ended)
	for {
		m.mu.Lock()
		a := m.active[id]
		if a != nil {
			a.unwanted = true // should its end be another attempt
		}
		stop := a != nil && !a.kept
		m.mu.Unlock()
		if a == nil {
			return was, m.cancelQueued(id, false)
		}
		if stop {
			m.unwant(errCancelledJob, a)
		}
		select {
		case <-ended:
			return was, nil
		case <-a.over: // it may have been too late: another attempt may follow
		case <-ctx.Done():
			return was, nil
		case <-m.ctx.Done():
			return was, nil
		}
	}
}

// cancelQueued cancels a job that is not taken. With must, its attempt was refused already.
func (m *Manager) cancelQueued(id ID, must bool) error {
	taken, err := m.endQueued(map[ID]outcome{id: cancelledOutcome()}, must)
	if !must {
		m.unwant(errCancelledJob, taken...) // taken since Cancel looked
	}
	m.poke()
	return err
}

// cancelledOutcome is the end of a job that is cancelled before it runs.
func cancelledOutcome() outcome {
	return outcome{end: End{Source: "fbus", Status: 143, Code: args.CodeCancelled, Message: errCancelledJob.Message}, cancelled: true}
}

// endQueued ends jobs in one commit, and takes them out of their lines. It returns attempts
// that have begun meanwhile.
func (m *Manager) endQueued(outcomes map[ID]outcome, must bool) (taken []*Taken, err error) {
	was, ended := map[ID]*Job{}, map[ID]*Job{} // was keeps the jobs of a failed commit, which may be on disk
	err = m.store.Apply(store.Op{Must: must, Frees: true, Run: func(t *store.Tx) (damage error) {
		clear(ended)
		for id, o := range outcomes {
			j, err := t.Job(id)
			if err != nil {
				damage = err
			}
			if j == nil {
				continue
			}
			if !j.State.Finished() {
				old := *j
				was[id] = &old
				if err := t.Move(j, func() { o.apply(j, m.store.Now(), m.store.Clock.Wall()) }); err != nil {
					return store.Wrap(err)
				}
			}
			ended[id] = j
		}
		return store.Wrap(damage)
	}})
	if err != nil && !errors.As(err, new(*DamagedError)) {
		return nil, err
	}
	m.mu.Lock()
	for id, j := range ended {
		m.unready(j)
		if a := m.active[id]; a != nil {
			taken = append(taken, a)
		}
		if was[id] != nil {
			m.store.Shares.Change(was[id], j)
		}
	}
	m.mu.Unlock()
	for id, j := range ended {
		m.report(id)
		m.finished(id)
		m.settle(j.BatchKey())
	}
	return taken, err
}

// Recheck ends the jobs, running ones too, of posters that may not call their functions
// any more, as after a ticket was revoked. When it returns none of them begins.
func (m *Manager) Recheck() {
	m.CheckActive()
	m.runs.Go(m.recheck)
}

// CheckActive does so for taken jobs. The others are checked when they are taken.
func (m *Manager) CheckActive() {
	var denied []*Taken
	list := map[*Taken]*Job{}
	m.mu.Lock()
	for _, t := range m.active {
		if t.job != nil { // else its poster is checked next
			list[t] = t.job
		}
	}
	m.mu.Unlock()
	for t, j := range list {
		if err := m.host.MayRun(&j.Poster, j.Function); err != nil {
			t.Cause.Store(&args.Error{Code: args.CodeDenied, Message: err.Error()})
			denied = append(denied, t)
		}
	}
	m.endUnwanted(denied) // now that all have a cause
}

// recheck ends waiting jobs, many in one commit. A job that it misses, which changes
// meanwhile or cannot be read, is checked when it is taken.
func (m *Manager) recheck() {
	for _, state := range []State{Delayed, Queued} {
		m.each(m.ctx, &Filter{State: state}, ID{}, pageSize, func(list []*Job) error {
			outcomes := map[ID]outcome{}
			for _, j := range list {
				if j.Poster.Serial == "" && j.Poster.Owner == "" {
					continue
				}
				if err := m.host.MayRun(&j.Poster, j.Function); err != nil {
					outcomes[j.ID] = outcome{end: denied(err), never: true}
				}
			}
			if len(outcomes) == 0 {
				return nil
			}
			_, err := m.endQueued(outcomes, true)
			return err
		})
	}
}

// Retry queues a job again that is dead or was cancelled, with all its retries.
func (m *Manager) Retry(id ID) error {
	check := func(j *Job, err error) error {
		if err == nil && j.State != Dead && j.State != Cancelled {
			err = fmt.Errorf("%s: it is %s: %w", id, j.State, store.ErrState)
		}
		return err
	}
	was, err := m.Get(id)
	if err := check(was, err); err != nil {
		return err
	}
	again := *was
	again.State = Queued
	if err := m.withRoom(func() error { return m.store.Shares.Take(was, &again) }); err != nil {
		return err
	}
	var j *Job
	err = m.store.Apply(store.Op{Takes: store.Takes(), Run: func(t *store.Tx) (err error) {
		switch j, err = t.Job(id); {
		case err != nil:
			return store.Wrap(err)
		case j == nil:
			return ErrNoJob
		}
		if err := check(j, nil); err != nil { // it may have changed
			return err
		}
		if other, err := t.HoldUnique(j); err != nil {
			return err
		} else if other != nil {
			return fmt.Errorf("%s: job %s has its unique key now: %w", id, other.ID, store.ErrState)
		}
		return store.Wrap(t.Move(j, func() {
			j.State, j.Used, j.Laters, j.Lost, j.Expires, j.KeyUntil, j.Finished = Queued, 0, 0, 0, 0, 0, 0
		}))
	}})
	if err != nil {
		m.store.Shares.Change(&again, was)
		return err
	}
	m.ready(j)
	return nil
}

// Purge deletes jobs and their results, until ctx ends. Without a state it deletes only
// finished ones. It never deletes a running one, nor a finished one whose unique key is still
// kept: what the key refers to would run again.
func (m *Manager) Purge(ctx context.Context, f *Filter, older time.Duration) (int, error) {
	total := 0
	purgeable := m.purgeable(f, older)
	fits := func(j *Job) bool { return purgeable(j) && !(j.State.Finished() && j.KeyUntil > m.store.Now()) }
	err := m.each(ctx, f, ID{}, pageSize, func(list []*Job) error {
		var ids []ID
		for _, j := range list {
			if fits(j) {
				ids = append(ids, j.ID)
			}
		}
		n, err := m.remove(ctx, ids, fits)
		total += n
		return err
	})
	return total, err
}

// PurgeThese is Purge for some jobs, also for those whose key is kept.
func (m *Manager) PurgeThese(ctx context.Context, ids []ID, f *Filter, older time.Duration) (int, error) {
	return m.remove(ctx, ids, m.purgeable(f, older))
}

// purgeable returns which jobs a purge deletes.
func (m *Manager) purgeable(f *Filter, older time.Duration) func(j *Job) bool {
	now, matches := m.store.Clock.Wall(), f.compile()
	return func(j *Job) bool {
		state := m.State(j)
		switch {
		case state == Running || !matches(j.ID, j.Function, state, &j.Poster):
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

// await has a channel, with room for it, receive an id when the job has ended.
func (m *Manager) await(id ID, c chan ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.waiters[id], c) {
		m.waiters[id] = append(m.waiters[id], c)
	}
}

func (m *Manager) unwait(id ID, c chan ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiters[id] = slices.DeleteFunc(m.waiters[id], func(w chan ID) bool { return w == c })
	if len(m.waiters[id]) == 0 {
		delete(m.waiters, id)
	}
}

// Get reads a job.
func (m *Manager) Get(id ID) (*Job, error) {
	var j *Job
	err := m.store.View(func(t *store.Tx) (err error) {
		j, err = t.Job(id)
		return err
	})
	if err == nil && j == nil {
		err = m.store.Absent(id)
	}
	return j, err
}

// Unwritable returns why no job can run now, nil if jobs can.
func (m *Manager) Unwritable() error { return m.store.Unwritable() }

// Absent is the error of Get for a missing job.
func (m *Manager) Absent(id ID) error { return m.store.Absent(id) }

// Wait returns a job once it has finished.
func (m *Manager) Wait(ctx context.Context, id ID) (*Job, error) {
	ended := make(chan ID, 1)
	m.await(id, ended) // before it is looked at: its end is not missed
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

// Result opens the output of a finished job. It reads the whole output first, to verify
// it, until ctx ends.
func (m *Manager) Result(ctx context.Context, j *Job) (stdout, stderr io.ReadCloser, err error) {
	out, err := m.store.Content(ctx, j, store.PartOutput, j.Output)
	if err != nil {
		return nil, nil, err
	}
	errs, err := m.store.Content(ctx, j, store.PartStderr, j.Stderr)
	if err != nil {
		out.Close()
		return nil, nil, err
	}
	return out, errs, nil
}

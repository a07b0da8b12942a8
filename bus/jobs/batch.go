package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs/store"
)

// Then has the end of a batch post a job, once: when none of its jobs is left that has
// not ended, which may be at once. It refuses to post another one than was asked for before. With check
// it does no more than that.
func (m *Manager) Then(name string, then *store.Then, check bool) error {
	who := then.Poster.Key()
	key := store.BatchKey(who, name)
	if err := m.store.Unwritable(); err != nil {
		return err
	}
	differs := func(old *store.Then) error {
		if old == nil || old.Function == then.Function && old.Options == then.Options {
			return nil
		}
		e := args.Errorf(args.CodeBadInput, "the end of batch %s posts to %s already, and would post only one", name, old.Function)
		if old.Function == then.Function {
			e = args.Errorf(args.CodeBadInput, "the end of batch %s posts to %s already, with other options", name, old.Function)
		}
		return e.WithHint("another --batch has an end of its own")
	}
	if check {
		return m.store.View(func(t *store.Tx) error {
			old, err := t.Then(key)
			if err != nil {
				return store.Wrap(err)
			}
			return differs(old)
		})
	}
	if err := m.withRoom(func() error { return m.store.Shares.Owe(who, 1) }); err != nil {
		return err
	}
	again := false // its end posts a job already
	result := make(chan error, 1)
	m.store.Submit(&store.Op{Run: func(t *store.Tx) error {
		old, err := t.Then(key)
		if again = err == nil && old != nil; again {
			then.Gone = old.Gone
			if err := differs(old); err != nil {
				return err
			}
		}
		return store.Wrap(t.PutThen(key, then))
	}, Done: func(err error) {
		if err == nil {
			m.arm(key, true)
		}
		result <- err
	}})
	err := <-result
	if err != nil || again {
		m.store.Shares.Owe(who, -1)
	}
	if err == nil {
		m.settle(key)
	}
	return err
}

// arm notes whether the end of a batch posts a job.
func (m *Manager) arm(batch string, armed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if armed {
		m.armed[batch] = true
	} else {
		delete(m.armed, batch)
	}
}

// readThens finds the batches on disk whose ends post jobs, and those that have ended: the
// node may have ended in between.
func (m *Manager) readThens() {
	var batches []string
	m.store.View(func(t *store.Tx) error {
		return t.Thens(func(batch string, _ *store.Then) { batches = append(batches, batch) })
	})
	for _, batch := range batches {
		m.arm(batch, true)
		m.settle(batch)
	}
}

// settle posts what the end of a batch posts, if it has ended.
func (m *Manager) settle(batch string) {
	m.mu.Lock()
	armed := m.armed[batch]
	m.mu.Unlock()
	if armed && m.store.Shares.Tally(batch).Unended() == 0 {
		m.runs.Go(func() { m.postThen(batch) }) // not here: the writer may have called
	}
}

// postThen posts what the end of a batch posts. The commit that has the job makes it
// forget that, so there is one job even if the node ends meanwhile.
func (m *Manager) postThen(batch string) {
	var j *Job
	var doc *store.Draft
	posted := false
	m.store.Submit(&store.Op{Must: true, Run: func(t *store.Tx) error {
		if j != nil {
			if was, err := t.Job(j.ID); err == nil && was != nil { // it is on disk though the commit failed
				return nil
			}
			doc.Drop()
		}
		j, posted = nil, false
		then, err := t.Then(batch)
		if err != nil || then == nil || !t.Ended(batch) {
			return err
		}
		j = &Job{
			ID: m.store.NextID(), Function: then.Function, State: Queued, Poster: then.Poster, Options: then.Options,
			Kind: uint8(args.KindJSON), Posted: m.store.Clock.Wall().UnixMilli(),
		}
		doc = m.store.Spool.NewDraft(then.Poster.Key())
		doc.Beyond = 1 << 40 // it is small, and must not be refused
		if _, err := doc.Write(m.batchEnd(batch, then)); err != nil {
			return err
		}
		j.Args, posted = doc.Payload, true
		return store.Wrap(errors.Join(t.Enter(j), t.WritePart(j, store.PartArgs, doc), t.PutThen(batch, nil)))
	}, Done: func(err error) {
		switch {
		case err != nil:
			m.warn("batch %q: what its end posts could not be posted: %v", batch, err)
			if j != nil {
				doc.Drop()
			}
		case posted:
			m.arm(batch, false)
			m.store.Shares.Owe(j.Poster.Key(), -1)
			m.store.Shares.Change(nil, j)
			m.ready(j)
		}
	}})
}

// batchEnd is the document about a batch that has ended.
func (m *Manager) batchEnd(batch string, then *store.Then) []byte {
	n, gone := m.store.Shares.Tally(batch), then.Gone
	_, name := store.SplitBatch(batch)
	doc, _ := json.Marshal(bus.BatchEnd{
		Batch: name, Poster: then.Poster.Caller, Jobs: n.Jobs + gone.Jobs, Done: n.Done + gone.Done, Dead: n.Dead + gone.Dead, Cancelled: n.Cancelled + gone.Cancelled,
	})
	return doc
}

// Batches returns the keys of the batches with that name that have jobs: of the owner with that
// key, or else, with any, of all owners that have it as their caller.
func (m *Manager) Batches(owner, name string, any bool) []string {
	switch key := store.BatchKey(owner, name); {
	case m.store.Shares.Tally(key).Jobs > 0:
		return []string{key}
	case any:
		return m.store.Shares.Batches(owner, name)
	}
	return nil
}

// WaitBatch waits until all jobs of a batch have ended. It calls progress at first, after
// changes, and at the end.
func (m *Manager) WaitBatch(ctx context.Context, batch string, progress func(bus.WaitInfo) error) error {
	changed, stop := m.store.Shares.Watch(batch)
	defer stop()
	w := &waiting{
		tally:   func() store.Tally { return m.store.Shares.Tally(batch) },
		matches: func(j *Job) bool { return j.BatchKey() == batch },
	}
	return wait(ctx, m, w, changed, func(struct{}) error { return nil }, progress)
}

// WaitJobs is WaitBatch for some jobs.
func (m *Manager) WaitJobs(ctx context.Context, ids []ID, progress func(bus.WaitInfo) error) error {
	ended, pending := make(chan ID, 2*len(ids)), map[ID]bool{} // for an id that was retried, another end
	for _, id := range ids {
		pending[id] = true
		m.await(id, ended)
	}
	defer func() {
		for id := range pending {
			m.unwait(id, ended)
		}
	}()
	count := store.Tally{Jobs: len(pending)}
	look := func(id ID) error {
		if !pending[id] { // it had ended before its end was received
			return nil
		}
		j, err := m.Get(id)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", id, err)
		case j.State.Finished():
			count.Jobs--
			count.Add(j.State, 1)
			delete(pending, id)
			m.unwait(id, ended)
		default: // it was retried since it has ended, perhaps
			m.await(id, ended)
		}
		return nil
	}
	for _, id := range slices.Collect(maps.Keys(pending)) {
		if err := look(id); err != nil {
			return err
		}
	}
	w := &waiting{tally: func() store.Tally { return count }, matches: func(j *Job) bool { return pending[j.ID] }}
	return wait(ctx, m, w, ended, look, progress)
}

// waiting describes the jobs that are waited for.
type waiting struct {
	tally   func() store.Tally
	matches func(j *Job) bool
}

// How often progress is reported at most, and how often running jobs are looked at for reports of
// theirs.
const (
	progressPause = 200 * time.Millisecond
	reportPause   = 500 * time.Millisecond
)

// wait reports progress after events, and after reports of the jobs, until no job is left that has
// not ended.
func wait[T any](ctx context.Context, m *Manager, w *waiting, events <-chan T, note func(T) error, progress func(bus.WaitInfo) error) error {
	var last bus.WaitInfo
	for reported, looking := (time.Time{}), false; ; {
		n := w.tally()
		over := n.Unended() == 0
		var later <-chan time.Time
		if pause := progressPause - time.Since(reported); over || pause <= 0 {
			i := bus.WaitInfo{Jobs: n.Jobs, Done: n.Done, Dead: n.Dead, Cancelled: n.Cancelled}
			if i.Running, i.Progress = m.running(w.matches); over || !looking || i.Progress != last.Progress || i.Running != last.Running {
				if err := progress(i); err != nil {
					return err
				}
				last = i
			}
			reported = time.Now()
			later = time.After(reportPause) // that one begins to run is no event
		} else {
			later = time.After(pause)
		}
		looking = false
		if over {
			return nil
		}
		select {
		case e := <-events:
			if err := note(e); err != nil {
				return err
			}
		case <-later:
			looking = time.Since(reported) >= reportPause
		case <-ctx.Done():
			return ctx.Err()
		case <-m.ctx.Done():
			return ErrClosed
		}
	}
}

// running returns how many of the jobs that match are running, and the last report of their
// progress; nil: there was none.
func (m *Manager) running(matches func(j *Job) bool) (n int, last *bus.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var at time.Time
	for _, a := range m.active {
		if a.job == nil || a.started.IsZero() || !matches(a.job) {
			continue
		}
		n++
		if r := a.Reported.Load(); r != nil && r.At.After(at) {
			last, at = &r.Progress, r.At
		}
	}
	return n, last
}

// CancelAll cancels the jobs that match and have not ended, and shows each as it was. It
// waits for the end of those that run.
func (m *Manager) CancelAll(ctx context.Context, f *Filter, each func(*bus.JobInfo) error) error {
	var running []ID
	unended := *f
	unended.Unended = true
	err := m.each(ctx, &unended, ID{}, pageSize, func(list []*Job) error {
		outcomes := map[ID]outcome{}
		var taken []*Taken
		for _, j := range list {
			if j.State.Finished() {
				continue
			}
			if err := each(m.Info(j, false)); err != nil {
				return err
			}
			m.mu.Lock()
			if a := m.active[j.ID]; a != nil {
				a.unwanted = true // should its end be another attempt
				taken = append(taken, a)
			} else {
				outcomes[j.ID] = cancelledOutcome()
			}
			m.mu.Unlock()
		}
		var begun []*Taken
		if len(outcomes) > 0 {
			var err error
			if begun, err = m.endQueued(outcomes, false); err != nil && !errors.As(err, new(*DamagedError)) {
				return err
			}
		}
		m.unwant(errCancelledJob, append(taken, begun...)...)
		for _, a := range taken {
			running = append(running, a.ID)
		}
		return nil
	})
	for _, id := range running {
		if err != nil {
			return err
		}
		if _, err = m.Cancel(ctx, id); errors.Is(err, store.ErrState) || errors.Is(err, ErrNoJob) {
			err = nil // it has ended
		}
	}
	m.poke()
	return err
}

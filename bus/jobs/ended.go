package jobs

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"

	"fbus/bus/jobs/store"
)

// Ended takes the end of a job's call: it decides what follows, and writes that. A job that
// ends because the node does is found as interrupted at the next start.
func (m *Manager) Ended(t *Taken, end End) {
	m.mu.Lock()
	begun, cause := !t.started.IsZero(), t.Cause.Load()
	m.mu.Unlock()
	failed := cmp.Or(t.out.Failed, t.errOut.Failed)
	switch {
	case cause != nil && (!begun || cause.Code == args.CodeDenied):
		t.refuse()
		return
	case end.Source == "fbus" && end.Code == args.CodeNodeLost:
		t.dropOutput()
		t.leave(false)
		return
	}
	o := outcome{end: end, out: t.out, stderr: t.errOut}
	o.cancelled = cause != nil || end.Code == args.CodeCancelled && end.Source == "fbus" && failed == nil
	if failed == nil {
		o.judge()
	} else {
		t.unkept(&o, failed, m.blocks)
	}
	if !o.ok() {
		o.cut(m.store.Spool, t.Poster.Key())
	}
	t.finish(o)
}

// maxUnkept is how often in a row a job is run again for nothing, since there is no room for
// its output: it may be the job that fills the disk.
const maxUnkept = 3

// unkept makes of an outcome that of an attempt whose output could not be kept. One for which there
// can never be room is the last attempt. blocks is as [Manager.blocks].
func (t *Taken) unkept(o *outcome, failed error, blocks func(why error) bool) {
	m := t.m
	o.never, o.lost = false, false
	if errors.As(failed, new(*FullError)) {
		what := "--max-spool"
		if store.IsFull(failed) {
			what = failed.Error()
		}
		if err := t.out.TooLarge(t.errOut.Wanted()); err != nil {
			failed = err
		} else if m.store.Spool.NoteFailure(what) {
			m.warn("job %s waits for room for its output: %v", t.ID, failed)
		}
	}
	o.never = errors.As(failed, new(*store.TooLargeError))
	o.end = End{Source: "fbus", Status: 70, Code: args.CodeInternal, Message: unkeptMessage + Public(failed)}
	t.out.Drop() // a part of it would take room, and help nobody
	o.out = m.store.Spool.NewDraft(t.Poster.Key())
	if t.errOut.Failed != nil {
		t.errOut.Drop()
		o.stderr = m.store.Spool.NewDraft(t.Poster.Key())
	}
	// It is not the job's fault, and there may be room again. While posts are refused too, others have
	// the room.
	tooLarge := errors.As(failed, new(*FullError)) && fullTries(t.job) >= maxUnkept && !blocks(failed)
	o.later = !o.never && !tooLarge && !t.job.AtMostOnce
	if !o.never {
		o.lacks = failed
	}
}

// refusedForGood reports an end that another attempt could not change.
func refusedForGood(e *End) bool {
	return e.Source == "fbus" && (e.Code == args.CodeUsage || e.Code == args.CodeBadInput || e.Code == args.CodeDenied)
}

// finish writes the end of an attempt, and posts its children in the same commit. It is
// reported when it is on disk.
func (t *Taken) finish(o outcome) {
	m := t.m
	t.closeInput() // it may be long until the end can be written
	m.mu.Lock()
	t.kept = true
	o.started = !t.started.IsZero()
	e := &ending{t: t, o: &o, try: t.try()}
	m.mu.Unlock()
	if o.out != nil {
		if err := cmp.Or(o.out.Keep(t.ID, store.PartOutput, t.Attempt), o.stderr.Keep(t.ID, store.PartStderr, t.Attempt)); err != nil { // no room, or the disk fails
			m.warn("job %s: %v", t.ID, err)
			o.drop()
			t.unkept(&o, err, m.blocks)
			o.out, o.stderr = nil, nil
		}
	}
	op := &store.Op{Must: true, Run: e.write, Done: e.written}
	if o.out != nil {
		op.Takes, op.Short = store.OutputTakes(t.job, o.out, o.stderr), e.short
	}
	m.store.Submit(op)
}

// Exit statuses with a meaning for the job.
const (
	statusNever = 65 // EX_DATAERR: no other attempt could end better
	statusLater = 75 // EX_TEMPFAIL: busy, it did not try
)

// outcome is the end of an attempt, and its consequence for the job.
type outcome struct {
	end         End
	out, stderr *store.Draft
	started     bool
	cancelled   bool
	never       bool  // no further attempt
	later       bool  // uses no attempt
	lost        bool  // the worker or the node was: uses no attempt either
	lacks       error // why the output could not be kept, if it may be later
}

// drop deletes the output.
func (o *outcome) drop() {
	o.out.Drop()
	o.stderr.Drop()
}

// cut drops output that has taken the room of arguments and input: the job may need those
// again.
func (o *outcome) cut(s *store.Spool, poster string) {
	for _, d := range []**store.Draft{&o.out, &o.stderr} {
		if (*d).Over() {
			(*d).Drop()
			*d = s.NewDraft(poster)
			o.end.Message = strings.TrimPrefix(o.end.Message+"; there was no room for its output (--max-spool)", "; ")
		}
	}
}

// judge decides what an end means.
func (o *outcome) judge() {
	switch e := &o.end; {
	case o.cancelled:
	case e.Lost: // not so a kept process that has crashed, though its code is the same
		o.lost = true
	case e.Source == "program" && e.Status == statusNever, refusedForGood(e):
		o.never = true
	case e.Source == "program" && e.Status == statusLater, e.Source == "fbus" && (e.Code == args.CodeBusy || e.Code == args.CodeCannotStart):
		o.later = true
	}
}

func (o *outcome) ok() bool { return o.end.Source == "program" && o.end.Status == 0 }

// maxLost is how often in a row a job may lose its worker: it may be the job that kills
// them.
const maxLost = 3

// apply changes the job's state. now is the store's time.
func (o *outcome) apply(j *Job, now int64, wall time.Time) {
	last := o.end
	j.Last = &last
	if o.started {
		j.Attempts++
	}
	switch {
	case !o.lost:
		j.Lost = 0
	case o.end.Relay: // no job kills what only passes its bytes on
		j.Laters = 0
	default:
		j.Lost++
		j.Laters = 0
	}
	switch {
	case o.cancelled:
		j.End(Cancelled, now, wall)
	case o.ok():
		j.End(Done, now, wall)
	case o.lost && j.AtMostOnce:
		last.Message += "; it is not run again (--at-most-once)"
		j.End(Dead, now, wall)
	case o.lost && j.Lost >= maxLost:
		last.Message = fmt.Sprintf("its worker was lost %d times", j.Lost)
		j.End(Dead, now, wall)
	case o.lost:
		j.State, j.Due = Delayed, now+int64(lossPause(j))
	case o.later:
		j.Laters++
		j.State, j.Due = Delayed, now+int64(backoff(j, j.Laters))
	default:
		if o.started || !o.never {
			j.Used++
		}
		j.Laters = 0
		if !o.never && j.Used <= j.Retries {
			j.State, j.Due = Delayed, now+int64(backoff(j, j.Used))
		} else {
			j.End(Dead, now, wall)
		}
	}
}

// ending is the change that the end of an attempt makes. It may be written again after a
// failure.
type ending struct {
	t   *Taken
	o   *outcome
	try Try

	old, job *Job   // before and after the change; job is nil if it was deleted
	children []*Job // that it posts
	brief    bool   // there is no room for a long history
	stale    []string
	freed    int64
}

// short has write keep no output, unless that has the room which its post has reserved, and less
// of the history: the disk is nearly full.
func (e *ending) short(why error, refused bool) {
	e.brief = true
	o, j := e.o, &Job{Options: e.t.job.Options}
	if o.out == nil {
		return
	}
	if store.OutputTakes(j, o.out, o.stderr) == 0 {
		return
	}
	if o.drop(); !o.later { // else nobody needs the output: it runs again anyway
		e.t.unkept(o, why, func(error) bool { return refused })
	}
	o.out, o.stderr = nil, nil
}

func (e *ending) write(t *store.Tx) error {
	tried := e.job // as a commit that failed would have written it
	e.job = nil
	m := e.t.m
	j, err := t.Job(e.t.ID)
	if err == nil && j != nil && tried != nil && j.Equal(tried) {
		e.job = j // it is on disk all the same
		return nil
	}
	if err != nil || j == nil || j.State != Queued {
		return store.Wrap(err)
	}
	old := *j
	e.old = &old
	m.mu.Lock()
	unwanted := e.t.unwanted
	m.mu.Unlock()
	err = t.Move(j, func() {
		now, wall := m.store.Now(), m.store.Clock.Wall()
		e.o.apply(j, now, wall)
		if unwanted && j.State == Delayed {
			j.End(Cancelled, now, wall)
		}
		if e.o.started {
			e.try.Ended, e.try.End = wall.UnixMilli(), e.o.end
			j.Note(e.try)
		}
		if e.brief {
			j.Tries = j.Tries[max(0, len(j.Tries)-maxUnkept):]
		}
		if e.o.out != nil {
			j.Output, j.Stderr = e.o.out.Payload, e.o.stderr.Payload
		}
		if j.State == Done {
			j.Spend()
		}
		if e.children == nil {
			e.children = m.postbacks(j)
		}
		for _, b := range e.children {
			j.Children = append(j.Children, b.ID.String())
		}
	})
	e.freed, e.stale = 0, slices.DeleteFunc(old.Files(), func(name string) bool { return slices.Contains(j.Files(), name) })
	if err == nil && e.o.out != nil {
		err = errors.Join(t.ReplacePart(j, store.PartOutput, e.o.out), t.ReplacePart(j, store.PartStderr, e.o.stderr))
		e.freed += old.Output.Size + old.Stderr.Size
	}
	if err == nil && j.State == Done {
		err = errors.Join(t.Delete(store.BucketData, store.DataKey(j.ID, store.PartArgs)), t.Delete(store.BucketData, store.DataKey(j.ID, store.PartInput)))
		e.freed += old.Sent()
	}
	for _, b := range e.children {
		if err == nil {
			err = m.postChild(t, j, b)
		}
	}
	e.job = j
	return store.Wrap(err)
}

func (e *ending) written(err error) {
	a, m := e.t, e.t.m
	if err != nil {
		m.warn("job %s: its end could not be kept: %v", a.ID, err)
		e.job, e.children = nil, nil
	}
	if e.job != nil {
		if e.o.out != nil {
			e.freed += e.o.out.Size * e.o.out.Copies // now postbacks count by themselves
		}
		m.store.Shares.Change(e.old, e.job)
		for _, b := range e.children {
			m.store.Shares.Change(nil, b)
			e.freed -= b.Input.Size
		}
		m.store.Shares.AddBytes(e.job.Poster.Key(), -e.freed)
	}
	m.store.Spool.Remove(e.stale...)
	if e.o.lacks != nil && e.job != nil && e.job.State == Delayed {
		m.lacked(a.Function, a.ID, e.o.lacks)
	}
	a.leave(false)
	m.tryNext(a)
	if e.job == nil {
		e.o.drop()
		return
	}
	for _, b := range e.children {
		m.ready(b)
	}
	m.report(a.ID)
	if e.job.State.Finished() {
		m.finished(a.ID)
		m.settle(e.job.BatchKey())
	}
	if e.job.State == Delayed || m.idle.Load() {
		m.poke()
	}
}

// postbacks makes the jobs that the end of a job posts, with its output as their input.
func (m *Manager) postbacks(j *Job) (children []*Job) {
	for _, name := range map[State][]string{Done: {j.Then, j.Finally}, Dead: {j.Else, j.Finally}}[j.State] {
		if name == "" {
			continue
		}
		children = append(children, &Job{
			ID: m.store.NextID(), Function: name, State: Queued, Poster: j.Poster, Posted: m.store.Clock.Wall().UnixMilli(),
			Options: Options{Retries: j.Retries, Backoff: j.Backoff, Priority: j.Priority, Keep: j.Keep, AtMostOnce: j.AtMostOnce},
			Origin:  &Origin{ID: j.ID.String(), Function: j.Function, Status: j.Last.Status, Attempts: j.Attempts},
			Trace:   j.Trace,
		})
	}
	return children
}

// postChild writes a postback of j.
func (m *Manager) postChild(t *store.Tx, j, b *Job) error {
	b.Input = j.Output
	var err error
	if j.Output.File != "" {
		b.Input, err = m.store.Spool.Share(j.Output, b.ID, store.PartInput)
	} else if j.Output.Size > 0 {
		var data []byte
		if data, err = t.ReadPart(j, store.PartOutput, j.Output); err == nil {
			err = t.Put(store.BucketData, store.DataKey(b.ID, store.PartInput), data)
		}
	}
	if err != nil {
		return err
	}
	return t.Enter(b)
}

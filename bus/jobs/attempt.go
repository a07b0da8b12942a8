package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
)

// attempt is one run of a job, from its turn in the line to its end on disk.
type attempt struct {
	m     *Manager
	line  *line
	place readyJob
	id    ID

	ctx    context.Context
	cancel context.CancelCauseFunc
	over   chan struct{} // closed when it has left its place in line
	ran    chan struct{} // closed when its end was judged

	// The manager's mu protects these.
	job      *Job      // nil: not read yet
	started  time.Time // zero: no worker has it
	worker   string
	call     string
	number   int
	kept     bool  // the end is being written: it can not be cancelled any more
	unwanted bool  // it was cancelled: no other try is to follow
	stands   bool  // it waits at the node, or is on its way there
	bytes    int64 // that it holds there
}

var errCancelledJob = &args.Error{Code: args.CodeCancelled, Message: "the job was cancelled"}

// newAttempt makes an attempt. m.mu is held.
func newAttempt(m *Manager, l *line, r readyJob) *attempt {
	a := &attempt{m: m, line: l, place: r, id: r.id, over: make(chan struct{}), ran: make(chan struct{})}
	a.ctx, a.cancel = context.WithCancelCause(m.ctx)
	return a
}

// run makes the attempt.
func (a *attempt) run() {
	defer close(a.ran)
	defer a.cancel(nil)
	if a.m.forsaken(a.line, a.yield) {
		return
	}
	if a.m.store.unwritable() != nil { // its end could not be kept: it would be run again
		a.awaitStore()
		return
	}
	j, data, input, err := a.m.store.read(a.id)
	switch {
	case err != nil:
		a.broken(j, err)
		return
	case j == nil || j.State != Queued: // it has gone since its line was read
		a.leave(false)
		return
	}
	defer input.close()
	a.m.mu.Lock()
	a.number, a.job = j.Attempts+1, j // before it is asked what its poster may: see checkActive
	a.m.mu.Unlock()
	if err := a.m.host.May(&j.Poster, j.Function); err != nil {
		a.finish(outcome{end: denied(err), never: true})
		return
	}
	if !a.stand(int64(len(data)) + min(j.Input.Size, wire.MaxInlineInput)) {
		return
	}
	out, stderr := a.m.store.spool.newDraft(), a.m.store.spool.newDraft()
	out.beyond, stderr.beyond = j.sent(), j.sent() // that goes when it is done: see cut
	req := a.request(j, data, input, out, stderr)
	res, err := a.m.host.Call(a.ctx, req)
	a.ended(j, res, err, out, stderr)
}

func denied(why error) End {
	return End{Source: "fbus", Status: 77, Code: args.CodeDenied, Message: why.Error()}
}

// request is the call that the attempt makes.
func (a *attempt) request(j *Job, data []byte, input *content, out, stderr io.Writer) *bus.Request {
	posted := &bus.Posted{Caller: j.Poster.Caller, Job: j.ID.String(), Attempt: j.Attempts + 1}
	if j.Origin != nil {
		text, _ := json.Marshal(j.Origin)
		posted.Origin = string(text)
	}
	req := &bus.Request{
		Function: j.Function, Args: args.RawArgs(args.Kind(j.Kind), data), Stdout: out, Stderr: stderr,
		Timeout: seconds(j.Timeout), WaitFunction: bus.Forever, On: j.On, Posted: posted,
	}
	if j.Input.Size > 0 || j.HasInput {
		req.Input = input.reader()
	}
	return req
}

// Started is told by the node that a worker has a job. The node's lock is held.
func (m *Manager) Started(job, worker, call string) {
	id, ok := ParseID(job)
	if !ok {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.active[id]; a != nil && a.started.IsZero() {
		a.begin(worker, call)
		m.feed(a.line)
	}
}

// Wanted is asked by the node before a worker gets a job: it may have been cancelled, or
// its poster revoked, while it was on its way there. The node's lock is held.
func (m *Manager) Wanted(job string) bool {
	id, ok := ParseID(job)
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.active[id]
	return ok && a != nil && a.ctx.Err() == nil
}

// begin notes that the attempt is made. m.mu is held.
func (a *attempt) begin(worker, call string) {
	a.started = a.m.store.clock.Wall()
	a.worker, a.call = worker, call
	if a.line.first == a {
		a.line.first = nil
	}
	a.stood()
	a.m.admit(a.line.function())
	try := a.try()
	o := &op{must: true, done: func(error) { a.m.changed(a.id, false) }, run: func(t *tx) error {
		a.m.mu.Lock()
		over := a.kept || a.m.active[a.id] != a
		a.m.mu.Unlock()
		if over {
			return nil
		}
		return wrap(t.running(a.id, try))
	}}
	if !a.m.store.trySubmit(o) { // the node does not wait for the disk
		a.m.runs.Go(func() { a.m.store.submit(o) })
	}
}

// try is the attempt for the history.
func (a *attempt) try() Try {
	return Try{Attempt: a.number, Started: millis(a.started), Worker: a.worker, Call: a.call}
}

// ended decides what the end of the call means.
func (a *attempt) ended(j *Job, res bus.Result, err error, out, stderr *draft) {
	end := endOf(res, err)
	a.m.mu.Lock()
	if a.started.IsZero() && res.Worker != "" {
		a.begin(res.Worker, res.Call)
	}
	started := !a.started.IsZero()
	a.m.mu.Unlock()
	cause := context.Cause(a.ctx)
	cancelled := errors.Is(cause, errCancelledJob)
	drop := func() { out.drop(); stderr.drop() }
	switch {
	case errors.Is(cause, bus.ErrDenied):
		drop()
		a.finish(outcome{end: denied(cause), never: true, started: started})
		return
	case !started && cancelled, !started && a.m.ctx.Err() != nil:
		drop()
		if cancelled { // first: it must not get its turn again
			a.m.cancelQueued(a.id, true)
		}
		a.leave(!cancelled)
		return
	case !started && end.Code == "recalled": // a more urgent job takes its turn
		drop()
		a.leave(true)
		return
	case !started && !refusedForGood(&end): // the node has no room, or shuts down
		drop()
		a.m.retryLater(a)
		return
	case a.m.ctx.Err() != nil && !complete(err), end.Code == args.CodeNodeLost, end.Code == args.CodeDraining:
		drop() // it is found as interrupted when the node starts again
		a.leave(false)
		return
	}
	o := outcome{end: end, out: out, stderr: stderr, started: started}
	o.cancelled = cancelled || end.Code == args.CodeCancelled && end.Source == "fbus"
	var full *FullError
	var broken *StoreError
	fits := true
	if errors.As(err, &full) || errors.As(err, &broken) { // our own writers have refused it
		fits = isFull(err) || broken != nil || out.wanted()+stderr.wanted() <= a.m.store.spool.max
		if full != nil && a.m.store.spool.noteFailure("--max-spool") {
			a.m.warn("job %s waits for room for its output: %v", a.id, full)
		}
		o.end = End{Source: "fbus", Status: 70, Code: args.CodeInternal, Message: "its output could not be kept: " + err.Error()}
		out.drop() // a part of it would take the room that there is, and help nobody
		o.out = a.m.store.spool.newDraft()
	}
	o.judge(j)
	if (full != nil || broken != nil) && fits && j.Laters < maxUnkept {
		o.never, o.later = false, true // it is not the job's fault, and there may be room again
	}
	if !o.ok() {
		o.cut(a.m.store.spool)
	}
	a.finish(o)
}

// maxUnkept is how often in a row a job is run again for nothing, since there is no
// room for its output: it may be what fills the disk.
const maxUnkept = 8

// complete reports that a call has come to its program's end.
func complete(err error) bool {
	var exit *bus.ExitError
	return err == nil || errors.As(err, &exit)
}

// refusedForGood reports an end that another try could not change, though no
// worker has had the call.
func refusedForGood(e *End) bool {
	return e.Source == "fbus" && (e.Code == args.CodeUsage || e.Code == args.CodeBadInput || e.Code == args.CodeDenied)
}

// endOf is a call's result as jobs keep it.
func endOf(res bus.Result, err error) End {
	end := End{Source: res.Source.String(), Status: res.Status, Code: res.Code, Message: args.WireMessage(res.Message, res.Hint)}
	var be *args.Error
	if errors.As(err, &be) {
		end = End{Source: args.FromBus.String(), Status: args.StatusOf(be.Code), Code: be.Code, Message: be.Error()}
	} else if err != nil && res.Code == "" {
		end = End{Source: args.FromBus.String(), Status: 70, Code: args.CodeInternal, Message: err.Error()}
	}
	return end
}

// leave gives the place in line up without an end; again puts the job back.
func (a *attempt) leave(again bool) {
	m := a.m
	m.mu.Lock()
	defer m.mu.Unlock()
	a.vacate(again)
	if l := m.lines[a.line.key]; l != nil {
		m.feed(l)
	}
	m.admit(a.line.function())
}

// yield is leave of an attempt whose line is to be set aside; false: it has to make
// an end, since it was cancelled. m.mu is held.
func (a *attempt) yield() bool {
	if a.ctx.Err() != nil {
		return false
	}
	a.vacate(true)
	a.m.admit(a.line.function())
	return true
}

// vacate is leave, but for what follows. m.mu is held.
func (a *attempt) vacate(again bool) {
	m := a.m
	a.stood()
	if m.active[a.id] == a {
		delete(m.active, a.id)
		close(a.over)
	}
	if a.line.first == a {
		a.line.first = nil
	}
	if again {
		l := m.lines[a.line.key]
		if l == nil {
			m.lines[a.line.key], l = a.line, a.line
		}
		l.insert(a.place)
		if l.filling {
			l.behind = true
		}
	}
}

// broken ends a job that can not be read. The others go on.
func (a *attempt) broken(j *Job, err error) {
	var damaged *DamagedError
	if !errors.As(err, &damaged) { // the store as a whole: it is found again when that works
		a.m.retryLater(a)
		return
	}
	a.m.warn("%v: it is not run", err)
	if j == nil { // nothing is known of it but its id
		a.m.store.submit(&op{must: true, run: func(t *tx) error { return wrap(t.forget(a)) }, done: func(error) { a.leave(false); a.m.changed(a.id, true) }})
		return
	}
	a.finish(outcome{end: End{Source: "fbus", Status: 70, Code: "damaged", Message: err.Error()}, never: true})
}

// awaitStore gives the place up when the store can be written again.
func (a *attempt) awaitStore() {
	m := a.m
	m.runs.Go(func() { // ends with the wait
		for {
			m.mu.Lock()
			resumed := m.resumed
			m.mu.Unlock()
			if m.store.unwritable() == nil {
				a.leave(true)
				return
			}
			select {
			case <-resumed:
			case <-m.ctx.Done():
				a.leave(false)
				return
			}
		}
	})
}

// retryLater looks at a line again after a while: perhaps the store works then.
func (m *Manager) retryLater(a *attempt) {
	m.runs.Go(func() { // ends with the wait
		t := time.NewTimer(maxPause)
		defer t.Stop()
		select {
		case <-t.C:
			a.leave(true)
		case <-m.ctx.Done():
			a.leave(false)
		}
	})
}

// read gives a job with what its program is to be given.
func (s *Store) read(id ID) (j *Job, args []byte, input *content, err error) {
	var inline []byte
	err = s.view(func(t *tx) (err error) {
		if j, err = t.job(id); err != nil || j == nil {
			return err
		}
		if args, err = t.read(j, partArgs, j.Args); err == nil {
			inline, err = t.read(j, partInput, j.Input)
		}
		return err
	})
	if err != nil || j == nil {
		return j, nil, nil, err
	}
	input = &content{Reader: bytes.NewReader(inline)}
	if j.Args.File != "" {
		f, err := s.spool.open(id, partArgs, j.Args)
		if err != nil {
			return j, nil, nil, err
		}
		args, err = io.ReadAll(f)
		f.Close()
		if err != nil {
			return j, nil, nil, &StoreError{Err: err}
		}
	}
	if j.Input.File != "" {
		if input.file, err = s.spool.open(id, partInput, j.Input); err != nil {
			return j, nil, nil, err
		}
	}
	return j, args, input, nil
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	var d *DamagedError
	if errors.As(err, &d) {
		return err
	}
	return storeError(err)
}

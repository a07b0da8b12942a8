package jobs

import (
	"encoding/json"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"

	"fbus/bus/jobs/store"
)

// Reported is how far a job is, and when its program said so.
type Reported struct {
	bus.Progress
	At time.Time
}

// Taken is a job that a slot has taken, from [Manager.Take] to [Manager.Return] or
// [Manager.Ended].
type Taken struct {
	ID       ID
	Function string
	On       string // glob of workers
	Poster   Poster
	Attempt  int    // from 1
	Trace    string // as args.Trace has it
	Origin   string // JSON: the job whose end posted this one; may be empty
	Kind     args.Kind
	Args     []byte
	Input    []byte    // at most wire.MaxInlineInput bytes; all of it if Rest is nil
	Rest     io.Reader // may read a file
	HasInput bool      // an input was posted with the arguments
	Timeout  time.Duration
	// Stdout and Stderr keep what the program writes. Each may block on the disk. After
	// an error the call should be cancelled; Ended finds the error.
	Stdout, Stderr io.Writer
	// Cause is why the job should not be run any more, set before CancelJob is called; nil:
	// it should.
	Cause atomic.Pointer[args.Error]
	// Reported is the last report of the job's progress; nil: there was none.
	Reported atomic.Pointer[Reported]

	m           *Manager
	line        *line
	place       readyJob
	input       io.ReadCloser // nil: not read yet
	out, errOut *store.Draft
	over        chan struct{} // closed when the job is no longer taken

	job *Job // nil: not read yet; set once, with the manager's mu held, and not changed

	// The manager's mu protects these.
	started  time.Time // zero: no worker has it
	worker   string
	call     string
	kept     bool // the end is being written: too late to cancel
	unwanted bool // cancelled: no other attempt follows
}

var errCancelledJob = &args.Error{Code: args.CodeCancelled, Message: "the job was cancelled"}

// Ready returns about how many jobs of a function could be taken. It never blocks.
func (m *Manager) Ready(function string) int {
	if n, ok := m.counts.Load(function); ok && !m.Holds().Function(function) {
		return int(n.(*readyCount).all.Load())
	}
	return 0
}

// maxReadyOn bounds the globs of ReadyOn: there may be one for each of 100,000 workers.
const maxReadyOn = 100

// ReadyOn returns about how many of these jobs are for certain workers, by their glob; nil: none. It never
// blocks.
func (m *Manager) ReadyOn(function string) map[string]int {
	c, ok := m.counts.Load(function)
	if !ok || m.Holds().Function(function) {
		return nil
	}
	n := c.(*readyCount)
	n.mu.Lock()
	defer n.mu.Unlock()
	var on map[string]int
	for glob, jobs := range n.on {
		if on == nil {
			on = map[string]int{}
		}
		if on[glob] = jobs; len(on) == maxReadyOn {
			break
		}
	}
	return on
}

// Take takes the first job of a function that a worker may run: the highest priority,
// then the oldest. The worker has a name, and an id as its connection; refused are jobs
// that it was too busy for. nil: there is none; an error: the store cannot be read, and
// WakeJobs is called when it can. Take may read the disk.
func (m *Manager) Take(function, worker, connection string, refused []ID) (*Taken, error) {
	others := map[ID]bool{}
	for _, id := range refused {
		others[id] = true
	}
	for {
		if m.store.Unwritable() != nil { // an end could not be written: the job would run again
			return nil, nil
		}
		t, fill := m.takeFirst(function, worker, connection, others)
		switch {
		case fill != nil:
			if err := m.fill(fill); err != nil {
				m.wakeLater(function, maxPause)
				return nil, err
			}
		case t == nil:
			return nil, nil
		default:
			switch ok, err := t.prepare(); {
			case err != nil: // the job is where it was
				return nil, err
			case ok:
				return t, nil
			}
		}
	}
}

// takeFirst takes a job out of its line, or returns a line that has to be read first.
func (m *Manager) takeFirst(function, worker, connection string, refused map[ID]bool) (*Taken, *line) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused || !m.started || m.Holds().Function(function) {
		return nil, nil
	}
	refused, none := m.skip(function, refused)
	if none {
		return nil, nil
	}
	var best *line
	at := 0
	for _, l := range m.functions[function].of(worker, connection) {
		if l.filling {
			continue
		}
		if len(l.window) == 0 && !l.all {
			l.filling, l.behind = true, false
			return nil, l
		}
		i := l.first(refused)
		if i == len(l.window) || best != nil && best.window[at].compare(l.window[i]) < 0 {
			continue
		}
		if len(m.arriving) > 0 && m.arriving[0].Compare(l.window[i].id) < 0 { // an older job may be on its way to the disk
			m.held[function] = true
			continue
		}
		best, at = l, i
	}
	if best == nil {
		return nil, nil
	}
	t := &Taken{m: m, ID: best.window[at].id, Function: function, On: best.on, line: best, place: best.window[at], over: make(chan struct{})}
	best.remove(t.place)
	m.active[t.ID] = t
	m.tidy(best)
	return t, nil
}

// prepare reads the job; false: it is not run.
func (t *Taken) prepare() (bool, error) {
	m := t.m
	j, data, input, err := m.store.Read(t.ID)
	switch {
	case err != nil && !errors.As(err, new(*DamagedError)): // the store as a whole
		t.leave(true)
		m.wakeLater(t.Function, maxPause)
		return false, err
	case err != nil:
		m.warn("%v: it is not run", err)
		if j == nil { // nothing is known of it but its id
			m.store.Submit(&store.Op{Must: true, Run: func(x *store.Tx) error { return store.Wrap(x.Forget(t.ID, t.line.key, t.place.order)) }, Done: func(error) { t.leave(false); m.finished(t.ID) }})
			return false, nil
		}
		t.read(j)
		t.finish(outcome{end: endOfDamaged(err), never: true})
		return false, nil
	case j == nil || j.State != Queued: // it has gone since its line was read
		t.leave(false)
		return false, nil
	}
	t.read(j)
	t.input, t.Args = input, data
	t.Attempt, t.Poster, t.Kind = j.Attempts+1, j.Poster, args.Kind(j.Kind)
	t.Trace = j.Trace
	t.HasInput, t.Timeout = j.HasInput, store.Seconds(j.Timeout)
	if j.Origin != nil {
		text, _ := json.Marshal(j.Origin)
		t.Origin = string(text)
	}
	t.out, t.errOut = m.store.Spool.NewDraft(j.Poster.Key()), m.store.Spool.NewDraft(j.Poster.Key())
	t.out.Counts, t.errOut.Counts, t.out.Output, t.errOut.Output = true, true, true, true
	t.out.Copies = m.store.Shares.Copies(j)
	t.out.Beyond, t.errOut.Beyond = j.Sent(), j.Sent() // what was sent goes when it is done: see cut
	t.Stdout, t.Stderr = t.out, t.errOut
	if err = t.readInput(); err != nil {
		t.finish(outcome{end: endOfDamaged(err), never: true})
		return false, nil
	}
	if err := m.host.MayRun(&j.Poster, j.Function); err != nil {
		t.finish(outcome{end: denied(err), never: true})
		return false, nil
	}
	if j.AtMostOnce {
		// Once it may have begun it must not run again: a crash must find that on the disk.
		try := Try{Attempt: t.Attempt, Started: m.store.Clock.Wall().UnixMilli()}
		if err := m.store.Apply(store.Op{Run: func(x *store.Tx) error { return store.Wrap(x.Running(t.ID, try)) }}); err != nil {
			t.dropOutput()
			t.leave(true)
			m.wakeLater(t.Function, maxPause)
			return false, err
		}
	}
	if t.Cause.Load() != nil {
		t.refuse()
		return false, nil
	}
	return true, nil
}

// read notes the job's record.
func (t *Taken) read(j *Job) {
	t.m.mu.Lock()
	t.job = j
	t.m.mu.Unlock()
}

// readInput reads what goes with the call.
func (t *Taken) readInput() error {
	t.Input = make([]byte, min(t.job.Input.Size, wire.MaxInlineInput))
	if _, err := io.ReadFull(t.input, t.Input); err != nil {
		return err
	}
	if int64(len(t.Input)) < t.job.Input.Size {
		t.Rest = t.input
	}
	return nil
}

func endOfDamaged(why error) End {
	return End{Source: "fbus", Status: 70, Code: args.CodeDamaged, Message: Public(why)}
}

func denied(why error) End {
	return End{Source: "fbus", Status: 77, Code: args.CodeDenied, Message: why.Error()}
}

// Started notes that a worker has the job. It does not wait for the disk: a crash within
// the next moment forgets that this attempt was made, not that it has to be.
func (m *Manager) Started(t *Taken, worker, call string) {
	m.mu.Lock()
	t.started, t.worker, t.call = m.store.Clock.Wall(), worker, call
	try := t.try()
	m.lookouts.Signal(t.ID)
	m.mu.Unlock()
	m.report(t.ID)
	m.store.Shares.Changed(t.job.BatchKey())
	m.store.Submit(&store.Op{Must: true, Lazy: true, Run: func(x *store.Tx) error {
		m.mu.Lock()
		over := t.kept || m.active[t.ID] != t
		m.mu.Unlock()
		if over {
			return nil
		}
		return store.Wrap(x.Running(t.ID, try))
	}})
}

// try is the attempt for the history.
func (t *Taken) try() Try {
	return Try{Attempt: t.Attempt, Started: t.started.UnixMilli(), Worker: t.worker, Call: t.call}
}

// Return gives a job back that was not run. No attempt is used. Busy: its worker was;
// otherwise it can be taken again at once.
func (m *Manager) Return(t *Taken, busy bool) {
	if t.Cause.Load() != nil {
		t.refuse()
		return
	}
	m.mu.Lock()
	begun := !t.started.IsZero()
	m.mu.Unlock()
	t.dropOutput()
	if begun || t.job.AtMostOnce {
		m.store.Submit(&store.Op{Must: true, Run: func(x *store.Tx) error { return store.Wrap(x.Delete(store.BucketRun, t.ID[:])) }})
	}
	t.leave(true)
	m.report(t.ID)
	if busy {
		m.wakeLater(t.Function, busyPause)
	} else {
		m.wake(t.Function)
	}
}

// busyPause is how soon a job is offered again that a worker was too busy for.
const busyPause = time.Second

// refuse ends a job that is unwanted, without its output.
func (t *Taken) refuse() {
	m := t.m
	t.dropOutput()
	if cause := t.Cause.Load(); cause.Code == args.CodeDenied {
		t.finish(outcome{end: denied(cause), never: true})
		return
	}
	m.cancelQueued(t.ID, true)
	t.leave(false)
}

func (t *Taken) dropOutput() {
	t.out.Drop()
	t.errOut.Drop()
}

// closeInput closes the file of the input. It may be called again.
func (t *Taken) closeInput() {
	if t.input != nil {
		t.input.Close()
	}
}

// leave takes the job out of those that run; again puts it back into its line.
func (t *Taken) leave(again bool) {
	t.closeInput()
	m := t.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active[t.ID] == t {
		delete(m.active, t.ID)
		close(t.over)
		m.lookouts.Signal(t.ID)
	}
	if again {
		m.insert(t.line.key, t.place)
	}
}

// unwant has a job not run, or ended if it runs. The host ends its call.
func (m *Manager) unwant(cause *args.Error, list ...*Taken) {
	for _, t := range list { // before the first ends: none begins in the slot of another
		t.Cause.Store(cause)
	}
	m.endUnwanted(list)
}

// endUnwanted ends taken jobs that have a cause.
func (m *Manager) endUnwanted(list []*Taken) {
	for _, t := range list {
		cause := t.Cause.Load()
		m.host.CancelJob(t.ID, cause.Code, cause.Message)
	}
}

// Package jobs keeps posted calls: it writes them to disk before they are acknowledged,
// runs them at least once, keeps their results, and posts those on.
// Package store is the disk.
package jobs

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus/jobs/store"
)

// Host runs jobs: the node. It is never called with the Manager's mu held.
type Host interface {
	// WakeJobs has it look whether a slot can take a job of that function.
	WakeJobs(function string)
	// CancelJob ends the call of a job that runs; [Manager.Ended] follows.
	CancelJob(id ID, code, message string)
	// JobChanged notes that a job has another state, is new or is gone. It does not wait.
	JobChanged(id ID)
	// MayRun returns why a poster may not call that function now.
	MayRun(p *Poster, function string) error
	// HoldWorkers has workers get nothing new whose names match one of the globs.
	HoldWorkers(on []string)
}

// Manager runs the jobs of a store.
type Manager struct {
	store *store.Store
	host  Host
	warn  func(format string, args ...any)
	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	tick  chan struct{} // has room for one: schedule looks again
	runs  sync.WaitGroup
	idle  atomic.Bool // schedule looks for nothing that time brings

	holding sync.Mutex            // held while holds changes
	holds   atomic.Pointer[Holds] // never nil

	old      oldResults
	clearing sync.Mutex // held while results are deleted for a full disk

	counts sync.Map // function → *readyCount: see Ready

	counting  sync.Mutex // protects the fields below: see Counts
	byState   map[State]int64
	bytes     int64
	countedAt time.Time

	mu        sync.Mutex // protects the fields below
	functions map[string]*queue
	active    map[ID]*Taken
	arriving  []ID              // posts under way, in order
	held      map[string]bool   // functions whose first job waits for an older post
	waiters   map[ID][]chan ID  // each gets the id when the job has ended; it has room for it
	lookouts  store.Watches[ID] // signalled when an attempt begins or ends, or the job has ended
	armed     map[string]bool   // batches whose end posts a job
	lacks     map[string]*lack  // by function
	paused    bool              // Close was called
	started   bool
	doubt     map[ID]*Job // jobs whose deletion was refused, and may be on disk all the same
}

// Open opens the store; nothing runs before Start.
func Open(c Config) (*Manager, error) {
	s, err := store.Open(c)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		store: s, warn: c.Warn, tick: make(chan struct{}, 1),
		functions: map[string]*queue{}, active: map[ID]*Taken{}, held: map[string]bool{}, doubt: map[ID]*Job{}, waiters: map[ID][]chan ID{}, armed: map[string]bool{}, lookouts: store.Watches[ID]{}, lacks: map[string]*lack{},
	}
	if m.warn == nil {
		m.warn = func(string, ...any) {}
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.holds.Store(&Holds{})
	s.OnRecovery(m.resume)
	s.Spool.Evict = m.evict
	return m, nil
}

// Start begins to run jobs once the store can be written. It does not wait for a store
// that has to recover.
func (m *Manager) Start(h Host) error {
	m.host = h
	begun := make(chan error, 2)
	m.runs.Go(func() { // ends with Close
		begun <- m.begin(func() { begun <- nil }) // resume finds the jobs later
	})
	return <-begun
}

// begin notes interrupted attempts and has jobs taken; late is called if that has to wait
// for the store to recover.
func (m *Manager) begin(late func()) error {
	done := make(chan error, 1)
	ended := map[ID]*ending{}
	m.store.Submit(&store.Op{
		Must: true, Late: late, Run: func(t *store.Tx) error { return m.interrupted(t, ended) },
		Done: func(err error) {
			for _, e := range ended {
				e.written(err)
			}
			done <- err
		},
	})
	select {
	case err := <-done:
		if err != nil {
			return err
		}
	case <-m.ctx.Done():
		return nil
	}
	if err := m.readHolds(); err != nil {
		return err
	}
	m.mu.Lock()
	m.started = true
	m.mu.Unlock()
	m.runs.Go(m.schedule) // ends with Close
	keys, err := m.readyLines()
	m.addLines(keys)
	m.readThens()
	return err
}

// addLines makes lines of jobs that are ready on disk.
func (m *Manager) addLines(keys []string) {
	functions := map[string]bool{}
	m.mu.Lock()
	for _, key := range keys {
		l := m.line(key, false)
		m.tidy(l)
		functions[l.function] = true
	}
	m.mu.Unlock()
	for function := range functions {
		m.wake(function)
	}
}

// resume reads everything again after the store could not be written: a change that was
// refused may be on disk all the same. The writer calls it.
func (m *Manager) resume() {
	m.store.Spool.Sweep()
	keys, err := m.readyLines()
	if err != nil {
		return // the next commit fails, and this comes again
	}
	m.mu.Lock()
	for _, q := range m.functions {
		for _, l := range q.lines {
			l.window, l.all, l.behind = nil, false, true
			m.tidy(l)
		}
	}
	waiting := slices.Collect(maps.Keys(m.waiters))
	doubt := m.doubt
	m.doubt = map[ID]*Job{}
	m.mu.Unlock()
	for _, j := range doubt {
		var there bool
		if m.store.View(func(t *store.Tx) error { there = t.Bucket([]byte(store.BucketJobs)).Get(j.ID[:]) != nil; return nil }) == nil && !there {
			m.gone(j)
		}
	}
	for _, id := range waiting {
		if j, err := m.Get(id); err != nil || j.State.Finished() {
			m.finished(id)
		}
	}
	m.addLines(keys)
	m.readThens()
	m.poke()
}

// Close writes what is pending. The host must have returned or ended the jobs it took.
func (m *Manager) Close() {
	m.mu.Lock()
	m.paused = true
	m.mu.Unlock()
	m.stop()
	m.runs.Wait()
	m.store.Close()
}

// schedule queues delayed jobs in time, and deletes expired results.
func (m *Manager) schedule() {
	m.redate() // the date may have been set while no node ran
	offset := m.store.Time().Offset()
	for {
		m.withRoom(m.store.Unwritable) // jobs wait for that
		due, expired, next := m.timed()
		if err := cmp.Or(m.queue(due), m.expire(expired)); err != nil {
			next = maxPause
		}
		if m.relieve() {
			next = min(next, maxPause)
		}
		was := offset
		if offset = m.store.Time().Offset(); time.Duration(offset-was).Abs() > time.Second {
			m.redate()
		}
		pause := time.NewTimer(max(next, time.Millisecond))
		select {
		case <-pause.C:
		case <-m.tick:
			pause.Stop()
		case <-m.ctx.Done():
			pause.Stop()
			return
		}
	}
}

// maxPause bounds the pause of schedule while a job is delayed or a result can expire,
// idlePause otherwise.
const (
	maxPause  = 500 * time.Millisecond
	idlePause = 30 * time.Second
)

// poke has schedule look again.
func (m *Manager) poke() {
	select {
	case m.tick <- struct{}{}:
	default:
	}
}

// finished signals those that wait for the end of a job.
func (m *Manager) finished(id ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.waiters[id] {
		select {
		case c <- id:
		default: // never: it has room
		}
	}
	m.lookouts.Signal(id)
	delete(m.waiters, id)
	m.forgive(id)
}

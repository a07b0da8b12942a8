// Package jobs keeps posted calls: it writes them to disk before they are
// acknowledged, runs them at least once, keeps their results, and posts those on.
// FORMAT.md describes what is on disk.
package jobs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus"
)

// Defaults of a Config.
const (
	DefaultMaxJobs  = 2_000_000
	DefaultMaxSpool = 16 << 30
	DefaultKeep     = 24 * time.Hour
	DefaultBackoff  = time.Second
	maxBackoff      = time.Hour
)

// Config says where jobs are kept, and how many.
type Config struct {
	Dir      string
	Place    func() (string, error) // finds it, in place of Dir, whenever it is tried to open the store
	Patient  bool                   // a store that can not be opened is tried again until it can, unless another node has it
	MaxJobs  int64                  // in whatever state; default DefaultMaxJobs
	MaxSpool int64                  // bytes of arguments, input and output; default DefaultMaxSpool
	Clock    Clock                  // default: the machine's
	Volatile bool                   // need not outlast the machine: nothing is synced
	Warn     func(format string, args ...any)
}

// Host is what runs jobs: the node. None of it may be called with the Manager's mu
// held, since [Manager.Started], [Manager.Wanted] and [Manager.Appeared] are called with
// the node's.
type Host struct {
	// Call makes one attempt. It waits for a slot without limit, behind the calls
	// that somebody waits for.
	Call func(ctx context.Context, req *bus.Request) (bus.Result, error)
	// Recall takes a call back that no worker has yet; false: one has.
	Recall func(job string) bool
	// May says whether a poster may call that function now.
	May func(p *Poster, function string) error
	// Offered reports whether somebody offers that function, to whom the glob of
	// workers fits. When somebody begins to, [Manager.Appeared] is told; when nobody does
	// any more, what waits for it is recalled.
	Offered func(function, on string) bool
}

// Manager runs the jobs of a store.
type Manager struct {
	store *Store
	host  Host
	warn  func(format string, args ...any)
	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	wake  chan struct{} // has room for one: something may be due
	runs  sync.WaitGroup
	idle  atomic.Bool // schedule looks for nothing that time brings

	appeared atomic.Uint64 // how often somebody has offered something; changes with mu held

	mu       sync.Mutex // protects the fields below
	lines    map[string]*line
	absent   lineSets // that nobody serves
	crowded  lineSets // that have no room to stand at the node
	standing standing
	active   map[ID]*attempt
	arriving arriving
	waiters  map[ID][]chan struct{}
	watch    []chan struct{} // told of any change
	paused   bool
	started  bool
	resumed  chan struct{} // closed when the store can be written again
	doubt    []*Job        // whose deletion was refused, and may be on disk nevertheless
}

// Open opens the store; nothing runs before Start.
func Open(c Config) (*Manager, error) {
	if c.MaxJobs <= 0 {
		c.MaxJobs = DefaultMaxJobs
	}
	if c.MaxSpool <= 0 {
		c.MaxSpool = DefaultMaxSpool
	}
	if c.Clock.Wall == nil {
		c.Clock = systemClock()
	}
	if c.Warn == nil {
		c.Warn = func(string, ...any) {}
	}
	s, err := openStore(&c)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		store: s, warn: c.Warn, wake: make(chan struct{}, 1), resumed: make(chan struct{}),
		lines: map[string]*line{}, absent: lineSets{}, crowded: lineSets{}, standing: standing{of: map[string]int{}}, active: map[ID]*attempt{}, waiters: map[ID][]chan struct{}{},
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	s.mu.Lock()
	s.works = m.resume
	s.mu.Unlock()
	return m, nil
}

// Start begins to run what is ready, once the store can be written. It waits for
// that only as long as nothing is wrong.
func (m *Manager) Start(h Host) error {
	m.host = h
	late := make(chan struct{}, 1)
	begun := make(chan error, 1)
	m.runs.Go(func() { begun <- m.begin(func() { late <- struct{}{} }) }) // ends with Close
	select {
	case err := <-begun:
		return err
	case <-late: // what can not be read then is found by resume
		return nil
	}
}

// begin puts what is on disk in order and runs it; late is told if that takes until
// the store has recovered.
func (m *Manager) begin(late func()) error {
	done := make(chan error, 1)
	m.store.submit(&op{must: true, late: late, run: m.interrupted, done: func(err error) { done <- err }})
	select {
	case err := <-done:
		if err != nil {
			return err
		}
	case <-m.ctx.Done():
		return nil
	}
	m.mu.Lock()
	m.started = true
	m.mu.Unlock()
	m.runs.Go(m.schedule) // ends with Close
	keys, err := m.store.readyLines()
	if err != nil {
		return err
	}
	m.serveAll(keys)
	return nil
}

// serveAll makes lines of what is ready on disk, and feeds those that somebody serves.
func (m *Manager) serveAll(keys []string) {
	m.mu.Lock()
	for _, key := range keys {
		if l := m.lines[key]; l != nil {
			m.feed(l)
		} else {
			m.setAside(m.line(key), m.absent) // there may be many, and hardly a worker yet
		}
	}
	m.mu.Unlock()
	for _, key := range keys {
		m.serve(key)
	}
}

// resume looks at all anew after the store could not be written: a change that was
// refused may be on disk nevertheless. The writer calls it.
func (m *Manager) resume() {
	m.store.spool.sweep()
	keys, err := m.store.readyLines()
	if err != nil {
		return // the next commit fails, and this comes again
	}
	m.mu.Lock()
	for _, l := range m.lines {
		l.window, l.all, l.behind = nil, false, true
		m.feed(l)
	}
	close(m.resumed)
	m.resumed = make(chan struct{})
	waiting := make([]ID, 0, len(m.waiters))
	for id := range m.waiters {
		waiting = append(waiting, id)
	}
	doubt := m.doubt
	m.doubt = nil
	m.mu.Unlock()
	for _, j := range doubt {
		var there bool
		if m.store.view(func(t *tx) error { there = t.Bucket([]byte(bucketJobs)).Get(j.ID[:]) != nil; return nil }) == nil && !there {
			m.gone(j)
		}
	}
	for _, id := range waiting {
		if j, err := m.Get(id); err != nil || j.State.Finished() {
			m.changed(id, true)
		}
	}
	m.serveAll(keys)
	m.poke()
}

// serve looks at a line that was set aside before it was asked who serves it.
func (m *Manager) serve(key string) {
	if !m.host.Offered((&line{key: key}).parts()) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.lines[key]; l != nil && l.aside != nil {
		m.rouse(l)
	}
}

// Pause starts nothing further, and takes back what no worker has.
func (m *Manager) Pause() {
	m.mu.Lock()
	m.paused = true
	var waiting []*attempt
	for _, l := range m.lines {
		if l.first != nil {
			waiting = append(waiting, l.first)
		}
	}
	m.mu.Unlock()
	for _, a := range waiting {
		m.host.Recall(a.id.String())
	}
}

// Close ends what runs, and writes what is to be written. The host must have ended
// its calls, or do so.
func (m *Manager) Close() {
	m.settle()
	m.stop()
	m.runs.Wait()
	m.store.close()
}

// closeTime bounds how long Close waits for the ends of calls that the host has ended.
const closeTime = time.Second

// settle waits until the ends are judged of what has been run: that it was need not be
// forgotten, and done again.
func (m *Manager) settle() {
	m.mu.Lock()
	m.paused = true
	var list []*attempt
	for _, a := range m.active {
		if !a.started.IsZero() {
			list = append(list, a)
		}
	}
	m.mu.Unlock()
	late := time.NewTimer(closeTime)
	defer late.Stop()
	for _, a := range list {
		select {
		case <-a.ran:
		case <-late.C:
			return
		}
	}
}

// schedule looks after what time brings: jobs that are due, results that expire.
func (m *Manager) schedule() {
	var date dateWatch
	m.redate() // it may have been set while no node ran
	for {
		next := m.due()
		m.expire()
		if date.stepped(m.store.time) {
			m.redate()
		}
		pause := time.NewTimer(max(next, time.Millisecond))
		select {
		case <-pause.C:
		case <-m.wake:
			pause.Stop()
		case <-m.ctx.Done():
			pause.Stop()
			return
		}
	}
}

// maxPause bounds how long nobody looks at the clock while something waits for its
// time, idlePause while nothing does.
const (
	maxPause  = 500 * time.Millisecond
	idlePause = 30 * time.Second
)

// poke makes schedule look again.
func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// changed tells who watches that a job has changed, and who waits for it.
func (m *Manager) changed(id ID, finished bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.watch {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	if !finished {
		return
	}
	for _, c := range m.waiters[id] {
		close(c)
	}
	delete(m.waiters, id)
}

// dateWatch notices that the date was set.
type dateWatch struct {
	offset int64
	known  bool
}

func (d *dateWatch) stepped(t *timeline) bool {
	offset := t.clock.Wall().UnixNano() - t.now()
	was, known := d.offset, d.known
	d.offset, d.known = offset, true
	diff := offset - was
	return known && (diff > int64(time.Second) || -diff > int64(time.Second))
}

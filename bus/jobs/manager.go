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
	MaxJobs  int64 // in whatever state; default DefaultMaxJobs
	MaxSpool int64 // bytes of arguments, input and output; default DefaultMaxSpool
	Clock    Clock // default: the machine's
	Volatile bool  // need not outlast the machine: nothing is synced
	Warn     func(format string, args ...any)
}

// Host is what runs jobs: the node. None of it may be called with the Manager's mu
// held, since [Manager.Started] is called with the node's.
type Host struct {
	// Call makes one attempt. It waits for a slot without limit, behind the calls
	// that somebody waits for.
	Call func(ctx context.Context, req *bus.Request) (bus.Result, error)
	// Recall takes a call back that no worker has yet; false: one has.
	Recall func(job string) bool
	// May says whether a poster may call that function now.
	May func(p *Poster, function string) error
	// Offered reports whether somebody offers that function, to whom the glob of
	// workers fits.
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

	mu      sync.Mutex // protects the fields below
	lines   map[string]*line
	active  map[ID]*attempt
	waiters map[ID][]chan struct{}
	watch   []chan struct{} // told of any change
	paused  bool
	started bool
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
		store: s, warn: c.Warn, wake: make(chan struct{}, 1),
		lines: map[string]*line{}, active: map[ID]*attempt{}, waiters: map[ID][]chan struct{}{},
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	return m, nil
}

// Start begins to run what is ready.
func (m *Manager) Start(h Host) error {
	m.host = h
	if err := m.interrupted(); err != nil {
		return err
	}
	keys, err := m.store.readyLines()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.started = true
	for _, key := range keys {
		m.line(key)
	}
	m.mu.Unlock()
	m.runs.Go(m.schedule) // ends with Close
	m.feedAll()
	return nil
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
	m.mu.Lock()
	m.paused = true
	m.mu.Unlock()
	m.stop()
	m.runs.Wait()
	m.store.close()
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

package jobs

import (
	"bytes"
	"cmp"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus/jobs/store"
	"fbus/bus/wire"
)

// windowSize is how many jobs of a line are held in memory: the first ones.
const windowSize = 1024

// line is the queue of jobs for one function, on workers that match one glob. The
// manager's mu protects it.
type line struct {
	key          string
	function, on string
	workers      wire.On    // on, compiled
	window       []readyJob // the first jobs on disk, in order, without those that are taken
	all          bool       // there are no others on disk
	filling      bool       // the window is being read
	behind       bool       // a job has come since then
	counted      int        // its part of counts
}

// queue has the lines of one function, by their globs of workers.
type queue struct {
	lines map[string]*line
	globs map[string]*line // the lines that each worker has to be compared with
}

// of returns the lines that a worker may take jobs from; q may be nil. Most are looked up:
// there may be one for each of 100,000 workers.
func (q *queue) of(worker, connection string) (list []*line) {
	if q == nil {
		return nil
	}
	for _, on := range [...]string{"", worker, "#" + connection} {
		if l := q.lines[on]; l != nil && q.globs[on] == nil && !slices.Contains(list, l) && l.workers.Match(worker, connection) {
			list = append(list, l)
		}
	}
	for _, l := range q.globs {
		if l.workers.Match(worker, connection) {
			list = append(list, l)
		}
	}
	return list
}

// readyJob is a job's place in its line.
type readyJob struct {
	order byte // the lowest is first
	id    ID
}

func (a readyJob) compare(b readyJob) int {
	return cmp.Or(cmp.Compare(a.order, b.order), a.id.Compare(b.id))
}

func placeOf(j *Job) readyJob { return readyJob{order: byte(store.MaxPriority - j.Priority), id: j.ID} }

func readyOf(key []byte) readyJob {
	return readyJob{order: key[len(key)-17], id: store.KeyID(key)}
}

// line finds or makes a line; all: nothing of it is on disk yet. m.mu is held.
func (m *Manager) line(key string, all bool) *line {
	function, on, _ := strings.Cut(key, "\x00")
	q := m.functions[function]
	if q == nil {
		q = &queue{lines: map[string]*line{}, globs: map[string]*line{}}
		m.functions[function] = q
	}
	l := q.lines[on]
	if l == nil {
		l = &line{key: key, function: function, on: on, all: all}
		l.workers, _ = wire.ParseOn(on) // it was checked when the job was posted
		q.lines[on] = l
		if l.workers.Glob() {
			q.globs[on] = l
		}
	}
	return l
}

// tidy counts the line's jobs, and forgets it when it has none. m.mu is held.
func (m *Manager) tidy(l *line) {
	n := len(l.window)
	if !l.all {
		n++
	}
	q := m.functions[l.function]
	if n == 0 && !l.filling && q != nil && q.lines[l.on] == l {
		delete(q.globs, l.on)
		if delete(q.lines, l.on); len(q.lines) == 0 {
			delete(m.functions, l.function)
			m.counts.Delete(l.function)
			return
		}
	}
	if n != l.counted {
		c, ok := m.counts.Load(l.function)
		if !ok {
			c, _ = m.counts.LoadOrStore(l.function, &readyCount{on: map[string]int{}})
		}
		c.(*readyCount).add(l.on, n-l.counted)
		l.counted = n
	}
}

// readyCount counts the jobs of a function that could be taken.
type readyCount struct {
	all atomic.Int64
	mu  sync.Mutex     // protects on
	on  map[string]int // those for certain workers, by their glob
}

func (c *readyCount) add(on string, n int) {
	c.all.Add(int64(n))
	if on == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.on[on] += n; c.on[on] == 0 {
		delete(c.on, on)
	}
}

// first is the index of the first job that is not among some others.
func (l *line) first(others map[ID]bool) int {
	for i, r := range l.window {
		if !others[r.id] {
			return i
		}
	}
	return len(l.window)
}

// search is the index of a place, or where it belongs.
func (l *line) search(r readyJob) int {
	return sort.Search(len(l.window), func(i int) bool { return l.window[i].compare(r) >= 0 })
}

// remove takes a job out of its line.
func (l *line) remove(r readyJob) {
	switch i := l.search(r); {
	case i == 0 && len(l.window) > 0 && l.window[0] == r:
		l.window = l.window[1:]
	case i < len(l.window) && l.window[i] == r:
		l.window = slices.Delete(l.window, i, i+1)
	}
}

// insert puts a job into its line. m.mu is held.
func (m *Manager) insert(key string, r readyJob) {
	l := m.line(key, true)
	defer m.tidy(l)
	if l.filling {
		l.behind = true
	}
	if !l.all && (len(l.window) == 0 || r.compare(l.window[len(l.window)-1]) > 0) {
		return // it is found on disk later
	}
	i := l.search(r)
	if i < len(l.window) && l.window[i].id == r.id {
		return
	}
	l.window = slices.Insert(l.window, i, r)
	if len(l.window) > 2*windowSize {
		l.window, l.all = slices.Clip(l.window[:windowSize]), false
	}
}

// unready takes a job that must not run out of its line. m.mu is held.
func (m *Manager) unready(j *Job) {
	function, on, _ := strings.Cut(j.QueueKey(), "\x00")
	if q := m.functions[function]; q != nil && q.lines[on] != nil {
		q.lines[on].remove(placeOf(j))
		m.tidy(q.lines[on])
	}
}

// ready puts a job that is on disk now into its line.
func (m *Manager) ready(j *Job) {
	m.mu.Lock()
	m.insert(j.QueueKey(), placeOf(j))
	m.mu.Unlock()
	m.report(j.ID)
	m.wake(j.Function)
}

// report tells the host that a job has changed.
func (m *Manager) report(id ID) {
	m.mu.Lock()
	started := m.started
	m.mu.Unlock()
	if started {
		m.host.JobChanged(id)
	}
}

// wake has the host look for jobs of a function.
func (m *Manager) wake(function string) {
	m.mu.Lock()
	started := m.started && !m.paused
	m.mu.Unlock()
	if started {
		m.host.WakeJobs(function)
	}
}

func (m *Manager) wakeLater(function string, pause time.Duration) {
	m.runs.Go(func() { // ends with the wait
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
			m.wake(function)
		case <-m.ctx.Done():
		}
	})
}

// fill reads the first jobs of a line that are not taken.
func (m *Manager) fill(l *line) error {
	var jobs []readyJob
	all := false
	prefix := append([]byte(l.key), 0)
	err := m.store.View(func(t *store.Tx) error {
		c := t.Bucket([]byte(store.BucketReady)).Cursor()
		k, _ := c.Seek(prefix)
		for ; k != nil && bytes.HasPrefix(k, prefix) && len(jobs) < windowSize; k, _ = c.Next() {
			if r := readyOf(k); len(k) == len(prefix)+17 && m.taken(r.id) == nil {
				jobs = append(jobs, r)
			}
		}
		all = k == nil || !bytes.HasPrefix(k, prefix)
		return nil
	})
	m.mu.Lock()
	l.filling = false
	if err == nil {
		l.window, l.all = slices.DeleteFunc(jobs, func(r readyJob) bool { return m.active[r.id] != nil }), all && !l.behind
	}
	m.tidy(l)
	m.mu.Unlock()
	if len(jobs) > 0 {
		m.wake(l.function) // others may have come while it was read
	}
	return err
}

// taken returns the attempt at a job, or nil.
func (m *Manager) taken(id ID) *Taken {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active[id]
}

// readyLines lists the lines on disk.
func (m *Manager) readyLines() (keys []string, err error) {
	err = m.store.View(func(t *store.Tx) error {
		c := t.Bucket([]byte(store.BucketReady)).Cursor()
		for k, _ := c.First(); k != nil; {
			key := string(k[:len(k)-18])
			keys = append(keys, key)
			k, _ = c.Seek(append([]byte(key), 1)) // beyond all of this line
		}
		return nil
	})
	return keys, err
}

// Arrives makes the id of a post that comes now. It is greater than all before it: of
// several posts under way the ids decide which job is older. A job is not taken before
// older ones, though a younger one may be on disk first. [Manager.Settled] must follow
// soon.
func (m *Manager) Arrives() ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := m.store.NextID()
	m.arriving = append(m.arriving, id)
	return id
}

// Settled ends what Arrives began: the post is over, or other jobs need not wait for it. It
// may be called twice.
func (m *Manager) Settled(id ID) {
	m.mu.Lock()
	var held map[string]bool
	if i, ok := slices.BinarySearchFunc(m.arriving, id, ID.Compare); ok {
		m.arriving = slices.Delete(m.arriving, i, i+1)
		if i == 0 && len(m.held) > 0 {
			held, m.held = m.held, map[string]bool{}
		}
	}
	m.mu.Unlock()
	for function := range held {
		m.wake(function)
	}
}

package jobs

import (
	"bytes"
	"slices"
	"sort"
	"time"
)

// windowSize is how many of a line's jobs are held in memory: the first ones.
const windowSize = 1024

// line is the jobs that wait for one function, on workers of one glob. One of them,
// the first, stands at the node for a slot, unless the line was set aside; when it has
// one the next takes its place. The manager's mu protects it.
type line struct {
	key     string
	window  []readyJob // the first of those on disk, in their order
	all     bool       // there are no others on disk
	filling bool
	behind  bool     // a job has come since filling began
	first   *attempt // handed over, and with no worker yet
	aside   lineSets // that it was set aside in; nil: it was not
}

// readyJob is a job's place in its line.
type readyJob struct {
	order byte // less is sooner
	id    ID
}

func (a readyJob) compare(b readyJob) int {
	if a.order != b.order {
		return int(a.order) - int(b.order)
	}
	return bytes.Compare(a.id[:], b.id[:])
}

func placeOf(j *Job) readyJob { return readyJob{order: byte(maxPriority - j.Priority), id: j.ID} }

func readyOf(key []byte) readyJob {
	return readyJob{order: key[len(key)-17], id: keyID(key)}
}

// line finds or makes a line. m.mu is held.
func (m *Manager) line(key string) *line {
	l := m.lines[key]
	if l == nil {
		l = &line{key: key}
		m.lines[key] = l
	}
	return l
}

// insert puts a job into the window, if it belongs there.
func (l *line) insert(r readyJob) {
	if !l.all && (len(l.window) == 0 || r.compare(l.window[len(l.window)-1]) > 0) {
		return // it is found on disk when its turn comes
	}
	i := sort.Search(len(l.window), func(i int) bool { return l.window[i].compare(r) >= 0 })
	if i < len(l.window) && l.window[i].id == r.id {
		return
	}
	l.window = slices.Insert(l.window, i, r)
	if len(l.window) > 2*windowSize {
		l.window, l.all = l.window[:windowSize], false
	}
}

// remove takes a job out that has left its line.
func (l *line) remove(r readyJob) {
	i := sort.Search(len(l.window), func(i int) bool { return l.window[i].compare(r) >= 0 })
	if i < len(l.window) && l.window[i] == r {
		l.window = slices.Delete(l.window, i, i+1)
	}
}

// unready takes a job out of its line that is not to be run. m.mu is held.
func (m *Manager) unready(j *Job) {
	if l := m.lines[j.queueKey()]; l != nil {
		l.remove(placeOf(j))
		m.tidy(l)
	}
}

// feed hands the line's first job over, if none stands at the node. m.mu is held.
func (m *Manager) feed(l *line) {
	if m.paused || !m.started || l.first != nil || l.filling || l.aside != nil {
		return
	}
	if len(l.window) == 0 {
		if l.all {
			delete(m.lines, l.key)
			return
		}
		l.filling = true
		m.runs.Go(func() { m.fill(l) }) // ends when it has read
		return
	}
	if m.arriving.holds(l) {
		return
	}
	r := l.window[0]
	l.window = l.window[1:]
	a := newAttempt(m, l, r)
	l.first = a
	m.active[r.id] = a
	m.runs.Go(a.run) // ends with the attempt
}

// fill reads the first jobs of a line that nobody has yet.
func (m *Manager) fill(l *line) {
	if m.forsaken(l, func() bool { l.filling, l.behind = false, false; return true }) {
		return
	}
	jobs, all, err := m.store.readyAfter(l.key, func(id ID) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.active[id] != nil
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	l.filling = false
	if err != nil {
		l.window, l.all = nil, false
		m.runs.Go(func() { m.feedLater(l) }) // ends with the wait
		return
	}
	l.window, l.all, l.behind = nil, all && !l.behind, false
	for _, r := range jobs {
		if m.active[r.id] == nil {
			l.window = append(l.window, r)
		}
	}
	m.feed(l)
}

// feedLater looks at a line again that could not be read.
func (m *Manager) feedLater(l *line) {
	t := time.NewTimer(maxPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-m.ctx.Done():
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lines[l.key] == l {
		m.feed(l)
	}
}

// ready puts a job into its line that is on disk now. A more urgent one takes the
// place of the one that stands at the node.
func (m *Manager) ready(j *Job) {
	r := placeOf(j)
	m.mu.Lock()
	if m.lines[j.queueKey()] == nil {
		m.line(j.queueKey()).all = true
	}
	l := m.lines[j.queueKey()]
	if l.filling {
		l.behind = true
	}
	l.insert(r)
	var give *attempt
	if l.first != nil && r.compare(l.first.place) < 0 && r.order < l.first.place.order {
		give = l.first
	}
	m.feed(l)
	m.mu.Unlock()
	if give != nil {
		m.host.Recall(give.id.String())
	}
}

// readyLines lists the lines on disk.
func (s *Store) readyLines() (keys []string, err error) {
	err = s.view(func(t *tx) error {
		c := t.Bucket([]byte(bucketReady)).Cursor()
		for k, _ := c.First(); k != nil; {
			key := string(k[:len(k)-18])
			keys = append(keys, key)
			k, _ = c.Seek(append([]byte(key), 1)) // beyond all of this line
		}
		return nil
	})
	return keys, err
}

// readyAfter reads the first jobs of a line.
func (s *Store) readyAfter(key string, active func(ID) bool) (jobs []readyJob, all bool, err error) {
	prefix := append([]byte(key), 0)
	err = s.view(func(t *tx) error {
		c := t.Bucket([]byte(bucketReady)).Cursor()
		k, _ := c.Seek(prefix)
		for ; k != nil && bytes.HasPrefix(k, prefix) && len(jobs) < windowSize; k, _ = c.Next() {
			if len(k) == len(prefix)+17 && !active(keyID(k)) {
				jobs = append(jobs, readyOf(k))
			}
		}
		all = k == nil || !bytes.HasPrefix(k, prefix)
		return nil
	})
	return jobs, all, err
}

package trust

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus/args"
)

// list caches the file of issued serials in memory. It reloads the file when the inode
// shows that another process has replaced it.
type list struct {
	dir     *privateDir
	network string
	now     func() time.Time
	warn    func(format string, args ...any)

	current atomic.Pointer[table]
	writing sync.Mutex // held over a whole change, including the disk
	loading sync.Mutex // held while the file is read

	mu      sync.Mutex           // protects the fields below
	shut    map[string]time.Time // serials revoked in memory but not on the disk
	seen    map[string]sighting
	noted   time.Time     // when sightings were last written
	pause   time.Duration // the least time until the next write
	busy    bool          // a write of sightings is running or scheduled
	closed  bool
	onGone  []func(serial string)
	writers sync.WaitGroup
}

// table is an immutable version of the list.
type table struct {
	file    fileID
	records []Record // in order of issue
	index   map[string]int
}

type sighting struct {
	at   time.Time
	from string
}

const (
	seenPause   = 10 * time.Second // between writes of sightings
	maxLive     = 10000            // tickets at a time
	maxFinished = 1000             // finished records kept; the oldest are dropped first
)

func newTable(id fileID, records []Record) *table {
	t := &table{file: id, records: records, index: make(map[string]int, len(records))}
	for i := range records {
		t.index[records[i].Serial] = i
	}
	return t
}

// get returns the record of a serial, or nil.
func (t *table) get(serial string) *Record {
	if i, ok := t.index[serial]; ok {
		return &t.records[i]
	}
	return nil
}

// add appends a record to a table that is not shared yet.
func (t *table) add(r Record) {
	t.index[r.Serial] = len(t.records)
	t.records = append(t.records, r)
}

// named returns the live records of a name: one, or several certificates of one
// identity.
func (t *table) named(name string, now time.Time) []*Record {
	var found []*Record
	for i := range t.records {
		if r := &t.records[i]; r.Name == name && r.Live(now) {
			found = append(found, r)
		}
	}
	return found
}

// load returns the file's current list. If the file cannot be read, no peer may be
// admitted.
func (l *list) load() (*table, error) {
	if t := l.fresh(); t != nil {
		return t, nil
	}
	t, gone, err := l.reload()
	l.tell(gone)
	return t, err
}

// fresh returns the list in memory if the file has not been replaced since it was read.
func (l *list) fresh() *table {
	t := l.current.Load()
	if t == nil {
		return nil
	}
	if id, err := l.dir.stat(listName); err != nil || id != t.file {
		return nil
	}
	return t
}

func (l *list) reload() (*table, []string, error) {
	l.loading.Lock()
	defer l.loading.Unlock()
	if t := l.fresh(); t != nil {
		return t, nil, nil
	}
	data, id, err := l.dir.read(listName, listLimit)
	if err != nil {
		return nil, nil, orHint(errorf(args.CodeListLost, "the list of issued tickets cannot be read, so nobody is admitted: %v", err),
			"restore %s, or restart the node with an empty list and issue new tickets", l.dir.join(listName))
	}
	records, err := parseList(l.network, data)
	if err != nil {
		return nil, nil, orHint(errorf(args.CodeListLost, "%s: the list of issued tickets is damaged, so nobody is admitted: %v", l.dir.join(listName), err),
			"restore it from a backup; or remove it, and issue new tickets")
	}
	t := newTable(id, records)
	return t, l.install(t), nil
}

// install puts a table in place and returns the serials that it no longer admits.
func (l *list) install(t *table) (gone []string) {
	old := l.current.Swap(t)
	if old == nil {
		return nil
	}
	for i := range old.records {
		r := &old.records[i]
		if r.State == Revoked {
			continue
		}
		if now := t.get(r.Serial); now == nil || now.State == Revoked {
			gone = append(gone, r.Serial)
		}
	}
	return gone
}

// tell runs the OnRevoke callback, with no lock held.
func (l *list) tell(gone []string) {
	if len(gone) == 0 {
		return
	}
	l.mu.Lock()
	watchers := slices.Clone(l.onGone)
	l.mu.Unlock()
	for _, serial := range gone {
		for _, f := range watchers {
			f(serial)
		}
	}
}

// update changes the list: first the file, synced, then the memory. It applies change to
// a copy of the file's current list. If change returns an error or false, nothing
// changes.
func (l *list) update(change func(*table) (changed bool, err error)) error {
	gone, err := l.updateLocked(change)
	l.tell(gone)
	return err
}

func (l *list) updateLocked(change func(*table) (changed bool, err error)) ([]string, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	unlock, err := l.dir.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	t, err := l.load()
	if err != nil {
		return nil, err
	}
	next := newTable(fileID{}, slices.Clone(t.records))
	if changed, err := change(next); err != nil || !changed {
		return nil, err
	}
	next.records = l.finish(next.records)
	data, err := formatList(l.network, next.records)
	if err != nil {
		return nil, err
	}
	id, err := l.dir.write(listName, data)
	if err != nil {
		return nil, err
	}
	return l.install(newTable(id, next.records)), nil
}

// finish adds sightings and unwritten revocations, and drops the oldest finished
// records. The limit is a number and not an age: a clock that is wrong for an hour must
// not empty the list.
func (l *list) finish(records []Record) []Record {
	l.addLate(records)
	now := l.now()
	over := 0
	for i := range records {
		if !records[i].Live(now) {
			over++
		}
	}
	return slices.DeleteFunc(records, func(r Record) bool {
		if over <= maxFinished || r.Live(now) {
			return false
		}
		over--
		return true
	})
}

func (l *list) addLate(records []Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range records {
		if s, ok := l.seen[records[i].Serial]; ok && s.at.After(records[i].Seen) {
			records[i].Seen, records[i].From = s.at, s.from
		}
		if at, ok := l.shut[records[i].Serial]; ok && records[i].State != Revoked {
			records[i].State, records[i].Ended = Revoked, at
		}
	}
}

// saw records an entry. It never waits: the file follows within seenPause.
func (l *list) saw(serial, from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now().UTC()
	l.seen[serial] = sighting{at: now.Truncate(time.Second), from: from}
	if l.busy || l.closed {
		return
	}
	l.busy = true
	wait := l.pause - now.Sub(l.noted)
	if wait <= 0 || wait > l.pause { // or the clock was set back
		l.writers.Add(1)
		go l.writeSightings() // ends when the file is written
		return
	}
	time.AfterFunc(wait, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.closed {
			l.writers.Add(1)
			go l.writeSightings() // ends when the file is written
		}
	})
}

func (l *list) writeSightings() {
	defer l.writers.Done()
	l.mu.Lock()
	l.noted = l.now()
	l.mu.Unlock()
	// finish makes the change.
	err := l.update(func(*table) (bool, error) { return true, nil })
	if err != nil {
		l.warn("the times when tickets were last used cannot be kept: %v", err)
	}
	l.mu.Lock()
	l.busy = false
	if err == nil {
		l.forget(l.current.Load())
	}
	l.mu.Unlock()
}

// shutOut revokes serials in memory only.
func (l *list) shutOut(serials []string, now time.Time) {
	l.mu.Lock()
	for _, serial := range serials {
		l.shut[serial] = now
	}
	l.mu.Unlock()
	l.tell(serials)
}

// state returns a record, or an error if its serial is unlisted or revoked.
func (l *list) state(t *table, serial string) (*Record, error) {
	r := t.get(serial)
	if r == nil {
		return nil, unlisted(serial)
	}
	l.mu.Lock()
	at, shut := l.shut[serial]
	l.mu.Unlock()
	if shut {
		gone := *r
		gone.Ended = at
		return nil, revoked(&gone)
	}
	if r.State == Revoked {
		return nil, revoked(r)
	}
	return r, nil
}

// forget drops sightings that the list already contains. mu is held.
func (l *list) forget(t *table) {
	for serial, s := range l.seen {
		if r := t.get(serial); r == nil || !r.Seen.Before(s.at) {
			delete(l.seen, serial)
		}
	}
}

// close writes the remaining sightings.
func (l *list) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.writers.Wait()
	l.mu.Lock()
	left := len(l.seen)
	l.mu.Unlock()
	if left > 0 {
		l.writers.Add(1)
		l.writeSightings()
	}
}

package trust

import (
	"cmp"
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
	limit   int // of the file, in bytes

	current atomic.Pointer[table]
	ahead   atomic.Bool // current has revocations that the file lacks
	turn    sync.Mutex  // locked before writing, but not by revocations: they wait for one change at most
	writing sync.Mutex  // held over a whole change, including the disk
	loading sync.Mutex  // held while the file is read, and while current is replaced

	mu     sync.Mutex          // protects the fields below
	seen   map[string]sighting // that the file may not have
	noted  time.Time           // when they were last written
	onGone []func(serials []string)
}

// table is an immutable version of the list.
type table struct {
	file    fileID
	records []Record // in order of issue
	index   map[string]int
	tokens  map[string]string // the serials of tokens, by hash and by name
}

type sighting struct {
	at   time.Time
	from string
}

const (
	seenPause   = 10 * time.Second // at least, between writes of sightings
	maxLive     = 10000            // tickets at a time
	maxFinished = 1000             // finished records kept; the oldest are dropped first
)

func newTable(id fileID, records []Record) *table {
	t := &table{file: id, records: records, index: make(map[string]int, len(records)), tokens: map[string]string{}}
	for i := range records {
		t.index[records[i].Serial] = i
		if records[i].Kind == Token {
			t.tokens[records[i].Key], t.tokens[tokenNamed+records[i].Name] = records[i].Serial, records[i].Serial
		}
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

// install puts a table in place and returns the serials that it no longer admits. A
// revoked serial stays revoked, even if the disk did not take that. loading is held.
func (l *list) install(t *table) (gone []string) {
	if old := l.current.Load(); old != nil {
		for i := range old.records {
			was := &old.records[i]
			r := t.get(was.Serial)
			switch {
			case was.State != Revoked && (r == nil || r.State == Revoked):
				gone = append(gone, was.Serial)
			case was.State == Revoked && r != nil && r.State != Revoked:
				r.State, r.Ended = Revoked, was.Ended
			}
		}
	}
	l.current.Store(t)
	return gone
}

// OnRevoke registers f to be called with the serials that are no longer admitted, all
// those of one change at once. When f runs, Check and Admit refuse them already. f runs
// before Revoke returns, on the goroutine that noticed, and must not change the list.
// Register it before admitting any peer. Loss of the list is not a revocation: new peers
// are refused, but connected ones stay.
func (l *list) OnRevoke(f func(serials []string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onGone = append(l.onGone, f)
}

// tell runs the OnRevoke callback.
func (l *list) tell(gone []string) {
	if len(gone) == 0 {
		return
	}
	l.mu.Lock()
	watchers := slices.Clone(l.onGone)
	l.mu.Unlock()
	for _, f := range watchers {
		f(gone)
	}
}

// update changes the list: first the file, synced, then the memory. It applies change to
// a copy of the file's current list. If change returns an error or false, nothing
// changes. A quarter of the file's limit is left to revocations.
func (l *list) update(change func(*table) (changed bool, err error)) error {
	l.turn.Lock()
	defer l.turn.Unlock()
	return l.write(l.limit/4*3, change)
}

// write is update for a list of at most limit bytes.
func (l *list) write(limit int, change func(*table) (changed bool, err error)) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	unlock, err := l.dir.lock()
	if err != nil {
		return err
	}
	defer unlock()
	t, err := l.load()
	if err != nil {
		return err
	}
	next := newTable(fileID{}, slices.Clone(t.records))
	if changed, err := change(next); err != nil || !changed {
		return err
	}
	next.records = l.finish(next.records)
	data, err := formatList(l.network, next.records)
	if err != nil {
		return err
	}
	if len(data) > limit {
		return errorf(args.CodeStorage, "a list of %d bytes exceeds the limit of %d", len(data), limit).WithHint("revoke tickets that are no longer used")
	}
	id, err := l.dir.write(listName, data)
	if err != nil {
		return err
	}
	l.ahead.Store(false)
	l.put(newTable(id, next.records))
	return nil
}

// shutOut makes the revocations of a change effective before they are on the disk, and
// even if they never are. A change calls it, with the table that it has changed.
func (l *list) shutOut(next *table) {
	l.ahead.Store(true)
	l.tell(l.put(newTable(l.current.Load().file, slices.Clone(next.records))))
}

// put installs a table that was not read from the file.
func (l *list) put(t *table) (gone []string) {
	l.loading.Lock()
	defer l.loading.Unlock()
	return l.install(t)
}

// finish adds sightings, and drops the oldest finished records. The limit is a number and
// not an age: a clock that is wrong for an hour must not empty the list.
func (l *list) finish(records []Record) []Record {
	l.addLate(records)
	now := l.now()
	over, vias := 0, map[string]bool{} // an invitation stays as long as its identities, to be revoked with them
	for i := range records {
		if records[i].Live(now) {
			vias[records[i].Via] = true
		} else {
			over++
		}
	}
	return slices.DeleteFunc(records, func(r Record) bool {
		if over <= maxFinished || r.Live(now) || vias[r.Serial] {
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
	}
}

// saw records an entry. It never waits: refresh or close writes it.
func (l *list) saw(serial, from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[serial] = sighting{at: l.now().UTC().Truncate(time.Second), from: from}
}

// present records that an identity is connected, or was until now.
func (l *list) present(r *Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.seen[r.Serial]
	if s.from == "" {
		s.from = r.From
	}
	s.at = l.now().UTC().Truncate(time.Second)
	l.seen[r.Serial] = s
}

// refresh loads the list, and writes sightings every ten seconds.
func (l *list) refresh() error {
	_, err := l.load()
	l.mu.Lock()
	wait := seenPause - l.now().Sub(l.noted)
	l.mu.Unlock()
	if err == nil && (wait <= 0 || wait > seenPause) { // or the clock was set back
		l.writeSightings()
	}
	return err
}

// writeSightings writes the sightings that the file does not have.
func (l *list) writeSightings() {
	l.mu.Lock()
	l.noted = l.now()
	pending := len(l.seen) > 0 || l.ahead.Load()
	l.mu.Unlock()
	if !pending {
		return
	}
	// finish makes the change.
	if err := l.update(func(*table) (bool, error) { return true, nil }); err != nil {
		l.warn("the times when tickets were last used cannot be kept: %v", err)
		return
	}
	t := l.current.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	for serial, s := range l.seen {
		if r := t.get(serial); r == nil || !r.Seen.Before(s.at) {
			delete(l.seen, serial)
		}
	}
}

// state returns a record, or an error if its serial is unlisted, or if it or a ticket
// that it was issued with, directly or not, is revoked.
func (t *table) state(serial string) (*Record, error) {
	r := t.get(serial)
	if r == nil {
		return nil, unlisted(serial)
	}
	by := r
	for range t.records { // no chain is longer
		if by.State == Revoked {
			return nil, revoked(r, by.Ended)
		}
		if by = t.get(by.IssuedBy); by == nil {
			break
		}
	}
	return r, nil
}

// first returns the serial that a certificate had before its renewals, and when that was issued, or
// the oldest one that is still on the list.
func (t *table) first(r *Record) (serial string, issued time.Time) {
	before := map[string]*Record{}
	for i := range t.records {
		if old := &t.records[i]; old.Into != "" && old.Key == r.Key { // an exchange needs another key
			before[old.Into] = old
		}
	}
	for oldest := r; oldest != nil; oldest = before[oldest.Serial] {
		serial, issued = cmp.Or(oldest.First, oldest.Serial), oldest.Issued
		delete(before, oldest.Into) // ends a circle
	}
	return cmp.Or(r.First, serial), issued
}

// latest follows the renewals of a certificate.
func (t *table) latest(r *Record) *Record {
	for t.get(r.Into) != nil {
		r = t.get(r.Into)
	}
	return r
}

package trust

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
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
	issuers := []*Record{r} // and theirs
	for i := 0; i < len(issuers); i++ {
		if issuers[i].State == Revoked {
			return nil, revoked(r, issuers[i].Ended)
		}
		for _, by := range []string{issuers[i].IssuedBy, issuers[i].Through} {
			if up := t.get(by); up != nil && !slices.Contains(issuers, up) {
				issuers = append(issuers, up)
			}
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

// State is the current state of a serial.
type State string

// States of a serial. Only the first two are live: their name is taken.
const (
	Invited State = "invited" // an unused invitation
	Active  State = "active"  // an identity, or a reusable ticket
	Burnt   State = "burnt"   // an invitation that was exchanged for Into
	Revoked State = "revoked" // revoked; kept so that its holder can learn why
)

// Kind distinguishes what is in the list.
type Kind string

// Token is the kind of a bearer token. All others are tickets.
const Token Kind = "token"

// Record describes one serial in the list. Times are in whole seconds, as in
// certificates.
type Record struct {
	Serial    string    `json:"serial"` // 32 hexadecimal digits
	Name      string    `json:"name"`
	Kind      Kind      `json:"kind,omitempty"`
	Rights    Rights    `json:"rights"` // of an invitation: those of the later identity
	State     State     `json:"state"`
	Reusable  bool      `json:"reusable,omitempty"`
	Uses      int       `json:"uses,omitempty"`      // of an invitation: how many may join with it, if more than one
	Used      int       `json:"used,omitempty"`      // and how many have
	Via       string    `json:"via,omitempty"`       // of an identity: the serial of an invitation with Uses
	Ephemeral bool      `json:"ephemeral,omitempty"` // the identity goes when it was disconnected for EphemeralTime
	Node      bool      `json:"node,omitempty"`      // of a node that is not the network's first: it has a node's certificate too
	Mesh      bool      `json:"mesh,omitempty"`      // with Node: of the first node's mesh
	Issued    time.Time `json:"issued"`
	Expires   time.Time `json:"expires"`
	Key       string    `json:"key"`                 // SHA-256 of the public key (SubjectPublicKeyInfo), or of a token, in hexadecimal
	First     string    `json:"first,omitempty"`     // of a renewed certificate: the serial before all renewals
	Into      string    `json:"into,omitempty"`      // the serial that replaced it: the identity, or the renewed certificate
	Ended     time.Time `json:"ended,omitzero"`      // when it was burnt or revoked
	By        string    `json:"by,omitempty"`        // the address of the exchange that burnt it
	IssuedBy  string    `json:"issued_by,omitempty"` // the serial of the requesting ticket; empty: a user of the node's machine
	Through   string    `json:"through,omitempty"`   // the serial of the second node that the holder of that ticket asked; empty: none
	Seen      time.Time `json:"seen,omitzero"`       // last entry, or of an ephemeral identity, last moment of a connection; may lag after a crash
	From      string    `json:"from,omitempty"`      // the address of that entry
}

// Live reports whether the record occupies its name at that time.
func (r *Record) Live(now time.Time) bool {
	return (r.State == Invited || r.State == Active) && !now.After(r.Expires)
}

// what names the record for people: "ticket ci".
func (r *Record) what() string { return r.kind() + " " + r.Name }

func (r *Record) kind() string { return string(cmp.Or(r.Kind, "ticket")) }

// The list is one file, replaced as a whole. A line holds the version, the network and
// the SHA-256 of the rest; then come the records as JSON. A truncated or changed file is
// damaged, and none of it is trusted.
const (
	listName    = "tickets"
	listVersion = "fbus-tickets 1"
	listLimit   = 16 << 20
)

func formatList(network string, records []Record) ([]byte, error) {
	if records == nil {
		records = []Record{}
	}
	body, err := json.MarshalIndent(records, "", " ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append(fmt.Appendf(nil, "%s %s %x\n", listVersion, network, sha256.Sum256(body)), body...), nil
}

func parseList(network string, data []byte) ([]Record, error) {
	head, body, _ := bytes.Cut(data, []byte("\n"))
	if !bytes.HasPrefix(head, []byte(listVersion+" ")) {
		return nil, errorf(args.CodeDamaged, "it does not begin with %q", listVersion)
	}
	want := fmt.Sprintf("%s %s %x", listVersion, network, sha256.Sum256(body))
	if string(head) != want {
		if !bytes.HasPrefix(head, []byte(listVersion+" "+network+" ")) {
			return nil, errorf(args.CodeDamaged, "it is not the list of network %s", network)
		}
		return nil, errorf(args.CodeDamaged, "its checksum does not match its content")
	}
	var records []Record
	if err := args.DecodeStrict(body, &records); err != nil { // unknown fields would be lost with the next change
		return nil, errorf(args.CodeDamaged, "%v", err)
	}
	seen := map[string]bool{}
	for i := range records {
		if err := records[i].check(); err != nil {
			return nil, err
		}
		if seen[records[i].Serial] {
			return nil, errorf(args.CodeDamaged, "serial %s is in it twice", records[i].Serial)
		}
		seen[records[i].Serial] = true
	}
	return records, nil
}

func (r *Record) check() error {
	switch {
	case !isSerial(r.Serial):
		return errorf(args.CodeDamaged, "invalid serial %q", args.Shown(r.Serial))
	case CheckName(r.Name) != nil:
		return errorf(args.CodeDamaged, "serial %s has the name %q", r.Serial, args.Shown(r.Name))
	case !slices.Contains([]State{Invited, Active, Burnt, Revoked}, r.State):
		return errorf(args.CodeDamaged, "serial %s is in the state %q", r.Serial, args.Shown(string(r.State)))
	case len(r.Key) != 64 || !isHex(r.Key):
		return errorf(args.CodeDamaged, "serial %s has no key", r.Serial)
	case r.IssuedBy != "" && !isSerial(r.IssuedBy):
		return errorf(args.CodeDamaged, "serial %s was issued by %q", r.Serial, args.Shown(r.IssuedBy))
	case r.Through != "" && !isSerial(r.Through):
		return errorf(args.CodeDamaged, "serial %s was issued through %q", r.Serial, args.Shown(r.Through))
	case r.Via != "" && !isSerial(r.Via):
		return errorf(args.CodeDamaged, "serial %s has joined with %q", r.Serial, args.Shown(r.Via))
	case r.Uses < 0 || r.Used < 0:
		return errorf(args.CodeDamaged, "serial %s has a negative number of uses", r.Serial)
	case r.Kind != "" && r.Kind != Token:
		return errorf(args.CodeDamaged, "serial %s is of the kind %q", r.Serial, args.Shown(string(r.Kind)))
	case r.First != "" && !isSerial(r.First):
		return errorf(args.CodeDamaged, "serial %s was %q at first", r.Serial, args.Shown(r.First))
	case r.Into != "" && !isSerial(r.Into):
		return errorf(args.CodeDamaged, "serial %s became %q", r.Serial, args.Shown(r.Into))
	}
	return nil
}

package jobs

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"fbus/bus/args"
	"fbus/bus/jobs/store"
)

// Post is a call to be kept.
type Post struct {
	ID       ID // of [Manager.Arrives]; zero: a new one
	Function string
	Poster   Poster
	Options  Options
	Kind     args.Kind
	Args     []byte
	HasInput bool      // an input was posted with the arguments
	Input    io.Reader // nil: none
	Trace    string    // as args.Trace has it
}

// ParseOptions reads the options of a post. It refuses unknown ones: they would be
// promises that are not kept.
func ParseOptions(text []byte) (o Options, kind string, input bool, err error) {
	var q struct {
		Options
		Kind  string   `json:"kind"`
		Input bool     `json:"input"`
		Keep  *float64 `json:"keep"`
	}
	if len(strings.TrimSpace(string(text))) > 0 {
		if err := args.DecodeStrict(text, &q); err != nil {
			return o, "", false, fmt.Errorf("options: %v", err)
		}
	}
	if q.Keep != nil { // 0 is not the default
		q.Options.Keep = cmp.Or(*q.Keep, 1e-9)
	}
	return q.Options, q.Kind, q.Input, q.Options.Check()
}

// Post keeps a call. When it returns without an error the job is on disk. With a unique
// key the id may be that of a job which was there.
func (m *Manager) Post(p *Post) (ID, error) {
	if err := m.withRoom(m.store.Unwritable); err != nil {
		return ID{}, err
	}
	j := &Job{
		ID: p.ID, Function: p.Function, State: Queued, Poster: p.Poster, Options: p.Options,
		Kind: uint8(p.Kind), HasInput: p.HasInput, Posted: m.store.Clock.Wall().UnixMilli(),
		Trace: p.Trace,
	}
	if j.ID == (ID{}) {
		j.ID = m.store.NextID()
	}
	if err := m.withRoom(func() error { return m.store.Shares.Take(nil, j) }); err != nil { // its input may come slowly
		return ID{}, err
	}
	args, input := m.store.Spool.NewDraft(p.Poster.Key()), m.store.Spool.NewDraft(p.Poster.Key())
	input.Counts = true // to tell what can never fit from what has no room now
	_, err := args.Write(p.Args)
	digest, from := sha256.New(), p.Input
	if j.Unique != "" {
		sent := sorted(p.Kind, p.Args)
		fmt.Fprintf(digest, "%d %t %d %s", p.Kind, p.HasInput, len(sent), sent)
		if from != nil {
			from = io.TeeReader(from, digest)
		}
	}
	if err == nil && from != nil {
		if _, err = io.Copy(input, from); err == nil {
			err = input.Failed
		}
	}
	if j.Unique != "" {
		j.Digest = hex.EncodeToString(digest.Sum(nil)[:16])
	}
	if err == nil {
		err = args.Keep(j.ID, store.PartArgs, 0)
	}
	if err == nil {
		err = input.Keep(j.ID, store.PartInput, 0)
	}
	id := j.ID
	if err == nil {
		j.Args, j.Input = args.Payload, input.Payload
		if j.Due = j.Options.DueAt(m.store.Time()); j.Due > 0 {
			j.State = Delayed
		}
		err = m.withRoom(func() (err error) { id, err = m.add(j, args, input); return err })
	}
	switch {
	case err != nil || id != j.ID:
		if errors.As(err, new(*store.UncertainError)) { // its files stay: the record may be on disk
			args.File, input.File = "", ""
		}
		args.Drop()
		input.Drop()
		m.store.Shares.Change(j, nil)
		m.settle(j.BatchKey())
	case j.State == Queued:
		m.ready(j)
	default:
		m.report(id)
		m.poke()
	}
	return id, err
}

// sorted returns arguments with their fields in the order of their names: in which order
// they were given makes no difference for a unique key.
func sorted(kind args.Kind, data []byte) []byte {
	if kind == args.KindJSON {
		var v any
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber() // they are compared as they are written
		if d.Decode(&v) == nil {
			if doc, err := json.Marshal(v); err == nil {
				return doc
			}
		}
	}
	if kind != args.KindMap {
		return data
	}
	v, err := args.Decode(kind, data)
	if err != nil {
		return data
	}
	fields := make([]args.Field, len(v.Keys))
	for i, key := range v.Keys {
		fields[i] = args.Field{Name: key, Value: string(v.List[i].Text), JSON: v.List[i].JSON}
	}
	slices.SortFunc(fields, func(a, b args.Field) int { return cmp.Compare(a.Name, b.Name) })
	return args.Fields(fields...).Data()
}

// Room returns why nothing can be posted now. It may read the store.
func (m *Manager) Room() error {
	if err := m.store.Unwritable(); err != nil {
		return err
	}
	err := m.store.Shares.Full()
	if err == nil {
		err = m.store.HasRoom()
	}
	if err != nil && m.hasOld() {
		return nil
	}
	return err
}

// add writes a new job, and returns the id of the one that its unique key belongs
// to.
func (m *Manager) add(j *Job, args, input *store.Draft) (ID, error) {
	id := j.ID
	err := m.store.Apply(store.Op{Added: j.ID, Takes: store.Takes(args, input), Run: func(t *store.Tx) error {
		id = j.ID
		switch other, err := t.HoldUnique(j); {
		case err != nil:
			return err
		case other != nil && !j.SameSent(other):
			return keyTaken(other)
		case other != nil:
			id = other.ID
			return nil
		}
		return store.Wrap(errors.Join(t.Enter(j), t.WritePart(j, store.PartArgs, args), t.WritePart(j, store.PartInput, input)))
	}})
	return id, err
}

// keyTaken is the error of a post with the key of a job that differs from it.
func keyTaken(other *Job) error {
	e := args.Errorf(args.CodeBadInput, "unique: job %s has this key, with other arguments or input", other.ID)
	return e.WithHint("fbus jobs %s shows it; another key posts another job", other.ID)
}

// Results that are older than oldAge are deleted, the oldest first, when their room is
// needed.
const oldAge = 24 * time.Hour

const (
	maxFound     = 10_000 // old results that one reading of the store finds
	maxOldLists  = 100
	evictedBytes = 1 << 20 // that are deleted at once for a full disk
	maxEvicted   = 500     // results, at once
)

type oldResults struct {
	mu    sync.Mutex          // protects lists; held while the store is read
	lists map[string]*oldList // by the poster's key; "": of all
}

// oldList is the old results of a poster, the oldest first.
type oldList struct {
	found []oldResult
	more  bool      // there are more than these
	next  time.Time // no other result is old before
}

type oldResult struct {
	id ID
	store.Ended
}

// list returns the old results of a poster, or of all. m.old.mu is held.
func (m *Manager) list(who string) *oldList {
	l, now := m.old.lists[who], m.store.Clock.Wall()
	if l != nil && (len(l.found) > 0 || !l.more && now.Before(l.next)) {
		return l
	}
	l = &oldList{next: now.Add(oldAge)}
	shorten := func() {
		slices.SortFunc(l.found, func(a, b oldResult) int { return cmp.Compare(a.Finished, b.Finished) })
		if len(l.found) > maxFound {
			l.found, l.more = l.found[:maxFound], true
		}
	}
	err := m.scan(m.ctx, &Filter{Owner: Owner{Key: who}}, ID{}, false, func(id ID, record []byte) bool {
		e, ok := store.PeekEnded(record)
		switch old := time.UnixMilli(e.Finished).Add(oldAge); {
		case !ok || e.KeyUntil > m.store.Now():
		case old.After(now):
			l.next = time.UnixMilli(min(l.next.UnixMilli(), old.UnixMilli()))
		case l.more && e.Finished >= l.found[maxFound-1].Finished: // as many are older
		default:
			if l.found = append(l.found, oldResult{id, e}); len(l.found) >= 2*maxFound {
				shorten()
			}
		}
		return true
	})
	shorten()
	if err == nil {
		if m.old.lists == nil || len(m.old.lists) >= maxOldLists {
			m.old.lists = map[string]*oldList{}
		}
		m.old.lists[who] = l
	}
	return l
}

// takeOld takes the oldest results off the list of a poster: one, or as many as have so many
// bytes.
func (m *Manager) takeOld(who string, bytes int64) (ids []ID) {
	m.old.mu.Lock()
	defer m.old.mu.Unlock()
	l := m.list(who)
	for len(l.found) > 0 && len(ids) < maxEvicted && (len(ids) == 0 || bytes > 0) {
		r := l.found[0]
		l.found = l.found[1:]
		ids = append(ids, r.id)
		bytes -= r.Bytes
	}
	return ids
}

func (m *Manager) hasOld() bool {
	m.old.mu.Lock()
	defer m.old.mu.Unlock()
	return len(m.list("").found) > 0
}

// evictOldest deletes the oldest results of a poster, or of all with "", and reports whether
// there was one.
func (m *Manager) evictOldest(who string, bytes int64) bool {
	for {
		ids := m.takeOld(who, bytes)
		if len(ids) == 0 {
			return false
		}
		now, wall := m.store.Now(), m.store.Clock.Wall()
		n, err := m.remove(m.ctx, ids, func(j *Job) bool { // it may have changed
			return (j.State == Done || j.State == Cancelled) && j.KeyUntil <= now && wall.Sub(time.UnixMilli(j.Finished)) >= oldAge
		})
		if n > 0 || err != nil {
			return n > 0
		}
	}
}

// evict deletes old results, since there was no room, and reports whether it has deleted
// any. For the share of a poster these are its own, unless others leave it less than its
// share.
func (m *Manager) evict(err error) bool {
	var full *FullError
	switch {
	case !errors.As(err, &full) || full.Live || errors.As(err, new(*store.UncertainError)):
		return false
	case full.Err != nil:
		return m.evictForDisk()
	case full.Of != "" && m.evictOldest(full.Of, 0):
		return true
	}
	return (full.Of == "" || full.Left) && m.evictOldest("", 0)
}

// evictForDisk is evict for a full disk.
func (m *Manager) evictForDisk() bool {
	was := m.store.Unwritable()
	m.clearing.Lock()
	defer m.clearing.Unlock()
	if was != nil && m.store.Unwritable() == nil {
		return true // somebody else has made room
	}
	ok := m.evictOldest("", evictedBytes)
	m.store.Apply(store.Op{Run: func(*store.Tx) error { return nil }}) // then the store knows whether it can be written
	return ok
}

// withRoom repeats a change while there is no room for it and old results can be deleted.
func (m *Manager) withRoom(change func() error) error {
	for {
		if err := change(); err == nil || !m.evict(err) {
			return err
		}
	}
}

package jobs

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"fbus/bus/args"
)

// Post is a call to be kept.
type Post struct {
	ID       ID // of [Manager.Arrives]; zero: a new one
	Function string
	Poster   Poster
	Options  Options
	Kind     args.Kind
	Args     []byte
	HasInput bool      // there is an input beside arguments
	Input    io.Reader // nil: none
}

// ParseOptions reads the options of a post, strictly: one that is not known would
// promise what is not kept.
func ParseOptions(text []byte) (o Options, kind string, input bool, err error) {
	var q struct {
		Options
		Kind  string   `json:"kind"`
		Input bool     `json:"input"`
		Keep  *float64 `json:"keep"`
	}
	if len(strings.TrimSpace(string(text))) > 0 {
		dec := json.NewDecoder(strings.NewReader(string(text)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&q); err != nil {
			return o, "", false, fmt.Errorf("options: %v", err)
		}
		if _, err := dec.Token(); err != io.EOF {
			return o, "", false, fmt.Errorf("options: there is more behind the object")
		}
	}
	if q.Keep != nil { // none is not the same as not at all
		q.Options.Keep = cmp.Or(*q.Keep, 1e-9)
	}
	return q.Options, q.Kind, q.Input, q.Options.check()
}

// maxSeconds keeps a time in seconds from overflowing: a hundred years.
const maxSeconds = 100 * 365 * 86400

func (o *Options) check() error {
	for _, t := range []struct {
		name string
		v    float64
	}{{"delay", o.Delay}, {"backoff", o.Backoff}, {"keep", o.Keep}, {"timeout", o.Timeout}} {
		if math.IsNaN(t.v) || t.v < 0 || t.v > maxSeconds {
			return fmt.Errorf("%s: %v is no time in seconds", t.name, t.v)
		}
	}
	switch {
	case o.At != "" && o.Delay > 0:
		return fmt.Errorf("delay and at exclude each other")
	case o.Retries < 0 || o.Retries > 1_000_000:
		return fmt.Errorf("retries: %d is not from 0 to 1000000", o.Retries)
	case o.Priority < -maxPriority || o.Priority > maxPriority:
		return fmt.Errorf("priority: %d is not from %d to %d", o.Priority, -maxPriority, maxPriority)
	case strings.ContainsRune(o.Unique, utf8.RuneError): // what is no UTF-8 has become that: keys would be taken for each other
		return fmt.Errorf("unique: the key is not UTF-8")
	case len(o.Unique) > 1024:
		return fmt.Errorf("unique: %d bytes exceed the limit of 1024", len(o.Unique))
	case len(o.On) > 256 || strings.ContainsAny(o.On, "\x00\x01"):
		return fmt.Errorf("on: it is no glob of workers' names")
	}
	if o.At != "" {
		at, err := time.Parse(time.RFC3339, o.At)
		if err != nil {
			return fmt.Errorf("at: %q is no time like 2026-11-26T07:00:00Z", o.At)
		}
		if time.Until(at) > seconds(maxSeconds) { // the store's time would overflow
			return fmt.Errorf("at: %s is more than a hundred years ahead", o.At)
		}
	}
	return nil
}

// due is the store's time at which the job is ready; 0: now.
func (o *Options) due(t *timeline) int64 {
	if o.At != "" {
		at, _ := time.Parse(time.RFC3339, o.At)
		if due := t.at(at); due > t.now() {
			return due
		}
		return 0
	}
	if o.Delay > 0 {
		return t.now() + int64(seconds(o.Delay))
	}
	return 0
}

// Post keeps a call. When it returns the job is on disk; an error says that it is
// not. With a unique key the id may be that of a job which was there.
func (m *Manager) Post(p *Post) (ID, error) {
	if err := m.Room(); err != nil {
		return ID{}, err
	}
	args, input := m.store.spool.newDraft(), m.store.spool.newDraft()
	drop := func() { args.drop(); input.drop() }
	_, err := args.Write(p.Args)
	if err == nil && p.Input != nil {
		_, err = io.Copy(input, p.Input)
	}
	j := &Job{
		ID: p.ID, Function: p.Function, State: Queued, Poster: p.Poster, Options: p.Options,
		Kind: uint8(p.Kind), HasInput: p.HasInput, Posted: millis(m.store.clock.Wall()),
	}
	if j.ID == (ID{}) {
		j.ID = m.store.nextID()
	}
	if err == nil {
		if err = args.keep(j.ID, partArgs, 0); err == nil {
			err = input.keep(j.ID, partInput, 0)
		}
	}
	if err != nil {
		drop()
		return ID{}, err
	}
	j.Args, j.Input = args.payload, input.payload
	if j.Due = j.Options.due(m.store.time); j.Due > 0 {
		j.State = Delayed
	}
	id, err := m.add(j, args, input)
	if err != nil || id != j.ID {
		drop()
		return id, err
	}
	if j.State == Queued {
		m.ready(j)
	} else {
		m.poke()
	}
	m.changed(id, false)
	return id, nil
}

// Room says why nothing can be posted now.
func (m *Manager) Room() error {
	if err := m.store.unwritable(); err != nil {
		return err
	}
	if n := m.store.jobs.Load(); n >= m.store.maxJobs {
		return m.errJobs()
	}
	return nil
}

func (m *Manager) errJobs() error {
	return &FullError{What: fmt.Sprintf("%d jobs are the limit (--max-jobs)", m.store.maxJobs)}
}

// add writes a new job, and returns the id of the one that its unique key belongs
// to.
func (m *Manager) add(j *Job, args, input *draft) (ID, error) {
	id := j.ID
	if m.store.jobs.Add(1) > m.store.maxJobs { // others have come first
		m.store.jobs.Add(-1)
		return ID{}, m.errJobs()
	}
	result := make(chan error, 1)
	m.store.submit(&op{added: j.ID, done: func(err error) { result <- err }, run: func(t *tx) error {
		id = j.ID
		if j.Unique != "" {
			switch held, err := t.get(bucketUnique, j.uniqueKey()); {
			case err != nil:
				return wrap(err)
			case held != nil:
				id = keyID(held)
				return nil
			}
			if err := t.put(bucketUnique, j.uniqueKey(), j.ID[:]); err != nil {
				return wrap(err)
			}
		}
		err := t.enter(j)
		if err == nil {
			err = t.write(j, partArgs, args)
		}
		if err == nil {
			err = t.write(j, partInput, input)
		}
		return wrap(err)
	}})
	err := <-result
	if err != nil || id != j.ID {
		m.store.jobs.Add(-1)
	}
	return id, err
}

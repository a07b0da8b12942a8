package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"time"
)

// Bounds of one [Journal.Read]: what is beyond them is for the next.
const (
	MaxEntries = 1000
	MaxRead    = 1 << 20 // bytes of lines
)

// flushTime bounds how long a read waits for what was appended before it: a disk
// that hangs must not hide what was written before.
var flushTime = time.Second

// Query says which entries are to be read.
type Query struct {
	After    uint64        // those with a greater seq
	Last     int           // of these, the last so many; 0: all
	Function string        // a name, or a glob as [path.Match] has it; empty: any
	Caller   string        // the same
	Event    string        // the same
	Wait     time.Duration // how long to wait for the first, if there is none yet
	Max      int           // return no more entries; default and at most MaxEntries
	MaxBytes int           // nor lines of more bytes, but one; default and at most MaxRead
}

// Read returns entries in order, all those that were appended before it among
// them, and the seq after which the next Read goes on. That is so for Last too: if
// the last so many are more than fit, the first part of them comes first.
//
// A next that is less than q.After says that the journal has begun anew: there are
// no entries, and the one who follows it starts over. The error is that of ctx,
// ErrClosed, ErrQuery, or what the disk says.
func (j *Journal) Read(ctx context.Context, q Query) (entries []Entry, next uint64, err error) {
	m := matcher{{`"function":"`, q.Function}, {`"caller":"`, q.Caller}, {`"event":"`, q.Event}}
	if err := m.check(); err != nil {
		return nil, q.After, err
	}
	var timeout <-chan time.Time
	if q.Wait > 0 {
		timer := time.NewTimer(q.Wait)
		defer timer.Stop()
		timeout = timer.C
	}
	if err := j.flush(ctx); err != nil {
		return nil, q.After, err
	}
	for {
		v := j.store.view()
		if v == nil {
			return nil, q.After, ErrClosed
		}
		if q.After <= v.last {
			entries, next, err = v.read(ctx, q, m)
		} else {
			next = v.last
		}
		j.store.release(v)
		if err != nil || len(entries) > 0 || q.Wait <= 0 || next < q.After {
			return entries, next, err
		}
		q.After = next
		select {
		case <-v.changed:
		case <-timeout:
			return nil, next, nil
		case <-ctx.Done():
			return nil, next, ctx.Err()
		}
	}
}

// flush waits until what was appended so far can be read.
func (j *Journal) flush(ctx context.Context) error {
	j.mu.Lock()
	target := j.seq
	j.mu.Unlock()
	var timeout <-chan time.Time
	for {
		done, changed := j.store.reached(target)
		if done {
			return nil
		}
		if timeout == nil {
			timer := time.NewTimer(flushTime)
			defer timer.Stop()
			timeout = timer.C
			signal(j.soon)
		}
		select {
		case <-changed:
		case <-timeout:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reached reports whether an entry can be read; if not, changed tells of progress.
func (s *store) reached(seq uint64) (done bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last >= seq || s.closed {
		return true, nil
	}
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return false, s.changed
}

// read returns the entries of a view.
func (v *view) read(ctx context.Context, q Query, m matcher) (entries []Entry, next uint64, err error) {
	if q.Last > 0 {
		q.After = v.beforeLast(ctx, q, m)
	}
	most, room := atMost(q.Max, MaxEntries), atMost(q.MaxBytes, MaxRead)
	next = q.After
	full := false
	v.forwards(q.After, func(l line) bool {
		if ctx.Err() != nil {
			return false
		}
		if m.matches(l.text) {
			if len(entries) == most || len(entries) > 0 && len(l.text) > room {
				full = true
				return false
			}
			var e Entry
			if json.Unmarshal(l.text, &e) == nil {
				entries = append(entries, e)
				room -= len(l.text)
			}
		}
		next = l.seq
		return true
	})
	switch {
	case ctx.Err() != nil:
		return nil, q.After, ctx.Err()
	case v.broken != nil:
		return entries, next, v.broken
	case !full:
		next = max(next, v.last)
	}
	return entries, next, nil
}

// beforeLast is the seq after which the last q.Last entries come.
func (v *view) beforeLast(ctx context.Context, q Query, m matcher) uint64 {
	start, n, before := q.After, 0, v.last+1
	v.backwards(func(l line) bool {
		if l.seq <= q.After || ctx.Err() != nil {
			return false
		}
		if l.seq >= before { // it stands in a file and in memory, being written just now
			return true
		}
		before = l.seq
		if m.matches(l.text) {
			if n++; n == q.Last {
				start = l.seq - 1
				return false
			}
		}
		return true
	})
	return start
}

func atMost(n, most int) int {
	if n <= 0 || n > most {
		return most
	}
	return n
}

// matcher tells entries by fields of their lines. They are found in the text: to
// decode every line would take a hundred times as long. A quote within a text is
// escaped, so the name of a field is never part of one.
type matcher [3]struct{ field, glob string }

func (m *matcher) check() error {
	for _, f := range m {
		if _, err := path.Match(f.glob, ""); err != nil {
			return fmt.Errorf("%w: %q is no glob: a class is closed and not empty: [a-z]", ErrQuery, cutGlob(f.glob))
		}
	}
	return nil
}

func cutGlob(s string) string {
	if len(s) > maxText {
		return cut(s)
	}
	return s
}

func (m *matcher) matches(text []byte) bool {
	for _, f := range m {
		if f.glob != "" && !matchField(text, f.field, f.glob) {
			return false
		}
	}
	return true
}

func matchField(text []byte, field, glob string) bool {
	i := bytes.Index(text, []byte(field))
	if i < 0 {
		return false
	}
	value := text[i+len(field):]
	end := bytes.IndexByte(value, '"')
	if end < 0 {
		return false
	}
	if bytes.IndexByte(value[:end], '\\') < 0 {
		if string(value[:end]) == glob {
			return true
		}
		ok, _ := path.Match(glob, string(value[:end]))
		return ok
	}
	var s string // escapes: rare, and never in the name of a function
	if json.NewDecoder(bytes.NewReader(text[i+len(field)-1:])).Decode(&s) != nil {
		return false
	}
	ok, _ := path.Match(glob, s)
	return ok || s == glob
}

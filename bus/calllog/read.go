package calllog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"fbus/bus"
)

// Limits of one [Log.Read]: the next one returns the rest.
const (
	MaxEntries = 1000
	MaxRead    = 1 << 20 // bytes of lines
)

// Errors of a read.
var (
	ErrClosed = errors.New("the log is closed")
	ErrQuery  = errors.New("malformed query")
)

// flushTime limits the wait of a read for entries appended earlier: a hanging disk must
// not hide entries that are already written.
var flushTime = time.Second

// Query selects entries.
type Query struct {
	After    uint64        // those with a greater seq
	Last     int           // of these, only the last ones; 0: all
	Function string        // a name, or a glob of [path.Match]; empty: any
	Caller   string        // the same
	Event    string        // the same
	Wait     time.Duration // time to wait for the first one, if there is none yet
}

// Read returns entries in order, including all appended before it, and the seq after
// which the next Read continues. If the last q.Last entries do not fit, the first part
// of them comes first.
//
// A next below q.After means that the log has begun again: there are no entries, and a
// follower starts over. The error is that of ctx, ErrClosed, ErrQuery, or the disk's.
func (l *Log) Read(ctx context.Context, q Query) (entries []bus.LogEntry, next uint64, err error) {
	m := matcher{{`"function":"`, q.Function}, {`"caller":"`, q.Caller}, {`"event":"`, q.Event}}
	if err := m.check(); err != nil {
		return nil, q.After, err
	}
	l.mu.Lock()
	target := l.seq
	l.mu.Unlock()
	late := time.After(flushTime)
	var timeout <-chan time.Time
	for {
		l.mu.Lock()
		closed, last, changed := l.closed, l.written, l.changed
		l.mu.Unlock()
		switch {
		case closed:
			return nil, q.After, ErrClosed
		case last < target:
			signal(l.soon)
		default:
			next = last
			if q.After < last {
				entries, next, err = l.scan(ctx, q, m, last)
			}
			if err != nil || len(entries) > 0 || q.Wait <= 0 || next < q.After {
				return entries, next, err
			}
			q.After = next
			if timeout == nil {
				timeout = time.After(q.Wait)
			}
		}
		select {
		case <-changed:
		case <-late:
			target = 0
		case <-timeout:
			return nil, next, nil
		case <-ctx.Done():
			return nil, q.After, ctx.Err()
		}
	}
}

// scan reads the entries up to last that match a query.
func (l *Log) scan(ctx context.Context, q Query, m matcher, last uint64) (entries []bus.LogEntry, next uint64, err error) {
	v, err := l.view(q.Event)
	if err != nil {
		return nil, q.After, err
	}
	defer v.close()
	after := q.After
	if q.Last > 0 {
		// Numbers have few gaps, so the search for the last entries widens step by step.
		for span := uint64(q.Last); ; span *= 8 {
			from := q.After
			if span < last-q.After {
				from = last - span
			}
			var found []uint64
			err := v.each(ctx, from, last, func(seq uint64, text []byte) bool {
				if m.matches(text) {
					found = append(found, seq)
				}
				return true
			})
			if err != nil {
				return nil, q.After, err
			}
			if n := len(found); n >= q.Last {
				after = found[n-q.Last] - 1
			} else if from > q.After {
				continue
			}
			break
		}
	}
	next = last
	room, before := MaxRead, after
	err = v.each(ctx, after, last, func(seq uint64, text []byte) bool {
		if m.matches(text) {
			if len(entries) == MaxEntries || len(entries) > 0 && len(text) > room {
				next = before
				return false
			}
			var e bus.LogEntry
			if json.Unmarshal(text, &e) == nil {
				entries = append(entries, e)
				room -= len(text)
			} else {
				v.damaged = true
			}
		}
		before = seq
		return true
	})
	if err != nil {
		return nil, q.After, err
	}
	if v.damaged && !l.damage.Swap(true) {
		l.opts.Warn("%s: damaged lines in the log are skipped", l.opts.Dir)
	}
	return entries, next, nil
}

// view is a snapshot of the log's files. Entries may be added to them, but none is
// removed while a view is open.
type view struct {
	files   [len(kinds)][]*os.File // of each series, oldest first
	damaged bool                   // foreign lines were found
}

// view opens the log's files for reading. It skips series without an event that matches a
// glob; an empty glob matches any.
func (l *Log) view(event string) (*view, error) {
	has := func(name string) bool {
		ok, _ := path.Match(event, name)
		return ok || event == ""
	}
	l.moving.RLock()
	defer l.moving.RUnlock()
	v := &view{}
	for i := range l.series {
		if i == 0 && !has(EventCall) && !has(EventDropped) || i == 1 && !has(EventRefused) {
			continue
		}
		for k := l.opts.Files - 1; k >= 0; k-- {
			f, err := os.Open(l.series[i].file(k))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				v.close()
				return nil, err
			}
			v.files[i] = append(v.files[i], f)
		}
	}
	return v, nil
}

func (v *view) close() {
	for _, files := range v.files {
		for _, f := range files {
			f.Close()
		}
	}
}

// last returns the highest seq of all entries.
func (v *view) last() (last uint64) {
	for i := range v.files {
		c := v.seek(i, math.MaxUint64)
		for last = max(last, c.seq); c.next(); {
			last = max(last, c.seq)
		}
	}
	return last
}

// each calls f with every line whose seq is greater than after and at most last, in
// order, until f returns false. The text is valid only in the call.
func (v *view) each(ctx context.Context, after, last uint64, f func(seq uint64, text []byte) bool) error {
	advance := func(c *cursor) {
		for c.next() && (c.seq <= after || c.seq > last) {
		}
	}
	var cursors [len(kinds)]*cursor
	for k := range cursors {
		cursors[k] = v.seek(k, after)
		advance(cursors[k])
	}
	for ctx.Err() == nil {
		next := cursors[0]
		for _, c := range cursors {
			if c.err != nil {
				return c.err
			}
			if c.seq != 0 && (next.seq == 0 || c.seq < next.seq) {
				next = c
			}
		}
		if next.seq == 0 || !f(next.seq, next.text) {
			return nil
		}
		advance(next)
	}
	return ctx.Err()
}

// cursor reads the lines of one series in order.
type cursor struct {
	view  *view
	files []*os.File // still to read, the first one through r
	r     *bufio.Reader

	seq  uint64 // of the current line; 0: none
	text []byte
	err  error // the reason that there is none
}

// seek returns a cursor a little before the first line whose seq is greater than after.
func (v *view) seek(series int, after uint64) *cursor {
	c := &cursor{view: v, r: bufio.NewReaderSize(nil, 2*maxLine)} // room for every line that the log writes
	files := v.files[series]
	for k := len(files) - 1; k >= 0; k-- {
		for back := int64(4 * maxLine); ; back *= 8 {
			from := int64(0)
			if st, err := files[k].Stat(); err == nil {
				from = max(0, st.Size()-back)
			}
			c.start(files[k:], from)
			if from > 0 {
				c.r.ReadSlice('\n') // the rest of a line
			}
			// This line is consumed, so it must precede the wanted ones.
			if c.next() && c.seq <= after {
				return c
			}
			if from == 0 {
				break
			}
		}
	}
	c.start(files, 0)
	return c
}

func (c *cursor) start(files []*os.File, offset int64) {
	c.files = files
	if len(files) > 0 {
		c.r.Reset(io.NewSectionReader(files[0], offset, 1<<62))
	}
}

// next reads the next line, and reports whether there was one.
func (c *cursor) next() bool {
	for c.seq = 0; len(c.files) > 0; {
		text, err := c.r.ReadSlice('\n')
		long := err == bufio.ErrBufferFull
		for err == bufio.ErrBufferFull {
			_, err = c.r.ReadSlice('\n')
		}
		if err == io.EOF { // an unfinished line has no end yet
			c.start(c.files[1:], 0)
			continue
		}
		if c.err = err; err != nil {
			return false
		}
		if seq := seqOf(text); !long && seq > 0 && text[len(text)-2] == '}' {
			c.seq, c.text = seq, text[:len(text)-1]
			return true
		}
		c.view.damaged = c.view.damaged || len(text) > 1
	}
	return false
}

// seqOf returns the number at the start of a line, or 0.
func seqOf(text []byte) uint64 {
	rest, ok := bytes.CutPrefix(text, []byte(`{"seq":`))
	end := bytes.IndexByte(rest[:min(len(rest), 21)], ',')
	if !ok || end < 0 {
		return 0
	}
	n, err := strconv.ParseUint(string(rest[:end]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// matcher selects entries by fields of their lines. It searches the text, since decoding
// every line would take a hundred times as long. Quotes within a text are escaped, so
// they cannot look like a field's name.
type matcher [3]struct{ field, glob string }

func (m *matcher) check() error {
	for _, f := range m {
		if _, err := path.Match(f.glob, ""); err != nil {
			return fmt.Errorf("%w: invalid glob %q: a class is closed and not empty: [a-z]", ErrQuery, cut(f.glob))
		}
	}
	return nil
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
	text = text[i+len(field)-1:]
	end := bytes.IndexByte(text[1:], '"') + 1
	if end == 0 {
		return false
	}
	s := string(text[1:end])
	if bytes.IndexByte(text[:end], '\\') >= 0 { // rare, and never in the name of a function
		if json.NewDecoder(bytes.NewReader(text)).Decode(&s) != nil {
			return false
		}
	}
	if i := strings.LastIndex(s, "/mcp:"); i > 0 && strings.Contains(s[:i], "/token:") && !strings.Contains(glob, "/mcp:") {
		s = s[:i] // the bearer of a token, by any client
	}
	if via, _, relayed := strings.Cut(s, "/"); relayed && !strings.Contains(glob, "/") {
		if ok, _ := path.Match(glob, s[strings.LastIndexByte(s, '/')+1:]); ok && strings.HasPrefix(glob, "token:") {
			return true // the bearer of a token, by any relay
		}
		s = via // a relay, with all its callers
	}
	ok, _ := path.Match(glob, s)
	return ok || s == glob
}

// Package journal keeps a node's log: who called what, when, on which worker,
// with what end, and who was refused. It is a directory of files of JSON lines,
// bounded in size: log.jsonl, which is written to, and log.1.jsonl, log.2.jsonl, …,
// each older than the one before. Every line ends with a checksum of what stands
// before it in the line, so that damage shows.
//
// A journal is written by one process. Whoever appends to it never waits for the
// disk: a goroutine writes what has come, some milliseconds later, all at once.
// What a killed process had not written by then is missing; a crash of the machine
// may cost more, for nothing here is synced.
package journal

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// Defaults of [Options].
const (
	DefaultMaxBytes = 8 << 20
	DefaultFiles    = 5
)

// Options say where a journal is, and how much of it is kept.
type Options struct {
	Dir      string // made if need be, mode 0700
	MaxBytes int64  // of a file; default 8 MiB
	Files    int    // kept, with the one that is written to; default 5

	// Warn says what is wrong with the journal while it works on: it can not be
	// written, lines are damaged or missing. Default: nothing is said.
	Warn func(format string, args ...any)
}

// Errors of a read.
var (
	ErrClosed = errors.New("the journal is closed")
	ErrQuery  = errors.New("malformed query")
)

const (
	// maxQueue is how many entries may wait for the writer: about 6 MB.
	maxQueue = 16384

	// linger is how long the writer lets entries gather. Waking it for each would
	// cost the one that appends more than all else: a system call if a CPU is idle.
	linger = 5 * time.Millisecond
)

// Journal is an open journal. Its methods may be called from any goroutine.
type Journal struct {
	opts Options
	wake chan struct{} // has room for one: the queue is not empty any more
	soon chan struct{} // has room for one: somebody waits, or the queue fills up
	stop chan struct{} // closed by Close
	done chan struct{} // closed when the writer has ended

	mu      sync.Mutex // protects what follows; held for moments only, never over I/O
	queue   []Entry    // not taken by the writer yet
	seq     uint64     // of the entry that came last
	dropped uint64     // entries since the writer last looked that found no room
	closed  bool

	store store
}

// Open opens the journal in a directory, and makes it if there is none. What a
// crash has left half written at its end is cut off. It is an error if another
// process has the journal, or if others may write to it.
func Open(o Options) (*Journal, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.Files <= 0 {
		o.Files = DefaultFiles
	}
	if o.Warn == nil {
		o.Warn = func(string, ...any) {}
	}
	j := &Journal{
		opts: o, wake: make(chan struct{}, 1), soon: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	if err := j.store.open(&j.opts); err != nil {
		return nil, err
	}
	j.seq = j.store.last
	go j.write() // ends when the journal is closed
	return j, nil
}

// Append adds an entry. It copies e and gives the copy its number, and the present
// time if it has none; texts are cut to 256 bytes. It never waits for the disk:
// when the writer falls too far behind, the entry is dropped, and a later one of
// the event "dropped" says how many were.
func (j *Journal) Append(e *Entry) {
	now := e.Time
	if now.IsZero() {
		now = time.Now()
	}
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return
	}
	if len(j.queue) >= maxQueue {
		j.dropped++
		j.mu.Unlock()
		return
	}
	j.seq++
	j.queue = append(j.queue, *e)
	n := len(j.queue)
	q := &j.queue[n-1]
	q.Seq, q.Time = j.seq, now
	bound(q)
	j.mu.Unlock()
	switch n {
	case 1:
		signal(j.wake)
	case maxQueue / 2:
		signal(j.soon)
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Close writes what has come and closes the journal. Entries that are appended
// later are not kept. The error is for entries that could not be written.
func (j *Journal) Close() error {
	j.mu.Lock()
	closed := j.closed
	j.closed = true
	j.mu.Unlock()
	if !closed {
		close(j.stop)
	}
	<-j.done
	if closed {
		return nil
	}
	return j.store.close()
}

// write takes entries and stores them until the journal is closed.
func (j *Journal) write() {
	defer close(j.done)
	var batch []Entry
	lost := lostReport{warn: j.opts.Warn}
	timer := time.NewTimer(0)
	<-timer.C
	for {
		stopping := j.gather(timer)
		var dropped uint64
		batch, dropped = j.take(batch)
		j.store.put(batch)
		lost.add(dropped, stopping)
		if stopping {
			return
		}
		clear(batch) // the texts are the collector's
		if cap(batch) > 1024 && len(batch) < cap(batch)/4 {
			batch = nil // it was for a busy time
		}
	}
}

// gather waits for entries, and a little longer for more; or until it is time to
// try the disk again. It reports whether the journal is being closed.
func (j *Journal) gather(timer *time.Timer) (stopping bool) {
	var retry <-chan time.Time
	if wait, failing := j.store.retryIn(); failing {
		timer.Reset(wait)
		retry = timer.C
	}
	select {
	case <-j.wake:
	case <-retry:
	case <-j.soon:
		return false
	case <-j.stop:
		return true
	}
	timer.Reset(linger)
	select {
	case <-timer.C:
	case <-j.soon:
	case <-j.stop:
		return true
	}
	return false
}

// take swaps the queue for an empty one. If entries were dropped since, the last
// of what it returns says so: the queue was full then, so they came after all that
// is in it.
func (j *Journal) take(empty []Entry) (batch []Entry, dropped uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	batch, j.queue = j.queue, empty[:0]
	dropped, j.dropped = j.dropped, 0
	if dropped > 0 {
		j.seq++
		batch = append(batch, missing(j.seq, dropped, "they came faster than they could be written"))
	}
	return batch, dropped
}

// missing is an entry about others.
func missing(seq, n uint64, why string) Entry {
	return Entry{Seq: seq, Time: time.Now(), Event: EventDropped, Dropped: n, Message: fmt.Sprintf("%d entries are missing: %s", n, why)}
}

// lostReport says how many entries were dropped, not more often than every ten
// seconds.
type lostReport struct {
	warn func(format string, args ...any)
	n    uint64
	last time.Time
}

func (l *lostReport) add(n uint64, final bool) {
	l.n += n
	if l.n == 0 || !final && time.Since(l.last) < 10*time.Second {
		return
	}
	l.warn("the log is too slow: %d entries are missing from it", l.n)
	l.n, l.last = 0, time.Now()
}

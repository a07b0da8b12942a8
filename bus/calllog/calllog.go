// Package calllog keeps a node's call log. It records each call with its caller, time,
// worker and end, and each refused peer. The log is one stream of JSON lines with rising
// numbers. Its files, in one directory, are bounded in size. log.jsonl and the older
// log.1.jsonl, log.2.jsonl, … hold the calls. refused.jsonl and so on hold refusals, and
// security.jsonl and so on changes to tickets. So no flood of calls or refusals can evict
// changes to tickets.
//
// One process writes a log. Append never waits for the disk: a goroutine writes entries
// in batches some milliseconds later. If the process is killed, unwritten entries are
// lost. Nothing is synced, so a crash of the machine may lose more.
package calllog

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// Events of entries. Readers accept others.
const (
	EventCall    = "call"    // a call has ended
	EventRefused = "refused" // a peer was not admitted, or was denied something
	EventInvited = "invited" // a ticket was issued
	EventJoined  = "joined"  // an invitation was exchanged for an identity
	EventRenewed = "renewed" // an identity has a new certificate
	EventRevoked = "revoked" // a ticket was revoked
	EventRemoved = "removed" // an ephemeral identity has gone
	EventDropped = "dropped" // entries are missing here
)

// Options configures a log.
type Options struct {
	// Dir is the log's directory. No other user may write to it; it is created if missing.
	// Empty: only Copy is written, and there is nothing to read.
	Dir      string
	MaxBytes int64 // of a file; default 8 MiB
	Files    int   // kept of each series; default 5

	// Copy receives a line for each ended call, as --log promises. Its writes may block. It
	// is closed with the log.
	Copy io.WriteCloser

	// Warn reports trouble that does not stop the log. Default: trouble is not reported.
	Warn func(format string, args ...any)
}

const (
	// maxQueue limits the calls queued for the writer, about 6 MB. Refusals have extraQueue
	// more, and changes to tickets twice that.
	maxQueue   = 16384
	extraQueue = 1024

	// linger is the time that the writer lets entries gather. Waking it for each entry would
	// dominate the cost of Append: a system call if a CPU is idle.
	linger = 5 * time.Millisecond

	chunkSize = 64 << 10         // bytes written at once
	slowPause = 10 * time.Second // between two reports that entries were dropped
	copyGrace = 5 * time.Second  // for the last writes to Copy
)

// Log is an open log. Its methods may be called from any goroutine. A nil Log keeps
// nothing.
type Log struct {
	opts Options
	name string        // for messages
	copy *Log          // writes Options.Copy, from a goroutine of its own
	wake chan struct{} // has room for one: the queue is not empty any more
	soon chan struct{} // has room for one: a reader waits, or the queue fills up
	stop chan struct{} // closed by Close
	done chan struct{} // closed when the writer has ended

	mu      sync.Mutex     // protects the fields below; held for moments only, never over I/O
	queue   []bus.LogEntry // not taken by the writer yet
	seq     uint64         // of the newest entry
	dropped uint64         // entries dropped from a full queue since the last batch
	closed  bool
	bursts  map[kind]*burst // entries that fold; nil: none
	folding *time.Timer     // calls unfold; nil: there was no burst yet
	written uint64          // seq of the newest entry that can be read
	changed chan struct{}   // closed, and replaced, when written rises or the log closes

	lock   *os.File           // flocked
	moving sync.RWMutex       // held while files are renamed, or opened for reading
	series [len(kinds)]series // by kindOf
	damage atomic.Bool        // was reported

	// Used only by the writer.
	outs   [len(kinds)]io.Writer // nil: not written
	bufs   [len(kinds)][]byte
	err    error  // of the last write
	failed uint64 // entries lost since writes began to fail
	lost   uint64 // entries for the next "dropped" to count
	slow   uint64 // dropped entries not reported yet
	slowAt time.Time
}

// Open opens the log in a directory. It fails if another process writes the log.
func Open(o Options) (*Log, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = 8 << 20
	}
	if o.Files <= 0 {
		o.Files = 5
	}
	if o.Warn == nil {
		o.Warn = func(string, ...any) {}
	}
	start := func(name string) *Log {
		return &Log{
			opts: o, name: name, wake: make(chan struct{}, 1), soon: make(chan struct{}, 1), changed: make(chan struct{}),
			stop: make(chan struct{}), done: make(chan struct{}),
		}
	}
	var l, copied *Log
	if o.Dir != "" {
		l = start("the log")
		if err := l.openFiles(); err != nil {
			l.closeFiles()
			return nil, err
		}
		go l.write() // ends when the log is closed
	}
	if o.Copy != nil {
		copied = start("--log")
		copied.outs[0] = o.Copy
		go copied.write() // ends when the log is closed
	}
	if l == nil {
		return copied, nil
	}
	l.copy = copied
	return l, nil
}

// Kept reports whether the log is kept, so that Read finds its entries.
func (l *Log) Kept() bool { return l != nil && l.lock != nil }

// Append adds an entry. It copies e and sets the copy's number, and the current time if
// it has none. Texts are cut to 256 bytes. It never waits for the disk: if the queue is
// full, the entry is dropped, and a later entry of the event "dropped" counts it.
//
// A caller can be refused, or have fbus end its calls before a worker has them, at no cost.
// Of such entries with one code, 50 a minute are logged one by one. The others are folded:
// when the minute ends, one entry for each function counts them in More.
func (l *Log) Append(e *bus.LogEntry) {
	if l == nil {
		return
	}
	now := e.Time
	if now.IsZero() {
		now = time.Now()
	}
	room := maxQueue + extraQueue*kindOf(e.Event)
	l.mu.Lock()
	switch {
	case !l.closed && folds(e) && l.fold(e):
		l.mu.Unlock()
		return
	case l.closed || len(l.queue) >= room:
		l.dropped += max(1, e.More)
		l.mu.Unlock()
		return
	}
	l.queue = append(l.queue, *e)
	n := len(l.queue)
	q := &l.queue[n-1]
	if q.Time = now; q.Seq == 0 { // a copy has one
		l.seq++
		q.Seq = l.seq
	}
	bound(q)
	var copied bus.LogEntry
	if l.copy != nil {
		copied = *q
	}
	l.mu.Unlock()
	switch n {
	case 1:
		signal(l.wake)
	case maxQueue / 2:
		signal(l.soon)
	}
	l.copy.Append(&copied)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Close writes the queued entries and closes the log. Later entries are not kept. The
// error reports entries that could not be written.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.unfold()
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	if l.folding != nil {
		l.folding.Stop()
	}
	l.mu.Unlock()
	if first {
		close(l.stop)
	}
	l.copy.Close()
	var late <-chan time.Time
	if l.lock == nil {
		late = time.After(copyGrace)
	}
	select {
	case <-l.done:
	case <-late: // its reader hangs, and must not keep the node from exiting
		l.opts.Warn("--log takes no more lines: its last ones are lost")
		return nil
	}
	if !first || l.lock == nil {
		return nil
	}
	l.closeFiles()
	if l.err != nil {
		return fmt.Errorf("%d entries of the log are lost: %w", l.failed, l.err)
	}
	return nil
}

// write writes entries until the log is closed.
func (l *Log) write() {
	defer close(l.done)
	var batch []bus.LogEntry
	for stopping := false; !stopping; {
		select {
		case <-l.wake:
			select {
			case <-time.After(linger):
			case <-l.soon:
			case <-l.stop:
				stopping = true
			}
		case <-l.soon:
		case <-l.stop:
			stopping = true
		}
		// The queue and the last batch swap their arrays.
		l.mu.Lock()
		batch, l.queue = l.queue, batch[:0]
		l.slow += l.dropped
		l.lost += l.dropped
		l.dropped = 0
		if l.lost > 0 { // the queue was full: they came after its entries
			l.seq++
			batch = append(batch, bus.LogEntry{
				Seq: l.seq, Time: time.Now(), Event: EventDropped, Dropped: l.lost, Message: fmt.Sprintf("%d entries are missing", l.lost),
			})
			l.lost = 0
		}
		l.mu.Unlock()
		l.put(batch)
		if l.slow > 0 && (stopping || time.Since(l.slowAt) > slowPause) {
			l.opts.Warn("%s is too slow: %d entries are missing from it", l.name, l.slow)
			l.slow, l.slowAt = 0, time.Now()
		}
		clear(batch) // releases the texts
		if cap(batch) > 1024 && len(batch) < cap(batch)/4 {
			batch = nil // it grew in a busy time
		}
	}
	if l.lock == nil {
		l.opts.Copy.Close()
	}
}

// put writes entries and makes them visible to readers.
func (l *Log) put(batch []bus.LogEntry) {
	limit := int(min(chunkSize, l.opts.MaxBytes/8))
	for i := 0; i < len(batch); {
		var plain, all [len(kinds)]uint64 // entries, without and with the ones that they count
		for k := range l.bufs {
			l.bufs[k] = l.bufs[k][:0]
		}
		for size := 0; i < len(batch) && size < limit; i++ {
			e := &batch[i]
			k := kindOf(e.Event)
			if e.Event == EventDropped {
				all[k] += e.Dropped - 1
			} else {
				plain[k]++
			}
			if l.lock == nil && e.Event != EventCall {
				continue // not for a copy
			}
			all[k] += max(1, e.More)
			before := len(l.bufs[k])
			l.bufs[k] = append(appendEntry(l.bufs[k], e, l.lock == nil), '\n')
			size += len(l.bufs[k]) - before
		}
		for k, p := range l.bufs {
			if len(p) == 0 {
				continue
			}
			switch _, err := l.outs[k].Write(p); {
			case err != nil:
				if l.err == nil {
					l.opts.Warn("%s cannot be written: %v: entries are lost until it can be", l.name, err)
				}
				l.err = err
				l.lost += all[k]
				l.failed += plain[k]
			case l.err != nil:
				l.opts.Warn("%s can be written again: %d entries are missing from it", l.name, l.failed)
				l.err, l.failed = nil, 0
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(batch) > 0 {
		l.written = batch[len(batch)-1].Seq
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// kinds are the names of the series of files.
var kinds = [...]string{"log", "refused", "security"}

// kindOf returns the index of the series that keeps an event.
func kindOf(event string) int {
	switch event {
	case EventCall, EventDropped:
		return 0
	case EventRefused:
		return 1
	}
	return 2
}

const (
	foldBurst = 50   // entries of a kind that are logged one by one
	maxBursts = 1000 // kinds; further callers are counted as one, "others"
	maxFolded = 8    // functions of a kind that have counts of their own
)

// foldTime is how long entries are counted before the counts are logged.
var foldTime = time.Minute

// kind identifies entries that are folded into one. Peers cannot choose any of its fields: all callers of
// a relay are one.
type kind struct {
	caller, event, source, code string
	status                      int
}

// burst counts the entries of one kind in this foldTime.
type burst struct {
	logged int
	more   map[string]uint64 // entries that were not logged, by function
}

// folds reports whether a peer can cause such entries at no cost to itself.
func folds(e *bus.LogEntry) bool {
	switch {
	case e.Seq != 0 || e.More != 0: // a copy, or a count
		return false
	case e.Event == EventCall:
		return e.Source == args.FromBus.String() && e.Worker == "" && e.Out == 0
	}
	return e.Event == EventRefused || e.Event == EventJoined || e.Event == EventRenewed
}

// fold reports whether an entry is only counted. l.mu is held.
func (l *Log) fold(e *bus.LogEntry) bool {
	via, _, _ := strings.Cut(e.Caller, "/")
	k := kind{cut(via), e.Event, e.Source, e.Code, e.Status}
	if l.bursts[k] == nil && len(l.bursts) >= maxBursts {
		k.caller = "others"
	}
	b := l.burst(k)
	if b.logged < foldBurst {
		b.logged++
		return false
	}
	function := cut(e.Function)
	if b.more[function] == 0 && len(b.more) >= maxFolded {
		function = ""
	}
	b.more[function]++
	return true
}

// burst returns the burst of a kind. l.mu is held.
func (l *Log) burst(k kind) *burst {
	if l.bursts == nil {
		l.bursts = map[kind]*burst{}
		l.folding = time.AfterFunc(foldTime, l.unfold)
	}
	b := l.bursts[k]
	if b == nil {
		b = &burst{more: map[string]uint64{}}
		l.bursts[k] = b
	}
	return b
}

// unfold logs the counts. A kind that has counts logs no single entry in the next foldTime.
func (l *Log) unfold() {
	l.mu.Lock()
	was := l.bursts
	l.bursts = nil
	for k, b := range was {
		if len(b.more) > 0 {
			l.burst(k).logged = foldBurst
		}
	}
	l.mu.Unlock()
	for k, b := range was {
		for function, n := range b.more {
			l.Append(&bus.LogEntry{
				Event: k.event, Caller: k.caller, Function: function, Source: k.source, Status: k.status, Code: k.code,
				More: n, Message: fmt.Sprintf("and %d more", n),
			})
		}
	}
}

package store

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"fbus/bus/wire"
)

// Held counts what jobs take of a store.
type Held struct {
	Jobs  int64 // in any state
	Owed  int64 // postbacks that they may still post
	Bytes int64 // of payloads, also while they are written

	Unended int64 // of Jobs
}

func (h *Held) add(n Held) {
	h.Jobs, h.Owed, h.Bytes, h.Unended = h.Jobs+n.Jobs, h.Owed+n.Owed, h.Bytes+n.Bytes, h.Unended+n.Unended
}

// Shares counts what jobs take, in all and for each poster, and bounds both. A poster is known
// by its key. It may
// take a quarter of MaxJobs and of MaxBytes while others have jobs, and never more than
// it leaves free. So no number of posters fills the store. Root and the node's own user may
// take all.
type Shares struct {
	MaxJobs, MaxBytes int64

	mu      sync.Mutex // protects the fields below
	all     Held
	of      map[string]holding // by poster, while its jobs take something
	watches Watches[string]    // by batch
}

// holding counts the jobs of one poster.
type holding struct {
	Held
	lines   map[string]int // jobs and possible postbacks in each line; finished jobs are in none
	batches map[string]Tally
	globs   int // lines for a glob of workers
}

// Bounds of the lines that a poster's unfinished jobs are in, with their postbacks. A line
// takes up to 1 KB of memory, and a worker that looks for a job is compared with each glob.
const (
	maxLines = 10_000
	maxGlobs = 256
)

// maxBatches bounds the batches of a poster that have jobs.
const maxBatches = 50_000

// HasGlob reports whether workers have to be compared with a glob. Otherwise they are
// looked up.
func (o *Options) HasGlob() bool {
	on, _ := wire.ParseOn(o.On)
	return on.Glob()
}

// unshared reports a poster that has no share.
func unshared(who string) bool { return who == ownUser || who == "uid:0" }

var ownUser = "uid:" + strconv.Itoa(os.Getuid())

// PostsBack returns how many jobs the end of a job may post.
func (j *Job) PostsBack() (n int64) {
	if j.Then != "" || j.Else != "" {
		n++
	}
	if j.Finally != "" {
		n++
	}
	return n
}

// Take counts a new job, or with old a finished job that is queued again. It refuses a job
// that exceeds a bound.
func (s *Shares) Take(old, j *Job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	who, more := j.Poster.Key(), Held{Owed: j.PostsBack()}
	if old == nil {
		more.Jobs = 1
	}
	err := s.refuseJobs(who, more)
	for _, by := range sharing(who) {
		h := s.of[by]
		switch {
		case err != nil || h.lines[j.QueueKey()] > 0:
		case j.HasGlob() && h.globs >= maxGlobs:
			err = &FullError{What: fmt.Sprintf("too many different globs of workers in jobs of %s (limit %d)", callerOf(by), maxGlobs), Live: true}
		case !unshared(by) && len(h.lines) >= maxLines:
			err = &FullError{What: fmt.Sprintf("too many different functions and workers in jobs of %s (limit %d)", callerOf(by), maxLines), Live: true}
		}
	}
	if h := s.of[who]; err == nil && j.Batch != "" && !unshared(who) && len(h.batches) >= maxBatches && h.batches[j.Batch] == (Tally{}) {
		err = &FullError{What: fmt.Sprintf("too many batches of %s (limit %d)", callerOf(who), maxBatches), Of: who}
	}
	if err == nil {
		s.count(old, -1)
		s.count(j, 1)
	}
	return err
}

// Tally counts the jobs of a batch, those included that are being posted.
func (s *Shares) Tally(batch string) Tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	owner, name := SplitBatch(batch)
	return s.of[owner].batches[name]
}

// Batches returns the keys of the batches with that name of all owners with that caller.
func (s *Shares) Batches(caller, name string) (keys []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for owner, h := range s.of {
		if h.batches[name].Jobs > 0 && callerOf(owner) == caller {
			keys = append(keys, BatchKey(owner, name))
		}
	}
	return keys
}

// Watch returns a channel that receives after a tally has changed, until stop is called.
func (s *Shares) Watch(batch string) (changed <-chan struct{}, stop func()) {
	return s.watches.Add(&s.mu, batch)
}

// Watches are channels that receive when something changes, by what that is. A mutex of their
// owner protects them.
type Watches[K comparable] map[K][]chan struct{}

// Add returns a channel that receives after Signal, until stop is called.
func (w Watches[K]) Add(mu *sync.Mutex, key K) (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	mu.Lock()
	defer mu.Unlock()
	w[key] = append(w[key], c)
	return c, func() {
		mu.Lock()
		defer mu.Unlock()
		w[key] = slices.DeleteFunc(w[key], func(o chan struct{}) bool { return o == c })
		if len(w[key]) == 0 {
			delete(w, key)
		}
	}
}

// Signal reports a change. The mutex is held.
func (w Watches[K]) Signal(key K) {
	for _, c := range w[key] {
		select {
		case c <- struct{}{}:
		default: // it has a signal that was not received yet
		}
	}
}

// Owe reserves room for a job that the end of a batch posts, or with -1 releases it.
func (s *Shares) Owe(who string, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 {
		if err := s.refuseJobs(who, Held{Owed: n}); err != nil {
			return err
		}
	}
	s.add(who, Held{Owed: n})
	return nil
}

// Owes counts what Owe has reserved before the store was opened.
func (s *Shares) Owes(who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(who, Held{Owed: 1})
}

// Change counts a job that has changed. Old is nil for a new job; j is nil for a deleted
// one.
func (s *Shares) Change(old, j *Job) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(old, -1)
	s.count(j, 1)
}

// count adds a job, or removes it with n = -1, without its bytes; j may be nil. s.mu is
// held.
func (s *Shares) count(j *Job, n int64) {
	if j == nil {
		return
	}
	more := Held{Jobs: n}
	var lines []*Job
	if !j.State.Finished() {
		more.Owed, more.Unended = n*j.PostsBack(), n
		lines = []*Job{j, {Function: j.Then}, {Function: j.Else}, {Function: j.Finally}}
	}
	if j.Batch != "" {
		s.countBatch(j, int(n))
	}
	s.add(j.Poster.Key(), more, lines...)
}

// countBatch counts a job in its batch. s.mu is held.
func (s *Shares) countBatch(j *Job, n int) {
	if s.of == nil {
		s.of = map[string]holding{}
	}
	h := s.of[j.Poster.Key()]
	if h.batches == nil {
		h.batches = map[string]Tally{}
		s.of[j.Poster.Key()] = h
	}
	t := h.batches[j.Batch]
	t.Add(j.State, n)
	if h.batches[j.Batch] = t; t.Jobs == 0 {
		delete(h.batches, j.Batch)
	}
	s.watches.Signal(j.BatchKey())
}

// Changed signals those who watch a batch.
func (s *Shares) Changed(batch string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches.Signal(batch)
}

// line adds n to the count of a job's line.
func (h *holding) line(j *Job, n int) {
	if h.lines == nil {
		h.lines = map[string]int{}
	}
	key := j.QueueKey()
	was := h.lines[key]
	if h.lines[key] = was + n; was+n <= 0 {
		delete(h.lines, key)
	}
	if j.HasGlob() && (was > 0) != (was+n > 0) {
		h.globs += n
	}
}

// TakeBytes counts bytes before they are written. Beyond is how far they may exceed a
// bound.
func (s *Shares) TakeBytes(who string, n, beyond int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.refuseBytes(who, n, beyond)
	if err == nil {
		s.add(who, Held{Bytes: n})
	}
	return err
}

// AddBytes counts bytes that were written, or, if negative, deleted.
func (s *Shares) AddBytes(who string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(who, Held{Bytes: n})
}

// Total returns what all jobs take.
func (s *Shares) Total() Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// Over reports whether a poster's jobs take more bytes than they may.
func (s *Shares) Over(who string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refuseBytes(who, 0, 0) != nil
}

// MostBytes returns how many bytes a poster may take of a store that has no other jobs.
func (s *Shares) MostBytes(who string) int64 {
	if unshared(who) {
		return s.MaxBytes
	}
	return s.MaxBytes / 2
}

// Copies returns how many times more the output of a job counts, since each postback may
// get it as its input. So no poster exceeds its share with postbacks.
func (s *Shares) Copies(j *Job) int64 {
	if unshared(j.Poster.Key()) {
		return 0
	}
	return j.PostsBack()
}

// Full returns why nobody can post, or nil.
func (s *Shares) Full() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refuseJobs(ownUser, Held{Jobs: 1})
}

// refuseJobs returns why a poster may not have more jobs. s.mu is held.
func (s *Shares) refuseJobs(who string, more Held) error {
	if more.Jobs > 0 && s.all.Jobs+more.Jobs > s.MaxJobs {
		return &FullError{What: fmt.Sprintf("too many jobs (limit %d, --max-jobs)", s.MaxJobs)}
	}
	if unshared(who) || more == (Held{}) {
		return nil
	}
	for _, by := range sharing(who) {
		h := s.of[by]
		most, left := s.most(by, s.MaxJobs, s.all.Jobs+s.all.Owed-h.Jobs-h.Owed)
		if h.Jobs+h.Owed+more.Jobs+more.Owed > most {
			return &FullError{What: fmt.Sprintf("too many jobs of %s, with the postbacks that they may post (limit %d, its share of --max-jobs)", callerOf(by), most), Of: who, Left: left}
		}
	}
	return nil
}

// refuseBytes returns why a poster may not write more. s.mu is held.
func (s *Shares) refuseBytes(who string, n, beyond int64) error {
	if s.all.Bytes+n > s.MaxBytes+beyond {
		return &FullError{What: fmt.Sprintf("too much input and output (limit %d bytes, --max-spool)", s.MaxBytes)}
	}
	if unshared(who) {
		return nil
	}
	for _, by := range sharing(who) {
		h := s.of[by]
		most, left := s.most(by, s.MaxBytes, s.all.Bytes-h.Bytes)
		if h.Bytes+n > most+beyond {
			return &FullError{What: fmt.Sprintf("too much input and output of %s (limit %d bytes, its share of --max-spool)", callerOf(by), most), Of: who, Left: left}
		}
	}
	return nil
}

// sharing returns the posters as which a job counts: its own, and for a caller of a relay all callers of
// that relay together. Their key ends with the slash.
func sharing(who string) []string {
	if via, _, relayed := strings.Cut(who, "/"); relayed {
		return []string{who, via + "/"}
	}
	return []string{who}
}

// allCallers reports whether a key is that of all callers of a relay.
func allCallers(who string) bool {
	_, name, relayed := strings.Cut(who, "/")
	return relayed && name == ""
}

// most returns a poster's share of a limit: half of the room that other posters leave. While
// they have jobs, it is at most a quarter of the limit, but not for all callers of a relay. left: it grows if others delete
// jobs. s.mu is held.
func (s *Shares) most(who string, limit, others int64) (most int64, left bool) {
	most = max(0, limit-others) / 2
	if s.all.Jobs > s.of[who].Jobs && !allCallers(who) {
		return min(most, limit/4), most < limit/4
	}
	return most, false
}

// Of returns what the jobs of a poster take.
func (s *Shares) Of(who string) Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[who].Held
}

// add changes the counts of a poster, with more.Jobs also those of lines. s.mu is held.
func (s *Shares) add(who string, more Held, lines ...*Job) {
	if s.of == nil {
		s.of = map[string]holding{}
	}
	s.all.add(more)
	for _, by := range sharing(who) {
		h := s.of[by]
		h.add(more)
		for _, j := range lines {
			if j.Function != "" {
				h.line(j, int(more.Jobs))
			}
		}
		if s.of[by] = h; h.Held == (Held{}) && len(h.lines) == 0 {
			delete(s.of, by)
		}
	}
}

// batchOf returns the batch in a record. A name needs no escapes in JSON.
func batchOf(record []byte) string {
	_, rest, ok := bytes.Cut(record, []byte(`,"batch":"`)) // in a text there would be backslashes
	if !ok {
		return ""
	}
	name, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(name)
}

// read counts a record of the store with its payloads. It decodes as little as it can: it
// is called for all jobs at each start.
func (s *Shares) read(id ID, sealed []byte) {
	function, state, poster, ok := Peek(sealed)
	j := &Job{Function: function, State: state, Poster: poster, Options: Options{Batch: batchOf(sealed)}}
	for _, option := range []string{`,"on":"`, `,"then":"`, `,"else":"`, `,"finally":"`} {
		ok = ok && (j.State.Finished() || !bytes.Contains(sealed, []byte(option)))
	}
	if !ok {
		if full, err := DecodeJob(id, sealed); err == nil {
			j = full
		}
	}
	s.count(j, 1)
	s.add(j.Poster.Key(), Held{Bytes: peekBytes(sealed)})
}

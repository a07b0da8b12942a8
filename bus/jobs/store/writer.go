package store

import (
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// maxBatch bounds how many changes one commit has.
const maxBatch = 4096

// write commits all changes until ops is closed. failed is why the store could not be
// opened: it has to recover first.
func (s *Store) write(failed error) {
	defer close(s.done)
	if failed != nil {
		s.recover(nil, failed)
	}
	for first := range s.ops {
		batch := s.gather(first)
		if err := s.write1(batch); err != nil {
			s.recover(batch, err)
		}
	}
	s.write1(nil) // the clock, so that the time until the next start counts
}

// lazyPause is how long a lazy change waits for another one: longer than a resident program needs for a
// small job, and not longer than a commit takes on a slow disk.
const lazyPause = 2 * time.Millisecond

// gather takes all changes that have come. On one processor there would be only one, since
// the writer runs as soon as it has that: so it yields to other goroutines first. For a lazy one it
// waits.
func (s *Store) gather(first *Op) []*Op {
	batch := []*Op{first}
	if first.Lazy {
		select {
		case o, ok := <-s.ops:
			if ok {
				batch = append(batch, o)
			}
		case <-time.After(lazyPause):
		}
	}
	runtime.Gosched()
	for len(batch) < maxBatch && len(s.ops) > 0 {
		batch = append(batch, <-s.ops)
	}
	return batch
}

// write1 commits a batch and calls each Done. After a failure it calls none.
func (s *Store) write1(batch []*Op) (err error) {
	s.awaitReaders()
	if err := s.commitInRoom(batch); err != nil {
		return err
	}
	for _, o := range batch {
		o.Done(o.err)
	}
	return nil
}

// commitBatch commits a batch. New jobs may take so many bytes, and output may: see [Store.spare].
func (s *Store) commitBatch(batch []*Op, posts, outputs int64) error {
	s.torn = false
	s.using.RLock()
	defer s.using.RUnlock()
	if s.db == nil {
		return errors.New("it is not open")
	}
	return guarded(func() error {
		b, err := s.db.Begin(true)
		if err != nil {
			return err
		}
		defer b.Rollback()
		t := &Tx{b, s}
		works := s.Unwritable() == nil
		var taken int64
		for _, o := range batch {
			if o.err = nil; o.Takes > 0 {
				switch {
				case o.Short == nil && taken+o.Takes > posts:
					o.err = errNearlyFull
					continue
				case o.Short != nil && taken+o.Takes > outputs && works: // else it has waited for room already
					o.Short(errNearlyFull, taken+jobRoom > posts)
				default:
					taken += o.Takes
				}
			}
			if o.err = o.Run(t); isFailure(o.err) {
				return o.err
			}
		}
		clock, err := json.Marshal(s.time.stamp())
		if err == nil {
			err = t.Put(BucketMeta, []byte("clock"), clock)
		}
		if err == nil {
			id := uint64(b.ID())
			if err = s.commit(b); err != nil {
				s.torn = s.shows(id)
			}
			stats := b.Stats()
			s.writing.Add(int64(stats.GetWriteTime()))
		}
		return err
	})
}

// shows reports whether a transaction whose commit failed is in the file, or may be.
func (s *Store) shows(tx uint64) (yes bool) {
	err := readPages(s.db.Path(), func(p *pages) { yes = p.tx >= tx })
	return yes || err != nil
}

// isFailure reports an error of the store, not of one job or request. Such a change may
// be half made, so the batch is not committed.
func isFailure(err error) bool {
	return errors.As(err, new(*StoreError)) || errors.As(err, new(*FullError))
}

func (s *Store) setFailed(err error) {
	s.mu.Lock()
	s.failed = err
	s.mu.Unlock()
}

// IsFull reports a full disk or quota. bbolt passes on some errors as text only.
func IsFull(err error) bool {
	full := func(e error) bool { return errors.Is(err, e) || strings.HasSuffix(err.Error(), e.Error()) }
	return err != nil && (full(syscall.ENOSPC) || full(syscall.EDQUOT))
}

// Pauses between the tries of a store that cannot be written.
const (
	firstRecovery = 250 * time.Millisecond
	lastRecovery  = 5 * time.Second
	recoveryShare = 10 // a try may read the whole store, so a large one is tried less often
)

// recovery holds what has to be written once the store can be written again. Only the
// writer uses it.
type recovery struct {
	*Store
	err   error
	kept  []*Op // changes that have happened already
	frees []*Op // changes that make room: tried at once while the disk is full, and only once
	undo  []ID  // posts that may be on disk though their commit failed
	stale bool  // a commit has failed: which part of it has reached the disk is unknown
}

// recover takes over a batch that could not be committed. Changes that were only asked
// for are refused; changes that have happened are kept, and written once that is
// possible. It returns when the store can be written again, or has to be closed.
func (s *Store) recover(batch []*Op, err error) {
	r := &recovery{Store: s, stale: batch != nil, err: Wrap(err)}
	s.setFailed(r.err)
	s.warn("%v: no job is taken and none is started until it can be written again", r.err)
	for _, o := range batch {
		if s.torn && o.Added != (ID{}) {
			r.undo = append(r.undo, o.Added)
			o.Done(&UncertainError{ID: o.Added, Err: r.err})
			continue
		}
		r.put(o)
	}
	pause := firstRecovery
	if r.full() && r.pending() { // there is the reserve
		pause = 0
	}
	for {
		open := r.wait(pause)
		began, freed := time.Now(), len(r.frees) > 0
		err := r.try()
		if err == nil {
			s.setFailed(nil)
			s.warn("the store of jobs can be written again")
			s.mu.Lock()
			works := s.works
			s.mu.Unlock()
			if works != nil {
				works()
			}
			return
		}
		if err = Wrap(err); err.Error() != r.err.Error() {
			s.setFailed(err)
			s.warn("%v", err)
		}
		r.err = err
		if !open { // that was the last try
			return
		}
		pause = min(max(2*pause, firstRecovery), lastRecovery)
		if freed {
			pause = firstRecovery // there may be room soon
		}
		pause = max(pause, recoveryShare*time.Since(began))
	}
}

func (r *recovery) full() bool { return errors.As(r.err, new(*FullError)) }

func (r *recovery) pending() bool { return len(r.kept)+len(r.frees)+len(r.undo) > 0 }

// put keeps or refuses a change.
func (r *recovery) put(o *Op) {
	switch {
	case o.Must:
		r.kept = append(r.kept, o)
		if o.Late != nil {
			o.Late()
		}
		return
	case o.Frees && r.full():
		r.frees = append(r.frees, o)
		return
	}
	o.Done(r.err)
}

// wait takes changes until it is time for a try; false: the store has to be closed.
func (r *recovery) wait(pause time.Duration) (open bool) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for len(r.frees) == 0 {
		select {
		case o, ok := <-r.ops:
			if !ok {
				return false
			}
			r.put(o)
		case <-timer.C:
			return true
		}
	}
	return true
}

// try writes everything that is pending. On a full disk it uses the reserve; the store
// works again when the reserve is complete.
func (r *recovery) try() error {
	err := r.write()
	if IsFull(err) && r.db != nil { // the file may have had enough free pages
		err = r.writeReserved()
	}
	for _, o := range r.frees {
		o.Done(Wrap(err))
	}
	r.frees = nil
	if err != nil {
		if IsFull(err) && r.punch() == nil { // pages of a failed commit take room for nothing
			r.reserve.make() // as much as there is
		}
		return err
	}
	if err = r.reserve.make(); IsFull(err) || r.full() && !r.reserve.roomBeside() {
		if err = r.punch(); err == nil {
			err = r.reserve.make()
		}
	}
	if err == nil && r.full() && !r.reserve.roomBeside() { // it would be full again with the next post
		err = r.err
	}
	return err
}

// writeReserved is write with the reserve's room. A part of that is for changes that
// make room alone: jobs can be purged however many ends could not be written.
func (r *recovery) writeReserved() error {
	if len(r.frees)+len(r.undo) > 0 {
		r.reserve.release(0)
		err := r.writeFrees()
		if err == nil {
			err = r.punch()
		}
		if err != nil {
			return err
		}
		r.reserve.make() // as much as there is
	}
	r.reserve.release(purgeReserve)
	return r.write()
}

// punch returns the room of free pages to the disk.
func (r *recovery) punch() error {
	if err := r.reopen(); err != nil {
		return err
	}
	return r.punchHoles()
}

// reopen opens and checks the file after a failure.
func (r *recovery) reopen() error {
	if !r.stale && r.db != nil {
		return nil
	}
	err := r.reach()
	r.stale = err != nil
	return err
}

// write writes everything that is pending, what makes room first.
func (r *recovery) write() error {
	if !r.stale && r.db != nil && !r.pending() {
		return nil
	}
	if err := r.writeFrees(); err != nil {
		return err
	}
	for size := len(r.kept); len(r.kept) > 0; { // on a full disk as many at a time as have room
		size = min(size, len(r.kept))
		err := r.writeSome(r.kept[:size])
		if IsFull(err) && size > 1 {
			size = max(1, size/8)
			continue
		}
		if err != nil {
			return err
		}
		r.kept = r.kept[size:]
	}
	r.kept = nil
	return nil
}

func (r *recovery) writeFrees() error {
	if err := r.writeSome(append([]*Op{{Run: r.takeOut, Done: func(error) {}}}, r.frees...)); err != nil {
		return err
	}
	for _, id := range r.undo {
		r.Spool.Remove(partFile(id, PartArgs, 0), partFile(id, PartInput, 0))
	}
	r.frees, r.undo = nil, nil
	return nil
}

// writeSome commits some changes, to a file that was checked after the last failure.
func (r *recovery) writeSome(list []*Op) error {
	err := r.reopen()
	if err == nil {
		err = r.write1(list)
	}
	r.stale = err != nil
	return err
}

// takeOut removes posts whose commit failed.
func (r *recovery) takeOut(t *Tx) error {
	for _, id := range r.undo {
		if j, err := t.Job(id); err == nil && j != nil {
			if err := t.Remove(j); err != nil {
				return &StoreError{Err: err}
			}
		}
	}
	return nil
}

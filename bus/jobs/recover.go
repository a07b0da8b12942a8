package jobs

import (
	"errors"
	"time"
)

// Pauses between the tries of a store that can not be written.
const (
	firstRecovery = 250 * time.Millisecond
	lastRecovery  = 5 * time.Second
	// A try reads the whole store, so a large one is tried less often.
	recoveryShare = 10
	// minProbe is what must have room beside the reserve, and as much again as that if
	// that is more, before a store that was full is taken for one that can be written:
	// it would be full again with the next posts.
	minProbe = 64 << 10
)

// recovery is what stands over while the store can not be written. Only the writer
// uses it.
type recovery struct {
	*Store
	err   error
	kept  []*op // what has happened: written when that is possible
	frees []*op // what makes room: tried at once while the disk is full, and only once
	undo  []ID  // posts that were refused, and may be on disk nevertheless
	stale bool  // a commit has failed: nobody knows what of it has reached the disk

	freed   bool // something may have been, since the file was shrunk
	cramped bool // there was no room beside the reserve
}

// recover deals with a batch that could not be committed. What only was to happen
// is refused; what has happened is kept and written once that is possible. It
// returns when the store can be written again, or is to be closed.
func (s *Store) recover(batch []*op, err error) {
	r := &recovery{Store: s, stale: batch != nil, freed: true, err: storeError(err)}
	s.setFailed(r.err)
	s.warn("%v: no job is taken and none is started until it can be written again", r.err)
	for _, o := range batch {
		r.put(o)
	}
	pause := firstRecovery
	if r.full() && len(r.kept)+len(r.frees) > 0 { // there is the reserve
		pause = 0
	}
	for {
		open := r.wait(pause)
		began, freed := time.Now(), len(r.frees) > 0
		err := r.try()
		if err == nil {
			s.setFailed(nil)
			s.warn("the store of jobs can be written again")
			s.tellWorks()
			return
		}
		r.fails(err)
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

func (r *recovery) full() bool {
	var full *FullError
	return errors.As(r.err, &full)
}

// fails notes why a try has failed.
func (r *recovery) fails(err error) {
	if err = storeError(err); err.Error() != r.err.Error() {
		r.setFailed(err)
		r.warn("%v", err)
	}
	r.err = err
}

// put decides what becomes of a change.
func (r *recovery) put(o *op) {
	switch {
	case o.must:
		r.kept = append(r.kept, o)
		if o.late != nil {
			o.late()
		}
		return
	case o.frees && r.full():
		r.frees = append(r.frees, o)
		return
	case o.added != (ID{}):
		r.undo = append(r.undo, o.added)
	}
	if o.done != nil {
		o.done(r.err)
	}
}

// wait takes what comes until it is time for a try; false: the store is to be closed.
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

// try looks at the file anew, after an error, and writes what stands over. On a full
// disk the reserves make room for that; the store works again when the disk has
// room for new ones.
func (r *recovery) try() error {
	err := r.write()
	if isFull(err) && r.db != nil && (r.pending() || r.freed) { // the file may have had free pages that were enough
		err = r.writeReserved()
	}
	for _, o := range r.frees { // who makes room is not left to wait
		if o.done != nil {
			o.done(storeError(err))
		}
	}
	r.frees = nil
	if err == nil {
		err = r.room()
	} else if isFull(err) && r.db != nil {
		// What a commit has written before it failed takes room, for nothing.
		if r.shrink() == nil {
			r.makeReserves() // of what there is
		}
	}
	return err
}

// writeReserved is write with the room that is set aside. What makes room has one of
// its own, which nothing else gets, and what it has freed goes there first: however much
// has happened that could not be written, jobs can be purged.
func (r *recovery) writeReserved() error {
	if len(r.frees)+len(r.undo) > 0 {
		r.spare.give()
		r.reserve.give()
		err := r.writeFrees()
		if err == nil {
			err = r.shrink()
		}
		if made := r.spare.make(); err == nil {
			err = storeErrorOrNil(made)
		}
		if err != nil {
			return err
		}
	}
	r.reserve.give()
	return r.write()
}

// room looks whether a disk that was full has room again: for the reserve, and beside
// it. If not, what the file has of free pages is given back to the disk first.
func (r *recovery) room() error {
	err := r.makeReserves()
	if r.freed && (isFull(err) || r.cramped) {
		if err = r.shrink(); err == nil {
			err = r.makeReserves()
		}
	}
	if err == nil && r.full() {
		err = r.probe()
	}
	return err
}

// pending reports whether there is something to write.
func (r *recovery) pending() bool { return len(r.kept)+len(r.frees)+len(r.undo) > 0 }

// shrink gives what was freed back to the disk. What has been committed last must be
// on it: otherwise it may be what comes before that which uses these pages.
func (r *recovery) shrink() error {
	r.hollow, r.freed, r.cramped = true, false, false
	err := r.reach()
	r.hollow = false
	r.stale = err != nil
	return err
}

// probe looks for room beside the reserve.
func (r *recovery) probe() error {
	r.stale = true // unless it is written
	err := r.write1([]*op{{run: func(t *tx) error {
		return t.put(bucketMeta, []byte("probe"), make([]byte, max(minProbe, r.reserve.size())))
	}}})
	if err == nil {
		err = r.write1([]*op{{run: func(t *tx) error { return t.delete(bucketMeta, []byte("probe")) }}})
	}
	r.stale, r.cramped = err != nil, isFull(err)
	return err
}

// write is what a try writes: what makes room goes first.
func (r *recovery) write() error {
	if !r.stale && r.db != nil && !r.pending() {
		return nil
	}
	if err := r.writeFrees(); err != nil {
		return err
	}
	for size := len(r.kept); len(r.kept) > 0; { // on a full disk one after the other, as far as it goes
		size = min(size, len(r.kept))
		err := r.writeSome(r.kept[:size])
		if isFull(err) && size > 1 {
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
	if err := r.writeSome(append([]*op{{run: r.takeOut}}, r.frees...)); err != nil {
		return err
	}
	r.freed = r.freed || len(r.frees) > 0
	r.frees, r.undo = nil, nil
	return nil
}

// writeSome writes some changes, after a look at the file if that is not to be trusted.
func (r *recovery) writeSome(list []*op) error {
	if r.stale || r.db == nil {
		if err := r.reach(); err != nil {
			r.stale = true
			return err
		}
	}
	err := r.write1(list)
	r.stale = err != nil
	return err
}

// takeOut removes posts that were refused, should they be there.
func (r *recovery) takeOut(t *tx) error {
	for _, id := range r.undo {
		if j, err := t.job(id); err == nil && j != nil {
			if err := t.remove(j); err != nil {
				return &StoreError{Err: err}
			}
		}
	}
	return nil
}

// tellWorks tells who wants to know that the store can be written again.
func (s *Store) tellWorks() {
	s.mu.Lock()
	works := s.works
	s.mu.Unlock()
	if works != nil {
		works()
	}
}

package jobs

import (
	"encoding/json"
	"errors"
	"runtime/debug"
	"syscall"
	"time"
)

const (
	// maxBatch is how many changes are committed at once.
	maxBatch = 4096
	// probeSize is what must have room before a store that was full is taken for one
	// that can be written.
	probeSize = 64 << 10
	// Pauses between the tries of a store that can not be written.
	firstRecovery = 250 * time.Millisecond
	lastRecovery  = 5 * time.Second
)

// write is the one writer: it ends when ops is closed and all is written.
func (s *Store) write() {
	defer close(s.done)
	for first := range s.ops {
		batch := s.gather(first)
		if err := s.write1(batch); err != nil {
			s.recover(batch, err)
		}
	}
	s.write1(nil) // the clock, so that the time until the next start counts
}

// gather takes what has come meanwhile.
func (s *Store) gather(first *op) []*op {
	batch := []*op{first}
	for len(batch) < maxBatch {
		select {
		case o, ok := <-s.ops:
			if !ok {
				return batch
			}
			batch = append(batch, o)
			continue
		default:
		}
		return batch
	}
	return batch
}

// write1 commits a batch and tells who waits for it. If that fails nothing is told:
// it has not happened.
func (s *Store) write1(batch []*op) (err error) {
	if err := s.commitBatch(batch); err != nil {
		return err
	}
	for _, o := range batch {
		if o.done != nil {
			o.done(o.err)
		}
	}
	return nil
}

func (s *Store) commitBatch(batch []*op) (err error) {
	s.using.RLock()
	defer s.using.RUnlock()
	if s.db == nil {
		return errors.New("it is not open")
	}
	defer catch(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	b, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	defer b.Rollback()
	t := &tx{Tx: b, store: s}
	for _, o := range batch {
		if o.err = o.run(t); isDamage(o.err) {
			return o.err
		}
	}
	clock, err := json.Marshal(s.time.stamp())
	if err == nil {
		err = t.put(bucketMeta, []byte("clock"), clock)
	}
	if err != nil {
		return err
	}
	return s.commit(b)
}

// isDamage tells what is wrong with the file from what is wrong with a job, or
// with what is asked of it.
func isDamage(err error) bool {
	var e *StoreError
	return errors.As(err, &e)
}

// recover deals with a batch that could not be committed. What only was to happen
// is refused; what has happened is kept and written once that is possible. It
// returns when the store can be written again, or is to be closed.
func (s *Store) recover(batch []*op, err error) {
	err = storeError(err)
	s.setFailed(err)
	s.warn("%v: no job is taken and none is started until it can be written again", err)
	var kept []*op
	var undo []ID
	put := func(list []*op) {
		for _, o := range list {
			if o.must {
				kept = append(kept, o)
				continue
			}
			if o.added != (ID{}) {
				undo = append(undo, o.added)
			}
			if o.done != nil {
				o.done(err)
			}
		}
	}
	put(batch)
	for pause := firstRecovery; ; pause = min(2*pause, lastRecovery) {
		timer := time.NewTimer(pause)
	wait:
		for {
			select {
			case o, ok := <-s.ops:
				if !ok { // the last try
					timer.Stop()
					s.reopen(kept, undo)
					return
				}
				put([]*op{o})
			case <-timer.C:
				break wait
			}
		}
		if e := s.reopen(kept, undo); e == nil {
			s.setFailed(nil)
			s.warn("the store of jobs can be written again")
			return
		} else if e := storeError(e); e.Error() != err.Error() {
			err = e
			s.setFailed(err)
			s.warn("%v", err)
		}
	}
}

// reopen looks at the file anew: after an error nobody knows what of it has reached
// the disk. Posts that were refused are taken out, should they be there.
func (s *Store) reopen(kept []*op, undo []ID) error {
	s.using.Lock()
	if s.db != nil {
		s.db.Close()
		s.db = nil
	}
	s.using.Unlock()
	if err := s.load(false); err != nil {
		return err
	}
	gone := &op{run: func(t *tx) error {
		for _, id := range undo {
			if j, err := t.job(id); err == nil && j != nil {
				if err := t.remove(j); err != nil {
					return &StoreError{Err: err}
				}
			}
		}
		return t.put(bucketMeta, []byte("probe"), make([]byte, probeSize))
	}}
	end := &op{run: func(t *tx) error { return t.delete(bucketMeta, []byte("probe")) }}
	if err := s.write1([]*op{gone}); err != nil {
		return err
	}
	return s.write1(append([]*op{end}, kept...))
}

func (s *Store) setFailed(err error) {
	s.mu.Lock()
	s.failed = err
	s.mu.Unlock()
}

func storeError(err error) error {
	var full *FullError
	var store *StoreError
	switch {
	case errors.As(err, &full), errors.As(err, &store):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &FullError{What: "the disk is full", Err: err}
	}
	return &StoreError{Err: err}
}

package jobs

import (
	"encoding/json"
	"errors"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
)

// maxBatch is how many changes are committed at once.
const maxBatch = 4096

// write is the one writer: it ends when ops is closed and all is written. failed is
// what the store was opened with: it has to recover first.
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

// gather takes what has come meanwhile. On one processor that is nothing: whoever hands
// a change over is waited for by the writer, which runs before anybody else does. So it
// lets those go first that are about to.
func (s *Store) gather(first *op) []*op {
	batch := []*op{first}
	runtime.Gosched()
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
		if o.err = o.run(t); isFailure(o.err) {
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
	err = s.commit(b)
	stats := b.Stats()
	s.writing.Add(int64(stats.GetWriteTime()))
	return err
}

// isFailure tells what is wrong with the disk from what is wrong with a job, or with
// what is asked of it. Such a change may have been made by half: none of the batch is
// committed.
func isFailure(err error) bool {
	var store *StoreError
	var full *FullError
	return errors.As(err, &store) || errors.As(err, &full)
}

func (s *Store) setFailed(err error) {
	s.mu.Lock()
	s.failed = err
	s.mu.Unlock()
}

// storeError says of an error that it is the store's, and whether it is for want of
// room.
func storeError(err error) error {
	var full *FullError
	var store *StoreError
	switch {
	case errors.As(err, &full), errors.As(err, &store):
		return err
	case isFull(err):
		return &FullError{What: "the disk is full", Err: err}
	}
	return &StoreError{Err: err}
}

// isFull reports a disk, or a quota of it, that has no room. bbolt passes on no more
// than the words of some errors.
func isFull(err error) bool {
	full := func(e error) bool { return errors.Is(err, e) || strings.HasSuffix(err.Error(), e.Error()) }
	return err != nil && (full(syscall.ENOSPC) || full(syscall.EDQUOT))
}

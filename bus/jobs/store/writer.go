package store

import (
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"sync"
	"syscall"
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

// gather takes all changes that have come. On one processor there would be only one, since
// the writer runs as soon as it has that: so it yields to other goroutines first.
func (s *Store) gather(first *Op) []*Op {
	batch := []*Op{first}
	runtime.Gosched()
	for len(batch) < maxBatch && len(s.ops) > 0 {
		batch = append(batch, <-s.ops)
	}
	return batch
}

// write1 commits a batch and calls each Done. After a failure it calls none.
func (s *Store) write1(batch []*Op) (err error) {
	if err := s.commitBatch(batch); err != nil {
		return err
	}
	for _, o := range batch {
		o.Done(o.err)
	}
	return nil
}

func (s *Store) commitBatch(batch []*Op) error {
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
		spare, works := sync.OnceValues(s.spare), s.Unwritable() == nil
		var taken int64
		for _, o := range batch {
			if o.err = nil; o.Takes > 0 {
				switch posts, outputs := spare(); {
				case o.Short == nil && taken+o.Takes > posts:
					o.err = errNearlyFull
					continue
				case o.Short != nil && taken+o.Takes > outputs && works: // else it has waited for room already
					o.Short(errNearlyFull)
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

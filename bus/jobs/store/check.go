package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// contents describes the file of a store.
type contents struct {
	jobs  int64
	taken Shares            // by the jobs, if the store is opened for the first time
	last  ID                // the greatest id
	meta  map[string][]byte // the bucket meta
	// relist: the lists of batches do not have the jobs that are in one, as after a node of an
	// earlier version.
	relist bool
	pages  uint64
	free   []uint64 // pages
}

// inspect reads a whole file. An error that is no failure of the store means that the
// file is damaged.
func (s *Store) inspect(path string) (*contents, error) {
	c := &contents{meta: map[string][]byte{}}
	var listed, batched, unended int64
	damage := readPages(path, func(p *pages) {
		names := slices.Clone(buckets)
		for name := range p.buckets { // also those of a later version: their pages are in use
			if !slices.Contains(buckets, name) {
				names = append(names, name)
			}
		}
		for _, name := range names {
			p.bucket(name, func(k, sealed []byte) {
				v, ok := unseal(name, k, sealed)
				if !ok {
					p.bad("an entry of the bucket %s does not match its checksum", name)
				}
				switch name {
				case BucketMeta:
					c.meta[string(k)] = append([]byte(nil), v...)
				case BucketJobs:
					c.jobs++
					c.last = KeyID(k)
					if batchOf(sealed) != "" {
						batched++
						if _, state, _, _ := Peek(sealed); !state.Finished() {
							unended++
						}
					}
					if !s.opened {
						c.taken.read(c.last, sealed)
					}
				case BucketReady, BucketDue, BucketEnd, BucketDead:
					listed++
				case BucketBatch:
					batched--
				case BucketUnended:
					unended--
				}
			})
		}
		if c.meta["format"] == nil {
			p.bad("its format is missing")
		}
		if p.err == nil && listed != c.jobs { // a page may have lost entries without a trace
			p.bad("it has %d jobs, and lists %d", c.jobs, listed)
		}
		c.relist = batched != 0 || unended != 0
		if p.err == nil {
			p.guard(p.checkFreelist)
		}
		c.pages, c.free = p.count, p.free
	})
	if damage == nil {
		if v := string(c.meta["format"]); !knownFormat(v) {
			return nil, errFormat(path, v)
		}
		return c, nil
	}
	if err := s.distrust(path); err != nil { // what cannot be read may work again
		return nil, Wrap(err)
	}
	return nil, damage
}

// distrust drops the file from the page cache and reads it from the disk. After a failed
// write or sync the kernel marks pages clean that may never have reached the disk; see
// https://wiki.postgresql.org/wiki/Fsync_Errors. A file that cannot be read is an error,
// not damage.
func (s *Store) distrust(path string) error {
	if s.volatile {
		return nil
	}
	f, err := openNoFollow(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil { // dirty pages are not dropped
		return err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // tmpfs has no disk to read from
	_, err = io.Copy(io.Discard, f)
	return err
}

// mend checks the file, and replaces one that is damaged.
func (s *Store) mend(path string) (*contents, error) {
	known, err := s.marked()
	if err != nil {
		return nil, err
	}
	st, err := os.Lstat(path)
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, &StoreError{Err: err}
	case !known && (err != nil || st.Size() == 0): // a new one
		return &contents{}, nil
	case err != nil:
		s.warn("%s is gone: the jobs in it are lost", path)
		s.mended = true
		return &contents{}, nil
	}
	c, err := s.inspect(path)
	if err != nil && !isFailure(err) {
		if err = s.salvageFile(path, err); err == nil {
			c, err = s.inspect(path)
		}
		if err != nil && !isFailure(err) {
			err = &StoreError{Err: fmt.Errorf("%s is damaged again after it was replaced: %w", path, err)}
		}
	}
	if err == nil && !s.opened {
		s.compact(path, c)
	}
	return c, err
}

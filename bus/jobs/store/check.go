package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
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

// formatName is a file that marks a store, so that one without jobs.db is recognized as
// damaged, not as new.
const formatName = "format"

// marked reports whether the store was made before. A later format is an error.
func (s *Store) marked() (bool, error) {
	text, err := s.readMark()
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	var version int
	switch n, _ := fmt.Sscanf(text, markText, &version); {
	case err != nil:
		return false, &StoreError{Err: err}
	case n == 1 && !knownFormat(fmt.Sprint(version)):
		return false, errFormat(s.dir, fmt.Sprint(version))
	case text != fmt.Sprintf(markText, version):
		s.warn("%s is damaged: it is written again", filepath.Join(s.dir, formatName))
	}
	return true, nil
}

// readMark reads the mark, but not through a link or from a FIFO: the directory may come
// from somebody's archive.
func (s *Store) readMark() (string, error) {
	f, err := openNoFollow(filepath.Join(s.dir, formatName), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	return string(text), err
}

// knownFormat reports whether a store of that format can be opened.
func knownFormat(version string) bool {
	v, err := strconv.Atoi(version)
	return err == nil && v >= 1 && v <= formatVersion
}

func errFormat(path, version string) error {
	return &StoreError{Err: fmt.Errorf("%s: format %s is unknown to this version of fbus, which writes %d", path, version, formatVersion)}
}

// markText is the text of the mark.
const markText = "fbus-jobs %d\n"

func (s *Store) mark() error {
	want := fmt.Sprintf(markText, formatVersion)
	if text, err := s.readMark(); err == nil && text == want {
		return nil
	}
	f, err := openNoFollow(filepath.Join(s.dir, formatName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(want)
	return errors.Join(err, f.Sync(), f.Close(), syncDir(s.dir))
}

// A file never becomes smaller by itself: other jobs use the pages again. When a node
// starts, a file of at least this size with at most a quarter in use is copied to a new
// one: each commit writes the list of free pages, which is long then.
const (
	compactSize  = 16 << 20
	compactRatio = 4
)

// compact replaces a sound file by a smaller copy, if that is worth it. If it cannot, the
// store keeps the file.
func (s *Store) compact(path string, c *contents) {
	os.Remove(path + ".new") // left by a start that was interrupted
	st, err := os.Lstat(path)
	if err != nil || st.Size() < compactSize || (c.pages-uint64(len(c.free)))*compactRatio > c.pages {
		return
	}
	err = guarded(func() error {
		from, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: true, OpenFile: openNoFollow})
		if err != nil {
			return err
		}
		defer from.Close()
		return s.replace(path, "", func(to *bolt.DB) error { return bolt.Compact(to, from, 4<<20) })
	})
	if err != nil {
		s.warn("%s could not be made smaller: %v", path, err)
	}
}

// replace puts a new file in the place of the old one, which is kept if it has another
// name then. A power cut may leave either, and both are whole.
func (s *Store) replace(path, aside string, fill func(to *bolt.DB) error) (err error) {
	fresh := path + ".new"
	os.Remove(fresh)
	defer func() {
		if err != nil {
			os.Remove(fresh)
		}
	}()
	to, err := bolt.Open(fresh, 0o600, &bolt.Options{Timeout: time.Second, NoSync: true, OpenFile: openNoFollow})
	if err != nil {
		return err
	}
	if err = fill(to); err == nil && !s.volatile {
		err = to.Sync()
	}
	if err = errors.Join(err, to.Close()); err == nil && aside != "" {
		err = os.Rename(path, aside)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err == nil && !s.volatile {
		err = syncDir(s.dir)
	}
	return err
}

package jobs

import (
	"encoding/json"
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

// openStore opens the store of a directory, and makes one that is not there. If it
// can not be opened a patient one is tried again until it can.
func openStore(o *Config) (*Store, error) {
	s := &Store{
		place: o.Place, warn: o.Warn, maxJobs: o.MaxJobs,
		spool: &spool{max: o.MaxSpool, link: os.Link, warn: o.Warn}, reserve: &reserve{},
		ops: make(chan *op, 4096), done: make(chan struct{}),
		clock: o.Clock, volatile: o.Volatile,
		commit: func(t *bolt.Tx) error { return t.Commit() },
	}
	s.settle(o.Dir)
	err := s.reach()
	var locked *LockedError
	switch {
	case err != nil && (!o.Patient || errors.As(err, &locked)):
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, err
	case err == nil:
		err = s.reserve.make()
	}
	if err != nil {
		s.setFailed(storeError(err)) // before anybody can post
	}
	go s.write(err) // ends with close
	return s, nil
}

// settle says where the store is.
func (s *Store) settle(dir string) {
	s.dir, s.spool.dir = dir, filepath.Join(dir, spoolName)
	s.reserve.path = filepath.Join(dir, reserveName)
}

// reach takes the directory and opens what is in it.
func (s *Store) reach() error {
	if !s.opened && s.place != nil {
		dir, err := s.place()
		if err != nil {
			return storeError(err)
		}
		s.settle(dir)
	}
	if err := s.take(); err != nil {
		return err
	}
	return s.load()
}

// take makes the directory, once, and locks it. The lock is taken anew if another
// filesystem has come in the place of the one that it was on.
func (s *Store) take() error {
	if !s.opened {
		if err := os.MkdirAll(s.spool.dir, 0o700); err != nil {
			return storeError(err)
		}
	} else if _, err := os.Lstat(filepath.Join(s.dir, formatName)); err != nil { // nothing may be made in an empty mount point
		s.letGo()
		return &StoreError{Err: fmt.Errorf("it has gone: %w", err)}
	}
	if s.lock != nil && sameFile(s.lock, filepath.Join(s.dir, lockName)) {
		return nil
	}
	lock, err := lockDir(s.dir)
	if err != nil {
		return err
	}
	if s.lock != nil {
		s.lock.Close()
	}
	s.lock = lock
	return nil
}

// letGo closes what is open of a store that has gone. A filesystem that is taken away
// to be repaired is in use until then, and the same is mounted again.
func (s *Store) letGo() {
	s.using.Lock()
	defer s.using.Unlock()
	if s.db != nil {
		s.db.Close()
		s.db = nil
	}
	if s.lock != nil {
		s.lock.Close()
		s.lock = nil
	}
}

// sameFile reports whether a name still leads to an open file.
func sameFile(f *os.File, path string) bool {
	was, err := f.Stat()
	now, err2 := os.Lstat(path)
	return err == nil && err2 == nil && os.SameFile(was, now)
}

const (
	lockWait  = 500 * time.Millisecond
	lockPause = 20 * time.Millisecond
)

// lockDir keeps a second node away. The lock goes with its process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, storeError(err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	for wait := lockWait; errors.Is(err, syscall.EWOULDBLOCK) && wait > 0; wait -= lockPause {
		time.Sleep(lockPause) // one that was killed may not have gone quite yet
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &LockedError{Dir: dir}
		}
		return nil, &StoreError{Err: err}
	}
	return f, nil
}

// load opens the file, after it was found sound, or mended. Readers wait meanwhile.
func (s *Store) load() error {
	path := filepath.Join(s.dir, dbName)
	s.using.Lock()
	defer s.using.Unlock()
	if s.db != nil {
		s.db.Close()
		s.db = nil
	}
	if s.opened {
		if err := s.distrust(path); err != nil {
			return storeError(err)
		}
	}
	c, err := s.mend(path)
	if err != nil {
		return err
	}
	os.Remove(filepath.Join(s.dir, cleanName))
	os.Remove(filepath.Join(s.dir, "reserve.purge")) // of earlier versions
	_, err = os.Lstat(path)
	fresh := errors.Is(err, os.ErrNotExist)
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: time.Second, FreelistType: bolt.FreelistMapType, InitialMmapSize: 64 << 20, OpenFile: openNoFollow,
	})
	if err != nil {
		if fresh { // a part of it would be taken for a damaged one
			os.Remove(path)
		}
		return storeError(fmt.Errorf("%s: %w", path, err))
	}
	db.NoSync, db.NoGrowSync = s.volatile, s.volatile
	db.AllocSize = 1 << 20 // what the file grows by
	err = s.setUp(db)
	if err == nil {
		err = storeErrorOrNil(s.mark())
	}
	if err == nil && !s.opened {
		err = s.survey(db, c)
	}
	if err != nil {
		db.Close()
		if fresh {
			os.Remove(path)
		}
		return err
	}
	s.db, s.opened = db, true
	return nil
}

// distrust has what is checked next read from the disk. After an error of a write or
// sync the kernel takes for clean, and keeps, pages that the disk may never have had;
// see https://wiki.postgresql.org/wiki/Fsync_Errors.
func (s *Store) distrust(path string) error {
	if s.volatile {
		return nil
	}
	f, err := openNoFollow(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil { // what has not been written can not be dropped
		return err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // tmpfs has no disk to read from
	_, err = io.Copy(io.Discard, f)                         // what can not be read now is not damaged yet
	return err
}

func openNoFollow(name string, flag int, mode os.FileMode) (*os.File, error) {
	return os.OpenFile(name, flag|syscall.O_NOFOLLOW, mode)
}

// setUp makes the buckets of a new store, and reads the clock of an old one. It
// writes nothing to one that has all: the disk may be full.
func (s *Store) setUp(db *bolt.DB) error {
	var last stamp
	var version string
	err := db.View(func(b *bolt.Tx) (err error) {
		version, last, err = s.readMeta(&tx{b, s})
		return err
	})
	if err == nil && version != "" && version != formatVersion {
		err = errFormat(db.Path(), version)
	}
	if err == nil && (version == "" || !whole(db)) {
		err = db.Update(func(b *bolt.Tx) error { return (&tx{b, s}).found() })
	}
	if err != nil {
		return storeError(err)
	}
	if s.time == nil {
		s.time = newTimeline(s.clock, last)
	}
	return nil
}

// readMeta reads what the store says of itself; no version: it is new.
func (s *Store) readMeta(t *tx) (version string, last stamp, err error) {
	if t.Bucket([]byte(bucketMeta)) == nil {
		return "", last, nil
	}
	format, err := t.get(bucketMeta, []byte("format"))
	if err != nil {
		return "", last, err
	}
	loss, err := t.get(bucketMeta, []byte("loss"))
	if err == nil && loss != nil {
		n, _ := strconv.ParseInt(string(loss), 10, 64)
		s.loss.Store(n)
	}
	data, err := t.get(bucketMeta, []byte("clock"))
	if err == nil && data != nil {
		err = json.Unmarshal(data, &last)
	}
	return string(format), last, err
}

// whole reports whether all buckets are there.
func whole(db *bolt.DB) bool {
	return db.View(func(b *bolt.Tx) error {
		for _, name := range buckets {
			if b.Bucket([]byte(name)) == nil {
				return os.ErrNotExist
			}
		}
		return nil
	}) == nil
}

// found makes the buckets, in one commit with the format's version.
func (t *tx) found() error {
	for _, name := range buckets {
		if _, err := t.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	return t.put(bucketMeta, []byte("format"), []byte(formatVersion))
}

// survey takes over what was counted, and removes files of the spool that no job has.
func (s *Store) survey(db *bolt.DB, c *contents) error {
	names, err := s.spool.names()
	if err != nil {
		return &StoreError{Err: err}
	}
	used := c.Bytes
	err = db.View(func(b *bolt.Tx) error {
		t := &tx{b, s}
		for _, name := range names {
			st, err := os.Lstat(filepath.Join(s.spool.dir, name))
			id, _ := ParseID(name[:min(len(name), len(ID{}.String()))])
			j, damage := t.job(id)
			known := damage != nil || j != nil && slices.Contains(j.files(), name)
			switch {
			case !known && !s.mended: // it was written, and its record was not
				s.spool.remove(name)
			case err == nil: // after damage, files without a record are kept for people to look at
				used += st.Size()
			}
		}
		return nil
	})
	if err != nil {
		return &StoreError{Err: err}
	}
	s.jobs.Store(c.Jobs)
	s.spool.used.Store(used)
	s.mu.Lock()
	if c.Last.Compare(s.lastID) > 0 {
		s.lastID = c.Last
	}
	s.mu.Unlock()
	return nil
}

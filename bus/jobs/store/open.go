package store

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
	bolt "go.etcd.io/bbolt"
)

// Open opens the store of a directory, and makes one that is not there.
func Open(o Config) (*Store, error) {
	if o.MaxJobs <= 0 {
		o.MaxJobs = DefaultMaxJobs
	}
	if o.MaxSpool <= 0 {
		o.MaxSpool = DefaultMaxSpool
	}
	if o.Clock.Wall == nil {
		o.Clock = systemClock()
	}
	if o.Place == nil {
		o.Place = func() (string, error) { return o.Dir, nil }
	}
	if o.Warn == nil {
		o.Warn = func(string, ...any) {}
	}
	shares := &Shares{MaxJobs: o.MaxJobs, MaxBytes: o.MaxSpool, watches: Watches[string]{}}
	s := &Store{
		place: o.Place, warn: o.Warn, Shares: shares,
		Spool: &Spool{shares: shares, link: os.Link, warn: o.Warn}, reserve: &reserve{},
		ops: make(chan *Op, 4096), done: make(chan struct{}),
		Clock: o.Clock, volatile: o.Volatile,
		commit: (*bolt.Tx).Commit, entropy: ulid.Monotonic(rand.Reader, 0),
	}
	s.Spool.inRoom = s.inRoom
	err := s.reach()
	if err != nil && (!o.Patient || errors.As(err, new(*LockedError))) {
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, err
	}
	if err == nil {
		err = s.reserve.make()
	}
	if err != nil {
		s.setFailed(Wrap(err)) // before anybody can post
	}
	go s.write(err) // ends with close
	return s, nil
}

// reach locks the directory and opens the file in it.
func (s *Store) reach() error {
	if !s.opened {
		dir, err := s.place()
		if err != nil {
			return Wrap(err)
		}
		s.dir, s.Spool.dir, s.reserve.path = dir, filepath.Join(dir, spoolName), filepath.Join(dir, reserveName)
	}
	if err := s.take(); err != nil {
		return err
	}
	return s.load()
}

// take makes the directory, once, and locks it. It locks again if another filesystem was
// mounted over the first.
func (s *Store) take() error {
	if !s.opened {
		if err := os.MkdirAll(s.Spool.dir, 0o700); err != nil {
			return Wrap(err)
		}
	} else if _, err := os.Lstat(filepath.Join(s.dir, formatName)); err != nil { // nothing may be made in an empty mount point
		s.letGo()
		return &StoreError{Err: fmt.Errorf("it has gone: %w", err)}
	}
	if s.lock != nil {
		was, err := s.lock.Stat()
		now, err2 := os.Lstat(s.lock.Name())
		if err == nil && err2 == nil && os.SameFile(was, now) {
			return nil
		}
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

// letGo closes all files of a store whose directory is gone: a filesystem that has to be
// repaired cannot be unmounted while they are open.
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

const (
	lockWait  = 500 * time.Millisecond
	lockPause = 20 * time.Millisecond
)

// lockDir takes the lock that keeps a second node away. It ends with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, Wrap(err)
	}
	for wait := lockWait; ; wait -= lockPause {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) || wait <= 0 {
			break
		}
		time.Sleep(lockPause) // a killed node may not have ended quite yet
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

// load checks the file, replaces it if it is damaged, and opens it. Readers wait.
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
			return Wrap(err)
		}
	}
	c, err := s.mend(path)
	if err != nil {
		return err
	}
	for _, name := range []string{"reserve.purge", "clean"} { // of earlier versions
		os.Remove(filepath.Join(s.dir, name))
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: time.Second, FreelistType: bolt.FreelistMapType, InitialMmapSize: 64 << 20, OpenFile: openNoFollow,
	})
	if err == nil {
		db.NoSync, db.NoGrowSync = s.volatile, s.volatile
		db.AllocSize = 1 << 20 // what the file grows by
		if err = s.setUp(db, c); err == nil && c.relist {
			err = s.relist(db)
		}
		if err != nil {
			db.Close()
		}
	}
	if err != nil {
		if c.meta == nil { // half a file would look like a damaged one
			os.Remove(path)
		}
		return Wrap(fmt.Errorf("%s: %w", path, err))
	}
	s.db, s.opened = db, true
	return nil
}

func openNoFollow(name string, flag int, mode os.FileMode) (*os.File, error) {
	return os.OpenFile(name, flag|syscall.O_NOFOLLOW, mode)
}

// setUp makes the buckets of a new store, and reads the clock of an old one, to which it
// writes nothing: the disk may be full.
func (s *Store) setUp(db *bolt.DB, c *contents) error {
	var last stamp
	if c.meta == nil {
		if err := db.Update(func(b *bolt.Tx) error { return (&Tx{b, s}).found() }); err != nil {
			return err
		}
	} else if clock := c.meta["clock"]; clock != nil {
		if err := json.Unmarshal(clock, &last); err != nil {
			return err
		}
	}
	loss, _ := strconv.ParseInt(string(c.meta["loss"]), 10, 64)
	s.loss.Store(loss)
	if s.time == nil {
		s.time = newTimeline(s.Clock, last)
	}
	err := s.mark() // first: from here on an earlier version of fbus refuses the store
	if earlier := string(c.meta["format"]); err == nil && c.meta != nil && earlier != strconv.Itoa(formatVersion) {
		err = db.Update(func(b *bolt.Tx) error { return (&Tx{b, s}).found() })
	}
	if err != nil || s.opened {
		return err
	}
	return s.survey(db, c)
}

// found makes the buckets, in one commit with the format's version.
func (t *Tx) found() error {
	for _, name := range buckets {
		if _, err := t.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	return t.Put(BucketMeta, []byte("format"), []byte(strconv.Itoa(formatVersion)))
}

// survey sets the counters, and deletes files of the spool that no job names.
func (s *Store) survey(db *bolt.DB, c *contents) error {
	names, err := s.Spool.names()
	if err != nil {
		return err
	}
	s.Shares.mu.Lock()
	s.Shares.all, s.Shares.of = c.taken.all, c.taken.of
	s.Shares.mu.Unlock()
	err = db.View(func(b *bolt.Tx) error {
		t := &Tx{b, s}
		for _, name := range names {
			st, err := os.Lstat(filepath.Join(s.Spool.dir, name))
			j, damage := t.Job(fileID(name))
			switch known := damage != nil || j != nil && slices.Contains(j.Files(), name); {
			case known:
			case !s.mended: // its record was never committed
				s.Spool.Remove(name)
			case err == nil: // after damage, files without a record are kept
				s.Shares.AddBytes("", st.Size())
			}
		}
		return t.Thens(func(_ string, then *Then) { s.Shares.Owes(then.Poster.Key()) })
	})
	s.mu.Lock()
	s.idTime = max(s.idTime, c.last.Time()+1)
	s.mu.Unlock()
	return err
}

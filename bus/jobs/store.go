package jobs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
	bolt "go.etcd.io/bbolt"
)

// Names in the directory of a store.
const (
	dbName    = "jobs.db"
	spoolName = "spool"
	lockName  = "lock"
)

// formatVersion is that of the store; FORMAT.md describes it.
const formatVersion = "1"

// Store keeps jobs on disk. All changes go through one writer, which commits as
// many of them at once as have come while it was busy with the last.
type Store struct {
	dir      string
	warn     func(format string, args ...any)
	maxJobs  int64
	jobs     atomic.Int64 // that there are, in whatever state
	spool    *spool
	lock     *os.File
	clock    Clock
	volatile bool
	loss     atomic.Int64 // jobs that were posted until then may be lost: milliseconds of the date
	mended   bool         // what was damaged was made anew
	time     *timeline
	commit   func(*bolt.Tx) error // a test makes it fail

	using sync.RWMutex // protects db: taken to read, exclusively to open it anew
	db    *bolt.DB

	gate sync.RWMutex // protects shut: taken to submit, exclusively to close
	shut bool

	ops    chan *op
	done   chan struct{} // closed when the writer has ended
	closed sync.Once

	mu     sync.Mutex // protects the fields below
	lastID ID
	failed error // why nothing can be written now
}

// op is a change of the store.
type op struct {
	run   func(t *tx) error // its error takes back nothing: it must look before it writes
	done  func(err error)   // after the commit, in the writer's goroutine
	must  bool              // what has happened already: kept until it can be written
	added ID                // a job that must not be there if the post was refused
	err   error
}

// openStore opens the store of a directory, and makes one that is not there.
func openStore(o *Config) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(o.Dir, spoolName), 0o700); err != nil {
		return nil, &StoreError{Err: err}
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir: o.Dir, warn: o.Warn, maxJobs: o.MaxJobs, lock: lock,
		spool: &spool{dir: filepath.Join(o.Dir, spoolName), max: o.MaxSpool},
		ops:   make(chan *op, 4096), done: make(chan struct{}),
		clock: o.Clock, volatile: o.Volatile,
		commit: func(t *bolt.Tx) error { return t.Commit() },
	}
	if err := s.load(true); err != nil {
		lock.Close()
		return nil, err
	}
	go s.write() // ends with close
	return s, nil
}

const (
	lockWait  = 500 * time.Millisecond
	lockPause = 20 * time.Millisecond
)

// lockDir keeps a second node away. The lock goes with its process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &StoreError{Err: err}
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

// load opens the file, after it was found sound, or mended.
func (s *Store) load(first bool) error {
	path := filepath.Join(s.dir, dbName)
	if err := s.mend(path); err != nil {
		return err
	}
	s.using.Lock()
	defer s.using.Unlock()
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: time.Second, FreelistType: bolt.FreelistMapType, InitialMmapSize: 64 << 20, OpenFile: openNoFollow,
	})
	if err != nil {
		return &StoreError{Err: fmt.Errorf("%s: %w", path, err)}
	}
	db.NoSync, db.NoGrowSync = s.volatile, s.volatile
	db.AllocSize = 1 << 20 // what the file grows by
	err = s.setUp(db)
	if err == nil {
		err = storeErrorOrNil(s.mark())
	}
	if err == nil && first {
		err = s.survey(db)
	}
	if err != nil {
		db.Close()
		return err
	}
	s.db = db
	return nil
}

func openNoFollow(name string, flag int, mode os.FileMode) (*os.File, error) {
	return os.OpenFile(name, flag|syscall.O_NOFOLLOW, mode)
}

// setUp makes the buckets of a new store, and reads the clock of an old one.
func (s *Store) setUp(db *bolt.DB) error {
	var last stamp
	err := db.Update(func(b *bolt.Tx) error {
		t := &tx{b, s}
		for _, name := range buckets {
			if _, err := b.CreateBucketIfNotExists([]byte(name)); err != nil {
				return err
			}
		}
		version, err := t.get(bucketMeta, []byte("format"))
		switch {
		case err != nil:
			return err
		case version == nil:
			if err := t.put(bucketMeta, []byte("format"), []byte(formatVersion)); err != nil {
				return err
			}
		case string(version) != formatVersion:
			return fmt.Errorf("%s: format %s is not known to this version of fbus, which writes %s", db.Path(), version, formatVersion)
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
		return err
	})
	if err != nil {
		return &StoreError{Err: err}
	}
	if s.time == nil {
		s.time = newTimeline(s.clock, last)
	}
	return nil
}

// survey counts what there is, and removes files of the spool that no job has.
func (s *Store) survey(db *bolt.DB) error {
	var used int64
	known := map[string]bool{}
	err := db.View(func(b *bolt.Tx) error {
		data := b.Bucket([]byte(bucketData)).Cursor()
		for k, v := data.First(); k != nil; k, v = data.Next() {
			used += int64(len(v)) - 4
		}
		jobs := b.Bucket([]byte(bucketJobs)).Cursor()
		for k, v := jobs.First(); k != nil; k, v = jobs.Next() {
			s.jobs.Add(1)
			s.lastID = keyID(k)
			if !bytes.Contains(v, []byte(`"file":`)) { // most have none, and need not be read
				continue
			}
			if j, err := decodeJob(keyID(k), v); err == nil {
				for _, f := range j.files() {
					known[f] = true
				}
			}
		}
		return nil
	})
	if err != nil {
		return &StoreError{Err: err}
	}
	names, err := s.spool.names()
	if err != nil {
		return &StoreError{Err: err}
	}
	for _, name := range names {
		st, err := os.Lstat(filepath.Join(s.spool.dir, name))
		switch {
		case !known[name] && s.mended: // of a job whose record was lost: for people to look at
			used += st.Size()
		case !known[name]: // written, and cut off before its record was
			s.spool.remove(name)
		case err == nil:
			used += st.Size()
		}
	}
	s.spool.used.Store(used)
	return nil
}

// view reads a state of the store that nothing changes meanwhile.
func (s *Store) view(f func(t *tx) error) (err error) {
	s.using.RLock()
	defer s.using.RUnlock()
	if s.db == nil {
		return cmp.Or(s.unwritable(), error(&StoreError{Err: errors.New("it is not open")}))
	}
	defer catch(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a file that was cut short
	return s.db.View(func(b *bolt.Tx) error { return f(&tx{b, s}) })
}

// catch turns a panic of bbolt over a damaged page into an error.
func catch(err *error) {
	if r := recover(); r != nil {
		*err = &StoreError{Err: fmt.Errorf("it is damaged: %v", r)}
	}
}

// unwritable is why nothing can be written, nil while it can.
func (s *Store) unwritable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// nextID makes an id that is greater than all before it, whatever the date says.
func (s *Store) nextID() ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ms := max(ulid.Timestamp(s.clock.Wall()), s.lastID.Time())
	id := ID{}
	id.SetTime(ms)
	if ms == s.lastID.Time() {
		id = s.lastID
		step(&id, 1+rand.Uint64N(1<<32)) // not to be guessed from the one before
	} else {
		var entropy [10]byte
		for i := range entropy {
			entropy[i] = byte(rand.Uint32())
		}
		entropy[0] &= 0x7f // room to count in
		id.SetEntropy(entropy[:])
	}
	s.lastID = id
	return id
}

// step adds to an id as to one large number.
func step(id *ID, n uint64) {
	for i := len(id) - 1; i >= 0 && n > 0; i-- {
		n += uint64(id[i])
		id[i] = byte(n)
		n >>= 8
	}
}

// submit hands a change to the writer, waiting for room in its backlog.
func (s *Store) submit(o *op) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if !s.shut {
		s.ops <- o
	} else if o.done != nil {
		o.done(ErrClosed)
	}
}

// trySubmit is submit for who can not wait; false: there is no room.
func (s *Store) trySubmit(o *op) bool {
	if !s.gate.TryRLock() {
		return false
	}
	defer s.gate.RUnlock()
	if s.shut {
		return false
	}
	select {
	case s.ops <- o:
		return true
	default:
		return false
	}
}

// apply makes a change and waits for it.
func (s *Store) apply(must bool, run func(t *tx) error) error {
	result := make(chan error, 1)
	s.submit(&op{run: run, must: must, done: func(err error) { result <- err }})
	return <-result
}

// close writes what is still to be written and ends the writer.
func (s *Store) close() {
	s.closed.Do(func() {
		s.gate.Lock()
		s.shut = true
		close(s.ops)
		s.gate.Unlock()
		<-s.done
		if s.db != nil {
			s.db.Close()
		}
		s.lock.Close()
	})
}

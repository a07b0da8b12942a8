// Package store keeps posted calls on disk: their records in a bbolt file, and large
// parts in files of their own. FORMAT.md describes them.
package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	bolt "go.etcd.io/bbolt"
)

// Names in the directory of a store.
const (
	dbName      = "jobs.db"
	spoolName   = "spool"
	lockName    = "lock"
	reserveName = "reserve"
)

// formatVersion is that of the store; FORMAT.md describes it. A store of an earlier one
// becomes one of this version when it is opened.
const formatVersion = 2

// Defaults of a Config.
const (
	DefaultMaxJobs  = 2_000_000
	DefaultMaxSpool = 16 << 30
)

// Config configures a store.
type Config struct {
	Dir      string
	Place    func() (string, error) // finds the directory, in place of Dir, at each try to open the store
	Patient  bool                   // try again to open a store that cannot be opened, unless another node has it
	MaxJobs  int64                  // in whatever state; default DefaultMaxJobs
	MaxSpool int64                  // bytes of arguments, input and output; default DefaultMaxSpool
	Clock    Clock                  // default: the machine's
	Volatile bool                   // the store need not outlast the machine: nothing is synced
	Warn     func(format string, args ...any)
}

// Store keeps jobs on disk. All changes go through one writer, which commits all those
// at once that have come during the last commit.
type Store struct {
	Clock  Clock
	Spool  *Spool
	Shares *Shares

	place    func() (string, error) // finds dir, until the store was opened once
	dir      string
	warn     func(format string, args ...any)
	reserve  *reserve
	lock     *os.File // nil: not locked yet
	volatile bool
	writing  atomic.Int64         // nanoseconds that commits have waited for the disk
	kept     atomic.Int64         // bytes of free pages that the filesystem did not take back the last time
	loss     atomic.Int64         // jobs posted before then may be lost: milliseconds of the date
	mended   bool                 // a damaged file was replaced
	opened   bool                 // it was open before: a missing file is lost, not new
	torn     bool                 // the last commit has failed, but may be on disk
	time     *Timeline            // nil until the store was opened
	commit   func(*bolt.Tx) error // a test makes it fail

	using sync.RWMutex // protects db: held to read, exclusively to open it again
	claim sync.Mutex   // held while room on the disk is measured and taken, if there is little; before using
	db    *bolt.DB

	gate sync.RWMutex // protects shut: held to submit, exclusively to close
	shut bool

	ops    chan *Op
	done   chan struct{} // closed when the writer has ended
	closed sync.Once

	mu      sync.Mutex             // protects the fields below
	entropy *ulid.MonotonicEntropy // of ids
	idTime  uint64                 // of the last id, or of the next one
	failed  error                  // why nothing can be written now
	works   func()                 // called by the writer when it can write again
}

// Op is a change of the store.
type Op struct {
	Run   func(t *Tx) error // its error undoes nothing: it checks before it writes
	Done  func(err error)   // called by the writer after the commit; may be nil before Submit
	Must  bool              // it has happened already: it is kept until it can be written
	Late  func()            // called if Must and it cannot be written at once
	Lazy  bool              // it waits for another change, for lazyPause at most, and is committed with it
	Frees bool              // it makes room, or helps to: it is tried while the disk is full
	Added ID                // a job that must not be there if the post was refused
	Takes int64             // bytes of a new job, or with Short of output: refused if accepted jobs need them
	// Short has Run write less, in place of a refusal. refused: posts are refused as well. It must not
	// read the store, which the writer has locked.
	Short func(why error, refused bool)
	holes bool // the file's free pages are returned to the disk first
	err   error
}

// Now returns the store's time.
func (s *Store) Now() int64 { return s.time.Now() }

// Time returns the store's clock.
func (s *Store) Time() *Timeline { return s.time }

// Writing returns how long commits have waited for the disk, in all.
func (s *Store) Writing() time.Duration { return time.Duration(s.writing.Load()) }

// OnRecovery sets a function that the writer calls when it can write again.
func (s *Store) OnRecovery(works func()) {
	s.mu.Lock()
	s.works = works
	s.mu.Unlock()
}

// View reads a snapshot of the store.
func (s *Store) View(f func(t *Tx) error) error {
	s.using.RLock()
	defer s.using.RUnlock()
	if s.db == nil {
		return cmp.Or(s.Unwritable(), error(&StoreError{Err: errors.New("it is not open")}))
	}
	return guarded(func() error {
		return s.db.View(func(b *bolt.Tx) error { return f(&Tx{b, s}) })
	})
}

// guarded runs f. A panic of bbolt over a damaged page, or a fault of a file that was cut
// short, is an error.
func guarded(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &StoreError{Err: fmt.Errorf("it is damaged: %v", r)}
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return f()
}

// Unwritable returns why nothing can be written, nil while it can.
func (s *Store) Unwritable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// NextID makes an id that is greater than all before it, whatever the date is, and is not
// to be guessed from them.
func (s *Store) NextID() ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idTime = max(s.idTime, ulid.Timestamp(s.Clock.Wall()))
	id, err := ulid.New(s.idTime, s.entropy)
	if err != nil { // too many in this millisecond
		s.idTime++
		id = ulid.MustNew(s.idTime, s.entropy)
	}
	return id
}

// Submit hands a change to the writer. It waits for room in the backlog.
func (s *Store) Submit(o *Op) {
	if o.Done == nil {
		o.Done = func(error) {}
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.shut {
		o.Done(ErrClosed)
	} else {
		s.ops <- o
	}
}

// Apply makes a change and waits for it.
func (s *Store) Apply(o Op) error {
	result := make(chan error, 1)
	o.Done = func(err error) { result <- err }
	s.Submit(&o)
	return <-result
}

// Close writes what is pending and ends the writer.
func (s *Store) Close() {
	s.closed.Do(func() {
		s.gate.Lock()
		s.shut = true
		close(s.ops)
		s.gate.Unlock()
		<-s.done
		if s.db != nil {
			s.db.Close()
		}
		if s.lock != nil {
			s.lock.Close()
		}
	})
}

// Inject replaces the functions that commit a transaction and link two files, so that a
// test can make them fail; nil restores one.
func (s *Store) Inject(commit func(*bolt.Tx) error, link func(old, new string) error) {
	s.using.Lock() // the writer has no transaction open
	defer s.using.Unlock()
	if s.commit = commit; commit == nil {
		s.commit = (*bolt.Tx).Commit
	}
	if s.Spool.link = link; link == nil {
		s.Spool.link = os.Link
	}
}

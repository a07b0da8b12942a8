package jobs

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"

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

// formatVersion is that of the store; FORMAT.md describes it.
const formatVersion = "1"

// Store keeps jobs on disk. All changes go through one writer, which commits as
// many of them at once as have come while it was busy with the last.
type Store struct {
	place    func() (string, error) // finds dir, until the store was opened once; nil: it is known
	dir      string
	warn     func(format string, args ...any)
	maxJobs  int64
	jobs     atomic.Int64 // that there are, in whatever state
	spool    *spool
	reserve  *reserve
	lock     *os.File // nil: not had yet
	clock    Clock
	volatile bool
	writing  atomic.Int64         // nanoseconds that commits have waited for the disk
	loss     atomic.Int64         // jobs that were posted until then may be lost: milliseconds of the date
	mended   bool                 // what was damaged was made anew
	opened   bool                 // it was, once: what is not there is gone, not new
	time     *timeline            // nil until then
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
	failed error  // why nothing can be written now
	works  func() // told when it can be written again, in the writer's goroutine
}

// op is a change of the store.
type op struct {
	run   func(t *tx) error // its error takes back nothing: it must look before it writes
	done  func(err error)   // after the commit, in the writer's goroutine
	must  bool              // what has happened already: kept until it can be written
	late  func()            // told, if it must, that it can not be written at once
	frees bool              // it makes room: it is tried while the disk is full
	added ID                // a job that must not be there if the post was refused
	err   error
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
			s.closeFile()
		}
		if s.lock != nil {
			s.lock.Close()
		}
	})
}

package jobs

import (
	"errors"
	"fmt"
)

// FullError says that there is no room for what was to be kept. It passes.
type FullError struct {
	What string
	Err  error
}

func (e *FullError) Error() string { return "the store of jobs is full: " + e.What }
func (e *FullError) Unwrap() error { return e.Err }

// StoreError says that the store can not be written. It is tried again by itself.
type StoreError struct{ Err error }

func (e *StoreError) Error() string {
	return "the store of jobs can not be written: " + e.Err.Error()
}
func (e *StoreError) Unwrap() error { return e.Err }

// DamagedError says that something of a job is not what was written.
type DamagedError struct {
	ID   ID
	What string
}

func (e *DamagedError) Error() string { return fmt.Sprintf("job %s is damaged: %s", e.ID, e.What) }

// LockedError says that another node has the store.
type LockedError struct{ Dir string }

func (e *LockedError) Error() string { return e.Dir + ": another node has this store of jobs" }

// A post is refused, and what is asked of a job can not be done.
var (
	ErrNoJob      = errors.New("no such job")
	ErrUnfinished = errors.New("not finished")
	ErrClosed     = errors.New("the store of jobs is closed")
	errState      = errors.New("not in that state")
)

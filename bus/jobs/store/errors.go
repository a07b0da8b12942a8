package store

import (
	"errors"
	"fmt"
)

// FullError reports that there is no room. That passes.
type FullError struct {
	What string
	Err  error
}

func (e *FullError) Error() string { return "the store of jobs is full: " + e.What }
func (e *FullError) Unwrap() error { return e.Err }

// StoreError reports that the store cannot be written. The store tries again by itself.
type StoreError struct{ Err error }

func (e *StoreError) Error() string {
	return "the store of jobs cannot be written: " + e.Err.Error()
}
func (e *StoreError) Unwrap() error { return e.Err }

// DamagedError reports that a part of a job is not as it was written.
type DamagedError struct {
	ID   ID
	What string
}

func (e *DamagedError) Error() string { return fmt.Sprintf("job %s is damaged: %s", e.ID, e.What) }

// LockedError reports that another node uses the store.
type LockedError struct{ Dir string }

func (e *LockedError) Error() string { return e.Dir + ": another node uses this store of jobs" }

// Why a post is refused, or a request about a job.
var (
	ErrNoJob      = errors.New("no such job")
	ErrUnfinished = errors.New("not finished")
	ErrClosed     = errors.New("the store of jobs is closed")
	ErrState      = errors.New("not in that state")
)

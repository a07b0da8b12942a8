package store

import (
	"errors"
	"fmt"
	"syscall"

	"fbus/bus/args"
)

// FullError reports that there is no room. That passes.
type FullError struct {
	What string
	Err  error  // of the disk; nil: a bound of the store
	Of   string // the poster whose share is used up; empty: it is the whole store
	Left bool   // that share is less than a quarter, since others have the rest
	Live bool   // only jobs that have not ended are in the way: no result is
}

// TooLargeError reports a payload for which there can never be room.
type TooLargeError struct {
	Who  string // the poster
	Most int64  // bytes that its jobs may have
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("more than the %d bytes of input and output that --max-spool allows %s", e.Most, e.Who)
}

// FullMessage begins the text of each FullError.
const FullMessage = "the store of jobs is full: "

func (e *FullError) Error() string { return FullMessage + e.What }
func (e *FullError) Unwrap() error { return e.Err }

// StoreError reports that the store cannot be written. The store tries again by itself.
type StoreError struct{ Err error }

func (e *StoreError) Error() string {
	return "the store of jobs cannot be written: " + e.Err.Error()
}
func (e *StoreError) Unwrap() error { return e.Err }

// UncertainError reports that a post may have been kept: its commit failed, but may be on
// disk. The job is deleted when the store can be written again. If the node ends before
// that, the next one may find the job and run it.
type UncertainError struct {
	ID  ID
	Err error
}

func (e *UncertainError) Error() string {
	return fmt.Sprintf("%v; whether job %s was kept is unknown", e.Err, e.ID)
}
func (e *UncertainError) Unwrap() error { return e.Err }

// DamagedError reports that a part of a job is not as it was written.
type DamagedError struct {
	ID   ID
	What string
	File string // empty: it is in the store's file
}

func (e *DamagedError) Error() string {
	if e.File != "" {
		return fmt.Sprintf("job %s is damaged: %s: %s", e.ID, e.File, e.What)
	}
	return fmt.Sprintf("job %s is damaged: %s", e.ID, e.What)
}

// Public returns the text of an error without paths of the node's disk: for callers that do
// not administer the node, and for the record of a job.
func Public(err error) string {
	var errno syscall.Errno
	var damaged *DamagedError
	var post *UncertainError
	switch {
	case errors.As(err, &post):
		return (&UncertainError{ID: post.ID, Err: errors.New(Public(post.Err))}).Error()
	case errors.As(err, &damaged):
		return (&DamagedError{ID: damaged.ID, What: damaged.What}).Error()
	case errors.As(err, new(*LockedError)):
		return "another node uses its store of jobs"
	case !errors.As(err, new(*StoreError)):
		return args.WithoutPath(err).Error()
	case errors.As(err, &errno):
		return (&StoreError{Err: errno}).Error()
	}
	return "the store of jobs cannot be written"
}

// LockedError reports that another node uses the store.
type LockedError struct{ Dir string }

func (e *LockedError) Error() string { return e.Dir + ": another node uses this store of jobs" }

// Why a post is refused, or a request about a job.
var (
	ErrNoJob      = errors.New("no such job")
	ErrUnfinished = errors.New("not finished")
	ErrClosed     = errors.New("the store of jobs is closed")
	ErrState      = errors.New("the state of the job does not allow that")
)

package jobs

import (
	"errors"

	"fbus/bus/args"
	"fbus/bus/jobs/store"
)

// What the store keeps, under the names that users of this package know.
type (
	ID           = store.ID
	Job          = store.Job
	State        = store.State
	Poster       = store.Poster
	Owner        = store.Owner
	Options      = store.Options
	End          = store.End
	Try          = store.Try
	Origin       = store.Origin
	Then         = store.Then
	Config       = store.Config
	Clock        = store.Clock
	FullError    = store.FullError
	StoreError   = store.StoreError
	DamagedError = store.DamagedError
	LockedError  = store.LockedError
)

const (
	Queued    = store.Queued
	Delayed   = store.Delayed
	Running   = store.Running
	Done      = store.Done
	Dead      = store.Dead
	Cancelled = store.Cancelled

	MaxItem = store.MaxItem

	DefaultMaxJobs  = store.DefaultMaxJobs
	DefaultMaxSpool = store.DefaultMaxSpool
)

var (
	ParseID       = store.ParseID
	BatchKey      = store.BatchKey
	ErrNoJob      = store.ErrNoJob
	ErrUnfinished = store.ErrUnfinished
	ErrClosed     = store.ErrClosed
	Public        = store.Public
)

// Report returns an error of this package as the caller of the node sees it; nil if it is
// another package's, or about the request.
func Report(err error) *args.Error {
	code, hint := "", ""
	switch {
	case errors.As(err, new(*store.UncertainError)):
		code, hint = args.CodeUncertain, "fbus jobs ID shows it; with --unique a post can be made again"
	case errors.As(err, new(*FullError)):
		code = args.CodeStoreFull
	case errors.As(err, new(*store.TooLargeError)):
		code = args.CodeBadInput
	case errors.As(err, new(*StoreError)):
		code = args.CodeStoreFailed
	case errors.As(err, new(*DamagedError)):
		code = args.CodeDamaged
	case errors.Is(err, ErrUnfinished):
		code = args.CodeUnfinished
	case errors.Is(err, ErrClosed):
		code = args.CodeDraining
	default:
		return nil
	}
	return &args.Error{Code: code, Message: err.Error(), Hint: hint, Err: err}
}

package bus

import (
	"fbus/bus/args"
	"fmt"
)

// Error is a failure that fbus itself reports, see [args.Error].
type Error = args.Error

// DeadlineMessage is that of a call whose own deadline has passed. At a limit of its own
// the worker says which.
const DeadlineMessage = "deadline exceeded"

// Errors to compare with, by [errors.Is]: one for each cause that a caller can
// do something about.
var (
	ErrBadInput   = &args.Error{Code: args.CodeBadInput}   // change the request
	ErrNoFunction = &args.Error{Code: args.CodeNoFunction} // wait for a worker, or mend the name
	ErrWorkerLost = &args.Error{Code: args.CodeWorkerLost} // it may have run
	ErrBusy       = &args.Error{Code: args.CodeBusy}       // try later
	ErrDraining   = &args.Error{Code: args.CodeDraining}   // try another node, or later
	ErrDenied     = &args.Error{Code: args.CodeDenied}     // final
	ErrDeadline   = &args.Error{Code: args.CodeDeadline}   // the time was too short
	ErrCancelled  = &args.Error{Code: args.CodeCancelled}  // somebody wanted it so
	ErrNodeLost   = &args.Error{Code: args.CodeNodeLost}   // it may have run
)

// ExitError is a program that did not exit with status 0.
type ExitError struct{ Result }

// Error says how the program ended.
func (e *ExitError) Error() string {
	if e.Source == args.FromSignal {
		return fmt.Sprintf("program was ended by %s", e.Code)
	}
	return fmt.Sprintf("program exited with status %d", e.Status)
}

package bus

import (
	"fbus/bus/args"
)

// What a call carries and how it ends is defined by package fbus/bus/args, which has the
// codes of errors and the encodings of arguments.
type (
	// Error is a failure that fbus itself reports: a code, a message and a hint. Two of
	// them are equal for [errors.Is] if their codes are.
	Error = args.Error
	// ExitError is a program that did not exit with status 0.
	ExitError = args.ExitError
	// End describes how a call ended. The zero End is a program's success.
	End = args.End
	// Args are the arguments of a call. The zero Args are none.
	Args = args.Args
	// Field is a named argument.
	Field = args.Field
)

// List makes arguments of strings, which may hold any bytes.
func List(words ...string) Args { return args.List(words...) }

// Fields makes named arguments, in the order given.
func Fields(fields ...Field) Args { return args.Fields(fields...) }

// JSON makes arguments of one JSON document, which is passed on digit for digit. It
// panics if doc is not valid JSON.
func JSON(doc []byte) Args { return args.JSON(doc) }

// Errors to compare with, by [errors.Is]: one for each cause that a caller can
// do something about.
var (
	ErrBadInput    = &Error{Code: args.CodeBadInput}    // change the request
	ErrNoFunction  = &Error{Code: args.CodeNoFunction}  // wait for a worker, or mend the name
	ErrWorkerLost  = &Error{Code: args.CodeWorkerLost}  // it may have run
	ErrCannotStart = &Error{Code: args.CodeCannotStart} // try later: it did not run
	ErrBusy        = &Error{Code: args.CodeBusy}        // try later
	ErrDraining    = &Error{Code: args.CodeDraining}    // try another node, or later
	ErrDenied      = &Error{Code: args.CodeDenied}      // final
	ErrDeadline    = &Error{Code: args.CodeDeadline}    // the time was too short
	ErrCancelled   = &Error{Code: args.CodeCancelled}   // somebody wanted it so
	ErrNodeLost    = &Error{Code: args.CodeNodeLost}    // it may have run
)

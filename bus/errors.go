package bus

import (
	"errors"
	"fmt"

	"fbus/bus/trust"
)

// Codes of END, OFFERED and ERROR frames that come from fbus itself, each with
// the exit status that the command gives it (PROTOCOL.md, section 7).
const (
	CodeUsage       = "usage"         // 64: the request makes no sense
	CodeBadInput    = "bad_input"     // 65: arguments or input the function can not take
	CodeNoFunction  = "no_function"   // 69: nobody offers it
	CodeInternal    = "internal"      // 70: a fault of fbus or the machine
	CodeOutputLimit = "output_limit"  // 70: more output than the offer allows
	CodeWorkerLost  = "worker_lost"   // 74: the worker vanished mid-call
	CodeBusy        = "busy"          // 75: no slot, or no room in a queue
	CodeDraining    = "draining"      // 75: the node or worker is shutting down
	CodeDenied      = "denied"        // 77: not allowed
	CodeDeadline    = "deadline"      // 124: the call's time was up
	CodeCannotRun   = "cannot_run"    // 126: the program can not be run
	CodeNotFound    = "not_found"     // 127: the program was not found
	CodeCancelled   = "cancelled"     // 143: somebody cancelled the call
	CodeNoNode      = "no_node"       // 255: no node can be reached
	CodeNodeLost    = "node_lost"     // 255: the node went away mid-call
	CodeProtocol    = "protocol"      // 255: a peer broke the protocol
	CodeVersion     = "version"       // 255: another major version
	CodeNetwork     = "wrong_network" // 255: the node is in another network
	CodeNotOurs     = "not_ours"      // 255: what listens there has no certificate of a node of the network, or by one of the clocks none that is good
	CodeForeign     = "foreign"       // 255: the socket is another user's
	CodeAmbiguous   = "ambiguous"     // 255: several nodes are equally near
	CodeSuperseded  = "superseded"    // 255: this instance connected anew
	CodeRevoked     = "revoked"       // 77: the ticket was taken back; package trust has the other codes of entry
)

var statusOf = map[string]int{
	CodeUsage: 64, CodeBadInput: 65, CodeNoFunction: 69, CodeInternal: 70, CodeOutputLimit: 70,
	CodeWorkerLost: 74, CodeBusy: 75, CodeDraining: 75, CodeDenied: 77, CodeDeadline: 124,
	CodeCannotRun: 126, CodeNotFound: 127, CodeCancelled: 143,

	trust.CodeNoCertificate: 77, trust.CodeExpired: 77, trust.CodeNotYetValid: 77, trust.CodeClock: 77, trust.CodeRevoked: 77,
	trust.CodeUnlisted: 77, trust.CodeUsed: 77, trust.CodeWrongUse: 77, trust.CodeBadCertificate: 77, trust.CodeBadTicket: 77,
	trust.CodeUnsafe: 77, trust.CodeNoTicket: 65, trust.CodeListLost: 75, trust.CodeBadRight: 64, trust.CodeNameTaken: 65,
}

// StatusOf is the exit status that belongs to a code of fbus: 255 for one that
// is about the node, and for one that this version does not know.
func StatusOf(code string) int {
	if s, ok := statusOf[code]; ok {
		return s
	}
	return 255
}

// Error is a failure that fbus itself reports, here or at the node. Two of them
// are equal for [errors.Is] if their codes are.
type Error struct {
	Code    string // one of the Code constants, or a newer node's
	Message string // what failed, for a person
	Err     error  // what lies below, if that is known

	status int // that END gave, 0: none
}

// Error is the message, or the code if there is none.
func (e *Error) Error() string {
	switch {
	case e.Message == "" && e.Err != nil:
		return e.Err.Error()
	case e.Message == "":
		return e.Code
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an Error with the same code, or is [ErrDenied] and
// this is a denial of whatever kind.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && (t.Code == e.Code || t.Code == CodeDenied && e.Status() == StatusOf(CodeDenied))
}

// Status is the exit status for the error; for a code that this version does not
// know, the one that came with it.
func (e *Error) Status() int {
	if _, known := statusOf[e.Code]; !known && e.status != 0 {
		return e.status
	}
	return StatusOf(e.Code)
}

// DeadlineMessage is that of a call whose own deadline has passed. At a limit of its own
// the worker says which.
const DeadlineMessage = "deadline exceeded"

// Errors to compare with, by [errors.Is]: one for each cause that a caller can
// do something about.
var (
	ErrBadInput   = &Error{Code: CodeBadInput}   // change the request
	ErrNoFunction = &Error{Code: CodeNoFunction} // wait for a worker, or mend the name
	ErrWorkerLost = &Error{Code: CodeWorkerLost} // it may have run
	ErrBusy       = &Error{Code: CodeBusy}       // try later
	ErrDraining   = &Error{Code: CodeDraining}   // try another node, or later
	ErrDenied     = &Error{Code: CodeDenied}     // final
	ErrDeadline   = &Error{Code: CodeDeadline}   // the time was too short
	ErrCancelled  = &Error{Code: CodeCancelled}  // somebody wanted it so
	ErrNodeLost   = &Error{Code: CodeNodeLost}   // it may have run
)

// ExitError is a program that did not exit with status 0.
type ExitError struct{ Result }

// Error says how the program ended.
func (e *ExitError) Error() string {
	if e.Source == FromSignal {
		return fmt.Sprintf("program was ended by %s", e.Code)
	}
	return fmt.Sprintf("program exited with status %d", e.Status)
}

// errorf makes an Error.
func errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// asError finds the Error in err, or makes one with the given code.
func asError(err error, code string) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: code, Message: err.Error(), Err: err}
}

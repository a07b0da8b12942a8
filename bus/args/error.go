package args

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// Codes of END, OFFERED and ERROR frames that come from fbus itself, each with
// the exit status that the command gives it (PROTOCOL.md, section 7).
const (
	CodeUsage       = "usage"         // 64: the request makes no sense
	CodeBadInput    = "bad_input"     // 65: arguments or input the function cannot take
	CodeNoFunction  = "no_function"   // 69: no worker offers it
	CodeInternal    = "internal"      // 70: a fault of fbus or the machine
	CodeOutputLimit = "output_limit"  // 70: more output than the offer allows
	CodeWorkerLost  = "worker_lost"   // 74: the worker vanished mid-call
	CodeBusy        = "busy"          // 75: no slot, or no room in a queue
	CodeDraining    = "draining"      // 75: the node or worker is shutting down
	CodeStoreFull   = "store_full"    // 75: the store of jobs has no room, until jobs end or are purged
	CodeStoreFailed = "store_failed"  // 75: the store of jobs cannot be written; it is tried again
	CodeUncertain   = "uncertain"     // 255: it is unknown whether a job was kept
	CodeUnfinished  = "unfinished"    // 75: the job has not ended
	CodeDenied      = "denied"        // 77: not allowed
	CodeDeadline    = "deadline"      // 124: the call's time was up
	CodeCannotRun   = "cannot_run"    // 126: the program cannot be run
	CodeNotFound    = "not_found"     // 127: the program was not found
	CodeCannotStart = "cannot_start"  // 126 or 127: the worker cannot start the program, so it did not run
	CodeCancelled   = "cancelled"     // 143: the call was cancelled
	CodeNoNode      = "no_node"       // 255: no node can be reached
	CodeNodeLost    = "node_lost"     // 255: the node went away mid-call
	CodeProtocol    = "protocol"      // 255: a peer broke the protocol
	CodeVersion     = "version"       // 255: another major version
	CodeNetwork     = "wrong_network" // 255: the node is in another network
	CodeNotOurs     = "not_ours"      // 255: the server has no valid certificate of a node of the network
	CodeForeign     = "foreign"       // 255: the socket is another user's
	CodeAmbiguous   = "ambiguous"     // 255: several nodes are equally near
	CodeSuperseded  = "superseded"    // 255: this instance has connected again
)

var statuses = map[string]int{
	CodeUsage: 64, CodeBadInput: 65, CodeNoFunction: 69, CodeInternal: 70, CodeOutputLimit: 70,
	CodeWorkerLost: 74, CodeBusy: 75, CodeDraining: 75, CodeStoreFull: 75, CodeStoreFailed: 75, CodeUnfinished: 75, CodeDenied: 77, CodeDeadline: 124,
	CodeCannotRun: 126, CodeNotFound: 127, CodeCannotStart: 126, CodeCancelled: 143,
	CodeNoNode: 255, CodeNodeLost: 255, CodeUncertain: 255, CodeProtocol: 255, CodeVersion: 255, CodeNetwork: 255,
	CodeNotOurs: 255, CodeForeign: 255, CodeAmbiguous: 255, CodeSuperseded: 255,

	CodeNoCertificate: 77, CodeExpired: 77, CodeNotYetValid: 77, CodeClock: 77, CodeRevoked: 77,
	CodeUnlisted: 77, CodeUsed: 77, CodeWrongUse: 77, CodeBadCertificate: 77, CodeBadTicket: 77,
	CodeUnsafe: 77, CodeNoTicket: 65, CodeListLost: 75, CodeShut: 75, CodeBadRight: 64, CodeNameTaken: 65,
}

// ofWorkers are the codes that a worker may give the end of a call. Only a node, or a caller, can
// know the others.
var ofWorkers = map[string]bool{
	CodeUsage: true, CodeBadInput: true, CodeInternal: true, CodeOutputLimit: true, CodeBusy: true, CodeDraining: true,
	CodeCannotRun: true, CodeNotFound: true, CodeCannotStart: true,
}

// statusVaries are further codes of nodes: their status depends on where they occur.
var statusVaries = map[string]bool{CodeOtherNetwork: true, CodeTLSVersion: true, CodeTLS: true, CodeDamaged: true, CodeStorage: true}

// OfWorker returns the code that a caller gets for one that a worker has sent: a code that
// is not the worker's to give has "worker." before it. Codes that this version does not know are
// unchanged.
func OfWorker(code string) string {
	if _, known := statuses[code]; (known || statusVaries[code]) && !ofWorkers[code] {
		return prefixWorker + code
	}
	return code
}

const prefixWorker = "worker."

// NotTaken reports whether a worker says with a code that it has not taken a call, so that the node
// can assign it again.
func NotTaken(code string) bool {
	return code == CodeBusy || code == CodeDraining || code == CodeCannotStart
}

// Relayed returns the code for the end of a worker's call that fails since a call of the worker's own
// has ended with code: it has taken its call, and must not get it again.
func Relayed(code string) string {
	if NotTaken(code) {
		return prefixWorker + code
	}
	return OfWorker(code)
}

// StatusOf returns the exit status for a code of fbus: 255 for one that
// is about the node, and for one that this version does not know.
func StatusOf(code string) int {
	if s, ok := statuses[code]; ok {
		return s
	}
	return 255
}

// Error is a failure that fbus itself reports, here or at the node. Two of them
// are equal for [errors.Is] if their codes are.
type Error struct {
	Code    string // one of the Code constants, or a newer node's
	Message string // what failed, for a person
	Hint    string // the next step, or ""
	Err     error  // the cause, if it is known

	status int // the one that came with the code, 0: none
}

// DeadlineMessage is the message of a call whose own deadline has passed. A worker names
// its own limit instead.
const DeadlineMessage = "deadline exceeded"

// hintLine separates a message from its hint where the wire has one element for both.
const hintLine = "\nhint: "

// FromWire returns the error of an END, OFFERED or ERROR frame. The status counts
// only if this version does not know the code; 0 is none.
func FromWire(code, message string, status int) *Error {
	message, hint := SplitHint(message)
	return &Error{Code: code, Message: message, Hint: hint, status: status}
}

// SplitHint splits a message and its hint, which frames carry as one text.
func SplitHint(text string) (message, hint string) {
	message, hint, _ = strings.Cut(text, hintLine)
	return message, hint
}

// WireMessage returns the message and the hint as one text, as frames carry them. A message
// cannot contain a hint.
func WireMessage(message, hint string) string {
	message = strings.ReplaceAll(message, hintLine, " ")
	if hint == "" {
		return message
	}
	return message + hintLine + hint
}

// Error returns the message, or the code if there is none.
func (e *Error) Error() string {
	switch {
	case e.Message == "" && e.Err != nil:
		return Plain(e.Err)
	case e.Message == "":
		return e.Code
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an Error with the same code, or is [ErrDenied] and
// this is a denial of any kind by a node.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && (t.Code == e.Code || t.Code == CodeDenied && e.Status() == StatusOf(CodeDenied) && !strings.Contains(e.Code, "."))
}

// Status returns the exit status for the error; for a code that this version does not
// know, or one with two statuses, the one that came with it.
func (e *Error) Status() int {
	if _, known := statuses[e.Code]; !known && e.status != 0 || e.Code == CodeCannotStart && e.status == statuses[CodeNotFound] {
		return e.status
	}
	return StatusOf(e.Code)
}

// KeeperKilled begins the message of [CodeWorkerLost] from a worker whose keeper of the program was
// killed. It distinguishes that from a resident program that has crashed: there the
// program is at fault, and the call may crash the next one.
const KeeperKilled = "the program's keeper was killed"

// CannotStart returns the error of a worker that cannot start its program, for the reason
// in e. Its status is 127 if the program was not found, else 126.
func CannotStart(e *Error) *Error {
	c := *e
	if c.status = statuses[CodeCannotStart]; e.Code == CodeNotFound {
		c.status = statuses[CodeNotFound]
	}
	c.Code = CodeCannotStart
	return &c
}

// Errorf returns an Error without a hint.
func Errorf(code, format string, a ...any) *Error {
	return &Error{Code: code, Message: Sprintf(format, a...)}
}

// WithHint adds the next step to e.
func (e *Error) WithHint(format string, a ...any) *Error {
	e.Hint = Sprintf(format, a...)
	return e
}

// AsError returns the Error in err, or a new one with the given code.
func AsError(err error, code string) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: code, Message: Plain(err), Err: err}
}

// Retryable reports whether the same may succeed later: a node may still come, or have
// room.
func Retryable(err error) bool {
	var e *Error
	return errors.As(err, &e) && (errors.Is(err, &Error{Code: CodeNoNode}) || e.Code == CodeNodeLost || e.Status() == StatusOf(CodeBusy))
}

// WithoutPath returns a file error without operation and path.
func WithoutPath(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}

// Codes returns all codes that this version knows.
func Codes() []string { return slices.Sorted(maps.Keys(statuses)) }

// End describes how a call ended. The zero End is a program's success.
type End struct {
	Source  Source
	Status  int    // exit status: the program's, 128+N for a signal, or that of Code
	Code    string // "exit" or empty, a signal's name, or one of the Code constants
	Message string // for a person, from fbus or a worker; may be empty. [OneLine] makes it safe to show
	Hint    string // the next step, or ""
}

// OK reports whether a program exited with status 0.
func (e End) OK() bool { return e.Source == FromProgram && e.Status == 0 }

// Err returns nil if a program exited with status 0, an [ExitError] if it ended
// otherwise, and an [Error] if fbus ended the call.
func (e End) Err() error {
	switch {
	case e.OK():
		return nil
	case e.Source == FromBus:
		return &Error{Code: e.Code, Message: e.Message, Hint: e.Hint, status: e.Status}
	}
	return &ExitError{End: e}
}

// ExitError is a program that did not exit with status 0.
type ExitError struct{ End }

// Error describes how the program ended.
func (e *ExitError) Error() string {
	if e.Source == FromSignal {
		return fmt.Sprintf("program was ended by %s", e.Code)
	}
	return fmt.Sprintf("program exited with status %d", e.Status)
}

// End returns the end of a call that failed with e.
func (e *Error) End() End {
	return End{Source: FromBus, Status: e.Status(), Code: e.Code, Message: e.Error(), Hint: e.Hint}
}

// Source is the party that decided how a call ended.
type Source uint8

// Sources of an end status.
const (
	FromProgram Source = 0 // the program exited by itself
	FromSignal  Source = 1 // a signal ended it: status is 128+N
	FromBus     Source = 2 // fbus ended the call: the code is the reason
)

// String names the source as the JSON outputs do.
func (s Source) String() string {
	switch s {
	case FromProgram:
		return "program"
	case FromSignal:
		return "signal"
	}
	return "fbus"
}

// ParseSource returns the source of a name that String returns.
func ParseSource(name string) Source {
	for _, s := range []Source{FromProgram, FromSignal} {
		if s.String() == name {
			return s
		}
	}
	return FromBus
}

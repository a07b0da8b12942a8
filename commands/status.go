package commands

import (
	"errors"
	"fmt"

	"fbus/bus/args"
	"fbus/bus/trust"
)

// Exit statuses that are fbus's own. A program may return any of them too:
// --status-fd and --status-file tell the two apart.
const (
	exitOK         = 0
	exitUsage      = 64  // the command line makes no sense
	exitBadInput   = 65  // input the function can not take
	exitNoFunction = 69  // nobody offers the function
	exitInternal   = 70  // a fault of fbus or the machine, or the output limit
	exitWorkerLost = 74  // the worker vanished mid-call
	exitBusy       = 75  // no slot is free
	exitDenied     = 77  // not allowed
	exitSomeFailed = 123 // a call of map has failed, as xargs has it
	exitDeadline   = 124 // time was up
	exitCannotRun  = 126 // the program can not be run
	exitNotFound   = 127 // the program was not found
	exitSignal     = 128 // plus the signal's number
	exitNoNode     = 255 // no node can be reached, or it was lost mid-call
)

// failure is an error that is ready to be read by a person: what failed, the
// exit status, and the next step if there is one.
type failure struct {
	status int
	code   string // for --status-fd
	msg    string
	hint   string
}

func (f *failure) Error() string { return f.msg }

// fail makes a failure.
func fail(status int, format string, args ...any) *failure {
	return &failure{status: status, msg: fmt.Sprintf(format, args...)}
}

// withHint adds the next step.
func (f *failure) withHint(format string, args ...any) *failure {
	f.hint = fmt.Sprintf(format, args...)
	return f
}

// usage is a failure of the command line.
func usage(format string, a ...any) *failure {
	f := fail(exitUsage, format, a...)
	f.code = args.CodeUsage
	return f
}

// statusOnly ends the command with a status and no message: what there is to
// say was said.
type statusOnly int

func (s statusOnly) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// explain turns any error into a failure.
func explain(err error) *failure {
	var t *trouble
	var f *failure
	var be *args.Error
	var te *trust.Error
	switch {
	case errors.As(err, &t):
		return t.explain()
	case errors.As(err, &f):
		if f.code == "" {
			f.code = ownCodes[f.status]
		}
		return f
	case errors.As(err, &be):
		f := &failure{status: be.Status(), code: be.Code, msg: be.Error(), hint: hintFor(be.Code)}
		if errors.As(err, &te) && te.Hint != "" {
			f.hint = te.Hint
		}
		if be.Hint != "" { // from the node, which knows more
			f.hint = be.Hint
		}
		return f
	case errors.As(err, &te):
		return &failure{status: args.StatusOf(te.Code), code: te.Code, msg: te.Message, hint: te.Hint}
	}
	return &failure{status: exitInternal, code: args.CodeInternal, msg: err.Error()}
}

// ownCodes are the codes of failures that have only a status.
var ownCodes = map[int]string{exitUsage: args.CodeUsage, exitBadInput: args.CodeBadInput, exitInternal: args.CodeInternal, exitDenied: args.CodeDenied}

// hintFor is the next step after an end that fbus decided.
func hintFor(code string) string {
	switch code {
	case args.CodeNoFunction:
		return "fbus ls shows what is offered; -w 10s waits for it"
	case args.CodeNoNode:
		return "fbus serve starts a node"
	case args.CodeNodeLost:
		return "a call that was under way may have run"
	case args.CodeRevoked, args.CodeUnlisted, args.CodeUsed:
		return "ask for a new ticket"
	case args.CodeAmbiguous:
		return "choose one: --node PATH, or FBUS_NODE=PATH in the environment"
	case args.CodeForeign:
		return "if you trust that user with what you send: FBUS_NODE_USER=UID in the environment"
	case "store_full":
		return "jobs that end make room in time; fbus purge --state done, or --state dead, makes it now"
	}
	return ""
}

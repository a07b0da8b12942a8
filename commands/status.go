package commands

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"fbus/bus/args"
	"fbus/bus/find"
)

// Exit statuses that are the command line's own. The others are those of codes, as
// [args.StatusOf] has them. A program may return any of them too: --status-fd and
// --status-file tell the two apart.
const (
	exitSomeFailed = 123 // a call of map has failed, as xargs has it
	exitSignal     = 128 // plus the signal's number
)

// fail returns an error with a code that decides the exit status.
func fail(code, format string, a ...any) *args.Error { return args.Errorf(code, format, a...) }

// usage returns an error of the command line.
func usage(format string, a ...any) *args.Error { return args.Errorf(args.CodeUsage, format, a...) }

// statusOnly ends the command with a status and no message: everything was printed
// already.
type statusOnly int

func (s statusOnly) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// explain returns any error as it is shown: with a code, a message and, where there is
// one, the next step. It is a copy, which the caller may change.
func explain(err error) *args.Error {
	var t *trouble
	switch {
	case errors.As(err, &t):
		return t.explain()
	case errors.As(err, new(*args.Error)):
		e := *args.AsError(err, args.CodeInternal)
		e.Message = e.Error()
		e.Hint = cmp.Or(e.Hint, hintFor(e.Code))
		return &e
	}
	return args.AsError(err, args.CodeInternal)
}

// hintFor returns the next step after an error with this code, "" if there is none.
func hintFor(code string) string {
	switch code {
	case args.CodeNoFunction:
		return "fbus ls shows what is offered; -w 10s waits for it"
	case args.CodeNoNode:
		return "fbus serve starts a node"
	case args.CodeRevoked, args.CodeUnlisted, args.CodeUsed:
		return "ask for a new ticket"
	case args.CodeAmbiguous:
		return "choose one: --node PATH, or FBUS_NODE=PATH in the environment"
	case args.CodeForeign:
		return "if you trust that user with your data: FBUS_NODE_USER=UID in the environment"
	case args.CodeStoreFull:
		return "old results make room in time; fbus purge --state done, or --state dead, makes room now"
	}
	return ""
}

// trouble is an error of finding, reaching, entering or losing a node. Its hint points
// to fbus doctor.
type trouble struct {
	err    error
	node   string // its address, if one was given
	doctor string // the command that looks into it
	remote bool   // the node is on another machine: nobody here starts it
}

func (t *trouble) Error() string { return t.err.Error() }

// Unwrap returns what happened.
func (t *trouble) Unwrap() error { return t.err }

// troubled marks an error that is about the node which the flag, or the environment,
// names, and returns any other as it is. name is the function of the call, if there is
// one.
func troubled(err error, node string, name ...string) error {
	if err == nil || errors.As(err, new(*trouble)) {
		return err
	}
	var e *args.Error
	if !errors.As(err, &e) {
		return err
	}
	if s := e.Status(); strings.Contains(e.Code, ".") || s != args.StatusOf(args.CodeNoNode) && s != args.StatusOf(args.CodeDenied) && s != args.StatusOf(args.CodeBusy) {
		return err
	}
	if slices.Contains(name, "fbus.admit") && e.Code != args.CodeDenied { // it is about the token
		return err
	}
	return &trouble{err: err, node: node, doctor: doctorLine(node, name)}
}

// explain returns the error with fbus doctor in its hint.
func (t *trouble) explain() *args.Error {
	e := explain(t.err)
	if why := inOtherTmp(t.err, cmp.Or(t.node, os.Getenv("FBUS_NODE"))); why != "" {
		e.Hint = strings.TrimPrefix(e.Hint+"; "+why, "; ")
	}
	way := t.doctor + " shows why, step by step"
	if e.Hint == "" || t.remote && e.Hint == hintFor(args.CodeNoNode) {
		e.Hint = way
	} else {
		e.Hint += "; " + way
	}
	return e
}

// inOtherTmp returns what suggests that a socket which was not found is in another /tmp, ""
// if nothing does. node is the address that was given.
func inOtherTmp(err error, node string) string {
	switch {
	case errors.Is(err, find.ErrNone):
		return find.Elsewhere("")
	case errors.Is(err, os.ErrNotExist) && node != "":
		return find.Elsewhere(node)
	}
	return ""
}

// doctorLine returns the command line that examines the node of a command with this
// --node, whatever the environment is by then.
func doctorLine(node string, words []string) string {
	command := []string{"fbus", "doctor"}
	if node = cmp.Or(node, os.Getenv("FBUS_NODE")); node != "" {
		command = append(command, "--node", node)
	}
	line := args.Quote(append(command, words...)...)
	ticket := os.Getenv("FBUS_TICKET")
	if _, err := os.Lstat(ticket); err != nil || strings.Contains(node, "/") {
		return line // it is the ticket itself, which is a secret
	}
	return "FBUS_TICKET=" + args.Quote(ticket) + " " + line
}

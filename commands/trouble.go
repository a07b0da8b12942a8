package commands

import (
	"errors"
	"os"
	"strings"

	"fbus/bus/args"
)

// trouble is an error of finding, reaching, entering or losing a node. Its hint points
// to fbus doctor.
type trouble struct {
	err    error
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
	if s := e.Status(); s != args.StatusOf(args.CodeNoNode) && s != args.StatusOf(args.CodeDenied) && s != args.StatusOf(args.CodeBusy) {
		return err
	}
	return &trouble{err: err, doctor: doctorLine(node, name)}
}

// explain returns the error with fbus doctor in its hint.
func (t *trouble) explain() *args.Error {
	e := explain(t.err)
	way := t.doctor + " shows why, step by step"
	if e.Hint == "" || t.remote && e.Hint == hintFor(args.CodeNoNode) {
		e.Hint = way
	} else {
		e.Hint += "; " + way
	}
	return e
}

// doctorLine returns the command line that examines the node of a command with this
// --node, whatever the environment is by then.
func doctorLine(node string, words []string) string {
	if node == "" {
		node = os.Getenv("FBUS_NODE")
	}
	command := []string{"fbus", "doctor"}
	if node != "" {
		command = append(command, "--node", node)
	}
	line := args.Quote(append(command, words...)...)
	ticket := os.Getenv("FBUS_TICKET")
	if ticket == "" || strings.Contains(ticket, "-----BEGIN ") || strings.Contains(node, "/") {
		return line // the text of a ticket is too long for a command line
	}
	return "FBUS_TICKET=" + args.Quote(ticket) + " " + line
}

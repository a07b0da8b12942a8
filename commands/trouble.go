package commands

import (
	"errors"
	"os"
	"strings"

	"fbus/bus/args"
	"fbus/bus/trust"
)

// trouble is an error of finding a node, of reaching it, of being let in or of
// losing it: its hint points to fbus doctor.
type trouble struct {
	err    error
	doctor string // the command that looks into it
	remote bool   // the node is on another machine: nobody here starts it
}

func (t *trouble) Error() string { return t.err.Error() }

// Unwrap returns what happened.
func (t *trouble) Unwrap() error { return t.err }

// troubled marks an error that has to do with the node that the flag, or the
// environment, names: of an error that has not, it makes nothing else. name is a
// function that was to be called, if it is about one.
func troubled(err error, node string, name ...string) error {
	if err == nil || errors.As(err, new(*trouble)) {
		return err
	}
	var be *args.Error
	var te *trust.Error
	var f *failure
	switch {
	case errors.As(err, &f):
		if f.status != exitNoNode && f.status != exitDenied {
			return err
		}
	case errors.As(err, &be):
		if be.Status() != exitNoNode && be.Status() != exitDenied && be.Status() != exitBusy {
			return err
		}
	case !errors.As(err, &te):
		return err
	}
	return &trouble{err: err, doctor: doctorLine(node, name)}
}

// explain is the error with the way to the doctor in its hint.
func (t *trouble) explain() *failure {
	f := *explain(t.err)
	way := t.doctor + " says why, step by step"
	if f.hint == "" || t.remote && f.hint == hintFor(args.CodeNoNode) {
		f.hint = way
	} else {
		f.hint += "; " + way
	}
	return &f
}

// doctorLine is the command line that looks at the node that a command line
// with that --node has looked at, whatever the environment is then.
func doctorLine(node string, words []string) string {
	if node == "" {
		node = os.Getenv("FBUS_NODE")
	}
	command := []string{"fbus", "doctor"}
	if node != "" {
		command = append(command, "--node", node)
	}
	line := quoteWords(append(command, words...))
	ticket := os.Getenv("FBUS_TICKET")
	if ticket == "" || strings.Contains(ticket, "-----BEGIN ") || strings.Contains(node, "/") {
		return line // a ticket's text is no word for a command line
	}
	return "FBUS_TICKET=" + quoteWords([]string{ticket}) + " " + line
}

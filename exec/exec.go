// Package exec makes a function of any program: one process per call, started
// for it or ahead of it, or one that stays for many; held by a keeper, its
// output passed on to the last byte, nothing of it left behind.
//
// A worker process calls keeper.Dispatch before anything else (keepers are this
// binary, executed again) and keeper.BecomeReaper once; children that it starts
// by other means than this package it then starts by keeper.Adopt, or they may be
// killed as orphans. It calls New for each program that it offers. Everything else
// happens in Function.Run.
package exec

import (
	"io"
	"time"

	"fbus/bus/args"
)

// DefaultGrace is the time between TERM and KILL unless Spec says otherwise.
const DefaultGrace = 5 * time.Second

// Spec describes a program as a function.
type Spec struct {
	Name string   // the function's name, the program's FBUS_FUNCTION
	Argv []string // the program and its arguments; may hold placeholders
	Dir  string   // where the program runs; "" is the worker's own directory
	Env  []string // K=V, added to the worker's environment

	Args         ArgMode
	ArgsSet      bool // Args was asked for, not defaulted: placeholders do not override it
	Encoding     args.Encoding
	AllowOptions bool // values may begin with "-"

	Timeout   time.Duration // one run's longest time; 0 is none
	Grace     time.Duration // TERM to KILL; 0 is DefaultGrace
	MaxOutput int64         // bytes of stdout; 0 is no limit
	Memory    int64         // bytes; 0 is no limit

	// Warm is how many processes are started ahead, each for one call; at most
	// Slots. Resident keeps a process for many calls; the two exclude each other.
	Warm     int
	Resident Protocol
	Pipeline int           // calls that one resident process holds at once; 0 is 1, more only with JSONRPC
	ReplyFD  int           // the descriptor a resident process replies on; 0 is stdout
	MaxCalls int           // a resident process is replaced after as many; 0 is no limit
	MaxIdle  time.Duration // and after as long without a call; 0 is no limit

	// Note, if set, is told why no process can be held ready, and "" when one is
	// again.
	Note func(why string)

	Node  string // FBUS_NODE; "" leaves it unset
	Slots int    // most runs at once; 0 is no limit

	Log func(format string, args ...any) // for the worker's stderr; may be nil
}

// Call is one invocation. Run reads it, and writes to Stdout and Stderr, one
// goroutine each. What has a name in the environment is told to a program that is
// started for the call, not to one that was there before.
type Call struct {
	ID, Caller string    // FBUS_CALL_ID, FBUS_CALLER
	Deadline   time.Time // FBUS_DEADLINE; the zero time is none

	Job     string // FBUS_JOB_ID: the job that the call runs; "" is none
	Attempt int    // FBUS_ATTEMPT: which of the job's attempts it is, from 1
	// Origin is the job whose end has posted this one, its output being the input: a
	// JSON object with id, function, status and attempts, FBUS_PARENT_ID and so on. A
	// resident program with JSONRPC has them, and the output, as parameters.
	Origin string

	Kind     args.Kind
	Args     []byte // of that kind, as they are on the wire
	HasInput bool   // an input stream came beside the arguments

	// Input is the first of the input and Rest what follows; nil if nothing
	// does. A Read of Rest that blocks never delays Run: whoever calls Run
	// closes Rest afterwards, which ends that Read.
	Input []byte
	Rest  io.Reader

	// A Write blocks at the reader's pace, and Run with it. An error from it
	// means that nobody reads any more: the program then gets SIGPIPE. A Write
	// that blocks when the call's context ends must return.
	Stdout, Stderr io.Writer
}

// Result is how a call ended.
type Result struct {
	args.End
	Output []byte // the last of the program's output, not written to Call.Stdout
}

func usage(hint, format string, a ...any) *args.Error {
	e := args.Errorf(args.CodeUsage, format, a...)
	e.Hint = hint
	return e
}

// fbusEnd is the result of a call that fbus ended.
func fbusEnd(code, message string) Result { return failure(args.Errorf(code, "%s", message)) }

// failure is the result of a call that failed with err.
func failure(err error) Result { return Result{End: args.AsError(err, args.CodeInternal).End()} }

func notOffered() Result { return fbusEnd(args.CodeCancelled, "the function is no longer offered") }

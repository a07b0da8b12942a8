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
	"cmp"
	"fmt"
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
	Takes        Takes

	// ProgressFD is the descriptor, 3 to 9, on which a program that is started for one call writes
	// lines about its progress: "DONE TOTAL [TEXT]" or "TEXT". 0 is none.
	ProgressFD int

	Timeout   time.Duration // one run's longest time; 0 is none
	Grace     time.Duration // TERM to KILL; 0 is DefaultGrace
	MaxOutput int64         // bytes of stdout, and as many of stderr; 0 is no limit
	Memory    int64         // bytes; 0 is no limit

	// Warm is how many processes are started ahead, each for one call; at most
	// Slots. Resident keeps a process for many calls; the two exclude each other.
	Warm     int
	Resident Protocol
	Pipeline int           // calls that one resident process holds at once; 0 is 1, more only with JSONRPC
	ReplyFD  int           // the descriptor a resident process replies on; 0 is stdout
	MaxCalls int           // a resident process is replaced after as many; 0 is no limit
	MaxIdle  time.Duration // and after as long without a call; 0 is no limit

	// Note, if set, is called with the reason when no process can be held ready, and
	// with "" when one is again.
	Note func(why string)

	// Limit, if set, is called when programs can be started for fewer calls at once than
	// there are Slots, for the reason why; with 0 slots, for none. With why nil all slots are
	// there again. It must have effect when it returns: the call that failed ends then.
	Limit func(slots int, why *args.Error)

	Node  string // FBUS_NODE; "" leaves it unset
	Slots int    // most runs at once; 0 is no limit

	// Room bounds the calls that run at once over all functions with that channel: each is an
	// element of it. Nil is no limit. Processes that wait for calls do not count.
	Room chan struct{}

	Log func(format string, args ...any) // for the worker's stderr; may be nil
}

// Call is one invocation. Run reads it, and writes to Stdout and Stderr, one
// goroutine each. The fields named after a variable are in the environment of a program
// that is started for the call, not of one that was started before.
type Call struct {
	ID, Caller string    // FBUS_CALL_ID, FBUS_CALLER
	Deadline   time.Time // FBUS_DEADLINE; the zero time is none

	Job     string // FBUS_JOB_ID: the job that the call runs; "" is none
	Attempt int    // FBUS_ATTEMPT: which of the job's attempts it is, from 1
	// Origin is the job whose end has posted this one, its output being the input: a
	// JSON object with id, function, status and attempts, FBUS_PARENT_ID and so on. A
	// resident program with JSONRPC has them, and the output, as parameters.
	Origin string
	// Trace is the trace that the call belongs to, as args.Trace has it; empty: none.
	Trace string

	Kind     args.Kind
	Args     []byte // of that kind, as they are on the wire
	HasInput bool   // an input stream came with the arguments

	// Input is the first of the input and Rest what follows; nil if nothing
	// does. A Read of Rest that blocks never delays Run: the caller of Run closes
	// Rest afterwards, which ends that Read.
	Input []byte
	Rest  io.Reader

	// A Write blocks at the reader's pace, and Run with it. An error from it
	// means that nobody reads any more: the program then gets SIGPIPE. A Write
	// that blocks when the call's context ends must return.
	Stdout, Stderr io.Writer

	// Progress, if set, takes what the program reports of its progress: see Spec.ProgressFD. It
	// must not wait.
	Progress func(done, total uint64, text string)
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

// ArgMode is where a program finds a call's arguments.
type ArgMode int

// The argument modes.
const (
	ArgsStdin ArgMode = iota // serialized on stdin
	ArgsArgv                 // on the command line
)

// ParseArgMode reads "stdin" or "argv".
func ParseArgMode(s string) (ArgMode, error) {
	switch s {
	case "stdin":
		return ArgsStdin, nil
	case "argv":
		return ArgsArgv, nil
	}
	return 0, fmt.Errorf("unknown argument mode %q (known: stdin, argv)", s)
}

func (m ArgMode) String() string {
	if m == ArgsArgv {
		return "argv"
	}
	return "stdin"
}

// Takes is what a function takes of a call.
type Takes int

// What functions take.
const (
	TakesBoth  Takes = iota
	TakesInput       // input alone: arguments would reach the program on stdin, which it does not expect
	TakesArgs        // arguments alone
)

// ParseTakes reads "both", "input" or "args".
func ParseTakes(s string) (Takes, error) {
	for t := range TakesArgs + 1 {
		if t.String() == s {
			return t, nil
		}
	}
	return 0, fmt.Errorf("unknown word %q (known: both, input, args)", s)
}

func (t Takes) String() string { return [...]string{"both", "input", "args"}[t] }

// refuse returns an error for a call that has what the function does not take.
func (t Takes) refuse(c *Call) error {
	input := c.Kind == args.KindRaw && (len(c.Input) > 0 || c.Rest != nil) || c.Kind != args.KindRaw && c.HasInput
	switch {
	case t == TakesInput && c.Kind != args.KindRaw:
		return args.BadInput("takes input on stdin, not arguments")
	case t == TakesArgs && input:
		return args.BadInput("takes arguments, not input on stdin")
	}
	return nil
}

// Protocol is how calls are put to a resident process, and how it answers.
type Protocol int

// The protocols.
const (
	NotResident Protocol = iota // one process per call
	LineByLine                  // a line in, a line out
	JSONRPC                     // JSON-RPC 2.0, one message a line
)

// ParseProtocol reads "lines" or "json".
func ParseProtocol(s string) (Protocol, error) {
	switch s {
	case "lines":
		return LineByLine, nil
	case "json":
		return JSONRPC, nil
	}
	return 0, fmt.Errorf("unknown protocol %q (known: lines, json)", s)
}

func (p Protocol) String() string { return [...]string{"", "lines", "json"}[p] }

// checkModes refuses options that do not go together. Messages name an option as in
// `warm`; a command spells it as its users do. Placeholders have set Args before.
func checkModes(spec *Spec) error {
	switch {
	case spec.Takes == TakesInput && spec.Args == ArgsArgv:
		return usage("write `takes args` or `takes both`, or leave the placeholders out", "`takes input` does not go with `args argv` and placeholders, which need arguments")
	case spec.ProgressFD != 0 && (spec.ProgressFD < 3 || spec.ProgressFD > 9):
		return usage("", "`progress-fd %d`: must be 3 to 9", spec.ProgressFD)
	case spec.Warm < 0:
		return usage("", "`warm` must not be negative")
	case spec.Warm > 0 && spec.Resident != NotResident:
		return usage("leave `warm` out: a resident process is started once", "`warm` does not go with `resident`")
	case spec.Warm > 0 && spec.Args == ArgsArgv:
		return usage("read the arguments on stdin (`args stdin`), or leave `warm` out",
			"`warm` starts processes before their arguments are known, which `args argv` and placeholders put on the command line")
	case spec.Warm > 0 && spec.AllowOptions:
		return usage("leave `allow-options` out", "`allow-options` does not go with `warm`, which takes no arguments on the command line")
	case spec.Warm > 0 && spec.Slots > 0 && spec.Warm > spec.Slots:
		return usage(fmt.Sprintf("raise `slots`, or write `warm %d`", spec.Slots), "`warm %d` is more than `slots %d`", spec.Warm, spec.Slots)
	case spec.Resident < NotResident || spec.Resident > JSONRPC:
		return usage("", "`resident`: unknown protocol")
	case spec.Resident == NotResident:
		return checkNotResident(spec)
	}
	return checkResident(spec)
}

// checkNotResident refuses options that would have no effect.
func checkNotResident(spec *Spec) error {
	for _, option := range []struct {
		name string
		set  bool
	}{{"pipeline", spec.Pipeline != 0}, {"reply-fd", spec.ReplyFD != 0}, {"max-calls", spec.MaxCalls != 0}, {"max-idle", spec.MaxIdle != 0}} {
		if option.set {
			return usage("add `resident lines` or `resident json`", "`%s` is about resident programs", option.name)
		}
	}
	return nil
}

func checkResident(spec *Spec) error {
	switch {
	case spec.ProgressFD != 0:
		return usage("a `resident json` program reports with the notification "+ProgressMethod, "`progress-fd` does not go with `resident`")
	case spec.Args == ArgsArgv:
		return usage("read the arguments on stdin (`args stdin`), or leave `resident` out",
			"`resident` starts a process before its arguments are known, which `args argv` and placeholders put on the command line")
	case spec.AllowOptions:
		return usage("leave `allow-options` out", "`allow-options` does not go with `resident`, which takes no arguments on the command line")
	case spec.Encoding != args.EncodeJSON:
		return usage("leave `encoding` out", "`encoding %v` does not go with `resident %v`, which defines how arguments are written", spec.Encoding, spec.Resident)
	case spec.Pipeline < 0:
		return usage("", "`pipeline` must not be negative")
	case spec.Pipeline > 1 && spec.Resident == LineByLine:
		return usage("use `resident json`, whose answers name their calls", "`pipeline %d` does not go with `resident lines`", spec.Pipeline)
	case spec.ReplyFD != 0 && (spec.ReplyFD < 3 || spec.ReplyFD > 9):
		return usage("", "`reply-fd %d`: must be 3 to 9", spec.ReplyFD)
	case spec.MaxCalls < 0:
		return usage("", "`max-calls` must not be negative")
	case spec.MaxIdle < 0:
		return usage("", "`max-idle` must not be negative")
	}
	spec.Pipeline = cmp.Or(spec.Pipeline, 1)
	return nil
}

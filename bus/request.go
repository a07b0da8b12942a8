package bus

import (
	"fbus/bus/args"
	"fbus/bus/wire"
	"io"
	"math"
	"time"
)

// A Wait is how long to wait for something. The zero Wait is the default of the field
// that has it.
type Wait time.Duration

const (
	NoWait  Wait = -1            // do not wait at all
	Forever Wait = math.MaxInt64 // wait without limit
)

// WaitFor returns a wait of at most d, [NoWait] if d is not positive.
func WaitFor(d time.Duration) Wait {
	if d <= 0 {
		return NoWait
	}
	return Wait(d)
}

// limit returns the duration, 0 for none.
func (w Wait) limit() time.Duration { return time.Duration(max(0, w)) }

// millis returns the wait as a frame carries it.
func (w Wait) millis() uint64 {
	if w == Forever {
		return wire.Forever
	}
	return min(millis(w.limit()), wire.Forever-1)
}

// Request is a call to make.
type Request struct {
	// Function is the name to call.
	Function string
	// Args are the arguments; the zero value sends none.
	Args Args
	// Input is the input stream, nil for none. What can be had of it without
	// waiting goes out with the call; the rest is read when the function takes
	// it. A Read that is under way when the call ends is not waited for.
	Input io.Reader
	// Stdout and Stderr take the program's output, as it comes; nil discards
	// it. Each is written to by one goroutine at a time.
	Stdout, Stderr io.Writer
	// Timeout bounds the call from now to its end, waiting included; 0 is none.
	// A deadline of the context counts as well.
	Timeout time.Duration
	// WaitFunction is how long to wait for the function to be offered at all; default
	// [NoWait].
	WaitFunction Wait
	// WaitSlot is how long to wait for a free slot; default [Forever].
	WaitSlot Wait
	// Retries is how many further tries a call gets whose worker was lost, as
	// long as nothing of its output was passed on.
	Retries int
	// On limits the call to workers whose name matches this glob.
	On string
	// Here keeps the call at the node: it gets no slot of a relay, nor waits for one.
	Here bool
	// Progress, if set, is called with the function's reports of its progress. It must not wait.
	Progress func(Progress)
	// Trace is the trace that the call belongs to, as [args.Trace] returns it; default that of
	// the client's options.
	Trace string
	// Caller is for whom the call is made: 1 to 128 printable ASCII characters without spaces. The
	// function sees it behind this client's own identity: "ticket:gateway/alice". It needs
	// [Options.Relay], as the fields below do. Empty: nobody else.
	Caller string
	// CallID is what the function sees as the id of the call, instead of the node's; empty: the
	// node's. It is formed like the name of a function, and so is Job.
	CallID string
	// Job is the id of a job that the call runs for a node elsewhere, with Attempt and Origin as in
	// [Invocation]; empty: none.
	Job     string
	Attempt int
	Origin  string
	// Farewell is how long a call that is given up waits for the node's END of it,
	// which names the worker that had it; 0 is not at all.
	Farewell time.Duration
	// Opened, if set, is called with the call's id on the network when the call has been sent, each
	// time it is. The id is empty before the node has answered an eager client. Calls of which each
	// is made when the one before was opened arrive in that order.
	Opened func(call string)
}

// Result is how a call ended, and where. The zero Result is a program's success.
type Result struct {
	End
	Call   string // the call's id on the network
	Worker string // name of the worker that ran it

	// Output is only for handlers: last bytes of output, which go out in one frame
	// with the end.
	Output []byte
}

// Exit returns the result of a handler that ends with an exit status, from 0 to 255.
func Exit(status int) Result { return Result{End: End{Status: status, Code: "exit"}} }

// Fail returns the result of a handler that fails with err: if there is an [Error] in it,
// the caller gets that, and one with the code internal otherwise. A code that only a node can know has
// "worker." before it, and so has busy: it may come from a call that the handler has made. A handler
// that is itself too busy returns [Exit] with 75.
func Fail(err error) Result {
	end := args.AsError(err, args.CodeInternal).End()
	end.Code = args.Relayed(end.Code)
	return Result{End: end}
}

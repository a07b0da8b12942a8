package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
	"fbus/bus/paths"

	"github.com/urfave/cli/v2"
)

// endOptions are the flags that say where a call's output goes, and how it ended.
type endOptions struct {
	output   string
	pretty   bool
	statusFD int
	statusTo string
	quiet    bool
	hasFD    bool // statusFD was given
}

func (o *endOptions) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write the output to `FILE`, which appears only on exit status 0; missing directories are made", Destination: &o.output},
		&cli.BoolFlag{Name: "pretty", Aliases: []string{"p"}, Usage: "indent the output if it is JSON", Destination: &o.pretty, DisableDefaultText: true},
		&cli.IntFlag{Name: "status-fd", Usage: "write how it ended, as JSON, to descriptor `N`", Destination: &o.statusFD, DefaultText: "none"},
		&cli.StringFlag{Name: "status-file", Usage: "write how it ended, as JSON, to `FILE`", Destination: &o.statusTo},
		quietFlag(&o.quiet),
	}
}

func (o *endOptions) check() error {
	if o.hasFD && o.statusTo != "" {
		return usage("--status-fd and --status-file exclude each other")
	}
	return nil
}

// report runs the command and writes how the call ended where the flags say.
func (o *endOptions) report(run func() (callEnd, error)) error {
	status, err := openStatus(o)
	if err != nil {
		return err
	}
	end, err := run()
	if status == nil {
		return err
	}
	line, _ := marshal(struct {
		Source string `json:"source"` // "program", "signal" or "fbus"
		Status int    `json:"status"` // exit status
		Code   string `json:"code"`   // "exit", a signal's name, or fbus's code
		Call   string `json:"call"`   // the call's id, empty if it never had one
		Job    string `json:"job,omitempty"`
	}{end.Source.String(), end.Status, end.Code, end.call, end.job})
	_, werr := status.Write(append(line, '\n'))
	if o.statusTo != "" {
		werr = errors.Join(werr, paths.Sync(status), status.Close())
	}
	if werr != nil {
		return fail(args.CodeInternal, "status: %v", werr)
	}
	return err
}

// callEnd is the end of a call or job, for --status-fd.
type callEnd struct {
	args.End
	call string // its id, if it had one
	job  string
}

// codeInterrupted is the code of a call that a signal to this process ended.
const codeInterrupted = "interrupted"

// failedEnd is the end of a command that made no call.
func failedEnd(err error) (callEnd, error) { return callEnd{End: explain(err).End()}, err }

// endOf returns how a call ended that had this much time, 0 for no limit.
func endOf(res bus.Result, err error, timeout time.Duration) args.End {
	var sig *interrupted
	switch {
	case err == nil, errors.As(err, new(*bus.ExitError)):
		return args.End{Source: res.Source, Status: res.Status, Code: cmp.Or(res.Code, "exit")}
	case errors.As(err, &sig):
		return args.End{Source: args.FromBus, Status: exitSignal + int(sig.signal), Code: codeInterrupted, Message: codeInterrupted}
	case errors.Is(err, fanout.ErrHalted):
		return fail(args.CodeCancelled, "%v", err).End()
	}
	return explainCall(err, timeout).End()
}

// ended turns the result of a call, which had this much time, into the end of the
// command.
func (o *endOptions) ended(name string, timeout time.Duration, res bus.Result, err error, out *outputFile, stderr io.Writer) (callEnd, error) {
	if err == nil {
		if err = out.commit(); err != nil {
			err = outputError(err)
		}
		return callEnd{End: endOf(res, err, 0), call: res.Call}, err
	}
	out.flush()
	end := callEnd{End: endOf(res, err, timeout), call: res.Call}
	if errors.As(err, new(*bus.ExitError)) {
		if res.Source == args.FromSignal {
			say(stderr, fmt.Sprintf("%s: program was ended by %s", name, res.Code))
		}
		return end, statusOnly(res.Status)
	}
	f := explainCall(err, timeout)
	f.Message = messageFor(name, f.Status(), f.Message)
	return end, f
}

// explainCall is explain for a call that had this much time, 0 for no limit. A worker's own
// limit has a message of its own. A node that does not answer the handshake in time is a
// different failure.
func explainCall(err error, timeout time.Duration) *args.Error {
	var e *args.Error
	limit := ""
	switch fromBus := errors.As(err, &e); {
	case fromBus && e.Code == args.OfWorker(args.CodeDeadline):
		e = explain(err)
		e.Message = "the worker's time limit was exceeded: " + e.Message
		return e
	case fromBus && e.Code != args.CodeDeadline, !fromBus && !errors.Is(err, context.DeadlineExceeded):
		return explain(err)
	case fromBus && e.Message != args.DeadlineMessage:
		limit = e.Message
	}
	switch {
	case strings.HasPrefix(limit, "the node "): // of one of its own functions
		return fail(args.CodeDeadline, "%s", limit)
	case limit != "":
		return fail(args.CodeDeadline, "the worker's time limit was exceeded: %s", limit)
	case timeout > 0:
		return fail(args.CodeDeadline, "deadline of %s exceeded", formatDuration(timeout))
	}
	return fail(args.CodeDeadline, "the worker's time limit was exceeded")
}

// messageFor puts the function's name before a message that lacks it.
func messageFor(name string, status int, message string) string {
	if status == args.StatusOf(args.CodeNoNode) || strings.HasPrefix(message, name+":") || strings.HasPrefix(message, args.Shown(name)+":") {
		return message
	}
	return name + ": " + message
}

// openStatus opens the target of --status-fd or --status-file, nil for none.
func openStatus(o *endOptions) (*os.File, error) {
	switch {
	case o.hasFD:
		if o.statusFD < 0 {
			return nil, usage("--status-fd %d: no such descriptor", o.statusFD)
		}
		if err := paths.Inherited(o.statusFD, true); err != nil {
			return nil, usage("--status-fd %d: %v", o.statusFD, err).WithHint("a redirection opens it: fbus … --status-fd %d … %d>status.json", o.statusFD, o.statusFD)
		}
		return os.NewFile(uintptr(o.statusFD), "status-fd"), nil
	case o.statusTo != "":
		f, err := paths.OpenFile(o.statusTo, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
		if err != nil {
			return nil, usage("--status-file %v", err)
		}
		return f, nil
	}
	return nil, nil
}

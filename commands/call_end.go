package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"

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
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write the output to `FILE`, which appears only on exit status 0", Destination: &o.output},
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

// told does the command's job and writes how that ended where the flags say.
func (o *endOptions) told(do func() (callEnd, error)) error {
	status, err := openStatus(o)
	if err != nil {
		return err
	}
	end, err := do()
	if err := status.write(end); err != nil {
		return fail(args.CodeInternal, "status: %v", pathReason(err))
	}
	return err
}

// callEnd is how a call ended, as --status-fd writes it.
type callEnd struct {
	Source string `json:"source"` // "program", "signal" or "fbus"
	Status int    `json:"status"` // exit status
	Code   string `json:"code"`   // "exit", a signal's name, or fbus's code
	Call   string `json:"call"`   // the call's id, empty if it never had one
	Job    string `json:"job,omitempty"`
}

// fbusEnd is the end of a call that never was one.
func fbusEnd(err error) (callEnd, error) {
	f := explain(err)
	return callEnd{Source: "fbus", Status: f.Status(), Code: f.Code}, err
}

// end is how a call ended that the signal has ended.
func (i *interrupted) end(call string) callEnd {
	return callEnd{Source: "fbus", Status: exitSignal + int(i.signal), Code: "interrupted", Call: call}
}

// ended turns the result of a call, which had that much time, into our own end.
func (o *endOptions) ended(name string, timeout time.Duration, res bus.Result, err error, out *outputFile, stderr io.Writer) (callEnd, error) {
	var exit *bus.ExitError
	end := callEnd{Source: res.Source.String(), Status: res.Status, Code: res.Code, Call: res.Call}
	switch {
	case err == nil:
		if err := out.commit(); err != nil {
			return callEnd{Source: "fbus", Status: args.StatusOf(args.CodeInternal), Code: args.CodeInternal, Call: res.Call}, outputError(err)
		}
		return end, nil
	case errors.As(err, &exit):
		out.flush()
		if res.Source == args.FromSignal {
			say(stderr, fmt.Sprintf("%s: program was ended by %s", name, res.Code))
		}
		return end, statusOnly(res.Status)
	}
	out.flush()
	f := explainCall(err, timeout)
	f.Message = messageFor(name, f.Status(), f.Message)
	end = callEnd{Source: "fbus", Status: f.Status(), Code: f.Code, Call: res.Call}
	return end, f
}

// explainCall is explain for a call that had that much time, 0 for no limit.
func explainCall(err error, timeout time.Duration) *args.Error {
	switch {
	case !timeWasUp(err):
		return explain(err)
	case timeout > 0 && limitOf(err) == "":
		return &args.Error{Code: args.CodeDeadline, Message: fmt.Sprintf("deadline of %s exceeded", formatDuration(timeout))}
	}
	f := &args.Error{Code: args.CodeDeadline, Message: "the worker's time limit was exceeded"}
	if limit := limitOf(err); limit != "" {
		f.Message += ": " + limit
	}
	return f
}

// limitOf is what a worker says of its own limit, "" if it was the caller's that has ended
// the call.
func limitOf(err error) string {
	var e *args.Error
	if errors.As(err, &e) && e.Message != args.DeadlineMessage {
		return e.Message
	}
	return ""
}

// timeWasUp reports whether a call's time was up. A node that does not answer its handshake
// in time is another thing.
func timeWasUp(err error) bool {
	var e *args.Error
	if errors.As(err, &e) {
		return e.Code == args.CodeDeadline
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// messageFor puts the function's name before a message that lacks it.
func messageFor(name string, status int, message string) string {
	if status == args.StatusOf(args.CodeNoNode) || strings.HasPrefix(message, name+":") {
		return message
	}
	return name + ": " + message
}

// statusOut is where --status-fd and --status-file write.
type statusOut struct {
	f    *os.File
	path string
}

func openStatus(o *endOptions) (*statusOut, error) {
	switch {
	case o.hasFD:
		f := os.NewFile(uintptr(o.statusFD), "status-fd")
		if o.statusFD < 0 || f == nil {
			return nil, usage("--status-fd %d: no such descriptor", o.statusFD)
		}
		if _, err := f.Stat(); err != nil {
			return nil, usage("--status-fd %d: the descriptor is not open", o.statusFD).WithHint("a redirection opens it: fbus … --status-fd %d … %d>status.json", o.statusFD, o.statusFD)
		}
		return &statusOut{f: f}, nil
	case o.statusTo != "":
		f, err := openFile(o.statusTo, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
		if err != nil {
			return nil, usage("--status-file %v", pathReason(err))
		}
		return &statusOut{f: f, path: o.statusTo}, nil
	}
	return nil, nil
}

func (s *statusOut) write(end callEnd) error {
	if s == nil {
		return nil
	}
	line, err := json.Marshal(end)
	if err != nil {
		return err
	}
	_, err = s.f.Write(append(line, '\n'))
	if s.path != "" {
		err = errors.Join(err, s.f.Close())
	}
	return err
}

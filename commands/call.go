package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/node"

	"github.com/mattn/go-isatty"
	"github.com/urfave/cli/v2"
)

// callOptions are the flags of fbus call.
type callOptions struct {
	name      string
	args      []string
	data      string
	fields    []bus.Field
	input     string
	noStdin   bool
	output    string
	pretty    bool
	timeout   durationValue
	wait      durationValue
	noWait    bool
	retries   int
	on        string
	node      string
	keepAlive keepAliveValue
	statusFD  int
	statusTo  string
	all       bool
	replies   int
	tag       bool
	json      bool
	quiet     bool
	verbose   bool
	hasData   bool
	hasFD     bool

	hasReplies bool
}

func callCommand() *cli.Command {
	o := &callOptions{wait: durationValue{allow: true}}
	return &cli.Command{
		Name:      "call",
		Usage:     "call a function",
		UsageText: "call [flags] NAME [ARG…]",
		Description: `Without arguments stdin is the input. What the function writes comes out as it
writes it, and its exit status is ours. Words that begin with - go behind --.

  fbus call wc < README.md
  fbus call greet Bob
  fbus call -f name=Bob -F age=41 greet
  fbus call -d '{"name":"Bob"}' greet
  fbus call -i big.jpg -o small.png -t 30s thumb 80x80
  fbus call --all --tag uptime

With --all the exit status is the worst; the fields of --json are those of map.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "data", Aliases: []string{"d"}, Usage: "send `JSON`, or @FILE, or @- for stdin, as the arguments", Destination: &o.data},
			&cli.GenericFlag{Name: "field", Aliases: []string{"f"}, Usage: "send the field `K=V`, a string; again for more", Value: &fieldsValue{list: &o.fields}},
			&cli.GenericFlag{Name: "json-field", Aliases: []string{"F"}, Usage: "send the field `K=JSON`", Value: &fieldsValue{list: &o.fields, json: true}},
			&cli.StringFlag{Name: "input", Aliases: []string{"i"}, Usage: "send `FILE`, or - for stdin, as the input", Destination: &o.input},
			&cli.BoolFlag{Name: "no-stdin", Aliases: []string{"n"}, Usage: "leave stdin alone", Destination: &o.noStdin, DisableDefaultText: true},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write the output to `FILE`, which appears only on exit status 0", Destination: &o.output},
			&cli.BoolFlag{Name: "pretty", Aliases: []string{"p"}, Usage: "indent the output if it is JSON", Destination: &o.pretty, DisableDefaultText: true},
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end after `D`, waiting included", Value: &o.timeout},
			&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node, the function and a slot", Value: &o.wait},
			&cli.BoolFlag{Name: "no-wait", Usage: "do not wait for a slot", Destination: &o.noWait, DisableDefaultText: true},
			&cli.IntFlag{Name: "retries", Usage: "try `N` times more if the worker is lost before any output", Destination: &o.retries},
			&cli.StringFlag{Name: "on", Usage: "only on workers whose name matches `GLOB`", Destination: &o.on},
			&cli.BoolFlag{Name: "all", Usage: "call every worker that offers it", Destination: &o.all, DisableDefaultText: true},
			&cli.IntFlag{Name: "replies", Usage: "with --all: end after `N` answers", Destination: &o.replies, DefaultText: "all"},
			&cli.BoolFlag{Name: "tag", Usage: "with --all: begin each line with the worker's name and a tab", Destination: &o.tag, DisableDefaultText: true},
			&cli.BoolFlag{Name: "json", Usage: "with --all: one JSON object a line for each worker", Destination: &o.json, DisableDefaultText: true},
			nodeFlag(&o.node),
			keepAliveFlag(&o.keepAlive),
			&cli.IntFlag{Name: "status-fd", Usage: "write how it ended, as JSON, to descriptor `N`", Destination: &o.statusFD, DefaultText: "none"},
			&cli.StringFlag{Name: "status-file", Usage: "write how it ended, as JSON, to `FILE`", Destination: &o.statusTo},
			quietFlag(&o.quiet),
			verboseFlag(&o.verbose, "say which node and worker it was"),
		},
		Action: func(ctx *cli.Context) error {
			o.hasData, o.hasFD = ctx.IsSet("data"), ctx.IsSet("status-fd")
			words := ctx.Args().Slice()
			if len(words) == 0 {
				return usage("call what? a name is due").withHint("fbus call NAME; fbus ls shows what is offered")
			}
			o.name, o.args, o.hasReplies = words[0], words[1:], ctx.IsSet("replies")
			if o.all {
				return callAll(o, ctx.App.Writer, ctx.App.ErrWriter)
			}
			return call(o, ctx.App.ErrWriter)
		},
	}
}

// check refuses flags that do not go together.
func (o *callOptions) check() error {
	given := 0
	for _, b := range []bool{o.hasData, len(o.fields) > 0, len(o.args) > 0} {
		if b {
			given++
		}
	}
	switch {
	case !node.ValidName(o.name):
		return usage("%q is no function name", o.name)
	case given > 1:
		return usage("arguments are given in two ways: words, -f/-F and -d exclude each other")
	case o.input != "" && o.noStdin:
		return usage("-i and -n exclude each other")
	case o.data == "@-" && o.input == "-":
		return usage("-d @- and -i - both want stdin")
	case badField(o.fields) != nil:
		f := badField(o.fields)
		return usage("-F %s=%s: the value is not JSON", f.Name, f.Value).withHint("to send it as a string: %s", join("-f", f.Name+"="+f.Value))
	case o.noWait && o.wait.set:
		return usage("--wait and --no-wait exclude each other")
	case o.retries < 0:
		return usage("--retries %d: at least 0 is due", o.retries)
	case o.timeout.set && o.timeout.d <= 0:
		return usage("-t %s: more than nothing is due", formatDuration(o.timeout.d))
	case o.hasFD && o.statusTo != "":
		return usage("--status-fd and --status-file exclude each other")
	case !o.all && (o.hasReplies || o.tag || o.json):
		return usage("--replies, --tag and --json go with --all").withHint("%s", join("fbus", "call", "--all", o.name, o.args))
	}
	return nil
}

// request puts together what is sent. The closer is for the input's file.
func (o *callOptions) request() (*bus.Request, io.Closer, error) {
	req := &bus.Request{
		Function: o.name, On: o.on, Retries: o.retries, Timeout: o.timeout.d,
		Stdout: os.Stdout, Stderr: os.Stderr,
	}
	args, err := o.arguments()
	if err != nil {
		return nil, nil, err
	}
	req.Args = args
	switch {
	case o.input == "-" || o.input == "" && args.Kind() == bus.KindRaw && !o.noStdin:
		if stdinReadable() {
			req.Input = os.Stdin
		}
	case o.input != "":
		f, err := os.Open(o.input)
		if err != nil {
			return nil, nil, usage("input: %v", pathReason(err))
		}
		req.Input = f
		return req, f, nil
	}
	return req, nil, nil
}

// stdinReadable is false where reading would stop us: a terminal whose
// foreground is somebody else.
func stdinReadable() bool {
	if _, err := os.Stdin.Stat(); err != nil {
		return false // closed: <&-
	}
	return !isatty.IsTerminal(os.Stdin.Fd()) || foreground(int(os.Stdin.Fd()))
}

// pathReason is a file error without the name of the system call.
func pathReason(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", pe.Path, pe.Err)
	}
	return err
}

// badField finds a field of -F that is not JSON.
func badField(fields []bus.Field) *bus.Field {
	for i, f := range fields {
		if f.JSON && !json.Valid([]byte(f.Value)) {
			return &fields[i]
		}
	}
	return nil
}

// arguments are the words, the fields or the document.
func (o *callOptions) arguments() (bus.Args, error) {
	switch {
	case len(o.args) > 0:
		return bus.List(o.args...), nil
	case len(o.fields) > 0:
		return bus.Fields(o.fields...), nil
	case !o.hasData:
		return bus.Args{}, nil
	}
	doc, from := []byte(o.data), "-d"
	if path, ok := strings.CutPrefix(o.data, "@"); ok {
		var err error
		if path == "-" {
			from = "stdin"
			doc, err = io.ReadAll(io.LimitReader(os.Stdin, bus.MaxArgs+1))
		} else {
			from = path
			doc, err = readLimited(path)
		}
		if err != nil {
			return bus.Args{}, usage("data: %v", pathReason(err))
		}
	}
	if len(doc) > bus.MaxArgs {
		return bus.Args{}, fail(exitBadInput, "%s: a document of more than %d bytes can not be sent as arguments", from, bus.MaxArgs).
			withHint("as input there is no limit: fbus call %s < FILE", o.name)
	}
	if !json.Valid(doc) {
		f := usage("%s: this is not JSON: %s", from, shorten(doc))
		if from == "-d" {
			return bus.Args{}, f.withHint("a file is named with @: -d @FILE; words go behind the name: fbus call %s WORD", o.name)
		}
		return bus.Args{}, f
	}
	return bus.JSON(doc), nil
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, bus.MaxArgs+1))
}

// shorten makes some bytes fit for a message.
func shorten(p []byte) string {
	const most = 60
	if len(p) > most {
		p = append(bytes.Clone(p[:most]), "…"...)
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(p), "?"))
}

func call(o *callOptions, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	status, err := openStatus(o)
	if err != nil {
		return err
	}
	end, err := o.callOnce(stderr)
	if err := status.write(end); err != nil {
		return fail(exitInternal, "status: %v", pathReason(err))
	}
	return err
}

// callOnce makes the call and returns how it ended, and the error that is to be
// reported.
func (o *callOptions) callOnce(stderr io.Writer) (callEnd, error) {
	fbusEnd := func(err error) (callEnd, error) {
		f := explain(err)
		return callEnd{Source: "fbus", Status: f.status, Code: f.code}, err
	}
	req, file, err := o.request()
	if err != nil {
		return fbusEnd(err)
	}
	if file != nil {
		defer file.Close()
	}
	out, err := openOutput(o)
	if err != nil {
		return fbusEnd(err)
	}
	defer out.discard()
	req.Stdout = out
	ctx := context.Background()
	if o.cleansUp() {
		ctx = signalled()
	}
	began := time.Now()
	if o.timeout.d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout.d+time.Second, bus.ErrDeadline)
		defer cancel()
	}
	// With --wait a refusal is waited out, so it has to be known before the call.
	client, p, err := connect(ctx, o.node, o.wait, &bus.DialOptions{Name: hostname(), Eager: !o.wait.set, KeepAlive: o.keepAlive.d})
	if err == nil {
		// The connection ends with this process: that is the quickest way.
		o.patience(req, time.Since(began))
		if o.verbose {
			say(stderr, fmt.Sprintf("node: %s (%s)", p.addr, p.why))
		}
	}
	var res bus.Result
	if err == nil {
		res, err = client.Call(ctx, req)
		err = troubled(err, o.node, o.name)
	}
	var sig *interrupted
	if errors.As(context.Cause(ctx), &sig) {
		return callEnd{Source: "fbus", Status: exitSignal + int(sig.signal), Code: "interrupted", Call: res.Call}, sig
	}
	if o.verbose && res.Worker != "" {
		say(stderr, fmt.Sprintf("worker: %s, call: %s", res.Worker, res.Call))
	}
	return o.ended(res, err, out, stderr)
}

// patience sets how long the node may keep the call waiting.
func (o *callOptions) patience(req *bus.Request, spent time.Duration) {
	switch {
	case o.noWait:
		req.WaitSlot = new(time.Duration)
	case o.wait.forever:
		req.WaitFunction = bus.Forever * time.Millisecond
	case o.wait.set:
		left := max(0, o.wait.d-spent)
		req.WaitFunction, req.WaitSlot = left, &left
	}
}

// ended turns the result into our own end.
func (o *callOptions) ended(res bus.Result, err error, out *outputFile, stderr io.Writer) (callEnd, error) {
	var exit *bus.ExitError
	end := callEnd{Source: res.Source.String(), Status: res.Status, Code: res.Code, Call: res.Call}
	switch {
	case err == nil:
		if err := out.commit(); err != nil {
			return callEnd{Source: "fbus", Status: exitInternal, Code: bus.CodeInternal, Call: res.Call}, fail(exitInternal, "output: %v", pathReason(err))
		}
		return end, nil
	case errors.As(err, &exit):
		out.flush()
		if res.Source == bus.FromSignal && !o.quiet {
			say(stderr, fmt.Sprintf("%s: program was ended by %s", o.name, res.Code))
		}
		return end, statusOnly(res.Status)
	}
	out.flush()
	f := explainCall(err, o.timeout.d)
	f.msg = messageFor(o.name, f)
	end = callEnd{Source: "fbus", Status: f.status, Code: f.code, Call: res.Call}
	return end, f
}

// explainCall is explain for a call that had that much time, 0 for no limit.
func explainCall(err error, timeout time.Duration) *failure {
	switch late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, bus.ErrDeadline); {
	case !late:
		return explain(err)
	case timeout == 0:
		f := &failure{status: exitDeadline, code: bus.CodeDeadline, msg: "the worker's time limit was exceeded"}
		var e *bus.Error
		if errors.As(err, &e) {
			_, f.hint, _ = strings.Cut(e.Message, "\nhint: ")
		}
		return f
	}
	return &failure{status: exitDeadline, code: bus.CodeDeadline, msg: fmt.Sprintf("deadline of %s exceeded", formatDuration(timeout))}
}

// messageFor puts the function's name before a message that lacks it.
func messageFor(name string, f *failure) string {
	if f.status == exitNoNode || strings.HasPrefix(f.msg, name+":") {
		return f.msg
	}
	return name + ": " + f.msg
}

package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"

	"github.com/urfave/cli/v2"
)

// callOptions are the flags of fbus call.
type callOptions struct {
	callArguments
	endOptions
	nodeOptions
	timeout durationValue
	noWait  bool
	retries int
	on      string
	all     bool
	replies int
	tag     bool
	json    bool

	hasReplies bool
}

func callCommand() *cli.Command {
	o := &callOptions{callArguments: callArguments{verb: "call"}}
	return &cli.Command{
		Usage:     "call a function",
		UsageText: "call [flags] NAME [ARG…]",
		Description: `Without arguments stdin is the input. The function's output is printed as it comes, and
fbus exits with its status. Words that begin with - go after --.

  fbus call wc < README.md
  fbus call greet Bob
  fbus call -f name=Bob -F age=41 greet
  fbus call -d '{"name":"Bob"}' greet
  fbus call -i big.jpg -o small.png -t 30s thumb 80x80
  fbus call --all --tag uptime

With --all workers that are held are not called. The exit status is the highest; --json has the fields of map (stderr is cut
to its last 1 MiB), and worker_id, since two workers may have the same name. A worker at another node is shown as
@NODE/NAME.`,
		Flags: append(slices.Concat(o.callArguments.flags(), o.endOptions.flags(), o.nodeOptions.flags("wait `D|forever` for a node, the function and a slot", "print which node and worker it was")),
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end after `D`, waiting included", Value: &o.timeout},
			&cli.BoolFlag{Name: "no-wait", Usage: "do not wait for a slot, but a moment for one at another node", Destination: &o.noWait, DisableDefaultText: true},
			&cli.IntFlag{Name: "retries", Usage: "try `N` times more if the worker is lost before any output", Destination: &o.retries},
			onFlag(&o.on),
			&cli.BoolFlag{Name: "all", Usage: "call every worker that offers it, also at other nodes", Destination: &o.all, DisableDefaultText: true},
			&cli.IntFlag{Name: "replies", Usage: "with --all: end after `N` answers", Destination: &o.replies, DefaultText: "all"},
			&cli.BoolFlag{Name: "tag", Usage: "with --all: begin each line with the worker's name and a tab", Destination: &o.tag, DisableDefaultText: true},
			&cli.BoolFlag{Name: "json", Usage: "with --all: one JSON object a line for each worker", Destination: &o.json, DisableDefaultText: true},
		),
		Action: func(ctx *cli.Context) error {
			if err := o.operands(ctx); err != nil {
				return err
			}
			o.hasFD, o.hasReplies = ctx.IsSet("status-fd"), ctx.IsSet("replies")
			if o.all {
				return callAll(o, ctx.App.Writer, ctx.App.ErrWriter)
			}
			return call(o, ctx.App.ErrWriter)
		},
	}
}

// check refuses flags that exclude each other.
func (o *callOptions) check() error {
	if err := o.callArguments.check(); err != nil {
		return err
	}
	if err := o.endOptions.check(); err != nil {
		return err
	}
	switch {
	case o.noWait && o.wait.set:
		return usage("--wait and --no-wait exclude each other")
	case o.retries < 0:
		return usage("--retries must not be negative")
	case o.timeout.set && o.timeout.d <= 0:
		return unlimited("-t")
	case !o.all && (o.hasReplies || o.tag || o.json):
		return usage("--replies, --tag and --json need --all").WithHint("%s", join("fbus", "call", "--all", o.name, o.args))
	}
	return nil
}

// request makes the request. The closer is for the input's file.
func (o *callOptions) request() (*bus.Request, io.Closer, error) {
	req, file, err := o.callArguments.request()
	if err != nil {
		return nil, nil, err
	}
	req.Function, req.On, req.Retries, req.Timeout = o.name, o.on, o.retries, o.timeout.d
	req.Stderr = os.Stderr
	return req, file, nil
}

func call(o *callOptions, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	return o.report(func() (callEnd, error) { return o.callOnce(stderr) })
}

// callOnce makes the call and returns its end, and the error of the command.
func (o *callOptions) callOnce(stderr io.Writer) (callEnd, error) {
	req, file, err := o.request()
	if err != nil {
		return failedEnd(err)
	}
	defer file.Close()
	defer o.awaitTyped(req)()
	out, err := openOutput(&o.endOptions)
	if err != nil {
		return failedEnd(err)
	}
	defer out.discard()
	req.Stdout = out
	ctx := context.Background()
	if o.cleansUp() {
		ctx = signalled()
	}
	began := time.Now()
	client, err := o.connectInTime(ctx, stderr)
	if err == nil {
		// The connection ends with this process: that is the quickest way.
		if o.patience(req, time.Since(began)); o.noWait {
			req.WaitSlot = bus.NoWait
		}
		if o.timeout.d > 0 { // connecting has spent some of it
			req.Timeout = max(time.Millisecond, o.timeout.d-time.Since(began))
		}
	}
	var res bus.Result
	if err == nil {
		if o.verbose {
			printer := newProgressPrinter(o.name)
			req.Progress = printer.report
			res, err = client.Call(ctx, req)
			printer.close()
		} else {
			res, err = client.Call(ctx, req)
		}
		err = troubled(o.corrected(client, suggest(client, err, o.name), o.on), o.node, o.name)
	}
	if sig, ok := errors.AsType[*interrupted](context.Cause(ctx)); ok {
		return callEnd{End: endOf(res, sig, 0), call: res.Call}, sig
	}
	if o.verbose && res.Worker != "" {
		say(stderr, fmt.Sprintf("worker: %s, call: %s", res.Worker, res.Call))
	}
	return o.ended(o.name, o.timeout.d, res, err, out, stderr)
}

// connectInTime connects within the time that the call has.
func (o *callOptions) connectInTime(ctx context.Context, stderr io.Writer) (*bus.Client, error) {
	if o.timeout.d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout.d, bus.ErrDeadline)
		defer cancel()
	}
	// With --wait a refusal may pass, so it must be known before the call.
	client, err := o.connect(ctx, o.wait, !o.wait.set, stderr)
	// Dialling may give up at the deadline before the context does.
	if d, ok := ctx.Deadline(); err != nil && ok && !time.Now().Before(d) {
		err = bus.ErrDeadline
	}
	return client, err
}

// checkAll refuses flags that exclude --all.
func (o *callOptions) checkAll() error {
	switch {
	case o.hasReplies && o.replies < 1:
		return usage("--replies must be at least 1")
	case o.tag && o.json:
		return usage("--tag and --json exclude each other: with --json, the member worker names the worker")
	case o.hasFD || o.statusTo != "":
		return usage("--status-fd and --status-file are for one call: with --all, use --json")
	case o.pretty:
		return usage("-p is for one call: it does not go with --all")
	}
	return nil
}

// errEnough ends the calls of --all when there are enough answers.
var errEnough = errors.New("enough answers")

// callAll makes one call to every worker that offers the function. Each output is printed
// whole when its call has ended.
func callAll(o *callOptions, stdout, stderr io.Writer) error {
	if err := errors.Join(o.checkAll(), o.check()); err != nil {
		return err
	}
	request, file, err := o.request()
	if err != nil {
		return err
	}
	defer file.Close()
	defer o.awaitTyped(request)()
	out := &outputFile{w: stdout}
	if o.output != "" {
		if out, err = openOutput(&o.endOptions); err != nil {
			return err
		}
		defer out.discard()
	}
	client, workers, err := o.reach(o.name, o.on, stderr)
	if err != nil {
		return err
	}
	defer client.Close()
	if workers, err = o.withoutHeld(withThoseBehind(workers), stderr); err != nil {
		return err
	}
	var shared *fanout.SharedInput
	if request.Input != nil {
		if shared, err = fanout.NewSharedInput(request.Input); err != nil {
			return fail(args.CodeInternal, "input: %v", err)
		}
		defer shared.Close()
	}
	began := time.Now()
	p := &printer{
		name: o.name, out: newFlusher(out), screen: &screen{w: stderr}, tag: o.tag, json: o.json,
		verbose: o.verbose, timeout: o.timeout.d, title: func(t *fanout.Task) string { return workerTitle(workers, workers[t.Seq-1]) },
	}
	seq, answers := 0, 0
	r := &fanout.Runner{Config: fanout.Config{
		Client: client, Function: o.name, Mode: fanout.Fixed, Jobs: min(len(workers), maxJobs), Unordered: true, Rest: p.rest,
		Next: func() (fanout.Task, error) {
			if seq == len(workers) {
				return fanout.Task{}, io.EOF
			}
			seq++
			return fanout.Task{Seq: seq, On: "#" + workers[seq-1].ID}, nil
		},
		Request: func(t *fanout.Task) (*bus.Request, io.Closer, error) {
			req := *request
			if shared != nil {
				req.Input = shared.Reader()
			}
			if o.patience(&req, time.Since(began)); o.noWait {
				req.WaitSlot = bus.NoWait
			}
			closer, err := p.prepare(t, &req, nil)
			return &req, closer, err
		},
		Done: func(out *fanout.Outcome) error {
			if o.replies > 0 && answers >= o.replies {
				return nil // this one came too late
			}
			if w := &workers[out.Seq-1]; out.Result.Worker == "" || w.Relay {
				out.Result.Worker = w.Name
			}
			if err := p.print(out); err != nil {
				return err
			}
			if out.Result.Source != args.FromBus && (out.Err == nil || errors.As(out.Err, new(*bus.ExitError))) {
				answers++
			}
			if o.replies > 0 && answers >= o.replies {
				return errEnough
			}
			return nil
		},
	}}
	ctx, stop := interruptible(r, p.screen, false)
	defer stop()
	if err = r.Run(ctx); errors.Is(err, errEnough) {
		err = nil
	}
	err = cmp.Or(err, p.close())
	var sig *interrupted
	switch {
	case errors.As(err, &sig):
		return sig
	case err != nil:
		return troubled(err, o.node, o.name)
	case p.worst != 0:
		return statusOnly(p.worst)
	}
	if err := out.commit(); err != nil {
		return outputError(err)
	}
	return nil
}

// withThoseBehind returns the workers, those at another node in place of their relay if it names them.
func withThoseBehind(workers []bus.WorkerInfo) (list []bus.WorkerInfo) {
	for _, w := range workers {
		if len(w.Behind) == 0 {
			list = append(list, w)
		}
		for _, on := range w.Behind {
			behind := w
			behind.Name, behind.ID = w.Name+"/"+on, w.ID+"/"+on
			behind.Held = w.Held || slices.Contains(w.BehindHeld, on)
			list = append(list, behind)
		}
	}
	return list
}

// withoutHeld leaves out workers that are held, and says so: their calls would wait.
func (o *callOptions) withoutHeld(workers []bus.WorkerInfo, stderr io.Writer) (rest []bus.WorkerInfo, err error) {
	var held []string
	where := ""
	for _, w := range workers {
		if w.Held {
			if held = append(held, w.Name); w.Relay {
				where = ", at the node of each worker,"
			}
		} else {
			rest = append(rest, w)
		}
	}
	switch {
	case len(rest) == 0:
		return nil, fail(args.CodeBusy, "%s: all its workers are held", o.name).WithHint("fbus hold%s lists what is held, and fbus release ends it", where)
	case len(held) > 0 && !o.quiet:
		say(stderr, fmt.Sprintf("%s: not called, since held: %s", o.name, few(held)))
	}
	return rest, nil
}

// workerTitle returns the worker's name, with its id if another has the same name.
func workerTitle(workers []bus.WorkerInfo, w bus.WorkerInfo) string {
	for _, other := range workers {
		if other.Name == w.Name && other.ID != w.ID {
			return w.Name + "#" + w.ID
		}
	}
	return w.Name
}

// progressPrinter prints reports of a call's progress on stderr, as fast as that takes them: the
// others are left out.
type progressPrinter struct {
	last    chan bus.Progress // has room for one
	printed chan struct{}     // closed when the last one is
}

func newProgressPrinter(function string) *progressPrinter {
	p := &progressPrinter{make(chan bus.Progress, 1), make(chan struct{})}
	go func() { // ends with close
		defer close(p.printed)
		for at := range p.last {
			say(os.Stderr, function+": "+args.OneLine(progressText(&at)))
		}
	}()
	return p
}

// report is for one goroutine at a time, and never waits.
func (p *progressPrinter) report(at bus.Progress) {
	select {
	case <-p.last:
	default:
	}
	p.last <- at
}

// close waits until the last report is printed, once the call has ended.
func (p *progressPrinter) close() {
	close(p.last)
	<-p.printed
}

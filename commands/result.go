package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// resultOptions are the flags of fbus result.
type resultOptions struct {
	endOptions
	nodeOptions
	id       string
	noWait   bool
	timeout  durationValue
	function string // called for the result; a test has its own
	jobs     string // the same
}

func resultCommand() *cli.Command {
	o := &resultOptions{function: "fbus.result", jobs: "fbus.jobs"}
	return &cli.Command{
		Name:      "result",
		Usage:     "print the output of a posted job, and exit with its status",
		UsageText: "result [flags] ID",
		Description: `Prints the same bytes and stderr as fbus call would have, and exits with the same status.
It waits for a job that is not finished, also while its node is away; if the wait ends,
the job goes on. The result stays for a day, or as long as the post has asked for.

  id=$(fbus post resize < big.png)
  fbus result -o small.png "$id"
  fbus result --no-wait "$id" || test $? = 75

The status is 75 if the job is not finished and --no-wait is given, 65 if there is no
such job.`,
		Flags: append(slices.Concat(o.endOptions.flags(), o.nodeOptions.flags("wait `D|forever` for a node", "say which node it was")),
			&cli.BoolFlag{Name: "no-wait", Usage: "do not wait for a job that is not finished", Destination: &o.noWait, DisableDefaultText: true},
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "wait for the job for `D` and no longer", Value: &o.timeout},
		),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() != 1 {
				return usage("result needs the id of one job").WithHint("fbus result ID, which fbus post has printed; fbus jobs lists them")
			}
			o.id, o.hasFD = ctx.Args().First(), ctx.IsSet("status-fd")
			return result(o, ctx.App.ErrWriter)
		},
	}
}

func (o *resultOptions) check() error {
	switch {
	case o.id == "":
		return usage("a job's id must not be empty")
	case o.timeout.set && o.timeout.d <= 0:
		return usage("-t must be positive").WithHint("fbus result --no-wait %s", quoteWord(o.id))
	case o.timeout.set && o.noWait:
		return usage("-t and --no-wait exclude each other")
	}
	return o.endOptions.check()
}

func result(o *resultOptions, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	return o.report(func() (callEnd, error) { return o.fetch(stderr) })
}

// fetch gets the result, and returns the end of the job and the error of the command.
func (o *resultOptions) fetch(stderr io.Writer) (callEnd, error) {
	out, err := openOutput(&o.endOptions)
	if err != nil {
		return failedEnd(err)
	}
	defer out.discard()
	ctx := context.Background()
	if o.cleansUp() {
		ctx = signalled()
	}
	f := &fetcher{o: o, out: out, stderr: stderr, began: time.Now()}
	res, err := f.fetch(ctx)
	var sig *interrupted
	if errors.As(context.Cause(ctx), &sig) {
		return callEnd{End: endOf(res, sig, 0)}, sig
	}
	name, timeout := o.id, time.Duration(0)
	if f.job != nil {
		name, timeout = f.job.Function, time.Duration(f.job.Timeout*float64(time.Second))
	}
	if n := len(o.id); len(res.Message) > n && strings.EqualFold(res.Message[:n+1], o.id+":") {
		name = res.Message[:n] // the job has not ended: the message is the node's
	}
	res.Call = "" // that was ours
	end, err := o.ended(name, timeout, res, err, out, stderr)
	end.job = o.id
	var e *args.Error
	if errors.As(err, &e) && e.Code == args.CodeNodeLost {
		e.Hint = "the result is where it was: " + join("fbus", "result", o.id) + "; " + doctorLine(o.node, nil) + " examines the node"
	}
	return end, err
}

// fetcher gets a result, with as many connections as it takes.
type fetcher struct {
	o         *resultOptions
	out       *outputFile
	stderr    io.Writer
	began     time.Time
	connected bool     // once
	said      bool     // reported that it waits for a node
	job       *jobLine // of an end that is not a program's, if it is known
}

// fetch asks until there is an answer. It waits for a node that was lost if it waits for
// the job, unless part of the result was printed already.
func (f *fetcher) fetch(ctx context.Context) (bus.Result, error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		res, err := f.try(ctx)
		gone := err != nil && args.Retryable(err) && (f.job == nil || !f.job.State.Finished())
		if !gone || !f.connected || f.o.noWait || f.out.begun || ctx.Err() != nil {
			return res, err
		}
		if f.o.timeout.set && f.left() <= 0 {
			return res, err
		}
		if !f.said && !f.o.quiet {
			say(f.stderr, err.Error()+": waiting for it to come back")
			f.said = true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return res, err
		}
	}
}

// left returns the rest of the time to wait for the job.
func (f *fetcher) left() time.Duration { return f.o.timeout.d - time.Since(f.began) }

// try asks one node. It waits for the first as long as --wait allows, for later ones as
// long as for the job.
func (f *fetcher) try(ctx context.Context) (bus.Result, error) {
	wait, again := f.o.wait, f.connected
	if again {
		wait = durationValue{set: true, forever: !f.o.timeout.set, d: max(0, f.left())}
	}
	client, err := f.o.connect(ctx, wait, !again, f.stderr)
	if err != nil {
		return bus.Result{}, err
	}
	defer client.Close()
	f.connected = true
	doc := `{"wait":false}`
	switch {
	case f.o.timeout.set && f.left() > 0:
		doc = fmt.Sprintf(`{"timeout":%f}`, max(f.left(), time.Millisecond).Seconds())
	case !f.o.noWait && !f.o.timeout.set:
		doc = `{}`
	}
	req := &bus.Request{Function: f.o.function, Args: args.List(f.o.id, doc), Stdout: f.out, Stderr: f.stderr}
	if again {
		req.WaitFunction = bus.WaitFor(logWait) // a node that has just begun
	}
	res, err := client.Call(ctx, req)
	if res.Worker == "" {
		err = noStore(err, f.o.function)
	}
	if err != nil && res.Code != "" && res.Source != args.FromProgram {
		f.job, _ = oneJob(ctx, client, f.o.jobs, f.o.id)
	}
	return res, err
}

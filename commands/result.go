package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// resultOptions are the flags of fbus result.
type resultOptions struct {
	endOptions
	id        string
	noWait    bool
	timeout   durationValue
	node      string
	wait      durationValue
	keepAlive keepAliveValue
	verbose   bool
	function  string // that is asked; a test has its own
	jobs      string // the same
}

func resultCommand() *cli.Command {
	o := &resultOptions{wait: durationValue{allow: true}, function: "fbus.result", jobs: "fbus.jobs"}
	return &cli.Command{
		Name:      "result",
		Usage:     "print what a posted job has written, and end as it did",
		UsageText: "result [flags] ID",
		Description: `The same bytes, stderr and exit status as fbus call would have given. A job that is
not finished is waited for, also while its node is away; what ends the waiting does not
end the job. The result stays for a day, or as long as fbus post was told.

  id=$(fbus post resize < big.png)
  fbus result -o small.png "$id"
  fbus result --no-wait "$id" || test $? = 75

It is 75 if the job is not finished and not waited for, 65 if there is no such job.`,
		Flags: append(o.endOptions.flags(),
			&cli.BoolFlag{Name: "no-wait", Usage: "do not wait for a job that is not finished", Destination: &o.noWait, DisableDefaultText: true},
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "wait for the job for `D` and no longer", Value: &o.timeout},
			nodeFlag(&o.node),
			&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node", Value: &o.wait},
			keepAliveFlag(&o.keepAlive),
			verboseFlag(&o.verbose, "say which node it was"),
		),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() != 1 {
				return usage("result of what? one job's id is due").WithHint("fbus result ID, which fbus post has printed; fbus jobs shows them")
			}
			o.id, o.hasFD = ctx.Args().First(), ctx.IsSet("status-fd")
			return result(o, ctx.App.ErrWriter)
		},
	}
}

func (o *resultOptions) check() error {
	switch {
	case o.id == "":
		return usage("a job's id is due, not nothing")
	case o.timeout.set && o.timeout.d <= 0:
		return usage("-t %s: more than nothing is due", formatDuration(o.timeout.d)).WithHint("fbus result --no-wait %s", quoteWord(o.id))
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

// fetch gets the result and returns how the job ended, and the error that is to be
// reported.
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
	f := &fetcher{o: o, out: &byteCounter{w: out}, stderr: stderr, began: time.Now()}
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
		name = res.Message[:n] // it is no end of the job: the node says something about it
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

// byteCounter counts what is written.
type byteCounter struct {
	w io.Writer
	n int64
}

// Write implements io.Writer.
func (c *byteCounter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// fetcher gets a result, over as many connections as that takes.
type fetcher struct {
	o         *resultOptions
	out       *byteCounter
	stderr    io.Writer
	began     time.Time
	connected bool     // once
	said      bool     // that a node is waited for
	job       *jobLine // of an end that is not a program's, if it is known
}

// fetch asks until there is an answer. A node that is lost is waited for if the job
// is, unless part of the result was passed on already.
func (f *fetcher) fetch(ctx context.Context) (bus.Result, error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		res, err := f.try(ctx)
		gone := err != nil && args.Retryable(err) && (f.job == nil || !f.job.finished())
		if !gone || !f.connected || f.o.noWait || f.out.n > 0 || ctx.Err() != nil {
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

// left is what remains of the time that the job is waited for.
func (f *fetcher) left() time.Duration { return f.o.timeout.d - time.Since(f.began) }

// try asks one node. The first is waited for as --wait has it, others for as long as
// the job is.
func (f *fetcher) try(ctx context.Context) (bus.Result, error) {
	wait, again := f.o.wait, f.connected
	if again {
		wait = durationValue{set: true, forever: !f.o.timeout.set, d: max(0, f.left())}
	}
	client, p, err := connect(ctx, f.o.node, wait, &bus.Options{Name: hostname(), Eager: !again, KeepAlive: f.o.keepAlive.d})
	if err != nil {
		return bus.Result{}, err
	}
	defer client.Close()
	if f.o.verbose {
		say(f.stderr, fmt.Sprintf("node: %s (%s)", p.Addr, p.Why))
	}
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
	if errors.Is(err, bus.ErrNoFunction) && res.Worker == "" {
		return res, fail(args.CodeNoFunction, "the node keeps no jobs: it has no function %s", f.o.function).WithHint("fbus status shows which node that is, and its version")
	}
	if err != nil && res.Code != "" && res.Source != args.FromProgram {
		f.job, _ = oneJob(ctx, client, f.o.jobs, f.o.id)
	}
	return res, err
}

package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
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
	batch    string
	noWait   bool
	follow   bool
	timeout  durationValue
	function string // called for the result; a test has its own
	jobs     string // the same
}

func resultCommand() *cli.Command {
	o := &resultOptions{function: "fbus.result", jobs: "fbus.jobs"}
	return &cli.Command{
		Usage:     "print the output of a posted job, and exit with its status",
		UsageText: "result [flags] ID|--batch NAME",
		Description: `Prints the same bytes and stderr as fbus call would have, and exits with the same status.
It waits for a job that is not finished, also while its node is away, and says on stderr
after a moment why the job does not run; if the wait ends, the job goes on. The result stays for 7 days, or as long as the post has asked for; after
a day only while its room is not needed.

  id=$(fbus post resize < big.png)
  fbus result -o small.png "$id"
  fbus result --no-wait "$id" || test $? = 75
  fbus result --follow "$id"

With --follow it prints what the job writes while it runs, from the beginning of the attempt
that runs now. When an attempt has failed and the job runs again, stderr says so, and the
output of the next attempt follows.

The status is 75 if the job is not finished and --no-wait is given, 65 if there is no
such job.

  fbus result --batch pages > all
  fbus result --batch pages -o 'out/{/.}.txt'

With --batch it prints the results of all jobs, in the order of the posts, or writes each to
a FILE that is named after the item as in fbus map; {#} is the job's place in the batch, and
an item that was not kept, being longer than 1 KiB, is replaced by the job's id. The status
is 0, or 123 if a job is dead or was cancelled.`,
		Flags: append(slices.Concat(o.endOptions.flags(), o.nodeOptions.flags("wait `D|forever` for a node", "say which node it was")),
			&cli.BoolFlag{Name: "no-wait", Usage: "do not wait for a job that is not finished", Destination: &o.noWait, DisableDefaultText: true},
			batchFlag(&o.batch, "the results of all jobs of the batch `NAME`"),
			&cli.BoolFlag{Name: "follow", Usage: "print its output while it runs", Destination: &o.follow, DisableDefaultText: true},
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "wait for the job for `D` and no longer", Value: &o.timeout},
		),
		Action: func(ctx *cli.Context) error {
			o.hasFD = ctx.IsSet("status-fd")
			if o.batch != "" {
				if ctx.NArg() > 0 {
					return usage("an id and --batch exclude each other")
				}
				return resultBatch(o, ctx.App.Writer, ctx.App.ErrWriter)
			}
			if ctx.NArg() != 1 {
				return usage("result needs the id of one job").WithHint("fbus result ID, which fbus post has printed; fbus jobs lists them")
			}
			o.id = ctx.Args().First()
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
	case o.follow && o.noWait:
		return usage("--follow and --no-wait exclude each other")
	case o.follow && (o.output != "" || o.pretty):
		return usage("--follow prints the output as it comes: it does not go with -o or -p")
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
	plain := stderr
	if o.follow {
		stderr = ownLines{stderr, out}
	}
	res, job, err := o.ask(ctx, out, plain, stderr)
	if sig, ok := errors.AsType[*interrupted](context.Cause(ctx)); ok {
		return callEnd{End: endOf(res, sig, 0)}, sig
	}
	name, timeout := o.id, time.Duration(0)
	if job != nil {
		name, timeout = job.Function, time.Duration(job.Timeout*float64(time.Second))
	}
	if n := len(o.id); len(res.Message) > n && strings.EqualFold(res.Message[:n+1], o.id+":") {
		name = res.Message[:n] // the job has not ended: the message is the node's
	}
	res.Call = "" // that was ours
	end, err := o.ended(name, timeout, res, err, out, stderr)
	if o.follow && errors.As(err, new(*args.Error)) { // it is printed next
		stderr.Write(nil)
	}
	end.job = o.id
	var e *args.Error
	switch lost := errors.As(err, &e) && e.Code == args.CodeNodeLost; {
	case lost && job != nil && job.State.Finished():
		e.Hint = join("fbus", "retry", o.id) + " runs it again"
	case lost: // the connection, not the job
		e.Hint = "the result is where it was: " + join("fbus", "result", o.id) + "; " + doctorLine(o.node, nil) + " examines the node"
	}
	return end, err
}

// waitDocument makes the options of a call that waits until a time, if -t is given.
func (o *resultOptions) waitDocument(until time.Time) string {
	left := time.Until(until)
	switch {
	case o.noWait, o.timeout.set && left <= 0:
		return `{"wait":false}`
	case o.timeout.set:
		return fmt.Sprintf(`{"timeout":%f,"follow":%t}`, max(left, time.Millisecond).Seconds(), o.follow)
	case o.follow:
		return `{"follow":true}`
	}
	return `{}`
}

// ask asks until there is an answer. It waits for a node that was lost if it waits for
// the job, unless part of the result was printed already. It returns the job, if it is
// known, of an end that is not a program's. The job's stderr goes to plain.
func (o *resultOptions) ask(ctx context.Context, out *outputFile, plain, stderr io.Writer) (res bus.Result, job *jobLine, err error) {
	node := &lasting{o: &o.nodeOptions, quiet: o.quiet, eager: true, node: "it", stderr: stderr}
	defer node.close()
	if o.timeout.set {
		node.until = time.Now().Add(o.timeout.d)
	}
	again := false
	wait := func() bool { return !o.noWait && (o.follow || !out.begun) && (job == nil || !job.State.Finished()) }
	err = node.do(ctx, wait, func(c *bus.Client) error {
		doc := o.waitDocument(node.until)
		if out.begun && !o.quiet {
			say(stderr, "what follows is the attempt that runs now, from its beginning")
		}
		req := &bus.Request{Function: o.function, Args: args.List(o.id, doc), Stdout: out, Stderr: plain}
		if again {
			req.WaitFunction = bus.WaitFor(logWait) // a node that has just begun
		}
		again = true
		looking, stop := context.WithCancel(ctx)
		var looks sync.WaitGroup
		if !o.quiet && !o.noWait {
			looks.Go(func() { // ends with the call
				explainWait(looking, stderr, func() (*jobLine, bool) {
					job, err := oneJob(looking, c, o.jobs, o.id)
					return job, err != nil || job.State.Finished()
				})
			})
		}
		res, err = c.Call(ctx, req)
		stop()
		looks.Wait()
		if res.Worker == "" {
			err = noStore(err, o.function)
		}
		if err != nil && res.Code != "" && res.Source != args.FromProgram {
			job, _ = oneJob(ctx, c, o.jobs, o.id)
		}
		return err
	})
	return res, job, err
}

// waitMoment is after which time fbus result looks why it waits, and then again after longer
// and longer times.
var waitMoment = time.Second

// explainWait says once why a job does not run. look returns a job that may wait, if any, and
// whether the wait is over.
func explainWait(ctx context.Context, stderr io.Writer, look func() (job *jobLine, over bool)) {
	for pause := waitMoment; ; pause = min(2*pause, time.Minute) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		job, over := look()
		if over {
			return
		}
		if job != nil && job.Note != "" {
			say(stderr, "job "+job.ID+" waits: "+job.note())
			return
		}
	}
}

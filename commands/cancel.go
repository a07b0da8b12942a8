package commands

import (
	"cmp"
	"context"
	"io"
	"strings"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"

	"github.com/urfave/cli/v2"
)

func cancelCommand() *cli.Command {
	o := &lookOptions{}
	var batch string
	return &cli.Command{
		Usage:     "end a call or a posted job",
		UsageText: "cancel [flags] ID…|--batch NAME",
		Description: `The caller of a call gets status 143; its program gets TERM and, after the grace
period, KILL. A job ends, and is not run again except by fbus retry.

  fbus cancel $(fbus ps --json | jq -r .call)
  fbus cancel "$job"
  fbus cancel --batch pages

With --json the calls as they were, with the fields of fbus ps, and the jobs with
those of fbus jobs.`,
		Flags: append(o.flags(), batchFlag(&batch, "all jobs of the batch `NAME` that have not ended")),
		Action: func(ctx *cli.Context) error {
			switch {
			case ctx.NArg() > 0 && batch != "":
				return usage("ids and --batch exclude each other")
			case batch != "":
				return cancelBatch(o, batch, ctx.App.Writer, ctx.App.ErrWriter)
			case ctx.NArg() == 0:
				return usage("fbus cancel needs the id of a call or a job").WithHint("fbus ps shows calls, fbus jobs shows jobs")
			}
			return cancel(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

func cancelBatch(o *lookOptions, batch string, stdout, stderr io.Writer) error {
	was, err := o.change("fbus.cancel", &bus.JobQuery{Batch: batch})
	if o.json {
		stdout.Write(was)
	}
	if err == nil && !o.quiet {
		say(stderr, plural(strings.Count(string(was), "\n"), "job")+" cancelled")
	}
	return err
}

// cancel ends every listed call and job that exists. It returns the first failure and prints
// the others.
func cancel(o *lookOptions, ids []string, stdout, stderr io.Writer) error {
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	c, err := o.dial(ctx, o.wait)
	if err != nil {
		return err
	}
	defer c.Close()
	ids = distinct(ids)
	var first error
	r := &fanout.Runner{Config: fanout.Config{
		Client: c, Function: "fbus.cancel", Mode: fanout.Fixed, Jobs: maxCancelling,
		Next: func() (t fanout.Task, err error) {
			if len(ids) == 0 {
				return t, io.EOF
			}
			t.Words, ids = ids[:1], ids[1:]
			return t, nil
		},
		Request: func(t *fanout.Task) (*bus.Request, io.Closer, error) {
			return &bus.Request{Args: args.List(t.Words...)}, nil, nil
		},
		Done: func(out *fanout.Outcome) error {
			switch {
			case out.Skipped:
			case out.Err == nil && o.json:
				was, _ := out.Output.Bytes()
				stdout.Write(args.SafeJSON(was))
			case out.Err == nil:
			case out.Result.Code == "" && args.Retryable(out.Err):
				return out.Err // the node is lost
			case first != nil:
				say(stderr, out.Err.Error())
			default:
				first = out.Err
			}
			return nil
		},
	}}
	return troubled(cmp.Or(r.Run(ctx), first), o.node)
}

// maxCancelling is how many jobs are cancelled at once: they share the node's writes to its disk.
const maxCancelling = 64

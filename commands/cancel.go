package commands

import (
	"io"
	"strings"

	"fbus/bus"

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

// cancelBatch ends the jobs of a batch.
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

// cancel ends every listed call that exists. It returns the first failure and prints the
// others.
func cancel(o *lookOptions, ids []string, stdout, stderr io.Writer) error {
	var first error
	for _, id := range ids {
		was, err := o.ask("fbus.cancel", id)
		if o.json {
			stdout.Write(was)
		}
		if err != nil && first != nil {
			say(stderr, err.Error())
		} else if err != nil {
			first = err
		}
	}
	return first
}

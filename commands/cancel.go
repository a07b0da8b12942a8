package commands

import (
	"io"

	"github.com/urfave/cli/v2"
)

func cancelCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Usage:     "end a call or a posted job",
		UsageText: "cancel [flags] ID…",
		Description: `The caller of a call gets status 143; its program gets TERM and, after the grace
period, KILL. A job ends, and is not run again except by fbus retry.

  fbus cancel $(fbus ps --json | jq -r .call)
  fbus cancel "$job"

With --json the calls as they were, with the fields of fbus ps, and the jobs with
those of fbus jobs.`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() == 0 {
				return usage("fbus cancel needs the id of a call or a job").WithHint("fbus ps shows calls, fbus jobs shows jobs")
			}
			return cancel(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
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

package commands

import (
	"io"
	"slices"
	"strings"

	"fbus/bus"

	"github.com/urfave/cli/v2"
)

// retryOptions are the flags of fbus retry.
type retryOptions struct {
	lookOptions
	dead     bool
	batch    string
	glob     string
	function string // that is asked; a test has its own
}

func retryCommand() *cli.Command {
	o := &retryOptions{function: "fbus.retry"}
	return &cli.Command{
		Usage:     "run posted jobs again that are dead or cancelled",
		UsageText: "retry [flags] ID…|--dead|--batch NAME",
		Description: `  fbus retry "$id"
  fbus retry --dead --function 'resize*'
  fbus retry --batch pages

They get as many attempts as when they were posted. --dead skips jobs whose input is
damaged, and so does --batch: retry such a job by its id, after its file was restored. With --json prints an
object with the id of each.`,
		Flags: append(o.flags(),
			&cli.BoolFlag{Name: "dead", Usage: "all jobs that are dead", Destination: &o.dead, DisableDefaultText: true},
			batchFlag(&o.batch, "all jobs of the batch `NAME` that are dead or cancelled; with --dead those that are dead"),
			&cli.StringFlag{Name: "function", Usage: "with --dead or --batch: of functions whose name matches `GLOB`", Destination: &o.glob},
		),
		Action: func(ctx *cli.Context) error {
			return retry(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

func (o *retryOptions) check(ids []string) error {
	switch {
	case len(ids) == 0 && !o.dead && o.batch == "":
		return usage("fbus retry needs ids of jobs, --dead or --batch").WithHint("fbus jobs --state dead shows them")
	case len(ids) > 0 && (o.dead || o.batch != ""):
		return usage("ids exclude --dead and --batch")
	case o.glob != "" && !o.dead && o.batch == "":
		return usage("--function goes with --dead or --batch")
	case slices.Contains(ids, ""):
		return usage("an id cannot be empty")
	}
	return nil
}

func retry(o *retryOptions, ids []string, stdout, stderr io.Writer) error {
	if err := o.check(ids); err != nil {
		return err
	}
	data, err := o.change(o.function, &bus.JobQuery{IDs: ids, Dead: o.dead, Batch: o.batch, Function: o.glob})
	if o.json {
		stdout.Write(data)
	}
	if again := strings.Count(string(data), "\n"); !o.quiet && (err == nil || again > 0) {
		say(stderr, plural(again, "job")+" queued again")
	}
	return err
}

package commands

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// purgeOptions are the flags of fbus purge.
type purgeOptions struct {
	lookOptions
	state    string
	batch    string
	older    durationValue
	glob     string
	function string // that is asked; a test has its own
}

func purgeCommand() *cli.Command {
	o := &purgeOptions{function: "fbus.purge"}
	return &cli.Command{
		Usage:     "delete posted jobs and their results",
		UsageText: "purge [flags] --state S|--older D|--batch NAME|ID…",
		Description: `  fbus purge --state done --older 1h
  fbus purge --older 7d --function 'resize*'
  fbus purge --batch pages

Deletes jobs that are done, dead or cancelled; queued or delayed ones only with
--state; running ones never: for the ID of one that has not ended the status is 65. A job
whose unique key is still kept is deleted only by its ID. With --json prints an object
with their number, purged.`,
		Flags: append(o.flags(),
			&cli.StringFlag{Name: "state", Usage: "jobs in this state: `S`, done, dead, cancelled, queued or delayed", Destination: &o.state},
			&cli.GenericFlag{Name: "older", Usage: "jobs that ended `D` ago or earlier", Value: &o.older},
			batchFlag(&o.batch, "jobs of the batch `NAME`"),
			&cli.StringFlag{Name: "function", Usage: "only of functions whose name matches `GLOB`", Destination: &o.glob},
		),
		Action: func(ctx *cli.Context) error {
			return purge(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

func (o *purgeOptions) check(ids []string) error {
	switch {
	case o.state == "running":
		return usage("--state cannot be running: running jobs are not purged").WithHint("fbus cancel ends it")
	case o.state != "" && !slices.Contains(states, o.state):
		return usage("--state must be done, dead, cancelled, queued or delayed, not %s", o.state)
	case o.older.set && o.older.d <= 0:
		return usage("--older must be positive, not %s", formatDuration(o.older.d))
	case len(ids) > 0 && (o.state != "" || o.older.set || o.glob != "" || o.batch != ""):
		return usage("--state, --older, --batch and --function cannot be used with ids")
	case len(ids) == 0 && o.state == "" && !o.older.set && o.batch == "":
		return usage("fbus purge needs --state, --older, --batch or ids").WithHint("fbus purge --state done; fbus jobs shows what is there")
	case slices.Contains(ids, ""):
		return usage("an id cannot be empty")
	}
	return nil
}

func purge(o *purgeOptions, ids []string, stdout, stderr io.Writer) error {
	if err := o.check(ids); err != nil {
		return err
	}
	ids = distinct(ids)
	data, err := o.change(o.function, &bus.JobQuery{IDs: ids, State: o.state, Batch: o.batch, Older: o.older.d.Seconds(), Function: o.glob})
	answers, unread := decodeLines[struct {
		Purged int `json:"purged"`
	}](data)
	if unread != nil || len(answers) == 0 {
		return cmp.Or(err, unread)
	}
	total := answers[0]
	for _, a := range answers[1:] {
		total.Purged += a.Purged
	}
	if o.json {
		printJSON(stdout, total)
	}
	if !o.quiet {
		say(stderr, fmt.Sprintf("%s purged", plural(total.Purged, "job")))
	}
	if err == nil && total.Purged < len(ids) {
		return fail(args.CodeBadInput, "%d of %s not purged: not ended", len(ids)-total.Purged, plural(len(ids), "job")).
			WithHint("fbus cancel ends a job; fbus purge --state queued, or --state delayed, deletes all in that state")
	}
	return err
}

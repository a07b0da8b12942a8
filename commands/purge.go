package commands

import (
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
	older    durationValue
	glob     string
	function string // that is asked; a test has its own
}

func purgeCommand() *cli.Command {
	o := &purgeOptions{function: "fbus.purge"}
	return &cli.Command{
		Name:      "purge",
		Usage:     "delete posted jobs and their results",
		UsageText: "purge [flags] --state S|--older D|ID…",
		Description: `  fbus purge --state done --older 1h
  fbus purge --older 7d --function 'resize*'

Jobs that are done, dead or cancelled; those that are queued or delayed only if
--state says so, those that run never: with the ID of one that status is 65. With
--json an object with their number, purged.`,
		Flags: append(o.flags(),
			&cli.StringFlag{Name: "state", Usage: "jobs in this state: `S`, done, dead, cancelled, queued or delayed", Destination: &o.state},
			&cli.GenericFlag{Name: "older", Usage: "jobs that ended `D` ago or earlier", Value: &o.older},
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
		return usage("--state running: a job that runs is not purged").WithHint("fbus cancel ends it")
	case o.state != "" && !slices.Contains(states, o.state):
		return usage("--state %s: done, dead, cancelled, queued or delayed is due", o.state)
	case o.older.set && o.older.d <= 0:
		return usage("--older %s: more than nothing is due", formatDuration(o.older.d))
	case len(ids) > 0 && (o.state != "" || o.older.set || o.glob != ""):
		return usage("--state, --older and --function choose jobs of all: they do not go with an ID")
	case len(ids) == 0 && o.state == "" && !o.older.set:
		return usage("purge what? --state or --older is due").WithHint("fbus purge --state done; fbus jobs shows what is there")
	case slices.Contains(ids, ""):
		return usage("a job's id is due, not nothing")
	}
	return nil
}

func purge(o *purgeOptions, ids []string, stdout, stderr io.Writer) error {
	if err := o.check(ids); err != nil {
		return err
	}
	data, err := o.change(o.function, &bus.JobQuery{IDs: ids, State: o.state, Older: o.older.d.Seconds(), Function: o.glob})
	if err != nil {
		return err
	}
	if o.json {
		stdout.Write(data)
	}
	list, err := decodeLines[struct{ Purged int }](data)
	if err == nil && len(list) == 1 && !o.quiet {
		say(stderr, fmt.Sprintf("%s purged", plural(list[0].Purged, "job")))
	}
	if err == nil && len(list) == 1 && list[0].Purged < len(ids) {
		return fail(args.CodeBadInput, "%d of %s not purged: what runs is not", len(ids)-list[0].Purged, plural(len(ids), "job")).WithHint("fbus cancel ends it")
	}
	return err
}

package commands

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"fbus/bus"
	"fbus/bus/node"

	"github.com/urfave/cli/v2"
)

// retryOptions are the flags of fbus retry.
type retryOptions struct {
	lookOptions
	dead     bool
	glob     string
	function string // that is asked; a test has its own
}

func retryCommand() *cli.Command {
	o := &retryOptions{function: "fbus.retry"}
	return &cli.Command{
		Name:      "retry",
		Usage:     "run posted jobs again that are dead or cancelled",
		UsageText: "retry [flags] ID…|--dead",
		Description: `  fbus retry "$id"
  fbus retry --dead --function 'resize*'

They have as many attempts again as when they were posted. With --json an object with
the id of each.`,
		Flags: append(o.flags(),
			&cli.BoolFlag{Name: "dead", Usage: "all jobs that are dead", Destination: &o.dead, DisableDefaultText: true},
			&cli.StringFlag{Name: "function", Usage: "with --dead: of functions whose name matches `GLOB`", Destination: &o.glob},
		),
		Action: func(ctx *cli.Context) error {
			return retry(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

func (o *retryOptions) check(ids []string) error {
	switch {
	case len(ids) == 0 && !o.dead:
		return usage("retry what? ids of jobs are due, or --dead").withHint("fbus jobs --state dead shows them")
	case len(ids) > 0 && o.dead:
		return usage("ids and --dead exclude each other")
	case o.glob != "" && !o.dead:
		return usage("--function goes with --dead")
	case slices.Contains(ids, ""):
		return usage("a job's id is due, not nothing")
	}
	return nil
}

func retry(o *retryOptions, ids []string, stdout, stderr io.Writer) error {
	if err := o.check(ids); err != nil {
		return err
	}
	data, err := o.change(o.function, &node.JobQuery{IDs: ids, Dead: o.dead, Function: o.glob})
	if o.json {
		stdout.Write(data)
	}
	if again := strings.Count(string(data), "\n"); !o.quiet && (err == nil || again > 0) {
		say(stderr, plural(again, "job")+" queued again")
	}
	return err
}

// change calls one of the node's own functions about jobs.
func (o *lookOptions) change(function string, q *node.JobQuery) ([]byte, error) {
	doc, err := marshal(q)
	if err != nil {
		return nil, err
	}
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	c, err := o.dial(ctx, o.wait)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	data, err := output(ctx, c, function, bus.JSON(doc))
	return data, troubled(noStore(err, function), o.node)
}

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
--state says so, those that run never. With --json an object with their number,
purged.`,
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
		return usage("--state running: a job that runs is not purged").withHint("fbus cancel ends it")
	case o.state != "" && !slices.Contains(states, o.state):
		return usage("--state %s: done, dead, cancelled, queued or delayed is due", o.state)
	case o.older.set && o.older.d <= 0:
		return usage("--older %s: more than nothing is due", formatDuration(o.older.d))
	case len(ids) > 0 && (o.state != "" || o.older.set || o.glob != ""):
		return usage("--state, --older and --function choose jobs of all: they do not go with an ID")
	case len(ids) == 0 && o.state == "" && !o.older.set:
		return usage("purge what? --state or --older is due").withHint("fbus purge --state done; fbus jobs shows what is there")
	case slices.Contains(ids, ""):
		return usage("a job's id is due, not nothing")
	}
	return nil
}

func purge(o *purgeOptions, ids []string, stdout, stderr io.Writer) error {
	if err := o.check(ids); err != nil {
		return err
	}
	data, err := o.change(o.function, &node.JobQuery{IDs: ids, State: o.state, Older: o.older.d.Seconds(), Function: o.glob})
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
	return err
}

package commands

import (
	"io"

	"fbus/bus"

	"github.com/urfave/cli/v2"
)

func psCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Usage:     "list running and waiting calls",
		UsageText: "ps [flags]",
		Description: `  fbus ps

JSON fields: call (its id), function, state (queued, running, or ending: nobody
waits for it any more, but its program still runs), caller, worker, age and ran
(seconds). The function fbus.calls answers the same.`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			if err := noOperands(ctx); err != nil {
				return err
			}
			return ps(o, ctx.App.Writer)
		},
	}
}

func ps(o *lookOptions, stdout io.Writer) error {
	list, data, err := askFor[bus.CallInfo](o, "fbus.calls")
	if o.json {
		stdout.Write(data)
	}
	if err != nil || o.json || len(list) == 0 {
		return err
	}
	table(stdout, "CALL\tFUNCTION\tSTATE\tCALLER\tWORKER\tAGE", func(row func(...any)) {
		for _, c := range list {
			row(c.Call, c.Function, c.State, c.Caller, orDash(c.Worker), age(c.Age))
		}
	})
	return nil
}

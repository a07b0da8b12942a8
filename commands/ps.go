package commands

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

func psCommand() *cli.Command {
	o := &lookOptions{}
	watch := false
	return &cli.Command{
		Usage:     "list running and waiting calls",
		UsageText: "ps [flags]",
		Description: `  fbus ps
  fbus ps --watch

--watch redraws a terminal when something changes; elsewhere it prints the list again. With
--json it prints the lines of fbus.watch about calls: the fields below, type ("call"), and
gone once the call has ended.

JSON fields: call (its id), function, state (queued, running, or ending: nobody waits for it
any more, but its program still runs), relayed (the id that a relay has given it), caller, job, worker, age and ran (seconds), progress
(done, total and text, as the function has reported it), and for input, output and stderr:
bytes (sent so far), credit (bytes that the sender may send now), held (bytes that the receiver
wants and the node does not yet), and open. The function fbus.calls answers the same.`,
		Flags: append(o.flags(), watchFlag(&watch)),
		Action: func(ctx *cli.Context) error {
			if err := noOperands(ctx); err != nil {
				return err
			}
			if watch {
				return troubled(watchCalls(o, ctx.App.Writer, ctx.App.ErrWriter), o.node)
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
	callTable(stdout, list)
	return nil
}

func callTable(stdout io.Writer, list []bus.CallInfo) {
	head := "CALL\tFUNCTION\tSTATE\tCALLER\tWORKER\tAGE"
	if slices.ContainsFunc(list, func(c bus.CallInfo) bool { return c.Progress != nil }) {
		head += "\tPROGRESS"
	}
	table(stdout, head, func(row func(...any)) {
		for _, c := range list {
			cells := []any{c.Call, c.Function, c.State, c.Caller, orDash(c.Worker), age(c.Age)}
			if c.Progress != nil {
				cells = append(cells, progressText(c.Progress))
			}
			row(cells...)
		}
	})
}

// progressText formats a report of progress: "3 of 10, rows".
func progressText(p *bus.Progress) string {
	if p == nil {
		return ""
	}
	var parts []string
	switch {
	case p.Total > 0:
		parts = append(parts, fmt.Sprintf("%d of %d", p.Done, p.Total))
	case p.Done > 0:
		parts = append(parts, fmt.Sprint(p.Done))
	}
	if p.Text != "" {
		parts = append(parts, p.Text)
	}
	return strings.Join(parts, ", ")
}

// watchCalls shows the calls, and what changes.
func watchCalls(o *lookOptions, stdout, stderr io.Writer) error {
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	types := []string{"call"}
	if o.json {
		return o.watchLines(ctx, types, stdout, stderr)
	}
	p := &pager{stdout: stdout}
	return o.watchNode(ctx, types, watchEvery, stderr, func(ctx context.Context, c *bus.Client) error {
		data, err := output(ctx, c, "fbus.calls", args.Args{})
		if err != nil {
			return err
		}
		list, err := decodeLines[bus.CallInfo](data)
		var page bytes.Buffer
		callTable(&page, list)
		key := "calls"
		for _, c := range list {
			key += fmt.Sprintf("\n%s %s %s %v", c.Call, c.State, c.Worker, progressText(c.Progress))
		}
		return cmp.Or(err, p.print(page.Bytes(), key))
	})
}

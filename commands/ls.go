package commands

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

func lsCommand() *cli.Command {
	o := &lookOptions{}
	watch := false
	return &cli.Command{
		Usage:     "list the functions on the bus",
		UsageText: "ls [flags] [NAME…]",
		Description: `  fbus ls
  fbus ls --json | jq -r .name
  fbus ls --watch

--watch redraws a terminal when something changes; elsewhere it prints the list again. With
--json it prints the lines of fbus.watch about functions and workers: the fields below, and
type ("function" or "worker"), gone (it is no longer there), free (slots), free_elsewhere, ready (jobs) and on
(calls that wait for certain workers, by glob). SLOTS 2+8 means two here, and eight at other nodes.

JSON fields: name, description, arguments (how they arrive), takes (input or args,
absent: both), slots, busy, queued, done (ended with 0), failed (otherwise, but not refused as
busy), note, held (its jobs wait), waits (why a call, or a job, would have to wait), elsewhere
(slots at other nodes), attributes (an object), and workers: name, id, identity, slots, busy, idempotent, description, arguments, takes,
note, held, and for a relay to another node relay, elsewhere and behind (the workers there).
The function fbus.functions answers the same. Where no worker can start the program, its note stands in place of the
description.`,
		Flags: append(o.flags(), watchFlag(&watch)),
		Action: func(ctx *cli.Context) error {
			if watch {
				return troubled(watchFunctions(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter), o.node)
			}
			return ls(o, ctx.Args().Slice(), ctx.App.Writer)
		},
	}
}

func ls(o *lookOptions, names []string, stdout io.Writer) error {
	list, data, err := askFor[bus.FunctionInfo](o, "fbus.functions", names...)
	if err != nil {
		return err
	}
	if o.json {
		stdout.Write(data)
	} else {
		functionTable(stdout, list)
	}
	return o.missing(list, names)
}

func functionTable(stdout io.Writer, list []bus.FunctionInfo) {
	if len(list) > 0 {
		table(stdout, "NAME\tWORKERS\tSLOTS\tBUSY\tQUEUED\tDONE\tFAILED\tDESCRIPTION", func(row func(...any)) {
			for _, f := range list {
				about := f.Description
				if f.Slots == 0 && f.Note != "" && !relayed(&f) {
					about = f.Note
				}
				row(f.Name, len(f.Workers), slots(&f), f.Busy, f.Queued, f.Done, f.Failed, heldNote(&f)+about)
			}
		})
	}
}

// slots shows how many slots a function has here and, after +, at other nodes.
func slots(f *bus.FunctionInfo) string {
	if f.Elsewhere > 0 {
		return fmt.Sprintf("%d+%d", f.Slots, f.Elsewhere)
	}
	return fmt.Sprint(f.Slots)
}

// relayed reports whether calls of a function may go to another node.
func relayed(f *bus.FunctionInfo) bool {
	return slices.ContainsFunc(f.Workers, func(w bus.WorkerInfo) bool { return w.Relay && w.CannotStart == 0 && !w.Held })
}

// watchFunctions shows the functions, and what changes.
func watchFunctions(o *lookOptions, names []string, stdout, stderr io.Writer) error {
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	types := []string{"function", "worker"}
	switch {
	case o.json && len(names) > 0:
		return usage("--watch with --json shows all functions: it takes no names")
	case o.json:
		return o.watchLines(ctx, types, stdout, stderr)
	}
	words := args.Args{}
	if len(names) > 0 {
		words = args.List(names...)
	}
	p := &pager{stdout: stdout}
	return o.watchNode(ctx, types, watchEvery, stderr, func(ctx context.Context, c *bus.Client) error {
		data, err := output(ctx, c, "fbus.functions", words)
		if err != nil {
			return err
		}
		list, err := decodeLines[bus.FunctionInfo](data)
		var page bytes.Buffer
		functionTable(&page, list)
		return cmp.Or(err, p.print(page.Bytes(), page.String()))
	})
}

// heldNote says what of a function is held, "" if nothing is.
func heldNote(f *bus.FunctionInfo) string {
	held, workers := 0, withThoseBehind(f.Workers)
	for _, w := range workers {
		if w.Held {
			held++
		}
	}
	switch {
	case f.Held:
		return "(jobs held) "
	case held > 0:
		return fmt.Sprintf("(%d of %s held) ", held, plural(len(workers), "worker"))
	}
	return ""
}

// missing fails for the first name that was asked for and is not there.
func (o *lookOptions) missing(list []bus.FunctionInfo, names []string) error {
	for _, name := range names {
		if !slices.ContainsFunc(list, func(f bus.FunctionInfo) bool { return f.Name == name }) {
			return o.suggest(&args.Error{Code: args.CodeNoFunction, Message: name + ": no such function"}, name)
		}
	}
	return nil
}

// similar is similar after a command has closed its connection; "" for no name.
func (o *lookOptions) similar(name string) (near string) {
	if name == "" {
		return ""
	}
	c, _, err := connect(context.Background(), o.node, durationValue{}, &bus.Options{Name: hostname(), KeepAlive: o.keepAlive.d})
	if err != nil {
		return ""
	}
	defer c.Close()
	return similar(c, name)
}

// suggest is suggest after a command has closed its connection.
func (o *lookOptions) suggest(err error, name string) error {
	return didYouMean(err, func() string { return o.similar(name) })
}

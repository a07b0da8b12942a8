package commands

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

func describeCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Usage:     "show one function and its workers",
		UsageText: "describe [flags] NAME",
		Description: `  fbus describe wc

A note shows why a worker cannot take a call now, and waits why any call, or any job, would
have to wait, in the words of fbus jobs and doctor. JSON fields: those of fbus ls, and schema, a JSON Schema of the arguments, if there is one.`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() != 1 {
				return usage("fbus describe needs one name").WithHint("fbus describe NAME; fbus ls shows what is offered")
			}
			return describe(o, ctx.Args().First(), ctx.App.Writer)
		},
	}
}

func describe(o *lookOptions, name string, stdout io.Writer) error {
	list, data, err := askFor[bus.FunctionInfo](o, "fbus.functions", name)
	if err == nil {
		if err = o.missing(list, []string{name}); err != nil {
			e := explain(err)
			e.Message += ": no worker offers it" // as fbus jobs and doctor say
			err = e
		}
	} else if errors.Is(err, bus.ErrDenied) {
		err = o.suggest(err, name)
	}
	if err != nil {
		return err
	}
	if o.json {
		stdout.Write(data)
		return nil
	}
	f := list[0]
	facts(stdout, func(fact func(string, string, ...any)) {
		fact("name", "%s", f.Name)
		if f.Description != "" {
			fact("description", "%s", f.Description)
		}
		fact("arguments", "%s", f.Arguments)
		fact("takes", "%s", cmp.Or(f.Takes, "both"))
		fact("slots", "%d, %d busy", f.Slots, f.Busy)
		if f.Elsewhere > 0 {
			fact("elsewhere", "%s at other nodes", plural(f.Elsewhere, "slot"))
		}
		fact("calls", "%d queued, %d done, %d failed", f.Queued, f.Done, f.Failed)
		if f.Waits != "" {
			fact("waits", "%s", f.Waits)
		}
		if f.Held {
			fact("held", "%s", bus.HeldNote(f.Name))
		}
		for _, name := range slices.Sorted(maps.Keys(f.Attributes)) {
			fact("attribute", "%s", attributeText(name, f.Attributes[name]))
		}
		for _, k := range f.Workers {
			switch {
			case k.Held:
				fact("held", "%s gets nothing new", k.Name)
			case len(k.BehindHeld) > 0:
				fact("held", "%d of %s at %s: %s", len(k.BehindHeld), plural(len(k.Behind), "worker"), k.Name, few(k.BehindHeld))
			}
			if k.Note != "" {
				fact("note", "%s: %s", k.Name, k.Note)
			}
		}
	})
	var schema bytes.Buffer
	if f.Schema != nil && json.Indent(&schema, f.Schema, "", "  ") == nil {
		fmt.Fprintln(stdout, "schema of the arguments:")
		for line := range strings.SplitSeq(schema.String(), "\n") {
			fmt.Fprintf(stdout, "  %s\n", args.OneLine(line))
		}
	}
	fmt.Fprintln(stdout)
	table(stdout, "WORKER\tIDENTITY\tSLOTS\tBUSY\tIDEMPOTENT\tARGUMENTS", func(row func(...any)) {
		for _, k := range f.Workers {
			row(k.Name, k.Identity, k.Slots, k.Busy, yes(k.Idempotent), k.Arguments)
		}
	})
	return nil
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

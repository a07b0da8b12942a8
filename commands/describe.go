package commands

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"fbus/bus"

	"github.com/urfave/cli/v2"
)

func describeCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Usage:     "show one function and its workers",
		UsageText: "describe [flags] NAME",
		Description: `  fbus describe wc

A note shows why a worker cannot take a call now. JSON fields:
those of fbus ls, and schema, a JSON Schema of the arguments, if there is one.`,
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
		err = missing(list, []string{name})
	}
	if err != nil {
		return err
	}
	if o.json {
		stdout.Write(data)
		return nil
	}
	f := list[0]
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "name\t%s\n", f.Name)
	if f.Description != "" {
		fmt.Fprintf(w, "description\t%s\n", oneLine(f.Description))
	}
	fmt.Fprintf(w, "arguments\t%s\n", oneLine(f.Arguments))
	fmt.Fprintf(w, "slots\t%d, %d busy\n", f.Slots, f.Busy)
	fmt.Fprintf(w, "calls\t%d queued, %d done, %d failed\n", f.Queued, f.Done, f.Failed)
	for _, k := range f.Workers {
		if k.Note != "" {
			fmt.Fprintf(w, "note\t%s: %s\n", oneLine(k.Name), oneLine(k.Note))
		}
	}
	w.Flush()
	var schema bytes.Buffer
	if f.Schema != nil && json.Indent(&schema, f.Schema, "", "  ") == nil {
		fmt.Fprintln(stdout, "schema of the arguments:")
		for line := range strings.SplitSeq(schema.String(), "\n") {
			fmt.Fprintf(stdout, "  %s\n", oneLine(line))
		}
	}
	fmt.Fprintln(stdout)
	table(stdout, "WORKER\tIDENTITY\tSLOTS\tBUSY\tIDEMPOTENT\tARGUMENTS", func(w io.Writer) {
		for _, k := range f.Workers {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", oneLine(k.Name), k.Identity, k.Slots, k.Busy, yes(k.Idempotent), oneLine(k.Arguments))
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

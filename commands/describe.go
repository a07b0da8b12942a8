package commands

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
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
	data, err := o.ask("fbus.functions", name)
	if err != nil {
		return err
	}
	list, err := decodeLines[bus.FunctionInfo](data)
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
	if f.Schema != nil {
		writeSchema(stdout, f.Schema)
	}
	fmt.Fprintln(stdout)
	table(stdout, "WORKER\tIDENTITY\tSLOTS\tBUSY\tIDEMPOTENT\tARGUMENTS", func(w io.Writer) {
		for _, k := range f.Workers {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", oneLine(k.Name), k.Identity, k.Slots, k.Busy, yes(k.Idempotent), oneLine(k.Arguments))
		}
	})
	return nil
}

// writeSchema writes a schema as people read JSON.
func writeSchema(stdout io.Writer, schema json.RawMessage) {
	var out bytes.Buffer
	if json.Indent(&out, schema, "  ", "  ") == nil {
		fmt.Fprintf(stdout, "schema of the arguments:\n  %s\n", oneLineEach(out.String()))
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

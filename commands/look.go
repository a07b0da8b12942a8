package commands

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"fbus/bus"
	"fbus/bus/args"

	"github.com/urfave/cli/v2"
)

// lookOptions are the flags of the commands that inspect the bus.
type lookOptions struct {
	nodeOptions
	json  bool
	quiet bool
}

func (o *lookOptions) flags() []cli.Flag {
	o.wait.allow = true
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "one JSON object a line", Destination: &o.json, DisableDefaultText: true},
		nodeFlag(&o.node),
		&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node", Value: &o.wait},
		quietFlag(&o.quiet),
		verboseFlag(&o.verbose, "report which node was used"),
	}
}

// ask calls one of the node's own functions and returns its output.
func (o *lookOptions) ask(name string, words ...string) ([]byte, error) {
	if len(words) == 0 {
		return o.call(name, args.Args{})
	}
	return o.call(name, args.List(words...))
}

// call is ask with arguments of any kind.
func (o *lookOptions) call(name string, args args.Args) ([]byte, error) {
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	c, err := o.dial(ctx, o.wait)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	data, err := output(ctx, c, name, args)
	return data, troubled(err, o.node)
}

func (o *lookOptions) dial(ctx context.Context, wait durationValue) (*bus.Client, error) {
	return o.connect(ctx, wait, false, os.Stderr)
}

// output returns the output of one of the node's own functions.
func output(ctx context.Context, c *bus.Client, name string, a args.Args) ([]byte, error) {
	var out bytes.Buffer
	_, err := c.Call(ctx, &bus.Request{Function: name, Args: a, Stdout: &out, Stderr: os.Stderr})
	return args.SafeJSON(out.Bytes()), err
}

// decodeLines reads one object a line.
func decodeLines[T any](data []byte) ([]T, error) {
	var list []T
	for dec := json.NewDecoder(bytes.NewReader(data)); ; {
		var v T
		switch err := dec.Decode(&v); err {
		case nil:
			list = append(list, v)
		case io.EOF:
			return list, nil
		default:
			return nil, fail(args.CodeInternal, "the node's answer cannot be read: %v", err)
		}
	}
}

// askFor calls one of the node's own functions. It returns its output also decoded.
func askFor[T any](o *lookOptions, name string, words ...string) (list []T, data []byte, err error) {
	if data, err = o.ask(name, words...); err == nil {
		list, err = decodeLines[T](data)
	}
	return list, data, err
}

// table writes aligned columns, below a heading unless that is empty. Foreign texts in cells
// break neither the table nor a terminal.
func table(stdout io.Writer, head string, rows func(row func(cells ...any))) {
	out := bufio.NewWriter(stdout) // tabwriter writes each cell by itself
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	if head != "" {
		fmt.Fprintln(w, head)
	}
	rows(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				io.WriteString(w, "\t")
			}
			io.WriteString(w, args.OneLine(fmt.Sprint(c)))
		}
		io.WriteString(w, "\n")
	})
	w.Flush()
	out.Flush()
}

// facts writes lines of a name and a value.
func facts(stdout io.Writer, lines func(fact func(name, format string, a ...any))) {
	table(stdout, "", func(row func(...any)) {
		lines(func(name, format string, a ...any) { row(name, fmt.Sprintf(format, a...)) })
	})
}

func printJSON(stdout io.Writer, v any) error {
	line, err := marshal(v)
	if err == nil {
		_, err = stdout.Write(append(line, '\n'))
	}
	return err
}

func orDash(s string) string { return cmp.Or(s, "-") }

// age formats a time in seconds, for people.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	const day = 24 * time.Hour
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= 2*day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
	return d.Round(time.Second).String()
}

package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"fbus/bus"
	"fbus/bus/node"

	"github.com/urfave/cli/v2"
)

// lookOptions are the flags of the commands that look at the bus.
type lookOptions struct {
	node    string
	json    bool
	wait    durationValue
	quiet   bool
	verbose bool
}

func (o *lookOptions) flags() []cli.Flag {
	o.wait.allow = true
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "one JSON object a line", Destination: &o.json, DisableDefaultText: true},
		nodeFlag(&o.node),
		&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node", Value: &o.wait},
		quietFlag(&o.quiet),
		verboseFlag(&o.verbose, "say which node it was"),
	}
}

// ask calls one of the node's own functions and returns what it says.
func (o *lookOptions) ask(name string, words ...string) ([]byte, error) {
	if len(words) == 0 {
		return o.call(name, bus.Args{})
	}
	return o.call(name, bus.List(words...))
}

// call is ask with arguments of any kind.
func (o *lookOptions) call(name string, args bus.Args) ([]byte, error) {
	ctx := context.Background() // a signal ends the process: there is nothing to clean up
	c, err := o.dial(ctx, o.wait)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	data, err := output(ctx, c, name, args)
	return data, troubled(err, o.node)
}

// dial connects to the node.
func (o *lookOptions) dial(ctx context.Context, wait durationValue) (*bus.Client, error) {
	c, p, err := connect(ctx, o.node, wait, &bus.DialOptions{Name: hostname()})
	if err == nil && o.verbose {
		say(os.Stderr, fmt.Sprintf("node: %s (%s)", p.addr, p.why))
	}
	return c, err
}

// output is what a function says to some arguments.
func output(ctx context.Context, c *bus.Client, name string, args bus.Args) ([]byte, error) {
	var out bytes.Buffer
	_, err := c.Call(ctx, &bus.Request{Function: name, Args: args, Stdout: &out, Stderr: os.Stderr})
	return out.Bytes(), err
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
			return nil, fail(exitInternal, "the node's answer can not be read: %v", err)
		}
	}
}

func lsCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Name:      "ls",
		Usage:     "list the functions on the bus",
		UsageText: "ls [flags] [NAME…]",
		Description: `  fbus ls
  fbus ls --json | jq -r .name

JSON fields: name, description, arguments (how they arrive), slots, busy,
queued, done (ended with 0), failed, note, and workers: name, id, identity,
slots, busy, idempotent, description, arguments, note. The function fbus.functions answers the same.`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			return ls(o, ctx.Args().Slice(), ctx.App.Writer)
		},
	}
}

func ls(o *lookOptions, names []string, stdout io.Writer) error {
	data, err := o.ask("fbus.functions", names...)
	if err != nil {
		return err
	}
	list, err := decodeLines[node.FunctionInfo](data)
	if err != nil {
		return err
	}
	if o.json {
		stdout.Write(data)
	} else if len(list) > 0 {
		table(stdout, "NAME\tWORKERS\tSLOTS\tBUSY\tQUEUED\tDONE\tFAILED\tDESCRIPTION", func(w io.Writer) {
			for _, f := range list {
				fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", f.Name, len(f.Workers), f.Slots, f.Busy, f.Queued, f.Done, f.Failed, oneLine(f.Description))
			}
		})
	}
	return missing(list, names)
}

// missing fails for the first name that was asked for and is not there.
func missing(list []node.FunctionInfo, names []string) error {
	for _, name := range names {
		found := false
		for _, f := range list {
			found = found || f.Name == name
		}
		if !found {
			return &bus.Error{Code: bus.CodeNoFunction, Message: name + ": no such function"}
		}
	}
	return nil
}

// table writes aligned columns.
func table(stdout io.Writer, head string, rows func(w io.Writer)) {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, head)
	rows(w)
	w.Flush()
}

// oneLineEach is oneLine for text of several lines.
func oneLineEach(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = oneLine(l)
	}
	return strings.Join(lines, "\n")
}

// oneLine keeps what others have written from breaking a table or a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

func describeCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Name:      "describe",
		Usage:     "show one function and its workers",
		UsageText: "describe [flags] NAME",
		Description: `  fbus describe wc

A note says why a worker has nothing ready for a call just now. JSON fields:
those of fbus ls, and schema, a JSON Schema of the arguments, if there is one.`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() != 1 {
				return usage("describe what? one name is due").withHint("fbus describe NAME; fbus ls shows what is offered")
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
	list, err := decodeLines[node.FunctionInfo](data)
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

func psCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Name:      "ps",
		Usage:     "list the calls that run or wait",
		UsageText: "ps [flags]",
		Description: `  fbus ps

JSON fields: call (its id), function, state (queued, running, or ending: nobody
waits for it, but its program is not gone yet), caller, worker, age and ran
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
	data, err := o.ask("fbus.calls")
	if err != nil {
		return err
	}
	if o.json {
		_, err := stdout.Write(data)
		return err
	}
	list, err := decodeLines[node.CallInfo](data)
	if err != nil || len(list) == 0 {
		return err
	}
	table(stdout, "CALL\tFUNCTION\tSTATE\tCALLER\tWORKER\tAGE", func(w io.Writer) {
		for _, c := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Call, c.Function, c.State, c.Caller, orDash(oneLine(c.Worker)), age(c.Age))
		}
	})
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age is a time in seconds, for people.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func cancelCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Name:      "cancel",
		Usage:     "end a call or a posted job",
		UsageText: "cancel [flags] ID…",
		Description: `A call's caller gets status 143; its program gets TERM and, after the grace, KILL.
A job is ended if it runs, and is not run again unless fbus retry says so.

  fbus cancel $(fbus ps --json | jq -r .call)
  fbus cancel "$job"

With --json the calls as they were, with the fields of fbus ps, and the jobs with
those of fbus jobs.`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			if ctx.NArg() == 0 {
				return usage("cancel what? the id of a call or of a job is due").withHint("fbus ps shows calls, fbus jobs shows jobs")
			}
			return cancel(o, ctx.Args().Slice(), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// cancel ends every call of the list that there is; the first failure is the
// command's, the others are said.
func cancel(o *lookOptions, ids []string, stdout, stderr io.Writer) error {
	var first error
	for _, id := range ids {
		was, err := o.ask("fbus.cancel", id)
		if o.json {
			stdout.Write(was)
		}
		if err != nil && first != nil {
			say(stderr, err.Error())
		} else if err != nil {
			first = err
		}
	}
	return first
}

func statusCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Name:      "status",
		Usage:     "show which node is talked to, and why",
		UsageText: "status [flags]",
		Description: `  fbus status

The node is that of --node, FBUS_NODE or FBUS_TICKET; or the one live socket of this
user in /tmp, the machine's (/run/fbus/functionbus.sock), a network that was joined.

JSON fields: address, why (how it was chosen), name, network, instance, pid,
version, protocol, started, time (its clock), sessions, functions, calls, draining,
listens (for other machines), caller and rights (who asks, and what that one may do;
null: everything). A guest gets no pid, and the numbers of what is its own.`,
		Flags: o.flags(),
		Action: func(ctx *cli.Context) error {
			if err := noOperands(ctx); err != nil {
				return err
			}
			return status(o, ctx.App.Writer)
		},
	}
}

// statusInfo is what fbus status --json prints.
type statusInfo struct {
	Address string `json:"address"` // where we reach it
	Why     string `json:"why"`     // how it was chosen
	node.NodeInfo
}

func status(o *lookOptions, stdout io.Writer) error {
	ctx := context.Background()
	c, p, err := connect(ctx, o.node, o.wait, &bus.DialOptions{Name: hostname()})
	if err != nil {
		return err
	}
	defer c.Close()
	data, err := output(ctx, c, "fbus.nodes", bus.Args{})
	if err != nil {
		return troubled(err, o.node)
	}
	list, err := decodeLines[node.NodeInfo](data)
	if err != nil || len(list) == 0 {
		return fail(exitInternal, "the node does not say who it is")
	}
	n := list[0]
	if o.json {
		return json.NewEncoder(stdout).Encode(statusInfo{p.addr, p.why, n})
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	if n.PID > 0 {
		fmt.Fprintf(w, "node\t%s, pid %d, version %s\n", oneLine(n.Name), n.PID, n.Version)
	} else { // not a guest's business
		fmt.Fprintf(w, "node\t%s, version %s\n", oneLine(n.Name), n.Version)
	}
	fmt.Fprintf(w, "address\t%s\n", p.addr)
	fmt.Fprintf(w, "chosen by\t%s\n", p.why)
	fmt.Fprintf(w, "network\t%s\n", n.Network)
	for _, addr := range n.Listens {
		fmt.Fprintf(w, "listens\t%s, ticket holders only\n", addr)
	}
	fmt.Fprintf(w, "you are\t%s: may %s\n", n.Caller, mayDo(n.Rights))
	fmt.Fprintf(w, "up\t%s\n", age(time.Since(n.Started).Seconds()))
	fmt.Fprintf(w, "functions\t%d\n", n.Functions)
	fmt.Fprintf(w, "calls\t%d queued or running\n", n.Calls)
	if n.Draining {
		fmt.Fprintf(w, "state\tdraining\n")
	}
	return w.Flush()
}

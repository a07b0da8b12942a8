package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"

	"github.com/urfave/cli/v2"
)

func statusCommand() *cli.Command {
	o := &lookOptions{}
	return &cli.Command{
		Usage:     "show which node is talked to, and why",
		UsageText: "status [flags]",
		Description: `  fbus status

The node is that of --node, FBUS_NODE or FBUS_TICKET; or the one live socket of this
user in /tmp, the machine's (/run/fbus/functionbus.sock), a network that was joined.

JSON fields: address, why (how it was chosen), name, network, instance, pid,
version, protocol, started, time (its clock), sessions, functions, calls, draining, no_posts (why
nothing can be posted), listens (for other machines), caller and rights (who asks, and what that one may do;
null: everything). A guest gets no pid, and the numbers of what is its own.`,
		Flags: append(o.flags()[:4], verboseFlag(&o.verbose, "show counters too (administrators)")),
		Action: func(ctx *cli.Context) error {
			if err := noOperands(ctx); err != nil {
				return err
			}
			return status(o, ctx.App.Writer)
		},
	}
}

// statusInfo is the output of fbus status --json.
type statusInfo struct {
	Address string `json:"address"` // where we reach it
	Why     string `json:"why"`     // how it was chosen
	bus.NodeInfo
}

func status(o *lookOptions, stdout io.Writer) error {
	ctx := context.Background()
	c, p, err := connect(ctx, o.node, o.wait, &bus.Options{Name: hostname()})
	if err != nil {
		return err
	}
	defer c.Close()
	data, err := output(ctx, c, "fbus.nodes", args.Args{})
	if err != nil {
		return troubled(err, o.node)
	}
	list, err := decodeLines[bus.NodeInfo](data)
	if err != nil || len(list) == 0 {
		return fail(args.CodeInternal, "the node does not say who it is")
	}
	n := list[0]
	if o.json {
		return json.NewEncoder(stdout).Encode(statusInfo{p.Addr.String(), p.Why, n})
	}
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	pid := "" // not a guest's business
	if n.PID > 0 {
		pid = fmt.Sprintf(", pid %d", n.PID)
	}
	fmt.Fprintf(w, "node\t%s%s, version %s\n", oneLine(n.Name), pid, n.Version)
	fmt.Fprintf(w, "address\t%s\n", p.Addr)
	fmt.Fprintf(w, "chosen by\t%s\n", p.Why)
	fmt.Fprintf(w, "network\t%s\n", n.Network)
	for _, addr := range n.Listens {
		fmt.Fprintf(w, "listens\t%s, ticket holders only\n", addr)
	}
	fmt.Fprintf(w, "you are\t%s: may %s\n", n.Caller, mayDo(n.Rights))
	fmt.Fprintf(w, "up\t%s\n", age(time.Since(n.Started).Seconds()))
	fmt.Fprintf(w, "functions\t%d\n", n.Functions)
	fmt.Fprintf(w, "calls\t%d queued or running\n", n.Calls)
	if n.NoPosts != "" {
		fmt.Fprintf(w, "posts\tnone: %s\n", oneLine(n.NoPosts))
	}
	if n.Draining {
		fmt.Fprintf(w, "state\tdraining\n")
	}
	if o.verbose {
		if err := showMetrics(ctx, c, w); err != nil && !errors.Is(err, bus.ErrDenied) { // a guest sees none
			return troubled(err, o.node)
		}
	}
	return w.Flush()
}

// showMetrics prints the main counters and gauges of a node.
func showMetrics(ctx context.Context, c *bus.Client, w io.Writer) error {
	data, err := output(ctx, c, "fbus.metrics", args.Args{})
	if err != nil {
		return err
	}
	var m bus.Metrics
	if err := json.Unmarshal(data, &m); err != nil {
		return err
	}
	n := &m.Node
	fmt.Fprintf(w, "connections\t%d, refused: %s\n", n.Connections, counted(n.RefusedEntries))
	fmt.Fprintf(w, "refusals\t%s\n", counted(n.RefusedCalls))
	ended, failed := uint64(0), uint64(0)
	for _, f := range m.Functions {
		for _, e := range f.Calls {
			if ended += e.Count; e.Source != args.FromProgram.String() || e.Status != 0 {
				failed += e.Count
			}
		}
	}
	fmt.Fprintf(w, "ended\t%d calls, %d of them failed\n", ended, failed)
	fmt.Fprintf(w, "bytes\t%s in, %s out, %s held for peers\n", sizeText(int64(n.In)), sizeText(int64(n.Out)), sizeText(n.Buffers))
	if n.Jobs != nil {
		fmt.Fprintf(w, "jobs\t%s, %s on disk\n", counted(n.Jobs), sizeText(n.StoreBytes))
	}
	if n.TicketsExpiring >= 0 {
		fmt.Fprintf(w, "tickets\t%d expire within 30 days\n", n.TicketsExpiring)
	}
	fmt.Fprintf(w, "memory\t%s, %d goroutines\n", sizeText(int64(n.Memory)), n.Goroutines)
	return nil
}

// counted returns the total, and what it is made of.
func counted[N int64 | uint64](parts map[string]N) string {
	var total N
	var words []string
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		if total += parts[name]; parts[name] > 0 {
			words = append(words, fmt.Sprintf("%d %s", parts[name], name))
		}
	}
	if len(words) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", total, strings.Join(words, ", "))
}

// mayDo describes rights for people: may …
func mayDo(r *trust.Rights) string {
	switch {
	case r == nil:
		return "do everything"
	case r.Empty():
		return "do nothing"
	case r.Admin:
		without := *r
		without.Admin = false
		return strings.TrimPrefix(mayDo(&without)+", administer the node", "do nothing, ")
	}
	return r.String()
}

// sizeText is a number of bytes for a person.
func sizeText(n int64) string {
	const units = "KMGT"
	size, unit := float64(n), ""
	for i := 0; size >= 1000 && i < len(units); i++ {
		size, unit = size/1024, units[i:i+1]
	}
	if unit == "" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f%s", size, unit)
}

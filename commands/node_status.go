package commands

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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
		Name:      "status",
		Usage:     "show which node is talked to, and why",
		UsageText: "status [flags]",
		Description: `  fbus status

The node is that of --node, FBUS_NODE or FBUS_TICKET; or the one live socket of this
user in /tmp, the machine's (/run/fbus/functionbus.sock), a network that was joined.

JSON fields: address, why (how it was chosen), name, network, instance, pid,
version, protocol, started, time (its clock), sessions, functions, calls, draining, no_posts (why
nothing can be posted), listens (for other machines), caller and rights (who asks, and what that one may do;
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
	if n.PID > 0 {
		fmt.Fprintf(w, "node\t%s, pid %d, version %s\n", oneLine(n.Name), n.PID, n.Version)
	} else { // not a guest's business
		fmt.Fprintf(w, "node\t%s, version %s\n", oneLine(n.Name), n.Version)
	}
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
	return w.Flush()
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

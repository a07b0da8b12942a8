package commands

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
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
version, protocol, started, time (its clock), sessions, functions, calls, draining, held (functions and workers), no_posts (why
nothing can be posted), listens (for other machines), trust (at a node
that is not the network's first: first, away, number, age, from, revoked, max_age, shut, until, identity), mesh
(for administrators, with fbus mesh: node, nats, nats_error, calls, peers: name, reach, error, functions, calls, heard, clock, twin), caller and rights (who asks, and what that one may do;
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
	Mesh *bus.MeshInfo `json:"mesh,omitempty"` // nil: none is connected
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
	mesh, silent := nodeMesh(ctx, c, &n)
	if o.json {
		return printJSON(stdout, statusInfo{p.Addr.String(), p.Why, n, mesh})
	}
	pid := "" // not a guest's business
	if n.PID > 0 {
		pid = fmt.Sprintf(", pid %d", n.PID)
	}
	var m *bus.Metrics
	if o.verbose {
		if m, err = nodeMetrics(ctx, c); err != nil && !errors.Is(err, bus.ErrDenied) { // a guest sees none
			return troubled(err, o.node)
		}
	}
	facts(stdout, func(fact func(string, string, ...any)) {
		fact("node", "%s%s, version %s", n.Name, pid, n.Version)
		fact("address", "%s", p.Addr)
		fact("chosen by", "%s", p.Why)
		fact("network", "%s", n.Network)
		for _, addr := range n.Listens {
			fact("listens", "%s, ticket holders only", addr)
		}
		if t := n.Trust; t != nil {
			showTrust(t, fact)
		}
		switch {
		case mesh != nil:
			showMesh(mesh, fact)
		case silent != nil:
			fact("mesh", "does not answer: %v", silent)
		}
		fact("you are", "%s: may %s", n.Caller, mayDo(n.Rights))
		fact("up", "%s", age(time.Since(n.Started).Seconds()))
		fact("functions", "%d", n.Functions)
		fact("calls", "%d queued or running", n.Calls)
		if n.NoPosts != "" {
			fact("posts", "none: %s", n.NoPosts)
		}
		if n.Held > 0 {
			fact("held", "%d (see fbus hold)", n.Held)
		}
		if n.Draining {
			fact("state", "draining")
		}
		if m != nil {
			showMetrics(m, fact)
		}
	})
	return nil
}

// meshTime bounds the answer of a mesh.
const meshTime = 2 * time.Second

// nodeMesh asks the mesh of the node, nil if there is none.
func nodeMesh(ctx context.Context, c *bus.Client, n *bus.NodeInfo) (*bus.MeshInfo, error) {
	if n.Rights != nil && !n.Rights.Admin { // others are denied it, and the node logs that
		return nil, nil
	}
	// A call of a function that nobody offers would count as refused.
	if there, err := output(ctx, c, "fbus.functions", args.List(bus.MeshFunction)); err != nil || len(there) == 0 {
		return nil, nil
	}
	var text bytes.Buffer
	m := &bus.MeshInfo{}
	_, err := c.Call(ctx, &bus.Request{Function: bus.MeshFunction, Stdout: &text, Timeout: meshTime})
	switch {
	case errors.Is(err, bus.ErrDeadline):
		err = fail(args.CodeDeadline, "no answer within %s", meshTime)
	case err == nil:
		err = json.Unmarshal(text.Bytes(), m)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// showMesh prints what a mesh knows. Some of that is what others have told it.
func showMesh(m *bus.MeshInfo, fact func(name, format string, a ...any)) {
	by := "NATS at " + m.NATS
	if m.NATS == "" {
		by = "not connected to NATS"
		if m.NATSError != "" {
			by += ": " + m.NATSError
		}
	}
	fact("mesh", "node %s with %s, %s", args.Shown(m.Node), plural(len(m.Peers), "other node"), args.OneLine(by))
	for _, p := range m.Peers {
		reach := "by " + p.Reach + ", " + plural(p.Functions, "function") + ", " + plural(p.Calls, "call")
		if p.Reach == "" {
			reach = "not reached: " + p.Error
		}
		if p.Twin {
			reach += "; another node has this name, too"
		}
		fact("", "%s %s", args.Shown(p.Name), args.OneLine(reach))
	}
}

// showTrust prints what a node that is not its network's first has of the first one.
func showTrust(t *trust.SecondInfo, fact func(name, format string, a ...any)) {
	state := "connected"
	if t.Away != "" {
		state = "away: " + t.Away
	}
	fact("first node", "%s, %s", strings.Join(t.First, ", "), state)
	if t.Number > 0 {
		fact("revoked", "%s, by list %d, %s old%s", plural(t.Revoked, "serial"), t.Number, age(t.Age), listSource(t))
	}
	if left := time.Until(t.Until); left < 20*24*time.Hour { // it should have been renewed
		fact("certificate", "of the node: until %s", localTime(t.Until))
	}
	if t.Shut != "" {
		fact("shut", "%s", t.Shut)
	}
	if t.Identity != "" {
		fact("identity", "FBUS_TICKET=%s, for companions of this node", args.Quote(t.Identity))
	}
}

// listSource says where a node has its list of revoked tickets from.
func listSource(t *trust.SecondInfo) string {
	switch t.From {
	case trust.FromFirst:
		return ", from the first node"
	case trust.FromRelay:
		return ", over the mesh"
	case trust.FromDisk:
		return ", kept on the disk"
	}
	return ""
}

func nodeMetrics(ctx context.Context, c *bus.Client) (*bus.Metrics, error) {
	data, err := output(ctx, c, "fbus.metrics", args.Args{})
	if err != nil {
		return nil, err
	}
	m := &bus.Metrics{}
	return m, json.Unmarshal(data, m)
}

// showMetrics prints the main counters and gauges of a node.
func showMetrics(m *bus.Metrics, fact func(name, format string, a ...any)) {
	n := &m.Node
	fact("connections", "%d, refused: %s", n.Connections, counted(n.RefusedEntries))
	fact("refusals", "%s", counted(n.RefusedCalls))
	ended, failed := uint64(0), uint64(0)
	for _, f := range m.Functions {
		for _, e := range f.Calls {
			if ended += e.Count; e.Source != args.FromProgram.String() || e.Status != 0 {
				failed += e.Count
			}
		}
	}
	fact("ended", "%d calls, %d of them failed", ended, failed)
	fact("bytes", "%s in, %s out, %s held for peers", sizeText(int64(n.In)), sizeText(int64(n.Out)), sizeText(n.Buffers))
	if n.Jobs != nil {
		fact("jobs", "%s, %s on disk", counted(n.Jobs), sizeText(n.StoreBytes))
	}
	if n.TicketsExpiring >= 0 {
		fact("tickets", "%d expire within 30 days", n.TicketsExpiring)
	}
	fact("memory", "%s, %d goroutines", sizeText(int64(n.Memory)), n.Goroutines)
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
	if r == nil {
		return "do everything"
	}
	var may []string
	if functions := (trust.Rights{Call: r.Call, Offer: r.Offer}); !functions.Empty() {
		may = append(may, functions.String())
	}
	switch {
	case r.Admin:
		may = append(may, "administer the node")
	case r.Monitor:
		may = append(may, "see what others do")
	}
	if r.Relay {
		may = append(may, "make calls for others")
	}
	return cmp.Or(strings.Join(may, ", "), "do nothing")
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

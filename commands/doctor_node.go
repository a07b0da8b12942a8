package commands

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
)

// node asks the node for its identity and ours. An invitation has no right to ask.
func (x *examination) node(ctx context.Context) (*bus.NodeInfo, bool) {
	name, network := x.client.Node()
	if x.place.Identity != nil && x.place.Identity.Ticket != nil && x.place.Identity.Ticket.Joining {
		x.ok("node", "%s of network %s", name, network)
		x.skip("clock", "an invitation may not ask the node for its time")
		return nil, true
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	asked := time.Now()
	data, err := output(ctx, x.client, "fbus.nodes", args.Args{})
	if err == nil && len(data) == 0 {
		err = fail(args.CodeInternal, "the node did not identify itself")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = &args.Error{Code: args.CodeNoNode, Message: fmt.Sprintf("no answer within %s", formatDuration(askTime))}
	}
	if err != nil {
		return nil, x.fail("node", err)
	}
	took := time.Since(asked)
	list, err := decodeLines[bus.NodeInfo](data)
	if err != nil || len(list) != 1 {
		return nil, x.fail("node", fail(args.CodeInternal, "the node did not identify itself"))
	}
	n := &list[0]
	if n.Draining {
		return nil, x.fail("node", &args.Error{Code: args.CodeDraining, Message: fmt.Sprintf("%s of network %s is shutting down", n.Name, n.Network)})
	}
	x.ok("node", "%s of network %s, version %s, up for %s", n.Name, n.Network, n.Version, age(n.Time.Sub(n.Started).Seconds()))
	if x.place.Identity != nil {
		x.clock(n, took)
	}
	return n, true
}

// posts warns if nothing can be posted. A call would still succeed.
func (x *examination) posts(n *bus.NodeInfo) bool {
	if n.NoPosts != "" {
		x.warn("store", "the stderr of fbus serve has the reason; fbus purge makes room", "nothing can be posted: %s", n.NoPosts)
	}
	return true
}

// askTime bounds a question to a node.
const askTime = 10 * time.Second

// invitation checks whether it can be exchanged. A call with it is always denied.
func (x *examination) invitation(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	id := x.place.Identity
	_, err := output(ctx, x.client, "fbus.join", args.Args{})
	if err == nil {
		x.fail("rights", id.Check())
		return
	}
	f := explain(err)
	switch f.Code {
	case args.CodeUsed:
		if hint := id.Exchanged(); hint != "" {
			f.Hint = hint
		}
	case args.CodeUsage: // an older node does not report that
		f = explain(id.Check())
		f.Hint += "; if it was used before, ask for a new one"
	}
	x.fail("rights", f)
}

// rights checks whether this identity may call the function.
func (x *examination) rights(n *bus.NodeInfo) bool {
	may := mayDo(n.Rights)
	switch name := x.o.name; {
	case name == "", n.Rights == nil, n.Rights.MayCall(name), node.ForAll(name):
		x.ok("rights", "%s may %s", n.Caller, may)
		return true
	case n.Rights.MayOffer(name):
		return x.fail("rights", &args.Error{Code: args.CodeDenied, Message: fmt.Sprintf("%s may offer %s but not call it: it may %s", n.Caller, name, may), Hint: askFor(name)})
	default:
		return x.fail("rights", &args.Error{Code: args.CodeDenied, Message: fmt.Sprintf("%s may not call %s: it may %s", n.Caller, name, may), Hint: askFor(name)})
	}
}

func askFor(name string) string {
	allows := []string{"fbus", "invite", "--call", name}
	if strings.HasPrefix(name, "fbus.") { // no glob matches these
		allows = []string{"fbus", "invite", "--admin"}
	}
	return "ask for a ticket that allows it: " + args.Quote(allows...)
}

// function checks whether the function is offered.
func (x *examination) function(ctx context.Context) {
	name := x.o.name
	if name == "" {
		x.skip("function", "no function named: fbus doctor NAME checks one")
		x.skip("workers", "no function named")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	data, err := output(ctx, x.client, "fbus.functions", args.List(name))
	if err != nil {
		x.fail("function", err)
		return
	}
	list, err := decodeLines[bus.FunctionInfo](data)
	if err != nil {
		x.fail("function", err)
		return
	}
	if len(list) == 0 || len(list[0].Workers) == 0 {
		f := explain(&args.Error{Code: args.CodeNoFunction, Message: name + ": no such function: no worker offers it"})
		if len(list) > 0 && list[0].Queued > 0 {
			f.Message += fmt.Sprintf("; %s for it", plural(list[0].Queued, "call")+" wait")
		}
		x.fail("function", f)
		return
	}
	f := &list[0]
	x.ok("function", "%s is offered by %s", name, plural(len(f.Workers), "worker"))
	x.workers(f)
}

// workers checks whether a call would start at once.
func (x *examination) workers(f *bus.FunctionInfo) {
	free, notes := 0, ""
	for _, w := range f.Workers {
		free += max(0, w.Slots-w.Busy)
		if w.Note != "" && notes == "" {
			notes = fmt.Sprintf("%s: %s", w.Name, w.Note)
		}
	}
	switch {
	case free == 0:
		x.fail("workers", &args.Error{Code: args.CodeBusy,
			Message: fmt.Sprintf("%d of %s free, %s: a call would have to wait", free, plural(f.Slots, "slot"), queued(f.Queued)),
			Hint:    "fbus ps shows the calls; offering the function again, here or elsewhere, adds slots; fbus call -w 1m waits a minute"})
	case notes != "":
		x.warn("workers", join("fbus", "describe", f.Name)+" shows them", "%d of %s free; %s", free, plural(f.Slots, "slot"), notes)
	default:
		x.ok("workers", "%d of %s free", free, plural(f.Slots, "slot"))
	}
}

func queued(n int) string {
	if n == 1 {
		return "1 call waits"
	}
	return fmt.Sprintf("%d calls wait", n)
}

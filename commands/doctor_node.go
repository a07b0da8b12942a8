package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/trust"
)

// node asks the node for its identity and ours. An invitation has no right to ask.
func (x *examination) node() (*bus.NodeInfo, bool) {
	name, network := x.client.Node()
	if x.place.Identity != nil && x.place.Identity.Ticket != nil && x.place.Identity.Ticket.Joining {
		x.ok("node", "%s of network %s", name, network)
		x.skip("clock", "an invitation may not ask the node for its time")
		return nil, true
	}
	asked := time.Now()
	data, err := x.ask("fbus.nodes", args.Args{})
	if err == nil && len(data) == 0 {
		err = fail(args.CodeInternal, "the node did not identify itself")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fail(args.CodeNoNode, "no answer within %s", formatDuration(askTime))
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
		return nil, x.fail("node", fail(args.CodeDraining, "%s of network %s is shutting down", n.Name, n.Network))
	}
	x.ok("node", "%s of network %s, version %s, up for %s", n.Name, n.Network, n.Version, age(n.Time.Sub(n.Started).Seconds()))
	if x.place.Identity != nil {
		x.clock(n, took)
	}
	if n.NoPosts != "" { // a call would still succeed
		x.warn("store", storeHint(n.NoPosts), "nothing can be posted: %s", n.NoPosts)
	}
	if n.Trust != nil {
		x.firstNode(n.Trust)
	}
	x.mesh(n)
	return n, true
}

// firstNode checks how a second node stands with the network's first one.
func (x *examination) firstNode(t *trust.SecondInfo) {
	const hint = "is the first node running, and can it be reached from here? fbus status shows the state; fbus log at the first node shows what it refused"
	list := fmt.Sprintf("this node's list of revoked tickets is %s old%s", age(t.Age), listSource(t))
	switch {
	case t.Shut != "":
		x.warn("first node", hint, "%s", t.Shut)
	case t.Away != "":
		x.warn("first node", hint, "%s: the first node, %s, cannot be reached: %s", list, strings.Join(t.First, ", "), t.Away)
	default:
		x.ok("first node", "%s is connected; %s", strings.Join(t.First, ", "), list)
	}
}

// mesh checks what the mesh of the node has to say. Calls at this node succeed without it.
func (x *examination) mesh(n *bus.NodeInfo) {
	m, err := nodeMesh(context.Background(), x.client, n)
	switch {
	case err != nil:
		x.warn("mesh", "is its process stopped? fbus mesh has to run beside the node", "the mesh of this node does not answer: %v", args.Plain(err))
		return
	case m == nil && n.Trust != nil && (n.Rights == nil || n.Rights.Admin):
		x.skip("mesh", "none runs beside this node: calls stay here")
		return
	case m == nil:
		return
	}
	if m.NATS == "" {
		x.warn("mesh", "does the NATS server run, can it be reached from here, and does it admit the mesh? The mesh tries again all the time", "not connected to NATS: %s; new calls stay at this node", cmp.Or(m.NATSError, "no answer"))
	} else {
		x.ok("mesh", "node %s with %s, %s", m.Node, plural(len(m.Peers), "other node"), "NATS at "+m.NATS)
	}
	twins := map[string][]string{} // by name: how each is reached
	twins["@"+m.Node] = []string{"this node"}
	for _, p := range m.Peers {
		twins[p.Name] = append(twins[p.Name], cmp.Or(p.Reach, "one that is not reached"))
	}
	for _, p := range m.Peers {
		if p.Reach == "" {
			x.warn("mesh", "calls do not go there. fbus doctor at that node shows its side; fbus mesh --advertise HOST:PORT there says where it is reached", "%s is left out: %s", p.Name, cmp.Or(p.Error, "not connected yet"))
		}
		if all := twins[p.Name]; p.Twin && len(all) > 1 {
			x.warn("mesh", "fbus mesh --name NAME at one of them", "more than one node is called %s: %s; calls for that name may go to any of them", p.Name, strings.Join(all, ", "))
			delete(twins, p.Name)
		}
		if off := time.Duration(p.Clock * float64(time.Second)); off.Abs() >= clockLimit {
			way := "ahead of"
			if off < 0 {
				way = "behind"
			}
			x.warn("mesh", "check date -u at both nodes: certificates and the age of lists go by either clock", "the clock of %s is %s %s this node's", p.Name, age(off.Abs().Seconds()), way)
		}
	}
}

// clockLimit is the difference of two clocks from which doctor warns.
const clockLimit = time.Minute

// clock compares the clock of the node with ours. took is the time of the request.
func (x *examination) clock(n *bus.NodeInfo, took time.Duration) {
	if n.Time.IsZero() {
		x.skip("clock", "the node does not report its time")
		return
	}
	here := trust.Now().Add(-took / 2)
	off := here.Sub(n.Time)
	if off.Abs() < time.Second+took {
		x.ok("clock", "same as the node's")
		return
	}
	way := "ahead of"
	if off < 0 {
		way = "behind"
	}
	what := fmt.Sprintf("this clock is %s %s the node's: %s here, %s there", age(off.Abs().Seconds()), way, here.UTC().Format(time.RFC3339), n.Time.Format(time.RFC3339))
	if off.Abs() < clockLimit {
		x.ok("clock", "%s", what)
		return
	}
	x.warn("clock", "check date -u at both ends: certificates are checked against either clock, and may be refused early or late", "%s", what)
}

// askTime bounds a question to a node.
const askTime = 10 * time.Second

// ask calls one of the node's own functions.
func (x *examination) ask(name string, a args.Args) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	return output(ctx, x.client, name, a)
}

// invitation checks whether it can be exchanged. A call with it is always denied.
func (x *examination) invitation() {
	id := x.place.Identity
	_, err := x.ask("fbus.join", args.Args{})
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
	name, may := x.o.name, mayDo(n.Rights)
	if name == "" || n.Rights == nil || n.Rights.MayCall(name) || node.ForAll(name) {
		x.ok("rights", "%s may %s", n.Caller, may)
		return true
	}
	not := "may not call " + name
	if n.Rights.MayOffer(name) {
		not = "may offer " + name + " but not call it"
	}
	hint := join("fbus", "invite", "--call", name)
	if strings.HasPrefix(name, "fbus.") { // no glob matches these
		hint = "fbus invite --admin"
	}
	denied := fail(args.CodeDenied, "%s %s: it may %s", n.Caller, not, may).WithHint("ask for a ticket that allows it: %s", hint)
	return x.fail("rights", suggest(x.client, denied, name))
}

// function checks whether the function is offered.
func (x *examination) function() {
	name := x.o.name
	if name == "" {
		x.skip("function", "no function named: fbus doctor NAME checks one")
		x.skip("workers", "no function named")
		return
	}
	data, err := x.ask("fbus.functions", args.List(name))
	list, bad := decodeLines[bus.FunctionInfo](data)
	if err = cmp.Or(err, bad); err != nil {
		x.fail("function", err)
		return
	}
	if len(list) == 0 || len(list[0].Workers) == 0 {
		f := explain(suggest(x.client, fail(args.CodeNoFunction, "%s: no such function: no worker offers it", name), name))
		if len(list) > 0 && list[0].Queued > 0 {
			f.Message += fmt.Sprintf("; %s for it", plural(list[0].Queued, "call")+" wait")
		}
		if len(list) > 0 && list[0].Held {
			f.Message += "; " + bus.HeldNote(name)
		}
		x.fail("function", f)
		return
	}
	f := &list[0]
	offered := fmt.Sprintf("%s is offered by %s", name, plural(len(f.Workers), "worker"))
	if f.Held { // calls are not
		x.warn("function", "", "%s; %s", offered, bus.HeldNote(name))
	} else {
		x.ok("function", "%s", offered)
	}
	x.workers(f)
}

// workers checks whether a call would start at once.
func (x *examination) workers(f *bus.FunctionInfo) {
	free, notes := 0, ""
	for _, w := range f.Workers {
		if !w.Held && !w.Relay {
			free += max(0, w.Slots-w.Busy)
		}
		if w.Note != "" && notes == "" {
			notes = fmt.Sprintf("%s: %s", w.Name, w.Note)
		}
	}
	switch {
	case strings.HasPrefix(f.Waits, node.AllHeld):
		x.fail("workers", fail(args.CodeBusy, "%s: a call would have to wait: all its workers are held", queued(f.Queued)).WithHint("%s", strings.TrimPrefix(f.Waits, node.AllHeld)))
	case free == 0 && relayed(f):
		x.ok("workers", "%d of %s free here; calls also go to other nodes, %s", free, plural(f.Slots, "slot"), plural(f.Elsewhere, "slot"))
	case f.Slots == 0 && notes != "":
		x.fail("workers", noneStarts(f).WithHint("%s shows them; a worker looks again by itself", join("fbus", "describe", f.Name)))
	case free == 0 || strings.HasPrefix(f.Waits, node.NoFreeSlot):
		x.fail("workers", fail(args.CodeBusy, "%d of %s free, %s: a call would have to wait: %s", free, plural(f.Slots, "slot"), queued(f.Queued), cmp.Or(f.Waits, node.NoFreeSlot)).
			WithHint("fbus ps shows the calls; offering the function again, here or elsewhere, adds slots; fbus call -w 1m waits a minute"))
	case notes != "":
		x.warn("workers", join("fbus", "describe", f.Name)+" shows them", "%d of %s free; %s", free, plural(f.Slots, "slot"), notes)
	case f.Waits != "": // calls start
		x.warn("workers", storeHint(f.Waits), "%d of %s free; its jobs wait: %s", free, plural(f.Slots, "slot"), f.Waits)
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

// storeHint says what helps when the store of jobs lets nothing run or be posted, for that reason.
func storeHint(why string) string {
	if strings.Contains(why, "the store of jobs is full") {
		return "fbus purge --state done, or --state dead, makes room"
	}
	return "the stderr of fbus serve has the reason"
}

package node

import (
	"cmp"
	"context"
	"encoding/json"
	"iter"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// pace is how a long answer is made: how many things are described at once, since those that a slow
// reader has not taken yet take no memory, and for how long that holds the lock.
type pace struct {
	portion int
	hold    time.Duration
}

// Under a flood each turn at the lock takes tens of milliseconds, so an administrator's list takes few.
var (
	slowPace  = pace{64, 200 * time.Microsecond}
	adminPace = pace{4096, time.Millisecond}
)

// pace returns how a list is made for a peer.
func (p *Peer) pace() pace {
	if p.admin() {
		return adminPace
	}
	return slowPace
}

// maxNames bounds the names in a call of fbus.functions.
const maxNames = 1000

// eachLocked calls f for 0 to count-1 with the lock held, which it releases again and again.
func (n *Node) eachLocked(pace pace, count int, f func(i int)) {
	for i := 0; i < count; {
		n.mu.Lock()
		began := time.Now()
		for first := i; i < count && (i == first || i%16 != 0 || time.Since(began) < pace.hold); i++ {
			f(i)
		}
		n.mu.Unlock()
		runtime.Gosched()
	}
}

// Functions lists what is offered, sorted by name; the node's own only if they
// are named.
func (n *Node) Functions(names ...string) []bus.FunctionInfo {
	return slices.AppendSeq([]bus.FunctionInfo{}, n.functionsFor(context.Background(), &Peer{}, names, adminPace))
}

// functionsFor yields of them what a peer sees. It stops when ctx ends.
func (n *Node) functionsFor(ctx context.Context, p *Peer, names []string, pace pace) iter.Seq[bus.FunctionInfo] {
	named := len(names) > 0
	if !named {
		names = n.known(true)
		if n.cfg.Jobs != nil {
			names = append(names, n.cfg.Jobs.Holds().Functions...)
		}
	}
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !p.sees(name) })
	slices.Sort(names)
	names = slices.Compact(names)
	return func(yield func(bus.FunctionInfo) bool) {
		for some := range slices.Chunk(names, pace.portion) {
			for _, f := range n.describe(ctx, p, some, named, pace) {
				if ctx.Err() != nil || present(&f) && !yield(f) {
					return
				}
			}
		}
	}
}

// present reports whether a function is listed: it is offered, called, or held.
func present(f *bus.FunctionInfo) bool { return len(f.Workers)+f.Queued > 0 || f.Held }

// blocked adds to a description why jobs of the function wait for the store.
func (n *Node) blocked(f *bus.FunctionInfo, p *Peer) {
	if n.cfg.Jobs == nil || reserved(f.Name) {
		return
	}
	if err := n.cfg.Jobs.Blocked(f.Name); err != nil {
		f.Waits = strings.TrimPrefix(f.Waits+"; "+p.told(err), "; ")
	}
}

// describe describes functions for a peer, also those that are not there. It stops when ctx ends.
func (n *Node) describe(ctx context.Context, p *Peer, names []string, schema bool, pace pace) []bus.FunctionInfo {
	list := make([]bus.FunctionInfo, len(names))
	type entry struct {
		at    int // in list
		since uint64
		offer *offer
		words bool // the offer describes the function
	}
	var entries []entry
	n.eachLocked(pace, len(names), func(i int) {
		f := &list[i]
		f.Name, f.Workers = names[i], []bus.WorkerInfo{}
		f.Waits = n.noSlot(f.Name, wire.On{})
		f.Held = n.cfg.Jobs != nil && n.cfg.Jobs.Holds().Function(f.Name)
		fn := n.functions[f.Name]
		if fn == nil || ctx.Err() != nil {
			return
		}
		all := slices.Concat(fn.offers.list, fn.relays.list, fn.stopped)
		here := slices.ContainsFunc(all, func(o *offer) bool { return !o.relay })
		for _, o := range all { // other nodes describe only what no worker here does: else parts of two descriptions would mix
			entries = append(entries, entry{i, o.since, o, o.relay != here})
		}
		f.Queued, f.On = fn.queue.n, fn.queue.selected()
		f.Done, f.Failed = fn.stats.totals()
		if n.source != nil {
			f.Ready, f.ReadyOn = n.source.Ready(f.Name), n.source.ReadyOn(f.Name)
		}
	})
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.since, b.since)) })
	n.eachLocked(pace, len(entries), func(i int) {
		if ctx.Err() == nil {
			e := &entries[i]
			e.offer.describe(&list[e.at], e.words, schema)
		}
	})
	for i := range list {
		n.blocked(&list[i], p)
	}
	return list
}

// known returns the names of functions that are offered, or called too, less the node's own.
func (n *Node) known(called bool) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := make([]string, 0, len(n.functions))
	for name, fn := range n.functions {
		if fn.counted || called && !reserved(name) {
			names = append(names, name)
		}
	}
	return names
}

// seen returns how many of the functions that are offered a peer sees. Those that see all ask often, as
// meshes do, and there may be many functions.
func (n *Node) seen(p *Peer) int {
	if p.seesAll() {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.offered
	}
	return len(slices.DeleteFunc(n.known(false), func(name string) bool { return !p.sees(name) }))
}

// describe adds the offer to the description of its function, with its own words if they count.
func (o *offer) describe(f *bus.FunctionInfo, words, schema bool) {
	if o.at[0] < 0 && o.stopped == nil {
		return
	}
	if o.relay {
		f.Elsewhere += max(o.elsewhere, o.slots)
		f.FreeElsewhere += max(0, o.free())
	} else {
		f.Slots += o.slots
		f.Busy += o.busy
		f.Free += max(0, o.free())
	}
	f.Note = cmp.Or(o.note, f.Note)
	f.Workers = append(f.Workers, o.info())
	if !words {
		return
	}
	f.Description = cmp.Or(o.description, f.Description)
	f.Arguments = cmp.Or(o.arguments, f.Arguments)
	f.Takes = o.takes
	if o.attributes != nil {
		f.Attributes = o.attributes
	}
	if schema && o.schema != "" {
		f.Schema = json.RawMessage(o.schema)
	}
}

func (o *offer) info() bus.WorkerInfo {
	status := 0
	if o.stopped != nil {
		status = o.stopped.Status()
	}
	return bus.WorkerInfo{
		CannotStart: status,
		Name:        o.session.name, ID: string(o.session.prefix), Identity: o.session.peer.Caller, Slots: o.slots, Busy: o.busy,
		Relay: o.relay, Elsewhere: o.elsewhere, Behind: o.behind, BehindHeld: o.behindHeld,
		Idempotent: o.idempotent, Description: o.description, Arguments: o.arguments, Takes: o.takes, Note: o.note, Attributes: o.attributes, Held: o.heldBy() != "",
	}
}

// callsFor yields what runs and waits and is a peer's business, oldest first, less the calls of
// the node's own functions. It stops when ctx ends.
func (n *Node) callsFor(ctx context.Context, p *Peer, pace pace) iter.Seq[bus.CallInfo] {
	var calls []*call
	add := func(c *call) {
		if c.fn.own == nil && p.watches(c) {
			calls = append(calls, c)
		}
	}
	n.mu.Lock()
	sessions := slices.Collect(maps.Values(n.sessions))
	n.mu.Unlock()
	n.eachLocked(pace, len(sessions), func(i int) { // a turn at the lock for each would take a minute under a flood
		s := sessions[i]
		if ctx.Err() != nil {
			return
		}
		if p.monitor() || s.peer.Caller == p.via() || s == n.forJobs {
			for _, c := range s.in {
				add(c)
			}
		}
		for _, c := range s.out {
			if c.state == orphaned {
				add(c)
			}
		}
	})
	slices.SortFunc(calls, func(a, b *call) int { return a.arrived.Compare(b.arrived) })
	return func(yield func(bus.CallInfo) bool) {
		for some := range slices.Chunk(calls, pace.portion) {
			var list []bus.CallInfo
			n.eachLocked(pace, len(some), func(i int) {
				if c := some[i]; c.state.live() {
					list = append(list, c.info())
				}
			})
			for _, i := range list {
				if ctx.Err() != nil || !yield(i) {
					return
				}
			}
		}
	}
}

func (c *call) info() bus.CallInfo {
	i := bus.CallInfo{Call: c.name(), Relayed: c.given.call, Function: c.fn.name, State: "queued", Caller: c.caller(), Job: c.job(), Age: time.Since(c.arrived).Seconds(),
		Worker: c.ranAt, Ran: c.ran.Seconds()}
	if c.offer != nil {
		i.State, i.Worker, i.Ran = "running", c.offer.session.name, time.Since(c.started).Seconds()
	}
	if c.state == orphaned {
		i.State = "ending"
	}
	i.Progress = c.progress.last()
	open := !c.state.ended()
	i.Input, i.Output, i.Stderr = c.flows[wire.Input].info(open && c.input == inputOpen), c.flows[wire.Output].info(open), c.flows[wire.Stderr].info(open)
	return i
}

func (f *flow) info(open bool) bus.StreamInfo {
	return bus.StreamInfo{Bytes: f.passed, Credit: f.out, Held: f.held, Open: open}
}

// Info describes the node.
func (n *Node) Info() bus.NodeInfo { return n.infoFor(&Peer{}) }

// infoFor describes the node as far as it is a peer's business: to a guest its
// numbers are those that the guest sees elsewhere.
func (n *Node) infoFor(p *Peer) bus.NodeInfo {
	functions := n.seen(p)
	noPosts := n.noPosts() // it may take a while
	var first *trust.SecondInfo
	if n.first != nil {
		first = n.first.info(p)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	i := bus.NodeInfo{
		Name: n.cfg.Name, Network: n.cfg.Network, Instance: n.instance, Version: n.cfg.Version, Protocol: wire.Major,
		Started: n.started, Draining: n.draining, Listens: []string{}, Functions: functions, Time: trust.Now().UTC(), Caller: p.Caller, Rights: p.rights(),
		Trust: first,
	}
	if noPosts != nil {
		i.NoPosts = p.told(noPosts)
	}
	if !p.admin() {
		if id := n.named(p.bearer()); id != nil {
			i.Sessions, i.Calls = len(id.sessions), id.calls
		}
		return i
	}
	i.Address, i.PID, i.Sessions, i.Calls = n.cfg.Address, os.Getpid(), 0, n.open
	for _, s := range n.sessions {
		if !s.internal {
			i.Sessions++
		}
	}
	if n.cfg.Jobs != nil {
		h := n.cfg.Jobs.Holds()
		i.Held = len(h.Functions) + len(h.On)
	}
	for _, a := range n.listening {
		i.Listens = append(i.Listens, a.String())
	}
	return i
}

// noPosts is why no call can be posted.
func (n *Node) noPosts() error {
	switch {
	case n.cfg.Jobs != nil:
		return n.cfg.Jobs.Room()
	case n.cfg.NoJobs != nil:
		return n.cfg.NoJobs
	}
	return nil
}

// cancelCall ends a call of the caller's, or any for an administrator, and answers what it was. One that
// the caller may not see looks absent.
func (q *asked) cancelCall(id string) error {
	n, p := q.node, q.peer
	var b wire.Batch
	defer b.Flush()
	n.mu.Lock()
	defer n.mu.Unlock()
	switch c := n.opened(id); {
	case c == nil || !p.watches(c):
		return args.Errorf(args.CodeBadInput, "no call has the id %s", args.Shown(id)).WithHint("fbus ps shows calls, fbus jobs shows jobs")
	case !p.owns(c):
		return q.denyOther("a call")
	case !p.alters(c.fn.name):
		return q.deny(c.fn.name)
	default:
		q.line(c.info())
		c.endFor(&b, args.CodeCancelled, "cancelled by fbus cancel")
		return nil
	}
}

func serveFunctions(ctx context.Context, q *asked) error {
	names, err := q.words(0, maxNames, "at most "+strconv.Itoa(maxNames)+" names")
	if err != nil {
		return err
	}
	for _, name := range names { // before look-up: denied and absent look alike
		if !q.peer.sees(name) {
			return q.deny(name)
		}
	}
	for f := range q.node.functionsFor(ctx, q.peer, names, q.peer.pace()) {
		if err := q.put(f); err != nil {
			return err
		}
	}
	return nil
}

func serveCalls(ctx context.Context, q *asked) error {
	for c := range q.node.callsFor(ctx, q.peer, q.peer.pace()) {
		if err := q.put(c); err != nil {
			return err
		}
	}
	return nil
}

func serveNodes(_ context.Context, q *asked) error {
	q.line(q.node.infoFor(q.peer))
	return nil
}

func serveCancel(ctx context.Context, q *asked) error {
	if q.hasObject() {
		if q.node.cfg.Jobs == nil {
			return badInput("this node has no jobs")
		}
		return cancelBatch(ctx, q)
	}
	words, err := q.words(1, 1, "one argument: the id of a call, as fbus.calls shows it")
	if err != nil {
		return err
	}
	if _, ok := jobs.ParseID(words[0]); ok && q.node.cfg.Jobs != nil {
		return cancelJob(ctx, q, words[0])
	}
	return q.cancelCall(words[0])
}

func badInput(format string, a ...any) error { return args.Errorf(args.CodeBadInput, format, a...) }

func usageError(format string, a ...any) error { return args.Errorf(args.CodeUsage, format, a...) }

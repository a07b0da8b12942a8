package node

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"sort"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// Functions lists what is offered, sorted by name; the node's own only if they
// are named.
func (n *Node) Functions(names ...string) []bus.FunctionInfo { return n.functionsFor(&Peer{}, names) }

// functionsFor lists of them what a peer sees.
func (n *Node) functionsFor(p *Peer, names []string) []bus.FunctionInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := []bus.FunctionInfo{}
	for _, fn := range n.functions {
		if len(fn.offers) == 0 && fn.queue.n == 0 {
			continue
		}
		if len(names) > 0 && !slices.Contains(names, fn.name) || len(names) == 0 && reserved(fn.name) {
			continue
		}
		if !p.sees(fn.name) {
			continue
		}
		list = append(list, fn.info(len(names) > 0))
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

func (fn *function) info(schema bool) bus.FunctionInfo {
	f := bus.FunctionInfo{Name: fn.name, Queued: fn.queue.n, Workers: []bus.WorkerInfo{}}
	f.Done, f.Failed = fn.stats.totals()
	for _, o := range fn.inOrder() {
		f.Slots += o.slots
		f.Busy += o.busy
		if o.description != "" {
			f.Description = o.description
		}
		if o.arguments != "" {
			f.Arguments = o.arguments
		}
		if o.note != "" {
			f.Note = o.note
		}
		if schema && o.schema != "" {
			f.Schema = json.RawMessage(o.schema)
		}
		f.Workers = append(f.Workers, bus.WorkerInfo{
			Name: o.session.name, ID: string(o.session.prefix), Identity: o.session.peer.Caller, Slots: o.slots, Busy: o.busy,
			Idempotent: o.idempotent, Description: o.description, Arguments: o.arguments, Note: o.note,
		})
	}
	return f
}

// callsFor lists what runs and waits and is a peer's business, oldest first, less the calls of
// the node's own functions.
func (n *Node) callsFor(p *Peer) []bus.CallInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := []bus.CallInfo{}
	add := func(c *call) {
		if !reserved(c.fn.name) && p.owns(c) {
			list = append(list, c.info())
		}
	}
	for _, s := range n.sessions {
		for _, c := range s.in {
			add(c)
		}
		for _, c := range s.out {
			if c.state == orphaned {
				add(c)
			}
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Age > list[j].Age })
	return list
}

func (c *call) info() bus.CallInfo {
	i := bus.CallInfo{Call: c.name(), Function: c.fn.name, State: "queued", Caller: c.caller(), Job: c.job(), Age: time.Since(c.arrived).Seconds()}
	if c.offer != nil {
		i.State, i.Worker, i.Ran = "running", c.offer.session.name, time.Since(c.started).Seconds()
	}
	if c.state == orphaned {
		i.State = "ending"
	}
	return i
}

// Info describes the node.
func (n *Node) Info() bus.NodeInfo { return n.infoFor(&Peer{}) }

// infoFor describes the node as far as it is a peer's business: to a guest its
// numbers are those that the guest sees elsewhere.
func (n *Node) infoFor(p *Peer) bus.NodeInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := bus.NodeInfo{
		Name: n.cfg.Name, Network: n.cfg.Network, Instance: n.instance, Version: n.cfg.Version, Protocol: wire.Major,
		Started: n.started, Draining: n.draining, Listens: []string{}, Time: trust.Now().UTC(), Caller: p.Caller, Rights: p.Rights,
	}
	if err := n.noPosts(); err != nil {
		i.NoPosts = p.told(err)
	}
	for name, fn := range n.functions {
		if !reserved(name) && len(fn.offers) > 0 && p.sees(name) {
			i.Functions++
		}
	}
	if !p.admin() {
		i.Sessions, i.Calls = n.callers[p.Caller], n.callsOf(p)
		return i
	}
	i.Address, i.PID, i.Sessions, i.Calls = n.cfg.Address, os.Getpid(), 0, n.open
	for _, s := range n.sessions {
		if !s.internal {
			i.Sessions++
		}
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

// callsOf counts a guest's own calls. n.mu is held.
func (n *Node) callsOf(p *Peer) (count int) {
	for _, s := range n.sessions {
		if s.peer.Caller != p.Caller {
			continue
		}
		for _, c := range s.in {
			if !reserved(c.fn.name) {
				count++
			}
		}
	}
	return count
}

// cancelFor ends the call of that id for its caller and returns what it was; ok is false if
// there is none that is the peer's business.
func (n *Node) cancelFor(p *Peer, id string) (was bus.CallInfo, ok bool) {
	var b wire.Batch
	defer b.Flush()
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.opener(id)
	if s == nil {
		return was, false
	}
	for _, c := range s.in {
		if c.name() == id && p.owns(c) {
			was = c.info()
			c.endFor(&b, args.CodeCancelled, "cancelled by fbus cancel")
			return was, true
		}
	}
	return was, false
}

func serveFunctions(_ context.Context, q *asked) error {
	names, err := q.Words()
	if err != nil {
		return badInput("%s: %v", q.Function, err)
	}
	for _, name := range names { // before look-up: denied and absent look alike
		if !q.peer.sees(name) {
			return q.deny(name)
		}
	}
	for _, f := range q.node.functionsFor(q.peer, names) {
		q.line(f)
	}
	return nil
}

func serveCalls(_ context.Context, q *asked) error {
	for _, c := range q.node.callsFor(q.peer) {
		q.line(c)
	}
	return nil
}

func serveNodes(_ context.Context, q *asked) error {
	q.line(q.node.infoFor(q.peer))
	return nil
}

func serveCancel(ctx context.Context, q *asked) error {
	words, err := q.words(1, 1, "one argument: the id of a call, as fbus.calls shows it")
	if err != nil {
		return err
	}
	if _, ok := jobs.ParseID(words[0]); ok && q.node.cfg.Jobs != nil {
		return cancelJob(ctx, q, words[0])
	}
	was, ok := q.node.cancelFor(q.peer, words[0])
	if !ok {
		return badInput("no call has the id %s", args.Shown(words[0]))
	}
	q.line(was)
	return nil
}

func badInput(format string, a ...any) error { return args.Errorf(args.CodeBadInput, format, a...) }

func usageError(format string, a ...any) error { return args.Errorf(args.CodeUsage, format, a...) }

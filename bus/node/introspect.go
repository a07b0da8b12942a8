package node

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"sort"
	"time"

	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// FunctionInfo is a line of fbus.functions.
type FunctionInfo struct {
	Name        string       `json:"name"`
	Description string       `json:"description"` // of the worker that gave one last
	Arguments   string       `json:"arguments"`   // how they arrive
	Slots       int          `json:"slots"`       // of all workers
	Busy        int          `json:"busy"`        // slots taken
	Queued      int          `json:"queued"`      // calls that wait for a slot
	Done        uint64       `json:"done"`        // calls that ended with status 0
	Failed      uint64       `json:"failed"`      // calls that ended otherwise
	Note        string       `json:"note"`        // why a worker has nothing ready; of the one that gave one last
	Workers     []WorkerInfo `json:"workers"`

	// Schema is a JSON Schema of the arguments, of the worker that gave one last.
	// Only functions that were asked for by name have it.
	Schema json.RawMessage `json:"schema,omitempty"`
}

// WorkerInfo is one offer of a function.
type WorkerInfo struct {
	Name        string `json:"name"`
	ID          string `json:"id"`       // of its connection; a call's on may be "#" and this
	Identity    string `json:"identity"` // who it is, as the node knows it: "uid:1000"
	Slots       int    `json:"slots"`
	Busy        int    `json:"busy"`
	Idempotent  bool   `json:"idempotent"`
	Description string `json:"description"`
	Arguments   string `json:"arguments"`
	Note        string `json:"note"` // why it has nothing ready; empty: all is well
}

// CallInfo is a line of fbus.calls.
type CallInfo struct {
	Call     string  `json:"call"`          // its id
	Function string  `json:"function"`      // its name
	State    string  `json:"state"`         // "queued", "running", or "ending": nobody waits, but its program is not gone yet
	Caller   string  `json:"caller"`        // who called
	Job      string  `json:"job,omitempty"` // that it is an attempt at
	Worker   string  `json:"worker"`        // empty while queued
	Age      float64 `json:"age"`           // seconds since it was called
	Ran      float64 `json:"ran"`           // seconds with its worker
}

// NodeInfo is a line of fbus.nodes.
type NodeInfo struct {
	Name     string    `json:"name"`
	Network  string    `json:"network"`
	Instance string    `json:"instance"` // new at each start
	Address  string    `json:"address"`  // of its unix socket
	Listens  []string  `json:"listens"`  // for other machines
	Time     time.Time `json:"time"`     // now, by its clock

	Caller string        `json:"caller"` // who asks, as the node knows it
	Rights *trust.Rights `json:"rights"` // what that one may do; null: everything

	PID       int       `json:"pid"`
	Version   string    `json:"version"`
	Protocol  int       `json:"protocol"` // major version
	Started   time.Time `json:"started"`
	Sessions  int       `json:"sessions"`  // connections
	Functions int       `json:"functions"` // names offered
	Calls     int       `json:"calls"`     // queued or running
	Draining  bool      `json:"draining"`
	NoPosts   string    `json:"no_posts,omitempty"` // why nothing can be posted
}

// Functions lists what is offered, sorted by name; the node's own only if they
// are named.
func (n *Node) Functions(names ...string) []FunctionInfo { return n.functionsFor(&Peer{}, names) }

// functionsFor lists of them what a peer sees.
func (n *Node) functionsFor(p *Peer, names []string) []FunctionInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := []FunctionInfo{}
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

func (fn *function) info(schema bool) FunctionInfo {
	f := FunctionInfo{Name: fn.name, Queued: fn.queue.n, Done: fn.done, Failed: fn.failed, Workers: []WorkerInfo{}}
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
		f.Workers = append(f.Workers, WorkerInfo{
			Name: o.session.name, ID: string(o.session.prefix), Identity: o.session.peer.Caller, Slots: o.slots, Busy: o.busy,
			Idempotent: o.idempotent, Description: o.description, Arguments: o.arguments, Note: o.note,
		})
	}
	return f
}

// Calls lists what runs and waits, oldest first, less the calls of the node's
// own functions.
func (n *Node) Calls() []CallInfo { return n.callsFor(&Peer{}) }

// callsFor lists of them what is a peer's business.
func (n *Node) callsFor(p *Peer) []CallInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := []CallInfo{}
	add := func(c *call) {
		if !reserved(c.fn.name) && p.owns(c) {
			list = append(list, c.info())
		}
	}
	for _, s := range n.sessions {
		for _, c := range s.in {
			if c.posted == nil || c.offer != nil { // fbus.jobs shows those that wait
				add(c)
			}
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

func (c *call) info() CallInfo {
	i := CallInfo{Call: c.name(), Function: c.fn.name, State: "queued", Caller: c.caller(), Job: c.job(), Age: time.Since(c.arrived).Seconds()}
	if c.offer != nil {
		i.State, i.Worker, i.Ran = "running", c.offer.session.name, time.Since(c.started).Seconds()
	}
	if c.state == orphaned {
		i.State = "ending"
	}
	return i
}

// Info describes the node.
func (n *Node) Info() NodeInfo { return n.infoFor(&Peer{}) }

// infoFor describes the node as far as it is a peer's business: to a guest its
// numbers are those that the guest sees elsewhere.
func (n *Node) infoFor(p *Peer) NodeInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := NodeInfo{
		Name: n.cfg.Name, Network: n.cfg.Network, Instance: n.instance, Version: n.cfg.Version, Protocol: wire.Major,
		Started: n.started, Draining: n.draining, Listens: []string{}, Time: trust.Now().UTC(), Caller: p.Caller, Rights: p.Rights,
	}
	if err := n.noPosts(); err != nil {
		i.NoPosts = err.Error()
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

// Cancel ends the call of that id for its caller, as fbus.cancel does, and
// returns what it was; ok is false if there is none.
func (n *Node) Cancel(id string) (was CallInfo, ok bool) { return n.cancelFor(&Peer{}, id) }

// cancelFor ends a call that is a peer's business; to others there is none.
func (n *Node) cancelFor(p *Peer, id string) (was CallInfo, ok bool) {
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
	if _, err := q.words(0, 0, "no arguments"); err != nil {
		return err
	}
	for _, c := range q.node.callsFor(q.peer) {
		q.line(c)
	}
	return nil
}

func serveNodes(_ context.Context, q *asked) error {
	if _, err := q.words(0, 0, "no arguments"); err != nil {
		return err
	}
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
		return badInput("no call has the id %s", clean([]byte(words[0])))
	}
	q.line(was)
	return nil
}

func badInput(format string, a ...any) error { return args.Errorf(args.CodeBadInput, format, a...) }

func usageError(format string, a ...any) error { return args.Errorf(args.CodeUsage, format, a...) }

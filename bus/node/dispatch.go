package node

import (
	"fmt"
	"path"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/wire"
)

// call is one invocation, from CALL to the END of its worker.
type call struct {
	node    *Node
	session *session // who opened it
	id      uint64   // there
	fn      *function

	kind  args.Kind
	data  []byte // arguments and input, kept while the call may be offered (again)
	args  int    // of data, these are the arguments
	flags uint64
	on    string
	size  int // counted in the budget

	whole      bool // the input is complete in data
	inputEnded bool
	passed     bool // output was passed on: it can not be run again
	ended      bool // for the caller
	done       bool // for the worker too
	queued     bool
	seen       bool // a worker was there that could take it

	// Of an attempt at a posted call.
	job, caller, origin []byte        // its id, who has posted it, and what; empty: none
	attempt             uint64        // from 1
	limit               time.Duration // from its start
	counted             bool          // it has begun

	offer    *offer // nil: not with a worker
	workerID uint64
	refused  []*session // workers that said busy
	retries  uint64     // further tries that the caller allows
	lost     int        // workers lost
	bounces  int

	arrived, started time.Time
	deadline         time.Time     // zero: none
	waitFunction     time.Duration // for an offer to appear
	waitSlot         time.Duration // for a slot; negative: without limit
	timer            *time.Timer   // of the deadline
	waitTimer        *time.Timer
	waitGen          int // tells an old waitTimer from the one that counts

	flows             [3]flow
	bytesIn, bytesOut int64
}

func (c *call) name() string { return string(c.appendName(nil)) }

// appendName appends the call's id on the network.
func (c *call) appendName(dst []byte) []byte {
	return c.session.appendCall(dst, c.id)
}

// callerText is who calls, for frames: of a job's call who has posted it.
func (c *call) callerText() []byte {
	if len(c.caller) > 0 {
		return c.caller
	}
	return c.session.callerText
}

// callerName is callerText for the other uses.
func (c *call) callerName() string {
	if len(c.caller) > 0 {
		return string(c.caller)
	}
	return c.session.peer.Caller
}

// handleCall takes a new call: it is placed, queued or ended at once.
func (s *session) handleCall(b *wire.Batch, f *wire.CallFrame) error {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	if f.ID <= s.lastIn {
		return protocol("call id %d after %d", f.ID, s.lastIn)
	}
	s.lastIn = f.ID
	if s.gone {
		return nil
	}
	late := n.draining && s.fresh
	s.fresh = false
	if code, msg := s.refuseCall(f, late); code != "" {
		if code == args.CodeDenied {
			n.denied(&s.peer, clean(f.Name), msg)
		}
		return b.Send(s.conn, &wire.EndFrame{
			ID: f.ID, Source: args.FromBus, Status: uint64(args.StatusOf(code)), Code: []byte(code), Message: []byte(msg),
			Call: s.appendCall(nil, f.ID),
		})
	}
	c := n.newCall(s, f)
	if o := c.choose(); o != nil {
		c.seen = true
		c.start(b, o, f.Args, f.Input)
		c.keep(f)
		return nil
	}
	c.enqueue(b, f)
	return nil
}

// refuseCall says why a call is not even looked at. A late one was on its way
// when the drain began.
func (s *session) refuseCall(f *wire.CallFrame, late bool) (code, msg string) {
	n := s.node
	switch {
	case !ValidName(f.Name):
		return args.CodeUsage, fmt.Sprintf("%q is no function name", clean(f.Name))
	case !s.peer.mayCall(string(f.Name)): // before look-up: what is absent must look alike
		return args.CodeDenied, fmt.Sprintf("%s may not call %s", s.peer.Caller, f.Name)
	case n.draining && !late && !reserved(string(f.Name)):
		return args.CodeDraining, "the node is shutting down"
	case len(s.in) >= maxOpen:
		return args.CodeBusy, fmt.Sprintf("%d calls open on one connection are the limit", maxOpen)
	case n.budget.Full():
		return args.CodeBusy, "the node's buffers are full"
	case reserved(string(f.Name)) && s.ownFull(string(f.Name)):
		return args.CodeBusy, fmt.Sprintf("%d calls of the node's own functions on one connection are the limit", limitsOf(string(f.Name)).perConn)
	}
	if _, err := path.Match(string(f.On), ""); err != nil {
		return args.CodeUsage, fmt.Sprintf("%q is no glob", clean(f.On))
	}
	return "", ""
}

// reserved reports whether a name is one of the node's own functions.
func reserved(name string) bool { return strings.HasPrefix(name, "fbus.") }

func (n *Node) newCall(s *session, f *wire.CallFrame) *call {
	c := &call{
		node: n, session: s, id: f.ID, fn: n.function(string(f.Name)),
		kind: f.Kind, flags: f.Flags, on: string(f.On), retries: f.Retries,
		whole: f.Flags&wire.FlagInputEnd != 0, arrived: time.Now(),
		waitFunction: time.Duration(min(f.WaitFunction, maxWait)) * time.Millisecond,
		waitSlot:     time.Duration(min(f.WaitSlot, maxWait)) * time.Millisecond,
	}
	if f.WaitSlot >= wire.Forever {
		c.waitSlot = -1
	}
	if f.WaitFunction >= wire.Forever {
		c.waitFunction = -1
	}
	c.inputEnded = c.whole
	c.bytesIn = int64(len(f.Input))
	for i := range c.flows {
		c.flows[i] = flow{call: c, stream: wire.Stream(i)}
	}
	c.flows[wire.Output].held = int64(f.WindowOutput)
	c.flows[wire.Stderr].held = int64(f.WindowStderr)
	if s.background {
		c.takePosted(f)
	} else if f.Timeout > 0 {
		c.deadline = c.arrived.Add(time.Duration(min(f.Timeout, maxWait)) * time.Millisecond)
	}
	if reserved(c.fn.name) {
		limits := limitsOf(c.fn.name)
		*s.ownCalls(limits)++
		if own := c.arrived.Add(limits.time); limits.time > 0 && (c.deadline.IsZero() || own.Before(c.deadline)) {
			c.deadline = own
		}
	}
	if !c.deadline.IsZero() {
		c.timer = time.AfterFunc(time.Until(c.deadline), c.expire)
	}
	s.in[f.ID] = c
	c.fn.calls++
	if !reserved(c.fn.name) && len(c.job) == 0 {
		n.open++
	}
	return c
}

// maxWait keeps a duration in milliseconds from overflowing.
const maxWait = 1 << 40

// keep copies what a worker needs to run the call, for as long as it may have
// to be offered (again).
func (c *call) keep(f *wire.CallFrame) {
	c.copy(f)
	c.count()
}

func (c *call) copy(f *wire.CallFrame) {
	c.data = make([]byte, len(f.Args)+len(f.Input))
	c.args = copy(c.data, f.Args)
	copy(c.data[c.args:], f.Input)
}

// count takes what was copied into account.
func (c *call) count() {
	c.size = len(c.data) + len(c.on)
	c.node.budget.Add(c.size)
}

// forget frees what keep has copied.
func (c *call) forget() {
	c.node.budget.Add(-c.size)
	c.size, c.data = 0, nil
}

// matches reports whether the caller admits that worker.
func (c *call) matches(o *offer) bool {
	return c.on == "" || wire.MatchWorker(c.on, o.session.name, string(o.session.prefix))
}

// allows reports whether the call may go to that worker: it has not said busy.
func (c *call) allows(o *offer) bool {
	for _, s := range c.refused {
		if s == o.session {
			return false
		}
	}
	return c.matches(o)
}

// choose returns the offer with the most free slots, of several the one that
// has been idle longest; nil if none has a slot.
func (c *call) choose() *offer {
	if len(c.job) > 0 && c.node.cfg.Jobs != nil && !c.node.cfg.Jobs.Wanted(string(c.job)) {
		return nil // its end is on its way
	}
	var best *offer
	for _, o := range c.fn.offers {
		if o.free() <= 0 || best != nil && (o.free() < best.free() || o.free() == best.free() && o.used > best.used) {
			continue
		}
		if c.allows(o) {
			best = o
		}
	}
	return best
}

// start hands the call to a worker.
func (c *call) start(b *wire.Batch, o *offer, args, input []byte) {
	n, w := c.node, o.session
	n.tick++
	o.used = n.tick
	o.busy++
	w.lastOut++
	c.offer, c.workerID, c.started = o, w.lastOut, time.Now()
	w.out[c.workerID] = c
	c.stopWaiting()
	f := &n.scratch.call
	*f = wire.CallFrame{
		ID: c.workerID, Name: c.fn.text, Kind: c.kind, Args: args, Input: input, Flags: c.flags,
		WaitSlot:     wire.Forever,
		WindowOutput: c.flows[wire.Output].first(firstOutput), WindowStderr: c.flows[wire.Stderr].first(firstStderr),
		Call: c.appendName(n.scratch.name[:0]), Caller: c.callerText(),
		Job: c.job, Attempt: c.attempt, Origin: c.origin,
	}
	if len(c.job) > 0 {
		c.startPosted(f)
	}
	if c.inputEnded {
		f.Flags |= wire.FlagInputEnd
	}
	if !c.deadline.IsZero() {
		f.Timeout = uint64(max(1, time.Until(c.deadline).Milliseconds()))
	}
	b.Send(w.conn, f)
}

// enqueue makes a new call wait, if it may.
func (c *call) enqueue(b *wire.Batch, f *wire.CallFrame) {
	if len(c.job) > 0 {
		if c.node.cfg.Jobs != nil && !c.fn.serves(c.on) { // they have gone while it was on its way here
			c.endFor(b, codeRecalled, "")
			return
		}
		c.copy(f) // the store bounds what stands here: no call is to be refused for it
		c.queued = true
		c.fn.jobs = append(c.fn.jobs, c)
		return
	}
	q, limit := &c.fn.queue, c.node.cfg.Queue
	if code, msg, wait := c.patience(); wait == 0 {
		c.endFor(b, code, msg)
		return
	}
	switch {
	case q.n >= limit:
		c.endFor(b, args.CodeBusy, fmt.Sprintf("%s: %d calls are queued: that is the limit", c.fn.name, q.n))
	case q.waiting(c.session) >= max(1, limit/2):
		c.endFor(b, args.CodeBusy, fmt.Sprintf("%s: %d calls of this connection are queued: that is the limit", c.fn.name, q.waiting(c.session)))
	default:
		c.keep(f)
		q.push(c)
		c.queued = true
		c.setTimer()
	}
}

package node

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/wire"
)

// state is where a call is between its CALL and the END of its worker.
type state uint8

const (
	created  state = iota // not placed yet
	waiting               // in the queue of its function
	running               // with a worker
	orphaned              // ended for its caller; its worker still has it
	done
)

var stateNames = [...]string{"created", "waiting", "running", "orphaned", "done"}

// legal lists the transitions between states. A running call goes back to waiting
// when its worker is busy, cannot start it, or is lost.
var legal = [...][5]bool{
	created:  {waiting: true, running: true, done: true},
	waiting:  {running: true, done: true},
	running:  {waiting: true, orphaned: true, done: true},
	orphaned: {done: true},
	done:     {},
}

func (s state) queued() bool { return s == waiting }
func (s state) used() bool   { return s == running || s == orphaned } // takes a slot
func (s state) ended() bool  { return s == orphaned || s == done }    // for its caller
func (s state) live() bool   { return s != created && s != done }

// inputState is how much of its input a call has.
type inputState uint8

const (
	inputOpen  inputState = iota // more may come
	inputWhole                   // it has ended, and all of it came with CALL
	inputEnded                   // it has ended
)

// call is one invocation, from CALL to the END of its worker. The node's mu protects it.
type call struct {
	node     *Node
	session  *session  // that opened it
	identity *identity // that it counts for: the session's, or a caller of that relay
	id       uint64    // on that session
	fn       *function
	given    given // by a relay

	// What CALL asked for.
	kind         args.Kind
	flags        uint64
	on           wire.On
	retries      uint64        // further tries that the caller allows
	deadline     time.Time     // zero: none
	waitFunction time.Duration // for an offer to appear; negative: without limit
	waitSlot     time.Duration // for a slot; negative: without limit
	posted       *posted       // nil: it runs no job
	trace        string        // as args.Trace has it
	ownLimit     time.Duration // the node's limit for its own function, if that is the deadline; else 0

	state state
	input inputState
	data  []byte // arguments and input; nil once the call cannot be offered again
	args  int    // length of the arguments in data
	size  int    // counted in the budget

	offer    *offer // while running or orphaned
	workerID uint64
	served   time.Time  // when some worker could last have taken it; zero: never
	refused  []*session // workers that were busy
	lost     int        // workers lost
	cutOff   bool       // the last of them was a relay, which was lost itself
	bounces  int        // times that it has crossed a change of an offer

	age              uint64 // the node's tick when it came
	arrived, started time.Time
	ranAt            string        // the name of the worker that had it to the end
	ran              time.Duration // there
	timer            *time.Timer   // of the deadline
	waitTimer        *time.Timer
	waitGen          int // rises with each waitTimer, so that an old one is ignored
	flows            [3]flow
	progress         *progress // nil: none was reported
}

// illegal reports a transition that is not in the table. Tests replace it by a panic.
var illegal = func(n *Node, msg string) { n.cfg.Warn("%s: this is a fault in fbus", msg) }

// to moves the call into another state, and updates every count and list that depends
// on it. c.offer must be set before a call runs. It reports whether the transition is legal.
func (c *call) to(next state) bool {
	n, fn, was, id := c.node, c.fn, c.state, c.identity
	if !legal[was][next] {
		illegal(n, fmt.Sprintf("call %s went from %s to %s", c.name(), stateNames[was], stateNames[next]))
		return false
	}
	c.state = next
	if was.queued() {
		c.stopWaiting()
		fn.queue.remove(c, next == running)
	}
	if next.live() != was.live() {
		d := -1
		if next.live() {
			d = 1
			n.functions[fn.name] = fn
			c.session.in[c.id] = c
		}
		fn.calls += d
		id.budget.Add(d * c.given.cost())
		id.lives(d)
	}
	if open := next.live() && !next.ended(); open != (was.live() && !was.ended()) {
		id.opens(-1)
		if open {
			id.opens(2)
		}
	}
	if next.ended() && !was.ended() {
		delete(c.session.in, c.id)
		if c.posted != nil {
			delete(n.posted, c.posted.job.ID)
		}
		c.forget()
		if c.timer != nil {
			c.timer.Stop()
		}
		if c.progress != nil && c.progress.timer != nil {
			c.progress.timer.Stop()
		}
	}
	if next.used() != was.used() {
		if next.used() {
			c.offer.session.out[c.workerID] = c
			c.offer.take(1, 0)
			if fn.own != nil {
				n.serves(id, fn.own, 1)
			}
		} else {
			for i := range c.flows {
				c.flows[i].release()
			}
			c.flows[wire.Input].held = 0 // the next worker grants its own credit
			delete(c.offer.session.out, c.workerID)
			if next == done {
				c.ranAt, c.ran = c.offer.session.name, time.Since(c.started)
			}
			c.offer.take(-1, 0)
			c.offer = nil
			if fn.own != nil {
				n.serves(id, fn.own, -1)
			}
		}
	}
	n.changes.call(c)
	n.open += c.counts(next) - c.counts(was)
	id.calls += c.counts(next) - c.counts(was)
	return true
}

// counts is 1 if the call is open in that state: queued or running. Calls of the node's own
// functions do not count.
func (c *call) counts(s state) int {
	if c.fn.own == nil && (s == running || s == waiting) {
		return 1
	}
	return 0
}

func (c *call) name() string { return string(c.appendName(nil)) }

// appendName appends the call's id on the network.
func (c *call) appendName(dst []byte) []byte {
	return c.session.appendCall(dst, c.id)
}

// callerText names the caller in frames; the caller of a job is its poster.
func (c *call) callerText() []byte {
	if c.posted != nil {
		return []byte(c.posted.job.Poster.Caller)
	}
	if c.given.agent != "" {
		return []byte(c.identity.name + c.given.agent)
	}
	return c.identity.nameText
}

func (c *call) caller() string {
	if c.posted != nil {
		return c.posted.job.Poster.Caller
	}
	return c.identity.name + c.given.agent
}

// of reports whether a peer, or another connection of it, has made the call or posted its job.
func (c *call) of(p *Peer) bool {
	if c.posted != nil {
		return p.posted(c.posted.job.ID, &c.posted.job.Poster)
	}
	return c.identity.name == p.bearer()
}

func (c *call) job() string {
	if c.posted == nil {
		return c.given.job
	}
	return c.posted.job.ID.String()
}

// handleCall takes a new call. It is placed, queued or ended at once. n.mu is held.
func (s *session) handleCall(b *wire.Batch, f *wire.CallFrame) error {
	n := s.node
	if f.ID <= s.lastIn {
		return wire.Broken(f, f.ID, "element 1 (id) must be above %d, the last one", s.lastIn)
	}
	s.lastIn = f.ID
	if s.gone {
		return nil
	}
	late := n.draining && s.fresh
	s.fresh = false
	c, err := n.newCall(s, f)
	if code, msg := s.refuseCall(c, f, late, err); code != "" {
		c.endFor(b, code, msg)
		return nil
	}
	c.setDeadline()
	if o := c.choose(); o != nil {
		c.served = c.arrived
		c.start(b, o, f.Args, f.Input)
		c.keep(f)
		return nil
	}
	c.enqueue(b, f)
	return nil
}

// refuseCall returns why a call cannot be placed, if so. A late one was on its way
// when the drain began.
func (s *session) refuseCall(c *call, f *wire.CallFrame, late bool, invalid error) (code, msg string) {
	n, id := s.node, c.identity
	by, open := cmp.Or(id.all, id), len(s.in) // a relay's callers are bounded together
	if by.rank != owner {
		open = by.open
	}
	switch {
	case !args.ValidName(f.Name):
		return args.CodeUsage, fmt.Sprintf("invalid function name %q", c.fn.name)
	case !c.allowed(): // before look-up: denied and absent look alike
		return args.CodeDenied, fmt.Sprintf("%s may not call %s", id.name, f.Name)
	case n.draining && !late && c.fn.own == nil:
		return args.CodeDraining, "the node is shutting down"
	case open >= maxOpen && by.rank == owner:
		return args.CodeBusy, fmt.Sprintf("too many open calls on this connection (limit %d)", maxOpen)
	case open >= maxOpen:
		return args.CodeBusy, fmt.Sprintf("too many open calls of %s (limit %d)", by.name, maxOpen)
	case invalid != nil:
		e := args.AsError(invalid, args.CodeUsage)
		return e.Code, e.Message
	case id.all != nil && id.live == 0 && len(id.all.each) >= maxCallers:
		return args.CodeBusy, fmt.Sprintf("too many callers of %s at once (limit %d)", s.identity.name, maxCallers)
	case c.fn.own != nil && id.rank != guest: // an administrator can always act
		return "", ""
	}
	if err := n.allows(id, n.buffers(), int64(c.given.cost()+len(f.Args)+len(f.Input)), (*identity).held); err != nil {
		return args.CodeBusy, err.Error()
	}
	return "", ""
}

// reserved reports whether a name is one of the node's own functions.
func reserved(name string) bool { return strings.HasPrefix(name, "fbus.") }

// lookTime is after which time a call is looked at again that waits though some worker was too busy
// for it: all others may have gone.
const lookTime = time.Second

// relayTime is how long a call waits for a slot of a relay that waits for none: a relay looks for one
// when a call waits.
var relayTime = 250 * time.Millisecond

func (n *Node) newCall(s *session, f *wire.CallFrame) (*call, error) {
	on, err := wire.ParseOn(string(f.On))
	n.tick++
	c := &call{
		node: n, session: s, identity: s.identity, id: f.ID, fn: n.functions[string(f.Name)], kind: f.Kind, flags: f.Flags, on: on, retries: f.Retries,
		age: n.tick, arrived: time.Now(), waitFunction: waitOf(f.WaitFunction), waitSlot: waitOf(f.WaitSlot),
	}
	if c.fn == nil {
		c.fn = newFunction(n, args.Shown(f.Name)) // registered with the call, if that is placed
	}
	if f.Flags&wire.FlagInputEnd != 0 {
		c.input = inputWhole
	}
	for i := range c.flows {
		c.flows[i] = flow{call: c, stream: wire.Stream(i)}
	}
	c.flows[wire.Input].passed = int64(len(f.Input))
	c.flows[wire.Output].held = int64(f.WindowOutput)
	c.flows[wire.Stderr].held = int64(f.WindowStderr)
	if len(f.Trace) > 0 {
		c.trace = args.Trace(args.SplitTrace(string(f.Trace)))
	}
	if s.relays {
		if e := c.relay(f); err == nil {
			err = e
		}
	}
	if f.Timeout > 0 && f.Timeout < wire.Forever {
		c.deadline = c.arrived.Add(time.Duration(f.Timeout) * time.Millisecond)
	}
	return c, err
}

// waitOf is the duration of a wait in milliseconds, -1 for one without limit.
func waitOf(ms uint64) time.Duration {
	if ms >= wire.Forever {
		return -1
	}
	return time.Duration(ms) * time.Millisecond
}

// setDeadline starts the timer of a call that is about to be placed.
func (c *call) setDeadline() {
	if own := c.fn.own; own != nil && !own.long {
		limit := c.arrived.Add(shortTime)
		if c.identity.rank != guest {
			limit = c.arrived.Add(adminTime)
		}
		if c.deadline.IsZero() || limit.Before(c.deadline) {
			c.deadline, c.ownLimit = limit, limit.Sub(c.arrived)
		}
	}
	if !c.deadline.IsZero() {
		c.timer = time.AfterFunc(time.Until(c.deadline), c.expire)
	}
}

// keep copies what a worker needs to run the call, for as long as it may have to be
// offered again.
func (c *call) keep(f *wire.CallFrame) {
	c.data = make([]byte, len(f.Args)+len(f.Input))
	c.args = copy(c.data, f.Args)
	copy(c.data[c.args:], f.Input)
	c.size = len(c.data) + len(c.on.String()) + len(c.trace)
	c.identity.budget.Add(c.size)
}

// forget frees what keep has copied.
func (c *call) forget() {
	c.identity.budget.Add(-c.size)
	c.size, c.data = 0, nil
}

// refusedBy reports whether a worker was too busy for the call.
func (c *call) refusedBy(s *session) bool { return slices.Contains(c.refused, s) }

// reach is how far a call may go.
type reach uint8

const (
	anywhere reach = iota
	here           // not to a relay offer
)

// reach returns how far the call may go.
func (c *call) reach() reach {
	if c.flags&wire.FlagHere != 0 {
		return here
	}
	return anywhere
}

// reaches reports whether the call may go as far as an offer is.
func (c *call) reaches(o *offer) bool { return !o.relay || c.reach() == anywhere }

// reached returns how many reaches come as far as the offer is.
func (o *offer) reached() int {
	if o.relay {
		return int(anywhere) + 1
	}
	return int(here) + 1
}

// choose returns the offer that has the most free slots of those that the call selects,
// of several the one that has been idle longest; nil if none has a slot. Relays come last.
func (c *call) choose() *offer {
	fn := c.fn
	if fn.own != nil && !c.node.mayServe(c.identity, fn.own.class()) {
		return nil
	}
	if id, ok := c.on.Connection(); ok {
		if o := fn.ofConnection(id); o != nil && o.free() > 0 && c.reaches(o) && !c.refusedBy(o.session) {
			return o
		}
		return nil
	}
	o := fn.offers.choose(c)
	if o == nil && c.reach() == anywhere {
		o = fn.relays.choose(c)
	}
	return o
}

// start hands the call to a worker.
func (c *call) start(b *wire.Batch, o *offer, arguments, input []byte) {
	n, w := c.node, o.session
	w.lastOut++
	c.offer, c.workerID, c.started = o, w.lastOut, time.Now()
	if !c.to(running) {
		return
	}
	f := &n.scratch.call
	*f = wire.CallFrame{
		ID: c.workerID, Name: c.fn.text, Kind: c.kind, Args: arguments, Input: input, Flags: c.flags,
		WaitSlot:     wire.Forever,
		WindowOutput: c.flows[wire.Output].first(firstOutput), WindowStderr: c.flows[wire.Stderr].first(firstStderr),
		Call: c.shownID(!w.internal), Caller: c.callerText(), Trace: []byte(c.trace),
	}
	if c.posted != nil {
		t := c.posted.job
		f.Job, f.Attempt, f.Origin = []byte(t.ID.String()), uint64(t.Attempt), []byte(t.Origin)
	} else if g := &c.given; g.job != "" {
		f.Job, f.Attempt, f.Origin = []byte(g.job), g.attempt, []byte(g.origin)
	}
	if o.relay {
		f.On = []byte(c.on.Behind())
	}
	if c.input != inputOpen {
		f.Flags |= wire.FlagInputEnd
	}
	if !c.deadline.IsZero() {
		f.Timeout = uint64(min(max(1, time.Until(c.deadline).Milliseconds()), wire.Forever-1))
	}
	b.Send(w.conn, f)
}

// enqueue makes a new call wait, if it may.
func (c *call) enqueue(b *wire.Batch, f *wire.CallFrame) {
	if e, wait := c.patience(); wait == 0 {
		c.endWith(b, e)
		return
	}
	if err := c.fn.queue.allows(c); err != nil {
		c.endFor(b, args.CodeBusy, err.Error())
		return
	}
	c.keep(f)
	c.wait()
}

// wait puts the call into the queue of its function.
func (c *call) wait() {
	if c.state == waiting || c.to(waiting) {
		c.fn.queue.push(c)
		c.setTimer()
	}
}

// patience returns how much longer the call may wait for what is missing now, and the
// error that it ends with after that; negative is without limit.
func (c *call) patience() (e *args.Error, left time.Duration) {
	now := time.Now()
	until := func(limit time.Duration) time.Duration {
		if limit < 0 {
			return -1
		}
		return max(0, limit-now.Sub(c.arrived))
	}
	if c.another() {
		c.served = now
		wait := c.waitSlot
		if wait == 0 && c.fn.hasRelay(c) {
			wait = relayTime
		}
		why, left := "no slot is free", until(wait)
		if left == 0 && len(c.node.heldOn)+len(c.fn.relays.list) > 0 { // noSlot looks at all workers
			if held := c.node.noSlot(c.fn.name, c.on); held != "" && !strings.HasPrefix(held, NoFreeSlot) {
				why = held
			}
		}
		return &args.Error{Code: args.CodeBusy, Message: c.fn.name + ": " + why}, left
	}
	if len(c.refused) > 0 {
		return &args.Error{Code: args.CodeBusy, Message: c.fn.name + ": every worker is busy"}, 0
	}
	if e := c.fn.whyStopped(&c.on, c.reach()); e != nil {
		return e, until(c.waitFunction)
	}
	msg := c.fn.name + ": no such function"
	if c.on.String() != "" && len(c.fn.offers.list)+len(c.fn.relays.list) > 0 {
		msg = fmt.Sprintf("%s: no worker that offers it matches %s", c.fn.name, args.Shown(c.on.String()))
	}
	left = until(c.waitFunction)
	served := c.served
	g := c.fn.queue.groups[c.reach()][c.on.String()]
	if g != nil && g.gone.After(c.arrived) && g.gone.After(served) {
		served = g.gone
	}
	if g != nil && g.final {
		served = time.Time{}
	}
	if !served.IsZero() && left >= 0 { // its workers have just gone: they may be restarting
		left = max(left, goneTime-now.Sub(served))
	}
	if c.node.cfg.Successor && left >= 0 && c.fn.own == nil {
		left = max(left, time.Until(c.node.started.Add(goneTime))) // they may be on their way here
	}
	return &args.Error{Code: args.CodeNoFunction, Message: msg}, left
}

// another reports whether a worker is left that has not refused the call.
func (c *call) another() bool {
	k := c.fn.matching(c)
	for _, s := range c.refused {
		if o := s.offers[c.fn.name]; o != nil && o.stopped == nil && c.reaches(o) {
			k--
		}
	}
	return k > 0
}

// setTimer bounds the wait of a queued call by its patience now.
func (c *call) setTimer() {
	c.stopWaiting()
	_, left := c.patience()
	if len(c.refused) > 0 && (left < 0 || left > lookTime) {
		left = lookTime
	}
	if left < 0 {
		return
	}
	gen := c.waitGen
	c.waitTimer = time.AfterFunc(left, func() {
		c.node.locked(func(b *wire.Batch) {
			if c.waitGen == gen {
				c.lookAgain(b)
			}
		})
	})
}

// lookAgain ends a waiting call if it has waited long enough for what is missing now.
func (c *call) lookAgain(b *wire.Batch) {
	if c.state != waiting {
		return
	}
	if e, left := c.patience(); left == 0 {
		c.endWith(b, e)
		return
	}
	c.setTimer()
}

func (c *call) stopWaiting() {
	c.waitGen++
	if c.waitTimer != nil {
		c.waitTimer.Stop()
		c.waitTimer = nil
	}
}

// expire ends a call at its deadline.
func (c *call) expire() {
	message := args.DeadlineMessage
	if c.ownLimit > 0 {
		message = fmt.Sprintf("the node has not answered within %v: it is busy", c.ownLimit)
	}
	c.node.locked(func(b *wire.Batch) { c.endFor(b, args.CodeDeadline, message) })
}

// locked runs f with the node's lock held, and writes what f has sent.
func (n *Node) locked(f func(*wire.Batch)) {
	var b wire.Batch
	n.mu.Lock()
	f(&b)
	n.mu.Unlock()
	b.Flush()
}

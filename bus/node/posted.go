package node

import (
	"slices"
	"time"

	"fbus/bus/wire"
)

// jobShare is how many slots of a function go to calls that somebody waits for
// before one goes to a posted call, while both wait. With nobody waiting, posted
// calls have them all.
const jobShare = 8

// takePosted takes what only the node's own connection may set of a call.
func (c *call) takePosted(f *wire.CallFrame) {
	c.posted = &posted{
		job: slices.Clone(f.Job), caller: slices.Clone(f.Caller), origin: slices.Clone(f.Origin), attempt: f.Attempt,
		limit: time.Duration(min(f.Timeout, maxWait)) * time.Millisecond,
	}
	c.waitFunction, c.waitSlot = -1, -1
	c.node.posted[string(c.posted.job)] = c
}

// startPosted adds to CALL which job it runs, and reports to the store that it runs. The
// time of an attempt begins here.
func (c *call) startPosted(f *wire.CallFrame) {
	n, p := c.node, c.posted
	f.Job, f.Attempt, f.Origin = p.job, p.attempt, p.origin
	if c.data != nil && c.size == 0 { // until now it was not counted: see enqueue
		c.charge()
	}
	if p.limit > 0 && c.deadline.IsZero() {
		c.deadline = c.started.Add(p.limit)
		c.timer = time.AfterFunc(p.limit, c.expire)
	}
	if !p.begun {
		p.begun = true
		if n.cfg.Jobs != nil {
			n.cfg.Jobs.Started(string(p.job), c.offer.session.name, c.name())
		}
	}
}

// next finds the call that has the next free slot; it is still in its queue.
func (fn *function) next() (*call, *offer) {
	var o *offer
	fits := func(c *call) bool {
		o = c.choose()
		return o != nil
	}
	if len(fn.jobs) == 0 || fn.turns < jobShare {
		if c := fn.queue.next(fits); c != nil {
			fn.turns++
			return c, o
		}
	}
	for _, c := range fn.jobs {
		if fits(c) {
			fn.turns = 0
			return c, o
		}
	}
	if c := fn.queue.next(fits); c != nil {
		return c, o
	}
	return nil, nil
}

// unqueue takes a call out of the queue that it waits in.
func (c *call) unqueue() {
	if c.posted == nil {
		c.fn.queue.remove(c, c.state == running)
		return
	}
	c.fn.jobs = slices.DeleteFunc(c.fn.jobs, func(x *call) bool { return x == c })
}

// codeRecalled ends an attempt that was taken back before it began. It does not
// leave the node.
const codeRecalled = "recalled"

// recall takes a posted call back that no worker has; false: one has, or there is
// none.
func (n *Node) recall(job string) bool {
	var b wire.Batch
	defer b.Flush()
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.posted[job]
	if c == nil || c.posted.begun {
		return false
	}
	c.endFor(&b, codeRecalled, "")
	return true
}

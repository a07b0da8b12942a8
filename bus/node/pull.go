package node

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/wire"
)

// jobSource is the store of posted calls, as the dispatcher uses it. A free slot asks it for a
// job; no job waits in the node. Only Ready and ReadyOn may be called with the node's lock held.
type jobSource interface {
	// Ready returns about how many jobs of a function can be taken now.
	Ready(function string) int
	// ReadyOn returns how many of these are for certain workers, by their glob.
	ReadyOn(function string) map[string]int
	// Take returns the job that a worker runs next, or nil. It leaves out those that this
	// worker has refused.
	Take(function, worker, connection string, refused []jobs.ID) (*jobs.Taken, error)
	// Started reports that a worker has the job. It comes before Return and Ended.
	Started(t *jobs.Taken, worker, call string)
	// Return gives the job back: it did not run, or a worker was too busy for it.
	Return(t *jobs.Taken, busy bool)
	// Ended reports how the job ended. Its output was written before.
	Ended(t *jobs.Taken, end jobs.End)
}

const (
	// jobShare is how many slots of a function go to calls before one goes to a job,
	// while both wait. With no call waiting, jobs have them all.
	jobShare = 8
	// refusalTime is how long a job is not offered again to a worker that was busy.
	refusalTime = time.Second
	// maxRefusals bounds the jobs of a function whose refusals are remembered.
	maxRefusals = 1000
)

// refusal is which workers were busy for a job that waits in the store again.
type refusal struct {
	by    []*session
	until time.Time
}

// takeJobs lets free slots of a function ask for jobs, as long as there are some.
func (fn *function) takeJobs() {
	for fn.node.source != nil {
		o := fn.offers.asks(fn)
		if o == nil {
			o = fn.relays.asks(fn)
		}
		if o == nil || !fn.takeJob(o) {
			return
		}
	}
}

// asks returns an offer with a free slot that has not asked for a job since there are more; nil:
// there is none.
func (t *tier) asks(fn *function) *offer {
	return t.best(&fn.node.scratch.edge, func(o *offer) bool { return o.asked != fn.wakes })
}

// takeJob lets a free slot ask for a job: free → taking. It reports whether it does. Each offer
// asks once until the store has more, and relays after the others.
func (fn *function) takeJob(o *offer) bool {
	n := fn.node
	if n.source == nil || n.draining || n.closed || o.asked == fn.wakes || n.source.Ready(fn.name) <= fn.taking {
		return false
	}
	if o.relay && fn.offers.asks(fn) != nil {
		return false
	}
	var refused []jobs.ID
	for id, r := range fn.refusals {
		if time.Now().After(r.until) {
			delete(fn.refusals, id)
		} else if slices.Contains(r.by, o.session) {
			refused = append(refused, id)
		}
	}
	o.take(0, 1)
	wakes := fn.wakes
	n.serving.Go(func() { n.takeFor(o, wakes, refused) }) // ends with the job
	return true
}

// takeFor asks the store for a job for a slot, and sees that job through to its end:
// taking → used, or free again if there is none.
func (n *Node) takeFor(o *offer, wakes uint64, refused []jobs.ID) {
	t, _ := n.source.Take(o.fn.name, o.session.name, string(o.session.prefix), refused)
	var b wire.Batch
	var c *call
	n.mu.Lock()
	fn, full := o.fn, o.session.full()
	o.take(0, -1)
	n.changes.function(fn.name)
	switch {
	case t == nil:
		o.asked = wakes
	case o.at[0] >= 0 && o.free() > 0 && !n.draining && !n.closed && t.Cause.Load() == nil:
		c = n.startJob(&b, o, t)
	}
	if full {
		o.session.fill(&b)
	} else {
		o.fill(&b)
	}
	fn.takeJobs()
	fn.tidy()
	n.mu.Unlock()
	b.Flush()
	switch {
	case c != nil:
		n.source.Started(t, o.session.name, c.name())
		c.posted.keep(c)
	case t != nil:
		n.source.Return(t, false)
	}
}

// startJob makes a call of a job and hands it to a worker.
func (n *Node) startJob(b *wire.Batch, o *offer, t *jobs.Taken) *call {
	s := n.forJobs
	s.lastIn++
	on, _ := wire.ParseOn(t.On) // it was checked when the job was posted
	c := &call{
		node: n, session: s, identity: s.identity, id: s.lastIn, fn: o.fn, kind: t.Kind, on: on, arrived: time.Now(), waitFunction: -1, waitSlot: -1,
		data: []byte{}, posted: &posted{job: t, keeping: true},
	}
	if t.Rest == nil {
		c.input = inputWhole
	}
	if t.HasInput {
		c.flags |= wire.FlagHasInput
	}
	for i := range c.flows {
		c.flows[i] = flow{call: c, stream: wire.Stream(i)}
	}
	c.flows[wire.Input].passed = int64(len(t.Input))
	c.flows[wire.Output].held, c.flows[wire.Stderr].held = wire.InitialWindow, wire.InitialWindow
	if r, ok := o.fn.refusals[t.ID]; ok {
		c.refused = r.by
		delete(o.fn.refusals, t.ID)
	}
	c.trace = t.Trace
	if t.Timeout > 0 {
		c.deadline = c.arrived.Add(t.Timeout)
		c.timer = time.AfterFunc(t.Timeout, c.expire)
	}
	n.posted[t.ID] = c
	c.start(b, o, t.Args, t.Input)
	return c
}

// posted is the node's own side of the call of a job: it feeds the job's input, and writes
// its output where the store keeps it.
type posted struct {
	job *jobs.Taken

	mu       sync.Mutex // protects the fields below
	out, err []byte     // output and stderr that are not written yet
	end      *jobs.End
	back     way  // other than 0: the job goes back to the store
	keeping  bool // some goroutine is in keep
	feeding  bool // some goroutine is in feed
	failed   bool // the store did not take the output: the rest is dropped
	credit   int  // of input, that the worker gave
}

// way is how a job goes back to the store.
type way uint8

const (
	atOnce way = iota + 1 // it may be taken again now
	later                 // its worker was busy
)

// write takes output of the call. It does not wait for the disk.
func (p *posted) write(c *call, stream wire.Stream, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed || p.end != nil || p.back != 0 || len(data) == 0 {
		return
	}
	if stream == wire.Output {
		p.out = append(p.out, data...)
	} else {
		p.err = append(p.err, data...)
	}
	c.node.budget.Add(len(data))
	p.wake(c)
}

// finish takes the end of the call: how it ended, or that it did not run.
func (p *posted) finish(c *call, end *jobs.End, back way) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end, p.back = end, back
	p.wake(c)
}

// wake starts keep if it does not run. p.mu is held.
func (p *posted) wake(c *call) {
	if !p.keeping {
		p.keeping = true
		c.node.serving.Go(func() { p.keep(c) }) // ends when all is written
	}
}

// keep writes the output that there is, and reports the end once all is written. It grants the
// worker as much again as it has written.
func (p *posted) keep(c *call) {
	n := c.node
	for {
		p.mu.Lock()
		out, err := p.out, p.err
		p.out, p.err = nil, nil
		if len(out)+len(err) == 0 {
			end, back := p.end, p.back
			p.keeping = false
			p.mu.Unlock()
			switch {
			case back != 0:
				n.source.Return(p.job, back == later)
			case end != nil:
				n.source.Ended(p.job, *end)
			}
			return
		}
		p.mu.Unlock()
		_, failure := p.job.Stdout.Write(out)
		if failure == nil {
			_, failure = p.job.Stderr.Write(err)
		}
		n.budget.Add(-len(out) - len(err))
		c.node.locked(func(b *wire.Batch) {
			if failure != nil {
				c.endFor(b, args.CodeInternal, "its output could not be kept: "+jobs.Public(failure))
				return
			}
			for stream, k := range map[wire.Stream]int{wire.Output: len(out), wire.Stderr: len(err)} {
				if !c.state.ended() {
					c.flows[stream].held += int64(k)
					c.flows[stream].give(b)
				}
			}
		})
		if failure != nil {
			p.mu.Lock()
			p.failed = true
			n.budget.Add(-len(p.out) - len(p.err))
			p.out, p.err = nil, nil
			p.mu.Unlock()
		}
	}
}

// granted takes credit for input from the worker. The node's lock is held.
func (p *posted) granted(c *call, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.credit += bytes
	if p.feeding || p.job.Rest == nil {
		return
	}
	p.feeding = true
	c.node.serving.Go(func() { p.feed(c) }) // ends when the credit is used
}

// feed sends input while there is credit.
func (p *posted) feed(c *call) {
	s := c.session
	buf := make([]byte, wire.ChunkSize)
	for {
		p.mu.Lock()
		k := min(p.credit, len(buf))
		p.credit -= k
		p.feeding = k > 0 && p.end == nil && p.back == 0
		more := p.feeding
		p.mu.Unlock()
		if !more {
			return
		}
		got, err := io.ReadFull(p.job.Rest, buf[:k])
		var b wire.Batch
		if got > 0 {
			s.handleData(&b, &wire.DataFrame{ID: c.id, Stream: wire.Input, Payload: buf[:got]})
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			b.Flush()
			c.node.locked(func(b *wire.Batch) { s.handleEOF(b, &wire.EOFFrame{ID: c.id}) })
			return // feeding stays set: there is no more
		default:
			c.node.locked(func(b *wire.Batch) {
				c.endFor(b, args.CodeInternal, "its input cannot be read: "+jobs.Public(err))
			})
		}
		b.Flush()
	}
}

// returnJob takes a job from a worker that was busy, or cannot start the program. The store has
// it again, and offers it to others first if the worker still has slots. A relay had none.
func (c *call) returnJob(o *offer) {
	fn, id := c.fn, c.posted.job.ID
	if o.slots < o.busy || o.relay && !slices.Contains(c.refused, o.session) {
		c.to(done)
		c.posted.finish(c, nil, atOnce)
		return
	}
	if !slices.Contains(c.refused, o.session) {
		c.refused = append(c.refused, o.session)
	}
	if len(fn.refusals) < maxRefusals {
		if fn.refusals == nil {
			fn.refusals = map[jobs.ID]refusal{}
		}
		fn.refusals[id] = refusal{c.refused, time.Now().Add(refusalTime)}
	}
	c.to(done)
	c.posted.finish(c, nil, later)
}

// WakeJobs looks for free slots of a function for which the store may have a job now.
func (n *Node) WakeJobs(function string) {
	n.locked(func(b *wire.Batch) {
		if fn := n.functions[function]; fn != nil {
			fn.wakes++
			n.changes.function(function)
			fn.takeJobs()
		}
	})
}

// JobChanged notes that a job has changed, for those that watch the node.
func (n *Node) JobChanged(id jobs.ID) { n.changes.job(id) }

// CancelJob ends the call of a job, if it runs.
func (n *Node) CancelJob(id jobs.ID, code, message string) {
	n.locked(func(b *wire.Batch) {
		if c := n.posted[id]; c != nil {
			c.endFor(b, code, message)
		}
	})
}

// itself makes the session that is the caller of jobs. It has no connection.
func (n *Node) itself() *session {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lastConn++
	s := &session{node: n, id: n.lastConn, prefix: fmt.Appendf(nil, "%s-%d", n.prefix, n.lastConn), peer: Peer{Caller: "node"}, identity: n.self, internal: true, in: map[uint64]*call{}}
	n.sessions[s.id] = s
	return s
}

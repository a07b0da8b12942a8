package node

import (
	"cmp"
	"slices"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/wire"
)

// endFor ends a call for its caller: by deadline, cancellation or refusal. If a
// worker has it, that is told; the slot stays taken until the worker's own END.
func (c *call) endFor(b *wire.Batch, code, msg string) {
	if c.ended {
		return
	}
	c.end(b, &wire.EndFrame{Source: args.FromBus, Status: uint64(args.StatusOf(code)), Code: []byte(code), Message: []byte(msg)})
	c.dismiss(b, code)
}

// dismiss tells the worker that nobody waits, or takes the call out of the queue.
func (c *call) dismiss(b *wire.Batch, code string) {
	if c.offer != nil {
		if code != args.CodeDeadline {
			code = args.CodeCancelled
		}
		b.Send(c.offer.session.conn, &wire.CancelFrame{ID: c.workerID, Code: []byte(code)})
		return
	}
	c.finish()
	c.fn.tidy()
}

// end sends END to the caller and logs the call. f lacks only the ids.
func (c *call) end(b *wire.Batch, f *wire.EndFrame) {
	c.close(f)
	if !c.session.gone {
		f.ID, f.Call, f.Worker = c.id, c.appendName(c.node.scratch.name[:0]), nil
		if c.offer != nil {
			f.Worker = c.offer.session.nameText
		}
		if k := len(f.Output); k > longest { // with these names it might not fit a frame
			b.Send(c.session.conn, &wire.DataFrame{ID: c.id, Stream: wire.Output, Payload: f.Output[:k/2]})
			f.Output = f.Output[k/2:]
		}
		b.Send(c.session.conn, f)
	}
}

// close ends the call for the caller's side of the books.
func (c *call) close(f *wire.EndFrame) {
	c.ended = true
	delete(c.session.in, c.id)
	if len(c.job) > 0 && c.node.posted[string(c.job)] == c {
		delete(c.node.posted, string(c.job))
	}
	c.forget()
	if c.timer != nil {
		c.timer.Stop()
	}
	switch {
	case len(c.job) > 0 && !c.counted: // taken back
	case f.Source == args.FromProgram && f.Status == 0:
		c.fn.done++
	default:
		c.fn.failed++
	}
	c.log(f)
}

// finish ends the call altogether: no worker has it any more.
func (c *call) finish() {
	if c.done {
		return
	}
	c.done = true
	if c.queued {
		c.queued = false
		c.unqueue()
	}
	c.stopWaiting()
	for i := range c.flows {
		c.flows[i].release()
	}
	n := c.node
	c.fn.calls--
	switch {
	case reserved(c.fn.name):
		*c.session.ownCalls(limitsOf(c.fn.name))--
	case len(c.job) > 0 && !c.counted:
	default:
		n.open--
		if n.open == 0 && n.idle != nil {
			close(n.idle)
			n.idle = nil
		}
	}
}

// leave takes the call from its worker, whose slot is free with that.
func (c *call) leave() {
	for i := range c.flows {
		c.flows[i].release()
	}
	c.flows[wire.Input].held = 0 // another worker grants anew
	o := c.offer
	delete(o.session.out, c.workerID)
	o.busy--
	c.node.tick++
	o.used = c.node.tick
	c.offer = nil
}

// handleEnd takes a worker's END: the program and all it started are gone.
func (s *session) handleEnd(b *wire.Batch, f *wire.EndFrame) error {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	c, err := s.outgoing(f.ID)
	if c == nil {
		return err
	}
	fl := &c.flows[wire.Output]
	if int64(len(f.Output)) > fl.out {
		return protocol("%d bytes of output in END with a credit of %d", len(f.Output), fl.out)
	}
	fl.use(int64(len(f.Output)), c.session)
	c.bytesOut += int64(len(f.Output))
	fn, full := c.fn, len(s.out) >= maxOpen
	switch {
	case c.ended:
		c.leave()
		c.finish()
	case c.bounced(f):
		// Its output was not passed on, so the caller will not grant it again.
		fl.held += int64(len(f.Output))
		c.bytesOut -= int64(len(f.Output))
		c.leave()
		c.requeue(b)
	default:
		c.end(b, f)
		c.leave()
		c.finish()
	}
	fn.fill(b)
	fn.tidy()
	if full { // the others of its functions may have waited for this
		for _, o := range s.offers {
			o.fn.fill(b)
		}
	}
	return nil
}

// bounced reports whether an END means that the worker has not taken the call,
// and another may be asked.
func (c *call) bounced(f *wire.EndFrame) bool {
	if c.data == nil || c.passed {
		return false
	}
	code := string(f.Code)
	if f.Source == args.FromBus && (code == args.CodeBusy || code == args.CodeDraining) {
		// It has crossed a change of the offer: the same worker may take it yet.
		if c.bounces++; c.bounces < maxBounces {
			return true
		}
		c.refused = append(c.refused, c.offer.session)
		return c.another()
	}
	if c.whole && f.Source == args.FromProgram && f.Status == uint64(args.StatusOf(args.CodeBusy)) {
		c.refused = append(c.refused, c.offer.session)
		return c.another()
	}
	return false
}

// another reports whether a worker is left that has not refused the call.
func (c *call) another() bool {
	for _, o := range c.fn.offers {
		if c.allows(o) {
			return true
		}
	}
	return false
}

// requeue offers a call again that a worker has given back, or makes it wait at
// the head of the queue.
func (c *call) requeue(b *wire.Batch) {
	if o := c.choose(); o != nil {
		c.start(b, o, c.data[:c.args], c.data[c.args:])
		return
	}
	c.queued = true
	if len(c.job) > 0 {
		c.fn.jobs = slices.Insert(c.fn.jobs, 0, c)
	} else {
		c.fn.queue.pushHead(c)
	}
	if _, _, left := c.patience(); left == 0 {
		if len(c.refused) > 0 {
			c.refusedByAll(b)
			return
		}
		// It had a slot: --no-wait was kept, and what is left is to find another.
		c.waitSlot = -1
	}
	c.setTimer()
}

// refusedByAll ends a call that every worker was too busy for.
func (c *call) refusedByAll(b *wire.Batch) {
	c.endFor(b, args.CodeBusy, c.fn.name+": every worker said that it is busy")
}

// workerLost handles a call whose worker has vanished. The session is gone and
// its offers are out of the registry.
func (c *call) workerLost(b *wire.Batch) {
	worker, idempotent := c.offer.session, c.offer.idempotent
	may := len(c.job) == 0 && c.whole && !c.passed && !c.ended && (idempotent && c.lost < maxLost || c.retries > 0)
	name := worker.name
	if !may && !c.ended {
		c.end(b, &wire.EndFrame{
			Source: args.FromBus, Status: uint64(args.StatusOf(args.CodeWorkerLost)), Code: []byte(args.CodeWorkerLost),
			Message: []byte(c.fn.name + ": worker " + name + " was lost: the call may have run"),
		})
	}
	c.leave()
	if !may {
		c.finish()
		return
	}
	c.lost++
	if c.retries > 0 {
		c.retries--
	}
	c.requeue(b)
}

// callerLost handles a call whose caller has vanished.
func (c *call) callerLost(b *wire.Batch) {
	if c.ended {
		return
	}
	code := cmp.Or(c.session.dismissed, args.CodeCancelled)
	c.close(&wire.EndFrame{Source: args.FromBus, Status: uint64(args.StatusOf(code)), Code: []byte(code)})
	c.dismiss(b, args.CodeCancelled)
}

// log logs the end of a call, for fbus.log and --log.
func (c *call) log(f *wire.EndFrame) {
	if reserved(c.fn.name) || len(c.job) > 0 && !c.counted {
		return
	}
	now := time.Now()
	e := bus.LogEntry{
		Time: now, Event: calllog.EventCall, Call: c.name(), Caller: c.callerName(), From: c.session.peer.From, Function: c.fn.name,
		In: c.bytesIn, Out: c.bytesOut, Source: f.Source.String(), Status: int(f.Status), Code: string(f.Code),
		Waited: now.Sub(c.arrived).Seconds(),
	}
	if f.Source == args.FromBus {
		e.Message = string(f.Message)
	}
	if c.offer != nil {
		e.Worker = c.offer.session.name
		e.Waited, e.Ran = c.started.Sub(c.arrived).Seconds(), now.Sub(c.started).Seconds()
	}
	c.node.cfg.Log.Append(&e)
}

package node

import (
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/wire"
)

// endFor ends a call for its caller: by deadline, cancellation or refusal. Its worker,
// if it has one, gets CANCEL; the slot stays taken until the worker's own END.
func (c *call) endFor(b *wire.Batch, code, msg string) {
	c.endWith(b, &args.Error{Code: code, Message: msg})
}

// endWith is endFor for an error.
func (c *call) endWith(b *wire.Batch, e *args.Error) {
	if c.state.ended() {
		return
	}
	code := e.Code
	f := &wire.EndFrame{Source: args.FromBus, Status: uint64(e.Status()), Code: []byte(code), Message: []byte(e.Message)}
	if c.offer == nil {
		c.end(b, f, done)
		c.fn.tidy()
		return
	}
	c.end(b, f, orphaned)
	if code != args.CodeDeadline {
		code = args.CodeCancelled
	}
	b.Send(c.offer.session.conn, &wire.CancelFrame{ID: c.workerID, Code: []byte(code)})
}

// end sends END to the caller, counts and logs how the call ended, and moves it to
// its next state. Every call that ends or is refused passes here. f lacks only the ids.
func (c *call) end(b *wire.Batch, f *wire.EndFrame, next state) {
	if c.posted != nil {
		c.posted.write(c, wire.Output, f.Output)
		c.posted.finish(c, &jobs.End{Source: f.Source.String(), Status: int(f.Status), Code: string(f.Code), Message: string(f.Message), Lost: c.lost > 0, Relay: c.cutOff}, 0)
	} else if !c.session.gone {
		f.ID, f.Call, f.Worker = c.id, c.shownID(true), nil
		if c.offer != nil {
			f.Worker = c.offer.session.nameText
		}
		c.passProgress(b, maxProgress)
		out := f.Output
		if k := len(out); k > longest { // with these names it might not fit a frame
			b.Send(c.session.conn, &wire.DataFrame{ID: c.id, Stream: wire.Output, Payload: out[:k/2]})
			f.Output = out[k/2:]
		}
		b.Send(c.session.conn, f)
		if f.Source == args.FromBus && args.NotTaken(string(f.Code)) {
			c.session.notTaken = time.Now()
		}
	}
	c.count(f)
	c.log(f)
	c.to(next)
}

// handleEnd takes a worker's END: the program and all it started are gone. n.mu is held.
func (s *session) handleEnd(b *wire.Batch, f *wire.EndFrame) error {
	c, err := s.outgoing(f, f.ID)
	if c == nil {
		return err
	}
	fl, size := &c.flows[wire.Output], int64(len(f.Output))
	if size > fl.out {
		return wire.Broken(f, f.ID, "%d bytes of output with a credit of %d", size, fl.out)
	}
	fl.use(size, c.session)
	fn, o, full := c.fn, c.offer, s.full()
	switch {
	case c.state == orphaned:
		c.to(done)
	case c.relayed(f):
		fl.passed += size
		f.Code = []byte(args.Relayed(string(f.Code)))
		c.end(b, f, done)
	case c.bounced(f):
		fl.held += size // not passed on, so the caller will not grant it again
		if c.posted != nil {
			c.returnJob(o)
		} else {
			c.requeue(b, o)
		}
	case o.lost(f) && c.lose():
		fl.held += size
		c.requeue(b, o)
	default:
		switch {
		case c.posted != nil && c.givenUp(f):
			c.lost++
			f.Status, f.Code = uint64(args.StatusOf(args.CodeWorkerLost)), []byte(args.CodeWorkerLost)
			f.Message = []byte(c.fn.name + ": worker " + o.session.name + " ended it before it finished")
		case f.Source == args.FromBus && fn.own == nil && !o.session.relays && !o.lost(f) && !c.late(f):
			f.Code = []byte(args.OfWorker(string(f.Code)))
		}
		fl.passed += size
		c.end(b, f, done)
	}
	if fn.own != nil {
		fn.node.fillOwn(b)
	}
	if full { // its other functions may have waited for this
		s.fill(b)
	} else {
		o.fill(b)
	}
	fn.tidy()
	return nil
}

// late reports whether a worker has ended a call at its deadline: its clock may be a little faster
// than the node's timer.
func (c *call) late(f *wire.EndFrame) bool {
	return string(f.Code) == args.CodeDeadline && !c.deadline.IsZero() && time.Until(c.deadline) < 100*time.Millisecond
}

// relayed reports whether a worker says that it has not taken the call though it has a slot for it,
// and passes on so what a call of its own has ended with meanwhile. A relay means what it says.
func (c *call) relayed(f *wire.EndFrame) bool {
	o := c.offer
	return f.Source == args.FromBus && args.NotTaken(string(f.Code)) && !o.session.relays && o.at[0] >= 0 && o.slots >= o.busy && o.session.notTaken.After(c.started)
}

// bounced reports whether an END means that the worker has not taken the call, and
// another may be asked.
func (c *call) bounced(f *wire.EndFrame) bool {
	code := string(f.Code)
	if f.Source == args.FromBus && code == args.CodeCannotStart {
		return c.notStarted()
	}
	if c.data == nil {
		return false
	}
	switch {
	case f.Source == args.FromBus && (code == args.CodeBusy || code == args.CodeDraining):
		if c.offer.relay {
			c.offer.spend(c)
			return true
		}
		// It has crossed a change of the offer: the same worker may take it yet.
		if c.bounces++; c.bounces < maxBounces && c.posted == nil {
			return true
		}
		c.refused = append(c.refused, c.offer.session)
		return c.posted != nil || c.another()
	case f.Source == args.FromBus && code == args.CodeDenied && c.offer.relay: // it is the relay that the other node denies this
		c.refused = append(c.refused, c.offer.session)
		return c.posted != nil || c.another()
	case c.input == inputWhole && f.Source == args.FromProgram && f.Status == uint64(args.StatusOf(args.CodeBusy)):
	default:
		return false
	}
	c.refused = append(c.refused, c.offer.session)
	return c.another()
}

// givenUp reports whether a worker has ended a call by itself, as when its time for a drain is over.
// Neither the node nor the caller has asked for that.
func (c *call) givenUp(f *wire.EndFrame) bool {
	code := string(f.Code)
	return f.Source == args.FromBus && (code == args.CodeCancelled || code == args.CodeDraining || code == args.CodeNodeLost)
}

// lost reports whether a call's worker is lost by its END: it has lost the process that held the
// program, and the program with it (see [args.KeeperKilled]), or a relay has lost the worker.
func (o *offer) lost(f *wire.EndFrame) bool {
	return f.Source == args.FromBus && string(f.Code) == args.CodeWorkerLost && (o.relay || strings.HasPrefix(string(f.Message), args.KeeperKilled))
}

// spend takes the slot of a call that a relay could not pass on: it asks for another one and makes its offer
// again. If it has done so since it got the call, it knows better.
func (o *offer) spend(c *call) {
	if c.workerID > o.lastOut && o.slots > 0 {
		o.slots--
		o.fn.node.changes.worker(o)
	}
}

// notStarted is bounced for a worker that cannot start the program. A job can always go back to
// the store, which has its input.
func (c *call) notStarted() bool {
	o := c.offer
	if c.posted != nil {
		return c.flows[wire.Output].passed == 0
	}
	if c.data == nil {
		return false
	}
	if o.relay && c.waitFunction == 0 { // the other node has asked all its workers
		c.refused = append(c.refused, o.session)
		return c.another()
	}
	if o.slots >= o.busy { // it goes on offering what it cannot do: do not ask it for ever
		if c.bounces++; c.bounces >= maxBounces {
			c.refused = append(c.refused, o.session)
		}
	}
	return c.another() || c.waitFunction != 0 && c.fn.whyStopped(&c.on, c.reach()) != nil
}

// requeue offers a call again that its worker has given back, or makes it wait at its
// place by age. A relay that refuses it is no slot that it had. One that waits for no slot and may not
// leave comes from a relay, whose node looks for another slot.
func (c *call) requeue(b *wire.Batch, from *offer) {
	if !c.to(waiting) {
		return
	}
	if o := c.choose(); o != nil {
		c.start(b, o, c.data[:c.args], c.data[c.args:])
		return
	}
	e, left := c.patience()
	switch {
	case left == 0 && (len(c.refused) > 0 || e.Code == args.CodeCannotStart || from.relay):
		c.endWith(b, e)
		return
	case c.waitSlot == 0 && c.reach() == here:
		c.endFor(b, args.CodeBusy, c.fn.name+": no slot is free")
		return
	case left == 0:
		c.waitSlot = -1 // it had a slot, so --no-wait was kept; now it waits for another
	}
	c.wait()
}

// workerLost handles a call whose worker has vanished. The session is gone and its
// offers are out of the registry.
func (c *call) workerLost(b *wire.Batch) {
	if c.state == orphaned {
		c.to(done)
		return
	}
	o := c.offer
	c.cutOff = o.relay
	if !c.lose() {
		c.end(b, &wire.EndFrame{
			Source: args.FromBus, Status: uint64(args.StatusOf(args.CodeWorkerLost)), Code: []byte(args.CodeWorkerLost),
			Message: []byte(c.fn.name + ": worker " + c.offer.session.name + " was lost: the call may have run"),
		}, done)
		return
	}
	c.requeue(b, o)
}

// lose counts a lost worker, and reports whether the call is to be run again here. The store of
// jobs decides about a job.
func (c *call) lose() (again bool) {
	again = c.posted == nil && c.input == inputWhole && c.data != nil && (c.offer.idempotent && c.lost < maxLost || c.retries > 0)
	c.lost++
	if again && c.retries > 0 {
		c.retries--
	}
	return again
}

// callerLost handles a call whose caller has vanished.
func (c *call) callerLost(b *wire.Batch) {
	code := args.CodeCancelled
	if e := c.session.dismissed; e != nil {
		code = e.Code
	}
	c.endFor(b, code, "")
}

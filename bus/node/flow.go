package node

import "fbus/bus/wire"

// The node passes credit on to a stream's sender only as far as its own buffers cover it: if
// the receiver then stops reading, the node has to hold that much.

const (
	// maxConnExposure bounds the credit outstanding towards one receiver, or all of one identity.
	maxConnExposure = 8 << 20
	// firstOutput and firstStderr bound the credit that a call starts with. Many calls
	// print little, and others cannot use the credit that they hold.
	firstOutput = 64 << 10
	firstStderr = 16 << 10
	// smallDose is not worth a frame while the sender has credit left.
	smallDose = 16 << 10
	leastDose = 4 << 10
	// longest is how many bytes are passed on in one frame: with whatever the
	// next hop adds they fit it.
	longest = wire.MaxFrame - 16<<10
)

// flow is the credit of one stream of a call, between the side that sends and
// the side that receives. The node's mu protects it.
type flow struct {
	call   *call
	stream wire.Stream
	held   int64 // granted by the receiver, not given to the sender yet
	out    int64 // given to the sender, not used yet
	passed int64 // bytes that the sender has sent
	listed bool  // in the receiver's held list
}

// ends returns the sender and the receiver, nil if there is none, and the call's id at the
// sender.
func (f *flow) ends() (from *session, id uint64, to *session) {
	c := f.call
	var worker *session
	if c.offer != nil {
		worker = c.offer.session
	}
	if f.stream == wire.Input {
		return c.session, c.id, worker
	}
	return worker, c.workerID, c.session
}

// dose returns how much credit one sender may have now. It falls as the receiver's part of the
// buffers is used or promised.
func (n *Node) dose(to *identity) int64 {
	used := to.exposure + to.budget.Used()
	_, all := n.limits(to, n.buffers())
	most := max(min(to.budget.Max, all-n.exposure-n.budget.Used()+used), n.budget.Max/64)
	switch {
	case used < most/2:
		return min(wire.MaxWindow, most/2)
	case used < most/4*3:
		return 64 << 10
	case used < most:
		return smallDose
	}
	return leastDose
}

// first takes the credit that a call starts with.
func (f *flow) first(most int64) uint64 {
	d := min(f.held, most, f.call.node.dose(f.call.session.identity))
	f.add(d, f.call.session)
	return uint64(d)
}

// add moves credit from held to out.
func (f *flow) add(d int64, to *session) {
	f.held -= d
	f.out += d
	f.call.node.exposure += d
	to.exposure += d
	to.identity.exposure += d
}

// use takes credit that the sender has used.
func (f *flow) use(d int64, to *session) {
	f.out -= d
	f.call.node.exposure -= d
	to.exposure -= d
	to.identity.exposure -= d
}

// give grants the sender more, if the receiver keeps up; if not, the flow is listed with
// the receiver until it does.
func (f *flow) give(b *wire.Batch) {
	from, id, to := f.ends()
	if f.held == 0 || from == nil || to == nil || f.call.state.ended() {
		return
	}
	d := min(f.held, f.call.node.dose(to.identity)-f.out)
	if d < min(f.held, smallDose) && f.out > 0 {
		return // asked again when the sender has used what it has
	}
	d = min(d, maxConnExposure-to.exposed())
	if f.out == 0 {
		d = max(d, min(f.held, leastDose)) // idle calls must not starve this one
	}
	if d <= 0 || to.stalled() {
		if !f.listed {
			f.listed = true
			to.held = append(to.held, f)
		}
		return
	}
	if f.stream == wire.Input && f.call.input != inputWhole {
		f.call.forget() // its worker has taken it: it cannot be offered again
	}
	f.add(d, to)
	if from.conn == nil {
		f.call.posted.granted(f.call, int(d))
		return
	}
	b.Send(from.conn, &wire.GrantFrame{ID: id, Stream: f.stream, Bytes: uint64(d)})
}

// exposed returns the credit given for sending to the session, or to all of an identity that is
// bounded as one.
func (s *session) exposed() int64 {
	if s.identity.rank == owner {
		return s.exposure
	}
	return s.identity.exposure
}

// stalled reports whether the peer does not take what is sent to it.
func (s *session) stalled() bool { return s.conn != nil && s.conn.Stalled() }

// release takes back the credit that the sender did not use; it counts as held again.
func (f *flow) release() {
	_, _, to := f.ends()
	f.held += f.out
	if to != nil {
		f.use(f.out, to)
	}
}

// giveHeld tries every flow again that was listed with this receiver.
func (s *session) giveHeld(b *wire.Batch) {
	held := s.held
	s.held = nil
	for _, f := range held {
		f.listed = false
		if _, _, to := f.ends(); to == s && f.call.state != done {
			f.give(b)
		}
	}
}

// pass accounts for bytes of a stream and returns their receiver; nil if they are not wanted
// any more.
func (c *call) pass(b *wire.Batch, f *wire.DataFrame) (to *session, id uint64, err error) {
	fl := &c.flows[f.Stream]
	_, _, to = fl.ends()
	size := int64(len(f.Payload))
	if size > fl.out {
		return nil, 0, wire.Broken(f, f.ID, "%d bytes with a credit of %d", size, fl.out)
	}
	if f.Stream == wire.Input && c.input != inputOpen {
		return nil, 0, wire.Broken(f, f.ID, "it comes after the input's end")
	}
	if to == nil || size == 0 { // an empty frame passes nothing on
		return nil, 0, nil
	}
	fl.use(size, to)
	if c.state.ended() {
		return nil, 0, nil
	}
	fl.passed += size
	id = c.id
	switch f.Stream {
	case wire.Input:
		id = c.workerID
	case wire.Output:
		c.forget()
	}
	fl.give(b)
	if len(to.held) > 0 && to.exposed() < maxConnExposure/2 && !to.stalled() {
		to.giveHeld(b)
	}
	return to, id, nil
}

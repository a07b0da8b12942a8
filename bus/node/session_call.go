package node

import (
	"fbus/bus/args"
	"fbus/bus/wire"
)

// find finds the call of a frame by its id; nil if it has ended. last is the highest id of the
// side that sends such a frame, other are the calls of the other side.
func find(f wire.Frame, id uint64, calls, other map[uint64]*call, last uint64) (*call, error) {
	if c := calls[id]; c != nil {
		return c, nil
	}
	if id == 0 || id > last {
		return nil, wire.NotOpen(f, id, other[id] != nil)
	}
	return nil, nil
}

// incoming finds a call that the peer opened.
func (s *session) incoming(f wire.Frame, id uint64) (*call, error) {
	return find(f, id, s.in, s.out, s.lastIn)
}

// outgoing finds a call that the node opened at the peer.
func (s *session) outgoing(f wire.Frame, id uint64) (*call, error) {
	return find(f, id, s.out, s.in, s.lastOut)
}

// handleData passes bytes on to the call's other end.
func (s *session) handleData(b *wire.Batch, f *wire.DataFrame) error {
	n := s.node
	n.mu.Lock()
	if s.dismissed != nil {
		n.mu.Unlock()
		return s.dismissed
	}
	owner := s.outgoing // the side that opened a call sends its input, the other its output
	if f.Stream == wire.Input {
		owner = s.incoming
	}
	c, err := owner(f, f.ID)
	if c == nil {
		n.mu.Unlock()
		return err
	}
	to, id, err := c.pass(b, f)
	n.mu.Unlock()
	if to == nil {
		return err
	}
	if to.conn == nil {
		c.posted.write(c, f.Stream, f.Payload)
		return nil
	}
	if k := len(f.Payload); k > longest { // with a longer id it might not fit a frame
		b.Send(to.conn, &wire.DataFrame{ID: id, Stream: f.Stream, Payload: f.Payload[:k/2]})
		f.Payload = f.Payload[k/2:]
	}
	f.ID = id // the rest is passed on as it came
	b.Send(to.conn, f)
	return nil
}

// handleEOF ends a call's input. As in the functions below, n.mu is held.
func (s *session) handleEOF(b *wire.Batch, f *wire.EOFFrame) error {
	c, err := s.incoming(f, f.ID)
	if c == nil {
		return err
	}
	if c.input != inputOpen {
		return protocol("EOF after the input's end")
	}
	if c.offer == nil { // still queued: CALL has brought all of it
		c.input = inputWhole
		return nil
	}
	c.input = inputEnded
	b.Send(c.offer.session.conn, &wire.EOFFrame{ID: c.workerID})
	return nil
}

func (s *session) handleGrant(b *wire.Batch, f *wire.GrantFrame) error {
	owner := s.incoming
	if f.Stream == wire.Input {
		owner = s.outgoing
	}
	c, err := owner(f, f.ID)
	if c == nil {
		return err
	}
	fl := &c.flows[f.Stream]
	if fl.held+fl.out+int64(f.Bytes) > wire.MaxWindow {
		return protocol("credit of %d bytes exceeds the limit of %d", fl.held+fl.out+int64(f.Bytes), wire.MaxWindow)
	}
	fl.held += int64(f.Bytes)
	fl.give(b)
	return nil
}

func (s *session) handleCancel(b *wire.Batch, f *wire.CancelFrame) error {
	c, err := s.incoming(f, f.ID)
	if c == nil {
		return err
	}
	code, msg := args.CodeCancelled, "cancelled by the caller"
	if string(f.Code) == args.CodeDeadline {
		code, msg = args.CodeDeadline, args.DeadlineMessage
	}
	c.endFor(b, code, msg)
	return nil
}

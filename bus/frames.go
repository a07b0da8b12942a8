package bus

import (
	"bytes"
	"io"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/wire"
)

// Handle implements [wire.Handler]: it is called by the connection.
func (c *Client) Handle(b *wire.Batch, f wire.Frame) error {
	if !c.greeted {
		return c.greet(f)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch f := f.(type) {
	case *wire.ErrorFrame:
		return args.FromWire(string(f.Code), string(f.Message), 0)
	case *wire.OfferedFrame:
		answer := c.pending[f.Seq]
		if answer == nil {
			return args.Errorf(args.CodeProtocol, "OFFERED of offer %d, which was never made", f.Seq)
		}
		delete(c.pending, f.Seq)
		if len(f.Code) == 0 {
			answer <- nil
		} else {
			answer <- args.FromWire(string(f.Code), string(f.Message), 0)
		}
		return nil

	// Of calls that the node opened:
	case *wire.CallFrame:
		return c.handleCall(b, f)
	case *wire.EOFFrame:
		inv, err := c.incoming(f, f.ID)
		if inv == nil {
			return err
		}
		return about(f, f.ID, inv.rest.finish())
	case *wire.CancelFrame:
		inv, err := c.incoming(f, f.ID)
		if inv == nil {
			return err
		}
		cause := ErrCancelled
		if string(f.Code) == args.CodeDeadline {
			cause = ErrDeadline
		}
		inv.stop(cause)
		return nil

	// Of calls that this side opened:
	case *wire.EndFrame:
		return c.handleEnd(f)
	case *wire.ProgressFrame:
		return c.handleProgress(f)

	// Of both:
	case *wire.DataFrame:
		if f.Stream == wire.Input {
			inv, err := c.incoming(f, f.ID)
			switch {
			case inv == nil:
				return err
			case inv.rest == nil:
				return about(f, f.ID, errInputEnded)
			}
			return about(f, f.ID, inv.rest.push(f.Payload))
		}
		call, err := c.outgoing(f, f.ID)
		switch {
		case call == nil:
			return err
		case f.Stream == wire.Output:
			return about(f, f.ID, call.stdout.push(f.Payload))
		case call.errEnd == nil:
			call.errEnd, call.stderr.wake = make(chan error, 1), make(chan struct{}, 1)
			go call.pumpStderr() // ends with the call's stderr
		}
		return about(f, f.ID, call.stderr.push(f.Payload))
	case *wire.GrantFrame:
		if f.Stream == wire.Input {
			call, err := c.outgoing(f, f.ID)
			if call == nil || call.input == nil {
				return err
			}
			return about(f, f.ID, call.input.grant(f.Bytes))
		}
		inv, err := c.incoming(f, f.ID)
		switch {
		case inv == nil:
			return err
		case f.Stream == wire.Stderr:
			return about(f, f.ID, inv.err.grant(f.Bytes))
		}
		return about(f, f.ID, inv.out.grant(f.Bytes))
	}
	return args.Errorf(args.CodeProtocol, "%s is not for a client", wire.Name(f))
}

// about names the frame and the call in the error of a rule that it breaks.
func about(f wire.Frame, id uint64, err error) error {
	if err == nil {
		return nil
	}
	return wire.Broken(f, id, "%v", err)
}

// incoming returns the call of the node's that a frame is about, nil if it has ended.
func (c *Client) incoming(f wire.Frame, id uint64) (*Invocation, error) {
	inv := c.in[id]
	if inv == nil && (id == 0 || id > c.lastIn) {
		return nil, wire.NotOpen(f, id, c.out[id] != nil)
	}
	return inv, nil
}

// outgoing returns our call that a frame is about, nil if it has ended.
func (c *Client) outgoing(f wire.Frame, id uint64) (*outCall, error) {
	call := c.out[id]
	if call == nil && (id == 0 || id > c.lastOut) {
		return nil, wire.NotOpen(f, id, c.in[id] != nil)
	}
	return call, nil
}

// handleCall starts a call that the node opened. The client's mu is held.
func (c *Client) handleCall(b *wire.Batch, f *wire.CallFrame) error {
	if f.ID <= c.lastIn {
		return wire.Broken(f, f.ID, "element 1 (id) must be above %d, the last one", c.lastIn)
	}
	c.lastIn = f.ID
	off := c.offers[string(f.Name)]
	if off == nil || off.running.n >= off.slots {
		// Our offer and the node's call have crossed: it looks elsewhere.
		return b.Send(c.conn, &wire.EndFrame{ID: f.ID, Source: args.FromBus, Status: 75, Code: []byte(args.CodeBusy), Message: []byte("no slot is free at the worker")})
	}
	inv := newInvocation(c, off, f)
	c.in[f.ID] = inv
	off.running.n++
	c.handlers.Add(1)
	go inv.serve() // ends with the handler
	return nil
}

// handleEnd ends a call of ours. The client's mu is held.
func (c *Client) handleEnd(f *wire.EndFrame) error {
	call, err := c.outgoing(f, f.ID)
	if left := c.left[f.ID]; left != nil && call == nil {
		delete(c.left, f.ID)
		left.result.Worker = c.workers.intern(f.Worker)
		close(left.told)
	}
	if call == nil {
		return err
	}
	if err := call.stdout.push(f.Output); err != nil {
		return about(f, f.ID, err) // it is failed with the connection
	}
	delete(c.out, f.ID)
	message, hint := string(f.Message), ""
	if strings.HasPrefix(call.req.Function, "fbus.") { // the node's own; a worker gives no advice in our name
		message, hint = args.SplitHint(message)
	}
	call.result = Result{
		End:  End{Source: f.Source, Status: int(f.Status), Code: c.codes.intern(f.Code), Message: message, Hint: hint},
		Call: string(f.Call), Worker: c.workers.intern(f.Worker),
	}
	call.stderr.close(io.EOF)
	call.stdout.close(io.EOF)
	return nil
}

// greet takes the node's first frame.
func (c *Client) greet(f wire.Frame) error {
	switch f := f.(type) {
	case *wire.HelloFrame:
		if f.Major != wire.Major {
			return args.Errorf(args.CodeVersion, "node speaks version %d of the protocol, this program version %d", f.Major, wire.Major)
		}
		if c.lower && f.Minor < 1 {
			return args.Errorf(args.CodeVersion, "node speaks version %d.%d of the protocol, which cannot lower the rights of a connection", f.Major, f.Minor)
		}
		c.conn.NetConn().SetReadDeadline(time.Time{})
		c.mu.Lock()
		c.node = wire.HelloFrame{
			Major: f.Major, Minor: f.Minor,
			Network: bytes.Clone(f.Network), Instance: bytes.Clone(f.Instance), Name: bytes.Clone(f.Name), Connection: bytes.Clone(f.Connection),
		}
		for _, capability := range f.Caps {
			c.node.Caps = append(c.node.Caps, bytes.Clone(capability))
		}
		c.mu.Unlock()
		c.greeted = true
		close(c.hello)
		return nil
	case *wire.ErrorFrame:
		return args.FromWire(string(f.Code), string(f.Message), 0)
	}
	return args.Errorf(args.CodeProtocol, "%s before HELLO: the first frame must be HELLO", wire.Name(f))
}

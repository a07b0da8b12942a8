package bus

import (
	"fbus/bus/args"
	"fbus/bus/wire"
)

// outgoing finds a call that this side opened, nil for one that has ended. The
// client's mu is held.
func (c *Client) outgoing(id uint64) (*outCall, error) {
	if call := c.out[id]; call != nil {
		return call, nil
	}
	if id == 0 || id > c.lastOut {
		return nil, args.Errorf(args.CodeProtocol, "frame for call %d, which was never opened", id)
	}
	return nil, nil
}

// outputData takes stdout or stderr of a call of ours.
func (c *Client) outputData(f *wire.DataFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call, err := c.outgoing(f.ID)
	if call == nil {
		return err
	}
	if f.Stream == wire.Stderr {
		if call.errEnd == nil {
			call.errEnd = make(chan struct{})
			call.stderr.expect()
			go call.pumpStderr(call.errEnd) // ends with the call's stderr
		}
		return call.stderr.push(f.Payload)
	}
	return call.stdout.push(f.Payload)
}

// pumpStderr writes stderr alongside stdout, so that neither waits for the other.
func (call *outCall) pumpStderr(done chan struct{}) {
	defer close(done)
	for range call.stderr.wake {
		call.stderr.pass(call.req.Stderr) // an error is kept for the end
		if call.stderr.finished() {
			return
		}
	}
}

// inputGrant lets a call of ours send more input.
func (c *Client) inputGrant(f *wire.GrantFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call, err := c.outgoing(f.ID)
	if call == nil || call.input == nil {
		return err
	}
	return call.input.grant(f.Bytes)
}

// interned is a text that comes again and again.
type interned string

// intern returns p as a string, without a copy if it is the same as the last.
func (i *interned) intern(p []byte) string {
	if string(p) != string(*i) {
		*i = interned(p)
	}
	return string(*i)
}

// handleEnd ends a call of ours.
func (c *Client) handleEnd(f *wire.EndFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call, err := c.outgoing(f.ID)
	if left := c.left[f.ID]; left != nil && call == nil {
		delete(c.left, f.ID)
		left.result.Worker = c.workers.intern(f.Worker)
		close(left.told)
	}
	if call == nil {
		return err
	}
	if err := call.stdout.push(f.Output); err != nil {
		return err // it is failed with the connection
	}
	delete(c.out, f.ID)
	message, hint := args.SplitHint(string(f.Message))
	call.result = Result{
		End:  End{Source: f.Source, Status: int(f.Status), Code: c.codes.intern(f.Code), Message: message, Hint: hint},
		Call: string(f.Call), Worker: c.workers.intern(f.Worker),
	}
	call.stderr.close()
	call.stdout.close()
	return nil
}

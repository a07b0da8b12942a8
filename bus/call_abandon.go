package bus

import (
	"context"
	"errors"
	"fbus/bus/args"
	"fbus/bus/wire"
	"time"
)

// abandon ends the call on our side, and informs the node that nobody waits any
// more.
func (call *outCall) abandon(err error) {
	c := call.client
	c.mu.Lock()
	_, open := c.out[call.id]
	if open {
		delete(c.out, call.id)
		if call.req.Farewell > 0 {
			call.told = make(chan struct{})
			c.left[call.id] = call
		}
		call.fail(err)
	}
	c.mu.Unlock()
	if !open {
		return
	}
	code := args.CodeCancelled
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrDeadline) {
		code = args.CodeDeadline
	}
	c.conn.Send(&wire.CancelFrame{ID: call.id, Code: []byte(code)})
}

// awaitEnd waits for the END of a call that was given up, which names the worker that had it.
func (call *outCall) awaitEnd() {
	c := call.client
	c.mu.Lock()
	told := call.told
	c.mu.Unlock()
	if told == nil {
		return
	}
	timer := time.NewTimer(call.req.Farewell)
	defer timer.Stop()
	select {
	case <-told:
	case <-c.done:
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.left, call.id)
}

// fail ends the call without a result. The client's mu is held.
func (call *outCall) fail(err error) {
	call.err = err
	call.stderr.close()
	call.stdout.close()
}

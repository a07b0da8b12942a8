package node

import (
	"context"
	"math"
	"time"
)

// lateTime is how long a drain waits for the first frame of clients that have connected
// just before: a call that is on its way still finds the node. Clients that only wait do
// not hold it up longer.
var lateTime = 2 * time.Second

// changesTime is how long a drain waits for calls of the node's own functions that change
// something, so that their callers get the answer.
var changesTime = time.Second

// Drain refuses new calls and waits until all that are queued or running have
// ended, or ctx has. The owner of the listener closes that before. A client that has
// connected just before may still make its first call.
func (n *Node) Drain(ctx context.Context) error {
	n.mu.Lock()
	n.draining = true
	n.mu.Unlock()
	n.poll(ctx, lateTime, func() bool { return !n.late() })
	n.mu.Lock()
	for _, s := range n.sessions {
		s.fresh = false
	}
	n.mu.Unlock()
	err := n.poll(ctx, math.MaxInt64, func() bool { return n.open+n.taking == 0 })
	if err == nil {
		n.poll(ctx, changesTime, func() bool { return !n.changing() })
	}
	return err
}

// poll returns when it is done, or with an error after the time. A channel in place of
// looking again and again would cost each connection something all its life. done is called
// with n.mu held.
func (n *Node) poll(ctx context.Context, most time.Duration, done func() bool) error {
	limit := time.NewTimer(most)
	defer limit.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		n.mu.Lock()
		ok := done()
		n.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-again.C:
		case <-limit.C:
			return context.DeadlineExceeded
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// late reports whether a client has connected just now and sent neither a call nor an offer.
// n.mu is held.
func (n *Node) late() bool {
	for _, s := range n.sessions {
		if s.fresh && time.Since(s.began) < lateTime {
			return true
		}
	}
	return n.arriving.Load() > 0 || n.entering.size() > 0
}

// changing reports whether a call of the node's own functions is under way that changes
// something. n.mu is held.
func (n *Node) changing() bool {
	for _, s := range n.sessions {
		for _, c := range s.in {
			if c.fn.own != nil && c.fn.own.changes {
				return true
			}
		}
	}
	return false
}

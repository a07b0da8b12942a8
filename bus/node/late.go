package node

import (
	"context"
	"time"
)

// lateTime is how long a drain waits for the first frame of clients that have connected
// just before: a call that is on its way still finds the node. Clients that only wait do
// not hold it up longer.
var lateTime = 2 * time.Second

// awaitLate returns when every client has sent a call or an offer, or had the time to. The
// listener is closed: no more clients come.
func (n *Node) awaitLate(ctx context.Context) {
	defer n.settleLate(0)
	if !n.settleLate(lateTime) {
		return
	}
	poll(ctx, lateTime, func() bool { return !n.settleLate(lateTime) })
}

// poll returns when it is done, or after the time. A channel in place of looking again and
// again would cost each connection something all its life.
func poll(ctx context.Context, most time.Duration, done func() bool) {
	limit := time.NewTimer(most)
	defer limit.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !done() {
		select {
		case <-again.C:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// settleLate gives up on clients that have been silent for that time, and reports whether
// there are others.
func (n *Node) settleLate(limit time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	late := n.arriving.Load() > 0 || n.entering.size() > 0
	for _, s := range n.sessions {
		if s.fresh && time.Since(s.began) >= limit {
			s.fresh = false
		}
		late = late || s.fresh
	}
	return late
}

// changesTime is how long a drain waits for calls of the node's own functions that change
// something, so that their callers get the answer.
var changesTime = time.Second

// awaitChanges returns when no such call is under way, or after the time.
func (n *Node) awaitChanges(ctx context.Context) {
	poll(ctx, changesTime, func() bool { return !n.changing() })
}

func (n *Node) changing() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.sessions {
		for _, c := range s.in {
			if c.fn.own != nil && c.fn.own.changes {
				return true
			}
		}
	}
	return false
}

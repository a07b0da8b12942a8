package node

import (
	"context"
	"time"
)

// lateTime is how long a drain waits for the first frame of who had connected
// just before: a call that is on its way finds the node that it has reached
// still there. Who connects to wait for something does not hold it up longer.
var lateTime = 2 * time.Second

// awaitLate returns when everybody who was let in has asked for something, or
// had the time to. The listener is closed: there will be no more of them.
func (n *Node) awaitLate(ctx context.Context) {
	defer n.settleLate(0)
	if !n.settleLate(lateTime) {
		return
	}
	poll(ctx, lateTime, func() bool { return !n.settleLate(lateTime) })
}

// poll returns when it is done, or has had the time. It looks again and again: a channel
// that says it would cost each connection something all its life.
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

// settleLate counts those as silent who have asked for nothing in that time,
// and reports whether there are others.
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

// changesTime is how long a drain waits for the end of what changes something at the
// node itself: who has asked for that is to be told.
var changesTime = time.Second

// awaitChanges returns when nothing of that is under way, or has had the time.
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

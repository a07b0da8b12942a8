package fanout

import (
	"context"
	"time"
)

// Calls that take little more than their way are worth having at the node before
// there is a slot: else each slot is idle for a way there and back after each.
const (
	shortCall  = 2 * time.Millisecond // calls go ahead while they take less
	longCall   = 5 * time.Millisecond // and no more once they take that
	paceOver   = 16                   // calls that the pace is the mean of, about
	mostAhead  = 64                   // calls that go ahead at most
	firstPaces = 2 * paceOver         // calls before anything is known
)

// pace is how long calls take of late.
type pace struct {
	mean  time.Duration
	calls int
	short bool
}

// add reports whether calls have become short, or are so no more.
func (p *pace) add(took time.Duration) (changed bool) {
	p.calls++
	p.mean += (took - p.mean) / time.Duration(min(p.calls, paceOver))
	was := p.short
	switch {
	case p.mean >= longCall:
		p.short = false
	case p.mean < shortCall && p.calls >= firstPaces:
		p.short = true
	}
	return was != p.short
}

// note takes a call into the pace.
func (r *Runner) note(ctx context.Context, took time.Duration) {
	if !r.Ahead {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pace.add(took) {
		r.setLimit(ctx, r.slots)
	}
}

// setLimit makes the limit fit the function's slots. mu is held.
func (r *Runner) setLimit(ctx context.Context, slots int) {
	r.slots, r.limit = slots, slots
	if r.pace.short {
		r.limit += min(slots, mostAhead)
	}
	r.grow(ctx)
}

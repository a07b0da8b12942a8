package exec

import (
	"context"
	"slices"
	"sync"
)

// numbers gives each process of a function its FBUS_SLOT.
type numbers struct {
	most int // of them; 0: no limit

	mu  sync.Mutex // protects the field below
	use []int      // processes, by number
}

// take returns the lowest free number. If a process that is being replaced still has the
// last one, its successor shares it.
func (n *numbers) take() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := slices.Index(n.use, 0)
	switch {
	case k >= 0:
	case n.most == 0 || len(n.use) < n.most:
		k = len(n.use)
		n.use = append(n.use, 0)
	default:
		k = slices.Index(n.use, slices.Min(n.use))
	}
	n.use[k]++
	return k
}

func (n *numbers) release(k int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.use[k]--
}

// enterSlot waits for a slot, and for room; the error is ctx's.
func (f *Function) enterSlot(ctx context.Context) error {
	if err := enter(ctx, f.slots); err != nil {
		return err
	}
	err := enter(ctx, f.spec.Room)
	if err != nil {
		leave(f.slots)
	}
	return err
}

func (f *Function) leaveSlot() {
	leave(f.spec.Room)
	leave(f.slots)
}

// enter waits until there is room for one more in a channel, which may be nil.
func enter(ctx context.Context, in chan struct{}) error {
	if in != nil {
		select {
		case in <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := ctx.Err()
	if err != nil {
		leave(in)
	}
	return err
}

func leave(in chan struct{}) {
	if in != nil {
		<-in
	}
}

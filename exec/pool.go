package exec

import (
	"context"
	"slices"
	"sync"
	"time"
)

// idleAfter is how long keepers that nothing needs any more are held.
var idleAfter = 30 * time.Second

// pool holds one function's keepers.
type pool struct {
	setup setup
	slots chan struct{} // nil: no limit
	logf  func(string, ...any)

	mu     sync.Mutex // guards what follows
	idle   []*keeper  // the last used is last
	trim   *time.Timer
	closed bool
}

func newPool(s setup, slots int, logf func(string, ...any)) (*pool, error) {
	p := &pool{setup: s, logf: logf}
	if slots > 0 {
		p.slots = make(chan struct{}, slots)
	}
	// The first call should not pay for a keeper's start, and what keeps
	// keepers from starting should show when the function is offered.
	k, err := startKeeper(&p.setup)
	if err != nil {
		return nil, err
	}
	p.idle = []*keeper{k}
	return p, nil
}

// get waits for a slot and returns a keeper; the error is ctx's or means that
// no keeper can be started.
func (p *pool) get(ctx context.Context) (*keeper, error) {
	if p.slots != nil {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	k, err := p.take()
	if err != nil {
		p.leave()
	}
	return k, err
}

// take returns an idle keeper or a new one, without asking for a slot.
func (p *pool) take() (*keeper, error) {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		k := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return k, nil
	}
	p.mu.Unlock()
	return startKeeper(&p.setup)
}

func (p *pool) leave() {
	if p.slots != nil {
		<-p.slots
	}
}

// put gives a keeper and its slot back.
func (p *pool) put(k *keeper) {
	defer p.leave()
	p.mu.Lock()
	defer p.mu.Unlock()
	k.idle = time.Now().UnixNano()
	p.idle = append(p.idle, k)
	if len(p.idle) > 1 && p.trim == nil && !p.closed {
		p.trim = time.AfterFunc(idleAfter, p.endIdle)
	}
}

// endIdle ends keepers that were idle for long, but for the last used one.
func (p *pool) endIdle() {
	p.mu.Lock()
	p.trim = nil
	before := time.Now().Add(-idleAfter).UnixNano()
	n := 0
	for n < len(p.idle)-1 && p.idle[n].idle <= before {
		n++
	}
	old := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	if len(p.idle) > 1 && !p.closed {
		p.trim = time.AfterFunc(idleAfter, p.endIdle)
	}
	p.mu.Unlock()
	for _, k := range old {
		k.end()
	}
}

// close ends all keepers; none may be in use.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	idle := p.idle
	p.idle = nil
	if p.trim != nil {
		p.trim.Stop()
		p.trim = nil
	}
	p.mu.Unlock()
	for _, k := range idle {
		k.end()
	}
}

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

// enter waits for a slot; the error is ctx's.
func (p *pool) enter(ctx context.Context) error {
	if p.slots != nil {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := ctx.Err()
	if err != nil {
		p.leave()
	}
	return err
}

func (p *pool) leave() {
	if p.slots != nil {
		<-p.slots
	}
}

// launch has a keeper start a program. The error means that there is no
// keeper. An idle one may have been killed meanwhile; then the program has not
// started, and another gets it.
func (p *pool) launch(o *order, fds []int) (*keeper, error) {
	for try := 0; ; try++ {
		k, err := p.take()
		if err != nil {
			return nil, err
		}
		if err = k.run(o, fds); err == nil {
			return k, nil
		}
		k.bury()
		if try == 3 {
			return nil, err
		}
	}
}

// take returns an idle keeper or a new one.
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

// put gives a keeper back.
func (p *pool) put(k *keeper) {
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

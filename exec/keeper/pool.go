package keeper

import (
	"slices"
	"sync"
	"time"
)

// Setup describes what all programs of a Pool have in common.
type Setup struct {
	Path   string   // the program, absolute
	Argv   []string // its command line, where an Order has no other
	Env    []string
	Dir    string        // "" is the worker's own directory
	Grace  time.Duration // from TERM to KILL
	Memory int64         // bytes that one program may use; 0 is no limit
}

// Order starts one program.
type Order struct {
	Argv  []string // nil: the setup's
	Env   []string // added to the setup's
	Extra int      // a further descriptor that the program gets, by its number there; 0 is none
	Tell  bool     // report that the program was executed: see Process.Executed
}

// idleAfter is how long keepers are kept that no program needs.
var idleAfter = 30 * time.Second

// Pool holds one function's keepers. Its methods may be used from several
// goroutines.
type Pool struct {
	setup  Setup
	memory *memory

	mu     sync.Mutex // guards what follows
	idle   []*keeper  // the last used is last
	trim   *time.Timer
	closed bool
}

// NewPool starts a first keeper: the first call need not pay for that, and what
// prevents keepers from starting shows when the function is offered.
func NewPool(s Setup) (*Pool, error) {
	p := &Pool{setup: s, memory: newMemory(s.Memory)}
	if p.memory.dir != "" {
		p.setup.Memory = 0 // keepers have nothing to limit
	}
	k, err := startKeeper(&p.setup)
	if err != nil {
		return nil, err
	}
	if err := k.awaitReady(); err != nil {
		k.discard()
		return nil, err
	}
	p.idle = []*keeper{k}
	return p, nil
}

// Probe returns an error if no keeper could be started now.
func (p *Pool) Probe() error {
	k, err := p.take()
	if err != nil {
		return err
	}
	if err := k.awaitReady(); err != nil {
		k.discard()
		return err
	}
	p.put(k)
	return nil
}

// MemoryBy names what limits the programs' memory: "cgroup", "rlimit", or ""
// without a limit.
func (p *Pool) MemoryBy() string { return p.memory.by() }

// Start has a keeper start a program with descriptors 0, 1 and 2, and the extra
// one as the fourth if the order has one. They stay the caller's to close. An
// error means that no keeper could be started; that the program cannot be
// executed is in its End.
func (p *Pool) Start(o Order, fds ...int) (*Process, error) {
	g, err := p.memory.group()
	if err != nil {
		return nil, err
	}
	msg := order{Order: o, cgroup: g != nil}
	if g != nil {
		fds = append(fds[:len(fds):len(fds)], g.fd)
	}
	for try := 0; ; try++ {
		k, err := p.take()
		if err == nil {
			err = k.awaitReady()
		}
		if err == nil {
			if err = k.run(&msg, fds); err == nil {
				return &Process{pool: p, k: k, number: msg.number, group: g}, nil
			}
		}
		if k != nil {
			k.discard() // it was killed while it was idle, so the program has not started
		}
		if k == nil || try == 3 {
			g.remove()
			return nil, err
		}
	}
}

// take returns an idle keeper or a new one.
func (p *Pool) take() (*keeper, error) {
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

// put returns a keeper.
func (p *Pool) put(k *keeper) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k.idle = time.Now().UnixNano()
	p.idle = append(p.idle, k)
	if len(p.idle) > 1 && p.trim == nil && !p.closed {
		p.trim = time.AfterFunc(idleAfter, p.endIdle)
	}
}

// endIdle ends keepers that were idle for long, except the last used one.
func (p *Pool) endIdle() {
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

// Trim ends idle keepers at once, except the last used one: they take descriptors and threads.
func (p *Pool) Trim() {
	p.mu.Lock()
	var old []*keeper
	if n := len(p.idle) - 1; n > 0 {
		old = slices.Clone(p.idle[:n])
		p.idle = slices.Delete(p.idle, 0, n)
	}
	p.mu.Unlock()
	for _, k := range old {
		k.end()
	}
}

// Close ends all keepers. No process may be left.
func (p *Pool) Close() {
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

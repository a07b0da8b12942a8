package node

import (
	"fmt"
	"time"
)

// SetLateTime has drains wait as long for who had connected just before, and for
// changes that are under way, until restore.
func SetLateTime(d time.Duration) (restore func()) {
	late, changes := lateTime, changesTime
	lateTime, changesTime = d, d
	return func() { lateTime, changesTime = late, changes }
}

// Books is what a node keeps count of; a test compares two of them.
type Books struct {
	Sessions, Functions, Open int
	Exposure, Budget          int64
}

// Books reads the node's counts.
func (n *Node) Books() Books {
	n.mu.Lock()
	defer n.mu.Unlock()
	return Books{len(n.sessions), len(n.functions), n.open, n.exposure, n.budget.Used()}
}

// Changing reports whether a call is under way that changes something at the node.
func (n *Node) Changing() bool { return n.changing() }

// Entering is how many connections are at their handshake.
func (n *Node) Entering() int { return n.entering.size() }

// MaxEntering is how many may be.
const MaxEntering = maxEntering

// Exposure is the credit given out and not used yet.
func (n *Node) Exposure() int64 { return n.Books().Exposure }

// BudgetUsed is how many bytes the node holds in buffers.
func (n *Node) BudgetUsed() int64 { return n.budget.Used() }

// QueueLen is how many calls wait for a function.
func (n *Node) QueueLen(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if fn := n.functions[name]; fn != nil {
		return fn.queue.n + len(fn.jobs)
	}
	return 0
}

// Audit checks that the node's counts agree with each other.
func (n *Node) Audit() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := audit{node: n, busy: map[*offer]int{}, owed: map[*session]int64{}, calls: map[*call]bool{}, per: map[*function]int{}}
	for _, s := range n.sessions {
		if err := a.session(s); err != nil {
			return err
		}
	}
	if err := a.totals(); err != nil {
		return err
	}
	for name, fn := range n.functions {
		if err := a.function(name, fn); err != nil {
			return err
		}
	}
	return nil
}

type audit struct {
	node     *Node
	busy     map[*offer]int
	owed     map[*session]int64
	calls    map[*call]bool
	per      map[*function]int
	open     int
	exposure int64
}

func (a *audit) session(s *session) error {
	for id, c := range s.in {
		if c.session != s || c.id != id || c.ended || c.done {
			return fmt.Errorf("call %d of session %d: session %d, id %d, ended %v, done %v", id, s.id, c.session.id, c.id, c.ended, c.done)
		}
		if (c.offer == nil) != c.queued {
			return fmt.Errorf("call %s: queued %v, with a worker %v", c.name(), c.queued, c.offer != nil)
		}
		a.call(c)
	}
	for id, c := range s.out {
		if c.offer == nil || c.offer.session != s || c.workerID != id || c.done {
			return fmt.Errorf("call %s at session %d under %d: its own id %d, done %v", c.name(), s.id, id, c.workerID, c.done)
		}
		a.busy[c.offer]++
		a.call(c)
	}
	for name, o := range s.offers {
		if o.session != s || o.fn.name != name || a.node.functions[name] != o.fn {
			return fmt.Errorf("offer %s of session %d is not in the registry", name, s.id)
		}
	}
	return nil
}

func (a *audit) call(c *call) {
	if a.calls[c] {
		return
	}
	a.calls[c] = true
	a.per[c.fn]++
	if !reserved(c.fn.name) {
		a.open++
	}
	for i := range c.flows {
		f := &c.flows[i]
		_, _, to := f.ends()
		a.exposure += f.out
		if to != nil {
			a.owed[to] += f.out
		}
	}
}

func (a *audit) totals() error {
	n := a.node
	if a.open != n.open {
		return fmt.Errorf("open is %d, %d calls are there", n.open, a.open)
	}
	if a.exposure != n.exposure {
		return fmt.Errorf("exposure is %d, flows have %d", n.exposure, a.exposure)
	}
	if used := n.budget.Used(); used < 0 {
		return fmt.Errorf("budget of %d bytes used", used)
	}
	for _, s := range n.sessions {
		if s.exposure != a.owed[s] {
			return fmt.Errorf("exposure of session %d is %d, flows have %d", s.id, s.exposure, a.owed[s])
		}
	}
	for c := range a.calls {
		for i, f := range c.flows {
			if f.out < 0 || f.held < 0 {
				return fmt.Errorf("call %s stream %d: held %d, out %d", c.name(), i, f.held, f.out)
			}
		}
	}
	return nil
}

func (a *audit) function(name string, fn *function) error {
	if fn.name != name || fn.calls != a.per[fn] {
		return fmt.Errorf("function %s: %d calls, %d are there", name, fn.calls, a.per[fn])
	}
	if len(fn.offers) == 0 && fn.calls == 0 {
		return fmt.Errorf("function %s is kept for nothing", name)
	}
	for _, o := range fn.offers {
		if o.busy != a.busy[o] {
			return fmt.Errorf("function %s at session %d: %d busy, %d calls are there", name, o.session.id, o.busy, a.busy[o])
		}
		if o.session.offers[name] != o {
			return fmt.Errorf("function %s: an offer of session %d stands that it does not make", name, o.session.id)
		}
	}
	queued := len(fn.queue.head)
	for _, l := range fn.queue.lanes {
		queued += len(l.calls)
		if len(l.calls) == 0 {
			return fmt.Errorf("function %s: an empty lane", name)
		}
	}
	if queued != fn.queue.n {
		return fmt.Errorf("function %s: queue of %d, %d are there", name, fn.queue.n, queued)
	}
	return nil
}

// MakeBackground makes the connection of that name one of the node's own for jobs.
func (n *Node) MakeBackground(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.sessions {
		if s.name == name {
			s.background = true
		}
	}
}

// Own are the names of the node's own functions.
func (n *Node) Own() (names []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name := range n.functions {
		if reserved(name) {
			names = append(names, name)
		}
	}
	return names
}

package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"fbus/bus"
)

// GoneTime is how long a queue stays in tests.
const GoneTime = 2 * time.Second

// RelayTime is how long a call that waits for no slot waits for one of a relay in tests.
const RelayTime = time.Second

const MaxRecent = maxRecent

func init() {
	illegal = func(_ *Node, msg string) { panic(msg) }
	goneTime, relayTime = GoneTime, RelayTime
}

// SetRelayTime sets how long a call waits for a slot of a relay until restore.
func SetRelayTime(d time.Duration) (restore func()) {
	was := relayTime
	relayTime = d
	return func() { relayTime = was }
}

// PingFirst sets how second nodes find out that the first one hangs. Call restore when they are closed.
func PingFirst(ping, hangs time.Duration) (restore func()) {
	p, h := firstPing, firstHangs
	firstPing, firstHangs = ping, hangs
	return func() { firstPing, firstHangs = p, h }
}

// DismissExpired is what the node does every few seconds.
func (n *Node) DismissExpired() { n.dismissExpired() }

// OwnNames returns the names of the functions that the node itself offers.
func OwnNames() (names []string) {
	for _, o := range ownFunctions {
		if o.part != ofMesh {
			names = append(names, o.name)
		}
	}
	return names
}

// OwnChanges returns the names of those that change something.
func OwnChanges() (names []string) {
	for _, o := range ownFunctions {
		if o.changes {
			names = append(names, o.name)
		}
	}
	return names
}

// SetHandshakeTime bounds handshakes until the test has ended.
func SetHandshakeTime(d time.Duration) (restore func()) {
	was := handshakeTime
	handshakeTime = d
	return func() { handshakeTime = was }
}

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
	return Books{len(n.sessions), len(n.functions), n.open, n.exposure, n.used()}
}

// Answering is how many calls of the node's own functions run that answer at once.
func (n *Node) Answering() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ownBusy[answers]
}

// Changing reports whether a call is under way that changes something at the node.
func (n *Node) Changing() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changing()
}

// ServeGone has one of the node's own functions serve a call whose caller has gone.
func (n *Node) ServeGone(inv *bus.Invocation) bus.Result {
	inv.Call = n.prefix + "-999-1"
	return n.serveOwn(context.Background(), ownOf(inv.Function), inv)
}

// Entering is how many connections are at their handshake.
func (n *Node) Entering() int { return n.entering.size() }

// MaxEntering is how many may be.
const MaxEntering = maxEntering

// Exposure is the credit given out and not used yet.
func (n *Node) Exposure() int64 { return n.Books().Exposure }

// BudgetUsed is how many bytes the node holds in buffers.
func (n *Node) BudgetUsed() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.used()
}

// used is the budget that is used, less what offers count.
func (n *Node) used() int64 {
	used := n.budget.Used()
	for _, id := range n.identities {
		used -= int64(id.offers)*offerCost + id.text
	}
	return used
}

// QueueLen is how many calls wait for a function.
func (n *Node) QueueLen(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if fn := n.functions[name]; fn != nil {
		return fn.queue.n
	}
	return 0
}

// Live is how many calls wait or take a slot, less those of the node's own functions.
func (n *Node) Live() (live int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, fn := range n.functions {
		if fn.own == nil {
			live += fn.calls
		}
	}
	return live
}

// Audit checks that the node's counts agree with each other.
func (n *Node) Audit() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := audit{node: n, busy: map[*offer]int{}, owed: map[*session]int64{}, calls: map[*call]bool{}, per: map[*function]int{}, own: map[*identity]int{}, live: map[*identity]int{}}
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
	size     int // of the copies that calls keep
	kept     int // copies of calls that have ended
	exposure int64
	own      map[*identity]int // calls of the node's own functions that run
	live     map[*identity]int // calls
}

func (a *audit) session(s *session) error {
	for id, c := range s.in {
		if c.session != s || c.id != id || c.state != waiting && c.state != running {
			return fmt.Errorf("call %d of session %d: session %d, id %d, %s", id, s.id, c.session.id, c.id, stateNames[c.state])
		}
		if (c.offer == nil) != (c.state == waiting) {
			return fmt.Errorf("call %s: %s, with a worker %v", c.name(), stateNames[c.state], c.offer != nil)
		}
		a.call(c)
	}
	for id, c := range s.out {
		if c.offer == nil || c.offer.session != s || c.workerID != id || !c.state.used() {
			return fmt.Errorf("call %s at session %d under %d: its own id %d, %s", c.name(), s.id, id, c.workerID, stateNames[c.state])
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
	a.open += c.counts(c.state)
	a.size += c.size
	a.live[c.identity]++
	if c.size != 0 && c.state.ended() {
		a.kept++
	}
	if c.fn.own != nil && c.state.used() {
		for id := c.identity; id != nil; id = id.all {
			a.own[id]++
		}
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
	taking := 0
	for _, fn := range n.functions {
		taking += fn.taking
	}
	if taking != n.taking {
		return fmt.Errorf("%d slots ask for a job, the functions have %d", n.taking, taking)
	}
	for id, c := range n.posted {
		if c.posted.job.ID != id || c.state != running {
			return fmt.Errorf("job %s has a call that is %s", id, stateNames[c.state])
		}
	}
	if a.open != n.open {
		return fmt.Errorf("open is %d, %d calls are there", n.open, a.open)
	}
	if a.exposure != n.exposure {
		return fmt.Errorf("exposure is %d, flows have %d", n.exposure, a.exposure)
	}
	if used := n.budget.Used(); used < int64(a.size) || a.kept > 0 {
		return fmt.Errorf("budget of %d bytes used, calls keep %d; %d that have ended keep some", used, a.size, a.kept)
	}
	for _, s := range n.sessions {
		ids := []*identity{s.identity}
		if all := s.identity.callers; all != nil {
			ids = slices.AppendSeq(append(ids, all), maps.Values(all.each))
		}
		for _, id := range ids {
			if id.own[answers]+id.own[waits] != a.own[id] {
				return fmt.Errorf("%s: %d calls of the node's own functions, %d are there", id.name, id.own, a.own[id])
			}
			if id.all != nil && (id.live != a.live[id] || id.live == 0) {
				return fmt.Errorf("%s: %d calls, %d are there", id.name, id.live, a.live[id])
			}
		}
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
	for _, o := range fn.stopped {
		if o.stopped == nil || o.at[0] >= 0 || o.session.offers[name] != o || o.busy != a.busy[o] {
			return fmt.Errorf("function %s: the stopped offer of session %d: %d busy, at %d", name, o.session.id, o.busy, o.at[0])
		}
	}
	if fn.count() == 0 && fn.calls == 0 && fn.taking == 0 {
		return fmt.Errorf("function %s is kept for nothing", name)
	}
	taking := 0
	for _, t := range []*tier{&fn.offers, &fn.relays} {
		named := 0
		for _, h := range t.named {
			named += len(h.list)
		}
		if named != len(t.list) {
			return fmt.Errorf("function %s: %d offers by name, of %d", name, named, len(t.list))
		}
		for i, o := range t.list {
			if o.at[0] != i || o.tier() != t || i > 0 && t.before(i, (i-1)/2) {
				return fmt.Errorf("function %s: offer %d is at the wrong place", name, i)
			}
			taking += o.taking
			if o.busy != a.busy[o] {
				return fmt.Errorf("function %s at session %d: %d busy, %d calls are there", name, o.session.id, o.busy, a.busy[o])
			}
			if o.session.offers[name] != o {
				return fmt.Errorf("function %s: it has an offer of session %d that the session does not make", name, o.session.id)
			}
		}
	}
	queued := 0
	var stray *call
	fn.queue.each(func(c *call) {
		if queued++; c.state != waiting || c.fn != fn {
			stray = c
		}
	})
	if stray != nil {
		return fmt.Errorf("function %s: call %s in its queue is %s", name, stray.name(), stateNames[stray.state])
	}
	if err := fn.queue.audit(); err != nil {
		return fmt.Errorf("function %s: %w", name, err)
	}
	if fn.taking < taking { // a slot that was withdrawn may still ask
		return fmt.Errorf("function %s: %d slots ask for a job, its offers have %d", name, fn.taking, taking)
	}
	if queued != fn.queue.n {
		return fmt.Errorf("function %s: queue of %d, %d are there", name, fn.queue.n, queued)
	}
	return nil
}

// audit checks that the counts of a queue agree with each other.
func (q *queue) audit() error {
	placed, groups := 0, map[*group]int{}
	for _, l := range q.lanes {
		here := 0
		for reach, lists := range l.lists {
			for on, li := range lists {
				if len(li.calls) == 0 || q.groups[reach][on] != li.group {
					return fmt.Errorf("a list of %q with %d calls", on, len(li.calls))
				}
				groups[li.group] += len(li.calls)
				if li.group.offers > 0 {
					here += len(li.calls)
				}
			}
		}
		if l.empty() || here != l.placed {
			return fmt.Errorf("a lane of %s with %d lists, %d of %d calls are placed", l.id.name, len(l.lists), here, l.placed)
		}
		placed += here
	}
	for reach, all := range q.groups {
		for on, g := range all {
			if groups[g] != g.calls || int(g.reach) != reach {
				return fmt.Errorf("group %q: %d calls, %d are there", on, g.calls, groups[g])
			}
			offers := 0
			for _, list := range q.fn.all() {
				for _, o := range list {
					if reach < o.reached() && g.on.Match(o.session.name, string(o.session.prefix)) {
						offers++
					}
				}
			}
			if offers != g.offers {
				return fmt.Errorf("group %q: %d offers, %d are there", on, g.offers, offers)
			}
		}
	}
	if placed != q.placed {
		return fmt.Errorf("%d calls are placed, of %d", q.placed, placed)
	}
	return nil
}

// SocketPair connects two ends in this process.
var SocketPair = socketPair

// JobSource replaces the store of jobs in a test.
type JobSource = jobSource

// SetSource has the node take jobs from there.
func (n *Node) SetSource(s JobSource) {
	n.forJobs = n.itself()
	n.source = s
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

// Calls are those that run and wait.
func (n *Node) Calls() []bus.CallInfo {
	return slices.Collect(n.callsFor(context.Background(), &Peer{}, adminPace))
}

// HoldAnswer takes the one place of an identity among the answers that are computed, until it is
// given back.
func (n *Node) HoldAnswer(name string) (restore func()) {
	n.mu.Lock()
	place := n.identities[name].answer
	n.mu.Unlock()
	place <- struct{}{}
	return func() { <-place }
}

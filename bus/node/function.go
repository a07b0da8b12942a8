package node

import (
	"slices"
	"sort"

	"fbus/bus/jobs"
	"fbus/bus/wire"
)

// function is a name with offers, or with calls that wait for one. The node's mu
// protects it.
type function struct {
	node   *Node
	name   string
	text   []byte       // name, for frames
	own    *ownFunction // nil: not one of the node's own
	offers []*offer     // a heap: the one with the most free slots first, of several the one that has been idle longest
	queue  queue
	calls  int // live ones
	stats  *stats

	turns    int                 // slots that calls have had since a job had one
	taking   int                 // slots that ask for a job now
	wakes    uint64              // times that the store had more jobs
	refusals map[jobs.ID]refusal // jobs in the store for which workers were busy
}

// offer is one worker's slots for one function.
type offer struct {
	session     *session
	fn          *function
	at          int // in fn.offers; -1: withdrawn
	slots       int
	busy        int
	taking      int    // slots that ask for a job
	asked       uint64 // its function's wakes when it asked and there was none
	used        uint64 // the node's tick when it was last used or came free
	since       uint64 // the node's tick when it was first made
	idempotent  bool
	description string
	arguments   string
	note        string
	schema      string
}

// text returns how many bytes of text the offer holds.
func (o *offer) text() int {
	return len(o.description) + len(o.arguments) + len(o.note) + len(o.schema)
}

// free returns how many calls the offer takes now. Whatever its slots, one connection
// holds no more than maxOpen: a call that is cancelled stays with its worker, and
// a worker that never ends calls would make the node grow without bound.
func (o *offer) free() int {
	if len(o.session.out) >= maxOpen {
		return 0
	}
	return o.slots - o.busy - o.taking
}

// take changes how many slots are busy or ask for a job. The session's list of calls is
// already changed.
func (o *offer) take(busy, taking int) {
	n := o.fn.node
	n.tick++
	o.used = n.tick
	o.busy += busy
	o.taking += taking
	o.fn.taking += taking
	n.taking += taking
	o.fn.fix(o)
	if k := len(o.session.out); k >= maxOpen || k == maxOpen-1 { // a bound that all its offers share
		for _, other := range o.session.offers {
			other.fn.fix(other)
		}
	}
}

func newFunction(n *Node, name string) *function {
	return &function{node: n, name: name, text: []byte(name), own: ownOf(name), stats: n.statsOf(name, false), wakes: 1}
}

// add puts an offer into the heap, and its function into the registry.
func (fn *function) add(o *offer) {
	fn.node.functions[fn.name] = fn
	fn.stats = fn.node.statsOf(fn.name, true)
	o.at = len(fn.offers)
	fn.offers = append(fn.offers, o)
	fn.fix(o)
}

// remove takes an offer out of the heap.
func (fn *function) remove(o *offer) {
	i, last := o.at, len(fn.offers)-1
	moved := fn.offers[last]
	fn.offers[i], moved.at = moved, i
	fn.offers[last] = nil
	fn.offers = fn.offers[:last]
	o.at = -1
	if moved != o {
		fn.fix(moved)
	}
}

// before reports whether offer i has precedence over offer j.
func (fn *function) before(i, j int) bool {
	a, b := fn.offers[i], fn.offers[j]
	if x, y := a.free(), b.free(); x != y {
		return x > y
	}
	return a.used < b.used
}

// fix restores the heap after an offer has changed.
func (fn *function) fix(o *offer) {
	if o.at < 0 {
		return
	}
	swap := func(i, j int) {
		h := fn.offers
		h[i], h[j] = h[j], h[i]
		h[i].at, h[j].at = i, j
	}
	i := o.at
	for ; i > 0 && fn.before(i, (i-1)/2); i = (i - 1) / 2 {
		swap(i, (i-1)/2)
	}
	for {
		child := 2*i + 1
		if child+1 < len(fn.offers) && fn.before(child+1, child) {
			child++
		}
		if child >= len(fn.offers) || !fn.before(child, i) {
			return
		}
		swap(i, child)
		i = child
	}
}

// best returns the first offer, in the order of their use, that has a free slot and fits;
// nil: there is none. It looks at no more offers than come before that one.
func (fn *function) best(fits func(*offer) bool) *offer {
	if len(fn.offers) == 0 {
		return nil
	}
	edge := append(fn.node.scratch.edge[:0], 0) // places in the heap, the next one last
	for len(edge) > 0 {
		i := edge[len(edge)-1]
		edge = edge[:len(edge)-1]
		o := fn.offers[i]
		if o.free() <= 0 {
			return nil
		}
		if fits(o) {
			return o
		}
		for child := 2*i + 1; child <= 2*i+2 && child < len(fn.offers); child++ {
			k := sort.Search(len(edge), func(k int) bool { return fn.before(edge[k], child) })
			edge = slices.Insert(edge, k, child)
		}
		fn.node.scratch.edge = edge
	}
	return nil
}

// inOrder returns the offers in the order in which they were made.
func (fn *function) inOrder() []*offer {
	list := slices.Clone(fn.offers)
	slices.SortFunc(list, func(a, b *offer) int { return int(a.since) - int(b.since) })
	return list
}

// settle hands out free slots to waiting calls, and looks again at how long the rest may
// wait. It is called whenever the offers of a function have changed.
func (fn *function) settle(b *wire.Batch) {
	fn.fill(b)
	fn.queue.each(func(c *call) {
		if _, _, left := c.patience(); left == 0 && len(c.refused) > 0 {
			c.refusedByAll(b)
			return
		}
		c.setTimer()
	})
	fn.tidy()
}

// fill gives free slots to waiting calls and to jobs.
func (fn *function) fill(b *wire.Batch) {
	for len(fn.offers) > 0 && fn.offers[0].free() > 0 {
		var o *offer
		c := fn.queue.next(func(c *call) bool {
			o = c.choose()
			return o != nil
		})
		switch {
		case (c == nil || fn.turns >= jobShare) && fn.takeJob():
			fn.turns = 0
		case c == nil:
			return
		default:
			fn.turns++
			c.start(b, o, c.data[:c.args], c.data[c.args:])
		}
	}
}

// tidy forgets a name that has neither offers nor calls.
func (fn *function) tidy() {
	if len(fn.offers) == 0 && fn.calls == 0 && fn.taking == 0 && fn.node.functions[fn.name] == fn {
		delete(fn.node.functions, fn.name)
	}
}

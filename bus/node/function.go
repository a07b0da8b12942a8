package node

import (
	"slices"
	"sort"

	"fbus/bus/args"
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
	offers heap
	named  map[string]*heap // offers by the name of their worker
	// stopped holds the offers of workers that cannot start the program. They are in no heap.
	stopped []*offer
	queue   queue
	calls   int // live ones
	stats   *stats

	turns    int                 // slots that calls have had since a job had one
	taking   int                 // slots that ask for a job now
	wakes    uint64              // times that the store had more jobs
	refusals map[jobs.ID]refusal // jobs in the store for which workers were busy
}

// offer is one worker's slots for one function.
type offer struct {
	session     *session
	fn          *function
	at          [2]int      // in fn.offers, and in its heap of fn.named; -1: withdrawn, or stopped
	stopped     *args.Error // why its worker cannot start the program; nil: it can
	slots       int
	busy        int
	taking      int    // slots that ask for a job
	asked       uint64 // its function's wakes when it asked and there was none
	used        uint64 // the node's tick when it was last used or came free
	since       uint64 // the node's tick when it was first made
	idempotent  bool
	description string
	arguments   string
	takes       string
	attributes  map[string]string
	note        string
	schema      string
}

// text returns how many bytes of text the offer holds.
func (o *offer) text() int64 {
	size := len(o.description) + len(o.arguments) + len(o.note) + len(o.schema)
	for name, value := range o.attributes {
		size += len(name) + len(value)
	}
	return int64(size)
}

// free returns how many calls the offer takes now. Whatever its slots, one connection
// holds no more than maxOpen: a call that is cancelled stays with its worker, and
// a worker that never ends calls would make the node grow without bound.
func (o *offer) free() int {
	if o.session.heldBy != "" || len(o.session.out) >= maxOpen {
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
	if o.at[0] < 0 && o.busy+o.taking == 0 {
		delete(o.session.withdrawn, o.fn.name)
	}
	if k := len(o.session.out); k >= maxOpen || k == maxOpen-1 { // a bound that all its offers share
		for _, other := range o.session.offers {
			other.fn.fix(other)
		}
	}
}

func newFunction(n *Node, name string) *function {
	fn := &function{node: n, name: name, text: []byte(name), own: ownOf(name), named: map[string]*heap{}, stats: n.countersOf(name, nil), wakes: 1}
	fn.queue.fn = fn
	return fn
}

// add registers an offer, and its function.
func (fn *function) add(o *offer) {
	fn.node.functions[fn.name] = fn
	fn.stats = fn.node.countersOf(fn.name, o.session.identity)
	fn.offers.add(o)
	h := fn.named[o.session.name]
	if h == nil {
		h = &heap{k: 1}
		fn.named[o.session.name] = h
	}
	h.add(o)
	fn.queue.appears(o.session)
}

// remove withdraws an offer. Calls that only it could take are looked at again.
func (fn *function) remove(b *wire.Batch, o *offer) {
	fn.offers.remove(o)
	h := fn.named[o.session.name]
	if h.remove(o); len(h.list) == 0 {
		delete(fn.named, o.session.name)
	}
	fn.queue.vanishes(o.session)
	looked := 0
	for c := range fn.queue.bounced { // the others have timers
		if looked++; looked > maxPassed {
			break
		}
		c.lookAgain(b)
	}
	fn.tidy()
}

// stop takes an offer out of the heaps whose worker cannot start the program. Calls that
// no other offer could take end.
func (fn *function) stop(b *wire.Batch, o *offer, why *args.Error) {
	fn.node.functions[fn.name] = fn
	again := o.stopped != nil
	o.stopped = why
	if again {
		return
	}
	fn.stopped = append(fn.stopped, o)
	if o.at[0] >= 0 {
		fn.remove(b, o)
	}
	fn.queue.stranded(b, o.session)
}

// start takes an offer from those that are stopped.
func (fn *function) start(o *offer) {
	fn.stopped = without(fn.stopped, o)
	o.stopped = nil
	o.asked = 0
}

// whyStopped returns why no worker that a call selects can start the program; nil if one can,
// or if there is none.
func (fn *function) whyStopped(on *wire.On) *args.Error {
	for _, o := range fn.stopped {
		if on.Match(o.session.name, string(o.session.prefix)) {
			return o.stopped
		}
	}
	return nil
}

// fix restores the order of an offer after its free slots have changed.
func (fn *function) fix(o *offer) {
	if o.at[0] >= 0 {
		fn.offers.fix(o)
		fn.named[o.session.name].fix(o)
	}
}

// matching returns how many offers a call selects.
func (fn *function) matching(c *call) int {
	text := c.on.String()
	if g := fn.queue.groups[text]; g != nil {
		return g.offers
	}
	id, connection := c.on.Connection()
	switch {
	case text == "":
		return len(fn.offers.list)
	case connection:
		if fn.ofConnection(id) != nil {
			return 1
		}
		return 0
	case !c.on.Glob():
		if h := fn.named[text]; h != nil {
			return len(h.list)
		}
		return 0
	}
	k := 0
	for name, h := range fn.named {
		if c.on.Match(name, "") {
			k += len(h.list)
		}
	}
	return k
}

// ofConnection returns the offer of the connection with that id; nil: it has none.
func (fn *function) ofConnection(id string) *offer {
	if s := fn.node.session(id); s != nil {
		if o := s.offers[fn.name]; o != nil && o.stopped == nil {
			return o
		}
	}
	return nil
}

// heap orders offers: the one with the most free slots first, of several the one that has been
// idle longest.
type heap struct {
	list []*offer
	k    int // which of an offer's places is that in this heap
}

func (h *heap) add(o *offer) {
	o.at[h.k] = len(h.list)
	h.list = append(h.list, o)
	h.fix(o)
}

func (h *heap) remove(o *offer) {
	i, last := o.at[h.k], len(h.list)-1
	moved := h.list[last]
	h.list[i], moved.at[h.k] = moved, i
	h.list[last] = nil
	h.list = h.list[:last]
	o.at[h.k] = -1
	if moved != o {
		h.fix(moved)
	}
}

// before reports whether offer i has precedence over offer j.
func (h *heap) before(i, j int) bool {
	a, b := h.list[i], h.list[j]
	if x, y := a.free(), b.free(); x != y {
		return x > y
	}
	return a.used < b.used
}

// fix restores the heap after an offer has changed.
func (h *heap) fix(o *offer) {
	swap := func(i, j int) {
		h.list[i], h.list[j] = h.list[j], h.list[i]
		h.list[i].at[h.k], h.list[j].at[h.k] = i, j
	}
	i := o.at[h.k]
	for ; i > 0 && h.before(i, (i-1)/2); i = (i - 1) / 2 {
		swap(i, (i-1)/2)
	}
	for {
		child := 2*i + 1
		if child+1 < len(h.list) && h.before(child+1, child) {
			child++
		}
		if child >= len(h.list) || !h.before(child, i) {
			return
		}
		swap(i, child)
		i = child
	}
}

// best returns the first offer, in the order of their use, that has a free slot and fits;
// nil: there is none. It looks at no more offers than come before that one.
func (h *heap) best(edge *[]int, fits func(*offer) bool) *offer {
	if h == nil || len(h.list) == 0 {
		return nil
	}
	next := append((*edge)[:0], 0) // places in the heap, the next one last
	for len(next) > 0 {
		i := next[len(next)-1]
		next = next[:len(next)-1]
		o := h.list[i]
		if o.free() <= 0 {
			return nil
		}
		if fits(o) {
			return o
		}
		for child := 2*i + 1; child <= 2*i+2 && child < len(h.list); child++ {
			k := sort.Search(len(next), func(k int) bool { return h.before(next[k], child) })
			next = slices.Insert(next, k, child)
		}
		*edge = next
	}
	return nil
}

// fill gives the free slots of an offer to waiting calls and to jobs.
func (o *offer) fill(b *wire.Batch) {
	fn := o.fn
	for o.at[0] >= 0 && o.free() > 0 {
		c := fn.queue.next(o)
		switch {
		case c != nil && (c.session.gone || c.session.dismissed != nil): // it will not be there for the answer
			c.callerLost(b)
		case (c == nil || fn.turns >= jobShare) && fn.takeJob(o):
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
	if len(fn.offers.list)+len(fn.stopped) == 0 && fn.calls == 0 && fn.taking == 0 && fn.node.functions[fn.name] == fn {
		delete(fn.node.functions, fn.name)
		fn.node.dropUnused(fn)
	}
}

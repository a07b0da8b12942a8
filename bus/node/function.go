package node

import (
	"slices"
	"sort"
	"strings"

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
	offers tier
	relays tier // of relays: they are used when no other has a free slot
	// stopped holds the offers of workers that cannot start the program. They are in no heap.
	stopped []*offer
	queue   queue
	calls   int  // live ones
	counted bool // among the node's that have offers
	stats   *stats

	turns    int                 // slots that calls have had since a job had one
	taking   int                 // slots that ask for a job now
	wakes    uint64              // times that the store had more jobs
	refusals map[jobs.ID]refusal // jobs in the store for which workers were busy
}

// tier is offers of a function that are chosen by their free slots.
type tier struct {
	heap
	named map[string]*heap // by the name of their worker
}

// offer is one worker's slots for one function.
type offer struct {
	session     *session
	fn          *function
	at          [2]int      // in the heap of its tier, and in that of its worker's name; -1: withdrawn, or stopped
	stopped     *args.Error // why its worker cannot start the program; nil: it can
	slots       int
	busy        int
	taking      int      // slots that ask for a job
	asked       uint64   // its function's wakes when it asked and there was none
	used        uint64   // the node's tick when it was last used or came free
	since       uint64   // the node's tick when it was first made
	lastOut     uint64   // its session's when its OFFER came
	final       bool     // of a relay that was withdrawn: it is not expected back soon
	relay       bool     // it passes calls on to another node
	elsewhere   int      // slots there
	behind      []string // what selects each worker there
	behindHeld  []string // of these, the workers that are held there
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
	for _, on := range slices.Concat(o.behind, o.behindHeld) {
		size += len(on)
	}
	return int64(size)
}

// heldBy returns the command that ends the hold of an offer's workers; "": not all of them are held.
// Where a relay leads, this node knows who is held, but not by which glob.
func (o *offer) heldBy() string {
	switch s := o.session; {
	case s.heldBy != "":
		return "fbus release --on '" + s.heldBy + "'"
	case o.relay && len(o.behindHeld) > 0 && len(o.behindHeld) >= len(o.behind):
		return "fbus hold, at node " + strings.TrimPrefix(s.name, "@") + ", lists what is held"
	}
	return ""
}

// tier returns the offers of its function among which the offer is chosen.
func (o *offer) tier() *tier {
	if o.relay {
		return &o.fn.relays
	}
	return &o.fn.offers
}

// free returns how many calls the offer takes now, if its worker takes any.
func (o *offer) free() int {
	if o.session.heldBy != "" || o.session.full() {
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
	o.session.taking += taking
	o.fn.fix(o)
	if o.at[0] < 0 && o.busy+o.taking == 0 {
		delete(o.session.withdrawn, o.fn.name)
	}
	if o.session.left() <= 1 { // a bound that all its offers share
		for _, other := range o.session.offers {
			other.fn.fix(other)
		}
	}
}

func newFunction(n *Node, name string) *function {
	fn := &function{node: n, name: name, text: []byte(name), own: ownOf(name), stats: n.countersOf(name, nil), wakes: 1}
	fn.queue.fn = fn
	return fn
}

// add registers an offer, and its function.
func (fn *function) add(o *offer) {
	fn.node.functions[fn.name] = fn
	fn.stats = fn.node.countersOf(fn.name, o.session.identity)
	o.tier().add(o)
	fn.recount()
	fn.queue.appears(o)
}

// recount keeps how many functions the node has that have offers, less its own.
func (fn *function) recount() {
	if now := fn.count() > 0 && !reserved(fn.name); now != fn.counted {
		fn.counted = now
		fn.node.offered--
		if now {
			fn.node.offered += 2
		}
	}
}

// remove withdraws an offer. Calls that only it could take are looked at again.
func (fn *function) remove(b *wire.Batch, o *offer) {
	o.tier().remove(o)
	fn.recount()
	fn.queue.vanishes(o)
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
	fn.recount()
	if o.at[0] >= 0 {
		fn.remove(b, o)
	}
	fn.queue.stranded(b, o.session)
}

// start takes an offer from those that are stopped.
func (fn *function) start(o *offer) {
	fn.stopped = without(fn.stopped, o)
	fn.recount()
	o.stopped = nil
	o.asked = 0
}

// whyStopped returns why no worker that a call selects, and reaches, can start the program; nil if
// one can, or if there is none.
func (fn *function) whyStopped(on *wire.On, r reach) *args.Error {
	for _, o := range fn.stopped {
		if int(r) < o.reached() && on.Match(o.session.name, string(o.session.prefix)) {
			return o.stopped
		}
	}
	return nil
}

// fix restores the order of an offer after its free slots have changed.
func (fn *function) fix(o *offer) {
	if o.at[0] >= 0 {
		o.tier().fix(o)
	}
}

// all lists the offers but those that are stopped, relays last.
func (fn *function) all() [2][]*offer { return [...][]*offer{fn.offers.list, fn.relays.list} }

// count returns how many offers there are, with those that are stopped.
func (fn *function) count() int { return len(fn.offers.list) + len(fn.relays.list) + len(fn.stopped) }

// matching returns how many offers a call selects.
func (fn *function) matching(c *call) int {
	if g := fn.queue.groups[c.reach()][c.on.String()]; g != nil {
		return g.offers
	}
	if id, ok := c.on.Connection(); ok {
		if o := fn.ofConnection(id); o != nil && c.reaches(o) {
			return 1
		}
		return 0
	}
	k := fn.offers.matching(&c.on)
	if c.reach() == anywhere {
		k += fn.relays.matching(&c.on)
	}
	return k
}

// hasRelay reports whether a call selects a relay offer.
func (fn *function) hasRelay(c *call) bool {
	if len(fn.relays.list) == 0 || c.reach() == here {
		return false
	}
	if id, ok := c.on.Connection(); ok {
		o := fn.ofConnection(id)
		return o != nil && o.relay
	}
	return fn.relays.matching(&c.on) > 0
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

// add adds an offer.
func (t *tier) add(o *offer) {
	t.heap.add(o)
	h := t.named[o.session.name]
	if h == nil {
		if t.named == nil {
			t.named = map[string]*heap{}
		}
		h = &heap{k: 1}
		t.named[o.session.name] = h
	}
	h.add(o)
}

// remove takes an offer out.
func (t *tier) remove(o *offer) {
	t.heap.remove(o)
	h := t.named[o.session.name]
	if h.remove(o); len(h.list) == 0 {
		delete(t.named, o.session.name)
	}
}

// fix restores the order after an offer has changed.
func (t *tier) fix(o *offer) {
	t.heap.fix(o)
	t.named[o.session.name].fix(o)
}

// matching returns how many offers an on selects that names no connection.
func (t *tier) matching(on *wire.On) (k int) {
	switch text := on.String(); {
	case text == "":
		return len(t.list)
	case !on.Glob():
		if h := t.named[text]; h != nil {
			return len(h.list)
		}
		return 0
	}
	for name, h := range t.named {
		if on.Match(name, "") {
			k += len(h.list)
		}
	}
	return k
}

// choose returns the best offer for a call that names no connection; nil: none has a slot.
func (t *tier) choose(c *call) *offer {
	edge := &c.node.scratch.edge
	fits := func(o *offer) bool { return !c.refusedBy(o.session) }
	switch {
	case c.on.Glob():
		return t.best(edge, func(o *offer) bool { return c.on.Match(o.session.name, "") && fits(o) })
	case c.on.String() != "":
		return t.named[c.on.String()].best(edge, fits)
	}
	return t.best(edge, fits)
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
	if fn.count() == 0 && fn.calls == 0 && fn.taking == 0 && fn.node.functions[fn.name] == fn {
		delete(fn.node.functions, fn.name)
		fn.node.dropUnused(fn)
	}
}

package node

import (
	"slices"

	"fbus/bus/wire"
)

// function is a name with offers, or with calls that wait for one. The node's
// mu protects it.
type function struct {
	node   *Node
	name   string
	text   []byte // name, for frames
	offers []*offer
	queue  queue
	jobs   []*call // posted ones that wait: for slots that the queue leaves free
	turns  int     // slots that the queue has had since the last of them
	calls  int     // not finished, queued or with a worker
	done   uint64  // calls that ended with a program's status 0
	failed uint64  // calls that ended otherwise
}

// offer is one worker's slots for one function.
type offer struct {
	session     *session
	fn          *function
	slots       int
	busy        int
	used        uint64 // the node's tick when it was last used or came free
	idempotent  bool
	description string
	arguments   string
	note        string
	schema      string
}

// text is how many bytes of text the offer holds.
func (o *offer) text() int {
	return len(o.description) + len(o.arguments) + len(o.note) + len(o.schema)
}

// free is how many calls the offer takes now. Whatever its slots, one connection
// holds no more than maxOpen: a call that is cancelled stays with its worker, and
// one that never ends them would make the node grow without bound.
func (o *offer) free() int {
	if len(o.session.out) >= maxOpen {
		return 0
	}
	return o.slots - o.busy
}

// function finds or makes the entry of a name.
func (n *Node) function(name string) *function {
	fn := n.functions[name]
	if fn == nil {
		fn = &function{node: n, name: name, text: []byte(name)}
		n.functions[name] = fn
	}
	return fn
}

// remove takes an offer out.
func (fn *function) remove(o *offer) {
	for i, x := range fn.offers {
		if x == o {
			fn.offers = append(fn.offers[:i], fn.offers[i+1:]...)
			return
		}
	}
}

// settle hands out free slots to what waits, and looks again at how long the
// rest may wait. It is called whenever the offers of a function have changed.
func (fn *function) settle(b *wire.Batch) {
	fn.fill(b)
	fn.queue.each(func(c *call) {
		if _, _, left := c.patience(); left == 0 && len(c.refused) > 0 {
			c.refusedByAll(b)
			return
		}
		c.setTimer()
	})
	for _, c := range slices.Clone(fn.jobs) {
		switch _, _, left := c.patience(); {
		case left == 0 && len(c.refused) > 0:
			c.refusedByAll(b)
		case !c.counted && !fn.serves(c.on): // it is not to stand here until somebody does
			c.endFor(b, codeRecalled, "")
		}
	}
	fn.tidy()
}

// fill gives free slots to waiting calls.
func (fn *function) fill(b *wire.Batch) {
	for fn.queue.n > 0 || len(fn.jobs) > 0 {
		c, o := fn.next()
		if c == nil {
			return
		}
		c.queued = false
		c.start(b, o, c.data[:c.args], c.data[c.args:])
	}
}

// tidy forgets a name that nobody offers, waits for or works on.
func (fn *function) tidy() {
	if len(fn.offers) == 0 && fn.calls == 0 {
		delete(fn.node.functions, fn.name)
	}
}

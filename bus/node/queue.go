package node

import (
	"cmp"
	"slices"
	"time"

	"fbus/bus/wire"
)

const (
	// maxGlobs bounds the different globs for which calls of one function wait.
	maxGlobs = 100
	// maxPassed is how many calls are passed over that a worker was too busy for, to find one
	// for its free slot.
	maxPassed = 64
)

// queue holds the calls that wait for one function: round-robin over the identities, first in,
// first out within each. The node's mu protects it.
type queue struct {
	fn      *function
	lanes   []*lane              // in the order of their turns
	groups  [2]map[string]*group // by how far they go, and what they select
	globs   []*group             // of these, those of a glob
	n       int                  // calls that wait
	placed  int                  // of these, those that some offer could take: the others take nobody's place
	relayed bool                 // the last turn was that of a relay's caller
	// bounced holds the calls that some worker was too busy for.
	bounced map[*call]bool
}

// group is the calls of a queue that wait for the same workers.
type group struct {
	on     wire.On
	reach  reach
	calls  int
	offers int       // that match
	gone   time.Time // when the last of these was withdrawn; zero: there was none since the first call came
	final  bool      // that one is not expected back soon
	timer  *time.Timer
}

// lane is the calls of one identity in a queue.
type lane struct {
	id     *identity
	lists  [2]map[string]*list // by how far they go, and what they select
	globs  []*list             // of these, those of a glob
	placed int                 // calls that some offer could take
}

// empty reports whether no call is left.
func (l *lane) empty() bool { return len(l.lists[anywhere])+len(l.lists[here]) == 0 }

// list is the calls of one lane and one group, oldest first.
type list struct {
	group *group
	calls []*call
}

func (q *queue) lane(id *identity) *lane {
	for _, l := range q.lanes {
		if l.id == id {
			return l
		}
	}
	return nil
}

// allows returns an error if another call may not wait.
func (q *queue) allows(c *call) error {
	n, id, text, reach := c.node, c.identity, c.on.String(), c.reach()
	l := q.lane(id)
	if c.on.Glob() && (l == nil || l.lists[reach][text] == nil) {
		b := bound{q.fn.name + ": the list of globs for which calls wait is", "globs", maxGlobs, int64(len(q.globs))}
		if err := n.allows(id, b, 1, q.has(func(l *lane) int { return len(l.globs) })); err != nil && (id.rank != owner || q.groups[reach][text] == nil) {
			return err
		}
	}
	if q.fn.matching(c) == 0 {
		return nil
	}
	return n.allows(id, bound{q.fn.name + ": the queue is", "calls", int64(n.cfg.Queue), int64(q.placed)}, 1, q.has(func(l *lane) int { return l.placed }))
}

// has returns a function that adds up what the lanes of an identity have: one, or those of all callers of
// a relay.
func (q *queue) has(count func(*lane) int) func(*identity) int64 {
	return func(id *identity) (sum int64) {
		for _, l := range q.lanes {
			if l.id == id || l.id.all == id {
				sum += int64(count(l))
			}
		}
		return sum
	}
}

// push adds a call: behind the others of its identity, or at its place by age if it was with a worker
// before.
func (q *queue) push(c *call) {
	text := c.on.String()
	l := q.lane(c.identity)
	if l == nil {
		l = &lane{id: c.identity}
		q.lanes = append(q.lanes, l)
	}
	lists := &l.lists[c.reach()]
	li := (*lists)[text]
	if li == nil {
		li = &list{group: q.group(c)}
		if *lists == nil {
			*lists = map[string]*list{}
		}
		(*lists)[text] = li
		if c.on.Glob() {
			l.globs = append(l.globs, li)
		}
	}
	at, _ := slices.BinarySearchFunc(li.calls, c, older)
	li.calls = slices.Insert(li.calls, at, c)
	li.group.calls++
	q.n++
	if li.group.offers > 0 {
		q.placed++
		l.placed++
	}
	if len(c.refused) > 0 {
		if q.bounced == nil {
			q.bounced = map[*call]bool{}
		}
		q.bounced[c] = true
	}
}

func older(a, b *call) int { return cmp.Compare(a.age, b.age) }

// selected counts the calls that wait for certain workers, by what selects these.
func (q *queue) selected() map[string]int {
	var count map[string]int
	for _, groups := range q.groups {
		for text, g := range groups {
			if text != "" && g.calls > 0 {
				if count == nil {
					count = map[string]int{}
				}
				count[text] += g.calls
			}
		}
	}
	return count
}

// group returns the group of a call, a new one if it is the first.
func (q *queue) group(c *call) *group {
	text, groups := c.on.String(), &q.groups[c.reach()]
	g := (*groups)[text]
	if g == nil {
		g = &group{on: c.on, reach: c.reach(), offers: q.fn.matching(c)}
		if *groups == nil {
			*groups = map[string]*group{}
		}
		(*groups)[text] = g
		if g.on.Glob() {
			q.globs = append(q.globs, g)
		}
	}
	return g
}

// remove takes a call out. If it has been given a slot, its identity has had its turn.
func (q *queue) remove(c *call, served bool) {
	l := q.lane(c.identity)
	text, reach := c.on.String(), c.reach()
	if l == nil || l.lists[reach][text] == nil {
		return
	}
	li := l.lists[reach][text]
	at, found := slices.BinarySearchFunc(li.calls, c, older)
	switch {
	case !found:
		return
	case at == 0: // the common one: the others stay where they are
		li.calls[0] = nil
		li.calls = li.calls[1:]
	default:
		li.calls = slices.Delete(li.calls, at, at+1)
	}
	delete(q.bounced, c)
	g := li.group
	g.calls--
	q.n--
	if g.offers > 0 {
		q.placed--
		l.placed--
	}
	if len(li.calls) == 0 {
		delete(l.lists[reach], text)
		l.globs = without(l.globs, li)
	}
	if g.calls == 0 {
		g.stop()
		delete(q.groups[reach], text)
		q.globs = without(q.globs, g)
	}
	if served {
		q.relayed = l.id.all != nil
	}
	if served || l.empty() {
		q.lanes = without(q.lanes, l)
		if !l.empty() {
			q.lanes = append(q.lanes, l)
		}
	}
}

func without[T comparable](list []T, x T) []T {
	if i := slices.Index(list, x); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// next returns the next call that the offer can take; nil: there is none. After a turn of a relay's
// caller, those that are connected themselves come first: a relay with many callers has no more than
// every second turn.
func (q *queue) next(o *offer) *call {
	if q.relayed {
		if c := q.first(o, func(l *lane) bool { return l.id.all == nil }); c != nil {
			return c
		}
	}
	return q.first(o, func(*lane) bool { return true })
}

// first returns the call that has the first turn, of those lanes.
func (q *queue) first(o *offer, of func(*lane) bool) *call {
	for _, l := range q.lanes {
		if !of(l) {
			continue
		}
		if q.fn.own != nil && !q.fn.node.mayServe(l.id, q.fn.own.class()) {
			continue
		}
		if c := l.next(o); c != nil {
			return c
		}
	}
	return nil
}

// next returns the oldest call that the offer can take, of one identity.
func (l *lane) next(o *offer) (oldest *call) {
	consider := func(li *list) {
		if li == nil {
			return
		}
		for _, c := range li.calls[:min(len(li.calls), maxPassed)] {
			if !c.refusedBy(o.session) {
				if oldest == nil || c.age < oldest.age {
					oldest = c
				}
				return
			}
		}
	}
	s := o.session
	for _, lists := range l.lists[:o.reached()] {
		for _, text := range s.ons {
			consider(lists[text])
		}
	}
	for _, li := range l.globs {
		if int(li.group.reach) < o.reached() && li.group.on.Match(s.name, "") {
			consider(li)
		}
	}
	return oldest
}

// matching calls f for each group that the offer matches.
func (q *queue) matching(o *offer, f func(*group)) {
	s := o.session
	for _, groups := range q.groups[:o.reached()] {
		if len(groups) == 0 {
			continue
		}
		for _, text := range s.ons {
			if g := groups[text]; g != nil {
				f(g)
			}
		}
	}
	for _, g := range q.globs {
		if int(g.reach) < o.reached() && g.on.Match(s.name, "") {
			f(g)
		}
	}
}

func (q *queue) appears(o *offer) {
	q.matching(o, func(g *group) {
		if g.offers++; g.offers == 1 {
			g.gone, g.final = time.Time{}, false
			g.stop()
			q.place(g, 1)
		}
	})
}

// vanishes notes that an offer was withdrawn. Calls that no offer is left for may wait
// for another for some time.
func (q *queue) vanishes(o *offer) {
	q.matching(o, func(g *group) {
		if g.offers--; g.offers == 0 {
			g.gone, g.final = time.Now(), o.final
			q.place(g, -1)
			wait := goneTime
			if g.final {
				wait = 0
			}
			g.timer = time.AfterFunc(wait, func() { q.fn.node.locked(func(b *wire.Batch) { q.expire(b, g) }) })
		}
	})
}

// stranded ends the calls that only the session's offer could take, which is stopped. Those that wait
// for a function have timers.
func (q *queue) stranded(b *wire.Batch, s *session) {
	if q.n == 0 {
		return
	}
	q.each(func(c *call) {
		if g := q.groups[c.reach()][c.on.String()]; c.waitFunction == 0 && g != nil && g.offers == 0 && c.on.Match(s.name, string(s.prefix)) {
			c.lookAgain(b)
		}
	})
}

// place counts the calls of a group, for which there is an offer now, or none any more.
func (q *queue) place(g *group, d int) {
	q.placed += d * g.calls
	for _, l := range q.lanes {
		if li := l.lists[g.reach][g.on.String()]; li != nil {
			l.placed += d * len(li.calls)
		}
	}
}

func (g *group) stop() {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
}

// expire looks at the calls of a group that has had no offer for some time.
func (q *queue) expire(b *wire.Batch, g *group) {
	if g.offers > 0 || q.groups[g.reach][g.on.String()] != g {
		return
	}
	q.each(func(c *call) {
		if c.reach() == g.reach && c.on.String() == g.on.String() {
			c.lookAgain(b)
		}
	})
}

// each calls f for every waiting call, in no promised order. f may take its call out.
func (q *queue) each(f func(*call)) {
	var all []*call
	for _, l := range q.lanes {
		for _, lists := range l.lists {
			for _, li := range lists {
				all = append(all, li.calls...)
			}
		}
	}
	for _, c := range all {
		f(c)
	}
}

// oldest returns when the oldest waiting call came; zero: none waits.
func (q *queue) oldest() (t time.Time) {
	for _, l := range q.lanes {
		for _, lists := range l.lists {
			for _, li := range lists {
				if at := li.calls[0].arrived; t.IsZero() || at.Before(t) {
					t = at
				}
			}
		}
	}
	return t
}

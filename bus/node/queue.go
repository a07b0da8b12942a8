package node

import "slices"

// queue holds the calls that wait for one function: first those that were
// already with a worker, then the others, round-robin over the connections they
// came on and first in, first out within each. The node's mu protects it.
type queue struct {
	head  []*call
	lanes []*lane // in the order of their turns
	n     int
}

type lane struct {
	session *session
	calls   []*call
}

func (q *queue) lane(s *session) *lane {
	for _, l := range q.lanes {
		if l.session == s {
			return l
		}
	}
	return nil
}

// waiting returns how many calls of one connection wait.
func (q *queue) waiting(s *session) int {
	if l := q.lane(s); l != nil {
		return len(l.calls)
	}
	return 0
}

// push adds a new call behind the others of its connection.
func (q *queue) push(c *call) {
	l := q.lane(c.session)
	if l == nil {
		l = &lane{session: c.session}
		q.lanes = append(q.lanes, l)
	}
	l.calls = append(l.calls, c)
	q.n++
}

// pushHead puts a call that lost its worker before all new ones.
func (q *queue) pushHead(c *call) {
	q.head = append(q.head, c)
	q.n++
}

// next returns the next call that fits; nil: there is none.
func (q *queue) next(fits func(*call) bool) *call {
	for _, c := range q.head {
		if fits(c) {
			return c
		}
	}
	for _, l := range q.lanes {
		for _, c := range l.calls {
			if fits(c) {
				return c
			}
		}
	}
	return nil
}

// remove takes a call out. If it has been given a slot, its connection has had its turn.
func (q *queue) remove(c *call, served bool) {
	if i := slices.Index(q.head, c); i >= 0 {
		q.head = slices.Delete(q.head, i, i+1)
		q.n--
		return
	}
	at := slices.IndexFunc(q.lanes, func(l *lane) bool { return l.session == c.session })
	if at < 0 {
		return
	}
	l := q.lanes[at]
	switch i := slices.Index(l.calls, c); {
	case i < 0:
		return
	case i == 0: // the common one: the others stay where they are
		l.calls[0] = nil
		l.calls = l.calls[1:]
	default:
		l.calls = slices.Delete(l.calls, i, i+1)
	}
	q.n--
	if served || len(l.calls) == 0 {
		q.lanes = slices.Delete(q.lanes, at, at+1)
		if len(l.calls) > 0 {
			q.lanes = append(q.lanes, l)
		}
	}
}

// each calls f for every waiting call, in no promised order. f may take its call out.
func (q *queue) each(f func(*call)) {
	list := slices.Clone(q.head)
	for _, l := range q.lanes {
		list = append(list, l.calls...)
	}
	for _, c := range list {
		f(c)
	}
}

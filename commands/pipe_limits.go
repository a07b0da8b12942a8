package commands

import (
	"context"
	"slices"
	"sync"
)

// admission bounds the calls in flight and the bytes that their requests hold.
// Only the reader of stdin waits here: what it does not read waits in the pipe.
type admission struct {
	jobs  int
	bytes int64

	mu   sync.Mutex // protects the fields below
	cond sync.Cond  // a call has left, or it is over
	n    int
	held int64
	over bool // nobody is let in any more
}

func newAdmission(jobs int, bytes int64) *admission {
	a := &admission{jobs: jobs, bytes: bytes}
	a.cond.L = &a.mu
	return a
}

// enter waits for room for one more call whose request has that many bytes; a
// call that is alone always has it. False: it is over.
func (a *admission) enter(bytes int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.over && a.n > 0 && (a.n >= a.jobs || a.held+bytes > a.bytes) {
		a.cond.Wait()
	}
	if a.over {
		return false
	}
	a.n++
	a.held += bytes
	return true
}

func (a *admission) leave(bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n--
	a.held -= bytes
	a.cond.Broadcast()
}

// end lets nobody in any more, and waits until all that are in have left.
func (a *admission) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	a.cond.Broadcast()
	for a.n > 0 {
		a.cond.Wait()
	}
}

// several reports whether more than one call is in flight.
func (a *admission) several() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n > 1
}

// hoard bounds the output that calls hold until they are answered. When it is
// full one call may go on, so that one ends and makes room; the others wait, and
// so do their programs.
type hoard struct {
	most int64

	mu    sync.Mutex // protects the fields below
	cond  sync.Cond
	held  int64
	ahead any // who may hold more than there is room for
}

func newHoard(most int64) *hoard {
	h := &hoard{most: most}
	h.cond.L = &h.mu
	return h
}

// take waits for room for n more bytes of a call. The error is the context's.
func (h *hoard) take(ctx context.Context, who any, n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.fits(who, n) {
		defer context.AfterFunc(ctx, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.cond.Broadcast()
		})()
	}
	for !h.fits(who, n) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h.cond.Wait()
	}
	h.held += n
	return nil
}

// fits reports whether a call may hold n bytes more. mu is held.
func (h *hoard) fits(who any, n int64) bool {
	if h.held+n <= h.most {
		return true
	}
	if h.ahead == nil {
		h.ahead = who
	}
	return h.ahead == who
}

// tryTake takes room for n bytes if there is some.
func (h *hoard) tryTake(n int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held+n > h.most {
		return false
	}
	h.held += n
	return true
}

// give returns n bytes of a call that has ended.
func (h *hoard) give(who any, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held -= n
	if h.ahead == who {
		h.ahead = nil
	}
	h.cond.Broadcast()
}

// queues keeps calls back that the node's queue of a function has no room for,
// until another of ours has left it.
type queues struct {
	mu    sync.Mutex // protects names, and the queues
	names map[string]*queue
}

// As long as somebody waits, a call is open or has a turn.
type queue struct {
	calls   int             // that know this queue
	open    int             // of them at the node
	turns   int             // of them about to be, in their turn
	ended   uint64          // that were
	waiting []chan struct{} // closed to give its turn to one
}

// join returns the queue of a function; leave is to follow.
func (q *queues) join(name string) *queue {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.names[name]
	if l == nil {
		l = &queue{}
		q.names[name] = l
	}
	l.calls++
	return l
}

func (q *queues) leave(name string, l *queue) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l.calls--; l.calls == 0 {
		delete(q.names, name)
	}
}

// enter lets a call go to the node, in its turn if it has one, else behind those
// that wait already. It returns what refused wants to know.
func (q *queues) enter(ctx context.Context, l *queue, turn bool) (uint64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !turn && len(l.waiting) > 0 {
		if err := q.wait(ctx, l); err != nil {
			return 0, err
		}
		turn = true
	}
	if turn {
		l.turns--
	}
	l.open++
	return l.ended, nil
}

// ended says that a call that the node took has ended.
func (q *queues) ended(l *queue) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l.open--
	l.ended++
	l.wake()
}

// refused says that the node did not take a call, and waits for its turn to
// enter again. False: none of ours is there, so others fill the queue, and
// nothing here will tell when there is room.
func (q *queues) refused(ctx context.Context, l *queue, seen uint64) (bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l.open--
	switch {
	case l.ended != seen: // there was a change since: it is worth a try at once
		l.turns++
		return true, nil
	case l.open+l.turns == 0:
		l.wake()
		return false, nil
	}
	err := q.wait(ctx, l)
	return err == nil, err
}

// wait waits for a turn. mu is held before and after.
func (q *queues) wait(ctx context.Context, l *queue) error {
	turn := make(chan struct{})
	l.waiting = append(l.waiting, turn)
	q.mu.Unlock()
	select {
	case <-turn:
		q.mu.Lock()
		return nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	if i := slices.Index(l.waiting, turn); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	} else { // it has come as well: somebody else can use it
		l.turns--
		l.wake()
	}
	return context.Cause(ctx)
}

// wake gives the first that waits its turn. mu is held.
func (l *queue) wake() {
	if len(l.waiting) > 0 {
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
		l.turns++
	}
}

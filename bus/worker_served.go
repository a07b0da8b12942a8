package bus

import (
	"context"
	"slices"
)

// served is one function of a worker, across connections. The worker's mu
// protects the fields below handler.
type served struct {
	worker  *Worker
	handler Handler

	offer    Offer
	limit    int       // slots that are offered at most; -1: all
	offering *Offering // on the current connection
	calls    tally     // of its handler, that have not returned
}

// held is a name and a connection over which calls of it came that have not returned.
// Those of a lost one still take slots, even if another function has the name now.
type held struct {
	name   string
	client *Client
}

// slots returns how many may be offered over c: all but those that calls of earlier
// connections hold. The worker's mu is held.
func (s *served) slots(c *Client) int {
	n := s.offer.Slots
	if s.limit >= 0 {
		n = min(n, s.limit)
	}
	for h, calls := range s.worker.held {
		if h.name == s.offer.Name && h.client != c {
			n -= calls
		}
	}
	return n
}

// Add adds a function, before Start.
func (w *Worker) Add(o Offer, h Handler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.served = append(w.served, &served{worker: w, handler: h, offer: o, limit: -1})
}

// A Retired function is offered no more; calls that it has begun may still run.
type Retired struct {
	served   *served
	offering *Offering // the last
}

// Wait waits until its last call has ended, or ctx does.
func (r *Retired) Wait(ctx context.Context) error {
	if r.offering != nil { // it also knows of calls that are about to begin
		if err := r.offering.Wait(ctx); err != nil {
			return err
		}
	}
	return r.served.calls.wait(ctx, &r.served.worker.mu)
}

// Put adds a function while the worker runs, or replaces the one of its name,
// which is returned, without a moment in which the name is not offered: calls
// that run end where they began, later ones are h's. If the node refuses, the
// function that was there stays, and the new one is returned, which may
// have been called by then. Without a node it is offered with the others when
// there is one again.
func (w *Worker) Put(ctx context.Context, o Offer, h Handler) (*Retired, error) {
	w.change.Lock()
	defer w.change.Unlock()
	w.mu.Lock()
	s := &served{worker: w, handler: h, offer: o, limit: -1}
	old := w.swap(o.Name, s)
	c := w.client
	w.mu.Unlock()
	var err error
	if c != nil {
		err = s.announceNow(ctx, c)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && w.client == c && c.Err() == nil {
		w.swap(o.Name, old)
		return w.retire(s), err
	}
	if old == nil {
		return nil, nil
	}
	return w.retire(old), nil
}

// swap puts s, which may be nil, in place of the function of that name, and
// returns that. The worker's mu is held.
func (w *Worker) swap(name string, s *served) (old *served) {
	i := slices.IndexFunc(w.served, func(s *served) bool { return s.offer.Name == name })
	if i >= 0 {
		old = w.served[i]
		w.served = slices.Delete(slices.Clone(w.served), i, i+1)
	}
	if s != nil {
		w.served = append(w.served, s)
	}
	return old
}

// retire keeps a function that is no longer offered, until its calls have returned. The
// worker's mu is held.
func (w *Worker) retire(s *served) *Retired {
	w.leaving = slices.DeleteFunc(w.leaving, func(s *served) bool { return s.calls.n == 0 })
	w.leaving = append(w.leaving, s)
	return &Retired{s, s.offering}
}

// Remove takes a function off the bus; nil if it is not there. Calls that run
// end where they began.
func (w *Worker) Remove(ctx context.Context, name string) *Retired {
	w.change.Lock()
	defer w.change.Unlock()
	w.mu.Lock()
	s := w.swap(name, nil)
	if s == nil {
		w.mu.Unlock()
		return nil
	}
	r := w.retire(s)
	w.mu.Unlock()
	if r.offering != nil {
		r.offering.withdraw(ctx)
	}
	return r
}

// SetNote changes a function's note. It does not wait for the node.
func (w *Worker) SetNote(name, note string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.served {
		if s.offer.Name == name && s.offer.Note != note {
			s.offer.Note = note
			if w.client != nil {
				go s.announce(context.Background(), w.client) // ends with one exchange
			}
		}
	}
}

// SetLimit changes how many slots of a function are offered at most, and its note. With 0 slots
// the worker cannot start the program, for the reason why: the function stays known to the node,
// which gives its calls to other workers. The error is [args.CannotStart]'s. SetLimit returns when the
// node has it: a call that ends afterwards makes no slot free.
func (w *Worker) SetLimit(ctx context.Context, name string, slots int, note string, why *Error) {
	w.mu.Lock()
	i := slices.IndexFunc(w.served, func(s *served) bool { return s.offer.Name == name })
	if i < 0 {
		w.mu.Unlock()
		return
	}
	s, c := w.served[i], w.client
	s.limit, s.offer.Note, s.offer.stopped = slots, note, why
	w.mu.Unlock()
	if c != nil {
		s.announce(ctx, c)
	}
}

// announce offers the slots that are free, or changes how many are offered; with
// none the first call that returns does it.
func (s *served) announce(ctx context.Context, c *Client) error {
	s.worker.change.Lock()
	defer s.worker.change.Unlock()
	return s.announceNow(ctx, c)
}

// announceNow is announce for a caller that holds the worker's change.
func (s *served) announceNow(ctx context.Context, c *Client) error {
	w := s.worker
	w.mu.Lock()
	o, off, stale := s.offer, s.offering, w.client != c || w.drained || !slices.Contains(w.served, s)
	if o.Slots = max(s.slots(c), 0); o.stopped != nil {
		o.Slots = 0
	}
	o.MaxRunning = w.MaxRunning
	w.mu.Unlock()
	switch {
	case stale || o.Slots <= 0 && o.stopped == nil && !o.Relay && off == nil:
		return nil
	case off != nil:
		return off.announce(ctx, func() { off.slots, off.note, off.stopped = o.Slots, o.Note, o.stopped })
	}
	off, err := c.Offer(ctx, o, s.serve)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client == c {
		s.offering = off
	}
	return nil
}

// serve runs the handler and keeps count: a call whose connection is lost still
// has its slot until it returns.
func (s *served) serve(ctx context.Context, inv *Invocation) Result {
	w := s.worker
	w.mu.Lock()
	if w.client != inv.client {
		w.mu.Unlock() // lost before it began: its slot may be offered already
		return Fail(ErrCancelled)
	}
	s.calls.n++
	if w.held == nil {
		w.held = map[held]int{}
	}
	w.held[held{s.offer.Name, inv.client}]++
	w.mu.Unlock()
	defer s.returned(inv.client)
	return s.handler(ctx, inv)
}

// returned gives a call's slot back, and offers it if it was an earlier
// connection's.
func (s *served) returned(from *Client) {
	w := s.worker
	w.mu.Lock()
	defer w.mu.Unlock()
	s.calls.done()
	h := held{s.offer.Name, from}
	if w.held[h]--; w.client == from {
		return
	}
	if w.held[h] == 0 {
		delete(w.held, h)
	}
	if w.client == nil {
		return
	}
	for _, now := range w.served {
		if now.offer.Name == s.offer.Name {
			go now.announce(context.Background(), w.client) // ends with one exchange
		}
	}
}

// withdraw takes the offer back, after one that is being made.
func (s *served) withdraw(ctx context.Context) {
	s.worker.change.Lock()
	defer s.worker.change.Unlock()
	s.worker.mu.Lock()
	off, there := s.offering, slices.Contains(s.worker.served, s)
	s.worker.mu.Unlock()
	if off != nil && there {
		off.withdraw(ctx)
	}
}

package bus

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// Back-off of a worker that has lost its node.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// A Worker keeps functions on the bus for as long as it lives: when its node
// goes away it finds one again and offers anew, as many slots as are not still
// taken by calls of the lost connection.
type Worker struct {
	// Dial finds and connects to a node. It is called again after a loss, and
	// should give the same Instance each time, so that the node does not count
	// the lost connection's slots twice.
	Dial func(ctx context.Context) (*Client, error)
	// Connected, if set, is told of each new connection before offers are made
	// on it.
	Connected func(c *Client)
	// Notice, if set, takes messages about losses and returns.
	Notice func(format string, args ...any)

	mu      sync.Mutex // protects the fields below
	client  *Client    // nil while there is none
	drained bool       // nothing is offered any more
	served  []*served
}

// served is one function of a worker, across connections.
type served struct {
	worker   *Worker
	offer    Offer
	handler  CallHandler
	offering *Offering       // on the current connection
	held     map[*Client]int // calls that have not returned, by connection
	idle     chan struct{}

	change sync.Mutex // taken before mu: one OFFER at a time, each by the latest count
}

// running is how many calls have not returned. The worker's mu is held.
func (s *served) running() int {
	n := 0
	for _, k := range s.held {
		n += k
	}
	return n
}

// slots is how many may be offered over c: all but those that calls of earlier
// connections hold. The worker's mu is held.
func (s *served) slots(c *Client) int { return s.offer.Slots - s.running() + s.held[c] }

// Add adds a function, before Run.
func (w *Worker) Add(o Offer, h CallHandler) {
	w.served = append(w.served, &served{worker: w, offer: o, handler: h, held: map[*Client]int{}})
}

// Start connects and makes all offers. An error is final.
func (w *Worker) Start(ctx context.Context) error {
	c, err := w.Dial(ctx)
	if err != nil {
		return err
	}
	if err := w.offerAll(ctx, c); err != nil {
		c.Close()
		return err
	}
	return nil
}

// Run serves until ctx ends, and returns nil then; [Worker.Drain] is to follow.
// It returns an error if the node denies what is offered: that is final.
func (w *Worker) Run(ctx context.Context) error {
	for {
		c := w.current()
		if c != nil {
			select {
			case <-c.Done():
				w.notice("%v: looking for a node", c.Err())
			case <-ctx.Done():
				return nil
			}
		}
		w.setCurrent(nil)
		if err := w.reconnect(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// reconnect tries until a node has taken all offers.
func (w *Worker) reconnect(ctx context.Context) error {
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		// Jitter: a hundred workers do not knock at once.
		pause := time.NewTimer(delay/2 + rand.N(delay/2+1))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return context.Cause(ctx)
		}
		c, err := w.Dial(ctx)
		if err == nil {
			if err = w.offerAll(ctx, c); err == nil {
				name, network := c.Node()
				w.notice("offering again at node %s of network %s", name, network)
				return nil
			}
			c.Close()
		}
		if errors.Is(err, ErrDenied) {
			return err
		}
	}
}

// offerAll makes the offers on a new connection.
func (w *Worker) offerAll(ctx context.Context, c *Client) error {
	if w.Connected != nil {
		w.Connected(c)
	}
	w.setCurrent(c)
	for _, s := range w.served {
		if err := s.announce(ctx, c); err != nil {
			w.setCurrent(nil)
			return err
		}
	}
	return nil
}

func (w *Worker) current() *Client {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.client
}

func (w *Worker) setCurrent(c *Client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.client = c
	for _, s := range w.served {
		s.offering = nil
	}
}

func (w *Worker) notice(format string, args ...any) {
	if w.Notice != nil {
		w.Notice(format, args...)
	}
}

// announce offers the slots that are free, or changes how many are offered; with
// none the first call that returns does it.
func (s *served) announce(ctx context.Context, c *Client) error {
	s.change.Lock()
	defer s.change.Unlock()
	w := s.worker
	w.mu.Lock()
	slots, off, stale := s.slots(c), s.offering, w.client != c || w.drained
	w.mu.Unlock()
	switch {
	case stale || slots <= 0:
		return nil
	case off != nil:
		return off.SetSlots(ctx, slots)
	}
	o := s.offer
	o.Slots = slots
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
		return Result{Source: FromBus, Status: StatusOf(CodeCancelled), Code: CodeCancelled}
	}
	s.held[inv.client]++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if s.held[inv.client]--; s.held[inv.client] == 0 {
			delete(s.held, inv.client)
		}
		if len(s.held) == 0 && s.idle != nil {
			close(s.idle)
			s.idle = nil
		}
		if c := w.client; c != nil && c != inv.client {
			go s.announce(context.Background(), c) // ends with one exchange
		}
	}()
	return s.handler(ctx, inv)
}

// Drain withdraws the offers and waits until no call runs, or ctx ends. Then the
// connection is closed.
func (w *Worker) Drain(ctx context.Context) error {
	w.mu.Lock()
	w.drained = true
	w.mu.Unlock()
	for _, s := range w.served {
		s.withdraw(ctx)
	}
	for _, s := range w.served {
		if err := s.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// withdraw takes the offer back, after one that is being made.
func (s *served) withdraw(ctx context.Context) {
	s.change.Lock()
	defer s.change.Unlock()
	s.worker.mu.Lock()
	off := s.offering
	s.worker.mu.Unlock()
	if off != nil {
		off.SetSlots(ctx, 0)
	}
}

// Close closes the connection. Calls that still run are cancelled and waited
// for.
func (w *Worker) Close() {
	if c := w.current(); c != nil {
		c.Close()
	}
	for _, s := range w.served {
		s.wait(context.Background())
	}
}

func (s *served) wait(ctx context.Context) error {
	w := s.worker
	w.mu.Lock()
	if len(s.held) == 0 {
		w.mu.Unlock()
		return nil
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	w.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

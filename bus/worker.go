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

	mu     sync.Mutex // protects the fields below
	client *Client    // nil while there is none
	served []*served
}

// served is one function of a worker, across connections.
type served struct {
	worker   *Worker
	offer    Offer
	handler  CallHandler
	offering *Offering // on the current connection
	held     int       // calls of all connections that have not returned
	idle     chan struct{}
}

// Add adds a function, before Run.
func (w *Worker) Add(o Offer, h CallHandler) {
	w.served = append(w.served, &served{worker: w, offer: o, handler: h})
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

// announce offers the slots that are free; with none the first call that
// returns does it.
func (s *served) announce(ctx context.Context, c *Client) error {
	w := s.worker
	w.mu.Lock()
	slots := s.offer.Slots - s.held
	w.mu.Unlock()
	if slots <= 0 {
		return nil
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
	s.held++
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		s.held--
		if s.held == 0 && s.idle != nil {
			close(s.idle)
			s.idle = nil
		}
		if c := w.client; c != nil && c != inv.client {
			go s.grow(c) // ends with one exchange
		}
	}()
	return s.handler(ctx, inv)
}

// grow offers a slot that has come free from an earlier connection.
func (s *served) grow(c *Client) {
	w := s.worker
	w.mu.Lock()
	off, stale := s.offering, 0
	if off != nil {
		stale = s.held - off.Running()
	}
	w.mu.Unlock()
	if off == nil {
		s.announce(context.Background(), c)
		return
	}
	off.SetSlots(context.Background(), max(1, s.offer.Slots-stale))
}

// Drain withdraws the offers and waits until no call runs, or ctx ends. Then the
// connection is closed.
func (w *Worker) Drain(ctx context.Context) error {
	if c := w.current(); c != nil {
		w.mu.Lock()
		offerings := make([]*Offering, 0, len(w.served))
		for _, s := range w.served {
			if s.offering != nil {
				offerings = append(offerings, s.offering)
			}
		}
		w.mu.Unlock()
		for _, off := range offerings {
			off.SetSlots(ctx, 0)
		}
	}
	for _, s := range w.served {
		if err := s.wait(ctx); err != nil {
			return err
		}
	}
	return nil
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
	if s.held == 0 {
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

package bus

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"fbus/bus/args"
	"fbus/bus/wire"
)

// Back-off of a worker that has lost its node.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// A Worker keeps functions on the bus for as long as it lives: when its node
// goes away it finds one again and repeats its offers, with the slots that are not still
// taken by calls of the lost connection. Functions may come, change and go at
// any time.
type Worker struct {
	// Options are for [Connect], which finds a node, again after each loss. The worker
	// gives them an Instance if they have none, so that the node does not count the
	// slots of a lost connection twice.
	Options *Options
	// Dial, if set, connects in place of Connect, with the options that it gets.
	Dial func(ctx context.Context, o *Options) (*Client, error)
	// MaxRunning bounds the calls that run at once over all functions; 0: no limit.
	MaxRunning int
	// Notice, if set, takes messages about losses and returns.
	Notice func(format string, args ...any)

	options Options // with an instance, from the first connection on

	change sync.Mutex // taken before mu: one OFFER at a time, each by the latest count

	mu      sync.Mutex // protects the fields below, and those of served
	client  *Client    // nil while there is none
	drained bool       // nothing is offered any more
	served  []*served
	leaving []*served // replaced or removed, with calls that have not returned
	held    map[held]int
}

// Start connects and makes all offers. An error is final.
func (w *Worker) Start(ctx context.Context) error {
	c, err := w.dial(ctx)
	if err != nil {
		return err
	}
	if err := w.offerAll(ctx, c); err != nil {
		c.Close()
		return err
	}
	return nil
}

func (w *Worker) dial(ctx context.Context) (*Client, error) {
	if w.options.Instance == "" {
		if w.Options != nil {
			w.options = *w.Options
		}
		w.options.Instance = cmp.Or(w.options.Instance, wire.NewInstance())
	}
	if w.Dial != nil {
		return w.Dial(ctx, &w.options)
	}
	return Connect(ctx, &w.options)
}

// Run serves until ctx ends, and returns nil then; [Worker.Drain] is to follow.
// It returns an error if the node denies an offer, or denies this worker entry:
// that is final.
func (w *Worker) Run(ctx context.Context) error {
	for {
		c := w.current()
		if c != nil {
			select {
			case <-c.Done():
				// An identity that has expired may have been renewed in the meantime.
				if err := args.AsError(c.Err(), args.CodeNodeLost); errors.Is(err, ErrDenied) && err.Code != args.CodeExpired {
					return err
				}
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
	said := ""
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		// Jitter: a hundred workers do not knock at once.
		pause := time.NewTimer(delay/2 + rand.N(delay/2+1))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return context.Cause(ctx)
		}
		c, err := w.dial(ctx)
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
		if text := err.Error(); telling(err) && text != said {
			w.notice("%s: still looking for a node", text)
			said = text
		}
	}
}

// telling reports whether an error has news beyond the absence of a node.
func telling(err error) bool {
	switch args.AsError(err, args.CodeNoNode).Code {
	case args.CodeNoNode, args.CodeNodeLost, args.CodeDraining:
		return false
	}
	return true
}

// offerAll makes the offers on a new connection.
func (w *Worker) offerAll(ctx context.Context, c *Client) error {
	for _, s := range w.setCurrent(c) {
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

// setCurrent changes the connection and returns the functions to offer on it.
func (w *Worker) setCurrent(c *Client) []*served {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.client = c
	for _, s := range w.served {
		s.offering = nil
	}
	return slices.Clone(w.served)
}

func (w *Worker) notice(format string, args ...any) {
	if w.Notice != nil {
		w.Notice(format, args...)
	}
}

// Drain withdraws the offers and waits until no call runs, or ctx ends.
func (w *Worker) Drain(ctx context.Context) error {
	w.mu.Lock()
	w.drained = true
	all := w.all()
	w.mu.Unlock()
	for _, s := range all {
		s.withdraw(ctx)
	}
	for _, s := range all {
		if err := s.calls.wait(ctx, &w.mu); err != nil {
			return err
		}
	}
	return nil
}

// Disconnect closes the connection: to their callers, calls that still run are lost with
// this worker, whatever becomes of them then.
func (w *Worker) Disconnect() {
	if c := w.current(); c != nil {
		c.Close()
	}
}

// Close closes the connection. Calls that still run are cancelled and waited
// for.
func (w *Worker) Close() {
	w.Disconnect()
	w.mu.Lock()
	all := w.all()
	w.mu.Unlock()
	for _, s := range all {
		s.calls.wait(context.Background(), &w.mu)
	}
}

// Running returns how many calls run.
func (w *Worker) Running() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, s := range w.all() {
		n += s.calls.n
	}
	return n
}

// all lists the functions that are offered, and those that were. The worker's mu is held.
func (w *Worker) all() []*served { return append(slices.Clone(w.served), w.leaving...) }

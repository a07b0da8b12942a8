package bus

import (
	"context"
	"fbus/bus/args"
	"fbus/bus/wire"
	"maps"
	"slices"
	"sync"
)

// Offer describes a function to put on the bus.
type Offer struct {
	Name        string
	Slots       int               // calls taken at once; at least 1, and 0 for a relay
	Idempotent  bool              // calls may be run again when the worker is lost
	Description string            // for people
	Arguments   string            // how arguments arrive, for people: "JSON on stdin"
	Note        string            // why the worker has nothing ready just now, for people; empty: all is well
	Takes       string            // "input" or "args": calls have nothing else; empty or "both": they may have both
	Attributes  map[string]string // what companions need to know: see [args.CheckAttributes]
	Schema      string            // a JSON Schema of the arguments, at most [MaxSchema] bytes; empty: none
	MaxRunning  int               // calls at once over all offers of the connection, by the last of them; 0: no limit

	// Relay is for a connection with the right to relay: calls go on to another node. The offer
	// gets calls when no other offer of the function has a free slot, and calls wait for a slot of
	// it. When a slot has gone, its owner calls SetSlots before the handler returns.
	Relay     bool
	Elsewhere int      // slots at the other node
	Behind    []string // what selects each worker there, for [Invocation.On]; at most 1,000
	Held      []string // those of Behind that get nothing new: fbus.hold

	stopped *Error // why the worker cannot start the program; then there are no slots

	// Arrive, if set, is called for each call, in the order in which they come, before
	// its handler begins; what it returns is the invocation's Arrival. Everything on
	// the connection waits for it.
	Arrive func() any
}

// A Handler serves one invocation; its result ends the call. It runs in a
// goroutine of its own, at most Slots at a time for an offer. When ctx is
// cancelled nobody waits for the result any more, but the slot stays taken
// until the handler returns: it must not return before everything that it started has ended.
// The cause of the cancellation is an [Error]: [ErrCancelled], [ErrDeadline] or
// the loss of the node.
type Handler func(ctx context.Context, inv *Invocation) Result

// Offering is an offer that was made on a connection.
type Offering struct {
	client  *Client
	offer   Offer
	handler Handler

	// The client's mu protects these.
	slots   int
	note    string
	stopped *Error // why the program cannot be started; nil: it can
	gone    bool   // withdrawn, if it is a relay's: with no slots that stays
	running tally
}

// Offer puts a function on the bus, or replaces the offer of that name on this
// connection. It returns when the node has accepted it.
func (c *Client) Offer(ctx context.Context, o Offer, h Handler) (*Offering, error) {
	switch {
	case o.Slots < 0, o.Slots == 0 && o.stopped == nil && !o.Relay:
		return nil, args.Errorf(args.CodeUsage, "an offer needs at least one slot")
	case max(len(o.Behind), len(o.Held)) > wire.MaxBehind:
		return nil, args.Errorf(args.CodeUsage, "%s: %d workers behind a relay exceed the limit of %d", o.Name, max(len(o.Behind), len(o.Held)), wire.MaxBehind)
	case len(o.Schema) > wire.MaxSchema:
		return nil, args.Errorf(args.CodeUsage, "%s: a schema of %d bytes exceeds the limit of %d", o.Name, len(o.Schema), wire.MaxSchema)
	}
	if err := args.CheckAttributes(o.Attributes); err != nil {
		return nil, err
	}
	off := &Offering{client: c, offer: o, handler: h, slots: o.Slots, note: o.Note, stopped: o.stopped}
	var old *Offering
	err := off.announce(ctx, func() {
		old = c.offers[o.Name]
		c.offers[o.Name] = off // before the node's word: a CALL may be right behind it
	})
	if err != nil {
		c.mu.Lock()
		if c.offers[o.Name] == off {
			delete(c.offers, o.Name)
			if old != nil {
				c.offers[o.Name] = old
			}
		}
		c.mu.Unlock()
		if ctx.Err() != nil {
			off.giveUp(old)
		}
		return nil, err
	}
	return off, nil
}

// giveUp makes the node forget an offer whose answer was not waited for: calls
// would be sent here and find nobody.
func (off *Offering) giveUp(old *Offering) {
	done, cancel := context.WithCancel(context.Background())
	cancel() // nor is this answer waited for
	if old != nil {
		off = old
	} else {
		off = &Offering{client: off.client, offer: off.offer, gone: true}
	}
	off.announce(done, func() {})
}

// announce makes a change here, sends OFFER, and waits for the answer. Nothing is done
// between the two: a call that is refused for the change finds that the node knows of it.
func (off *Offering) announce(ctx context.Context, change func()) error {
	c := off.client
	f := wire.OfferFrame{
		Name:        []byte(off.offer.Name),
		Description: []byte(off.offer.Description), Arguments: []byte(off.offer.Arguments),
		Schema: []byte(off.offer.Schema), MaxRunning: uint64(off.offer.MaxRunning),
	}
	for _, name := range slices.Sorted(maps.Keys(off.offer.Attributes)) {
		f.Attributes = append(f.Attributes, []byte(name), []byte(off.offer.Attributes[name]))
	}
	for _, on := range off.offer.Behind {
		f.Behind = append(f.Behind, []byte(on))
	}
	for _, on := range off.offer.Held {
		f.Held = append(f.Held, []byte(on))
	}
	f.Elsewhere = uint64(off.offer.Elsewhere)
	if off.offer.Idempotent {
		f.Flags |= wire.FlagIdempotent
	}
	switch off.offer.Takes {
	case "input":
		f.Flags |= wire.FlagTakesInput
	case "args":
		f.Flags |= wire.FlagTakesArgs
	}
	answer := make(chan *args.Error, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	change()
	c.lastSeq++
	if off.offer.Relay && !off.gone {
		f.Flags |= wire.FlagRelay
	}
	f.Seq, f.Slots, f.Note = c.lastSeq, uint64(off.slots), []byte(off.note)
	if e := off.stopped; e != nil {
		f.Flags, f.Note = f.Flags|wire.FlagCannotStart, []byte(e.Message)
		if e.Status() == args.StatusOf(args.CodeNotFound) {
			f.Flags |= wire.FlagNotFound
		}
	}
	c.pending[f.Seq] = answer
	c.conn.Send(&f) // if it fails the connection ends, and that is the answer
	c.mu.Unlock()
	select {
	case e := <-answer:
		if e != nil {
			return e
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// SetSlots changes how many calls the offer takes at once; running calls are
// not touched.
func (off *Offering) SetSlots(ctx context.Context, n int) error {
	return off.announce(ctx, func() { off.slots, off.stopped, off.gone = n, nil, false })
}

// Withdraw takes the offer back and waits for the calls that run, until ctx
// ends.
func (off *Offering) Withdraw(ctx context.Context) error {
	if err := off.withdraw(ctx); err != nil {
		return err
	}
	return off.Wait(ctx)
}

func (off *Offering) withdraw(ctx context.Context) error {
	return off.announce(ctx, func() { off.slots, off.stopped, off.gone = 0, nil, true })
}

// Wait waits until no call runs, or ctx ends.
func (off *Offering) Wait(ctx context.Context) error { return off.running.wait(ctx, &off.client.mu) }

// A tally counts calls that run. Its owner's mutex protects it.
type tally struct {
	n    int
	idle chan struct{} // closed when n falls to 0, if somebody waits
}

// done counts the end of a call.
func (t *tally) done() {
	if t.n--; t.n == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// wait waits until no call runs, or ctx ends. mu protects t, and is not held.
func (t *tally) wait(ctx context.Context, mu *sync.Mutex) error {
	mu.Lock()
	if t.n == 0 {
		mu.Unlock()
		return nil
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

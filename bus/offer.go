package bus

import (
	"context"
	"fbus/bus/args"
	"fbus/bus/wire"
	"io"
	"runtime"
	"time"
)

// Offer describes a function to put on the bus.
type Offer struct {
	Name        string
	Slots       int    // calls taken at once; at least 1
	Idempotent  bool   // calls may be run again when the worker is lost
	Description string // for people
	Arguments   string // how arguments arrive, for people: "JSON on stdin"
	Note        string // why the worker has nothing ready just now, for people; empty: all is well
	Schema      string // a JSON Schema of the arguments, at most [MaxSchema] bytes; empty: none

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
	running int
	idle    chan struct{} // closed when running falls to 0, if somebody waits
}

// Invocation is one call of a function that this side offers.
type Invocation struct {
	Function string
	Call     string // id on the network
	Caller   string // the caller's identity, as the node knows it: "uid:1000"
	Kind     args.Kind
	Args     []byte    // see PROTOCOL.md, section 6
	HasInput bool      // an input was sent alongside arguments
	Input    io.Reader // the input stream; for one goroutine at a time
	Deadline time.Time // zero: none

	Job     string // id of the job that the call runs; empty: it is no job's
	Attempt int    // of the job, from 1
	// Origin is the job whose end has posted this one: a JSON object with its id,
	// function, status and attempts; empty: none.
	Origin string

	Arrival any // what the offer's Arrive has returned

	// Stdout and Stderr send to the caller, at its pace; each is for one goroutine
	// at a time. A write fails once the call was cancelled.
	Stdout, Stderr io.Writer

	client   *Client
	offering *Offering
	id       uint64
	ctx      context.Context
	cancel   context.CancelCauseFunc
	head     []byte       // of the input, not read yet
	rest     *inputStream // nil if head is all of the input
	out, err sendStream
}

// Offer puts a function on the bus, or replaces the offer of that name on this
// connection. It returns when the node has accepted it.
func (c *Client) Offer(ctx context.Context, o Offer, h Handler) (*Offering, error) {
	switch {
	case o.Slots < 1:
		return nil, args.Errorf(args.CodeUsage, "an offer needs at least one slot")
	case len(o.Schema) > wire.MaxSchema:
		return nil, args.Errorf(args.CodeUsage, "%s: a schema of %d bytes exceeds the limit of %d", o.Name, len(o.Schema), wire.MaxSchema)
	}
	off := &Offering{client: c, offer: o, handler: h, slots: o.Slots, note: o.Note}
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
		off = &Offering{client: off.client, offer: off.offer}
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
		Schema: []byte(off.offer.Schema),
	}
	if off.offer.Idempotent {
		f.Flags |= wire.FlagIdempotent
	}
	answer := make(chan *args.Error, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	change()
	c.lastSeq++
	f.Seq, f.Slots, f.Note = c.lastSeq, uint64(off.slots), []byte(off.note)
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
	off.client.mu.Lock()
	note := off.note
	off.client.mu.Unlock()
	return off.change(ctx, n, note)
}

// change makes the offer again, with as many slots and another note.
func (off *Offering) change(ctx context.Context, slots int, note string) error {
	return off.announce(ctx, func() { off.slots, off.note = slots, note })
}

// Withdraw takes the offer back and waits for the calls that run, until ctx
// ends.
func (off *Offering) Withdraw(ctx context.Context) error {
	if err := off.SetSlots(ctx, 0); err != nil {
		return err
	}
	return off.Wait(ctx)
}

// Wait waits until no call runs.
func (off *Offering) Wait(ctx context.Context) error {
	c := off.client
	c.mu.Lock()
	if off.running == 0 {
		c.mu.Unlock()
		return nil
	}
	if off.idle == nil {
		off.idle = make(chan struct{})
	}
	idle := off.idle
	c.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Running returns how many calls the offer holds now.
func (off *Offering) Running() int {
	off.client.mu.Lock()
	defer off.client.mu.Unlock()
	return off.running
}

func (c *Client) handleOffered(f *wire.OfferedFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.pending[f.Seq]
	if ch == nil {
		return args.Errorf(args.CodeProtocol, "answer to offer %d, which was never made", f.Seq)
	}
	delete(c.pending, f.Seq)
	if len(f.Code) == 0 {
		ch <- nil
	} else {
		ch <- args.FromWire(string(f.Code), string(f.Message), 0)
	}
	return nil
}

// handleCall starts a call that the node opened.
func (c *Client) handleCall(b *wire.Batch, f *wire.CallFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.ID <= c.lastIn {
		return args.Errorf(args.CodeProtocol, "call id %d after %d", f.ID, c.lastIn)
	}
	c.lastIn = f.ID
	off := c.offers[string(f.Name)]
	if off == nil || off.running >= off.slots {
		// Our offer and the node's call have crossed: it looks elsewhere.
		return b.Send(c.conn, &wire.EndFrame{ID: f.ID, Source: args.FromBus, Status: 75, Code: []byte(args.CodeBusy), Message: []byte("no slot is free at the worker")})
	}
	inv := newInvocation(c, off, f)
	c.in[f.ID] = inv
	off.running++
	c.handlers.Add(1)
	go inv.serve() // ends with the handler
	return nil
}

func newInvocation(c *Client, off *Offering, f *wire.CallFrame) *Invocation {
	data := make([]byte, len(f.Args)+len(f.Input))
	n := copy(data, f.Args)
	copy(data[n:], f.Input)
	inv := &Invocation{
		Function: off.offer.Name, Call: string(f.Call), Caller: c.callers.intern(f.Caller),
		Kind: f.Kind, Args: data[:n:n], head: data[n:], HasInput: f.Flags&wire.FlagHasInput != 0,
		Job: string(f.Job), Attempt: int(f.Attempt), Origin: string(f.Origin),
		client: c, offering: off, id: f.ID,
	}
	if off.offer.Arrive != nil {
		inv.Arrival = off.offer.Arrive()
	}
	if f.Timeout > 0 {
		inv.Deadline = time.Now().Add(time.Duration(f.Timeout) * time.Millisecond)
	}
	inv.ctx, inv.cancel = context.WithCancelCause(context.Background())
	inv.out.init(inv, wire.Output, f.WindowOutput)
	inv.err.init(inv, wire.Stderr, f.WindowStderr)
	inv.Stdout, inv.Stderr = &inv.out, &inv.err
	if f.Flags&wire.FlagInputEnd == 0 {
		inv.rest = newInputStream(inv)
	}
	inv.Input = (*input)(inv)
	return inv
}

// serve is run on a stack that is large enough for most handlers from the start:
// a small one would be copied as it grows, for each call again. With 4 KiB that took a
// tenth of a worker's own time when it called resident programs.
//
//go:noinline
func (inv *Invocation) serve() {
	var room [8 << 10]byte
	inv.run()
	runtime.KeepAlive(&room)
}

// run serves the call and ends it.
func (inv *Invocation) run() {
	defer inv.client.handlers.Done()
	if inv.rest != nil {
		inv.rest.open()
	}
	res := inv.offering.handler(inv.ctx, inv)
	if res.Source > args.FromBus || res.Status < 0 || res.Status > 255 {
		res.End = args.Errorf(args.CodeInternal, "%s: its handler returned no valid status", inv.Function).End()
	}
	if res.Source == args.FromProgram && res.Code == "" {
		res.Code = "exit"
	}
	out := res.Output
	if len(out) > 0 && !inv.out.takeAll(len(out)) {
		// More than the caller has granted: like any output, at its pace.
		inv.out.Write(out)
		out = nil
	}
	inv.cancel(ErrCancelled) // not before: a cancelled call's output is dropped
	inv.end(&res, out)
}

// end gives the slot back and sends END.
func (inv *Invocation) end(res *Result, out []byte) {
	c, off := inv.client, inv.offering
	c.mu.Lock()
	off.running--
	if off.running == 0 && off.idle != nil {
		close(off.idle)
		off.idle = nil
	}
	open := c.in[inv.id] != nil // else the connection is gone
	delete(c.in, inv.id)
	others, flush := len(c.in) > 0, false
	if open {
		f := &c.scratch.end
		c.scratch.code = append(c.scratch.code[:0], res.Code...)
		f.ID, f.Source, f.Status = inv.id, res.Source, uint64(res.Status)
		f.Code, f.Message, f.Output = c.scratch.code, []byte(args.WireMessage(res.Message, res.Hint)), out
		flush, _ = c.conn.Queue(f)
		f.Output = nil // it is not ours to keep
	}
	c.mu.Unlock()
	if flush {
		c.conn.Flush(others)
	}
}

// incoming finds a call that the node opened, nil for one that has ended. c.mu
// is held.
func (c *Client) incoming(id uint64) (*Invocation, error) {
	if inv := c.in[id]; inv != nil {
		return inv, nil
	}
	if id == 0 || id > c.lastIn {
		return nil, args.Errorf(args.CodeProtocol, "frame for call %d, which was never opened", id)
	}
	return nil, nil
}

func (c *Client) inputData(f *wire.DataFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	inv, err := c.incoming(f.ID)
	if inv == nil || inv.rest == nil {
		return err
	}
	return inv.rest.push(f.Payload)
}

func (c *Client) inputEOF(f *wire.EOFFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	inv, err := c.incoming(f.ID)
	if inv != nil && inv.rest != nil {
		inv.rest.end(io.EOF)
	}
	return err
}

func (c *Client) outputGrant(f *wire.GrantFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	inv, err := c.incoming(f.ID)
	if inv == nil {
		return err
	}
	if f.Stream == wire.Stderr {
		return inv.err.grant(f.Bytes)
	}
	return inv.out.grant(f.Bytes)
}

func (c *Client) handleCancel(f *wire.CancelFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	inv, err := c.incoming(f.ID)
	if inv == nil {
		return err
	}
	cause := ErrCancelled
	if string(f.Code) == args.CodeDeadline {
		cause = ErrDeadline
	}
	inv.cancel(cause)
	if inv.rest != nil {
		inv.rest.end(cause)
	}
	return nil
}

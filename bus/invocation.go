package bus

import (
	"context"
	"encoding/json"
	"io"
	"runtime"
	"time"

	"fbus/bus/args"
	"fbus/bus/wire"
)

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

	// On selects workers at the node to which a relay passes the call; empty: any.
	On string

	// Trace is the trace that the call belongs to: see [args.SplitTrace]. Empty: none.
	Trace string

	Arrival any // what the offer's Arrive has returned

	// Stdout and Stderr send to the caller, at its pace; each is for one goroutine
	// at a time. A write fails once the call was cancelled.
	Stdout, Stderr io.Writer

	client   *Client
	offering *Offering
	id       uint64
	ctx      context.Context
	cancel   context.CancelCauseFunc
	head     []byte      // of the input, not read yet
	rest     *recvStream // nil if head is all of the input
	out, err sendStream
	progress *reporter // nil until the first report; the client's mu protects it
}

// Head returns the bytes of the input that came with the call, and Rest a reader for what
// follows them, nil if nothing does. They are for handlers that pass the input on without
// a copy, and are used instead of Input.
func (inv *Invocation) Head() []byte { return inv.head }

// Rest is described with Head.
func (inv *Invocation) Rest() io.Reader {
	if inv.rest == nil {
		return nil
	}
	return inv.rest
}

// input reads the head of an invocation's input, then the rest.
type input Invocation

func (in *input) Read(p []byte) (int, error) {
	switch {
	case len(in.head) > 0:
		n := copy(p, in.head)
		in.head = in.head[n:]
		return n, nil
	case in.rest != nil:
		return in.rest.Read(p)
	}
	return 0, io.EOF
}

func (in *input) WriteTo(w io.Writer) (total int64, err error) {
	if head := in.head; len(head) > 0 {
		in.head = nil
		n, err := w.Write(head)
		if total = int64(n); err != nil {
			return total, err
		}
	}
	if in.rest == nil {
		return total, nil
	}
	n, err := in.rest.WriteTo(w)
	return total + n, err
}

func newInvocation(c *Client, off *Offering, f *wire.CallFrame) *Invocation {
	data := make([]byte, len(f.Args)+len(f.Input))
	n := copy(data, f.Args)
	copy(data[n:], f.Input)
	inv := &Invocation{
		Function: off.offer.Name, Call: string(f.Call), Caller: c.callers.intern(f.Caller),
		Kind: f.Kind, Args: data[:n:n], head: data[n:], HasInput: f.Flags&wire.FlagHasInput != 0,
		Job: string(f.Job), Attempt: int(f.Attempt), Origin: string(f.Origin), Trace: string(f.Trace), On: string(f.On),
		client: c, offering: off, id: f.ID,
	}
	if off.offer.Arrive != nil {
		inv.Arrival = off.offer.Arrive()
	}
	if f.Timeout > 0 && f.Timeout < wire.Forever {
		inv.Deadline = time.Now().Add(time.Duration(f.Timeout) * time.Millisecond)
	}
	inv.ctx, inv.cancel = context.WithCancelCause(context.Background())
	inv.out = sendStream{conn: c.conn, id: f.ID, stream: wire.Output, ctx: inv.ctx, credit: f.WindowOutput}
	inv.err = sendStream{conn: c.conn, id: f.ID, stream: wire.Stderr, ctx: inv.ctx, credit: f.WindowStderr}
	inv.Stdout, inv.Stderr = &inv.out, &inv.err
	if f.Flags&wire.FlagInputEnd == 0 {
		inv.rest = &recvStream{wake: make(chan struct{}, 1)}
		inv.rest.init(c.conn, f.ID, wire.Input, 0, wire.InitialWindow)
		// Granted when the handler begins to read: the node can place the call elsewhere until then.
		inv.rest.first = wire.InitialWindow
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
	res := inv.offering.handler(inv.ctx, inv)
	if res.Source > args.FromBus || res.Status < 0 || res.Status > 255 || res.Source != args.FromProgram && res.Status == 0 {
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
	c := inv.client
	c.mu.Lock()
	progress := inv.progress
	c.mu.Unlock()
	if progress != nil {
		progress.stop()
	}
	inv.stop(ErrCancelled) // not before: a cancelled call's output is dropped
	inv.end(&res, out)
}

// end gives the slot back and sends END.
func (inv *Invocation) end(res *Result, out []byte) {
	c, off := inv.client, inv.offering
	c.mu.Lock()
	off.running.done()
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

// stop ends the streams of the call for a reason.
func (inv *Invocation) stop(cause error) {
	inv.cancel(cause)
	if inv.rest != nil {
		inv.rest.close(cause)
	}
}

// Words returns the arguments of an invocation as strings: those of a list, of
// a JSON array of strings, or none. It is for handlers that take only words;
// others decode Args by PROTOCOL.md, section 6.
func (inv *Invocation) Words() ([]string, error) {
	if inv.Kind == args.KindMap {
		return nil, args.BadInput("expected words, not fields")
	}
	v, err := args.Decode(inv.Kind, inv.Args)
	if err != nil {
		return nil, err
	}
	var list []string
	if inv.Kind == args.KindJSON {
		if err := json.Unmarshal(v.Doc, &list); err != nil {
			return nil, args.BadInput("expected an array of strings")
		}
		return list, nil
	}
	for _, value := range v.List {
		word := string(value.Text)
		if value.JSON {
			if err := json.Unmarshal(value.Text, &word); err != nil {
				return nil, args.BadInput("expected strings, not %s", args.Abbreviate(value.Text))
			}
		}
		list = append(list, word)
	}
	return list, nil
}

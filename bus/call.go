package bus

import (
	"cmp"
	"context"
	"errors"
	"fbus/bus/args"
	"fbus/bus/wire"
	"io"
	"strconv"
	"time"
)

// outCall is a call that this side opened.
type outCall struct {
	client *Client
	id     uint64
	req    *Request
	stdout recvStream
	stderr recvStream
	result Result        // valid once stdout has ended
	err    error         // instead of a result: the connection failed, or we gave up
	errEnd chan error    // gets the end of the stderr pump, nil if there is none
	input  *inputPump    // nil if all of the input went out with the call
	wrote  bool          // stdout was passed on
	told   chan struct{} // closed at the END of a call that was given up; nil if that is not waited for
}

// Call invokes a function and waits for its end. The error is nil if a program
// exited with 0; an [ExitError] if it ended otherwise; an [Error] if fbus ended
// the call; the context's cause if that was cancelled; or what a writer
// returned. The Result is filled as far as it is known.
func (c *Client) Call(ctx context.Context, req *Request) (Result, error) {
	if len(req.Args.Data()) > wire.MaxArgs {
		return Result{}, args.Errorf(args.CodeBadInput, "arguments of %d bytes exceed the limit of %d: send them as input instead", len(req.Args.Data()), wire.MaxArgs)
	}
	if req.Caller != "" || req.CallID != "" || req.Job != "" {
		if err := c.mayRelay(ctx); err != nil {
			return Result{}, err
		}
	}
	in := readAhead(req.Input)
	if in.err != nil {
		return Result{}, &args.Error{Code: args.CodeInternal, Message: "input cannot be read: " + reason(in.err), Err: in.err}
	}
	start := time.Now()
	for lost, elsewhere := 0, 0; ; {
		res, wrote, err := c.try(ctx, req, &in, start)
		switch {
		case wrote || in.complete:
			return res, err
		case errors.Is(err, ErrWorkerLost) && lost < req.Retries:
			lost++
		case errors.Is(err, ErrCannotStart) && res.Worker != "" && elsewhere < maxElsewhere:
			elsewhere++
		default:
			return res, err
		}
		if !in.rewind(req.Input) {
			return res, err
		}
	}
}

// mayRelay returns an error if the node would not take what a call says about others: it would run the
// call as this client's own.
func (c *Client) mayRelay(ctx context.Context) error {
	select {
	case <-c.hello:
	case <-c.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return args.AsError(c.err, args.CodeNodeLost)
	case !c.node.Has(wire.CapRelay):
		return args.Errorf(args.CodeDenied, "this connection may not make calls for others").WithHint("it needs the right relay: fbus invite --relay")
	}
	return nil
}

// maxElsewhere is how many workers a call whose input is a long file finds unable to start
// it, before it ends with that.
const maxElsewhere = 10

// try makes one attempt. The node makes the further ones of a call whose input
// it has whole; the others are for this side, which can rewind a file.
func (c *Client) try(ctx context.Context, req *Request, in *readAheadInput, start time.Time) (Result, bool, error) {
	call := &outCall{client: c, req: req}
	frame := wire.CallFrame{
		Kind: req.Args.Kind(), Args: req.Args.Data(),
		WaitFunction: req.WaitFunction.millis(), WaitSlot: cmp.Or(req.WaitSlot, Forever).millis(), On: []byte(req.On),
		WindowOutput: wire.InitialWindow, WindowStderr: wire.InitialWindow,
		Trace: []byte(cmp.Or(req.Trace, c.trace)),
		Call:  []byte(req.CallID), Caller: []byte(req.Caller), Job: []byte(req.Job), Attempt: uint64(max(0, req.Attempt)), Origin: []byte(req.Origin),
	}
	left, err := timeLeft(ctx, req.Timeout, start)
	if err != nil {
		return Result{}, false, err
	}
	frame.Timeout = left
	if left > 0 {
		// The node keeps the deadline; this one is for a node that hangs.
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, time.Duration(left)*time.Millisecond+nodeGrace, args.Errorf(args.CodeDeadline, args.DeadlineMessage))
		defer stop()
	}
	in.fill(&frame)
	if req.Input != nil && req.Args.Kind() != args.KindRaw {
		frame.Flags |= wire.FlagHasInput
	}
	if req.Here {
		frame.Flags |= wire.FlagHere
	}
	if in.complete {
		frame.Retries = uint64(max(0, req.Retries))
	} else {
		call.input = newInputPump(call, in, req.Input)
		defer func() { call.input.stop(in.seekable) }()
	}
	if err := c.open(call, frame); err != nil {
		return Result{}, false, args.AsError(err, args.CodeNodeLost)
	}
	if req.Opened != nil {
		req.Opened(c.callName(call.id))
	}
	err = call.wait(ctx)
	call.awaitEnd()
	res := call.result
	if res.Call == "" {
		res.Call = c.callName(call.id)
	}
	return res, call.wrote, err
}

// nodeGrace is how much longer than the deadline this side waits for the node's END.
const nodeGrace = 250 * time.Millisecond

// timeLeft returns the rest of a request's time, in milliseconds, 0 for no limit.
func timeLeft(ctx context.Context, timeout time.Duration, start time.Time) (uint64, error) {
	left, own := time.Duration(0), timeout > 0
	if own {
		left = timeout - time.Since(start)
	}
	if d, ok := ctx.Deadline(); ok {
		if until := time.Until(d); !own || until < left {
			left, own = until, false
		}
	} else if !own {
		return 0, nil
	}
	switch {
	case left > 0:
		return max(1, millis(left)), nil
	case own:
		return 0, args.Errorf(args.CodeDeadline, args.DeadlineMessage)
	}
	return 0, context.DeadlineExceeded
}

// millis is a duration on the wire; parts of a millisecond count as a whole one.
func millis(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	ms := uint64((d + time.Millisecond - 1) / time.Millisecond)
	return min(ms, wire.Forever)
}

// open sends CALL under a new id.
func (c *Client) open(call *outCall, f wire.CallFrame) error {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.lastOut++ // ids rise on the wire as well: queued under the same lock
	call.id = c.lastOut
	c.out[call.id] = call
	call.stdout.init(c.conn, call.id, wire.Output, wire.InitialWindow, maxOutputWindow)
	call.stdout.wake = make(chan struct{}, 1)
	call.stderr.init(c.conn, call.id, wire.Stderr, wire.InitialWindow, maxOutputWindow)
	if call.input != nil {
		call.input.conn, call.input.id, call.input.stream = c.conn, call.id, wire.Input
	}
	others := len(c.out) > 1
	frame := &c.scratch.call
	*frame = f
	frame.ID = call.id
	c.scratch.name = append(c.scratch.name[:0], call.req.Function...)
	frame.Name = c.scratch.name
	// If it fails the connection ends, and fails the call: with the node's error,
	// if that has closed it.
	flush, _ := c.conn.Queue(frame)
	*frame = wire.CallFrame{} // the arguments are not ours to keep
	c.mu.Unlock()
	if flush {
		c.conn.Flush(others)
	}
	return nil
}

// wait passes output on until the call has ended.
func (call *outCall) wait(ctx context.Context) error {
	if ctx.Done() != nil {
		// The node hears of a cancellation even while a writer of ours is stuck.
		defer context.AfterFunc(ctx, func() { call.abandon(context.Cause(ctx)) })()
	}
	n, err := call.stdout.WriteTo(orDiscard(call.req.Stdout))
	if call.wrote = n > 0; err != nil {
		call.abandon(err)
		return err
	}
	call.client.mu.Lock()
	pump := call.errEnd
	call.client.mu.Unlock()
	if pump != nil {
		select {
		case err := <-pump:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if call.err != nil {
		return call.err
	}
	return call.result.Err()
}

// pumpStderr writes stderr alongside stdout, so that neither waits for the other.
func (call *outCall) pumpStderr() {
	_, err := call.stderr.WriteTo(orDiscard(call.req.Stderr))
	if err != nil {
		call.stderr.WriteTo(io.Discard) // the call ends as it would have
	}
	call.errEnd <- err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// abandon ends the call on our side, and informs the node that nobody waits any
// more.
func (call *outCall) abandon(err error) {
	c := call.client
	c.mu.Lock()
	_, open := c.out[call.id]
	if open {
		delete(c.out, call.id)
		if call.req.Farewell > 0 {
			call.told = make(chan struct{})
			c.left[call.id] = call
		}
		call.fail(err)
	}
	c.mu.Unlock()
	if !open {
		return
	}
	code := args.CodeCancelled
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrDeadline) {
		code = args.CodeDeadline
	}
	c.conn.Send(&wire.CancelFrame{ID: call.id, Code: []byte(code)})
}

// awaitEnd waits for the END of a call that was given up, which names the worker that had it.
func (call *outCall) awaitEnd() {
	c := call.client
	c.mu.Lock()
	told := call.told
	c.mu.Unlock()
	if told == nil {
		return
	}
	timer := time.NewTimer(call.req.Farewell)
	defer timer.Stop()
	select {
	case <-told:
	case <-c.done:
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.left, call.id)
}

// fail ends the call without a result. The client's mu is held.
func (call *outCall) fail(err error) {
	call.err = err
	call.stderr.close(io.EOF)
	call.stdout.close(io.EOF)
}

// callName is a call's id on the network: the connection's prefix and the id on
// that connection. It is empty before the node has sent the prefix.
func (c *Client) callName(id uint64) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.node.Connection) == 0 {
		return ""
	}
	return string(c.node.Connection) + "-" + strconv.FormatUint(id, 10)
}

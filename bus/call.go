package bus

import (
	"context"
	"errors"
	"io"
	"strconv"
	"time"
)

// Request is a call to make.
type Request struct {
	// Function is the name to call.
	Function string
	// Args are the arguments; the zero value sends none.
	Args Args
	// Input is the input stream, nil for none. What can be had of it without
	// waiting goes out with the call; the rest is read when the function takes
	// it. A Read that is under way when the call ends is not waited for.
	Input io.Reader
	// Stdout and Stderr take what the program writes, as it comes; nil discards
	// it. Each is written to by one goroutine at a time.
	Stdout, Stderr io.Writer
	// Timeout bounds the call from now to its end, waiting included; 0 is none.
	// A deadline of the context counts as well.
	Timeout time.Duration
	// WaitFunction is how long to wait for the function to be offered at all.
	WaitFunction time.Duration
	// WaitSlot is how long to wait for a free slot; nil waits without limit.
	WaitSlot *time.Duration
	// Retries is how many further tries a call gets whose worker was lost, as
	// long as nothing of its output was passed on.
	Retries int
	// On limits the call to workers whose name matches this glob.
	On string
	// Farewell is how long a call that is given up waits for the node's word on it,
	// which names the worker that had it; 0 is not at all.
	Farewell time.Duration
	// Opened, if set, is called when the call has been sent, each time it is. Calls
	// of which each is made when the one before was opened arrive in that order.
	Opened func()
	// Posted is said of a call that runs a job. It is for a node's own
	// connections: from others a node ignores it.
	Posted *Posted
}

// Posted is what a call says of the job that it runs.
type Posted struct {
	Caller  string // who has posted it, as the node knew it
	Job     string // its id
	Attempt int    // which one this is, from 1
	Origin  string // the job whose end has posted this one, see [Invocation]; empty: none
}

// Result is how a call ended.
type Result struct {
	Source  Source
	Status  int    // exit status: the program's, 128+N for a signal, or fbus's
	Code    string // "exit", a signal's name, or one of the Code constants
	Message string // for a person, from fbus
	Call    string // the call's id on the network
	Worker  string // name of the worker that ran it

	// Output is only for handlers: last bytes of output, sent with the end.
	Output []byte
}

// OK reports whether a program exited with status 0.
func (r *Result) OK() bool { return r.Source == FromProgram && r.Status == 0 }

// outCall is a call that this side opened.
type outCall struct {
	client *Client
	id     uint64
	req    *Request
	stdout recvStream
	stderr recvStream
	result Result        // valid once stdout has ended
	err    error         // instead of a result: the connection failed, or we gave up
	errEnd chan struct{} // closed when the stderr pump has written all, nil if there is none
	input  *inputPump    // nil if all of the input went out with the call
	wrote  bool          // stdout was passed on
	told   chan struct{} // closed at the END of a call that was given up; nil if that is not waited for
}

// Call invokes a function and waits for its end. The error is nil if a program
// exited with 0; an [ExitError] if it ended otherwise; an [Error] if fbus ended
// the call; the context's cause if that was cancelled; or what a writer
// returned. The Result is filled as far as it is known.
func (c *Client) Call(ctx context.Context, req *Request) (Result, error) {
	if len(req.Args.data) > MaxArgs {
		return Result{}, errorf(CodeBadInput, "arguments of %d bytes exceed the limit of %d: send them as input instead", len(req.Args.data), MaxArgs)
	}
	in := readAhead(req.Input)
	if in.err != nil {
		return Result{}, &Error{Code: CodeInternal, Message: "input can not be read: " + reason(in.err), Err: in.err}
	}
	start := time.Now()
	for try := 0; ; try++ {
		res, wrote, err := c.try(ctx, req, &in, start, try)
		if !errors.Is(err, ErrWorkerLost) || wrote || in.whole() || try >= req.Retries || !in.rewind(req.Input) {
			return res, err
		}
	}
}

// try makes one attempt. The node makes the further ones of a call whose input
// it has whole; the others are for this side, which can rewind a file.
func (c *Client) try(ctx context.Context, req *Request, in *readAheadInput, start time.Time, try int) (Result, bool, error) {
	call := &outCall{client: c, req: req}
	call.stdout.init(call, Output)
	call.stdout.wake = make(chan struct{}, 1)
	call.stderr.init(call, Stderr)
	frame := CallFrame{
		Kind: req.Args.kind, Args: req.Args.data,
		WaitFunction: millis(req.WaitFunction), WaitSlot: Forever, On: []byte(req.On),
		WindowOutput: InitialWindow, WindowStderr: InitialWindow,
	}
	if req.WaitSlot != nil {
		frame.WaitSlot = millis(*req.WaitSlot)
	}
	if p := req.Posted; p != nil {
		frame.Caller, frame.Job, frame.Attempt, frame.Origin = []byte(p.Caller), []byte(p.Job), uint64(max(0, p.Attempt)), []byte(p.Origin)
	}
	left, err := timeLeft(ctx, req.Timeout, start)
	if err != nil {
		return Result{}, false, err
	}
	frame.Timeout = left
	if left > 0 && req.Posted == nil { // a job's time begins when a worker has it
		// The node keeps the deadline; this one is for a node that hangs.
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, time.Duration(left)*time.Millisecond+nodeGrace, errorf(CodeDeadline, DeadlineMessage))
		defer stop()
	}
	in.fill(&frame)
	if req.Input != nil && req.Args.kind != KindRaw {
		frame.Flags |= FlagHasInput
	}
	if in.whole() {
		frame.Retries = uint64(max(0, req.Retries))
	} else {
		call.input = newInputPump(call, in, req.Input)
		defer func() { call.input.stop(in.seekable) }()
	}
	if err := c.open(call, frame); err != nil {
		return Result{}, false, asError(err, CodeNodeLost)
	}
	if req.Opened != nil {
		req.Opened()
	}
	err = call.wait(ctx)
	call.awaitEnd()
	res := call.result
	if res.Call == "" {
		res.Call = c.callName(call.id)
	}
	return res, call.wrote, err
}

// nodeGrace is how much longer than the deadline we wait for the node's word.
const nodeGrace = 250 * time.Millisecond

// timeLeft is what remains of a request's time, in milliseconds, 0 for no limit.
func timeLeft(ctx context.Context, timeout time.Duration, start time.Time) (uint64, error) {
	var left time.Duration
	if timeout > 0 {
		left = timeout - time.Since(start)
		if left <= 0 {
			return 0, errorf(CodeDeadline, DeadlineMessage)
		}
	}
	if d, ok := ctx.Deadline(); ok {
		until := time.Until(d)
		if until <= 0 {
			return 0, context.DeadlineExceeded
		}
		if left == 0 || until < left {
			left = until
		}
	}
	if left == 0 {
		return 0, nil
	}
	return max(1, millis(left)), nil
}

// millis is a duration on the wire; parts of a millisecond count as a whole one.
func millis(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	ms := uint64((d + time.Millisecond - 1) / time.Millisecond)
	return min(ms, Forever)
}

// open sends CALL under a new id.
func (c *Client) open(call *outCall, f CallFrame) error {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.lastOut++ // ids rise on the wire as well: queued under the same lock
	call.id = c.lastOut
	c.out[call.id] = call
	others := len(c.out) > 1
	frame := &c.scratch.call
	*frame = f
	frame.ID = call.id
	c.scratch.name = append(c.scratch.name[:0], call.req.Function...)
	frame.Name = c.scratch.name
	// If it fails the connection ends, and fails the call: with what the node has said,
	// if that has closed it.
	flush, _ := c.conn.Queue(frame)
	*frame = CallFrame{} // the arguments are not ours to keep
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
	for range call.stdout.wake {
		if err := call.stdout.pass(call.req.Stdout); err != nil {
			call.abandon(err)
			return err
		}
		if call.stdout.finished() {
			break
		}
	}
	return call.finish(ctx)
}

// finish waits for stderr and turns the result into an error.
func (call *outCall) finish(ctx context.Context) error {
	call.client.mu.Lock()
	pump := call.errEnd
	call.client.mu.Unlock()
	if pump != nil {
		select {
		case <-pump:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := call.stderr.err(); err != nil {
		return err
	}
	r := &call.result
	switch {
	case call.err != nil:
		return call.err
	case r.OK():
		return nil
	case r.Source == FromBus:
		return &Error{Code: r.Code, Message: r.Message, status: r.Status}
	}
	return &ExitError{Result: *r}
}

// abandon ends the call on our side, and tells the node that nobody waits any
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
	code := CodeCancelled
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrDeadline) {
		code = CodeDeadline
	}
	c.conn.Send(&CancelFrame{ID: call.id, Code: []byte(code)})
}

// awaitEnd waits for the END of a call that was given up, which says who had it.
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
	call.stderr.close()
	call.stdout.close()
}

// callName is a call's id on the network: the connection's prefix and the id on
// that connection. It is empty before the node has told the prefix.
func (c *Client) callName(id uint64) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.node.Connection) == 0 {
		return ""
	}
	return string(c.node.Connection) + "-" + strconv.FormatUint(id, 10)
}

// outgoing finds a call that this side opened, nil for one that has ended. The
// client's mu is held.
func (c *Client) outgoing(id uint64) (*outCall, error) {
	if call := c.out[id]; call != nil {
		return call, nil
	}
	if id == 0 || id > c.lastOut {
		return nil, errorf(CodeProtocol, "frame for call %d, which was never opened", id)
	}
	return nil, nil
}

// outputData takes stdout or stderr of a call of ours.
func (c *Client) outputData(f *DataFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call, err := c.outgoing(f.ID)
	if call == nil {
		return err
	}
	if f.Stream == Stderr {
		if call.errEnd == nil {
			call.errEnd = make(chan struct{})
			call.stderr.expect()
			go call.pumpStderr(call.errEnd) // ends with the call's stderr
		}
		return call.stderr.push(f.Payload)
	}
	return call.stdout.push(f.Payload)
}

// pumpStderr writes stderr beside stdout, so that neither waits for the other.
func (call *outCall) pumpStderr(done chan struct{}) {
	defer close(done)
	for range call.stderr.wake {
		call.stderr.pass(call.req.Stderr) // an error is kept for the end
		if call.stderr.finished() {
			return
		}
	}
}

// inputGrant lets a call of ours send more input.
func (c *Client) inputGrant(f *GrantFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call, err := c.outgoing(f.ID)
	if call == nil || call.input == nil {
		return err
	}
	return call.input.grant(f.Bytes)
}

// interned is a text that comes again and again.
type interned string

// intern returns p as a string, without a copy if it is what came last.
func (i *interned) intern(p []byte) string {
	if string(p) != string(*i) {
		*i = interned(p)
	}
	return string(*i)
}

// handleEnd ends a call of ours.
func (c *Client) handleEnd(f *EndFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call, err := c.outgoing(f.ID)
	if left := c.left[f.ID]; left != nil && call == nil {
		delete(c.left, f.ID)
		left.result.Worker = c.workers.intern(f.Worker)
		close(left.told)
	}
	if call == nil {
		return err
	}
	if err := call.stdout.push(f.Output); err != nil {
		return err // it is failed with the connection
	}
	delete(c.out, f.ID)
	call.result = Result{
		Source: f.Source, Status: int(f.Status), Code: c.codes.intern(f.Code), Message: string(f.Message),
		Call: string(f.Call), Worker: c.workers.intern(f.Worker),
	}
	call.stderr.close()
	call.stdout.close()
	return nil
}

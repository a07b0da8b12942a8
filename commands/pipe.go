package commands

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jsonrpc"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
)

const (
	defaultPipeJobs = 500       // what a connection may have in a queue of the default length
	maxPipeJobs     = 10000     // what a node holds open for one connection
	maxPipeLine     = 64 << 20  // bytes of one line of input
	maxPipeRequests = 128 << 20 // bytes of the requests in flight
	maxPipeResults  = 128 << 20 // bytes of output held at once; one call may go over it
)

// pipeOptions are the flags of fbus pipe.
type pipeOptions struct {
	jobs      int
	timeout   durationValue
	wait      durationValue
	on        string
	node      string
	keepAlive keepAliveValue
	text      bool
	quiet     bool
	verbose   bool
}

func pipeCommand() *cli.Command {
	o := &pipeOptions{jobs: defaultPipeJobs, wait: durationValue{allow: true}}
	return &cli.Command{
		Name:      "pipe",
		Usage:     "make many calls, as JSON-RPC lines on stdin and stdout",
		UsageText: "pipe [flags]",
		Description: `A client of the bus for any language that can start a process: JSON-RPC 2.0, one
message a line, answered as the calls end. fbus example php pipe, or node or bash,
prints a worked use.

  echo '{"jsonrpc":"2.0","id":1,"method":"greet","params":["Bob"]}' | fbus pipe

Request: method is the function; params its arguments, as words (an array) or
fields (an object). Without params it has its input from the member "input" (text)
or "input_base64", which JSON-RPC does not have, or none. A request without id is
answered by nothing; its failure is on stderr. An array of requests is answered by
an array, when all are done.
Result: the function's output, as it stands if it is JSON, else as a string; as
{"base64":"…"} if it is not UTF-8.
Error: code is the exit status, or what a resident program has answered; message
is the last line of stderr; data has source, status and code as the status line of fbus
call has them, call, worker, stderr (its last 64 KiB) and output. Without data:
-32700 and -32600 for what is no request, has the id of one in flight, or is a batch
of more than 10,000; -32601 for a $/cancelRequest with an id.
Cancel: {"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":1}}; the call
is answered with -32800.

With -j calls in flight nothing more is read, cancellations neither. At the end of
stdin what is in flight is finished. If the node is lost, that is answered with
255, our status as well. Lines and results have up to 64 MiB.`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "jobs", Aliases: []string{"j"}, Usage: "`N` calls in flight at most", Value: o.jobs, Destination: &o.jobs},
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end each call after `D`, waiting included", Value: &o.timeout},
			&cli.GenericFlag{Name: "wait", Aliases: []string{"w"}, Usage: "wait `D|forever` for a node, and with each call for its function and a slot", Value: &o.wait},
			onFlag(&o.on),
			nodeFlag(&o.node),
			keepAliveFlag(&o.keepAlive),
			&cli.BoolFlag{Name: "text", Usage: "every result is a string, JSON or not", Destination: &o.text, DisableDefaultText: true},
			quietFlag(&o.quiet),
			verboseFlag(&o.verbose, "say which node it is, and which worker has had each call"),
		},
		Action: func(ctx *cli.Context) error {
			if err := noOperands(ctx); err != nil {
				return err
			}
			return pipeCalls(o, os.Stdin, ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// check refuses flags that make no sense.
func (o *pipeOptions) check() error {
	switch {
	case o.jobs < 1 || o.jobs > maxPipeJobs:
		return usage("-j %d: 1 to %d are due", o.jobs, maxPipeJobs)
	case o.timeout.set && o.timeout.d <= 0:
		return usage("-t %s: more than nothing is due", formatDuration(o.timeout.d))
	}
	return nil
}

// patience sets how long the node may take for a call, some of whose time is
// spent.
func (o *pipeOptions) patience(req *bus.Request, spent time.Duration) {
	if o.timeout.set {
		req.Timeout = max(time.Millisecond, o.timeout.d-spent)
	}
	switch {
	case o.wait.forever:
		req.WaitFunction = bus.Forever
	case o.wait.set:
		left := max(0, o.wait.d-spent)
		req.WaitFunction, req.WaitSlot = bus.WaitFor(left), bus.WaitFor(left)
	}
}

// waiting bounds the time that a call may wait on our side.
func (o *pipeOptions) waiting(ctx context.Context, name string) (context.Context, context.CancelFunc) {
	stop := func() {}
	if o.timeout.set {
		ctx, stop = context.WithTimeoutCause(ctx, o.timeout.d, bus.ErrDeadline)
	}
	if !o.wait.set || o.wait.forever {
		return ctx, stop
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.wait.d, &args.Error{Code: args.CodeBusy, Message: name + ": no slot is free"})
	return ctx, func() { cancel(); stop() }
}

// pipe is a connection to a node, and the calls that are made over it.
type pipe struct {
	o         *pipeOptions
	client    *bus.Client
	stderr    io.Writer
	answers   *answers
	admission *admission
	hoard     *hoard
	queues    *queues

	mu       sync.Mutex                         // protects inFlight
	inFlight map[string]context.CancelCauseFunc // by id
}

// pipeCalls makes the calls that come as lines until stdin ends.
func pipeCalls(o *pipeOptions, stdin io.Reader, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	// A signal ends the process as everybody expects, and with it the connection,
	// and so the calls: there is nothing to clean up.
	client, at, err := connect(context.Background(), o.node, o.wait, &bus.Options{Name: hostname(), KeepAlive: o.keepAlive.d})
	if err != nil {
		return err
	}
	if o.verbose {
		say(stderr, fmt.Sprintf("node: %s (%s)", at.Addr, at.Why))
	}
	p := &pipe{
		o: o, client: client, stderr: &sharedWriter{w: stderr}, answers: newAnswers(stdout),
		admission: newAdmission(o.jobs, maxPipeRequests), hoard: newHoard(maxPipeResults),
		queues: &queues{names: map[string]*queue{}}, inFlight: map[string]context.CancelCauseFunc{},
	}
	return p.serve(stdin)
}

// serve reads until stdin ends or the node is lost, and waits for what is in
// flight then.
func (p *pipe) serve(stdin io.Reader) error {
	ended, done := make(chan error, 1), make(chan struct{})
	go func() { ended <- p.read(stdin) }() // ends with stdin, or the process
	var err error
	go func() { // ends with the last call
		defer close(done)
		select {
		case err = <-ended:
			go abandoned() // ends with the process
		case <-p.client.Done(): // calls in flight fail at once
		}
		p.admission.end()
		p.answers.close()
	}()
	select {
	case <-done:
	case <-p.answers.failed:
		return nil // the command line's end says why
	}
	if err == nil {
		err = troubled(p.client.Err(), p.o.node)
	}
	return err
}

// read takes lines until stdin ends.
func (p *pipe) read(stdin io.Reader) error {
	r := bufio.NewReaderSize(stdin, 64<<10)
	for {
		line, err := readLine(r, maxPipeLine)
		switch {
		case err == errLongLine:
			p.answer(destination{}, jsonNull, jsonrpc.Errorf(jsonrpc.CodeInvalid, "a line exceeds the limit of %d bytes", maxPipeLine), nil)
			continue
		case len(bytes.TrimSpace(line)) > 0:
			p.line(line)
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fail(args.CodeInternal, "input: %v", pathReason(err))
		}
	}
}

var (
	errLongLine = errors.New("line too long")
	jsonNull    = []byte("null")
)

// readLine reads a line of its own memory. One that is longer than most is
// skipped, with errLongLine; with another error there may be a line as well.
func readLine(r *bufio.Reader, most int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > most+1 {
			for err == bufio.ErrBufferFull {
				_, err = r.ReadSlice('\n')
			}
			return nil, errLongLine
		}
		line = append(line, part...)
		if err != bufio.ErrBufferFull {
			return line, err
		}
	}
}

// line takes a request or a batch.
func (p *pipe) line(line []byte) {
	docs, several, e := jsonrpc.Split(line)
	switch {
	case e != nil:
		p.answer(destination{}, jsonNull, e, nil)
	case !several:
		p.request(docs[0], destination{})
	default:
		b := &batch{lines: make([][]byte, len(docs)), left: len(docs)}
		for i, doc := range docs {
			p.request(doc, destination{b, i})
		}
	}
}

// request starts the call that one request asks for, when there is room for it.
func (p *pipe) request(doc []byte, to destination) {
	r, e := jsonrpc.ParseRequest(doc)
	if e == nil {
		e = p.refuse(&r)
	} else if r.ID == nil {
		r.ID = jsonNull // something was wrong: that is to be heard
	}
	switch {
	case e != nil && r.ID == nil:
		say(p.stderr, e.Message)
		fallthrough
	case e != nil:
		p.answer(to, r.ID, e, nil)
		return
	case strings.HasPrefix(r.Method, "$/"):
		p.cancel(&r)
		p.answer(to, nil, nil, nil)
		return
	}
	c := &pipeCall{pipe: p, req: r, to: to, cost: int64(len(doc)), ctx: context.Background(), key: r.Key()}
	if !p.admission.enter(c.cost) {
		p.answer(to, r.ID, jsonrpc.Refusal(args.Errorf(args.CodeNodeLost, "%v", p.client.Err())), nil)
		return
	}
	if !p.register(c) {
		p.answer(to, r.ID, jsonrpc.Errorf(jsonrpc.CodeInvalid, "a request with the id %s is in flight", shorten(r.ID)), nil)
		p.admission.leave(c.cost)
		return
	}
	go c.run() // ends with the call
}

// refuse finds what need not be sent.
func (p *pipe) refuse(r *jsonrpc.Request) *jsonrpc.Error {
	switch {
	case strings.HasPrefix(r.Method, "$/"):
		if r.ID != nil {
			return jsonrpc.Errorf(jsonrpc.CodeNoMethod, "%s is a notification: it has no id", shorten([]byte(r.Method)))
		}
	case !args.ValidName(r.Method):
		return jsonrpc.Refusal(args.Errorf(args.CodeUsage, "%q is no function name", shorten([]byte(r.Method))))
	case r.Unpaired:
		return jsonrpc.Refusal(args.Errorf(args.CodeBadInput, "%s: input holds half of a surrogate pair, which is no text: input_base64 takes any bytes", r.Method))
	case len(r.Params) > wire.MaxArgs:
		return jsonrpc.Refusal(args.Errorf(args.CodeBadInput, "%s: params of %d bytes exceed the limit of %d: send them as input instead", r.Method, len(r.Params), wire.MaxArgs))
	}
	return nil
}

// register makes a call known by its id. False: that id is in flight.
func (p *pipe) register(c *pipeCall) bool {
	if c.key == "" {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight[c.key] != nil {
		return false
	}
	c.ctx, p.inFlight[c.key] = context.WithCancelCause(c.ctx)
	return true
}

func (p *pipe) forget(key string) {
	if key == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.inFlight, key)
}

// cancel ends the call that a notification names; other notifications of that
// kind are nothing to us.
func (p *pipe) cancel(r *jsonrpc.Request) {
	p.mu.Lock()
	end := p.inFlight[r.Cancels()]
	p.mu.Unlock()
	if end != nil {
		end(errRequestCancelled)
	}
}

// destination is where an answer goes: a line of its own, or a place in a batch.
type destination struct {
	batch *batch
	n     int
}

// answer writes an answer, or puts it into its batch. Without an id there is
// none.
func (p *pipe) answer(to destination, id []byte, e *jsonrpc.Error, output []byte) {
	appendTo := func(dst []byte) []byte { return jsonrpc.AppendAnswer(dst, id, e, output, p.o.text) }
	if to.batch == nil {
		if id != nil {
			p.answers.put(p.admission.several(), appendTo)
		}
		return
	}
	var line []byte
	var held int64
	if id != nil {
		line = appendTo(nil)
		held = int64(len(line))
		if !p.hoard.tryTake(held) {
			e, held = jsonrpc.Refusal(errBatchTooLarge), 0
			line = appendTo(nil)
		}
	}
	if to.batch.add(to.n, line, held) && !to.batch.empty() {
		p.answers.put(p.admission.several(), to.batch.append)
		p.hoard.give(to.batch, to.batch.held)
	}
}

package commands

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/fanout"
	"fbus/bus/jsonrpc"
	"fbus/bus/wire"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

const (
	defaultPipeJobs = 250       // what an identity may have in a queue of the default length
	maxPipeJobs     = 10000     // what a node holds open for one connection
	maxPipeLine     = 64 << 20  // bytes of one line of input
	maxPipeResults  = 128 << 20 // bytes of answers in batches that are not complete
	maxResult       = 64 << 20  // bytes of output that become one result
	maxStderrTail   = 64 << 10  // bytes of stderr that an error carries
)

// pipeOptions are the flags of fbus pipe.
type pipeOptions struct {
	nodeOptions
	jobs    int
	timeout durationValue
	on      string
	text    bool
	quiet   bool
}

func pipeCommand() *cli.Command {
	o := &pipeOptions{jobs: defaultPipeJobs}
	return &cli.Command{
		Usage:     "make many calls, as JSON-RPC lines on stdin and stdout",
		UsageText: "pipe [flags]",
		Description: `A client of the bus for any language that can start a process: JSON-RPC 2.0, one
message a line, answered as the calls end. fbus example php pipe, or node or bash,
prints an example.

  echo '{"jsonrpc":"2.0","id":1,"method":"greet","params":["Bob"]}' | fbus pipe

Request: method is the function; params its arguments, as words (an array) or
fields (an object). Without params, the member "input" (text) or "input_base64" is the
input; JSON-RPC does not have these two. A request without id is not answered; its
failure is on stderr. An array of requests is answered by an array, when all are done.
Result: the function's output, unchanged if it is JSON, else as a string; as
{"base64":"…"} if it is not UTF-8.
Error: code is the exit status, or the code of a resident program's own error; message
is the last line of stderr; data has source, status and code like the status line of
fbus call, and call, worker, stderr (its last 64 KiB) and output. Without data: -32700
and -32600 for an invalid request, one with the id of another in flight, or a batch of
more than 10,000; -32601 for a $/cancelRequest with an id.
Cancel: {"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":1}}; the call
is answered with -32800.

With -j calls in flight, nothing more is read, not even cancellations. At the end of
stdin, calls in flight are finished. If the node is lost, they are answered with 255,
which is the exit status too. A line or a result has at most 64 MiB.`,
		Flags: append(o.nodeOptions.flags("wait `D|forever` for a node, and with each call for its function and a slot", "print which node it is, and which worker each call had"),
			&cli.IntFlag{Name: "jobs", Aliases: []string{"j"}, Usage: "at most `N` calls in flight", Value: o.jobs, Destination: &o.jobs},
			&cli.GenericFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "end each call after `D`, waiting included", Value: &o.timeout},
			onFlag(&o.on),
			&cli.BoolFlag{Name: "text", Usage: "make every result a string, even if it is JSON", Destination: &o.text, DisableDefaultText: true},
			quietFlag(&o.quiet),
		),
		Action: func(ctx *cli.Context) error {
			if err := noOperands(ctx); err != nil {
				return err
			}
			return pipeCalls(o, inputOf(os.Stdin), ctx.App.Writer, ctx.App.ErrWriter)
		},
	}
}

// check refuses flags that make no sense.
func (o *pipeOptions) check() error {
	switch {
	case o.jobs < 1 || o.jobs > maxPipeJobs:
		return usage("-j must be from 1 to %d", maxPipeJobs)
	case o.timeout.set && o.timeout.d <= 0:
		return unlimited("-t")
	}
	return nil
}

// pipe answers the requests that come as lines.
type pipe struct {
	o      *pipeOptions
	client *bus.Client
	in     *bufio.Reader
	stderr *screen

	writing sync.Mutex // protects out
	out     *bufio.Writer
	reports chan progressReport // of progress, to be written

	// Only done, answer and flush use these, one at a time.
	line    []byte // space for an answer
	batched int    // bytes of answers in batches that are not complete
	lost    error  // of a call that was open when the connection ended

	mu       sync.Mutex                         // protects the fields below
	queue    []*pipeRequest                     // read, but not begun: the rest of a batch
	open     map[*pipeRequest]struct{}          // read, but not answered
	inFlight map[string]context.CancelCauseFunc // by the key of the id
	ended    bool                               // nothing more is read
}

// pipeRequest is a request on its way to its answer.
type pipeRequest struct {
	jsonrpc.Request
	refused error // why there is no call, a *jsonrpc.Error or errNoCall
	batch   *batch
	place   int // in the batch
	began   time.Time
	stderr  pipeStderr
}

// batch collects the answers to an array of requests, in the order of the requests.
type batch struct {
	answers [][]byte // nil for a notification
	left    int      // requests without an answer
	held    int      // bytes of the answers
}

var (
	// errCancelled ends a call that its own sender has cancelled.
	errCancelled = errors.New("the request was cancelled")
	// errNoCall is the end of a notification to fbus pipe itself.
	errNoCall = errors.New("not a call")
)

// pipeCalls makes the calls that come as lines until stdin ends.
func pipeCalls(o *pipeOptions, stdin io.Reader, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	// A signal ends the process in the usual way, and with it the connection, and so the
	// calls: there is nothing to clean up.
	client, err := o.connect(context.Background(), o.wait, false, stderr)
	if err != nil {
		return err
	}
	if !o.quiet {
		sayTyped(stdin, "requests", "them", stderr)
	}
	p := &pipe{
		o: o, client: client, in: bufio.NewReaderSize(stdin, 64<<10), out: bufio.NewWriterSize(stdout, 64<<10), stderr: &screen{w: stderr},
		reports: make(chan progressReport, 100), open: map[*pipeRequest]struct{}{}, inFlight: map[string]context.CancelCauseFunc{},
	}
	queueing := time.Duration(math.MaxInt64)
	if o.wait.set && !o.wait.forever {
		queueing = max(1, o.wait.d)
	}
	if o.timeout.set {
		queueing = min(queueing, o.timeout.d)
	}
	failed := make(chan error, 1)
	r := &fanout.Runner{Config: fanout.Config{
		Client: client, On: o.on, Mode: fanout.Mixed, Jobs: o.jobs, Unordered: true, Queueing: queueing, MaxOutput: maxResult,
		Next: p.next, Request: p.request, Done: p.done,
		Rest: func() error {
			err := p.flush()
			if err != nil {
				failed <- outputError(err)
			}
			return err
		},
	}}
	go p.writeReports() // ends with the process
	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.Background()) }() // ends with the last call
	for lost := client.Done(); ; {
		select {
		case <-lost:
			lost = nil
			r.Stop(client.Err())
		case err := <-failed:
			return err // whatever runs: it ends with the process
		case err := <-ended:
			err = cmp.Or(p.giveUp(), p.lost, err, client.Err())
			return troubled(err, o.node)
		}
	}
}

func (p *pipe) next() (fanout.Task, error) {
	for {
		p.mu.Lock()
		if p.ended {
			p.mu.Unlock()
			return fanout.Task{}, io.EOF
		}
		if len(p.queue) > 0 {
			req := p.queue[0]
			p.queue = p.queue[1:]
			t := p.task(req)
			p.mu.Unlock()
			return t, nil
		}
		p.mu.Unlock()
		line, err := fanout.ReadLine(p.in, '\n', maxPipeLine)
		if err == fanout.ErrLongLine {
			for err == fanout.ErrLongLine {
				_, err = fanout.ReadLine(p.in, '\n', maxPipeLine)
			}
			line, err = nil, nil
			p.add(&pipeRequest{Request: jsonrpc.Request{ID: jsonNull}, refused: jsonrpc.Errorf(jsonrpc.CodeInvalid, "a line exceeds the limit of %d bytes", maxPipeLine)})
		}
		if len(bytes.TrimSpace(line)) > 0 {
			p.add(requests(line)...)
		} else if err == io.EOF {
			go abandoned() // ends with the process
			return fanout.Task{}, err
		} else if err != nil {
			return fanout.Task{}, fail(args.CodeInternal, "input: %v", err)
		}
	}
}

func requests(line []byte) (list []*pipeRequest) {
	docs, several, e := jsonrpc.Split(line)
	if e != nil {
		return []*pipeRequest{{Request: jsonrpc.Request{ID: jsonNull}, refused: e}}
	}
	var b *batch
	if several {
		b = &batch{answers: make([][]byte, len(docs)), left: len(docs)}
	}
	for i, doc := range docs {
		req := &pipeRequest{batch: b, place: i}
		var e *jsonrpc.Error
		if req.Request, e = jsonrpc.ParseRequest(doc); e == nil {
			e = refuse(&req.Request)
		} else if req.ID == nil {
			req.ID = jsonNull // an invalid message is always answered
		}
		if e != nil {
			req.refused = e
		}
		list = append(list, req)
	}
	return list
}

// refuse returns an error for a request that need not be sent.
func refuse(r *jsonrpc.Request) *jsonrpc.Error {
	switch {
	case strings.HasPrefix(r.Method, "$/"):
		if r.ID != nil {
			return jsonrpc.Errorf(jsonrpc.CodeNoMethod, "%s is a notification and must not have an id", args.Shorten(r.Method))
		}
	case !args.ValidName(r.Method):
		return jsonrpc.Refusal(fail(args.CodeUsage, "invalid function name %q", args.Shorten(r.Method)))
	case r.Unpaired:
		return jsonrpc.Refusal(fail(args.CodeBadInput, "%s: input holds half of a surrogate pair, which is not text: input_base64 takes any bytes", r.Method))
	case len(r.Params) > wire.MaxArgs:
		return jsonrpc.Refusal(fail(args.CodeBadInput, "%s: params of %d bytes exceed the limit of %d: send them as input instead", r.Method, len(r.Params), wire.MaxArgs))
	}
	return nil
}

func (p *pipe) add(list ...*pipeRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, req := range list {
		p.open[req] = struct{}{}
	}
	p.queue = append(p.queue, list...)
}

// task makes the task of a request, or cancels another request. mu is held.
func (p *pipe) task(req *pipeRequest) fanout.Task {
	t := fanout.Task{Aux: req, Size: len(req.Params) + len(req.Input)}
	key := req.Key()
	switch {
	case req.refused != nil:
	case strings.HasPrefix(req.Method, "$/"):
		req.refused = errNoCall
		if cancel := p.inFlight[req.Cancels()]; cancel != nil {
			cancel(errCancelled)
		}
	case key == "":
	case p.inFlight[key] != nil:
		req.refused = jsonrpc.Errorf(jsonrpc.CodeInvalid, "a request with the id %s is in flight", args.Shorten(req.ID))
	default:
		t.Context, p.inFlight[key] = context.WithCancelCause(context.Background())
	}
	return t
}

func (p *pipe) request(t *fanout.Task) (*bus.Request, io.Closer, error) {
	in := t.Aux.(*pipeRequest)
	if in.refused != nil {
		return nil, nil, in.refused
	}
	if in.began.IsZero() {
		in.began, in.stderr.w = time.Now(), p.stderr
	}
	req := &bus.Request{Function: in.Method, Args: in.Args(), Stderr: &in.stderr}
	if in.ID == nil {
		req.Stdout = io.Discard
	} else {
		req.Progress = func(at bus.Progress) {
			select {
			case p.reports <- progressReport{in, at}:
			default: // stdout does not keep up
			}
		}
	}
	if in.HasInput {
		req.Input = bytes.NewReader(in.Input)
	}
	spent := time.Since(in.began)
	if p.o.timeout.set {
		if spent >= p.o.timeout.d {
			return nil, nil, bus.ErrDeadline
		}
		req.Timeout = p.o.timeout.d - spent
	}
	p.o.patience(req, spent)
	return req, nil, nil
}

// done answers a request whose call has ended.
func (p *pipe) done(o *fanout.Outcome) error {
	req, e := o.Aux.(*pipeRequest), (*jsonrpc.Error)(nil)
	output, err := o.Output.Bytes()
	if o.Err == nil && err != nil {
		o.Err = outputError(err)
	}
	if o.Err != nil {
		e = p.errorOf(req, o, output)
	}
	if errors.Is(o.Err, bus.ErrNodeLost) && o.Result.Code == "" { // not the end of one call
		p.lost = o.Err
	}
	if p.o.verbose && o.Result.Worker != "" {
		say(p.stderr, fmt.Sprintf("%s: worker: %s, call: %s", req.Method, o.Result.Worker, o.Result.Call))
	}
	if e == nil || req.ID == nil {
		req.stderr.flush()
	}
	switch {
	case e == nil || req.ID != nil:
	case req.refused != nil:
		say(p.stderr, e.Message)
	default:
		say(p.stderr, messageFor(req.Method, e.Code, e.Message))
	}
	p.answer(req, e, output)
	return nil
}

// errorOf returns the error that answers a request, nil if it was not a call.
func (p *pipe) errorOf(req *pipeRequest, o *fanout.Outcome, output []byte) *jsonrpc.Error {
	var e *jsonrpc.Error
	if errors.As(o.Err, &e) || errors.Is(o.Err, errNoCall) {
		return e
	}
	data := &jsonrpc.Data{Call: o.Result.Call, Worker: o.Result.Worker, Stderr: req.stderr.tail(), Output: output}
	e = &jsonrpc.Error{Data: data}
	if errors.Is(o.Err, errCancelled) {
		e.Code, e.Message = jsonrpc.CodeCancelled, errCancelled.Error()
		data.Source, data.Status, data.Code = args.FromBus, args.StatusOf(args.CodeCancelled), args.CodeCancelled
		return e
	}
	end := endOf(o.Result, o.Err, p.o.timeout.d)
	data.Source, data.Status, data.Code = end.Source, end.Status, end.Code
	e.Code = end.Status
	switch end.Source {
	case args.FromBus:
		e.Message = messageFor(req.Method, end.Status, end.Message)
	case args.FromSignal:
		e.Message = cmp.Or(o.Result.Message, lastLine(data.Stderr), "ended by "+end.Code)
	default:
		e.Message = cmp.Or(o.Result.Message, lastLine(data.Stderr), fmt.Sprintf("exit status %d", end.Status))
		if n, err := strconv.Atoi(end.Code); err == nil && n != 0 {
			e.Code = n // a resident program's own error
		}
	}
	return e
}

// answer writes an answer, or puts it into its batch. A notification has none.
func (p *pipe) answer(req *pipeRequest, e *jsonrpc.Error, output []byte) {
	p.mu.Lock()
	delete(p.open, req)
	if !errors.As(req.refused, new(*jsonrpc.Error)) { // else the id is another's
		delete(p.inFlight, req.Key())
	}
	p.mu.Unlock()
	line := p.line[:0]
	if req.ID != nil {
		line = jsonrpc.AppendAnswer(line, req.ID, e, output, p.o.text)
	}
	if b := req.batch; b != nil {
		if req.ID != nil && p.batched+len(line) > maxPipeResults {
			line = jsonrpc.AppendAnswer(line[:0], req.ID, jsonrpc.Refusal(fail(args.CodeOutputLimit, "there is no room left to hold the results of the batch")), nil, false)
		}
		if req.ID != nil {
			b.answers[req.place] = bytes.Clone(line)
		}
		b.held += len(line)
		p.batched += len(line)
		if b.left--; b.left > 0 {
			return
		}
		p.batched -= b.held
		if line = bytes.Join(slices.DeleteFunc(b.answers, func(a []byte) bool { return a == nil }), []byte{','}); len(line) > 0 {
			line = append(append([]byte{'['}, line...), ']')
		}
	}
	if len(line) > 0 {
		p.writing.Lock()
		p.out.Write(line) // an error shows in Flush
		p.out.WriteByte('\n')
		p.writing.Unlock()
	}
	if p.line = line; cap(line) > 1<<20 {
		p.line = nil
	}
}

func (p *pipe) flush() error {
	p.writing.Lock()
	defer p.writing.Unlock()
	return p.out.Flush()
}

type progressReport struct {
	req *pipeRequest
	at  bus.Progress
}

// writeReports writes notifications of the progress of requests that have no answer yet.
func (p *pipe) writeReports() {
	for r := range p.reports {
		p.writing.Lock()
		p.mu.Lock()
		_, open := p.open[r.req]
		p.mu.Unlock()
		if open {
			p.out.Write(append(jsonrpc.AppendProgress(nil, r.req.ID, r.at.Done, r.at.Total, r.at.Text), '\n'))
			p.out.Flush() // an error shows in the next one
		}
		p.writing.Unlock()
	}
}

// giveUp answers the requests that were read and will not be called, for the node was
// lost.
func (p *pipe) giveUp() error {
	p.mu.Lock()
	p.ended = true
	left := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	for _, req := range left {
		var e *jsonrpc.Error
		if err := p.client.Err(); !errors.As(req.refused, &e) && req.refused != errNoCall && err != nil {
			e = jsonrpc.Refusal(fail(args.CodeNodeLost, "%v", err))
		}
		p.answer(req, e, nil)
	}
	if err := p.flush(); err != nil {
		return outputError(err)
	}
	return nil
}

var jsonNull = []byte("null")

// pipeStderr keeps the end of a call's stderr, for its error. What does not fit goes to
// our own stderr at once.
type pipeStderr struct {
	w io.Writer

	mu  sync.Mutex // protects buf: an abandoned call may still write
	buf []byte
}

// Write implements [io.Writer].
func (s *pipeStderr) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = append(s.buf, p...)
	over := len(s.buf) - maxStderrTail
	if over <= 0 {
		return len(p), nil
	}
	if i := bytes.IndexByte(s.buf[over-1:], '\n'); i >= 0 {
		over += i // whole lines
	}
	s.w.Write(s.buf[:over])
	s.buf = s.buf[:copy(s.buf, s.buf[over:])]
	return len(p), nil
}

func (s *pipeStderr) tail() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.buf)
}

// flush writes the part that was kept.
func (s *pipeStderr) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.buf); n > 0 {
		if s.buf[n-1] != '\n' {
			s.buf = append(s.buf, '\n')
		}
		s.w.Write(s.buf)
		s.buf = nil
	}
}

// lastLine returns the last line of a program's stderr that is not blank.
func lastLine(stderr string) string {
	stderr = strings.TrimSpace(stderr)
	return strings.TrimSpace(stderr[strings.LastIndexByte(stderr, '\n')+1:])
}

// abandoned waits until stdout, a pipe or a socket, has no reader any more, and ends the
// process as a write to it would. A client that neither writes nor reads is gone: its
// calls must not run on until one of them has an answer.
func abandoned() {
	st, err := os.Stdout.Stat()
	if err != nil || st.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return
	}
	fds := []unix.PollFd{{Fd: 1}} // errors are always reported
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || fds[0].Revents&(unix.POLLERR|unix.POLLHUP) == 0:
			return
		}
		os.Stdout.Write([]byte{'\n'})
		return
	}
}

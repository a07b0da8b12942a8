package commands

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jsonrpc"
)

const (
	maxResult     = 64 << 20 // bytes of output that become one result
	maxStderrTail = 64 << 10 // bytes of stderr that an error carries
)

// errRequestCancelled ends a call that its own sender has cancelled.
var errRequestCancelled = errors.New("the request was cancelled")

// pipeCall is one request that has become a call.
type pipeCall struct {
	pipe   *pipe
	req    jsonrpc.Request
	to     destination
	ctx    context.Context
	key    string // of its id, empty if it can not be cancelled
	cost   int64  // bytes of the request
	out    pipeOutput
	stderr pipeStderr
}

// run makes the call and answers it.
func (c *pipeCall) run() {
	p := c.pipe
	c.out = pipeOutput{hoard: p.hoard, ctx: c.ctx, patient: c.to.batch == nil}
	c.stderr = pipeStderr{w: p.stderr}
	res, err := c.call()
	p.forget(c.key) // the id is free again when its answer is read
	e := c.outcome(res, err)
	if p.o.verbose && res.Worker != "" {
		say(p.stderr, fmt.Sprintf("%s: worker: %s, call: %s", c.req.Method, res.Worker, res.Call))
	}
	if e == nil || c.req.ID == nil {
		c.stderr.flush()
	}
	if e != nil && c.req.ID == nil {
		say(p.stderr, messageFor(c.req.Method, e.Code, e.Message))
	}
	p.answer(c.to, c.req.ID, e, c.out.buf)
	c.out.free()
	p.admission.leave(c.cost)
}

// call makes the call. What the node's queue has no room for waits here, as long
// as others of ours are there and will make room.
func (c *pipeCall) call() (bus.Result, error) {
	p, name, began := c.pipe, c.req.Method, time.Now()
	req := bus.Request{Function: name, Args: c.req.Args(), On: p.o.on, Stderr: &c.stderr}
	if c.req.ID != nil {
		req.Stdout = &c.out
	}
	waiting, cancel := p.o.waiting(c.ctx, name)
	defer cancel()
	q := p.queues.join(queueOf(name))
	defer p.queues.leave(queueOf(name), q)
	for turn := false; ; turn = true {
		seen, err := p.queues.enter(waiting, q, turn)
		if err != nil {
			return bus.Result{}, err
		}
		if c.req.HasInput {
			req.Input = bytes.NewReader(c.req.Input)
		}
		p.o.patience(&req, time.Since(began))
		res, err := p.client.Call(c.ctx, &req)
		if !errors.Is(err, bus.ErrBusy) || res.Worker != "" || p.o.wait.set && time.Since(began) >= p.o.wait.d && !p.o.wait.forever {
			p.queues.ended(q)
			return res, err
		}
		if again, waitErr := p.queues.refused(waiting, q, seen); !again {
			return res, cmp.Or(waitErr, err)
		}
	}
}

// queueOf is where calls of a function wait: the node's own functions are
// bounded together.
func queueOf(name string) string {
	const own = "fbus."
	if len(name) > len(own) && name[:len(own)] == own {
		return own
	}
	return name
}

// outcome is the error that a call is answered with, nil for a result.
func (c *pipeCall) outcome(res bus.Result, err error) *jsonrpc.Error {
	if err == nil {
		return nil
	}
	data := &jsonrpc.Data{Source: args.FromBus, Call: res.Call, Worker: res.Worker, Stderr: c.stderr.tail(), Output: c.out.buf}
	var exit *bus.ExitError
	if errors.As(err, &exit) {
		data.Source, data.Status, data.Code = res.Source, res.Status, res.Code
		e := &jsonrpc.Error{Code: res.Status, Data: data, Message: cmp.Or(res.Message, lastLine(data.Stderr), exitMessage(&res))}
		if n, err := strconv.Atoi(res.Code); err == nil && n != 0 && res.Source == args.FromProgram {
			e.Code = n // a resident program's own error
		}
		return e
	}
	if errors.Is(err, errRequestCancelled) {
		data.Status, data.Code = args.StatusOf(args.CodeCancelled), args.CodeCancelled
		return &jsonrpc.Error{Code: jsonrpc.CodeCancelled, Message: err.Error(), Data: data}
	}
	f := explainCall(err, c.pipe.o.timeout.d)
	data.Status, data.Code = f.Status(), f.Code
	return &jsonrpc.Error{Code: f.Status(), Message: messageFor(c.req.Method, f.Status(), f.Message), Data: data}
}

// exitMessage is for a program that has failed without a word.
func exitMessage(res *bus.Result) string {
	if res.Source == args.FromSignal {
		return "ended by " + res.Code
	}
	return fmt.Sprintf("exit status %d", res.Status)
}

// pipeOutput collects what a function writes. One goroutine uses it at a time.
type pipeOutput struct {
	hoard   *hoard
	ctx     context.Context
	patient bool // wait for room; a batch, which holds what it has, can not
	buf     []byte
	held    int64
}

// Write implements [io.Writer].
func (o *pipeOutput) Write(p []byte) (int, error) {
	n := int64(len(p))
	if o.held+n > maxResult {
		return 0, &args.Error{Code: args.CodeOutputLimit, Message: fmt.Sprintf("the output exceeds the limit of %d bytes for one result", maxResult)}
	}
	if o.patient {
		if err := o.hoard.take(o.ctx, o, n); err != nil {
			return 0, err
		}
	} else if !o.hoard.tryTake(n) {
		return 0, errBatchTooLarge
	}
	o.held += n
	o.buf = append(o.buf, p...)
	return len(p), nil
}

var errBatchTooLarge = &args.Error{Code: args.CodeOutputLimit, Message: "there is no room left to hold the results of the batch"}

// free drops what was collected.
func (o *pipeOutput) free() {
	o.hoard.give(o, o.held)
	o.buf, o.held = nil, 0
}

// pipeStderr keeps the end of what a function writes to stderr, for its error.
// What is longer goes to our own stderr as it comes.
type pipeStderr struct {
	w io.Writer

	mu  sync.Mutex // protects buf: a call that is given up may still write
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

// flush passes on what was kept.
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

// sharedWriter lets many write, one after the other.
type sharedWriter struct {
	mu sync.Mutex // held while somebody writes
	w  io.Writer
}

// Write implements [io.Writer].
func (s *sharedWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// lastLine returns the last line of a program's stderr that is not blank.
func lastLine(stderr string) string {
	stderr = strings.TrimSpace(stderr)
	return strings.TrimSpace(stderr[strings.LastIndexByte(stderr, '\n')+1:])
}

package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/node"
	"fbus/bus/vectors"
)

// The files in testdata are played here against the node, and against the client of package bus.

// vectorConn returns a connection for the files of vectors.
func vectorConn(t *testing.T, nc net.Conn) *vectors.Conn {
	t.Cleanup(func() { nc.Close() })
	nc.SetReadDeadline(time.Now().Add(patience))
	return vectors.NewConn(nc)
}

// vectorNode starts a node, and returns how to connect to it.
func vectorNode(t *testing.T) (*node.Node, vectors.Connect) {
	n, path := start(t, node.Config{})
	return n, func() (*vectors.Conn, error) {
		nc, err := net.Dial("unix", path)
		if err != nil {
			return nil, err
		}
		return vectorConn(t, nc), nil
	}
}

// judged calls f for each line of wrong.jsonl that judges a side.
func judged(t *testing.T, side string, f func(t *testing.T, w *vectors.Wrong) error) {
	noLeaks(t)
	list, err := vectors.ReadWrong(side)
	if err != nil || len(list) < 15 {
		t.Fatalf("%d lines, error %v", len(list), err)
	}
	for _, w := range list {
		t.Run(w.Name, func(t *testing.T) {
			if err := f(t, w); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWrongToNode(t *testing.T) {
	judged(t, "node", func(t *testing.T, w *vectors.Wrong) error {
		_, connect := vectorNode(t)
		return w.AtNode(connect)
	})
}

func TestWrongToCaller(t *testing.T) { judged(t, "caller", judgeClient) }

func TestWrongToWorker(t *testing.T) { judged(t, "worker", judgeClient) }

func judgeClient(t *testing.T, w *vectors.Wrong) error {
	c := newClientBed(t)
	if w.State != "connected" {
		c.node.Send(nodesHello)
	}
	if w.To == "worker" {
		c.beWorker(w)
	} else {
		c.beCaller(w)
	}
	return w.Judge(c.node, vectors.Call(1000, "nothing", 1), vectors.F(10, 1000, 2, 75, "busy"))
}

var nodesHello = vectors.F(1, 1, 0, "n", "i", "n", []any{}, "n-1")

// clientBed is a client of package bus, whose node is the test.
type clientBed struct {
	t      *testing.T
	client *bus.Client
	node   *vectors.Conn
}

func newClientBed(t *testing.T) *clientBed {
	near, far, err := node.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	client, err := bus.NewClient(bg(), near, &bus.Options{Eager: true})
	if err != nil {
		t.Fatal(err)
	}
	c := &clientBed{t, client, vectorConn(t, far)}
	t.Cleanup(func() {
		far.Close()
		client.Close()
	})
	c.expect(vectors.F(1, 1))
	return c
}

// expect reads the client's next frame, which must match.
func (c *clientBed) expect(pattern any) []any {
	c.t.Helper()
	frame, err := c.node.Expect(pattern)
	if err != nil {
		c.t.Fatal(err)
	}
	return frame
}

// beCaller brings a caller into the line's state.
func (c *clientBed) beCaller(l *vectors.Wrong) {
	if l.State == "connected" || l.State == "open" {
		return
	}
	r, w := io.Pipe()
	c.t.Cleanup(func() { w.Close() })
	req := bus.Request{Function: "hold", Input: r}
	if l.State == "whole" {
		req.Input = strings.NewReader("x")
	}
	ended := post(bg(), c.client, req)
	c.expect(vectors.F(5, 1, "hold"))
	if l.State == "ended" {
		c.node.Send(vectors.F(10, 1, 0, 0, "exit"))
		await(c.t, "the end of the call", ended)
	}
}

// beWorker does so for a worker.
func (c *clientBed) beWorker(l *vectors.Wrong) {
	release := make(chan struct{})
	go c.client.Offer(bg(), bus.Offer{Name: "hold", Slots: 1}, func(ctx context.Context, _ *bus.Invocation) bus.Result { // ends with the answer
		select {
		case <-ctx.Done():
		case <-release:
		}
		return bus.Result{}
	})
	c.expect(vectors.F(3, 1, "hold", 1))
	c.node.Send(vectors.F(4, 1, "", ""))
	switch l.State {
	case "call":
		c.node.Send(vectors.Call(1, "hold", 0))
	case "whole", "ended":
		c.node.Send(vectors.Call(1, "hold", 1))
	}
	if l.State == "ended" {
		close(release)
		c.expect(vectors.F(10, 1))
	}
}

// transcripts calls play for each transcript that judges a side.
func transcripts(t *testing.T, side string, play func(t *testing.T, s *vectors.Transcript)) {
	noLeaks(t)
	list, err := vectors.ReadTranscripts(side)
	if err != nil || len(list) < 4 {
		t.Fatalf("%d transcripts, error %v", len(list), err)
	}
	for _, s := range list {
		t.Run(s.Name, func(t *testing.T) { play(t, s) })
	}
}

func TestTranscriptsNode(t *testing.T) {
	transcripts(t, "node", func(t *testing.T, s *vectors.Transcript) {
		n, connect := vectorNode(t)
		if err := s.PlayNode(connect, func(command string) error {
			if command == "stop" {
				go n.Close() // ends with the connections
				return nil
			}
			go n.Drain(bg()) // ends with the calls
			eventually(t, "a drain", func() bool { return n.Info().Draining })
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}

// TestTranscriptsCaller plays the transcripts with a caller of package bus.
func TestTranscriptsCaller(t *testing.T) {
	transcripts(t, "caller", func(t *testing.T, s *vectors.Transcript) {
		c := newClientBed(t)
		calls := map[float64]*scriptedCall{}
		for _, l := range s.Lines {
			switch f, _ := l.Frame.([]any); {
			case l.From == "caller":
				if f[0] == 5. {
					calls[f[1].(float64)] = c.call(f)
				} else if f[0] != 1. {
					calls[f[1].(float64)].sends(c, f)
				}
			case l.To == "caller":
				if f[0] == 1. {
					f = nodesHello
				}
				c.node.Send(f)
				if f[0] == 10. {
					calls[f[1].(float64)].ends(t, f)
				}
			}
		}
	})
}

// scriptedCall is a call that is made as a transcript says.
type scriptedCall struct {
	input  *io.PipeWriter
	cancel context.CancelFunc
	ended  <-chan outcome
	gone   bool // cancelled: its END was not waited for
}

func (c *clientBed) call(f []any) *scriptedCall {
	ctx, cancel := context.WithCancel(bg())
	s := &scriptedCall{cancel: cancel}
	req := bus.Request{Function: f[2].(string)}
	if f[6].(float64) == 0 {
		r, w := io.Pipe()
		req.Input, s.input = r, w
		c.t.Cleanup(func() { w.Close() })
	} else if in := vectors.Bin(f[5]); len(in) > 0 {
		req.Input = bytes.NewReader(in)
	}
	s.ended = post(ctx, c.client, req)
	if came := c.expect(f[:7]); len(came) > 14 {
		c.t.Errorf("the caller writes elements of the node's: %s", vectors.Text(came))
	}
	return s
}

// sends has the call send a frame.
func (s *scriptedCall) sends(c *clientBed, f []any) {
	switch f[0] {
	case 6.:
		s.input.Write(vectors.Bin(f[3]))
	case 7.:
		s.input.Close()
	case 8.: // it grants when it likes
		return
	case 9.:
		s.cancel()
		s.gone = true
	}
	c.expect(f)
}

// ends checks how the call has ended.
func (s *scriptedCall) ends(t *testing.T, f []any) {
	t.Helper()
	o := await(t, "the end of a call", s.ended)
	if s.gone {
		if !errors.Is(o.err, context.Canceled) {
			t.Errorf("a cancelled call: %v", o.err)
		}
		return
	}
	var exit *bus.ExitError
	var e *bus.Error
	source, status, code := f[2], int(f[3].(float64)), fmt.Sprint(f[4])
	switch {
	case source == 2.:
		if !errors.As(o.err, &e) || e.Code != code || args.StatusOf(code) != 255 && e.Status() != status {
			t.Errorf("%v: the caller has %v", f, o.err)
		}
	case status == 0:
		if o.err != nil {
			t.Errorf("%v: the caller has %v", f, o.err)
		}
	case !errors.As(o.err, &exit) || exit.Status != status || exit.Code != code:
		t.Errorf("%v: the caller has %v", f, o.err)
	}
}

// TestTranscriptsWorker plays them with a worker of package bus.
func TestTranscriptsWorker(t *testing.T) {
	transcripts(t, "worker", func(t *testing.T, s *vectors.Transcript) {
		c := newClientBed(t)
		w := &scriptedWorker{clientBed: c, came: make(chan *scriptedInvocation, 1), calls: map[float64]*scriptedInvocation{}, granted: map[float64]bool{}, over: make(chan struct{})}
		t.Cleanup(func() { close(w.over) })
		for _, l := range s.Lines {
			switch f, _ := l.Frame.([]any); {
			case l.From == "worker" && l.Close:
				go c.client.Close() // ends with the cleanup
				if code, err := c.node.Ended(); code != "" || err != nil {
					t.Errorf("closed with %q, error %v", code, err)
				}
			case l.From == "worker":
				w.sends(f)
			case l.To == "worker":
				w.gets(f)
			}
		}
	})
}

// scriptedWorker is a worker whose programs do as a transcript says.
type scriptedWorker struct {
	*clientBed
	offering chan *bus.Offering
	came     chan *scriptedInvocation
	calls    map[float64]*scriptedInvocation
	granted  map[float64]bool // calls with credit for input
	over     chan struct{}
}

type scriptedInvocation struct {
	*bus.Invocation
	ctx    context.Context
	do     chan func()
	result bus.Result
	input  chan []byte // what has come of its input behind the head
	rest   []byte      // of that, what no line was about yet
}

// read reads the input until it ends: its first Read grants some.
func (s *scriptedInvocation) read() {
	for {
		buf := make([]byte, 1000)
		n, err := s.Rest().Read(buf)
		if err != nil {
			return
		}
		s.input <- buf[:n]
	}
}

func (w *scriptedWorker) serve(ctx context.Context, inv *bus.Invocation) bus.Result {
	s := &scriptedInvocation{Invocation: inv, ctx: ctx, do: make(chan func()), input: make(chan []byte, 10)}
	if inv.Rest() != nil {
		go s.read() // ends with the input
	}
	w.came <- s
	for {
		select {
		case f, more := <-s.do:
			if !more {
				return s.result
			}
			f()
		case <-w.over:
			return s.result
		}
	}
}

// sends has the worker send a frame.
func (w *scriptedWorker) sends(f []any) {
	t := w.t
	t.Helper()
	switch f[0] {
	case 1.: // it has greeted
		return
	case 8.: // it grants a window at once, and then when it likes
		if id := f[1].(float64); !w.granted[id] {
			w.expect(f[:3])
			w.granted[id] = true
		}
		return
	case 3.:
		slots := int(f[3].(float64))
		if w.offering == nil {
			w.offering = make(chan *bus.Offering, 1)
			go func() { // ends with OFFERED
				off, err := w.client.Offer(bg(), bus.Offer{Name: f[2].(string), Slots: slots}, w.serve)
				if err != nil {
					t.Error(err)
				}
				w.offering <- off
			}()
		} else {
			off := await(t, "OFFERED", w.offering)
			go off.SetSlots(bg(), slots) // ends with OFFERED
		}
	case 6.:
		s := w.calls[f[1].(float64)]
		out := s.Stdout
		if f[2] == 2. {
			out = s.Stderr
		}
		s.do <- func() { out.Write(vectors.Bin(f[3])) }
	case 10.:
		s := w.calls[f[1].(float64)]
		s.result.End = bus.End{Source: args.Source(f[2].(float64)), Status: int(f[3].(float64)), Code: f[4].(string)}
		if len(f) > 6 {
			s.result.Message, s.result.Output = f[5].(string), vectors.Bin(f[6])
		}
		close(s.do)
	}
	w.expect(f)
}

// gets sends a frame to the worker.
func (w *scriptedWorker) gets(f []any) {
	w.t.Helper()
	if f[0] == 1. {
		f = nodesHello
	}
	w.node.Send(f)
	switch f[0] {
	case 5.:
		w.calls[f[1].(float64)] = await(w.t, "a call", w.came)
	case 6.: // its program reads it
		s, want := w.calls[f[1].(float64)], vectors.Bin(f[3])
		for len(s.rest) < len(want) {
			s.rest = append(s.rest, await(w.t, "input", s.input)...)
		}
		if got := s.rest[:len(want)]; !bytes.Equal(got, want) {
			w.t.Errorf("the program has read %q, not %q", got, want)
		}
		s.rest = s.rest[len(want):]
	case 9.:
		await(w.t, "the cancellation", w.calls[f[1].(float64)].ctx.Done())
	}
}

package node_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/node"
)

// TestDrainTakesLate: who had connected before the drain, and has asked for
// nothing yet, may still make one call.
func TestDrainTakesLate(t *testing.T) {
	noLeaks(t)
	t.Cleanup(node.SetLateTime(patience))
	n, path := start(t, node.Config{})
	g := newGate()
	offerFunc(t, dial(t, path), "f", 1, g.handle)
	c := dial(t, path)
	drained := make(chan error, 1)
	go func() { drained <- n.Drain(bg()) }()
	eventually(t, "the drain", func() bool { return n.Info().Draining })
	late := post(bg(), c, bus.Request{Function: "f", Input: strings.NewReader("x")})
	await(t, "the call", g.started)
	if o := await(t, "a second call", post(bg(), c, bus.Request{Function: "f"})); !errors.Is(o.err, bus.ErrDraining) {
		t.Errorf("a second call: %v", o.err)
	}
	select {
	case err := <-drained:
		t.Errorf("Drain ended before the call: %v", err)
	default:
	}
	g.release <- struct{}{}
	if o := await(t, "the call", late); o.err != nil || o.out != "x" {
		t.Errorf("%q, error %v", o.out, o.err)
	}
	if err := await(t, "Drain", drained); err != nil {
		t.Error(err)
	}
}

// TestDrainEndsChanges: who is about to post is told whether it was kept.
func TestDrainEndsChanges(t *testing.T) {
	noLeaks(t)
	t.Cleanup(node.SetLateTime(patience))
	m, err := jobs.Open(jobs.Config{Dir: t.TempDir(), Volatile: true, Warn: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	n, path := start(t, node.Config{Jobs: m})
	input, feed := io.Pipe()
	opened := make(chan bool, 1)
	posted := post(bg(), dial(t, path), bus.Request{Function: "fbus.post", Args: args.List("f"), Input: input, Opened: func(string) { opened <- true }})
	feed.Write([]byte("x"))
	await(t, "the post", opened)
	eventually(t, "it is under way", n.Changing)
	drained := make(chan error, 1)
	go func() { drained <- n.Drain(bg()) }()
	eventually(t, "the drain", func() bool { return n.Info().Draining })
	select {
	case err := <-drained:
		t.Errorf("Drain ended before the post: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	feed.Close()
	if o := await(t, "the post", posted); o.err != nil || len(o.out) != 27 {
		t.Errorf("%q, error %v", o.out, o.err)
	}
	if err := await(t, "Drain", drained); err != nil {
		t.Error(err)
	}
}

// TestDrainIsNotHeldUp: a connection that asks for nothing holds up no drain.
func TestDrainIsNotHeldUp(t *testing.T) {
	noLeaks(t)
	t.Cleanup(node.SetLateTime(200 * time.Millisecond))
	n, path := start(t, node.Config{})
	dial(t, path)
	drained := make(chan error, 1)
	go func() { drained <- n.Drain(bg()) }()
	if err := await(t, "Drain", drained); err != nil {
		t.Error(err)
	}
	dial(t, path)
	ctx, stop := context.WithCancel(bg())
	stop()
	if err := n.Drain(ctx); err != nil { // nor does it take longer than it may
		t.Error(err)
	}
}

// TestSuccessor: a call that comes before the workers waits for them, not for
// ever, and not for the node's own functions.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	_, path := start(t, node.Config{Successor: true})
	c := dial(t, path)
	call := post(bg(), c, bus.Request{Function: "f", Input: strings.NewReader("x")})
	_, err := c.Call(bg(), &bus.Request{Function: "fbus.nosuch"})
	wantErr(t, err, bus.ErrNoFunction)
	offerFunc(t, dial(t, path), "f", 1, echo)
	if o := await(t, "the call", call); o.err != nil || o.out != "x" {
		t.Errorf("%q, error %v", o.out, o.err)
	}
	_, err = c.Call(bg(), &bus.Request{Function: "g"})
	wantErr(t, err, bus.ErrNoFunction)
}

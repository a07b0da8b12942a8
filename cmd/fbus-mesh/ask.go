package main

import (
	"encoding/json"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
)

// inquiry is a call of the mesh itself at a peer's node. The mesh's mu protects it.
type inquiry struct {
	text  []byte // of its output so far
	back  func(text []byte)
	timer *time.Timer
}

// ask calls a function of the peer's node itself. That needs no NATS, and no mesh at the peer. back is called once
// with the mesh's mu held: with the output, or with nothing if none came within patience. The mesh's mu is held.
func (l *link) ask(function string, a args.Args, patience time.Duration, back func(text []byte)) {
	m := l.peer.mesh
	l.last++
	c := &relayed{far: l.last, own: &inquiry{back: back}}
	l.byFar[c.far] = c
	c.own.timer = time.AfterFunc(patience, func() { // ends by itself
		m.mu.Lock()
		defer m.mu.Unlock()
		l.answered(c, nil)
	})
	l.far.conn.Send(&wire.CallFrame{
		ID: c.far, Name: []byte(function), Kind: a.Kind(), Args: a.Data(), Flags: wire.FlagInputEnd, WindowOutput: wire.MaxWindow, WindowStderr: wire.InitialWindow,
	})
}

// take takes a frame of an inquiry: output, which its window bounds.
func (l *link) take(c *relayed, f wire.Frame) error {
	part, ok := f.(*wire.DataFrame)
	if !ok || part.Stream != wire.Output {
		return nil
	}
	m := l.peer.mesh
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.own.text = append(c.own.text, part.Payload...); len(c.own.text) > wire.MaxWindow {
		return args.Errorf(args.CodeProtocol, "the node answers with more than it may send")
	}
	return nil
}

// answered ends an inquiry, with the END if the node has sent one. The mesh's mu is held.
func (l *link) answered(c *relayed, end *wire.EndFrame) {
	if l.byFar[c.far] != c {
		return // the timer and the node have crossed
	}
	delete(l.byFar, c.far)
	c.own.timer.Stop()
	switch {
	case end == nil:
		l.far.conn.Send(&wire.CancelFrame{ID: c.far})
		c.own.back(nil)
	case end.Source == args.FromProgram && end.Status == 0:
		c.own.back(append(c.own.text, end.Output...))
	default:
		c.own.back(nil)
	}
}

// askFree asks the peer's node how many free slots of a function it has. back is called as ask does. The mesh's mu
// is held.
func (l *link) askFree(name string, back func(free int)) {
	l.ask("fbus.functions", args.List(name), holdTime, func(text []byte) {
		var i bus.FunctionInfo
		if json.Unmarshal(text, &i) != nil {
			i = bus.FunctionInfo{}
		}
		back(max(0, i.Slots-i.Busy-i.Queued))
	})
}

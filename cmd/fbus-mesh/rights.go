package main

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// What this mesh may call at another node depends on its ticket, and that node alone decides it.
// Functions that it may not call there are not offered here: calls would end with 77 that other
// nodes could run.

// permissions are what the mesh may call at a peer's node.
type permissions struct {
	answer []byte          // as it comes; the reader's alone
	told   chan []byte     // the answer
	rights *trust.Rights   // nil: everything
	denied map[string]bool // functions
}

// askID is the call of the far end that asks. Calls that are passed on have higher ids.
const askID = 1

// learn asks the peer's node what this mesh may call there. Tests replace it.
var learn = func(ctx context.Context, l *link) error {
	l.far.conn.Send(&wire.CallFrame{ID: askID, Name: []byte("fbus.nodes"), Flags: wire.FlagInputEnd, WindowOutput: wire.InitialWindow, WindowStderr: wire.InitialWindow})
	select {
	case text := <-l.may.told:
		var i bus.NodeInfo
		if json.Unmarshal(text, &i) != nil {
			return args.Errorf(args.CodeProtocol, "the node does not say what this mesh may do there")
		}
		if l.may.rights = i.Rights; i.Rights != nil && !slices.Contains(i.Rights.Call, "*") {
			l.peer.mesh.note("node %s lets %s call %s: its other functions are left out", l.peer.name, i.Caller, cmp.Or(strings.Join(i.Rights.Call, ", "), "nothing"))
		}
		return nil
	case <-l.far.done:
		return l.far.err
	case <-time.After(greetTime):
		return args.Errorf(args.CodeNoNode, "the node does not answer")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take takes a frame if it is of the answer.
func (p *permissions) take(f wire.Frame) (taken bool, err error) {
	switch f := f.(type) {
	case *wire.DataFrame:
		if taken = f.ID == askID; taken {
			p.answer = append(p.answer, f.Payload...)
		}
	case *wire.EndFrame:
		if taken = f.ID == askID; taken {
			select {
			case p.told <- append(p.answer, f.Output...):
			default: // it has ended twice
			}
		}
	}
	if len(p.answer) > wire.InitialWindow {
		err = args.Errorf(args.CodeProtocol, "the node says too much about itself")
	}
	return taken, err
}

// call reports whether the mesh may call a function at the peer's node. The mesh's mu is held.
func (p *permissions) call(name string) bool {
	return (p.rights == nil || p.rights.MayCall(name)) && !p.denied[name]
}

// deny leaves out a function that the peer's node does not let this mesh call. The mesh's mu is held.
func (l *link) deny(fn *function, why string) {
	if l.may.denied[fn.name] {
		return
	}
	if l.may.denied == nil {
		l.may.denied = map[string]bool{}
	}
	l.may.denied[fn.name] = true
	l.peer.mesh.note("%s of node %s is left out: %s", fn.name, l.peer.name, why)
	if l.peer.link == l {
		l.peer.mesh.remove(l.peer, fn.name)
	}
}

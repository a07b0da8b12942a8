package main

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
)

// What this mesh may call at another node depends on its ticket, and that node alone decides it.
// Functions that it may not call there are not offered here: calls would end with 77 that other
// nodes could run.

// permissions are what the mesh may call at a peer's node.
type permissions struct {
	rights *trust.Rights   // nil: everything
	denied map[string]bool // functions
}

// learn asks the peer's node what this mesh may call there. Tests replace it.
var learn = func(ctx context.Context, l *link) error {
	m := l.peer.mesh
	told := make(chan []byte, 1)
	m.mu.Lock()
	l.ask("fbus.nodes", args.Args{}, greetTime, func(text []byte) { told <- text })
	m.mu.Unlock()
	var text []byte
	select {
	case text = <-told:
	case <-l.far.done:
		return l.far.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if text == nil {
		return args.Errorf(args.CodeNoNode, "the node does not answer")
	}
	var i bus.NodeInfo
	if json.Unmarshal(text, &i) != nil {
		return args.Errorf(args.CodeProtocol, "the node does not say what this mesh may do there")
	}
	if l.may.rights = i.Rights; i.Rights != nil && !slices.Contains(i.Rights.Call, "*") {
		m.note("node %s lets %s call %s: its other functions are left out", l.peer.name, i.Caller, cmp.Or(strings.Join(i.Rights.Call, ", "), "nothing"))
	}
	return nil
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

package main

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// claimEvery is about how often a mesh looks whether another one beside its node has ended.
const claimEvery = 500 * time.Millisecond

// claim offers [bus.MeshFunction], as no other mesh does: two beside one node would offer everything
// twice. It waits for the other's end. The offer is nil if this mesh may not make it.
func (m *mesh) claim(ctx context.Context) (*bus.Offering, error) {
	for said := false; ; said = true {
		meshes, err := m.claims(ctx)
		if err == nil && meshes == 0 {
			off, err := m.node.Offer(ctx, bus.Offer{Name: bus.MeshFunction, Slots: 1000, Description: "what this node's mesh knows of other nodes"}, m.called)
			if errors.Is(err, bus.ErrDenied) {
				m.note("fbus status does not show this mesh, and nodes that cannot reach it cannot ask it to connect to them: only an administrator of the node may offer %s", bus.MeshFunction)
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			if meshes, err = m.claims(ctx); err == nil && meshes == 1 {
				return off, nil
			}
			if err := off.Withdraw(ctx); err != nil { // both do, and try again after different times
				return nil, err
			}
		}
		if err != nil {
			return nil, err
		}
		if !said {
			m.note("another mesh runs for this node: this one waits until that has ended")
		}
		select {
		case <-time.After(claimEvery/2 + rand.N(claimEvery)):
		case <-m.node.Done():
			return nil, m.node.Err()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// claims returns how many meshes the own node has.
func (m *mesh) claims(ctx context.Context) (int, error) {
	text, err := output(ctx, m.node, "fbus.functions", args.List(bus.MeshFunction))
	if err != nil || len(text) == 0 {
		return 0, err
	}
	var i bus.FunctionInfo
	err = json.Unmarshal(text, &i)
	return len(i.Workers), err
}

// twin returns the name of a peer if another node has it, too; empty: none has. Both have to have been heard
// since both are known: a node that was started again has the name of its former self. The mesh's mu
// is held.
func (m *mesh) twin(p *peer) string {
	name := strings.TrimPrefix(p.name, "@")
	if name == m.self.Node && p.heard.After(p.first) {
		return name
	}
	for _, q := range m.peers {
		if q != p && q.name == p.name && q.heard.After(p.first) && p.heard.After(q.first) {
			return name
		}
	}
	return ""
}

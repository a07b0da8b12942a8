package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// turnTime bounds a connection that the other side makes.
const turnTime = 5 * time.Second

// A node that cannot be reached may reach this one. Its mesh is then asked to: it calls
// [bus.MeshFunction] here, and the streams of that call carry a connection to its node. TLS is
// inside, between this mesh and that node, so that it is the node that admits this mesh.

// turned has the peer connect this mesh to its node.
func (p *peer) turned(ctx context.Context, l *link, h *hello) (*end, error) {
	m := p.mesh
	id, err := m.cfg.shown.identity()
	if err != nil {
		return nil, err
	}
	word := rand.Text()
	come := make(chan net.Conn, 1)
	m.mu.Lock()
	m.turns[word] = come
	m.tell(p.id, &message{Turn: word})
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.turns, word)
	}()
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	select {
	case nc := <-come:
		sealed := tls.Client(nc, id.Config(""))
		if err = sealed.HandshakeContext(ctx); err != nil {
			nc.Close()
			return nil, id.Failure(bus.Addr{}, err)
		}
		far, err := greet(ctx, sealed, &bus.Options{Name: "@" + m.self.Node}, l.fromFar)
		if err == nil && far.instance != h.ID {
			far.close()
			return nil, args.Errorf(args.CodeNoNode, "another node answers")
		}
		return far, err
	case <-ctx.Done():
		return nil, args.Errorf(args.CodeNoNode, "it has made no connection in %v", turnTime)
	}
}

// carry handles the call of a peer that was asked for a connection. It lasts as long as that.
func (m *mesh) carry(ctx context.Context, inv *bus.Invocation) bus.Result {
	values, err := args.Decode(inv.Kind, inv.Args)
	if err != nil || len(values.List) != 1 {
		return bus.Fail(args.BadInput("one word expected"))
	}
	word := string(values.List[0].Text)
	m.mu.Lock()
	come := m.turns[word]
	delete(m.turns, word)
	m.mu.Unlock()
	if come == nil {
		return bus.Fail(args.Errorf(args.CodeBadInput, "nobody waits for that"))
	}
	near, far := net.Pipe()
	come <- near
	defer context.AfterFunc(ctx, func() { far.Close() })()
	go func() { // ends with the connection
		io.Copy(far, inv.Input)
		far.Close()
	}()
	io.Copy(inv.Stdout, far)
	far.Close()
	return bus.Exit(0)
}

// turn connects a peer that cannot reach this node to it.
func (m *mesh) turn(h hello, word string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	id, err := m.cfg.shown.identity()
	if err != nil {
		return
	}
	info, err := infoOf(ctx, m.node)
	if err != nil || len(info.Listens) == 0 {
		return
	}
	own, err := net.DialTimeout("tcp", strings.Replace(info.Listens[0], "0.0.0.0", "127.0.0.1", 1), turnTime)
	if err != nil {
		return
	}
	defer own.Close()
	for _, a := range h.Addresses {
		try, stop := context.WithTimeout(ctx, turnTime)
		c, err := bus.Dial(try, bus.TCP(a), &bus.Options{Name: "mesh", Identity: id, KeepAlive: m.cfg.KeepAlive})
		stop()
		if err != nil {
			continue
		}
		defer c.Close()
		c.Call(ctx, &bus.Request{Function: bus.MeshFunction, Args: args.List(word), Input: own, Stdout: own})
		return
	}
}

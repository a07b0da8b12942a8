package main

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/find"
	"fbus/bus/trust"

	"github.com/nats-io/nats.go"
)

// helloEvery is how often a mesh lets the others know that it is there, ± 20 %. One without a word
// for three times as long is gone. Tests set it.
var helloEvery = 5 * time.Second

const (
	// firstPatience is how long an answer may take until it is known how long answers take, and
	// leastPatience and mostPatience bound it then. One that comes later is taken for as long as
	// slots are held.
	firstPatience = 250 * time.Millisecond
	leastPatience = 50 * time.Millisecond
	mostPatience  = 400 * time.Millisecond
	holdTime      = 2 * time.Second
	// probeTime is how long the NATS server may take to answer when nobody else does.
	probeTime = 250 * time.Millisecond
	// settleTime is how long after a change of the own node's functions the others hear of it. While
	// changes go on, as when many workers come, it doubles up to mostSettleTime: each of the others
	// then gets the list again.
	settleTime     = 50 * time.Millisecond
	mostSettleTime = time.Second
	// namesVersion is that of the messages.
	namesVersion = 1
	// maxPeers bounds the other nodes.
	maxPeers = 1000
	// maxPage bounds the functions in one message, in bytes.
	maxPage = 256 << 10
)

// config is what a mesh is made of.
type config struct {
	Share, Accept []string // globs of functions: that others may use, and that are used of others
	Name          string   // of this node; default the node's own
	Advertise     []string // HOST:PORT, where other nodes reach this one; default what the node says
	NATSService   []string // globs of functions that clients of NATS may call
	Place         find.Place
	Ticket        *trust.Ticket // for other nodes, which the user has named; nil: none
	Drain         time.Duration // how long calls that are passed on may take when the mesh ends
	KeepAlive     time.Duration // how long another node may be silent

	filed map[string]string // of values from a file: where they are, by flag
	shown *credentials      // to other nodes; nil: none
	Note  func(format string, a ...any)

	hub *hub // set by connect
}

// mesh connects one node to the others of its network: it is a client of its own node, as a worker
// with the slots of others, and a caller at their nodes.
type mesh struct {
	cfg     *config
	nc      *nats.Conn
	network string
	service *service // nil: there is none
	prefix  string   // of all subjects: fbus.NETWORK.
	node    *bus.Client
	claimed *bus.Offering // of what this mesh knows; nil: it may not offer that
	epoch   time.Time
	inbox   chan *nats.Msg // of all subscriptions but that of revocations

	revocations *revocations
	pulse       *pulse

	settling sync.Mutex // is held by the settle that runs

	mu        sync.Mutex // protects the fields below, and what they lead to
	self      hello
	machine   string
	functions map[string]*function  // that the own node has, or needs
	elsewhere map[string][]*offered // by function
	names     map[string]entry      // of the own node, that are shared
	first     []byte                // page of these; nil: it is not made yet
	dirty     map[string]bool       // that may have changed
	settled   *time.Timer
	pause     time.Duration       // until the others hear of the next change
	heardAt   time.Time           // when they have heard of the last
	peers     map[string]*peer    // by instance
	greeted   map[string]*peer    // by its last hello, without the time
	strangers map[string]stranger // by instance
	due       time.Time           // when the others hear of this one next
	early     time.Time           // when they may, if others are heard
	pending   map[string]*pending
	asked     uint64
	trip      time.Duration            // that answers take, lately
	probing   bool                     // it looks whether the server is there
	replies   string                   // prefix of subjects for answers
	turns     map[string]chan net.Conn // connections that peers were asked for
	said      map[string]bool          // notices that are not repeated
	retired   bool                     // the own node shuts down: nothing of it is shared any more
	draining  bool                     // it has left the mesh
	over      bool
}

// once passes on a notice the first time.
func (m *mesh) once(format string, a ...any) {
	if text := fmt.Sprintf(format, a...); !m.said[text] && len(m.said) < maxPeers {
		m.said[text] = true
		m.note("%s", text)
	}
}

func (m *mesh) now() time.Duration           { return time.Since(m.epoch) + 1 }
func (m *mesh) note(format string, a ...any) { m.cfg.Note(format, a...) }
func (m *mesh) shares(name string) bool      { return !m.retired && matches(m.cfg.Share, name) }
func (m *mesh) accepts(name string) bool     { return matches(m.cfg.Accept, name) }
func (m *mesh) encode(v any) []byte          { b, _ := json.Marshal(v); return b }
func (m *mesh) direct(id string) string      { return m.prefix + "node." + id }

func matches(globs []string, name string) bool { return trust.Rights{Call: globs}.MayCall(name) }

// run keeps the node in the mesh until ctx ends. It connects again to the node for as long.
func run(ctx context.Context, cfg *config, nc *nats.Conn) error {
	pause := 50 * time.Millisecond
	for said := ""; ; {
		began := time.Now()
		err := join(ctx, cfg, nc)
		if ctx.Err() != nil {
			return nil
		}
		if e := args.AsError(err, args.CodeNoNode); e.Status() == 77 || e.Code == args.CodeUsage {
			return err
		}
		if text := err.Error(); text != said {
			cfg.Note("%s: looking for the node", text)
			said = text
		}
		if time.Since(began) > 10*time.Second {
			pause = 50 * time.Millisecond
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// join is the mesh for as long as the connection to the own node lasts.
func join(ctx context.Context, cfg *config, nc *nats.Conn) error {
	node, info, err := cfg.dial(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	m := &mesh{
		cfg: cfg, nc: nc, node: node, network: info.Network, prefix: "fbus." + info.Network + ".", epoch: time.Now(), inbox: make(chan *nats.Msg, 1<<16),
		functions: map[string]*function{}, elsewhere: map[string][]*offered{}, names: map[string]entry{}, dirty: map[string]bool{}, peers: map[string]*peer{}, greeted: map[string]*peer{}, pending: map[string]*pending{}, strangers: map[string]stranger{}, turns: map[string]chan net.Conn{}, said: map[string]bool{},
	}
	m.replies = m.prefix + "reply." + crand.Text() + "." // the meshes' own, as their other subjects
	if nc.Opts.InboxPrefix != "" {                       // of a context
		m.replies = nc.NewInbox() + "."
	}
	m.self = hello{Version: namesVersion, Node: cmp.Or(cfg.Name, asName(info.Name)), ID: info.Instance, Mesh: crand.Text(), Addresses: cfg.Advertise, Names: uint64(time.Now().UnixMicro()), New: true}
	if len(cfg.Advertise) == 0 {
		m.self.Addresses = info.Listens
		if cfg.Place.Addr.Network() == "unix" {
			m.machine = machine()
			m.self.Socket, m.self.Machine = info.Address, m.machine
		}
	}
	if m.claimed, err = m.claim(ctx); err != nil {
		return err
	}
	for _, subject := range []string{m.prefix + "hello", m.prefix + "bye", m.direct(info.Instance), m.prefix + "names." + info.Instance, m.replies + "*"} {
		sub, err := nc.ChanSubscribe(subject, m.inbox)
		if err != nil {
			return err
		}
		defer sub.Unsubscribe()
	}
	m.settled = time.AfterFunc(time.Hour, m.settle)
	m.settled.Stop()
	defer m.close()
	user := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	if len(cfg.NATSService) > 0 {
		m.service = newService(ctx, m)
	}
	if err := m.trust(ctx, info); err != nil {
		return err
	}
	m.pulse = &pulse{mesh: m, at: time.Now(), kick: make(chan struct{}, 1), drains: make(chan struct{})}
	go m.pulse.keep(ctx) // these end with ctx
	go m.receive(ctx)
	go m.greet(ctx)
	go func() {
		query := args.JSON([]byte(`{"types":["function","worker"],"every":1,"relays":false}`))
		_, err := node.Call(ctx, &bus.Request{Function: "fbus.watch", Args: query, Stdout: &lines{each: m.line}})
		cancel(cmp.Or(err, error(args.Errorf(args.CodeNodeLost, "the node has ended the watch"))))
	}()
	select {
	case <-node.Done():
		return node.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.pulse.drains: // the node decides how long its calls may take
		m.retire()
		select {
		case <-node.Done():
			return node.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-user.Done():
		}
	case <-user.Done():
	}
	limit, stop := context.WithTimeout(context.Background(), m.cfg.Drain)
	defer stop()
	m.drain(limit)
	return nil
}

// retire has nothing more of the own node used by others. Its calls that wait may still use what others have.
func (m *mesh) retire() {
	m.service.leave()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.retired = true
	m.self.Names++
	m.names, m.first = map[string]entry{}, nil
	m.hello("")
	m.lookAll()
}

// drain leaves the mesh, and waits until no call is passed on any more, or limit ends.
func (m *mesh) drain(limit context.Context) {
	m.service.leave()
	if m.claimed != nil {
		go m.claimed.Withdraw(limit) // another mesh may take over meanwhile; ends with limit
	}
	m.mu.Lock()
	m.nc.Publish(m.prefix+"bye", m.encode(m.self))
	var links []*link
	for id, p := range m.peers {
		if p.link != nil {
			links = append(links, p.link)
		}
		p.leave()
		delete(m.peers, id)
	}
	for _, f := range m.functions {
		f.leave()
	}
	m.draining = true
	m.mu.Unlock()
	defer func() {
		for _, l := range links {
			l.far.close()
			l.near.close()
		}
	}()
	m.service.wait(limit.Done())
	for _, l := range links {
		select {
		case <-l.far.done:
		case <-l.near.done:
		case <-m.node.Done():
			return
		case <-limit.Done():
			return
		}
	}
	stopped := time.After(time.Second) // the own node answers at once, or is not running
	for _, l := range links {
		select {
		case <-l.near.done:
		case <-stopped:
			return
		}
	}
}

// dial connects to the own node.
func (c *config) dial(ctx context.Context) (*bus.Client, *bus.NodeInfo, error) {
	node, err := bus.Dial(ctx, c.Place.Addr, &bus.Options{Identity: c.Place.Identity, Name: "mesh", Relay: true})
	if err != nil {
		return nil, nil, err
	}
	info, err := infoOf(ctx, node)
	if err != nil {
		node.Close()
		return nil, nil, err
	}
	return node, info, nil
}

func infoOf(ctx context.Context, node *bus.Client) (*bus.NodeInfo, error) {
	text, err := output(ctx, node, "fbus.nodes", bus.Args{})
	if err != nil {
		return nil, err
	}
	info := &bus.NodeInfo{}
	return info, json.Unmarshal(text, info)
}

// called handles a call of [bus.MeshFunction]: it answers what the mesh knows. With a word it is a
// connection that a peer was asked for.
func (m *mesh) called(ctx context.Context, inv *bus.Invocation) bus.Result {
	if inv.Kind == args.KindList {
		return m.carry(ctx, inv)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	info := bus.MeshInfo{Node: m.self.Node, NATS: m.nc.ConnectedUrlRedacted(), Peers: []bus.MeshPeer{}}
	for _, p := range m.peers {
		i := bus.MeshPeer{Name: p.name, Heard: time.Since(p.heard).Seconds()}
		if p.link != nil {
			i.Reach, i.Calls = p.reach, len(p.link.byNear)
			for name := range p.list {
				if p.link.may.call(name) {
					i.Functions++
				}
			}
		} else {
			i.Error, i.Functions = cmp.Or(p.reach, "not connected yet"), len(p.list)
		}
		i.Twin = m.twin(p) != ""
		if off := p.clock; off.Abs() >= time.Second {
			i.Clock = off.Seconds()
		}
		info.Calls += i.Calls
		info.Peers = append(info.Peers, i)
	}
	for id, s := range m.strangers {
		if silence := time.Since(s.heard); silence < 3*helloEvery {
			why := fmt.Sprintf("its fbus mesh has version %d of the messages, and this one %d", s.version, namesVersion)
			info.Peers = append(info.Peers, bus.MeshPeer{Name: "@" + s.node, Error: why, Heard: silence.Seconds()})
		} else {
			delete(m.strangers, id)
		}
	}
	if info.NATS == "" {
		info.NATSError, _ = m.cfg.hub.offline()
	}
	slices.SortFunc(info.Peers, func(a, b bus.MeshPeer) int { return cmp.Compare(a.Name, b.Name) })
	return bus.Result{End: bus.Exit(0).End, Output: append(m.encode(info), '\n')}
}

// close leaves the mesh.
func (m *mesh) close() {
	m.service.leave()
	m.service.wait(nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over = true
	m.nc.Publish(m.prefix+"bye", m.encode(m.self))
	m.settled.Stop()
	for _, p := range m.pending {
		p.timer.Stop()
	}
	for _, f := range m.functions {
		f.leave()
	}
	for _, p := range m.peers {
		p.stop()
	}
	if m.nc.IsConnected() {
		m.nc.FlushTimeout(time.Second)
	}
}

// usable reports whether calls can be passed on to a peer now.
func (m *mesh) usable(id string) bool {
	p := m.peers[id]
	return p != nil && p.link != nil
}

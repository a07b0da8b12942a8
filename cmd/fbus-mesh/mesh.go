package main

import (
	"bytes"
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
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
	mostPatience  = time.Second
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

	shown *credentials // to other nodes; nil: none
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
	silent    int                      // requests without an answer in a row
	probing   bool                     // it looks whether the server is there
	replies   string                   // prefix of subjects for answers
	turns     map[string]chan net.Conn // connections that peers were asked for
	said      map[string]bool          // notices that are not repeated
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

// stranger is a mesh whose messages have another version.
type stranger struct {
	node    string
	version int
	heard   time.Time
}

// pending is a request without an answer.
type pending struct {
	back  func(data []byte, how timing)
	timer *time.Timer
	at    time.Time
	late  bool // it was given up
}

// timing is how an answer has come.
type timing int

const (
	inTime timing = iota
	silent        // it has not, so far
	late          // after that
)

// hello is what meshes let each other know about themselves.
type hello struct {
	Version   int      `json:"version"`
	Node      string   `json:"node"`
	ID        string   `json:"id"`             // the node's instance: a new one each time it starts
	Mesh      string   `json:"mesh,omitempty"` // the same for the mesh
	Addresses []string `json:"addresses,omitempty"`
	Socket    string   `json:"socket,omitempty"`
	Machine   string   `json:"machine,omitempty"` // with the socket: where it is, and whose
	Names     uint64   `json:"names"`             // rises when they change
	New       bool     `json:"new,omitempty"`     // it wants to hear of the others
	Silent    bool     `json:"silent,omitempty"`  // in bye: its node does not answer
	Time      int64    `json:"time,omitempty"`    // by its clock, in Unix milliseconds; last, see heard
}

// question asks for slots, or offers some.
type question struct {
	From  string `json:"from"`
	Slots int    `json:"slots"`
	Again bool   `json:"again,omitempty"` // a request for slots before was in vain
}

// answer is the answer to a question. It is empty if there was none.
type answer struct {
	From  string `json:"from"`
	Slots int    `json:"slots"`
}

// message is from one mesh to another.
type message struct {
	From   string `json:"from"`
	Return string `json:"return,omitempty"` // the function whose slots are not used
	Take   string `json:"take,omitempty"`   // the function of which slots are asked for
	Turn   string `json:"turn,omitempty"`   // connect me to your node, by a call with this word
	Slots  int    `json:"slots,omitempty"`
}

// page is a part of the functions of a node.
type page struct {
	Names uint64  `json:"names"` // which list it is a part of
	List  []entry `json:"list"`
	Next  string  `json:"next,omitempty"` // the first name of the next page
}

func (m *mesh) now() time.Duration           { return time.Since(m.epoch) + 1 }
func (m *mesh) note(format string, a ...any) { m.cfg.Note(format, a...) }
func (m *mesh) shares(name string) bool      { return matches(m.cfg.Share, name) }
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
	m.pulse = &pulse{mesh: m, at: time.Now(), kick: make(chan struct{}, 1)}
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
	case <-user.Done():
		m.drain()
		return nil
	}
}

// drain leaves the mesh, and waits until no call is passed on any more.
func (m *mesh) drain() {
	limit, cancel := context.WithTimeout(context.Background(), m.cfg.Drain)
	defer cancel()
	m.service.leave()
	if m.claimed != nil {
		go m.claimed.Withdraw(limit) // another mesh may take over meanwhile; ends with limit
	}
	m.mu.Lock()
	m.nc.Publish(m.prefix+"bye", m.encode(m.self))
	var links []*link
	for id, p := range m.peers {
		if p.link != nil && len(p.link.byNear) > 0 {
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

// validName is what a node may be called: it is part of what callers are called elsewhere.
var validName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

// asName returns the name of a machine as one.
func asName(host string) string {
	name := strings.TrimLeft(regexp.MustCompile(`[^A-Za-z0-9_.-]+`).ReplaceAllString(host, "-"), ".-")
	return cmp.Or(name[:min(len(name), 64)], "node")
}

// machine names this machine and user: nodes with the same one can use their sockets.
func machine() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	ns, _ := os.Readlink("/proc/self/ns/mnt")
	return fmt.Sprint(strings.TrimSpace(string(boot)), " ", ns, " ", os.Getuid())
}

// greet lets the others know that this node is there, and forgets those that are silent.
func (m *mesh) greet(ctx context.Context) {
	in := false // the mesh
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		m.mu.Lock()
		if m.draining {
			m.mu.Unlock()
			return
		}
		now := time.Now()
		if !now.Before(m.due) {
			m.greetAll()
		}
		wake := m.due
		why, since := m.cfg.hub.offline()
		for _, p := range m.peers { // while NATS is gone, nobody can be heard
			last := p.heard
			if since.After(last) {
				last = since
			}
			if last = last.Add(3 * helloEvery); last.Before(now) {
				p.final = "node " + p.name + " is silent"
				m.drop(p, "it is silent")
			} else if last.Before(wake) {
				wake = last
			}
		}
		m.mu.Unlock()
		if why == "" && !in {
			in = true
			m.note("node %s of network %s is in the mesh", m.self.Node, m.network)
		}
		if err := m.nc.LastError(); why != "" && err != nil {
			m.cfg.hub.refused(m.nc, err) // the library does not report each refusal
		}
		next.Reset(time.Until(wake) + time.Millisecond)
		select {
		case <-next.C:
		case <-m.cfg.hub.online:
			m.mu.Lock()
			m.self.New = true
			m.due = time.Now()
			for _, f := range m.functions {
				f.Again(m.now())
			}
			m.mu.Unlock()
			m.revocations.online(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// greetAll lets all others know that this node is there, and begins to wait for the next time.
func (m *mesh) greetAll() {
	m.hello("")
	m.self.New = m.pulse.lost
	named := map[string]int{"@" + m.self.Node: 1}
	for _, p := range m.peers {
		named[p.name]++
	}
	for _, p := range m.peers {
		if named[p.name] == 1 {
			continue
		}
		if name := m.twin(p); name != "" {
			m.once("more than one node of the mesh is called %s: calls for @%s may go to any of them; fbus mesh --name gives one another name", name, name)
		}
	}
	now := time.Now()
	m.early = now.Add(helloEvery * 80 / 100)
	m.due = now.Add(helloEvery*85/100 + rand.N(helloEvery*35/100))
}

// hello tells one mesh of this one, or all of them.
func (m *mesh) hello(id string) {
	if m.pulse.lost {
		return
	}
	m.self.Time = time.Now().UnixMilli()
	if id == "" {
		m.nc.Publish(m.prefix+"hello", m.encode(m.self))
		return
	}
	m.nc.PublishMsg(&nats.Msg{Subject: m.direct(id), Data: m.encode(m.self), Header: nats.Header{kind: {"hello"}}})
}

// kind is the header that tells messages to one mesh apart.
const kind = "Fbus"

// tell sends a message to one mesh.
func (m *mesh) tell(id string, v *message) {
	v.From = m.self.ID
	m.nc.Publish(m.direct(id), m.encode(v))
}

// request asks a group, or one mesh, about slots. back is called as [mesh.ask] does.
func (m *mesh) request(subject string, q any, back func(a *answer, how timing)) {
	m.ask(subject, m.encode(q), func(data []byte, how timing) {
		a := &answer{}
		if json.Unmarshal(data, a) != nil || a.Slots < 0 {
			*a = answer{}
		}
		back(a, how)
	})
}

// ask sends a request. back is called later with mu held: with the answer, which is empty if nobody
// is there, or with nothing if none comes in time, and then perhaps again with a late one.
func (m *mesh) ask(subject string, data []byte, back func(data []byte, how timing)) {
	m.asked++
	token := strconv.FormatUint(m.asked, 36)
	wait := firstPatience
	if m.trip > 0 {
		wait = min(max(4*m.trip, leastPatience), mostPatience)
	}
	p := &pending{back: back, at: time.Now()}
	m.pending[token] = p
	if m.nc.PublishRequest(subject, m.replies+token, data) != nil { // there is no connection
		p.timer = time.AfterFunc(0, func() { m.answered(token, nil) }) // these end by themselves
	} else {
		p.timer = time.AfterFunc(wait, func() { m.unanswered(token) })
	}
}

// answered takes an answer, or that nobody is there.
func (m *mesh) answered(token string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pending[token]
	if p == nil || m.over {
		return
	}
	p.timer.Stop()
	delete(m.pending, token)
	m.silent = 0
	switch took := time.Since(p.at); {
	case len(data) == 0: // it is the server that has answered, or it cannot be asked
	case m.trip == 0:
		m.trip = took
	default:
		m.trip += (min(took, 4*m.trip) - m.trip) / 4
	}
	how := inTime
	if p.late {
		how = late
	}
	p.back(data, how)
}

// unanswered gives up a request.
func (m *mesh) unanswered(token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pending[token]
	if p == nil || m.over {
		return
	}
	if p.late {
		delete(m.pending, token)
		return
	}
	p.late = true
	p.timer.Reset(holdTime)
	if m.silent++; m.silent > 1 && !m.probing && len(m.nc.Servers()) > 1 {
		m.probing = true
		go m.probe() // ends by itself
	}
	p.back(nil, silent)
}

// probe goes to another server if this one does not answer. That a connection is dead would be seen
// otherwise, but after seconds in which calls wait.
func (m *mesh) probe() {
	err := m.nc.FlushTimeout(probeTime)
	if err == nats.ErrTimeout {
		m.note("NATS: %s does not answer: looking for another server", m.nc.ConnectedUrlRedacted())
		m.nc.ForceReconnect()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.probing, m.silent = false, 0
}

// receive handles the messages of NATS.
func (m *mesh) receive(ctx context.Context) {
	for {
		select {
		case msg := <-m.inbox:
			if token, ok := strings.CutPrefix(msg.Subject, m.replies); ok {
				m.answered(token, append([]byte{}, msg.Data...)) // empty if there are no responders, not nil
				continue
			}
			m.mu.Lock()
			if !m.over && !m.draining {
				m.handle(msg)
			}
			m.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// handle handles a message that is no answer.
func (m *mesh) handle(msg *nats.Msg) {
	verb, rest, _ := strings.Cut(strings.TrimPrefix(msg.Subject, m.prefix), ".")
	switch verb {
	case "take", "free":
		var q question
		if json.Unmarshal(msg.Data, &q) == nil {
			m.question(msg, verb, strings.ReplaceAll(rest, "/", "."), &q)
		}
	case "hello":
		m.heard(msg.Data)
		// One node after the other would wake all the others each time. So they speak together.
		if time.Now().After(m.early) {
			m.greetAll()
		}
	case "node":
		if msg.Header.Get(kind) == "hello" {
			m.heard(msg.Data)
			return
		}
		var v message
		if json.Unmarshal(msg.Data, &v) != nil {
			return
		}
		if f := m.functions[v.Return]; f != nil && v.Slots > 0 {
			f.Returned(m.now(), v.From, v.Slots)
		}
		if v.Take != "" {
			m.question(msg, "take", v.Take, &question{From: v.From, Slots: v.Slots, Again: true})
		}
		if p := m.peers[v.From]; p != nil && v.Turn != "" {
			go m.turn(p.hello, v.Turn) // ends with the connection
		}
	case "bye":
		var h hello
		if json.Unmarshal(msg.Data, &h) != nil {
			return
		}
		switch p := m.peers[h.ID]; {
		case p == nil:
		case h.Silent:
			p.lose()
		default:
			m.drop(p, "it has left")
		}
	case "names":
		msg.Respond(m.page(string(msg.Data)))
	}
}

// question answers a request about slots. Nothing is granted before the own node has shown that it
// answers.
func (m *mesh) question(msg *nats.Msg, verb, name string, q *question) {
	if q.Slots < 1 || q.From == m.self.ID {
		return
	}
	answers := func(alive bool) {
		n := 0
		if f := m.functions[name]; f != nil && alive {
			n = f.question(verb, q)
		}
		msg.Respond(m.encode(answer{m.self.ID, n}))
	}
	if verb == "take" {
		m.pulse.check(answers)
	} else {
		answers(!m.pulse.silent)
	}
}

// heard notes that a mesh is there. With many nodes there are many hellos, and most have nothing new but
// the time: these are not decoded.
func (m *mesh) heard(data []byte) {
	words, at, _ := bytes.Cut(data, []byte(`,"time":`))
	p := m.greeted[string(words)]
	if p == nil {
		if p = m.meet(data); p == nil {
			return
		}
		delete(m.greeted, p.words)
		p.words = string(words)
		m.greeted[p.words] = p
	}
	p.heard, p.clock = time.Now(), 0
	if ms, _ := strconv.ParseInt(strings.TrimSuffix(string(at), "}"), 10, 64); ms > 0 {
		p.clock = time.UnixMilli(ms).Sub(p.heard)
	}
	if p.hello.New {
		m.hello(p.id)
	}
	if p.hello.Names != p.names && !p.fetching {
		p.fetch()
	}
}

// meet returns the peer that a hello is of, nil if it is of none.
func (m *mesh) meet(data []byte) *peer {
	var h hello
	switch {
	case json.Unmarshal(data, &h) != nil || h.ID == "" || !validName.MatchString(h.Node):
		return nil
	case h.ID == m.self.ID && h.Mesh == m.self.Mesh: // it has come back, late, from a server left meanwhile
		return nil
	case h.ID == m.self.ID:
		m.once("another mesh runs for this node: one of them has to be ended")
		return nil
	case h.Version != namesVersion:
		m.once("node %s has another version of fbus mesh", h.Node)
		if len(m.strangers) < maxPeers {
			m.strangers[h.ID] = stranger{h.Node, h.Version, time.Now()}
		}
		return nil
	}
	p := m.peers[h.ID]
	if p == nil {
		if len(m.peers) == maxPeers {
			m.once("there are more than %d other nodes", maxPeers)
			return nil
		}
		p = newPeer(m, &h)
		m.peers[h.ID] = p
		if !h.New {
			m.hello(h.ID) // so that it need not wait for the next one to know us
		}
	}
	p.hello = h
	return p
}

// drop forgets a peer. Its calls go on until their end.
func (m *mesh) drop(p *peer, why string) {
	m.note("node %s is not in the mesh any more: %s", p.name, why)
	delete(m.peers, p.id)
	delete(m.greeted, p.words)
	p.leave()
}

// usable reports whether calls can be passed on to a peer now.
func (m *mesh) usable(id string) bool {
	p := m.peers[id]
	return p != nil && p.link != nil
}

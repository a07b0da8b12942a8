package main

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/wire"
)

const (
	// firstAgain and lastAgain bound the pauses between tries to reach a node.
	firstAgain = 100 * time.Millisecond
	lastAgain  = 30 * time.Second
)

// peer is another node of the mesh. The mesh's mu protects it.
type peer struct {
	mesh     *mesh
	id       string // its instance
	name     string // its node's, with @
	hello    hello
	words    string    // that hello, without the time
	first    time.Time // when it was heard of first, and last
	heard    time.Time
	clock    time.Duration // how far its clock is ahead
	names    uint64        // which list of its functions is known
	list     map[string]*entry
	fetching bool
	link     *link  // nil: there is none
	reach    string // how it is reached, or why it is not
	gone     bool   // it has left the mesh
	final    string // why it will not be back at once, as it would if it is started again; empty: it may
	cancel   context.CancelFunc
}

// newPeer begins to connect to a node. The mesh's mu is held.
func newPeer(m *mesh, h *hello) *peer {
	ctx, cancel := context.WithCancel(context.Background())
	p := &peer{mesh: m, id: h.ID, name: "@" + h.Node, hello: *h, first: time.Now(), list: map[string]*entry{}, cancel: cancel}
	go p.keep(ctx) // ends with the peer
	return p
}

// keep keeps the connections to the peer for as long as it is in the mesh.
func (p *peer) keep(ctx context.Context) {
	m := p.mesh
	for pause := firstAgain; ctx.Err() == nil; pause = min(2*pause, lastAgain) {
		l, reach, err := p.connect(ctx)
		if err == nil {
			pause = firstAgain / 2
			m.mu.Lock()
			p.reach = reach
			if p.gone || m.over {
				m.mu.Unlock()
				l.near.close()
				l.far.close()
				return
			}
			p.link = l
			for name, e := range p.list {
				if l.may.call(name) {
					m.add(p, e)
				}
			}
			m.mu.Unlock()
			m.note("node %s is reached by %s", p.name, reach)
			err = p.last(l)
		}
		if own := (ownLost{}); errors.As(err, &own) { // then the mesh ends, too
			select {
			case <-m.node.Done():
				return
			case <-ctx.Done():
				return
			case <-time.After(ownTime):
			}
		}
		m.mu.Lock()
		text := args.Plain(err)
		if text != p.reach && ctx.Err() == nil {
			m.note("node %s is not reached: %s", p.name, text)
		}
		p.reach = text
		m.mu.Unlock()
		select {
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		case <-ctx.Done():
		}
	}
}

// ownTime is how long the end of one connection to the own node may be seen before that of the others.
const ownTime = 200 * time.Millisecond

// ownLost is that a connection to the own node is gone.
type ownLost struct{ error }

func (e ownLost) Error() string { return "the own node: " + args.Plain(e.error) }

// last waits for the end of a link, and ends its calls.
func (p *peer) last(l *link) error {
	m := p.mesh
	var err error
	select {
	case <-l.far.done:
		err = l.far.err
	case <-l.near.done:
		err = ownLost{l.near.err}
	}
	m.mu.Lock()
	l.lost(err)
	if !p.gone { // else it may be there again, under the same id
		p.withdraw()
	}
	if p.link == l {
		p.link = nil
	}
	l.closeNear()
	m.mu.Unlock()
	l.far.close() // the other node ends what runs for it
	<-l.near.done
	return err
}

// connect connects to the peer's node, and to the own one for it. It returns how.
func (p *peer) connect(ctx context.Context) (*link, string, error) {
	m := p.mesh
	m.mu.Lock()
	h := p.hello
	m.mu.Unlock()
	l := &link{peer: p, byNear: map[uint64]*relayed{}, byFar: map[uint64]*relayed{}}
	reach, err := "", error(args.Errorf(args.CodeNoNode, "its node does not listen on TCP"))
	try := func(how string, addr bus.Addr, o *bus.Options) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		var far *end
		if far, err = open(ctx, addr, o, l.fromFar); err != nil {
			return
		}
		if far.instance != h.ID { // another node has the address now
			far.close()
			err = args.Errorf(args.CodeNoNode, "%v: another node answers there", addr)
			return
		}
		l.far, reach = far, how+" "+addr.String()
	}
	if h.Socket != "" && h.Machine == m.machine && m.machine != "" {
		try("unix", bus.Unix(h.Socket), &bus.Options{Name: "@" + m.self.Node})
	}
	for _, a := range h.Addresses {
		if err == nil {
			break
		}
		id, none := m.cfg.shown.identity()
		if err = none; err == nil {
			try("tls", bus.TCP(a), &bus.Options{Name: "@" + m.self.Node, Identity: id, KeepAlive: m.cfg.KeepAlive})
		}
	}
	if err != nil && len(h.Addresses) == 0 { // nor can it carry a connection to its node
		return nil, "", err
	}
	if err != nil {
		var turned error
		if l.far, turned = p.turned(ctx, l, &h); turned != nil {
			return nil, "", args.Errorf(args.CodeNoNode, "%v; nor does it reach this node: %v", err, turned)
		}
		reach = "a connection that it has made"
	}
	if err = learn(ctx, l); err == nil {
		l.near, err = open(ctx, m.cfg.Place.Addr, &bus.Options{Name: p.name, Identity: m.cfg.Place.Identity}, l.fromNear)
	}
	if err != nil {
		l.far.close()
		return nil, "", ownLost{err}
	}
	return l, reach, nil
}

// leave ends the offers of a peer that has left. Its calls go on. The mesh's mu is held.
func (p *peer) leave() {
	p.gone = true
	p.cancel()
	p.withdraw()
	if l := p.link; l != nil {
		p.link = nil
		if l.leaving = len(l.byNear) > 0; !l.leaving { // else it is closed at the end of its last call
			l.far.close()
		}
	}
}

// lose forgets a peer whose node does not answer, and ends its calls. The mesh's mu is held.
func (p *peer) lose() {
	l := p.link
	p.mesh.drop(p, "it does not answer")
	if l != nil {
		l.lost(args.Errorf(args.CodeNodeLost, "it does not answer"))
		l.far.close()
	}
}

// withdraw takes back the offers of all functions of the peer. The mesh's mu is held.
func (p *peer) withdraw() {
	for name := range p.list {
		p.mesh.remove(p, name)
	}
}

// stop ends the peer at once. The mesh's mu is held.
func (p *peer) stop() {
	p.gone = true
	p.cancel()
	if l := p.link; l != nil {
		l.far.close()
		l.near.close()
	}
}

// matches reports whether calls for these workers can be passed on to the peer.
func (p *peer) matches(on string) bool {
	return wire.MatchWorker(on, p.name, p.link.near.id)
}

// fetch gets the list of the peer's functions. The mesh's mu is held.
func (p *peer) fetch() {
	p.fetching = true
	p.page("", map[string]*entry{}, 0, 0)
}

// page gets a part of the list, and then the rest.
func (p *peer) page(from string, list map[string]*entry, names uint64, failed int) {
	m := p.mesh
	m.ask(m.prefix+"names."+p.id, []byte(from), func(data []byte, how timing) {
		var got page
		switch {
		case p.gone || how == late:
			return
		case data == nil || json.Unmarshal(data, &got) != nil:
			if failed++; failed > 4 {
				p.fetching = false // the next hello tries again
				return
			}
			p.page(from, list, names, failed)
			return
		case from != "" && got.Names != names: // it has changed meanwhile
			p.fetch()
			return
		}
		for _, e := range got.List {
			if m.accepts(e.Name) && args.ValidName(e.Name) {
				list[e.Name] = &e
			}
		}
		if got.Next > from {
			p.page(got.Next, list, got.Names, 0)
			return
		}
		p.fetching, p.names = false, got.Names
		p.replace(list)
		if p.hello.Names != p.names {
			p.fetch()
		}
	})
}

// replace takes a new list of functions.
func (p *peer) replace(list map[string]*entry) {
	m := p.mesh
	old := p.list
	p.list = list
	for name := range old {
		if _, ok := list[name]; !ok {
			m.remove(p, name)
		}
	}
	if p.link == nil {
		return
	}
	for name, e := range list {
		if p.link.may.call(name) && (old[name] == nil || !old[name].equal(e) || m.offered(name, p.id) == nil) {
			m.add(p, e)
		}
	}
}

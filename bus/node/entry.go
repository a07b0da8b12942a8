package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// Gate decides who enters over TCP: the network's own authority, or the files of
// somebody else's PKI.
type Gate interface {
	ServerConfig() *tls.Config
	// Admit returns the identity of a peer that has completed a handshake, before a byte
	// of the peer is read.
	Admit(cs tls.ConnectionState, from string) (*trust.Identity, error)
	// Check returns an error if a peer that was admitted would not be admitted now.
	Check(id *trust.Identity) error
}

const (
	// DefaultConnections is how many connections there may be.
	DefaultConnections = 10000
	// DefaultPerTicket is how many one ticket may have, or a quarter of all if that is less.
	DefaultPerTicket = 1000
	// refreshTime is how often the node looks for changes of the list of tickets by other
	// processes, and for expired tickets.
	refreshTime = 2 * time.Second
	// absentTime is how often it looks for ephemeral identities that have gone.
	absentTime = time.Minute
)

// handshakeTime bounds a TLS handshake.
var handshakeTime = 5 * time.Second

// accept checks the user that connects on this machine before a byte is handled.
func (n *Node) accept(nc *net.UnixConn) {
	peer, err := n.local(nc)
	if err == nil {
		n.serve(nc, peer, false)
		return
	}
	n.arriving.Add(-1)
	e := known(err)
	if e == nil {
		e = &args.Error{Code: args.CodeInternal, Message: "the peer's user cannot be determined: " + err.Error()}
	}
	n.refused("", peer.Caller, nil, e)
	n.cfg.Warn("connection refused: %v", e)
	wire.NewConn(nc, nil).CloseWith(e)
}

// ServeTCP accepts connections from other machines until the listener, which is of TCP, is
// closed. Config.Gate must be set.
func (n *Node) ServeTCP(l net.Listener) error {
	config := n.cfg.Gate.ServerConfig()
	for {
		nc, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
			n.cfg.Warn("%s: no file descriptor is left for another connection (see ulimit -n)", l.Addr())
			time.Sleep(100 * time.Millisecond)
			continue
		case err != nil:
			if ne, ok := err.(net.Error); ok && ne.Timeout() || errors.Is(err, syscall.ECONNABORTED) {
				continue
			}
			return err
		}
		a := n.entering.begin(nc)
		go func() { // ends with the connection
			defer a.end()
			n.enter(a, nc.(*net.TCPConn), config)
		}()
	}
}

// enter admits a peer that has completed the handshake and is on the list. Nothing that
// it sends is handled before.
func (n *Node) enter(a *arrival, nc *net.TCPConn, config *tls.Config) {
	from := nc.RemoteAddr().String()
	nc.SetDeadline(time.Now().Add(handshakeTime))
	pulse := wire.KeepAlive(nc, n.cfg.KeepAlive)
	h := &handshaking{nc, a}
	tc := tls.Server(wire.NewSocket(h), config)
	err := tc.HandshakeContext(context.Background())
	a.release()
	h.at = nil // a refused peer is read from without it
	if err != nil {
		e := trust.Explain(err, time.Time{})
		n.refused(from, "", nil, e)
		trust.Dismiss(tc, err)
		return
	}
	id, err := n.cfg.Gate.Admit(tc.ConnectionState(), from)
	if err == nil {
		err = n.room(&Peer{Caller: id.Caller(), Rights: &id.Rights, Joining: id.Joining})
	}
	if err != nil {
		n.refused(from, "", id, err)
		e := denial(err)
		tc.Write(wire.Append(nil, &wire.ErrorFrame{Code: []byte(e.Code), Message: []byte(e.Message)}))
		trust.Dismiss(tc, nil)
		return
	}
	nc.SetDeadline(time.Time{})
	n.arriving.Add(1) // before it leaves the list of those that enter: a drain waits for either
	a.end()
	peer := Peer{Caller: id.Caller(), From: from, Rights: &id.Rights, Serial: id.Serial, Expires: id.Expires, Joining: id.Joining, identity: id, pulse: pulse, placed: true}
	peer.Owner, peer.Since = ownerOfTicket(id)
	n.serve(tc, peer, false)
}

// room reserves a place for another connection of that peer, if there is one.
func (n *Node) room(p *Peer) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := n.identity(p)
	defer n.forget(id)
	reserve := n.cfg.MaxConnections / 16 // for administrators
	if id.rank != guest {
		reserve = 0
	}
	limit, has := n.cfg.MaxConnections-reserve, len(id.sessions)+id.reserved
	if n.guests >= limit {
		return args.Errorf(args.CodeBusy, "too many connections to this node (limit %d)", limit)
	}
	// One that has many leaves as many to all others.
	if most := min(n.cfg.MaxPerTicket, limit-n.guests); has >= most {
		return args.Errorf(args.CodeBusy, "too many connections of %s to this node (limit %d)", id.name, most)
	}
	n.guests++
	id.reserved++
	return nil
}

// denial returns the error that a refused peer gets.
func denial(err error) *args.Error {
	e := known(err)
	switch {
	case e == nil:
		return &args.Error{Code: args.CodeDenied, Message: err.Error()}
	case e.Code == args.CodeListLost: // the place of the list is not theirs to know
		return &args.Error{Code: e.Code, Message: "the node cannot read its list of tickets, so nobody is admitted"}
	}
	return &args.Error{Code: e.Code, Message: e.Message}
}

// known returns the error with a code that err is or wraps; nil: there is none.
func known(err error) *args.Error {
	e, _ := errors.AsType[*args.Error](err)
	return e
}

// deny returns the error of a call of one of the node's own functions about a function that
// the peer may not call.
func (q *asked) deny(function string) error {
	msg := fmt.Sprintf("%s may not call %s", q.peer.Caller, args.Shown(function))
	q.node.denied(q.peer, args.Shown(function), msg)
	return &args.Error{Code: args.CodeDenied, Message: msg}
}

// denyOther returns the error of a call about something that the peer sees, but is somebody else's.
func (q *asked) denyOther(what string) error {
	msg := fmt.Sprintf("%s may not call %s for %s of somebody else", q.peer.Caller, q.Function, what)
	q.node.denied(q.peer, q.Function, msg)
	return &args.Error{Code: args.CodeDenied, Message: msg}
}

// Revoked closes the connections of revoked serials. Their calls are cancelled.
func (n *Node) Revoked(serials []string) {
	gone := map[string]bool{}
	for _, serial := range serials {
		gone[serial] = true
	}
	n.dismiss(args.CodeRevoked, "the ticket was revoked", func(p *Peer) bool { return gone[p.Serial] })
	n.changes.ticket()
	if n.cfg.Jobs != nil {
		n.cfg.Jobs.Recheck()
	}
}

// checkPeers closes the connections of peers that the gate would not admit now.
func (n *Node) checkPeers() {
	var peers []Peer
	n.mu.Lock()
	for _, s := range n.sessions {
		if s.peer.identity != nil {
			peers = append(peers, s.peer)
		}
	}
	n.mu.Unlock()
	gone := map[*trust.Identity]bool{}
	for _, p := range peers {
		if err := n.cfg.Gate.Check(p.identity); err != nil {
			gone[p.identity] = true
			n.refused(p.From, p.Caller, p.identity, err)
		}
	}
	n.dismiss(args.CodeRevoked, "the certificate was revoked, or its CA is not trusted any more", func(p *Peer) bool { return gone[p.identity] })
	if n.cfg.Jobs != nil {
		n.cfg.Jobs.Recheck()
	}
}

// CheckLocal looks up the rights of the other users of this machine that are connected. It
// closes connections with a call or an offer that is not allowed any more.
func (n *Node) CheckLocal() {
	gone := map[*Peer]bool{}
	n.mu.Lock()
	for _, s := range n.sessions {
		p := &s.peer
		if p.gids == nil {
			continue
		}
		rights, ok := n.cfg.Local(p.uid, p.gids)
		gone[p] = !ok || rights.Admin != p.Rights.Admin || rights.Monitor != p.Rights.Monitor || rights.Relay != p.Rights.Relay
		p.Rights = &rights
		for name := range s.offers {
			gone[p] = gone[p] || !p.mayOffer(name)
		}
		for _, c := range s.in {
			gone[p] = gone[p] || !p.mayCall(c.fn.name)
		}
	}
	n.mu.Unlock()
	n.dismiss(args.CodeDenied, "its rights have changed", func(p *Peer) bool { return gone[p] })
	if n.cfg.Jobs != nil {
		n.cfg.Jobs.Recheck()
	}
}

// closeTime is how long dismiss waits for the end of connections that are not listened to any more.
const closeTime = 200 * time.Millisecond

// dismiss closes the connections of some peers with an error. Once all are marked, not one more of
// their frames is acted on, and nothing is given to their workers.
func (n *Node) dismiss(code, why string, whom func(p *Peer) bool) {
	var list []*session
	n.locked(func(b *wire.Batch) {
		for _, s := range n.sessions {
			if s.dismissed == nil && whom(&s.peer) {
				s.dismissed = &args.Error{Code: code, Message: s.peer.Caller + ": " + why}
				list = append(list, s)
			}
		}
		for _, s := range list {
			s.withdraw(b)
		}
	})
	done := make(chan struct{})
	go func() { // ends soon
		defer close(done)
		for _, s := range list {
			s.conn.CloseWith(s.dismissed)
			s.close()
		}
	}()
	select {
	case <-done:
	case <-time.After(closeTime):
	}
}

// every calls f again and again until done is closed.
func (n *Node) every(pause time.Duration, f func()) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-n.done:
			return
		case <-tick.C:
			f()
		}
	}
}

func (n *Node) dismissExpired() {
	now := trust.Now().Round(0)                 // certificates end by the wall clock
	n.noteExpired(now.Add(-3*refreshTime), now) // twice is no harm
	n.dismiss(args.CodeExpired, "the ticket has expired", func(p *Peer) bool { return !p.Expires.IsZero() && now.After(p.Expires) })
}

// checkPulses finds dead peers. It keeps the connections of stopped ones.
func (n *Node) checkPulses() {
	var list []*wire.Pulse
	n.mu.Lock()
	for _, s := range n.sessions {
		if s.peer.pulse != nil {
			list = append(list, s.peer.pulse)
		}
	}
	n.mu.Unlock()
	for _, p := range list {
		p.Check()
	}
}

// gateWatch watches the list of tickets, or the files of another PKI.
type gateWatch struct {
	node    *Node
	warned  string // the last warning
	missing bool   // a file was not there the last time
}

// refresh looks for changes, and at the jobs that they concern. It may wait for the disk.
func (g *gateWatch) refresh() {
	g.look()
	if g.node.cfg.Jobs != nil {
		g.node.cfg.Jobs.CheckActive()
	}
}

func (g *gateWatch) look() {
	if gate, ok := g.node.cfg.Gate.(interface{ Refresh() error }); ok {
		err := gate.Refresh()
		g.saw(err)
		if e := known(err); e != nil && e.Code == args.CodeShut {
			g.node.dismiss(e.Code, e.Message, func(p *Peer) bool { return p.identity != nil })
		}
	}
}

// saw warns about an error once, until there is none.
func (g *gateWatch) saw(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	was := g.missing
	if g.missing = errors.Is(err, os.ErrNotExist); g.missing && !was { // perhaps it is being replaced
		return
	}
	if text != g.warned && text != "" {
		g.node.cfg.Warn("%s", text)
		if e := known(err); e != nil && e.Hint != "" {
			g.node.cfg.Warn("hint: %s", e.Hint)
		}
	}
	g.warned = text
}

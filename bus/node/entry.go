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
	// Admit says who has completed a handshake, before a byte of it is read.
	Admit(cs tls.ConnectionState, from string) (*trust.Identity, error)
	// Check says whether somebody who was admitted would be so still.
	Check(id *trust.Identity) error
}

const (
	// DefaultConnections is how many connections there may be.
	DefaultConnections = 10000
	// DefaultPerTicket is how many one ticket may have.
	DefaultPerTicket = 1000
	// handshakeTime bounds a TLS handshake.
	handshakeTime = 5 * time.Second
	// refreshTime is how often the list of tickets is looked at for what other
	// processes have changed, and the clock for what has expired.
	refreshTime = 2 * time.Second
)

// accept checks who connects on this machine before a byte is handled.
func (n *Node) accept(nc *net.UnixConn) {
	peer, err := n.local(nc)
	if err == nil {
		n.serve(nc, peer, false)
		return
	}
	n.arriving.Add(-1)
	var e *args.Error
	if !errors.As(err, &e) {
		e = &args.Error{Code: args.CodeInternal, Message: "who you are can not be told: " + err.Error()}
	}
	n.refused("", peer.Caller, nil, e)
	n.cfg.Warn("connection refused: %v", e)
	wire.NewConn(nc, nil).CloseWith(e)
}

// ServeTCP accepts connections from other machines until the listener is closed.
// Config.Gate must be set.
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
			n.enter(a, config)
		}()
	}
}

// enter lets a peer in that has completed the handshake and is on the list.
// Nothing it sends is handled before.
func (n *Node) enter(a *arrival, config *tls.Config) {
	nc := a.nc
	from := nc.RemoteAddr().String()
	nc.SetDeadline(time.Now().Add(handshakeTime))
	pulse := wire.KeepAlive(nc, n.cfg.KeepAlive)
	sock := wire.NewSocket(nc)
	tc := tls.Server(sock, config)
	if err := handshake(tc, sock, a); err != nil {
		e := trust.Explain(err, time.Time{})
		n.refused(from, "", nil, e)
		trust.Dismiss(tc, err)
		return
	}
	id, err := n.cfg.Gate.Admit(tc.ConnectionState(), from)
	if err == nil {
		err = n.room(id.Caller())
	}
	if err != nil {
		n.turnAway(tc, from, id, err)
		return
	}
	nc.SetDeadline(time.Time{})
	n.arriving.Add(1) // before it is entering no more: a drain waits for either
	a.end()
	peer := Peer{Caller: id.Caller(), From: from, Rights: &id.Rights, Serial: id.Serial, Expires: id.Expires, Joining: id.Joining, identity: id, pulse: pulse, placed: true}
	n.serve(tc, peer, false)
}

// handshake has the place while it computes, not while it waits for the peer.
func handshake(tc *tls.Conn, sock *wire.Socket, a *arrival) error {
	sock.Gate(a.acquire, a.release)
	defer sock.Gate(nil, nil) // who is turned away is read from without it
	return tc.HandshakeContext(context.Background())
}

// room keeps a place for another connection of that caller, if there is room.
func (n *Node) room(caller string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.guests >= n.cfg.MaxConnections {
		return &args.Error{Code: args.CodeBusy, Message: fmt.Sprintf("%d connections are the limit of this node", n.cfg.MaxConnections)}
	}
	if n.callers[caller] >= n.cfg.MaxPerTicket {
		return &args.Error{Code: args.CodeBusy, Message: fmt.Sprintf("%d connections of %s are the limit of this node", n.cfg.MaxPerTicket, caller)}
	}
	n.guests++
	n.callers[caller]++
	return nil
}

// leave gives a place back. n.mu is held.
func (n *Node) leave(caller string) {
	n.guests--
	if n.callers[caller]--; n.callers[caller] == 0 {
		delete(n.callers, caller)
	}
}

// turnAway tells a peer that has completed the handshake why it may not enter.
func (n *Node) turnAway(tc *tls.Conn, from string, id *trust.Identity, err error) {
	n.refused(from, "", id, err)
	e := denial(err)
	f := wire.ErrorFrame{Code: []byte(e.Code), Message: []byte(e.Message)}
	tc.Write(f.Append(nil))
	trust.Dismiss(tc, nil)
}

// denial returns what a peer that may not enter is told.
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
	var e *args.Error
	errors.As(err, &e)
	return e
}

// deny returns the error of a call of one of the node's own functions about a function that
// the peer may not call.
func (q *asked) deny(function string) error {
	msg := fmt.Sprintf("%s may not call %s", q.peer.Caller, args.Shown(function))
	q.node.denied(q.peer, args.Shown(function), msg)
	return &args.Error{Code: args.CodeDenied, Message: msg}
}

// Revoked closes the connections of a serial that may not enter any more. Their
// calls are cancelled.
func (n *Node) Revoked(serial string) {
	n.dismiss(args.CodeRevoked, "the ticket was revoked", func(p *Peer) bool { return p.Serial == serial })
	if n.cfg.Jobs != nil {
		n.cfg.Jobs.Recheck()
	}
}

// dismiss closes the connections of some peers, and says why.
func (n *Node) dismiss(code, why string, whom func(p *Peer) bool) {
	var list []*session
	n.mu.Lock()
	for _, s := range n.sessions {
		if whom(&s.peer) {
			s.dismissed = code
			list = append(list, s)
		}
	}
	n.mu.Unlock()
	for _, s := range list {
		s.conn.CloseWith(&args.Error{Code: code, Message: s.peer.Caller + ": " + why})
		s.close()
	}
}

// watch ends what has expired, and looks at the list of tickets and at peers that
// read nothing, until done is closed.
func (n *Node) watch() {
	tick, pulse := time.NewTicker(refreshTime), time.NewTicker(n.cfg.KeepAlive/3)
	defer tick.Stop()
	defer pulse.Stop()
	for {
		select {
		case <-n.done:
			return
		case <-pulse.C:
			n.checkPulses()
			continue
		case <-tick.C:
		}
		n.noteRest()
		if g, ok := n.cfg.Gate.(interface{ Refresh() error }); ok {
			n.warnGate(g.Refresh())
		}
		if n.cfg.Jobs != nil {
			n.cfg.Jobs.CheckActive()
		}
		now := trust.Now().Round(0) // the wall's clock: certificates end by that
		n.dismiss(args.CodeExpired, "the ticket has expired", func(p *Peer) bool { return !p.Expires.IsZero() && now.After(p.Expires) })
	}
}

// checkPulses keeps the connections of peers that are only stopped.
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

// warnGate says that the list of tickets, or the files of somebody's PKI, can not be
// read, once until they can. It belongs to watch.
func (n *Node) warnGate(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	missing := errors.Is(err, os.ErrNotExist)
	if missing && !n.gateMissing { // perhaps between a removal and what comes in its place
		n.gateMissing = true
		return
	}
	n.gateMissing = missing
	if text != n.gateTrouble && text != "" {
		n.cfg.Warn("%s", text)
	}
	n.gateTrouble = text
}

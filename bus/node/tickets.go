package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"strconv"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/trust"
)

// Invitation is what fbus.invite takes: a JSON object.
type Invitation struct {
	Name      string   `json:"name,omitempty"`      // default: made up
	Call      []string `json:"call,omitempty"`      // globs of functions that may be called
	Offer     []string `json:"offer,omitempty"`     // and offered
	Admin     bool     `json:"admin,omitempty"`     // may call fbus.*
	TTL       float64  `json:"ttl,omitempty"`       // seconds; default a day, reusable 30 days
	Reusable  bool     `json:"reusable,omitempty"`  // for any number of users, as it stands
	Addresses []string `json:"addresses,omitempty"` // host:port to dial; default the machine's
}

// TicketInfo is a line of fbus.tickets.
type TicketInfo struct {
	trust.Record
	Connected int `json:"connected"` // connections now
}

// RevokedInfo is what fbus.revoke answers.
type RevokedInfo struct {
	Serials     []string `json:"serials"`
	Issued      []string `json:"issued,omitempty"` // names of tickets among them that were issued with it
	Connections int      `json:"connections"`      // that were closed
}

// serveInvite makes a ticket and answers with its text.
func (n *Node) serveInvite(_ context.Context, p *Peer, inv *bus.Invocation, out *bytes.Buffer) bus.Result {
	if n.cfg.Authority == nil {
		return noAuthority()
	}
	var q Invitation
	dec := json.NewDecoder(bytes.NewReader(inv.Args))
	dec.DisallowUnknownFields()
	if inv.Kind != args.KindJSON || dec.Decode(&q) != nil {
		return badWords("fbus.invite takes a JSON object: name, call, offer, admin, ttl, reusable, addresses")
	}
	if len(q.Addresses) == 0 {
		if q.Addresses = n.addresses(); len(q.Addresses) == 0 {
			return badWords("this node does not listen on TCP: say what is to be dialled, or start it without --no-tcp")
		}
	}
	t, err := n.cfg.Authority.Issue(trust.Request{
		Name: q.Name, Rights: trust.Rights{Call: q.Call, Offer: q.Offer, Admin: q.Admin},
		TTL: time.Duration(q.TTL * float64(time.Second)), Reusable: q.Reusable, Addresses: q.Addresses, By: p.Serial,
	})
	if err != nil {
		return trustResult(err)
	}
	text, err := t.Format()
	if err != nil {
		return trustResult(err)
	}
	n.cfg.Log.Append(&bus.LogEntry{Event: "invited", Caller: p.Caller, From: p.From, Name: t.Name, Serial: t.Serial, Message: t.Rights.String()})
	out.Write(text)
	return exit0
}

// serveJoin exchanges the invitation that the peer has entered with; without a
// request it only says whether that can be done.
func (n *Node) serveJoin(_ context.Context, p *Peer, inv *bus.Invocation, out *bytes.Buffer) bus.Result {
	request, err := inv.Words()
	if n.cfg.Authority != nil && p.Joining && err == nil && len(request) == 0 {
		if err := n.cfg.Authority.Unused(p.Serial); err != nil {
			return trustResult(err)
		}
		return exit0
	}
	if n.cfg.Authority == nil || !p.Joining || err != nil || len(request) != 1 {
		return badWords("fbus.join takes a certificate request in PEM, from a peer that holds an invitation")
	}
	cert, err := n.cfg.Authority.Exchange(p.Serial, []byte(request[0]), p.From)
	if err != nil {
		return n.refuseIdentity(p, err)
	}
	n.cfg.Log.Append(&bus.LogEntry{Event: "joined", Caller: p.Caller, From: p.From, Serial: p.Serial})
	out.Write(cert)
	return exit0
}

// serveRenew gives the peer's identity a new certificate.
func (n *Node) serveRenew(_ context.Context, p *Peer, inv *bus.Invocation, out *bytes.Buffer) bus.Result {
	request, err := inv.Words()
	if n.cfg.Authority == nil || p.Serial == "" || err != nil || len(request) != 1 {
		return badWords("fbus.renew takes a certificate request in PEM, from a peer that has joined")
	}
	cert, err := n.cfg.Authority.Renew(p.Serial, []byte(request[0]))
	if err != nil {
		return n.refuseIdentity(p, err)
	}
	serial, expires, err := trust.CertificateEnd(cert)
	if err != nil {
		return trustResult(err)
	}
	n.renewed(inv.Call, serial, expires)
	out.Write(cert)
	return exit0
}

// refuseIdentity ends the call of a peer that gets no certificate, and notes it: an
// invitation that comes a second time may have been read by somebody else.
func (n *Node) refuseIdentity(p *Peer, err error) bus.Result {
	r := trustResult(err)
	n.cfg.Log.Append(&bus.LogEntry{
		Event: calllog.EventRefused, Caller: p.Caller, From: p.From, Code: r.Code, Message: err.Error(), Serial: p.Serial,
	})
	return r
}

func (n *Node) serveTickets(_ context.Context, _ *Peer, inv *bus.Invocation, out *bytes.Buffer) bus.Result {
	if words, err := inv.Words(); err != nil || len(words) > 0 {
		return badWords("fbus.tickets takes no arguments")
	}
	if n.cfg.Authority == nil {
		return noAuthority()
	}
	records, err := n.cfg.Authority.Tickets()
	if err != nil {
		return trustResult(err)
	}
	connected := n.connected()
	list := make([]TicketInfo, 0, len(records))
	for _, r := range records {
		list = append(list, TicketInfo{r, connected[r.Serial]})
	}
	writeLines(out, list)
	return exit0
}

// connected counts the connections of each serial.
func (n *Node) connected() map[string]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := map[string]int{}
	for _, s := range n.sessions {
		count[s.peer.Serial]++
	}
	return count
}

func (n *Node) serveRevoke(_ context.Context, p *Peer, inv *bus.Invocation, out *bytes.Buffer) bus.Result {
	words, err := inv.Words()
	if err != nil || len(words) != 1 {
		return badWords("fbus.revoke takes one argument: the name or serial of a ticket")
	}
	if n.cfg.Authority == nil {
		return noAuthority()
	}
	before := n.connected()
	gone, err := n.cfg.Authority.Revoke(words[0])
	if err != nil {
		return trustResult(err)
	}
	var info RevokedInfo
	for i, r := range gone {
		info.Serials = append(info.Serials, r.Serial)
		info.Connections += before[r.Serial]
		if slices.Contains(info.Serials, r.IssuedBy) && !slices.Contains(info.Issued, r.Name) {
			info.Issued = append(info.Issued, r.Name)
		}
		// An entry for each ticket: with the last of its serials, which is the one in use.
		if !slices.ContainsFunc(gone[i+1:], func(later trust.Record) bool { return later.Name == r.Name }) {
			n.cfg.Log.Append(&bus.LogEntry{Event: "revoked", Caller: p.Caller, From: p.From, Name: r.Name, Serial: r.Serial})
		}
	}
	writeLines(out, []RevokedInfo{info})
	return exit0
}

func noAuthority() bus.Result {
	return badWords("this node has no authority of its own: it was started with --no-tcp before there were tickets, they are made elsewhere, or it could not keep keys")
}

// trustResult is an error of the authority as the end of a call.
func trustResult(err error) bus.Result {
	var e *trust.Error
	if !errors.As(err, &e) {
		return bus.Result{Source: args.FromBus, Status: 70, Code: args.CodeInternal, Message: err.Error()}
	}
	msg, status := e.Message, args.StatusOf(e.Code)
	if e.Hint != "" {
		msg += "\nhint: " + e.Hint
	}
	if e.Code == args.CodeStorage || e.Code == args.CodeDamaged {
		status = 70
	}
	return bus.Result{Source: args.FromBus, Status: status, Code: e.Code, Message: msg}
}

// addresses are where other machines may reach this node.
func (n *Node) addresses() []string {
	var list []string
	n.mu.Lock()
	listening := slices.Clone(n.listening)
	n.mu.Unlock()
	for _, a := range listening {
		if !a.IP.IsUnspecified() {
			list = append(list, a.String())
			continue
		}
		for _, ip := range machineAddresses(a.IP.To4() != nil) {
			list = append(list, net.JoinHostPort(ip, strconv.Itoa(a.Port)))
		}
	}
	if len(list) > 8 {
		list = list[:8]
	}
	return list
}

// machineAddresses are those of its interfaces that others can dial; on a machine
// without any, the loopback's.
func machineAddresses(only4 bool) []string {
	var list, loop []string
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		ipnet, ok := a.(*net.IPNet)
		if !ok || only4 && ipnet.IP.To4() == nil {
			continue
		}
		switch ip := ipnet.IP; {
		case ip.IsLoopback():
			loop = append(loop, ip.String())
		case ip.IsGlobalUnicast():
			list = append(list, ip.String())
		}
	}
	if len(list) == 0 {
		return loop
	}
	return list
}

// Listening notes an address that invitations are to name.
func (n *Node) Listening(a *net.TCPAddr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listening = append(n.listening, a)
}

package node

import (
	"bytes"
	"context"
	"math"
	"net"
	"slices"
	"strconv"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/trust"
)

// invitation decodes the argument of fbus.invite.
func (q *asked) invitation(d *bus.Invitation) error {
	if q.Kind != args.KindJSON {
		return usageError("fbus.invite takes a JSON object: name, call, offer, admin, monitor, relay, token, node, ttl, reusable, uses, ephemeral, addresses")
	}
	return q.document(d)
}

// asksFor has a second node's call count as that of somebody who asked there: see [trust.Authority.Asker].
// It returns who issues tickets then, and through which node. by is empty if the peer asks for itself.
func (q *asked) asksFor(by string) (issuer, through string, err error) {
	p := q.peer
	if by == "" {
		return p.issuer(), "", nil
	}
	if p.Serial == "" {
		return "", "", badInput("%s: only another node of the network asks for others", q.Function)
	}
	caller, err := q.node.cfg.Authority.Asker(p.Serial, by)
	if err != nil {
		return "", "", err
	}
	p.Caller += "/" + caller
	if caller == by { // a user of that node's machine
		return p.Serial, "", nil
	}
	return by, p.Serial, nil
}

// serveInvite makes a ticket and answers with its text.
func serveInvite(_ context.Context, q *asked) error {
	n, p := q.node, q.peer
	var d bus.Invitation
	if err := q.invitation(&d); err != nil {
		return err
	}
	by, through, err := q.asksFor(d.By)
	if err != nil {
		return err
	}
	if math.Abs(d.TTL) > 1e9 {
		return usageError("fbus.invite: ttl: %g is not a valid time in seconds", d.TTL)
	}
	request := trust.Request{
		Name: d.Name, Rights: trust.Rights{Call: d.Call, Offer: d.Offer, Admin: d.Admin, Monitor: d.Monitor, Relay: d.Relay},
		TTL: time.Duration(d.TTL * float64(time.Second)), Reusable: d.Reusable, Addresses: d.Addresses, Uses: d.Uses, Ephemeral: d.Ephemeral, Node: d.Node, Mesh: d.Mesh, Through: through,
	}
	if d.Token {
		return q.issueToken(by, request)
	}
	if len(d.Addresses) == 0 {
		if d.Addresses = n.addresses(); len(d.Addresses) == 0 {
			return lacks(p, "this node does not listen on TCP", n.cfg.NoTCP)
		}
	}
	request.Addresses = d.Addresses
	t, err := n.cfg.Authority.Issue(by, request)
	if err != nil {
		return err
	}
	text, err := t.Format()
	if err != nil {
		return err
	}
	n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventInvited, Caller: p.Caller, From: p.From, Name: t.Name, Serial: t.Serial, Message: t.Rights.String()})
	q.out.Write(text)
	q.node.changes.ticket()
	return nil
}

// issueToken makes a token and answers with it and its rights.
func (q *asked) issueToken(by string, request trust.Request) error {
	n, p := q.node, q.peer
	text, r, err := n.cfg.Authority.IssueToken(by, request)
	if err != nil {
		return err
	}
	n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventInvited, Caller: p.Caller, From: p.From, Name: r.Name, Serial: r.Serial, Message: "token, " + r.Rights.String()})
	info := tokenInfo(&r)
	info.Token = text
	q.line(info)
	n.changes.ticket()
	return nil
}

func tokenInfo(r *trust.Record) bus.TokenInfo {
	return bus.TokenInfo{Kind: r.Kind, Name: r.Name, Caller: "token:" + r.Name, Serial: r.Serial, Rights: r.Rights, Expires: r.Expires}
}

// serveAdmit answers whose token a relay was given.
func serveAdmit(_ context.Context, q *asked) error {
	text, err := q.token()
	if err != nil {
		return err
	}
	r, err := q.node.cfg.Authority.Token(string(text), q.peer.From)
	if err != nil {
		return err
	}
	q.line(tokenInfo(r))
	return nil
}

// token returns the token that a relay was given, which comes as an argument or as input.
func (q *asked) token() ([]byte, error) {
	if q.Kind == args.KindRaw {
		return bytes.TrimSpace(q.Head()), nil
	}
	words, err := q.words(1, 1, "one argument: a token")
	if err != nil {
		return nil, err
	}
	return bytes.TrimSpace([]byte(words[0])), nil
}

// serveJoin exchanges the invitation that the peer has entered with. Without a request it
// only checks that this can be done.
func serveJoin(_ context.Context, q *asked) error {
	n, p := q.node, q.peer
	request, err := q.Words()
	if err != nil {
		return err
	}
	if !p.Joining || len(request) > 1 {
		return badInput("fbus.join takes a certificate request in PEM, from a peer that holds an invitation")
	}
	if len(request) == 0 {
		return n.cfg.Authority.Unused(p.Serial)
	}
	cert, err := n.cfg.Authority.Exchange(p.Serial, []byte(request[0]), p.From)
	if err != nil {
		return q.refuseIdentity(err)
	}
	name, _ := trust.CertificateName(cert)
	n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventJoined, Caller: p.Caller, From: p.From, Name: name, Serial: p.Serial})
	q.out.Write(cert)
	n.changes.ticket()
	return nil
}

// serveRenew issues a new certificate for the peer's identity.
func serveRenew(_ context.Context, q *asked) error {
	n, p := q.node, q.peer
	request, err := q.Words()
	if err != nil {
		return err
	}
	for2nd := len(request) == 2 && p.relay()
	if p.Serial == "" || len(request) != 1 && !for2nd {
		return badInput("fbus.renew takes a certificate request in PEM, from a peer that has joined")
	}
	was := p.Serial
	if for2nd { // for a peer of another node, which needs no trust: the request proves that it has the key
		was = request[1]
	}
	cert, err := n.cfg.Authority.Renew(was, []byte(request[0]))
	if err != nil {
		return q.refuseIdentity(err)
	}
	serial, expires, err := trust.CertificateEnd(cert)
	if err != nil {
		return err
	}
	if !for2nd {
		n.renewed(q.Call, serial, expires)
	}
	if serial != was {
		n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventRenewed, Caller: p.Caller, From: p.From, Serial: serial})
	}
	q.out.Write(cert)
	n.changes.ticket()
	return nil
}

// refuseIdentity notes that a peer got no certificate: an invitation that is used a second
// time may have been read by somebody else.
func (q *asked) refuseIdentity(err error) error {
	p := q.peer
	q.node.cfg.Log.Append(&bus.LogEntry{
		Event: calllog.EventRefused, Caller: p.Caller, From: p.From, Code: q.node.failure(ownOf(q.Function), err, q.peer).Code, Message: err.Error(), Serial: p.Serial,
	})
	return err
}

func serveTickets(_ context.Context, q *asked) error {
	words, err := q.words(0, 1, "no arguments")
	if err == nil && len(words) == 1 {
		_, _, err = q.asksFor(words[0])
	}
	if err != nil {
		return err
	}
	records, err := q.node.cfg.Authority.Tickets()
	if err != nil {
		return err
	}
	connected := q.node.connected()
	for _, r := range records {
		q.line(bus.TicketInfo{Record: r, Connected: connected[r.Serial]})
	}
	return nil
}

// noteExpired has those that watch the node see that tokens have expired. last is when it was called
// before.
func (n *Node) noteExpired(last, now time.Time) {
	if n.changes.watchers.Load() > 0 && (n.cfg.Authority != nil && n.cfg.Authority.TokenExpired(last, now) || n.first != nil && n.first.tokenExpired(last, now)) {
		n.changes.ticket()
	}
}

// dropAbsent removes ephemeral identities that were disconnected for too long.
func (n *Node) dropAbsent() {
	gone, err := n.cfg.Authority.DropAbsent(n.connected())
	if err != nil {
		n.cfg.Warn("ephemeral identities cannot be removed: %v", err)
	}
	for _, r := range gone {
		n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventRemoved, Name: r.Name, Serial: r.Serial, Message: "it was disconnected for an hour"})
	}
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

func serveRevoke(_ context.Context, q *asked) error {
	n, p := q.node, q.peer
	words, err := q.words(1, 2, "one argument: the name or serial of a ticket")
	if err == nil && len(words) == 2 {
		_, _, err = q.asksFor(words[1])
	}
	if err != nil {
		return err
	}
	connected := n.connected()
	gone, before, err := n.cfg.Authority.Revoke(words[0])
	if err != nil {
		return err
	}
	info := bus.RevokedInfo{Before: before}
	for _, r := range gone {
		info.Serials = append(info.Serials, r.Serial)
	}
	for i, r := range gone {
		joined := r.Via != "" && slices.Contains(info.Serials, r.Via)
		if (joined || slices.Contains(info.Serials, r.IssuedBy) || slices.Contains(info.Serials, r.Through)) && !slices.Contains(info.Issued, r.Name) {
			info.Issued = append(info.Issued, r.Name)
		}
		if !before.IsZero() {
			continue
		}
		info.Connections += connected[r.Serial]
		// One entry for each ticket, with the last of its serials, which is the one in use.
		if !slices.ContainsFunc(gone[i+1:], func(later trust.Record) bool { return later.Name == r.Name }) {
			n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventRevoked, Caller: p.Caller, From: p.From, Name: r.Name, Serial: r.Serial})
		}
	}
	q.line(info)
	n.changes.ticket()
	return nil
}

// addresses returns where other machines may reach this node.
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
	return list[:min(len(list), 8)]
}

// machineAddresses returns the addresses of this machine's interfaces that others can dial;
// without any, those of the loopback.
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

// Listening adds an address for invitations to name.
func (n *Node) Listening(a *net.TCPAddr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listening = append(n.listening, a)
}

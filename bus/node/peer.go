package node

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// Peer is the other end of a connection, as the transport knows it, and its rights.
type Peer struct {
	Caller  string        // "uid:1000" or "ticket:NAME", as in FBUS_CALLER and the log
	From    string        // its address, over TCP
	Rights  *trust.Rights // nil: everything, as the node's own user may
	Serial  string        // of its certificate
	Owner   string        // of its jobs: see [jobs.Poster.Key]; empty: Caller
	Since   time.Time     // when its ticket was issued, before all renewals; zero: not known
	Expires time.Time     // the connection ends then; zero: never
	Joining bool          // holds an invitation, which it may exchange and nothing else
	Lowered *trust.Rights // bounds the rights further, as the peer itself wants; nil: it does not

	token    *trust.Record   // of a relay's caller; nil: it has none
	agent    string          // ends Caller: the client by which the bearer of a token calls
	lent     []int           // groups of a user of this machine that its account does not have
	identity *trust.Identity // to be checked again once the connection is known
	pulse    *wire.Pulse     // nil on this machine
	placed   bool            // its place is reserved
	uid      int             // of another user of this machine, as are gids
	gids     []int           // nil: it is none
}

// mayCall reports whether the peer may call that function. It does not look at the
// registry: denied and absent look alike.
func (p *Peer) mayCall(name string) bool {
	o := ownOf(name)
	switch {
	case p.Joining:
		return name == "fbus.join"
	case name == bus.MeshFunction && p.admin():
		return true
	case o != nil && o.relays:
		return p.relay()
	case o != nil && (o.everybody || o.monitors && p.monitor()):
		return true
	}
	return p.allowed(func(r *trust.Rights) bool { return r.MayCall(name) })
}

func (p *Peer) mayOffer(name string) bool {
	return p.allowed(func(r *trust.Rights) bool { return r.MayOffer(name) })
}

// allowed reports whether the peer has a right.
func (p *Peer) allowed(in func(r *trust.Rights) bool) bool {
	return !p.Joining && (p.Rights == nil || in(p.Rights)) && (p.Lowered == nil || in(p.Lowered))
}

// rights returns all rights of the peer; nil: everything.
func (p *Peer) rights() *trust.Rights {
	if p.Rights == nil || p.Lowered == nil {
		return cmp.Or(p.Lowered, p.Rights)
	}
	both := p.Rights.And(*p.Lowered)
	return &both
}

// admin reports whether the peer may see and end what others do.
func (p *Peer) admin() bool { return p.allowed(func(r *trust.Rights) bool { return r.Admin }) }

// monitor reports whether the peer may see what others do.
func (p *Peer) monitor() bool {
	return p.allowed(func(r *trust.Rights) bool { return r.Admin || r.Monitor })
}

// relay reports whether the peer may make calls for others.
func (p *Peer) relay() bool { return p.allowed(func(r *trust.Rights) bool { return r.Relay }) }

// sees reports whether the peer is shown the function: guests only what they may call.
func (p *Peer) sees(name string) bool { return p.monitor() || p.mayCall(name) }

// seesAll reports whether it is shown all, but perhaps for the node's own.
func (p *Peer) seesAll() bool {
	return p.monitor() || p.allowed(func(r *trust.Rights) bool { return slices.Contains(r.Call, "*") })
}

// told returns the text of an error of the store of jobs. Paths of the node's disk are for
// administrators.
func (p *Peer) told(err error) string {
	if p.admin() {
		return err.Error()
	}
	return jobs.Public(err)
}

// owns reports whether the peer may end a call.
func (p *Peer) owns(c *call) bool { return p.admin() || c.of(p) }

// alters reports whether the peer may change calls and jobs of a function, as far as it has lowered its
// rights.
func (p *Peer) alters(function string) bool {
	return p.Lowered == nil || p.admin() || p.Lowered.MayCall(function)
}

// watches reports whether the peer is shown a call.
func (p *Peer) watches(c *call) bool { return p.monitor() || c.of(p) }

// bearer returns the caller without the client by which it calls.
func (p *Peer) bearer() string { return strings.TrimSuffix(p.Caller, p.agent) }

func (p *Peer) owner() jobs.Owner {
	o := jobs.Owner{Key: cmp.Or(p.Owner, p.Caller), Caller: p.Caller}
	if !p.Since.IsZero() {
		o.Since = p.Since.UnixMilli()
	}
	return o
}

// posted reports whether a job is the peer's.
func (p *Peer) posted(id jobs.ID, who *jobs.Poster) bool {
	o := p.owner()
	return o.Owns(id, who)
}

// ownerOfTicket returns the owner of the jobs of a ticket's holder, and since when there is that
// ticket. Renewals change neither.
func ownerOfTicket(id *trust.Identity) (owner string, since time.Time) {
	if id.First == "" { // of another PKI, whose names are its own affair
		return "", time.Time{}
	}
	return id.Caller() + "@" + id.First, id.Since
}

// token returns the valid token of that name, or an error with the reason why there is none here.
func (n *Node) token(name string) (*trust.Record, error) {
	switch {
	case n.cfg.Authority != nil:
		return n.cfg.Authority.TokenNamed(name)
	case n.first != nil:
		return n.first.token(name)
	}
	return nil, args.Errorf(args.CodeUnlisted, "there is no token %s: this node makes no tickets", args.Shown(name))
}

// tokenOf returns the name and the serial of the token in an owner; "": there is none.
func tokenOf(owner string) (token, serial string) {
	_, name, _ := strings.Cut(owner, "/")
	if at := len(name) - 33; at > 0 && name[at] == '@' && strings.HasPrefix(name, tokenNamed) {
		return name[len(tokenNamed):at], name[at+1:]
	}
	return "", ""
}

// issuer returns who issues the tickets that the peer asks for.
func (p *Peer) issuer() string {
	if p.Serial == "" && strings.HasPrefix(p.Caller, "uid:") {
		return trust.LocalUser
	}
	return p.Serial
}

// asker returns the peer that made a call of one of the node's own functions; nil if the call or its
// connection has ended, so that nothing may be done for it. Guests have a channel with room for the one answer that is computed for them at a time.
func (n *Node) asker(inv *bus.Invocation) (p *Peer, one chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.opened(inv.Call)
	if c == nil || c.session.dismissed != nil {
		return nil, nil
	}
	peer := c.peer()
	if peer.Rights != nil {
		one = c.identity.answer
	}
	return &peer, one
}

// renewed lets a connection last as long as the new certificate of its peer for the same
// key, so that the peer need not connect again.
func (n *Node) renewed(call, serial string, expires time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.opened(call); c != nil {
		c.session.peer.Serial, c.session.peer.Expires = serial, expires
	}
}

// opened returns the call of that id; nil if it has ended for its caller. n.mu is held.
func (n *Node) opened(call string) *call {
	at := strings.LastIndexByte(call, '-')
	if at < 0 {
		return nil
	}
	s := n.session(call[:at])
	id, err := strconv.ParseUint(call[at+1:], 10, 64)
	if s == nil || err != nil {
		return nil
	}
	if c := s.in[id]; c != nil && c.name() == call {
		return c
	}
	return nil
}

// session returns the session with that id on the network; nil: there is none. n.mu is held.
func (n *Node) session(id string) *session {
	rest, ok := strings.CutPrefix(id, n.prefix+"-")
	k, err := strconv.ParseUint(rest, 10, 64)
	if !ok || err != nil || strconv.FormatUint(k, 10) != rest {
		return nil
	}
	if s := n.sessions[k]; s != nil && !s.gone {
		return s
	}
	return nil
}

// groups returns the groups that a user of this machine has by its account.
func (n *Node) groups(uid int) ([]int, error) {
	if n.cfg.Groups == nil {
		return nil, nil
	}
	return n.cfg.Groups(uid)
}

// local returns the peer of a connection on this machine. The node's own user and root
// may do everything.
func (n *Node) local(nc *net.UnixConn) (Peer, error) {
	uid, err := wire.PeerUID(nc)
	if err != nil {
		return Peer{}, err
	}
	p := Peer{Caller: fmt.Sprintf("uid:%d", uid)}
	if uid == os.Getuid() || uid == 0 {
		return p, nil
	}
	if n.cfg.Local != nil {
		gids, err := wire.PeerGIDs(nc)
		if err != nil {
			return Peer{}, err
		}
		if rights, ok := n.cfg.Local(uid, gids); ok {
			p.Rights, p.placed, p.uid, p.gids = &rights, true, uid, slices.Clone(gids)
			account, err := n.groups(uid)
			if err == nil {
				p.lent = slices.DeleteFunc(gids, func(gid int) bool { return slices.Contains(account, gid) })
			}
			return p, n.room(&p)
		}
	}
	return p, args.Errorf(args.CodeDenied, "uid %d may not use this node", uid)
}

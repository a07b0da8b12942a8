package node

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

// A relay is a peer that makes calls for others: a gateway, or the mesh. It answers for what it says of
// them. So its rights count and not theirs, and their names stand behind its own: it can pass for
// nobody else. PROTOCOL.md, section 5.12.

// given is what a relay says about a call.
type given struct {
	call        string // its id where it comes from
	job, origin string // the job that it runs there
	attempt     uint64
	token       *trust.Record // of its caller; nil: that has none
	agent       string        // "/mcp:CLIENT": the client by which the bearer of a token calls; empty: none
}

// cost is how much a call counts in the buffers before its arguments and input do.
func (g *given) cost() int {
	return callCost + len(g.call) + len(g.job) + len(g.origin) + len(g.agent)
}

// tokenNamed begins the name of a caller who has a token. What follows is the name of that token: the
// owner of its jobs is that and its serial, and must not be another caller's name. The client by which its
// bearer calls may follow. It is shown, but changes nothing: the client has chosen it.
const (
	tokenNamed = "token:"
	agentNamed = "/mcp:"
)

// maxCaller bounds the name of a relay's caller.
const maxCaller = 128

// relay takes what a relay says about a new call. Programs may use ids as names of files, so these are no
// more than the node's own could be.
func (c *call) relay(f *wire.CallFrame) error {
	switch {
	case len(f.Caller) > maxCaller || bytes.ContainsFunc(f.Caller, func(r rune) bool { return r <= ' ' || r > '~' }):
		return usageError("caller must be at most %d printable ASCII characters without spaces, not %q", maxCaller, args.Shown(f.Caller))
	case args.HasToken(string(f.Caller)):
		return args.CheckNoToken("caller", string(f.Caller))
	case len(f.Call) > 0 && !args.ValidName(f.Call):
		return usageError("call: invalid id %q", args.Shown(f.Call))
	case len(f.Job) > 0 && !args.ValidName(f.Job):
		return usageError("job: invalid id %q", args.Shown(f.Job))
	}
	caller := string(f.Caller)
	if strings.HasPrefix(caller, tokenNamed) {
		if i := strings.Index(caller, agentNamed); i > 0 && !strings.Contains(caller[i+1:], "/") {
			caller, c.given.agent = caller[:i], caller[i:]
		}
	}
	if caller != "" {
		c.identity = c.node.caller(c.session.identity, caller)
	}
	if name, ok := strings.CutPrefix(caller, tokenNamed); ok {
		if trust.CheckName(name) != nil {
			return usageError("caller: invalid name of a token in %q", args.Shown(f.Caller))
		}
		token, err := c.node.token(name)
		if err != nil {
			return err
		}
		c.given.token = token
	}
	c.given.call = string(f.Call)
	if len(f.Job) > 0 {
		origin, err := relayedOrigin(f.Origin)
		if err != nil {
			return err
		}
		c.given.job, c.given.attempt, c.given.origin = string(f.Job), f.Attempt, origin
	}
	return nil
}

// relayedOrigin returns the origin of a job as a node writes it: a worker relies on that.
func relayedOrigin(text []byte) (string, error) {
	if len(text) == 0 {
		return "", nil
	}
	var o jobs.Origin
	if err := json.Unmarshal(text, &o); err != nil {
		return "", usageError("origin: %v", err)
	}
	if !args.ValidName(o.ID) || !args.ValidName(o.Function) {
		return "", usageError("origin: invalid id %q or function name %q", args.Shown(o.ID), args.Shown(o.Function))
	}
	out, err := json.Marshal(&o)
	return string(out), err
}

// shownID returns the id of a call for a program or a caller: the one that a relay has given, unless the
// node's own is asked for.
func (c *call) shownID(relayed bool) []byte {
	if relayed && c.given.call != "" {
		return []byte(c.given.call)
	}
	return c.appendName(c.node.scratch.name[:0])
}

// allowed reports whether the call may be made. A relay's callers get none of its rights over the node,
// nor its certificate.
func (c *call) allowed() bool {
	if own := c.fn.own; own != nil && c.identity.all != nil {
		return own.everybody && own.part != ofTickets
	}
	return c.session.peer.mayCall(c.fn.name)
}

// peer returns who makes the call: the peer that has opened it, or a caller of that relay.
func (c *call) peer() Peer {
	p := c.session.peer
	if c.identity.all == nil {
		return p
	}
	less := func(r *trust.Rights) *trust.Rights {
		return &trust.Rights{Call: r.Call, Offer: r.Offer}
	}
	p.Owner, p.Since = p.owner().Key+strings.TrimPrefix(c.identity.name, p.Caller), time.Time{}
	if p.token = c.given.token; p.token != nil {
		p.Owner += "@" + p.token.Serial
	}
	p.agent = c.given.agent
	if p.Caller = c.caller(); p.Owner == p.Caller {
		p.Owner = ""
	}
	if p.Rights == nil {
		p.Rights = &trust.Rights{Call: []string{"*"}, Offer: []string{"*"}}
	}
	p.Rights = less(p.Rights)
	if p.Lowered != nil {
		p.Lowered = less(p.Lowered)
	}
	return p
}

// via returns who the node has verified: the relay of a relay's caller.
func (p *Peer) via() string { return via(p.Caller) }

func via(caller string) string {
	verified, _, _ := strings.Cut(caller, "/")
	return verified
}

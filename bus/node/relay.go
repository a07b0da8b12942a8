package node

import (
	"bytes"
	"cmp"
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
}

// cost is how much a call counts in the buffers before its arguments and input do.
func (g *given) cost() int { return callCost + len(g.call) + len(g.job) + len(g.origin) }

// maxGiven bounds a caller's name and each id that a relay gives.
const maxGiven = 128

// checkGiven checks one of these.
func checkGiven(what string, text []byte) error {
	if len(text) > maxGiven || bytes.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return usageError("%s must be at most %d printable ASCII characters without spaces, not %q", what, maxGiven, args.Shown(text))
	}
	return nil
}

// relay takes what a relay says about a new call.
func (c *call) relay(f *wire.CallFrame) error {
	err := cmp.Or(checkGiven("caller", f.Caller), checkGiven("call", f.Call), checkGiven("job", f.Job))
	if err != nil {
		return err
	}
	c.given.call = string(f.Call)
	if len(f.Job) > 0 {
		c.given.job, c.given.attempt = string(f.Job), f.Attempt
		if c.given.origin, err = relayedOrigin(f.Origin); err != nil {
			return err
		}
	}
	if len(f.Caller) > 0 {
		c.identity = c.node.caller(c.session.identity, string(f.Caller))
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
	if err := checkGiven("the id in origin", []byte(o.ID)); err != nil {
		return "", err
	}
	if !args.ValidName(o.Function) {
		return "", usageError("origin: invalid function name %q", args.Shown(o.Function))
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
	p.Owner, p.Since = c.node.ownerOfRelayed(&p, strings.TrimPrefix(c.identity.name, p.Caller+"/")), time.Time{}
	p.Caller = c.identity.name
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

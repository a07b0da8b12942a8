package node

import (
	"runtime"
	"strings"
	"time"

	"fbus/bus/args"
	"fbus/bus/wire"
)

const (
	// callCost and offerCost are what a call without bytes and an offer without text count in
	// the buffers.
	callCost  = 1 << 10
	offerCost = 1 << 10
)

// rank orders identities by what is reserved for them.
type rank uint8

const (
	guest rank = iota
	admin      // the holder of a ticket that administers the node
	owner      // the node's own user, root, or the node itself
)

// identity is a ticket or a user, with what all its connections hold together, or a caller that such
// a relay names. Bounds are those of an identity: several connections never get more than one does. The
// node's mu protects it.
type identity struct {
	name     string // "uid:1000", "ticket:NAME", or one of these as a relay, "/" and its caller
	nameText []byte // for frames
	rank     rank
	callers  *identity            // of a relay: all its callers together
	all      *identity            // of a caller of a relay: the relay's callers; nil: it is none
	each     map[string]*identity // of all callers: those with calls, by the relay's name for them
	live     int                  // of a caller of a relay: calls that are not done

	sessions map[*session]bool
	reserved int // connections that are on their way to be sessions

	budget   wire.Budget // buffers, calls and offers
	exposure int64       // credit given to others for sending here
	open     int         // calls that its connections have opened
	calls    int         // of these, those of functions that are not the node's own
	offers   int
	text     int64         // bytes of their text
	own      [classes]int  // calls of the node's own functions that run
	turns    wire.Turns    // of its connections
	answer   chan struct{} // has room for the one answer that is computed for it at a time
	paused   time.Time     // when one of them last had to pause
}

func (n *Node) identity(p *Peer) *identity {
	id := n.identities[p.Caller]
	if id == nil {
		id = n.newIdentity(p)
		n.identities[p.Caller] = id
	}
	return id
}

func (n *Node) newIdentity(p *Peer) *identity {
	id := newCaller(p.Caller, &n.budget)
	id.sessions = map[*session]bool{}
	switch {
	case p.Rights == nil:
		id.rank, id.budget.Max = owner, n.budget.Max
	case p.admin():
		id.rank = admin
	}
	id.turns = make(wire.Turns, max(1, runtime.NumCPU()/4))
	return id
}

func newCaller(name string, in *wire.Budget) *identity {
	id := &identity{name: name, nameText: []byte(name), answer: make(chan struct{}, 1)}
	id.budget.In, id.budget.Max = in, in.Max/4
	return id
}

// maxCallers is how many callers of one relay have calls at once.
const maxCallers = 1000

// caller returns the identity of a relay's caller. It is remembered while it has calls.
func (n *Node) caller(relay *identity, name string) *identity {
	if relay.callers == nil {
		relay.callers = newCaller("all callers of "+relay.name, &n.budget)
		relay.callers.each = map[string]*identity{}
	}
	id := relay.callers.each[name]
	if id == nil {
		id = newCaller(relay.name+"/"+name, &relay.callers.budget)
		id.all = relay.callers
	}
	return id
}

// named returns the identity with that name; nil: it is not connected, or it has no calls at a relay
// that is.
func (n *Node) named(caller string) *identity {
	via, name, relayed := strings.Cut(caller, "/")
	id := n.identities[via]
	if relayed && id != nil && id.callers != nil {
		return id.callers.each[name]
	}
	return id
}

// lives counts calls that are not done.
func (id *identity) lives(d int) {
	if id.all == nil {
		return
	}
	_, name, _ := strings.Cut(id.name, "/")
	if id.live += d; id.live > 0 {
		id.all.each[name] = id
	} else {
		delete(id.all.each, name)
	}
}

// opens counts calls that its connections have opened.
func (id *identity) opens(d int) {
	for ; id != nil; id = id.all {
		id.open += d
	}
}

// pauseTime is how long an identity pauses, for each that had to lately: together they have
// about a fifth of the node's time.
const pauseTime = time.Millisecond

// pause returns how long an identity has to pause that has cost a lot.
func (n *Node) pause(id *identity) (d time.Duration) {
	n.press()
	n.mu.Lock()
	defer n.mu.Unlock()
	id.paused = time.Now()
	for _, other := range n.identities {
		if id.paused.Sub(other.paused) < time.Second {
			d += pauseTime
		}
	}
	return d
}

// forget drops an identity without connections.
func (n *Node) forget(id *identity) {
	if len(id.sessions)+id.reserved == 0 && n.identities[id.name] == id {
		delete(n.identities, id.name)
	}
}

// bound is something that identities share.
type bound struct {
	name, unit string // "the queue is", "calls"
	max, used  int64  // and how much of it all have together
}

// limits returns how much of a bound an identity may have, and all together for it to have more. The
// last quarter is reserved for administrators, and half of that for the node's own user, who is bound by
// nothing else. Of the rest an identity may have a quarter of the bound while others are connected, else
// half, and no more than it leaves to all others: a bound is never used up, however many take their part.
// All callers of one relay together may have half of what guests have.
func (n *Node) limits(id *identity, b bound) (part, all int64) {
	switch id.rank {
	case owner:
		return b.max, b.max
	case admin:
		all = b.max - b.max/8
	default:
		all = b.max - b.max/4
	}
	part = b.max / 4
	switch {
	case id.each != nil:
		part = all / 2
	case len(n.identities) == 1 && id.all == nil:
		part = b.max / 2
	}
	return min(max(part, 1), all-b.used), all
}

// exceeded returns the identity that may not have more of a bound: this one, or all callers of its relay;
// nil: it may. has returns how much one has.
func (n *Node) exceeded(id *identity, b bound, more int64, has func(*identity) int64) *identity {
	for ; id != nil; id = id.all {
		if part, all := n.limits(id, b); b.used+more > all || has(id)+more > part && id.rank != owner {
			return id
		}
	}
	return nil
}

// allows returns an error, which names the bound, if an identity may not have more of it.
func (n *Node) allows(id *identity, b bound, more int64, has func(*identity) int64) error {
	if id = n.exceeded(id, b, more, has); id == nil {
		return nil
	}
	part, all := n.limits(id, b)
	if b.used+more > all {
		return args.Errorf(args.CodeBusy, "%s full (limit %d %s)", b.name, all, b.unit)
	}
	return args.Errorf(args.CodeBusy, "%s full for %s (limit %d %s)", b.name, id.name, part, b.unit)
}

// held is how much of the node's buffers an identity has.
func (id *identity) held() int64 { return id.budget.Used() }

// buffers is the memory that the node keeps for its peers.
func (n *Node) buffers() bound {
	return bound{"the node's buffers are", "bytes", n.budget.Max, n.budget.Used()}
}

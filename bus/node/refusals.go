package node

import (
	"fmt"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/calllog"
	"fbus/bus/trust"
)

const (
	// refusalBurst is how many refusals of one kind are noted one by one, and
	// refusalPause how soon there is room for another: a flood of them must not
	// wash everything else out of the log.
	refusalBurst = 50
	refusalPause = 200 * time.Millisecond
	// maxDenied is of how many callers denials are counted apart.
	maxDenied = 1000
)

// refusals counts strangers that were not let in, or what a caller was denied.
type refusals struct {
	mu   sync.Mutex // protects the fields below
	room float64    // for entries of their own
	at   time.Time  // when room was right
	more int        // without an entry
}

// one reports whether there is room for an entry of another one.
func (r *refusals) one(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refill(now)
	if r.room < 1 {
		r.more++
		return false
	}
	r.room--
	return true
}

// refill makes the room what it is now. r.mu is held.
func (r *refusals) refill(now time.Time) {
	if r.at.IsZero() {
		r.room = refusalBurst
	} else {
		r.room = min(refusalBurst, r.room+float64(now.Sub(r.at))/float64(refusalPause))
	}
	r.at = now
}

// idle reports whether a new one would do as well.
func (r *refusals) idle(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refill(now)
	return r.room == refusalBurst && r.more == 0
}

// rest is how many had no entry, since it was asked last.
func (r *refusals) rest() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.more
	r.more = 0
	return n
}

// refused notes that somebody was not let in. The caller is who it is on this machine;
// over TLS that is said by the identity, if the network's CA has signed it.
func (n *Node) refused(from, caller string, id *trust.Identity, err error) {
	n.mu.Lock()
	n.refusedEntries[denial(err).Code]++
	n.mu.Unlock()
	if id == nil {
		if !n.strangers.one(time.Now()) {
			return
		}
		if g, ok := n.cfg.Gate.(interface{ Shown(error) *trust.Identity }); ok {
			id = g.Shown(err)
		}
	}
	e := denial(err)
	entry := bus.LogEntry{Event: calllog.EventRefused, Caller: caller, From: from, Code: e.Code, Message: err.Error()}
	if id != nil {
		entry.Caller, entry.Name, entry.Serial = id.Caller(), id.Name, id.Serial
	}
	who := ""
	if entry.Caller != "" {
		who = " of " + entry.Caller
	}
	n.cfg.Log.Append(&entry)
	n.cfg.Note("connection from %s%s refused: %v", from, who, err)
}

// denials counts what each caller was denied.
type denials struct {
	mu sync.Mutex // protects of
	of map[string]*refusals
}

// one is [refusals.one] of a caller; of many callers, some share their room.
func (d *denials) one(caller string, now time.Time) bool {
	d.mu.Lock()
	if d.of == nil {
		d.of = map[string]*refusals{}
	}
	if d.of[caller] == nil && len(d.of) >= maxDenied {
		caller = "others"
	}
	r := d.of[caller]
	if r == nil {
		r = &refusals{}
		d.of[caller] = r
	}
	d.mu.Unlock()
	return r.one(now)
}

// rest is how many denials of each caller had no entry, since it was asked last.
func (d *denials) rest(now time.Time) map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	var more map[string]int
	for caller, r := range d.of {
		if k := r.rest(); k > 0 {
			if more == nil {
				more = map[string]int{}
			}
			more[caller] = k
		} else if r.idle(now) {
			delete(d.of, caller)
		}
	}
	return more
}

// denied notes that somebody wanted more than his rights allow.
func (n *Node) denied(p *Peer, function, msg string) {
	if n.denials.one(p.Caller, time.Now()) {
		n.cfg.Log.Append(&bus.LogEntry{
			Event: calllog.EventRefused, Caller: p.Caller, From: p.From, Function: function, Code: args.CodeDenied, Message: msg, Serial: p.Serial,
		})
	}
}

// noteRest notes the refusals that had no entry of their own.
func (n *Node) noteRest() {
	if k := n.strangers.rest(); k > 0 {
		msg := fmt.Sprintf("%d more connections of strangers", k)
		n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventRefused, Code: "flood", Message: msg})
		n.cfg.Note("%s were refused", msg)
	}
	for caller, k := range n.denials.rest(time.Now()) {
		n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventRefused, Caller: caller, Code: "flood", Message: fmt.Sprintf("%d more denials", k)})
	}
}

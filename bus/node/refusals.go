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
	// refusalBurst is how many refusals of one caller are logged one by one, and
	// refusalPause how soon there is room for another: a flood of them must not wash
	// everything else out of the log.
	refusalBurst = 50
	refusalPause = 200 * time.Millisecond
	// maxRefused bounds the callers that are counted apart.
	maxRefused = 1000
)

// refusals limits the log entries about connections that were not let in, and about calls and
// offers that were denied. It counts the rest.
type refusals struct {
	mu sync.Mutex         // protects of
	of map[string]*tokens // by caller; strangers are ""
}

// tokens is a bucket of them.
type tokens struct {
	left float64
	at   time.Time // when left was right
	more int       // refusals that found none
}

func (t *tokens) refill(now time.Time) {
	t.left = min(refusalBurst, t.left+float64(now.Sub(t.at))/float64(refusalPause))
	t.at = now
}

// take reports whether there is room for an entry about one more refusal. Beyond many callers, the
// others share theirs.
func (r *refusals) take(caller string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.of == nil {
		r.of = map[string]*tokens{}
	}
	if r.of[caller] == nil && len(r.of) >= maxRefused {
		caller = "others"
	}
	t := r.of[caller]
	if t == nil {
		t = &tokens{left: refusalBurst, at: now}
		r.of[caller] = t
	}
	if t.refill(now); t.left < 1 {
		t.more++
		return false
	}
	t.left--
	return true
}

// rest returns how many refusals of each caller had no entry since the last time.
func (r *refusals) rest(now time.Time) map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	more := map[string]int{}
	for caller, t := range r.of {
		if t.refill(now); t.more > 0 {
			more[caller], t.more = t.more, 0
		} else if t.left == refusalBurst {
			delete(r.of, caller)
		}
	}
	return more
}

// refused counts and logs that a connection was not let in. The caller is known on this machine;
// over TLS the identity names it, if the network's CA has signed that.
func (n *Node) refused(from, caller string, id *trust.Identity, err error) {
	e := denial(err)
	n.mu.Lock()
	n.refusedEntries[e.Code]++
	n.mu.Unlock()
	if id == nil {
		if !n.refusals.take("", time.Now()) {
			return
		}
		if g, ok := n.cfg.Gate.(interface{ Shown(error) *trust.Identity }); ok {
			id = g.Shown(err)
		}
	}
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

// denied logs that a peer wanted more than its rights allow.
func (n *Node) denied(p *Peer, function, msg string) {
	if n.refusals.take(p.Caller, time.Now()) {
		n.cfg.Log.Append(&bus.LogEntry{
			Event: calllog.EventRefused, Caller: p.Caller, From: p.From, Function: function, Code: args.CodeDenied, Message: msg, Serial: p.Serial,
		})
	}
}

// logRest logs how many refusals had no entry of their own.
func (n *Node) logRest() {
	for caller, k := range n.refusals.rest(time.Now()) {
		msg := fmt.Sprintf("%d more denials", k)
		if caller == "" {
			msg = fmt.Sprintf("%d more connections of strangers", k)
			n.cfg.Note("%s were refused", msg)
		}
		n.cfg.Log.Append(&bus.LogEntry{Event: calllog.EventRefused, Caller: caller, Code: "flood", Message: msg})
	}
}

package node

import (
	"fmt"
	"sync"
	"time"

	"fbus/bus/journal"
	"fbus/bus/trust"
)

const (
	// refusalBurst is how many refusals of strangers are noted one by one, and
	// refusalPause how soon there is room for another: a flood of them must not
	// wash everything else out of the log.
	refusalBurst = 50
	refusalPause = 200 * time.Millisecond
)

// refusals counts strangers that were not let in.
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
	if r.at.IsZero() {
		r.room = refusalBurst
	} else {
		r.room = min(refusalBurst, r.room+float64(now.Sub(r.at))/float64(refusalPause))
	}
	r.at = now
	if r.room < 1 {
		r.more++
		return false
	}
	r.room--
	return true
}

// rest is how many had no entry, since it was asked last.
func (r *refusals) rest() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.more
	r.more = 0
	return n
}

// refused notes that somebody was not let in.
func (n *Node) refused(from string, id *trust.Identity, err error) {
	e := denial(err)
	entry := journal.Entry{Event: journal.EventRefused, From: from, Code: e.Code, Message: e.Message}
	who := ""
	if id != nil {
		who = " of " + id.Caller()
		entry.Name, entry.Serial = id.Name, id.Serial
	} else if !n.strangers.one(time.Now()) {
		return
	}
	n.note(&entry)
	n.cfg.Note("connection from %s%s refused: %v", from, who, err)
}

// noteRest notes the refusals that had no entry of their own.
func (n *Node) noteRest() {
	if k := n.strangers.rest(); k > 0 {
		msg := fmt.Sprintf("%d more connections of strangers", k)
		n.note(&journal.Entry{Event: journal.EventRefused, Code: "flood", Message: msg})
		n.cfg.Note("%s were refused", msg)
	}
}

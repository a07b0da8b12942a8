package bus

import (
	"strings"
	"sync"
	"time"

	"fbus/bus/wire"
)

// Progress is how far a call is.
type Progress struct {
	Done  uint64 `json:"done"`  // of whatever is counted
	Total uint64 `json:"total"` // 0: not known
	Text  string `json:"text"`  // for people
}

// progressPause is the shortest time between two reports of a call.
const progressPause = 100 * time.Millisecond

// reporter sends the progress of one call, at most once in each pause: the last report that
// came in a pause goes out at its end.
type reporter struct {
	mu      sync.Mutex // protects the fields below
	send    func(Progress)
	next    *Progress   // to be sent when the pause ends
	pause   *time.Timer // nil: none
	stopped bool
}

func (r *reporter) report(p Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stopped:
	case r.pause != nil:
		r.next = &p
	default:
		r.send(p)
		r.pause = time.AfterFunc(progressPause, r.resume)
	}
}

// resume ends a pause.
func (r *reporter) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pause = nil
	if r.next != nil && !r.stopped {
		r.send(*r.next)
		r.next, r.pause = nil, time.AfterFunc(progressPause, r.resume)
	}
}

// stop sends the last report, before the call's end.
func (r *reporter) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pause != nil {
		r.pause.Stop()
	}
	if r.next != nil && !r.stopped {
		r.send(*r.next)
	}
	r.stopped = true
}

// Progress reports how far the call is. At most ten reports a second are sent, and the last one
// before the call ends; a caller that does not understand them gets none.
func (inv *Invocation) Progress(p Progress) {
	c := inv.client
	c.mu.Lock()
	if inv.progress == nil && c.node.Has(wire.CapProgress) {
		inv.progress = &reporter{send: func(p Progress) {
			text := strings.ToValidUTF8(p.Text[:min(len(p.Text), wire.MaxProgressText)], "")
			f := &wire.ProgressFrame{ID: inv.id, Done: min(p.Done, wire.MaxUint), Total: min(p.Total, wire.MaxUint), Text: []byte(text)}
			inv.client.conn.Send(f) // if it fails the connection does
		}}
	}
	r := inv.progress
	c.mu.Unlock()
	if r != nil {
		r.report(p)
	}
}

// handleProgress passes a report on to the call's request. The client's mu is held.
func (c *Client) handleProgress(f *wire.ProgressFrame) error {
	call, err := c.outgoing(f, f.ID)
	if call != nil && call.req.Progress != nil {
		call.req.Progress(Progress{Done: f.Done, Total: f.Total, Text: string(f.Text)})
	}
	return err
}

package node

import (
	"context"
	"hash/maphash"
	"slices"
	"time"

	"fbus/bus"
	"fbus/bus/jobs"
	"fbus/bus/trust"
)

const (
	// watchPause is how often a watcher is told what has changed, at most, unless it asks for another pace.
	watchPause = 50 * time.Millisecond
	// maxWatchedJobs bounds the unfinished jobs of a snapshot, in each state.
	maxWatchedJobs = 10_000
)

// Lines of fbus.watch. Those of calls, jobs and tickets have the fields of their lists.
type (
	functionChange struct {
		bus.Change
		bus.FunctionInfo
		bus.Demand
		Workers *struct{} `json:"workers,omitempty"` // they have lines of their own
	}
	workerChange struct {
		bus.Change
		Function string `json:"function"`
		bus.WorkerInfo
	}
	callChange struct {
		bus.Change
		bus.CallInfo
	}
	jobChange struct {
		bus.Change
		*bus.JobInfo
	}
	jobGone struct {
		bus.Change
		ID string `json:"id"`
	}
	ticketChange struct {
		bus.Change
		bus.TicketInfo
	}
)

// watcher is one call of fbus.watch.
type watcher struct {
	*asked
	types   []string          // empty: all
	relays  bool              // lines of relays, too
	tickets map[string]uint64 // by serial: the hash of the line that was sent last
	seed    maphash.Seed
}

// serveWatch sends what the caller may see of the node, and then what changes, until the call is
// cancelled. A caller that reads too slowly gets a new snapshot after a line "resync".
func serveWatch(ctx context.Context, q *asked) error {
	d := struct {
		Types  []string `json:"types"`
		Every  int      `json:"every"`
		Relays bool     `json:"relays"`
	}{Every: int(watchPause / time.Millisecond), Relays: true}
	if err := q.document(&d); err != nil {
		return err
	}
	pause := time.Duration(d.Every) * time.Millisecond
	if d.Every < 1 || d.Every > 60_000 || pause < watchPause && !q.peer.relay() {
		return usageError("fbus.watch: every must be from 50 to 60000 milliseconds, for relays from 1")
	}
	for _, t := range d.Types {
		if !slices.Contains([]string{"function", "worker", "call", "job", "ticket"}, t) {
			return usageError("fbus.watch: invalid type %q: it must be function, worker, call, job or ticket", t)
		}
	}
	w := &watcher{asked: q, types: d.Types, relays: d.Relays, tickets: map[string]uint64{}, seed: maphash.MakeSeed()}
	ch := &q.node.changes
	stamp := ch.watch(w.relays)
	defer ch.unwatch(w.relays)
	err := w.snapshot()
	for err == nil {
		c := ch.since(stamp, w.relays)
		switch {
		case c.stamp == stamp:
			select {
			case <-c.more:
				if pause < watchPause {
					continue // a relay looks for a slot at once
				}
			case <-ctx.Done():
			}
		case c.lost:
			q.line(bus.Change{Type: "resync"})
			clear(w.tickets)
			err = w.snapshot()
		default:
			err = w.changed(&c)
		}
		stamp = c.stamp
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// wants reports whether the caller wants lines of that type.
func (w *watcher) wants(t string) bool { return len(w.types) == 0 || slices.Contains(w.types, t) }

// send sends what flush has left.
func (w *watcher) send() error {
	w.pass()
	_, err := w.Stdout.Write(w.out.Bytes())
	w.out.Reset()
	return err
}

// snapshot sends everything as it is now.
func (w *watcher) snapshot() error {
	w.take()
	defer w.pass()
	w.unserved = nil // that may have changed
	n := w.node
	if w.wants("function") || w.wants("worker") {
		for f := range n.functionsFor(w.ctx, w.peer, nil, slowPace) {
			if err := w.function(f, true); err != nil {
				return err
			}
		}
	}
	if w.wants("call") {
		for c := range n.callsFor(w.ctx, w.peer, slowPace) {
			if err := w.put(callChange{bus.Change{Type: "call"}, c}); err != nil {
				return err
			}
		}
	}
	if w.wants("job") && n.cfg.Jobs != nil {
		for _, state := range []jobs.State{jobs.Running, jobs.Queued, jobs.Delayed} {
			filter, err := w.filter(&bus.JobQuery{State: string(state)}, (*Peer).monitor)
			if err == nil {
				_, err = n.cfg.Jobs.List(w.ctx, &jobs.Query{Filter: filter, Limit: maxWatchedJobs, Newest: true}, w.job)
			}
			if err != nil {
				return err
			}
		}
	}
	if err := w.ticketLines(); err != nil {
		return err
	}
	return w.send()
}

// changed sends what has changed as it is now.
func (w *watcher) changed(c *changed) error {
	w.take()
	defer w.pass()
	w.unserved = nil
	n := w.node
	if w.wants("function") {
		names := slices.DeleteFunc(c.functions, func(name string) bool { return !w.peer.sees(name) })
		for some := range slices.Chunk(names, slowPace.portion) {
			for _, f := range n.describe(w.ctx, w.peer, some, false, slowPace) {
				if err := w.function(f, false); err != nil {
					return err
				}
			}
		}
	}
	if w.wants("worker") {
		for _, key := range c.workers {
			if w.peer.sees(key.function) {
				if err := w.put(n.workerOf(key)); err != nil {
					return err
				}
			}
		}
	}
	if w.wants("call") {
		for _, call := range c.calls {
			if line, ok := n.changeOf(w.peer, call); ok {
				if err := w.put(line); err != nil {
					return err
				}
			}
		}
	}
	if w.wants("job") && n.cfg.Jobs != nil {
		for _, id := range c.jobs {
			if err := w.jobByID(id); err != nil {
				return err
			}
		}
	}
	if c.tickets {
		if err := w.ticketLines(); err != nil {
			return err
		}
	}
	return w.send()
}

// function sends a function, and its workers if wanted.
func (w *watcher) function(f bus.FunctionInfo, workers bool) error {
	if w.wants("function") {
		if err := w.put(functionChange{Change: bus.Change{Type: "function", Gone: !present(&f)}, FunctionInfo: f, Demand: f.Demand}); err != nil {
			return err
		}
	}
	if workers && w.wants("worker") {
		for _, info := range f.Workers {
			if info.Relay && !w.relays {
				continue
			}
			if err := w.put(workerChange{bus.Change{Type: "worker"}, f.Name, info}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *watcher) job(j *jobs.Job, i *bus.JobInfo) error {
	w.note(j, i, false)
	return w.put(jobChange{bus.Change{Type: "job"}, i})
}

// jobByID sends a job if the caller may see it. That one was deleted is for administrators:
// whose it was is not known any more.
func (w *watcher) jobByID(id jobs.ID) error {
	store := w.node.cfg.Jobs
	j, err := store.Get(id)
	switch {
	case err == nil && (w.peer.monitor() || w.peer.posted(id, &j.Poster)):
		return w.job(j, store.Info(j, false))
	case err != nil && w.peer.monitor():
		return w.put(jobGone{bus.Change{Type: "job", Gone: true}, id.String()})
	}
	return w.ctx.Err()
}

// ticketLines sends the tickets that have changed: to administrators all, to relays tokens. A second
// node knows the tokens that were admitted there.
func (w *watcher) ticketLines() (err error) {
	if !w.wants("ticket") || !w.peer.admin() && !w.peer.relay() {
		return nil
	}
	var records []trust.Record
	switch {
	case w.node.cfg.Authority != nil:
		records, err = w.node.cfg.Authority.Tickets()
	case w.node.first != nil:
		records = w.node.first.records()
	}
	if err != nil {
		return err
	}
	connected := w.node.connected()
	now := trust.Now()
	for _, r := range records {
		if r.Kind != trust.Token && !w.peer.admin() {
			continue
		}
		before := w.out.Len()
		w.line(ticketChange{bus.Change{Type: "ticket", Gone: !r.Live(now)}, bus.TicketInfo{Record: r, Connected: connected[r.Serial]}})
		sum := maphash.Bytes(w.seed, w.out.Bytes()[before:])
		if w.tickets[r.Serial] == sum {
			w.out.Truncate(before)
		}
		w.tickets[r.Serial] = sum
		if err := w.flush(); err != nil {
			return err
		}
	}
	return nil
}

// workerOf is a worker's offer as it is now.
func (n *Node) workerOf(key workerKey) workerChange {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := key.session
	if o := s.offers[key.function]; o != nil && !s.gone {
		return workerChange{bus.Change{Type: "worker"}, key.function, o.info()}
	}
	gone := bus.WorkerInfo{Name: s.name, ID: string(s.prefix), Identity: s.peer.Caller}
	return workerChange{bus.Change{Type: "worker", Gone: true}, key.function, gone}
}

// changeOf is a call as it is now; ok is false if it is not the peer's business.
func (n *Node) changeOf(p *Peer, c *call) (line callChange, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !p.watches(c) {
		return line, false
	}
	line = callChange{bus.Change{Type: "call"}, c.info()}
	if c.state == done {
		line.State, line.Gone = "ended", true
	}
	return line, true
}

package node

import (
	"context"
	"strings"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/jobs"
	"fbus/bus/wire"
)

// HoldWorkers has workers get nothing new whose names match one of the globs, and all others
// get calls and jobs again.
func (n *Node) HoldWorkers(on []string) {
	n.locked(func(b *wire.Batch) {
		n.heldOn = nil
		for _, text := range on {
			glob, _ := wire.ParseOn(text) // it was checked when it was held
			n.heldOn = append(n.heldOn, glob)
		}
		for _, s := range n.sessions {
			by := n.holds(s)
			if s.heldBy == by {
				continue
			}
			s.heldBy = by
			for _, o := range s.offers {
				o.fn.fix(o)
				n.changes.worker(o)
				o.fill(b)
			}
		}
	})
}

// holds returns the glob by which a session's worker is held; "": it is not. n.mu is held.
func (n *Node) holds(s *session) string {
	for _, on := range n.heldOn {
		if !s.internal && s.conn != nil && on.Match(s.name, "") {
			return on.String()
		}
	}
	return ""
}

// serveHold holds functions or workers, and lists what is held.
func serveHold(_ context.Context, q *asked) error {
	h, err := q.holds()
	if err == nil && len(h.Functions)+len(h.On) > 0 {
		err = q.node.cfg.Jobs.Hold(h)
	}
	if err != nil {
		return err
	}
	q.held(h.Functions)
	return nil
}

// serveRelease ends that, and lists what is still held.
func serveRelease(_ context.Context, q *asked) error {
	h, err := q.holds()
	if err == nil && len(h.Functions)+len(h.On) == 0 {
		err = usageError("fbus.release takes functions, or on")
	}
	if err == nil {
		err = q.node.cfg.Jobs.Release(h)
	}
	if err != nil {
		return err
	}
	q.held(h.Functions)
	return nil
}

// holds reads the document of a call.
func (q *asked) holds() (h jobs.Holds, err error) {
	d := bus.HoldQuery{}
	if err := q.document(&d); err != nil {
		return h, err
	}
	for _, name := range d.Functions {
		switch {
		case !args.ValidName(name):
			return h, usageError("%s: invalid function name %q", q.Function, args.Shown(name))
		case reserved(name):
			return h, usageError("%s: the node's own functions run no jobs", name)
		}
	}
	h.Functions = d.Functions
	if d.On != "" {
		if _, err := wire.ParseOn(d.On); err != nil || strings.HasPrefix(d.On, "#") {
			return h, usageError("%s: invalid glob %q", q.Function, args.Shown(d.On))
		}
		h.On = []string{d.On}
	}
	return h, nil
}

// held lists what is held, after a change of some functions.
func (q *asked) held(changed []string) {
	n, h := q.node, q.node.cfg.Jobs.Holds()
	for _, name := range changed {
		n.changes.function(name)
	}
	for _, name := range h.Functions {
		i := bus.HeldInfo{Function: name}
		n.mu.Lock()
		if fn := n.functions[name]; fn != nil {
			i.Workers = fn.count()
		}
		n.mu.Unlock()
		q.line(i)
	}
	for _, text := range h.On {
		on, _ := wire.ParseOn(text)
		i := bus.HeldInfo{On: text}
		n.mu.Lock()
		for _, s := range n.sessions {
			if !s.internal && len(s.offers) > 0 && on.Match(s.name, "") {
				i.Workers++
			}
		}
		n.mu.Unlock()
		q.line(i)
	}
}

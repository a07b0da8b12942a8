package node

import (
	"cmp"
	"context"
	"maps"
	"runtime"
	"runtime/metrics"
	"slices"
	"time"

	"fbus/bus"
	"fbus/bus/args"
	"fbus/bus/trust"
	"fbus/bus/wire"
)

const (
	// maxStats is how many functions have counters of their own. They stay when the
	// last worker has gone.
	maxStats = 10000
	// maxEnds is how many ways to end are counted apart for one function: workers choose
	// the codes.
	maxEnds = 64
	// expirySoon is before which time a ticket counts as expiring.
	expirySoon = 30 * 24 * time.Hour
)

// counters are the node's own. Its mu protects them.
type counters struct {
	stats          map[string]*stats // by function; "" for those that have none of their own
	statsOf        map[string]int    // how many of these an identity's offers have made
	in, out        uint64            // bytes of calls that ended
	refusedCalls   map[string]uint64 // by code
	refusedEntries map[string]uint64 // by code
}

func newCounters() counters {
	return counters{
		stats: map[string]*stats{"": {ends: map[end]uint64{}}}, statsOf: map[string]int{},
		refusedCalls: map[string]uint64{}, refusedEntries: map[string]uint64{},
	}
}

// stats counts the calls of one function that have ended. The node's mu protects it.
type stats struct {
	by          string // the identity that has made the first offer
	ends        map[end]uint64
	waited, ran histogram
	in, out     uint64
	success     time.Time // of the last call with status 0
}

type end struct {
	source args.Source
	status int
	code   string
}

// histogram counts durations; the last bucket has no bound.
type histogram struct {
	sum     time.Duration
	buckets [len(bus.MetricBounds) + 1]uint64
}

func (h *histogram) add(d time.Duration) {
	h.sum += d
	i := 0
	for s := d.Seconds(); i < len(bus.MetricBounds) && s > bus.MetricBounds[i]; i++ {
	}
	h.buckets[i]++
}

// report returns the histogram with cumulative buckets.
func (h *histogram) report() bus.Histogram {
	r := bus.Histogram{Sum: h.sum.Seconds(), Buckets: make([]uint64, len(h.buckets))}
	for i, k := range h.buckets {
		r.Count += k
		r.Buckets[i] = r.Count
	}
	return r
}

// countersOf returns the counters of a function. An offer makes new ones if the identity has not made
// too many: by is nil without an offer.
func (n *Node) countersOf(name string, by *identity) *stats {
	if s := n.stats[name]; s != nil {
		return s
	}
	if by == nil || n.allows(by, bound{max: maxStats, used: int64(len(n.stats))}, 1, func(id *identity) int64 { return int64(n.statsOf[id.name]) }) != nil {
		return n.stats[""]
	}
	s := &stats{ends: map[end]uint64{}, by: by.name}
	n.stats[name] = s
	n.statsOf[by.name]++
	return s
}

// dropUnused drops the counters of a function that has gone and was never called.
func (n *Node) dropUnused(fn *function) {
	if s := fn.stats; len(s.ends) == 0 && n.stats[fn.name] == s {
		delete(n.stats, fn.name)
		if n.statsOf[s.by]--; n.statsOf[s.by] == 0 {
			delete(n.statsOf, s.by)
		}
	}
}

// count adds a call that has ended, or was refused.
func (c *call) count(f *wire.EndFrame) {
	n, s := c.node, c.fn.stats
	if c.state == created {
		n.refusedCalls[string(f.Code)]++
	}
	e := end{f.Source, int(f.Status), string(f.Code)}
	if _, known := s.ends[e]; !known && len(s.ends) >= maxEnds {
		e = end{f.Source, int(f.Status), "other"}
		if f.Source != args.FromBus {
			e.status = 0
		}
	}
	s.ends[e]++
	now := time.Now()
	if c.offer != nil {
		s.waited.add(c.started.Sub(c.arrived))
		s.ran.add(now.Sub(c.started))
	} else {
		s.waited.add(now.Sub(c.arrived))
	}
	s.in += uint64(c.flows[wire.Input].passed)
	s.out += uint64(c.flows[wire.Output].passed)
	n.in += uint64(c.flows[wire.Input].passed)
	n.out += uint64(c.flows[wire.Output].passed)
	if f.Source == args.FromProgram && f.Status == 0 {
		s.success = now.UTC().Round(0)
	}
}

// totals returns how many calls ended with a program's status 0, and how many otherwise. A
// call that found no room is neither: it is often made again, by fbus pipe and map themselves.
func (s *stats) totals() (done, failed uint64) {
	for e, k := range s.ends {
		switch {
		case e.source == args.FromProgram && e.status == 0 && e.code != "other":
			done += k
		case e.source != args.FromBus || e.code != args.CodeBusy:
			failed += k
		}
	}
	return done, failed
}

func serveMetrics(_ context.Context, q *asked) error {
	q.line(q.node.Metrics())
	return nil
}

// Metrics returns the node's counters and gauges.
func (n *Node) Metrics() bus.Metrics {
	memory := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(memory)
	m := bus.Metrics{Time: time.Now().UTC(), Bounds: bus.MetricBounds[:], Functions: []bus.FunctionMetrics{}}
	m.Node = bus.NodeMetrics{
		Instance: n.instance, Started: n.started, Goroutines: runtime.NumGoroutine(), Memory: memory[0].Value.Uint64() - memory[1].Value.Uint64(),
	}
	m.Node.TicketsExpiring, m.Node.TicketExpires = n.expiring()
	if n.cfg.Jobs != nil {
		states, size := n.cfg.Jobs.Counts()
		m.Node.Jobs, m.Node.StoreBytes = map[string]int64{}, size
		for state, k := range states {
			m.Node.Jobs[string(state)] = k
		}
	}
	n.mu.Lock()
	m.Node.Draining, m.Node.Connections, m.Node.Open, m.Node.Buffers = n.draining, n.guests, n.open, n.budget.Used()
	m.Node.In, m.Node.Out = n.in, n.out
	m.Node.RefusedCalls, m.Node.RefusedEntries = maps.Clone(n.refusedCalls), maps.Clone(n.refusedEntries)
	names := slices.Collect(maps.Keys(n.stats))
	n.mu.Unlock()
	n.eachLocked(slowPace, len(names), func(i int) {
		if s := n.stats[names[i]]; s != nil {
			m.Functions = append(m.Functions, n.functionMetrics(names[i], s))
		}
	})
	slices.SortFunc(m.Functions, func(a, b bus.FunctionMetrics) int { return cmp.Compare(a.Name, b.Name) })
	return m
}

func (n *Node) functionMetrics(name string, s *stats) bus.FunctionMetrics {
	m := bus.FunctionMetrics{Name: name, Calls: []bus.EndCount{}, Waited: s.waited.report(), Ran: s.ran.report(), In: s.in, Out: s.out, Success: s.success}
	for e, k := range s.ends {
		m.Calls = append(m.Calls, bus.EndCount{Source: e.source.String(), Status: e.status, Code: e.code, Count: k})
	}
	slices.SortFunc(m.Calls, func(a, b bus.EndCount) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Status, b.Status))
	})
	if n.source != nil && name != "" {
		m.Ready = n.source.Ready(name)
	}
	fn := n.functions[name]
	if fn == nil {
		return m
	}
	m.Queued = fn.queue.n
	for _, o := range fn.offers.list {
		m.Slots += o.slots
		m.Busy += o.busy
	}
	if at := fn.queue.oldest(); !at.IsZero() {
		m.Oldest = time.Since(at).Seconds()
	}
	return m
}

// expiring counts the live tickets that expire soon, and returns when the first of all expires; -1: the
// list cannot be read, or is kept elsewhere.
func (n *Node) expiring() (count int, first time.Time) {
	if n.cfg.Authority == nil {
		return -1, first
	}
	records, err := n.cfg.Authority.Tickets()
	if err != nil {
		return -1, first
	}
	now := trust.Now()
	for i := range records {
		r := &records[i]
		if !r.Live(now) {
			continue
		}
		if r.Expires.Sub(now) < expirySoon {
			count++
		}
		if first.IsZero() || r.Expires.Before(first) {
			first = r.Expires
		}
	}
	return count, first
}

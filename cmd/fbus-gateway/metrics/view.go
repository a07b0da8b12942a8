package metrics

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("fbus_"+name, help, labels, nil)
}

// The metrics of a node. docs/gateway.md lists them.
var (
	up           = desc("up", "Whether the node has answered.")
	started      = desc("start_time_seconds", "When the node started.")
	draining     = desc("draining", "Whether the node is shutting down.")
	connections  = desc("connections", "Connections to the node.")
	open         = desc("calls_open", "Calls queued or running.")
	buffers      = desc("buffer_bytes", "Bytes that the node holds for its peers.")
	refused      = desc("refused_connections_total", "Connections that were not admitted.", "code")
	refusedCalls = desc("refused_calls_total", "Calls that were refused before they were queued or run.", "code")
	jobStates    = desc("jobs", "Posted jobs.", "state")
	oldestJob    = desc("oldest_job_seconds", "How long the oldest queued job has waited; 0 if none is queued.")
	storeBytes   = desc("store_bytes", "Size of the store of jobs on disk.")
	expiring     = desc("tickets_expiring", "Valid tickets and tokens that expire within 30 days.")
	ticketExpiry = desc("ticket_expiry_timestamp_seconds", "When the first of the valid tickets and tokens expires.")
	tokenExpiry  = desc("token_expiry_timestamp_seconds", "When a token expires.", "token")
	goroutines   = desc("goroutines", "Goroutines of the node.")
	memory       = desc("memory_bytes", "Bytes that the node has of the system.")
	slots        = desc("slots", "Slots of all workers of this node.", "function")
	busy         = desc("busy", "Slots that are taken.", "function")
	elsewhere    = desc("slots_elsewhere", "Slots at other nodes of the mesh.", "function")
	workers      = desc("workers", "Workers that offer the function.", "function")
	queued       = desc("queued", "Calls that wait for a slot.", "function")
	ready        = desc("jobs_ready", "Jobs that could run now.", "function")
	oldestCall   = desc("oldest_call_seconds", "How long the oldest waiting call has waited; 0 if none waits.", "function")
	success      = desc("last_success_timestamp_seconds", "When a call last ended with exit status 0.", "function")
	calls        = desc("calls_total", "Calls that ended, by how: code is exit, a signal, or a code of fbus.", "function", "source", "code")
	exits        = desc("exits_total", "Calls whose program has exited, by its exit status.", "function", "status")
	waited       = desc("waited_seconds", "How long calls waited for a worker, or until their end.", "function")
	ran          = desc("ran_seconds", "How long calls ran.", "function")
	inputBytes   = desc("input_bytes_total", "Bytes of input of calls that ended.", "function")
	outputBytes  = desc("output_bytes_total", "Bytes of output of calls that ended.", "function")
	descriptions = []*prometheus.Desc{
		up, started, draining, connections, open, buffers, refused, refusedCalls, jobStates, oldestJob, storeBytes, expiring, ticketExpiry, tokenExpiry,
		goroutines, memory, slots, busy, elsewhere, workers, queued, ready, oldestCall, success, calls, exits, waited, ran, inputBytes, outputBytes,
	}
)

// view is what one scrape is shown.
type view struct {
	metrics  *Metrics
	snapshot *snapshot                  // nil: the node did not answer
	may      func(function string) bool // nil: all functions are shown
	monitor  bool
}

// Describe sends all descriptions.
func (v *view) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descriptions {
		ch <- d
	}
}

// Collect sends all metrics.
func (v *view) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	if v.snapshot == nil {
		gauge(up, 0)
		return
	}
	gauge(up, 1)
	if v.monitor {
		v.node(gauge, counter)
	}
	bounds := v.snapshot.Bounds
	histogram := func(d *prometheus.Desc, count uint64, sum float64, buckets []uint64, function string) {
		upTo := map[float64]uint64{}
		for i := range min(len(bounds), len(buckets)) {
			upTo[bounds[i]] = buckets[i]
		}
		ch <- prometheus.MustNewConstHistogram(d, count, sum, upTo, function)
	}
	for name, t := range v.totals() {
		gauge(slots, float64(t.Slots), name)
		gauge(busy, float64(t.Busy), name)
		gauge(workers, float64(t.workers), name)
		gauge(elsewhere, float64(t.elsewhere), name)
		gauge(queued, float64(t.Queued), name)
		gauge(ready, float64(t.Ready), name)
		gauge(oldestCall, t.Oldest, name)
		if !t.Success.IsZero() {
			gauge(success, seconds(t.Success), name)
		}
		for end, count := range t.ends {
			counter(calls, count, name, end[0], end[1])
		}
		for status, count := range t.exits {
			counter(exits, count, name, strconv.Itoa(status))
		}
		histogram(waited, t.Waited.Count, t.Waited.Sum, t.Waited.Buckets, name)
		histogram(ran, t.Ran.Count, t.Ran.Sum, t.Ran.Buckets, name)
		counter(inputBytes, t.In, name)
		counter(outputBytes, t.Out, name)
	}
}

// totals returns the functions by the names under which they are shown.
func (v *view) totals() map[string]*total {
	s := v.snapshot
	label, totals := v.metrics.label(s.Functions), map[string]*total{}
	for i := range s.Functions {
		f := &s.Functions[i]
		switch {
		case strings.HasPrefix(f.Name, "fbus."): // the node's own: their many slots say nothing
			continue
		case v.may == nil:
		case f.Name == "", !v.may(f.Name): // without a name: calls of many names, most of which nobody has ever offered
			continue
		}
		name := label(f.Name)
		t := totals[name]
		if t == nil {
			t = &total{ends: map[[2]string]uint64{}, exits: map[int]uint64{}}
			totals[name] = t
		}
		t.add(f)
		t.workers, t.elsewhere = t.workers+s.workers[f.Name], t.elsewhere+s.elsewhere[f.Name]
	}
	return totals
}

// node sends what is about the node as a whole.
func (v *view) node(gauge func(d *prometheus.Desc, value float64, labels ...string), counter func(d *prometheus.Desc, value uint64, labels ...string)) {
	s, n := v.snapshot, &v.snapshot.Node
	gauge(started, seconds(n.Started))
	gauge(draining, map[bool]float64{true: 1}[n.Draining])
	gauge(connections, float64(n.Connections))
	gauge(open, float64(n.Open))
	gauge(buffers, float64(n.Buffers))
	for code, count := range n.RefusedEntries {
		counter(refused, count, code)
	}
	for code, count := range n.RefusedCalls {
		counter(refusedCalls, count, code)
	}
	if n.Jobs != nil {
		for _, state := range []string{"queued", "delayed", "running", "done", "dead", "cancelled"} {
			gauge(jobStates, float64(n.Jobs[state]), state)
		}
		gauge(storeBytes, float64(n.StoreBytes))
		age := 0.0
		if j := s.oldest; j != nil {
			since := j.Posted
			if j.Due.After(since) {
				since = j.Due
			}
			age = max(0, s.Time.Sub(since).Seconds())
		}
		gauge(oldestJob, age)
	}
	if n.TicketsExpiring >= 0 {
		gauge(expiring, float64(n.TicketsExpiring))
	}
	if !n.TicketExpires.IsZero() {
		gauge(ticketExpiry, seconds(n.TicketExpires))
	}
	if v.metrics.Tokens != nil {
		tokens := v.metrics.Tokens()
		names := slices.Sorted(maps.Keys(tokens))
		for _, name := range names[:min(len(names), maxNames)] {
			gauge(tokenExpiry, seconds(tokens[name]), name)
		}
	}
	gauge(goroutines, float64(n.Goroutines))
	gauge(memory, float64(n.Memory))
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

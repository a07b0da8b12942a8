// Package metrics shows a node, and the gateway in front of it, to Prometheus.
package metrics

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"fbus/bus"
	"fbus/bus/trust"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// maxNames bounds the functions, and the tokens, that have time series of their own.
	maxNames = 1000
	// other is the function's name in the series of those without their own.
	other = "other"
	// askTime bounds the wait for the node. Prometheus gives up after 10 seconds.
	askTime = 8 * time.Second
)

// Metrics serves /metrics.
type Metrics struct {
	// Call makes calls with the gateway's own rights, as [bus.Client.Call] does.
	Call func(ctx context.Context, req *bus.Request) (bus.Result, error)
	// Globs name the functions with series of their own; empty: all. All others are added up as "other".
	Globs []string
	// Tokens, if set, returns when each valid token expires, by its name.
	Tokens func() map[string]time.Time
	// Note takes messages about faults.
	Note func(format string, a ...any)

	own own

	mu    sync.Mutex      // protects names
	names map[string]bool // functions with series of their own. None goes, so that no counter falls
}

// Serve answers a scrape by a caller that sees some functions; may is nil for one that sees all. Only a
// monitor is shown what is not about a function.
func (m *Metrics) Serve(w http.ResponseWriter, r *http.Request, may func(function string) bool, monitor bool) {
	ctx, cancel := context.WithTimeout(r.Context(), askTime)
	defer cancel()
	s, err := m.ask(ctx, monitor)
	if err != nil && r.Context().Err() == nil {
		m.Note("metrics: %v", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(&view{metrics: m, snapshot: s, may: may, monitor: monitor})
	if monitor {
		registry.MustRegister(m.own.collectors()...)
	}
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}).ServeHTTP(w, r)
}

// snapshot is what the node answers.
type snapshot struct {
	bus.Metrics
	workers   map[string]int // by function
	elsewhere map[string]int // slots at other nodes
	oldest    *bus.JobInfo   // that is queued; nil: there is none, or it was not asked for
}

// ask asks the node. The snapshot is nil if it does not answer.
func (m *Metrics) ask(ctx context.Context, jobs bool) (*snapshot, error) {
	s := &snapshot{workers: map[string]int{}, elsewhere: map[string]int{}}
	err := m.lines(ctx, "fbus.metrics", bus.Args{}, func(line []byte) error { return json.Unmarshal(line, &s.Metrics) })
	if err != nil {
		return nil, err
	}
	err = m.lines(ctx, "fbus.functions", bus.Args{}, func(line []byte) error {
		var f bus.FunctionInfo
		err := json.Unmarshal(line, &f)
		s.workers[f.Name], s.elsewhere[f.Name] = len(f.Workers), f.Elsewhere
		return err
	})
	if err == nil && jobs && s.Node.Jobs["queued"] > 0 {
		err = m.lines(ctx, "fbus.jobs", bus.JSON([]byte(`{"state":"queued","limit":1}`)), func(line []byte) error {
			var j bus.JobInfo
			err := json.Unmarshal(line, &j)
			if j.ID != "" {
				s.oldest = &j
			}
			return err
		})
	}
	return s, err
}

// lines calls a function of the node and visits the lines of its answer.
func (m *Metrics) lines(ctx context.Context, function string, a bus.Args, visit func(line []byte) error) error {
	var out bytes.Buffer
	if _, err := m.Call(ctx, &bus.Request{Function: function, Args: a, Stdout: &out}); err != nil {
		return err
	}
	for line := range bytes.Lines(out.Bytes()) {
		if err := visit(line); err != nil {
			return err
		}
	}
	return nil
}

// label returns the name under which each function is shown. A function that was shown under its own keeps
// that, so that no counter falls.
func (m *Metrics) label(functions []bus.FunctionMetrics) func(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names == nil {
		m.names = map[string]bool{}
	}
	for i := range functions {
		if name := functions[i].Name; len(m.names) < maxNames && name != "" && name != other && !strings.HasPrefix(name, "fbus.") && m.matches(name) {
			m.names[name] = true
		}
	}
	names := maps.Clone(m.names)
	return func(name string) string {
		if names[name] {
			return name
		}
		return other
	}
}

func (m *Metrics) matches(name string) bool {
	return len(m.Globs) == 0 || slices.ContainsFunc(m.Globs, func(glob string) bool {
		ok, _ := path.Match(glob, name)
		return ok
	})
}

// CheckGlob checks a glob of functions.
func CheckGlob(glob string) error { return trust.CheckGlob(glob) }

// total adds up the functions that are shown under one name.
type total struct {
	bus.FunctionMetrics
	workers, elsewhere int
	ends               map[[2]string]uint64 // by source and code
	exits              map[int]uint64       // by the program's exit status
}

func (t *total) add(f *bus.FunctionMetrics) {
	for _, c := range f.Calls {
		t.ends[[2]string{c.Source, printable(c.Code)}] += c.Count
		if c.Source == "program" && c.Code != "other" {
			t.exits[c.Status] += c.Count
		}
	}
	t.Waited, t.Ran = sum(t.Waited, f.Waited), sum(t.Ran, f.Ran)
	t.In, t.Out = t.In+f.In, t.Out+f.Out
	t.Queued, t.Ready, t.Slots, t.Busy = t.Queued+f.Queued, t.Ready+f.Ready, t.Slots+f.Slots, t.Busy+f.Busy
	t.Oldest = max(t.Oldest, f.Oldest)
	if f.Success.After(t.Success) {
		t.Success = f.Success
	}
}

func sum(a, b bus.Histogram) bus.Histogram {
	if a.Buckets == nil {
		a.Buckets = make([]uint64, len(b.Buckets))
	}
	for i := range min(len(a.Buckets), len(b.Buckets)) {
		a.Buckets[i] += b.Buckets[i]
	}
	a.Sum, a.Count = a.Sum+b.Sum, a.Count+b.Count
	return a
}

// printable makes a text that others have chosen fit for a label.
func printable(text string) string {
	for _, c := range []byte(text) {
		if c < ' ' || c > '~' {
			return other
		}
	}
	return cmp.Or(text, "exit")
}

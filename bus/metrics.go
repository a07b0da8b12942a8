package bus

import "time"

// MetricBounds are the upper bounds of a [Histogram]'s buckets, in seconds. One more bucket
// has no bound.
var MetricBounds = [...]float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 60, 300, 3600}

// Metrics is the answer of fbus.metrics. Counters begin at 0 when the node starts, and only
// rise.
type Metrics struct {
	Time      time.Time         `json:"time"`
	Node      NodeMetrics       `json:"node"`
	Bounds    []float64         `json:"bounds"`    // of all histograms: MetricBounds
	Functions []FunctionMetrics `json:"functions"` // by name
}

// NodeMetrics are about the node as a whole.
type NodeMetrics struct {
	Instance string    `json:"instance"` // another one: all counters have begun again
	Started  time.Time `json:"started"`
	Draining bool      `json:"draining"`

	Connections int    `json:"connections"`
	Open        int    `json:"open"`    // calls queued or running
	Buffers     int64  `json:"buffers"` // bytes that the node holds for its peers
	In          uint64 `json:"in"`      // counter: bytes of input of calls that ended
	Out         uint64 `json:"out"`     // counter: bytes of their output

	RefusedEntries map[string]uint64 `json:"refused_entries"` // counter: connections not let in, by code
	RefusedCalls   map[string]uint64 `json:"refused_calls"`   // counter: calls never queued nor run, by code

	Jobs       map[string]int64 `json:"jobs"`        // by state; null without a store
	StoreBytes int64            `json:"store_bytes"` // on disk

	TicketsExpiring int `json:"tickets_expiring"` // live tickets that expire within 30 days; -1: not known

	Goroutines int    `json:"goroutines"`
	Memory     uint64 `json:"memory"` // bytes that the process has of the system
}

// FunctionMetrics are about one function. That of the name "" counts names that nobody
// has offered, and for those beyond 10000.
type FunctionMetrics struct {
	Name   string     `json:"name"`
	Calls  []EndCount `json:"calls"`  // counters: calls that ended, by how
	Waited Histogram  `json:"waited"` // until a worker had them, or until the end
	Ran    Histogram  `json:"ran"`    // with the last worker
	In     uint64     `json:"in"`     // counter: bytes of their input
	Out    uint64     `json:"out"`    // counter: bytes of their output

	Queued  int       `json:"queued"`           // calls that wait
	Ready   int       `json:"ready"`            // jobs that could run now, about
	Oldest  float64   `json:"oldest"`           // seconds that the oldest call has waited
	Slots   int       `json:"slots"`            // of all workers
	Busy    int       `json:"busy"`             // of these, taken
	Success time.Time `json:"success,omitzero"` // when a call last ended with a program's status 0
}

// EndCount counts the calls that ended in one way.
type EndCount struct {
	Source string `json:"source"` // "program", "signal" or "fbus"
	Status int    `json:"status"`
	Code   string `json:"code"`
	Count  uint64 `json:"count"`
}

// Histogram counts durations in seconds. Buckets[i] counts those of at most MetricBounds[i], the
// last one counts all.
type Histogram struct {
	Sum     float64  `json:"sum"`
	Count   uint64   `json:"count"`
	Buckets []uint64 `json:"buckets"`
}

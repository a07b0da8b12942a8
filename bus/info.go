package bus

import (
	"encoding/json"
	"time"

	"fbus/bus/trust"
)

// LogEntry is one line of a node's call log, as the function fbus.log answers it. Fields
// that do not apply to an event are left out of its JSON; the end of a call has its
// numbers even if they are 0.
type LogEntry struct {
	Seq      uint64    `json:"seq"`                // rises by one, also over restarts
	Time     time.Time `json:"time"`               // when it happened: UTC, microseconds
	Event    string    `json:"event"`              // "call", "refused", "invited", "joined", "renewed", "revoked", "removed", "dropped", …
	Call     string    `json:"call,omitempty"`     // the call's id
	Relayed  string    `json:"relayed,omitempty"`  // the id that a relay has given it
	Caller   string    `json:"caller,omitempty"`   // "ticket:ci", "uid:1000"
	From     string    `json:"from,omitempty"`     // the caller's address, over TCP
	Function string    `json:"function,omitempty"` // its name
	Worker   string    `json:"worker,omitempty"`   // empty: the call never reached one
	Waited   float64   `json:"waited,omitempty"`   // seconds until a worker had it, or until the end
	Ran      float64   `json:"ran,omitempty"`      // seconds with the last worker
	In       int64     `json:"in,omitempty"`       // bytes of input
	Out      int64     `json:"out,omitempty"`      // bytes of stdout
	Source   string    `json:"source,omitempty"`   // of a call's end: "program", "signal" or "fbus"
	Status   int       `json:"status,omitempty"`   // exit status
	Code     string    `json:"code,omitempty"`     // "exit", a signal's name, or fbus's code
	Message  string    `json:"message,omitempty"`  // for a person
	Trace    string    `json:"trace,omitempty"`    // W3C traceparent of the call
	Name     string    `json:"name,omitempty"`     // of the ticket concerned
	Serial   string    `json:"serial,omitempty"`   // of the ticket concerned
	More     uint64    `json:"more,omitempty"`     // how many such ends or refusals this entry stands for
	Dropped  uint64    `json:"dropped,omitempty"`  // how many entries are missing here
}

// FunctionInfo is a function on the bus, a line of fbus.functions.
type FunctionInfo struct {
	Name        string       `json:"name"`
	Description string       `json:"description"`         // of the last worker that gave one
	Arguments   string       `json:"arguments"`           // how they arrive
	Takes       string       `json:"takes,omitempty"`     // "input" or "args", of the last worker; empty: both
	Slots       int          `json:"slots"`               // of all workers of this node
	Busy        int          `json:"busy"`                // of these, taken
	Elsewhere   int          `json:"elsewhere,omitempty"` // slots at other nodes, behind relays
	Queued      int          `json:"queued"`              // calls that wait for a slot
	Done        uint64       `json:"done"`                // calls that ended with status 0
	Failed      uint64       `json:"failed"`              // calls that ended otherwise, but not those that were refused as busy
	Note        string       `json:"note"`                // why a worker has nothing ready; of the last one that gave a reason
	Held        bool         `json:"held,omitempty"`      // its jobs wait: fbus.hold
	Waits       string       `json:"waits,omitempty"`     // why a call would have to wait now, or posted ones
	Workers     []WorkerInfo `json:"workers"`

	Demand `json:"-"` // only in fbus.watch

	// Attributes are those of the last worker that gave some.
	Attributes map[string]string `json:"attributes,omitempty"`

	// Schema is a JSON Schema of the arguments, of the last worker that gave one.
	// It is there only if the function was asked for by name.
	Schema json.RawMessage `json:"schema,omitempty"`
}

// Change begins each line of fbus.watch; the fields of what has changed follow.
type Change struct {
	Type string `json:"type"`           // "function", "worker", "call", "job", "ticket", or "resync": a new snapshot follows
	Gone bool   `json:"gone,omitempty"` // it is no longer there
}

// Demand counts the waiting calls and jobs of a function, and its free slots.
type Demand struct {
	Free          int            `json:"free"`                     // slots of this node that take a call now
	FreeElsewhere int            `json:"free_elsewhere,omitempty"` // slots of relays that do
	Ready         int            `json:"ready"`                    // jobs that could run now, about
	On            map[string]int `json:"on,omitempty"`             // calls that wait for certain workers, by their glob
	ReadyOn       map[string]int `json:"ready_on,omitempty"`       // of Ready, those for certain workers, by their glob; 100 globs at most
}

// HeldNote says that the jobs of a function wait, wherever that is shown.
func HeldNote(function string) string { return "its jobs are held: fbus release " + function }

// WorkerInfo is one worker's offer of a function.
type WorkerInfo struct {
	Name        string            `json:"name"`
	ID          string            `json:"id"`       // of its connection; a call's on may be "#" and this
	Identity    string            `json:"identity"` // as the node knows it: "uid:1000"
	Slots       int               `json:"slots"`
	Busy        int               `json:"busy"`
	Idempotent  bool              `json:"idempotent"`
	Description string            `json:"description"`
	Arguments   string            `json:"arguments"`
	Takes       string            `json:"takes,omitempty"` // "input" or "args"; empty: both
	Note        string            `json:"note"`            // why it has nothing ready; empty: all is well
	Attributes  map[string]string `json:"attributes,omitempty"`
	CannotStart int               `json:"cannot_start,omitempty"` // status of its calls, 126 or 127; 0: it can start the program
	Held        bool              `json:"held,omitempty"`         // it gets nothing new: fbus.hold
	Relay       bool              `json:"relay,omitempty"`        // it passes calls on to another node, when no other worker has a free slot
	Elsewhere   int               `json:"elsewhere,omitempty"`    // slots there
	Behind      []string          `json:"behind,omitempty"`       // what selects each worker there; a call's on may be "#", the relay's id, "/" and this
	BehindHeld  []string          `json:"behind_held,omitempty"`  // of these, the workers that get nothing new there
}

// HeldInfo is a line of fbus.hold: a function or workers that are held.
type HeldInfo struct {
	Function string `json:"function,omitempty"` // whose jobs wait
	On       string `json:"on,omitempty"`       // a glob of workers that get nothing new
	Workers  int    `json:"workers"`            // that offer the function, or that match, now
}

// HoldQuery is the JSON object that fbus.hold and fbus.release take.
type HoldQuery struct {
	Functions []string `json:"functions,omitempty"`
	On        string   `json:"on,omitempty"`
}

// CallInfo is a call that runs or waits, a line of fbus.calls.
type CallInfo struct {
	Call     string  `json:"call"`              // its id
	Relayed  string  `json:"relayed,omitempty"` // the id that a relay has given it
	Function string  `json:"function"`          // its name
	State    string  `json:"state"`             // "queued", "running", or "ending": its caller has the end, its worker still has the program
	Caller   string  `json:"caller"`            // the caller
	Job      string  `json:"job,omitempty"`     // the job that it runs
	Worker   string  `json:"worker"`            // empty while queued
	Age      float64 `json:"age"`               // seconds since it was called
	Ran      float64 `json:"ran"`               // seconds with its worker

	Progress *Progress `json:"progress,omitempty"` // nil: it has reported none

	Input  StreamInfo `json:"input"`
	Output StreamInfo `json:"output"`
	Stderr StreamInfo `json:"stderr"`
}

// StreamInfo is how far a stream of a call is.
type StreamInfo struct {
	Bytes  int64 `json:"bytes"`  // that its sender has sent
	Credit int64 `json:"credit"` // bytes that its sender may send now
	Held   int64 `json:"held"`   // bytes that its receiver has granted, and that the node does not grant its sender yet
	Open   bool  `json:"open"`   // it has not ended
}

// NodeInfo is a node, a line of fbus.nodes.
type NodeInfo struct {
	Name     string    `json:"name"`
	Network  string    `json:"network"`
	Instance string    `json:"instance"` // new at each start
	Address  string    `json:"address"`  // of its unix socket
	Listens  []string  `json:"listens"`  // for other machines
	Time     time.Time `json:"time"`     // now, by its clock

	Caller string        `json:"caller"` // the one that asks, as the node knows it
	Rights *trust.Rights `json:"rights"` // of the one that asks; null: everything

	PID       int       `json:"pid"`
	Version   string    `json:"version"`
	Protocol  int       `json:"protocol"` // major version
	Started   time.Time `json:"started"`
	Sessions  int       `json:"sessions"`  // connections
	Functions int       `json:"functions"` // names offered
	Calls     int       `json:"calls"`     // queued or running
	Draining  bool      `json:"draining"`
	NoPosts   string    `json:"no_posts,omitempty"` // why nothing can be posted

	Trust *trust.SecondInfo `json:"trust,omitempty"` // nil at the network's first node
	Held  int               `json:"held,omitempty"`  // functions and globs of workers: fbus.hold
}

// TrustQuery is the JSON object that fbus.trust takes.
type TrustQuery struct {
	After int64   `json:"after,omitempty"` // the number of the list that the caller has
	Wait  float64 `json:"wait,omitempty"`  // seconds to wait for a list with another number; at most 50
	Kept  bool    `json:"kept,omitempty"`  // of a node that is not the first: the list that it has
	List  string  `json:"list,omitempty"`  // a list (PEM) for it, from elsewhere
}

// MeshFunction is the function by which fbus mesh answers what it knows: a [MeshInfo]. Only a relay
// that is an administrator may offer it, and only administrators and relays may call it.
const MeshFunction = "fbus.mesh"

// MeshInfo is what the mesh of a node knows of the others.
type MeshInfo struct {
	Node  string     `json:"node"`  // what this one is called there
	NATS  string     `json:"nats"`  // the URL of the server; empty: not connected
	Calls int        `json:"calls"` // that are passed on now
	Peers []MeshPeer `json:"peers"`

	NATSError string `json:"nats_error,omitempty"` // why it is not connected
}

// MeshPeer is another node of a mesh.
type MeshPeer struct {
	Name      string  `json:"name"`            // as a worker here: @NODE
	Reach     string  `json:"reach"`           // how it is reached: "tls HOST:PORT"; empty: it is not
	Error     string  `json:"error,omitempty"` // why it is not reached
	Twin      bool    `json:"twin,omitempty"`  // another node, or this one, has the same name
	Functions int     `json:"functions"`       // that it shares, and that are accepted
	Calls     int     `json:"calls"`           // that are passed on to it now
	Heard     float64 `json:"heard"`           // seconds since the last word of it
	Clock     float64 `json:"clock,omitempty"` // seconds that its clock is ahead of this one's, if it is a second or more, or less than 0
}

// Invitation is the JSON object that fbus.invite takes.
type Invitation struct {
	Name      string   `json:"name,omitempty"`      // default: a new one
	Call      []string `json:"call,omitempty"`      // globs of functions that may be called
	Offer     []string `json:"offer,omitempty"`     // and offered
	Admin     bool     `json:"admin,omitempty"`     // may call fbus.*
	Monitor   bool     `json:"monitor,omitempty"`   // may see what others do
	Relay     bool     `json:"relay,omitempty"`     // may make calls for others
	Node      bool     `json:"node,omitempty"`      // for a second node of the network, which has rights of its own; only Admin can be added
	Mesh      bool     `json:"mesh,omitempty"`      // with Node: not for a node, but for the mesh of this one
	TTL       float64  `json:"ttl,omitempty"`       // seconds; default a day, reusable 30 days
	Token     bool     `json:"token,omitempty"`     // a bearer token, not a ticket: the answer is a TokenInfo
	Reusable  bool     `json:"reusable,omitempty"`  // for any number of users, without being exchanged
	Uses      int      `json:"uses,omitempty"`      // how many may join with it; default 1
	Ephemeral bool     `json:"ephemeral,omitempty"` // a member goes when it was disconnected for an hour
	Addresses []string `json:"addresses,omitempty"` // host:port to dial; default the machine's
	By        string   `json:"by,omitempty"`        // from a second node: who asks there, a ticket's serial or uid:N
}

// TokenInfo describes a bearer token: the answer of fbus.admit, and of fbus.invite.
type TokenInfo struct {
	Token   string       `json:"token,omitempty"` // its text, when it is made
	Kind    trust.Kind   `json:"kind"`            // "token"
	Name    string       `json:"name"`
	Caller  string       `json:"caller"` // "token:NAME", for the caller of a relayed call
	Serial  string       `json:"serial"`
	Rights  trust.Rights `json:"rights"`
	Expires time.Time    `json:"expires"`
}

// TicketInfo is an issued ticket, a line of fbus.tickets.
type TicketInfo struct {
	trust.Record
	Connected int `json:"connected"` // connections now
}

// RevokedInfo is the answer of fbus.revoke.
type RevokedInfo struct {
	Serials     []string  `json:"serials"`
	Issued      []string  `json:"issued,omitempty"` // names of tickets among them that were issued with it
	Connections int       `json:"connections"`      // closed
	Before      time.Time `json:"before,omitzero"`  // when all this was revoked, if it was before this request
}

// JobQuery is the JSON object that fbus.jobs takes and, as far as it applies, fbus.retry
// and fbus.purge.
type JobQuery struct {
	IDs      []string `json:"ids,omitempty"`
	State    string   `json:"state,omitempty"`
	Function string   `json:"function,omitempty"` // a name or a glob
	Limit    int      `json:"limit,omitempty"`    // 0: all
	After    string   `json:"after,omitempty"`    // only those after this id
	Newest   bool     `json:"newest,omitempty"`   // the last of them, not the first
	Dead     bool     `json:"dead,omitempty"`     // fbus.retry: all that are dead
	Older    float64  `json:"older,omitempty"`    // fbus.purge: seconds since they ended
	Batch    string   `json:"batch,omitempty"`    // only those of that batch: NAME, or POSTER/NAME

	// Among bounds fbus.jobs to functions that match a glob of each list: a relay lists what its caller may see.
	Among [][]string `json:"among,omitempty"`
}

// BatchThen is the JSON object that fbus.batch takes: the end of a batch posts a job.
type BatchThen struct {
	Batch    string  `json:"batch"`
	Then     string  `json:"then"` // a function; it gets a BatchEnd
	Retries  int     `json:"retries,omitempty"`
	Backoff  float64 `json:"backoff,omitempty"`
	Priority int     `json:"priority,omitempty"`
	Keep     float64 `json:"keep,omitempty"`
	Timeout  float64 `json:"timeout,omitempty"`
	On       string  `json:"on,omitempty"`
	Check    bool    `json:"check,omitempty"` // only whether it would be refused
}

// BatchEnd is the document about a batch whose jobs have all ended.
type BatchEnd struct {
	Batch     string `json:"batch"`
	Poster    string `json:"poster"`
	Jobs      int    `json:"jobs"`
	Done      int    `json:"done"`
	Dead      int    `json:"dead"`
	Cancelled int    `json:"cancelled"`
}

// JobWait is the JSON object that fbus.wait takes: ids of jobs, or a batch.
type JobWait struct {
	IDs   []string `json:"ids,omitempty"`
	Batch string   `json:"batch,omitempty"`
}

// WaitInfo is a line of the answer of fbus.wait. The last one has the final numbers.
type WaitInfo struct {
	Jobs      int `json:"jobs"`
	Running   int `json:"running"`
	Done      int `json:"done"`
	Dead      int `json:"dead"`
	Cancelled int `json:"cancelled"`

	Progress *Progress `json:"progress,omitempty"` // the last report of one of them that runs
}

// JobInfo is a posted job, a line of fbus.jobs.
type JobInfo struct {
	ID         string    `json:"id"`
	Function   string    `json:"function"`
	State      JobState  `json:"state"`
	Poster     string    `json:"poster"`
	Owner      string    `json:"owner,omitempty"` // if the poster's name may be given out again: POSTER@SERIAL
	Posted     time.Time `json:"posted"`
	Age        float64   `json:"age"`              // seconds
	Due        time.Time `json:"due,omitzero"`     // when the delay ends
	Started    time.Time `json:"started,omitzero"` // of the last attempt
	Ended      time.Time `json:"ended,omitzero"`
	Attempts   int       `json:"attempts"`       // that were begun
	Used       int       `json:"used"`           // that count against Retries
	Lost       int       `json:"lost,omitempty"` // in a row, that lost their worker
	Retries    int       `json:"retries"`
	Priority   int       `json:"priority"`
	Unique     string    `json:"unique,omitempty"`
	UniqueFor  float64   `json:"unique_for,omitempty"` // seconds that the key is kept after the end
	Then       string    `json:"then,omitempty"`
	Else       string    `json:"else,omitempty"`
	Finally    string    `json:"finally,omitempty"`
	Timeout    float64   `json:"timeout,omitempty"` // seconds
	Keep       float64   `json:"keep"`              // seconds
	On         string    `json:"on,omitempty"`
	Batch      string    `json:"batch,omitempty"`
	AtMostOnce bool      `json:"at_most_once,omitempty"` // not run again after a loss of its worker or node
	Worker     string    `json:"worker,omitempty"`
	Call       string    `json:"call,omitempty"` // while it runs
	JobEnd               // of it, or its last attempt
	In         int64     `json:"in"`                 // bytes
	Out        int64     `json:"out"`                // bytes
	Err        int64     `json:"err"`                // bytes of stderr
	Note       string    `json:"note,omitempty"`     // why it waits
	Progress   *Progress `json:"progress,omitempty"` // while it runs, if it has reported any
	Parent     string    `json:"parent,omitempty"`
	Children   []string  `json:"children,omitempty"`
	History    []JobTry  `json:"history,omitempty"` // only if the job was asked for by id

	Item         string `json:"item,omitempty"`          // that was posted, if it is short
	ItemEncoding string `json:"item_encoding,omitempty"` // "base64" if it is not UTF-8
}

// JobState is the state of a job: "queued", "delayed", "running", "done", "dead" or "cancelled".
type JobState string

// Finished reports whether the state is final.
func (s JobState) Finished() bool { return s == "done" || s == "dead" || s == "cancelled" }

// JobEnd describes how a job or an attempt ended. Its fields are left out before that.
type JobEnd struct {
	Source  string `json:"source,omitempty"` // "program", "signal" or "fbus"
	Status  *int   `json:"status,omitempty"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
}

// JobTry is one attempt of a job.
type JobTry struct {
	Attempt int       `json:"attempt"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Worker  string    `json:"worker,omitempty"`
	Call    string    `json:"call,omitempty"`
	JobEnd
}

// JobTotal is the last line of the answer of fbus.jobs.
type JobTotal struct {
	Total int `json:"total"` // that match, shown or not
}

// LogQuery is the JSON object that fbus.log takes. All of it may be left out.
type LogQuery struct {
	After    uint64  `json:"after,omitempty"`    // entries with a greater seq
	Last     int     `json:"last,omitempty"`     // of these, the last so many
	Function string  `json:"function,omitempty"` // a name or a glob
	Caller   string  `json:"caller,omitempty"`   // the same
	Event    string  `json:"event,omitempty"`    // the same
	Wait     float64 `json:"wait,omitempty"`     // seconds to wait for the first, if there is none yet; at most 8
}

// LogNext is the last line of the answer of fbus.log: the after of the next call.
// If it is less than the after that was asked for, the log has begun again.
type LogNext struct {
	Next uint64 `json:"next"`
}

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

	TicketsExpiring int       `json:"tickets_expiring"`        // live tickets that expire within 30 days; -1: not known
	TicketExpires   time.Time `json:"ticket_expires,omitzero"` // when the first of the live tickets expires

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

package bus

import "time"

// LogEntry is one line of a node's call log, as the function fbus.log answers it. Fields
// that do not apply to an event are left out of its JSON; the end of a call has its
// numbers even if they are 0.
type LogEntry struct {
	Seq      uint64    `json:"seq"`                // rises by one, also over restarts
	Time     time.Time `json:"time"`               // when it happened: UTC, microseconds
	Event    string    `json:"event"`              // "call", "refused", "invited", "joined", "revoked", "dropped", …
	Call     string    `json:"call,omitempty"`     // the call's id
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
	Name     string    `json:"name,omitempty"`     // of the ticket concerned
	Serial   string    `json:"serial,omitempty"`   // of the ticket concerned
	Dropped  uint64    `json:"dropped,omitempty"`  // how many entries are missing here
}

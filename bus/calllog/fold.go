package calllog

import (
	"fmt"
	"strings"
	"time"

	"fbus/bus"
	"fbus/bus/args"
)

// kinds are the names of the series of files.
var kinds = [...]string{"log", "refused", "security"}

// kindOf returns the index of the series that keeps an event.
func kindOf(event string) int {
	switch event {
	case EventCall, EventDropped:
		return 0
	case EventRefused:
		return 1
	}
	return 2
}

const (
	foldBurst = 50   // entries of a kind that are logged one by one
	maxBursts = 1000 // kinds; further callers are counted as one, "others"
	maxFolded = 8    // functions of a kind that have counts of their own
)

// foldTime is how long entries are counted before the counts are logged.
var foldTime = time.Minute

// kind identifies entries that are folded into one. Peers cannot choose any of its fields: all callers of
// a relay are one.
type kind struct {
	caller, event, source, code string
	status                      int
}

// burst counts the entries of one kind in this foldTime.
type burst struct {
	logged int
	more   map[string]uint64 // entries that were not logged, by function
}

// folds reports whether a peer can cause such entries at no cost to itself.
func folds(e *bus.LogEntry) bool {
	switch {
	case e.Seq != 0 || e.More != 0: // a copy, or a count
		return false
	case e.Event == EventCall:
		return e.Source == args.FromBus.String() && e.Worker == "" && e.Out == 0
	}
	return e.Event == EventRefused || e.Event == EventJoined || e.Event == EventRenewed
}

// fold reports whether an entry is only counted. l.mu is held.
func (l *Log) fold(e *bus.LogEntry) bool {
	via, _, _ := strings.Cut(e.Caller, "/")
	k := kind{cut(via), e.Event, e.Source, e.Code, e.Status}
	if l.bursts[k] == nil && len(l.bursts) >= maxBursts {
		k.caller = "others"
	}
	b := l.burst(k)
	if b.logged < foldBurst {
		b.logged++
		return false
	}
	function := cut(e.Function)
	if b.more[function] == 0 && len(b.more) >= maxFolded {
		function = ""
	}
	b.more[function]++
	return true
}

// burst returns the burst of a kind. l.mu is held.
func (l *Log) burst(k kind) *burst {
	if l.bursts == nil {
		l.bursts = map[kind]*burst{}
		l.folding = time.AfterFunc(foldTime, l.unfold)
	}
	b := l.bursts[k]
	if b == nil {
		b = &burst{more: map[string]uint64{}}
		l.bursts[k] = b
	}
	return b
}

// unfold logs the counts. A kind that has counts logs no single entry in the next foldTime.
func (l *Log) unfold() {
	l.mu.Lock()
	was := l.bursts
	l.bursts = nil
	for k, b := range was {
		if len(b.more) > 0 {
			l.burst(k).logged = foldBurst
		}
	}
	l.mu.Unlock()
	for k, b := range was {
		for function, n := range b.more {
			l.Append(&bus.LogEntry{
				Event: k.event, Caller: k.caller, Function: function, Source: k.source, Status: k.status, Code: k.code,
				More: n, Message: fmt.Sprintf("and %d more", n),
			})
		}
	}
}

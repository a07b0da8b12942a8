package calllog

import (
	"fmt"
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
	foldBurst = 50   // entries of one caller that are logged one by one
	maxBursts = 1000 // callers that are counted apart; all others are one
	maxFolded = 8    // functions and codes of one caller that are counted apart
)

// foldTime is how long entries are counted before the counts are logged.
var foldTime = time.Minute

// burst is what one caller has caused in this foldTime.
type burst struct {
	logged int
	more   map[folded]uint64 // the entries that were not
}

// folded is what entries that are counted together have in common.
type folded struct {
	event, caller, function, source, code string
	status                                int
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
	k := folded{e.Event, cut(e.Caller), cut(e.Function), e.Source, e.Code, e.Status}
	if l.bursts[k.caller] == nil && len(l.bursts) >= maxBursts {
		k.caller = "others"
	}
	b := l.burst(k.caller)
	if b.logged < foldBurst {
		b.logged++
		return false
	}
	if b.more[k] == 0 && len(b.more) >= maxFolded {
		k = folded{event: k.event, caller: k.caller, source: k.source}
	}
	b.more[k]++
	return true
}

// burst returns the burst of a caller. l.mu is held.
func (l *Log) burst(caller string) *burst {
	if l.bursts == nil {
		l.bursts = map[string]*burst{}
		l.folding = time.AfterFunc(foldTime, l.unfold)
	}
	b := l.bursts[caller]
	if b == nil {
		b = &burst{more: map[folded]uint64{}}
		l.bursts[caller] = b
	}
	return b
}

// unfold logs the counts. In the next foldTime, all entries of a caller that has any are
// only counted.
func (l *Log) unfold() {
	l.mu.Lock()
	was := l.bursts
	l.bursts = nil
	for caller, b := range was {
		if len(b.more) > 0 {
			l.burst(caller).logged = foldBurst
		}
	}
	l.mu.Unlock()
	for _, b := range was {
		for k, n := range b.more {
			l.Append(&bus.LogEntry{
				Event: k.event, Caller: k.caller, Function: k.function, Source: k.source, Status: k.status, Code: k.code,
				More: n, Message: fmt.Sprintf("and %d more", n),
			})
		}
	}
}

package node

import "time"

// ownLimits bound the calls of a node's own functions: one peer that does not read
// the answers must not take them from the others.
type ownLimits struct {
	perConn int           // open on one connection
	time    time.Duration // for a call; 0: without limit
	long    bool          // they may wait, and count by themselves
}

var (
	shortOwn = ownLimits{perConn: ownPerConn, time: ownTime}
	longOwn  = ownLimits{perConn: longPerConn, long: true}
)

// limitsOf are those of one of the node's own functions.
func limitsOf(name string) *ownLimits {
	switch name {
	case "fbus.post", "fbus.result", "fbus.jobs", "fbus.cancel":
		return &longOwn
	}
	return &shortOwn
}

func (s *session) ownCalls(l *ownLimits) *int {
	if l.long {
		return &s.ownLong
	}
	return &s.own
}

func (s *session) ownFull(name string) bool {
	l := limitsOf(name)
	return *s.ownCalls(l) >= l.perConn
}

// changes are those of them that do not only tell something.
var changes = map[string]bool{
	"fbus.post": true, "fbus.retry": true, "fbus.purge": true, "fbus.cancel": true,
	"fbus.invite": true, "fbus.join": true, "fbus.renew": true, "fbus.revoke": true,
}

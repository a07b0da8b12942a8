package main

import (
	"net/http"
	"sync"
	"time"

	"fbus/bus/args"

	"golang.org/x/time/rate"
)

// limits bound what each caller does at a time. The gateway's own user has no limits.
type limits struct {
	cfg *config

	mu    sync.Mutex // protects what follows
	usage map[string]*usage
}

// usage counts the calls and the event streams of a caller.
type usage struct {
	calls, streams int
	rate           *rate.Limiter // nil: no limit
}

// begin counts a call or a stream of events; done ends it, and may be called again.
func (l *limits) begin(c *caller, stream bool) (done func(), err error) {
	if c.name == "" {
		return func() {}, nil
	}
	most := l.cfg.limitsOf(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.usage[c.name]
	if u == nil {
		u = &usage{}
		if most.PerMinute > 0 {
			u.rate = rate.NewLimiter(rate.Limit(float64(most.PerMinute)/60), most.PerMinute)
		}
		if l.usage == nil {
			l.usage = map[string]*usage{}
		}
		l.usage[c.name] = u
	}
	n, limit, what := &u.calls, most.Calls, "calls"
	if stream {
		n, limit, what = &u.streams, most.Streams, "event streams"
	}
	if limit > 0 && *n >= limit {
		return nil, &httpError{args.Errorf(args.CodeBusy, "%s has %d %s open, which is the limit", c.shown(), *n, what), http.StatusTooManyRequests, time.Second}
	}
	if u.rate != nil {
		if wait := u.rate.Reserve(); wait.Delay() > 0 {
			after := wait.Delay()
			wait.Cancel()
			return nil, &httpError{args.Errorf(args.CodeBusy, "%s may make %d calls a minute", c.shown(), most.PerMinute), http.StatusTooManyRequests, after}
		}
	}
	*n++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		*n--
	}), nil
}
